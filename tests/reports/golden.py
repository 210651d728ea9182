"""Synthetic records of one imaginary run: every suite, status and kind of evidence, with plausible times, the same on every call."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kernels.problem import DENSE, Problem, Sparsity
from suites.record import CaseRecord, Record, Result, RoofRecord, RunRecord

RUN = "golden-0001"
S24, S68 = Sparsity(2, 4), Sparsity(6, 8)
SHAPES = {
    "qwen2.5-3b": {"Wqkv": (2560, 2048), "Wo": (2048, 2048), "W13": (22016, 2048), "W2": (2048, 11008)},
    "qwen2.5-7b": {"Wqkv": (4608, 3584), "Wo": (3584, 3584), "W13": (37888, 3584), "W2": (3584, 18944)},
    "bitnet-2b": {"Wqkv": (3840, 2560), "Wo": (2560, 2560), "W13": (13824, 2560), "W2": (2560, 6912)},
}
RATES = {  # tera operations per second, zeros included, of each kernel at its best
    "dense-triton": 1100.0,
    "sparse-mma": 1500.0,
    "dense-bf16": 780.0,
    "dense-int8": 900.0,
    "dense-int8-triton": 1050.0,
    "dense-fp8": 1400.0,
    "cusparselt-int8": 1950.0,
    "cusparselt-int8-scaled": 1800.0,
    "slidesparse": 1250.0,
    "fakequant-bf16": 560.0,
    "fakequant-bf16-compiled": 600.0,
    "fakequant-published": 380.0,
    "fakequant-published-compiled": 400.0,
    "mask-only": 30.0,
    "two-pass": 2200.0,
    "activation": 2300.0,
    "unpack-dot": 820.0,
    "int8-grads": 1300.0,
}
GEMM = (
    "dense-triton",
    "sparse-mma",
    "dense-bf16",
    "dense-int8",
    "dense-int8-triton",
    "dense-fp8",
    "cusparselt-int8",
    "cusparselt-int8-scaled",
)
TRAIN = (
    "unpack-dot",
    "int8-grads",
    "dense-bf16",
    "fakequant-bf16",
    "fakequant-bf16-compiled",
    "fakequant-published",
    "fakequant-published-compiled",
)
VARIANTS = ("dense-triton", "sparse-mma", "two-pass", "activation", "unpack-dot", "int8-grads")


def result(kernel: str, us: float, random_: random.Random, rounds: int = 12, **changes: object) -> Result:
    """An ok result whose samples scatter by about a per cent around `us`."""
    samples = tuple(round(us * random_.gauss(1.0, 0.01), 3) for _ in range(rounds))
    made = Result(
        kernel,
        "variant" if kernel in VARIANTS else "baseline",
        "ok",
        exact=kernel not in ("cusparselt-int8", "int8-grads"),
        dense=kernel.startswith("dense-") and kernel not in VARIANTS,
        config={"block_n": 128, "num_warps": 8},
        config_source="tuned",
        samples_us=samples,
        call_us=tuple(round(us + random_.uniform(6, 9), 3) for _ in range(5)),
        check={"judged": "exact", "ulps": 0},
        notes={"algorithm": 3} if kernel.startswith("cusparselt") else {},
        weight_bytes=1 << 20,
        footprint=5 << 20,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of Result


def case(
    suite: str, model: str, layer: str, problem: Problem, kernels: Sequence[str], random_: random.Random, **changes: object
) -> CaseRecord:
    """A measured case of these kernels."""
    n, k, t = problem.out_features, problem.in_features, problem.tokens
    nbytes = n * k // 4 + t * k + 2 * t * n
    results = []
    for kernel in kernels:
        work = problem.operations or 2000 * nbytes
        us = work / (RATES[kernel] * 1e6) * random_.uniform(0.9, 1.15) + nbytes / 4.2e6 * 0.4 + 2.0
        results.append(result(kernel, us, random_))
    made = CaseRecord(
        RUN,
        suite,
        model,
        layer,
        "interleaved",
        "cold" if suite in ("decode", "prepare") else "hot",
        problem.to_dict(),
        str(problem),
        problem.operations,
        nbytes,
        tuple(results),
        conditions={"before": {"sm_mhz": 1980, "power_w": 210.5}, "after": {"sm_mhz": 1755}},
        seconds=1.5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of CaseRecord


def head(**changes: object) -> RunRecord:
    """The head of the run."""
    made = RunRecord(
        RUN,
        "h200",
        "2026-11-22T09:00:00Z",
        "0123456789abcdef0123456789abcdef01234567",
        False,
        "interleaved-palindrome/1",
        "cuda-graph",
        {"name": "NVIDIA H200", "uuid": "GPU-0000", "power_cap_w": 700, "driver": "580.1"},
        {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0", "cusparselt": "0.8.0"},
        ("--gpu", "h200"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of RunRecord


def roofs() -> list[RoofRecord]:
    """Bandwidths and dense rates."""
    figures = {
        "copy": (4.30e12, "B/s"),
        "read": (4.45e12, "B/s"),
        "dense-bf16": (7.9e14, "op/s"),
        "dense-int8": (9.5e14, "op/s"),
        "dense-fp8": (1.45e15, "op/s"),
    }
    return [RoofRecord(RUN, name, value, unit, (value, value * 0.99)) for name, (value, unit) in figures.items()]


def inference(random_: random.Random, models: Sequence[str]) -> Iterator[CaseRecord]:
    """Prefill, decode and layer cases of the models."""
    plans = (
        ("prefill", "gemm", (128, 512, 2048, 8192, 16384), (S24, S68)),
        ("decode", "gemm", (1, 4, 16, 64), (DENSE, S24, S68)),
        ("layer", "layer", (1, 64, 2048, 8192), (DENSE, S24, S68)),
    )
    for suite, op, tokens, sparsities in plans:
        for model in models:
            for layer, (n, k) in SHAPES[model].items():
                for t in tokens:
                    for sparsity in sparsities:
                        kernels = GEMM if sparsity != DENSE else GEMM[:6]
                        yield case(
                            suite,
                            model,
                            layer,
                            Problem(op, n, k, t, sparsity),
                            kernels + (("slidesparse",) if sparsity == S68 else ()),
                            random_,
                        )


def training(random_: random.Random, models: Sequence[str]) -> Iterator[CaseRecord]:
    """Train and prepare cases of the models."""
    for model in models:
        for layer, (n, k) in SHAPES[model].items():
            for sparsity in (S24, S68):
                yield case(
                    "prepare", model, layer, Problem("prepare", n, k, 0, sparsity), ("two-pass", "mask-only", "fakequant-bf16"), random_
                )
                for t in (4096, 16384):
                    for op in ("forward", "input-grad", "weight-grad", "step"):
                        yield case("train", model, layer, Problem(op, n, k, t, sparsity), TRAIN, random_)  # type: ignore[arg-type]  # names of ops
    for t in (1, 64, 2048, 16384):
        yield case("prepare", "bitnet-2b", "x", Problem("activation", 0, 2560, t, DENSE), ("activation", "dense-bf16"), random_)


def square(random_: random.Random) -> Iterator[CaseRecord]:
    """Square cases, and one whose in_features the group of 6:8 does not divide."""
    for size in (1024, 4096, 8192):
        for sparsity in (S24, S68):
            yield case("square", "", "", Problem("gemm", size, size, size, sparsity), GEMM, random_)
    refused = Problem("gemm", 1028, 1028, 1028, S68)
    yield replace(case("square", "", "", refused, (), random_), refusal=refused.refusal, results=())


def sustained(random_: random.Random, models: Sequence[str]) -> Iterator[CaseRecord]:
    """W13 and W2 at 8192 tokens in 2 s blocks with energy."""
    for model in models:
        for layer in ("W13", "W2"):
            n, k = SHAPES[model][layer]
            for sparsity in (S24, S68):
                made = case("prefill", model, layer, Problem("gemm", n, k, 8192, sparsity), GEMM, random_, state="sustained")
                yield replace(made, results=tuple(_in_blocks(one, random_) for one in made.results))


def _in_blocks(one: Result, random_: random.Random) -> Result:
    us = one.samples_us[0] * 1.12
    blocks = []
    for _ in range(3):
        seconds = random_.uniform(2.0, 2.1)
        blocks.append(
            {"seconds": seconds, "calls": round(seconds / us * 1e6), "joules": seconds * 690.0, "sm_mhz": 1600.0, "power_w": 690.0}
        )
    return replace(one, samples_us=(), blocks=tuple(blocks))


def troubles(random_: random.Random) -> Iterator[CaseRecord]:
    """Every status: a wrong variant, a failed one, unavailable and refused baselines."""
    made = case("prefill", "bitnet-2b", "W2", Problem("gemm", 2560, 6912, 4096, S24), GEMM, random_)
    broken = {
        "dense-triton": {"status": "wrong", "stage": "wrong", "reason": "y[3, 17] is 4.5, expected 4.25"},
        "sparse-mma": {"status": "failed", "stage": "launch", "reason": "an illegal memory access was encountered"},
        "cusparselt-int8": {"status": "unavailable", "stage": "unavailable", "reason": "this torch has no cuSPARSELt"},
        "dense-fp8": {"status": "refused", "stage": "refused", "reason": "in_features must be a multiple of 16"},
    }
    yield replace(
        made,
        results=tuple(
            replace(one, samples_us=(), call_us=(), **broken.get(one.kernel, {})) if one.kernel in broken else one for one in made.results
        ),
    )


def unmeasured(random_: random.Random) -> Iterator[CaseRecord]:
    """What a machine without the GPU can say: projected, compiled and interpreted."""
    for t in (128, 2048, 8192):
        for layer, (n, k) in SHAPES["bitnet-2b"].items():
            made = case(
                "prefill",
                "bitnet-2b",
                layer,
                Problem("gemm", n, k, t, S24),
                ("dense-triton", "dense-bf16"),
                random_,
                evidence="projected",
                conditions={},
            )
            yield replace(
                made,
                results=tuple(replace(one, samples_us=(), call_us=(), projected_us=one.samples_us[0], check={}) for one in made.results),
            )
    small = Problem("gemm", 64, 256, 16, S24)
    compiled = {"registers": 168, "spills": 0, "shared_bytes": 98304, "instructions": {"IMMA": 64}, "seconds": 2.5}
    one = replace(result("dense-triton", 1.0, random_), samples_us=(), call_us=(), compiled=compiled, check={})
    yield replace(
        case("prefill", "bitnet-2b", "W2", Problem("gemm", 2560, 6912, 512, S24), (), random_),
        evidence="compiled",
        results=(one,),
        conditions={},
    )
    checked = replace(one, compiled={}, check={"judged": "exact", "ulps": 0})
    yield replace(case("prefill", "small", "small", small, (), random_), evidence="interpreted", results=(checked,), conditions={})


def records(models: Sequence[str] = ("qwen2.5-3b", "bitnet-2b"), seed: int = 7) -> list[Record]:
    """The whole run: head, roofs, and cases of every kind."""
    random_ = random.Random(seed)
    cases = [
        *inference(random_, models),
        *training(random_, models),
        *square(random_),
        *sustained(random_, models),
        *troubles(random_),
        *unmeasured(random_),
    ]
    return [head(), *roofs(), *cases]


def without_gpu(seed: int = 7) -> list[Record]:
    """What a run on a machine without a GPU writes."""
    return [head(evidence="projected", device={}), *unmeasured(random.Random(seed))]
