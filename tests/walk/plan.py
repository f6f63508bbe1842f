"""What is walked: which pages, on which machines, and what is done about single commands.

Nothing here is a way to leave a command out quietly: one that is neither run nor excused fails the
walk, and so does an excuse that no command needs any more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.walk.page import Command

__all__ = [
    "EXCUSED",
    "REPLACED",
    "SCENES",
    "Machine",
    "Scene",
    "excuse",
    "is_background",
    "prepared",
]


@dataclass(frozen=True, slots=True)
class Machine:
    """A reader's machine: a home and a state folder of its own, and the pages read there."""

    name: str
    pages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Machines of one network. What runs in the background goes on to the scene's end."""

    name: str
    machines: tuple[Machine, ...]


# The scenes share nothing and run at the same time; each is a network of its own.
_ALONE = ("README.md", "docs/quickstart/openai.md", "docs/quickstart/python.md")
SCENES = (
    Scene("one machine", (Machine("laptop", _ALONE),)),
    Scene(
        "three machines",
        (
            Machine("owner", ("docs/quickstart/private.md",)),
            Machine("helper", ("docs/quickstart/give.md",)),
            Machine("guest", ("docs/quickstart/use.md",)),
        ),
    ),
)

# The addresses that the pages use for examples (RFC 5737) exist within a scene.
ADDRESSES = ("192.0.2.7", "192.0.2.8")

# Started, waited for until they print this, and ended by pid at the scene's end.
BACKGROUND = {"swarmd serve": "serving blocks", "swarmd api": "/v1"}

# Commands that are not run, and why.
EXCUSED = {
    r"make demo": "takes minutes; it is run by hand",
    r"make test": "this walk is a part of it",
}

# What stands for a thing that is not here, and what is put in its place: no hub can be reached, and
# the nodes of the README are on loopback.
REPLACED = {
    'name = "HuggingFaceTB/SmolLM2-135M-Instruct"': (
        "import asyncio\n"
        "from swarmd.client.loading import resolve_client_folder\n"
        "name = str(asyncio.run(resolve_client_folder(None, None)).path)"
    ),
    'peers=["192.0.2.7:31330"]': 'peers=["127.0.0.1:31330"]',
}

INVITE = "swarmd-invite-1-…"
_SHORT = "-n 8"  # what the walk adds to `swarmd generate`: the answer's length is not its concern


def excuse(command: Command) -> str | None:
    """The pattern that excuses a command from being run, or None."""
    if command.language != "bash":
        return None
    return next((known for known in EXCUSED if re.fullmatch(known, command.text)), None)


def is_background(command: Command) -> str | None:
    """What a command prints when it is ready, if it is one that goes on; else None."""
    if command.language != "bash":
        return None
    text = f"{command.text} "
    return next(
        (ready for start, ready in BACKGROUND.items() if text.startswith(f"{start} ")), None
    )


def prepared(command: Command, invite: str | None) -> str:
    """The text to run, with placeholders filled in. Raises ValueError where one cannot be."""
    text = command.text
    if INVITE in text:
        if invite is None:
            raise ValueError(f"{command}: no invite was printed before")
        text = text.replace(INVITE, invite)
    for known, instead in REPLACED.items():
        text = text.replace(known, instead)
    if command.language == "bash":
        if "…" in text:
            raise ValueError(f"{command}: nothing is known to put in place of …")
        if text.startswith("swarmd generate ") and not re.search(r" (-n|--max-new-tokens) ", text):
            text += f" {_SHORT}"
    return text
