"""The page of a run: what it says, that it is safe and self-contained, and that it works in a browser."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, TORCH_FAMILY, command, long
from hypothesis import given, strategies as st
from PIL import Image
from trees import table as write_table
from written import Templates

from iqa.config import Config
from iqa.figures import best_and_worst, fit_errors, signed, thumbnail
from iqa.metrics import summarize
from smart_iqa.commands.report import check_output, gather, settings_rows, write_report

TEMPLATES: Templates  # what the commands wrote
# In a name, a content and a note: each would run if the page did not escape it. The name is a legal file name.
SCRIPT_NAME = "a<script>window.ran=1<"
EVIL_NAME = f"{SCRIPT_NAME}/script>_1.png"
HANDLER_NAME = "<img src=x onerror=window.ran=4>.jpg"
EVIL_CONTENT = """</script><script>window.ran=2</script><img src=x onerror="window.ran=3">$x"""


def rows_of(n: int, seed: int = 0) -> list[dict]:
    """Made-up predictions in the order of their names: related, not equal, on four contents."""
    rng = np.random.default_rng(seed)
    mos = np.round(rng.uniform(0, 100, n), 4)
    score = np.round(0.6 * mos + 20 + rng.normal(0, 8, n), 4)
    return [
        {"image": f"img_{i:05d}.png", "mos": mos[i], "content": f"scene {i % 4}", "score": score[i]} for i in range(n)
    ]


def write_run(folder: Path, parts: dict[str, list[dict]], **changes: object) -> Path:
    """A finished run's folder with these predictions; `changes` replace whole fields of its results."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(Config(dataset="csv", data_path=str(folder / "images" / "table.csv"), lr=0.125))
    metrics = {name: metrics_of(rows) for name, rows in parts.items()}
    results = TEMPLATES.results | {"config": config, "metrics": metrics, "predictions": parts, "databases": {}}
    results["provenance"] = {"command": "train_swin.py", "git_commit": "0a1b2c3", "git_dirty": False, "seed": 7}
    results["training"] |= {"best_epoch": 2, "epochs_done": 2}
    (folder / "results.json").write_text(json.dumps(results | changes))
    return folder


def metrics_of(rows: list[dict]) -> dict:
    scores, mos = ([row[key] for row in rows] for key in ("score", "mos"))
    return summarize(scores, mos, contents=[row["content"] for row in rows], resamples=20)


def write_images(run: Path, rows: list[dict], size: tuple[int, int] = (32, 24)) -> None:
    labels = [{key: row[key] for key in ("image", "mos", "content")} for row in rows]
    write_table(run / "images" / "table.csv", labels, size)


