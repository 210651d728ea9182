"""Configs of the dense Triton GEMM: the tiles worth trying, what they need, and the heuristic choice among them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.space import ConfigSpace


@dataclass(frozen=True)
class DenseConfig:
    """block_n, block_t, block_k: out_features, tokens and in_features of a tile (packed: a multiple of 256). split_k: programs that share a
    tile's in_features. group: token tiles walked together before the next group (1: all out_features first). unpack: "asm" on 32-bit
    words or "arith" on bytes. transposed: W·Xᵀ, with the unpacked weight as register operand, or X·Wᵀ."""

    block_n: int
    block_t: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    group: int = 1
    unpack: Literal["asm", "arith"] = "asm"
    transposed: bool = True


@dataclass(frozen=True)
class Device:
    """What the choice of a config depends on: a hashable excerpt of `Gpu`."""

    capability: int
    sms: int
    shared_bytes: int

    @classmethod
    def of(cls, gpu: Gpu) -> Device:
        """The excerpt of a GPU."""
        return cls(gpu.capability, gpu.sms, gpu.shared_bytes)


REGISTERS = 65_536
"""32-bit registers of a multiprocessor, sm_80 and up."""

MIN_SHARED_BYTES = 64 * 1024
"""Every number of tokens has a tile that fits this much shared memory."""

# (block_n, block_t, block_k, num_warps, num_stages): at most 128 accumulators a thread; compiled without spills (docs/kernels.md).
_FEW_TOKENS = (
    (64, 16, 512, 4, 4), (64, 16, 1024, 4, 3), (128, 16, 512, 4, 4), (64, 32, 512, 4, 4), (128, 32, 512, 4, 4),
    (64, 32, 256, 4, 3), (64, 64, 512, 4, 3), (64, 64, 256, 4, 3), (128, 64, 256, 4, 4),
)
_HOPPER = (
    (128, 128, 256, 4, 3), (128, 128, 256, 4, 2), (128, 64, 256, 4, 3), (128, 256, 256, 8, 3), (256, 128, 256, 8, 3), (256, 128, 512, 8, 2),
)
_PORTABLE = ((128, 128, 256, 8, 3), (128, 64, 256, 4, 3), (128, 128, 256, 4, 2), (64, 128, 256, 4, 2), (64, 64, 256, 4, 2))

_INT8_FEW_TOKENS = ((64, 16, 512, 4, 3), (64, 16, 256, 4, 3), (64, 32, 256, 4, 3), (64, 64, 256, 4, 3), (128, 64, 128, 4, 3))
_INT8_HOPPER = ((128, 256, 128, 8, 4), (256, 128, 128, 8, 4), (128, 128, 128, 4, 3), (128, 128, 128, 8, 4), (128, 64, 128, 4, 4))
_INT8_PORTABLE = ((128, 128, 128, 8, 3), (128, 128, 64, 4, 4), (128, 64, 128, 4, 3), (64, 64, 128, 4, 3))

Tile: TypeAlias = tuple[int, int, int, int, int]
TILES: tuple[Tile, ...] = tuple(dict.fromkeys(_FEW_TOKENS + _HOPPER + _PORTABLE))
"""Every tile of the space on packed weights."""

INT8_TILES: tuple[Tile, ...] = tuple(dict.fromkeys(_INT8_FEW_TOKENS + _INT8_HOPPER + _INT8_PORTABLE))
"""Every tile of the space on int8 weights, which take four times the shared memory."""


def tiles_for(tokens: int, capability: int, packed: bool = True) -> tuple[Tile, ...]:
    """The tiles worth trying: by tokens, and by whether the architecture has wgmma (sm_90)."""
    if tokens <= 64:
        smallest = max(16, 1 << (max(tokens, 1) - 1).bit_length())
        return tuple(tile for tile in (_FEW_TOKENS if packed else _INT8_FEW_TOKENS) if tile[1] == smallest)
    if capability == 90:
        return _HOPPER if packed else _INT8_HOPPER
    return _PORTABLE if packed else _INT8_PORTABLE


def shared_bytes(config: DenseConfig, capability: int, packed: bool = True) -> int:
    """Shared memory that the compiler takes for the loop's stages, read from compiled kernels (docs/kernels.md)."""
    x, w = config.block_t * config.block_k, config.block_n * config.block_k // (4 if packed else 1)
    if capability != 90:
        return (config.num_stages - 1) * (x + w)
    if not config.transposed and packed:
        return config.num_stages * x + (config.num_stages - 1) * w + w
    return config.num_stages * x + (config.num_stages - (1 if packed else 0)) * w


