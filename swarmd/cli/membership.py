"""The swarm that a command's options mean: see :mod:`swarmd.membership`."""

from __future__ import annotations

from swarmd.membership import Membership, membership

__all__ = ["Membership", "membership"]
