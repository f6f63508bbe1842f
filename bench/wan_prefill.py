"""A long prompt over a wide-area network: in one piece, hop after hop, and in chunks that flow.

Four sites, all pairs alike: three daemons that share the model, each with one thread, and the
client. All ways are taken in turn within one run, with prompts of random tokens.

    python -m bench.wan_prefill [--rtt 50] [--tokens 1024] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from typing import Any

from bench.report import save, show
from bench.wan import Lab, Link, why_not
from bench.wan.prefill_client import WAYS

SPANS = ("0:10", "10:20", "20:30")
PORT = 31337
RATE = 100e6
BASELINE = "hub, one piece"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rtt", type=float, default=50, help="milliseconds")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"no network namespaces here: {reason}")
    with Lab.of(len(SPANS) + 1, Link(delay=options.rtt / 2e3, rate=RATE)) as lab:
        for site, span in zip(lab.sites, SPANS, strict=False):
            known = [] if site is lab[1] else ["--peer", f"{lab[1].address}:{PORT}"]
            site.start(
                "serve", "--blocks", span, "--host", site.address, "--port", str(PORT),
                "--threads", "1", *known,
            )  # fmt: skip
            site.wait_for("serving blocks")
        done = lab[len(SPANS) + 1].run(
            "--peer", f"{lab[1].address}:{PORT}", "--tokens", str(options.tokens),
            "--rounds", str(options.rounds),
            program=(sys.executable, "-m", "bench.wan.prefill_client"),
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    medians = {name: statistics.median(found[name]["seconds"]) for name in WAYS}
    show(
        f"a prompt of {options.tokens} tokens through {len(SPANS)} hops on {os.cpu_count()} cores, "
        f"100 Mbit/s, RTT {options.rtt:g} ms, medians of {options.rounds}",
        ("way", "seconds", "times as fast", "chunks of"),
        [
            (
                name,
                f"{seconds:.2f}",
                f"{medians[BASELINE] / seconds:.2f}",
                " ".join(sorted({f"{chunk:g}" for chunk in found[name]["chunk"]})),
            )
            for name, seconds in medians.items()
        ],
    )
    save("wan_prefill", vars(options), found)


if __name__ == "__main__":
    main()
