"""Features of a frozen backbone, computed once: images of a table -> features of every crop and flip, on disk.

Takes the place of decoding, `to_images` and the backbone where `--freeze_backbone` is set: `FeatureNetwork` takes
these features (B, D) instead of images, and gives the same scores up to their rounding to half precision. Under a
frozen backbone crops lie by the image alone (see `CropDataset`), so one cache serves every epoch, split and seed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from data_loader import (
    UNCHANGED,
    Batch,
    CropDataset,
    Labels,
    PixelCache,
    Preparation,
    augmentation,
    image_fingerprint,
    resized_sizes,
    seeded_generator,
    test_loader,
    to_images,
)
from iqa.config import Config, parse_resize
from iqa.data import Names, RowCache
from iqa.errors import UserError
from iqa.folding import folded
from iqa.runtime import autocast, precision_of
from iqa.system import progress
from models_swin import Backbone, Ensemble, JoinedBackbone, SmartIQA

if TYPE_CHECKING:
    import pandas as pd

_PIXELS_AT_ONCE = 64 * 224**2


class FeatureNetwork(SmartIQA):
    """A network that is called with its `pooled_features` (B, D) in the place of images.

    It holds the modules of `model` by the same names: what one learns the other knows, and their checkpoints are one.
    """

    model: SmartIQA | Ensemble

    def __init__(self, model: SmartIQA | Ensemble):
        nn.Module.__init__(self)
        self._modules = model._modules
        object.__setattr__(self, "model", model)  # no module beside its own modules: their names stay
        self.freeze_backbone, self.freeze_batch_norm = model.freeze_backbone, True  # a frozen backbone's stays anyway

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (B, D) -> scores (B,)."""
        return self.model.score_features(features)


