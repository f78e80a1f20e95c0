"""Models by name: torchvision's, timm's, transformers', or of a function of the user's."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune._base.extras import need
from fxprune.cli.errors import InputError, one_line, suggestion
from fxprune.cli.model_options import ModelSpec, is_file
from fxprune.cli.say import warn
from fxprune.cli.values import fetch, is_reference
from fxprune.cli.weights import load_weights

LIBRARIES = ("torchvision", "timm", "transformers")

#: What stands for "the weights that the library recommends".
TRAINED = ("DEFAULT", "PRETRAINED")

_FORMS = "torchvision:NAME, timm:NAME, transformers:NAME_OR_DIR or package.module:factory"


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A model, and where it came from.

    Attributes:
        model: in evaluation mode.
        spec: how it was made.
        library: ``"torchvision"``, ``"timm"``, ``"transformers"``, or ``""`` for a factory of the user's.
        name: its name there.
    """

    model: nn.Module
    spec: ModelSpec
    library: str
    name: str

    def __str__(self) -> str:
        weights = "" if self.spec.weights is None else f" --weights {self.spec.weights}"
        changed = [("arg", self.spec.args), ("config", self.spec.config)]
        more = "".join(f" --{word} {k}={v}" for word, values in changed for k, v in values.items())
        return f"{self.spec.spec}{weights}{more}" + (f" --head {self.spec.head}" if self.spec.head else "")


def make(spec: ModelSpec, *, quiet: bool = False) -> Made:
    """Makes a model, in evaluation mode.

    Raises:
        InputError: the spec has none of the forms, the name or the weights are unknown (close names are
            given), a library is missing, the weights do not fit, or making it failed.
    """
    library, name = _parts(spec.spec)
    device = device_named(spec.device)
    if library != "transformers" and (spec.config or spec.head):
        raise InputError(f"--config and --head are for transformers: models, got {spec.spec!r}: use --arg key=value")
    if library == "transformers" and spec.args:
        raise InputError("--arg is not for transformers: models: use --config key=value")
    if spec.weights is None and not spec.meta and not quiet:
        own = "--weights DEFAULT for trained ones, " if library else ""
        warn(f"{spec.spec}: the weights are random; {own}--weights FILE for yours, --weights none if it is meant so")
    maker = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}.get(library, _factory)
    file = spec.weights if spec.weights is not None and is_file(spec.weights) else None
    if file is not None and not os.path.exists(file):
        raise InputError(f"--weights {file}: no such file")
    chosen = spec.named
    if spec.meta and chosen is not None:
        raise InputError("--meta makes a model without weights: leave --weights out, and apply the plan to their files")
    place = torch.device("meta") if spec.meta else nullcontext()
    with place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = maker(spec, name, chosen)
    if file is not None and not spec.meta:
        load_weights(model, Path(file))
    model = model.eval() if spec.meta else model.to(device).eval()
    return Made(model, spec, library, name)


def _parts(spec: str) -> tuple[str, str]:
    library, colon, name = spec.partition(":")
    if library in LIBRARIES and name:
        return library, name
    hint = suggestion(library if colon else spec, LIBRARIES)
    if is_reference(spec) and not (hint and importlib.util.find_spec(library.partition(".")[0]) is None):
        return "", spec
    if not colon:
        import torchvision  # type: ignore[import-untyped]

        known = torchvision.models.list_models()
        hint = f"; did you mean torchvision:{spec}?" if spec in known else suggestion(spec, known)
    raise InputError(f"model {spec!r}: expected {_FORMS}{hint}")


def _torchvision(spec: ModelSpec, name: str, weights: str | None) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise InputError(f"torchvision has no model {name!r}{suggestion(name, known)}")
    builder = models.get_model_builder(name)
    args = dict(spec.args)
    if weights is None and "weights_backbone" in inspect.signature(builder).parameters:
        args.setdefault("weights_backbone", None)  # or a detector would fetch its backbone's
    chosen = None
    if weights is not None:
        sets = models.get_model_weights(name)
        wanted = "DEFAULT" if weights.upper() in TRAINED else weights
        names = [each.name for each in sets]
        if wanted not in sets.__members__:
            raise InputError(
                f"--weights {weights}: {spec.spec} has {', '.join(['DEFAULT', *names])}, and there is no "
                f"such file{suggestion(weights, names)}"
            )
        chosen = sets[wanted]
    with _blamed(spec, weights):
        model: nn.Module = builder(weights=chosen, **args)
    return model


