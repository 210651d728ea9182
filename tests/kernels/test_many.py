"""Lists of weights in two launches: the bits of one weight at a time, in the interpreter and on a GPU, and as machine code."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import NonFiniteError, ShapeError
from kernels.gpu import by_name
from kernels.inputs import DTYPES, make_weights
from kernels.kernel import CompileUnit
from kernels.mask_quantize.many import Kind, PreparePlan, kind_of, many_config, prepare_many
from kernels.mask_quantize.many_kernels import absmean_many_kernel, pack_many_kernel
from kernels.mask_quantize.two_pass import TwoPassConfig, allocate_prepare, launch_prepare, prepare_weight
from kernels.packed import unpack
from kernels.problem import DType, Problem, Sparsity
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask

SMALL = TwoPassConfig(sum_block=512, sum_warps=1, rows=4, blocks=1, warps=4)
TYPES: tuple[DType, ...] = ("bf16", "fp16", "fp32")
TWO_FOUR = Sparsity(2, 4)
Shapes = tuple[tuple[int, tuple[int, ...]], ...]


def _weights(shapes: Shapes, sparsity: Sparsity, dtype: DType, device: str = "cpu") -> list[torch.Tensor]:
    """A master [sum(splits), K] for every (K, splits), the scales of the weights far apart."""
    problems = [Problem("prepare", sum(splits), columns, 0, sparsity, splits, dtype) for columns, splits in shapes]
    return [make_weights(problem, device, seed=seed).master * 3.0**seed for seed, problem in enumerate(problems)]


def _check(plan: PreparePlan, launches: int = 1) -> None:
    """Launches over poisoned buffers, each against one weight at a time, bit for bit; a second shows that the counters are zero again."""
    for _ in range(launches):
        for packed, inverse in zip(plan.packed, plan.inv_scale, strict=True):
            packed.data.fill_(0xAA)
            packed.w_scale.fill_(-1)
            inverse.fill_(-1)
        plan.launch()
        for index, (weight, packed) in enumerate(zip(plan.weights, plan.packed, strict=True)):
            one = allocate_prepare(*weight.shape, packed.splits, weight.device)
            launch_prepare(weight, one.packed, one.w_scale, one.inv_scale, one.workspace, plan.sparsity, packed.splits, plan.config)
            assert torch.equal(packed.data, one.packed), index
            assert torch.equal(packed.w_scale.view(torch.int32), one.w_scale.view(torch.int32)), index
            assert torch.equal(plan.inv_scale[index].view(torch.int32), one.inv_scale.view(torch.int32)), index
            assert torch.equal(plan.nonfinite[index], one.workspace.nonfinite), index


@pytest.mark.interpreter
@pytest.mark.parametrize(("sparsity", "dtype", "shapes"), [
    ("2:4", "bf16", ((528, (1,)), (64, (3, 2)), (16, (1, 0, 2, 1, 1)), (272, (2,)))),
    ("2:4", "fp16", ((64, (3, 2)), (324, (3,)))),
    ("2:4", "fp32", ((64, (3, 2)), (576, (5,)))),
    ("6:8", "bf16", ((528, (3, 2)), (64, (1,)), (272, (3,)))),
    ("6:8", "fp32", ((528, (5, 4)), (64, (1,)))),
    ("8:10", "bf16", ((330, (2, 3)), (20, (4,)))),
    ("8:16", "fp16", ((384, (3,)), (16, (5, 1)))),
    ("dense", "bf16", ((301, (7,)), (1, (2, 1)), (512, (3,)))),
])
def test_interpreted_lists(sparsity: str, dtype: DType, shapes: Shapes) -> None:
    group = Sparsity.parse(sparsity)
    weights = _weights(shapes, group, dtype)
    plan = PreparePlan(weights, group, [splits for _, splits in shapes], SMALL)
    _check(plan)
    for weight, packed, inverse in zip(weights, plan.packed, plan.inv_scale, strict=True):
        expected, _ = ternary_quantize(weight, packed.splits, inverse)
        assert torch.equal(unpack(packed), expected * nm_mask(weight, group.n, group.m))


@pytest.mark.interpreter
def test_interpreted_launches_do_not_grow_with_the_list() -> None:
    shapes: Shapes = ((64, (1, 2)), (512, (2,)), (64, (5,)), (256, (1,)))
    weights = _weights(shapes, TWO_FOUR, "bf16")
    assert [PreparePlan(weights[:many], TWO_FOUR, config=SMALL).launches for many in (0, 1, 2, 4)] == [0, 2, 2, 2]
    chunked = PreparePlan(weights, TWO_FOUR, config=SMALL, chunk_bytes=2500)
    assert chunked.launches == 4
    _check(chunked)
    assert PreparePlan(weights, TWO_FOUR, config=SMALL, chunk_bytes=1).launches == 8
    mixed = PreparePlan([*weights[:2], *_weights(((68, (3,)),), TWO_FOUR, "bf16")], TWO_FOUR, config=SMALL)
    assert mixed.launches == 4
    _check(mixed)


@pytest.mark.interpreter
def test_interpreted_empty_lists_and_weights() -> None:
    PreparePlan([], TWO_FOUR).launch()
    assert prepare_many([], TWO_FOUR) == ()
    empty = torch.zeros((0, 64), dtype=torch.bfloat16)
    _check(PreparePlan([empty], TWO_FOUR, config=SMALL))
    _check(PreparePlan([empty, *_weights(((64, (3,)),), TWO_FOUR, "bf16"), empty], TWO_FOUR, [(0, 0), None, None], SMALL))


@pytest.mark.interpreter
def test_interpreted_rows_with_a_stride() -> None:
    first, second = _weights(((64, (3, 2)), (272, (3,))), TWO_FOUR, "bf16")
    wide = torch.full((3, 272 + 64), float("nan"), dtype=torch.bfloat16)
    wide[:, :272] = second
    odd = torch.full((5, 64 + 3), float("nan"), dtype=torch.bfloat16)
    odd[:, 1:65] = first
    plan = PreparePlan([first, wide[:, :272], odd[:, 1:65]], TWO_FOUR, [(3, 2), (3,), (1, 4)], SMALL)
    assert [kind_of(weight, TWO_FOUR).by_words for weight in plan.weights] == [True, True, False]
    _check(plan)
    turned = prepare_many([first.t().contiguous().t()], TWO_FOUR, config=SMALL)[0]
    assert torch.equal(turned.data, prepare_weight(first, TWO_FOUR, config=SMALL).data)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_interpreted_non_finite_weights(dtype: DType) -> None:
    """Only the split that holds one gets NaN scales and zeros, as one weight at a time does; the list's call names the weight."""
    weights = _weights(((64, (3, 2)), (64, (3, 2)), (64, (1,))), TWO_FOUR, dtype)
    weights[1][4, 17] = float("nan")
    plan = PreparePlan(weights, TWO_FOUR, [(3, 2), (3, 2), None], SMALL, names=["wq", "wk", "wv"])
    _check(plan, launches=2)
    assert [flags.tolist() for flags in plan.nonfinite] == [[0, 0], [0, 1], [0]]
    assert torch.isnan(plan.packed[1].w_scale).tolist() == [False, True]
    with pytest.raises(NonFiniteError, match="wk"):
        plan.check_finite()
    with pytest.raises(NonFiniteError, match="weight 1"):
        prepare_many(weights, TWO_FOUR, config=SMALL)
    weights[1][4, 17] = 1.0
    plan.launch()
    plan.check_finite()


