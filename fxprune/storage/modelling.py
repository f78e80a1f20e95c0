"""The file of code in a checkpoint whose widths no settings can say: the stock class, narrowed as the checkpoint's settings tell."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

from fxprune._base.errors import ExportError
from fxprune.homing.constructing import SETTINGS, made_of
from fxprune.homing.places import numbers_in

CODE = "modeling_pruned"
_CONFIG = "config.json"

_TEXT = '''"""{name} with layers of unequal widths, which its settings cannot say. Read it with trust_remote_code=True."""

import copy

import torch
from transformers import {name}


class Pruned{name}({name}):
    """Makes the layers of its class, then narrows them to ``config.pruned_shapes`` and ``config.pruned_numbers``."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for name, shape in config.pruned_shapes.items():
            path, _, attribute = name.rpartition(".")
            module = self.get_submodule(path)
            held = module._parameters if attribute in module._parameters else module._buffers
            old = held[attribute]
            new = old.detach().new_zeros(shape)
            held[attribute] = torch.nn.Parameter(new, old.requires_grad) if attribute in module._parameters else new
        for path, steps, value in config.pruned_numbers:
            attributes = vars(self.get_submodule(path))
            attributes[steps[0]] = _changed(attributes[steps[0]], steps[1:], value)
        self.tie_weights()


def _changed(old, steps, value):
    if not steps:
        return value
    if isinstance(old, (list, tuple)):
        return type(old)(_changed(x, steps[1:], value) if i == steps[0] else x for i, x in enumerate(old))
    if isinstance(old, dict):
        return {{**old, steps[0]: _changed(old[steps[0]], steps[1:], value)}}
    new = copy.copy(old)
    vars(new)[steps[0]] = _changed(vars(old)[steps[0]], steps[1:], value)
    return new
'''


def write_code(home: Any, directory: Path) -> None:
    """Adds to a checkpoint what makes its class: a file of code, and in its settings what is narrower.

    Raises:
        ExportError: no auto class of transformers reads such a model, or its class is not of transformers.
    """
    import transformers

    name = type(home).__name__
    if getattr(transformers, name, None) is not type(home):
        raise ExportError(
            f"expected a class of transformers, which its readers have as well, got {type(home).__module__}.{name}"
        )
    path = directory / _CONFIG
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= _narrower(home)
    settings["architectures"] = [f"Pruned{name}"]
    settings["auto_map"] = dict.fromkeys(_readers(home), f"{CODE}.Pruned{name}")
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (directory / f"{CODE}.py").write_text(_TEXT.format(name=name), encoding="utf-8")


def class_in(directory: Path, home: Any) -> Any:
    """Returns the class in the file of code, imported under no name."""
    spec = importlib.util.spec_from_file_location(CODE, directory / f"{CODE}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"Pruned{type(home).__name__}")


def _narrower(home: Any) -> dict[str, Any]:
    """Returns the shapes and numbers in which a model is not what its class makes of its settings."""
    stock = made_of(home, copy.deepcopy(getattr(home, SETTINGS)))
    held = {**dict(stock.named_parameters(remove_duplicate=False)), **dict(stock.named_buffers(remove_duplicate=False))}
    own = {**dict(home.named_parameters(remove_duplicate=False)), **dict(home.named_buffers(remove_duplicate=False))}
    numbers = numbers_in(stock)
    return {
        "pruned_shapes": {
            name: list(t.shape) for name, t in own.items() if name in held and t.shape != held[name].shape
        },
        "pruned_numbers": [
            [path, list(steps), value]
            for (path, steps), value in numbers_in(home).items()
            if (path, steps) in numbers and numbers[path, steps] != value
        ],
    }


def _readers(home: Any) -> list[str]:
    """Returns the auto classes of transformers that read such a model."""
    from transformers.models.auto import modeling_auto

    found = []
    for name in dir(modeling_auto):
        mapping = (
            getattr(getattr(modeling_auto, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        )
        if mapping is not None and type(home.config) in mapping:
            made = mapping[type(home.config)]
            if type(home) in (made if isinstance(made, tuple) else (made,)):
                found.append(name)
    if not found:
        raise ExportError(f"no auto class of transformers reads a {type(home).__name__}")
    return found
