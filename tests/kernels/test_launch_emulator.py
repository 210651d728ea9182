"""Parts of an emulated launch take turns, in whatever order threads are given the processor; who waits in vain is told so at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.launch_emulator import Launch


def run(*parts: Callable[[Launch], object]) -> None:
    launch = Launch(len(parts), 1, False, {})
    for block, part in zip(launch.blocks, parts, strict=True):
        block.actors.append(lambda part=part: part(launch))
    launch.run()


def test_parts_wait_for_each_other() -> None:
    seen: list[str] = []

    def spin(launch: Launch) -> None:
        while "first" not in seen:
            launch.pause()
        seen.append("second")

    def wait(launch: Launch) -> None:
        launch.until(lambda: "second" in seen)
        seen.append("third")

    run(wait, spin, lambda launch: seen.append("first"))
    assert seen == ["first", "second", "third"]


@pytest.mark.parametrize("other", [
    lambda launch: None, lambda launch: launch.until(lambda: False), lambda launch: launch.pause(),
])
def test_a_wait_in_vain_is_found(other: Callable[[Launch], object]) -> None:
    with pytest.raises(AssertionError, match="waited in vain"):
        run(lambda launch: launch.until(lambda: False), other)
