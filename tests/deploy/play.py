"""`python -m tests.deploy.play`: the compose file's commands, without containers.

Each service runs on its own address in one network namespace that holds nothing else; so `--host`
and the host of `--http` are that address instead of a container's. Ends with 0 if the API answers
a request.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tests.deploy.files import composed
from tests.walk.page import Command
from tests.walk.stage import ROOT, Stage, WalkFailed, is_alone, own_network, set_up_network, staged

KEY = secrets.token_hex(24)
READY = {"serve": "serving blocks", "api": "/v1"}


def address_of(service: dict[str, Any]) -> str:
    return str(service["networks"]["swarm"]["ipv4_address"])


def play(stage: Stage) -> str:
    """Start all services in the file's order; returns an answer. Raises WalkFailed."""
    for name, service in composed().items():
        address = address_of(service)
        arguments = service["command"].replace("--host 0.0.0.0", f"--host {address}")
        arguments = arguments.replace("--http 8000", f"--http {address}:8000")  # and keys guard it
        text = f"env SWARMD_API_KEYS={KEY} swarmd {arguments}"
        command = Command("deploy/compose.yaml", 1, "bash", text)
        stage.say(f"{name}: swarmd {arguments}")
        stage.start(name, command, text, READY[arguments.split()[0]])
    body = {
        "model": "SmolLM2-135M-Instruct.Q4_1",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    request = urllib.request.Request(
        f"http://{address}:8000/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = json.load(answer)["choices"][0]["message"]["content"]
    if not text:
        raise WalkFailed("the API answered with nothing")
    return str(text)


def main() -> int:
    if not is_alone():
        command = [*own_network(), sys.executable, "-m", "tests.deploy.play"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    set_up_network([address_of(service) for service in composed().values()])
    with tempfile.TemporaryDirectory(prefix="swarmd-compose-") as folder:
        try:
            with staged(Path(folder)) as stage:
                stage.say(f"the API answered: {play(stage)!r}")
        except (WalkFailed, OSError) as error:
            print(f"it failed: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
