"""From a page to its commands: what stands in fenced `bash` and `python` blocks, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Command", "commands_of"]

LANGUAGES = ("bash", "python")
_FENCE = re.compile(r"^(`{3,}|~{3,})\s*(\w*)\s*$")
_COMMENT = re.compile(r"(?:^|\s{2,})#.*$")  # as these pages write them: two spaces, then the #


@dataclass(frozen=True, slots=True)
class Command:
    """One line of a shell, or one whole program in Python. `line` counts from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def commands_of(page: str, text: str) -> list[Command]:
    """Raises ValueError for a block that is not closed, and for one that cannot be split."""
    found: list[Command] = []
    for line, language, block in _blocks(page, text):
        if language == "python":
            found.append(Command(page, line, language, "\n".join(block)))
        elif language == "bash":
            found.extend(_shell_lines(page, line, block))
    return found


def _blocks(page: str, text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Each fenced block: the number of its first line, its language, its lines."""
    fence, language, first, block = "", "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not fence:
            opening = _FENCE.match(line)
            if opening:
                fence, language, first, block = opening[1], opening[2], number + 1, []
        elif line.strip() == fence:
            yield first, language, block
            fence = ""
        else:
            block.append(line)
    if fence:
        raise ValueError(f"{page}:{first - 1}: the block is not closed")


def _shell_lines(page: str, first: int, block: list[str]) -> Iterator[Command]:
    """Lines without comments; those that end in a backslash go on in the next one."""
    begun, start = "", first
    for number, line in enumerate(block, first):
        if not begun:
            start = number
        begun += _COMMENT.sub("", line).strip()
        if "<<" in begun:
            raise ValueError(f"{page}:{number}: here-documents are not understood")
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        if begun:
            yield Command(page, start, "bash", begun)
        begun = ""
    if begun:
        raise ValueError(f"{page}:{start}: the command is not complete")