@pytest.mark.interpreter
def test_a_weight_that_moved_is_refused() -> None:
    weights = [torch.nn.Parameter(weight) for weight in _weights(((64, (5,)), (64, (5,))), TWO_FOUR, "bf16")]
    plan = PreparePlan(weights, TWO_FOUR, config=SMALL, names=["wq", "wk"])
    with torch.no_grad():
        weights[1].mul_(-0.5)
    _check(plan)
    weights[1].data = weights[1].data.clone()
    with pytest.raises(ShapeError, match="wk has moved"):
        plan.launch()


@pytest.mark.interpreter
def test_weights_of_two_types_are_refused() -> None:
    weights = [torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.bfloat16)]
    with pytest.raises(ShapeError, match=r"weight 1 is torch\.bfloat16 on cpu, weight 0 torch\.float32"):
        PreparePlan(weights, TWO_FOUR)
    with pytest.raises(ShapeError, match=r"wk is torch\.float32 on meta"):
        PreparePlan([torch.zeros(4, 8), torch.zeros(4, 8, device="meta")], TWO_FOUR, names=["wq", "wk"])
    with pytest.raises(ShapeError, match=r"wk.*not a multiple"):
        PreparePlan([torch.zeros(4, 8), torch.zeros(4, 12)], Sparsity(6, 8), names=["wq", "wk"])
    with pytest.raises(ShapeError, match=r"weight 1.*do not sum"):
        PreparePlan([torch.zeros(4, 8), torch.zeros(4, 8)], TWO_FOUR, [None, (3,)])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"splits": [None, None]}, "1 weights, 2 splits"), ({"names": []}, "0 names"), ({"chunk_bytes": 0}, "chunk_bytes is 0"),
])
def test_refused_lists(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        PreparePlan([torch.zeros(4, 8)], TWO_FOUR, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="out_features, in_features"):
        prepare_many([torch.zeros(())], TWO_FOUR)


@pytest.mark.compile
def test_a_list_on_the_cpu_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"weight 0.*on the CPU"):
        prepare_many([torch.zeros(4, 8)], TWO_FOUR)


