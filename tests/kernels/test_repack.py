"""Packed bytes to fragments, of the weight and of its transpose: the bytes of the slow packers, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled
from autotune.compile import compile_unit as compiled_unit
from kernels.errors import ShapeError
from kernels.fragments import pack_dense_fragments, pack_fragments
from kernels.gpu import by_name
from kernels.mask_quantize.repack import compile_unit, fragments_shape, launch_repack
from kernels.packed import PackedTernary, pack
from kernels.problem import DENSE, Sparsity
from reference.sparsity import transposable_mask

EVERY = [(sparse, transposed) for sparse in (True, False) for transposed in (False, True)]


def _weight(rows: int, columns: int, sparse: bool, device: str = "cpu") -> tuple[torch.Tensor, PackedTernary]:
    """Ternary, 2:4 along rows and columns alike where it is to be sparse."""
    generator = torch.Generator(device).manual_seed(rows + columns)
    ternary = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8, device=device)
    if sparse:
        ternary *= transposable_mask(torch.randn(rows, columns, generator=generator, device=device))
    return ternary, pack(ternary, torch.ones(1, device=device), (rows,), Sparsity(2, 4) if sparse else DENSE)


def _repacked(packed: PackedTernary, sparse: bool, transposed: bool) -> torch.Tensor:
    blocks = torch.full(fragments_shape(packed, transposed), -7, dtype=torch.int32, device=packed.data.device)
    launch_repack(packed, blocks, sparse=sparse, transposed=transposed)
    return blocks


def _expected(ternary: torch.Tensor, sparse: bool, transposed: bool) -> torch.Tensor:
    return (pack_fragments if sparse else pack_dense_fragments)(ternary.t().contiguous() if transposed else ternary)


@pytest.mark.interpreter
@pytest.mark.parametrize(("sparse", "transposed"), EVERY)
@pytest.mark.parametrize(("rows", "columns"), [(68, 300), (132, 256), (4, 8)])
def test_interpreted_is_the_slow_packer(rows: int, columns: int, sparse: bool, transposed: bool) -> None:
    ternary, packed = _weight(rows, columns, sparse)
    assert torch.equal(_repacked(packed, sparse, transposed), _expected(ternary, sparse, transposed))


@pytest.mark.interpreter
def test_interpreted_no_rows() -> None:
    _, packed = _weight(0, 64, True)
    assert _repacked(packed, True, False).numel() == 0


@pytest.mark.interpreter
def test_what_does_not_fit_is_refused() -> None:
    _, dense = _weight(8, 64, False)
    with pytest.raises(ShapeError, match="2:4"):
        _repacked(dense, True, False)
    with pytest.raises(ShapeError, match="blocks are"):
        launch_repack(dense, torch.zeros(fragments_shape(dense, False), dtype=torch.int64), sparse=False)
    with pytest.raises(ShapeError, match="blocks are"):
        launch_repack(dense, torch.zeros((1, 2, 128, 4), dtype=torch.int32), sparse=False)


@pytest.mark.compile
@pytest.mark.parametrize(("sparse", "transposed"), EVERY)
def test_compiles_without_spills(sparse: bool, transposed: bool) -> None:
    compiled = compiled_unit(compile_unit(sparse, transposed), by_name("h200"))
    assert isinstance(compiled, Compiled), compiled
    assert compiled.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("sparse", "transposed"), EVERY)
@pytest.mark.parametrize(("rows", "columns"), [(4, 8), (68, 300), (1152, 896), (2560, 6912), (3584, 1000)])
def test_on_a_gpu(rows: int, columns: int, sparse: bool, transposed: bool) -> None:
    ternary, packed = _weight(rows, columns, sparse, "cuda")
    first = _repacked(packed, sparse, transposed)
    assert torch.equal(first, _expected(ternary, sparse, transposed))
    for _ in range(10):
        assert torch.equal(_repacked(packed, sparse, transposed), first)


@pytest.mark.gpu
@pytest.mark.parametrize(("sparse", "transposed"), EVERY)
def test_nothing_is_written_beside_the_blocks(sparse: bool, transposed: bool) -> None:
    ternary, packed = _weight(132, 324, sparse, "cuda")
    expected = _expected(ternary, sparse, transposed)
    guarded = torch.full((expected.numel() + 8192,), 7, dtype=torch.int32, device="cuda")
    launch_repack(packed, guarded[4096:-4096].view(expected.shape), sparse=sparse, transposed=transposed)
    assert torch.equal(guarded[4096:-4096].view(expected.shape), expected)
    assert (torch.cat([guarded[:4096], guarded[-4096:]]) == 7).all()
