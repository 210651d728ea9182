"""BitLinear as a module: gradients against float64 autograd, autocast, compile, sparsity that changes, what it chose."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from kernels.bitlinear import BitLinear, Choice, Schedule, from_linear, ops
from kernels.bitlinear.variants import FORWARD, choose
from kernels.catalogue import kernels_for
from kernels.errors import UsageError
from kernels.gpu import GPUS
from kernels.problem import Problem, Sparsity
from tests.kernels.bitlinear_layers import make, two_layers
from tests.kernels.straight_through import gradients

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


@pytest.mark.parametrize("sparsity", ["dense", "2:4", "6:8", "4:6"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_straight_through_graph(sparsity: str, bias: bool) -> None:
    module = make(sparsity, bias=bias)
    x = torch.randn(3, 5, 48, requires_grad=True)
    dy = torch.randn(3, 5, 24)
    y = module(x)
    y.backward(dy)
    truth = gradients(x.reshape(15, 48), module.weight, module.bias, dy.reshape(15, 24), module.sparsity, module.splits)
    assert y.shape == (3, 5, 24)
    found = {"y": y.reshape(15, 24), "dx": x.grad, "dw": module.weight.grad, "db": module.bias.grad if bias else None}
    for name, expected in truth.items():
        actual = found[name]
        assert actual is not None
        torch.testing.assert_close(actual.double().reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)
    assert (module.weight.grad != 0).all(), "masked weights get their gradient too"


def test_gradients_only_where_they_are_asked_for() -> None:
    module = make()
    module.weight.requires_grad_(False)
    x = torch.randn(4, 48, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert module.weight.grad is None
    assert module.bias.grad is not None
    assert not module.requires_grad_(False)(x.detach()).requires_grad


def test_half_of_the_saved_activation_and_the_weight_itself() -> None:
    module = BitLinear(1024, 64, dtype=torch.bfloat16, sparsity="2:4")
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(256, 1024, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    activations = [tensor for tensor in kept if tensor.data_ptr() != module.weight.data_ptr()]
    assert len(activations) == len(kept) - 1
    assert sum(tensor.untyped_storage().nbytes() for tensor in activations) <= 0.51 * x.nbytes


def test_no_tokens_and_other_layouts() -> None:
    module = make()
    assert module(torch.randn(2, 0, 48)).shape == (2, 0, 24)
    x = torch.randn(48, 6)
    assert torch.equal(module(x.t()), module(x.t().contiguous()))
    dy = torch.randn(24, 6).t()
    module(x.t()).backward(dy)
    first = module.weight.grad.clone()
    module.zero_grad()
    module(x.t()).backward(dy.contiguous())
    assert torch.equal(first, module.weight.grad)
    module.zero_grad()
    module(x.t()).sum().backward()  # an expanded gradient, without strides


def test_shapes_without_values() -> None:
    """On torch's meta device, as tools that count parameters and memory ask for them."""
    module = make().to("meta")
    for frozen in (False, True):
        module.requires_grad_(not frozen)
        assert module(torch.empty(2, 5, 48, device="meta")).shape == (2, 5, 24)
    assert module.plan(5).kernels == {5: "reference"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_leaves_the_master_weight(dtype: torch.dtype) -> None:
    module = make(dtype=dtype)
    x = torch.randn(4, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert module.weight.grad.dtype == dtype
    assert x.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert module(x).dtype == torch.float32
    assert torch.equal(y, module(x.to(torch.bfloat16)))


def test_compiled_without_a_break() -> None:
    model, x = two_layers(), torch.randn(7, 32)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (model, eager)]
    for step in range(1, 3):
        for _ in range(2):
            for one in (compiled, eager):
                one(x).square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=name)
        assert model[0].packings == step
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
    model[0].set_sparsity("dense")
    eager[0].set_sparsity("dense")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x))


