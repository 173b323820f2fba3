"""Work that waits for the model at the same time, computed together."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

Compute = Callable[[Tensor], Tensor]


class _Job(NamedTuple):
    compute: Compute
    crops: Tensor  # (K, 3, H, W)
    done: asyncio.Future

    def fits(self, other: _Job) -> bool:
        return (self.compute, self.crops.shape[1:]) == (other.compute, other.crops.shape[1:])


class Batches:
    """One thread in which a model computes; jobs of one kind and size that wait together share a batch.

    To be used from one event loop; the first of the waiting jobs always goes first.

    Args:
        most_pixels: of a batch of several jobs.

    Attributes:
        thread: where the model computes; what else uses the model does so there, too.
    """

    def __init__(self, most_pixels: int):
        self.most_pixels = most_pixels
        self._waiting: list[_Job] = []
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._busy = False

    async def compute(self, compute: Compute, crops: Tensor) -> Tensor:
        """Apply a function of crops (K, 3, H, W), which gives a row for each, in the thread: (K, ...)."""
        job = _Job(compute, crops, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._next()
        return await job.done

    def close(self) -> None:
        """End the thread, once what it computes now is done."""
        self.thread.shutdown(cancel_futures=True)

    def _next(self) -> None:
        jobs = [] if self._busy else self._take()
        if not jobs:
            return
        self._busy = True
        crops = jobs[0].crops if len(jobs) == 1 else torch.cat([job.crops for job in jobs])
        computed = asyncio.get_running_loop().run_in_executor(self.thread, jobs[0].compute, crops)
        computed.add_done_callback(lambda done: self._deliver(jobs, done))

    def _take(self) -> list[_Job]:
        """The first job that is still wanted, and those that share its batch."""
        taken: list[_Job] = []
        left: list[_Job] = []
        room = self.most_pixels
        for job in self._waiting:
            size = job.crops[:, 0].numel()
            if job.done.done():  # its request has ended
                continue
            if not taken or (job.fits(taken[0]) and size <= room):
                taken.append(job)
                room -= size
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _deliver(self, jobs: list[_Job], computed: asyncio.Future) -> None:
        self._busy = False
        self._next()
        still_wanted = [not job.done.done() for job in jobs]
        error = asyncio.CancelledError() if computed.cancelled() else computed.exception()
        if error is not None:
            for job in itertools.compress(jobs, still_wanted):
                job.done.set_exception(error)
            return
        rows = computed.result().split([len(job.crops) for job in jobs])
        for job, of_job in itertools.compress(zip(jobs, rows, strict=True), still_wanted):
            job.done.set_result(of_job)
