from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.load import load
from reports.page import render
from tests.patience import until
from tests.reports import browser

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(load("h200", [run])), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def opened(page: Path, downloads: Path) -> Iterator[Any]:
    with browser.browser(downloads) as driver:
        browser.size(driver, 1280, 800)
        driver.get(page.as_uri())
        yield driver


def shown(driver: Any) -> list[dict[str, str]]:
    """What is said of the answers that can be seen."""
    return driver.execute_script(
        "return [...document.querySelectorAll('article.answer')].filter((a) => a.offsetHeight)"
        ".map((a) => ({...a.dataset, text: a.innerText}))"
    )


def pick(driver: Any, name: str, value: str) -> None:
    script = (
        "const field = document.getElementById('picker')[arguments[0]]; field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true})); return field.value"
    )
    assert driver.execute_script(script, name, value) == value


def note(driver: Any) -> str:
    return driver.execute_script("return document.getElementById('picker-note').textContent")


def test_no_errors_and_nothing_is_loaded(opened: Any) -> None:
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0


CARD = "article.answer:not([hidden])"
QUESTIONS = {  # of a first-time reader, and where they are answered; on a phone the last two are one click away
    "which kernel": f"{CARD} .fastest",
    "how much faster": f"{CARD} .huge",
    "than what": f"{CARD} .rivals",
    "how sure": f"{CARD} .sure",
    "on which GPU": ".kicker",
    "how do I run it": f"{CARD} .run code",
    "can I trust it": "#trust",
}
SCREENS = {(1280, 800): len(QUESTIONS), (390, 844): len(QUESTIONS) - 2}
"""Windows, and how many of the questions are answered on their first screen."""
BOXES = {"trust": "judged against an exact reference", "where": "PyTorch", "run": "./scripts/run"}
"""What the three boxes say, to which a phone's first screen has links."""
LINKS = (
    "summary", "answers", "speedups", "roofs", "power", "layers", "breakeven", "memory", "samples", "cases", "missing", "method",
    "published",
)  # fmt: skip


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Any]:
    """The report of the committed results."""
    file = tmp_path_factory.mktemp("committed") / "report.html"
    file.write_text(render(load("h200")), encoding="utf-8")
    assert file.stat().st_size < 5_000_000
    with browser.browser(downloads) as driver:
        browser.size(driver, 1280, 800)
        driver.get(file.as_uri())
        yield driver


