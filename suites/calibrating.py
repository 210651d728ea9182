"""A calibration: every case in fresh processes, real slowdowns, the limits, and what resampling shows of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from autotune import conditions
from autotune.measure import FULL, METHOD, QUICK, Plan
from kernels.errors import GpuMismatch, UsageError
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op
from suites import calibration, resampling
from suites.ahead import FEW, compilations, compile_ahead
from suites.arguments import budget_seconds
from suites.bench import Bench, Fault
from suites.calibrating_cases import choose, shuffled, spread
from suites.calibrating_process import AheadWorker
from suites.calibrating_samples import Samples
from suites.calibration import CONFIRMED, FOUND, MEASURABLE, Calibration
from suites.calibration_pairs import FEWEST, pairs_of
from suites.case import Case
from suites.command import GOOD, INCONCLUSIVE, SLOWER, WRONG, first_that_applies
from suites.executor import ON_DEVICE, DeviceArguments, Executor, Local, catalogued, measure_case
from suites.injected import SLOWED, SlowedCase, injectable
from suites.judging import Judge, Judgement, judge_case, settled
from suites.on_gpu import Lab
from suites.record import Record, RunRecord, read
from suites.resampling import INJECTED, Checks
from suites.session import ROOT, commit_of, now, only, run_id
from suites.store import Writer

FILE = "records.jsonl"
LIMITS = "calibration.json"
FALSE_ALARMS = 0.01
POWER = {"2%": 0.80, "5%": FOUND}
"""What shares of slowdowns have to be found of the cases called measurable."""
FIRST = CONFIRMED + FEWEST
"""So many processes come first, then the slowed kernels, then the rest: what a budget cuts off is what can be spared."""


class Laboratory(Protocol):
    """What tests put in the place of devices: the lab that the process of that number finds, its kernels slowed by that share."""

    def __call__(self, process: int, slowdown: float) -> Lab:
        """The lab."""


@dataclass
class Calibrating:
    """A calibration while it goes. left(): seconds of the budget. lab: None on a device."""

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

    def kernels(self, lab: Lab | None) -> Callable[[Op], Sequence[Kernel]]:
        """The kernels that take part, by op."""
        every, names = lab.kernels_for if lab else catalogued(), self.args.kernel
        return lambda op: [kernel for kernel in every(op) if not names or kernel.name in names]

    def compile(self) -> None:
        """Compile what the cases need before anything is timed, so that the first process is one like all others."""
        work = compilations(self._left("p0"), self.kernels(None), self.gpu) if self.laboratory is None else []
        if len(work) >= FEW:
            done, failed = compile_ahead(work, self.gpu, self.args.device)
            print(f"suites.calibrate: compiled {done} kernels ahead, {failed} left; {self.left():.0f} s of the budget left", flush=True)

    def measure(self, processes: Sequence[int]) -> bool:
        """Every case in each of these processes, each in an order of its own; whether nothing is left to do."""
        todo = {process: shuffled(self._left(f"p{process}"), process) for process in processes}
        numbers, following = [process for process in processes if todo[process]], None
        for place, process in enumerate(numbers):
            executor = following or self._executor(process, 0.0)
            following = self._executor(numbers[place + 1], 0.0) if place + 1 < len(numbers) else None
            if isinstance(following, AheadWorker):
                following.start()
            try:
                done = self._process(f"p{process}", todo[process], executor)
            except BaseException:
                done = False
                raise
            finally:
                executor.close()
                if not done and following is not None:
                    following.close()
            if not done:
                return False
        return True

    def _left(self, label: str) -> list[Case]:
        done = self.samples.cases.get(label, {})
        return [case for case in self.cases if case.key not in done]

    def inject(self) -> bool:
        """Slowed kernels in cases that are measurable and can be slowed, each in as many processes as confirm a change; whether all are."""
        chosen = self._slowable()
        workers = [] if self.laboratory else [AheadWorker(SLOWED, self._device()) for _ in range(CONFIRMED)]
        try:
            for worker in workers:
                worker.start()
            for process in range(CONFIRMED):
                for share in INJECTED:
                    executor = workers[process] if workers else self._executor(self.args.processes + process, share)
                    if not self._slow(process, share, chosen, executor):
                        return False
        finally:
            for worker in workers:
                worker.close()
        return True

    def _slow(self, process: int, share: float, chosen: Sequence[tuple[Case, str]], executor: Executor) -> bool:
        name = f"slow{share * 100:.0f}"
        known, done = self.samples.cases.get(f"{name}-0", {}), self.samples.cases.get(f"{name}-{process}", {})
        cases = [SlowedCase.of(case, kernel, share, known.get(case.key)) for case, kernel in chosen if case.key not in done]
        return not cases or self._process(f"{name}-{process}", cases, executor)

    def _slowable(self) -> list[tuple[Case, str]]:
        """Cases, each with a kernel, at even distances among those that the first processes call measurable and that can be slowed."""
        kernels, seen = self.kernels(self.laboratory(0, 0.0) if self.laboratory else None), dict[str, str]()
        for noise in calibration.noises_of(pairs_of(self.samples.fresh(FIRST))):
            case = next(case for case in self.cases if case.key == noise.key)
            kernel = next(own for own in kernels(case.problem.op) if own.name == noise.kernel)
            if noise.visible <= MEASURABLE and case.cache == "hot" and (self.laboratory or injectable(kernel, case.problem, self.gpu)):
                seen.setdefault(noise.key, noise.kernel)
        return spread([(case, seen[case.key]) for case in self.cases if case.key in seen], self.args.inject) if self.args.inject else []

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
            f"{run_id(self.gpu.name)}/{label}", self.gpu.name, now().isoformat(timespec="seconds"), commit, dirty, METHOD,
            "fake" if fake else "cuda-graph", {} if fake else conditions.device_facts(self.args.device), conditions.library_versions(),
            self.arguments,
        )

    def _executor(self, process: int, share: float) -> Executor:
        if self.laboratory is not None:
            lab = self.laboratory(process, share)
            return Local(Bench(self.gpu, lab.clock, lab.monitor, self.kernels(lab), "cpu"))
        return AheadWorker(ON_DEVICE, self._device())

    def _device(self) -> DeviceArguments:
        return DeviceArguments(self.gpu, self.args.device, "", self.plan.turn_us, tuple(self.args.kernel))


def run(
    args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, cases: Sequence[Case], out: Path, accepted: Path,
    laboratory: Laboratory | None,
) -> int:
    """Measure what is left, write samples and limits, print what they are worth; the exit code."""
    path, started = out / FILE, time.monotonic()
    existing = _existing(path, gpu, args.resume)
    seconds = float("inf") if args.budget is None else budget_seconds(args.budget)
    with Writer(path) as writer:
        kernels = only(laboratory(0, 0.0).kernels_for if laboratory else catalogued(), args.kernel, cases)
        work = Calibrating(
            args, arguments, gpu, choose(cases, kernels, gpu, args.cases), writer, Samples.of(existing),
            lambda: seconds - (time.monotonic() - started), laboratory,
        )
        work.compile()
        complete = work.measure(range(min(FIRST, args.processes))) and work.inject()
        complete = complete and work.measure(range(FIRST, args.processes))
    made, checks, judgements = _derive(work, gpu)
    calibration.write(out / LIMITS, made)
    codes = _show(made, checks, judgements, work.samples)
    if not complete:
        print(f"suites.calibrate: the budget was spent; go on with --out {out} --resume")
    code = first_that_applies(codes)
    if args.accept and code == GOOD:
        calibration.write(calibration.calibration_file(accepted), made)
        print(f"suites.calibrate: accepted as {calibration.calibration_file(accepted)}")
    print(f"suites.calibrate: samples in {path}, limits in {out / LIMITS}")
    return code


def _existing(path: Path, gpu: Gpu, resume: bool) -> list[Record]:
    if not path.is_file() or not path.stat().st_size:
        return []
    if not resume:
        raise UsageError(f"{path.parent} already holds samples; add --resume to go on with them, or name another folder")
    records = list(read(path))
    for record in records:
        if isinstance(record, RunRecord) and record.gpu != gpu.name:
            raise GpuMismatch(f"{path} holds samples of {record.gpu}, the device is {gpu.name}; name another --out")
    return records


def _derive(work: Calibrating, gpu: Gpu) -> tuple[Calibration, Checks | None, list[tuple[str, Judgement]]]:
    """The limits, the resampling, and the gate's verdict on every slowed kernel."""
    samples = work.samples
    pairs = pairs_of(samples.fresh())
    noises = calibration.noises_of(pairs)
    checks, head = resampling.check(pairs, noises), next(reversed(samples.heads.values()))
    made = Calibration(
        gpu.name, head.device.get("uuid"), head.started, head.commit, head.method, noises, head.versions,
        asdict(checks) if checks else {}, samples.timed(), work.args.quick,
    )
    judge, judgements = Judge(gpu, {}, made, samples.heads), []
    for (label, key), record in samples.slowed().items():
        own = settled(judge_case(record, samples.fresh()[key][0], judge), len(noises))
        slowed = {result.kernel for result in record.results if "injected" in result.notes}
        judgements += [(label, judgement) for judgement in own if judgement.kernel in slowed or not slowed]
    found = {f"{label} {own.key} {own.kernel}": own.verdict for label, own in judgements}
    return replace(made, checks={**made.checks, "injections": found}), checks, judgements


