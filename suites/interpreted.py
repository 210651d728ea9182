"""Numerics without a device: our variants on small awkward problems in Triton's interpreter, in a child process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autotune.worker import Worker
from kernels.errors import Failure
from kernels.gpu import by_name
from kernels.problem import DENSE, Op, Problem, Sparsity
from suites.case import Case
from suites.floors import compulsory_bytes
from suites.record import CaseRecord, Result

INTERPRETER: Mapping[str, str] = {"TRITON_INTERPRET": "1"}
PORTABLE = "a100"
"""Whose default configs are taken: all of plain Triton, whatever the GPU that is claimed (on Hopper some are of Gluon kernels)."""
SECONDS = 120.0
"""The most that one problem may take in the interpreter."""

_HALF, _SIX = Sparsity(2, 4), Sparsity(6, 8)
SUITE_OF: dict[Op, str] = {"gemm": "prefill", "layer": "layer", "prepare": "prepare", "activation": "prepare"}
PROBLEMS: tuple[Problem, ...] = (
    Problem("gemm", 40, 136, 7, _HALF, (24, 16)), Problem("gemm", 33, 264, 3, _SIX, dtype="int32"), Problem("gemm", 16, 128, 17, DENSE),
    Problem("layer", 24, 96, 5, _SIX, bias=True), Problem("layer", 24, 68, 5, _HALF),
    Problem("prepare", 20, 136, 0, _HALF, (12, 8)), Problem("prepare", 9, 264, 0, _SIX), Problem("prepare", 9, 48, 0, Sparsity(2, 6)),
    Problem("activation", 0, 200, 5, DENSE), Problem("activation", 0, 200, 3, _SIX),
    Problem("forward", 24, 136, 6, _HALF), Problem("input-grad", 24, 136, 6, _HALF, (16, 8)), Problem("weight-grad", 24, 136, 6, _SIX),
    Problem("step", 24, 136, 6, _HALF),
)


def run(identity: str) -> Iterator[CaseRecord]:
    """A record per problem, with the verdict on every variant; a problem that kills or hangs the child is recorded as that."""
    with Worker(INTERPRETER) as worker:
        for problem in PROBLEMS:
            results = worker.call("suites.interpreted:check", (problem,), SECONDS)
            if isinstance(results, Failure):
                results = (Result("every variant", "variant", "failed", results.stage, results.reason),)
            case = Case(SUITE_OF.get(problem.op, "train"), "small", "awkward", problem, "hot")
            yield record_of(case, identity, results)


def record_of(case: Case, identity: str, results: tuple[Result, ...]) -> CaseRecord:
    """The record of an interpreted case."""
    problem = case.problem
    return CaseRecord(
        identity, case.suite, case.model, case.layer, case.state, case.cache, problem.to_dict(), str(problem), problem.operations,
        compulsory_bytes(problem), results, evidence="interpreted",
    )


def check(problem: Problem) -> tuple[Result, ...]:
    """In the child: every variant of the op judged on this problem."""
    from kernels.catalogue import kernels_for
    from kernels.inputs import make_inputs
    from suites.trial import judged_once, plain_result

    gpu, inputs = by_name(PORTABLE), make_inputs(problem, "cpu")
    not_here = Failure("unavailable", "Gluon and inline assembly do not run in Triton's interpreter")
    return tuple(
        judged_once(kernel, problem, inputs, gpu) if kernel.interpreted else plain_result(kernel, not_here)
        for kernel in kernels_for(problem.op) if kernel.kind == "variant"
    )
