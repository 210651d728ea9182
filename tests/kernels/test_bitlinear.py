"""BitLinear as a module: gradients against float64 autograd, packs made once per change, autocast, compile, checkpoints, bad input."""

from __future__ import annotations

import copy
import io
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernels.bitlinear import BitLinear, Choice, PackedLinear, Schedule, freeze, freeze_model, from_linear, ops, packs
from kernels.bitlinear.packs import packs_of
from kernels.bitlinear.variants import FORWARD, choose
from kernels.catalogue import kernels_for
from kernels.errors import SparsityError, UsageError
from kernels.gpu import GPUS
from kernels.packed import load, pack, save, unpack
from kernels.problem import Problem, Sparsity
from tests.kernels.straight_through import gradients

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


def make(sparsity: str = "2:4", splits: tuple[int, ...] = (16, 8), bias: bool = True, dtype: torch.dtype = torch.float32) -> BitLinear:
    torch.manual_seed(0)
    return BitLinear(48, 24, bias, dtype=dtype, sparsity=sparsity, splits=splits)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(BitLinear(32, 48, sparsity="2:4"), nn.ReLU(), BitLinear(48, 32, sparsity="6:8"))


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


@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_packed_once_per_optimizer_step_whatever_is_accumulated(how: dict[str, bool]) -> None:
    """Fused optimizers, too, which leave the version counter of what they change as it is."""
    model, x = two_layers(), torch.randn(7, 32)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, **how)
    for step in range(1, 4):
        for _ in range(3):
            model(x).square().mean().backward()
        assert [model[0].packings, model[2].packings] == [step, step]
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        fresh = copy.deepcopy(model)
        assert torch.equal(model(x), fresh(x)), "eval after an optimizer step must not read a stale pack"
        for _ in range(3):
            model(x)
    assert model[0].packings == 4


def test_checkpointing_recomputes_from_the_same_pack() -> None:
    plain, x = two_layers(), torch.randn(7, 32, requires_grad=True)
    recomputed = copy.deepcopy(plain)
    plain(x).square().sum().backward()
    dx, x.grad = x.grad, None
    checkpoint(recomputed, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(dx, x.grad)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True))
    assert recomputed[0].packings == 1


def test_every_change_of_a_weight_is_seen_or_can_be_told() -> None:
    module, x = make(), torch.randn(4, 48)
    module(x)
    with torch.no_grad():
        module.weight.mul_(-1)
    expected = copy.deepcopy(module)
    assert torch.equal(module(x), expected(x))
    module.weight.data.mul_(-1)  # leaves no trace
    module.repack()
    assert torch.equal(module(x), copy.deepcopy(module)(x))
    gathered = nn.Parameter(torch.randn(24, 48))
    module.weight = gathered
    module(x)
    with torch.autograd._unsafe_preserve_version_counter(gathered), torch.no_grad():
        gathered.mul_(-1)
    module.weight = gathered  # as FSDP does after it has gathered the weight anew
    assert torch.equal(module(x), copy.deepcopy(module)(x))


