from __future__ import annotations

import pytest

from autotune import wide
from kernels import catalogue
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from kernels.ternary_gemm.dense_config import shared_bytes

H200 = by_name("h200")
SPARSE = Sparsity(2, 4)


@pytest.mark.parametrize(
    ("name", "tokens", "least"), [("dense-triton", 512, 300), ("dense-triton", 16, 300), ("decode", 16, 300), ("decode", 1, 400)],
)
def test_a_wide_space_holds_the_kernels_own_and_much_more(name: str, tokens: int, least: int) -> None:
    problem = Problem("gemm", 13824, 2560, tokens, SPARSE)
    allowed, own = (set(module.find(name, "gemm").space.allowed(problem, H200)) for module in (wide, catalogue))
    assert own
    assert {config for config in own if getattr(config, "block_k", 0) < 1024} <= allowed
    assert len(allowed) >= least
    if name == "dense-triton":
        assert max(shared_bytes(config, 90) for config in allowed) <= H200.shared_bytes
        assert all(config.block_n * config.block_t <= 128 * 32 * config.num_warps for config in allowed)


def test_of_other_ops_there_is_what_they_have() -> None:
    for op in ("prepare", "activation"):
        assert wide.kernels_for(op) == catalogue.kernels_for(op)
    assert wide.kernels_for("step") == ()
    assert wide.find("sparse-wgmma", "layer") == catalogue.find("sparse-wgmma", "layer"), "what is not here is the catalogue's"
