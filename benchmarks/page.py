"""Write the tables of the pages in docs/ from the results in benchmarks/results/.

    python benchmarks/page.py

Between the markers of the pages stands only what this writes, so that no number there is typed in.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from iqa.errors import Parser, exit_on_user_error
from iqa.results import markdown_table
from iqa.system import write_atomically

ROOT = Path(__file__).resolve().parent.parent

PAGES = (
    "docs/performance.md",
    "docs/scaling.md",
    "docs/reliability.md",
    "docs/serve.md",
    "docs/export.md",
    "docs/accuracy.md",
    "docs/models.md",
)
NOTHING = "No result is committed yet."
GLOBAL_BATCH = 32  # `batch_size`'s default
PROCESSES = (2, 4, 8, 16, 32, 64)
# Bytes a second between neighbours of the ring: assumptions.
LINKS = {"1 Gbit/s Ethernet": 0.125e9, "25 Gbit/s Ethernet": 3.1e9, "NVLink, 300 GB/s": 300e9}
BILLION, CORES, PRICE = 10**9, 1024, 0.04  # images, of an assumed cluster, assumed US dollars an hour of a core
_SECTION = "<!-- {name} -->\n{text}\n<!-- /{name} -->"


def read_measurements(folder: Path) -> list[tuple[str, dict]]:
    """File name and content of every measurement in a folder, and of the tables of ablations.

    Runs lie in folders of their own and are passed over.
    """
    files = [*sorted(folder.glob("*.json")), *sorted(folder.glob("ablation_*/table.json"))]
    read = [(file.relative_to(folder).as_posix(), json.loads(file.read_text())) for file in files]
    return [(name, {"kind": name} | content) for name, content in read]  # a table has no kind: there is one of each


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers with three digits."""
    cells = [[f"{v:,.3g}" if isinstance(v, float) and v < 1000 else _text(v) for v in row] for row in rows]
    return markdown_table(head, cells)


