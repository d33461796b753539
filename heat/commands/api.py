"""The commands as Python functions: `heat.thin(target_fps=24)` is `heat thin --target-fps 24`.

Each takes the options of its command by name and returns an outcome: the command's JSON, typed.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints

from supernet.errors import UserError, did_you_mean

from ..records import Result
from ..workspace import DEFAULT, Workspace, commanded
from . import build as builds
from . import fleet as fleets
from . import look, models, search, thinning, training
from .outcomes import Evaluation, Export, Outcome, Profile, Report, Thinning, Training

P = ParamSpec("P")
Kind = TypeVar("Kind", bound=Outcome)


def returning(command: Callable[P, Result], kind: type[Kind]) -> Callable[P, Kind]:
    """Return the function of a command: values are checked as its options are."""
    hints = get_type_hints(command)

    @wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> Kind:
        bound = _bound(command, hints, args, kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = checked(name, value, hints[name])
        out = bound.arguments.get("out", DEFAULT)
        given = [*map(_shown, args), *(f"{key}={_shown(value)}" for key, value in kwargs.items())]
        with commanded(f"heat.{call.__name__}({', '.join(given)})"):
            return kind(command(*bound.args, **bound.kwargs), Workspace(out))

    return call


def _shown(value: object) -> str:
    return repr(str(value) if isinstance(value, Path) else value)


def _bound(
    command: Callable[..., Result],
    hints: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> inspect.BoundArguments:
    """Bind arguments; options that the command has as fields of one argument are collected."""
    options = dict(kwargs)
    known = [*hints]
    for name, hint in hints.items():
        if not is_dataclass(hint):
            continue
        own = get_type_hints(hint)
        known += own
        given = {
            key: checked(key, options.pop(key), own[key])
            for key in own
            if key in options and not isinstance(options[key], cast(type, hint))
        }
        if given:
            options[name] = cast(Any, hint)(**given)
    for key in options:
        if key not in known:
            raise UserError(f"{key}{did_you_mean(key, known)}: no option of {command.__name__}")
    try:
        return inspect.signature(command).bind(*args, **options)
    except TypeError as error:  # one that is needed is missing, or given twice
        raise UserError(f"{command.__name__}: {error}") from None


def checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value as an option takes it; raise `UserError` for others.

    A text becomes a path, or a list of one. `hint` is a type, a Literal, or a union of these.
    """
    options = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    if get_origin(hint) in (tuple, list):
        options = (hint,)
    if any(_fits(value, option) for option in options):
        return value
    if Path in options and isinstance(value, str):
        return Path(value)
    if isinstance(value, str) and list[str] in options:
        return [value]
    if isinstance(value, tuple | list) and all(isinstance(part, str | Path) for part in value):
        paths = tuple(map(Path, value))
        if any(_fits(paths, option) for option in options):
            return paths
    known = [
        word for option in options if get_origin(option) is Literal for word in get_args(option)
    ]
    if isinstance(value, int) and str(value) in known:
        return str(value)
    if known:
        near = did_you_mean(str(value), known)
        raise UserError(f"{name}={value!r}{near}: one of {', '.join(known)}")
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise UserError(f"{name}={value!r}: {names.replace('NoneType', 'None')} is needed")


def _fits(value: Any, option: Any) -> bool:
    origin = get_origin(option)
    if origin is Literal:
        return value in get_args(option)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, get_args(option)[0]) for each in value)
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(get_args(option))
            and all(map(_fits, value, get_args(option)))
        )
    if option in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if option is float else option)


profile = returning(search.profile, Profile)
supernet = returning(search.supernet, Training)
thin = returning(thinning.thin, Thinning)
train = returning(training.train, Training)
export = returning(models.export, Export)
evaluate = returning(models.evaluate, Evaluation)
build = returning(builds.build, Export)
fleet = returning(fleets.fleet, Outcome)
report = returning(look.report, Report)
