"""Who may speak to the workbench: this computer's browser with the token, and nobody through another page."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = "x-flatscope-token"
"""What scripts send instead of the cookie."""
MOST_BODY_BYTES = 2_000_000
"""Larger requests are refused: a lasso around 10,000 regions sends 1 MB."""
_TOO_LARGE = f"a request holds at most {MOST_BODY_BYTES // 1_000_000} MB"
_NAMES = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this computer, also at the near end of an ssh tunnel, which may use another port."""
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Refuses in one line what does not come from the page that `flatscope open` opened.

    Parameters
    ----------
    app
        What answers the others.
    token
        A secret of this start.
    cookie
        Name of the cookie that holds it; two workbenches on one computer need two.
    """

    def __init__(self, app: App, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = self._refuse(scope, headers)
        if refusal:
            await _answer(send, *refusal)
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and given:
            await self._let_in(send, given)
            return
        if not self._knows_token(headers):
            await _answer(send, 403, "open the address that flatscope printed, with its token")
            return
        whole = await _take_body(receive)
        if whole is None:
            await _answer(send, 413, _TOO_LARGE)
            return
        await self._app(scope, whole, _harden(send))

    def _refuse(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if _host_name(f"//{host}") not in _NAMES:
            return 403, f"this workbench answers to 127.0.0.1 alone, not to {host[:80]!r}"
        origin = headers.get("origin", "")
        if origin and urlsplit(origin).netloc != host:
            return 403, f"a page of {origin[:80]!r} has no say here"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "another page has no say here"
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and not origin and HEADER not in headers:
            return 403, "a change needs the header Origin of this page"
        size = headers.get("content-length", "0")
        if not size.isdigit() or int(size) > MOST_BODY_BYTES:
            return 413, _TOO_LARGE
        return None

    def _knows_token(self, headers: dict[str, str]) -> bool:
        given = headers.get(HEADER, "")
        if not given:
            try:
                cookies = SimpleCookie(headers.get("cookie", ""))
            except CookieError:
                return False
            given = cookies[self._cookie].value if self._cookie in cookies else ""
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def _let_in(self, send: Send, given: str) -> None:
        """Swap the token of the address for a cookie, so that it stays out of the history and of links."""
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            await _answer(
                send, 403, "the token is that of another start: open the address that was printed last"
            )
            return
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _take_body(receive: Receive) -> Receive | None:
    """Read the body of a request before anything is done with it; None where it is too large."""
    body, is_open = b"", True
    while is_open:
        message = await receive()
        if message["type"] != "http.request":  # the page has gone
            break
        body += message.get("body", b"")
        is_open = message.get("more_body", False)
        if len(body) > MOST_BODY_BYTES:
            return None
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


def _harden(send: Send) -> Send:
    """Add the headers that keep a page from being framed, guessed or told more than it must know."""

    async def hardened(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            had = {name.lower() for name, _ in message["headers"]}
            extra = [(n.encode(), v.encode()) for n, v in _HEADERS.items() if n.encode() not in had]
            if b"cache-control" not in had:
                extra.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return hardened


def _host_name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
