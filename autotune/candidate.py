"""What a worker process does with a candidate: bind it, check it, time it. Correctness comes before the clock."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.clock import Timer
from autotune.job import Job
from autotune.measure import FULL, bind, copies_needed, interleaved
from kernels.errors import Failure, TerSparseError
from kernels.inputs import Inputs, clone, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem

QUICK_TURNS = 3


def evaluate(job: Job, config: Mapping[str, Any]) -> float | Failure:
    """Median microseconds per call of a config after its outputs were found right; else the failure. Device faults are raised."""
    timer = _timer(job, config)
    if isinstance(timer, Failure):
        return timer
    try:
        return statistics.median(timer.sample() for _ in range(QUICK_TURNS))
    finally:
        timer.close()


def finals(job: Job, configs: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...] | Failure]:
    """Paired samples of each config, microseconds per call, interleaved; what was timed last is checked again."""
    timers: dict[str, Timer] = {}
    results: dict[str, tuple[float, ...] | Failure] = {}
    try:
        for place, config in enumerate(configs):
            timer = _timer(job, config)
            if isinstance(timer, Failure):
                results[str(place)] = timer
            else:
                timers[str(place)] = timer
        results |= {name: own.kernel_us for name, own in interleaved(timers, FULL).items()}
        for name, timed in timers.items():
            if (wrong := _wrong(job, timed.outputs())) is not None:
                results[name] = wrong
    finally:
        for timed in timers.values():
            timed.close()
    return [results[str(place)] for place in range(len(configs))]


def _timer(job: Job, config: Mapping[str, Any]) -> Timer | Failure:
    try:
        kernel = job.find()
        bound = _bind(job, kernel, config, _inputs(job.problem, job.device))
        if (wrong := _checked(job, bound)) is not None:
            return wrong
        copies = copies_needed(bound.footprint, job.gpu.l2_bytes, job.cold)
        more = [_bind(job, kernel, config, _copy(job.problem, job.device, place)) for place in range(1, copies)]
        return bind(job.clock, [one.run for one in (bound, *more)], job.cold)
    except TerSparseError as error:
        return Failure("refused", str(error))


def _bind(job: Job, kernel: Kernel, config: Mapping[str, Any], inputs: Inputs) -> Prepared:
    return kernel.prepare(job.problem, inputs, kernel.space.from_dict(config))


def _checked(job: Job, bound: Prepared) -> Failure | None:
    poison(bound)
    return _wrong(job, bound.run())


def _wrong(job: Job, outputs: Any) -> Failure | None:
    mismatch = judge(job.problem, _inputs(job.problem, job.device), outputs, job.find())
    return None if mismatch is None else Failure("wrong", str(mismatch))


@functools.lru_cache(maxsize=1)
def _inputs(problem: Problem, device: str) -> Inputs:
    """The inputs of the case in hand; those of the case before are let go."""
    _copy.cache_clear()
    return make_inputs(problem, device)


@functools.cache
def _copy(problem: Problem, device: str, place: int) -> Inputs:
    """The place-th further copy, shared by all candidates of a case."""
    del place
    inputs: Any = _inputs(problem, device)  # clone keeps the type, whichever of the union it is
    copy: Inputs = clone(inputs)
    return copy
