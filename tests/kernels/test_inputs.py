"""The one generator of inputs: the awkward kinds are what they say, seeds repeat, clones share nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
import torch

from kernels.errors import UsageError
from kernels.inputs import (
    KINDS,
    ActivationInputs,
    GemmInputs,
    Kind,
    LayerInputs,
    PrepareInputs,
    TrainInputs,
    clone,
    make_inputs,
    make_weights,
    pad_rows,
)
from kernels.problem import Op, Problem, Sparsity
from reference.quantize import quantize_activation

TYPES: dict[Op, type[object]] = {
    "gemm": GemmInputs, "layer": LayerInputs, "prepare": PrepareInputs, "activation": ActivationInputs,
    "forward": TrainInputs, "input-grad": TrainInputs, "weight-grad": TrainInputs, "step": TrainInputs,
}  # fmt: skip


def problem(op: Op, **changes: object) -> Problem:
    return Problem(op, 0 if op == "activation" else 12, 40, 9, Sparsity(6, 8), bias=op in ("gemm", "layer")).with_(**changes)


def tensors(inputs: object) -> dict[str, torch.Tensor]:
    values = {entry.name: getattr(inputs, entry.name) for entry in fields(inputs)}  # type: ignore[arg-type]  # a dataclass
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("op", get_args(Op))
def test_every_op_has_its_inputs_and_equal_seeds_repeat_them(op: Op) -> None:
    first, second, other = (tensors(make_inputs(problem(op), seed=seed)) for seed in (3, 3, 4))
    assert isinstance(make_inputs(problem(op)), TYPES[op])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_obey_their_sparsity_in_every_kind(kind: Kind) -> None:
    weights = make_weights(problem("prepare"), kind=kind)
    assert ((weights.w_ternary != 0).view(12, -1, 8).sum(dim=2) <= 6).all()
    assert weights.master.isfinite().all()
    assert (weights.w_scale >= 1e-5).all()


def test_kinds_are_what_they_say() -> None:
    def x(kind: Kind) -> torch.Tensor:
        inputs = make_inputs(problem("activation", tokens=64), kind=kind)
        assert isinstance(inputs, ActivationInputs)
        return inputs.x.float()

    assert x("equal").unique().tolist() == [0.75]
    assert not x("zero_rows")[::3].any()
    assert x("zero_rows")[1].any()
    assert x("tiny").abs().max() < 1e-5
    assert (x("outlier").abs().amax(dim=1) == 1000).all()
    assert (x("ties").view(64, 5, 8).abs().sort(dim=2).values.diff(dim=2) == 0).any(dim=2).all()


def test_masters_tie_where_the_kind_says_so() -> None:
    master = make_weights(problem("prepare"), kind="ties").master.float().abs()
    assert (master.view(12, 5, 8).sort(dim=2).values.diff(dim=2) == 0).any(dim=2).all()


def test_activations_are_those_of_the_reference_with_padded_rows() -> None:
    inputs = make_inputs(problem("step"))
    assert isinstance(inputs, TrainInputs)
    x_q, x_scale = quantize_activation(inputs.x)
    assert torch.equal(inputs.x_q, x_q)
    assert torch.equal(inputs.x_scale, x_scale)
    assert inputs.x_q.stride() == (128, 1)
    storage = torch.as_strided(inputs.x_q, (9, 128), (128, 1))
    assert not storage[:, 40:].any()
    whole = torch.ones(3, 256, dtype=torch.int8)
    assert pad_rows(whole) is whole


def test_clones_have_equal_values_and_strides_in_memory_of_their_own() -> None:
    for op in ("gemm", "step"):
        inputs = make_inputs(problem(op))
        copy = clone(inputs)
        for name, value in tensors(inputs).items():
            twin = tensors(copy)[name]
            assert torch.equal(value, twin)
            assert (value.stride(), value.dtype) == (twin.stride(), twin.dtype)
            assert value.data_ptr() != twin.data_ptr()


def test_weights_are_shared_between_cases() -> None:
    weights = make_weights(problem("layer"))
    inputs = make_inputs(problem("layer"), seed=9, weights=weights)
    assert isinstance(inputs, LayerInputs)
    assert inputs.w_ternary is weights.w_ternary
    assert inputs.w_scale is weights.w_scale


@pytest.mark.parametrize("op", get_args(Op))
def test_no_tokens(op: Op) -> None:
    inputs = make_inputs(problem(op, tokens=0))
    assert all(value.isfinite().all() for value in tensors(inputs).values())


def test_a_group_that_does_not_divide_in_features_is_an_error() -> None:
    with pytest.raises(UsageError, match="in_features 12 is not a multiple of the group of 8"):
        make_inputs(Problem("gemm", 4, 12, 2, Sparsity(6, 8)))
