"""What the command line of tuning understands, and the cases that it names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from autotune import plan
from autotune.clock import Clock
from autotune.command import Parser, parse_shape, parse_tokens
from autotune.job import Job
from autotune.search import STRATEGIES
from kernels.errors import UsageError
from kernels.gpu import Gpu
from kernels.problem import Op, Problem, Sparsity

TOKENS: dict[Op, tuple[int, ...]] = {
    "gemm": (1, 16, 64, 128, 512, 2048, 8192), "layer": (1, 64, 2048, 8192), "prepare": (0,), "activation": (1, 64, 2048, 16384),
    "forward": (4096, 16384), "input-grad": (4096, 16384), "weight-grad": (4096, 16384), "step": (4096, 16384),
}
"""Tuned when shapes are given and no tokens; `lookup` carries a config to the numbers of tokens between."""
EXAMPLES = """examples:
  python -m autotune.run --gpu h200 --budget 5m                 (the whole table: every case of every suite, on all GPUs of the model)
  python -m autotune.run --gpu h200 --budget 5m --resume        (what was not reached)
  python -m autotune.run --gpu h200 --coverage                  (what the table covers of which suite; needs no device)
  python -m autotune.run --gpu auto --op gemm --shape 13824x2560 2560x6912 --tokens 1 64 512 --sparsity 2:4 --resume
  python -m autotune.run --gpu h200 --op gemm --shape 8192x8192 --budget 40 --search model
  python -m autotune.run --gpu h200 --op gemm --compile-only --cache h200-kernels      (on any machine; then, on the H200:)
  python -m autotune.run --gpu h200 --op gemm --cache h200-kernels
  python -m autotune.run --gpu h200 --explain 13824x2560 --tokens 7

exit codes: 0 done; 2 usage, or not the GPU that was claimed; 3 a candidate computed wrong numbers; 4 something was not tuned;
5 no GPU; 130 interrupted (what was measured is kept, --resume goes on)"""


def parser() -> Parser:
    """The parser of `python -m autotune.run`."""
    made = Parser(
        prog="python -m autotune.run", description="Find the fastest config of each kernel for each shape, in child processes.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--gpu", required=True, help="a GPU profile, checked against the device, or auto")
    made.add_argument("--profile", metavar="NAME", help="for an unlisted GPU: the listed one whose figures it borrows")
    made.add_argument("--op", nargs="+", choices=tuple(TOKENS), help="what to tune (default: every op with something to tune)")
    made.add_argument("--kernel", nargs="+", help="only kernels of these names")
    made.add_argument("--shape", nargs="+", metavar="NxK", help="out_features x in_features (default: what the suites measure)")
    made.add_argument("--shapes", type=Path, metavar="FILE", help="a text file with one NxK a line")
    made.add_argument("--tokens", nargs="+", metavar="T", help="numbers of tokens, separated by spaces or commas")
    made.add_argument("--sparsity", nargs="+", metavar="n:m", help="sparsities, or dense (default: the suites'; of named shapes 2:4 6:8)")
    _add_search(made)
    made.add_argument("--explain", metavar="NxK", help="say which variant and config apply to this shape and why; needs no device")
    made.add_argument("--coverage", action="store_true", help="say what the table covers of every suite; needs no device")
    return made


def _add_search(made: Parser) -> None:
    made.add_argument("--search", choices=tuple(STRATEGIES), help="how (default: exhaustive, or local where --budget is given)")
    made.add_argument("--budget", metavar="10m", help="90s, 10m or 2h in all, or 40 evaluations per case (default: no limit)")
    made.add_argument("--resume", action="store_true", help="use what an earlier run of the same code and libraries measured")
    made.add_argument("--retry", action="store_true", help="try candidates again that killed their process in an earlier run")
    made.add_argument("--device", nargs="+", type=int, metavar="N", help="only these GPUs of this machine (default: all of the model)")
    made.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help="tune on the GPUs of a Ray cluster; needs the extra ray")
    made.add_argument("--cache", type=Path, metavar="DIR", help="keep compiled kernels in that folder (default: where Triton does)")
    made.add_argument("--compile-only", action="store_true", help="compile every candidate into the cache, time none; needs no device")


def parse_budget(text: str) -> tuple[float | None, int | None]:
    """(seconds, evaluations) of "90s", "10m", "2h" or "40", one of them None. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found:
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]], None
    if re.fullmatch(r"[1-9]\d*", text.strip()):
        return None, int(text)
    raise UsageError(f"budget {text!r}: a time with s, m or h is wanted, such as 10m, or a number of evaluations")


