"""The linear layers of the models that are measured: names, shapes, splits; and how a user adds their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import command
from kernels.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """One linear layer: its model, its name there, out_features N, in_features K, and the output rows of each weight scale."""

    model: str
    name: str
    out_features: int
    in_features: int
    splits: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A transformer. hidden, intermediate: widths; q, kv: rows of the query and of each of the key and value projections; blocks: how often
    its four layers occur; head: width of an attention head; vocabulary: rows of the embedding."""

    name: str
    hidden: int
    intermediate: int
    q: int
    kv: int
    alias: str = ""
    blocks: int = 1
    head: int = 128
    vocabulary: int = 151936

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Wqkv (fused), Wo, W13 (gate and up, fused), W2."""
        shapes = (
            ("Wqkv", self.hidden, (self.q, self.kv, self.kv)),
            ("Wo", self.q, (self.hidden,)),
            ("W13", self.hidden, (self.intermediate, self.intermediate)),
            ("W2", self.intermediate, (self.hidden,)),
        )
        return tuple(Layer(self.name, name, sum(splits), width, splits) for name, width, splits in shapes)


# From each model's published config.json.
MODELS: tuple[Model, ...] = (
    Model("qwen2.5-0.5b", 896, 4864, 896, 128, "0.5b", 24, 64),
    Model("qwen2.5-1.5b", 1536, 8960, 1536, 256, "1.5b", 28),
    Model("qwen2.5-3b", 2048, 11008, 2048, 256, "3b", 36),
    Model("qwen2.5-7b", 3584, 18944, 3584, 512, "7b", 28, vocabulary=152064),
    Model("bitnet-2b", 2560, 6912, 2560, 640, "bitnet", 30, vocabulary=128256),
    Model("llama3.2-1b", 2048, 8192, 2048, 512, "1b", 16, 64, 128256),
    Model("llama3.2-3b", 3072, 8192, 3072, 1024, blocks=28, vocabulary=128256),
    Model("llama3-70b", 8192, 28672, 8192, 1024, "70b", 80, vocabulary=128256),
)


def find(text: str) -> Model:
    """The model of that name or short name, or of a Hugging Face config.json or its folder; UsageError says what is allowed."""
    for model in MODELS:
        if text and text.lower() in (model.name, model.alias):
            return model
    path = Path(text)
    if text and path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return from_config(path)
    names = ", ".join(f"{model.name} ({model.alias})" if model.alias else model.name for model in MODELS)
    raise UsageError(f"unknown model {text!r}; allowed: {names}, or the path of a Hugging Face config.json")


def from_config(path: Path) -> Model:
    """A model from a Hugging Face config.json; UsageError names what is missing."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable config.json: {getattr(error, 'strerror', None) or error}") from None
    if isinstance(data, dict) and isinstance(data.get("text_config"), dict):
        data = data["text_config"]
    if not isinstance(data, dict):
        raise UsageError(f"{path}: not a config.json: an object is expected")
    hidden, intermediate, heads = (_size(path, data, name) for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    kv_heads = _size(path, data, "num_key_value_heads", heads)
    head = _size(path, data, "head_dim", hidden // heads)
    blocks = _size(path, data, "num_hidden_layers", 1)
    vocabulary = _size(path, data, "vocab_size", Model.vocabulary)
    name = path.resolve().parent.name or "config"
    return Model(name, hidden, intermediate, heads * head, kv_heads * head, blocks=blocks, head=head, vocabulary=vocabulary)


def _size(path: Path, data: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = default if data.get(name) is None else data[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        wanted = ("hidden_size, intermediate_size, num_attention_heads; optional num_key_value_heads, head_dim, num_hidden_layers, "
                  "vocab_size")
        raise UsageError(f"{path}: {name} is {value!r}, a positive integer is needed (read are {wanted})")
    return value


def parse_shape(text: str) -> Layer:
    """A user's layer from `NxK`, such as 13824x2560; UsageError otherwise."""
    rows, width = command.parse_shape(text)
    return Layer("custom", f"{rows}x{width}", rows, width, (rows,))
