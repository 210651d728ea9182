"""The command line of `suites.model_step`, and what it asks for. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.command import Parser, parse_tokens
from kernels.errors import ShapeError, UsageError
from kernels.problem import Sparsity
from suites.command import EXIT_CODES
from suites.model_child import Master, Spec
from suites.model_variants import VARIANTS, chosen
from suites.models import Model, find

NAME = "suites.model_step"
EXAMPLES = """examples:
  python -m suites.model_step --gpu h200                               Qwen2.5-0.5B and 3B, four blocks each, all variants
  python -m suites.model_step --gpu auto --model qwen2.5-3b --quick
  python -m suites.model_step --gpu h200 --model 3b --tokens 16384 --accumulation 1,4 --sparsity 2:4 --master fp32
  python -m suites.model_step --gpu h200 --variant bitlinear-compiled fakequant-bf16-compiled
  python -m suites.model_step --gpu h200 --accept runs/mine            commit the cases of a run; needs no GPU"""

MODELS = ("qwen2.5-0.5b", "qwen2.5-3b")
BLOCKS, TOKENS, CONTEXT, ACCUMULATION = 4, 8192, 2048, (1, 4)
START_SECONDS = 300.0
BACKEND = "inductor"
ALIGNMENT = 128


@dataclass(frozen=True)
class Request:
    """One setting: what its children train, one for each variant, and the accumulations that are timed."""

    specs: tuple[Spec, ...]
    accumulations: tuple[int, ...]

    def __str__(self) -> str:
        spec = self.specs[0]
        return (
            f"{spec.model.name}: {spec.blocks} of {spec.model.blocks} blocks, vocabulary {spec.vocabulary:,} of {spec.model.vocabulary:,}, "
            f"{parameters(spec) / 1e6:,.0f} M parameters in {spec.master}, {spec.sparsity}, {spec.tokens:,} tokens a micro-batch in "
            f"sequences of {spec.context:,}, micro-batches a step: {', '.join(map(str, self.accumulations))}; variants: "
            f"{', '.join(one.variant for one in self.specs)}"
        )


def parser() -> Parser:
    """The parser of `suites.model_step`."""
    made = Parser(
        prog="python -m suites.model_step",
        description="Train a small decoder of a model's shapes, random weights and synthetic tokens, with BitLinear, with fake-quantizing "
        "PyTorch and with dense layers: time of an optimizer step, tokens per second, peak memory.",
        epilog=f"{EXAMPLES}\n\nvariants: {', '.join(one.name for one in VARIANTS)}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--gpu", default="auto", help="the GPU that the device is claimed to be, or auto")
    made.add_argument("--device", type=int, default=0, metavar="N", help="index of the CUDA device")
    made.add_argument("--model", nargs="+", default=list(MODELS), metavar="NAME", help="models by name, or paths of config.json files")
    made.add_argument("--blocks", type=int, default=BLOCKS, metavar="N", help=f"blocks of the decoder, {BLOCKS} by default")
    made.add_argument("--vocabulary", type=int, metavar="V", help="by default the model's, times blocks over all blocks, so that the head "
                      "has the share of a step that it has in the whole model")
    made.add_argument("--tokens", nargs="+", default=[str(TOKENS)], metavar="T", help=f"tokens of a micro-batch, {TOKENS} by default")
    made.add_argument("--context", type=int, default=CONTEXT, metavar="T", help=f"tokens of a sequence, {CONTEXT} by default")
    made.add_argument("--accumulation", nargs="+", default=["1", "4"], metavar="N", help="micro-batches of an optimizer step, 1 and 4")
    made.add_argument("--sparsity", nargs="+", default=["2:4"], metavar="n:m", help="dense, 2:4 (default), 6:8 …")
    made.add_argument("--master", nargs="+", choices=("bf16", "fp32"), default=["bf16"], help="type of the weights; fp32 under autocast")
    made.add_argument("--variant", nargs="+", default=[], metavar="NAME", help="only these, and what they are checked against")
    made.add_argument("--timeout", type=float, default=START_SECONDS, metavar="S", help="seconds a variant may take to build and compile")
    made.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    made.add_argument("--out", metavar="FOLDER", help="folder of the results; runs/<date>-<gpu>-model by default")
    made.add_argument("--require-gpu", action="store_true", help="fail with exit code 5 where there is no GPU")
    made.add_argument("--commit", metavar="SHA", help="commit of the code, where there is no git")
    made.add_argument("--list", action="store_true", help="print what would be measured and stop")
    made.add_argument("--accept", metavar="RUN", help="put the cases of a run in the place of the committed ones, measure nothing")
    return made


def requests(args: argparse.Namespace) -> tuple[Request, ...]:
    """What the arguments ask for. Raises UsageError for what is not allowed, ShapeError where a sparsity does not fit a model."""
    for name, least in (("blocks", 1), ("context", 1), ("vocabulary", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: allowed are {least} and up")
    if args.device < 0:
        raise UsageError(f"--device {args.device}: allowed are 0 and up")
    if not 1 <= args.timeout < float("inf"):
        raise UsageError(f"--timeout {args.timeout:g}: allowed are seconds from 1 on")
    accumulations, counts = parse_tokens(args.accumulation), parse_tokens(args.tokens)
    return tuple(
        _request(args, find(model), tokens, sparsity, master, accumulations)
        for model in dict.fromkeys(args.model) for tokens in counts for sparsity in dict.fromkeys(args.sparsity)
        for master in dict.fromkeys(args.master)
    )  # fmt: skip


def _request(args: argparse.Namespace, model: Model, tokens: int, sparsity: str, master: Master, accumulations: Sequence[int]) -> Request:
    context = min(args.context, tokens)
    if tokens % context:
        raise UsageError(f"--tokens {tokens}: not whole sequences of --context {context}")
    if model.q % model.head or model.kv % model.head or (model.q // model.head) % (model.kv // model.head) or model.head % 2:
        raise UsageError(f"{model.name}: heads of {model.head} columns do not fit its attention of {model.q} and {model.kv}")
    parsed = Sparsity.parse(sparsity)
    for layer in model.layers:
        if layer.in_features % parsed.m:
            raise ShapeError(f"{model.name} {layer.name}: in_features {layer.in_features} is not a multiple of the group of {parsed.m}")
    vocabulary = args.vocabulary or scaled_vocabulary(model, args.blocks)
    specs = tuple(
        Spec(one.name, one.layers, BACKEND if one.compiled else None, model, args.blocks, vocabulary, tokens, context, max(accumulations),
             str(parsed), master, 0, f"cuda:{args.device}")
        for one in chosen(args.variant)
    )  # fmt: skip
    return Request(specs, tuple(accumulations))


def scaled_vocabulary(model: Model, blocks: int) -> int:
    """The model's vocabulary, times blocks over all its blocks, to a multiple of `ALIGNMENT`; the whole one for all blocks or more."""
    if blocks >= model.blocks:
        return model.vocabulary
    return max(1, round(model.vocabulary * blocks / model.blocks / ALIGNMENT)) * ALIGNMENT


def parameters(spec: Spec) -> int:
    """Parameters of the decoder: blocks, norms, and the embedding, which is the head too."""
    linear = sum(layer.out_features * layer.in_features for layer in spec.model.layers)
    return spec.blocks * (linear + 2 * spec.model.hidden) + (spec.vocabulary + 1) * spec.model.hidden
