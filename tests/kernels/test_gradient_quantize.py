"""dY to int8 along both of its dimensions, and int8 transposes: against the reference's rounding, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.sparse_backward.gradient_quantize import (
    GradientBuffers,
    allocate_gradient,
    allocate_transposed,
    compile_units,
    launch_quantize_both,
    launch_row_scale,
    launch_transpose,
)
from reference.quantize import quantize_activation


def _gradient(tokens: int, columns: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(tokens + columns)
    dy = torch.randn(tokens, columns, generator=generator, device=device).bfloat16()
    return dy, *(torch.rand(size, generator=generator, device=device) + 0.5 for size in (columns, tokens))


def _quantized(
    dy: torch.Tensor, row_scale: torch.Tensor, x_scale: torch.Tensor, seed: int | None = None, buffers: GradientBuffers | None = None
) -> GradientBuffers:
    made = buffers or allocate_gradient(*dy.shape, dy.device)
    made.by_token.fill_(-128)
    made.by_feature.fill_(-128)
    launch_quantize_both(dy, row_scale, x_scale, made, seed)
    return made


def _check_nearest(tokens: int, columns: int, device: str) -> None:
    dy, row_scale, x_scale = _gradient(tokens, columns, device)
    made = _quantized(dy, row_scale, x_scale)
    for _ in range(2):
        for product, codes, scale in ((dy.float() * row_scale, made.by_token, made.token_scale),
                                      ((dy.float() * x_scale[:, None]).t().contiguous(), made.by_feature, made.feature_scale)):
            expected_codes, expected_scale = quantize_activation(product)
            assert torch.equal(codes, expected_codes)
            assert torch.equal(scale, expected_scale)
        padded = made.by_feature.as_strided((columns, made.by_feature.stride(0)), (made.by_feature.stride(0), 1))
        assert not padded[:, tokens:].any(), "zeros lie behind the last token"
        assert not made.tops.any(), "the next launch finds zeros"
        dy = dy / 2
        made = _quantized(dy, row_scale, x_scale, buffers=made)  # smaller maxima: nothing of the first launch is left


def _check_stochastic(tokens: int, columns: int, device: str) -> None:
    """Each code is one of the two beside the value; equal seeds, equal bits; the mean over seeds comes near the value."""
    dy, row_scale, x_scale = _gradient(tokens, columns, device)
    runs = [_quantized(dy, row_scale, x_scale, seed) for seed in range(16)]
    exact = ((dy.float() * row_scale).double() / runs[0].token_scale.double()[:, None],
             (dy.float() * x_scale[:, None]).t().double() / runs[0].feature_scale.double()[:, None])
    for index, value in enumerate(exact):
        codes = [(made.by_token, made.by_feature)[index] for made in runs]
        assert all(((code - value).abs() <= 1 + 1e-4).all() for code in codes)
        again = _quantized(dy, row_scale, x_scale, 3)
        assert torch.equal((again.by_token, again.by_feature)[index], codes[3])
        # A feature of one token is its own absmax: 127 or -127, which no rounding changes.
        assert (index == 1 and tokens == 1) or not torch.equal(codes[0], codes[1])
        error = torch.stack(codes).double().mean(0) - value
        assert error.mean().abs() < 6 * 0.5 / (16 * dy.numel()) ** 0.5


def _check_transpose(rows: int, columns: int, device: str) -> None:
    wide = -(-columns // 4) * 4 + 4
    source = torch.randint(-128, 128, (rows, wide), dtype=torch.int8, device=device)[:, :columns]
    target = allocate_transposed(rows, columns, device)
    launch_transpose(source, target)
    assert torch.equal(target, source.t())
    if rows:
        assert not target.as_strided((columns, target.stride(0)), (target.stride(0), 1))[:, rows:].any(), "zeros lie behind the last row"


@pytest.mark.interpreter
@pytest.mark.parametrize(("tokens", "columns"), [(1, 4), (7, 13), (130, 260), (66, 300)])
def test_interpreted_nearest(tokens: int, columns: int) -> None:
    _check_nearest(tokens, columns, "cpu")


@pytest.mark.interpreter
def test_interpreted_stochastic() -> None:
    _check_stochastic(9, 70, "cpu")


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 13), (130, 132), (4, 0), (0, 4)])
def test_interpreted_transpose(rows: int, columns: int) -> None:
    _check_transpose(rows, columns, "cpu")


@pytest.mark.interpreter
def test_scales_of_rows() -> None:
    out = torch.zeros(16)
    launch_row_scale(torch.tensor([64.0, 128.0, 640.0]), torch.tensor([0, 3, 3, 10]), out, 10)
    assert out.tolist() == [1.0] * 3 + [10.0] * 7 + [0.0] * 6


@pytest.mark.interpreter
def test_interpreted_non_finite_and_zeros() -> None:
    dy, row_scale, x_scale = _gradient(6, 64)
    dy[1, 5] = float("inf")
    dy[2] = 0
    dy[:, 7] = 0
    x_scale[4] = float("nan")
    made = _quantized(dy, row_scale, x_scale)
    assert torch.isnan(made.token_scale).tolist() == [row == 1 for row in range(6)]
    assert torch.isnan(made.feature_scale).all(), "a token without a scale is in every sum over tokens"
    assert not made.by_token[2].any()
    x_scale[4] = 1.0
    made = _quantized(dy, row_scale, x_scale)
    assert torch.isnan(made.feature_scale).tolist() == [column == 5 for column in range(64)]
    assert not made.by_feature[7].any()


@pytest.mark.interpreter
def test_what_does_not_fit_is_refused() -> None:
    dy, row_scale, x_scale = _gradient(6, 64)
    with pytest.raises(ShapeError, match="row_scale"):
        _quantized(dy, row_scale[:63], x_scale)
    with pytest.raises(ShapeError, match="x_scale"):
        _quantized(dy, row_scale, x_scale.double())
    with pytest.raises(ShapeError, match="buffers are for"):
        launch_quantize_both(dy[:5], row_scale, x_scale, allocate_gradient(6, 64, "cpu"))
    with pytest.raises(ShapeError, match="transpose"):
        launch_transpose(torch.zeros((4, 8), dtype=torch.int8), torch.zeros((4, 8), dtype=torch.int8))
    with pytest.raises(ShapeError, match="whole words"):
        launch_transpose(torch.zeros((4, 7), dtype=torch.int8), torch.zeros((7, 4), dtype=torch.int8))


@pytest.mark.compile
@pytest.mark.parametrize("stochastic", [False, True])
def test_wide_accesses_without_spills(stochastic: bool) -> None:
    for unit in compile_units("bf16", True, stochastic):
        found = compile_unit(unit, by_name("h200"))
        assert isinstance(found, Compiled), found
        assert found.spills == 0
        if unit.function.__name__ != "gradient_maxima_kernel":
            assert found.instructions["STG"] <= 8, "16 bytes a store"


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "columns"), [(1, 896), (63, 1152), (1000, 4610), (7, 22016), (4096, 2048)])
def test_on_a_gpu(tokens: int, columns: int) -> None:
    _check_nearest(tokens, columns, "cuda")
    _check_stochastic(tokens, columns, "cuda")
    _check_transpose(tokens, columns, "cuda")
