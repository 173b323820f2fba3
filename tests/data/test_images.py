"""Image files, sound and broken: each is read with the right pixels or refused by one line that names it."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.broken_images import cases, saved, scene
from benchmarks.reliability import try_image
from iqa.data import check_image, check_images, image_sizes, open_rgb
from iqa.errors import UserError

CASES = list(cases())
KINDS = sorted({case.kind for case in CASES})


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_read_rightly_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    tried = {case.name: try_image(case, tmp_path).wrong for case in CASES if case.kind == kind}
    assert {name: wrong for name, wrong in tried.items() if wrong} == {}


def test_there_are_hundreds_of_broken_files_in_every_format_that_pillow_writes_here() -> None:
    assert len(CASES) > 900
    whole = {case.name.split(".")[0] for case in CASES if case.kind == "whole"}
    # PALM and PDF are only written; SPIDER is floating point, EPS is refused; the others need a helper of the system.
    Image.init()
    assert whole >= set(Image.SAVE) - {"PALM", "PDF", "SPIDER", "EPS", "WMF", "BUFR", "GRIB", "HDF5"}


def test_the_size_that_a_header_gives_is_that_of_the_upright_image(tmp_path: Path) -> None:
    for case in CASES:
        if case.outcome == "read":
            (tmp_path / case.name).write_bytes(case.content)
            size = (case.pixels.shape[1], case.pixels.shape[0])
            assert image_sizes([str(tmp_path / case.name)]).tolist() == [list(size)], case
            assert check_image(tmp_path / case.name)[2:] == size, case


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: started.append(arguments))
    (tmp_path / "a.png").write_bytes(saved(scene(), "EPS"))
    with pytest.raises(UserError, match="PostScript is a program"):
        open_rgb(tmp_path / "a.png")
    assert started == [] and "PostScript" in check_image(tmp_path / "a.png").problem


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a/" * 2100 + "b.png", "a\0b.png", "", "."])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as refused:
        open_rgb(f"{tmp_path}/{name}")
    assert len(str(refused.value).splitlines()) == 1
    assert check_images([f"{tmp_path}/{name}"], "key")[0].problem


def test_a_check_of_many_files_keeps_their_order_and_few_calls_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iqa.system.threads._WAITING", 2)
    monkeypatch.setattr("iqa.system.threads._AT_ONCE", 4)
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    for i, path in enumerate(paths):
        path.write_bytes(saved(scene(i + 1, 30 - i), "PNG") if i % 7 else b"broken")
    files = check_images(paths, "order")
    assert [row for row, file in enumerate(files) if file.problem] == [0, 7, 14, 21, 28] == sorted(files.problems)
    assert all(files.size[i].tolist() == ([i + 1, 30 - i] if i % 7 else [0, 0]) for i in range(30))
    again = check_images(paths[::-1], "order")  # whole ones from the cache, in another order
    assert list(again) == list(files)[::-1]


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40], lambda b: b"", pickle.dumps])
def test_a_damaged_cache_of_checks_is_made_anew(damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    first = list(check_images([tmp_path / "a.png"], "key"))
    (cache,) = (tmp_path / "smart_iqa").iterdir()
    cache.write_bytes(damage(cache.read_bytes()))
    assert list(check_images([tmp_path / "a.png"], "key")) == first


def test_what_a_caller_does_wrong_is_not_blamed_on_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    with pytest.raises(ZeroDivisionError):
        open_rgb(tmp_path / "a.png", lambda width, height: (width // 0, height))


@pytest.mark.filterwarnings("ignore")
def test_images_over_the_limit_are_refused_whatever_filters_say(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 9500 9500 255\n")
    assert "9500 x 9500 pixels exceed the limit" in check_image(tmp_path / "a.ppm").problem


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_images_over_the_limit_are_refused_in_threads_too(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 9500 9500 255\n")
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(check_image(tmp_path / "a.ppm").problem))
    thread.start()
    thread.join()
    assert "exceeds limit of 89478485" in said[0]
