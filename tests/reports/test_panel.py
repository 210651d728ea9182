from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup

from reports import page, panel
from reports.compare import Comparer
from reports.load import Results, load
from reports.panel import Data, Panel
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
    assert "&lt;i&gt;" in panel.paragraph("<i>")
    assert "&lt;i&gt;" in panel.tag("<i>")
    assert panel.folded("<s>", Markup("<p>in</p>")) == "<details><summary>&lt;s&gt;</summary><p>in</p></details>"