def _show(
    made: Calibration, checks: Checks | None, judgements: Sequence[tuple[str, Judgement]], samples: Samples,
) -> list[int]:
    """Print it all; the exit codes that apply."""
    for noise in sorted(made.noises, key=lambda noise: noise.visible):
        pair = f"{noise.kernel} over {noise.baseline}"
        print(f"  sees {noise.visible:6.1%}  spread {noise.spread:.2%}  {noise.us:9.2f} µs  {pair}  {noise.key}")
    wrong = any(result.status == "wrong" for own in samples.cases.values() for record in own.values() for result in record.results)
    codes = [WRONG] if wrong else []
    for line in resampling.lines(checks) if checks else ["too few processes for false alarms and power"]:
        print(f"suites.calibrate: {line}")
    for label, judgement in judgements:
        print(f"  {label}: {judgement.verdict} {judgement.key} {judgement.kernel}: {judgement.detail}")
    if checks is None or checks.false_alarms > FALSE_ALARMS or any(checks.power_measurable[name] < least for name, least in POWER.items()):
        print("suites.calibrate: not what a gate needs: too few processes, false alarms above 1 %, or slowdowns that stay unseen")
        codes.append(INCONCLUSIVE)
    missed = [f"{label} {judgement.kernel}" for label, judgement in judgements if judgement.verdict != "REGRESSED" and label != "slow2"]
    if missed:
        print(f"suites.calibrate: injected and not found: {', '.join(missed)}")
        codes.append(SLOWER)
    return codes
