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
    ceilings,
    compiled,
    failures,
    gate_limits,
    history,
    landscape,
    layers,
    learning_panel,
    memory,
    model_step,
    names,
    operands,
    power_panel,
    provenance,
    scatter,
    tables,
    unmeasured,
)
from reports.answers import WORK, answers
from reports.compare import Comparer
from reports.figures import slug, times
from reports.group_figures import HEADLINE_OPS, headline_figure, roofline_figures, speedup_figures
from reports.load import TERA, Results, frame
from reports.panel import Data, Panel, PanelFunction
from reports.picker import duration, picker
from reports.power import pairs
from reports.published import FOOTPRINT, PUBLISHED, ours_beside, weight_share
from reports.svg import DARK, LIGHT
from reports.two_runs import two_runs

PANELS: tuple[PanelFunction, ...] = (
    ceilings.panel, power_panel.panel, operands.panel, layers.panel, model_step.panel, learning_panel.panel,
    breakeven.panel, memory.panel, scatter.panel, gate_limits.panel, landscape.panel, compiled.panel, names.panel,
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
        "absences": failures.absences(results.measured),
        "statuses": failures.statuses(results),
        "origin": provenance.origin(results),
        "run_rows": run_rows,
        "facts": provenance.facts(run_rows),
        "conditions": provenance.conditions(results.measured),
        "roofs": [(name, value, unit) for unit, names in sorted(results.rates.items()) for name, value in sorted(names.items())],
        "published": [(entry, ours_beside(entry, results)) for entry in PUBLISHED],
        "footprint": FOOTPRINT,
        "weight_share": weight_share(results),
        **_without_gpu(results),
        "changes": two_runs(*compared) if compared else None,
    }
    return _environment().get_template("page.html").render(context)


def _without_gpu(results: Results) -> dict[str, Any]:
    """What the template of the part without a GPU needs."""
    cases = unmeasured.projected_cases(results)
    return {
        "projections": unmeasured.projection_figures(results),
        "projected": [(case, unmeasured.floors(case)) for case in cases],
        "unprojected": failures.absences(cases),
        "interpreted": unmeasured.interpreted(results),
        "unmeasured": unmeasured.kinds(results),
    }


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
        times=times, num=number, duration=duration, one_line=tables.one_line, case_name=tables.name_of, slug=slug, rate=_rate,
        version=provenance.version, thousands="{:,}".format,
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
