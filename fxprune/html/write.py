"""Renders templates under a strict policy, and writes the result whole."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import MissingExtraError

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
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"an HTML page needs {error.name or 'matplotlib'} ({error}): pip install 'fxprune[report]'"
        ) from error
    return _environment().get_template(template).render(contents())


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fxprune.html", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name, file in (("style", "style.css"), ("script", "script.js")):
        text = Path(__file__).with_name("templates").joinpath(file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        environment.globals[name] = Markup(text)
        environment.globals[f"{name}_hash"] = Markup(f"sha256-{digest}")
    return environment


def write(text: str, path: str | PathLike[str]) -> None:
    """Writes a file by way of another beside it, so that it is never half written.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(0o666 & ~_umask())
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
