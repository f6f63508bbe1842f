"""Decode over a wide-area network: what trips cost, against the formula, and what drafts save.

Five sites, all pairs alike: four daemons that share the model, and the client. At each round trip
time, the time of a token minus what the peers computed is compared with (S+1) x RTT / 2, for S hops
that forward to one another (a ring), and with S x RTT, where the client asks each in turn (a hub);
both in turn in the same run. What a round trip of as many bytes takes in the lab itself, without
swarmd, is measured beside it: delay and rate are emulated on the same cores. Then, at one round
trip time, answers in a ring with and without drafts from the text itself, in turn, for a prompt
whose answer repeats it and for one whose does not: sent along with a token only (`along`), and also
in steps put in ahead (`ahead`).

    python -m bench.wan_decode [--rtts 0,20,50,100,150] [--rounds 2] [--tokens 32] [--at 100]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from bench.report import save, show
from bench.wan import Lab, Link, why_not
from bench.wan.round_trip import round_trip_ms

SPANS = ("0:8", "8:15", "15:23", "23:30")
PORT = 31337
RATE = 100e6
TRIPS = {"ring": (len(SPANS) + 1) / 2, "hub": float(len(SPANS))}
"""Round trips a token, by route."""
STORY = "The history of the steam engine begins in"
TEXT = (
    "The mill stood at the bend of the river, where the water was deep and slow. Every morning the "
    "miller opened the gate, and the great wheel began to turn. Farmers came from the villages "
    "with sacks of wheat and barley, and while the stones were grinding they told the news. "
    "When the railway came, the mill fell silent, and only the wheel was left in the water."
)
EDIT = f"Repeat the following text word by word, and correct its errors.\n\n{TEXT}"


DRAFTS = {"off": (0, 0), "along": (7, 0), "ahead": (7, 3)}
"""Drafted tokens a step, and steps ahead."""


def answer(lab: Lab, prompt: str, tokens: int, speculate: int, *options: str) -> dict[str, Any]:
    """One `swarmd generate --json` at the client's site."""
    done = lab[len(SPANS) + 1].run(
        "generate", prompt, "--peer", f"{lab[1].address}:{PORT}", "-n", str(tokens),
        "--speculate", str(speculate), "--json", *options,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def serve(lab: Lab) -> None:
    """A daemon at each of the first sites, ready."""
    for site, span in zip(lab.sites, SPANS, strict=False):
        known = [] if site is lab[1] else ["--peer", f"{lab[1].address}:{PORT}"]
        site.start(
            "serve", "--blocks", span, "--host", site.address, "--port", str(PORT),
            "--threads", "1", *known,
        )  # fmt: skip
        site.wait_for("serving blocks")


def trips(
    lab: Lab, rtts: list[float], rounds: int, tokens: int
) -> dict[str, dict[str, list[float]]]:
    """By route and round trip time in ms, seconds a token that are not computing, of each round;
    under `lab`, what a round trip took there, in ms."""
    found: dict[str, dict[str, list[float]]] = {
        route: {f"{rtt:g}": [] for rtt in rtts} for route in (*TRIPS, "lab")
    }
    for _ in range(rounds):
        for rtt in rtts:
            lab.set(Link(delay=rtt / 2e3, rate=RATE))
            found["lab"][f"{rtt:g}"].append(round_trip_ms(lab, len(SPANS) + 1, 1))
            for route in TRIPS:
                chain = answer(lab, STORY, tokens, 0, "--route", route)["chain"]
                rest = chain["decode_seconds"] - chain["compute_seconds"] - chain["queue_seconds"]
                found[route][f"{rtt:g}"].append(rest / chain["decode_steps"])
                if (route == "ring") != bool(chain["forwarded"]):
                    raise RuntimeError(f"{route}: {chain['forwarded']} steps were forwarded")
    return found


def drafts(lab: Lab, rtt: float, rounds: int, tokens: int) -> dict[str, Any]:
    """Tokens a second of each round by prompt, with and without drafts; texts must be equal."""
    lab.set(Link(delay=rtt / 2e3, rate=RATE))
    found: dict[str, Any] = {}
    for name, prompt, options in (("edit", EDIT, ("--chat",)), ("story", STORY, ())):
        rates: dict[str, list[float]] = {kind: [] for kind in DRAFTS}
        said: dict[str, list[dict[str, int]]] = {kind: [] for kind in DRAFTS}
        texts = set()
        for _ in range(rounds):
            for kind, (most, ahead) in DRAFTS.items():
                one = answer(lab, prompt, tokens, most, "--ahead", str(ahead), *options)
                rates[kind].append(one["tokens_per_second"])
                texts.add(one["text"])
                said[kind] += [one["speculation"]] if one["speculation"] else []
        found[name] = {"tokens_per_second": rates, "drafts": said, "texts": len(texts)}
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rtts", default="0,20,50,100,150", help="milliseconds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--at", type=float, default=100, help="RTT of the second part, ms")
    parser.add_argument("--draft-tokens", type=int, default=96, help="tokens of the second part")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"no network namespaces here: {reason}")
    rtts = [float(rtt) for rtt in options.rtts.split(",")]
    with Lab.of(len(SPANS) + 1, Link(rate=RATE)) as lab:
        serve(lab)
        waited = trips(lab, rtts, options.rounds, options.tokens)
        drafted = drafts(lab, options.at, options.rounds, options.draft_tokens)
    rows = []
    for rtt in rtts:
        true = statistics.median(waited["lab"][f"{rtt:g}"])
        row = [f"{rtt:g}", f"{true:.1f}"]
        for route, count in TRIPS.items():
            value = 1e3 * statistics.median(waited[route][f"{rtt:g}"])
            over = f"{value / (count * rtt) - 1:+.1%}" if rtt else "-"
            row += [f"{value:.1f}", over, f"{value / (count * true) - 1:+.1%}" if rtt else "-"]
        rows.append(tuple(row))
    show(
        f"a token through {len(SPANS)} hops at 100 Mbit/s: ms that are not computing, and how much "
        f"over (S+1) x RTT / 2 in a ring, S x RTT in a hub, medians of {options.rounds}",
        ("RTT asked for", "in the lab", "ring", "over asked", "over the lab's",
         "hub", "over asked", "over the lab's"),
        rows,
    )  # fmt: skip
    rows = []
    for name, one in drafted.items():
        same = "yes" if one["texts"] == 1 else "NO"
        plain = statistics.median(one["tokens_per_second"]["off"])
        for kind, rates in one["tokens_per_second"].items():
            said = one["drafts"][kind]
            sent, right = (sum(each[what] for each in said) for what in ("drafted", "right"))
            ahead, held = (
                sum(each[what] for each in said) for what in ("steps_ahead", "steps_ahead_held")
            )
            rate = statistics.median(rates)
            rows.append(
                (name, kind, f"{rate:.2f}", f"{rate / plain:.2f}", f"{right} of {sent}",
                 f"{held} of {ahead}", same)
            )  # fmt: skip
    show(
        f"drafts from the text, RTT {options.at:g} ms, medians of {options.rounds}",
        ("prompt", "drafts", "tokens/s", "ratio", "right", "steps ahead held", "same text"),
        rows,
    )
    save("wan_decode", vars(options), {"not_computing": waited, "drafts": drafted})


if __name__ == "__main__":
    main()
