"""The swarm's directory: who serves which blocks, kept in a Kademlia DHT without a master.

Built on the unforked `kademlia` package: joining, k-buckets, `Node` and `NodeHeap` are the
package's; the datagrams, the storage, the lookup loop and the timeouts are ours. The rest of
swarmd uses :class:`Directory`, :class:`DhtConfig` and :class:`PeersFile`, and nothing below them.

::

    directory   announce, fetch, models          what the rest of swarmd calls
    node        join, lookup, place, read        on kademlia.network.Server
    crawl       who is nearest to a key          on kademlia.crawling.SpiderCrawl
    reading     the merged records of one key    (pure, and its paging loop)
    protocol    requests, replies, timeouts      on kademlia.protocol.KademliaProtocol
    answers     what we tell those who ask
    transport   a `sendto` that never raises
    host_names  from a name to an address
    patience    timeouts from round trips        pure
    table       verified contacts in k-buckets   on kademlia.routing.RoutingTable
    storage     the records that we hold         on kademlia.storage.IStorage
    shards      the cascade of a model's keys    pure
    rates skew  requests a second; our clock     pure
    records messages envelope addresses tokens   pure: bytes in, checked values out
"""

from swarmd.dht.config import DhtConfig
from swarmd.dht.directory import DhtStatistics, Directory
from swarmd.dht.peers_file import PeersFile

__all__ = ["DhtConfig", "DhtStatistics", "Directory", "PeersFile"]
