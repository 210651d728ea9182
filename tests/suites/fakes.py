"""Kernels that compute on the CPU with torch and cost what the test says; they go through the real judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autotune.clock import FakeCall, FakeClock
from autotune.conditions import FakeMonitor
from autotune.measure import Plan
from kernels.errors import ShapeError
from kernels.gpu import Gpu, by_name
from kernels.inputs import GemmInputs, Inputs
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem
from kernels.space import Config
from suites.on_gpu import Lab
from suites.run import main

H200 = by_name("h200")
PLAN = Plan(rounds=12, max_rounds=12, relative_width=0.01, seconds=60.0, call_samples=3, block_seconds=2.0, settle_seconds=1.0)
SMALL = ("--suite", "prefill", "--shape", "16x32", "--tokens", "4", "--sparsity", "2:4")


@dataclass
class Behaviour:
    """How a fake kernel misbehaves: "right", "wrong", "silent" (writes nothing), "late" (wrong from its n-th call on), or an exception."""

    does: str | Exception = "right"
    calls: int = 0
    wrong_from: int = 4


def gemm(name: str, us: float, kind: str = "variant", does: str | Exception = "right", **fields: Any) -> Kernel:
    """A fake GEMM. us: what it costs."""

    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        assert isinstance(inputs, GemmInputs)
        behaviour = Behaviour(does)
        y = torch.empty((problem.tokens, problem.out_features), dtype=torch.bfloat16)
        scale = inputs.w_scale.repeat_interleave(torch.tensor(problem.splits))

        def run() -> Mapping[str, torch.Tensor]:
            behaviour.calls += 1
            if isinstance(does, Exception):
                raise does
            if does == "silent":
                return {"y": y}
            result = (inputs.x_q.double() @ inputs.w_ternary.double().T) * inputs.x_scale[:, None].double() * scale.double()
            wrong = does == "wrong" or (does == "late" and behaviour.calls >= behaviour.wrong_from)
            y.copy_(result + 1 if wrong else result)
            return {"y": y}

        return Prepared(FakeCall(run, us), {"y": y}, footprint=1 << 20, weight_bytes=problem.out_features * problem.in_features // 4)

    return Kernel(name, "gemm", kind, prepare, **fields)  # type: ignore[arg-type]


def refusing(name: str) -> Kernel:
    """A kernel that refuses its inputs."""

    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        raise ShapeError("not this shape")

    return Kernel(name, "gemm", "baseline", prepare)


def absent(name: str) -> Kernel:
    """A baseline whose library is missing."""
    return gemm(name, 1.0, "baseline", unavailable=lambda problem, gpu: "the library is not installed")


OURS, THEIRS, OTHER = gemm("ours", 50.0), gemm("theirs", 100.0, "baseline"), gemm("other", 120.0, "baseline", dense=True)


def lab(
    kernels: Sequence[Kernel] = (OURS, THEIRS, OTHER), noise: float = 0.002, seed: int = 0, plan: Plan = PLAN, throttle: int = 0,
) -> Lab:
    """A device that is not there."""
    clock = FakeClock(noise=noise, seed=seed)
    return Lab(clock, kernels, FakeMonitor(lambda: clock.seconds, throttle=throttle), plan)


def no_report(gpu: Gpu, results: Sequence[Path], page: Path) -> int:
    """In the place of the report."""
    return 0


def measure(out: Path, made: Lab | None = None, *more: str, found: Gpu | None = H200, gpu: str = "h200") -> int:
    """suites.run over one small case (or what `more` says) on a fake device."""
    arguments = ["--gpu", gpu, *(more or SMALL), "--out", str(out), "--commit", "abc"]
    return main(arguments, detect=lambda index: found, lab=made or lab(), build_report=no_report)
