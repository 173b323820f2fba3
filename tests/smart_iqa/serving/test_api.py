"""The JSON API: what it answers, what it refuses and with which words, and that it keeps nothing."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_run
from serving import Reply, Served, encoded, form, served

from iqa.attention import grad_cam
from smart_iqa.probes import StageWeights
from smart_iqa.scorer import Scorer, load_model
from smart_iqa.serving.engine import decode
from smart_iqa.serving.limits import Limits
from smart_iqa.serving.uploads import Upload
from smart_iqa.shipped import Meaning

MEANING = Meaning(10.0, 0.9, 100, (20, 40, 60, 80))
IMAGES = {f"image {i}.png": encoded(i, size) for i, size in enumerate([(48, 40), (40, 48), (33, 70), (48, 40)])}
LIMITS = {"max_file_mb": 1, "max_files": 8, "max_megapixels": 1, "max_seen_megapixels": 0.2}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    """A tiny model that scores whole images and weighs stages."""
    run = make_run(tmp_path_factory.mktemp("whole"), "channel", "nano", test_mode="full")
    scorer = load_model(run, "cpu")
    scorer.meaning = MEANING
    return scorer


@pytest.fixture(scope="module")
def server(scorer) -> Iterator[Served]:
    with served(scorer, ("quality.example",), **LIMITS) as running:
        yield running


def scores_of_files(scorer: Scorer, files: dict[str, bytes], folder: Path) -> list[float]:
    """What the files have as files."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [scorer.score(folder / name) for name in files]


# What it answers --------------------------------------------------------------------------------------------------


def test_files_of_a_form_have_the_scores_that_they_have_as_files_in_their_order(server, scorer, tmp_path):
    answer = server.score(IMAGES)
    assert answer.status == 200 and "error" not in answer.json
    rows = answer.json["results"]
    assert [row["name"] for row in rows] == list(IMAGES)
    assert [row["score"] for row in rows] == pytest.approx(scores_of_files(scorer, IMAGES, tmp_path), abs=2e-4)
    assert [(row["width"], row["height"]) for row in rows] == [(48, 40), (40, 48), (33, 70), (48, 40)]


def test_a_body_is_one_file_of_the_name_in_the_query(server):
    name, content = next(iter(IMAGES.items()))
    alone = server.ask("/api/score?name=image%200.png", content, Content_Type="image/png")
    assert alone.json["results"] == server.score({name: content}).json["results"]


def test_random_crops_lie_where_they_lie_in_the_file_of_that_name(tmp_path):
    crops = load_model(make_run(tmp_path, "concat", test_mode="random", test_patch_num=3), "cpu")
    files = {"a.png": encoded(1, (90, 70)), "b.png": encoded(1, (90, 70))}
    with served(crops) as running:
        rows = running.score({f"folder/{name}": content for name, content in files.items()}).json["results"]
    expected = scores_of_files(crops, files, tmp_path)
    assert expected[0] != expected[1]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=2e-4)
    assert [row["name"] for row in rows] == ["a.png", "b.png"]
    assert "stage_weights" not in rows[0] and "level" not in rows[0]  # this model has neither


def test_a_score_comes_with_its_interval_level_and_stage_weights(server, scorer):
    content = encoded(5)
    (row,) = server.score({"a.png": content}).json["results"]
    assert (row["low"], row["high"]) == tuple(round(end, 1) for end in MEANING.interval(row["score"]))
    assert row["level"] == MEANING.level(row["score"])
    crops = decode(Upload("a.png", content), scorer.config, Limits()).crops
    with torch.inference_mode():
        images = scorer.to_images(crops[None], torch.tensor([[[0.0, 1, 1, 1, 0]]]))
        expected = StageWeights(scorer.model)(images)[0, 1:].tolist()
    assert row["stage_weights"] == pytest.approx(expected, abs=1e-4)
    assert sum(row["stage_weights"]) == pytest.approx(1, abs=1e-3)


def test_a_map_is_grad_cam_over_the_whole_image(server, scorer):
    content = encoded(5, (200, 100))
    assert "map" not in server.score({"a.png": content}).json["results"][0]
    (row,) = server.score({"a.png": content}, "?map=true").json["results"]
    values = np.array(row["map"])
    assert values.shape == (32, 64)
    crops = decode(Upload("a.png", content), scorer.config, Limits()).crops
    images = scorer.to_images(crops[None], torch.tensor([[[0.0, 1, 1, 1, 0]]]))
    whole = grad_cam(scorer.model, images)[0].numpy()
    assert values.mean() == pytest.approx(whole.mean(), abs=0.02)
    assert np.sign(values[0, 0] - values.mean()) == np.sign(whole[0, 0] - whole.mean())


def test_a_model_of_crops_has_a_map_of_the_whole_image_too(tmp_path):
    crops = load_model(make_run(tmp_path, "concat", test_mode="center"), "cpu")
    with served(crops) as running:
        (row,) = running.score({"a.png": encoded(1, (64, 48))}, "?map=true").json["results"]
    assert np.array(row["map"]).shape == (48, 64)


