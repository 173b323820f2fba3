"""The scatter plots that several figures draw: scores against mos, points by label, points by mos. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection

from iqa.figures.style import COLOURS, MARKERS, shorten
from iqa.metrics import LogisticFit, fit_logistic


def few_contents(contents: Sequence[str]) -> list[str]:
    """List the contents that get a colour each: all where they are few, else none.

    With few of them it can be seen that no single one makes the correlation.
    """
    names = list(dict.fromkeys(contents))
    return names if 1 < len(names) <= len(COLOURS) else []


def scatter_of_scores(
    axes, table: pd.DataFrame, contents: Sequence[str] = (), colours: Sequence[str] = COLOURS
) -> LogisticFit:
    """Draw mos against scores with the 4-parameter logistic, where it can be fitted.

    Args:
        axes: to draw on.
        table: columns score and mos; `content` where contents are given.
        contents: those to colour, from `few_contents`.
        colours: of the contents; the first one without contents.

    Returns:
        The fit, which says why there is none.
    """
    for i, content in enumerate(contents or [None]):
        rows = table if content is None else table[table["content"] == content]
        label = None if content is None else shorten(content, 24)
        style = {"color": colours[i], "marker": MARKERS[i], "label": label, "linewidths": 0}
        axes.scatter(rows["score"], rows["mos"], s=8, alpha=0.65, **style)
    fit = fit_logistic(table["score"], table["mos"], parameters=4)
    if not fit.reason:
        scores = np.linspace(table["score"].min(), table["score"].max(), 200)
        axes.plot(
            scores, fit.predict(scores), color=plt.rcParams["text.color"], linewidth=1.2, label="4-parameter logistic"
        )
    return fit


def scatter_by_label(axes, x: Sequence[float], y: Sequence[float], labels: Sequence[str], most: int) -> None:
    """Draw points in a colour and marker for each label, named for a legend; the rarer labels are grey.

    Args:
        axes: to draw on.
        x: (n,).
        y: (n,).
        labels: (n,).
        most: entries of the legend; with more labels than that, the last entry is for all the others.
    """
    x, y, labels = np.asarray(x), np.asarray(y), np.asarray(labels, dtype=str)
    names, counts = np.unique(labels, return_counts=True)
    shown = most if len(names) <= most else most - 1
    own = sorted(names[np.argsort(-counts, kind="stable")][:shown])
    for i, name in enumerate(own):
        colour, marker = i % len(COLOURS), (i + i // len(COLOURS)) % len(MARKERS)  # the first 36 all differ
        style = {"color": COLOURS[colour], "marker": MARKERS[marker], "label": shorten(name or "(none)", 24)}
        axes.scatter(x[labels == name], y[labels == name], s=10, alpha=0.8, linewidths=0, **style)
    rest = ~np.isin(labels, own)
    if rest.any():
        style = {"color": "0.75", "zorder": 0.9, "label": f"{len(names) - len(own)} others"}  # below the named ones
        axes.scatter(x[rest], y[rest], s=6, linewidths=0, **style)


def scatter_by_mos(axes, x: Sequence[float], y: Sequence[float], mos: Sequence[float]) -> PathCollection:
    """Draw points coloured by mos over 0..100, so that two figures can be compared; return what a colour bar takes."""
    return axes.scatter(x, y, c=mos, cmap="cividis", vmin=0, vmax=100, s=9, linewidths=0)
