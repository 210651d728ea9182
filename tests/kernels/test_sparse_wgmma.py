"""The sparse Hopper GEMM: what it refuses, what the compiler makes of it, and on a device its numbers, bit for bit."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import GpuMismatch, NonFiniteError, ShapeError, SparsityError
from kernels.gpu import by_name
from kernels.problem import DENSE, DType, Problem, Sparsity
from kernels.ternary_gemm.sparse_wgmma import KERNELS, bind, compile_units, fragment_weight, multiprocessors
from kernels.ternary_gemm.sparse_wgmma_config import (
    COMPILER_BYTES,
    COST,
    FEWEST_STAGES,
    SparseConfig,
    default_config,
    most_stages,
    reject,
    space,
    unavailable,
)
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, X_DESCRIPTOR, Y_DESCRIPTOR, is_grouped, is_short, shared_offsets
from kernels.ternary_gemm.sparse_wgmma_split import meeting_offsets
from tests.kernels.on_device import AWKWARD, SIX_EIGHT, TWO_FOUR, assert_all_right, assert_same_bits, problems

H200 = by_name("h200")


def fitting(tiles: int, block_t: int, splits: int = 1, pair: int = 1) -> SparseConfig:
    return SparseConfig(tiles, block_t, most_stages(tiles, block_t, splits, H200.shared_bytes), splits, pair)


CONFIGS = tuple(fitting(*tile) for tile in (*COST, (4, 64), (2, 64)))
PARTS = tuple(fitting(*tile, splits) for *tile, splits in (
    (1, 128, 2), (1, 128, 4), (1, 128, 8), (2, 128, 2), (1, 64, 2), (1, 64, 4), (1, 64, 8), (4, 64, 2), (2, 64, 4), (3, 64, 4), (2, 64, 8),
))
GROUPED = tuple(fitting(tiles, 64) for tiles in (2, 3, 4))
PAIRS = tuple(fitting(*tile, pair=2) for tile in COST if tile != (1, 64))
SIZES = ((100, 2560, 6912), (130, 768, 1152), (1000, 2560, 2560), (63, 1000, 1024), (700, 3000, 640), (256, 130, 4864),
         (512, 9728, 896), (2048, 9728, 384), (8192, 896, 896))
"""Of outputs for PARTS: tokens, out_features, in_features."""
SPARSE, DENSE_WEIGHTS = KERNELS


def problem(out_features: int, in_features: int, tokens: int, sparsity: Sparsity = TWO_FOUR, **changes: Any) -> Problem:
    return Problem("gemm", out_features, in_features, tokens, sparsity, **changes)


def compiled(config: SparseConfig, dtype: str, out_features: int, kind: str = "sparse") -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    (unit,) = compile_units(problem(out_features, 1024, 4096, dtype=dtype), config, kind)
    names = list(unit.function.arg_names)
    constants = {(names.index(name),): value for name, value in unit.constexprs.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in unit.divisible}
    source = GluonASTSource(unit.function, {name: unit.signature[name] for name in names}, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(unit.options))


def remarks(ptx: str, folder: Path) -> str:
    """What the assembler says of the code, loss of performance included."""
    import triton

    (folder / "kernel.ptx").write_text(ptx)
    command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr


@pytest.mark.compile
@pytest.mark.parametrize(("config", "kind"), [
    *((config, "sparse") for config in (*CONFIGS[:5], PARTS[1], PARTS[3], PARTS[9], *PAIRS, *GROUPED)), (CONFIGS[0], "dense"),
    (CONFIGS[3], "dense"), (GROUPED[0], "dense"), (GROUPED[2], "dense"), (GROUPED[0], "wide"),
    (CONFIGS[1], "wide"), (CONFIGS[3], "wide"), (CONFIGS[4], "wide"),
], ids=str)
def test_products_stay_in_flight_without_spills(config: SparseConfig, kind: str, tmp_path: Path) -> None:
    (unit,) = compile_units(problem(8192, 8192, 8192), config, kind)
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.instructions[unit.expects[90]] > 0
    kernel = compiled(config, "bf16", 8192, kind)
    said = remarks(kernel.asm["ptx"], tmp_path)
    assert "0 bytes spill stores" in said
    assert "(C75" not in said, "products are serialized"
    sass, stage = kernel.asm["sass"], 4 if kind == "dense" else 2
    products, waits = len(re.findall(r"[IH]GMMA\.", sass)), re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\d+)", sass)
    if is_short(config.tiles, config.block_t):
        assert products == 3 * stage, "one stage, or two at a time: nothing is written twice"
        assert waits.count("0x1") == 3, "the products of a stage are followed by a wait for those before them"
    elif is_grouped(config.tiles, config.block_t):
        assert products == stage * config.tiles
        assert waits.count("0x1") == config.tiles, "the products of a row block are followed by a wait for those before them"
    else:
        assert products >= stage * config.tiles
        assert waits.count("0x1") == products, "every product is followed by a wait for the one before it"
    assert waits.count("0x0") <= 2, "only the end of a tile waits for all: ptxas has not serialized the products"


@pytest.mark.compile
@pytest.mark.parametrize("config", [CONFIGS[3], *PARTS[:5], *PAIRS[1:3]], ids=str)
def test_a_cluster_meets_by_bytes_and_without_fences_of_the_whole_device(config: SparseConfig) -> None:
    kernel = compiled(config, "bf16", 8192)
    sass, ptx = kernel.asm["sass"], kernel.asm["ptx"]
    assert not re.search(r"MEMBAR\.\w+\.(GPU|SYS)", sass)
    cluster, meetings = config.splits * config.pair, 2 if config.pair > 1 else 1
    arrivals = 2 * meetings if cluster > 1 else 0
    assert len(re.findall(r"UCGABAR_ARV", sass)) == arrivals, "consumers and producer, each once, or at both ends; the compiler adds none"
    assert bool(re.search(r"UCGABAR_WAIT", sass)) == (cluster > 1)
    assert re.findall(r"\.reqnctapercluster (\d+)", ptx) == ([str(cluster)] if cluster > 1 else [])
    assert (ptx.count("griddepcontrol.launch_dependents"), ptx.count("griddepcontrol.wait")) == (1, 2)


@pytest.mark.compile
@pytest.mark.parametrize(("dtype", "out_features"), [("fp16", 8192), ("fp32", 8192), ("int32", 8192), ("bf16", 8190)])
def test_other_outputs_compile_without_spills(dtype: str, out_features: int) -> None:
    case = problem(out_features, 1024, 4096, dtype=dtype)
    (unit,) = compile_units(case, default_config(case, H200))
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0


@pytest.mark.compile
@pytest.mark.parametrize("config", [*CONFIGS[:5], *PARTS[:4], PAIRS[0]], ids=str)
def test_shared_memory_lies_where_the_kernel_assumes(config: SparseConfig) -> None:
    kernel = compiled(config, "bf16", 8192)
    _, _, _, full, empty, _ = shared_offsets(config.tiles, config.block_t, config.stages)
    _, met, end = meeting_offsets(config.tiles, config.block_t, config.stages, config.splits)
    placed = re.findall(r"mbarrier\.init[^)]*?\[\$1\], (\d).*?@global_smem, i32 (\d+)\)", kernel.asm["llir"])
    assert placed == [("1", str(full))], "the compiler's only barrier: the allocation starts at offset 0"
    found = [(int(at), int(count)) for at, count in re.findall(r"mbarrier\.init\S* \[global_smem\+(\d+)\], (\d+);", kernel.asm["ptx"])]
    stages = range(config.stages)
    every = [(full + 8 * i, 1) for i in stages[1:]] + [(empty + 8 * i, 4 * CONSUMERS * config.pair) for i in stages]
    every += [(met + 8 * wg, 1) for wg in range(CONSUMERS if config.splits > 1 else 0)]
    assert sorted(found) == sorted(every)
    assert end <= kernel.metadata.shared <= end + COMPILER_BYTES
    own = re.findall(r"(?:st|ld)\.shared\.\w+\s+\[?[^;]*global_smem\+(\d+)\]", kernel.asm["ptx"])
    assert all(int(at) >= end for at in own), "what the compiler keeps for itself lies behind"


@pytest.mark.compile
def test_the_descriptors_are_the_parameters_that_the_text_names() -> None:
    for config in (CONFIGS[0], PARTS[0]):
        ptx = compiled(config, "bf16", 8192).asm["ptx"]
        assert re.findall(r"\.param \.align 64 \.b8 (\w+)\[128\]", ptx) == [X_DESCRIPTOR, Y_DESCRIPTOR]
        assert set(re.findall(r"mov\.b64 \w+, (\w+param\w+);", ptx)) == {X_DESCRIPTOR, Y_DESCRIPTOR}


def test_the_configs_tried_on_the_device_are_allowed() -> None:
    assert all(config.stages >= FEWEST_STAGES for config in (*CONFIGS, *PARTS))
    for config in PAIRS:
        assert reject(problem(256 * config.tiles * 22 - 8, 1152, 1500), H200, config) is None
    for config in PARTS:
        fit = [size for size in SIZES if reject(problem(size[1], size[2], size[0]), H200, config) is None]
        assert len(fit) >= 2, f"{config}: {fit}"


def test_every_problem_has_an_allowed_default() -> None:
    for tokens in (1, 64, 128, 512, 8192):
        for rows, width in ((1152, 896), (37888, 3584), (3584, 18944), (130, 64), (151936, 3584)):
            for sparsity in (TWO_FOUR, SIX_EIGHT):
                case = problem(rows, width, tokens, sparsity)
                assert reject(case, H200, default_config(case, H200)) is None


def test_the_space_is_refused_with_reasons() -> None:
    case = problem(8192, 8192, 8192)
    assert "registers" in str(reject(case, H200, SparseConfig(4, 128, 4)))
    assert "shared memory" in str(reject(case, H200, SparseConfig(1, 256, 8)))
    assert "padding" in str(reject(case.with_(tokens=16), H200, SparseConfig(2, 128, 7)))
    assert "stages fill" in str(reject(case, H200, replace(CONFIGS[0], stages=CONFIGS[0].stages - 1)))
    assert "the fewest" in str(reject(case, H200, fitting(1, 256, 4)))
    assert "66 clusters" in str(reject(case.with_(tokens=512), H200, PARTS[0]))
    assert "even" in str(reject(problem(1152, 8192, 8192), H200, PAIRS[1]))
    assert "rounds" in str(reject(case.with_(tokens=128), H200, PAIRS[0]))
    assert "left over" in str(reject(problem(128 * 132, 8192, 128), H200, PARTS[0]))
    assert "steps" in str(reject(problem(128, 256, 128), H200, PARTS[1]))
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


def test_another_architecture_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, capability in (("A100", (8, 0)), ("B200", (10, 0))):
        found = SimpleNamespace(name=name, major=capability[0], minor=capability[1], multi_processor_count=108)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=found: found)
        multiprocessors.cache_clear()
        with pytest.raises(GpuMismatch, match=f"{name} is sm_{capability[0]}0; wgmma needs sm_90"):
            multiprocessors(torch.device("cuda", 0))
    multiprocessors.cache_clear()


def test_scales_are_those_of_the_rows() -> None:
    w = torch.zeros(70, 64, dtype=torch.int8)
    weight = fragment_weight(w, torch.tensor([64.0, 128.0]), (30, 40), TWO_FOUR)
    assert weight.row_scale[:30].eq(1).all()
    assert weight.row_scale[30:70].eq(2).all()
    assert weight.row_scale[70:].eq(0).all()
    assert len(weight.row_scale) == 1536
    assert (weight.columns, weight.in_features) == (64, 64)
    assert fragment_weight(w, torch.ones(1), (70,), SIX_EIGHT).columns == 96


def skip_what_spills(config: SparseConfig, dtype: DType) -> None:
    """Outputs of 32 bits beside 192 accumulators a thread."""
    refusal = reject(problem(8192, 8192, 8192, dtype=dtype), H200, config) or ""
    if "registers" in refusal:
        pytest.skip(refusal)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16", "fp16", "fp32"])
def test_exact_on_the_device(config: SparseConfig, dtype: DType) -> None:
    skip_what_spills(config, dtype)
    cases = problems(AWKWARD, (TWO_FOUR, SIX_EIGHT), dtype)
    assert_all_right(SPARSE, (case for case in cases if "registers" not in (reject(case, H200, config) or "")), config)


@pytest.mark.gpu
@pytest.mark.parametrize("config", PARTS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16", "fp32"])
def test_parts_of_tiles_meet_exactly_launch_after_launch(config: SparseConfig, dtype: DType) -> None:
    assert_all_right(SPARSE, (case for case in problems(SIZES, dtype=dtype) if reject(case, H200, config) is None), config, launches=2)


@pytest.mark.gpu
@pytest.mark.parametrize("config", PAIRS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16"])
def test_pairs_are_exact_launch_after_launch(config: SparseConfig, dtype: DType) -> None:
    skip_what_spills(config, dtype)
    rows = 256 * config.tiles
    sizes = ((8200, 4 * rows, 640), (1500, 22 * rows - 8, 1152), (17000, rows, 896))
    assert_all_right(SPARSE, (case for case in problems(sizes, dtype=dtype) if reject(case, H200, config) is None), config, launches=2)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS[:5], ids=str)
@pytest.mark.parametrize("dtype", ["int32", "bf16"])
def test_dense_weights_are_exact_on_the_device(config: SparseConfig, dtype: DType) -> None:
    assert_all_right(DENSE_WEIGHTS, problems(AWKWARD, (DENSE,), dtype), config)


@pytest.mark.gpu
def test_the_same_bits_a_hundred_times_whole_and_in_parts() -> None:
    case = problem(1152, 896, 333, splits=(896, 128, 128))
    configs = (CONFIGS[0], PARTS[1])
    assert_same_bits(SPARSE, case, lambda inputs: [SPARSE.prepare(case, inputs, config) for config in configs])
