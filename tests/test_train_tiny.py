"""The example: its text, its two methods, its command line in miniature, and that it can tell a difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples import train_tiny
from examples.tiny_model import METHODS, SMOKE, FakeQuantLinear, build, text
from examples.train_tiny import batch_of, loss_of, main, schedule_of
from kernels.bitlinear import BitLinear, layers
from kernels.errors import Failure, NonFiniteError
from reports.learning import Run, load, verdicts

pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


@pytest.fixture(autouse=True)
def _keep_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_text_is_the_same_every_time_and_has_structure() -> None:
    first = text(5000)
    assert first == text(5000)
    assert first != text(5000, seed=1)
    assert len(first) == 5000
    assert 30 < len(set(first)) < 60
    sums = [line.rstrip(".") for line in first.split("\n")[:-1] if "=" in line]
    assert sums
    for line in sums:
        terms, total = line.split("=")
        assert sum(map(int, terms.split("+"))) == int(total)


@pytest.mark.parametrize("sparsity", ["dense", "2:4", "6:8"])
def test_both_methods_are_the_same_function(sparsity: str) -> None:
    """Same seed, same weights: losses and gradients differ by bf16 roundings alone."""
    data = torch.randint(40, (2000,), generator=torch.Generator().manual_seed(0))
    batch = batch_of(data, SMOKE, torch.Generator().manual_seed(0))
    found = {}
    for method in METHODS:
        model, switch = build(method, 40, SMOKE, 0, torch.device("cpu"))
        switch(sparsity)
        loss = loss_of(model, *batch)
        loss.backward()
        found[method] = float(loss.detach()), {name: parameter.grad for name, parameter in model.named_parameters()}
    (theirs, their_grads), (ours, our_grads) = found["fake-quant"], found["ours"]
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert their_grads.keys() == our_grads.keys()
    for name, grad in their_grads.items():
        assert torch.cosine_similarity(grad.flatten(), our_grads[name].flatten(), dim=0) > 0.99, name


def test_what_is_converted() -> None:
    ours, _ = build("ours", 40, SMOKE, 0, torch.device("cpu"))
    assert {name.rpartition(".")[2] for name in layers(ours)} == {"qkv", "out", "gate_up", "down"}
    assert ours.blocks[0].qkv.splits == [32, 32, 32]
    theirs, _ = build("fake-quant", 40, SMOKE, 0, torch.device("cpu"))
    assert sum(isinstance(module, FakeQuantLinear) for module in theirs.modules()) == 4
    assert not any(isinstance(module, BitLinear) for module in theirs.modules())


def test_the_schedule_switches_half_way() -> None:
    assert [str(schedule_of("dense-to-2:4", 10).at(step)) for step in (0, 4, 5, 9)] == ["dense", "dense", "2:4", "2:4"]
    assert str(schedule_of("6:8", 10).at(9)) == "6:8"


def test_the_smoke_run_writes_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "curves.json"
    assert main(["--smoke", "--steps", "4", "--sparsity", "dense-to-2:4", "--seeds", "2", "--device", "cpu", "--out", str(out)]) == 0
    learning = load(out)
    assert (learning.device, learning.smoke, len(learning.runs)) == ("cpu", True, 4)
    assert all(run.steps == (1, 2, 3, 4) and all(loss < 5 for loss in run.validation) for run in learning.runs)
    (verdict,) = verdicts(learning)
    assert str(verdict) in capsys.readouterr().out


def test_a_loss_that_differs_is_exit_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(method: str, sparsity: str, seed: int, *rest: object) -> Run:
        return Run(method, sparsity, seed, (10,), (1.0,), (1.0 + 0.01 * seed + worse * (method == "ours"),), 0.1)

    monkeypatch.setattr(train_tiny, "train", trained)
    line = ["--device", "cpu", "--sparsity", "2:4", "--out", str(tmp_path / "curves.json")]
    worse = 0.02
    assert main(line) == 0
    worse = 0.04
    assert main(line) == 3
    assert "differ" in capsys.readouterr().out
    assert main([*line, "--seeds", "1"]) == 3, "one seed shows no spread"
    assert main([*line, "--method", "ours"]) == 0


def test_several_processes_train_the_same(tmp_path: Path) -> None:
    line = ["--smoke", "--steps", "2", "--sparsity", "2:4", "--seeds", "1", "--device", "cpu", "--out"]
    assert main([*line, str(tmp_path / "one.json")]) == 0
    assert main([*line, str(tmp_path / "two.json"), "--processes", "2"]) == 0
    one, two = ({(run.method, run.validation) for run in load(tmp_path / name).runs} for name in ("one.json", "two.json"))
    assert one == two
    assert len(one) == 2


def test_a_run_that_fails_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def runs(jobs: list, *rest: object) -> Iterator[Run | Failure]:
        for method, sparsity, seed in jobs:
            lost = (method, seed) == ("ours", 2)
            yield Failure("memory", "too little") if lost else Run(method, sparsity, seed, (10,), (1.0,), (1.0 + seed,), 0.1)

    monkeypatch.setattr(train_tiny, "train_in_children", runs)
    out = tmp_path / "curves.json"
    assert main(["--processes", "2", "--device", "cpu", "--sparsity", "2:4", "--out", str(out)]) == 4
    assert "memory: too little" in capsys.readouterr().err
    assert len(load(out).runs) == 7


def test_a_nan_is_exit_3_and_costs_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(method: str, sparsity: str, seed: int, *rest: object) -> Run:
        if (method, seed) == ("ours", 1):
            raise NonFiniteError("blocks.0.qkv: NaN or infinity in its weight")
        return Run(method, sparsity, seed, (10,), (1.0,), (1.0 + seed,), 0.1)

    monkeypatch.setattr(train_tiny, "train", trained)
    out = tmp_path / "curves.json"
    assert main(["--device", "cpu", "--sparsity", "2:4", "--out", str(out)]) == 3
    assert "wrong: ours 2:4 1: blocks.0.qkv" in capsys.readouterr().err
    assert len(load(out).runs) == 7


def test_an_interruption_keeps_what_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(method: str, sparsity: str, seed: int, *rest: object) -> Run:
        if seed:
            raise KeyboardInterrupt
        return Run(method, sparsity, seed, (10,), (1.0,), (1.0,), 0.1)

    monkeypatch.setattr(train_tiny, "train", trained)
    out = tmp_path / "curves.json"
    assert main(["--device", "cpu", "--sparsity", "2:4", "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(load(out).runs) == 2


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "curves.json")
    for line, said in (
        (["--steps", "0"], "at least 1"), (["--seeds", "0"], "at least 1"), (["--processes", "0"], "at least 1"),
        (["--sparsity", "9:9"], "choose from"), (["--device", "tpu"], "choose from"),
        (["--out", str(tmp_path / "file" / "curves.json")], "cannot be written"),
    ):  # fmt: skip
        assert main(["--smoke", "--out", out, *line]) == 2, line
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--device", "cuda", "--out", str(tmp_path / "curves.json")]) == 5
    assert "needed" in capsys.readouterr().err
