"""convert(): which layers of a model are swapped, which stay, and what is refused; switching a whole live model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from kernels.bitlinear import BitLinear, PackedLinear, Schedule, check, convert, freeze_model, layers, repack, set_sparsity
from kernels.errors import NonFiniteError, ShapeError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(32, size, bias=False) for size in (32, 16, 16, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.o_proj(self.q_proj(x) + torch.cat([self.k_proj(x), self.v_proj(x)], -1))
        return mixed


class TinyMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(32, 96, bias=False), nn.Linear(48, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        down: torch.Tensor = self.down_proj(gate.sigmoid() * up)
        return down


class Decoder(nn.Module):
    """Named as Hugging Face decoders name their parts."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 32)
        self.layers = nn.ModuleList(nn.ModuleDict({"self_attn": Attention(), "mlp": TinyMLP()}) for _ in range(2))
        self.unembed = nn.Linear(32, 20, bias=False)
        if tied:
            self.unembed.weight = self.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = x + layer["self_attn"](x)
            x = x + layer["mlp"](x)
        logits: torch.Tensor = self.unembed(x)
        return logits


def names(model: nn.Module) -> set[str]:
    return {name.removeprefix("layers.") for name, layer in layers(model).items() if isinstance(layer, BitLinear)}


def test_every_projection_of_a_decoder_and_nothing_else() -> None:
    model = Decoder()
    parameters = {id(parameter) for parameter in model.parameters()}
    assert convert(model, "2:4") is model
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert names(model) == {f"{layer}.{name}" for layer in (0, 1) for name in projections}
    assert type(model.unembed) is nn.Linear
    assert {id(parameter) for parameter in model.parameters()} == parameters, "an optimizer made before goes on"
    assert all(layer.label == name and str(layer.sparsity) == "2:4" for name, layer in layers(model).items())
    model(torch.arange(6)[None]).sum().backward()
    with pytest.raises(UsageError, match=r"no nn\.Linear layer of Decoder is left"):
        convert(model)


def test_heads_are_known_by_name_or_by_the_model() -> None:
    model = Decoder(tied=False)
    model.lm_head = model.unembed
    del model.unembed
    assert not any("lm_head" in name for name in names(convert(model)))
    model = Decoder(tied=False)
    model.get_output_embeddings = lambda: model.unembed  # type: ignore[method-assign]
    assert type(convert(model).unembed) is nn.Linear
    assert isinstance(convert(Decoder(tied=False)).unembed, BitLinear)
    model = Decoder(tied=False)
    model.lm_head = nn.Linear(32, 20)
    assert isinstance(convert(model, include="lm_head", exclude=()).lm_head, BitLinear)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("TinyMLP", (), {"mlp.gate_up_proj", "mlp.down_proj"}),
        (["*_proj"], ["*.mlp.*"], {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
        ("[qk]_proj", (), {"self_attn.q_proj", "self_attn.k_proj"}),
        ("layers.*", "Attention", {"mlp.gate_up_proj", "mlp.down_proj"}),
    ],
)
def test_patterns_over_names_and_classes(include: list[str] | str, exclude: list[str] | str, expected: set[str]) -> None:
    model = convert(Decoder(), "6:8", include, exclude)
    assert names(model) == {f"{layer}.{name}" for layer in (0, 1) for name in expected}


def test_splits_of_fused_projections() -> None:
    model = convert(Decoder(), "2:4", splits={"gate_up_proj": (48, 48)})
    assert model.layers[0]["mlp"].gate_up_proj.splits == [48, 48]
    assert model.layers[0]["mlp"].down_proj.splits == [32]


def test_splits_of_no_layer_are_refused() -> None:
    model = Decoder()
    with pytest.raises(UsageError, match=r"splits are given for gate_up, up_\*, which no layer"):
        convert(model, "2:4", splits={"gate_up": (48, 48), "up_*": (2, 2), "q_proj": (16, 16)})
    assert not names(model)


