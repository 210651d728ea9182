"""Reading results: record files into one frozen value, and into a pandas frame with a row per kernel and case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import suites
from kernels.errors import RecordError, TerSparseError, UsageError
from kernels.gpu import GPUS, by_name
from kernels.problem import Problem, Sparsity
from reports.scan import read_latest
from suites.case import State
from suites.catalogue import Selection, plan
from suites.floors import SPARSE_MMA, expansion
from suites.record import CaseRecord, Result, RoofRecord, RunRecord
from suites.statistics import joules_per_call, time_us

TERA = 1e12
STATES: tuple[State, ...] = ("interleaved", "sustained")


@dataclass(frozen=True)
class Case:
    """A case record with its problem parsed. reached: False for a case that should have been measured and was not."""

    record: CaseRecord
    problem: Problem
    reached: bool = True

    @property
    def shape(self) -> str:
        """NxK: out_features by in_features (0xK where an op has no weight)."""
        return f"{self.problem.out_features}x{self.problem.in_features}"

    @property
    def measured(self) -> bool:
        """Whether its times were taken on a device."""
        return self.reached and self.record.evidence == "measured"

    @property
    def usual(self) -> bool:
        """Whether its weights are ternary, as in all cases that are summed up; others are for the comparison of operand values."""
        return self.record.data == "ternary"

    @property
    def lifted_operations(self) -> float:
        """Operations that sparse tensor cores do for it, lifted where its weights are."""
        return self.record.operations * expansion(self.problem.sparsity)

    def tops(self, us: float) -> float | None:
        """Tera operations per second, zeros included, when a call takes `us` microseconds; None where only bytes count."""
        return self.record.operations / us * 1e6 / TERA if self.record.operations else None

    def tbs(self, us: float) -> float:
        """Compulsory terabytes per second when a call takes `us` microseconds."""
        return self.record.compulsory_bytes / us * 1e6 / TERA

    def joules_per_top(self, result: Result) -> float | None:
        """Joules per 10^12 operations over the sustained blocks, or None."""
        joules = joules_per_call(result)
        return joules / self.record.operations * TERA if joules is not None and self.record.operations else None


@dataclass(frozen=True)
class Results:
    """Everything that was read, for one GPU.

    gpu: profile name. source: where it was read from, for the reader. cases: one per key and kind of evidence, the last written wins.
    unreached: cases that should have been measured and were not: a run planned them and ended before, or committed results, which stand for
    the suites' default cases, lack them. left_out: how many cases were not read because there are too many for a page.
    """

    gpu: str
    source: str
    runs: tuple[RunRecord, ...] = ()
    roofs: tuple[RoofRecord, ...] = ()
    cases: tuple[Case, ...] = ()
    unreached: tuple[Case, ...] = ()
    left_out: int = 0

    @property
    def measured(self) -> tuple[Case, ...]:
        """The cases that were measured on the device."""
        return tuple(case for case in self.cases if case.measured)

    @cached_property
    def rates(self) -> dict[str, dict[str, float]]:
        """Best measured roof by unit (B/s, op/s) and name, over all runs."""
        best: dict[str, dict[str, float]] = {}
        for roof in self.roofs:
            names = best.setdefault(roof.unit, {})
            names[roof.name] = max(roof.value, names.get(roof.name, 0.0))
        return best

    def _own_roofs(self, case: Case) -> Sequence[RoofRecord]:
        """Those of its run, else of its card, else all."""
        card = {run.id: run.device.get("uuid") for run in self.runs}
        same = [roof for roof in self.roofs if card.get(roof.run) == card.get(case.record.run)]
        return [roof for roof in same if roof.run == case.record.run] or same or self.roofs

    def sparse_roof_us(self, case: Case) -> float | None:
        """The case's operations, lifted where its weights are, at the measured rate of `mma.sp`, µs; None where that was not measured."""
        rate = max((roof.value for roof in self._own_roofs(case) if roof.name == SPARSE_MMA), default=0.0)
        return case.lifted_operations / rate * 1e6 if case.lifted_operations and rate else None

    def roof_us(self, case: Case) -> float | None:
        """The least time at the measured roofs (of its run, else of its card, else of any), µs: the larger of the compulsory bytes at the
        best bandwidth and the operations at the best dense rate of any type; None where no roof was measured."""
        own = self._own_roofs(case)
        bandwidth = max((roof.value for roof in own if roof.unit == "B/s"), default=0.0)
        rate = max((roof.value for roof in own if roof.unit == "op/s" and roof.name != SPARSE_MMA), default=0.0)
        if not bandwidth or (case.record.operations and not rate):
            return None
        arithmetic = case.record.operations / rate if case.record.operations else 0.0
        return max(case.record.compulsory_bytes / bandwidth, arithmetic) * 1e6


def accepted_path(gpu: str) -> Path:
    """Where the committed results of a GPU are; the file need not exist. UsageError for a name that is neither a profile nor there."""
    folder = Path(suites.__file__).parent / "accepted"
    known = {profile.name for profile in GPUS} | {file.stem for file in folder.glob("*.jsonl")}
    return folder / f"{gpu if gpu in known else by_name(gpu).name}.jsonl"


