"""Who may ask: only who has the token, in a browser on this machine.

A page of another site can send a browser to 127.0.0.1 too, by a form, an image or a name that it lets point there (DNS
rebinding). So the Host must be this server's, the token comes in the first address and then in a cookie that other sites
cannot send, and a form carries a second token that they cannot read.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser hides the origin of a form too
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SAFE = ("GET", "HEAD")
REFUSED = "403: this page is for the person who started it. Open the address that `flywheel browse` printed, token included.\n"
Handler = Callable[[Request], Awaitable[Response]]


class Guard:
    """Refuses requests of others; adds headers that keep a page from loading or sending anything elsewhere."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.token, self.port = app, token, port
        self.cookie = f"flywheel_{port}"  # cookies do not know ports: two servers must not share one
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    @property
    def form_token(self) -> str:
        """What a form of ours carries."""
        return hmac.new(self.token.encode(), b"form", "sha256").hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        answer = self.refusal(request) or self.entrance(request)
        await (answer or self.app)(scope, receive, send_with_headers)

    def refusal(self, request: Request) -> Response | None:
        """The answer to who may not ask."""
        if request.headers.get("host", "").lower() not in self.hosts:
            return PlainTextResponse(
                f"403: this is no address of this server: open http://127.0.0.1:{self.port}\n", 403
            )
        if not self._is_ours(request.query_params.get("token")) and not self._is_ours(request.cookies.get(self.cookie)):
            return PlainTextResponse(REFUSED, 403)
        if request.method not in SAFE and not self._is_same_origin(request):
            return PlainTextResponse("403: a form of another site; nothing was written\n", 403)
        return None

    def entrance(self, request: Request) -> Response | None:
        """At the first visit: keeps the token as a cookie and leads to the address without it."""
        if "token" not in request.query_params or request.method not in SAFE:
            return None
        rest = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "token"])
        answer = RedirectResponse(request.url.path + (f"?{rest}" if rest else ""), 303)
        if self._is_ours(request.query_params["token"]):
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer

    def _is_ours(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(token.encode(), self.token.encode())

    def _is_same_origin(self, request: Request) -> bool:
        """Whether a browser says that the form is of this server; what is no browser says nothing."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        host = request.headers["host"].lower()
        return site in (None, "same-origin") and origin in (None, f"http://{host}")

    def check_form(self, token: str) -> bool:
        """Whether a form carries its token."""
        return secrets.compare_digest(token.encode(), self.form_token.encode())
