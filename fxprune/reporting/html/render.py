"""Renders templates under a strict policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune._base.extras import need
from fxprune.results.tables import counted, percent, share

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, contents: Callable[[], Mapping[str, Any]]) -> str:
    """Returns a page; all text in it is escaped, and its policy allows its own style and script alone.

    Args:
        template: its file's name.
        contents: makes what the template shows; called once the packages that it needs are known to be there.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        need(package, "report", "an HTML page")
    return _environment().get_template(template).render(contents())


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fxprune.reporting.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"counted": counted, "percent": percent, "share": share}
    for name, file in (("style", "style.css"), ("script", "script.js")):
        text = Path(__file__).with_name("templates").joinpath(file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        environment.globals[name] = Markup(text)
        environment.globals[f"{name}_hash"] = Markup(f"sha256-{digest}")
    return environment
