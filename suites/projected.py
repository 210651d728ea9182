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
    reason = kernel.unavailable(problem, gpu)
    if reason is not None:
        return plain_result(kernel, Failure("unavailable", reason))
    return replace(plain_result(kernel, None), projected_us=floor_of(kernel, problem, gpu), notes={"roofline": _basis(kernel, problem)})


def floor_of(kernel: Kernel, problem: Problem, gpu: Gpu) -> float:
    """Microseconds below which this kernel does not get at the datasheet's rates: its number type, its tensor cores, compulsory bytes."""
    if problem.op != "step":
        operations, kind = problem.operations / _speed(kernel, problem), number_type(kernel, problem)
        return gpu.floor_seconds(operations, compulsory_bytes(problem), kind) * 1e6
    forward = problem.with_(op="forward")
    arithmetic = gpu.floor_seconds(forward.operations / _speed(kernel, forward), 0, number_type(kernel, forward))
    arithmetic += gpu.floor_seconds(2 * forward.operations, 0, "bf16")
    return max(arithmetic, compulsory_bytes(problem) / gpu.bandwidth) * 1e6


def _speed(kernel: Kernel, problem: Problem) -> float:
    """Gradients reduce along the axis that has no groups: dense."""
    return 1.0 if on_dense_cores(kernel) or problem.op in GRADIENTS else sparse_speed(problem.sparsity)


def _basis(kernel: Kernel, problem: Problem) -> str:
    if problem.op == "step":
        return f"forward {_basis(kernel, problem.with_(op='forward'))}; gradients bf16, dense"
    cores = "dense" if _speed(kernel, problem) == 1 else "sparse"
    return f"{number_type(kernel, problem)}, {cores} tensor cores, datasheet rates"


def number_type(kernel: Kernel, problem: Problem) -> str:
    """The number type whose rate bounds a kernel: by its name, bf16 for gradients and fake quantization, else int8."""
    if "bf16" in kernel.name or "fakequant" in kernel.name or problem.op in GRADIENTS:
        return "bf16"
    return "fp8" if "fp8" in kernel.name else "int8"


def on_dense_cores(kernel: Kernel) -> bool:
    """Whether a kernel multiplies on dense tensor cores, so that sparsity gains it no arithmetic."""
    return kernel.dense or kernel.name.startswith(("dense", "fakequant"))
