"""Image files -> rows with their scores, as a stream: memory does not grow with the number of files.

    found files -[decoded ahead by a few threads]-> crops -[batches of one size]-> a CropScores -[in order]-> rows

A `CropScores` is all that a way to compute has to be: `network_scores` is torch's. Only crops of exactly one size
share a batch, and nothing is padded, so that the score of an image does not depend on what it is scored beside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_loader import UNCHANGED, load_image, test_places
from iqa.config import Config, parse_resize
from iqa.data import Found, NamedBytes
from iqa.errors import UserError
from iqa.evaluation import image_means
from iqa.folding import folded
from iqa.system import usable_cpus
from smart_iqa.probes import StageWeights
from smart_iqa.score_rows import score_row
from smart_iqa.scorer import Scorer
from smart_iqa.shipped import Meaning

# Crops (B, K, 3, H, W) uint8 -> (B, 1) scores, means over the K crops, or (B, 5) with the four stage weights.
CropScores = Callable[[np.ndarray], np.ndarray]

BATCH_PIXELS = 16 * 224 * 224  # of all crops of a batch: more gains nothing on a CPU
_WAITING_PIXELS = 16  # times those of a batch: decoded, until others of their size come
_MOST_WAITING = 256  # images that come after one before it is scored
_AHEAD = 2  # images that each thread decodes before they are asked for


class Prepared(NamedTuple):
    """An image's place in the list, and what is to be scored of it."""

    number: int
    found: Found  # with a problem where it cannot be read
    crops: np.ndarray  # (K, 3, H, W) uint8; nothing where there is a problem

    @property
    def pixels(self) -> int:
        """Of all crops."""
        return self.crops.size // 3


_NOTHING = np.zeros(0, np.uint8)


def test_crops(path: str | NamedBytes, config: Config) -> np.ndarray:
    """The crops (K, 3, H, W) uint8 that a test takes of an image file, or of its bytes.

    Raises:
        UserError: it cannot be read.
    """
    pixels = load_image(path, parse_resize(config.resize), config.patch_size)
    corners, (height, width) = test_places(pixels.shape[1], pixels.shape[2], config, Path(str(path)).name)
    return np.stack([pixels[:, top : top + height, left : left + width] for top, left in corners])


def network_scores(scorer: Scorer, stage_weights: bool = False) -> CropScores:
    """What scores crops by a scorer's network, on its device, with batch normalisation folded.

    Args:
        scorer: holds the network.
        stage_weights: give them too, where the fusion has any.
    """
    device = scorer.accelerator.device
    model: Any = folded(scorer.model)  # the same kind of network
    network = StageWeights(model) if stage_weights else model
    means_of = image_means(network, scorer.to_images, scorer.accelerator)

    def scores_of(crops: np.ndarray) -> np.ndarray:
        augment = torch.tensor(UNCHANGED, device=device).expand(*crops.shape[:2], -1)
        means = means_of(torch.from_numpy(crops).to(device), augment)  # (B,), or (B, 1 or 5)
        return means.reshape(len(crops), -1).cpu().numpy()

    return scores_of


def scored_rows(
    scorer: Scorer, found: Iterable[Found], scores_of: CropScores, threads: int | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of `predict_rows` by a scorer's crops and meaning, in batches that suit its device."""
    at_once = BATCH_PIXELS * (1 if scorer.accelerator.device.type == "cpu" else 8)
    return predict_rows(found, scorer.config, scores_of, scorer.meaning, at_once, threads)


def predict_rows(
    found: Iterable[Found],
    config: Config,
    scores_of: CropScores,
    meaning: Meaning | None = None,
    batch_pixels: int = BATCH_PIXELS,
    threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """One row (see `score_row`) for each file, in order, as soon as it can be.

    Args:
        found: the files.
        config: gives crops and resizing.
        scores_of: scores a batch of crops.
        meaning: gives interval and level; without it they are None.
        batch_pixels: how many pixels a batch may have.
        threads: that decode; None takes one for each usable CPU, up to eight.
    """
    prepared = _prepared(found, config, threads or min(8, usable_cpus()))
    yield from _in_order(
        (image, row) for batch in batches(prepared, batch_pixels) for image, row in _scored(batch, scores_of, meaning)
    )


def _prepared(found: Iterable[Found], config: Config, threads: int) -> Iterator[Prepared]:
    """The files in order, decoded by threads that run ahead by a few images each."""

    def prepare(number: int, each: Found) -> Prepared:
        if each.problem:
            return Prepared(number, each, _NOTHING)
        try:
            return Prepared(number, each._replace(source=None), test_crops(each.source or each.path, config))
        except UserError as error:
            return Prepared(number, each._replace(problem=str(error), source=None), _NOTHING)

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Prepared]] = deque()
        numbered = enumerate(found)
        try:
            while True:
                for number, each in islice(numbered, max(0, _AHEAD * threads - len(ahead))):
                    ahead.append(pool.submit(prepare, number, each))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def batches(prepared: Iterable[Prepared], most: int = BATCH_PIXELS) -> Iterator[list[Prepared]]:
    """Images in batches whose crops are of one shape; what cannot be read comes alone.

    A batch is complete when one more image would exceed `most` pixels. When too many pixels wait, or an image has
    seen too many come after it, all that wait go as they are.
    """
    waiting: dict[tuple[int, ...], list[Prepared]] = {}  # the batch of the image that came first is first
    pixels = 0
    for image in prepared:
        if image.found.problem:
            yield [image]
        else:
            same = waiting.setdefault(image.crops.shape, [])
            same.append(image)
            pixels += image.pixels
            if (len(same) + 1) * image.pixels > most:
                yield waiting.pop(image.crops.shape)
                pixels -= len(same) * image.pixels
        first = next(iter(waiting.values()), [image])[0].number
        if pixels > _WAITING_PIXELS * most or image.number - first >= _MOST_WAITING:
            yield from waiting.values()
            waiting, pixels = {}, 0
    yield from waiting.values()


def _scored(
    batch: list[Prepared], scores_of: CropScores, meaning: Meaning | None
) -> Iterator[tuple[Prepared, dict[str, Any]]]:
    if batch[0].found.problem:
        yield batch[0], score_row(batch[0].found, None)
        return
    values = scores_of(np.stack([image.crops for image in batch]))
    for image, of_image in zip(batch, values.tolist(), strict=True):
        yield image, score_row(image.found, of_image, meaning)


def _in_order(scored: Iterable[tuple[Prepared, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows by number, of which each is given when all before it are there."""
    early: dict[int, dict[str, Any]] = {}
    following = 0
    for image, row in scored:
        early[image.number] = row
        while following in early:
            yield early.pop(following)
            following += 1
