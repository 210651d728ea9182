"""Configs of `sparse-mma`: what fits a GPU, and which one to take where nobody tuned."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.ternary_gemm.sparse_mma_tile import STAGE_COLUMNS, Tile

REGISTER_FILE, MOST_REGISTERS = 65_536, 255
BLOCK_RESERVE = 1024
"""Shared memory that the driver keeps for itself in every block."""
LINE_BYTES = 64
"""What the kernel allocates behind the ring of stages and the exchange."""
PORT_BYTES = 128
"""Bytes that shared memory moves in a clock."""
UNPACKING, STAGE_CLOCKS, SHORTEST_STAGE = 8, 89, 380
"""Clocks of a warp beside its products: for every 16 rows × 64 columns, and for every stage; and of a stage with few products."""
TWO_PROGRAMS = 1.07
"""How much longer a stage takes where two programs share a multiprocessor."""
PORT_SHARE = {1: 0.6, 2: 0.68}
"""Of shared memory's rate what the main loops reach in one and in two programs of a multiprocessor."""
ENOUGH_WARPS, FEW_SHARE = 8, 0.73
"""Warps of a multiprocessor that reach these clocks, and what fewer reach of them: four in one program took 1.37 times as long as eight."""
EPILOGUE = 7
"""Outputs of a multiprocessor's tiles in a clock."""
RING_BYTES = 100 << 10
"""Where a default's ring has enough stages: 512 × 64 took 2 % longer with six (144 KiB) than with four, on an H200."""
BAND = 16
"""Row tiles of a band: so many and about a hundred tiles at work read as many bytes of weights as of activations, within a factor of 2."""


@functools.cache
def _tile(warps_n: int, warps_t: int, tiles_n: int, tiles_t: int) -> Tile:
    return Tile(warps_n, warps_t, tiles_n, tiles_t)


