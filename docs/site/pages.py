"""Adds to the site the pages that are not files: README's sections, the notebook, commands, modules. A hook of MkDocs.

    make site

Pages keep the places that they have in the repository, so that a link works there and on the site. Nothing is written
twice: a command's page is its module's docstring and its parser's flags, a module's page its docstrings.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import json
import posixpath
import re
import sys
from pathlib import Path

from markdown import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "examples/quickstart.ipynb"
AS_THEY_ARE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    NOTEBOOK,
    "docs/*.md",
    "docs/*.png",
    "docs/*/*.png",
    "docs/site/*.css",
)
START = ("Two commands", "Not here")  # the sections of README on the first page; every other one is a page
ROOT_MODULES = (
    "models_swin", "HyperIQASolver_swin", "train_swin", "data_loader", "folders", "analyze_attention",
    "compare_attention_weights", "generate_paper_figures", "run_ablations",
)  # fmt: skip


def slug(heading: str) -> str:
    """Make the anchor of a heading, as GitHub does."""
    return slugify(case="lower")(heading.replace("`", ""), "-")


def readme_pages() -> dict[str, str]:
    """Cut README into pages at its sections."""
    first, *sections = re.split(r"(?m)^## ", (ROOT / "README.md").read_text())
    texts = {"index.md": first}
    for section in sections:
        heading, _, _ = section.partition("\n")
        if heading in START:
            texts["index.md"] += f"## {section}"
        else:
            texts[f"{slug(heading)}.md"] = re.sub(r"(?m)^#(#+ )", r"\1", f"## {section}")
    return {uri: text.replace("](#", "](README.md#") for uri, text in texts.items()}


@functools.cache
def readme_anchors() -> dict[str, str]:
    """Map the anchor of each of README's headings to the page that it is on."""
    texts = readme_pages()
    return {slug(heading): uri for uri, text in texts.items() for heading in re.findall(r"(?m)^#+ (.+)$", text)}


def with_readme_links(text: str, uri: str) -> str:
    """Turn a page's links to README to the page that holds what they mean."""

    def there(link: re.Match) -> str:
        target = readme_anchors().get(link["anchor"] or "", "index.md")
        place = posixpath.relpath(target, posixpath.dirname(uri) or ".")
        return f"]({place}#{link['anchor']})" if link["anchor"] else f"]({place})"

    return re.sub(r"\]\((?:\.\./)*README\.md(?:#(?P<anchor>[\w-]+))?\)", there, text)


