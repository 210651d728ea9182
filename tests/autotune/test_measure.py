from __future__ import annotations

import itertools
import statistics

import pytest

from autotune.clock import MAX_COPIES, FakeCall, FakeClock, FakeTimer, Timer, Unmeasurable
from autotune.conditions import FakeMonitor, NullMonitor
from autotune.measure import (
    FULL,
    QUICK,
    SUSTAINED,
    Plan,
    bind,
    copies_needed,
    interleaved,
    median_interval,
    paired,
    ratio_widths,
    sustained,
)
from kernels.errors import Failure


def call(cost_us: float) -> FakeCall:
    return FakeCall(lambda: cost_us, cost_us)


def at_once() -> float:
    """The time, where none passes."""
    return 0.0


class Recorder:
    """A timer that writes down its turns."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def sample(self) -> float:
        self.log.append(self.name)
        return 1.0

    def call_time(self) -> float:
        return 2.0


def test_rounds_are_palindromic_and_paired() -> None:
    log: list[str] = []
    timers = {name: Recorder(name, log) for name in "ABC"}
    samples = interleaved(timers, QUICK, now=at_once)  # type: ignore[arg-type]  # only what interleaved uses
    assert "".join(log) == "ABCCBAABCCBAABC"
    assert {len(own.kernel_us) for own in samples.values()} == {QUICK.rounds}
    assert samples["A"].call_us == (2.0,) * QUICK.call_samples


def test_ratio_is_recovered_under_noise_and_drift() -> None:
    clock = FakeClock(noise=0.01, drift=0.002, seed=3)
    timers = {"fast": clock.timer([call(50.0)], cold=False), "slow": clock.timer([call(60.0)], cold=False)}
    samples = interleaved(timers, FULL, now=at_once)
    ratios = [slow / fast for slow, fast in zip(samples["slow"].kernel_us, samples["fast"].kernel_us, strict=True)]
    assert statistics.median(ratios) == pytest.approx(1.2, rel=0.01)
    assert samples["fast"].kernel_us[-1] > samples["fast"].kernel_us[0] * 1.02, "the drift is there"


def test_quiet_clock_stops_at_the_minimum_and_noisy_goes_on() -> None:
    def rounds(noise: float) -> int:
        clock = FakeClock(noise=noise, seed=1)
        timers = {str(cost): clock.timer([call(cost)], cold=False) for cost in (10.0, 11.0)}
        return len(interleaved(timers, FULL, now=at_once)["10.0"].kernel_us)

    assert rounds(0.0005) == FULL.rounds
    assert rounds(0.05) == FULL.max_rounds


def test_time_bound_stops_a_noisy_case() -> None:
    clock = FakeClock(noise=0.2)
    timers = {str(cost): clock.timer([call(cost)], cold=False) for cost in (10.0, 11.0)}
    slowly, very_slowly = itertools.count(0, 0.0317), itertools.count(0, 1.0)
    assert len(interleaved(timers, FULL, now=lambda: next(slowly))["10.0"].kernel_us) == 12
    assert len(interleaved(timers, FULL, now=lambda: next(very_slowly))["10.0"].kernel_us) == 5


def test_no_timers_is_no_samples() -> None:
    assert interleaved({}, FULL) == {}


def test_median_interval_covers_the_median() -> None:
    assert median_interval(range(1, 11)) == (2, 9)  # sign test, n = 10: 97.9 %
    assert median_interval([3.0, 1.0]) == (1.0, 3.0)
    assert median_interval([7.0]) == (7.0, 7.0)


def test_widths_are_of_paired_ratios() -> None:
    drifting = {"a": [1.0, 2.0, 4.0, 8.0], "b": [2.0, 4.0, 8.0, 16.0]}
    assert ratio_widths(drifting) == pytest.approx([0.0, 0.0])


def test_call_time_has_the_host_in_it() -> None:
    clock = FakeClock(noise=0.0, host_us=400.0)
    samples = interleaved({"library": clock.timer([call(40.0)], cold=False)}, QUICK, now=at_once)["library"]
    assert samples.kernel_us[0] == pytest.approx(40.0)
    assert samples.call_us[0] == pytest.approx(400.0)


@pytest.mark.parametrize(("footprint", "copies"), [(1 << 30, 2), (60 << 20, 3), (1 << 20, 121), (4096, MAX_COPIES), (0, MAX_COPIES)])
def test_cold_copies_exceed_twice_the_l2(footprint: int, copies: int) -> None:
    l2 = 60 << 20
    assert copies_needed(footprint, l2, cold=True) == copies
    assert copies_needed(footprint, l2, cold=False) == 1
    assert copies == MAX_COPIES or copies * footprint > 2 * l2


def test_hot_takes_one_call_and_unscripted_is_a_failure() -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="hot"):
        clock.timer([call(1.0), call(1.0)], cold=False)
    with pytest.raises(Unmeasurable):
        clock.timer([lambda: None], cold=False)
    failure = bind(clock, [lambda: None], cold=False)
    assert isinstance(failure, Failure)
    assert failure.stage == "measure"


def test_costs_by_mapping_by_function_and_cold() -> None:
    one, other = (lambda: 1), (lambda: 2)
    clock = FakeClock({one: 5.0, other: 7.0}, noise=0.0, cold_factor=2.0)
    assert clock.timer([one], cold=False).sample() == pytest.approx(5.0)
    assert clock.timer([other, one], cold=True).sample() == pytest.approx(14.0)
    assert FakeClock(lambda call: 9.0, noise=0.0).timer([one], cold=False).sample() == pytest.approx(9.0)
    assert clock.timer([one], cold=False).outputs() == 1


def test_equal_seeds_give_equal_samples() -> None:
    def draw(seed: int) -> list[float]:
        timer = FakeClock(seed=seed).timer([call(10.0)], cold=False)
        return [timer.sample() for _ in range(5)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sustained_blocks_have_joules_and_clock() -> None:
    clock = FakeClock(noise=0.0)
    monitor = FakeMonitor(lambda: clock.seconds, watts=700.0, sm_mhz=1500)
    timers = {name: clock.timer([call(cost)], cold=False) for name, cost in (("a", 100.0), ("b", 200.0))}
    samples = sustained(timers, SUSTAINED, monitor)
    settled = SUSTAINED.block_seconds - SUSTAINED.settle_seconds
    assert [len(samples[name].blocks) for name in "ab"] == [3, 3]
    block = samples["b"].blocks[0]
    assert block["seconds"] == pytest.approx(settled)
    assert block["calls"] == pytest.approx(settled / 200e-6, rel=1e-3)
    assert block["joules"] == pytest.approx(700.0 * settled)
    assert (block["sm_mhz"], block["power_w"]) == (1500, 700.0)
    assert sum(block["seconds"] for block in samples["a"].blocks) >= 5.0
    assert SUSTAINED.block_seconds >= 2.0
    assert SUSTAINED.settle_seconds >= 1.0


def test_sustained_without_nvml_has_times_only() -> None:
    timers = {"a": FakeClock(noise=0.0).timer([call(100.0)], cold=False)}
    assert sustained(timers, SUSTAINED, NullMonitor("none"))["a"].blocks[0].keys() == {"seconds", "calls"}


class Closing(FakeTimer):
    """Counts in `open` while it is not closed."""

    open = 0

    def __init__(self, clock: FakeClock, cost: float) -> None:
        super().__init__(clock, [FakeCall(lambda: cost, cost)], cost)
        Closing.open += 1

    def close(self) -> None:
        Closing.open -= 1


def test_side_by_side_each_keeps_its_place_and_none_stays_open() -> None:
    clock, refused, wrong = FakeClock(noise=0.0), Failure("refused", "no"), Failure("wrong", "at last")
    plan = Plan(2, 2, 0.0, 60.0, 1)

    def make(cost: float) -> Timer | Failure:
        if cost == 13:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Closing(clock, cost) if cost else refused

    found = paired(make, [5.0, 0.0, 7.0, 9.0], plan, lambda outputs: wrong if outputs == 7.0 else None)
    assert found == [(5.0, 5.0), refused, wrong, (9.0, 9.0)]
    assert Closing.open == 0
    with pytest.raises(RuntimeError, match="illegal"):
        paired(make, [5.0, 13.0], plan, lambda outputs: None)
    assert Closing.open == 0
    assert paired(make, [0.0], plan, lambda outputs: None) == [refused]
