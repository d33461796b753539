"""Writes the commit into what is built, so that an installed `heat --version` names it."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "supernet" / "version.py"))


def write_commit(folder: str) -> None:
    """Write the commit of this checkout, or of the sdist that is built from."""
    found = VERSION["commit"]()
    if found:
        (Path(folder) / "supernet" / "commit.txt").write_text(f"{found}\n", encoding="utf-8")


class BuildPy(build_py):
    """Builds the packages with the commit; not where they are used in place."""

    def run(self) -> None:
        """Build, then write the commit beside the modules."""
        super().run()
        if not self.editable_mode:
            write_commit(self.build_lib)


class Sdist(sdist):
    """Packs the sources with the commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Lay out the sources, then write the commit into them."""
        super().make_release_tree(base_dir, files)
        write_commit(base_dir)


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
