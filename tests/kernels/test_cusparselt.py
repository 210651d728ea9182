"""cuSPARSELt baselines: everything around the library on the CPU, with a double that keeps its rules, and the library itself on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.gpu import by_name
from kernels.inputs import KINDS, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.problem import DENSE, Problem, Sparsity
from kernels.space import config_to_dict
from kernels.ternary_gemm import cusparselt, operands
from kernels.ternary_gemm.cusparselt import CuSparseLtConfig, SparseOperands
from kernels.ternary_gemm.sparse_baselines import KERNELS

H200 = by_name("h200")
TWO_FOUR, SIX_EIGHT = Sparsity(2, 4), Sparsity(6, 8)
RAW = ("cusparselt-int8", "cusparselt-bf16", "cusparselt-fp8")
SCALED = (("cusparselt-int8-scaled", "gemm"), ("cusparselt-int8-scaled", "layer"), ("slidesparse", "gemm"), ("slidesparse", "layer"))
FASTEST = {True: 11, False: 7}
"""Algorithm that the double's search finds, by order of the result."""

needs_library = pytest.mark.skipif(cusparselt.version() is None, reason="this torch has no cuSPARSELt")


def kernel_of(name: str, op: str) -> Kernel:
    return next(kernel for kernel in KERNELS if (kernel.name, kernel.op) == (name, op))


def problem_of(kernel: Kernel, tokens: int, n: int = 72, k: int = 200, bias: bool = True) -> Problem:
    sparsity = SIX_EIGHT if kernel.name == "slidesparse" else TWO_FOUR
    return Problem(kernel.op, n, k, tokens, sparsity, splits=(n - 24, 16, 8), bias=bias)


