"""Training in several processes under torchrun, with the gloo backend of CPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]


def supernet(
    out: Path, data: Path, processes: int, *more: object, batch_size: int = 8
) -> tuple[int, str, str]:
    """Train a small supernet; one process runs without torchrun."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    asked = ["--data", data, "--space", "micro", "--input-size", "96x128", "--epochs", 2]
    asked += ["--batch-size", batch_size, "--train-precision", "f32", "--out", out, *more]
    command = [*start, "heat", "supernet", *map(str, asked)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_two_processes_train_one_supernet_and_one_goes_on(shapes: Path, tmp_path: Path) -> None:
    """Two processes finish; one that was stopped after an epoch is gone on with by one alone."""
    code, out, errors = supernet(tmp_path / "two", shapes, 2)
    assert code == 0, errors
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert len(lines) == 1 and json.loads(lines[0])["epochs"] == 2
    weights = load_file(tmp_path / "two/supernet/weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_run_is_resumed_on_another_number_of_processes(shapes: Path, tmp_path: Path) -> None:
    stop = "import supernet.train.loop as t\n"
    program = (
        f"{stop}"
        "import heat.cli\n"
        "finish = t.RunFiles.finish\n"
        "def once(self, *given):\n"
        "    finish(self, *given)\n"
        "    raise KeyboardInterrupt\n"
        "t.RunFiles.finish = once\n"
        "import sys\n"
        "sys.exit(heat.cli.main(sys.argv[1:]))\n"
    )
    asked = ["--data", shapes, "--space", "micro", "--input-size", "96x128", "--epochs", 2]
    asked += ["--batch-size", 8, "--train-precision", "f32", "--out", tmp_path]
    command = [sys.executable, "-c", program, "supernet", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 130, done.stderr
    code, out, errors = supernet(tmp_path, shapes, 2, "--resume")
    assert code == 0, errors
    assert json.loads(out.splitlines()[-1])["epochs"] == 2


def test_too_few_images_for_the_processes_are_refused(shapes: Path, tmp_path: Path) -> None:
    code, _, errors = supernet(tmp_path, shapes, 2, batch_size=2)
    assert code != 0
    assert "at least two images for each of 2 processes" in errors


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accumulated_batches_make_one_step(accumulate: int, shapes: Path, tmp_path: Path) -> None:
    code, out, errors = supernet(tmp_path, shapes, 1, "--accumulate", accumulate)
    assert code == 0, errors
    result = json.loads(out.splitlines()[-1])
    assert result["skipped_steps"] == 0
