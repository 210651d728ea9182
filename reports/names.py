"""What the names of kernels mean, in a line each: for who meets them first in this report."""

from __future__ import annotations

from collections.abc import Mapping

from reports.panel import Data, Panel, paragraph, table
from suites.statistics import OWN_BASELINES

OURS: Mapping[str, str] = {
    "sparse-wgmma": "2-bit weights from packed registers into Hopper's sparse tensor cores",
    "dense-wgmma": "the same into Hopper's dense tensor cores, zeros multiplied; a baseline wherever a weight is sparse",
    "sparse-mma": "2-bit weights into the sparse tensor cores, from sm_80 on",
    "dense-triton": "2-bit weights in Triton, zeros multiplied, from sm_80 on",
    "decode": "at most 64 tokens, where the bytes of the weight are the limit: 2 bits a weight",
    "decode-narrow": "the same for 2:4 at 1.5 bits a weight, at most 16 tokens",
    "two-pass": "master weight to mask, ternary values and packed bits",
    "activation": "bf16 activations to int8 with a scale per token; for 6:8 lifted as well",
    "unpack-dot": "input gradient from packed weights, without a bf16 weight in memory",
    "unpack-cublas": "input gradient: weights unpacked to bf16 in memory, then cuBLAS",
    "int8-wgmma": "input gradient from gradients rounded to int8: not exact, counts only where named",
    "convert-dot": "weight gradient from int8 activations, without bf16 activations in memory",
    "dequantize-cublas": "weight gradient: activations to bf16 in memory, then cuBLAS",
    "int8-triton": "weight gradient from gradients rounded to int8: not exact, counts only where named",
    "exact-triton": "training step with both gradients as fused kernels",
    "exact-cublas": "training step with both gradients through bf16 in memory and cuBLAS",
    "exact-mixed": "training step: input gradient through cuBLAS, weight gradient fused",
    "exact-sparse": "training step: forward on the sparse tensor cores, gradients through cuBLAS, int8 activations kept",
    "exact-sparse-wide": "the same with bf16 activations kept: more memory, one pass less",
    "int8-gradients": "training step with gradients rounded to int8: not exact, counts only where named",
    "int8-transposable": "the same under a mask that is 2:4 along rows and columns",
    "bf16-transposable": "training step in bf16 under such a mask: another mask, counts only where named",
}
BASELINES: Mapping[str, str] = {
    "dense-bf16": "cuBLAS in bf16 through PyTorch; nothing quantized or masked in a training step",
    "dense-int8": "torch._int_mm and one scaling pass",
    "dense-int8-triton": "dense int8 in Triton, a byte a weight",
    "dense-fp8": "torch._scaled_mm in fp8, which rounds the activations: another function",
    "cusparselt-int8": "cuSPARSELt's 2:4 product in int8 without scales: another function, which flatters the library",
    "cusparselt-int8-scaled": "the same and one scaling pass: what a layer needs",
    "cusparselt-bf16": "cuSPARSELt's 2:4 product in bf16",
    "cusparselt-fp8": "cuSPARSELt's 2:4 product in fp8: another function",
    "slidesparse": "SlideSparse's way: 6:8 as overlapping windows of 2:4 on cuSPARSELt, one dequantizing pass",
    "fakequant-bf16": "PyTorch with simulated quantization: mask, ternary and int8 rounding once a step, then bf16 GEMMs",
    "fakequant-bf16-compiled": "the same under torch.compile",
    "fakequant-published": "as Sparse-BitNet published it: the mask anew in every forward pass, a program a group",
    "fakequant-published-compiled": "the same under torch.compile",
    "mask-only": "that mask alone: less than the case asks for",
    "torch-eager": "mask, ternary values and packing, or int8 activations, in PyTorch operations",
    "torch-compiled": "the same under torch.compile",
}


def panel(data: Data) -> Panel | None:
    """The names that the results hold, ours before baselines, in the order above; None where none is known."""
    counts: dict[str, int] = {}
    for case in data.results.cases:
        for result in case.record.results:
            counts[result.kernel] = counts.get(result.kernel, 0) + (result.status == "ok")
    rows = [[name, whose(name), what, counts[name] or "–"] for name, what in {**OURS, **BASELINES}.items() if name in counts]
    if not rows:
        return None
    about = (
        "Strongest is the fastest baseline that computes a case's function exactly, kernels of our own among them; strongest library "
        "leaves ours out. Weights: n:m keeps n of every m consecutive weights; ternary values are −1, 0 and +1 with one scale per matrix."
    )
    head = ("Name", "Whose", "What it is", "Timed results")
    return Panel("names", "What the names mean", "Names", paragraph(about) + table("Kernels by name", head, rows, text=(0, 1, 2)))


def whose(name: str) -> str:
    """Who made a kernel that is named above."""
    return "ours" if name in OURS else "ours, a baseline" if name in OWN_BASELINES else "baseline"
