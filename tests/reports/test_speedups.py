from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.problem import Problem
from reports.compare import Comparer
from reports.load import load
from reports.speedups import main
from reports.tables import case_rows, groups
from suites.record import CaseRecord, Record, Result, RoofRecord, read
from suites.store import write_all
from tests.reports import golden

LAST = re.compile(r"geomean (\S+) min (\S+) max (\S+) n (\d+) missing (\d+)")


def ok(kernel: str, us: float, kind: str = "baseline", **changes: object) -> Result:
    made = Result(kernel, kind, "ok", samples_us=(us, us * 1.1, us * 0.9), dense=kernel.startswith("dense"))  # type: ignore[arg-type]  # a kind
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of Result


def gemm(tokens: int, *results: Result, suite: str = "prefill", op: str = "gemm", **changes: object) -> CaseRecord:
    problem = Problem(op, 1000, 2000, tokens, golden.S24)  # type: ignore[arg-type]  # the name of an op
    made = CaseRecord(
        golden.RUN, suite, "m", "Wo", "interleaved", "hot", problem.to_dict(), str(problem), problem.operations, 1000 * tokens, results
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of CaseRecord


@pytest.fixture
def speedups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> object:
    def call(records: list[Record], *argv: str, suite: str = "prefill", over: str = "strongest") -> tuple[int, list[str], str]:
        write_all(tmp_path / "r.jsonl", [golden.head(), *records])
        code = main(["--gpu", "h200", "--suite", suite, "--over", over, "--run", str(tmp_path), *argv])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err

    return call


OURS = ok("dense-triton", 10.0, "variant")
TWO = [gemm(100, OURS, ok("dense-bf16", 40.0), ok("dense-int8", 20.0)), gemm(200, OURS, ok("dense-bf16", 30.0), ok("dense-int8", 5.0))]


def test_the_strongest_by_hand(speedups) -> None:
    code, lines, _ = speedups(TWO)
    assert code == 0
    assert lines[-1] == "geomean 1.000 min 0.500 max 2.000 n 2 missing 0"
    # 2 * 1000 * 2000 * 100 operations in 10 µs: 40 TOPS; 100,000 bytes in 10 µs: 0.01 TB/s.
    assert re.search(r"dense-triton\s+10\.0\s+40\.0\s+0\.010\s+dense-int8\s+20\.0\s+2\.000\s+2\.000-2\.000", lines[1])


def test_a_named_baseline_and_the_strongest_dense(speedups) -> None:
    assert speedups(TWO, over="dense-bf16")[1][-1] == f"geomean {math.sqrt(12):.3f} min 3.000 max 4.000 n 2 missing 0"
    assert speedups(TWO, over="strongest-dense")[1][-1] == "geomean 1.000 min 0.500 max 2.000 n 2 missing 0"


def test_ratios_are_paired_by_round(speedups) -> None:
    theirs = ok("dense-bf16", 1.0, samples_us=(20.0, 40.0, 80.0))
    ours = ok("dense-triton", 1.0, "variant", samples_us=(10.0, 10.0, 10.0))
    _, lines, _ = speedups([gemm(1, ours, theirs)])
    assert re.search(r"4\.000\s+2\.000-8\.000", lines[1])


def test_what_is_not_exact_counts_only_when_named(speedups) -> None:
    raw, eight = ok("cusparselt-int8", 2.0, exact=False), ok("int8-grads", 1.0, "variant", exact=False)
    cases = [gemm(1, OURS, eight, ok("dense-bf16", 40.0), raw)]
    assert speedups(cases)[1][-1].startswith("geomean 4.000 ")
    assert speedups(cases, over="cusparselt-int8")[1][-1].startswith("geomean 0.200 ")
    assert speedups(cases, "--variant", "int8-grads")[1][-1].startswith("geomean 40.000 ")


def test_missing_ours_or_theirs_prints_the_reason_and_exits_4(speedups) -> None:
    wrong = Result("dense-triton", "variant", "wrong", "wrong", "y[0, 0] is 2, expected 1")
    absent = Result("dense-bf16", "baseline", "unavailable", "unavailable", "no cuBLAS here", dense=True)
    code, lines, _ = speedups([*TWO, gemm(300, wrong, ok("dense-bf16", 1.0)), gemm(400, OURS, absent), gemm(500)])
    assert code == 4
    assert lines[-1] == "geomean 1.000 min 0.500 max 2.000 n 2 missing 3"
    assert "missing: m Wo gemm 1000x2000 T=300 2:4: dense-triton: wrong, y[0, 0] is 2, expected 1" in lines
    assert "missing: m Wo gemm 1000x2000 T=400 2:4: dense-bf16: unavailable, no cuBLAS here" in lines
    assert "missing: m Wo gemm 1000x2000 T=500 2:4: none of our variants has a result" in lines


def test_a_baseline_that_a_case_does_not_have_is_missing(speedups) -> None:
    code, lines, _ = speedups([*TWO, gemm(300, OURS, ok("slidesparse", 9.0))], over="slidesparse")
    assert code == 4
    assert "missing: m Wo gemm 1000x2000 T=100 2:4: no result of slidesparse" in lines


def test_a_refused_case_is_listed_but_not_missing(speedups) -> None:
    code, lines, _ = speedups([*TWO, gemm(300, refusal="2000 is not a multiple of 6")])
    assert code == 0
    assert "refused: m Wo gemm 1000x2000 T=300 2:4: 2000 is not a multiple of 6" in lines
    assert lines[-1].endswith("n 2 missing 0")


def test_what_is_projected_is_never_a_measurement(speedups) -> None:
    guess = Result("dense-triton", "variant", "ok", projected_us=5.0)
    code, lines, _ = speedups([gemm(100, guess, evidence="projected")])
    assert code == 4
    assert lines[-1] == "geomean nan min nan max nan n 0 missing 1"
    assert "projected, not measured" in lines[-2]
    assert speedups([*TWO, gemm(100, guess, evidence="projected")])[0] == 0  # the same case was measured too


def test_committed_results_stand_for_the_default_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "h200.jsonl", [golden.head(), TWO[0]])
    monkeypatch.setattr("reports.load.accepted_path", lambda gpu: tmp_path / f"{gpu}.jsonl")
    assert main(["--gpu", "h200", "--suite", "train", "--over", "dense-bf16"]) == 4, "nothing of the suite was measured"
    assert capsys.readouterr().out.splitlines()[-1] == "geomean nan min nan max nan n 0 missing 48"
    assert main(["--gpu", "h200", "--suite", "prefill", "--over", "strongest"]) == 4
    assert capsys.readouterr().out.splitlines()[-1].endswith(" n 1 missing 160")


