"""What do the generated networks have in common: principal components of the weights that the HyperNet makes.

    smart-iqa analyze-weights --checkpoint results/demo --dataset demo --num_samples 400

For a random sample of images (by the run's seed) all weights and biases of the TargetNet, averaged over several
random crops, make one vector an image; its first two principal components are drawn, coloured by content, by
distortion and by mos. Silhouettes (Rousseeuw 1987) say how far images of one content, or of one distortion, lie
together: 1 apart from the others, 0 no different, -1 among the others. With a second checkpoint both models are
drawn side by side, on the same images. Writes `target_weights.json`, `target_weights.md` and `target_weights.png`
(`.pdf`), in place of those of an earlier analysis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from folders import DATABASES
from iqa.choices import DEVICES
from iqa.errors import Parser, UserError
from iqa.results import provenance
from iqa.system import start_logging, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from smart_iqa.scorer import Scorer

FEWEST, MOST = 5, 2000  # images: fewer have no components to speak of, more would not fit a small memory
COMPONENTS = 10  # whose variance is recorded; two are drawn
CHUNK = 250  # images whose weights are held in double precision at a time
LABELS = ("content", "distortion")
MOST_NAMED = 20  # entries of a legend
AXES_SIDE = 2.35  # inches


def generate(scorer: Scorer, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) and generated weights (n, D) float32 of a table's images, each the mean over its crops."""
    from iqa.evaluation import predict
    from smart_iqa.probes import GeneratedWeights

    module, chunks = GeneratedWeights(scorer.model), []
    for start in range(0, len(table), CHUNK):
        part = table.iloc[start : start + CHUNK].reset_index(drop=True)
        description = f"weights {start + 1}..{start + len(part)} of {len(table)}"
        values = predict(module, scorer.loader(part), scorer.to_images, scorer.accelerator, description)
        chunks.append(values.astype(np.float32))
    values = np.concatenate(chunks)
    return values[:, 0], values[:, 1:]


def silhouettes(vectors: np.ndarray, points: np.ndarray, labels: pd.Series) -> dict | None:
    """Mean silhouette of labelled images in all dimensions and in the plane of the first two components.

    Args:
        vectors: (n, D).
        points: (n, 2).
        labels: (n,); images whose label is empty are left out.

    Returns:
        `full`, `plane`, `n` and `labels` (how many), or None where no two labels have two images.
    """
    known = (labels != "").to_numpy()
    sizes = labels[known].value_counts()
    if (sizes > 1).sum() < 2:
        return None
    codes = labels[known].to_numpy(dtype=str)
    return {
        "full": float(silhouette_score(vectors[known], codes)),
        "plane": float(silhouette_score(points[known], codes)),
        "n": int(known.sum()),
        "labels": len(sizes),
    }


def analyse(scores: np.ndarray, vectors: np.ndarray, table: pd.DataFrame) -> dict:
    """Components, silhouettes and the relation of components to mos, of one model.

    Args:
        scores: (n,).
        vectors: (n, D) float32, generated weights.
        table: columns image, content, distortion, mos; n rows.

    Returns:
        `dimensions`, `explained_variance` (shares of the total), `silhouette` by label, `mos` (Spearman correlation
        of both components with mos), and `images` with content, distortion, mos, score, pc1 and pc2.

    Raises:
        UserError: the generated weights are the same for every image.
    """
    if np.ptp(vectors, axis=0).max() == 0:
        raise UserError("the generated weights are the same for every image: there are no components to draw")
    components = min(COMPONENTS, len(vectors) - 1)
    # Arpack is exact and forms no D x D matrix; a fixed start makes its result repeatable.
    pca = PCA(components, svd_solver="arpack", random_state=0) if components < min(vectors.shape) else PCA(components)
    points = pca.fit_transform(vectors)[:, :2]
    shares = pca.explained_variance_ratio_.astype(float).tolist()
    rows = table[["image", *LABELS, "mos"]].assign(score=scores, pc1=points[:, 0], pc2=points[:, 1])
    return {
        "dimensions": vectors.shape[1],
        "explained_variance": shares,
        "silhouette": {label: silhouettes(vectors, points, table[label]) for label in LABELS},
        "mos": {f"pc{i + 1}": _correlation(points[:, i], table["mos"]) for i in range(2)},
        "images": rows.astype({"score": float, "pc1": float, "pc2": float}).to_dict("records"),
    }


