"""Every profile, every variant: the default configs are allowed, and compiled for the profile's architecture they fit it."""

from __future__ import annotations

import pytest

from autotune.compile import Compiled, compile_unit
from kernels.catalogue import KERNELS
from kernels.gpu import GPUS, Gpu
from kernels.kernel import CompileUnit, Kernel
from kernels.occupancy import LIMITS, occupancy
from kernels.problem import DENSE, Op, Problem, Sparsity
from suites.catalogue import Selection, plan
from suites.crosscompiled import lacks

VARIANTS = [kernel for kernel in KERNELS if kernel.kind == "variant"]
CASES = {80: (13824, 2560, 2048, "2:4"), 86: (2560, 6912, 16, "6:8"), 89: (8192, 8192, 512, "2:4"), 90: (57344, 8192, 4096, "6:8"),
         100: (1152, 896, 1, "dense")}
"""The shape that an architecture's variants are compiled for: out_features, in_features, tokens, sparsity."""


def problem_of(op: Op, capability: int) -> Problem:
    rows, width, tokens, sparsity = CASES[capability]
    rows, tokens = (0 if op == "activation" else rows), (0 if op == "prepare" else tokens)
    return Problem(op, rows, width, tokens, Sparsity.parse(sparsity))


def units_of(kernel: Kernel, gpu: Gpu) -> list[tuple[CompileUnit, str]]:
    problem = problem_of(kernel.op, gpu.capability)
    if kernel.unavailable(problem, gpu) is not None:
        return []
    config = kernel.default_config(problem, gpu)
    return [(unit, f"{kernel} with {config} on {gpu.name}") for unit in kernel.compile_units(problem, config)]


@pytest.mark.compile
@pytest.mark.parametrize("capability", sorted({gpu.capability for gpu in GPUS}), ids=lambda capability: f"sm_{capability}")
def test_what_is_compiled_fits(capability: int) -> None:
    done: dict[str, Compiled] = {}
    for gpu in (gpu for gpu in GPUS if gpu.capability == capability):
        for unit, told in (entry for kernel in VARIANTS for entry in units_of(kernel, gpu)):
            if repr(unit) not in done:
                made = compile_unit(unit, gpu)
                assert isinstance(made, Compiled), f"{told}: {made}"
                done[repr(unit)] = made
            compiled = done[repr(unit)]
            assert compiled.registers <= 255, told
            assert compiled.spills == 0, f"{told} spills {compiled.spills} bytes a thread"
            assert compiled.shared_bytes <= gpu.shared_bytes, told
            held = occupancy(gpu, compiled.warps, compiled.registers, compiled.shared_bytes)
            assert held is not None
            assert held.blocks >= 1, f"{told}: {held}"
            assert lacks(unit, compiled, gpu) is None, f"{told}: {lacks(unit, compiled, gpu)}"
    assert done, "some variant compiles for every architecture"


def test_every_architecture_has_its_case_and_limits() -> None:
    assert {gpu.capability for gpu in GPUS} == set(CASES) == set(LIMITS)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_default_configs_are_allowed_in_every_default_case(gpu: Gpu) -> None:
    seen = 0
    for case in plan(Selection(quick=True)):
        for kernel in (kernel for kernel in VARIANTS if kernel.op == case.problem.op and kernel.space.axes):
            if case.problem.refusal is None and kernel.unavailable(case.problem, gpu) is None:
                config = kernel.default_config(case.problem, gpu)
                assert kernel.space.reject(case.problem, gpu, config) is None, f"{kernel} {case.problem} {config}"
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("sparsity", [DENSE, Sparsity(2, 4), Sparsity(6, 8)], ids=str)
def test_every_profile_has_a_variant_for_every_step_of_a_layer(gpu: Gpu, sparsity: Sparsity) -> None:
    for op, tokens in (("gemm", 1), ("gemm", 8192), ("layer", 7), ("prepare", 0), ("activation", 64), ("step", 4096)):
        problem = Problem(op, 0 if op == "activation" else 13824, 2560, tokens, sparsity)  # type: ignore[arg-type]  # an op
        able = [kernel for kernel in VARIANTS if kernel.op == op and kernel.exact and kernel.unavailable(problem, gpu) is None]
        assert able, f"{problem} on {gpu.name}"
