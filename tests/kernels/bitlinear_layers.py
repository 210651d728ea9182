"""The layers that BitLinear's tests are about."""

from __future__ import annotations

import torch
from torch import nn

from kernels.bitlinear import BitLinear


def make(sparsity: str = "2:4", splits: tuple[int, ...] = (16, 8), bias: bool = True, dtype: torch.dtype = torch.float32) -> BitLinear:
    torch.manual_seed(0)
    return BitLinear(48, 24, bias, dtype=dtype, sparsity=sparsity, splits=splits)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(BitLinear(32, 48, sparsity="2:4"), nn.ReLU(), BitLinear(48, 32, sparsity="6:8"))
