"""INT8 by NNCF, OpenVINO's own quantizer, as an extra: `pip install 'heatdetr[nncf]'`."""

import logging
from typing import Any

from supernet.errors import UserError
from supernet.graph.nodes import Array

from .edge.session import without_telemetry


def quantize_with_nncf(model: Any, pixels_BHW3: Array) -> Any:
    """Return an `openvino.Model` quantized on images uint8 [B, H, W, 3].

    Activations may be asymmetric, biases are corrected; nothing is kept in floating point for
    accuracy's sake.
    """
    try:
        with without_telemetry():
            import nncf
    except ImportError:
        raise UserError(
            "--quantizer nncf: NNCF is not installed: pip install 'heatdetr[nncf]'"
        ) from None
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset([one[None] for one in pixels_BHW3]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pixels_BHW3),
    )
