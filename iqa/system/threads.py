"""Work on many files by a few threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from iqa.system.cpus import usable_cpus
from iqa.system.progress import progress

_AT_ONCE = 16  # items handed to a thread together: handing over takes as long as checking a small image
_WAITING = 256  # parts handed out, whose results wait in memory


def in_threads(work: Callable[[Any], Any], items: Sequence, description: str) -> Iterator[Any]:
    """Results of a function of each item, in order, by a few threads and with a progress bar.

    Args:
        work: called with each item; decoding images lets other threads run.
        items: any number of them.
        description: what the bar says.
    """
    with ThreadPoolExecutor(min(8, max(2, usable_cpus()))) as pool:
        parts = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
        some = (parts[start : start + _WAITING] for start in range(0, len(parts), _WAITING))
        done = (results for few in some for results in pool.map(lambda part: [work(item) for item in part], few))
        yield from progress((result for results in done for result in results), description, total=len(items))
