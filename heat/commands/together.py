"""Which options may be given together: one that would be ignored is refused by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from supernet.errors import UserError


def given(options: Mapping[str, object]) -> list[str]:
    """Return the options that were given: those that are neither None nor False."""
    return [option for option, value in options.items() if value is not None and value is not False]


def one_of(options: Mapping[str, object]) -> None:
    """Raise `UserError` where more than one of these options was given."""
    found = given(options)
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]}: one of them, not both")


def refuse_beside(asked: str, options: Mapping[str, object], why: str) -> None:
    """Raise `UserError` naming the first of these options that was given beside `asked`."""
    found = given(options)
    if found:
        raise UserError(f"{found[0]} beside {asked}: {why}")


def altered(
    command: Callable[..., Any], values: Mapping[str, object], *, but: tuple[str, ...]
) -> dict[str, object]:
    """Return the options of a command that have other values than by default, `but` for some.

    `values` are its arguments by name, as `locals()` has them at its beginning.
    """
    return {
        f"--{name.replace('_', '-')}": values[name]
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in but and values[name] != parameter.default
    }
