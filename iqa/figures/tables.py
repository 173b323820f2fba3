"""The paper's tables, from recorded results, as LaTeX (booktabs) and Markdown. Needs no torch.

Each function gives the table as text cells with the values behind them, or None where nothing was measured that it
could show. Published rows stand beside measured ones and are marked so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pandas as pd

from iqa.figures.network import has_stage_weights, published_attention, smallest_batch
from iqa.metrics import Place, shown_in
from iqa.results import (
    PublishedEntry,
    PublishedResults,
    Record,
    Recorded,
    Row,
    Score,
    ablation_rows,
    markdown_table,
    measured_rows,
)

PROSE = ("protocol", "source")  # columns that hold sentences: they wrap
# What LaTeX would take for a command, and what its default fonts lack.
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after a line's end it would open an option
        "]": "{]}",
        "±": r"$\pm$",
        "…": r"\dots{}",
        "\n": " ",
    }
)


@dataclass(frozen=True)
class Table:
    """A table of text cells, and the values it shows.

    `parts` are the tables that LaTeX gets in place of one that is too wide for a page, by the ending of their names.
    """

    cells: pd.DataFrame
    values: dict
    note: str
    parts: dict[str, pd.DataFrame] = field(default_factory=dict)


def to_markdown(table: Table, title: str) -> str:
    """The table under a heading, with its note."""
    cells = markdown_table(table.cells.columns, table.cells.itertuples(index=False))
    return "\n".join([f"# {title}", "", cells, "", table.note, ""])


def to_latex(cells: pd.DataFrame, note: str) -> str:
    r"""Cells as a `tabular` to \input into a document that uses the package booktabs."""
    columns = list(cells.columns)
    align = "".join(r"p{0.2\linewidth}" if c in PROSE else "l" if _is_text(cells[c]) else "r" for c in columns)
    lines = [f"% needs \\usepackage{{booktabs}}; {' '.join(note.split())}", rf"\begin{{tabular}}{{{align}}}"]
    lines += [r"\toprule", _latex_row(columns), r"\midrule"]
    lines += [_latex_row(row) for row in cells.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _is_text(cells: pd.Series) -> bool:
    return not any(str(cell)[:1].isdigit() for cell in cells)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_text(str(cell)) for cell in cells) + r" \\"


def latex_text(text: str) -> str:
    r"""Text that LaTeX prints as it is; letters that its default fonts lack become their code point.

    >>> print(latex_text("50 % of a_b"))
    50 \% of a\_b
    >>> print(latex_text("α"))
    U+03B1
    """
    printable = "".join(c if ord(c) < 0x180 or ord(c) in _LATEX else f"U+{ord(c):04X}" for c in text)
    return printable.translate(_LATEX)


def in_database_table(recorded: Recorded, published: PublishedResults) -> Table | None:
    """Every measured row on the test part of its own database, and what is published of that database."""
    rows = [row for row in measured_rows(recorded) if "test" in row.scores]
    if not rows:
        return None
    cells, values = [], {}
    for database in dict.fromkeys(row.database for row in rows):
        for row in (row for row in rows if row.database == database):
            scores = row.scores["test"]
            name = row.label
            cells.append({"database": database, "model": name, **_score_cells(scores), "protocol": row.protocol})
            values[f"{database}: {name}"] = _as_values(scores, Place.PAPER)
        for entry in _published_on(database, published):
            for key, found in entry.rows.items():
                model = f"{key} (published)"
                numbers = _published_cells(found)
                cells.append({"database": database, "model": model, **numbers, "protocol": _cited(entry, key)})
                values[f"{database}: {entry.name} {model}"] = {**_published_scores(found), **entry.cite(key)}
    return Table(_filled(cells), values, _NOTE)


_NOTE = "Brackets: 95 % interval; ±: deviation over seeds or splits; published rows are not measured here."


def _score_cells(scores: dict[str, Score]) -> dict[str, str]:
    first = scores["srcc"]
    cells = {"n": f"{first.n}" if first.over == "images" else f"{first.n} {first.over}"}
    return cells | _texts(scores, Place.PAPER)


def _texts(scores: dict[str, Score], place: Place, part: str = "") -> dict[str, str]:
    """A cell for each statistic that the place shows; several parts stand side by side, each under its name."""
    before = f"{part} " if part else ""
    return {f"{before}{each.title}": scores[each.key].text for each in shown_in(place) if each.key in scores}


def _as_values(scores: dict[str, Score], place: Place) -> dict[str, dict]:
    return {each.key: scores[each.key].as_values for each in shown_in(place) if each.key in scores}


def _published_scores(row: dict) -> dict[str, float]:
    return {each.key: row[each.key] for each in shown_in(Place.BRIEF) if each.key in row}


def _published_cells(row: dict, part: str = "") -> dict[str, str]:
    before = f"{part} " if part else ""
    return {f"{before}{each.title}": each.text(row[each.key]) for each in shown_in(Place.BRIEF) if each.key in row}


def _published_on(database: str, published: PublishedResults) -> list[PublishedEntry]:
    names = ("koniq_components", "koniq_sizes", "agiqa_in_database")
    entries = [entry for name in names if (entry := published.get(name))]
    return [entry for entry in entries if entry.content["database"] == database]


def _cited(entry: PublishedEntry, row: str) -> str:
    cited = entry.cite(row)
    return f"{cited['source']}; {cited['protocol']}"


def _pick(row: dict, *keys: str) -> dict:
    return {key: row[key] for key in keys}


def _filled(cells: Sequence[dict]) -> pd.DataFrame:
    """Cells as a table; columns that hold sentences come last, what a row lacks is a dash."""
    table = pd.DataFrame(cells).fillna("-")
    return table[[c for c in table if c not in PROSE] + [c for c in table if c in PROSE]]


def ablation_table(recorded: Recorded, published: PublishedResults) -> Table | None:
    """Every row of every ablation table with its costs and its comparison with the table's baseline.

    LaTeX gets a table for each of them, named by it and without the column that would name it in every row.
    """
    cells, values, parts = [], {}, {}
    for table in recorded.ablations:
        first = len(cells)
        for i, row in enumerate(ablation_rows(table)):
            cells.append(_ablation_cells(table, i, row))
            values[f"{table.name}: {row.name}"] = {
                part: _as_values(scores, Place.BRIEF) for part, scores in row.scores.items()
            } | {"costs": _ablation_costs(table, i), **_against_baseline(table, i)}
            if (found := published.counterpart(row.name, row.settings)) is not None:
                entry, key = found
                label, numbers = f"{row.name} (published)", _published_cells(entry.rows[key], "test")
                cells.append({"ablation": table.name, "row": label, **numbers, "source": _cited(entry, key)})
                values[f"{table.name}: {label}"] = {**_published_scores(entry.rows[key]), **entry.cite(key)}
        parts[_file_ending(table.name, parts)] = _filled(cells[first:]).drop(columns="ablation")
    return Table(_filled(cells), values, _NOTE, parts) if cells else None


def _file_ending(name: str, taken: Collection[str]) -> str:
    """A name of letters, digits, `_`, `-` and `.` that no other table has; LaTeX takes no others."""
    ending = re.sub(r"[^A-Za-z0-9_.-]+", "_", name) or "_"
    return ending if ending not in taken else _file_ending(f"{ending}_{len(taken)}", taken)


def _against_baseline(table: Record, index: int) -> dict[str, str]:
    """The row's `verdict` against the `baseline` of its table; a dash for the baseline itself."""
    versus = table.field("rows", index, "versus_baseline")
    verdict = "-" if versus is None else str(table.field("rows", index, "versus_baseline", "verdict"))
    return {"verdict": verdict, "baseline": str(table.field("baseline"))}


