"""cuSPARSELt through torch: the one place that knows its Python entry points, its alignments and its search.

Every call through torch makes a plan on the host first (newer versions of torch keep some), which costs more time than many of its kernels:
read its call time and its kernel time apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from kernels.gpu import Gpu
from kernels.kernel import Prepared
from kernels.problem import Problem
from kernels.ternary_gemm.operands import fastest, no_tokens

FIRST_WITH_FP8 = 602
OUT_FEATURE_ALIGNMENT = 32
TOKEN_ALIGNMENT = 16
"""8-bit structured matrices want rows in multiples of 32, dense ones of 16; wider types less. in_features are padded to 128 anyway."""


@dataclass(frozen=True)
class CuSparseLtConfig:
    """What the library's search chose: algorithm, split-k and its mode, and the order of the result (transposed: token by token).

    search_seconds: time of the searches for this case, both orders together, outside of any timing. refused: the order that the library
    does not take, and its words; empty where both were tried.
    """

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1
    transpose_result: bool = True
    search_seconds: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class SparseOperands:
    """A compressed weight, its activations [padded tokens, padded in_features] (contiguous) and the type of the result (None: theirs)."""

    compressed: torch.Tensor
    x: torch.Tensor
    out_dtype: torch.dtype | None


def version() -> int | None:
    """The library's version as an integer (800 for 0.8.0), or None where torch has none."""
    return torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why cuSPARSELt cannot run on this GPU with this torch, or None."""
    if gpu.capability < 80:
        return f"sparse tensor cores begin with sm_80; {gpu.name} is {gpu.architecture}"
    if version() is None:
        return f"torch {torch.__version__} was built without cuSPARSELt"
    return no_tokens(problem)


def search(operands: SparseOperands, transpose_result: bool) -> CuSparseLtConfig:
    """The library's own search for one order of the result, with its time; runs the candidates on the device."""
    began = time.perf_counter()
    mm_search = getattr(getattr(torch._C, "_cusparselt", None), "mm_search", None)
    columns = operands.x.t()
    if mm_search is not None:
        found = mm_search(operands.compressed, columns, None, None, operands.out_dtype, transpose_result)
        alg_id, split_k, split_k_mode = (int(value) for value in found[:3])
    else:
        found = torch._cslt_sparse_mm_search(operands.compressed, columns, out_dtype=operands.out_dtype, transpose_result=transpose_result)
        alg_id, split_k, split_k_mode = int(found), 1, -1
    torch.cuda.synchronize()
    return CuSparseLtConfig(alg_id, split_k, split_k_mode, transpose_result, time.perf_counter() - began)


def multiply(operands: SparseOperands, config: CuSparseLtConfig) -> torch.Tensor:
    """x · wᵀ, [padded tokens, padded out_features]; a view of its transpose where the library wrote that."""
    result = torch._cslt_sparse_mm(
        operands.compressed,
        operands.x.t(),
        out_dtype=operands.out_dtype,
        transpose_result=config.transpose_result,
        alg_id=config.alg_id,
        split_k=config.split_k,
        split_k_mode=config.split_k_mode,
    )
    return result if config.transpose_result else result.t()


def resolve(operands: SparseOperands, prepare: Callable[[CuSparseLtConfig], Prepared]) -> CuSparseLtConfig:
    """Search both orders of the result, then take the order whose whole call (passes around the product included) is faster.

    An order that the library refuses is left out and named; RuntimeError with the library's words where it refuses both.
    """
    found, refused = [], ""
    for transpose_result in (True, False):
        try:
            found.append(search(operands, transpose_result))
        except RuntimeError as error:
            refused = f"transpose_result={transpose_result}: {str(error).splitlines()[0]}"
    if not found:
        raise RuntimeError(f"cuSPARSELt refuses both orders of the result; {refused}")
    seconds = round(sum(config.search_seconds for config in found), 3)
    chosen: CuSparseLtConfig = fastest(found, prepare)
    return replace(chosen, search_seconds=seconds, refused=refused)
