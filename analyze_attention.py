"""Which stages does the network weigh, does that depend on quality, and where in an image does it look?

    python analyze_attention.py --checkpoint results/demo --dataset demo --num_samples 16 --crops 10

Takes images from five quality levels (quantiles of mos), averages the stage weights of several crops of each,
and writes `attention_analysis.json`, `attention_analysis.md`, `attention_by_level.png`, `attention_distribution.png`
(both also `.pdf`; the second by `--group_by` or by level) and `panels/`: for some images of each level the image,
its stage weights, Grad-CAM and, for Swin, attention rollout. A fusion without stage weights gives the maps only. The
relation of weight and quality is measured (Spearman, with p and n), and nothing is said beyond that. What an earlier
analysis wrote into the same folder is replaced.

An image's maps are those of crops that cover it, half a crop apart, put back at their places and averaged where
they overlap, as its score is the mean over crops.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from folders import DATABASES
from iqa.choices import DEVICES
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.metrics import QUALITY_LEVELS, quality_levels
from iqa.results import PublishedEntry, markdown_table, provenance, read_published
from iqa.system import progress, start_logging, write_json

if TYPE_CHECKING:
    from smart_iqa.scorer import Scorer

LONGEST_NAME = 44  # characters that fit over a panel of two images

STAGES = tuple(f"stage {i}" for i in range(4))
PUBLISHED_FUSION = "scale"  # the one kind whose weights are published
MOST_GROUPS = 100  # a figure of more could not be read
ALPHA = 0.05


# --------------------------------------------------------------------------------------------------
# Images and their weights


def with_groups(table: pd.DataFrame, column: str, database: str) -> pd.DataFrame:
    """Add a column `group` to a table: the values of `column` as text, `(none)` where empty.

    Raises:
        UserError: there is no such column, or nothing in it.
    """
    if column not in table:
        near = difflib.get_close_matches(column, table.columns, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"--group_by {column}: {database} has no such column{meant} Known: {', '.join(table.columns)}")
    group = table[column].fillna("").astype(str)
    if (group == "").all():
        raise UserError(f"--group_by {column}: the column is empty in {database}")
    return table.assign(group=group.replace("", "(none)"))


def sample_by_level(table: pd.DataFrame, samples: int, seed: int) -> pd.DataFrame:
    """Draw up to `samples` images of each quality level, and name it in a column `level`.

    Raises:
        UserError: fewer images than levels.
    """
    if len(table) < len(QUALITY_LEVELS):
        raise UserError(f"{len(table)} images are fewer than the {len(QUALITY_LEVELS)} quality levels")
    table = table.assign(level=pd.Categorical(quality_levels(table["mos"]), QUALITY_LEVELS, ordered=True))
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(rows)[:samples] for rows in table.groupby("level", observed=True).indices.values()]
    return table.iloc[np.sort(np.concatenate(chosen))].reset_index(drop=True)


def weigh_images(scorer: Scorer, table: pd.DataFrame) -> pd.DataFrame:
    """Add columns score and, where there are weights, `stage 0`..`stage 3` to a table: means over the crops."""
    from iqa.evaluation import predict
    from smart_iqa.probes import StageWeights

    values = predict(
        StageWeights(scorer.model), scorer.loader(table), scorer.to_images, scorer.accelerator, "attention"
    )
    stages = STAGES[: values.shape[1] - 1]
    return table.assign(score=values[:, 0], **dict(zip(stages, values[:, 1:].T, strict=True)))


def has_weights(table: pd.DataFrame) -> bool:
    """Tell whether the images of a table have stage weights."""
    return STAGES[0] in table


# --------------------------------------------------------------------------------------------------
# Statistics and words


def by_group(table: pd.DataFrame, column: str) -> dict[str, dict]:
    """Condense a table by the values of a column.

    Returns:
        By value `n`, mean `mos` and `score`, and where there are weights `mean` and `std` of each stage's; NaN where
        there are too few images.
    """
    summary = {}
    for name, rows in table.groupby(column, observed=False, sort=True):
        summary[name] = {"n": len(rows), "mos": rows["mos"].mean(), "score": rows["score"].mean()}
        if has_weights(table):
            summary[name]["mean"] = rows[list(STAGES)].mean().tolist()
            summary[name]["std"] = rows[list(STAGES)].std(ddof=1).tolist()
    return summary


def by_level(table: pd.DataFrame) -> dict[str, dict]:
    """Condense a table by quality level, as `by_group` does; a level without images has n = 0."""
    return by_group(table, "level")


def trends(table: pd.DataFrame) -> dict[str, dict]:
    """Correlate mos and each stage's weight (Spearman), with p and n; NaN where one of them is constant."""
    from scipy.stats import spearmanr

    found = {}
    for stage in STAGES:
        constant = table[stage].nunique() == 1 or table["mos"].nunique() == 1
        srcc, p = (math.nan, math.nan) if constant else spearmanr(table["mos"], table[stage])
        found[stage] = {"srcc": srcc, "p": p, "n": len(table)}
    return found


