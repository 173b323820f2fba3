"""The paper's figures of scores: correlations of runs and ablations, training curves, predictions. Needs no torch.

Each function takes what was recorded and what was published and returns the figure with every value it shows, or
None where nothing was measured that it could show. Published numbers stand beside measured ones, never alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from iqa.choices import MODEL_SIZES
from iqa.figures.scatter import few_contents, scatter_of_scores
from iqa.figures.style import (
    COLOURS,
    COLUMN_WIDTH,
    PAGE_WIDTH,
    PUBLISHED_HATCH,
    Bar,
    bars_height,
    draw_bars,
    legend_above,
    line_style,
    new_figure,
    new_grid,
    new_panels,
    published_legend,
    shorten,
)
from iqa.metrics import Place, shown_in
from iqa.results import (
    PublishedEntry,
    PublishedResults,
    Recorded,
    Row,
    Run,
    Score,
    Sweep,
    database_of,
    measured_rows,
    sweeps,
)

CHAIN = ("C0", "A2", "A1", "E6")


@dataclass(frozen=True)
class Drawn:
    """A figure and the values it shows."""

    figure: Figure
    values: dict


@dataclass(frozen=True)
class _Labelled:
    """A bar with what the manifest says of it."""

    bar: Bar
    values: dict


def _measured(label: str, score: Score) -> _Labelled:
    counted = f"{score.text}  (n = {score.n})" if score.over == "images" else f"{score.text}  ({score.n} {score.over})"
    return _Labelled(Bar(label, score.value, score.low, score.high, counted), score.as_values)


def _published(label: str, entry: PublishedEntry, row: str, key: str = "srcc") -> _Labelled:
    value = entry.rows[row][key]
    bar = Bar(f"{label} (published)", value, text=f"{value:.4f}", published=True)
    return _Labelled(bar, {"value": value, **entry.cite(row)})


def _with_counterparts(rows: Sequence[Row], part: str, published: PublishedResults) -> list[_Labelled]:
    """Make a bar for each row's SRCC, followed by the published one of the same network and database."""
    bars, shown = [], set()
    for row in rows:
        bars.append(_measured(row.name, row.scores[part]["srcc"]))
        found = published.counterpart(row.name, row.settings)
        if part == "test" and row.experiment not in ("baselines",) and found and (found[0].name, found[1]) not in shown:
            entry, key = found
            shown.add((entry.name, key))
            bars.append(_published(key, entry, key))
    return bars


def _bar_figure(panels: dict[str, list[_Labelled]], xlabel: str) -> Drawn:
    """Draw panels of bars under each other, by title."""
    figure, all_axes = new_panels(PAGE_WIDTH, [bars_height(bars) for bars in panels.values()])
    for axes, (title, bars) in zip(all_axes, panels.items(), strict=True):
        draw_bars(axes, [labelled.bar for labelled in bars], xlabel, top=1)
        axes.set_title(shorten(title, 90), loc="left")
    if any(labelled.bar.published for bars in panels.values() for labelled in bars):
        published_legend(figure)
    return Drawn(figure, {title: {b.bar.label: b.values for b in bars} for title, bars in panels.items()})


def _whiskers(rows: Sequence[Row]) -> str:
    """Say what the whiskers of these rows are."""
    over = {score.over for row in rows for part in row.scores.values() for score in part.values()}
    kinds = {"images": "95 % interval", "seeds": "± deviation over seeds", "splits": "± deviation over splits"}
    return "SRCC (whiskers: " + ", ".join(text for key, text in kinds.items() if key in over) + ")"


