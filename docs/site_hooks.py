"""What `make docs` does beyond MkDocs: pages from the repository, and a check of what was built.

`benchmarks/README.md` and the texts of the repository's root exist once, there, and are
pages here too, as are the figures that pages show. A link of theirs to a file that is no page
becomes its path. After the build every link and anchor must exist, and no page may load anything
from another host.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("benchmarks/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
FIGURES = (
    "benchmarks/results/frontier-bccd.svg",
    "benchmarks/results/frontier-aquarium.svg",
    "benchmarks/results/demo/generated/detections.jpg",
)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
ELSEWHERE = {"README.md": "index.md"}
"""Pages that stand in for files of the repository."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and figures that lie elsewhere in the repository."""
    for path in (*PAGES, *FIGURES):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str | None:
    """Turn a repository page's links to files that are no pages into their paths.

    Pages of docs/ link the others as files of the repository, so that both readings work.
    """
    source = page.file.src_uri
    if source not in PAGES:
        return markdown.replace("](../", "](")
    folder = (ROOT / source).parent

    def linked(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if target.startswith(("#", "http:", "https:")):
            return found[0]
        path, _, anchor = target.partition("#")
        there = (folder / path).resolve()
        if not there.exists():
            raise PluginError(f"{source} links {target}, which does not exist")
        name = there.relative_to(ROOT).as_posix()
        name = ELSEWHERE.get(name, name)
        if files.get_file_from_path(name) is None:
            return text if text == f"`{Path(path).name}`" else f"{text} (`{name}`)"
        up = "../" * source.count("/")
        return f"[{text}]({up}{name}{'#' + anchor if anchor and name == path else ''})"

    return LINK.sub(linked, markdown)


class _Reader(HTMLParser):
    """Collects the ids of a page, its links, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag == "link" and given.get("href") and given.get("rel") not in ("canonical", "next"):
            self.loads.append(str(given["href"]))
        for key in ("src", "srcset", "poster", "data"):
            if given.get(key):
                self.loads.append(str(given[key]).split()[0])


def on_post_build(*, config: MkDocsConfig, **_: Any) -> None:
    """Raise `PluginError` where a built page has a dead link, or loads from another host."""
    site = Path(config.site_dir)
    pages: dict[Path, _Reader] = {}
    for path in site.rglob("*.html"):
        pages[path.resolve()] = _Reader()
        pages[path.resolve()].feed(path.read_text(encoding="utf-8"))
    wrong: list[str] = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute
            continue
        name = path.relative_to(site.resolve())
        for target in (*page.links, *page.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    wrong.append(f"{name} loads {target}")
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                wrong.append(f"{name} links {target}, which does not exist")
            elif parts.fragment and there in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[there].ids and not anchor.startswith("__"):
                    wrong.append(f"{name} links {target}: there is no such place")
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        wrong += [
            f"{path.name} loads {url}" for url in re.findall(r"url\([\"']?(https?:[^)]+)", text)
        ]
    if wrong:
        raise PluginError("\n".join(sorted(set(wrong))))
