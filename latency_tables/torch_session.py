"""torch as a runtime: runs a folded module on the CPU, or as a CUDA graph on a GPU.

Only in a process of HEAT itself: models are modules, not files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploy.edge.session import Array, Feeds, WallClock, frames_of
from supernet.boxes import Detections
from supernet.errors import UserError
from supernet.heatdetr.operators.decode import Decode

from .cuda_graph import CudaGraph, Recorded, Recorder
from .probe.setting import Setting

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class TorchSession(WallClock):
    """A session on a module that connects its `units` by `wire(call, *inputs)`.

    Decoding is run after the CUDA graph, because its output's size depends on the values.
    """

    def __init__(self, module: Any, setting: Setting, record: Recorder | None = None) -> None:
        """Move the module to the setting's device and convert it to its precision.

        With `record` it is run as recorded work, as it always is on a GPU. Raises `UserError` for a
        precision that torch has no type for.
        """
        if setting.precision not in DTYPES:
            raise UserError(
                f"torch runs {', '.join(DTYPES)}, not {setting.precision}: another --precision, or "
                "another --runtime"
            )
        self._device = torch.device(setting.device)
        self._dtype = DTYPES[setting.precision]
        torch.set_num_threads(setting.threads)
        # TF32 has a shorter mantissa than float32: f32 means float32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._net = module
        self._units: nn.ModuleDict = module.units.eval().to(self._device, self._dtype)
        decodes = [unit for unit in self._units.values() if isinstance(unit, Decode)]
        self._decode = decodes[0] if decodes else None
        self._record = CudaGraph if self._device.type == "cuda" else record
        self._recorded: Recorded | None = None
        self._places: dict[str, Tensor] = {}

    def _call(self, name: str, *values: Any) -> Any:
        if name == "decode":
            return values
        cast = [x.to(self._dtype) if x.is_floating_point() else x for x in values]
        return self._units[name](*cast)

    @torch.inference_mode()
    def _forward(self, inputs: Sequence[Tensor]) -> list[Any]:
        results = self._net.wire(self._call, *inputs)
        return list(results) if isinstance(results, tuple | list) else [results]

    @torch.inference_mode()
    def _ready(self, feeds: Feeds) -> Recorded | None:
        """Return the recorded work; None where the module is run as it is."""
        if self._recorded is None and self._record is not None:
            inputs = [_tensor(array).to(self._device, copy=True) for array in feeds.values()]
            self._recorded = self._record(self._forward, inputs)
            self._places = dict(zip(feeds, inputs, strict=True))
        return self._recorded

    @torch.inference_mode()
    def _replay(self, recorded: Recorded, feeds: Feeds) -> list[Any]:
        """Copy inputs to where the recorded work reads them, and run it."""
        for name, array in feeds.items():
            self._places[name].copy_(_tensor(array))
        return self._decoded(recorded.replay())

    def _decoded(self, outputs: list[Any]) -> list[Any]:
        if self._decode is None:
            return outputs
        logits, deltas = (x.float() for x in outputs)
        found: list[Detections] = self._decode(logits, deltas)
        return [found[0].boxes_xyxy, found[0].scores, found[0].labels]

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once; outputs as numpy arrays."""
        recorded = self._ready(inputs)
        if recorded is None:
            outputs = self._decoded(self._forward([_tensor(array) for array in inputs.values()]))
        else:
            outputs = self._replay(recorded, inputs)
        return [x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()
                for x in outputs]  # fmt: skip

    def timed(self, inputs: Feeds) -> float:
        """Execute once and return milliseconds; on a GPU by CUDA events, copies of images included.

        Feature maps are on the GPU already, as they were in the last `run`.
        """
        if self._device.type != "cuda":
            return super().timed(inputs)
        recorded = self._ready(inputs)
        assert recorded is not None
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        self._replay(recorded, frames_of(inputs))
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def close(self) -> None:
        """Drop the recorded work and its tensors: torch frees them with the last reference."""
        self._recorded, self._places = None, {}

    def executed(self, inputs: Feeds) -> dict[str, int]:
        """Return the number of convolutions with weights of each precision."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        found: dict[str, int] = {}
        for module in self._units.modules():
            if isinstance(module, nn.Conv2d):
                name = names[module.weight.dtype]
                found[name] = found.get(name, 0) + 1
        return found


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
