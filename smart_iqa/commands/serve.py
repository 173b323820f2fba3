"""Score images in the browser and over HTTP, on this machine: a page and a JSON API.

    smart-iqa serve
    smart-iqa serve --port 8080 --checkpoint results/demo
    curl -F files=@photo.jpg http://127.0.0.1:8000/api/score

Only this machine reaches it, unless `--host` says otherwise. Images are scored in memory and not kept.
`pip install 'smart-iqa[serve]'` brings what it needs.
"""

from __future__ import annotations

import errno
import importlib.util
import socket
from argparse import SUPPRESS
from collections.abc import Sequence
from typing import Any

from iqa.choices import DEVICES
from iqa.errors import Parser, UserError
from iqa.system import start_logging

NEEDS = ("fastapi", "uvicorn", "python_multipart")


def require_packages() -> None:
    """Check that the optional packages are here.

    Raises:
        UserError: says which are missing, and how to get them.
    """
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"smart-iqa serve needs {', '.join(missing).replace('_', '-')}: pip install 'smart-iqa[serve]' "
            "(in a checkout: pip install '.[serve]')"
        )


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before anything slow is done.

    Raises:
        UserError: it is in use or not allowed, or the host is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port: expected 0..65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}; 127.0.0.1 is this machine alone") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # a second server that takes the port would share it before this
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; --port takes another (0: a free one)") from error
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return listener


def serve(
    checkpoint: str = "default",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    allow_host: Sequence[str] = (),
    **limits: Any,
) -> None:
    """Serve until Ctrl-C.

    Args:
        checkpoint: what `load_model` takes.
        host: an address of this machine, or a name of one.
        port: 0 takes a free one.
        device: `auto`, `cpu`, `cuda` or `mps`.
        allow_host: further names that requests may call the server by.
        **limits: fields of `smart_iqa.serving.Limits`.

    Raises:
        UserError: a package, the port or the model cannot be had.
    """
    require_packages()
    from smart_iqa.serving.limits import Limits

    taken = Limits(**limits)
    with listen(host, port) as listener:
        from smart_iqa.scorer import load_model
        from smart_iqa.serving import make_app, run

        app = make_app(load_model(checkpoint, device), taken, checkpoint, {host, *allow_host})
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"SMART-IQA is at http://{shown}:{number}/ (Ctrl-C ends it)", flush=True)
        run(app, listener)


def make_parser() -> Parser:
    """The command's flags; what is not given is left to `serve` and to `Limits`."""
    parser = Parser(description="Score images in the browser and over HTTP.", argument_default=SUPPRESS)
    parser.add_argument("--checkpoint", metavar="RUN", help="as for `smart-iqa predict` [default]")
    parser.add_argument("--host", help="address to listen on [127.0.0.1: this machine alone]")
    parser.add_argument("--port", type=int, help="[8000]; 0 takes a free one")
    parser.add_argument("--device", choices=DEVICES, help="[auto]")
    parser.add_argument(
        "--allow_host", nargs="+", metavar="NAME", help="names that others call this server by, behind a proxy"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max_file_mb", type=float, metavar="MB", help="size of a file [20]")
    limits.add_argument("--max_files", type=int, metavar="N", help="files in a request [32]")
    limits.add_argument("--max_megapixels", type=float, metavar="MP", help="pixels of an image, in millions [50]")
    limits.add_argument(
        "--max_seen_megapixels", type=float, metavar="MP", help="after resizing, as the network sees it [8]"
    )
    limits.add_argument("--max_waiting", type=int, metavar="N", help="requests at a time [64]")
    limits.add_argument("--max_memory_mb", type=float, metavar="MB", help="uploads held at a time [512]")
    limits.add_argument("--timeout", type=float, metavar="S", help="seconds from a request to its last score [60]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve what the command line names."""
    arguments = make_parser().parse_args(argv)
    start_logging()
    serve(**vars(arguments))
