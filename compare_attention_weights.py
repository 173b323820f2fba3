"""Does a stage of fusion make later attention sharper, and the predictions better?

    python compare_attention_weights.py --checkpoint_full results/full --checkpoint_no_middle results/concat \
        --root_dir datasets --save_dir attention_comparison --num_samples 100 --batch_size 32

Compares a model with the stage (`full`) and one without it (`no_middle`) on the same samples, from either

- two runs of this project: Swin's window attention in every block, and the attention of the fusion `cross_scale`, on
  the same centre crops of the images that are in the test part of both. The backbone comes before the fusion, so a
  fusion can only sharpen it by what it makes the backbone learn;
- two `.npz` files of any model: `attention` (samples, queries, tokens) whose rows sum to 1, and where known `mask`
  (samples, tokens) or (samples, queries, tokens), true where a token counts, `error` (samples,), lower is better, and
  `group` (samples,), for example simple and complex. `examples/node_text_attention.py` makes such a pair.

Each row of attention is taken over the tokens that count and scaled to sum to 1 there; its entropy (nats), largest
weight, number of tokens over 0.1 and Gini coefficient are averaged over queries and heads to one value a sample.
Writes `attention_statistics.csv`, `attention_statistics_comparison.png`, `attention_heatmap_example_{1,2,3}.png` and
`comparison.json` with paired tests, effect sizes and the finding; `iqa.attention.finding` says what it means.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import zipfile
import zlib
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from folders import read_run_database
from iqa.attention import (
    FEWEST_SAMPLES,
    SIGNIFICANT,
    STATISTICS,
    THRESHOLD,
    check_attention,
    compare_paired,
    correlate,
    finding,
    row_statistics,
    sample_statistics,
)
from iqa.config import Config
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.results import provenance
from iqa.system import progress, start_logging, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from torch import Tensor

    from data_loader import CropDataset
    from iqa.attention import LayerAttention
    from smart_iqa.scorer import Scorer

log = logging.getLogger(__name__)

SEED = 0  # draws the samples
ENOUGH_SAMPLES = 100
MODELS = ("full", "no_middle")
CROSS_SCALE = "cross_scale"
TITLES = {
    "entropy": "entropy (nats)",
    "max_weight": "largest weight",
    "tokens_over_threshold": f"tokens over {THRESHOLD}",
    "gini": "Gini coefficient",
}
LEAST_SPAN = 0.02  # of a panel, relative to its values: what differs by less should not look different
EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)  # of the difference in entropy: neither the best nor the worst sample
# What decides which pixels the models see and what their scores are compared with.
SAME_SETTINGS = (
    "dataset", "data_path", "image_column", "mos_column", "mos_range", "lower_is_better", "resize", "patch_size"
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One model's attention on n samples."""

    layers: dict[str, dict[str, np.ndarray]]  # layer -> statistic -> (n,)
    tokens: dict[str, int]  # layer -> tokens in a row
    error: np.ndarray | None  # (n,), lower is better
    shown: np.ndarray  # (n, H, W): the map over the picture, or the matrix of queries and tokens, that a figure shows


@dataclass(frozen=True)
class Samples:
    """Two models on the same samples."""

    names: list[str]
    groups: np.ndarray | None  # (n,) of text
    models: dict[str, Measured]  # by MODELS
    crops: CropDataset | None  # the pictures, where the samples are pictures and `shown` are maps over them
    made: dict  # what the record says about them
    notes: list[str]


# --------------------------------------------------------------------------------------------------
# Two .npz files


def read_npz_pair(paths: dict[str, Path], num_samples: int | None) -> Samples:
    """Samples from two files.

    Raises:
        UserError: a file is missing or no .npz, an array is missing or bad, or the two do not fit together.
    """
    files = {model: _read_npz(path) for model, path in paths.items()}
    (full, no_middle), (first, second) = files.values(), paths.values()
    if full["attention"].shape != no_middle["attention"].shape:
        shapes = f"{full['attention'].shape} and {no_middle['attention'].shape}"
        raise UserError(f"{first} and {second} hold attention of shapes {shapes}: expected the same samples")
    groups = [file["group"] for file in (full, no_middle) if file["group"] is not None]
    if len(groups) == 2 and (groups[0] != groups[1]).any():
        sample = int(np.argmax(groups[0] != groups[1]))
        raise UserError(f"{first} and {second} put sample {sample} in different groups: expected the same samples")
    rows = _draw(len(full["attention"]), num_samples)
    files = {
        model: {name: None if a is None else a[rows] for name, a in arrays.items()} for model, arrays in files.items()
    }
    return Samples(
        names=[f"sample {row}" for row in rows],
        groups=groups[0][rows] if groups else None,
        models={model: _measure_arrays(arrays) for model, arrays in files.items()},
        crops=None,
        made={"samples_from": "npz", "groups": "the array `group`" if groups else None},
        notes=_npz_notes(files),
    )


