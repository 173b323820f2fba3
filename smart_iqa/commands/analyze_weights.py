"""What do the generated networks have in common: principal components of the weights that the HyperNet makes.

    smart-iqa analyze-weights --checkpoint results/demo --dataset demo --num_samples 400

For a random sample of images (by the run's seed) all weights and biases of the TargetNet, averaged over several
random crops, make one vector an image; its first two principal components are drawn, coloured by content, by
distortion and by mos. Silhouettes (Rousseeuw 1987) say how far images of one content, or of one distortion, lie
together: 1 apart from the others, 0 no different, -1 among the others. With a second checkpoint both models are
drawn under each other, on the same images. Writes `target_weights.json`, `target_weights.md` and `target_weights.png`
(`.pdf`), in place of those of an earlier analysis.
"""

from __future__ import annotations

import math
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from folders import DATABASES
from iqa.choices import DEVICES
from iqa.errors import Parser, UserError
from iqa.results import markdown_table, provenance
from iqa.system import start_logging, write_json

if TYPE_CHECKING:
    from smart_iqa.scorer import Scorer

FEWEST, MOST = 5, 2000  # images: fewer have no components to speak of, more would not fit a small memory
COMPONENTS = 10  # whose variance is recorded; two are drawn
CHUNK = 250  # images whose weights are held in double precision at a time
LABELS = ("content", "distortion")


