"""Loads exported models into the runtimes that execute them on a CPU.

Needs numpy and the runtime only; every bundle's `detect.py` and every probe carries this file's
text.
"""

import functools
import importlib
import importlib.metadata
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supernet.errors import BundleError, HeatError, UserError

from .cpu import core_count
from .session import PRECISIONS, Array, Feeds, Session, WallClock, import_runtime

BRIEF_SPIN = {
    "session.intra_op.spin_duration_us": "10",
    "session.intra_op.spin_backoff_max": "16",
}
"""How ONNX Runtime's threads wait by default; versions that do not know the keys ignore them.

Nano at 448x448, two threads on two cores: ONNX Runtime's own spinning takes 9.5 ms alone and 32 ms
beside one busy process; this takes 9.6 and 18 ms; no spinning takes 12 to 15 and 17 ms
(`benchmarks/beside.py`).
"""


def check_threads(threads: int) -> int:
    """Return a number of CPU threads; one that the machine has no cores for is a `UserError`."""
    if not hasattr(threads, "__index__"):
        raise UserError(f"threads {threads!r}: a whole number is needed")
    cores = core_count()
    if not 1 <= threads <= cores:
        raise UserError(f"threads {threads}: this machine gives {cores} core(s): 1 to {cores}")
    return threads


class OnnxRuntimeSession(WallClock):
    """ONNX Runtime on the CPU."""

    def __init__(
        self,
        model: bytes | Path,
        threads: int,
        precision: str = "f32",
        *,
        profile: str = "",
        spinning: bool | None = None,
        pinning: bool = False,
    ) -> None:
        """Load the model with all graph optimisations; the model itself holds the precision.

        With `profile`, a file prefix, the session records what it executes. Waiting threads
        spin briefly; with `spinning` for ONNX Runtime's default time (True) or not at all (False).
        """
        ort = import_runtime("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        # Threads that spin after a run would take CPU time from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if spinning is None:
            for key, value in BRIEF_SPIN.items():
                options.add_session_config_entry(key, value)
        elif not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if pinning and threads > 1:
            cores = _worker_cores(threads)
            options.add_session_config_entry("session.intra_op_thread_affinities", cores)
        self.session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
        )

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once."""
        return list(self.session.run(None, dict(inputs)))

    def runner(self) -> Callable[[Feeds], list[Array]]:
        """Return a `run` for one of several threads."""
        return self.run

    def close(self) -> None:
        """Drop the model: ONNX Runtime frees it, and ends its threads, with the last reference."""
        self.session = None


def _worker_cores(threads: int) -> str:
    """Return a core for each of ONNX Runtime's own threads; it counts cores from 1.

    The calling thread is the first of them, and not ONNX Runtime's to pin.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise UserError("pinning: this system pins no threads; leave it out")
    cores = sorted(os.sched_getaffinity(0))
    return ";".join(str(cores[index % len(cores)] + 1) for index in range(1, threads))


OPENVINO_HINT = {"f32": "f32", "bf16": "bf16", "f16": "f16", "int8": "f32"}
"""Precision of layers that are not quantized; OpenVINO's own default may be bfloat16."""