def _read_npz(path: Path) -> dict[str, np.ndarray | None]:
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(("attention", "mask", "error", "group"))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .npz archive, or a part of one: write it with numpy.savez(path, attention=...)")
    try:
        with np.load(path, allow_pickle=False) as file:
            # A member that is no array comes as its bytes.
            arrays |= {name: np.asarray(file[name]) for name in arrays if name in file}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .npz: {' '.join(str(error).split())}") from error
    if arrays["attention"] is None:
        raise UserError(f"{path}: no array 'attention' (samples, queries, tokens)")
    attention, mask = check_attention(arrays["attention"], arrays["mask"], str(path))
    arrays |= {"attention": attention, "mask": mask}
    for name in ("error", "group"):
        if arrays[name] is not None and arrays[name].shape != attention.shape[:1]:
            raise UserError(f"{path}: {name} has shape {arrays[name].shape}, expected ({len(attention)},)")
    if arrays["group"] is not None:
        arrays["group"] = arrays["group"].astype(str)
    if arrays["error"] is not None:
        arrays["error"] = _checked_error(arrays["error"], path)
    return arrays


def _checked_error(error: np.ndarray, path: Path) -> np.ndarray:
    if error.dtype.kind not in "fiub" or not np.isfinite(error).all():
        raise UserError(f"{path}: error must hold finite numbers, one a sample")
    return error.astype(np.float64)