def _timm(spec: ModelSpec, name: str, weights: str | None) -> nn.Module:
    timm = need("timm", "models", spec.spec)
    bare, _, tag = name.partition(".")
    known = timm.list_models()
    if bare not in known:
        raise InputError(f"timm has no model {bare!r}{suggestion(bare, known)}")
    if weights is not None and weights.upper() not in TRAINED:
        tag, tags = weights, [n.partition(".")[2] for n in timm.list_models(f"{bare}.*", pretrained=True)]
        if tag not in tags:
            raise InputError(
                f"--weights {weights}: {spec.spec} has DEFAULT, {', '.join(tags)}, and there is no such file"
                f"{suggestion(weights, tags)}"
            )
    with _blamed(spec, weights):
        model: nn.Module = timm.create_model(
            f"{bare}.{tag}" if tag else bare, pretrained=weights is not None, **spec.args
        )
    return model


def _transformers(spec: ModelSpec, name: str, weights: str | None) -> nn.Module:
    transformers = need("transformers", "models", spec.spec)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt to reach the hub
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    if weights is not None and weights.upper() not in TRAINED:
        raise InputError(
            f"--weights {weights}: a transformers model has DEFAULT (its own), or a .safetensors or .pt "
            "file, and there is no such file"
        )
    config = _configuration(transformers, spec, name)
    cls = _transformers_class(transformers, spec, config)
    auto = not hasattr(cls, "config_class") or cls.__name__.startswith("Auto")
    with _blamed(spec, weights):
        if weights is not None:
            model: nn.Module = cls.from_pretrained(name, config=config, trust_remote_code=False)
        else:
            model = cls.from_config(config, trust_remote_code=False) if auto else cls(config)
    return model


def _configuration(transformers: Any, spec: ModelSpec, name: str) -> Any:
    """Returns the configuration of a folder, of a name on the hub, or of a kind of model such as ``bert``."""
    kinds = list(transformers.CONFIG_MAPPING)
    if os.path.isdir(name) and not (Path(name) / "config.json").exists():
        raise InputError(f"{name}: config.json is missing: expected a folder that save_pretrained wrote")
    if not os.path.isdir(name) and name in kinds:
        read = partial(transformers.AutoConfig.for_model, name)
    else:
        read = partial(transformers.AutoConfig.from_pretrained, name, trust_remote_code=False)
    try:
        config = read()
    except Exception as error:
        raise InputError(
            f"transformers finds no configuration {name!r}: expected a folder, a name on the Hugging Face "
            f"hub, or a kind such as bert{suggestion(name, kinds)} ({one_line(error)[:300]})"
        ) from error
    if unknown := [key for key in spec.config if not hasattr(config, key)]:
        close = suggestion(unknown[0], vars(config))
        raise InputError(f"--config {unknown[0]}: {type(config).__name__} has no such field{close}")
    with _blamed(spec, None):
        return read(**spec.config)


def _transformers_class(transformers: Any, spec: ModelSpec, config: Any) -> Any:
    """Returns the class that was asked for, the one of the checkpoint, or AutoModel."""
    if spec.head is None:
        own = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
        known = inspect.isclass(own) and issubclass(own, transformers.PreTrainedModel)
        return own if known else transformers.AutoModel
    names = [n for n in dir(transformers) if n.startswith("AutoModel") or "For" in n or n.endswith("Model")]
    found = getattr(transformers, spec.head, None)
    if not hasattr(found, "from_pretrained"):
        raise InputError(f"--head {spec.head}: transformers has no such model{suggestion(spec.head, names)}")
    return found


def _factory(spec: ModelSpec, name: str, weights: str | None) -> nn.Module:
    if weights is not None:
        raise InputError(f"--weights {weights}: no such file; {name} takes a .safetensors or .pt file")
    factory = fetch(name, "model")
    if not callable(factory):
        raise InputError(f"model {name!r}: expected a function or class, got {type(factory).__name__}")
    with _blamed(spec, None):
        model = factory() if not spec.args else factory(**spec.args)
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    return model


@contextmanager
def _blamed(spec: ModelSpec, weights: str | None) -> Iterator[None]:
    """Says whose fault a failure is: the arguments', or that the weights cannot be had."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"[:400]
        if weights is not None and isinstance(error, OSError):
            raise InputError(
                f"{spec.spec}: the weights {weights} cannot be had ({what}): give a file, --weights FILE"
            ) from error
        raise InputError(f"{spec.spec}: making it failed: {what}") from error


def device_named(name: str) -> torch.device:
    """Returns a device on which a model can run.

    Raises:
        InputError: there is none of this name here, or it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:
        raise InputError(f"--device {name}: it cannot be used here ({one_line(error)[:200]})") from error
    return device
