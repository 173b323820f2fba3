"""What glibc does with the memory of freed tensors; elsewhere nothing is changed."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones.

    By its defaults every large tensor is mapped anew and given back, and each step pays for thousands of page faults.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory(worker: int | None = None) -> None:
    """Return to the system what glibc has kept.

    Given to a loader as `worker_init_fn`: a forked worker shares the freed memory of its parent, and would hold on to
    the old pages, gigabytes of them, as the parent writes to its own again.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
