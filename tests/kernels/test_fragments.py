"""The order of sparse fragments, against a plain emulation of the instruction, thread by thread."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import PackError, ShapeError, SparsityError
from kernels.fragments import block_shape, pack_dense_fragments, pack_fragments, unpack_dense_fragments, unpack_fragments
from reference.lifting import lift_activation, lift_weight, lifted_width
from reference.sparsity import nm_mask


def weight(rows: int, columns: int, n: int, m: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    master = torch.randn(rows, columns, generator=generator)
    ternary = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    return ternary * nm_mask(master, n, m)


def registers(word: int) -> list[list[int]]:
    """What the kernel unpacks: four registers of four signed bytes, each 64 times a weight."""
    unpacked = [(word << 2 * j) & 0xC0C0C0C0 for j in range(4)]
    return [[int.from_bytes(bytes([r >> 8 * b & 0xFF]), signed=True, byteorder="little") for b in range(4)] for r in unpacked]


def emulated(words: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """64 x 64 logical weights times x [64, tokens], as one warpgroup multiplies them: words [128, 2] of values and metadata."""
    kept: dict[tuple[int, int], int] = {}
    places: dict[tuple[int, int], int] = {}
    for t in range(128):
        w, g, q = t // 32, t % 32 // 4, t % 4
        value, meta = (int(words[t, i]) & 0xFFFFFFFF for i in range(2))
        for j, b in itertools.product(range(4), range(4)):
            kept[16 * w + g + 8 * (j & 1), 4 * q + b + 16 * (j >> 1)] = registers(value)[j][b]
        for index in range(16):
            places[16 * w + g + 8 * (q & 1), 16 * (q >> 1) + index] = meta >> 2 * index & 3
    out = torch.zeros(64, x.shape[1], dtype=torch.int64)
    for (row, index), value in kept.items():
        out[row] += value * x[4 * (index // 2) + places[row, index]]
    return out


def test_a_block_multiplies_as_the_instruction_does() -> None:
    w = weight(64, 128, 2, 4)
    x = torch.randint(-127, 128, (128, 3), dtype=torch.int64)
    packed = pack_fragments(w)[0, 0].view(128, 2, 2)
    found = sum(emulated(packed[:, step], x[64 * step : 64 * step + 64]) for step in range(2))
    assert torch.equal(torch.as_tensor(found), 64 * (w.long() @ x))


def test_all_six_patterns_of_a_group() -> None:
    patterns = list(itertools.combinations(range(4), 2))
    w = torch.zeros(64, 128, dtype=torch.int8)
    for row, group in itertools.product(range(64), range(32)):
        first, second = patterns[(row + group) % 6]
        w[row, 4 * group + first], w[row, 4 * group + second] = 1, -1
    nibbles = {int(word) >> 4 * i & 15 for word in pack_fragments(w)[0, 0, :, 1::2].flatten() for i in range(8)}
    assert nibbles == {first | second << 2 for first, second in patterns}
    assert torch.equal(unpack_fragments(pack_fragments(w), 64, 128), w)


def test_positions_are_legal_where_a_group_is_empty() -> None:
    packed = pack_fragments(torch.zeros(3, 4, dtype=torch.int8))
    assert packed.shape == (1, 1, 128, 4)
    assert set(packed[..., 0::2].flatten().tolist()) == {0}
    assert set(packed[..., 1::2].flatten().tolist()) == {0x44444444}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 80), st.integers(0, 99))
def test_packing_loses_nothing(rows: int, groups: int, seed: int) -> None:
    w = weight(rows, 4 * groups, 2, 4, seed)
    packed = pack_fragments(w)
    assert packed.shape == block_shape(rows, 4 * groups)
    assert torch.equal(unpack_fragments(packed, rows, 4 * groups), w)


@pytest.mark.parametrize(("n", "m"), [(4, 6), (6, 8), (8, 10)])
def test_lifted_weights_multiply_lifted_activations(n: int, m: int) -> None:
    columns = 24 * m
    w = weight(70, columns, n, m)
    lifted = lift_weight(w, n, m)
    width = lifted_width(columns, m)
    unpacked = unpack_fragments(pack_fragments(lifted), 70, width)
    x = torch.randint(-127, 128, (5, columns), dtype=torch.int8)
    assert torch.equal(lift_activation(x, m).long() @ unpacked.long().t(), x.long() @ w.long().t())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 300), st.integers(0, 99))
def test_dense_packing_loses_nothing(rows: int, columns: int, seed: int) -> None:
    w = torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack_dense_fragments(w)
    assert packed.shape == block_shape(rows, columns)
    assert torch.equal(unpack_dense_fragments(packed, rows, columns), w)


def test_two_bits_a_weight() -> None:
    packed = pack_fragments(weight(128, 256, 2, 4))
    assert packed.numel() * 32 == 2 * 128 * 256


def test_fuller_groups_are_refused() -> None:
    w = torch.zeros(8, 8, dtype=torch.int8)
    w[5, 4:7] = 1
    with pytest.raises(SparsityError, match="more than 2"):
        pack_fragments(w)


@pytest.mark.parametrize("bad", [torch.zeros(8, 6, dtype=torch.int8), torch.zeros(8, 8), torch.full((8, 8), 2, dtype=torch.int8)])
def test_other_weights_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ShapeError):
        pack_fragments(bad)


def test_damage_is_noticed() -> None:
    packed = pack_fragments(weight(64, 128, 2, 4))
    for word, damage in ((0, 0b10), (1, 0)):
        broken = packed.clone()
        broken[0, 0, 9, word] = damage
        with pytest.raises(PackError, match="damaged"):
            unpack_fragments(broken, 64, 128)
    with pytest.raises(PackError, match="damaged"):
        unpack_dense_fragments(torch.full_like(packed, 0b10), 64, 128)
    for unpack in (unpack_fragments, unpack_dense_fragments):
        with pytest.raises(ShapeError):
            unpack(packed, 64, 256)
