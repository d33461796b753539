"""Refuses every connection to another machine: an audit hook for this process, or for children.

As `sitecustomize` of a folder it guards child processes too: `guard_of` makes such a folder.
"""

import sys
from pathlib import Path

HERE = ("127.0.0.1", "::1", "localhost", "", "0.0.0.0", "::", None)
EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


class NetworkUsedError(BaseException):
    """Something connected to another machine; no `except Exception` hides it."""


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS:
        return
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
    host = address[0] if isinstance(address, tuple) else address
    inside = host in HERE or (isinstance(address, str | bytes) and event == "socket.connect")
    if not inside:  # a text is the path of a socket on this machine
        raise NetworkUsedError(f"{event} {address}")


def guard() -> None:
    """Guard this process until it ends."""
    sys.addaudithook(refuse)


def guard_of(folder: Path) -> Path:
    """Write a `sitecustomize` that guards every Python whose path has the folder first."""
    text = Path(__file__).read_text(encoding="utf-8")
    (folder / "sitecustomize.py").write_text(f"{text}\n\nguard()\n", encoding="utf-8")
    return folder
