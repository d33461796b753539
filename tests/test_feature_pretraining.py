"""A backbone that learns a teacher's features: what it is shown, what is kept, what it gives."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from supernet.checkpoint import read_info
from supernet.data.unlabelled import UnlabelledImages, find_images
from supernet.errors import DataError, HeatError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.network import find_architecture
from supernet.train import feature_views
from supernet.train.feature_cache import FeatureCache
from supernet.train.feature_key import CacheKey, keyed, within
from supernet.train.feature_student import FeatureStudent, TeacherMap, lessons, seen_through
from supernet.train.feature_task import FeatureTask
from supernet.train.feature_views import FeatureViews, LiveTarget, teacher_views
from supernet.train.loop import run_task
from supernet.train.pretraining import load_backbone
from supernet.train.recipes import FEATURES, changed
from supernet.train.running import Running

from .command_line import fails, run
from .toy_encoders import STRIDE, write_encoder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth images in nested folders, one of them broken, one that is no image."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for index in range(7):
        folder = root / ("a" if index % 2 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (120, 80 + 4 * index), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    (root / "a" / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("no image")
    return root


class Means:
    """A teacher whose features are mean colours over 16x16 pixels."""

    def __init__(self, stop_after: int | None = None, bad: float = 0.0) -> None:
        self.batches, self.stop_after, self.bad = 0, stop_after, bad

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        for batch in images:
            if self.batches == self.stop_after:
                raise KeyboardInterrupt
            self.batches += 1
            b, h, w, _ = batch.shape
            cells = batch.reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE, 3).mean((2, 4))
            yield [(cells.transpose(0, 3, 1, 2) / 255 + self.bad).astype(np.float16)]


def make_cache(folder: Path, root: Path, *, views: int = 1, teacher: Means | None = None) -> Any:
    images = find_images([root])
    key = CacheKey(
        teacher="means",
        digest="0",
        input_hw=(128, 128),
        normalisation="none",
        maps=(("colours", 3, 8, 8),),
        images="",
        num_images=0,
        views=views,
    )
    cache = FeatureCache(folder, keyed(key, images), images).check(restart=False)
    cache.fill(teacher or Means(), teacher_views(images, cache.key, cache.present()))
    return cache


def test_images_of_folders_and_of_detection_sets(photos: Path, shapes: Path) -> None:
    found = find_images([photos, photos / "a"])
    assert len(found.paths) == 8 and found.paths[-1].name == "6.png"
    training = find_images([shapes])
    assert len(training.paths) == 24 and {path.parent.name for path in training.paths} == {"train"}
    assert find_images([photos]).digest == found.digest
    assert found.first(3).paths == (found.paths[0], found.paths[2], found.paths[5])
    for wrong, words in (("none", "no such folder"), ("b/c/d", "no image in it")):
        (photos / "b/c/d").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=words):
            find_images([photos / wrong])


@pytest.mark.parametrize("views", [1, 3])
def test_the_student_is_taught_the_features_of_what_it_sees(
    photos: Path, tmp_path: Path, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its target is the mean colours of its own image, however that was cut and mirrored."""
    monkeypatch.setattr(feature_views, "recoloured", lambda pixels, *_: pixels)
    cache = make_cache(tmp_path / "features", photos, views=views)
    assert len(cache.usable) == 7 and len(cache.broken) == 1
    source = FeatureViews(cache, (128, 128), FEATURES)
    mirrored, errors, others = 0, [], []
    for epoch in range(4):
        for index in range(len(source)):
            pixels, target = source.sample(epoch, index)
            mirrored += bool(target.box[0] > target.box[2])
            map_BChw = target.maps[0].float()[None]
            found = seen_through(map_BChw, target.box[None], (8, 8))[0].permute(1, 2, 0)
            own = pixels.numpy().reshape(8, 16, 8, 16, 3).mean((1, 3)) / 255
            inner = (found.numpy() - own)[1:-1, 1:-1]  # the letterbox's padding is near the border
            errors.append(float(np.abs(inner).mean()))
            others.append(float(np.abs(found.numpy()[:, ::-1] - own).mean()))
    assert 4 < mirrored < 24
    # Blurred as a coarser map is, but not of another place.
    assert np.mean(errors) < 0.15 * np.mean(others), (np.mean(errors), np.mean(others))


def test_a_box_with_swapped_sides_mirrors() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    whole = seen_through(ramp, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (4, 8))
    torch.testing.assert_close(whole, ramp)
    mirrored = seen_through(ramp, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), (4, 8))
    torch.testing.assert_close(mirrored, ramp.flip(3))
    part = seen_through(ramp, torch.tensor([[0.5, 0.0, 1.0, 1.0]]), (4, 4))
    torch.testing.assert_close(part, ramp[..., 4:])


