"""A whole training step as one CUDA graph: forward pass, loss, gradients, clipping and AdamW are launched by one call.

Launching a step's few hundred kernels one by one takes as long for a patch of sixty-four codes as for one code, and hides
what patches save (docs/speed.md).
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps before a capture: they compile, and let libraries take the memory that they keep


class StepGraph:
    """One step at one patch side and batch size; a call replays it and returns copies of what it computed.

    compute(codes, labels) -> tensors, on a GPU, without waiting for it. What it reads besides and changes (weights, moments,
    learning rate) stays where it is from call to call. Its random numbers follow torch's seed at the time of the call.
    Graphs that are never replayed at once share the memory of one `pool`.
    """

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]], codes: Tensor, labels: Tensor, pool: tuple | None):
        self.inputs, self.graph = (codes.clone(), labels.clone()), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                compute(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = compute(*self.inputs)

    def __call__(self, codes: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        for held, new in zip(self.inputs, (codes, labels), strict=True):
            held.copy_(new, non_blocking=True)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)
