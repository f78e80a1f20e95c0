"""Other people's scripts are tried where their packages are: those of the extra ``ecosystem``, all of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_PACKAGES = ("accelerate", "lightning", "peft", "timm", "transformers", "ultralytics")
_LACKING = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is in this folder where the extra is not installed."""
    reason = f"no {', '.join(_LACKING)}: pip install -e '.[test,ecosystem]'"
    for item in items:
        if _LACKING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
