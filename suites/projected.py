"""Roofline projections: the time below which no kernel gets at the datasheet's rates. Floors, not predictions, and never measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op, Problem
from suites.case import Case
from suites.floors import compulsory_bytes, sparse_speed
from suites.record import CaseRecord, Result
from suites.trial import plain_result

GRADIENTS: tuple[Op, ...] = ("input-grad", "weight-grad", "step")


def run(cases: Sequence[Case], gpu: Gpu, kernels: Callable[[Op], Sequence[Kernel]], identity: str) -> Iterator[CaseRecord]:
    """A record per case with the floor of every kernel."""
    for case in cases:
        problem = case.problem
        results = () if problem.refusal else tuple(_result(kernel, problem, gpu) for kernel in kernels(problem.op))
        yield CaseRecord(
            identity, case.suite, case.model, case.layer, case.state, case.cache, problem.to_dict(), str(problem), problem.operations,
            compulsory_bytes(problem), results, evidence="projected", refusal=problem.refusal,
        )


def _result(kernel: Kernel, problem: Problem, gpu: Gpu) -> Result:
    reason, kind = kernel.unavailable(problem, gpu), number_type(kernel, problem)
    if reason is not None:
        return plain_result(kernel, Failure("unavailable", reason))
    speed = 1.0 if on_dense_cores(kernel) else sparse_speed(problem.sparsity)
    seconds = gpu.floor_seconds(problem.operations / speed, compulsory_bytes(problem), kind)
    notes = {"roofline": f"{kind}, {'dense' if speed == 1 else 'sparse'} tensor cores, datasheet rates"}
    return replace(plain_result(kernel, None), projected_us=seconds * 1e6, notes=notes)


def number_type(kernel: Kernel, problem: Problem) -> str:
    """The number type whose rate bounds a kernel: by its name, bf16 for gradients and fake quantization, else int8."""
    if "bf16" in kernel.name or "fakequant" in kernel.name or problem.op in GRADIENTS:
        return "bf16"
    return "fp8" if "fp8" in kernel.name else "int8"


def on_dense_cores(kernel: Kernel) -> bool:
    """Whether a kernel multiplies on dense tensor cores, so that sparsity gains it no arithmetic."""
    return kernel.dense or kernel.name.startswith(("dense", "fakequant"))
