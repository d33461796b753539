"""Writes deployed graphs as ONNX, node by node."""
