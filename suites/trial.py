"""One kernel in one case: bound, checked, timed, checked again. What goes wrong becomes a value, never an exception."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from autotune.clock import Timer
from autotune.measure import Plan, Samples, bind, copies_needed
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.inputs import Inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Problem
from kernels.space import Config, NoConfig, config_to_dict
from kernels.tuned import lookup
from suites.bench import Bench, Copies, Fault, MarkedTimer, as_failure
from suites.case import Case
from suites.floors import compulsory_bytes
from suites.record import Result, Status
from suites.refusals import AFTER_TIMING

if TYPE_CHECKING:
    from suites.runner import Phases


class Trial:
    """A kernel in a case. `open` binds, checks and makes the timer; `close` frees; `result` is what there is to say at any time."""

    def __init__(self, kernel: Kernel, case: Case, bench: Bench, plan: Plan, phases: Phases) -> None:
        self.kernel, self.case, self.bench, self.plan, self.phases = kernel, case, bench, plan, phases
        self.failure: Failure | None = None
        self.timer: Timer | None = None
        self.samples = Samples()
        self.ceiling: tuple[float, ...] = ()
        self._config: Config = NoConfig()
        self._source = "default"
        self._bound: Prepared | None = None
        self._notes: dict[str, Any] = {}

    @property
    def problem(self) -> Problem:
        """The case's problem."""
        return self.case.problem

    def mark(self, stage: str) -> None:
        """Say that this kernel is in that stage now."""
        self.bench.mark(f"{self.kernel.name}\t{stage}")

    def open(self, copies: Copies) -> None:
        """Everything before the clock; leaves a timer, or a failure."""
        self.mark("open")
        with self.guarded():
            reason = self.kernel.unavailable(self.problem, self.bench.gpu)
            if reason is not None:
                self.failure = Failure("unavailable", reason)
                return
            self._configure(copies)
            self._check(copies)
            if self.failure is None:
                self._bind(copies)
        if self.failure is not None:
            self.close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns what a kernel raises into its failure; a fault of the device becomes a `Fault`."""
        try:
            yield
        except Fault:
            raise
        except Exception as error:  # whatever a kernel throws is that kernel's failure: recorded, and shown by the run's exit code
            self.failure = as_failure(error)
            self.close()
            if self.failure.stage == "memory":
                torch.cuda.empty_cache()
            elif self.failure.stage == "launch":
                self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self.bench.device == "cpu" or self.failure is None:
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise Fault(self.kernel.name, self.failure) from None

    def _configure(self, copies: Copies) -> None:
        if self.kernel.resolve is None:
            self._config, self._source = lookup(self.kernel, self.problem, self.bench.gpu)
            return
        self.mark("search")
        with self.phases.timed("search"):
            self._config, self._source = self.kernel.resolve(self.problem, copies.get(0), self.bench.gpu), "search"

    def _check(self, copies: Copies) -> None:
        self.mark("check")
        with self.phases.timed("prepare"):
            self._bound = self.kernel.prepare(self.problem, copies.get(0), self._config)
        with self.phases.timed("check"):
            poison(self._bound)
            self._judge(self._bound.run(), copies, "")

    def _judge(self, outputs: Outputs, copies: Copies, when: str) -> None:
        mismatch = judge(self.problem, copies.get(0), outputs, self.kernel)
        if mismatch is not None:
            self.failure = Failure("wrong", f"{when}{mismatch}")

    def _bind(self, copies: Copies) -> None:
        assert self._bound is not None
        self.mark("bind")
        cold = self.case.cache == "cold"
        footprint = max(self._bound.footprint, compulsory_bytes(self.problem))
        count = copies_needed(footprint, self.bench.gpu.l2_bytes, cold)
        self._notes = {"copies": count} if cold else {"fits_l2": footprint <= self.bench.gpu.l2_bytes}
        with self.phases.timed("prepare"):
            others = [self.kernel.prepare(self.problem, copies.get(index), self._config) for index in range(1, count)]
        with self.phases.timed("bind"):
            timer = bind(self.bench.clock, [self._bound.run, *(other.run for other in others)], cold)
        if isinstance(timer, Failure):
            self.failure = timer
            return
        self.timer = MarkedTimer(timer, self.kernel.name, self.mark)
        self._poison_timed()

    def _poison_timed(self) -> None:
        """Poison what the timer writes, so that only a timed call can make it right again."""
        assert self._bound is not None
        poison(replace(self._bound, buffers=self._timed_outputs()))

    def _timed_outputs(self) -> Outputs:
        assert self.timer is not None
        outputs = self.timer.outputs()
        if not isinstance(outputs, Mapping):
            raise TypeError(f"{self.kernel} returned {type(outputs).__name__}, not outputs by name")
        return outputs

    def check_again(self, copies: Copies) -> None:
        """Judge the last timed output; a kernel that is wrong now loses its samples."""
        if self.timer is None:
            return
        self.mark("check after timing")
        with self.guarded(), self.phases.timed("check"):
            self._judge(self._timed_outputs(), copies, AFTER_TIMING)
        if self.failure is not None:
            self.samples, self.ceiling = Samples(), ()

    def close(self) -> None:
        """Free the timer and the bound inputs, outputs and weights."""
        if self.timer is not None:
            self.timer.close()
        self.timer = None
        if self._bound is not None:
            self._bound = replace(self._bound, run=dict, buffers={})

    def result(self) -> Result:
        """The result as it stands."""
        bound, found = self._bound, self.failure
        checked: dict[str, Any] = {"judged": self.kernel.judged} if bound is not None else {}
        result = plain_result(self.kernel, found)
        return replace(
            result, config=config_to_dict(self._config), config_source=self._source, samples_us=self.samples.kernel_us,
            call_us=self.samples.call_us, blocks=self.samples.blocks, check=checked, notes={**bound.notes, **self._notes} if bound else {},
            weight_bytes=bound.weight_bytes if bound else 0, footprint=bound.footprint if bound else 0,
            ceiling=self.ceiling,
        )


def judged_once(kernel: Kernel, problem: Problem, inputs: Inputs, gpu: Gpu) -> Result:
    """The verdict on a kernel's default config, without any clock."""
    reason = kernel.unavailable(problem, gpu)
    if reason is not None:
        return plain_result(kernel, Failure("unavailable", reason))
    failure, config = None, kernel.default_config(problem, gpu)
    try:
        prepared = kernel.prepare(problem, inputs, config)
        poison(prepared)
        mismatch = judge(problem, inputs, prepared.run(), kernel)
        failure = Failure("wrong", str(mismatch)) if mismatch else None
    except Exception as error:  # as in a trial: recorded as this kernel's failure
        failure = as_failure(error)
    return replace(plain_result(kernel, failure), config=config_to_dict(config), check={"judged": kernel.judged})


STATUS: dict[str, Status] = {"refused": "refused", "unavailable": "unavailable", "wrong": "wrong"}


def plain_result(kernel: Kernel, failure: Failure | None) -> Result:
    """A result with nothing but its kernel and its failure."""
    result = Result(kernel.name, kernel.kind, "ok", exact=kernel.exact, dense=kernel.dense)
    if failure is None:
        return result
    return replace(result, status=STATUS.get(failure.stage, "failed"), stage=failure.stage, reason=failure.reason)
