"""One tiny run and all that the commands make of it: what the tests of figures and pages read.

folder = write_all(tmp_path)
content = Templates(folder).results  # a copy, whose numbers a test may replace
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from helpers import ROOT, SMALL, TINY, command, forking
from PIL import Image, ImageFilter

FILES = {
    "results": "run/results.json",
    "ridge_baseline": "run/ridge_baseline.json",
    "attention": "run/attention/attention_analysis.json",
    "target_weights": "run/target_weights/target_weights.json",
    "complexity": "costs/complexity.json",
    "ablation": "ablations/two/table.json",
    "splits": "splits/summary.json",
}


def write_all(folder: Path) -> Path:
    """Train on forty made-up images (ten scenes, four degrees of blur) and run every command that records something."""
    data = write_images(folder / "data")
    train = ["--dataset", "csv", "--data_path", data, *SMALL, "--results_dir", folder]
    analyse = ["--checkpoint", folder / "run", "--dataset", "csv", "--crops", 1, "--device", "cpu"]
    shared = f"dataset: csv, data_path: {data}, backbone: {TINY}, pretrained: false, patch_size: 32, resize: none, "
    shared += "epochs: 1, train_patch_num: 1, test_patch_num: 1, num_workers: 0, device: cpu, spaq: false"
    rows = "{A1: {}, E6_scale: {fusion: scale}}"
    (folder / "two.yaml").write_text(f"baseline: A1\nseeds: [0]\nshared: {{{shared}}}\nrows: {rows}\n")
    costs = folder / "costs"
    for name, *arguments in (
        ["train", *train, "--name", "run", "--fusion", "scale"],
        ["train", *train, "--name", "splits", "--epochs", 1, "--train_test_num", 2],
        ["ridge-baseline", "--checkpoint", folder / "run"],
        ["analyze-attention", *analyse, "--num_samples", 4, "--panels", 0],
        ["analyze-weights", *analyse, "--num_samples", 8],
        ["complexity", f"{TINY}:concat", "--batch_sizes", 1, "--passes", 2, "--device", "cpu", "--output", costs],
        ["ablate", folder / "two.yaml", "--results_dir", folder / "ablations"],
    ):  # fmt: skip
        with forking():
            assert command(name, *arguments) == 0, name
    return folder


def write_images(folder: Path) -> Path:
    """Images and their table, with content and distortion."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for scene in range(10):
        coarse = Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        sharp = coarse.resize((48, 40), Image.Resampling.NEAREST)
        for degree in range(4):
            name = f"scene{scene}_{degree}.png"
            sharp.filter(ImageFilter.GaussianBlur(1.5 * degree)).save(folder / name)
            labels = {"content": f"scene{scene}", "distortion": "blur" if degree else "none"}
            rows.append({"image": name, "mos": 90 - 25 * degree + rng.normal()} | labels)
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


class Templates:
    """What the commands wrote, by kind: every access reads the file again, so that a test may change what it gets."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getattr__(self, kind: str) -> dict:
        file = ROOT / "docs" / "network.json" if kind == "network" else self.folder / FILES[kind]
        return json.loads(file.read_text())
