"""What goes wrong with a request, as a status and OpenAI's JSON form of an error. Pure.

The form is that of https://platform.openai.com/docs/guides/error-codes: an object `error` with
`message`, `type`, `param` and `code`. The official client chooses its exception by the status.
"""

from __future__ import annotations

import math
from typing import Any

from swarmd.errors import (
    Busy,
    NoRoute,
    PeerFailure,
    RemoteError,
    ReplayExhausted,
    SessionTooLong,
    SwarmdError,
    UsageError,
)

__all__ = ["ApiError", "from_swarmd", "no_such_model", "not_honoured", "wrong_value"]

AGAIN_IN = 5.0
"""Seconds after which a client should ask again that found blocks without a peer: about as long
as another peer needs to be found."""


class ApiError(Exception):
    """An answer with an error status. `retry_after` in seconds; `extra` joins the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.extra = extra or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body; the same object is the last event of a stream that fails midway."""
        return {
            "error": {
                "message": self.message,
                "type": _KINDS.get(self.status)
                or ("invalid_request_error" if self.status < 500 else "server_error"),
                "param": self.param,
                "code": self.code,
                **self.extra,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds (RFC 9110, 10.2.3), where it is known."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def not_honoured(field: str, advice: str = "leave it out") -> ApiError:
    """A field, or a value of it, that asks for what swarmd does not do."""
    return ApiError(
        422, f"{field} is not supported here; {advice}", code="unsupported_parameter", param=field
    )


def wrong_value(field: str, must: str) -> ApiError:
    """A field whose value is of the wrong type or out of its range."""
    return ApiError(422, f"{field} must be {must}", code="invalid_value", param=field)


def no_such_model(asked: str, served: str) -> ApiError:
    """Another model than the one that this gateway serves."""
    return ApiError(
        404,
        f"the model {asked[:100]!r} is not served here; ask for {served!r}",
        code="model_not_found",
        param="model",
    )


def from_swarmd(error: SwarmdError) -> ApiError:
    """The answer that a failure of the swarm, or of what was asked of it, gets."""
    cause = error.__cause__
    if isinstance(error, Busy) or (isinstance(error, ReplayExhausted) and isinstance(cause, Busy)):
        busy = error if isinstance(error, Busy) else cause
        asked_for = busy.retry_after if isinstance(busy, Busy) else None
        return ApiError(
            429,
            f"the swarm has no room for this session now: {busy}",
            code="swarm_busy",
            retry_after=asked_for or AGAIN_IN,
        )
    if isinstance(error, NoRoute):
        missing = [str(blocks) for blocks in error.missing]
        return ApiError(
            503, str(error), code="no_route", retry_after=AGAIN_IN, extra={"missing": missing}
        )
    if isinstance(error, SessionTooLong):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, UsageError):
        return ApiError(422, str(error), code="invalid_value")
    if isinstance(error, ReplayExhausted | PeerFailure | RemoteError):
        return ApiError(502, str(error), code="swarm_failed")
    return ApiError(500, f"{type(error).__name__}: {error}", code="internal_error")