class FrozenFeatures:
    """The pooled features of a table's images under a frozen backbone: two caches, of training and of test crops.

    Does for the tables that it covers what `Preparation` does for any; its `network` takes the features.

    Args:
        folder: where the caches of this database lie.
        table: all images of the database, of whatever part.
        config: the run's settings.
        model: gives the backbone and what of it is read.
        accelerator: devices and processes; each process computes its share.

    Raises:
        UserError: the fusion has no pooled features, or there is no room for them.
    """

    def __init__(
        self, folder: Path, table: pd.DataFrame, config: Config, model: SmartIQA | Ensemble, accelerator: Accelerator
    ):
        self.config, self.network, self.accelerator = config, FeatureNetwork(model), accelerator
        self.paths = Names(table["path"])
        self.size = sum(channels * side**2 for _, channels, side in model.feature_grids)
        self.shapes = {
            True: (config.train_patch_num, 1 + config.flip, self.size),
            False: (config.test_crops, 1, self.size),
        }
        device = accelerator.device.type
        made_by = {"images": image_fingerprint(table), "device": device, "grids": model.feature_grids}
        made_by |= {"precision": precision_of(accelerator)}
        made_by |= _backbone_record(model.backbone)
        self.rows: dict[bool, RowCache] = {}
        for training, shape in self.shapes.items():
            of = "training" if training else "test"
            key, sizes = _settings(config, training) | made_by, [2 * int(np.prod(shape))] * len(table)
            name, what = folder / f"features_{of}", f"{of} features of a frozen backbone"
            self.rows[training] = RowCache(name, key, sizes, what, config.cache_limit, piecewise=True)
            if training and self._one_of_a_kind(table):
                self.rows[False] = self.rows[True]
                break

    def covers(self, table: pd.DataFrame) -> bool:
        """Whether every image of a table is one of this cache's."""
        return bool((self.paths.find(table["path"]) >= 0).all())

    def dataset(self, table: pd.DataFrame, training: bool = False) -> FeatureDataset:
        """The features of some images, computed now where they are not there yet.

        Args:
            table: columns image, path, mos, mos_std.
            training: training crops with both flips, instead of test crops.
        """
        wanted = self.paths.find(table["path"])
        assert (wanted >= 0).all(), "a table with images that are not in the cache"
        self.rows[training].reserve(wanted)
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        missing = self.rows[training].missing(wanted)[mine::processes]
        self._compute(table[np.isin(wanted, missing)], training)
        self.accelerator.wait_for_everyone()
        missing = self.rows[training].missing(wanted)  # nodes that share no disk: the others' share
        self._compute(table[np.isin(wanted, missing)], training)
        return FeatureDataset(table, self)

    def _one_of_a_kind(self, table: pd.DataFrame) -> bool:
        """Whether a training crop is its image, whole and never mirrored: then it is the test crop too."""
        if self.config.flip or self.shapes[True] != self.shapes[False]:
            return False
        sizes = resized_sizes(table, parse_resize(self.config.resize), self.config.patch_size)
        return bool((sizes == self.config.patch_size).all())

    def to_images(self, features: Tensor, augment: Tensor, jitter: bool = False) -> Tensor:
        """What `network` takes in the place of images: features (B, K, D) float16 -> (B*K, D) float32."""
        return features.flatten(0, 1).float()

    def read(self, path: str, training: bool) -> np.ndarray:
        """Features (K, flips, D) float16 of an image's crops."""
        content = self.rows[training].read(self.paths.row(path))
        if content is None:
            raise UserError(f"the features of {path} were damaged on disk: start again, they are then computed anew")
        return content.view(np.float16).reshape(self.shapes[training])

    @torch.inference_mode()
    def _compute(self, table: pd.DataFrame, training: bool) -> None:
        if table.empty:
            return
        table = table.reset_index(drop=True)
        images_at_once = max(1, _PIXELS_AT_ONCE // self.config.patch_size**2 // self.shapes[training][0])
        loader = test_loader(CropDataset(table, self.config, frozen_crops=training), self.config, images_at_once)
        self.network.to(self.accelerator.device).eval()
        network: Any = folded(self.network.model)  # the same kind of network
        for batch in progress(loader, "features", show=self.accelerator.is_main_process):
            features = self._features(batch, self.shapes[training][1], network).cpu().numpy()
            for path, content in zip(table["path"][batch.index.numpy()], features, strict=True):
                self._write(path, content, training)

    def _write(self, path: str, content: np.ndarray, training: bool) -> None:
        if not np.isfinite(content).all():
            raise UserError(f"{path}: its features exceed half precision; give --no_cache")
        self.rows[training].write(self.paths.row(path), content)

    def _features(self, batch: Batch, flips: int, network: SmartIQA | Ensemble) -> Tensor:
        """(B, K, flips, D) float16, unflipped first."""
        B, K = batch.crops.shape[:2]
        device, backbone = self.accelerator.device, self.network.backbone
        images = to_images(batch.crops.to(device), batch.augment.to(device), backbone.mean, backbone.std)
        with autocast(self.accelerator):
            views = [network.pooled_features(i) for i in (images, images.flip(-1))[:flips]]
        return torch.stack(views, dim=1).half().unflatten(0, (B, K))


class FeatureDataset(Dataset):
    """As `CropDataset`, with features (B, K, D) float16 in the place of crops.

    Args:
        table: columns image, path, mos, mos_std.
        features: holds all of them.
    """

    def __init__(self, table: pd.DataFrame, features: FrozenFeatures):
        self.images, self.paths, self.labels = Names(table["image"]), Names(table["path"]), Labels.of(table)
        self.features = features

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict:
        """The state that worker processes get: they read features, so the network stays behind."""
        reader = object.__new__(FrozenFeatures)
        reader.__dict__ = {**self.features.__dict__, "network": None, "accelerator": None}
        return {**self.__dict__, "features": reader}

    def __getitems__(self, indices: Sequence[int | tuple[int, int, int]]) -> Batch:
        """A batch of features: an index is a row for its test crops, or (row, epoch, crop) for one of training."""
        rows = [i[0] if isinstance(i, tuple) else i for i in indices]
        chosen = [self._training(*i) if isinstance(i, tuple) else self._test(i) for i in indices]
        features = torch.from_numpy(np.stack(chosen))  # (B, K, D)
        augment = features.new_tensor(UNCHANGED, dtype=torch.float32).expand(*features.shape[:2], -1)
        return Batch(features, augment, *self.labels.rows(rows))

    def _training(self, row: int, epoch: int, crop: int) -> np.ndarray:
        config = self.features.config
        rng = seeded_generator("train", config.seed, self.images[row], epoch, crop)
        flip = int(augmentation(rng, jitter=False, flip=config.flip)[0])
        features = self.features.read(self.paths[row], training=True)
        return features[crop % config.train_patch_num, flip][None]  # (1, D)

    def _test(self, row: int) -> np.ndarray:
        return self.features.read(self.paths[row], training=False)[:, 0]  # (K, D)


def prepare_images(
    config: Config, folder: Path, table: pd.DataFrame, model: SmartIQA | Ensemble, accelerator: Accelerator
) -> Preparation | FrozenFeatures:
    """How a run's images come to its network: cached features of a frozen backbone, or cached or plain pixels.

    Args:
        config: the run's settings.
        folder: where the caches of these images lie.
        table: all images that training reads, of whatever part.
        model: the network.
        accelerator: devices and processes.
    """
    if config.cache and config.freeze_backbone:
        return FrozenFeatures(folder, table, config, model, accelerator)
    return Preparation(model, config, PixelCache(folder, table, config) if config.cache else None)


def _settings(config: Config, training: bool) -> dict:
    """The settings that decide what pixels the backbone sees, and the packages that compute."""
    crops = {"training": config.train_patch_num} if training else {config.test_mode: config.test_crops}
    crops |= {"mirrored": False} if training and not config.flip else {}
    settings = {"patch_size": config.patch_size, "resize": config.resize, "crops": crops}
    return settings | {package: importlib.metadata.version(package) for package in ("torch", "timm", "pillow")}


def _backbone_record(backbone: Backbone | JoinedBackbone) -> dict:
    """What decides a backbone's features: tensors alone do not tell `efficientnet_lite0` from its tf_ namesake."""
    digest = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    record = {"tensors": digest.hexdigest(), "architecture": backbone.timm_name, "padded_to": backbone.patch}
    if isinstance(backbone, JoinedBackbone):
        record |= {"scales": backbone.scales, "deviation": backbone.deviation}
    return record | {"mean": backbone.mean, "std": backbone.std}
