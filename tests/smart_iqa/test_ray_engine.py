"""`smart-iqa predict --engine ray`: the scores of one process, each once, whatever is killed, and what it refuses.

Ray itself is started in the slow suite alone; a worker is an object that works without it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, command, make_run
from PIL import Image

from iqa.data import file_hash
from smart_iqa import ray_engine
from smart_iqa.ray_engine import ShardScorer, Work, score_collection
from smart_iqa.score_rows import COLUMNS
from smart_iqa.shards import shards_of
from smart_iqa.shipped import checkpoint_file

COLLECTION = 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An untrained run that scores whole images, beside its `data`: twelve images, 0.png to 11.png."""
    return make_run(tmp_path_factory.mktemp("ray"), "channel", test_mode="full")


@pytest.fixture
def images(run) -> Path:
    return run.parent / "data"


@pytest.fixture
def alone(monkeypatch) -> None:
    """One worker in this process in the place of Ray."""

    def score(todo, work, workers) -> None:
        worker = ShardScorer(work._replace(device="cpu"))
        problems = worker({"shard": [shard.text for shard in todo]})["problem"]
        if any(problems):
            raise ray_engine.UserError(next(filter(None, problems)))

    monkeypatch.setattr(ray_engine, "_run", score)


def predict(run, *arguments) -> int:
    return command("predict", *arguments, "--checkpoint", run, "--device", "cpu")


def scores_in(output: Path) -> pd.DataFrame:
    """What a file or a folder of scores says, by image; of a folder every file is read."""
    return pd.read_parquet(output).sort_values("image", ignore_index=True)


def as_sources(images: Path, folder: Path) -> dict[str, Path]:
    """The same images as files, as a table of paths, a table of bytes and a tar."""
    paths = sorted(images.glob("*.png"))
    pd.DataFrame({"path": list(map(str, paths))}).to_parquet(folder / "paths.parquet")
    data = [path.read_bytes() for path in paths]
    pd.DataFrame({"path": list(map(str, paths)), "bytes": data}).to_parquet(folder / "bytes.parquet")
    with tarfile.open(folder / "part.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    return {"files": images, "paths": folder / "paths.parquet", "bytes": folder / "bytes.parquet",
            "tar": folder / "part.tar"}  # fmt: skip


def test_every_source_gives_the_scores_that_files_have_in_one_process(run, images, tmp_path, alone):
    assert predict(run, images, "--output", tmp_path / "one.parquet") == 0
    expected = scores_in(tmp_path / "one.parquet")
    for kind, source in as_sources(images, tmp_path).items():
        assert predict(run, source, "--engine", "ray", "--output", tmp_path / kind) == 0
        found = scores_in(tmp_path / kind)
        assert list(found.columns) == list(COLUMNS) and found["error"].isna().all()
        if kind == "tar":
            found = found.assign(image=[str(images / Path(image).name) for image in found["image"]])
        pd.testing.assert_frame_equal(found, expected, check_exact=False, atol=1e-4)


def test_what_cannot_be_read_is_a_row_with_an_error_and_the_exit_code_says_so_each_time(
    run, images, tmp_path, alone, capsys
):
    (tmp_path / "torn.png").write_bytes((images / "1.png").read_bytes()[:80])
    pd.DataFrame({"bytes": [b"no image", (images / "2.png").read_bytes(), None]}).to_parquet(tmp_path / "b.parquet")
    names = [images / "3.png", tmp_path / "torn.png", "nowhere.png", tmp_path / "b.parquet"]
    for before in (0, 2):
        assert predict(run, *names, "--engine", "ray", "--output", tmp_path / "out") == 2
        assert f"6 images, 4 of them errors, in 2 files of {tmp_path / 'out'}, of which {before} were" in (
            capsys.readouterr().out
        )
    table = scores_in(tmp_path / "out").set_index("image")
    assert table["score"].notna().sum() == 2 and (table["score"].isna() == table["error"].notna()).all()
    assert "torn.png cannot be read" in table["error"][str(tmp_path / "torn.png")]
    assert f"{tmp_path / 'b.parquet'}#0 cannot be read" in table["error"][f"{tmp_path / 'b.parquet'}#0"]


def test_a_second_start_skips_finished_shards_and_scores_those_that_are_missing(run, images, tmp_path, alone):
    source = as_sources(images, tmp_path)
    words = [source["files"], source["tar"], "--engine", "ray", "--output", tmp_path / "out"]
    assert predict(run, *words) == 0
    first, second = sorted((tmp_path / "out").glob("*.parquet"))
    kept, scores = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert predict(run, *words) == 0
    assert (first.stat().st_mtime_ns, second.read_bytes()) == (kept, scores)
    assert predict(run, *words, "--overwrite") == 0
    assert first.stat().st_mtime_ns != kept
    assert {file.name for file in (tmp_path / "out").iterdir()} == {first.name, second.name, ".lock"}


