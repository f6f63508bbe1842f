"""swarmd: one language model, served by a swarm of ordinary machines."""

import importlib
from typing import Any

__all__ = [
    "AutoDistributedModelForCausalLM",
    "AutoDistributedModelForSequenceClassification",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The models for programs, which bring torch along, are imported when they are asked for."""
    if name.startswith("AutoDistributedModel") and name in __all__:
        return getattr(importlib.import_module("swarmd.hf.auto"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
