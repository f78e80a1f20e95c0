"""What GGUF calls the settings and tensors of a model, and how its readers want them arranged, all by transformers' own tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.errors import ExportError, brief
from fxprune.homing.constructing import SETTINGS, made_of
from fxprune.homing.places import numbers_in
from fxprune.homing.terms import Key

HEADS, KV_HEADS, INNER = "attention.head_count", "attention.head_count_kv", "feed_forward_length"
EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
_SUFFIXES = (".weight", ".bias")

#: Settings that the format has for every kind of network, whether or not transformers' table has them.
_ALWAYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}

#: The eps of norms in the format's words, for norms without and with a mean: transformers reads one where llama.cpp may read the other.
_EPS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")

#: The format's other name of the same network: llama.cpp reads a list of widths, one for each layer, under that name alone.
_BY_LAYER = {"llama": "deci"}


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How the format speaks of one kind of network.

    Attributes:
        name: of the architecture.
        by_layer: of the architecture that is the same network with widths that differ by layer; empty if there is none.
        table: the name of the setting of transformers for each key; None for one that transformers does not read.
        blocks: how many layers there are.
    """

    name: str
    by_layer: str
    table: Mapping[str, str | None]
    blocks: int

    def names(self) -> Any:
        """Returns the format's table of names of tensors."""
        import gguf

        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)
        return gguf.get_tensor_name_map(kind, self.blocks)

    def has(self, tensor: str) -> bool:
        """Returns whether such a network may have a tensor of some name, such as ``"rope_freqs"``."""
        import gguf

        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)
        return any(gguf.TENSOR_NAMES[each] == tensor for each in gguf.MODEL_TENSORS[kind])


def dialect_of(home: Any) -> Dialect:
    """Returns how the format speaks of a model.

    Raises:
        ExportError: it has no word for it, or transformers has no table.
    """
    import gguf
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    settings = getattr(home, SETTINGS)
    kind = str(getattr(settings, "model_type", ""))
    known = {_letters(name): name for name in gguf.MODEL_ARCH_NAMES.values()}
    name = known.get(_letters(kind.removesuffix("_text")), "")
    table = GGUF_CONFIG_MAPPING.get(kind) or GGUF_CONFIG_MAPPING.get(name)
    if not name or table is None:
        both = sorted(each for each in GGUF_CONFIG_MAPPING if _letters(each) in known)
        raise ExportError(
            f"expected a kind of model that GGUF has a name for and transformers a table: {', '.join(both)}; got {kind!r}"
        )
    own = {key: word for key, word in table.items() if word is None or key not in _ALWAYS or _has(settings, word)}
    always = {key: word for key, word in _ALWAYS.items() if _has(settings, word)}
    return Dialect(name, _BY_LAYER.get(name, ""), always | own, int(settings.num_hidden_layers))


def tensors_of(home: nn.Module, dialect: Dialect) -> dict[str, tuple[str, Tensor]]:
    """Returns the tensors of a model, ``[...]``, by the format's names, each with its own; without an output that is the embedding.

    Raises:
        ExportError: the format has no name for one, or the dtype of one.
    """
    names, found = dialect.names(), dict[str, tuple[str, Tensor]]()
    held = {own: tensor.detach() for own, tensor in home.state_dict().items()}
    called = {own: names.get_name(_reader(dialect, {}).preprocess_name(own), _SUFFIXES) for own in held}
    embedding = next((held[own] for own, name in called.items() if name == EMBEDDING), None)
    for own, tensor in held.items():
        name = called[own]
        if name in (None, OUTPUT) and embedding is not None and _shared(tensor, embedding):
            continue  # who finds no output takes the embedding
        if name is None or name in found:
            raise ExportError(
                f"the format has no name for {own}, {list(tensor.shape)}, in a network of kind {dialect.name!r}"
            )
        if tensor.is_meta:
            raise ExportError(f"{own} lies on the meta device and has no values: load them first")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ExportError(f"{own}: expected float32, float16 or bfloat16, got {str(tensor.dtype)[6:]}")
        found[name] = own, tensor
    if EMBEDDING not in found:
        raise ExportError(f"expected a language model, with an embedding of tokens, got {type(home).__name__}")
    return found


def heads_of(
    home: nn.Module, tensors: Mapping[str, tuple[str, Tensor]], blocks: int
) -> tuple[dict[str, list[int]], int]:
    """Returns how many heads each layer has, by the format's keys, and how wide one is.

    Args:
        home: the model.
        tensors: projections ``[out, in]`` among others. Where those of queries, keys and values are not apart, there is
            nothing to say, and the width is 0.
        blocks: how many layers there are.

    Raises:
        ExportError: the rows are not those of whole heads.
    """
    found, widths = dict[str, list[int]](), set[int]()
    for key, part in ((HEADS, "attn_q"), (KV_HEADS, "attn_k"), (KV_HEADS, "attn_v")):
        several = [tensors.get(f"blk.{layer}.{part}.weight") for layer in range(blocks)]
        held = [each for each in several if each is not None]
        if len(held) != blocks:
            return {}, 0
        of_layer = [_heads(home, own, tensor) for own, tensor in held]
        widths |= {width for _, width in of_layer}
        numbers = [number for number, _ in of_layer]
        if found.setdefault(key, numbers) != numbers:
            raise ExportError(f"the format has keys and values of one width, got {found[key]} and {numbers} heads")
    if len(widths) != 1:
        raise ExportError(f"the format has one width for all heads, got {sorted(widths)}")
    return found, widths.pop()


