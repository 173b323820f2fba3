"""Log lines for the user of a command, and which of several processes speaks. Needs no torch."""

from __future__ import annotations

import logging
import os
import sys


def is_first_process() -> bool:
    """Whether this is the one that prints and writes, of the processes that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def start_logging() -> None:
    """Log lines to stderr as they are, for a script's user; of several processes the first one speaks.

    The others speak of errors only, and say which they are. So does a process that `$IQA_JOB` gives a name.
    """
    first, speaker = is_first_process(), os.environ.get("IQA_JOB", "")
    if not first:
        speaker = f"process {os.environ['RANK']} of {os.environ.get('WORLD_SIZE', '?')}"
    prefix = f"[{speaker}] ".replace("%", "%%") if speaker else ""
    logging.basicConfig(
        level=logging.INFO if first else logging.ERROR, format=f"{prefix}%(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "httpx2", "huggingface_hub", "PIL", "matplotlib", "fontTools", "timm"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
