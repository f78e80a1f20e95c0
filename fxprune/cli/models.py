"""Models by name: torchvision's, timm's, transformers', of a function of the user's; and those that were saved."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune._base.errors import FxpruneError, FxpruneWarning, PlanError
from fxprune._base.extras import need
from fxprune.cli.command import told
from fxprune.cli.errors import InputError, OptionError, about_options, check_known, one_line, refused, suggestion
from fxprune.cli.output import warn
from fxprune.cli.specs import ModelSpec
from fxprune.cli.values import fetch, is_reference
from fxprune.cli.weights import load_weights
from fxprune.results.plan import check_fits
from fxprune.storage.loading import load_report

LIBRARIES = ("torchvision", "timm", "transformers")

#: What stands for "the weights that the library recommends".
TRAINED = ("DEFAULT", "PRETRAINED")

_DEVICES = ("cpu", "cuda", "mps", "xpu")

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
        pairs = [*(("arg", *given) for given in self.spec.args), *(("config", *given) for given in self.spec.config)]
        weights = "" if self.spec.weights is None else f" --weights {self.spec.weights}"
        more = "".join(f" --{word} {key}={value}" for word, key, value in pairs)
        return f"{self.spec.spec}{weights}{more}" + (f" --head {self.spec.head}" if self.spec.head else "")


def make(spec: ModelSpec, *, quiet: bool = False) -> Made:
    """Makes a model, in evaluation mode.

    Raises:
        InputError: the spec has none of the forms, the name or the weights are unknown (close names are
            given), a library is missing, the weights do not fit, or making it failed.
    """
    library, name = _parts(spec.spec)
    device = device_named(spec.device)
    _check_spec(spec, library, quiet)
    maker = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}.get(library, _factory)
    place = torch.device("meta") if spec.meta else nullcontext()
    with place, torch.random.fork_rng(devices=[]), _blamed(spec):
        torch.manual_seed(spec.seed)
        model = maker(spec, name, spec.named)
    if spec.meta:
        return Made(model.eval(), spec, library, name)
    if spec.file is not None:
        load_weights(model, Path(spec.file))
    return Made(model.to(device).eval(), spec, library, name)


def _check_spec(spec: ModelSpec, library: str, quiet: bool) -> None:
    """Finds what does not go together, and files that are not there, before a model is made."""
    if library != "transformers" and (spec.config or spec.head):
        raise OptionError(f"--config and --head are for transformers: models, got {spec.spec!r}: use --arg key=value")
    if library == "transformers" and spec.args:
        raise OptionError("--arg is not for transformers: models: use --config key=value")
    folder = spec.spec.removeprefix("transformers:")
    if library == "transformers" and folder.startswith((".", os.sep, "~")) and not os.path.isdir(folder):
        raise OptionError(f"model {spec.spec!r}: there is no folder {folder}")
    if spec.weights is None and not spec.meta and not quiet:
        own = "random; --weights DEFAULT for trained ones," if library else "as the factory makes them;"
        warn(f"{spec.spec}: the weights are {own} --weights FILE for yours, --weights none if it is meant so")
    if spec.file is not None and not os.path.exists(spec.file):
        raise OptionError(f"--weights {spec.file}: no such file")
    if spec.meta and spec.named is not None:
        raise OptionError(
            "--meta makes a model without weights: leave --weights out, and apply the plan to their files"
        )


def introduce(spec: str) -> None:
    """Imports the module of a factory, so that what it registers is known.

    Raises:
        InputError: the spec has none of the forms, or there is no such factory.
    """
    library, name = _parts(spec)
    if not library:
        fetch(name, "model")


def dense_of(options: Mapping[str, Any]) -> Made | None:
    """Returns the dense model that the options name, if any."""
    if options["model"] is not None:
        return make(ModelSpec(**told(ModelSpec, options, spec=options["model"], seed=0)), quiet=True)
    for name, word in (("weights", "weights"), ("args", "arg"), ("config", "config"), ("head", "head")):
        if options[name]:
            raise OptionError(f"--{word} is about the dense model: give --model too")
    return None


def load_pruned(directory: str, dense: Made | None, device: str) -> nn.Module:
    """Returns the pruned model of a directory on a device; the dense one gives what is not in the graph.

    Raises:
        InputError: the device cannot be used.
        PlanError: it holds none, a damaged one, or one of another model than the dense one.
    """
    where = device_named(device)
    if dense is None:
        return fxprune.load(directory).to(where)
    plan = load_report(directory).plan
    assert plan is not None, "a loaded report has its plan"
    check_fits(plan, dense.model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FxpruneWarning)  # what the graph lost, the dense model has
            return fxprune.load(directory).to(where)
    except (PlanError, FxpruneWarning):
        return fxprune.load(directory, dense.model).to(where)


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
    raise OptionError(f"model {spec!r}: expected {_FORMS}{hint}")


def _torchvision(spec: ModelSpec, name: str, weights: str | None) -> Any:
    from torchvision import models

    check_known(name, models.list_models(), f"torchvision has no model {name!r}")
    args = dict(spec.args)
    if weights is not None:
        weights = _chosen(spec, weights, [each.name for each in models.get_model_weights(name)])
    elif "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        args.setdefault("weights_backbone", None)  # or a detector would fetch its backbone's
    return models.get_model(name, weights=weights, **args)


def _timm(spec: ModelSpec, name: str, weights: str | None) -> Any:
    timm = need("timm", "models", spec.spec)
    bare, _, tag = name.partition(".")
    check_known(bare, timm.list_models(), f"timm has no model {bare!r}")
    if weights is not None:
        tags = [known.partition(".")[2] for known in timm.list_models(f"{bare}.*", pretrained=True)]
        chosen = _chosen(spec, weights, tags)
        tag = tag if chosen == "DEFAULT" else chosen
    return timm.create_model(f"{bare}.{tag}" if tag else bare, pretrained=weights is not None, **dict(spec.args))


def _chosen(spec: ModelSpec, weights: str, sets: Sequence[str]) -> str:
    """Returns the name of one of the sets of weights that a library has, or ``"DEFAULT"``."""
    if weights.upper() in TRAINED:
        return "DEFAULT"
    known = ", ".join(["DEFAULT", *sets])
    check_known(weights, sets, f"--weights {weights}: {spec.spec} has {known}, and there is no such file")
    return weights


def _transformers(spec: ModelSpec, name: str, weights: str | None) -> Any:
    transformers = need("transformers", "models", spec.spec)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt to reach the hub
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    if weights is not None and weights.upper() not in TRAINED:
        expected = "a transformers model has DEFAULT (its own), or a .safetensors or .pt file"
        raise OptionError(f"--weights {weights}: {expected}, and there is no such file")
    config = _configuration(transformers, spec, name)
    cls = _transformers_class(transformers, spec, config)
    if weights is not None:
        return cls.from_pretrained(name, config=config, trust_remote_code=False)
    auto = not hasattr(cls, "config_class") or cls.__name__.startswith("Auto")
    return cls.from_config(config, trust_remote_code=False) if auto else cls(config)


def _configuration(transformers: Any, spec: ModelSpec, name: str) -> Any:
    """Returns the configuration of a folder, of a name on the hub, or of a kind of model such as ``bert``."""
    kinds = list(transformers.CONFIG_MAPPING)
    if os.path.isdir(name) and not (Path(name) / "config.json").exists():
        raise OptionError(f"{name}: config.json is missing: expected a folder that save_pretrained wrote")
    if not os.path.isdir(name) and name in kinds:
        read = partial(transformers.AutoConfig.for_model, name)
    else:
        read = partial(transformers.AutoConfig.from_pretrained, name, trust_remote_code=False)
    expected = f"expected a folder, a name on the Hugging Face hub, or a kind such as bert{suggestion(name, kinds)}"
    with refused(f"transformers finds no configuration {name!r}: {expected}"):
        config = read()
    for key, _ in spec.config:
        if not hasattr(config, key):
            check_known(key, vars(config), f"--config {key}: {type(config).__name__} has no such field")
    return read(**dict(spec.config))


def _transformers_class(transformers: Any, spec: ModelSpec, config: Any) -> Any:
    """Returns the class that was asked for, the one of the checkpoint, or AutoModel."""
    if spec.head is None:
        own = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
        known = inspect.isclass(own) and issubclass(own, transformers.PreTrainedModel)
        return own if known else transformers.AutoModel
    found = getattr(transformers, spec.head, None)
    if not hasattr(found, "from_pretrained"):
        names = [n for n in dir(transformers) if n.startswith("AutoModel") or "For" in n or n.endswith("Model")]
        raise OptionError(f"--head {spec.head}: transformers has no such model{suggestion(spec.head, names)}")
    return found


def _factory(spec: ModelSpec, name: str, weights: str | None) -> nn.Module:
    if weights is not None:
        raise OptionError(f"--weights {weights}: no such file; {name} takes a .safetensors or .pt file")
    factory = fetch(name, "model")
    if not callable(factory):
        raise InputError(f"model {name!r}: expected a function or class, got {type(factory).__name__}")
    model = factory(**dict(spec.args))
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r}: expected it to return a torch.nn.Module, got {type(model).__name__}")
    return model


@contextmanager
def _blamed(spec: ModelSpec) -> Iterator[None]:
    """Says whose fault a failure is: the arguments', or that the weights cannot be had."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"[:400]
        if spec.named is not None and isinstance(error, OSError):
            lost = f"{spec.spec}: the weights {spec.named} cannot be had ({what}): give a file, --weights FILE"
            raise InputError(lost) from error
        raise InputError(f"{spec.spec}: making it failed: {what}") from error


def device_named(name: str) -> torch.device:
    """Returns a device on which a model can run.

    Raises:
        OptionError: there is none of this name here, or it cannot be used.
    """
    kind = name.partition(":")[0]
    hint = "" if kind in _DEVICES else suggestion(kind, _DEVICES)
    with about_options(), refused(f"--device {name}: it cannot be used here", hint):
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    return device
