"""The training loop: epochs, validation, early stopping, checkpoints. Knows no database and no network class.

It stands between the loaders and the run's folder: `fit` writes `history.jsonl`, `best.safetensors`, `last.safetensors`
and TensorBoard events. A run may be killed at any moment; `resume` goes on to the same bits. The caller tests once,
afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader

from iqa.checkpoint import load_model_state, load_optimizer_state, read_checkpoint, save_checkpoint
from iqa.config import Config
from iqa.errors import Stopped, UserError
from iqa.evaluation import predict
from iqa.losses import make_loss
from iqa.metrics import plcc, srcc
from iqa.optimization import make_average, make_optimizer, make_scheduler, step_only_where
from iqa.photographs import PhotographTerm
from iqa.results import read_history
from iqa.runtime import autocast, flush_denormals, random_states, restore_random_states, seed_pass
from iqa.steps import EpochSoFar, Learned, Progress, Step, step_numbers, suspects
from iqa.system import StopSignals, fetch_later, gather_shares, sum_shares, write_atomically
from iqa.watching import Watch

log = logging.getLogger(__name__)

SKIPS_ALLOWED = 3  # so many steps in a row without a finite loss and gradient stop the run
_AVERAGE = "average."  # prefix of the averaged weights in a checkpoint


class HyperIQASolver:
    """Trains a model and keeps its best state by validation SRCC.

    Each of several processes computes its share of a batch. Every loss is taken over the whole batch, so that the
    number of processes does not change what is learned.

    Args:
        model: images (B, 3, H, W) -> scores (B,); has `parameter_groups(lr, lr_ratio, layer_decay)`.
        config: the run's settings.
        train_loader: this process's share of the training batches; its batch sampler has `set_epoch`.
        val_loader: images of the split that chooses the checkpoint.
        to_images: crops and their augmentation -> normalised images; takes `jitter`.
        run_dir: an existing folder to write to.
        accelerator: devices and processes.
        made: what rebuilds the model, as a record ready for JSON; each checkpoint keeps it.
        photographs: a loss of photographs without scores; `photo_weight` of it is added to each batch's loss.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        train_loader: DataLoader,
        val_loader: DataLoader,
        to_images: Callable[..., torch.Tensor],
        run_dir: Path,
        accelerator: Accelerator,
        made: dict[str, Any],
        photographs: PhotographTerm | None = None,
    ):
        self.photographs = photographs
        self.config, self.run_dir, self.accelerator = config, Path(run_dir), accelerator
        self.to_images, self.made = to_images, made
        databases = 1 + len(config.also_train_on)
        self.loss = make_loss(config.loss_type, config.ranking_loss_alpha, config.ranking_loss_margin, databases)
        self.progress = Progress()
        self.history: list[dict] = []
        self.so_far, self.stop = EpochSoFar(), StopSignals()
        self._between_steps = False  # whether all that a checkpoint would hold belongs to one step
        self._goes_on = False  # whether the next epoch was begun before the run was stopped
        self._since_step: list[Learned] = []
        self._asked: Step | None = None  # the step whose numbers are on their way
        self._suspects: dict[str, None] = {}  # names of images in skipped steps, in order
        groups = model.parameter_groups(config.lr, config.lr_ratio, config.layer_decay)
        optimizer = make_optimizer(groups, config)
        steps_per_epoch = math.ceil(len(train_loader) / config.accumulate)
        self.scheduler = make_scheduler(optimizer, config, steps_per_epoch)
        self.watch = Watch(config, self.run_dir, steps_per_epoch, shows=accelerator.is_main_process)
        self.average = make_average(model, config, accelerator.device)
        # Reading a step's numbers one step later keeps the device busy. Not with fp16, whose loss scale waits anyway,
        # and not where the average takes statistics, which the next batch would have changed by then.
        steady = config.freeze_batch_norm or self.average is None
        self.reads_late = accelerator.device.type == "cuda" and accelerator.scaler is None and steady
        self.crops_per_epoch = len(train_loader.batch_sampler.sampler)
        self.train_loader = prepare_data_loader(  # its batches are this process's shares already
            train_loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=True
        )
        self.model, self.optimizer, self.val_loader = accelerator.prepare(model, optimizer, val_loader)

    @property
    def best_path(self) -> Path:
        """The checkpoint with the best validation SRCC."""
        return self.run_dir / "best.safetensors"

    @property
    def last_path(self) -> Path:
        """The checkpoint that training goes on from: of the last finished epoch, or of a step after it."""
        return self.run_dir / "last.safetensors"

    @property
    def previous_path(self) -> Path:
        """The checkpoint before the last one, which serves if the last one is damaged."""
        return self.run_dir / "previous.safetensors"

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self.last_path.is_file() or self.previous_path.is_file()

    def resume_if_begun(self) -> None:
        """Continue from the last checkpoint; a run that was killed in its first epoch has none and begins anew.

        Raises:
            UserError: the checkpoint that the run would go on from is gone.
        """
        history = self.run_dir / "history.jsonl"
        if self.can_resume:
            self.resume()
        elif history.is_file() and len(read_history(history)) > 1:
            raise UserError(
                f"{self.last_path} is gone, and going on needs it: a complete run keeps it with --keep_last only; "
                "train anew under another --name"
            )

    def fit(self, last_epoch: int | None = None) -> Progress:
        """Train until the last epoch or until validation stops improving.

        Args:
            last_epoch: stop after this epoch (counted from 1) as if killed there; None runs to the end.

        Returns:
            How far the run is.

        Raises:
            UserError: the loss is no longer finite, or memory is too small.
            Stopped: SIGTERM or Ctrl-C came, and what has been learned is saved.
        """
        last_epoch = last_epoch or self.config.epochs
        if self.accelerator.num_processes > 1:  # with one seed all would drop the same units
            done = self.progress.epochs_done, self.so_far.batches
            torch.manual_seed(hash((self.config.seed, self.accelerator.process_index, *done)))
        steps_done = math.ceil(self.so_far.batches / self.config.accumulate) if self._goes_on else 0
        with self.watch.running(self.progress.epochs_done, steps_done), self.stop:
            while self.progress.epochs_done < last_epoch and not self.progress.stopped_early:
                try:
                    record = self._run_epoch(self.progress.epochs_done + 1)
                except RuntimeError:
                    self._stop_if_asked()
                    raise
                self.watch.log_epoch(record)
                if self.stop.asked:
                    raise Stopped(f"stopped after epoch {record['epoch']}", self.stop.asked)
        self.accelerator.wait_for_everyone()  # until the best checkpoint is on disk
        return self.progress

    def _run_epoch(self, epoch: int) -> dict:
        trained = self.train_one_epoch(epoch)
        states = random_states()
        try:
            with self.stop.at_once():
                validated = self.evaluate(self.val_loader)
        except Stopped as stopped:  # the epoch is learned, and validation only draws numbers
            restore_random_states(states)
            self._save_and_stop(stopped.signal)
        record = {"epoch": epoch, **trained, **{f"val_{k}": v for k, v in validated.items()}}
        self._finish_epoch(record)
        return record

    def train_one_epoch(self, epoch: int) -> dict[str, float]:
        """Learn from every training crop once, or from those left of a stopped epoch; `epoch` counts from 1.

        Raises:
            UserError: the loss is not finite in three steps in a row, or memory is too small.
            Stopped: SIGTERM or Ctrl-C came within `fit`.
        """
        self.model.train()
        if not self._goes_on:  # a stopped epoch has drawn its seed already
            self.so_far = EpochSoFar(epoch, skipped_in_a_row=self.so_far.skipped_in_a_row)
            seed_pass(self.train_loader)
        self.train_loader.set_epoch(epoch)  # by Accelerate's loader: it sets the sampler's epoch itself when it starts
        self.train_loader.batch_sampler.start, self._goes_on = self.so_far.batches, False
        try:
            self._learn_batches()
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                raise UserError(
                    f"out of memory in epoch {epoch}: lower --batch_size (and raise --accumulate by as much) or "
                    f"--patch_size, or give --precision bf16; what {self.run_dir} holds is kept"
                ) from error
            raise
        if not self.so_far.crops:
            self._stop_for_numbers()
        rates = self.scheduler.get_last_lr()  # first of the backbone's layers, if it learns, then of the head
        return {
            "train_loss": self.so_far.loss_sum / self.so_far.crops,
            "lr": rates[-2:][0],
            "lr_head": rates[-1],
            "skipped_steps": self.so_far.skipped_steps,
            "train_seconds": round(self.so_far.seconds, 2),
            "crops_per_s": round(self.crops_per_epoch / self.so_far.seconds, 2),
        }

    @flush_denormals()
    def _learn_batches(self) -> None:
        """Learn from the batches that are left of the epoch; save every `checkpoint_every` steps, and when stopped."""
        so_far, every = self.so_far, self.config.checkpoint_every
        started = time.perf_counter() - so_far.seconds
        for i, batch in enumerate(self.watch.epoch(self.train_loader, so_far.epoch), start=so_far.batches):
            self._between_steps = False
            self._learn(i, batch)
            if not self.accelerator.sync_gradients:
                continue
            so_far.batches, so_far.seconds = i + 1, time.perf_counter() - started  # the device is a step behind at most
            self._between_steps = True
            if self.stop.asked:
                self._save_and_stop(self.stop.asked)
            if every and math.ceil(so_far.batches / self.config.accumulate) % every == 0:
                self._settle()
                self._save_last()
        self._settle()
        so_far.seconds = time.perf_counter() - started

    def _save_and_stop(self, signal: int) -> NoReturn:
        self._settle()
        self._save_last()
        raise Stopped(
            f"stopped in epoch {self.so_far.epoch} after {self.so_far.batches} of {len(self.train_loader)} batches, "
            f"saved in {self.last_path}",
            signal,
        )

    def _stop_if_asked(self) -> None:
        """Stop here if a signal asks for it: it may have ended a loader's worker before this process looked."""
        if self.stop.asked and self._between_steps:
            self._save_and_stop(self.stop.asked)
        if self.stop.asked:
            raise Stopped(f"stopped in epoch {self.so_far.epoch} at {self.last_path}", self.stop.asked) from None

    def _learn(self, i: int, batch: Any) -> None:
        """Run batch number `i` of the epoch forward and backward, and step when enough batches are accumulated.

        Args:
            i: counts from 0.
            batch: this process's share.
        """
        size = min(self.config.batch_size, self.crops_per_epoch - i * self.config.batch_size)  # over all processes
        # Accelerate divides each loss by `accumulate`; the last step of an epoch may add up fewer batches.
        together = self.config.accumulate
        weight = together / min(together, len(self.train_loader) - i // together * together)
        with self.accelerator.accumulate(self.model):
            number = (self.so_far.epoch - 1) * len(self.train_loader) + i
            loss, scores = self.batch_loss(batch, size, number)
            # Every process has the whole loss, but the gradient of its own scores alone, and gradients are averaged.
            self.accelerator.backward(loss * weight * self.accelerator.num_processes)
            self._since_step.append(Learned(loss.detach(), size, scores.detach(), batch.index))
            if self.accelerator.sync_gradients:
                self._finish_step()
            self.optimizer.zero_grad(set_to_none=True)

    def _finish_step(self) -> None:
        """Step if the numbers are finite. Settle the step before, and this one too unless its numbers are read late."""
        learned, self._since_step = self._since_step, []
        self._settle()
        numbers = step_numbers(learned, self.model, scaled=self.accelerator.scaler is not None)
        taken = self._take_step(numbers.isfinite().all())
        self._asked = Step(learned, fetch_later(numbers), taken)
        if not self.reads_late:
            self._settle()

    def _settle(self) -> None:
        """Read the numbers of the step that was asked for last; if it was taken, move schedule and average on."""
        if self._asked is None:
            return
        step, self._asked = self._asked, None
        numbers = step.read()
        losses, sizes = numbers[:-1], [each.size for each in step.learned]
        self.so_far.count(losses, sizes)
        self.watch.step(losses, sizes, self.scheduler.get_last_lr())
        finite = all(map(math.isfinite, numbers))
        if finite and step.taken:
            self.scheduler.step()
            if self.average is not None:
                self.average.update_parameters(self.accelerator.unwrap_model(self.model))
            self.so_far.skipped_in_a_row, self._suspects = 0, {}
            return
        self.so_far.skipped_steps += 1
        if not finite:  # where only fp16 overflowed, its scale is lowered, which is not a fault
            self.so_far.skipped_in_a_row += 1
            self._suspects |= suspects(step.learned, self.train_loader.dataset.images)
            if self.so_far.skipped_in_a_row == SKIPS_ALLOWED:
                self._stop_for_numbers()

    def _stop_for_numbers(self) -> NoReturn:
        names = list(self._suspects)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"the loss or its gradient is not finite in epoch {self.progress.epochs_done + 1}, in "
            f"{self.so_far.skipped_in_a_row} steps in a row, with {', '.join(names[:5])}{more}: look at "
            f"these images, lower lr, or set grad_clip; what {self.run_dir} holds is kept"
        )

    def _take_step(self, finite: Tensor) -> bool:
        """Let the optimizer step, and say whether it did: where a gradient overflows in fp16, no weight changes.

        Args:
            finite: (), on the device: whether the step's numbers are finite. If not, no weight changes.
        """
        scaler = self.accelerator.scaler
        if scaler and not finite:
            return False
        if self.config.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        if scaler is None:
            step_only_where(finite, self.optimizer.optimizer)
        scale = scaler.get_scale() if scaler else 0.0
        self.optimizer.step()
        return scaler is None or scaler.get_scale() >= scale  # the scale falls when a step is skipped

    def batch_loss(self, batch: Any, size: int, number: int) -> tuple[Tensor, Tensor]:
        """Compute the loss of a whole batch, and the scores of this process's share of it.

        Args:
            batch: this process's share.
            size: how many images the whole batch has.
            number: counts batches since training began.
        """
        images = self.to_images(batch.crops, batch.augment, jitter=self.config.color_jitter)
        with autocast(self.accelerator):
            scores = self.model(images)  # (B,)
        labels = torch.stack([batch.mos, batch.mos_std, batch.database.float()], dim=1)
        every_score, labels = gather_shares(self.accelerator, scores.float(), labels, size)
        loss = self.loss(every_score, labels[:, 0], labels[:, 1], labels[:, 2].long())
        if self.photographs is not None:
            step = number * self.accelerator.num_processes + self.accelerator.process_index
            share = self.config.photo_weight / self.accelerator.num_processes  # each has its own photographs
            loss = loss + sum_shares(self.accelerator, share * self.photographs(self._score, step))
        return loss, scores

    def _score(self, images: Tensor) -> Tensor:
        """Score images in 0..1, which are normalised first."""
        with autocast(self.accelerator):
            return self.model(self.accelerator.unwrap_model(self.model).backbone.normalise(images))

    @property
    def kept_model(self) -> nn.Module:
        """The model that is validated and kept: the average of the weights, if the run keeps one."""
        return self.accelerator.unwrap_model(self.model) if self.average is None else self.average.module

    def evaluate(self, loader: DataLoader) -> dict[str, float]:
        """Compute SRCC and PLCC on a prepared test loader; with several databases, the mean over them."""
        seed_pass(loader)
        at_once = self.config.test_batch_size or None
        scores = predict(self.kept_model, loader, self.to_images, self.accelerator, "validate", at_once)
        mos, database = loader.dataset.labels.mos.numpy(), loader.dataset.labels.database.numpy()
        parts = [(scores[database == d], mos[database == d]) for d in np.unique(database)]
        return {
            "srcc": float(np.mean([srcc(*part) for part in parts])),
            "plcc": float(np.mean([plcc(*part) for part in parts])),
        }

    def merit(self, record: dict) -> float:
        """Give the validation SRCC, by which epochs are compared; without one (constant scores) -1, the worst."""
        return record["val_srcc"] if math.isfinite(record["val_srcc"]) else -1.0

    def _finish_epoch(self, record: dict) -> None:
        """Note the epoch, keep the model if it is the best, and write what `resume` needs."""
        state, epoch = self.progress, record["epoch"]
        state.epochs_done = epoch
        score = self.merit(record)
        is_best = score > state.best_srcc or self.config.select_on == "last"
        if is_best:
            state.best_epoch, state.best_srcc = epoch, score
        state.stopped_early = self._is_patience_spent()
        self.history.append(record)
        if self._is_main:
            self._write(record, is_best)
        log.info(
            "epoch %d/%d  loss %.3f  %s SRCC %.4f PLCC %.4f  %.1f crops/s%s", epoch, self.config.epochs,
            record["train_loss"], self._judged_on, record["val_srcc"], record["val_plcc"],
            record["crops_per_s"], "  best" if is_best else "",
        )  # fmt: skip

    @property
    def _judged_on(self) -> str:
        return "learned val" if self.config.select_on == "last" else self.config.select_on

    def _is_patience_spent(self) -> bool:
        state, config = self.progress, self.config
        is_spent = config.early_stopping and state.epochs_without_gain() >= config.patience
        return is_spent and state.epochs_done < config.epochs

    def _write(self, record: dict, is_best: bool) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_atomically(self.run_dir / "history.jsonl", lambda file: file.write_text(lines))
        if is_best:
            made = self.made | {"epoch": record["epoch"], "val_srcc": record["val_srcc"]}
            save_checkpoint(self.best_path, self.kept_model, made)
        self._save_last()

    def _save_last(self) -> None:
        """Write all that `resume` needs to go on from here, at the end of an epoch or after a step."""
        if not self._is_main:
            return
        made = self.made | {name: self.history[-1][name] for name in ("epoch", "val_srcc") if self.history}
        made |= {"progress": dataclasses.asdict(self.progress), "so_far": dataclasses.asdict(self.so_far)}
        made |= {"scheduler_steps": self.scheduler.last_epoch}
        if self.accelerator.scaler:
            made |= {"scaler": self.accelerator.scaler.state_dict()}
        extra = random_states()
        if self.average is not None:
            extra |= {_AVERAGE + name: tensor for name, tensor in self.average.state_dict().items()}
        model = self.accelerator.unwrap_model(self.model)
        save_checkpoint(self.last_path, model, made, self.optimizer.optimizer, extra, keep=self.previous_path)

    def resume(self) -> Progress:
        """Continue from `last.safetensors`; on one device the bits are those of a run that was never stopped.

        If the file is damaged, `previous.safetensors` takes its place, and a line says so.

        Raises:
            UserError: there is no checkpoint, it has another architecture, or both are damaged.
        """
        tensors, records = self._read_last()
        self._load(tensors, records, self.last_path)
        load_optimizer_state(self.optimizer.optimizer, tensors, records["param_groups"])
        self.progress = Progress(**records["made"]["progress"])
        self._count_in_best()
        self.progress.stopped_early = self._is_patience_spent()  # judged anew: `patience` or `epochs` may be larger now
        self.so_far = EpochSoFar(**records["made"].get("so_far", {}))
        self._goes_on = self.so_far.epoch > self.progress.epochs_done
        self.scheduler.last_epoch = records["made"]["scheduler_steps"]
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(records["made"]["scaler"])
        if done := self.progress.epochs_done:
            self.history = read_history(self.run_dir / "history.jsonl")[:done]
        if self.average is not None:
            averaged = {name.removeprefix(_AVERAGE): t for name, t in tensors.items() if name.startswith(_AVERAGE)}
            self.average.load_state_dict(averaged)
        restore_random_states(tensors)
        return self.progress

    def _count_in_best(self) -> None:
        """Count in a best checkpoint that is newer than the last one.

        A kill came between the two. Its epoch is learned again and may come out worse.
        """
        made = read_checkpoint(self.best_path)[1]["made"] if self.best_path.is_file() else {}
        if made.get("epoch", 0) > self.progress.epochs_done:
            record = read_history(self.run_dir / "history.jsonl")[made["epoch"] - 1]  # history is written first
            self.progress.best_epoch, self.progress.best_srcc = made["epoch"], self.merit(record)

    def _read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            return read_checkpoint(self.last_path)
        except UserError as error:
            if not self.previous_path.is_file():
                raise
            found = read_checkpoint(self.previous_path)
            log.warning("%s; going on from %s, the checkpoint before it", error, self.previous_path)
        if self._is_main:
            self.last_path.unlink(missing_ok=True)  # else the next save would keep it as `previous`
        return found

    def load_best(self) -> nn.Module:
        """Load the state that validation chose, and give the model."""
        return self._load(*read_checkpoint(self.best_path), self.best_path)

    def _load(self, tensors: dict[str, Tensor], records: dict, source: Path) -> nn.Module:
        model = self.accelerator.unwrap_model(self.model)
        load_model_state(model, tensors, source, records["made"], self.made.get("architecture"))
        return model

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process
