"""Encoders as teachers: which of their outputs are features, and how each kind is read."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from deploy.teachers.encoder import PRESETS, EncoderRequest, Normalisation
from deploy.teachers.maps import FeatureMap, feature_map
from deploy.teachers.open_encoder import open_encoder
from deploy.teachers.worker import Worker
from supernet.errors import HeatError, UserError

from .toy_encoders import CHANNELS, STRIDE, Served, write_encoder

PLAIN = PRESETS["none"]


@pytest.mark.parametrize(
    ("shape", "input_hw", "expected"),
    [
        ((1, 320, 7, 7), (224, 224), ("BChw", 320, (7, 7), 0)),
        ((1, 7, 7, 320), (224, 224), ("BhwC", 320, (7, 7), 0)),
        ((1, 16, 16, 16), (224, 224), ("BChw", 16, (16, 16), 0)),
        ((1, 96, 19, 25), (300, 400), ("BChw", 96, (19, 25), 0)),
        ((1, 257, 1024), (224, 224), ("BNC", 1024, (16, 16), 1)),
        ((1, 261, 384), (224, 224), ("BNC", 384, (16, 16), 5)),
        ((1, 196, 768), (224, 224), ("BNC", 768, (14, 14), 0)),
        ((1, 1 + 16 * 24, 768), (256, 384), ("BNC", 768, (16, 24), 1)),
        ((1, 1000), (224, 224), None),
        ((1, 1280, 1, 1), (224, 224), None),
        ((1, 12, 197, 197), (224, 224), None),
        ((1, 300, 4), (640, 480), ("BNC", 4, (20, 15), 0)),
        ((1, 77, 512), (224, 224), None),
    ],
)
def test_an_output_is_recognised_by_its_shape(
    shape: tuple[int, ...], input_hw: tuple[int, int], expected: tuple[Any, ...] | None
) -> None:
    found = feature_map("x", shape, input_hw)
    if expected is None:
        assert found is None
    else:
        assert found == FeatureMap("x", *expected)


def test_every_layout_is_read_as_the_same_map() -> None:
    map_BChw = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    tokens = map_BChw.reshape(2, 5, 16).transpose(0, 2, 1)
    with_class = np.concatenate([np.full((2, 1, 5), 9.0), tokens], axis=1)
    for output in (map_BChw, map_BChw.transpose(0, 2, 3, 1), tokens, with_class):
        found = feature_map("x", output.shape, (64, 64))
        assert found is not None
        np.testing.assert_allclose(found.read(output), map_BChw, rtol=1e-3)


def colours(images: np.ndarray, by: Normalisation = PLAIN) -> np.ndarray:
    """Return what the toy encoder should find."""
    values = (images / 255 - by.mean) / by.std
    b, h, w, _ = values.shape
    cells = values.reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE, 3).mean((2, 4))
    return np.concatenate([cells, -cells], axis=-1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["map", "tokens", "last", "uint8", "f16", "single", "any size"])
def test_an_onnx_file_gives_features(tmp_path: Path, kind: str) -> None:
    shape: Any = {"last": (1, 64, 96, 3), "single": (1, 3, 64, 96), "any size": ("b", 3, "h", "w")}
    dtype = {"uint8": TensorProto.UINT8, "f16": TensorProto.FLOAT16}
    path = write_encoder(
        tmp_path / "toy.onnx",
        shape=shape.get(kind, ("b", 3, 64, 96)),
        dtype=dtype.get(kind, TensorProto.FLOAT),
        tokens=kind == "tokens",
    )
    asked = (64, 96) if kind == "any size" else None
    encoder = open_encoder(EncoderRequest(source=str(path), input_hw=asked))
    facts = encoder.facts()
    assert facts.input_hw == (64, 96) and facts.maps[0].channels == CHANNELS
    assert facts.maps[0].cells_hw == (4, 6) and facts.maps[0].extra == (kind == "tokens")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3)).astype(np.uint8)
    expected = colours(images, facts.normalisation)
    if kind == "uint8":
        assert facts.normalisation == PLAIN  # of the file's own making
        expected = expected * 255
    (found,) = encoder.features(images)
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01)


def test_a_tensor_inside_a_graph_can_be_learnt(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "toy.onnx", logits_only=True)
    with pytest.raises(UserError, match=r"logits \[1, 6\].*its last convolution is map by --feat"):
        open_encoder(EncoderRequest(source=str(path)))
    encoder = open_encoder(EncoderRequest(source=str(path), features=("map", "colours")))
    assert [(m.name, m.channels) for m in encoder.facts().maps] == [("map", 6), ("colours", 3)]
    images = np.full((2, 64, 64, 3), 128, np.uint8)
    whole, part = encoder.features(images)
    np.testing.assert_array_equal(whole[:, :3], part)
    other = open_encoder(EncoderRequest(source=str(path), features=("map",)))
    assert other.facts().digest == encoder.facts().digest


def test_files_that_are_no_encoders(tmp_path: Path) -> None:
    def refusal(path: Path | str, **more: Any) -> str:
        with pytest.raises(UserError) as error:
            open_encoder(EncoderRequest(source=str(path), **more))
        return str(error.value)

    path = write_encoder(tmp_path / "toy.onnx")
    assert "no such file; an ONNX file, a folder of transformers" in refusal(tmp_path / "none")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:100])
    assert "is truncated or no ONNX file" in refusal(broken)
    assert "no such tensor; its outputs are map" in refusal(path, features=("layer4",))
    assert "takes 64x64 only" in refusal(path, input_hw=(96, 96))
    grey = write_encoder(tmp_path / "grey.onnx", shape=(1, 1, 64, 64))
    assert "has shape [1, 1, 64, 64]: images [B, 3, H, W]" in refusal(grey)
    pixels = write_encoder(tmp_path / "pixels.onnx", dtype=TensorProto.UINT8)
    assert "normalises them itself: leave out" in refusal(pixels, normalisation=PLAIN)
    words = write_encoder(tmp_path / "words.onnx", dtype=TensorProto.INT64)
    assert "of float32, float16 or uint8 are needed" in refusal(words)
    (tmp_path / "empty").mkdir()
    assert "no config.json in it" in refusal(tmp_path / "empty")


def tiny(name: str) -> Any:
    """Return a small model of transformers, untrained, and the cells that it should have."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    wide = {**small, "intermediate_size": 32, "image_size": 64}
    text = {**small, "intermediate_size": 32, "vocab_size": 50}
    levels = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    match name:
        case "dinov2":
            return transformers.Dinov2Model(transformers.Dinov2Config(**wide, patch_size=8)), (8, 8)
        case "dinov3":
            config = transformers.DINOv3ViTConfig(**wide, patch_size=8, num_register_tokens=4)
            return transformers.DINOv3ViTModel(config), (8, 8)
        case "clip":
            config = transformers.CLIPConfig(
                text_config=text, vision_config={**wide, "patch_size": 8}
            )
            return transformers.CLIPModel(config), (8, 8)
        case "siglip":
            config = transformers.SiglipConfig(
                text_config=text, vision_config={**wide, "patch_size": 8}
            )
            return transformers.SiglipModel(config), (8, 8)
        case "resnet":
            config = transformers.ResNetConfig(**levels, embedding_size=8, layer_type="basic")
            return transformers.ResNetModel(config), (8, 8)
    config = transformers.ConvNextConfig(**levels, num_stages=2, image_size=64)
    return transformers.ConvNextModel(config), (8, 8)


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "clip", "siglip", "resnet", "convnext"])
@pytest.mark.filterwarnings("ignore")
def test_folders_of_transformers(tmp_path: Path, name: str) -> None:
    model, cells = tiny(name)
    model.half().save_pretrained(tmp_path)  # as many are: features are of f32 all the same
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"height": 64, '
        '"width": 64}}'
    )
    encoder = open_encoder(EncoderRequest(source=str(tmp_path)))
    facts = encoder.facts()
    assert facts.input_hw == (64, 64) and facts.maps[0].cells_hw == cells
    assert facts.normalisation == Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert facts.maps[0].channels == 16
    assert facts.maps[0].extra == {"dinov2": 1, "dinov3": 5, "clip": 1}.get(name, 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    (found,) = encoder.features(images)
    assert found.shape == (2, 16, *cells) and np.isfinite(found).all()
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "do_normalize": false}'
    )
    plain = open_encoder(EncoderRequest(source=str(tmp_path))).facts().normalisation
    assert plain == Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="the last features are learnt"):
        open_encoder(EncoderRequest(source=str(tmp_path), features=("layer1",)))


