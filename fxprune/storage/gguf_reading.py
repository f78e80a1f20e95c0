"""A GGUF file as its readers see it, compared with the model: to the bit, setting by setting, and by what it computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.errors import ExportError, brief, raised_as
from fxprune.homing.constructing import SETTINGS
from fxprune.homing.places import changed, numbers_in
from fxprune.homing.proof import difference
from fxprune.homing.terms import Place
from fxprune.storage.gguf_contents import Contents, bytes_of
from fxprune.storage.gguf_names import (
    HEADS,
    KV_HEADS,
    OUTPUT,
    ROPE_FACTORS,
    Dialect,
    as_read,
    floats_in,
    place,
    tensors_of,
)
from fxprune.storage.pretrained import calls_like

#: Settings that change nothing of what a model computes in evaluation, so that a file need not say them.
_IDLE = (
    "initializer",
    "dropout",
    "use_cache",
    "token_id",
    "pretraining_tp",
    "quantization_config",
    "max_window_layers",
    "tie_word_embeddings",
)


def same_file(contents: Contents, draft: Path) -> None:
    """Makes sure that a file has what it is to have, to the bit.

    Raises:
        ExportError: something in it is another.
    """
    from gguf import GGUFReader

    with raised_as(ExportError, "what was written cannot be read"):
        reader = GGUFReader(draft)
    got = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    want = {key: field.value for key, field in contents.fields.items()} | {
        "general.architecture": contents.architecture
    }
    for key in want.keys() | got.keys():
        if want.get(key) != got.get(key):
            raise ExportError(f"what was written has {key} as {got.get(key)!r:.80}, expected {want.get(key)!r:.80}")
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != contents.tensors.keys():
        raise ExportError(f"what was written has other tensors: {sorted(found.keys() ^ contents.tensors.keys())[:3]}")
    for name, tensor in contents.tensors.items():
        shape = tuple(int(n) for n in found[name].shape)[::-1]
        if shape != tuple(tensor.shape) or found[name].data.tobytes() != bytes_of(tensor).tobytes():
            raise ExportError(f"what was written has another {name}: {list(shape)}, expected {list(tensor.shape)}")


def same_model(home: Any, dialect: Dialect, contents: Contents, draft: Path) -> None:
    """Makes sure that who reads a file gets the model: its settings, its tensors, the numbers in its modules, and its outputs.

    Raises:
        ExportError: it is another one.
    """
    settings = _settings_read(home, dialect, contents, draft)
    _same_settings(getattr(home, SETTINGS), settings, dialect, ROPE_FACTORS in contents.tensors)
    device = next(home.parameters()).device
    try:
        again = type(home)(settings)
    except Exception as error:  # of any class
        raise ExportError(f"{type(home).__name__} is not made of what the file says: {brief(error)}") from error
    _filled(again, home, dialect, contents, draft)
    _same_numbers(again, home)
    again.to(device).train(home.training)
    calls = list(calls_like(home, device))
    if not calls:
        raise ExportError("the call that the model was compiled with is not known, so nothing could be compared")
    for call in calls:
        if (told := difference(again, home, call)) is not None:
            raise ExportError(f"what the file says is another model: {told.replace('the graph', 'this')}")


def _settings_read(home: Any, dialect: Dialect, contents: Contents, draft: Path) -> Any:
    """Returns the settings that transformers reads from a file; of those that differ by layer the largest."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with raised_as(ExportError, "transformers cannot read what was written"):
        said = load_gguf_checkpoint(str(draft))[SETTINGS]
    for key, own in dialect.table.items():
        field = contents.fields.get(f"{contents.architecture}.{key}")
        if own is not None and field is not None:
            said.setdefault(own, field.value)
    kept = {own: max(value) if isinstance(value, list) else value for own, value in said.items()}
    for own in ("model_type", "architectures", "_name_or_path"):
        kept.pop(own, None)
    old = getattr(home, SETTINGS)
    kept |= {
        own: value for own, value in vars(old).items() if own.endswith("_token_id")
    }  # nothing is computed with them
    try:
        settings = type(old)(**kept)
    except Exception as error:  # of any class, which may check what it is made of
        raise ExportError(
            f"{type(old).__name__} is not made of what the file says: {brief(error)}. Compile with uniform=True, in which heads and "
            "stream keep in step; or hold the stream by ignore=, or the heads by units="
        ) from error
    settings._attn_implementation = old._attn_implementation
    return settings


