"""A real browser without a window, where there is one: Debian's chromium and chromium-driver, driven by selenium."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """What is not installed, or None."""
    if not any(map(shutil.which, NAMES)):
        return "no chromium here (Debian: chromium)"
    if not shutil.which("chromedriver"):
        return "no chromedriver here (Debian: chromium-driver)"
    try:
        import selenium  # noqa: F401  # only whether it is there
    except ImportError:
        return "no selenium here (pip install selenium)"
    return None


@contextmanager
def browser(downloads: Path, scripts: bool = True) -> Iterator[Any]:
    """A browser that is closed at the end. downloads: where it puts files. scripts: whether pages may run theirs."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(next(path for name in NAMES if (path := shutil.which(name))))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield driver
    finally:
        driver.quit()


def size(driver: Any, width: int, height: int, dark: bool = False) -> None:
    """The size of the window and the theme that the reader prefers."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})


def screenshot(driver: Any, path: Path) -> None:
    """What the window shows, as a PNG."""
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.write_bytes(base64.b64decode(taken["data"]))
