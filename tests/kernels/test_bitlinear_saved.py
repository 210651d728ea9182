"""BitLinear saved, loaded, converted and frozen."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from kernels.bitlinear import PackedLinear, freeze, freeze_model, from_linear
from kernels.errors import PackError, SparsityError, UsageError
from kernels.packed import load, pack, save, unpack
from kernels.problem import Sparsity
from tests.kernels.bitlinear_layers import make, two_layers

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


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


def test_a_frozen_layer_that_refuses_what_is_loaded_stays_as_it_was() -> None:
    frozen, x = freeze(make("2:4")), torch.randn(4, 48)
    before = frozen(x)
    illegal, longer = freeze(make("2:4")).state_dict(), freeze(make("2:4")).state_dict()
    illegal["data"][3, 5] = 0b10
    longer["data"][3, 63] = 0b01 << 6  # column 255 of 48
    for state, error, message in (
        (freeze(make("6:8")).state_dict(), SparsityError, "2:4 allows 2"), (illegal, PackError, "illegal code"),
        (longer, PackError, "behind in_features"),
    ):
        for assign in (False, True):
            with pytest.raises(error, match=message):
                frozen.load_state_dict(state, assign=assign)
            assert torch.equal(frozen(x), before)


def test_a_frozen_layers_state_says_what_its_bytes_are(tmp_path: Path) -> None:
    """Splits of the same number and another layout have tensors of the same shapes; torch's files keep what they are."""
    frozen = freeze(make(splits=(16, 8)))
    torch.save(frozen.state_dict(), tmp_path / "frozen.pt")
    state = torch.load(tmp_path / "frozen.pt", weights_only=True)
    freeze(make(splits=(16, 8))).load_state_dict(state)
    with pytest.raises(PackError, match=r"splits \[16, 8\].* splits \[8, 16\]"):
        nn.Sequential(freeze(make(splits=(8, 16))))[0].load_state_dict(state)
    state._metadata[""]["packed"] = {**state._metadata[""]["packed"], "version": 2}
    with pytest.raises(PackError, match=r"version 2.* version 1"):
        frozen.load_state_dict(state)
    frozen.load_state_dict(dict(state))  # as from files without such words


def test_other_scales_of_a_frozen_layer_are_read_anew() -> None:
    frozen, x = freeze(make(bias=False)), torch.randn(4, 48)
    before = frozen(x)
    frozen.w_scale = 2 * frozen.w_scale
    assert torch.equal(frozen(x), 2 * before)


def test_a_frozen_layer_without_memory_and_back() -> None:
    module, x = make(), torch.randn(4, 48)
    frozen, state = freeze(module), freeze(module).state_dict()
    frozen.to("meta").to_empty(device="cpu").load_state_dict(state)
    assert frozen.w_scale.dtype == torch.float32
    assert torch.equal(frozen(x), module(x))
