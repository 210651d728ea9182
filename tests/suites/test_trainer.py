"""Variants of a tiny decoder in training on the CPU: they agree, they pack once a step, and what is wrong is found."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from autotune.conditions import NullMonitor
from kernels.bitlinear import BitLinear
from kernels.bitlinear.packs import packs_of
from kernels.errors import Failure
from kernels.sparse_backward.fakequant_layer import FakeQuantLinear
from suites import trainer as trainer_module
from suites.model_child import CHECKED_STEPS, ProcessChild, Spec, Started, Turn, start
from suites.model_run import ModelPlan, Setting
from suites.model_variants import VARIANTS, Evidence, deviation, wrong
from suites.models import Model
from suites.trainer import Master, Trainer
from tests.patience import PATIENCE

TINY = Model("tiny", 64, 96, 64, 32, blocks=4, head=16, vocabulary=128)
BASE = Spec("fakequant-bf16", "fakequant-bf16", None, TINY, 2, 128, 128, 32, 2, "2:4", "bf16", 0, "cpu")
BY_NAME = {variant.name: variant for variant in VARIANTS}


def spec(name: str, **changes: object) -> Spec:
    return replace(BASE, variant=name, layers=BY_NAME[name].layers, backend="aot_eager" if BY_NAME[name].compiled else None, **changes)


def evidence(trainer: Trainer) -> Evidence:
    return Evidence(trainer.probe(), [float(trainer.step(1)) for _ in range(CHECKED_STEPS)])


@pytest.mark.parametrize(("sparsity", "master"), [("2:4", "bf16"), ("dense", "fp32")])
def test_variants_of_one_function_agree(sparsity: str, master: Master) -> None:
    found = {name: evidence(Trainer(spec(name, sparsity=sparsity, master=master))) for name in BY_NAME if not name.endswith("compiled")}
    expected = found["fakequant-bf16"]
    assert max(expected.losses) - min(expected.losses) > 0.1, "it learns, or the losses say nothing"
    for name in ("fakequant-published", "bitlinear"):
        assert wrong(deviation(found[name], expected)) is None, name
    other = deviation(found["dense-bf16"], expected)
    assert wrong(other) is not None
    assert max(other.values()) > 1, "a gradient that has nothing in common"


@pytest.mark.parametrize("name", ["bitlinear-compiled", "bitlinear-traced-compiled"])
def test_compiled_ours_agrees_with_eager(name: str) -> None:
    eager, compiled = (evidence(Trainer(spec(one))) for one in ("bitlinear", name))
    assert max(deviation(compiled, eager).values()) < 0.02


@pytest.mark.parametrize("accumulation", [1, 2])
def test_packed_once_for_every_optimizer_step(accumulation: int) -> None:
    trainer = Trainer(spec("bitlinear"))
    for step in range(1, 4):
        trainer.step(accumulation)
        layers = [layer for layer in trainer.model.modules() if isinstance(layer, BitLinear)]
        assert len(layers) == 4 * BASE.blocks
        assert {layer.packings for layer in layers} == {step}
    assert [layer.splits for layer in layers[:4]] == [[64, 32, 32], [64], [96, 96], [64]]


def test_packs_that_do_not_follow_their_weights_are_found() -> None:
    expected, stale = evidence(Trainer(BASE)), Trainer(spec("bitlinear"))
    probe, losses = stale.probe(), []
    for _ in range(CHECKED_STEPS):
        losses.append(float(stale.step(1)))
        for layer in stale.model.modules():
            if isinstance(layer, BitLinear):
                for pack in packs_of(layer.weight).values():
                    pack.stamp = (layer.weight.data_ptr(), layer.weight._version)
    reason = wrong(deviation(Evidence(probe, losses), expected))
    assert reason is not None
    assert reason.startswith("trained")


def test_another_mask_is_found() -> None:
    found = deviation(evidence(Trainer(spec("bitlinear", sparsity="dense"))), evidence(Trainer(BASE)))
    assert wrong(found) is not None
    assert max(found.values()) > 0.5


def test_the_baseline_quantizes_once_a_step() -> None:
    trainer, seen = Trainer(BASE), []
    trainer.requantize()
    layer = next(layer for layer in trainer.model.modules() if isinstance(layer, FakeQuantLinear))
    for _ in range(3):
        trainer.step(2)
        seen.append(layer.quantized)
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen) if a is not None and b is not None)


def test_children_in_processes_of_their_own() -> None:
    names = ("fakequant-bf16", "bitlinear")
    said: list[str] = []
    make = {name: ProcessChild(spec(name), PATIENCE) for name in names}
    specs, plan = [spec(name) for name in names], ModelPlan(2, 0.01)
    with Setting(specs, lambda one: make[one.variant], plan, NullMonitor("a test"), said.append) as setting:
        setting.start()
        case = setting.measure(2, "run")
    assert [(result.variant, result.status, len(result.samples_us)) for result in case.results] == [(name, "ok", 2) for name in names]
    assert len(said) == 2
    assert case.results[1].packings == CHECKED_STEPS, "the probe and the first step share one"
    assert set(case.results[1].chosen) == {"qkv", "out", "gate_up", "down"}
    assert case.results[1].peak_bytes is None


def test_a_child_that_takes_too_long_is_ended() -> None:
    child = ProcessChild(BASE, 0.001)
    answer = child.start()
    child.close()
    assert isinstance(answer, Failure)
    assert answer.stage == "timeout"


def test_a_child_is_on_its_device_before_it_makes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first thing made on "the" device opens a context on device 0, beside whatever is measured there."""
    seen = []

    def made(*_: object) -> None:
        seen.append("decoder")
        raise RuntimeError("a test")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(f"set {device}"))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seen.append("seed"))
    monkeypatch.setattr(trainer_module, "Decoder", made)
    with pytest.raises(RuntimeError, match="a test"):
        Trainer(replace(BASE, device="cuda:1"))
    assert seen == ["set cuda:1", "seed", "decoder"]


@pytest.mark.gpu
@pytest.mark.parametrize("master", ["bf16", "fp32"])
def test_on_a_gpu_all_variants_agree_and_are_timed(master: Master) -> None:
    model = Model("small", 256, 512, 256, 64, blocks=4, head=64, vocabulary=512)
    shared = {"model": model, "vocabulary": 512, "tokens": 512, "context": 128, "device": "cuda:0", "master": master}
    found = {}
    for name, variant in BY_NAME.items():
        one = spec(name, **shared)
        answer = start(replace(one, backend="inductor" if variant.compiled else None))
        assert isinstance(answer, Started)
        found[name] = answer.evidence
    for name, variant in BY_NAME.items():
        assert wrong(deviation(found[name], found["dense-bf16" if variant.dense else "fakequant-bf16"])) is None, name
    trainer = Trainer(spec("bitlinear", **shared))
    turn = trainer.turn(2, 3)
    assert isinstance(turn, Turn)
    assert turn.peak_bytes is not None
    assert turn.peak_bytes > 10 * sum(parameter.nbytes for parameter in trainer.model.parameters()) // 4
    assert turn.host_us > 0
    assert turn.step_us > 0
    assert {layer.packings for layer in trainer.model.modules() if isinstance(layer, BitLinear)} == {5}
