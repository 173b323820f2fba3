"""Redraw the paper's figures and tables from recorded results, and from nothing else: no torch, no number typed in.

    python generate_paper_figures.py results/demo docs/network.json --output paper_figures

RESULTS are what the project's scripts record: folders of runs, of runs over splits, of ablations, or single JSON
files of theirs; each is recognised by its content. Every figure is written as PDF and PNG, every table as LaTeX and
Markdown (each table of ablations as LaTeX of its own), in place of those of an earlier call; `figures.json` says which
files and values each one shows. What cannot be drawn is listed as missing with the command that makes its results.
Published numbers come from `configs/published_results.yaml`; they are drawn beside measured ones, hatched and marked,
never alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqa.errors import Parser, exit_on_user_error
from iqa.results import DEFAULT_FILE, PublishedResults, Recorded, read_published, read_recorded
from iqa.system import write_atomically, write_json

if TYPE_CHECKING:
    from iqa.figures import Table


@dataclass(frozen=True)
class Spec:
    """A row of the list of figures and tables: what makes it, what that needs, and the command for that."""

    drawn_by: str  # a function of `iqa.figures`: recorded and published results -> Drawn, Table, or None
    needs: str
    command: str


TRAIN = "python train_swin.py --config configs/demo.yaml"
CROSS = "python train_swin.py --dataset koniq-10k --attention_fusion --cross_datasets kadid-10k agiqa-3k"
COMPONENTS = "python run_ablations.py configs/ablations/components.yaml"
COMPLEXITY = "smart-iqa complexity tiny:channel small:channel base:channel --output results/complexity"
ATTENTION = "python analyze_attention.py --checkpoint results/demo --dataset demo"

FIGURES = {
    "architecture": Spec("draw_architecture", "shapes of the networks", "smart-iqa describe-network --output docs"),
    "comparison": Spec(
        "draw_comparison", "two runs, or a run and its baseline", "smart-iqa ridge-baseline --checkpoint results/demo"
    ),
    "ablation_bars": Spec("draw_ablation_bars", "a table of ablations", COMPONENTS),
    "ablation_waterfall": Spec("draw_waterfall", "a table with two of the rows C0, A2, A1, E6", COMPONENTS),
    "model_sizes": Spec(
        "draw_model_sizes",
        "a table, or runs, that differ in the size of Swin alone",
        "python run_ablations.py configs/ablations/sizes.yaml",
    ),
    "cross_database": Spec("draw_cross_database", "a run tested on another database", CROSS),
    "cross_database_heat_map": Spec("draw_heat_map", "a run tested on another database", CROSS),
    "training_curves": Spec("draw_training_curves", "history.jsonl of a run", TRAIN),
    "prediction_scatter": Spec("draw_scatter", "predictions on a test part", TRAIN),
    "loss_comparison": Spec(
        "draw_losses",
        "a table, or runs, that differ in the loss alone",
        "python run_ablations.py configs/ablations/losses.yaml",
    ),
    "alpha_sweep": Spec(
        "draw_alpha",
        "a table, or runs, that differ in the ranking loss's weight alone",
        "python run_ablations.py configs/ablations/alpha.yaml",
    ),
    "learning_rates": Spec(
        "draw_learning_rates",
        "a table, or runs, that differ in the learning rate alone",
        "python run_ablations.py configs/ablations/learning_rates.yaml",
    ),
    "attention_by_level": Spec("draw_attention", "an analysis of stage weights", ATTENTION),
    "complexity": Spec("draw_complexity", "measured costs", COMPLEXITY),
    "target_weights": Spec(
        "draw_target_weights",
        "components of the generated weights",
        "smart-iqa analyze-weights --checkpoint results/demo --dataset demo",
    ),
}
TABLES = {
    "table_in_database": Spec("in_database_table", "a run with a test part", TRAIN),
    "table_ablation": Spec("ablation_table", "a table of ablations", COMPONENTS),
    "table_cross_database": Spec("cross_database_table", "a run tested on another database", CROSS),
    "table_complexity": Spec("complexity_table", "measured costs", COMPLEXITY),
    "table_attention": Spec("attention_table", "an analysis of stage weights", ATTENTION),
}


def make_all(recorded: Recorded, published: PublishedResults, output: Path) -> dict:
    """Write every figure and table that the results allow, in place of those of an earlier call.

    Everything is drawn before anything is written, so that a field that is missing leaves no half of a set.

    Returns:
        The manifest: `figures` and `tables` with files, sources and values; `missing`; `left_out`.
    """
    from iqa import figures  # matplotlib comes with it
    from iqa.figures import Table, save_figure

    drawn = {name: getattr(figures, spec.drawn_by)(recorded, published) for name, spec in (FIGURES | TABLES).items()}
    output.mkdir(parents=True, exist_ok=True)
    clear(output)
    manifest: dict[str, Any] = {"figures": {}, "tables": {}, "missing": {}}
    for name, result in drawn.items():
        if result is None:
            spec = (FIGURES | TABLES)[name]
            manifest["missing"][name] = {"needs": spec.needs, "command": spec.command}
            continue
        files = (
            write_table(result, output / name)
            if isinstance(result, Table)
            else save_figure(result.figure, output / name)
        )
        manifest["tables" if isinstance(result, Table) else "figures"][name] = {
            "files": [file.name for file in files],
            "sources": list(dict.fromkeys(values_of("file", result.values))),
            "published": list(dict.fromkeys(values_of("published", result.values))),
            "values": result.values,
        }
    return manifest | {"left_out": [str(file) for file in recorded.left_out]}


def write_table(table: Table, path: Path) -> list[Path]:
    """Write `path` as LaTeX, a file for each of the table's parts, and as Markdown."""
    from iqa.figures import to_latex, to_markdown

    texts = {f"_{part}.tex": to_latex(cells, table.note) for part, cells in table.parts.items()}
    texts = texts or {".tex": to_latex(table.cells, table.note)}
    texts[".md"] = to_markdown(table, path.name.replace("_", " "))
    files = [path.with_name(path.name + ending) for ending in texts]
    for file, text in zip(files, texts.values(), strict=True):
        write_atomically(file, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    return files


def clear(output: Path) -> None:
    """Remove every figure and table of an earlier call, so that none stays beside a manifest that does not list it."""
    known = {f"{name}{ending}" for name in FIGURES for ending in (".pdf", ".png")}
    known |= {f"{name}{ending}" for name in TABLES for ending in (".tex", ".md")}
    files = [output / name for name in known]
    for file in [*files, *output.glob("table_ablation_*.tex")]:
        file.unlink(missing_ok=True)


def values_of(key: str, values: Any) -> Iterator[str]:
    """Find every text under `key`, however deep."""
    if isinstance(values, dict):
        if isinstance(values.get(key), str):
            yield values[key]
        for value in values.values():
            yield from values_of(key, value)
    elif isinstance(values, list):
        for value in values:
            yield from values_of(key, value)


def report(manifest: dict, output: Path) -> None:
    """Print what was drawn, what is missing and what was not used."""
    for kind, done in (("figures", "drawn   "), ("tables", "written ")):
        for entry in manifest[kind].values():
            print(f"{done} {output / entry['files'][0]}", *entry["files"][1:], sep=", ")
    for name, missing in manifest["missing"].items():
        print(f"missing  {name}: needs {missing['needs']}; make it with: {missing['command']}")
    for file in manifest["left_out"]:
        print(f"left out {file}: no kind of file that figures are drawn from")


def make_parser() -> Parser:
    """Name the command's flags."""
    parser = Parser(description="Redraw the paper's figures and tables from recorded results.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="folders or JSON files that the scripts recorded")
    parser.add_argument("--output", default="paper_figures", metavar="FOLDER", help="[paper_figures]")
    parser.add_argument(
        "--published", default=str(DEFAULT_FILE), metavar="FILE.yaml",
        help="published numbers to draw beside, or none [configs/published_results.yaml]",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line names."""
    arguments = make_parser().parse_args(argv)
    published = PublishedResults({}) if arguments.published == "none" else read_published(arguments.published)
    output = Path(arguments.output)
    manifest = make_all(read_recorded(arguments.results), published, output)
    write_json(output / "figures.json", manifest)
    report(manifest, output)


if __name__ == "__main__":
    exit_on_user_error(main)
