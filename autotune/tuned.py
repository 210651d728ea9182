"""Tuned configs: a generated, committed JSON file per GPU, looked up by problem, never applied when its kernel has changed since."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from kernels.errors import OutputError, RecordError
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import Config, config_to_dict

SCHEMA = "tersparse-tuned/1"
FOLDER = Path(__file__).resolve().parent / "tuned"
REACH = 2.0
"""Largest ratio of tokens over which a tuned config is carried. On an H200 (2026-11-22) winners of T = 512 took up to 1.8 times the
best config's time at T = 128."""


@dataclass(frozen=True)
class Entry:
    """One tuned config.

    kernel, op, out_features, in_features, tokens, sparsity, dtype: what it is for. config: as JSON. us, default_us: measured time of the
    winner and of the default config, microseconds (None where the default cannot run). source: hash of the kernel's source text.
    versions: of the libraries it was measured with. ties: finalists within the noise of the winner. date: when, ISO 8601.
    chance: of the winner being the best of the finalists (bootstrap). memory_gb: of the GPU. evaluated: how many candidates have an
    outcome, of how many. (None and () in entries of before these were kept.)
    """

    kernel: str
    op: str
    out_features: int
    in_features: int
    tokens: int
    sparsity: str
    dtype: str
    config: Mapping[str, Any]
    us: float
    default_us: float | None
    source: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    ties: tuple[Mapping[str, Any], ...] = ()
    date: str = ""
    chance: float | None = None
    memory_gb: int | None = None
    evaluated: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, int, int, int, str, str]:
        """What an entry is unique by, and sorted by."""
        return (self.op, self.kernel, self.out_features, self.in_features, self.tokens, self.sparsity, self.dtype)

    def fits(self, kernel: Kernel, problem: Problem) -> bool:
        """Whether it is for that kernel and layer, at whatever number of tokens."""
        return self.key == key_of(kernel, problem.with_(tokens=self.tokens))


def key_of(kernel: Kernel, problem: Problem) -> tuple[str, str, int, int, int, str, str]:
    """The `Entry.key` for a problem."""
    return (
        kernel.op, kernel.name, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype,
    )


def source_hash(kernel: Kernel) -> str:
    """A hash of the source text that `kernel` is made of: the modules of its `prepare` and config, and of the Triton functions they use."""
    pending = {_module_of(kernel.prepare), kernel.space.config_type.__module__}
    texts: dict[str, str] = {}
    while pending:
        module = sys.modules[pending.pop()]
        texts[module.__name__] = inspect.getsource(module)
        functions = (value.fn for value in vars(module).values() if type(value).__module__.startswith("triton.") and hasattr(value, "fn"))
        pending |= {function.__module__ for function in functions} - texts.keys()
    return hashlib.sha256("\0".join(texts[name] for name in sorted(texts)).encode()).hexdigest()[:16]


def _module_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(inspect.unwrap(function).__module__)


def shape_distance(first: Sequence[int], second: Sequence[int]) -> float:
    """Factors of two between two shapes, summed over their sizes."""
    return sum(abs(math.log2(max(1, a) / max(1, b))) for a, b in zip(first, second, strict=True))


def path_of(gpu: Gpu) -> Path:
    """The file of that GPU."""
    return FOLDER / f"{gpu.name}.json"


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, none where there is no file. Raises RecordError for a file that is not of this schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: not a readable table of tuned configs: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), list):
        raise RecordError(f"{path}: not a table of tuned configs with schema {SCHEMA!r}")
    return tuple(_entry(row, f"{path}: entry {number}") for number, row in enumerate(data["entries"], 1))


def _entry(row: Any, where: str) -> Entry:
    try:
        entry = Entry(**{**row, "ties": tuple(row.get("ties", ())), "evaluated": tuple(row.get("evaluated", ()))})
    except (TypeError, AttributeError) as error:
        raise RecordError(f"{where}: {error}") from None
    numbers = (entry.out_features, entry.in_features, entry.tokens)
    texts = (entry.kernel, entry.op, entry.sparsity, entry.dtype, entry.source)
    times = (entry.us, 0.0 if entry.default_us is None else entry.default_us)
    if not (
        all(type(value) is int for value in numbers) and all(isinstance(value, str) for value in texts)
        and all(isinstance(value, (int, float)) for value in times) and isinstance(entry.config, dict)
        and isinstance(entry.versions, dict) and all(isinstance(tie, dict) for tie in entry.ties)
        and all(type(count) is int for count in entry.evaluated) and isinstance(entry.date, str)
        and (entry.chance is None or 0 <= entry.chance <= 1) and (entry.memory_gb is None or type(entry.memory_gb) is int)
    ):
        raise RecordError(f"{where}: a field has the wrong type")
    return entry


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Replace the file by these entries, sorted, the last of equal keys winning; through a temporary file. OutputError when it fails."""
    rows = {entry.key: entry for entry in entries}
    lines = ",\n".join("  " + json.dumps(asdict(rows[key]), sort_keys=True) for key in sorted(rows))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(f'{{"schema": "{SCHEMA}", "entries": [\n{lines}\n]}}\n', encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may never have come to be
            temporary.unlink()
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    table.cache_clear()
    _answers.cache_clear()


@functools.cache
def table(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, read once per process."""
    return read(path)


