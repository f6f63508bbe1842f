"""The k-buckets: true nearest, one id an address, order of age."""

from __future__ import annotations

import random

from kademlia.node import Node

from swarmd.dht.table import Router


def node(n: int, port: int | None = None, rng: random.Random | None = None) -> Node:
    node_id = (rng or random.Random(n)).randbytes(20)
    return Node(node_id, "10.0.0.1", port if port is not None else n)


def router(k: int = 4) -> Router:
    return Router(None, k, Node(bytes(20)))


def test_neighbors_are_the_true_nearest() -> None:
    table = router(k=4)
    taken = [n for n in map(node, range(1, 200)) if table.add_contact(n)]
    assert len(table) == len(taken) < 199
    for seed in range(300, 320):
        target = node(seed)
        expected = sorted(taken, key=target.distance_to)[:4]
        assert table.find_neighbors(target) == expected
        assert table.find_neighbors(target, k=3, exclude=expected[0]) == expected[1:4]


def test_no_bucket_overflows_and_ours_splits() -> None:
    table = router(k=4)
    for n in range(1, 500):
        fits = table.has_room(node(n))
        assert table.add_contact(node(n)) == fits
    assert all(len(bucket) <= 4 for bucket in table.buckets)
    assert len(table.buckets) > 4
    assert sum(len(bucket) for bucket in table.buckets) == len(table)


def test_one_id_an_address() -> None:
    table = router()
    rng = random.Random(1)
    for _ in range(100):
        table.add_contact(node(0, port=5000, rng=rng))
    assert len(table) == 1
    mover = node(7, port=1)
    table.add_contact(mover)
    moved = Node(mover.id, "10.0.0.1", 2)
    table.add_contact(moved)
    assert table.get(mover.id) is moved
    assert table.at(("10.0.0.1", 1)) is None
    table.remove_contact(mover)  # late news of the old address
    assert table.get(mover.id) is moved


def test_who_answers_moves_to_the_tail() -> None:
    table = router()
    first, second = node(1), node(2)
    table.add_contact(first)
    table.add_contact(second)
    assert table.heads() == [first]
    table.add_contact(first)
    assert table.heads() == [second]
    table.remove_contact(second)
    assert table.heads() == table.contacts() == [first]


def test_never_ourselves() -> None:
    table = router()
    assert not table.add_contact(Node(bytes(20), "10.0.0.1", 1))
    assert len(table) == 0
