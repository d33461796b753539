"""Docstrings as help: a terminal breaks lines where it ends, not where the source file did."""

import re
from collections.abc import Callable
from inspect import cleandoc
from typing import TypeVar

Documented = TypeVar("Documented", bound=Callable[..., object])
"""A function or a class."""

INDENT = 4
"""Of the arguments in a docstring, whose further lines are indented more."""


def flowing(documented: Documented) -> Documented:
    """Give a function or a class its docstring with each paragraph and argument on one line."""
    lines: list[str] = []
    for line in cleandoc(documented.__doc__ or "").splitlines():
        indent = len(line) - len(line.lstrip())
        before = lines[-1] if lines else ""
        goes_on = indent > INDENT or (not indent and not before.startswith(" "))
        if goes_on and line and before and not re.fullmatch(r"\w+:", before):
            lines[-1] = f"{before} {line.lstrip()}"
        else:
            lines.append(line)
    documented.__doc__ = "\n".join(lines)
    return documented
