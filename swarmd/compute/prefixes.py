"""Names of pages: a page's content follows from all inputs up to its end and from nothing else.

A name is a hash over the name of the page before, which stands for all earlier inputs, and the raw
bytes of the page's own inputs; the first page's predecessor is named after the blocks. Two sessions
that send the same bytes from position 0 on through the same blocks thus find the same pages, which
is what a common system prompt comes to. Equal inputs give equal outputs to the last bit, because
it is the outputs of the first session that the second one gets. BLAKE2b, 256 bits: nobody finds two
inputs of one name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from swarmd.blocks import Span
from swarmd.compute.pages import PAGE_TOKENS

__all__ = ["page_names"]


def page_names(
    blocks: Span, before: Sequence[bytes], inputs: memoryview, token_bytes: int
) -> list[bytes]:
    """The names of all full pages that `inputs` begin with, of `token_bytes` each token.

    `before` are the names of all pages before, none for a session's first page.
    """
    name = before[-1] if before else f"blocks {blocks.start}:{blocks.end}".encode()
    size = PAGE_TOKENS * token_bytes
    names = []
    for start in range(0, len(inputs) - size + 1, size):
        name = hashlib.blake2b(name + inputs[start : start + size], digest_size=32).digest()
        names.append(name)
    return names
