"""The ground floor: blocks, errors, addresses, task owners, the state folder."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd import errors
from swarmd.blocks import AUTO, BlockRequest, Span, coverage, holes, parse_blocks
from swarmd.errors import (
    BlocksOutOfRange,
    ReplayExhausted,
    StateError,
    SwarmdError,
    UsageError,
    error_classes,
)
from swarmd.peers import Address, parse_address
from swarmd.state import StateFolder
from swarmd.tasks import TaskOwner, periodic
from tests.conftest import Runner

spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda t: Span(t[0], t[0] + t[1]))

# ---- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("auto", AUTO),
        (" auto ", AUTO),
        ("12", BlockRequest(count=12)),
        ("0:1", BlockRequest(span=Span(0, 1))),
        ("10:20", BlockRequest(span=Span(10, 20))),
        (" 3:4\n", BlockRequest(span=Span(3, 4))),
    ],
)
def test_parse_blocks(text: str, request_: BlockRequest) -> None:
    assert parse_blocks(text) == request_
    assert parse_blocks(str(request_)) == request_


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "5:5", "6:5", "a:b", "1:", ":2", "1-2", "1:2:3", "1.5", "٣", "1" * 5000],
)
def test_what_is_no_block_request(text: str) -> None:
    with pytest.raises(UsageError, match="10:20") as caught:
        parse_blocks(text)
    assert caught.value.exit_code == 2


def test_a_request_is_checked_against_the_model() -> None:
    for fits in ("auto", "6", "0:6", "5:6"):
        assert parse_blocks(fits).checked(6) == parse_blocks(fits)
    for too_much in ("7", "0:7", "6:7"):
        with pytest.raises(BlocksOutOfRange, match="0:6"):
            parse_blocks(too_much).checked(6)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (1, 1), (2, 1), (-1, 1)])
def test_a_span_is_never_empty(start: int, end: int) -> None:
    with pytest.raises(ValueError):
        Span(start, end)


@given(spans, spans)
def test_spans_are_sets_of_blocks(one: Span, two: Span) -> None:
    assert list(one) == [block for block in range(60) if block in one]
    assert len(one) == len(list(one))
    assert one.covers(two) == (set(two) <= set(one))


@given(st.lists(spans, max_size=8), st.integers(1, 45))
def test_coverage_and_holes(held: list[Span], n_blocks: int) -> None:
    counts = coverage(held, n_blocks)
    assert counts == [sum(block in span for span in held) for block in range(n_blocks)]
    found = holes(counts)
    assert [b for hole in found for b in hole] == [b for b in range(n_blocks) if not counts[b]]
    for left, right in itertools.pairwise(found):
        assert left.end < right.start, "holes are maximal and in order"


# ---- errors ------------------------------------------------------------------------------------


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    shown: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?:\s|$)", line):
            shown.append((len(match[1]) // 4, match[2]))
    by_depth: dict[int, str] = {}
    parents = {}
    for depth, name in shown:
        by_depth[depth] = name
        parents[name] = by_depth.get(depth - 1)
    ours = [cls for cls in error_classes() if cls.__module__ == "swarmd.errors"]
    assert parents == {
        cls.__name__: cls.__base__.__name__ if cls is not SwarmdError else None  # type: ignore[union-attr]
        for cls in ours
    }


def test_all_names_every_class() -> None:
    named = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert named == {cls.__name__ for cls in error_classes() if cls.__module__ == "swarmd.errors"}
    assert sorted(errors.__all__) == sorted(set(errors.__all__))


def test_exit_codes() -> None:
    for cls in error_classes():
        assert cls.exit_code == (2 if issubclass(cls, UsageError) else 1), cls
        assert cls.__doc__, f"{cls.__name__} says nothing of itself"


def test_only_what_may_go_better_is_retried_and_only_the_guilty_are_blamed() -> None:
    blamed = {cls for cls in error_classes() if cls.blames_peer}
    assert blamed == {errors.InternalError, *error_classes(errors.PeerFailure)}
    assert all(cls.retryable for cls in blamed)
    for cls in (*error_classes(UsageError), ReplayExhausted, errors.BadRequest, errors.BadTensor):
        assert not cls.retryable, cls
    transient = {cls for cls in error_classes() if cls.transient}
    assert transient == {errors.Busy, errors.DeadlineExceeded, errors.UnknownSession}
    assert all(cls.retryable and not cls.blames_peer for cls in transient)


def test_replay_exhausted_tells_its_story() -> None:
    error = ReplayExhausted("gave up:", story=["a lost", "b lost"])
    assert str(error).splitlines() == ["gave up:", "  a lost", "  b lost"]
    assert error.story == ("a lost", "b lost")


# ---- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:31330", Address("127.0.0.1", 31330)),
        (" host.example:1 ", Address("host.example", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[2001:db8::7]:80", Address("2001:db8::7", 80)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(parse_address(str(address))) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":80", "::1:80", "[]:80", "host:0", "host:65536", "host:-1",
        "host:+1", "host:1e3", "host:８０", "host:٣", "host: 80", "[::1]", "host:99999999999",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_an_endless_port_is_no_address() -> None:
    with pytest.raises(UsageError):
        parse_address("host:" + "9" * 5000)


def test_loopback() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert Address(host, 1).is_loopback
    for host in ("10.0.0.1", "0.0.0.0", "::", "example.org"):
        assert not Address(host, 1).is_loopback


# ---- tasks -------------------------------------------------------------------------------------


async def forever(ended: list[str] | None = None, name: str = "") -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if ended is not None:
            ended.append(name)


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


def test_a_childs_failure_reaches_the_owner_and_ends_the_others(run_either: Runner) -> None:
    async def work() -> None:
        ended: list[str] = []
        with pytest.raises(ZeroDivisionError):
            async with TaskOwner("test") as owner:
                owner.spawn(forever(ended, "sibling"), name="sibling")
                owner.spawn(fail(ZeroDivisionError()), name="child")
                await forever(ended, "body")
        assert sorted(ended) == ["body", "sibling"]
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0, "the cancel that woke the body is taken back"
        await asyncio.sleep(0)

    run_either(work())


def test_a_failure_that_is_logged_harms_nobody(
    run_either: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with TaskOwner("test") as owner:
            other = owner.spawn(forever(), name="other")
            bad = owner.spawn(fail(KeyError("x")), name="bad", errors="log")
            await asyncio.wait([bad])
            await asyncio.sleep(0)
            assert not other.done()
            assert len(owner) == 1
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "test.bad failed: KeyError" in record.getMessage()
        assert record.exc_info is None, "one line, no traceback"

    run_either(work())


def test_leaving_the_block_cancels_and_awaits_the_children(run_either: Runner) -> None:
    async def work() -> None:
        ended: list[str] = []
        async with TaskOwner("test") as owner:
            tasks = [owner.spawn(forever(ended, str(n)), name=str(n)) for n in range(3)]
            await asyncio.sleep(0)
            assert len(owner) == 3
        assert all(task.cancelled() for task in tasks)
        assert sorted(ended) == ["0", "1", "2"]

    run_either(work())


def test_a_cancel_of_the_owner_stays_a_cancel(run_either: Runner) -> None:
    async def work() -> None:
        ended: list[str] = []

        async def own() -> None:
            async with TaskOwner("test") as owner:
                owner.spawn(forever(ended, "child"), name="child")
                await forever()

        task = asyncio.ensure_future(own())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["child"]

    run_either(work())


def test_a_cancel_during_close_waits_for_the_children(run_either: Runner) -> None:
    async def work() -> None:
        release, cancelled = asyncio.Event(), asyncio.Event()
        done: list[str] = []

        async def slow_to_end() -> None:
            try:
                await forever()
            finally:
                cancelled.set()
                await release.wait()
                done.append("cleanup")

        async def own() -> None:
            async with TaskOwner("test") as owner:
                owner.spawn(slow_to_end(), name="slow")
                await asyncio.sleep(0)

        task = asyncio.ensure_future(own())
        await cancelled.wait()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["cleanup"]

    run_either(work())


def test_the_bodys_own_error_comes_out_and_close_is_idempotent(run_either: Runner) -> None:
    async def work() -> None:
        owner = TaskOwner("test")
        with pytest.raises(KeyError):
            async with owner:
                owner.spawn(forever(), name="child")
                raise KeyError("body")
        await owner.close()
        await owner.close()
        with pytest.raises(RuntimeError, match="closing"):
            owner.spawn(forever(), name="late")

    run_either(work())


def test_periodic_runs_again_when_woken(run_either: Runner) -> None:
    async def work() -> None:
        wake, ran = asyncio.Event(), asyncio.Semaphore(0)

        async def action() -> None:
            ran.release()

        async with TaskOwner("test") as owner, asyncio.timeout(20):
            owner.spawn(periodic(action, interval=3600, wake=wake), name="periodic")
            for _ in range(3):
                await ran.acquire()
                wake.set()

    run_either(work())


# ---- state -------------------------------------------------------------------------------------


def test_an_identity_is_kept_and_handles_get_different_ones(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with StateFolder(folder).identity() as first, StateFolder(folder).identity() as second:
        assert first.peer_id != second.peer_id
    with StateFolder(folder).identity() as again:
        assert again.peer_id == first.peer_id, "the first that is free"
    with StateFolder(folder).identity() as one, StateFolder(folder).identity() as two:
        assert (one.peer_id, two.peer_id) == (first.peer_id, second.peer_id)


def test_processes_get_different_identities(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from swarmd.state import StateFolder\n"
        "with StateFolder(Path(sys.argv[1])).identity() as identity:\n"
        "    print(identity.peer_id, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as one, start() as two:
        assert one.stdout is not None
        assert two.stdout is not None
        found = {one.stdout.readline().strip(), two.stdout.readline().strip()}
        with StateFolder(tmp_path).identity() as ours:
            found.add(str(ours.peer_id))
        one.communicate()
        two.communicate()
    assert len(found) == 3
    assert "" not in found
    with StateFolder(tmp_path).identity() as again:
        assert str(again.peer_id) in found, "a process that ended left its identity to the next"


def test_modes(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with StateFolder(folder).identity():
        pass
    assert stat.S_IMODE((folder / "identity" / "0.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "identity").stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len((folder / "identity" / "0.key").read_bytes()) == 32


@pytest.mark.parametrize("content", [b"x", b"k" * 31, b"k" * 33, b"-----BEGIN PRIVATE KEY-----"])
def test_a_garbage_key_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "identity" / "0.key"
    key.parent.mkdir()
    key.write_bytes(content)
    with pytest.raises(StateError, match="is not an identity"), StateFolder(tmp_path).identity():
        pass
    assert key.read_bytes() == content


def test_a_garbage_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "0.key").write_bytes(b"garbage")
    with pytest.raises(StateError, match=r"0\.key"), StateFolder(tmp_path).identity():
        pass


def test_an_error_of_the_body_is_not_taken_for_one_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), StateFolder(tmp_path).identity():
        raise ConnectionResetError("of the daemon, not of the folder")


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        StateFolder(tmp_path / "file" / "state")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "identity").write_text("")
    with pytest.raises(StateError), StateFolder(tmp_path / "state").identity():
        pass
