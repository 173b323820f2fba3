"""Kill runs with SIGKILL at random moments, start them again with `--resume`, and compare with a run never killed.

For `benchmarks/reliability.py kills` and the tests: a forked child trains and kills itself, and its workers with it,
at a chosen event. Events are the calls of Python and C functions within a phase of the run, counted from the start,
so that a kill lands between two writes of a checkpoint too, and a moment that fails can be repeated.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

import train_swin
from benchmarks.common import against_target, made_up_pictures
from iqa.checkpoint import read_checkpoint
from iqa.errors import Stopped
from iqa.results import read_history, read_results

_ROOT = str(Path(train_swin.__file__).parent)
_TIMES = ("train_seconds", "crops_per_s")
_DRAWS = 6  # of a moment: with workers, fewer events are the main process's than were counted without
_TINY = "test_convnext.r160_in1k"
_BASE = (
    "--no_pretrained --patch_size 32 --resize none --epochs 2 --train_patch_num 1 --lr 1e-4 "
    "--test_patch_num 2 --batch_size 4 --device cpu --no_spaq --keep_last --dataset csv --name run"
).split()
# What is trained, with which settings.
KINDS = {
    "moving average": "--backbone nano --checkpoint_every 2 --ema_decay 0.9".split(),
    "accumulated gradients": f"--backbone {_TINY} --checkpoint_every 1 --accumulate 2".split(),
    "frozen features": f"--backbone {_TINY} --checkpoint_every 1 --accumulate 2 --freeze_backbone".split(),
}
# When it is killed: within these functions, or anywhere.
PHASES: dict[str, tuple[str, ...]] = {
    "training loop": ("train_one_epoch",),
    "checkpoint write": ("save_checkpoint",),
    "cache build": ("prepare_images", "RowCache.write", "FrozenFeatures.dataset"),
    "anywhere": (),
}
WORKERS = (0, 1, 2)


class Moment(NamedTuple):
    """What is killed, and when; `seed` draws the event of the phase."""

    kind: str
    phase: str
    workers: int
    seed: int = 0


class Killed(NamedTuple):
    """What became of a moment: the event of the kill (0 if none was reached) and what differs ("" if nothing)."""

    event: int
    wrong: str


def in_child(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> int:
    """Run in a forked process with a group of its own; its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            torch.manual_seed(999)  # another process starts from other random states
            before()
            work()
            code = 0
        except Stopped as stop:
            code = 128 + stop.signal
        except BaseException:  # noqa: BLE001 (whatever it is, this process ends here)
            traceback.print_exc()
        finally:
            sys.setprofile(None)
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Events:
    """The events of a process within some functions, counted from 1, and what it does at one of them.

    Args:
        within: names of functions of this project; only calls within them count, C functions too. Without any, the
            calls of this project's functions count.
        number: of the event at which it acts; 0 for none.
        act: what it does.
        workers_act: whether its workers act too; each goes on with a count of its own.
    """

    def __init__(
        self,
        within: Collection[str] = (),
        number: int = 0,
        act: Callable[[], object] = lambda: None,
        workers_act: bool = False,
    ):
        self.within, self.number, self.act, self.workers_act = tuple(within), number, act, workers_act
        self.count, self.process, self._inside = 0, 0, 0

    def look(self, frame: FrameType, event: str, argument: object) -> None:
        """What `sys.setprofile` calls."""
        ours = _is_ours(frame.f_code.co_filename)
        if ours and self.within and event in ("call", "return") and frame.f_code.co_qualname.endswith(self.within):
            self._inside += 1 if event == "call" else -1
        if self._inside and event in ("call", "c_call") if self.within else ours and event == "call":
            self.count += 1
            if self.count == self.number and (self.workers_act or os.getpid() == self.process):
                self.act()


def watch(*several: Events) -> Callable[[], None]:
    """What starts the counts in the process that calls it."""

    def look(*what: Any) -> None:
        for events in several:
            events.look(*what)

    def start() -> None:
        for events in several:
            events.process = os.getpid()
        sys.setprofile(look)

    return start


