"""The layer against plain loops and integers, its gradients against autograd of the explicit graph."""

from __future__ import annotations

import pytest
import torch

from reference.linear import accumulate, bias_grad, input_grad, linear, row_scale, weight_grad
from reference.quantize import quantize_activation, ternary_quantize
from reference.sparsity import nm_mask

SPLITS = (3, 2, 1)


def operands(tokens: int = 4, in_features: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, in_features, generator=generator)
    w_ternary, w_scale = ternary_quantize(weight, SPLITS)
    x = torch.randn(tokens, in_features, generator=generator)
    x_q, x_scale = quantize_activation(x)
    bias = torch.randn(6, generator=generator)
    return {"x_q": x_q, "x_scale": x_scale, "w_ternary": w_ternary * nm_mask(weight, 2, 4), "w_scale": w_scale, "bias": bias}


def test_accumulators_are_those_of_integers() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-128, 128, (5, 1000), generator=generator, dtype=torch.int8)
    w = torch.randint(-128, 128, (7, 1000), generator=generator, dtype=torch.int8)
    assert torch.equal(accumulate(x, w), x.long() @ w.long().t())
    largest = torch.full((1, 131072), -128, dtype=torch.int8)
    assert accumulate(largest, largest).tolist() == [[128 * 128 * 131072]]


def test_accumulators_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(-60, 60, dtype=torch.int8).view(10, 12)
    monkeypatch.setattr("reference.sparsity.CHUNK_ELEMENTS", 30)
    assert torch.equal(accumulate(x, x[:3]), x.long() @ x[:3].long().t())


def test_linear_is_that_of_plain_loops() -> None:
    o = operands()
    y = linear(o["x_q"], o["x_scale"], o["w_ternary"], o["w_scale"], SPLITS, o["bias"])
    scales = [o["w_scale"][i].item() for i in (0, 0, 0, 1, 1, 2)]
    for t in range(4):
        for n in range(6):
            acc = sum(a * b for a, b in zip(o["x_q"][t].tolist(), o["w_ternary"][n].tolist(), strict=True))
            assert y[t, n].item() == pytest.approx(acc * o["x_scale"][t].item() * scales[n] + o["bias"][n].item(), rel=1e-14)
    assert torch.allclose(linear(o["x_q"], o["x_scale"], o["w_ternary"], o["w_scale"], SPLITS), y - o["bias"].double(), rtol=1e-12)


def test_gradients_are_those_of_the_straight_through_graph() -> None:
    o = operands()
    dy = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = (o["x_q"].double() * o["x_scale"].double()[:, None]).requires_grad_()
    w = (o["w_ternary"].double() * row_scale(o["w_scale"], SPLITS, 6)[:, None]).requires_grad_()
    bias = o["bias"].double().requires_grad_()
    y = x @ w.t() + bias
    assert torch.allclose(y, linear(o["x_q"], o["x_scale"], o["w_ternary"], o["w_scale"], SPLITS, o["bias"]), rtol=1e-12)
    dx, dw, dbias = torch.autograd.grad(y, (x, w, bias), dy)
    assert torch.allclose(input_grad(dy, o["w_ternary"], o["w_scale"], SPLITS), dx, rtol=1e-12, atol=1e-14)
    assert torch.allclose(weight_grad(dy, o["x_q"], o["x_scale"]), dw, rtol=1e-12, atol=1e-14)
    assert torch.allclose(bias_grad(dy), dbias, rtol=1e-12)


def test_weight_gradient_reaches_masked_positions() -> None:
    o = operands()
    dw = weight_grad(torch.ones(4, 6), o["x_q"], o["x_scale"])
    assert (o["w_ternary"] == 0).any()
    assert (dw[o["w_ternary"] == 0] != 0).all()


def test_no_tokens() -> None:
    o = operands(tokens=0)
    assert linear(o["x_q"], o["x_scale"], o["w_ternary"], o["w_scale"], SPLITS).shape == (0, 6)
    assert input_grad(torch.zeros(0, 6), o["w_ternary"], o["w_scale"], SPLITS).shape == (0, 16)
    assert torch.equal(weight_grad(torch.zeros(0, 6), o["x_q"], o["x_scale"]), torch.zeros(6, 16, dtype=torch.float64))
    assert torch.equal(bias_grad(torch.zeros(0, 6)), torch.zeros(6, dtype=torch.float64))


def test_shapes_that_do_not_fit_are_errors() -> None:
    o = operands()
    with pytest.raises(ValueError, match="in_features differ: activations have 12, weights 16"):
        accumulate(o["x_q"][:, :12], o["w_ternary"])
    with pytest.raises(ValueError, match="the layer 1 split"):
        linear(o["x_q"], o["x_scale"], o["w_ternary"], o["w_scale"], None)
    for x_scale in (o["x_scale"][:3], o["x_scale"][:1], o["x_scale"][:, None]):
        with pytest.raises(ValueError, match="there are 4 tokens"):
            linear(o["x_q"], x_scale, o["w_ternary"], o["w_scale"], SPLITS)
        with pytest.raises(ValueError, match="there are 4 tokens"):
            weight_grad(torch.zeros(4, 6), o["x_q"], x_scale)
    with pytest.raises(ValueError, match="the layer 6 out_features"):
        linear(o["x_q"], o["x_scale"], o["w_ternary"], o["w_scale"], SPLITS, o["bias"][:1])
    with pytest.raises(ValueError, match="out_features differ: gradients have 5, weights 6"):
        input_grad(torch.zeros(4, 5), o["w_ternary"], o["w_scale"], SPLITS)
    with pytest.raises(ValueError, match="tokens differ: gradients have 3, activations 4"):
        weight_grad(torch.zeros(3, 6), o["x_q"], o["x_scale"])