def test_levels_learn_the_map_of_the_nearest_stride() -> None:
    found = [lesson.name for lesson in lessons([TeacherMap(8, 16.0), TeacherMap(16, 32.0)])]
    assert found == ["out-0", "out-1", "l2-0", "l3-1", "l4-1"]
    assert [o.name for o in lessons([TeacherMap(8, 14.0)])] == ["out-0", "l2-0", "l3-0", "l4-0"]


def test_an_interrupted_computation_goes_on(photos: Path, tmp_path: Path) -> None:
    whole = make_cache(tmp_path / "whole", photos, views=3)
    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path / "part", photos, views=3, teacher=Means(stop_after=2))
    with (tmp_path / "part/map-0.f16").open("ab") as file:
        file.write(b"half a row")
    teacher = Means()
    part = make_cache(tmp_path / "part", photos, views=3, teacher=teacher)
    assert teacher.batches == 1  # of 24 views in eights, sixteen were kept
    for name in ("map-0.f16", "cache.json"):
        assert (part.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    idle = Means()
    make_cache(tmp_path / "part", photos, views=3, teacher=idle)
    assert idle.batches == 0 and part.usable == whole.usable
    (part.folder / "map-0.f16").unlink()
    make_cache(tmp_path / "part", photos, views=3, teacher=idle)
    assert idle.batches == 3


def test_a_cut_list_of_broken_images_loses_none(photos: Path, tmp_path: Path) -> None:
    """A kill may leave half a name, and names need not be UTF-8."""
    (photos / os.fsdecode(b"\xff\xe2\x80\xa8.jpg")).write_bytes(b"no image")
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "broken.txt").write_bytes(b"/photos/a/bro")
    cache = make_cache(folder, photos)
    found = [name for name in cache.images.names if name in cache.broken]
    assert len(found) == 2 and len(cache.usable) == len(cache.images.paths) - 2
    assert not (folder / "broken.txt").read_bytes().startswith(b"/photos/a/bro")


