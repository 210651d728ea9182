"""All kernels together for a long time: nothing written beside a buffer, no input touched, the same bits after every replay."""

from __future__ import annotations

import time

import pytest
import torch

from kernels.catalogue import KERNELS, find, kernels_for
from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import GemmInputs
from kernels.kernel import Kernel
from kernels.problem import Op, Problem, Sparsity
from kernels.space import NoConfig
from kernels.sparse_backward.int8_grad import Int8GradConfig
from kernels.ternary_gemm.sparse_mma_config import MmaConfig
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig
from kernels.tuned import lookup
from suites.ahead import compilations, compile_ahead
from suites.case import Case
from suites.catalogue import Selection, plan
from tests.kernels.endurance import Endurance, is_dangerous
from tests.kernels.guarded import GUARD, PATTERN, GuardedMemory
from tests.kernels.harmful import Harm, before, behind, beside, fake, rarely_wrong, silent, writes_its_input, zero
from tests.kernels.recordings import bits

REPLAYS, ROUNDS = 1000, 10
MOST_OPERATIONS, MOST_WEIGHTS = 6e10, 40e6
"""What one call of a case in the sample may compute and hold: so that a thousand replays of all take seconds."""


def company(device: str, harm: Harm | None) -> Endurance:
    """Six well-behaved kernels and one that is not."""
    endurance = Endurance(device)
    for tokens in (3, 5):
        case = Problem("gemm", 24, 32, tokens, Sparsity(2, 4), dtype="int32")
        for index in range(3):
            endurance.bind(fake(f"fine-{index}"), case, NoConfig())
    endurance.bind(fake("harmful", harm), Problem("gemm", 16, 64, 4, Sparsity(2, 4), dtype="int32"), NoConfig())
    endurance.record()
    return endurance


HARMFUL = "harmful (gemm) on gemm 16x64 T=4 2:4 int32"
HARM: tuple[tuple[Harm, str], ...] = (
    (behind, "1 bytes behind y of harmful (gemm) on gemm 16x64 T=4 2:4 int32, the nearest 5 bytes"),
    (before, "1 bytes before input w_scale of gemm 16x64 T=4 2:4 int32, the nearest 2 bytes"),
    (rarely_wrong, f"{HARMFUL} gave other bits in 1 replays"),
    (writes_its_input, "input x_q of gemm 16x64 T=4 2:4 int32 was written"),
    (silent, f"{HARMFUL} gave other bits in"),
)


@pytest.mark.parametrize(("harm", "words"), HARM)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_kernel_that_misbehaves_is_caught_and_named(device: str, harm: Harm, words: str) -> None:
    found = company(device, harm).run(replays=8, rounds=2)
    assert any(words in line for line in found), found
    assert all(line.startswith("in round") for line in found[:-1])
    assert not any("fine" in line for line in found), found
    if harm in (behind, before, silent):
        assert found[-1] == f"again when it runs alone: {HARMFUL}"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_that_behave_are_left_alone(device: str) -> None:
    endurance = company(device, None)
    assert endurance.run(replays=8, rounds=2) == []
    assert [len(entry.members) for entry in endurance.recordings] == [1, 2, 1, 1, 2]
    assert {entry.lane for entry in endurance.recordings} == {0, 1}


def test_a_first_replay_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(AssertionError, match=r"harmful .* replayed for the first time"):
        company("cpu", zero)


def test_freed_memory_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    block = torch.full((700,), PATTERN, dtype=torch.uint8)
    monkeypatch.setattr(Endurance, "_nobodys", lambda endurance: [block])

    def dangling(calls: torch.Tensor, inputs: GemmInputs, y: torch.Tensor) -> None:
        block[3:5].masked_fill_(calls > 8, 0)

    assert company("cpu", dangling).run(replays=8, rounds=2)[0] == "in round 2 of 2: 700 bytes that nobody owns were written"


def test_memory_is_watched_as_long_as_it_lives() -> None:
    memory = GuardedMemory("cpu")
    with memory.of("me"):
        made = torch.empty(5, 3), torch.tensor([1, 2]), torch.ones(4, dtype=torch.bool), torch.zeros(7)[2:4]
    assert len(memory) == 4
    assert memory.hits() == []
    assert made[1].tolist() == [1, 2]
    assert made[2].all()
    assert made[0].untyped_storage().nbytes() == 60 + 2 * GUARD
    beside(made[0], GUARD - 1).fill_(0)
    beside(made[0], -GUARD).fill_(0)
    hits = memory.hits()
    assert [(hit.side, hit.count, hit.distance) for hit in hits] == [("before", 1, GUARD - 1), ("behind", 1, GUARD - 1)]
    assert "by empty at" in hits[0].buffer
    assert hits[0].buffer.endswith("for me")
    memory.heal()
    assert memory.hits() == []
    del made
    assert len(memory) == 0


def test_views_and_outputs_given_stay_where_they_are() -> None:
    memory, outside = GuardedMemory("cpu"), torch.zeros(4, 4)
    with memory.of("me"):
        inside = torch.zeros(4, 4)
        assert inside[1:].untyped_storage().data_ptr() == inside.untyped_storage().data_ptr()
        assert torch.add(inside, 1, out=outside) is outside
        assert outside.t().untyped_storage().data_ptr() == outside.untyped_storage().data_ptr()
        assert inside.add_(1) is inside
    assert len(memory) == 1


