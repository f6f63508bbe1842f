"""Reads the JSON body of a request: bounded in size and time, and nothing but plain JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from aiohttp import web

from swarmd.api.errors import ApiError

__all__ = ["parse_json", "read_json"]


async def read_json(request: web.Request, timeout: float) -> Any:
    """The body as JSON, whole within `timeout` seconds.

    Raises ApiError (400, 408, 415), and HTTPRequestEntityTooLarge of aiohttp. The content type is
    insisted on, since a page of any site may post other types to 127.0.0.1 unasked.
    """
    if request.content_type != "application/json":
        raise ApiError(415, "send the content type application/json", code="wrong_content_type")
    try:
        async with asyncio.timeout(timeout):
            raw = await request.read()
    except TimeoutError as error:
        raise ApiError(408, f"the body took longer than {timeout:g} s", code="timeout") from error
    return parse_json(raw)


def parse_json(raw: bytes) -> Any:
    """Strict JSON in UTF-8: no NaN, and no halves of surrogate pairs, which no tokenizer takes.

    Raises ApiError (400).
    """
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    return body


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")
