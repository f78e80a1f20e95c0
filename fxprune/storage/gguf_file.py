"""A pruned language model as a GGUF file for llama.cpp, read again and compared before it gets its name."""

from __future__ import annotations

import os
from typing import Any, overload

from torch import nn

from fxprune._base.errors import ExportError, raised_as
from fxprune._base.extras import need
from fxprune._base.files import replaced
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune.storage.gguf_contents import contents_of, write
from fxprune.storage.gguf_names import dialect_of
from fxprune.storage.gguf_reading import same_file, same_model
from fxprune.storage.pretrained import in_its_class, quietly


@overload
def to_gguf(
    pruned: nn.Module, path: str | os.PathLike[str], /, *, tokenizer_from: str | os.PathLike[str] | None = None
) -> None: ...


@overload
def to_gguf(
    pruned: nn.Module,
    model: nn.Module,
    path: str | os.PathLike[str],
    /,
    *,
    tokenizer_from: str | os.PathLike[str] | None = None,
) -> None: ...


@random_states_kept()
@plain_modes()
def to_gguf(pruned: nn.Module, *where: Any, tokenizer_from: str | os.PathLike[str] | None = None) -> None:
    """Writes a pruned language model of transformers as a GGUF file, which llama.cpp runs.

    Heads and inner widths may differ by layer where the format can say so: a LLaMA is then written as the architecture
    ``deci``, the same network with a list of widths. Matrices are of the model's dtype, vectors float32. What was
    written is read again as transformers reads it, tensor by tensor and setting by setting, and compared with
    ``pruned``, before the file gets its name; until then a file that was there before stays.

    Args:
        pruned: a model in its own class, or the graph of one.
        where: the path; before it, for a graph, the original model. The directory must exist.
        tokenizer_from: a GGUF file, such as that of the original, whose tokenizer goes into this one. Without it the
            file takes and gives the numbers of tokens alone.

    Raises:
        ExportError: the format cannot say what is left, or what was written is not the same model; nothing is left of it.
        FxpruneError: fxprune did not make ``pruned``, or it is no model of transformers.
        MissingExtraError: a package is not installed.
        RestoreError: the original's class cannot hold what the graph has left.
        OSError: it cannot be written.
    """
    need("transformers", "gguf", "a GGUF file")
    need("gguf", "gguf", "a GGUF file")
    home, target = in_its_class("to_gguf", pruned, where)
    if target.is_dir():
        raise ExportError(f"{target}: expected a file name, got a directory: add a name such as model.gguf")
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: there is no such directory: make it first")
    dialect = dialect_of(home)
    contents = contents_of(home, dialect, tokenizer_from)
    with replaced(target) as draft, quietly():
        with raised_as(ExportError, "gguf cannot write the model"):
            write(contents, draft)
        same_file(contents, draft)
        same_model(home, dialect, contents, draft)
