"""What a run says of itself when it goes on with another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.journal import Journal, PoisonList
from autotune.keeping import Outcome
from autotune.tools import Tools
from autotune.tuning import Found
from autotune.usage import Usage

MADE = {"command": "c", "seconds": 100.0, "device_seconds": 150.0, "compiled": 40, "compile_seconds": 30.0, "cases": 9, "complete": 7,
        "evaluated": 50, "devices": 2}


@pytest.fixture
def usage(tmp_path: Path) -> Usage:
    tools = Tools(Journal(tmp_path / "j.jsonl", False), PoisonList(tmp_path / "p.jsonl"), pool=pool(3, 4.5))
    tools.busy = 10.0
    made = Usage("d", 2, 1, tools)
    job: Any = None
    made.add(Outcome(job, None, Found(True, evaluated=5)))
    made.add(Outcome(job, None, Found(False)))
    return made


def pool(done: int, busy: float) -> Any:
    return SimpleNamespace(done=done, busy=busy, processes=8)


def figures(usage: Usage, *names: str) -> list[float]:
    return [usage.plain()[name] for name in names]


NAMES = ("device_seconds", "compiled", "compile_seconds", "cases", "complete", "evaluated")


def test_a_run_of_its_own(usage: Usage) -> None:
    assert figures(usage, *NAMES) == [10.0, 3, 4.5, 2, 1, 5]
    assert usage.seconds < 100


def test_cases_that_are_not_asked_for_again_are_counted_with_what_they_took(usage: Usage) -> None:
    usage.earlier(MADE, 7)
    assert figures(usage, *NAMES) == [160.0, 43, 34.5, 9, 8, 55]
    assert 100 <= usage.seconds < 200


def test_cases_that_come_from_the_journal_are_counted_once(usage: Usage) -> None:
    usage.earlier(MADE, 0)
    assert figures(usage, *NAMES) == [160.0, 43, 34.5, 2, 1, 5]


def test_what_a_table_says_in_another_way_is_left_out(usage: Usage) -> None:
    usage.earlier({"seconds": "long", "compiled": None}, 7)
    assert figures(usage, *NAMES) == [10.0, 3, 4.5, 9, 8, 5]
