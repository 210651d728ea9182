"""Records of the model-level step: JSON lines with a schema of their own. Needs no torch.

    run    opens a run: environment, versions, GPU, method                                {"type": "run", "schema": …, "id": …}
    case   one model, batch and sparsity with the results of every variant, interleaved   {"type": "case", "run": id, …}

Sample i of every result of a case was taken in the same round; figures are derived on reading.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kernels.errors import OutputError, RecordError
from suites import lines, validate
from suites.command import ACCEPTED
from suites.record import Result
from suites.statistics import Ratio, speedup

SCHEMA = "tersparse-model/1"
METHOD = "interleaved-processes/1"
FILE = "model.jsonlines"
"""Name of a run's results in its folder; the ending keeps them apart from the records of `suites.run`."""


@dataclass(frozen=True)
class ModelResult:
    """One variant in one case.

    status: ok, or why there are no samples (with stage and reason). dense: it quantizes nothing. samples_us: an optimizer step, events
    around many, microseconds, one per round. host_us: what the host takes to enqueue one on an idle device, likewise. peak_bytes: the
    most that torch had allocated in a step; None off the device. losses: of the first steps. deviation: from the variant it was checked
    against (`suites.model_variants.deviation`). chosen: kernels by layer. packings: how often each weight was packed in the first steps.
    start_seconds: building, compiling and checking.
    """

    variant: str
    kind: Literal["variant", "baseline"]
    status: Literal["ok", "wrong", "failed"]
    stage: str | None = None
    reason: str | None = None
    dense: bool = False
    samples_us: tuple[float, ...] = ()
    host_us: tuple[float, ...] = ()
    peak_bytes: int | None = None
    losses: tuple[float, ...] = ()
    deviation: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    packings: int = 0
    start_seconds: float = 0.0

    @property
    def step_us(self) -> float | None:
        """Microseconds of an optimizer step: the median."""
        return statistics.median(self.samples_us) if self.samples_us else None


@dataclass(frozen=True)
class ModelCase:
    """One case: `blocks` of a model's `all_blocks` blocks over a vocabulary, tokens a micro-batch in sequences of context, so many
    micro-batches (accumulation) an optimizer step. master: type of the weights. parameters: of the decoder that was trained."""

    run: str
    model: str
    blocks: int
    all_blocks: int
    vocabulary: int
    tokens: int
    context: int
    accumulation: int
    sparsity: str
    master: Literal["bf16", "fp32"]
    parameters: int
    results: tuple[ModelResult, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """What identifies the case across runs."""
        return (f"{self.model}/{self.blocks} blocks/V={self.vocabulary}/T={self.tokens}/context={self.context}/"
                f"accumulation={self.accumulation}/{self.sparsity}/{self.master}")

    def result(self, variant: str) -> ModelResult | None:
        """The result of that variant, or None."""
        return next((result for result in self.results if result.variant == variant), None)

    def tokens_per_second(self, result: ModelResult) -> float | None:
        """Tokens trained in a second, or None where not measured."""
        step = result.step_us
        return None if step is None else self.tokens * self.accumulation / step * 1e6


@dataclass(frozen=True)
class ModelRun:
    """The head of a run; fields as in `suites.record.RunRecord`."""

    id: str
    gpu: str
    started: str
    commit: str
    dirty: bool
    method: str
    device: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    schema: str = SCHEMA


ModelRecord = ModelRun | ModelCase
_TYPES: Mapping[str, type[Any]] = {"run": ModelRun, "case": ModelCase}


def ratio(ours: ModelResult, theirs: ModelResult) -> Ratio | None:
    """How many times faster ours is: the median of the round-by-round ratios with its interval; None without pairs."""
    first, second = (Result(one.variant, one.kind, "ok", samples_us=one.samples_us) for one in (ours, theirs))
    return speedup(first, second)


def to_line(record: ModelRecord) -> str:
    """One JSON line, without the newline."""
    name = next(name for name, kind in _TYPES.items() if isinstance(record, kind))
    data = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    if isinstance(record, ModelCase):
        data["results"] = [{entry.name: getattr(result, entry.name) for entry in fields(result)} for result in record.results]
    return json.dumps({"type": name, **data}, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_dict(data: Any, where: str) -> ModelRecord:
    """A record from one parsed line; RecordError names `where` and what does not fit."""
    if not isinstance(data, dict) or not isinstance(data.get("type"), str) or data["type"] not in _TYPES:
        raise RecordError(f"{where}: not a model-level record; each line is an object with type run or case")
    if data["type"] == "run" and data.get("schema") != SCHEMA:
        raise RecordError(f"{where}: schema {data.get('schema')!r}, but this version reads {SCHEMA!r}")
    try:
        body = {name: _tuples(value) for name, value in data.items() if name != "type"}
        if data["type"] == "case":
            body["results"] = tuple(ModelResult(**{name: _tuples(value) for name, value in one.items()}) for one in data["results"])
        record: ModelRecord = _TYPES[data["type"]](**body)
    except (TypeError, AttributeError, KeyError) as error:
        raise RecordError(f"{where}: {error}") from None
    parts = (record, *record.results) if isinstance(record, ModelCase) else (record,)
    fault = next((wrong for part in parts if (wrong := validate.misfit(part))), None)
    results = record.results if isinstance(record, ModelCase) else ()
    if not fault and not all(validate.is_time(us) for result in results for us in (*result.samples_us, *result.host_us)):
        fault = validate.NO_TIME
    if fault:
        raise RecordError(f"{where}: {fault}")
    return record


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read(path: Path) -> list[ModelRecord]:
    """The records of a file, or of `FILE` in a folder. A last line that was cut off is dropped; RecordError for anything else amiss."""
    file = path / FILE if path.is_dir() else path
    found = [from_dict(data, where) for where, data in lines.values(file)]
    if not found or not isinstance(found[0], ModelRun):
        raise RecordError(f"{file}: a results file starts with its run record")
    return found


def append(path: Path, record: ModelRecord) -> None:
    """Add a record to a file and wait until it is on the disk; OutputError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(to_line(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def latest(records: Iterable[ModelRecord]) -> dict[str, ModelCase]:
    """The cases by key; where one was written twice, the later one counts."""
    return {record.key: record for record in records if isinstance(record, ModelCase)}


def accepted_file(gpu: str) -> Path:
    """Where the committed model-level results of that GPU are (or would be)."""
    return ACCEPTED / f"{gpu}.{FILE}"
