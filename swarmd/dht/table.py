"""Verified contacts in Kademlia's k-buckets."""

from __future__ import annotations

import heapq
from typing import Any

from kademlia.node import Node
from kademlia.routing import RoutingTable

from swarmd.dht.addresses import ip_group

__all__ = ["Router"]


class Router(RoutingTable):  # type: ignore[misc, unused-ignore]
    """The package's buckets with its three defects mended.

    `find_neighbors` gives the true nearest of the table; a contact that answers moves to its
    bucket's tail, so that the head is the one seen longest ago; one address has one id. There is
    no list of spare contacts: a newcomer to a full bucket is turned away, and the owner of the
    table pings heads, so that dead ones make room (Kademlia, section 2.2).

    In a public swarm, `limits` of one public /24 or /48 hold for the table and for each bucket:
    addresses of one network are cheap, so they must not make up all that we know.
    """

    limits: tuple[int, int] | None = None
    """Contacts of one IP group in the table, and in one bucket; None: not limited."""

    def flush(self) -> None:
        super().flush()
        self._by_address: dict[tuple[str, int], Any] = {}
        self._groups: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._by_address)

    def contacts(self) -> list[Any]:
        """All contacts, as the package's nodes."""
        return list(self._by_address.values())

    def get(self, node_id: bytes) -> Any | None:
        """The contact of this id, or None."""
        return self.buckets[self.get_bucket_for(Node(node_id))][node_id]

    def at(self, address: tuple[str, int]) -> Any | None:
        """The contact at this address, or None."""
        return self._by_address.get(address)

    def has_room(self, node: Any) -> bool:
        """Whether `add_contact` would take this node."""
        bucket = self.buckets[self.get_bucket_for(node)]
        fits = node.id in bucket.nodes or len(bucket) < self.ksize or self._may_split(bucket)
        return fits and not self._is_crowded(node, bucket)

    def add_contact(self, node: Any) -> bool:
        """Add a verified node, or move it to its bucket's tail; False if there is no room.

        A full bucket is split if it holds our own id, or if its depth is not a multiple of 5
        (Kademlia, section 4.2).
        """
        if node.id == self.node.id:
            return False
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            if node.id in bucket.nodes or len(bucket) < self.ksize:
                break
            if not self._may_split(bucket):
                return False
            self.split_bucket(index)
        if self._is_crowded(node, bucket):
            return False
        for stale in (self.at((node.ip, node.port)), bucket[node.id]):
            if stale is not None:
                self.remove_contact(stale)
        bucket.add_node(node)
        self._by_address[(node.ip, node.port)] = node
        if (group := ip_group(node.ip)) is not None:
            self._groups.setdefault(group, set()).add(node.id)
        return True

    def remove_contact(self, node: Any) -> None:
        """Drop the contact with this id at this address; another address of the id stays."""
        known = self.get(node.id)
        if known is not None and known.same_home_as(node):
            del self._by_address[(known.ip, known.port)]
            super().remove_contact(known)
            if (group := ip_group(known.ip)) is not None:
                self._groups[group].discard(known.id)
                if not self._groups[group]:
                    del self._groups[group]

    def find_neighbors(self, node: Any, k: int | None = None, exclude: Any = None) -> list[Any]:
        """The `k` contacts nearest to `node`, nearest first, without `node` and `exclude`."""
        candidates = (
            contact
            for contact in self._by_address.values()
            if contact.id != node.id and (exclude is None or not contact.same_home_as(exclude))
        )
        return heapq.nsmallest(k or self.ksize, candidates, key=node.distance_to)

    def heads(self) -> list[Any]:
        """The contact of each bucket that was heard of longest ago."""
        return [bucket.head() for bucket in self.buckets if len(bucket)]

    def _is_crowded(self, node: Any, bucket: Any) -> bool:
        """Whether this node's network has all the places that one network may have."""
        group = ip_group(node.ip) if self.limits is not None else None
        if self.limits is None or group is None:
            return False
        replaced = self.at((node.ip, node.port))
        others = self._groups.get(group, set()) - {node.id, replaced.id if replaced else b""}
        in_table, in_bucket = self.limits
        near = sum(other in bucket.nodes for other in others)
        return len(others) >= in_table or near >= in_bucket

    def _may_split(self, bucket: Any) -> bool:
        return bool(bucket.has_in_range(self.node)) or bucket.depth() % 5 != 0