def _draw(available: int, wanted: int | None) -> np.ndarray:
    """Rows of the samples to use, in their order: all, or `wanted` of them drawn with a fixed seed."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return np.sort(np.random.default_rng(SEED).choice(available, wanted, replace=False))


def _measure_arrays(arrays: dict[str, np.ndarray | None]) -> Measured:
    attention, mask = arrays["attention"], arrays["mask"]
    shown = attention
    if mask is not None:
        shown = np.where(_by_query(mask), attention, np.nan)
    statistics = sample_statistics(attention, mask)
    return Measured({"attention": statistics}, {"attention": attention.shape[-1]}, arrays["error"], shown)


def _by_query(mask: np.ndarray) -> np.ndarray:
    """A mask (samples, tokens) or (samples, queries, tokens) as (samples, 1 or queries, tokens)."""
    return mask.reshape(len(mask), -1, mask.shape[-1])


def _npz_notes(files: dict[str, dict]) -> list[str]:
    notes = []
    masks = [file["mask"] for file in files.values()]
    if any(mask is None for mask in masks) != all(mask is None for mask in masks):
        notes.append("only one file has a mask: the two are measured over different tokens")
    elif masks[0] is not None and (_by_query(masks[0]) != _by_query(masks[1])).any():
        notes.append("the two masks differ: the two are measured over different tokens")
    missing = [model for model, file in files.items() if file["error"] is None]
    if missing:
        notes.append(f"no error is known for {' and '.join(missing)}: the finding needs it of both")
    return notes


# --------------------------------------------------------------------------------------------------
# Two runs


def read_run_pair(runs: dict[str, Path], root_dir: str | None, num_samples: int, batch_size: int) -> Samples:
    """Samples from two runs, on the same centre crops of images in the test part of both.

    Raises:
        UserError: no such run, no database, or two runs that do not see the same pictures alike.
    """
    from data_loader import CropDataset
    from iqa.attention import has_window_attention
    from smart_iqa.scorer import load_model

    scorers = {model: load_model(run, precision="fp32") for model, run in runs.items()}
    _check_same_settings(runs, {model: scorer.config for model, scorer in scorers.items()})
    table, notes = _common_test_table(runs, scorers["full"].config, root_dir)
    table = table.iloc[_draw(len(table), num_samples)].reset_index(drop=True)
    if (contents := table["content"].nunique()) < len(table):
        notes.append(
            f"the {len(table)} images show {contents} contents: tests take images as independent, so p is too small"
        )
    config = dataclasses.replace(scorers["full"].config, test_mode="center", test_patch_num=1)
    crops = CropDataset(table, config)
    models, complexity = measure_runs(scorers, crops, batch_size)
    median = float(np.median(complexity))
    return Samples(
        names=list(table["image"]),
        groups=np.where(complexity <= median, "simple", "complex"),
        models=models,
        crops=crops if all(has_window_attention(s.model.backbone) for s in scorers.values()) else None,
        made={
            "samples_from": f"test part of {config.dataset}",
            "crops": f"centre, {config.patch_size} px, after resize {config.resize}",
            "error": "|score - mos|",
            "groups": f"simple: spatial information of the crop (ITU-T P.910) at most the median, {median:.4g}",
        },
        notes=notes,
    )


def _check_same_settings(runs: dict[str, Path], configs: dict[str, Config]) -> None:
    for name in SAME_SETTINGS:
        values = [getattr(config, name) for config in configs.values()]
        if values[0] != values[1]:
            raise UserError(
                f"{runs['full']} has {name} {values[0]} and {runs['no_middle']} has {values[1]}: "
                "models are compared on the same pictures, prepared alike"
            )


def _common_test_table(runs: dict[str, Path], config: Config, root_dir: str | None) -> tuple[pd.DataFrame, list[str]]:
    """The images in the test part of both runs, and a note where the parts differ."""
    from smart_iqa.scorer import run_folder
    from smart_iqa.testing import trained_test_table

    database = read_run_database(config, root_dir)
    full, no_middle = (trained_test_table(run_folder(run), database) for run in runs.values())
    table = full[full["image"].isin(no_middle["image"])].reset_index(drop=True)
    if len(table) < FEWEST_SAMPLES:
        raise UserError(
            f"{runs['full']} and {runs['no_middle']} have {len(table)} test images in common, "
            f"at least {FEWEST_SAMPLES} are needed: train both with one seed"
        )
    if len(table) == len(full) == len(no_middle):
        return table, []
    return table, [f"the test parts differ ({len(full)} and {len(no_middle)} images): {len(table)} are in both"]


def measure_runs(
    scorers: dict[str, Scorer], crops: CropDataset, batch_size: int
) -> tuple[dict[str, Measured], np.ndarray]:
    """Both models on every image's crop, batch by batch.

    Args:
        scorers: the models.
        crops: the images, one crop each.
        batch_size: images at a time.

    Returns:
        The models' attention, and the complexity (n,) of the crops.
    """
    import torch

    parts: dict[str, list[dict]] = {model: [] for model in scorers}
    complexity: list[float] = []
    for start in progress(range(0, len(crops), batch_size), "compare attention"):
        batch = [crops[row] for row in range(start, min(start + batch_size, len(crops)))]
        complexity += [spatial_information(image.crops[0].numpy()) for image in batch]
        pixels = torch.stack([image.crops for image in batch])  # (B, 1, 3, H, W)
        unchanged = torch.stack([image.augment for image in batch])
        for model, scorer in scorers.items():
            device = scorer.accelerator.device
            parts[model].append(_measure_batch(scorer, scorer.to_images(pixels.to(device), unchanged.to(device))))
    return {model: _join(measured, crops.mos.double().numpy()) for model, measured in parts.items()}, np.array(
        complexity
    )


def _measure_batch(scorer: Scorer, images: Tensor) -> dict:
    """Scores (B,), statistics of each layer, tokens in its rows, and what a figure shows (B, H, W)."""
    import torch

    from iqa.attention import attention_rollout, collect_window_attention, has_window_attention

    model = scorer.model
    has_windows = has_window_attention(model.backbone)
    collecting = collect_window_attention(model.backbone.body) if has_windows else nullcontext([])
    with collecting as blocks, torch.inference_mode():
        inspected = model.inspect(images)
    layers = {f"stage {block.stage} block {block.block}": layer_statistics(block) for block in blocks}
    tokens = {f"stage {block.stage} block {block.block}": block.weights.shape[-1] for block in blocks}
    if scorer.config.fusion == CROSS_SCALE:
        attention = inspected.attention.cpu().numpy()  # (B, heads, 196, 196)
        layers[CROSS_SCALE] = sample_statistics(attention.reshape(len(attention), -1, attention.shape[-1]))
        tokens[CROSS_SCALE] = attention.shape[-1]
    if not layers:
        raise UserError(
            f"backbone {scorer.config.backbone} has no window attention and fusion {scorer.config.fusion} none "
            "among tokens: nothing to compare; analyze_attention.py shows any backbone by Grad-CAM"
        )
    shown = attention_rollout(blocks).cpu().numpy() if has_windows else attention.mean(axis=1)
    slope, offset = scorer.scales.get(scorer.config.dataset, (1.0, 0.0))  # of a model of several databases
    scores = (inspected.scores.double().cpu().numpy() - offset) / slope
    return {"scores": scores, "layers": layers, "tokens": tokens, "shown": shown}


def layer_statistics(layer: LayerAttention) -> dict[str, np.ndarray]:
    """The statistics of a block's rows, averaged over queries and heads: (B,) each.

    Padding is no query and counts as no token; nor do tokens across the seam of a shifted window.
    """
    is_real = (layer.positions >= 0).cpu().numpy()  # (windows, N)
    counts = layer.allowed.cpu().numpy()[is_real][:, None]  # (rows, 1, N)
    values: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for weights in layer.weights.cpu().numpy():  # (windows, heads, N, N) of one image: a batch would fill the memory
        rows = weights.transpose(0, 2, 1, 3)[is_real]  # (rows, heads, N)
        for name, statistic in row_statistics(rows, counts).items():
            values[name].append(statistic.mean())
    return {name: np.array(means) for name, means in values.items()}


def _join(batches: list[dict], mos: np.ndarray) -> Measured:
    """One Measured from its batches."""
    scores = np.concatenate([batch["scores"] for batch in batches])
    layers = {
        layer: {name: np.concatenate([batch["layers"][layer][name] for batch in batches]) for name in STATISTICS}
        for layer in batches[0]["layers"]
    }
    shown = np.concatenate([batch["shown"] for batch in batches])
    return Measured(layers, batches[0]["tokens"], np.abs(scores - mos), shown)


def spatial_information(crop: np.ndarray) -> float:
    """Spatial information of a crop (3, H, W), pixels 0..255: deviation of the luma's Sobel gradient.

    Source: ITU-T P.910, "Subjective video quality assessment methods for multimedia applications".
    """
    luma = np.tensordot((0.299, 0.587, 0.114), crop.astype(np.float64), axes=1)  # (H, W)
    gradient = np.hypot(ndimage.sobel(luma, axis=0), ndimage.sobel(luma, axis=1))
    return float(gradient[1:-1, 1:-1].std())  # the filter has no neighbours at the border


# --------------------------------------------------------------------------------------------------
# Comparison


def _kind(layer: str) -> str:
    return "window" if layer.startswith("stage ") else layer


def pooled_layers(models: dict[str, Measured]) -> tuple[dict[str, list[str]], list[str]]:
    """The layers whose mean stands for each model, and notes on what differs.

    They are the layers of every kind (window attention, cross_scale) that both models have: entropy grows with
    the number of tokens, so a kind that one model lacks would decide the comparison by itself.

    Raises:
        UserError: the models have no kind of attention in common.
    """
    kinds = set.intersection(*({_kind(layer) for layer in measured.layers} for measured in models.values()))
    if not kinds:
        has = " and ".join(", ".join(measured.layers) for measured in models.values())
        raise UserError(f"the two models have no kind of attention in common: {has}")
    pooled = {model: [layer for layer in m.layers if _kind(layer) in kinds] for model, m in models.items()}
    full, no_middle = models.values()
    notes = []
    for model, other in (MODELS, MODELS[::-1]):
        if alone := [layer for layer in models[model].layers if layer not in models[other].layers]:
            left_out = [layer for layer in alone if layer not in pooled[model]]
            where = "not in the means over layers" if left_out else "in the mean over its layers, in no test by layer"
            notes.append(f"only {model} has {', '.join(alone)}: {where}")
    for layer in full.layers:
        counts = [measured.tokens.get(layer) for measured in (full, no_middle)]
        if None not in counts and counts[0] != counts[1]:
            notes.append(f"{layer}: rows of {counts[0]} and {counts[1]} tokens, whose entropies have different ranges")
    return pooled, notes


def mean_over_layers(measured: Measured, layers: list[str]) -> dict[str, np.ndarray]:
    """Each statistic (n,) averaged over some layers."""
    return {name: np.mean([measured.layers[layer][name] for layer in layers], axis=0) for name in STATISTICS}


def compare(samples: Samples) -> tuple[dict, dict[str, dict[str, np.ndarray]]]:
    """All comparisons of two models.

    Returns:
        The record, JSON-ready, and each model's statistics (n,) averaged over layers.
    """
    pooled, notes = pooled_layers(samples.models)
    overall = {model: mean_over_layers(measured, pooled[model]) for model, measured in samples.models.items()}
    statistics = _compare_statistics(overall)
    errors = {model: measured.error for model, measured in samples.models.items()}
    error = None if any(e is None for e in errors.values()) else compare_paired(*errors.values())
    verdict = finding(statistics["entropy"], error)
    layers = _compare_layers(samples.models)
    groups = _compare_groups(overall, errors if error else None, samples.groups)
    return {
        "n": len(samples.names),
        "finding": verdict,
        "finding_in_words": _in_words(verdict, statistics["entropy"], error),
        "statistics": statistics,
        "error": error,
        "layers": layers,
        "groups": groups,
        "entropy_error_correlation": {
            model: correlate(overall[model]["entropy"], e) for model, e in errors.items() if e is not None
        },
        "notes": samples.notes + notes + _test_notes(statistics["entropy"], groups),
    }, overall


def _compare_statistics(values: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    return {name: compare_paired(values["full"][name], values["no_middle"][name]) for name in STATISTICS}


def _compare_layers(models: dict[str, Measured]) -> dict[str, dict]:
    """The comparison of each layer that both have; `p_fdr` is the t-test's p, adjusted over the layers."""
    common = [layer for layer in models["full"].layers if layer in models["no_middle"].layers]
    compared = {layer: _compare_statistics({m: v.layers[layer] for m, v in models.items()}) for layer in common}
    for name in STATISTICS:
        tests = [compared[layer][name]["ttest"] for layer in common if compared[layer][name]["ttest"]["p"] is not None]
        # Benjamini and Hochberg, 1995: of the layers called different, at most this share is expected to be wrong.
        adjusted = stats.false_discovery_control([test["p"] for test in tests]) if tests else []
        for test, p in zip(tests, adjusted, strict=True):
            test["p_fdr"] = float(p)
    return compared


