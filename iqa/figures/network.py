"""The paper's figures of networks: shapes, costs, stage weights, generated weights. Needs no torch.

Each function takes what was recorded and what was published, and returns a figure with every value it shows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from iqa.errors import UserError
from iqa.figures.scores import Drawn
from iqa.figures.stages import draw_stage_weights
from iqa.figures.style import (
    PAGE_WIDTH,
    Bar,
    bars_height,
    draw_bars,
    new_figure,
    new_panels,
    published_legend,
)
from iqa.results import PublishedEntry, PublishedResults, Record, Recorded, dotted

# Parts of a network in the order they compute, with the words of the figure.
PARTS = {
    "backbone": "backbone",
    "content": "content vector",
    "fusion": "fusion",
    "reduce": "reduce",
    "hypernet": "HyperNet",
    "target_net": "TargetNet",
}
# Where each part is drawn: column from the left, row from the bottom.
PLACES = {
    "backbone": (0, 0.5),
    "fusion": (1.1, 1),
    "reduce": (2.15, 1),
    "hypernet": (3.15, 1),
    "content": (2.15, 0),
    "target_net": (4.15, 0.5),
}
ARROWS = (
    ("backbone", "fusion"),
    ("fusion", "reduce"),
    ("reduce", "hypernet"),
    ("hypernet", "target_net"),
    ("backbone", "content"),
    ("content", "target_net"),
)
CHANGED = "#DCEAF6"
NETWORK_HEIGHT = 1.75  # inches
# Quantity of `smart-iqa complexity` -> title; what is published of it.
COSTS = {
    "parameters": ("parameters (million)", "parameters_millions"),
    "macs": ("GMACs", "operations_g"),
    "latency": ("ms per image", None),  # the published latency names no machine
    "memory": ("peak memory (MB)", None),
}


def draw_architecture(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw networks under each other from their own shapes; parts that differ from the first one are shaded."""
    networks = [(record, i) for record in recorded.networks for i in range(len(record.rows("networks")))]
    if not networks:
        return None
    figure, all_axes = new_panels(PAGE_WIDTH, [NETWORK_HEIGHT] * len(networks))
    values: dict[str, dict] = {}
    first: dict[str, dict] = {}
    for axes, (record, i) in zip(all_axes, networks, strict=True):
        parts = {part: _part(record, i, part) for part in PARTS}
        first = first or parts
        changed = {part for part in PARTS if parts[part] != first[part]}
        name = str(record.field("networks", i, "name"))
        total = sum(part["parameters"] for part in parts.values())
        axes.set_title(f"{name}: {total / 1e6:.2f} M parameters", loc="left")
        draw_network(axes, parts, changed)
        values[name] = {"file": str(record.file), "field": f"networks.{i}", "parts": parts, "shaded": sorted(changed)}
    return Drawn(figure, values)


def _part(record: Record, network: int, part: str) -> dict:
    path = ("networks", network, "parts", part)
    return {
        "kind": str(record.field(*path, "kind")),
        "shapes": [_shape(record, (*path, "shapes", i)) for i in range(len(record.rows(*path, "shapes")))],
        "parameters": record.finite(*path, "parameters"),
    }


def _shape(record: Record, path: tuple) -> list[int]:
    """Read the sides of one output; a single number has none."""
    sides = record.field(*path)
    if not isinstance(sides, list):
        raise UserError(f"{record.file}: field {dotted(path)!r} is {sides!r}, expected a list")
    return [int(record.finite(*path, i)) for i in range(len(sides))]


