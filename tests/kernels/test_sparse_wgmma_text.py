"""The Hopper GEMMs' own Python and PTX, in an emulator over whole launches.

It shows the schedule, the ring's barriers, addresses, unpacking, the order of operands, scales, stores, and how split tiles meet.
"""

from __future__ import annotations

import pytest
import torch

from kernels.problem import Sparsity
from kernels.ternary_gemm import sparse_wgmma
from kernels.ternary_gemm.sparse_wgmma import SparseGemm, bind, dense_fragment_weight, fragment_weight
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig
from reference.linear import accumulate, linear
from reference.sparsity import nm_mask
from tests.kernels.launch_emulator import Emulated

PROCESSORS = {1: 3, 2: 4, 4: 20, 8: 28}
"""By splits, multiprocessors that three programs run on, or two clusters."""


class Case:
    """A GEMM bound on the CPU, and what it should give."""

    def __init__(self, config: SparseConfig, rows: int, width: int, tokens: int, dtype: torch.dtype, sparse: bool = True,
                 early: bool = False) -> None:
        generator = torch.Generator().manual_seed(rows + tokens)
        w = torch.randint(-1, 2, (rows, width), generator=generator, dtype=torch.int8)
        w *= nm_mask(torch.randn(rows, width, generator=generator), 2, 4) if sparse else 1
        x = torch.randint(-127, 128, (tokens, width), generator=generator, dtype=torch.int8)
        x_scale, w_scale, bias = (torch.rand(size, generator=generator) + 0.5 for size in (tokens, 2, rows))
        splits = (rows - rows // 3, rows // 3)
        weight = fragment_weight(w, w_scale, splits, Sparsity(2, 4)) if sparse else dense_fragment_weight(w, w_scale, splits)
        self.gemm: SparseGemm = bind(x, x_scale, weight, bias, dtype, config, PROCESSORS[config.splits * config.pair], early)
        self.raw, self.scaled = accumulate(x, w), linear(x, x_scale, w, w_scale, splits, bias)

    def check(self, share: float) -> None:
        """Launch, and compare."""
        out = self.gemm.out
        out.view(torch.uint8).fill_(0xA5)
        self.gemm.launch()
        if out.dtype == torch.int32:
            assert torch.equal(out.long(), self.raw)
        else:
            assert ((out.double() - self.scaled).abs() <= share * (self.scaled.abs() + 1)).all()


@pytest.fixture(autouse=True, params=[False, True], ids=["early", "late"])
def _emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_wgmma, "sparse_gemm", Emulated(late=request.param))


@pytest.mark.parametrize(("config", "rows", "width", "tokens"), [
    (SparseConfig(1, 64, 3), 520, 384, 70),  # ten tiles on three programs, odd numbers of short stages
    (SparseConfig(1, 128, 4), 300, 512, 200),  # even ones
    (SparseConfig(2, 64, 3), 200, 1152, 30),
    (SparseConfig(3, 128, 3), 136, 320, 131),
    (SparseConfig(1, 256, 3), 136, 128, 300),
    (SparseConfig(4, 64, 3), 600, 256, 50),
], ids=str)
def test_stores_by_tma_give_the_reference(config: SparseConfig, rows: int, width: int, tokens: int) -> None:
    Case(config, rows, width, tokens, torch.bfloat16).check(2**-8)


