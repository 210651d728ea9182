"""dY to int8 along both of its dimensions, and int8 transposes: against the reference's rounding, in the interpreter and on a GPU."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.sparse_backward import gradient_quantize
from kernels.sparse_backward.gradient_quantize import GradientBuffers, SplitScales, allocate_gradient, compile_units, launch_gradient
from reference.quantize import quantize_activation


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of few rows, since the interpreter adds up rows that are not there too."""
    monkeypatch.setattr(gradient_quantize, "RUNS", 2)
    monkeypatch.setattr(gradient_quantize, "PROGRAMS", 4)
    monkeypatch.setattr(gradient_quantize, "MANY", 1024)


def _gradient(tokens: int, columns: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """dY and the scales of its tokens' activations."""
    generator = torch.Generator(device).manual_seed(tokens + columns)
    dy = torch.randn(tokens, columns, generator=generator, device=device).bfloat16()
    return dy, torch.rand(tokens, generator=generator, device=device) + 0.5


def _scales(splits: tuple[int, ...], device: str = "cpu") -> SplitScales:
    bounds = torch.tensor([0, *accumulate(splits)], device=device)
    return SplitScales(torch.rand(len(splits), generator=torch.Generator().manual_seed(len(splits))).to(device) + 0.5, bounds, splits)


def _row_scale(weight: SplitScales) -> torch.Tensor:
    """w_scale / 64 of every out_feature."""
    return weight.w_scale.repeat_interleave(weight.bounds.diff()) / 64


def _activations(tokens: int, columns: int, device: str = "cpu") -> torch.Tensor:
    """Rows that start at multiples of four bytes, and go on behind the last column."""
    wide = -(-columns // 4) * 4 + 4
    return torch.randint(-128, 128, (tokens, wide), dtype=torch.int8, device=device)[:, :columns]


def _quantized(
    dy: torch.Tensor, x_scale: torch.Tensor, weight: SplitScales | None, seed: int | None = None, buffers: GradientBuffers | None = None
) -> GradientBuffers:
    x_q = _activations(dy.shape[0], 12, str(dy.device))
    made = buffers or allocate_gradient(*dy.shape, 12, dy.device, both=weight is not None)
    for codes in (made.by_token, made.by_feature, made.x_t):
        if codes is not None:
            codes.fill_(-128)
    made.tops.fill_(0x7FFFFFFF)  # what is there before does not matter
    launch_gradient(dy, x_q, x_scale, made, weight, seed)
    assert torch.equal(made.x_t, x_q.t())
    return made


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """What lies behind the columns of these rows."""
    return rows.as_strided((rows.shape[0], rows.stride(0)), (rows.stride(0), 1))[:, rows.shape[1] :]


def _check_nearest(tokens: int, columns: int, splits: tuple[int, ...], device: str) -> None:
    (dy, x_scale), weight = _gradient(tokens, columns, device), _scales(splits or (columns,), device)
    made = None
    for _ in range(2):
        made = _quantized(dy, x_scale, weight, buffers=made)
        for product, codes, scale in ((dy.float() * _row_scale(weight), made.by_token, made.token_scale),
                                      ((dy.float() * x_scale[:, None]).t().contiguous(), made.by_feature, made.feature_scale)):
            expected_codes, expected_scale = _by_row(product)
            assert codes is not None
            assert torch.equal(codes, expected_codes)
            assert torch.equal(scale, expected_scale)
        assert not _padded(made.by_feature).any(), "zeros lie behind the last token"
        alone = _quantized(dy, x_scale, None)
        assert alone.by_token is None
        assert torch.equal(alone.by_feature, made.by_feature)
        assert torch.equal(alone.feature_scale, made.feature_scale)
        dy = dy / 2  # smaller maxima: nothing of the first launch is left


def _by_row(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's codes of rows whose absmax may be below its floor: of a row times a power of two, which changes no code."""
    codes, scale = quantize_activation(product * 1024)
    return codes, scale / 1024


def _check_stochastic(tokens: int, columns: int, device: str) -> None:
    """Each code is one of the two beside the value; equal seeds, equal bits; the mean over seeds comes near the value."""
    (dy, x_scale), weight = _gradient(tokens, columns, device), _scales((columns,), device)
    runs = [_quantized(dy, x_scale, weight, seed) for seed in range(16)]
    exact = ((dy.float() * _row_scale(weight)).double() / runs[0].token_scale.double()[:, None],
             (dy.float() * x_scale[:, None]).t().double() / runs[0].feature_scale.double()[:, None])
    for index, value in enumerate(exact):
        codes = [_codes(made, index) for made in runs]
        assert all(((code - value).abs() <= 1 + 1e-4).all() for code in codes)
        again = _quantized(dy, x_scale, weight, 3)
        assert torch.equal(_codes(again, index), codes[3])
        # A feature of one token is its own absmax: 127 or -127, which no rounding changes.
        assert (index == 1 and tokens == 1) or not torch.equal(codes[0], codes[1])
        error = torch.stack(codes).double().mean(0) - value
        assert error.mean().abs() < 6 * 0.5 / (16 * dy.numel()) ** 0.5


def _codes(made: GradientBuffers, index: int) -> torch.Tensor:
    assert made.by_token is not None
    return (made.by_token, made.by_feature)[index]


def _check_transpose(tokens: int, columns: int, device: str) -> None:
    dy, x_scale = _gradient(tokens, 8, device)
    made, x_q = allocate_gradient(tokens, 8, columns, device, both=False), _activations(tokens, columns, device)
    launch_gradient(dy, x_q, x_scale, made, None)
    assert torch.equal(made.x_t, x_q.t())
    assert not _padded(made.x_t).any(), "zeros lie behind the last token"


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("tokens", "columns", "splits"), [
    (1, 4, ()), (7, 13, (5, 8)), (33, 260, (8, 252)), (18, 300, (2, 298)), (5, 1030, ()),
])  # fmt: skip
def test_interpreted_nearest(tokens: int, columns: int, splits: tuple[int, ...]) -> None:
    _check_nearest(tokens, columns, splits, "cpu")


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
def test_interpreted_stochastic() -> None:
    _check_stochastic(5, 70, "cpu")


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("tokens", "columns"), [(1, 1), (7, 13), (130, 132)])
def test_interpreted_transpose(tokens: int, columns: int) -> None:
    _check_transpose(tokens, columns, "cpu")


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
def test_interpreted_non_finite_and_zeros() -> None:
    (dy, x_scale), weight = _gradient(6, 64), _scales((64,))
    dy[1, 5] = float("inf")
    dy[2] = 0
    dy[3, 6] = float("nan")
    dy[:, 7] = 0
    x_scale[4] = float("nan")
    made = _quantized(dy, x_scale, weight)
    assert torch.isnan(made.token_scale).tolist() == [row in (1, 3) for row in range(6)]
    assert torch.isnan(made.feature_scale).all(), "a token without a scale is in every sum over tokens"
    assert not _codes(made, 0)[2].any()
    x_scale[4] = 1.0
    made = _quantized(dy, x_scale, weight)
    assert torch.isnan(made.feature_scale).tolist() == [column in (5, 6) for column in range(64)]
    assert not made.by_feature[7].any()


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
def test_a_split_without_a_scale_leaves_no_token_one() -> None:
    (dy, x_scale), weight = _gradient(3, 16), _scales((8, 8))
    weight.w_scale[1] = float("nan")
    made = _quantized(dy, x_scale, weight)
    assert torch.isnan(made.token_scale).all()
    assert torch.isfinite(made.feature_scale).all()


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
def test_no_tokens() -> None:
    (dy, x_scale), weight = _gradient(0, 16), _scales((16,))
    assert not _quantized(dy, x_scale, weight).feature_scale.any()


@pytest.mark.interpreter
@pytest.mark.usefixtures("short")
def test_what_does_not_fit_is_refused() -> None:
    (dy, x_scale), weight = _gradient(6, 64), _scales((64,))
    with pytest.raises(ShapeError, match="w_scale"):
        _quantized(dy, x_scale, _scales((63,)))
    with pytest.raises(ShapeError, match="x_scale"):
        _quantized(dy, x_scale.double(), weight)
    with pytest.raises(ShapeError, match="buffers are for"):
        launch_gradient(dy[:5], _activations(5, 12), x_scale, allocate_gradient(6, 64, 12, "cpu"), weight)
    with pytest.raises(ShapeError, match="by_token alone"):
        launch_gradient(dy, _activations(6, 12), x_scale, allocate_gradient(6, 64, 12, "cpu"), None)
    with pytest.raises(ShapeError, match="transpose"):
        launch_gradient(dy, _activations(6, 8), x_scale, allocate_gradient(6, 64, 12, "cpu"), weight)
    with pytest.raises(ShapeError, match="whole words"):
        launch_gradient(dy, torch.zeros((6, 7), dtype=torch.int8), x_scale, allocate_gradient(6, 64, 7, "cpu"), weight)


@pytest.mark.compile
@pytest.mark.parametrize("stochastic", [False, True])
def test_wide_accesses_without_spills(stochastic: bool) -> None:
    for unit in compile_units("bf16", 22016, True, stochastic, splits=(11008, 11008)):
        found = compile_unit(unit, by_name("h200"))
        assert isinstance(found, Compiled), found
        assert found.spills == 0
        if unit.function.__name__ != "gradient_maxima_kernel":
            assert found.instructions["STG"] <= 12, "8 to 16 bytes a store"


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "columns", "splits"), [
    (1, 896, ()), (63, 1152, (896, 128, 128)), (1000, 4610, (3584, 513, 513)), (7, 22016, (11008, 11008)), (4096, 2048, ()),
])  # fmt: skip
def test_on_a_gpu(tokens: int, columns: int, splits: tuple[int, ...]) -> None:
    _check_nearest(tokens, columns, splits, "cuda")
    _check_stochastic(tokens, columns, "cuda")
    _check_transpose(tokens, columns, "cuda")
