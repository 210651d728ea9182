"""Answers for a whole model: its layers summed, ours beside the baselines, per kind of work, weights and number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reports.compare import STRONGEST, STRONGEST_LIBRARY, Comparer, Comparison, in_order
from reports.doubts import case_doubts, kernel_doubts
from reports.load import Case
from suites.models import MODELS
from suites.record import Result
from suites.statistics import Ratio, time_us

BLOCK = ("Wqkv", "Wo", "W13", "W2")
"""The linear layers of a transformer block; where a model has exactly these, they are summed."""
WORK = {"layer": "inference, the whole layer", "gemm": "inference, the GEMM alone", "step": "training, one step"}
"""Kinds of work by op, in the order of the page."""
BLOCKS = {model.name: model.blocks for model in MODELS}
"""Transformer blocks of each model."""


@dataclass(frozen=True)
class Answer:
    """What is fastest for a model at one number of tokens: its layers' comparisons with the strongest baseline of each, in block order.

    us: our kernel times summed, µs; theirs_us: those of the strongest baselines. ratio: theirs_us / us; the layers' intervals are combined
    in quadrature, each by its share of the time. others: sums of single kernels over all layers, µs, by name, where every layer has one.
    doubts: why it is not to be relied on, layer by layer.
    library: the comparisons with the strongest library of each layer, what one would use without this project; empty unless all have one.
    """

    model: str
    work: str
    sparsity: str
    tokens: int
    items: tuple[Comparison, ...]
    us: float
    theirs_us: float
    ratio: Ratio
    others: dict[str, float]
    library: tuple[Comparison, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def library_us(self) -> float | None:
        """The strongest libraries' times summed, µs."""
        return sum(item.their_us or math.nan for item in self.library) if self.library else None

    @property
    def libraries(self) -> list[str]:
        """The strongest libraries of the layers, the most frequent first."""
        return _counted(item.theirs.kernel for item in self.library if item.theirs)

    @property
    def cache(self) -> str:
        """cold or hot."""
        return self.items[0].case.record.cache

    @property
    def whole(self) -> bool:
        """Whether these are all the linear layers of a block."""
        return tuple(item.case.record.layer for item in self.items) == BLOCK

    @property
    def ours(self) -> list[str]:
        """Our kernels, the most frequent first."""
        return _counted(item.ours.kernel for item in self.items if item.ours)

    @property
    def theirs(self) -> list[str]:
        """The strongest baselines of the layers, the most frequent first."""
        return _counted(item.theirs.kernel for item in self.items if item.theirs)

    @property
    def pairs(self) -> int:
        """The least number of paired rounds of a layer."""
        return min(item.ratio.pairs for item in self.items if item.ratio)

    def inexact(self) -> list[tuple[str, float]]:
        """Baselines that compute another function, as name and µs: the fastest where it is faster than ours, and the fastest dense one."""
        every = [result for item in self.items for result in item.case.record.results if not result.exact and result.status == "ok"]
        names = {result.kernel: result.dense for result in every if result.kind == "baseline"}
        found = sorted((us, name) for name, us in self.others.items() if name in names)
        shown = [one for one in found[:1] if one[0] < self.us] + [one for one in found if names[one[1]]][:1]
        return [(name, us) for us, name in dict.fromkeys(shown)]


def _counted(names: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))


def subject(case: Case) -> str:
    """Whose answer a case belongs to: its model; for a single shape, the shape."""
    record = case.record
    return record.model if record.layer in BLOCK else f"{record.model} {case.shape}".strip()


def answers(comparer: Comparer) -> list[Answer]:
    """Every answer of the interleaved cases that have our kernel and a baseline, by work, model, weights and tokens.

    Where a layer of a model lacks its ratio, there is no answer: a sum of fewer layers would look faster than it is.
    """
    grouped: dict[tuple[str, str, str, int], list[Case]] = {}
    for case in (*comparer.results.measured, *comparer.results.unreached):
        if case.usual and case.problem.op in WORK and case.record.state == "interleaved" and case.record.suite != "square":
            key = (case.problem.op, subject(case), str(case.problem.sparsity), case.problem.tokens)
            grouped.setdefault(key, []).append(case)
    works, models = in_order({key[0] for key in grouped}, tuple(WORK)), sorted({key[1] for key in grouped})
    weights = in_order({key[2] for key in grouped}, ("2:4", "6:8", "dense"))
    keys = sorted(grouped, key=lambda key: (works.index(key[0]), models.index(key[1]), weights.index(key[2]), key[3]))
    made = [_answer(key, grouped[key], comparer) for key in keys]
    return [answer for answer in made if answer]


def _answer(key: tuple[str, str, str, int], cases: Sequence[Case], comparer: Comparer) -> Answer | None:
    work, model, sparsity, tokens = key
    caches = {case.record.cache for case in cases}
    ordered = sorted(cases, key=lambda case: BLOCK.index(case.record.layer) if case.record.layer in BLOCK else 0)
    items = tuple(comparer(case, STRONGEST) for case in ordered)
    if len(caches) != 1 or not all(item.ratio for item in items):
        return None
    us, theirs = [item.our_us or math.nan for item in items], [item.their_us or math.nan for item in items]
    ratio = _combined([item.ratio for item in items if item.ratio], us, theirs)
    library = tuple(comparer(case, STRONGEST_LIBRARY) for case in ordered)
    sums = _sums([item.case for item in items])
    doubts = tuple(f"{item.case.record.layer or item.case.shape}: {doubt}" for item in items for doubt in _doubts(item, comparer))
    over_libraries = library if all(item.ratio for item in library) else ()
    return Answer(model, work, sparsity, tokens, items, sum(us), sum(theirs), ratio, sums, over_libraries, doubts)


def _doubts(item: Comparison, comparer: Comparer) -> list[str]:
    """Why a layer is not to be relied on: its case, and the two kernels that are spoken of."""
    spoken = [result for result in (item.ours, item.theirs) if result]
    return [*case_doubts(item), *kernel_doubts(item, spoken, comparer.results)]


def _combined(ratios: Sequence[Ratio], us: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of the sums. Half-widths of the layers' intervals, on the logarithmic scale, add in quadrature by share of time."""
    shares = [max(a / sum(us), b / sum(theirs)) for a, b in zip(us, theirs, strict=True)]
    down = math.hypot(*(share * math.log(ratio.value / ratio.low) for share, ratio in zip(shares, ratios, strict=True)))
    up = math.hypot(*(share * math.log(ratio.high / ratio.value) for share, ratio in zip(shares, ratios, strict=True)))
    value = sum(theirs) / sum(us)
    return Ratio(value, value * math.exp(-down), value * math.exp(up), min(ratio.pairs for ratio in ratios))


def _sums(cases: Sequence[Case]) -> dict[str, float]:
    """The time of each kernel summed over the cases, µs, of those that have one in every case."""
    def timed(result: Result) -> float | None:
        return time_us(result) if result.status == "ok" else None

    found = [{result.kernel: us for result in case.record.results if (us := timed(result))} for case in cases]
    return {name: sum(times[name] for times in found) for name in found[0] if all(name in times for times in found)}
