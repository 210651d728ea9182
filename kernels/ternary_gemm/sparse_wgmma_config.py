"""What the Hopper GEMMs can be configured to: tiles, the schedule of a launch, what is refused and why, and a default without tuning."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from kernels.fragments import ROWS
from kernels.gpu import Gpu
from kernels.inputs import DTYPES
from kernels.problem import DENSE, Problem, Sparsity
from kernels.space import ConfigSpace
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, STAGE_COLUMNS
from kernels.ternary_gemm.sparse_wgmma_split import meeting_offsets
from reference.lifting import lifted_width

COMPILER_BYTES = 256
"""What the compiler keeps in shared memory for itself: its bookkeeping of the warps."""
FEWEST_STAGES = 4
"""With three, 128 × 256 in two parts took twice the time of five (H200, 2026-11-22); with two, several row blocks wait for themselves."""
LEFT_OVER = {1: 0, 2: 0, 4: 12, 8: 12}
"""Multiprocessors of an H200's 132 that clusters of so many programs cannot use (cuOccupancyMaxActiveClusters, 2026-11-22: 66, 30, 15)."""
CONSUMER_REGISTERS = 240


@dataclass(frozen=True)
class SparseConfig:
    """tiles: blocks of 64 weight rows per consumer warpgroup (an output tile is 128 · tiles rows). block_t: its tokens. stages: of both
    operands, 128 columns each. splits: parts along in_features that tiles which do not fill a wave are cut into, a cluster of programs.
    pair: 2 where two programs of a cluster, with neighbouring rows and the same tokens, bring half of the activations each, to both."""

    tiles: int
    block_t: int
    stages: int
    splits: int = 1
    pair: int = 1


@dataclass(frozen=True)
class Schedule:
    """How an output's tiles are dealt to `programs` clusters of as many programs as there are parts, or two of a pair, or one: each program
    does `rounds` whole ones, and a part of one of the `split` ones, which are cut along in_features."""

    programs: int
    row_tiles: int
    token_tiles: int
    rounds: int
    split: int


