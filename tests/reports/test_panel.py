from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup

from reports import breakeven, layers, page, panel, scatter
from reports.answers import answers
from reports.compare import Comparer
from reports.load import Results, load
from reports.panel import Data, Panel
from reports.picker import duration
from reports.sketch import Sketch
from tests.reports.htmlcheck import Page


def data(results: Results) -> Data:
    return Data(results, Comparer(results))


def test_a_panel_stands_on_the_page_with_its_link(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(given: Data) -> Panel | None:
        return Panel("counts", "How many <cases>", "Counts", panel.paragraph(f"{len(given.results.measured)} & more", "note"))

    monkeypatch.setattr(page, "PANELS", (counts, lambda given: None))
    html = page.render(load("h200", [run]))
    read = Page(html)
    assert '<h2 id="counts">How many &lt;cases&gt;</h2>' in html
    assert '<p class="note">' in html
    assert " & more" in read.text()
    assert {"href": "#counts"} in read.all("a")


def test_helpers_escape_text_and_keep_markup() -> None:
    made = panel.table("<l>", ["a<", "b"], [["<x>", 1.5], [Markup("<b>y</b>"), "<z>"]])
    assert "&lt;x&gt;" in made
    assert "<b>y</b>" in made
    assert "&lt;z&gt;" in made
    assert 'aria-label="&lt;l&gt;"' in made
    assert Page(str(made)).all("td")[0] == {"class": "r"}
    assert Page(str(panel.table("l", ["a", "b"], [["x", "a sentence " * 5]], text=(0, 1)))).all("td")[0] == {"class": "w"}
    assert "&lt;i&gt;" in panel.paragraph("<i>")
    assert "&lt;i&gt;" in panel.tag("<i>")
    assert panel.folded("<s>", Markup("<p>in</p>")) == "<details><summary>&lt;s&gt;</summary><p>in</p></details>"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(1, 1.2), (64, 1.1)], "every count"),
        ([(1, 0.9), (64, 0.5)], "no count"),
        ([(1, 0.5), (100, 2.0)], "from ≈ 10"),
        ([(1, 2.0), (100, 0.5)], "up to ≈ 10"),
        ([(100, 0.5), (1, 2.0)], "up to ≈ 10"),
        ([(1, 2.0), (100, 0.5), (10000, 2.0)], "up to ≈ 10, from ≈ 1000"),
        ([(1, 0.5), (100, 2.0), (10000, 0.5)], "≈ 10 to ≈ 1000"),
        ([(128, 0.9), (512, 1.0)], "from ≈ 510"),
    ],
)
def test_break_even_in_words(points: list[tuple[int, float]], words: str) -> None:
    assert breakeven.when(points) == words


def test_layers_add_up_and_are_told_in_words(run: Path) -> None:
    given = data(load("h200", [run]))
    made = layers.panel(given)
    assert made is not None
    found = [one for one in answers(given.comparer) if (one.work, one.tokens, one.sparsity) == ("layer", 2048, "2:4")]
    [answer] = found
    ours, theirs, *_ = layers.stacks(found)
    assert ours.us == pytest.approx(answer.us)
    assert theirs.us == pytest.approx(answer.theirs_us)
    assert list(ours.parts) == ["Wqkv", "Wo", "W13", "W2"]
    text = Page(str(made.html)).text()
    assert f"2:4 ours: sparse-mma: {duration(answer.us)} (Wqkv" in text
    assert duration(30 * answer.us) in text


def test_samples_are_the_rounds(run: Path) -> None:
    given = data(load("h200", [run]))
    made = scatter.panel(given)
    assert made is not None
    item = next(one for one in given.results.measured if one.record.suite == "prefill")
    ours, theirs = item.record.results[:2]
    assert scatter.rounds_of(ours, theirs) == [b / a for a, b in zip(ours.samples_us, theirs.samples_us, strict=True)]
    text = Page(str(made.html)).text()
    assert "SM clock, MHz: 1755 to 1980" in text
    assert "interval" in text


def test_panels_without_their_data_are_left_out(projected_run: Path) -> None:
    given = data(load("h200", [projected_run]))
    assert [function(given) for function in (layers.panel, breakeven.panel, scatter.panel)] == [None, None, None]


def test_a_sketch_is_accessible_and_escapes() -> None:
    sketch = Sketch(10, 10)
    sketch.words(1, 2, "<b>", bold=True)
    sketch.box(0, 0, 0, 2, "s1", opacity=0.5)
    sketch.line([(0, 0), (1.234, 2)], "grid", dashed=True)
    svg = sketch.figure("id", "t<", "d<").svg
    assert "&lt;b&gt;" in svg
    assert "L1.23 2" in svg
    assert 'width="0.4"' in svg
    assert [attributes["aria-labelledby"] for attributes in Page(svg).all("svg")] == ["id-title id-desc"]
