"""Arrays from an ``.npz`` file, and texts from a file of lines or a table, as token ids."""

from __future__ import annotations

import csv
import inspect
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.extras import need
from fxprune.capturing.normalize.dtypes import main_dtype
from fxprune.cli.errors import InputError, check_known, refused
from fxprune.cli.models import Made
from fxprune.cli.specs import DataSpec
from fxprune.data.batch import TARGET_KEYS

#: A text a line, or a table with a header.
TABLES = (".txt", ".csv", ".tsv")

#: Tokens a piece of joined texts, unless told otherwise.
_PIECE = 512


# -- arrays ---------------------------------------------------------------------------------------------------------


def read_arrays(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], Tensor | None]:
    """Returns the model's inputs ``[samples, ...]`` by name, and the targets ``[samples, ...]`` if there are any.

    Floating-point arrays take the model's dtype (numpy makes float64 unless told otherwise).

    Raises:
        InputError: it is no such file, holds pickled objects or no arrays, or they do not fit each other or
            the model.
    """
    broken = (ValueError, EOFError, zipfile.BadZipFile, KeyError)
    way = ": write it with numpy.savez"
    with refused(f"{path}: it is no .npz file of plain arrays", way, broken), np.load(path, allow_pickle=False) as file:
        if not hasattr(file, "files"):
            raise InputError(f"{path}: expected an .npz file of named arrays, got a single array")
        arrays = {name: file[name] for name in file.files}
    labels = next((arrays.pop(key) for key in TARGET_KEYS if key in arrays), None)
    if not arrays:
        raise InputError(f"{path}: no arrays for the model's inputs")
    _check_sizes(path, arrays | ({} if labels is None else {"labels": labels}))
    parameters = inspect.signature(model.forward).parameters
    if len(arrays) > 1 and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in arrays:
            what = f"{name!r} is no argument of the model, which takes {', '.join(parameters)}"
            check_known(name, parameters, f"{path}: {what}", InputError)
    dtype = main_dtype(model.parameters()) or torch.float32
    tensors = {name: _tensor(path, name, array, dtype) for name, array in arrays.items()}
    return tensors, None if labels is None else torch.from_numpy(labels)


