"""The replay machine against a model of a chain in which a wrong cache shows."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.routing.history import History
from swarmd.routing.replay import OutOfOrder, Replay


def block(index: int, previous: int, value: int) -> int:
    """What block `index` gives for `value`, when the cache ends with the state `previous`."""
    return hash((index, previous, value)) & 0xFFFFFFFF


class FakePeer:
    """Its cache holds, for each block and position, a digest of all inputs up to there."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.caches: dict[int, list[int]] = {index: [] for index in span}

    @property
    def length(self) -> int:
        return len(self.caches[self.span.start])

    def run(self, start: int, inputs: list[int]) -> list[int]:
        assert start <= self.length, "a step beyond the cache"
        values = inputs
        for index in self.span:
            cache = self.caches[index]
            del cache[start:]
            outputs = []
            for value in values:
                cache.append(block(index, cache[-1] if cache else 0, value))
                outputs.append(cache[-1])
            values = outputs
        return values


def undisturbed(tokens: list[int], n_blocks: int) -> list[int]:
    return FakePeer(Span(0, n_blocks)).run(0, tokens)


@dataclass
class Peer:
    """A serving peer on the wire: what waits for it, and the highest number that it took."""

    blocks: FakePeer
    session: int
    taken: int = 0
    successor: Peer | None = None


@dataclass(frozen=True)
class Message:
    """A step on its way to a peer (`outputs` None), or its outputs on their way to the client."""

    number: int
    start: int
    values: list[int]
    forward: int = 0
    answer_of: int | None = None


