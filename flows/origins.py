"""Which requests Prefect's server answers: those of programs on this machine and of its own pages.

It listens on loopback and asks for no login, and every page that the user's browser shows can send requests to it. So
- the Host must be one of the server's names: a site whose name leads to this machine (DNS rebinding) has another;
- an Origin, which browsers send with whatever changes something, and with web sockets, must be the server's own. Its port
  counts, so that a page of another server on this machine is foreign, too;
- what a browser sends without one, for a picture or a script, must not come from another site;
- no other page may show the server's in a frame, where a click would be its user's.

Programs (workers, `prefect`, curl) send no Origin. They are not kept out: whoever can run one on this machine, as any user of
it, can start runs.
"""

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = "FLYWHEEL_ALLOWED_HOSTS"
"""The variable with further names of the server, with commas between: in a container, that of its service."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FOREIGN = ("cross-site", "same-site")
"""Values of Sec-Fetch-Site of what other pages ask for; another port of this machine is the same site."""
POLICY_VIOLATION = 1008
"""Code with which a web socket is closed (RFC 6455, 7.4.1)."""


class OwnPages:
    """ASGI middleware that refuses requests of foreign pages with 403, web sockets before they are open."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or refuses one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif (reason := refusal(Headers(scope=scope), self.hosts)) is None:
            await self.app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
        else:
            await PlainTextResponse(reason, 403)(scope, receive, send)


def refusal(headers: Headers, hosts: frozenset[str]) -> str | None:
    """Why a request with these headers is refused; None where it is answered."""
    if (host := _parts(headers.getlist("host"))) is None or host.hostname not in hosts:
        return f"the Host is not this server's; set {HOSTS} if it has another name"
    origins = headers.getlist("origin")
    if origins:
        origin = _parts([o.partition("://")[2] for o in origins])
        if origin is None or origin.hostname not in hosts or origin.port != host.port:
            return "the Origin is another page's"
    elif headers.get("sec-fetch-site") in FOREIGN and headers.get("sec-fetch-mode") != "navigate":
        return "another page asks for this"
    return None


def _parts(names: list[str]) -> SplitResult | None:
    """The only one of `names` with its host and port; None where it has none, or is not one."""
    try:
        [name] = names
        parts = urlsplit(f"//{name}")
        return parts if parts.hostname and parts.netloc == name and "@" not in name and parts.port != 0 else None
    except ValueError:  # a port that is no number, brackets that do not close
        return None


def _unframed(send: Send) -> Send:
    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Frame-Options"] = "SAMEORIGIN"
            headers["Content-Security-Policy"] = "frame-ancestors 'self'"
        await send(message)

    return with_header


def guarded(create: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes Prefect's application, with `OwnPages` around the one that is served (`final`). The server gets it
    without, too, for requests to itself in its own process, as an automation's action is.
    """

    def make(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("final"):
            return create(*args, **kwargs)
        more = filter(None, map(str.strip, os.environ.get(HOSTS, "").split(",")))
        return OwnPages(create(*args, **kwargs), frozenset({*LOOPBACK, *more}))

    return make
