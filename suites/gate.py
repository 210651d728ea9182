"""`python -m suites.gate`: is a run as good as what was accepted? Judged by the interval of the paired speed-up over a common baseline."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autotune.command import Parser, guarded
from kernels.errors import GpuMismatch, NoGpu, RecordError, UsageError
from kernels.gpu import GPUS, Gpu, by_name, unlisted
from suites import arguments
from suites.command import EXIT_CODES, GOOD, INCONCLUSIVE, SLOWER, WRONG, accepted_file, first_that_applies
from suites.floors import impossible
from suites.quality import NOISE, headline, noise, throttled
from suites.record import CaseRecord, Record, Result, RoofRecord, RunRecord, latest, read
from suites.statistics import Ratio, speedup, time_us
from suites.store import write_text

MARGIN = 0.03
"""Smallest change that counts, until it is calibrated by repeated runs of the same code."""

Verdict = Literal["PASS", "IMPROVED", "REGRESSED", "INCONCLUSIVE", "MISSING", "WRONG", "NEW"]
CODES: dict[Verdict, int] = {
    "PASS": GOOD, "IMPROVED": GOOD, "NEW": GOOD, "REGRESSED": SLOWER, "INCONCLUSIVE": INCONCLUSIVE, "MISSING": INCONCLUSIVE, "WRONG": WRONG,
}


@dataclass(frozen=True)
class Judgement:
    """The verdict on one variant in one case, or on a baseline that is missing. change: speed-up now over speed-up accepted."""

    key: str
    kernel: str
    verdict: Verdict
    detail: str = ""
    change: Ratio | None = None


def judge_run(run: Sequence[Record], accepted: Sequence[Record], gpu: Gpu) -> list[Judgement]:
    """Every case that the run measured or should have measured, against the accepted one. NoGpu for a run without measured cases."""
    now, then = latest(run), latest(accepted)
    if not now:
        kinds = sorted({record.evidence for record in run if isinstance(record, CaseRecord)})
        raise NoGpu(f"the run holds no measured case ({', '.join(kinds) or 'none at all'}); a gate judges measurements")
    roofs: dict[str, float] = {}
    for record in run:
        if isinstance(record, RoofRecord):
            roofs[record.name] = max(record.value, roofs.get(record.name, 0.0))
    judgements: list[Judgement] = []
    planned = dict.fromkeys(key for record in run if isinstance(record, RunRecord) for key in record.planned)
    judgements += [Judgement(key, "", "MISSING", "planned, but not measured") for key in planned if key not in now]
    for key, case in now.items():
        only = _filtered(run, case.run)
        judgements += judge_case(case, then.get(key), gpu, roofs, only)
    return judgements


def _filtered(run: Iterable[Record], identity: str) -> tuple[str, ...]:
    """The kernels to which that run was restricted by --kernel; empty for all."""
    for record in run:
        if isinstance(record, RunRecord) and record.id == identity:
            try:
                return tuple(arguments.parser().parse_args(list(record.arguments)).kernel)
            except (UsageError, SystemExit) as error:  # --help, or a line of another version
                raise RecordError(f"run {identity}: its command line cannot be read: {error}") from None
    return ()


def judge_case(
    now: CaseRecord, then: CaseRecord | None, gpu: Gpu, roofs: Mapping[str, float], only: Sequence[str] = (),
) -> list[Judgement]:
    """The verdicts on one measured case: one per variant, and one per baseline that is wrong, missing or impossible."""
    found = []
    for result in now.results:
        before = then.result(result.kernel) if then else None
        verdict = _doubt(now, result, before, gpu, roofs)
        if verdict is None and result.kind == "variant":
            verdict = _compare(now, then, result, before)
        if verdict is not None:
            found.append(verdict)
    known = {result.kernel for result in now.results}
    for result in then.results if then else ():
        if result.status == "ok" and result.kernel not in known and not (only and result.kernel not in only):
            found.append(Judgement(now.key, result.kernel, "MISSING", "accepted, but not in this run"))
    return found


def _doubt(now: CaseRecord, result: Result, before: Result | None, gpu: Gpu, roofs: Mapping[str, float]) -> Judgement | None:
    """Why a result cannot be compared at all, or None."""
    def verdict(kind: Verdict, detail: str | None) -> Judgement:
        return Judgement(now.key, result.kernel, kind, detail or "")

    if result.status == "wrong":
        return verdict("WRONG", result.reason)
    if result.status != "ok" or time_us(result) is None:
        if (before is not None and before.status == "ok") or result.status == "failed":
            return verdict("MISSING", f"{result.stage}: {result.reason}")
        return None
    reason = impossible(now, result, gpu, roofs)
    return verdict("INCONCLUSIVE", f"impossible: {reason}") if reason else None


def _compare(now: CaseRecord, then: CaseRecord | None, result: Result, before: Result | None) -> Judgement | None:
    if result.status != "ok":
        return None
    reason = throttled(now)
    if reason is not None:
        return Judgement(now.key, result.kernel, "INCONCLUSIVE", f"throttled: {reason}")
    if then is None or before is None or before.status != "ok":
        return _new(now, result)
    pair = _common(now, then)
    if pair is None:
        return Judgement(now.key, result.kernel, "MISSING", "no baseline that both runs measured")
    ours, theirs = speedup(result, pair[0]), speedup(before, pair[1])
    if ours is None or theirs is None:
        return Judgement(now.key, result.kernel, "MISSING", "no paired samples")
    change = ratio_of(ours, theirs)
    interval = f"{change.value - 1:+.1%} [{change.low - 1:+.1%}, {change.high - 1:+.1%}]"
    detail = f"{ours.value:.3f}× {pair[0].kernel}, accepted {theirs.value:.3f}×: {interval}"
    return Judgement(now.key, result.kernel, verdict_of(change), detail, change)


def _new(now: CaseRecord, result: Result) -> Judgement:
    """A case that nothing was accepted for: only its own noise can be judged."""
    ratio = headline(now)
    if ratio is not None and noise(ratio) > NOISE:
        return Judgement(now.key, result.kernel, "INCONCLUSIVE", f"not accepted before, and uncertain by {noise(ratio):.0%}")
    return Judgement(now.key, result.kernel, "NEW", "not accepted before")


def _common(now: CaseRecord, then: CaseRecord) -> tuple[Result, Result] | None:
    """The fastest baseline (as accepted) that computes exactly the case's function and was measured both times: now, then."""
    pairs = []
    for before in then.results:
        result = now.result(before.kernel)
        if before.kind == "baseline" and before.exact and before.status == "ok" and result is not None and result.status == "ok":
            time = time_us(before)
            if time is not None and time_us(result) is not None:
                pairs.append((time, (result, before)))
    return min(pairs, key=lambda pair: pair[0])[1] if pairs else None


