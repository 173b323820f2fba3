"""A finished run -> `Scorer`: every score of an image comes from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader

from data_loader import CropDataset, Preparation, test_loader
from iqa.checkpoint import load_model_state, read_checkpoint
from iqa.config import Config, load_config, resolve
from iqa.data import open_rgb
from iqa.errors import UserError
from iqa.evaluation import predict
from iqa.pretrained import read_state_dict
from iqa.runtime import make_accelerator
from models_swin import SmartIQA
from smart_iqa.frozen_features import FeatureDataset, FrozenFeatures
from smart_iqa.published import model_from_published
from smart_iqa.shipped import DEFAULT, Meaning, checkpoint_file

if TYPE_CHECKING:
    import pandas as pd


class Scorer:
    """A model with the preprocessing it was trained with.

    Args:
        model: the network.
        config: the run's settings; crops and resizing are read from it.
        accelerator: devices and processes.
        preparation: prepares the tables that it covers, for example from a cache; None decodes every image.
        scales: slope and offset of the databases it was trained on (see `training_data.Scale`), if several.
    """

    def __init__(
        self,
        model: SmartIQA,
        config: Config,
        accelerator: Accelerator,
        preparation: Preparation | FrozenFeatures | None = None,
        scales: dict[str, tuple[float, float]] | None = None,
    ):
        self.model, self.config, self.accelerator = model.to(accelerator.device).eval(), config, accelerator
        self.plain = Preparation(self.model, config)
        self.preparation, self.scales = preparation or self.plain, scales or {}
        self.meaning: Meaning | None = None  # of its scores, where the model carries it

    def to_images(self, crops: Tensor, augment: Tensor) -> Tensor:
        """Crops of `loader` (B, K, 3, H, W) -> images (B*K, 3, H, W) for the model."""
        return self.plain.to_images(crops, augment)

    def loader(self, table: pd.DataFrame) -> DataLoader:
        """Test crops of a table, decoded now, for this scorer's devices and processes."""
        return self._loader(self.plain.dataset(table))

    def _loader(self, dataset: CropDataset | FeatureDataset) -> DataLoader:
        few = len(dataset) < 64  # starting processes would take longer than decoding
        config = dataclasses.replace(self.config, num_workers=0) if few else self.config
        here = self.accelerator
        return prepare_data_loader(  # `here.prepare` would keep it, and its workers, for as long as this scorer lives
            test_loader(dataset, config),
            here.device,
            num_processes=here.num_processes,
            process_index=here.process_index,
            put_on_device=True,
        )

    def score(self, images: str | Path | Sequence[str | Path]) -> float | np.ndarray:
        """Quality of an image, or of several: 0..100, higher is better.

        Args:
            images: a file, or a list of files.

        Returns:
            A float for one file, else an array (n,) in the order given. Scores outside the scale are set to its end.

        Raises:
            UserError: a file is missing or not an image.
        """
        files = [images] if isinstance(images, str | Path) else images
        scores = self.score_table(_unlabelled(files)).clip(0, 100)
        return scores if files is images else float(scores[0])

    def score_readable(self, images: Sequence[str | Path]) -> tuple[np.ndarray, dict[int, str]]:
        """Like `score` of a list, but files that cannot be read do not stop the others.

        Returns:
            Scores (n,), and by place in the list why a file cannot be read. The score of such a file means nothing.
        """
        dataset = _TolerantCrops(_unlabelled(images), self.config)
        scores = self._predict(self.plain, dataset, "score").clip(0, 100)
        of_all = self.accelerator.reduce(dataset.unreadable.int().to(self.accelerator.device), "sum")
        return scores, {place: _problem(images[place]) for place in of_all.nonzero().flatten().tolist()}

    def score_table(self, table: pd.DataFrame, description: str = "score", database: str | None = None) -> np.ndarray:
        """Raw scores (n,) of a table; they may lie outside 0..100.

        Args:
            table: columns image, path, mos, mos_std.
            description: shown beside the progress bar.
            database: the images are of it; a model trained on several databases knows the scale of each.
        """
        preparation = self.preparation if self.preparation.covers(table) else self.plain
        scores = self._predict(preparation, preparation.dataset(table), description)
        slope, offset = self.scales.get(database or "", (1.0, 0.0))
        return (scores - offset) / slope

    def _predict(
        self, preparation: Preparation | FrozenFeatures, dataset: CropDataset | FeatureDataset, description: str
    ) -> np.ndarray:
        loader = self._loader(dataset)
        return predict(preparation.network, loader, preparation.to_images, self.accelerator, description)