def test_the_model_and_its_limits_are_told(server):
    told = server.ask("/api/model").json
    assert told["checkpoint"] == "tiny" and told["has_stage_weights"] and told["coverage"] == 0.9
    assert told["limits"]["max_files"] == 8 and told["score_range"] == [0, 100]


def test_many_requests_at_once_are_all_answered_each_with_its_own_score(server, scorer, tmp_path):
    files = {f"{i}.png": encoded(i, [(48, 40), (64, 48)][i % 2]) for i in range(40)}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda item: server.score(dict([item])), files.items()))
    assert {answer.status for answer in answers} == {200}
    got = [answer.json["results"][0]["score"] for answer in answers]
    assert got == pytest.approx(scores_of_files(scorer, files, tmp_path), abs=2e-4)


# What it refuses --------------------------------------------------------------------------------------------------


def png_of_size(width: int, height: int) -> bytes:
    """The header of a PNG of this size, and no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    written = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return written + struct.pack(">I", 1000) + b"IDAT"


REFUSED = {
    "text": (b"hello", 415, "this is not an image"),
    "a page": (b"<svg onload=alert(1)>", 415, "this is not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 415, "no"),
    "cut off": (encoded(1, (64, 64), noise=True)[:4000], 422, "cannot be read"),
    "many pixels": (png_of_size(1200, 1000), 413, "1200 x 1000 pixels are over 1 million"),
    "a bomb": (png_of_size(60_000, 60_000), 413, "more than 1 million pixels"),
    "a strip": (encoded(1, (9000, 2)), 413, "cut out a part"),
    "large": (bytes(1_000_001), 413, "larger than 1 MB"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_scored_is_refused_with_a_status_and_words(server, kind):
    content, status, words = REFUSED[kind]
    for answer in (
        server.score({"a.png": content}),
        server.ask("/api/score?name=a.png", content, Content_Type="image/png"),
    ):
        assert answer.status == status, answer.body
        assert answer.json["error"].startswith("a.png: ") and words in answer.json["error"]
        assert "\n" not in answer.json["error"] and "object at" not in answer.json["error"]
        assert answer.json["results"] == [
            {"name": "a.png", "status": status, "error": answer.json["error"].removeprefix("a.png: ")}
        ]


def test_one_bad_file_among_good_ones_is_a_row_and_the_others_have_their_scores(server):
    answer = server.score({"a.png": encoded(1), "b.png": b"nothing", "c.png": encoded(2)})
    assert answer.status == 200
    assert ["score" in row for row in answer.json["results"]] == [True, False, True]
    assert answer.json["results"][1]["status"] == 415


def test_errors_may_come_in_rows_with_status_200(server):
    answer = server.score({"b.png": b"nothing"}, "?errors_in_rows=true")
    assert answer.status == 200 and answer.json["results"][0]["status"] == 415


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "image/png", 422, "no image in the request"),
        (*form({}), 422, "no image in the request"),
        (b"{}", "application/json", 415, "multipart/form-data"),
        (b"a", "multipart/form-data", 400, "no boundary"),
        (b"no form", "multipart/form-data; boundary=b", 400, "the form cannot be read"),
        (form({"a.png": encoded(1)})[0][:-20], form({})[1], 400, "the form cannot be read"),
        (*form({f"{i}.png": b"x" for i in range(9)}), 413, "more than 8 files"),
    ],
)
def test_a_request_that_holds_no_files_or_too_many_is_refused_whole(server, body, kind, status, words):
    answer = server.ask("/api/score", body, Content_Type=kind)
    assert answer.status == status and words in answer.json["error"]


def test_unknown_paths_methods_and_values_are_refused_in_words(server):
    assert server.ask("/nothing").json == {"error": "nothing is at /nothing"}
    assert server.ask("/api/score").status == 405
    answer = server.ask("/api/score?map=perhaps", b"x", Content_Type="image/png")
    assert answer.status == 422 and "map" in answer.json["error"]


def test_a_refused_body_is_read_to_its_end_so_that_the_sender_hears_why(server):
    answer = server.score({f"{i}.png": bytes(900_000) for i in range(12)})
    assert answer.status == 413 and "more than 8 files" in answer.json["error"]


def until(status: int, ask: Callable[[], Reply]) -> Reply:
    """The first answer with a status: what else the machine does may delay what leads to it."""
    for _ in range(200):
        if (answer := ask()).status == status:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"no answer with {status}, the last one is {answer}")


def start_upload(port: int) -> socket.socket:
    """A request whose body does not come."""
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(
        b"POST /api/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx"
    )
    return slow


def test_a_busy_server_says_so_and_takes_the_next_when_there_is_room(scorer):
    with served(scorer, max_waiting=1) as running:
        with start_upload(running.port):
            busy = until(503, lambda: running.score({"a.png": encoded(1)}))
            assert busy.headers["Retry-After"] == "1" and "waiting" in busy.json["error"]
        until(200, lambda: running.score({"a.png": encoded(1)}))


def test_an_upload_that_does_not_come_is_ended(scorer):
    with served(scorer, timeout=0.2) as running, start_upload(running.port) as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_uploads_that_fill_the_memory_send_the_next_away_and_give_it_back(scorer):
    with served(scorer, max_memory_mb=0.01) as running:
        large = running.score({"a.png": encoded(1, (100, 100), noise=True)})
        assert large.status == 503 and "as many uploads as it may" in large.json["error"]
        assert running.score({"a.png": encoded(1)}).status == 200


def test_what_is_not_scored_in_time_is_refused_and_the_next_is_scored(scorer, monkeypatch):
    forward, may_go_on = StageWeights.forward, threading.Event()

    def wait(self, images):
        may_go_on.wait(60)
        return forward(self, images)

    monkeypatch.setattr(StageWeights, "forward", wait)
    with served(scorer, timeout=1.5) as running:
        late = running.score({"a.png": encoded(1)})
        may_go_on.set()
        assert late.status == 503 and "not scored within 1.5 s" in late.json["error"]
        until(200, lambda: running.score({"a.png": encoded(1)}))


def test_a_failure_of_the_model_is_said_in_words_and_the_next_request_is_answered(scorer, monkeypatch):
    with served(scorer) as running:
        with monkeypatch.context() as patch:
            patch.setattr(StageWeights, "forward", lambda self, images: 1 / 0)
            failed = running.score({"a.png": encoded(1)})
        assert failed.status == 500 and failed.json == {"error": "the server failed at this request; its log says why"}
        assert running.score({"a.png": encoded(1)}).status == 200


# Who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "192.168.1.7", "quality.example"]
)
def test_the_server_answers_to_addresses_localhost_and_the_names_it_was_given(server, host):
    assert server.ask("/api/model", Host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[", ""])
def test_another_name_is_refused_as_one_whose_address_was_rebound(server, host):
    answer = server.ask("/api/model", Host=host)
    assert answer.status == 403 and "--allow_host" in answer.json["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:9"}, 403),  # another server of this machine
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Origin": "http://localhost", "Sec_Fetch_Site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_images_are_taken_from_its_own_page_and_from_programs_alone(server, headers, status):
    assert server.score({"a.png": encoded(1)}, Host="localhost", **headers).status == status


def test_every_answer_has_its_security_headers(server):
    for path in ("/", "/docs", "/openapi.json", "/api/model", "/nothing"):
        headers = server.ask(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers and "Server" not in headers


# What it keeps ----------------------------------------------------------------------------------------------------

WRITTEN: list[str] = []
WATCHING = threading.Event()


def watch(event: str, arguments: tuple) -> None:
    """Keep the names of files that are opened to write."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if WATCHING.is_set() and event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
        WRITTEN.append(str(arguments[0]))


