"""The command lines of swarmd that stand in the files of `deploy/`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

__all__ = ["COMPOSE", "DOCKERFILE", "UNIT", "composed", "image_command", "unit_command"]

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
UNIT, DOCKERFILE, COMPOSE = (
    DEPLOY / name for name in ("swarmd.service", "Dockerfile", "compose.yaml")
)


def unit_command(options: str) -> list[str]:
    """The unit's arguments of swarmd, with SWARMD_OPTIONS split as systemd does it."""
    found = re.search(r"^ExecStart=\S+/swarmd (.*)$", UNIT.read_text(), re.MULTILINE)
    assert found, "the unit does not start swarmd"
    return shlex.split(found[1].replace("$SWARMD_OPTIONS", options))


def image_command() -> list[str]:
    """What the image runs when nothing else is said, without the entry point."""
    text = DOCKERFILE.read_text()
    assert re.search(r'^ENTRYPOINT \["swarmd"\]$', text, re.MULTILINE)
    found = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert found, "the image has no CMD"
    return list(json.loads(found[1]))


def composed() -> dict[str, dict[str, Any]]:
    """The services of the compose file, by name, in its order."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services
