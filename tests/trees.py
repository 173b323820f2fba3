"""Tiny databases in their official layouts, for tests: true label formats, made-up images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import scipy.io
from PIL import Image

LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


def image_file(path: Path, size: tuple[int, int] = (16, 12)) -> None:
    """A smooth image (width, height) whose colours depend on the file's name: no two names share bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:8], "big")
    corners = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC).save(path)


def image_files(folder: Path, names: Sequence[str], size: tuple[int, int] = (16, 12)) -> None:
    for name in names:
        image_file(folder / name, size)


def koniq(folder: Path, rows: Sequence[tuple], images: str = "512x384", size: tuple[int, int] = (16, 12)) -> Path:
    """Rows (image_name, MOS on 0..100, SD, set), in `koniq10k_distributions_sets.csv`."""
    image_files(folder / images, [row[0] for row in rows], size)
    table = pd.DataFrame(rows, columns=["image_name", "MOS", "SD", "set"])
    counts = {f"c{i}": 0.2 for i in range(1, 6)} | {"c_total": 100}
    order = ["image_name", *counts, "MOS", "SD", "set"]
    table.assign(**counts)[order].to_csv(folder / "koniq10k_distributions_sets.csv", index=False)
    return folder


def koniq_without_split(folder: Path, rows: Sequence[tuple]) -> Path:
    """Rows (image_name, MOS on 1..5, SD, MOS_zscore), in `koniq10k_scores_and_distributions.csv`."""
    image_files(folder / "1024x768", [row[0] for row in rows])
    table = pd.DataFrame(rows, columns=["image_name", "MOS", "SD", "MOS_zscore"])
    table.to_csv(folder / "koniq10k_scores_and_distributions.csv", index=False)
    return folder


def koniq_rows(n: int) -> list[tuple]:
    """Made-up KonIQ rows: of ten in a row, seven train, one validates, two test; mos from 5 to 95."""
    parts = ["training"] * 7 + ["validation"] + ["test"] * 2
    return [(f"{1000 + i}.jpg", 5 + 90 * i / max(1, n - 1), 0.5, parts[i % 10]) for i in range(n)]


def spaq(folder: Path, rows: Sequence[tuple]) -> Path:
    """Rows (Image name, MOS)."""
    image_files(folder / "TestImage", [name for name, _ in rows])
    header = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    body = [(*row, 50, 50, 50, 50, 50) for row in rows]
    workbook(folder / "Annotations" / "MOS and Image attribute scores.xlsx", [header, *body])
    return folder


def kadid(folder: Path, rows: Sequence[tuple]) -> Path:
    """Rows (dist_img, ref_img, dmos, var)."""
    image_files(folder / "images", [row[0] for row in rows])
    table = pd.DataFrame(rows, columns=["dist_img", "ref_img", "dmos", "var"])
    table.to_csv(folder / "dmos.csv", index=False)
    return folder


def agiqa(folder: Path, rows: Sequence[tuple], images: str = "AGIQA-3K") -> Path:
    """Rows (name, prompt, mos_quality, std_quality)."""
    image_files(folder / images, [row[0] for row in rows])
    table = pd.DataFrame(rows, columns=["name", "prompt", "mos_quality", "std_quality"])
    table.insert(2, "adj1", "")
    table.assign(mos_align=1.0, std_align=0.5).to_csv(folder / "data.csv", index=False)
    return folder


def live(folder: Path, rows: Sequence[tuple]) -> Path:
    """Rows (jp2k/img2.bmp, reference, DMOS). As in the original, all 982 positions are in the .mat files."""
    names = [f"{kind}/img{i}.bmp" for kind, count in LIVE_FOLDERS.items() for i in range(1, count + 1)]
    position = {name: i for i, name in enumerate(names)}
    dmos, originals = np.zeros((1, len(names))), np.ones((1, len(names)), dtype=np.uint8)
    deviations = np.full((1, len(names)), 5.0)
    references = np.full((1, len(names)), "original.bmp", dtype=object)
    for name, reference, score in rows:
        dmos[0, position[name]], originals[0, position[name]] = score, 0
        references[0, position[name]] = reference
    image_files(folder, [row[0] for row in rows])
    scipy.io.savemat(folder / "dmos_realigned.mat", {"dmos_new": dmos, "dmos_std": deviations, "orgs": originals})
    scipy.io.savemat(folder / "refnames_all.mat", {"refnames_all": references})
    return folder


def csiq(folder: Path, rows: Sequence[tuple], by_kind: bool = False) -> Path:
    """Rows (name, DMOS); images in `dst_imgs_all/`, or in a folder of `dst_imgs/` for each kind."""
    for name, _ in rows:
        images = Path("dst_imgs", name.split(".")[1].lower()) if by_kind else Path("dst_imgs_all")
        image_file(folder / images / name)
    (folder / "csiq_label.txt").write_text("".join(f"{name} {score}\n" for name, score in rows))
    return folder


def tid(folder: Path, rows: Sequence[tuple]) -> Path:
    """Rows (MOS, name in the label file, name on disk): the original mixes i and I, bmp and BMP."""
    image_files(folder / "distorted_images", [row[2] for row in rows])
    lines = "".join(f"{score} {name}\n" for score, name, _ in rows)
    (folder / "mos_with_names.txt").write_text(lines)
    return folder


def livec(folder: Path, rows: Sequence[tuple]) -> Path:
    """Rows (name, MOS), after seven training examples whose images lie elsewhere."""
    names = [f"t{i}.bmp" for i in range(1, 8)] + [name for name, _ in rows]
    scores = [50.0] * 7 + [score for _, score in rows]
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    image_files(folder / "Images", names[7:])
    (folder / "Data").mkdir(parents=True, exist_ok=True)
    for key, values in {
        "AllImages_release": cells,
        "AllMOS_release": np.array([scores]),
        "AllStdDev_release": np.full((1, len(names)), 18.0),
    }.items():
        scipy.io.savemat(folder / "Data" / f"{key}.mat", {key: values})
    return folder


def bid(folder: Path, rows: Sequence[tuple], images: str = "") -> Path:
    """Rows (number of the image, mean grade); as in the original, the images lie beside the workbook."""
    image_files(folder / images, [f"DatabaseImage{number:04d}.JPG" for number, _ in rows])
    header = ["Image Number", "Average Subjective Grade", "std", "Grade 1", "Grade 2"]
    workbook(folder / "DatabaseGrades.xlsx", [header, *[(*row, 0.7, 3, 4) for row in rows]])
    return folder


def table(file: Path, rows: Sequence[dict], size: tuple[int, int] = (16, 12)) -> Path:
    """A CSV or JSON file with an `image` in each row, and the images beside it."""
    image_files(file.parent, [row["image"] for row in rows], size)
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        pd.DataFrame(rows).to_csv(file, index=False)
    return file


def workbook(file: Path, rows: Sequence[Sequence]) -> None:
    """An Excel file with these rows on its first sheet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(file)
