"""Training baselines: judged like kernels, refused with reasons, their expressions against the reference."""

from __future__ import annotations

import pytest
import torch

from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import KINDS, Kind, TrainInputs, make_inputs
from kernels.judge import judge, poison
from kernels.kernel import Kernel
from kernels.problem import Problem, Sparsity
from kernels.sparse_backward.baselines import KERNELS
from kernels.sparse_backward.fakequant import fake_activation, masked_fake_weight, pairwise_mask, split_tensors
from reference.quantize import quantize_activation, ternary_quantize
from reference.sparsity import nm_mask

A100, H200 = by_name("a100"), by_name("h200")
OPS = ("forward", "input-grad", "weight-grad", "step")
EAGER = [kernel for kernel in KERNELS if kernel.name in ("dense-bf16", "fakequant-bf16")]
PUBLISHED = [kernel for kernel in KERNELS if kernel.name == "fakequant-published" and kernel.op in ("forward", "step")]
LIBRARY = [kernel for kernel in KERNELS if kernel.name == "cusparselt-bf16" or kernel.name.endswith("-compiled")]


def check(kernel: Kernel, case: Problem, kind: Kind = "random", gpu: Gpu = A100, device: str = "cpu") -> None:
    inputs = make_inputs(case, device, kind=kind)
    assert isinstance(inputs, TrainInputs)
    config = kernel.resolve(case, inputs, gpu) if kernel.resolve else kernel.default_config(case, gpu)
    prepared = kernel.prepare(case, inputs, config)
    poison(prepared)
    mismatch = judge(case, inputs, prepared.run(), kernel)
    assert mismatch is None, f"{kernel}, {case}, {kind}: {mismatch}"
    assert prepared.footprint > prepared.weight_bytes
    assert prepared.weight_bytes > 0 or case.op == "weight-grad"


def problem_of(kernel: Kernel, sparsity: str = "2:4", tokens: int = 33) -> Problem:
    return Problem(kernel.op, 48, 72, tokens, Sparsity.parse(sparsity), (24, 16, 8))


def test_names_ops_and_roles() -> None:
    names = {kernel.name for kernel in KERNELS}
    assert names == {"dense-bf16", "cusparselt-bf16", "fakequant-bf16", "fakequant-bf16-compiled", "fakequant-published",
                     "fakequant-published-compiled"}  # fmt: skip
    assert sorted((kernel.op, kernel.name) for kernel in KERNELS) == sorted((op, name) for op in OPS for name in names)
    assert all(kernel.kind == "baseline" and kernel.dense == (kernel.name == "dense-bf16") == (not kernel.exact) for kernel in KERNELS)


@pytest.mark.parametrize("kernel", EAGER, ids=str)
@pytest.mark.parametrize("sparsity", ["2:4", "6:8"])
@pytest.mark.parametrize("kind", KINDS)
def test_eager_baselines(kernel: Kernel, sparsity: str, kind: Kind) -> None:
    assert kernel.unavailable(problem_of(kernel, sparsity), A100) is None
    check(kernel, problem_of(kernel, sparsity), kind)
    check(kernel, problem_of(kernel, sparsity, tokens=1), kind)


@pytest.mark.interpreter
@pytest.mark.parametrize("kernel", PUBLISHED, ids=str)
@pytest.mark.parametrize("sparsity", ["2:4", "6:8"])
def test_published_baselines(kernel: Kernel, sparsity: str) -> None:
    check(kernel, Problem(kernel.op, 12, 24, 5, Sparsity.parse(sparsity), (8, 4)), "ties")


@pytest.mark.parametrize("sparsity", ["2:4", "6:8", "4:6", "1:16"])
@pytest.mark.parametrize("kind", ["ties", "random", "equal"])
def test_expressions_are_the_reference(sparsity: str, kind: Kind) -> None:
    case = Problem("step", 20, 240, 9, Sparsity.parse(sparsity), (12, 8))
    inputs = make_inputs(case, kind=kind)
    assert isinstance(inputs, TrainInputs)
    n, m = case.sparsity.n, case.sparsity.m
    mask = nm_mask(inputs.w, n, m)
    assert torch.equal(pairwise_mask(inputs.w, n, m), mask)
    ternary, scale = ternary_quantize(inputs.w, case.splits)
    expected = (ternary * mask * scale.repeat_interleave(torch.tensor(case.splits))[:, None]).bfloat16()
    fake = masked_fake_weight(inputs.w, n, m, *split_tensors(case.splits, 240, inputs.w.device))
    torch.testing.assert_close(fake, expected, rtol=2**-8, atol=0)
    x_q, x_scale = quantize_activation(inputs.x)
    assert torch.equal(fake_activation(inputs.x), (x_q * x_scale[:, None]).bfloat16())


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_refusals_say_why(kernel: Kernel) -> None:
    case = problem_of(kernel, "6:8")
    if kernel.name == "cusparselt-bf16":
        reason = kernel.unavailable(case, H200)
        assert reason
        assert (kernel.op == "forward") == ("2:4 weights only" in reason)
    elif kernel.name.startswith("fakequant-") and kernel.name != "fakequant-bf16" and kernel.op not in ("forward", "step"):
        assert "fakequant-bf16" in (kernel.unavailable(case, H200) or "")
    assert kernel.unavailable(case.with_(dtype="fp32"), H200)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [*EAGER, *PUBLISHED, *LIBRARY], ids=str)
@pytest.mark.parametrize(("sparsity", "tokens"), [("2:4", 1000), ("6:8", 1000), ("2:4", 4096), ("2:4", 63)])
def test_baselines_on_the_device(kernel: Kernel, sparsity: str, tokens: int) -> None:
    gpu = detect()
    assert gpu is not None
    case = Problem(kernel.op, 1152, 896, tokens, Sparsity.parse(sparsity), (896, 128, 128))
    reason = kernel.unavailable(case, gpu)
    if reason:
        pytest.skip(reason)
    check(kernel, case, gpu=gpu, device="cuda")


@pytest.mark.gpu
def test_one_compilation_serves_many_shapes() -> None:
    """Shapes, splits and sparsities of the train suite stay within what torch.compile compiles; past it, it would raise."""
    gpu = detect()
    assert gpu is not None
    kernel = next(kernel for kernel in KERNELS if (kernel.name, kernel.op) == ("fakequant-bf16-compiled", "step"))
    for sparsity in ("2:4", "6:8"):
        for out_features, in_features, splits in ((1152, 896, (896, 128, 128)), (896, 896, ()), (9728, 896, (4864, 4864)), (896, 4864, ())):
            for tokens in (512, 1024):
                check(kernel, Problem("step", out_features, in_features, tokens, Sparsity.parse(sparsity), splits), gpu=gpu, device="cuda")
