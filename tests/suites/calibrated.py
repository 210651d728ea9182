"""What the children of the calibration's tests are made of; imported by name in the child."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from autotune.measure import Plan
from kernels.errors import Failure
from suites.bench import Bench
from suites.case import Case
from suites.executor import Local
from suites.injected import SlowedCase
from suites.record import CaseRecord
from tests.suites.fakes import H200, PLAN, gemm, lab


def executor(arguments: Any, mark: Callable[[str], None]) -> Local:
    """An executor whose kernels differ a little from those of another process. arguments: the process's number."""
    return Child(bench(arguments, 0.0), number=arguments)


def bench(seed: int, slowdown: float) -> Bench:
    """Ours, slowed by that share, and theirs."""
    made = lab((gemm("ours", 50.0 * (1 + 1e-4 * (seed % 7)) * (1 + slowdown)), gemm("theirs", 100.0, "baseline")), noise=0.001, seed=seed)
    return Bench(H200, made.clock, made.monitor, made.kernels_for, "cpu")


@dataclass
class Child(Local):
    """Says in a note which process it is, and that it has slowed what it was asked to slow."""

    number: int = 0

    def case(self, case: Case, plan: Plan, excluded: dict[str, Failure]) -> CaseRecord:
        """The record of a case, slowed or not."""
        share = case.share if isinstance(case, SlowedCase) else 0.0
        record = replace(self, bench=bench(self.number, share), weights=self.weights)._measured(case, excluded)
        injected = {"injected": share, "injected_cycles": 7, "injected_measured": share} if share else {}
        notes = [{**result.notes, "process": os.getpid(), **(injected if result.kernel == "ours" else {})} for result in record.results]
        return replace(record, results=tuple(replace(own, notes=note) for own, note in zip(record.results, notes, strict=True)))

    def _measured(self, case: Case, excluded: dict[str, Failure]) -> CaseRecord:
        return super().case(case, PLAN, excluded)