def test_nothing_is_written_to_disk_whatever_the_size(scorer, tmp_path):
    sys.addaudithook(watch)
    WATCHING.set()
    try:
        (tmp_path / "seen").write_bytes(b"")
        with served(scorer) as running:
            content = encoded(1, (1200, 900), noise=True)  # 3 MB; starlette's own reader spools from 1 MB on
            assert len(content) > 3e6 and running.score({"a.png": content}, "?map=true").status == 200
            assert running.ask("/api/score", content, Content_Type="image/png").status == 200
    finally:
        WATCHING.clear()
    assert len(WRITTEN) == 1 and WRITTEN[0] == str(tmp_path / "seen")


# What describes it ------------------------------------------------------------------------------------------------


def test_the_description_of_the_api_names_every_path_field_and_status(server):
    api = server.ask("/openapi.json").json
    assert api["openapi"].startswith("3.") and set(api["paths"]) == {"/api/model", "/api/score"}
    operation = api["paths"]["/api/score"]["post"]
    assert set(operation["responses"]) == {"200", "400", "403", "408", "413", "415", "422", "503"}
    assert "multipart/form-data" in operation["requestBody"]["content"]
    (row,) = server.score({"a.png": encoded(1)}, "?map=true").json["results"]
    assert set(row) == set(api["components"]["schemas"]["Scored"]["properties"])
    told = server.ask("/api/model").json
    assert set(told) <= set(api["components"]["schemas"]["Model"]["properties"])
    page = server.ask("/docs").body.decode()
    assert all(f"<code>{name}</code>" in page for name in (*row, *told, "/api/score", "map", "errors_in_rows"))


def test_the_pages_ask_nothing_of_other_machines(server):
    for path in ("/", "/page.css", "/page.js", "/docs", "/icon.svg"):
        answer = server.ask(path)
        text = answer.body.decode().replace("http://www.w3.org/2000/svg", "").replace("http://127.0.0.1:8000", "")
        assert answer.status == 200 and "http:" not in text and "https:" not in text and "//cdn" not in text


def test_a_json_answer_is_read_as_json(server):
    answer = server.score({"<script>.png": encoded(1)})
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body)["results"][0]["name"] == "<script>.png"
