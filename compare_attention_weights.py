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

import dataclasses
import logging
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import ndimage

from folders import read_run_database
from iqa.attention import (
    ENOUGH_SAMPLES,
    FEWEST_SAMPLES,
    MODELS,
    SEED,
    SIGNIFICANT,
    STATISTICS,
    THRESHOLD,
    Measured,
    Samples,
    compare_models,
    draw_samples,
    p_text,
    percent_text,
    read_npz_pair,
    row_statistics,
    sample_statistics,
)
from iqa.config import Config
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.results import provenance
from iqa.system import progress, spreadsheet_safe, start_logging, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from data_loader import CropDataset
    from iqa.attention import LayerAttention
    from smart_iqa.scorer import Scorer

log = logging.getLogger(__name__)

CROSS_SCALE = "cross_scale"
TITLES = {
    "entropy": "entropy (nats)",
    "max_weight": "largest weight",
    "tokens_over_threshold": f"tokens over {THRESHOLD}",
    "gini": "Gini coefficient",
}
EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)  # of the difference in entropy: neither the best nor the worst sample
# What decides which pixels the models see and what their scores are compared with.
SAME_SETTINGS = (
    "dataset", "data_path", "image_column", "mos_column", "mos_range", "lower_is_better", "resize", "patch_size"
)  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Two runs


