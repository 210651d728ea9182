"""What the commands of suites and reports share: exit codes and their order, the folder of committed results. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from autotune.command import INTERRUPTED
from kernels.gpu import Gpu

GOOD, SLOWER, USAGE, WRONG, INCONCLUSIVE, NO_GPU = 0, 1, 2, 3, 4, 5
PRECEDENCE = (INTERRUPTED, USAGE, NO_GPU, WRONG, INCONCLUSIVE, SLOWER, GOOD)

EXIT_CODES = """exit codes, the first that applies: 130 interrupted (what was measured is kept) · 2 usage, bad input, or the GPU is not
the one claimed · 5 no GPU where one is needed · 3 wrong numbers · 4 inconclusive (noise, throttling, something not measured) ·
1 slower than accepted · 0 good"""

Reporting = Callable[[Gpu, Sequence[Path], Path], int]
"""Builds the report of a GPU over those folders or files into that page, and returns an exit code."""

ACCEPTED = Path(__file__).resolve().parent / "accepted"


def first_that_applies(codes: Iterable[int]) -> int:
    """The exit code that counts among those that apply; 0 for none. A code that means nothing here counts as inconclusive."""
    found = {code if code in PRECEDENCE else INCONCLUSIVE for code in codes}
    return next((code for code in PRECEDENCE if code in found), GOOD)


def accepted_file(gpu: str) -> Path:
    """Where the committed results of that GPU are (or would be)."""
    return ACCEPTED / f"{gpu}.jsonl"
