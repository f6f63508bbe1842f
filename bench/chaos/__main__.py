"""Seeded faults against real daemons under four concurrent clients, whose answers must not change.

Five daemons hold the model at least twice; each stands behind a proxy. They are killed and
restarted, also with other blocks, stopped, cut off, muted, deafened, slowed down, and their bytes
corrupted. Each finished answer must equal the one of the same client before the first fault. An
answer that ends with a typed error is counted and shown. It exits with 1 when an answer differs,
hangs or ends with anything else, when spot checks accuse somebody, or a daemon does not come back.

    python -m bench.chaos [--seconds 600] [--seed 1] [--tokens 48] [--model NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from bench.chaos.clients import Model
from bench.chaos.faults import schedule
from bench.chaos.runner import Result, Swarmlet, run
from bench.report import save, show
from swarmd.blocks import Span
from swarmd.client.loading import resolve_client_folder
from swarmd.compute.ends import ModelEnds


def halves(n_blocks: int) -> list[Span]:
    """Spans of five nodes: each half of the model twice, and the first once more."""
    half = n_blocks // 2
    front, back = Span(0, half), Span(half, n_blocks)
    return [front, back, front, back, front]


async def work(options: argparse.Namespace) -> Result:
    folder = await resolve_client_folder(options.model, None)
    model = Model(folder, await asyncio.to_thread(ModelEnds, folder, dtype="float32"))
    spans = halves(folder.n_blocks)
    faults = schedule(options.seed, options.seconds, spans, folder.n_blocks, pause=options.pause)
    named = ("--model", options.model) if options.model else ()
    async with Swarmlet.of(spans, "--dtype", "float32", *named) as swarmlet:
        result = await run(swarmlet, model, faults, seconds=options.seconds, tokens=options.tokens)
    return result


def report(result: Result) -> None:
    """The table, and what went wrong."""
    rows = []
    for number, (at, fault) in enumerate(result.done):
        touched = result.touched.get(number, [])
        rows.append((
            f"{at:.1f}", fault.kind.value, fault.victim, f"{fault.seconds:.1f}",
            "; ".join(one.setting for one in touched) or "-",
            f"{max((one.stall for one in touched), default=0.0):.2f}",
            sum(one.replayed for one in touched),
        ))  # fmt: skip
    show(
        "faults, and what they cost",
        ("at, s", "kind", "node", "for, s", "answers touched", "longest stall, s", "replayed"),
        rows,
    )
    tally = result.tally
    stalls = [one.stall for one in tally.touches]
    print(
        f"{result.seconds:.0f} s, {len(result.done)} faults, {len(stalls)} hops replaced "
        f"(median stall {statistics.median(stalls or [0.0]):.2f} s); answers: {tally.equal} equal, "
        f"{len(tally.different)} different, {len(tally.refused)} ended with an error, "
        f"{len(tally.died)} died or hung; {len(result.unexplained)} hops were lost at nodes that "
        "nothing had been done to"
    )
    for line in (*tally.different, *tally.died, *tally.withdrawn, *result.broken, *tally.refused):
        print(f"  {line}")


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument(
        "--pause", type=float, default=3.0, help="seconds between faults, on average"
    )
    parser.add_argument("--model", help="default: the embedded one")
    options = parser.parse_args()
    result = asyncio.run(work(options))
    report(result)
    save("chaos", vars(options), result.as_json())
    if not result.good:
        sys.exit(1)


if __name__ == "__main__":
    main()