def test_images_that_were_moved_stay_broken(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were listed by their whole path, and their rows taken for features elsewhere."""
    (photos / "no.jpg").write_bytes(b"no image")
    cache = make_cache(tmp_path / "features", photos)
    shutil.move(photos, tmp_path / "moved")
    idle = Means()
    again = make_cache(tmp_path / "features", tmp_path / "moved", teacher=idle)
    assert idle.batches == 0 and again.usable == cache.usable
    assert len(again.usable) < len(again.images.paths)


def test_what_a_cache_refuses(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"means returns features \(colours\) that are not finite"):
        make_cache(tmp_path / "nan", photos, teacher=Means(bad=float("nan")))
    with pytest.raises(DataError, match="not finite, or beyond half precision"):
        make_cache(tmp_path / "large", photos, teacher=Means(bad=float("inf")))
    cache = make_cache(tmp_path / "features", photos)
    with pytest.raises(HeatError, match=r"other images, another number of --views\): --restart"):
        make_cache(tmp_path / "features", photos / "b", views=2)
    (tmp_path / "features/cache.json").write_text("{")
    with pytest.raises(HeatError, match=r"cache.json cannot be read .*: delete "):
        cache.check(restart=False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(HeatError, match="GB are free; a smaller --cache-gb keeps fewer"):
        make_cache(tmp_path / "full", photos)
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    for index in range(3):
        (lonely / f"{index}.jpg").write_bytes(b"no image")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"3 of 3 images cannot be decoded .*at least 2"):
        make_cache(tmp_path / "broken", lonely)


def test_a_disk_that_fills_keeps_what_is_there(photos: Path, tmp_path: Path) -> None:
    """The limit of a file's size stands for a full disk: the system refuses the same call."""
    resource = pytest.importorskip("resource")
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(HeatError, match=r"cannot write .*of 24 features are kept, the same co"):
            make_cache(tmp_path / "features", photos, views=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    whole = make_cache(tmp_path / "whole", photos, views=3)
    part = make_cache(tmp_path / "features", photos, views=3)
    assert (part.folder / "map-0.f16").read_bytes() == (whole.folder / "map-0.f16").read_bytes()


def test_a_small_cache_keeps_fewer_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [photos / ("a" if i % 2 else "b/c") / f"{i}.png" for i in range(7)]
    nothing = [photos / "a/broken.jpg", *(photos / f"a/{i}.png" for i in (7, 9))]
    images = UnlabelledImages((photos,), (*paths, *nothing))
    key = CacheKey(
        teacher="t", digest="", input_hw=(64, 64), normalisation="", maps=(("m", 1000, 10, 10),),
        images="", num_images=0, views=1,
    )  # fmt: skip
    assert within(images, key, 1.0) == (images, None)
    kept, others = within(images, key, 0.001)
    assert [path.stem for path in kept.paths] == ["0", "2", "4", "6", "7"]
    assert others is not None and [path.stem for path in others.paths] == list("135")
    line = capsys.readouterr().err
    assert "all 10 images take 0.002 GB: those of 5 fit into --cache-gb 0.001 and are kept" in line
    assert "those of 3 are computed anew in every epoch; 2 cannot be decoded" in line
    with pytest.raises(HeatError, match=r"features of an image take 0.2 MB, so 1 fit"):
        within(images, key, 0.0003)


def test_features_that_are_not_kept(photos: Path, tmp_path: Path, unit: Architecture) -> None:
    """They are those of the view that is shown; a file that cannot be decoded shows another."""
    cache = make_cache(tmp_path / "features", photos / "b", views=2)
    found = find_images([photos / "a"])
    assert cache.key.num_images == 4 and len(found.paths) == 4
    student = FeatureStudent(unit.with_(input_size=(64, 64)), [TeacherMap(3, 16.0)])
    teacher = Means()
    task = FeatureTask(student, cache, found, teacher)
    assert task.num_images == 8 and task.digest != cache.key.images
    views = task.source(FEATURES)
    samples = [views.sample(0, index) for index in range(8)]
    live = [target for _, target in samples if isinstance(target, LiveTarget)]
    assert len(live) == 3  # of the four files one is broken
    images, targets = torch.stack([image for image, _ in samples]), [t for _, t in samples]
    _, known = task.prepare((images, targets), FEATURES)
    assert teacher.batches == 1 and known[0] is targets[0]
    for target, before in zip(known, targets, strict=True):
        assert target.maps[0].shape == (3, 8, 8) and target.maps[0].dtype == torch.float16
        if isinstance(before, LiveTarget):
            cells = before.view_HW3.float().reshape(8, 16, 8, 16, 3).mean((1, 3)) / 255
            torch.testing.assert_close(
                target.maps[0].float(), cells.permute(2, 0, 1), atol=2e-3, rtol=0
            )
            assert torch.equal(target.box, before.box)
    task.loss(task.model(images), known, FEATURES)
    with pytest.raises(DataError, match=r"not finite, or beyond half precision, for .*1\.png"):
        FeatureTask(student, cache, found, Means(bad=float("nan"))).prepare(
            (images, targets), FEATURES
        )


@pytest.mark.parametrize("kept", ["", "b"])
def test_a_resumed_run_ends_in_the_same_weights(
    photos: Path, tmp_path: Path, unit: Architecture, kept: str
) -> None:
    cache = make_cache(tmp_path / "features", photos / kept, views=2)
    others = find_images([photos / "a"]) if kept else None
    config = changed(FEATURES, epochs=3, batch_size=4)

    def train(folder: str, stop: int | None = None, resume: bool = False) -> dict[str, Any]:
        torch.manual_seed(0)
        student = FeatureStudent(unit.with_(input_size=(64, 64)), [TeacherMap(3, 16.0)])

        def on_epoch(epoch: int, _: dict[str, float]) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        running = Running(resume=resume, workers=0, threads=1)
        task = FeatureTask(student, cache, others, Means())
        run_task(task, config, tmp_path / folder, running, on_epoch=on_epoch)
        return dict(student.state_dict())

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("part", stop=1)
    part = train("part", resume=True)
    assert all(torch.equal(whole[key], part[key]) for key in whole)


def test_from_images_to_a_detector(photos: Path, shapes: Path, tmp_path: Path) -> None:
    encoder, out = write_encoder(tmp_path / "toy.onnx"), tmp_path / "run"
    learn: list[object] = [
        "pretrain", "--teacher", encoder, "--data", photos, "--data", shapes, "--teacher-norm",
        "none", "--architecture", "pico", "--input-size", "64x64", "--output-stride", 16,
        "--batch-size", 8, "--learning-rate", 3e-3, "--workers", 0, "--out", out,
    ]  # fmt: skip
    code, result, errors = run(*learn, "--epochs", 8)
    assert code == 0, errors
    assert result["images"] == 31 and result["broken_images"] == 1
    assert "1 of 32 images cannot be decoded" in errors and "broken.txt" in errors
    assert result["cosines"].keys() == {"out-0", "l2-0", "l3-0", "l4-0"}
    assert result["cosines"]["out-0"] > 0.3, result
    drawn = (out / "pretrain" / "learning.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in result["cosines"]), "lines of the figure"
    assert json.loads((out / "run.json").read_text())["stages"]["pretrain"]["data"][1] == str(
        shapes
    )

    (tmp_path / "few" / "thin").mkdir(parents=True)
    find_architecture("pico").with_(name="cut").save(tmp_path / "few" / "thin/architecture.json")
    few = [*learn[:-1], tmp_path / "few", "--epochs", 1, "--cache-gb", 2e-6]
    preset = few.index("--architecture")
    code, result, errors = run(*few[:preset], *few[preset + 2 :])
    assert code == 0 and result["computed_each_epoch"] > 10, errors
    described = read_info(Path(result["checkpoint"])).description
    assert Architecture.from_json(described).name == "cut", "the thinned network is the default"
    assert "are computed anew in every epoch" in errors and result["cache_gb"] <= 2e-6

    other = write_encoder(tmp_path / "other.onnx", scale=2.0)
    learn[2] = other
    line = fails(2, *learn, "--epochs", 1)
    assert "holds features of something else (another teacher (toy.onnx))" in line
    weights = out / "pretrain/weights.safetensors"
    code, trained, errors = run(
        "train", "--data", shapes, "--architecture", "pico", "--input-size", "64x64", "--epochs", 1,
        "--output-stride", 16, "--eval-every", 0, "--backbone", weights, "--out", out,
    )  # fmt: skip
    assert code == 0, errors
    loaded = trained["backbone"]
    assert all(key.startswith("projections.") for key in loaded["left_over"])
    assert not loaded["other_shape"]
    assert all(key.startswith(("units.tcm", "units.head", "many.")) for key in loaded["missing"])

    code, result, errors = run(*learn, "--epochs", 1, "--restart")
    assert code == 0 and result["teacher"] == str(other), errors


@pytest.mark.parametrize("block", ["cw", "oa"])
def test_a_supernet_takes_the_neck_too(tmp_path: Path, unit: Architecture, block: Any) -> None:
    from supernet.checkpoint import CheckpointInfo, save_checkpoint

    own = unit.with_(blocks=("R", "W", "R", "W"), global_block=block)
    student = FeatureStudent(own, [TeacherMap(3, 16.0)])
    path = tmp_path / "backbone.safetensors"
    info = CheckpointInfo(kind="backbone", description=own.to_json(), names=(), epoch=1, epochs=1)
    save_checkpoint(path, student.state_dict(), info)
    space = SearchSpace(
        template=unit.with_(blocks=("R", "R", "R", "R")), positions=(1, 1, 1, 1), global_choice=True
    )
    supernet = Supernet(space)
    loaded = load_backbone(path, supernet)
    assert all(key.startswith("projections.") for key in loaded.left_over)
    taken = supernet.state_dict()
    for place in ("s4_global", "sam4_global", "scm_global1", "scm_global2"):
        prefix = f"trunk.units.{place}."
        keys = [key for key in student.state_dict() if key.startswith(prefix)]
        assert keys
        for key in keys:
            target = f"units.{place}.blocks.{block}.{key.removeprefix(prefix)}"
            assert torch.equal(taken[target], student.state_dict()[key])


def test_options_that_say_nothing_or_too_much(photos: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "toy.onnx")
    about = ("pretrain", "--data", photos, "--out", tmp_path / "run")
    assert "--views is about a teacher" in fails(2, *about, "--views", 2)
    assert "one folder, without --teacher" in fails(2, *about, "--data", photos / "a")
    learn = (*about, "--teacher", encoder)
    assert "--views 0: 1 to 100" in fails(2, *learn, "--views", 0)
    assert "--cache-gb 0.0: a number above 0" in fails(2, *learn, "--cache-gb", 0)
    assert "--cache-gb inf: a number above 0" in fails(2, *learn, "--cache-gb", "inf")
    assert "--teacher-size 64: HxW is needed" in fails(2, *learn, "--teacher-size", 64)
    assert "--mean and --std: both" in fails(2, *learn, "--mean", 0.5, 0.5, 0.5)
    flat = ("--mean", 0.5, 0.5, 0.5, "--std", 0, 1, 1)
    assert "numbers above 0" in fails(2, *learn, *flat)
    assert "timm" in fails(2, *about, "--teacher", "timm:resnet18")
