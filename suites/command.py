"""What the commands share: exit codes and their order, one-line errors, the folder of committed results. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from kernels.errors import TerSparseError, UsageError
from kernels.gpu import Gpu

GOOD, SLOWER, USAGE, WRONG, INCONCLUSIVE, NO_GPU, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
PRECEDENCE = (INTERRUPTED, USAGE, NO_GPU, WRONG, INCONCLUSIVE, SLOWER, GOOD)

EXIT_CODES = """exit codes, the first that applies: 130 interrupted (what was measured is kept) · 2 usage, bad input, or the GPU is not
the one claimed · 5 no GPU where one is needed · 3 wrong numbers · 4 inconclusive (noise, throttling, something not measured) ·
1 slower than accepted · 0 good"""

Reporting = Callable[[Gpu, Sequence[Path], Path], int]
"""Builds the report of a GPU over those folders or files into that page, and returns an exit code."""

ACCEPTED = Path(__file__).resolve().parent / "accepted"


def first_that_applies(codes: Iterable[int]) -> int:
    """The exit code that counts among those that apply; 0 for none."""
    found = set(codes)
    return next((code for code in PRECEDENCE if code in found), GOOD)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UsageErrors of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(message)


def guarded(name: str, body: Callable[[], int]) -> int:
    """Run a command's body: errors become one line on stderr and their exit code, an interrupt becomes 130."""
    try:
        return body()
    except TerSparseError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def accepted_file(gpu: str) -> Path:
    """Where the committed results of that GPU are (or would be)."""
    return ACCEPTED / f"{gpu}.jsonl"
