"""Steps with 8-bit gradients: everything but the Hopper GEMMs in the interpreter, all of it on a GPU, judged like any other step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name, detect
from kernels.inputs import Kind, TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.problem import Problem, Sparsity
from kernels.space import config_to_dict
from kernels.sparse_backward.eight_bit_step import KERNELS, MOST_TOKENS, EightBitConfig
from kernels.ternary_gemm.dense_config import DenseConfig
from tests.kernels.plain_hopper import without_hopper

H200 = by_name("h200")
HALF = Sparsity(2, 4)
PLAIN, BOTH_WAYS = KERNELS


def step(shape: tuple[int, int, int], splits: tuple[int, ...] = ()) -> Problem:
    return Problem("step", *shape, HALF, splits)


def tiny(kernel: Kernel, case: Problem) -> EightBitConfig:
    config: EightBitConfig = kernel.default_config(case, H200)
    return dataclasses.replace(config, weight_grad=DenseConfig(64, 64, 64, 4, 2, unpack="arith"))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    without_hopper(monkeypatch)


@pytest.mark.interpreter
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("kernel", "shape", "splits", "kind"), [
    (PLAIN, (24, 40, 7), (8, 16), "random"), (PLAIN, (36, 68, 70), (), "outlier"), (PLAIN, (16, 32, 33), (6, 10), "zero_rows"),
    (PLAIN, (8, 32, 5), (), "tiny"), (PLAIN, (8, 32, 0), (), "random"), (BOTH_WAYS, (8, 36, 9), (3, 5), "random"),
], ids=str)
def test_interpreted(kernel: Kernel, shape: tuple[int, int, int], splits: tuple[int, ...], kind: Kind) -> None:
    case = step(shape, splits)
    inputs = make_inputs(case, kind=kind)
    prepared = kernel.prepare(case, inputs, tiny(kernel, case))
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), kernel)
    assert mismatch is None, f"{kernel}: {mismatch}"
    for name in ("dx_error", "dw_error"):
        error = prepared.notes[name]
        assert error is None if not shape[2] or (kind == "tiny" and name == "dx_error") else isinstance(error, float) and 0 < error < 0.03


@pytest.mark.interpreter
@pytest.mark.usefixtures("plain")
def test_the_bound_is_one() -> None:
    """Gradients that are a fifth too large, and results of another mask, are wrong."""
    case = step((32, 64, 20))
    inputs = make_inputs(case)
    outputs = PLAIN.prepare(case, inputs, tiny(PLAIN, case)).run()
    assert judge(case, inputs, outputs, PLAIN) is None
    for name in ("dx", "dw"):
        mismatch = judge(case, inputs, {**outputs, name: outputs[name] * 1.2}, PLAIN)
        assert mismatch is not None
        assert mismatch.name == name
    assert judge(case, inputs, outputs, BOTH_WAYS) is not None


@pytest.mark.interpreter
@pytest.mark.usefixtures("plain")
def test_stochastic_rounding_is_another_rounding_of_the_same_gradients() -> None:
    case = step((8, 32, 20))
    inputs, config = make_inputs(case), tiny(PLAIN, case)
    one, two = (PLAIN.prepare(case, inputs, dataclasses.replace(config, stochastic=True, seed=seed)) for seed in (1, 2))
    first, again, other = ({name: value.clone() for name, value in prepared.run().items()} for prepared in (one, one, two))
    nearest = PLAIN.prepare(case, inputs, config).run()
    assert torch.equal(first["y"], nearest["y"])
    for name in ("dx", "dw"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert (first[name] - nearest[name]).norm() < 0.05 * nearest[name].norm()


@pytest.mark.interpreter
@pytest.mark.usefixtures("plain")
def test_non_finite_gradients_are_seen_where_they_are() -> None:
    case = step((16, 32, 9))
    inputs = make_inputs(case)
    assert isinstance(inputs, TrainInputs)
    inputs.dy[4, 3] = float("inf")
    prepared = PLAIN.prepare(case, inputs, tiny(PLAIN, case))
    outputs = prepared.run()
    assert torch.isfinite(outputs["y"]).all()
    assert torch.isnan(outputs["dx"]).all(1).tolist() == [row == 4 for row in range(9)]
    assert torch.isnan(outputs["dw"]).all(1).tolist() == [row == 3 for row in range(16)]


def test_what_is_refused() -> None:
    assert all(kernel.unavailable(step((64, 64, 64)), H200) is None for kernel in KERNELS)
    assert "sm_90" in (PLAIN.unavailable(step((64, 64, 64)), by_name("a100")) or "")
    assert "int32" in (PLAIN.unavailable(step((64, 64, MOST_TOKENS + 1)), H200) or "")
    assert "multiple of 4" in (BOTH_WAYS.unavailable(step((66, 64, 64)), H200) or "")
    assert PLAIN.unavailable(step((66, 64, 64)), H200) is None
    assert "2:4" in (PLAIN.unavailable(Problem("step", 64, 64, 64, Sparsity(6, 8)), H200) or "")
    assert not any(kernel.exact for kernel in KERNELS)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_configs_are_plain_data(kernel: Kernel) -> None:
    config = kernel.default_config(step((2048, 11008, 16384)), H200)
    assert kernel.space.from_dict(config_to_dict(config)) == config


@pytest.mark.compile
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_everything_compiles_without_spills(kernel: Kernel) -> None:
    case = step((4608, 3584, 16384), (3584, 512, 512))
    for unit in kernel.compile_units(case, kernel.default_config(case, H200)):
        found = compile_unit(unit, H200)
        assert isinstance(found, Compiled), found
        assert found.spills == 0, unit.function


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("tokens", [7, 63, 1000, 4096])
@pytest.mark.parametrize(("shape", "splits"), [((1152, 896), (896, 128, 128)), ((896, 4864), ()), ((2052, 516), (1024, 1028))], ids=str)
def test_on_a_gpu(shape: tuple[int, int], splits: tuple[int, ...], tokens: int, kernel: Kernel) -> None:
    gpu = detect()
    assert gpu is not None
    case = step((*shape, tokens), splits)
    if reason := kernel.unavailable(case, gpu):
        pytest.skip(reason)
    inputs = make_inputs(case, "cuda")
    for stochastic in (False, True):
        config = dataclasses.replace(kernel.default_config(case, gpu), stochastic=stochastic)
        prepared = kernel.prepare(case, inputs, config)
        poison(prepared)
        outputs = {name: value.clone() for name, value in prepared.run().items()}
        mismatch = None if stochastic else judge(case, inputs, outputs, kernel)
        assert mismatch is None, f"{kernel}: {mismatch}"
        for name in ("dx_error", "dw_error"):
            error = prepared.notes[name]
            assert isinstance(error, float)
            assert error < 0.03
        again = prepared.run()
        assert all(torch.equal(again[name], value) for name, value in outputs.items())


@pytest.mark.interpreter
def test_gradients_of_another_type_are_refused() -> None:
    case = Problem("step", 8, 16, 4, HALF, dtype="fp32")
    with pytest.raises(ShapeError, match="bf16, fp16"):
        PLAIN.prepare(case, make_inputs(case), tiny(PLAIN, step((8, 16, 4))))
