"""A Ray cluster of two nodes on this machine: slots by accelerator type, a hang that is killed, a node that is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.clock import FakeClock
from autotune.job import Job
from autotune.journal import Journal, PoisonList
from autotune.keeping import Outcome
from autotune.ray_executor import SHARE, RaySlot, ray_slots
from autotune.search import Budget
from autotune.session import Tuner
from autotune.tools import Tools
from kernels.errors import Failure, NoGpu, ShapeError, UsageError
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity

ray = pytest.importorskip("ray", reason="needs the extra ray")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra ray")

H200 = by_name("h200")
TYPE = "accelerator_type:H200"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without the accelerator, and a node that has it."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=2, resources={TYPE: 1})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def slots(count: int) -> list[RaySlot]:
    return [RaySlot(ray, {TYPE: SHARE}, 0) for _ in range(count)]


def test_calls_run_where_the_accelerator_is_and_a_hang_is_killed(cluster: Any) -> None:
    (slot,) = slots(1)
    assert slot.call("tests.autotune.jobs:add", (2, 3), 60) == 5
    assert slot.call("tests.autotune.jobs:hang_with_child", ("/dev/null",), 1.0).stage == "timeout"
    assert isinstance(slot.call("tests.autotune.jobs:segfault", (), 30), Failure)
    with pytest.raises(ShapeError):
        slot.call("tests.autotune.jobs:bad_input", (), 30)
    slot.close()


def test_slots_are_counted_by_type(cluster: Any) -> None:
    with pytest.raises(NoGpu, match="A100-80G"):
        ray_slots(by_name("a100"))
    with pytest.raises(UsageError, match="no accelerator type for rtx4090"):
        ray_slots(by_name("rtx4090"))
    assert len(ray_slots(H200, gpus=0)) == round(1 / SHARE)


def test_tuning_on_a_cluster_survives_a_lost_node(cluster: Any, tmp_path: Path) -> None:
    lost = cluster.add_node(num_cpus=2, resources={TYPE: 1, "doomed": 1})
    jobs = [Job("ravine", Problem("gemm", 24, 16, tokens, Sparsity(2, 4)), H200, FakeClock(), "tests.autotune.scripted", "cpu")
            for tokens in (64, 128)]
    journal = Journal(tmp_path / "journal.jsonl", resume=False)
    tools = Tools(journal, PoisonList(tmp_path / "poison.jsonl"), trial_seconds=1.0, functions="tests.autotune.scripted")
    doomed = RaySlot(ray, {TYPE: SHARE, "doomed": SHARE}, 0, patience=5.0)
    doomed.call("tests.autotune.jobs:add", (1, 1), 60)
    killer = threading.Timer(1.0, lambda: cluster.remove_node(lost, allow_graceful=False))
    killer.start()
    outcomes: list[Outcome] = []
    for outcome in Tuner(tools, tmp_path / "h200.json", {}).run(jobs, [doomed, *slots(1)], Budget()):
        outcomes.append(outcome)
    killer.join()
    assert sorted(outcome.job.problem.tokens for outcome in outcomes) == [64, 128]
    assert all(outcome.complete for outcome in outcomes)
    assert len({json.dumps(outcome.entry.config if outcome.entry else None, sort_keys=True) for outcome in outcomes}) == 1
    journal.close()
    keys = [json.loads(line)["key"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)), "no candidate was measured twice"