def test_a_planned_case_that_was_not_reached_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path / "r.jsonl", [golden.head(planned=tuple(case.key for case in TWO)), TWO[0]])
    assert main(["--gpu", "h200", "--suite", "prefill", "--over", "strongest", "--run", str(tmp_path)]) == 4
    *_, missing, last = capsys.readouterr().out.splitlines()
    assert missing == "missing: m Wo gemm 1000x2000 T=200 2:4: should have been measured, and was not"
    assert last == "geomean 2.000 min 2.000 max 2.000 n 1 missing 1"


def test_the_share_of_the_roof_by_hand(speedups) -> None:
    # 4e8 operations at 1e14 op/s: 4 µs; 1e5 bytes at 1e12 B/s: 0.1 µs. Ours needs 10 µs: 0.4. Twice the tokens, twice the share.
    roofs = [RoofRecord(golden.RUN, "copy", 1e12, "B/s"), RoofRecord(golden.RUN, "dense-int8", 1e14, "op/s")]
    code, lines, _ = speedups([*roofs, *TWO], over="roof")
    assert code == 0
    assert lines[-1] == f"geomean {math.sqrt(0.4 * 0.8):.3f} min 0.400 max 0.800 n 2 missing 0"
    assert "share" in lines[0]
    code, lines, _ = speedups(TWO, over="roof")
    assert code == 4
    assert lines[-1].endswith("max nan n 0 missing 2")
    assert "no roof was measured" in lines[0]