def ratio_of(now: Ratio, then: Ratio) -> Ratio:
    """now / then of two independent ratios; half-widths add in quadrature on the logarithmic scale, each side for itself."""
    middle = math.log(now.value / then.value)
    down = math.hypot(math.log(now.value / now.low), math.log(then.high / then.value))
    up = math.hypot(math.log(now.high / now.value), math.log(then.value / then.low))
    return Ratio(math.exp(middle), math.exp(middle - down), math.exp(middle + up), min(now.pairs, then.pairs))


def verdict_of(change: Ratio, margin: float = MARGIN) -> Verdict:
    """REGRESSED or IMPROVED: the whole interval lies beyond the margin. PASS: a regression beyond it is excluded. Else INCONCLUSIVE."""
    if change.high < 1 - margin:
        return "REGRESSED"
    if change.low > 1 + margin:
        return "IMPROVED"
    return "PASS" if change.low >= 1 - margin else "INCONCLUSIVE"


def decided(record: CaseRecord, accepted: CaseRecord | None, gpu: Gpu) -> bool:
    """Whether more samples would not change what the gate says of a case (for `suites.run --until-decided`)."""
    if accepted is None:
        ratio = headline(record)
        return ratio is None or noise(ratio) <= MARGIN or not ratio.low <= 1 <= ratio.high
    return all(judgement.change is None or judgement.verdict != "INCONCLUSIVE" for judgement in judge_case(record, accepted, gpu, {}))


def exit_code(judgements: Sequence[Judgement]) -> int:
    """The exit code of all verdicts together."""
    return first_that_applies(CODES[judgement.verdict] for judgement in judgements)


def parser() -> Parser:
    """The parser of `suites.gate`."""
    made = Parser(
        prog="python -m suites.gate", description="Compare a run with the accepted results of its GPU.",
        epilog="examples:\n  python -m suites.gate --gpu h200 --run runs/mine --markdown summary.md\n"
        f"  python -m suites.gate --gpu h200 --run runs/mine --accept\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--gpu", required=True, help="the GPU that the run is claimed to be from")
    made.add_argument("--run", required=True, nargs="+", metavar="RUN", help="folders or .jsonl files of the run")
    made.add_argument("--accept", action="store_true", help="make this run's results the accepted ones, and print what changes")
    made.add_argument("--accepted", metavar="FILE", help="accepted results; suites/accepted/<gpu>.jsonl by default")
    made.add_argument("--junit", metavar="FILE", help="write the verdicts as JUnit XML")
    made.add_argument("--markdown", metavar="FILE", help="write the verdicts as Markdown")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return guarded("suites.gate", lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    from suites import accept, verdicts

    args = parser().parse_args(argv)
    run = [record for path in args.run for record in read(Path(path))]
    gpu = next((gpu for gpu in GPUS if gpu.name == args.gpu), None) or _unlisted(args.gpu, run)
    file = Path(args.accepted) if args.accepted else accepted_file(gpu.name)
    accepted = list(read(file)) if file.is_file() else []
    for record in (*run, *accepted):
        if isinstance(record, RunRecord) and record.gpu != gpu.name:
            raise GpuMismatch(f"--gpu {gpu.name} is claimed, but {record.id} is a run on {record.gpu}")
    judgements = judge_run(run, accepted, gpu)
    if args.junit:
        write_text(Path(args.junit), verdicts.junit(judgements))
    if args.markdown:
        write_text(Path(args.markdown), verdicts.markdown(judgements, gpu.name))
    verdicts.show(judgements)
    code = exit_code(judgements)
    if not args.accept or code == WRONG:
        return code
    accept.accept(file, run, accepted)
    return GOOD


def _unlisted(name: str, run: Sequence[Record]) -> Gpu:
    """A GPU without a profile, known from its own run; UsageError where the run is not from it."""
    if not any(isinstance(record, RunRecord) and record.gpu == name for record in run):
        return by_name(name)
    return unlisted(name)


if __name__ == "__main__":
    sys.exit(main())
