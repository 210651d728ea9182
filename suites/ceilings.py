"""Ceilings in a case's own rounds: what the instruction that a kernel is built on reaches at the clock that the kernel has.

The roofs of a run are measured before its cases, on a card that has only begun and is at its highest clock. Among kernels that bring the
card to its power cap the same loop is slower, as they all are: a kernel's share of a ceiling compares cycles only where both were timed in
the same rounds. The loop is no kernel of the case: it has no result, and no baseline is chosen from it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.clock import Timer
from autotune.measure import Samples, bind
from kernels.errors import Failure
from suites.bench import Bench, MarkedTimer
from suites.case import Case
from suites.floors import SPARSE_MMA

if TYPE_CHECKING:
    from autotune.roofs import Ceiling

SUITES = ("square",)
"""Where ceilings are timed: a turn more in every round."""
BOUND = ("sparse-mma",)
"""The kernels whose products are `mma.sp` alone."""


@dataclass(frozen=True)
class Companion:
    """A ceiling that is timed with the kernels of a case. timers: to take part in the rounds, by name; none where there is no ceiling."""

    timers: Mapping[str, Timer]
    operations: float = 0.0

    def rates(self, kernel: str, taken: Mapping[str, Samples]) -> tuple[float, ...]:
        """op/s in each round for a kernel that the ceiling bounds; none for others."""
        if kernel not in BOUND or SPARSE_MMA not in taken:
            return ()
        return tuple(self.operations / us * 1e6 for us in taken[SPARSE_MMA].kernel_us)


@contextmanager
def companion(case: Case, timed: Container[str], excluded: Container[str], bench: Bench) -> Iterator[Companion]:
    """The ceiling of a case, freed at the end. timed: the kernels that are. excluded: what brought the device down before."""
    wanted = case.suite in SUITES and case.state == "interleaved" and SPARSE_MMA not in excluded and any(name in timed for name in BOUND)
    ceiling = offered(bench) if wanted else None
    timer = bind(bench.clock, [ceiling.call], cold=False) if ceiling else None
    if ceiling is None or timer is None or isinstance(timer, Failure):
        yield Companion({})
        return
    marked = MarkedTimer(timer, SPARSE_MMA, lambda stage: bench.mark(f"{SPARSE_MMA}\t{stage}"))
    try:
        yield Companion({SPARSE_MMA: marked}, ceiling.operations)
    finally:
        timer.close()


def offered(bench: Bench) -> Ceiling | None:
    """The ceiling of `mma.sp` where the bench has a device for it."""
    if bench.device == "cpu" or bench.gpu.capability < 80:
        return None
    from autotune.roofs import sparse_mma_ceiling

    return sparse_mma_ceiling()
