"""Networks that start from the weights of others: what fits is taken, and reported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from supernet.checkpoint import CheckpointInfo, save_checkpoint, weights_file
from supernet.detr import Detr
from supernet.detr.sam_detr import SamDetr
from supernet.errors import CheckpointError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.network import Network
from supernet.train.transfer import Source, read_source, take_weights

from .command_line import fails, run
from .test_annotations import note, write
from .toy_detr import SMALL

TINY = ["--architecture", "pico", "--input-size", "64x96", "--epochs", 1, "--batch-size", 2]


def values(network: Network) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def source(network: Network, *names: str) -> Source:
    return Source(Path("other"), values(network), names or None)


@pytest.mark.parametrize("head", ["nms", "one-to-one"])
def test_class_rows_are_matched_by_name(unit: Architecture, head: str) -> None:
    """Of cat, dog and cow the network for horse, cow and cat keeps cow and cat, in its order."""
    unit = unit.with_(head=head)
    old, new = Detector(unit), Detector(unit)
    before, theirs = values(new), values(old)
    found = take_weights(source(old, "cat", "dog", "cow"), new, ("horse", "cow", "cat"))
    assert found.new_classes == ("horse",) and not found.complete
    assert not (found.other_shape or found.missing or found.left_over)
    after = new.state_dict()
    anchors = unit.num_anchors
    heads = ("units.head", "many") if head == "one-to-one" else ("units.head",)
    for part in [f"{name}.cls.{kind}" for name in heads for kind in ("weight", "bias")]:
        own, first, other = (
            x[part].reshape(anchors, 3, -1) for x in (after, before, theirs)
        )  # [A, K, ...]
        assert torch.equal(own[:, 0], first[:, 0])
        assert torch.equal(own[:, 1], other[:, 2]) and torch.equal(own[:, 2], other[:, 0])
    assert torch.equal(after["units.head.box.weight"], theirs["units.head.box.weight"])


def test_another_class_count(unit: Architecture) -> None:
    old, new = Detector(unit), Detector(unit.with_(num_classes=5))
    found = take_weights(source(old, "a", "b", "c"), new, ("z", "b", "y", "x", "a"))
    assert found.new_classes == ("z", "y", "x") and found.used == len(new.state_dict())
    own = new.state_dict()["units.head.cls.bias"].view(-1, 5)
    theirs = old.state_dict()["units.head.cls.bias"].view(-1, 3)
    assert torch.equal(own[:, [1, 4]], theirs[:, [1, 0]])


def test_without_names_class_outputs_are_taken_whole_or_start_anew(unit: Architecture) -> None:
    old, same, more = Detector(unit), Detector(unit), Detector(unit.with_(num_classes=5))
    assert take_weights(source(old), same, ("x", "y", "z")).complete
    before = values(more)
    found = take_weights(source(old), more, tuple("vwxyz"))
    assert found.other_shape == ("units.head.cls.bias", "units.head.cls.weight")
    assert found.new_classes == tuple("vwxyz")
    assert torch.equal(more.state_dict()["units.head.cls.weight"], before["units.head.cls.weight"])


def test_no_class_in_common(unit: Architecture) -> None:
    """As many classes, of other names: their outputs mean something else and start anew."""
    old, new = Detector(unit), Detector(unit)
    before = values(new)
    found = take_weights(source(old, "a", "b", "c"), new, ("x", "y", "z"))
    assert found.missing == ("units.head.cls.bias", "units.head.cls.weight")
    assert found.new_classes == ("x", "y", "z")
    assert torch.equal(new.state_dict()["units.head.cls.weight"], before["units.head.cls.weight"])


def test_two_classes_of_one_name_match_nothing(unit: Architecture) -> None:
    old, new = Detector(unit), Detector(unit)
    found = take_weights(source(old, "a", "a", "c"), new, ("c", "a", "b"))
    assert found.new_classes == ("a", "b")


def test_other_widths_are_reported(unit: Architecture) -> None:
    old, new = Detector(unit), Detector(unit.with_(widths=(32, 64, 64, 64), t2_blocks=2))
    found = take_weights(source(old, "a", "b", "c"), new, ("a", "b", "c"))
    assert any(key.startswith("units.s2_") for key in found.other_shape)
    assert any(key.startswith("units.tcm_t2_1") for key in found.missing)
    assert not found.left_over and not found.new_classes
    back = take_weights(source(new, "a", "b", "c"), old, ("a", "b", "c"))
    assert any(key.startswith("units.tcm_t2_1") for key in back.left_over)
    text = str(found)
    assert f"{found.used} tensors taken, {len(found.other_shape)} of another shape (" in text


def test_boxes_of_the_other_kind_begin_anew(unit: Architecture) -> None:
    old, new = Detector(unit), Detector(unit.with_(boxes="distributions"))
    found = take_weights(source(old, "a", "b", "c"), new, ("a", "b", "c"))
    assert found.other_shape == ("units.head.box.bias", "units.head.box.weight")
    assert not found.missing and not found.left_over


def test_detr_keeps_the_row_of_no_object() -> None:
    old, new = Detr(SMALL.with_(num_classes=3)), Detr(SMALL.with_(num_classes=2))
    take_weights(source(old, "a", "b", "c"), new, ("c", "x"))
    theirs, own = old.class_embed.bias, new.class_embed.bias
    assert own[0] == theirs[2] and own[2] == theirs[3] and own[1] != theirs[1]
    sam = SMALL.with_(family="sam-detr", num_classes=3)
    focal, other = SamDetr(sam), SamDetr(sam.with_(num_classes=1))
    found = take_weights(source(focal, "a", "b", "c"), other, ("b",))
    assert found.complete
    rows = focal.class_embed[0].get_parameter("weight"), other.class_embed[0]
    assert torch.equal(rows[1].get_parameter("weight")[0], rows[0][1])


def test_nothing_that_fits_is_refused(unit: Architecture) -> None:
    new = Detector(unit)
    for weights, first in (
        ({"a.weight": torch.ones(3)}, "0 of another shape, 1 of other names, first a.weight"),
        ({"units.head.box.bias": torch.ones(3)}, "1 of another shape, 0 of other names"),
        ({}, "first none"),
        ({"units.stem.conv1.bn.num_batches_tracked": torch.tensor(3)}, "fits in nothing"),
    ):
        with pytest.raises(CheckpointError, match=first):
            take_weights(Source(Path("x"), weights, None), new, ("a", "b", "c"))


def test_files_of_weights(unit: Architecture, tmp_path: Path) -> None:
    network = Detector(unit)
    wrapped = tmp_path / "ddp.pth"
    torch.save({"model": {f"module.{k}": v for k, v in values(network).items()}}, wrapped)
    foreign = tmp_path / "foreign.safetensors"
    save_file(values(network), foreign, metadata={"format": "pt"})
    for path in (wrapped, foreign):
        found = read_source(path)
        assert found.names is None and found.weights.keys() == network.state_dict().keys()
    ours = tmp_path / "run" / "train" / "weights.safetensors"
    info = CheckpointInfo(
        kind="detector", description=unit.to_json(), names=("a", "b", "c"), epoch=1, epochs=1
    )
    save_checkpoint(ours, values(network), info)
    assert weights_file(tmp_path / "run") == weights_file(ours.parent) == ours
    assert read_source(ours).names == ("a", "b", "c")

    for name, content, message in (
        ("none.safetensors", None, "no file"),
        ("none.pth", None, "no file"),
        ("cut.safetensors", ours.read_bytes()[:200], "truncated or no safetensors"),
        ("cut.pth", b"xx", "no checkpoint of weights alone"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_source(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"has no train/weights\.safetensors"):
        weights_file(tmp_path)


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of weights alone"):
        read_source(tmp_path / "bomb.pth")


def test_train_starts_from_another_workspace(tmp_path: Path) -> None:
    """Other classes, another order; another file is another run."""
    first = write(tmp_path / "a", [note(), note(2, 7, bbox=[60, 5, 20, 20])])
    names = [{"id": 3, "name": "horse"}, {"id": 7, "name": "cat"}, {"id": 8, "name": "cow"}]
    second = write(tmp_path / "b", [note(), note(2, 7, bbox=[60, 5, 20, 20])], categories=names)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("train", "--data", first, *TINY, "--out", one)[0] == 0
    command = ("train", "--data", second, *TINY, "--out", two)
    code, result, errors = run(*command, "--weights", one)
    assert code == 0, errors
    assert result["weights"]["new_classes"] == ["horse", "cow"]
    assert not result["weights"]["other_shape"] and not result["weights"]["missing"]
    file = one / "train" / "weights.safetensors"
    line = f"weights of {file}: {result['weights']['used']} tensors taken, 0 of another shape, "
    assert errors.count(line) == 1 and "2 classes new (horse, cow)" in errors
    recorded = json.loads((two / "run.json").read_text())["stages"]["train"]["weights"]
    assert recorded == result["weights"]
    assert run(*command, "--weights", one)[0] == 0  # finished, and kept
    figure = two / "train" / "first-batches.jpg"
    assert figure.exists()
    figure.write_bytes(b"of the run that is kept")
    other = tmp_path / "other.pth"
    torch.save(read_source(two / "train" / "weights.safetensors").weights, other)
    for more in ([], ["--weights", other]):
        for resume in ([], ["--resume"]):
            line = fails(2, *command, *more, *resume)
            assert "(other weights to start from): --restart replaces it" in line
            assert figure.read_bytes() == b"of the run that is kept"
    for own in (two, two / "train" / "weights.safetensors"):
        line = fails(2, *command, "--weights", own, "--restart")
        assert f"--weights {own}: training replaces" in line and "give another --out" in line


def test_runs_of_versions_that_did_not_record_their_start_are_resumed(tmp_path: Path) -> None:
    root = write(tmp_path / "a", [note(), note(2, 7, bbox=[60, 5, 20, 20])])
    first, second = tmp_path / "one", tmp_path / "two"
    assert run("train", "--data", root, *TINY, "--out", first)[0] == 0
    command = ("train", "--data", root, *TINY, "--weights", first, "--out", second)
    assert run(*command)[0] == 0
    state = torch.load(second / "train" / "state.pt", weights_only=True)
    assert len(state["fingerprint"]["start"]["weights"]) == 64
    del state["fingerprint"]["start"]
    torch.save(state, second / "train" / "state.pt")
    assert run(*command)[0] == 0