def test_what_is_dangerous() -> None:
    case, gpu = Problem("gemm", 2560, 6912, 128, Sparsity(2, 4)), by_name("h200")
    for name, op in (("sparse-wgmma", "gemm"), ("decode", "gemm"), ("activation", "activation")):
        few = Problem("activation", 0, 6912, 32, Sparsity(2, 4)) if op == "activation" else case.with_(tokens=32)
        kernel = find(name, op)
        assert is_dangerous(kernel, few, kernel.default_config(few, gpu)), f"{kernel}: its launch is a dependent one"
    cut, whole = (MmaConfig(2, 2, 4, 4, 4, splits=splits) for splits in (4, 1))
    assert is_dangerous(find("sparse-mma", "gemm"), case, cut), "parts of tiles meet"
    assert not is_dangerous(find("sparse-mma", "gemm"), case, whole)
    for parts in (1, 2):
        assert is_dangerous(fake("plain"), case, Int8GradConfig(SparseConfig(1, 128, 7, parts))) == (parts > 1), "a config's part counts"
    assert not is_dangerous(fake("plain"), case, NoConfig())


def test_bits_are_bits() -> None:
    nans, zeros = torch.full((3,), torch.nan), torch.tensor([0.0, -0.0], dtype=torch.bfloat16)
    assert torch.equal(bits(nans), bits(nans.clone()))
    assert bits(zeros).ne(bits(zeros.abs())).tolist() == [False, True]
    assert bits(torch.ones(3, 4)[:, :2]).shape == (3, 2)


def ours(op: Op) -> list[Kernel]:
    """The kernels of an op whose code is this project's: variants, and baselines that launch Triton functions and search for nothing."""
    return [kernel for kernel in kernels_for(op) if kernel.resolve is None and (kernel.kind == "variant" or kernel.name in NEIGHBOURS)]


NEIGHBOURS = ("dense-int8-triton", "dense-int8", "mask-only")


def sample() -> list[Case]:
    """Of the default cases of every suite one for each op, sparsity and number of tokens, of another size each time."""
    groups: dict[object, dict[Problem, Case]] = {}
    for case in plan(Selection()):
        problem = case.problem
        small = problem.operations <= MOST_OPERATIONS and problem.out_features * problem.in_features <= MOST_WEIGHTS
        if small and not problem.refusal:
            groups.setdefault((case.suite, problem.op, problem.sparsity, problem.tokens), {})[problem] = case
    chosen = {}
    for index, group in enumerate(groups.values()):
        by_size = sorted(group, key=lambda problem: (problem.operations, problem.out_features * problem.in_features))
        problem = by_size[index % len(by_size)]
        chosen[problem] = group[problem]
    return list(chosen.values())


def bindings(gpu: Gpu) -> list[tuple[Kernel, Problem]]:
    return [(kernel, case.problem) for case in sample() for kernel in ours(case.problem.op)
            if kernel.unavailable(case.problem, gpu) is None]


def test_the_sample_holds_every_op_and_every_variant() -> None:
    gpu = by_name("h200")
    held = {(kernel.op, kernel.name) for kernel, _ in bindings(gpu)}
    assert held >= {(kernel.op, kernel.name) for kernel in KERNELS if kernel.kind == "variant"}
    assert {case.suite for case in sample()} == {"prefill", "decode", "layer", "prepare", "train", "square"}
    assert len({(problem.out_features, problem.in_features) for _, problem in bindings(gpu)}) >= 15


@pytest.mark.interpreter
def test_plain_triton_kernels_stay_inside_their_memory() -> None:
    gpu, endurance = by_name("a100"), Endurance("cpu")  # where no default is a Gluon kernel
    for kernel in KERNELS:
        if kernel.kind == "variant" and kernel.interpreted:
            tokens, rows = 0 if kernel.op == "prepare" else 3, 0 if kernel.op == "activation" else 18
            case = Problem(kernel.op, rows, 40, tokens, Sparsity(2, 4), (10, 8) if rows else ())
            if kernel.unavailable(case, gpu) is None:
                endurance.bind(kernel, case, kernel.default_config(case, gpu))
    endurance.record()
    assert endurance.run(replays=1, rounds=1) == []
    assert len(endurance.bound) >= 8
    assert len(endurance.memory) >= 40


@pytest.mark.gpu
def test_a_thousand_replays_of_all_kernels_in_one_process() -> None:
    gpu, endurance, clock = detect() or by_name("h200"), Endurance("cuda"), time.perf_counter()

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - clock:5.0f} s: {what}", flush=True)

    compile_ahead(compilations(sample(), ours, gpu), gpu, torch.cuda.current_device())
    tell("compiled")
    for kernel, problem in bindings(gpu):
        endurance.bind(kernel, problem, lookup(kernel, problem, gpu)[0])
    tell(f"{len(endurance.bound)} kernels bound ({sum(bound.dangerous for bound in endurance.bound)} dangerous)")
    endurance.record()
    tell(f"{len(endurance.recordings)} graphs recorded and judged, {len(endurance.memory)} buffers guarded")
    found = endurance.run(REPLAYS, ROUNDS)
    tell(f"{REPLAYS} replays of each")
    assert found == [], "\n".join(found)
