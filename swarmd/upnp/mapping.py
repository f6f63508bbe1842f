"""One node's port at the local router: what to ask of the router next. Pure.

TCP (streams) and UDP (the DHT) need the same outside port, because a node announces one.

========== ============================================= ================ ======================
state      leaves by                                     next             instruction then
========== ============================================= ================ ======================
searching  found, with an address of the internet        adding           Add TCP
           found, with another one; failed               idle             Wait
adding     granted TCP                                   adding           Add UDP, the same port
           granted UDP                                   checking         Check
           refused: only permanent leases (725)          adding           Add, without an end
           refused: the port is taken (718, …)           undoing          Delete, another port
           refused otherwise; failed                     undoing          Delete
checking   answered yes                                  mapped           Wait
           answered no                                   undoing          Delete
mapped     timer                                         renewing         Discover
           shaken (others cannot dial it any more)       renewing         Discover; then Check
renewing   found, granted TCP, granted UDP               mapped, checking Wait, Check if shaken or
                                                                          the address changed
           failed, for the first two times               mapped           Wait, a short time
           refused; failed                               undoing          Delete
           found, with no address of the internet        undoing          Delete
undoing    deleted, or failed: nothing is left           idle, adding or  Wait, Add or Done
                                                         dropped
idle       timer                                         searching        Discover
any        drop                                          undoing          Delete, then Done
========== ============================================= ================ ======================

Source: UPnP forum, WANIPConnection:1 (2001) and :2 (2010); codes of errors in their tables.
"""

from __future__ import annotations

import enum
import ipaddress
import random
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Add",
    "Check",
    "Delete",
    "Discover",
    "Done",
    "Instruction",
    "Mapping",
    "Protocol",
    "State",
    "Wait",
    "is_of_the_internet",
]

LEASE = 3600
"""Seconds. What a killed node leaves at the router is gone within an hour."""
RENEW = 1200.0
"""Seconds: a third of a lease, so that two failed renewals are tolerated."""
RENEW_AGAIN = 60.0
"""Seconds after a failed renewal; a router restarts in that time."""
RENEWALS_FAILED = 2
"""Failed renewals in a row that are tolerated."""
TRY_AGAIN = 1800.0
"""Seconds until a router is looked for again; people change settings and routers."""
PORTS = 4
"""Outside ports that are tried; by then it is not a matter of chance."""
PORT_RANGE = range(20000, 60000)
"""Other ports to try: above those of services, below most systems' ephemeral ones."""

PERMANENT_ONLY = 725
CONFLICT = 718
TAKEN = frozenset({CONFLICT, 727, 728, 729})
"""ConflictInMappingEntry; ExternalPortOnlySupportsWildcard is as good as taken; so are
NoPortMapsAvailable, which is about this port range at some routers, and
ConflictWithOtherMechanisms."""


class Protocol(enum.Enum):
    TCP = "TCP"
    UDP = "UDP"


class State(enum.Enum):
    SEARCHING = "searching"
    ADDING = "adding"
    CHECKING = "checking"
    MAPPED = "mapped"
    RENEWING = "renewing"
    UNDOING = "undoing"
    IDLE = "idle"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Discover:
    """Look for a router, and ask its outside address: `found` or `failed`."""


@dataclass(frozen=True, slots=True)
class Add:
    """Have the outside `port` forwarded for `lease` seconds (0: until it is deleted). With `any`,
    the router may choose another port if it can: `granted`, `refused` or `failed`."""

    protocol: Protocol
    port: int
    lease: int
    any: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """Have others dial `host` and `port`: `answered`."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Take a mapping back: `deleted` or `failed`."""

    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Wait:
    """`timer` after so many seconds, or before it `shaken` if there is a mapping."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """The mapping is dropped."""


Instruction: TypeAlias = Discover | Add | Check | Delete | Wait | Done


def is_of_the_internet(host: str) -> bool:
    """Whether an outside address is one that the internet reaches: IPv4, and not private (RFC
    1918), of a carrier's NAT (RFC 6598), or otherwise special."""
    try:
        ip = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return ip.is_global and not ip.is_multicast


