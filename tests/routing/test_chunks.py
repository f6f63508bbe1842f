"""The size of chunks: few enough to be cheap, small enough to fill the pipeline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.routing.chain import Hop
from swarmd.routing.chunks import FIXED_STEPS, SIZES, HopPace, chunk_size, paces, prefill_seconds
from swarmd.routing.cost import CostModel, Costs, Measurements

LAPTOP = HopPace(fixed=0.015, each=0.001, transfer=0.0002, trip=0.05)

seconds = st.floats(0, 1, allow_nan=False)
hop_paces = st.builds(HopPace, fixed=seconds, each=seconds, transfer=seconds, trip=seconds)


def test_one_chunk_takes_the_sum_of_all_stages() -> None:
    one = prefill_seconds([LAPTOP] * 3, 100, 512)
    assert one == pytest.approx(3 * (0.015 + 100 * 0.001 + 0.05 + 2 * 100 * 0.0002))


def test_many_hops_want_smaller_chunks_than_one() -> None:
    alone = HopPace(fixed=0.015, each=0.001, transfer=0.0, trip=0.0)
    assert chunk_size([alone], 1024) == 512
    assert chunk_size([alone] * 3, 1024) < 512


def test_a_costly_pass_over_the_weights_wants_longer_chunks() -> None:
    slow = HopPace(fixed=0.5, each=0.001, transfer=0.0002, trip=0.05)
    assert chunk_size([slow] * 3, 1024) > chunk_size([LAPTOP] * 3, 1024)


def test_a_flow_that_waits_for_trips_wants_longer_chunks() -> None:
    """Four chunks under way at a time: short ones would leave the hop idle over a long trip."""
    far = HopPace(fixed=0.001, each=0.0001, transfer=0.0, trip=1.0)
    assert chunk_size([far] * 3, 4096) == 512


@given(st.lists(hop_paces, min_size=1, max_size=5), st.integers(1, 5000))
def test_no_other_size_is_predicted_to_be_faster(hops: list[HopPace], tokens: int) -> None:
    chosen = prefill_seconds(hops, tokens, chunk_size(hops, tokens))
    assert all(chosen <= prefill_seconds(hops, tokens, size) for size in SIZES)


@given(st.lists(hop_paces, min_size=1, max_size=5), st.integers(1, 5000))
def test_nothing_is_faster_than_its_slowest_hop(hops: list[HopPace], tokens: int) -> None:
    slowest = max(tokens * hop.each for hop in hops)
    for size in SIZES:
        assert prefill_seconds(hops, tokens, size) >= slowest * (1 - 1e-9)


def test_what_was_measured_sets_the_pace(make_peer):
    peer = make_peer(1, 0, 10)
    hop = Hop(peer, peer.span)
    measured = Measurements(
        client_rtt={peer.peer_id: 0.05},
        bandwidth={peer.peer_id: 1e6},
        step_us={peer.peer_id: 1500.0},
        prefill_us={peer.peer_id: 200.0},
    )
    (pace,) = paces([hop], Costs(CostModel(bytes_per_token=2000), measured))
    assert pace.trip == pytest.approx(0.05)
    assert pace.transfer == pytest.approx(0.002)
    assert pace.fixed == pytest.approx(0.015 * FIXED_STEPS)
    assert pace.each == pytest.approx(0.002)