def trends_in_words(found: dict[str, dict], alpha: float = ALPHA) -> list[str]:
    """Say in one sentence a stage what its test carries and no more (Bonferroni over the stages)."""
    sentences = []
    for stage, values in found.items():
        if math.isnan(values["p"]):
            sentences.append(
                f"No relation of the weight of {stage} to quality can be measured: one of them is constant."
            )
            continue
        measured = f"SRCC {values['srcc']:+.3f}, p = {values['p']:.2g}, n = {values['n']}"
        if values["p"] * len(found) < alpha:
            direction = "rises" if values["srcc"] > 0 else "falls"
            sentences.append(f"The weight of {stage} {direction} with quality ({measured}).")
        else:
            sentences.append(f"No relation of the weight of {stage} to quality is shown ({measured}).")
    return sentences


def group_differences(table: pd.DataFrame) -> dict[str, dict]:
    """Test each stage's weight between the groups of at least two images (Kruskal-Wallis).

    Returns:
        By stage h, p, n and groups (how many were tested); empty where fewer than two groups can be tested.
    """
    from scipy.stats import kruskal

    large = [rows for _, rows in table.groupby("group") if len(rows) > 1]
    if len(large) < 2:
        return {}
    found = {}
    for stage in STAGES:
        weights = [rows[stage].to_numpy() for rows in large]
        constant = np.ptp(np.concatenate(weights)) == 0
        h, p = (math.nan, math.nan) if constant else kruskal(*weights)
        found[stage] = {"h": h, "p": p, "n": sum(map(len, weights)), "groups": len(large)}
    return found


def groups_in_words(differences: dict[str, dict], column: str, alone: int, alpha: float = ALPHA) -> list[str]:
    """Say in one sentence a stage what its test between groups carries (Bonferroni over the stages)."""
    left_out = [f"Groups of one image, in the table but in no test: {alone}."] if alone else []
    if not differences:
        return ["Nothing is tested: fewer than two groups have two images.", *left_out]
    sentences = []
    for stage, values in differences.items():
        if math.isnan(values["p"]):
            sentences.append(f"The weight of {stage} is the same in every image.")
            continue
        differs = "differs" if values["p"] * len(differences) < alpha else "is not shown to differ"
        sentences.append(
            f"The weight of {stage} {differs} with {column} (Kruskal-Wallis H = {values['h']:.2f}, "
            f"p = {values['p']:.2g}, n = {values['n']}, {values['groups']} groups)."
        )
    return sentences + left_out


def weights_table(groups: dict[str, dict], title: str = "level") -> str:
    """Write n, mos, score and, where there are weights, mean ± deviation of each stage's, by level or group."""
    weighed = all("mean" in row for row in groups.values())
    heads = [title, "n", "mos", "score", *(STAGES if weighed else ())]
    rows = []
    for name, row in groups.items():
        weights = [_number(mean, 4) + ("" if math.isnan(std) else f" ± {std:.4f}") for mean, std in _weights(row)]
        rows.append([name, row["n"], _number(row["mos"], 1), _number(row["score"], 1), *weights])
    return markdown_table(heads, rows)


def _weights(row: dict) -> Iterator[tuple[float, float]]:
    return zip(row.get("mean", ()), row.get("std", ()), strict=True)


