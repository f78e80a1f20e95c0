"""The smallest network of each task of ultralytics, of their own files of settings: asked for by name, since its licence is AGPL."""

from __future__ import annotations

import os
from functools import partial

import torch

from ..zoo import images
from . import Architecture, Call

_NAMES = ("yolov8n", "yolo11n", "yolov8n-seg", "yolov8n-pose", "yolov8n-cls", "yolov10n")


def _build(name: str) -> Call:
    os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false")  # read when it is imported
    from ultralytics import YOLO

    return Call(YOLO(f"{name}.yaml").model.eval(), (images(2, 160, torch.Generator().manual_seed(0)),))


def entries() -> list[Architecture]:
    """Returns them."""
    return [Architecture("ultralytics", f"ultralytics:{name}", partial(_build, name)) for name in _NAMES]
