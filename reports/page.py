"""The page: one HTML file that opens offline, from results alone; equal results give equal bytes."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports import (
    breakeven,
    compiled,
    failures,
    gate_limits,
    history,
    landscape,
    layers,
    learning_panel,
    memory,
    model_step,
    operands,
    power_panel,
    provenance,
    scatter,
    tables,
)
from reports.answers import WORK, answers
from reports.compare import Comparer, Comparison, in_order, sparsities
from reports.figures import (
    PARTS,
    Line,
    headline,
    limits_of,
    line_of,
    over_tokens,
    projected,
    roofline,
    slug,
    times,
)
from reports.load import TERA, Case, Results, frame
from reports.panel import Data, Panel, PanelFunction
from reports.picker import duration, picker
from reports.power import pairs
from reports.published import FOOTPRINT, PUBLISHED, ours_beside, weight_share
from reports.svg import DARK, LIGHT, Figure
from suites.record import Result

FAMILIES = (
    (
        "Inference: the GEMM",
        "Decode (cold, up to 64 tokens) and prefill (hot), each against the strongest baseline of its case.",
        ("decode", "prefill"),
    ),
    ("Inference: the whole layer", "bf16 in, bf16 out, activation quantization included.", ("layer",)),
    ("Training", "The whole step and its parts; the weight is masked, quantized and packed once per step.", ("train",)),
)
HEADLINE_OPS = ("gemm", "layer", "step", "prepare", "activation")
OVER = "the strongest baseline"
PANELS: tuple[PanelFunction, ...] = (
    power_panel.panel, operands.panel, layers.panel, model_step.panel, learning_panel.panel,
    breakeven.panel, memory.panel, scatter.panel, gate_limits.panel, landscape.panel, compiled.panel,
)  # fmt: skip
"""The sections that are a module each, in the order of the page; one without data is left out."""


def render(results: Results, compared: tuple[Results, Results] | None = None) -> str:
    """The HTML of the report. compared: two runs whose cases are set side by side as well."""
    comparer = Comparer(results)
    groups, cases = tables.groups(comparer), tables.case_rows(comparer)
    answered, run_rows = answers(comparer), provenance.run_rows(results)
    context: dict[str, Any] = {
        "answers": answered,
        "picker": picker(answered, list(pairs(results)), results.gpu),
        "works": WORK,
        "results": results,
        "run": next((head for head in reversed(results.runs) if head.evidence == "measured"), results.runs[-1] if results.runs else None),
        "light": LIGHT,
        "dark": DARK,
        "groups": [group for group in groups if group.op in HEADLINE_OPS],
        "about": tables.ABOUT,
        "best": _best(groups),
        "headline": headline_figure(results, groups) if any(group.summary.count for group in groups) else None,
        "speedups": speedup_figures(groups),
        "rooflines": roofline_figures(results, groups),
        "panels": panels(Data(results, comparer)),
        "tables": cases,
        "csv": packed_csv(results) if cases else "",
        "doubtful": failures.doubtful(cases),
        "failures": failures.failures(results),
        "absences": failures.absences(results),
        "statuses": failures.statuses(results),
        "origin": provenance.origin(results),
        "run_rows": run_rows,
        "facts": provenance.facts(run_rows),
        "conditions": provenance.conditions(results.measured),
        "roofs": [(name, value, unit) for unit, names in sorted(results.rates.items()) for name, value in sorted(names.items())],
        "published": [(entry, ours_beside(entry, results)) for entry in PUBLISHED],
        "footprint": FOOTPRINT,
        "weight_share": weight_share(results),
        "projections": projection_figures(results),
        "unmeasured": {kind: _evidence(results, kind) for kind in ("projected", "compiled", "interpreted")},
        "changes": (*compared, *tables.changes(*compared)) if compared else None,
    }
    return _environment().get_template("page.html").render(context)


def render_history(gpu: str, store: Path) -> str:
    """The HTML of the history page over a folder of runs or a .sqlite file."""
    given = {"light": LIGHT, "dark": DARK, **history.context(gpu, store)}
    return _environment().get_template("history.html").render(given)


def panels(data: Data) -> list[Panel]:
    """Every panel that has data."""
    return [made for function in PANELS if (made := function(data)) is not None]


def packed_csv(results: Results) -> str:
    """Every result as CSV (the columns of `reports.load.frame`), compressed, as the text of a data link; equal results give equal text."""
    text = frame(results).to_csv(index=False, lineterminator="\n")
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(
        times=times, num=number, duration=duration, pairs=tables.pairs, brief=tables.brief, slug=slug, rate=_rate,
        version=provenance.version,
    )
    return made


def number(value: float | None, digits: int = 3) -> str:
    """A number with about `digits` significant digits and no exponent; a dash for None."""
    if value is None:
        return "–"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - whole)}f}"


def _rate(value: float, unit: str) -> str:
    return f"{value / TERA:.2f} TB/s" if unit == "B/s" else f"{value / TERA:.0f} TOPS"


def _best(groups: Sequence[tables.Group]) -> tables.Group | None:
    """The group that the first sentence speaks of: the first suite's with most cases that has a ratio."""
    able = [group for group in groups if group.summary.count and group.op in HEADLINE_OPS]
    return able[0] if able else None