def generate(scorer: Scorer, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Generate scores (n,) and weights (n, D) float32 of a table's images, each the mean over its crops."""
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
    """Measure the mean silhouette of labelled images in all dimensions and in the plane of the first two components.

    Args:
        vectors: (n, D).
        points: (n, 2).
        labels: (n,); images whose label is empty are left out.

    Returns:
        `full`, `plane`, `n` and `labels` (how many), or None where no two labels have two images.
    """
    from sklearn.metrics import silhouette_score

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


def analyze_vectors(scores: np.ndarray, vectors: np.ndarray, table: pd.DataFrame) -> dict:
    """Find components, silhouettes and the relation of components to mos, of one model.

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
    from sklearn.decomposition import PCA

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
    from scipy.stats import spearmanr

    srcc, p = (math.nan, math.nan) if mos.nunique() == 1 else spearmanr(component, mos)
    return {"srcc": float(srcc), "p": float(p), "n": len(mos)}


def sample_images(tables: list[pd.DataFrame], samples: int, seed: int) -> pd.DataFrame:
    """Draw up to `samples` images, at random, of those that are in every table.

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
# Words


def components_table(models: dict[str, dict]) -> str:
    """Write what was measured on each model as a table."""
    from smart_iqa.testing import in_full

    heads = ["model", "network", "images", "weights", "PC 1", "PC 2", "SRCC of PC 1 and mos", "of PC 2 and mos"]
    heads += [f"silhouette by {label} ({space})" for label in LABELS for space in ("all dimensions", "plane")]
    rows = []
    for name, model in models.items():
        cells = [name, in_full(model), str(len(model["images"])), str(model["dimensions"])]
        cells += [f"{share:.1%}" for share in model["explained_variance"][:2]]
        cells += [f"{row['srcc']:+.3f} (p = {row['p']:.2g})" for row in model["mos"].values()]
        for label in LABELS:
            measured = model["silhouette"][label]
            cells += [f"{measured[space]:+.3f}" if measured else "-" for space in ("full", "plane")]
        rows.append(cells)
    return "\n".join([markdown_table(heads, rows), "", *_remarks(next(iter(models.values())))])


def _remarks(model: dict) -> list[str]:
    """Say how many labels a silhouette is over, or why there is no silhouette."""
    return [
        f"Silhouette by {label}: n = {measured['n']} images, {measured['labels']} labels."
        if measured
        else f"No silhouette by {label}: no two labels with two images each."
        for label, measured in model["silhouette"].items()
    ]


# --------------------------------------------------------------------------------------------------
# Command


def _names(checkpoints: list[str]) -> list[str]:
    """A name for each model: its folder's or file's; two alike are told apart by their whole path."""
    names = [Path(checkpoint).resolve().name for checkpoint in checkpoints]
    return names if len(set(names)) == len(names) else [str(Path(checkpoint)) for checkpoint in checkpoints]


def analyze_weights(
    checkpoints: Sequence[str | Path],
    dataset: str,
    data_root: str | None = None,
    num_samples: int = 400,
    crops: int = 10,
    device: str = "auto",
    output: str | Path | None = None,
) -> dict:
    """Find the principal components of the weights that one or two models generate, and draw them.

    Args:
        checkpoints: one or two: folder of a run, or a published file.
        dataset: name of a database; images that a run has learned from are left out.
        data_root: holds a folder per database.
        num_samples: images, drawn at random.
        crops: random crops per image.
        device: `auto`, `cpu`, `cuda` or `mps`.
        output: folder to write to; default: `target_weights` in the first run's.

    Returns:
        The record, as in `target_weights.json`.

    Raises:
        UserError: no such run or database, too few images, or a model whose generated weights are constant.
    """
    from smart_iqa.scorer import load_model, run_folder
    from smart_iqa.testing import unseen_images

    paths = [str(checkpoint) for checkpoint in checkpoints]
    if len(paths) > 2 or len(set(paths)) < len(paths):
        raise UserError("--checkpoint: expected one run, or two different ones")
    if not FEWEST <= num_samples <= MOST or crops < 1:
        raise UserError(f"--num_samples: expected {FEWEST}..{MOST}, --crops: expected at least 1")
    scorers = [load_model(path, device, test_mode="random", test_patch_num=crops) for path in paths]
    unseen = [
        unseen_images(scorer, run_folder(path), dataset, data_root)[1]
        for scorer, path in zip(scorers, paths, strict=True)
    ]
    seed = scorers[0].config.seed
    table = sample_images(unseen, num_samples, seed)
    models = {name: _model_record(scorer, table) for name, scorer in zip(_names(paths), scorers, strict=True)}
    sampling = {"images": len(table), "of": len(unseen[0]), "crops": crops, "seed": seed}
    inputs = {"dataset": dataset, "sampling": sampling, "provenance": provenance()}
    return write(Path(output or run_folder(paths[0]) / "target_weights"), models, inputs)


def _model_record(scorer: Scorer, table: pd.DataFrame) -> dict:
    from smart_iqa.testing import backbone_names, fusion_name

    model = scorer.model
    inputs = backbone_names(model) | {"fusion": fusion_name(model), "seed": scorer.config.seed}
    return inputs | analyze_vectors(*generate(scorer, table), table)


def write(output: Path, models: dict[str, dict], inputs: dict) -> dict:
    """Write JSON, Markdown and figure, print the table, and return the record.

    One model's fields are at the top of the record, two models' under `models`.
    """
    from iqa.figures import draw_components, save_figure

    output.mkdir(parents=True, exist_ok=True)
    ((name, first), *more) = models.items()
    record = inputs | ({"models": models} if more else {"model": name} | first)
    write_json(output / "target_weights.json", record)
    text = components_table(models) + "\n"
    (output / "target_weights.md").write_text(text)
    save_figure(draw_components(models), output / "target_weights")
    print(text, end="")
    print(f"written to {output}")
    return record


def make_parser() -> Parser:
    """Name the command's flags; what is not given is left to `analyze_weights`."""
    text = "Principal components of the weights that one or two models generate."
    parser = Parser(description=text, argument_default=SUPPRESS)
    parser.add_argument(
        "--checkpoint", dest="checkpoints", required=True, nargs="+", metavar="RUN",
        help="one or two: folder of a run, or a published file",
    )  # fmt: skip
    parser.add_argument("--dataset", required=True, choices=DATABASES, metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--num_samples", type=int, help=f"images, at most {MOST} [400]")
    parser.add_argument("--crops", type=int, help="random crops per image [10]")
    parser.add_argument("--device", choices=DEVICES)
    parser.add_argument("--output", metavar="FOLDER", help="default: first RUN/target_weights")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Analyse as the command line says."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    analyze_weights(**vars(arguments))