def test_the_share_of_the_roof_of_mma_sp_is_its_own(speedups) -> None:
    # 4e8 operations at 2e14 op/s: 2 µs of 10; lifted weights are multiplied 1.5-fold. No other share counts that roof.
    roofs = [RoofRecord(golden.RUN, "copy", 1e12, "B/s"), RoofRecord(golden.RUN, "dense-int8", 1e14, "op/s")]
    sparse = RoofRecord(golden.RUN, "sparse-int8-mma", 2e14, "op/s")
    code, lines, _ = speedups([*roofs, sparse, TWO[0]], over="sparse-int8-mma")
    assert (code, lines[-1]) == (0, "geomean 0.200 min 0.200 max 0.200 n 1 missing 0")
    assert "share" in lines[0]
    problem = Problem("gemm", 1000, 2000, 100, golden.S68)
    lifted = replace(TWO[0], problem=problem.to_dict(), label=str(problem))
    assert speedups([*roofs, sparse, lifted], over="sparse-int8-mma")[1][-1] == "geomean 0.300 min 0.300 max 0.300 n 1 missing 0"
    assert speedups([*roofs, sparse, TWO[0]], over="roof")[1][-1] == "geomean 0.400 min 0.400 max 0.400 n 1 missing 0"
    code, lines, _ = speedups([*roofs, TWO[0]], over="sparse-int8-mma")
    assert (code, lines[-1].split()[-2:]) == (4, ["missing", "1"])
    assert "no roof was measured" in lines[0]


def test_a_small_share_keeps_its_digits(speedups) -> None:
    roofs = [RoofRecord(golden.RUN, "copy", 1e12, "B/s"), RoofRecord(golden.RUN, "dense-int8", 1e17, "op/s")]
    assert speedups([*roofs, TWO[0]], over="roof")[1][-1] == "geomean 0.01 min 0.01 max 0.01 n 1 missing 0"


def test_sustained_rows_have_joules(speedups) -> None:
    def blocks(us: float, watts: float) -> tuple[dict[str, float], ...]:
        return tuple({"seconds": 2.0, "calls": 2e6 / us, "joules": 2.0 * watts} for _ in range(3))

    ours, theirs = replace(OURS, samples_us=(), blocks=blocks(10, 600)), ok("dense-bf16", 1, samples_us=(), blocks=blocks(25, 700))
    cases = [*TWO, gemm(100, ours, theirs, state="sustained")]
    code, lines, _ = speedups(cases, "--state", "sustained")
    # 600 W for 10 µs are 6 mJ for 4e8 operations: 15 J per 10^12; theirs 17.5 mJ: 43.75.
    assert code == 0
    assert "J/TOP" in lines[0]
    assert re.search(r"2\.500\s+2\.500-2\.500\s+15\.000\s+43\.750", lines[1])
    assert lines[-1].endswith("n 1 missing 0")
    assert "J/TOP" not in speedups(cases)[1][0]


def test_parts_of_training(speedups) -> None:
    cases = [
        gemm(100, OURS, ok("dense-bf16", us), suite="train", op=op) for op, us in (("forward", 20.0), ("step", 30.0), ("weight-grad", 40.0))
    ]
    assert speedups(cases, suite="train")[1][-1].startswith("geomean 3.000 ")
    assert speedups(cases, "--part", "weight-grad", suite="train")[1][-1].startswith("geomean 4.000 ")
    code, _, err = speedups([*cases, *TWO], "--part", "step")
    assert (code, err.count("\n")) == (2, 1)
    assert "suites with parts are train, prepare" in err
    code, _, err = speedups(cases, "--part", "activation", suite="train")
    assert (code, err.count("\n")) == (2, 1)
    assert "its parts are forward, input-grad, weight-grad, step" in err


