"""A collection -> one Parquet file of scores a shard, by Ray Data: on this machine, or on the cluster of RAY_ADDRESS.

    shards -[map_batches, an actor a worker]-> rows as `predict` writes them -[RowFile]-> OUTPUT/MODEL-SHARD.parquet

Only shards travel through Ray: a worker reads the images itself, decodes and scores them as one process does, and
writes their rows as they come. A shard whose file is there is finished. A killed worker's shard is taken up by another
one after the last row that was written, so that no row is lost or there twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from iqa.data import file_hash
from iqa.errors import UserError
from iqa.results import RowFile
from iqa.system import in_threads, lock_folder, progress, require_packages, usable_cpus
from smart_iqa.score_rows import COLUMNS
from smart_iqa.shards import Shard, images_of, shard_from, shards_of
from smart_iqa.shipped import checkpoint_file

_MODEL_DIGITS = 8  # of the model's hash, in the names of files
_FILE = re.compile(rf"([0-9a-f]{{{_MODEL_DIGITS}}})-[0-9a-f]{{24}}\.parquet(\.partial)?")
_OBJECT_STORE = 256 << 20  # bytes: shards alone lie in it
_log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What the output holds in the end: images, errors among them, shards, and how many of these were there before."""

    images: int
    errors: int
    shards: int
    before: int


class Work(NamedTuple):
    """What a worker needs to know.

    Attributes:
        checkpoint: see `load_model`.
        model: hash of the checkpoint's file.
        output: folder of the shards' files.
        device: `cpu` or `cuda`.
        backend: of `BACKENDS`.
        threads: that compute or decode in one worker.
    """

    checkpoint: str
    model: str
    output: str
    device: str
    backend: str
    threads: int = 1

    def file(self, shard: Shard) -> Path:
        """Where the rows of a shard are."""
        return Path(self.output, f"{self.model[:_MODEL_DIGITS]}-{shard.name}.parquet")


def score_collection(
    names: Sequence[str],
    checkpoint: str,
    output: Path,
    workers: int | None = None,
    device: str = "auto",
    backend: str = "torch",
    overwrite: bool = False,
    listed: BinaryIO | None = None,
) -> Counts:
    """Score every image of a collection that the output does not hold yet.

    Args:
        names: see `shards_of`.
        checkpoint: see `load_model`. A file has to be seen by every machine.
        output: folder, which every machine sees.
        workers: processes that score; None takes one a GPU where GPUs are used, else one a CPU.
        device: `auto`, `cpu` or `cuda`.
        backend: of `BACKENDS`.
        overwrite: begin anew.
        listed: what the name `-` means.

    Raises:
        UserError: Ray is missing, nothing is there to be scored, or the output holds other images or is not writable.
    """
    require_packages("--engine ray", "ray", ("ray", "pyarrow"))
    file = checkpoint_file(checkpoint)
    seen = str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint
    work = Work(seen, file_hash(file), str(output.resolve()), device, backend)
    shards = _some(shard for shard in shards_of(names, listed) if not _is_output(shard, output))
    with lock_folder(output):
        _clear(work, shards, overwrite)
        todo = [shard for shard in shards if not work.file(shard).exists()]
        if len(todo) < len(shards):
            _log.warning("going on: %d of %d shards are in %s already", len(shards) - len(todo), len(shards), output)
        if todo:
            _run(todo, work, workers)
        counted = list(in_threads(_count, [work.file(shard) for shard in shards], "count"))
    images, errors = (sum(counts) for counts in zip(*counted, strict=True))
    return Counts(images, errors, len(shards), len(shards) - len(todo))


def _some(found: Iterator[Shard]) -> list[Shard]:
    """The shards, if there is an image to be tried."""
    shards = list(found)
    problems = [problem for shard in shards for _, problem in shard.images]
    if all(problems) and all(not shard.file for shard in shards):
        raise UserError(problems[0] if problems else "nothing to score: no image is named")
    return shards


def _is_output(shard: Shard, output: Path) -> bool:
    """Whether it is a file of scores: the output may lie in a folder that is scored."""
    return bool(_FILE.fullmatch(Path(shard.file).name)) and Path(shard.file).resolve().parent == output.resolve()


def _clear(work: Work, shards: Sequence[Shard], overwrite: bool) -> None:
    """Remove what `overwrite` asks to, and shards of which every image is in a changed shard and is scored again.

    Raises:
        UserError: other files of scores are there.
    """
    wanted = {work.file(shard).name for shard in shards}
    named = {path for shard in shards for path, _ in shard.images}
    there = [file for file in Path(work.output).iterdir() if _FILE.fullmatch(file.name)]
    if overwrite:
        gone = there
    else:
        gone = [file for file in there if file.name.removesuffix(".partial") not in wanted]
        kept = [
            file for file in gone if not (file.name.startswith(work.model[:_MODEL_DIGITS]) and _within(file, named))
        ]
        if kept:
            raise UserError(
                f"{work.output} holds scores by another model or of images that are not named now, {kept[0].name} "
                f"and {len(kept) - 1} more files: name another folder, or give --overwrite to begin anew"
            )
    for file in gone:
        file.unlink()


