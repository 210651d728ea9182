"""Library baselines of a gemm and a layer: judged like any kernel, refused with reasons, and the passes of our own that they lean on."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.errors import ShapeError
from kernels.gpu import by_name
from kernels.inputs import KINDS, GemmInputs, LayerInputs, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import CompileUnit, Kernel
from kernels.problem import DENSE, Problem, Sparsity
from kernels.ternary_gemm import fp8_baselines, scaling
from kernels.ternary_gemm.baselines import KERNELS
from kernels.ternary_gemm.operands import int8_operand, up_to, zero_padded
from reference.compare import Tolerance, compare
from reference.lifting import lift_activation
from reference.quantize import quantize_activation

H200 = by_name("h200")
TWO_FOUR, SIX_EIGHT = Sparsity(2, 4), Sparsity(6, 8)
CUDA_TOKENS = (1, 7, 63, 1000)


def kernel_of(name: str, op: str) -> Kernel:
    return next(kernel for kernel in KERNELS if (kernel.name, kernel.op) == (name, op))


def check(kernel: Kernel, problem: Problem, device: str, kind: str = "random", resolve: bool = False) -> None:
    inputs = make_inputs(problem, device, kind=kind)
    search = kernel.resolve if resolve else None
    config = search(problem, inputs, H200) if search else kernel.default_config(problem, H200)
    prepared = kernel.prepare(problem, inputs, config)
    poison(prepared)
    mismatch = judge(problem, inputs, prepared.run(), kernel)
    assert mismatch is None, f"{kernel}, {problem}, {kind}, {config}: {mismatch}"
    assert prepared.weight_bytes > 0
    assert prepared.footprint > prepared.weight_bytes / 2


def problem_of(kernel: Kernel, sparsity: Sparsity, tokens: int, n: int = 72, k: int = 200, bias: bool = True) -> Problem:
    return Problem(kernel.op, n, k, tokens, sparsity, splits=(n - 24, 16, 8), bias=bias)


def test_names_ops_and_roles() -> None:
    names = {op: [kernel.name for kernel in KERNELS if kernel.op == op] for op in ("gemm", "layer")}
    assert set(names["layer"]) == {"dense-bf16", "dense-int8", "dense-fp8", "cusparselt-int8-scaled", "slidesparse"}
    assert set(names["gemm"]) - set(names["layer"]) == {"cusparselt-int8", "cusparselt-bf16", "cusparselt-fp8"}
    assert all(kernel.kind == "baseline" and kernel.dense == kernel.name.startswith("dense-") for kernel in KERNELS)
    assert {kernel.name for kernel in KERNELS if not kernel.exact} == {"dense-fp8", "cusparselt-int8", "cusparselt-fp8"}


@pytest.mark.parametrize("tokens", [1, 7, 33])
@pytest.mark.parametrize(("name", "op"), [("dense-bf16", "gemm"), ("dense-bf16", "layer"), ("dense-fp8", "gemm")])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_baselines_are_right_on_the_cpu(name: str, op: str, tokens: int, kind: str) -> None:
    kernel = kernel_of(name, op)
    check(kernel, problem_of(kernel, TWO_FOUR, tokens), "cpu", kind)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", ["gemm", "layer"])
def test_dense_int8_is_right_in_the_interpreter(op: str, kind: str) -> None:
    kernel = kernel_of("dense-int8", op)
    for tokens in (7, 33):
        check(kernel, problem_of(kernel, SIX_EIGHT, tokens), "cpu", kind)


def exact_codes(tokens: int, in_features: int) -> torch.Tensor:
    """bf16 activations that e4m3 holds exactly: the interpreter loses the carry of fp8 roundings, hardware does not."""
    codes = torch.randint(-15, 16, (tokens, in_features), generator=torch.Generator().manual_seed(3)).bfloat16() * 16
    codes[:, 5] = -fp8_baselines.E4M3_MAX
    return codes / 2.0 ** torch.arange(tokens)[:, None].bfloat16()


@pytest.mark.interpreter
@pytest.mark.parametrize("scaling_of_it", ["rowwise", "pass"])
def test_fp8_layer_in_the_interpreter(scaling_of_it: str) -> None:
    kernel = kernel_of("dense-fp8", "layer")
    problem = problem_of(kernel, DENSE, 9)
    inputs = make_inputs(problem)
    assert isinstance(inputs, LayerInputs)
    inputs = replace(inputs, x=exact_codes(9, problem.in_features))
    prepared = kernel.prepare(problem, inputs, kernel.space.from_dict({"scaling": scaling_of_it}))
    poison(prepared)
    assert judge(problem, inputs, prepared.run(), kernel) is None
    assert set(prepared.buffers) == ({"y"} if scaling_of_it == "pass" else set())


def test_dense_int8_gives_raw_accumulators_where_they_are_asked_for() -> None:
    kernel = kernel_of("dense-int8", "gemm")
    check(kernel, problem_of(kernel, TWO_FOUR, 7, bias=False).with_(dtype="int32"), "cpu")


def test_a_wrong_weight_is_noticed() -> None:
    for name in ("dense-bf16", "dense-fp8"):
        kernel = kernel_of(name, "gemm")
        problem = problem_of(kernel, TWO_FOUR, 7)
        inputs = make_inputs(problem)
        assert isinstance(inputs, GemmInputs)
        wrong = replace(inputs, w_ternary=inputs.w_ternary.roll(1, 1))
        outputs = kernel.prepare(problem, wrong, kernel.default_config(problem, H200)).run()
        assert judge(problem, inputs, outputs, kernel) is not None


def test_tokens_are_padded_and_the_padding_is_recorded() -> None:
    kernel = kernel_of("dense-fp8", "gemm")
    problem = problem_of(kernel, TWO_FOUR, 7)
    for config, rows in ((fp8_baselines.Fp8Config(), 32), (fp8_baselines.Fp8Config(tokens=7), 7)):
        prepared = kernel.prepare(problem, make_inputs(problem), config)
        assert prepared.notes["padded_tokens"] == rows
        assert prepared.run()["y"].shape == (7, 72)


@pytest.mark.parametrize(
    ("name", "op", "change", "gpu", "words"),
    [
        ("dense-bf16", "gemm", {"tokens": 0}, "h200", "0 tokens"),
        ("dense-int8", "layer", {"tokens": 0}, "h200", "0 tokens"),
        ("dense-bf16", "gemm", {"dtype": "fp16"}, "h200", "fp16"),
        ("dense-fp8", "gemm", {"dtype": "fp32"}, "h200", "fp32"),
        ("dense-fp8", "layer", {}, "a100", "sm_89"),
    ],
)
def test_refusals_name_their_reason(name: str, op: str, change: dict[str, object], gpu: str, words: str) -> None:
    kernel = kernel_of(name, op)
    problem = problem_of(kernel, TWO_FOUR, 7)
    assert words in (kernel.unavailable(problem.with_(**change), by_name(gpu)) or "")
    assert kernel.unavailable(problem, H200) is None


def test_inputs_of_another_op_are_refused() -> None:
    problem = Problem("prepare", 8, 8, 0, TWO_FOUR)
    for kernel in (kernel_of("dense-bf16", "gemm"), kernel_of("dense-fp8", "gemm"), kernel_of("dense-fp8", "layer")):
        with pytest.raises(ShapeError, match="not the inputs of"):
            kernel.prepare(problem.with_(op=kernel.op), make_inputs(problem), kernel.default_config(problem, H200))


def test_padding_helpers() -> None:
    assert [up_to(size, 8) for size in (0, 1, 8, 9)] == [0, 8, 8, 16]
    small = torch.arange(6).view(2, 3)
    padded = zero_padded(small, 4, 5)
    assert torch.equal(padded[:2, :3], small)
    assert padded.sum() == small.sum()
    assert zero_padded(small, 2, 3).data_ptr() == small.data_ptr()


def test_int8_operands_of_a_gemm_plain_padded_and_lifted() -> None:
    problem = Problem("gemm", 16, 40, 5, SIX_EIGHT)
    inputs = make_inputs(problem)
    assert isinstance(inputs, GemmInputs)
    for rows in (5, 16):
        operand = int8_operand(problem, inputs, rows)
        operand.load()
        assert operand.x_q.is_contiguous()
        assert torch.equal(operand.x_q, zero_padded(inputs.x_q, rows, 128))
    lifted = int8_operand(problem, inputs, 16, lifted=True)
    assert torch.equal(lifted.x_q[:5, :60], lift_activation(inputs.x_q, 8))
    assert lifted.x_q.shape == (16, 128)


@pytest.mark.interpreter
@pytest.mark.parametrize("lifted", [False, True])
def test_int8_operands_of_a_layer_are_quantized_in_place(lifted: bool) -> None:
    problem = Problem("layer", 16, 40, 5, SIX_EIGHT)
    inputs = make_inputs(problem)
    assert isinstance(inputs, LayerInputs)
    operand = int8_operand(problem, inputs, 16, lifted)
    operand.load()
    x_q, x_scale = quantize_activation(inputs.x)
    expected = lift_activation(x_q, 8) if lifted else x_q
    assert torch.equal(operand.x_q[:5, : expected.shape[1]], expected)
    assert not operand.x_q[:, expected.shape[1] :].any()
    assert compare(operand.x_scale, x_scale.double(), Tolerance(1)) is None


def scaled(acc: torch.Tensor, dtype: torch.dtype, bias: bool) -> None:
    device, (tokens, out_features) = acc.device, acc.shape
    generator = torch.Generator(str(device)).manual_seed(1)
    x_scale, row_scale, shift = (torch.rand(size, generator=generator, device=device) for size in (tokens, out_features, out_features))
    y = torch.full((tokens, out_features + 8), float("nan"), dtype=dtype, device=device)[:, :out_features]
    scaling.launch_scaling(acc, x_scale, row_scale, shift if bias else None, y)
    product = acc.double() * x_scale.double()[:, None] * row_scale.double()
    expected = product + shift.double() if bias else product
    absolute = (product.abs() + shift.double()) * 2**-22
    assert compare(y, expected, Tolerance(1, absolute)) is None


def accumulators(tokens: int, out_features: int, transposed: bool, dtype: torch.dtype, device: str) -> torch.Tensor:
    shape = (out_features + 8, tokens + 16) if transposed else (tokens + 16, out_features + 8)
    acc = torch.randint(-100_000, 100_000, shape, device=device).to(dtype)
    return (acc.t() if transposed else acc)[:tokens, :out_features]


@pytest.mark.interpreter
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scaling_is_exact_in_the_interpreter(transposed: bool, dtype: torch.dtype) -> None:
    for tokens, out_features, bias in ((1, 8, True), (7, 520, False), (65, 72, True)):
        scaled(accumulators(tokens, out_features, transposed, torch.int32, "cpu") // 1000, dtype, bias)


def quantized(x: torch.Tensor) -> None:
    tokens, in_features = x.shape
    x_scale = torch.empty(tokens, device=x.device)
    x_q = torch.empty((tokens, up_to(in_features, 128)), dtype=torch.float8_e4m3fn, device=x.device)[:, :in_features]
    fp8_baselines.launch_quantize_tokens(x, x_q, x_scale)
    absmax = x.float().abs().amax(1).clamp(min=1e-5)
    largest = torch.full_like(absmax, 448.0)
    assert torch.equal(x_scale, absmax / largest)
    assert torch.equal(x_q.float(), (x.float() * (largest / absmax)[:, None]).to(torch.float8_e4m3fn).float())


@pytest.mark.interpreter
def test_fp8_quantizer_in_the_interpreter() -> None:
    quantized(exact_codes(3, 5000))
    quantized(torch.zeros(2, 40, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_fp8_quantizer_on_the_gpu(kind: str) -> None:
    inputs = make_inputs(Problem("layer", 8, 18_944, 63, DENSE), "cuda", kind=kind)
    assert isinstance(inputs, LayerInputs)
    quantized(inputs.x)


def test_scaling_refuses_what_does_not_fit() -> None:
    acc, scale = torch.zeros(4, 6, dtype=torch.int32), torch.ones(4)
    with pytest.raises(ShapeError, match="do not fit"):
        scaling.launch_scaling(acc, scale, torch.ones(5), None, torch.empty(4, 6))
    with pytest.raises(ShapeError, match="do not fit"):
        scaling.launch_scaling(acc, scale, torch.ones(6), None, torch.empty(6, 4).t())
    with pytest.raises(ShapeError, match="neither rows nor columns"):
        scaling.launch_scaling(torch.zeros(8, 12, dtype=torch.int32)[::2, ::2], scale, torch.ones(6), None, torch.empty(4, 6))
    with pytest.raises(ShapeError, match="does not fit"):
        fp8_baselines.launch_quantize_tokens(torch.empty(2, 4), torch.empty(2, 5), torch.empty(2))


def test_row_scales_follow_the_splits() -> None:
    assert scaling.row_scales(torch.tensor([1.0, 2.0, 4.0]), (2, 1, 3)).tolist() == [1, 1, 2, 4, 4, 4]


def machine_code(unit: CompileUnit, capability: int) -> tuple[str, str]:
    """The machine code of a unit and its resource usage."""
    names = list(unit.signature)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in unit.divisible}
    source = ASTSource(unit.function, dict(unit.signature), {(names.index(n),): value for n, value in unit.constexprs.items()}, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(unit.options))
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        sass = subprocess.run([tools / "cuobjdump", "-sass", cubin.name], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", cubin.name], capture_output=True, text=True, check=True)
    return sass, usage.stdout + usage.stderr


@pytest.mark.compile
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_scaling_compiles_wide_and_without_spills(capability: int) -> None:
    for unit in (
        *scaling.compile_units(torch.int32, torch.bfloat16, True, transposed=False),
        *scaling.compile_units(torch.int32, torch.bfloat16, False, transposed=True),
    ):
        sass, usage = machine_code(unit, capability)
        assert "LDG.E.128" in sass
        assert "STG.E.128" in sass or "STG.E.64" in sass
        assert "STACK:0" in usage
        assert "LOCAL:0" in usage


@pytest.mark.compile
@pytest.mark.parametrize("capability", [89, 90, 100])
def test_fp8_quantizer_compiles_without_spills(capability: int) -> None:
    kernel = kernel_of("dense-fp8", "layer")
    problem = problem_of(kernel, DENSE, 64)
    unit = kernel.compile_units(problem, kernel.default_config(problem, H200))[0]
    sass, usage = machine_code(unit, capability)
    assert "F2FP" in sass
    assert "LDG.E.128" in sass
    assert "STACK:0" in usage
    assert "LOCAL:0" in usage


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", CUDA_TOKENS)
@pytest.mark.parametrize("op", ["gemm", "layer"])
@pytest.mark.parametrize("name", ["dense-bf16", "dense-int8", "dense-fp8"])
def test_dense_baselines_are_right_on_the_gpu(name: str, op: str, tokens: int) -> None:
    kernel = kernel_of(name, op)
    for kind in KINDS:
        check(kernel, problem_of(kernel, SIX_EIGHT, tokens, n=1160, k=904), "cuda", kind)
    check(kernel, problem_of(kernel, TWO_FOUR, tokens, n=2560, k=2048, bias=False), "cuda", resolve=True)


@pytest.mark.gpu
def test_fp8_layer_scales_both_ways_on_the_gpu() -> None:
    kernel = kernel_of("dense-fp8", "layer")
    problem = problem_of(kernel, DENSE, 63, n=1152, k=896)
    inputs = make_inputs(problem, "cuda")
    for config in (fp8_baselines.Fp8Config("rowwise"), fp8_baselines.Fp8Config("pass"), fp8_baselines.Fp8Config("pass", 63)):
        mismatch = judge(problem, inputs, kernel.prepare(problem, inputs, config).run(), kernel)
        assert mismatch is None, f"{config}: {mismatch}"


@pytest.mark.gpu
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scaling_is_exact_on_the_gpu(transposed: bool, dtype: torch.dtype) -> None:
    for tokens, out_features in ((1, 8), (63, 1160), (1000, 904)):
        for bias in (False, True):
            scaled(accumulators(tokens, out_features, transposed, torch.int32, "cuda") // 1000, dtype, bias)


@pytest.mark.gpu
def test_scaling_of_more_than_2_to_the_31_elements() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 20 << 30:
        pytest.skip("needs 13 GiB of device memory")
    acc = torch.full((65_600, 32_768), 3, dtype=torch.int32, device="cuda")
    y = torch.zeros(acc.shape, dtype=torch.bfloat16, device="cuda")
    ones = torch.ones(65_600, device="cuda")
    scaling.launch_scaling(acc, ones, ones[:32_768], None, y)
    assert float(y.min()) == float(y.max()) == 3
