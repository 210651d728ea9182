"""A layer whose rounding the compiler sees: the same codes, outputs and gradients as the opaque operator."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kernels.bitlinear import BitLinear, check, convert
from kernels.bitlinear.traced import quantize_rows
from kernels.errors import NonFiniteError
from reference.quantize import quantize_activation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [128, 200])
def test_codes_are_the_references(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, width)
    x[1], x[2] = 0.0, 1e-7
    x[3, 5] = 1e4
    x[4] = 0.5
    x = x.to(dtype)
    codes, scales = quantize_rows(x)
    expected_codes, expected_scales = quantize_activation(x)
    assert codes.shape == (40, -(-width // 128) * 128)
    assert codes.dtype == torch.int8
    assert torch.equal(codes[:, :width], expected_codes)
    assert not codes[:, width:].any()
    assert torch.equal(scales, expected_scales)
    x[5, 0], x[6, 0] = torch.inf, torch.nan
    assert quantize_rows(x)[1].isfinite().logical_not().nonzero().flatten().tolist() == [5, 6]


def model(traced: bool, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.RMSNorm(64), nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 64, bias=False)).to(device, dtype)
    convert(layers, "2:4", splits={"1": (16, 32)}, traced=traced)
    return layers


def follow(compiled: nn.Module, traced: nn.Module, eager: nn.Module, device: str, rtol: float, atol: float) -> None:
    """Three optimizer steps of two micro-batches each; gradients of the compiled model beside those of the eager one."""
    optimizers = [torch.optim.AdamW(one.parameters(), 0.01, fused=True) for one in (traced, eager)]
    for step in range(1, 4):
        for batch in range(2):
            x = torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(10 * step + batch)).to(device, eager[0].weight.dtype)
            for one in (compiled, eager):
                with torch.autocast(device, torch.bfloat16):
                    y = one(x)
                y.float().square().mean().backward()
        for (name, a), b in zip(traced.named_parameters(), eager.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= atol + rtol * b.grad.norm(), name
            b.grad.copy_(a.grad)
        assert {layer.packings for layer in traced.modules() if isinstance(layer, BitLinear)} == {step}
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_compiled_it_follows_the_opaque_operator() -> None:
    traced, eager = model(True), model(False)
    follow(torch.compile(traced, fullgraph=True, backend="aot_eager"), traced, eager, "cpu", 1e-6, 0.0)


def test_in_eager_and_without_gradients_it_is_the_opaque_operator() -> None:
    traced, plain, x = model(True), model(False), torch.randn(5, 64)
    assert torch.equal(traced(x), plain(x))
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), plain(x))
    assert copy.deepcopy(traced)[1].traced


def test_flags_are_set_too() -> None:
    traced = model(True)
    compiled = torch.compile(traced[1], fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 64)
    x[2, 3] = torch.inf
    y = compiled(x)
    assert y[2].isnan().all()
    assert y[:2].isfinite().all()
    with pytest.raises(NonFiniteError, match="activation"):
        check(traced)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_on_a_gpu(dtype: torch.dtype) -> None:
    traced, eager = model(True, "cuda", dtype), model(False, "cuda", dtype)
    follow(torch.compile(traced, fullgraph=True), traced, eager, "cuda", 0.05, 1e-5)


@pytest.mark.gpu
def test_compiled_codes_on_a_gpu() -> None:
    x = torch.randn(300, 2048, device="cuda").bfloat16()
    found = torch.compile(quantize_rows, fullgraph=True)(x * 1.0)
    for actual, expected in zip(found, quantize_activation(x), strict=True):
        assert torch.equal(actual, expected)
