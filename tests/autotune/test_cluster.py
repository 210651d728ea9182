"""What `--ray` does, on slots that stand for those of a cluster; the cluster itself: see the test of Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.conditions import library_versions
from autotune.executor import LocalSlot, SlotLost
from autotune.ray_executor import RaySlot
from autotune.table import read
from kernels.errors import NoGpu
from tests.autotune.test_run import run
from tests.autotune.test_session import Lost


def test_entries_are_of_the_libraries_where_candidates_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = LocalSlot("cpu")
    monkeypatch.setattr("autotune.ray_executor.ray_slots", lambda gpu, address: [slot])
    assert run(tmp_path, "--kernel", "good", "--ray", versions=lambda: {"driver": "of another machine"}) == 0
    (entry,) = read(tmp_path / "h200.json")
    assert entry.versions == library_versions()
    assert slot._worker._child is None


def test_a_cluster_that_does_not_answer_is_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("autotune.ray_executor.ray_slots", lambda gpu, address: [Lost()])
    assert run(tmp_path, "--kernel", "good", "--ray") == NoGpu.exit_code
    assert "the cluster cannot be asked: the node is lost" in capsys.readouterr().err


class RayError(Exception):
    """Ray's base."""


class RayTaskError(RayError):
    """Of the code that was called."""


class SetupError(RayError):
    """Of a node that cannot take the code."""


@pytest.mark.parametrize(("error", "seen"), [(SetupError, SlotLost), (RayTaskError, RayTaskError)])
def test_whatever_ray_says_of_a_node_loses_the_slot_and_not_the_run(error: type[Exception], seen: type[Exception]) -> None:
    def get(_: object) -> Any:
        raise error("no space for the code")

    slot = RaySlot(SimpleNamespace(exceptions=sys.modules[__name__], get=get, kill=lambda actor: None), {}, 1)
    slot._actor = SimpleNamespace(call=SimpleNamespace(remote=lambda *_: None))
    with pytest.raises(seen, match="no space for the code"):
        slot.call("tests.autotune.jobs:add", (1, 2), 1.0)