class Double:
    """A stand-in for the library: the same entry points and refusals, the arithmetic in float64, the weight kept as it came."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.refused_order: bool | None = None

    def compress(self, weight: torch.Tensor) -> torch.Tensor:
        assert weight.is_contiguous()
        assert weight.shape[0] % 32 == weight.shape[1] % 32 == 0
        assert ((weight.float() != 0).view(weight.shape[0], -1, 4).sum(2) <= 2).all(), "more than two non-zeros in four"
        return weight.clone()

    def multiply(self, compressed: torch.Tensor, dense: torch.Tensor, **options: Any) -> torch.Tensor:
        self.calls.append(options)
        assert dense.t().is_contiguous(), "the library reads rows one after the other, whatever the strides say"
        assert dense.dtype == compressed.dtype
        assert dense.shape[1] % 16 == 0
        assert dense.shape[0] == compressed.shape[1]
        allowed = {torch.int8: (torch.bfloat16, torch.int32), torch.float8_e4m3fn: (torch.bfloat16,), torch.bfloat16: (None,)}
        assert options["out_dtype"] in allowed[dense.dtype]
        result = (compressed.double() @ dense.double()).to(options["out_dtype"] or dense.dtype)
        return result.t().contiguous() if options["transpose_result"] else result

    def search(self, compressed: torch.Tensor, dense: torch.Tensor, *options: Any) -> tuple[int, int, int, int]:
        bias, alpha, out, order = options
        assert (bias, alpha) == (None, None)
        if order == self.refused_order:
            raise RuntimeError("CUDA error: operation not supported\nand more")
        self.multiply(compressed, dense, out_dtype=out, transpose_result=order)
        return FASTEST[order], 2, 1, 40

    def search_of_old(self, compressed: torch.Tensor, dense: torch.Tensor, out_dtype: Any, transpose_result: bool) -> int:
        return self.search(compressed, dense, None, None, out_dtype, transpose_result)[0]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Double:
    double = Double()
    monkeypatch.setattr(torch, "_cslt_compress", double.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", double.multiply)
    monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace(mm_search=double.search), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(cusparselt, "version", lambda: 800)
    return double


def check(kernel: Kernel, problem: Problem, config: Any, kind: str = "random", device: str = "cpu") -> None:
    inputs = make_inputs(problem, device, kind=kind)
    prepared = kernel.prepare(problem, inputs, config)
    poison(prepared)
    mismatch = judge(problem, inputs, prepared.run(), kernel)
    assert mismatch is None, f"{kernel}, {problem}, {kind}, {config}: {mismatch}"
    assert prepared.footprint > prepared.weight_bytes > 0
    assert prepared.notes["alg_id"] == config.alg_id
    assert prepared.notes["padded_tokens"] == -(-problem.tokens // 16) * 16


@pytest.mark.parametrize("transpose_result", [False, True])
@pytest.mark.parametrize("name", RAW)
def test_raw_products_are_right_around_the_library(library: Double, name: str, transpose_result: bool) -> None:
    kernel = kernel_of(name, "gemm")
    for tokens, kind in ((1, "random"), (7, "zero_rows"), (32, "outlier"), (33, "ties")):
        check(kernel, problem_of(kernel, tokens), CuSparseLtConfig(3, 2, 1, transpose_result), kind)
    expected = {"alg_id": 3, "split_k": 2, "split_k_mode": 1, "transpose_result": transpose_result}
    assert {key: library.calls[-1][key] for key in expected} == expected


@pytest.mark.parametrize("name", ["cusparselt-int8-scaled", "slidesparse"])
def test_accumulators_are_right_around_the_library(library: Double, name: str) -> None:
    kernel = kernel_of(name, "gemm")
    for transpose_result in (False, True):
        for kind in KINDS:
            problem = problem_of(kernel, 7, bias=False).with_(dtype="int32")
            check(kernel, problem, CuSparseLtConfig(transpose_result=transpose_result), kind)


@pytest.mark.interpreter
@pytest.mark.parametrize("transpose_result", [False, True])
@pytest.mark.parametrize(("name", "op"), SCALED)
def test_scaled_products_are_right_around_the_library(library: Double, name: str, op: str, transpose_result: bool) -> None:
    kernel = kernel_of(name, op)
    for tokens, kind in ((7, "random"), (32, "outlier"), (33, "zero_rows")):
        check(kernel, problem_of(kernel, tokens), CuSparseLtConfig(transpose_result=transpose_result), kind)


@pytest.mark.parametrize("sparsity", ["4:6", "6:8", "8:10"])
def test_every_lifted_sparsity_becomes_2_4(library: Double, sparsity: str) -> None:
    kernel = kernel_of("slidesparse", "gemm")
    problem = Problem("gemm", 40, 240, 5, Sparsity.parse(sparsity), dtype="int32")
    check(kernel, problem, CuSparseLtConfig())


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_the_faster_order_is_taken(library: Double, monkeypatch: pytest.MonkeyPatch, faster: bool, old: bool) -> None:
    if old:
        monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace())
        monkeypatch.setattr(torch, "_cslt_sparse_mm_search", library.search_of_old)

    def timed(run: Any) -> float:
        run()
        return 1.0 if library.calls[-1]["transpose_result"] == faster else 2.0

    monkeypatch.setattr(operands, "graph_microseconds", timed)
    for kernel in (kernel_of("cusparselt-int8", "gemm"), kernel_of("slidesparse", "gemm")):
        problem = problem_of(kernel, 7, bias=False).with_(dtype="bf16" if kernel.name in RAW else "int32")
        assert kernel.resolve
        config = kernel.resolve(problem, make_inputs(problem), H200)
        assert (config.alg_id, config.transpose_result) == (FASTEST[faster], faster)
        assert (config.split_k, config.split_k_mode) == ((1, -1) if old else (2, 1))
        assert config.search_seconds >= 0
        assert config.refused == ""
        check(kernel, problem, config)


def test_an_order_that_the_library_refuses_is_named(library: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "graph_microseconds", lambda run: 1.0)
    kernel = kernel_of("cusparselt-int8", "gemm")
    problem = problem_of(kernel, 7)
    library.refused_order = True
    assert kernel.resolve
    config = kernel.resolve(problem, make_inputs(problem), H200)
    assert not config.transpose_result
    assert config.refused == "transpose_result=True: CUDA error: operation not supported"

    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not supported")

    monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace(mm_search=refuse))
    with pytest.raises(RuntimeError, match="refuses both orders"):
        kernel.resolve(problem, make_inputs(problem), H200)


def test_candidates_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(run: Any) -> float:
        return float(run())

    def prepare(config: float) -> Any:
        if config == 1.0:
            raise RuntimeError("not supported")
        return SimpleNamespace(run=lambda: config)

    monkeypatch.setattr(operands, "graph_microseconds", timed)
    assert operands.fastest([3.0, 1.0, 2.0], prepare) == 2.0
    with pytest.raises(RuntimeError, match="not supported"):
        operands.fastest([1.0, 1.0], prepare)


@pytest.mark.parametrize(
    ("name", "op", "change", "gpu", "version", "words"),
    [
        ("cusparselt-int8", "gemm", {"sparsity": DENSE}, "h200", 800, "2:4 weights only"),
        ("cusparselt-int8", "gemm", {"sparsity": SIX_EIGHT}, "h200", 800, "not 6:8"),
        ("cusparselt-bf16", "gemm", {"sparsity": Sparsity(3, 4)}, "h200", 800, "not 3:4"),
        ("cusparselt-int8-scaled", "layer", {"tokens": 0}, "h200", 800, "0 tokens"),
        ("cusparselt-int8", "gemm", {}, "h200", None, "without cuSPARSELt"),
        ("slidesparse", "gemm", {}, "h200", None, "without cuSPARSELt"),
        ("slidesparse", "layer", {"sparsity": TWO_FOUR}, "h200", 800, "not 2:4"),
        ("cusparselt-fp8", "gemm", {}, "a100", 800, "sm_89"),
        ("cusparselt-fp8", "gemm", {}, "h200", 502, "602"),
        ("cusparselt-bf16", "gemm", {"dtype": "fp16"}, "h200", 800, "fp16"),
    ],
)
def test_refusals_name_their_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, op: str, change: dict[str, Any], gpu: str, version: int | None, words: str
) -> None:
    kernel = kernel_of(name, op)
    problem = problem_of(kernel, 7)
    monkeypatch.setattr(cusparselt, "version", lambda: 800)
    assert kernel.unavailable(problem, H200) is None
    monkeypatch.setattr(cusparselt, "version", lambda: version)
    assert words in (kernel.unavailable(problem.with_(**change), by_name(gpu)) or "")


def test_configs_survive_a_round_trip_as_data() -> None:
    config = CuSparseLtConfig(7, 2, 1, False, 0.25, "refused")
    for kernel in KERNELS:
        assert kernel.space.from_dict(config_to_dict(config)) == config


@needs_library
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 7, 63, 1000])
@pytest.mark.parametrize(("name", "op"), [*((name, "gemm") for name in RAW), *SCALED])
def test_the_library_is_right_on_the_gpu(name: str, op: str, tokens: int) -> None:
    kernel = kernel_of(name, op)
    problem = problem_of(kernel, tokens, n=1160, k=904)
    assert kernel.resolve
    config = kernel.resolve(problem, make_inputs(problem, "cuda"), H200)
    for kind in KINDS:
        check(kernel, problem, config, kind, "cuda")


@needs_library
@pytest.mark.gpu
@pytest.mark.parametrize(("name", "op"), [*((name, "gemm") for name in RAW), *SCALED])
def test_both_orders_of_the_library_on_the_gpu(name: str, op: str) -> None:
    kernel = kernel_of(name, op)
    for transpose_result in (False, True):
        check(kernel, problem_of(kernel, 512, n=2560, k=2048), CuSparseLtConfig(transpose_result=transpose_result), device="cuda")


@needs_library
@pytest.mark.gpu
def test_the_search_of_the_library_on_the_gpu() -> None:
    weight = torch.zeros(256, 256, dtype=torch.int8, device="cuda")
    weight[:, ::2] = 1
    x = torch.randint(-127, 128, (128, 256), dtype=torch.int8, device="cuda")
    for out_dtype in (torch.bfloat16, torch.int32):
        bound = SparseOperands(torch._cslt_compress(weight), x, out_dtype)
        for order in (False, True):
            config = cusparselt.search(bound, order)
            assert config.transpose_result == order
            product = cusparselt.multiply(bound, config)
            assert torch.equal(product, (x.float() @ weight.float().t()).to(out_dtype))