def _correlation(component: np.ndarray, mos: pd.Series) -> dict:
    srcc, p = (math.nan, math.nan) if mos.nunique() == 1 else spearmanr(component, mos)
    return {"srcc": float(srcc), "p": float(p), "n": len(mos)}


def sample_images(tables: list[pd.DataFrame], samples: int, seed: int) -> pd.DataFrame:
    """Up to `samples` images, drawn at random, of those that are in every table.

    Raises:
        UserError: too few images.
    """
    table = tables[0]
    for other in tables[1:]:
        table = table[table["image"].isin(other["image"])]
    if len(table) < FEWEST:
        parts = "test parts of both runs share" if len(tables) > 1 else "table has"
        raise UserError(f"the {parts} {len(table)} images, {FEWEST} are needed")
    return table.sample(min(samples, len(table)), random_state=seed).sort_index().reset_index(drop=True)


# --------------------------------------------------------------------------------------------------
# Words and figure


def markdown(models: dict[str, dict]) -> str:
    """What was measured on each model, as a table."""
    from smart_iqa.testing import in_full

    heads = ["model", "network", "images", "weights", "PC 1", "PC 2", "SRCC of PC 1 and mos", "of PC 2 and mos"]
    heads += [f"silhouette by {label} ({space})" for label in LABELS for space in ("all dimensions", "plane")]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, model in models.items():
        cells = [name, in_full(model), str(len(model["images"])), str(model["dimensions"])]
        cells += [f"{share:.1%}" for share in model["explained_variance"][:2]]
        cells += [f"{row['srcc']:+.3f} (p = {row['p']:.2g})" for row in model["mos"].values()]
        for label in LABELS:
            measured = model["silhouette"][label]
            cells += [f"{measured[space]:+.3f}" if measured else "-" for space in ("full", "plane")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_remarks(next(iter(models.values())))])


def _remarks(model: dict) -> list[str]:
    """How many labels a silhouette is over, or why there is none."""
    return [
        f"Silhouette by {label}: n = {measured['n']} images, {measured['labels']} labels."
        if measured
        else f"No silhouette by {label}: no two labels with two images each."
        for label, measured in model["silhouette"].items()
    ]


def draw(models: dict[str, dict]) -> Figure:
    """The first two components: a column a model, a row each for content, distortion (where known) and mos."""
    import matplotlib.pyplot as plt

    from iqa.figures import STYLE, scatter_by_label, scatter_by_mos, shorten

    tables = {name: pd.DataFrame(model["images"]) for name, model in models.items()}
    first = next(iter(tables.values()))
    rows = [label for label in LABELS if 1 < first[label].nunique() < len(first)] + ["mos"]
    plt.style.use(STYLE)
    columns = len(models)
    figure, axes = plt.subplots(
        len(rows), columns + 1, figsize=(AXES_SIDE * columns + 2.3, AXES_SIDE * len(rows) + 0.3), squeeze=False,
        width_ratios=[*[AXES_SIDE] * columns, 1.9],
    )  # fmt: skip
    for row, label in zip(axes, rows, strict=True):
        for ax, (name, model) in zip(row, models.items(), strict=False):
            table = tables[name]
            if label == "mos":
                drawn = scatter_by_mos(ax, table["pc1"], table["pc2"], table["mos"])
            else:
                scatter_by_label(ax, table["pc1"], table["pc2"], table[label], MOST_NAMED)
            shares = model["explained_variance"]
            title = f"{shorten(name, 34)}: by {label}" if columns > 1 else f"by {label}"
            ax.set(xlabel=f"PC 1 ({shares[0]:.1%})", ylabel=f"PC 2 ({shares[1]:.1%})", title=title)
            ax.locator_params(nbins=5)
        row[-1].set_axis_off()
        if label == "mos":
            figure.colorbar(drawn, cax=row[-1].inset_axes([0, 0.1, 0.08, 0.8]), label="mos")
        else:
            handles, names = row[0].get_legend_handles_labels()
            row[-1].legend(handles, names, loc="center left", fontsize=6, title=label, title_fontsize=7)
    return figure