def schedule(config: SparseConfig, tokens: int, out_features: int, processors: int) -> Schedule:
    """The schedule of a config on a GPU with that many multiprocessors."""
    row_tiles, token_tiles = -(-out_features // (CONSUMERS * ROWS * config.tiles)), -(-tokens // config.block_t)
    places = max(1, clusters(processors, config.splits))
    rounds, rest = divmod(row_tiles * token_tiles, places * config.splits)
    if config.splits == 1:
        return Schedule(min(places, row_tiles * token_tiles) // config.pair, row_tiles, token_tiles, rounds, 0)
    return Schedule(places if rounds else rest, row_tiles, token_tiles, rounds, rest)


def clusters(processors: int, splits: int) -> int:
    """How many clusters of so many programs run at once."""
    return max(0, processors - LEFT_OVER[splits]) // splits


def columns_of(sparsity: Sparsity, in_features: int) -> int:
    """Columns that the sparse kernel multiplies: in_features, or the lifted width."""
    return lifted_width(in_features, sparsity.m) if sparsity.lifted else in_features


def is_wide(dtype: torch.dtype, out_features: int) -> bool:
    """Whether TMA can store the output: rows of a multiple of 16 bytes, 16 bits a value."""
    return dtype.itemsize == 2 and out_features % 8 == 0


def split_refusal(config: SparseConfig, tokens: int, out_features: int, columns: int, processors: int) -> str | None:
    """Why the tiles cannot be dealt as the config says, or None."""
    plan = schedule(config, tokens, out_features, processors)
    if config.pair > max(1, processors):
        return f"pairs of programs on {processors} multiprocessors"
    if config.pair > 1 and (config.splits > 1 or plan.row_tiles % 2):
        return f"{plan.row_tiles} tiles of rows in {config.splits} parts; pairs need an even number, whole"
    if config.splits == 1:
        return None
    split, steps = plan.split, -(-columns // STAGE_COLUMNS)
    places = clusters(processors, config.splits)
    if not split:
        return "no tiles are left over to be split"
    if split > places:
        return f"{split} tiles in {config.splits} parts; {places} clusters of {config.splits} programs run at once"
    if steps < config.splits:
        return f"{steps} steps in {config.splits} parts"
    return None


def reject(problem: Problem, gpu: Gpu, config: SparseConfig) -> str | None:
    """Accumulators and addresses in 240 registers a thread, stages in shared memory, tiles that are neither padding nor crumbs."""
    wide = is_wide(DTYPES[problem.dtype], problem.out_features)
    registers = config.tiles * (config.block_t // 2 + 4) + (26 if wide else 40)
    if registers > CONSUMER_REGISTERS:
        return f"needs about {registers} registers a thread, {CONSUMER_REGISTERS} are there"
    most = most_stages(config.tiles, config.block_t, config.splits, gpu.shared_bytes)
    if config.stages != most or most < FEWEST_STAGES:
        return f"{most} stages fill the shared memory, and {FEWEST_STAGES} are the fewest"
    if config.block_t > 64 and problem.tokens <= config.block_t // 2:
        return f"tiles of {config.block_t} tokens are mostly padding for {problem.tokens}"
    columns = columns_of(problem.sparsity, problem.in_features)
    refusal = split_refusal(config, problem.tokens, problem.out_features, columns, max(1, gpu.sms))
    if refusal:
        return refusal
    plan = schedule(config, problem.tokens, problem.out_features, max(1, gpu.sms))
    if config.pair > 1 and plan.rounds < 2:
        return f"{plan.rounds} rounds: pairs wait for each other, and save power where a launch is long"
    if config.tiles * config.block_t < 256 and plan.rounds >= 8 and problem.tokens > 64:
        return f"{plan.rounds} rounds of small tiles: larger ones fill {gpu.sms} multiprocessors too"
    return None


@functools.cache
def most_stages(tiles: int, block_t: int, splits: int, shared_bytes: int) -> int:
    """The stages that fit. Fewer were slower on an H200 (2026-11-22): four of six 2 % at 384 × 128, four of five 3 % at 128 × 256."""
    stages = 0
    while meeting_offsets(tiles, block_t, stages + 1, splits)[2] + COMPILER_BYTES <= shared_bytes:
        stages += 1
    return stages


_AXES = {"tiles": (1, 2, 3, 4), "block_t": (64, 128, 256), "stages": tuple(range(3, 17)), "splits": (1, 2, 4, 8), "pair": (1, 2)}
space = ConfigSpace(SparseConfig, _AXES, reject)

COST = {(1, 64): (0.136, 0.8), (1, 128): (0.190, 1.3), (2, 128): (0.369, 2.3), (1, 256): (0.356, 2.0), (3, 128): (0.557, 2.8)}
"""µs of a stage and of a tile besides, by tile."""
MERGE = {1: 0.0, 2: 1.0, 4: 1.7, 8: 3.8}
"""µs that a tile's parts take to meet. Both fitted to 550 timings at 16 layers' shapes, T = 128 to 16384, H200, 2026-11-22: 3.4 % mean
error; what `default_config` chooses by them is 0.4 % above the best config (geometric mean), 9 % at worst."""

FEW_TOKENS = 64
"""Tokens up to which the costs below count: of tiles of 64 tokens, weights from device memory."""
FEW_STAGE = {"sparse": {1: 0.153, 2: 0.221, 3: 0.378, 4: 0.425}, "dense": {1: 0.189, 2: 0.297, 3: 0.490, 4: 0.582}}
FEW_LAUNCH, FEW_TILE, FEW_ROWS = 1.5, 0.05, 0.71
FEW_MERGE, FEW_MERGE_ROWS = {2: 0.1, 4: 1.15, 8: 3.0}, 0.2
"""µs of a stage by row blocks of a warpgroup; of a launch; of a tile, and for each of those row blocks; of a meeting in so many parts, and
for each. Fitted to 122 timings at 12 layers, T = 64, cold, both kinds (H200, 2026-11-22): 6.7 % mean error; what is chosen by them is the
best config that was timed in 23 of 24 cases, and 0.8 % above it in one."""
CLIPPED = 0.25
"""µs that a stage takes at least where half of a tile's tokens or more are missing (TMA clips the box) and every multiprocessor has a
program: with 32 tokens 0.21 to 0.30 where 64 took 0.16, half of that with half as many programs; 48 and 56 took as long as 64."""

LONG_US = 100.0
"""A launch that takes longer runs in pairs: 8192 × 8192 × 8192 sustained, 128 × 256: 2,267 TOPS and 0.290 J per 10¹² operations, without
pairs 2,210 and 0.315; in short turns, where power does not decide, pairs are 1 to 2 % slower (H200, 2026-11-22)."""


def estimated_us(problem: Problem, gpu: Gpu, config: SparseConfig) -> float:
    """µs by the costs above, of whole rounds of tiles, then a part of one where tiles are split; infinite for a tile that is not there.
    Without the launch but for few tokens, where it counts beside other kernels too."""
    sms, tokens = max(1, gpu.sms), max(1, problem.tokens)
    steps = math.ceil(columns_of(problem.sparsity, problem.in_features) / STAGE_COLUMNS)
    plan = schedule(config, tokens, problem.out_features, sms)
    rounds = math.ceil(plan.row_tiles * plan.token_tiles / sms) if config.splits == 1 else plan.rounds
    part = 0 if config.splits == 1 else math.ceil(steps / config.splits)
    pieces, stages = rounds + (part > 0), rounds * steps + part
    if tokens > FEW_TOKENS or config.block_t > FEW_TOKENS:
        step, rest = COST.get((config.tiles, config.block_t), (math.inf, 0.0))
        return stages * step + pieces * rest + MERGE[config.splits]
    kind = "dense" if problem.sparsity == DENSE else "sparse"
    busy = plan.programs * config.splits * config.pair / sms
    step = max(FEW_STAGE[kind].get(config.tiles, math.inf), CLIPPED * busy if tokens <= config.block_t // 2 else 0.0)
    read = problem.out_features * steps * STAGE_COLUMNS / 4 / min(gpu.bandwidth, 1e13) * 1e6
    merge = FEW_MERGE[config.splits] + FEW_MERGE_ROWS * config.tiles if part else 0.0
    return float(FEW_LAUNCH + math.hypot((stages * step) ** 2, read**2) ** 0.5 + pieces * (FEW_TILE + FEW_ROWS * config.tiles) + merge)


def default_config(problem: Problem, gpu: Gpu) -> SparseConfig:
    """The tile and the splits of least estimated time (`estimated_us`); in pairs where that is long."""
    tiles = [(tiles, 64) for tiles in FEW_STAGE["sparse"]] if problem.tokens <= FEW_TOKENS else COST
    choices = [SparseConfig(*tile, most_stages(*tile, splits, gpu.shared_bytes), splits) for tile in tiles for splits in (1, 2, 4, 8)]

    def time(config: SparseConfig) -> float:
        return estimated_us(problem, gpu, config)

    best = min((config for config in choices if reject(problem, gpu, config) is None), key=time)
    paired = replace(best, pair=2)
    return paired if time(best) >= LONG_US and reject(problem, gpu, paired) is None else best


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability != 90:
        return f"needs sm_90 (wgmma), {gpu.name} is {gpu.architecture}"
    if not (problem.sparsity.lifted or (problem.sparsity.n, problem.sparsity.m) == (2, 4)):
        return f"2:4 weights or (L-2):L lifted onto them, not {problem.sparsity}"
    if columns_of(problem.sparsity, problem.in_features) > MAX_IN_FEATURES:
        return f"in_features {problem.in_features} is too large"
    return None
