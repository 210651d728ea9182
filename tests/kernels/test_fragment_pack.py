"""Packing a master weight straight into fragments: the bytes of the slow packer, in the interpreter and on a GPU, and as machine code."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.fragments import pack_fragments
from kernels.gpu import by_name
from kernels.inputs import KINDS, Kind, make_weights
from kernels.mask_quantize.fragment_pack import FragmentBuffers, allocate_fragments, compile_units, launch_fragments, unavailable
from kernels.mask_quantize.two_pass import TwoPassConfig
from kernels.problem import DENSE, DType, Problem, Sparsity
from reference.quantize import ternary_quantize, ternary_scale
from reference.sparsity import nm_mask

SMALL = TwoPassConfig(sum_block=512, sum_warps=1)


def _problem(columns: int, splits: tuple[int, ...], dtype: DType = "bf16") -> Problem:
    return Problem("prepare", sum(splits), columns, 0, Sparsity(2, 4), splits, dtype)


def _poisoned(weight: torch.Tensor, splits: tuple[int, ...]) -> tuple[FragmentBuffers, torch.Tensor]:
    buffers = allocate_fragments(*weight.shape, splits, weight.device, 1536)
    buffers.blocks.fill_(torch.iinfo(torch.int32).min)
    buffers.w_scale.fill_(float("nan"))
    return buffers, torch.full(weight.shape, float("nan"), dtype=torch.bfloat16, device=weight.device)


def _check(weight: torch.Tensor, splits: tuple[int, ...], config: TwoPassConfig) -> FragmentBuffers:
    buffers, fake = _poisoned(weight, splits)
    launch_fragments(weight, buffers, config)
    alone = buffers.blocks.clone()
    launch_fragments(weight, buffers, config, fake)
    assert torch.equal(alone, buffers.blocks)
    buffers.blocks.fill_(-1)
    launch_fragments(weight, buffers, config, sums=torch.stack([part.double().abs().sum() for part in weight.split(splits)]))
    assert torch.equal(alone, buffers.blocks)
    reference = ternary_scale(weight, splits)
    assert ((buffers.w_scale - reference).abs() <= 2.0**-23 * reference).all()
    ternary, _ = ternary_quantize(weight, splits, buffers.inv_scale)
    ternary = ternary * nm_mask(weight, 2, 4)
    assert torch.equal(buffers.blocks, pack_fragments(ternary))
    scale = buffers.w_scale.repeat_interleave(torch.tensor(splits, device=weight.device))
    rows = weight.shape[0]
    assert torch.equal(buffers.row_scale[:rows], scale / 64)
    assert not buffers.row_scale[rows:].any()
    assert torch.equal(fake, (ternary * scale[:, None]).bfloat16())
    return buffers


@pytest.mark.interpreter
@pytest.mark.parametrize(("columns", "splits", "kind", "dtype"), [
    (388, (40, 30), "ties", "bf16"), (4, (1,), "random", "bf16"), (132, (5, 0, 12), "outlier", "fp16"), (64, (9,), "zero_rows", "bf16"),
    (132, (3,), "tiny", "fp16"), (64, (3,), "equal", "bf16"),
])
def test_interpreted_is_the_slow_packer(columns: int, splits: tuple[int, ...], kind: Kind, dtype: DType) -> None:
    _check(make_weights(_problem(columns, splits, dtype), kind=kind).master, splits, SMALL)


@pytest.mark.interpreter
def test_interpreted_rows_with_a_stride() -> None:
    wide = torch.full((7, 300), float("nan"), dtype=torch.bfloat16)
    wide[:, 2:134] = make_weights(_problem(132, (7,))).master
    _check(wide[:, 2:134], (7,), SMALL)


@pytest.mark.interpreter
def test_interpreted_non_finite_weights_become_zeros() -> None:
    weight = make_weights(_problem(64, (3, 2))).master.clone()
    weight[4, 17] = float("nan")
    buffers, fake = _poisoned(weight, (3, 2))
    launch_fragments(weight, buffers, SMALL, fake)
    assert buffers.workspace.nonfinite.tolist() == [0, 1]
    assert torch.isnan(buffers.w_scale).tolist() == [False, True]
    assert torch.isnan(buffers.row_scale[:5]).tolist() == [False] * 3 + [True] * 2
    assert not fake[3:].any()


@pytest.mark.interpreter
def test_no_rows() -> None:
    buffers = allocate_fragments(0, 64, (0,), "cpu")
    launch_fragments(torch.zeros(0, 64, dtype=torch.bfloat16), buffers, SMALL)
    assert buffers.w_scale.item() == pytest.approx(1e-5)


@pytest.mark.interpreter
@pytest.mark.parametrize(("weight", "message"), [
    (torch.zeros(4, 64), "bf16 or fp16"), (torch.zeros(4, 65, dtype=torch.bfloat16)[:, :64], "rows 65 apart"),
    (torch.zeros(4, 62, dtype=torch.bfloat16), "not a multiple"), (torch.zeros(4, 132, dtype=torch.bfloat16), "do not fit"),
])
def test_refused_weights(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        launch_fragments(weight, allocate_fragments(4, 64, (4,), "cpu"), SMALL)


@pytest.mark.interpreter
def test_refused_buffers() -> None:
    weight = torch.zeros(4, 64, dtype=torch.bfloat16)
    buffers = allocate_fragments(4, 64, (4,), "cpu")
    with pytest.raises(ShapeError, match="w_fake"):
        launch_fragments(weight, buffers, SMALL, torch.zeros(4, 64))
    with pytest.raises(ShapeError, match="do not fit"):
        launch_fragments(weight, dataclasses.replace(buffers, row_scale=buffers.row_scale[:3]), SMALL)


def test_where_it_is_not_for() -> None:
    problem = _problem(256, (64,))
    assert unavailable(problem) is None
    assert "2:4" in (unavailable(problem.with_(sparsity=Sparsity(6, 8))) or "")
    assert "dense" in (unavailable(problem.with_(sparsity=DENSE)) or "")
    assert "fp32" in (unavailable(problem.with_(dtype="fp32")) or "")


@pytest.mark.compile
@pytest.mark.parametrize(("gpu", "w_fake", "dtype"), [("h200", False, "bf16"), ("h200", True, "bf16"), ("a100", True, "fp16")])
def test_compiles_without_spills(gpu: str, w_fake: bool, dtype: DType) -> None:
    (unit,) = compile_units(_problem(7680, (256, 64), dtype), w_fake)
    compiled = compile_unit(unit, by_name(gpu))
    assert isinstance(compiled, Compiled), compiled
    assert compiled.spills == 0
    assert compiled.registers <= 128


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("columns", "splits"), [(4, (1,)), (896, (896, 128, 127)), (2500, (7,)), (11008, (300,)), (8192, (1000, 24))])
def test_on_a_gpu(columns: int, splits: tuple[int, ...], kind: Kind, dtype: DType) -> None:
    _check(make_weights(_problem(columns, splits, dtype), "cuda", kind=kind).master, splits, TwoPassConfig())


@pytest.mark.gpu
def test_the_same_bits_on_every_run() -> None:
    weight = make_weights(_problem(3584, (2048, 1024)), "cuda").master
    first = _check(weight, (2048, 1024), TwoPassConfig())
    for _ in range(100):
        again, fake = _poisoned(weight, (2048, 1024))
        launch_fragments(weight, again, TwoPassConfig(), fake)
        assert torch.equal(again.blocks, first.blocks)
        assert torch.equal(again.row_scale, first.row_scale)


@pytest.mark.gpu
def test_nothing_is_written_beside_the_buffers() -> None:
    weight = make_weights(_problem(388, (70,)), "cuda").master
    buffers, _ = _poisoned(weight, (70,))
    guarded = torch.full((buffers.blocks.numel() + 4096,), 7, dtype=torch.int32, device="cuda")
    blocks = guarded[2048:-2048].view(buffers.blocks.shape)
    around = torch.full((70 * 388 + 4096,), 7.0, dtype=torch.bfloat16, device="cuda")
    launch_fragments(weight, dataclasses.replace(buffers, blocks=blocks), TwoPassConfig(), around[2048:-2048].view(70, 388))
    assert (torch.cat([guarded[:2048], guarded[-2048:]]) == 7).all()
    assert (torch.cat([around[:2048], around[-2048:]]) == 7).all()
    launch_fragments(weight, buffers, TwoPassConfig())
    assert torch.equal(blocks, buffers.blocks)
