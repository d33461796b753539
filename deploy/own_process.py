"""How a module of HEAT is run in a process of its own."""

import sys
from pathlib import Path

HOME = str(Path(__file__).resolve().parents[1])


def module_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module; its arguments may follow.

    `python -m` would look in the working directory first, where a user may have a `deploy.py`.
    """
    code = f"import runpy, sys; sys.path.insert(0, {HOME!r}); "
    return sys.executable, "-P", "-c", f"{code}runpy.run_module({module!r}, run_name='__main__')"