def at_event(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """What makes the process that calls it act at an event, see `Events`."""
    return watch(Events((), number, act))


@functools.cache
def _is_ours(file: str) -> bool:
    return file.startswith(_ROOT) and "site-packages" not in file


def kill(number: int = signal.SIGKILL) -> Callable[[], None]:
    """What sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def kill_all() -> None:
    """End this process and its workers at once, as a machine that loses its memory or its power does."""
    os.killpg(0, signal.SIGKILL)


def count_events(work: Callable[[], object], *phases: Collection[str]) -> list[int]:
    """How many events of each phase `work` makes in a forked process, see `Events`."""
    counts = [Events(within) for within in phases]
    with tempfile.NamedTemporaryFile() as file:

        def counted() -> None:
            work()
            sys.setprofile(None)
            Path(file.name).write_text(json.dumps([events.count for events in counts]))

        assert in_child(counted, watch(*counts)) == 0
        return json.loads(Path(file.name).read_text())


def differences(one: Path, other: Path) -> str:
    """What two finished runs differ in: tensors of a checkpoint, history without times, results; "" if in nothing."""
    found = []
    if read_checkpoint(one / "best.safetensors")[1] != read_checkpoint(other / "best.safetensors")[1]:  # with checksum
        found.append("best.safetensors")
    ours, theirs = (read_checkpoint(run / "last.safetensors")[0] for run in (one, other))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        found.append("last.safetensors")
    histories = [
        [{k: v for k, v in line.items() if k not in _TIMES} for line in read_history(run / "history.jsonl")]
        for run in (one, other)
    ]
    found += ["history"] if histories[0] != histories[1] else []
    results = [read_results(run) if (run / "results.json").exists() else {} for run in (one, other)]
    found += [key for key in ("metrics", "predictions") if results[0].get(key) != results[1].get(key)]
    return ", ".join(found)


def command(table: Path, folder: Path, kind: str, workers: int = 0) -> Callable[[], None]:
    """What trains in a folder, or goes on where there is a run to go on with."""
    where = ["--data_path", str(table), "--results_dir", str(folder), "--cache_dir", str(folder / "cache")]
    flags = [*_BASE, *where, *KINDS[kind], "--num_workers", str(workers)]

    def work() -> None:
        resumed = (folder / "run" / "config.yaml").exists()
        train_swin.main([*flags, *(["--resume"] if resumed else [])])

    return work


class Runs:
    """One run of each kind that is never killed, made when it is first asked for, and the events of its phases."""

    def __init__(self, table: Path, folder: Path):
        self.table, self.folder = table, folder
        self._events: dict[str, dict[str, int]] = {}

    def whole(self, kind: str) -> Path:
        """The folder of the run."""
        folder = self.folder / f"whole {kind}"
        if kind not in self._events:
            counts = count_events(command(self.table, folder, kind), *PHASES.values())
            self._events[kind] = dict(zip(PHASES, counts, strict=True))
        return folder / "run"

    def try_kill(self, moment: Moment) -> Killed:
        """Kill a run at a moment, start it again, and compare."""
        whole = self.whole(moment.kind)
        most, rng = self._events[moment.kind][moment.phase], np.random.default_rng(list(str(moment).encode()))
        for _ in range(_DRAWS):
            event = int(rng.integers(1, most + 1))
            with tempfile.TemporaryDirectory(dir=self.folder) as name:
                folder = Path(name)
                work = command(self.table, folder, moment.kind, moment.workers)
                killing = Events(PHASES[moment.phase], event, kill_all, workers_act=True)
                if in_child(work, watch(killing)) == -signal.SIGKILL:
                    return Killed(event, _wrong_after_resume(work, folder / "run", whole))
                most = event  # it ended before: an earlier one
        return Killed(0, "")


def _wrong_after_resume(work: Callable[[], None], run: Path, whole: Path) -> str:
    if code := in_child(work):
        return f"exit code {code} of --resume"
    left = [path.name for path in run.glob(".*.tmp")]
    return differences(run, whole) or (f"left {left[0]}" if left else "")


def all_moments(seed: int = 0) -> Iterator[Moment]:
    """Every kind in every phase with every number of workers."""
    for kind, phase, workers in itertools.product(KINDS, PHASES, WORKERS):
        yield Moment(kind, phase, workers, seed)


def try_kills(moments: Iterable[Moment] | None = None) -> dict:
    """Counts by kind and phase, and what went wrong by moment; all moments if none are given."""
    torch.set_num_threads(1)
    counts = {kind: {phase: {"killed": 0, "same": 0} for phase in PHASES} for kind in KINDS}
    events, wrong = {}, {}
    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "table.csv"
        made_up_pictures(Path(name), 40, 48, 40)[["image", "mos", "content"]].to_csv(table, index=False)
        runs = Runs(table, Path(name))
        for moment in moments or all_moments():
            found, label = runs.try_kill(moment), f"{moment.kind}, {moment.phase}, {moment.workers} workers"
            print(f"{label}: event {found.event} {found.wrong or 'same'}", file=sys.stderr)
            events[label] = found.event
            if found.wrong:
                wrong[label] = found.wrong
            of = counts[moment.kind][moment.phase]
            of["killed"] += found.event > 0
            of["same"] += found.event > 0 and not found.wrong
    killed, same = (sum(of[key] for phases in counts.values() for of in phases.values()) for key in ("killed", "same"))
    targets = {"kills": against_target(killed, at_least=20), "kills_lost": against_target(killed - same, below=1)}
    return {"kind": "reliability_kills", "counts": counts, "events": events, "wrong": wrong, "targets": targets}
