"""How the Hopper GEMM deals its tiles: by the kernel's own functions, every step of every tile is done once, by programs that all run."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from kernels.ternary_gemm import sparse_wgmma_kernel as kernel
from kernels.ternary_gemm.sparse_wgmma_config import (
    COMPILER_BYTES,
    COST,
    FEWEST_STAGES,
    SparseConfig,
    clusters,
    default_config,
    most_stages,
    schedule,
    space,
    split_refusal,
)
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, SLICE, STAGE_COLUMNS, shared_offsets
from kernels.ternary_gemm.sparse_wgmma_split import (
    PIECE_BYTES,
    accumulator,
    apart,
    first_unit,
    meeting_offsets,
    owned_units,
    pieces_of,
    sent_bytes,
)
from tests.kernels.launch_emulator import plain

H200 = by_name("h200")


def pieces(config: SparseConfig, tokens: int, rows: int, steps: int, processors: int) -> list[list[tuple[int, int, int]]]:
    """Every program's pieces (tile, begin, until), as the kernel counts them, cluster by cluster."""
    plan = schedule(config, tokens, rows, processors)
    tiles, found = plan.row_tiles * plan.token_tiles, []
    for cluster, rank in itertools.product(range(plan.programs), range(config.splits * config.pair)):
        gl = SimpleNamespace(program_id=lambda axis, cluster=cluster: cluster, num_programs=lambda axis: plan.programs, int32=4,
                             inline_asm_elementwise=lambda text, *rest, rank=rank, **options: {kernel.rank(): rank}[text])
        names = {"gl": gl, "rank": kernel.rank}
        names |= {name: plain(getattr(kernel, name).fn, names) for name in ("_place", "_pieces", "_piece")}
        count = names["_pieces"](plan.rounds, tiles, config.splits, config.pair)
        found.append([names["_piece"](index, steps, plan.rounds, config.splits, config.pair) for index in range(count)])
    return found


@pytest.mark.parametrize(("tokens", "rows", "processors"), [(1, 256, 132), (1000, 1152 + 128, 132), (2000, 8448, 132), (700, 1024, 6)])
def test_a_pair_does_neighbouring_rows_of_the_same_tokens(tokens: int, rows: int, processors: int) -> None:
    config = SparseConfig(1, 128, 9, pair=2)
    plan, found = schedule(config, tokens, rows, processors), pieces(config, tokens, rows, 3, processors)
    assert plan.row_tiles % 2 == 0
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert [(tile + 1, begin, until) for tile, begin, until in first] == second
        assert all(tile % plan.row_tiles % 2 == 0 for tile, _, _ in first)
    done = sorted(tile for own in found for tile, _, _ in own)
    assert done == list(range(plan.row_tiles * plan.token_tiles))
    assert "even" in str(split_refusal(config, tokens, rows + 128, 384, processors))


SHAPES = list(itertools.product((1, 64, 130, 1000), (1, 130, 1152, 8448), (1, 3, 20)))


@pytest.mark.parametrize("processors", [1, 5, 20, 132])
@pytest.mark.parametrize("splits", [1, 2, 4, 8])
def test_every_step_of_every_tile_is_done_once(splits: int, processors: int) -> None:
    cut = 0
    for (tiles, block_t), (tokens, rows, steps) in itertools.product([(1, 64), (3, 128), (1, 256)], SHAPES):
        config = SparseConfig(tiles, block_t, 3, splits)
        if not clusters(processors, splits) or split_refusal(config, tokens, rows, steps * STAGE_COLUMNS, processors):
            continue
        plan, found = schedule(config, tokens, rows, processors), pieces(config, tokens, rows, steps, processors)
        assert (plan.row_tiles - 1) * 128 * tiles < rows <= plan.row_tiles * 128 * tiles
        assert (plan.token_tiles - 1) * block_t < tokens <= plan.token_tiles * block_t
        assert 1 <= plan.programs <= clusters(processors, splits)
        assert len(found) == plan.programs * splits <= processors
        assert all(own for own in found), "a program without work"
        done = Counter((tile, step) for own in found for tile, begin, until in own for step in range(begin, until))
        every = itertools.product(range(plan.row_tiles * plan.token_tiles), range(steps))
        assert done == Counter(every)
        assert all(begin < until for own in found for _, begin, until in own)
        cut += plan.split
    assert splits == 1 or not clusters(processors, splits) or cut, "no shape here is split"


