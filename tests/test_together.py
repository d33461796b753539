"""Options that would be ignored are refused by name."""

from pathlib import Path

import pytest

from tests.command_line import fails


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "x", "--inherit", "--backbone", "b"], "--inherit and --backbone: one"),
        (["train", "--data", "x", "--backbone", "b", "--weights", "w"], "--backbone and --weights"),
        (["export", "--ladder", "60,30", "--raw"], "--raw beside --ladder"),
        (["export", "--ladder", "60,30", "--window", "3"], "--window beside --ladder"),
        (["export", "--ladder", "60,30", "--max-ap-drop", "3"], "--max-ap-drop beside --ladder"),
        (["thin", "--targets", "f.toml", "--threads", "1"], "--threads beside --targets"),
        (["thin", "--targets", "f.toml", "--search", "tpe"], "--search beside --targets"),
        (["thin", "--targets", "f.toml", "--frontier"], "--frontier beside --targets"),
        (["profile", "--estimate", "--pack", "p.pyz"], "--pack and --estimate: one of them"),
        (["profile", "--pack", "p.pyz", "--host", "me@box"], "--pack and --host: one of them"),
        (["profile", "--estimate", "--host", "me@box"], "--estimate and --host: one of them"),
        (["thin", "--explain", "--target-fps", "30"], "--target-fps beside --explain"),
        (["thin", "--target-fps", "30", "--trials", "50"], "--trials 50 is of a study"),
        (["profile", "--show", "cpu-i7", "--threads", "3"], "--threads beside --show"),
        (["profile", "--show", "cpu-i7", "--few-shot", "4"], "--few-shot beside --show"),
        (["thin", "--explain", "--data", "x"], "--data beside --explain"),
        (["thin", "--diff", "a", "b", "--ap-drop", "loss"], "--ap-drop beside --diff"),
        (["profile", "--show", "cpu-i7", "--device", "h200"], "--device beside --show"),
        (["profile", "--compare", "a", "b", "--output-stride", "16"], "--output-stride beside"),
        (["profile", "--pack", "p.pyz", "--host-python", "py"], "--host-python py is of a host"),
        (["supernet", "--show", "--epochs", "3"], "--epochs beside --show"),
        (["thin", "--target-fps", "24", "--at", "p95"], "--at p95 (percentile in a fleet file) is"),
        (
            ["export", "--format", "tensorrt", "--gpu", "8.9", "--device", "cuda"],
            "--device cuda beside --gpu 8.9",
        ),
        (["profile", "--show", "cpu", "--unpack", "r.jsonl"], "--show and --unpack: one of them"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments: list[str], message: str) -> None:
    assert message in fails(2, *arguments)


@pytest.mark.parametrize(
    "option", [["--drop-path", "0.1"], ["--assign", "aligned"], ["--output-stride", "16"]]
)
def test_options_of_another_family_are_refused(option: list[str], shapes: Path) -> None:
    line = fails(2, "train", "--data", shapes, "--architecture", "detr-s", *option)
    assert f"{option[0]} is of HeatDETR, not of detr" in line
