"""Output gradients in int8 for both 8-bit gradient GEMMs, which want their operands contiguous along what is summed over.

dX sums over out_features: codes of dY · w_scale / 64 with one scale a token. dW sums over tokens: codes of dY · x_scale with one scale an
out_feature, transposed; x_scale lies along the sum, so it goes into dY, and the saved int8 activations, transposed too, stay what they are.

Floor: dY read twice (both absmax, then the codes) and both codes written, 6 bytes a value of bf16; 2 bytes a value of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton

from kernels.errors import ShapeError
from kernels.inputs import ROW_ALIGNMENT
from kernels.kernel import CompileUnit
from kernels.launch import launch
from kernels.mask_quantize.activation import allocate_activation, dependence
from kernels.sparse_backward.gradient_kernels import gradient_maxima_kernel, quantize_both_kernel, transpose_kernel
from kernels.sparse_backward.input_grad import check_gradient

PIECE = 256
"""Columns that a warp reads of a row at once."""
RUNS, MANY = 4, 4096
"""Of the maxima: rows of a warp at once, and the out_features from which it takes two pieces of each."""
PROGRAMS, MOST_STEPS = 396, 64
"""Of the maxima: at most so many programs, three for each multiprocessor of an H200, which run at once, unless they were too long."""
CODES = {"TOKENS": 64, "BLOCK": 128}
TRANSPOSED = {"ROWS": 128, "BLOCK": 128, "CLEARED": 256}
WARPS, TRANSPOSE_WARPS = 4, 8
"""The fastest of eighteen tiles of the codes, of thirty of the maxima and of three of the transposition at 16384 × 896, 2048, 4608 and
22016 (H200, 2026-11-22)."""


@dataclass(frozen=True)
class SplitScales:
    """w_scale float32 [S] of a weight's splits (out_features of each, in order), and bounds int64 [S + 1], first row of each and the
    end."""

    w_scale: torch.Tensor
    bounds: torch.Tensor
    splits: tuple[int, ...]

    @property
    def together(self) -> bool:
        """Whether eight columns of dY, from a multiple of eight, are of one split."""
        return not any(end % 8 for end in accumulate(self.splits[:-1]))


@dataclass(frozen=True)
class GradientBuffers:
    """What `launch_gradient` writes. by_token: int8 [T, N], or None; by_feature: int8 [N, T], x_t: int8 [K, T]; rows padded to 128 with
    zeros. tops: int32, scale: float32, per token and, from `edge` on, per out_feature.
    """

    by_token: torch.Tensor | None
    by_feature: torch.Tensor
    x_t: torch.Tensor
    tops: torch.Tensor
    scale: torch.Tensor
    edge: int

    @property
    def token_scale(self) -> torch.Tensor:
        """float32 [T]."""
        return self.scale[: self.by_feature.shape[1]]

    @property
    def feature_scale(self) -> torch.Tensor:
        """float32 [N]."""
        return self.scale[self.edge :]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        codes = self.by_feature.numel() * (1 if self.by_token is None else 2)
        return codes + self.x_t.numel() + 8 * self.scale.numel()


def allocate_gradient(
    tokens: int, out_features: int, in_features: int, device: torch.device | str, both: bool = True
) -> GradientBuffers:
    """Buffers for dY [tokens, out_features] and X [tokens, in_features]; both: for codes per token too."""
    edge = -(-tokens // ROW_ALIGNMENT) * ROW_ALIGNMENT
    by_token = allocate_activation(tokens, out_features, None, device)[0] if both else None
    by_feature, x_t = (allocate_activation(features, tokens, None, device)[0] for features in (out_features, in_features))
    tops = torch.empty(edge + out_features, dtype=torch.int32, device=device)
    return GradientBuffers(by_token, by_feature, x_t, tops, torch.empty_like(tops, dtype=torch.float32), edge)


def launch_gradient(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, buffers: GradientBuffers, weight: SplitScales | None,
    seed: int | None = None,
) -> None:
    """Write x_q transposed and int8 codes of dy · w_scale / 64 per token and of dy · x_scale per out_feature. Three launches, no
    synchronization.

    dy: [T, N] bf16 or fp16, contiguous rows. x_q: int8 [T, K], its rows at multiples of 4 bytes, and memory up to the next such multiple
    is theirs; x_scale: float32 [T]. weight: None for buffers without by_token. seed: of stochastic rounding, None for the nearest code.
    A token (an out_feature) with a NaN or an infinity gets the scale NaN. Raises ShapeError for what does not fit.
    """
    out_features, tokens = buffers.by_feature.shape
    check_gradient(dy, out_features)
    if dy.shape[0] != tokens or (weight is None) != (buffers.by_token is None):
        raise ShapeError(f"dy is {list(dy.shape)}; the buffers are for {[tokens, out_features]}, scales of a weight go with by_token alone")
    if x_scale.dtype != torch.float32 or x_scale.numel() < tokens or not x_scale.is_contiguous():
        raise ShapeError(f"x_scale is {x_scale.dtype} {list(x_scale.shape)}; contiguous float32 [{tokens}] is needed")
    if weight is not None and (weight.w_scale.dtype != torch.float32 or sum(weight.splits) != out_features):
        raise ShapeError(f"w_scale is {weight.w_scale.dtype} of splits {weight.splits}; float32 of {out_features} rows is needed")
    _check_rows(x_q, buffers.x_t)
    if not dy.numel():
        buffers.scale.zero_()
        return
    _launch_transpose(x_q, buffers.x_t, buffers.tops)
    _launch_maxima(dy, x_scale, buffers, weight)
    codes = 0 if buffers.by_token is None else buffers.by_token.stride(0)
    launch(
        quantize_both_kernel, (triton.cdiv(tokens, CODES["TOKENS"]), triton.cdiv(out_features, CODES["BLOCK"])),
        (dy, *_split_arguments(weight), x_scale, buffers.tops, buffers.scale, buffers.by_token, buffers.by_feature),
        (buffers.edge, seed or 0, tokens, out_features, dy.stride(0), codes, buffers.by_feature.stride(0) // 4, triton.cdiv(tokens, 4)),
        SPLITS=_splits(weight), STOCHASTIC=seed is not None, **CODES, num_warps=WARPS, enable_fp_fusion=False, **dependence(dy.device),
    )  # fmt: skip


def _launch_maxima(dy: torch.Tensor, x_scale: torch.Tensor, buffers: GradientBuffers, weight: SplitScales | None) -> None:
    tokens, out_features = dy.shape
    pieces = 2 if out_features >= MANY else 1
    rows, over = RUNS * WARPS, triton.cdiv(out_features, pieces * PIECE)
    steps = min(MOST_STEPS, triton.cdiv(triton.cdiv(tokens, rows) * over, PROGRAMS))
    launch(
        gradient_maxima_kernel, (triton.cdiv(tokens, rows * steps), over), (dy, *_split_arguments(weight), x_scale, buffers.tops),
        (buffers.edge, tokens, out_features, dy.stride(0), steps), SPLITS=_splits(weight),
        TOGETHER=weight is not None and weight.together, RUNS=RUNS, PIECES=pieces, WARPS=WARPS, num_warps=WARPS, **dependence(dy.device),
    )  # fmt: skip


def _launch_transpose(source: torch.Tensor, target: torch.Tensor, clear: torch.Tensor) -> None:
    grid = (triton.cdiv(source.shape[0], TRANSPOSED["ROWS"]), triton.cdiv(source.shape[1], TRANSPOSED["BLOCK"]))
    words, quads = triton.cdiv(source.shape[1], 4), triton.cdiv(source.shape[0], 4)
    launch(
        transpose_kernel, grid, (source, target, clear),
        (*source.shape, words, quads, source.stride(0) // 4, target.stride(0) // 4, clear.numel()), **TRANSPOSED, num_warps=TRANSPOSE_WARPS,
        **dependence(source.device),
    )  # fmt: skip


def _split_arguments(weight: SplitScales | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if weight is None else (weight.w_scale, weight.bounds)


def _splits(weight: SplitScales | None) -> int:
    return 1 if weight is None else len(weight.splits)


def _check_rows(source: torch.Tensor, target: torch.Tensor) -> None:
    words = all(tensor.dtype == torch.int8 and tensor.stride(1) == 1 and tensor.stride(0) % 4 == 0 and tensor.data_ptr() % 4 == 0
                for tensor in (source, target) if tensor.numel())  # fmt: skip
    if source.shape != target.shape[::-1] or not words:
        raise ShapeError(f"x_q {source.dtype} {list(source.shape)} {source.stride()} and x_t {target.dtype} {list(target.shape)} "
                         f"{target.stride()}: int8 rows of whole words, one the other's transpose, are needed")


def compile_units(
    dtype: str, out_features: int, aligned: bool, stochastic: bool, both: bool = True, splits: Sequence[int] = (1,)
) -> Sequence[CompileUnit]:
    """The passes as they are launched. aligned: all sizes are multiples of 16. both: with codes per token, of a weight of these splits."""
    kinds = {"dy": "*bf16" if dtype == "bf16" else "*fp16", "tops": "*i32", "clear": "*i32", "bounds": "*i64",
             **dict.fromkeys(("by_token", "by_feature", "source", "target"), "*i8"),
             **dict.fromkeys(("w_scale", "x_scale", "scale"), "*fp32")}  # fmt: skip
    together = both and SplitScales(torch.empty(0), torch.empty(0), tuple(splits)).together
    split: dict[str, Any] = {"SPLITS": len(splits) if both else 1, **({} if both else {"w_scale": None, "bounds": None})}
    maxima = split | {"TOGETHER": together, "RUNS": RUNS, "PIECES": 2 if out_features >= MANY else 1, "WARPS": WARPS}
    codes = split | CODES | {"STOCHASTIC": stochastic} | ({} if both else {"by_token": None})
    passes: tuple[tuple[Any, dict[str, Any], dict[str, Any]], ...] = (
        (gradient_maxima_kernel, maxima, {"num_warps": WARPS}),
        (quantize_both_kernel, codes, {"num_warps": WARPS, "enable_fp_fusion": False}),
        (transpose_kernel, dict(TRANSPOSED), {"num_warps": TRANSPOSE_WARPS}),
    )
    units = []
    for kernel, tile, options in passes:
        constants = tile | {"DEPENDENT": False}
        signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}
        sizes = ("tokens", "out_features", "rows", "columns", "dy_stride", "words", "quads") if aligned else ()
        always = ("edge", "token_stride", "feature_words", "source_words", "target_words")
        divisible = tuple(name for name, kind in signature.items() if kind.startswith("*") or name in (*sizes, *always))
        units.append(CompileUnit(kernel, signature, constants, divisible, options, since={90: {"DEPENDENT": True, "launch_pdl": True}}))
    return units
