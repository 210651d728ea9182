from __future__ import annotations

import itertools

from autotune.failures import failure_of, one_line, poisons_device
from autotune.search import Budget, exhaustive
from kernels.errors import Failure


def test_every_candidate_once_failures_included() -> None:
    seen: list[str] = []
    fault = Failure("launch", "died of SIGSEGV")

    def evaluate(config: str) -> float | Failure:
        seen.append(config)
        return fault if config == "b" else float(len(seen))

    search = exhaustive(["c", "b", "a", "c"], evaluate, Budget(None))
    assert seen == ["c", "b", "a"]
    assert search.complete
    assert search.best(5) == ["c", "a"]
    assert search.failures() == [fault]


def test_the_budget_ends_the_search() -> None:
    ticks = itertools.count()
    search = exhaustive("abcdef", lambda config: 1.0, Budget(2.5, now=lambda: next(ticks)))
    assert not search.complete
    assert [trial.config for trial in search.trials] == ["a", "b"]


def test_errors_become_one_line_and_a_stage() -> None:
    class CompilationError(Exception):
        pass

    class OutOfResources(Exception):
        pass

    compile_error = CompilationError("at 3:4:\n  x = y\n      ^\nNameError('y is not defined')")
    assert failure_of(compile_error) == Failure("compile", "CompilationError: NameError('y is not defined')")
    assert failure_of(OutOfResources("out of resource: shared memory")).stage == "compile"
    assert failure_of(RuntimeError("CUDA error: out of memory")).stage == "memory"
    assert failure_of(ZeroDivisionError()) == Failure("launch", "ZeroDivisionError")
    assert one_line(RuntimeError("a\nCUDA error: misaligned address\nb")) == "CUDA error: misaligned address"


def test_device_faults_are_told_from_others() -> None:
    assert poisons_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert poisons_device(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    assert not poisons_device(RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"))
    assert not poisons_device(ValueError("shapes"))
