"""`python -m suites.calibrate`: measure the same code in fresh processes, and learn from it what a gate can tell from noise."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.command import Parser, guarded
from kernels.errors import NoGpu, UsageError
from kernels.gpu import Gpu, claim
from suites import catalogue
from suites.arguments import add_choice, selection
from suites.calibration import calibration_file, read
from suites.calibration_table import table
from suites.command import EXIT_CODES, GOOD, accepted_file

if TYPE_CHECKING:
    from suites.calibrating_work import Laboratory

FEWEST_PROCESSES = 6
"""Three that stand for a run in the check by resampling, and three that it is judged by."""


def parser() -> Parser:
    """The parser of `suites.calibrate`."""
    made = Parser(
        prog="python -m suites.calibrate",
        description="Measure the same code in fresh processes and derive the limits of the gate; the cases of a quick run by default.",
        epilog="examples:\n  python -m suites.calibrate --gpu h200 --processes 12 --cases 40 --accept\n"
        "  python -m suites.calibrate --gpu h200 --suite prefill --tokens 512 2048 --budget 10m --out runs/calibration\n"
        "  python -m suites.calibrate --gpu h200 --out runs/calibration --resume\n"
        f"  python -m suites.calibrate --gpu h200 --show\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_choice(made)
    made.add_argument("--quick", action="store_true", help="as few rounds as a quick run has: limits for quick runs")
    made.add_argument("--cases", type=int, default=24, metavar="N", help="so many cases, spread evenly; 0 for all (default: 24)")
    made.add_argument("--processes", type=int, default=12, metavar="N", help="fresh processes, at least 6 (default: 12)")
    made.add_argument("--inject", type=int, default=3, metavar="N", help="cases with really slowed kernels: 2, 5 and 10 %% (default: 3)")
    made.add_argument("--budget", metavar="10m", help="stop measuring after that long: 90s, 10m or 2h")
    made.add_argument("--out", metavar="FOLDER", help="folder of the samples; runs/calibration-<gpu> by default")
    made.add_argument("--resume", action="store_true", help="go on with the samples in --out")
    made.add_argument("--accept", action="store_true", help="make the limits those of the gate: beside the accepted results")
    made.add_argument("--accepted", metavar="FILE", help="accepted results beside which the limits go; suites/accepted/<gpu>.jsonl")
    made.add_argument("--show", action="store_true", help="print what the limits are worth (of --out, or of the gate); needs no GPU")
    made.add_argument("--commit", metavar="SHA", help="commit of the code, where there is no git")
    made.set_defaults(state="interleaved", data=[])
    return made


def main(
    argv: Sequence[str] | None = None, *, detect: Callable[[int], Gpu | None] | None = None, laboratory: Laboratory | None = None,
) -> int:
    """Run the command and return its exit code. detect, laboratory: what tests put in the place of the device."""
    return guarded(
        "suites.calibrate", lambda: _main(tuple(sys.argv[1:] if argv is None else argv), detect or _detect, laboratory),
        "interrupted; what was measured is kept, --resume goes on",
    )


def _main(arguments: tuple[str, ...], detect: Callable[[int], Gpu | None], laboratory: Laboratory | None) -> int:
    args = parser().parse_args(arguments)
    if args.processes < FEWEST_PROCESSES:
        raise UsageError(f"--processes {args.processes}: the spread between processes needs at least {FEWEST_PROCESSES}")
    if args.cases < 0 or args.inject < 0:
        raise UsageError("--cases and --inject: allowed are 0 and up")
    if args.device < 0:
        raise UsageError(f"--device {args.device}: allowed are 0 and up")
    if args.show:
        return _show(args)
    asked = selection(args)
    everything = not (asked.suites or asked.models or asked.shapes or asked.tokens or asked.sparsities)
    cases = [case for case in catalogue.plan(replace(asked, quick=asked.quick or everything)) if not case.problem.refusal]
    found = detect(args.device)
    if found is None:
        raise NoGpu(f"--gpu {args.gpu}: a GPU is needed to calibrate, and this machine has none")
    gpu = claim(args.gpu, found)
    from suites import calibrating

    out = Path(args.out) if args.out else Path("runs") / f"calibration-{gpu.name}"
    accepted = Path(args.accepted) if args.accepted else accepted_file(gpu.name)
    return calibrating.run(args, arguments, gpu, cases, out, accepted, laboratory)


def _show(args: argparse.Namespace) -> int:
    from suites.calibrating import LIMITS

    file = Path(args.out) / LIMITS if args.out else calibration_file(Path(args.accepted) if args.accepted else accepted_file(args.gpu))
    made = read(file)
    if made is None:
        raise UsageError(f"{file}: no calibration there; name its folder with --out, or its GPU with --gpu")
    print("\n".join(table(made)))
    return GOOD


def _detect(index: int) -> Gpu | None:
    from kernels.gpu import detect

    return detect(index)


if __name__ == "__main__":
    sys.exit(main())
