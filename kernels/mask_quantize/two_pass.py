"""Mask, ternary quantization and packing of a master weight in two passes over it: a reduction for the scales, then everything else.

Floor: two reads of the master and a quarter of a byte written per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton

from kernels.errors import NonFiniteError, ShapeError
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs, PrepareInputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.launch import launch
from kernels.mask_quantize.two_four_kernels import pack_two_four_kernel
from kernels.mask_quantize.two_pass_kernels import absmean_kernel, carried_scales_kernel, pack_kernel, pack_words_kernel
from kernels.packed import PackedTernary, packed_width
from kernels.problem import Problem, Sparsity
from kernels.space import Config, ConfigSpace

SUM_PROGRAMS = 1024
"""Partial sums per split, at most: one wave of 256-thread programs on a large GPU, one load of the program that adds them."""

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class TwoPassConfig:
    """sum_block: weights per step of the reduction. rows × blocks: tile of the second pass, blocks of 256 columns. Warps of both."""

    sum_block: int = 8192
    sum_warps: int = 8
    rows: int = 8
    blocks: int = 2
    warps: int = 4


@dataclass(frozen=True)
class Workspace:
    """What the launches share, made once by `allocate_workspace` and reusable on one stream at a time.

    partials float64 [S, SUM_PROGRAMS]; counters int32 [S], zero between launches; bounds int64 [S + 1], first row of each split and
    the end; limits int32 [S]; nonfinite int32 [S], 1 where a split held a NaN or an infinity (its scales are NaN, its weights zeros).
    """

    partials: torch.Tensor
    counters: torch.Tensor
    bounds: torch.Tensor
    limits: torch.Tensor
    nonfinite: torch.Tensor
    splits: tuple[int, ...]


@dataclass(frozen=True)
class PrepareBuffers:
    """Outputs of `launch_prepare` with their workspace: packed uint8 [N, packed_width(K)], w_scale and inv_scale float32 [S]."""

    packed: torch.Tensor
    w_scale: torch.Tensor
    inv_scale: torch.Tensor
    workspace: Workspace


def allocate_workspace(splits: Sequence[int], device: torch.device | str) -> Workspace:
    """A workspace for these splits (output rows per scale, in order)."""
    count = len(splits)
    return Workspace(
        partials=torch.zeros((count, SUM_PROGRAMS), dtype=torch.float64, device=device),
        counters=torch.zeros(count, dtype=torch.int32, device=device),
        bounds=torch.tensor([0, *accumulate(splits)], dtype=torch.int64, device=device),
        limits=torch.zeros(count, dtype=torch.int32, device=device),
        nonfinite=torch.zeros(count, dtype=torch.int32, device=device),
        splits=tuple(splits),
    )


def allocate_prepare(out_features: int, in_features: int, splits: Sequence[int], device: torch.device | str) -> PrepareBuffers:
    """Buffers for a weight [out_features, in_features]; synchronizes once (the splits are copied to the device)."""
    return PrepareBuffers(
        packed=torch.empty((out_features, packed_width(in_features)), dtype=torch.uint8, device=device),
        w_scale=torch.empty(len(splits), dtype=torch.float32, device=device),
        inv_scale=torch.empty(len(splits), dtype=torch.float32, device=device),
        workspace=allocate_workspace(splits, device),
    )


def check_weight(weight: torch.Tensor, sparsity: Sparsity, splits: Sequence[int]) -> None:
    """Raises ShapeError for a weight that `launch_prepare` cannot take."""
    if weight.dim() != 2 or weight.dtype not in _POINTERS or weight.shape[1] < 1:
        raise ShapeError(f"weight is {weight.dtype} {list(weight.shape)}; bf16, fp16 or fp32 [out_features, in_features] is needed")
    if weight.shape[1] % sparsity.m:
        raise ShapeError(f"in_features {weight.shape[1]} is not a multiple of the group of {sparsity.m} in {sparsity}")
    if not splits or min(splits) < 0 or sum(splits) != weight.shape[0]:
        raise ShapeError(f"splits {tuple(splits)} do not sum to out_features {weight.shape[0]}")
    if weight.shape[1] > 1 and weight.stride(1) != 1:
        raise ShapeError(f"weight has column stride {weight.stride(1)}; its rows must be contiguous")
    if weight.device.type == "cpu" and isinstance(pack_kernel, triton.JITFunction):
        raise ShapeError("weight is on the CPU; this kernel runs on a GPU (or in Triton's interpreter)")


def launch_scales(
    weight: torch.Tensor, w_scale: torch.Tensor, inv_scale: torch.Tensor, workspace: Workspace, config: TwoPassConfig,
    sums: torch.Tensor | None = None,
) -> None:
    """The first pass: w_scale, inv_scale and the workspace's limits of a checked weight with at least one row. One launch.

    sums: of |w|, as `launch_carried_scales` takes them; with them the weight is not read.
    """
    if sums is not None:
        launch_carried_scales(sums, weight.shape[1], w_scale, inv_scale, workspace)
        return
    in_features, largest = weight.shape[1], max(workspace.splits)
    flat = weight.stride(0) == in_features
    tiles = -(-largest * in_features // config.sum_block) if flat else largest * -(-in_features // config.sum_block)
    launch(
        absmean_kernel, (min(SUM_PROGRAMS, tiles), len(workspace.splits)),
        (weight, workspace.partials, workspace.counters, workspace.bounds, workspace.limits, workspace.nonfinite, w_scale, inv_scale),
        (in_features, weight.stride(0)), FLAT=flat, VECTOR=_vector(in_features), BLOCK=config.sum_block, PROGRAMS=SUM_PROGRAMS,
        num_warps=config.sum_warps,
    )


def launch_carried_scales(
    sums: torch.Tensor, in_features: int, w_scale: torch.Tensor, inv_scale: torch.Tensor, workspace: Workspace
) -> None:
    """The same from the sums of |w| per split, float64 [S], that an optimizer carries: the weight is not read. One launch.

    Raises ShapeError for other sums.
    """
    if sums.dtype != torch.float64 or tuple(sums.shape) != (len(workspace.splits),) or not sums.is_contiguous():
        raise ShapeError(f"sums are {sums.dtype} {list(sums.shape)}; contiguous float64 {[len(workspace.splits)]} are needed")
    carried_scales_kernel[(len(workspace.splits),)](
        sums, workspace.bounds, workspace.limits, workspace.nonfinite, w_scale, inv_scale, in_features, num_warps=1
    )


def launch_prepare(
    weight: torch.Tensor, packed_data: torch.Tensor, w_scale: torch.Tensor, inv_scale: torch.Tensor, workspace: Workspace,
    sparsity: Sparsity, splits: Sequence[int], config: TwoPassConfig, mask: torch.Tensor | None = None, w_fake: torch.Tensor | None = None,
    sums: torch.Tensor | None = None, flips: torch.Tensor | None = None,
) -> None:
    """Mask, quantize and pack `weight` into the given buffers on the current stream: two launches, no allocation, no synchronization.

    weight: [N, K] bf16, fp16 or fp32, unit column stride, any row stride. packed_data: uint8 [N, packed_width(K)]. w_scale, inv_scale:
    float32 [S]; NaN (with `workspace.nonfinite` set and zero weights) for a split with a NaN or an infinity. mask: bool or uint8 [N, K],
    1 where a weight is kept. w_fake: bf16 [N, K], ternary · w_scale. All contiguous. sums: float64 [S], the sums of |w| that somebody
    carried (`launch_carried_scales`): the first read of the weight is saved. flips: int64 [1], to which is added how many weights are
    non-zero now and were zero in what packed_data held before, or the reverse.
    Raises ShapeError for a weight or splits that do not fit.
    """
    check_weight(weight, sparsity, splits)
    if workspace.splits != tuple(splits):
        raise ShapeError(f"the workspace was made for splits {workspace.splits}, not {tuple(splits)}")
    if not weight.shape[0]:
        w_scale.fill_(1e-5)
        inv_scale.fill_(1e5)
        return
    if any(out is not None and (not out.is_contiguous() or out.data_ptr() % 4) for out in (packed_data, mask, w_fake)):
        raise ShapeError("packed_data, mask and w_fake must be contiguous and start at a multiple of 4 bytes")
    if flips is not None and (flips.dtype != torch.int64 or flips.numel() != 1):
        raise ShapeError(f"flips are {flips.dtype} {list(flips.shape)}; int64 [1] is needed")
    start_prepare(weight, packed_data, w_scale, inv_scale, workspace, sparsity, config, mask, w_fake, sums, flips)


def start_prepare(
    weight: torch.Tensor, packed_data: torch.Tensor, w_scale: torch.Tensor, inv_scale: torch.Tensor, workspace: Workspace,
    sparsity: Sparsity, config: TwoPassConfig, mask: torch.Tensor | None = None, w_fake: torch.Tensor | None = None,
    sums: torch.Tensor | None = None, flips: torch.Tensor | None = None,
) -> None:
    """`launch_prepare` of at least one row for a weight and buffers that are known to fit; finding that out takes longer than a launch."""
    out_features, in_features = weight.shape
    launch_scales(weight, w_scale, inv_scale, workspace, config, sums)
    column_tiles = -(-packed_width(in_features) // (64 * config.blocks))
    by_words = _by_words(weight.dtype, in_features, sparsity) and weight.stride(0) % 2 == 0 and weight.data_ptr() % 4 == 0
    kernel, types = _second_pass(weight.dtype, sparsity, by_words)
    launch(
        kernel, (-(-out_features // config.rows) * column_tiles,),
        (weight, packed_data, None if mask is None else mask.view(torch.uint8), w_fake, flips, workspace.bounds, workspace.limits, w_scale),
        (out_features, in_features, weight.stride(0), column_tiles), SPLITS=len(workspace.splits), ROWS=config.rows, BLOCKS=config.blocks,
        num_warps=config.warps, **types,
    )


def _second_pass(dtype: torch.dtype, sparsity: Sparsity, by_words: bool) -> tuple[Any, dict[str, Any]]:
    """The function of the second pass and what it alone is specialized for."""
    groups = {"KEEP": sparsity.n, "GROUP": sparsity.m}
    if not by_words:
        return pack_kernel, groups
    types = {"BF16": dtype == torch.bfloat16}
    return (pack_two_four_kernel, types) if (sparsity.n, sparsity.m) == (2, 4) else (pack_words_kernel, groups | types)


def _by_words(dtype: torch.dtype, in_features: int, sparsity: Sparsity) -> bool:
    """Whether the second pass may take two weights as a word, given that rows are aligned."""
    return dtype != torch.float32 and in_features % 2 == 0 and 64 % sparsity.m == 0


def _vector(in_features: int) -> int:
    """Largest power of two up to 16 that divides in_features: how far a tail mask may be taken as constant."""
    return min(16, in_features & -in_features)


def prepare_weight(
    weight: torch.Tensor, sparsity: Sparsity, splits: Sequence[int] | None = None, config: TwoPassConfig | None = None,
    name: str = "weight",
) -> PackedTernary:
    """The packed ternary weight of a master [N, K] (bf16, fp16 or fp32, any strides) on the GPU; for inference: it synchronizes.

    splits: output rows per scale (None: one scale). name: what errors call the tensor.
    Raises ShapeError for shapes that do not fit, NonFiniteError where the weight holds a NaN or an infinity.
    """
    parts = (weight.shape[0],) if splits is None else tuple(splits)
    rows = weight if weight.dim() != 2 or weight.stride(1) == 1 else weight.contiguous()
    check_weight(rows, sparsity, parts)
    buffers = allocate_prepare(rows.shape[0], rows.shape[1], parts, rows.device)
    chosen = config or two_pass_config(sparsity)
    with torch.cuda.device_of(rows):
        launch_prepare(rows, buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, sparsity, parts, chosen)
    if bool(buffers.workspace.nonfinite.any()):
        raise NonFiniteError(f"{name} holds a NaN or an infinity; it cannot be quantized")
    return PackedTernary(buffers.packed, buffers.w_scale, parts, rows.shape[1], sparsity)


def two_pass_config(sparsity: Sparsity) -> TwoPassConfig:
    """A heuristic config: 32 weights per thread, or 8 where the groups (of 6 and 10) are read again for every weight."""
    return TwoPassConfig(rows=4, blocks=1) if 64 % sparsity.m else TwoPassConfig()


def _default(problem: Problem, gpu: Gpu) -> TwoPassConfig:
    return two_pass_config(problem.sparsity)


def _reject(problem: Problem, gpu: Gpu, config: Config) -> str | None:
    weights = config.rows * config.blocks * 256 // (config.warps * 32)
    low, high = (4, 8) if 64 % problem.sparsity.m else (16, 64)
    if not low <= weights <= high:
        return f"{weights} weights per thread; {low} to {high} fill the loads without spilling"
    return None


def _prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    if not isinstance(inputs, PrepareInputs):
        raise ShapeError(f"two-pass prepares a master weight, not {type(inputs).__name__}")
    weight = inputs.w
    check_weight(weight, problem.sparsity, problem.splits)
    buffers = allocate_prepare(weight.shape[0], weight.shape[1], problem.splits, weight.device)
    packed, w_scale, inv_scale = buffers.packed, buffers.w_scale, buffers.inv_scale

    def run() -> Outputs:
        launch_prepare(weight, packed, w_scale, inv_scale, buffers.workspace, problem.sparsity, problem.splits, config)
        return outputs

    outputs = {"packed": packed, "w_scale": w_scale, "inv_scale": inv_scale}
    stored = packed.numel() + 4 * len(problem.splits)
    return Prepared(run, outputs, weight.numel() * weight.element_size() + stored, stored, {"launches": 2})


def compile_units(problem: Problem, config: Config) -> tuple[CompileUnit, ...]:
    """Both functions as they are compiled for a contiguous master of the problem's dtype, without the optional outputs."""
    dtype = DTYPES[problem.dtype]
    first: dict[str, Any] = {"FLAT": True, "VECTOR": _vector(problem.in_features), "BLOCK": config.sum_block,
                             "PROGRAMS": SUM_PROGRAMS}
    second: dict[str, Any] = {"mask_ptr": None, "fake_ptr": None, "flips_ptr": None, "SPLITS": len(problem.splits),
                              "ROWS": config.rows, "BLOCKS": config.blocks}
    pointers = {"w_ptr": _POINTERS[dtype], "bound_ptr": "*i64", "limit_ptr": "*i32", "w_scale_ptr": "*fp32"}
    sizes = {"in_features": "i32", "row_stride": "i32"}
    reduce = {**pointers, "partial_ptr": "*fp64", "counter_ptr": "*i32", "nonfinite_ptr": "*i32", "inv_scale_ptr": "*fp32", **sizes}
    pack = {**pointers, "packed_ptr": "*u8", **sizes, "out_features": "i32", "column_tiles": "i32"}
    aligned = tuple(sizes) if problem.in_features % 16 == 0 else ()
    function, types = _second_pass(dtype, problem.sparsity, _by_words(dtype, problem.in_features, problem.sparsity))
    return (
        _unit(absmean_kernel, reduce, first, aligned, config.sum_warps),
        _unit(function, pack, second | types, aligned, config.warps),
    )


def _unit(function: Any, arguments: dict[str, str], constants: dict[str, Any], aligned: tuple[str, ...], warps: int) -> CompileUnit:
    signature = {name: arguments.get(name, "constexpr") for name in function.arg_names}
    divisible = tuple(name for name, kind in signature.items() if kind.startswith("*")) + aligned
    return CompileUnit(function, signature, constants, divisible, {"num_warps": warps})


KERNELS = (
    Kernel(
        name="two-pass", op="prepare", kind="variant", prepare=_prepare, default_config=_default, compile_units=compile_units,
        space=ConfigSpace(
            TwoPassConfig,
            {"sum_block": (4096, 8192), "sum_warps": (4, 8), "rows": (4, 8, 16), "blocks": (1, 2, 4), "warps": (4, 8)}, _reject,
        ),
    ),
)
