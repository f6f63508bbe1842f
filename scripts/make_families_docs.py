"""Write docs/families.md: which families of `transformers` work, and why the others do not.

python scripts/make_families_docs.py            walk all families (a minute) and write the page
python scripts/make_families_docs.py --refused  keep what the page says of those that work

`tests/compute/test_families.py` holds every line of the page against what it finds itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from swarmd.cli.runtime import prepare_libraries  # noqa: E402

prepare_libraries()

import torch  # noqa: E402
import transformers  # noqa: E402

from swarmd.compute.dry_run import check_can_be_cut  # noqa: E402
from swarmd.errors import UnsupportedModel  # noqa: E402
from tests.families import FAMILIES, MULTIMODAL, causal_families, stock_config  # noqa: E402
from tests.family_walk import is_exact, walk  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
WORDS = {True: "in batches", False: "one by one"}
HEAD = """\
# Families

Made by `scripts/make_families_docs.py` with transformers {version}; do not edit it by hand.

swarmd has no model code. A span is the library's own model with the other blocks left out, so a
family works if its blocks take nothing but the hidden states of the block before, and keep nothing
but keys and values for each position. That is found out before a weight is read
(`swarmd/compute/dry_run.py`): a model that does not pass is refused with the reason below, whatever
its family is called. This page has every name under which the library knows a causal language
model.

## What works

{working} families. `tests/compute/test_families.py` walks each of them with a tiny random model in
float32, over one span and over three, against the stock model: a prefill in two chunks, decoding, a
draft that is taken back, a cut far back, all beyond the sliding window or chunk. Logits are within
10⁻⁵ of the largest, greedy tokens are equal.

*In batches*: sessions run together, each turn of the engine one run ({batched} families). *One by
one*: the family attends in its own way, and sessions take turns ({single}); the walk is the same.

A model with LongRoPE (Phi-3 with 128k positions) is served up to its original number of positions:
beyond that, what the library gives depends on how a prompt is divided into steps.

| family | sessions run |
|---|---|
"""
REFUSED = """
## What is refused

| family | reason |
|---|---|
"""
UNTESTED = """
## Models of text and something else

Where the language model in them is of a family above, its blocks may run; no whole checkpoint of
one was tried.

"""


def make_page(batched: Mapping[str, bool]) -> str:
    """The page, if those are the families that work. What is refused is tried anew."""
    counts = list(batched.values())
    parts = [
        HEAD.format(
            version=transformers.__version__,
            working=len(counts),
            batched=sum(counts),
            single=len(counts) - sum(counts),
        )
    ]
    parts += [f"| {family} | {WORDS[batched[family]]} |\n" for family in sorted(batched)]
    parts.append(REFUSED)
    others = sorted(causal_families() - batched.keys() - MULTIMODAL)
    parts += [f"| {family} | {reason_of(family)} |\n" for family in others]
    parts += [UNTESTED, ", ".join(sorted(MULTIMODAL)), "\n"]
    return "".join(parts)


def reason_of(family: str) -> str:
    """Why a family is refused. Raises ValueError for one that is not."""
    try:
        check_can_be_cut(stock_config(family))
    except UnsupportedModel as error:
        return " ".join(str(error).split()).replace("|", "/")
    raise ValueError(f"{family} is not refused; add it to tests/families.py")


def documented(page: str) -> dict[str, bool]:
    """The families that a page says to work, and whether in batches."""
    found = re.findall(rf"^\| ([\w.-]+) \| ({'|'.join(WORDS.values())}) \|$", page, re.MULTILINE)
    return {family: words == WORDS[True] for family, words in found}


def main(arguments: list[str]) -> int:
    if arguments == ["--refused"]:
        batched = documented(PAGE.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(1)  # tiny matrices gain nothing from a second core
        walks = [walk(family) for family in FAMILIES]
        if wrong := [one for one in walks if not is_exact(one)]:
            print(f"not exact: {wrong}", file=sys.stderr)
            return 1
        batched = {one.family: one.together is not None for one in walks}
    PAGE.write_text(make_page(batched), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
