"""What a training says when it cannot go on, or does not learn."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import supernet.train.loop as training
import supernet.train.task as task
from supernet.checkpoint import read_info
from supernet.data.augment import AugmentConfig
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.errors import DataError, HeatError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.distributed import Group
from supernet.train.loop import fit
from supernet.train.not_learning import signs
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running
from tests.conftest import UNIT
from tests.short_training import CONFIG, first_images, weights


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 9)


def test_memory_that_does_not_suffice(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Detector.forward

    def scarce(self: Detector, images: torch.Tensor) -> object:
        if len(images) > 3:  # three of the last batch of an epoch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, images)

    monkeypatch.setattr(Detector, "forward", scarce)
    config = replace(CONFIG, batch_size=8)
    for accumulate, takes in ((1, 4), (3, 12)):
        said = f"--batch-size 8: 2 fits, and with --accumulate {takes} takes"
        with pytest.raises(HeatError, match=said):
            fit(Detector(small), data, replace(config, accumulate=accumulate), tmp_path)


def test_more_processes_than_images_are_refused(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "joined", lambda: contextlib.nullcontext(Group(0, 3)))
    with pytest.raises(UserError, match=r"^2 training images for 3 processes: .*node 2 at most$"):
        fit(Detector(small), data.of(data.records[:2]), replace(CONFIG, batch_size=6), tmp_path)


def test_steps_without_finite_loss_are_skipped(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Detector.forward
    calls = iter(range(100))

    def sometimes(self: Detector, images: torch.Tensor) -> object:
        if next(calls) == 1:  # an overflow in the middle of the network
            for norm in self.units["stem"].modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm(torch.full((2, norm.num_features, 2, 2), torch.nan))
            return tuple(torch.nan * maps for maps in real(self, images))
        return real(self, images)

    monkeypatch.setattr(Detector, "forward", sometimes)
    result = fit(Detector(small), data, replace(CONFIG, epochs=1), tmp_path)
    assert result.skipped_steps == 1
    saved = weights(result.checkpoint)
    assert all(bool(torch.isfinite(value).all()) for value in saved.values())


def test_endless_nan_stops_the_run(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = task.training_loss
    nan = {"classes": torch.tensor(float("nan"))}
    monkeypatch.setattr(
        task, "training_loss", lambda *a: replace(found := real(*a), terms={**found.terms, **nan})
    )
    monkeypatch.setattr(training, "MAX_BAD_STEPS", 2)
    with pytest.raises(HeatError, match="without a finite loss"):
        fit(Detector(small), data, CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_image_is_named(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    records = (*data.records[:3], replace(data.records[3], path=broken))
    with pytest.raises(DataError, match=r"broken\.jpg"):
        fit(Detector(small), replace(data, records=records), CONFIG, tmp_path / "run")


def test_a_full_disk_leaves_the_last_epoch_whole(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch cannot be written: one clear error, and the first is kept."""
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "weights" in self.name and (tmp_path / "weights.safetensors").exists():
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        fit(Detector(small), data, CONFIG, tmp_path)
    assert read_info(tmp_path / "weights.safetensors").epoch == 1
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["events.jsonl", "metrics.csv", "state.pt", "weights.safetensors"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(1.0, 0.5, 0.0), (0.8, 0.4, None), (0.6, 0.3, 0.02)], []),
        ([(1.0, 0.5, None), (1.0, 0.5, None), (1.0, 0.49, None)], ["the loss has not fallen"]),
        ([(1.0, 0.0, None), (0.5, 0.0, None), (0.3, 0.0, None)], ["no box was assigned"]),
        ([(1.0, 0.5, 0.0), (0.5, 0.3, 0.0), (0.3, 0.2, 0.0)], ["AP is 0.0000"]),
        ([(1.0, 0.5, 0.0), (1.0, 0.5, 0.0), (1.0, 0.5, 0.0)], ["the loss has", "AP is"]),
    ],
)
def test_a_training_that_does_not_learn_is_named(
    rows: list[tuple[float, float, float | None]], said: list[str]
) -> None:
    history = [
        {"classes": classes, "boxes": boxes} | ({} if ap is None else {"ap": ap})
        for classes, boxes, ap in rows
    ]
    found = signs(history, ("classes", "boxes"), planned_epochs=9)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))
    assert signs(history[:2], ("classes", "boxes"), 9) == []
    late = [*history[:-1], {**history[-1], "unlabelled_classes": 5.0}]
    terms = ("classes", "boxes", "unlabelled_classes")
    assert signs(late, terms, 9) == found, "a term that came later is no rise"
    assert signs([*history, history[-1]], ("classes", "boxes"), 9) == [], "said once"


def test_a_run_that_does_not_learn_says_so(shapes: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing."""
    data = load_split(shapes, "train")
    network = Detector(UNIT.with_(num_classes=data.num_classes, input_size=(96, 128)))
    still = AugmentConfig(
        flip=0, scale=(1.0, 1.0), shift=0, shifted=0, brightness=0, contrast=0, saturation=0
    )
    config = TrainConfig(epochs=3, learning_rate=1e-12, ema_decay=0.0, augment=still)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        fit(network, data, config, tmp_path / "run", Running(workers=0))
    assert "warning: after 3 epochs the loss has not fallen" in errors.getvalue()
    assert "not learning" in (tmp_path / "run" / "events.jsonl").read_text()
