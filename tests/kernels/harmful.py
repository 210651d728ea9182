"""Kernels that compute with torch on any device and then do harm: to try out what should notice."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.inputs import GemmInputs, Inputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import Config

Harm = Callable[[torch.Tensor, GemmInputs, torch.Tensor], object]
"""What a kernel does after a call, given the number of the call (on the device: a graph's replays count too), the inputs and y."""


def fake(name: str, harm: Harm | None = None) -> Kernel:
    """A GEMM on any device that writes raw sums, right but for the harm."""

    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        assert isinstance(inputs, GemmInputs)
        y = torch.empty((problem.tokens, problem.out_features), dtype=torch.int32, device=inputs.x_q.device)
        w, calls = inputs.w_ternary.float().t().contiguous(), torch.zeros((), dtype=torch.int32, device=y.device)

        def run() -> Outputs:
            calls.add_(1)
            y.copy_(inputs.x_q.float() @ w)
            if harm is not None:
                harm(calls, inputs, y)
            return {"y": y}

        return Prepared(run, {"y": y})

    return Kernel(name, "gemm", "variant", prepare)


def beside(tensor: torch.Tensor, distance: int) -> torch.Tensor:
    """One byte at that distance behind the end of a tensor (in bytes), or before its start where that is negative."""
    start = tensor.storage_offset() * tensor.element_size()
    at = start + (tensor.nbytes + distance if distance >= 0 else distance)
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage(), at, (1,), (1,))


def behind(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
    """Writes the sixth byte behind its output."""
    beside(y, 5).fill_(1)


def before(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
    """Writes the third byte before one of its inputs."""
    beside(inputs.w_scale, -3).fill_(1)


def rarely_wrong(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
    """Is wrong in every fourth call."""
    y[1, 2] += calls % 4 == 0


def writes_its_input(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
    """Writes an input once, in the sixth call."""
    inputs.x_q[0, 0] += calls == 6


def silent(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
    """Leaves its output as poisoned from the seventh call on."""
    y.masked_fill_(calls > 6, torch.iinfo(torch.int32).min)


def zero(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
    """Writes zeros."""
    y.zero_()