def test_what_a_capture_records_is_fresh_for_its_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded launch has not run: nothing eager may take its pack for made; and a captured forward pass always records one."""
    module, x = make(), torch.randn(4, 48, requires_grad=True)
    module(x)
    monkeypatch.setattr(packs, "capturing", lambda tensor: True)
    y = module(x)
    assert module.packings == 2, "fresh, but the graph must follow the weight"
    y.sum().backward()
    assert module.packings == 2
    with torch.no_grad():
        module(x)
        assert module.packings == 3, "an evaluation in another capture cannot rely on the first graph"
    monkeypatch.undo()
    module(x).sum().backward()
    assert module.packings == 4
    monkeypatch.setattr(packs, "capturing", lambda tensor: True)
    with torch.no_grad():
        module(x)
    assert module.packings == 4, "a captured evaluation reads what was made before"


def test_the_weight_may_not_change_between_forward_and_backward() -> None:
    module = make()
    y = module(torch.randn(4, 48))
    with torch.no_grad():
        module.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inference_mode_first_then_training() -> None:
    module, x = make(), torch.randn(4, 48)
    with torch.inference_mode():
        first = module(x)
    module(x).sum().backward()
    assert torch.equal(first, module(x))
    assert module.packings == 1
    with torch.inference_mode():
        inside = BitLinear(48, 24)
        assert inside(x).shape == (4, 24)


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


def test_checkpoints_of_dense_layers_and_the_reverse(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    dense, module, x = nn.Linear(48, 24), make(), torch.randn(4, 48)
    module(x)
    module.load_state_dict(dense.state_dict())
    assert torch.equal(module(x), from_linear(copy.deepcopy(dense), "2:4", (16, 8))(x))
    save_file(module.state_dict(), tmp_path / "layer.safetensors")
    dense.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(dense.weight, module.weight)
    module.load_state_dict(make("6:8").state_dict(), assign=True)
    assert torch.equal(module(x), copy.deepcopy(module)(x))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    assert buffer.tell() < 3 * module.weight.nbytes + 4000, "packs are in no pickle"
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), module(x))


def test_from_linear_keeps_parameters_and_mode() -> None:
    linear = nn.Linear(48, 24, dtype=torch.bfloat16).eval()
    made = from_linear(linear, "2:4")
    assert made.weight is linear.weight
    assert made.bias is linear.bias
    assert not made.training
    assert isinstance(made, nn.Linear)
    assert "sparsity=2:4" in repr(made)
    assert from_linear(nn.Linear(48, 24, bias=False)).bias is None


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


def test_frozen_layers_hold_two_bits_a_weight(tmp_path: Path) -> None:
    module, x = make("6:8"), torch.randn(4, 48)
    frozen = freeze(module)
    assert torch.equal(frozen(x), module(x))
    assert torch.equal(torch.compile(frozen, fullgraph=True, backend="aot_eager")(x), module(x))
    scale = frozen.w_scale
    assert frozen.to(torch.bfloat16).bias.dtype == torch.bfloat16
    assert torch.equal(frozen.w_scale, scale), "scales stay float32"
    frozen = freeze(module)
    save(frozen.packed, tmp_path / "packed.safetensors")
    assert torch.equal(PackedLinear(load(tmp_path / "packed.safetensors"), module.bias)(x), module(x))
    other = freeze(make("6:8", dtype=torch.float32))
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(other(x), module(x))
    frozen.set_sparsity("6:8")
    with pytest.raises(UsageError, match="packed as 6:8"):
        frozen.set_sparsity("2:4")
    with pytest.raises(SparsityError, match="2:4 allows 2"):
        freeze(make("2:4")).load_state_dict(frozen.state_dict())
    model = freeze_model(two_layers())
    assert [type(layer) for layer in model] == [PackedLinear, nn.ReLU, PackedLinear]


def test_changed_bytes_of_a_frozen_layer_are_read_anew() -> None:
    first, second, x = freeze(make()), freeze(make()), torch.randn(4, 48)
    before = first(x)
    flipped = pack(-unpack(second.packed), second.w_scale, (16, 8), Sparsity(2, 4))
    first.load_state_dict({**first.state_dict(), "data": flipped.data})
    assert not torch.equal(first(x), before)
    assert torch.equal(first(x), PackedLinear(flipped, first.bias)(x))


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


def test_packs_die_with_their_weight() -> None:
    module = make()
    module(torch.randn(2, 48))
    pack = next(iter(packs_of(module.weight).values()))
    count = sys.getrefcount(pack)
    del module
    assert sys.getrefcount(pack) < count


def test_the_cpu_warns_once() -> None:
    ops._warn_of_cpu.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            make()(torch.randn(2, 48))
    assert [str(warning.message) for warning in caught].count(str(caught[0].message)) == 1
    assert "runs on the CPU" in str(caught[0].message)
