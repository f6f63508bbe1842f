"""A wide-area network on one machine: namespaces, TUN devices, and a router that takes its time."""

from bench.wan.lab import Lab, Site, why_not
from bench.wan.links import Link

__all__ = ["Lab", "Link", "Site", "why_not"]
