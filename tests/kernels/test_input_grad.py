"""dX from packed weights: against the reference and float64 autograd, its machine code, its configs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import GPUS, Gpu, by_name, detect
from kernels.inputs import KINDS, Kind, TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.packed import pack
from kernels.problem import Problem, Sparsity
from kernels.space import Config
from kernels.sparse_backward.input_grad import (
    KERNELS,
    SPACE,
    InputGradConfig,
    default_config,
    launch_input_grad,
    launch_unpack,
    unavailable,
)
from kernels.sparse_backward.weight_grad import default_config as weight_default
from kernels.sparse_backward.weight_grad import launch_bias_grad, launch_weight_grad
from reference.linear import bias_grad

UNPACK_DOT, UNPACK_CUBLAS = KERNELS
TINY = InputGradConfig(32, 32, 32, 4, 3, group=2)
LAYERS = (("2:4", 1152, 896, (896, 128, 128)), ("6:8", 896, 4864, ()), ("2:4", 9728, 896, (4864, 4864)))


def problem(shape: tuple[int, int, int], sparsity: str = "2:4", splits: tuple[int, ...] = (), dtype: str = "bf16") -> Problem:
    return Problem("input-grad", *shape[:2], shape[2], Sparsity.parse(sparsity), splits, dtype)  # type: ignore[arg-type]  # a literal


def train_inputs(case: Problem, device: str = "cpu", kind: Kind = "random") -> TrainInputs:
    """Inputs whose splits have scales far apart, so that a scale at the wrong place is seen."""
    inputs = make_inputs(case, device, kind=kind)
    assert isinstance(inputs, TrainInputs)
    spread = torch.logspace(-2, 0.5, len(case.splits), device=device)
    return dataclasses.replace(inputs, w_scale=inputs.w_scale * spread)


def check(kernel: Kernel, case: Problem, inputs: TrainInputs, config: Config) -> torch.Tensor:
    prepared = kernel.prepare(case, inputs, config)
    poison(prepared)
    outputs = prepared.run()
    assert judge(case, inputs, outputs, kernel) is None
    return outputs["dx"].clone()


@pytest.mark.interpreter
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(
    ("shape", "sparsity", "splits", "dtype"),
    [
        ((48, 40, 7), "2:4", (20, 20, 8), "bf16"),
        ((64, 264, 33), "6:8", (), "bf16"),
        ((96, 300, 1), "dense", (32, 64), "bf16"),
        ((70, 516, 63), "4:6", (33, 37), "fp16"),
        ((5, 8, 0), "2:4", (), "bf16"),
        ((64, 512, 40), "2:4", (64,), "fp16"),
    ],
)
def test_awkward_shapes(kernel: Kernel, shape: tuple[int, int, int], sparsity: str, splits: tuple[int, ...], dtype: str) -> None:
    case = problem(shape, sparsity, splits, dtype)
    check(kernel, case, train_inputs(case), TINY)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", KINDS)
def test_awkward_values(kind: Kind) -> None:
    case = problem((48, 264, 9), "2:4", (16, 32))
    for config in (TINY, InputGradConfig(32, 64, 64, 4, 3)):
        check(UNPACK_DOT, case, train_inputs(case, kind=kind), config)


@pytest.mark.interpreter
def test_gradients_are_those_of_the_straight_through_graph() -> None:
    """Float64 autograd of y = (x + (x̂ − x)·stop) · (w + (ŵ − w)·stop)ᵀ + bias."""
    case = problem((24, 64, 10), "2:4", (8, 16))
    inputs = train_inputs(case)
    x, w = inputs.x.double().requires_grad_(), inputs.w.double().requires_grad_()
    bias = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    x_hat = inputs.x_q.double() * inputs.x_scale.double()[:, None]
    w_hat = inputs.w_ternary.double() * torch.repeat_interleave(inputs.w_scale.double(), torch.tensor(case.splits))[:, None]
    y = (x + (x_hat - x).detach()) @ (w + (w_hat - w).detach()).t() + bias
    y.backward(inputs.dy.double())
    dx, dw, db = torch.empty_like(inputs.x), torch.empty_like(inputs.w), torch.empty(24)
    gpu = by_name("a100")
    launch_input_grad(inputs.dy, pack(inputs.w_ternary, inputs.w_scale, case.splits, case.sparsity), dx, TINY)
    launch_weight_grad(inputs.dy, inputs.x_q, inputs.x_scale, dw, None, weight_default(case, gpu))
    launch_bias_grad(inputs.dy, db)
    for actual, expected in ((dx, x.grad), (dw, w.grad), (db, bias.grad)):
        assert expected is not None
        torch.testing.assert_close(actual.double(), expected, rtol=2**-6, atol=2**-7 * float(expected.abs().max()))
    torch.testing.assert_close(db.double(), bias_grad(inputs.dy), rtol=1e-6, atol=1e-6)
    assert (dw[(inputs.w_ternary == 0)] != 0).any()


@pytest.mark.interpreter
def test_rows_may_be_strided_and_scales_nan() -> None:
    case = problem((32, 72, 6))
    inputs = train_inputs(case)
    packed = pack(inputs.w_ternary, inputs.w_scale, case.splits, case.sparsity)
    plain, strided = torch.empty(6, 72, dtype=torch.bfloat16), torch.full((6, 100), 7.0, dtype=torch.bfloat16)
    wide = torch.zeros(6, 50, dtype=torch.bfloat16)
    wide[:, :32] = inputs.dy
    launch_input_grad(inputs.dy, packed, plain, TINY)
    launch_input_grad(wide[:, :32], packed, strided[:, :72], TINY)
    assert torch.equal(plain, strided[:, :72])
    assert (strided[:, 72:] == 7).all()
    launch_input_grad(inputs.dy, dataclasses.replace(packed, w_scale=torch.tensor([float("nan")])), plain, TINY)
    assert plain.isnan().all()


@pytest.mark.parametrize("kind", ["shape", "dtype", "stride"])
def test_bad_gradients_are_refused_before_launch(kind: str) -> None:
    case = problem((32, 72, 6))
    inputs = train_inputs(case)
    packed = pack(inputs.w_ternary, inputs.w_scale, case.splits, case.sparsity)
    dx = torch.empty(6, 72, dtype=torch.bfloat16)
    bad = {"shape": inputs.dy[:, :31], "dtype": inputs.dy.float(), "stride": inputs.dy.repeat(1, 2)[:, ::2]}[kind]
    with pytest.raises(ShapeError, match="dy"):
        launch_input_grad(bad, packed, dx, TINY)
    with pytest.raises(ShapeError, match="out"):
        launch_unpack(packed, torch.empty(32, 71, dtype=torch.bfloat16))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("tokens", [1, 63, 4096])
def test_spaces_are_small_and_hold_the_default(gpu: Gpu, tokens: int) -> None:
    for sparsity, out_features, in_features, splits in LAYERS:
        case = problem((out_features, in_features, tokens), sparsity, splits)
        allowed = list(SPACE.allowed(case, gpu))
        assert 1 <= len(allowed) <= 16
        assert default_config(case, gpu) in allowed
        assert unavailable(case, gpu) is None
        assert unavailable(case.with_(dtype="fp32"), gpu) is not None


@pytest.mark.compile
@pytest.mark.parametrize("name", ["a100", "h200", "b200"])
@pytest.mark.parametrize("tokens", [32, 4096])
def test_machine_code(name: str, tokens: int) -> None:
    gpu = by_name(name)
    case = problem((4608, 3584, tokens), "2:4", (3584, 512, 512))
    (unit,) = UNPACK_DOT.compile_units(case, default_config(case, gpu))
    compiled = compile_unit(unit, gpu)
    assert isinstance(compiled, Compiled)
    assert compiled.spills == 0
    expected = unit.expects[max(capability for capability in unit.expects if capability <= gpu.capability)]
    assert compiled.instructions.get(expected, 0) > 0
    assert compiled.shared_bytes <= gpu.shared_bytes


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 63, 1000, 4096])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_on_the_device(kernel: Kernel, tokens: int, layer: tuple[str, int, int, tuple[int, ...]]) -> None:
    sparsity, out_features, in_features, splits = layer
    case = problem((out_features, in_features, tokens), sparsity, splits)
    inputs = train_inputs(case, "cuda")
    config = default_config(case, by_name("h200" if torch.cuda.get_device_capability()[0] == 9 else "a100"))
    assert torch.equal(check(kernel, case, inputs, config), check(kernel, case, inputs, config))


@pytest.mark.gpu
def test_every_config_on_the_device() -> None:
    gpu = detect()
    assert gpu is not None
    for tokens in (7, 300):
        case = problem((1000, 840, tokens), "2:4", (600, 296, 104))
        inputs = train_inputs(case, "cuda")
        for config in SPACE.allowed(case, gpu):
            check(UNPACK_DOT, case, inputs, config)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    case = problem((16, 1 << 15, (1 << 16) + 5))
    inputs = train_inputs(case, "cuda")
    check(UNPACK_DOT, case, inputs, default_config(case, by_name("h200")))