@pytest.mark.parametrize("window", SCREENS)
def test_the_committed_results_answer_a_first_time_reader(committed: Any, window: tuple[int, int]) -> None:
    width, height = window
    browser.size(committed, width, height)
    committed.execute_script("scrollTo(0, 0)")
    assert [entry for entry in committed.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    said = {}
    for question, place in list(QUESTIONS.items())[: SCREENS[window]]:
        [first, *_] = committed.find_elements("css selector", place)
        said[question] = first.text.strip()
        assert said[question], question
        assert first.rect["y"] + first.rect["height"] <= height, question
    assert said["how much faster"].endswith("×")
    assert "95 % interval" in said["how sure"]
    assert "H200" in said["on which GPU"]
    assert said["which kernel"] == "neither for certain" or said["which kernel"] in said["than what"] + committed.find_element(
        "css selector", f"{CARD} .bars .ours th").text
    for name, words in BOXES.items():
        heading = committed.find_element("id", name)
        assert words in heading.find_element("xpath", "..").text
        links = [one for one in committed.find_elements("css selector", f'a[href="#{name}"]') if one.is_displayed()]
        assert heading.rect["y"] <= height or any(one.rect["y"] + one.rect["height"] <= height for one in links), name


def test_every_section_is_one_click_from_the_first_screen(committed: Any) -> None:
    browser.size(committed, 1280, 800)
    committed.execute_script("scrollTo(0, 0)")
    links = [one for one in committed.find_elements("css selector", "nav.sections a") if one.rect["y"] < 800]
    targets = [one.get_attribute("href").split("#")[1] for one in links]
    assert set(targets) >= set(LINKS)
    headings = committed.execute_script("return [...document.querySelectorAll('main > h2')].map((one) => one.id)")
    assert set(targets) == set(headings)
    for doubts in committed.find_elements("css selector", '.facts a[href="#doubtful"]'):
        doubts.click()
        assert committed.find_element("id", "doubtful").rect["height"] > 0, "a link into a folded table opens it"
    committed.execute_script("scrollTo(0, 0)")
    committed.find_element("css selector", 'nav a[href="#layers"]').click()
    assert -5 <= committed.execute_script("return document.getElementById('layers').getBoundingClientRect().top") <= 800


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_committed_report_fits_its_window(committed: Any, width: int, dark: bool) -> None:
    browser.size(committed, width, 800, dark)
    assert committed.execute_script("return document.documentElement.scrollWidth") <= width
    browser.size(committed, 1280, 800)


def test_a_printed_page_hides_nothing_that_is_folded(committed: Any) -> None:
    committed.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    heights = committed.execute_script(
        "return [...document.querySelectorAll('details:not([open])')].map((one) => one.lastElementChild)"
        ".filter((one) => one.tagName !== 'SUMMARY').map((one) => one.checkVisibility({contentVisibilityAuto: true}) * one.offsetHeight)"
    )
    assert len(heights) > 5
    assert all(height > 0 for height in heights)
    for gone in ("#picker", "nav.sections", ".filter", "#csv"):
        assert not any(one.is_displayed() for one in committed.find_elements("css selector", gone)), gone
    committed.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_first_screen_holds_the_answer_and_the_picker(opened: Any) -> None:
    ends = opened.execute_script(
        "return ['#picker', 'article.answer:not([hidden])', 'nav.sections']"
        ".map((s) => document.querySelector(s).getBoundingClientRect().bottom)"
    )
    assert all(0 < end <= 800 for end in ends)


def test_the_picker_picks(opened: Any) -> None:
    [first] = shown(opened)
    assert (first["work"], first["weights"], first["tokens"]) == ("layer", "2:4", "2048")
    for name, value in (("work", "gemm"), ("weights", "6:8"), ("tokens", "512")):
        pick(opened, name, value)
    [now] = shown(opened)
    assert (now["model"], now["work"], now["weights"], now["tokens"]) == ("bitnet-2b", "gemm", "6:8", "512")
    assert "as fast as the strongest baseline" in now["text"]
    assert note(opened) == ""
    spoken = opened.execute_script("return document.getElementById('picker-said').textContent")
    assert spoken.startswith("bitnet-2b, 6:8, 512 tokens: "), "said to screen readers, and only this"
    assert "as fast as the strongest baseline" in spoken


def test_the_nearest_count_is_shown_and_said(opened: Any) -> None:
    for name, value in (("work", "gemm"), ("weights", "2:4"), ("tokens", "700")):
        pick(opened, name, value)
    [now] = shown(opened)
    assert now["tokens"] == "512"
    assert note(opened) == "700 tokens were not measured; the nearest count is 512."


def test_what_was_not_measured_is_said(opened: Any) -> None:
    pick(opened, "work", "step")
    pick(opened, "weights", "dense")
    assert shown(opened) == []
    assert note(opened).startswith("Not measured: bitnet-2b, training, one step, dense. Measured for this model: inference, ")
    assert "; training, one step 2:4" in note(opened)
    pick(opened, "weights", "2:4")
    assert len(shown(opened)) == 1


def test_the_picker_is_labelled_and_reached_by_keyboard(opened: Any) -> None:
    fields = opened.execute_script("return [...document.getElementById('picker').elements].map((e) => [e.labels.length, e.tabIndex])")
    assert fields == [[1, 0]] * 4


def column(driver: Any, table: str, place: int) -> list[str]:
    script = "return [...document.getElementById(arguments[0]).tBodies].map((b) => b.rows[0].cells[arguments[1]].textContent)"
    return driver.execute_script(script, table, place)


def test_tables_sort_and_filter(opened: Any) -> None:
    press = "document.getElementById('cases-1').tHead.rows[0].cells[arguments[0]].querySelector('button').click()"
    opened.execute_script("document.getElementById('cases-1').closest('details').open = true")
    opened.execute_script(press, 8)
    times = [float(text) for text in column(opened, "cases-1", 8) if text != "–"]
    assert times == sorted(times)
    opened.execute_script(press, 8)
    assert [float(text) for text in column(opened, "cases-1", 8) if text != "–"] == times[::-1]
    sort = opened.execute_script("return document.getElementById('cases-1').tHead.rows[0].cells[8].getAttribute('aria-sort')")
    assert sort == "descending"
    visible = opened.execute_script(
        "const t = document.getElementById('cases-1'), i = t.closest('details').querySelector('input');"
        "i.value = 'W13 6:8'; i.dispatchEvent(new Event('input'));"
        "return [...t.tBodies].filter((b) => !b.hidden).map((b) => b.rows[0].innerText)"
    )
    assert len(visible) == 5
    told = opened.execute_script("return document.getElementById('cases-1').closest('details').querySelector('output').textContent")
    assert told == f"5 of {len(times) + column(opened, 'cases-1', 8).count('–')}"
    assert all("W13" in row and "6:8" in row for row in visible)


def test_the_csv_is_downloaded_plain(opened: Any, downloads: Path) -> None:
    opened.execute_script("document.getElementById('csv').click()")
    file = downloads / "tersparse-h200.csv"
    until(file.exists, "the download")
    rows = list(csv.DictReader(file.open(encoding="utf-8", newline="")))
    assert len(rows) > 500
    assert {row["suite"] for row in rows} >= {"prefill", "decode", "layer", "train", "prepare", "square"}


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window(opened: Any, width: int, dark: bool) -> None:
    browser.size(opened, width, 800, dark)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    ground = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(ground.split("(")[1].split(",")[0]) < 64) == dark
    browser.size(opened, 1280, 800)


def test_without_scripts_all_but_the_picker_is_there(page: Path, tmp_path: Path) -> None:
    with browser.browser(tmp_path, scripts=False) as driver:
        driver.get(page.as_uri())
        find = driver.find_elements
        assert not any(one.is_displayed() for one in find("css selector", "#picker"))
        [answer] = [one for one in find("css selector", "article.answer") if one.is_displayed()]
        assert "as fast as the strongest baseline" in answer.text
        [link] = find("id", "csv")
        assert "compressed" in link.text
        find("css selector", "details.suite:has(#cases-1) > summary")[0].click()
        find("css selector", "#cases-1 tbody details > summary")[0].click()
        assert any(row.is_displayed() for row in find("css selector", "tr.more"))
