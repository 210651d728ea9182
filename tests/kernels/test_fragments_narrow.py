"""1.5 bits a weight: every ternary group under every flag, and the layout as a warp takes it, lane by lane."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import PackError, ShapeError, SparsityError
from kernels.fragments_narrow import CARRIED, narrow_shape, pack_narrow_fragments, sign_bit, unpack_narrow_fragments
from reference.sparsity import nm_mask

GROUPS = torch.tensor([g for g in itertools.product((-1, 0, 1), repeat=4) if sum(v != 0 for v in g) <= 2], dtype=torch.int8)


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    master = torch.randn(rows, columns, generator=generator)
    return torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8) * nm_mask(master, 2, 4)


def dense_tile(words: torch.Tensor) -> torch.Tensor:
    """16 rows × 128 columns of the words [3, 32] of a warp's lanes, by the rules that the layout's docstring states."""
    out = torch.zeros(16, 128, dtype=torch.int64)
    meta, signs = [[int(word) & 0xFFFFFFFF for word in row] for row in words[:2]], [int(word) & 0xFFFFFFFF for word in words[2]]
    for lane, product in itertools.product(range(32), range(2)):
        g, q = lane // 4, lane % 4
        flags = {}
        for k, place in enumerate(CARRIED[product]):
            i, j = meta[product][lane] >> 4 * k & 3, meta[product][lane] >> 4 * k + 2 & 3
            flags[place] = i > j or (i == j and i in (0, 2))
        for register, half in itertools.product(range(4), range(2)):
            group = 2 * q + half
            nibble = meta[product][4 * g + register] >> 4 * group & 15
            for slot, position in enumerate((nibble & 3, nibble >> 2)):
                value = 1 - 2 * (signs[lane] >> sign_bit(product, register, 2 * half + slot) & 1)
                column = 64 * product + 32 * (register >> 1) + 4 * group + position
                out[g + 8 * (register & 1), column] += 0 if slot and flags[register, half] else value
    return out


def test_there_are_33_groups_and_48_codes_for_them() -> None:
    assert len(GROUPS) == 33
    assert all(sorted(carried) == [(register, half) for register in range(4) for half in range(2)] for carried in CARRIED)
    bits = [sign_bit(*value) for value in itertools.product(range(2), range(4), range(4))]
    assert sorted(bits) == list(range(32))


@pytest.mark.parametrize("seed", range(3))
def test_every_group_beside_every_other_means_the_same_to_a_warp(seed: int) -> None:
    """33 groups at random in 64 × 128: 2048 places, flags of either kind for each."""
    picked = torch.randint(33, (64, 32), generator=torch.Generator().manual_seed(seed))
    w = GROUPS[picked].view(64, 128)
    packed = pack_narrow_fragments(w)
    assert packed.shape == (1, 1, 3, 32, 4)
    assert torch.equal(torch.cat([dense_tile(packed[0, 0, :, :, tile]) for tile in range(4)]), w.long())


@pytest.mark.parametrize("alone", range(33))
def test_a_weight_of_one_group_everywhere(alone: int) -> None:
    w = GROUPS[alone].repeat(70, 40)
    packed = pack_narrow_fragments(w)
    assert torch.equal(unpack_narrow_fragments(packed, 70, 160), w)
    assert torch.equal(dense_tile(packed[0, 0, :, :, 3]), w[48:64, :128].long())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 80), st.integers(0, 99))
def test_packing_loses_nothing(rows: int, groups: int, seed: int) -> None:
    w = weight(rows, 4 * groups, seed)
    packed = pack_narrow_fragments(w)
    assert packed.shape == narrow_shape(rows, 4 * groups)
    assert torch.equal(unpack_narrow_fragments(packed, rows, 4 * groups), w)


def test_one_and_a_half_bits_a_weight() -> None:
    assert pack_narrow_fragments(weight(128, 256)).numel() * 32 == 3 * 128 * 256 // 2


def test_other_weights_are_refused() -> None:
    w = torch.zeros(8, 8, dtype=torch.int8)
    w[5, 4:7] = 1
    with pytest.raises(SparsityError, match="more than 2"):
        pack_narrow_fragments(w)
    for bad in (torch.zeros(8, 6, dtype=torch.int8), torch.zeros(8, 8), torch.full((8, 8), 2, dtype=torch.int8)):
        with pytest.raises(ShapeError):
            pack_narrow_fragments(bad)


def test_damage_and_other_sizes_are_noticed() -> None:
    packed = pack_narrow_fragments(weight(64, 128))
    with pytest.raises(PackError, match="damaged"):
        unpack_narrow_fragments(torch.full_like(packed, 0x55555555), 64, 128)
    for rows, columns in ((65, 128), (64, 132)):
        with pytest.raises(ShapeError, match="is needed"):
            unpack_narrow_fragments(packed, rows, columns)
    with pytest.raises(ShapeError, match="is needed"):
        unpack_narrow_fragments(packed.long(), 64, 128)
