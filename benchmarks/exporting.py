"""What an exported model costs: its scores beside PyTorch's, images a second, start-up, memory, and int8's SRCC.

    python benchmarks/exporting.py --json benchmarks/results/export.json
    python benchmarks/exporting.py --json export.json --split benchmarks/results/default_model/split.json

The JSON holds, of the model of the package,

- `agreement`: the largest difference of a score to PyTorch's over 100 images of 20 sizes, for .onnx and .pt2, and of
  Swin-nano (untrained) too;
- `speed`: images/s at batch 1 and 32 of 224x224 on one thread of timm's backbone alone (eager), the network in PyTorch,
  ONNX Runtime in float32 and in int8; they take turns (A B A B), and a ratio is the median over the turns;
- `start_up`: seconds until the first score and peak memory, each in a process of its own;
- with `--split`, `accuracy`: SRCC of float32 and int8 on the test part of a split of `--dataset`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import interleaved, peak_bytes_of, ratios, require_writable, spread, write_result
from data_loader import load_image
from folders import read_database
from iqa.config import Config, parse_resize
from iqa.data import read_split
from iqa.errors import Parser, exit_on_user_error
from iqa.metrics import srcc
from iqa.runtime import make_accelerator
from models_swin import SmartIQA
from smart_iqa.exporting import TOLERANCE, reader, torch_scores, trace, write_export
from smart_iqa.onnx_backend import OnnxBackend
from smart_iqa.quantising import calibration_images
from smart_iqa.scorer import Scorer, load_model
from smart_iqa.training_data import part_table

SIDE = 224
TURNS = {1: 25, 32: 7}  # by batch
SIZES, IMAGES = 20, 100
FLOAT = {"onnxruntime": ".onnx", "torch.export": ".pt2"}
START = {
    "torch": "from smart_iqa import load_model; load_model(device='cpu').score({image!r})",
    "onnxruntime": (
        "import numpy; from PIL import Image; from smart_iqa.onnx_backend import OnnxBackend; "
        "OnnxBackend({model!r})(numpy.asarray(Image.open({image!r})).transpose(2, 0, 1)[None])"
    ),
    "import torch, timm": (
        "from iqa.system import declare_missing_operators; declare_missing_operators(); import torch, timm"
    ),
}


def agreement_images(images: int = IMAGES, sizes: int = SIZES) -> list[np.ndarray]:
    """Batches (B, 3, H, W) in 0..1 of so many sizes (sides of 32 to 512), `images` in all: noise over a gradient."""
    rng, batches = np.random.default_rng(0), []
    for size in range(sizes):
        height, width = (32, 32) if size == 0 else rng.integers(32, 513, 2)
        ramp = np.linspace(0, 1, width, dtype=np.float32) * np.linspace(0, 1, height, dtype=np.float32)[:, None]
        noise = rng.random((images // sizes, 3, height, width), dtype=np.float32)
        share = rng.random((images // sizes, 3, 1, 1), dtype=np.float32)
        batches.append(share * ramp + (1 - share) * noise)
    return batches


def agreement(scorer: Scorer, files: Sequence[Path], batches: Sequence[np.ndarray]) -> dict[str, float]:
    """The largest difference of each file's scores to PyTorch's, by the file's ending."""
    expected = [torch_scores(scorer.model, batch) for batch in batches]
    found = {}
    for file in files:
        score = reader(file, file.suffix)
        pairs = zip(expected, batches, strict=True)
        found[file.suffix] = max(float(np.abs(score(batch) - scores).max()) for scores, batch in pairs)
    return found