def _compare_groups(overall: dict, errors: dict[str, np.ndarray] | None, groups: np.ndarray | None) -> dict[str, dict]:
    compared = {}
    for group in [] if groups is None else np.unique(groups):
        rows = groups == group
        compared[str(group)] = _compare_statistics(
            {model: {name: values[rows] for name, values in by_name.items()} for model, by_name in overall.items()}
        )
        compared[str(group)]["error"] = compare_paired(*(e[rows] for e in errors.values())) if errors else None
    return compared


def _test_notes(entropy: dict, groups: dict[str, dict]) -> list[str]:
    n, notes = entropy["n"], []
    if n < ENOUGH_SAMPLES:
        # Two-sided 5 % and a power of 80 %: (1.96 + 0.84) / sqrt(n), by the normal approximation.
        notes.append(
            f"warning: {n} samples, fewer than {ENOUGH_SAMPLES}: differences below d_z = {2.8 / n**0.5:.2f} "
            "are likely to be missed"
        )
    notes += [
        f"{where}: {entry['note']}"
        for where, entry in [("entropy", entropy), *((f"group {g}", s["entropy"]) for g, s in groups.items())]
        if entry["note"]
    ]
    p_t, p_w = entropy["ttest"]["p"], entropy["wilcoxon"]["p"]
    if p_t is not None and (p_t < SIGNIFICANT) != (p_w < SIGNIFICANT):
        notes.append(f"t-test and Wilcoxon disagree about the entropy at {SIGNIFICANT}: the t-test decides the finding")
    return notes


