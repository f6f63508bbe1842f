"""Faults against a real swarm while four clients answer; see :mod:`bench.chaos.__main__`."""

from bench.chaos.faults import Fault, Kind, schedule
from bench.chaos.proxy import Proxy
from bench.chaos.runner import Result, Swarmlet, run

__all__ = ["Fault", "Kind", "Proxy", "Result", "Swarmlet", "run", "schedule"]
