"""Masks against plain Python loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.sparsity import chunk_rows, nm_mask, transposable_mask, transposable_patterns

SIZES = (4, 6, 8, 10, 16)


def plain_mask(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for row, values in enumerate(weight.double().abs().tolist()):
        for start in range(0, len(values), m):
            order = sorted(range(start, start + m), key=lambda column: (-values[column], column))
            mask[row, order[:n]] = True
    return mask


@settings(max_examples=120, deadline=None)
@given(data=st.data(), m=st.sampled_from(SIZES))
def test_mask_is_that_of_a_sort_with_ties_to_the_lower_index(data: st.DataObject, m: int) -> None:
    n = data.draw(st.integers(1, m))
    values = data.draw(st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0]), min_size=6 * m, max_size=6 * m))
    weight = torch.tensor(values).view(2, 3 * m).to(data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32])))
    mask = nm_mask(weight, n, m)
    assert torch.equal(mask, plain_mask(weight, n, m))
    assert (mask.view(2, 3, m).sum(dim=2) == n).all()


def test_equal_weights_keep_the_first_of_each_group() -> None:
    assert nm_mask(torch.full((1, 8), -3.0), 2, 4).tolist() == [[True, True, False, False] * 2]
    assert nm_mask(torch.zeros(1, 6), 4, 6).tolist() == [[True] * 4 + [False] * 2]


def test_mask_of_strided_weights_and_of_none() -> None:
    weight = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nm_mask(weight.t(), 6, 8), nm_mask(weight.t().contiguous(), 6, 8))
    assert nm_mask(torch.zeros(0, 8), 2, 4).shape == (0, 8)
    assert nm_mask(torch.zeros(3, 7), 1, 1).all()


def test_chunks_give_the_mask_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    whole = nm_mask(weight, 2, 4), transposable_mask(weight)
    monkeypatch.setattr("reference.sparsity.CHUNK_ELEMENTS", 100)
    assert len(chunk_rows(20, 16)) == 4
    assert torch.equal(nm_mask(weight, 2, 4), whole[0])
    assert torch.equal(transposable_mask(weight), whole[1])


@given(rows=st.integers(0, 50), columns=st.integers(0, 40), multiple=st.sampled_from([1, 4]))
def test_chunks_cover_all_rows_once(rows: int, columns: int, multiple: int) -> None:
    slices = chunk_rows(rows, columns << 20, multiple)
    assert [row for part in slices for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.start % multiple == 0 for part in slices)


@pytest.mark.parametrize(("n", "m"), [(2, 5), (0, 4), (5, 4), (1, 2)])
def test_unknown_sparsity_is_an_error(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="unknown sparsity"):
        nm_mask(torch.zeros(1, 40), n, m)


def test_sizes_that_do_not_divide_are_errors() -> None:
    with pytest.raises(ValueError, match="in_features 12 is not a multiple"):
        nm_mask(torch.zeros(2, 12), 6, 8)
    with pytest.raises(ValueError, match="multiples of 4, not 6x8"):
        transposable_mask(torch.zeros(6, 8))


def plain_patterns() -> list[tuple[int, ...]]:
    """All 16-bit patterns with two per row and column, as sorted lists of kept positions, in lexicographic order."""
    found = []
    for kept in itertools.combinations(range(16), 8):
        rows = [sum(position // 4 == line for position in kept) for line in range(4)]
        columns = [sum(position % 4 == line for position in kept) for line in range(4)]
        if rows == columns == [2, 2, 2, 2]:
            found.append(kept)
    return sorted(found)


def test_there_are_90_transposable_patterns_in_lexicographic_order() -> None:
    assert transposable_patterns() == plain_patterns()
    assert len(transposable_patterns()) == 90


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_transposable_mask_is_the_best_of_all_patterns(kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(12, 8, generator=generator) if kind == "random" else torch.randint(-1, 2, (12, 8), generator=generator).float()
    mask = transposable_mask(weight)
    for row, column in itertools.product(range(0, 12, 4), range(0, 8, 4)):
        block = weight[row : row + 4, column : column + 4].abs().flatten()
        best, most = (), -1.0
        for pattern in plain_patterns():
            total = torch.zeros(())
            for position in pattern:
                total = total + block[position]
            if float(total) > most:
                best, most = pattern, float(total)
        assert tuple(mask[row : row + 4, column : column + 4].flatten().nonzero()[:, 0].tolist()) == best


def test_transposable_mask_is_2_4_both_ways() -> None:
    mask = transposable_mask(torch.randn(16, 24, generator=torch.Generator().manual_seed(3)).bfloat16())
    assert (mask.view(16, 6, 4).sum(dim=2) == 2).all()
    assert (mask.t().reshape(24, 4, 4).sum(dim=2) == 2).all()
