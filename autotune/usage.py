"""What a tuning run took: time, devices, compilers, and what came of it; kept beside its journal, and in a table that it made whole."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.keeping import Outcome
from autotune.tools import Tools

TIMES = ("seconds", "device_seconds", "compiled", "compile_seconds")
"""What `Usage.plain` tells of the work that was done, also where it is not asked for again."""


@dataclass
class Usage:
    """Of a run. command: its command line. cases, devices: how many. outcomes: so far. before: figures of the runs that it goes on with.
    done: cases that these have done and that it does not ask for again."""

    command: str
    cases: int
    devices: int
    tools: Tools
    started: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)
    before: Mapping[str, float] = field(default_factory=dict)
    done: int = 0

    def earlier(self, made: Mapping[str, Any], done: int) -> None:
        """Go on with the figures of a run: its times, and its candidates where their cases, so many, are not asked for again."""
        names = (*TIMES, "evaluated") if done else TIMES
        self.before = {name: made[name] for name in names if isinstance(made.get(name), (int, float))}
        self.done = done

    def add(self, outcome: Outcome, told: bool = False) -> dict[str, Any] | None:
        """One more. Returns `plain` where it is told to."""
        self.outcomes.append(outcome)
        return self.plain() if told else None

    @property
    def seconds(self) -> float:
        """Wall time so far, of earlier runs too."""
        return self.before.get("seconds", 0.0) + time.monotonic() - self.started

    def plain(self) -> dict[str, Any]:
        """As JSON data. device_seconds: that the devices' processes worked on candidates; compile_seconds: that compiling took, summed over
        `compilers` processes; evaluated: candidates with an outcome."""
        pool, before = self.tools.pool, self.before
        return {
            "command": self.command, "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "seconds": round(self.seconds, 1), "devices": self.devices,
            "device_seconds": round(before.get("device_seconds", 0.0) + self.tools.busy, 1),
            "compilers": pool.processes if pool else 0, "compiled": before.get("compiled", 0) + (pool.done if pool else 0),
            "compile_seconds": round(before.get("compile_seconds", 0.0) + (pool.busy if pool else 0.0), 1),
            "cases": self.done + self.cases, "complete": self.done + sum(outcome.complete for outcome in self.outcomes),
            "evaluated": before.get("evaluated", 0) + sum(outcome.found.evaluated for outcome in self.outcomes),
        }

    def write(self, path: Path) -> None:
        """To a file; where that cannot be written the run has said so already."""
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(self.plain(), indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        own = self.plain()
        return (f"{own['seconds']:.0f} s, {own['devices']} devices busy for {own['device_seconds']:.0f} s together, "
                f"{own['compiled']} kernels compiled in {own['compile_seconds']:.0f} s by {own['compilers']} processes")
