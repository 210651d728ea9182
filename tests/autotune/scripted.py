"""Candidates that need no torch: scripted times, real hangs and real deaths, for tests of the whole tuner at speed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.clock import Clock, FakeCall, FakeClock
from autotune.job import Job
from autotune.measure import Plan, interleaved
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem
from kernels.space import ConfigSpace
from tests.patience import hang

FAULTY = 20
"""Every 20th candidate hangs, dies or faults: 5 %."""


@dataclass(frozen=True)
class Script:
    a: int
    b: int
    c: int


def prepare(problem: Problem, inputs: object, config: Script) -> Prepared:
    raise AssertionError("scripted candidates are not prepared")


def reject(problem: Problem, gpu: Gpu, config: Script) -> str | None:
    return f"c is {config.c}, more than a is {config.a}" if config.c > config.a + 8 else None


def kernel(name: str, sizes: tuple[int, int, int]) -> Kernel:
    axes = {axis: tuple(range(size)) for axis, size in zip("abc", sizes, strict=True)}
    return Kernel(name, "gemm", "variant", prepare, lambda problem, gpu: Script(0, 0, 0), ConfigSpace(Script, axes, reject))


KERNELS = (kernel("thousand", (10, 10, 10)), kernel("hundred", (2, 5, 10)), kernel("ravine", (12, 12, 2)))


def kernels_for(op: str) -> tuple[Kernel, ...]:
    return KERNELS if op == "gemm" else ()


def find(name: str, op: str) -> Kernel:
    return next(kernel for kernel in KERNELS if kernel.name == name)


def number(config: Mapping[str, int]) -> int:
    return 100 * config["a"] + 10 * config["b"] + config["c"]


def fault(config: Mapping[str, int]) -> str | None:
    value = number(config)
    return ("hang", "abort", "cuda", "memory")[value // FAULTY % 4] if value % FAULTY == 7 else None


def cost(config: Mapping[str, int]) -> float:
    """A valley around a=6, b=3, c=2, with a ripple."""
    away = abs(config["a"] - 6) + 2 * abs(config["b"] - 3) + abs(config["c"] - 2)
    return 10.0 + away + (number(config) * 37 % 11) / 100


def evaluate(job: Job, config: dict[str, int]) -> float | Failure:
    how = fault(config)
    if how == "hang":
        hang()
    if how == "abort":
        os.abort()
    if how == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if how == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB.")
    return sample(job.clock, config)


def sample(clock: Clock, config: Mapping[str, int]) -> float:
    return clock.timer([FakeCall(dict, cost(config))], cold=False).sample()


def again(job: Job, configs: Sequence[dict[str, int]], turns: int) -> list[float]:
    return [sample(job.clock, config) for config in configs]


def finals(job: Job, configs: Sequence[dict[str, int]]) -> list[tuple[float, ...]]:
    assert isinstance(job.clock, FakeClock)
    timers = {str(place): job.clock.timer([FakeCall(dict, cost(config))], cold=False) for place, config in enumerate(configs)}
    return [own.kernel_us for own in interleaved(timers, Plan(10, 10, 0.0, 60.0, 0)).values()]


