"""Lifting: nothing lost, 2:4 everywhere, the product unchanged, and an error where weights would be dropped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.lifting import lift_activation, lift_weight, lifted_columns, lifted_width, unlift_weight
from reference.linear import accumulate
from reference.sparsity import nm_mask

SIZES = (4, 6, 8, 10, 16)


@settings(max_examples=100, deadline=None)
@given(m=st.sampled_from(SIZES), groups=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_lifting_loses_nothing(m: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = groups * m
    dense = torch.randint(0, 2, (5, width), generator=generator, dtype=torch.int8) * 2 - 1
    w = dense * nm_mask(torch.randn(5, width, generator=generator), m - 2, m)
    x = torch.randint(-127, 128, (3, width), generator=generator, dtype=torch.int8)
    lifted = lift_weight(w, m - 2, m)
    assert lifted.shape == (5, lifted_width(width, m))
    assert ((lifted != 0).view(5, -1, 4).sum(dim=2) <= 2).all()
    assert torch.equal(unlift_weight(lifted, m - 2, m, width), w)
    assert torch.equal(accumulate(lift_activation(x, m), lifted), accumulate(x, w))


def test_every_placement_of_a_group_of_eight_fits() -> None:
    masks = torch.tensor([[byte >> i & 1 for i in range(8)] for byte in range(256)], dtype=torch.int8)
    allowed = masks[masks.sum(dim=1) <= 6]
    assert torch.equal(unlift_weight(lift_weight(allowed, 6, 8), 6, 8, 8), allowed)
    for row in masks[masks.sum(dim=1) > 6]:
        with pytest.raises(ValueError, match="6:8 allows 6"):
            lift_weight(row[None], 6, 8)


def test_the_order_of_columns() -> None:
    assert lifted_columns(16, 8).tolist() == [*range(16), 2, 3, 4, 5, 10, 11, 12, 13]
    assert lifted_columns(6, 6).tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    assert lifted_columns(10, 10).tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9]
    assert lifted_columns(8, 4).tolist() == list(range(8))
    assert [lifted_width(m, m) for m in SIZES] == [4, 8, 12, 16, 28]


def test_a_group_that_is_too_full_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.zeros(9, 24, dtype=torch.int8)
    w[7, 8:15] = 1
    monkeypatch.setattr("reference.sparsity.CHUNK_ELEMENTS", 48)
    with pytest.raises(ValueError, match="row 7, group 1 has 7 non-zeros; 6:8 allows 6"):
        lift_weight(w, 6, 8)


def test_what_cannot_be_lifted_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"only \(m-2\):m"):
        lift_weight(torch.zeros(1, 8, dtype=torch.int8), 4, 8)
    with pytest.raises(ValueError, match="not a multiple of the group of 8"):
        lifted_width(12, 8)
    with pytest.raises(ValueError, match="even size"):
        lift_activation(torch.zeros(1, 10), 5)
    with pytest.raises(ValueError, match="are not 16 columns lifted from 6:8"):
        unlift_weight(torch.zeros(1, 12, dtype=torch.int8), 6, 8, 16)
