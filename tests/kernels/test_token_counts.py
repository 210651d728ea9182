"""Any number of tokens: a spread from 1 to 20,000 with the primes and the edges of tiles among them, every element judged."""

from __future__ import annotations

import pytest
import torch

from kernels.catalogue import find
from kernels.gpu import by_name, detect
from kernels.problem import Sparsity
from kernels.space import Config
from kernels.ternary_gemm.sparse_mma_config import MmaConfig
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig, most_stages
from tests.kernels.on_device import SIX_EIGHT, TWO_FOUR, assert_right, problems

TOKENS = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 97, 127, 128, 129, 191, 192, 193, 251, 255, 256, 257, 383, 509,
          512, 521, 769, 1021, 1024, 1031, 2039, 2048, 2053, 4093, 4099, 8191, 8192, 8209, 12289, 16381, 16384, 16411, 19997, 20000)
ROWS, WIDTH = 392, 768
NAMES = ("sparse-wgmma", "sparse-mma", "decode")
PARTS = tuple(SparseConfig(*tile, most_stages(*tile, splits, by_name("h200").shared_bytes), splits)
              for *tile, splits in ((1, 64, 4), (1, 128, 2), (1, 128, 4), (2, 128, 2)))
ALSO: dict[str, tuple[Config, ...]] = {"sparse-wgmma": PARTS,
                                       "sparse-mma": (MmaConfig(2, 2, 4, 4, 4, splits=4),)}  # fmt: skip
"""Configs beside the default: parts of tiles that meet. `sparse-mma` runs its own with any tokens, `sparse-wgmma` only where all parts run
at once."""


def test_the_spread() -> None:
    prime = [tokens for tokens in TOKENS if tokens > 1 and all(tokens % factor for factor in range(2, int(tokens**0.5) + 1))]
    assert list(TOKENS) == sorted(set(TOKENS))
    assert (TOKENS[0], TOKENS[-1]) == (1, 20000)
    assert len(prime) >= 20
    assert max(prime) == 19997
    assert {tokens % 64 for tokens in TOKENS} >= {0, 1, 63}
    kernel, gpu = find("sparse-wgmma", "gemm"), by_name("h200")
    for config in PARTS:
        cases = problems((tokens, ROWS, WIDTH) for tokens in TOKENS)
        assert sum(kernel.space.reject(case, gpu, config) is None for case in cases) >= 10, config


@pytest.mark.gpu
@pytest.mark.parametrize("sparsity", [TWO_FOUR, SIX_EIGHT], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_tokens(name: str, sparsity: Sparsity) -> None:
    kernel, gpu = find(name, "gemm"), detect() or by_name("h200")
    judged = 0
    for case in problems(((tokens, ROWS, WIDTH) for tokens in TOKENS), (sparsity,)):
        if kernel.unavailable(case, gpu) is not None:
            continue
        default = kernel.default_config(case, gpu)
        others = [config for config in ALSO.get(name, ()) if name == "sparse-mma" or kernel.space.reject(case, gpu, config) is None]
        for config in dict.fromkeys((default, *others)):
            assert_right(kernel, case, config)
        judged += 1
    assert judged == (sum(tokens <= 64 for tokens in TOKENS) if name == "decode" else len(TOKENS))
    torch.cuda.empty_cache()