def headline_figure(results: Results, groups: Sequence[tables.Group] | None = None) -> Figure:
    """Geometric mean and range of every headline group over its strongest baseline."""
    shown = tables.groups(Comparer(results)) if groups is None else groups
    rows = [(group.name, group.summary, group.library) for group in shown if group.op in HEADLINE_OPS]
    return headline(rows, OVER, results.gpu.upper())


def speedup_figures(groups: Sequence[tables.Group]) -> list[tuple[str, str, list[Figure]]]:
    """The speed-up panels, a model each: (heading, note, figures) for inference, layers and training."""
    families = []
    for heading, note, suites in FAMILIES:
        own = [group for group in groups if group.suite in suites]
        panels = [(title, lines) for title, lines in _panels(own, suites) if any(line.points for some in lines for line in some)]
        limits, label = limits_of([lines for _, lines in panels]), "times as fast as the strongest"
        drawn = [over_tokens(f"fig-{slug(heading)}-{place}", *panel, limits, label) for place, panel in enumerate(panels)]
        if drawn:
            families.append((heading, note, drawn))
    return families


def _panels(groups: Sequence[tables.Group], suites: Sequence[str]) -> list[tuple[str, list[list[Line]]]]:
    """The lines of each panel, those that share a colour together: a panel per model with a colour per sparsity and a line per suite;
    in training a panel per model and sparsity with a colour per part."""
    def line(name: str, group: tables.Group, model: str) -> Line:
        return line_of(name, [item for item in group.comparisons if item.case.record.model == model])

    every = [item.case for group in groups for item in group.comparisons]
    models, found = in_order((case.record.model for case in every), ()), sparsities(every)
    if suites == ("train",):
        return [
            (f"{model}, {s}", [[line(part, g, model)] for part in reversed(PARTS) for g in groups if (g.op, g.sparsity) == (part, s)])
            for model in models
            for s in found
        ]
    by_sparsity = [(s, [g for name in suites for g in groups if (g.suite, g.sparsity) == (name, s)]) for s in found]
    return [(model or "shapes", [[line(f"{s} · {g.suite}", g, model) for g in some] for s, some in by_sparsity]) for model in models]


def roofline_figures(results: Results, groups: Sequence[tables.Group]) -> list[Figure]:
    """Two rooflines: inference by suite, training by part."""
    def family(names: Sequence[str], attribute: str) -> list[tuple[str, list[Comparison]]]:
        return [(name, [i for g in groups if getattr(g, attribute) == name for i in g.comparisons]) for name in names]

    inference, training = family(("decode", "prefill", "layer", "square"), "suite"), family(PARTS, "op")
    plans = [("Roofline, inference", inference), ("Roofline, training", training)]
    able = [(title, families) for title, families in plans if any(item.our_us for _, some in families for item in some)]
    return [roofline(f"fig-{slug(title)}", title, results, families) for title, families in able]


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


def _evidence(results: Results, kind: str) -> list[tuple[Case, Result]]:
    """Every result of the cases with this kind of evidence; equal compilations of one kernel are shown once."""
    seen: set[tuple[str, str]] = set()
    rows = []
    for case in results.cases:
        for result in case.record.results if case.record.evidence == kind else ():
            key = (result.kernel + case.problem.op, tables.pairs(result.config) + tables.pairs(result.compiled))
            if kind != "compiled" or key not in seen:
                rows.append((case, result))
            seen.add(key)
    return rows


