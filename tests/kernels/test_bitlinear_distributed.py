"""Two processes: DDP and FSDP2 train the same layers to the same weights as one process with both batches."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from kernels.bitlinear import BitLinear

STEPS, MICRO = 3, 2


def model_on(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(BitLinear(32, 48, sparsity="2:4"), nn.ReLU(), BitLinear(48, 32, sparsity="6:8", splits=(16, 16))).to(device)


def batches(device: str) -> torch.Tensor:
    """[steps, micro-batches, ranks, tokens, features]."""
    return torch.randn(STEPS, MICRO, 2, 8, 32, generator=torch.Generator().manual_seed(1)).to(device)


def alone(device: str) -> nn.Sequential:
    model, data = model_on(device), batches(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in data:
        for micro in step:
            (sum(model(rank).square().mean() for rank in micro) / (2 * MICRO)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def train(wrapped: nn.Module, data: torch.Tensor, rank: int) -> None:
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
    for step in data:
        for micro in step:
            (wrapped(micro[rank]).square().mean() / MICRO).backward()
        optimizer.step()
        optimizer.zero_grad()


def worker(rank: int, store: Path, kind: str) -> None:
    """One of two processes; raises where its weights are not those of `alone`."""
    warnings.filterwarnings("ignore", "BitLinear runs on the CPU")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the host's name leads to
    device = "cpu"
    if kind == "nccl":
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    dist.init_process_group(kind, init_method=store.as_uri(), rank=rank, world_size=2)
    try:
        expected, data = alone(device), batches(device)
        replicated = model_on(device)
        train(DistributedDataParallel(replicated), data, rank)
        assert replicated[0].packings == STEPS, "once per optimizer step, not per micro-batch"
        same(replicated, expected)
        sharded = model_on(device)
        mesh = init_device_mesh(device.split(":")[0], (2,))
        for layer in (sharded[0], sharded[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        train(sharded, data, rank)
        same(sharded, expected)
        state = {name: value.full_tensor() for name, value in sharded.state_dict().items()}
        loaded = model_on(device)
        loaded.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(loaded(data[0, 0, 0]), sharded(data[0, 0, 0]))
    finally:
        dist.destroy_process_group()


def same(model: nn.Module, expected: nn.Module) -> None:
    for (name, value), truth in zip(model.named_parameters(), expected.parameters(), strict=True):
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        torch.testing.assert_close(whole, truth, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_on_the_cpu(tmp_path: Path) -> None:
    mp.spawn(worker, (tmp_path / "store", "gloo"), nprocs=2)


@pytest.mark.gpu
def test_two_gpus(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    mp.spawn(worker, (tmp_path / "store", "nccl"), nprocs=2)
