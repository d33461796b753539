"""Fixtures: data the project makes itself, and the real sets where they lie beside the checkout."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import deploy.teachers.looking
from latency_tables.models import randomise
from supernet.data.shapes import draw, make_shapes
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image
from tests.brief import measure_briefly
from tests.bundles import export
from tests.command_line import run
from tests.no_network import guard
from tests.workspaces import thin_by_estimate

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

UNIT = Architecture(
    name="unit",
    widths=(32, 32, 64, 64),
    blocks=("RS", "W", "RSW", "W"),
    num_classes=3,
    t1_blocks=1,
    t2_blocks=1,
    input_size=(128, 192),
)
"""The spec's unit-test size (section 12)."""


def pytest_configure(config: pytest.Config) -> None:
    """Let interrupts through, and measure roughly: tests are about what follows from a number.

    Connections to other machines are refused, unless tests that need a network are asked for.

    One thread: two, on cores that others use too, wait for each other most of the time.
    """
    if "network" not in config.option.markexpr.replace("not network", ""):
        guard()
    os.environ.setdefault("HEAT_PROCESSES", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # Tests interrupt processes; those of a job in the background would ignore it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _alike() -> Iterator[None]:
    """Let no test depend on what another left: its random numbers, its number of threads."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _roughly() -> Iterator[None]:
    """Let this process measure briefly."""
    with pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch.setattr)
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, train=24, val=8, seed=0)
    return root


@pytest.fixture
def unit() -> Architecture:
    return UNIT


@pytest.fixture
def network(unit: Architecture) -> Detector:
    torch.manual_seed(0)
    network = Detector(unit.with_(input_size=(96, 128))).eval()
    randomise(network)
    return network


@pytest.fixture
def images() -> list[Image]:
    """Four drawn images."""
    rng = np.random.default_rng(3)
    return [draw(rng).pixels for _ in range(4)]


@pytest.fixture
def bundle(network: Detector, images: list[Image], tmp_path: Path) -> Path:
    """A bundle of an untrained network."""
    return export(network, tmp_path / "bundle", images[:2], "openvino").folder


@pytest.fixture
def small(unit: Architecture) -> Architecture:
    """A network with each operator, for four classes."""
    return unit.with_(input_size=(96, 128), num_classes=4, blocks=("R", "S", "RW", "W"))


@pytest.fixture
def smallest(unit: Architecture) -> Architecture:
    """The quickest network to train, for four classes."""
    return unit.with_(input_size=(64, 96), num_classes=4, blocks=("R", "R", "R", "R"))


@pytest.fixture(scope="session")
def thinned_by_estimate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("thinned") / "run"
    thin_by_estimate(out)
    return out


@pytest.fixture
def thinned(thinned_by_estimate: Path, tmp_path: Path) -> Path:
    """Return a workspace of one's own with a thinned network that nobody trained."""
    return shutil.copytree(thinned_by_estimate, tmp_path / "run")


@pytest.fixture(scope="session")
def trained_preset(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    tiny = ["--input-size", "96x128", "--epochs", 1, "--eval-every", 0]
    preset = ["--architecture", "pico", *tiny]
    code, _, errors = run("train", "--data", shapes, *preset, "--out", out)
    assert code == 0, errors
    return out


@pytest.fixture
def trained(trained_preset: Path, tmp_path: Path) -> Path:
    """Return a workspace of one's own with a trained preset, in which nothing was thinned."""
    return shutil.copytree(trained_preset, tmp_path / "run")


class _Here:
    """Stands for a worker process, which takes seconds to start: the teacher runs in this one."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        self.made = make(*arguments)

    def ask(self, method: str, *arguments: object) -> object:
        return getattr(self.made, method)(*arguments)

    def stream(self, method: str, inputs: Iterable[object]) -> Iterator[object]:
        yield from map(getattr(self.made, method), inputs)

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *raised: object) -> None:
        pass


@pytest.fixture
def looking_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let teachers look in this process; `test_teachers` starts a real one."""
    monkeypatch.setattr(deploy.teachers.looking, "Worker", _Here)


def shared(name: str) -> Path:
    """Return a real data set, or skip the test where the set is not there."""
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"the real set {name} is not beside this checkout")
    return root
