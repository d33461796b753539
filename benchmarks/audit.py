"""Known vulnerabilities and licences of what HEAT installs: `make audit`.

    python benchmarks/audit.py

Vulnerabilities are looked up by pip-audit for the versions of `constraints.txt`, which needs a
network. Licences are those that the installed packages state. Exit codes: 0 all is well, 1 a
vulnerability or a licence that HEAT cannot be shipped with, 2 vulnerabilities were not looked up.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = ("", "edge", "openvino", "build")
STRICT = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.I)
LESSER = re.compile(r"\b(LGPL|Lesser General)", re.I)
OFFLINE = ("ConnectionError", "NameResolution", "Connection refused", "Max retries", "unreachable")


def installed() -> dict[str, str]:
    """Return the packages that HEAT needs and that are installed, with the licence of each."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, tuple[str, ...]]] = [("heatdetr", EXTRAS)]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[canonicalize_name(name)] = licence_of(package)
        for text in package.requires or ():
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                waiting.append((need.name, ("", *sorted(need.extras))))
    return found


def licence_of(package: importlib.metadata.Distribution) -> str:
    """Return the licence that a package states: an SPDX expression, a text, or classifiers."""
    head = package.metadata
    stated = head.get("License-Expression") or head.get("License") or ""
    classes = [
        value.rpartition("::")[2].strip()
        for key, value in head.items()
        if key == "Classifier" and value.startswith("License ::")
    ]
    if stated and len(stated) < 80 and "\n" not in stated:
        return stated
    return ", ".join(classes) or stated.strip().splitlines()[0][:60] if stated or classes else "?"


def vulnerabilities() -> tuple[list[str], str | None]:
    """Return the known vulnerabilities, and why they were not looked up."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "-r", str(ROOT / "constraints.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named pip_audit" in done.stderr:
        return [], "pip-audit is not installed: pip install pip-audit"
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = done.stderr.strip().splitlines() or ["no answer"]
        offline = any(word in done.stderr for word in OFFLINE)
        return [], f"{'no network' if offline else 'pip-audit failed'} ({lines[-1][:160]})"
    found = [
        f"{package['name']} {package.get('version', '')}: {known['id']}, fixed in "
        f"{', '.join(known['fix_versions']) or 'no version'}"
        for package in packages
        for known in package.get("vulns", ())
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        return found, f"PyPI's service does not answer for {len(skipped)} of {len(packages)}"
    return found, None


def main() -> int:
    """Print both lists; a JSON line comes last."""
    licences = installed()
    for name, licence in sorted(licences.items()):
        print(f"{name:32} {licence}", file=sys.stderr)
    refused = sorted(
        name for name, text in licences.items() if STRICT.search(text) and not LESSER.search(text)
    )
    found, why = vulnerabilities()
    for line in found:
        print(f"vulnerable: {line}", file=sys.stderr)
    if why:
        print(f"vulnerabilities were NOT looked up: {why}", file=sys.stderr)
    for name in refused:
        print(f"licence: {name} is {licences[name]}", file=sys.stderr)
    print(json.dumps({"packages": len(licences), "vulnerable": found, "not_looked_up": why,
                      "refused_licences": refused}))  # fmt: skip
    return 1 if found or refused else 2 if why else 0


if __name__ == "__main__":
    sys.exit(main())
