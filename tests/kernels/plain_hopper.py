"""The Hopper GEMM's function in float64, for steps that are run where there is no Hopper."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kernels.fragments import unpack_dense_fragments, unpack_fragments
from kernels.ternary_gemm import sparse_wgmma
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight


def plain_bind(
    x_q: torch.Tensor, x_scale: torch.Tensor, weight: FragmentWeight, bias: None, dtype: torch.dtype, config: object, processors: int
) -> SimpleNamespace:
    """What `sparse_wgmma.bind` gives, of the fragments as they are when it is launched."""
    out = torch.empty((x_q.shape[0], weight.out_features), dtype=dtype)

    def launch() -> None:
        decode = unpack_fragments if weight.sparse else unpack_dense_fragments
        ternary = decode(weight.blocks, weight.out_features, weight.columns)
        scale = 64 * weight.row_scale[: weight.out_features].double()
        out.copy_((x_q.double() @ ternary.double().t()) * x_scale.double()[:, None] * scale)

    return SimpleNamespace(out=out, launch=launch)


def without_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps bind the plain one."""
    monkeypatch.setattr(sparse_wgmma, "bind", plain_bind)
    monkeypatch.setattr(sparse_wgmma, "multiprocessors", lambda device: 132)
