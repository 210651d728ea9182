from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.inputs import KINDS, GemmInputs, Kind, make_inputs, pad_rows
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.packed import PackedTernary, pack
from kernels.problem import DENSE, Problem, Sparsity
from kernels.ternary_gemm import layer
from kernels.ternary_gemm.dense_config import (
    INT8_TILES,
    MIN_SHARED_BYTES,
    TILES,
    DenseConfig,
    default_config,
    int8_default_config,
    int8_space,
    shared_bytes,
    space,
)
from kernels.ternary_gemm.dense_triton import KERNELS, MAX_IN_FEATURES, aligned_rows, is_aligned, refusal, ternary_gemm
from reference.linear import accumulate

TWO_OF_FOUR = Sparsity(2, 4)
PACKED, INT8 = KERNELS
LAYER = layer.KERNELS
SMALL = DenseConfig(64, 16, 256, 4, 2, group=2)
SHARED = replace(SMALL, split_k=2)
LARGE = DenseConfig(64, 64, 512, 4, 2, group=1)
UNTRANSPOSED = replace(LARGE, unpack="arith", transposed=False)


def gemm(n: int, k: int, t: int, dtype: str = "int32", **changes: object) -> Problem:
    return Problem("gemm", n, k, t, TWO_OF_FOUR, dtype=dtype, **changes)  # type: ignore[arg-type]


def check(kernel: Kernel, problem: Problem, config: DenseConfig, device: str, kind: Kind = "random", times: int = 1) -> None:
    """Judges every one of the repeated runs, each on poisoned outputs; repetitions must give equal bits."""
    inputs = make_inputs(problem, device, seed=3, kind=kind)
    prepared = kernel.prepare(problem, inputs, config)
    first: torch.Tensor | None = None
    for _ in range(times):
        poison(prepared)
        outputs = prepared.run()
        mismatch = judge(problem, inputs, outputs, kernel) if first is None else None
        assert mismatch is None, f"{problem} {config} {kind}: {mismatch}"
        first = outputs["y"].clone() if first is None else first
        assert torch.equal(first, outputs["y"])


