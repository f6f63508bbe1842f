"""What `swarmd generate` says at the end: one JSON object, or a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from swarmd.cli.runtime import stderr
from swarmd.wire.tensors import MIN_COMPRESSED_BYTES, ZSTD_PAYS_BELOW

if TYPE_CHECKING:
    from swarmd.cli.generate import Request

__all__ = ["report"]


def report(
    request: Request,
    session: Any,
    times: Any,
    prompt_ids: list[int],
    new_ids: list[int],
    text: str,
    start_up: float,
    predicted: float,
    drafting: Any,
    bandwidths: Sequence[float],
) -> None:
    """The JSON object to stdout, or a line to stderr. `start_up` and `predicted` are seconds,
    `bandwidths` to the hops bytes a second, measured or assumed."""
    recoveries = session.statistics.recoveries
    if request.as_json:
        click.echo(
            json.dumps(
                {
                    "text": text,
                    "token_ids": new_ids,
                    "prompt_tokens": len(prompt_ids),
                    "new_tokens": len(new_ids),
                    "tokens_per_second": round(times.tokens_per_second, 3),
                    "seconds_to_first_token": round(start_up + times.first_token, 3),
                    "token_seconds": [round(seconds, 5) for seconds in times.tokens],
                    "route": [
                        {
                            "peer": str(hop.peer.peer_id),
                            "blocks": str(hop.span),
                            "quantization": hop.peer.quantization,
                        }
                        for hop in session.chain
                    ],
                    "recoveries": [
                        {
                            "lost": str(recovery.lost),
                            "by": [str(hop) for hop in recovery.by],
                            "reason": recovery.reason,
                            "position": recovery.position,
                            "seconds": round(recovery.seconds, 4),
                        }
                        for recovery in recoveries
                    ],
                    "moves": [
                        {
                            "to": [str(hop) for hop in move.after],
                            "position": move.position,
                            "replayed": move.replayed,
                            "step_seconds_before": round(move.seconds_before, 5),
                            "step_seconds_after": round(move.seconds_after, 5),
                        }
                        for move in session.statistics.moves
                    ],
                    "replayed_positions": session.statistics.replayed_positions,
                    "speculation": _speculation(drafting),
                    "verification": _verification(session, request.verify),
                    "chain": {
                        "decode_steps": session.statistics.decode_steps,
                        "predicted_step_seconds": round(predicted, 5),
                        "decode_seconds": round(session.statistics.decode_seconds, 5),
                        "compute_seconds": round(session.statistics.compute_seconds, 5),
                        "queue_seconds": round(session.statistics.queue_seconds, 5),
                        "forwarded": session.statistics.forwarded,
                        "wire_bytes": session.statistics.wire_bytes,
                        "decode_bytes": session.statistics.decode_bytes,
                        "codecs": dict(session.statistics.codecs),
                    },
                },
                ensure_ascii=False,
            )
        )
        return
    click.echo()
    line = f"{len(new_ids)} tokens, {times.tokens_per_second:.1f} tokens/s"
    line += f", first after {start_up + times.first_token:.1f} s"
    if steps := session.statistics.decode_steps:
        measured = session.statistics.decode_seconds / steps
        line += (
            f"; through the chain {1e3 * measured:.1f} ms a step ({1e3 * predicted:.1f} predicted)"
        )
    if recoveries:
        stall = max(times.tokens, default=0.0)
        line += (
            f"; {len(recoveries)} hop{'s' if len(recoveries) > 1 else ''} replaced, "
            f"{session.statistics.replayed_positions} positions replayed, "
            f"longest stall {stall:.2f} s"
        )
    if drafting is not None and drafting.statistics.sent:
        drafts = drafting.statistics
        line += (
            f"; {drafts.right} of {drafts.sent} drafted tokens right, "
            f"{drafts.tokens / drafts.steps:.2f} tokens a step"
        )
        if drafts.ahead:
            line += f", {drafts.held} of {drafts.ahead} steps put in ahead held"
    if session.checks is not None:
        line += "; " + _checks_line(session.checks)
    stderr.print(line, markup=False, style="dim", soft_wrap=True)
    if request.verbose:
        line = _bytes_line(session, bandwidths, request.codec)
        stderr.print(line, markup=False, style="dim", soft_wrap=True)


def _bytes_line(session: Any, bandwidths: Sequence[float], choice: str) -> str:
    """What went through this client, and why in which codec. Hops that forward to one another send
    as much again, of which nothing is known here."""
    found = session.statistics
    line = "this client sent and received"
    if found.decode_steps:
        line += f" {found.decode_bytes / found.decode_steps:,.0f} bytes a step of one token, and"
    line += f" {(found.wire_bytes - found.decode_bytes) / 1e3:,.1f} kB for all others"
    used = " and ".join(f"{count} in {codec}" for codec, count in sorted(found.codecs.items()))
    line += f"; of the steps that it sent, {used}"
    if choice != "auto":
        return f"{line}, as asked for"
    slowest = min(bandwidths) / 1e6
    return (
        f"{line}: zstd for {MIN_COMPRESSED_BYTES >> 10} KiB or more where a link has less than "
        f"{ZSTD_PAYS_BELOW / 1e6:.0f} MB/s; the slowest has {slowest:,.1f}"
    )


def _checks_line(checks: Any) -> str:
    found = checks.statistics
    skipped = sum(found.skipped.values())
    upto = min(one.verified for one in checks.checked)
    line = f"{found.checks} checks, all outputs verified up to position {upto}"
    line += f", {skipped} checks skipped" if skipped else ""
    return line + (f", {found.disputes} disputes" if found.disputes else "")


def _speculation(drafting: Any) -> dict[str, int] | None:
    """What drafts gave; None where nothing was to be drafted."""
    if drafting is None:
        return None
    found = drafting.statistics
    return {
        "drafted": found.sent,
        "right": found.right,
        "decode_steps": found.steps,
        "tokens": found.tokens,
        "steps_ahead": found.ahead,
        "steps_ahead_held": found.held,
    }


def _verification(session: Any, fraction: float) -> dict[str, Any] | None:
    """What spot checks found; None without `--verify`."""
    if session.checks is None:
        return None
    found = session.checks.statistics
    return {
        "fraction": fraction,
        "checks": found.checks,
        "positions": found.positions,
        "skipped": dict(found.skipped),
        "disputes": found.disputes,
        "verdicts": [one.to_json() for one in found.evidence],
        "largest_difference": found.largest_difference,
        "verified": [
            {"blocks": str(one.span), "positions": one.verified} for one in session.checks.checked
        ],
        "waited_seconds": round(found.waited_seconds, 4),
    }
