"""A case that several processes measured is doubted as each of them would be alone; measuring again hides nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels.gpu import by_name
from suites import gate
from suites.accept import accept, acceptable
from suites.judging import Judge, judge_case
from suites.quality import case_refusals
from suites.record import CaseRecord, Result, latest, read
from suites.session import joined
from suites.settling import settled
from suites.store import write_all
from tests.suites.fakes import SMALL, gemm, lab, measure
from tests.suites.test_gate import FAST, GOOD, OURS, SLOW, case, head, limits, thrice, timed

H200 = by_name("h200")
CLEAN: dict[str, Any] = {"throttle": "0x4", "other_processes": 0}


def shot(before: dict[str, Any], after: dict[str, Any]) -> CaseRecord:
    return case(OURS, FAST, SLOW, conditions={"before": before, "after": after})


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize(("dirty", "name"), [({"throttle": "0x40"}, "throttled"), ({"other_processes": 2}, "other-process")])
def test_conditions_of_every_process_count(place: int, dirty: dict[str, Any], name: str) -> None:
    shots = [{**CLEAN, **(dirty if own == place else {})} for own in range(6)]
    first, second, third = (shot(*shots[start:start + 2]) for start in (0, 2, 4))
    assert [refusal.name for refusal in case_refusals(joined(joined(first, second), third))] == [name]
    clean = shot(CLEAN, CLEAN)
    assert case_refusals(joined(joined(clean, clean), clean)) == []


def drifting(us: float, name: str, share: float) -> Result:
    kind = "variant" if name == "ours" else "baseline"
    return Result(name, kind, "ok", samples_us=tuple(us * (1 + share * i / 11) for i in range(12)))  # type: ignore[arg-type]


def test_unsettled_clocks_of_any_process_count() -> None:
    steady, moving = (case(drifting(50, "ours", share), drifting(80, "fast", share)) for share in (0.01, 0.9))
    assert case_refusals(joined(steady, steady)) == []
    for pair in ((steady, moving), (moving, steady)):
        assert [refusal.name for refusal in case_refusals(joined(*pair))] == ["clocks-unsettled"]
    slower = case(drifting(90, "ours", 0.01), drifting(150, "fast", 0.01))
    assert case_refusals(joined(steady, slower)) == [], "each process has its own clocks"


def test_what_is_refused_is_not_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A throttled case would make every later run an improvement; what was accepted before stays."""
    file = tmp_path / "a.jsonl"
    slow = replace(shot(CLEAN, {"throttle": "0x40", "throttle_names": "thermal"}), run="r2")
    fresh = case(OURS, FAST, layer="W13", run="r2")
    impossible = case(timed("ours", 1e-4, "variant"), FAST, layer="Wo", run="r2")
    write_all(file, [head("r1"), GOOD])
    write_all(tmp_path / "run.jsonl", [head("r2"), slow, fresh, impossible])
    line = ["--gpu", "h200", "--run", str(tmp_path / "run.jsonl"), "--accepted", str(file), "--accept"]
    assert gate.main(line) == 4
    assert {own.layer: own.run for own in latest(read(file)).values()} == {"W2": "r1", "W13": "r2"}
    out = capsys.readouterr().out
    assert f"not accepted: {slow.key}: throttled: thermal" in out
    assert f"not accepted: {impossible.key}: above-roof: ours: " in out
    write_all(tmp_path / "run.jsonl", [head("r2"), fresh])
    assert gate.main(line) == 0
    assert acceptable([head("r2"), fresh], H200) == ([head("r2"), fresh], [])
    accept(file, [head("r2"), fresh], [])


def test_a_new_case_that_the_gate_calls_noisy_is_not_decided(tmp_path: Path) -> None:
    """Whatever it says of who is faster: more samples would make it NEW."""
    noisy = Result("ours", "variant", "ok", samples_us=tuple(50.0 * (1 + 0.15 * (i % 5 - 2)) for i in range(12)))
    for now, then in ((case(noisy, FAST, SLOW), None), (case(noisy, FAST, SLOW), case(FAST, SLOW))):
        (found,) = settled(judge_case(now, then, Judge(H200)))
        assert (found.verdict, found.change) == ("INCONCLUSIVE", None)
        assert not gate.decided(now, then, Judge(H200))
    assert gate.decided(case(OURS, FAST, SLOW), None, Judge(H200))
    measure(tmp_path / "run", lab((gemm("ours", 50.0), gemm("theirs", 100.0, "baseline")), noise=0.2), *SMALL, "--until-decided")
    (several,) = latest(read(tmp_path / "run")).values()
    assert len(several.processes) > 1


def test_a_measured_result_without_samples_is_missing() -> None:
    empty = replace(OURS, samples_us=())
    found = {own.kernel: own for own in judge_case(case(empty, FAST, SLOW), None, Judge(H200))}
    assert found["ours"].verdict == "MISSING"
    assert "no samples" in found["ours"].detail
    found = {own.kernel: own for own in judge_case(case(empty, FAST, SLOW), GOOD, Judge(H200))}
    assert "no samples" in found["ours"].detail


def test_until_decided_counts_the_comparisons_that_the_gate_will_make() -> None:
    """Not the cases: each has several variants, and Holm's procedure is over all of them."""
    two = case(OURS, timed("other", 60, "variant"), FAST, SLOW)
    accepted = {own.key: own for own in (two, case(OURS, FAST, SLOW, layer="Wo"))}
    assert gate.comparisons(accepted, tuple(accepted)) == 3
    assert gate.comparisons(accepted, ("elsewhere", two.key)) == 2
    assert gate.comparisons(accepted, tuple(accepted), ("ours", "fast")) == 2
    assert gate.comparisons(accepted, tuple(accepted), ("decode/ours", "prefill/other", "fast")) == 1


def test_what_no_number_of_processes_can_decide_is_not_measured_again() -> None:
    """Of a case whose processes differ by 5 %, no run of four can exclude a slowdown of 5 %; a change of 12 % it can confirm."""
    wide, close = (Judge(H200, {}, limits(sigma), {}) for sigma in (0.05, 0.018))
    for us, then, judge, decided in ((50, GOOD, wide, True), (50, GOOD, close, False), (54, thrice(50), wide, True),
                                     (56, thrice(50), wide, False)):
        now = case(timed("ours", us, "variant"), FAST, SLOW)
        (found,) = settled(judge_case(now, then, judge))
        assert (found.verdict, found.suspect) == ("INCONCLUSIVE", False)
        assert gate.decided(now, then, judge) == decided, us
