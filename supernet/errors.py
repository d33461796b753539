"""Every error HEAT raises on purpose.

HeatError                 exit code 1: a fault of ours
├── UserError             exit code 2: the request cannot be served as given
│   ├── DataError         images or annotations
│   ├── DeviceError       a device that is absent or not as required
│   ├── TableError        a latency table that is broken, stale or of another device
│   ├── CheckpointError   a checkpoint that is broken or does not fit
│   └── BundleError       an exported folder that is broken or does not fit
└── PromiseError          exit code 3: target missed, parity failed

A message says what failed, the value seen, and the command that fixes it, in one line.
"""

import difflib
import re
from collections.abc import Iterable, Mapping

SECRET_NAME = r"[\w.%-]*(?:pass|pwd|token|key|secret|auth|credential|sig)[\w.%-]*="
SECRETS = re.compile(rf"(?<=://)[^\s?#]+(?=@)|(?<=[?&;#])({SECRET_NAME})[^&\s]+", re.I)
"""User and password in a URL, and values of such a name in its query."""
NO_MEMORY = re.compile(
    r"OutOfMemory|bad_alloc|Insufficient memory|(?:memory.*alloc|alloc.*memory)"
    r"|failed to map segment|can't start new thread"
    r"|out of memory|_ALLOC_FAILED"  # CUDA, cuBLAS, cuDNN, NCCL
    r"|could not create a (?:memory|primitive)\b(?! desc)",  # oneDNN
    re.I,
)
MEMORY_TEXT = 100
"""Characters that are shown of a library's text about memory."""
PATH_SECRETS = re.compile(rf"(://[^\s?#]*?/(?:[^\s?#/]*=)?{SECRET_NAME})[^&\s]+", re.I)
"""Secrets in the path of a camera's URL: rtsp://host/user=admin_password=..."""


def masked(text: str) -> str:
    """Return a text in which the URLs show neither users nor passwords."""
    shown = SECRETS.sub(lambda found: (found[1] or "") + "***", text)
    return PATH_SECRETS.sub(lambda found: found[1] + "***", shown)


def in_one_line(text: str) -> str:
    """Return a text as a terminal may show it: line breaks are blanks, control codes are escaped.

    Names of files and classes are anybody's.
    """
    joined = re.sub(r"\s*[\r\n]\s*", " ", text)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)


def wrong_format(what: object, found: object, known: Iterable[int], otherwise: str) -> str:
    """Return why a file of a format that is not `known` is refused.

    That of a newer HEAT names what to install; of another, what to do `otherwise`.
    """
    formats = sorted(known)
    if isinstance(found, int) and not isinstance(found, bool) and found > formats[-1]:
        return (
            f"{what}: format {found} is of a newer HEAT, this one reads up to {formats[-1]}: "
            "pip install --upgrade heatdetr"
        )
    shown = " and ".join(map(str, formats))
    return f"{what}: format {str(found)[:40]!r}, this HEAT reads {shown}: {otherwise}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest known word, to follow a name; empty without any."""
    by_lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def refusal(error: OSError) -> str:
    """Return what the system refused and why, in one line; files only where the error names any."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or str(error) or type(error).__name__
    return masked(f"{' to '.join(names)}: {reason}" if names else reason)


def out_of_memory(error: BaseException) -> str | None:
    """Return in one line that memory did not suffice; None for another error.

    Libraries raise it under many names, and where a file or a thread could not be had for it.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not NO_MEMORY.search(
        f"{type(error).__name__} {text}"
    ):
        return None
    shown = text[-MEMORY_TEXT:] or type(error).__name__  # what it was about is said last
    return (
        f"out of memory ({shown}): end other programs, or ask for less (--workers, --batch-size, "
        "--input-size)"
    )


class HeatError(Exception):
    """Base of all errors raised on purpose.

    `result` is what the command would have printed, for programs: JSON values.
    """

    exit_code = 1

    def __init__(self, message: str, result: Mapping[str, object] | None = None) -> None:
        """Take a message, whose URLs are stripped of passwords, and a result."""
        super().__init__(in_one_line(masked(message)))
        self.result = result


class UserError(HeatError):
    """The request cannot be served as given."""

    exit_code = 2


class DataError(UserError):
    """Images or annotations are missing or broken."""


class DeviceError(UserError):
    """The device is unknown, absent, or not as required."""


class TableError(UserError):
    """The latency table is broken, stale, or belongs to another device."""


class CheckpointError(UserError):
    """The checkpoint is broken or does not fit the architecture."""


class BundleError(UserError):
    """The exported bundle is broken or does not fit the request."""


class PromiseError(HeatError):
    """A target was missed, or the artefacts disagree."""

    exit_code = 3
