"""torch as a runtime: runs a folded module on the CPU, or as a CUDA graph on a GPU.

Only in a process of HEAT itself: models are modules, not files.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploy.edge.session import Array, Feeds, WallClock
from supernet.boxes import Detections
from supernet.heatdetr.operators.decode import Decode

from .probe.setting import Setting

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
CAPTURE_WARMUPS = 3


class TorchSession(WallClock):
    """A session on a module that connects its `units` by `wire(call, *inputs)`.

    Decoding is run after the CUDA graph, because its output's size depends on the values.
    """

    def __init__(self, module: Any, setting: Setting) -> None:
        """Move the module to the setting's device and convert it to its precision."""
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
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Any] = []

    def _call(self, name: str, *values: Any) -> Any:
        if name == "decode":
            return values
        cast = [x.to(self._dtype) if x.is_floating_point() else x for x in values]
        return self._units[name](*cast)

    @torch.inference_mode()
    def _forward(self, inputs: list[Tensor]) -> list[Any]:
        results = self._net.wire(self._call, *inputs)
        return list(results) if isinstance(results, tuple | list) else [results]

    def _capture(self, inputs: list[Tensor]) -> None:
        """Record the forward pass as a CUDA graph."""
        self._inputs = inputs
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(CAPTURE_WARMUPS):
                self._forward(inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._forward(inputs)

    def _execute(self, feeds: Feeds) -> list[Any]:
        arrays = [torch.from_numpy(np.ascontiguousarray(x)) for x in feeds.values()]
        if self._device.type == "cuda":
            if self._graph is None:
                self._capture([x.to(self._device) for x in arrays])
            assert self._graph is not None
            for place, x in zip(self._inputs, arrays, strict=True):
                place.copy_(x)
            self._graph.replay()
            outputs = self._outputs
        else:
            outputs = self._forward(arrays)
        if self._decode is None:
            return outputs
        logits, deltas = (x.float() for x in outputs)
        found: list[Detections] = self._decode(logits, deltas)
        return [found[0].boxes_xyxy, found[0].scores, found[0].labels]

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once; outputs as numpy arrays."""
        outputs = self._execute(inputs)
        return [x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()
                for x in outputs]  # fmt: skip

    def timed(self, inputs: Feeds) -> float:
        """Execute once and return milliseconds; on a GPU by CUDA events, input copies included."""
        if self._device.type != "cuda":
            return super().timed(inputs)
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        self._execute(inputs)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def close(self) -> None:
        """Drop the CUDA graph and its tensors: torch frees them with the last reference."""
        self._graph, self._inputs, self._outputs = None, [], []

    def executed(self, inputs: Feeds) -> dict[str, int]:
        """Return the number of convolutions with weights of each precision."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        found: dict[str, int] = {}
        for module in self._units.modules():
            if isinstance(module, nn.Conv2d):
                name = names[module.weight.dtype]
                found[name] = found.get(name, 0) + 1
        return found
