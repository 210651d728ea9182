"""A catalogue whose only kernel cannot run, its default config included."""

from __future__ import annotations

from tests.autotune.fakes import ConfigSpace, Kernel, ToyConfig, prepare

_SPACE = ConfigSpace(ToyConfig, {"tile": (64,), "how": ("abort",)})
KERNELS = (Kernel("hopeless", "gemm", "variant", prepare, lambda problem, gpu: ToyConfig(64, "abort"), _SPACE),)


def kernels_for(op: str) -> tuple[Kernel, ...]:
    return KERNELS if op == "gemm" else ()


def find(name: str, op: str) -> Kernel:
    return next(kernel for kernel in kernels_for(op) if kernel.name == name)
