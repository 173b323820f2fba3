"""Work on many files by a few threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from iqa.system.progress import progress

_WAITING = 4096  # calls handed out at once: each costs a kilobyte until it is done


def in_threads(work: Callable[[Any], Any], items: Sequence, description: str) -> Iterator[Any]:
    """Results of a function of each item, in order, by a few threads and with a progress bar.

    Args:
        work: called with each item; decoding images lets other threads run.
        items: any number of them.
        description: what the bar says.
    """
    with ThreadPoolExecutor(min(8, max(2, os.cpu_count() or 2))) as pool:
        parts = (items[start : start + _WAITING] for start in range(0, len(items), _WAITING))
        results = (result for part in parts for result in pool.map(work, part))
        yield from progress(results, description, total=len(items))
