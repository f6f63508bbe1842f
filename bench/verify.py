"""What spot checks cost: tokens a second with `--verify` 0, 0.05 and 0.2, interleaved.

Three real daemons on loopback: one with the first half of the model, two with the second, so that
one of the two checks the other. Verifier, hops and client share this machine's cores, so the
figures are the worst case: elsewhere a verifier computes on a machine of its own. Every answer
must equal the one without checks. Also reported: the wait at the end of an answer, positions that
were compared, and the largest difference between honest outputs.

    python -m bench.verify [--rounds 5] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from bench.nodes import Swarm, swarm
from bench.report import save, show

PROMPT = "The history of the steam engine begins in"
FRACTIONS = ("0", "0.05", "0.2")


def answer(running: Swarm, fraction: str, tokens: int) -> dict[str, Any]:
    """One greedy `swarmd generate --json`."""
    done = running.run(
        "generate",
        PROMPT,
        "--max-new-tokens",
        str(tokens),
        "--verify",
        fraction,
        "--speculate",
        "0",
        "--json",
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    figures: dict[str, dict[str, list[Any]]] = {
        fraction: {"tokens_per_second": [], "verification": []} for fraction in FRACTIONS
    }
    expected: list[int] | None = None
    with swarm("0:15", "15:30", "15:30") as running:
        for _ in range(options.rounds):
            for fraction in FRACTIONS:
                found = answer(running, fraction, options.tokens)
                expected = expected or found["token_ids"]
                if found["token_ids"] != expected:
                    raise SystemExit(f"tokens differ with --verify {fraction}")
                if (found["verification"] or {}).get("disputes"):
                    raise SystemExit("honest peers were in dispute")
                figures[fraction]["tokens_per_second"].append(found["tokens_per_second"])
                figures[fraction]["verification"].append(found["verification"])
    base = statistics.median(figures["0"]["tokens_per_second"])
    rows = []
    for fraction in FRACTIONS:
        rate = statistics.median(figures[fraction]["tokens_per_second"])
        checks = [one for one in figures[fraction]["verification"] if one is not None]
        rows.append(
            (
                fraction,
                f"{rate:.2f}",
                f"{rate / base:.2f}",
                *(
                    f"{statistics.median(one[name] for one in checks):.{digits}f}"
                    if checks
                    else "-"
                    for name, digits in (("positions", 0), ("waited_seconds", 2))
                ),
                f"{max(one['largest_difference'] for one in checks):.1e}" if checks else "-",
            )
        )
    show(
        f"spot checks, SmolLM2-135M fp32, {options.tokens} tokens, medians of {options.rounds} "
        "rounds; all answers are equal",
        ("--verify", "tokens/s", "ratio", "positions", "wait at the end, s", "largest difference"),
        rows,
    )
    save(
        "verify",
        {"rounds": options.rounds, "tokens": options.tokens, "prompt": PROMPT, "link": "loopback"},
        figures,
    )


if __name__ == "__main__":
    main()
