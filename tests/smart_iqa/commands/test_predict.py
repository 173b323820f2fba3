"""`smart-iqa predict`: what it takes, prints and writes, how it goes on after a kill, and what it refuses at once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, command, make_run
from PIL import Image

COLUMNS = ["image", "score", "low", "high", "level", "error"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An untrained run that scores whole images, beside its `data`: twelve images, 0.png to 11.png."""
    return make_run(tmp_path_factory.mktemp("predict"), "channel", test_mode="full")


@pytest.fixture
def images(run) -> Path:
    return run.parent / "data"


def predict(run, *arguments) -> int:
    return command("predict", *arguments, "--checkpoint", run, "--device", "cpu")


def test_the_screen_shows_a_table_and_every_format_of_output_holds_the_same_rows(run, images, tmp_path, capsys):
    files = [tmp_path / name for name in ("scores.csv", "scores.jsonl", "scores.parquet")]
    for file in files:
        assert predict(run, images, "--output", file) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["score", "low", "high", "level", "image"] and first.endswith(str(images / "0.png"))
    csv, parquet = pd.read_csv(files[0]), pd.read_parquet(files[2])
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert list(csv.columns) == list(parquet.columns) == list(lines[0]) == COLUMNS
    assert csv["score"].tolist() == parquet["score"].tolist() == [line["score"] for line in lines]
    assert csv["image"].tolist() == sorted(map(str, images.glob("*.png"))) and csv["error"].isna().all()


def test_csv_and_json_lines_may_be_printed_instead(run, images, capsys):
    assert predict(run, images / "1.png", images / "2.png", "--format", "csv") == 0
    csv = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert predict(run, images / "[12].png", "--format", "jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(csv.columns) == list(lines[0]) == COLUMNS
    assert csv["score"].tolist() == [line["score"] for line in lines]


def test_a_list_of_names_comes_from_standard_input(run, images, capsys, monkeypatch):
    listed = f"{images / '3.png'}\n{images / '1.png'}\n".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    assert predict(run, "-", "--format", "jsonl") == 0
    names = [Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["3.png", "1.png"]


def test_what_cannot_be_read_is_a_row_with_an_error_and_the_exit_code_says_so(run, images, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    names = [tmp_path / "broken.jpg", images / "1.png", tmp_path / "nowhere.png", tmp_path / "*.bmp"]
    assert predict(run, *names, "--output", tmp_path / "scores.csv") == 2
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table["image"].tolist() == list(map(str, names))
    assert table["score"].notna().tolist() == [False, True, False, False]
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 3 and all(line.startswith("error: ") for line in said.err.splitlines())
    assert all(text in said.err for text in ("broken.jpg cannot be read", "no file or folder at", "no file matches"))
    assert said.out.count(" error ") == 3


def test_output_is_not_written_over_unasked(run, images, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    out.write_text("mine")
    assert predict(run, images / "1.png", "--output", out) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    assert predict(run, images / "1.png", "--output", out, "--overwrite") == 0
    assert len(pd.read_csv(out)) == 1


def test_explain_adds_the_stage_weights_and_a_map_of_each_image(run, images, tmp_path):
    out = tmp_path / "scores.csv"
    assert predict(run, images / "1.png", images / "2.png", "--explain", "--output", out) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == [*COLUMNS, "stage_0", "stage_1", "stage_2", "stage_3", "map"]
    assert np.allclose(table.filter(like="stage_").sum(axis=1), 1, atol=1e-5)
    assert table["map"].nunique() == 2
    for file in table["map"]:
        assert Path(file).parent == tmp_path / "scores_maps"
        with Image.open(file) as drawn:
            assert drawn.size == (40, 36) and drawn.mode == "RGB"


@pytest.mark.long
def test_the_same_command_goes_on_after_a_kill_and_scores_nothing_twice(run, images, tmp_path, capsys):
    for copy in range(40):
        for name in ("0.png", "1.png", "2.png"):
            (tmp_path / f"{copy:02}_{name}").write_bytes((images / name).read_bytes())
    out, partial = tmp_path / "scores.jsonl", tmp_path / "scores.jsonl.partial"
    words = [str(tmp_path), "--checkpoint", str(run), "--device", "cpu", "--output", str(out), "--format", "jsonl"]
    code = (
        "import sys, smart_iqa.prediction as p; p.BATCH_PIXELS = 1\n"  # an image a batch, so that there is time
        "from smart_iqa.commands import main; main(['predict', *sys.argv[1:]])"
    )
    line = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as started:
        printed = [started.stdout.readline() for _ in range(5)]
        started.kill()
    assert all(printed)
    assert not out.exists() and partial.exists()
    kept = [json.loads(line) for line in partial.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")]
    assert 5 <= len(kept) < 120
    assert command("predict", *words) == 0
    second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in kept + second] == sorted(map(str, tmp_path.glob("*.png")))
    assert [json.loads(line) for line in out.read_text().splitlines()] == kept + second
    assert not partial.exists() and not list(tmp_path.glob(".*"))


def test_a_stop_says_how_to_go_on(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", interrupt_after(3, time.monotonic))
    out = tmp_path / "scores.csv"
    assert predict(run, images, "--output", out) == 128 + signal.SIGTERM
    assert f"the same command goes on from {out}.partial" in capsys.readouterr().err
    monkeypatch.undo()
    assert predict(run, images, "--output", out) == 0
    assert len(pd.read_csv(out)) == 12


def interrupt_after(calls: int, answer):
    """A function that sends SIGTERM when it is called for the last time but `calls`."""
    left = [calls]

    def called():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer()

    return called


AT_ONCE = """
import contextlib, io, json, sys
from smart_iqa.commands import main
said = []
for words in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            main(["predict", *words])
            code = 0
        except SystemExit as stop:
            code = stop.code
    said.append([code, errors.getvalue()])
print(json.dumps([said, sorted({"torch", "pandas", "scipy", "matplotlib", "timm"} & set(sys.modules))]))
"""


def test_mistakes_are_said_before_anything_slow_is_imported(images, tmp_path):
    (tmp_path / "scores.csv").write_text("mine")
    (tmp_path / "empty").mkdir()
    image = str(images / "1.png")
    mistakes = {
        "no file or folder at": ["nowhere.png"],
        "no file matches": [str(tmp_path / "*.png")],
        "no image in": [str(tmp_path / "empty")],
        "no run at": [image, "--checkpoint", "nowhere"],
        "--overwrite": [image, "--output", str(tmp_path / "scores.csv")],
        ".parquet": [image, "--output", str(tmp_path / "scores.txt")],
        "no folder": [image, "--output", str(tmp_path / "no" / "scores.csv")],
        "--sheet: no folder": [image, "--sheet", str(tmp_path / "no" / "sheet.png")],
        "invalid choice": [image, "--format", "xml"],
        "required": [],
    }
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, json.dumps(list(mistakes.values()))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    said, imported = json.loads(done.stdout)
    assert imported == []
    for (code, error), text in zip(said, mistakes, strict=True):
        assert code == 2 and text in error and len(error.splitlines()) == 1


def test_several_processes_are_refused(run, images, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(run, images) == 2
    assert "without torchrun" in capsys.readouterr().err
