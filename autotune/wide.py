"""A catalogue of the sparse GEMMs with all that the hardware takes as candidates, also what their own spaces know to be slow.

For measuring the tuner itself and for recording landscapes: the kernels' own spaces hold 5 to 40 sensible candidates of a shape, too few to
tell how fast a tuner is or how well it searches. Other kernels are here as they are. See `autotune.speed`.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from kernels import catalogue
from kernels.gpu import Gpu
from kernels.inputs import DTYPES
from kernels.kernel import Kernel
from kernels.problem import Op, Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm import decode_config
from kernels.ternary_gemm.dense_config import SPLITS, DenseConfig, shared_bytes
from kernels.ternary_gemm.sparse_mma_config import BLOCK_RESERVE, MmaConfig
from kernels.ternary_gemm.sparse_wgmma_config import (
    CONSUMER_REGISTERS,
    FEWEST_STAGES,
    SparseConfig,
    columns_of,
    is_wide,
    most_stages,
    split_refusal,
)

MOST_STAGES = 16


def wgmma_reject(problem: Problem, gpu: Gpu, config: SparseConfig) -> str | None:
    """Why `sparse-wgmma` cannot run like this: registers, shared memory, tiles that cannot be dealt so. Nothing is said of its speed."""
    registers = config.tiles * (config.block_t // 2 + 4) + (26 if is_wide(DTYPES[problem.dtype], problem.out_features) else 40)
    if registers > CONSUMER_REGISTERS:
        return f"needs about {registers} registers a thread, {CONSUMER_REGISTERS} are there"
    most = most_stages(config.tiles, config.block_t, config.splits, gpu.shared_bytes)
    if config.stages > most:
        return f"{config.stages} stages, {most} fit the shared memory"
    columns = columns_of(problem.sparsity, problem.in_features)
    return split_refusal(config, problem.tokens, problem.out_features, columns, max(1, gpu.sms))


def mma_reject(problem: Problem, gpu: Gpu, config: MmaConfig) -> str | None:
    """The same of `sparse-mma`: threads, whole blocks, registers, shared memory."""
    del problem
    tile, threads = config.tile, config.tile.threads
    if threads not in (128, 256) or tile.block_n % 64:
        return f"{threads} threads for {tile.block_n} rows"
    if (tile.tiles_n in (5, 6)) != (tile.tiles_t in (6, 7)):
        return f"{tile.tiles_n} row tiles by {tile.tiles_t} token tiles: 5 and 6 go with 6 and 7"
    if config.registers > config.register_limit:
        return f"needs about {config.registers} registers a thread, {config.register_limit} are there"
    if config.per_sm * (config.shared_bytes + BLOCK_RESERVE) - BLOCK_RESERVE > gpu.shared_bytes:
        return f"{config.per_sm} programs of {config.shared_bytes} bytes do not fit the shared memory"
    return None


def dense_reject(problem: Problem, gpu: Gpu, config: DenseConfig) -> str | None:
    """The same of `dense-triton`: accumulators, shared memory, parts with work. More tokens of a tile than there are are not tried."""
    accumulators = config.block_n * config.block_t // (32 * config.num_warps)
    if not 8 <= accumulators <= 128:
        return f"{accumulators} accumulators a thread"
    if config.block_t > max(16, 2 * problem.tokens):
        return f"tiles of {config.block_t} tokens for {problem.tokens}"
    needed = shared_bytes(config, gpu.capability)
    if needed > gpu.shared_bytes:
        return f"needs {needed} bytes of shared memory, {gpu.shared_bytes} are there"
    if (config.split_k - 1) * config.block_k >= problem.in_features:
        return f"in_features {problem.in_features} has no {config.split_k} blocks of {config.block_k}"
    if config.split_k > 1 and ceil(problem.out_features / config.block_n) * ceil(problem.tokens / config.block_t) > gpu.sms:
        return "more tiles than multiprocessors need no shares"
    grouped = config.group > 1 and (config.split_k > 1 or not config.transposed)
    return "grouping orders whole tiles in their usual order" if grouped else None


_WGMMA = ConfigSpace(
    SparseConfig,
    {"tiles": (1, 2, 3, 4), "block_t": (64, 128, 256), "stages": tuple(range(FEWEST_STAGES, MOST_STAGES + 1)), "splits": (1, 2, 4, 8),
     "pair": (1, 2)},
    wgmma_reject,
)
_MMA = ConfigSpace(
    MmaConfig,
    {"warps_n": (1, 2, 4), "warps_t": (1, 2, 4), "tiles_n": (1, 2, 4, 5, 6, 8), "tiles_t": (1, 2, 4, 6, 7, 8), "stages": (3, 4, 5, 6),
     "per_sm": (1, 2)},
    mma_reject,
)
_DENSE = ConfigSpace(
    DenseConfig,
    {"block_n": (64, 128, 256), "block_t": (16, 32, 64, 128, 256), "block_k": (256, 512), "num_warps": (4, 8), "num_stages": (2, 3, 4),
     "split_k": SPLITS, "group": (1, 8), "transposed": (True, False)},
    dense_reject,
)
_OPS = ("gemm", "prepare", "activation")
_SPACES = {"sparse-wgmma": _WGMMA, "sparse-mma": _MMA, "dense-triton": _DENSE}
"""`decode` needs no axes of its own: what its space refuses for its estimated time is let pass."""


def _space(kernel: Kernel) -> ConfigSpace:
    own = replace(kernel.space, reject=decode_config.reject) if kernel.name == "decode" else kernel.space
    return _SPACES.get(kernel.name, own)


def kernels_for(op: Op) -> tuple[Kernel, ...]:
    """Of the plain GEMM the kernels with wide spaces; of preparing weights and activations all, as they are."""
    known = catalogue.kernels_for(op) if op in _OPS else ()
    return tuple(replace(one, space=_space(one)) for one in known if op != "gemm" or one.name in (*_SPACES, "decode"))


def find(name: str, op: Op) -> Kernel:
    """The kernel of that name, with its wide space; UsageError of the whole catalogue for a name that is not here."""
    return next((kernel for kernel in kernels_for(op) if kernel.name == name), catalogue.find(name, op))
