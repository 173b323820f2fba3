"""Help and mistakes in arguments come at once: before torch, matplotlib, scikit-learn and scipy.stats are imported.

Of the commands that are used most, before pandas too.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import ROOT, TORCH_FAMILY

from smart_iqa import __version__
from smart_iqa.commands import COMMANDS, main

HEAVY = TORCH_FAMILY | {"matplotlib", "scipy.stats", "sklearn"}
WITHOUT_PANDAS = ("train", "pretrain", "predict", "serve")  # first in the list: others leave it imported
SCRIPTS = [file.name for file in sorted(ROOT.glob("*.py")) if '__name__ == "__main__"' in file.read_text()]


# Run in one new process: for each command and script what it printed, its exit codes, and what it was first to import.
ASK_EACH = """
import contextlib, io, json, runpy, sys
from smart_iqa.commands import main

def ask(start, flag):
    if not start.endswith(".py"):
        return main([start, flag])
    sys.argv = [start, flag]
    return runpy.run_path(start, run_name="__main__")

asked, (starts, heavy) = {}, json.loads(sys.argv[1])
for start in starts:
    before, codes, printed, said = set(sys.modules), {}, io.StringIO(), io.StringIO()
    for flag in ("--help", "--no_such_flag"):
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            try:
                ask(start, flag)
            except SystemExit as stop:
                codes[flag] = stop.code or 0
    imported = sorted(set(heavy) & (set(sys.modules) - before))
    asked[start] = [printed.getvalue(), said.getvalue(), codes, imported]
print(json.dumps(asked))
"""


@pytest.fixture(scope="module")
def asked() -> dict[str, list]:
    """By command and script: stdout and stderr, exit codes, and which of `HEAVY` it was the first to import."""
    starts = json.dumps([[*COMMANDS, *SCRIPTS], sorted(HEAVY | {"pandas"})])
    done = subprocess.run([sys.executable, "-c", ASK_EACH, starts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("start", [*COMMANDS, *SCRIPTS])
def test_a_command_and_a_script_explain_themselves_without_torch(asked, start):
    printed, said, codes, imported = asked[start]
    assert printed.startswith(f"usage: {start if start in SCRIPTS else f'smart-iqa {start}'} ")
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    assert codes == {"--help": 0, "--no_such_flag": 2}
    assert set(imported) <= (set() if start in WITHOUT_PANDAS else {"pandas"})


def test_every_script_is_a_command_too():
    assert {f"{module}.py" for module, _ in COMMANDS.values()} >= set(SCRIPTS)


def test_the_face_imports_no_torch():
    code = f"import sys, smart_iqa, smart_iqa.commands; print({HEAVY!r} & set(sys.modules) or 'none')"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "none\n"


def test_help_lists_every_command(capsys):
    main(["--help"])
    asked = capsys.readouterr().out
    assert all(f"\n  {name} " in asked for name in COMMANDS)
    main([])
    assert capsys.readouterr().out == asked


def test_the_version_is_the_package_s(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"smart-iqa {__version__}\n"


def test_an_unknown_command_is_one_line_that_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pedict"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and len(said.splitlines()) == 1 and "predict" in said


def test_underscores_in_a_name_are_hyphens(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check_splits", "--help"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("usage: smart-iqa check-splits ")


def test_a_module_runs_as_the_command_does():
    done = [
        subprocess.run([sys.executable, *start, "--version"], cwd=ROOT, capture_output=True, text=True)
        for start in (["-m", "smart_iqa"], ["-c", "from smart_iqa.commands import main; main()"])
    ]
    assert [(d.returncode, d.stdout) for d in done] == [(0, f"smart-iqa {__version__}\n")] * 2
