"""The page in a browser: scores shown as they are, refusals in words, names only ever text, keyboard alone suffices."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import make_run
from serving import Served, encoded, served

from smart_iqa.scorer import Scorer, load_model
from smart_iqa.shipped import Meaning

EVIL = '<img src=x onerror="window.ran=1">.png'
FORMULA = "=1+1.png"


class Opened(NamedTuple):
    """A page in the browser, and what was complained about or asked for."""

    page: Any
    complaints: list[str]
    requests: list[str]

    def add(self, *files: Path) -> None:
        """Choose files, and wait until all are done."""
        done = self.page.locator(".result:not(:has-text('scoring'))")
        before = done.count()
        self.page.set_input_files("#files", files)
        self.page.locator(f".card:nth-child({before + len(files)})").wait_for()
        self.page.locator(".result", has_text="scoring…").first.wait_for(state="detached")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    scorer = load_model(make_run(tmp_path_factory.mktemp("page"), "channel", test_mode="full"), "cpu")
    scorer.meaning = Meaning(10.0, 0.9, 100, (20, 40, 60, 80))
    return scorer


@pytest.fixture(scope="module")
def server(scorer, browser) -> Iterator[Served]:
    with served(scorer, max_file_mb=1) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Three images, two of them with names that would run, and a file that is none."""
    folder = tmp_path_factory.mktemp("files")
    contents = {"b.png": encoded(1), EVIL.replace("/", ""): encoded(2, (60, 40)), FORMULA: encoded(3)}
    contents |= {"wrong.png": b"no image"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


@pytest.fixture
def opened(browser, server) -> Iterator[Opened]:
    """The page; when the test is done, nothing may have been complained about or asked for elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60_000)  # the machine may be busy
    found = Opened(page, [], [])
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(server.url)
    yield found
    assert found.complaints == []
    assert [url for url in found.requests if not url.startswith((server.url, "blob:"))] == []
    assert page.evaluate("() => window.ran") is None
    context.close()


def test_scores_are_shown_as_they_are_and_a_wrong_file_is_refused_in_words(opened, files, scorer):
    opened.add(*files.values())
    expected = [f"{scorer.score(file):.1f}" for name, file in files.items() if name != "wrong.png"]
    assert opened.texts(".card .score strong") == expected
    assert opened.texts(".card .name") == list(files)
    assert "this is not an image" in opened.texts(".card .problem")[0]
    assert "3 images scored, 1 not" in opened.page.locator("#status").inner_text()
    with opened.page.expect_download() as download:
        opened.page.click("#download")
    assert download.value.suggested_filename == "scores.csv"
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["image"] for row in rows] == [f"'{name}" if name == FORMULA else name for name in files]
    assert [f"{float(row['score']):.1f}" for row in rows[:3]] == expected and rows[3]["error"]
    assert all(float(rows[0][f"stage_{i}"]) > 0 for i in range(4)) and rows[0]["level"]


def test_the_keyboard_alone_shows_compares_and_closes(opened, files):
    page = opened.page
    opened.add(files["b.png"], files[FORMULA])
    page.evaluate("() => document.activeElement.blur()")

    def press_until(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid" or selector == "#files"  # its label has the outline
                return
        raise AssertionError(f"no way by Tab to {selector}")

    press_until("#files")
    press_until(".open")
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible() and page.locator("#detail-title").inner_text() == "b.png"
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail-title").inner_text() == FORMULA
    page.keyboard.press("ArrowLeft")  # the button of the other direction, which had the focus, is disabled by now
    assert page.locator("#detail-title").inner_text() == "b.png"
    press_until(".map-on")
    page.keyboard.press("Space")
    page.locator("#detail canvas").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    press_until(".pick input")
    page.keyboard.press("Space")
    press_until(".pick input")
    page.keyboard.press("Space")
    page.locator("#compare").focus()
    page.keyboard.press("Enter")
    assert "score" in page.locator("#verdict").inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") == "compare"


@pytest.mark.slow
def test_names_are_text_wherever_they_are_shown(opened, files):
    page = opened.page
    opened.add(*files.values())
    page.locator(".open").nth(1).click()
    assert page.locator("#detail-title").inner_text() == EVIL
    page.keyboard.press("Escape")
    page.locator(".pick input").nth(0).check()
    page.locator(".pick input").nth(1).check()
    page.click("#compare")
    assert EVIL in page.locator("#pair").inner_text()


@pytest.mark.slow
def test_many_are_sorted_by_score_and_name(opened, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(i))
    opened.add(*paths)
    for order, reverse in (("best", True), ("worst", False)):
        opened.page.select_option("#order", order)
        shown = [float(text) for text in opened.texts(".card .score strong")]
        assert shown == sorted(shown, reverse=reverse)
    opened.page.select_option("#order", "name")
    assert opened.texts(".card .name") == [path.name for path in paths]  # 2 before 10
    opened.page.locator(".remove").nth(3).click()
    assert "3.png" not in opened.texts(".card .name")
    opened.page.click("#clear")
    assert opened.texts(".card") == [] and not opened.page.locator("#results").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("event", ["paste", "drop"])
def test_images_are_pasted_and_dropped(opened, event):
    data = list(encoded(1))
    opened.page.evaluate(
        """([event, data]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(data)], "image.png", {type: "image/png"}));
            const options = {bubbles: true, cancelable: true};
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", {...options, clipboardData: moved})
                : new DragEvent("drop", {...options, dataTransfer: moved}));
        }""",
        [event, data],
    )
    opened.page.locator(".card .score").wait_for()
    assert opened.texts(".card .name") == [{"paste": "pasted-1.png", "drop": "image.png"}[event]]


@pytest.mark.slow
def test_a_file_over_the_limit_is_refused_without_being_sent(opened, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(1_000_001))
    opened.add(tmp_path / "large.png")
    assert "larger than 1 MB" in opened.texts(".card .problem")[0]
    assert not [url for url in opened.requests if "/api/score" in url]


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 768, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_over_the_edge_and_text_stands_out(opened, files, width, scheme):
    page = opened.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    opened.add(files["b.png"])
    page.locator(".open").first.click()
    wide = "() => [document.documentElement, document.querySelector('#detail')].map(e => e.scrollWidth - e.clientWidth)"
    assert max(page.evaluate(wide)) <= 0
    colours = page.evaluate(
        "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, ground = (sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) for colour in colours)
    assert (ink < 150 < 600 < ground) if scheme == "light" else (ground < 150 < 600 < ink)


@pytest.mark.slow
def test_the_theme_is_chosen_and_remembered(opened, server):
    page = opened.page
    assert page.locator("#theme").inner_text() == "Theme: auto"
    page.click("#theme")
    page.click("#theme")
    page.goto(server.url)
    assert page.locator("#theme").inner_text() == "Theme: dark"
    assert page.evaluate("() => getComputedStyle(document.documentElement).colorScheme") == "dark"


@pytest.mark.slow
def test_a_server_that_has_gone_is_said_in_words(scorer, browser, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1))
    page = browser.new_page()
    with served(scorer) as running:
        page.goto(running.url)
        page.locator("#model", has_text="tiny").wait_for()
    page.set_input_files("#files", tmp_path / "a.png")
    page.locator(".card .problem", has_text="is the server running").wait_for()
    page.close()


@pytest.mark.slow
def test_the_description_of_the_api_is_a_page(opened, server):
    opened.page.goto(f"{server.url}/docs")
    assert opened.page.get_by_role("heading", name="/api/score").is_visible()
