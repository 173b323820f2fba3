"""One page about one run: what it was, how it went, where it is right and where it is wrong.

    smart-iqa report results/demo --output report.html

Reads a finished run's folder (`results.json`, and where they are there `history.jsonl`, `ridge_baseline.json`,
`evaluation_*.json` and `attention/attention_analysis.json`) and writes one HTML file that opens from disk and needs no
network. Its numbers are those of the results files; only the errors of single images, after the logistic, are
computed here. A page that this script wrote is written over, since it can always be made again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from folders import read_database
from iqa.choices import describe_crops
from iqa.config import FIELDS
from iqa.data import open_rgb
from iqa.errors import Parser, UserError
from iqa.results import database_of, predictions_table, read_epochs, read_json, read_results
from iqa.system import write_atomically

GENERATOR = "smart-iqa report.py"  # written into every page, so that nothing else is written over


@dataclass(frozen=True)
class Part:
    """Predictions on one set of images: the test part, or another database.

    Attributes:
        name: as in the results file; with the file's name where that is not `results.json`.
        database: the images belong to.
        metrics: as recorded.
        table: as recorded, a row an image.
        crops: how a test image was cropped.
        notes: what the results file says about the database.
    """

    name: str
    database: str
    metrics: dict
    table: pd.DataFrame
    crops: str
    notes: list[str]


def results_file(run: Path) -> Path:
    """Find the results in a run's folder; a file stands for itself.

    Raises:
        UserError: the folder holds several splits, or a run that is not finished.
    """
    if not run.is_dir():
        return run
    if not (run / "results.json").is_file():
        splits = sorted(folder for folder in run.glob("split_*") if (folder / "results.json").is_file())
        if splits:
            raise UserError(f"{run} holds a run on {len(splits)} splits: name one of them, for example {splits[0]}")
        if (run / "config.yaml").is_file():
            raise UserError(f"{run} is not finished: it has no results.json; go on with train_swin.py --resume {run}")
    return run / "results.json"


def read_parts(file: Path, results: dict) -> list[Part]:
    """Read the parts of a run's results, then those of the evaluations beside it.

    Raises:
        UserError: a field is missing or of the wrong kind; it is named.
    """
    parts = _parts_of(file, results, "")
    for evaluation in sorted(file.parent.glob("evaluation_*.json")):
        parts += _parts_of(evaluation, read_results(evaluation), f" ({evaluation.name})")
    if not parts:
        raise UserError(f"{file}: no part in 'metrics': nothing to report")
    return parts


def _parts_of(file: Path, results: dict, suffix: str) -> list[Part]:
    config = results["config"]
    if "dataset" not in config:
        raise UserError(f"{file}: no field 'config.dataset'")
    parts = []
    for name, metrics in results["metrics"].items():
        table = predictions_table(results, name)
        if table.empty or metrics["n"] != len(table):
            raise UserError(
                f"{file}: 'metrics.{name}.n' is {metrics['n']}, but 'predictions.{name}' holds {len(table)} rows"
            )
        database = database_of(results, name)
        described = results.get("databases", {}).get(database, {})
        crops = describe_crops(config["test_mode"], config["test_patch_num"]) if "test_mode" in config else "–"
        parts.append(Part(name + suffix, database, metrics, table, crops, _database_notes(described)))
    return parts


def _database_notes(described: dict) -> list[str]:
    notes, left_out = (list(described.get(key) or []) for key in ("notes", "left_out"))
    return notes + [f"{len(left_out)} images of the database were left out as unusable"] * bool(left_out)


def find_images(database: str, config: dict, data_root: str | None) -> tuple[dict[str, str], str | None]:
    """Find where the images of a database lie.

    Args:
        database: its name.
        config: the run's settings, which say how its own database was read.
        data_root: where to look instead.

    Returns:
        Path by image name, and the reason where there are no paths.
    """
    how = {}
    if database == config["dataset"]:
        keys = ("image_column", "mos_column", "mos_range", "lower_is_better", "content_column")
        how = {key: config[key] for key in keys if config.get(key)}
        if data_root is None or database in ("csv", "json"):
            how["data_path"] = config.get("data_path")
    root = data_root or [*filter(None, [config.get("data_root")]), *config.get("data_paths", [])]
    try:
        # The labels were judged when the run was made; here only the paths are read.
        found = read_database(database, data_root=root, skip_bad_images=True, check_images=False, **how)
    except UserError as error:
        return {}, str(error)
    return dict(zip(found.table["image"], found.table["path"], strict=True)), None


def _cards(rows: pd.DataFrame, paths: dict[str, str]) -> list[dict]:
    """Name, numbers and thumbnail of each row; without the thumbnail where its file is missing or does not open."""
    return [{**row, "thumbnail": _thumbnail_of(paths.get(row["image"]))} for row in rows.to_dict("records")]


def _thumbnail_of(path: str | None) -> str | None:
    from iqa.figures import thumbnail

    if path is None:
        return None
    try:
        return thumbnail(open_rgb(path))
    except UserError:
        return None


def describe_part(part: Part, config: dict, data_root: str | None) -> dict:
    """Gather what the page shows of one part."""
    from iqa.figures import best_and_worst, draw_page_scatter, fit_errors, table_data

    fitted = fit_errors(part.table)
    best, worst = best_and_worst(fitted.table)
    paths, reason = find_images(part.database, config, data_root)
    best_cards, worst_cards = _cards(best, paths), _cards(worst, paths)
    missing = sum(card["thumbnail"] is None for card in best_cards + worst_cards)
    if reason is None and missing:
        reason = f"{missing} of these images are not in {part.database} as it is now, or do not open"
    return {
        "name": part.name,
        "database": part.database,
        "metrics": part.metrics,
        "crops": part.crops,
        "notes": [*(part.metrics.get("notes") or []), *part.notes],
        "scatter": draw_page_scatter(part.table, _mos_label(part.database)),
        "no_logistic": fitted.reason,
        "best": best_cards,
        "worst": worst_cards,
        "no_pictures": reason,
        "predictions": table_data(part.name, fitted.table),
    }


def _mos_label(database: str) -> str:
    return "pseudo-mos" if database == "demo" else "mos"


def settings_rows(config: dict) -> tuple[list[dict], list[dict]]:
    """Part the settings that differ from the defaults from those that do not.

    A setting of an earlier version, which has no default today, is among those that differ.
    """
    rows = []
    for key, value in config.items():
        known = key in FIELDS
        default = _default(key) if known else None
        rows.append({"key": key, "value": value, "default": default, "known": known})
    changed = [row for row in rows if not row["known"] or row["value"] != row["default"]]
    return changed, [row for row in rows if row not in changed]


def _default(key: str) -> object:
    factory = FIELDS[key].default_factory
    return factory() if callable(factory) else FIELDS[key].default


def read_curves(file: Path, results: dict) -> dict | None:
    """Read the epochs of a run and draw their curves; None where no history lies beside the results.

    Raises:
        UserError: a line lacks a field, or a field is not a number.
    """
    from iqa.figures import draw_curve

    history = read_epochs(file.parent / "history.jsonl")
    if not history:
        return None
    epochs = [line["epoch"] for line in history]
    chosen = results.get("training", {}).get("best_epoch")
    part = results["protocol"].get("selected_on", "val")
    labels = {"train_loss": "training loss", "val_srcc": f"{part} SRCC", "val_plcc": f"{part} PLCC"}
    drawn = [draw_curve(epochs, [line.get(key) for line in history], label, chosen) for key, label in labels.items()]
    return {"lines": history, "chosen": chosen, "drawn": drawn}


def read_attention(run: Path) -> dict | None:
    """Read the stage weights by quality level that `analyze_attention.py` left; None where it was not run.

    Raises:
        UserError: the file is not such an analysis.
    """
    file = run / "attention" / "attention_analysis.json"
    if not file.is_file():
        return None
    try:
        analysis = read_json(file)
        levels = {
            level: {"n": row["n"], "mean": row["mean"], "std": row["std"]}
            for level, row in analysis["levels"].items()
            if row.get("mean")
        }
        trends = list((analysis.get("trends") or {}).values())
        return {"levels": levels, "trends": trends, "dataset": analysis["dataset"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no attention analysis ({error!r}): make it again or remove it") from error


def warnings_of(results: dict, parts: list[Part]) -> list[str]:
    """List what a reader has to know before the numbers, each a sentence."""
    protocol, provenance = results["protocol"], results["provenance"]
    warnings = []
    if protocol.get("selected_on") == "test":
        warnings.append(
            "The checkpoint was chosen on the test part: its numbers are optimistic and cannot be compared with "
            "those of runs chosen on validation."
        )
    if any(part.database == "demo" for part in parts):
        warnings.append("The labels of demo are a pseudo-mos, computed by a full-reference measure, not human opinion.")
    if provenance.get("git_dirty"):
        warnings.append("The code had changes that were not committed: the commit alone does not reproduce this run.")
    return warnings + list(protocol.get("notes", []))


def baseline_metrics(file: Path) -> dict | None:
    """Read the metrics by part of the ridge baseline beside the run; None where it was not made."""
    baseline = file.parent / "ridge_baseline.json"
    return read_results(baseline)["metrics"] if baseline.is_file() else None


def gather(run: str | Path, data_root: str | None = None) -> dict:
    """Gather everything the page shows of a run.

    Args:
        run: folder of a finished run, or its `results.json`.
        data_root: holds a folder per database, for the images; default as the run.

    Raises:
        UserError: the run is not finished, or a field is missing.
    """
    file = results_file(Path(run))
    results = read_results(file)
    config, folder = results["config"], file.resolve().parent
    parts = read_parts(file, results)
    changed, kept = settings_rows(config)
    curves, attention = read_curves(file, results), read_attention(file.parent)
    described = [describe_part(part, config, data_root) for part in parts]
    return {
        "generator": GENERATOR,
        "name": folder.name,
        "config": config,
        "protocol": results["protocol"],
        "provenance": results["provenance"],
        "training": results.get("training", {}),
        "timings": results["timings"],
        "warnings": warnings_of(results, parts),
        "parts": described,
        "baseline": baseline_metrics(file),
        "changed": changed,
        "kept": kept,
        "curves": curves,
        "attention": attention,
        "attention_command": "python analyze_attention.py "
        + shlex.join(["--checkpoint", str(file.parent), "--dataset", config["dataset"]]),
        "predictions": [part.pop("predictions") for part in described],
    }


def check_output(output: Path) -> None:
    """Refuse to write where there is no folder, or over anything but a page of this script.

    Raises:
        UserError: which of these.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output}: expected a name that ends in .html")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no folder {output.parent}")
    if output.exists() and GENERATOR not in output.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise UserError(f"{output} exists and is no page of smart-iqa report: name another file with --output")


def write_report(run: str | Path, output: str | Path | None = None, data_root: str | None = None) -> Path:
    """Write the page of a run.

    Args:
        run: folder of a finished run, or its `results.json`.
        output: file to write; default: `report.html` in the run's folder.
        data_root: holds a folder per database, for the images; default as the run.

    Returns:
        Where the page is.

    Raises:
        UserError: no finished run, a field is missing, or the output is not a page of this script.
    """
    from iqa.figures import render

    output = Path(output or results_file(Path(run)).with_name("report.html"))
    html = render(gather(run, data_root))
    check_output(output)
    write_atomically(output, lambda file: file.write_text(html, encoding="utf-8"))
    print(f"written to {output} ({len(html.encode()) / 1e6:.1f} MB)")
    return output


def make_parser() -> Parser:
    """Name the command's flags."""
    parser = Parser(description="Write one self-contained HTML page about a finished run.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, for example results/demo")
    parser.add_argument("--output", metavar="FILE.html", help="default: RUN/report.html")
    parser.add_argument("--data_root", help="holds a folder per database, for the images (default: as the run)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of the run that the command line names."""
    arguments = make_parser().parse_args(argv)
    write_report(arguments.run, arguments.output, arguments.data_root)
