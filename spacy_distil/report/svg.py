"""Figures of matplotlib as SVG inside an HTML page."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

# What looks the same on light and dark paper stays. The rest takes the colours of the page.
_COLOURS = {
    "#000000": "currentColor",
    "#e6e6e6": "var(--line)",  # the grid
    "#ffffff": "var(--paper)",
}
_METADATA = ("Creator", "Date", "Format", "Type")


def to_svg(figure: Any, *, name: str, label: str) -> str:
    """Write a figure as an `<svg>` element that belongs into an HTML page.

    The same figure always gives the same text. Texts stay texts, in the font and the colour of the
    page.

    figure: of matplotlib.
    name: begins all ids. No other figure on the page may have it.
    label: text that stands for the figure.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA, None)
        )
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in list(parent):
            # Its rules would hold for the whole page.
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(key): _adapt(_local(key), value, name) for key, value in element.items()
        }
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """The name of an element or attribute without its namespace, which HTML does not need."""
    return name.rpartition("}")[2]


def _adapt(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "style":
        rules = (rule.strip() for rule in value.split(";"))
        kept = [_recolour(rule) for rule in rules if not rule.startswith("font-family")]
        return "; ".join(kept)
    return re.sub(r"url\(#", f"url(#{name}-", value)


def _recolour(rule: str) -> str:
    prop, _, value = rule.partition(": ")
    return f"{prop}: {_COLOURS.get(value, value)}"
