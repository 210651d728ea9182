"""What a machine without the GPU can say: projections and interpreted numbers, none of them a measurement."""

from __future__ import annotations

from collections.abc import Sequence

from reports.figures import projected
from reports.load import Case, Results
from reports.svg import Figure
from reports.tables import one_line
from suites.record import Result


def projection_figures(results: Results) -> list[Figure]:
    """Projected rates of the GEMMs, a panel per model and sparsity; each says that nothing was measured. Kernels with equal floors are
    drawn once."""
    cases = [case for case in results.cases if case.record.evidence == "projected" and case.problem.op == "gemm"]
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


def evidence(results: Results, kind: str) -> list[tuple[Case, Result]]:
    """Every result of the cases with this kind of evidence; equal compilations of one kernel are shown once."""
    seen: set[tuple[str, str]] = set()
    rows = []
    for case in results.cases:
        for result in case.record.results if case.record.evidence == kind else ():
            key = (result.kernel + case.problem.op, one_line(result.config) + one_line(result.compiled))
            if kind != "compiled" or key not in seen:
                rows.append((case, result))
            seen.add(key)
    return rows
