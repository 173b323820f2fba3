"""Speed and memory of `smart-iqa predict`, beside the bare backbone and beside importing torch.

    python benchmarks/prediction.py --json benchmarks/results/MACHINE_prediction.json

`predict` decodes, scores and gives rows; *bare* is timm's network of the same name, built as timm builds it, that takes
ready tensors of the same sizes one at a time, or in the batches that predict makes. Ratios are of images a second
(of CPU time too, which neighbours on a busy machine disturb less), medians over turns in one process:

    predict_ratio_small, _medium,  over bare, one image at a time: JPEG files of 64 to 256 pixels; of 512 to 1,024;
      _photos                      photographs of 12 MP
    predict_batched_ratio_*        over bare in the same batches
    fastest_ratio_*                as the first, by whichever of ONNX Runtime in float32 and in int8 is faster
    memory_ratio                   peak memory of ten times as many files over that of the fewer

    first_score_ratio              seconds to the first score over seconds of `import torch, timm`
    first_score_cpu_ratio          the same of CPU time
    help_seconds, error_seconds    of `smart-iqa train --help`, which has most flags, and of a file that is not there;
                                   `_cpu_seconds` beside them
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.common import (
    against_target,
    interleaved,
    peak_bytes_of,
    print_targets,
    ratios,
    require_writable,
    spread,
    write_result,
)
from iqa.data import Found
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.system import declare_missing_operators
from smart_iqa.exporting import trace, write_export
from smart_iqa.onnx_backend import OnnxBackend
from smart_iqa.prediction import CropScores, Prepared, batches, network_scores, predict_rows, test_crops
from smart_iqa.quantising import calibration_images
from smart_iqa.scorer import Scorer, load_model

declare_missing_operators()
import timm  # noqa: E402  (importing timm imports torchvision, which needs the line above)

SMALL = [(64, 64), (96, 96), (128, 96), (96, 128), (160, 160), (224, 224), (256, 192), (192, 256)]  # width, height
MEDIUM = [(512, 384), (512, 512), (768, 512), (640, 960), (1024, 768)]
PHOTOS = [(4000, 3000), (3000, 4000)]
TARGETS: dict[str, dict[str, float]] = {
    "predict_ratio_small": {"at_least": 1.0},
    "predict_ratio_medium": {"at_least": 1.0},
    "predict_ratio_photos": {"at_least": 1.0},
    "predict_batched_ratio_small": {"at_least": 1.0},
    "predict_batched_ratio_medium": {"at_least": 1.0},
    "predict_batched_ratio_photos": {"at_least": 1.0},
    "fastest_ratio_small": {"at_least": 1.3},
    "fastest_ratio_medium": {"at_least": 1.3},
    "fastest_ratio_photos": {"at_least": 1.3},
    "first_score_ratio": {"below": 2.0},
    "first_score_cpu_ratio": {"below": 2.0},
    "help_seconds": {"below": 1.0},
    "error_seconds": {"below": 1.0},
    "help_cpu_seconds": {"below": 1.0},
    "error_cpu_seconds": {"below": 1.0},
    "memory_ratio": {"below": 1.1},
}


class Sizes(NamedTuple):
    """How much is measured."""

    small: int
    medium: int
    photos: int
    turns: int
    starts: int
    files: int  # for the memory, and ten times as many


FULL, QUICK = Sizes(160, 40, 12, 5, 5, 1000), Sizes(16, 5, 2, 2, 2, 20)


def write_images(folder: Path, sizes: Sequence[tuple[int, int]], count: int) -> list[str]:
    """JPEG files of the sizes in turn, smooth with some grain; their paths."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(sizes[number % len(sizes)], Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.integers(-8, 9, pixels.shape[:2])[..., None]
        paths.append(str(folder / f"{number:06d}.jpg"))
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


class _Clocked:
    """Work that also notes the CPU time of each call, of all threads and of the processes that it has started."""

    def __init__(self, work: Callable[[], object]):
        self.work, self.cpu_seconds = work, []

    def __call__(self) -> None:
        started = sum(os.times()[:4])
        self.work()
        self.cpu_seconds.append(sum(os.times()[:4]) - started)


def make_engines(scorer: Scorer, folder: Path) -> dict[str, CropScores]:
    """What scores crops: the network in PyTorch, and exported to ONNX Runtime in float32 and in int8."""
    program, files = trace(scorer.model), {"onnxruntime": folder / "float.onnx", "int8": folder / "int8.onnx"}
    write_export(scorer, "default", files["onnxruntime"], program=program)
    write_export(scorer, "default", files["int8"], calibration_images(scorer.config, []), program)
    return {"torch": network_scores(scorer)} | {name: OnnxBackend(file).crop_scores for name, file in files.items()}


