"""What a run's settings make of a model's parameters: an optimizer, its schedule, and an average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from iqa.config import Config

COSINE_FLOOR = 0.01  # each group ends at this fraction of its own start
STEP_EVERY, STEP_FACTOR = 6, 0.1


def make_optimizer(groups: list[dict], config: Config) -> torch.optim.Optimizer:
    """The optimizer of a run, over groups that carry their own learning rate."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=config.weight_decay)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    return kind(groups, weight_decay=config.weight_decay, fused=True)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A factor on every group's own starting rate, stepped once per optimizer step."""
    steps = config.epochs * steps_per_epoch

    def cosine(step: int) -> float:
        return COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))

    def staircase(step: int) -> float:
        return STEP_FACTOR ** (step // steps_per_epoch // STEP_EVERY)

    decay = {"cosine": cosine, "step": staircase, "none": lambda step: 1.0}[config.lr_scheduler]
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: decay(step) * min(1.0, (step + 1) / (warmup_steps + 1))
    )


def make_average(model: nn.Module, config: Config, device: torch.device) -> AveragedModel | None:
    """An exponential average of the floating-point state, if the settings ask for one; integers are the model's own."""
    if config.ema_decay is None:
        return None
    average_floats = get_ema_multi_avg_fn(config.ema_decay)

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        if averaged[0].is_floating_point():
            average_floats(averaged, current, count)
        else:  # an index between two others points to a third thing
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, device=device, multi_avg_fn=average, use_buffers=True)
