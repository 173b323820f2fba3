"""`smart-iqa serve`: mistakes are one line, the shipped model's scores are those of `predict`, Ctrl-C ends it."""

from __future__ import annotations

import csv
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, command
from serving import Served, encoded

from smart_iqa.commands.serve import NEEDS, listen, make_parser
from smart_iqa.serving import Limits


def refusal(capsys, *arguments: object) -> str:
    """The one line that the command says before it ends with 2."""
    assert command("serve", *arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and len(said.err.splitlines()) == 1
    return said.err


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refusal(capsys, "--port", taken.getsockname()[1])
    assert "is in use" in said and "--port" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", 70_000), "--port: expected 0..65535"),
        (("--port", 0, "--host", "no.such.host.invalid"), "--host no.such.host.invalid"),
        (("--port", 0, "--host", "203.0.113.7"), "cannot listen on 203.0.113.7"),
        (("--port", 0, "--checkpoint", "no_such_run"), "no run at no_such_run"),
        (("--port", 0, "--max_file_mb", 0), "--max_file_mb: expected a number above 0"),
        (("--port", 0, "--timeout", "nan"), "--timeout: expected a number above 0"),
        (("--port", 0, "--max_megapixels", 1000), "--max_megapixels: expected at most 89"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(capsys, arguments, words):
    assert words in refusal(capsys, *arguments)


@pytest.mark.parametrize("package", NEEDS)
def test_a_package_that_is_missing_is_one_line_that_says_how_to_get_it(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = refusal(capsys)
    assert package.replace("_", "-") in said and "pip install 'smart-iqa[serve]'" in said


def test_only_this_machine_reaches_it_unless_it_is_told_otherwise():
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    assert vars(make_parser().parse_args([])) == {}  # `serve` alone holds the defaults


def test_every_limit_has_a_flag():
    flags = make_parser()._option_string_actions
    assert {f"--{name}" for name in vars(Limits())} <= set(flags)


@pytest.mark.slow
def test_the_shipped_model_scores_as_predict_does_and_ctrl_c_ends_it(tmp_path: Path):
    files = {f"{kind}.{kind.lower()}": encoded(7, (300, 200), kind) for kind in ("PNG", "JPEG")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    start = [sys.executable, "-m", "smart_iqa"]
    server = subprocess.Popen(
        [*start, "serve", "--port", "0", "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())[1])
        rows = Served(port).score(files).json["results"]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        assert server.stderr.read() == ""
    finally:
        server.kill()
        server.communicate()  # closes its pipes
    predicted = [*start, "predict", *(tmp_path / name for name in files), "--output", tmp_path / "scores.csv"]
    subprocess.run([*predicted, "--device", "cpu"], cwd=ROOT, check=True, capture_output=True)
    with (tmp_path / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["score"] for row in rows] == pytest.approx([float(row["score"]) for row in table], abs=1e-3)
    assert [row["level"] for row in rows] == [row["level"] for row in table]
