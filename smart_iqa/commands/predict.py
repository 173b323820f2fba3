"""Score images with the model that comes with the package, or with a finished run.

    smart-iqa predict photo.jpg holiday/ --output scores.csv
    smart-iqa predict photo.jpg holiday/ --sheet best_to_worst.png
    smart-iqa predict photo.jpg --checkpoint results/demo --explain
    find . -name "*.jpg" -print0 | smart-iqa predict - --output scores.parquet
    smart-iqa predict collection/ --engine ray --output scores/

From Python:

    from smart_iqa import load_model
    load_model().score("photo.jpg")

Names -> files -> rows as they come, on the screen and in `--output`. A model that says what its scores mean adds the
interval that holds the mos of nine images in ten, and the quality level. What cannot be read is a row with an error.
Ray scores what is too much for one machine, and writes a folder of Parquet files: docs/scaling.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from iqa.choices import BACKENDS, DEVICES, ENGINES
from iqa.data import LIST, Found, file_hash, find_images
from iqa.errors import Parser, Stopped, UserError
from iqa.results import RowFile, csv_writer
from iqa.system import StopSignals, progress, require_packages, start_logging, write_atomically
from smart_iqa.score_rows import COLUMNS, EXPLAINED, map_name, table_head, table_line
from smart_iqa.shards import PARQUET, TARS
from smart_iqa.shipped import DEFAULT, checkpoint_file

if TYPE_CHECKING:
    import numpy as np

    from smart_iqa.scorer import Scorer

FORMATS = ("table", "csv", "jsonl")
_log = logging.getLogger(__name__)
_Take = Callable[[dict[str, Any]], None]  # what takes a row


def predict(
    paths: Sequence[str],
    checkpoint: str = DEFAULT,
    output: str | None = None,
    overwrite: bool = False,
    format: str = "table",
    explain: bool = False,
    maps: str | None = None,
    sheet: str | None = None,
    device: str = "auto",
    backend: str = "torch",
    engine: str = "local",
    workers: int | None = None,
) -> int:
    """Score images, print their rows and write them.

    Args:
        paths: files, folders, patterns, and `-` for a list on standard input, see `iqa.data.find_images`; with the
            engine ray also Parquet files and tars, see `smart_iqa.shards`.
        checkpoint: see `load_model`.
        output: CSV, JSON lines or Parquet by its ending, see `iqa.results.RowFile`. An unfinished one goes on. With
            the engine ray, the folder of its files.
        overwrite: replace `output`, and begin an unfinished one anew.
        format: of what is printed: a key of `FORMATS`.
        explain: add the stage weights, where the fusion has any, and a map of each image.
        maps: folder of the maps; None takes `NAME_maps` beside an output NAME.csv, else `maps`.
        sheet: file of an image that shows the images from best to worst.
        device: `auto`, `cpu`, `cuda` or `mps`.
        backend: of `BACKENDS`; onnxruntime computes on the CPU, by a network that is exported once.
        engine: of `ENGINES`; ray writes and prints no rows, and takes no `format`, `explain`, `maps` and `sheet`.
        workers: processes of the engine ray; None takes one for each CPU, or GPU.

    Returns:
        How many rows are errors.

    Raises:
        UserError: nothing is there to be scored, or a file cannot be written.
    """
    if engine == "ray":
        _require_no_rows(format, explain or maps is not None or sheet is not None, device)
        return _predict_by_ray(paths, checkpoint, _require_output_folder(output), workers, device, backend, overwrite)
    file = checkpoint_file(checkpoint)
    _require_backend(backend, device, explain)
    _require_local(paths, workers)
    _require_an_image(paths)
    _require_folder("--sheet", sheet)
    kinds = COLUMNS | EXPLAINED if explain else COLUMNS
    begun = {"checkpoint": file_hash(file), "explain": explain}
    table = RowFile(Path(output), kinds, begun, overwrite) if output else None
    folder = _maps_folder(maps, output) if explain else None

    from smart_iqa.prediction import network_scores, scored_rows
    from smart_iqa.scorer import load_model

    scorer = load_model(checkpoint, device)
    scores_of = network_scores(scorer, stage_weights=explain) if backend == "torch" else _by_onnxruntime(scorer, file)
    seen = _Seen(keep=sheet is not None)
    with table or contextlib.nullcontext():
        found = _not_yet(find_images(paths, _listed()), table, seen)
        rows = scored_rows(scorer, found, scores_of)
        if folder:
            rows = _with_maps(rows, scorer, folder)
        takers = [*([table.append] if table else []), _printer(format, kinds), seen.take]  # what is shown is kept
        with _stopping(table.partial if table else None):
            for row in progress(rows, "predict", show=not sys.stdout.isatty()):
                for take in takers:
                    take(row)
    if sheet and seen.scored:
        _write_sheet(Path(sheet), seen.scored)
    return seen.errors


class _Seen:
    """Counts the rows that are errors, says them, and keeps the others where a sheet is to be drawn."""

    def __init__(self, keep: bool):
        self.errors, self.keep = 0, keep
        self.scored: list[tuple[str, float]] = []

    def count(self, row: dict[str, Any]) -> None:
        """Take a row of an earlier start."""
        self.errors += row["error"] is not None
        if self.keep and row["error"] is None:
            self.scored.append((row["image"], row["score"]))

    def take(self, row: dict[str, Any]) -> None:
        """Take a row of now."""
        self.count(row)
        if row["error"] is not None:
            print(f"error: {UserError(row['error'])}", file=sys.stderr)


def _predict_by_ray(
    paths: Sequence[str],
    checkpoint: str,
    output: Path,
    workers: int | None,
    device: str,
    backend: str,
    overwrite: bool,
) -> int:
    if workers is not None and workers < 1:
        raise UserError(f"--workers: expected 1 or more, got {workers}")
    if backend != "torch":
        _require_backend(backend, device, False)
    from smart_iqa.ray_engine import score_collection

    with _stopping(output):
        counts = score_collection(paths, checkpoint, output, workers, device, backend, overwrite, _listed())
    print(
        f"{counts.images:,} images, {counts.errors:,} of them errors, in {counts.shards:,} files of {output}, "
        f"of which {counts.before:,} were there before"
    )
    return counts.errors


def _require_no_rows(format: str, drawn: bool, device: str) -> None:
    if format != "table" or drawn:
        raise UserError("--engine ray writes scores alone: leave out --format, --explain, --maps and --sheet")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--engine ray computes on cpu or cuda, not on {device}")


def _require_output_folder(output: str | None) -> Path:
    if output is None:
        raise UserError("--engine ray writes a folder of Parquet files: name it by --output")
    if Path(output).is_file() or Path(output).suffix in (".csv", ".jsonl"):
        raise UserError(f"--output {output}: --engine ray writes a folder of Parquet files; name a folder")
    return Path(output)


def _require_local(paths: Sequence[str], workers: int | None) -> None:
    if workers is not None:
        raise UserError("--workers is of --engine ray: add that, or leave it out")
    if tables := [path for path in paths if path.lower().endswith((*PARQUET, *TARS))]:
        raise UserError(f"{tables[0]}: tables and tars of images are read by --engine ray; add that")


def _listed() -> BinaryIO | None:
    """What `-` names."""
    return getattr(sys.stdin, "buffer", None)


def _require_an_image(paths: Sequence[str]) -> None:
    """Before the model is loaded: stop where no name leads to an image."""
    problems = [next(find_images([name])).problem for name in paths if name != LIST]
    if LIST not in paths and all(problems):
        raise UserError(problems[0])


def _require_backend(backend: str, device: str, explain: bool) -> None:
    if backend == "torch":
        return
    if explain or device not in ("auto", "cpu"):
        raise UserError("--backend onnxruntime gives scores alone, on the CPU: leave out --explain and other devices")
    require_packages(f"--backend {backend}", "onnx", ("onnx", "onnxscript", "onnxruntime"))


def _by_onnxruntime(scorer: Scorer, checkpoint: Path) -> Callable[[np.ndarray], np.ndarray]:
    from smart_iqa.exporting import kept_backend

    return kept_backend(scorer, checkpoint).crop_scores


def _require_folder(flag: str, file: str | None) -> None:
    if file is not None and not Path(file).parent.is_dir():
        raise UserError(f"{flag}: no folder {Path(file).parent}")


def _maps_folder(maps: str | None, output: str | None) -> Path:
    beside = Path(output).with_name(f"{Path(output).stem}_maps") if output else Path("maps")
    folder = Path(maps) if maps else beside
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--maps: {folder} cannot be made: {error.strerror}") from error
    return folder


def _not_yet(found: Iterator[Found], table: RowFile | None, seen: _Seen) -> Iterator[Found]:
    """The files without those that a partial output holds already."""
    if table is None:
        return found
    done = set()
    for row in table.rows():
        seen.count(row)
        done.add(row["image"])
    if done:
        _log.warning("going on: %d images are in %s already", len(done), table.partial)
    return (each for each in found if each.path not in done)


def _with_maps(rows: Iterator[dict[str, Any]], scorer: Scorer, folder: Path) -> Iterator[dict[str, Any]]:
    from smart_iqa.maps import overlay, score_map

    for row in rows:
        if row["error"] is None:
            file = folder / map_name(row["image"])
            drawn = overlay(*score_map(scorer, row["image"]))
            write_atomically(file, functools.partial(drawn.save, format="png"))
            row["map"] = str(file)
        yield row


def _printer(format: str, kinds: dict[str, type]) -> _Take:
    """What prints rows."""
    if format == "csv":
        return csv_writer(sys.stdout, kinds)
    if format == "jsonl":
        return lambda row: print(json.dumps({name: row[name] for name in kinds}), flush=True)
    explained = kinds.keys() >= EXPLAINED.keys()
    print(table_head(explained))
    return lambda row: print(table_line(row, explained), flush=True)


@contextlib.contextmanager
def _stopping(kept: Path | None) -> Iterator[None]:
    """A signal ends the work at once, and what is said then is how it goes on from what is kept."""
    try:
        with StopSignals() as signals, signals.at_once():
            yield
    except Stopped as stop:
        if kept is None:
            raise
        raise Stopped(f"stopped; the same command goes on from {kept}", stop.signal) from None


def _write_sheet(file: Path, scored: list[tuple[str, float]]) -> None:
    from iqa.figures import draw_sheet

    figure = draw_sheet([image for image, _ in scored], [score for _, score in scored])
    write_atomically(file, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def make_parser() -> Parser:
    """The command's flags; what is not given is left to `predict`."""
    parser = Parser(description="Score images (0..100, higher is better).", argument_default=SUPPRESS)
    names = "image files, folders, quoted patterns, and - for a list on standard input (by lines or zero bytes)"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=names)
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="a model of the package, folder of a run, file of `pack`, or a published file (.pth, .pkl) [default]",
    )
    written = "also write the rows: .csv, .jsonl or .parquet, a folder for ray; after a kill the same command goes on"
    parser.add_argument("--output", metavar="FILE", help=written)
    parser.add_argument("--overwrite", action="store_true", help="replace --output, and begin an unfinished one anew")
    parser.add_argument("--format", choices=FORMATS, help="of what is printed [table]")
    explained = "add the stage weights and an image with a map: red raises the score, blue lowers it"
    parser.add_argument("--explain", action="store_true", help=explained)
    parser.add_argument("--maps", metavar="FOLDER", help="of --explain [FILE_maps beside --output, else maps]")
    parser.add_argument("--sheet", metavar="FILE.png", help="also draw the images with their scores, best first")
    parser.add_argument("--device", choices=DEVICES)
    computed = "what computes the scores: onnxruntime needs the extra `onnx`, and exports the network once [torch]"
    parser.add_argument("--backend", choices=BACKENDS, help=computed)
    by = "ray: many processes or machines, Parquet files and tars of images too; needs the extra `ray` [local]"
    parser.add_argument("--engine", choices=ENGINES, help=by)
    parser.add_argument("--workers", type=int, metavar="N", help="processes of --engine ray [one a CPU, or a GPU]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Score what the command line names; where something cannot be read the exit code is 2."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("predict is one process: start it without torchrun; --engine ray uses several machines")
    try:
        if predict(**vars(arguments)):
            sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