def _within(file: Path, named: set[str]) -> bool:
    """Whether a shard's rows are all of these images; one that is not finished may go."""
    from pyarrow.parquet import read_table

    return file.suffix == ".partial" or named.issuperset(read_table(file, columns=["image"])["image"].to_pylist())


def _count(file: Path) -> tuple[int, int]:
    """Rows of a shard and how many are errors, by what the end of the file says."""
    from pyarrow.parquet import read_metadata

    metadata = read_metadata(file)
    place = list(COLUMNS).index("error")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return metadata.num_rows, sum(group.num_rows - group.column(place).statistics.null_count for group in groups)


def _run(todo: Sequence[Shard], work: Work, workers: int | None) -> None:
    """Score shards by actors of Ray, one of which each worker is."""
    with _cluster(workers) as ray:
        work, size, needs = _placed(work, workers, ray.cluster_resources())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        items = [{"shard": shard.text} for shard in todo]
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            ShardScorer,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(size, len(items))),
            fn_constructor_args=(work,),
            **needs,
        )
        for row in progress(done.iter_rows(), "predict", total=len(items)):
            if row["problem"]:
                raise UserError(row["problem"])


def _placed(work: Work, workers: int | None, cluster: dict[str, float]) -> tuple[Work, int, dict[str, float]]:
    """The work on the device that a cluster has, how many workers do it, and what each of them needs."""
    cpus, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
    if work.device == "cuda" and not gpus:
        raise UserError("--device cuda: Ray has no GPU here")
    if work.device == "cpu" or work.backend != "torch" or not gpus:
        return work._replace(device="cpu"), workers or cpus, {"num_cpus": 1}
    threads = max(1, min(8, cpus // gpus))
    return work._replace(device="cuda", threads=threads), workers or gpus, {"num_cpus": threads, "num_gpus": 1}


@contextlib.contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Ray, joined where RAY_ADDRESS says, else begun on this machine, with a CPU for each worker; left in the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it says errors that are none
    import ray
    import ray.data

    if ray.is_initialized():
        yield ray
        return
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file keeps what it says
            handler.setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    cpus = max(workers or 1, usable_cpus())
    here = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
    except Exception as error:  # some of its errors derive from nothing narrower
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        asked = f"joined at RAY_ADDRESS={address}" if address else "started"
        raise UserError(f"Ray cannot be {asked}: {reason}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_stop)  # Ray has put its own there
    with contextlib.redirect_stdout(sys.stderr):  # where it says that a worker was killed, some of it at its end
        try:
            yield ray
        finally:
            ray.shutdown()


class ShardScorer:
    """A worker: takes a batch of shards, writes their rows, and says what has kept it from that."""

    def __init__(self, work: Work):
        self.work, self.problem = work, ""
        try:
            self._load()
        except UserError as error:
            self.problem = str(error)

    def _load(self) -> None:
        import torch

        from smart_iqa.prediction import network_scores
        from smart_iqa.scorer import load_model

        work, file = self.work, checkpoint_file(self.work.checkpoint)
        if file_hash(file) != work.model:
            raise UserError(f"{file} on {os.uname().nodename} is another model than where the command was given")
        torch.set_num_threads(work.threads)
        self.scorer = load_model(work.checkpoint, work.device)
        if work.backend == "torch":
            self.scores_of = network_scores(self.scorer)
        else:
            from smart_iqa.exporting import kept_backend

            self.scores_of = kept_backend(self.scorer, file, work.threads).crop_scores

    def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[str]]:
        """Score a batch of shards as text; gives "" for each that is finished, else the reason."""
        return {"problem": [self._tried(shard_from(text)) for text in batch["shard"]]}

    def _tried(self, shard: Shard) -> str:
        try:
            if (
                not self.problem and not self.work.file(shard).exists()
            ):  # one may be asked for again when a node is lost
                self._score(shard)
        except UserError as error:
            return str(error)
        return self.problem

    def _score(self, shard: Shard) -> None:
        from smart_iqa.prediction import scored_rows

        begun = {"checkpoint": self.work.model, "explain": False}
        with RowFile(self.work.file(shard), COLUMNS, begun) as table:
            written = sum(1 for _ in table.rows())
            images = islice(images_of(shard), written, None)
            for row in scored_rows(self.scorer, images, self.scores_of, self.work.threads):
                table.append(row)
