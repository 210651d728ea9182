"""Machine code without a device: the default configs of every kernel of the planned cases, compiled for the GPU's architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.compile import Compiled, compile_all
from autotune.tuned import lookup
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit, Kernel
from kernels.problem import Op
from kernels.space import Config, config_to_dict
from suites.case import Case
from suites.floors import compulsory_bytes
from suites.record import CaseRecord, Result
from suites.trial import plain_result

CONFIGS = 3
"""So many different compilations of a kernel (another config, group or shape class) are made: the first that the planned cases ask for."""


@dataclass(frozen=True)
class Job:
    """A kernel with a config that a case asks for, and what it compiles."""

    case: Case
    kernel: Kernel
    config: Config
    source: str
    units: tuple[CompileUnit, ...]


def jobs(cases: Sequence[Case], gpu: Gpu, kernels: Callable[[Op], Sequence[Kernel]], most: int = CONFIGS) -> list[Job]:
    """What is compiled: every kernel that has anything to compile, with at most so many compilations, smallest and largest case first."""
    found: list[Job] = []
    for op in dict.fromkeys(case.problem.op for case in cases):
        own = sorted((case for case in cases if case.problem.op == op and not case.problem.refusal), key=_size)
        spread = [own[index] for index in dict.fromkeys((0, len(own) - 1, len(own) // 2, len(own) // 4, 3 * len(own) // 4))] if own else []
        for kernel in kernels(op):
            seen: dict[str, Job] = {}
            for case in spread:
                if kernel.unavailable(case.problem, gpu):
                    continue
                config, source = lookup(kernel, case.problem, gpu)
                units = tuple(kernel.compile_units(case.problem, config))
                if units and len(seen) < most:
                    seen.setdefault(repr(units), Job(case, kernel, config, source, units))
            found += seen.values()
    return found


def _size(case: Case) -> tuple[int, int]:
    return case.problem.tokens, case.problem.out_features * case.problem.in_features


def run(cases: Sequence[Case], gpu: Gpu, kernels: Callable[[Op], Sequence[Kernel]], identity: str) -> Iterator[CaseRecord]:
    """A record per case that was compiled for, with what the compiler made of each kernel."""
    work = jobs(cases, gpu, kernels)
    made = iter(compile_all([unit for job in work for unit in job.units], gpu))
    by_case: dict[Case, list[Result]] = {}
    for job in work:
        compiled = [next(made) for _ in job.units]
        by_case.setdefault(job.case, []).append(_result(job, compiled, gpu))
    for case, results in by_case.items():
        problem = case.problem
        yield CaseRecord(
            identity, case.suite, case.model, case.layer, case.state, case.cache, problem.to_dict(), str(problem), problem.operations,
            compulsory_bytes(problem), tuple(results), evidence="compiled",
        )


def _result(job: Job, compiled: Sequence[Compiled | Failure], gpu: Gpu) -> Result:
    failure: Failure | None = None
    figures: dict[str, Any] = {}
    for unit, entry in zip(job.units, compiled, strict=True):
        name = getattr(unit.function, "__name__", "kernel")
        problem = entry if isinstance(entry, Failure) else lacks(unit, entry, gpu)
        failure = failure or (problem and Failure(problem.stage, f"{name}: {problem.reason}"))
        if isinstance(entry, Compiled):
            figures |= {f"{name} {key}": value for key, value in _figures(entry).items()}
    return replace(plain_result(job.kernel, failure or None), config=config_to_dict(job.config), config_source=job.source, compiled=figures)


def lacks(unit: CompileUnit, compiled: Compiled, gpu: Gpu) -> Failure | None:
    """The tensor-core instruction that should be in the machine code on this architecture and is not."""
    known = [since for since in unit.expects if since <= gpu.capability]
    wanted = unit.expects[max(known)] if known else None
    if wanted is None or compiled.instructions.get(wanted):
        return None
    return Failure("compile", f"no {wanted} in the machine code for {gpu.architecture}")


def _figures(compiled: Compiled) -> dict[str, Any]:
    matrix = {name: count for name, count in compiled.instructions.items() if "MMA" in name and "." not in name}
    return {"registers": compiled.registers, "spills": compiled.spills, "shared_bytes": compiled.shared_bytes, **matrix}
