"""The mma.sp GEMM: what it refuses, what the compiler makes of it, and on a device its numbers, bit for bit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import GPUS, by_name
from kernels.inputs import GemmInputs, make_inputs
from kernels.judge import judge
from kernels.problem import DENSE, DType, Problem, Sparsity
from kernels.ternary_gemm.sparse_mma import GEMM, bind, compile_units, space, unavailable
from kernels.ternary_gemm.sparse_mma_config import MmaConfig, default_config, reject
from kernels.ternary_gemm.sparse_mma_layer import FORWARD, LAYER
from kernels.ternary_gemm.sparse_wgmma import dense_fragment_weight, fragment_weight
from tests.kernels.on_device import AWKWARD, SIX_EIGHT, TWO_FOUR, assert_all_right, assert_right, assert_same_bits, problems

A100, H200 = by_name("a100"), by_name("h200")
CONFIGS = (MmaConfig(4, 2, 5, 7, 4), MmaConfig(2, 4, 8, 4, 4), MmaConfig(2, 2, 8, 4, 4, 2), MmaConfig(4, 2, 4, 4, 3, band=2),
           MmaConfig(4, 1, 4, 2, 6), MmaConfig(2, 2, 4, 1, 4), MmaConfig(4, 1, 1, 1, 6, 2), MmaConfig(2, 4, 4, 2, 3, 2),
           MmaConfig(4, 2, 6, 6, 4), MmaConfig(4, 2, 5, 6, 3), MmaConfig(4, 2, 8, 4, 4))
CUT = MmaConfig(4, 2, 4, 2, 3, 1, 2, 3)


def problem(out_features: int, in_features: int, tokens: int, sparsity: Sparsity = TWO_FOUR, **changes: Any) -> Problem:
    return Problem("gemm", out_features, in_features, tokens, sparsity, **changes)


@pytest.mark.compile
@pytest.mark.parametrize("gpu", [A100, by_name("rtx4090"), H200], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("tokens", [8192, 4])
def test_defaults_fit_and_multiply_on_sparse_tensor_cores(gpu: Any, tokens: int) -> None:
    case = problem(8192, 8192, tokens)
    config = default_config(case, gpu)
    (unit,) = compile_units(case, config)
    found = compile_unit(unit, gpu)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.registers <= config.register_limit
    assert found.shared_bytes == config.shared_bytes
    assert found.instructions["IMMA.SP"] == 2 * config.tiles_n * config.tiles_t, "the main loop is there once, and nothing else multiplies"


@pytest.mark.compile
@pytest.mark.parametrize("config", [*CONFIGS[:6], CONFIGS[8], CUT], ids=str)
def test_no_spills_and_no_warp_waits_for_all_in_a_stage(config: MmaConfig) -> None:
    (unit,) = compile_units(problem(8192, 8192, 8192), config)
    found = compile_unit(unit, A100)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.registers <= config.register_limit
    barriers = 2 if config.splits == 1 else 4
    assert found.instructions["BAR"] == barriers, "before the first stage, and where parts meet"
    assert found.instructions["ATOMS"] == 2, "warps arrive before the first stage and at the end of a stage"
    assert found.instructions["LDSM"] == 4 * config.tiles_t, "both steps of a stage, before the first and in a stage"
    assert found.instructions["LDGSTS"] % (config.tile.token_copies + config.tile.word_copies) == 0


@pytest.mark.compile
@pytest.mark.parametrize(("dtype", "out_features"), [("fp16", 8192), ("fp32", 8192), ("int32", 8192), ("bf16", 8190)])
def test_other_outputs_compile_without_spills(dtype: str, out_features: int) -> None:
    (unit,) = compile_units(problem(out_features, 1024, 4096, dtype=dtype), CONFIGS[0])
    found = compile_unit(unit, A100)
    assert isinstance(found, Compiled), found
    assert found.spills == 0


@pytest.mark.compile
def test_stages_start_where_the_text_assumes() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    (unit,) = compile_units(problem(8192, 1024, 4096), CONFIGS[0])
    names = list(unit.function.arg_names)
    constants = {(names.index(name),): value for name, value in unit.constexprs.items()}
    source = GluonASTSource(unit.function, {name: unit.signature[name] for name in names}, constants, {})
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=dict(unit.options)).asm["llir"]
    behind = CONFIGS[0].tile.stage_bytes * CONFIGS[0].stages + CONFIGS[0].tile.exchange_bytes
    offsets = {int(at) for at in re.findall(r"@global_smem, i(?:32|64) (\d+)", code)}
    assert offsets == {behind}, "the one buffer starts at 0: what the compiler itself stores lies behind the stages"


def test_every_problem_has_an_allowed_default() -> None:
    for gpu in GPUS:
        for tokens in (0, 1, 7, 64, 128, 512, 8192):
            for rows, width in ((1152, 896), (37888, 3584), (3584, 18944), (130, 64), (1, 8)):
                for sparsity in (TWO_FOUR, SIX_EIGHT):
                    case = problem(rows, width, tokens, sparsity)
                    assert reject(case, gpu, default_config(case, gpu)) is None


def test_no_default_leaves_a_multiprocessor_with_four_warps() -> None:
    for rows, width in ((13824, 2560), (2560, 6912), (22016, 2048), (9728, 896), (8192, 8192)):
        for tokens in (2048, 8192, 16384):
            config = default_config(problem(rows, width, tokens), H200)
            assert config.per_sm * config.tile.threads >= 256, (rows, width, tokens)


def test_the_space_is_refused_with_reasons() -> None:
    case = problem(8192, 8192, 8192)
    assert "registers" in str(reject(case, A100, MmaConfig(2, 4, 8, 8, 3)))
    assert "registers" in str(reject(case, A100, MmaConfig(2, 4, 8, 4, 3, 2)))
    assert "threads" in str(reject(case, A100, MmaConfig(4, 4, 2, 2, 3)))
    assert "blocks of 64" in str(reject(case, A100, MmaConfig(2, 2, 1, 4, 3)))
    assert "shared memory" in str(reject(case, by_name("rtx4090"), MmaConfig(2, 4, 8, 4, 6)))
    assert "clocks" in str(reject(case, A100, MmaConfig(4, 1, 1, 8, 4)))
    assert "parts" in str(reject(case, A100, MmaConfig(2, 2, 4, 4, 4, splits=2)))
    assert "registers" in str(reject(case.with_(tokens=128), A100, MmaConfig(4, 2, 6, 6, 4, splits=2)))
    assert "go with" in str(reject(case, A100, MmaConfig(4, 2, 5, 4, 4)))
    assert "four stages" in str(reject(case, A100, MmaConfig(2, 4, 8, 4, 3)))
    assert "band" in str(reject(case, A100, MmaConfig(2, 4, 8, 4, 4, band=16)))
    assert "again for each" in str(reject(case, by_name("a10"), MmaConfig(2, 2, 4, 4, 4)))
    assert "padding" in str(reject(case.with_(tokens=16), A100, CONFIGS[0]))
    assert "padding" in str(reject(case.with_(out_features=100, splits=()), A100, CONFIGS[0]))
    for gpu in GPUS:
        assert 8 <= len(list(space.allowed(case, gpu))) <= 100


def test_what_it_cannot_do_has_a_reason() -> None:
    case = problem(8192, 8192, 8192)
    assert unavailable(case, A100) is None
    assert unavailable(case, H200) is None
    assert "sm_80" in str(unavailable(case, replace(A100, capability=75)))
    assert "not dense" in str(unavailable(case.with_(sparsity=DENSE), A100))
    assert "too large" in str(unavailable(problem(64, 98304, 8, SIX_EIGHT), A100))


def test_inputs_that_do_not_fit_are_refused_before_anything_runs() -> None:
    weight = fragment_weight(torch.zeros(64, 64, dtype=torch.int8), torch.ones(1), (64,), TWO_FOUR)
    x, scale = torch.zeros(5, 64, dtype=torch.int8), torch.ones(5)
    for bad in ((x[:, :32], scale, None), (x.float(), scale, None), (x, scale[:4], None), (x, scale, torch.ones(63)), (x, scale, None)):
        with pytest.raises(ShapeError, match="is needed"):
            bind(*bad[:2], weight, bad[2], torch.bfloat16, CONFIGS[0])
    with pytest.raises(ShapeError, match="2 parts"):
        bind(x, scale, weight, None, torch.bfloat16, MmaConfig(2, 2, 4, 4, 4, splits=2))
    with pytest.raises(ShapeError, match="out dtype"):
        bind(x, scale, weight, None, torch.int8, CONFIGS[0])
    dense = dense_fragment_weight(torch.zeros(64, 64, dtype=torch.int8), torch.ones(1), (64,))
    with pytest.raises(ShapeError, match="dense tensor cores"):
        bind(x, scale, dense, None, torch.bfloat16, CONFIGS[0])
    case = problem(64, 64, 5)
    for kernel in (GEMM, LAYER):
        with pytest.raises(ShapeError, match="takes"):
            kernel.prepare(case, make_inputs(Problem("prepare", 64, 64, 0, TWO_FOUR)), CONFIGS[0])


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16", "fp16", "fp32"])
def test_exact_on_the_device(config: MmaConfig, dtype: DType) -> None:
    assert_all_right(GEMM, problems(AWKWARD, (TWO_FOUR, SIX_EIGHT), dtype), config)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [MmaConfig(2, 2, 4, 4, 4, 2, splits=4), MmaConfig(4, 1, 2, 1, 6, 2, splits=8), CUT], ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16"])
def test_parts_meet_to_the_same_bits_launch_after_launch(config: MmaConfig, dtype: DType) -> None:
    assert_all_right(GEMM, problems(((1, 130, 4864), (129, 1152, 1344), (700, 384, 1024)), dtype=dtype), config, launches=20)


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", [TWO_FOUR, Sparsity(4, 6), SIX_EIGHT, Sparsity(8, 10)], ids=str)
def test_layers_on_the_device(sparsity: Sparsity) -> None:
    for tokens, rows, groups in ((1, 130, 40), (63, 1152, 30), (1000, 384, 90)):
        case = Problem("layer", rows, groups * sparsity.m, tokens, sparsity, (rows - 64, 64), bias=True)
        assert_right(LAYER, case, default_config(case, H200))
        assert_right(FORWARD, case.with_(op="forward", bias=False), default_config(case, H200))


@pytest.mark.gpu
def test_rows_that_are_not_aligned_are_copied() -> None:
    case = problem(136, 328, 33, dtype="int32")
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, GemmInputs)
    inputs = replace(inputs, x_q=inputs.x_q.contiguous())
    assert judge(case, inputs, GEMM.prepare(case, inputs, CONFIGS[0]).run(), GEMM) is None


@pytest.mark.gpu
def test_no_tokens_and_more_than_two_gigabytes() -> None:
    for tokens, rows, width in ((0, 136, 320), (300_000, 8192, 64)):
        case = problem(rows, width, tokens)
        inputs = make_inputs(case, "cuda")
        out = GEMM.prepare(case, inputs, CONFIGS[0]).run()["y"]
        assert out.shape == (tokens, rows)
        if tokens:
            assert isinstance(inputs, GemmInputs)
            last = replace(inputs, x_q=inputs.x_q[-300:], x_scale=inputs.x_scale[-300:])
            assert judge(case.with_(tokens=300), last, {"y": out[-300:]}, GEMM) is None


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS[:3], ids=str)
def test_the_same_bits_a_hundred_times(config: MmaConfig) -> None:
    case = problem(1152, 896, 333, splits=(896, 128, 128))
    assert_same_bits(GEMM, case, lambda inputs: [GEMM.prepare(case, inputs, config)])
