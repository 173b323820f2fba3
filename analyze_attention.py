"""Which stages does the network weigh, and does that depend on quality?

    python analyze_attention.py --checkpoint results/demo --dataset demo --num_samples 16 --crops 10

Takes images from five quality levels (quantiles of mos), averages the stage weights of several crops of each,
and writes `attention_analysis.json`, `attention_analysis.md` and `attention_by_level.png` (`.pdf`). The
relation of weight and quality is measured (Spearman, with p and n), and nothing is said beyond that.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from data_loader import test_loader
from evaluate import read_databases, read_run_database, trained_test_table
from folders import DATABASES
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.evaluation import predict
from iqa.files import write_json
from iqa.plots import grouped_bars, save_figure
from iqa.runtime import provenance, start_logging
from models_swin import SmartIQA
from predict import Scorer, load_model, run_folder

LEVELS = ("Very Low", "Low", "Mid", "High", "Very High")
STAGES = tuple(f"stage {i}" for i in range(4))


class StageWeights(nn.Module):
    """Images (B, 3, H, W) -> score and the four stage weights of each: (B, 5)."""

    def __init__(self, model: SmartIQA):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, 5).

        Raises:
            UserError: the fusion has no stage weights.
        """
        inspected = self.model.inspect(images)
        if inspected.stage_weights is None:
            kind = type(self.model.fusion).__name__
            raise UserError(f"fusion {kind} has no stage weights to analyse: train with --attention_fusion")
        return torch.cat([inspected.scores[:, None], inspected.stage_weights], dim=1)


def sample_by_level(table: pd.DataFrame, samples: int, seed: int) -> pd.DataFrame:
    """Up to `samples` images of each fifth of the mos distribution, with a column `level`.

    Raises:
        UserError: fewer images than levels.
    """
    if len(table) < len(LEVELS):
        raise UserError(f"{len(table)} images are fewer than the {len(LEVELS)} quality levels")
    ranks = table["mos"].rank(method="first", pct=True).to_numpy()
    level = np.minimum((ranks * len(LEVELS) - 1e-9).astype(int), len(LEVELS) - 1)
    table = table.assign(level=pd.Categorical([LEVELS[i] for i in level], LEVELS, ordered=True))
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(rows)[:samples] for rows in table.groupby("level", observed=False).indices.values()]
    return table.iloc[np.sort(np.concatenate(chosen))].reset_index(drop=True)


def weigh_images(scorer: Scorer, table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns score and `stage 0`..`stage 3`: means over each image's crops."""
    loader = scorer.accelerator.prepare(test_loader(table, scorer.config))
    values = predict(StageWeights(scorer.model), loader, scorer.to_images, scorer.accelerator, "attention")
    return table.assign(score=values[:, 0], **dict(zip(STAGES, values[:, 1:].T, strict=True)))


def by_level(table: pd.DataFrame) -> dict[str, dict]:
    """Per level: n, mean mos and score, mean and deviation of each stage's weight."""
    return {
        level: {
            "n": len(rows),
            "mos": rows["mos"].mean(),
            "score": rows["score"].mean(),
            "mean": rows[list(STAGES)].mean().tolist(),
            "std": rows[list(STAGES)].std(ddof=1).tolist(),
        }
        for level, rows in table.groupby("level", observed=False)
    }


def trends(table: pd.DataFrame) -> dict[str, dict]:
    """Spearman correlation between mos and each stage's weight, with p and n."""
    found = {stage: spearmanr(table["mos"], table[stage]) for stage in STAGES}
    return {stage: {"srcc": t.statistic, "p": t.pvalue, "n": len(table)} for stage, t in found.items()}


def in_words(trend: dict[str, dict], alpha: float = 0.05) -> list[str]:
    """One sentence a stage, saying what its test carries and no more (Bonferroni over the stages)."""
    sentences = []
    for stage, values in trend.items():
        measured = f"SRCC {values['srcc']:+.3f}, p = {values['p']:.2g}, n = {values['n']}"
        if values["p"] * len(trend) < alpha:
            direction = "rises" if values["srcc"] > 0 else "falls"
            sentences.append(f"The weight of {stage} {direction} with quality ({measured}).")
        else:
            sentences.append(f"No relation of the weight of {stage} to quality is shown ({measured}).")
    return sentences


def markdown_table(levels: dict[str, dict]) -> str:
    """Mean +- deviation of each stage's weight by level."""
    lines = ["| level | n | mos | score | " + " | ".join(STAGES) + " |", "|" + "---|" * (4 + len(STAGES))]
    for level, row in levels.items():
        cells = [f"{mean:.4f} ± {std:.4f}" for mean, std in zip(row["mean"], row["std"], strict=True)]
        lines.append(f"| {level} | {row['n']} | {row['mos']:.1f} | {row['score']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Analyse the stage weights of a run by quality level.")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="folder of a run")
    parser.add_argument("--dataset", required=True, choices=DATABASES, metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--num_samples", type=int, default=16, help="images per quality level [16]")
    parser.add_argument("--crops", type=int, default=10, help="random crops per image [10]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--output", metavar="FOLDER", help="default: RUN/attention")
    return parser.parse_args()


def main() -> None:
    """Analyse as the command line says."""
    arguments = _parse_arguments()
    start_logging()
    if arguments.num_samples < 1 or arguments.crops < 1:
        raise UserError("--num_samples and --crops: expected at least 1")
    scorer = load_model(arguments.checkpoint, arguments.device, test_mode="random", test_patch_num=arguments.crops)
    run = run_folder(arguments.checkpoint)
    if arguments.dataset == scorer.config.dataset:
        database = read_run_database(scorer.config, arguments.data_root)
        table = trained_test_table(run, database)
    else:
        (database,) = read_databases([arguments.dataset], arguments.data_root, skip_bad_images=False)
        table = database.table
    table = weigh_images(scorer, sample_by_level(table, arguments.num_samples, scorer.config.seed))
    output = Path(arguments.output or run / "attention")
    output.mkdir(parents=True, exist_ok=True)
    write_analysis(
        output,
        table,
        {"run": str(run), "dataset": database.name, "config": dataclasses.asdict(scorer.config)},
    )


def write_analysis(output: Path, table: pd.DataFrame, made: dict) -> None:
    """Write the JSON, the Markdown table and the bar chart, and print the findings."""
    levels, trend = by_level(table), trends(table)
    images = table[["image", "mos", "score", "level", *STAGES]].astype({"level": str}).to_dict("records")
    record = made | {"provenance": provenance(), "levels": levels, "trends": trend, "images": images}
    write_json(output / "attention_analysis.json", record)
    text = markdown_table(levels) + "\n\n" + "\n".join(in_words(trend)) + "\n"
    (output / "attention_analysis.md").write_text(text)
    means = {stage: [row["mean"][i] for row in levels.values()] for i, stage in enumerate(STAGES)}
    spread = {stage: [row["std"][i] for row in levels.values()] for i, stage in enumerate(STAGES)}
    figure = grouped_bars(list(levels), means, spread, ylabel="stage weight", xlabel="quality level (fifths of mos)")
    save_figure(figure, output / "attention_by_level")
    print(text, end="")
    print(f"written to {output}")


if __name__ == "__main__":
    exit_on_user_error(main)
