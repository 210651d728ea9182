from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.errors import UsageError
from suites import models

# The published shapes, N x K, layer by layer.
SHAPES = {
    "qwen2.5-0.5b": [(1152, 896), (896, 896), (9728, 896), (896, 4864)],
    "qwen2.5-1.5b": [(2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960)],
    "qwen2.5-3b": [(2560, 2048), (2048, 2048), (22016, 2048), (2048, 11008)],
    "qwen2.5-7b": [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)],
    "bitnet-2b": [(3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)],
    "llama3.2-1b": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)],
    "llama3.2-3b": [(5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192)],
    "llama3-70b": [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)],
}
QKV = {
    "qwen2.5-0.5b": (896, 128, 128), "qwen2.5-1.5b": (1536, 256, 256), "qwen2.5-3b": (2048, 256, 256), "qwen2.5-7b": (3584, 512, 512),
    "bitnet-2b": (2560, 640, 640), "llama3.2-1b": (2048, 512, 512), "llama3.2-3b": (3072, 1024, 1024), "llama3-70b": (8192, 1024, 1024),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_splits(name: str) -> None:
    layers = models.find(name).layers
    assert [(layer.out_features, layer.in_features) for layer in layers] == SHAPES[name]
    assert layers[0].splits == QKV[name]
    assert [len(layer.splits) for layer in layers] == [3, 1, 2, 1]
    assert all(sum(layer.splits) == layer.out_features and layer.model == name for layer in layers)


@pytest.mark.parametrize(("short", "name"), [("0.5b", "qwen2.5-0.5b"), ("3b", "qwen2.5-3b"), ("70B", "llama3-70b")])
def test_short_names(short: str, name: str) -> None:
    assert models.find(short).name == name


@pytest.mark.parametrize("text", ["gpt-17", "", "qwen"])
def test_an_unknown_model_names_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match=r"allowed: qwen2.5-0.5b \(0.5b\).*llama3-70b.*config.json") as caught:
        models.find(text)
    assert "\n" not in str(caught.value)


def config(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(fields))
    return path


def test_a_hugging_face_config(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = config(folder, hidden_size=2048, intermediate_size=11008, num_attention_heads=16, num_key_value_heads=2)
    for text in (str(path), str(folder)):
        found = models.find(text)
        assert found.name == "my-model"
        assert [(layer.out_features, layer.in_features, layer.splits) for layer in found.layers] == [
            (layer.out_features, layer.in_features, layer.splits) for layer in models.find("qwen2.5-3b").layers
        ]


def test_a_config_with_a_head_size_of_its_own_and_no_grouped_heads(tmp_path: Path) -> None:
    path = config(tmp_path, text_config={"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 32})
    layers = models.from_config(path).layers
    assert [(layer.out_features, layer.in_features) for layer in layers] == [(384, 64), (64, 128), (192, 64), (64, 96)]


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "not a readable"), ("[]", "object"), ('{"hidden_size": 64}', "intermediate_size is None"),
     ('{"hidden_size": "64"}', "hidden_size is '64'"), ('{"hidden_size": true}', "hidden_size is True")],
)
def test_a_bad_config(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=says):
        models.find(str(tmp_path / "config.json"))


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        models.find(str(tmp_path / "none.json"))


def test_a_shape_of_ones_own() -> None:
    assert models.parse_shape("13824x2560") == models.Layer("custom", "13824x2560", 13824, 2560, (13824,))


@pytest.mark.parametrize("text", ["13824", "0x3", "ax4", "4x", "-4x4", "4x4x4"])
def test_a_bad_shape(text: str) -> None:
    with pytest.raises(UsageError, match="such as 13824x2560"):
        models.parse_shape(text)
