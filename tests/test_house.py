"""The house stays as CONTRIBUTING says: who imports whom, who needs no torch, what no file does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted((ROOT / "iqa").glob("*.py"))
STORY = sorted(ROOT.glob("*.py"))
SOURCES = [*STORY, *TOOLS, *sorted((ROOT / "tests").glob("*.py"))]
ROOT_MODULES = {file.stem for file in STORY}

# The result of `model_from_published` is the network itself, so it imports it, late.
TOOLS_THAT_NEED_THE_NETWORK = {"published.py": {"models_swin"}}
WITHOUT_TORCH = (
    "generate_paper_figures", "report", "folders", "iqa.metrics", "iqa.results", "iqa.plots", "iqa.significance",
    "iqa.verification", "iqa.attention", "iqa.attention_figures", "iqa.history",
)  # fmt: skip
TORCH_FAMILY = {"torch", "torchvision", "timm", "accelerate"}
# What the network and the loop may know of this project (STYLE: one home for each arrow of the data flow).
MAY_IMPORT = {
    "models_swin": {"iqa.errors", "iqa.torchvision_operators", "iqa.weights"},
    "data_loader": {
        "iqa.cache", "iqa.config", "iqa.errors", "iqa.image_check", "iqa.image_files", "iqa.memory", "iqa.processes"
    },
}  # fmt: skip


def imports(tree: ast.AST) -> set[str]:
    """Full names of the modules that a tree imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def packages(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imports(tree)}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def module_file(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"


def project_closure(name: str) -> set[str]:
    """The project's modules that a module imports when it is imported, itself included."""
    known, open_names = {name}, [name]
    while open_names:
        top_level = ast.Module(parse(module_file(open_names.pop())).body, [])
        reached = {n for n in imports(top_level) if n.startswith("iqa.") or n in ROOT_MODULES} - known
        known |= reached
        open_names += reached
    return known


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == name)


@pytest.mark.parametrize("file", TOOLS, ids=lambda file: file.stem)
def test_a_tool_imports_no_root_module(file: Path) -> None:
    assert packages(parse(file)) & ROOT_MODULES == TOOLS_THAT_NEED_THE_NETWORK.get(file.name, set())


def test_the_one_tool_that_needs_the_network_imports_it_only_when_called() -> None:
    code = "import sys, iqa.published; sys.exit('models_swin' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_network_and_data_know_only_what_they_must_of_this_project(module: str) -> None:
    of_project = {n for n in imports(parse(module_file(module))) if n.startswith("iqa") or n in ROOT_MODULES}
    assert of_project <= MAY_IMPORT[module]


def test_the_solver_knows_no_database_and_no_network() -> None:
    assert not packages(parse(module_file("HyperIQASolver_swin"))) & ROOT_MODULES


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_figures_and_numbers_import_no_torch(module: str) -> None:
    for name in project_closure(module):
        assert not packages(parse(module_file(name))) & TORCH_FAMILY, name


def test_figures_and_numbers_work_where_torch_is_not_installed() -> None:
    # A finder that refuses them; scipy would take a None in sys.modules for torch itself.
    code = f"""
import sys
class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {TORCH_FAMILY!r}:
            raise ModuleNotFoundError(f"no {{name}} here", name=name)
sys.meta_path.insert(0, NotInstalled)
import {", ".join(WITHOUT_TORCH)}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", [*STORY, *TOOLS], ids=lambda file: file.stem)
def test_timm_and_torchvision_are_imported_after_their_operators_are_declared(file: Path) -> None:
    declared = False
    for node in parse(file).body:
        declared |= any(calls(node, "declare_missing_operators"))
        if isinstance(node, ast.Import | ast.ImportFrom) and packages(node) & {"timm", "torchvision"}:
            assert declared, f"line {node.lineno}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_torch_files_are_read_as_tensors_only(file: Path) -> None:
    for call in calls(parse(file), "torch.load"):
        assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), call.lineno


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_nothing_is_swallowed(file: Path) -> None:
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
            assert isinstance(node.body[-1], ast.Raise), f"line {node.lineno} catches everything and goes on"


def test_no_file_names_the_workplace_it_was_written_at() -> None:
    workplaces = ("../" + "shared", "/" + "work/main", "/" + "work/shared")  # in two parts: this file is read too
    names = ("iqa", "tests", "configs", "benchmarks", "examples", "docs")  # .ci may know its machine
    folders = [ROOT, *(ROOT / name for name in names)]
    endings = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".sh", ""}
    files = {f for d in folders for f in (d.glob("*") if d == ROOT else d.rglob("*")) if f.is_file()}
    named = [
        f"{file.relative_to(ROOT)}: {workplace}"
        for file in sorted(files)
        if file.suffix in endings
        for workplace in workplaces
        if workplace in file.read_text(encoding="utf-8", errors="replace")
    ]
    assert named == []


def test_the_page_about_the_network_is_what_the_model_says():
    from describe_network import page

    assert (ROOT / "docs" / "network.md").read_text() == page(), "run: python describe_network.py"
