"""A case to tune, as it is planned and sent to a worker. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from autotune.clock import Clock
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem

FEW_TOKENS = 64
COPIES = 24
"""A cold candidate has at most so many copies of its inputs: each is packed on its own, which would be most of its time where a hundred
are needed to exceed the L2. A turn plays each once, then, behind a flush."""


@dataclass(frozen=True)
class Job:
    """One case to tune, as it travels to the worker. kernel: its name in `catalogue`, a module with a function `find`.

    cache: folder of Triton's cache, by default Triton's own.
    """

    kernel: str
    problem: Problem
    gpu: Gpu
    clock: Clock
    catalogue: str
    device: str
    cache: str | None = None

    def find(self) -> Kernel:
        """The kernel itself."""
        kernel: Kernel = import_module(self.catalogue).find(self.kernel, self.problem.op)
        return kernel

    @property
    def cold(self) -> bool:
        """Whether the caches are cold in use: preparing weights, and a GEMM of few tokens."""
        few = self.problem.op == "gemm" and self.problem.tokens <= FEW_TOKENS
        return few or self.problem.op in ("prepare", "activation")
