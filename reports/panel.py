"""Panels: parts of the page that are a module each. A panel is a function of the page's data; where its data is absent it is left out.

A new panel is a module with a function `panel(data) -> Panel | None` and its line in `reports.page.PANELS`. All text goes through the
helpers here, which escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from reports.compare import Comparer
from reports.load import Results
from reports.svg import Figure


@dataclass(frozen=True)
class Data:
    """What a panel may read: the results of one GPU, and the comparisons that the whole page shares."""

    results: Results
    comparer: Comparer


@dataclass(frozen=True)
class Panel:
    """One section. id: unique on the page. heading: of the section. short: its link in the navigation. html: below the heading."""

    id: str
    heading: str
    short: str
    html: Markup


SENTENCE = 36
"""Cells of words that are longer than this wrap."""
MANY = 10
"""Tables of at least so many columns may be wider than the text."""
PanelFunction = Callable[[Data], Panel | None]


def paragraph(text: str | Markup, kind: str = "") -> Markup:
    """A paragraph; kind: "note" for small print. Markup stays markup, text is escaped."""
    return Markup('<p class="{}">{}</p>').format(kind, text) if kind else Markup("<p>{}</p>").format(text)


def figures(drawn: Sequence[Figure]) -> Markup:
    """Figures side by side where there is room."""
    inside = Markup("").join(Markup("<figure>{}</figure>").format(Markup(one.svg)) for one in drawn)
    return Markup('<div class="panels">{}</div>').format(inside)


def wide(one: Figure) -> Markup:
    """A figure as wide as the text."""
    return Markup('<figure class="full">{}</figure>').format(Markup(one.svg))


def table(label: str, head: Sequence[str], rows: Sequence[Sequence[object]], text: Sequence[int] = (0,)) -> Markup:
    """A table in a region that scrolls. label: for screen readers. text: the places of columns that hold words; the others are numbers,
    set to the right. The first cell of a row is its heading. Markup cells stay markup, everything else is escaped."""
    classes = [Markup("" if place in text else ' class="r"') for place in range(len(head))]
    heads = Markup("").join(Markup('<th scope="col"{}>{}</th>').format(kind, name) for kind, name in zip(classes, head, strict=True))
    body = Markup("\n").join(_row(row, classes) for row in rows)
    return Markup(
        '<div class="{}" tabindex="0" role="region" aria-label="{}"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format("scroll bleed" if len(head) >= MANY else "scroll", label, heads, body)


def _row(row: Sequence[object], classes: Sequence[Markup]) -> Markup:
    first, *rest = zip(row, classes, strict=True)
    cells = [Markup('<th scope="row"{}>{}</th>').format(first[1], first[0])]
    cells += [Markup("<td{}>{}</td>").format(kind or _wrap(cell), cell) for cell, kind in rest]
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))


def _wrap(cell: object) -> Markup:
    """Sentences wrap, names do not; nor does markup that is not longer than a line."""
    length, most = (len(cell.striptags()), 2 * SENTENCE) if isinstance(cell, Markup) else (len(str(cell)), SENTENCE)
    return Markup(' class="w"') if length > most else Markup("")


def folded(summary: str, content: Markup) -> Markup:
    """Content behind a line that opens it."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, content)


def tag(text: str) -> Markup:
    """A small loud label, such as "Projected, not measured"."""
    return Markup('<span class="tag">{}</span>').format(escape(text))
