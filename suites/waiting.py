"""A delay for Triton kernels, counted on the multiprocessor's own clock."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cycle_count():  # type: ignore[no-untyped-def]  # Triton functions have no Python types
    """The cycle counter of the multiprocessor that this program runs on, int64."""
    return tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def wait_cycles(cycles):  # type: ignore[no-untyped-def]  # as above
    """Keep this program busy for at least so many cycles."""
    start = cycle_count()
    while cycle_count() - start < cycles:
        pass
