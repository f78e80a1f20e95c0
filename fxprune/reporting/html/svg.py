"""Turns matplotlib's SVG into markup for a page under a strict policy: classes, no styles."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

_NAMES = "ink muted line before after removed cut paper edge third fourth"

#: Colours that stand for roles while matplotlib draws; the style sheet has those of light and dark.
ROLES = {role: f"#0102{index:02x}" for index, role in enumerate(_NAMES.split(), 3)}

_ROLE_OF = {colour: role for role, colour in ROLES.items()}

_TICKS = {"color": ROLES["line"], "labelcolor": ROLES["muted"], "major.size": 0, "major.pad": 6}

#: How every chart is drawn.
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": ROLES["ink"],
    "font.size": 12.0,
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    "axes.edgecolor": ROLES["line"],
    "axes.labelcolor": ROLES["muted"],
    "axes.axisbelow": True,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in _TICKS.items()},
    "grid.color": ROLES["line"],
    "grid.linewidth": 0.6,
    "lines.markersize": 8,
    "legend.fontsize": 12,
    "legend.frameon": False,
}

#: What of a style becomes an attribute; fonts are the style sheet's.
_KEPT = re.compile(r"stroke-(width|linecap|linejoin|dasharray|dashoffset)|text-anchor|((fill|stroke)-)?opacity")
_DROPPED = {"metadata", "style"}
_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def embedded(draw: Callable[[], Figure], name: str, title: str, description: str) -> Markup:
    """Returns a figure as an ``<svg>`` element with a title and a description; one unit of it is one pixel.

    Args:
        draw: makes the figure, at 72 dots an inch.
        name: what its ids begin with, unique in the page.
        title: its accessible name.
        description: what it shows, in words.
    """
    buffer = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # the page is the same whatever the user draws with
        mpl.rcParams.update(_SETTINGS | {"svg.hashsalt": name})
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
    for position, (tag, kind, text) in enumerate((("title", "title", title), ("desc", "text", description))):
        root.insert(position, ElementTree.Element(tag, {"id": f"{name}-{kind}"}))
        root[position].text = text
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, name: str) -> None:
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    element[:] = [child for child in element if child.tag.rpartition("}")[2] not in _DROPPED]
    for child in element:
        _clean(child, name)
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    pairs = (part.partition(":") for part in attributes.pop("style", "").split(";") if ":" in part)
    style = {key.strip(): value.strip() for key, _, value in pairs}
    painted = {key: attributes.pop(key, None) or style.get(key) for key in ("fill", "stroke")}
    classes = [f"{key}-{_ROLE_OF[colour]}" for key, colour in painted.items() if colour in _ROLE_OF]
    attributes |= {key: colour for key, colour in painted.items() if colour is not None and colour not in _ROLE_OF}
    attributes |= {key: value for key, value in style.items() if _KEPT.fullmatch(key)}
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    for key in {"href", "clip-path"} & attributes.keys():
        attributes[key] = attributes[key].replace("#", f"#{name}-")
    for key in {"d", "transform", "x", "y", "points", "width", "height"} & attributes.keys():
        attributes[key] = _NUMBER.sub(lambda m: f"{float(m[0]):.1f}", attributes[key]).replace("\n", "")
    if classes:
        attributes["class"] = " ".join(classes)
    element.attrib = attributes
