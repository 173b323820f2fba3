"""What a run's settings make of a model's parameters: an optimizer, its schedule, and an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from iqa.config import Config
from iqa.system import declare_missing_operators

declare_missing_operators()
import timm.optim  # noqa: E402  (importing timm imports torchvision, which needs the line above)

COSINE_FLOOR = 0.01  # each group ends at this fraction of its own start
STEP_EVERY, STEP_FACTOR = 6, 0.1
MUON_REST = 1 / 8  # what is no matrix learns at this times the rate of a matrix


class Muon(timm.optim.Muon):
    """Orthogonalised momentum for matrices (Jordan et al. 2024), AdamW with Nesterov's momentum for all else."""

    found_inf: Tensor | None = None

    def step(self, closure: Callable | None = None) -> float | None:
        """Change the weights, unless `step_only_where` was told that the step's numbers are not finite."""
        if self.found_inf is not None and self.found_inf:  # no fused kernel could ask the device by itself
            return None
        return super().step(closure)


def make_optimizer(groups: list[dict], config: Config) -> torch.optim.Optimizer:
    """The optimizer of a run, over groups that carry their own learning rate."""
    if config.optimizer == "muon":
        return Muon(groups, weight_decay=config.weight_decay, nesterov=True, fallback_lr_scale=MUON_REST)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}
    optimizer = kind[config.optimizer](groups, weight_decay=config.weight_decay, fused=True)  # for `step_only_where`
    if config.optimizer == "sgd":  # a fused one leaves its buffers as memory was, where its first step changes nothing
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def step_only_where(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer's next step change nothing, its own state included, unless `finite` (a truth value, ()).

    In a fused optimizer the device decides, as it does for a loss scale, so that nobody waits for it.
    """
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]


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


class WeightAverage(AveragedModel):
    """An exponential average of a model's floating-point state; integers are the model's own.

    It counts on the CPU: torch's own average asks the device in each update whether it is the first.

    Args:
        model: to average.
        device: where the average lies.
        decay: how much of the average an update keeps.
    """

    def __init__(self, model: nn.Module, device: torch.device, decay: float):
        super().__init__(model, device=device, use_buffers=True)
        self.decay, self.n_averaged = decay, self.n_averaged.cpu()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the state of `model` in; the first time it is the average."""
        averaged, current = ([*each.parameters(), *each.buffers()] for each in (self.module, model))
        pairs = list(zip(averaged, current, strict=True))
        floats = [pair for pair in pairs if self.n_averaged and pair[0].is_floating_point()]
        others = [pair for pair in pairs if not (self.n_averaged and pair[0].is_floating_point())]
        if floats:
            torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - self.decay)
        if others:  # an index between two others would point to a third thing
            torch._foreach_copy_(*map(list, zip(*others, strict=True)))
        self.n_averaged += 1


def make_average(model: nn.Module, config: Config, device: torch.device) -> WeightAverage | None:
    """The average of the weights, if the settings ask for one."""
    return None if config.ema_decay is None else WeightAverage(model, device, config.ema_decay)
