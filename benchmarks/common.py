"""What the measuring scripts share: made-up images, interleaved repetitions, medians with quartiles, result files."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from iqa.errors import UserError
from iqa.results import provenance
from iqa.system import write_json


def made_up_pictures(folder: Path, count: int, width: int, height: int) -> pd.DataFrame:
    """Smooth random colours as JPEG files, and their label table.

    Args:
        folder: to write to.
        count: of images.
        width: of each.
        height: of each.

    Returns:
        Columns image, path, mos, mos_std, content.
    """
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        rows.append({"image": path.name, "path": str(path), "mos": rng.uniform(0, 100), "mos_std": np.nan})
    return pd.DataFrame(rows).assign(content=lambda table: table["image"])


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(works: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each work, taken in turns (A B A B), so that a machine that slows down slows all of them.

    Every work runs once before, untimed.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    return seconds


def spread(values: Sequence[float]) -> dict:
    """Median, quartiles, number of repetitions, and the values themselves."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": statistics.median(values),
        "quartiles": [quartiles[0], quartiles[2]],
        "n": len(values),
        "values": [float(f"{value:.6g}") for value in values],
    }


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide what was measured one after the other."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def against_target(measured: float, at_least: float | None = None, below: float | None = None) -> dict:
    """A measured value beside what was asked of it."""
    met = (at_least is None or measured >= at_least) and (below is None or measured < below)
    asked = {"at_least": at_least} if below is None else {"below": below}
    return {"measured": measured, **asked, "met": met}


def print_targets(targets: dict[str, dict]) -> None:
    """A line a target: measured, asked, and whether it is met."""
    for name, target in targets.items():
        asked = f"at least {target['at_least']:g}" if "at_least" in target else f"below {target['below']:g}"
        print(f"{name:28} {target['measured']:12.4g}   {asked:18} {'met' if target['met'] else 'NOT MET'}")


# Not by getrusage, which starts a new process with the memory of the one that started it.
_PRINT_PEAK = "; print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"


def peak_bytes_of(code: str, *arguments: str) -> int:
    """The most memory that a new Python process has held which ran this code, in bytes.

    Raises:
        subprocess.CalledProcessError: the code has failed.
    """
    words = [sys.executable, "-c", code + _PRINT_PEAK, *arguments]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1])


def require_writable(path: Path) -> None:
    """Before minutes of measuring: the result file can be written.

    Raises:
        UserError: its folder is missing or read-only, or it is a folder itself.
    """
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}; name a file in a folder that can be written") from error
    if path.stat().st_size == 0:
        path.unlink()


def write_result(path: Path, result: dict) -> None:
    """Write the result with its provenance."""
    write_json(path, {**result, "provenance": provenance()})
