"""Which kernel serves a layer in evaluation: what `--explain` prints, for every GPU, and what a layer says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune import explain, tuned
from kernels import chooser
from kernels.bitlinear import BitLinear, freeze, known
from kernels.bitlinear.forward import FORWARD, bind, config_of
from kernels.bitlinear.pack import KernelPack
from kernels.bitlinear.plan import Plan
from kernels.bitlinear.variants import Choice, choose
from kernels.catalogue import find, kernels_for
from kernels.choose import rank
from kernels.errors import UsageError
from kernels.gpu import GPUS, Gpu, by_name
from kernels.problem import DENSE, Problem, Sparsity
from kernels.space import config_to_dict
from kernels.tuned import forget, source_hash
from kernels.tuned_table import Entry

HALF, SIX, H200 = Sparsity(2, 4), Sparsity(6, 8), by_name("h200")
pytestmark = pytest.mark.filterwarnings("ignore:BitLinear runs on the CPU")


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "none.json"


@pytest.mark.parametrize("tokens", [1, 7, 64, 512])
@pytest.mark.parametrize("sparsity", [DENSE, HALF, SIX], ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_layer_runs_what_is_explained(gpu: Gpu, sparsity: Sparsity, tokens: int, empty: Path) -> None:
    problem = Problem("layer", 2560, 6912, tokens, sparsity)
    mine = choose(problem, gpu, path=empty).forward
    every = chooser.choose(problem, gpu, kernels_for("layer"), empty)
    names = [one.kernel.name for one in every.estimates]
    assert mine == next(name for name in names if name in FORWARD and not FORWARD[name].refusal(problem, gpu))
    told = explain.explain([problem], gpu, kernels_for("layer"), path=empty)
    assert f"  a BitLinear in evaluation runs {mine}" in told


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if 80 <= gpu.capability < 90], ids=lambda gpu: gpu.name)
def test_ampere_and_ada(gpu: Gpu, empty: Path) -> None:
    names = {tokens: choose(Problem("layer", 8192, 8192, tokens, HALF), gpu, path=empty).forward for tokens in (1, 16, 1024, 8192)}
    assert names == {1: "decode", 16: "decode", 1024: "sparse-mma", 8192: "sparse-mma"}
    assert choose(Problem("layer", 8192, 8192, 1024, SIX), gpu, path=empty).forward == "dense-triton"
    assert choose(Problem("step", 8192, 8192, 8192, HALF), gpu, path=empty).forward == "sparse-mma"


def test_unlisted_ampere_and_ada_run_what_their_relatives_do(empty: Path) -> None:
    for listed, sms in (("a100", 56), ("rtx3090", 84), ("l40s", 142)):
        own = by_name(listed)
        gpu = replace(own, name="unlisted", sms=sms, bandwidth=float("inf"), peak={}, clock_mhz=0, measured_as="device properties")
        for tokens in (1, 16, 512, 8192):
            problem = Problem("layer", 8192, 8192, tokens, HALF)
            assert choose(problem, gpu, path=empty).forward == choose(problem, own, path=empty).forward


def test_too_many_in_features_are_refused_with_every_reason(empty: Path) -> None:
    for op in ("layer", "step"):
        with pytest.raises(UsageError, match=r"no kernel of a BitLinear can .* on h200: .*dense-triton: in_features 200000 is above"):
            choose(Problem(op, 8, 200_000, 1, HALF), H200, path=empty)  # type: ignore[arg-type] # both are ops


def test_hopper(empty: Path) -> None:
    def name(tokens: int, sparsity: Sparsity) -> str:
        return choose(Problem("layer", 8192, 8192, tokens, sparsity), H200, path=empty).forward

    assert [name(tokens, HALF) for tokens in (1, 16, 65, 512)] == ["decode", "decode", "sparse-wgmma", "sparse-wgmma"]
    assert [name(tokens, SIX) for tokens in (1, 512)] == ["decode", "dense-wgmma"]


def entry(name: str, us: float, tokens: int, config: dict[str, Any]) -> Entry:
    kernel = find(name, "layer")
    return Entry(name, "layer", 8192, 8192, tokens, "2:4", "bf16", config, us, us + 1, source_hash(kernel), date="2026-11-22")


def test_the_tuned_table_decides_where_it_compares_and_stale_entries_do_not(empty: Path) -> None:
    problem = Problem("layer", 8192, 8192, 16, HALF)
    configs = {one.kernel.name: config_to_dict(one.config) for one in rank(kernels_for("layer"), problem, H200)}
    rows = [entry(name, us, 16, configs[name]) for name, us in (("decode", 9.0), ("sparse-wgmma", 8.0))]
    tuned.write(empty, rows)
    assert choose(problem, H200, path=empty).forward == "sparse-wgmma"
    assert choose(problem.with_(tokens=1), H200, path=empty).forward == "decode", "too far from 16 tokens"
    tuned.write(empty, [rows[0], Entry(**{**vars(rows[1]), "source": "0123456789abcdef"})])
    assert choose(problem, H200, path=empty).forward == "decode", "the other's source has changed since"


def test_a_launch_takes_the_tuned_config(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    problem = Problem("layer", 8192, 8192, 16, HALF)
    default = config_of("decode", problem, H200)
    space = find("decode", "layer").space
    another = next(one for one in space.candidates() if one != default and space.reject(problem, H200, one) is None)
    other = config_to_dict(another)
    tuned.write(empty, [entry("decode", 9.0, 16, other)])
    monkeypatch.setattr("kernels.tuned.path_of", lambda gpu: empty)
    forget()
    try:
        assert config_to_dict(config_of("decode", problem, H200)) == other
        assert config_to_dict(config_of("decode", problem.with_(tokens=1), H200)) != other
    finally:
        monkeypatch.undo()
        forget()


def test_a_plan_of_an_h200_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernels run: a weight of which it is said that they take it."""
    monkeypatch.setattr("kernels.bitlinear.plan.runs_kernels", lambda tensor: True)
    monkeypatch.setattr("kernels.bitlinear.plan.chosen", lambda problem, index, variants: choose(problem, H200, path=Path("none.json")))
    module = BitLinear(8192, 1024, bias=False, device="meta", dtype=torch.bfloat16, sparsity="2:4")
    plan = module.plan(1, 16, 64, 512)
    assert {count: plan.kernels[count] for count in (1, 512)} == {1: "decode", 512: "sparse-wgmma"}
    assert plan.nbytes == {"master": 2 * 8192 * 1024, "codes": 1024 * 2048 + 4, "sparse fragments": 1024 * 2048 + 4 * 1024}
    module.set_sparsity("6:8")
    assert set(module.plan(1, 512).nbytes) == {"master", "codes", "dense fragments"}, "one layout of fragments serves all"


def test_a_plan_says_what_it_is() -> None:
    told = str(Plan({1: "decode", 64: "decode", 512: "sparse-wgmma"}, {"codes": 2_000_000}))
    assert told == "tokens 1 … 64: decode, 512: sparse-wgmma; codes 2.0 MB"
    module = BitLinear(48, 24, sparsity="2:4")
    assert str(module.plan(1, 2)) == "tokens 1 … 2: reference; master 0.0 MB, int8 0.0 MB"
    assert set(freeze(module).plan(3).kernels) == {3}


def test_named_kernels_serve_all(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("dense-triton", "unpack-cublas", "dequantize-cublas")
    problem = Problem("layer", 48, 48, 5, HALF)
    assert known.chosen(problem, None, str(choice)) == choice
    assert known.chosen(problem, None, "").forward == "dense-triton", "what Triton's interpreter runs"


def test_no_tokens_are_bound_to_nothing() -> None:
    pack: KernelPack = None  # type: ignore[assignment] # not looked at
    run = bind("decode", Problem("layer", 24, 48, 0, HALF), H200, torch.device("cpu"), True)
    assert run(None, torch.empty(0, 128, dtype=torch.int8), torch.empty(0), pack, None).shape == (0, 24)
