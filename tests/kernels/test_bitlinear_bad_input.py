"""What BitLinear refuses, and how it names what is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kernels.bitlinear import BitLinear, PackedLinear, check, freeze, from_linear
from kernels.bitlinear.pack import BiasPack
from kernels.errors import NonFiniteError, ShapeError, UsageError
from tests.kernels.bitlinear_layers import make

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_and_is_named(bad: float) -> None:
    module = make()
    module.label = "model.layers.3.mlp.up_proj"
    x, dy = torch.randn(4, 48), torch.randn(4, 24)
    x[1, 5] = bad
    y = module(x)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()
    with pytest.raises(NonFiniteError, match=r"^model.layers.3.mlp.up_proj: NaN or infinity in its activation$"):
        module.check()
    module.check()
    dy[2, 3] = bad
    clean = torch.randn(4, 48, requires_grad=True)
    module(clean).backward(dy)
    assert not clean.grad[2].isfinite().any()
    assert clean.grad[[0, 1, 3]].isfinite().all()
    module.zero_grad()
    with pytest.raises(NonFiniteError, match="in its gradient"):
        module.check()
    with torch.no_grad():
        module.weight[20, 3] = bad
    y = module(clean)
    assert y[:, 16:].isnan().all(), "the split that holds it"
    assert y[:, :16].isfinite().all()
    with pytest.raises(NonFiniteError, match="in its weight"):
        module.check()
    with pytest.raises(NonFiniteError, match="up_proj holds a NaN"):
        freeze(module)


def test_frozen_layers_are_checked_too() -> None:
    model = nn.Sequential(freeze(make()))
    model[0].label = "up_proj"
    model(torch.full((2, 48), torch.inf))
    with pytest.raises(NonFiniteError, match="up_proj: NaN or infinity in its activation"):
        check(model)
    check(model)


def test_what_has_no_gradients_says_so_when_they_are_asked_for() -> None:
    x = torch.randn(4, 48, requires_grad=True)
    y = freeze(make())(x)
    assert y.shape == (4, 24)
    with pytest.raises(UsageError, match="no gradients"):
        y.sum().backward()
    assert x.grad is None


def test_gradients_of_gradients_are_refused() -> None:
    """PyTorch alone would warn and leave parts of them out; those of a penalty that no layer of ours is in are not asked for."""
    module, x = make(), torch.randn(4, 48, requires_grad=True)
    for layer in (module, torch.compile(module, backend="aot_eager")):
        grads = torch.autograd.grad(layer(x).square().sum(), (x, module.weight, module.bias), create_graph=True)
        plain = torch.autograd.grad(layer(x).square().sum(), (x, module.weight, module.bias))
        assert all(torch.equal(a, b) for a, b in zip(grads, plain, strict=True))
    for of in range(2):
        for wanted in (module.weight, x):
            (first, *_) = torch.autograd.grad(module(x).square().sum(), (x, module.weight)[of], create_graph=True)
            with pytest.raises(UsageError, match="have no gradients"):
                torch.autograd.grad(first.square().sum(), wanted, allow_unused=True)
    (first,) = torch.autograd.grad(torch.compile(module, backend="aot_eager")(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.square().sum().backward()


def test_bad_input_is_refused_before_anything_runs() -> None:
    how, packed = (make().weight.detach(), None, "2:4", [16, 8], ""), freeze(make()).packed
    packed_how = (packed.data, packed.w_scale, None, "2:4", [16, 8], 48, "")
    for call, message in (
        (lambda: BitLinear(30, 8, sparsity="2:4"), "not a multiple of the group of 4"),
        (lambda: BitLinear(32, 8, splits=(4, 5)), "do not sum to out_features 8"),
        (lambda: BitLinear(32, 8, splits=(8, 0)), "do not sum"),
        (lambda: BitLinear(32, 8, dtype=torch.float64), "bf16, fp16 or fp32"),
        (lambda: BitLinear(0, 8), "positive sizes"),
        (lambda: make()(torch.randn(4, 47)), "is needed"),
        (lambda: make()(torch.randn(4, 48).double()), "is needed"),
        (lambda: make()(torch.ones(4, 48, dtype=torch.int64)), "is needed"),
        (lambda: make()(torch.empty(4, 48, device="meta")), "must be together"),
        (lambda: BitLinear(36, 8).set_sparsity("6:8"), "group of 8"),
        (lambda: freeze(make())(torch.randn(4, 7)), "is needed"),
        (lambda: PackedLinear(freeze(make()).packed, torch.randn(23)), r"bias is torch.float32 \[23\]; floating point \[24\]"),
        (lambda: BiasPack(torch.randn(23), 24), "bias is"),
        (lambda: torch.ops.tersparse.bitlinear(torch.randn(4, 1), *how), "is needed"),
        (lambda: torch.ops.tersparse.bitlinear_eval(torch.randn(4, 49), *how), "is needed"),
        (lambda: torch.ops.tersparse.packed_linear(torch.randn(4, 64), *packed_how), "is needed"),
    ):
        with pytest.raises(ShapeError, match=message):
            call()
    for wrong in ("5:4", "sparse", "3:5"):
        with pytest.raises(UsageError, match="unknown sparsity"):
            BitLinear(60, 8, sparsity=wrong)
    for module in (make(), freeze(make())):
        with pytest.raises(UsageError, match=r"-1 tokens: in_features is at least 1, the others 0"):
            module.plan(4, -1)
    with pytest.raises(UsageError, match="three names"):
        BitLinear(32, 8, variants="dense-triton")
    with pytest.raises(UsageError, match="unknown input-grad kernel 'guess'"):
        BitLinear(32, 8, variants="dense-triton+guess+convert-dot")
    with pytest.raises(UsageError, match=r"Conv1d is no nn\.Linear"):
        from_linear(nn.Conv1d(4, 4, 1))
    with pytest.raises(UsageError, match="Linear is no BitLinear"):
        freeze(nn.Linear(4, 4))  # type: ignore[arg-type] # what is refused
