"""Figures drawn by hand: rectangles, lines and words as inline SVG, in the page's colours; small and quick where matplotlib is neither."""

from __future__ import annotations

import html
from collections.abc import Iterable

from reports.svg import Figure


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


class Sketch:
    """A drawing of `width` by `height` units; a unit is a point where the figure has its natural width. Colours are names of the theme."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def words(
        self, x: float, y: float, text: str, size: float = 9.5, colour: str = "ink", anchor: str = "start", bold: bool = False
    ) -> None:
        """One line of text whose baseline is at y."""
        weight = ' font-weight="600"' if bold else ""
        style = f'font-size="{_n(size)}" text-anchor="{anchor}"{weight} style="fill: var(--{colour})"'
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}" {style}>{html.escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0) -> None:
        """A filled rectangle."""
        shape = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0.4))}" height="{_n(height)}"'
        faint = f' fill-opacity="{_n(opacity)}"' if opacity < 1 else ""
        self._parts.append(f'<rect {shape}{faint} style="fill: var(--{colour})"/>')

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.0, dashed: bool = False) -> None:
        """A line through the points."""
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        dash = ' stroke-dasharray="3 3"' if dashed else ""
        self._parts.append(f'<path d="{path}" stroke-width="{_n(width)}"{dash} style="fill: none; stroke: var(--{colour})"/>')

    def ticks(self, spots: Iterable[tuple[float, float]], height: float, colour: str, width: float = 1.0, opacity: float = 1.0) -> None:
        """Short upright strokes at the spots, each the middle of its stroke."""
        path = "".join(f"M{_n(x)} {_n(y - height / 2)}v{_n(height)}" for x, y in spots)
        faint = f' stroke-opacity="{_n(opacity)}"' if opacity < 1 else ""
        self._parts.append(f'<path d="{path}" stroke-width="{_n(width)}"{faint} style="fill: none; stroke: var(--{colour})"/>')

    def figure(self, figure_id: str, title: str, description: str) -> Figure:
        """The drawing as a figure; title and description are for those who do not see it."""
        named = f'role="img" aria-labelledby="{figure_id}-title {figure_id}-desc"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self.width)} {_n(self.height)}" {named}>'
        told = f'<title id="{figure_id}-title">{html.escape(title)}</title><desc id="{figure_id}-desc">{html.escape(description)}</desc>'
        return Figure(figure_id, title, description, head + told + "".join(self._parts) + "</svg>")
