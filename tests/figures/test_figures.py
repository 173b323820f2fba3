"""Figures and tables: only from recorded results, every value traceable, published numbers never alone."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import ROOT, command, long
from matplotlib.figure import Figure
from written import Templates

from iqa.errors import UserError
from iqa.figures import Bar, draw_bars, latex_text, new_figure, scatter_by_label, scatter_by_mos, to_latex
from iqa.results import DEFAULT_FILE, measured_rows, read_published, read_recorded, sweeps

FIGURES = (
    "architecture comparison ablation_bars ablation_waterfall model_sizes cross_database cross_database_heat_map "
    "training_curves prediction_scatter loss_comparison alpha_sweep learning_rates attention_by_level complexity "
    "target_weights"
).split()
TABLES = "table_in_database table_ablation table_cross_database table_complexity table_attention".split()
TEMPLATES: Templates  # what the commands wrote


# What the commands recorded of a tiny run, with the numbers that a test is about in place of the run's. -----------


def results(srcc: float | None = 0.8, dataset: str = "koniq-10k", cross: dict | None = None, **settings) -> dict:
    """The results of a run: its test part and other databases it was tested on."""
    content = TEMPLATES.results
    metrics, predictions = content["metrics"]["test"], content["predictions"]["test"]
    for part, value in ({"test": srcc} | (cross or {})).items():
        interval = None if value is None else [value - 0.03, value + 0.02]
        content["metrics"][part] = metrics | dict.fromkeys(("srcc", "plcc", "krcc"), value) | {"srcc_ci95": interval}
        content["predictions"][part] = predictions
    network = {"dataset": dataset, "backbone": "tiny", "fusion": "scale", "lr": 2e-5, "epochs": 7}
    content["config"] |= network | settings
    return content


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_run(folder: Path, content: dict) -> Path:
    """A run's folder with these results and the history of the run that was made."""
    write(folder / "results.json", content)
    (folder / "history.jsonl").write_text((TEMPLATES.folder / "run" / "history.jsonl").read_text())
    return folder


def ablation(name: str, rows: dict[str, float | None], settings: dict[str, dict] | None = None) -> dict:
    """A table with these rows and SRCCs; the first row is the baseline, and every other one is better."""
    content = TEMPLATES.ablation
    baseline, other = content["rows"]
    made = []
    for i, (row, srcc) in enumerate(rows.items()):
        like = copy.deepcopy(other if i else baseline)
        value = {"mean": srcc, "std": 0.004, "n": 3}
        parts = {part: dict.fromkeys(("srcc", "plcc"), value) for part in ("test", "spaq")}
        like |= {"row": row, "seeds": 3, "parts": parts, "parameters": 29_000_000 + 20_000_000 * i}
        like["versus_baseline"] = {"verdict": "better", "by_seed": ["a"] * 3} if i else None
        like["config"] = (settings or {}).get(row, {})
        made.append(like)
    return content | {"name": name, "baseline": next(iter(rows)), "rows": made}


def components() -> dict:
    srccs = {"A1": 0.931, "C0": 0.905, "A2": 0.929, "E6_channel": 0.935, "E6_scale": 0.934}
    networks = {
        "C0": ("resnet50", "single"), "A2": ("base", "single"), "A1": ("base", "concat"),
        "E6_channel": ("base", "channel"), "E6_scale": ("base", "scale"),
    }  # fmt: skip
    configs = {row: {"dataset": "koniq-10k", "backbone": b, "fusion": f} for row, (b, f) in networks.items()}
    return ablation("components", srccs, configs)


def complexity(*variants: str) -> dict:
    content = TEMPLATES.complexity
    return content | {"variants": [content["variants"][0] | {"variant": variant} for variant in variants]}


def attention(fusion: str = "scale") -> dict:
    return TEMPLATES.attention | {"fusion": fusion}


def target_weights() -> dict:
    return TEMPLATES.target_weights


def network() -> dict:
    return TEMPLATES.network


