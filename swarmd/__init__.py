"""swarmd: one language model, served by a swarm of ordinary machines."""

__all__ = ["__version__"]

__version__ = "0.1.0"