class Shell:
    """Carries out the machine's instructions, as `client/chain_session.py` does over sockets, on a
    network in which each channel keeps its order, and nothing else has one."""

    def __init__(
        self,
        spans: list[Span],
        chunk: int,
        rng: random.Random,
        *,
        split: bool = True,
        ring: bool = False,
    ) -> None:
        self.machine = Replay(spans, chunk_tokens=chunk)
        self.rng = rng
        self.split = split
        self.ring = ring
        self.peers = {key: Peer(FakePeer(span), key) for key, span in self.machine.hops}
        self.inputs: dict[int, list[int]] = {key: [] for key in self.peers}
        self.out: list[int] = []
        self.channels: dict[tuple[object, object], deque[Message]] = defaultdict(deque)
        self.positions_run = 0
        self.positions_sent = 0

    def step(
        self,
        start: int,
        tokens: list[int],
        failure_rate: float,
        *,
        ahead: Sequence[list[int]] = (),
    ) -> None:
        """A step; while it is under way, the runs `ahead` are put in behind it. One whose tokens
        were put in so goes on with them."""
        first = self.inputs[self.machine.hops[0][0]]
        if tokens and start == self.machine.target and first[start : start + len(tokens)] == tokens:
            self.machine.resume(len(tokens))
        else:
            for history in [*self.inputs.values(), self.out]:
                del history[start:]
            self.machine.begin(start, len(tokens))
            first += tokens
        failures, idle, ahead = 6, 0, deque(ahead)
        while not self.machine.complete:
            if ahead and self.rng.random() < 0.5:
                self.machine.extend(len(ahead[0]))
                self.inputs[self.machine.hops[0][0]] += ahead.popleft()
            self.send()
            if failures and self.rng.random() < failure_rate:
                failures -= 1
                self.disturb()
            if self.ring and self.rng.random() < 0.3:
                self.link(self.rng.choice(self.machine.hops)[0])
            idle = 0 if self.carry() else idle + 1
            if idle > 3:
                self.overdue()
            for key in self.machine.lost_hops:
                self.replace(key)

    def send(self) -> None:
        for run in self.machine.runnable():
            values = self.inputs[run.hop][run.start : run.end]
            assert len(values) == run.end - run.start
            assert run.path[0] == run.hop
            self.positions_sent += len(values)
            step = Message(run.number, run.start, values, len(run.path) - 1)
            self.channels["client", run.hop].append(step)

    def disturb(self) -> None:
        key = self.rng.choice(self.machine.hops)[0]
        if self.ring and self.rng.random() < 0.5:  # an edge breaks, noticed or not
            peer = self.peers[key]
            if peer.successor is not None:
                self.channels.pop((key, peer.successor.session), None)
                peer.successor = None
                if self.rng.random() < 0.5:
                    self.machine.unlinked(key)
        else:
            self.lose(key)

    def overdue(self) -> None:
        """Nothing is on its way: what the machine waits for was lost on a broken edge."""
        for due in self.machine.due():
            if not any(self.channels.values()):
                assert due.fed, "the client waits for a step that it sent itself"
                keys = [key for key, _ in self.machine.hops]
                self.machine.unlinked(keys[keys.index(due.hop) - 1])

    def link(self, key: int) -> None:
        keys = [key for key, _ in self.machine.hops]
        at = keys.index(key)
        if at + 1 < len(keys) and {key, keys[at + 1]} <= self.peers.keys():
            self.machine.unlinked(key)
            if self.peers[key].successor is None or self.rng.random() < 0.1:
                self.peers[key].successor = self.peers[keys[at + 1]]
            self.machine.linked(key)

    def carry(self) -> bool:
        """One message arrives somewhere. False if none is on its way."""
        ready = [ends for ends, waiting in self.channels.items() if waiting]
        if not ready:
            return False
        ends = self.rng.choice(ready)
        message, target = self.channels[ends].popleft(), ends[1]
        if target == "client":
            self.deliver(message)
        elif target in self.peers:
            self.serve(self.peers[target], message)  # type: ignore[index]
        return True

    def serve(self, peer: Peer, message: Message) -> None:
        if message.number <= peer.taken:
            return
        peer.taken = message.number
        if message.start > peer.blocks.length:  # sent over a link that was made meanwhile
            refusal = Message(message.number, message.start, [], answer_of=peer.session)
            self.channels[peer.session, "client"].append(refusal)
            return
        outputs = peer.blocks.run(message.start, message.values)
        self.positions_run += len(outputs)
        if message.forward and peer.successor is not None:
            step = Message(message.number, message.start, outputs, message.forward - 1)
            self.channels[peer.session, peer.successor.session].append(step)
        answer = Message(message.number, message.start, outputs, answer_of=peer.session)
        self.channels[peer.session, "client"].append(answer)

    def deliver(self, message: Message) -> None:
        assert message.answer_of is not None
        if message.answer_of not in self.peers:
            return
        keep = self.machine.finished(message.answer_of, message.number)
        if keep is None:
            return
        assert message.values, "what is refused must be void"
        assert keep.first == message.start
        target = self.out if keep.after is None else self.inputs[keep.after]
        assert len(target) == keep.start or keep.start == keep.end
        target += message.values[keep.start - keep.first : keep.end - keep.first]

    def lose(self, key: int) -> None:
        assert self.machine.lost(key)
        del self.peers[key]
        for ends in list(self.channels):
            if key in ends:
                del self.channels[ends]

    def replace(self, key: int) -> None:
        span = dict(self.machine.hops)[key]
        cuts = sorted(self.rng.sample(range(span.start + 1, span.end), k=min(1, len(span) - 1)))
        edges = [span.start, *(cuts if self.split and self.rng.random() < 0.5 else []), span.end]
        spans = [Span(a, b) for a, b in itertools.pairwise(edges)]
        history = self.inputs.pop(key)
        standby = FakePeer(span)
        cached = self.rng.randint(0, len(history)) if len(spans) == 1 else 0
        standby.run(0, history[:cached])
        keys = self.machine.replace(key, spans, cached=cached)
        for new, span in zip(keys, spans, strict=True):
            self.peers[new] = Peer(standby if cached else FakePeer(span), new)
            self.inputs[new] = []
        self.inputs[keys[0]] = history


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_hops=st.integers(1, 4),
    chunk=st.integers(1, 7),
    rate=st.sampled_from([0.0, 0.05, 0.3]),
    ring=st.booleans(),
)
def test_any_order_of_failures_gives_the_undisturbed_outputs(
    seed: int, n_hops: int, chunk: int, rate: float, ring: bool
) -> None:
    rng = random.Random(seed)
    n_blocks = 2 * n_hops
    spans = [Span(2 * i, 2 * i + 2) for i in range(n_hops)]
    shell = Shell(spans, chunk, rng, ring=ring)
    tokens: list[int] = []
    for _ in range(6):
        start = rng.randint(max(0, len(tokens) - 3), len(tokens))
        new = [rng.randrange(1000) for _ in range(rng.randint(1, 9))]
        tokens[start:] = new
        shell.step(start, new, rate)
        assert shell.out == undisturbed(tokens, n_blocks)
    assert next(s.start for _, s in shell.machine.hops) == 0
    for due in settled(shell).machine.due():
        assert due.fed, "a copy may be lost with its link; an answer may not"


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_hops=st.integers(1, 4),
    chunk=st.integers(1, 7),
    rate=st.sampled_from([0.0, 0.05, 0.3]),
    ring=st.booleans(),
)
def test_what_is_put_in_ahead_changes_no_output(
    seed: int, n_hops: int, chunk: int, rate: float, ring: bool
) -> None:
    """Of the runs that are put in behind a step, the next steps ask for some, and cut the rest."""
    rng = random.Random(seed)
    shell = Shell([Span(2 * i, 2 * i + 2) for i in range(n_hops)], chunk, rng, ring=ring)
    tokens: list[int] = []
    plan: deque[list[int]] = deque()
    for _ in range(12):
        if plan and rng.random() < 0.7:
            start, new = len(tokens), plan.popleft()
        else:
            plan.clear()
            start = rng.randint(max(0, len(tokens) - 3), len(tokens))
            new = [rng.randrange(1000) for _ in range(rng.randint(1, 9))]
        more = [[rng.randrange(1000) for _ in range(rng.randint(1, 4))] for _ in range(3)]
        more = more[: rng.randint(0, 3) - len(plan)] if len(plan) < 3 else []
        in_before = sum(map(len, plan))
        tokens[start:] = new
        shell.step(start, new, rate, ahead=more)
        assert shell.out[: len(tokens)] == undisturbed(tokens, n_blocks=2 * n_hops)
        held = shell.inputs[shell.machine.hops[0][0]]
        came = len(held) - len(tokens) - in_before  # the step may be over before all were put in
        for one in more:
            if came < len(one):
                break
            came -= len(one)
            plan.append(one)
        assert held == [*tokens, *(token for one in plan for token in one)]


