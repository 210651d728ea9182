"""Golden results on the disk, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from suites.store import write_all
from tests.reports import golden


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one model with every suite, status and kind of evidence."""
    folder = tmp_path_factory.mktemp("golden")
    write_all(folder / "records.jsonl", golden.records(("bitnet-2b",)))
    return folder


@pytest.fixture(scope="session")
def projected_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a machine without the GPU writes."""
    folder = tmp_path_factory.mktemp("projected")
    write_all(folder / "records.jsonl", golden.without_gpu())
    return folder
