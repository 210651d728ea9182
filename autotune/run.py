"""The command line of tuning: parse, print, exit.

    python -m autotune.run --gpu h200 --op gemm --shape 13824x2560 --tokens 512 2048
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from autotune import tuned
from autotune.clock import Clock, CudaClock
from autotune.command import Parser, guarded, parse_shape, parse_tokens
from autotune.compile import refuse_interpreter
from autotune.conditions import library_versions
from autotune.job import Job
from autotune.journal import Journal
from autotune.search import Budget
from autotune.tuning import TRIAL_SECONDS, Outcome, Tuner, candidates
from kernels.errors import UsageError
from kernels.gpu import Gpu, claim, detect
from kernels.problem import Op, Problem, Sparsity

TURN_US = 1000.0
SHAPES = ("13824x2560", "2560x6912", "3840x2560", "22016x2048", "2048x11008", "37888x3584", "3584x18944", "8192x8192")
"""Tuned when no shape is given: the two MLP layers and the fused Wqkv of BitNet 2B, the MLP layers of Qwen2.5 3B and 7B, and a square."""
TOKENS: dict[Op, tuple[int, ...]] = {
    "gemm": (1, 16, 64, 128, 512, 2048, 8192), "layer": (1, 64, 2048, 8192), "prepare": (0,), "activation": (1, 64, 2048, 16384),
    "forward": (4096, 16384), "input-grad": (4096, 16384), "weight-grad": (4096, 16384), "step": (4096, 16384),
}
"""Tuned when no tokens are given; `lookup` carries a config to the numbers of tokens between."""
EXAMPLES = """examples:
  python -m autotune.run --gpu h200 --op gemm --budget 10m
  python -m autotune.run --gpu auto --op gemm --shape 13824x2560 2560x6912 --tokens 1 64 512 --sparsity 2:4 --resume
  python -m autotune.run --gpu h200 --explain 13824x2560 --tokens 512

exit codes: 0 done; 2 usage, or not the GPU that was claimed; 3 a candidate computed wrong numbers; 4 something was not tuned;
5 no GPU; 130 interrupted (what was measured is kept, --resume goes on)"""


@dataclass(frozen=True)
class Surroundings:
    """What the command works on, other than its arguments; tests put fakes here.

    detect: finds the GPU. catalogue: module with `kernels_for` and `find`. device: where tensors live. table: the file of tuned configs, by
    default the GPU's own. runs: folder of journals. trial_seconds: after which a candidate is killed.
    """

    detect: Callable[[], Gpu | None] = detect
    catalogue: str = "kernels.catalogue"
    device: str = "cuda"
    table: Path | None = None
    runs: Path = Path("runs")
    trial_seconds: float = TRIAL_SECONDS


def main(argv: Sequence[str] | None = None, clock: Clock | None = None, around: Surroundings | None = None) -> int:
    """Tune, or explain, and return the exit code. clock, around: other than the real ones, for tests."""
    around = around or Surroundings()

    def body() -> int:
        options = _parser().parse_args(argv)
        return _explain(options, around) if options.explain else _tune(options, clock or CudaClock(TURN_US), around)

    return guarded("autotune.run", body, "interrupted; what was measured is kept, --resume goes on")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m autotune.run", description="Find the fastest config of each kernel for each shape, in child processes.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", required=True, help="a GPU profile, checked against the device, or auto")
    parser.add_argument("--op", nargs="+", choices=tuple(TOKENS), help="what to tune (default: every op with something to tune)")
    parser.add_argument("--kernel", nargs="+", help="only kernels of these names")
    parser.add_argument("--shape", nargs="+", metavar="NxK", help="out_features x in_features, any number of them")
    parser.add_argument("--shapes", type=Path, metavar="FILE", help="a text file with one NxK a line")
    parser.add_argument("--tokens", nargs="+", metavar="T", help="numbers of tokens, separated by spaces or commas")
    parser.add_argument("--sparsity", nargs="+", default=["2:4", "6:8"], metavar="n:m", help="sparsities (default: 2:4 6:8), or dense")
    parser.add_argument("--budget", metavar="10m", help="stop after that long: 90s, 10m or 2h (default: no limit)")
    parser.add_argument("--resume", action="store_true", help="use what an earlier run of the same code and libraries measured")
    parser.add_argument("--explain", metavar="NxK", help="say which configs apply to this shape and why; needs no device")
    return parser


def parse_budget(text: str) -> float:
    """Seconds of "90s", "10m" or "2h". Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found:
        raise UsageError(f"budget {text!r}: a number with s, m or h is wanted, such as 10m")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _shapes(options: argparse.Namespace) -> list[tuple[int, int]]:
    words = list(options.shape or ())
    if options.shapes:
        try:
            words += options.shapes.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{options.shapes}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return list(dict.fromkeys(map(parse_shape, words or SHAPES)))


