"""Records survive the disk, and damage is told from a cut-off end."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from kernels.errors import OutputError, RecordError
from kernels.problem import Problem, Sparsity
from suites.record import CaseRecord, Record, Result, RoofRecord, RunRecord, from_dict, latest, read, to_line
from suites.store import Writer, write_all, write_text

PROBLEM = Problem("gemm", 1, 4, 1, Sparsity(2, 4))
HEAD = RunRecord("r", "h200", "2026", "abc", True, "m/1", "fake", {"name": "X"}, {"torch": "2"}, ("--quick",), planned=("k",))
BLOCKS = ({"seconds": 1.0, "calls": 2},)
RESULT = Result("ours", "variant", "ok", config={"BM": 64}, samples_us=(1.5, 2.5), blocks=BLOCKS, notes={"a": None})
CASE = CaseRecord(
    "r", "prefill", "m", "W2", "interleaved", "hot", PROBLEM.to_dict(), str(PROBLEM), 2, 3, (RESULT,), phases={"check": 0.5},
    conditions={"before": {"throttle": "0x4"}},
)


def test_a_round_trip(tmp_path: Path) -> None:
    records: list[Record] = [HEAD, RoofRecord("r", "copy", 4.3e12, "B/s", (1.0,)), CASE]
    write_all(tmp_path / "new" / "x.jsonl", records)
    assert list(read(tmp_path / "new" / "x.jsonl")) == records
    assert list(read(tmp_path / "new")) == records


@pytest.mark.parametrize("text", ["", "\n\r\u2028", '"\\', "</script>", "µ ×", "\0"])
def test_any_text_stays_one_line(text: str) -> None:
    result = Result(text, "variant", "ok", samples_us=(1e-3, 1e9))
    case = CaseRecord("r", "s", text, "l", "interleaved", "hot", PROBLEM.to_dict(), text, 0, 0, (result,))
    line = to_line(case)
    assert "\n" not in line
    assert from_dict(json.loads(line)) == case


def test_a_surrogate_in_a_reason_does_not_end_a_run(tmp_path: Path) -> None:
    with Writer(tmp_path / "x.jsonl") as writer:
        writer.write(HEAD)
        writer.write(CaseRecord(**{**CASE.__dict__, "layer": "\udc80"}))
    assert [record.layer for record in read(tmp_path / "x.jsonl") if isinstance(record, CaseRecord)] == ["?"]


def test_the_later_record_of_a_case_counts() -> None:
    later = CaseRecord(**{**CASE.__dict__, "seconds": 9.0})
    projection = CaseRecord(**{**CASE.__dict__, "evidence": "projected"})
    assert latest([HEAD, CASE, later, projection]) == {CASE.key: later}
    assert latest([projection], "projected") == {CASE.key: projection}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]\n", "not a TerSparse record"), ('{"type": "x"}\n', "not a TerSparse record"), ("{\n{}\n", "x.jsonl:1: not JSON"),
        (to_line(CASE) + "\n", "starts with its run record"), (to_line(HEAD).replace("tersparse/1", "t/2") + "\n", "schema 't/2'"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('"label"', '"lable"') + "\n", "x.jsonl:2: .*lable"),
        (to_line(HEAD) + "\n" + '{"type":"case","results":[{"speed":1}]}\n', "x.jsonl:2: .*speed"),
        (to_line(HEAD).replace('["--quick"]', "5") + "\n", r"x.jsonl:1: arguments 5; allowed: tuple\[str, ...\]"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace("[1.5,2.5]", "[1.5,0]") + "\n", "x.jsonl:2: ours: samples must be positive"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace("[1.5,2.5]", '["1.5"]') + "\n", "x.jsonl:2: ours: samples_us .* allowed: tuple"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('"0x4"', '"hot"') + "\n", "x.jsonl:2: bad conditions"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('"calls":2', '"calls":0') + "\n", "ours: each block needs seconds and calls"),
        (to_line(HEAD) + "\n" + "[" * 100_000 + "\n", "x.jsonl:2: not JSON"),
        ('{"type": []}\n', "not a TerSparse record"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('"0x4"', '[]') + "\n", r"before: throttle \[\]; allowed: str"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('"throttle":"0x4"', '"other_processes":"x"') + "\n", "_processes 'x'; allowed: int"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('{"throttle":"0x4"}', '[1]') + "\n", r"before \[1\]; allowed: an object"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace('"calls":2', '"calls":1e300') + "\n", "seconds per call must come to 1e-09 to 1e"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace("[1.5,2.5]", "[1.5,1e308]") + "\n", "ours: samples must be positive .* to 1e"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace("[1.5,2.5]", "[1.5,1e999]") + "\n", "ours: samples_us"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace("[1.5,2.5]", f"[1.5,{10**400}]") + "\n", "x.jsonl:2: holds a whole number beyond"),
        (to_line(HEAD) + "\n" + to_line(CASE).replace("[1.5,2.5]", "[1.5," + "9" * 5000 + "]") + "\n", "a whole number beyond 64 bits"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(RecordError, match=says) as caught:
        list(read(tmp_path / "x.jsonl"))
    assert "\n" not in str(caught.value)


def test_a_cut_off_end_is_dropped_and_written_over(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(to_line(HEAD) + "\n" + to_line(CASE)[:-7])
    assert list(read(file)) == [HEAD]
    with Writer(file) as writer:
        writer.write(CASE)
    assert list(read(file)) == [HEAD, CASE]


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no \.jsonl file"):
        list(read(tmp_path))


def test_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_line(RoofRecord("r", "copy", float("nan"), "B/s"))


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_all(file, [HEAD])
    (tmp_path / "x.jsonl.new").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_all(file, [HEAD, CASE])
    assert list(read(file)) == [HEAD]


def test_a_cut_off_end_is_cut_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(to_line(HEAD) + "\n" + to_line(CASE)[:-7])

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    Writer(file).close()
    assert file.read_text() == to_line(HEAD) + "\n"


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    page, link = tmp_path / "new" / "page.html", tmp_path / "link.html"
    write_text(page, "old")
    link.symlink_to(page)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a disk that fills up: the first 1000 bytes are written
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write_text(link, "n" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert page.read_text() == "old"
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    write_text(link, "new")
    assert page.read_text() == "new"
    assert link.is_symlink()


def test_a_device_is_written_to_as_it_is() -> None:
    write_text(Path("/dev/null"), "text")
    with pytest.raises(OutputError, match="No space left"):
        write_text(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device()
