"""The principal components of the generated weights as a figure. Needs no torch."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from iqa.figures.scatter import scatter_by_label, scatter_by_mos
from iqa.figures.scores import Drawn
from iqa.figures.style import new_grid, shorten
from iqa.results import PublishedResults, Record, Recorded

MOST_NAMED = 12  # entries of a legend


def draw_target_weights(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the first two principal components of the generated weights, coloured by label and by mos."""
    models, values = {}, {}
    analyses = [(record, path) for record in recorded.weights for path in _models(record)]
    for record, path in analyses:
        name = " ".join([*map(str, path[1:]), record.name])
        points = _points(record, path)
        shares = [record.number(*path, "explained_variance", k) for k in range(2)]
        labels = record.fields(*path, "silhouette")
        models[name] = {"images": points, "explained_variance": shares, "silhouette": dict.fromkeys(labels)}
        where = {"file": str(record.file), "field": ".".join([*map(str, path), "images"])}
        values[name] = where | {"explained_variance": shares, **points}
    return Drawn(draw_components(models), values) if models else None


def draw_components(models: dict[str, dict]) -> Figure:
    """Draw the first two components of each model: a row a model, a column each for its labels and for mos.

    A label is drawn where several images share one of its values and not all the same.

    Args:
        models: by name `images` (their pc1, pc2, mos and labels), `explained_variance` (shares of the total) and
            `silhouette`, whose keys are the labels.
    """
    tables = {name: pd.DataFrame(model["images"]) for name, model in models.items()}
    labels = dict.fromkeys(
        label for name, table in tables.items() for label in models[name]["silhouette"] if _is_told_apart(table[label])
    )
    columns = [*labels, "mos"]
    figure, all_axes = new_grid(len(models) * len(columns), len(columns))
    for i, (name, table) in enumerate(tables.items()):
        shares = models[name]["explained_variance"]
        for j, label in enumerate(columns):
            axes = all_axes[i * len(columns) + j]
            if label == "mos":
                figure.colorbar(scatter_by_mos(axes, table["pc1"], table["pc2"], table["mos"]), ax=axes, label="mos")
            elif label in table and _is_told_apart(table[label]):
                scatter_by_label(axes, table["pc1"], table["pc2"], table[label], MOST_NAMED)
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=6, markerscale=1.4)
            else:
                axes.set_axis_off()
                continue
            axes.set_title(
                f"{shorten(name, 90 // len(columns) - 12)}: by {label}" if j == 0 else f"by {label}", loc="left"
            )
            axes.set(xlabel=f"PC 1 ({shares[0]:.1%})", ylabel=f"PC 2 ({shares[1]:.1%})")
            axes.locator_params(nbins=5)
    return figure


def _is_told_apart(labels: pd.Series) -> bool:
    return 1 < labels.nunique() < len(labels)


def _models(record: Record) -> list[tuple]:
    """Find the paths to the analyses of one file: of one model, or of several under `models`."""
    return [("models", key) for key in record.optional("models")] or [()]


def _points(record: Record, path: tuple) -> dict[str, list]:
    count = len(record.rows(*path, "images"))
    points = {key: [record.finite(*path, "images", i, key) for i in range(count)] for key in ("pc1", "pc2", "mos")}
    return points | {
        key: [str(record.field(*path, "images", i, key)) for i in range(count)]
        for key in record.fields(*path, "silhouette")
    }
