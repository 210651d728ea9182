"""The sparse Hopper GEMM: what it refuses, what the compiler makes of it, and on a device its numbers, bit for bit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import NonFiniteError, ShapeError, SparsityError
from kernels.gpu import by_name
from kernels.problem import DENSE, DType, Problem, Sparsity
from kernels.ternary_gemm.sparse_wgmma import KERNELS, bind, compile_units, fragment_weight
from kernels.ternary_gemm.sparse_wgmma_config import COST, SparseConfig, default_config, most_stages, reject, space, unavailable
from kernels.ternary_gemm.sparse_wgmma_epilogue import Y_DESCRIPTOR
from kernels.ternary_gemm.sparse_wgmma_ptx import shared_offsets
from tests.kernels.on_device import AWKWARD, SIX_EIGHT, TWO_FOUR, assert_all_right, assert_same_bits, problems

H200 = by_name("h200")
CONFIGS = tuple(SparseConfig(*tile, most_stages(*tile, H200.shared_bytes)) for tile in (*COST, (4, 64), (2, 64)))
PARTS = (SparseConfig(1, 128, 9, 6), SparseConfig(1, 128, 9, 3), SparseConfig(2, 128, 7, 4), SparseConfig(3, 128, 6, 2),
         SparseConfig(1, 256, 5, 3), SparseConfig(4, 64, 7, 2), SparseConfig(1, 64, 15, 2))
SPARSE, DENSE_WEIGHTS = KERNELS


def problem(out_features: int, in_features: int, tokens: int, sparsity: Sparsity = TWO_FOUR, **changes: Any) -> Problem:
    return Problem("gemm", out_features, in_features, tokens, sparsity, **changes)


def compiled(config: SparseConfig, dtype: str, out_features: int, sparse: bool = True) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    (unit,) = compile_units(problem(out_features, 1024, 4096, dtype=dtype), config, sparse)
    names = list(unit.function.arg_names)
    constants = {(names.index(name),): value for name, value in unit.constexprs.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in unit.divisible}
    source = GluonASTSource(unit.function, {name: unit.signature[name] for name in names}, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(unit.options))


@pytest.mark.compile
@pytest.mark.parametrize(("config", "sparse"), [*((config, True) for config in (*CONFIGS[:5], PARTS[3])), (CONFIGS[0], False)], ids=str)
def test_products_stay_in_flight_without_spills(config: SparseConfig, sparse: bool) -> None:
    (unit,) = compile_units(problem(8192, 8192, 8192), config, sparse)
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.instructions[unit.expects[90]] > 0
    sass = compiled(config, "bf16", 8192, sparse).asm["sass"]
    products, waits = len(re.findall(r"IGMMA\.", sass)), re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\d+)", sass)
    assert products >= (2 if sparse else 4) * config.tiles
    assert waits.count("0x1") == products, "every product is followed by a wait for the one before it"
    assert waits.count("0x0") <= 2, "only the end of a tile waits for all: ptxas has not serialized the products"


@pytest.mark.compile
@pytest.mark.parametrize(("dtype", "out_features"), [("fp16", 8192), ("fp32", 8192), ("int32", 8192), ("bf16", 8190)])
def test_other_outputs_compile_without_spills(dtype: str, out_features: int) -> None:
    case = problem(out_features, 1024, 4096, dtype=dtype)
    (unit,) = compile_units(case, default_config(case, H200))
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0


@pytest.mark.compile
@pytest.mark.parametrize("config", CONFIGS[:5], ids=str)
def test_shared_memory_lies_where_the_kernel_assumes(config: SparseConfig) -> None:
    code = compiled(config, "bf16", 8192).asm["llir"]
    initialized = re.findall(r"mbarrier\.init[^)]*?\[\$1\], (\d).*?@global_smem, i32 (\d+)\)", code)
    _, _, _, full, empty, _ = shared_offsets(config.tiles, config.block_t, config.stages)
    assert sorted(int(at) for count, at in initialized if count == "1") == [full + 8 * i for i in range(config.stages)]
    assert sorted(int(at) for count, at in initialized if count == "8") == [empty + 8 * i for i in range(config.stages)]
    assert "getelementptr i8, ptr addrspace(3) @global_smem, i32 %" in code, "the ring of stages starts at offset 0"


@pytest.mark.compile
def test_the_output_descriptor_is_the_parameter_that_the_epilogue_names() -> None:
    maps = re.findall(r"\.param \.align 64 \.b8 (\w+)\[128\]", compiled(CONFIGS[0], "bf16", 8192).asm["ptx"])
    assert maps == ["sparse_gemm_param_0", Y_DESCRIPTOR]


def test_every_problem_has_an_allowed_default() -> None:
    for tokens in (1, 64, 128, 512, 8192):
        for rows, width in ((1152, 896), (37888, 3584), (3584, 18944), (130, 64)):
            for sparsity in (TWO_FOUR, SIX_EIGHT):
                case = problem(rows, width, tokens, sparsity)
                assert reject(case, H200, default_config(case, H200)) is None


def test_the_space_is_refused_with_reasons() -> None:
    case = problem(8192, 8192, 8192)
    assert "registers" in str(reject(case, H200, SparseConfig(4, 128, 4)))
    assert "shared memory" in str(reject(case, H200, SparseConfig(1, 256, 8)))
    assert "padding" in str(reject(case.with_(tokens=16), H200, SparseConfig(2, 128, 7)))
    assert "multiprocessors" in str(reject(case.with_(tokens=512), H200, SparseConfig(1, 128, 9, 2)))
    assert "left over" in str(reject(problem(128 * 132, 8192, 128), H200, SparseConfig(1, 128, 9, 2)))
    assert "steps" in str(reject(problem(128, 256, 128), H200, SparseConfig(1, 128, 9, 3)))
    assert 4 <= len(list(space.allowed(case, H200))) <= 60
    assert 8 <= len(list(space.allowed(case.with_(tokens=128), H200))) <= 60
    assert "sm_90" in str(unavailable(case, by_name("a100")))
    assert "not dense" in str(unavailable(case.with_(sparsity=DENSE), H200))


def test_weights_that_do_not_fit_are_refused() -> None:
    w, scale = torch.zeros(64, 64, dtype=torch.int8), torch.ones(1)
    with pytest.raises(SparsityError, match="allowed"):
        fragment_weight(w, scale, (64,), Sparsity(4, 8))
    with pytest.raises(SparsityError):
        fragment_weight(torch.ones_like(w), scale, (64,), TWO_FOUR)
    with pytest.raises(SparsityError):
        fragment_weight(torch.ones_like(w), scale, (64,), SIX_EIGHT)
    with pytest.raises(NonFiniteError):
        fragment_weight(w, scale * torch.nan, (64,), TWO_FOUR)
    with pytest.raises(ShapeError, match="splits"):
        fragment_weight(w, scale, (32, 32), TWO_FOUR)


def test_inputs_that_do_not_fit_are_refused_before_anything_runs() -> None:
    weight = fragment_weight(torch.zeros(64, 64, dtype=torch.int8), torch.ones(1), (64,), TWO_FOUR)
    x, scale = torch.zeros(5, 64, dtype=torch.int8), torch.ones(5)
    for bad in ((x[:, :32], scale, None), (x.float(), scale, None), (x, scale[:4], None), (x, scale, torch.ones(63))):
        with pytest.raises(ShapeError, match="is needed"):
            bind(*bad[:2], weight, bad[2], torch.bfloat16, CONFIGS[0], 132)


def test_scales_are_those_of_the_rows() -> None:
    w = torch.zeros(70, 64, dtype=torch.int8)
    weight = fragment_weight(w, torch.tensor([64.0, 128.0]), (30, 40), TWO_FOUR)
    assert weight.row_scale[:30].eq(1).all()
    assert weight.row_scale[30:70].eq(2).all()
    assert weight.row_scale[70:].eq(0).all()
    assert len(weight.row_scale) == 1536
    assert (weight.columns, weight.in_features) == (64, 64)
    assert fragment_weight(w, torch.ones(1), (70,), SIX_EIGHT).columns == 96


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16", "fp16", "fp32"])
def test_exact_on_the_device(config: SparseConfig, dtype: DType) -> None:
    cases = problems(AWKWARD, (TWO_FOUR, SIX_EIGHT), dtype)
    assert_all_right(SPARSE, (case for case in cases if "registers" not in (reject(case, H200, config) or "")), config)


@pytest.mark.gpu
@pytest.mark.parametrize("config", PARTS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16", "fp32"])
def test_parts_of_tiles_meet_exactly_launch_after_launch(config: SparseConfig, dtype: DType) -> None:
    sizes = ((100, 2560, 6912), (130, 768, 896), (1000, 2560, 2560), (63, 1000, 1024), (700, 3000, 640), (256, 130, 4864),
             (512, 9728, 896), (2048, 9728, 384), (8192, 896, 896))
    assert_all_right(SPARSE, (case for case in problems(sizes, dtype=dtype) if reject(case, H200, config) is None), config, launches=2)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS[:5], ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16"])
def test_dense_weights_are_exact_on_the_device(config: SparseConfig, dtype: DType) -> None:
    assert_all_right(DENSE_WEIGHTS, problems(AWKWARD, (DENSE,), dtype), config)


@pytest.mark.gpu
def test_the_same_bits_a_hundred_times_whole_and_in_parts() -> None:
    case = problem(1152, 896, 333, splits=(896, 128, 128))
    configs = (CONFIGS[0], SparseConfig(1, 128, 9, 4))
    assert_same_bits(SPARSE, case, lambda inputs: [SPARSE.prepare(case, inputs, config) for config in configs])
