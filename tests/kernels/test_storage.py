from __future__ import annotations

import math

import pytest

from kernels.fragments import block_shape
from kernels.fragments_narrow import narrow_shape
from kernels.packed import packed_width
from kernels.problem import Sparsity
from kernels.storage import FORMATS, fragment_bytes, narrow_bytes, packed_bytes, total
from reference.lifting import lifted_width

SHAPES = ((13824, 2560), (1152, 896), (130, 320), (896, 4864), (1, 8))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_our_layouts_are_as_large_as_what_packs_them(rows: int, width: int) -> None:
    assert packed_bytes(rows, width, 3) == rows * packed_width(width) + 12
    assert fragment_bytes(rows, width) == 4 * math.prod(block_shape(rows, width)) + 4 * rows
    assert narrow_bytes(rows, width, 3) == 4 * math.prod(narrow_shape(rows, width)) + 4 * rows


def test_bits_of_a_large_weight() -> None:
    count = 57344 * 8192
    bits = {layout.name: round(8 * layout.nbytes(57344, 8192, 2) / count, 2) for layout in FORMATS}
    assert bits == {"bf16": 16, "fp8": 8, "int4": 4.12, "2 bits, any": 2, "fragments, 2:4": 2, "narrow, 2:4": 1.5, "fragments, 6:8": 3}


def test_lifted_weights_have_their_lifted_width() -> None:
    lifted = next(layout for layout in FORMATS if layout.sparsity == Sparsity(6, 8))
    assert lifted.nbytes(256, 2048, 1) == fragment_bytes(256, lifted_width(2048, 8))


def test_a_model_is_the_sum_of_its_layers() -> None:
    bf16 = FORMATS[0]
    assert total(bf16, [(3, 5, 1), (7, 11, 2)]) == 2 * (15 + 77)
