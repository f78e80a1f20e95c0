"""Settings of other libraries that would write or ask outside a test's folder."""

from __future__ import annotations

from pathlib import Path

import pytest


def within(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Has what ultralytics writes on its own (settings, fonts) lie in a folder, and has it ask nobody for anything.

    It reads this when it is imported, so that within a process the first folder counts.
    """
    patch.setenv("YOLO_CONFIG_DIR", str(folder))
    patch.setenv("YOLO_OFFLINE", "1")
    patch.setenv("YOLO_AUTOINSTALL", "false")
    (folder / "Ultralytics").mkdir(exist_ok=True)
    (folder / "Ultralytics" / "Arial.ttf").touch()  # it is asked for, and drawn with in plots alone
