"""Configs of the dense Triton GEMM: the tiles worth trying, what they need, and the heuristic choice among them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.space import ConfigSpace


@dataclass(frozen=True)
class DenseConfig:
    """block_n, block_t, block_k: out_features, tokens and in_features (a multiple of 256) of a tile. split_k: programs that share a
    tile's in_features. group: token tiles walked together before the next group (1: all out_features first). unpack: "asm" on 32-bit
    words or "arith" on bytes. transposed: W·Xᵀ, with the unpacked weight as register operand, or X·Wᵀ."""

    block_n: int
    block_t: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    group: int = 4
    unpack: Literal["asm", "arith"] = "asm"
    transposed: bool = True


# (block_n, block_t, block_k, num_warps, num_stages): at most 128 accumulators a thread; compiled without spills (docs/kernels.md).
_FEW_TOKENS = ((64, 16, 512, 4, 4), (64, 16, 1024, 4, 3), (128, 16, 512, 4, 4), (64, 32, 512, 4, 4), (128, 32, 512, 4, 4), (64, 64, 512, 4, 3),
               (128, 64, 256, 4, 4))
_HOPPER = ((128, 128, 256, 4, 3), (128, 128, 256, 4, 2), (128, 64, 256, 4, 3), (128, 256, 256, 8, 3), (256, 128, 256, 8, 3),
           (256, 128, 256, 8, 4), (256, 128, 512, 8, 2))
_PORTABLE = ((128, 128, 256, 8, 3), (128, 64, 256, 4, 3), (128, 128, 256, 4, 2), (64, 128, 256, 4, 2), (64, 64, 256, 4, 2))
TILES = tuple(dict.fromkeys(_FEW_TOKENS + _HOPPER + _PORTABLE))
"""Every tile of the space."""


def tiles_for(tokens: int, capability: int) -> tuple[tuple[int, int, int, int, int], ...]:
    """The tiles worth trying: by tokens, and by whether the architecture has wgmma (sm_90)."""
    if tokens <= 64:
        smallest = max(16, 1 << (max(tokens, 1) - 1).bit_length())
        return tuple(tile for tile in _FEW_TOKENS if tile[1] == smallest)
    return _HOPPER if capability == 90 else _PORTABLE


def shared_bytes(config: DenseConfig, capability: int, packed: bool = True) -> int:
    """Shared memory that the compiler takes for the loop's stages, read from compiled kernels (docs/kernels.md)."""
    x, w = config.block_t * config.block_k, config.block_n * config.block_k // (4 if packed else 1)
    if capability != 90:
        return (config.num_stages - 1) * (x + w)
    if not config.transposed and packed:
        return config.num_stages * x + (config.num_stages - 1) * w + w
    return config.num_stages * x + (config.num_stages - (1 if packed else 0)) * w


def _reject_with(packed: bool, problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    tile = (config.block_n, config.block_t, config.block_k, config.num_warps, config.num_stages)
    if tile not in tiles_for(problem.tokens, gpu.capability):
        return f"tile {tile} is not one worth trying for {problem.tokens} tokens on {gpu.architecture}"
    return _cannot(packed, problem.in_features, gpu.capability, gpu.shared_bytes, config) or _wasteful(problem, gpu, config)


def _cannot(packed: bool, in_features: int, capability: int, shared: int, config: DenseConfig) -> str | None:
    needed = shared_bytes(config, capability, packed)
    if needed > shared:
        return f"needs {needed} bytes of shared memory, {shared} are there"
    if not packed and config.unpack != "asm":
        return "int8 weights are not unpacked; asm stands for both"
    if (config.split_k - 1) * config.block_k >= in_features:
        return f"in_features {in_features} has no {config.split_k} blocks of {config.block_k}"
    return None


def _wasteful(problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    tiles = -(-problem.out_features // config.block_n) * -(-problem.tokens // config.block_t)
    if config.split_k > 1 and (config.split_k // 2) * tiles >= 2 * gpu.sms:
        return f"{tiles} tiles fill {gpu.sms} multiprocessors without {config.split_k} shares"
    if config.group > 1 and problem.tokens <= config.block_t:
        return "one token tile needs no grouping"
    if not config.transposed and config.group > 1:
        return "the untransposed order is tried without grouping only"
    if not config.transposed and (problem.tokens <= 64 or config.split_k > 1):
        return "few tokens waste the rows of an untransposed tile"
    return None


def _reject(problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    return _reject_with(True, problem, gpu, config)


def _reject_int8(problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    return _reject_with(False, problem, gpu, config)


_AXES = {
    "block_n": tuple(sorted({tile[0] for tile in TILES})), "block_t": tuple(sorted({tile[1] for tile in TILES})),
    "block_k": tuple(sorted({tile[2] for tile in TILES})), "num_warps": (4, 8), "num_stages": (2, 3, 4),
    "split_k": (1, 2, 4, 8, 16), "group": (1, 8), "transposed": (True, False),
}
space = ConfigSpace(DenseConfig, _AXES, _reject)
int8_space = ConfigSpace(DenseConfig, _AXES, _reject_int8)


@functools.lru_cache(maxsize=4096)
def choose(out_features: int, in_features: int, tokens: int, capability: int, sms: int, shared: int, packed: bool) -> DenseConfig:
    """The config with the least estimated time: waves of programs, each paying for its tile's products and a fixed start and end.

    A program's rate is that of its multiprocessor shared among the programs resident there; 3,000 clocks of start, epilogue and
    drain are an estimate, not a measurement.
    """
    best, least = None, float("inf")
    for block_n, block_t, block_k, num_warps, num_stages in tiles_for(tokens, capability):
        for split_k in (1, 2, 4, 8, 16):
            config = DenseConfig(block_n, block_t, block_k, num_warps, num_stages, split_k, 1 if tokens <= block_t else 8)
            if _cannot(packed, in_features, capability, shared, config) is not None:
                continue
            resident = max(1, min(shared // (shared_bytes(config, capability, packed) + 1024), 8 // num_warps))
            programs = -(-out_features // block_n) * -(-tokens // block_t) * split_k
            waves = -(-programs // (resident * sms))
            steps = -(-(-(-in_features // block_k)) // split_k)
            clocks = waves * resident * (max(block_n, 64) * max(block_t, 32) * block_k * steps / 3000 + 3000 / resident + 500 * (split_k > 1))
            if clocks < least:
                best, least = config, clocks
    return best or DenseConfig(64, 16, 256, 4, 2)


def default_config(problem: Problem, gpu: Gpu) -> DenseConfig:
    """The heuristic choice on packed weights."""
    return choose(problem.out_features, problem.in_features, problem.tokens, gpu.capability, gpu.sms, gpu.shared_bytes, True)


def int8_default_config(problem: Problem, gpu: Gpu) -> DenseConfig:
    """The heuristic choice on int8 weights."""
    return choose(problem.out_features, problem.in_features, problem.tokens, gpu.capability, gpu.sms, gpu.shared_bytes, False)