def _refusal(out_features: int, in_features: int, tokens: int, gpu: Device, packed: bool, config: DenseConfig) -> str | None:
    tile = (config.block_n, config.block_t, config.block_k, config.num_warps, config.num_stages)
    if tile not in tiles_for(tokens, gpu.capability, packed):
        return f"tile {tile} is not one worth trying for {tokens} tokens on sm_{gpu.capability}"
    needed = shared_bytes(config, gpu.capability, packed)
    if needed > gpu.shared_bytes:
        return f"needs {needed} bytes of shared memory, {gpu.shared_bytes} are there"
    if (config.split_k - 1) * config.block_k >= in_features:
        return f"in_features {in_features} has no {config.split_k} blocks of {config.block_k}"
    tiles = ceil(out_features / config.block_n) * ceil(tokens / config.block_t)
    if config.split_k > 1 and (tiles > gpu.sms or tiles * config.split_k > 3 * gpu.sms):
        return f"{tiles} tiles need no {config.split_k} shares on {gpu.sms} multiprocessors"
    if config.group > 1 and (tokens <= config.block_t or config.split_k > 1):
        return "one token tile, or one wave of shares, needs no grouping"
    if not config.transposed and (config.split_k > 1 or config.group > 1 or config.block_t < 256):
        return "the untransposed order is tried on tiles of 256 tokens, plainly"
    return None


def _reject(problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    return _refusal(problem.out_features, problem.in_features, problem.tokens, Device.of(gpu), True, config)


def _reject_int8(problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    return _refusal(problem.out_features, problem.in_features, problem.tokens, Device.of(gpu), False, config)


SPLITS = (1, 2, 4, 8, 16)


def _axes(tiles: tuple[Tile, ...]) -> dict[str, tuple[int | bool, ...]]:
    names = ("block_n", "block_t", "block_k", "num_warps", "num_stages")
    axes = {name: tuple(sorted({tile[index] for tile in tiles})) for index, name in enumerate(names)}
    return {**axes, "split_k": SPLITS, "group": (1, 8), "transposed": (True, False)}


space = ConfigSpace(DenseConfig, _axes(TILES), _reject)
int8_space = ConfigSpace(DenseConfig, _axes(INT8_TILES), _reject_int8)


@functools.lru_cache(maxsize=4096)
def choose(out_features: int, in_features: int, tokens: int, gpu: Device, packed: bool = True) -> DenseConfig:
    """The allowed config with the least estimated time.

    Programs run in waves of as many as fit the multiprocessors; each pays for its tile's products, at a rate shared among the
    residents that no single program reaches, and for a fixed start and end; shares of in_features pay for their int32 partial tiles.
    The constants were fitted to timings of 30 problems (T = 4 … 8192) on an H200 on 2026-11-22. Where the config chosen now was timed
    then (27 problems), it took 1.02 times the best in the geomean, 1.15 at worst.
    """

    def clocks(config: DenseConfig) -> float:
        threads = 32 * config.num_warps
        registers = threads * (config.block_n * config.block_t // threads + 90)
        resident = max(1, min(gpu.shared_bytes // shared_bytes(config, gpu.capability, packed), REGISTERS // registers))
        programs = ceil(out_features / config.block_n) * ceil(tokens / config.block_t) * config.split_k
        waves, busy = ceil(programs / (resident * gpu.sms)), min(resident, ceil(programs / gpu.sms))
        steps = ceil(ceil(in_features / config.block_k) / config.split_k)
        products = config.block_n * max(config.block_t, 24) * config.block_k * steps
        shares = 500 + 0.3 * config.block_n * config.block_t * config.split_k if config.split_k > 1 else 0
        return waves * (max(busy * products / 2200, products / 1000) + 3000) + shares

    candidates = (
        DenseConfig(*tile, split_k=split_k, group=1) for tile in tiles_for(tokens, gpu.capability, packed) for split_k in SPLITS
    )
    return min((config for config in candidates if _refusal(out_features, in_features, tokens, gpu, packed, config) is None), key=clocks)


def default_config(problem: Problem, gpu: Gpu) -> DenseConfig:
    """The heuristic choice on packed weights."""
    return choose(problem.out_features, problem.in_features, problem.tokens, Device.of(gpu))


def int8_default_config(problem: Problem, gpu: Gpu) -> DenseConfig:
    """The heuristic choice on int8 weights."""
    return choose(problem.out_features, problem.in_features, problem.tokens, Device.of(gpu), packed=False)
