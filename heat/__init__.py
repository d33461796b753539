"""HEAT: name a device and a frame rate, get an object detector that provably runs there.

`heat.load(folder).detect(image)` runs an exported bundle and never imports torch.
`heat.profile`, `supernet`, `thin`, `train`, `export`, `evaluate`, `report` and `build` are the
commands of that name (`heat eval`), with the same options.
"""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.edge.detect import Bundle

    from .commands.api import build, evaluate, export, profile, report, supernet, thin, train

__all__ = [
    "__version__", "build", "evaluate", "export", "load", "profile", "report", "supernet", "thin",
    "train",
]  # fmt: skip

_OURS = ("supernet", "latency_tables", "deploy")


def _refuse_shadowed() -> None:
    """Refuse to start where another module would be imported in place of one of ours."""
    home = Path(__file__).resolve().parent.parent
    for name in _OURS:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            raise ImportError(
                f"HEAT needs its own package {name!r}, but Python finds {origin}: "
                "rename that file or start from another folder"
            )


_refuse_shadowed()

from supernet.version import __version__  # noqa: E402


def load(folder: str | Path, threads: int | None = None) -> "Bundle":
    """Load an exported bundle; raise `BundleError` where it is broken.

    `.detect(image)` takes RGB uint8 pixels [height, width, 3], a path or a PIL image, and returns
    boxes in image pixels: those that reach their class's threshold in the card, or `score=` where
    it is given. Several threads may share a bundle; `with` or `.close()` gives back what its
    runtime holds.
    """
    from deploy.edge.detect import Bundle
    from supernet.errors import UserError

    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"heat.load({folder!r}): the folder of a bundle is needed")
    return Bundle(Path(folder), threads)


def __getattr__(name: str) -> Any:
    """Import the commands when one is first asked for: `import heat` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module 'heat' has no attribute {name!r}")
    return getattr(importlib.import_module("heat.commands.api"), name)


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
