"""The progress bar of everything that takes over two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable, description: str, total: int | None = None, show: bool = True) -> Any:
    """Iterate with a bar that appears after two seconds.

    Args:
        items: what to iterate over.
        description: what the bar says.
        total: number of items, where `items` does not know it.
        show: False on processes that should stay silent.
    """
    # A log file gets a line now and then, a terminal a moving bar.
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(items, desc=description, total=total, delay=2, mininterval=interval, leave=False, disable=not show)
