"""BitLinear in evaluation on a GPU: every number of tokens through whatever is chosen for it, the same bits whatever is named."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from kernels.bitlinear import BitLinear, freeze
from kernels.bitlinear.forward import FORWARD
from kernels.bitlinear.pack import KernelPack
from kernels.bitlinear.packs import pack_of
from kernels.errors import NonFiniteError, UsageError
from kernels.packed import unpack
from reference.compare import Tolerance, compare
from reference.linear import linear
from reference.quantize import quantize_activation

TOKENS = (0, 1, 2, 3, 7, 8, 16, 17, 33, 64, 65, 128)
LAYERS = [((1152, 896), "2:4", (896, 128, 128)), ((136, 264), "2:4", ()), ((896, 4864), "6:8", ()), ((256, 512), "dense", (128, 128))]


def layer(shape: tuple[int, int], sparsity: str, splits: tuple[int, ...], bias: bool = True) -> BitLinear:
    torch.manual_seed(0)
    made = BitLinear(shape[1], shape[0], bias, "cuda", torch.bfloat16, sparsity=sparsity, splits=splits)
    return made.requires_grad_(False)


def activations(tokens: int, columns: int) -> torch.Tensor:
    """Random ones with a row of zeros and an outlier where there are so many."""
    x = torch.randn(tokens, columns, device="cuda").bfloat16()
    x[1:2] = 0
    x[2:3, 5] = 300
    return x


def assert_right(module: BitLinear, x: torch.Tensor, y: torch.Tensor) -> None:
    pack = pack_of(module.weight, module.sparsity, tuple(module.splits))
    assert isinstance(pack, KernelPack)
    truth = linear(*quantize_activation(x), unpack(pack.packed), pack.packed.w_scale, module.splits, module.bias)
    size = truth.abs() + (0 if module.bias is None else module.bias.double().abs())
    mismatch = compare(y, truth, Tolerance(1, 2.0**-21 * size))
    assert mismatch is None, f"{x.shape[0]} tokens, {module.chosen(x.shape[0], training=False).forward}: {mismatch}"


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "sparsity", "splits"), LAYERS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_number_of_tokens(shape: tuple[int, int], sparsity: str, splits: tuple[int, ...], bias: bool) -> None:
    """In any order, packed once, as a frozen layer, by the operator, in other shapes and places of x, and replayed."""
    module = layer(shape, sparsity, splits, bias)
    frozen = freeze(module)
    for tokens in (*TOKENS, *reversed(TOKENS)):
        x = activations(tokens, shape[1])
        y = module(x)
        assert_right(module, x, y)
        strided = torch.zeros(tokens, shape[1] + 8, device="cuda", dtype=x.dtype)[:, : shape[1]].copy_(x)
        odd = torch.empty(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view(x.shape).copy_(x)
        operator = torch.ops.tersparse.bitlinear_eval(x, module.weight, module.bias, sparsity, module.splits, "")
        for other in (frozen(x), module(strided), module(odd), module(x[None])[0], operator):
            assert torch.equal(other, y)
        if not tokens:
            continue
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = module(x)
        for _ in range(2):
            recorded.zero_()
            graph.replay()
            assert torch.equal(recorded, y)
    assert module.packings == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "sparsity", "splits"), LAYERS)
def test_the_same_bits_whatever_kernel_is_named(shape: tuple[int, int], sparsity: str, splits: tuple[int, ...]) -> None:
    module = layer(shape, sparsity, splits)
    for tokens in TOKENS[1:]:
        x = activations(tokens, shape[1])
        module.variants = ""
        y, names = module(x), []
        for name in FORWARD:
            module.variants = f"{name}+unpack-cublas+dequantize-cublas"
            with contextlib.suppress(UsageError):  # it cannot, and says so
                module.chosen(tokens, training=False)
                names.append(name)
        for name in names:
            module.variants = f"{name}+unpack-cublas+dequantize-cublas"
            assert torch.equal(module(x), y), f"{tokens} tokens, {name}"
        assert "dense-triton" in names


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 200])
def test_a_token_that_is_not_finite(tokens: int) -> None:
    module = layer((136, 264), "2:4", ())
    frozen, x = freeze(module), activations(tokens, 264)
    for one in (module, frozen):
        one(x)
        one.check()
        x[tokens // 2, 7] = torch.nan
        assert one(x).isnan().any(1).sum() == 1
        with pytest.raises(NonFiniteError, match="activation"):
            one.check()
        one.check()
        x[tokens // 2, 7] = 0


@pytest.mark.gpu
def test_a_captured_chain_of_layers_follows_their_weights_and_biases() -> None:
    """As a generation loop is captured: many layers, one graph; `repack` renews in place what it reads."""
    torch.manual_seed(0)
    shapes = [(512, 256), (256, 512)] * 4
    model = nn.Sequential(*(BitLinear(k, n, device="cuda", dtype=torch.bfloat16, sparsity="2:4") for n, k in shapes)).requires_grad_(False)
    x = activations(1, 256)
    model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    for _ in range(2):
        for module in model:
            module.weight.neg_()
            module.bias.mul_(0.5)
            module.repack()
        graph.replay()
        assert torch.equal(y, model(x))
        x.copy_(activations(1, 256))


@pytest.mark.gpu
def test_a_state_dict_reaches_the_fragments_of_a_frozen_layer() -> None:
    first, second = (freeze(layer((256, 512), "2:4", ())) for _ in range(2))
    x = activations(3, 512)
    other = layer((256, 512), "2:4", ())
    other.weight.neg_()
    first(x)
    first.load_state_dict(freeze(other).state_dict())
    assert torch.equal(first(x), other(x))
    assert not torch.equal(first(x), second(x))


@pytest.mark.gpu
def test_another_stream_and_a_new_weight() -> None:
    module, x = layer((1152, 896), "2:4", ()), activations(4, 896)
    for _ in range(3):
        module.weight.neg_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        y = module(x)
        with torch.cuda.stream(side):
            again = module(x)
        torch.cuda.synchronize()
        assert torch.equal(again, y)


@pytest.mark.gpu
def test_compiled_evaluation_follows_eager() -> None:
    module = layer((256, 512), "2:4", ())
    compiled = torch.compile(module, fullgraph=True)
    for tokens in (1, 5, 100):
        x = activations(tokens, 512)
        assert torch.equal(compiled(x), module(x))
