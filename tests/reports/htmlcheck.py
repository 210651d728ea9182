"""A strict reader of the page: well-formed, and what it holds by element."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}
CELLS = {"td", "th"}


class Page(HTMLParser):
    """Parses a whole document; raises AssertionError where an element is closed that is not open, or is left open.

    Cells may be closed by the next cell, row or section, as HTML allows; everything else must be closed by its own end tag.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in CELLS | {"tr"} and self.open and self.open[-1] in CELLS:
            self.open.pop()
        if tag == "tr" and self.open and self.open[-1] == "tr":
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while tag in ("tr", "tbody", "thead") and self.open and self.open[-1] in CELLS | {"tr"} and self.open[-1] != tag:
            self.open.pop()
        assert self.open, f"</{tag}> with nothing open"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of this kind, in order."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        """What a reader sees: no script, no style."""
        return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))
