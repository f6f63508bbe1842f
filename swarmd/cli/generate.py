"""`swarmd generate`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from swarmd.cli.app import STARTED
from swarmd.cli.drafting import check_speculation, load_drafting, speculation_options
from swarmd.cli.generate_report import report
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
from swarmd.cli.runtime import ProgressBars, prepare_libraries, run, set_up_logging, stderr
from swarmd.errors import UsageError
from swarmd.invite import Invite
from swarmd.peers import Address
from swarmd.routing.edges import Route
from swarmd.running import running_nodes
from swarmd.state import StateFolder
from swarmd.wire.codecs import CodecChoice

__all__ = ["Request", "command"]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    prompt: str
    model: str | None
    member: Membership
    lan: bool
    max_new_tokens: int
    stops: tuple[str, ...]
    chat: bool
    system: str | None
    wait: float
    verify: float
    quantization: str
    route: Route
    replan: bool | None
    codec: CodecChoice
    standby: bool
    speculate: int | None
    ahead: int
    draft: str | None
    as_json: bool
    threads: int | None
    state_dir: Path | None
    known: bool
    verbose: bool


@click.command("generate")
@click.argument("prompt")
@model_option
@peer_option
@swarm_options
@click.option(
    "--max-new-tokens", "-n", type=click.IntRange(1, 1 << 20), default=128, show_default=True
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 is off.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End before this text.")
@click.option("--chat", is_flag=True, help="Apply the model's chat template to the prompt.")
@click.option("--system", metavar="TEXT", help="System message; needs --chat.")
@click.option(
    "--wait",
    type=click.FloatRange(0, 86400),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for blocks that nobody serves.",
)
@click.option(
    "--verify",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="FRACTION",
    help="Let other peers run this share of each hop's outputs again; a liar is left out, and the "
    "answer is redone from its first wrong output.",
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads for embeddings and head. [default: all cores]",
)
@state_option
@log_options
def command(
    prompt: str,
    model: str | None,
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    seed: int | None,
    stops: tuple[str, ...],
    chat: bool,
    system: str | None,
    wait: float,
    verify: float,
    quantization: str,
    route: Route,
    replan: bool | None,
    codec: CodecChoice,
    standby: bool,
    speculate: int | None,
    ahead: int,
    draft: str | None,
    known: bool,
    as_json: bool,
    threads: int | None,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> int:
    """Generate text with a model that the swarm serves. PROMPT may be - for stdin.

    The text goes to stdout; the route and what happened on it go to stderr.

    \b
    Examples:
      swarmd generate "Once upon a time"
      swarmd generate --chat --temperature 0.7 --seed 1 "Who are you?"
      cat question.txt | swarmd generate - --peer 192.0.2.7:31330 --json
    """
    set_up_logging(log_format, verbose=verbose, quiet=True)
    if system is not None and not chat:
        raise UsageError("--system needs --chat")
    if verify > 0 and codec == "int8":
        raise UsageError(
            "--verify cannot tell a lie from what int8 rounds away: use another --codec"
        )
    if verify > 0:  # outputs of peers with other weights cannot be compared
        if quantization == "any":
            raise UsageError("--verify needs peers of one quantization: use --quantization one")
        quantization = "one" if quantization == "auto" else quantization
    check_speculation(speculate, draft)
    if prompt == "-":
        prompt = sys.stdin.read()
    request = Request(
        prompt, model, membership(peers, invites, swarm_key), not no_lan, max_new_tokens, stops,
        chat, system, wait, verify, quantization, route, replan, codec, standby, speculate, ahead,
        draft, as_json, threads, state_dir, known, verbose,
    )  # fmt: skip
    prepare_libraries(threads)
    from swarmd.client.sampling import SamplingConfig

    sampling = SamplingConfig(temperature, top_k, top_p, repetition_penalty, seed)
    return run(_interruptible(request, sampling))


async def _interruptible(request: Request, sampling: Any) -> int:
    """Ctrl-C ends the answer in good order (sessions are closed), with exit code 130."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await _generate(request, sampling)
    except asyncio.CancelledError:
        return 130
    return 0


