"""How many requests a second `smart-iqa serve` answers, and how long they take, on the loopback.

    python benchmarks/serving.py --json serving.json

Some minutes. The server is a process of its own with the model of the package; clients are threads of this one, each
with a connection that it keeps, and each sends its next image when it has the answer to the last. Every request is one
JPEG file of `SIZES`, as a body. The JSON holds, by size, by whether requests that wait together share a batch, and by
number of clients, requests a second and the median and 95th percentile of the seconds that an answer took; and the
images a second of `Scorer.score` in this process on the same files, which knows no HTTP. `load_average` is what the
machine did besides: above its number of cores the times say more of the neighbours than of the server.
"""

from __future__ import annotations

import http.client
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.common import made_up_pictures, require_writable, seconds_of, write_result
from iqa.errors import Parser, exit_on_user_error

SIZES = {"photograph": (512, 384), "thumbnail": (96, 96)}
CLIENTS = (1, 8, 32)
FILES = 16
SECONDS = 15  # for each number of clients
FEWEST = 3  # requests of a client, however long they take


def serve(batches: bool, told: Connection) -> None:
    """Serve the model of the package in this process; the port is told once it is there."""
    from smart_iqa.commands.serve import listen
    from smart_iqa.scorer import load_model
    from smart_iqa.serving import engine, make_app, run

    if not batches:
        engine._CPU_BATCH = 0
    app = make_app(load_model(device="cpu"))
    listener = listen("127.0.0.1", 0)
    told.send(listener.getsockname()[1])
    run(app, listener)


@contextmanager
def server(batches: bool) -> Iterator[int]:
    """The port of a server that runs while the context lasts."""
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(batches, tells))
    process.start()
    try:
        yield told.recv()
    finally:
        process.terminate()
        process.join()


def ask(connection: http.client.HTTPConnection, content: bytes) -> None:
    """Have one image scored."""
    connection.request("POST", "/api/score", content, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {body.decode()}")


def measure_clients(port: int, contents: Sequence[bytes], clients: int, seconds: float) -> dict:
    """Requests a second, and how long one takes, with several clients at once."""
    times: list[float] = []
    ends = time.perf_counter() + seconds

    def work(first: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
            for number in itertools.count():
                if number >= FEWEST and time.perf_counter() > ends:
                    return
                content = contents[(first + number) % len(contents)]
                times.append(seconds_of(lambda content=content: ask(connection, content)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    took = seconds_of(lambda: ([thread.start() for thread in threads], [thread.join() for thread in threads]))
    return {
        "clients": clients,
        "requests": len(times),
        "requests_per_s": len(times) / took,
        "median_seconds": statistics.median(times),
        "p95_seconds": statistics.quantiles(times, n=20, method="inclusive")[-1],
    }


def measure(seconds: float = SECONDS, clients: Sequence[int] = CLIENTS, sizes: dict | None = None) -> dict:
    """Every size and number of clients, with and without batches."""
    from smart_iqa.scorer import load_model

    rows, direct = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (width, height) in (sizes or SIZES).items():
            (place := Path(folder) / name).mkdir()
            files = made_up_pictures(place, FILES, width, height)["path"].tolist()
            contents = [Path(file).read_bytes() for file in files]
            scorer = load_model(device="cpu")
            scorer.score(files[0])
            direct[name] = len(files) / seconds_of(lambda files=files, scorer=scorer: list(map(scorer.score, files)))
            for batches in (True, False):
                with server(batches) as port:
                    measure_clients(port, contents, 1, 0)  # warms up
                    for count in clients:
                        print(f"measuring {name}, {count} clients, batches: {batches}", file=sys.stderr)
                        found = measure_clients(port, contents, count, seconds)
                        rows.append({"image": name, "size": [width, height], "batches": batches, **found})
    return {"kind": "serving", "load_average": os.getloadavg()[1], "direct_images_per_s": direct, "rows": rows}


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Requests a second and the 95th percentile of `smart-iqa serve` on the loopback.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--quick", action="store_true", help="a few requests: shows that it runs, says nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line a row, write everything."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    quick = {"seconds": 0.0, "clients": (2,), "sizes": {"thumbnail": (96, 96)}}
    result = measure(**quick) if arguments.quick else measure()
    write_result(arguments.json, {**result, "quick": arguments.quick})
    for row in result["rows"]:
        print(
            f"{row['image']:12} batches {row['batches']!s:5} {row['clients']:3} clients "
            f"{row['requests_per_s']:8.2f} requests/s, 95th percentile {row['p95_seconds']:.3f} s"
        )


if __name__ == "__main__":
    exit_on_user_error(main)
