"""Work that waits together is computed together, in order, and each gets its own rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from smart_iqa.serving.batches import Batches


class Recorder:
    """A computation that waits until it may go on, and remembers the batches that it was given."""

    def __init__(self):
        self.batches: list[tuple[int, ...]] = []
        self.go = threading.Event()

    def means(self, crops: Tensor) -> Tensor:
        """(K, 3, H, W) -> (K,)."""
        assert self.go.wait(10)
        self.batches.append(tuple(crops.shape))
        return crops.mean(dim=(1, 2, 3))


def images(value: float, count: int = 1, side: int = 4) -> Tensor:
    return torch.full((count, 3, side, side), float(value))


def in_a_loop(coroutine: Coroutine) -> Any:
    """What a coroutine gives, run in a thread: a browser of another test may have a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def run_all(batches: Batches, recorder: Recorder, jobs: list[Tensor]) -> list[Tensor]:
    tasks = [asyncio.create_task(batches.compute(recorder.means, job)) for job in jobs]
    await asyncio.sleep(0.05)  # all wait
    recorder.go.set()
    try:
        return await asyncio.gather(*tasks)
    finally:
        batches.close()


def test_jobs_of_one_size_that_wait_share_a_batch_and_get_their_own_rows():
    recorder = Recorder()
    jobs = [images(1), images(2, count=2), images(3, side=5), images(4)]
    found = in_a_loop(run_all(Batches(10_000), recorder, jobs))
    assert [rows.tolist() for rows in found] == [[1], [2, 2], [3], [4]]
    assert recorder.batches == [(1, 3, 4, 4), (3, 3, 4, 4), (1, 3, 5, 5)]  # the first was alone when it came


def test_a_batch_has_no_more_pixels_than_it_may_unless_one_job_has():
    recorder = Recorder()
    jobs = [images(0), images(1), images(2), images(3), images(4, side=50)]
    in_a_loop(run_all(Batches(2 * 16), recorder, jobs))
    assert [batch[0] for batch in recorder.batches] == [1, 2, 1, 1]


def test_a_job_whose_request_has_ended_is_not_computed():
    recorder, batches = Recorder(), Batches(16)

    async def scenario() -> list[float]:
        first, second, third = (asyncio.create_task(batches.compute(recorder.means, images(i))) for i in range(3))
        await asyncio.sleep(0.05)
        second.cancel()
        recorder.go.set()
        return [(await task).item() for task in (first, third)]

    assert in_a_loop(scenario()) == [0, 2]
    assert len(recorder.batches) == 2
    batches.close()


def test_an_error_reaches_everyone_in_the_batch_and_the_next_is_computed():
    batches = Batches(10_000)

    def fail(crops: Tensor) -> Tensor:
        raise ValueError("no")

    async def scenario() -> list:
        failed = [batches.compute(fail, images(i)) for i in range(3)]
        results = await asyncio.gather(*failed, return_exceptions=True)
        return [*results, await batches.compute(lambda crops: crops.sum(dim=(1, 2, 3)), images(1))]

    *errors, good = in_a_loop(scenario())
    assert [str(error) for error in errors] == ["no"] * 3 and good.item() == 48
    batches.close()


@pytest.mark.parametrize("count", [1, 3])
def test_a_single_job_is_given_as_it_is(count):
    recorder = Recorder()
    in_a_loop(run_all(Batches(1), recorder, [images(1, count)]))
    assert recorder.batches == [(count, 3, 4, 4)]
