"""The principal components of the generated weights as a figure."""

from __future__ import annotations

from iqa.figures.scores import Drawn
from iqa.figures.style import COLOURS, new_grid, scatter_by_label, scatter_by_mos, shorten
from iqa.results import PublishedResults, Record, Recorded


def draw_target_weights(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """First two principal components of the generated weights, coloured by content and by mos."""
    models = [(record, path) for record in recorded.weights for path in _models(record)]
    if not models:
        return None
    figure, all_axes = new_grid(2 * len(models), columns=2)
    values: dict[str, dict] = {}
    for i, (record, path) in enumerate(models):
        name = " ".join([*map(str, path[1:]), record.name])
        points = _points(record, path)
        shares = [record.number(*path, "explained_variance", k) for k in range(2)]
        by_content, by_mos = all_axes[2 * i : 2 * i + 2]
        scatter_by_label(by_content, points["pc1"], points["pc2"], points["content"], len(COLOURS))
        by_content.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=6, markerscale=1.4)
        drawn = scatter_by_mos(by_mos, points["pc1"], points["pc2"], points["mos"])
        figure.colorbar(drawn, ax=by_mos, label="mos")
        by_content.set_title(f"{shorten(name, 40)}: by content", loc="left")
        by_mos.set_title("by mos", loc="left")
        for axes in (by_content, by_mos):
            axes.set(xlabel=f"PC 1 ({shares[0]:.0%})", ylabel=f"PC 2 ({shares[1]:.0%})")
        where = {"file": str(record.file), "field": ".".join([*map(str, path), "images"])}
        values[name] = where | {"explained_variance": shares, **points}
    return Drawn(figure, values)


def _models(record: Record) -> list[tuple]:
    """Paths to the analyses of one file: of one model, or of several under `models`."""
    return [("models", key) for key in record.optional("models")] or [()]


def _points(record: Record, path: tuple) -> dict[str, list]:
    count = len(record.rows(*path, "images"))
    points = {key: [record.finite(*path, "images", i, key) for i in range(count)] for key in ("pc1", "pc2", "mos")}
    return points | {"content": [str(record.field(*path, "images", i, "content")) for i in range(count)]}
