"""The places of a HeatDETR by name: where an entry is, and whose channels it writes."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Part = Literal["stem", "down", "local", "global", "sam", "neck"]

LAST_STAGE = 4
"""SCM, TCM and the head work at its width."""

PATTERNS: tuple[tuple[Part, str], ...] = (
    ("local", r"s(\d)_(\d+)"),
    ("global", r"s(\d)_global"),
    ("sam", r"sam(\d)_\w+"),
    ("down", r"down\d(\d)"),
)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The part and the stage of an entry."""

    part: Part
    """`neck` is all that follows the stages and SAM; `global` is the global block of a stage."""
    stage: int
    """The stage, from 1, whose residual stream the entry writes to."""
    position: int | None = None
    """Among the local blocks of the stage, from 0."""

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, name: str) -> "Place":
        """Read a name as `Architecture.entries` gives it: `s3_7`, `down34`, `scm_up4`."""
        for part, pattern in PATTERNS:
            found = re.fullmatch(pattern, name)
            if found is not None:
                stage, *position = map(int, found.groups())
                return cls(part, stage, *position)
        return cls("stem", 1) if name == "stem" else cls("neck", LAST_STAGE)


def local_name(stage: int, position: int) -> str:
    """Return the name of a local block's place: `s3_7`."""
    return f"s{stage}_{position}"
