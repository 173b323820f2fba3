"""The house stays as CONTRIBUTING says, where no linter can read it: what starts without torch, what no file does."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, TORCH_FAMILY

HOUSE = sorted([*ROOT.glob("*.py"), *(ROOT / "iqa").rglob("*.py"), *(ROOT / "smart_iqa").rglob("*.py")])
# Rooms and commands for machines that hold results and no network.
WITHOUT_TORCH = (
    "iqa.data", "iqa.figures", "iqa.metrics", "iqa.results", "folders", "generate_paper_figures",
    "smart_iqa.commands.report",
)  # fmt: skip


def test_the_root_holds_the_files_of_the_design_and_what_torch_hub_asks_for() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 10 and (ROOT / "hubconf.py").is_file()


def packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.split(".")[0] for name in names}


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    last = name.rpartition(".")[2]
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    named = (n for n in found if last in (getattr(n.func, "attr", ""), getattr(n.func, "id", "")))
    return (n for n in named if ast.unparse(n.func) == name)


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """How each of `WITHOUT_TORCH` fails to import in a process that has no torch; "" where it does not."""
    # A finder that refuses them; scipy would take a None in sys.modules for torch itself.
    code = f"""
import importlib, json, sys, traceback
class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {TORCH_FAMILY!r}:
            raise ModuleNotFoundError(f"no {{name}} here", name=name)
sys.meta_path.insert(0, NotInstalled)
failures = {{}}
for name in {WITHOUT_TORCH!r}:
    try:
        module = importlib.import_module(name)
        [getattr(module, each) for each in dir(module)]  # a room imports a name when it is asked for it
        failures[name] = ""
    except Exception:
        failures[name] = traceback.format_exc()
print(json.dumps(failures))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_figures_and_numbers_work_where_torch_is_not_installed(failures: dict[str, str], module: str) -> None:
    assert failures[module] == ""


@pytest.mark.parametrize("file", HOUSE, ids=lambda file: file.stem)
def test_timm_and_torchvision_are_imported_after_their_operators_are_declared(file: Path) -> None:
    declared = False
    for node in parse(file).body:
        declared |= any(calls(node, "declare_missing_operators"))
        if isinstance(node, ast.Import | ast.ImportFrom) and packages(node) & {"timm", "torchvision"}:
            assert declared, f"line {node.lineno}"


@pytest.mark.parametrize("file", [*HOUSE, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda file: file.stem)
def test_torch_files_are_read_as_tensors_only(file: Path) -> None:
    for call in calls(parse(file), "torch.load"):
        assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), call.lineno


def test_no_file_names_the_workplace_it_was_written_at() -> None:
    workplaces = ("../" + "shared", "/" + "work/main", "/" + "work/shared", "/" + "root/")  # in parts: read here too
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no git repository here")
    files = [
        ROOT / name for name in listed.stdout.splitlines() if not name.startswith(".ci/")
    ]  # it may know its machine
    texts = {file: file.read_text(encoding="utf-8", errors="replace") for file in files if file.suffix != ".png"}
    named = [f"{file}: {workplace}" for file, text in texts.items() for workplace in workplaces if workplace in text]
    assert named == []


def test_every_target_of_the_makefile_can_be_made_from_what_is_here() -> None:
    names = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in names[1].split():
        done = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), target
        assert done.stdout.strip(), target


def test_the_page_about_the_network_is_what_the_model_says() -> None:
    from smart_iqa.commands.describe_network import page

    assert (ROOT / "docs" / "network.md").read_text() == page(), "run: smart-iqa describe-network"
