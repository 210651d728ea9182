"""Output gradients in int8 for both 8-bit gradient GEMMs, which want their operands contiguous along what is summed over.

dX sums over out_features: codes of dY · w_scale with one scale a token. dW sums over tokens: codes of dY · x_scale with one scale an
out_feature, transposed; x_scale lies along the sum, so it goes into dY, and the saved int8 activations, transposed too, stay what they are.

Floor: dY read twice (both absmax, then the codes) and both codes written, 6 bytes a value of bf16; 2 bytes a value of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from kernels.errors import ShapeError
from kernels.inputs import ROW_ALIGNMENT
from kernels.kernel import CompileUnit
from kernels.mask_quantize.activation import allocate_activation
from kernels.sparse_backward.gradient_kernels import (
    gradient_maxima_kernel,
    gradient_scales_kernel,
    quantize_both_kernel,
    row_scale_kernel,
    transpose_kernel,
)
from kernels.sparse_backward.input_grad import check_gradient

MAXIMA = {"STEPS": 8, "ROWS": 16, "BLOCK": 256}
TILE = {"TOKENS": 64, "BLOCK": 128}
TRANSPOSED = {"ROWS": 128, "BLOCK": 128}
WARPS, TRANSPOSE_WARPS = 4, 8
"""The fastest of seven tiles of each pass over dY at 16384 × 4608, of five of the transposition (H200, 2026-11-22)."""
SCALES = 1024
"""Scales of a program."""


@dataclass(frozen=True)
class GradientBuffers:
    """What `launch_quantize_both` writes. by_token: int8 [T, N], or None; by_feature: int8 [N, T]; rows of both padded to 128 with zeros.

    tops: int32, zero between launches; scale, inverse: float32; each per token and, from `edge` on, per out_feature.
    """

    by_token: torch.Tensor | None
    by_feature: torch.Tensor
    tops: torch.Tensor
    scale: torch.Tensor
    inverse: torch.Tensor
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
        return codes + 12 * self.scale.numel()


def allocate_gradient(tokens: int, out_features: int, device: torch.device | str, both: bool = True) -> GradientBuffers:
    """Buffers for dY [tokens, out_features]; both: for codes per token too."""
    edge = -(-tokens // ROW_ALIGNMENT) * ROW_ALIGNMENT
    by_token = allocate_activation(tokens, out_features, None, device)[0] if both else None
    floats = torch.empty((2, edge + out_features), dtype=torch.float32, device=device)
    tops = torch.zeros(edge + out_features, dtype=torch.int32, device=device)
    return GradientBuffers(by_token, allocate_transposed(tokens, out_features, device), tops, floats[0], floats[1], edge)


def allocate_transposed(tokens: int, features: int, device: torch.device | str) -> torch.Tensor:
    """int8 [features, tokens] in rows padded to 128 with zeros, which `launch_transpose` and `launch_quantize_both` leave."""
    return allocate_activation(features, tokens, None, device)[0]


def launch_row_scale(w_scale: torch.Tensor, bounds: torch.Tensor, out: torch.Tensor, rows: int) -> None:
    """Write w_scale / 64 of every row's split into out float32 [≥ rows]; bounds: int64 [S + 1], first row of each split. One launch."""
    if rows:
        row_scale_kernel[(triton.cdiv(rows, SCALES),)](w_scale, bounds, out, rows, SPLITS=w_scale.shape[0], BLOCK=SCALES, num_warps=4)


