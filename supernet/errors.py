"""Every error HEAT raises on purpose.

HeatError                 exit code 1: a fault of ours
├── UserError             exit code 2: the request cannot be served as given
│   ├── DataError         images or annotations
│   ├── DeviceError       a device that is not there or is not what it must be
│   ├── TableError        a latency table that is broken, stale or of another device
│   ├── CheckpointError   a checkpoint that is broken or does not fit
│   └── BundleError       an exported folder that is broken or does not fit
└── PromiseError          exit code 3: target missed, parity failed

A message says what failed, the value seen, and the command that fixes it, in one line.
"""

from typing import Any


class HeatError(Exception):
    """Base of all errors raised on purpose.

    `result` is what the command would have printed, for programs.
    """

    exit_code = 1

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        """Keep the result beside the message."""
        super().__init__(message)
        self.result = result


class UserError(HeatError):
    """The request cannot be served as given."""

    exit_code = 2


class DataError(UserError):
    """Images or annotations are missing or broken."""


class DeviceError(UserError):
    """The device is unknown, absent, or not what it must be."""


class TableError(UserError):
    """The latency table is broken, stale, or belongs to another device."""


class CheckpointError(UserError):
    """The checkpoint is broken or does not fit the architecture."""


class BundleError(UserError):
    """The exported bundle is broken or does not fit the request."""


class PromiseError(HeatError):
    """A promise was not kept: the target was missed or the artefacts disagree."""

    exit_code = 3
