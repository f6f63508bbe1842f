"""What every request passes before its handler: its id, its key, its rate; and errors as JSON."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from swarmd.api.errors import ApiError, from_swarmd
from swarmd.api.keys import ApiKeys
from swarmd.api.limits import ApiLimits
from swarmd.errors import SwarmdError
from swarmd.rates import Key, Rates, address_key

__all__ = ["REQUEST_ID", "guard", "is_loopback", "mark_response"]

log = logging.getLogger(__name__)
REQUEST_ID = web.RequestKey("request_id", str)
_STARTED = web.RequestKey("started", bool)
GUARDED = ("/v1/", "/metrics", "/swarm")
_GIVEN_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


def guard(keys: ApiKeys, limits: ApiLimits) -> Middleware:
    """The middleware. What begins with one of GUARDED needs a key, if there are any; the page's
    own files do not, and hold nothing.

    Without keys only requests for a host of this machine are answered (403): a page in the user's
    browser whose name leads to 127.0.0.1 (DNS rebinding) asks for its own name.
    """
    rates = Rates(limits.requests_a_minute / 60, limits.burst)

    def admit(request: web.Request) -> None:
        holder: Key | None
        if keys:
            found = keys.holder(request.headers.get("Authorization", ""))
            if found is None:
                raise ApiError(
                    401,
                    "no valid API key: send one as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                )
            holder = ("api", found)
        else:
            if not is_loopback(request.url.host or ""):
                raise ApiError(
                    403,
                    "without API keys this server answers to the name localhost only",
                    code="wrong_host",
                )
            holder = address_key(request.remote or "", loopback=True)
        wait = rates.admit((holder,) if holder else (), time.monotonic())
        if wait > 0:
            raise ApiError(
                429,
                f"more than {limits.requests_a_minute:g} requests a minute",
                code="rate_limit_exceeded",
                retry_after=wait,
            )

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request[REQUEST_ID] = given if _GIVEN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        try:
            if request.path.startswith(GUARDED):
                admit(request)
            return await handler(request)
        except ApiError as error:
            refusal = error
        except SwarmdError as error:
            refusal = from_swarmd(error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            refusal = _from_aiohttp(request, error)
        except Exception as error:
            log.exception("%s failed", request[REQUEST_ID])
            if request.get(_STARTED) and request.transport is not None:
                request.transport.abort()  # in the middle of a stream there is no other way
            refusal = ApiError(
                500, f"a bug in swarmd: {type(error).__name__}; its log says more",
                code="internal_error",
            )  # fmt: skip
        log.info("%s %s: %d %s", request[REQUEST_ID], request.path, refusal.status, refusal.message)
        return web.json_response(refusal.body, status=refusal.status, headers=refusal.headers)

    return middleware


async def mark_response(request: web.Request, response: web.StreamResponse) -> None:
    """For the signal `on_response_prepare`: every response names its request."""
    request[_STARTED] = True
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")


def is_loopback(host: str) -> bool:
    """Whether a host, as a URL or `--host` has it, is this machine itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> ApiError:
    if error.status == 404:
        return ApiError(404, f"no such path: {request.path[:200]}", code="unknown_path")
    if error.status == 413:
        return ApiError(413, "the body is too large for this server", code="body_too_large")
    return ApiError(error.status, error.reason, code="bad_request")
