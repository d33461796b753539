"""DETR's family through the commands of HeatDETR: train, eval, export, detect; adopt; MTKD."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.attention import ActAttention
from supernet.detr import Detr
from supernet.detr.published import load_published
from supernet.errors import CheckpointError
from tests.command_line import fails, run
from tests.toy_detr import SMALL


def heat(*arguments: object) -> dict[str, Any]:
    """Run a command that succeeds; return its JSON."""
    code, result, errors = run(*arguments)
    assert code == 0, errors
    return result


TINY = SMALL.with_(frozen=False, dropout=0.0, num_classes=3, dc5=True)


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which a DETR was trained for an epoch; its scores are made to differ."""
    root = tmp_path_factory.mktemp("detr")
    (root / "tiny.json").write_text(TINY.to_json())
    heat(
        "train", "--data", shapes, "--architecture", root / "tiny.json", "--epochs", 1,
        "--eval-every", 0, "--out", root,
    )  # fmt: skip
    return root


@pytest.mark.parametrize("family", ["detr", "sam-detr"])
def test_they_train_and_resume(family: str, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    file.write_text(TINY.with_(family=family, attention="enact").to_json())
    common = ("train", "--data", shapes, "--architecture", file, "--recipe", family)
    options = ("--batch-size", 8, "--out", tmp_path)
    first = heat(*common, "--epochs", 1, *options)
    assert first["epochs"] == 1 and first["skipped_steps"] == 0
    longer = heat(*common, "--epochs", 2, "--resume", *options)
    assert longer["epochs"] == 2
    found = heat("eval", "--out", tmp_path)
    assert found["images"] == 8 and 0 <= found["ap"] <= 1
    assert Path(heat("report", "--out", tmp_path)["report"]).exists()


@pytest.mark.parametrize("attention", ["exact", "act", "pool"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_one_checkpoint_is_deployed_with_any_attention(
    trained: Path, shapes: Path, attention: str, format: str
) -> None:
    done = heat(
        "export", "--format", format, "--attention", attention, "--window", 4, "--rounds", 16,
        "--out", trained,
    )  # fmt: skip
    assert done["trained"] and done["parity_max_box_px"] < 0.1
    card = json.loads((Path(done["bundle"]) / "card.json").read_text())
    assert card["architecture"]["attention"] == attention
    assert card["macs"] > 1e6 and card["decode"]["kind"] == "set"
    if attention == "act":
        bounds = card["architecture"]["clusters"]
        assert len(bounds) == TINY.encoder_layers == len(card["clusters"]["bounds"])
        assert card["clusters"]["clusterings"] == 8 * 4 * TINY.encoder_layers
        assert 0 <= card["clusters"]["overflows"] <= 0.1 * card["clusters"]["clusterings"]
    found = heat("detect", done["bundle"], shapes / "val", "--save", trained / "found")
    assert found["images"] == 8


def test_several_maps(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    several = TINY.with_(family="sam-detr", dc5=False, group_norm=True, levels=3, decoder_layers=3)
    file.write_text(several.to_json())
    heat("train", "--data", shapes, "--architecture", file, "--epochs", 1, "--out", tmp_path)
    done = heat("export", "--format", "onnx", "--out", tmp_path)
    assert done["trained"] and done["parity_max_box_px"] < 0.1
    weights = tmp_path / "train" / "weights.safetensors"
    taught = ("--recipe", "mtkd", "--weights", weights, "--out", tmp_path / "taught")
    said = fails(2, "train", "--data", shapes, "--architecture", file, *taught)
    assert "deformable" in said


@pytest.mark.parametrize("attention", ["act", "pool"])
def test_engines_are_built_ahead_of_time(trained: Path, attention: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    done = heat(
        "export", "--format", "tensorrt", "--gpu", 8.6, "--precision", "f32", "--attention",
        attention, "--window", 4, "--out", trained,
    )  # fmt: skip
    assert done["executed"] and done["measured_fps"] is None


def test_attention_at_evaluation(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of the encoder attends by clusters, with as many hash functions as asked for."""
    attend, hashes = ActAttention.attend, Counter[int]()

    def counted(core: ActAttention, *given: Any) -> Tensor:
        hashes[len(core.hash.directions_LE)] += 1
        return attend(core, *given)

    monkeypatch.setattr(ActAttention, "attend", counted)
    for rounds in (32, 16):
        hashes.clear()
        found = heat("eval", "--attention", "act", "--rounds", rounds, "--out", trained)
        assert found["images"] == 8 and hashes == {rounds: 8 * TINY.encoder_layers}
    refused = fails(2, "eval", "--attention", "enact", "--out", trained)
    assert "core.score" in refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--raw",), "one image at a time"),
        (("--precision", "int8"), "exported in f32"),
        (("--precision", "bf16", "--format", "openvino", "--attention", "act"), "hash keys"),
        (("--attention", "pool"), "--window is needed"),
        (("--attention", "act", "--rounds", 40), "rounds 40"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    trained: Path, options: tuple[Any, ...], message: str
) -> None:
    assert message in fails(2, "export", *options, "--out", trained)


def test_mtkd_trains_a_trained_one(trained: Path, shapes: Path, tmp_path: Path) -> None:
    start = ("train", "--data", shapes, "--architecture", trained / "tiny.json")
    options = ("--recipe", "mtkd", "--epochs", 1, "--eval-every", 0, "--out", tmp_path)
    assert "--weights" in fails(2, *start, *options)
    weights = trained / "train" / "weights.safetensors"
    heat(*start, *options, "--rounds", 8, "--weights", weights)
    (line,) = (tmp_path / "train" / "metrics.csv").read_text().splitlines()[1:]
    header = (tmp_path / "train" / "metrics.csv").read_text().splitlines()[0].split(",")
    terms = dict(zip(header, line.split(","), strict=True))
    assert {"classes", "l1", "giou", "distance"} <= terms.keys() and float(terms["distance"]) >= 0


def test_options_of_other_networks_are_refused(shapes: Path, tmp_path: Path) -> None:
    start = ("train", "--data", shapes, "--epochs", 1, "--out", tmp_path)
    assert "of HeatDETR" in fails(2, *start, "--architecture", "detr-s", "--head", "one-to-one")
    assert "is no DETR" in fails(2, *start, "--architecture", "pico", "--attention", "act")
    assert "--recipe mtkd is for DETR" in fails(
        2, *start, "--architecture", "pico", "--recipe", "mtkd"
    )
    assert "unknown preset" in fails(2, *start, "--architecture", "detr")


def test_published_checkpoints_are_adopted(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    published = Detr(TINY.with_(num_classes=91))
    nn.init.normal_(published.class_embed.bias)
    file = tmp_path / "published.pth"
    torch.save({"model": published.state_dict()}, file)
    common = ("--architecture", tmp_path / "tiny.json", "--out", tmp_path)
    done = heat("adopt", file, *common, "--data", shapes)
    assert done["classes"] == 4
    assert heat("eval", "--data", shapes, "--out", tmp_path)["images"] == 8
    assert Path(heat("report", "--out", tmp_path)["report"]).exists()
    ours = load_published(file, TINY, [5, 2])
    assert torch.equal(ours.class_embed.bias, published.class_embed.bias[[5, 2, 91]])
    (tmp_path / "train" / "best.safetensors").write_bytes(b"of the training before")
    assert heat("adopt", file, *common)["classes"] == 91
    assert not (tmp_path / "train" / "best.safetensors").exists()


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = Detr(TINY).state_dict()
    weights["extra"] = weights.pop("query_embed.weight")
    weights["input_proj.bias"] = torch.zeros(7)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        load_published(tmp_path / "other.pth", TINY)
    for said in ("1 missing (query_embed.weight)", "1 left over (extra)", "(input_proj.bias)"):
        assert said in str(caught.value)
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name, said in (("none.pth", "no file"), ("broken.pth", "no checkpoint")):
        with pytest.raises(CheckpointError, match=said):
            load_published(tmp_path / name, TINY)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_published(tmp_path / "list.pth", TINY)
    torch.save(Detr(TINY).state_dict(), tmp_path / "few.pth")
    with pytest.raises(CheckpointError, match="the data has 17"):
        load_published(tmp_path / "few.pth", TINY, [17])
