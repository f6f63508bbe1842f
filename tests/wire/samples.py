"""One well-formed message of every type."""

from __future__ import annotations

from swarmd.identity import PEER_ID_BYTES
from swarmd.peers import MODEL_ID_BYTES
from swarmd.wire.messages import (
    SESSION_ID_BYTES,
    Close,
    Closed,
    ErrorMessage,
    Hello,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Step,
    Successor,
    Welcome,
)
from swarmd.wire.tensors import TensorMeta

SESSION = bytes(range(SESSION_ID_BYTES))
OTHER_SESSION = bytes(SESSION_ID_BYTES)
PEER = b"p" * PEER_ID_BYTES
MODEL = b"m" * MODEL_ID_BYTES
META = TensorMeta("float32", (1, 2, 4))
PAYLOAD = bytes(META.n_bytes)

SAMPLES: list[Message] = [
    Hello(1, "swarmd/test", PEER, MODEL),
    Hello(1, "", b"", b""),
    Welcome(1, "swarmd/tést", PEER, MODEL, 0, 6, "float32", 128 << 20),
    Open(SESSION, 1, 5, 64),
    Open(SESSION, 0, 1, 1 << 24, Successor(PEER, "::1", 65535, 1, 2)),
    Opened(SESSION, 0xFFFFFFFF),
    Step(SESSION, 0, 0, 0, META),
    Step(SESSION, 0xFFFFFFFF, 1 << 24, 5000, TensorMeta("bfloat16", (1, 1, 1, 1), "zstd")),
    Output(SESSION, 7, 1, 2, 3, META),
    Close(SESSION),
    Closed(SESSION),
    Ping(0),
    Pong(0xFFFFFFFF),
    ErrorMessage("busy", "full", 1500, 3, False),
    ErrorMessage("bad_request", "", None, None, True),
]


def of_type(kind: type) -> Message:
    return next(message for message in SAMPLES if type(message) is kind)
