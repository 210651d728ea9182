"""The gate's judgements, pure; and what accepting writes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import NoGpu, OutputError, RecordError
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from suites import gate, verdicts
from suites.accept import accept, shareable, thinned
from suites.calibration import Calibration, Noise
from suites.gate import judge_run
from suites.judging import Judge, judge_case, ratio_of, verdict_of
from suites.record import CaseRecord, Record, Result, RoofRecord, RunRecord, latest, read, to_line
from suites.settling import Judgement, Verdict, settled
from suites.statistics import Ratio, process_logs
from suites.store import write_all
from tests.suites.fakes import measure

H200 = by_name("h200")
PROBLEM = Problem("gemm", 1024, 1024, 512, Sparsity(2, 4))


def timed(name: str, us: float, kind: str = "baseline", **fields: object) -> Result:
    return Result(name, kind, "ok", samples_us=tuple(us * (1 + 0.001 * (i % 3)) for i in range(12)), **fields)  # type: ignore[arg-type]


def case(*results: Result, layer: str = "W2", run: str = "r1", **fields: object) -> CaseRecord:
    return CaseRecord(
        run, "prefill", "m", layer, "interleaved", "hot", PROBLEM.to_dict(), str(PROBLEM), PROBLEM.operations, 10**6, results,
        **fields,  # type: ignore[arg-type]
    )


def head(name: str = "r1", **fields: object) -> RunRecord:
    return RunRecord(name, "h200", "2026-01-01T00:00:00", "abc", False, "m/1", "fake", **fields)  # type: ignore[arg-type]


OURS, FAST, SLOW = timed("ours", 50, "variant"), timed("fast", 80), timed("slow", 160)
GOOD = case(OURS, FAST, SLOW)


def verdict(now: CaseRecord, then: CaseRecord | None = GOOD) -> dict[str, str]:
    return {judgement.kernel: judgement.verdict for judgement in judge_case(now, then, Judge(H200))}


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [(0.99, 1.0, 1.01, "PASS"), (0.90, 0.92, 0.94, "REGRESSED"), (1.04, 1.05, 1.06, "IMPROVED"), (0.9, 1.0, 1.1, "INCONCLUSIVE"),
     (0.96, 0.965, 0.99, "INCONCLUSIVE"), (0.975, 0.98, 0.985, "PASS"), (1.0, 1.05, 1.1, "PASS")],
)
def test_verdicts_of_an_interval(low: float, value: float, high: float, expected: str) -> None:
    assert verdict_of(Ratio(value, low, high, 10)) == expected


def test_intervals_of_two_ratios_add_in_quadrature() -> None:
    change = ratio_of(Ratio(2.0, 2.0 * 0.97, 2.0 * 1.03, 10), Ratio(1.0, 0.96, 1.04, 8))
    assert change.value == pytest.approx(2.0)
    assert change.low == pytest.approx(2.0 * 0.951, abs=0.003)
    assert change.high == pytest.approx(2.0 * 1.052, abs=0.003)
    assert change.pairs == 8


def test_the_same_passes_and_a_slower_baseline_is_not_our_merit() -> None:
    assert verdict(GOOD) == {"ours": "PASS"}
    assert verdict(case(timed("ours", 50, "variant"), timed("fast", 96), SLOW)) == {"ours": "IMPROVED"}
    assert verdict(case(timed("ours", 60, "variant"), timed("fast", 96), timed("slow", 192))) == {"ours": "PASS"}


def test_the_common_baseline_is_the_fastest_accepted_one_that_counts() -> None:
    then = case(OURS, timed("raw", 60, exact=False), FAST, SLOW)
    now = case(OURS, timed("raw", 120, exact=False), FAST, SLOW)
    assert verdict(now, then) == {"ours": "PASS"}


def test_a_baseline_of_another_function_serves_where_there_is_no_other() -> None:
    then = case(OURS, timed("raw", 60, exact=False))
    assert verdict(case(OURS, timed("raw", 60, exact=False)), then) == {"ours": "PASS"}
    assert verdict(case(OURS, timed("raw", 30, exact=False)), then) == {"ours": "REGRESSED"}


def test_what_is_missing_or_wrong() -> None:
    wrong = replace(OURS, status="wrong", stage="wrong", reason="y", samples_us=())
    failed = replace(FAST, status="failed", stage="launch", reason="boom", samples_us=())
    gone = replace(FAST, status="unavailable", stage="unavailable", reason="no library", samples_us=())
    assert verdict(case(wrong, FAST, SLOW)) == {"ours": "WRONG"}
    assert verdict(case(OURS, failed, SLOW)) == {"ours": "PASS", "fast": "MISSING"}
    assert verdict(case(OURS, gone, SLOW)) == {"ours": "PASS", "fast": "MISSING"}
    assert verdict(case(OURS, SLOW)) == {"ours": "PASS", "fast": "MISSING"}
    assert verdict(case(OURS, gone, SLOW), None) == {"ours": "NEW"}
    assert verdict(case(FAST, SLOW)) == {"ours": "MISSING"}


def test_kernels_left_out_by_a_filter_are_not_missing() -> None:
    run: list[Record] = [head(arguments=("--kernel", "ours", "slow")), case(OURS, SLOW)]
    assert [(j.kernel, j.verdict) for j in judge_run(run, [head(), GOOD], H200)] == [("ours", "PASS")]


def test_cases_left_out_by_a_selection_are_not_missing_but_planned_ones_are() -> None:
    other = case(OURS, FAST, SLOW, layer="W13")
    accepted = [head(), GOOD, other]
    assert {j.verdict for j in judge_run([head(planned=(GOOD.key,)), GOOD], accepted, H200)} == {"PASS"}
    found = judge_run([head(planned=(GOOD.key, other.key)), GOOD], accepted, H200)
    assert [(j.key, j.verdict) for j in found] == [(other.key, "MISSING"), (GOOD.key, "PASS")]


def test_impossible_and_throttled() -> None:
    assert verdict(case(timed("ours", 0.01, "variant"), FAST))["ours"] == "INCONCLUSIVE"
    hot = {"after": {"throttle": "0x20", "throttle_names": "thermal"}}
    assert verdict(case(OURS, FAST, SLOW, conditions=hot))["ours"] == "INCONCLUSIVE"
    assert verdict(case(OURS, FAST, SLOW, conditions={"after": {"throttle": "0x4"}, "before": {"throttle": None}}))["ours"] == "PASS"


def test_a_run_without_measurements() -> None:
    with pytest.raises(NoGpu, match="projected"):
        judge_run([head(), replace(GOOD, evidence="projected")], [head(), GOOD], H200)


@pytest.mark.parametrize(("kinds", "code"), [
    (("PASS", "IMPROVED", "NEW"), 0), (("PASS", "REGRESSED"), 1), (("REGRESSED", "INCONCLUSIVE"), 4), (("MISSING", "PASS"), 4),
    (("WRONG", "MISSING", "REGRESSED"), 3), ((), 0),
])
def test_the_exit_code_that_applies_first(kinds: Sequence[Verdict], code: int) -> None:
    assert gate.exit_code([Judgement("k", "ours", kind) for kind in kinds]) == code


EVIL = [
    Judgement("a|b", "<script>", "REGRESSED", "x & `y` *z* \x00"), Judgement("c", "ours", "PASS", "1.0"),
    Judgement("d", "", "MISSING", "-"),
]


def test_junit() -> None:
    root = ElementTree.fromstring(verdicts.junit(EVIL))
    assert root.attrib == {"name": "suites.gate", "tests": "3", "failures": "1", "errors": "1"}
    first = root.findall("testcase")[0]
    assert first.get("name") == "<script>"
    failure = first.find("failure")
    assert failure is not None
    assert failure.get("type") == "REGRESSED"


def test_markdown_escapes() -> None:
    text = verdicts.markdown(EVIL, "h200")
    assert "<script>" not in text
    assert r"| REGRESSED | a\|b | &lt;script&gt; | x &amp; \`y\` \*z\*" in text
    assert "MISSING 1, PASS 1, REGRESSED 1" in text
    plain = judge_run([head(), GOOD], [head(), GOOD], H200)
    assert "not calibrated: 1 comparisons" in verdicts.markdown(plain, "h200")


def test_a_summary_fits_a_comment_and_tells_the_worst_first(capsys: pytest.CaptureFixture[str]) -> None:
    """GitHub refuses a comment of more than 65,536 characters as a whole."""
    many = [*(Judgement(f"case/{i}", "ours", "INCONCLUSIVE", "x|" * 60) for i in range(2000)),
            Judgement("last", "ours", "REGRESSED", "slow")]
    text = verdicts.markdown(many, "h200")
    assert len(text) < 65_536
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == "| REGRESSED | last | ours | slow |"
    assert text.endswith(f"and {2001 - len(rows)} more; the JUnit file has them all\n")
    verdicts.show(many)
    assert capsys.readouterr().out.startswith("REGRESSED    last ours: slow\n")
    assert verdicts.markdown(many[:9], "h200").count("| INCONCLUSIVE |") == 9
    assert "more;" not in verdicts.markdown(many[:9], "h200")


def test_the_files_are_written(tmp_path: Path) -> None:
    assert measure(tmp_path / "run") == 0
    line = ["--gpu", "h200", "--run", str(tmp_path / "run"), "--accepted", str(tmp_path / "none.jsonl")]
    assert gate.main([*line, "--junit", str(tmp_path / "x.xml"), "--markdown", str(tmp_path / "x.md")]) == 0
    assert ElementTree.parse(tmp_path / "x.xml").getroot().get("tests") == "1"
    assert "NEW 1" in (tmp_path / "x.md").read_text()


def test_accepting_replaces_adds_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "h200.jsonl"
    old = [head("r0"), RoofRecord("r0", "copy", 1.0, "B/s"), case(OURS, SLOW, run="r0"), case(OURS, FAST, layer="Wo", run="r0")]
    run = [head("r1", planned=("x",)), RoofRecord("r1", "copy", 2.0, "B/s"), GOOD, case(OURS, SLOW, layer="W13")]
    accept(file, run, old)
    records = list(read(file))
    assert [r.id for r in records if isinstance(r, RunRecord)] == ["r0", "r1"]
    assert [r.planned for r in records if isinstance(r, RunRecord)] == [(), ()]
    assert [r.value for r in records if isinstance(r, RoofRecord)] == [2.0]
    assert {c.layer: c.run for c in latest(records).values()} == {"W2": "r1", "Wo": "r0", "W13": "r1"}
    out = capsys.readouterr().out
    assert "3.200×    1.600×   -50.0%  prefill/m/W2" in out
    assert "new  prefill/m/W13" in out
    assert "1 accepted cases were not measured" in out


def test_accepting_keeps_the_roofs_of_other_cards(tmp_path: Path) -> None:
    file = tmp_path / "h200.jsonl"
    one, two = replace(head("r0"), device={"uuid": "one"}), replace(head("r1"), device={"uuid": "two"})
    old = [one, RoofRecord("r0", "copy", 1.0, "B/s"), case(OURS, FAST, layer="Wo", run="r0")]
    accept(file, [two, RoofRecord("r1", "copy", 2.0, "B/s"), GOOD], old)
    assert [r.value for r in read(file) if isinstance(r, RoofRecord)] == [1.0, 2.0]
    again = replace(head("r2"), device={"uuid": "one"})
    accept(file, [again, RoofRecord("r2", "copy", 3.0, "B/s"), case(OURS, SLOW, layer="W13", run="r2")], list(read(file)))
    assert [r.value for r in read(file) if isinstance(r, RoofRecord)] == [2.0, 3.0]


def test_an_accepted_command_line_names_no_folder() -> None:
    assert shareable(("--gpu", "h200", "--out", "somewhere", "--resume", "--out=elsewhere")) == ("--gpu", "h200", "--resume")


def test_accepting_thins_until_it_fits_and_refuses_beyond(tmp_path: Path) -> None:
    long = tuple(1.23456789 + i for i in range(200))
    run: list[Record] = [head(), case(replace(OURS, samples_us=long, call_us=long), replace(FAST, samples_us=long))]
    accept(tmp_path / "wide.jsonl", run, [])
    (wide,) = latest(read(tmp_path / "wide.jsonl")).values()
    assert len(wide.results[0].samples_us) == 40
    assert wide.results[0].samples_us[:2] == (1.2346, 6.2346)
    assert len(wide.results[0].call_us) == 5
    accept(tmp_path / "narrow.jsonl", run, [], most_bytes=1200)
    (narrow,) = latest(read(tmp_path / "narrow.jsonl")).values()
    assert len(narrow.results[0].samples_us) < 40
    write_all(tmp_path / "old.jsonl", [head()])
    with pytest.raises(OutputError, match="the most is"):
        accept(tmp_path / "old.jsonl", run, [], most_bytes=500)
    assert len(list(read(tmp_path / "old.jsonl"))) == 1


def test_thinning_keeps_pairs() -> None:
    first = tuple(float(i) for i in range(100))
    thin = thinned(case(replace(OURS, samples_us=first), replace(FAST, samples_us=first)), 30)
    assert thin.results[0].samples_us == thin.results[1].samples_us
    assert len(thin.results[0].samples_us) == 25


def test_wrong_numbers_are_never_accepted(tmp_path: Path) -> None:
    wrong = replace(OURS, status="wrong", stage="wrong", reason="y", samples_us=())
    write_all(tmp_path / "run.jsonl", [head(), case(wrong, FAST)])
    line = ["--gpu", "h200", "--run", str(tmp_path / "run.jsonl"), "--accepted", str(tmp_path / "a.jsonl"), "--accept"]
    assert gate.main(line) == 3
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(("gpu", "content", "says"), [
    ("h100", None, "is a run on h200"),
    ("z80", None, "unknown GPU 'z80'"),
    ("h200", '{"type": "run", "schema": "other/1"}\n', "schema 'other/1'"),
    ("h200", "nonsense\n", "not JSON"),
    ("h200", '{"type": "case"}\n', "missing"),
    ("h200", to_line(head(arguments=("--help",))) + "\n" + to_line(GOOD) + "\n", "its command line cannot be read"),
])
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, gpu: str, content: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.jsonl"
    write_all(file, [head(), GOOD])
    if content is not None:
        file.write_text(content)
    assert gate.main(["--gpu", gpu, "--run", str(file), "--accepted", str(tmp_path / "a.jsonl")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    assert gate.main(["--gpu", "h200", "--run", str(tmp_path / "none")]) == 2


def test_several_processes_stay_apart_when_thinned_and_read(tmp_path: Path) -> None:
    several = case(*(replace(own, samples_us=own.samples_us * 3) for own in (OURS, FAST)), processes=(12, 20, 4))
    thin = thinned(several, 12)
    assert thin.processes == (4, 7, 2)
    assert [len(result.samples_us) for result in thin.results] == [13, 13]
    logs = process_logs(thin.results[0], thin.results[1], thin.processes)
    assert [len(part) for part in logs] == [4, 7, 2]
    write_all(tmp_path / "run.jsonl", [head(), several])
    assert next(record for record in read(tmp_path / "run.jsonl") if isinstance(record, CaseRecord)).processes == (12, 20, 4)
    write_all(tmp_path / "bad.jsonl", [head(), replace(several, processes=(12, 12))])
    with pytest.raises(RecordError, match="do not add up"):
        list(read(tmp_path / "bad.jsonl"))


def limits(sigma: float) -> Calibration:
    noise = Noise(GOOD.key, "ours", "fast", 50.0, 7, 12, sigma, 1e-4, sigma, 12.0)
    return Calibration("h200", "card-1", "2026-01-01", "abc", "m/1", (noise,))


def calibrated(now: CaseRecord, sigma: float = 0.001, then: CaseRecord = GOOD, cards: tuple[str, str] = ("card-1", "card-1")) -> str:
    run: list[Record] = [head("r2", device={"uuid": cards[0]}), replace(now, run="r2")]
    (found,) = judge_run(run, [head("r1", device={"uuid": cards[1]}), then], H200, limits(sigma))
    return found.verdict


def thrice(us: float, *others: Result) -> CaseRecord:
    """The case as three processes measured it, `ours` taking so long."""
    return case(timed("ours", us, "variant"), *(others or (FAST, SLOW)), processes=(4, 4, 4))


def test_calibrated_limits_see_what_the_margin_does_not() -> None:
    slower, good, faster = thrice(51), thrice(50), thrice(49)
    assert verdict(slower) == {"ours": "PASS"}
    assert [calibrated(own, then=good) for own in (slower, good, faster)] == ["REGRESSED", "PASS", "IMPROVED"]
    assert calibrated(slower, sigma=0.02, then=good) == "INCONCLUSIVE", "2 % slower is neither found nor is 5 % excluded"
    assert calibrated(thrice(50.15), sigma=1e-4, then=good) == "PASS", "0.3 % never counts"


def test_another_card_has_to_differ_by_the_margin() -> None:
    assert calibrated(thrice(51), then=thrice(50), cards=("card-2", "card-1")) == "PASS"
    assert calibrated(thrice(53), then=thrice(50), cards=("card-2", "card-1")) == "REGRESSED"


@pytest.mark.parametrize(("us", "expected", "decides"), [(50, "PASS", True), (51, "PASS", False), (53, "REGRESSED", False)])
def test_a_small_change_is_confirmed_by_several_processes(us: float, expected: str, decides: bool) -> None:
    once, judge = case(timed("ours", us, "variant"), FAST, SLOW), Judge(H200, {}, limits(0.001), {})
    assert calibrated(once) == expected
    assert calibrated(once, then=thrice(50)) == expected
    assert gate.decided(once, thrice(50), judge) == decides, "one process alone does not settle a change"
    assert gate.decided(thrice(us), thrice(50), judge), "three do"


def test_a_process_that_lies_elsewhere_is_no_change() -> None:
    """One of three is 6 % slower: the mean moves by 2 %, and so does its error."""
    ours = timed("ours", 50, "variant")
    outlier = replace(ours, samples_us=tuple(us * (1.06 if place >= 8 else 1.0) for place, us in enumerate(ours.samples_us)))
    now, judge = case(outlier, FAST, SLOW, processes=(4, 4, 4)), Judge(H200, {}, limits(0.001), {})
    (found,) = settled(judge_case(now, thrice(50), judge))
    assert found.verdict == "INCONCLUSIVE"
    assert found.change is not None
    assert found.change.value == pytest.approx(1.06 ** (-1 / 3), abs=1e-4)
    assert calibrated(thrice(51), then=thrice(50)) == "REGRESSED"


def test_a_newer_calibration_stands_for_what_was_accepted() -> None:
    """The accepted process lies 4 % off; the calibrated ones, with the same kernels beside them, say what is usual."""
    usual = math.log(80 / 50)
    noise = replace(limits(0.001).noises[0], medians=(usual,) * 9)
    kernels = {GOOD.key: ("fast", "ours", "slow")}
    strange = case(timed("ours", 48, "variant"), FAST, SLOW, run="r1")
    for date, timed_then, expected in (
        ("2026-01-01T00:00:01", kernels, "PASS"), ("2025-12-31", kernels, "REGRESSED"), ("2026-01-02", {GOOD.key: ("ours",)}, "REGRESSED"),
    ):
        made = Calibration("h200", None, date, "abc", "m/1", (noise,), timed=timed_then)
        (found,) = judge_run([head("r2"), replace(thrice(50), run="r2")], [head("r1"), strange], H200, made)
        assert found.verdict == expected, date
    quick = head("r2", arguments=("--gpu", "h200", "--quick"))
    made = Calibration("h200", None, "2026-02-01", "abc", "m/1", (noise,), timed=kernels)
    (found,) = judge_run([quick, replace(thrice(50), run="r2")], [head("r1"), strange], H200, made)
    assert found.verdict == "REGRESSED", "a quick run takes other rounds than were calibrated"
    assert "accepted 1.600×" in judge_run(
        [head("r2"), replace(thrice(51), run="r2")], [head("r1"), strange], H200,
        Calibration("h200", None, "2026-02-01", "abc", "m/1", (noise,), timed=kernels),
    )[0].detail


def test_the_baseline_to_compare_with_is_one_that_is_the_same_in_every_process() -> None:
    searched = timed("searched", 70, config_source="search")
    with_search = thrice(50, searched, FAST, SLOW)
    for limit, name in ((limits(0.001), "fast"), (None, "fast")):
        (found,) = settled(judge_case(with_search, with_search, Judge(H200, {}, limit, {})))
        assert name in found.detail
    inexact = replace(FAST, exact=False)
    (found,) = settled(judge_case(thrice(50, inexact, SLOW), thrice(50, inexact, SLOW), Judge(H200, {}, limits(0.001), {})))
    assert "× fast," in found.detail, "one that is calibrated may compute another function"
    (found,) = settled(judge_case(thrice(50, inexact, SLOW), thrice(50, inexact, SLOW), Judge(H200)))
    assert "× slow," in found.detail


def test_a_run_noisier_than_its_calibration_is_judged_by_its_own_noise() -> None:
    wild = Result("ours", "variant", "ok", samples_us=tuple(52.0 * (1 + 0.1 * (i % 3 - 1)) for i in range(12)))
    assert calibrated(case(wild, FAST, SLOW)) == "INCONCLUSIVE"


def test_more_cases_and_more_looks_ask_for_more() -> None:
    slower, good, judge = thrice(50.5), thrice(50), Judge(H200, {}, limits(0.003), {})
    assert [j.verdict for j in settled(judge_case(slower, good, judge))] == ["REGRESSED"]
    assert [j.verdict for j in settled(judge_case(slower, good, judge), 100)] == ["PASS"]
    tests = [judge_case(replace(slower, processes=own), good, judge)[0].test for own in ((), (4, 4, 4), (3, 3, 3, 3))]
    assert [own.processes for own in tests if own is not None] == [(1, 3), (3, 3), (4, 3)]
    noise = limits(0.0015).noises[0]
    assert noise.smallest(10, 3, 9) < noise.smallest(100, 3, 9) < noise.smallest(100, 3, 1)
    assert noise.smallest(1, 3, 9, floor=0.03) > 0.03, "a slowdown of the floor itself is found half the time"
