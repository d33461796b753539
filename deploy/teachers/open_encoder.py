"""Opens an encoder, whatever it is: an ONNX file, a folder of transformers, a model of timm."""

from pathlib import Path

from .encoder import Encoder, EncoderRequest


def open_encoder(request: EncoderRequest) -> Encoder:
    """Load an encoder: an ONNX file, a folder of transformers, or a model of timm.

    Raises `UserError` where there is none, or where its outputs can be no features. Torch is
    imported for the latter two only.
    """
    if request.source.startswith("timm:"):
        from .torch_encoder import TimmEncoder

        return TimmEncoder(request)
    if Path(request.source).is_dir():
        from .torch_encoder import TransformersEncoder

        return TransformersEncoder(request)
    from .onnx_encoder import OnnxEncoder

    return OnnxEncoder(request)