class Mapping:
    """`instruction` is what to do now; the method named by its docstring says how that went."""

    def __init__(self, port: int, *, rng: random.Random) -> None:
        """`port` is where the node listens, and the outside port that it would like best."""
        self.state = State.SEARCHING
        self.instruction: Instruction = Discover()
        self.why = ""
        """Why there is no mapping, once there is none."""
        self._rng = rng
        self._wanted = port
        self._port = port
        self._lease = LEASE
        self._host: str | None = None
        self._held: list[tuple[Protocol, int]] = []
        self._tried = 0
        self._failures = 0
        self._check = True
        self._after = State.IDLE

    @property
    def outside(self) -> tuple[str, int] | None:
        """Address and port at which others dial the node, while that is so."""
        if self.state in (State.MAPPED, State.RENEWING) and self._host is not None:
            return self._host, self._port
        return None

    @property
    def permanent(self) -> bool:
        """Whether the router grants leases without an end only."""
        return self._lease == 0

    def found(self, host: str) -> None:
        """A router, and its outside address as it says it."""
        self._expect(Discover)
        if not is_of_the_internet(host):
            self.why = (
                f"the router's own address {host} is not one of the internet, as behind another "
                "router or a carrier's NAT"
            )
            if self._held:
                self._undo(State.IDLE)
            else:
                self._rest()
            return
        if self.state is State.SEARCHING:
            self.state, self._check = State.ADDING, True
            self._port, self._lease, self._tried = self._wanted, LEASE, 1
        elif host != self._host:
            self._check = True
        self._host = host
        self._add(Protocol.TCP)

    def granted(self, port: int) -> None:
        """The router forwards `port`."""
        add = self._expect(Add)
        if port != add.port:
            self._held = [(add.protocol, port)]
            self._port = port
        if add.protocol is Protocol.TCP:
            self._add(Protocol.UDP)
            return
        self._failures = 0
        if self._check:
            assert self._host is not None
            self.state = State.CHECKING
            self.instruction = Check(self._host, self._port)
        else:
            self._mapped(RENEW)

    def refused(self, code: int) -> None:
        """The router answered with an error of UPnP."""
        add = self._expect(Add)
        if code == PERMANENT_ONLY and add.lease:
            self._lease = 0
            self._add(add.protocol)
            return
        renewed = self.state is State.RENEWING and code != CONFLICT
        if (add.protocol, add.port) in self._held and not renewed:
            # It is not ours: never granted, or another's by now. What was granted before and is
            # refused for any other reason is deleted with the rest.
            self._held.remove((add.protocol, add.port))
        self.why = f"the router refused to forward port {add.port} ({add.protocol.value}): {code}"
        taken = code in TAKEN and self.state is State.ADDING and self._tried < PORTS
        self._undo(State.ADDING if taken else State.IDLE)

    def failed(self, why: str) -> None:
        """No router, no answer, or one of no use; `why` is ours, for the log."""
        self._expect(Discover, Add, Delete)
        if self.state is State.UNDOING:
            self._deleted()
            return
        self.why = why
        if self.state is State.SEARCHING:
            self._rest()
        elif self.state is State.RENEWING and self._failures < RENEWALS_FAILED:
            self._failures += 1
            self._mapped(RENEW_AGAIN)
        else:
            self._undo(State.IDLE)

    def answered(self, reachable: bool) -> None:
        """What others found who dialled the outside address."""
        self._expect(Check)
        if reachable:
            self._check = False
            self._mapped(RENEW)
            return
        self.why = f"the router forwards port {self._port}, but others cannot dial it there"
        self._undo(State.IDLE)

    def deleted(self) -> None:
        """The router took a mapping back, or did not know it."""
        self._expect(Delete)
        self._deleted()

    def timer(self) -> None:
        """The seconds of `Wait` are over."""
        self._expect(Wait)
        self.state = State.RENEWING if self.state is State.MAPPED else State.SEARCHING
        self.instruction = Discover()

    def shaken(self) -> None:
        """Others cannot dial the outside address any more."""
        if self.state in (State.MAPPED, State.RENEWING):
            self._check = True
            if self.state is State.MAPPED:
                self.timer()

    def drop(self) -> None:
        """The node leaves: take back what the router forwards. Whatever was under way is void."""
        if self.state is not State.DROPPED:
            self._undo(State.DROPPED)

    def _expect(self, *kinds: type[Instruction]) -> Add:
        """The instruction under way. Raises RuntimeError on an event that does not answer it."""
        if not isinstance(self.instruction, kinds):
            raise RuntimeError(f"nobody was told to do that: {self.instruction} in {self.state}")
        return self.instruction  # type: ignore[return-value]

    def _add(self, protocol: Protocol) -> None:
        wish = (protocol, self._port)
        if wish not in self._held:  # also if no answer comes the router may have done it
            self._held.append(wish)
        may_choose = protocol is Protocol.TCP and self._tried > 1 and self.state is State.ADDING
        self.instruction = Add(protocol, self._port, self._lease, may_choose)

    def _mapped(self, seconds: float) -> None:
        self.state = State.MAPPED
        self.instruction = Wait(seconds)

    def _rest(self) -> None:
        self.state, self._host = State.IDLE, None
        self.instruction = Wait(TRY_AGAIN)

    def _undo(self, after: State) -> None:
        self.state, self._after = State.UNDOING, after
        self._delete_next()

    def _deleted(self) -> None:
        self._held.pop()
        self._delete_next()

    def _delete_next(self) -> None:
        if self._held:
            self.instruction = Delete(*self._held[-1])
        elif self._after is State.ADDING:
            self.state = State.ADDING
            self._tried += 1
            self._port = self._rng.choice(PORT_RANGE)
            self._add(Protocol.TCP)
        elif self._after is State.DROPPED:
            self.state, self._host = State.DROPPED, None
            self.instruction = Done()
        else:
            self._rest()
