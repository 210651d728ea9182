from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import OutputError, RecordError
from reports import database, scan
from reports.load import load
from suites.record import CaseRecord, Record, RunRecord, read, to_line
from suites.store import write_all
from tests.reports import golden


def cases(count: int = 4) -> list[CaseRecord]:
    return [record for record in golden.records(("bitnet-2b",)) if isinstance(record, CaseRecord)][:count]


def head(number: int) -> RunRecord:
    return golden.head(id=f"run-{number}", started=f"2026-11-{10 + number:02d}T00:00:00Z", commit=f"{number}" * 40)


def of_run(number: int, made: list[CaseRecord]) -> list[Record]:
    return [head(number), *(replace(case, run=f"run-{number}", seconds=float(number)) for case in made)]


def test_of_every_case_the_last_line_counts_and_the_others_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        write_all(tmp_path / f"{number}.jsonl", of_run(number, cases()))
    parsed: list[str] = []
    plain = json.loads
    monkeypatch.setattr(scan.json, "loads", lambda line, **how: parsed.append(line) or plain(line, **how))
    records, left_out = scan.read_latest([tmp_path])
    found = [record for _, record in records if isinstance(record, CaseRecord)]
    assert [record.key for record in found] == [case.key for case in cases()]
    assert {record.run for record in found} == {"run-3"}
    assert (len(parsed), left_out) == (3 + 4, 0)


def test_scanning_reads_what_reading_reads(run: Path) -> None:
    assert [record for _, record in scan.read_latest([run])[0]] == list(read(run))


def test_kinds_of_evidence_and_states_are_cases_of_their_own(tmp_path: Path) -> None:
    [case] = cases(1)
    others = [replace(case, evidence="projected"), replace(case, state="sustained"), replace(case, layer='a "quoted", "evidence":"x"')]
    write_all(tmp_path / "r.jsonl", [head(1), case, *others, case])
    assert len(load("h200", [tmp_path]).cases) == 4


def test_lines_written_by_another_hand_are_parsed(tmp_path: Path) -> None:
    first, second = cases(2)
    turned = json.dumps(dict(reversed(json.loads(to_line(second)).items())))
    lines = [to_line(head(1)), to_line(first), json.dumps(json.loads(to_line(replace(first, seconds=9.0)))), turned]
    (tmp_path / "r.jsonl").write_text("\n".join(lines) + "\n\n")
    found = load("h200", [tmp_path]).cases
    assert [item.record.key for item in found] == [first.key, second.key]
    assert found[0].record.seconds == 9.0


def test_only_the_newest_are_kept_where_there_are_too_many(tmp_path: Path) -> None:
    write_all(tmp_path / "r.jsonl", [head(1), *cases(10)])
    results = load("h200", [tmp_path], most=3)
    assert [item.record.key for item in results.cases] == [case.key for case in cases(10)[-3:]]
    assert results.left_out == 7
    assert load("h200", [tmp_path]).left_out == 0


def test_a_damaged_line_is_an_error_even_where_it_is_superseded(tmp_path: Path) -> None:
    [case] = cases(1)
    lines = [to_line(head(1)), to_line(case)[:-1], to_line(case)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=r"r\.jsonl:2: not JSON"):
        load("h200", [tmp_path])


def test_a_database_gives_back_what_it_got(tmp_path: Path, run: Path) -> None:
    file = tmp_path / "h.sqlite"
    records = list(read(run))
    assert database.add(file, records) == sum(isinstance(record, CaseRecord) for record in records)
    assert list(database.read(file)) == records
    assert load("h200", [file]).cases == load("h200", [run]).cases
    before = file.stat().st_size
    database.add(file, records)
    assert list(database.read(file)) == records
    assert before < 0.7 * sum(path.stat().st_size for path in run.iterdir())


def test_of_a_database_the_latest_run_counts(tmp_path: Path) -> None:
    file = tmp_path / "h.sqlite"
    for number in (2, 3, 1):
        database.add(file, of_run(number, cases()))
    assert {item.record.run for item in load("h200", [file]).cases} == {"run-3"}
    assert sum(isinstance(record, CaseRecord) for record in database.every(file)) == 12
    assert [record.id for record in database.every(file) if isinstance(record, RunRecord)] == ["run-1", "run-2", "run-3"]


def test_what_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("nonsense" * 200)
    with pytest.raises(RecordError, match="not a results file"):
        load("h200", [tmp_path / "x.sqlite"])
    with pytest.raises(OutputError, match="cannot be written"):
        database.add(tmp_path / "x.sqlite", cases())
    with closing(sqlite3.connect(tmp_path / "y.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(RecordError, match="no such table"):
        load("h200", [tmp_path / "y.sqlite"])


def test_an_error_while_adding_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "h.sqlite"
    database.add(file, of_run(1, cases()))

    def interrupted() -> object:
        yield from of_run(2, cases())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.add(file, interrupted())  # type: ignore[arg-type]  # a generator that ends badly
    assert {item.record.run for item in load("h200", [file]).cases} == {"run-1"}


def test_many_runs_cost_little_more_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 records of 20 runs: what is parsed is a small part of all there is (docs/report.md has the seconds of 100,000)."""
    lines = [to_line(case) for case in cases(50)]
    for number in range(20):
        name = f"run-{number:03d}"
        text = "\n".join([to_line(golden.head(id=name)), *(line.replace(golden.RUN, name, 1) for line in lines)])
        (tmp_path / f"{name}.jsonl").write_text(text + "\n", encoding="utf-8")
    parsed: list[int] = []
    plain = json.loads
    monkeypatch.setattr(scan.json, "loads", lambda line, **how: parsed.append(len(line)) or plain(line, **how))
    everything, whole = list(read(tmp_path)), sum(parsed)
    parsed.clear()
    records, _ = scan.read_latest([tmp_path])
    assert (len(everything), len(records), len(parsed)) == (20 + 1000, 20 + 50, 20 + 50)
    assert sum(parsed) < 0.08 * whole
