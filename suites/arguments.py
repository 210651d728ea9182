"""The command line of `suites.run`, also read back from a run record by the gate. Needs no torch."""

from __future__ import annotations

import argparse
import re

from autotune.command import Parser, parse_tokens
from kernels.errors import UsageError
from kernels.gpu import Gpu, choose
from suites.catalogue import Selection
from suites.command import EXIT_CODES

EXAMPLES = """examples:
  python -m suites.run --gpu h200                                   all suites at their defaults
  python -m suites.run --gpu auto --quick                           a few cases of each
  python -m suites.run --gpu h200 --suite prefill decode --model qwen2.5-7b --sparsity 2:4
  python -m suites.run --gpu h200 --suite prefill --shape 13824x2560 --tokens 512,4096
  python -m suites.run --gpu h200 --state sustained
  python -m suites.run --gpu h200 --out runs/mine --resume          go on with an interrupted run"""


def add_choice(made: argparse.ArgumentParser) -> None:
    """The arguments that say what is measured and on which device, alike for every command that measures."""
    made.add_argument("--gpu", default="auto", help="the GPU that the device is claimed to be, or auto")
    made.add_argument("--device", type=int, default=0, metavar="N", help="index of the CUDA device")
    made.add_argument("--suite", nargs="+", default=[], metavar="NAME", help="suites; all by default")
    made.add_argument("--model", nargs="+", default=[], metavar="NAME", help="models by name, or paths of Hugging Face config.json files")
    made.add_argument("--shape", nargs="+", default=[], metavar="NxK", help="layers of your own: out_features x in_features")
    made.add_argument("--tokens", nargs="+", default=[], metavar="T", help="tokens, separated by commas or blanks")
    made.add_argument("--sparsity", nargs="+", default=[], metavar="n:m", help="dense, 2:4, 6:8 …")
    made.add_argument("--kernel", nargs="+", default=[], metavar="NAME", help="only these kernels; suite/NAME: in that suite")


def parser() -> Parser:
    """The parser of `suites.run`."""
    made = Parser(
        prog="python -m suites.run", description="Measure the suites; without the device, do what can honestly be done without it.",
        epilog=f"{EXAMPLES}\n\n{EXIT_CODES}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_choice(made)
    made.add_argument("--state", choices=("interleaved", "sustained"), default="interleaved", help="how speed-ups are paired")
    made.add_argument("--data", nargs="+", default=[], choices=("ternary", "uniform", "zero"), help="what operands hold (default: ternary)")
    made.add_argument("--quick", action="store_true", help="a few cases of each suite, fewer samples")
    made.add_argument("--until-decided", action="store_true", help="measure undecided cases again, in up to three more fresh processes")
    made.add_argument("--out", metavar="FOLDER", help="folder of the results; runs/<date>-<gpu> by default")
    made.add_argument("--resume", action="store_true", help="go on with the run in --out (or the newest in runs)")
    made.add_argument("--require-gpu", action="store_true", help="fail with exit code 5 where there is no GPU")
    made.add_argument("--profile", metavar="NAME", help="for an unlisted GPU: the listed one whose configs it borrows")
    made.add_argument("--commit", metavar="SHA", help="commit of the code, where there is no git")
    made.add_argument("--list", action="store_true", help="print the cases and stop")
    return made


def selection(args: argparse.Namespace) -> Selection:
    """The cases that the arguments ask for."""
    return Selection(
        tuple(args.suite), tuple(args.model), tuple(args.shape), parse_tokens(args.tokens), tuple(args.sparsity), args.quick, args.state,
        tuple(args.data),
    )


def budget_seconds(text: str) -> float:
    """Seconds of "90s", "10m" or "2h"; UsageError otherwise."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found:
        raise UsageError(f"unknown budget {text!r}; allowed: a number with s, m or h, such as 10m")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def choose_gpu(args: argparse.Namespace, found: Gpu | None) -> Gpu:
    """The GPU to work for: `--gpu` checked against the device found, and `--profile` for a device that has no profile of its own."""
    return choose(args.gpu, args.profile, found, args.require_gpu or args.state == "sustained")
