"""`smart-iqa NAME ...`: one console entry for every command. A command's module is imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from iqa.errors import UserError, exit_on_user_error
from smart_iqa import __version__

# Name -> the module whose `main` it is, and what it does.
COMMANDS = {
    "train": ("train_swin", "train, validate and test a network"),
    "pretrain": ("smart_iqa.commands.pretrain", "teach a backbone from photographs without scores"),
    "predict": ("smart_iqa.commands.predict", "score image files and folders"),
    "serve": ("smart_iqa.commands.serve", "score images in the browser and over HTTP, on this machine"),
    "evaluate": ("smart_iqa.commands.evaluate", "test runs on databases, compare them, verify results files"),
    "report": ("smart_iqa.commands.report", "make one HTML page of a run"),
    "ablate": ("run_ablations", "run experiments that are written as data"),
    "analyze-attention": ("analyze_attention", "show which stages and which places a score rests on"),
    "analyze-weights": ("smart_iqa.commands.analyze_weights", "show what the generated weights know"),
    "compare-attention": ("compare_attention_weights", "compare the attention of two models"),
    "figures": ("generate_paper_figures", "redraw the paper's figures and tables from recorded results"),
    "baseline": ("smart_iqa.commands.baseline", "fit what a run has to beat: ridge, svr or mlp"),
    "ridge-baseline": ("smart_iqa.commands.baseline", "the same by an older name"),
    "pack": ("smart_iqa.commands.pack", "make one file of a run, which scores without its folder"),
    "export": ("smart_iqa.commands.export", "write a model as one ONNX or torch.export file"),
    "complexity": ("smart_iqa.commands.complexity", "count parameters and operations, measure latency and memory"),
    "describe-network": ("smart_iqa.commands.describe_network", "write docs/network.md from the model"),
    "check-database": ("folders", "check a database on disk"),
    "check-splits": ("smart_iqa.commands.check_splits", "say what leaks between the parts of a split"),
    "cache": ("smart_iqa.commands.cache", "list the caches on disk and remove them"),
    "make-demo-database": ("smart_iqa.commands.make_demo_database", "build the demo database"),
}


def usage() -> str:
    """The list of commands."""
    rows = [f"  {name:<20}{does}" for name, (_, does) in COMMANDS.items()]
    return "usage: smart-iqa NAME ...\n\n" + "\n".join(rows) + "\n\n`smart-iqa NAME --help` lists a command's flags."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; a mistake of the user is one line and exit code 2."""
    exit_on_user_error(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """Run a command; raises `UserError` for an unknown one."""
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"smart-iqa {__version__}")
        return
    name = name.replace("_", "-")
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
    sys.argv = [f"smart-iqa {name}", *arguments]  # the name in a parser's usage, and the command that results record
    importlib.import_module(COMMANDS[name][0]).main(arguments)
