"""Without the device: numerics in the interpreter, machine code from cross-compilation, roofline projections, and a report over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from autotune.conditions import library_versions
from kernels.catalogue import kernels_for
from kernels.errors import GpuMismatch
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Op
from suites import crosscompiled, interpreted, projected
from suites.case import Case
from suites.command import INCONCLUSIVE, WRONG, Reporting, accepted_file, first_that_applies
from suites.record import CaseRecord, RunRecord, read
from suites.session import ROOT, commit_of, only, run_id, stamp
from suites.store import Writer


def run(
    gpu: Gpu, cases: Sequence[Case], path: Path, arguments: tuple[str, ...], commit: str | None, names: Sequence[str],
    build_report: Reporting, every: Callable[[Op], Sequence[Kernel]] = kernels_for,
) -> int:
    """Write what can be known without the device to `path`, and report; 0 when every number is right and everything compiles.

    names: of the kernels to compile and project, none for all. Raises GpuMismatch where `path` holds the results of a run on a device,
    UsageError for an unknown name.
    """
    kernels = only(every, names, cases)
    if path.is_file():
        for record in read(path):
            if isinstance(record, RunRecord) and (record.evidence, record.gpu) != ("projected", gpu.name):
                raise GpuMismatch(f"{path} holds {record.evidence} results of {record.gpu}; without that device, name another --out")
    print(f"suites.run: no {gpu.name} here: numerics in the interpreter, cross-compilation for {gpu.architecture}, roofline projections.")
    print("suites.run: nothing below is measured.")
    identity, codes = run_id(gpu.name), [0]
    with Writer(path) as writer:
        head_commit, dirty = commit_of(ROOT, commit)
        writer.write(RunRecord(
            identity, gpu.name, stamp(), head_commit, dirty, "roofline/1", "none",
            versions=library_versions(), arguments=arguments, evidence="projected",
        ))
        for what, records in (
            ("interpreted", interpreted.run(identity)),
            ("compiled", crosscompiled.run(cases, gpu, kernels, identity)),
            ("projected", projected.run(cases, gpu, kernels, identity)),
        ):
            codes += _write(writer, what, records)
    accepted = accepted_file(gpu.name)
    results = [path.parent, *([accepted] if accepted.is_file() else [])]
    return first_that_applies((*codes, build_report(gpu, results, path.parent / "report.html")))


def _write(writer: Writer, what: str, records: Iterable[CaseRecord]) -> list[int]:
    """Write the records, print a line for each that is not projected and each fault; the exit codes that apply."""
    codes, count = [], 0
    for record in records:
        writer.write(record)
        count += 1
        bad = [result for result in record.results if result.status in ("wrong", "failed")]
        codes += [WRONG if result.status == "wrong" else INCONCLUSIVE for result in bad]
        if what != "projected":
            print(f"  {what} {record.label}: {', '.join(f'{r.kernel} {r.status}' for r in record.results) or 'nothing to do'}")
        for result in bad:
            print(f"  ! {result.kernel} {record.label}: {result.stage}: {result.reason}")
    print(f"suites.run: {what}: {count} cases")
    return codes