def everything(folder: Path) -> list[Path]:
    """One result of every kind, enough for every figure and table."""
    run = write_run(folder / "run", results(cross={"spaq": 0.6, "kadid-10k": 0.4}))
    write(run / "ridge_baseline.json", TEMPLATES.ridge_baseline)
    write(run / "attention" / "attention_analysis.json", attention())
    write(folder / "splits" / "summary.json", TEMPLATES.splits)
    sizes = {"tiny": 0.92, "small": 0.93, "base": 0.935}
    configs = {size: {"dataset": "koniq-10k", "backbone": size, "fusion": "scale"} for size in sizes}
    tables = [
        components(),
        ablation("sizes", sizes, configs),
        ablation(
            "losses", {"l1": 0.92, "l2": 0.91, "plcc": 0.915}, {n: {"loss_type": n} for n in ("l1", "l2", "plcc")}
        ),
        ablation(
            "alpha",
            {"alpha_0": 0.91, "alpha_0.1": 0.92, "alpha_2": 0.9},
            {f"alpha_{alpha}": {"ranking_loss_alpha": alpha} for alpha in (0, 0.1, 2)},
        ),
        ablation(
            "learning_rates",
            {"lr_5e-7": 0.93, "lr_1e-6": 0.931, "lr_5e-6": 0.92},
            {f"lr_{lr}": {"lr": float(lr)} for lr in ("5e-7", "1e-6", "5e-6")},
        ),
    ]
    files = [write(folder / table["name"] / "table.json", table) for table in tables]
    files.append(write(folder / "costs" / "complexity.json", complexity("tiny:scale", "nano:concat")))
    files.append(write(folder / "weights" / "target_weights.json", target_weights()))
    files.append(write(folder / "network.json", network()))
    return [run, folder / "splits", *files]


@pytest.fixture(scope="module", autouse=True)
def _templates(written):
    global TEMPLATES
    TEMPLATES = written


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, dict]:
    """Every figure and table, and the manifest."""
    folder = tmp_path_factory.mktemp("drawn")
    return folder, draw(folder / "out", *everything(folder / "in"))


