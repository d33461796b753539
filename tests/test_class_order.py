"""A data set may list its classes in another order than the supernet was trained with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from heat.stages import thin as stage
from heat.stages.train import _inherited, numbered_as_inherited
from heat.workspace import Workspace
from supernet.checkpoint import WEIGHTS, read_info
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from tests.command_line import fails, run
from tests.workspaces import SMALL_SPACE, thin_by_estimate

FAR = ["--device", "cpu-i7", "--trust-table"]


@pytest.fixture(scope="module")
def searched(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a supernet that was hardly trained, and a network that was thinned of it."""
    out = tmp_path_factory.mktemp("searched") / "run"
    asked = ["--data", shapes, *SMALL_SPACE, "--epochs", 1, "--out", out]
    code, _, errors = run("supernet", *asked)
    assert code == 0, errors
    thin_by_estimate(out)
    return out


@pytest.fixture
def turned(shapes: Path, tmp_path: Path) -> Path:
    """The same images with the classes the other way round, as another tool writes them."""
    root = tmp_path / "turned"
    shutil.copytree(shapes, root)
    for path in (root / "annotations").glob("*.json"):
        found = json.loads(path.read_text())
        ids = [category["id"] for category in found["categories"]]
        other = dict(zip(ids, reversed(ids), strict=True))
        for category in found["categories"]:
            category["id"] = other[category["id"]]
        for annotation in found["annotations"]:
            annotation["category_id"] = other[annotation["category_id"]]
        path.write_text(json.dumps(found))
    return root


def test_thinning_scores_classes_by_their_names(
    searched: Path, turned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels were scored against the heads of other classes, and moves ranked by that."""
    seen: list[DetectionSet] = []

    def open_search(*arguments: Any) -> Any:
        seen.append(arguments[3])
        raise UserError("seen")

    monkeypatch.setattr(stage, "open_search", open_search)
    own = read_info(searched / "supernet" / WEIGHTS).names
    assert load_split(turned, "train").names == own[::-1]
    thin = ["thin", "--target-fps", 30, *FAR, "--data", turned, "--out", searched]
    assert "seen" in fails(2, *thin)
    assert seen[0].names == own


def test_what_inherits_is_trained_in_the_order_of_the_supernet(
    searched: Path, turned: Path, tmp_path: Path
) -> None:
    workspace, data = Workspace(searched), load_split(turned, "train")
    own = read_info(searched / "supernet" / WEIGHTS).names
    assert numbered_as_inherited(workspace, data).names == own
    assert numbered_as_inherited(Workspace(tmp_path / "none"), data) is data
    network = Architecture.load(workspace.architecture)
    with pytest.raises(UserError, match="in another order, than those of the data"):
        _inherited(workspace, network, data.names, {})
    assert _inherited(workspace, network, own, {}).architecture == network
