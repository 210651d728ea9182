from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import RecordError, UsageError
from kernels.problem import Problem
from reports.load import COLUMNS, accepted_path, frame, load
from suites.record import CaseRecord, Result, RoofRecord, to_line
from suites.store import write_all
from tests.reports import golden

GEMM = Problem("gemm", 1000, 2000, 500, golden.S24)


def case(*results: Result, problem: Problem = GEMM, **changes: object) -> CaseRecord:
    made = CaseRecord(
        golden.RUN, "prefill", "m", "Wo", "interleaved", "hot", problem.to_dict(), str(problem), problem.operations, 4_000_000, results
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names fields of CaseRecord


def test_a_run_is_read_whole(run: Path) -> None:
    results = load("h200", [run])
    assert results.gpu == "h200"
    assert [head.id for head in results.runs] == [golden.RUN]
    assert len(results.roofs) == 5
    wanted = [record for record in golden.records(("bitnet-2b",)) if isinstance(record, CaseRecord)]
    assert [item.record.key for item in results.cases] == [record.key for record in wanted]
    assert 0 < len(results.measured) < len(results.cases)


def test_auto_is_the_runs_own_gpu_and_a_file_is_as_good_as_its_folder(run: Path) -> None:
    assert load("auto", [run / "records.jsonl"]).gpu == "h200"


def test_another_gpus_run_is_refused_with_both_names(run: Path) -> None:
    with pytest.raises(UsageError, match=r"h200.*--gpu a100"):
        load("a100", [run])


def test_an_unlisted_gpu_is_read_from_its_own_run(tmp_path: Path) -> None:
    write_all(tmp_path / "r.jsonl", [golden.head(gpu="some-card")])
    assert load("some-card", [tmp_path]).gpu == "some-card"
    with pytest.raises(UsageError, match="unknown GPU 'some-card'"):
        load("some-card")


def test_a_name_is_no_way_out_of_the_folder() -> None:
    with pytest.raises(UsageError, match="unknown GPU"):
        accepted_path("../../secrets")


def test_without_committed_results_there_is_an_empty_value() -> None:
    assert not accepted_path("rtx3090").exists()
    results = load("rtx3090")
    assert (results.runs, results.roofs, results.cases) == ((), (), ())


def test_the_last_of_two_equal_cases_counts(tmp_path: Path) -> None:
    first, second = (case(golden.result("dense-triton", 5.0, golden.random.Random(0), samples_us=(us,))) for us in (5.0, 7.0))
    write_all(tmp_path / "r.jsonl", [golden.head(), first, second])
    [only] = load("h200", [tmp_path]).cases
    assert only.record.results[0].samples_us == (7.0,)


def lines(*texts: str) -> str:
    return "".join(text + "\n" for text in (to_line(golden.head()), *texts))


def broken(**changes: object) -> str:
    data = json.loads(to_line(case(Result("dense-triton", "variant", "ok", samples_us=(5.0,)))))
    result = {key: changes.pop(key) for key in list(changes) if key in ("samples_us", "status", "blocks", "projected_us")}
    data.update(changes)
    data["results"][0].update(result)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (lines(broken(problem={"op": "gemm"})), "bad problem"),
        (lines(broken(problem={**GEMM.to_dict(), "sparsity": "9:9"})), "bad problem: unknown sparsity"),
        (lines(broken(problem="gemm")), "problem 'gemm'"),
        (lines(broken(samples_us=[5.0, -1])), "positive numbers"),
        (lines(broken(samples_us=["5"])), "samples_us"),
        (lines(broken(status="splendid")), "status 'splendid'; allowed: ok"),
        (lines(broken(blocks=[{"seconds": 2.0}])), "seconds and calls"),
        (lines(broken(projected_us=0)), "projected_us"),
        (lines(broken(evidence="guessed")), "evidence 'guessed'"),
        (lines(broken(operations="many")), "operations 'many'"),
        (lines(broken(surprise=1)), "surprise"),
        (lines(broken(conditions={"before": "warm"})), "bad conditions"),
        (lines(broken(conditions={"before": {"throttle": "much"}})), "bad conditions"),
        (lines(to_line(RoofRecord(golden.RUN, "copy", -1.0, "B/s"))), "roof 'copy'"),
        (lines("{not json", to_line(case())), "not JSON"),
        (to_line(golden.head()).replace("tersparse/1", "tersparse/9") + "\n", "schema 'tersparse/9'"),
        (to_line(case()) + "\n", "starts with its run record"),
    ],
)  # fmt: skip
def test_damage_is_one_line_that_names_the_place(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(RecordError, match=match) as caught:
        load("h200", [tmp_path])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_line_cut_by_an_interruption_is_dropped(tmp_path: Path) -> None:
    whole = lines(to_line(case()))
    (tmp_path / "r.jsonl").write_text(whole + to_line(case(model="late"))[:40])
    assert [item.record.model for item in load("h200", [tmp_path]).cases] == ["m"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file or folder"):
        load("h200", [tmp_path / "nowhere"])
    with pytest.raises(RecordError, match=r"no \.jsonl"):
        load("h200", [tmp_path])


def test_rates_by_hand(tmp_path: Path) -> None:
    # 2 * 1000 * 2000 * 500 = 2e9 operations in 4 µs: 500 TOPS; 4e6 bytes in 4 µs: 1 TB/s.
    blocks = ({"seconds": 2.0, "calls": 500_000, "joules": 1000.0}, {"seconds": 2.0, "calls": 500_000, "joules": 1400.0})
    write_all(tmp_path / "r.jsonl", [golden.head(), case(Result("k", "variant", "ok", blocks=blocks), state="sustained")])
    row = frame(load("h200", [tmp_path])).iloc[0]
    assert row["us"] == pytest.approx(4.0)
    assert row["tops"] == pytest.approx(500.0)
    assert row["tbs"] == pytest.approx(1.0)
    assert row["joules_per_top"] == pytest.approx(2400 / 1e6 / 2e9 * 1e12)


def test_the_roof_is_the_larger_of_bytes_and_operations(tmp_path: Path) -> None:
    roofs = [
        RoofRecord(golden.RUN, "copy", 1e12, "B/s"),
        RoofRecord(golden.RUN, "read", 2e12, "B/s"),
        RoofRecord(golden.RUN, "dense-int8", 1e15, "op/s"),
    ]
    busy = case(problem=replace(GEMM, tokens=5000), operations=20_000_000_000)
    write_all(tmp_path / "r.jsonl", [golden.head(), *roofs, case(), busy])
    results = load("h200", [tmp_path])
    assert [results.roof_us(item) for item in results.cases] == [pytest.approx(2.0), pytest.approx(20.0)]
    assert replace(results, roofs=()).roof_us(results.cases[0]) is None


def test_the_frame_has_a_row_per_kernel_and_case(run: Path) -> None:
    results = load("h200", [run])
    table = frame(results)
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == sum(len(item.record.results) for item in results.cases)
    assert table.loc[table["evidence"] != "measured", "us"].isna().all()


AWKWARD = (
    Problem("gemm", 4608, 3584, 64, golden.S68, (3584, 512, 512), "int32"),
    Problem("layer", 64, 256, 7, golden.DENSE, (), "fp16", bias=True),
    Problem("prepare", 64, 256, 0, golden.S24, (32, 32), "fp32"),
    Problem("activation", 0, 2560, 16, golden.S68),
)


def test_a_planned_case_is_known_by_its_key(tmp_path: Path) -> None:
    measured = [record for record in golden.records(("bitnet-2b",)) if isinstance(record, CaseRecord) and record.evidence == "measured"]
    planned = [*measured, *(case(problem=problem, model="owner/name") for problem in AWKWARD)]
    write_all(tmp_path / "r.jsonl", [golden.head(planned=tuple(record.key for record in planned)), *measured[:3]])
    results = load("h200", [tmp_path])
    assert [item.record.key for item in results.unreached] == [record.key for record in planned[3:]]
    assert [item.problem.to_dict() for item in results.unreached] == [dict(record.problem) for record in planned[3:]]
    assert not any(item.measured for item in results.unreached)


@pytest.mark.parametrize("key", ["nonsense", "prefill/m/Wo/gemm/hot/interleaved", "prefill/m/Wo/gemm 1x2 T=a 2:4/hot/interleaved"])
def test_a_planned_key_that_names_no_case_is_an_error(key: str, tmp_path: Path) -> None:
    write_all(tmp_path / "r.jsonl", [golden.head(planned=(key,))])
    with pytest.raises(RecordError, match="is not the key of a case"):
        load("h200", [tmp_path])
