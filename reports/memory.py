"""The panel of memory and energy: bytes of the weights against bf16, fp8 and int4, and joules per call of ours and the baselines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from kernels.storage import FORMATS, INT4_GROUP, Format, total
from reports.load import Case, Results
from reports.panel import Data, Panel, folded, paragraph, table, tag
from suites.models import MODELS, Model
from suites.record import Result
from suites.statistics import best_variant, joules_per_call

MOST_BASELINES = 6
DECODE_TOKENS = 64
"""Up to so many tokens a case counts as decode."""


def panel(data: Data) -> Panel | None:
    """The section; None where there is no result at all."""
    if not data.results.cases:
        return None
    parts = (*_weights(), *_stored(data.results), *_energy(data.results))
    return Panel("memory", "Memory and energy", "Memory, energy", Markup("\n").join(parts))


def _weights() -> list[Markup]:
    note = (
        "All linear layers of all blocks, scales included, without embeddings and caches; computed from the layouts, not measured. "
        f"fp8 with a scale a projection, int4 with a 16-bit scale for every {INT4_GROUP} weights. In brackets: how often it fits into bf16."
    )
    rows = [[model.name, *(_size(layout, model, model.blocks) for layout in FORMATS)] for model in MODELS]
    layers = [
        [f"{model.name} {layer.name}", f"{layer.out_features}×{layer.in_features}",
         *(_mb(layout.nbytes(layer.out_features, layer.in_features, len(layer.splits)), 1e6) for layout in FORMATS)]
        for model in MODELS for layer in model.layers
    ]
    names = [layout.name for layout in FORMATS]
    return [
        Markup("<h3>Weight bytes</h3>"), paragraph(note, "note"), table("Weight bytes of whole models", ["Model, GB", *names], rows),
        folded("By layer", table("Weight bytes by layer", ["Layer, MB", "NxK", *names], layers, text=(0, 1))),
    ]


def _size(layout: Format, model: Model, blocks: int) -> Markup:
    layers = [(layer.out_features, layer.in_features, len(layer.splits)) for layer in model.layers]
    own, bf16 = blocks * total(layout, layers), blocks * total(FORMATS[0], layers)
    share = Markup(' <span class="iv">({:.1f}×)</span>').format(bf16 / own) if layout is not FORMATS[0] else Markup("")
    return Markup("{}{}").format(_mb(own, 1e9), share)


def _mb(nbytes: float, unit: float) -> str:
    value = nbytes / unit
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _stored(results: Results) -> list[Markup]:
    """Bits per weight as each kernel stored it in these records, layouts that nobody lists here included."""
    found: dict[tuple[str, str], list[float]] = {}
    for case in results.measured:
        count = case.problem.out_features * case.problem.in_features
        for result in case.record.results if count and case.problem.op in ("gemm", "layer") else ():
            if result.status == "ok" and result.weight_bytes:
                found.setdefault((result.kernel, str(case.problem.sparsity)), []).append(8 * result.weight_bytes / count)
    if not found:
        return []
    rows = [[kernel, sparsity, f"{min(bits):.2f}", f"{max(bits):.2f}", len(bits)] for (kernel, sparsity), bits in sorted(found.items())]
    head = ["Kernel", "Weights", "Least bits per weight", "Most", "Cases"]
    return [folded("As the kernels of these results stored it", table("Bits per weight in the records", head, rows, text=(0, 1)))]


def _energy(results: Results) -> list[Markup]:
    cases = [case for case in results.measured if case.record.state == "sustained" and not case.record.refusal]
    parts = [Markup("<h3>Joules per call</h3>")]
    if cases:
        note = (
            "From sustained blocks: the energy counter of the whole board over the calls, idle power included. Ours is the fastest of our "
            "exact kernels in the case; in brackets how often its joules fit into a baseline's. Not measurable: the device gave no joules; "
            "a dash: the kernel was not measured there."
        )
        parts += [paragraph(note, "note"), _joules(cases)]
    for phase, suite in (("Decode", "decode"), ("Prefill", "prefill")):
        if not any(_phase(case) == phase for case in cases):
            command = f"python -m suites.run --gpu {results.gpu} --state sustained --suite {suite}"
            said = Markup("{} {}: no sustained record of it. Measured by <code>{}</code>.").format(tag("not measured"), phase, command)
            parts.append(paragraph(said))
    return parts


def _phase(case: Case) -> str:
    return "Decode" if case.problem.tokens <= DECODE_TOKENS else "Prefill"


def _joules(cases: Sequence[Case]) -> Markup:
    baselines = _baselines(cases)
    head = ["Case", "Phase", "Tokens", "Our kernel", "Ours, mJ", *(f"{name}, mJ" for name in map(_named, baselines))]
    rows = []
    for case in sorted(cases, key=lambda case: (_phase(case), case.record.suite, case.record.model)):
        ours = best_variant(case.record)
        name = f"{case.record.model or 'square'} {case.record.layer or case.shape} {case.problem.sparsity}"
        kernel = ours.kernel if ours else "–"
        theirs = [_beside(case.record.result(name), ours) for name, _ in baselines]
        rows.append([name, _phase(case), case.problem.tokens, kernel, _millijoules(ours), *theirs])
    return table("Joules per call", head, rows, text=(0, 1, 3))


def _baselines(cases: Iterable[Case]) -> list[tuple[str, bool]]:
    """The baselines that have joules in most cases, those of the same function first, at most so many: name and whether it is exact."""
    counts: dict[tuple[str, bool], int] = {}
    for case in cases:
        for result in case.record.results:
            if result.kind == "baseline" and joules_per_call(result) is not None:
                counts[result.kernel, result.exact] = counts.get((result.kernel, result.exact), 0) + 1
    return sorted(counts, key=lambda key: (not key[1], -counts[key], key[0]))[:MOST_BASELINES]


def _named(baseline: tuple[str, bool]) -> str:
    return baseline[0] if baseline[1] else f"{baseline[0]} (another function)"


def _beside(theirs: Result | None, ours: Result | None) -> Markup | str:
    """A baseline's millijoules, and how often ours fit into them."""
    told = _millijoules(theirs)
    pair = [joules_per_call(one) if one and one.status == "ok" and one.blocks else None for one in (theirs, ours)]
    if pair[0] is None or not pair[1]:
        return told
    return Markup('{} <span class="iv">({:.1f}×)</span>').format(told, pair[0] / pair[1])


def _millijoules(result: Result | None) -> str:
    if result is None or result.status != "ok":
        return "–"
    joules = joules_per_call(result) if result.blocks else None
    return "not measurable" if joules is None else f"{1e3 * joules:.{3 if joules < 1e-2 else 1}f}"
