"""Runs the probe on another machine over the system's ssh, and reconnects after a lost connection.

The pack is sent as standard input, results return as standard output: the other machine needs a
POSIX shell, Python with numpy, and the runtime. Its files are kept in `~/.cache/heat` there.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from supernet.atomic import write_bytes
from supernet.errors import DeviceError, TableError

FOLDER = ".cache/heat"
NOTHING = Path(os.devnull)
LOST = 255
"""Exit code of ssh when the connection, not the command, failed."""
ATTEMPTS = 6
WAIT_S = 2.0
"""Pause before the second attempt; each further one is twice as long."""

START = "heat-results"
"""Line before the results: a login shell may print something of its own first."""

SSH_VARIABLE = "HEAT_SSH_COMMAND"
"""Environment variable with another ssh command, such as `ssh -p 2222 -i key`."""
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5")


class Host:
    """A machine that ssh reaches without asking for a password."""

    def __init__(self, address: str, *, python: str = "python3") -> None:
        """Set the address; no connection is made yet."""
        if not address or address.startswith("-"):
            raise DeviceError(f"--host {address!r}: USER@BOX is needed")
        self.address, self._python = address, python
        self._ssh = shlex.split(os.environ.get(SSH_VARIABLE, "ssh"))

    def measure(self, pack: Path, name: str, results: Path) -> Path:
        """Send the pack, run the probe until it is finished, fetch the results."""
        here = f"{FOLDER}/{shlex.quote(name)}.pyz"
        there = f"{FOLDER}/{shlex.quote(name)}.results.jsonl"
        found = self._retry(f"test -s {here} && echo there || echo missing", "look for the probe")
        if found.split()[-1:] != [b"there"]:  # the shell may greet first
            part = f"{here}.$$"  # of this attempt alone: the cat of a lost one may still be running
            # An interrupted sender is an end of file to cat: only a whole pack gets its name.
            whole = f"cat > {part} && test $(wc -c < {part}) -eq {pack.stat().st_size}"
            store = f"{whole} && mv {part} {here} || {{ rm -f {part}; false; }}"
            self._retry(f"mkdir -p {FOLDER} && {{ {store}; }}", "send the probe", send=pack)
        self._retry(f"{shlex.quote(self._python)} {here} --results {there}", "run the probe")
        fetched = self._retry(f"echo {START}; cat {there}", "fetch the results")
        write_bytes(results, fetched.partition(f"{START}\n".encode())[2])
        # What is left there would be taken for the results of a later run.
        self._retry(f"rm -f {there}", "remove the results")
        return results

    def _retry(self, command: str, what: str, *, send: Path = NOTHING) -> bytes:
        """Run a command there, again after a lost connection; return its standard output."""
        for attempt in range(ATTEMPTS):
            if attempt:
                wait = WAIT_S * 2 ** (attempt - 1)
                print(f"connection to {self.address} lost: again in {wait:.0f} s", file=sys.stderr)
                time.sleep(wait)
            with send.open("rb") as stream:
                done = subprocess.run(
                    [*self._ssh, *SSH_OPTIONS, self.address, command],
                    stdin=stream,
                    stdout=subprocess.PIPE,
                    check=False,
                )
            if done.returncode == 0:
                return done.stdout
            if done.returncode != LOST:
                raise TableError(
                    f"{self.address}: cannot {what} (exit code {done.returncode}, its reason is "
                    f"above): {self._python} there needs numpy and the runtime; --host-python "
                    "names another"
                )
        raise DeviceError(
            f"{self.address} cannot be reached to {what}: try ssh {self.address}, then the same "
            "command again; what was measured is kept there"
        )
