"""A device that rested is loaded before it is measured: for its first tenths of a second it is faster than ever after.

On an H200 (2026-11-22) cases that came within the first second of a fresh process, when the device drew 120 to 185 W, found a bf16
GEMM of cuBLAS at 60.1 µs and ours at 23.4; in every other process, at 250 to 600 W, it was 62.8 and 23.9 (both at 1980 MHz by NVML): 3 %
of speed-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from autotune.conditions import Monitor

BUSY = 0.3
"""A device that drew this share of its power cap lately has not rested."""
CAP_W = 700.0
"""The power cap of one that does not say."""
LOAD_SECONDS = 0.2
PAUSE_SECONDS = 0.1
"""Behind the load: it reaches the power cap, which the cases before a case do not do right before its rounds either."""


class Warmer:
    """Called before the rounds of a case. load: keeps the device busy for a few milliseconds."""

    def __init__(
        self, monitor: Monitor, load: Callable[[], None], cap_w: float = CAP_W,
        now: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._monitor, self._load, self._enough, self._now, self._pause = monitor, load, BUSY * cap_w, now, pause
        self._warmed = False

    def __call__(self) -> None:
        """Load the device if it drew little power lately; where that is unknown, once."""
        power = self._monitor.snapshot().get("power_w")
        rested = power < self._enough if isinstance(power, (int, float)) else not self._warmed
        if not rested:
            return
        self._warmed, ends = True, self._now() + LOAD_SECONDS
        while self._now() < ends:
            self._load()
        self._pause(PAUSE_SECONDS)