async def _generate(request: Request, sampling: Any) -> None:
    from swarmd.client.agreement import check_supported
    from swarmd.client.answer import AnswerText
    from swarmd.client.evidence import EvidenceFile
    from swarmd.client.generate import GenerationTimes, Withdrawn, decode_events
    from swarmd.client.loading import load_client, resolve_client_folder
    from swarmd.client.moving_session import MovingSession
    from swarmd.client.sampling import Sampler
    from swarmd.client.session_config import SessionConfig
    from swarmd.client.spot_checks import CheckConfig
    from swarmd.client.swarm import SwarmClient, choose_chain
    from swarmd.client.text import StopWatch
    from swarmd.routing.price import Price, chain_price

    StopWatch(request.stops)  # refuses an empty one before anything is loaded
    state = StateFolder(request.state_dir)
    evidence = EvidenceFile(state.evidence_file)
    own = frozenset(node.peer_id for node in running_nodes(state.path))
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
        chain = await choose_chain(router, wait=request.wait, on_story=_note)
        if request.verify > 0:
            check_supported(chain.hops[0].peer.arithmetic, folder.config)
        client = await load_client(folder, chain.hops[0].peer.dtype, request.threads)
        prompt_ids = client.text.encode(request.prompt, chat=request.chat, system=request.system)
        new_drafting = await load_drafting(request.speculate, request.ahead, request.draft, client)
        drafting = new_drafting()
        length = len(prompt_ids) + request.max_new_tokens
        if length > folder.max_positions:
            raise UsageError(
                f"prompt of {len(prompt_ids)} tokens and --max-new-tokens "
                f"{request.max_new_tokens} are more than the {folder.max_positions} positions "
                f"of {folder.name}"
            )
        times = GenerationTimes()
        answer = AnswerText(client.text.stream, request.stops)

        def give_out(text: str) -> None:
            if not request.as_json:
                sys.stdout.write(text)
                sys.stdout.flush()

        session = MovingSession(
            router,
            pool,
            chain,
            hidden_size=folder.hidden_size,
            max_length=length,
            config=SessionConfig(
                wait=request.wait,
                checks=CheckConfig(request.verify, keep=evidence.async_record, own=own),
                replan=request.replan,
                codec=request.codec,
                standby=request.standby,
            ),
            on_story=_note,
        )
        async with session:
            await session.open_links()
            _note("Route found: " + " ".join(map(str, session.chain)))
            events = decode_events(
                client.ends,
                session,
                prompt_ids,
                Sampler(sampling),
                max_new_tokens=request.max_new_tokens,
                eos_token_ids=client.text.eos_token_ids,
                times=times,
                stopped=lambda: answer.stopped,
                drafting=drafting,
            )
            predicted = sum(
                chain_price(session.chain, router.costs, mode=router.mode), Price()
            ).seconds
            ready = time.perf_counter()
            async for event in events:
                if isinstance(event, Withdrawn):
                    wrong = answer.withdraw(event.kept)
                    _note_withdrawn(event.kept, wrong, event.reason)
                    give_out("\n" if wrong else "")
                else:
                    give_out(answer.push(event))
            give_out(answer.finish())
        report(
            request, session, times, prompt_ids, answer.token_ids, answer.text, ready - STARTED,
            predicted, drafting, [router.bandwidth(hop.peer) for hop in session.chain],
        )  # fmt: skip


def _note_withdrawn(kept: int, wrong: str, reason: str) -> None:
    shown = f"; the last {len(wrong)} characters above are wrong" if wrong else ""
    _note(f"the answer after its token {kept} is withdrawn{shown}; corrected from there ({reason})")


def _note(line: str) -> None:
    text = line if line.startswith("Route") else f"[{line}]"
    stderr.print(text, markup=False, style="dim", soft_wrap=True)
