"""Settings of single layers, for a class that reads them where its settings have a place for them: ``config.per_layer_config``."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune._base.errors import RestoreError
from fxprune.homing.constructing import SETTINGS, Construction, constructed, settings_of, sizes_of, with_settings
from fxprune.homing.terms import Place, leaves

#: The attribute through which transformers' settings hold those of single layers.
LAYERS = "per_layer_config"


def has_layers(settings: Any) -> bool:
    """Returns whether settings have a place for those of single layers."""
    return hasattr(type(settings), LAYERS)


def settings_by_layer(model: nn.Module) -> Any:
    """Returns the settings of which the class of a model makes one of the same shapes, some of them for each layer.

    Raises:
        RestoreError: there are none, as where the class reads no settings of single layers.
    """
    settings, made = getattr(model, SETTINGS), constructed(model)
    names = [name for name in _differing(model, made) if _is_read(model, name, made.sizes())]
    if not names:
        raise RestoreError(f"{type(model).__name__} reads none of those that differ")
    return _told_once(settings_of(with_settings(model, _spread(settings, set(names)))), names)


def _differing(model: nn.Module, made: Construction) -> list[str]:
    """Returns the settings that have to do with tensors of other shapes than they make now."""
    sizes, found = made.sizes(), dict[str, None]()
    for name, shape in sizes_of(model).items():
        for term, size, now in zip(made.shapes.get(name, ()), shape, sizes.get(name, ()), strict=False):
            if size != now:
                found |= dict.fromkeys(
                    str(leaf.steps[1]) for leaf in leaves(term) if isinstance(leaf, Place) and len(leaf.steps) == 2
                )
    return list(found)


def _is_read(model: nn.Module, name: str, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether the class of a model makes tensors of the same ``sizes`` of a setting that only its layers have."""
    try:
        return constructed(with_settings(model, _spread(getattr(model, SETTINGS), {name}))).sizes() == sizes
    except RestoreError:
        return False


def _spread(settings: Any, names: set[str]) -> Any:
    """Returns settings of which some stand with each layer, as they are there now; what stands for all is another number."""
    own = {index: {name: getattr(one, name) for name in names} for index, one in enumerate(getattr(settings, LAYERS))}
    new = copy.deepcopy(settings)
    for name in names:
        setattr(new, name, max(layer[name] for layer in own.values()) + 1)
    said = _said(settings)
    setattr(new, LAYERS, {index: said.get(index, {}) | layer for index, layer in own.items()})
    return new


def _told_once(settings: Any, names: list[str]) -> Any:
    """Returns settings with what most layers have standing for all of them."""
    said, new = _said(settings), copy.deepcopy(settings)
    for name in names:
        most = Counter(layer[name] for layer in said.values()).most_common(1)[0][0]
        setattr(new, name, most)
    setattr(new, LAYERS, said)
    return new


def _said(settings: Any) -> dict[int, dict[str, Any]]:
    """Returns what settings say of single layers."""
    return {int(index): dict(layer) for index, layer in (settings.to_dict().get(LAYERS) or {}).items()}