def test_a_killed_worker_s_shard_goes_on_after_its_last_row(run, images, tmp_path, monkeypatch):
    shard = next(shards_of([str(images)]))
    work = Work(str(run), file_hash(checkpoint_file(run)), str(tmp_path), "cpu", "torch")
    worker, file = ShardScorer(work), work.file(shard)
    scored: list[str] = []

    def killed_after(rows, count: int):
        for row in rows[:count]:
            scored.append(row["image"])
            yield row
        if count < len(rows):
            raise KeyboardInterrupt

    from smart_iqa import prediction

    true_rows = prediction.scored_rows
    for count in (5, 99):
        monkeypatch.setattr(prediction, "scored_rows", lambda *a, count=count: killed_after(list(true_rows(*a)), count))
        with contextlib.suppress(KeyboardInterrupt):
            assert worker({"shard": [shard.text]}) == {"problem": [""]}
        assert file.exists() == (count == 99)
    assert scored == sorted(map(str, images.glob("*.png"))) == pd.read_parquet(file)["image"].tolist()
    assert worker({"shard": [shard.text]}) == {"problem": [""]} and len(scored) == 12  # asked for once more
    assert list(tmp_path.iterdir()) == [file]


def test_a_collection_that_grew_scores_its_changed_shards_again_and_shows_each_image_once(
    run, images, tmp_path, alone, capsys
):
    names = sorted(images.glob("*.png"))
    out = tmp_path / "out"
    assert predict(run, *names[:7], "--engine", "ray", "--output", out) == 0
    assert predict(run, *names, "--engine", "ray", "--output", out) == 0
    assert scores_in(out)["image"].tolist() == list(map(str, names))
    assert predict(run, *names[:7], "--engine", "ray", "--output", out) == 2
    assert "--overwrite" in capsys.readouterr().err and len(scores_in(out)) == 12
    assert predict(run, *names[:7], "--engine", "ray", "--output", out, "--overwrite") == 0
    assert scores_in(out)["image"].tolist() == list(map(str, names[:7]))


def test_scores_by_another_model_are_not_mixed_in(run, images, tmp_path, alone, capsys):
    assert predict(run, images, "--engine", "ray", "--output", tmp_path / "out") == 0
    other = make_run(tmp_path, "concat", test_mode="full")
    assert predict(other, images, "--engine", "ray", "--output", tmp_path / "out") == 2
    assert "holds scores by another model" in capsys.readouterr().err


def test_the_output_may_lie_in_the_folder_that_is_scored(run, images, tmp_path, alone):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes((images / name).read_bytes())
    for _ in range(2):
        assert predict(run, tmp_path, "--engine", "ray", "--output", tmp_path / "out") == 0
    assert len(scores_in(tmp_path / "out")) == 2


def test_a_worker_that_has_another_model_says_so(run, images, tmp_path):
    work = Work(str(run), "0" * 32, str(tmp_path), "cpu", "torch")
    shard = next(shards_of([str(images)]))
    (problem,) = ShardScorer(work)({"shard": [shard.text]})["problem"]
    assert "is another model than where the command was given" in problem and not list(tmp_path.iterdir())


def test_a_worker_computes_by_onnx_runtime_with_its_share_of_threads(run, images, tmp_path, monkeypatch):
    from smart_iqa import exporting

    asked = []

    def kept(scorer, checkpoint, threads):
        asked.append((checkpoint, threads))
        return SimpleNamespace(crop_scores=lambda crops: np.full((len(crops), 1), 42.0))

    monkeypatch.setattr(exporting, "kept_backend", kept)
    shard = next(shards_of([str(images)]))
    work = Work(str(run), file_hash(checkpoint_file(run)), str(tmp_path), "cpu", "onnxruntime")
    assert ShardScorer(work)({"shard": [shard.text]}) == {"problem": [""]}
    assert asked == [(checkpoint_file(run), 1)] and (pd.read_parquet(work.file(shard))["score"] == 42).all()


@pytest.mark.parametrize(
    "device, backend, cluster, expected",
    [
        ("auto", "torch", {"CPU": 8}, ("cpu", 1, 8, {"num_cpus": 1})),
        ("auto", "torch", {"CPU": 64, "GPU": 4}, ("cuda", 8, 4, {"num_cpus": 8, "num_gpus": 1})),
        ("auto", "onnxruntime", {"CPU": 8, "GPU": 4}, ("cpu", 1, 8, {"num_cpus": 1})),
        ("cpu", "torch", {"CPU": 8, "GPU": 4}, ("cpu", 1, 8, {"num_cpus": 1})),
    ],
)
def test_workers_are_as_many_as_the_cluster_has_gpus_or_cpus(device, backend, cluster, expected):
    work, size, needs = ray_engine._placed(Work("m", "0", "out", device, backend), None, cluster)
    assert (work.device, work.threads, size, needs) == expected
    assert ray_engine._placed(work, 3, cluster)[1] == 3


