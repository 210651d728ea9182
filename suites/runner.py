"""Measuring one case: every kernel of its op checked, then all of them timed together, then checked again."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from autotune.measure import Plan, interleaved, sustained
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.inputs import Weights, make_inputs, make_weights
from kernels.kernel import Kernel
from kernels.problem import Problem
from suites.bench import Bench, Copies, Fault, as_failure
from suites.case import Case, asked
from suites.ceilings import companion
from suites.data import redrawn
from suites.floors import compulsory_bytes
from suites.quality import IMPOSSIBLE
from suites.record import CaseRecord, Result
from suites.refusals import result_refusals
from suites.trial import Trial, plain_result

SUSTAINED_BASELINES = ("cusparselt-int8", "cusparselt-int8-scaled", "dense-bf16", "dense-fp8", "dense-int8", "slidesparse")
"""One sparse library for each sparsity among them: slidesparse for (L-2):L, cuSPARSELt as it is for 2:4. What cannot run says so."""
SCARCE = 0.35
"""Cached blocks go back to the device when less than this share of its memory is free."""


class Phases:
    """Where a case's time goes, seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - started


class WeightStore:
    """The weight of the layer at hand, kept while cases share it."""

    def __init__(self) -> None:
        self._key: object = None
        self._weights: Weights | None = None

    def get(self, problem: Problem, device: str) -> Weights:
        """This problem's weight; the one before is dropped."""
        key = (problem.out_features, problem.in_features, problem.splits, problem.sparsity, problem.dtype, device)
        if key != self._key or self._weights is None:
            self._weights = None
            self._weights, self._key = make_weights(problem, device), key
        return self._weights


def kernels_of(case: Case, bench: Bench) -> Sequence[Kernel]:
    """The kernels that take part: all of the op; sustained, where each costs seconds, exact variants and the strongest baselines.

    Uniform data is for baselines alone: our packed weights are ternary.
    """
    kernels = [kernel for kernel in bench.kernels(case.problem.op) if asked(kernel.name, bench.only, case.suite)]
    kernels = [kernel for kernel in kernels if case.data != "uniform" or kernel.kind == "baseline"]
    if case.state == "interleaved":
        return kernels
    return [kernel for kernel in kernels if (kernel.kind == "variant" and kernel.exact) or kernel.name in SUSTAINED_BASELINES]


def run_case(
    case: Case, bench: Bench, plan: Plan, weights: WeightStore, run: str = "", excluded: Mapping[str, Failure] | None = None,
) -> CaseRecord:
    """The record of a case.

    excluded: kernels that are not run again, with the failure they are recorded with. Raises Fault where the device's context is lost
    (the caller's process cannot go on); everything else that goes wrong is in the record.
    """
    started, phases = time.monotonic(), Phases()
    before = bench.monitor.snapshot()
    results: tuple[Result, ...] = ()
    reason = case.problem.refusal
    if reason is None:
        results = _results(case, bench, plan, weights, phases, excluded or {})
        _release(bench)
    record = CaseRecord(
        run=run, suite=case.suite, model=case.model, layer=case.layer, state=case.state, cache=case.cache,
        problem=case.problem.to_dict(), label=str(case.problem), operations=case.problem.operations,
        compulsory_bytes=compulsory_bytes(case.problem), results=results, refusal=reason,
        conditions={"before": before, "after": bench.monitor.snapshot()}, seconds=round(time.monotonic() - started, 3),
        phases={name: round(seconds, 3) for name, seconds in phases.seconds.items()}, data=case.data,
    )
    return replace(record, results=tuple(_flagged(record, result, bench.gpu) for result in results))


def _flagged(case: CaseRecord, result: Result, gpu: Gpu) -> Result:
    """The result, with a note where it cannot be true (the memory roof is the datasheet's here)."""
    refused = [str(refusal) for refusal in result_refusals(case, result, gpu, {})] if result.status == "ok" else []
    return replace(result, notes={**result.notes, IMPOSSIBLE: "; ".join(refused)}) if refused else result


def _results(
    case: Case, bench: Bench, plan: Plan, weights: WeightStore, phases: Phases, excluded: Mapping[str, Failure],
) -> tuple[Result, ...]:
    kernels = kernels_of(case, bench)
    bench.mark("\tinputs")
    try:
        with phases.timed("inputs"):
            shared = weights.get(case.problem, bench.device) if case.problem.op != "activation" else None
            copies = Copies(redrawn(make_inputs(case.problem, bench.device, weights=shared), case.data, case.problem.sparsity))
    except RuntimeError as error:
        failure = as_failure(error)
        if failure.stage != "memory":
            raise Fault(None, failure) from error
        return tuple(plain_result(kernel, failure) for kernel in kernels)
    trials = [Trial(kernel, case, bench, plan, phases) for kernel in kernels]
    for trial in trials:
        trial.failure = excluded.get(trial.kernel.name)
    try:
        for trial in trials:
            if trial.failure is None:
                trial.open(copies)
        _measure(trials, case, bench, plan, phases, excluded)
        for trial in trials:
            trial.check_again(copies)
    finally:
        for trial in trials:
            trial.close()
    return tuple(trial.result() for trial in trials)


def _measure(
    trials: Sequence[Trial], case: Case, bench: Bench, plan: Plan, phases: Phases, excluded: Mapping[str, Failure],
) -> None:
    timers = {trial.kernel.name: trial.timer for trial in trials if trial.timer is not None}
    with companion(case, timers, excluded, bench) as beside, phases.timed("measure"):
        if case.state == "sustained":
            taken = sustained(timers, plan, bench.monitor)
        else:
            bench.warm()
            taken = interleaved({**timers, **beside.timers}, plan)
    for trial in trials:
        trial.samples = taken.get(trial.kernel.name, trial.samples)
        trial.ceiling = beside.rates(trial.kernel.name, taken) if trial.samples.kernel_us else ()


def _release(bench: Bench) -> None:
    """Give memory back where it is short: returning it after every case would cost more than the case."""
    if bench.device == "cpu":
        return
    free, total = torch.cuda.mem_get_info()
    if free < SCARCE * total:
        gc.collect()
        torch.cuda.empty_cache()
