"""Drawing for the page: matplotlib without a display, and its SVG made inline, accessible, themed and the same on every build.

Figures are drawn in stand-in colours that are replaced by CSS variables (`--ink`, `--muted`, `--grid`, `--s1` … `--s6`), so that one
drawing reads in light and in dark. The series are the colour-blind safe colours of Okabe and Ito; each also has a marker of its own.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
MARKERS = ("o", "s", "^", "D", "v", "P")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", **{colour: f"s{place}" for place, colour in enumerate(SERIES, 1)}}
LIGHT = {
    "ink": "#1c1c1a", "muted": "#5f5e59", "grid": "#dcdad2", "ground": "#fdfcf9", "warn": "#ad4600",
    "s1": "#0072b2", "s2": "#d55e00", "s3": "#009e73", "s4": "#aa4f85", "s5": "#8a6a00", "s6": "#5f5e59",
}
DARK = {
    "ink": "#e9e7e0", "muted": "#a5a39b", "grid": "#3a3934", "ground": "#171714", "warn": "#f0803c",
    "s1": "#56b4e9", "s2": "#f0803c", "s3": "#2cc79b", "s4": "#e09ac2", "s5": "#f0e442", "s6": "#a5a39b",
}
MARGIN = 14  # units around a figure that stands alone
_SETTINGS: Any = {  # Any: matplotlib 3.11 types the keys, earlier ones take any dictionary
    "svg.fonttype": "none", "svg.hashsalt": "tersparse", "text.parse_math": False, "font.size": 10.5, "font.family": "DejaVu Sans",
    "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.facecolor": "none", "figure.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.minor.visible": False, "ytick.minor.visible": False, "legend.frameon": False, "legend.fontsize": 9.5, "lines.linewidth": 1.6,
    "lines.markersize": 5.0, "legend.handlelength": 1.3,
    "legend.columnspacing": 0.9, "legend.handletextpad": 0.4, "legend.borderaxespad": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One drawing: an id that is unique on the page, a title, a description for those who do not see it, and the SVG element."""

    id: str
    title: str
    description: str
    svg: str


def draw(figure_id: str, title: str, description: str, size: tuple[float, float], plot: Callable[[Axes], None]) -> Figure:
    """Call `plot` on the axes of a figure of `size` inches (72 units each) and return it as an inline SVG element."""
    with mpl.rc_context(_SETTINGS):
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        plot(axes)
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Figure(figure_id, title, description, _inline(stream.getvalue(), figure_id, title, description))


def _inline(text: str, figure_id: str, title: str, description: str) -> str:
    body = text[text.index("<svg") :]
    found = re.match(r"<svg[^>]*viewBox=\"([^\"]+)\"[^>]*>", body)
    if found is None:
        raise AssertionError("matplotlib wrote an SVG without a viewBox")
    body = body[found.end() :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*|<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*</defs>\s*", "", body)
    body = re.sub(r'\bid="', f'id="{figure_id}-', body)
    body = re.sub(r'href="#', f'href="#{figure_id}-', body)
    body = re.sub(r"url\(#", f"url(#{figure_id}-", body)
    body = re.sub(r"xlink:href", "href", body)
    body = re.sub(r"font: (?:(bold|[5-9]00) )?([\d.]+)px [^;\"]+", _font, body)
    body = re.sub(r'\b(d|x|y|transform)="([^"]*)"', _short, body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{found[1]}" role="img" aria-labelledby="{figure_id}-title {figure_id}-desc" '
        f'stroke-linejoin="round"><title id="{figure_id}-title">{html.escape(title)}</title>'
        f'<desc id="{figure_id}-desc">{html.escape(description)}</desc>'
    )
    return head + re.sub(r">\s+<", "><", body).strip()


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}px" + (f"; font-weight: {found[1]}" if found[1] else "")


def _short(found: re.Match[str]) -> str:
    return f'{found[1]}="' + re.sub(r"(\.\d\d)\d+", r"\1", found[2]).replace("\n", " ").strip() + '"'


def standalone(figure: Figure) -> str:
    """The figure as a file of its own: with its colours for light and dark, and a ground of its own, for a README."""
    def variables(theme: dict[str, str]) -> str:
        return "".join(f"--{name}:{value};" for name, value in theme.items())

    style = (
        f"<style>svg{{{variables(LIGHT)}font-family:system-ui,'Segoe UI','DejaVu Sans',sans-serif}}"
        f"@media(prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}</style>"
        f'<rect x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" style="fill:var(--ground)"/>'
    )
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure.svg)
    if box is None:
        raise AssertionError("a figure without a viewBox")
    width, height = float(box[1]) + 2 * MARGIN, float(box[2]) + 2 * MARGIN
    sized = f'width="{1.6 * width:.0f}" height="{1.6 * height:.0f}" viewBox="{-MARGIN} {-MARGIN} {width:.1f} {height:.1f}"'
    return figure.svg.replace(box[0], sized, 1).replace("</desc>", "</desc>" + style, 1) + "\n"
