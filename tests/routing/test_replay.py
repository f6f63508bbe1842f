"""The replay machine against a model of a chain in which a wrong cache shows."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.routing.history import History
from swarmd.routing.replay import Replay, Run


def block(index: int, previous: int, value: int) -> int:
    """What block `index` gives for `value`, when the cache ends with the state `previous`."""
    return hash((index, previous, value)) & 0xFFFFFFFF


class FakePeer:
    """Its cache holds, for each block and position, a digest of all inputs up to there."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.caches: dict[int, list[int]] = {index: [] for index in span}

    def run(self, start: int, inputs: list[int]) -> list[int]:
        assert start <= len(self.caches[self.span.start]), "a step beyond the cache"
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


class Shell:
    """Carries out the machine's instructions, as `client/chain_session.py` does over sockets."""

    def __init__(
        self, spans: list[Span], chunk: int, rng: random.Random, *, split: bool = True
    ) -> None:
        self.machine = Replay(spans, chunk_tokens=chunk)
        self.rng = rng
        self.split = split
        self.peers = {key: FakePeer(span) for key, span in self.machine.hops}
        self.inputs: dict[int, list[int]] = {key: [] for key in self.peers}
        self.out: list[int] = []
        self.under_way: list[tuple[Run, list[int]]] = []
        self.positions_run = 0

    def step(self, start: int, tokens: list[int], failure_rate: float) -> None:
        for history in [*self.inputs.values(), self.out]:
            del history[start:]
        self.machine.begin(start, len(tokens))
        self.inputs[self.machine.hops[0][0]] += tokens
        failures = 6
        while not self.machine.complete:
            for run in self.machine.runnable():
                inputs = self.inputs[run.hop][run.start : run.end]
                self.under_way.append((run, self.peers[run.hop].run(run.start, inputs)))
                self.positions_run += len(inputs)
            if failures and self.rng.random() < failure_rate:
                failures -= 1
                self.lose(self.rng.choice(self.machine.hops)[0])
            self.rng.shuffle(self.under_way)
            if self.under_way and self.rng.random() < 0.9:
                self.deliver(*self.under_way.pop())
            for key in self.machine.lost_hops:
                self.replace(key)

    def deliver(self, run: Run, outputs: list[int]) -> None:
        keep = self.machine.finished(run)
        if keep is None:
            return
        target = self.out if keep.after is None else self.inputs[keep.after]
        assert len(target) >= keep.start or keep.start == keep.end
        target += outputs[keep.start - run.start : keep.end - run.start]

    def lose(self, key: int) -> None:
        assert self.machine.lost(key)
        del self.peers[key]

    def replace(self, key: int) -> None:
        span = dict(self.machine.hops)[key]
        cuts = sorted(self.rng.sample(range(span.start + 1, span.end), k=min(1, len(span) - 1)))
        edges = [span.start, *(cuts if self.split and self.rng.random() < 0.5 else []), span.end]
        spans = [Span(a, b) for a, b in itertools.pairwise(edges)]
        keys = self.machine.replace(key, spans)
        for new, span in zip(keys, spans, strict=True):
            self.peers[new] = FakePeer(span)
            self.inputs[new] = []
        self.inputs[keys[0]] = self.inputs.pop(key)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_hops=st.integers(1, 4),
    chunk=st.integers(1, 7),
    rate=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_any_order_of_failures_gives_the_undisturbed_outputs(
    seed: int, n_hops: int, chunk: int, rate: float
) -> None:
    rng = random.Random(seed)
    n_blocks = 2 * n_hops
    spans = [Span(2 * i, 2 * i + 2) for i in range(n_hops)]
    shell = Shell(spans, chunk, rng)
    tokens: list[int] = []
    for _ in range(6):
        start = rng.randint(max(0, len(tokens) - 3), len(tokens))
        new = [rng.randrange(1000) for _ in range(rng.randint(1, 9))]
        tokens[start:] = new
        shell.step(start, new, rate)
        assert shell.out == undisturbed(tokens, n_blocks)
    assert next(s.start for _, s in shell.machine.hops) == 0


def test_only_the_lost_span_is_run_again() -> None:
    shell = Shell([Span(0, 2), Span(2, 4), Span(4, 6)], 512, random.Random(1), split=False)
    shell.step(0, list(range(20)), 0.0)
    before = shell.positions_run
    shell.lose(shell.machine.hops[1][0])
    shell.step(20, [77], 0.0)
    assert shell.positions_run - before == 1 + 21 + 1


def test_late_result_of_a_lost_hop_is_void() -> None:
    machine = Replay([Span(0, 1), Span(1, 2)])
    machine.begin(0, 3)
    (run,) = machine.runnable()
    machine.lost(run.hop)
    assert machine.finished(run) is None
    assert machine.arrived(machine.hops[1][0]) == 0
    assert machine.runnable() == []


def test_chunks_of_a_prefill_flow_like_a_pipeline() -> None:
    machine = Replay([Span(0, 1), Span(1, 2)], chunk_tokens=4)
    machine.begin(0, 8)
    (first,) = machine.runnable()
    machine.finished(first)
    both = machine.runnable()
    assert [(run.start, run.end) for run in both] == [(4, 8), (0, 4)]


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
    machine.finished(run)
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
