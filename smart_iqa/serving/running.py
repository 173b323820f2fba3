"""An application on a port, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import socket

import uvicorn
from fastapi import FastAPI

_LAST_REQUESTS = 5  # seconds that running requests get when the server ends


def make_server(app: FastAPI) -> uvicorn.Server:
    """The server, which says nothing but errors of its own; a broken form is the sender's."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_LAST_REQUESTS,
    )
    return uvicorn.Server(config)


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serve on a socket that listens; returns after Ctrl-C, which is how a server is meant to end."""
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app).run([listener])
