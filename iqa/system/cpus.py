"""How many CPUs this process may use: of the host's, those that its affinity and its container leave it."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

_GROUPS, _MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_V1 = ("quota", "period")


def usable_cpus() -> int:
    """CPUs of this process's affinity, but no more than its quota of CPU time, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(min(cpu_quota(), allowed))))


def cpu_quota(groups: Path = _GROUPS, mounted: Path = _MOUNTED) -> float:
    """The CPU time per time that control groups (v1 and v2) allow this process, infinite without a limit.

    A group's limit holds for the groups inside it, so the lowest of the process's group and its parents counts.

    Args:
        groups: the file that names this process's groups.
        mounted: the folder where the control groups lie.
    """
    limits = [math.inf]
    for line in _read(groups).splitlines():
        _, controllers, place = line.split(":", 2)
        inside = PurePosixPath(place.lstrip("/"))  # as the host sees it: a container may have its parents only
        for folder in (inside, *inside.parents):
            if not controllers:
                limits += [_limit(*_read(top / folder / "cpu.max").split()) for top in (mounted, mounted / "unified")]
            elif "cpu" in controllers.split(","):
                limits.append(_limit(*(_read(mounted / "cpu" / folder / f"cpu.cfs_{n}_us") for n in _V1)))
    return min(limits)


def _limit(quota: str = "", period: str = "") -> float:
    """CPUs from microseconds in a period; `max`, -1 or nothing is no limit."""
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf
    return share if share > 0 else math.inf


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def limit_threads() -> None:
    """Let torch compute with no more threads than there are usable CPUs, unless OMP_NUM_THREADS says how many."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and usable_cpus() < torch.get_num_threads():
        torch.set_num_threads(usable_cpus())
