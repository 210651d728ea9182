"""The figures over groups of cases: the headline, the speed-ups over tokens, the rooflines."""

from __future__ import annotations

from collections.abc import Sequence

from reports import tables
from reports.compare import Comparer, Comparison, in_order, sparsities
from reports.figures import PARTS, Line, headline, limits_of, line_of, over_tokens, slug
from reports.load import Results
from reports.roofline import roofline
from reports.svg import Figure

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