def _text(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _headline(file: str, result: dict) -> str:
    machine, versions = result["provenance"]["machine"], result["provenance"]["versions"]
    place = result.get("device") or f"{machine['processor']}, {machine['cores']} threads"
    commit = result["provenance"]["git_commit"]
    at = f"commit {commit[:7]}" if commit else "no commit"
    return f"`benchmarks/results/{file}`: {place}, torch {versions['torch']}, {at}.\n"


def targets_table(result: dict) -> str:
    """A row a target: measured, asked, met."""
    rows = [
        [f"`{name}`", t["measured"], f"at least {t['at_least']:,}" if "at_least" in t else f"below {t['below']:,}",
         "yes" if t["met"] else "**no**"]
        for name, t in result["targets"].items()
    ]  # fmt: skip
    return table(["", "measured", "target", "met"], rows)


def throughput_section(file: str, result: dict) -> str:
    """Targets, and the speeds behind them with their quartiles."""
    parts, measured = [], result["measurements"]
    parts += [(f"loader: {work}", s) for work, s in measured["loader"]["crops_per_s"].items()]
    for name, of in measured["training"].items():
        parts += [(f"training {name}: {work}", s) for work, s in of["images_per_s"].items()]
    for name, of in measured["evaluation"].items():
        parts += [(f"evaluation {name}: {work}", s) for work, s in of["crops_per_s"].items()]
    for name, of in measured["compiled"].items():
        parts += [(f"training {name}: {work}", s) for work, s in of["images_per_s"].items() if work == "compiled"]
    waits = [f"{of['first_epoch_seconds']:.0f} s ({name})" for name, of in measured["compiled"].items()]
    waited = "\n\nThe first compiled epoch, of two steps, took " + ", ".join(waits) + "." if waits else ""
    rows = [[label.replace("_", " "), s["median"], "{:.3g} .. {:.3g}".format(*s["quartiles"]), s["n"]]
            for label, s in parts]  # fmt: skip
    speeds = table(["crops (images) a second", "median", "quartiles", "n"], rows)
    return "\n".join([_headline(file, result), targets_table(result), "", speeds]) + waited


def cost_section(file: str, result: dict) -> str:
    """Targets, and seconds and memory by part and number of images."""
    rows = [
        [part, f"{int(images):,}", cost["seconds"], cost["peak_bytes"] / 1e6]
        for images, costs in result["images"].items()
        for part, cost in costs.items()
    ]
    costs = table(["", "images", "seconds", "peak MB"], sorted(rows, key=lambda row: row[0]))
    runs = table(
        ["run of KonIQ-10k's size", "peak MB"],
        [[f"batch {r['batch']}, {r['workers']} workers", r["peak_bytes"] / 1e6] for r in result["koniq_size"]],
    )
    return "\n".join([_headline(file, result), targets_table(result), "", costs, "", runs])


def modes_section(file: str, result: dict) -> str:
    """A row a mode: SRCC, the difference to the first one with its interval, and the time."""
    rows = [
        [mode, f"{r['srcc']:.4f}", f"{r['difference']:+.4f}",
         "{:+.4f} .. {:+.4f}".format(*r["interval"]) if r["interval"] else "", f"{r['relative_time']:.2f}"]
        for mode, r in result["modes"].items()
    ]  # fmt: skip
    head = ["test crops", "mean SRCC", "difference", "95 % interval", "time"]
    return "\n".join([_headline(file, result), table(head, rows)])


def prediction_section(file: str, result: dict) -> str:
    """Targets, images a second with what they are compared with, and seconds and memory of a start."""
    rows = [
        [f"{files}: {work.replace('_', ' ')}", s["median"], "{:.3g} .. {:.3g}".format(*s["quartiles"]), s["n"]]
        for files, of in result["measurements"]["speed"].items()
        for work, s in of["images_per_s"].items()
    ]
    peaks = result["measurements"]["memory"]["peak_bytes"]
    rows += start_rows(result)
    rows += [[f"peak memory of {int(n):,} images (MB)", bytes_ / 1e6, "", 1] for n, bytes_ in peaks.items()]
    busy = "The machine did something else meanwhile.\n" if result["busy"] else ""
    measured = table(["images a second, and seconds of a start", "median", "quartiles", "n"], rows)
    return "\n".join([_headline(file, result) + busy, targets_table(result), "", measured])


def start_rows(result: dict) -> list[list]:
    """Seconds of each kind of start, of the clock and of the CPU, and the ratios of the first score's."""
    return [
        [f"start: {name.replace('_', ' ')}", s["median"], "{:.3g} .. {:.3g}".format(*s["quartiles"]), s["n"]]
        for name, s in result["measurements"]["start"].items()
    ]


LOOP = ("loop_images_per_s", "loop_test_images_per_s", "overhead_share", "deterministic_cost")


def gpu_section(file: str, result: dict) -> str:
    """A row a variant."""
    keys = ("train_images_per_s", "mfu", "epoch_seconds", "test_seconds")
    rows = [
        [
            v["backbone"],
            v["batch"],
            "yes" if v["compiled"] else "no",
            v.get("fused_attn", "on"),
            *(v.get(key, v.get("reason")) for key in keys),
        ]
        for v in result["variants"]
    ]
    head = ["backbone", "batch", "compiled", "fused_attn", "images/s", "MFU", "epoch (s)", "test (s)"]
    loops = [
        [v["backbone"], v["batch"], *(v[key] for key in LOOP)] for v in result["variants"] if "overhead_share" in v
    ]
    named = ["backbone", "batch", *(f"`{key}`" for key in LOOP)]
    return "\n".join([_headline(file, result), table(head, rows), *(["", table(named, loops)] if loops else [])])


def speed_up(step_seconds: float, gradient_bytes: float, bytes_per_s: float, processes: int) -> float:
    """How much faster a step of one global batch is on several processes, if nothing of the all-reduce is hidden.

    A ring all-reduce sends 2 (N - 1) / N of the gradients over each link.
    """
    shared = 2 * (processes - 1) / processes * gradient_bytes / bytes_per_s
    return step_seconds / (step_seconds / processes + shared)


def scaling_section(file: str, result: dict) -> str:
    """Speed-up by number of processes, backbone and link, from the measured speed of one."""
    rows = []
    for name, measured in result["measurements"]["training"].items():
        step, volume = GLOBAL_BATCH / measured["images_per_s"]["whole"]["median"], 4 * measured["parameters"]
        for link, rate in LINKS.items():
            speed_ups = [f"{speed_up(step, volume, rate, n):.1f}" for n in PROCESSES]
            rows.append([name, f"{step:.2f}", f"{volume / 1e6:.0f}", link, *speed_ups])
    head = ["backbone", "step (s)", "gradients (MB)", "link (assumed)", *map(str, PROCESSES)]
    return "\n".join([_headline(file, result), table(head, rows)])


def collection_section(file: str, result: dict) -> str:
    """What a billion images cost: hours of a core from its measured speed, days of a cluster, and an assumed price."""
    rows = []
    for name, of in result["backends"].items():
        speed = of["images_per_cpu_s"]
        hours = BILLION / speed["median"] / 3600
        quartiles = "{:.3g} .. {:.3g}".format(*speed["quartiles"])
        rows.append([name, speed["median"], quartiles, hours, hours / CORES / 24, hours * PRICE])
    head = ["backend", f"images/s of a core, r, {'x'.join(map(str, result['size']))}", "quartiles",
            "core hours of a billion", f"days of {CORES:,} cores", f"US dollars at {PRICE} a core hour"]  # fmt: skip
    said = (
        f"Measured {result['date']} on one core; load average of the machine meanwhile {result['load_average']:.1f}.\n"
    )
    return "\n".join([_headline(file, result) + said, table(head, rows)])


def inputs_section(file: str, result: dict) -> str:
    """A row a kind of file: tried, read, refused, and what went otherwise."""
    columns = ("tried", "read", "refused", "wrong")
    counts = {**result["kinds"], "together": result["total"]}
    rows = [[kind, *(of[column] for column in columns)] for kind, of in counts.items()]
    slowest = f"\n\nThe slowest file was `{result['slowest_file']}`; Pillow {result['pillow']}."
    head = ["kind of file", "tried", "read, with the right pixels", "refused, in one line", "neither"]
    return "\n".join([_headline(file, result), targets_table(result), "", table(head, rows)]) + slowest


def kills_section(file: str, result: dict) -> str:
    """A row a kind of run: of its kills in each phase, how many ended with the same bits."""
    counts = result["counts"]
    phases = list(next(iter(counts.values())))
    rows = [
        [kind, *(f"{of['same']} of {of['killed']}" for of in by_phase.values())] for kind, by_phase in counts.items()
    ]
    return "\n".join([_headline(file, result), targets_table(result), "", table(["killed in", *phases], rows)])


def serving_section(file: str, result: dict) -> str:
    """A row a size and number of clients: with batches and without."""
    rows = []
    alone = {(r["image"], r["clients"]): r for r in result["rows"] if not r["batches"]}
    for row in (r for r in result["rows"] if r["batches"]):
        other = alone[row["image"], row["clients"]]
        size = "x".join(map(str, row["size"]))
        rows.append([f"{row['image']}, {size}", row["clients"], row["requests_per_s"], row["median_seconds"],
                     row["p95_seconds"], other["requests_per_s"], other["p95_seconds"]])  # fmt: skip
    head = ["image", "clients", "requests/s", "median (s)", "95th percentile (s)", "requests/s, no batches", "95th (s)"]
    direct = ", ".join(f"{speed:.3g} a second ({name})" for name, speed in result["direct_images_per_s"].items())
    said = f"`Scorer.score` alone: {direct}. Load average meanwhile: {result['load_average']:.1f}."
    return "\n".join([_headline(file, result), table(head, rows), "", said])


def export_section(file: str, result: dict) -> str:
    """Agreement with PyTorch, speed beside the bare backbone, start-up, and what int8 costs."""
    differences = [
        [f"`{model}` {suffix}", f"{value:.1e}"]
        for model, of in result["agreement"].items()
        for suffix, value in of.items()
    ]
    images = f"{result['images']} images of {result['sizes']} sizes"
    agreement = table(["file", f"largest difference to PyTorch's score, {images}"], differences)
    engines = next(iter(result["speed"].values()))
    rows = [
        [name, *(cell for of in result["speed"].values() for cell in (
            of[name]["images_per_s"]["median"], f"{of[name]['to_timm']['median']:.2f}"))]
        for name in engines
    ]  # fmt: skip
    head = [cell for batch in result["speed"] for cell in (f"images/s, batch {batch}", "to timm")]
    speed = table(["224x224 pixels, one thread", *head], rows)
    starts = [[name, of["seconds"], of["peak_bytes"] / 1e6] for name, of in result["start_up"].items()]
    start_up = table(["", "seconds to the first score", "peak MB"], starts)
    parts = [_headline(file, result), agreement, "", speed, "", start_up]
    if "accuracy" in result:
        of = result["accuracy"]
        rows = [[name, f"{of['srcc'][name]:.4f}", f"{of['loss'][name]:+.4f}", f"{of['mean_difference'][name]:.2f}",
                 f"{result['bytes'][name] / 1e6:.1f}"] for name in of["srcc"]]  # fmt: skip
        head = [f"{of['n']} test images", "SRCC", "loss", "mean difference of a score", "MB"]
        parts += ["", table(head, rows)]
    return "\n".join(parts)


def tried_section(file: str, result: dict) -> str:
    """A row for everything that was tried while a recipe was worked out, also what did not help."""
    rows = [
        [row["head"], row["features"], row["what"], f"{row['srcc']:.4f}",
         "" if row["srcc_of_two"] is None else f"{row['srcc_of_two']:.4f}", f"{row['plcc']:.4f}", row["note"]]
        for row in result["rows"]
    ]  # fmt: skip
    splits = f"splits of seeds {', '.join(map(str, result['splits']))}"
    head = ["head", "features", "tried", "SRCC", "average of two", "PLCC of one", ""]
    said = f"Mean over the test parts of the {splits}; {result['recipe']}."
    return "\n".join([_headline(file, result) + said + "\n", table(head, rows)])


def controls_section(file: str, result: dict) -> str:
    """The model's row, and one of each baseline with the paired test over contents."""
    rows = [["the recipe", *(f"{value:.4f}" for value in result["model"].values()), "", "", ""]]
    for kind, of in result["baselines"].items():
        medians = (f"{value:.4f}" for value in of["medians"].values())
        rows.append([kind, *medians, *_difference(of["model_against_it"])])
    head = ["model", "median SRCC", "median PLCC", "the recipe's mean SRCC above it", "95 % interval", "splits ahead"]
    return "\n".join([_headline(file, result), table(head, rows)])


def fusions_section(file: str, result: dict) -> str:
    """A row for each of the ablation: accuracy, and the paired difference to the baseline."""
    rows = []
    for row in result["rows"]:
        means = [f"{row['parts']['test'][key]['mean']:.4f}" for key in ("srcc", "plcc")]
        rows.append([row["row"], *means, *_difference(row["versus_baseline"]), f"{row['parameters'] / 1e6:.2f}"])
    head = ["row", "mean SRCC", "mean PLCC", f"above {result['baseline']}", "95 % interval", "splits ahead",
            "parameters (M)"]  # fmt: skip
    return "\n".join([_headline(file, result), table(head, rows)])


def _difference(paired: dict | None) -> list[str]:
    if paired is None:
        return ["", "", ""]
    low, high = paired["bootstrap"]["difference_ci95"]
    return [f"{paired['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{paired['ahead']} of {paired['splits']}"]


def backbones_section(file: str, result: dict) -> str:
    """A row for each backbone: the median over the splits of each kind of regression's SRCC."""
    rows = [
        [name, of["weights"], *(f"{statistics.median(by['srcc']):.3f}" for by in of["splits"].values())]
        for name, of in result["backbones"].items()
    ]
    kinds = next(iter(result["backbones"].values()))["splits"]
    return "\n".join([_headline(file, result), table(["backbone", "weights", *kinds], rows)])


def gradients_section(file: str, result: dict) -> str:
    """A row for each head: what reaches its score before anything is learned."""
    rows = [
        [name, f"{of['agreement']:.3f}", f"{of['spread']:.3g}", ", ".join(f"{value:.3g}" for value in of["reach"])]
        for name, of in result["heads"].items()
    ]
    head = ["head", "agreement", "spread (mos)", "reach (mos) of each layer's input"]
    said = f"Medians over {result['seeds']} seeds, {result['images']} distorted scenes.\n"
    return "\n".join([_headline(file, result) + said, table(head, rows)])


# Section of a page -> the kind of result it shows, and how.
SECTIONS = {
    "throughput": ("throughput", throughput_section),
    "cost": ("cost", cost_section),
    "modes": ("test_modes", modes_section),
    "prediction": ("prediction", prediction_section),
    "gpu": ("gpu", gpu_section),
    "scaling": ("throughput", scaling_section),
    "collection": ("collection", collection_section),
    "inputs": ("reliability_inputs", inputs_section),
    "kills": ("reliability_kills", kills_section),
    "serving": ("serving", serving_section),
    "export": ("export", export_section),
    "tried": ("tried", tried_section),
    "controls": ("controls", controls_section),
    "gradients": ("gradients", gradients_section),
    "fusions": ("ablation_agiqa3k_fusions/table.json", fusions_section),
    "backbones": ("backbones", backbones_section),
}


def filled(page: str, results: Sequence[tuple[str, dict]]) -> str:
    """A page with the text between its markers made anew."""
    for name, (kind, section) in SECTIONS.items():
        texts = [section(file, result) for file, result in results if result["kind"] == kind]
        text = _SECTION.format(name=name, text="\n\n".join(texts) or NOTHING)
        page = re.sub(_SECTION.format(name=name, text=".*?"), lambda _, text=text: text, page, flags=re.DOTALL)
    return page


def make_parser() -> Parser:
    """No flags."""
    return Parser(description="Write the tables of the pages in docs/.")


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the pages."""
    make_parser().parse_args(argv)
    results = read_measurements(ROOT / "benchmarks" / "results")
    for page in (ROOT / name for name in PAGES):
        text = filled(page.read_text(), results)
        write_atomically(page, lambda file, text=text: file.write_text(text))


if __name__ == "__main__":
    exit_on_user_error(main)
