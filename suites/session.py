"""A run: cases measured one after the other, each record on the disk before the next begins."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autotune.measure import Plan
from kernels.errors import OutputError, UsageError
from kernels.kernel import Kernel
from kernels.problem import Op
from suites.bench import Fault
from suites.case import Case, asked
from suites.command import INCONCLUSIVE, first_that_applies
from suites.executor import Executor, measure_case
from suites.floors import compulsory_bytes
from suites.quality import spoiled, troubles
from suites.record import CaseRecord, RoofRecord
from suites.settling import ATTEMPTS
from suites.store import Writer
from suites.trial import plain_result

LOST_IN_A_ROW = 3
"""So many cases in a row whose process dies before any kernel runs end the run: the machine is broken, not the case."""

ROOT = Path(__file__).resolve().parent.parent

Report = Callable[[Case, CaseRecord], None]


@dataclass
class Outcome:
    """What a run came to: records by key, and the exit codes that apply with the line for each."""

    records: dict[str, CaseRecord] = field(default_factory=dict)
    troubles: list[tuple[int, str]] = field(default_factory=list)

    def add(self, record: CaseRecord) -> None:
        """Take in a case."""
        self.records[record.key] = record
        self.troubles += [(code, f"{record.key}: {text}") for code, text in troubles(record)]

    @property
    def exit_code(self) -> int:
        """The exit code of what was measured."""
        return first_that_applies(code for code, _ in self.troubles)


@dataclass(frozen=True)
class Session:
    """What a run needs.

    kernels: by op, to name them in the record of a case whose process died. decided: whether a record needs no more samples.
    """

    executor: Executor
    writer: Writer
    run: str
    plan: Plan
    kernels: Callable[[Op], Sequence[Kernel]]
    decided: Callable[[CaseRecord], bool] = lambda record: True

    def measure(self, cases: Sequence[Case], outcome: Outcome, report: Report) -> None:
        """Measure and write every case; `outcome` holds what is done even when an interrupt ends this early."""
        lost = 0
        for case in cases:
            try:
                record, lost, reason = self._until_decided(case), 0, ""
            except Fault as fault:
                record, lost, reason = self._lost(case, fault), lost + 1, str(fault.failure)
            self.writer.write(record)
            outcome.add(record)
            report(case, record)
            if lost >= LOST_IN_A_ROW:
                outcome.troubles.append((INCONCLUSIVE, f"given up: the measuring process keeps dying: {reason}"))
                return

    def _until_decided(self, case: Case) -> CaseRecord:
        record = measure_case(self.executor, case, self.plan)
        for _ in range(ATTEMPTS - 1):
            if record.refusal or self.decided(record):
                break
            self.executor.fresh()
            record = joined(record, measure_case(self.executor, case, self.plan))
        return replace(record, run=self.run)

    def _lost(self, case: Case, fault: Fault) -> CaseRecord:
        results = tuple(plain_result(kernel, fault.failure) for kernel in self.kernels(case.problem.op))
        return CaseRecord(
            self.run, case.suite, case.model, case.layer, case.state, case.cache, case.problem.to_dict(), str(case.problem),
            case.problem.operations, compulsory_bytes(case.problem), results, data=case.data,
        )

    def roofs(self) -> list[RoofRecord]:
        """Measure and write the ceilings of the device."""
        roofs = [replace(roof, run=self.run) for roof in self.executor.roofs()]
        for roof in roofs:
            self.writer.write(roof)
        return roofs


def only(every: Callable[[Op], Sequence[Kernel]], names: Sequence[str], cases: Sequence[Case]) -> Callable[[Op], Sequence[Kernel]]:
    """The kernels of these names ("kernel", "suite/kernel") by op, or all for no names; UsageError for one that none of the cases has."""
    known = dict.fromkeys(kernel.name for op in dict.fromkeys(case.problem.op for case in cases) for kernel in every(op))
    suites = dict.fromkeys(case.suite for case in cases)
    for name in names:
        suite, _, kernel = name.rpartition("/")
        if kernel not in known:
            raise UsageError(f"unknown kernel {kernel!r}; allowed here: {', '.join(known)}")
        if suite and suite not in suites:
            raise UsageError(f"--kernel {name}: no case of a suite {suite!r}; allowed here: {', '.join(suites)}")
    return lambda op: [kernel for kernel in every(op) if asked(kernel.name, names)]


def joined(first: CaseRecord, second: CaseRecord) -> CaseRecord:
    """One record of what two fresh processes measured: the samples of the second behind those of the first, kernel by kernel.

    A kernel that only one of them measured has no samples; whatever went wrong, in either, is kept.
    """
    results = []
    for own in first.results:
        other = second.result(own.kernel)
        if own.status != "ok":
            results.append(own)
        elif other is None:
            reason = "not measured by every process"
            results.append(replace(own, status="failed", stage="measure", reason=reason, samples_us=(), call_us=(), ceiling=()))
        elif other.status != "ok":
            results.append(other)
        else:
            results.append(replace(
                own, samples_us=own.samples_us + other.samples_us, call_us=own.call_us + other.call_us, blocks=own.blocks + other.blocks,
                notes={**own.notes, **other.notes}, ceiling=own.ceiling + other.ceiling if own.ceiling and other.ceiling else (),
            ))
    rounds = [max((len(result.samples_us) for result in record.results), default=0) for record in (first, second)]
    earlier = first.processes or (rounds[0],)
    return replace(
        first, results=tuple(results), processes=(*earlier, rounds[1]) if first.state == "interleaved" else (),
        conditions=_conditions(first, second),
        seconds=first.seconds + second.seconds,
        phases={name: first.phases.get(name, 0.0) + second.phases.get(name, 0.0) for name in {**first.phases, **second.phases}},
    )


def _conditions(first: CaseRecord, second: CaseRecord) -> dict[str, Any]:
    """Before the first and after the second; one between them takes the place of the last where it spoils what was measured."""
    later = [first.conditions.get("after"), second.conditions.get("before"), second.conditions.get("after")]
    return {"before": first.conditions.get("before"), "after": next(filter(spoiled, later), later[-1])}


def now() -> datetime:
    """The time, UTC."""
    return datetime.now(timezone.utc)


def stamp() -> str:
    """The time as a record holds it: ISO 8601, UTC, with microseconds, for of two runs in one second the gate asks which was first."""
    return now().isoformat(timespec="microseconds")


def new_folder(parent: Path, ending: str) -> Path:
    """Make a folder named by the time: of runs that begin in one second each gets one of its own. OutputError where none can be made."""
    name = f"{now():%Y%m%d-%H%M%S}-{ending}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for path in (parent / name, *(parent / f"{name}-{number}" for number in range(2, 1000))):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise OutputError(f"{parent}: no folder can be made there: {error.strerror}") from None
    raise OutputError(f"{parent}: no name for a folder is left in this second")


def run_id(gpu: str) -> str:
    """An identifier for a run: time, GPU and four random digits."""
    return f"{now():%Y%m%dT%H%M%SZ}-{gpu}-{uuid.uuid4().hex[:4]}"


def commit_of(folder: Path, given: str | None) -> tuple[str, bool]:
    """Commit of the code and whether it was changed since; the given one where there is no git, else "unknown"."""
    if given:
        return given, False
    top = _git(folder, "rev-parse", "--show-toplevel")
    head = _git(folder, "rev-parse", "HEAD") if top and Path(top).resolve() == folder.resolve() else ""
    return (head or "unknown", bool(head and _git(folder, "status", "--porcelain", "--untracked-files=no")))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