def search(options: argparse.Namespace) -> str:
    """The name of the strategy."""
    return str(options.search or ("local" if options.budget else "exhaustive"))


def shapes(options: argparse.Namespace) -> list[tuple[int, int]]:
    """The shapes that the options name; none for those of the suites."""
    words = list(options.shape or ())
    if options.shapes:
        try:
            words += (found := options.shapes.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{options.shapes}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if not found:  # without a shape the whole table would be meant
            raise UsageError(f"{options.shapes}: no shape in it; allowed: one NxK a line, such as 13824x2560")
    return list(dict.fromkeys(map(parse_shape, words)))


def whole(options: argparse.Namespace) -> bool:
    """Whether it is the whole table that is asked for, and not a part of it."""
    return not (options.op or options.kernel or options.shape or options.shapes or options.tokens or options.sparsity)


def problems(options: argparse.Namespace, wanted: Sequence[tuple[int, int]]) -> Iterator[Problem]:
    """The problems that the options name, distinct. wanted: the shapes; without any, what the suites measure (`autotune.plan`)."""
    tokens = parse_tokens(options.tokens) if options.tokens else None
    sparsities = [Sparsity.parse(text) for text in options.sparsity or ("2:4", "6:8")]
    if not wanted:
        for problem in plan.problems():
            asked = options.op is None or problem.op in options.op
            sparse = options.sparsity is None or problem.sparsity in sparsities
            if asked and sparse and (tokens is None or problem.op == "prepare" or problem.tokens in tokens):
                yield problem
        return
    seen = set()
    for op in options.op or TOKENS:
        for n, k in wanted:
            for t in TOKENS[op] if op == "prepare" or tokens is None else tokens:
                for sparsity in sparsities:
                    problem = Problem(op, 0 if op == "activation" else n, k, t, sparsity)
                    if problem not in seen:
                        seen.add(problem)
                        yield problem


def answerable(wanted: Iterable[Problem]) -> list[Problem]:
    """The problems that have an answer; why the others have none is printed."""
    wanted = list(wanted)
    for reason in dict.fromkeys(problem.refusal for problem in wanted if problem.refusal):
        print(f"refused: {reason}")
    return [problem for problem in wanted if not problem.refusal]


def jobs(options: argparse.Namespace, wanted: Sequence[Problem], gpu: Gpu, clock: Clock, catalogue: str) -> list[Job]:
    """One job per problem and kernel that has a choice to make and is there; UsageError for a kernel that is not.

    Every such kernel of problems that are named; of the suites' problems, where no kernel is named, the likeliest (`plan.chosen`).
    """
    kernels_for = import_module(catalogue).kernels_for
    names = {kernel.name for problem in wanted for kernel in kernels_for(problem.op)}
    unknown = set(options.kernel or ()) - names
    if unknown:
        raise UsageError(f"unknown kernel {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(names))}")
    if options.kernel or options.shape or options.shapes:
        pairs = [(kernel, problem) for problem in wanted for kernel in kernels_for(problem.op)
                 if (not options.kernel or kernel.name in options.kernel) and kernel.space.axes
                 and kernel.unavailable(problem, gpu) is None]
    else:
        pairs = plan.chosen(wanted, gpu, kernels_for)
    cache = str(options.cache.resolve()) if options.cache else None
    return [Job(kernel.name, problem, gpu, clock, catalogue, "cuda", cache) for kernel, problem in pairs]
