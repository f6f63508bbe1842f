"""From `--peer`, `--invite` and `--swarm-key`, or what a program gives for them, to the swarm that
is meant and whom to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmd.errors import UsageError
from swarmd.identity import PeerId
from swarmd.invite import PREFIX, Invite
from swarmd.key_file import read_key_file
from swarmd.peers import Address, parse_address
from swarmd.swarm_key import PUBLIC_KEYS, PUBLIC_SWARM_KEY, KeyRing

__all__ = ["Membership", "membership", "parse_node"]


@dataclass(frozen=True, slots=True)
class Membership:
    """Nodes to ask, who must answer at some of them, and the keys of the swarm."""

    addresses: tuple[Address, ...]
    expected: Mapping[Address, PeerId]
    keys: KeyRing
    key_file: Path | None


def membership(
    peers: Sequence[Address | Invite], invites: Sequence[Invite], key_file: Path | None
) -> Membership:
    """Raises UsageError for a bad key file, and for invites into another swarm than the rest."""
    invited = [*invites, *(peer for peer in peers if isinstance(peer, Invite))]
    addresses = [peer for peer in peers if isinstance(peer, Address)]
    expected: dict[Address, PeerId] = {}
    for invite in invited:
        for contact in invite.contacts:
            addresses.append(contact.address)
            expected[contact.address] = contact.peer_id
    keys = None if key_file is None else read_key_file(key_file)
    for invite in invited:
        key = invite.key or PUBLIC_SWARM_KEY
        if keys is None:
            keys = KeyRing(key)
        elif key not in keys.accepted:
            raise UsageError(
                "the invite leads into another swarm than the rest of the command; leave out "
                "--swarm-key (and $SWARMD_SWARM_KEY), and give invites of one swarm"
            )
    return Membership(tuple(dict.fromkeys(addresses)), expected, keys or PUBLIC_KEYS, key_file)


def parse_node(text: str) -> Address | Invite:
    """`host:port`, or an invite as `swarmd invite` prints it. Raises UsageError."""
    return Invite.parse(text) if text.strip().startswith(PREFIX) else parse_address(text)
