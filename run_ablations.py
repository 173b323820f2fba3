"""Run experiments that are written down as data, and compare them in one table.

    python run_ablations.py configs/ablations/demo.yaml

Each file names its experiments (rows), the settings they share, the seeds, and the row to compare with. What is
finished is skipped, what was stopped goes on. Runs are written to `results/ablations/<file>/<row>_seed<seed>/`, the
table beside them as CSV, Markdown, LaTeX and JSON.

Started several times, or with `--jobs N`, it shares the runs out: each process takes one that no other has, on a GPU of
its own, and the last to finish writes the table.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import statistics
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from folders import DATABASES
from iqa.config import Config, load_config, load_yaml, resolve, shipped_config
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.metrics import STATISTICS, Place, Statistic, compare_over_splits, shown_in
from iqa.results import TEST_PART, markdown_table, paired_scores, provenance, read_history, read_results
from iqa.system import (
    FolderBusyError,
    is_first_process,
    lock_folder,
    spreadsheet_safe,
    start_logging,
    write_atomically,
    write_json,
)

log = logging.getLogger(__name__)

LATENCY_PASSES = 5
VERDICTS = {"a": "better", "b": "worse"}
MARKS = {"better": " +", "worse": " -"}  # behind the SRCC that decided


@dataclass(frozen=True)
class Ablation:
    """One file of experiments: a Config for each row and seed, and the row that the others are compared with."""

    name: str
    baseline: str
    configs: dict[str, list[Config]]


def read_ablation(file: str, dataset: str | None, seeds: Sequence[int] | None, results_dir: str) -> Ablation:
    """Read a file of experiments.

    Args:
        file: YAML with `baseline`, `rows` (settings by row name), and optionally `shared` settings and `seeds`.
        dataset: database to use instead of the file's.
        seeds: seeds to use instead of the file's.
        results_dir: where runs are written.

    Raises:
        UserError: a key is missing or unknown, or a row's settings are not allowed.
    """
    path = shipped_config(file)
    content, name = load_yaml(path), path.stem
    unknown = set(content) - {"baseline", "rows", "shared", "seeds"}
    if unknown or not isinstance(content.get("rows"), dict):
        raise UserError(f"{file}: expected baseline, rows, shared, seeds; got {', '.join(map(str, content))}")
    if content.get("baseline") not in list(content["rows"]):  # YAML may name what no dictionary takes
        raise UserError(f"{file}: baseline {content.get('baseline')!r} is not one of its rows")
    seeds = seeds or content.get("seeds") or [0]
    if not isinstance(seeds, list) or len(set(map(repr, seeds))) < len(seeds):
        raise UserError(f"{file}: seeds: expected a list of different whole numbers, got {seeds}")
    if dataset:
        name = f"{name}_{dataset}"
    configs = {}
    for row, settings in content["rows"].items():
        layers = [content.get("shared") or {}, settings or {}, {"dataset": dataset} if dataset else {}]
        if not all(isinstance(layer, dict) for layer in layers):
            raise UserError(f"{file}, row {row}: expected settings as `key: value`")
        for seed in seeds:
            place = {"seed": seed, "name": f"{row}_seed{seed}", "results_dir": str(Path(results_dir) / name)}
            try:
                config = resolve(*layers, place)
            except UserError as error:
                raise UserError(f"{file}, row {row}: {error}") from error
            if config.train_test_num > 1 or config.folds:
                raise UserError(f"{file}, row {row}: a row is one split a seed: list several seeds instead")
            configs.setdefault(str(row), []).append(config)
    return Ablation(name, str(content["baseline"]), configs)


def run_all(ablation: Ablation) -> bool:
    """Train and test whatever is not finished and that no other process is at; whether all is finished now."""
    configs = [config for of_row in ablation.configs.values() for config in of_row]
    for config in configs:
        try:
            _run_one(config)
        except FolderBusyError:
            log.info("%s is run by another process", config.run_dir)
    return all((config.run_dir / "results.json").is_file() for config in configs)


def _run_one(config: Config) -> None:
    """Train and test as a row and seed say, unless it is finished.

    Raises:
        FolderBusyError: another process is at it.
        UserError: what is there was run with other settings.
    """
    from train_swin import run

    stored = config.run_dir / "config.yaml"
    if stored.is_file() and load_config(stored) != config:
        raise UserError(f"{config.run_dir} was run with other settings: remove it, or rename the row")
    if (config.run_dir / "results.json").is_file():
        log.info("%s is complete", config.run_dir)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the processes of torchrun train one row together
        run(config, resume=stored.is_file())
    else:
        with lock_folder(config.run_dir):
            if not (config.run_dir / "results.json").is_file():  # another process may have finished it just now
                run(config, resume=stored.is_file())


def make_rows(ablation: Ablation) -> list[dict]:
    """Make a row an experiment: means and deviations over seeds, costs, and the comparison with the baseline."""
    results = {row: [read_results(c.run_dir) for c in configs] for row, configs in ablation.configs.items()}
    baseline = results[ablation.baseline]
    return [
        {
            "row": row,
            "config": dataclasses.asdict(ablation.configs[row][0]),
            **_scores(results[row]),
            **_costs(ablation.configs[row]),
            "versus_baseline": None if row == ablation.baseline else compare_rows(results[row], baseline),
        }
        for row in ablation.configs
    ]


def _scores(results: Sequence[dict]) -> dict:
    """Mean and deviation (ddof 1) of the statistics of brief tables over seeds for each part, with n of seeds."""
    scores: dict = {"seeds": len(results), "parts": {}}
    for part in results[0]["metrics"]:
        for key in (each.key for each in shown_in(Place.BRIEF)):
            values = [r["metrics"][part][key] for r in results if r["metrics"].get(part, {}).get(key) is not None]
            scores["parts"].setdefault(part, {})[key] = {
                "mean": statistics.mean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "n": len(values),
            }
    return scores


def _costs(configs: Sequence[Config]) -> dict:
    """Parameters, MACs, latency of the network (on a GPU too, where there is one).

    Seconds an epoch and epochs to the best are medians over seeds.
    """
    import torch

    from iqa.costs import count_macs, measure_latency
    from models_swin import build_network
    from train_swin import architecture_of

    model = build_network(**architecture_of(configs[0]))
    histories = [read_history(config.run_dir / "history.jsonl") for config in configs]
    best = [read_results(config.run_dir)["training"]["best_epoch"] for config in configs]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    latency = {name: measure_latency(model, 1, LATENCY_PASSES, torch.device(name))["median"] for name in devices}
    gpu = {"gpu_latency_ms": latency["cuda"], "gpu": torch.cuda.get_device_name()} if "cuda" in latency else {}
    macs = count_macs(model.cpu())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "flops": 2 * macs,
        "cpu_latency_ms": latency["cpu"],
        **gpu,
        "seconds_per_epoch": statistics.median(line["train_seconds"] for history in histories for line in history),
        "epochs_to_best": statistics.median(best),
    }


def compare_rows(results: Sequence[dict], baseline: Sequence[dict]) -> dict:
    """Compare a row with the baseline over all seeds, by the paired bootstrap over the contents that they tested.

    Returns:
        What `compare_over_splits` found, a being the row, and `verdict`: "better" or "worse" where the interval of the
        mean difference in SRCC lies on one side of 0.

    Raises:
        UserError: a seed was tested on other images than the baseline's.
    """
    pairs = [paired_scores(ours, theirs, TEST_PART) for ours, theirs in zip(results, baseline, strict=True)]
    compared = compare_over_splits(pairs)
    return {"verdict": VERDICTS.get(compared["better"], "no difference shown"), **compared}


def to_table(rows: Sequence[dict]) -> pd.DataFrame:
    """Write the rows as text cells: `mean ± deviation`, with + or - where better or worse than the baseline."""
    table = []
    for row in rows:
        cells = {"row": row["row"], "seeds": row["seeds"]}
        for part, scores in row["parts"].items():
            brief = (each for each in shown_in(Place.BRIEF) if each.key in scores)
            cells |= {f"{part} {each.title}": _mean_and_deviation(each, scores[each.key]) for each in brief}
        compared = f"test {STATISTICS['srcc'].title}"
        versus = row["versus_baseline"] or {}
        if compared in cells:
            cells[compared] += MARKS.get(versus.get("verdict"), "")
        cells |= _difference(versus)
        cells["parameters (M)"] = f"{row['parameters'] / 1e6:.2f}"
        cells["GMACs"] = f"{row['macs'] / 1e9:.2f}"
        cells["GFLOPs"] = f"{2 * row['macs'] / 1e9:.2f}"
        cells["ms/image (CPU)"] = f"{row['cpu_latency_ms']:.0f}"
        if "gpu_latency_ms" in row:
            cells[f"ms/image ({row['gpu']})"] = f"{row['gpu_latency_ms']:.1f}"
        cells["s/epoch"] = f"{row['seconds_per_epoch']:.0f}"
        cells["best epoch"] = f"{row['epochs_to_best']:g}"
        table.append(cells)
    return pd.DataFrame(table).fillna("-")


def _difference(versus: dict) -> dict[str, str]:
    """Cells that say by how much a row's SRCC differs from the baseline's, and how sure that is."""
    if versus.get("difference") is None:
        return {}
    interval = versus["bootstrap"]["difference_ci95"]
    low_and_high = "undecided" if None in interval else "{:+.4f} to {:+.4f}".format(*interval)
    ahead = f"{versus['ahead']} of {versus['splits']}"
    return {"difference": f"{versus['difference']:+.4f}", "95 % interval": low_and_high, "seeds ahead": ahead}


def _mean_and_deviation(statistic: Statistic, value: dict) -> str:
    if value["mean"] is None:
        return "undefined"
    return statistic.text(value["mean"]) + ("" if value["std"] is None else f" ± {statistic.text(value['std'])}")


def write_tables(ablation: Ablation, rows: Sequence[dict], folder: Path) -> dict:
    """Write the table as JSON, CSV, Markdown and LaTeX, print it, and return its record."""
    table = to_table(rows)
    note = (
        f"difference: in mean test SRCC to {ablation.baseline} over the seeds, with a bootstrap over contents; "
        "+ better, - worse: its interval is on one side of 0 (what seeds add is not in it); undecided below 6 contents."
    )
    record = {"name": ablation.name, "baseline": ablation.baseline, "note": note, "provenance": provenance()}
    record["rows"] = list(rows)
    write_json(folder / "table.json", record)
    markdown = f"{markdown_table(table.columns, table.itertuples(index=False))}\n\n{note}\n"
    latex = table.to_latex(index=False, escape=True).replace("±", r"$\pm$")
    for ending, text in {"csv": spreadsheet_safe(table).to_csv(index=False), "md": markdown, "tex": latex}.items():
        write_atomically(folder / f"table.{ending}", lambda file, text=text: file.write_text(text))
    print(table.to_string(index=False))
    print(note)
    return record


def ablate(
    files: Sequence[str | Path],
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
    results_dir: str | Path = "results/ablations",
    jobs: int = 1,
    skip_absent: bool = False,
) -> list[dict]:
    """Run the experiments of each file and write their table; what is finished is not run again.

    Args:
        files: YAML files of experiments; all are read before anything is run.
        dataset: database to use instead of the files' own.
        seeds: seeds to use instead of the files' own.
        results_dir: where runs and tables are written, in a folder per file.
        jobs: processes that take one run each; with GPUs each takes its own.
        skip_absent: go on without databases to test on that are not there.

    Returns:
        The record of each file, as in its `table.json`; nothing in other processes than the first one, nor for a file
        of which another process has not finished its run.

    Raises:
        UserError: a file is wrong, a run of other settings is in the place of one, or a job has failed.
    """
    if jobs < 1:
        raise UserError(f"jobs: expected at least 1, got {jobs}")
    given = (list(map(str, files)), dataset, seeds, str(results_dir), skip_absent)
    ablations = _read_all(*given)
    if jobs > 1:
        _run_jobs(jobs, given)
    records = []
    for ablation in ablations:
        folder = Path(results_dir) / ablation.name
        if not run_all(ablation):
            log.info("%s: other processes are at work: the last one writes the table", folder)
        elif is_first_process():
            records.append(write_tables(ablation, make_rows(ablation), folder))
    return records


def _read_all(
    files: Sequence[str], dataset: str | None, seeds: Sequence[int] | None, results_dir: str, skip_absent: bool
) -> list[Ablation]:
    ablations = [read_ablation(file, dataset, seeds, results_dir) for file in files]
    for configs in (configs for ablation in ablations for configs in ablation.configs.values()):
        configs[:] = [dataclasses.replace(c, skip_absent=c.skip_absent or skip_absent) for c in configs]
    return ablations


def _run_jobs(jobs: int, given: tuple) -> None:
    """Share the runs out among processes, which end when none is left to start.

    Raises:
        UserError: a job has failed; what it said stands above.
    """
    import torch

    gpus = list(range(torch.cuda.device_count()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name for name in visible.split(",") if name] or list(map(str, gpus))
    spawn = multiprocessing.get_context("spawn")
    running = [
        spawn.Process(target=_job, args=(number, names[number % len(names)] if gpus else None, given))
        for number in range(jobs)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if failed := sum(process.exitcode != 0 for process in running):
        raise UserError(f"{failed} of {jobs} jobs have failed: see above; started again, they go on")


def _job(number: int, gpu: str | None, given: tuple) -> None:
    """One of several processes: it says which it is, sees one GPU, and takes runs until none is left."""
    os.environ["IQA_JOB"] = f"job {number}"
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    start_logging()

    def take_runs() -> None:
        for ablation in _read_all(*given):
            run_all(ablation)

    exit_on_user_error(take_runs)


def make_parser() -> Parser:
    """Name the command's flags; what is not given is left to `ablate`."""
    parser = Parser(description="Run ablations that are written down as data.", argument_default=SUPPRESS)
    parser.add_argument(
        "files", nargs="+", metavar="FILE.yaml", help="a file, or the name of one in configs/: ablations/demo"
    )
    parser.add_argument("--dataset", choices=DATABASES, metavar="NAME", help="instead of the files' own")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the files' own")
    parser.add_argument("--results_dir", metavar="FOLDER", help="[results/ablations]")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes, with a run and a GPU each [1]")
    parser.add_argument("--skip_absent", action="store_true", help="go on without databases that are not there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run and tabulate what the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    ablate(**vars(arguments))


if __name__ == "__main__":
    exit_on_user_error(main)
