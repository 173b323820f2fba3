"""Help and mistakes in arguments come at once: before torch and matplotlib are imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import ROOT, TORCH_FAMILY

from smart_iqa import __version__
from smart_iqa.commands import COMMANDS, main

HEAVY = TORCH_FAMILY | {"matplotlib"}
SCRIPTS = [file.name for file in sorted(ROOT.glob("*.py")) if '__name__ == "__main__"' in file.read_text()]


def in_new_process(call: str) -> tuple[str, dict[str, int], list[str]]:
    """What `--help` printed, the exit codes of it and of a wrong flag, and which of `HEAVY` both imported."""
    code = f"""
import json, runpy, sys
codes = {{}}
for flag in ("--help", "--no_such_flag"):
    try:
        {call}
    except SystemExit as stop:
        codes[flag] = stop.code or 0
print(json.dumps([codes, sorted({HEAVY!r} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    return "\n".join(printed), *json.loads(last)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_without_torch(name):
    printed, codes, imported = in_new_process(f"from smart_iqa.commands import main; main([{name!r}, flag])")
    assert printed.startswith(f"usage: smart-iqa {name} ")
    assert codes == {"--help": 0, "--no_such_flag": 2} and imported == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_explains_itself_without_torch(script):
    call = f"sys.argv = [{script!r}, flag]; runpy.run_path({script!r}, run_name='__main__')"
    printed, codes, imported = in_new_process(call)
    assert printed.startswith(f"usage: {script} ")
    assert codes == {"--help": 0, "--no_such_flag": 2} and imported == []


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