def _in_words(verdict: str, entropy: dict, error: dict | None) -> str:
    """The finding with the numbers that carry it."""
    p = entropy["ttest"]["p"]
    said = (
        f"{verdict}: entropy {entropy['full_mean']:.4f} against {entropy['no_middle_mean']:.4f} nats without the stage"
        f" ({_percent(entropy)}, paired t-test {_p(p)}, n = {entropy['n']}); "
    )
    if error is None:
        return said + "the error is not known"
    return said + (
        f"error {error['full_mean']:.4g} against {error['no_middle_mean']:.4g} ({_percent(error)}, "
        f"{_p(error['ttest']['p'])}; the finding takes the mean only)"
    )


def _percent(comparison: dict) -> str:
    percent = comparison["difference_percent"]
    if percent is None:
        return "no percentage of 0"
    return f"{percent:+.1f} %" if abs(percent) >= 0.1 or percent == 0 else f"{percent:+.1g} %"


def _p(p: float | None) -> str:
    if p is None:
        return "p not defined"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


# --------------------------------------------------------------------------------------------------
# Output


def statistics_table(samples: Samples, overall: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """A row for every sample, model and layer; of several layers, `all` is the mean that is compared."""
    tables = []
    for model, measured in samples.models.items():
        layers = {"all": overall[model], **measured.layers} if len(measured.layers) > 1 else measured.layers
        for layer, values in layers.items():
            columns = {"sample": samples.names, "group": samples.groups, "model": model, "layer": layer}
            tables.append(pd.DataFrame(columns | values | {"error": measured.error}))
    return pd.concat([t.dropna(axis=1, how="all") for t in tables]).reindex(columns=tables[0].columns)


def draw_comparison(record: dict, overall: dict[str, dict[str, np.ndarray]]) -> Figure:
    """A panel for each statistic with both models' samples; below it the entropy by layer, where there are several."""
    import matplotlib.pyplot as plt

    from iqa.figures import PAGE_WIDTH

    panels = [list(STATISTICS)] + ([["layers"] * len(STATISTICS)] if len(record["layers"]) > 1 else [])
    figure, axes = plt.subplot_mosaic(panels, figsize=(PAGE_WIDTH, 2.6 * len(panels)))
    for name in STATISTICS:
        _draw_boxes(axes[name], name, overall, record["statistics"][name])
    if "layers" in axes:
        _draw_layers(axes["layers"], record["layers"])
    figure.suptitle(f"{record['finding']}, n = {record['n']}: box = quartiles, whiskers = 5 % and 95 %, diamond = mean")
    return figure


def _draw_boxes(axes: Axes, name: str, overall: dict[str, dict[str, np.ndarray]], comparison: dict) -> None:
    from iqa.figures import COLOURS

    boxes = axes.boxplot(
        [overall[model][name] for model in MODELS], tick_labels=MODELS, widths=0.6, whis=(5, 95), showfliers=False,
        showmeans=True, patch_artist=True, medianprops={"color": "black"},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
    )  # fmt: skip
    for box, colour, hatch in zip(boxes["boxes"], COLOURS, ("", "//"), strict=False):
        box.set(facecolor=colour, hatch=hatch)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, LEAST_SPAN * abs(low + high) / 4)
    axes.set_ylim(middle - half, middle + half)
    axes.set_title(f"{TITLES[name]}\n{_percent(comparison)}, {_p(comparison['ttest']['p'])}")
    axes.grid(axis="x", visible=False)


