"""A run on a device: what is left to measure, the run's head, roofs, cases, summary and report."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune import conditions
from autotune.clock import Clock
from autotune.conditions import Monitor
from autotune.measure import FULL, METHOD, QUICK, SUSTAINED, Plan
from kernels.errors import GpuMismatch
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op
from suites import calibration
from suites.ahead import FEW, compilations, compile_ahead
from suites.bench import Bench, Fault
from suites.case import Case
from suites.command import INCONCLUSIVE, Reporting, accepted_file, first_that_applies
from suites.executor import ON_DEVICE, DeviceArguments, Executor, Local, Worker, catalogued
from suites.gate import comparisons, decided
from suites.judging import Judge
from suites.progress import Reporter, phases, table
from suites.record import CaseRecord, Record, RoofRecord, RunRecord, latest, read
from suites.session import ROOT, Outcome, Session, commit_of, only, run_id, stamp
from suites.store import Writer


@dataclass(frozen=True)
class Lab:
    """What tests put in the place of a device: clock, kernels and monitor; everything then runs in this process, on the CPU."""

    clock: Clock
    kernels: Sequence[Kernel]
    monitor: Monitor
    plan: Plan | None = None
    roofs: tuple[RoofRecord, ...] = ()

    def kernels_for(self, op: Op) -> Sequence[Kernel]:
        """The kernels of that op."""
        return [kernel for kernel in self.kernels if kernel.op == op]


def run(
    args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, cases: Sequence[Case], path: Path, lab: Lab | None,
    build_report: Reporting,
) -> int:
    """Measure what is not yet in the file at `path`, print the summary, build the report; the exit code of all that is in the file."""
    existing, outcome = _existing(path, gpu), Outcome()
    for record in latest(existing).values():
        outcome.add(record)
    left = [case for case in cases if case.key not in outcome.records]
    kernels = only(lab.kernels_for if lab else catalogued(), args.kernel, cases)
    plan, identity = _plan(args, lab), run_id(gpu.name)
    executor = _executor(args, gpu, identity, plan, lab, kernels)
    try:
        with Writer(path) as writer:
            head = replace(_head(args, arguments, gpu, identity, executor), planned=tuple(case.key for case in cases))
            writer.write(head)
            session = Session(executor, writer, identity, plan, kernels, _decided(args, gpu, head))
            print(f"suites.run: {gpu.name}: {len(left)} cases to measure, {len(cases) - len(left)} already there; results in {path}")
            if lab is None:
                _compile(left, kernels, gpu, args.device)
            _measure(session, left, outcome, roofs=not any(isinstance(record, RoofRecord) for record in existing))
    except KeyboardInterrupt:
        line = shlex.join(["python", "-m", "suites.run", *_without_folder(arguments), "--out", str(path.parent), "--resume"])
        print(f"\nsuites.run: what was measured is kept; go on with: {line}", file=sys.stderr)
        raise
    finally:
        executor.close()
    summarize(outcome)
    return first_that_applies((outcome.exit_code, build_report(gpu, [path.parent], path.parent / "report.html")))


def _existing(path: Path, gpu: Gpu) -> list[Record]:
    records = list(read(path)) if path.is_file() and path.stat().st_size else []
    for record in records:
        if isinstance(record, RunRecord) and (record.gpu, record.evidence) != (gpu.name, "measured"):
            raise GpuMismatch(f"{path} holds {record.evidence} results of {record.gpu}, this run measures {gpu.name}; name another --out")
    return records


def _compile(cases: Sequence[Case], kernels: Callable[[Op], Sequence[Kernel]], gpu: Gpu, index: int) -> None:
    work = compilations(cases, kernels, gpu)
    if len(work) < FEW:
        return
    print(f"suites.run: compiling {len(work)} kernels on all cores before anything is timed")
    started = time.monotonic()
    done, failed = compile_ahead(work, gpu, index)
    left = f"; {failed} are left to the measuring process" if failed else ""
    print(f"suites.run: compiled {done} in {time.monotonic() - started:.0f} s{left}")


def _measure(session: Session, cases: Sequence[Case], outcome: Outcome, roofs: bool) -> None:
    if roofs and cases:
        try:
            for roof in session.roofs():
                print(f"  roof {roof.name}: {roof.value / 1e12:.4g} T{roof.unit}")
        except Fault as fault:
            outcome.troubles.append((INCONCLUSIVE, f"the roofs were not measured: {fault.failure}"))
    with Reporter(len(cases)) as reporter:
        session.measure(cases, outcome, reporter.case)


def _plan(args: argparse.Namespace, lab: Lab | None) -> Plan:
    if lab is not None and lab.plan is not None:
        return lab.plan
    if args.state == "sustained":
        return SUSTAINED
    return QUICK if args.quick else FULL


def _executor(
    args: argparse.Namespace, gpu: Gpu, identity: str, plan: Plan, lab: Lab | None, kernels: Callable[[Op], Sequence[Kernel]],
) -> Executor:
    if lab is None:
        return Worker(ON_DEVICE, DeviceArguments(gpu, args.device, identity, plan.turn_us, tuple(args.kernel), args.until_decided))
    roofs = lab.roofs
    return Local(Bench(gpu, lab.clock, lab.monitor, kernels, "cpu", only=args.kernel), identity, lambda: list(roofs))


def _head(args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, identity: str, executor: Executor) -> RunRecord:
    commit, dirty = commit_of(ROOT, args.commit)
    fake = isinstance(executor, Local)
    return RunRecord(
        identity, gpu.name, stamp(), commit, dirty, METHOD, "fake" if fake else "cuda-graph",
        {} if fake else conditions.device_facts(args.device), conditions.library_versions(), arguments,
    )


def _decided(args: argparse.Namespace, gpu: Gpu, head: RunRecord) -> Callable[[CaseRecord], bool]:
    """For --until-decided: whether the gate could judge a record among all that are planned; else everything is."""
    if not args.until_decided:
        return lambda record: True
    file = accepted_file(gpu.name)
    records = list(read(file)) if file.is_file() else []
    heads = {record.id: record for record in (*records, head) if isinstance(record, RunRecord)}
    accepted, judge = latest(records), Judge(gpu, {}, calibration.read(calibration.calibration_file(file)), heads)
    beside = comparisons(accepted, head.planned, args.kernel)
    return lambda record: decided(record, accepted.get(record.key), judge, beside)


def _without_folder(arguments: Sequence[str]) -> list[str]:
    pairs = zip(("", *arguments), arguments, strict=False)
    return [text for before, text in pairs if before != "--out" and text not in ("--out", "--resume") and not text.startswith("--out=")]


def summarize(outcome: Outcome) -> None:
    """Print the table of a run, where its time went, and what is wrong with it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    console.print(table(list(outcome.records.values())))
    for line in (phases(list(outcome.records.values())), *(text for _, text in outcome.troubles[:20])):
        if line:
            console.print(line, soft_wrap=True)
    if len(outcome.troubles) > 20:
        console.print(f"and {len(outcome.troubles) - 20} more; the report has them all")
