"""Figures within an HTML page: SVG that takes the page's colours, light or dark, and its width."""

import io
import re

from matplotlib import rc_context
from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows by itself, also where pyplot is not used."""

    def _repr_svg_(self) -> str:
        return page_svg(self, "figure", "figure")


def page_svg(figure: Figure, key: str, label: str) -> str:
    """Return a figure as SVG for a page; `key` keeps its ids apart from other figures'."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text: sharp, to be searched
        figure.savefig(stream, format="svg", transparent=True)
    return embedded(stream.getvalue(), key, label)


def embedded(text: str, key: str, label: str) -> str:
    """Return the element of an SVG file, without metadata, its black as the page's ink.

    Matplotlib leaves black text without a fill, so that it inherits the page's.
    """
    start = text.find("<svg")
    if start < 0:
        return ""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[start:], flags=re.DOTALL)
    text = re.sub(r'(\sid=")([^"]+")', rf"\g<1>{key}-\g<2>", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r"(stroke|fill): #000000", r"\1: currentColor", text)
    # Frames of figures, axes and legends; white letters are groups, not paths.
    text = re.sub(r'(<path [^>]*?style="fill: )#ffffff', r"\1none", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
