"""What the operands of a GEMM hold: values change power, and power changes clocks; so the same shape can be measured under other data."""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels.errors import UsageError
from kernels.inputs import GemmInputs, Inputs, pad_rows
from kernels.problem import Sparsity
from reference.sparsity import nm_mask
from suites.case import Data

LARGEST = 15
"""Uniform weights lie between minus and plus this: the largest range of whole numbers that int8, bf16 and e4m3 all hold exactly."""


def redrawn(inputs: Inputs, data: Data, sparsity: Sparsity, seed: int = 7) -> Inputs:
    """The inputs with other values in the same places. ternary: as they are. UsageError for inputs that are not a GEMM's.

    uniform: weights from -15 to 15, masked to the sparsity, activations from -127 to 127, each equally likely. zero: both all zero.
    """
    if data == "ternary":
        return inputs
    if not isinstance(inputs, GemmInputs):
        raise UsageError(f"{data} data is only for the plain GEMM")
    if data == "zero":
        return replace(inputs, x_q=pad_rows(torch.zeros_like(inputs.x_q)), w_ternary=torch.zeros_like(inputs.w_ternary))
    weight = _uniform(inputs.w_ternary, LARGEST, seed)
    scores = _uniform(inputs.w_ternary, 127, seed + 1).float()
    return replace(
        inputs, x_q=pad_rows(_uniform(inputs.x_q, 127, seed + 2)), w_ternary=weight * nm_mask(scores, sparsity.n, sparsity.m),
    )


def _uniform(like: torch.Tensor, largest: int, seed: int) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randint(-largest, largest + 1, like.shape, generator=generator, device=like.device, dtype=torch.int8)