class _TolerantCrops(CropDataset):
    """Crops of images that may be unreadable: their crops are black, and `unreadable` (n,) is set."""

    def __init__(self, table: pd.DataFrame, config: Config):
        super().__init__(table, config)
        self.unreadable = torch.zeros(len(table), dtype=torch.bool).share_memory_()  # workers write to it

    def _pixels(self, row: int) -> np.ndarray:
        try:
            return super()._pixels(row)
        except UserError:
            self.unreadable[row] = True
            return np.zeros((3, self.config.patch_size, self.config.patch_size), dtype=np.uint8)


def _unlabelled(images: Sequence[str | Path]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame({"image": [Path(i).name for i in images], "path": [str(i) for i in images]})
    return table.assign(mos=np.nan, mos_std=np.nan)


def _problem(path: str | Path) -> str:
    try:
        open_rgb(path)
    except UserError as error:
        return str(error)
    return f"{path}: could not be read when its turn came, and can be now: score it again"


def load_model(checkpoint: str | Path = DEFAULT, device: str = "auto", **changes) -> Scorer:
    """The Scorer of a model that comes with the package, or of a finished run.

    Args:
        checkpoint: the name of a model that comes with the package (`smart_iqa.shipped`), a run's folder, a checkpoint
            file in it, a file that `smart-iqa pack` wrote, or a file of the published HyperIQA or SMART-IQA code
            (.pth, .pkl), which is scored with the default settings.
        device: `auto`, `cpu`, `cuda` or `mps`.
        **changes: settings of the run to replace, for example `test_mode="grid"`.

    Raises:
        UserError: no such run, or a checkpoint that does not fit.
    """
    file = checkpoint_file(checkpoint)
    if is_published(checkpoint):
        config = Config(device=device, **changes)
        return Scorer(model_from_published(read_state_dict(file)), config, make_accelerator(device))
    tensors, records = read_checkpoint(file)
    made = records["made"]
    config = dataclasses.replace(_config_of(file, made), device=device, **changes)
    model = SmartIQA(**made["architecture"])
    load_model_state(model, tensors, file)
    scorer = Scorer(model, config, make_accelerator(device, config.precision), scales=made.get("scales"))
    scorer.meaning = Meaning(**made["meaning"]) if "meaning" in made else None
    return scorer


def is_published(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is a file of the published code; this project's are folders, or .safetensors files there."""
    return Path(checkpoint).is_file() and Path(checkpoint).suffix != ".safetensors"


def run_folder(checkpoint: str | Path) -> Path:
    """The folder of a run, or the one that a checkpoint file lies in."""
    path = Path(checkpoint)
    return path if path.is_dir() else path.parent


def load_run_config(checkpoint: str | Path) -> Config:
    """The settings of a finished run.

    Raises:
        UserError: no such run.
    """
    file = checkpoint_file(checkpoint)
    beside = file.with_name("config.yaml")
    return load_config(beside) if beside.is_file() else _config_of(file, read_checkpoint(file)[1]["made"])


def _config_of(file: Path, made: dict) -> Config:
    """The settings that a packed model carries, or those beside a run's checkpoint."""
    return resolve(made["config"]) if "config" in made else load_config(file.with_name("config.yaml"))