def problems(options: argparse.Namespace, shapes: Sequence[tuple[int, int]]) -> Iterator[Problem]:
    """The problems that the options name, distinct."""
    tokens = parse_tokens(options.tokens) if options.tokens else None
    seen = set()
    for op in options.op or TOKENS:
        for n, k in shapes:
            for t in TOKENS[op] if op == "prepare" or tokens is None else tokens:
                for sparsity in map(Sparsity.parse, options.sparsity):
                    problem = Problem(op, 0 if op == "activation" else n, k, t, sparsity)
                    if problem not in seen:
                        seen.add(problem)
                        yield problem


def _answerable(wanted: Iterable[Problem]) -> list[Problem]:
    """The problems that have an answer; why the others have none is printed."""
    wanted = list(wanted)
    for reason in dict.fromkeys(problem.refusal for problem in wanted if problem.refusal):
        print(f"refused: {reason}")
    return [problem for problem in wanted if not problem.refusal]


def _jobs(options: argparse.Namespace, wanted: Sequence[Problem], gpu: Gpu, clock: Clock, around: Surroundings) -> list[Job]:
    """One job per problem and kernel that has a choice to make and is there."""
    kernels_for = import_module(around.catalogue).kernels_for
    jobs, names = [], set()
    for problem in wanted:
        for kernel in kernels_for(problem.op):
            names.add(kernel.name)
            if options.kernel and kernel.name not in options.kernel:
                continue
            if kernel.space.axes and kernel.unavailable(problem, gpu) is None:
                jobs.append(Job(kernel.name, problem, gpu, clock, around.catalogue, around.device))
    unknown = set(options.kernel or ()) - names
    if unknown:
        raise UsageError(f"unknown kernel {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(names))}")
    return jobs


def _explain(options: argparse.Namespace, around: Surroundings) -> int:
    gpu = claim(options.gpu, None)
    options.op = options.op or ["gemm"]
    jobs = _jobs(options, _answerable(problems(options, [parse_shape(options.explain)])), gpu, CudaClock(), around)
    if not jobs:
        raise UsageError("nothing to explain: no kernel of these ops has a choice for this shape and these sparsities")
    for job in jobs:
        print(tuned.explain(job.find(), job.problem, gpu, around.table))
    return 0


def _tune(options: argparse.Namespace, clock: Clock, around: Surroundings) -> int:
    refuse_interpreter()
    budget = Budget(parse_budget(options.budget) if options.budget else None)
    wanted = _answerable(problems(options, _shapes(options)))
    gpu = claim(options.gpu, around.detect(), required=True)
    jobs = _jobs(options, wanted, gpu, clock, around)
    if not jobs:
        raise UsageError("nothing to tune: no kernel of these ops has a choice for these shapes and sparsities")
    journal = Journal(around.runs / f"tune-{gpu.name}" / "journal.jsonl", options.resume)
    table = around.table or tuned.path_of(gpu)
    tuned.read(table)
    total = sum(len(candidates(job.find(), job)) for job in jobs)
    print(f"{len(jobs)} cases, {total} candidates on {gpu.name}; journal {journal.path}, table {table}", flush=True)
    outcomes: list[Outcome] = []
    try:
        with _display(total) as (step, say):
            tuner = Tuner(journal, budget, table, library_versions(), step, around.trial_seconds)
            for outcome in tuner.run(jobs):
                outcomes.append(outcome)
                say(_line(outcome))
    finally:
        journal.close()
    return _verdict(outcomes)


def _verdict(outcomes: Sequence[Outcome]) -> int:
    """Print the sum and give the exit code."""
    won, wrong = sum(outcome.entry is not None for outcome in outcomes), sum(outcome.wrong for outcome in outcomes)
    missing = sum(not outcome.complete for outcome in outcomes)
    print(f"{won} tuned, {len(outcomes) - won - missing} stay with their default, {missing} not tuned, {wrong} candidates wrong")
    return 3 if wrong else 4 if missing else 0


def _line(outcome: Outcome) -> str:
    job, entry = outcome.job, outcome.entry
    lost = f" ({len(outcome.failures)} candidates failed, first: {outcome.failures[0]})" if outcome.failures else ""
    if entry is None:
        return f"{job.kernel} {job.problem}: {outcome.reason}{lost}"
    over = f"default {entry.default_us:.2f} µs, {entry.default_us / entry.us:.2f}x" if entry.default_us else "the default cannot run"
    return f"{job.kernel} {job.problem}: {entry.us:.2f} µs ({over}) {dict(entry.config)}{lost}"


@contextmanager
def _display(total: int) -> Iterator[tuple[Callable[[str, int], None], Callable[[str], None]]]:
    """(step, say): a bar with the time left on a terminal, else one plain line per case."""
    if not sys.stdout.isatty():
        yield (lambda text, done: None), (lambda text: print(text, flush=True))
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    counter, what = TextColumn("{task.completed:.0f}/{task.total}"), TextColumn("{task.description}")
    with Progress(BarColumn(), counter, TimeRemainingColumn(), what) as progress:
        task = progress.add_task("starting", total=total)

        def step(text: str, done: int) -> None:
            progress.update(task, description=text.replace("[", r"\["), advance=done)

        yield step, lambda text: progress.console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
