from pathlib import Path

import numpy as np
import pytest
import torch

from latency_tables.plan import space_entries
from supernet.boxes import iou_matrix
from supernet.counting import count_macs, count_params
from supernet.errors import UserError
from supernet.heatdetr.anchor_fit import best_iou
from supernet.heatdetr.architecture import CONDENSED, PRESETS, Architecture, preset
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.decode import make_anchors
from supernet.heatdetr.operators.entries import Macs
from tests.counted import on_meta, torch_macs

SPEC_MACS = [
    ("medium", (832, 1344), 79_396_402_176, 999_014_016),
    ("medium", (640, 640), 29_082_931_200, 371_174_752),
    ("medium", (448, 448), 14_250_636_288, 175_161_280),
    ("tiny", (832, 1344), 71_398_768_896, 827_643_264),
]


@pytest.mark.parametrize(("name", "size", "conv", "attention"), SPEC_MACS)
def test_macs_equal_the_spec(name: str, size: tuple[int, int], conv: int, attention: int) -> None:
    assert count_macs(preset(name, input_size=size)) == Macs(conv, attention)


def test_unit_size_equals_the_spec(unit: Architecture) -> None:
    assert count_macs(unit) == Macs(65_603_328, 5_410_848)
    assert count_params(unit) == 1_051_845


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 42.28), ("small", 43.80), ("medium", 48.49), ("large", 54.58)]
)
def test_parameters_equal_the_spec(name: str, millions: float) -> None:
    assert round(count_params(preset(name)) / 1e6, 2) == millions


@pytest.mark.parametrize(
    "architecture",
    [
        preset("medium", input_size=(832, 1344)),
        preset("tiny", input_size=(608, 864), global_block="oa"),
        preset("nano", input_size=(416, 544), global_block="oa", token_sparsity=0.18),
        preset("pico", input_size=(416, 544), boxes="distributions"),
    ],
    ids=lambda a: f"{a.name}-{a.global_block}",
)
def test_torch_counts_the_same(architecture: Architecture) -> None:
    """Torch's own counter agrees with the closed form, in the deployed form on the meta device."""
    network = on_meta(architecture)
    assert torch_macs(network) == count_macs(architecture)
    assert sum(p.numel() for p in network.parameters()) == count_params(architecture)


def test_table_has_the_spec_number_of_entries() -> None:
    template = Architecture(widths=(32,) * 4, blocks=("",) * 4)
    entries = space_entries(template, (192, 192, 256, 384), oa=True)
    ends = {"preprocess", "decode"}
    spec = [entry for entry in entries if entry.op not in ends]
    assert len(spec) == 764
    assert sum("oa" not in entry.op for entry in spec) == 728
    ours = {"decode_voted", "head_distributions", "lat1_fine", "top_k"}  # not the paper's
    ops = {op for op in OPERATORS if op.removeprefix("t1_") not in (*CONDENSED, *ours)}
    assert {entry.op for entry in entries} == ops
    once = space_entries(template.with_(head="one-to-one"), (192, 192, 256, 384), oa=True)
    assert {entry.op for entry in once} == {*ops, "top_k"} - {"decode"}
    original = template.with_(global_block="oa")
    more = {entry.op for entry in space_entries(original, (192, 192, 256, 384), oa=True)}
    assert more == set(OPERATORS) - ours
    fine = space_entries(template.with_stride(8), (192, 192, 256, 384), oa=True)
    assert {entry.op for entry in fine} == {*ops, "lat1_fine"}


def test_json_round_trip(tmp_path: Path) -> None:
    for architecture in PRESETS.values():
        architecture.save(tmp_path / "architecture.json")
        assert Architecture.load(tmp_path / "architecture.json") == architecture


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 9}', '{"format": 1, "widths": 3}'])
def test_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"architecture\.json"):
        Architecture.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (32, 32, 48, 64)},
        {"widths": (32, 32, 64)},
        {"blocks": ("R", "X", "R", "R")},
        {"input_size": (100, 128)},
        {"input_size": (0, 128)},
        {"num_classes": 0},
        {"token_sparsity": 1.0},
        {"global_block": "xx"},
    ],
)
def test_impossible_architectures_are_refused(
    unit: Architecture, change: dict[str, object]
) -> None:
    with pytest.raises(UserError):
        unit.with_(**change)


def test_sizes_are_parsed() -> None:
    assert parse_size("448") == (448, 448)
    assert parse_size("832x1344") == (832, 1344)
    for text in ("", "x", "447", "448x", "32x32x32", "-64"):
        with pytest.raises(UserError, match="input-size"):
            parse_size(text)


def test_anchors_that_fit_no_box_are_counted() -> None:
    """Against every anchor, one by one."""
    network = preset("medium", input_size=(128, 192)).with_stride(16)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 90, (200, 2))], 1)
    anchors = make_anchors(8, 12, network.anchor_sizes, network.anchor_offset, 16)
    half = anchors[:, 2:] / 2
    every = torch.from_numpy(np.concatenate([anchors[:, :2] - half, anchors[:, :2] + half], 1))
    expected = iou_matrix(torch.from_numpy(boxes).float(), every.float()).max(1).values
    np.testing.assert_allclose(best_iou(boxes, (128, 192), network), expected, atol=1e-5)
