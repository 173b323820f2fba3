"""What a network costs: parameters, MACs and FLOPs, latency, memory, for any list of variants.

    smart-iqa complexity tiny:channel nano:concat resnet50:single --output results/complexity
    smart-iqa complexity base:channel --memory --batch_sizes 8 32 --precision bf16 --grad_checkpointing

A variant is BACKBONE:FUSION. Writes `complexity.json`, `.csv`, `.md` and `.tex`. A MAC is one multiplication with
its addition, and counts as two FLOPs; both are named as such. Latency is the median over repeated passes in one
process, after warm-up, with its spread; it describes the machine that is named beside it.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
from argparse import SUPPRESS
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from iqa.choices import DEVICES
from iqa.errors import Parser, UserError
from iqa.results import markdown_table, provenance, read_published
from iqa.system import spreadsheet_safe, start_logging, write_atomically, write_json

if TYPE_CHECKING:
    from models_swin import SmartIQA

PUBLISHED_TOLERANCE = 0.03


def parse_variant(text: str) -> tuple[str, str]:
    """Part `tiny:channel` into `tiny` and `channel`.

    Raises:
        UserError: the text is not of that form, or there is no such fusion.
    """
    from models_swin import FUSIONS

    backbone, separator, fusion = text.partition(":")
    if not separator or fusion not in FUSIONS:
        raise UserError(f"variant {text!r}: expected BACKBONE:FUSION with a fusion of {', '.join(FUSIONS)}")
    return backbone, fusion


def backbone_stages(model: SmartIQA) -> dict[str, int]:
    """Count the parameters of the backbone's top-level parts, as timm names them."""
    body = model.backbone.body
    body = getattr(body, "model", body)  # of a plain transformer, the whole of it
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in body.named_children()}
    counts["own"] = sum(p.numel() for p in body.parameters(recurse=False))  # positions and class token
    return {name: count for name, count in counts.items() if count}


def measure(
    variant: str, passes: int, batches: Sequence[int], device_name: str, learning: dict, memory: str | None
) -> dict:
    """Measure all costs of one variant; run in a process of its own, so that peak memory is its own.

    Args:
        variant: BACKBONE:FUSION.
        passes: timed passes, after warm-up.
        batches: sizes of the batch, for latency and memory.
        device_name: as in the settings.
        learning: what of the backbone learns, as `iqa.learning.limit_learning` takes it.
        memory: precision of the training whose memory is counted; None to leave it out.
    """
    import torch

    from iqa.costs import SIDE, count_macs, count_parameters, measure_latency, training_memory
    from iqa.learning import limit_learning
    from iqa.runtime import make_accelerator
    from models_swin import SmartIQA

    torch.manual_seed(0)
    backbone, fusion = parse_variant(variant)
    device = make_accelerator(device_name).device
    model = SmartIQA(backbone, fusion)
    macs = count_macs(SmartIQA(backbone, fusion))
    latency = {str(batch): measure_latency(model, batch, passes, device) for batch in batches}
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident_bytes()
    training: dict = {}
    if memory is not None:
        learner, dtype = SmartIQA(backbone, fusion), {"bf16": torch.bfloat16, "fp16": torch.float16}.get(memory)
        limit_learning(learner.backbone, **learning)
        sizes = {str(batch): training_memory(learner, batch, dtype) for batch in batches}
        training = {"training_memory_bytes": sizes, "training": {"precision": memory, **learning}}
    return {
        "variant": variant,
        "backbone": model.backbone.name,
        "timm_name": model.backbone.timm_name,
        "side": SIDE,
        "parameters": count_parameters(model),
        "backbone_parameters": backbone_stages(model),
        "macs": macs,
        "flops": 2 * macs,
        "latency_ms_per_image": latency,
        "peak_memory_bytes": peak,
        **training,
    }


def _peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def measure_all(variants: Sequence[str], *how: object) -> list[dict]:
    """Measure variants one after the other, each in a fresh process; the rest is as `measure` takes it."""
    for variant in variants:
        parse_variant(variant)
    rows = []
    for variant in variants:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (variant, *how)))
        print(f"measured {variant} (timm: {rows[-1]['timm_name']})", flush=True)
    return rows


def to_table(rows: Sequence[dict]) -> pd.DataFrame:
    """Make a row a variant: timm's name, parameters by part (NaN: has none), MACs, FLOPs, latency, memory."""
    table = []
    for row in rows:
        cells = {"variant": row["variant"], "timm name": row["timm_name"], "parameters": row["parameters"]["total"]}
        cells |= {f"{part} (M)": n / 1e6 for part, n in row["parameters"].items() if part != "total"}
        cells |= {"GMACs": row["macs"] / 1e9, "GFLOPs": row["flops"] / 1e9}
        for batch, latency in row["latency_ms_per_image"].items():
            cells[f"ms/image, batch {batch}"] = latency["median"]
        cells["peak memory (MB)"] = row["peak_memory_bytes"] / 1e6
        for batch, size in row.get("training_memory_bytes", {}).items():
            cells[f"training memory (GB), batch {batch}"] = size / 1e9
        table.append(cells)
    return pd.DataFrame(table)


