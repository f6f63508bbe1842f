"""The stall when a peer fails far away: killed, stopped, or cut off from the network.

Four sites, all pairs alike: a daemon with the first half of the model, two with the second half,
and the client. At a given position of prompt and answer, the one of the two that is on the route
gets SIGKILL or SIGSTOP, or all its packets are lost from then on; each with the other one as a
replacement that has to be found, and with it standing by. The stall is the time to the next token,
less the median time a token of the same answer; every disturbed answer must equal the undisturbed
one. The baseline in the same run is a client that keeps nothing: prompt and answer are prefilled
anew.

    python -m bench.wan_failover [--rtt 50] [--rounds 3] [--positions 64 512]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench.report import save, show
from bench.wan import Lab, Link, Site, why_not

SPANS = ("0:15", "15:30", "15:30")
CLIENT = len(SPANS) + 1
PORT = 31337
RATE = 100e6
BEFORE, AFTER = 16, 6
"""Tokens of the answer before and after the failure."""
LIMIT = 120.0
FAILURES = ("kill", "stop", "cut")
SHOWN = {"prefill": "all prefilled anew (no replay)", "token": "a token (no failure)"}


def serve(site: Site, known: Site | None) -> None:
    """A daemon with this site's span; returns when it serves."""
    peers = [] if known is None else ["--peer", f"{known.address}:{PORT}"]
    site.start(
        "serve", "--blocks", SPANS[site.number - 1], "--host", site.address,
        "--port", str(PORT), "--threads", "1", *peers,
    )  # fmt: skip
    site.wait_for("serving blocks", log=len(site.running) - 1)


def wait_for_spare(lab: Lab) -> None:
    """Until the client's site finds all peers. Raises TimeoutError."""
    give_up = time.monotonic() + LIMIT
    while True:
        done = lab[CLIENT].run("peers", "--peer", f"{lab[1].address}:{PORT}", "--json")
        if done.returncode == 0:
            peers = [one for model in json.loads(done.stdout)["models"] for one in model["peers"]]
            if sum(one["state"] == "online" for one in peers) == len(SPANS):
                return
        if time.monotonic() > give_up:
            raise TimeoutError(f"not all peers were found:\n{done.stdout}{done.stderr}")
        time.sleep(0.5)


@contextlib.contextmanager
def harmed(lab: Lab, site: Site, failure: str, link: Link) -> Iterator[None]:
    """The site's daemon fails on entry; when the block is left, one serves there again."""
    process = site.running[-1]
    others = [other.number for other in lab.sites if other is not site]
    if failure == "cut":
        for other in others:
            lab.both(Link(loss=1.0), site.number, other)
    else:
        process.send_signal(signal.SIGKILL if failure == "kill" else signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            lab.both(link, site.number, other)
        process.kill()  # a stopped one as well: the next round begins with fresh sessions
        process.wait()
    serve(site, lab[1])


def answer(
    lab: Lab, position: int, link: Link, *, failure: str | None = None, standby: bool = False
) -> dict[str, Any]:
    """What the client found; `failure` strikes the last hop at a position."""
    way = ["--prefill-at" if failure is None else "--pause-at", str(BEFORE)]
    way += ["--standby"] if standby else []
    site = lab[CLIENT]
    process = subprocess.Popen(
        site.command(sys.executable, "-m", "bench.wan.client", "--peer", f"{lab[1].address}:{PORT}",
                     "--prompt-tokens", str(position - BEFORE),
                     "--tokens", str(BEFORE + AFTER), *way),
        env=site.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if failure is None:
            return _last(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise RuntimeError("the client ended before its pause")
        host = json.loads(said)["tail"].rpartition(":")[0]
        victim = next(one for one in lab.sites if one.address == host)
        with harmed(lab, victim, failure, link):
            return _last(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _last(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the client go on, to its end."""
    out, _ = process.communicate("\n", timeout=LIMIT)
    if process.returncode != 0:
        raise RuntimeError(f"the client ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def measure(lab: Lab, link: Link, position: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by kind of failure, and of the baseline. Raises RuntimeError when an
    answer differs from the undisturbed one, or went on without a replacement."""
    found: dict[str, list[float]] = {
        name: []
        for name in (*FAILURES, *(f"{one}, standby" for one in FAILURES), "prefill", "token")
    }
    for _ in range(rounds):
        calm = answer(lab, position, link)
        found["prefill"].append(calm["prefill"])
        found["token"].append(statistics.median(calm["times"][1:]))
        for failure, standby in itertools.product(FAILURES, (False, True)):
            one = answer(lab, position, link, failure=failure, standby=standby)
            if one["tokens"] != calm["tokens"] or one["recoveries"] != 1:
                raise RuntimeError(f"{failure} at {position}: {one}")
            name = f"{failure}, standby" if standby else failure
            found[name].append(one["times"][BEFORE] - statistics.median(one["times"][1:]))
            wait_for_spare(lab)
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rtt", type=float, default=50, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--positions", type=int, nargs="+", default=[64, 512])
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"no network namespaces here: {reason}")
    link = Link(delay=options.rtt / 2e3, rate=RATE)
    figures: dict[str, Any] = {}
    with Lab.of(CLIENT, link) as lab:
        for site in lab.sites[: len(SPANS)]:
            serve(site, None if site is lab[1] else lab[1])
        wait_for_spare(lab)
        for position in options.positions:
            figures[str(position)] = measure(lab, link, position, options.rounds)
    names = [*next(iter(figures.values()))]
    show(
        f"stall after a failure, RTT {options.rtt:g} ms, two hops, medians of {options.rounds}; "
        "all answers equal the undisturbed one",
        ("", *(f"at position {position}" for position in figures)),
        [
            (SHOWN.get(name, name),
             *(f"{statistics.median(one[name]):.2f} s" for one in figures.values()))
            for name in names
        ],
    )  # fmt: skip
    save("wan_failover", vars(options), figures)


if __name__ == "__main__":
    main()
