"""Pretraining of a backbone without any score: a folder of photographs -> weights that know contents and distortions.

Two terms. *Distil*: the student's four stages, each through a 1x1 convolution, learn the standardised stages of a
frozen teacher that ImageNet taught (as Locality Guidance does for small data: Li et al., ECCV 2022), and their
averages over positions, which are what a head sees. *Quality*: from the student's pooled stages a small network learns
how similar a distorted crop is to its original (HaarPSI), and the order of a triplet. Distilling alone (`photo_weight`
0) shows the student crops, half of them in other colours and half mixed with another one: few photographs so give many
contents (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022; Asano and Saeed,
"The augmented image prior", ICLR 2023). With the quality term it learns both from triplets. The solver is
that of training; only batch, loss and validation are others.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from data_loader import EpochSampler, ShardedBatches
from HyperIQASolver_swin import HyperIQASolver
from iqa.config import Config
from iqa.errors import UserError
from iqa.metrics import plcc, srcc
from iqa.photographs import Photographs, Triplets, held_out, list_photographs, make_triplets, order_loss
from iqa.pretrained import load_backbone_weights
from iqa.results import provenance
from iqa.runtime import autocast, fuse_attention, make_accelerator, seed_everything
from iqa.system import shard_sizes, sum_shares, to_device, write_atomically, write_json
from iqa.watching import require_tracker
from models_swin import Backbone
from smart_iqa.runs import open_run_dir, remove_what_only_continuing_needs, require_new

log = logging.getLogger(__name__)

AVERAGES_WEIGHT = 0.25  # of the stages' averages beside their maps, in training
HUES, TONES, TINTS = 0.4, 0.3, 0.1  # deviations of what `recoloured` draws
SMALLEST_DEVIATION = 0.2  # of the teacher's averages, whose maps have deviation 1
MARGIN = 0.02  # of the order in a triplet, in HaarPSI
STATISTICS_BATCHES = 8  # that the teacher's channels are standardised by
_HELD_OUT_SEED = 2**40  # no training batch has it


class PhotoBatch(NamedTuple):
    """Which photographs a step shows, and the seed of all that is random in it."""

    rows: tuple[int, ...]  # no tensor: the solver's loader would bring it to the device, and it is needed here
    index: Tensor  # type: ignore[assignment]  # (B,) of the same photographs in the dataset, as in `Batch`
    seed: int
    epoch: int


class Terms(NamedTuple):
    """What a batch gave: the terms of the loss, and what validation compares."""

    distil: Tensor  # share of the standardised stages' variance left unexplained; in training that of averages is added
    quality: Tensor  # loss of the quality network, 0 where it does not learn
    scores: Tensor  # (B,) quality of the crops as they are
    predicted: Tensor  # quality of the distorted copies, or else the stages' averages
    true: Tensor  # what they should be


class PhotoNumbers(Dataset):
    """Numbers of photographs; the crops are made where they are used."""

    def __init__(self, rows: Sequence[int], files: Sequence[Path]):
        self.rows, self.images = list(rows), [files[row].name for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[tuple[int, int, int]]) -> PhotoBatch:
        """A batch of (row, epoch, crop)."""
        row, epoch, crop = indices[0]
        rows = tuple(self.rows[i] for i, _, _ in indices)
        index = torch.tensor([i for i, _, _ in indices])
        return PhotoBatch(rows, index, (epoch * 4096 + crop) * len(self.rows) + row, epoch)


class Student(nn.Module):
    """A backbone with what it learns by: a projection to each of the teacher's stages, and a quality network.

    Args:
        backbone: to be trained.
        teacher_channels: of the teacher's four stages.
    """

    def __init__(self, backbone: Backbone, teacher_channels: Sequence[int]):
        super().__init__()
        self.backbone = backbone
        self.projections = nn.ModuleList(
            nn.Conv2d(own, taught, 1) for own, taught in zip(backbone.channels, teacher_channels, strict=True)
        )
        self.quality = nn.Sequential(
            nn.LayerNorm(sum(backbone.channels)), nn.Linear(sum(backbone.channels), 256), nn.GELU(), nn.Linear(256, 1)
        )

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images (B, 3, H, W) in 0..1 -> the teacher's four maps as the student sees them, and quality (B,)."""
        stages = self.backbone(self.backbone.normalise(images))
        taught = [project(stage) for project, stage in zip(self.projections, stages, strict=True)]
        pooled = torch.cat([stage.mean(dim=(2, 3)) for stage in stages], dim=1)
        return taught, self.quality(pooled).squeeze(1)

    def parameter_groups(self, lr: float, lr_ratio: float, layer_decay: float | None = None) -> list[dict]:
        """One group: everything is new and learns at `lr`."""
        return [{"name": "student", "params": list(self.parameters()), "lr": lr}]


