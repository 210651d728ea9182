"""Square: T = N = K, the sizes at which libraries are compared; tokens are the sizes."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.problem import Problem
from suites.case import Case, Choice, Suite


def _cases(choice: Choice) -> Iterator[Case]:
    for size in choice.tokens:
        for sparsity in choice.sparsities:
            yield Case("square", "square", f"{size}x{size}", Problem("gemm", size, size, size, sparsity), "hot")


SUITE = Suite(
    name="square", title="GEMM with scaling epilogue, T = N = K", cases=_cases,
    tokens=(1024, 2048, 4096, 8192, 16384), sparsities=("2:4", "6:8"), quick_tokens=(4096, 8192), shaped=False,
)
