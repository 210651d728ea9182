"""A calibration: every case in fresh processes, real slowdowns, the limits, and what resampling shows of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from suites.arguments import budget_seconds
from suites.bench import Bench, Fault
from suites.calibration import MEASURABLE, Calibration, Noise
from suites.case import Case
from suites.command import GOOD, INCONCLUSIVE, SLOWER, WRONG, first_that_applies
from suites.executor import ON_DEVICE, DeviceArguments, Executor, Local, Worker, catalogued, measure_case
from suites.injected import SLOWED, Injection, injectable
from suites.judging import Judge, Judgement, judge_case, settled
from suites.on_gpu import Lab
from suites.record import CaseRecord, Record, RunRecord, read
from suites.resampling import INJECTED, Checks
from suites.session import ROOT, commit_of, now, only, run_id
from suites.store import Writer

FILE = "records.jsonl"
LIMITS = "calibration.json"
FALSE_ALARMS = 0.01
FIRST = (0.05, 0.10, 0.02)
"""The order in which slowdowns are injected: one of each first, each in a case of its own."""


class Laboratory(Protocol):
    """What tests put in the place of devices: the lab that the process of that number finds, its kernels slowed by that share."""

    def __call__(self, process: int, slowdown: float) -> Lab:
        """The lab."""


@dataclass
class Samples:
    """What is measured so far, by the label of its process: `p0`, `p1` … for the same code, `slow5-0` … for slowed kernels."""

    cases: dict[str, dict[str, CaseRecord]]
    heads: dict[str, RunRecord]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Samples:
        """Sorted by the end of each run's id."""
        samples = cls({}, {})
        for record in records:
            if isinstance(record, RunRecord):
                samples.heads[record.id] = record
            elif isinstance(record, CaseRecord):
                samples.add(record)
        return samples

    def add(self, record: CaseRecord) -> None:
        """Take in a case."""
        self.cases.setdefault(label_of(record.run), {})[record.key] = record

    def fresh(self) -> dict[str, list[CaseRecord]]:
        """The records of each case by its fresh processes, in order; kernels that were not right every time are left out by `pairs_of`."""
        found: dict[str, list[CaseRecord]] = {}
        for label in sorted((label for label in self.cases if label.startswith("p")), key=lambda label: int(label[1:])):
            for key, record in self.cases[label].items():
                found.setdefault(key, []).append(record)
        return found