def _draw_layers(axes: Axes, layers: dict[str, dict]) -> None:
    """The paired difference in entropy in every layer that both models have."""
    from iqa.figures import COLOURS

    # Short, since Swin-Base has 24 blocks: "stage 2 block 13" -> "2.13".
    names = [layer.removeprefix("stage ").replace(" block ", ".").replace("_", "\n") for layer in layers]
    for place, layer in enumerate(layers.values()):
        entropy = layer["entropy"]
        mean = entropy["difference"]
        low, high = entropy["difference_ci95"] or (mean, mean)
        axes.errorbar(
            place, mean, [[mean - low], [high - mean]], fmt="o", markersize=4, linewidth=1, capsize=3, color=COLOURS[0]
        )
        if entropy["ttest"].get("p_fdr", 1.0) < SIGNIFICANT:
            names[place] += "*"
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="stage.block", ylabel="difference (nats)")
    axes.set_title(
        "entropy by layer, full - no_middle: mean, 95 % interval; * = not 0 at a false discovery rate of 5 %"
    )
    axes.grid(axis="x", visible=False)


def example_rows(overall: dict[str, dict[str, np.ndarray]]) -> list[int]:
    """Three different samples: at the 10th, 50th and 90th percentile of the difference in entropy."""
    order = np.argsort(overall["full"]["entropy"] - overall["no_middle"]["entropy"], kind="stable")
    last = len(order) - 1
    middle = round(EXAMPLE_QUANTILES[1] * last)
    return [
        int(order[min(round(EXAMPLE_QUANTILES[0] * last), middle - 1)]),
        int(order[middle]),
        int(order[max(round(EXAMPLE_QUANTILES[2] * last), middle + 1)]),
    ]


