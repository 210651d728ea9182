"""`python -m tests.reports.screenshots`: the pictures of the report in docs/, of the committed results, in a real browser."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from reports.load import load
from reports.page import render
from tests.reports import browser

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZES = {"light": (1280, 860, False), "dark": (1280, 860, True), "phone": (390, 860, False)}
COLOURS = 96


def main() -> int:
    """Write one picture per size; returns an exit code."""
    missing = browser.missing()
    if missing:
        print(f"screenshots: {missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, browser.browser(Path(folder)) as driver:
        page = Path(folder) / "report.html"
        page.write_text(render(load("h200")), encoding="utf-8")
        for name, (width, height, dark) in SIZES.items():
            browser.size(driver, width, height, dark)
            driver.get(page.as_uri())
            taken = Path(folder) / "taken.png"
            browser.screenshot(driver, taken)
            file = DOCS / f"report-{name}.png"
            Image.open(taken).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
            print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