def test_steps_put_in_ahead_travel_behind_the_one_under_way() -> None:
    machine, (a, b) = linked_chain(2)
    machine.begin(0, 3)
    (first,) = machine.runnable()
    machine.extend(2)
    (second,) = machine.runnable()
    assert (second.start, second.end, second.path) == (3, 5, (a, b))
    assert machine.finished(a, first.number) is not None
    keep = machine.finished(a, second.number)
    assert keep is not None
    assert keep.behind
    assert machine.finished(b, first.number) is not None
    assert machine.complete
    machine.resume(2)
    assert not machine.complete
    assert machine.runnable() == []
    machine.finished(b, second.number)
    assert machine.complete
    with pytest.raises(ValueError, match="behind 5"):
        machine.resume(1)


def test_a_step_that_goes_another_way_voids_what_was_put_in_ahead() -> None:
    machine, (a, b) = linked_chain(2)
    machine.begin(0, 3)
    (first,) = machine.runnable()
    machine.extend(2)
    (second,) = machine.runnable()
    for run in (first, second):
        machine.finished(a, run.number)
        machine.finished(b, run.number)
    with pytest.raises(ValueError, match="3 are complete"):
        machine.begin(4, 1)  # nobody asked for position 3
    machine.begin(2, 2)
    (third,) = machine.runnable()
    assert (third.start, third.end, third.path) == (2, 4, (a, b))
    assert machine.finished(a, third.number) is not None
    assert machine.arrived(b) == 4


def settled(shell: Shell) -> Shell:
    """Copies that come after the answer have come."""
    while shell.carry():
        pass
    return shell


def test_only_the_lost_span_is_run_again() -> None:
    shell = Shell([Span(0, 2), Span(2, 4), Span(4, 6)], 512, random.Random(1), split=False)
    shell.step(0, list(range(20)), 0.0)
    before = shell.positions_run
    shell.lose(shell.machine.hops[1][0])
    shell.replace(shell.machine.hops[1][0])
    held = shell.machine.cached(shell.machine.hops[1][0])
    shell.step(20, [77], 0.0)
    assert shell.positions_run - before == 1 + (21 - held) + 1


def test_late_result_of_a_lost_hop_is_void() -> None:
    machine = Replay([Span(0, 1), Span(1, 2)])
    machine.begin(0, 3)
    (run,) = machine.runnable()
    machine.lost(run.hop)
    assert machine.finished(run.hop, run.number) is None
    assert machine.arrived(machine.hops[1][0]) == 0
    assert machine.runnable() == []


def test_chunks_of_a_prefill_flow_like_a_pipeline() -> None:
    machine = Replay([Span(0, 1), Span(1, 2)], chunk_tokens=4)
    machine.begin(0, 28)
    first, *others = machine.runnable()
    assert [(run.start, run.end) for run in others] == [(4, 8), (8, 12), (12, 16)]
    machine.finished(first.hop, first.number)
    assert [(run.start, run.end) for run in machine.runnable()] == [(16, 20), (0, 4)]
    with pytest.raises(OutOfOrder):
        machine.finished(first.hop, others[1].number)


def linked_chain(n: int, chunk: int = 512) -> tuple[Replay, list[int]]:
    machine = Replay([Span(i, i + 1) for i in range(n)], chunk_tokens=chunk)
    keys = [key for key, _ in machine.hops]
    for key in keys:
        machine.linked(key)
    assert [machine.is_linked(key) for key in keys] == [True] * (n - 1) + [False]
    return machine, keys