def draw_example(samples: Samples, overall: dict[str, dict[str, np.ndarray]], row: int, quantile: float) -> Figure:
    """One sample's attention in both models, on one colour scale; a picture's beside the picture."""
    import matplotlib.pyplot as plt

    from iqa.figures import PAGE_WIDTH, shorten

    shown = {model: measured.shown[row] for model, measured in samples.models.items()}
    crop = None if samples.crops is None else samples.crops[row].crops[0].permute(1, 2, 0).numpy()
    figure, axes = plt.subplots(1, 2 + (crop is not None), figsize=(PAGE_WIDTH, 2.9), squeeze=False)
    panels = list(axes[0])
    if crop is not None:
        panels[0].imshow(crop)
        panels[0].set_title("crop")
        # 1 is what every place would have if all counted alike.
        shown = {model: values * values.size for model, values in shown.items()}
    limits = _limits(shown.values(), is_map=crop is not None)
    for axis, (model, values) in zip(panels[-2:], shown.items(), strict=True):
        image = _draw_map(axis, values, crop, limits) if crop is not None else _draw_matrix(axis, values, limits)
        axis.set_title(f"{model}: entropy {overall[model]['entropy'][row]:.3f} nats{_error_text(samples, model, row)}")
    for axis in panels:
        axis.grid(visible=False)
    if crop is not None:
        for axis in panels:
            axis.set_axis_off()
    label = "attention rollout, times an even spread" if crop is not None else "attention weight"
    bar = figure.colorbar(image, ax=panels, label=label, shrink=0.8, extend="both" if crop is not None else "neither")
    bar.formatter.set_useOffset(False)  # 0.998 is read, 9.98e-1 plus an offset is not
    group = "" if samples.groups is None else f", {samples.groups[row]}"
    percentile = f"{100 * quantile:.0f}th percentile of the difference in entropy"
    figure.suptitle(f"{shorten(samples.names[row], 48)}{group}: {percentile}")
    return figure


def _error_text(samples: Samples, model: str, row: int) -> str:
    error = samples.models[model].error
    return "" if error is None else f"\nerror {error[row]:.3g}"


def _limits(shown: Collection[np.ndarray], is_map: bool) -> tuple[float, float]:
    """The ends of both models' colours: of maps the 1st and 99th percentile, of weights 0 and the largest."""
    values = np.concatenate([values.ravel() for values in shown])
    if not is_map:
        return 0.0, float(np.nanmax(values))
    low, high = np.quantile(values, (0.01, 0.99))
    return float(low), max(float(high), float(low) + 1e-6)