def units(sparsity: Sparsity, dtype: DType, kind: Kind, splits: int = 3) -> tuple[CompileUnit, CompileUnit]:
    """Both functions as a plan launches them for a list of this kind."""
    config = many_config(sparsity)
    types = {"program_ptr": "*i32", "table_ptr": "*i64", "partial_ptr": "*fp64", "counter_ptr": "*i32", "limit_ptr": "*i32",
             "nonfinite_ptr": "*i32", "w_scale_ptr": "*fp32", "inv_scale_ptr": "*fp32"}
    made = []
    for function, constants, warps in zip((absmean_many_kernel, pack_many_kernel), kind.constants(DTYPES[dtype], sparsity, splits, config),
                                          (config.sum_warps, config.warps), strict=True):
        signature = {name: types.get(name, "constexpr") for name in function.arg_names}
        pointers = tuple(name for name in signature if name in types)
        made.append(CompileUnit(function, signature, constants, pointers, {"num_warps": warps}))
    return made[0], made[1]


@pytest.mark.compile
@pytest.mark.parametrize(("sparsity", "dtype", "gpu"), [
    ("2:4", "bf16", "a100"), ("2:4", "bf16", "h200"), ("2:4", "bf16", "b200"), ("6:8", "bf16", "h200"), ("2:4", "fp32", "h200"),
    ("8:10", "bf16", "a100"), ("8:10", "bf16", "h200"), ("8:10", "fp16", "b200"), ("4:6", "bf16", "h200"),
])
def test_compiles_without_spills(sparsity: str, dtype: DType, gpu: str) -> None:
    group = Sparsity.parse(sparsity)
    for unit in units(group, dtype, Kind(by_words=dtype != "fp32" and 64 % group.m == 0, aligned=True, vector=16)):
        compiled = compile_unit(unit, by_name(gpu))
        assert isinstance(compiled, Compiled), compiled
        assert compiled.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparsity", ["2:4", "6:8", "8:10", "dense"])
def test_lists_on_a_gpu(sparsity: str, dtype: DType) -> None:
    group = Sparsity.parse(sparsity)
    columns = group.m * (896 // group.m)
    shapes: Shapes = ((columns, (896, 128, 128)), (columns, (4864, 4864)), (group.m * (4864 // group.m), (896,)), (group.m, (7,)),
                      (columns, (1, 0, 3, 5, 2)))
    weights = _weights(shapes, group, dtype, "cuda")
    for chunk_bytes in (None, 4 << 20):
        _check(PreparePlan(weights, group, [splits for _, splits in shapes], chunk_bytes=chunk_bytes), launches=5)


@pytest.mark.gpu
def test_a_plan_in_a_graph() -> None:
    """Captured once, replayed after the weights change in place."""
    shapes: Shapes = ((896, (896, 128, 128)), (4864, (896,)), (2048, (300,)))
    weights = _weights(shapes, TWO_FOUR, "bf16", "cuda")
    plan = PreparePlan(weights, TWO_FOUR, [splits for _, splits in shapes])
    plan.launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.launch()
    for weight in weights:
        weight.copy_(torch.randn_like(weight))
    graph.replay()
    torch.cuda.synchronize()
    for weight, packed in zip(weights, plan.packed, strict=True):
        one = prepare_weight(weight, TWO_FOUR, packed.splits)
        assert torch.equal(packed.data, one.data)
        assert torch.equal(packed.w_scale, one.w_scale)
