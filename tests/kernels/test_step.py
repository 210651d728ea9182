"""The whole training step: y, dx, dw and what it prepares, judged together; its configs as data; graph capture."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kernels.errors import ShapeError
from kernels.gpu import GPUS, Gpu, by_name, detect
from kernels.inputs import Kind, TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.problem import Problem, Sparsity
from kernels.space import config_to_dict
from kernels.sparse_backward import sparse_step
from kernels.sparse_backward.input_grad import InputGradConfig
from kernels.sparse_backward.step import KERNELS, StepConfig
from kernels.sparse_backward.weight_grad import WeightGradConfig
from kernels.ternary_gemm.dense_config import DenseConfig

A100 = by_name("a100")
ANYWHERE = tuple(kernel for kernel in KERNELS if kernel not in sparse_step.KERNELS)
"""The steps of plain Triton kernels, which the interpreter runs."""


def tiny(kernel: Kernel, case: Problem) -> StepConfig:
    """The kernel's default with tiles that suit the interpreter; a part that is None stays so."""
    config: StepConfig = kernel.default_config(case, A100)
    return dataclasses.replace(
        config,
        gemm=DenseConfig(32, 32, 256, 4, 2, unpack="arith"),
        input_grad=config.input_grad and InputGradConfig(32, 32, 32, 4, 3),
        weight_grad=config.weight_grad and WeightGradConfig(32, 32, 16, 2, 4, 3),
    )


def check(kernel: Kernel, case: Problem, inputs: TrainInputs, config: StepConfig) -> dict[str, torch.Tensor]:
    prepared = kernel.prepare(case, inputs, config)
    poison(prepared)
    outputs = prepared.run()
    mismatch = judge(case, inputs, outputs, kernel)
    assert mismatch is None, f"{kernel}: {mismatch}"
    return {name: value.clone() for name, value in outputs.items()}


@pytest.mark.interpreter
@pytest.mark.parametrize("kernel", ANYWHERE, ids=str)
@pytest.mark.parametrize(
    ("shape", "sparsity", "splits", "kind"),
    [
        ((24, 40, 7), "2:4", (8, 16), "random"),
        ((16, 264, 3), "6:8", (), "outlier"),
        ((8, 24, 0), "2:4", (), "random"),
        ((10, 32, 33), "dense", (), "ties"),
        ((16, 32, 5), "2:4", (), "tiny"),
    ],
)
def test_interpreted(kernel: Kernel, shape: tuple[int, int, int], sparsity: str, splits: tuple[int, ...], kind: Kind) -> None:
    case = Problem("step", *shape, Sparsity.parse(sparsity), splits)
    inputs = make_inputs(case, kind=kind)
    assert isinstance(inputs, TrainInputs)
    outputs = check(kernel, case, inputs, tiny(kernel, case))
    assert {"y", "dx", "dw", "packed", "w_scale", "inv_scale"} <= set(outputs)


@pytest.mark.interpreter
def test_a_step_follows_its_master_weight() -> None:
    """Nothing of the first run survives into the second: the weight is prepared anew each time."""
    case = Problem("step", 16, 32, 6, Sparsity(2, 4))
    first, second = make_inputs(case), make_inputs(case, seed=9)
    assert isinstance(first, TrainInputs)
    assert isinstance(second, TrainInputs)
    prepared = KERNELS[0].prepare(case, first, tiny(KERNELS[0], case))
    prepared.run()
    for name in ("x", "w", "dy"):
        getattr(first, name).copy_(getattr(second, name))
    poison(prepared)
    assert judge(case, second, prepared.run(), KERNELS[0]) is None


def test_bad_weights_are_refused() -> None:
    case = Problem("step", 16, 32, 6, Sparsity(2, 4))
    inputs = make_inputs(case)
    assert isinstance(inputs, TrainInputs)
    with pytest.raises(ShapeError):
        KERNELS[0].prepare(case, dataclasses.replace(inputs, w=inputs.w[:, :31]), tiny(KERNELS[0], case))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("kernel", ANYWHERE, ids=str)
def test_configs_are_plain_data(kernel: Kernel, gpu: Gpu) -> None:
    case = Problem("step", 1152, 896, 4096, Sparsity(2, 4), (896, 128, 128))
    config = kernel.default_config(case, gpu)
    assert kernel.space.from_dict(config_to_dict(config)) == config
    assert (config.input_grad is None) == (kernel.name != "exact-triton")
    assert (config.weight_grad is None) == (kernel.name == "exact-cublas")
    assert len(kernel.compile_units(case, config)) == 3 - (config.input_grad is None) - (config.weight_grad is None)
    assert (kernel.unavailable(case.with_(dtype="fp16"), gpu) is None) == (kernel.name == "exact-triton")


@pytest.mark.parametrize("kernel", sparse_step.KERNELS, ids=str)
def test_sparse_steps_say_where_they_run(kernel: Kernel) -> None:
    case, h200 = Problem("step", 1152, 896, 4096, Sparsity(2, 4), (896, 128, 128)), by_name("h200")
    assert kernel.unavailable(case, h200) is None
    config = kernel.default_config(case, h200)
    assert kernel.space.from_dict(config_to_dict(config)) == config
    assert len(kernel.compile_units(case, config)) == 2
    for refused, reason in ((case.with_(sparsity=Sparsity(6, 8)), "2:4"), (case.with_(dtype="fp16"), "bf16")):
        assert reason in (kernel.unavailable(refused, h200) or "")
    assert "sm_90" in (kernel.unavailable(case, A100) or "")


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("sparsity", "shape"), [("2:4", (1152, 896)), ("6:8", (896, 4864)), ("2:4", (9728, 896))])
@pytest.mark.parametrize("tokens", [1, 63, 1000, 4096])
def test_layers_on_the_device(kernel: Kernel, sparsity: str, shape: tuple[int, int], tokens: int) -> None:
    gpu = detect()
    assert gpu is not None
    case = Problem("step", *shape, tokens, Sparsity.parse(sparsity), {1152: (896, 128, 128), 9728: (4864, 4864)}.get(shape[0], ()))
    if reason := kernel.unavailable(case, gpu):
        pytest.skip(reason)
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, TrainInputs)
    config = kernel.default_config(case, gpu)
    first, second = (check(kernel, case, inputs, config) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
def test_sparse_steps_agree_bit_for_bit() -> None:
    """y with the dense kernel's, dx and dw with the workspaces', whatever is saved between the passes."""
    gpu = detect()
    assert gpu is not None
    case = Problem("step", 1152, 896, 1000, Sparsity(2, 4), (896, 128, 128))
    if reason := sparse_step.KERNELS[0].unavailable(case, gpu):
        pytest.skip(reason)
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, TrainInputs)
    expected = check(KERNELS[1], case, inputs, KERNELS[1].default_config(case, gpu))
    for kernel in sparse_step.KERNELS:
        found = check(kernel, case, inputs, kernel.default_config(case, gpu))
        assert all(torch.equal(found[name], expected[name]) for name in ("y", "dx", "dw", "w_scale", "inv_scale"))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_captured_step_gives_the_same(kernel: Kernel) -> None:
    gpu = detect()
    assert gpu is not None
    case = Problem("step", 1152, 896, 1000, Sparsity(2, 4), (896, 128, 128))
    if reason := kernel.unavailable(case, gpu):
        pytest.skip(reason)
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, TrainInputs)
    config = kernel.default_config(case, gpu)
    expected = check(kernel, case, inputs, config)
    prepared = kernel.prepare(case, inputs, config)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        prepared.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = prepared.run()
    poison(prepared)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)
