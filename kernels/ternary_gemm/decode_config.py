"""Configs of the decode GEMM: how warps and programs share rows, tokens and in_features, and what that needs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import ceil

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.ternary_gemm.decode_cluster import kept_bytes
from kernels.ternary_gemm.decode_ptx import COLUMNS, HEADER, ROW_PADDING, ring_bytes
from kernels.ternary_gemm.decode_sums import sum_bytes
from kernels.ternary_gemm.decode_wgmma import buffer_bytes, whole

MAX_TOKENS = 64
REGISTERS = 65_536
"""32-bit registers of a multiprocessor, sm_80 and up."""
CLUSTERS = (2, 4, 8)
"""Programs of a cluster that every card with clusters can run."""


@dataclass(frozen=True)
class DecodeConfig:
    """tiles: times 16 rows of a warp. warps_m, warps_k: warps along out_features, and along in_features. depth: steps of 128 columns that a
    warp has on their way. splits: programs that share a row tile's in_features. x_kib: shared memory for activations at once; what does
    not fit it is brought in chunks, two at a time. group: most tokens of a program; further ones are other programs', which read the
    same weights. rounds: row tiles that a program does one after the other with the same activations. clustered: the shares of a row tile
    are one thread block cluster (2, 4 or 8) and meet in its shared memory; otherwise they meet in device memory. eager: with programmatic
    dependent launch, the next launch may begin with this one; otherwise behind its last steps (with several rounds: its end). wgmma:
    products by warpgroups (sm_90), four warps along out_features each. narrow: the weight at 1.5 bits (`kernels.fragments_narrow`), for 2:4
    on sm_90 and four tiles a warp."""

    tiles: int
    warps_m: int
    warps_k: int
    depth: int
    splits: int = 1
    x_kib: int = 96
    group: int = 64
    rounds: int = 1
    clustered: bool = False
    eager: bool = True
    wgmma: bool = False
    narrow: bool = False

    @property
    def rows(self) -> int:
        """Weight rows of a program."""
        return 16 * self.tiles * self.warps_m

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return self.warps_m * self.warps_k


@dataclass(frozen=True)
class Plan:
    """A config on a problem's sizes: groups of tokens, tokens of one and its eights as they are multiplied, row tiles, row tiles of a
    program, shares of in_features and their blocks, programs of a cluster, chunks of activations, steps in one, KiB of shared memory,
    groups of copies that may be on their way when a chunk begins."""

    groups: int
    group: int
    tokens8: int
    row_tiles: int
    rounds: int
    splits: int
    share: int
    cluster: int
    chunks: int
    steps: int
    shared_kib: int
    pending: int

    @property
    def grid(self) -> tuple[int, int]:
        """Programs along the launch's axes, clusters for one each. Groups of the same weights are neighbours: the L2 serves all but one."""
        return ceil(self.row_tiles / self.rounds) * self.groups, 1 if self.cluster > 1 else self.splits

    @property
    def programs(self) -> int:
        """Programs of the launch."""
        return self.grid[0] * self.splits


@functools.cache
def _bytes(tiles: int, warps_m: int, warps_k: int, depth: int, tokens8: int, clustered: bool, narrow: bool) -> tuple[int, int, int]:
    """Bytes of the ring, of the sums, and of a block of activations for `wgmma` (a function that kernels call too is slow to call from
    here)."""
    kept = kept_bytes(tiles, warps_m, tokens8) if clustered else 0
    return ring_bytes(tiles, warps_m * warps_k, depth, narrow), sum_bytes(tiles, warps_m, warps_k, tokens8) + kept, buffer_bytes(tokens8, 1)


@functools.cache
def _whole(tokens8: int) -> int:
    return int(whole(tokens8))


def token_groups(tokens: int, most: int) -> tuple[int, int]:
    """(groups, tokens of each but perhaps the last): as few groups of at most `most` as there can be, in eights where there are several."""
    groups = ceil(max(1, tokens) / most)
    group = max(1, tokens) if groups == 1 else 8 * ceil(tokens / groups / 8)
    return ceil(max(1, tokens) / group), group


def plan(out_features: int, in_features: int, tokens: int, config: DecodeConfig) -> Plan:
    """The split of the blocks along in_features is even; no program is left without one. Shared memory comes in steps of 8 KiB."""
    groups, group = token_groups(tokens, config.group)
    blocks = ceil(in_features / COLUMNS)
    share = ceil(blocks / min(config.splits, blocks))
    steps, budget = ceil(share / config.warps_k), config.x_kib * 1024

    tokens8 = _whole(ceil(group / 8)) if config.wgmma else ceil(group / 8)
    ring, sums, block = _bytes(config.tiles, config.warps_m, config.warps_k, config.depth, tokens8, config.clustered, config.narrow)

    def buffer(count: int) -> int:
        return count * config.warps_k * block if config.wgmma else group * (count * config.warps_k * COLUMNS + ROW_PADDING)

    chunk = steps
    if buffer(steps) > budget:
        fitting = budget // 2 // block if config.wgmma else (budget // 2 // group - ROW_PADDING) // COLUMNS
        fitting //= config.warps_k
        chunk = ceil(steps / ceil(steps / min(steps, max(1, fitting))))
    chunks = ceil(steps / chunk)
    activations = buffer(chunk) * min(2, chunks)
    needed = ring + activations + sums if config.rounds > 1 else max(ring + activations, sums)
    kib = HEADER // 1024 + ceil(needed / 8192) * 8
    splits, cluster = (config.splits, config.splits) if config.clustered else (ceil(blocks / share), 1)
    return Plan(groups, group, tokens8, ceil(out_features / config.rows), config.rounds, splits, share, cluster, chunks, chunk, kib,
                min(chunk, config.depth) - 1)


