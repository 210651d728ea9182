"""Triton kernels that really hang, fault and exhaust memory. The hang is a minute at most: a failed kill frees the card by itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SPIN_SECONDS = 60


@triton.jit
def nanoseconds():
    return tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def spin(out, limit):
    started = nanoseconds()
    now = started
    while now - started < limit:
        now = nanoseconds()
    tl.store(out, now - started)


@triton.jit
def stray(out, away):
    tl.store(out + away, 1)


def hang(seconds: float = SPIN_SECONDS) -> int:
    """The nanoseconds it span."""
    out = torch.zeros(1, dtype=torch.int64, device="cuda")
    spin[(1,)](out, int(seconds * 1e9))
    return int(out)


def fault() -> int:
    out = torch.zeros(1, dtype=torch.int64, device="cuda")
    stray[(1,)](out, 1 << 44)
    torch.cuda.synchronize()
    return int(out)


def exhaust() -> int:
    held = [torch.empty(1 << 34, dtype=torch.uint8, device="cuda") for _ in range(1 << 10)]
    return len(held)


def add() -> int:
    return int(torch.ones(3, device="cuda").sum())