def _ablation_costs(table: Record, index: int) -> dict[str, float]:
    keys = ("parameters", "macs", "cpu_latency_ms", "seconds_per_epoch", "epochs_to_best")
    keys += tuple(key for key in ("gpu_latency_ms",) if key in table.fields("rows", index))  # if there was one
    return {key: table.number("rows", index, key) for key in keys}


def _ablation_cells(table: Record, index: int, row: Row) -> dict[str, str]:
    cells = {"ablation": table.name, "row": row.name, "seeds": f"{table.finite('rows', index, 'seeds'):.0f}"}
    for part, scores in row.scores.items():
        cells |= _texts(scores, Place.BRIEF, part)
    costs = _ablation_costs(table, index)
    gpu = {"ms/image (GPU)": _number(costs["gpu_latency_ms"], 1)} if "gpu_latency_ms" in costs else {}
    return (
        cells
        | _against_baseline(table, index)
        | {
            "parameters (M)": _number(costs["parameters"] / 1e6, 2),
            "GMACs": _number(costs["macs"] / 1e9, 2),
            "GFLOPs": _number(2 * costs["macs"] / 1e9, 2),
            "ms/image": _number(costs["cpu_latency_ms"], 0),
            **gpu,
            "s/epoch": _number(costs["seconds_per_epoch"], 0),
            "best epoch": _number(costs["epochs_to_best"], 1),
        }
    )


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "-"


