"""The pieces of a run's page, and the page: recorded numbers -> figures, thumbnails, rows -> one HTML text.

Used by `smart-iqa report`, which reads the run. Needs no torch. The page's layout, style and table are in
`page.html` beside this file; everything in it that a user named is escaped there.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from iqa.figures.scatter import few_contents, scatter_of_scores
from iqa.figures.style import COLOURS, COLUMN_WIDTH, new_figure
from iqa.metrics import Place, fit_logistic, shown_in

TEMPLATE = Path(__file__).with_name("page.html")
THUMBNAIL_SIDE = 160  # pixels; 24 of them for each part keep the page small
SHOWN = 12  # best, and worst, predicted images
_INKS = {"light": "#24272c", "dark": "#dfe2e7"}  # of axes and letters on the page's two backgrounds
# Okabe and Ito's blue is too dark for the dark one: there their sky blue comes first.
_COLOURS = {"light": COLOURS, "dark": (COLOURS[4], *COLOURS[1:4], COLOURS[0], COLOURS[5])}


@dataclass(frozen=True)
class Fitted:
    """Predictions after the logistic.

    Attributes:
        table: the predictions with columns `fitted` (score after the logistic, 0..100), `error` (fitted - mos)
            and `abs_error`.
        reason: why there is no logistic, and `fitted` is the score itself; else None.
    """

    table: pd.DataFrame
    reason: str | None


def fit_errors(table: pd.DataFrame) -> Fitted:
    """Errors of predictions after the 4-parameter logistic from scores to mos (VQEG 2000).

    The logistic takes away what SRCC does not see: a loss or another database may leave scores on a scale
    of their own, and their plain distance from the mos would say nothing about single images.

    Args:
        table: columns `mos` and `score`, finite numbers.
    """
    fit = fit_logistic(table["score"], table["mos"], parameters=4)
    fitted = table["score"] if fit.reason else fit.predict(table["score"])
    table = table.assign(fitted=fitted)
    table["error"] = table["fitted"] - table["mos"]
    return Fitted(table.assign(abs_error=table["error"].abs()), fit.reason)


def best_and_worst(table: pd.DataFrame, shown: int = SHOWN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Up to `shown` rows of smallest and of largest `abs_error`, most extreme first; no row is in both."""
    ranked = table.sort_values("abs_error", kind="stable")
    best = min(shown, math.ceil(len(ranked) / 2))
    worst = min(shown, len(ranked) - best)
    return ranked.head(best), ranked.tail(worst)[::-1]


def draw_curve(epochs: Sequence[int], values: Sequence[float | None], label: str, chosen: int | None) -> dict[str, str]:
    """One quantity by epoch, for both colour schemes; the chosen epoch is marked."""
    heights = [np.nan if value is None else value for value in values]

    def draw(colours: Sequence[str]) -> Figure:
        figure, (ax,) = new_figure(COLUMN_WIDTH, 2.3)
        ax.plot(epochs, heights, color=colours[0], marker="o", markersize=3.5, linewidth=1.4)
        if chosen in epochs:
            ax.plot(chosen, heights[epochs.index(chosen)], "o", color=colours[5], markersize=6.5)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        return figure

    return _in_both_schemes(draw)


def draw_page_scatter(table: pd.DataFrame, mos_label: str) -> dict[str, str]:
    """Mos against score with the logistic, for both colour schemes; few contents have a colour each."""
    table = table.assign(content=table["content"].fillna("(none)").astype(str)) if "content" in table else table
    contents = few_contents(table["content"]) if "content" in table else []

    def draw(colours: Sequence[str]) -> Figure:
        figure, (ax,) = new_figure(COLUMN_WIDTH, 3.3 if contents else 3.0)
        scatter_of_scores(ax, table, contents, colours)
        ax.set(xlabel="score", ylabel=mos_label)
        if ax.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper center", ncols=3, markerscale=1.6)
        return figure

    return _in_both_schemes(draw)


def _in_both_schemes(draw: Callable[[Sequence[str]], Figure]) -> dict[str, str]:
    """A figure as PNG data addresses, by colour scheme: transparent, in dark and in light ink."""
    drawn = {}
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    for scheme, ink in _INKS.items():
        # Names of contents are text, not mathematics, whatever signs they hold.
        with matplotlib.rc_context(dict.fromkeys(inked, ink) | {"grid.color": "#868e99", "text.parse_math": False}):
            figure, file = draw(_COLOURS[scheme]), BytesIO()
            figure.savefig(file, format="png", dpi=200, transparent=True)
        drawn[scheme] = _data_address("image/png", file.getvalue())
    return drawn


def thumbnail(image: Image.Image) -> str:
    """Shrink an RGB image to at most `THUMBNAIL_SIDE` pixels a side, as a JPEG data address."""
    small, file = image.copy(), BytesIO()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small.save(file, format="JPEG", quality=82)
    return _data_address("image/jpeg", file.getvalue())


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# Columns of the table of predictions: key, heading, digits (None: text).
_TABLE_COLUMNS = (
    ("image", "image", None),
    ("mos", "mos", 2),
    ("score", "score", 2),
    ("fitted", "fitted", 2),
    ("error", "error", 2),
    ("abs_error", "|error|", 2),
    ("mos_std", "mos std", 2),
    ("content", "content", None),
    ("distortion", "distortion", None),
    ("generator", "generator", None),
)


def table_data(name: str, table: pd.DataFrame) -> dict:
    """What the page's script shows of one part: its columns (key, label, digits) and every row, in that order."""
    own_content = "content" in table and (table["content"].map(_last_name) == table["image"].map(_last_name)).all()
    columns = [c for c in _TABLE_COLUMNS if c[0] in table and not (c[0] == "content" and own_content)]
    columns_of_cells = [_cells(table[key], digits) for key, _, digits in columns]
    return {
        "name": name,
        "columns": [{"key": key, "label": label, "digits": digits} for key, label, digits in columns],
        "rows": [list(row) for row in zip(*columns_of_cells, strict=True)],
    }


def _last_name(name: object) -> str:
    return str(name).rsplit("/", 1)[-1]


def _cells(values: pd.Series, digits: int | None) -> list:
    """Numbers rounded to one digit more than is shown, None where there is none; anything else as text."""
    if digits is None:
        return ["" if pd.isna(value) else str(value) for value in values]
    return [None if math.isnan(value) else round(value, digits + 1) for value in values.astype(float)]


def number(value: float | None, digits: int = 4) -> str:
    """A number with that many decimals; a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(ends: list | None, digits: int = 3) -> str:
    """`low..high`, or nothing where there is no interval."""
    low, high = ends or (None, None)
    return "" if low is None or high is None else f"{low:.{digits}f}..{high:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, unless it rounds to zero."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def breakable(name: object) -> Markup:
    """An image's name, escaped, that may be broken into lines after its / _ and -."""
    return Markup("<wbr>").join(escape(piece) for piece in re.split(r"(?<=[/_-])", str(name)))


def setting(value: object) -> str:
    """A setting as its YAML file has it."""
    return value if isinstance(value, str) else json.dumps(value)


def render(page: dict) -> str:
    """The page as HTML: one file that needs no other.

    Args:
        page: what the template names; see `report.gather`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "signed": signed}
    environment.filters |= {"breakable": breakable, "setting": setting}
    columns, printed = shown_in(Place.PAGE), shown_in(Place.SCREEN)
    shown = {"columns": columns, "of_groups": [each for each in printed if each.plain], "brief": shown_in(Place.BRIEF)}
    return environment.get_template(TEMPLATE.name).render(page | shown)
