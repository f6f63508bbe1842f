"""The web page's files, from the package alone: no build step, no other host."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from aiohttp import web

__all__ = ["page_routes"]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # nothing inline, nothing from elsewhere, nothing sent elsewhere, in nobody's frame
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time; the ETag makes that cheap
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: dict[str, str]
    etag: str

    async def answer(self, request: web.Request) -> web.Response:
        known = request.if_none_match or ()
        if any(tag.value in (self.etag, "*") for tag in known):
            response = web.Response(status=304, headers=HEADERS)
        else:
            response = web.Response(body=self.body, headers=self.headers)
        response.etag = self.etag
        return response


def page_routes() -> list[web.RouteDef]:
    """`/` is the page, `/web/NAME` its parts. They are read now, and hold nothing of the swarm."""
    routes = []
    for entry in (resources.files("swarmd.api") / "web").iterdir():
        kind = TYPES.get(entry.name[entry.name.rfind(".") :])
        if kind is None:
            continue
        body = entry.read_bytes()
        etag = hashlib.sha256(body).hexdigest()[:32]
        file = _File(body, {**HEADERS, "Content-Type": kind}, etag)
        path = "/" if entry.name == "index.html" else f"/web/{entry.name}"
        routes.append(web.get(path, file.answer))
    return routes
