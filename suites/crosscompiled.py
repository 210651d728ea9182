"""Machine code without a device: the default configs of every kernel of the planned cases, compiled for the GPU's architecture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autotune.compile import Compiled
from autotune.pool import compile_all
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit, Kernel
from kernels.occupancy import occupancy
from kernels.problem import Op
from kernels.space import Config, config_to_dict
from kernels.tuned import lookup
from suites.case import Case
from suites.floors import compulsory_bytes
from suites.predicted import Prediction, predict
from suites.projected import floor_of
from suites.record import CaseRecord, Result
from suites.trial import plain_result

CONFIGS = 3
"""So many different compilations of a kernel (another config, group or shape class) are made: the first that the planned cases ask for."""

GEMMS = 3
"""Products of a training step, one function each."""


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
    problem, failure = job.case.problem, None
    figures: dict[str, Any] = {}
    loops = sum(isinstance(entry, Compiled) and entry.loop is not None for entry in compiled)
    share = 1 / (GEMMS if problem.op == "step" else max(1, loops))
    predictions: list[Prediction] = []
    for unit, entry in zip(job.units, compiled, strict=True):
        name = getattr(unit.function, "__name__", "kernel")
        fault = entry if isinstance(entry, Failure) else lacks(unit, entry, gpu)
        failure = failure or (fault and Failure(fault.stage, f"{name}: {fault.reason}"))
        if isinstance(entry, Compiled):
            prediction = predict(problem, gpu, entry.loop, share)
            figures[_unused(name, figures)] = _figures(entry, gpu, prediction)
            predictions += [prediction] if prediction else []
    result = plain_result(job.kernel, failure or None)
    result = replace(result, config=config_to_dict(job.config), config_source=job.source, compiled=figures)
    if failure or not predictions or (problem.op == "step" and loops < GEMMS):  # the other products are a library's
        return result
    slowest = max(predictions, key=lambda one: one.us)
    serial = sum(one.serial_us for one in predictions)
    notes = {"limit": slowest.limit, "serial_us": serial, "roof_us": floor_of(job.kernel, problem, gpu)}
    return replace(result, projected_us=sum(one.us for one in predictions), notes=notes)


def _unused(name: str, taken: Collection[str]) -> str:
    """The name, numbered where a kernel compiles one function more than once."""
    return next(one for one in (name, *(f"{name} {place}" for place in range(2, len(taken) + 3))) if one not in taken)


def lacks(unit: CompileUnit, compiled: Compiled, gpu: Gpu) -> Failure | None:
    """The tensor-core instruction that should be in the machine code on this architecture and is not."""
    known = [since for since in unit.expects if since <= gpu.capability]
    wanted = unit.expects[max(known)] if known else None
    if wanted is None or compiled.instructions.get(wanted):
        return None
    return Failure("compile", f"no {wanted} in the machine code for {gpu.architecture}")


def _figures(compiled: Compiled, gpu: Gpu, prediction: Prediction | None) -> dict[str, Any]:
    """What the report shows of one function: registers, spills, shared_bytes, warps, occupancy, matrix instructions of the whole code, the
    mix of the main loop with its operations and bytes, and the walls in microseconds."""
    matrix = {name: count for name, count in compiled.instructions.items() if "MMA" in name and "." not in name}
    figures: dict[str, Any] = {"registers": compiled.registers, "spills": compiled.spills, "shared_bytes": compiled.shared_bytes, **matrix}
    if compiled.warps and (held := occupancy(gpu, compiled.warps, compiled.registers, compiled.shared_bytes)):
        figures |= {"warps": compiled.warps, "occupancy": asdict(held)}
    if compiled.loop:
        figures["loop"] = asdict(compiled.loop)
    if prediction:
        figures["walls_us"] = dict(prediction.walls)
    return figures
