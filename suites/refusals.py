"""Results that cannot be true, each refused under a name; what surrounds a whole case is in `suites.quality`. Pure; needs no torch.

The bounds were held against 492 cases of one H200 (2026-11-22): there the fewest distinct samples were half of them, the largest footprint
8 times the compulsory bytes, and every cold case went round at least twice the L2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from autotune.clock import MAX_COPIES
from kernels.gpu import Gpu
from suites.floors import impossible
from suites.quality import ENOUGH, Refusal, case_refusals
from suites.record import CaseRecord, Record, Result, RoofRecord

MOST_FOOTPRINT = 10.0
"""No kernel touches more than so many times the compulsory bytes: bf16 weights are 8 times the 2-bit ones."""
AFTER_TIMING = "after timing: "
"""How the reason of a result begins whose numbers were right before it was timed, and wrong after."""


def roofs_of(run: Iterable[Record]) -> dict[str, float]:
    """The largest measured roof of each name."""
    roofs: dict[str, float] = {}
    for record in run:
        if isinstance(record, RoofRecord):
            roofs[record.name] = max(record.value, roofs.get(record.name, 0.0))
    return roofs


def every_refusal(case: CaseRecord, gpu: Gpu, roofs: Mapping[str, float]) -> list[Refusal]:
    """What speaks against a case as a whole and against each of its results. roofs: measured ones by name."""
    return case_refusals(case) + [own for result in case.results for own in result_refusals(case, result, gpu, roofs)]


def result_refusals(case: CaseRecord, result: Result, gpu: Gpu, roofs: Mapping[str, float]) -> list[Refusal]:
    """What speaks against one result. roofs: measured ones by name."""
    reason = impossible(case, result, gpu, roofs)
    above = [Refusal("above-roof", reason, result.kernel)] if reason else []
    return [*_wrong(result), *above, *_identical(case, result), *_repeated(case, result, gpu)]


def _wrong(result: Result) -> Iterator[Refusal]:
    if result.status == "wrong" and (result.reason or "").startswith(AFTER_TIMING):
        yield Refusal("wrong-after-timing", str(result.reason).removeprefix(AFTER_TIMING), result.kernel)


def _identical(case: CaseRecord, result: Result) -> Iterator[Refusal]:
    own = result.samples_us
    if len(own) < ENOUGH:
        return
    if len(set(own)) == 1:
        yield Refusal("identical-samples", f"{len(own)} samples of exactly {own[0]:g} µs", result.kernel)
        return
    twins = [other.kernel for other in case.results if other.kernel != result.kernel and other.samples_us == own]
    if twins:
        yield Refusal("identical-samples", f"sample by sample those of {twins[0]}", result.kernel)


def _repeated(case: CaseRecord, result: Result, gpu: Gpu) -> Iterator[Refusal]:
    """Cold copies that, counted at what a kernel can touch at most, do not exceed the cache: the footprint was overstated."""
    copies = result.notes.get("copies")
    if case.cache != "cold" or not isinstance(copies, int) or copies >= MAX_COPIES:
        return
    touched = copies * min(max(result.footprint, case.compulsory_bytes), MOST_FOOTPRINT * case.compulsory_bytes)
    if touched < 2 * gpu.l2_bytes and gpu.measured_as != "unlisted GPU":
        yield Refusal(
            "repeated-inputs", f"{copies} copies come to {touched / 2**20:.0f} MiB, so inputs repeat within twice the L2", result.kernel,
        )
