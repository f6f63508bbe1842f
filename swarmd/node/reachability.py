"""Can others dial this node? It asks some of them to try, and answers when others ask.

Whoever is asked dials the address from which the question came, never another one, so a question
with a foreign address in it cannot be asked. What they find goes to the owner's log, and decides
whether the node seeks a relay (:mod:`swarmd.node.reach`).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from swarmd.clock import Clock, SystemClock
from swarmd.errors import Busy, ConnectionLost, PeerFailure, PeerTimeout, RemoteError
from swarmd.identity import PeerId
from swarmd.node.dial_back_budget import DialBackBudget
from swarmd.peers import Address, PeerInfo, PeerState
from swarmd.wire.messages import Dialback, Dialled, ErrorMessage
from swarmd.wire.transport import Greeting, dial

__all__ = ["Answer", "DialBack", "Reachability", "Verdict", "ask", "verdict"]

log = logging.getLogger(__name__)

DIAL_TIMEOUT = 3.0
"""Seconds for the dial back; a packet lost at its start costs one."""
ANSWER_TIMEOUT = 8.0
"""Seconds for an answer to our question, which takes a dial back."""
ASKED = 3
"""Peers that are asked at a time."""
FIRST_CHECK = 2.0
"""Seconds after the node began to serve; by then it knows some peers."""
CHECK_PERIOD = 600.0
"""Seconds between checks once there is an answer; routers and addresses change."""
RETRY_PERIOD = 60.0
"""Seconds until the next check while there was nobody to ask."""


class Verdict(enum.Enum):
    UNKNOWN = "unknown"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one peer found: whether it reached us, and at which IP address it sees us."""

    reachable: bool
    host: str


def verdict(answers: Sequence[Answer]) -> Verdict:
    """What several answers mean together: most of them, and of a tie the better. One peer may
    lie, or sit behind a router of its own."""
    if not answers:
        return Verdict.UNKNOWN
    good = sum(answer.reachable for answer in answers)
    return Verdict.REACHABLE if 2 * good >= len(answers) else Verdict.UNREACHABLE


class DialBack:
    """Dials those who ask for it. One for a node: the budget is of all connections together."""

    def __init__(
        self,
        greeting: Greeting,
        *,
        clock: Clock | None = None,
        budget: DialBackBudget | None = None,
        timeout: float = DIAL_TIMEOUT,
    ) -> None:
        self._greeting = greeting
        self._clock = clock or SystemClock()
        self._budget = budget or DialBackBudget()
        self._timeout = timeout

    async def answer(self, host: str, port: int, asker: PeerId | None) -> Dialled:
        """Dial the source address `host` of a question. `asker` is the id that its link proved;
        the same peer must answer. Raises Busy when that was done too often lately."""
        if not self._budget.take(host, self._clock.monotonic()):
            raise Busy("asked to dial back too often", retry_after=RETRY_PERIOD)
        try:
            greeted = await dial(
                Address(host, port), self._greeting, expected=asker, timeout=self._timeout
            )
        except (PeerFailure, RemoteError):
            return Dialled(False, host)
        await greeted.connection.close()
        return Dialled(True, host)


async def ask(peer: Address, port: int, greeting: Greeting, expected: PeerId) -> Answer:
    """Have a peer dial our `port` at the address from which we ask. Raises PeerFailure,
    RemoteError, such as Busy, or BadRequest from a peer that does not know the question."""
    greeted = await dial(peer, greeting, expected=expected)
    connection = greeted.connection
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await connection.send(Dialback(port))
            message, _ = await connection.receive()
    except TimeoutError as error:
        raise PeerTimeout(f"{peer}: no answer about our address", peer=expected) from error
    finally:
        connection.abort()
    if isinstance(message, ErrorMessage):
        raise message.to_error()
    if not isinstance(message, Dialled):
        raise ConnectionLost(f"{peer}: {message.TYPE} instead of dialled")
    return Answer(message.reachable, message.host)


class Reachability:
    """The asking half. `run` is a service of the node; it logs what changed."""

    def __init__(
        self,
        address: Address,
        fetch: Callable[[], Awaitable[Sequence[PeerInfo]]],
        greeting: Greeting,
        *,
        rng: random.Random,
        on_change: Callable[[Verdict], object] = lambda verdict: None,
    ) -> None:
        """`address` is the announced one; `fetch` gives the peers that may be asked; `on_change`
        is told each new verdict."""
        self.verdict = Verdict.UNKNOWN
        self._address = address
        self._fetch = fetch
        self._greeting = greeting
        self._rng = rng
        self._on_change = on_change

    async def run(self) -> None:
        """Check for ever. A node that announces loopback is of this machine: nobody is asked."""
        if self._address.is_loopback:
            return
        await asyncio.sleep(FIRST_CHECK * self._rng.uniform(1, 2))
        while True:
            await self.check()
            known = self.verdict is not Verdict.UNKNOWN
            period = CHECK_PERIOD if known else RETRY_PERIOD
            await asyncio.sleep(period * self._rng.uniform(0.8, 1.2))

    async def reaches(self, address: Address) -> bool:
        """Whether others can dial this node at another address, such as a router's. From then on
        that is the one to be checked, until `moved`; those who see us elsewhere do not count."""
        answers = await self._answers(address)
        at_it = [answer for answer in answers if answer.host == address.host]
        if verdict(at_it) is not Verdict.REACHABLE:
            return False
        self._address, self.verdict = address, Verdict.REACHABLE
        return True

    def moved(self, address: Address) -> None:
        """The node is no longer at an address of `reaches`, but at its own, where nobody could
        dial it; so it is until another check."""
        self._address, self.verdict = address, Verdict.UNREACHABLE

    async def check(self) -> Verdict:
        """Ask up to three peers, and say it when the verdict is another than before."""
        address = self._address
        answers = await self._answers(address)
        found = verdict(answers)
        if address != self._address or found is Verdict.UNKNOWN or found is self.verdict:
            return self.verdict
        self._say(found, answers)
        self.verdict = found
        self._on_change(found)
        return found

    async def _answers(self, address: Address) -> list[Answer]:
        peers = [
            peer
            for peer in await self._fetch()
            if peer.peer_id != self._greeting.identity.peer_id
            and peer.state is PeerState.ONLINE
            and not peer.address.is_loopback
        ]
        self._rng.shuffle(peers)
        answers = []
        for peer in peers[:ASKED]:  # one after another: there is no hurry
            try:
                answers.append(await ask(peer.address, address.port, self._greeting, peer.peer_id))
            except (PeerFailure, RemoteError) as error:
                log.debug("%s was asked to dial this node: %s", peer.peer_id.short, error)
        return answers

    def _say(self, found: Verdict, answers: Sequence[Answer]) -> None:
        seen = ", ".join(sorted({answer.host for answer in answers}))
        if found is Verdict.REACHABLE:
            log.info("others can dial this node: %s, port %d", seen, self._address.port)
            return
        log.warning(
            "others cannot dial this node: %d of %d peers that see it at %s could not reach port "
            "%d there. A router that speaks UPnP is asked to forward a port; else a relay makes it "
            "reachable where one is found, at a cost in speed. To do without, let TCP and UDP port "
            "%d through firewall and router; if the router forwards another port, name it by "
            "--advertise HOST:PORT",
            sum(not answer.reachable for answer in answers),
            len(answers),
            seen,
            self._address.port,
            self._address.port,
        )