def tokens_at_once(tokens: int, config: DecodeConfig) -> int:
    """Tokens of which a program copies activations at once, eight threads a token at least: 1, or a power of two from 8."""
    return 1 if tokens <= 1 else min(4 * config.warps, max(8, 1 << (tokens - 1).bit_length()))


FUSED_EACH = 64
"""Activations a thread up to which every program quantizes the token for itself. An H200 (2026-11-22) took 0.6 to 1.1 µs more than for the
GEMM for 5 to 32 a thread. Four tokens took 3.2 to 6.0 more (20 to 40 a thread), where a launch of `activation` before takes 1.0 to 1.5."""


def quantizes(found: Plan, in_features: int, config: DecodeConfig) -> bool:
    """Whether a layer's GEMM quantizes its activations itself: one token, in eights, and a program's share at once in shared memory."""
    few = found.group == 1 and in_features <= FUSED_EACH * 32 * config.warps
    return few and in_features % 8 == 0 and not config.wgmma and found.chunks == 1


def registers(config: DecodeConfig, tokens: int, sparse: bool) -> int:
    """What a thread needs, fitted to compiled code within 5 of it (sm_90, Triton 3.6.0); about two thirds are accumulators."""
    tokens8 = ceil(max(1, tokens) / 8)
    if config.wgmma:
        return 4 * config.tiles * _whole(tokens8) + (12 if sparse else 20) * config.tiles + 36
    products = config.tiles * tokens8
    if config.narrow:
        return 27 * products // 4 + 32
    return 27 * products // 4 + 25 if sparse else 7 * products + 12 * config.tiles + 43


def is_sparse(problem: Problem) -> bool:
    """Whether the sparse tensor cores run this weight: 2:4; any other ternary weight is dense at the same two bits."""
    return (problem.sparsity.n, problem.sparsity.m) == (2, 4)


def breaks_rounds(found: Plan, config: DecodeConfig) -> str | None:
    """Why a program cannot go on from a row tile to the next, or None: the ring runs on over the edge only where blocks lie in a row."""
    if config.rounds == 1:
        return None
    if config.splits > 1 or found.chunks > 1:
        return "several rounds need all in_features of their activations at once"
    if config.warps_m > 1 or config.tiles != 4 or found.share % config.warps_k:
        return f"several rounds need 64 rows of a program, and {found.share} blocks that {config.warps_k} warps share evenly"
    return f"{found.row_tiles} row tiles, {config.rounds} rounds" if found.row_tiles < config.rounds else None


def reject(problem: Problem, gpu: Gpu, config: DecodeConfig) -> str | None:
    """Shared memory, registers, and programs without work."""
    found = plan(problem.out_features, problem.in_features, problem.tokens, config)
    if found.shared_kib * 1024 > gpu.shared_bytes:
        return f"needs {found.shared_kib} KiB of shared memory, {gpu.shared_bytes // 1024} are there"
    needed = registers(config, found.group, is_sparse(problem))
    if needed > 248 or needed * 32 * config.warps > REGISTERS:
        return f"needs about {needed} registers a thread in {config.warps} warps"
    shares = ceil(ceil(problem.in_features / COLUMNS) / found.share)
    if shares != config.splits:
        return f"{ceil(problem.in_features / COLUMNS)} blocks of in_features give {shares} shares, not {config.splits}"
    if config.group < 64 and found.groups == 1:
        return f"{problem.tokens} tokens are one group"
    if config.wgmma and (gpu.capability != 90 or config.warps_m % 4 or config.rounds > 1):
        return "warpgroups multiply on sm_90, four warps along out_features, one round"
    if config.narrow and (gpu.capability != 90 or config.tiles != 4 or config.wgmma or not is_sparse(problem)):
        return "1.5 bits hold 2:4 weights, on sm_90, four tiles a warp, not for warpgroups"
    if config.clustered and (gpu.capability < 90 or config.splits not in CLUSTERS):
        return f"clusters of {', '.join(map(str, CLUSTERS))} programs, from sm_90 on"
    if breaks_rounds(found, config) is not None:
        return breaks_rounds(found, config)
    if config.warps_k > max(1, found.share):
        return f"{found.share} blocks of in_features for {config.warps_k} warps"
    if config.warps_m > 1 and config.rows // 2 >= max(64, problem.out_features):
        return f"tiles of {config.rows} rows are mostly padding for {problem.out_features}"
    return None
