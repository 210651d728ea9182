"""The record: what a run writes, one JSON object a line. Standard library only.

    run    opens a run (and each resumption of it): environment, versions, GPU, method      {"type": "run", "schema": …, "id": …}
    roof   one measured ceiling of the device                                              {"type": "roof", "run": id, …}
    case   one case with the results of every kernel in it, paired in time                  {"type": "case", "run": id, …}

Results keep their samples; statistics are derived on reading (`suites.statistics`). Within an interleaved case, sample i of every
result was taken in the same round, so that ratios are formed round by round. A case is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kernels.errors import RecordError
from suites import lines, validate

SCHEMA = "tersparse/1"

Evidence = Literal["measured", "compiled", "interpreted", "projected"]
Status = Literal["ok", "refused", "unavailable", "wrong", "failed"]


@dataclass(frozen=True)
class Result:
    """One kernel in one case.

    status: ok, or why there are no samples (with stage and reason). samples_us: kernel time per call, microseconds, one per round.
    call_us: call time (plain Python call, launch and host work included). blocks: sustained blocks, each with seconds, calls, joules,
    sm_mhz, power_w. config, config_source: default | tuned | search. exact, dense: as the kernel declares. check: what it was judged by
    and how far off it was. notes: algorithm ids, padding, split-k. weight_bytes, footprint: bytes. compiled: registers, spills,
    shared memory, instructions, where the evidence is "compiled". ceiling: op/s that its instruction reached from registers, one per
    round (`suites.ceilings`); empty where that was not timed.
    """

    kernel: str
    kind: Literal["variant", "baseline"]
    status: Status
    stage: str | None = None
    reason: str | None = None
    exact: bool = True
    dense: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    config_source: str = "default"
    samples_us: tuple[float, ...] = ()
    call_us: tuple[float, ...] = ()
    blocks: tuple[Mapping[str, float], ...] = ()
    check: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    compiled: Mapping[str, Any] = field(default_factory=dict)
    projected_us: float | None = None
    weight_bytes: int = 0
    footprint: int = 0
    ceiling: tuple[float, ...] = ()


@dataclass(frozen=True)
class CaseRecord:
    """One case: a problem of a suite in one cache state, and every kernel's result.

    problem: `Problem.to_dict()`. label: `str(problem)`. operations, compulsory_bytes: what any kernel must do and move.
    conditions: NVML before and after (clocks MHz, power W, temperature °C, throttle reasons). evidence: measured, or what else it is.
    refusal: why the case has no answer at all (a group that does not divide in_features), with no results then. seconds: how long it
    took in all; phases: seconds by phase (inputs, search, prepare, check, bind, measure). processes: where fresh processes took the
    samples one after the other, the rounds of each, in order; empty for one. data: what the operands hold (`suites.data`).
    """

    run: str
    suite: str
    model: str
    layer: str
    state: Literal["interleaved", "sustained"]
    cache: Literal["hot", "cold"]
    problem: Mapping[str, Any]
    label: str
    operations: int
    compulsory_bytes: int
    results: tuple[Result, ...]
    evidence: Evidence = "measured"
    conditions: Mapping[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    processes: tuple[int, ...] = ()
    data: Literal["ternary", "uniform", "zero"] = "ternary"

    @property
    def key(self) -> str:
        """What identifies the case across runs: suite, model, layer (which names data that is not ternary), problem, cache and state."""
        return "/".join((self.suite, self.model, self.layer, self.label, self.cache, self.state))

    def result(self, kernel: str) -> Result | None:
        """The result of the kernel of that name, or None."""
        return next((result for result in self.results if result.kernel == kernel), None)


@dataclass(frozen=True)
class RoofRecord:
    """One measured ceiling of the device: name (copy, read, dense-bf16 …), value in unit (B/s or op/s), and its samples."""

    run: str
    name: str
    value: float
    unit: str
    samples: tuple[float, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """The head of a run or of a resumption.

    gpu: profile name; device: name, uuid, power cap, clocks, driver. versions: python, torch, triton, cuda, cusparselt, cublas.
    commit, dirty: of the code. method: version of the measuring method; timer: what the clock is. started: ISO 8601, UTC.
    arguments: the command line. evidence: what the cases of this run are. planned: keys of all cases it is to measure, so that a gate
    knows what is missing.
    """

    id: str
    gpu: str
    started: str
    commit: str
    dirty: bool
    method: str
    timer: str
    device: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    evidence: Evidence = "measured"
    planned: tuple[str, ...] = ()
    schema: str = SCHEMA


Record = RunRecord | RoofRecord | CaseRecord
_TYPES: dict[str, type[Any]] = {"run": RunRecord, "roof": RoofRecord, "case": CaseRecord}
_FAULTS = {"run": validate.misfit, "roof": validate.roof_fault, "case": validate.case_fault}


def to_line(record: Record) -> str:
    """One JSON line, without the newline; fields that hold their default are left out to keep files small."""
    name = next(name for name, kind in _TYPES.items() if isinstance(record, kind))
    return json.dumps({"type": name, **_compact(record)}, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _compact(value: Any) -> dict[str, Any]:
    kept = {"schema"}
    data: dict[str, Any] = {}
    for entry in fields(value):
        content = getattr(value, entry.name)
        if entry.name not in kept and _is_default(entry, content):
            continue
        if entry.name == "results":
            content = [_compact(result) for result in content]
        data[entry.name] = content
    return data


def _is_default(entry: Any, content: Any) -> bool:
    if entry.default is MISSING and entry.default_factory is MISSING:
        return False
    return content in ((), {}) or bool(content == entry.default)


def from_dict(data: Mapping[str, Any], where: str = "record") -> Record:
    """A record from one parsed line; RecordError names `where` and what does not fit."""
    if not isinstance(data, dict) or not isinstance(data.get("type"), str) or data["type"] not in _TYPES:
        raise RecordError(f"{where}: not a TerSparse record; each line is an object with type run, roof or case")
    body = {key: value for key, value in data.items() if key != "type"}
    if data["type"] == "run" and body.get("schema") != SCHEMA:
        raise RecordError(f"{where}: schema {body.get('schema')!r}, but this version reads {SCHEMA!r}")
    try:
        if data["type"] == "case":
            body["results"] = tuple(_result(result) for result in body.get("results", ()))
        record: Record = _TYPES[data["type"]](**{key: _tuple(value) for key, value in body.items()})
    except (TypeError, AttributeError) as error:
        raise RecordError(f"{where}: {error}") from None
    fault = _FAULTS[data["type"]](record)
    if fault:
        raise RecordError(f"{where}: {fault}")
    return record


def _result(data: Mapping[str, Any]) -> Result:
    return Result(**{key: _tuple(value) for key, value in data.items()})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read(path: Path) -> Iterator[Record]:
    """The records of a .jsonl file, or of every .jsonl file in a folder, in order.

    A last line that was cut off (no newline, not JSON) is dropped: it is what an interrupted write leaves. Anything else that does
    not parse, another schema, or a file without a run record raises RecordError with file and line.
    """
    paths = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not paths:
        raise RecordError(f"{path}: no .jsonl file in this folder")
    for file in paths:
        yield from _read_file(file)


def _read_file(file: Path) -> Iterator[Record]:
    opened = False
    for where, data in lines.values(file):
        record = from_dict(data, where)
        if not opened and not isinstance(record, RunRecord):
            raise RecordError(f"{where}: a results file starts with its run record")
        opened = True
        yield record


def latest(records: Iterable[Record], evidence: Evidence = "measured") -> dict[str, CaseRecord]:
    """The cases of that evidence by key; where a case was written twice, the later one counts."""
    return {record.key: record for record in records if isinstance(record, CaseRecord) and record.evidence == evidence}
