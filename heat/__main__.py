"""`python -m heat` is the same as `heat`."""

import sys

from .commands.interrupts import CODES, end_now, ending_soon, finished, ignore_at_last, line_of


def main() -> int:
    """Run the command line; a signal while it is imported ends it with one line too."""
    ignore_at_last()
    try:
        with ending_soon():
            from .cli import main as run

            code = run()
    except KeyboardInterrupt as interrupt:
        line, code = line_of(interrupt)
        print(f"error: {line}", file=sys.stderr)
    if code in CODES:
        end_now(code)
    finished(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
