"""What swarmd takes from `kademlia` and `rpcudp`: it must be there, with these signatures."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest
from kademlia.crawling import SpiderCrawl
from kademlia.network import Server
from kademlia.node import Node, NodeHeap
from kademlia.protocol import KademliaProtocol
from kademlia.routing import KBucket, RoutingTable
from kademlia.storage import IStorage
from rpcudp.protocol import RPCProtocol

from swarmd.dht.crawl import MergeCrawl
from swarmd.dht.node import SwarmServer
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.storage import RecordStorage
from swarmd.dht.table import Router
from tests.dht.swarm import CONFIG, NOW, record_of


@pytest.mark.parametrize(("package", "version"), [("kademlia", "2.2.3"), ("rpcudp", "5.0.1")])
def test_versions_are_those_that_were_read(package: str, version: str) -> None:
    assert importlib.metadata.version(package) == version


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (Server.__init__, ["self", "ksize", "alpha", "node_id", "storage"]),
        (Server._create_protocol, ["self"]),
        (Server._refresh_table, ["self"]),
        (Server.refresh_table, ["self", "interval"]),
        (Server.listen, ["self", "port", "interface"]),
        (Server.bootstrap, ["self", "addrs"]),
        (Server.stop, ["self"]),
        (KademliaProtocol.__init__, ["self", "source_node", "storage", "ksize"]),
        (KademliaProtocol.get_refresh_ids, ["self"]),
        (KademliaProtocol.call_ping, ["self", "node_to_ask"]),
        (KademliaProtocol.welcome_if_new, ["self", "node"]),
        (RPCProtocol.datagram_received, ["self", "data", "addr"]),
        (RPCProtocol.connection_made, ["self", "transport"]),
        (RPCProtocol.__getattr__, ["self", "name"]),
        (RoutingTable.__init__, ["self", "protocol", "ksize", "node"]),
        (RoutingTable.flush, ["self"]),
        (RoutingTable.split_bucket, ["self", "index"]),
        (RoutingTable.get_bucket_for, ["self", "node"]),
        (RoutingTable.add_contact, ["self", "node"]),
        (RoutingTable.remove_contact, ["self", "node"]),
        (RoutingTable.find_neighbors, ["self", "node", "k", "exclude"]),
        (KBucket.add_node, ["self", "node"]),
        (KBucket.has_in_range, ["self", "node"]),
        (KBucket.depth, ["self"]),
        (KBucket.head, ["self"]),
        (SpiderCrawl.__init__, ["self", "protocol", "node", "peers", "ksize", "alpha"]),
        (Node.__init__, ["self", "node_id", "ip", "port"]),
        (Node.same_home_as, ["self", "node"]),
        (Node.distance_to, ["self", "node"]),
        (NodeHeap.push, ["self", "nodes"]),
        (NodeHeap.remove, ["self", "peers"]),
        (NodeHeap.mark_contacted, ["self", "node"]),
        (NodeHeap.get_node, ["self", "node_id"]),
    ],
)  # fmt: skip
def test_overridden_and_used_names(function: object, parameters: list[str]) -> None:
    assert callable(function)
    assert list(inspect.signature(function).parameters) == parameters


def test_subclasses() -> None:
    assert issubclass(SwarmServer, Server)
    assert issubclass(SwarmProtocol, KademliaProtocol)
    assert issubclass(Router, RoutingTable)
    assert issubclass(MergeCrawl, SpiderCrawl)
    assert issubclass(RecordStorage, IStorage)
    assert set(vars(NodeHeap(Node(bytes(20)), 1))) >= {"contacted", "heap", "maxsize"}


def test_the_package_sees_an_empty_storage() -> None:
    storage, record = RecordStorage(CONFIG), record_of(1)
    from swarmd.dht.records import INDEX_KEY

    storage.put(INDEX_KEY, record, NOW)
    assert len(storage) == 1
    assert list(storage) == list(storage.iter_older_than(0)) == []
    assert storage.get(INDEX_KEY) is None
    with pytest.raises(KeyError):
        storage[INDEX_KEY]
    with pytest.raises(TypeError):
        storage[INDEX_KEY] = record