def test_in_a_ring_the_client_sends_to_the_first_hop_only() -> None:
    shell = Shell([Span(0, 1), Span(1, 2), Span(2, 3)], 4, random.Random(2), ring=True)
    for key, _ in shell.machine.hops:
        shell.link(key)
    shell.ring = False  # the links stay as they are
    shell.step(0, list(range(10)), 0.0)
    settled(shell).step(10, [7], 0.0)
    assert shell.positions_sent == 11
    assert settled(shell).out == undisturbed([*range(10), 7], 3)


def test_a_step_need_not_wait_for_the_copies_of_the_one_before() -> None:
    machine, (a, b, c) = linked_chain(3)
    machine.begin(0, 1)
    (first,) = machine.runnable()
    assert first.path == (a, b, c)
    assert machine.finished(c, first.number) is not None
    assert machine.complete
    machine.begin(1, 1)
    (second,) = machine.runnable()
    assert second.path == (a, b, c)
    for key in (a, b):
        assert machine.finished(key, first.number) is not None
        assert machine.finished(key, second.number) is not None
    assert [due.hop for due in machine.due()] == [c]


def test_a_cut_back_shortens_copies_that_are_on_their_way() -> None:
    machine, (a, b) = linked_chain(2)
    machine.begin(0, 5)
    (run,) = machine.runnable()
    machine.finished(b, run.number)
    machine.begin(3, 1)  # two of five drafts were wrong; the copy of the first hop is still out
    machine.runnable()
    keep = machine.finished(a, run.number)
    assert keep is not None
    assert (keep.first, keep.start, keep.end) == (0, 0, 3)


def test_where_a_link_breaks_the_client_goes_on_as_a_hub() -> None:
    machine, (a, b, c) = linked_chain(3)
    machine.begin(0, 2)
    (run,) = machine.runnable()
    machine.finished(a, run.number)
    assert machine.runnable() == []
    machine.unlinked(a)
    (again,) = machine.runnable()
    assert (again.hop, again.path) == (b, (b, c))
    assert machine.finished(b, run.number) is None, "it came after all: void"
    assert machine.finished(c, run.number) is None
    machine.finished(b, again.number)
    machine.finished(c, again.number)
    assert machine.complete


def test_what_the_client_sends_never_overtakes_what_is_fed() -> None:
    """A higher number would make the peer pass over the lower one."""
    machine, (a, b) = linked_chain(2, chunk=2)
    machine.begin(0, 2)
    (first,) = machine.runnable()
    assert first.path == (a, b)
    machine.finished(a, first.number)
    machine.begin(0, 2)  # cut back to nothing, and then not linked for one run
    machine.unlinked(a)
    (direct,) = machine.runnable()
    assert direct.path == (a,)
    machine.finished(a, direct.number)
    (to_b,) = machine.runnable()
    machine.linked(a)
    machine.finished(b, to_b.number)
    assert machine.complete


def test_losing_a_hop_gives_up_what_it_fed() -> None:
    machine, (a, b, c) = linked_chain(3)
    machine.begin(0, 2)
    (run,) = machine.runnable()
    machine.finished(a, run.number)
    machine.lost(b)
    assert not machine.is_linked(a)
    assert not machine.is_linked(b)
    assert machine.finished(c, run.number) is None
    (new,) = machine.replace(b, [Span(1, 2)])
    (again,) = machine.runnable()
    assert again.path == (new,)


def test_a_step_beyond_what_is_complete_is_refused() -> None:
    machine = Replay([Span(0, 1)])
    with pytest.raises(ValueError, match="0 are complete"):
        machine.begin(1, 1)
    with pytest.raises(ValueError, match="must join"):
        Replay([Span(0, 1), Span(2, 3)])
    machine.begin(0, 3)  # and fails: its positions arrived, but never left
    with pytest.raises(ValueError, match="0 are complete"):
        machine.begin(3, 1)
    machine.begin(0, 3)
    (run,) = machine.runnable()
    machine.finished(run.hop, run.number)
    machine.begin(3, 1)


@given(
    appends=st.lists(st.integers(1, 9), max_size=30),
    seed=st.integers(0, 99),
    page=st.integers(1, 8),
)
def test_history_reads_back_what_was_appended(appends: list[int], seed: int, page: int) -> None:
    rng = random.Random(seed)
    history, plain = History(3, page_positions=page), bytearray()
    for count in appends:
        data = rng.randbytes(3 * count)
        history.append(data)
        plain += data
        if rng.random() < 0.3:
            cut = rng.randint(0, len(history))
            history.cut(cut)
            del plain[3 * cut :]
        start = rng.randint(0, len(history))
        end = rng.randint(start, len(history))
        assert history.read(start, end) == bytes(plain[3 * start : 3 * end])
    assert len(history) == len(plain) // 3


def test_bytes_copied_for_a_token_do_not_grow_with_the_position() -> None:
    history = History(16)
    for _ in range(5000):
        before = history.bytes_copied
        history.append(bytes(16))
        assert history.bytes_copied - before == 16
