"""Every command on the pages and in docstrings is one that its parser takes; every file they name is there."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

from smart_iqa.commands import COMMANDS

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("benchmarks", "docs", "examples", "iqa", "smart_iqa")
SOURCES = sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))])
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
STARTS = ("python ", "smart-iqa ", "torchrun ", "make ")
PROJECT = ("configs/", "docs/", "benchmarks/", "examples/", "tests/")
WRITES = {"--json", "--output", "--save_dir"}  # what these name need not be there yet


def commands_in(text: str) -> Iterator[str]:
    """Indented lines that start as a command does, with their continuations, without `.venv/bin/`."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = line.strip().removeprefix(".venv/bin/")
        if line.startswith("    ") and command.startswith(STARTS):
            yield command


def spans_in(text: str) -> Iterator[str]:
    """What stands in backticks."""
    yield from re.findall(r"`([^`]+)`", " ".join(text.split()))


def words_of(file: Path) -> str:
    """A page, a module's docstring, or the commands and the text of a notebook."""
    text = file.read_text()
    if file.suffix == ".ipynb":
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        return "\n".join(cells).replace("\n!", "\n    ")
    return text if file.suffix == ".md" else ast.get_docstring(ast.parse(text), clean=True) or ""


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    return importlib.import_module(module).make_parser()


def split(command: str) -> tuple[str, list[str]]:
    """The module of a command and its arguments, what launches it taken away."""
    program, *words = [word for word in shlex.split(command, comments=True) if word != "..."]
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(words)
        words = [*(["-m"] if launch.module else []), launch.training_script, *launch.training_script_args]
    if program == "smart-iqa" or words[:2] == ["-m", "smart_iqa"]:
        name, *arguments = words if program == "smart-iqa" else words[2:]
        return COMMANDS[name][0], arguments
    assert (ROOT / words[0]).is_file(), f"{words[0]} is not a file of this project"
    return words[0].removesuffix(".py").replace("/", "."), words[1:]


def missing_files(arguments: list[str]) -> list[str]:
    read = [word for before, word in zip(["", *arguments], arguments, strict=False) if before not in WRITES]
    return [word for word in read if word.startswith(PROJECT) and not any(ROOT.glob(word))]


CASES = [
    (file.relative_to(ROOT), command)
    for file in [*PAGES, *NOTEBOOKS, *SOURCES]
    for command in commands_in(words_of(file))
]


@pytest.mark.parametrize(("file", "command"), CASES, ids=[f"{file}: {command[:60]}" for file, command in CASES])
def test_a_command_is_one_that_its_parser_takes(file, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    module, arguments = split(command)
    flags = parser_of(module).parse_args(arguments)
    assert missing_files(arguments) == []
    if module == "train_swin":
        from iqa.flags import config_from_flags

        config_from_flags(flags)  # the values too, and the configuration file


def test_the_pages_hold_commands():
    named = {"README.md", "performance.md", "protocols.md", "quickstart.ipynb", "scaling.md"}
    assert {file.name for file, _ in CASES} >= named
    assert {file.name for file, _ in CASES} >= {f"{m.rpartition('.')[2]}.py" for m, _ in COMMANDS.values()}


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_script_that_is_named_is_there(file):
    named = re.findall(r"(?:python |`)((?:[\w.]+/)*\w+\.py)\b", file.read_text())
    places = (ROOT, ROOT / "benchmarks", file.parent)
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_or_a_command_in_a_sentence_is_there(page):
    wrong = []
    for span in spans_in(page.read_text()):
        first, *rest = span.split()
        if first.startswith((*PROJECT, "iqa/", "smart_iqa/")) and not any(ROOT.glob(first.rstrip("/"))):
            wrong.append(span)
        if first == "smart-iqa" and rest and rest[0] not in {"NAME", "--help", *COMMANDS}:
            wrong.append(span)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_flag_in_a_sentence_is_a_flag_of_some_command(page):
    scripts = [file for file in (ROOT / "benchmarks").glob("*.py") if "def make_parser" in file.read_text()]
    measuring = {f"benchmarks.{file.stem}" for file in scripts}
    parsers = [parser_of(module) for module in measuring | {module for module, _ in COMMANDS.values()}]
    known = {flag for parser in parsers for flag in parser._option_string_actions}
    named = {flag for span in spans_in(page.read_text()) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named - known - {"--nproc_per_node"} == set()


def anchors(page: Path) -> set[str]:
    """What GitHub and the site call a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", words_of(page)) if not link.startswith("http")]
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []
