"""`python -m suites.gate`: is a run as good as what was accepted? Judged by the interval of the paired speed-up over a common baseline.

Where the GPU is calibrated (`suites.calibrate`), the limits are those of each case; else `MARGIN` stands for all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from autotune.command import Parser, guarded
from kernels.errors import GpuMismatch, NoGpu, RecordError, UsageError
from kernels.gpu import GPUS, Gpu, by_name, unlisted
from suites import arguments, calibration
from suites.calibration import MARGIN
from suites.case import asked
from suites.command import EXIT_CODES, GOOD, INCONCLUSIVE, SLOWER, WRONG, accepted_file, first_that_applies
from suites.judging import Judge, judge_case
from suites.quality import NOISE, headline, noise
from suites.record import CaseRecord, Record, RunRecord, latest, read
from suites.refusals import roofs_of
from suites.settling import Judgement, Verdict, settled
from suites.statistics import CONFIDENCE
from suites.store import write_text

CODES: dict[Verdict, int] = {
    "PASS": GOOD, "IMPROVED": GOOD, "NEW": GOOD, "REGRESSED": SLOWER, "INCONCLUSIVE": INCONCLUSIVE, "MISSING": INCONCLUSIVE, "WRONG": WRONG,
}


def judge_run(
    run: Sequence[Record], accepted: Sequence[Record], gpu: Gpu, limits: calibration.Calibration | None = None,
) -> list[Judgement]:
    """Every case that the run measured or should have measured, against the accepted one. NoGpu for a run without measured cases."""
    now, then = latest(run), latest(accepted)
    if not now:
        kinds = sorted({record.evidence for record in run if isinstance(record, CaseRecord)})
        raise NoGpu(f"the run holds no measured case ({', '.join(kinds) or 'none at all'}); a gate judges measurements")
    judge = Judge(gpu, roofs_of(run), limits, {record.id: record for record in (*accepted, *run) if isinstance(record, RunRecord)})
    planned = dict.fromkeys(key for record in run if isinstance(record, RunRecord) for key in record.planned)
    judgements = [Judgement(key, "", "MISSING", "planned, but not measured") for key in planned if key not in now]
    for key, case in now.items():
        judgements += judge_case(case, then.get(key), judge, _filtered(run, case.run))
    return settled(judgements)


def _filtered(run: Iterable[Record], identity: str) -> tuple[str, ...]:
    """The kernels to which that run was restricted by --kernel; empty for all."""
    for record in run:
        if isinstance(record, RunRecord) and record.id == identity:
            try:
                return tuple(arguments.parser().parse_args(list(record.arguments)).kernel)
            except (UsageError, SystemExit) as error:  # --help, or a line of another version
                raise RecordError(f"run {identity}: its command line cannot be read: {error}") from None
    return ()


def decided(record: CaseRecord, accepted: CaseRecord | None, judge: Judge, beside: int = 1) -> bool:
    """Whether more samples are not expected to change what run and gate say of a case (for `--until-decided`). beside: `comparisons`."""
    ratio = headline(record)
    if ratio is not None and noise(ratio) > NOISE:
        return False
    if accepted is None:
        return ratio is None or noise(ratio) <= MARGIN or not ratio.low <= 1 <= ratio.high
    return not any(_open(own, beside) for own in settled(judge_case(record, accepted, judge), beside))


def _open(own: Judgement, beside: int) -> bool:
    """Whether more processes could decide it."""
    if own.suspect or own.change is None or own.verdict != "INCONCLUSIVE":
        return own.suspect
    return own.test is None or not own.test.hopeless(own.change, beside)


def comparisons(accepted: Mapping[str, CaseRecord], planned: Iterable[str], only: Sequence[str] = ()) -> int:
    """How many comparisons a gate will make of a run of those cases, all of which Holm's procedure counts. only: as --kernel."""
    cases = [accepted[key] for key in planned if key in accepted and accepted[key].state == "interleaved"]
    return sum(
        result.kind == "variant" and result.status == "ok" and asked(result.kernel, only, case.suite)
        for case in cases for result in case.results
    )


def exit_code(judgements: Sequence[Judgement]) -> int:
    """The exit code of all verdicts together."""
    return first_that_applies(CODES[judgement.verdict] for judgement in judgements)


def agreement(judgements: Sequence[Judgement]) -> str:
    """How many intervals hold no change at all: of two runs of the same code, the stated share should. Empty without calibrated ones."""
    changes = [own.change for own in judgements if own.change is not None and own.test is not None]
    same = sum(change.low <= 1 <= change.high for change in changes)
    return f"{same} of {len(changes)} intervals include no change (of the same code, {CONFIDENCE:.0%} should)" if changes else ""


def parser() -> Parser:
    """The parser of `suites.gate`."""
    made = Parser(
        prog="python -m suites.gate", description="Compare a run with the accepted results of its GPU.",
        epilog="examples:\n  python -m suites.gate --gpu h200 --run runs/mine --markdown summary.md\n"
        f"  python -m suites.gate --gpu h200 --run runs/mine --accept\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--gpu", required=True, help="the GPU that the run is claimed to be from; auto: the one it says")
    made.add_argument("--run", required=True, nargs="+", metavar="RUN", help="folders or .jsonl files of the run")
    accepting = "make this run's results the accepted ones, refused cases left out, and print what changes"
    made.add_argument("--accept", action="store_true", help=accepting)
    made.add_argument("--accepted", metavar="FILE", help="accepted results; suites/accepted/<gpu>.jsonl by default")
    made.add_argument("--calibration", metavar="FILE", help="limits by suites.calibrate; beside the accepted results by default")
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
    gpu = _gpu(args.gpu, run)
    file = Path(args.accepted) if args.accepted else accepted_file(gpu.name)
    accepted = list(read(file)) if file.is_file() else []
    for record in (*run, *accepted):
        if isinstance(record, RunRecord) and record.gpu != gpu.name:
            raise GpuMismatch(f"--gpu {gpu.name} is claimed, but {record.id} is a run on {record.gpu}")
    limits = calibration.read(Path(args.calibration) if args.calibration else calibration.calibration_file(file))
    if args.calibration and limits is None:
        raise UsageError(f"--calibration {args.calibration}: no such file; suites.calibrate writes one")
    if limits is not None and limits.gpu != gpu.name:
        raise GpuMismatch(f"--gpu {gpu.name} is claimed, but the calibration is of {limits.gpu}")
    judgements = judge_run(run, accepted, gpu, limits)
    if args.junit:
        write_text(Path(args.junit), verdicts.junit(judgements))
    if args.markdown:
        write_text(Path(args.markdown), verdicts.markdown(judgements, gpu.name))
    verdicts.show(judgements)
    if not file.is_file() and not args.accept:
        print(f"suites.gate: {file} is not there: nothing was compared, every result is NEW")
    if agreement(judgements):
        print(f"suites.gate: {agreement(judgements)}")
    code = exit_code(judgements)
    if not args.accept or code == WRONG:
        return code
    believed, refused = accept.acceptable(run, gpu)
    if latest(believed):
        accept.accept(file, believed, accepted)
    for line in refused:
        print(f"suites.gate: not accepted: {line}")
    return INCONCLUSIVE if refused else GOOD


def _gpu(name: str, run: Sequence[Record]) -> Gpu:
    """The profile of that name; `auto`: the GPU of the run. One without a profile is known from its own run; else UsageError."""
    if name == "auto":
        names = sorted({record.gpu for record in run if isinstance(record, RunRecord)})
        if len(names) != 1:
            raise UsageError(f"--gpu auto: the run is of {', '.join(names) or 'no GPU'}; name one")
        name = names[0]
    listed = next((gpu for gpu in GPUS if gpu.name == name), None)
    if listed is not None:
        return listed
    if not any(isinstance(record, RunRecord) and record.gpu == name for record in run):
        return by_name(name)
    return unlisted(name)


if __name__ == "__main__":
    sys.exit(main())
