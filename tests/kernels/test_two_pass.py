"""Mask, ternary quantization and packing: against the reference in the interpreter and on a GPU, and as machine code."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import NonFiniteError, ShapeError
from kernels.gpu import by_name
from kernels.inputs import DTYPES, KINDS, Kind, PrepareInputs, make_inputs, make_weights
from kernels.judge import judge, poison
from kernels.mask_quantize.two_pass import (
    KERNELS,
    PrepareBuffers,
    TwoPassConfig,
    allocate_prepare,
    compile_units,
    launch_prepare,
    prepare_weight,
    two_pass_config,
)
from kernels.packed import PackedTernary, unpack
from kernels.problem import DType, Problem, Sparsity
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask

KERNEL = KERNELS[0]
H200 = by_name("h200")
SPARSITIES = ("2:4", "1:4", "3:4", "4:6", "6:8", "2:8", "8:10", "8:16", "14:16", "dense")
TYPES: tuple[DType, ...] = ("bf16", "fp16", "fp32")
ONE_TILE = TwoPassConfig(sum_block=1024, sum_warps=1, rows=4, blocks=2, warps=4)
SMALL = TwoPassConfig(sum_block=512, sum_warps=1, rows=4, blocks=1, warps=4)


def _problem(sparsity: str, columns: int, splits: tuple[int, ...] = (3, 2), dtype: DType = "bf16") -> Problem:
    return Problem("prepare", sum(splits), columns, 0, Sparsity.parse(sparsity), splits, dtype)


def _check(problem: Problem, inputs: PrepareInputs, config: TwoPassConfig) -> None:
    """The kernel as it is timed, then once more with the optional outputs; everything against the reference."""
    prepared = KERNEL.prepare(problem, inputs, config)
    poison(prepared)
    outputs = dict(prepared.run())
    assert judge(problem, inputs, outputs, KERNEL) is None
    weight = inputs.w
    buffers = allocate_prepare(weight.shape[0], weight.shape[1], problem.splits, weight.device)
    mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    fake = torch.full(weight.shape, float("nan"), dtype=torch.bfloat16, device=weight.device)
    args = (buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, problem.sparsity, problem.splits, config, mask, fake)
    launch_prepare(weight, *args)
    assert torch.equal(buffers.packed, outputs["packed"])
    everything = {"packed": buffers.packed, "w_scale": buffers.w_scale, "inv_scale": buffers.inv_scale, "mask": mask, "w_fake": fake}
    assert judge(problem, inputs, everything, KERNEL) is None


def _inputs(problem: Problem, device: str = "cpu", kind: Kind = "random") -> PrepareInputs:
    inputs = make_inputs(problem, device, kind=kind)
    assert isinstance(inputs, PrepareInputs)
    return inputs


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_interpreted_for_every_group_and_type(sparsity: str, dtype: DType) -> None:
    group = Sparsity.parse(sparsity).m
    problem = _problem(sparsity, group * (320 // group), (2, 1), dtype=dtype)
    for kind in KINDS if dtype == "bf16" else KINDS[:1]:
        _check(problem, _inputs(problem, kind=kind), ONE_TILE)


@pytest.mark.interpreter
@pytest.mark.parametrize(("sparsity", "columns", "splits"), [
    ("2:4", 4, (1,)), ("2:4", 324, (7,)), ("6:8", 520, (1, 0, 4)), ("4:6", 6, (5,)), ("8:10", 330, (2, 3)), ("8:16", 384, (9,)),
    ("dense", 301, (7,)),
])
def test_interpreted_awkward_shapes(sparsity: str, columns: int, splits: tuple[int, ...]) -> None:
    problem = _problem(sparsity, columns, splits)
    _check(problem, _inputs(problem), SMALL)


@pytest.mark.interpreter
@pytest.mark.parametrize(("padding", "offset"), [(64, 0), (1, 0), (7, 3)])
def test_interpreted_rows_with_a_stride(padding: int, offset: int) -> None:
    problem = _problem("6:8", 328)
    dense = _inputs(problem).w
    wide = torch.full((5, 328 + padding + offset), float("nan"), dtype=dense.dtype)
    strided = wide[:, offset : offset + 328]
    strided.copy_(dense)
    _check(problem, PrepareInputs(strided), SMALL)


@pytest.mark.interpreter
def test_interpreted_rounding_boundary() -> None:
    """Weights at, just below and just above half of a scale that is no power of two: half to even drops the boundary itself."""
    row = torch.tensor([[0.75, 0.75, 0.375, 0.376, 1.5, 0.374, 0.0, -0.3752]], dtype=torch.float32)
    weight = row * (0.75 / row.abs().mean())
    packed = prepare_weight(weight, Sparsity.parse("dense"), config=SMALL)
    expected, _ = ternary_quantize(weight)
    assert torch.equal(unpack(packed), expected)
    half = prepare_weight(torch.tensor([[1.0, 0.5, -0.5, 2.0]]), Sparsity.parse("dense"), config=SMALL)
    assert half.w_scale.item() == 1.0
    assert unpack(half).tolist() == [[1, 0, 0, 1]]


@pytest.mark.interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", TYPES)
def test_interpreted_non_finite_weight(bad: float, dtype: DType) -> None:
    weight = _inputs(_problem("2:4", 64, dtype=dtype)).w.clone()
    weight[4, 17] = bad
    with pytest.raises(NonFiniteError, match=r"layers\.0\.wo"):
        prepare_weight(weight, Sparsity(2, 4), (3, 2), name="layers.0.wo")
    buffers = allocate_prepare(5, 64, (3, 2), "cpu")
    launch_prepare(weight, buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, Sparsity(2, 4), (3, 2), SMALL)
    assert buffers.workspace.nonfinite.tolist() == [0, 1]
    assert torch.isnan(buffers.w_scale).tolist() == [False, True]
    assert torch.isnan(buffers.inv_scale).tolist() == [False, True]
    assert buffers.workspace.counters.tolist() == [0, 0]


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", TYPES)
def test_interpreted_extreme_magnitudes(dtype: DType) -> None:
    """The largest finite weights do not overflow the mean; subnormal ones are ordered like others."""
    values = torch.finfo(DTYPES[dtype])
    weight = torch.full((5, 64), values.max, dtype=DTYPES[dtype])
    weight[:, ::3] = values.smallest_normal / 2
    _check(_problem("2:4", 64, dtype=dtype), PrepareInputs(weight), SMALL)
    tiny = (torch.arange(320).reshape(5, 64) % 7 * (values.smallest_normal / 8)).to(DTYPES[dtype])
    mask = torch.zeros(tiny.shape, dtype=torch.bool)
    buffers = allocate_prepare(5, 64, (5,), "cpu")
    launch_prepare(tiny, buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, Sparsity(6, 8), (5,), SMALL, mask)
    assert torch.equal(mask, nm_mask(tiny, 6, 8))


def _carry(problem: Problem, weight: torch.Tensor, before: torch.Tensor, config: TwoPassConfig) -> None:
    """Two updates of one buffer, the second with carried sums: the same outputs, and flips that are the difference of the two weights."""
    device, splits = weight.device, problem.splits
    buffers, flips = allocate_prepare(*weight.shape, splits, device), torch.full((1,), 5, dtype=torch.int64, device=device)
    args = (buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, problem.sparsity, splits, config)
    launch_prepare(before, *args)
    first = _unpacked(buffers, problem)
    sums = torch.stack([part.double().abs().sum() for part in weight.split(splits)])
    launch_prepare(weight, *args, sums=sums, flips=flips)
    outputs = {"packed": buffers.packed, "w_scale": buffers.w_scale, "inv_scale": buffers.inv_scale}
    assert judge(problem, PrepareInputs(weight), outputs, KERNEL) is None
    assert flips.item() == 5 + int(((first != 0) != (_unpacked(buffers, problem) != 0)).sum())


def _unpacked(buffers: PrepareBuffers, problem: Problem) -> torch.Tensor:
    return unpack(PackedTernary(buffers.packed, buffers.w_scale, problem.splits, problem.in_features, problem.sparsity))


@pytest.mark.interpreter
@pytest.mark.parametrize(("sparsity", "dtype"), [("2:4", "bf16"), ("6:8", "fp16"), ("dense", "bf16"), ("2:4", "fp32"), ("8:10", "bf16")])
def test_interpreted_carried_sums_and_flips(sparsity: str, dtype: DType) -> None:
    problem = _problem(sparsity, 120, (3, 2), dtype)
    before, after = (make_weights(problem, seed=seed).master for seed in (1, 2))
    _carry(problem, after, before, SMALL)


@pytest.mark.interpreter
def test_wrong_sums_and_flips_are_refused() -> None:
    problem = _problem("2:4", 64)
    buffers = allocate_prepare(5, 64, (3, 2), "cpu")
    args = (buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, problem.sparsity, (3, 2), SMALL)
    with pytest.raises(ShapeError, match="sums"):
        launch_prepare(_inputs(problem).w, *args, sums=torch.ones(2))
    with pytest.raises(ShapeError, match="flips"):
        launch_prepare(_inputs(problem).w, *args, flips=torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparsity", ["2:4", "6:8", "dense", "8:10"])
def test_carried_sums_and_flips_on_a_gpu(sparsity: str, dtype: DType) -> None:
    problem = _problem(sparsity, 2560, (300, 33), dtype)
    before, after = (make_weights(problem, "cuda", seed=seed).master for seed in (1, 2))
    _carry(problem, after, before, KERNEL.default_config(problem, H200))


@pytest.mark.interpreter
def test_interpreted_strided_columns_are_copied() -> None:
    weight = _inputs(_problem("2:4", 64)).w
    packed = prepare_weight(weight.t().contiguous().t(), Sparsity(2, 4), (3, 2))
    assert torch.equal(packed.data, prepare_weight(weight, Sparsity(2, 4), (3, 2)).data)


@pytest.mark.parametrize(("weight", "sparsity", "splits", "message"), [
    (torch.zeros(4, 10), Sparsity(2, 4), (4,), "not a multiple"),
    (torch.zeros(4, 8), Sparsity(2, 4), (3,), "do not sum"),
    (torch.zeros(4, 8, dtype=torch.int8), Sparsity(2, 4), (4,), "bf16, fp16 or fp32"),
    (torch.zeros(8), Sparsity(2, 4), (8,), "out_features, in_features"),
])
def test_refused_weights(weight: torch.Tensor, sparsity: Sparsity, splits: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        prepare_weight(weight, sparsity, splits)


@pytest.mark.compile
def test_a_weight_on_the_cpu_is_refused() -> None:
    with pytest.raises(ShapeError, match="on the CPU"):
        prepare_weight(torch.zeros(4, 8), Sparsity(2, 4))


@pytest.mark.compile
@pytest.mark.parametrize(("sparsity", "dtype", "gpu"), [
    ("2:4", "bf16", "a100"), ("2:4", "bf16", "h200"), ("2:4", "bf16", "b200"), ("6:8", "bf16", "h200"), ("6:8", "fp16", "a100"),
    ("8:16", "bf16", "h200"), ("2:4", "fp32", "h200"), ("8:10", "bf16", "h200"), ("dense", "bf16", "h200"),
])
def test_compiles_without_spills(sparsity: str, dtype: DType, gpu: str) -> None:
    problem = _problem(sparsity, 7680, dtype=dtype)
    for unit in compile_units(problem, two_pass_config(problem.sparsity)):
        compiled = compile_unit(unit, by_name(gpu))
        assert isinstance(compiled, Compiled), compiled
        assert compiled.spills == 0


def test_every_allowed_config_fits_its_own_rules() -> None:
    for sparsity in SPARSITIES:
        problem = _problem(sparsity, 7680)
        allowed = list(KERNEL.space.allowed(problem, H200))
        assert len(allowed) > 4
        assert KERNEL.space.reject(problem, H200, KERNEL.default_config(problem, H200)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_on_a_gpu(sparsity: str, dtype: DType, kind: Kind) -> None:
    group = Sparsity.parse(sparsity).m
    for columns, splits in ((group, (1,)), (group * (896 // group), (896, 128, 127)), (group * (2500 // group), (7,))):
        problem = _problem(sparsity, columns, splits, dtype)
        _check(problem, _inputs(problem, "cuda", kind), KERNEL.default_config(problem, H200))


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", ["2:4", "6:8", "8:10"])
def test_every_config_on_a_gpu(sparsity: str) -> None:
    problem = _problem(sparsity, 2560, (300, 33))
    inputs = _inputs(problem, "cuda")
    for config in KERNEL.space.allowed(problem, H200):
        outputs = KERNEL.prepare(problem, inputs, config).run()
        assert judge(problem, inputs, outputs, KERNEL) is None, config


@pytest.mark.gpu
def test_the_same_bits_on_every_run() -> None:
    problem = _problem("2:4", 4096, (2048, 1024, 1024))
    prepared = KERNEL.prepare(problem, _inputs(problem, "cuda"), KERNEL.default_config(problem, H200))
    first = {name: value.clone() for name, value in prepared.run().items()}
    for _ in range(20):
        poison(prepared)
        for name, value in prepared.run().items():
            assert torch.equal(value, first[name])


@pytest.mark.gpu
def test_rows_with_a_stride_on_a_gpu() -> None:
    problem = _problem("6:8", 2560, (40, 23))
    dense = _inputs(problem, "cuda").w
    for padding in (64, 1):
        wide = torch.full((63, 2560 + padding), float("nan"), dtype=dense.dtype, device="cuda")
        wide[:, :2560] = dense
        _check(problem, PrepareInputs(wide[:, :2560]), KERNEL.default_config(problem, H200))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements_of_index_space() -> None:
    """Few rows, far apart: offsets pass 2^31 while little is read; the last row is checked against the same row alone."""
    stride = (1 << 31) // 3 + 64
    stride -= stride % 16
    space = torch.zeros(3 * stride + 4096, dtype=torch.bfloat16, device="cuda")
    weight = space.as_strided((4, 4096), (stride, 1))
    weight.copy_(torch.randn(4, 4096, device="cuda"))
    far, near = (prepare_weight(w, Sparsity(2, 4)) for w in (weight, weight.contiguous()))
    assert torch.equal(far.data, near.data)
    assert torch.equal(far.w_scale, near.w_scale)