def draw_comparison(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the test SRCC of runs, of the ridge baselines beside them and of runs over splits, by database."""
    rows = [r for r in measured_rows(recorded) if r.experiment in ("runs", "baselines", "splits")]
    rows = [row for row in rows if "test" in row.scores]
    if len(rows) < 2:
        return None
    databases = dict.fromkeys(row.database for row in rows)
    panels = {
        f"test part of {database}": _with_counterparts([r for r in rows if r.database == database], "test", published)
        for database in databases
    }
    return _bar_figure(panels, _whiskers(rows))


def draw_ablation_bars(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the test SRCC of every row of every ablation table."""
    rows = [r for r in _rows_of_tables(recorded) if "test" in r.scores]
    if not rows:
        return None
    panels = {
        f"ablation {table}": _with_counterparts([r for r in rows if r.experiment == table], "test", published)
        for table in dict.fromkeys(row.experiment for row in rows)
    }
    return _bar_figure(panels, _whiskers(rows))


def _rows_of_tables(recorded: Recorded) -> list[Row]:
    names = {table.name for table in recorded.ablations}
    return [row for row in measured_rows(recorded) if row.experiment in names]


def draw_waterfall(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw what each component adds to the SRCC: C0, then A2, A1 and E6, each beside the one it builds on."""
    charts: dict[str, dict[str, _Labelled]] = {}
    for table in recorded.ablations:
        rows = {r.name: r for r in _rows_of_tables(recorded) if r.experiment == table.name and _component(r.name)}
        if len({_component(name) for name in rows}) > 1:
            charts[f"ablation {table.name}"] = {
                name: _measured(name, r.scores["test"]["srcc"]) for name, r in rows.items()
            }
            _add_published_chart(charts, list(rows.values()), published)
    if not charts:
        return None
    figure, all_axes = new_figure(PAGE_WIDTH, 2.6, columns=len(charts))
    known = [b.bar.value for chart in charts.values() for b in chart.values() if math.isfinite(b.bar.value)]
    span = max(max(known, default=1) - min(known, default=0), 1e-3)
    limits = (max(0, min(known, default=0) - 0.35 * span), max(known, default=1) + 0.2 * span)
    for axes, (title, chart) in zip(all_axes, charts.items(), strict=True):
        _draw_steps(axes, {name: labelled.bar for name, labelled in chart.items()})
        axes.set_title(shorten(title, 90 // len(charts)), loc="left")
        axes.set(ylim=limits, ylabel=f"SRCC (axis starts at {limits[0]:.3g})")
    return Drawn(figure, {title: {name: b.values for name, b in chart.items()} for title, chart in charts.items()})


def _component(name: str) -> str | None:
    """`E6_scale` -> `E6`; None for a row that is not a component."""
    match = re.fullmatch(rf"({'|'.join(CHAIN)})(_.*)?", name)
    return match[1] if match else None


def _add_published_chart(charts: dict, rows: Sequence[Row], published: PublishedResults) -> None:
    """Add the published chain, where a measured row has the same network and database."""
    found = [published.counterpart(row.name, row.settings) for row in rows]
    entry = next((pair[0] for pair in found if pair and pair[0].name == "koniq_components"), None)
    if entry is not None:
        charts["published"] = {name: _published(name, entry, name) for name in CHAIN if name in entry.rows}


def _draw_steps(axes, bars: dict[str, Bar]) -> None:
    """Draw steps from the component before; several variants of one component all start from the one before it."""
    levels: dict[str, float] = {}
    names = sorted(bars, key=lambda name: CHAIN.index(_component(name) or ""))
    for i, name in enumerate(names):
        bar, component = bars[name], _component(name) or ""
        before = [levels[c] for c in CHAIN[: CHAIN.index(component)] if c in levels]
        start = before[-1] if before else 0.0
        if not math.isfinite(bar.value):
            axes.annotate("undefined", (i, start), (0, 4), textcoords="offset points", ha="center", fontsize=6.5)
            continue
        rises = bar.value >= start
        face = COLOURS[0] if not before else COLOURS[2] if rises else COLOURS[5]
        style = {"color": "white", "hatch": PUBLISHED_HATCH} if bar.published else {"color": face}
        axes.bar(i, bar.value - start, bottom=start, width=0.6, edgecolor="black", linewidth=0.5, **style)
        text = f"{bar.value:.4f}" + (f"\n{bar.value - start:+.4f}" if before else "")
        top = max(bar.value, start)
        axes.annotate(text, (i, top), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=6.5)
        levels.setdefault(component, bar.value)
    axes.set_xticks(range(len(names)), [shorten(name, 14) for name in names])
    axes.grid(axis="x", visible=False)


def draw_model_sizes(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw test SRCC against parameters, for networks that differ in the size of their Swin backbone alone."""
    found = [
        (s, {k: r for k, r in s.rows.items() if k in MODEL_SIZES}) for s in sweeps(measured_rows(recorded), "backbone")
    ]
    series = [(sweep.name, rows) for sweep, rows in found if len(rows) > 1]
    if not series:
        return None
    figure, (axes,) = new_figure(COLUMN_WIDTH + 1, 2.8)
    values: dict[str, dict] = {}
    for i, (name, rows) in enumerate(series):
        points = [(row.parameters / 1e6, row.scores["test"]["srcc"], size) for size, row in rows.items()]
        points.sort(key=lambda point: point[0])
        _line(axes, [p[0] for p in points], [p[1] for p in points], _unique(name, values), line_style(i))
        for millions, score, size in points:
            _point_label(axes, size, millions, score.value, below=True)
        values[_unique(name, values)] = {size: {"parameters_m": x, **score.as_values} for x, score, size in points}
    entry = published.get("koniq_sizes")
    if entry and any(row.database == entry.content["database"] for _, rows in series for row in rows.values()):
        rows = entry.rows
        x, y = [row["parameters"] / 1e6 for row in rows.values()], [row["srcc"] for row in rows.values()]
        axes.plot(x, y, linestyle=":", color="black", marker="o", markerfacecolor="white", label="published")
        for size, millions, srcc in zip(rows, x, y, strict=True):
            _point_label(axes, size, millions, srcc, below=False)
        values["published"] = {
            size: {"parameters_m": a, "value": b, **entry.cite(size)} for size, a, b in zip(rows, x, y, strict=True)
        }
    axes.set(xlabel="parameters (million)", ylabel="test SRCC")
    axes.margins(x=0.15, y=0.2)
    legend_above(figure, axes, list(values))
    return Drawn(figure, values)


def _unique(name: str, taken: dict) -> str:
    """Add a number to a name that is taken."""
    return name if name not in taken else f"{name} ({sum(key.startswith(name) for key in taken) + 1})"


def _point_label(axes, text: str, x: float, y: float, below: bool) -> None:
    """Write a name beside a point, on the side of a rising line where the line is not."""
    if math.isfinite(x) and math.isfinite(y):
        place, side = ((4, -9), "left") if below else ((-4, 5), "right")
        axes.annotate(text, (x, y), place, textcoords="offset points", ha=side, fontsize=6.5)


def _line(axes, x: Sequence[float], scores: Sequence[Score], label: str, style: dict) -> None:
    """Draw a line with a whisker where a score has an interval; NaN leaves a gap."""
    y = [score.value for score in scores]
    errors = np.nan_to_num([[s.value - s.low for s in scores], [s.high - s.value for s in scores]])
    axes.errorbar(x, y, yerr=errors, capsize=2, elinewidth=0.7, label=label, **style)


def draw_cross_database(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the SRCC on every database that was tested on and not trained on."""
    rows = measured_rows(recorded)
    databases = dict.fromkeys(part for row in rows for part in row.others)
    panels = {}
    for database in databases:
        tested = [row for row in rows if database in row.others]
        bars = [_measured(row.label, row.scores[database]["srcc"]) for row in tested]
        entry = _published_cross(published, tested, database)
        if entry is not None:
            bars.append(_published(entry.content["model"], entry, database))
        panels[f"tested on {database}"] = bars
    return _bar_figure(panels, _whiskers(rows)) if panels else None


def _published_cross(published: PublishedResults, tested: Sequence[Row], database: str) -> PublishedEntry | None:
    """Find the published cross-database entry, where something was trained and tested on the same databases."""
    entry = published.get("cross_database")
    if entry is None or database not in entry.rows:
        return None
    return entry if any(row.database == entry.content["trained_on"] for row in tested) else None


def draw_heat_map(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the SRCC of everything measured (rows) on every database (columns), its own test part included."""
    rows = [row for row in measured_rows(recorded) if row.others]
    if not rows:
        return None
    names = [row.label for row in rows]
    cells = {row.label: {row.tested_on(part): s["srcc"] for part, s in row.scores.items()} for row in rows}
    databases = list(dict.fromkeys(database for row in cells.values() for database in row))
    values: dict = {name: {d: score.as_values for d, score in row.items()} for name, row in cells.items()}
    grid = [[cells[name][d].value if d in cells[name] else math.nan for d in databases] for name in names]
    missing = [["undefined" if d in cells[name] else "not tested" for d in databases] for name in names]
    entry = next((e for d in databases if (e := _published_cross(published, rows, d))), None)
    if entry is not None:
        names.append(f"{entry.content['model']} (published)")
        grid.append([entry.rows[d]["srcc"] if d in entry.rows else math.nan for d in databases])
        missing.append(["not given"] * len(databases))
        values[names[-1]] = {d: {"value": entry.rows[d]["srcc"], **entry.cite(d)} for d in databases if d in entry.rows}
    width = min(PAGE_WIDTH, 2.6 + 0.75 * len(databases))
    figure, (axes,) = new_figure(width, 0.9 + 0.24 * len(names))
    _draw_grid(axes, np.array(grid), missing, hatched=len(names) - 1 if entry is not None else None)
    axes.set_xticks(range(len(databases)), [shorten(d, 14) for d in databases])
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_title("SRCC; column: tested on", loc="left")
    return Drawn(figure, values)


def _draw_grid(axes, grid: np.ndarray, missing: Sequence[Sequence[str]], hatched: int | None) -> None:
    """Draw coloured cells with their numbers; the `hatched` row is published."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.imshow(
        np.ma.masked_invalid(grid), cmap="cividis", vmin=min(0, np.nanmin(grid, initial=0)), vmax=1, aspect="auto"
    )
    for (i, j), value in np.ndenumerate(grid):
        if i == hatched and math.isfinite(value):
            box = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch=PUBLISHED_HATCH, linewidth=0, edgecolor="black")
            axes.add_patch(box)
        text = f"{value:.3f}" if math.isfinite(value) else missing[i][j]
        face = "white" if i == hatched else "none"
        colour = "black" if i == hatched or not value < 0.55 else "white"
        box = {"facecolor": face, "edgecolor": "none", "pad": 1}
        axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour, bbox=box)


def draw_training_curves(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw training loss, validation SRCC and validation PLCC by epoch."""
    shown = [run for run in recorded.runs if run.history]
    if not shown:
        return None
    labels = {"train_loss": "training loss", "val_srcc": "validation SRCC", "val_plcc": "validation PLCC"}
    figure, panels = new_figure(PAGE_WIDTH, 2.3, columns=len(labels))
    values = {}
    for i, run in enumerate(shown):
        values[run.name] = {"file": str(run.history_file), "epoch": _of_history(run, "epoch")}
        for axes, key in zip(panels, labels, strict=True):
            values[run.name][key] = _of_history(run, key)
            axes.plot(values[run.name]["epoch"], values[run.name][key], label=shorten(run.name), **line_style(i))
    for axes, label in zip(panels, labels.values(), strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend_above(figure, panels[0], [shorten(run.name) for run in shown])
    return Drawn(figure, values)


def _of_history(run: Run, key: str) -> list[float]:
    """Read one column of a run's epochs; NaN where it is null or not there."""
    return [math.nan if line.get(key) is None else line[key] for line in run.history]


def draw_scatter(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw mos against scores with the 4-parameter logistic: test parts of runs, and all parts of evaluations."""
    shown = [(run.name, run, "test") for run in recorded.runs if "test" in run.content["predictions"]]
    shown += [(f"{run.name}: {part}", run, part) for run in recorded.evaluations for part in run.content["predictions"]]
    if not shown:
        return None
    tables = [_predictions(run, part) for _, run, part in shown]
    contents = few_contents([content for table in tables for content in table["content"]])
    figure, all_axes = new_grid(len(shown))
    values = {}
    for axes, (name, run, part), table in zip(all_axes, shown, tables, strict=True):
        fit = scatter_of_scores(axes, table, contents)
        curve = {"score": table["score"].tolist(), "mos": table["mos"].tolist()}
        curve |= {"logistic": None, "no_logistic": fit.reason} if fit.reason else {"logistic": list(fit.coefficients)}
        metrics = {"n": run.finite("metrics", part, "n")}
        brief = [each for each in shown_in(Place.BRIEF) if each.key in run.field("metrics", part)]
        metrics |= {each.key: run.number("metrics", part, each.key) for each in brief}
        correlations = ", ".join(f"{each.title} {_text(metrics[each.key])}" for each in brief)
        small = len(shown) > 9  # four panels a row: n gets a line of its own
        count = ("\n" if small else ", ") + f"n = {metrics['n']:.0f}"
        axes.set_title(f"{shorten(name, 26)}\n{correlations}{count}", fontsize=6 if small else 7)
        axes.set(xlabel="score", ylabel="pseudo-mos" if _is_demo(run, part) else "mos")
        values[name] = metrics | {"file": str(run.file), "field": f"predictions.{part}", **curve}
    handles = {label: h for axes in all_axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = 4 if len(shown) > 1 else 2  # one panel is not wide enough for more
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, markerscale=2)
    return Drawn(figure, values)


def _predictions(run: Run, part: str) -> pd.DataFrame:
    """Read the columns score, mos and content of a part.

    Raises:
        UserError: a score or mos is not a finite number; it is named.
    """
    rows = run.rows("predictions", part)
    table = {key: [run.finite("predictions", part, i, key) for i in range(len(rows))] for key in ("score", "mos")}
    return pd.DataFrame(table | {"content": [str(row.get("content") or "(none)") for row in rows]})


def _is_demo(run: Run, part: str) -> bool:
    """Tell whether the labels are the demo database's, which people did not give."""
    return database_of(run.content, part) == "demo"


def _text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def draw_losses(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the test SRCC of runs that differ in the loss alone."""
    found = sweeps(measured_rows(recorded), "loss_type")
    panels: dict[str, list[_Labelled]] = {}
    for sweep in found:
        bars = [_measured(loss, row.scores["test"]["srcc"]) for loss, row in sweep.rows.items()]
        panels[_unique(sweep.name, panels)] = bars
    return _bar_figure(panels, _whiskers([r for s in found for r in s.rows.values()])) if panels else None


def draw_alpha(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw test SRCC against the ranking loss's weight."""
    return _draw_sweep(sweeps(measured_rows(recorded), "ranking_loss_alpha"), "weight of the ranking loss, α")


def draw_learning_rates(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw test SRCC against the backbone's learning rate."""
    found = sweeps(measured_rows(recorded), "lr")
    drawn = _draw_sweep(found, "learning rate of the backbone")
    if drawn is not None:
        (axes,) = drawn.figure.axes
        rates = sorted({rate for sweep in found for rate in sweep.rows})
        axes.set_xscale("log")
        if len(rates) <= 8:  # more would run into each other; the axis then has its own ticks
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45 if len(rates) > 4 else 0)
        axes.xaxis.set_minor_formatter(NullFormatter())
    return drawn


def _draw_sweep(found: Sequence[Sweep], xlabel: str) -> Drawn | None:
    if not found:
        return None
    figure, (axes,) = new_figure(COLUMN_WIDTH, 2.5)
    values: dict[str, dict] = {}
    for i, sweep in enumerate(found):
        points = sorted(sweep.rows.items())
        scores = [row.scores["test"]["srcc"] for _, row in points]
        name = _unique(sweep.name, values)
        _line(axes, [value for value, _ in points], scores, shorten(name, 30), line_style(i))
        values[name] = {str(value): row.scores["test"]["srcc"].as_values for value, row in points}
    axes.set(xlabel=xlabel, ylabel="test SRCC")
    axes.margins(y=0.15)
    legend_above(figure, axes, [shorten(name, 30) for name in values])
    return Drawn(figure, values)
