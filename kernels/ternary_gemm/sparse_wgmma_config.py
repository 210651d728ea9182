"""What the Hopper GEMMs can be configured to: tiles, the schedule of a launch, what is refused and why, and a default without tuning."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from kernels.fragments import ROWS
from kernels.gpu import Gpu
from kernels.inputs import DTYPES
from kernels.problem import Problem, Sparsity
from kernels.space import ConfigSpace
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES
from kernels.ternary_gemm.sparse_wgmma_ptx import CONSUMERS, STAGE_COLUMNS, shared_buffers
from reference.lifting import lifted_width

BARRIER_BYTES = 512 + 256
"""What the compiler lays behind the stages: 64 barriers, and its own bookkeeping of the warps."""
CONSUMER_REGISTERS = 240


@dataclass(frozen=True)
class SparseConfig:
    """tiles: blocks of 64 weight rows per consumer warpgroup (an output tile is 128 · tiles rows). block_t: its tokens. stages: of both
    operands, 128 columns each. splits: parts along in_features that tiles which do not fill a wave are cut into."""

    tiles: int
    block_t: int
    stages: int
    splits: int = 1


@dataclass(frozen=True)
class Schedule:
    """How an output's tiles are dealt to `programs`: each does `rounds` whole ones, and at most a part of the `split` ones, which are cut
    along in_features; where none are, all tiles are whole."""

    programs: int
    row_tiles: int
    token_tiles: int
    rounds: int
    split: int


def schedule(config: SparseConfig, tokens: int, out_features: int, processors: int) -> Schedule:
    """The schedule of a config on a GPU with that many multiprocessors."""
    row_tiles, token_tiles = -(-out_features // (CONSUMERS * ROWS * config.tiles)), -(-tokens // config.block_t)
    rounds, rest = divmod(row_tiles * token_tiles, processors)
    if config.splits == 1:
        return Schedule(min(processors, row_tiles * token_tiles), row_tiles, token_tiles, rounds, 0)
    return Schedule(processors if rounds else rest * config.splits, row_tiles, token_tiles, rounds, rest)


def columns_of(sparsity: Sparsity, in_features: int) -> int:
    """Columns that the sparse kernel multiplies: in_features, or the lifted width."""
    return lifted_width(in_features, sparsity.m) if sparsity.lifted else in_features


def is_wide(dtype: torch.dtype, out_features: int) -> bool:
    """Whether TMA can store the output: rows of a multiple of 16 bytes, 16 bits a value."""
    return dtype.itemsize == 2 and out_features % 8 == 0


def split_refusal(config: SparseConfig, tokens: int, out_features: int, columns: int, processors: int) -> str | None:
    """Why the tiles cannot be cut as the config says, or None."""
    if config.splits == 1:
        return None
    split, steps = schedule(config, tokens, out_features, processors).split, -(-columns // STAGE_COLUMNS)
    if not split:
        return "no tiles are left over to be split"
    if split * config.splits > processors:
        return f"{split} tiles in {config.splits} parts; {processors} multiprocessors run at once"
    if steps < config.splits:
        return f"{steps} steps in {config.splits} parts"
    return None


def reject(problem: Problem, gpu: Gpu, config: SparseConfig) -> str | None:
    """Accumulators and addresses in 240 registers a thread, stages in shared memory, tiles that are neither padding nor crumbs."""
    wide = is_wide(DTYPES[problem.dtype], problem.out_features)
    registers = config.tiles * (config.block_t // 2 + 4) + (26 if wide else 40)
    if registers > CONSUMER_REGISTERS:
        return f"needs about {registers} registers a thread, {CONSUMER_REGISTERS} are there"
    if config.stages != most_stages(config.tiles, config.block_t, gpu.shared_bytes):
        return f"{most_stages(config.tiles, config.block_t, gpu.shared_bytes)} stages fill the shared memory"
    if config.block_t > 64 and problem.tokens <= config.block_t // 2:
        return f"tiles of {config.block_t} tokens are mostly padding for {problem.tokens}"
    columns = columns_of(problem.sparsity, problem.in_features)
    refusal = split_refusal(config, problem.tokens, problem.out_features, columns, max(1, gpu.sms))
    if refusal:
        return refusal
    plan = schedule(config, problem.tokens, problem.out_features, max(1, gpu.sms))
    if config.tiles * config.block_t < 256 and plan.rounds >= 8:
        return f"{plan.rounds} rounds of small tiles: larger ones fill {gpu.sms} multiprocessors too"
    return None


@functools.cache
def most_stages(tiles: int, block_t: int, shared_bytes: int) -> int:
    """The stages that fit. Fewer were slower on an H200 (2026-11-22): four of six 2 % at 384 × 128, four of five 3 % at 128 × 256."""
    stages = 1
    while shared_buffers(tiles, block_t, stages + 1) * block_t * STAGE_COLUMNS + BARRIER_BYTES <= shared_bytes:
        stages += 1
    return stages


_AXES = {"tiles": (1, 2, 3, 4), "block_t": (64, 128, 256), "stages": tuple(range(3, 17)), "splits": (1, 2, 3, 4, 6)}
space = ConfigSpace(SparseConfig, _AXES, reject)

COST = {(1, 256): (0.411, 2.2), (3, 128): (0.670, 3.1), (2, 128): (0.511, 1.6), (1, 128): (0.304, 0.9), (1, 64): (0.233, 0.6)}
"""µs of a stage and of a tile besides, by tile: fitted to 8192³ and 13824×2560×8192 on an H200, 2026-11-22 (64 tokens: at 128)."""
MERGE, MERGE_BUSY = 2.5, 5.0
"""µs until the parts of split tiles have met, on the same day: 2560×256, T = 128 took 6.8 in two parts and 4.6 whole; behind whole tiles, a
guess."""


def default_config(problem: Problem, gpu: Gpu) -> SparseConfig:
    """The tile and the splits with the least time by `COST` over the rounds that they take."""
    steps = math.ceil(columns_of(problem.sparsity, problem.in_features) / STAGE_COLUMNS)
    choices = [SparseConfig(tiles, block_t, most_stages(tiles, block_t, gpu.shared_bytes), splits)
               for tiles, block_t in COST for splits in (1, 2, 3, 4, 6)]

    def time(config: SparseConfig) -> float:
        plan = schedule(config, max(1, problem.tokens), problem.out_features, max(1, gpu.sms))
        step, rest = COST[config.tiles, config.block_t]
        rounds = math.ceil(plan.row_tiles * plan.token_tiles / max(1, gpu.sms))
        if config.splits == 1:
            return rounds * (steps * step + rest)
        merge = MERGE_BUSY if plan.rounds else MERGE
        return plan.rounds * (steps * step + rest) + math.ceil(steps / config.splits) * step + rest + merge

    return min((config for config in choices if reject(problem, gpu, config) is None), key=time)


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability != 90:
        return f"needs sm_90 (wgmma), {gpu.name} is {gpu.architecture}"
    if not (problem.sparsity.lifted or (problem.sparsity.n, problem.sparsity.m) == (2, 4)):
        return f"2:4 weights or (L-2):L lifted onto them, not {problem.sparsity}"
    if columns_of(problem.sparsity, problem.in_features) > MAX_IN_FEATURES:
        return f"in_features {problem.in_features} is too large"
    return None
