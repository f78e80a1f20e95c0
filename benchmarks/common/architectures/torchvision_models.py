"""All models of torchvision, but the quantized ones, which are others' weights in integers."""

from __future__ import annotations

import fnmatch
from functools import partial
from typing import Any

import torch

from ..zoo import images
from . import Architecture, Call

#: Edge of the images by name pattern, the first that matches; what the model takes at least, or enough to have windows.
_EDGES = {
    "inception_v3": 96,
    "maxvit_t": 224,
    "swin*": 112,
    "vit_h_14": 56,
    "vit_b_32": 128,
    "vit_l_32": 128,
    "raft_*": 128,
    "ssd300*": 300,
    "ssdlite*": 320,
    "*_fpn*": 128,
    "s3d": 224,
    "mvit*": 224,
    "*": 64,
}
_FRAMES = {"mvit*": 16, "s3d": 16, "*": 4}


def _at(table: dict[str, int], name: str) -> int:
    return next(value for pattern, value in table.items() if fnmatch.fnmatchcase(name, pattern))


def _options(name: str, edge: int) -> dict[str, Any]:
    """Returns what the builder needs so that nothing is loaded, or drawn for minutes, and the size fits."""
    if name.startswith("vit_"):
        return {"image_size": edge}
    if name in ("googlenet", "inception_v3"):
        return {"init_weights": False}
    if "_fpn" in name:  # these scale what they get to a size of their own, by default 800, and look at 1,000 regions
        few = {"rpn_post_nms_top_n_test": 32, "box_detections_per_img": 8} if "rcnn" in name else {}
        return {"min_size": edge, "max_size": edge, **few}
    return {}


def _build(group: str, name: str) -> Call:
    import torchvision.models as tv

    edge, generator = _at(_EDGES, name), torch.Generator().manual_seed(0)
    options = _options(name, edge)
    if group in ("segmentation", "detection"):
        options["weights_backbone"] = None
    model = tv.get_model(name, weights=None, **options).eval()
    if group == "detection":
        return Call(model, (list(images(2, edge, generator).sigmoid()),))
    if group == "optical_flow":
        return Call(model, (images(2, edge, generator).tanh(), images(2, edge, generator).tanh()))
    if group == "video":
        frames = _at(_FRAMES, name)
        clips = images(2 * frames, edge, generator).unflatten(0, (2, frames)).transpose(1, 2)
        return Call(model, (clips.contiguous(),))
    return Call(model, (images(4, edge, generator),))


def entries() -> list[Architecture]:
    """Returns one line for each registered builder."""
    import torchvision.models as tv

    groups = {
        "": tv,
        "segmentation": tv.segmentation,
        "video": tv.video,
        "optical_flow": tv.optical_flow,
        "detection": tv.detection,
    }
    return [
        Architecture("torchvision", f"torchvision:{name}", partial(_build, group, name))
        for group, module in groups.items()
        for name in tv.list_models(module)
    ]
