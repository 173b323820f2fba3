"""A server of `smart-iqa serve` in a thread, and requests to it over the loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from smart_iqa.commands.serve import listen
from smart_iqa.scorer import Scorer
from smart_iqa.serving import Limits, make_app
from smart_iqa.serving.running import make_server


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served(NamedTuple):
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Reply:
        """A GET, or with a body a POST; `Content_Type` as a keyword is the header Content-Type."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())

    def score(self, files: Mapping[str, bytes], query: str = "", **headers: str) -> Reply:
        """Send a form."""
        body, kind = form(files)
        return self.ask(f"/api/score{query}", body, Content_Type=kind, **headers)


@contextlib.contextmanager
def served(scorer: Scorer, hosts: tuple[str, ...] = (), **limits: float) -> Iterator[Served]:
    """Serve a model on a free port while the context lasts."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = make_server(make_app(scorer, Limits(**limits), "tiny", hosts))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Served(port)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def form(files: Mapping[str, bytes], boundary: str = "b0undary") -> tuple[bytes, str]:
    """Files as a form, and its type."""
    parts = b""
    for name, content in files.items():
        named = name.replace('"', "%22")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{named}"\r\n\r\n'
        parts += head.encode() + content + b"\r\n"
    return parts + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def encoded(seed: int, size: tuple[int, int] = (48, 40), kind: str = "PNG", noise: bool = False) -> bytes:
    """A made-up image file."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3) if noise else (4, 5, 3), dtype=np.uint8))
    file = BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()