def openvino_properties(
    threads: int, precision: str, *, streams: int = 1, pinning: bool = False
) -> dict[str, str | int | bool]:
    """Return the CPU plugin's properties: for latency, or for throughput in several streams."""
    return {
        "INFERENCE_PRECISION_HINT": OPENVINO_HINT[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(streams),
        "ENABLE_CPU_PINNING": pinning,
    }


@functools.cache
def openvino_core() -> Any:
    """Return the process's one `openvino.Core`; it is never released.

    The CPU plugin gives the thread that loads it a signal stack, and unmaps it when the last core
    is gone, from whatever thread: the next Ctrl-C would crash the process (OpenVINO 2026.4).
    """
    return import_runtime("openvino").Core()


class OpenVinoSession(WallClock):
    """OpenVINO on the CPU, in the precision asked for and no other."""

    def __init__(
        self,
        model: bytes | Path,
        threads: int,
        precision: str = "f32",
        *,
        streams: int = 1,
        spinning: bool | None = None,
        pinning: bool = False,
    ) -> None:
        """Compile the model for latency, or for the throughput of several streams.

        OpenVINO's default pins threads to cores: beside a training of two threads a nano network
        then takes 23 to 24 ms instead of 15 to 16 ms; alone it takes 8.7 ms with and without
        (`benchmarks/beside.py`). How its threads wait cannot be chosen.
        """
        if spinning is not None:
            raise UserError("spinning cannot be chosen for openvino: leave it out")
        core = openvino_core()
        network = core.read_model(model if isinstance(model, bytes) else str(model))
        self.compiled = core.compile_model(
            network,
            "CPU",
            openvino_properties(threads, precision, streams=streams, pinning=pinning),
        )
        self._own = threading.local()

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once, by a request of the calling thread's own: two cannot share one."""
        if not hasattr(self._own, "request"):
            self._own.request = self.compiled.create_infer_request()
        return self._run(self._own.request, inputs)

    def runner(self) -> Callable[[Feeds], list[Array]]:
        """Return a `run` for one of several threads: it has a request of its own."""
        request = self.compiled.create_infer_request()
        return lambda inputs: self._run(request, inputs)

    def close(self) -> None:
        """Drop the model and its requests: OpenVINO frees them with the last reference."""
        self.compiled, self._own = None, threading.local()

    def _run(self, request: Any, inputs: Feeds) -> list[Array]:
        results = request.infer(dict(inputs), share_inputs=True)
        return [results[output].copy() for output in self.compiled.outputs]


RUNTIMES: dict[str, Callable[..., Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}
"""Runtimes on a CPU; those on CUDA devices are in `deploy.edge.gpu`."""


def open_session(
    runtime: str,
    model: bytes | Path,
    threads: int,
    precision: str = "f32",
    device: str | None = None,
    *,
    spinning: bool | None = None,
    pinning: bool = False,
) -> Session:
    """Load a model file or its bytes; an unreadable model is a `BundleError`.

    `device` is cpu or cuda; without it TensorRT runs on cuda and everything else on the CPU.
    Waiting threads spin briefly, for the runtime's default time (`spinning` True), or not (False);
    `pinning` keeps each on one core. More threads than cores are a `UserError`.
    """
    device = device or ("cuda" if runtime == "tensorrt" else "cpu")
    runtimes = _runtimes(device)
    if runtime not in runtimes:
        raise UserError(f"unknown runtime {runtime!r} on {device}: one of {', '.join(runtimes)}")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: one of {', '.join(PRECISIONS)}")
    waiting: dict[str, bool] = {}
    if spinning is not None:
        waiting["spinning"] = spinning
    if pinning:
        waiting["pinning"] = pinning
    if waiting and device != "cpu":
        raise UserError(f"{' and '.join(waiting)}: for runtimes on a CPU, not on {device}")
    if device == "cpu":
        check_threads(threads)
    try:
        return runtimes[runtime](model, threads, precision, **waiting)
    except HeatError:
        raise
    except Exception as error:
        what = model if isinstance(model, Path) else "the model"
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else ""
        raise BundleError(f"{runtime} cannot load {what}: {reason}; export it again") from error


def open_crowd(
    runtime: str, model: Path, requests: int, precision: str = "f32"
) -> "OnnxRuntimeSession | OpenVinoSession":
    """Load a model for several requests at once, each on a thread of its own."""
    check_threads(requests)
    open_session(runtime, model, 1, precision, "cpu").close()  # a broken model is refused by name
    if runtime == "openvino":
        return OpenVinoSession(model, requests, precision, streams=requests)
    return OnnxRuntimeSession(model, 1, precision)


def _runtimes(device: str) -> dict[str, Callable[..., Session]]:
    if device == "cpu":
        return RUNTIMES
    # Not imported above: bundles for CPUs do not contain it. A probe is one file that does.
    found = globals().get("GPU_RUNTIMES") or importlib.import_module("deploy.edge.gpu").GPU_RUNTIMES
    return dict(found)
