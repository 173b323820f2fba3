"""The site has a page for everything, its links lead somewhere, and the notebook that it shows runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from test_documents import parser_of

from smart_iqa.commands import COMMANDS

_spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_all_its_flags(name):
    module, _ = COMMANDS[name]
    flags = set(parser_of(module)._option_string_actions) - {"-h", "--help"}
    page = pages.command_page(name, module)
    assert [flag for flag in flags if not re.search(rf"`.*{re.escape(flag)}\b.*`\n:", page)] == []


def test_every_module_is_on_a_page():
    texts = "\n".join(pages.module_pages().values())
    stems = {file.stem for file in ROOT.glob("*.py")} - {"hubconf"}
    rooms = {file.parent.name for file in (ROOT / "iqa").glob("*/__init__.py")}
    alone = {file.stem for folder in ("iqa", "smart_iqa") for file in (ROOT / folder).glob("[a-z]*.py")}
    missing = [name for name in stems | rooms | alone if not re.search(rf"^::: (\w+\.)*{name}$", texts, re.MULTILINE)]
    assert missing == []


def test_readme_is_whole_on_the_site_but_for_the_marks_of_its_headings():
    words = " ".join(pages.readme_pages().values()).replace("](README.md#", "](#").replace("#", "").split()
    assert sorted(words) == sorted((ROOT / "README.md").read_text().replace("#", "").split())


def test_a_link_to_readme_becomes_one_to_the_page_of_its_section():
    text = "[a](../README.md#agiqa-3k-over-ten-splits) [b](../README.md) [c](models.md)"
    linked = "[a](../train-on-your-database.md#agiqa-3k-over-ten-splits) [b](../index.md) [c](models.md)"
    assert pages.with_readme_links(text, "docs/models.md") == linked


@pytest.mark.slow
def test_the_site_builds_and_takes_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", ROOT / "mkdocs.yml"]
    done = subprocess.run([*command, "--site-dir", tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # no `--quiet`: warnings would not count
    html = {file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.rglob("*.html")}
    elsewhere = r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//"
    assert [page for page, text in html.items() if re.search(elsewhere, text)] == []
    for face in ROOT.glob("*iqa/**/__init__.pyi"):
        room = ".".join(face.relative_to(ROOT).parent.parts)
        shown = set(re.findall(r'id="([\w.]+)"', html[f"api/{room}.html"]))
        assert [n for n in pages.names_in(face) if not {f"{room}.{n}", f"{room}.{n}.{n}"} & shown] == [], room


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / pages.NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_what_it_gives():
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    done = NotebookClient(notebook(), timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = ["".join(out.get("text", out.get("data", {}).get("text/plain", "")) for out in cell.get("outputs", []))
             for cell in done.cells]  # fmt: skip
    said = "\n".join(texts)
    assert re.search(r"^(\w+)(?: \d)? +[\d.]+$", said, re.MULTILINE)[1] == "original"  # best first
    steps = [float(score) for score in re.findall(r"step \d+: score ([\d.]+)", said)]
    assert len(steps) == 10 and steps == sorted(steps) and steps[-1] > steps[0] + 10
    assert "weights: default (the whole network" in said
    assert float(re.search(r"rank correlation with the table: ([\d.]+)", said)[1]) > 0.6
