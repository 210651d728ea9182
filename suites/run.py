"""`python -m suites.run`: measure the suites on a GPU, or do without one what can honestly be done. Parse, dispatch, exit."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.command import guarded
from kernels.errors import UsageError
from kernels.gpu import GPUS, Gpu, choose
from suites import catalogue
from suites.arguments import choose_gpu, parser, selection
from suites.command import INCONCLUSIVE, USAGE, Reporting

if TYPE_CHECKING:
    from suites.on_gpu import Lab

FILE = "records.jsonl"
RUNS = Path("runs")


def main(
    argv: Sequence[str] | None = None, *, detect: Callable[[int], Gpu | None] | None = None, lab: Lab | None = None,
    build_report: Reporting | None = None,
) -> int:
    """Run the command and return its exit code. detect, lab, build_report: what tests put in the place of the device and the report."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    return guarded("suites.run", lambda: _main(arguments, detect or _detect, lab, build_report or report_in_child))


def _main(arguments: tuple[str, ...], detect: Callable[[int], Gpu | None], lab: Lab | None, build_report: Reporting) -> int:
    args = parser().parse_args(arguments)
    cases = catalogue.plan(selection(args))
    if args.device < 0:
        raise UsageError(f"--device {args.device}: allowed are 0 and up")
    if args.list:
        listed = args.gpu in ("auto", *(gpu.name for gpu in GPUS))
        choose(args.gpu, args.profile, None if listed else detect(args.device))  # any other name may be the device's own
        print("\n".join(catalogue.listing(cases)))
        return 0
    found = detect(args.device)
    if found is None and args.device > 0 and detect(0) is not None:
        raise UsageError(f"--device {args.device}: this machine has no such device; its first one is 0")
    gpu = choose_gpu(args, found)
    if gpu.measured_as != "datasheet":
        print(f"suites.run: {gpu.name}: {gpu.measured_as}")
    out = folder(args, gpu)
    if found is None:
        from suites import nogpu

        return nogpu.run(gpu, cases, out / FILE, arguments, args.commit, args.kernel, build_report)
    from suites import on_gpu

    return on_gpu.run(args, arguments, gpu, cases, out / FILE, lab, build_report)


def _detect(index: int) -> Gpu | None:
    from kernels.gpu import detect

    return detect(index)


def folder(args: argparse.Namespace, gpu: Gpu) -> Path:
    """The folder to write to; UsageError for one that holds results, unless --resume says to go on with them."""
    from suites.session import new_folder

    if args.out is not None:
        out = Path(args.out)
    elif args.resume:
        runs = sorted(RUNS.glob(f"*/{FILE}"), key=lambda path: (path.stat().st_mtime_ns, path))
        if not runs:
            raise UsageError(f"--resume: no run in {RUNS}/ to go on with; name its folder with --out")
        out = runs[-1].parent
    else:
        out = new_folder(RUNS, gpu.name)
    if (out / FILE).is_file() and not args.resume:
        raise UsageError(f"{out} already holds results; add --resume to go on with them, or name another folder")
    return out


def report_in_child(gpu: Gpu, results: Sequence[Path], page: Path) -> int:
    """Build the report in a process of its own (reports stand to the right of suites) and print its path last; its exit code.

    results: folders or files to report on.
    """
    line = [sys.executable, "-m", "reports.build", "--gpu", gpu.name, "--run", *map(str, results), "--out", str(page)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"reports.build ended with {done.returncode}"])[-1]
        print(f"suites.run: no report: {reason}", file=sys.stderr)
        return USAGE if done.returncode == USAGE else INCONCLUSIVE
    print(f"report:\n{page.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