def _check_sizes(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for name, array in arrays.items():
        if array.ndim == 0 or not len(array):
            raise InputError(f"{path}: {name!r} has shape {list(array.shape)}; expected samples first, at least one")
    if len({len(array) for array in arrays.values()}) > 1:
        found = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise InputError(f"{path}: expected as many samples in each array, got {found}")


def _tensor(path: Path, name: str, array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise InputError(f"{path}: {name!r} holds {array.dtype}; expected numbers") from error
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


# -- texts ----------------------------------------------------------------------------------------------------------


def read_table(path: Path, spec: DataSpec, made: Made) -> tuple[list[str], list[int] | None]:
    """Returns the texts of a file, and their classes if a column of them is named.

    Raises:
        InputError: it is not UTF-8, is empty, has no such column, or a class that the model does not know.
    """
    kind, label = path.suffix.lower(), spec.label_column
    if kind == ".txt" and (spec.column or label):
        raise InputError(f"{path}: --column and --label-column are for .csv and .tsv files")
    broken = refused(f"{path}: it is no text in UTF-8, or no table", kind=(UnicodeDecodeError, csv.Error))
    with broken, path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
        rows = [{"text": line.strip()} for line in file] if kind == ".txt" else [dict(row) for row in lines]
        header = ["text"] if kind == ".txt" else list(lines.fieldnames or ())
    column = _column(path, header, spec)
    rows = [row for row in rows if (row.get(column) or "").strip()]
    if not rows:
        raise InputError(f"{path}: it holds no text; expected a text {'a line' if path.suffix == '.txt' else 'a row'}")
    texts = [row[column] for row in rows]
    if label is None:
        return texts, None
    _check_column(path, header, label, "--label-column")
    return texts, [_class(path, row[label], made) for row in rows]


def _column(path: Path, header: Sequence[str], spec: DataSpec) -> str:
    if spec.column is not None:
        _check_column(path, header, spec.column, "--column")
        return spec.column
    others = [name for name in header if name != spec.label_column]
    if len(others) == 1 or "text" in others:
        return "text" if "text" in others else others[0]
    raise InputError(f"{path}: which column is the text? --column, one of {', '.join(header) or 'none'}")


def _check_column(path: Path, header: Sequence[str], column: str, name: str) -> None:
    what = f"{path}: {name} {column}: there is none; the columns are {', '.join(header)}"
    check_known(column, header, what, InputError)


def _class(path: Path, name: str | None, made: Made) -> int:
    """Returns a class number: a number as it is, a name as the model's configuration has it."""
    known = getattr(getattr(made.model, "config", None), "label2id", None) or {}
    text = (name or "").strip()
    if text.isdecimal() or text in known:
        return int(text if text.isdecimal() else known[text])
    names = ", ".join(map(str, known))[:200]
    raise InputError(f"{path}: class {text!r} is neither a number nor among the model's: {names}")


def encoder(made: Made, spec: DataSpec) -> Callable[[list[str]], dict[str, Tensor]]:
    """Returns what makes a batch of texts: token ids and masks, padded to the longest of them, ``[texts, tokens]`` each.

    Raises:
        InputError: there is no tokenizer.
    """
    tokens = tokenizer_of(made, spec.tokenizer)
    if tokens.pad_token is None:
        tokens.pad_token = tokens.eos_token
    settings = {"truncation": True, "max_length": _at_most(made, spec.max_length), "return_tensors": "pt"}
    parameters = inspect.signature(made.model.forward).parameters

    def encode(texts: list[str]) -> dict[str, Tensor]:
        encoded = tokens(texts, padding=tokens.pad_token is not None, **settings)
        return {name: value for name, value in encoded.items() if name in parameters}

    return encode


def _at_most(made: Made, tokens: int) -> int:
    """Returns so many tokens, or as many as the model has positions for."""
    positions = getattr(made.model.config, "max_position_embeddings", None)
    return min(tokens, positions) if isinstance(positions, int) and positions > 0 else tokens


def length_of_pieces(made: Made, spec: DataSpec) -> int:
    """Returns into pieces of how many tokens the texts are cut, at most; 0 if each is taken by itself.

    Raises:
        InputError: pieces are asked for, and the model writes no text.
    """
    model: Any = made.model
    writes = made.library == "transformers" and model.can_generate()
    writes = writes and not getattr(model.config, "is_encoder_decoder", False)
    if spec.pack and not writes:
        what = f"--pack {spec.pack}: {type(model).__name__} does not write text"
        raise InputError(f"{what}: leave it out, and each text is taken by itself")
    if spec.pack is not None:
        return _at_most(made, spec.pack)
    return _at_most(made, _PIECE) if writes and spec.label_column is None else 0


def pieces(made: Made, spec: DataSpec, texts: Sequence[str]) -> Tensor:
    """Returns the tokens of all texts, joined and cut, ``[pieces, tokens]``; what is left over counts if it is all there is.

    A token that the tokenizer begins with begins each piece.

    Raises:
        InputError: there is no tokenizer, or less than two tokens.
    """
    tokens = tokenizer_of(made, spec.tokenizer)
    ids: Tensor = tokens("\n".join(texts), return_tensors="pt", verbose=False)["input_ids"][0]
    begins = tokens.bos_token_id is not None and len(ids) > 1 and int(ids[0]) == tokens.bos_token_id
    first, rest = (ids[:1], ids[1:]) if begins else (ids[:0], ids)
    length = min(length_of_pieces(made, spec), len(ids), tokens.model_max_length) - len(first)
    if length + len(first) < 2:
        raise InputError(
            f"{spec.name} {spec.source}: expected pieces of two tokens at least, got {length + len(first)}"
        )
    body = rest[: len(rest) // length * length].reshape(-1, length)
    return torch.cat([first.expand(len(body), -1), body], dim=1)


def tokenizer_of(made: Made, name: str | None) -> Any:
    """Returns the tokenizer of a name or folder, or else the model's own.

    Raises:
        InputError: there is none.
    """
    spec = made.spec.spec
    if made.library != "transformers":
        raise InputError(f"{spec}: text is read for transformers: models; give package.module:loader for another's")
    transformers = need("transformers", "models", "text")
    chosen = name or made.name
    if name is None and not os.path.isdir(chosen) and chosen in transformers.CONFIG_MAPPING:
        raise InputError(f"{spec}: a kind of model has no tokenizer of its own: give --tokenizer NAME|DIR")
    with refused(f"no tokenizer {chosen!r}", ": give one with --tokenizer NAME|DIR"):
        return transformers.AutoTokenizer.from_pretrained(chosen, trust_remote_code=False)
