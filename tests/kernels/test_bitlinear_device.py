"""BitLinear through the kernels: in Triton's interpreter on small layers; on a GPU also compiled, captured, and on layer shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from triton.runtime.jit import JITFunction

from kernels.bitlinear import BitLinear, check, freeze
from kernels.bitlinear.pack import Fragments, KernelPack
from kernels.bitlinear.packs import frozen_pack_of, pack_of
from kernels.bounds import BOUNDS, bounded
from kernels.errors import NonFiniteError, UsageError
from kernels.packed import pack
from kernels.problem import Sparsity
from kernels.ternary_gemm.sparse_wgmma import dense_fragment_weight, fragment_weight
from reference.compare import Tolerance, compare, ulp
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask
from tests.kernels.straight_through import gradients

FUSED = "dense-triton+unpack-dot+convert-dot"
WORKSPACE = "dense-triton+unpack-cublas+dequantize-cublas"


def assert_exact(module: BitLinear, x: torch.Tensor, dy: torch.Tensor) -> None:
    """y within an ulp, dx and dw within the bound that exact gradients are held to, of the float64 straight-through graph."""
    x = x.requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(dy)
    truth = gradients(x, module.weight, module.bias, dy, module.sparsity, module.splits)
    size = truth["y"].abs() + (0 if module.bias is None else module.bias.detach().double().abs())
    mismatch = compare(y.detach(), truth["y"], Tolerance(1, 2.0**-21 * size))
    assert mismatch is None, f"y: {mismatch}"
    assert module.weight.grad is not None
    for name, actual, terms in (("dx", x.grad, dy.shape[1]), ("dw", module.weight.grad, dy.shape[0])):
        assert actual is not None
        share = BOUNDS["gradient"].share(terms)
        # Products of dy with both operands are bounded by their largest size: the sum of squares from above.
        other = truth["y"].new_tensor(float(module.weight.detach().abs().mean()) if name == "dx" else float(x.detach().abs().max()))
        squares = dy.double().square().sum(1 if name == "dx" else 0)[:, None] * other.square() * 1.1
        limit = bounded(truth[name], squares.expand(truth[name].shape), share, torch.zeros_like(truth[name]), truth[name], actual.dtype)
        mismatch = compare(actual, truth[name], limit)
        assert mismatch is None, f"{name}: {mismatch}"
    if module.bias is not None and module.bias.grad is not None:
        size = dy.double().abs().sum(0) * 2.0**-20 + ulp(truth["db"], module.bias.dtype)
        assert compare(module.bias.grad, truth["db"], Tolerance(0, size)) is None


def made(shape: tuple[int, int], sparsity: str, splits: tuple[int, ...], dtype: torch.dtype, device: str, variants: str) -> BitLinear:
    torch.manual_seed(0)
    return BitLinear(shape[1], shape[0], device=device, dtype=dtype, sparsity=sparsity, splits=splits, variants=variants)


@pytest.mark.interpreter
@pytest.mark.parametrize("variants", [WORKSPACE, FUSED])
@pytest.mark.parametrize(("shape", "sparsity", "splits"), [((24, 72), "6:8", (8, 16)), ((16, 40), "2:4", ()), ((16, 33), "dense", ())])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_interpreted(variants: str, shape: tuple[int, int], sparsity: str, splits: tuple[int, ...], dtype: torch.dtype) -> None:
    module = made(shape, sparsity, splits, dtype, "cpu", variants)
    assert_exact(module, torch.randn(5, shape[1]).bfloat16(), torch.randn(5, shape[0]).bfloat16())
    assert module.packings == 1
    x = torch.randn(3, shape[1]).bfloat16()
    with torch.no_grad():
        assert torch.equal(freeze(module)(x), module(x))
        module.weight.neg_()
        assert torch.equal(module(x), copy.deepcopy(module)(x))
    assert module.packings == 2


@pytest.mark.interpreter
def test_interpreted_flags() -> None:
    module = made((16, 40), "2:4", (8, 8), torch.bfloat16, "cpu", WORKSPACE)
    x = torch.randn(4, 40).bfloat16()
    x[2, 7] = torch.inf
    with torch.no_grad():
        assert module(x)[2].isnan().all()
    with pytest.raises(NonFiniteError, match="activation"):
        module.check()
    clean, dy = torch.randn(4, 40).bfloat16().requires_grad_(), torch.randn(4, 16).bfloat16()
    dy[1, 3] = torch.nan
    module(clean).backward(dy)
    module.zero_grad()
    with pytest.raises(NonFiniteError, match="gradient"):
        module.check()
    module.check()


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("kind", "sparsity"), [("sparse", "2:4"), ("dense", "2:4"), ("dense", "dense"), ("dense", "6:8")])
def test_interpreted_fragments_follow_the_weight(kind: Fragments, sparsity: str, dtype: torch.dtype) -> None:
    """The layout of tensor cores is made when it is asked for, and again with every change of the weight."""
    weight = torch.nn.Parameter(torch.randn(70, 136).to(dtype))
    key = parsed, splits = Sparsity.parse(sparsity), (6, 64)
    plain = pack_of(weight, *key)
    assert isinstance(plain, KernelPack)
    assert not plain.fragments
    for count in (2, 3):
        pack = pack_of(weight, *key, fragments=kind)
        assert pack is plain
        assert pack.count == count
        ternary, w_scale = ternary_quantize(weight.detach(), splits)
        values = (ternary * nm_mask(weight.detach(), parsed.n, parsed.m), w_scale, splits)
        expected = fragment_weight(*values, parsed) if kind == "sparse" else dense_fragment_weight(*values)
        assert torch.equal(plain.fragments[kind].blocks, expected.blocks)
        torch.testing.assert_close(plain.fragments[kind].row_scale, expected.row_scale)
        assert plain.fragments[kind].sparse == expected.sparse
        frozen = frozen_pack_of(plain.packed.data.clone(), plain.packed.w_scale, splits, 136, parsed, fragments=kind)
        assert isinstance(frozen, KernelPack)
        assert torch.equal(frozen.fragments[kind].blocks, expected.blocks)
        for one in (plain, frozen):
            assert one.no_bias.shape == expected.row_scale.shape
            assert not one.no_bias.any()
        with torch.no_grad():
            weight.mul_(-0.5)


@pytest.mark.interpreter
def test_interpreted_fragments_of_a_packed_weight_follow_its_bytes() -> None:
    """A state_dict that is loaded changes bytes and scales in place; what was made of them changes in place too, for captured graphs."""
    ternary = (torch.randn(2, 70, 136).sign() * (torch.arange(136) % 4 < 2)).to(torch.int8)
    first, second = (pack(one, torch.rand(1), (70,), Sparsity.parse("2:4")) for one in ternary)
    data, w_scale = first.data.clone(), first.w_scale.clone()
    before = frozen_pack_of(data, w_scale, (70,), 136, first.sparsity, "sparse")
    assert isinstance(before, KernelPack)
    addresses = before.addresses("sparse")
    data.copy_(second.data)
    w_scale.copy_(second.w_scale)
    after = frozen_pack_of(data, w_scale, (70,), 136, first.sparsity, "sparse")
    assert after is before
    expected = fragment_weight(ternary[1], second.w_scale, (70,), first.sparsity)
    assert torch.equal(before.fragments["sparse"].blocks, expected.blocks)
    assert torch.equal(before.fragments["sparse"].row_scale, expected.row_scale)
    made = before.fragments["sparse"]
    assert addresses == before.addresses("sparse") == (made.blocks.data_ptr(), made.row_scale.data_ptr(), before.flags.data_ptr())


@pytest.mark.interpreter
def test_interpreted_biases_follow_whatever_changes_them() -> None:
    module, x = made((16, 40), "2:4", (), torch.bfloat16, "cpu", ""), torch.randn(3, 40).bfloat16()
    optimizer = torch.optim.AdamW([module.bias], 0.5, fused=True)
    module.weight.requires_grad_(False)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(module(x), copy.deepcopy(module)(x))
            module.bias.neg_()
            assert torch.equal(module(x), copy.deepcopy(module)(x))
        module(x).sum().backward()
        optimizer.step()  # which leaves the version of the bias as it is
        with torch.no_grad():
            assert torch.equal(module(x), copy.deepcopy(module)(x))
            module.bias.data.mul_(2)  # leaves no trace either
            module.repack()
            assert torch.equal(module(x), copy.deepcopy(module)(x))
        optimizer.zero_grad()
    assert module.bias.grad is None
    gathered = torch.nn.Parameter(module.bias.detach().clone())
    module.bias = gathered
    with torch.no_grad():
        module(x)
        with torch.autograd._unsafe_preserve_version_counter(gathered):
            gathered.neg_()
        module.bias = gathered  # as FSDP does after it has gathered it anew
        assert torch.equal(module(x), copy.deepcopy(module)(x))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 63, 1000])
@pytest.mark.parametrize("shape", [(1152, 896), (136, 264), (2048, 11008)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("forward", "sparsity"), [("sparse-wgmma", "2:4"), ("dense-wgmma", "dense"), ("dense-wgmma", "6:8")])
def test_wgmma_forward(forward: str, sparsity: str, shape: tuple[int, int], tokens: int, dtype: torch.dtype) -> None:
    splits = (896, 128, 128) if shape[0] == 1152 else ()
    module = made(shape, sparsity, splits, dtype, "cuda", f"{forward}+unpack-cublas+dequantize-cublas")
    if torch.cuda.get_device_capability() != (9, 0):
        with pytest.raises(UsageError, match="was named and cannot"):
            module.chosen(tokens)
        return
    x, dy = torch.randn(tokens, shape[1], device="cuda").bfloat16(), torch.randn(tokens, shape[0], device="cuda").bfloat16()
    for _ in range(2):
        assert_exact(module, x.detach().clone(), dy)
        with torch.no_grad():
            dense = made(shape, sparsity, splits, dtype, "cuda", WORKSPACE)
            dense.load_state_dict(module.state_dict())
            assert torch.equal(freeze(module)(x), module(x))
            torch.testing.assert_close(module(x), dense(x))
            module.weight.mul_(-0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("variants", [WORKSPACE, FUSED])
@pytest.mark.parametrize(
    ("shape", "sparsity", "splits"), [((1152, 896), "2:4", (896, 128, 128)), ((896, 4864), "6:8", ()), ((136, 264), "dense", ())]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 63, 1000])
def test_layers(variants: str, shape: tuple[int, int], sparsity: str, splits: tuple[int, ...], dtype: torch.dtype, tokens: int) -> None:
    module = made(shape, sparsity, splits, dtype, "cuda", variants)
    x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
    dy = torch.randn(tokens, shape[0], device="cuda").bfloat16()
    assert_exact(module, x, dy)
    first = [x.grad, module.weight.grad]
    x.grad = None
    assert_exact(module, x.detach(), dy)
    assert all(torch.equal(a, b) for a, b in zip(first[1:], [module.weight.grad], strict=True))


@pytest.mark.gpu
def test_float32_activations_keep_their_precision() -> None:
    module = made((96, 256), "2:4", (), torch.float32, "cuda", "")
    assert_exact(module, torch.randn(33, 256, device="cuda"), torch.randn(33, 96, device="cuda"))


def stack(device: str = "cuda") -> nn.Sequential:
    torch.manual_seed(0)
    layers = [BitLinear(256, 512, sparsity="2:4"), nn.ReLU(), BitLinear(512, 256, sparsity="6:8", splits=(128, 128))]
    return nn.Sequential(*layers).to(device)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_follows_eager(mode: str) -> None:
    model, eager = stack(), stack()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    optimizers = [torch.optim.SGD(one.parameters(), 0.05, foreach=False) for one in (model, eager)]
    for step in range(6):
        x = torch.randn(100, 256, device="cuda", generator=torch.Generator("cuda").manual_seed(step))
        for one in (compiled, eager):
            with torch.autocast("cuda", torch.bfloat16):
                y = one(x)
            y.float().square().mean().backward()
        for a, b in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=1e-5)
            b.grad.copy_(a.grad)  # one trajectory: a ternary weight on the edge flips with the last bit
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    check(model)


@pytest.mark.gpu
def test_a_captured_step_follows_its_optimizer() -> None:
    """Forward, backward and optimizer in one CUDA graph: every replay packs the weight as the replay before left it."""
    model, eager = stack(), stack()
    x = torch.randn(64, 256, device="cuda").bfloat16()

    def step(one: nn.Module) -> None:
        one.zero_grad(set_to_none=False)
        one(x).float().square().mean().backward()
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.sub_(0.05 * parameter.grad)

    for one in (model, eager):
        for parameter in one.parameters():
            parameter.grad = torch.zeros_like(parameter)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(model)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model)
    for _ in range(3):
        graph.replay()
    for _ in range(5):
        step(eager)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True))


@pytest.mark.gpu
def test_a_captured_forward_follows_a_repack() -> None:
    module = made((512, 256), "2:4", (), torch.float32, "cuda", "")
    x = torch.randn(16, 256, device="cuda").bfloat16()
    fresh = made((512, 256), "2:4", (), torch.float32, "cuda", "")
    with torch.no_grad():
        with pytest.raises(UsageError, match="before it has a pack"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            fresh(x)
        module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        module.weight.neg_()
        module.repack()
        graph.replay()
        assert torch.equal(y, copy.deepcopy(module)(x))


@pytest.mark.gpu
def test_nothing_synchronizes_once_packed() -> None:
    model, x = stack(), torch.randn(64, 256, device="cuda", requires_grad=True)
    model(x).sum().backward()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", ["2:4", "dense"])
def test_what_was_launched_once_goes_straight_to_its_machine_code(sparsity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = made((1152, 896), sparsity, (896, 128, 128), torch.bfloat16, "cuda", "")
    x, dy = torch.randn(64, 896, device="cuda").bfloat16().requires_grad_(), torch.randn(64, 1152, device="cuda").bfloat16()
    by_triton: list[str] = []
    own: Any = JITFunction.run

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        by_triton.append(self.fn.__name__)
        return own(self, *arguments, **options)

    for step in range(4):
        module(x).backward(dy)
        with torch.no_grad():
            module.weight.neg_()
        if step == 1:
            monkeypatch.setattr(JITFunction, "run", run)
    assert module.packings == 4
    assert set(by_triton) <= {"dense_gemm"}  # the forward kernel of other GPUs than Hopper's


@pytest.mark.gpu
def test_saved_activations_take_half() -> None:
    module = BitLinear(4096, 512, device="cuda", dtype=torch.bfloat16, sparsity="2:4", bias=False)
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    module(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = module(x)
    kept = torch.cuda.memory_allocated() - before - y.nbytes
    assert kept <= 0.51 * x.nbytes


@pytest.mark.gpu
def test_another_stream_waits_for_the_pack() -> None:
    module = BitLinear(8192, 8192, device="cuda", dtype=torch.bfloat16, sparsity="2:4", bias=False)
    x = torch.randn(4, 8192, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        module(x)
        for _ in range(5):
            module.weight.neg_()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            module(x)
            with torch.cuda.stream(side):
                y = module(x)
            torch.cuda.synchronize()
            assert torch.equal(y, module(x))


@pytest.mark.gpu
def test_a_layer_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    here, there = (made((136, 264), "2:4", (), torch.bfloat16, device, "") for device in ("cuda:0", "cuda:1"))
    there.load_state_dict(here.state_dict())
    x = torch.randn(33, 264, device="cuda:0").bfloat16()
    with torch.no_grad():
        for module in (here, there):
            module(x.to(module.weight.device))
            module.weight.neg_()
            module.repack()
        assert torch.equal(there(x.to("cuda:1")).to("cuda:0"), here(x))
        assert torch.equal(freeze(there)(x.to("cuda:1")).to("cuda:0"), here(x))
