"""The columns of a table that name an entry: what an operator needs besides its sizes is in two."""

from collections.abc import Mapping
from typing import Any

from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

SIZES = ("op", "stride", "d_in", "d_out", "h", "w")
COLUMNS = (*SIZES, "extra", "anchors")
"""The last two hold the `parameters` of the operator, the first one as a float."""


def entry_columns(entry: Entry) -> dict[str, Any]:
    """Return the values of an entry's columns."""
    named = [getattr(entry, name) for name in OPERATORS[entry.op].parameters]
    extra, anchors = (*named, 0, 0)[:2]
    sizes = {name: getattr(entry, name) for name in SIZES}
    return {**sizes, "extra": float(extra), "anchors": int(anchors)}


def entry_of(values: Mapping[str, Any]) -> Entry:
    """Return the entry that some columns name; an unknown operator is a `KeyError`."""
    entry = Entry(**{name: values[name] for name in SIZES})
    kinds = {name: type(getattr(entry, name)) for name in OPERATORS[entry.op].parameters}
    found = zip(kinds.items(), (values["extra"], values["anchors"]), strict=False)
    return entry.with_(**{name: kind(value) for (name, kind), value in found})
