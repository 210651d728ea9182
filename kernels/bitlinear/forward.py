"""The forward kernels that a layer can call, each one function of a `Call`; what a launch needs is worked out once for a kind of call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.bitlinear.pack import Fragments, KernelPack
from kernels.catalogue import find
from kernels.fragments import block_shape
from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import DTYPES, ROW_ALIGNMENT
from kernels.launch import Launch
from kernels.mask_quantize.activation import activation_config, start_activation
from kernels.problem import DENSE, DType, Problem, Sparsity
from kernels.ternary_gemm import decode, decode_config, decode_estimate, sparse_mma, sparse_mma_config, sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.decode import _constants as decode_constants
from kernels.ternary_gemm.decode_kernel import decode_gemm
from kernels.ternary_gemm.dense_config import default_config
from kernels.ternary_gemm.dense_triton import Gemm, aligned_rows, check, refusal, workspace
from kernels.ternary_gemm.sparse_mma_kernel import sparse_mma_gemm
from kernels.ternary_gemm.sparse_wgmma_kernel import sparse_gemm
from kernels.ternary_gemm.sparse_wgmma_ptx import STAGE_COLUMNS

HALF = Sparsity(2, 4)


@functools.cache
def gpu_of(index: int | None) -> Gpu:
    """The GPU with this index; without one (Triton's interpreter) the portable choices of an A100."""
    return (None if index is None else detect(index)) or by_name("a100")


@dataclass(frozen=True)
class Call:
    """One forward pass on the device. x: [T, K], None where x_q and x_scale hold it already; x_q int8 [T, K], rows padded to 128; x_scale
    float32 [T]; bias: float32, `padded_rows`, or None."""

    problem: Problem
    gpu: Gpu
    x: torch.Tensor | None
    x_q: torch.Tensor
    x_scale: torch.Tensor
    pack: KernelPack
    bias: torch.Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The type of x and y."""
        return DTYPES[self.problem.dtype]


@dataclass(frozen=True)
class Forward:
    """A forward kernel. run: fills x_q, x_scale and the pack's flag of activations from x and returns y [T, N] in x's type, on the current
    stream without synchronizing. refusal(gemm problem, gpu): why it cannot, or None. fragments: the layout of these that it
    reads for a sparsity, None for the packed bytes themselves."""

    run: Callable[[Call], torch.Tensor]
    refusal: Callable[[Problem, Gpu], str | None]
    fragments: Callable[[Sparsity], Fragments | None]


def layout_of(sparsity: Sparsity) -> Fragments:
    """The one layout of fragments that all kernels of a layer share: of the sparse tensor cores for 2:4, else of the dense ones."""
    return "sparse" if sparsity == HALF else "dense"


def allocate_quantized(tokens: int, in_features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [T, K padded to 128], zero behind K, contiguous, and x_scale float32 [T]: all that the backward pass keeps of x."""
    padded = -(-in_features // ROW_ALIGNMENT) * ROW_ALIGNMENT
    allocate = torch.empty if padded == in_features else torch.zeros
    return allocate((tokens, padded), dtype=torch.int8, device=device), torch.empty(tokens, dtype=torch.float32, device=device)


def _quantize(call: Call) -> None:
    if call.x is not None and call.problem.tokens:
        config = activation_config(call.problem.in_features, call.problem.tokens)
        start_activation(call.x, call.x_q, call.x_scale, None, config, flags=call.pack.flags)


def _dense_triton(call: Call) -> torch.Tensor:
    _quantize(call)
    problem, packed = call.problem, call.pack.packed
    bias = None if call.bias is None else call.bias[: problem.out_features]
    check(call.x_q, call.x_scale, packed, bias, call.dtype)
    y = call.x_q.new_empty((problem.tokens, problem.out_features), dtype=call.dtype)
    config = default_config(problem, call.gpu)
    Gemm(packed, call.x_scale, bias, y, config, workspace(config, y)).launch(call.x_q)
    return y


def _readable(x_q: torch.Tensor) -> torch.Tensor:
    """Activations whose rows start at multiples of 16 bytes."""
    return x_q if x_q.data_ptr() % 16 == 0 else aligned_rows(x_q)


@dataclass(frozen=True)
class _Wgmma:
    """A launch of the Hopper GEMM. block: of the descriptor of x; wide: whether TMA stores y."""

    launch: Launch
    block: list[int]
    wide: bool


@functools.lru_cache(maxsize=4096)
def _wgmma(tokens: int, out_features: int, in_features: int, dtype: DType, kind: Fragments, device: torch.device) -> _Wgmma:
    """What `sparse_wgmma.bind` finds for 2:4 weights, or dense ones: choosing a config takes the host 140 µs, as long as many a GEMM."""
    problem = Problem("gemm", out_features, in_features, tokens, HALF if kind == "sparse" else DENSE, (), dtype)
    processors = sparse_wgmma.multiprocessors(device)
    config = sparse_wgmma_config.default_config(problem, gpu_of(device.index))
    plan = sparse_wgmma_config.schedule(config, tokens, out_features, processors)
    row_blocks, steps, *_ = block_shape(out_features, in_features)
    integers = (steps, plan.rounds, plan.row_tiles, plan.token_tiles, row_blocks, tokens, out_features)
    constants = {**sparse_wgmma.constants(config, DTYPES[dtype], out_features, kind), **sparse_wgmma.options(config)}
    wide = sparse_wgmma_config.is_wide(DTYPES[dtype], out_features)
    return _Wgmma(Launch(sparse_gemm, (plan.programs,), integers, **constants), [config.block_t // config.pair, STAGE_COLUMNS], wide)


def _run_wgmma(kind: Fragments, call: Call) -> torch.Tensor:
    tokens, rows, columns = call.problem.tokens, call.problem.out_features, call.problem.in_features
    out = call.x_q.new_empty((tokens, rows), dtype=call.dtype)
    if not tokens:
        return out
    _quantize(call)
    x_q = _readable(call.x_q)
    how, weight = _wgmma(tokens, rows, columns, call.problem.dtype, kind, x_q.device), call.pack.fragments[kind]
    bias = call.pack.no_bias if call.bias is None else call.bias
    x = TensorDescriptor(x_q, [tokens, columns], [x_q.stride(0), 1], how.block, sparse_wgmma.LAYOUT)
    y = sparse_wgmma.out_descriptor(out) if how.wide else x
    how.launch((weight.blocks, call.x_scale, weight.row_scale, bias, out), (x, y))
    return out


@dataclass(frozen=True)
class _Meeting:
    """A launch whose programs may meet in memory. sums, counters: int32 that this takes, none where they do not; zeroed: whether the sums
    begin as zeros too, as the counters always do."""

    launch: Launch
    sums: int
    counters: int
    zeroed: bool

    def workspace(self, spare: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums and counters of one launch, of which several may run at once; spare: int32, an address that is not used."""
        if not self.counters:
            return spare, spare
        places = -(-self.sums // 4) * 4
        both = spare.new_zeros(places + self.counters) if self.zeroed else spare.new_empty(places)
        return both, both[places:] if self.zeroed else spare.new_zeros(self.counters)


@functools.lru_cache(maxsize=4096)
def _decode(tokens: int, out_features: int, in_features: int, dtype: DType, kind: Fragments, bias: bool, device: torch.device) -> _Meeting:
    """What `decode.bind` finds; choosing a config takes the host 10 to 60 ms."""
    sparse = kind == "sparse"
    problem = Problem("gemm", out_features, in_features, tokens, HALF if sparse else DENSE, (), dtype)
    config = decode_estimate.default_config(problem, gpu_of(device.index))
    found = decode_config.plan(out_features, in_features, tokens, config)
    row_blocks, blocks, *_ = block_shape(out_features, in_features)
    stride = -(-in_features // ROW_ALIGNMENT) * ROW_ALIGNMENT
    sizes = (row_blocks, blocks, found.share, found.chunks, found.steps, found.row_tiles, found.group)
    dependent = gpu_of(device.index).capability >= 90
    constants = decode_constants(config, found, sparse, bias, DTYPES[dtype], dependent, None, in_features)
    options = {"num_warps": config.warps, "num_ctas": found.cluster, "launch_pdl": dependent}
    split = found.splits > 1 and not config.clustered
    sums, counters = (tokens * out_features, found.row_tiles * found.groups) if split else (0, 0)
    launch = Launch(decode_gemm, found.grid, (tokens, out_features, in_features, stride, *sizes), **constants, **options)
    return _Meeting(launch, sums, counters, zeroed=True)


def _run_decode(call: Call) -> torch.Tensor:
    problem, kind = call.problem, layout_of(call.problem.sparsity)
    out = call.x_q.new_empty((problem.tokens, problem.out_features), dtype=call.dtype)
    if not problem.tokens:
        return out
    _quantize(call)
    x_q, weight = _readable(call.x_q), call.pack.fragments[kind]
    how = _decode(problem.tokens, problem.out_features, problem.in_features, problem.dtype, kind, call.bias is not None, x_q.device)
    bias = weight.row_scale if call.bias is None else call.bias  # an address that is not used
    how.launch((x_q, call.x_scale, weight.blocks, weight.row_scale, bias, out, *how.workspace(weight.blocks)))
    return out


@functools.lru_cache(maxsize=4096)
def _mma(tokens: int, out_features: int, in_features: int, dtype: DType, device: torch.device) -> _Meeting:
    """What `sparse_mma.bind` and its launch find."""
    gpu = gpu_of(device.index)
    config = sparse_mma_config.default_config(Problem("gemm", out_features, in_features, tokens, HALF, (), dtype), gpu)
    tile, (row_blocks, steps, *_) = config.tile, block_shape(out_features, in_features)
    row_tiles, token_tiles = math.ceil(out_features / tile.block_n), math.ceil(tokens / tile.block_t)
    works, stride = row_tiles * token_tiles * config.splits, -(-in_features // ROW_ALIGNMENT) * ROW_ALIGNMENT
    sizes = (steps, works, row_tiles, token_tiles, config.band or row_tiles, row_blocks, tokens, out_features)
    programs = torch.cuda.get_device_properties(device).multi_processor_count * config.per_sm
    constants = {**sparse_mma.constants(config, DTYPES[dtype], out_features), **config.options}
    launch = Launch(sparse_mma_gemm, (min(programs, works),), (*sizes, stride, -(-in_features // 16) * 16), **constants)
    tiles = row_tiles * token_tiles if config.splits > 1 else 0
    return _Meeting(launch, tiles * config.splits * tile.block_n * tile.block_t, tiles, zeroed=False)


def _run_mma(call: Call) -> torch.Tensor:
    problem = call.problem
    out = call.x_q.new_empty((problem.tokens, problem.out_features), dtype=call.dtype)
    if not problem.tokens:
        return out
    _quantize(call)
    x_q, weight = _readable(call.x_q), call.pack.fragments["sparse"]
    how = _mma(problem.tokens, problem.out_features, problem.in_features, problem.dtype, x_q.device)
    bias = call.pack.no_bias if call.bias is None else call.bias
    how.launch((x_q, weight.blocks, call.x_scale, weight.row_scale, bias, out, *how.workspace(weight.blocks)))
    return out


def _of_2_4(unavailable: Callable[[Problem, Gpu], str | None]) -> Callable[[Problem, Gpu], str | None]:
    """The kernel's own refusal, and that of weights that it would want lifted."""
    def refuses(problem: Problem, gpu: Gpu) -> str | None:
        if problem.sparsity != HALF:
            return f"fragments are packed of 2:4 weights, not of {problem.sparsity}"
        return unavailable(problem, gpu)

    return refuses


FORWARD: Mapping[str, Forward] = {
    "dense-triton": Forward(_dense_triton, refusal, lambda sparsity: None),
    "dense-wgmma": Forward(functools.partial(_run_wgmma, "dense"), find("dense-wgmma", "gemm").unavailable, lambda sparsity: "dense"),
    "sparse-wgmma": Forward(functools.partial(_run_wgmma, "sparse"), _of_2_4(sparse_wgmma_config.unavailable), lambda sparsity: "sparse"),
    "sparse-mma": Forward(_run_mma, _of_2_4(sparse_mma.unavailable), lambda sparsity: "sparse"),
    "decode": Forward(_run_decode, decode.unavailable, layout_of),
}
