"""A step under a mask that is 2:4 both ways with bf16 gradients, and the transposed weight that it hands to the library."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name, detect
from kernels.inputs import make_inputs
from kernels.judge import judge, poison
from kernels.mask_quantize.repack_wide import launch_unpack_transposed
from kernels.packed import pack
from kernels.problem import DENSE, Problem, Sparsity
from kernels.space import config_to_dict
from kernels.sparse_backward.transposable_step import STEPS
from kernels.ternary_gemm import cusparselt
from kernels.ternary_gemm.cusparselt import CuSparseLtConfig, SparseOperands
from tests.kernels.plain_hopper import without_hopper

H200 = by_name("h200")
HALF = Sparsity(2, 4)
(KERNEL,) = STEPS


def _check_unpack(rows: int, columns: int, splits: tuple[int, ...], device: str) -> None:
    ternary = torch.randint(-1, 2, (rows, columns), dtype=torch.int8, device=device)
    scale = torch.rand(len(splits), device=device)
    out = torch.full((columns, rows), float("nan"), dtype=torch.bfloat16, device=device)
    launch_unpack_transposed(pack(ternary, scale, splits, DENSE), out)
    assert torch.equal(out, (ternary.t() * scale.repeat_interleave(torch.tensor(splits, device=device))).bfloat16())


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "columns", "splits"), [(66, 300, (3, 63)), (1, 1, (1,)), (64, 256, (64,)), (5, 520, (1, 0, 4))])
def test_interpreted_transposed_weight(rows: int, columns: int, splits: tuple[int, ...]) -> None:
    _check_unpack(rows, columns, splits, "cpu")


@pytest.mark.interpreter
def test_another_out_is_refused() -> None:
    packed = pack(torch.zeros((4, 8), dtype=torch.int8), torch.ones(1), (4,), DENSE)
    with pytest.raises(ShapeError, match="contiguous bf16"):
        launch_unpack_transposed(packed, torch.zeros((4, 8), dtype=torch.bfloat16))


@pytest.mark.interpreter
def test_interpreted_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the two sparse GEMMs; the compressed weight is 2:4 along what dX reduces."""

    def compress(weight: torch.Tensor) -> torch.Tensor:
        assert (weight.view(weight.shape[0], -1, 4).count_nonzero(2) <= 2).all()
        return weight

    def multiply(operands: SparseOperands, config: CuSparseLtConfig) -> torch.Tensor:
        return operands.x @ operands.compressed.t()

    without_hopper(monkeypatch)
    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(cusparselt, "multiply", multiply)
    case = Problem("step", 32, 64, 16, HALF, (12, 20))
    inputs = make_inputs(case)
    prepared = KERNEL.prepare(case, inputs, KERNEL.default_config(case, H200))
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), KERNEL)
    assert mismatch is None, str(mismatch)


def test_what_is_refused() -> None:
    for shape, word in (((66, 64, 64), "out_features 66"), ((64, 96, 63), "tokens 63"), ((64, 68, 64), "in_features 68")):
        reason = KERNEL.unavailable(Problem("step", *shape, HALF), H200) or ""
        assert word in reason or "cuSPARSELt" in reason
    assert "2:4" in (KERNEL.unavailable(Problem("step", 64, 64, 64, Sparsity(6, 8)), H200) or "")
    assert "bf16" in (KERNEL.unavailable(Problem("step", 64, 64, 64, HALF, dtype="fp16"), H200) or "")
    assert not KERNEL.exact


def test_configs_are_plain_data() -> None:
    config = KERNEL.default_config(Problem("step", 2048, 11008, 16384, HALF), H200)
    assert KERNEL.space.from_dict(config_to_dict(config)) == config


@pytest.mark.compile
def test_compiles_without_spills() -> None:
    case = Problem("step", 4608, 3584, 16384, HALF, (3584, 512, 512))
    for unit in KERNEL.compile_units(case, KERNEL.default_config(case, H200)):
        found = compile_unit(unit, H200)
        assert isinstance(found, Compiled), found
        assert found.spills == 0


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    gpu = detect()
    assert gpu is not None
    for shape in ((66, 300), (2048, 1000)):
        _check_unpack(*shape, (2, shape[0] - 2), "cuda")
    for shape, splits in (((1152, 896, 1008), (896, 128, 128)), ((896, 4864, 4096), ())):
        case = Problem("step", *shape, HALF, splits)
        if reason := KERNEL.unavailable(case, gpu):
            pytest.skip(reason)
        inputs = make_inputs(case, "cuda")
        assert KERNEL.resolve is not None
        prepared = KERNEL.prepare(case, inputs, KERNEL.resolve(case, inputs, gpu))
        poison(prepared)
        mismatch = judge(case, inputs, prepared.run(), KERNEL)
        assert mismatch is None, str(mismatch)
