"""Architectures as JSON: `architecture.json`, checkpoint headers, metadata of exported graphs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

from ..errors import UserError, wrong_format

FORMAT_VERSION = 1
"""History of `architecture.json`: 1, the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A frozen architecture whose fields are the keys of its JSON."""

    invalid: ClassVar[str]
    """What a message states of a file that is none: `<file> <invalid> (<error>)`."""
    added: ClassVar[Mapping[str, object]] = {}
    """Fields that came later, with what their absence means. With that value they stay absent: what
    older versions recorded, and its digests, are then those of the same network today."""

    def to_dict(self) -> dict[str, object]:
        """Return the values of `architecture.json`."""
        fields = asdict(self).items()
        kept = {name: value for name, value in fields if (name, value) not in self.added.items()}
        return {"format": FORMAT_VERSION, **kept}

    def to_json(self) -> str:
        """Return the text of `architecture.json`, as checkpoints have it in their headers."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "architecture.json") -> Self:
        """Read what `to_dict` returned; raise `UserError` naming what is wrong."""
        try:
            fields = dict(values)
            version = fields.pop("format")
            if version != FORMAT_VERSION:
                raise UserError(
                    wrong_format(source, version, [FORMAT_VERSION], "make it again (heat thin)")
                )
            cls.restore_tuples(fields)
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{source} {cls.invalid} ({error})") from None

    @classmethod
    def restore_tuples(cls, fields: dict[str, Any]) -> None:
        """Replace the lists of JSON by the tuples of the fields; `KeyError` where one is absent."""
        fields["input_size"] = tuple(fields["input_size"])

    @classmethod
    def from_json(cls, text: str, source: str = "architecture.json") -> Self:
        """Read a text; raise `UserError` naming what is wrong."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source} {cls.invalid} ({error})") from None
        return cls.from_dict(values, source)

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)
