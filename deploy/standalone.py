"""Writes a bundle's `detect.py`: HEAT's own torch-free files joined into one.

The files depend on each other, numpy, OpenCV and a runtime only, so their texts without the
imports of each other are a complete program: nothing is written twice.
"""

import ast
import inspect
from collections.abc import Sequence
from types import ModuleType

from supernet import errors, image_header, letterbox

from .edge import (
    capture,
    card,
    containers,
    cpu,
    cuda,
    detect,
    drawing,
    engine,
    executed,
    found,
    gpu,
    labels,
    ladder,
    pixels,
    postprocess,
    recorder,
    records,
    runtimes,
    saving,
    score_limits,
    script,
    session,
    sources,
    stream,
    tiles,
    timed,
    track,
    work,
)

DETECTING = (
    card, records, postprocess, score_limits, found, sources, containers, capture, stream, saving,
    recorder, pixels, drawing, labels, tiles, timed, track, work, detect,
    ladder, script,
)  # fmt: skip
PARTS = (errors, image_header, letterbox, session, cpu, runtimes, *DETECTING)
"""In the order in which they need each other."""
GPU_PARTS = (
    errors, image_header, letterbox, session, cpu, runtimes, executed, cuda, engine, gpu, *DETECTING
)  # fmt: skip
"""The same for TensorRT."""

OURS = ("heat", "supernet", "latency_tables", "deploy")

HEADER = '''"""Detects objects with the model in this folder.

    python detect.py IMAGE|FOLDER|PATTERN|VIDEO|CAMERA|URL ... --save DIR

Needs numpy, opencv-python-headless and the runtime named in card.json. Made by heat export.
"""
'''

FOOTER = """
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def detect_script(format: str = "onnx") -> str:
    """Return the text of the `detect.py` of a bundle of that format."""
    return join(GPU_PARTS if format == "tensorrt" else PARTS, HEADER, FOOTER)


def join(modules: Sequence[ModuleType], header: str, footer: str) -> str:
    """Return one program made of modules that import only each other and what is installed.

    Dropped are their docstrings, their imports of each other and their `__main__` blocks.
    """
    imports: set[str] = set()
    bodies = []
    for module in modules:
        source = inspect.getsource(module)
        lines = source.splitlines()
        tree = ast.parse(source)
        dropped: set[int] = set()
        for node in tree.body:
            docstring = isinstance(node, ast.Expr) and node is tree.body[0]
            if isinstance(node, ast.Import | ast.ImportFrom):
                if not _is_ours(node):
                    imports.add(ast.unparse(node))
            elif not (docstring or (isinstance(node, ast.If) and "__name__" in ast.unparse(node))):
                continue
            dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        kept = [line for number, line in enumerate(lines, 1) if number not in dropped]
        bodies.append("\n".join(kept).strip())
    return "\n\n".join([header, "\n".join(sorted(imports)), *bodies]) + "\n\n" + footer


def _is_ours(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] in OURS
    return any(alias.name.split(".")[0] in OURS for alias in node.names)
