"""What the int8 × int8 Hopper GEMM can be configured to: tiles, the schedule of a launch, what is refused and why, and a default.

Problems are those of a gemm: `tokens` rows of the output, `out_features` columns, sums over `in_features`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from kernels.gpu import Gpu
from kernels.inputs import DTYPES
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES
from kernels.ternary_gemm.int8_wgmma_ptx import BOX, ring_offsets, stage_bytes
from kernels.ternary_gemm.int8_wgmma_stage import sums_bytes
from kernels.ternary_gemm.sparse_wgmma_config import COMPILER_BYTES, clusters, is_wide
from kernels.ternary_gemm.sparse_wgmma_ptx import STAGE_COLUMNS

FEWEST_STAGES = 3
CONSUMER_REGISTERS = 232
"""A thread; the producer, which has as many copies to make as a tile of 224 rows has boxes, keeps 32."""


@dataclass(frozen=True)
class Int8Config:
    """tiles: blocks of 64 columns per consumer warpgroup (an output tile has 128 · tiles columns). block_n: its rows. stages: of both
    operands, 128 bytes a row. splits: parts along the sum that tiles which do not fill a wave are cut into, a cluster of programs. pair: 2
    where two programs, with neighbouring columns and the same rows, bring half of the rows' operand each, to both (beside splits 1 or 2).
    group: tiles of rows that run under each other before those of the next columns do."""

    tiles: int
    block_n: int
    stages: int
    splits: int = 1
    pair: int = 1
    group: int = 8

    @property
    def cluster(self) -> int:
        """Programs of a cluster."""
        return max(self.splits, self.pair)


@dataclass(frozen=True)
class Deal:
    """How an output's tiles are dealt to `programs` clusters: each program does `rounds` whole ones, and a part of one of the `split`
    ones. column_tiles: a multiple of the pair."""

    programs: int
    row_tiles: int
    column_tiles: int
    rounds: int
    split: int


def deal(config: Int8Config, rows: int, columns: int, processors: int) -> Deal:
    """The schedule of a config on a GPU with that many multiprocessors."""
    row_tiles, column_tiles = -(-rows // config.block_n), -(-columns // (BOX * config.tiles * config.pair)) * config.pair
    places, tiles = max(1, clusters(processors, config.cluster)), row_tiles * column_tiles
    rounds, rest = divmod(tiles, places * config.cluster)
    if config.splits == 1:
        return Deal(min(places, tiles // config.pair), row_tiles, column_tiles, rounds, 0)
    return Deal(places if rounds else rest, row_tiles, column_tiles, rounds, rest)


@functools.cache
def most_stages(tiles: int, block_n: int, shared_bytes: int) -> int:
    """The stages that fit."""
    stages = 0
    while ring_offsets(tiles, block_n, stages + 1)[4] + COMPILER_BYTES <= shared_bytes:
        stages += 1
    return stages


def refusal(config: Int8Config, rows: int, columns: int, summed: int, processors: int) -> str | None:
    """Why a launch cannot be dealt as the config says, or None."""
    if config.pair > 1 and config.splits > 2:
        return f"pairs of programs in clusters of {config.splits}"
    if config.cluster > max(1, processors):
        return f"clusters of {config.cluster} programs on {processors} multiprocessors"
    if config.splits == 1:
        return None
    plan, steps = deal(config, rows, columns, processors), -(-summed // STAGE_COLUMNS)
    if not plan.split:
        return "no tiles are left over to be split"
    if plan.split > clusters(processors, config.cluster):
        return f"{plan.split} tiles in {config.splits} parts; {clusters(processors, config.cluster)} clusters run at once"
    if steps < config.splits:
        return f"{steps} steps in {config.splits} parts"
    if sums_bytes(config.tiles, config.block_n, config.splits) > config.stages * stage_bytes(config.tiles, config.block_n):
        return f"the sums of {config.splits} parts do not fit {config.stages} stages"
    return None


def reject(problem: Problem, gpu: Gpu, config: Int8Config) -> str | None:
    """Accumulators and addresses in 232 registers a thread, stages in shared memory, no tile that is mostly padding."""
    registers = config.tiles * config.block_n // 2 + (26 if is_wide(DTYPES[problem.dtype], problem.out_features) else 40)
    if registers > CONSUMER_REGISTERS:
        return f"needs about {registers} registers a thread, {CONSUMER_REGISTERS} are there"
    most = most_stages(config.tiles, config.block_n, gpu.shared_bytes)
    if config.stages != most or most < FEWEST_STAGES:
        return f"{most} stages fill the shared memory, and {FEWEST_STAGES} are the fewest"
    if config.block_n > 128 and problem.tokens <= config.block_n // 2:
        return f"tiles of {config.block_n} rows are mostly padding for {problem.tokens}"
    return refusal(config, problem.tokens, problem.out_features, problem.in_features, max(1, gpu.sms))


_AXES = {"tiles": (1, 2), "block_n": (128, 192, 224, 256), "stages": tuple(range(3, 8)), "splits": (1, 2, 4, 8), "pair": (1, 2),
         "group": (4, 8, 16)}  # fmt: skip
space = ConfigSpace(Int8Config, _AXES, reject)

COST = {(1, 256): (0.745, 2.9), (1, 224): (0.665, 2.6), (1, 192): (0.570, 2.4), (1, 128): (0.375, 1.9), (2, 128): (0.755, 2.9)}
"""µs of a stage and of a tile besides, by tile."""
MERGE_US = 3.0
"""µs that a tile's parts take to meet. Both chosen by 80 timings of seven layers' dW at T = 16384, H200, 2026-11-22: what `default_config`
chooses by them is at most 4 % above the best config. All large tiles are within 5 % of each other: power decides."""
LONG_US = 100.0
"""A launch that takes longer runs in pairs: 4608 × 3584 × 16384 sustained, 128 × 256: 1,388 TOPS, without pairs 1,365; in short turns pairs
are 2 % slower (H200, 2026-11-22)."""


def time_us(config: Int8Config, rows: int, columns: int, summed: int, processors: int) -> float:
    """Estimated µs of a launch, by `COST`."""
    plan, steps = deal(config, rows, columns, processors), math.ceil(summed / STAGE_COLUMNS)
    step, rest = COST[config.tiles, config.block_n]
    if config.splits == 1:
        return math.ceil(plan.row_tiles * plan.column_tiles / (plan.programs * config.cluster)) * (steps * step + rest)
    return plan.rounds * (steps * step + rest) + math.ceil(steps / config.splits) * step + rest + MERGE_US


def default_config(problem: Problem, gpu: Gpu) -> Int8Config:
    """The tile and the splits with the least time by `COST`; in pairs where that is long, and no longer for them."""
    sizes = problem.tokens, problem.out_features, problem.in_features, max(1, gpu.sms)
    choices = [Int8Config(tiles, block_n, most_stages(tiles, block_n, gpu.shared_bytes), splits)
               for tiles, block_n in COST for splits in (1, 2, 4, 8)]
    best = min((config for config in choices if reject(problem, gpu, config) is None), key=lambda config: time_us(config, *sizes))
    paired, time = replace(best, pair=2), time_us(best, *sizes)
    return paired if time >= LONG_US and reject(problem, gpu, paired) is None and time_us(paired, *sizes) <= time else best


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability != 90:
        return f"needs sm_90 (wgmma), {gpu.name} is {gpu.architecture}"
    if not 0 < problem.in_features <= MAX_IN_FEATURES:
        return f"sums over {problem.in_features}; int32 holds 1 to {MAX_IN_FEATURES}"
    return None
