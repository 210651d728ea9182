"""Why a measured case is not to be relied on: noise, and every reason for which the gate refuses a case or a result."""

from __future__ import annotations

from collections.abc import Iterable

from kernels.gpu import GPUS, Gpu, unlisted
from reports.compare import Comparison
from reports.load import Results
from suites.quality import NOISE, case_refusals, noise
from suites.record import Result
from suites.refusals import result_refusals


def case_doubts(comparison: Comparison) -> list[str]:
    """What speaks against the whole case: a ratio that is too uncertain, and what surrounded the measurement."""
    found = []
    if comparison.ratio and noise(comparison.ratio) > NOISE:
        found.append(f"noisy: the speed-up is uncertain by {noise(comparison.ratio):.0%}")
    return [*found, *map(str, case_refusals(comparison.case.record))]


def kernel_doubts(comparison: Comparison, kernels: Iterable[Result], results: Results) -> list[str]:
    """What speaks against times of these kernels of the case; results: with the roofs that they are held against."""
    gpu = profile(results.gpu)
    roofs = {name: value for names in results.rates.values() for name, value in names.items()}
    return [
        f"{result.kernel} is impossible: {refusal.detail}"
        for result in kernels if result.status == "ok"
        for refusal in result_refusals(comparison.case.record, result, gpu, roofs)
    ]


def profile(name: str) -> Gpu:
    """The profile of that GPU, or what is known of an unlisted one."""
    return next((gpu for gpu in GPUS if gpu.name == name), None) or unlisted(name)
