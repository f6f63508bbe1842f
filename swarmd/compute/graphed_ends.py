"""A client's embedding and head on a GPU, each as one CUDA graph for a single token."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["GraphedCall"]

WARM_UPS = 2


class GraphedCall:
    """A function of one tensor, always of the same shape, replayed as one launch.

    The result is read to the CPU before the next call, so that the buffers can be used again.
    """

    def __init__(
        self, function: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor
    ) -> None:
        """`sample` is an input on the device. Raises whatever cannot be captured raises."""
        self._input = sample.clone()
        side = torch.cuda.Stream(sample.device)
        side.wait_stream(torch.cuda.current_stream(sample.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function(self._input)
        torch.cuda.current_stream(sample.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            output = function(self._input)
        self._output = output
        self._host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """The result on the CPU, a tensor of its own."""
        self._input.copy_(value, non_blocking=True)
        self._graph.replay()
        self._host.copy_(self._output, non_blocking=True)
        torch.cuda.current_stream(self._input.device).synchronize()
        return self._host.clone()