@functools.cache
def _answers(gpu: str, path: Path | None) -> dict[object, tuple[Config, str]]:
    """What was looked up before, by everything that the answer depends on; emptied with `table` by `write`."""
    del gpu, path
    return {}


def lookup(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path | None = None) -> tuple[Config, str]:
    """The config for a problem and where it is from: "tuned" or "default".

    The entry of exactly these tokens, else of the nearest tokens within a factor of `REACH` of the same layer, else the kernel's default.
    Entries that `verdict` speaks against are passed over. path: another file than the GPU's own. After the first time a dictionary read.
    """
    answers, sparsity = _answers(gpu.name, path), problem.sparsity
    key = (  # plain values: the hash of a dataclass takes longer than all of this
        kernel.name, kernel.prepare, problem.op, problem.out_features, problem.in_features, problem.tokens, sparsity.n, sparsity.m,
        problem.dtype, problem.splits, problem.bias, gpu.sms, gpu.shared_bytes, gpu.memory_gb,
    )
    answer = answers.get(key)
    if answer is None:
        answer = answers[key] = _found(kernel, problem, gpu, path or path_of(gpu))
    return answer


def _found(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path) -> tuple[Config, str]:
    found = [entry for entry in table(path) if entry.fits(kernel, problem)]
    for entry in sorted(found, key=lambda entry: _distance(entry.tokens, problem.tokens)):
        if verdict(entry, kernel, problem, gpu) is None:
            return kernel.space.from_dict(entry.config), "tuned"
    return kernel.default_config(problem, gpu), "default"


def verdict(entry: Entry, kernel: Kernel, problem: Problem, gpu: Gpu) -> str | None:
    """Why an entry that fits the layer is not applied to this problem, or None."""
    if entry.source != source_hash(kernel):
        return "stale: the kernel's source has changed since it was tuned"
    for name, here in installed().items():
        then = major(entry.versions.get(name))
        if here is not None and then is not None and here != then:
            return f"stale: tuned with {name} {then}, here is {name} {here}"
    if entry.memory_gb is not None and gpu.measured_as == "datasheet" and entry.memory_gb != gpu.memory_gb:
        return f"stale: tuned on a {gpu.name} of {entry.memory_gb} GB, this one has {gpu.memory_gb}"
    if _distance(entry.tokens, problem.tokens) > REACH:
        return f"tuned for {entry.tokens} tokens, more than a factor of {REACH:g} away"
    try:
        config = kernel.space.from_dict(entry.config)
    except TypeError as error:
        return f"not a config of this kernel: {error}"
    reason = kernel.space.reject(problem, gpu, config)
    return None if reason is None else f"rejected: {reason}"


@functools.cache
def installed() -> dict[str, str | None]:
    """Major versions that a tuned config depends on, here: of Triton, and of the driver, read without asking a device."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    driver = re.search(r"Kernel Module\D+(\d+)\.", text)
    try:
        triton = major(metadata.version("triton"))
    except metadata.PackageNotFoundError:
        triton = None
    return {"triton": triton, "driver": driver[1] if driver else None}


def major(version: str | None) -> str | None:
    """The major version of a version's text."""
    return None if version is None else version.split(".")[0]


def _distance(tuned: int, wanted: int) -> float:
    low, high = sorted((max(1, tuned), max(1, wanted)))
    return high / low


def explain(kernel: Kernel, problem: Problem, gpu: Gpu, path: Path | None = None) -> str:
    """Lines that say which config `lookup` gives for a problem, why not another, and what carrying it over is expected to lose."""
    from autotune.landscape import carried, committed  # which needs this module

    config, source = lookup(kernel, problem, gpu, path)
    lines = [f"{kernel} for {problem} on {gpu.name}: {source} {config_to_dict(config)}"]
    found = [entry for entry in table(path or path_of(gpu)) if entry.fits(kernel, problem)]
    for entry in sorted(found, key=lambda entry: _distance(entry.tokens, problem.tokens)):
        reason = verdict(entry, kernel, problem, gpu)
        gain = f"{entry.us:.2f} µs, default " + ("cannot run" if entry.default_us is None else f"{entry.default_us:.2f} µs")
        head = f"  entry of {entry.date or 'unknown date'} for {entry.tokens} tokens ({gain})"
        loss = "" if reason or entry.tokens == problem.tokens else f", {carried(kernel.name, entry.tokens, problem.tokens, committed())}"
        lines.append(f"{head}: {reason or 'usable'}{loss}; {dict(entry.config)}")
    if not found:
        lines.append("  no entry for this layer; its default config is a heuristic")
    return "\n".join(lines)
