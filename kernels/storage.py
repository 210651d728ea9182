"""Bytes of a stored weight by format, ours and others', by arithmetic alone. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.problem import DENSE, Sparsity

INT4_GROUP, INT4_SCALE_BYTES = 128, 2
"""int4 as it is usual (GPTQ, AWQ): a 16-bit scale for every 128 weights of a row."""

_PACKED_BLOCK, _PACKED_BYTES = 256, 64
_FRAGMENT_ROWS, _FRAGMENT_COLUMNS, _FRAGMENT_BYTES = 64, 128, 2048

Bytes = Callable[[int, int, int], int]
"""(out_features, in_features, splits) to bytes, scales included."""


@dataclass(frozen=True)
class Format:
    """A way to store a weight. ours: one of the layouts here. sparsity: the weights it holds; DENSE for any."""

    name: str
    nbytes: Bytes
    ours: bool = False
    sparsity: Sparsity = DENSE


def packed_bytes(out_features: int, in_features: int, splits: int) -> int:
    """Layout dense2 (`kernels.packed`): 2 bits a weight, rows padded to 256 columns, a float32 scale a split."""
    return out_features * -(-in_features // _PACKED_BLOCK) * _PACKED_BYTES + 4 * splits


def fragment_bytes(out_features: int, columns: int) -> int:
    """Layouts fragment24 and fragment (`kernels.fragments`): 2 bits a column, padded to 64 rows and 128 columns, a float32 scale a row."""
    return -(-out_features // _FRAGMENT_ROWS) * -(-columns // _FRAGMENT_COLUMNS) * _FRAGMENT_BYTES + 4 * out_features


def narrow_bytes(out_features: int, in_features: int, splits: int) -> int:
    """Layout narrow24 (`kernels.fragments_narrow`): 1.5 bits a weight of 2:4, the same padding, a float32 scale a row."""
    return -(-out_features // _FRAGMENT_ROWS) * -(-in_features // _FRAGMENT_COLUMNS) * (3 * _FRAGMENT_BYTES // 4) + 4 * out_features


def _lifted(in_features: int, sparsity: Sparsity) -> int:
    return in_features * 2 * (sparsity.m - 2) // sparsity.m if sparsity.lifted else in_features


def fragments(sparsity: Sparsity) -> Format:
    """The fragment order of weights of this sparsity: 2:4 as they are, (L-2):L lifted onto it (6:8: 3 bits a weight)."""
    return Format(f"fragments, {sparsity}", lambda n, k, splits: fragment_bytes(n, _lifted(k, sparsity)), True, sparsity)


FORMATS: tuple[Format, ...] = (
    Format("bf16", lambda n, k, splits: 2 * n * k),
    Format("fp8", lambda n, k, splits: n * k + 4 * splits),
    Format("int4", lambda n, k, splits: n * -(-k // 2) + INT4_SCALE_BYTES * n * -(-k // INT4_GROUP)),
    Format("2 bits, any", packed_bytes, True),
    fragments(Sparsity(2, 4)),
    Format("narrow, 2:4", narrow_bytes, True, Sparsity(2, 4)),
    fragments(Sparsity(6, 8)),
)
"""bf16; fp8 with a float32 scale a split; int4; ours."""


def total(layout: Format, layers: Sequence[tuple[int, int, int]]) -> int:
    """Bytes of several weights (out_features, in_features, splits)."""
    return sum(layout.nbytes(*layer) for layer in layers)
