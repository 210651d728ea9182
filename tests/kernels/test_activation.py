"""Activation quantization, plain and lifted: against the reference in the interpreter and on a GPU, and as machine code."""

from __future__ import annotations

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.inputs import KINDS, ActivationInputs, Kind, make_inputs
from kernels.judge import judge, poison
from kernels.mask_quantize.activation import (
    KERNELS,
    ActivationConfig,
    activation_config,
    allocate_activation,
    by_words,
    compile_units,
    launch_activation,
    quantize_activation,
)
from kernels.problem import DType, Problem, Sparsity
from reference.lifting import lift_activation
from reference.quantize import quantize_activation as expected_codes

KERNEL = KERNELS[0]
H200 = by_name("h200")
LIFTED = ("4:6", "6:8", "8:10", "14:16")
TYPES: tuple[DType, ...] = ("bf16", "fp16", "fp32")


def _problem(sparsity: str, columns: int, tokens: int, dtype: DType = "bf16") -> Problem:
    return Problem("activation", 0, columns, tokens, Sparsity.parse(sparsity), (), dtype)


def _inputs(problem: Problem, device: str = "cpu", kind: Kind = "random") -> ActivationInputs:
    inputs = make_inputs(problem, device, kind=kind)
    assert isinstance(inputs, ActivationInputs)
    return inputs


