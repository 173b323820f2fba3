"""Files from outside do nothing but be read: none runs, none leads out of its folder, no cell becomes a formula."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from helpers import ROOT, command, make_run
from safetensors.torch import save_file
from test_folders import OFFICIAL

from folders import read_database
from iqa.checkpoint import read_checkpoint
from iqa.data import check_images, open_rgb
from iqa.errors import UserError
from iqa.pretrained import read_state_dict
from iqa.system import spreadsheet_safe
from smart_iqa.scorer import load_model

# Nothing is unpickled -------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return (open, (str(self.file), "w"))


@pytest.fixture
def went_off(tmp_path: Path) -> Path:
    return tmp_path / "went_off"


def plain(file: Path, bomb: Bomb) -> None:
    file.write_bytes(pickle.dumps(bomb))


def in_torch_file(file: Path, bomb: Bomb) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "optimizer": bomb}, file)


def in_old_torch_file(file: Path, bomb: Bomb) -> None:
    torch.save({"a": torch.zeros(1), "b": bomb}, file, _use_new_zipfile_serialization=False)


def in_npz(file: Path, bomb: Bomb) -> None:
    with file.open("wb") as opened:
        np.savez(opened, a=np.array([bomb], dtype=object))


MALICIOUS = [plain, in_torch_file, in_old_torch_file, in_npz]


def readers(file: Path) -> dict[str, object]:
    """Every way in which a file given by its user is opened, by the ending that leads there."""
    return {
        "pth": lambda: read_state_dict(file),
        "pkl": lambda: load_model(file),
        "safetensors": lambda: read_state_dict(file),
        "safetensors ": lambda: read_checkpoint(file),
        "csv": lambda: read_database("csv", data_path=file),
        "json": lambda: read_database("json", data_path=file),
        "png": lambda: open_rgb(file),
    }


@pytest.mark.parametrize("ending", readers(Path()))
@pytest.mark.parametrize("wrapped", MALICIOUS, ids=lambda f: f.__name__)
def test_a_malicious_pickle_is_refused_by_name_and_does_not_run(wrapped, ending: str, tmp_path: Path, went_off) -> None:
    file = tmp_path / f"evil.{ending.strip()}"
    wrapped(file, Bomb(went_off))
    with pytest.raises(UserError, match="evil"):
        readers(file)[ending]()
    assert not went_off.exists()


@pytest.mark.parametrize("wrapped", MALICIOUS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_malicious_pickle_as_a_label_file_does_not_run(wrapped, name: str, tmp_path: Path, went_off) -> None:
    build, rows = OFFICIAL[name]
    build(tmp_path / name, rows)
    for file in (tmp_path / name).rglob("*"):
        if file.suffix in {".csv", ".xlsx", ".mat", ".txt"}:
            wrapped(file, Bomb(went_off))
    with pytest.raises(UserError, match=name):
        read_database(name, data_root=tmp_path)
    assert not went_off.exists()


def test_the_cache_of_checked_images_is_not_unpickled(tmp_path: Path, monkeypatch, went_off) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trees.image_file(tmp_path / "a.png")
    check_images([tmp_path / "a.png"], "key")
    (cache,) = (tmp_path / "smart_iqa").iterdir()
    with cache.open("wb") as file:
        np.save(file, np.array([Bomb(went_off)], dtype=object))
    assert check_images([tmp_path / "a.png"], "key")[0].problem == ""
    assert not went_off.exists()


def test_a_checkpoint_of_a_run_is_read_as_tensors_and_json_only(tmp_path: Path, went_off) -> None:
    run = make_run(tmp_path, "single")
    in_torch_file(run / "best.safetensors", Bomb(went_off))
    with pytest.raises(UserError, match=r"best\.safetensors"):
        load_model(run)
    save_file({"model.a": torch.zeros(1)}, run / "best.safetensors", metadata={"made": pickle.dumps(1).hex()})
    with pytest.raises(UserError, match=r"best\.safetensors"):
        load_model(run)
    assert not went_off.exists()


def test_no_file_of_the_house_unpickles_or_runs_text() -> None:
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "pd.read_pickle", "yaml.load", "yaml.unsafe_load"}
    files = [*ROOT.glob("*.py"), *(ROOT / "iqa").rglob("*.py"), *(ROOT / "smart_iqa").rglob("*.py")]
    last = {name.rpartition(".")[2] for name in (*forbidden, "np.load")}
    for file in files:
        called = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call))
        for call in (n for n in called if last & {getattr(n.func, "attr", ""), getattr(n.func, "id", "")}):
            name = ast.unparse(call.func)
            assert name not in forbidden, f"{file}:{call.lineno}"
            said = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name != "np.load" or said.get("allow_pickle") == "False", f"{file}:{call.lineno}"


# Readers stay in their folder -----------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image beside the databases, which no official layout may reach."""
    trees.image_file(tmp_path / "elsewhere" / "secret.png")
    return tmp_path / "elsewhere" / "secret.png"


