"""8-bit gradients one at a time: dW in the interpreter and on a GPU, dX for a layer with the Hopper GEMM replaced."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.bitlinear import BitLinear
from kernels.errors import UsageError
from kernels.gpu import by_name, detect
from kernels.inputs import TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.packed import pack
from kernels.problem import Problem, Sparsity
from kernels.space import config_to_dict
from kernels.sparse_backward import weight_grad_gemm
from kernels.sparse_backward.eight_bit_layer import KERNELS, Int8WeightGradConfig, layer_input_grad, layer_weight_grad
from kernels.ternary_gemm.dense_config import DenseConfig
from tests.kernels.plain_hopper import without_hopper

H200 = by_name("h200")
HALF = Sparsity(2, 4)
(KERNEL,) = KERNELS
TINY = Int8WeightGradConfig(DenseConfig(64, 64, 64, 4, 2, unpack="arith"))


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", [(24, 40, 7), (36, 68, 70), (8, 32, 0)])
@pytest.mark.parametrize("stochastic", [False, True])
def test_interpreted_weight_grad(shape: tuple[int, int, int], stochastic: bool) -> None:
    case = Problem("weight-grad", *shape, HALF)
    inputs = make_inputs(case, kind="outlier")
    prepared = KERNEL.prepare(case, inputs, dataclasses.replace(TINY, stochastic=stochastic))
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), KERNEL)
    assert mismatch is None, str(mismatch)


@pytest.mark.interpreter
def test_interpreted_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both gradients of a layer, dW in float32: what a float32 master wants."""
    without_hopper(monkeypatch)
    monkeypatch.setattr(weight_grad_gemm, "default_config", lambda problem, gpu: TINY.gemm)
    case = Problem("step", 24, 40, 9, HALF, (8, 16))
    inputs = make_inputs(case)
    assert isinstance(inputs, TrainInputs)
    packed = pack(inputs.w_ternary, inputs.w_scale, case.splits, HALF)
    dx = layer_input_grad(case, H200, inputs.dy, packed)
    dw = layer_weight_grad(case, H200, inputs.dy, inputs.x_q, inputs.x_scale, torch.float32)
    assert dw.dtype == torch.float32
    for gradient, op in ((dx, "dx"), (dw, "dw")):
        part = case.with_(op="input-grad" if op == "dx" else "weight-grad")
        mismatch = judge(part, inputs, {op: gradient}, KERNEL)
        assert mismatch is None, str(mismatch)
    assert layer_input_grad(case.with_(tokens=0), H200, inputs.dy[:0], packed).shape == (0, 40)
    with pytest.raises(UsageError, match="sm_90"):
        layer_input_grad(case, by_name("a100"), inputs.dy, packed)


def test_configs_are_plain_data() -> None:
    case = Problem("weight-grad", 2048, 11008, 16384, HALF)
    for gpu in (H200, by_name("a100")):
        config = KERNEL.default_config(case, gpu)
        assert KERNEL.space.from_dict(config_to_dict(config)) == config
        assert KERNEL.unavailable(case, gpu) is None
    assert "int32" in (KERNEL.unavailable(case.with_(tokens=200_000), H200) or "")


@pytest.mark.compile
def test_compiles_without_spills() -> None:
    case = Problem("weight-grad", 4608, 3584, 16384, HALF)
    for unit in KERNEL.compile_units(case, KERNEL.default_config(case, H200)):
        found = compile_unit(unit, H200)
        assert isinstance(found, Compiled), found
        assert found.spills == 0, unit.function


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 63, 1000, 4096])
@pytest.mark.parametrize("shape", [(1152, 896), (2052, 516)], ids=str)
def test_on_a_gpu(shape: tuple[int, int], tokens: int) -> None:
    gpu = detect()
    assert gpu is not None
    case = Problem("weight-grad", *shape, tokens, HALF)
    inputs = make_inputs(case, "cuda")
    prepared = KERNEL.prepare(case, inputs, KERNEL.default_config(case, gpu))
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), KERNEL)
    assert mismatch is None, str(mismatch)


@pytest.mark.interpreter
def test_interpreted_module_with_an_8_bit_weight_gradient() -> None:
    """A layer that names it trains: the gradient is the exact one's but for the rounding of dY."""
    grads = []
    for name in ("convert-dot", "int8-triton"):
        generator = torch.Generator().manual_seed(3)
        layer = BitLinear(32, 16, bias=False, dtype=torch.bfloat16, sparsity="2:4", variants=f"dense-triton+unpack-dot+{name}")
        with torch.no_grad():
            layer.weight.copy_(torch.randn(16, 32, generator=generator))
        layer(torch.randn(20, 32, generator=generator).bfloat16()).backward(torch.randn(20, 16, generator=generator).bfloat16())
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.double())
    exact, rounded = grads
    assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()


@pytest.mark.interpreter
def test_a_layers_weight_gradient_copies_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a copy waits for the device, and a CUDA graph cannot capture it."""
    monkeypatch.setattr(weight_grad_gemm, "default_config", lambda problem, gpu: TINY.gemm)
    case = Problem("step", 24, 40, 9, HALF)
    inputs = make_inputs(case)
    assert isinstance(inputs, TrainInputs)
    made: list[object] = []
    with monkeypatch.context() as patch:
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, lambda *values, **options: made.append(values))
        dw = layer_weight_grad(case, H200, inputs.dy, inputs.x_q, inputs.x_scale, torch.bfloat16)
    assert not made
    assert dw.shape == (24, 40)


@pytest.mark.gpu
@pytest.mark.parametrize("input_grad", ["unpack-cublas", "int8-wgmma"])
def test_a_captured_step_gives_the_same_gradients(input_grad: str) -> None:
    gpu = detect()
    assert gpu is not None
    if input_grad == "int8-wgmma" and gpu.capability != 90:
        pytest.skip("needs sm_90")
    torch.manual_seed(0)
    layer = BitLinear(256, 512, device="cuda", dtype=torch.bfloat16, sparsity="2:4", variants=f"dense-triton+{input_grad}+int8-triton")
    x = torch.randn(100, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(100, 512, device="cuda", dtype=torch.bfloat16)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(layer(x), (x, layer.weight), dy))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        eager = gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))
