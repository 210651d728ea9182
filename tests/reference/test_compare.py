"""The comparison must catch one wrong element, wherever and however little it is wrong."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.compare import EXACT, Mismatch, Tolerance, combine, compare, ulp

FLOATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}
NAN, INF = float("nan"), float("inf")


@settings(max_examples=200, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False), dtype=st.sampled_from(list(FLOATS)))
def test_ulp_is_that_of_the_definition(value: float, dtype: torch.dtype) -> None:
    fraction, lowest = FLOATS[dtype]
    exponent = max(lowest, math.frexp(value)[1] - 1) if value else lowest
    assert Fraction(ulp(torch.tensor([value], dtype=torch.float64), dtype).item()) == Fraction(2) ** (exponent - fraction)


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_is_the_distance_to_the_next_value(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    values = torch.tensor([1.0, 2.0, 1.5, 3.0, 1024.0, info.tiny, info.smallest_normal * 2, 0.0, info.tiny / 4], dtype=dtype)
    distance = torch.nextafter(values, torch.full_like(values, INF)).double() - values.double()
    assert torch.equal(ulp(values.double(), dtype), distance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [1.0, 2.0, -1.0, 1.999, 1e-5, 0.0])
def test_one_ulp_passes_and_two_do_not(dtype: torch.dtype, value: float) -> None:
    exact = torch.tensor([value], dtype=dtype)
    one = torch.nextafter(exact, torch.full_like(exact, INF if value >= 0 else -INF))
    two = torch.nextafter(one, torch.full_like(exact, INF if value >= 0 else -INF))
    assert compare(exact, exact.double()) is None
    assert compare(one, exact.double(), Tolerance(1)) is None
    assert compare(one, exact.double()) is not None
    assert compare(two, exact.double(), Tolerance(1)) is not None


def test_one_wrong_element_is_found_and_named() -> None:
    expected = torch.randn(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    actual = expected.bfloat16()
    assert compare(actual, expected, Tolerance(0.5)) is None
    actual[5, 2] *= 1.5
    mismatch = compare(actual, expected, Tolerance(1))
    assert mismatch is not None
    assert (mismatch.count, mismatch.total, mismatch.index) == (1, 63, (5, 2))
    assert (mismatch.actual, mismatch.expected) == (actual[5, 2].item(), expected[5, 2].item())
    assert str(mismatch).startswith("1 of 63 wrong, worst at (5, 2): ")
    assert "\n" not in str(mismatch)


def test_the_worst_is_named_and_nan_is_worse_than_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference.sparsity.CHUNK_ELEMENTS", 6)
    expected = torch.ones(8, 3, dtype=torch.float64)
    actual = expected.float()
    actual[0, 0], actual[7, 2] = 1.1, 2.0
    mismatch = compare(actual, expected, Tolerance(1))
    assert mismatch is not None
    assert (mismatch.count, mismatch.index) == (2, (7, 2))
    actual[3, 1] = NAN
    mismatch = compare(actual, expected, Tolerance(1))
    assert mismatch is not None
    assert (mismatch.count, mismatch.index) == (3, (3, 1))
    assert math.isnan(mismatch.actual)


@pytest.mark.parametrize(("actual", "expected", "right"), [
    (NAN, 1.0, False), (1.0, NAN, False), (NAN, NAN, True), (INF, 1.0, False), (INF, INF, True), (-INF, INF, False), (1.0, INF, False),
    (INF, 65520.0, True), (INF, 65500.0, False), (-INF, 65520.0, False), (INF, 1e9, True), (65504.0, 65519.0, True), (-0.0, 0.0, True),
])  # fmt: skip
def test_values_that_are_not_finite(actual: float, expected: float, right: bool) -> None:
    found = compare(torch.tensor([actual], dtype=torch.float16), torch.tensor([expected], dtype=torch.float64), Tolerance(0.5))
    assert (found is None) is right


def test_no_tolerance_excuses_nan_or_infinity() -> None:
    for value in (NAN, INF):
        assert compare(torch.tensor([value]), torch.zeros(1).double(), Tolerance(4, INF)) is not None
    assert compare(torch.tensor([2.0]), torch.ones(1).double(), Tolerance(1, NAN)) is not None


def test_absolute_tolerance_is_per_element_or_for_all() -> None:
    expected, actual = torch.zeros(2, 2).double(), torch.tensor([[0.0, 0.25], [0.5, 0.0]])
    assert compare(actual, expected, Tolerance(0, 0.5)) is None
    mismatch = compare(actual, expected, Tolerance(0, torch.tensor([[0.5], [0.25]])))
    assert mismatch is not None
    assert mismatch.index == (1, 0)
    assert mismatch.excess == 2.0


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool])
def test_integers_are_exact_whatever_the_tolerance(dtype: torch.dtype) -> None:
    expected = torch.tensor([0, 1, 1, 0])
    assert compare(expected.to(dtype), expected, Tolerance(9, 9)) is None
    mismatch = compare(torch.tensor([0, 1, 0, 0]).to(dtype), expected, Tolerance(9, 9))
    assert mismatch is not None
    assert mismatch.index == (2,)
    large = torch.tensor([2**62])
    assert compare(large + 1, large) is not None


def test_shapes_and_sizes() -> None:
    assert "shape (2, 3) instead of (3, 2)" in str(compare(torch.zeros(2, 3), torch.zeros(3, 2)))
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)) is None
    scalar = compare(torch.tensor(1.0), torch.tensor(2.0).double())
    expected = torch.zeros(2, 3, 4).double()
    expected[1, 2, 3] = 1
    cube = compare(torch.zeros(2, 3, 4), expected)
    assert scalar is not None
    assert scalar.index == ()
    assert compare(torch.zeros(4, 3).t(), torch.zeros(3, 4).double(), EXACT) is None
    assert cube is not None
    assert cube.index == (1, 2, 3)


def test_combined_mismatches_add_up() -> None:
    small, large = Mismatch(2, 10, (0, 1), 1.0, 2.0, 3.0, "y"), Mismatch(1, 10, (4, 1), 1.0, 9.0, 8.0, "y")
    found = combine([None, small, large], 20)
    assert str(found) == "y: 3 of 20 wrong, worst at (4, 1): 1 instead of 9"
    assert combine([None, None], 20) is None
