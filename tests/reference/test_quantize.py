"""Quantization against exact arithmetic on fractions and numpy's float32."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.quantize import quantize_activation, split_slices, ternary_quantize, ternary_scale

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def plain_scale(values: list[float]) -> np.float32:
    """float32 nearest to the exact mean of |values|, at least 1e-5."""
    mean = sum((abs(Fraction(value)) for value in values), Fraction(0)) / len(values)
    return max(np.float32(float(mean)), np.float32(1e-5))


def plain_round(value: np.float32) -> int:
    """Half to even, by Python's own round."""
    return round(Fraction(float(value)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("splits", [None, (5,), (3, 2), (1, 1, 3)])
def test_ternary_is_that_of_plain_loops(dtype: torch.dtype, splits: tuple[int, ...] | None) -> None:
    weight = (torch.randn(5, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 1, 5)[:, None]).to(dtype)
    ternary, w_scale = ternary_quantize(weight, splits)
    row = 0
    for index, size in enumerate(splits or (5,)):
        part = weight[row : row + size].double()
        scale = plain_scale(part.flatten().tolist())
        assert w_scale[index].item() == float(scale)
        inverse = np.float32(1) / scale
        for values, found in zip(part.tolist(), ternary[row : row + size].tolist(), strict=True):
            assert found == [min(1, max(-1, plain_round(np.float32(value) * inverse))) for value in values]
        row += size


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_activation_is_that_of_plain_loops(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor([values], dtype=torch.float64).to(dtype)
    q, x_scale = quantize_activation(x)
    row = [np.float32(value) for value in x[0].double().tolist()]
    absmax = max(*(abs(value) for value in row), np.float32(1e-5))
    inverse = np.float32(127) / absmax
    assert q[0].tolist() == [plain_round(value * inverse) for value in row]
    assert x_scale[0].item() == float(absmax / np.float32(127))


def test_rounding_is_half_to_even() -> None:
    q, x_scale = quantize_activation(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5]]))
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 64]]
    assert x_scale.tolist() == [1.0]
    ternary, w_scale = ternary_quantize(torch.tensor([[0.5, -0.5, 1.5, 1.5, -1.5, 0.5]]))
    assert w_scale.tolist() == [1.0]
    assert ternary.tolist() == [[0, 0, 1, 1, -1, 0]]


def test_small_zero_and_huge_rows() -> None:
    x = torch.zeros(4, 6)
    x[1] = 1e-7
    x[2, 3] = 1000.0
    x[3] = -3.4e38
    q, x_scale = quantize_activation(x)
    floor = np.float32(1e-5) / np.float32(127)
    assert q.tolist() == [[0] * 6, [1] * 6, [0, 0, 0, 127, 0, 0], [-127] * 6]
    assert x_scale[:2].tolist() == [float(floor)] * 2
    assert ternary_scale(torch.zeros(2, 4)).tolist() == [float(np.float32(1e-5))]
    assert not ternary_quantize(torch.zeros(2, 4))[0].any()


def test_masked_weights_count_in_the_scale_and_other_splits_do_not() -> None:
    weight = torch.tensor([[4.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert ternary_scale(weight, (1, 1)).tolist() == [1.0, 1.0]
    assert ternary_scale(weight).tolist() == [1.0]
    assert ternary_scale(weight * torch.tensor([[1.0], [3.0]]), (1, 1)).tolist() == [1.0, 3.0]


def test_inverse_scale_of_a_kernel_is_used_instead() -> None:
    weight = torch.tensor([[0.6, -0.6, 2.0, 0.1]])
    assert ternary_quantize(weight)[0].tolist() == [[1, -1, 1, 0]]
    assert ternary_quantize(weight, None, torch.tensor([0.5]))[0].tolist() == [[0, 0, 1, 0]]


def test_non_finite_values_give_nan_scales_and_zeros() -> None:
    x = torch.ones(3, 4)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    q, x_scale = quantize_activation(x)
    assert x_scale.isnan().tolist() == [True, True, False]
    assert q.tolist() == [[0] * 4, [0] * 4, [127] * 4]
    ternary, w_scale = ternary_quantize(x, (1, 1, 1))
    assert w_scale.isnan().tolist() == [True, True, False]
    assert ternary.tolist() == [[0] * 4, [0] * 4, [1] * 4]


def test_chunks_give_the_values_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randint(-9, 9, (20, 16), generator=torch.Generator().manual_seed(1)).float()
    whole = (*ternary_quantize(weight, (7, 13)), *quantize_activation(weight))
    monkeypatch.setattr("reference.sparsity.CHUNK_ELEMENTS", 48)
    parts = (*ternary_quantize(weight, (7, 13)), *quantize_activation(weight))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_no_tokens_and_strided_tokens() -> None:
    q, x_scale = quantize_activation(torch.zeros(0, 8))
    assert (q.shape, x_scale.shape) == ((0, 8), (0,))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2)).t()
    assert torch.equal(quantize_activation(x)[0], quantize_activation(x.contiguous())[0])


def test_splits_that_do_not_fit_are_errors() -> None:
    assert split_slices((2, 0, 3), 5) == [slice(0, 2), slice(2, 2), slice(2, 5)]
    for splits in ((2, 2), (6, -1), ()):
        with pytest.raises(ValueError, match="do not sum to out_features 5"):
            split_slices(splits, 5)
    with pytest.raises(ValueError, match="inv_scale has shape"):
        ternary_quantize(torch.ones(5, 4), (2, 3), torch.ones(1))
