"""What is seen of a run while it goes on: a bar, values for a tracker by step and by epoch, and how long it will take.

The trackers are Accelerate's. TensorBoard counts epochs in `tensorboard/` and steps in `tensorboard/steps/`; Weights &
Biases and MLflow have one axis, of steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from iqa.config import Config
from iqa.errors import UserError
from iqa.system import progress

log = logging.getLogger(__name__)

PROJECT = "smart-iqa"  # of Weights & Biases, and the experiment of MLflow
ESTIMATE_AFTER, WARM_UP = 50, 10  # steps until the run's time is estimated, and those of them that do not count


def require_tracker(name: str) -> None:
    """Before a run: the package of a tracker is there.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--tracker {name} needs the package {name}: pip install 'smart-iqa[{name}]', or leave it out")


def duration(seconds: float) -> str:
    """A time as it is said.

    >>> duration(12), duration(200), duration(7500)
    ('12 s', '3 min', '2 h 5 min')
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 60 else f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Tracker:
    """Takes the values of one run of a process.

    Args:
        config: the run's settings; `tracker` names the kind.
        run_dir: where its files lie, of those that write to the run's folder.
        epoch: the first that will be logged: what a killed process has logged of it and later ones is purged.
        step: the same of steps.
    """

    def __init__(self, config: Config, run_dir: Path, epoch: int, step: int):
        self.run_dir, self._purge_step, self._by_step = Path(run_dir), step, None
        self._one_axis = config.tracker != "tensorboard"
        name = config.run_name
        if config.tracker == "wandb":
            tracker = WandBTracker(PROJECT, dir=str(run_dir), name=name, group=name)  # a resumed run is one more
        elif config.tracker == "mlflow":
            tracker = MLflowTracker(PROJECT, run_name=name)
        else:
            tracker = TensorBoardTracker("tensorboard", run_dir, purge_step=epoch)
        self._tracker = _started(tracker)
        if self._one_axis:
            self._tracker.store_init_configuration(dataclasses.asdict(config))

    def log_epoch(self, record: dict, step: int) -> None:
        """Values of an epoch, after this many steps."""
        if self._one_axis:
            self._tracker.log(record, step=step)
        else:
            self._tracker.log({key: value for key, value in record.items() if key != "epoch"}, step=record["epoch"])

    def log_step(self, values: dict, step: int) -> None:
        """Values of a step."""
        if self._by_step is None:
            steps = TensorBoardTracker("steps", self.run_dir / "tensorboard", purge_step=self._purge_step)
            self._by_step = self._tracker if self._one_axis else _started(steps)
        self._by_step.log({f"step/{key}": value for key, value in values.items()}, step=step)

    def finish(self) -> None:
        """Write what is left, and close the files."""
        for tracker in {self._tracker, self._by_step} - {None}:
            tracker.finish()


def _started(tracker: GeneralTracker) -> GeneralTracker:
    if tracker.name != "wandb":
        tracker.start()
        return tracker
    import wandb

    try:
        tracker.start()
    except wandb.errors.Error as error:
        raise UserError(f"--tracker wandb: {error}; WANDB_MODE=offline needs no account") from error
    return tracker


class Watch:
    """Shows a run and logs it.

    Args:
        config: the run's settings; `tracker` and `log_every` are read.
        run_dir: the run's folder.
        steps_per_epoch: of the optimizer.
        shows: False in processes that stay silent.
    """

    def __init__(self, config: Config, run_dir: Path, steps_per_epoch: int, shows: bool):
        self.config, self.run_dir, self.shows = config, run_dir, shows
        self.steps_per_epoch, self.number = steps_per_epoch, 0  # of the last step
        self._tracker: Tracker | None = None
        self._bar: Any = None
        self._began = self._last = self._measured = 0.0
        self._crops = self._steps = 0

    @contextlib.contextmanager
    def running(self, epochs_done: int, steps_done: int) -> Iterator[None]:
        """While a run goes on there is a tracker, and steps are counted from those that it has done already."""
        self.number = epochs_done * self.steps_per_epoch + steps_done
        if not self.shows:
            yield
            return
        self._tracker = Tracker(self.config, self.run_dir, epochs_done + 1, self.number + 1)
        try:
            yield
        finally:
            self._tracker.finish()
            self._tracker = None

    def epoch(self, batches: Iterable, number: int) -> Iterable:
        """The batches of an epoch under a bar."""
        self._began = self._last = time.perf_counter()
        self._crops = 0
        self._bar = progress(batches, f"epoch {number}", show=self.shows)
        return self._bar

    def log_epoch(self, record: dict) -> None:
        """What an epoch has come to."""
        if self._tracker is not None:
            self._tracker.log_epoch(record, self.number)

    def step(self, losses: Sequence[float], sizes: Sequence[int], rates: Sequence[float]) -> None:
        """Take note of a step.

        Args:
            losses: of its batches.
            sizes: crops of each.
            rates: learning rates of the optimizer's groups; the last one is the head's, the one before the backbone's.
        """
        self.number, self._crops = self.number + 1, self._crops + sum(sizes)
        now = time.perf_counter()
        self._estimate(now)
        if not self.shows:
            return
        loss = math.fsum(map(math.prod, zip(losses, sizes, strict=True))) / sum(sizes)
        speed = self._crops / (now - self._began)
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {rates[-2:][0]:.2e}, {speed:.1f} crops/s", refresh=False)
        every = self.config.log_every
        if self._tracker is not None and every and self.number % every == 0:
            values = {"loss": loss, "lr": rates[-2:][0], "lr_head": rates[-1], "crops_per_s": speed}
            self._tracker.log_step(values, self.number)

    def _estimate(self, now: float) -> None:
        """Say once how long the run will take: by the time of steps, without what lies between epochs."""
        self._steps += 1
        if WARM_UP < self._steps <= ESTIMATE_AFTER:
            self._measured += now - self._last
        self._last = now
        left = self.config.epochs * self.steps_per_epoch - self.number
        if self._steps == ESTIMATE_AFTER and left > 0:
            seconds = self._measured / (ESTIMATE_AFTER - WARM_UP)
            log.info(
                "the %d steps that are left of %d epochs take about %s, without validation; early stopping may end "
                "them sooner", left, self.config.epochs, duration(left * seconds),
            )  # fmt: skip