def as_read(dialect: Dialect, name: str, by_layer: Mapping[str, Sequence[int]], values: Any) -> Any:
    """Returns what transformers makes of the values of a tensor, an array ``[...]``, as an array ``[...]``."""
    layer = re.match(r"blk\.(\d+)\.", name)
    numbers = {key: each[int(layer[1])] for key, each in by_layer.items()} if layer else {}
    reader = _reader(dialect, numbers)
    return reader.process(weights=values, name=name, tensor_key_mapping={}, parsed_parameters={"tensors": {}}).weights


def stored(name: str, tensor: Tensor, read: Callable[[Any], Any]) -> Tensor:
    """Returns what is to be in the file, ``[...]``, for its reader to make a tensor, ``[...]``, of it.

    What the reader does is seen on numbered values: it may bring them into another order, shape, and take one number from
    all of them. Vectors are float32 in the file.

    Args:
        name: what to call it in errors.
        tensor: as it is in the model.
        read: what the reader makes of an array.

    Raises:
        ExportError: the reader does something else.
    """
    own = tuple(tensor.shape)
    for shape in dict.fromkeys([own, own[::-1], tuple(size for size in own if size > 1)]):
        probe = np.broadcast_to(np.zeros((), np.float32), shape)
        with np.errstate(all="ignore"):
            try:
                if read(probe) is probe:
                    return tensor.float() if tensor.dim() == 1 else tensor
                seen = np.asarray(read(np.arange(math.prod(shape), dtype=np.float64).reshape(shape)))
            except Exception:  # of any kind, at a shape that it does not take
                continue
        if seen.shape == own and (found := _inverse(seen, tensor, shape)) is not None:
            return found
    raise ExportError(f"{name}, {list(own)}: its readers compute something of it that is not undone exactly")


def numbers_of(home: Any, dialect: Dialect) -> dict[str, Any]:
    """Returns what the format says of a model, as its settings have it; an eps or the like that all layers hold, as they do.

    Raises:
        ExportError: layers hold different ones, or the class does not make a model of its settings.
    """
    settings, now = getattr(home, SETTINGS), floats_in(home)
    try:
        made = floats_in(made_of(home, settings))
    except Exception as error:  # of any class
        raise ExportError(f"{type(home).__name__} is not made of its settings: {brief(error)}") from error
    found = dict[str, Any]()
    for key, own in dialect.table.items():
        value = None if own is None else getattr(settings, own, _positions(settings).get(own))
        if type(value) is int:
            found[key] = value
        elif type(value) is float:
            found[key] = _agreed(str(own), value, made, now)
    for key, other in (_EPS, _EPS[::-1]):
        if key in found:
            found.setdefault(other, found[key])
    return found


def floats_in(model: nn.Module) -> dict[Key, float]:
    """Returns the floats that modules hold, but those of settings and of dropout, by where they are."""
    drops = {path for path, module in model.named_modules() if "dropout" in type(module).__name__.lower()}
    return {
        key: value
        for key, value in numbers_in(model, (float,)).items()
        if key[1][0] != SETTINGS and key[0] not in drops and "dropout" not in str(key[1])
    }


def place(key: Key) -> str:
    """Returns in words where a number is."""
    return ".".join([key[0], *map(str, key[1])])


def _reader(dialect: Dialect, numbers: Mapping[str, int]) -> Any:
    """Returns what transformers rearranges tensors with when it reads them, in a layer of which it knows some numbers."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    settings = {own: numbers[key] for key, own in dialect.table.items() if own is not None and key in numbers}
    return TENSOR_PROCESSORS.get(dialect.name, TensorProcessor)(config=settings)


def _inverse(seen: Any, tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Returns values that become a tensor where numbered ones become ``seen``; None if that is no order, with or without a shift."""
    shift = float(seen.min()) if seen.size else 0.0
    order = seen.reshape(-1) - shift
    if not np.array_equal(np.sort(order), np.arange(seen.size)) or (shift and tensor.dim() != 1):
        return None
    values = (tensor.double() - shift).float() if shift else tensor
    flat = torch.empty_like(values.reshape(-1))
    flat[torch.from_numpy(order.astype(np.int64)).to(flat.device)] = values.reshape(-1)
    found = flat.reshape(shape)
    return found.float() if found.dim() == 1 else found


def _agreed(own: str, value: float, made: Mapping[Key, float], now: Mapping[Key, float]) -> float:
    """Returns the number that all layers hold now which were made with the value of a setting; the value if none was."""
    others = {now[key]: key for key, old in made.items() if old == value and key in now}
    if len(others) > 1:
        (one, first), (two, second) = list(others.items())[:2]
        raise ExportError(
            f"the format has one {own} for all layers, but {place(first)} is {one:.6g} and {place(second)} is {two:.6g}: "
            "ignore= what writes to the channels that one of them runs over, so that none go"
        )
    return next(iter(others), value)


def _has(settings: Any, own: str) -> bool:
    """Returns whether settings have one that can be given to their class, by this name or another."""
    said = settings.to_dict().keys() | _positions(settings).keys()
    return getattr(settings, "attribute_map", {}).get(own, own) in said


def _positions(settings: Any) -> dict[str, Any]:
    """Returns the settings of rotary positions, which transformers keeps apart."""
    found = getattr(settings, "rope_parameters", None)
    return found if isinstance(found, dict) else {}


def _heads(home: nn.Module, own: str, tensor: Tensor) -> tuple[int, int]:
    """Returns how many heads a projection ``[out, in]`` gives, and how wide one is."""
    attention = home.get_submodule(own.removesuffix(".weight").rpartition(".")[0])
    width = int(getattr(attention, "head_dim", 0))
    if width < 1 or tensor.shape[0] % width:
        raise ExportError(f"{own}: expected rows in heads of {width}, got {tensor.shape[0]}")
    return tensor.shape[0] // width, width


def _shared(a: Tensor, b: Tensor) -> bool:
    return not a.is_meta and a.data_ptr() == b.data_ptr() and a.shape == b.shape


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
