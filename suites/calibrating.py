"""A calibration: every case in fresh processes, real slowdowns, the limits, and what resampling shows of them."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kernels.errors import GpuMismatch, UsageError
from kernels.gpu import Gpu
from suites import calibration, resampling
from suites.arguments import budget_seconds
from suites.calibrating_cases import choose
from suites.calibrating_samples import Samples
from suites.calibrating_work import Calibrating, Laboratory
from suites.calibration import Calibration
from suites.calibration_pairs import pairs_of
from suites.calibration_table import good
from suites.case import Case
from suites.command import GOOD, INCONCLUSIVE, SLOWER, WRONG, first_that_applies
from suites.executor import catalogued
from suites.judging import Judge, judge_case
from suites.quality import case_refusals
from suites.record import Record, RunRecord, read
from suites.resampling import Checks
from suites.session import only
from suites.settling import Judgement, settled
from suites.spread import noises_of
from suites.store import Writer

FILE = "records.jsonl"
LIMITS = "calibration.json"


def run(
    args: argparse.Namespace, arguments: tuple[str, ...], gpu: Gpu, cases: Sequence[Case], out: Path, accepted: Path,
    laboratory: Laboratory | None,
) -> int:
    """Measure what is left, write samples and limits, print what they are worth; the exit code."""
    path, started = out / FILE, time.monotonic()
    existing = _existing(path, gpu, args.resume)
    seconds = float("inf") if args.budget is None else budget_seconds(args.budget)
    with Writer(path) as writer:
        only(laboratory(0, 0.0).kernels_for if laboratory else catalogued(), args.kernel, cases)
        work = Calibrating(
            args, arguments, gpu, cases, writer, Samples.of(existing), lambda: seconds - (time.monotonic() - started), laboratory,
        )
        work.cases = choose(cases, work.kernels, gpu, args.cases)
        complete = work.measure()
    if not work.samples.heads:
        print(f"suites.calibrate: the budget was spent before anything was measured; go on with --out {out} --resume")
        return INCONCLUSIVE
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
    noises = noises_of(pairs)
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
    refused = Counter(refusal.name for own in samples.cases.values() for record in own.values() for refusal in case_refusals(record))
    if refused:
        counted = ", ".join(f"{name} in {count}" for name, count in sorted(refused.items()))
        print(f"suites.calibrate: cases that a gate would refuse: {counted}; calibrate anew")
        codes.append(INCONCLUSIVE)
    for line in resampling.lines(checks) if checks else ["too few processes for false alarms and power"]:
        print(f"suites.calibrate: {line}")
    for label, judgement in judgements:
        print(f"  {label}: {judgement.verdict} {judgement.key} {judgement.kernel}: {judgement.detail}")
    if checks is None or not good(made.checks):
        print("suites.calibrate: not what a gate needs: too few processes, false alarms above 1 %, or slowdowns that stay unseen")
        codes.append(INCONCLUSIVE)
    missed = [f"{label} {judgement.kernel}" for label, judgement in judgements if judgement.verdict != "REGRESSED" and label != "slow2"]
    if missed:
        print(f"suites.calibrate: injected and not found: {', '.join(missed)}")
        codes.append(SLOWER)
    return codes
