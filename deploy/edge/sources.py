"""Resolves the sources that users name: images, folders, patterns, videos, cameras, streams.

Needs numpy only; every bundle's `detect.py` carries this file's text.
"""

from collections.abc import Iterable
from glob import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

from supernet.errors import DataError
from supernet.image_header import IMAGE_SUFFIXES

VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".wmv", ".asf", ".flv", ".mpg",
    ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv", ".gif", ".mjpeg", ".mjpg",
    ".divx", ".f4v", ".h264", ".hevc", ".mxf", ".nut", ".rm",
}  # fmt: skip
WILDCARDS = "*?["


def local_name(source: str) -> str:
    """Return the path of a file:// URL of this machine; another source as it is."""
    scheme, _, rest = source.partition("://")
    host, slash, path = rest.partition("/")
    if scheme.lower() != "file" or host.lower() not in ("", "localhost") or not slash:
        return source
    return unquote(f"/{path}")


def is_live(source: str) -> bool:
    """Return whether a source is a camera number or a stream, and no file or folder of that name.

    A folder called 0 is a folder.
    """
    source = local_name(source)
    return "://" in source or (source.isdecimal() and not Path(source).exists())


def is_video(source: str) -> bool:
    """Return whether a source is a camera number, a stream, or a video file."""
    if is_live(source):
        return True
    return Path(source).suffix.lower() in VIDEO_SUFFIXES and not Path(source).is_dir()


def expanded(sources: Iterable[str]) -> list[str]:
    """Return the sources, each pattern replaced by the images and videos that match it, once."""
    found: dict[str, None] = {}
    for source in map(local_name, sources):
        if not source:
            raise DataError("a source is empty: give a file, a folder, a camera's number or a URL")
        if is_live(source) or Path(source).exists() or not _has_wildcard(source):
            found[source] = None
            continue
        matching = _matching(Path(source), IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        if not matching:
            raise DataError(f"no image or video matches {source}")
        found |= dict.fromkeys(map(str, matching))
    return list(found)


def image_paths(sources: Path | Iterable[Path]) -> list[Path]:
    """Return the image files of folders and patterns (`shots/*.jpg`) and the files named, once."""
    named = [sources] if isinstance(sources, Path) else list(sources)
    return list(dict.fromkeys(path for source in named for path in _images_of(source)))


def _images_of(source: Path) -> list[Path]:
    if source.is_dir():
        found = sorted(p for p in source.iterdir() if _is_one_of(p, source, IMAGE_SUFFIXES))
        videos = [] if found else videos_in(source)
        if videos:
            raise DataError(
                f"no images in {source}, but {len(videos)} video(s), {videos[0].name} first: "
                f"'{source / '*'}' takes them"
            )
        if not found:
            raise DataError(f"no images in {source}: {', '.join(sorted(IMAGE_SUFFIXES))} are read")
        return found
    if source.is_char_device() or source.is_block_device():
        raise DataError(f"{source} is a device and no image; cameras are given by number: 0")
    if source.exists():
        return [source]
    if _has_wildcard(str(source)):
        found = _matching(source, IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"no image matches {source}")
        return found
    raise DataError(f"no image or folder at {source}")


def videos_in(folder: Path) -> list[Path]:
    """Return the videos of a folder, which are left out where the folder itself is a source."""
    suffixes = VIDEO_SUFFIXES - IMAGE_SUFFIXES
    return sorted(path for path in folder.iterdir() if _is_one_of(path, folder, suffixes))


def _has_wildcard(source: str) -> bool:
    return any(sign in source for sign in WILDCARDS)


def _matching(pattern: Path, suffixes: set[str]) -> list[Path]:
    """Return the files that match; what exists of the path is taken as written."""
    root = next((folder for folder in pattern.parents if folder.is_dir()), Path())
    rest = str(pattern.relative_to(root))
    try:
        # A bracket may also be part of a folder's name that follows a wildcard.
        for text in (rest, escape(rest).replace("[*]", "*").replace("[?]", "?")):
            found = sorted(p for p in root.glob(text) if _is_one_of(p, root, suffixes))
            if found:
                return found
    except ValueError as error:
        raise DataError(f"{pattern} is no pattern: {error}") from None
    return []


def _is_one_of(path: Path, root: Path, suffixes: set[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in suffixes and not hidden and path.is_file()


def recording_name(source: str) -> str:
    """Return the name, without .mp4, under which what was found in a video is saved.

    It keeps a suffix other than .mp4, so that clip.mp4 and clip.avi do not meet, and of a stream's
    address neither user nor password.
    """
    if "://" in source:
        parts = urlsplit(source)
        return Path(parts.path).stem or parts.hostname or "stream"
    if is_live(source):
        return f"camera{source}"
    path = Path(source)
    return path.stem if path.suffix.lower() == ".mp4" else path.name
