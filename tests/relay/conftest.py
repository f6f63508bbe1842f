"""The chain tests' model and answer, for chains with a hop behind a relay."""

from __future__ import annotations

from tests.chain.conftest import ends, folder, swarm, undisturbed

__all__ = ["ends", "folder", "swarm", "undisturbed"]