def test_wrong_words_are_one_line(run, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    pd.DataFrame({"mos": [1.0]}).to_parquet(tmp_path / "labels.parquet")
    out = ["--engine", "ray", "--output", tmp_path / "out"]
    mistakes = {
        "name it by --output": [images, "--engine", "ray"],
        "name a folder": [images, *out[:3], tmp_path / "file"],
        "writes a folder": [images, *out[:3], tmp_path / "scores.csv"],
        "leave out --format": [images, *out, "--explain"],
        "--maps and --sheet": [images, *out, "--format", "csv"],
        "expected 1 or more, got 0": [images, *out, "--workers", "0"],
        "no image in": [tmp_path / "empty", *out],
        "no file matches": [tmp_path / "*.tar", *out],
        "it has mos": [tmp_path / "labels.parquet", *out],
        "--workers is of --engine ray": [images, "--workers", "2"],
        "are read by --engine ray": [tmp_path / "labels.parquet"],
        "invalid choice: 'dask'": [images, "--engine", "dask"],
    }
    for text, words in mistakes.items():
        assert predict(run, *words) == 2
        error = capsys.readouterr().err
        assert text in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
    assert command("predict", images, *out, "--device", "mps") == 2
    assert "cpu or cuda, not on mps" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert predict(run, images, *out) == 2
    assert "needs ray, pyarrow, which is not installed: pip install 'smart-iqa[ray]'" in capsys.readouterr().err


def test_an_empty_list_is_one_line(run, tmp_path):
    with pytest.raises(ray_engine.UserError, match="no image is named"):
        score_collection(["-"], str(run), tmp_path / "out", listed=io.BytesIO(b""))


# ---- with Ray


def started(*words) -> subprocess.Popen:
    """The command in a process of its own, which starts Ray."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "smart_iqa", "predict", *map(str, words), "--engine", "ray", "--device", "cpu"]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=1200)
    return process.returncode, out, err


def lines_of(file: Path) -> list[str]:
    """The rows of an unfinished shard, as they are written."""
    return file.read_text().splitlines()[1:] if file.exists() else []


def writer_of(file: Path) -> int:
    """The id of the process that holds a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if link.readlink() == file:
                return int(link.parts[2])
    raise AssertionError(f"nobody writes {file}")


def in_the_middle(process: subprocess.Popen, out: Path) -> Path:
    """Wait until a shard is finished and another one begun; the file of that."""
    while process.poll() is None:
        if list(out.glob("*.parquet")):
            for file in out.glob("*.partial"):
                if len(lines_of(file)) > 20:
                    return file
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.fixture
def with_ray() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    if not Path("/proc/self/stat").exists():
        pytest.skip("the process that is killed is found in /proc")


@pytest.mark.slow
def test_ray_gives_the_scores_of_one_process_for_all_sources_at_once(with_ray, run, images, tmp_path):
    source = as_sources(images, tmp_path)
    assert predict(run, images, "--output", tmp_path / "one.parquet") == 0
    words = [source["files"], source["tar"], source["bytes"], "--checkpoint", run, "--output", tmp_path / "out"]
    code, out, err = ended(started(*words, "--workers", 2))
    assert code == 0, err
    assert out == f"36 images, 0 of them errors, in 3 files of {tmp_path / 'out'}, of which 0 were there before\n"
    assert "ray.data" not in err and "Dataset" not in err
    found, expected = scores_in(tmp_path / "out"), scores_in(tmp_path / "one.parquet").set_index("image")["score"]
    by_file = [expected[str(images / Path(image).name)] for image in found["image"]]
    assert found["score"].to_numpy() == pytest.approx(by_file, abs=1e-4)


def write_collection(folder: Path, count: int) -> None:
    """Small images of 64 to 96 pixels, smooth with some grain."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = rng.integers(8, 13, 2) * 8
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.normal(0, rng.uniform(0, 30), pixels.shape)
        image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05}.jpg", quality=int(rng.integers(10, 96)))


@pytest.mark.slow
def test_of_2000_images_a_killed_worker_loses_none_and_repeats_none(with_ray, tmp_path):
    write_collection(tmp_path / "images", COLLECTION)
    out, words = tmp_path / "out", [tmp_path / "images", "--output", tmp_path / "out", "--workers", 2]
    process = started(*words)
    torn = in_the_middle(process, out)
    os.kill(writer_of(torn), signal.SIGKILL)
    written = [json.loads(line) for line in lines_of(torn)]
    code, said, err = ended(process)
    assert code == 0, err
    assert said.startswith(f"{COLLECTION:,} images, 0 of them errors, in ")

    assert command("predict", tmp_path / "images", "--output", tmp_path / "one.parquet", "--device", "cpu") == 0
    expected, found = scores_in(tmp_path / "one.parquet"), scores_in(out)
    assert found["image"].tolist() == expected["image"].tolist() and len(found) == COLLECTION
    taken_up = pd.read_parquet(torn.with_suffix("")).head(len(written))
    assert taken_up["image"].tolist() == [row["image"] for row in written]
    difference = np.abs(found["score"] - expected["score"]).max()
    print(f"largest difference to one process: {difference:.1e} of 100, {len(list(out.glob('*.parquet')))} shards")
    assert round(difference, 9) <= 1e-4  # scores are written with four decimals

    times = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    code, said, err = ended(started(*words))
    assert code == 0, err
    assert f"of which {len(times)} were there before" in said
    assert times == {file: file.stat().st_mtime_ns for file in out.iterdir() if file.name != ".lock"}
