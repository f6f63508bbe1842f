"""Hypothesis without a clock: a busy machine fails no test. And no loop may log an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("swarmd", deadline=None, print_blob=True)
settings.load_profile("swarmd")


@pytest.fixture(autouse=True)
def no_loop_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a loop logs (a callback that raised) fails the test."""
    yield
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert not errors, errors