def draw(output: Path, *inputs: Path, more: tuple = (), rendered: bool = False) -> dict:
    """Draw into a folder; its manifest. Files are empty unless they are rendered, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        if not rendered:
            patch.setattr(Figure, "savefig", lambda self, file, **how: Path(file).touch())
        assert command("generate_paper_figures", *inputs, "--output", output, *more) == 0
    return json.loads((output / "figures.json").read_text())


# What holds. -----------------------------------------------------------------------------------------------------


def test_every_figure_and_table_is_made_from_results_of_every_kind(drawn):
    folder, manifest = drawn
    assert list(manifest["figures"]) == FIGURES and list(manifest["tables"]) == TABLES
    assert manifest["missing"] == {} and manifest["left_out"] == []
    written = {path.name for path in (folder / "out").iterdir()}
    ablations = {f"table_ablation_{name}" for name in ("components", "sizes", "losses", "alpha", "learning_rates")}
    expected = {f"{f}{e}" for f in FIGURES for e in (".pdf", ".png")} | {f"{t}.md" for t in TABLES}
    expected |= {f"{t}.tex" for t in {*TABLES, *ablations} - {"table_ablation"}}
    assert written == {"figures.json"} | expected
    listed = [file for made in (*manifest["figures"].values(), *manifest["tables"].values()) for file in made["files"]]
    assert set(listed) == expected and len(listed) == len(expected)


@pytest.mark.long
def test_every_figure_is_rendered(tmp_path):
    draw(tmp_path / "out", *everything(tmp_path / "in"), rendered=True)
    files = [tmp_path / "out" / f"{name}{ending}" for name in FIGURES for ending in (".pdf", ".png")]
    assert all(file.stat().st_size > 1000 for file in files)


def test_figures_and_tables_of_an_earlier_call_do_not_stay_beside_a_manifest_without_them(tmp_path):
    table = write(tmp_path / "table.json", components())
    draw(tmp_path / "out", table)
    own = tmp_path / "out" / "notes.md"
    own.write_text("mine")
    manifest = draw(tmp_path / "out", write(tmp_path / "network.json", network()))
    listed = {file for made in (*manifest["figures"].values(), *manifest["tables"].values()) for file in made["files"]}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"figures.json", "notes.md"} | listed
    assert command("generate_paper_figures", write(tmp_path / "x.json", [1]), "--output", tmp_path / "out") == 2
    assert all((tmp_path / "out" / file).is_file() for file in listed)


def test_ablations_share_one_verdict_and_one_baseline_column_and_latex_gets_a_table_each(drawn):
    folder, manifest = drawn
    lines = (folder / "out" / "table_ablation.md").read_text().splitlines()
    head, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert head.count("verdict") == head.count("baseline") == 1 and not any("versus" in name for name in head)
    cells = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
    found = {row["row"]: (row["verdict"], row["baseline"]) for row in cells}
    assert found["A1"] == ("-", "A1") and found["C0"] == ("better", "A1") and found["l2"] == ("better", "l1")
    latex = [cell.strip() for cell in parse_tabular((folder / "out" / "table_ablation_losses.tex").read_text())[0]]
    assert "ablation" not in latex and len(latex) < 15
    assert manifest["tables"]["table_ablation"]["values"]["losses: l2"]["verdict"] == "better"


def test_names_that_no_file_can_have_give_files_of_their_own(tmp_path):
    for i, name in enumerate(("a b", "a/b", "модель", "")):
        write(tmp_path / str(i) / "table.json", ablation(name, {"one": 0.5, "two": 0.6}))
    files = draw(tmp_path / "out", tmp_path)["tables"]["table_ablation"]["files"]
    assert len(set(files)) == 5 and all(re.fullmatch(r"[A-Za-z0-9_.-]+", file) for file in files)


def test_every_measured_value_in_the_manifest_is_in_the_file_and_field_it_names(drawn):
    _, manifest = drawn
    checked = 0

    def check(values: object) -> None:
        nonlocal checked
        if isinstance(values, dict):
            for source in values.get("recorded", []):
                found = json.loads(Path(source["file"]).read_text())
                for key in source["field"].split("."):
                    found = found[int(key)] if isinstance(found, list) else found[key]
                assert found == values["value"], source
                checked += 1
            for value in values.values():
                check(value)

    check(manifest["figures"])
    check(manifest["tables"])
    assert checked > 60


def test_a_scatter_holds_the_points_and_the_correlations_of_its_file(drawn):
    folder, manifest = drawn
    values = manifest["figures"]["prediction_scatter"]["values"]["run"]
    recorded = json.loads((folder / "in" / "run" / "results.json").read_text())
    assert values["score"] == [row["score"] for row in recorded["predictions"]["test"]]
    assert values["srcc"] == recorded["metrics"]["test"]["srcc"] and len(values["logistic"]) == 4


def test_every_figure_names_its_sources_and_they_exist(drawn):
    _, manifest = drawn
    for made in (*manifest["figures"].values(), *manifest["tables"].values()):
        assert made["sources"] and all(Path(file).is_file() for file in made["sources"])
    assert [Path(f).name for f in manifest["figures"]["training_curves"]["sources"]] == ["history.jsonl"]


def test_the_curves_show_loss_srcc_and_plcc_by_epoch(drawn):
    _, manifest = drawn
    (curves,) = manifest["figures"]["training_curves"]["values"].values()
    assert list(curves) == ["file", "epoch", "train_loss", "val_srcc", "val_plcc"]


def test_published_numbers_stand_beside_measured_ones_and_are_cited(drawn):
    _, manifest = drawn
    figures = manifest["figures"]
    assert "koniq_components.C0" in figures["ablation_bars"]["published"]
    assert figures["model_sizes"]["published"] == [f"koniq_sizes.{size}" for size in ("tiny", "small", "base")]
    assert figures["cross_database"]["published"] == ["cross_database.spaq", "cross_database.kadid-10k"]
    assert figures["complexity"]["published"] == ["complexity.tiny"]
    bar = figures["ablation_bars"]["values"]["ablation components"]["C0 (published)"]
    assert bar["value"] == 0.907 and "SMART-IQA paper" in bar["source"] and "best test epoch" in bar["protocol"]
    for name in ("training_curves", "prediction_scatter", "alpha_sweep", "learning_rates", "architecture"):
        assert figures[name]["published"] == []


def test_nothing_published_is_drawn_where_it_is_not_wanted(drawn, tmp_path):
    folder, _ = drawn
    manifest = draw(tmp_path / "out", folder / "in" / "components", more=("--published", "none"))
    assert {"ablation_bars", "ablation_waterfall", "cross_database"} <= set(manifest["figures"])
    assert all(made["published"] == [] for made in (*manifest["figures"].values(), *manifest["tables"].values()))


def test_published_numbers_of_another_database_are_not_drawn_beside(tmp_path):
    table = components()
    for row in table["rows"]:
        row["config"]["dataset"] = "demo"
    manifest = draw(tmp_path / "out", write(tmp_path / "table.json", table))
    assert manifest["figures"]["ablation_bars"]["published"] == []
    assert manifest["figures"]["ablation_waterfall"]["published"] == []


def test_published_stage_weights_stand_beside_scale_fusion_only(tmp_path):
    for fusion, expected in {"scale": ["attention_by_level.levels"], "channel": []}.items():
        file = write(tmp_path / fusion / "attention_analysis.json", attention(fusion))
        manifest = draw(tmp_path / f"out_{fusion}", file)
        assert manifest["figures"]["attention_by_level"]["published"] == expected


def test_what_is_missing_is_listed_with_a_command_that_exists(tmp_path, capsys):
    manifest = draw(tmp_path / "out", write(tmp_path / "network.json", network()))
    assert list(manifest["figures"]) == ["architecture"]
    assert [*manifest["missing"]] == [*FIGURES[1:], *TABLES]
    printed = capsys.readouterr().out
    for name, missing in manifest["missing"].items():
        assert f"missing  {name}: needs {missing['needs']}" in printed
        for file in re.findall(r"\S+\.yaml", missing["command"]):
            assert (ROOT / file).is_file(), file


def test_a_waterfall_steps_from_the_component_before(tmp_path):
    from iqa.figures import draw_waterfall

    write(tmp_path / "table.json", components())
    figure = draw_waterfall(read_recorded([str(tmp_path)]), read_published()).figure
    bars = [(round(b.get_y(), 4), round(b.get_height(), 4)) for b in figure.axes[0].patches]
    assert bars == [(0, 0.905), (0.905, 0.024), (0.929, 0.002), (0.931, 0.004), (0.931, 0.003)]
    published = [(round(b.get_y(), 4), round(b.get_height(), 4)) for b in figure.axes[1].patches]
    assert published == [(0, 0.907), (0.907, 0.0268), (0.9338, 0.0015), (0.9353, 0.0025)]
    assert all(b.get_hatch() for b in figure.axes[1].patches)
    assert not any(b.get_hatch() for b in figure.axes[0].patches)


def test_runs_of_several_seeds_are_one_point_of_a_sweep(tmp_path):
    for seed, srcc in enumerate((0.80, 0.84)):
        write_run(tmp_path / f"low_seed{seed}", results(srcc, seed=seed, lr=1e-5))
    write_run(tmp_path / "high", results(0.7, lr=1e-4))
    write_run(tmp_path / "other_loss", results(0.6, lr=1e-3, loss_type="l2"))  # differs in more than the rate
    (sweep,) = sweeps(measured_rows(read_recorded([str(tmp_path)])), "lr")
    assert set(sweep.rows) == {1e-5, 1e-4}
    point = sweep.rows[1e-5].scores["test"]["srcc"]
    assert point.value == pytest.approx(0.82) and point.n == 2 and len(point.sources) == 2
    assert point.high - point.value == pytest.approx(np.std([0.80, 0.84], ddof=1))


@pytest.mark.parametrize("rendered", [False, long(True)])
def test_an_undefined_srcc_is_absent_and_said(tmp_path, rendered):
    write_run(tmp_path / "flat", results(None))
    write_run(tmp_path / "good", results(0.8))
    text = (tmp_path / "flat" / "results.json").read_text().replace('"plcc": null', '"plcc": NaN')
    (tmp_path / "flat" / "results.json").write_text(text)
    manifest = draw(tmp_path / "out", tmp_path, rendered=rendered)
    bars = manifest["figures"]["comparison"]["values"]["test part of koniq-10k"]
    assert bars["flat"]["value"] is None and bars["good"]["value"] == 0.8
    assert "undefined" in (tmp_path / "out" / "table_in_database.md").read_text()


def test_a_bar_of_nan_is_not_drawn_but_named():
    _, (axes,) = new_figure()
    draw_bars(
        axes, [Bar("flat", math.nan), Bar("good", 0.8, 0.7, 0.9, "0.8"), Bar("theirs", 0.9, published=True)], "SRCC"
    )
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.9]
    assert [text.get_text() for text in axes.texts] == ["undefined", "0.8", ""]
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, True]


@pytest.mark.parametrize("rows", [1, 20])
def test_bars_labels_and_texts_stay_inside_and_apart(rows, tmp_path):
    from iqa.figures import draw_comparison

    for i in range(rows + 1):
        write_run(
            tmp_path / f"a_rather_long_name_of_a_run_with_its_database_and_seed_{i:02d}", results(0.999 - 0.1 * (i % 9))
        )
    figure = draw_comparison(read_recorded([str(tmp_path)]), read_published()).figure
    figure.canvas.draw()
    renderer, page = figure.canvas.get_renderer(), figure.bbox
    axes = figure.axes[0]
    for artists in (axes.get_yticklabels(), axes.texts):
        boxes = [artist.get_window_extent(renderer) for artist in artists]
        assert all(box.x0 >= page.x0 and box.x1 <= page.x1 for box in boxes)
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:], strict=False))
    assert len({label.get_text() for label in axes.get_yticklabels()}) == len(axes.get_yticklabels())


@pytest.mark.parametrize("kind", ["network.json", long("alpha"), long("weights")])
def test_the_same_results_give_the_same_bytes(drawn, tmp_path, kind):
    folder, _ = drawn
    for output in ("first", "second"):
        draw(tmp_path / output, folder / "in" / kind, rendered=True)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_a_folder_of_folders_stands_for_them_and_the_same_file_counts_once(drawn, tmp_path):
    folder, _ = drawn
    manifest = draw(tmp_path / "out", folder / "in", folder / "in" / "run", folder / "in" / "run" / "results.json")
    assert "run" in manifest["figures"]["prediction_scatter"]["values"]


@pytest.mark.parametrize("rendered", [False, long(True)])
def test_committed_results_can_be_drawn(tmp_path, rendered):
    committed = [ROOT / "benchmarks" / "results" / name for name in ("demo", "agiqa3k_lite0")]
    manifest = draw(tmp_path / "out", *committed, rendered=rendered)
    metrics = json.loads((ROOT / "benchmarks/results/demo/results.json").read_text())["metrics"]["test"]
    assert manifest["figures"]["prediction_scatter"]["values"]["demo"]["srcc"] == metrics["srcc"]


@pytest.mark.long
def test_drawing_imports_no_torch(tmp_path):
    file = write(tmp_path / "network.json", network())
    code = f"""
