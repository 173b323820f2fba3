"""Redraw the figures from recorded results, and from nothing else: no torch, no number typed in.

    python generate_paper_figures.py results/demo --output paper_figures

RESULTS are run folders (or `results.json` files). Every figure is written as PDF and PNG; `figures.json` says
which files and values each one shows. A figure whose results are missing is listed with the command to make them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.files import write_json
from iqa.metrics import fit_logistic
from iqa.plots import COLOURS, PAGE_WIDTH, grouped_bars, new_figure, save_figure
from iqa.results import predictions_table, read_history, read_results


@dataclass(frozen=True)
class Run:
    """Recorded results of one run, and of what was measured beside it."""

    name: str
    file: Path
    results: dict
    history: list[dict]
    baseline: dict | None


@dataclass(frozen=True)
class Drawn:
    """A figure and the values it shows."""

    figure: Figure
    values: dict


@dataclass(frozen=True)
class FigureSpec:
    """A row of the list of figures: what draws it, and how to get what it needs."""

    draw: Callable[[list[Run]], Drawn | None]
    needs: str
    command: str


def read_run(path: str) -> Run:
    """Read a run's results, history and baseline.

    Raises:
        UserError: no results there, or fields missing.
    """
    results = read_results(path)
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    history_file, baseline_file = file.parent / "history.jsonl", file.parent / "ridge_baseline.json"
    history = read_history(history_file) if history_file.is_file() else []
    baseline = read_results(baseline_file) if baseline_file.is_file() else None
    return Run(file.parent.name, file, results, history, baseline)


def draw_training_curves(runs: list[Run]) -> Drawn | None:
    """Training loss and validation SRCC by epoch."""
    shown = [run for run in runs if run.history]
    if not shown:
        return None
    figure, (loss_axes, srcc_axes) = new_figure(PAGE_WIDTH, 2.4, columns=2)
    values = {}
    for i, run in enumerate(shown):
        epochs = [line["epoch"] for line in run.history]
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": "osD^v*"[i % 6],
            "markersize": 3,
            "label": run.name,
        }
        loss = [line["train_loss"] for line in run.history]
        srcc = [np.nan if line["val_srcc"] is None else line["val_srcc"] for line in run.history]
        loss_axes.plot(epochs, loss, **style)
        srcc_axes.plot(epochs, srcc, **style)
        values[run.name] = {"epoch": epochs, "train_loss": loss, "val_srcc": srcc}
    loss_axes.set(xlabel="epoch", ylabel="training loss")
    srcc_axes.set(xlabel="epoch", ylabel="validation SRCC")
    for axes in (loss_axes, srcc_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(shown), 4))
    return Drawn(figure, values)


def draw_scatter(runs: list[Run]) -> Drawn | None:
    """Scores against mos on the test part, with the 4-parameter logistic."""
    shown = [run for run in runs if "test" in run.results["predictions"]][:3]
    if not shown:
        return None
    figure, all_axes = new_figure(PAGE_WIDTH if len(shown) > 1 else 3.5, 3.4, columns=len(shown))
    values = {}
    for axes, run in zip(all_axes, shown, strict=True):
        table = predictions_table(run.results, "test")
        _scatter(axes, table)
        metrics = run.results["metrics"]["test"]
        axes.set(xlabel="score", ylabel=_mos_label(run))
        axes.set_title(
            f"{run.name}: SRCC {_number(metrics['srcc'])}, PLCC {_number(metrics['plcc'])}, n = {metrics['n']}"
        )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, markerscale=2)
        values[run.name] = {key: metrics[key] for key in ("n", "srcc", "plcc")}
    return Drawn(figure, values)


def _scatter(axes, table: pd.DataFrame) -> None:
    contents = list(dict.fromkeys(table["content"]))
    by_content = 1 < len(contents) <= len(COLOURS)  # few contents: show that no single one makes the correlation
    for i, content in enumerate(contents if by_content else [None]):
        rows = table if content is None else table[table["content"] == content]
        axes.scatter(rows["score"], rows["mos"], s=5, alpha=0.6, color=COLOURS[i], marker="osD^v*"[i], label=content)
    fit = fit_logistic(table["score"], table["mos"], parameters=4)
    x = np.linspace(table["score"].min(), table["score"].max(), 200)
    if np.isfinite(fit.predict(x)).all():
        axes.plot(x, fit.predict(x), color="black", linewidth=1, label="logistic fit")


def _mos_label(run: Run) -> str:
    return "pseudo-mos" if run.results["config"]["dataset"] == "demo" else "mos"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def draw_comparison(runs: list[Run]) -> Drawn | None:
    """Test SRCC with its 95 % interval: runs and the ridge baseline measured beside them."""
    bars = {}
    for run in runs:
        bars[run.name] = run.results["metrics"].get("test")
        bars[f"{run.name}: ridge"] = run.baseline and run.baseline["metrics"]["test"]
    bars = {name: metrics for name, metrics in bars.items() if metrics and metrics["srcc"] is not None}
    if len(bars) < 2:
        return None
    figure, (axes,) = new_figure(PAGE_WIDTH, 0.7 + 0.35 * len(bars))
    for i, metrics in enumerate(bars.values()):
        axes.barh(i, metrics["srcc"], color=COLOURS[0], height=0.6)
        low, high = metrics["srcc_ci95"] or (None, None)
        if low is not None:
            axes.plot([low, high], [i, i], color="black", linewidth=1, marker="|", markersize=6)
        axes.text(0.01, i, f"{metrics['srcc']:.3f} (n = {metrics['n']})", va="center", color="white", fontsize=7)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="test SRCC, 95 % interval", xlim=(0, 1))
    values = {name: {key: m[key] for key in ("n", "srcc", "srcc_ci95")} for name, m in bars.items()}
    return Drawn(figure, values)


def draw_cross_database(runs: list[Run]) -> Drawn | None:
    """SRCC of every run on every other database it was tested on."""
    databases = list(dict.fromkeys(part for run in runs for part in run.results["metrics"] if part != "test"))
    if not databases:
        return None
    values = {
        run.name: [run.results["metrics"].get(database, {}).get("srcc") for database in databases] for run in runs
    }
    heights = {name: [np.nan if v is None else v for v in row] for name, row in values.items()}
    return Drawn(
        grouped_bars(databases, heights, ylabel="SRCC", xlabel="tested on"),
        {"databases": databases, **values},
    )


FIGURES = {
    "training_curves": FigureSpec(
        draw_training_curves, "history.jsonl of a run", "python train_swin.py --config configs/demo.yaml"
    ),
    "prediction_scatter": FigureSpec(
        draw_scatter, "predictions on a test part", "python train_swin.py --config configs/demo.yaml"
    ),
    "comparison": FigureSpec(
        draw_comparison,
        "two runs, or a run and its baseline",
        "python ridge_baseline.py --checkpoint results/demo",
    ),
    "cross_database": FigureSpec(
        draw_cross_database,
        "a run tested on another database",
        "python train_swin.py --dataset koniq-10k --cross_datasets kadid-10k agiqa-3k",
    ),
}


def draw_all(runs: list[Run], output: Path) -> dict:
    """Draw every figure that the runs allow; return the manifest of drawn and missing ones."""
    manifest: dict[str, dict] = {"figures": {}, "missing": {}}
    for name, spec in FIGURES.items():
        drawn = spec.draw(runs)
        if drawn is None:
            manifest["missing"][name] = {"needs": spec.needs, "command": spec.command}
            continue
        files = save_figure(drawn.figure, output / name)
        sources = [str(run.file) for run in runs]
        manifest["figures"][name] = {
            "files": [f.name for f in files],
            "sources": sources,
            "values": drawn.values,
        }
    return manifest


def main() -> None:
    """Draw what the command line names."""
    parser = Parser(description="Redraw the figures from recorded results.")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="run folders or results.json files")
    parser.add_argument("--output", default="paper_figures", metavar="FOLDER", help="[paper_figures]")
    arguments = parser.parse_args()
    runs = [read_run(path) for path in arguments.results]
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two of the runs have the same name; figures could not tell them apart")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    manifest = draw_all(runs, output)
    write_json(output / "figures.json", manifest)
    for name in manifest["figures"]:
        print(f"drawn    {output / name}.pdf, .png")
    for name, missing in manifest["missing"].items():
        print(f"missing  {name}: needs {missing['needs']}; make it with: {missing['command']}")


if __name__ == "__main__":
    exit_on_user_error(main)