def notebook_page() -> str:
    """Show the cells of the notebook, one below the other."""
    cells = json.loads((ROOT / NOTEBOOK).read_text())["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in texts)


def _commands() -> dict[str, tuple[str, str]]:
    from smart_iqa.commands import COMMANDS

    return COMMANDS


def command_pages() -> dict[str, str]:
    """Make a page for each `smart-iqa NAME`, and their list."""
    rows = [f"| [`{name}`]({name}.md) | {does} |" for name, (_, does) in _commands().items()]
    texts = {"commands/index.md": "\n".join(["# Commands", "", "| `smart-iqa ...` | does |", "|---|---|", *rows])}
    return texts | {f"commands/{name}.md": command_page(name, module) for name, (module, _) in _commands().items()}


def command_page(name: str, module: str) -> str:
    """Join a module's docstring, the flags of its parser, and what it offers to Python."""
    code = importlib.import_module(module)
    parser = code.make_parser()
    parser.prog = f"smart-iqa {name}"
    help_text = argparse.HelpFormatter(parser.prog, width=100)
    help_text.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    parts = [
        f"# smart-iqa {name}",
        inspect.getdoc(code),
        "## Flags",
        f"```text\n{help_text.format_help().strip()}\n```",
    ]
    for group in parser._action_groups:
        flags = [flag_text(parser, action) for action in group._group_actions if action.dest != "help"]
        if flags:
            parts += [f"### {group.title}", *([group.description] if group.description else []), *flags]
    if module in ROOT_MODULES:
        return "\n\n".join([*parts, "## From Python", f"See [`{module}`](../api/{module}.md)."])
    aliased = next(n for n, (other, _) in _commands().items() if other == module) != name
    functions = [f for f in public_functions(code) if f not in ("main", "make_parser")]
    if functions and not aliased:
        parts += ["## From Python", *(f"::: {module}.{f}\n    options: {{heading_level: 3}}" for f in functions)]
    return "\n\n".join(parts)


def flag_text(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Say what a flag does, as an entry of a definition list."""
    formatter = argparse.HelpFormatter(parser.prog)
    does = formatter._expand_help(action) if action.help else without_help(action)
    plain = re.sub(r"`[^`]*`|([<*])", lambda found: f"\\{found[1]}" if found[1] else found[0], does)
    return f"`{formatter._format_action_invocation(action)}`\n:   {plain}"


def without_help(action: argparse.Action) -> str:
    """Say what a flag without help does: it takes choices, or is the opposite of another flag."""
    return "one of these" if action.choices else f"the opposite of `{action.option_strings[0].replace('--no_', '--')}`"


def public_functions(code) -> list[str]:
    """List the functions that a module defines, in their order."""
    return [n for n, f in vars(code).items() if inspect.isfunction(f) and f.__module__ == code.__name__ and n[0] != "_"]


def module_pages() -> dict[str, str]:
    """Make a page for each module and room; a room's page has the names that its `__init__.pyi` lists."""
    rooms = [
        p.relative_to(ROOT).parent for p in sorted(ROOT.glob("*iqa/**/__init__.py")) if p.parent.name != "commands"
    ]
    texts = {}
    for room in rooms:
        name, face = ".".join(room.parts), ROOT / room / "__init__.pyi"
        modules = [f"{name}.{file.stem}" for file in sorted((ROOT / room).glob("[a-z]*.py"))]
        if room.parent == Path() or not face.is_file():
            texts |= {f"api/{module}.md": f"::: {module}\n    options: {{heading_level: 1}}" for module in modules}
        names = names_in(face)
        texts[f"api/{name}.md"] = f"::: {name}\n    options: {{heading_level: 1, members: {names}}}" + "".join(
            f"\n\n::: {name}.{each}.{each}" for each in names if f"{name}.{each}" in modules
        )  # a module hides the function of its name
    return texts | {f"api/{name}.md": f"::: {name}\n    options: {{heading_level: 1}}" for name in ROOT_MODULES}


def names_in(face: Path) -> list[str]:
    """List the functions and classes that a stub re-exports."""
    if not face.is_file():
        return []
    nodes = [node for node in ast.parse(face.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in nodes for alias in node.names if not alias.name.isupper()]


def pages() -> dict[str, str]:
    """Make every page that is not a file: the place that it would have in the repository -> its text."""
    return readme_pages() | {"examples/quickstart.md": notebook_page()} | command_pages() | module_pages()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation, and the tree to what Python finds."""
    sys.path.insert(0, str(ROOT))
    config.markdown_extensions.append(Doctests())
    commands = ["commands/index.md", *({name: f"commands/{name}.md"} for name in _commands())]
    config.nav[-1:-1] = [{"Commands": commands}, {"API": api_navigation()}]  # before what is about the project
    return config


def api_navigation() -> list[dict[str, list]]:
    """List the modules of the three floors."""
    names = sorted(Path(uri).name.removesuffix(".md") for uri in module_pages())
    floors = {floor: [n for n in names if n.partition(".")[0] == floor] for floor in ("smart_iqa", "iqa")}
    titles = {"smart_iqa": floors["smart_iqa"], "root modules": ROOT_MODULES, "iqa": floors["iqa"]}
    return [{title: [{n: f"api/{n}.md"} for n in modules]} for title, modules in titles.items()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pages that are made, and the files that are shown, in the place of MkDocs' own list."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted(path for pattern in AS_THEY_ARE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Turn links to README to its pages."""
    return with_readme_links(markdown, page.file.src_uri)


class Doctests(Extension):
    """Shows `>>>` and what follows as code; Markdown takes it for a quotation."""

    def extendMarkdown(self, md) -> None:  # noqa: N802  (the name that Markdown calls)
        """Add the step before fences are read."""
        md.preprocessors.register(_FenceDoctests(md), "doctests", 28)


class _FenceDoctests(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        fenced = re.sub(r"(?m)^>>> .+(?:\n.+)*", lambda block: f"```pycon\n{block[0]}\n```", "\n".join(lines))
        return fenced.split("\n")
