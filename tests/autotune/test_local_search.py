from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from autotune.landscape import Landscape, committed
from autotune.local_search import LENGTHS, NOISE, SPREAD, Local, Process, coordinates, expected_improvement, likeness
from autotune.quality import FEW
from autotune.search import distance
from kernels.errors import Failure

POINTS = [{"tile": 2**tile, "warps": 2**warps, "swap": swap} for tile, warps, swap in itertools.product(range(6), range(5), (False, True))]
FAULT = Failure("launch", "died of SIGSEGV")


def test_a_factor_of_two_and_another_kind_are_one_apart() -> None:
    points = [{"tile": 4, "kind": "a", "same": 3, "parts": 0}, {"tile": 16, "kind": "a", "same": 3, "parts": 1},
              {"tile": 4, "kind": "b", "same": 3, "parts": 3}]
    axes = coordinates(points)
    apart = ((axes[:, None] - axes[None]) ** 2).sum(-1)
    assert apart == pytest.approx(np.array([[0, 4 + 1, 1 + 4], [5, 0, 4 + 1 + 1], [5, 6, 0]]))
    assert coordinates([{"tile": 4}, {"tile": 4}]).tolist() == [[0], [0]], "an axis that does not vary tells nothing"


def told(axes: np.ndarray, places: Sequence[int], values: Sequence[float | None], length: float) -> Process:
    process = Process(axes, length)
    for place, value in zip(places, values, strict=True):
        process.tell(place, value)
    return process


def test_the_model_goes_through_what_it_was_told_and_doubts_the_rest() -> None:
    axes = np.array([[0.0], [1.0], [2.0], [3.0], [8.0]])
    _, mean, deviation = told(axes, [0, 1, 3], [5.0, 6.0, 7.0], 1.0).predict(0.0, 6.0, 0.8)
    assert mean[[0, 1, 3]] == pytest.approx([-1.25, 0, 1.25], abs=0.1)
    assert 0 < mean[2] < 1.25
    assert max(deviation[[0, 1, 3]]) < deviation[2] < deviation[4]


@pytest.mark.parametrize("length", LENGTHS)
def test_told_one_by_one_is_what_the_equations_say(length: float) -> None:
    """Of the textbook, with all outcomes at once; a failure has the value that failures get."""
    draw = np.random.default_rng(0)
    axes, places = draw.integers(0, 5, (40, 3)).astype(float), draw.permutation(40)[:12]
    values = [None if count % 5 == 3 else float(value) for count, value in enumerate(draw.normal(3.0, 0.5, 12))]
    z = (np.array([4.5 if value is None else value for value in values]) - 3.1) / 0.6
    cross = likeness(((axes[places][:, None] - axes[None]) ** 2).sum(-1), length)
    inverse = np.linalg.inv(cross[:, places] + NOISE * np.eye(12))
    trend = inverse.sum(0) @ z / inverse.sum()
    rest = z - trend
    variance = rest @ inverse @ rest / 12
    likelihood = -0.5 * np.linalg.slogdet(variance * np.linalg.inv(inverse))[1]
    found, mean, deviation = told(axes, list(places), values, length).predict(4.5, 3.1, 0.6)
    assert found == pytest.approx(likelihood)
    assert mean == pytest.approx(trend + cross.T @ inverse @ rest)
    assert deviation**2 == pytest.approx(variance * (1 - np.einsum("ij,ik,kj->j", cross, inverse, cross)))


def test_expected_improvement_is_the_integral() -> None:
    mean, deviation, best = np.array([0.0, 1.0, 3.0]), np.array([1.0, 0.5, 0.3]), 0.8
    steps = np.linspace(-12, 12, 200_001)
    density = np.exp(-0.5 * steps**2) / math.sqrt(2 * math.pi)
    wanted = [float(np.maximum(best - (m + d * steps), 0) @ density * (steps[1] - steps[0])) for m, d in zip(mean, deviation, strict=True)]
    assert expected_improvement(mean, deviation, best) == pytest.approx(np.array(wanted), abs=1e-6)


def left(chosen: Sequence[int]) -> float:
    """Mean distance of all candidates from the nearest of these."""
    axes = coordinates(POINTS)
    return float(np.sqrt(((axes[:, None] - axes[list(chosen)]) ** 2).sum(-1)).min(1).mean())


def test_without_starts_it_begins_in_the_middle_and_then_near_to_all_others() -> None:
    search, asked = Local(POINTS, (), 0), list[int]()
    for _ in range(SPREAD):
        place = search.ask()
        assert place is not None
        asked.append(place)
        search.tell(place, 10.0)
    assert left(asked[:1]) <= 1.02 * min(left([place]) for place in range(len(POINTS)))
    assert left(asked) < min(left(random.Random(seed).sample(range(len(POINTS)), SPREAD)) for seed in range(20))


@pytest.mark.parametrize("starts", [(), (7, 30)])
def test_a_valley_is_found_around_what_fails(starts: tuple[int, ...]) -> None:
    """Half of the space faults, the valley's floor lies at the edge of it."""
    search = Local(POINTS, starts, 0)
    best = next(place for place, point in enumerate(POINTS) if point == {"tile": 8, "warps": 4, "swap": False})
    asked = list[int]()
    while best not in asked:
        place = search.ask()
        assert place is not None
        asked.append(place)
        search.tell(place, FAULT if POINTS[place]["swap"] else 10 * 1.3 ** distance(POINTS[place], POINTS[best]))
    assert len(asked) <= len(POINTS) / 4
    assert sum(POINTS[place]["swap"] for place in asked) <= len(asked) / 2


def test_where_everything_fails_everything_is_asked_once() -> None:
    search, asked = Local(POINTS, (), 0), list[int]()
    while (place := search.ask()) is not None:
        asked.append(place)
        search.tell(place, FAULT)
    assert sorted(asked) == list(range(len(POINTS)))


WIDE = [one for one in committed() if len(one.points) > 3 * FEW]


@pytest.mark.parametrize("landscape", WIDE, ids=str)
def test_what_is_asked_was_announced_well_before(landscape: Landscape) -> None:
    """With the tuner's window of three candidates per compiling process (15 of them), ten evaluations ahead."""
    search, announced, asked = Local(landscape.points, (), 0), [set[int]()], list[int]()
    for _ in range(len(landscape.points) // 3):
        announced.append(announced[-1] | set(search.preview(45)))
        place = search.ask()
        assert place is not None
        asked.append(place)
        search.tell(place, landscape.times[place])
    known = [place in announced[count - 10] for count, place in enumerate(asked, 1) if count > 10]
    assert sum(known) >= 0.8 * len(known)
