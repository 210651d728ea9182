from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence

import pytest

from autotune.failures import failure_of, one_line, poisons_device
from autotune.landscape import committed
from autotune.quality import FEW, Way, searched
from autotune.search import STRATEGIES, Budget, Maker, distance, nearest, strategy
from kernels.errors import Failure, UsageError

POINTS = [{"tile": 2**tile, "warps": 2**warps, "swap": swap} for tile, warps, swap in itertools.product(range(6), range(4), (False, True))]
FAULT = Failure("launch", "died of SIGSEGV")


def cost(place: int) -> float:
    """A valley with its floor at tile 8, 4 warps, unswapped."""
    point = POINTS[place]
    return 10 + distance(point, {"tile": 8, "warps": 4, "swap": False})


def order(make: Maker, starts: Sequence[int] = (), seed: int = 0, failing: Sequence[int] = ()) -> list[int]:
    search, asked = make(POINTS, starts, seed), list[int]()
    while (place := search.ask()) is not None:
        asked.append(place)
        search.tell(place, FAULT if place in failing else cost(place))
    return asked


def makers() -> list[str]:
    return [name for name in STRATEGIES if name != "model"]


@pytest.mark.parametrize("name", makers())
def test_every_candidate_once_failures_included(name: str) -> None:
    asked = order(STRATEGIES[name], starts=(5, 40), failing=range(0, 48, 3))
    assert sorted(asked) == list(range(len(POINTS)))
    assert asked[:2] == [5, 40], "the starts come first"
    assert asked == order(STRATEGIES[name], starts=(5, 40), failing=range(0, 48, 3)), "the same again"
    if name != "exhaustive":
        assert len({tuple(order(STRATEGIES[name], seed=seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize("name", makers())
def test_the_preview_is_what_comes_and_changes_nothing(name: str) -> None:
    search = STRATEGIES[name](POINTS, (7,), 0)
    for _ in range(10):
        assert search.preview(3) == search.preview(3)
        (likely, *_) = search.preview(3)
        place = search.ask()
        assert place == likely
        search.tell(place, cost(place))


def test_local_search_walks_down_a_valley() -> None:
    found = order(STRATEGIES["local"], starts=(0,))
    shuffled = order(STRATEGIES["random"], starts=(0,))
    best = min(range(len(POINTS)), key=cost)
    assert found.index(best) <= 20
    assert statistics.median(order(STRATEGIES["local"], (0,), seed).index(best) for seed in range(9)) < 15
    assert shuffled != found


def test_distance_counts_factors_of_two_and_switches() -> None:
    assert distance({"a": 4, "b": True}, {"a": 16, "b": False}) == 3.0
    assert distance({"a": 0, "b": "x"}, {"a": 1, "b": "x"}) == 1.0
    assert nearest(POINTS, [{"tile": 5, "warps": 8, "swap": True}]) == [POINTS.index({"tile": 4, "warps": 8, "swap": True})]


def test_budgets() -> None:
    ticks = itertools.count()
    budget = Budget(3.5, now=lambda: next(ticks))
    assert not budget.spent
    assert budget.seconds == pytest.approx(1.5)
    assert not budget.spent
    assert budget.spent
    assert budget.seconds == 0
    clock = iter([0.0, 2.0, 2.0, 3.9, 4.1])
    share = Budget(10.0, 7, now=lambda: next(clock)).share(4)
    assert share.evaluations == 7
    assert not share.spent
    assert share.spent
    assert Budget().seconds is None
    assert not Budget().share(2).spent


def test_unknown_strategies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="allowed: exhaustive, random, local, model"):
        strategy("genetic")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'tersparse\[tune\]'"):
        STRATEGIES["model"](POINTS, (), 0)


def test_the_model_tries_every_candidate_once_the_starts_first() -> None:
    pytest.importorskip("optuna", reason="the search model needs the extra tune")
    asked = order(STRATEGIES["model"], starts=(47, 1), failing=(3, 9))
    assert sorted(asked) == list(range(len(POINTS)))
    assert asked[:2] == [47, 1]


def test_on_a_recorded_landscape_the_model_is_better_than_chance() -> None:
    pytest.importorskip("optuna", reason="the search model needs the extra tune")
    landscapes = [one for one in committed() if len(one.points) > FEW][:2]
    ways = (Way("model", False), Way("random", False))
    model, chance = (statistics.fmean(searched(one, way, landscapes, 4)[9] for one in landscapes) for way in ways)
    assert model > chance, "after a quarter"


def test_errors_become_one_line_and_a_stage() -> None:
    class CompilationError(Exception):
        pass

    class OutOfResources(Exception):
        pass

    compile_error = CompilationError("at 3:4:\n  x = y\n      ^\nNameError('y is not defined')")
    assert failure_of(compile_error) == Failure("compile", "CompilationError: NameError('y is not defined')")
    assert failure_of(OutOfResources("out of resource: shared memory")).stage == "compile"
    assert failure_of(RuntimeError("CUDA error: out of memory")).stage == "memory"
    assert failure_of(ZeroDivisionError()) == Failure("launch", "ZeroDivisionError")
    assert one_line(RuntimeError("a\nCUDA error: misaligned address\nb")) == "CUDA error: misaligned address"


def test_device_faults_are_told_from_others() -> None:
    assert poisons_device(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert poisons_device(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    assert not poisons_device(RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"))
    assert not poisons_device(ValueError("shapes"))