def load(gpu: str, runs: Sequence[str | Path] = (), most: int | None = None) -> Results:
    """The results of `gpu`: those in `runs` (folders, .jsonl or .sqlite files), or the committed ones where none is given.

    gpu: a profile's name, the name of an unlisted GPU that the runs carry, or "auto": the runs' own, else h200. Without committed
    results an empty `Results`. most: at most so many cases of each kind of evidence, those written last; `left_out` counts the others.
    Raises RecordError for what cannot be read, UsageError for an unknown GPU or runs of another one.
    """
    if not runs:
        path = accepted_path("h200" if gpu == "auto" else gpu)
        if not path.exists():
            return _gather(path.stem, [], f"committed results of {path.stem}")
        due = [case.key for state in STATES for case in plan(Selection(state=state))]
        return _gather(path.stem, [path], f"committed results of {path.stem}", due)
    return _gather(gpu, [Path(run) for run in runs], ", ".join(map(str, runs)), most=most)


def _gather(gpu: str, paths: Sequence[Path], source: str, due: Iterable[str] = (), most: int | None = None) -> Results:
    """due: keys of cases that these results should hold whatever their runs had planned."""
    heads: list[RunRecord] = []
    roofs: dict[tuple[str, str], RoofRecord] = {}
    cases: dict[tuple[str, str], Case] = {}
    records, left_out = read_latest(paths, most)
    for path, record in records:
        if isinstance(record, RunRecord):
            gpu = record.gpu if gpu == "auto" else gpu
            if record.gpu != gpu:
                raise UsageError(f"{path}: results of {record.gpu}, but --gpu {gpu} is claimed; use --gpu {record.gpu}")
            heads.append(record)
        elif isinstance(record, RoofRecord):
            roofs[record.run, record.name] = record
        else:
            cases[record.key, record.evidence] = Case(record, Problem.from_dict(dict(record.problem)))
    done = {key for key, evidence in cases if evidence == "measured"}
    planned = [(key, head.id) for head in heads if head.evidence == "measured" for key in head.planned] + [(key, "") for key in due]
    unreached = {} if left_out else {key: _unreached(key, run) for key, run in planned if key not in done}
    return Results(gpu, source, tuple(heads), tuple(roofs.values()), tuple(cases.values()), tuple(unreached.values()), left_out)


def _unreached(key: str, run: str) -> Case:
    """The case that a planned key names (`CaseRecord.key`)."""
    try:
        rest, layer, label, cache, state = key.rsplit("/", 4)
        suite, model = rest.split("/", 1)
        problem = _problem(label)
    except (TerSparseError, ValueError, AttributeError) as error:
        raise RecordError(f"run {run}: planned case {key!r} is not the key of a case: {error}") from None
    record = CaseRecord(
        run, suite, model, layer, "sustained" if state == "sustained" else "interleaved", "cold" if cache == "cold" else "hot",
        problem.to_dict(), label, problem.operations, 0, (),
        data="uniform" if layer.endswith("(uniform data)") else "zero" if layer.endswith("(zero data)") else "ternary",
    )  # fmt: skip
    return Case(record, problem, reached=False)


def _problem(label: str) -> Problem:
    """The problem that `str(problem)` names."""
    op, shape, *rest = label.split()
    sizes = [int(size) for size in shape.removeprefix("K=").split("x")]
    tokens = int(rest.pop(0).removeprefix("T=")) if rest[0].startswith("T=") else 0
    sparsity = Sparsity.parse(rest.pop(0))
    splits = next((tuple(map(int, part[7:].split(","))) for part in rest if part.startswith("splits=")), ())
    dtype = next((part for part in rest if part in ("fp16", "fp32", "int32")), "bf16")
    out_features = sizes[0] if len(sizes) == 2 else 0
    fields: dict[str, Any] = {"op": op, "dtype": dtype, "bias": "bias" in rest, "splits": splits}
    return Problem(out_features=out_features, in_features=sizes[-1], tokens=tokens, sparsity=sparsity, **fields)


COLUMNS = (
    "suite", "model", "layer", "op", "shape", "out_features", "in_features", "tokens", "sparsity", "cache", "state", "evidence", "label",
    "kernel", "kind", "status", "exact", "dense", "us", "call_us", "tops", "tbs", "joules_per_top", "weight_bytes", "projected_us",
)


def frame(results: Results) -> pd.DataFrame:
    """A row per kernel and case, with the derived figures; the columns are `COLUMNS`, times in microseconds."""
    rows = [_row(case, result) for case in results.cases for result in case.record.results]
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
    return table


def _row(case: Case, result: Result) -> tuple[Any, ...]:
    record, problem = case.record, case.problem
    us = time_us(result)
    call = sorted(result.call_us)[len(result.call_us) // 2] if result.call_us else None
    return (
        record.suite, record.model, record.layer, problem.op, case.shape, problem.out_features, problem.in_features, problem.tokens,
        str(problem.sparsity), record.cache, record.state, record.evidence, record.label, result.kernel, result.kind, result.status,
        result.exact, result.dense, us, call, case.tops(us) if us else None, case.tbs(us) if us else None, case.joules_per_top(result),
        result.weight_bytes, result.projected_us,
    )
