"""8-bit input gradients: the quantization of dY in the interpreter and on a GPU, the product on a GPU, against the rounding itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name, detect
from kernels.inputs import TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.problem import Problem, Sparsity
from kernels.space import config_to_dict
from kernels.sparse_backward.int8_grad import INPUT_GRAD, default_config, launch_quantize_gradient
from reference.quantize import quantize_activation

H200 = by_name("h200")
LAYERS = (((1152, 896), (896, 128, 128)), ((896, 4864), ()), ((2048, 2048), ()))


def _gradient(tokens: int, columns: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(tokens + columns)
    dy = torch.randn(tokens, columns, generator=generator, device=device).bfloat16()
    return dy, torch.rand(columns, generator=generator, device=device) + 0.5


def _quantized(dy: torch.Tensor, row_scale: torch.Tensor, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.full(dy.shape, -128, dtype=torch.int8, device=dy.device)
    scale = torch.full((dy.shape[0],), float("nan"), device=dy.device)
    launch_quantize_gradient(dy, row_scale, q, scale, seed)
    return q, scale


def _check_nearest(tokens: int, columns: int, device: str) -> None:
    dy, row_scale = _gradient(tokens, columns, device)
    q, scale = _quantized(dy, row_scale)
    codes, expected = quantize_activation(dy.float() * row_scale)
    assert torch.equal(q, codes)
    assert torch.equal(scale, expected)


def _check_stochastic(tokens: int, columns: int, device: str) -> None:
    """Each code is one of the two beside the value; equal seeds, equal bits; the mean over seeds comes near the value."""
    dy, row_scale = _gradient(tokens, columns, device)
    runs = [_quantized(dy, row_scale, seed) for seed in range(16)]
    scale = runs[0][1]
    exact = (dy.float() * row_scale).double() / scale.double()[:, None]
    for q, _ in runs:
        assert ((q - exact).abs() <= 1 + 1e-4).all()
    assert torch.equal(_quantized(dy, row_scale, 3)[0], runs[3][0])
    assert not torch.equal(runs[0][0], runs[1][0])
    error = torch.stack([q for q, _ in runs]).double().mean(0) - exact
    assert error.mean().abs() < 6 * 0.5 / (16 * dy.numel()) ** 0.5


@pytest.mark.interpreter
@pytest.mark.parametrize(("tokens", "columns"), [(1, 4), (3, 300), (2, 2100), (0, 8)])
def test_interpreted_nearest(tokens: int, columns: int) -> None:
    _check_nearest(tokens, columns, "cpu")


@pytest.mark.interpreter
def test_interpreted_stochastic() -> None:
    _check_stochastic(3, 300, "cpu")


@pytest.mark.interpreter
def test_interpreted_non_finite_and_zero_tokens() -> None:
    dy, row_scale = _gradient(3, 64)
    dy[1, 5] = float("inf")
    dy[2] = 0
    q, scale = _quantized(dy, row_scale)
    assert torch.isnan(scale).tolist() == [False, True, False]
    assert not q[2].any()


@pytest.mark.interpreter
def test_what_does_not_fit_is_refused() -> None:
    dy, row_scale = _gradient(3, 64)
    with pytest.raises(ShapeError, match="row_scale"):
        _quantized(dy, row_scale[:63])
    with pytest.raises(ShapeError, match="do not fit"):
        launch_quantize_gradient(dy, row_scale, torch.zeros((3, 64), dtype=torch.uint8), torch.zeros(3))


def test_configs_are_plain_data() -> None:
    case = Problem("input-grad", 2048, 11008, 4096, Sparsity(2, 4))
    config = INPUT_GRAD.default_config(case, H200)
    assert INPUT_GRAD.space.from_dict(config_to_dict(config)) == config
    assert INPUT_GRAD.unavailable(case, H200) is None
    assert "sm_90" in (INPUT_GRAD.unavailable(case, by_name("a100")) or "")
    assert not INPUT_GRAD.exact


@pytest.mark.compile
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_quantization_compiles_without_spills(stochastic: bool) -> None:
    case = Problem("input-grad", 2048, 11008, 4096, Sparsity(2, 4))
    unit = INPUT_GRAD.compile_units(case, dataclasses.replace(default_config(case, H200), stochastic=stochastic))[0]
    compiled = compile_unit(unit, H200)
    assert isinstance(compiled, Compiled), compiled
    assert compiled.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "columns"), [(1, 896), (63, 1152), (1000, 4608), (7, 22016)])
def test_quantization_on_a_gpu(tokens: int, columns: int) -> None:
    _check_nearest(tokens, columns, "cuda")
    _check_stochastic(tokens, columns, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("tokens", [1, 63, 1000, 4096])
@pytest.mark.parametrize(("shape", "splits"), LAYERS, ids=str)
def test_layers_on_the_device(shape: tuple[int, int], splits: tuple[int, ...], tokens: int, stochastic: bool) -> None:
    """dX is the product of the codes, up to its own rounding, and within the bound of gradients of the unquantized one."""
    gpu = detect()
    assert gpu is not None
    case = Problem("input-grad", *shape, tokens, Sparsity(2, 4), splits)
    if reason := INPUT_GRAD.unavailable(case, gpu):
        pytest.skip(reason)
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, TrainInputs)
    prepared = INPUT_GRAD.prepare(case, inputs, dataclasses.replace(default_config(case, gpu), stochastic=stochastic))
    poison(prepared)
    dx = prepared.run()["dx"].clone()
    row_scale = inputs.w_scale.repeat_interleave(torch.tensor(case.splits, device="cuda")) / 64
    q, scale = _quantized(inputs.dy, row_scale, 0 if stochastic else None)
    expected = (q.double() @ inputs.w_ternary.double()) * 64 * scale.double()[:, None]
    assert ((dx.double() - expected).abs() <= 2.0**-8 * expected.abs() + 1e-30).all()
    assert stochastic or judge(case, inputs, {"dx": dx}, INPUT_GRAD) is None
    assert torch.equal(prepared.run()["dx"], dx)