class Teacher(nn.Module):
    """A frozen backbone whose stages are standardised channel by channel.

    Args:
        name: any backbone whose ImageNet weights can be had.
    """

    def __init__(self, name: str):
        super().__init__()
        self.backbone = Backbone(name).eval().requires_grad_(False)
        self.source = load_backbone_weights(self.backbone)
        self.moments: list[tuple[Tensor, Tensor]] = []  # mean and deviation (C, 1, 1) of each stage
        self.spreads: list[Tensor] = []  # deviation (C,) of each stage's averages over positions, once standardised

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in 0..1 -> four maps."""
        stages = self.backbone(self.backbone.normalise(images))
        return [(s - mean) / deviation for s, (mean, deviation) in zip(stages, self.moments, strict=True)]

    @torch.no_grad()
    def measure(self, batches: Sequence[Tensor]) -> None:
        """Take mean and deviation of every channel from batches of images."""
        by_stage = zip(*(self.backbone(self.backbone.normalise(images)) for images in batches), strict=True)
        maps = [torch.cat([s.float().flatten(2) for s in stages]) for stages in by_stage]  # each (N, C, H * W)
        self.moments = [_moments(stage) for stage in maps]
        self.spreads = [
            (stage.mean(dim=2).std(dim=0) / deviation.flatten()).clamp(min=SMALLEST_DEVIATION)
            for stage, (_, deviation) in zip(maps, self.moments, strict=True)
        ]


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = maps.mean(dim=(0, 2)), maps.std(dim=(0, 2)).clamp(min=1e-3)
    return mean[:, None, None], deviation[:, None, None]


class PretrainingSolver(HyperIQASolver):
    """The solver of training with triplets of photographs for images and scores.

    Args:
        teacher: gives the features to learn.
        photographs: all of them, on the device.
        **options: of `HyperIQASolver`.
    """

    def __init__(self, teacher: Teacher, photographs: Photographs, **options: Any):
        super().__init__(**options)
        self.val_loader = options["val_loader"]  # every process sees all photographs held out: they are few
        self.teacher, self.bank = teacher, photographs

    def batch_loss(self, batch: PhotoBatch, size: int, number: int) -> tuple[Tensor, Tensor]:
        """The weighted terms of the whole batch, and the quality of the crops here."""
        seed = self.config.seed + batch.seed * self.accelerator.num_processes + self.accelerator.process_index
        terms = self._losses(self.model, batch, self._side(batch.epoch), seed)
        total = self._total(terms)
        mine = shard_sizes(size, self.accelerator.num_processes)[self.accelerator.process_index]
        return sum_shares(self.accelerator, total * (mine / size)), terms.scores

    def _side(self, epoch: int) -> int:
        """Crops grow as the epochs go: each side of `photo_sides` has its share of them."""
        sides = self.config.photo_sides
        return sides[min((epoch - 1) * len(sides) // self.config.epochs, len(sides) - 1)]

    def sample(self, rows: Sequence[int], number: int) -> Tensor:
        """Crops (B, 3, side, side) of every eighth photograph, of up to 64, as a step would show them."""
        some = torch.tensor(rows[number::STATISTICS_BATCHES][:64])
        crops = self._crops(some, self.config.photo_sides[-1], _HELD_OUT_SEED - 1 - number, mix=True)
        return crops.images.flatten(0, 1)

    def _total(self, terms: Terms) -> Tensor:
        return self.config.distil_weight * terms.distil + self.config.photo_weight * terms.quality

    def _losses(self, model: nn.Module, batch: PhotoBatch, side: int, seed: int) -> Terms:
        images, similarity = self._crops(torch.tensor(batch.rows), side, seed, mix=model.training)
        images = images.flatten(0, 1)
        with autocast(self.accelerator):
            taught, quality = model(images)
            truth = self.teacher(images)
        quality = quality.float().view(len(similarity), -1)
        distil = torch.stack([F.mse_loss(own.float(), t.float()) for own, t in zip(taught, truth, strict=True)]).mean()
        if model.training:
            distil = distil + AVERAGES_WEIGHT * averages_loss(taught, truth, self.teacher.spreads)
        if not self.config.photo_weight:
            nothing = 0 * quality.sum()  # several processes need a gradient of every parameter
            return Terms(distil, nothing, quality[0], _averages(taught), _averages(truth))
        loss = F.smooth_l1_loss(quality, similarity, beta=0.1) + order_loss(quality, MARGIN)
        return Terms(distil, loss, quality[0], quality[1:], similarity[1:])

    def _crops(self, rows: Tensor, side: int, seed: int, mix: bool) -> Triplets:
        """Triplets; in their place crops, augmented if so asked, where no quality is learned."""
        if self.config.photo_weight:
            return make_triplets(self.bank, rows, side, seed)
        generator = torch.Generator().manual_seed(seed)
        crops = self.bank.crops(rows, side, generator)
        crops = augmented(crops, generator) if mix else crops
        return Triplets(crops[None], torch.ones(1, len(rows), device=crops.device))

    @torch.no_grad()
    def evaluate(self, loader: DataLoader) -> dict[str, float]:
        """The losses on photographs held out, and how well the quality, or else the averages, are predicted."""
        model, side = self.kept_model.eval(), self.config.photo_sides[-1]
        found = [self._losses(model, batch, side, _HELD_OUT_SEED + number) for number, batch in enumerate(loader)]
        by_field = dict(zip(Terms._fields, zip(*found, strict=True), strict=True))
        predicted, true = (
            torch.cat([part.flatten() for part in by_field[name]]).cpu().numpy().astype(np.float64)
            for name in ("predicted", "true")
        )
        record = {
            "loss": torch.stack([self._total(terms) for terms in found]).mean().item(),
            "distil": torch.stack(by_field["distil"]).mean().item(),
            "srcc": srcc(predicted, true),
            "plcc": plcc(predicted, true),
        }
        # A process's batch statistics are its own until the next step: all go by the first one's, and stop together.
        return broadcast_object_list([record])[0]

    def merit(self, record: dict) -> float:
        """The lower the loss on photographs held out, the better."""
        return -record["val_loss"]


def augmented(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Crops (B, 3, H, W) in 0..1 in other colours, and mixed with each other: what a few photographs do not show."""
    return mixed(recoloured(crops, generator), generator)


