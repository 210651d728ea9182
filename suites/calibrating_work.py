"""The measuring of a calibration: which processes, in which order, and the cases of each; a record is on the disk before the next case."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from autotune import conditions
from autotune.measure import FULL, METHOD, QUICK, Plan
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op
from suites.ahead import FEW, compilations, compile_ahead
from suites.bench import Bench, Fault
from suites.calibrating_cases import shuffled, spread
from suites.calibrating_process import AheadWorker
from suites.calibrating_samples import Samples
from suites.calibration import CONFIRMED, MEASURABLE
from suites.calibration_pairs import FEWEST, pairs_of
from suites.case import Case, asked
from suites.executor import ON_DEVICE, DeviceArguments, Executor, Local, catalogued, measure_case
from suites.injected import SLOWED, SlowedCase, injectable
from suites.on_gpu import Lab
from suites.record import RunRecord
from suites.resampling import INJECTED
from suites.session import ROOT, commit_of, run_id, stamp
from suites.spread import noises_of
from suites.store import Writer

FIRST = CONFIRMED + FEWEST
"""So many processes come first, then the slowed kernels, then the rest: what a budget cuts off is what can be spared."""


class Laboratory(Protocol):
    """What tests put in the place of devices: the lab that the process of that number finds, its kernels slowed by that share."""

    def __call__(self, process: int, slowdown: float) -> Lab:
        """The lab."""


@dataclass(frozen=True)
class Step:
    """One fresh process: it measures the code as it is, or (slowed) kernels that are slower by every share in turn."""

    number: int
    slowed: bool = False


def schedule(processes: int, inject: int) -> list[Step]:
    """The processes in the order in which they measure."""
    fresh = [Step(number) for number in range(processes)]
    slow = [Step(number, slowed=True) for number in range(CONFIRMED if inject else 0)]
    return [*fresh[:FIRST], *slow, *fresh[FIRST:]]


@dataclass
class Calibrating:
    """A calibration while it goes. left(): seconds of the budget. laboratory: None on a device."""

    args: argparse.Namespace
    arguments: tuple[str, ...]
    gpu: Gpu
    cases: Sequence[Case]
    writer: Writer
    samples: Samples
    left: Callable[[], float]
    laboratory: Laboratory | None

    @property
    def plan(self) -> Plan:
        """How much to measure, without call times; a lab may have its own."""
        made = self.laboratory(0, 0.0).plan if self.laboratory else None
        return made or replace(QUICK if self.args.quick else FULL, call_samples=0)

    def measure(self) -> bool:
        """Every step that has something left to do, the next of which imports while one measures; whether nothing is left."""
        steps = [step for step in schedule(self.args.processes, self.args.inject) if step.slowed or self._left(f"p{step.number}")]
        if steps and self.left() <= 0:
            return False
        with ExitStack() as children:
            following = self._begin(steps[:1], children)
            self._compile(steps[:1])
            for place, step in enumerate(steps):
                executor, following = following, self._begin(steps[place + 1:place + 2], children)
                if not self._take(step, executor):
                    return False
                if executor is not None:
                    executor.close()
        return True

    def _begin(self, steps: Sequence[Step], children: ExitStack) -> AheadWorker | None:
        """The child of the step, if there is one, importing what it needs; None in a laboratory."""
        if not steps or self.laboratory is not None:
            return None
        device = DeviceArguments(self.gpu, self.args.device, "", self.plan.turn_us, tuple(self.args.kernel), warm=True)
        worker = AheadWorker(SLOWED if steps[0].slowed else ON_DEVICE, device)
        children.callback(worker.close)
        worker.start()
        return worker

    def _compile(self, steps: Sequence[Step]) -> None:
        """Compile what the cases need before anything is timed, so that the first process is one like all others."""
        if not steps or steps[0].slowed or self.laboratory is not None:
            return
        left, names = self._left(f"p{steps[0].number}"), self.args.kernel

        def kernels(suite: str) -> Callable[[Op], Sequence[Kernel]]:
            return lambda op: [kernel for kernel in catalogued()(op) if asked(kernel.name, names, suite)]

        suites = dict.fromkeys(case.suite for case in left)
        work = [
            item for suite in suites for item in compilations([case for case in left if case.suite == suite], kernels(suite), self.gpu)
        ]
        if len(work) >= FEW:
            done, failed = compile_ahead(list(dict.fromkeys(work)), self.gpu, self.args.device)
            print(f"suites.calibrate: compiled {done} kernels ahead, {failed} left; {self.left():.0f} s of the budget left", flush=True)

    def _take(self, step: Step, executor: Executor | None) -> bool:
        """All that is left of a step; whether the budget lasted. executor: None in a laboratory."""
        for share in INJECTED if step.slowed else (0.0,):
            label = f"slow{share * 100:.0f}-{step.number}" if step.slowed else f"p{step.number}"
            cases = self._slowed(label, share) if step.slowed else shuffled(self._left(label), step.number)
            number = self.args.processes + step.number if step.slowed else step.number
            if cases and not self._process(label, cases, executor or self._local(number, share)):
                return False
        return True

    def _left(self, label: str) -> list[Case]:
        done = self.samples.cases.get(label, {})
        return [case for case in self.cases if case.key not in done]

    def _slowed(self, label: str, share: float) -> list[Case]:
        """The chosen cases that this process has not measured yet, with the delay that the first one found, or what others suggest."""
        name, _, number = label.partition("-")
        first, done = self.samples.cases.get(f"{name}-0", {}), self.samples.cases.get(label, {})
        others = [own for other, own in self.samples.cases.items() if other.startswith("slow") and other.endswith(f"-{number}")]
        return [
            SlowedCase.of(case, kernel, share, first.get(case.key), next((own[case.key] for own in others if case.key in own), None))
            for case, kernel in self.chosen if case.key not in done
        ]

    @cached_property
    def chosen(self) -> list[tuple[Case, str]]:
        """Cases, each with a kernel, at even distances among those that the first processes call measurable and that can be slowed."""
        seen = dict[str, str]()
        for noise in noises_of(pairs_of(self.samples.fresh(FIRST))):
            case = next(case for case in self.cases if case.key == noise.key)
            kernel = next(own for own in self.kernels(case) if own.name == noise.kernel)
            if noise.visible <= MEASURABLE and case.cache == "hot" and (self.laboratory or injectable(kernel, case.problem, self.gpu)):
                seen.setdefault(noise.key, noise.kernel)
        return spread([(case, seen[case.key]) for case in self.cases if case.key in seen], self.args.inject)

    def kernels(self, case: Case) -> list[Kernel]:
        """The kernels that take part in a case."""
        every = self.laboratory(0, 0.0).kernels_for if self.laboratory else catalogued()
        return [kernel for kernel in every(case.problem.op) if asked(kernel.name, self.args.kernel, case.suite)]

    def _process(self, label: str, cases: Sequence[Case], executor: Executor) -> bool:
        """These cases in one fresh process; False where the budget ended before the last."""
        head, started = self._head(label), time.monotonic()
        self.writer.write(head)
        self.samples.heads[head.id] = head
        for number, case in enumerate(cases):
            if self.left() <= 0:
                print(f"suites.calibrate: {label}: the budget ended after {number} of {len(cases)} cases", flush=True)
                return False
            try:
                record = replace(measure_case(executor, case, self.plan), run=head.id)
            except Fault as fault:
                print(f"suites.calibrate: {case}: {fault}", flush=True)
                continue
            self.writer.write(record)
            self.samples.add(record)
        took = time.monotonic() - started
        print(f"suites.calibrate: {label}: {len(cases)} cases in {took:.1f} s; {self.left():.0f} s of the budget left", flush=True)
        return True

    def _head(self, label: str) -> RunRecord:
        commit, dirty = commit_of(ROOT, self.args.commit)
        fake = self.laboratory is not None
        return RunRecord(
            f"{run_id(self.gpu.name)}/{label}", self.gpu.name, stamp(), commit, dirty, METHOD,
            "fake" if fake else "cuda-graph", {} if fake else conditions.device_facts(self.args.device), conditions.library_versions(),
            self.arguments,
        )

    def _local(self, process: int, share: float) -> Executor:
        assert self.laboratory is not None
        lab = self.laboratory(process, share)
        return Local(Bench(self.gpu, lab.clock, lab.monitor, lab.kernels_for, "cpu", only=self.args.kernel))
