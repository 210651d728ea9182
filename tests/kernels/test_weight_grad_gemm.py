"""Which GEMM dW of 8-bit gradients runs on, and that both give the same bits."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from kernels.gpu import by_name, detect
from kernels.problem import DENSE, Problem
from kernels.sparse_backward.weight_grad_gemm import bind, compile_units, default_config, gemm_config
from kernels.ternary_gemm import int8_wgmma_config
from kernels.ternary_gemm.dense_config import DenseConfig
from kernels.ternary_gemm.int8_wgmma_config import Int8Config
from tests.kernels.test_int8_wgmma import expected, operands

TINY = DenseConfig(16, 16, 128, 4, 2)


def gemm(rows: int, columns: int, tokens: int) -> Problem:
    return Problem("gemm", columns, tokens, rows, DENSE)


def test_hopper_has_a_kernel_of_its_own() -> None:
    case = gemm(2048, 11008, 16384)
    assert isinstance(default_config(case, by_name("h200")), Int8Config)
    assert default_config(case, by_name("a100")) == DenseConfig(128, 128, 128, num_warps=4, num_stages=3, group=8)
    assert default_config(gemm(4608, 3584, 16384), by_name("a100")) == DenseConfig(128, 128, 128, num_warps=4, num_stages=3)
    assert isinstance(default_config(gemm(896, 896, 16384), by_name("a100")), DenseConfig)


def test_configs_survive_json() -> None:
    for config in (Int8Config(1, 256, 4, 2, 2), TINY):
        assert gemm_config(asdict(config)) == config == gemm_config(config)


def test_what_is_compiled_is_what_is_configured() -> None:
    names = [unit.function.fn.__name__ for config in (Int8Config(1, 256, 4), TINY) for unit in compile_units(gemm(512, 512, 512), config)]
    assert names == ["int8_gemm", "dense_gemm"]


@pytest.mark.interpreter
def test_interpreted_sums_are_those_of_the_reference() -> None:
    left, scale, right = operands(20, 33, 300)
    bound = bind(gemm(20, 33, 300).with_(dtype="fp32"), left, scale, right, TINY)
    bound.launch()
    assert torch.equal(bound.out, expected(left, scale, right, torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "columns", "tokens"), [(896, 896, 16384), (2048, 11008, 1000), (1152, 896, 63), (70, 50, 130)])
def test_both_give_the_same_bits(rows: int, columns: int, tokens: int) -> None:
    gpu, case = detect(), gemm(rows, columns, tokens)
    assert gpu is not None
    left, scale, right = operands(rows, columns, tokens, "cuda")
    configs = [default_config(case, gpu), default_config(case, replace(by_name("a100"), sms=gpu.sms))]
    assert isinstance(configs[0], Int8Config) == (int8_wgmma_config.unavailable(case, gpu) is None)
    for config in configs:
        bound = bind(case, left, scale, right, config)
        bound.out.fill_(float("nan"))
        bound.launch()
        assert torch.equal(bound.out, expected(left, scale, right, torch.bfloat16)), str(config)
