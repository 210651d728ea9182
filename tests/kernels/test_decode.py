"""The decode GEMM and layer: what they refuse, what the compiler makes of them, and on a device their numbers, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import NonFiniteError, PackError, ShapeError, SparsityError
from kernels.gpu import by_name
from kernels.inputs import GemmInputs, Inputs, Kind, LayerInputs, make_inputs
from kernels.kernel import Outputs, Prepared
from kernels.problem import DENSE, DType, Op, Problem, Sparsity
from kernels.ternary_gemm.decode import (
    GEMM,
    LAYER,
    NARROW,
    NARROW_LAYER,
    bind,
    compile_units,
    decode_weight,
    fuses,
    narrow_unavailable,
    unavailable,
)
from kernels.ternary_gemm.decode_config import DecodeConfig, is_sparse, plan, registers, reject
from kernels.ternary_gemm.decode_estimate import default_config, narrow_config, narrow_space, space
from tests.kernels.on_device import SIX_EIGHT, TWO_FOUR, assert_all_right, assert_right, assert_same_bits, problems

H200, A100 = by_name("h200"), by_name("a100")
CONFIGS = (DecodeConfig(4, 4, 2, 4), DecodeConfig(4, 1, 8, 3), DecodeConfig(1, 1, 8, 4), DecodeConfig(2, 2, 4, 3, 2),
           DecodeConfig(4, 2, 4, 3, 3, 32), DecodeConfig(1, 1, 16, 2, 1, 32), DecodeConfig(4, 8, 1, 3, 1, 64),
           DecodeConfig(1, 1, 4, 4, group=16), DecodeConfig(2, 2, 4, 3, 2, group=8), DecodeConfig(4, 1, 4, 3, rounds=3),
           DecodeConfig(4, 1, 2, 4, rounds=2, group=16), DecodeConfig(4, 2, 4, 3, 2, clustered=True),
           DecodeConfig(2, 1, 4, 4, 4, 32, group=16, clustered=True), DecodeConfig(1, 4, 2, 3, 8, clustered=True),
           DecodeConfig(1, 4, 2, 3, wgmma=True), DecodeConfig(4, 4, 2, 3, x_kib=32, wgmma=True),
           DecodeConfig(2, 8, 1, 4, 4, group=24, clustered=True, wgmma=True), DecodeConfig(4, 4, 1, 2, 2, eager=False, wgmma=True),
           DecodeConfig(1, 4, 8, 2, group=16, wgmma=True), DecodeConfig(1, 4, 4, 8, group=32, wgmma=True))
NARROW_CONFIGS = (DecodeConfig(4, 1, 8, 4, narrow=True), DecodeConfig(4, 4, 2, 3, 1, 32, narrow=True),
                  DecodeConfig(4, 1, 4, 3, rounds=3, group=16, narrow=True), DecodeConfig(4, 1, 8, 3, rounds=2, narrow=True),
                  DecodeConfig(4, 2, 4, 3, 2, clustered=True, narrow=True), DecodeConfig(4, 2, 4, 2, 3, 32, narrow=True),
                  DecodeConfig(4, 8, 1, 3, narrow=True, eager=False))
SHAPES = ((1, 1152, 896), (7, 130, 64), (9, 7, 128), (16, 2048, 2048), (33, 384, 776), (63, 136, 320), (64, 896, 4864), (1, 520, 12000),
          (0, 64, 128), (5, 200, 2504), (20, 600, 1024))


def problem(out_features: int, in_features: int, tokens: int, sparsity: Sparsity = TWO_FOUR, op: Any = "gemm", **changes: Any) -> Problem:
    return Problem(op, out_features, in_features, tokens, sparsity, **changes)


COMPILED = [
    (problem(57344, 8192, 1), CONFIGS[0], "h200"), (problem(57344, 8192, 1), CONFIGS[0], "a100"),
    (problem(8192, 28672, 64), DecodeConfig(4, 4, 2, 3, 2), "h200"),
    (problem(8192, 8192, 64, DENSE, bias=True), DecodeConfig(2, 4, 2, 3), "a100"),
    (problem(57344, 8192, 16), DecodeConfig(4, 1, 8, 3, 1, 144, rounds=7), "h200"),
    (problem(8192, 28672, 64), DecodeConfig(4, 2, 4, 3, 4, 96, 32, clustered=True), "h200"),
    (problem(57344, 8192, 64), DecodeConfig(4, 8, 1, 4, 1, 128, wgmma=True), "h200"),
    (problem(8192, 8192, 40, DENSE, bias=True), DecodeConfig(2, 4, 2, 4, 2, 64, clustered=True, wgmma=True), "h200"),
    (problem(57344, 8192, 1), DecodeConfig(4, 1, 8, 4, narrow=True), "h200"),
    (problem(57344, 8192, 8), DecodeConfig(4, 1, 16, 4, rounds=7, narrow=True), "h200"),
    (problem(8192, 28672, 16), DecodeConfig(4, 2, 4, 4, 2, 136, clustered=True, narrow=True), "h200"),
    (problem(2560, 2560, 1, op="layer", dtype="fp16"), CONFIGS[3], "a100"),
    (problem(2560, 2560, 1, SIX_EIGHT, op="layer", dtype="fp32"), CONFIGS[2], "b200"),
]


@pytest.mark.compile
@pytest.mark.parametrize(("case", "config", "gpu"), COMPILED, ids=str)
def test_compiles_to_tensor_core_products_without_spills(case: Problem, config: DecodeConfig, gpu: str) -> None:
    profile = by_name(gpu)
    (unit,) = compile_units(case, config)
    found = compile_unit(unit, profile)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.instructions[unit.expects[90 if config.wgmma else 80]] > 0
    assert found.instructions["LDGSTS"] >= config.tiles * (3 if config.narrow else 4) // 4
    assert found.registers <= registers(config, case.tokens, is_sparse(case)) + 8
    assert found.shared_bytes == plan(case.out_features, case.in_features, case.tokens, config).shared_kib * 1024
    assert reject(case, profile, config) is None


@pytest.mark.compile
@pytest.mark.parametrize("case", [problem(57344, 8192, 64), problem(8192, 28672, 16, DENSE), problem(2048, 2048, 16)], ids=str)
def test_defaults_for_many_tokens_multiply_by_warpgroups(case: Problem) -> None:
    config = default_config(case, H200)
    assert config.wgmma
    assert not default_config(case, A100).wgmma
    (unit,) = compile_units(case, config)
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.instructions[unit.expects[90]] > 0


@pytest.mark.parametrize("gpu", [H200, A100], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("tokens", [0, 1, 16, 64])
def test_every_problem_has_an_allowed_default(tokens: int, gpu: Any) -> None:
    for rows, width in ((2560, 2048), (8192, 28672), (130, 64), (128, 128), (1, 4), (16, 256)):
        for sparsity in (TWO_FOUR, DENSE):
            case = problem(rows, width, tokens, sparsity)
            assert reject(case, gpu, default_config(case, gpu)) is None
            assert space.reject(case, gpu, default_config(case, gpu)) is None
    assert "not among" in str(space.reject(problem(64, 64, 1), gpu, DecodeConfig(1, 1, 1, 2)))


def test_long_rows_have_a_default_where_shared_memory_is_small() -> None:
    for tokens in (1, 9, 64):
        case, gpu = problem(1000, 131072, tokens), by_name("l4")
        assert reject(case, gpu, default_config(case, gpu)) is None


def test_a_tuner_is_offered_both_kinds_of_products() -> None:
    kinds = {config.wgmma for config in space.allowed(problem(8192, 8192, 16), H200)}
    assert kinds == {False, True}
    assert {config.wgmma for config in space.allowed(problem(8192, 8192, 16), A100)} == {False}
    assert len(list(space.candidates())) < 2500


def test_the_space_is_refused_with_reasons() -> None:
    case = problem(8192, 8192, 64)
    assert "shared memory" in str(reject(case, H200, DecodeConfig(4, 2, 8, 4)))
    assert "registers" in str(reject(case, H200, DecodeConfig(4, 4, 4, 1, 1, 32)))
    assert "shares" in str(reject(problem(8192, 256, 1), H200, DecodeConfig(1, 1, 1, 1, 8)))
    assert "warps" in str(reject(problem(8192, 256, 1), H200, DecodeConfig(1, 1, 8, 1)))
    assert "padding" in str(reject(problem(64, 8192, 1), H200, DecodeConfig(4, 4, 2, 2)))
    assert "one group" in str(reject(problem(8192, 8192, 16), H200, DecodeConfig(1, 1, 4, 2, group=16)))
    assert "clusters" in str(reject(case, A100, DecodeConfig(2, 1, 4, 2, 4, clustered=True)))
    assert "clusters" in str(reject(case, H200, DecodeConfig(2, 1, 4, 2, 3, clustered=True)))
    assert "at once" in str(reject(case, H200, DecodeConfig(4, 1, 4, 2, rounds=2)))
    assert "warpgroups" in str(reject(case, by_name("b200"), DecodeConfig(1, 4, 2, 2, wgmma=True)))
    assert "warpgroups" in str(reject(case, H200, DecodeConfig(1, 2, 2, 2, wgmma=True)))
    assert "evenly" in str(reject(problem(8192, 2560, 1), H200, DecodeConfig(4, 1, 8, 2, rounds=2)))
    assert "estimated" in str(space.reject(problem(57344, 8192, 1), H200, DecodeConfig(1, 1, 4, 1)))
    assert 3 <= len(list(space.allowed(problem(57344, 8192, 1), H200))) <= 40
    assert "64 tokens" in str(unavailable(problem(64, 64, 65), H200))
    assert "int32" in str(unavailable(problem(64, 64, 1, op="layer", dtype="int32"), H200))
    assert unavailable(problem(64, 64, 64, DENSE), A100) is None


def test_one_and_a_half_bits_are_offered_where_they_pay() -> None:
    large = problem(57344, 8192, 1)
    config = narrow_config(large, H200)
    assert config.narrow
    assert reject(large, H200, config) is None
    assert narrow_space.reject(large, H200, config) is None
    assert not any(config.narrow for config in space.candidates())
    assert all(config.narrow for config in narrow_space.allowed(large, H200))
    assert not default_config(large, H200).narrow, "other kernels read the same packed weight"
    for case in (problem(1, 4, 1), problem(130, 64, 16), problem(2560, 2048, 4), problem(1000, 131072, 9)):
        assert reject(case, H200, narrow_config(case, H200)) is None
    for case, gpu, why in ((large.with_(sparsity=DENSE), H200, "2:4"), (large.with_(tokens=17), H200, "16 tokens"), (large, A100, "sm_90"),
                           (large.with_(op="layer", dtype="int32"), H200, "int32")):
        assert why in str(narrow_unavailable(case, gpu))
    assert narrow_unavailable(large, H200) is None
    for bad in (DecodeConfig(2, 1, 8, 4, narrow=True), DecodeConfig(4, 4, 2, 2, narrow=True, wgmma=True)):
        assert "1.5 bits" in str(reject(large, H200, bad))
    assert "1.5 bits" in str(reject(large.with_(sparsity=DENSE), H200, config))
    assert "1.5 bits" in str(reject(large, by_name("b200"), config))
    assert (NARROW.name, NARROW.op, NARROW_LAYER.op) == ("decode-narrow", "gemm", "layer")


def test_a_weight_in_the_other_layout_is_refused() -> None:
    w, scale = torch.zeros(64, 128, dtype=torch.int8), torch.ones(1)
    for narrow in (False, True):
        weight = decode_weight(w, scale, (64,), TWO_FOUR, narrow)
        assert weight.weight_bytes == 64 * 128 * (3 if narrow else 4) // 16 + 4 * 64
        with pytest.raises(PackError, match="bits"):
            bind(1, weight, None, torch.bfloat16, DecodeConfig(4, 1, 1, 2, narrow=not narrow))
    with pytest.raises(SparsityError, match="2:4"):
        decode_weight(w, scale, (64,), DENSE, narrow=True)


@pytest.mark.parametrize("tokens", [1, 17, 64])
@pytest.mark.parametrize("config", [*CONFIGS, *NARROW_CONFIGS], ids=str)
def test_a_plan_covers_all_of_in_features_within_its_budget(config: DecodeConfig, tokens: int) -> None:
    for rows, width in ((2560, 2048), (8192, 28672), (130, 64)):
        found = plan(rows, width, tokens, config)
        assert found.row_tiles * config.rows >= rows
        assert found.splits * found.share * 128 >= width
        assert config.clustered or width > (found.splits - 1) * found.share * 128
        assert found.groups * found.group >= tokens > (found.groups - 1) * found.group
        assert found.group <= config.group
        assert found.chunks * found.steps * config.warps_k >= found.share
        assert found.pending < found.steps
        assert found.pending < config.depth


def test_weights_and_inputs_that_do_not_fit_are_refused() -> None:
    w, scale = torch.zeros(64, 64, dtype=torch.int8), torch.ones(1)
    with pytest.raises(SparsityError):
        decode_weight(torch.ones_like(w), scale, (64,), TWO_FOUR)
    with pytest.raises(NonFiniteError):
        decode_weight(w, scale * torch.nan, (64,), DENSE)
    with pytest.raises(ShapeError, match="splits"):
        decode_weight(w, scale, (32, 32), DENSE)
    weight = decode_weight(w, scale, (64,), SIX_EIGHT)
    assert not weight.sparse
    for tokens, bias, dtype in ((65, None, torch.bfloat16), (1, torch.ones(63), torch.bfloat16), (1, None, torch.int8)):
        with pytest.raises(ShapeError):
            bind(tokens, weight, bias, dtype, CONFIGS[0])
    with pytest.raises(ShapeError, match="rounds"):
        bind(1, weight, None, torch.bfloat16, DecodeConfig(2, 1, 4, 2, rounds=2))
    with pytest.raises(ShapeError, match="CUDA"):
        bind(1, weight, None, torch.bfloat16, CONFIGS[0])
    case = problem(64, 64, 3)
    with pytest.raises(ShapeError, match="takes LayerInputs"):
        LAYER.prepare(case, make_inputs(case), CONFIGS[0])
    inputs = make_inputs(case)
    assert isinstance(inputs, GemmInputs)
    with pytest.raises(ShapeError, match="x_q"):
        GEMM.prepare(case, replace(inputs, x_q=inputs.x_q[:2]), CONFIGS[0])


def test_a_layer_quantizes_for_itself_where_that_is_cheap() -> None:
    config = CONFIGS[2]
    assert fuses(torch.zeros(1, 2560, dtype=torch.bfloat16), config, 2560)
    assert not fuses(torch.zeros(2, 2560, dtype=torch.bfloat16), config, 2560), "a launch before costs less"
    assert not fuses(torch.zeros(1, 32768, dtype=torch.bfloat16), config, 2560), "128 activations a thread"
    assert not fuses(torch.zeros(1, 2564, dtype=torch.bfloat16), config, 2560), "rows of eight"
    assert not fuses(torch.zeros(2, 2568, dtype=torch.bfloat16)[:1, 1:2561], config, 2560), "rows at 16 bytes"


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("sparsity", "dtype", "op"), [(TWO_FOUR, "int32", "gemm"), (DENSE, "bf16", "gemm"), (SIX_EIGHT, "fp32", "gemm"),
                                                       (TWO_FOUR, "bf16", "layer"), (DENSE, "fp16", "layer")])
def test_exact_on_the_device(config: DecodeConfig, sparsity: Sparsity, dtype: DType, op: Op) -> None:
    cases = (case for case in problems(SHAPES, (sparsity,), dtype, op) if reject(case, H200, config) is None)
    assert_all_right(GEMM if op == "gemm" else LAYER, cases, config, launches=3)


@pytest.mark.gpu
@pytest.mark.parametrize("config", NARROW_CONFIGS, ids=str)
@pytest.mark.parametrize(("dtype", "op"), [("int32", "gemm"), ("fp32", "gemm"), ("bf16", "layer")])
def test_one_and_a_half_bits_exact_on_the_device(config: DecodeConfig, dtype: DType, op: Op) -> None:
    cases = (case for case in problems(SHAPES, (TWO_FOUR,), dtype, op) if reject(case, H200, config) is None)
    assert_all_right(GEMM if op == "gemm" else LAYER, cases, config, launches=3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["equal", "zero_rows", "ties", "outlier", "tiny"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_awkward_activations_through_the_layer(tokens: int, kind: Kind) -> None:
    prepared = assert_right(LAYER, problem(520, 2048, tokens, op="layer"), CONFIGS[3], kind=kind)
    assert prepared.notes["launches"] == (1 if tokens == 1 else 2)


@pytest.mark.gpu
def test_a_token_that_is_not_finite_gives_nan_and_leaves_the_others() -> None:
    case = problem(256, 1024, 3, op="layer")
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, LayerInputs)
    right = LAYER.prepare(case, inputs, CONFIGS[2]).run()["y"].clone()
    inputs.x[1, 77] = torch.inf
    found = LAYER.prepare(case, inputs, CONFIGS[2]).run()["y"]
    assert found[1].isnan().all()
    assert torch.equal(found[::2], right[::2])


@pytest.mark.gpu
@pytest.mark.parametrize("dependent", [False, True])
def test_the_same_bits_a_hundred_times_in_graphs_and_a_workspace_of_zeros(dependent: bool) -> None:
    case, gemms = problem(1152, 4864, 13, splits=(896, 128, 128)), []

    def bound(inputs: Inputs) -> list[Prepared]:
        assert isinstance(inputs, GemmInputs)
        weight = decode_weight(inputs.w_ternary, inputs.w_scale, case.splits, TWO_FOUR)
        gemm = bind(case.tokens, weight, None, torch.bfloat16, CONFIGS[4])
        if dependent and not gemm.dependent:
            pytest.skip("no programmatic dependent launch here")
        gemm = replace(gemm, dependent=dependent)
        gemms.append(gemm)

        def run() -> Outputs:
            gemm.launch(inputs.x_q, inputs.x_scale)
            return {"y": gemm.out}

        return [Prepared(run, {"y": gemm.out})]

    assert_same_bits(GEMM, case, bound, times=10, calls_per_graph=10)
    assert not gemms[0].sums.any()
    assert not gemms[0].counters.any()


@pytest.mark.gpu
def test_activations_written_just_before_are_those_that_are_read() -> None:
    case = problem(2048, 2048, 4)
    inputs = make_inputs(case, "cuda")
    assert isinstance(inputs, GemmInputs)
    weight = decode_weight(inputs.w_ternary, inputs.w_scale, case.splits, TWO_FOUR)
    gemm = bind(4, weight, None, torch.int32, CONFIGS[3])
    gemm.launch(inputs.x_q, inputs.x_scale)
    right, x = gemm.out.clone(), torch.empty_like(inputs.x_q)
    for turn in range(50):
        x.fill_(turn)
        gemm.launch(x, inputs.x_scale)
        x.copy_(inputs.x_q)
        gemm.launch(x, inputs.x_scale)
        assert torch.equal(gemm.out, right)