@pytest.mark.parametrize(("config", "rows", "width", "tokens"), [
    (SparseConfig(1, 64, 3, pair=2), 968, 384, 70),  # eight tiles of rows, two of tokens, on two pairs
    (SparseConfig(1, 128, 4, pair=2), 512, 640, 300),
    (SparseConfig(2, 64, 3, pair=2), 400, 1152, 30),
    (SparseConfig(3, 128, 3, pair=2), 700, 320, 131),
    (SparseConfig(1, 256, 3, pair=2), 200, 512, 300),
], ids=str)
def test_pairs_share_their_activations(config: SparseConfig, rows: int, width: int, tokens: int) -> None:
    Case(config, rows, width, tokens, torch.bfloat16).check(2**-8)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize(("config", "rows", "width", "tokens"), [
    (SparseConfig(1, 64, 3), 520, 640, 70),
    (SparseConfig(2, 64, 3), 400, 1152, 30),
    (SparseConfig(3, 64, 3, 2), 392, 384, 60),
    (SparseConfig(4, 64, 3), 1030, 512, 50),
    (SparseConfig(2, 64, 3, 4), 200, 896, 64),
    (SparseConfig(2, 64, 3, pair=2), 400, 640, 30),
], ids=str)
def test_weights_may_come_before_the_launches_ahead_have_ended(config: SparseConfig, rows: int, width: int, tokens: int,
                                                               sparse: bool) -> None:
    Case(config, rows, width, tokens, torch.bfloat16, sparse, early=True).check(2**-8)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize(("config", "rows", "width", "tokens"), [
    (SparseConfig(1, 64, 3), 130, 64, 266), (SparseConfig(2, 64, 3), 77, 640, 9), (SparseConfig(1, 64, 3), 70, 640, 9),
], ids=str)
def test_raw_accumulators_are_exact(config: SparseConfig, rows: int, width: int, tokens: int, sparse: bool) -> None:
    Case(config, rows, width, tokens, torch.int32, sparse).check(0)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10), (torch.float32, 2**-22)], ids=str)
def test_plain_stores_give_the_reference(dtype: torch.dtype, share: float) -> None:
    Case(SparseConfig(1, 64, 3), 67, 128, 19, dtype).check(share)


@pytest.mark.parametrize(("config", "rows", "width", "tokens", "dtype", "rounds", "split"), [
    (SparseConfig(1, 64, 3, 2), 648, 896, 40, torch.bfloat16, 1, 2),  # a whole tile each, then two in halves of three and of four steps
    (SparseConfig(1, 64, 3, 2), 520, 640, 33, torch.bfloat16, 1, 1),  # … and one: a cluster whose programs have no part
    (SparseConfig(1, 128, 3, 2), 130, 640, 100, torch.int32, 0, 2),
    (SparseConfig(2, 64, 3, 2), 130, 320, 50, torch.int32, 0, 1),
    (SparseConfig(3, 128, 3, 2), 392, 384, 70, torch.bfloat16, 0, 2),
    (SparseConfig(1, 256, 3, 2), 120, 384, 300, torch.float16, 0, 2),
    (SparseConfig(1, 64, 3, 4), 1160, 512, 20, torch.bfloat16, 1, 2),  # two slices for four parts: two complete none
    (SparseConfig(3, 64, 3, 4), 392, 512, 64, torch.bfloat16, 0, 2),  # six units of row blocks for four parts
    (SparseConfig(2, 64, 3, 8), 200, 1024, 40, torch.float32, 0, 1),
    (SparseConfig(4, 64, 3, 4), 500, 640, 50, torch.int32, 0, 1),
    (SparseConfig(1, 128, 3, 4), 120, 1152, 128, torch.bfloat16, 0, 1),
    (SparseConfig(2, 128, 3, 4), 264, 640, 90, torch.float32, 0, 2),
    (SparseConfig(1, 128, 3, 8), 56, 1152, 100, torch.bfloat16, 0, 1),
    (SparseConfig(1, 256, 3, 8), 200, 1024, 200, torch.int32, 0, 2),
], ids=str)
def test_parts_of_tiles_meet(config: SparseConfig, rows: int, width: int, tokens: int, dtype: torch.dtype, rounds: int, split: int) -> None:
    case = Case(config, rows, width, tokens, dtype)
    assert (case.gemm.schedule.rounds, case.gemm.schedule.split) == (rounds, split)
    case.check(2**-8 if dtype != torch.float32 else 2**-22)
