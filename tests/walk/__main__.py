"""`make walk`: run every command of the README and the quickstarts, each scene at the same time."""

from __future__ import annotations

import subprocess
import sys

from tests.walk.plan import SCENES
from tests.walk.stage import ROOT, own_network

__all__ = ["main"]


def main() -> int:
    """Play all scenes, each in a network namespace of its own; 0 if all went well."""
    running = [
        subprocess.Popen(
            [*own_network(), sys.executable, "-m", "tests.walk.stage", str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(len(SCENES))
    ]
    code = 0
    try:
        for scene, process in zip(SCENES, running, strict=True):
            output, _ = process.communicate()
            print(f"== {scene.name}\n\n{output}", flush=True)
            code = code or process.returncode
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()  # it ends what it started
                process.communicate()
    return code


if __name__ == "__main__":
    sys.exit(main())
