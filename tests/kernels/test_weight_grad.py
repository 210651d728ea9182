"""Dense dW from the saved int8 activations: against the reference, its determinism, its machine code, its configs."""

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
from kernels.problem import Problem, Sparsity
from kernels.space import Config
from kernels.sparse_backward.weight_grad import KERNELS, SPACE, WeightGradConfig, default_config, launch_bias_grad, launch_weight_grad
from reference.linear import bias_grad

CONVERT_DOT, DEQUANTIZE = KERNELS
TINY = WeightGradConfig(32, 32, 16, 1, 4, 3, group=2)
LAYERS = ((1152, 896), (896, 4864), (9728, 896))


def problem(shape: tuple[int, int, int], dtype: str = "bf16") -> Problem:
    return Problem("weight-grad", *shape[:2], shape[2], Sparsity.parse("2:4"), dtype=dtype)  # type: ignore[arg-type]  # a literal


def train_inputs(case: Problem, device: str = "cpu", kind: Kind = "random") -> TrainInputs:
    inputs = make_inputs(case, device, kind=kind)
    assert isinstance(inputs, TrainInputs)
    return inputs


def check(kernel: Kernel, case: Problem, inputs: TrainInputs, config: Config) -> torch.Tensor:
    prepared = kernel.prepare(case, inputs, config)
    poison(prepared)
    outputs = prepared.run()
    assert judge(case, inputs, outputs, kernel) is None
    return outputs["dw"].clone()


@pytest.mark.interpreter
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("shape", "dtype"), [((40, 44, 7), "bf16"), ((33, 136, 50), "fp16"), ((5, 8, 0), "bf16"), ((64, 32, 97), "bf16")])
def test_awkward_shapes(kernel: Kernel, shape: tuple[int, int, int], dtype: str, parts: int) -> None:
    case = problem(shape, dtype)
    check(kernel, case, train_inputs(case), dataclasses.replace(TINY, parts=parts))


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", KINDS)
def test_awkward_values(kind: Kind) -> None:
    case = problem((40, 44, 35))
    check(CONVERT_DOT, case, train_inputs(case, kind=kind), dataclasses.replace(TINY, parts=2))


@pytest.mark.interpreter
def test_masked_positions_get_their_gradient() -> None:
    case = problem((16, 32, 20))
    inputs = train_inputs(case)
    dw = check(CONVERT_DOT, case, inputs, TINY)
    assert (dw[inputs.w_ternary == 0] != 0).float().mean() > 0.9


@pytest.mark.interpreter
@pytest.mark.parametrize("tokens", [0, 1, 100, 1500])
def test_bias_gradient(tokens: int) -> None:
    dy = torch.randn(tokens, 45, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    out = torch.full((45,), float("nan"))
    launch_bias_grad(dy, out)
    roundings = 8 * max(1, tokens) ** 0.5 * 2.0**-24  # of float32 additions, which are a random walk: eight deviations
    assert ((out.double() - bias_grad(dy)).abs() <= roundings * dy.double().abs().sum(0)).all()


@pytest.mark.parametrize("kind", ["x_q", "x_scale", "dw"])
def test_bad_operands_are_refused_before_launch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    inputs, dw = train_inputs(problem((32, 72, 6))), torch.empty(32, 72, dtype=torch.bfloat16)
    x_q = inputs.x_q.float() if kind == "x_q" else inputs.x_q
    x_scale = inputs.x_scale.double() if kind == "x_scale" else inputs.x_scale
    with pytest.raises(ShapeError, match=kind):
        launch_weight_grad(inputs.dy, x_q, x_scale, dw[:, :71] if kind == "dw" else dw, None, TINY)


@pytest.mark.parametrize("shape", [None, (3, 32, 72), (2, 32, 71)])
def test_parts_need_their_workspace(shape: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    inputs, dw = train_inputs(problem((32, 72, 6))), torch.empty(32, 72, dtype=torch.bfloat16)
    parts = None if shape is None else torch.empty(shape)
    with pytest.raises(ShapeError, match="2 parts"):
        launch_weight_grad(inputs.dy, inputs.x_q, inputs.x_scale, dw, parts, dataclasses.replace(TINY, parts=2))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("tokens", [1, 1000, 4096, 16384])
def test_spaces_are_small_and_hold_the_default(gpu: Gpu, tokens: int) -> None:
    for shape in (*LAYERS, (896, 896), (37888, 3584)):
        case = problem((*shape, tokens))
        allowed = list(SPACE.allowed(case, gpu))
        assert 1 <= len(allowed) <= 16
        assert default_config(case, gpu) in allowed


@pytest.mark.compile
@pytest.mark.parametrize("name", ["a100", "h200", "b200"])
def test_machine_code(name: str) -> None:
    gpu, case = by_name(name), problem((4608, 3584, 4096))
    (unit,) = CONVERT_DOT.compile_units(case, default_config(case, gpu))
    compiled = compile_unit(unit, gpu)
    assert isinstance(compiled, Compiled)
    assert compiled.spills == 0
    expected = unit.expects[max(capability for capability in unit.expects if capability <= gpu.capability)]
    assert compiled.instructions.get(expected, 0) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 63, 1000, 4096])
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layers_on_the_device(kernel: Kernel, tokens: int, shape: tuple[int, int]) -> None:
    case = problem((*shape, tokens))
    inputs = train_inputs(case, "cuda")
    config = default_config(case, by_name("h200" if torch.cuda.get_device_capability()[0] == 9 else "a100"))
    assert torch.equal(check(kernel, case, inputs, config), check(kernel, case, inputs, config))


@pytest.mark.gpu
def test_every_config_on_the_device() -> None:
    gpu = detect()
    assert gpu is not None
    case = problem((1000, 840, 4099))
    inputs = train_inputs(case, "cuda")
    for config in SPACE.allowed(case, gpu):
        check(CONVERT_DOT, case, inputs, config)
