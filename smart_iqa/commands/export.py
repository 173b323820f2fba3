"""Write a model as one file that scores without this project.

    smart-iqa export --output model.onnx
    smart-iqa export --checkpoint results/demo --output model.pt2
    smart-iqa export --output model_int8.onnx --int8

Input `images`: RGB, float, 0..1, (batch, 3, height, width) of any size from 32 on. Output `scores`: (batch,), 0..100,
higher is better. See docs/export.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from iqa.errors import Parser, UserError
from iqa.system import require_packages, start_logging
from smart_iqa.shipped import DEFAULT, checkpoint_file

SUFFIXES = (".onnx", ".pt2")


def check_request(output: Path, overwrite: bool, int8: bool, calibration: Sequence[str]) -> None:
    """Find what is wrong with a request before the work.

    Raises:
        UserError: the output's ending, folder or place is not right, flags contradict, or packages are missing.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: expected a file that ends with {' or '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"--output {output}: folder {output.parent} is closed to writing")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder")
    if output.exists() and not overwrite:
        raise UserError(f"--output {output}: is there already; --overwrite replaces it")
    if int8 and output.suffix != ".onnx":
        raise UserError(f"--int8 needs an .onnx file, got --output {output}")
    if calibration and not int8:
        raise UserError("--calibration sets the ranges of --int8: give both")
    if output.suffix == ".onnx":
        require_packages("export to .onnx", "onnx", ["onnx", "onnxscript", "onnxruntime"])


def export(
    output: str | Path,
    checkpoint: str = DEFAULT,
    overwrite: bool = False,
    int8: bool = False,
    calibration: Sequence[str] = (),
) -> dict:
    """Write a model as .onnx or .pt2, and check the file's scores against PyTorch's.

    Args:
        output: the file.
        checkpoint: a model of the package, a run's folder or a checkpoint file.
        overwrite: replace a file that is there.
        int8: store and compute the backbone in 8 bits.
        calibration: image files and folders that set the ranges of int8; none takes made-up images.

    Returns:
        `file`, `bytes`, and `difference`: the largest one to PyTorch's scores.

    Raises:
        UserError: the request is wrong, or the model cannot be exported.
    """
    output = Path(output)
    check_request(output, overwrite, int8, calibration)
    checkpoint_file(checkpoint)
    from smart_iqa.exporting import write_export
    from smart_iqa.scorer import load_model

    scorer = load_model(checkpoint, "cpu")
    images = None
    if int8:
        from smart_iqa.quantising import calibration_images

        images = calibration_images(scorer.config, calibration)
    return write_export(scorer, model_name(checkpoint), output, images)


def model_name(checkpoint: str) -> str:
    """What a file's metadata call a model: the name of its folder, or of its file."""
    path = Path(checkpoint).resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.name in ("best.safetensors", "last.safetensors") else path.stem


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Write a model as one file (.onnx, .pt2) that scores without this project.")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT,
        metavar="RUN",
        help="a model of the package, folder of a run, file of `pack`, or a published file (.pth, .pkl) [default]",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="what to write: .onnx, or .pt2 of torch.export")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--int8", action="store_true", help="compute the backbone in 8 bits (.onnx only)")
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="PATH",
        help="image files and folders that set the ranges of --int8 [made-up images]",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export the model that the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    written = export(**vars(arguments))
    megabytes, difference = written["bytes"] / 1e6, written["difference"]
    print(f"written to {written['file']}: {megabytes:.1f} MB, scores within {difference:.2g} of PyTorch's")
