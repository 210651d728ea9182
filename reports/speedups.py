"""`python -m reports.speedups`: how much faster our kernels are than a baseline, case by case, and on one last line.

Exit codes: 0 every case has its ratio · 2 a wrong argument or a bad results file · 4 a case has none (its reason is printed).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from autotune.command import Parser, guarded
from kernels.errors import RecordError, UsageError
from kernels.problem import Sparsity
from reports.compare import CHOICES, ROOF, ROOFS, Comparison, Summary, compare, in_order, plain, sparsities, summarize
from reports.load import Case, Results, load
from suites.command import EXIT_CODES, INCONCLUSIVE
from suites.floors import SPARSE_MMA
from suites.statistics import OWN_DENSE

MOST_NAMED = 3
EXAMPLE = "example: python -m reports.speedups --gpu h200 --suite prefill --sparsity 2:4 --over strongest"
PARTS = {"train": ("forward", "input-grad", "weight-grad", "step"), "prepare": ("prepare", "activation")}
"""The suites of several ops, and these."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    description = "Speed-ups of our kernels over a baseline, by case."
    made = Parser(prog="python -m reports.speedups", description=description, epilog=f"{EXAMPLE} · {EXIT_CODES}")
    made.add_argument("--gpu", required=True, help="profile name, such as h200; auto: the runs' own")
    made.add_argument("--suite", required=True, help="one suite: prefill, decode, layer, prepare, train, square")
    over = f"a baseline's name, or {', '.join(CHOICES)} (the last two: the share of the case's roof, of mma.sp's in the same rounds)"
    made.add_argument("--over", required=True, metavar="NAME", help=over)
    made.add_argument("--sparsity", help="dense, 2:4 or 6:8; left out: every sparsity")
    made.add_argument("--model", help="one model's layers")
    made.add_argument("--shape", metavar="NxK", help="one shape: out_features x in_features")
    made.add_argument("--min-tokens", type=int, metavar="T")
    made.add_argument("--max-tokens", type=int, metavar="T")
    parts = [part for own in PARTS.values() for part in own]
    made.add_argument("--part", choices=parts, help="of --suite train (left out: step), or of --suite prepare (left out: both)")
    made.add_argument("--variant", metavar="NAME", help="one of our variants; left out: the fastest exact one of each case")
    made.add_argument("--state", choices=("interleaved", "sustained"), default="interleaved")
    made.add_argument("--run", nargs="+", action="extend", default=[], metavar="RUN", help="folders or .jsonl; left out: committed results")
    made.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return guarded("reports.speedups", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    comparisons = select(load(options.gpu, options.run), options)
    summary = summarize(comparisons)
    print(as_json(comparisons, summary) if options.json else as_table(comparisons, summary, options.over))
    return INCONCLUSIVE if summary.missing else 0


def select(results: Results, options: argparse.Namespace) -> list[Comparison]:
    """The comparisons of the cases under the filters, in the records' order; UsageError for a name the records do not hold."""
    if not results.cases:
        raise RecordError(f"{results.source}: no cases; measure with python -m suites.run --gpu {results.gpu}, or give --run")
    if options.part and options.part not in PARTS.get(options.suite, ()):
        own = PARTS.get(options.suite)
        allowed = f"its parts are {', '.join(own)}" if own else f"it has none; suites with parts are {', '.join(PARTS)}"
        raise UsageError(f"--part {options.part}: not a part of --suite {options.suite}: {allowed}")
    usual = [case for case in (*results.cases, *results.unreached) if case.usual]
    cases = _allowed(usual, "--suite", options.suite, lambda case: case.record.suite)
    part = options.part or ("step" if options.suite == "train" else None)
    if part:
        cases = _allowed(cases, "--part", part, lambda case: case.problem.op)
    cases = _allowed(cases, "--state", options.state, lambda case: case.record.state)
    if options.sparsity:
        cases = _allowed(cases, "--sparsity", str(Sparsity.parse(options.sparsity)), lambda case: str(case.problem.sparsity))
    if options.model:
        cases = _allowed(cases, "--model", options.model, lambda case: case.record.model)
    if options.shape:
        if not re.fullmatch(r"\d+x\d+", options.shape):
            raise UsageError(f"--shape {options.shape!r}: allowed is NxK, such as 13824x2560")
        cases = _allowed(cases, "--shape", options.shape, lambda case: case.shape)
    low, high = options.min_tokens or 0, options.max_tokens if options.max_tokens is not None else math.inf
    within = [case for case in cases if low <= case.problem.tokens <= high]
    if not within:
        raise UsageError(f"no case has {low} to {high} tokens; there are {', '.join(map(str, sorted({c.problem.tokens for c in cases})))}")
    _known_kernels(within, options)
    chosen = _prefer_measured(within)
    foreign = _foreign(options.over, chosen)
    return [
        Comparison(case, reason=foreign[case.problem.op], refused=True) if case.problem.op in foreign
        else compare(case, options.over, results, options.variant)
        for case in chosen
    ]


def _foreign(over: str, cases: Sequence[Case]) -> dict[str, str]:
    """Why the named baseline cannot exist for an op: it has no result there, not even an unavailable one, but has some of another op."""
    takers = {case.problem.op for case in cases if case.reached and case.record.result(over)}
    ops = {case.problem.op for case in cases} - takers if takers and over not in CHOICES else set()
    return {op: f"{over} is a baseline of {', '.join(sorted(takers))}, not of {op}" for op in ops}


def _allowed(cases: Iterable[Case], option: str, wanted: str, attribute: Any) -> list[Case]:
    """The cases whose attribute is the wanted one; when there are none, a UsageError that lists what there is."""
    cases = list(cases)
    found = [case for case in cases if attribute(case) == wanted]
    if not found:
        there = sparsities(cases) if option == "--sparsity" else in_order((attribute(case) for case in cases), ())
        raise UsageError(f"{option} {wanted}: not among these results; allowed: {', '.join(there)}")
    return found


def _known_kernels(cases: Iterable[Case], options: argparse.Namespace) -> None:
    """UsageError for names that the results do not hold; where nothing was measured there is nothing to know them by."""
    cases = list(cases)
    if not any(case.reached for case in cases):
        return
    names = {kind: {r.kernel for case in cases for r in case.record.results if r.kind == kind} for kind in ("variant", "baseline")}
    if options.variant and options.variant not in names["variant"]:
        raise UsageError(f"--variant {options.variant}: not among these results; allowed: {', '.join(sorted(names['variant']))}")
    over = names["baseline"] | ({OWN_DENSE} & names["variant"])
    if options.over not in CHOICES and options.over not in over:
        allowed = ", ".join([*CHOICES, *sorted(over)])
        raise UsageError(f"--over {options.over}: not among these results; allowed: {allowed}")


def _prefer_measured(cases: Iterable[Case]) -> list[Case]:
    """One case per key: the measured one where there is one."""
    chosen: dict[str, Case] = {}
    for case in cases:
        if case.record.key not in chosen or case.measured:
            chosen[case.record.key] = case
    return list(chosen.values())


def as_table(comparisons: Sequence[Comparison], summary: Summary, over: str) -> str:
    """The table for people: a row per case, then the cases without a ratio with their reasons, then the summary line."""
    sustained = any(item.ours and item.ours.blocks for item in comparisons)
    both = over == SPARSE_MMA
    head = ["model", "what", "NxK", "tokens", "weights", "ours", "µs", "TOPS", "TB/s", "over", "µs", "share" if over in ROOFS else "ratio"]
    head += ["95 % interval"] + (["cool share"] if both else []) + (["J/TOP", "their J/TOP"] if sustained else [])
    rows = [_cells(row_of(item), both, sustained) for item in comparisons if item.ratio]
    lines = _aligned([head, *rows]) if rows else []
    for mark in ("refused", "not compared", "missing"):
        lines += _without(mark, [item for item in comparisons if not item.ratio and _mark(item) == mark])
    return "\n".join([*lines, summary.line])


def _mark(item: Comparison) -> str:
    return "missing" if not item.refused else "refused" if item.case.record.refusal is not None else "not compared"


def _without(mark: str, items: Sequence[Comparison]) -> list[str]:
    """The cases without a ratio and why; where more than three have the same reason, their number and the first."""
    reasons: dict[str, list[str]] = {}
    for item in items:
        words = (item.case.record.model, item.case.record.layer, item.case.record.label)
        reasons.setdefault(item.reason or "", []).append(" ".join(word for word in words if word))
    shown = []
    for reason, cases in reasons.items():
        few = cases if len(cases) <= MOST_NAMED else [f"{len(cases)} cases, the first {cases[0]}"]
        shown += [f"{mark}: {case}: {reason}" for case in few]
    return shown


def row_of(item: Comparison) -> dict[str, Any]:
    """One comparison as plain data: the row of the table and of `--json`; times in µs, rates in TOPS and TB/s."""
    case, us = item.case, item.our_us
    return {
        "model": case.record.model, "layer": case.record.layer, "op": case.problem.op, "shape": case.shape, "tokens": case.problem.tokens,
        "sparsity": str(case.problem.sparsity), "cache": case.record.cache, "state": case.record.state, "label": case.record.label,
        "ours": item.ours.kernel if item.ours else None, "us": us, "tops": case.tops(us) if us else None,
        "tbs": case.tbs(us) if us else None, "joules_per_top": case.joules_per_top(item.ours) if item.ours else None,
        "over": item.theirs.kernel if item.theirs else ROOF if item.roof_us else None, "over_us": item.their_us,
        "over_joules_per_top": case.joules_per_top(item.theirs) if item.theirs else None,
        "ratio": item.ratio.value if item.ratio else None, "low": item.ratio.low if item.ratio else None,
        "high": item.ratio.high if item.ratio else None, "pairs": item.ratio.pairs if item.ratio else 0,
        "refused": item.refused, "reason": item.reason, "roof_timed": item.timed, "cool_share": item.cool_share,
    }


def _cells(row: dict[str, Any], both: bool, sustained: bool) -> list[str]:
    layer = row["op"] if row["op"] in ("prepare", "activation") else row["layer"]
    cells = [row["model"], layer, row["shape"], str(row["tokens"] or "-"), row["sparsity"], row["ours"]]
    cells += [_number(row["us"], 1), _number(row["tops"], 1), _number(row["tbs"], 3), row["over"], _number(row["over_us"], 1)]
    cells += [plain(row["ratio"]), f"{plain(row['low'])}-{plain(row['high'])}"]
    if both:
        cells[9] += f", {row['roof_timed']}"
        cells.append(_number(row["cool_share"], 3))
    return [*cells, _number(row["joules_per_top"], 3), _number(row["over_joules_per_top"], 3)] if sustained else cells


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = {0, 1, 2, 4, 5, 9}

    def line(row: Sequence[str]) -> str:
        sized = zip(row, widths, strict=True)
        return "  ".join(cell.ljust(width) if place in text else cell.rjust(width) for place, (cell, width) in enumerate(sized)).rstrip()

    return [line(row) for row in rows]


def as_json(comparisons: Sequence[Comparison], summary: Summary) -> str:
    """One JSON object: the rows, and the summary (null where there is no ratio)."""
    figures = {"geomean": summary.geomean, "min": summary.least, "max": summary.greatest}
    plain = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    body = {"summary": {**plain, "n": summary.count, "missing": summary.missing}, "rows": [row_of(item) for item in comparisons]}
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main())
