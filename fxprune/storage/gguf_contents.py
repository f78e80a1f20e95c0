"""What the GGUF file of a model is to hold, and the writing of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.errors import ExportError, raised_as
from fxprune.storage.gguf_names import (
    EMBEDDING,
    INNER,
    ROPE_FACTORS,
    Dialect,
    as_read,
    heads_of,
    numbers_of,
    stored,
    tensors_of,
)


@dataclass(frozen=True, slots=True)
class Field:
    """A setting in a file.

    Attributes:
        value: a number, a text, or a list.
        kind: the format's type of it.
        of: for a list, the type of what is in it.
    """

    value: Any
    kind: Any
    of: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What is in a file.

    Attributes:
        architecture: as the file names it.
        fields: by key, without the architecture's own.
        tensors: by the format's names, as they are in the file, ``[...]``.
    """

    architecture: str
    fields: Mapping[str, Field]
    tensors: Mapping[str, Tensor]

    def by_layer(self, keys: Sequence[str], blocks: int) -> dict[str, list[int]]:
        """Returns numbers of each layer, of those keys that there are."""
        found = {key: self.fields[f"{self.architecture}.{key}"].value for key in keys if self.has(key)}
        return {key: value if isinstance(value, list) else [value] * blocks for key, value in found.items()}

    def has(self, key: str) -> bool:
        """Returns whether there is a setting of the architecture."""
        return f"{self.architecture}.{key}" in self.fields


def contents_of(home: Any, dialect: Dialect, tokenizer_from: str | os.PathLike[str] | None) -> Contents:
    """Returns what the file of a model is to hold.

    Raises:
        ExportError: the format cannot say it.
    """
    own = tensors_of(home, dialect)
    heads, head = heads_of(home, own, dialect.blocks)
    tensors = {
        name: stored(own_name, tensor, partial(as_read, dialect, name, heads)).cpu()
        for name, (own_name, tensor) in own.items()
    }
    by_layer = {**heads, **_inner(tensors, dialect.blocks)}
    numbers = numbers_of(home, dialect)
    dims, factors = _rotary(home, numbers.get("rope.freq_base"))
    if factors is not None:
        tensors[ROPE_FACTORS] = _allowed(factors, dialect)
    numbers |= _sizes(tensors, by_layer, head, dims, dialect.blocks)
    name = _architecture(dialect, by_layer)
    fields = {f"{name}.{key}": _field(value) for key, value in numbers.items()}
    fields["general.file_type"] = _field(_file_type(tensors))
    return Contents(name, fields | _tokenizer(tokenizer_from, len(tensors[EMBEDDING])), tensors)


