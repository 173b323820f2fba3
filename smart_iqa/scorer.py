"""A finished run -> `Scorer`: every score of an image comes from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from data_loader import CropDataset, Preparation, test_loader
from iqa.checkpoint import load_model_state, read_checkpoint
from iqa.config import Config, load_config, resolve
from iqa.evaluation import predict
from iqa.pretrained import read_state_dict
from iqa.runtime import autocast, fuse_attention, make_accelerator
from models_swin import SmartIQA, build_network
from smart_iqa.frozen_features import FeatureDataset, FrozenFeatures
from smart_iqa.inputs import Images, OneImage, as_images, check_batch, clip_scores, crops_of, is_one
from smart_iqa.published import model_from_published
from smart_iqa.shipped import DEFAULT, Meaning, checkpoint_file

if TYPE_CHECKING:
    import pandas as pd


class Scorer:
    """A model with the preprocessing it was trained with.

    `score` takes files and images of any kind and gives numbers. Called with a batch, a Scorer gives scores with
    their gradients: the same thing measures images and teaches a network that makes them. Several threads may use
    one Scorer at the same time.

    Args:
        model: the network.
        config: the run's settings; crops and resizing are read from it.
        accelerator: devices and processes.
        preparation: prepares the tables that it covers, for example from a cache; None decodes every image.
        scales: slope and offset of the databases it was trained on (see `training_data.Scale`), if several.
        name: what the model is called; None takes the run's.

    Attributes:
        score_range: lowest and highest score.
        higher_is_better: whether a higher score means a better image.
        name: of the model.
    """

    score_range: tuple[float, float] = (0.0, 100.0)
    higher_is_better: bool = True

    def __init__(
        self,
        model: SmartIQA,
        config: Config,
        accelerator: Accelerator,
        preparation: Preparation | FrozenFeatures | None = None,
        scales: dict[str, tuple[float, float]] | None = None,
        name: str | None = None,
    ):
        self.name = name or config.run_name
        self.model, self.config, self.accelerator = model.to(accelerator.device).eval(), config, accelerator
        fuse_attention(self.model, config.fused_attn, accelerator)
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
            non_blocking=True,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Quality of each image of a batch, differentiable: `100 - model(images).mean()` is a loss.

        Crops and resizing are those of `score`, to within hundredths of a score. Images that need no resizing are
        taken as they are, not rounded to 8 bits. A score outside the scale is set to its end and keeps its gradient.
        The weights do not learn (`load_model` freezes them).

        Args:
            images: RGB (B, 3, H, W), float in 0..1, of any size. They need not be on the model's device.

        Returns:
            (B,) on 0..100, higher is better, on the device of the images.

        Raises:
            UserError: another shape, type or range.
        """
        check_batch(images)
        crops = crops_of(images.to(next(self.model.parameters()).device, torch.float32), self.config)
        with autocast(self.accelerator):
            crop_scores = self.model(self.model.backbone.normalise(crops.flatten(0, 1)))  # (B*K,)
        scores = crop_scores.float().unflatten(0, crops.shape[:2]).mean(dim=1)  # (B,)
        return clip_scores(scores).to(images.device)

    @overload
    def score(self, images: OneImage) -> float: ...  # type: ignore[overload-overlap]  # a text is a list of texts too

    @overload
    def score(self, images: Tensor | Iterable[OneImage | Tensor]) -> np.ndarray: ...

    def score(self, images: Images) -> float | np.ndarray:
        """Quality of an image, or of several: 0..100, higher is better.

        Args:
            images: a file, a PIL image, an array (H, W, 3), a batch (B, 3, H, W), or a list of these. Arrays and
                batches are RGB, uint8 or float in 0..1; floats are rounded to 8 bits, so that an image has the
                score of its file. Random crops lie by a file's name; in memory as those of an image without one.

        Returns:
            A float for one image, else an array (n,) in the order given. Scores outside the scale are set to its end.

        Raises:
            UserError: a file is missing or not an image, or another kind, shape or range.
        """
        given = as_images(images)
        if not given:
            return np.empty(0)
        dataset = self.plain.dataset(_unlabelled(given))
        dataset.paths = given  # type: ignore[assignment]  # images in memory have no path
        scores = self._predict(self.plain, dataset, "score").clip(0, 100)
        return float(scores[0]) if is_one(images) else scores

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
        network, to_images, at_once = preparation.network, preparation.to_images, self.config.test_batch_size or None
        return predict(network, self._loader(dataset), to_images, self.accelerator, description, at_once)


def _unlabelled(images: Sequence[str | Path | Image.Image]) -> pd.DataFrame:
    """A table of files; an image in memory has neither name nor path."""
    import pandas as pd

    paths = ["" if isinstance(image, Image.Image) else str(image) for image in images]
    table = pd.DataFrame({"image": [Path(path).name for path in paths], "path": paths})
    return table.assign(mos=np.nan, mos_std=np.nan)


def load_model(checkpoint: str | Path = DEFAULT, device: str = "auto", **changes) -> Scorer:
    """The Scorer of a model that comes with the package, or of a finished run; its weights are frozen.

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
        config = Config(**{"device": device, "precision": "fp32"} | changes)
        model = model_from_published(read_state_dict(file)).requires_grad_(False)
        return Scorer(model, config, make_accelerator(device, config.precision), name=file.stem)
    tensors, records = read_checkpoint(file)
    made = records["made"]
    config = dataclasses.replace(_config_of(file, made), device=device, **changes)
    network: Any = build_network(**made["architecture"])  # an ensemble does what a network does
    load_model_state(network, tensors, file)
    accelerator = make_accelerator(device, config.precision)
    name = file.stem if "config" in made else file.resolve().parent.name
    scorer = Scorer(network.requires_grad_(False), config, accelerator, scales=made.get("scales"), name=name)
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
