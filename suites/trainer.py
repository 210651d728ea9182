"""One variant of a model in training: its layers swapped, and an optimizer step as the model-level suite times it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kernels.bitlinear import BitLinear, check, convert
from kernels.problem import Sparsity
from kernels.sparse_backward.fakequant import masked_fake_weight
from kernels.sparse_backward.fakequant_layer import FakeQuantLinear
from suites.decoder import Decoder
from suites.model_child import Master, Spec, Turn

MASTERS: Mapping[Master, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
RATE = 0.2
"""Learning rate times the width: what a step changes in a layer's outputs is then alike in narrow and wide models."""
PROBED = 4096
"""Values of each tensor that variants are compared by."""


class Trainer:
    """A decoder with its optimizer and its synthetic micro-batches, equal in all variants of one seed."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.device = spec, torch.device(spec.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        torch.manual_seed(spec.seed)
        self.model = Decoder(spec.model, spec.blocks, spec.vocabulary, spec.context, self.device, MASTERS[spec.master])
        shape = (spec.micro_batches, spec.tokens // spec.context, spec.context + 1)
        self.data = torch.randint(spec.vocabulary, shape, device=self.device)
        swap(self.model, spec)
        self.requantize = _requantizer(self.model, spec.backend)
        if spec.backend is not None:
            self.model.compile_parts(spec.backend)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE / spec.model.hidden, (0.9, 0.95), fused=True)

    def loss(self, micro_batch: int) -> torch.Tensor:
        """The loss of a micro-batch, a scalar with its graph."""
        bf16 = self.spec.master == "fp32"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss: torch.Tensor = self.model(self.data[micro_batch, :, :-1], self.data[micro_batch, :, 1:])
        return loss

    def step(self, accumulation: int) -> torch.Tensor:
        """One optimizer step over so many micro-batches, not synchronized; the mean of their losses."""
        self.requantize()
        total = torch.zeros((), device=self.device)
        for micro_batch in range(accumulation):
            loss = self.loss(micro_batch) / accumulation
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types there
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def turn(self, accumulation: int, steps: int) -> Turn:
        """Time so many optimizer steps behind two untimed ones; then hand memory back that only a step needs, for the variants beside this.

        The first untimed step finds memory again, the second, on an idle device, is what the host takes, and keeps the device busy as the
        timed ones begin.
        """
        on_device = self.device.type == "cuda"
        self.step(accumulation)
        self.synchronize()
        if on_device:
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        self.step(accumulation)
        host_us = (time.perf_counter() - began) * 1e6
        marks = [_event() for _ in range(2)] if on_device else []
        began = time.perf_counter()
        for mark in marks[:1]:
            mark.record()
        for _ in range(steps):
            self.step(accumulation)
        for mark in marks[1:]:
            mark.record()
        self.synchronize()
        total_us = marks[0].elapsed_time(marks[1]) * 1e3 if on_device else (time.perf_counter() - began) * 1e6
        peak = torch.cuda.max_memory_allocated(self.device) if on_device else None
        self.release()
        return Turn(total_us / steps, host_us, peak)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give back to the device what is cached and not in use."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def probe(self) -> dict[str, list[float]]:
        """What variants are compared by, of the first micro-batch: the loss, and evenly spread values of every block's gradients."""
        self.requantize()
        loss = self.loss(0)
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types there
        found = {"loss": [float(loss.detach())]}
        for index, block in enumerate(self.model.blocks):
            for name in ("qkv", "out", "gate_up", "down"):
                gradient = block.get_submodule(name).weight.grad
                assert isinstance(gradient, torch.Tensor)
                found[f"{index}.{name}"] = _spread(gradient)
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def check(self) -> None:
        """NonFiniteError, naming the layer, where one of ours saw a NaN or an infinity."""
        check(self.model)

    def facts(self) -> dict[str, Any]:
        """Parameters, and what every kind of BitLinear runs and how often it was packed."""
        ours = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, BitLinear)}
        chosen = {name.rpartition(".")[2]: str(layer.chosen(self.spec.tokens)) for name, layer in ours.items()}
        packings = max((layer.packings for layer in ours.values()), default=0)
        return {"parameters": sum(p.numel() for p in self.model.parameters()), "chosen": chosen, "packings": packings}


def swap(model: Decoder, spec: Spec) -> None:
    """Put a variant's layers in the place of the linear ones, on the same parameters. Raises ShapeError where the sparsity does not fit."""
    splits = {"qkv": (spec.model.q, spec.model.kv, spec.model.kv), "gate_up": (spec.model.intermediate,) * 2}
    if spec.layers == "dense-bf16":
        return
    if spec.layers in ("bitlinear", "bitlinear-traced"):
        convert(model, spec.sparsity, splits=splits, traced=spec.layers == "bitlinear-traced")
        return
    for block in model.blocks:
        for name in ("qkv", "out", "gate_up", "down"):
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            rows = splits.get(name, (linear.out_features,))
            setattr(block, name, FakeQuantLinear(linear, Sparsity.parse(spec.sparsity), rows, spec.layers == "fakequant-published"))


def _requantizer(model: nn.Module, backend: str | None) -> Callable[[], None]:
    """What quantizes, before each optimizer step, the weights that are not quantized in every forward pass."""
    layers = [layer for layer in model.modules() if isinstance(layer, FakeQuantLinear) and not layer.published]
    quantize: Callable[..., torch.Tensor] = masked_fake_weight
    if backend is not None:
        quantize = torch.compile(masked_fake_weight, backend=backend, fullgraph=True, dynamic=False)

    def requantize() -> None:
        for layer in layers:
            layer.requantize(quantize)

    return requantize


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch has no types there


def _spread(values: torch.Tensor) -> list[float]:
    """At most `PROBED` values, evenly spread over a tensor."""
    flat = values.flatten()
    step = max(1, math.ceil(flat.numel() / PROBED))
    found: list[float] = flat[::step].float().tolist()
    return found