def read_run_pair(runs: dict[str, Path], root_dir: str | None, num_samples: int, batch_size: int) -> Samples:
    """Measure two runs on the same centre crops of the images that are in the test part of both.

    Raises:
        UserError: a run or the database is missing, or the two runs do not prepare images alike.
    """
    from data_loader import CropDataset
    from iqa.attention import has_window_attention
    from smart_iqa.scorer import load_model

    scorers = {model: load_model(run, precision="fp32") for model, run in runs.items()}
    _check_same_settings(runs, {model: scorer.config for model, scorer in scorers.items()})
    table, notes = _common_test_table(runs, scorers["full"].config, root_dir)
    table = table.iloc[draw_samples(len(table), num_samples)].reset_index(drop=True)
    if (contents := table["content"].nunique()) < len(table):
        notes.append(
            f"the {len(table)} images show {contents} contents: tests take images as independent, so p is too small"
        )
    config = dataclasses.replace(scorers["full"].config, test_mode="center", test_patch_num=1)
    crops = CropDataset(table, config)
    models, complexity = measure_runs(scorers, crops, batch_size)
    median = float(np.median(complexity))
    are_maps = all(has_window_attention(scorer.model.backbone) for scorer in scorers.values())
    return Samples(
        names=list(table["image"]),
        groups=np.where(complexity <= median, "simple", "complex"),
        models=models,
        crop=(lambda row: crops[row].crops[0].permute(1, 2, 0).numpy()) if are_maps else None,
        inputs={
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
                "models are compared on the same images, prepared alike"
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
    """Measure both models on every image's crop, batch by batch.

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
    mos = crops.labels.mos.double().numpy()
    return {model: _join(measured, mos) for model, measured in parts.items()}, np.array(complexity)


def _measure_batch(scorer: Scorer, images: Tensor) -> dict:
    """Scores (B,), statistics of each layer, tokens in its rows, and what a figure shows (B, H, W)."""
    import torch

    from iqa.attention import attention_rollout, collect_window_attention, has_window_attention

    model = scorer.model
    has_windows = has_window_attention(model.backbone)
    collected = collect_window_attention(model.backbone.body) if has_windows else nullcontext([])
    with collected as blocks, torch.inference_mode():
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
    """Measure a block's rows, averaged over queries and heads: each statistic (B,).

    Padding is neither a query nor a token; tokens across the seam of a shifted window do not count either.
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
    """Measure the spatial information of a crop (3, H, W), pixels 0..255: deviation of the luma's Sobel gradient.

    Source: ITU-T P.910, "Subjective video quality assessment methods for multimedia applications".
    """
    luma = np.tensordot((0.299, 0.587, 0.114), crop.astype(np.float64), axes=1)  # (H, W)
    gradient = np.hypot(ndimage.sobel(luma, axis=0), ndimage.sobel(luma, axis=1))
    return float(gradient[1:-1, 1:-1].std())  # the filter has no neighbours at the border


# --------------------------------------------------------------------------------------------------
# Output


def statistics_table(samples: Samples, overall: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Make a row for every sample, model and layer; of several layers, `all` is the mean that is compared."""
    tables = []
    for model, measured in samples.models.items():
        layers = {"all": overall[model], **measured.layers} if len(measured.layers) > 1 else measured.layers
        for layer, values in layers.items():
            columns = {"sample": samples.names, "group": samples.groups, "model": model, "layer": layer}
            tables.append(pd.DataFrame(columns | values | {"error": measured.error}))
    return pd.concat([t.dropna(axis=1, how="all") for t in tables]).reindex(columns=tables[0].columns)


def draw_statistics(record: dict, overall: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draw both models' samples of each statistic, and the difference in entropy by layer."""
    from iqa.figures import LayerDifference, draw_attention_comparison

    statistics = {}
    for name in STATISTICS:
        compared = record["statistics"][name]
        title = f"{TITLES[name]}\n{percent_text(compared)}, {p_text(compared['ttest']['p'])}"
        statistics[title] = {model: overall[model][name] for model in MODELS}
    layers = []
    for layer, by_statistic in record["layers"].items():
        # Short, since Swin-Base has 24 blocks: "stage 2 block 13" -> "2.13".
        name = layer.removeprefix("stage ").replace(" block ", ".").replace("_", "\n")
        entropy = by_statistic["entropy"]
        mean = entropy["difference"]
        low, high = entropy["difference_ci95"] or (mean, mean)
        layers.append(LayerDifference(name, mean, low, high, entropy["ttest"].get("p_fdr", 1.0) < SIGNIFICANT))
    said = f"{record['finding']}, n = {record['n']}: box = quartiles, whiskers = 5 % and 95 %, diamond = mean"
    return draw_attention_comparison(said, statistics, layers)


def example_rows(overall: dict[str, dict[str, np.ndarray]]) -> list[int]:
    """Choose three different samples: at the 10th, 50th and 90th percentile of the difference in entropy."""
    order = np.argsort(overall["full"]["entropy"] - overall["no_middle"]["entropy"], kind="stable")
    last = len(order) - 1
    middle = round(EXAMPLE_QUANTILES[1] * last)
    return [
        int(order[min(round(EXAMPLE_QUANTILES[0] * last), middle - 1)]),
        int(order[middle]),
        int(order[max(round(EXAMPLE_QUANTILES[2] * last), middle + 1)]),
    ]


def draw_sample(samples: Samples, overall: dict[str, dict[str, np.ndarray]], row: int, quantile: float) -> Figure:
    """Draw one sample's attention in both models; where it is an image, beside its crop."""
    from iqa.figures import draw_example, shorten

    shown = {model: measured.shown[row] for model, measured in samples.models.items()}
    crop = None if samples.crop is None else samples.crop(row)
    if crop is not None:
        # 1 is what every place would have if all counted alike.
        shown = {model: shares * shares.size for model, shares in shown.items()}
    captions = {}
    for model, measured in samples.models.items():
        error = "" if measured.error is None else f"\nerror {measured.error[row]:.3g}"
        captions[model] = f"{model}: entropy {overall[model]['entropy'][row]:.3f} nats{error}"
    group = "" if samples.groups is None else f", {samples.groups[row]}"
    percentile = f"{100 * quantile:.0f}th percentile of the difference in entropy"
    return draw_example(f"{shorten(samples.names[row], 48)}{group}: {percentile}", shown, captions, crop)


def summary_table(record: dict) -> str:
    """Write the comparison as an aligned text table."""
    rows = []
    compared = record["statistics"] | ({"error": record["error"]} if record["error"] else {})
    for name, c in compared.items():
        p_t, p_w = c["ttest"]["p"], c["wilcoxon"]["p"]
        cells = {"": name, "full": f"{c['full_mean']:.4f}", "no_middle": f"{c['no_middle_mean']:.4f}"}
        cells |= {"difference": percent_text(c), "t-test": p_text(p_t), "Wilcoxon": p_text(p_w)}
        for key, title in (("cohens_dz", "d_z"), ("rank_biserial", "rank-biserial")):
            cells[title] = "-" if c[key] is None else f"{c[key]:+.2f}"
        rows.append(cells)
    return pd.DataFrame(rows).to_string(index=False)


def compare_attention(
    checkpoint_full: str | Path,
    checkpoint_no_middle: str | Path,
    save_dir: str | Path,
    root_dir: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 32,
) -> dict:
    """Compare the attention of two models on the same samples and write the six files.

    Args:
        checkpoint_full: the model with the stage: folder of a run, or an .npz file of attention.
        checkpoint_no_middle: the model without it, of the same kind.
        save_dir: folder to write to; one that holds a comparison is refused.
        root_dir: holds a folder per database, for runs.
        num_samples: samples to draw; default 100 for runs, all for .npz files.
        batch_size: images at a time, for runs.

    Returns:
        The record, as in `comparison.json`.

    Raises:
        UserError: an input is missing or bad, or the two models do not fit together.
    """
    paths, save_dir = (
        dict(zip(MODELS, (Path(checkpoint_full), Path(checkpoint_no_middle)), strict=True)),
        Path(save_dir),
    )
    for name, value, least in (("num_samples", num_samples, FEWEST_SAMPLES), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: at least {least}")
    if (save_dir / "comparison.json").exists():
        raise UserError(f"{save_dir} holds a comparison: name another folder with --save_dir")
    samples = _read_samples(paths, root_dir, num_samples, batch_size)
    if len(samples.names) < FEWEST_SAMPLES:
        raise UserError(f"{paths['full']}: {len(samples.names)} samples, at least {FEWEST_SAMPLES} are needed")
    inputs = {f"checkpoint_{model}": str(path) for model, path in paths.items()}
    return write_comparison(save_dir, samples, inputs)


def _read_samples(paths: dict[str, Path], root_dir: str | None, num_samples: int | None, batch_size: int) -> Samples:
    are_npz = [path.suffix == ".npz" for path in paths.values()]
    if any(are_npz) != all(are_npz):
        raise UserError(f"{paths['full']} and {paths['no_middle']}: give two runs or two .npz files")
    if all(are_npz):
        return read_npz_pair(paths, num_samples)
    return read_run_pair(paths, root_dir, num_samples or ENOUGH_SAMPLES, batch_size)


def write_comparison(save_dir: Path, samples: Samples, inputs: dict) -> dict:
    """Write the six files, print what was found, and return the record."""
    record, overall = compare_models(samples)
    save_dir.mkdir(parents=True, exist_ok=True)
    table = statistics_table(samples, overall)
    write_atomically(
        save_dir / "attention_statistics.csv", lambda file: spreadsheet_safe(table).to_csv(file, index=False)
    )
    rows = example_rows(overall)
    _save_png(draw_statistics(record, overall), save_dir / "attention_statistics_comparison.png")
    for i, (row, quantile) in enumerate(zip(rows, EXAMPLE_QUANTILES, strict=True), 1):
        _save_png(draw_sample(samples, overall, row, quantile), save_dir / f"attention_heatmap_example_{i}.png")
    examples = [samples.names[row] for row in rows]
    inputs = inputs | samples.inputs | {"seed": SEED, "threshold": THRESHOLD, "examples": examples}
    record = {"inputs": inputs} | record | {"provenance": provenance()}
    write_json(save_dir / "comparison.json", record)
    for note in record["notes"]:
        log.warning("%s", note)
    print(summary_table(record))
    print(record["finding_in_words"])
    print(f"written to {save_dir}")
    return record


def _save_png(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


# --------------------------------------------------------------------------------------------------
# Command


def make_parser() -> Parser:
    """Name the command's flags; what is not given is left to `compare_attention`."""
    parser = Parser(description="Compare the attention of two models on the same samples.", argument_default=SUPPRESS)
    both = "folder of a run, or an .npz file of attention"
    parser.add_argument("--checkpoint_full", required=True, type=Path, metavar="RUN", help=f"with the stage: {both}")
    parser.add_argument("--checkpoint_no_middle", required=True, type=Path, metavar="RUN", help=f"without it: {both}")
    parser.add_argument("--root_dir", help="runs: holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--save_dir", required=True, type=Path, help="folder to write to")
    parser.add_argument("--num_samples", type=int, help="samples, drawn with a fixed seed [runs: 100, .npz: all]")
    parser.add_argument("--batch_size", type=int, help="runs: images at a time [32]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Compare as the command line says."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    compare_attention(**vars(arguments))


if __name__ == "__main__":
    exit_on_user_error(main)
