"""Turns matplotlib's SVG into markup for a page under a strict policy: classes, no styles."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours that stand for roles while matplotlib draws; the style sheet has those of light and dark.
ROLES = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "before": "#010206",
    "after": "#010207",
    "removed": "#010208",
    "cut": "#010209",
    "paper": "#01020a",
    "edge": "#01020b",
    "third": "#01020c",
    "fourth": "#01020d",
}

_ROLE_OF = {colour: role for role, colour in ROLES.items()}

#: What of a style becomes an attribute; fonts are the style sheet's.
_KEPT = {
    "stroke-width",
    "stroke-linecap",
    "stroke-linejoin",
    "stroke-dasharray",
    "stroke-dashoffset",
    "text-anchor",
    "opacity",
    "fill-opacity",
    "stroke-opacity",
}
_DROPPED = {"metadata", "style"}
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_SETTINGS = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 12.0, "font.family": "DejaVu Sans"}


def embedded(draw: Callable[[], Figure], name: str, title: str, description: str) -> Markup:
    """Returns a figure as an ``<svg>`` element with a title and a description; one unit of it is one pixel.

    Args:
        draw: makes the figure, at 72 dots an inch.
        name: what its ids begin with, unique in the page.
        title: its accessible name.
        description: what it shows, in words.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    settings: Any = _SETTINGS | {"svg.hashsalt": name}
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # the page is the same whatever the user draws with
        mpl.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        figure = draw()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title",
        "aria-describedby": f"{name}-text",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'text'}"})
        element.text = text
        root.insert(position, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, name: str) -> None:
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    for child in list(element):
        if child.tag.rpartition("}")[2] in _DROPPED:
            element.remove(child)
        else:
            _clean(child, name)
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    style = _declarations(attributes.pop("style", ""))
    painted = {key: attributes.pop(key, None) or style.get(key) for key in ("fill", "stroke")}
    classes = []
    for key, colour in painted.items():
        if colour is None:
            continue
        if colour in _ROLE_OF:
            classes.append(f"{key}-{_ROLE_OF[colour]}")
        else:
            attributes[key] = colour
    attributes |= {key: value for key, value in style.items() if key in _KEPT}
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    for key in ("href", "clip-path"):
        if key in attributes:
            attributes[key] = attributes[key].replace("#", f"#{name}-")
    for key in ("d", "transform", "x", "y", "points", "width", "height"):
        if key in attributes:
            attributes[key] = _NUMBER.sub(lambda m: f"{float(m[0]):.1f}", attributes[key]).replace("\n", "")
    if classes:
        attributes["class"] = " ".join(classes)
    element.attrib = attributes


def _declarations(style: str) -> Mapping[str, str]:
    pairs = (part.partition(":") for part in style.split(";") if ":" in part)
    return {key.strip(): value.strip() for key, _, value in pairs}
