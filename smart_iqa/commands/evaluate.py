"""Test finished runs on databases: one results file, one table, and which run is better.

    smart-iqa evaluate --checkpoint results/demo --datasets demo
    smart-iqa evaluate --verify results/demo/results.json

`--verify` needs no images: it computes every number again from the predictions in the file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from folders import DATABASES
from iqa.choices import DEVICES, TEST_MODES
from iqa.errors import Parser, UserError
from iqa.metrics import krasula_in_words
from iqa.results import PROTOCOLS, groups_table, metrics_table, verify, write_results
from iqa.system import is_first_process, start_logging

if TYPE_CHECKING:
    from smart_iqa.comparing import Checkpoint


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Test finished runs on databases, or verify the numbers of results files.")
    parser.add_argument(
        "--checkpoint", nargs="+", metavar="RUN", help="folders of runs, or published files (.pth, .pkl)"
    )
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument(
        "--data_root", nargs="+", help="each holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)"
    )
    parser.add_argument("--data_path", action="append", metavar="NAME=FOLDER", help="of one database; repeated")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave bad rows out and record them")
    says = "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items())
    parser.add_argument("--protocol", choices=PROTOCOLS, default="ours", help=f"labels the results [ours]; {says}")
    parser.add_argument("--split_file", metavar="FILE", help="playground: file or folder with train and test lists")
    parser.add_argument("--test_mode", choices=TEST_MODES, help="default: as the run")
    parser.add_argument("--test_patch_num", type=int, help="crops per image (default: as the run)")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument(
        "--ratings",
        type=int,
        metavar="N",
        help="how many ratings each mos averages: compares checkpoints by the pairs people tell apart (Krasula) too",
    )
    parser.add_argument("--groups", action="store_true", help="print generators, distortions, quality levels too")
    parser.add_argument("--output", metavar="FILE.json", help="default: RUN/evaluation_<names>.json")
    parser.add_argument("--verify", nargs="+", metavar="FILE", help="recompute results.json or summary.json, and stop")
    return parser


def _check_arguments(parser: Parser, arguments: argparse.Namespace) -> None:
    if arguments.verify:
        if arguments.checkpoint or arguments.datasets:
            parser.error("--verify reads results files: give it without --checkpoint and --datasets")
        return
    missing = [f"--{name}" for name in ("checkpoint", "datasets") if not getattr(arguments, name)]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if arguments.protocol == "paper" and (arguments.test_mode or arguments.test_patch_num):
        parser.error("--protocol paper fixes the crops: give it without --test_mode and --test_patch_num")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate or verify as the command line says."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    _check_arguments(parser, arguments)
    start_logging()
    if arguments.verify:
        sys.exit(_verify_files(arguments.verify))
    from smart_iqa.comparing import evaluate, read_checkpoints

    checkpoints = read_checkpoints(arguments.checkpoint)
    output = _output_file(arguments, checkpoints)
    results = evaluate(
        arguments.checkpoint,
        arguments.datasets,
        data_root=os.pathsep.join([*(arguments.data_root or []), *(arguments.data_path or [])]) or None,
        skip_bad_images=arguments.skip_bad_images,
        protocol=arguments.protocol,
        split_file=arguments.split_file,
        test_mode=arguments.test_mode,
        test_patch_num=arguments.test_patch_num,
        ratings=arguments.ratings,
        device=arguments.device,
    )
    if not is_first_process():
        return
    write_results(output, results)
    _print_results(results, groups=arguments.groups)
    print(f"written to {output}")


def _output_file(arguments: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> Path:
    from smart_iqa.comparing import short_name

    names = ["evaluation", *([arguments.protocol] if arguments.protocol != "ours" else []), *arguments.datasets]
    names += [f"vs_{short_name(c.path)}" for c in checkpoints[1:]]
    output = Path(arguments.output or checkpoints[0].run / f"{'_'.join(names)}.json")
    if output.exists():
        raise UserError(f"{output} exists: name another file with --output")
    if not output.parent.is_dir():
        raise UserError(f"--output: no folder {output.parent}")
    return output


def _print_results(results: dict, groups: bool) -> None:
    protocol, parts = results["protocol"], results["parts"]
    by_database = [part for name in results["databases"] for part in parts if parts[part]["database"] == name]
    metrics = {part: results["metrics"][part] for part in by_database}
    tested = f"crops: {protocol['test_crops']}; resize: {protocol['resize']}"
    print(f"protocol {protocol['name']}: {protocol['description']} ({tested})")
    print(metrics_table(metrics))
    if groups:
        print(groups_table(metrics))
    for compared in results["comparisons"]:
        for sentence in [compared["words"], *compared["notes"]]:
            print(f"{compared['database']}: {sentence}")
        if "krasula" in compared:
            found = compared["krasula"]
            print(f"{compared['database']}: {krasula_in_words(found['a'], found['b'], compared['a'], compared['b'])}")
    if len(results["checkpoints"]) > 2:
        print(f"{len(results['comparisons'])} comparisons: p is of each alone, not corrected for their number")
    for note in protocol["notes"]:
        print(f"note: {note}")


def _verify_files(files: Sequence[str]) -> int:
    """Verify each file and print what came out; 0 if all agree, 1 if a value differs, 2 if a file cannot be read."""
    code = 0
    for file in files:
        try:
            found = verify(file)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        for name, stored, recomputed in found.differences:
            print(f"{file}: {name}: stored {stored}, recomputed {recomputed}")
        for name in found.unchecked:
            print(f"{file}: {name}: cannot be recomputed from this file, not checked")
        verdict = f"{len(found.differences)} differ" if found.differences else "all agree"
        print(f"{file}: {found.checked} numbers checked, {verdict}")
        code = max(code, 1 if found.differences else 0)
    return code
