"""Metrics as text tables for the screen."""

from __future__ import annotations

import pandas as pd

COLUMNS = (
    ("srcc", "SRCC"),
    ("plcc", "PLCC"),
    ("plcc_logistic4", "PLCC log4"),
    ("krcc", "KRCC"),
    ("rmse", "RMSE"),
)


def metrics_table(metrics: dict[str, dict]) -> str:
    """Metrics by part as an aligned text table: a row a part, n, contents and intervals included."""
    rows = []
    for part, values in metrics.items():
        cells = {"": part, "n": values["n"], "contents": values.get("contents", "")}
        for key, title in COLUMNS:
            cells[title] = _cell(values.get(key))
        low, high = values["srcc_ci95"] or (None, None)
        cells["SRCC 95 % interval"] = "-" if low is None else f"{low:.3f}..{high:.3f}"
        rows.append(cells)
    lines = [pd.DataFrame(rows).to_string(index=False)]
    for part, values in metrics.items():
        lines += [f"{part}: {note}" for note in values.get("notes", [])]
    return "\n".join(lines)


def groups_table(metrics: dict[str, dict]) -> str:
    """The statistics of every group (generator, distortion, quality level) as an aligned text table."""
    rows = []
    for part, values in metrics.items():
        for kind, groups in values["groups"].items():
            for group, of_group in groups.items():
                cells = {"": part, "by": kind.replace("_", " "), "group": group, "n": of_group["n"]}
                rows.append(cells | {title: _cell(of_group[key]) for key, title in COLUMNS if key in of_group})
    return pd.DataFrame(rows).to_string(index=False)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
