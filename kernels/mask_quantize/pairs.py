"""Two groups of four 16-bit weights at once: what the packers of 2:4 weights share.

A word holds the same member of two groups, the first group's in its lower half. Magnitudes have 15 bits, so that the sixteenth shows
which of two is larger after one subtraction, in both halves: six of them and four majorities tell the two largest of each group.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIGNS = tl.constexpr(-0x7FFF8000)  # 0x80008000


@triton.jit
def _by_position(word):
    """Words as they lie in memory, [a, b, c, two groups, two words of each], as four words [a, b, c]: member k of both groups."""
    first, second = tl.split(tl.permute(word, [0, 1, 2, 4, 3]))
    even = (first & 0xFFFF) | (second << 16)
    odd = ((first >> 16) & 0xFFFF) | (second & -0x10000)
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def _in_memory_order(w0, w1, w2, w3):
    """The inverse of `_by_position`: [a, b, c, 2, 2]."""
    even = tl.join(w0, w2)
    odd = tl.join(w1, w3)
    first = (even & 0xFFFF) | (odd << 16)
    second = ((even >> 16) & 0xFFFF) | (odd & -0x10000)
    return tl.permute(tl.join(first, second), [0, 1, 2, 4, 3])


@triton.jit
def _majority(a, b, c):
    return (a & b) | (c & (a | b))


@triton.jit
def _not_below(a, b):
    """Bit 15 of each half: whether its magnitude in a is at least that in b. No borrow leaves a half."""
    return (a | _SIGNS) - (b & ~_SIGNS)


@triton.jit
def _two_largest(w0, w1, w2, w3):
    """Bit 15 of each half of four words: whether the weight is one of the two largest of its four; ties keep the lower index."""
    g01 = _not_below(w0, w1)
    g02 = _not_below(w0, w2)
    g03 = _not_below(w0, w3)
    g12 = _not_below(w1, w2)
    g13 = _not_below(w1, w3)
    g23 = _not_below(w2, w3)
    return _majority(g01, g02, g03), _majority(~g01, g12, g13), _majority(~g02, ~g12, g23), _majority(~g03, ~g13, ~g23)


@triton.jit
def _at(word, PLACE: tl.constexpr):
    """Bit 15 of each half, at bit PLACE of it."""
    return (word >> (15 - PLACE)) & (0x00010001 << PLACE)


@triton.jit
def _fake(word, nonzero, scale):
    """Both halves: the scale with the weight's sign where bit 15 says non-zero, else zero."""
    bit = nonzero & _SIGNS
    every = bit | (bit - ((bit >> 15) & 0x00010001))
    return every & ((word & _SIGNS) | scale)
