"""Class names as models state them."""

from supernet.errors import UserError


def in_order(
    found: object, where: str, advice: str = "--teacher-names FILE, one a line"
) -> tuple[str, ...]:
    """Return the names of a list, or of a dict by number, which may leave none out.

    Raises `UserError`, naming `where` they come from, for anything else: a gap would give every
    class after it the name of the next.
    """
    if isinstance(found, list | tuple):
        return tuple(str(name) for name in found)
    try:
        if isinstance(found, dict):
            numbered = {int(key): str(name) for key, name in found.items()}
            return tuple(numbered[index] for index in range(len(numbered)))
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{where} are no list of names without gaps: {advice}")
