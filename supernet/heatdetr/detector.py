"""HeatDETR: stem, four stages with SAM between them, SCM, TCM, head (spec section 2).

The wiring is written once, in `Detector.wire`. Run with torch calls it is the forward pass; run
with a `GraphWriter` it is the exported graph; its parts are exactly the entries of the latency
table. Strides are 8, 16, 32, 64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import onnx
from torch import Tensor, nn

from ..boxes import Detections
from ..errors import UserError
from ..graph.folding import fold
from ..graph.nodes import Value
from ..graph.style import GraphStyle
from ..graph.writer import GraphWriter
from .architecture import Architecture
from .operators import OPERATORS, Unit
from .operators.decode import Decode
from .operators.head import Head
from .operators.window import WindowBlock
from .place import Place

Call = Callable[..., Any]
"""Applies the unit of a place to inputs: `call("s1_0", x)`."""


class Detector(nn.Module):
    """A network of one architecture, in training form until folded."""

    def __init__(self, architecture: Architecture) -> None:
        """Build one unit for each entry of the architecture."""
        super().__init__()
        self.architecture = architecture
        self.units = nn.ModuleDict(
            {
                place: OPERATORS[entry.op].build(entry)
                for place, entry in architecture.entries().items()
                if place != "decode"
            }
        )
        self.units["decode"] = Decode(
            architecture.anchor_sizes,
            architecture.num_classes,
            architecture.input_size,
            architecture.anchor_offset,
            stride=architecture.output_stride,
            nms=architecture.head != "one-to-one",
            voting=architecture.head == "voted",
        )

        self.many = None
        if architecture.head == "one-to-one":
            head = architecture.entries()["head"]
            self.many = OPERATORS[head.op].build(head)
            """One-to-many head, which only training needs."""

    @property
    def decode(self) -> Decode:
        """The decoding rule of this network."""
        return cast(Decode, self.units["decode"])

    @property
    def heatdetr(self) -> "Detector":
        """The network itself."""
        return self

    @property
    def detr(self) -> None:
        """None: it is not of DETR's family."""

    def wire_backbone(self, call: Call, image: Any) -> tuple[Any, Any, Any, Any]:
        """Connect the units from the raw image to l1, l2, p3 and l4, at strides 8, 16, 32, 64."""
        blocks = [len(string) for string in self.architecture.blocks]

        def stage(number: int, x: Any) -> Any:
            for position in range(blocks[number - 1]):
                x = call(f"s{number}_{position}", x)
            return call(f"s{number}_global", x)

        h1 = stage(1, call("stem", call("preprocess", image)))
        h2 = stage(2, call("down12", h1))
        l1 = self._wire_sam(call, 2, h1, h2)
        p2, x = call("down23", l1)
        h3 = stage(3, x)
        l2 = self._wire_sam(call, 3, p2, h3)
        p3, x = call("down34", l2)
        return l1, l2, p3, stage(4, x)

    def wire_scm(self, call: Call, image: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Connect the units from the raw image to l1, l2, l3, l4 and SCM's map, which TCM reads.

        They are at strides 8, 16, 32, 64, and at the output stride.
        """
        l1, l2, p3, l4 = self.wire_backbone(call, image)
        l3 = self._wire_sam(call, 4, p3, l4)
        s1 = call("scm_ffn1", call("scm_lat1", l1), call("scm_lat2", l2))
        s3 = call("scm_global1", call("scm_ffn2", s1, l3))
        s_out = call("scm_up4", s3, l4)
        if self.architecture.output_stride <= 16:
            s_out = call("scm_up3", s1, s_out)
        if self.architecture.output_stride == 8:
            s_out = call("scm_up2", call("scm_lat1_fine", l1), s_out)
        return l1, l2, l3, l4, call("scm_global2", s_out)

    def wire(self, call: Call, image: Any) -> Any:
        """Connect the units from the raw image to the head's maps."""
        t_cls, t_reg = call("tcm_t1", self.wire_scm(call, image)[-1])
        for index in range(self.architecture.t2_blocks):
            t_reg = call(f"tcm_t2_{index}", t_reg)
        return call("head", t_cls, t_reg)

    def keep_wired(self, wire: Callable[[Call, Any], Any]) -> None:
        """Remove the units that a part of the wiring does not use: `keep_wired(net.wire_scm)`."""
        used: set[str] = set()

        def note(place: str, *_: Any) -> tuple[None, None]:
            used.add(place)
            return None, None

        wire(note, None)
        for place in self.units.keys() - used:
            del self.units[place]
        self.many = None

    def _wire_sam(self, call: Call, number: int, fine: Any, coarse: Any) -> Any:
        return call(f"sam{number}_global", call(f"sam{number}_fuse", fine, coarse))

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 RGB images to (class logits [B, A, K, h, w], deltas [B, A, 4, h, w]).

        In training the logits of the bins of its distributions follow, [B, A, 4, N, h, w], where
        a head has them, and then the same of the one-to-many head of a one-to-one network.
        """
        more: tuple[Tensor, ...] = ()

        def call(place: str, *inputs: Tensor) -> Any:
            nonlocal more
            if place == "head" and self.many is not None and self.training:
                more = self.many(*inputs)
            return self.units[place](*inputs)

        return (*self.wire(call, image_BHW3), *more)

    def parts(self, image_BHW3: Tensor) -> dict[str, Tensor]:
        """Run and return every part's results by `place.0`, `place.1`, in the order of execution.

        The head's are not those of the exported graph, whose scores are probabilities.
        """
        found: dict[str, Tensor] = {}

        def call(place: str, *inputs: Tensor) -> Any:
            results = self.units[place](*inputs)
            parts = results if isinstance(results, tuple) else (results,)
            found.update({f"{place}.{i}": part for i, part in enumerate(parts)})
            return results

        self.wire(call, image_BHW3)
        return found

    def detect(self, image_BHW3: Tensor) -> list[Detections]:
        """Run and decode; boxes in pixels of the network input."""
        logits, deltas = self(image_BHW3)[:2]
        return self.decode(logits, deltas)  # type: ignore[no-any-return]

    def set_drop_path(self, rate: float) -> None:
        """Raise the drop rate linearly from 0 to `rate` over the local window blocks."""
        local = [unit for name, unit in self.units.items() if Place.parse(name).part == "local"]
        for index, unit in enumerate(local):
            if isinstance(unit, WindowBlock):
                unit.drop_path.rate = rate * index / max(1, len(local) - 1)

    def class_rows(self) -> Mapping[str, tuple[int, int]]:
        """Return the tensors whose first axis are classes: (G groups of K rows, further rows)."""
        return {
            f"{name}.cls.{part}": (module.num_anchors, 0)
            for name, module in self.named_modules()
            if isinstance(module, Head)
            for part in ("weight", "bias")
        }

    def check_format(self, precision: str, *, raw: bool, dynamic_batch: bool) -> None:
        """Raise `UserError` for batches of any size with ACT's clusters; all else is deployed."""
        if dynamic_batch and self.architecture.global_block == "act":
            raise UserError(
                "--dynamic-batch: the clusters of ACT (global block act) are written for one batch "
                "size: leave it out"
            )

    def record_clusters(self, bounds: Sequence[int]) -> None:
        """Do nothing: the bound is part of the architecture already (`act_clusters`)."""

    def deployed(self) -> Self:
        """Return a folded copy in evaluation mode."""
        return fold(self)

    def to_onnx(
        self,
        metadata: dict[str, str] | None = None,
        *,
        raw: bool = False,
        style: GraphStyle | None = None,
        expose: bool = False,
        padded: bool = False,
        batch: int = 1,
    ) -> onnx.ModelProto:
        """Write the deployed graph, from uint8 image to boxes in pixels.

        With `raw` the outputs are the head's scores and deltas, without decoding and NMS; those of
        `padded` have fixed shapes (see `Decode.emit`), as a batch needs it.
        With `expose` every part's results are outputs too, named `place.0`, `place.1`.
        """
        network = self.deployed()
        for name, module in network.units.named_modules():
            if isinstance(module, nn.Conv2d):
                module.heat_name = name  # kept by copies with a factor folded in
        graph = GraphWriter(style)

        exposed: list[tuple[str, Value, str]] = []

        def call(place: str, *inputs: Value) -> Any:
            graph.scope(place)
            results = cast(Unit, network.units[place]).emit(graph, *inputs)
            if expose:
                exposed.extend(named(place, results))
            return results

        def named(place: str, results: Any) -> list[tuple[str, Value, str]]:
            parts = results if isinstance(results, tuple) else (results,)
            return [(f"{place}.{i}", part, "float32") for i, part in enumerate(parts)]

        height, width = self.architecture.input_size
        scores, deltas = network.wire(
            call, graph.input("image", (batch, height, width, 3), "uint8")
        )
        if raw:
            outputs = [("scores", scores, "float32"), ("deltas", deltas, "float32")]
            return graph.model([*outputs, *exposed], metadata)
        graph.scope("decode")
        decode = network.decode
        boxes, scores, labels = decode.emit(graph, scores, deltas, padded=padded or batch > 1)
        outputs = [
            ("boxes_xyxy_px", boxes, "float32"),
            ("scores", scores, "float32"),
            ("labels", labels, "int64"),
        ]
        return graph.model(outputs, metadata)
