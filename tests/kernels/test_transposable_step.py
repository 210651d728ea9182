"""A step with bf16 gradients under a mask that is 2:4 both ways."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.gpu import by_name, detect
from kernels.inputs import make_inputs
from kernels.judge import judge, poison
from kernels.problem import Problem, Sparsity
from kernels.space import config_to_dict
from kernels.sparse_backward import wide_gemm
from kernels.sparse_backward.transposable_step import KERNELS
from kernels.sparse_backward.wide_fragments import unpack_wide
from tests.kernels.plain_hopper import without_hopper

H200 = by_name("h200")
HALF = Sparsity(2, 4)
(KERNEL,) = KERNELS


def plain_wide_bind(dy: torch.Tensor, blocks: torch.Tensor, in_features: int, config: object, processors: int) -> SimpleNamespace:
    """What `wide_gemm.bind` gives, in float64, of the blocks as they are when it is launched."""
    out = torch.empty((dy.shape[0], in_features), dtype=dy.dtype)
    return SimpleNamespace(out=out, launch=lambda: out.copy_(dy.double() @ unpack_wide(blocks, in_features, dy.shape[1]).double().t()))


@pytest.mark.interpreter
def test_interpreted_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the two sparse GEMMs."""
    without_hopper(monkeypatch)
    monkeypatch.setattr(wide_gemm, "bind", plain_wide_bind)
    case = Problem("step", 40, 72, 9, HALF, (32, 8))
    inputs = make_inputs(case)
    prepared = KERNEL.prepare(case, inputs, KERNEL.default_config(case, H200))
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), KERNEL)
    assert mismatch is None, str(mismatch)


def test_what_is_refused() -> None:
    assert KERNEL.unavailable(Problem("step", 64, 64, 64, HALF), H200) is None
    assert "multiples of 8" in (KERNEL.unavailable(Problem("step", 68, 64, 64, HALF), H200) or "")
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
@pytest.mark.parametrize(("shape", "splits"), [
    ((1152, 896, 1000), (896, 128, 128)), ((896, 4864, 4096), ()), ((2048, 2048, 63), (1024, 1024)),
], ids=str)
def test_on_a_gpu(shape: tuple[int, int, int], splits: tuple[int, ...]) -> None:
    gpu = detect()
    assert gpu is not None
    case = Problem("step", *shape, HALF, splits)
    if reason := KERNEL.unavailable(case, gpu):
        pytest.skip(reason)
    inputs = make_inputs(case, "cuda")
    prepared = KERNEL.prepare(case, inputs, KERNEL.default_config(case, gpu))
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), KERNEL)
    assert mismatch is None, str(mismatch)