def draw_network(axes, parts: dict[str, dict], changed: Collection[str] = ()) -> None:
    """Draw boxes for the parts of a network and arrows for what flows between them.

    Args:
        axes: to draw on; `NETWORK_HEIGHT` inches high.
        parts: by name of `PARTS`: `kind`, output `shapes` without the batch, number of `parameters`.
        changed: parts to shade.
    """
    axes.set_axis_off()
    axes.set(xlim=(-0.48, 4.42), ylim=(-0.42, 1.5))
    boxes = {}
    for part, (x, y) in PLACES.items():
        shapes = ["×".join(map(str, shape)) or "1" for shape in parts[part]["shapes"]]
        millions = parts[part]["parameters"] / 1e6
        title = ": ".join(filter(None, (PARTS[part], parts[part]["kind"])))
        lines = [title, *_in_pairs(shapes), *([f"{millions:.2f} M"] if millions else [])]
        style = {"boxstyle": "round,pad=0.4", "facecolor": CHANGED if part in changed else "white", "linewidth": 0.8}
        boxes[part] = axes.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=6.2, bbox=style)
    for start, end in ARROWS:
        arrow = {"arrowstyle": "->", "patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
        axes.annotate("", xy=PLACES[end], xytext=PLACES[start], arrowprops=arrow | {"shrinkA": 1, "shrinkB": 1})


def _in_pairs(shapes: Sequence[str]) -> list[str]:
    """Put two shapes on a line, so that a box stays flat."""
    return ["  ".join(shapes[i : i + 2]) for i in range(0, len(shapes), 2)]


def draw_complexity(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw parameters, operations, latency and memory of every variant."""
    variants = [(record, i) for record in recorded.complexity for i in range(len(record.rows("variants")))]
    if not variants:
        return None
    several = len(recorded.complexity) > 1
    bars: dict[str, list[Bar]] = {cost: [] for cost in COSTS}
    values: dict[str, dict] = {}
    for record, i in variants:
        name = str(record.field("variants", i, "variant"))
        costs = variant_costs(record, i)
        label = f"{record.name} {name}" if several else name
        values[label] = {"file": str(record.file), "field": f"variants.{i}"}
        for cost, (value, low, high) in costs.items():
            bars[cost].append(Bar(label, value, low, high, f"{value:.3g}"))
            values[label][cost] = {"value": value, "low": low, "high": high}
    _add_published_costs(bars, values, published.get("complexity"))
    heights = bars_height(bars["parameters"])
    figure, all_axes = new_figure(PAGE_WIDTH, heights, columns=len(COSTS))
    for axes, (cost, (title, _)) in zip(all_axes, COSTS.items(), strict=True):
        draw_bars(axes, bars[cost], f"{title}, {_batch(variants)}" if cost == "latency" else title, absent="-")
        if axes is not all_axes[0]:
            axes.set_yticklabels([])
        axes.locator_params(axis="x", nbins=3)
    if any(bar.published for bar in bars["parameters"]):
        published_legend(figure)
    return Drawn(figure, values)


def variant_costs(record: Record, index: int) -> dict[str, tuple[float, float, float]]:
    """Read value and interval of each cost of one variant: millions, GMACs, ms per image (quartiles), MB."""
    path = ("variants", index)
    batch = smallest_batch(record, index)
    latency = (*path, "latency_ms_per_image", batch)
    quartiles = tuple(record.number(*latency, "quartiles", i) for i in range(2))
    return {
        "parameters": (record.number(*path, "parameters", "total") / 1e6, math.nan, math.nan),
        "macs": (record.number(*path, "macs") / 1e9, math.nan, math.nan),
        "latency": (record.number(*latency, "median"), *quartiles),
        "memory": (record.number(*path, "peak_memory_bytes") / 1e6, math.nan, math.nan),
    }


def smallest_batch(record: Record, index: int) -> str:
    """Find the smallest batch whose latency was measured."""
    batches = record.fields("variants", index, "latency_ms_per_image")
    if not all(batch.isdigit() for batch in batches):
        where = f"variants.{index}.latency_ms_per_image"
        raise UserError(f"{record.file}: field {where!r} has {', '.join(batches)}, expected batch sizes")
    return min(batches, key=int)


def _batch(variants: Sequence[tuple[Record, int]]) -> str:
    batches = dict.fromkeys(smallest_batch(record, i) for record, i in variants)
    return "batch " + ", ".join(batches)


def _add_published_costs(bars: dict[str, list[Bar]], values: dict, entry: PublishedEntry | None) -> None:
    """Add a row of published costs for every size of which a variant was measured."""
    sizes = {bar.label.split()[-1].partition(":")[0] for bar in bars["parameters"]}
    for size in [size for size in (entry.rows if entry else {}) if size in sizes]:
        values[f"{size} (published)"] = entry.cite(size)
        for cost, (_, key) in COSTS.items():
            value = math.nan if key is None else entry.rows[size][key]
            bars[cost].append(Bar(f"{size} (published)", value, text=f"{value:g}", published=True))
            if key is not None:
                values[f"{size} (published)"][cost] = {"value": value}


def draw_attention(recorded: Recorded, published: PublishedResults) -> Drawn | None:
    """Draw the mean weight of every stage by quality level, ± deviation."""
    weighed = {record.name: record for record in recorded.attention if has_stage_weights(record)}
    if not weighed:
        return None
    levels = {name: _levels(record) for name, record in weighed.items()}
    entry = published_attention(list(weighed.values()), published)
    values = {n: {"file": str(r.file), "field": "levels", "levels": levels[n]} for n, r in weighed.items()}
    if entry is not None:
        without_deviation = {level: row | {"std": [0.0] * len(row["mean"])} for level, row in entry.rows.items()}
        values["published"] = entry.cite("levels") | {"levels": without_deviation}
    return Drawn(draw_stage_weights(levels, entry), values)


def has_stage_weights(record: Record) -> bool:
    """Tell whether the analysis weighed stages; some fusions have no stage weights, and then no level has means."""
    return any("mean" in record.fields("levels", level) for level in record.fields("levels"))


def published_attention(weighed: Sequence[Record], published: PublishedResults) -> PublishedEntry | None:
    """Find the published stage weights, where an analysis is of the one fusion they are of."""
    return published.get("attention_by_level") if any(r.content.get("fusion") == "scale" for r in weighed) else None


def _levels(record: Record) -> dict[str, dict[str, list[float]]]:
    return {
        level: {key: [record.number("levels", level, key, i) for i in range(4)] for key in ("mean", "std")}
        for level in record.fields("levels")
    }
