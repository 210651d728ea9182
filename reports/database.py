"""Records of many runs in one SQLite file: what a folder of .jsonl files says, indexed, compressed, and added to run by run."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple
from pathlib import Path
from typing import Any

from kernels.errors import OutputError, RecordError
from reports.points import Point, point_of
from suites.record import CaseRecord, Record, RoofRecord, RunRecord, from_dict, to_line
from suites.statistics import Ratio

SUFFIX = ".sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, started TEXT NOT NULL, commit_id TEXT NOT NULL, line BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS roofs (run TEXT NOT NULL, name TEXT NOT NULL, line BLOB NOT NULL, PRIMARY KEY (run, name));
CREATE TABLE IF NOT EXISTS cases (run TEXT NOT NULL, key TEXT NOT NULL, evidence TEXT NOT NULL, line BLOB NOT NULL,
                                  PRIMARY KEY (run, key, evidence));
CREATE TABLE IF NOT EXISTS points (run TEXT NOT NULL, key TEXT NOT NULL, kernel TEXT NOT NULL, us REAL NOT NULL, rival TEXT NOT NULL,
                                   value REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, pairs INTEGER NOT NULL,
                                   PRIMARY KEY (run, key));
"""
_LATEST = """SELECT line FROM (SELECT cases.rowid AS place, cases.line AS line, MAX(started || id) FROM cases JOIN runs ON id = run
             GROUP BY key, evidence) ORDER BY place"""


def add(file: Path, records: Iterable[Record]) -> int:
    """Add records to the file, which is made where it is not there; a run, roof or case that it holds already is replaced.
    Returns how many cases were given. All or nothing: an error leaves the file as it was."""
    try:
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.executescript(_SCHEMA)
            return sum(_put(connection, record) for record in records)
    except sqlite3.Error as error:
        raise OutputError(f"{file}: cannot be written: {error}") from None


def _put(connection: sqlite3.Connection, record: Record) -> bool:
    line = zlib.compress(to_line(record).encode(errors="replace"))
    if isinstance(record, RunRecord):
        connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", (record.id, record.started, record.commit, line))
    elif isinstance(record, RoofRecord):
        connection.execute("INSERT OR REPLACE INTO roofs VALUES (?, ?, ?)", (record.run, record.name, line))
    else:
        connection.execute("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?)", (record.run, record.key, record.evidence, line))
        if point := point_of(record):
            values = (point.run, point.key, point.kernel, point.us, point.rival, *astuple(point.ratio))
            connection.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    return isinstance(record, CaseRecord)


def read(file: Path) -> Iterator[Record]:
    """The runs by their start, the roofs, and of each case and kind of evidence the one of the latest run."""
    yield from _lines(file, "SELECT line FROM runs ORDER BY started, id")
    yield from _lines(file, "SELECT line FROM roofs ORDER BY rowid")
    yield from _lines(file, _LATEST)


def every(file: Path) -> Iterator[Record]:
    """Everything in the file, run by run: each run's head before its roofs and cases."""
    yield from _lines(file, "SELECT line FROM runs ORDER BY started, id")
    yield from _lines(file, "SELECT line FROM roofs ORDER BY rowid")
    yield from _lines(file, "SELECT cases.line FROM cases JOIN runs ON runs.id = cases.run ORDER BY started, id, cases.rowid")


def points(file: Path) -> Iterator[RunRecord | Point]:
    """The heads of the runs, then the points of their measured cases, which were derived when they were added."""
    yield from (record for record in _lines(file, "SELECT line FROM runs ORDER BY started, id") if isinstance(record, RunRecord))
    for run, key, kernel, us, rival, *ratio in _rows(file, "SELECT * FROM points"):
        yield Point(run, key, kernel, us, rival, Ratio(*ratio))


def _lines(file: Path, query: str) -> Iterator[Record]:
    for (line,) in _rows(file, query):
        try:
            yield from_dict(json.loads(zlib.decompress(line)), str(file))
        except (zlib.error, ValueError) as error:
            raise RecordError(f"{file}: damaged: {error}") from None


def _rows(file: Path, query: str) -> Iterator[tuple[Any, ...]]:
    if not file.is_file():
        raise RecordError(f"{file}: no such file")
    try:
        with closing(sqlite3.connect(f"file:{file.resolve().as_posix()}?mode=ro", uri=True)) as connection:
            yield from connection.execute(query)
    except sqlite3.Error as error:
        raise RecordError(f"{file}: not a results file of this project: {error}") from None
