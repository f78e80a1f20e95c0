"""Texts from a file of lines or a table, as token ids."""

from __future__ import annotations

import csv
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fxprune._base.extras import need
from fxprune.cli.errors import InputError, one_line, suggestion
from fxprune.cli.models import Made

#: A text a line, or a table with a header.
TABLES = (".txt", ".csv", ".tsv")


def read_table(
    path: Path, column: str | None, label_column: str | None, made: Made
) -> tuple[list[str], list[int] | None]:
    """Returns the texts of a file, and their classes if a column of them is named.

    Raises:
        InputError: it is not UTF-8, is empty, has no such column, or a class that the model does not know.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".txt":
                if column or label_column:
                    raise InputError(f"{path}: --column and --label-column are for .csv and .tsv files")
                rows = [{"text": line.strip()} for line in file]
                column, header = "text", ["text"]
            else:
                table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
                header, rows = list(table.fieldnames or ()), [dict(row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: it is no text in UTF-8, or no table ({one_line(error)[:120]})") from error
    column = _column(path, header, column, label_column)
    rows = [row for row in rows if (row.get(column) or "").strip()]
    if not rows:
        raise InputError(f"{path}: it holds no text; expected a text {'a line' if path.suffix == '.txt' else 'a row'}")
    texts = [row[column] for row in rows]
    if label_column is None:
        return texts, None
    _need(path, header, label_column, "--label-column")
    return texts, _classes(path, [row[label_column] for row in rows], made)


def tokenise(
    texts: Sequence[str],
    classes: Sequence[int] | None,
    made: Made,
    *,
    tokenizer: str | None,
    max_length: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Returns batches of token ids and masks, padded to the longest text of each.

    Raises:
        InputError: there is no tokenizer.
    """
    tokens = _tokenizer(made, tokenizer)
    if tokens.pad_token is None:
        tokens.pad_token = tokens.eos_token
    limits = [getattr(made.model.config, "max_position_embeddings", None), max_length]
    longest = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    parameters = inspect.signature(made.model.forward).parameters
    batches = []
    for start in range(0, len(texts), batch_size):
        encoded = tokens(
            list(texts[start : start + batch_size]),
            padding=tokens.pad_token is not None,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        batch = {name: value for name, value in encoded.items() if name in parameters}
        if classes is not None:
            batch["labels"] = torch.tensor(classes[start : start + batch_size])
        batches.append(batch)
    return batches


def _tokenizer(made: Made, name: str | None) -> Any:
    if made.library != "transformers":
        raise InputError(
            f"{made.spec.spec}: text is read for transformers: models; give package.module:loader for another's"
        )
    transformers = need("transformers", "models", "text")
    chosen = name or made.name
    if name is None and not os.path.isdir(chosen) and chosen in transformers.CONFIG_MAPPING:
        raise InputError(f"{made.spec.spec}: a kind of model has no tokenizer of its own: give --tokenizer NAME|DIR")
    try:
        return transformers.AutoTokenizer.from_pretrained(chosen, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"no tokenizer {chosen!r} ({one_line(error)[:200]}): give one with --tokenizer NAME|DIR"
        ) from error


def _column(path: Path, header: Sequence[str], column: str | None, label_column: str | None) -> str:
    if column is not None:
        return _need(path, header, column, "--column")
    others = [name for name in header if name != label_column]
    if len(others) == 1 or "text" in others:
        return "text" if "text" in others else others[0]
    raise InputError(f"{path}: which column is the text? --column, one of {', '.join(header) or 'none'}")


def _need(path: Path, header: Sequence[str], column: str, name: str) -> str:
    if column not in header:
        raise InputError(
            f"{path}: {name} {column}: there is none; the columns are {', '.join(header)}{suggestion(column, header)}"
        )
    return column


def _classes(path: Path, names: Sequence[str], made: Made) -> list[int]:
    """Returns class numbers: numbers as they are, names as the model's configuration has them."""
    known = getattr(getattr(made.model, "config", None), "label2id", None) or {}
    classes = []
    for name in names:
        text = (name or "").strip()
        if not text.isdecimal() and text not in known:
            raise InputError(
                f"{path}: class {text!r} is neither a number nor among the model's: {', '.join(map(str, known))[:200]}"
            )
        classes.append(int(text) if text.isdecimal() else int(known[text]))
    return classes
