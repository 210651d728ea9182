"""BitLinear's packs: made once per change of the weight, whatever changed it and whoever reads them."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernels.bitlinear import BitLinear, packs
from kernels.bitlinear.packs import packs_of
from tests.kernels.bitlinear_layers import make, two_layers

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_packed_once_per_optimizer_step_whatever_is_accumulated(how: dict[str, bool]) -> None:
    """Fused optimizers, too, which leave the version counter of what they change as it is."""
    model, x = two_layers(), torch.randn(7, 32)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, **how)
    for step in range(1, 4):
        for _ in range(3):
            model(x).square().mean().backward()
        assert [model[0].packings, model[2].packings] == [step, step]
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        fresh = copy.deepcopy(model)
        assert torch.equal(model(x), fresh(x)), "eval after an optimizer step must not read a stale pack"
        for _ in range(3):
            model(x)
    assert model[0].packings == 4


def test_checkpointing_recomputes_from_the_same_pack() -> None:
    plain, x = two_layers(), torch.randn(7, 32, requires_grad=True)
    recomputed = copy.deepcopy(plain)
    plain(x).square().sum().backward()
    dx, x.grad = x.grad, None
    checkpoint(recomputed, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(dx, x.grad)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True))
    assert recomputed[0].packings == 1


def test_every_change_of_a_weight_is_seen_or_can_be_told() -> None:
    module, x = make(), torch.randn(4, 48)
    module(x)
    with torch.no_grad():
        module.weight.mul_(-1)
    expected = copy.deepcopy(module)
    assert torch.equal(module(x), expected(x))
    module.weight.data.mul_(-1)  # leaves no trace
    module.repack()
    assert torch.equal(module(x), copy.deepcopy(module)(x))
    gathered = nn.Parameter(torch.randn(24, 48))
    module.weight = gathered
    module(x)
    with torch.autograd._unsafe_preserve_version_counter(gathered), torch.no_grad():
        gathered.mul_(-1)
    module.weight = gathered  # as FSDP does after it has gathered the weight anew
    assert torch.equal(module(x), copy.deepcopy(module)(x))


def test_a_weight_that_came_back_to_its_address_is_packed_anew() -> None:
    """As by `half` and then `float` with no pass between: other values, and an allocator may give the same address again."""
    module, x = make(), torch.randn(4, 48)
    first = module(x)
    home = module.weight.data

    def back_at_home(tensor: torch.Tensor) -> torch.Tensor:
        return home.mul_(-1) if tensor.data_ptr() == home.data_ptr() else tensor

    module._apply(back_at_home)
    assert not torch.equal(module(x), first)
    assert torch.equal(module(x), copy.deepcopy(module)(x))
    assert module.packings == 2


def test_what_a_capture_records_is_fresh_for_its_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded launch has not run: nothing eager may take its pack for made; and a captured forward pass always records one."""
    module, x = make(), torch.randn(4, 48, requires_grad=True)
    module(x)
    monkeypatch.setattr(packs, "capturing", lambda tensor: True)
    y = module(x)
    assert module.packings == 2, "fresh, but the graph must follow the weight"
    y.sum().backward()
    assert module.packings == 2
    with torch.no_grad():
        module(x)
        assert module.packings == 3, "an evaluation in another capture cannot rely on the first graph"
    monkeypatch.undo()
    module(x).sum().backward()
    assert module.packings == 4
    monkeypatch.setattr(packs, "capturing", lambda tensor: True)
    with torch.no_grad():
        module(x)
    assert module.packings == 4, "a captured evaluation reads what was made before"


def test_the_weight_may_not_change_between_forward_and_backward() -> None:
    module = make()
    y = module(torch.randn(4, 48))
    with torch.no_grad():
        module.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inference_mode_first_then_training() -> None:
    module, x = make(), torch.randn(4, 48)
    with torch.inference_mode():
        first = module(x)
    module(x).sum().backward()
    assert torch.equal(first, module(x))
    assert module.packings == 1
    with torch.inference_mode():
        inside = BitLinear(48, 24)
        assert inside(x).shape == (4, 24)


def test_packs_die_with_their_weight() -> None:
    module = make()
    module(torch.randn(2, 48))
    pack = next(iter(packs_of(module.weight).values()))
    count = sys.getrefcount(pack)
    del module
    assert sys.getrefcount(pack) < count


def test_a_pack_is_made_on_its_device_from_the_first_call_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, str]] = []
    main = threading.get_ident()

    class Stream:
        def __init__(self, device: str) -> None:
            note("stream")

        def wait_stream(self, other: object) -> None:
            note("wait")

        def synchronize(self) -> None:
            note("synchronize")

    def note(what: str) -> None:
        seen.append((threading.get_ident() == main, what))

    monkeypatch.setattr(packs, "capturing", lambda tensor: False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: note(f"set {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda side: contextlib.nullcontext())
    assert packs._apart(SimpleNamespace(is_cuda=True, device="cuda:1"), lambda: "made") == "made"  # type: ignore[arg-type] # no GPU here
    assert seen == [(False, "set cuda:1"), (False, "stream"), (False, "wait"), (False, "synchronize")]