import sys, runpy
sys.argv = ["generate_paper_figures.py", {str(file)!r}, "--output", {str(tmp_path / "out")!r}]
runpy.run_path("generate_paper_figures.py", run_name="__main__")
sys.exit(3 if "torch" in sys.modules else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_an_evaluation_of_two_checkpoints_is_a_row_for_each_of_them(tmp_path):
    content = results(cross={"koniq-10k: a": 0.8, "koniq-10k: b": 0.7, "spaq: a": 0.5, "spaq: b": 0.4})
    for field in ("metrics", "predictions"):
        del content[field]["test"]
    content["parts"] = {
        f"{database}: {name}": {"database": database, "checkpoint": name}
        for database in ("koniq-10k", "spaq")
        for name in "ab"
    }
    content["checkpoints"] = {name: {"trained_on": "koniq-10k", "selected_on": "val"} for name in "ab"}
    file = write(tmp_path / "run" / "evaluation_two.json", content)
    rows = measured_rows(read_recorded([str(file)]))
    assert [(row.name, row.database, row.others) for row in rows] == [
        ("run (evaluation_two): a", "koniq-10k", ["spaq"]),
        ("run (evaluation_two): b", "koniq-10k", ["spaq"]),
    ]
    assert [row.scores["test"]["srcc"].value for row in rows] == [0.8, 0.7]


def test_weights_of_two_models_are_drawn_beside_each_other(tmp_path):
    one = target_weights()
    file = write(tmp_path / "target_weights.json", {"dataset": "demo", "models": {"a": one, "b": one}})
    values = draw(tmp_path / "out", file)["figures"]["target_weights"]["values"]
    assert list(values) == ["a on demo", "b on demo"]
    assert (
        values["b on demo"]["field"] == "models.b.images" and values["a on demo"]["pc1"][0] == one["images"][0]["pc1"]
    )


# LaTeX. ----------------------------------------------------------------------------------------------------------


def parse_tabular(text: str) -> list[list[str]]:
    """The cells of a booktabs tabular; fails on whatever LaTeX would stop at or misread."""
    lines = [line for line in text.splitlines() if line and not line.startswith("%")]
    begin = re.fullmatch(r"\\begin\{tabular\}\{((?:[lr]|p\{0\.2\\linewidth\})+)\}", lines[0])
    columns = len(re.findall(r"[lr](?![^{]*\})|p\{", begin[1]))
    assert lines[1] == r"\toprule" and lines[3] == r"\midrule" and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [lines[2], *lines[4:-2]]
    cells = []
    for row in rows:
        assert row.endswith(r" \\") and row.isascii()
        bare = re.sub(r"\\[&%$#_{}]|\$\\pm\$|\\text[a-z]+\{\}|\\dots\{\}", "", row[:-3])
        assert not re.search(r"[\\%$#_~^]", bare), bare
        assert bare.count("{") == bare.count("}") and not bare.startswith("[")
        cells.append(re.split(r"(?<!\\)&", row[:-3]))
        assert len(cells[-1]) == columns, row
    return cells


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_a_tabular_that_latex_reads(drawn, name):
    folder, _ = drawn
    if name == "table_ablation":
        tables = [parse_tabular(file.read_text()) for file in (folder / "out").glob("table_ablation_*.tex")]
        cells = ["head", *(row for table in tables for row in table[1:])]
    else:
        cells = parse_tabular((folder / "out" / f"{name}.tex").read_text())
    markdown = (folder / "out" / f"{name}.md").read_text().splitlines()
    assert len([line for line in markdown if line.startswith("|")]) == len(cells) + 1


def test_names_that_latex_would_read_as_commands_are_printed_as_they_are(tmp_path):
    names = [r"a_b & 50 % of $x$ {c} #1 ~^\end", "[option] <tag> | a ± b", "модель"]
    table = ablation("odd", dict.fromkeys(names, 0.5))
    made = draw(tmp_path / "out", write(tmp_path / "table.json", table))
    cells = parse_tabular((tmp_path / "out" / "table_ablation_odd.tex").read_text())
    assert len(cells) == 4 and len(made["tables"]["table_ablation"]["values"]) == 3
    assert latex_text("a_b & 5 % 模") == r"a\_b \& 5 \% U+6A21"
    markdown = (tmp_path / "out" / "table_ablation.md").read_text()
    assert r"[option] <tag> \| a ± b" in markdown and "модель" in markdown


def test_published_rows_are_marked_in_tables(drawn):
    folder, _ = drawn
    for name in TABLES:
        assert "published" in (folder / "out" / f"{name}.md").read_text(), name


# Published numbers. ----------------------------------------------------------------------------------------------


def test_the_committed_published_numbers_read_and_name_their_sources():
    published = read_published()
    assert published.get("koniq_components").rows["E6"]["srcc"] == 0.9378
    weights = [row["mean"] for row in published.get("attention_by_level").rows.values()]
    assert [sum(row) for row in weights] == pytest.approx([1] * 5, abs=2e-4)
    for entry in published.entries.values():
        assert entry.source and entry.protocol


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c["koniq_sizes"]["rows"]["tiny"].pop("srcc"), "koniq_sizes.rows.tiny.srcc"),
        (lambda c: c["koniq_sizes"]["rows"]["tiny"].update(srcc="high"), "koniq_sizes.rows.tiny.srcc"),
        (lambda c: c["cross_database"].pop("source"), "cross_database.source"),
        (lambda c: c["complexity"].update(rows=[1]), "complexity.rows"),
        (lambda c: c["attention_by_level"]["levels"]["Low"].pop(), "attention_by_level.levels.Low"),
        (lambda c: c.update(speed={}), "unknown entry 'speed'"),
    ],
)
def test_published_numbers_with_a_mistake_are_one_line(change, said, tmp_path, capsys):
    content = yaml.safe_load(DEFAULT_FILE.read_text())
    change(content)
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(content))
    network_file = write(tmp_path / "network.json", network())
    flags = ("--published", tmp_path / "published.yaml", "--output", tmp_path / "out")
    assert command("generate_paper_figures", network_file, *flags) == 2
    said_line = capsys.readouterr().err
    assert said in said_line and str(tmp_path / "published.yaml") in said_line and said_line.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Bad input. ------------------------------------------------------------------------------------------------------