def _same_settings(old: Any, new: Any, dialect: Dialect, factors: bool) -> None:
    """Makes sure that what a file does not say is what its readers take for granted.

    Raises:
        ExportError: it is not; names the setting.
    """
    from transformers import PreTrainedConfig

    renamed = getattr(old, "attribute_map", {})
    said = {renamed.get(own, own) for own in dialect.table.values() if own is not None}
    said |= PreTrainedConfig().to_dict().keys() | ({"rope_parameters"} if factors else set())
    want, got = old.to_dict(), new.to_dict()
    for key in sorted(want.keys() - said):
        if not key.startswith("_") and not any(word in key for word in _IDLE) and not _alike(want[key], got.get(key)):
            raise ExportError(
                f"a file of kind {dialect.name!r} does not say {key}: its readers take {got.get(key)!r}, got {want[key]!r}"
            )


def _filled(again: Any, home: Any, dialect: Dialect, contents: Contents, draft: Path) -> None:
    """Gives a new model the tensors of a file, and the integers that go with their sizes."""
    from gguf import GGUFReader, dequantize

    found = {tensor.name: tensor for tensor in GGUFReader(draft).tensors}
    named = tensors_of(home, dialect)
    by_layer = contents.architecture != dialect.name
    heads = contents.by_layer((HEADS, KV_HEADS), dialect.blocks)
    made = {own: list(tensor.shape) for own, tensor in again.state_dict().items()}
    for name, (own, tensor) in named.items():
        values = dequantize(found[name].data, found[name].tensor_type)
        read = torch.from_numpy(np.array(as_read(dialect, name, heads, values)))
        if made.get(own) != list(tensor.shape) and not by_layer:
            raise ExportError(f"{own} is {list(tensor.shape)}, where what the file says makes {made.get(own, 'none')}")
        _put(again, own, _equal(own, read, tensor))
    if OUTPUT not in named:
        again.tie_weights()
    if ROPE_FACTORS in found:
        for module in again.modules():
            if isinstance(getattr(module, "inv_freq", None), Tensor):
                module.inv_freq = module.inv_freq / torch.from_numpy(np.array(found[ROPE_FACTORS].data))
    _rounded(again, home)
    integers = {key: value for key, value in numbers_in(home, (int,)).items() if key[1][0] != SETTINGS}
    changed(again, {Place(*key, 0): value for key, value in integers.items()})


def _rounded(again: nn.Module, home: nn.Module) -> None:
    """Rounds what a new model computed for itself, such as frequencies, as the model's was rounded with its dtype."""
    saved, own = again.state_dict().keys(), dict(home.named_buffers())
    for name, buffer in list(again.named_buffers()):
        want = own.get(name)
        if name in saved or want is None or want.dtype == buffer.dtype or want.shape != buffer.shape:
            continue
        found, want = buffer.to(want.dtype), want.cpu()
        if torch.allclose(found, want, rtol=4 * torch.finfo(want.dtype).eps, atol=0.0):
            _put(again, name, want)


def _equal(own: str, read: Tensor, tensor: Tensor) -> Tensor:
    """Returns a tensor as it was read, ``[...]``, in the model's dtype.

    Raises:
        ExportError: it is another than the model's, but for the rounding of a number that its reader takes away.
    """
    found, want = read.to(tensor.dtype), tensor.cpu()
    off = 0.0 if want.dim() > 1 else 2.0**-22
    if found.shape != want.shape or not torch.allclose(found, want, rtol=0.0, atol=off, equal_nan=True):
        raise ExportError(f"what was written has another {own}: {list(found.shape)}, expected {list(want.shape)}")
    return found


def _put(model: nn.Module, own: str, tensor: Tensor) -> None:
    path, _, attribute = own.rpartition(".")
    module = model.get_submodule(path)
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
    elif attribute in module._buffers:
        module._buffers[attribute] = tensor
    else:
        raise ExportError(f"{type(model).__name__}, made of what the file says, has no {own}")


def _same_numbers(again: nn.Module, home: nn.Module) -> None:
    """Makes sure that modules hold the floats of the model, such as an eps or a scale.

    Raises:
        ExportError: one is another; names it.
    """
    want, got = floats_in(home), floats_in(again)
    missing = again.state_dict().keys() ^ home.state_dict().keys()
    if missing:
        raise ExportError(
            f"{type(home).__name__}, made of what the file says, has other tensors: {sorted(missing)[:3]}"
        )
    for key in want.keys() | got.keys():
        if not _alike(want.get(key), got.get(key)):
            raise ExportError(f"the file cannot say {place(key)}: its readers take {got.get(key)}, got {want.get(key)}")


def _alike(a: Any, b: Any) -> bool:
    """Returns whether two settings are the same, floats as float32."""
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return bool(a == b)
