"""`--speculate`, `--ahead` and `--draft`, and what they make."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import click

from swarmd.cli.runtime import ProgressBars
from swarmd.errors import UsageError

__all__ = ["check_speculation", "load_drafting", "speculation_options"]

F = TypeVar("F", bound=Callable[..., Any])


def speculation_options(command: F) -> F:
    """`--speculate`, `--ahead` and `--draft`."""
    command = click.option(
        "--draft",
        metavar="MODEL",
        help="A small model of the same vocabulary, run on this machine, that drafts where the "
        "text repeats nothing.",
    )(command)
    command = click.option(
        "--ahead",
        type=click.IntRange(0, 3),
        default=3,
        show_default=True,
        metavar="STEPS",
        help="Put up to so many further steps of drafts in behind the one under way, before "
        "that is answered, where trips are long and drafts mostly right. 0 is off.",
    )(command)
    return click.option(
        "--speculate",
        type=click.IntRange(0, 32),
        metavar="TOKENS",
        help="Draft up to so many tokens from what the text repeats, and have them verified in one "
        "trip, as far as that pays; the answer stays the same. 0 is off. [default: 7 where peers "
        "compute in float32, else 0]",
    )(command)


def check_speculation(longest: int | None, draft: str | None) -> None:
    """Raises UsageError for a draft model that may not draft."""
    if draft is not None and longest == 0:
        raise UsageError("--draft needs --speculate of 1 or more")


async def load_drafting(
    longest: int | None, ahead: int, draft: str | None, client: Any
) -> Callable[[], Any]:
    """What makes the speculation of one answer, or None where there is none; a draft model is
    loaded once. Raises ModelError, UsageError."""
    from swarmd.client.draft_model import load_draft_model
    from swarmd.client.drafting import DEFAULT_LONGEST, Drafting, default_longest

    if longest is None:
        longest = DEFAULT_LONGEST if draft is not None else default_longest(client.ends.dtype)
    if longest == 0:
        return lambda: None
    model = None
    if draft is not None:
        with ProgressBars() as bars:
            model = await asyncio.to_thread(
                load_draft_model, draft, client.text, client.ends.dtype, bars.update
            )
    return lambda: Drafting(longest, model, ahead=ahead)
