"""Whether the device that was asked for exists."""

from __future__ import annotations

import torch

from swarmd.errors import UsageError

__all__ = ["check_device"]


def check_device(name: str) -> None:
    """Raises UsageError for a device that this machine or this torch build does not have."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: use cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise UsageError(f"--device {name}: only cpu and cuda are supported")
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: this machine or this torch build ({torch.__version__}) has no CUDA"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} GPUs")