def _number(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def published_markdown(published: PublishedEntry) -> str:
    """Write the published stage weights by quality level as a table, with their source."""
    rows = [[level, *(f"{weight:.4f}" for weight in weights)] for level, weights in published.content["levels"].items()]
    table = markdown_table(["published", *published.content["stages"]], rows)
    return "\n".join([table, "", f"Published, not measured here: {published.source}"])


# --------------------------------------------------------------------------------------------------
# Maps over an image


def draw_panels(scorer: Scorer, table: pd.DataFrame, per_level: int, folder: Path) -> pd.DataFrame:
    """Draw up to `per_level` images of each level; add a column `panel` (file name, or None) to the table."""
    from iqa.figures import draw_panel, save_panel, shorten
    from smart_iqa.maps import image_maps

    folder.mkdir(exist_ok=True)
    shuffled = table.sample(frac=1, random_state=scorer.config.seed)  # a table is sorted by name
    chosen = shuffled.groupby("level", observed=True).head(per_level).sort_index()
    number = chosen.groupby("level", observed=True).cumcount()
    files = {row: f"panel_{chosen.level[row].lower().replace(' ', '_')}_{number[row]}.png" for row in chosen.index}
    for row, file in progress(list(files.items()), "panels", show=scorer.accelerator.is_main_process):
        image = table.loc[row]
        maps = image_maps(scorer, image["path"])
        known = f"{image['level']}, mos {image['mos']:.1f}, score {image['score']:.1f}"
        title = f"{shorten(image['image'], LONGEST_NAME)}\n{known}"
        weights = {stage: image[stage] for stage in STAGES} if has_weights(table) else None
        figure = draw_panel(title, maps.image, maps.grad_cam, maps.rollout, weights)
        save_panel(figure, folder / file)
    return table.assign(panel=[f"{folder.name}/{files[row]}" if row in files else None for row in table.index])


# --------------------------------------------------------------------------------------------------
# Command


def write_analysis(output: Path, table: pd.DataFrame, inputs: dict, group_by: str | None = None) -> dict:
    """Write the JSON, the Markdown table and the figures, print the findings, and return the record.

    Args:
        output: the folder.
        table: images with level, score, their weights where there are any, and `group` where asked for.
        inputs: what is recorded beside: run, dataset, backbone, timm_name, fusion, sampling, config.
        group_by: the column that `group` was taken from.
    """
    kept = ["image", "content", "distortion", "mos", "score", "level", *(s for s in STAGES if s in table), "panel"]
    kept += ["group"] if group_by else []
    record = inputs | {"provenance": provenance(), "levels": by_level(table)}
    sections = [_where(inputs), weights_table(record["levels"])]
    if has_weights(table):
        record["trends"] = trends(table)
        sections.append("\n".join(trends_in_words(record["trends"])))
        published = read_published().get("attention_by_level") if inputs["fusion"] == PUBLISHED_FUSION else None
        record |= {"published": published.content} if published else {}
        sections.append(_on_published(published, inputs))
    else:
        seen = "are all there is to see" if table["panel"].notna().any() else "were not asked for (--panels 0)"
        sections.append(f"Fusion {inputs['fusion']} has no stage weights: the maps in panels/ {seen}.")
    if group_by:
        record["groups"], text = _compare_groups(table, group_by)
        sections.append(text)
    if has_weights(table):
        _draw_weights(output, table, record, published, group_by)
    record["images"] = table[kept].astype({"level": str}).to_dict("records")
    write_json(output / "attention_analysis.json", record)
    text = "\n\n".join(sections) + "\n"
    (output / "attention_analysis.md").write_text(text)
    print(text, end="")
    print(f"written to {output}")
    return record


def _where(inputs: dict) -> str:
    """The network and the database of an analysis."""
    from smart_iqa.testing import in_full

    return f"{in_full(inputs)}, on {inputs['dataset']}"


def _on_published(published: PublishedEntry | None, inputs: dict) -> str:
    if published:
        return f"{published_markdown(published)} (measured here: {_where(inputs)})"
    fusion = inputs["fusion"]
    return (
        f"Published weights are of fusion {PUBLISHED_FUSION}: those of {fusion} are another quantity, not comparable."
    )


def _draw_weights(
    output: Path, table: pd.DataFrame, record: dict, published: PublishedEntry | None, group_by: str | None
) -> None:
    from iqa.figures import draw_distribution, draw_stage_weights, save_figure

    save_figure(draw_stage_weights({_where(record): record["levels"]}, published), output / "attention_by_level")
    column = _in_order(table["group"]) if group_by else table["level"]
    groups = {name: rows[list(STAGES)].to_numpy() for name, rows in table.groupby(column, observed=True)}
    figure = draw_distribution(groups, STAGES, group_by or "quality level")
    save_figure(figure, output / "attention_distribution")


def _compare_groups(table: pd.DataFrame, column: str) -> tuple[dict, str]:
    """The record of the groups, and their table and tests as text."""
    table = table.assign(group=_in_order(table["group"]))
    groups = by_group(table, "group")
    record, sections = {"column": column, "groups": groups}, [weights_table(groups, column)]
    if has_weights(table):
        record["differences"] = group_differences(table)
        alone = sum(row["n"] == 1 for row in groups.values())
        sections.append("\n".join(groups_in_words(record["differences"], column, alone)))
    return record, "\n\n".join(sections)


def _in_order(groups: pd.Series) -> pd.Categorical:
    """Groups sorted by name, by value where all are numbers."""
    names = sorted(groups.unique())
    numbers = pd.to_numeric(pd.Series(names), errors="coerce")
    return pd.Categorical(groups, [names[i] for i in numbers.argsort()] if numbers.notna().all() else names)


def _clear(output: Path) -> None:
    """Remove what an earlier analysis wrote, so that no figure of another run stays."""
    for pattern in ("attention_analysis.*", "attention_by_level.*", "attention_distribution.*", "panels/panel_*.png"):
        for file in output.glob(pattern):
            file.unlink()


def analyze_attention(
    checkpoint: str | Path,
    dataset: str,
    data_root: str | None = None,
    num_samples: int = 16,
    crops: int = 10,
    panels: int = 2,
    group_by: str | None = None,
    device: str = "auto",
    output: str | Path | None = None,
) -> dict:
    """Analyse the stage weights of a run by quality level, and draw where it looks.

    Args:
        checkpoint: folder of a run, or a published file.
        dataset: name of a database; images that the run has learned from are left out.
        data_root: holds a folder per database.
        num_samples: images per quality level.
        crops: random crops per image.
        panels: images per quality level that get a panel.
        group_by: column whose groups are compared too.
        device: `auto`, `cpu`, `cuda` or `mps`.
        output: folder to write to; default: `attention` in the run's.

    Returns:
        The record, as in `attention_analysis.json`.

    Raises:
        UserError: no such run, database or column, or too few images.
    """
    from smart_iqa.scorer import load_model, run_folder
    from smart_iqa.testing import unseen_images

    if num_samples < 1 or crops < 1 or panels < 0:
        raise UserError("--num_samples and --crops: expected at least 1, --panels: expected at least 0")
    scorer = load_model(checkpoint, device, test_mode="random", test_patch_num=crops)
    run, seed = run_folder(checkpoint), scorer.config.seed
    database, table = unseen_images(scorer, run, dataset, data_root)
    if group_by:
        table = with_groups(table, group_by, database.name)
    table = sample_by_level(table, num_samples, seed)
    if group_by:
        _require_few_groups(table, group_by)
    table = weigh_images(scorer, table)
    output = Path(output or run / "attention")
    output.mkdir(parents=True, exist_ok=True)
    _clear(output)
    table = draw_panels(scorer, table, panels, output / "panels")
    sampling = {"images_per_level": num_samples, "crops": crops, "seed": seed}
    return write_analysis(output, table, _describe(scorer, run, dataset, sampling), group_by)


def _require_few_groups(table: pd.DataFrame, group_by: str) -> None:
    if (groups := table["group"].nunique()) > MOST_GROUPS:
        raise UserError(
            f"--group_by {group_by}: {groups} groups among the {len(table)} images are more than the {MOST_GROUPS} "
            "that can be shown; choose another column or fewer --num_samples"
        )


def _describe(scorer: Scorer, run: Path, dataset: str, sampling: dict) -> dict:
    """What the record says about model and sampling."""
    from smart_iqa.testing import backbone_names, fusion_name

    names = {**backbone_names(scorer.model), "fusion": fusion_name(scorer.model)}
    settings = {"sampling": sampling, "config": dataclasses.asdict(scorer.config)}
    return {"run": str(run), "dataset": dataset, **names, **settings}


def make_parser() -> Parser:
    """Name the command's flags; what is not given is left to `analyze_attention`."""
    text = "Analyse the stage weights of a run by quality level, and where it looks."
    parser = Parser(description=text, argument_default=SUPPRESS)
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="folder of a run, or a published file (.pth, .pkl)"
    )
    parser.add_argument("--dataset", required=True, choices=DATABASES, metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--num_samples", type=int, help="images per quality level [16]")
    parser.add_argument("--crops", type=int, help="random crops per image [10]")
    parser.add_argument("--panels", type=int, help="images per quality level that get a panel [2]")
    parser.add_argument("--group_by", metavar="COLUMN", help="compare groups too: distortion, generator, any column")
    parser.add_argument("--device", choices=DEVICES)
    parser.add_argument("--output", metavar="FOLDER", help="default: RUN/attention")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Analyse as the command line says."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    analyze_attention(**vars(arguments))


if __name__ == "__main__":
    exit_on_user_error(main)
