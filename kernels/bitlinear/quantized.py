"""Activations of a layer as its kernels read them: int8 codes in padded rows, a scale for each, and the launch that makes them."""

from __future__ import annotations

import torch

from kernels.inputs import DTYPES, ROW_ALIGNMENT
from kernels.mask_quantize.activation import activation_config, activation_launch, by_words, start_activation
from kernels.problem import Problem


def padded_columns(in_features: int) -> int:
    """Columns of the quantized rows in memory."""
    return -(-in_features // ROW_ALIGNMENT) * ROW_ALIGNMENT


def allocate_quantized(tokens: int, in_features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [T, K padded to 128], zero behind K, contiguous, and x_scale float32 [T]: all that the backward pass keeps of x."""
    padded = padded_columns(in_features)
    allocate = torch.empty if padded == in_features else torch.zeros
    return allocate((tokens, padded), dtype=torch.int8, device=device), torch.empty(tokens, dtype=torch.float32, device=device)


class Quantizer:
    """Activations to codes and scales for one number of tokens: one launch, known beforehand for rows that lie as they usually do."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        tokens, columns = problem.tokens, problem.in_features
        self.tokens, self.columns, self.padded = tokens, columns, padded_columns(columns)
        self.config = activation_config(columns, tokens)
        self.words = by_words(DTYPES[problem.dtype], columns, None, self.config)
        self.codes_bytes = tokens * self.padded
        self.scratch_bytes = self.codes_bytes + 4 * tokens
        """Of codes, and of codes and scales together."""
        sizes = (columns, self.padded)
        self.usual = activation_launch(self.words, tokens, columns, columns, sizes, None, self.config, device)

    def __call__(self, x: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, flags: torch.Tensor) -> None:
        """x [T, K] to x_q int8 [T, K padded to 128] and x_scale float32 [T]; flags[0] becomes 1 where x is not finite."""
        if (self.tokens == 1 or x.stride(0) == self.columns) and not x.data_ptr() & 15:
            self.usual((x, x_q, x_scale, None, flags) if self.words else (x, x_q, x_scale, flags))
        else:
            start_activation(x, x_q[:, : self.columns], x_scale, None, self.config, flags=flags)

    def views(self, scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_q and x_scale in int8 `scratch_bytes`."""
        end = self.codes_bytes
        return scratch[:end].view(self.tokens, self.padded), scratch[end:].view(torch.float32)