@dataclass(frozen=True)
class MmaConfig:
    """warps_n × warps_t warps, each multiplying 16 · tiles_n weight rows by 8 · tiles_t tokens. stages: of 128 columns, at least 3.
    per_sm: programs that share a multiprocessor. band: row tiles that follow each other before the tokens move on (0: all).
    splits: parts along in_features, which meet in device memory."""

    warps_n: int
    warps_t: int
    tiles_n: int
    tiles_t: int
    stages: int
    per_sm: int = 1
    band: int = 0
    splits: int = 1

    @property
    def tile(self) -> Tile:
        """What a program computes at a time."""
        return _tile(self.warps_n, self.warps_t, self.tiles_n, self.tiles_t)

    @property
    def shared_bytes(self) -> int:
        """Of a program."""
        return self.tile.stage_bytes * self.stages + self.tile.exchange_bytes + LINE_BYTES

    @property
    def register_limit(self) -> int:
        """Registers that a thread may have where per_sm programs are to share a multiprocessor."""
        return min(MOST_REGISTERS, REGISTER_FILE // (self.tile.threads * self.per_sm) // 8 * 8)

    @property
    def registers(self) -> int:
        """About what a thread needs."""
        tile = self.tile
        return tile.accumulators + 8 * tile.tiles_t + 2 * tile.word_copies + (51 if self.splits == 1 else 83)

    @property
    def options(self) -> dict[str, int]:
        """For the compiler."""
        limit = {} if self.register_limit == MOST_REGISTERS else {"maxnreg": self.register_limit}
        return {"num_warps": self.warps_n * self.warps_t, **limit}

    def product_clocks(self, gpu: Gpu) -> float:
        """Clocks of the tensor cores for 64 columns of a tile: instructions of 16 rows × 8 tokens in each of four partitions."""
        return self.tile.block_n * self.tile.block_t / 512 * instruction_clocks(gpu)

    @property
    def port_clocks(self) -> float:
        """Clocks of shared memory for 64 columns of a tile: activations and words written once, read by every warp that multiplies them."""
        tile = self.tile
        tokens, words = 64 * tile.block_t, 16 * tile.block_n
        return (tokens * (1 + self.warps_n) + words * (1 + self.warps_t)) / PORT_BYTES


def instruction_clocks(gpu: Gpu) -> int:
    """Clocks of an mma.sp.m16n8k64 in one partition of a multiprocessor: 8,192 products at the rates of the datasheets; sm_90 as measured
    on an H200, where it has half of the rate of wgmma. GA102's and Ada's multiprocessors have half of the A100's."""
    return 16 if gpu.capability in (86, 89) else 8


def reject(problem: Problem, gpu: Gpu, config: MmaConfig) -> str | None:
    """Why a config does not fit the GPU or the problem, or None."""
    tile, threads = config.tile, config.tile.threads
    if threads not in (128, 256):
        return f"{threads} threads: 128 or 256 fill the four partitions of a multiprocessor"
    if tile.block_n % 64:
        return f"{tile.block_n} weight rows: whole blocks of 64 are needed"
    if (tile.tiles_n in (5, 6)) != (tile.tiles_t in (6, 7)):
        return f"{tile.tiles_n} row tiles by {tile.tiles_t} token tiles: 5 and 6 go with 6 and 7, where they unpack less for a product"
    if config.registers > config.register_limit:
        return f"needs about {config.registers} registers a thread, {config.register_limit} are there"
    needed = config.per_sm * (config.shared_bytes + BLOCK_RESERVE) - BLOCK_RESERVE
    if needed > gpu.shared_bytes:
        return f"needs {needed} bytes of shared memory, {gpu.name} has {gpu.shared_bytes}"
    if config.stages == 3 and needed + config.per_sm * tile.stage_bytes <= gpu.shared_bytes:
        return "four stages fit too, and three leave one to arrive during a stage"
    products = config.product_clocks(gpu)
    if config.port_clocks > 1.3 * products and problem.tokens > 32:
        return f"shared memory would take {config.port_clocks:.0f} clocks for {products:.0f} of products"
    if tile.block_t > 16 and problem.tokens <= tile.block_t // 2:
        return f"tiles of {tile.block_t} tokens are mostly padding for {problem.tokens}"
    if tile.block_n > 128 and problem.out_features <= tile.block_n // 2:
        return f"tiles of {tile.block_n} rows are mostly padding for {problem.out_features}"
    row_tiles = math.ceil(problem.out_features / tile.block_n)
    if config.band >= max(1, row_tiles):
        return f"a band of {config.band} holds all {row_tiles} row tiles"
    if config.band and packed_bytes(problem) < gpu.l2_bytes // 2:
        return "the packed weight stays in the L2 without bands"
    token_tiles = math.ceil(problem.tokens / tile.block_t)
    if not config.band and row_tiles > BAND and token_tiles > 1 and packed_bytes(problem) > 2 * gpu.l2_bytes:
        return f"without bands the weight comes from device memory again for each of {token_tiles} token tiles"
    tiles = row_tiles * token_tiles
    if config.splits > 1 and (tiles > gpu.sms * config.per_sm or blocks(problem) < 4 * config.splits):
        return f"{tiles} tiles of {blocks(problem)} blocks are not cut into {config.splits} parts: they fill the GPU, or parts are short"
    if tile.accumulators < 64 and tile.block_t < 64 < problem.tokens and tiles > 8 * gpu.sms:
        return f"{tiles} small tiles: larger ones fill {gpu.sms} multiprocessors too"
    return None


def packed_bytes(problem: Problem) -> float:
    """Of the problem's weight, lifted where it is: 2 bits a column."""
    return problem.out_features * columns(problem) / 4


def columns(problem: Problem) -> int:
    """Columns that are multiplied."""
    if not problem.sparsity.lifted:
        return problem.in_features
    return math.ceil(problem.in_features / problem.sparsity.m) * 4 * (problem.sparsity.m // 2 - 1)


def blocks(problem: Problem) -> int:
    """Blocks of `STAGE_COLUMNS` columns."""
    return math.ceil(columns(problem) / STAGE_COLUMNS)


_DEFAULTS = (
    (4, 2, 5, 7), (4, 2, 6, 6), (4, 2, 5, 6), (4, 2, 8, 4), (2, 4, 8, 4), (2, 2, 8, 4), (4, 2, 4, 4), (2, 2, 4, 4), (4, 1, 4, 4),
    (4, 1, 2, 4), (4, 1, 1, 4), (4, 1, 4, 2), (4, 1, 2, 2), (4, 1, 1, 2), (4, 1, 4, 1), (4, 1, 2, 1), (4, 1, 1, 1),
)


def default_config(problem: Problem, gpu: Gpu) -> MmaConfig:
    """The tile whose waves are the least work, with as many stages as fit, up to 6 or `RING_BYTES`. An estimate by clocks."""
    choices = []
    for tile in _DEFAULTS:
        for per_sm, splits in itertools.product((2, 1), (1, 2, 4, 8)):
            depths = (stages for stages in (6, 5, 4, 3) if stages <= max(4, RING_BYTES // _tile(*tile).stage_bytes))
            deepest = (MmaConfig(*tile, stages, per_sm, band, splits) for stages in depths for band in (BAND, 0))
            choices += [config for config in deepest if reject(problem, gpu, config) is None][:1]
    return min(choices, key=lambda config: estimated_clocks(problem, gpu, config))


def estimated_clocks(problem: Problem, gpu: Gpu, config: MmaConfig) -> float:
    """Clocks of a problem: full waves of tiles or their parts, and a last one with fewer programs a multiprocessor. The constants fit an
    H200's timings of 2026-11-22 (docs/kernels-mma.md)."""
    tile, places = config.tile, max(1, gpu.sms)
    parts = math.ceil(problem.out_features / tile.block_n) * math.ceil(max(1, problem.tokens) / tile.block_t) * config.splits
    waves, rest = divmod(parts, places * config.per_sm)
    last = _part_clocks(problem, gpu, config, math.ceil(rest / places)) if rest else 0.0
    return waves * _part_clocks(problem, gpu, config, config.per_sm) + last


def _part_clocks(problem: Problem, gpu: Gpu, config: MmaConfig, programs: int) -> float:
    """Clocks of a part where so many programs share a multiprocessor: its stages, each the slower of its warps and of shared memory, then
    what it leaves in device memory and the epilogue."""
    tile, area = config.tile, config.tile.block_n * config.tile.block_t
    share = 1.0 if programs * tile.threads // 32 >= ENOUGH_WARPS else FEW_SHARE
    warp = 2 * tile.tiles_n * (tile.tiles_t * instruction_clocks(gpu) + UNPACKING) + STAGE_CLOCKS
    taken = programs * tile.threads / 128 * warp * (TWO_PROGRAMS if programs > 1 else 1.0)
    stage = max(taken, 2 * programs * config.port_clocks / PORT_SHARE[programs]) / share
    meeting = 0.0 if config.splits == 1 else 2500 + area / 16 * (1 + config.splits)
    return math.ceil(blocks(problem) / config.splits) * max(SHORTEST_STAGE, stage) + area * programs / EPILOGUE + meeting