class Conv(torch.nn.Module):
    """What `timm.create_model` returns, as far as it is used."""

    def __init__(self) -> None:
        super().__init__()
        half = (0.5, 0.5, 0.5)
        self.pretrained_cfg = {"mean": half, "std": half, "input_size": (3, 64, 96)}
        self.conv = torch.nn.Conv2d(3, 8, 16, 16)

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image)


def test_models_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with timm's interface: the library needs torchvision."""

    def create_model(name: str, *, pretrained: bool, num_classes: int) -> Conv:
        assert pretrained and num_classes == 0
        if name != "conv":
            raise RuntimeError(f"Unknown model ({name})")
        return Conv()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))  # type: ignore[arg-type]
    encoder = open_encoder(EncoderRequest(source="timm:conv"))
    assert encoder.facts().input_hw == (64, 96) and encoder.facts().maps[0].cells_hw == (4, 6)
    assert encoder.facts().name == "timm:conv"
    with pytest.raises(UserError, match=r"timm cannot load cov with weights .*: download them"):
        open_encoder(EncoderRequest(source="timm:cov"))
    missing: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "timm", missing)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs timm: pip install timm"):
        open_encoder(EncoderRequest(source="timm:conv"))


def test_a_worker_answers_and_its_errors_arrive() -> None:
    with pytest.raises(UserError, match="limit -1: 0 or more"):
        Worker(Served, -1)
    with Worker(Served, 5) as worker:
        assert list(worker.stream("double", range(4))) == [0, 2, 4, 6]
        with pytest.raises(UserError, match="7 is too much"):
            worker.ask("double", 7)
        with pytest.raises(HeatError, match="the teacher failed: ZeroDivisionError"):
            worker.ask("divide", 0)
        assert worker.ask("double", 5) == 10
        with pytest.raises(HeatError, match=r"process died \(exit code -9\): out of memory\?"):
            worker.ask("die")