WAYS_OUT = ["../../elsewhere/secret.png", "../../ELSEWHERE/Secret.png", "x/../../../elsewhere/secret.png"]


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("name", ["koniq-10k", "kadid-10k", "agiqa-3k", "csiq", "tid2013", "livec"])
def test_a_label_that_climbs_out_of_its_database_is_refused(name: str, way: str, tmp_path: Path, secret: Path) -> None:
    build, rows = OFFICIAL[name]
    root = build(tmp_path / name, rows)
    place = 1 if name == "tid2013" else 0
    bad = [*rows[0]]
    bad[place] = way
    if name == "tid2013":
        (root / "mos_with_names.txt").write_text(f"5.0 {way}\n")
    else:
        made = build(tmp_path / "other" / name / "deep", [tuple(bad), *rows[1:]])
        for path in [path for path in root.rglob("*") if path.suffix in {".csv", ".txt", ".mat"}]:
            shutil.copy(made / path.relative_to(root), path)
    with pytest.raises(UserError, match="lies outside the folder of the database|image is missing|content is empty"):
        read_database(name, data_root=tmp_path)


def test_an_absolute_name_in_the_demo_database_is_refused(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "demo").mkdir()
    for name in (str(secret), "../elsewhere/secret.png"):
        (tmp_path / "demo" / "labels.csv").write_text(f"image,mos,content,split\n{name},50,a,train\n")
        with pytest.raises(UserError, match=r"secret\.png \(row 2: image lies outside the folder of the database\)"):
            read_database("demo", data_root=tmp_path)


@pytest.mark.parametrize("what", ["image", "folder", "labels"])
def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_followed(what: str, tmp_path: Path, secret) -> None:
    root = trees.koniq(tmp_path / "koniq-10k", OFFICIAL["koniq-10k"][1])
    linked = {
        "image": root / "512x384" / OFFICIAL["koniq-10k"][1][0][0],
        "folder": root / "512x384",
        "labels": root / "koniq10k_distributions_sets.csv",
    }[what]
    for place, refused in ((root / "kept", False), (tmp_path / "elsewhere" / "moved", True)):
        shutil.move(linked, place)
        linked.symlink_to(place)
        if refused:
            with pytest.raises(UserError, match="lies outside the folder of the database"):
                read_database("koniq-10k", data_root=tmp_path)
        else:
            assert len(read_database("koniq-10k", data_root=tmp_path).table) == 3
        linked.unlink()
        shutil.move(place, linked)


def test_a_database_may_itself_be_a_link(tmp_path: Path) -> None:
    trees.koniq(tmp_path / "disk" / "koniq", OFFICIAL["koniq-10k"][1])
    (tmp_path / "koniq-10k").symlink_to(tmp_path / "disk" / "koniq")
    assert len(read_database("koniq-10k", data_root=tmp_path).table) == 3


def test_a_table_may_name_any_image_of_its_user(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "link.png").symlink_to(secret)
    names = [str(secret), "../elsewhere/../elsewhere/secret.png", "link.png"]
    pd.DataFrame({"image": names, "mos": 50.0}).to_csv(tmp_path / "tables" / "a.csv", index=False)
    assert len(read_database("csv", data_path=tmp_path / "tables" / "a.csv").table) == 3


def test_nothing_but_images_is_opened_through_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.txt").write_text("password = hunter2")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    names = ["secret.txt", "pipe.png", "/dev/zero", "/proc/self/environ", "/etc", "."]
    pd.DataFrame({"image": names, "mos": 50.0}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match="6 of 6 labels cannot be used") as refused:
        read_database("csv", data_path=tmp_path / "a.csv")
    assert "hunter2" not in str(refused.value)


# What we write --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["=1+1.png", "+1+cmd|' /C calc'!A0", "-2+3+cmd|x", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_that_a_spreadsheet_would_run_gets_a_quote(name: str) -> None:
    assert spreadsheet_safe(pd.DataFrame({"image": [name]})).image.tolist() == [f"'{name}"]


@pytest.mark.parametrize("cell", ["a=1.png", "1-2", "-0.5", "+0.0123 ± 0.004", "-1.2 [-2.0, -0.4]", -1.5, None, ""])
def test_other_cells_stay_as_they_are(cell: object) -> None:
    assert spreadsheet_safe(pd.DataFrame({"a": [cell]}, dtype=object)).a.tolist() == [cell]


def test_scores_of_a_file_with_such_a_name_are_written_with_the_quote(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path, "single")
    monkeypatch.chdir(tmp_path)
    trees.image_file(tmp_path / "=1+1.png", size=(40, 36))
    assert command("predict", "=1+1.png", "--checkpoint", run, "--output", "scores.csv", "--device", "cpu") == 0
    assert (tmp_path / "scores.csv").read_text().splitlines()[1].startswith("'=1+1.png,")


def test_an_error_about_a_name_is_one_line_that_steers_no_terminal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\\nb\\x1b\[31m\\u202e\.png") as refused:
        open_rgb(tmp_path / "a\nb\x1b[31m\u202e.png")
    assert str(refused.value).isprintable()
