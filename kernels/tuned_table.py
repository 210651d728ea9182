"""The file of tuned configs of a GPU: its rows, read and checked. Needs neither torch nor triton. See `kernels.tuned`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.errors import RecordError
from kernels.kernel import Kernel
from kernels.problem import Problem

SCHEMA = "tersparse-tuned/1"
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
    outcome, of how many. (None and () in entries of before these were kept.) An empty config: nothing was shown to be faster than the
    kernel's default, which stays (see `stays`); us and default_us are both its time.
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
    def stays(self) -> bool:
        """Whether it says that the kernel's default config is the best that was found."""
        return not self.config

    @property
    def layer(self) -> tuple[str, str, int, int, str, str]:
        """What it is for, at whatever number of tokens: see `layer_of`."""
        return self.op, self.kernel, self.out_features, self.in_features, self.sparsity, self.dtype

    @property
    def key(self) -> tuple[str, str, int, int, int, str, str]:
        """What an entry is unique by, and sorted by."""
        return (self.op, self.kernel, self.out_features, self.in_features, self.tokens, self.sparsity, self.dtype)


def layer_of(kernel: Kernel, problem: Problem) -> tuple[str, str, int, int, str, str]:
    """The `Entry.layer` for a problem."""
    return kernel.op, kernel.name, problem.out_features, problem.in_features, str(problem.sparsity), problem.dtype


@dataclass(frozen=True)
class Table:
    """A file of tuned configs. entries: the winners. stays: where the default stays. made: of the run that made or changed it last."""

    entries: tuple[Entry, ...] = ()
    stays: tuple[Entry, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """All that a file holds. Raises RecordError for a file that is not of this schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Table()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: not a readable table of tuned configs: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), list):
        raise RecordError(f"{path}: not a table of tuned configs with schema {SCHEMA!r}")
    made, lists = data.get("made", {}), [data["entries"], data.get("defaults", [])]
    if not isinstance(made, dict) or not isinstance(lists[1], list):
        raise RecordError(f"{path}: made and defaults have the wrong type")
    entries, stays = (tuple(_entry(row, f"{path}: entry {number}") for number, row in enumerate(rows, 1)) for rows in lists)
    if any(entry.stays for entry in entries) or not all(entry.stays for entry in stays):
        raise RecordError(f"{path}: an entry has no config, or a default has one")
    return Table(entries, stays, made)


def _entry(row: Any, where: str) -> Entry:
    try:
        entry = Entry(**{"config": {}, **row, "ties": tuple(row.get("ties", ())), "evaluated": tuple(row.get("evaluated", ()))})
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