@pytest.mark.interpreter
@pytest.mark.parametrize("config", [SMALL, SHARED, UNTRANSPOSED, replace(UNTRANSPOSED, block_k=256, split_k=2)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("n", "k", "t"), [(7, 256, 1), (130, 320, 7), (65, 896, 63), (1, 20, 2)])
def test_accumulators_are_exact(kernel: Kernel, n: int, k: int, t: int, config: DenseConfig) -> None:
    check(kernel, gemm(n, k, t), config, "cpu")


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("config", [LARGE, SHARED, UNTRANSPOSED], ids=str)
def test_scales_splits_and_bias(config: DenseConfig, dtype: str) -> None:
    check(PACKED, gemm(70, 320, 7, dtype, splits=(33, 1, 36), bias=True), config, "cpu", times=2)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", KINDS)
def test_awkward_inputs(kind: Kind) -> None:
    check(PACKED, gemm(7, 320, 7, "bf16", splits=(3, 4)), SMALL, "cpu", kind)
    check(INT8, gemm(7, 320, 7, "bf16", splits=(3, 4)), SMALL, "cpu", kind)


@pytest.mark.interpreter
@pytest.mark.parametrize("sparsity", [DENSE, Sparsity(6, 8), Sparsity(8, 10), Sparsity(4, 16)], ids=str)
def test_any_sparsity(sparsity: Sparsity) -> None:
    check(PACKED, replace(gemm(9, 80, 3, "bf16"), sparsity=sparsity), SMALL, "cpu")


@pytest.mark.interpreter
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_no_tokens(kernel: Kernel) -> None:
    problem = gemm(64, 256, 0, "bf16")
    assert kernel.prepare(problem, make_inputs(problem), SHARED).run()["y"].shape == (0, 64)


@pytest.mark.interpreter
def test_largest_accumulators_do_not_overflow() -> None:
    ones = torch.ones((2, MAX_IN_FEATURES), dtype=torch.int8)
    packed = pack(ones, torch.ones(1), (2,), DENSE)
    result = ternary_gemm(torch.tensor([[127], [-127]], dtype=torch.int8).expand(2, MAX_IN_FEATURES), torch.ones(2), packed,
                          out_dtype=torch.int32, config=DenseConfig(64, 16, 4096, 4, 2))
    assert result.tolist() == [[127 * MAX_IN_FEATURES] * 2, [-127 * MAX_IN_FEATURES] * 2]


def layouts(x_q: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in memory as callers may have them."""
    tokens, features = x_q.shape
    wide = torch.full((tokens, features + 37), 99, dtype=torch.int8, device=x_q.device)
    wide[:, 5 : 5 + features] = x_q
    strided = torch.full((tokens, 2 * features), 99, dtype=torch.int8, device=x_q.device)
    strided[:, ::2] = x_q
    return {"contiguous": x_q.contiguous(), "padded": pad_rows(x_q), "offset": wide[:, 5 : 5 + features], "strided": strided[:, ::2],
            "transposed": x_q.t().contiguous().t()}


def check_layouts(device: str) -> None:
    problem = gemm(9, 300, 5)
    inputs = make_inputs(problem, device)
    assert isinstance(inputs, GemmInputs)
    packed = pack(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity)
    expected = accumulate(inputs.x_q, inputs.w_ternary)
    for name, x_q in layouts(inputs.x_q).items():
        assert torch.equal(ternary_gemm(x_q, inputs.x_scale, packed, out_dtype=torch.int32).long(), expected), name
        prepared = PACKED.prepare(problem, replace(inputs, x_q=x_q), SMALL)
        assert torch.equal(prepared.run()["y"].long(), expected), name
        assert prepared.notes["copies_x"] is (name != "padded")


@pytest.mark.interpreter
def test_any_memory_layout_of_x() -> None:
    check_layouts("cpu")


def test_rows_are_copied_only_where_they_must() -> None:
    padded = pad_rows(torch.ones((3, 300), dtype=torch.int8))
    assert is_aligned(padded)
    assert aligned_rows(padded).data_ptr() == padded.data_ptr()
    contiguous = torch.ones((3, 304), dtype=torch.int8)
    assert is_aligned(contiguous)
    short = torch.ones(2 * 304 + 300, dtype=torch.int8).as_strided((3, 300), (304, 1))
    assert not is_aligned(short), "the last row's padding lies behind the allocation"
    assert torch.equal(aligned_rows(short), short)


def operands(n: int = 8, k: int = 64, t: int = 4) -> tuple[torch.Tensor, torch.Tensor, PackedTernary]:
    packed = pack(torch.zeros((n, k), dtype=torch.int8), torch.ones(1), (n,), TWO_OF_FOUR)
    return torch.zeros((t, k), dtype=torch.int8), torch.ones(t), packed


def test_what_does_not_fit_is_refused() -> None:
    x_q, x_scale, packed = operands()
    with pytest.raises(ShapeError, match=r"x_q is torch.int8 \[4, 60\].* torch.int8 \[tokens, 64\] on cpu is needed"):
        ternary_gemm(x_q[:, :60], x_scale, packed)
    with pytest.raises(ShapeError, match=r"x_q is torch.int32"):
        ternary_gemm(x_q.int(), x_scale, packed)
    with pytest.raises(ShapeError, match=r"x_scale is torch.float32 \[3\]"):
        ternary_gemm(x_q, x_scale[:3], packed)
    with pytest.raises(ShapeError, match=r"x_scale .*strides \[2\]"):
        ternary_gemm(x_q, torch.ones(8)[::2], packed)
    with pytest.raises(ShapeError, match=r"bias is torch.float64"):
        ternary_gemm(x_q, x_scale, packed, bias=torch.zeros(8).double())
    with pytest.raises(ShapeError, match="on meta"):
        ternary_gemm(x_q.to("meta"), x_scale, packed)
    with pytest.raises(ShapeError, match=r"out_dtype is torch.int8"):
        ternary_gemm(x_q, x_scale, packed, out_dtype=torch.int8)
    wide = operands(1, MAX_IN_FEATURES + 256, 1)
    with pytest.raises(ShapeError, match="at most 131072"):
        ternary_gemm(*wide)


@pytest.mark.compile
def test_tensors_on_the_cpu_are_refused_outside_of_the_interpreter() -> None:
    with pytest.raises(ShapeError, match="a CUDA device is needed"):
        ternary_gemm(*operands())


SHAPES = [(3840, 2560), (1152, 896), (896, 4864), (37888, 3584), (3584, 18944), (7, 20), (2560, 6912)]


@pytest.mark.parametrize("gpu", ["a100", "rtx4090", "h200", "b200"])
@pytest.mark.parametrize("tokens", [0, 1, 16, 64, 65, 512, 16384])
def test_default_configs_lie_in_the_space(gpu: str, tokens: int) -> None:
    for n, k in SHAPES:
        problem = gemm(n, k, tokens)
        assert space.reject(problem, by_name(gpu), default_config(problem, by_name(gpu))) is None
        assert int8_space.reject(problem, by_name(gpu), int8_default_config(problem, by_name(gpu))) is None


def test_the_space_is_small_enough_to_search() -> None:
    for n, k in SHAPES:
        for tokens in (1, 128, 16384):
            assert 1 <= len(list(space.allowed(gemm(n, k, tokens), by_name("h200")))) <= 36


def test_refusals_say_why() -> None:
    h200, small = by_name("h200"), gemm(64, 256, 1)
    assert "not one worth trying" in str(space.reject(small, h200, DenseConfig(128, 256, 256, 8, 3)))
    assert "no 16 blocks" in str(space.reject(small, h200, DenseConfig(64, 16, 512, 4, 4, split_k=16)))
    tight = replace(h200, shared_bytes=100_000)
    assert "shared memory" in str(int8_space.reject(gemm(4096, 4096, 4096), tight, DenseConfig(128, 256, 128, 8, 4)))
    assert "131072" in str(refusal(gemm(8, MAX_IN_FEATURES + 4, 1), h200))
    assert "sm_80" in str(refusal(small, replace(h200, capability=75)))
    assert str(MIN_SHARED_BYTES) in str(refusal(small, replace(h200, shared_bytes=49152)))


@pytest.mark.compile
@pytest.mark.parametrize("gpu", ["a100", "h200", "b200"])
@pytest.mark.parametrize("tokens", [1, 4096])
def test_default_configs_compile_to_tensor_cores_without_spills(gpu: str, tokens: int) -> None:
    problem, device = gemm(2560, 6912, tokens, "bf16"), by_name(gpu)
    units = [unit for kernel in KERNELS for unit in kernel.compile_units(problem, kernel.default_config(problem, device))]
    assert len(units) == len(KERNELS)
    for unit in units:
        compiled = compile_unit(unit, device)
        assert isinstance(compiled, Compiled), compiled
        assert compiled.spills == 0
        config = DenseConfig(*(unit.constexprs[name] for name in ("BLOCK_N", "BLOCK_T", "BLOCK_K")), unit.options["num_warps"],
                             unit.options["num_stages"])
        assert compiled.shared_bytes == shared_bytes(config, device.capability, unit.constexprs["PACKED"])
        wanted = unit.expects[max(least for least in unit.expects if least <= device.capability)]
        assert any(name.startswith(wanted) for name in compiled.instructions), compiled.instructions


AWKWARD = [(130, 896, 7), (1000, 1032, 63), (77, 4100, 1000), (264, 2184, 1)]
H200 = by_name("h200")


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_is_exact_on_awkward_shapes(tile: tuple[int, int, int, int, int]) -> None:
    plain = DenseConfig(*tile)
    for n, k, t in AWKWARD:
        check(PACKED, gemm(n, k, t), plain, "cuda", times=2)
        check(PACKED, gemm(n, k, t), replace(plain, split_k=4, group=1), "cuda", times=2)
        if plain.block_t == 256:
            check(PACKED, gemm(n, k, t), replace(plain, group=1, transposed=False), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("tile", INT8_TILES, ids=str)
def test_every_int8_tile_is_exact_on_awkward_shapes(tile: tuple[int, int, int, int, int]) -> None:
    for n, k, t in AWKWARD:
        check(INT8, gemm(n, k, t), DenseConfig(*tile), "cuda", times=2)


@pytest.mark.gpu
@pytest.mark.parametrize("transposed", [True, False])
def test_assembly_and_arithmetic_unpack_the_same(transposed: bool) -> None:
    for unpack in ("asm", "arith"):
        config = DenseConfig(128, 128, 256, 8, 3, unpack=unpack, transposed=transposed)
        check(PACKED, gemm(1000, 2560, 130), config, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_on_the_device(kind: Kind, dtype: str) -> None:
    problem = gemm(1001, 2568, 63, dtype, splits=(500, 300, 201), bias=True)
    for kernel in KERNELS:
        for t in (1, 63, 1000):
            check(kernel, problem.with_(tokens=t), kernel.default_config(problem.with_(tokens=t), by_name("h200")), "cuda", kind)


@pytest.mark.gpu
@pytest.mark.parametrize("split_k", [2, 4, 8, 16])
def test_shared_tiles_give_the_same_bits_every_time(split_k: int) -> None:
    for tile in ((64, 16, 512, 4, 4), (128, 128, 256, 4, 3), (256, 128, 256, 8, 3)):
        check(PACKED, gemm(2560, 6912, 130, "bf16"), DenseConfig(*tile, split_k=split_k, group=1), "cuda", times=20)


@pytest.mark.gpu
def test_a_captured_graph_replays_split_k() -> None:
    problem = gemm(2560, 6912, 16)
    inputs = make_inputs(problem, "cuda")
    assert isinstance(inputs, GemmInputs)
    prepared = PACKED.prepare(problem, inputs, DenseConfig(64, 16, 512, 4, 4, split_k=8, group=1))
    prepared.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = prepared.run()
    for _ in range(3):
        poison(prepared)
        graph.replay()
        assert judge(problem, inputs, outputs, PACKED) is None


@pytest.mark.gpu
def test_more_than_two_to_the_31_outputs() -> None:
    problem = gemm(32768, 64, 70000, "bf16")
    check(PACKED, problem, default_config(problem, by_name("h200")), "cuda")


@pytest.mark.gpu
def test_more_than_two_to_the_31_inputs() -> None:
    problem = gemm(64, 32768, 70000, "bf16")
    check(PACKED, problem, default_config(problem, by_name("h200")), "cuda")


@pytest.mark.gpu
def test_any_memory_layout_of_x_on_the_device() -> None:
    check_layouts("cuda")


@pytest.mark.interpreter
@pytest.mark.parametrize("kernel", LAYER, ids=str)
@pytest.mark.parametrize("tokens", [0, 7])
def test_layer_quantizes_and_multiplies(kernel: Kernel, tokens: int) -> None:
    bias = kernel.op == "layer"
    problem = Problem(kernel.op, 130, 320, tokens, TWO_OF_FOUR, splits=(100, 30), bias=bias)
    for kind in KINDS:
        check(kernel, problem, SMALL, "cpu", kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", LAYER, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 63, 1000])
def test_layer_on_the_device(kernel: Kernel, tokens: int) -> None:
    for sparsity in (DENSE, TWO_OF_FOUR, Sparsity(6, 8)):
        problem = Problem(kernel.op, 1000, 2568, tokens, sparsity, splits=(500, 500))
        for kind in KINDS:
            check(kernel, problem, kernel.default_config(problem, H200), "cuda", kind)


@pytest.mark.gpu
def test_one_row_one_token_on_the_device() -> None:
    for config in (SMALL, SHARED, LARGE):
        check(PACKED, gemm(1, 256, 1), config, "cuda")
        check(INT8, gemm(1, 20, 3), config, "cuda")
