"""Log lines for the user of a command, and which of several processes speaks. Needs no torch."""

from __future__ import annotations

import logging
import os
import sys


def is_first_process() -> bool:
    """Whether this is the one that prints and writes, of the processes that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def start_logging() -> None:
    """Log lines to stderr as they are, for a script's user; of several processes the first one speaks."""
    logging.basicConfig(
        level=logging.INFO if is_first_process() else logging.ERROR, format="%(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "httpx2", "huggingface_hub", "PIL", "matplotlib", "fontTools", "timm"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
