"""Who may ask: requests by the server's own name and from its own page, so that no other site's page reaches it.

A page of another site can make a browser send requests to 127.0.0.1, and can give its own name that address (DNS
rebinding) to read the answers. Such a request names the other site as `Host`, `Origin` or `Sec-Fetch-Site`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
RESPONSE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that sends strangers away and gives every answer its security headers.

    Args:
        app: what it guards.
        hosts: names that a request may call the server by, beside `localhost` and any IP address (an address cannot
            be rebound).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()):
        self.app, self.hosts = app, {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(RESPONSE_HEADERS)
            await send(message)

        problem = self.problem(scope["method"], Headers(scope=scope))
        app = self.app if problem is None else JSONResponse({"error": problem}, 403)
        return await app(scope, receive, send_with_headers)

    def problem(self, method: str, headers: Headers) -> str | None:
        """Why a request is not let in; None lets it in."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return f"this server is not {host!r}: start it with --allow_host to let it be called so"
        if method in SAFE_METHODS:
            return None
        origin = headers.get("origin")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if elsewhere or (origin is not None and urlsplit(origin).netloc.lower() != host.lower()):
            return "requests from the pages of other sites are not answered"
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
