"""The fake-quantizing layers against the explicit straight-through graph, and against BitLinear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kernels.bitlinear import BitLinear
from kernels.problem import Sparsity
from kernels.sparse_backward.fakequant import pairwise_mask
from kernels.sparse_backward.fakequant_layer import FakeQuantLinear, group_mask
from reference.sparsity import nm_mask
from tests.kernels.straight_through import gradients

SPLITS = (24, 16)


def made(published: bool, sparsity: str, dtype: torch.dtype = torch.float32) -> FakeQuantLinear:
    torch.manual_seed(0)
    layer = FakeQuantLinear(nn.Linear(48, sum(SPLITS), False, dtype=dtype), Sparsity.parse(sparsity), SPLITS, published)
    if not published:
        layer.requantize()
    return layer


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("sparsity", ["dense", "2:4", "6:8"])
def test_gradients_pass_straight_through(published: bool, sparsity: str) -> None:
    layer, x, dy = made(published, sparsity), torch.randn(2, 5, 48).requires_grad_(), torch.randn(2, 5, sum(SPLITS))
    layer(x).backward(dy)
    flat = x.detach().flatten(0, 1)
    truth = gradients(flat, layer.weight, None, dy.flatten(0, 1), layer.sparsity, SPLITS)
    for name, actual in (("dx", x.grad), ("dw", layer.weight.grad)):
        assert actual is not None
        scale = truth[name].abs().max()
        assert (actual.double().view(truth[name].shape) - truth[name]).abs().max() <= 0.01 * scale, name


def test_it_computes_what_bitlinear_computes() -> None:
    layer, x = made(published=False, sparsity="2:4", dtype=torch.bfloat16), torch.randn(64, 48).bfloat16()
    ours = BitLinear(48, sum(SPLITS), False, dtype=torch.bfloat16, sparsity="2:4", splits=SPLITS)
    ours.weight = layer.weight
    y = ours(x).detach()
    assert (layer(x) - y).float().norm() <= 0.01 * y.float().norm()
    other = BitLinear(48, sum(SPLITS), False, dtype=torch.bfloat16, sparsity="6:8", splits=SPLITS)
    other.weight = layer.weight
    assert (layer(x) - other(x)).float().norm() > 0.1 * y.float().norm(), "another mask is another function"


def test_the_weight_is_quantized_when_it_is_told_to_be() -> None:
    layer, x = made(published=False, sparsity="2:4", dtype=torch.bfloat16), torch.randn(3, 48).bfloat16()
    published = FakeQuantLinear(layer, layer.sparsity, SPLITS, published=True)
    before = layer(x)
    assert torch.equal(before, published(x))
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.equal(before, layer(x))
    assert torch.equal(-before, published(x))
    layer.requantize()
    assert torch.equal(-before, layer(x))
    fresh = FakeQuantLinear(nn.Linear(48, 40, False), Sparsity(2, 4), SPLITS, published=False)
    with pytest.raises(TypeError, match="requantize"):
        fresh(x)


@pytest.mark.parametrize("published", [False, True])
def test_compiled_without_a_break(published: bool) -> None:
    layer, x = made(published, "2:4"), torch.randn(6, 48)
    expected = layer(x)
    expected.sum().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_the_mask_operator_is_well_formed() -> None:
    weight = torch.randn(8, 16)
    torch.library.opcheck(group_mask, (weight, 2, 4))
    assert torch.equal(group_mask(weight, 2, 4), nm_mask(weight, 2, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_published_mask_on_a_gpu(dtype: torch.dtype) -> None:
    weight = torch.randn(70, 264, device="cuda").to(dtype)
    weight[:, :8] = 1.0
    for n, m in ((2, 4), (6, 8)):
        assert torch.equal(group_mask(weight, n, m), pairwise_mask(weight, n, m))