def launch_quantize_both(
    dy: torch.Tensor, row_scale: torch.Tensor | None, x_scale: torch.Tensor, buffers: GradientBuffers, seed: int | None = None
) -> None:
    """Write int8 codes of dy · row_scale per token and of dy · x_scale per out_feature. Three launches, no synchronization.

    dy: [T, N] bf16 or fp16, contiguous rows. row_scale: float32, at least [N], or None for buffers without by_token; x_scale: float32 [T].
    seed: of stochastic rounding, None for the nearest code. A token (an out_feature) with a NaN or an infinity gets the scale NaN.
    Raises ShapeError for what does not fit.
    """
    out_features, tokens = buffers.by_feature.shape
    check_gradient(dy, out_features)
    if dy.shape[0] != tokens or (row_scale is None) != (buffers.by_token is None):
        raise ShapeError(f"dy is {list(dy.shape)}; the buffers are for {[tokens, out_features]}, row_scale is needed by by_token alone")
    for name, vector, least in (("row_scale", row_scale, out_features), ("x_scale", x_scale, tokens)):
        if vector is not None and (vector.dtype != torch.float32 or vector.numel() < least or not vector.is_contiguous()):
            raise ShapeError(f"{name} is {vector.dtype} {list(vector.shape)}; contiguous float32 [{least}] is needed")
    if not dy.numel():
        buffers.scale.zero_()
        return
    cells = (tokens, out_features, dy.stride(0))
    span = MAXIMA["STEPS"] * MAXIMA["ROWS"]
    gradient_maxima_kernel[(triton.cdiv(tokens, span), triton.cdiv(out_features, MAXIMA["BLOCK"]))](
        dy, row_scale, x_scale, buffers.tops, buffers.edge, *cells, **MAXIMA, num_warps=WARPS
    )
    count = buffers.scale.numel()
    gradient_scales_kernel[(triton.cdiv(count, SCALES),)](buffers.tops, buffers.scale, buffers.inverse, count, BLOCK=SCALES, num_warps=8)
    quantize_both_kernel[(triton.cdiv(tokens, TILE["TOKENS"]), triton.cdiv(out_features, TILE["BLOCK"]))](
        dy, row_scale, x_scale, buffers.inverse, buffers.edge, buffers.by_token, buffers.by_feature, seed or 0, *cells,
        0 if buffers.by_token is None else buffers.by_token.stride(0), buffers.by_feature.stride(0) // 4, triton.cdiv(tokens, 4),
        STOCHASTIC=seed is not None, **TILE, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def launch_transpose(source: torch.Tensor, target: torch.Tensor) -> None:
    """Write int8 rows [T, K] into target [K, T]. One launch, no synchronization.

    Rows of both start at multiples of 4 bytes, and memory up to the next such multiple is theirs. Raises ShapeError for what does not fit.
    """
    words = all(tensor.dtype == torch.int8 and tensor.stride(1) == 1 and tensor.stride(0) % 4 == 0 and tensor.data_ptr() % 4 == 0
                for tensor in (source, target) if tensor.numel())  # fmt: skip
    if source.shape != target.shape[::-1] or not words:
        raise ShapeError(f"source {source.dtype} {list(source.shape)} {source.stride()} and target {target.dtype} {list(target.shape)} "
                         f"{target.stride()}: int8 rows of whole words, one the other's transpose, are needed")
    if source.numel():
        grid = (triton.cdiv(source.shape[0], TRANSPOSED["ROWS"]), triton.cdiv(source.shape[1], TRANSPOSED["BLOCK"]))
        transpose_kernel[grid](
            source, target, *source.shape, triton.cdiv(source.shape[1], 4), triton.cdiv(source.shape[0], 4), source.stride(0) // 4,
            target.stride(0) // 4, **TRANSPOSED, num_warps=TRANSPOSE_WARPS,
        )  # fmt: skip


def compile_units(dtype: str, aligned: bool, stochastic: bool, both: bool = True) -> Sequence[CompileUnit]:
    """Both passes over dY ("bf16" or "fp16") and the transposition as they are launched; aligned: sizes are multiples of 64. both:
    per token too."""
    kinds = {"dy": f"*{dtype}", "by_token": "*i8", "by_feature": "*i8", "source": "*i8", "target": "*i8", "tops": "*i32",
             **dict.fromkeys(("row_scale", "x_scale", "inverse"), "*fp32")}  # fmt: skip
    passes = ((gradient_maxima_kernel, MAXIMA, {"num_warps": WARPS}),
              (quantize_both_kernel, {**TILE, "STOCHASTIC": stochastic}, {"num_warps": WARPS, "enable_fp_fusion": False}),
              (transpose_kernel, TRANSPOSED, {"num_warps": TRANSPOSE_WARPS}))  # fmt: skip
    units = []
    for kernel, tile, options in passes:
        constants = dict(tile) if both else tile | {name: None for name in ("row_scale", "by_token") if name in kernel.arg_names}
        signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}
        sizes = ("tokens", "out_features", "rows", "columns", "dy_stride", "words", "quads") if aligned else ()
        always = ("edge", "token_stride", "feature_words", "source_words", "target_words")
        divisible = tuple(name for name, kind in signature.items() if kind.startswith("*") or name in (*sizes, *always))
        units.append(CompileUnit(kernel, signature, constants, divisible, options))
    return units
