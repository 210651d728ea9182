"""How the Hopper GEMM deals its tiles: by the kernel's own functions, every step of every tile is done once, by programs that all run."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest

from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from kernels.ternary_gemm import sparse_wgmma_kernel as kernel
from kernels.ternary_gemm.sparse_wgmma_config import (
    BARRIER_BYTES,
    COST,
    SparseConfig,
    default_config,
    most_stages,
    schedule,
    space,
    split_refusal,
)
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, STAGE_COLUMNS, shared_buffers, shared_offsets
from tests.kernels.launch_emulator import plain

H200 = by_name("h200")


def pieces(config: SparseConfig, tokens: int, rows: int, steps: int, processors: int) -> list[list[tuple[int, int, int]]]:
    """Every program's pieces (tile, begin, until), as the kernel counts them."""
    plan = schedule(config, tokens, rows, processors)
    tiles, found = plan.row_tiles * plan.token_tiles, []
    for number in range(plan.programs):
        gl = SimpleNamespace(program_id=lambda axis, number=number: number, num_programs=lambda axis: plan.programs)
        count, piece = (plain(function.fn, {"gl": gl}) for function in (kernel._pieces, kernel._piece))
        found.append([piece(index, steps, plan.rounds, config.splits) for index in range(count(plan.rounds, tiles, config.splits))])
    return found


SHAPES = list(itertools.product((1, 64, 130, 1000), (1, 130, 1152, 8448), (1, 3, 20)))


@pytest.mark.parametrize("processors", [1, 5, 132])
@pytest.mark.parametrize("splits", [1, 2, 3, 6])
def test_every_step_of_every_tile_is_done_once(splits: int, processors: int) -> None:
    cut = 0
    for (tiles, block_t), (tokens, rows, steps) in itertools.product([(1, 64), (3, 128), (1, 256)], SHAPES):
        config = SparseConfig(tiles, block_t, 3, splits)
        if split_refusal(config, tokens, rows, steps * STAGE_COLUMNS, processors):
            continue
        plan, found = schedule(config, tokens, rows, processors), pieces(config, tokens, rows, steps, processors)
        assert (plan.row_tiles - 1) * 128 * tiles < rows <= plan.row_tiles * 128 * tiles
        assert (plan.token_tiles - 1) * block_t < tokens <= plan.token_tiles * block_t
        assert 1 <= plan.programs <= processors
        assert all(own for own in found), "a program without work"
        done = Counter((tile, step) for own in found for tile, begin, until in own for step in range(begin, until))
        every = itertools.product(range(plan.row_tiles * plan.token_tiles), range(steps))
        assert done == Counter(every)
        assert all(begin < until for own in found for _, begin, until in own)
        cut += plan.split
    assert splits == 1 or processors < splits or cut, "no shape here is split"


@pytest.mark.parametrize("splits", [2, 3, 6])
def test_a_split_tile_is_a_programs_last_piece_and_its_parts_are_consecutive_programs(splits: int) -> None:
    config = SparseConfig(1, 64, 3, splits)
    plan = schedule(config, 64, 13 * 128, 12)
    assert (plan.rounds, plan.split, plan.programs) == (1, 1, 12)
    found = pieces(config, 64, 13 * 128, 20, 12)
    assert [own[-1][0] for own in found[:splits]] == [12] * splits
    assert [own[-1][1] for own in found[:splits]] == [part * 20 // splits for part in range(splits)]
    assert [len(own) for own in found] == [2] * splits + [1] * (12 - splits)


def test_tiles_that_cannot_be_cut_are_refused() -> None:
    config = SparseConfig(1, 128, 9, 3)
    assert split_refusal(SparseConfig(1, 128, 9), 0, 0, 0, 1) is None
    assert "left over" in str(split_refusal(config, 128, 132 * 128, 4096, 132))
    assert "multiprocessors" in str(split_refusal(config, 128, 45 * 128, 4096, 132))
    assert split_refusal(config, 128, 44 * 128, 4096, 132) is None
    assert "2 steps in 3 parts" in str(split_refusal(config, 128, 44 * 128, 256, 132))


@pytest.mark.parametrize(("tiles", "block_t"), COST)
def test_the_stages_fill_the_shared_memory_and_nothing_in_it_overlaps(tiles: int, block_t: int) -> None:
    stages, activations = most_stages(tiles, block_t, H200.shared_bytes), block_t * STAGE_COLUMNS
    assert stages >= 3, "a stage at hand, one before it not handed back yet, one ahead"
    used = shared_buffers(tiles, block_t, stages) * activations + BARRIER_BYTES
    assert used <= H200.shared_bytes < used + 2 * (activations + CONSUMERS * tiles * 2048)
    places = (0, *shared_offsets(tiles, block_t, stages))
    needed = (stages * activations, stages * CONSUMERS * tiles * 2048, CONSUMERS * 4 * 4096,
              CONSUMERS * (4 * block_t + 512 * tiles), 8 * stages, 8 * stages)
    assert all(after - before >= size for before, after, size in zip(places, places[1:], needed, strict=False))
    assert all(place % 1024 == 0 for place in places[:3])


def test_the_default_cuts_few_tiles_and_keeps_many_whole() -> None:
    few, many = Problem("gemm", 2560, 6912, 128, Sparsity(2, 4)), Problem("gemm", 37888, 3584, 8192, Sparsity(2, 4))
    assert default_config(few, H200).splits > 1
    assert default_config(many, H200).splits == 1
    for case in (few, many, few.with_(tokens=1), few.with_(in_features=128), few.with_(sparsity=Sparsity(6, 8))):
        assert default_config(case, H200) in list(space.allowed(case, H200))