def test_a_baseline_of_another_op_is_not_missing(speedups) -> None:
    masks = [gemm(0, ok("two-pass", 10.0, "variant"), ok("mask-only", us), suite="prepare", op="prepare") for us in (20.0,)]
    rows = [gemm(t, ok("activation", 1.0, "variant"), ok("torch-compiled", 2.0), suite="prepare", op="activation") for t in (1, 2, 3, 4)]
    code, lines, _ = speedups([*masks, *rows], suite="prepare", over="mask-only")
    assert (code, lines[-1]) == (0, "geomean 2.000 min 2.000 max 2.000 n 1 missing 0")
    assert [line for line in lines if line.startswith("not compared")] == [
        "not compared: 4 cases, the first m Wo activation K=2000 T=1 2:4: mask-only is a baseline of prepare, not of activation"
    ]
    absent = Result("mask-only", "baseline", "unavailable", "unavailable", "no Triton here")
    other = gemm(9, ok("activation", 1.0, "variant"), absent, suite="prepare", op="activation")
    assert speedups([*masks, *rows, other], suite="prepare", over="mask-only")[0] == 4, "an op that has the baseline misses it"
    assert speedups([*masks, *rows], "--part", "activation", suite="prepare", over="mask-only")[0] == 2
    assert speedups([*masks, *rows], "--part", "prepare", suite="prepare", over="mask-only")[1][-1].endswith("n 1 missing 0")


def test_filters(speedups) -> None:
    assert speedups(TWO, "--min-tokens", "150")[1][-1].endswith("min 0.500 max 0.500 n 1 missing 0")
    assert speedups(TWO, "--max-tokens", "150")[1][-1].endswith("min 2.000 max 2.000 n 1 missing 0")
    assert speedups(TWO, "--shape", "1000x2000", "--model", "m", "--sparsity", "2:4")[1][-1].endswith("n 2 missing 0")


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["--sparsity", "6:8"], "2:4"),
        (["--sparsity", "nine"], "2:4 and 6:8"),
        (["--model", "qwen9"], "allowed: m"),
        (["--shape", "1x1"], "allowed: 1000x2000"),
        (["--shape", "square"], "NxK"),
        (["--variant", "magic"], "allowed: dense-triton"),
        (["--over", "magic"], "strongest, strongest-dense, strongest-library, roof, sparse-int8-mma, dense-bf16, dense-int8"),
        (["--suite", "pretrain"], "allowed: prefill"),
        (["--state", "sustained"], "allowed: interleaved"),
        (["--min-tokens", "900"], "there are 100, 200"),
        (["--gpu", "a100"], "use --gpu h200"),
        (["--run", "/nowhere/at/all"], "no such file or folder"),
    ],
)
def test_an_unknown_name_is_one_line_with_what_is_allowed(argv: list[str], allowed: str, speedups) -> None:
    code, lines, err = speedups(TWO, *argv)
    assert code == 2
    assert lines == []
    assert err.count("\n") == 1
    assert allowed in err


def test_argparse_errors_are_returned_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "h200"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--help"]) == 0
    assert "example" in capsys.readouterr().out


def test_no_results_at_all_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpu", "rtx3090", "--suite", "prefill", "--over", "strongest"]) == 2
    assert "no cases" in capsys.readouterr().err


def test_json_says_the_same(speedups) -> None:
    code, lines, _ = speedups([*TWO, gemm(300)], "--json")
    data = json.loads("\n".join(lines))
    assert code == 4
    assert data["summary"] == {"geomean": pytest.approx(1.0), "min": pytest.approx(0.5), "max": pytest.approx(2.0), "n": 2, "missing": 1}
    first, _, last = data["rows"]
    assert (first["ours"], first["over"], first["us"], first["over_us"], first["tops"]) == (
        "dense-triton",
        "dense-int8",
        10.0,
        20.0,
        pytest.approx(40.0),
    )
    assert first["low"] <= first["ratio"] <= first["high"]
    assert (last["ratio"], last["reason"]) == (None, "none of our variants has a result")