def test_operators_keep_the_rules_of_the_compiler() -> None:
    module, x = make(), torch.randn(5, 48, requires_grad=True)
    weight, bias, how = module.weight.detach(), module.bias.detach(), ("2:4", [16, 8], "")
    torch.library.opcheck(torch.ops.tersparse.bitlinear.default, (x, module.weight, module.bias, *how))
    torch.library.opcheck(torch.ops.tersparse.bitlinear_eval.default, (x.detach(), weight, bias, *how))
    torch.library.opcheck(torch.ops.tersparse.bitlinear_input_grad.default, (torch.randn(5, 24), weight, *how))
    codes = torch.randint(-127, 128, (5, 128), dtype=torch.int8)
    saved = (codes, torch.rand(5), 48, torch.float32, "")
    torch.library.opcheck(torch.ops.tersparse.bitlinear_weight_grad.default, (torch.randn(5, 24), *saved))
    both = (torch.randn(5, 24), weight, codes, saved[1], *how)
    torch.library.opcheck(torch.ops.tersparse.bitlinear_grads.default, both)
    torch.library.opcheck(torch.ops.tersparse.bitlinear_forward.default, (x.detach(), weight, bias, *how))
    apart = (torch.ops.tersparse.bitlinear_input_grad(both[0], weight, *how), torch.ops.tersparse.bitlinear_weight_grad(both[0], *saved))
    assert all(torch.equal(a, b) for a, b in zip(torch.ops.tersparse.bitlinear_grads(*both), apart, strict=True))


def test_sparsity_switches_on_a_live_layer() -> None:
    module, x = make("dense"), torch.randn(4, 48)
    module(x)
    module.set_sparsity("2:4")
    assert torch.equal(module(x), from_linear(copy.deepcopy(module), "2:4", (16, 8))(x))
    schedule = Schedule(((0, "dense"), (10, "2:4"), (20, "6:8")))
    assert [str(schedule.at(step)) for step in (-1, 0, 9, 10, 25)] == ["dense", "dense", "dense", "2:4", "6:8"]
    assert schedule.apply(module, 0)
    assert not schedule.apply(module, 9)
    assert schedule.apply(module, 10)
    for phases in ((), ((1, "2:4"),), ((0, "2:4"), (0, "6:8"))):
        with pytest.raises(UsageError, match="begin at step 0"):
            Schedule(phases)
    with pytest.raises(UsageError, match="unknown sparsity"):
        Schedule(((0, "sparse"),))


def test_it_says_what_it_chose() -> None:
    assert make().chosen(4096) == Choice("dense-triton", "unpack-cublas", "dequantize-cublas")
    named = BitLinear(48, 24, variants="dense-triton+unpack-dot+convert-dot")
    assert named.chosen(1) == Choice("dense-triton", "unpack-dot", "convert-dot")
    for sparsity, reason in (("2:4", "needs sm_90"), ("6:8", "not of 6:8")):
        sparse = BitLinear(48, 24, sparsity=sparsity, variants="sparse-wgmma+unpack-dot+convert-dot")
        with pytest.raises(UsageError, match=f"sparse-wgmma was named and cannot: .*{reason}"):
            sparse.chosen(64)  # the portable choices without a GPU


def test_the_choice_is_among_what_a_layer_can_call_and_the_catalogue_holds() -> None:
    step = Problem("step", 9728, 896, 4096, Sparsity(2, 4))
    offered = {kernel.name for kernel in kernels_for("gemm")} & FORWARD.keys()
    assert offered == FORWARD.keys()
    for gpu in GPUS:
        choice = choose(step, gpu)
        assert choice.forward in offered
        assert not FORWARD[choice.forward].refusal(step.with_(op="gemm"), gpu)
        assert choose(step.with_(tokens=0), gpu).forward in offered


def test_past_the_dispatcher_y_is_like_any_other() -> None:
    module, x = make(bias=False), torch.randn(2, 3, 48)
    with torch.no_grad():
        y = ops.evaluate(x, module.weight, None, "2:4", module.splits, "")
        assert torch.equal(y, module(x))
    y.mul_(torch.ones(24, requires_grad=True))
    assert y.requires_grad


def test_the_cpu_warns_once() -> None:
    ops._warn_of_cpu.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            make()(torch.randn(2, 48))
    assert [str(warning.message) for warning in caught].count(str(caught[0].message)) == 1
    assert "runs on the CPU" in str(caught[0].message)
