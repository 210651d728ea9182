"""The judge passes the reference's own results in every type, and nothing else: one wrong value turns every op red."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from kernels import bounds
from kernels.bounds import BOUNDS, sample_rows
from kernels.errors import UsageError
from kernels.inputs import DTYPES, KINDS, GemmInputs, LayerInputs, PrepareInputs, TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel, Prepared
from kernels.problem import DENSE, Op, Problem, Sparsity
from reference.compare import Mismatch
from reference.lifting import lift_activation
from reference.linear import accumulate, input_grad, linear, row_scale, weight_grad
from reference.quantize import quantize_activation, ternary_quantize
from reference.sparsity import nm_mask

SPLITS = (6, 2, 4)
Results = dict[str, torch.Tensor]


def kernel(op: Op, judged: str = "exact") -> Kernel:
    def nothing(problem: Problem, inputs: object, config: object) -> Prepared:
        raise NotImplementedError

    return Kernel("under-test", op, "variant", nothing, judged=judged)


def packed_bytes(ternary: torch.Tensor) -> torch.Tensor:
    """dense2 by Python loops: byte b, field f of a block holds its column 64·f + b."""
    rows, columns = ternary.shape
    out = torch.zeros(rows, -(-columns // 256) * 64, dtype=torch.uint8)
    for row, values in enumerate(ternary.tolist()):
        for column, value in enumerate(values):
            block, place = divmod(column, 256)
            out[row, 64 * block + place % 64] |= (value & 3) << 2 * (place // 64)
    return out


def prepared(problem: Problem, w: torch.Tensor) -> Results:
    ternary, w_scale = ternary_quantize(w, problem.splits)
    mask = nm_mask(w, problem.sparsity.n, problem.sparsity.m)
    fake = (ternary * mask * row_scale(w_scale, problem.splits, w.shape[0])[:, None].float()).bfloat16()
    return {"packed": packed_bytes(ternary * mask), "w_scale": w_scale, "inv_scale": 1 / w_scale, "mask": mask, "w_fake": fake}


def solve(problem: Problem, inputs: object) -> Results:
    """What a right kernel returns."""
    dtype = DTYPES[problem.dtype]
    if isinstance(inputs, PrepareInputs):
        return prepared(problem, inputs.w)
    if isinstance(inputs, GemmInputs):
        if problem.dtype == "int32":
            return {"y": accumulate(inputs.x_q, inputs.w_ternary).int()}
        return {"y": linear(inputs.x_q, inputs.x_scale, inputs.w_ternary, inputs.w_scale, problem.splits, inputs.bias).to(dtype)}
    if isinstance(inputs, LayerInputs):
        return {"y": linear(*quantize_activation(inputs.x), inputs.w_ternary, inputs.w_scale, problem.splits, inputs.bias).to(dtype)}
    if isinstance(inputs, TrainInputs):
        found = {
            "y": linear(inputs.x_q, inputs.x_scale, inputs.w_ternary, inputs.w_scale, problem.splits).to(dtype),
            "dx": input_grad(inputs.dy, inputs.w_ternary, inputs.w_scale, problem.splits).to(dtype),
            "dw": weight_grad(inputs.dy, inputs.x_q, inputs.x_scale).to(dtype),
        }
        names = {"forward": ("y",), "input-grad": ("dx",), "weight-grad": ("dw",), "step": ("y", "dx", "dw")}[problem.op]
        return {name: found[name] for name in names}
    x_q, x_scale = quantize_activation(inputs.x)  # type: ignore[attr-defined]  # the only type left
    return {"x_q": lift_activation(x_q, problem.sparsity.m) if problem.sparsity.lifted else x_q, "x_scale": x_scale}


def problems() -> list[Problem]:
    two_four, six_eight = Sparsity(2, 4), Sparsity(6, 8)
    return [
        Problem("gemm", 12, 48, 7, two_four, SPLITS, "bf16", bias=True),
        Problem("gemm", 12, 48, 7, six_eight, SPLITS, "fp32"),
        Problem("gemm", 12, 48, 7, DENSE, dtype="fp16", bias=True),
        Problem("gemm", 12, 48, 7, two_four, dtype="int32"),
        Problem("layer", 12, 48, 7, six_eight, SPLITS, bias=True),
        Problem("prepare", 12, 48, 0, six_eight, SPLITS),
        Problem("prepare", 12, 272, 0, two_four, dtype="fp32"),
        Problem("activation", 0, 48, 7, two_four),
        Problem("activation", 0, 48, 7, six_eight, dtype="fp16"),
        Problem("forward", 12, 48, 7, two_four, SPLITS),
        Problem("input-grad", 12, 48, 7, six_eight, SPLITS),
        Problem("weight-grad", 12, 48, 7, two_four),
        Problem("step", 12, 48, 7, two_four, SPLITS),
    ]


def spoil(value: torch.Tensor) -> torch.Tensor:
    """The same with its last element clearly wrong."""
    wrong = value.clone()
    place = (-1,) * value.dim()
    if value.dtype == torch.bool:
        wrong[place] = ~wrong[place]
    elif value.is_floating_point():
        wrong[place] = wrong[place] * 1.25 + value.abs().max() * 4 + 1e-3
    else:
        wrong[place] += 1
    return wrong


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", problems(), ids=str)
def test_the_reference_is_right_on_every_kind_of_inputs(problem: Problem, kind: str) -> None:
    inputs = make_inputs(problem, kind=kind)  # type: ignore[arg-type]  # one of KINDS
    assert judge(problem, inputs, solve(problem, inputs), kernel(problem.op)) is None


@pytest.mark.parametrize("problem", problems(), ids=str)
def test_one_wrong_value_is_caught_in_every_output(problem: Problem) -> None:
    inputs = make_inputs(problem)
    right = solve(problem, inputs)
    for name, value in right.items():
        mismatch = judge(problem, inputs, {**right, name: spoil(value)}, kernel(problem.op))
        assert mismatch is not None, name
        if name == "packed" or name == "inv_scale":
            assert mismatch.name in ("packed", "inv_scale")
        else:
            assert (mismatch.name, mismatch.count) == (name, 1)
            assert mismatch.index == tuple(size - 1 for size in value.shape)


@pytest.mark.parametrize("problem", problems(), ids=str)
def test_poison_missing_shape_and_type_are_caught(problem: Problem) -> None:
    inputs = make_inputs(problem)
    right = solve(problem, inputs)
    for name, value in right.items():
        untouched = value.clone()
        poison(Prepared(dict, {name: untouched}))
        for broken in (untouched, value[:-1], value.to(torch.float64)):
            mismatch = judge(problem, inputs, {**right, name: broken}, kernel(problem.op))
            assert isinstance(mismatch, Mismatch), (name, broken.dtype)
            assert "\n" not in str(mismatch)
    assert judge(problem, inputs, {}, kernel(problem.op)) is not None


@pytest.mark.parametrize("op", ["gemm", "layer", "activation", "forward", "input-grad", "weight-grad", "step"])
def test_no_tokens(op: Op) -> None:
    problem = Problem(op, 0 if op == "activation" else 12, 48, 0, Sparsity(2, 4))
    inputs = make_inputs(problem)
    right = solve(problem, inputs)
    assert judge(problem, inputs, right, kernel(op)) is None
    if "dw" in right:
        assert judge(problem, inputs, {**right, "dw": right["dw"] + 1}, kernel(op)) is not None


def test_two_ulps_are_too_many_and_one_is_not() -> None:
    problem = problems()[0].with_(bias=False)
    inputs = make_inputs(problem)
    y = solve(problem, inputs)["y"]
    up = torch.nextafter(y, torch.full_like(y, float("inf")))
    upper = torch.nextafter(up, torch.full_like(y, float("inf")))
    assert judge(problem, inputs, {"y": upper}, kernel("gemm")) is not None
    exact = linear(inputs.x_q, inputs.x_scale, inputs.w_ternary, inputs.w_scale, SPLITS)  # type: ignore[union-attr]
    nearest_above = torch.where(y.double() >= exact, y, up)
    assert judge(problem, inputs, {"y": nearest_above}, kernel("gemm")) is None


def test_a_scale_one_ulp_away_is_judged_by_its_own_ternary_values() -> None:
    """A weight that sits on a rounding boundary moves with s; what was packed must agree with the s that was returned."""
    problem = Problem("prepare", 4, 8, 0, DENSE, dtype="fp32")
    w = torch.full((4, 8), 1.0)
    w[0, 0] = 0.5
    w[0, 1] = 1.5
    inputs = PrepareInputs(w)
    right = prepared(problem, w)
    assert right["w_scale"].tolist() == [1.0]
    larger = {**right, "inv_scale": torch.nextafter(right["inv_scale"], torch.tensor([2.0]))}
    mismatch = judge(problem, inputs, larger, kernel("prepare"))
    assert mismatch is not None
    assert (mismatch.name, mismatch.index) == ("packed", (0, 0))
    moved = ternary_quantize(w, None, larger["inv_scale"])[0]
    larger |= {"packed": packed_bytes(moved), "w_fake": (moved * right["w_scale"]).bfloat16()}
    assert judge(problem, inputs, larger, kernel("prepare")) is None
    assert judge(problem, inputs, {**larger, "inv_scale": larger["inv_scale"] * 1.000001}, kernel("prepare")) is not None


def test_packed_padding_and_illegal_codes_are_caught() -> None:
    problem = Problem("prepare", 2, 48, 0, Sparsity(2, 4))
    inputs = make_inputs(problem)
    right = solve(problem, inputs)
    for value in (0b01000000, 0b10000000):
        packed = right["packed"].clone()
        packed[1, 60] |= value
        mismatch = judge(problem, inputs, {**right, "packed": packed}, kernel("prepare"))
        assert mismatch is not None
        assert mismatch.index == (1, 192 + 60)


def test_raw_accumulators_have_no_scales() -> None:
    problem = problems()[0]
    inputs = make_inputs(problem)
    assert isinstance(inputs, GemmInputs)
    acc = accumulate(inputs.x_q, inputs.w_ternary).bfloat16()
    assert judge(problem, inputs, {"y": acc}, kernel("gemm", "raw")) is None
    assert judge(problem, inputs, solve(problem, inputs), kernel("gemm", "raw")) is not None
    assert judge(problem, inputs, {"y": spoil(acc)}, kernel("gemm", "raw")) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_float_baselines_pass_their_bounds(kind: str) -> None:
    problem = Problem("gemm", 48, 512, 20, Sparsity(2, 4), (32, 16), bias=True)
    gemm = make_inputs(problem, kind=kind)  # type: ignore[arg-type]  # one of KINDS
    assert isinstance(gemm, GemmInputs)
    assert gemm.bias is not None
    weight = (gemm.w_ternary * row_scale(gemm.w_scale, problem.splits, 48)[:, None].float()).bfloat16()
    x = (gemm.x_q * gemm.x_scale[:, None]).bfloat16()
    y = torch.addmm(gemm.bias.bfloat16(), x, weight.t())
    assert judge(problem, gemm, {"y": y}, kernel("gemm", "float")) is None
    assert judge(problem, gemm, {"y": spoil(y)}, kernel("gemm", "float")) is not None
    codes = gemm.x_q.float().to(torch.float8_e4m3fn).float()
    raw = (codes @ gemm.w_ternary.float().t()).bfloat16()
    assert judge(problem, gemm, {"y": raw}, kernel("gemm", "fp8")) is None
    assert judge(problem, gemm, {"y": spoil(raw)}, kernel("gemm", "fp8")) is not None


def test_float_layers_take_the_activations_as_they_are() -> None:
    problem = Problem("layer", 96, 512, 40, Sparsity(2, 4), (64, 32))
    layer = make_inputs(problem)
    assert isinstance(layer, LayerInputs)
    scale = row_scale(layer.w_scale, problem.splits, 96).float()
    y = layer.x @ (layer.w_ternary * scale[:, None]).bfloat16().t()
    assert judge(problem, layer, {"y": y}, kernel("layer", "float")) is None
    assert judge(problem, layer, {"y": y}, kernel("layer", "exact")) is not None
    absmax = layer.x.float().abs().amax(dim=1, keepdim=True)
    codes = (layer.x.float() * (448 / absmax)).to(torch.float8_e4m3fn).float()
    fp8 = ((codes @ layer.w_ternary.float().t()).bfloat16() * (absmax / 448) * scale).bfloat16()
    assert judge(problem, layer, {"y": fp8}, kernel("layer", "fp8")) is None
    for judged in ("float", "fp8"):
        assert judge(problem, layer, {"y": spoil(y)}, kernel("layer", judged)) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_bf16_passes_its_bounds(kind: str) -> None:
    problem = Problem("step", 48, 64, 100, Sparsity(6, 8), (32, 16))
    data = make_inputs(problem, kind=kind)  # type: ignore[arg-type]  # one of KINDS
    assert isinstance(data, TrainInputs)
    weight = (data.w_ternary * row_scale(data.w_scale, problem.splits, 48)[:, None].float()).bfloat16()
    x = (data.x_q * data.x_scale[:, None]).bfloat16()
    fake = {"y": x @ weight.t(), "dx": data.dy @ weight, "dw": data.dy.t() @ x}
    exact = {**fake, "y": solve(problem, data)["y"], **prepared(problem, data.w)}
    dense = {"y": data.x @ data.w.t(), "dx": data.dy @ data.w, "dw": data.dy.t() @ data.x}
    for judged, outputs in (("float", fake), ("gradient", exact), ("exact", exact), ("dense-linear", dense)):
        assert judge(problem, data, outputs, kernel("step", judged)) is None
        for name in ("y", "dx", "dw"):
            mismatch = judge(problem, data, {**outputs, name: spoil(outputs[name])}, kernel("step", judged))
            assert mismatch is not None
            assert mismatch.name == name


def test_a_step_that_prepares_wrongly_is_caught() -> None:
    problem = problems()[-1]
    inputs = make_inputs(problem)
    assert isinstance(inputs, TrainInputs)
    right = {**solve(problem, inputs), **prepared(problem, inputs.w)}
    assert judge(problem, inputs, right, kernel("step")) is None
    mismatch = judge(problem, inputs, {**right, "packed": right["packed"] ^ 0xFF}, kernel("step"))
    assert mismatch is not None
    assert mismatch.name == "packed"


def test_a_baseline_may_round_a_weight_on_the_boundary_either_way() -> None:
    problem = Problem("forward", 4, 8, 3, DENSE)
    w = torch.full((4, 8), 1.0, dtype=torch.bfloat16)
    w[0, 0], w[0, 1] = 0.5, 1.5
    inputs = make_inputs(problem)
    assert isinstance(inputs, TrainInputs)
    ternary, w_scale = ternary_quantize(w)
    inputs = replace(inputs, w=w, w_ternary=ternary, w_scale=w_scale)
    other = ternary.clone()
    other[0, 0] = 1 - ternary[0, 0]
    moved: Mapping[str, torch.Tensor] = {"y": linear(inputs.x_q, inputs.x_scale, other, w_scale, None).bfloat16()}
    assert judge(problem, inputs, moved, kernel("forward", "float")) is None
    assert judge(problem, inputs, moved, kernel("forward", "exact")) is not None


def test_a_sample_holds_both_ends_and_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample_rows(100_000, 1024)
    assert torch.equal(rows, sample_rows(100_000, 1024))
    assert 700 < len(rows) <= 1024
    assert rows[:256].tolist() == list(range(256))
    assert rows[-256:].tolist() == list(range(100_000 - 256, 100_000))
    assert sample_rows(10, 10).tolist() == list(range(10))
    monkeypatch.setattr(bounds, "ALL_ROWS", {"exact": {"cpu": 1}, "bounded": {"cpu": 1}})
    monkeypatch.setattr(bounds, "SAMPLE", {"exact": 8, "bounded": 8})
    problem = Problem("gemm", 12, 48, 64, Sparsity(2, 4))
    inputs = make_inputs(problem)
    right = solve(problem, inputs)
    assert judge(problem, inputs, right, kernel("gemm")) is None
    mismatch = judge(problem, inputs, {"y": spoil(right["y"])}, kernel("gemm"))
    assert mismatch is not None
    assert mismatch.index == (63, 11)


def test_bounds_do_not_pass_zeros() -> None:
    """A bound that lets an all-zero output pass checks nothing; here at the longest reduction of the suites."""
    problem = Problem("gemm", 16, 28672, 4, Sparsity(2, 4))
    inputs = make_inputs(problem)
    for judged in BOUNDS:
        zeros = torch.zeros(4, 16, dtype=torch.bfloat16)
        assert judge(problem, inputs, {"y": zeros}, kernel("gemm", judged)) is not None, judged


def test_an_unknown_bound_is_an_error() -> None:
    problem = problems()[0]
    with pytest.raises(UsageError, match="judged by 'generous'; allowed: exact, raw, float"):
        judge(problem, make_inputs(problem), {}, kernel("gemm", "generous"))
