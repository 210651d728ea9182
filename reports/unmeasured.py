"""What a machine without the GPU can say: projections and interpreted numbers, none of them a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.figures import projected
from reports.load import Case, Results
from reports.svg import Figure
from suites.record import Result

DATASHEET = ", datasheet rates"


@dataclass(frozen=True)
class Floor:
    """A projected time, µs, the roof that gives it, and the kernels that have it."""

    us: float
    roof: str
    kernels: tuple[str, ...]


def projection_figures(results: Results) -> list[Figure]:
    """Projected rates of the GEMMs, a panel per model and sparsity; each says that nothing was measured. Kernels with equal floors are
    drawn once."""
    cases = [case for case in projected_cases(results) if case.problem.op == "gemm"]
    chosen: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if str(case.problem.sparsity) != "dense":
            chosen.setdefault((case.record.model, str(case.problem.sparsity)), []).append(case)
    figures = []
    for place, ((model, sparsity), own) in enumerate(sorted(chosen.items())):
        kernels = _distinct_floors(own)
        if kernels:
            figures.append(projected(f"fig-projected-{place}", f"{model or 'squares'} {sparsity}", own, kernels))
    return figures


def _distinct_floors(cases: Sequence[Case]) -> list[str]:
    """At most six kernels whose projections differ, ours first."""
    floors: dict[tuple[float, ...], str] = {}
    kinds = {result.kernel: result.kind for case in cases for result in case.record.results if result.projected_us}
    for kernel in sorted(kinds, key=lambda name: (kinds[name] != "variant", name)):
        found = [result for case in cases if (result := case.record.result(kernel))]
        floors.setdefault(tuple(round(result.projected_us or 0.0, 6) for result in found), kernel)
    return list(floors.values())[:6]


def projected_cases(results: Results) -> list[Case]:
    """The cases whose floors were projected."""
    return [case for case in results.cases if case.record.evidence == "projected"]


def floors(case: Case) -> list[Floor]:
    """The projections of a case, the least first."""
    found: dict[tuple[float, str], list[str]] = {}
    for result in case.record.results:
        if result.projected_us:
            roof = str(result.notes.get("roofline", "")).removesuffix(DATASHEET)
            found.setdefault((result.projected_us, roof), []).append(result.kernel)
    return [Floor(us, roof, tuple(kernels)) for (us, roof), kernels in sorted(found.items())]


def interpreted(results: Results) -> list[tuple[Case, Result]]:
    """Every result of the interpreter."""
    return [(case, result) for case in results.cases if case.record.evidence == "interpreted" for result in case.record.results]


def kinds(results: Results) -> list[str]:
    """The kinds of evidence that are no measurement and have results here."""
    found = {case.record.evidence for case in results.cases if case.record.results}
    return [kind for kind in ("projected", "compiled", "interpreted") if kind in found]
