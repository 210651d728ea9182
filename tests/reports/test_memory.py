from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from kernels.problem import Problem
from reports.compare import Comparer
from reports.load import Case, Results, load
from reports.memory import panel
from reports.panel import Data
from suites.record import CaseRecord
from suites.store import write_all
from tests.reports import golden
from tests.reports.htmlcheck import Page


def page(results: Results) -> Page:
    made = panel(Data(results, Comparer(results)))
    assert made is not None
    return Page(f"<main>{made.html}</main>")


def rows(found: Page, first: str) -> list[str]:
    """The cells of the row with that heading."""
    cells = [(tag, text) for tag, text in found.texts if tag in ("td", "th", "span")]
    start = next(place for place, (tag, text) in enumerate(cells) if (tag, text) == ("th", first))
    end = next((place for place in range(start + 1, len(cells)) if cells[place][0] == "th"), len(cells))
    return [text.strip() for _, text in cells[start:end]]


def record(tokens: int = 1, suite: str = "decode", **joules: float | None) -> CaseRecord:
    """A sustained case: joules per call of each kernel, None where the device gives none."""
    problem = Problem("gemm", 57344, 8192, tokens, golden.S24)
    names = [name.replace("_", "-") for name in joules]
    made = golden.case(suite, "llama3-70b", "W13", problem, names, random.Random(1), state="sustained")
    blocks = {
        name: {"seconds": 2.0, "calls": 1000.0, **({} if spent is None else {"joules": 1000 * spent})}
        for name, spent in zip(names, joules.values(), strict=True)
    }
    return replace(made, results=tuple(replace(one, samples_us=(), blocks=(blocks[one.kernel],)) for one in made.results))


def results(*records: CaseRecord) -> Results:
    return Results("h200", "here", cases=tuple(Case(one, Problem.from_dict(dict(one.problem))) for one in records))


def test_no_results_no_panel() -> None:
    empty = Results("h200", "here")
    assert panel(Data(empty, Comparer(empty))) is None


def test_weight_bytes_of_models_and_layers() -> None:
    found = page(results(record(dense_triton=0.01)))
    # 80 blocks of 10240·8192 + 8192² + 57344·8192 + 8192·28672 weights
    assert rows(found, "llama3-70b")[:4] == ["llama3-70b", "137", "68.5", "(2.0×)"]
    assert rows(found, "llama3-70b")[6:8] == ["17.1", "(8.0×)"]
    assert rows(found, "bitnet-2b W13")[1:4] == ["13824×2560", "70.8", "35.4"]
    assert "computed from the layouts, not measured" in found.text()


def test_joules_of_ours_and_the_baselines() -> None:
    found = page(results(record(dense_triton=0.005, dense_bf16=0.1, dense_int8=None)))
    assert "dense-int8, mJ" not in [text for _, text in found.texts], "a column for baselines that have joules"
    row = rows(found, "llama3-70b W13 2:4")
    assert row[1:7] == ["Decode", "1", "dense-triton", "5.000", "100.0", "(20.0×)"]
    assert "Prefill: no sustained record" in found.text()
    assert "Decode: no sustained record" not in found.text()


def test_sustained_decode_from_the_files_of_two_runs(tmp_path: Path) -> None:
    """Written, read, and joined with what a run of prefill holds: one table, decode first; kernel and baselines by their joules."""
    few = [record(1, dense_triton=0.018, dense_bf16=0.1), record(16, dense_triton=0.02, dense_bf16=0.11, dense_fp8=0.06)]
    few = [replace(one, results=(replace(one.results[0], kernel="decode"), *one.results[1:])) for one in few]
    many = record(8192, "prefill", sparse_mma=2.0, dense_bf16=7.0)
    for name, records in (("decode", few), ("prefill", [many])):
        head = golden.head(id=name)
        write_all(tmp_path / name / "records.jsonl", [head, *(replace(one, run=name) for one in records)])
    found = page(load("h200", [tmp_path / "decode", tmp_path / "prefill"]))
    cells = [text.strip() for tag, text in found.texts if tag in ("td", "span")]
    start = cells.index("Decode")
    assert cells[start : start + 6] == ["Decode", "1", "decode", "18.0", "100.0", "(5.6×)"]
    assert cells[cells.index("Prefill") :][:6] == ["Prefill", "8192", "sparse-mma", "2000.0", "7000.0", "(3.5×)"]
    assert [text for text in cells if text.endswith("×)")][-4:-1] == ["(5.6×)", "(5.5×)", "(3.0×)"]
    assert "no sustained record" not in found.text()


def test_another_function_is_said_and_an_absent_kernel_is_a_dash() -> None:
    eight = record(dense_triton=0.005, dense_fp8=0.1)
    eight = replace(eight, results=(eight.results[0], replace(eight.results[1], exact=False)))
    found = page(results(eight, record(4, dense_triton=0.005, dense_bf16=0.2)))
    heads = [text for tag, text in found.texts if tag == "th"]
    assert heads.index("dense-bf16, mJ") < heads.index("dense-fp8 (another function), mJ")
    cells = [text for tag, text in found.texts if tag == "td"]
    assert cells[-12:].count("–") == 2
    assert "not measurable" not in cells


def test_a_kernel_without_joules_is_not_measurable() -> None:
    found = page(results(record(dense_triton=None, dense_bf16=0.1), record(8192, "prefill", dense_triton=0.02, dense_bf16=None)))
    text = [text for tag, text in found.texts if tag == "td"]
    assert text.count("not measurable") == 2
    assert "no sustained record" not in found.text()


def test_bits_as_the_records_have_them(run: Path) -> None:
    found = page(load("h200", [run]))
    bits = rows(found, "dense-triton")
    assert bits[1] in ("dense", "2:4", "6:8")
    assert float(bits[2]) <= float(bits[3])


def test_nothing_sustained_is_said_with_the_command(projected_run: Path) -> None:
    text = page(load("h200", [projected_run])).text()
    assert text.count("no sustained record of it") == 2
    assert "python -m suites.run --gpu h200 --state sustained --suite decode" in text