def measure_speed(scorer: Scorer, engines: dict[str, CropScores], paths: list[str], turns: int) -> dict:
    """Images a second of predict by each engine and of the bare network, of time and of CPU time, and ratios."""
    bare = timm.create_model(scorer.model.backbone.timm_name, pretrained=False).eval()
    crops = [Prepared(n, Found(path), test_crops(path, scorer.config)) for n, path in enumerate(paths)]
    one_by_one = [torch.from_numpy(each.crops).float() for each in crops]
    together = [torch.from_numpy(np.concatenate([each.crops for each in batch])).float() for batch in batches(crops)]

    @torch.inference_mode()
    def forward(tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            bare(tensor)

    def predict(scores_of: CropScores) -> None:
        list(predict_rows(map(Found, paths), scorer.config, scores_of))

    works = {name: _Clocked(functools.partial(predict, scores_of)) for name, scores_of in engines.items()}
    works |= {name: _Clocked(functools.partial(forward, tensors))
              for name, tensors in (("bare", one_by_one), ("bare_batched", together))}  # fmt: skip
    seconds = interleaved(works, turns)
    cpu = {name: work.cpu_seconds[1:] for name, work in works.items()}
    return {
        "images": len(paths),
        "batches": len(together),
        "images_per_s": {name: spread([len(paths) / s for s in taken]) for name, taken in seconds.items()},
        "ratio": {name: spread(ratios(seconds["bare"], seconds[name])) for name in engines},
        "batched_ratio": {name: spread(ratios(seconds["bare_batched"], seconds[name])) for name in engines},
        "cpu_ratio": {name: spread(ratios(cpu["bare"], cpu[name])) for name in engines},
        "cpu_batched_ratio": {name: spread(ratios(cpu["bare_batched"], cpu[name])) for name in engines},
    }


def command(*words: str) -> list[str]:
    """A command line of this project."""
    return [sys.executable, "-m", "smart_iqa", *words]


def run_start(words: list[str], code: int) -> None:
    """Run a command line to its end.

    Raises:
        UserError: it has not ended with this exit code.
    """
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != code:
        said = done.stdout.strip().splitlines()[-1:] or ["nothing"]
        raise UserError(f"{' '.join(words)}: expected exit code {code}, got {done.returncode}, and it said: {said[0]}")


def measure_start(image: str, turns: int) -> dict:
    """Seconds of commands that begin anew, in turns."""
    imports = "from iqa.system import declare_missing_operators as d; d(); import torch, timm"
    lines = {
        "imports": ([sys.executable, "-c", imports], 0),
        "first_score": (command("predict", image, "--device", "cpu"), 0),
        "help": (command("train", "--help"), 0),
        "error": (command("predict", "nowhere.png"), 2),
    }
    works = {name: _Clocked(functools.partial(run_start, *line)) for name, line in lines.items()}
    seconds = interleaved(works, turns)
    cpu = {name: work.cpu_seconds[1:] for name, work in works.items()}
    found = {f"{name}_seconds": spread(taken) for name, taken in seconds.items()}
    found |= {f"{name}_cpu_seconds": spread(taken) for name, taken in cpu.items()}
    found |= {"ratio": spread(ratios(seconds["first_score"], seconds["imports"]))}
    return found | {"cpu_ratio": spread(ratios(cpu["first_score"], cpu["imports"]))}


def measure_memory(folder: Path, files: int) -> dict:
    """Peak memory in bytes of predicting a number of small files, and ten times as many, each in a new process."""
    image = Path(write_images(folder, [(64, 64)], 1)[0])
    peaks = {}
    for count in (files, 10 * files):
        inside = folder / f"of_{count}"
        inside.mkdir()
        for number in range(count):
            (inside / f"{number:06d}.jpg").hardlink_to(image)
        code = "import sys; from smart_iqa.commands.predict import predict\n"
        code += "predict([sys.argv[1]], output=sys.argv[2], device='cpu')"
        peaks[str(count)] = peak_bytes_of(code, str(inside), str(folder / f"{count}.csv"))
    fewer, more = peaks.values()
    return {"peak_bytes": peaks, "ratio": more / fewer}


def measure_work(folder: Path, sizes: Sizes) -> tuple[dict, dict]:
    """Measurements of speed and of memory, and their numbers."""
    scorer, speed = load_model(device="cpu"), {}
    engines = make_engines(scorer, folder)
    kinds = (("small", SMALL, sizes.small), ("medium", MEDIUM, sizes.medium), ("photos", PHOTOS, sizes.photos))
    for name, shapes, count in kinds:
        (inside := folder / name).mkdir()
        print(f"measuring the speed of {name}", file=sys.stderr)
        speed[name] = measure_speed(scorer, engines, write_images(inside, shapes, count), sizes.turns)
    print("measuring memory", file=sys.stderr)
    memory = measure_memory(folder, sizes.files)
    numbers = {f"predict_ratio_{name}": of["ratio"]["torch"]["median"] for name, of in speed.items()}
    numbers |= {f"predict_batched_ratio_{name}": of["batched_ratio"]["torch"]["median"] for name, of in speed.items()}
    for name, of in speed.items():
        numbers[f"fastest_ratio_{name}"] = max(of["ratio"][engine]["median"] for engine in ("onnxruntime", "int8"))
    return {"speed": speed, "memory": memory}, {**numbers, "memory_ratio": memory["ratio"]}


def measure(sizes: Sizes) -> dict:
    """Everything, with the targets."""
    with tempfile.TemporaryDirectory() as temporary:
        print("measuring start-up", file=sys.stderr)
        start = measure_start(write_images(Path(temporary), SMALL[-1:], 1)[0], sizes.starts)
        work, numbers = measure_work(Path(temporary), sizes)
    numbers |= {f"first_score_{name}": start[name]["median"] for name in ("ratio", "cpu_ratio")}
    numbers |= {name: start[name]["median"] for name in TARGETS if name in start}
    return {
        "kind": "prediction",
        **numbers,
        "targets": {name: against_target(numbers[name], **asked) for name, asked in TARGETS.items()},
        "measurements": {"start": start, **work},
    }


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Speed, start-up and memory of prediction.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, says nothing")
    parser.add_argument("--busy", action="store_true", help="note that the machine did something else meanwhile")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the numbers beside their targets, write everything."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    result = measure(QUICK if arguments.quick else FULL)
    write_result(arguments.json, {**result, "quick": arguments.quick, "busy": arguments.busy})
    print_targets(result["targets"])


if __name__ == "__main__":
    exit_on_user_error(main)