def page_of(run: Path, *arguments: object) -> str:
    """The text of a run's page."""
    assert command("report", run, *arguments) == 0
    return (run / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and the text outside scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.inside = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        self.text += "" if tag in ("wbr", "span") else " "

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def words(html: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(Elements(html).text.split())


def embedded_predictions(html: str) -> list[dict]:
    """What the page's table is made of: columns and rows of each part."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)[1])


# --------------------------------------------------------------------------------------------------
# Errors, and which images are best and worst


def test_an_error_is_what_the_logistic_leaves():
    score = np.linspace(-4, 4, 40)  # on a scale of its own, as a PLCC loss leaves it
    mos = 100 / (1 + np.exp(-score))
    fitted = fit_errors(pd.DataFrame({"image": "x", "mos": mos, "score": score}))
    assert fitted.reason is None
    assert fitted.table["abs_error"].max() < 1e-3 < abs(score - mos).min()


@pytest.mark.parametrize("score", [[1.0, 2.0, 3.0], [50.0] * 9], ids=("too few", "constant"))
def test_without_a_logistic_an_error_is_score_minus_mos_and_the_reason_is_kept(score):
    mos = np.arange(len(score), dtype=float)
    fitted = fit_errors(pd.DataFrame({"mos": mos, "score": score}))
    assert fitted.reason
    assert list(fitted.table["error"]) == list(np.array(score) - mos)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_best_and_worst_share_no_image_and_nothing_between_them_is_better_or_worse(errors):
    table = pd.DataFrame({"image": range(len(errors)), "abs_error": errors})
    best, worst = best_and_worst(table)
    assert len(best) + len(worst) == min(24, len(errors)) and len(best) - len(worst) in (0, 1)
    rest = {errors[i] for i in set(table["image"]) - set(best["image"]) - set(worst["image"])}
    assert not set(best["image"]) & set(worst["image"])
    assert list(best["abs_error"]) == sorted(best["abs_error"])
    assert list(worst["abs_error"]) == sorted(worst["abs_error"], reverse=True)
    assert all(best["abs_error"].max() <= error <= worst["abs_error"].min() for error in rest)


def test_a_thumbnail_keeps_the_shape_and_is_at_most_160_pixels_wide():
    address = thumbnail(Image.new("RGB", (800, 400), "teal"))
    kind, content = address.split(",")
    small = Image.open(BytesIO(base64.b64decode(content)))
    assert kind == "data:image/jpeg;base64" and small.size == (160, 80)
    assert max(abs(a - b) for a, b in zip(small.getpixel((80, 40)), (0, 128, 128), strict=True)) < 6


def test_a_sign_stands_before_every_error_but_zero():
    assert [signed(value) for value in (1.234, -1.235, -0.001, 0.0)] == ["+1.23", "-1.24", "0.00", "0.00"]


def test_settings_that_differ_come_apart_from_the_defaults():
    config = dataclasses.asdict(Config(lr=0.5, cross_datasets=["spaq"])) | {"an_old_setting": 3}
    changed, kept = settings_rows(config)
    assert [row["key"] for row in changed] == ["lr", "cross_datasets", "an_old_setting"]
    assert len(changed) + len(kept) == len(config)


# --------------------------------------------------------------------------------------------------
# What the page says


@pytest.fixture(scope="module", autouse=True)
def _templates(written):
    global TEMPLATES
    TEMPLATES = written


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 40 images in two parts, with its images, history, baseline and attention; one name is a script."""
    rows = rows_of(40)
    rows[3] |= {"image": EVIL_NAME, "content": EVIL_CONTENT, "score": 300.0}
    other = [row | {"image": f"other_{i}.png"} for i, row in enumerate(rows_of(9, seed=1))]
    folder = write_run(tmp_path_factory.mktemp("runs") / "a <b>run", {"test": rows, "spaq": other})
    write_images(folder, rows)
    epochs = [{"epoch": i, "train_loss": 9.0 / i, "val_srcc": 0.5 + i / 10} for i in (1, 2)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    results = json.loads((folder / "results.json").read_text())
    (folder / "ridge_baseline.json").write_text(json.dumps(results))
    (folder / "evaluation_kadid-10k.json").write_text(
        json.dumps(results | {"metrics": {"kadid-10k": metrics_of(other)}, "predictions": {"kadid-10k": other}})
    )
    analysis = TEMPLATES.attention
    analysis["levels"]["Low"] |= {"n": 3, "mean": [0.1, 0.2, 0.3, 0.4], "std": [0.01] * 4}
    analysis["levels"]["High"] |= {"n": 0, "mean": [None] * 4, "std": [None] * 4}
    for trend in analysis["trends"].values():
        trend |= {"srcc": 0.25, "p": 0.03125, "n": 15}
    (folder / "attention").mkdir()
    (folder / "attention" / "attention_analysis.json").write_text(json.dumps(analysis))
    return folder


@pytest.fixture(scope="module")
def html(run) -> str:
    return page_of(run)


def test_the_page_holds_the_numbers_of_the_results_with_n_and_interval(run, html):
    metrics, text = json.loads((run / "results.json").read_text())["metrics"]["test"], words(html)
    low, high = metrics["srcc_ci95"]
    assert f"{metrics['srcc']:.4f}" in text and f"{low:.3f}..{high:.3f}" in text
    assert "test 40" in text and f"{metrics['krcc']:.4f}" in text
    assert "train_swin.py" in text and "0a1b2c3, clean" in text and "seed 7" in text
    assert "lr 0.125 2e-05" in text


def test_every_part_evaluation_and_the_baseline_have_a_row(html):
    text = words(html)
    for row in ("spaq 9", "kadid-10k (evaluation_kadid-10k.json) 9", "test: ridge baseline 40"):
        assert row in text, row


def test_attention_is_the_table_of_the_analysis(html):
    assert "Low 3 0.1000 ± 0.0100 0.2000 ± 0.0100 0.3000 ± 0.0100 0.4000 ± 0.0100" in words(html)
    assert "High 0 – ± – – ± – – ± – – ± –" in words(html)
    assert "SRCC with mos 15 0.250 p = 0.031" in words(html)


def test_what_a_user_named_is_text_and_never_markup(html):
    elements = Elements(html)
    scripts = [attributes for tag, attributes in elements.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "predictions-data"}, {}]
    assert not [a for _, a in elements.tags if any(name.startswith("on") for name in a)]
    assert "a <b>run" in elements.text and SCRIPT_NAME in elements.text
    data = embedded_predictions(html)
    assert EVIL_NAME in {row[0] for row in data[0]["rows"]}
    assert EVIL_CONTENT in data[0]["rows"][3]


def test_the_page_needs_no_other_file(html):
    addresses = [a[key] for _, a in Elements(html).tags for key in ("src", "href", "srcset") if key in a]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in html and "@import" not in html


def test_images_of_the_best_and_worst_are_shown_and_missing_ones_said(run, html):
    thumbnails = [a for tag, a in Elements(html).tags if tag == "img" and a["src"].startswith("data:image/jpeg")]
    assert len(thumbnails) == 24
    assert "Images are not shown: spaq: no database at" in words(html)
    worst = gather(run)["parts"][0]["worst"][0]
    assert worst["image"] == EVIL_NAME and worst["thumbnail"]


def test_a_moved_database_leaves_the_names(tmp_path):
    run = write_run(tmp_path / "run", {"test": rows_of(30)})
    text = words(page_of(run))
    assert "Images are not shown: csv: no file" in text and "img_00001.png" in text and "no image" in text


def test_an_image_that_does_not_open_is_counted(tmp_path):
    rows = rows_of(8)
    run = write_run(tmp_path / "run", {"test": rows})
    write_images(run, rows)
    (run / "images" / rows[0]["image"]).write_bytes(b"no image")
    (run / "images" / rows[1]["image"]).unlink()
    assert "2 of these images are not in csv as it is now, or do not open" in words(page_of(run))


def test_what_makes_numbers_doubtful_stands_before_them(tmp_path):
    protocol = {"selected_on": "test", "notes": ["a pair of identical images is in two parts"]}
    provenance = {"git_dirty": True, "git_commit": "0a1b2c3"}
    databases = {"csv": {"notes": ["2 images here, 3 are published"], "left_out": [{"image": "b.png"}]}}
    run = write_run(
        tmp_path / "run", {"test": rows_of(30)}, protocol=protocol, provenance=provenance, databases=databases
    )
    said = words(page_of(run)).split("Configuration")[0]
    for line in (
        "chosen on the test part",
        "a pair of identical images",
        "changes that were not committed",
        "test: 2 images here, 3 are published",
        "test: 1 images of the database were left out",
        "interval unreliable: only 4 contents",
        "command not recorded",
    ):
        assert line in said, line
    assert "chosen on the test part" not in words(page_of(write_run(tmp_path / "b", {"test": rows_of(30)})))


def test_a_run_without_history_or_attention_says_what_makes_them(tmp_path):
    text = words(page_of(write_run(tmp_path / "run", {"test": rows_of(30)})))
    assert "No history.jsonl lies beside the results" in text
    assert f"Not analysed yet: python analyze_attention.py --checkpoint {tmp_path}/run --dataset csv" in text


def test_a_fusion_without_stage_weights_is_said_to_have_none(tmp_path):
    run = write_run(tmp_path / "run", {"test": rows_of(30)})
    (run / "attention").mkdir()
    analysis = TEMPLATES.attention
    for level in analysis["levels"].values():
        del level["mean"], level["std"]
    (run / "attention" / "attention_analysis.json").write_text(json.dumps(analysis))
    assert "This fusion (concat) has no stage weights" in words(page_of(run))


@pytest.mark.long
def test_constant_scores_and_three_images_are_a_page_with_dashes(tmp_path):
    constant = [row | {"score": 50.0} for row in rows_of(30)]
    run = write_run(tmp_path / "constant", {"test": constant})
    nan_epoch = '{"epoch": 1, "train_loss": 2.0, "val_srcc": NaN}\n{"epoch": 2, "train_loss": 1.0, "val_srcc": null}\n'
    (run / "history.jsonl").write_text(nan_epoch)
    text = words(page_of(run))
    assert "SRCC – PLCC –" in text and "No logistic is drawn" in text and "nan" not in text.lower().split()
    few = gather(write_run(tmp_path / "few", {"test": rows_of(3)}))["parts"][0]
    assert (len(few["best"]), len(few["worst"])) == (2, 1)


@pytest.mark.long
def test_ten_thousand_images_stay_under_five_megabytes(tmp_path):
    html = page_of(write_run(tmp_path / "run", {"test": rows_of(10_000)}))
    assert len(html.encode()) < 5e6
    assert html.count("img_0") >= 10_000


@pytest.mark.long
def test_without_images_the_page_is_made_where_torch_is_not_installed(tmp_path):
    run = write_run(tmp_path / "run", {"test": rows_of(30)})
    code = f"""
import sys
class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {TORCH_FAMILY!r}:
            raise ModuleNotFoundError(f"no {{name}} here", name=name)
sys.meta_path.insert(0, NotInstalled)
sys.argv = ["report", {str(run)!r}]
from smart_iqa.commands import report
report.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").is_file()


# --------------------------------------------------------------------------------------------------
# Bad input


def changed_results(run: Path, path: str, value: object = None) -> None:
    """Set (or, without a value, delete) the field at a dotted path of a run's results."""
    file = run / "results.json"
    results = json.loads(file.read_text())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = results
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    file.write_text(json.dumps(results))


@pytest.mark.parametrize(
    "path, value, named",
    [
        ("protocol", None, "no field 'protocol'"),
        ("metrics.test.srcc", None, "no field 'metrics.test.srcc'"),
        ("metrics.test.srcc", "high", "metrics.test.srcc: expected a number"),
        ("metrics.test.plcc_logistic4", "high", "metrics.test.plcc_logistic4: expected a number"),
        ("metrics.test.srcc_ci95", [0.1], "metrics.test.srcc_ci95: expected two numbers or null, got [0.1]"),
        ("training", [2], "training: expected an object, got [2]"),
        ("training.parameters", "many", 'training.parameters: expected a whole number, got "many"'),
        ("protocol.notes", "a note", 'protocol.notes: expected a list, got "a note"'),
        ("databases.csv", {"left_out": 3}, "databases.csv.left_out: expected a list, got 3"),
        ("metrics.test.notes", 3, "metrics.test.notes: expected a list, got 3"),
        ("predictions.test.4.score", None, "predictions.test[4]"),
        ("predictions.test.4.score", "NaN", 'predictions.test[4].score: expected a number, got "NaN"'),
        ("metrics.test.n", 29, "'metrics.test.n' is 29, but 'predictions.test' holds 30 rows"),
        ("config.dataset", None, "no field 'config.dataset'"),
        ("metrics", {}, "no part in 'metrics'"),
    ],
)
def test_a_missing_or_wrong_field_is_named(tmp_path, capsys, path, value, named):
    run = write_run(tmp_path / "run", {"test": rows_of(30)})
    changed_results(run, path, value)
    refused(capsys, named, run)
    assert not (run / "report.html").exists()


def refused(capsys, named: str, *arguments: object) -> None:
    """The command says one line that holds `named`, and exits with 2."""
    assert command("report", *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and len(said.splitlines()) == 1 and named in said, said


def test_optional_fields_that_are_null_are_shown_as_those_that_are_missing(tmp_path):
    protocol, timings = {"n": None, "contents": None, "notes": None, "selected_on": "val"}, {"training_seconds": None}
    provenance = {"command": None, "versions": None, "machine": None, "git_commit": None, "git_dirty": None}
    nulls = {"training": None, "protocol": protocol, "timings": timings, "provenance": provenance}
    text = words(page_of(write_run(tmp_path / "nulls", {"test": rows_of(9)}, **nulls)))
    assert "command not recorded" in text and "None" not in text


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    refused(capsys, "no results at", tmp_path / "nothing")
    refused(capsys, "no results at", tmp_path)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text("")
    refused(capsys, "--resume", tmp_path / "stopped")
    for i in range(2):
        write_run(tmp_path / "many" / f"split_{i:02d}", {"test": rows_of(9)})
    refused(capsys, f"name one of them, for example {tmp_path / 'many' / 'split_00'}", tmp_path / "many")


def test_a_broken_history_or_analysis_is_named(tmp_path, capsys):
    run = write_run(tmp_path / "run", {"test": rows_of(9)})
    (run / "history.jsonl").write_text('{"epoch": 1, "train_loss": 2.0}\n')
    refused(capsys, "history.jsonl, line 1: no field 'val_srcc'", run)
    (run / "history.jsonl").write_text("3\n")
    refused(capsys, "history.jsonl, line 1: expected the fields of an epoch, got 3", run)
    (run / "history.jsonl").write_text('{"epoch": 1, "train_loss": "low", "val_srcc": null}\n')
    refused(capsys, "history.jsonl, line 1: field 'train_loss' is 'low', expected a number", run)
    (run / "history.jsonl").unlink()
    (run / "attention").mkdir()
    (run / "attention" / "attention_analysis.json").write_text("{}")
    refused(capsys, "attention_analysis.json is no attention analysis", run)


def test_a_page_can_be_written_from_python(tmp_path):
    run = write_run(tmp_path / "run", {"test": rows_of(9)})
    assert write_report(str(run)) == run / "report.html"
    assert "test 9" in words((run / "report.html").read_text(encoding="utf-8"))


def test_a_page_is_written_over_and_nothing_else_is(tmp_path, capsys):
    run = write_run(tmp_path / "run", {"test": rows_of(9)})
    page_of(run)
    changed_results(run, "provenance.seed", 8)
    assert "seed 8" in words(page_of(run))
    own = tmp_path / "own.html"
    own.write_text("<p>mine</p>")
    refused(capsys, "is no page of smart-iqa report", run, "--output", own)
    assert own.read_text() == "<p>mine</p>"
    refused(capsys, "ends in .html", run, "--output", run / "results.json")
    refused(capsys, "no folder", run, "--output", tmp_path / "absent" / "page.html")
    check_output(tmp_path / "new.html")


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The page of a run with 1,203 predictions of its own and 9 on another database."""
    rows = rows_of(1203)
    rows[7] |= {"image": EVIL_NAME, "content": EVIL_CONTENT}
    rows[8]["image"] = HANDLER_NAME
    folder = write_run(tmp_path_factory.mktemp("long") / "run", {"test": rows, "spaq": rows_of(9, seed=1)})
    page_of(folder)
    return folder / "report.html", rows


@pytest.fixture
def page(browser, long_run) -> Iterator:
    """The opened page; when the test is done, nothing may have been complained about or asked for."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(60_000)  # the machine may be busy
    complaints, requests = [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(long_run[0].as_uri())
    yield opened
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [long_run[0].as_uri()]
    assert opened.evaluate("window.ran") is None
    opened.close()


def column(page, label: str) -> list[str]:
    """The texts of a column of the rows on display."""
    index = page.locator("#predictions-table thead button").all_inner_texts().index(label)
    return page.locator(f"#predictions-table tbody td:nth-child({index + 1})").all_text_contents()


def heading(page, label: str):
    return page.get_by_role("button", name=label, exact=True)


def sorted_by(page) -> dict[str, str]:
    headings = page.locator("#predictions-table th").all()
    return {h.inner_text(): h.get_attribute("aria-sort") for h in headings if h.get_attribute("aria-sort") != "none"}


@pytest.mark.parametrize("label", ["mos", long("|error|"), long("image"), long("content"), long("error")])
def test_a_click_sorts_all_rows_and_another_click_reverses_them(page, long_run, label):
    predictions = embedded_predictions(long_run[0].read_text(encoding="utf-8"))[0]
    index = [c["label"] for c in predictions["columns"]].index(label)
    digits = predictions["columns"][index]["digits"]
    values = sorted(row[index] for row in predictions["rows"])
    if label == "|error|":  # the page opens with the worst first
        heading(page, "mos").click()
    heading(page, label).click()
    assert sorted_by(page) == {label: "ascending"}
    rising = column(page, label)
    heading(page, label).click()
    assert sorted_by(page) == {label: "descending"}
    falling = column(page, label)
    if digits is None:
        assert (rising[0], falling[0]) == (values[0], values[-1])
    else:
        assert rising == [f"{value:.{digits}f}" for value in values[:50]]
        assert falling == [f"{value:.{digits}f}" for value in values[:-51:-1]]


def test_the_worst_predicted_come_first_when_the_page_opens(page):
    assert sorted_by(page) == {"|error|": "descending"}
    errors = [float(value) for value in column(page, "|error|")]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.long
def test_the_table_sorts_by_keyboard_and_keeps_the_focus(page):
    heading(page, "mos").focus()
    page.keyboard.press("Enter")
    assert sorted_by(page) == {"mos": "ascending"}
    page.keyboard.press("Space")
    assert sorted_by(page) == {"mos": "descending"}
    assert page.evaluate("document.activeElement.textContent") == "mos"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "score"


def test_the_filter_leaves_the_rows_with_every_word(page, long_run):
    page.get_by_role("searchbox").fill("SCENE img_0012")
    expected = [r["image"] for r in long_run[1] if "scene" in r["content"] and "img_0012" in r["image"]]
    assert sorted(column(page, "image")) == sorted(expected) and len(expected) == 10
    assert page.locator("#position").inner_text() == "1–10 of 10 (of 1203)"
    page.get_by_role("searchbox").fill("no such image")
    assert column(page, "image") == [] and page.locator("#position").inner_text() == "no row of 1203 matches"
    page.get_by_role("searchbox").fill("")
    assert page.locator("#position").inner_text() == "1–50 of 1203"


@pytest.mark.long
def test_turning_the_pages_shows_every_row_once(page, long_run):
    seen = column(page, "image")
    assert heading(page, "Previous").is_disabled()
    while heading(page, "Next").is_enabled():
        heading(page, "Next").click()
        seen += column(page, "image")
    assert sorted(seen) == sorted(row["image"] for row in long_run[1])
    heading(page, "First").click()
    assert column(page, "image") == seen[:50]
    heading(page, "Last").click()
    assert page.locator("#position").inner_text() == "1201–1203 of 1203"


@pytest.mark.long
def test_another_part_can_be_chosen_and_one_part_offers_no_choice(page, browser, tmp_path):
    page.get_by_label("Part").select_option("spaq")
    assert len(column(page, "image")) == 9
    page_of(write_run(tmp_path / "run", {"test": rows_of(9)}))
    single = browser.new_page()
    single.goto((tmp_path / "run" / "report.html").as_uri())
    assert not single.locator("#part").is_visible()
    single.close()


def test_names_that_look_like_markup_are_shown_as_they_are(page):
    page.get_by_role("searchbox").fill("window.ran")
    assert column(page, "image") == [EVIL_NAME, HANDLER_NAME] and column(page, "content")[0] == EVIL_CONTENT


@pytest.mark.long
def test_the_page_never_scrolls_sideways(page):
    for details in page.locator("summary").all():
        details.click()
    for width in (320, 375, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.long
def test_light_and_dark_are_both_readable(page):
    contrasts, plots = {}, {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate(
            "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
        )
        ink, ground = (relative_luminance(colour) for colour in colours)
        contrasts[scheme] = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert (ink < ground) == (scheme == "light")
        # The browser chooses the <picture>'s source a moment after the scheme has changed.
        changed = "before => document.querySelector('.plot img').currentSrc != before"
        page.wait_for_function(changed, arg=plots.get("light"))
        plots[scheme] = page.locator(".plot img").first.evaluate("image => image.currentSrc")
    assert min(contrasts.values()) > 7  # WCAG 2.2, level AAA
    assert plots["light"] != plots["dark"]


def relative_luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, as WCAG 2.2 defines it."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
