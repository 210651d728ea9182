"""The forward kernels that a layer can call: what a launch needs is worked out once for a kind of call, a call is then launches alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.bitlinear.pack import Fragments, KernelPack
from kernels.bitlinear.quantized import Quantizer, padded_columns
from kernels.catalogue import find, kernels_for
from kernels.fragments import block_shape
from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import DTYPES
from kernels.launch import Launch
from kernels.problem import Op, Problem, Sparsity
from kernels.ternary_gemm import decode, decode_config, sparse_mma, sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.decode import _constants as decode_constants
from kernels.ternary_gemm.decode_kernel import decode_gemm
from kernels.ternary_gemm.dense_triton import Gemm, check, refusal, workspace
from kernels.ternary_gemm.sparse_mma_config import MmaConfig
from kernels.ternary_gemm.sparse_mma_kernel import sparse_mma_gemm
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig
from kernels.ternary_gemm.sparse_wgmma_kernel import sparse_gemm
from kernels.ternary_gemm.sparse_wgmma_ptx import STAGE_COLUMNS
from kernels.tuned import lookup

HALF = Sparsity(2, 4)


@functools.cache
def gpu_of(index: int | None) -> Gpu:
    """The GPU with this index; without one (Triton's interpreter) the portable choices of an A100."""
    return (None if index is None else detect(index)) or by_name("a100")


Run: TypeAlias = Callable[[torch.Tensor | None, torch.Tensor, torch.Tensor, KernelPack, torch.Tensor | None], torch.Tensor]
"""(x, x_q, x_scale, pack, bias) to y [T, N] in x's type, on the current stream without synchronizing. x: [T, K] with unit column stride:
x_q, x_scale and the pack's flag of activations are filled from it first; None where x_q and x_scale hold it already. x_q: int8 [T, K padded
to 128], contiguous; x_scale: float32 [T]; bias: float32, `padded_rows`, or None."""


@dataclass(frozen=True)
class Forward:
    """A forward kernel. bind(problem, gpu, device, biased or not): what is known before the tensors are. refusal(problem, gpu): why
    it cannot, or None. fragments: the layout of these that it reads for a sparsity, None for the packed bytes themselves."""

    bind: Callable[[Problem, Gpu, torch.device, bool], Run]
    refusal: Callable[[Problem, Gpu], str | None]
    fragments: Callable[[Sparsity], Fragments | None]


def layout_of(sparsity: Sparsity) -> Fragments:
    """The one layout of fragments that the kernels of a layer share: of the sparse tensor cores for 2:4, else of the dense ones."""
    return "sparse" if sparsity == HALF else "dense"


def config_of(name: str, problem: Problem, gpu: Gpu) -> Any:
    """The tuned config of a kernel, or its default; problem: a `step` of training, or a `layer`."""
    ops: tuple[Op, ...] = ("layer", "forward") if problem.op == "layer" else ("forward", "layer")
    kernel = next(kernel for op in ops for kernel in kernels_for(op) if kernel.name == name)
    return lookup(kernel, problem.with_(op=kernel.op), gpu)[0]


def _bind_dense_triton(problem: Problem, gpu: Gpu, device: torch.device, biased: bool) -> Run:
    config, quantize = config_of("dense-triton", problem, gpu), Quantizer(problem, device)
    shape, dtype = (problem.tokens, problem.out_features), DTYPES[problem.dtype]

    def run(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: KernelPack, bias: torch.Tensor | None) -> torch.Tensor:
        if x is not None:
            quantize(x, x_q, x_scale, pack.flags)
        codes, rows = x_q[:, : problem.in_features], None if bias is None else bias[: problem.out_features]
        check(codes, x_scale, pack.packed, rows, dtype)
        y = x_q.new_empty(shape, dtype=dtype)
        Gemm(pack.packed, x_scale, rows, y, config, workspace(config, y)).launch(codes)
        return y

    return run


def _readable(x_q: torch.Tensor) -> torch.Tensor:
    """Codes whose rows start at multiples of 16 bytes."""
    return x_q if not x_q.data_ptr() & 15 else x_q.clone()


def _bind_wgmma(kind: Fragments, problem: Problem, gpu: Gpu, device: torch.device, biased: bool) -> Run:
    """As `sparse_wgmma.bind`, for 2:4 weights or dense ones; early: what is launched right before it writes no weights."""
    tokens, rows, columns, dtype = problem.tokens, problem.out_features, problem.in_features, DTYPES[problem.dtype]
    config: SparseConfig = config_of(f"{kind}-wgmma", problem, gpu)
    plan = sparse_wgmma_config.schedule(config, tokens, rows, sparse_wgmma.multiprocessors(device))
    row_blocks, steps, *_ = block_shape(rows, columns)
    integers = (steps, plan.rounds, plan.row_tiles, plan.token_tiles, row_blocks, tokens, rows)
    constants = {**sparse_wgmma.constants(config, dtype, rows, kind, early=True), **sparse_wgmma.options(config)}
    launch, block = Launch(sparse_gemm, (plan.programs,), integers, **constants), [config.block_t // config.pair, STAGE_COLUMNS]
    wide, quantize, padded = sparse_wgmma_config.is_wide(dtype, rows), Quantizer(problem, device), padded_columns(columns)

    def run(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: KernelPack, bias: torch.Tensor | None) -> torch.Tensor:
        if x is not None:
            quantize(x, x_q, x_scale, pack.flags)
        codes, weight, y = _readable(x_q), pack.fragments[kind], x_q.new_empty((tokens, rows), dtype=dtype)
        x_how = TensorDescriptor(codes, [tokens, columns], [padded, 1], block, sparse_wgmma.LAYOUT)
        y_how = sparse_wgmma.out_descriptor(y) if wide else x_how
        launch((weight.blocks, x_scale, weight.row_scale, pack.no_bias if bias is None else bias, y), (x_how, y_how))
        return y

    return run


def _meeting(sums: int, counters: int, zeroed: bool) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What programs that meet in memory need: int32 sums, which begin as zeros where `zeroed`, and counters, which always do. Made for
    each launch, as several may run at once; without counters they do not meet. Given int32, an address that is not used then."""
    places = -(-sums // 4) * 4

    def workspace(spare: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not counters:
            return spare, spare
        both = spare.new_zeros(places + counters) if zeroed else spare.new_empty(places)
        return both, both[places:] if zeroed else spare.new_zeros(counters)

    return workspace


class Decode:
    """As `decode.bind` and its launch; it reads weights before the launch right before it has ended, which writes none."""

    def __init__(self, problem: Problem, gpu: Gpu, device: torch.device, biased: bool) -> None:
        tokens, rows, columns, self._dtype = problem.tokens, problem.out_features, problem.in_features, DTYPES[problem.dtype]
        config, self._kind, self._shape = config_of("decode", problem, gpu), layout_of(problem.sparsity), (tokens, rows)
        found = decode_config.plan(rows, columns, tokens, config)
        row_blocks, blocks, *_ = block_shape(rows, columns)
        sizes = (row_blocks, blocks, found.share, found.chunks, found.steps, found.row_tiles, found.group)
        dependent = gpu.capability >= 90
        constants = decode_constants(config, found, self._kind == "sparse", biased, self._dtype, dependent, None, columns)
        options = {"num_warps": config.warps, "num_ctas": found.cluster, "launch_pdl": dependent}
        integers = (tokens, rows, columns, padded_columns(columns), *sizes)
        self._launch, self._lean = (Launch(decode_gemm, found.grid, integers, **constants, **options) for _ in range(2))
        split = found.splits > 1 and not config.clustered
        self._workspace = _meeting(tokens * rows, found.row_tiles * found.groups if split else 0, zeroed=True)
        self._quantize, self._index = Quantizer(problem, device), device.index or 0
        self.able = self._quantize.words
        """Whether `lean` can."""

    def __call__(self, x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: KernelPack,
                 bias: torch.Tensor | None) -> torch.Tensor:
        """See `Run`."""
        if x is not None:
            self._quantize(x, x_q, x_scale, pack.flags)
        weight, y = pack.fragments[self._kind], x_q.new_empty(self._shape, dtype=self._dtype)
        spare = weight.row_scale if bias is None else bias
        self._launch((_readable(x_q), x_scale, weight.blocks, weight.row_scale, spare, y, *self._workspace(weight.blocks)))
        return y

    def lean(self, x: torch.Tensor, pack: KernelPack, bias: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor:
        """y of this shape of x, contiguous and at a multiple of 16 bytes, on the current device: the same launches, at half of what they
        take the host."""
        quantize, weight = self._quantize, pack.fragments[self._kind]
        scratch, y = x.new_empty(quantize.scratch_bytes, dtype=torch.int8), x.new_empty(shape)
        (blocks, scales, flags), (sums, counters) = pack.addresses(self._kind), self._workspace(weight.blocks)
        codes = scratch.data_ptr()
        place = codes + quantize.codes_bytes
        quantized = (x.data_ptr(), codes, place, None, flags)
        quantize.usual.start(self._index, quantized, lambda: (x, *quantize.views(scratch), None, pack.flags))
        spare = scales if bias is None else bias.data_ptr()
        addresses = (codes, place, blocks, scales, spare, y.data_ptr(), sums.data_ptr(), counters.data_ptr())
        self._lean.start(self._index, addresses, lambda: (
            *quantize.views(scratch), weight.blocks, weight.row_scale, weight.row_scale if bias is None else bias, y, sums, counters))
        return y


def _bind_mma(problem: Problem, gpu: Gpu, device: torch.device, biased: bool) -> Run:
    """As `sparse_mma.bind` and its launch."""
    tokens, rows, columns, dtype = problem.tokens, problem.out_features, problem.in_features, DTYPES[problem.dtype]
    config: MmaConfig = config_of("sparse-mma", problem, gpu)
    tile, (row_blocks, steps, *_) = config.tile, block_shape(rows, columns)
    row_tiles, token_tiles = math.ceil(rows / tile.block_n), math.ceil(tokens / tile.block_t)
    works = row_tiles * token_tiles * config.splits
    sizes = (steps, works, row_tiles, token_tiles, config.band or row_tiles, row_blocks, tokens, rows, padded_columns(columns))
    programs = torch.cuda.get_device_properties(device).multi_processor_count * config.per_sm
    constants = {**sparse_mma.constants(config, dtype, rows), **config.options}
    launch = Launch(sparse_mma_gemm, (min(programs, works),), (*sizes, -(-columns // 16) * 16), **constants)
    tiles = row_tiles * token_tiles if config.splits > 1 else 0
    workspace, quantize = _meeting(tiles * config.splits * tile.block_n * tile.block_t, tiles, zeroed=False), Quantizer(problem, device)

    def run(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: KernelPack, bias: torch.Tensor | None) -> torch.Tensor:
        if x is not None:
            quantize(x, x_q, x_scale, pack.flags)
        weight, y = pack.fragments["sparse"], x_q.new_empty((tokens, rows), dtype=dtype)
        spare = pack.no_bias if bias is None else bias
        launch((_readable(x_q), weight.blocks, x_scale, weight.row_scale, spare, y, *workspace(weight.blocks)))
        return y

    return run


def _nothing(problem: Problem) -> Run:
    """Of no tokens."""
    def run(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: KernelPack, bias: torch.Tensor | None) -> torch.Tensor:
        return x_q.new_empty((0, problem.out_features), dtype=DTYPES[problem.dtype])

    return run


def bind(name: str, problem: Problem, gpu: Gpu, device: torch.device, biased: bool) -> Run:
    """A forward kernel of `FORWARD` bound to a problem. problem: a `step` of training, or a `layer` in evaluation."""
    return FORWARD[name].bind(problem, gpu, device, biased) if problem.tokens else _nothing(problem)


def _of_2_4(unavailable: Callable[[Problem, Gpu], str | None]) -> Callable[[Problem, Gpu], str | None]:
    """The kernel's own refusal, and that of weights that it would want lifted."""
    def refuses(problem: Problem, gpu: Gpu) -> str | None:
        if problem.sparsity != HALF:
            return f"fragments are packed of 2:4 weights, not of {problem.sparsity}"
        return unavailable(problem, gpu)

    return refuses


FORWARD: Mapping[str, Forward] = {
    "dense-triton": Forward(_bind_dense_triton, refusal, lambda sparsity: None),
    "dense-wgmma": Forward(functools.partial(_bind_wgmma, "dense"), find("dense-wgmma", "gemm").unavailable, lambda sparsity: "dense"),
    "sparse-wgmma": Forward(functools.partial(_bind_wgmma, "sparse"), _of_2_4(sparse_wgmma_config.unavailable), lambda sparsity: "sparse"),
    "sparse-mma": Forward(_bind_mma, _of_2_4(sparse_mma.unavailable), lambda sparsity: "sparse"),
    "decode": Forward(Decode, decode.unavailable, layout_of),
}