@pytest.mark.parametrize(("splits", "processors"), [(2, 12), (4, 24), (8, 28)])
@pytest.mark.parametrize("left", [1, 2])
def test_a_split_tile_is_the_last_piece_of_all_programs_of_a_cluster(splits: int, processors: int, left: int) -> None:
    config = SparseConfig(1, 64, 3, splits)
    places = clusters(processors, splits)
    whole = places * splits
    plan = schedule(config, 64, (whole + left) * 128, processors)
    assert (plan.rounds, plan.split, plan.programs) == (1, left, places)
    found = pieces(config, 64, (whole + left) * 128, 20, processors)
    assert [own[0] for own in found] == [(number, 0, 20) for number in range(whole)]
    for number in range(places):
        cluster = found[number * splits : (number + 1) * splits]
        parts = [(whole + number, part * 20 // splits, (part + 1) * 20 // splits) for part in range(splits)]
        assert [own[1:] for own in cluster] == ([[part] for part in parts] if number < left else [[]] * splits)


def test_tiles_that_cannot_be_cut_are_refused() -> None:
    config = SparseConfig(1, 128, 9, 4)
    assert split_refusal(SparseConfig(1, 128, 9), 0, 0, 0, 1) is None
    assert "left over" in str(split_refusal(config, 128, 120 * 128, 4096, 132))
    assert "30 clusters" in str(split_refusal(config, 128, 31 * 128, 4096, 132))
    assert split_refusal(config, 128, 30 * 128, 4096, 132) is None
    assert "pairs of programs on 1 " in str(split_refusal(SparseConfig(1, 128, 9, pair=2), 128, 256, 384, 1))
    assert "3 steps in 4 parts" in str(split_refusal(config, 128, 30 * 128, 384, 132))


@pytest.mark.parametrize(("splits", "processors"), [(2, 1), (4, 15), (8, 16)])
def test_a_gpu_too_small_for_a_cluster_keeps_tiles_whole(splits: int, processors: int) -> None:
    assert clusters(processors, splits) == 0
    assert split_refusal(SparseConfig(1, 64, 16, splits), 64, 1024, 4096, processors) is not None
    assert default_config(Problem("gemm", 512, 4096, 64, Sparsity(2, 4)), replace(H200, sms=processors)).splits < splits


@pytest.mark.parametrize(("tiles", "block_t", "splits"), [
    (*tile, splits) for tile in COST for splits in (1, 2, 4, 8) if most_stages(*tile, splits, H200.shared_bytes) >= FEWEST_STAGES
])
def test_the_stages_fill_the_shared_memory_and_nothing_in_it_overlaps(tiles: int, block_t: int, splits: int) -> None:
    stages, activations = most_stages(tiles, block_t, splits, H200.shared_bytes), block_t * STAGE_COLUMNS
    *offsets, end = shared_offsets(tiles, block_t, stages)
    sums, barriers, last = meeting_offsets(tiles, block_t, stages, splits)
    assert last + COMPILER_BYTES <= H200.shared_bytes < last + COMPILER_BYTES + activations + CONSUMERS * tiles * 2048 + 16 + 128
    places = (0, *offsets, end) if splits == 1 else (0, *offsets, sums, barriers, last)
    needed = (stages * activations, stages * CONSUMERS * tiles * 2048, CONSUMERS * 4 * 4096,
              CONSUMERS * (4 * block_t + 512 * tiles), 8 * stages, 8 * stages,
              CONSUMERS * (splits - 1) * sent_bytes(tiles, block_t, splits), 8 * CONSUMERS)
    assert all(after - before >= size for (before, after), size in zip(itertools.pairwise(places), needed, strict=False))
    assert end <= sums
    assert all(place % 1024 == 0 for place in places[:3]), "activations, weights and the staged output"
    assert all(place % 8 == 0 for place in (*offsets, barriers, last))
    assert splits == 1 or sums % 16 == 0, "a piece is sent 16 bytes a thread"


@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize(("tiles", "block_t"), sorted({*COST, (2, 64), (3, 64), (4, 64)}))
def test_every_accumulator_is_in_one_piece_of_one_part(tiles: int, block_t: int, splits: int) -> None:
    own = [list(pieces_of(part, tiles, block_t, splits)) for part in range(splits)]
    assert [piece for part in own for piece in part] == list(range(tiles * block_t // 8))
    found = sorted(accumulator(piece, tiles, block_t) + i for part in own for piece in part for i in range(4))
    assert found == list(range(tiles * block_t // 2))
    assert max(len(part) for part in own) * PIECE_BYTES == sent_bytes(tiles, block_t, splits)
    for part, some in enumerate(own):
        first, count = first_unit(part, tiles, block_t, splits), apart(tiles, block_t)
        owned = range(first, first + owned_units(part, tiles, block_t, splits))
        starts = [accumulator(piece, tiles, block_t) for piece in some]
        groups = {(start // (block_t // 2), start % (block_t // 2) // 4) for start in starts}
        stored = {(m, group) for m in range(tiles) for group in range(block_t // 8) if group * 8 // SLICE * count + m % count in owned}
        assert groups == stored, "the slices of row blocks that the epilogue stores"


def test_the_default_cuts_few_tiles_and_keeps_many_whole() -> None:
    few, many = Problem("gemm", 2560, 6912, 128, Sparsity(2, 4)), Problem("gemm", 37888, 3584, 8192, Sparsity(2, 4))
    assert default_config(few, H200).splits > 1
    assert default_config(many, H200).splits == 1
    for case in (few, many, few.with_(tokens=1), few.with_(in_features=128), few.with_(sparsity=Sparsity(6, 8))):
        assert default_config(case, H200) in list(space.allowed(case, H200))
