"""Decode over a wide-area network: what trips cost, against the formula, and what drafts save.

Five sites, all pairs alike: four daemons that share the model, and the client. At each round trip
time, the time of a token minus what the peers computed is compared with S x RTT: the client asks
each of S hops in turn (a hub). Then, at one round trip time, answers with and without drafts from
the text itself, in turn, for a prompt whose answer repeats it and for one whose does not.

    python -m bench.wan_decode [--rtts 0,20,50,100,150] [--rounds 2] [--tokens 48] [--at 100]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from bench.report import save, show
from bench.wan import Lab, Link, why_not

SPANS = ("0:8", "8:15", "15:23", "23:30")
PORT = 31337
RATE = 100e6
STORY = "The history of the steam engine begins in"
TEXT = (
    "The mill stood at the bend of the river, where the water was deep and slow. Every morning the "
    "miller opened the gate, and the great wheel began to turn. Farmers came from the villages "
    "with sacks of wheat and barley, and while the stones were grinding they told the news. "
    "When the railway came, the mill fell silent, and only the wheel was left in the water."
)
EDIT = f"Repeat the following text word by word, and correct its errors.\n\n{TEXT}"


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


def trips(lab: Lab, rtts: list[float], rounds: int, tokens: int) -> dict[str, list[float]]:
    """By round trip time in ms, seconds a token that are not computing, of each round."""
    found: dict[str, list[float]] = {f"{rtt:g}": [] for rtt in rtts}
    for _ in range(rounds):
        for rtt in rtts:
            lab.set(Link(delay=rtt / 2e3, rate=RATE))
            chain = answer(lab, STORY, tokens, 0)["chain"]
            rest = chain["decode_seconds"] - chain["compute_seconds"] - chain["queue_seconds"]
            found[f"{rtt:g}"].append(rest / chain["decode_steps"])
    return found


def drafts(lab: Lab, rtt: float, rounds: int, tokens: int) -> dict[str, Any]:
    """Tokens a second of each round by prompt, with and without drafts; texts must be equal."""
    lab.set(Link(delay=rtt / 2e3, rate=RATE))
    found: dict[str, Any] = {}
    for name, prompt, options in (("edit", EDIT, ("--chat",)), ("story", STORY, ())):
        rates: dict[str, list[float]] = {"off": [], "on": []}
        said, texts = [], set()
        for _ in range(rounds):
            for kind, most in (("off", 0), ("on", 7)):
                one = answer(lab, prompt, tokens, most, *options)
                rates[kind].append(one["tokens_per_second"])
                texts.add(one["text"])
                said += [one["speculation"]] if one["speculation"] else []
        found[name] = {"tokens_per_second": rates, "drafts": said, "texts": len(texts)}
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rtts", default="0,20,50,100,150", help="milliseconds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--at", type=float, default=100, help="RTT of the second part, ms")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"no network namespaces here: {reason}")
    rtts = [float(rtt) for rtt in options.rtts.split(",")]
    with Lab.of(len(SPANS) + 1, Link(rate=RATE)) as lab:
        serve(lab)
        waited = trips(lab, rtts, options.rounds, options.tokens)
        drafted = drafts(lab, options.at, options.rounds, 2 * options.tokens)
    medians = {rtt: 1e3 * statistics.median(values) for rtt, values in waited.items()}
    base = medians.get("0", 0.0)
    show(
        f"a token through {len(SPANS)} hops at 100 Mbit/s, medians of {options.rounds}",
        ("RTT, ms", "not computing, ms", "S x RTT, ms", "over it", "over it, less that at 0 ms"),
        [
            (
                rtt,
                f"{value:.1f}",
                f"{len(SPANS) * float(rtt):.0f}",
                f"{value / (len(SPANS) * float(rtt)) - 1:+.1%}" if float(rtt) else "-",
                f"{(value - base) / (len(SPANS) * float(rtt)) - 1:+.1%}" if float(rtt) else "-",
            )
            for rtt, value in medians.items()
        ],
    )
    rows = []
    for name, one in drafted.items():
        rates = {k: statistics.median(v) for k, v in one["tokens_per_second"].items()}
        sent = sum(said["drafted"] for said in one["drafts"])
        right = sum(said["right"] for said in one["drafts"])
        same = "yes" if one["texts"] == 1 else "NO"
        rows.append(
            (name, f"{rates['off']:.2f}", f"{rates['on']:.2f}", f"{rates['on'] / rates['off']:.2f}",
             f"{right} of {sent}", same)
        )  # fmt: skip
    show(
        f"drafts from the text, RTT {options.at:g} ms, medians of {options.rounds}",
        ("prompt", "tokens/s without", "with", "ratio", "right", "same text"),
        rows,
    )
    save("wan_decode", vars(options), {"not_computing": waited, "drafts": drafted})


if __name__ == "__main__":
    main()