def _check(problem: Problem, inputs: ActivationInputs, config: ActivationConfig) -> None:
    prepared = KERNEL.prepare(problem, inputs, config)
    poison(prepared)
    outputs = prepared.run()
    assert outputs["x_q"].stride(0) % 128 == 0
    assert judge(problem, inputs, outputs, KERNEL) is None


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparsity", ["2:4", *LIFTED])
def test_interpreted_in_registers_and_read_twice(sparsity: str, dtype: DType) -> None:
    group = Sparsity.parse(sparsity).m
    for kind in KINDS if dtype == "bf16" else KINDS[:1]:
        problem = _problem(sparsity, group * (320 // group), 5, dtype)
        _check(problem, _inputs(problem, kind=kind), ActivationConfig(2, 512, 4))
        _check(problem, _inputs(problem, kind=kind), ActivationConfig(4, 128, 4))


@pytest.mark.interpreter
@pytest.mark.parametrize(("sparsity", "columns", "tokens"), [
    ("2:4", 300, 7), ("dense", 1, 1), ("dense", 129, 3), ("6:8", 8, 1), ("6:8", 264, 3), ("8:10", 10, 2), ("2:4", 384, 0), ("6:8", 384, 0),
])
def test_interpreted_awkward_shapes(sparsity: str, columns: int, tokens: int) -> None:
    problem = _problem(sparsity, columns, tokens)
    _check(problem, _inputs(problem), KERNEL.default_config(problem, H200))


@pytest.mark.interpreter
def test_interpreted_rounds_half_to_even() -> None:
    """absmax 127 makes codes equal the values: every half goes to the even neighbour."""
    halves = torch.arange(-126, 126).float() + 0.5
    x = torch.cat([torch.tensor([127.0]), halves])[None]
    x_q, x_scale = quantize_activation(x)
    assert x_q[0, 1:].tolist() == halves.round().to(torch.int8).tolist()
    assert x_scale.item() == 1.0


@pytest.mark.interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_interpreted_non_finite_token_gets_a_nan_scale(bad: float) -> None:
    x = _inputs(_problem("2:4", 320, 4)).x.clone()
    x[2, 300] = bad
    for block in (128, 512):
        x_q, x_scale = quantize_activation(x, config=ActivationConfig(1, block, 1))
        assert torch.isnan(x_scale).tolist() == [False, False, True, False]
        good = [0, 1, 3]
        assert torch.equal(x_q[good], expected_codes(x)[0][good])


@pytest.mark.interpreter
@pytest.mark.parametrize(("columns", "config"), [
    (320, ActivationConfig(2, 128, 4)), (264, ActivationConfig(1, 512, 2)), (6, ActivationConfig(4, 128, 1)),
])
def test_interpreted_dequantized_beside_the_codes(columns: int, config: ActivationConfig) -> None:
    x = _inputs(_problem("2:4", columns, 5)).x
    x_q, x_scale = allocate_activation(5, columns, None, "cpu")
    wide = torch.full_like(x, float("nan"))
    launch_activation(x, x_q, x_scale, None, config, wide)
    codes, scale = expected_codes(x)
    assert torch.equal(x_q, codes)
    expected = codes.float() * scale[:, None]
    # The interpreter cuts bf16 off, a device rounds it: both are within one step.
    assert ((wide.float() - expected).abs() <= 2.0**-7 * expected.abs()).all()


@pytest.mark.interpreter
def test_dequantized_activations_need_words() -> None:
    x_q, x_scale = allocate_activation(2, 64, None, "cpu")
    with pytest.raises(ShapeError, match="wide needs"):
        launch_activation(torch.zeros(2, 64), x_q, x_scale, None, activation_config(64), torch.zeros(2, 64, dtype=torch.bfloat16))


@pytest.mark.interpreter
def test_interpreted_strides() -> None:
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(1))
    for view in (x[:, 3:323], x[::2, :320], x.t().contiguous().t()[:, :320]):
        x_q, x_scale = quantize_activation(view, 8)
        codes, scale = expected_codes(view)
        assert torch.equal(x_q, lift_activation(codes, 8))
        assert torch.equal(x_scale, scale)


@pytest.mark.interpreter
def test_interpreted_leaves_the_padding_alone() -> None:
    x_q, x_scale = allocate_activation(3, 200, 8, "cpu")
    launch_activation(torch.randn(3, 200), x_q, x_scale, 8, activation_config(200))
    behind = torch.as_strided(x_q, (3, 384), (384, 1))[:, 300:]
    assert not behind.any()


@pytest.mark.parametrize(("shape", "m", "message"), [
    ((4, 10), 8, "cannot be lifted"), ((4, 8), 4, "cannot be lifted"), ((8,), None, "tokens"),
])
def test_refused_activations(shape: tuple[int, ...], m: int | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        quantize_activation(torch.zeros(shape), m)


@pytest.mark.interpreter
def test_refused_buffers() -> None:
    x, scale = torch.zeros(4, 200), torch.zeros(4)
    with pytest.raises(ShapeError, match="rows padded"):
        launch_activation(x, torch.zeros((4, 200), dtype=torch.int8), scale, None, activation_config(200))
    with pytest.raises(ShapeError, match="x_scale"):
        launch_activation(x, allocate_activation(4, 200, None, "cpu")[0], scale[:3], None, activation_config(200))


@pytest.mark.compile
@pytest.mark.parametrize(("sparsity", "columns", "dtype", "gpu"), [
    ("2:4", 2560, "bf16", "a100"), ("6:8", 2560, "bf16", "h200"), ("6:8", 2560, "bf16", "b200"), ("2:4", 28672, "bf16", "h200"),
    ("6:8", 16384, "fp16", "h200"), ("8:10", 2560, "bf16", "h200"), ("2:4", 8192, "fp32", "h200"),
])
def test_compiles_without_spills(sparsity: str, columns: int, dtype: DType, gpu: str) -> None:
    problem = _problem(sparsity, columns, 4096, dtype)
    (unit,) = compile_units(problem, KERNEL.default_config(problem, H200))
    compiled = compile_unit(unit, by_name(gpu))
    assert isinstance(compiled, Compiled), compiled
    assert compiled.spills == 0


def test_default_configs_keep_rows_in_registers_and_obey_the_space() -> None:
    for columns in (64, 896, 2560, 8192, 16384, 18944, 28672):
        for tokens in (1, 64, 16384):
            problem = _problem("2:4", columns, tokens)
            config = KERNEL.default_config(problem, H200)
            assert by_words(torch.bfloat16, columns, None, config)
            assert tokens < 1024 or -(-columns // config.block) * config.block <= 1.25 * max(columns, 128)
            assert columns < 1024 or KERNEL.space.reject(problem, H200, config) is None
            wide = KERNEL.default_config(_problem("2:4", columns, tokens, "fp32"), H200)
            assert (wide.block >= columns) == (columns <= 16384)
            assert 4 <= wide.rows * wide.block // (32 * wide.warps) <= 64


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparsity", ["2:4", *LIFTED])
def test_on_a_gpu(sparsity: str, dtype: DType, kind: Kind) -> None:
    group = Sparsity.parse(sparsity).m
    for columns, tokens in ((group, 1), (group * (896 // group), 63), (group * (6912 // group), 1000), (group * (18944 // group), 7)):
        problem = _problem(sparsity, columns, tokens, dtype)
        _check(problem, _inputs(problem, "cuda", kind), KERNEL.default_config(problem, H200))


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", ["2:4", "6:8"])
def test_every_config_on_a_gpu(sparsity: str) -> None:
    problem = _problem(sparsity, 2560, 333)
    inputs = _inputs(problem, "cuda")
    for config in KERNEL.space.allowed(problem, H200):
        _check(problem, inputs, config)


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", ["2:4", "6:8"])
def test_more_than_two_to_the_31_elements_of_index_space(sparsity: str) -> None:
    tokens, columns = (1 << 31) // 8192 + 5, 8192
    x = torch.zeros((tokens, columns), dtype=torch.bfloat16, device="cuda")
    x[-1] = torch.randn(columns, device="cuda")
    m = 8 if sparsity == "6:8" else None
    x_q, x_scale = quantize_activation(x, m)
    codes, scale = expected_codes(x[-2:])
    assert torch.equal(x_q[-2:], codes if m is None else lift_activation(codes, m))
    assert torch.equal(x_scale[-2:], scale)


@pytest.mark.gpu
@pytest.mark.parametrize(("columns", "tokens"), [(896, 63), (2560, 1000), (11008, 7), (18944, 1)])
def test_dequantized_beside_the_codes_on_a_gpu(columns: int, tokens: int) -> None:
    x = _inputs(_problem("2:4", columns, tokens), "cuda").x
    x_q, x_scale = allocate_activation(tokens, columns, None, "cuda")
    wide = torch.full_like(x, float("nan"))
    launch_activation(x, x_q, x_scale, None, activation_config(columns, tokens), wide)
    codes, scale = expected_codes(x)
    assert torch.equal(x_q, codes)
    assert torch.equal(wide, (codes.float() * scale[:, None]).bfloat16())


@pytest.mark.gpu
def test_strides_on_a_gpu() -> None:
    x = torch.randn((65, 4000), device="cuda", dtype=torch.bfloat16)
    for view in (x[:, 3:2563], x[::2, :2560], x.t().contiguous().t()[:, :2560]):
        x_q, x_scale = quantize_activation(view, 8)
        codes, scale = expected_codes(view)
        assert torch.equal(x_q, lift_activation(codes, 8))
        assert torch.equal(x_scale, scale)
