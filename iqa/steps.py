"""Where a run stands, and the steps of an epoch, whose numbers come from the device when nobody waits for them.

The solver takes a step before it knows whether its numbers are finite: the device itself leaves the weights alone
where they are not (`iqa.optimization.step_only_where`). A step is settled when its numbers have come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Progress:
    """Where a run stands; stored in `last.safetensors`."""

    epochs_done: int = 0
    best_epoch: int = 0
    best_srcc: float = -math.inf
    stopped_early: bool = False

    def epochs_without_gain(self) -> int:
        """Epochs since validation was last at its best."""
        return self.epochs_done - self.best_epoch


@dataclass
class EpochSoFar:
    """What an epoch has done so far; stored in `last.safetensors`, so that a run can go on within an epoch."""

    epoch: int = 0
    batches: int = 0  # up to the last step
    loss_sum: float = 0.0  # over crops, in float32; a loss that is not finite is left out
    crops: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0  # up to now, from earlier epochs too
    seconds: float = 0.0

    def count(self, losses: Iterable[float], sizes: Iterable[int]) -> None:
        """Add the losses of batches, each of so many crops."""
        for loss, size in zip(losses, sizes, strict=True):
            if math.isfinite(loss):
                self.loss_sum = float(np.float32(self.loss_sum) + np.float32(loss) * np.float32(size))
                self.crops += size


class Learned(NamedTuple):
    """A batch whose gradient waits for its step."""

    loss: Tensor  # (), of the whole batch
    size: int  # crops of the whole batch
    scores: Tensor  # (n,) of this process
    index: Tensor  # (n,) rows of the training table


class Step(NamedTuple):
    """A step that is asked for, and whose numbers may still be on their way."""

    learned: list[Learned]
    read: Callable[[], list[float]]  # the numbers, as `step_numbers` gives them
    taken: bool  # False where fp16 is known to have overflowed


def step_numbers(learned: list[Learned], model: nn.Module, scaled: bool) -> Tensor:
    """The losses of a step's batches and the largest part of the gradient (n + 1,), on the device.

    Args:
        learned: what the step is made of.
        model: holds the gradient.
        scaled: by a loss scale, which sees to the gradient itself: 0 stands for it.
    """
    losses = torch.stack([each.loss for each in learned])
    if scaled:
        return torch.cat([losses, losses.new_zeros(1)])
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
    return torch.cat([losses, largest[None]])


def suspects(learned: list[Learned], names: list[str]) -> dict[str, None]:
    """The images of a step that is not finite, in order: of each batch those whose score is not, or else all.

    Args:
        learned: what the step is made of.
        names: of the training table's images, by row.
    """
    found: dict[str, None] = {}
    for _, _, scores, index in learned:
        bad = index[~scores.isfinite()]
        found |= {names[row]: None for row in (bad if len(bad) else index).tolist()}
    return found
