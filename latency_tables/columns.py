"""The columns of a table that identify an entry; parameters of its operator share the last two."""

from typing import TypedDict

from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

COLUMNS = ("op", "stride", "d_in", "d_out", "h", "w", "extra", "anchors")


class EntryColumns(TypedDict):
    """Values of the columns, in the order of `COLUMNS`."""

    op: str
    stride: int
    d_in: int
    d_out: int
    h: int
    w: int
    extra: float
    """First of the operator's `parameters`; 0 where it has none."""
    anchors: int
    """Second of them."""


def entry_columns(entry: Entry) -> EntryColumns:
    """Return the values of an entry's columns."""
    named = [getattr(entry, name) for name in OPERATORS[entry.op].parameters]
    extra, anchors = (*named, 0, 0)[:2]
    return {
        "op": entry.op,
        "stride": entry.stride,
        "d_in": entry.d_in,
        "d_out": entry.d_out,
        "h": entry.h,
        "w": entry.w,
        "extra": float(extra),
        "anchors": int(anchors),
    }


def entry_of(values: EntryColumns) -> Entry:
    """Return the entry of some column values; an unknown operator is a `KeyError`."""
    entry = Entry(
        op=values["op"],
        stride=values["stride"],
        d_in=values["d_in"],
        d_out=values["d_out"],
        h=values["h"],
        w=values["w"],
    )
    kinds = {name: type(getattr(entry, name)) for name in OPERATORS[entry.op].parameters}
    found = zip(kinds.items(), (values["extra"], values["anchors"]), strict=False)
    return entry.with_(**{name: kind(value) for (name, kind), value in found})