def test_a_layer_with_two_names_is_one_layer_under_both() -> None:
    def model() -> nn.ModuleDict:
        shared = nn.Linear(32, 32)
        return nn.ModuleDict({"encoder": nn.Sequential(shared), "decoder": nn.Sequential(nn.ReLU(), shared), "lm_head": nn.Linear(32, 8)})

    both = convert(model(), splits={"decoder.1": (16, 16)})
    assert both["encoder"][0] is both["decoder"][1]
    assert both["encoder"][0].splits == [16, 16]
    assert names(convert(model(), include="decoder.*", exclude=())) == {"encoder.0"}, "one included name is enough"
    with pytest.raises(UsageError, match="is left to convert"):
        convert(model(), exclude=("decoder.*", "lm_head"))
    freeze_model(both)
    assert both["encoder"][0] is both["decoder"][1]
    assert isinstance(both["encoder"][0], PackedLinear)


def test_hooks_go_with_their_layer() -> None:
    model, seen = nn.Sequential(nn.Linear(32, 32)), []
    handle = model[0].register_forward_hook(lambda module, arguments, y: seen.append(type(module)))
    model[0].register_full_backward_hook(lambda module, dx, dy: seen.append("backward"))
    convert(model)(torch.randn(2, 32, requires_grad=True)).sum().backward()
    freeze_model(model)(torch.randn(2, 32))
    assert seen == [BitLinear, "backward", PackedLinear]
    handle.remove()
    model(torch.randn(2, 32))
    assert len(seen) == 3


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weights_that_something_else_computes_are_refused_by_name() -> None:
    for compute in (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm):
        model = nn.Sequential(nn.ReLU(), nn.Linear(32, 32))
        compute(model[1])
        with pytest.raises(ShapeError, match=r"^1: its weight is no parameter"):
            convert(model)


def test_a_layer_alone_and_modules_that_read_weights_directly() -> None:
    assert isinstance(convert(nn.Linear(8, 8)), BitLinear)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(UsageError, match="is left to convert"):
        convert(encoder)
    both = convert(nn.ModuleDict({"encoder": encoder, "mine": nn.Linear(8, 8)}))
    assert names(both) == {"mine"}


def test_what_does_not_fit_is_named_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(32, 36), nn.Linear(36, 33), nn.Linear(33, 32))
    with pytest.raises(ShapeError, match=r"^1: in_features 36 .* 2: in_features 33 "):
        convert(model, "6:8")
    assert not names(model)
    with pytest.raises(UsageError, match="unknown sparsity"):
        convert(model, "half")
    with pytest.raises(UsageError, match="three names"):
        convert(model, "dense", variants="decode")
    with pytest.raises(ShapeError, match="do not sum to out_features 36"):
        convert(model, "dense", splits={"0": (1, 2)})
    convert(model, "dense")
    set_sparsity(nn.Sequential(), "2:4")
    with pytest.raises(ShapeError, match="2: in_features 33"):
        set_sparsity(model, "2:4")
    with pytest.raises(ShapeError, match=r"^BitLinear: in_features 33"):
        set_sparsity(BitLinear(33, 8, sparsity="dense"), "2:4")
    assert {str(layer.sparsity) for layer in layers(model).values()} == {"dense"}


def test_a_schedule_switches_a_live_model() -> None:
    model, tokens = convert(Decoder(), "dense"), torch.arange(6)[None]
    schedule = Schedule(((0, "dense"), (2, "6:8")))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    found = []
    for step in range(4):
        schedule.apply(model, step)
        model(tokens).sum().backward()
        optimizer.step()
        found.append({str(layer.sparsity) for layer in layers(model).values()})
    assert found == [{"dense"}, {"dense"}, {"6:8"}, {"6:8"}]


def test_checks_and_repacks_whole_models() -> None:
    model, tokens = convert(Decoder()), torch.arange(6)[None]
    model(tokens)
    check(model)
    repack(model)
    assert {layer.packings for layer in layers(model).values()} == {2}
    with torch.no_grad():
        model.layers[1]["self_attn"].v_proj.weight[0, 0] = torch.nan
    model(tokens)
    with pytest.raises(NonFiniteError, match=r"layers.1.self_attn.v_proj: NaN or infinity in its weight"):
        check(model)