# --------------------------------------------------------------------------------------------------
# Command


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Principal components of the weights that one or two models generate.")
    parser.add_argument(
        "--checkpoint", required=True, nargs="+", metavar="RUN", help="one or two: folder of a run, or a published file"
    )
    parser.add_argument("--dataset", required=True, choices=DATABASES, metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--num_samples", type=int, default=400, help=f"images, at most {MOST} [400]")
    parser.add_argument("--crops", type=int, default=10, help="random crops per image [10]")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--output", metavar="FOLDER", help="default: first RUN/target_weights")
    return parser


def _names(checkpoints: list[str]) -> list[str]:
    """A name for each model: its folder's or file's; two alike are told apart by their whole path."""
    names = [Path(checkpoint).resolve().name for checkpoint in checkpoints]
    return names if len(set(names)) == len(names) else [str(Path(checkpoint)) for checkpoint in checkpoints]


def main(argv: Sequence[str] | None = None) -> None:
    """Analyse as the command line says."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    from smart_iqa.scorer import load_model, run_folder
    from smart_iqa.testing import unseen_images

    if len(arguments.checkpoint) > 2 or len(set(arguments.checkpoint)) < len(arguments.checkpoint):
        raise UserError("--checkpoint: expected one run, or two different ones")
    if not FEWEST <= arguments.num_samples <= MOST or arguments.crops < 1:
        raise UserError(f"--num_samples: expected {FEWEST}..{MOST}, --crops: expected at least 1")
    changes = {"test_mode": "random", "test_patch_num": arguments.crops}
    scorers = [load_model(checkpoint, arguments.device, **changes) for checkpoint in arguments.checkpoint]
    unseen = [
        unseen_images(scorer, run_folder(checkpoint), arguments.dataset, arguments.data_root)[1]
        for scorer, checkpoint in zip(scorers, arguments.checkpoint, strict=True)
    ]
    seed = scorers[0].config.seed
    table = sample_images(unseen, arguments.num_samples, seed)
    names = _names(arguments.checkpoint)
    models = {name: _model_record(scorer, table) for name, scorer in zip(names, scorers, strict=True)}
    sampling = {"images": len(table), "of": len(unseen[0]), "crops": arguments.crops, "seed": seed}
    made = {"dataset": arguments.dataset, "sampling": sampling, "provenance": provenance()}
    write(Path(arguments.output or run_folder(arguments.checkpoint[0]) / "target_weights"), models, made)


def _model_record(scorer: Scorer, table: pd.DataFrame) -> dict:
    from smart_iqa.testing import backbone_names, fusion_name

    model = scorer.model
    made = backbone_names(model) | {"fusion": fusion_name(model), "seed": scorer.config.seed}
    return made | analyse(*generate(scorer, table), table)


def write(output: Path, models: dict[str, dict], made: dict) -> None:
    """Write JSON (one model's fields at its top, two models under `models`), Markdown and figure, and print."""
    from iqa.figures import save_figure

    output.mkdir(parents=True, exist_ok=True)
    ((name, first), *more) = models.items()
    write_json(output / "target_weights.json", made | ({"models": models} if more else {"model": name} | first))
    text = markdown(models) + "\n"
    (output / "target_weights.md").write_text(text)
    save_figure(draw(models), output / "target_weights")
    print(text, end="")
    print(f"written to {output}")
