"""`kernels.launch`: the second launch starts the machine code that Triton chose for the first, and only where Triton would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import launch as launching
from kernels.launch import launch


@triton.jit
def add_kernel(a, b, out, count, stride, BLOCK: tl.constexpr, TWICE: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(a + place * stride, mask=inside, other=0)
    if b is not None:
        value += tl.load(b + place, mask=inside, other=0)
    if TWICE:
        value += value
    tl.store(out + place, value, mask=inside)


class Launched:
    """A launcher that writes down what it is told, one for each compiled function."""

    calls: list[tuple[Any, ...]]

    def __init__(self, source: Any, metadata: Any) -> None:
        self.calls = []

    def __call__(self, *told: Any) -> None:
        self.calls.append(told)


class Utils:
    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}


class Driver:
    """A driver of a Hopper GPU that is not there; tensors on the CPU have its index."""

    launcher_cls, utils = Launched, Utils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, device: int) -> int:
        return 77


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What Triton's own launches compiled or found, one entry each; launches that are not among them went straight."""
    found: list[Any] = []
    own: Any = JITFunction.run

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        found.append(own(self, *arguments, **options))
        return found[-1]

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(add_kernel, "device_caches", type(add_kernel.device_caches)(add_kernel.create_binder))
    launching._known.cache_clear()
    yield found
    launching._known.cache_clear()


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(64, dtype=dtype) for _ in range(3))


def told(call: tuple[Any, ...]) -> list[Any]:
    """What decides what runs: tensors by address, hooks and constants left out."""
    return [*call[:6], *(value.data_ptr() if isinstance(value, torch.Tensor) else value for value in call[9:14])]


@pytest.mark.compile
def test_the_second_launch_is_told_the_same_as_triton_tells_the_first(ways: list[Any]) -> None:
    first, second = tensors(), tensors()
    for given in (first, second, first):
        launch(add_kernel, (2, 3), given, (60, 1), BLOCK=32, TWICE=True, num_warps=2)
    assert len(ways) == 1
    calls = ways[0].run.calls
    assert len(calls) == 3
    assert calls[1][:4] == (2, 3, 1, 77)
    assert told(calls[0]) == told(calls[2])
    assert told(calls[1])[6:9] == [tensor.data_ptr() for tensor in second]
    assert [len(call) for call in calls] == [len(calls[0])] * 3


@pytest.mark.compile
def test_another_kind_of_launch_is_triton_s_to_choose(ways: list[Any]) -> None:
    a, b, out = tensors()
    constants = {"BLOCK": 32, "TWICE": False, "num_warps": 2}
    for given, integers, changed in (
        ((a, b, out), (60, 1), {}), (tensors(torch.int32), (60, 1), {}), ((a, None, out), (60, 1), {}), ((a, b, out), (64, 1), {}),
        ((a, b, out), (60, 2), {}), ((a, b, out), (60, 1), {"TWICE": True}), ((a, b, out), (60, 1), {"num_warps": 4}),
    ):  # fmt: skip
        before = len(ways)
        for _ in range(3):
            launch(add_kernel, (2,), given, integers, **{**constants, **changed})
        assert len(ways) == before + 1
        assert len(ways[-1].run.calls) == 3
    assert len(set(map(id, ways))) == len(ways)


@pytest.mark.compile
def test_the_grid_is_the_one_that_was_asked_for(ways: list[Any]) -> None:
    for grid in ((2,), (3,), (2, 5), (2,), (3,), (2, 5), (1, 2, 3)):
        launch(add_kernel, grid, tensors(), (60, 1), BLOCK=32, TWICE=False)
    assert len(set(map(id, ways))) == 1
    assert [call[:3] for call in ways[0].run.calls] == [(2, 1, 1), (3, 1, 1), (2, 5, 1)] * 2 + [(1, 2, 3)]


@pytest.mark.compile
def test_addresses_off_the_grid_and_hooks_take_triton_s_way(ways: list[Any]) -> None:
    a, b, out = tensors()
    launch(add_kernel, (2,), (a, b, out), (50, 1), BLOCK=32, TWICE=False)
    for _ in range(2):
        launch(add_kernel, (2,), (a[1:], b, out), (50, 1), BLOCK=32, TWICE=False)
    assert len(ways) == 3
    assert ways[1] is ways[2]
    assert ways[1] is not ways[0]
    launch(add_kernel, (2,), (a, b, out), (50, 1), BLOCK=32, TWICE=False)
    assert len(ways) == 3, "an odd address must not be remembered as the usual one"
    seen: list[Any] = []
    triton.knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        launch(add_kernel, (2,), (a, b, out), (50, 1), BLOCK=32, TWICE=False)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(seen.append)
    assert len(ways) == 4


@pytest.mark.compile
def test_it_does_not_grow_without_end(ways: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "MOST_LAUNCHES", 2)
    for count in (10, 11, 12, 10):
        launch(add_kernel, (2,), tensors(), (count, 1), BLOCK=32, TWICE=False)
    assert len(ways) == 4
    assert 0 < len(launching._known()) <= 2


@pytest.mark.interpreter
def test_interpreted() -> None:
    a, b, out = torch.arange(64.0), torch.ones(64), torch.zeros(64)
    for given, expected in (((a, b, out), 2 * (a + 1)), ((a, None, out), 2 * a)):
        out.zero_()
        launch(add_kernel, (2,), given, (60, 1), BLOCK=32, TWICE=True)
        assert torch.equal(out[:60], expected[:60])
        assert not out[60:].any()


@pytest.mark.gpu
def test_on_a_gpu_aligned_or_not_and_on_other_streams() -> None:
    for device in {0, torch.cuda.device_count() - 1}:
        a, b = torch.arange(1200.0, device=f"cuda:{device}"), torch.ones(1200, device=f"cuda:{device}")
        for count in (1000, 1024, 7, 1):
            for start in (0, 4, 1, 0):
                for stride in (1, 2 if count < 500 else 1):
                    for other in (b, None):
                        out = torch.zeros(1200, device=a.device)
                        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
                            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream(device))
                            launch(add_kernel, (-(-count // 32),), (a[start:], other, out[start:]), (count, stride), BLOCK=32, TWICE=False)
                            torch.cuda.current_stream().synchronize()
                        expected = a[start::stride][:count] + (0 if other is None else 1)
                        assert torch.equal(out[start : start + count], expected)
                        assert not out[start + count :].any()


@pytest.mark.compile
def test_addresses_of_the_same_types_go_straight_after_the_first(ways: list[Any]) -> None:
    made = launching.Launch(add_kernel, (2, 3), (60, 1), BLOCK=32, TWICE=True, num_warps=2)
    given, asked = [tensors(), tensors()], []

    def start(which: int) -> None:
        def seen() -> tuple[torch.Tensor, ...]:
            asked.append(which)
            return given[which]

        made.start(0, [tensor.data_ptr() for tensor in given[which]], seen)

    for which in (0, 1, 0):
        start(which)
    assert (len(ways), asked) == (1, [0])
    calls = ways[0].run.calls
    assert calls[1][:4] == (2, 3, 1, 77)
    assert told(calls[0]) == told(calls[2])
    assert told(calls[1])[6:9] == [tensor.data_ptr() for tensor in given[1]]
    assert [len(call) for call in calls] == [len(calls[0])] * 3
    triton.knobs.runtime.launch_enter_hook.add(asked.append)
    try:
        start(1)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(asked.append)
    assert len(ways) == 2
    made(given[0])
    assert len(ways) == 3, "what was started is not taken for what is called"
