"""Two cores joined with no network walk every row of the table; what is not in it is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from swarmd.errors import BadRequest, BadTensor, UnknownSession
from swarmd.wire.frames import Frame, Limits
from swarmd.wire.messages import (
    FEED_BYTES,
    MESSAGES,
    PROTOCOL_VERSION,
    TICKET_BYTES,
    WITH_PAYLOAD,
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
    Reserve,
    Reserved,
    Step,
    Unlinked,
    Welcome,
    encode_header,
)
from swarmd.wire.protocol import (
    MAX_STEPS_UNDER_WAY,
    TRANSITIONS,
    LocalMisuse,
    Protocol,
    Role,
    State,
)
from swarmd.wire.tensors import TensorMeta
from tests.wire.samples import (
    CHALLENGE,
    META,
    MODEL,
    OTHER_SESSION,
    PAYLOAD,
    PEER,
    SESSION,
    UNPROVEN,
)

D, L = Role.DIALLER, Role.LISTENER
STATES = [state for state in State if state is not State.ENDED]

HELLO = Hello(PROTOCOL_VERSION, "test", MODEL, *UNPROVEN)
WELCOME = Welcome(PROTOCOL_VERSION, "test", PEER, MODEL, 0, 6, "float32", "none", 1 << 20)
OPEN, OPENED = Open(SESSION, 0, 6, 64), Opened(SESSION, 10)
FEED = Feed(SESSION, bytes(FEED_BYTES))
FATAL = ErrorMessage("bad_request", "no", fatal=True)

PATHS: dict[State, list[tuple[Role, Message]]] = {State.NEW: []}
PATHS[State.CHALLENGED] = [(L, CHALLENGE)]
PATHS[State.GREETING] = [*PATHS[State.CHALLENGED], (D, HELLO)]
PATHS[State.IDLE] = [*PATHS[State.GREETING], (L, WELCOME)]
PATHS[State.OPENING] = [*PATHS[State.IDLE], (D, OPEN)]
PATHS[State.SESSION] = [*PATHS[State.OPENING], (L, OPENED)]
PATHS[State.DIALLING] = [*PATHS[State.IDLE], (D, Dialback(31330))]
PATHS[State.CLOSING] = [*PATHS[State.SESSION], (D, Close(SESSION))]
PATHS[State.FEEDING] = [*PATHS[State.IDLE], (D, FEED)]
PATHS[State.FED] = [*PATHS[State.FEEDING], (L, Fed(SESSION))]
PATHS[State.RESERVING] = [*PATHS[State.IDLE], (D, Reserve())]
PATHS[State.RESERVED] = [*PATHS[State.RESERVING], (L, Reserved(2, 1000))]


def step(number: int, session: bytes = SESSION) -> Step:
    return Step(session, number, 0, 0, META)


def output(number: int, session: bytes = SESSION) -> Output:
    return Output(session, number, 0, 0, 0, META)


class Joined:
    """A dialler's and a listener's core; `say` carries a message from one to the other."""

    def __init__(self, state: State = State.NEW, *, steps: int = 0) -> None:
        self.ends = {D: Protocol(D), L: Protocol(L)}
        path = list(PATHS[state])
        if steps:
            path[len(PATHS[State.SESSION]) :] = [
                *((D, step(n)) for n in range(steps)),
                *path[len(PATHS[State.SESSION]) :],
            ]
        for sender, message in path:
            self.say(sender, message)
        assert self.ends[D].state is self.ends[L].state is state

    def say(self, sender: Role, message: Message) -> Message:
        payload = bytearray(PAYLOAD) if isinstance(message, WITH_PAYLOAD) else bytearray()
        return self.ends[sender.other].receive(Frame(self.ends[sender].send(message), payload))

    @property
    def states(self) -> set[State]:
        return {end.state for end in self.ends.values()}


def snapshot(core: Protocol) -> tuple[Any, ...]:
    return core.state, core.session, core.steps_under_way, tuple(core._steps)


def hear(core: Protocol, message: Message) -> Message:
    """What the other end would say if it did not check itself."""
    payload = bytearray(PAYLOAD) if isinstance(message, WITH_PAYLOAD) else bytearray()
    return core.receive(Frame(encode_header(message), payload))


def fitting(kind: type) -> Message:
    """A message that is right in every way but perhaps its moment."""
    fixed: dict[type, Message] = {
        Challenge: CHALLENGE, Hello: HELLO, Welcome: WELCOME, Open: OPEN, Opened: OPENED,
        Step: step(0),
        Output: output(0), Close: Close(SESSION), Closed: Closed(SESSION),
        ErrorMessage: ErrorMessage("busy", "full"), Reserve: Reserve(),
        Reserved: Reserved(2, 1000), Incoming: Incoming(bytes(TICKET_BYTES)),
        Dialled: Dialled(True, "192.0.2.7"), Feed: FEED, Fed: Fed(SESSION),
        Link: Link(SESSION, 1, PEER, OTHER_SESSION, bytes(FEED_BYTES)),
        Linked: Linked(SESSION, 1, 200), Unlinked: Unlinked(SESSION, 1, "gone"),
    }  # fmt: skip
    return fixed.get(kind) or kind(1)


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda r: f"{r[0].value}-{r[1].value}-{r[2].TYPE}")
def test_every_row_of_the_table(row: tuple[State, Role, type]) -> None:
    state, sender, kind = row
    joined = Joined(state, steps=1 if state in (State.SESSION, State.CLOSING) else 0)
    message = fitting(kind)
    if kind is Step:
        message = step(5)
    assert joined.say(sender, message) == message
    assert joined.states == {TRANSITIONS[row]}


REFUSED = [
    (state, sender, kind)
    for state, sender, kind in itertools.product(State, Role, MESSAGES.values())
    if (state, sender, kind) not in TRANSITIONS
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda r: f"{r[0].value}-{r[1].value}-{r[2].TYPE}")
def test_what_is_not_in_the_table_is_refused_and_changes_nothing(
    row: tuple[State, Role, type],
) -> None:
    state, sender, kind = row
    joined = Joined(State.SESSION if state is State.ENDED else state)
    if state is State.ENDED:
        joined.say(L, FATAL)
    before = {role: snapshot(end) for role, end in joined.ends.items()}
    with pytest.raises(LocalMisuse):
        joined.ends[sender].send(fitting(kind))
    allowed = (BadRequest, UnknownSession) if sender is D else BadRequest
    with pytest.raises(allowed):
        hear(joined.ends[sender.other], fitting(kind))
    assert {role: snapshot(end) for role, end in joined.ends.items()} == before


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("sender", Role)
def test_a_fatal_error_ends_the_connection_from_every_state(state: State, sender: Role) -> None:
    joined = Joined(state)
    joined.say(sender, FATAL)
    assert joined.states == {State.ENDED}
    for role in Role:
        with pytest.raises(LocalMisuse):
            joined.ends[role].send(FATAL)
        with pytest.raises(BadRequest):
            hear(joined.ends[role], FATAL)


@pytest.mark.parametrize(
    "message",
    [
        step(1, OTHER_SESSION),
        Close(OTHER_SESSION),
        Link(OTHER_SESSION, 1, PEER, SESSION, bytes(FEED_BYTES)),
    ],
)
@pytest.mark.parametrize("state", [State.IDLE, State.SESSION, State.FED])
def test_a_session_that_this_connection_does_not_carry(state: State, message: Message) -> None:
    core = Joined(state).ends[L]
    before = snapshot(core)
    with pytest.raises(UnknownSession):
        hear(core, message)
    assert snapshot(core) == before


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (State.OPENING, Opened(OTHER_SESSION, 1)),
        (State.SESSION, output(0, OTHER_SESSION)),
        (State.CLOSING, Closed(OTHER_SESSION)),
        (State.SESSION, Linked(OTHER_SESSION, 1, 1)),
        (State.SESSION, Unlinked(OTHER_SESSION, 1, "")),
        (State.FEEDING, Fed(OTHER_SESSION)),
    ],
)
def test_an_answer_for_another_session_is_refused(state: State, message: Message) -> None:
    stepped = state in (State.SESSION, State.CLOSING)
    core = Joined(state, steps=1 if stepped else 0).ends[D]
    before = snapshot(core)
    with pytest.raises(BadRequest, match="another session"):
        hear(core, message)
    assert snapshot(core) == before


def test_steps_are_counted_and_answered_in_order() -> None:
    joined = Joined(State.SESSION)
    for number in (3, 9, 4):
        joined.say(D, step(number))
    assert {end.steps_under_way for end in joined.ends.values()} == {3}
    for wrong in (9, 4, 8):
        before = snapshot(joined.ends[D])
        with pytest.raises(BadRequest, match="out of order"):
            hear(joined.ends[D], output(wrong))
        with pytest.raises(BadRequest, match="out of order"):
            hear(joined.ends[D], ErrorMessage("busy", "full", step=wrong))
        assert snapshot(joined.ends[D]) == before
    joined.say(L, output(3))
    joined.say(L, ErrorMessage("busy", "full", step=9))
    assert {end.steps_under_way for end in joined.ends.values()} == {1}
    joined.say(L, output(4))
    assert {end.steps_under_way for end in joined.ends.values()} == {0}
    with pytest.raises(BadRequest):
        hear(joined.ends[D], output(4))


def test_the_number_of_steps_under_way_is_limited() -> None:
    joined = Joined(State.SESSION, steps=MAX_STEPS_UNDER_WAY)
    with pytest.raises(LocalMisuse, match="under way"):
        joined.ends[D].send(step(1000))
    with pytest.raises(BadRequest, match="under way"):
        hear(joined.ends[L], step(1000))
    joined.say(L, output(0))
    joined.say(D, step(1000))


def test_a_connection_carries_one_session_after_the_other() -> None:
    joined = Joined(State.SESSION, steps=2)
    joined.say(D, Close(SESSION))
    joined.say(L, output(0))  # one was answered before the close arrived, one never is
    joined.say(L, Closed(SESSION))
    assert {end.session for end in joined.ends.values()} == {None}
    assert {end.steps_under_way for end in joined.ends.values()} == {0}
    joined.say(D, Open(OTHER_SESSION, 0, 6, 64))
    joined.say(L, Opened(OTHER_SESSION, 1))
    joined.say(D, step(0, OTHER_SESSION))
    joined.say(L, output(0, OTHER_SESSION))
    with pytest.raises(UnknownSession):
        hear(joined.ends[L], step(1))


def test_a_refused_open_leaves_the_connection_idle_for_the_next() -> None:
    joined = Joined(State.OPENING)
    joined.say(L, ErrorMessage("busy", "full"))
    assert joined.states == {State.IDLE}
    joined.say(D, OPEN)
    joined.say(L, OPENED)


@pytest.mark.parametrize(("start", "end"), [(3, 3), (4, 3)])
def test_blocks_that_are_no_span(start: int, end: int) -> None:
    with pytest.raises(BadRequest, match="no span"):
        hear(Joined(State.IDLE).ends[L], Open(SESSION, start, end, 64))
    with pytest.raises(BadRequest, match="no span"):
        hear(
            Joined(State.GREETING).ends[D],
            Welcome(PROTOCOL_VERSION, "test", PEER, MODEL, start, end, "float32", "none", 1 << 20),
        )


@pytest.mark.parametrize("n_bytes", [0, len(PAYLOAD) - 1, len(PAYLOAD) + 1])
@pytest.mark.parametrize("sender", Role)
def test_a_raw_payload_has_the_size_of_its_tensor(n_bytes: int, sender: Role) -> None:
    core = Joined(State.SESSION, steps=1).ends[sender.other]
    message = step(1) if sender is D else output(0)
    before = snapshot(core)
    with pytest.raises(BadTensor):
        core.receive(Frame(encode_header(message), bytearray(n_bytes)))
    assert snapshot(core) == before


def test_a_compressed_tensor_larger_than_the_limit_is_refused() -> None:
    core = Joined(State.SESSION).ends[L]
    core.limits = Limits(payload=1000)
    meta = TensorMeta("float32", (1, 251), "zstd")
    with pytest.raises(BadTensor, match="too large"):
        core.receive(Frame(encode_header(Step(SESSION, 1, 0, 0, meta)), bytearray(10)))


def test_a_ping_does_not_disturb_a_session() -> None:
    joined = Joined(State.SESSION, steps=1)
    joined.say(D, Ping(1))
    assert {end.steps_under_way for end in joined.ends.values()} == {1}


def fed_session() -> Joined:
    joined = Joined(State.IDLE)
    joined.say(D, Open(SESSION, 0, 6, 64, bytes(FEED_BYTES)))
    joined.say(L, OPENED)
    return joined


def test_a_session_with_a_feed_also_answers_steps_that_came_elsewhere() -> None:
    joined = fed_session()
    joined.say(L, output(7))
    joined.say(L, ErrorMessage("busy", "full", step=8))
    joined.say(D, step(9))
    joined.say(D, step(11))
    joined.say(L, output(10))
    assert {end.steps_under_way for end in joined.ends.values()} == {2}
    with pytest.raises(BadRequest, match="out of order"):
        hear(joined.ends[D], output(11))
    joined.say(L, output(9))
    joined.say(L, output(11))
    assert {end.steps_under_way for end in joined.ends.values()} == {0}


def test_the_right_to_answer_such_steps_ends_with_the_session() -> None:
    joined = fed_session()
    joined.say(D, Close(SESSION))
    joined.say(L, output(3))
    joined.say(L, Closed(SESSION))
    joined.say(D, OPEN)
    joined.say(L, OPENED)
    with pytest.raises(BadRequest):
        hear(joined.ends[D], output(4))


def test_steps_of_a_feed_are_not_answered_and_not_counted() -> None:
    joined = Joined(State.FED)
    for number in range(MAX_STEPS_UNDER_WAY + 1):
        joined.say(D, step(number))
    assert {end.steps_under_way for end in joined.ends.values()} == {0}
    with pytest.raises(BadRequest):
        hear(joined.ends[D], output(0))