def check_published(rows: Sequence[dict]) -> list[str]:
    """Say in a line for each published figure of a measured size whether it holds, and as what."""
    lines = []
    published_rows = read_published().entries["complexity"].rows
    for row in rows:
        published = published_rows.get(row["variant"].partition(":")[0])
        if published is None:
            continue
        millions, gmacs = row["parameters"]["total"] / 1e6, row["macs"] / 1e9
        lines.append(_compare(row["variant"], "parameters (M)", published["parameters_millions"], millions))
        lines.append(_compare(row["variant"], "GFLOPs", published["operations_g"], 2 * gmacs))
        lines.append(_compare(row["variant"], "GFLOPs, if MACs are meant", published["operations_g"], gmacs))
        lines.append(
            f"{row['variant']}: published latency {published['latency_ms']} ms names no machine: not comparable"
        )
    return lines


def _compare(variant: str, quantity: str, published: float, measured: float) -> str:
    holds = abs(measured / published - 1) <= PUBLISHED_TOLERANCE
    verdict = "holds" if holds else "does not hold"
    return f"{variant}: published {quantity} {published:g}, measured {measured:.2f}: {verdict} (within 3 %)"


def write_tables(rows: Sequence[dict], output: Path) -> None:
    """Write JSON, CSV, Markdown and LaTeX."""
    output.mkdir(parents=True, exist_ok=True)
    table, lines = to_table(rows), check_published(rows)
    write_json(output / "complexity.json", {"provenance": provenance(), "variants": list(rows), "published": lines})
    style = {"index": False, "float_format": "%.2f", "na_rep": "-"}
    texts = {"csv": spreadsheet_safe(table).to_csv(index=False), "tex": table.to_latex(**style, escape=True)}
    rows_of_text = [[_cell(value) for value in row] for row in table.to_numpy(dtype=object)]
    markdown = markdown_table(table.columns, rows_of_text)
    texts["md"] = "\n".join([markdown, "", *(f"- {line}" for line in lines)]) + "\n"
    for ending, text in texts.items():
        write_atomically(output / f"complexity.{ending}", partial(Path.write_text, data=text))
    print(table.to_string(**style))
    print("\n".join(lines))


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.2f}"


def complexity(
    variants: Sequence[str],
    batch_sizes: Sequence[int] = (1, 32),
    passes: int = 10,
    device: str = "auto",
    output: str | Path = "results/complexity",
    memory: bool = False,
    precision: str = "fp32",
    freeze_stages: int = 0,
    lora_rank: int = 0,
    grad_checkpointing: bool = False,
) -> list[dict]:
    """Measure what variants cost and write the tables.

    Args:
        variants: BACKBONE:FUSION each.
        batch_sizes: for the latency, and for the memory of training.
        passes: timed passes, after warm-up.
        device: `auto`, `cpu`, `cuda` or `mps`.
        output: folder to write to.
        memory: count the memory of a training step too; see `iqa.costs.training_memory`.
        precision: of that training's backbone: `fp32`, `bf16` or `fp16`.
        freeze_stages: as in training.
        lora_rank: as in training.
        grad_checkpointing: as in training.

    Returns:
        The costs of each variant, as in `complexity.json`.

    Raises:
        UserError: a variant does not exist, or a number is too small.
    """
    if passes < 2 or min(batch_sizes) < 1:
        raise UserError("--passes must be at least 2 and --batch_sizes at least 1")
    learning = {"freeze_stages": freeze_stages, "lora_rank": lora_rank, "grad_checkpointing": grad_checkpointing}
    if any(learning.values()) and not memory:
        raise UserError("freeze_stages, lora_rank and grad_checkpointing change the memory of training: give --memory")
    rows = measure_all(variants, passes, batch_sizes, device, learning, precision if memory else None)
    write_tables(rows, Path(output))
    return rows


def make_parser() -> Parser:
    """Name the command's flags; what is not given is left to `complexity`."""
    text = "Parameters, MACs and FLOPs, latency and memory of variants."
    parser = Parser(description=text, argument_default=SUPPRESS)
    parser.add_argument("variants", nargs="+", metavar="BACKBONE:FUSION", help="for example tiny:channel")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="for latency and memory [1 32]")
    parser.add_argument("--passes", type=int, help="timed passes, after warm-up [10]")
    parser.add_argument("--device", choices=DEVICES)
    parser.add_argument("--output", metavar="FOLDER", help="[results/complexity]")
    parser.add_argument("--memory", action="store_true", help="count the memory of a training step by batch size too")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of the training whose memory is counted")
    parser.add_argument("--freeze_stages", type=int, choices=range(5), help="as in training")
    parser.add_argument("--lora_rank", type=int, help="as in training")
    parser.add_argument("--grad_checkpointing", action="store_true", help="as in training")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    complexity(**vars(arguments))