def speeds(scorer: Scorer, files: dict[str, Path], batch: int, turns: int) -> dict:
    """Images a second of each engine on one thread, in turns, and their ratio to the bare backbone."""
    images = np.random.default_rng(0).random((batch, 3, SIDE, SIDE), dtype=np.float32)
    backbone = scorer.model.backbone
    normalised = backbone.normalise(torch.from_numpy(images)).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            backbone.body(normalised)

    works: dict[str, Callable[[], object]] = {
        "timm backbone": bare,
        "torch": partial(torch_scores, scorer.model, images),
    }
    works |= {name: partial(OnnxBackend(file, threads=1), images) for name, file in files.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = interleaved(works, turns)
    torch.set_num_threads(threads)
    return {
        name: {"images_per_s": spread([batch / s for s in values]),
               "to_timm": spread(ratios(seconds["timm backbone"], values))}
        for name, values in seconds.items()
    }  # fmt: skip


def start_ups(model: Path, image: Path) -> dict[str, dict]:
    """Seconds until the first score, and peak bytes, of each engine in a new process."""
    found = {}
    for name, code in START.items():
        started = time.perf_counter()
        peak = peak_bytes_of(code.format(model=str(model), image=str(image)))
        found[name] = {"seconds": time.perf_counter() - started, "peak_bytes": peak}
    return found


def accuracy(config: Config, table: pd.DataFrame, files: dict[str, Path]) -> dict:
    """SRCC of each file's scores on a table, and its loss to the first."""
    engines, scores = {name: OnnxBackend(file) for name, file in files.items()}, {name: [] for name in files}
    for path in table["path"]:
        image = load_image(path, parse_resize(config.resize), config.patch_size)[None]
        for name, score in engines.items():
            scores[name].append(float(score(image)[0]))
    found = {name: srcc(np.array(values), table["mos"].to_numpy()) for name, values in scores.items()}
    first = next(iter(found))
    differences = {name: np.abs(np.subtract(values, scores[first])) for name, values in scores.items()}
    return {
        "n": len(table),
        "srcc": found,
        "loss": {name: found[first] - value for name, value in found.items()},
        "mean_difference": {name: float(values.mean()) for name, values in differences.items()},
    }


def untrained(backbone: str, fusion: str = "channel") -> Scorer:
    """A network with random weights."""
    torch.manual_seed(0)
    model, config = SmartIQA(backbone, fusion), Config(backbone=backbone, fusion=fusion, device="cpu")
    model.hypernet.last_weight.weight.data *= 4  # scores of images differ as trained ones do
    return Scorer(model, config, make_accelerator("cpu"))


def measure(checkpoint: str, quick: bool, table: pd.DataFrame | None) -> Iterator[dict]:
    """What has been measured so far, each time that there is more; the exported files lie in a temporary folder."""
    scorer, batches = load_model(checkpoint, "cpu"), agreement_images(4, 2) if quick else agreement_images()
    calibration = calibration_images(scorer.config, [])[: 2 if quick else None]
    with tempfile.TemporaryDirectory() as temporary:
        folder, program = Path(temporary), trace(scorer.model)
        files = {name: folder / f"model{suffix}" for name, suffix in FLOAT.items()} | {"int8": folder / "int8.onnx"}
        of_int8 = {"int8": calibration}
        sizes = {n: write_export(scorer, checkpoint, f, of_int8.get(n), program)["bytes"] for n, f in files.items()}
        result = {"kind": "export", "checkpoint": checkpoint, "images": sum(map(len, batches)), "sizes": len(batches),
                  "bytes": sizes, "tolerance": TOLERANCE}  # fmt: skip
        exported = files.pop("torch.export")
        if table is not None:
            result["accuracy"] = accuracy(scorer.config, table, files)
            yield result
        turns = {1: 2} if quick else TURNS
        result["speed"] = {str(batch): speeds(scorer, files, batch, n) for batch, n in turns.items()}
        result["agreement"] = {checkpoint: agreement(scorer, [files["onnxruntime"], exported], batches)}
        result["start_up"] = {} if quick else start_ups(files["onnxruntime"], _image(folder))
        yield result
        if not quick:
            nano = untrained("nano")
            program, written = trace(nano.model), [folder / f"nano{suffix}" for suffix in FLOAT.values()]
            for file in written:
                write_export(nano, "nano", file, program=program)
            result["agreement"]["nano"] = agreement(nano, written, batches)
            yield result


def _image(folder: Path) -> Path:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder / "image.png"


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Agreement, speed, start-up, memory and int8 accuracy of exported models.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--checkpoint", default="default", metavar="RUN", help="what is exported [default]")
    parser.add_argument("--dataset", default="agiqa-3k", help="for --split [agiqa-3k]")
    parser.add_argument("--split", type=Path, metavar="FILE", help="measure SRCC on the test part of this split")
    parser.add_argument("--quick", action="store_true", help="few images, in seconds: shows that it runs, says nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write everything, print what matters."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    table = None
    if arguments.split is not None:
        database = read_database(arguments.dataset, check_images=False)
        table = part_table(database, read_split(arguments.split, database), "test")
    result: dict = {}
    for result in measure(arguments.checkpoint, arguments.quick, table):
        write_result(arguments.json, {**result, "quick": arguments.quick})
    print(f"largest difference to PyTorch: {result['agreement']}")
    for batch, engines in result["speed"].items():
        row = ", ".join(f"{name} {e['images_per_s']['median']:.1f}" for name, e in engines.items())
        print(f"images/s at batch {batch}: {row}")
    print(f"accuracy: {result.get('accuracy')}")


if __name__ == "__main__":
    exit_on_user_error(main)
