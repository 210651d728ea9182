"""int8 activations and their scales back to bf16 or fp16, for a GEMM library. Floor: one byte read and two written per value."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.launch import launch


@triton.jit
def dequantize_kernel(x_q, x_scale, out, tokens, in_features, x_stride, out_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[t, k] = x_q · x_scale in out's type, rounded once; a [ROWS, BLOCK] tile per program."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    offs_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (rows[:, None] < tokens) & (offs_k[None, :] < in_features)
    q = tl.load(x_q + rows[:, None] * x_stride + offs_k[None, :], mask=mask, other=0)
    scale = tl.load(x_scale + rows, mask=rows < tokens, other=0.0)
    tl.store(out + rows[:, None] * out_stride + offs_k[None, :], (q.to(tl.float32) * scale[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _from_byte(words, BYTE: tl.constexpr):
    """int8 in byte BYTE of a word as float32: 2^23 + 128 + value is exact in a float's last bits, and no conversion is needed."""
    biased = (((words >> (8 * BYTE)) & 0xFF) ^ 0x80) | 0x4B000000
    return biased.to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def dequantize_words_kernel(x_q, x_scale, out, tokens, in_features, x_stride, out_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The same, four codes a word: in_features and x_stride are multiples of 4, rows of x_q start at words.

    Row by row, so that a thread loads the two words whose values it stores and nothing goes through shared memory; all loads come first.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    word = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    loaded: tl.tuple = ()
    for index in tl.static_range(ROWS):
        source = x_q.to(tl.pointer_type(tl.int32)) + (first + index) * (x_stride // 4) + word
        words = tl.load(source, mask=(first + index < tokens) & (word < in_features // 4), other=0)
        scale = tl.load(x_scale + first + index, mask=first + index < tokens, other=0.0)
        loaded = loaded + ((words, scale),)  # noqa: RUF005 (Triton does not unpack)
    for index in tl.static_range(ROWS):
        words, scale = loaded[index]
        even = tl.join(_from_byte(words, 0) * scale, _from_byte(words, 2) * scale)
        odd = tl.join(_from_byte(words, 1) * scale, _from_byte(words, 3) * scale)
        values = tl.reshape(tl.join(even, odd), [BLOCK]).to(out.dtype.element_ty)
        tl.store(out + (first + index) * out_stride + column, values, mask=(first + index < tokens) & (column < in_features))


def launch_dequantize(x_q: torch.Tensor, x_scale: torch.Tensor, out: torch.Tensor) -> None:
    """Write x_q · x_scale into out [T, K] (bf16 or fp16), rounded once. x_q: int8 [T, K], contiguous rows; x_scale: float32 [T]."""
    if out.numel():
        by_words = out.shape[1] % 4 == 0 and x_q.stride(0) % 4 == 0 and x_q.data_ptr() % 4 == 0
        kernel, rows = (dequantize_words_kernel, 8) if by_words else (dequantize_kernel, 4)
        tokens, in_features = out.shape
        launch(kernel, (-(-tokens // rows), -(-in_features // 1024)), (x_q, x_scale, out),
               (tokens, in_features, x_q.stride(0), out.stride(0)), ROWS=rows, BLOCK=1024, num_warps=4)
