"""The page's tables as plain values: headline groups, and cases with every kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.compare import STRONGEST, STRONGEST_LIBRARY, Comparer, Comparison, Summary, in_order, sparsities, summarize, why
from reports.doubts import case_doubts, kernel_doubts
from reports.load import Case
from suites.record import CaseRecord, Result
from suites.statistics import OWN_BASELINES, Ratio, is_baseline, time_us

SUITES = ("prefill", "decode", "layer", "prepare", "train", "square")
ABOUT = {
    "prefill": "the GEMM with its scaling epilogue, many tokens",
    "decode": "the same GEMM, few tokens, weights out of cache",
    "layer": "the operator a user calls: bf16 in, bf16 out",
    "prepare": "mask, quantize and pack a master weight; quantize activations",
    "train": "one linear layer: forward, both gradients, and the whole step",
    "square": "tokens = out_features = in_features",
}
CUSPARSELT = ("cusparselt-int8-scaled", "cusparselt-bf16")


@dataclass(frozen=True)
class Group:
    """The cases of a suite with one sparsity and one op, compared with their strongest baseline, cuSPARSELt, and the strongest library."""

    suite: str
    op: str
    sparsity: str
    comparisons: tuple[Comparison, ...]
    summary: Summary
    cusparselt: Summary
    library: Summary

    @property
    def name(self) -> str:
        """For people: suite, op where a suite has several, sparsity."""
        op = f" {self.op}" if self.suite in ("train", "prepare") and self.op != self.suite else ""
        plain = self.op == "activation" and self.sparsity == "dense"
        return f"{self.suite}{op}" if plain else f"{self.suite}{op} {self.sparsity}"

    @property
    def winners(self) -> list[tuple[str, int]]:
        """Our kernels by the number of cases in which they are our fastest."""
        return _counted(item.ours.kernel for item in self.comparisons if item.ours)

    @property
    def rivals(self) -> list[tuple[str, int]]:
        """The baselines by the number of cases in which they are the strongest."""
        return _counted(item.theirs.kernel for item in self.comparisons if item.theirs)


def _counted(names: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def groups(comparer: Comparer) -> list[Group]:
    """Every interleaved measured group, in the order of the suites."""
    every = (*comparer.results.measured, *comparer.results.unreached)
    cases = [case for case in every if case.record.state == "interleaved" and case.usual]
    made = []
    for suite in in_order((case.record.suite for case in cases), SUITES):
        own = [case for case in cases if case.record.suite == suite]
        for op in in_order((case.problem.op for case in own), ("step", "forward", "input-grad", "weight-grad", "prepare", "activation")):
            for sparsity in sparsities(case for case in own if case.problem.op == op):
                made.append(_group(suite, op, sparsity, own, comparer))
    return made


def _group(suite: str, op: str, sparsity: str, cases: Iterable[Case], comparer: Comparer) -> Group:
    own = [case for case in cases if case.problem.op == op and str(case.problem.sparsity) == sparsity]
    comparisons = tuple(comparer(case, STRONGEST) for case in own)
    name = next((n for n in CUSPARSELT if any((r := case.record.result(n)) and r.status == "ok" for case in own)), "")
    over = [comparer(case, name) for case in own if case.record.result(name)] if name else []
    library = summarize(comparer(case, STRONGEST_LIBRARY) for case in own)
    return Group(suite, op, sparsity, comparisons, summarize(comparisons), summarize(over), library)


@dataclass(frozen=True)
class KernelRow:
    """One kernel within a case, as text and numbers for the page. over: how many times faster our fastest is."""

    name: str
    ours: bool
    us: float | None
    call_us: float | None
    tops: float | None
    over: float | None
    joules: float | None
    weight_mb: float | None
    remark: str


@dataclass(frozen=True)
class CaseRow:
    """One case of the table, with every kernel in it."""

    comparison: Comparison
    what: str
    shape: str
    cusparselt: Ratio | None
    kernels: tuple[KernelRow, ...]
    flag: str

    @property
    def tops(self) -> float | None:
        """Our rate, TOPS."""
        us = self.comparison.our_us
        return self.comparison.case.tops(us) if us else None

    @property
    def tbs(self) -> float | None:
        """Our compulsory traffic, TB/s."""
        us = self.comparison.our_us
        return self.comparison.case.tbs(us) if us else None

    @property
    def joules(self) -> float | None:
        """Our joules per 10^12 operations."""
        return self.comparison.case.joules_per_top(self.comparison.ours) if self.comparison.ours else None


def case_rows(comparer: Comparer) -> list[tuple[str, list[CaseRow]]]:
    """Every measured case by suite (sustained ones apart), in the order of the suites."""
    results = comparer.results
    tables: dict[str, list[CaseRow]] = {}
    for case in results.measured:
        name = case.record.suite if case.record.state == "interleaved" else f"{case.record.suite}, sustained"
        name += "" if case.usual else f", {case.record.data} data"
        tables.setdefault(name, []).append(_case_row(case, comparer))
    order = in_order(tables, [entry for suite in SUITES for entry in (suite, f"{suite}, sustained")])
    return [(name, tables[name]) for name in order]


def _case_row(case: Case, comparer: Comparer) -> CaseRow:
    record, problem = case.record, case.problem
    comparison = comparer(case, STRONGEST)
    name = next((n for n in CUSPARSELT if (r := record.result(n)) and r.status == "ok"), None)
    what = " · ".join(part for part in (record.layer, problem.op if record.suite in ("train", "prepare") else "") if part)
    shape = f"{problem.out_features}×{problem.in_features}" if problem.out_features else f"K = {problem.in_features}"
    kernels = tuple(_kernel_row(case, result, comparison) for result in record.results)
    over = comparer(case, name).ratio if name else None
    flags = [*kernel_doubts(comparison, record.results, comparer.results), *case_doubts(comparison)]
    return CaseRow(comparison, what, shape, over, kernels, "; ".join(flags))


def _kernel_row(case: Case, result: Result, comparison: Comparison) -> KernelRow:
    us, ours = time_us(result) if result.status == "ok" else None, comparison.our_us
    rate = case.tops(us) if us else None
    call = float(np.median(result.call_us)) if result.call_us else None
    remark = why(result).removeprefix(f"{result.kernel}: ") if us is None else _remark(result)
    weight = result.weight_bytes / 1e6 if result.weight_bytes else None
    over = us / ours if us and ours and result is not comparison.ours else None
    joules = case.joules_per_top(result)
    own_dense = result.kernel in OWN_BASELINES and is_baseline(case.record, result)
    name, ours_ = f"{result.kernel} (our dense kernel)" if own_dense else result.kernel, result.kind == "variant" and not own_dense
    return KernelRow(name, ours_, us, call, rate, over, joules, weight, remark)


def _remark(result: Result) -> str:
    parts = [] if result.exact else ["not exactly this function"]
    config = {name: value for name, value in result.config.items() if value != ""}
    if config:
        parts.append(f"{one_line(config)} ({result.config_source})")
    notes = {name: value for name, value in result.notes.items() if value != "" and result.config.get(name, "") != value}
    return "; ".join([*parts, one_line(notes)] if notes else parts)


def one_line(mapping: Mapping[str, Any]) -> str:
    """A mapping on one line: `block_n=128 stages=3`, nested ones in brackets."""
    return " ".join(f"{key}={'[' + one_line(value) + ']' if isinstance(value, Mapping) else value}" for key, value in mapping.items())


def name_of(record: CaseRecord) -> str:
    """A case within its suite and model for people: layer and label, no word twice."""
    return " ".join(dict.fromkeys([*record.layer.split(), *brief(record.label).split()]))


def brief(label: str) -> str:
    """A case's label without what is the same for most: splits and bias."""
    return " ".join(word for word in label.split() if not word.startswith("splits=") and word != "bias")
