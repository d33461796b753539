"""HEAT: name a device and a frame rate, get an object detector that provably runs there.

`heat.load(folder).detect(image)` runs an exported bundle and never imports torch.
`heat.profile`, `supernet`, `thin`, `train`, `export`, `evaluate`, `report`, `build` and `fleet` are
the commands of that name (`heat eval`), with the same options.
"""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.edge.detect import Bundle
    from deploy.edge.ladder import Ladder

    from .commands.api import build, evaluate, export, fleet, profile, report, supernet, thin, train

__all__ = [
    "__version__", "build", "evaluate", "export", "fleet", "load", "profile", "report", "supernet",
    "thin", "train",
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


def load(
    folder: str | Path, threads: int | None = None, hold_fps: float | None = None
) -> "Bundle | Ladder":
    """Load an exported bundle, or a ladder; raise `BundleError` where it is broken.

    `.detect(image)` takes RGB uint8 pixels [height, width, 3], a path or a PIL image, and returns
    boxes in image pixels: those that reach their class's threshold in the card, or `score=` where
    it is given. Of a ladder (`heat export --ladder`) a faster network takes over where `hold_fps`
    frames per second would be missed. Several threads may share a bundle; `with` or `.close()`
    gives back what its runtime holds.
    """
    from deploy.edge.ladder import open_finder
    from supernet.errors import UserError

    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"heat.load({folder!r}): the folder of a bundle is needed")
    return open_finder(Path(folder), threads, hold_fps)


def __getattr__(name: str) -> Any:
    """Import the commands when one is first asked for: `import heat` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module 'heat' has no attribute {name!r}")
    return getattr(importlib.import_module("heat.commands.api"), name)


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