def _draw_map(axes: Axes, values: np.ndarray, crop: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """A map over the grey picture."""
    axes.imshow(crop.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    H, W = crop.shape[:2]
    return axes.imshow(
        values, "viridis", vmin=limits[0], vmax=limits[1], alpha=0.6, extent=(-0.5, W - 0.5, H - 0.5, -0.5)
    )


def _draw_matrix(axes: Axes, values: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """Queries by tokens; tokens that do not count stay grey."""
    axes.set_facecolor("0.85")
    axes.set(xlabel="token", ylabel="query")
    axes.locator_params(integer=True)
    low, high = limits
    return axes.imshow(values, "viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")


def summary_table(record: dict) -> str:
    """The comparison as an aligned text table."""
    rows = []
    compared = record["statistics"] | ({"error": record["error"]} if record["error"] else {})
    for name, c in compared.items():
        p_t, p_w = c["ttest"]["p"], c["wilcoxon"]["p"]
        cells = {"": name, "full": f"{c['full_mean']:.4f}", "no_middle": f"{c['no_middle_mean']:.4f}"}
        cells |= {"difference": _percent(c), "t-test": _p(p_t), "Wilcoxon": _p(p_w)}
        for key, title in (("cohens_dz", "d_z"), ("rank_biserial", "rank-biserial")):
            cells[title] = "-" if c[key] is None else f"{c[key]:+.2f}"
        rows.append(cells)
    return pd.DataFrame(rows).to_string(index=False)


def write_comparison(save_dir: Path, samples: Samples, inputs: dict) -> None:
    """Write the six files and print what was found."""
    import matplotlib.pyplot as plt

    from iqa.figures import STYLE

    record, overall = compare(samples)
    save_dir.mkdir(parents=True, exist_ok=True)
    table = statistics_table(samples, overall)
    write_atomically(save_dir / "attention_statistics.csv", lambda file: table.to_csv(file, index=False))
    rows = example_rows(overall)
    with plt.rc_context(STYLE):
        _save_png(draw_comparison(record, overall), save_dir / "attention_statistics_comparison.png")
        for i, (row, quantile) in enumerate(zip(rows, EXAMPLE_QUANTILES, strict=True), 1):
            figure = draw_example(samples, overall, row, quantile)
            _save_png(figure, save_dir / f"attention_heatmap_example_{i}.png")
    examples = [samples.names[row] for row in rows]
    made = inputs | samples.made | {"seed": SEED, "threshold": THRESHOLD, "examples": examples}
    write_json(save_dir / "comparison.json", {"inputs": made} | record | {"provenance": provenance()})
    for note in record["notes"]:
        log.warning("%s", note)
    print(summary_table(record))
    print(record["finding_in_words"])
    print(f"written to {save_dir}")


def _save_png(figure: Figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    plt.close(figure)


# --------------------------------------------------------------------------------------------------
# Command


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Compare the attention of two models on the same samples.")
    both = "folder of a run, or an .npz file of attention"
    parser.add_argument("--checkpoint_full", required=True, type=Path, metavar="RUN", help=f"with the stage: {both}")
    parser.add_argument("--checkpoint_no_middle", required=True, type=Path, metavar="RUN", help=f"without it: {both}")
    parser.add_argument("--root_dir", help="runs: holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--save_dir", required=True, type=Path, help="folder to write to")
    parser.add_argument("--num_samples", type=int, help="samples, drawn with a fixed seed [runs: 100, .npz: all]")
    parser.add_argument("--batch_size", type=int, default=32, help="runs: images at a time [32]")
    return parser


def _read_samples(arguments: argparse.Namespace) -> Samples:
    paths = dict(zip(MODELS, (arguments.checkpoint_full, arguments.checkpoint_no_middle), strict=True))
    are_npz = [path.suffix == ".npz" for path in paths.values()]
    if any(are_npz) != all(are_npz):
        raise UserError(f"{paths['full']} and {paths['no_middle']}: give two runs or two .npz files")
    if all(are_npz):
        return read_npz_pair(paths, arguments.num_samples)
    return read_run_pair(paths, arguments.root_dir, arguments.num_samples or ENOUGH_SAMPLES, arguments.batch_size)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the command line says."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    for name, least in (("num_samples", FEWEST_SAMPLES), ("batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: at least {least}")
    if (arguments.save_dir / "comparison.json").exists():
        raise UserError(f"{arguments.save_dir} holds a comparison: name another folder with --save_dir")
    samples = _read_samples(arguments)
    if len(samples.names) < FEWEST_SAMPLES:
        raise UserError(
            f"{arguments.checkpoint_full}: {len(samples.names)} samples, at least {FEWEST_SAMPLES} are needed"
        )
    inputs = {f"checkpoint_{model}": str(getattr(arguments, f"checkpoint_{model}")) for model in MODELS}
    write_comparison(arguments.save_dir, samples, inputs)


if __name__ == "__main__":
    exit_on_user_error(main)
