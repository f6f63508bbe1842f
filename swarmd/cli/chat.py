"""`swarmd chat`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from swarmd.cli.chat_turns import ChatTurns
from swarmd.cli.drafting import check_speculation, load_drafting, speculation_options
from swarmd.cli.loop_thread import LoopThread
from swarmd.cli.membership import Membership, membership
from swarmd.cli.options import (
    codec_option,
    log_options,
    model_option,
    peer_option,
    quantization_option,
    replan_option,
    route_option,
    standby_option,
    state_option,
    swarm_options,
)
from swarmd.cli.runtime import ProgressBars, prepare_libraries, set_up_logging, stderr
from swarmd.invite import Invite
from swarmd.peers import Address
from swarmd.routing.edges import Route
from swarmd.state import StateFolder
from swarmd.wire.codecs import CodecChoice

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class _Request:
    model: str | None
    member: Membership
    lan: bool
    known: bool
    quantization: str
    route: Route
    speculate: int | None
    ahead: int
    draft: str | None
    state_dir: Path | None


@click.command("chat")
@model_option
@peer_option
@swarm_options
@click.option("--system", metavar="TEXT", help="System message.")
@click.option(
    "--max-new-tokens",
    "-n",
    type=click.IntRange(1, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens of one answer at most.",
)
@click.option(
    "--context",
    type=click.IntRange(16, 1 << 24),
    default=2048,
    show_default=True,
    metavar="TOKENS",
    help="Tokens of the whole dialogue at most, for which the peers keep room; never more than "
    "the model's positions.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 is off.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option(
    "--stop", "stops", multiple=True, metavar="TEXT", help="End an answer before this text."
)
@click.option(
    "--wait",
    type=click.FloatRange(0, 86400),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for blocks that nobody serves.",
)
@quantization_option
@route_option
@replan_option
@codec_option
@standby_option
@speculation_options
@click.option(
    "--known",
    is_flag=True,
    help="Use an identity of the state folder, for nodes that serve a list (--allow) only.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads for embeddings and head. [default: all cores]",
)
@state_option
@log_options
def command(
    model: str | None,
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    system: str | None,
    max_new_tokens: int,
    context: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    seed: int | None,
    stops: tuple[str, ...],
    wait: float,
    quantization: str,
    route: Route,
    replan: bool | None,
    codec: CodecChoice,
    standby: bool,
    speculate: int | None,
    ahead: int,
    draft: str | None,
    known: bool,
    threads: int | None,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> int:
    """Talk with a model that the swarm serves, line by line.

    The peers keep what was said in their caches: of each turn only what is new is sent. Ctrl-C
    stops an answer; once more, or Ctrl-D, ends. /help shows the commands. Lines may come from a
    pipe: each is a turn, and the answers go to stdout.

    \b
    Examples:
      swarmd chat
      swarmd chat --system "Answer in one sentence." --temperature 0.7
      echo "Who are you?" | swarmd chat --peer 192.0.2.7:31330
    """
    set_up_logging(log_format, verbose=verbose, quiet=True)
    check_speculation(speculate, draft)
    request = _Request(
        model, membership(peers, invites, swarm_key), not no_lan, known, quantization, route,
        speculate, ahead, draft, state_dir,
    )  # fmt: skip
    prepare_libraries(threads)
    from swarmd.client.chat import ChatConfig
    from swarmd.client.sampling import Sampler, SamplingConfig
    from swarmd.client.text import StopWatch

    StopWatch(stops)  # refuses an empty one before anything is loaded
    sampler = Sampler(SamplingConfig(temperature, top_k, top_p, repetition_penalty, seed))
    config = ChatConfig(context, max_new_tokens, stops, wait, threads, replan, codec, standby)
    history = StateFolder(state_dir).chat_history
    with LoopThread(lambda: _open(request, sampler, config)) as loop:
        loop.value.dialogue.system = system
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        return ChatTurns(loop, history if terminal else None).run()


@contextlib.asynccontextmanager
async def _open(request: _Request, sampler: Any, config: Any) -> AsyncIterator[Any]:
    """A chat with the swarm. Raises what joining, routing and loading raise."""
    from swarmd.client.chat import Chat
    from swarmd.client.evidence import EvidenceFile
    from swarmd.client.loading import resolve_client_folder
    from swarmd.client.swarm import SwarmClient

    evidence = EvidenceFile(StateFolder(request.state_dir).evidence_file)
    liars = await asyncio.to_thread(evidence.liars, time.time())
    with ProgressBars() as bars:
        folder = await resolve_client_folder(request.model, bars.update)
    member = request.member
    async with SwarmClient(
        member.addresses,
        state_dir=request.state_dir,
        keys=member.keys,
        expected=member.expected,
        lan=request.lan,
        known=request.known,
    ) as swarm:
        pool = await swarm.pool(folder.model_id)
        router = swarm.router(
            pool,
            model_id=folder.model_id,
            model_name=folder.name,
            n_blocks=folder.n_blocks,
            bytes_per_token=folder.hidden_size * 4,
            quantization=request.quantization,
            route=request.route,
        )
        for liar in liars:
            router.convict(liar)
        async with Chat(folder, router, pool, sampler, config, tell=_note) as chat:
            chat.new_drafting = await load_drafting(
                request.speculate, request.ahead, request.draft, chat.client
            )
            yield chat


def _note(line: str) -> None:
    text = line if line.startswith("Route") else f"[{line}]"
    stderr.print(text, markup=False, style="dim", soft_wrap=True)
