"""The hash of an ONNX file together with the files that hold its weights."""

import hashlib
from pathlib import Path

import onnx

from supernet.errors import HeatError


def onnx_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file, and of the content of its external data.

    Raises `HeatError` where such a file is missing.
    """
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = hashlib.sha256(path.read_bytes())
    for place in sorted(places):
        file = path.parent / place
        try:
            with file.open("rb") as data:
                found.update(hashlib.file_digest(data, "sha256").digest())
        except OSError as error:
            raise HeatError(f"{path} needs {file} ({error.strerror}): copy it there") from None
    return found.hexdigest()
