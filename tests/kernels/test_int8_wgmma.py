"""The int8 × int8 Hopper GEMM: how it deals its tiles, what it refuses, what the compiler makes of it, and its bits on a device."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name, detect
from kernels.problem import DENSE, DType, Problem
from kernels.ternary_gemm import int8_wgmma_kernel as kernel
from kernels.ternary_gemm.int8_wgmma import bind, compile_units
from kernels.ternary_gemm.int8_wgmma_config import (
    COST,
    Int8Config,
    deal,
    default_config,
    most_stages,
    refusal,
    reject,
    space,
    unavailable,
)
from kernels.ternary_gemm.int8_wgmma_ptx import LEFT_DESCRIPTOR, OUT_DESCRIPTOR, RIGHT_DESCRIPTOR, ring_offsets
from kernels.ternary_gemm.sparse_wgmma_config import COMPILER_BYTES
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS
from tests.kernels import launch_emulator

H200 = by_name("h200")


def fitting(tiles: int, block_n: int, splits: int = 1, pair: int = 1) -> Int8Config:
    return Int8Config(tiles, block_n, most_stages(tiles, block_n, H200.shared_bytes), splits, pair)


def problem(rows: int, columns: int, summed: int, dtype: DType = "bf16") -> Problem:
    return Problem("gemm", columns, summed, rows, DENSE, dtype=dtype)


def operands(rows: int, columns: int, summed: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both operands in rows padded to 128 with zeros, and scales."""
    generator = torch.Generator(device).manual_seed(rows + columns + summed)
    wide = -(-summed // 128) * 128
    left, right = (torch.zeros(count, wide, dtype=torch.int8, device=device) for count in (rows, columns))
    for operand in (left, right):
        operand[:, :summed] = torch.randint(-127, 128, (len(operand), summed), generator=generator, dtype=torch.int8, device=device)
    return left[:, :summed], (torch.rand(rows, generator=generator, device=device) + 0.5) * 2**-12, right[:, :summed]


def expected(left: torch.Tensor, scale: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The exact sums (of float64), scaled in float32, rounded once."""
    return ((left.double() @ right.double().t()).float() * scale[:, None]).to(dtype)


SHAPES = ((4608, 3584, 16384), (2048, 11008, 16384), (1152, 896, 16384), (896, 896, 16384), (9728, 896, 16384), (130, 77, 300), (1, 1, 1))
CONFIGS = (*(fitting(*tile) for tile in COST), *(fitting(1, 256, pair=2), fitting(2, 128, pair=2), fitting(1, 192, pair=2)),
           *(fitting(1, 256, 2), fitting(1, 128, 2), fitting(1, 256, 2, 2), fitting(1, 224, 4), fitting(1, 128, 8)))  # fmt: skip


def done(config: Int8Config, rows: int, columns: int, steps: int, processors: int) -> list[list[tuple[int, int, int, int]]]:
    """Every program's pieces (first row, first column, begin, until), as the kernel counts them, cluster by cluster."""
    plan, found = deal(config, rows, columns, processors), []
    for cluster, rank in itertools.product(range(plan.programs), range(config.cluster)):
        gl = SimpleNamespace(program_id=lambda axis, cluster=cluster: cluster, num_programs=lambda axis: plan.programs, int32=4,
                             inline_asm_elementwise=lambda text, *rest, rank=rank, **options: rank)  # fmt: skip
        names: dict[str, Any] = {"gl": gl, "rank": kernel.rank}
        names |= {name: launch_emulator.plain(getattr(kernel, name).fn, names) for name in ("_place", "_pieces", "_piece", "_corner")}
        own = []
        for index in range(names["_pieces"](plan.rounds, plan.row_tiles * plan.column_tiles, config.splits, config.cluster)):
            tile, begin, until, whole = names["_piece"](index, steps, plan.rounds, config.splits, config.cluster)
            assert whole == (until - begin == steps)
            corner = names["_corner"](tile, plan.row_tiles, plan.column_tiles, config.group, config.block_n, config.tiles, config.pair)
            own.append((*corner, begin, until))
        found.append(own)
    return found


@pytest.mark.parametrize("processors", [132, 20])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_step_of_every_tile_is_done_once(config: Int8Config, processors: int) -> None:
    dealt = 0
    for rows, columns, steps in ((1, 1, 9), (130, 1000, 8), (1152, 896, 128), (2048, 11008, 3), (9728, 896, 16), (1000, 3000, 17)):
        if refusal(config, rows, columns, 128 * steps, processors):
            continue
        dealt += 1
        found = done(config, rows, columns, steps, processors)
        times: dict[tuple[int, int], list[int]] = {}
        for row, column, begin, until in (piece for own in found for piece in own):
            times.setdefault((row, column), []).extend(range(begin, until))
        assert all(sorted(all_steps) == list(range(steps)) for all_steps in times.values())
        wanted = set(itertools.product(range(0, rows, config.block_n), range(0, columns, 128 * config.tiles)))
        assert wanted <= set(times)
        assert len(times) - len(wanted) in ((0,) if config.pair == 1 else (0, -(-rows // config.block_n)))
        assert max(map(len, found)) - min(map(len, found)) <= 1
        for first, second in zip(found[::2], found[1::2], strict=True) if config.pair > 1 else ():
            for one, other in zip(first, second, strict=True):
                cut = one[3] - one[2] < steps
                assert other[:2] == (one[0], one[1] + (0 if cut else 128 * config.tiles)), "the same rows, the next columns"
    assert dealt or (config.splits == 8 and processors == 20)


def test_every_problem_has_an_allowed_default() -> None:
    for rows, columns, summed in SHAPES:
        for dtype in ("bf16", "fp32"):
            case = problem(rows, columns, summed, dtype)
            assert reject(case, H200, default_config(case, H200)) is None
            assert unavailable(case, H200) is None
    assert 10 <= len(list(space.allowed(problem(*SHAPES[0]), H200))) <= 100
    assert default_config(problem(2048, 11008, 16384), H200).splits == 2, "five rounds and 28 tiles are left over"


def test_what_does_not_fit_is_refused_with_reasons() -> None:
    case = problem(4608, 3584, 16384)
    assert "registers" in str(reject(case, H200, fitting(2, 256)))
    assert "stages fill" in str(reject(case, H200, Int8Config(1, 256, 3)))
    assert "padding" in str(reject(problem(100, 3584, 16384), H200, fitting(1, 256)))
    assert "clusters run" in str(reject(case, H200, fitting(1, 256, 2)))
    assert "pairs" in str(reject(case, H200, fitting(1, 256, 4, 2)))
    assert "left over" in str(refusal(fitting(1, 128, 2), 128, 128 * 132, 1024, 132))
    assert "steps" in str(refusal(fitting(1, 128, 4), 128, 128, 256, 132))
    assert "do not fit" in str(refusal(Int8Config(1, 128, 3, 8), 128, 128, 2048, 132))
    assert "multiprocessors" in str(refusal(fitting(1, 128, 4), 128, 128, 2048, 2))
    assert "sm_90" in str(unavailable(case, by_name("a100")))
    assert "int32" in str(unavailable(case.with_(in_features=1 << 18), H200))


def test_operands_that_do_not_fit_are_refused_before_anything_runs() -> None:
    left, scale, right = operands(5, 9, 200)
    whole = right.contiguous()
    for bad in ((left.float(), scale, right), (left[:, :100], scale, right), (left, scale[:4], right), (left, scale.double(), right),
                (left, scale, whole), (left, scale, right[:, 1:])):  # fmt: skip
        with pytest.raises(ShapeError, match="is needed"):
            bind(*bad, torch.bfloat16, CONFIGS[0], 132)
    with pytest.raises(ShapeError, match="fp32"):
        bind(left, scale, right, torch.int32, CONFIGS[0], 132)
    with pytest.raises(ShapeError, match="int32 holds"):
        bind(left[:, :0], scale, right[:, :0], torch.bfloat16, CONFIGS[0], 132)
    with pytest.raises(ShapeError, match="left over"):
        bind(*operands(2 * 128, 128, 500), torch.bfloat16, Int8Config(1, 128, 3, 2), 2)


def test_nothing_is_launched_for_an_empty_output() -> None:
    left, scale, right = operands(0, 9, 200)
    gemm = bind(left, scale, right, torch.bfloat16, CONFIGS[0], 132)
    gemm.launch()
    assert gemm.out.shape == (0, 9)


@pytest.mark.compile
@pytest.mark.parametrize(("config", "dtype"), [
    (fitting(1, 256), "bf16"), (fitting(1, 224), "fp32"), (fitting(2, 128, pair=2), "fp16"), (fitting(1, 256, 2, 2), "bf16"),
    (fitting(1, 192, 4), "bf16"), (fitting(1, 224, 2, 2), "bf16"),
], ids=str)  # fmt: skip
def test_products_stay_in_flight_without_spills(config: Int8Config, dtype: DType) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    (unit,) = compile_units(problem(4096, 4096, 16384, dtype), config)
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    names = list(unit.function.arg_names)
    constants = {(names.index(name),): value for name, value in unit.constexprs.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in unit.divisible}
    source = GluonASTSource(unit.function, {name: unit.signature[name] for name in names}, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(unit.options))
    sass, ptx = made.asm["sass"], made.asm["ptx"]
    assert len(re.findall(r"IGMMA\.64x", sass)) == 4 * config.tiles, "one stage, both operands by descriptor"
    assert not re.search(r"IGMMA\S+ R\d+, R\d+", sass)
    waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\d+)", sass)
    assert sorted(waits) == ["0x0", "0x1"], "a stage waits for the one before it, a tile's end for all: ptxas has not serialized"
    described = [LEFT_DESCRIPTOR, RIGHT_DESCRIPTOR, OUT_DESCRIPTOR]
    assert re.findall(r"\.param \.align 64 \.b8 (\w+)\[128\]", ptx) == described
    assert set(re.findall(r"mov\.b64 \w+, (\w+param\w+);", ptx)) == set(described[: 2 + bool(unit.constexprs["WIDE"])])
    _, _, full, empty, end = ring_offsets(config.tiles, config.block_n, config.stages)
    placed = re.findall(r"mbarrier\.init[^)]*?\[\$1\], (\d).*?@global_smem, i32 (\d+)\)", made.asm["llir"])
    assert placed == [("1", str(full))], "the compiler's only barrier: the allocation starts at offset 0"
    set_up = [(int(at), int(count)) for at, count in re.findall(r"mbarrier\.init\S* \[global_smem\+(\d+)\], (\d+);", ptx)]
    stages = range(config.stages)
    assert set_up == [(full + 8 * i, 1) for i in stages[1:]] + [(empty + 8 * i, 4 * CONSUMERS * config.pair) for i in stages]
    assert end <= made.metadata.shared <= end + COMPILER_BYTES


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_exact_on_the_device_launch_after_launch(config: Int8Config, dtype: torch.dtype) -> None:
    gpu, launched_shapes = detect(), 0
    assert gpu is not None
    for rows, columns, summed in ((1, 8, 1), (130, 77, 300), (1000, 1001, 333), (300, 250, 4100), (1152, 896, 4096), (896, 896, 1000),
                                  (4608, 3584, 256), (2048, 11008, 513), (9728, 896, 1024)):  # fmt: skip
        if unavailable(problem(rows, columns, summed), gpu) or refusal(config, rows, columns, summed, gpu.sms):
            continue
        left, scale, right = operands(rows, columns, summed, "cuda")
        gemm, wanted = bind(left, scale, right, dtype, config, gpu.sms), expected(left, scale, right, dtype)
        for _ in range(3):
            gemm.out.fill_(float("nan"))
            gemm.launch()
            assert torch.equal(gemm.out, wanted)
        launched_shapes += 1
    assert launched_shapes or gpu.capability != 90
