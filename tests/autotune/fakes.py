"""A catalogue of toy kernels on the CPU: right, wrong, hanging, crashing and refused configs with scripted times."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from autotune.clock import FakeCall
from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, GemmInputs
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem
from kernels.space import ConfigSpace
from reference.linear import linear
from tests.patience import hang

COSTS = {32: 20.0, 64: 10.0, 128: 15.0}


@dataclass(frozen=True)
class ToyConfig:
    tile: int
    how: str = "right"


def prepare(problem: Problem, inputs: GemmInputs, config: ToyConfig) -> Prepared:
    if config.how == "refused":
        raise ShapeError("tiles of this toy must be square")

    def run() -> dict[str, Any]:
        if config.how == "hang":
            hang()
        if config.how == "abort":
            os.abort()
        y = linear(inputs.x_q, inputs.x_scale, inputs.w_ternary, inputs.w_scale, problem.splits).to(DTYPES[problem.dtype])
        return {"y": y * 2 if config.how == "wrong" else y}

    return Prepared(FakeCall(run, COSTS[config.tile]), footprint=1 << 30)


def reject(problem: Problem, gpu: Gpu, config: ToyConfig) -> str | None:
    return "too large for the tokens" if config.tile > 64 and problem.tokens < 3 else None


def toy(name: str, tiles: tuple[int, ...], hows: tuple[str, ...] = ("right",), default: int = 32) -> Kernel:
    space = ConfigSpace(ToyConfig, {"tile": tiles, "how": hows}, reject)
    return Kernel(name, "gemm", "variant", prepare, lambda problem, gpu: ToyConfig(default), space)


KERNELS = (
    toy("good", (32, 64, 128)),
    toy("default-wins", (32, 64), default=64),
    toy("faulty", (64,), ("hang", "abort", "refused", "right")),
    toy("liar", (32, 64), ("wrong", "right")),
)


def kernels_for(op: str) -> tuple[Kernel, ...]:
    return KERNELS if op == "gemm" else ()


def find(name: str, op: str) -> Kernel:
    return next(kernel for kernel in kernels_for(op) if kernel.name == name)