@pytest.mark.parametrize("suite", ["prefill", "decode", "layer", "prepare", "train", "square"])
@pytest.mark.parametrize("over", ["strongest", "roof"])
def test_every_suite_of_the_golden_run_has_its_last_line(suite: str, over: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--gpu", "h200", "--suite", suite, "--over", over, "--run", str(run)])
    found = LAST.fullmatch(capsys.readouterr().out.splitlines()[-1])
    assert found is not None
    assert float(found[2]) <= float(found[1]) <= float(found[3])
    assert code == (4 if int(found[5]) else 0)
    assert (int(found[5]) > 0) == (suite == "prefill")


def test_cases_of_other_data_are_not_summed_up(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(path: Path) -> str:
        assert main(["--gpu", "h200", "--suite", "decode", "--over", "strongest", "--run", str(path)]) == 0
        return capsys.readouterr().out

    records = [record for record in read(run) if not isinstance(record, CaseRecord) or record.suite == "decode"]
    zeros = [replace(r, layer=f"{r.layer}, zeros", data="zero") for r in records if isinstance(r, CaseRecord)]
    write_all(tmp_path / "r.jsonl", [*records, *zeros])
    assert said(tmp_path) == said(run)
    results = load("h200", [tmp_path])
    plain = [group.summary for group in groups(Comparer(load("h200", [run]))) if group.suite == "decode"]
    assert [group.summary for group in groups(Comparer(results))] == plain
    assert any("zero data" in name for name, _ in case_rows(Comparer(results)))


def test_the_ceiling_of_the_same_rounds_comes_before_the_cool_one(speedups) -> None:
    # 4e8 operations: 4, 2 and 4 µs by the three rounds' rates, of 10, 10 and 8 µs: 0.4, 0.2 and 0.5. Before the cases it was 1 µs of 10.
    ours = ok("sparse-mma", 1.0, "variant", samples_us=(10.0, 10.0, 8.0), ceiling=(1e14, 2e14, 1e14))
    sparse = RoofRecord(golden.RUN, "sparse-int8-mma", 4e14, "op/s")
    code, lines, _ = speedups([sparse, gemm(100, ours)], over="sparse-int8-mma")
    assert (code, lines[-1]) == (0, "geomean 0.400 min 0.400 max 0.400 n 1 missing 0")
    assert re.search(r"roof, same rounds\s+4\.0\s+0\.400\s+0\.200-0\.500\s+0\.100$", lines[1])
    assert re.search(r"roof, before the cases\s+1\.0\s+0\.100\s+\S+\s+0\.100$", speedups([sparse, TWO[0]], over="sparse-int8-mma")[1][1])
    code, lines, _ = speedups([gemm(100, ours)], "--json", over="sparse-int8-mma")
    (row,) = json.loads("\n".join(lines))["rows"]
    assert (code, row["roof_timed"], row["cool_share"]) == (0, "same rounds", None)
    problem = Problem("gemm", 1000, 2000, 100, golden.S68)
    lifted = gemm(100, ours, problem=problem.to_dict(), label=str(problem))
    assert speedups([sparse, lifted], over="sparse-int8-mma")[1][-1] == "geomean 0.600 min 0.600 max 0.600 n 1 missing 0"


def test_a_ceiling_is_no_baseline(speedups) -> None:
    ours = ok("sparse-mma", 10.0, "variant", ceiling=(1e17, 1e17, 1e17))
    assert speedups([gemm(100, ours, ok("dense-bf16", 40.0))])[1][-1].startswith("geomean 4.000 ")