def label_of(run: str) -> str:
    """The process that a run's id stands for."""
    return run.partition("/")[2]


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
        """How much to measure; a lab may have its own."""
        made = self.laboratory(0, 0.0).plan if self.laboratory else None
        return made or (QUICK if self.args.quick else FULL)

    def kernels(self, lab: Lab | None) -> Callable[[Op], Sequence[Kernel]]:
        """The kernels that take part, by op."""
        return only(lab.kernels_for if lab else catalogued(), self.args.kernel, self.cases)

    def measure(self) -> bool:
        """Every case in every process; whether nothing is left to do."""
        for process in range(self.args.processes):
            done = self.samples.cases.get(f"p{process}", {})
            todo = [case for case in self.cases if case.key not in done]
            if todo and not self._process(f"p{process}", todo, self._executor(process, 0.0)):
                return False
        return True

    def inject(self, noises: Sequence[Noise]) -> bool:
        """Slowed kernels in the cases that can be slowed, one share a case and process; whether nothing is left to do."""
        for share, number, case, kernel in self.injections(noises):
            label = f"slow{share:.0%}-{number}".replace("%", "")
            if case.key in self.samples.cases.get(label, {}):
                continue
            if not self._process(label, [case], self._executor(self.args.processes + number, share, kernel)):
                return False
        return True

    def injections(self, noises: Sequence[Noise]) -> Iterator[tuple[float, int, Case, str]]:
        """Share, number, case and kernel of every injection: measurable cases at even distances, one of each share first."""
        kernels, seen = self.kernels(self.laboratory(0, 0.0) if self.laboratory else None), dict[str, str]()
        for noise in noises:
            if noise.visible <= MEASURABLE:
                seen.setdefault(noise.key, noise.kernel)
        able = [
            (case, kernel) for case in self.cases for kernel in kernels(case.problem.op)
            if seen.get(case.key) == kernel.name and (self.laboratory or injectable(kernel, case.problem, self.gpu))
        ]
        chosen = [able[place * len(able) // self.args.inject] for place in range(min(self.args.inject, len(able)))] if able else []
        for turn in range(len(INJECTED)):
            for number, (case, kernel) in enumerate(chosen):
                yield FIRST[(turn + number) % len(FIRST)], number, case, kernel.name

    def _process(self, label: str, cases: Sequence[Case], executor: Executor) -> bool:
        """These cases in one fresh process; False where the budget ended before the last."""
        head = self._head(label)
        self.writer.write(head)
        self.samples.heads[head.id] = head
        try:
            for number, case in enumerate(cases):
                if self.left() <= 0:
                    return False
                print(f"suites.calibrate: {label}, case {number + 1} of {len(cases)}: {case}", flush=True)
                try:
                    record = replace(measure_case(executor, case, self.plan), run=head.id)
                except Fault as fault:
                    print(f"suites.calibrate: {case}: {fault}", flush=True)
                    continue
                self.writer.write(record)
                self.samples.add(record)
        finally:
            executor.close()
        return True

    def _head(self, label: str) -> RunRecord:
        commit, dirty = commit_of(ROOT, self.args.commit)
        fake = self.laboratory is not None
        return RunRecord(
            f"{run_id(self.gpu.name)}/{label}", self.gpu.name, now().isoformat(timespec="seconds"), commit, dirty, METHOD,
            "fake" if fake else "cuda-graph", {} if fake else conditions.device_facts(self.args.device), conditions.library_versions(),
            self.arguments,
        )

    def _executor(self, process: int, share: float, kernel: str = "") -> Executor:
        if self.laboratory is not None:
            lab = self.laboratory(process, share)
            return Local(Bench(self.gpu, lab.clock, lab.monitor, self.kernels(lab), "cpu"))
        device = DeviceArguments(self.gpu, self.args.device, "", self.plan.turn_us, tuple(self.args.kernel))
        return Worker(SLOWED, Injection(device, kernel, share)) if share else Worker(ON_DEVICE, device)


def run(
    args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, cases: Sequence[Case], out: Path, accepted: Path,
    laboratory: Laboratory | None,
) -> int:
    """Measure what is left, write samples and limits, print what they are worth; the exit code."""
    path, started = out / FILE, time.monotonic()
    existing = _existing(path, gpu, args.resume)
    seconds = float("inf") if args.budget is None else budget_seconds(args.budget)
    with Writer(path) as writer:
        work = Calibrating(
            args, arguments, gpu, cases, writer, Samples.of(existing), lambda: seconds - (time.monotonic() - started), laboratory,
        )
        complete = work.measure()
        noises = calibration.noises_of(calibration.pairs_of(work.samples.fresh()))
        complete = complete and work.inject(noises)
    made, checks, judgements = _derive(work, gpu, noises)
    calibration.write(out / LIMITS, made)
    codes = _show(made, checks, judgements, work.samples)
    if not complete:
        print(f"suites.calibrate: the budget was spent; go on with --out {out} --resume")
        codes.append(INCONCLUSIVE)
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


def _derive(work: Calibrating, gpu: Gpu, noises: Sequence[Noise]) -> tuple[Calibration, Checks | None, list[tuple[str, Judgement]]]:
    """The limits, the resampling, and the gate's verdict on every slowed kernel."""
    samples = work.samples
    checks = resampling.check(calibration.pairs_of(samples.fresh()), noises)
    head = next(reversed(samples.heads.values()))
    made = Calibration(
        gpu.name, head.device.get("uuid"), head.started[:10], head.commit, head.method, tuple(noises), head.versions,
        asdict(checks) if checks else {},
    )
    judge = Judge(gpu, {}, made, samples.heads)
    judgements = []
    for label in sorted(label for label in samples.cases if label.startswith("slow")):
        for key, record in samples.cases[label].items():
            own = settled(judge_case(record, samples.fresh()[key][0], judge), len(noises))
            slowed = {result.kernel for result in record.results if "injected" in result.notes} or {noises[0].kernel}
            judgements += [(label, judgement) for judgement in own if judgement.kernel in slowed]
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
    if checks is None or checks.false_alarms > FALSE_ALARMS:
        codes.append(INCONCLUSIVE)
    for label, judgement in judgements:
        print(f"  {label}: {judgement.verdict} {judgement.key} {judgement.kernel}: {judgement.detail}")
    missed = [label for label, judgement in judgements if judgement.verdict != "REGRESSED" and not label.startswith("slow2-")]
    if missed:
        print(f"suites.calibrate: injected and not found: {', '.join(missed)}")
        codes.append(SLOWER)
    return codes
