"""The hash of an ONNX file together with the files that hold its weights."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from supernet.errors import UserError


def onnx_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file, and of the content of its external data.

    Raises `UserError` for a file that cannot be read, and for data that is missing or lies outside
    of its folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        found = hashlib.sha256(path.read_bytes())
    except Exception as error:  # protobuf's own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as ONNX ({reason}): export it again") from None
    tensors = [*_in_graph(model.graph)]
    for function in model.functions:
        tensors += _in_nodes(function.node)
    places = {
        entry.value
        for tensor in tensors
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    for place in sorted(places):
        file = (folder / place).resolve()
        if folder not in file.parents:
            raise UserError(f"{path} keeps weights outside of its folder ({place}): not read")
        try:
            with file.open("rb") as data:
                found.update(hashlib.file_digest(data, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path} needs {file} ({error.strerror}): copy it there") from None
    return found.hexdigest()


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a graph and of the graphs within it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _in_graph(graph)
