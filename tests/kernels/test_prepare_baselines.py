"""The baselines of preparation and activation quantization compute what they claim to."""

from __future__ import annotations

import shutil

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.inputs import KINDS, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.mask_quantize.baselines import KERNELS, MaskConfig, keep_by_rank, launch_group_mask
from kernels.problem import Problem, Sparsity
from reference.sparsity import nm_mask

H200 = by_name("h200")
SPARSITIES = ("2:4", "4:6", "6:8", "8:10", "8:16", "dense")
BY_ID = {f"{kernel.op}-{kernel.name}": kernel for kernel in KERNELS}


def _problem(kernel: Kernel, sparsity: str, rows: int = 5, columns: int = 320) -> Problem:
    parsed = Sparsity.parse(sparsity)
    columns = parsed.m * (columns // parsed.m)
    if kernel.op == "activation":
        return Problem("activation", 0, columns, rows, parsed)
    return Problem("prepare", rows, columns, 0, parsed, (rows - 2, 2))


def _check(kernel: Kernel, problem: Problem, device: str) -> None:
    for kind in KINDS:
        inputs = make_inputs(problem, device, kind=kind)
        prepared = kernel.prepare(problem, inputs, kernel.default_config(problem, H200))
        poison(prepared)
        assert judge(problem, inputs, prepared.run(), kernel) is None, kind


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", ["prepare-torch-eager", "activation-torch-eager"])
def test_eager_expressions(name: str, sparsity: str) -> None:
    _check(BY_ID[name], _problem(BY_ID[name], sparsity), "cpu")


@pytest.mark.compile
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
@pytest.mark.parametrize("name", ["prepare-torch-compiled", "activation-torch-compiled"])
def test_compiled_expressions(name: str) -> None:
    problem = _problem(BY_ID[name], "6:8")
    inputs = make_inputs(problem)
    prepared = BY_ID[name].prepare(problem, inputs, None)
    assert judge(problem, inputs, prepared.run(), BY_ID[name]) is None


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_rank_expression_is_the_mask(sparsity: str) -> None:
    parsed = Sparsity.parse(sparsity)
    weight = torch.randn(3, 240, generator=torch.Generator().manual_seed(0)).round()
    assert torch.equal(keep_by_rank(weight, parsed.n, parsed.m), nm_mask(weight, parsed.n, parsed.m))


@pytest.mark.interpreter
@pytest.mark.parametrize("sparsity", ["2:4", "6:8", "8:10"])
def test_interpreted_mask_of_one_program_per_group(sparsity: str) -> None:
    kernel = BY_ID["prepare-mask-only"]
    _check(kernel, _problem(kernel, sparsity, columns=40), "cpu")


def test_mask_only_refuses_what_it_cannot_do() -> None:
    kernel = BY_ID["prepare-mask-only"]
    assert kernel.unavailable(_problem(kernel, "dense"), H200)
    assert not kernel.exact
    with pytest.raises(ShapeError, match="whole groups"):
        launch_group_mask(torch.zeros(2, 10), torch.zeros(2, 10, dtype=torch.bool), Sparsity(2, 4), MaskConfig())


@pytest.mark.compile
def test_mask_kernel_compiles() -> None:
    kernel = BY_ID["prepare-mask-only"]
    problem = _problem(kernel, "2:4")
    for unit in kernel.compile_units(problem, MaskConfig()):
        compiled = compile_unit(unit, H200)
        assert isinstance(compiled, Compiled), compiled
        assert compiled.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", BY_ID)
def test_on_a_gpu(name: str, sparsity: str) -> None:
    kernel, problem = BY_ID[name], _problem(BY_ID[name], sparsity, 333, 2560)
    if kernel.unavailable(problem, H200) is None:
        _check(kernel, problem, "cuda")
    else:
        assert sparsity == "dense"
