"""One well-formed message of every type."""

from __future__ import annotations

from swarmd.identity import PEER_ID_BYTES, PUBLIC_KEY_BYTES
from swarmd.peers import MODEL_ID_BYTES
from swarmd.wire.messages import (
    FEED_BYTES,
    PROTOCOL_VERSION,
    SESSION_ID_BYTES,
    TICKET_BYTES,
    Challenge,
    Close,
    Closed,
    Dialback,
    Dialled,
    ErrorMessage,
    Fed,
    Feed,
    Hello,
    Incoming,
    Link,
    Linked,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Reserve,
    Reserved,
    Step,
    Unlinked,
    Welcome,
)
from swarmd.wire.proofs import CHALLENGE_BYTES, PROOF_BYTES, SIGNATURE_BYTES
from swarmd.wire.tensors import TensorMeta

SESSION = bytes(range(SESSION_ID_BYTES))
OTHER_SESSION = bytes(SESSION_ID_BYTES)
PEER = b"p" * PEER_ID_BYTES
MODEL = b"m" * MODEL_ID_BYTES
META = TensorMeta("float32", (1, 2, 4))
PAYLOAD = bytes(META.n_bytes)

CHALLENGE = Challenge(b"n" * CHALLENGE_BYTES, b"t" * PROOF_BYTES)
UNPROVEN = (b"k" * PUBLIC_KEY_BYTES, b"t" * PROOF_BYTES, b"s" * SIGNATURE_BYTES)
"""The last three fields of a hello that proves nothing."""

SAMPLES: list[Message] = [
    CHALLENGE,
    Hello(PROTOCOL_VERSION, "swarmd/test", MODEL, *UNPROVEN),
    Hello(PROTOCOL_VERSION, "", b"", *UNPROVEN),
    Welcome(PROTOCOL_VERSION, "swarmd/tést", PEER, MODEL, 0, 6, "float32", "none", 128 << 20),
    Open(SESSION, 1, 5, 64),
    Open(SESSION, 0, 1, 1 << 24, b"f" * FEED_BYTES),
    Link(SESSION, 1, PEER, OTHER_SESSION, b"f" * FEED_BYTES),
    Linked(SESSION, 1, 250),
    Unlinked(SESSION, 0, "cannot connect"),
    Feed(SESSION, b"f" * FEED_BYTES),
    Fed(SESSION),
    Opened(SESSION, 0xFFFFFFFF),
    Step(SESSION, 0, 0, 0, META),
    Step(SESSION, 0xFFFFFFFF, 1 << 24, 5000, TensorMeta("bfloat16", (1, 1, 1, 1), "zstd"), 7),
    Output(SESSION, 7, 1, 2, 3, META),
    Close(SESSION),
    Closed(SESSION),
    Reserve(),
    Reserved(16, 4 << 20),
    Incoming(b"t" * TICKET_BYTES),
    Ping(0),
    Pong(0xFFFFFFFF),
    Dialback(65535),
    Dialled(True, "192.0.2.7"),
    Dialled(False, "2001:db8::7"),
    ErrorMessage("busy", "full", 1500, 3, False),
    ErrorMessage("bad_request", "", None, None, True),
]


def of_type(kind: type) -> Message:
    return next(message for message in SAMPLES if type(message) is kind)
