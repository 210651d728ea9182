from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import RecordError, UsageError
from reports.build import main
from reports.changepoints import changes
from reports.history import history, strip
from reports.page import render_history
from suites.record import CaseRecord, Record
from suites.statistics import best_variant, speedup, strongest, time_us
from suites.store import write_all
from tests.reports import golden
from tests.reports.htmlcheck import Page

CASES = [record for record in golden.records(("bitnet-2b",)) if isinstance(record, CaseRecord) and record.suite == "prefill"][:6]


def noisy(levels: list[float], seed: int = 0, noise: float = 0.005) -> list[float]:
    random_ = random.Random(seed)
    return [level * math.exp(random_.gauss(0, noise)) for level in levels]


def faster(case: CaseRecord, factor: float) -> CaseRecord:
    """The case with our kernels so many times as fast."""
    changed = [replace(r, samples_us=tuple(us / factor for us in r.samples_us)) if r.kind == "variant" else r for r in case.results]
    return replace(case, results=tuple(changed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve runs, one a day, in folders of their own; the first case is 10 % faster from the seventh on."""
    store = tmp_path_factory.mktemp("history")
    random_ = random.Random(1)
    for number in range(12):
        name = f"run-{number:02d}"
        records: list[Record] = [golden.head(id=name, started=f"2026-11-{10 + number:02d}T00:00:00Z", commit=f"{number:040d}")]
        for place, case in enumerate(CASES):
            factor = random_.gauss(1.0, 0.002) * (1.1 if place == 0 and number >= 6 else 1.0)
            records.append(replace(faster(case, factor), run=name))
        write_all(store / name / "records.jsonl", records)
    return store


def test_a_shift_is_found_where_it_is() -> None:
    [change] = changes(noisy([1.0] * 10 + [0.95] * 7))
    assert change.place == 10
    assert change.factor == pytest.approx(0.95, abs=0.01)


def test_two_shifts_and_a_shift_back() -> None:
    found = changes(noisy([1.0] * 8 + [1.2] * 5 + [1.0] * 8))
    assert [change.place for change in found] == [8, 13]
    assert [change.factor > 1 for change in found] == [True, False]


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.05])
def test_noise_alone_is_no_shift(noise: float) -> None:
    alarms = sum(bool(changes(noisy([1.0] * 40, seed, noise))) for seed in range(200))
    assert alarms <= 4


def test_a_single_odd_run_is_no_shift() -> None:
    assert changes([1.0] * 10 + [0.5] + [1.0] * 10) == []
    assert changes([1.0, 1.0, 0.5]) == []


def test_what_is_too_small_is_not_reported() -> None:
    assert changes([1.0] * 20 + [1.005] * 20) == []


@pytest.mark.parametrize("shift", [0.95, 1.05])
def test_five_per_cent_in_one_per_cent_of_noise_is_found(shift: float) -> None:
    found = [changes(noisy([1.0] * 15 + [shift] * 6, seed, 0.01)) for seed in range(100)]
    assert sum(any(abs(change.place - 15) <= 1 for change in one) for one in found) >= 97


def test_a_history_knows_when_a_case_changed(folder: Path) -> None:
    first, *rest = history("h200", folder)
    assert first.key == CASES[0].key
    [change] = first.changes
    assert (change.place, change.factor) == (6, pytest.approx(1.1, abs=0.01))
    assert first.told(change).endswith("at 0000000000, 2026-11-16")
    assert not any(one.changes for one in rest)
    assert len(first.points) == 12


def test_a_point_is_the_paired_speed_up_of_its_run(folder: Path) -> None:
    case = next(r for r in golden.records(("bitnet-2b",)) if isinstance(r, CaseRecord) and r.key == CASES[1].key)
    [series] = [one for one in history("auto", folder) if one.key == case.key]
    ours, theirs = best_variant(case), strongest(case)
    assert ours is not None
    assert theirs is not None
    expected = speedup(ours, theirs)
    assert expected is not None
    assert (series.last.kernel, series.last.rival) == (ours.kernel, theirs.kernel)
    assert series.last.ratio.value == pytest.approx(expected.value, rel=0.02)
    assert series.last.us == pytest.approx(time_us(ours), rel=0.02)


def test_a_database_tells_the_same_history(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.sqlite"
    for run in sorted(folder.iterdir(), reverse=True):
        assert main(["--gpu", "h200", "--history", str(file), "--add", str(run), "--out", str(tmp_path / "h.html")]) == 0
    assert history("h200", file) == history("h200", folder)
    assert (tmp_path / "h.html").read_text(encoding="utf-8") == render_history("h200", file)


def test_the_page(folder: Path) -> None:
    html = render_history("h200", folder)
    assert html == render_history("h200", folder)
    page = Page(html)
    text = re.sub(r"\s+", " ", page.text())
    assert "6 cases in 12 runs, 2026-11-10 to 2026-11-21" in text
    assert "1 case changed" in text
    assert "▲ +10." in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["href"][1:] for attributes in page.all("a")}
    wanted |= {name for _, attributes in page.elements for name in attributes.get("aria-labelledby", "").split()}
    assert wanted <= set(ids)
    assert len(page.all("script")) == 1
    assert len(page.all("svg")) == 6


def test_no_text_of_a_record_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    write_all(tmp_path / "r.jsonl", [golden.head(id=evil, commit=evil), replace(CASES[0], run=evil, model=evil, layer=evil)])
    page = Page(render_history("h200", tmp_path))
    assert len(page.all("script")) == 1
    assert evil in page.text()


def test_a_strip_shows_the_shape(folder: Path) -> None:
    first, second, *_ = history("h200", folder)
    assert len(strip(first)) == 12
    assert set(strip(first)[:6]) <= set("▁▂")
    assert set(strip(first)[6:]) <= set("▇█")
    assert set(strip(second)) <= set("▁▂▃▄▅▆▇█")


def test_runs_of_another_gpu_and_empty_places_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds runs of h200, but --gpu a100"):
        history("a100", folder)
    with pytest.raises(RecordError, match=r"no \.jsonl file"):
        history("h200", tmp_path)
    with pytest.raises(RecordError, match="no such file"):
        history("h200", tmp_path / "nowhere.sqlite")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--add", "x"], "--history STORE makes a page of its own"),
        (["--history", "x", "--run", "y"], "--history STORE makes a page of its own"),
        (["--history", ".", "--add", "x"], "--add needs a .sqlite file"),
        (["--history", "h.sqlite", "--add", "nowhere"], "nowhere: no such file"),
    ],
)
def test_wrong_use_is_one_line(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--gpu", "h200", *argv]) == 2
    assert said in capsys.readouterr().err


def test_too_few_runs_for_a_level_are_said_and_ordered_by_their_last_step(tmp_path: Path) -> None:
    def times(case: CaseRecord, factor: float) -> CaseRecord:
        return replace(case, results=tuple(
            replace(one, samples_us=tuple(us / factor for us in one.samples_us)) if one.kind == "variant" else one for one in case.results
        ))

    heads = [golden.head(id=name, started=f"2026-11-2{place}T00:00:00Z") for place, name in enumerate("ab")]
    cases = [replace(CASES[0], run="a"), replace(CASES[1], run="a"), times(replace(CASES[1], run="b"), 1.5), replace(CASES[0], run="b")]
    write_all(tmp_path / "r.jsonl", [*heads, *cases])
    first, second = history("h200", tmp_path)
    assert first.key == CASES[1].key
    assert first.latest == pytest.approx(1.5, rel=0.01)
    assert second.latest == pytest.approx(1.0)
    text = re.sub(r"\s+", " ", Page(render_history("h200", tmp_path)).text())
    assert "No case has the 4 runs that a change of level takes" in text
