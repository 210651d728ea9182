"""Lanes: `gpu` needs a device, `interpreter` needs TRITON_INTERPRET=1, `compile` must not have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
        if item.get_closest_marker("interpreter") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="runs in the interpreter lane: TRITON_INTERPRET=1 pytest -m interpreter"))
        if item.get_closest_marker("compile") and INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="the compiler does not run in the interpreter's process"))


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