def recoloured(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Give half of the crops (B, 3, H, W) in 0..1, which half being drawn, other hues, saturation and gamma."""
    shifts, tints = torch.randn(len(crops), 3, 3, generator=generator), torch.randn(len(crops), 3, generator=generator)
    tone, is_recoloured = (
        torch.randn(len(crops), 1, generator=generator),
        torch.rand(len(crops), generator=generator) < 0.5,
    )
    matrices = torch.eye(3) + HUES * (shifts - shifts.mean(dim=2, keepdim=True))  # what is grey stays grey
    matrices, gammas, chosen = (
        to_device(part, crops.device) for part in (matrices, (TONES * tone + TINTS * tints).exp(), is_recoloured)
    )
    other = torch.einsum("bij,bjhw->bihw", matrices, crops).clamp(0, 1) ** gammas[:, :, None, None]
    return torch.where(chosen[:, None, None, None], other, crops)


def mixed(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Mix half of the crops (B, 3, H, W), which half being drawn, each with another one.

    Half of these are blended in random shares (mixup: Zhang et al., ICLR 2018), in the others a rectangle is the other
    crop's (CutMix: Yun et al., ICCV 2019).
    """
    share, kind = torch.rand(2, len(crops), generator=generator)
    edges = torch.rand(2, 2, len(crops), 1, generator=generator).sort(dim=1).values  # of height and width: (from, to)
    down, across = (
        (low <= place) & (place < high)
        for (low, high), size in zip(edges, crops.shape[2:], strict=True)
        for place in [(torch.arange(size) + 0.5) / size]
    )
    blended = torch.where(kind < 0.25, share, 0.0)[:, None, None]
    pasted = (down[:, :, None] & across[:, None, :] & (kind > 0.75)[:, None, None]).float()
    of_other = to_device(blended + pasted, crops.device)[:, None]
    return (1 - of_other) * crops + of_other * crops.flip(0)


def averages_loss(taught: Sequence[Tensor], truth: Sequence[Tensor], spreads: Sequence[Tensor]) -> Tensor:
    """How far each stage's averages over positions are off the teacher's, as a share of their variance.

    Args:
        taught: of each stage (B, C, H, W), as the student sees it.
        truth: the teacher's.
        spreads: of each stage the deviation (C,) of the teacher's averages.
    """
    off = [(own.float() - t.float()).mean(dim=(2, 3)) for own, t in zip(taught, truth, strict=True)]
    return torch.stack([(o / spread).square().mean() for o, spread in zip(off, spreads, strict=True)]).mean()


def _averages(stages: Sequence[Tensor]) -> Tensor:
    """What a head sees of each stage: (B, channels of all)."""
    return torch.cat([stage.float().mean(dim=(2, 3)) for stage in stages], dim=1)


def pretrain(config: Config, resume: bool = False) -> Path:
    """Pretrain a backbone as a configuration says.

    Args:
        config: gives photos, teacher, photo_sides and both weights beside what training knows.
        resume: go on from the last checkpoint.

    Returns:
        The file of the backbone's weights, for `--backbone_weights`.

    Raises:
        UserError: no photographs, no weights of the teacher, or a run of this name that exists already.
    """
    if config.photos is None:
        raise UserError("photos: give --photos FOLDER, a folder of photographs to learn from")
    require_tracker(config.tracker)
    require_new(config.run_dir, resume)
    files = list_photographs(config.photos)
    if len(files) < 2:
        raise UserError(f"photos: {config.photos} has one photograph; at least 2 are needed")
    accelerator = make_accelerator(config.device, config.precision, config.accumulate)
    solver = _make_solver(config, files, accelerator)
    record: dict[str, Any] = {"config": dataclasses.asdict(config), "provenance": provenance()}
    record["teacher"] = solver.teacher.source
    with open_run_dir(config, accelerator, resume):
        if resume:
            solver.resume_if_begun()
        log.info("%s: %s learns from %s on %d photographs", config.run_dir, config.backbone, config.teacher, len(files))
        progress = solver.fit()
        student = solver.load_best()
        assert isinstance(student, Student)
        weights = config.run_dir / "backbone.safetensors"
        if accelerator.is_main_process:
            save_backbone(student.backbone, weights)
            crops = (3 if config.photo_weight else 1) * solver.crops_per_epoch * progress.epochs_done
            record |= {"photographs": len(files), "crops": crops, "history": solver.history}
            write_json(config.run_dir / "pretraining.json", record)
            remove_what_only_continuing_needs(config)
    accelerator.wait_for_everyone()  # the weights are on disk
    return weights


def _make_solver(config: Config, files: Sequence[Path], accelerator: Accelerator) -> PretrainingSolver:
    seed_everything(config.seed)
    train_files, held_out_files = held_out(files)
    photographs = Photographs([*train_files, *held_out_files], accelerator.device)
    train = PhotoNumbers(range(len(train_files)), photographs.files)
    aside = PhotoNumbers(range(len(train_files), len(files)), photographs.files)
    teacher = Teacher(config.teacher).to(accelerator.device)
    backbone = Backbone(config.backbone, config.drop_path_rate)
    if config.backbone_weights is not None:
        log.info("%s starts from %s", config.backbone, load_backbone_weights(backbone, config.backbone_weights))
    student = Student(backbone, teacher.backbone.channels)
    for network in (teacher, student):
        fuse_attention(network, config.fused_attn, accelerator)
    solver = PretrainingSolver(
        teacher,
        photographs,
        model=student,
        config=config,
        train_loader=_loader(train, config, accelerator),
        val_loader=_loader(aside, dataclasses.replace(config, train_patch_num=1), None),
        to_images=None,
        run_dir=config.run_dir,
        accelerator=accelerator,
        made={"architecture": {"backbone": config.backbone}},
    )
    teacher.measure([solver.sample(train.rows, number) for number in range(STATISTICS_BATCHES)])
    return solver


def _loader(numbers: PhotoNumbers, config: Config, accelerator: Accelerator | None) -> DataLoader:
    process, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sampler = EpochSampler(np.zeros(len(numbers), dtype=int), config.train_patch_num, config.seed)
    batches = ShardedBatches(sampler, config.batch_size, process, processes)
    return DataLoader(numbers, batch_sampler=batches, collate_fn=lambda batch: batch, generator=torch.Generator())


def save_backbone(backbone: Backbone, path: Path, half: bool = False) -> None:
    """Write a backbone's weights under timm's names.

    Args:
        backbone: whose weights.
        path: a .safetensors file.
        half: in half precision: half the size.
    """
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in backbone.body.state_dict().items()
    }
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
