"""Triton and Gluon functions for the compile tests."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@triton.jit
def int8_dot(a, b, c, rows, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    left = tl.load(a + offset[:, None] * BLOCK + offset[None, :], mask=offset[:, None] < rows, other=0)
    right = tl.load(b + offset[None, :] * BLOCK + offset[:, None])
    tl.store(c + offset[:, None] * BLOCK + offset[None, :], tl.dot(left, right, out_dtype=tl.int32))


@triton.jit
def broken(a):
    tl.store(a, not_defined_anywhere)  # noqa: F821  the compiler must complain


@gluon.jit
def doubled(a, BLOCK: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    offset = gl.arange(0, BLOCK, layout=layout)
    gl.store(a + offset, gl.load(a + offset) * 2)
