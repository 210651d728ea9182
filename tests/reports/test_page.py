from __future__ import annotations

import base64
import gzip
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from reports import gate_limits, landscape
from reports.compare import Comparer
from reports.figures import Line, over_tokens
from reports.load import Results, frame, load
from reports.page import number, render
from reports.panel import Data
from reports.published import PUBLISHED, sources
from reports.svg import DARK, LIGHT
from reports.tables import case_rows
from suites.record import CaseRecord, Record, Result, RunRecord
from suites.store import write_all
from tests.patience import PATIENCE
from tests.reports import golden
from tests.reports.htmlcheck import Page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}$x^2$"


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    return load("h200", [run])


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    return render(results)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def projected(projected_run: Path) -> Page:
    return Page(render(load("h200", [projected_run])))


def test_ids_are_unique_and_references_resolve(page: Page, html: str) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50
    wanted = {name for _, attributes in page.elements for name in attributes.get("aria-labelledby", "").split()}
    wanted |= {attributes["href"][1:] for _, attributes in page.elements if attributes.get("href", "").startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted
    assert wanted <= set(ids)


def test_the_page_loads_nothing_and_links_only_to_sources(page: Page, html: str) -> None:
    links = {attributes[name] for _, attributes in page.elements for name in ("src", "href", "action", "data") if name in attributes}
    [packed] = [link for link in links if link.startswith("data:")]
    assert {link for link in links - {packed} if not link.startswith("#")} == {link for _, link in sources()}
    assert not page.all("link") + page.all("img") + page.all("iframe")
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


def test_every_figure_has_its_alternative_text(page: Page) -> None:
    figures = page.all("svg")
    assert len(figures) > 8
    assert all(figure["role"] == "img" and figure["aria-labelledby"] for figure in figures)
    descriptions = [text for tag, text in page.texts if tag == "desc"]
    assert len(descriptions) == len(figures)
    assert all(re.search(r"\d", text) for text in descriptions)


def test_figures_have_no_colour_of_their_own(html: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{6}\b|\b(?:fill|stroke): (?!none|var)", svg)
        assert "<style" not in svg
        assert "var(--ink)" in svg


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_both_themes_have_contrast(theme: dict[str, str], html: str) -> None:
    ground = luminance(theme["ground"])
    for name, colour in theme.items():
        bright, dim = sorted((luminance(colour), ground), reverse=True)
        least = 4.5 if name in ("ink", "muted", "warn") else 1.2 if name == "grid" else 3.0
        assert name == "ground" or (bright + 0.05) / (dim + 0.05) >= least, f"{name} {colour}"
        assert f"--{name}:{colour}" in html


def test_light_dark_print_and_phone(html: str) -> None:
    assert "prefers-color-scheme:dark" in html
    assert "@media print" in html
    assert 'name="viewport" content="width=device-width' in html
    assert html.startswith("<!doctype html>")


def test_the_first_screen_answers(page: Page) -> None:
    text = page.text()
    first = text[: text.index("Speed-up in kernel time")]
    for answer in (
        "NVIDIA H200",
        "bitnet-2b",
        "inference, the whole layer",
        "sparse-mma (ours)",
        "as fast as the strongest baseline",
        "cusparselt-int8-scaled",
        "95 % interval",
        "prefill 2:4",
        "./scripts/run",
        "exact reference",
    ):
        assert answer in first
    assert re.search(r"0\.\d\d× as fast as", re.sub(r"\s+", " ", first))
    assert "gave wrong numbers" in first


def test_it_tells_everything_without_scripts(page: Page, results: Results) -> None:
    text = page.text()
    for item in results.measured:
        record = item.record
        assert record.refusal is None or record.refusal in text
        for result in record.results:
            assert result.kernel in text
    assert len([row for row in page.all("summary") if "aria-label" in row]) == sum(1 for item in results.measured if item.record.results)
    for said in (
        "an illegal memory access was encountered",
        "this torch has no cuSPARSELt",
        "4.30 TB/s",
        "1450 TOPS",
        "up to 1.33×",
        "SM clock, MHz",
    ):
        assert said in text
    assert len(page.all("script")) == 1


def test_the_csv_is_in_the_page(page: Page, results: Results) -> None:
    [link] = [attributes for attributes in page.all("a") if "download" in attributes]
    kind, packed = link["href"].split(",", 1)
    assert kind == "data:application/gzip;base64"
    text = gzip.decompress(base64.b64decode(packed)).decode()
    assert text == frame(results).to_csv(index=False, lineterminator="\n")
    assert text.count("\n") == 1 + sum(len(item.record.results) for item in results.cases)


def test_intervals_stand_beside_ratios(html: str) -> None:
    assert len(re.findall(r"× <span class=\"iv\">\[[\d.]+–[\d.]+\]", html)) > 150


def test_regions_that_scroll_can_be_reached_by_keyboard(page: Page) -> None:
    regions = [attributes for _, attributes in page.elements if "scroll" in attributes.get("class", "").split()]
    assert regions
    assert all(region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"] for region in regions)


def evil_records() -> list[Record]:
    random_ = golden.random.Random(3)
    problem = golden.Problem("gemm", 64, 256, 16, golden.S24)
    facts = {EVIL: {EVIL: EVIL}}
    run = golden.head(id=EVIL, started=EVIL, commit=EVIL, method=EVIL, timer=EVIL, arguments=(EVIL,))
    run = replace(run, device={"name": EVIL, **facts}, versions={"torch": EVIL, **facts})
    ok = golden.result(EVIL, 5.0, random_, kind="variant", config=facts, config_source=EVIL, notes=facts, check=facts)
    theirs = replace(ok, kernel=EVIL + "2", kind="baseline")
    bad = Result("bad", "baseline", "failed", EVIL, EVIL)
    case = golden.case(EVIL, EVIL, EVIL, problem, (), random_, run=EVIL, label=EVIL, conditions=facts, results=(ok, theirs, bad))
    blocks = ({"seconds": 2.0, "calls": 1e5, "joules": 9.0},)
    lasting = replace(case, state="sustained", results=tuple(replace(r, samples_us=(), blocks=blocks) for r in (ok, theirs)))
    guess = replace(ok, samples_us=(), projected_us=4.0, compiled=facts)
    others = [replace(case, evidence=kind, results=(guess, bad)) for kind in ("projected", "compiled", "interpreted")]
    refused = replace(case, label=EVIL + "r", refusal=EVIL, results=())
    roof = replace(golden.roofs()[0], name=EVIL, run=EVIL)
    return [run, roof, case, replace(case, suite="prefill"), lasting, *others, refused]


def test_no_text_of_a_record_becomes_markup(tmp_path: Path) -> None:
    write_all(tmp_path / "r.jsonl", evil_records())
    found = load("h200", [tmp_path])
    html = render(found, (found, found))
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert page.text().count("<script>alert(1)</script>") > 40
    assert "49$x" not in html
    assert html.count("<script") == 1


def test_equal_results_give_equal_bytes(html: str, run: Path, repository: Path) -> None:
    code = "import sys; from reports import load, page; sys.stdout.write(page.render(load.load('h200', sys.argv[1:])))"
    other = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf-8"}
    line = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(line, capture_output=True, check=True, timeout=PATIENCE, env=other, cwd=repository)
    assert done.stdout.decode() == html


def test_every_projected_figure_says_so(projected: Page) -> None:
    results = Results("h200", "")
    own = [module.panel(Data(results, Comparer(results))) for module in (landscape, gate_limits)]  # over timings of their own
    committed = {text for panel in own if panel for tag, text in Page(str(panel.html)).texts if tag == "title"}
    titles = [text for tag, text in projected.texts if tag == "title" and text not in committed][1:]
    assert titles
    assert all("projected, not measured" in title for title in titles)
    drawn = [text for tag, text in projected.texts if tag == "text" and "projected, not measured" in text]
    assert len(drawn) == len(titles)
    text = projected.text()
    for said in (
        "Nothing was measured",
        "compiled, not measured",
        "Interpreted, not timed",
        "registers=168",
        "IMMA=64",
        "Nothing here was timed",
    ):
        assert said in text
    assert "Every case" not in text
    assert "Geomean" in text  # only beside the published figures, where it says that nothing was measured here
    assert text.count("not measured here") == len(PUBLISHED) + 1  # each published figure, and the title


def test_without_any_results_the_page_says_so() -> None:
    text = Page(render(Results("a100", "committed results of a100"))).text()
    assert "There are no results for a100 yet" in text
    assert "./scripts/run" in text


def test_a_comparison_sets_two_runs_side_by_side(results: Results) -> None:
    def slower(record: CaseRecord) -> CaseRecord:
        halved = [replace(r, samples_us=tuple(us / 2 for us in r.samples_us)) if r.kind == "variant" else r for r in record.results]
        return replace(record, results=tuple(halved))

    few = replace(results, cases=results.measured[:5])
    faster = replace(few, source="B", cases=tuple(replace(item, record=slower(item.record)) for item in few.cases[:4]))
    text = re.sub(r"\s+", " ", Page(render(faster, (few, faster))).text())
    assert "B's times: 2.00× as fast as A's (geomean of 4 cases, 2.00× to 2.00×)" in text
    assert "Speed-ups: 2.00× A's" in text
    assert text.index("Comparison of two runs") < text.index("Speed-up in kernel time"), "what was asked for stands first"
    assert "1 case has our time in one run only" in text


def test_a_result_above_its_roof_is_flagged(results: Results) -> None:
    item = next(one for one in results.measured if one.record.cache == "cold" and one.record.operations)
    ours = item.record.results[0]
    fast = replace(ours, samples_us=(item.record.compulsory_bytes / 5e12 * 1e6,), weight_bytes=0)  # 0: not said to be less than 2 bits

    def flag(gpu: str, cache: Literal["hot", "cold"], result: Result) -> str:
        one = replace(item, record=replace(item.record, cache=cache, results=(result, *item.record.results[1:])))
        ((_, (row,)),) = case_rows(Comparer(replace(results, gpu=gpu, cases=(one,))))
        return row.flag

    assert "impossible" not in flag("h200", "cold", ours)
    assert f"{ours.kernel} is impossible: 5.00 TB/s of compulsory traffic" in flag("h200", "cold", fast)
    assert f"{ours.kernel} is impossible" in flag("some-card", "cold", fast)
    assert "impossible" not in flag("some-card", "hot", fast)


def test_what_cannot_be_relied_on_is_marked(results: Results) -> None:
    item = next(one for one in results.measured if one.record.state == "interleaved" and one.record.results)
    ours, *others = item.record.results
    shaky = replace(ours, samples_us=tuple(us * (1 + place % 2) for place, us in enumerate(ours.samples_us[:4])))
    hot = {"before": {"throttle": "0x20", "throttle_names": "sw thermal slowdown"}}
    noisy = replace(item, record=replace(item.record, results=(shaky, others[1])))
    slowed = replace(item, record=replace(item.record, layer="hot", conditions=hot))
    text = Page(render(replace(results, cases=(noisy, slowed)))).text()
    assert "noisy: the speed-up is uncertain by" in text
    assert "throttled: sw thermal slowdown" in text
    assert "2 cases are doubtful" in text
    assert "doubtful" not in Page(render(replace(results, cases=(item,)))).text()


def test_a_remark_says_each_thing_once(results: Results) -> None:
    item = next(one for one in results.measured if one.record.results)
    own = {"config": {"alg_id": 9, "refused": ""}, "config_source": "search", "notes": {"alg_id": 9, "refused": "", "padded": 128}}
    one = replace(item.record.results[0], **own)
    ((_, (row,)),) = case_rows(Comparer(replace(results, cases=(replace(item, record=replace(item.record, results=(one,))),))))
    assert row.kernels[0].remark == "alg_id=9 (search); padded=128"


def test_cases_that_a_run_did_not_reach_are_missing(tmp_path: Path) -> None:
    records = [record for record in golden.records(("bitnet-2b",)) if isinstance(record, CaseRecord) and record.suite == "square"]
    write_all(tmp_path / "r.jsonl", [golden.head(planned=tuple(record.key for record in records)), *records[:1]])
    text = re.sub(r"\s+", " ", Page(render(load("h200", [tmp_path]))).text())
    assert f"{len(records) - 1} planned cases were not reached" in text
    assert "should have been measured, and was not" in text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.01234, "0.012"), (1.2345, "1.23"), (12.345, "12.3"), (1234.5, "1234"), (99999.0, "99999")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_dirty_commit_is_said(results: Results) -> None:
    dirty: RunRecord = replace(results.runs[0], dirty=True)
    assert "with uncommitted changes" in render(replace(results, runs=(dirty,), cases=()))


def test_a_colour_means_the_same_in_every_panel() -> None:
    line = Line("6:8", ((512, 1.2, 1.1, 1.3),))
    alone = over_tokens("a", "A", [[], [line]], (0.5, 2.0), "times")
    both = over_tokens("b", "B", [[Line("2:4", line.points)], [line]], (0.5, 2.0), "times")
    assert "--s1" not in alone.svg
    assert "--s2" in alone.svg
    assert "--s1" in both.svg