def cross_database_table(recorded: Recorded, published: PublishedResults) -> Table | None:
    """Every measured row on the databases it was not trained on."""
    cells, values, shown = [], {}, []
    for row in measured_rows(recorded):
        others = {part: row.scores[part] for part in row.others}
        if others:
            shown.append(row)
            numbers = {}
            for part, scores in others.items():
                numbers |= _texts(scores, Place.BRIEF, part)
            cells.append({"trained on": row.database, "model": row.label, **numbers, "protocol": row.protocol})
            values[row.label] = {part: _as_values(scores, Place.BRIEF) for part, scores in others.items()}
    tested = {part for row in shown for part in row.scores}
    entry = published.get("cross_database")
    if entry is not None and any(row.database == entry.content["trained_on"] for row in shown):
        found = {database: row for database, row in entry.rows.items() if database in tested}
        numbers = {}
        for database, row in found.items():
            numbers |= _published_cells(row, database)
        model = f"{entry.content['model']} (published)"
        if numbers:
            trained = entry.content["trained_on"]
            cells.append(
                {"trained on": trained, "model": model, **numbers, "protocol": _cited(entry, next(iter(found)))}
            )
            values[model] = {d: {**_published_scores(row), **entry.cite(d)} for d, row in found.items()}
    return Table(_filled(cells), values, _NOTE) if cells else None


def complexity_table(recorded: Recorded, published: PublishedResults) -> Table | None:
    """Parameters, MACs, FLOPs, latency and memory of every variant."""
    cells, values = [], {}
    for record in recorded.complexity:
        for i in range(len(record.rows("variants"))):
            name = str(record.field("variants", i, "variant"))
            found = _costs(record, i)
            batch = smallest_batch(record, i)
            cells.append(
                {
                    "variant": name,
                    "parameters (M)": _number(found["parameters"] / 1e6, 2),
                    "GMACs": _number(found["macs"] / 1e9, 2),
                    "GFLOPs": _number(found["flops"] / 1e9, 2),
                    f"ms/image, batch {batch}": _number(found["latency_ms"], 1),
                    "peak memory (MB)": _number(found["peak_memory_bytes"] / 1e6, 0),
                }
            )
            values[f"{record.name}: {name}"] = found | {"file": str(record.file), "field": f"variants.{i}"}
    if not cells:
        return None
    entry = published.get("complexity")
    sizes = {row["variant"].partition(":")[0] for row in cells}
    for size in [size for size in (entry.rows if entry else {}) if size in sizes]:
        row, name = entry.rows[size], f"{size} (published)"
        numbers = {"parameters (M)": f"{row['parameters_millions']:g}", "GFLOPs": f"{row['operations_g']:g}"}
        cells.append({"variant": name, **numbers, "source": f"{_cited(entry, size)}: {row['latency_ms']:g} ms"})
        values[name] = {**_pick(row, "parameters_millions", "operations_g", "latency_ms"), **entry.cite(size)}
    note = "A MAC is two FLOPs. Published: as printed; what it calls FLOPs is near the measured MACs, not FLOPs."
    return Table(_filled(cells), values, note if any("published" in row["variant"] for row in cells) else "")


def _costs(record: Record, index: int) -> dict[str, float]:
    path = ("variants", index)
    costs = {key: record.number(*path, key) for key in ("macs", "flops", "peak_memory_bytes")}
    latency = (*path, "latency_ms_per_image", smallest_batch(record, index), "median")
    return {"parameters": record.number(*path, "parameters", "total"), "latency_ms": record.number(*latency)} | costs


def attention_table(recorded: Recorded, published: PublishedResults) -> Table | None:
    """Mean ± deviation of every stage's weight by quality level."""
    weighed = [record for record in recorded.attention if has_stage_weights(record)]
    cells, values = [], {}
    for record in weighed:
        for level in record.fields("levels"):
            mean, std = ([record.number("levels", level, key, i) for i in range(4)] for key in ("mean", "std"))
            weights = {f"stage {i}": _weight(mean[i], std[i]) for i in range(4)}
            n = record.finite("levels", level, "n")
            cells.append({"analysis": record.name, "level": level, "n": f"{n:.0f}", **weights})
            where = {"file": str(record.file), "field": f"levels.{level}"}
            values[f"{record.name}: {level}"] = {"n": n, "mean": mean, "std": std, **where}
    entry = published_attention(weighed, published)
    for level, row in (entry.rows if entry else {}).items():
        weights = {f"stage {i}": f"{weight:.4f}" for i, weight in enumerate(row["mean"])}
        cells.append({"analysis": "published", "level": level, **weights, "source": _cited(entry, level)})
        values[f"published: {level}"] = {"mean": row["mean"], **entry.cite(level)}
    return Table(_filled(cells), values, "±: deviation over the images of a level.") if cells else None


def _weight(mean: float, std: float) -> str:
    if not math.isfinite(mean):
        return "undefined"
    return f"{mean:.4f}" + (f" ± {std:.4f}" if math.isfinite(std) else "")