def without(content: dict, *path) -> dict:
    content = json.loads(json.dumps(content))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return content


def changed(content: dict, value: object, *path) -> dict:
    content = json.loads(json.dumps(content))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    "content, said",
    [
        (lambda: changed(results(), "high", "predictions", "test", 3, "score"), "predictions.test[3].score"),
        (lambda: changed(results(), None, "predictions", "test", 3, "score"), "predictions.test[3].score"),
        (lambda: changed(results(), math.nan, "predictions", "test", 3, "mos"), "predictions.test[3].mos"),
        (lambda: changed(results(), [1], "training"), "training"),
        (lambda: changed(results(), "much", "config", "lr"), "config.lr"),
        (lambda: changed(results(), None, "metrics", "test", "n"), "metrics.test.n"),
        (lambda: changed(components(), 3, "rows", 0, "config"), "rows.0.config"),
        (
            lambda: changed(complexity("a:b"), {"one": {}}, "variants", 0, "latency_ms_per_image"),
            "latency_ms_per_image",
        ),
        (lambda: changed(attention(), 3, "levels", "Low"), "levels.Low"),
        (lambda: changed(network(), 3, "networks", 0, "parts", "reduce", "shapes", 0), "parts.reduce.shapes.0"),
        (lambda: without(results(), "metrics", "test", "srcc"), "metrics.test.srcc"),
        (lambda: without(results(), "predictions"), "predictions"),
        (lambda: without(components(), "rows", 0, "parts"), "rows.0.parts"),
        (lambda: without(components(), "rows", 1, "macs"), "rows.1.macs"),
        (lambda: without(complexity("a:b"), "variants", 0, "parameters", "total"), "variants.0.parameters.total"),
        (lambda: without(attention(), "levels", "Low", "mean"), "levels.Low.mean"),
        (lambda: without(target_weights(), "images", 3, "pc1"), "images.3.pc1"),
        (lambda: without(network(), "networks", 0, "parts", "reduce"), "networks.0.parts.reduce"),
        (lambda: components() | {"rows": []}, "rows"),
        (
            lambda: attention() | {"levels": {"Low": {"n": 1, "mean": ["high", 0, 0, 0], "std": [0] * 4}}},
            "levels.Low.mean.0",
        ),
        (lambda: {"nothing": 1}, "none of the kinds"),
        (lambda: [1, 2], "none of the kinds"),
    ],
)
def test_a_file_with_a_mistake_is_one_line_that_names_file_and_field(content, said, tmp_path, capsys):
    file = write(tmp_path / "recorded.json", content())
    assert command("generate_paper_figures", file, "--output", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert said in line and str(file) in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_whose_training_is_null_is_drawn(tmp_path):
    run = write_run(tmp_path / "run", results() | {"training": None})
    assert "prediction_scatter" in draw(tmp_path / "out", run)["figures"]


def test_components_are_coloured_by_mos_over_its_whole_scale_in_every_figure():
    figure, (axes,) = new_figure()
    assert scatter_by_mos(axes, [0, 1], [0, 1], [40, 60]).get_clim() == (0, 100)


@pytest.mark.parametrize(("labels", "most", "entries"), [(3, 6, 3), (6, 6, 6), (7, 6, 6), (30, 20, 20)])
def test_a_legend_has_no_more_entries_than_it_may_and_the_rest_are_one(labels, most, entries):
    figure, (axes,) = new_figure()
    names = [f"label {i:02d}" for i in range(labels)] + ["label 05"] * (labels > 5)
    scatter_by_label(axes, range(len(names)), range(len(names)), names, most)
    shown = axes.get_legend_handles_labels()[1]
    assert len(shown) == entries and (f"{labels - most + 1} others" in shown) == (labels > most)
    assert labels <= 5 or "label 05" in shown  # the most frequent one
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(names)


def test_a_history_line_without_a_field_is_named_by_its_number(tmp_path, capsys):
    run = write_run(tmp_path / "run", results())
    (run / "history.jsonl").write_text('{"epoch": 1, "train_loss": 3, "val_srcc": null}\n{"epoch": 2, "val_srcc": 1}\n')
    assert command("generate_paper_figures", run, "--output", tmp_path / "out") == 2
    assert "history.jsonl, line 2: no field 'train_loss'" in capsys.readouterr().err
    (run / "history.jsonl").write_text("3\n")
    assert command("generate_paper_figures", run, "--output", tmp_path / "out") == 2
    assert "history.jsonl, line 1: expected the fields of an epoch, got 3" in capsys.readouterr().err


def test_inputs_that_are_none_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("not JSON")
    for path, said in {"empty": "no recorded results", "text.json": "is not JSON", "absent": "absent"}.items():
        assert command("generate_paper_figures", tmp_path / path, "--output", tmp_path / "out") == 2
        line = capsys.readouterr().err
        assert said in line and str(tmp_path / path) in line and line.count("\n") == 1


def test_two_runs_of_the_same_name_are_refused(tmp_path):
    for place in ("here", "there"):
        write_run(tmp_path / place / "run", results())
    with pytest.raises(UserError, match="two of the results are named 'run'"):
        read_recorded([str(tmp_path / "here"), str(tmp_path / "there")])


def test_json_files_that_are_no_results_are_said_to_be_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "run", results())
    write(run / "notes.json", {"remember": "milk"})
    write(run / "split.json", {"fingerprint": "0", "train": [], "test": []})
    manifest = draw(tmp_path / "out", run)
    assert manifest["left_out"] == [str(run / "notes.json")]
    assert "left out" in capsys.readouterr().out


def test_an_analysis_without_stage_weights_gives_no_figure_of_them(tmp_path):
    analysis = attention("concat")
    for level in analysis["levels"].values():
        del level["mean"], level["std"]
    manifest = draw(tmp_path / "out", write(tmp_path / "attention_analysis.json", analysis))
    assert {"attention_by_level", "table_attention"} <= set(manifest["missing"])


def test_a_table_is_written_even_if_no_row_has_an_interval():
    text = to_latex(pd.DataFrame([{"model": "a", "SRCC": "0.5"}]), "note")
    assert parse_tabular(text) == [["model ", " SRCC"], ["a ", " 0.5"]]


def test_the_recorded_shapes_of_the_networks_are_what_the_models_say():
    from smart_iqa.commands.describe_network import NETWORKS, network_record

    recorded = json.loads((ROOT / "docs" / "network.json").read_text())["networks"]
    made = json.loads(json.dumps([network_record(*network) for network in NETWORKS]))
    assert recorded == made, "run: smart-iqa describe-network"
    assert sum(part["parameters"] for part in recorded[0]["parts"].values()) == 27_375_369  # HyperIQA, as published