def write(contents: Contents, draft: Path) -> None:
    """Writes a file."""
    from gguf import GGMLQuantizationType, GGUFWriter

    kinds = {
        torch.float32: GGMLQuantizationType.F32,
        torch.float16: GGMLQuantizationType.F16,
        torch.bfloat16: GGMLQuantizationType.BF16,
    }
    writer = GGUFWriter(draft, contents.architecture)
    try:
        for key, field in contents.fields.items():
            writer.add_key_value(key, field.value, field.kind, field.of)
        for name, tensor in contents.tensors.items():
            writer.add_tensor(name, bytes_of(tensor), raw_dtype=kinds[tensor.dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def bytes_of(tensor: Tensor) -> Any:
    """Returns the bytes of a tensor ``[..., n]`` as an array ``[..., bytes of n]``."""
    return tensor.contiguous().view(torch.uint8).numpy()


def _inner(tensors: Mapping[str, Tensor], blocks: int) -> dict[str, list[int]]:
    """Returns the inner width of each layer, where each has one."""
    found = [tensors.get(f"blk.{layer}.ffn_down.weight") for layer in range(blocks)]
    columns = [tensor.shape[1] for tensor in found if tensor is not None]  # what is up may be two in one
    return {INNER: columns} if len(columns) == blocks else {}


def _architecture(dialect: Dialect, by_layer: Mapping[str, Sequence[int]]) -> str:
    """Returns the name of the architecture that layers of such widths are.

    Raises:
        ExportError: there is none.
    """
    unequal = [f"{key} {_short(values)}" for key, values in by_layer.items() if len(set(values)) > 1]
    if unequal and not dialect.by_layer:
        raise ExportError(
            f"llama.cpp reads one width for all layers of {dialect.name!r}, got {unequal[0]}: compile with form='module', "
            "uniform=True for one width in all layers of a kind"
        )
    return dialect.by_layer if unequal else dialect.name


def _allowed(factors: Tensor, dialect: Dialect) -> Tensor:
    if not dialect.has("rope_freqs"):
        raise ExportError(
            f"the format has no factors of rotary frequencies for {dialect.name!r}: expected rope_type 'default'"
        )
    return factors


def _rotary(home: nn.Module, theta: float | None) -> tuple[int, Tensor | None]:
    """Returns how many dimensions of a head rotate, and what divides their frequencies, ``[dimensions / 2]``, if something does.

    Raises:
        ExportError: there are several frequencies for one dimension, they change with the length of the input, or they scale
            what they rotate.
    """
    found = [name for name, _ in home.named_buffers() if "inv_freq" in name and "original" not in name]
    if not found:
        return 0, None
    path, _, attribute = found[0].rpartition(".")
    if len(found) > 1 or attribute != "inv_freq" or theta is None:
        raise ExportError(f"expected rotary positions of one rope_theta, got {', '.join(found[:3])}")
    module = home.get_submodule(path)
    kind, scale = str(getattr(module, "rope_type", "default")), float(getattr(module, "attention_scaling", 1.0))
    if "dynamic" in kind or kind == "longrope" or scale != 1.0:
        raise ExportError(f"rotary positions of type {kind!r} cannot be said as one factor for each frequency")
    frequencies = home.get_buffer(found[0])
    now = frequencies.double().cpu()
    plain = theta ** -(torch.arange(len(now), dtype=torch.float64) / len(now))
    factors = plain / now
    rounding = max(1e-5, 4 * torch.finfo(frequencies.dtype).eps)
    return 2 * len(now), None if bool((factors - 1).abs().max() < rounding) else factors.float()


def _sizes(
    tensors: Mapping[str, Tensor], by_layer: Mapping[str, Sequence[int]], head: int, dims: int, blocks: int
) -> dict[str, Any]:
    """Returns what the format says of a model's sizes, as its tensors have them: a list where layers differ."""
    rows, columns = tensors[EMBEDDING].shape
    found: dict[str, Any] = {"vocab_size": rows, "embedding_length": columns, "block_count": blocks}
    found |= {key: list(values) if len(set(values)) > 1 else values[0] for key, values in by_layer.items()}
    if head:
        found |= {"attention.key_length": head, "attention.value_length": head}
    return found | ({"rope.dimension_count": dims} if dims else {})


def _field(value: Any) -> Field:
    from gguf import GGUFValueType as Kind

    if isinstance(value, list):
        return Field(value, Kind.ARRAY, Kind.UINT32)
    if isinstance(value, float):
        return Field(float(np.float32(value)), Kind.FLOAT32)
    return Field(value, Kind.STRING if isinstance(value, str) else Kind.UINT32)


def _file_type(tensors: Mapping[str, Tensor]) -> int:
    """Returns the format's number for the dtype that most values have."""
    from gguf import LlamaFileType

    kinds = {
        torch.float32: LlamaFileType.ALL_F32,
        torch.float16: LlamaFileType.MOSTLY_F16,
        torch.bfloat16: LlamaFileType.MOSTLY_BF16,
    }
    return int(kinds[max(tensors.values(), key=Tensor.numel).dtype])


def _tokenizer(source: str | os.PathLike[str] | None, rows: int) -> dict[str, Field]:
    """Returns the fields of a tokenizer: those of another file, or one that knows no texts.

    Raises:
        ExportError: the other file cannot be read, or has as many tokens as no embedding.
    """
    from gguf import GGUFReader

    if source is None:
        return {"tokenizer.ggml.model": _field("none")}
    with raised_as(ExportError, f"tokenizer_from={os.fspath(source)!r} cannot be read as a GGUF file"):
        found = {
            key: Field(field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
            for key, field in GGUFReader(os.fspath(source)).fields.items()
            if key.startswith("tokenizer.")
        }
    tokens = found.get("tokenizer.ggml.tokens")
    if tokens is None or len(tokens.value) != rows:
        got = "none" if tokens is None else f"{len(tokens.value):,}"
        raise ExportError(
            f"tokenizer_from={os.fspath(source)!r}: expected {rows:,} tokens, as the model has, got {got}"
        )
    return found


def _short(values: Sequence[int]) -> str:
    return f"[{', '.join(map(str, values[:4]))}{', ...' if len(values) > 4 else ''}]"
