"""Metrics as text tables for the screen."""

from __future__ import annotations

import pandas as pd

from iqa.metrics import Place, shown_in


def metrics_table(metrics: dict[str, dict]) -> str:
    """Metrics by part as an aligned text table: a row a part, n, contents and intervals included."""
    rows = []
    for part, values in metrics.items():
        cells = {"": part, "n": values["n"], "contents": values.get("contents", "")}
        cells |= {each.title: each.text(values.get(each.key)) for each in shown_in(Place.SCREEN)}
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
                of_all = [each for each in shown_in(Place.SCREEN) if each.key in of_group]
                rows.append(cells | {each.title: each.text(of_group[each.key]) for each in of_all})
    return pd.DataFrame(rows).to_string(index=False)
