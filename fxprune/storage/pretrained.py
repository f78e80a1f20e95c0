"""A checkpoint that transformers reads, without fxprune: the stock class with other settings, or with a small file of its own."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.copies import copied
from fxprune._base.errors import ExportError, FxpruneError, RestoreError, brief
from fxprune._base.extras import need
from fxprune._base.files import fresh_directory, put_in_place
from fxprune._base.modes import lent, plain_modes, random_states_kept
from fxprune.compiler.homecoming import restore
from fxprune.compiler.options import MODULE
from fxprune.data.calls import Call, tensors_of
from fxprune.homing.constructing import SETTINGS, settings_of, with_settings
from fxprune.homing.layered import has_layers, settings_by_layer
from fxprune.homing.places import changed, numbers_in
from fxprune.homing.proof import difference, takes
from fxprune.homing.terms import Place
from fxprune.results.attached import report
from fxprune.results.tables import few
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage.modelling import class_in, write_code

#: Two that are as small are seen in the outputs alone.
_EPS = 1e-5


@overload
def to_pretrained(pruned: nn.Module, directory: str | os.PathLike[str], /, *, remote_code: bool = False) -> None: ...


@overload
def to_pretrained(
    pruned: nn.Module, model: nn.Module, directory: str | os.PathLike[str], /, *, remote_code: bool = False
) -> None: ...


@random_states_kept()
@plain_modes()
def to_pretrained(pruned: nn.Module, *where: Any, remote_code: bool = False) -> None:
    """Writes a pruned transformers model as a checkpoint that ``from_pretrained`` reads where fxprune is not installed.

    Where the settings of the class (``config``) can say all widths, as after ``compile(..., form="module", uniform=True)``, it is
    the stock class with other settings. Otherwise nothing is written, unless ``remote_code`` allows it: a checkpoint with a
    small file of code beside the weights, which a reader runs with ``trust_remote_code=True`` and is refused without.

    What was written is read again as its users will, strictly, and compared with ``pruned``, before the directory gets its
    name. A tokenizer is saved beside it by its own ``save_pretrained(directory)``, afterwards.

    Args:
        pruned: a model in its own class, or the graph of one.
        where: the directory, new or empty; before it, for a graph, the original model.
        remote_code: whether a file of code may be among what is written.

    Raises:
        ExportError: the settings cannot say the widths, or what was written is not the same model; nothing is left of it.
        FxpruneError: fxprune did not make ``pruned``, or it is no model of transformers.
        RestoreError: the original's class cannot hold what the graph has left.
        OSError: it cannot be written.
    """
    need("transformers", "models", "a checkpoint of transformers")
    home, target = in_its_class("to_pretrained", pruned, where)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target}: expected a new or empty directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    with fresh_directory(target) as fresh, quietly():
        try:
            _as_stock(home, fresh)
        except ExportError as error:
            if not remote_code:
                raise ExportError(
                    f"the settings of {type(home).__name__} cannot say what is left: {error}. Compile with form='module', "
                    "uniform=True for one width in all layers of a kind; or give remote_code=True for a checkpoint with a file of "
                    "code, which its readers run with trust_remote_code=True"
                ) from error
            for path in fresh.iterdir():
                path.unlink()
            _with_code(home, fresh)
        put_in_place(fresh, target)


def in_its_class(name: str, pruned: nn.Module, where: tuple[Any, ...]) -> tuple[Any, Path]:
    """Returns the model in its own class, and where to write it.

    Args:
        name: of the function that was called.
        pruned: what it was called with,
        where: and what came behind it.

    Raises:
        FxpruneError: fxprune did not make it, or it is no model of transformers.
        RestoreError: the original's class cannot hold what the graph has left.
    """
    form = report(pruned).form
    if not 1 <= len(where) <= 2:
        raise TypeError(f"{name}: expected (pruned, path) or (graph, model, path), got {1 + len(where)}")
    if isinstance(pruned, PrunedModule) and len(where) == 1:
        raise FxpruneError(f"{name}: a graph has no class: expected (graph, model, path) with the original")
    home = restore(pruned, where[0]) if isinstance(pruned, PrunedModule) else pruned
    if home is pruned and form != MODULE:
        raise FxpruneError(f"{name}: expected a model that was captured whole, got {type(pruned).__name__} in parts")
    if not hasattr(home, "save_pretrained") or not hasattr(type(home), "from_pretrained"):
        raise FxpruneError(f"{name}: expected a model of transformers, got {type(home).__name__}")
    return home, Path(os.fspath(where[-1])).resolve()


def _as_stock(home: Any, directory: Path) -> None:
    """Writes a checkpoint of the class itself.

    Raises:
        ExportError: no settings make what is left.
    """
    try:
        settings = _settings(home)
    except RestoreError as error:
        raise ExportError(str(error)) from error
    _saved(home, settings, directory)
    _same(home, type(home), directory)


def _settings(home: Any) -> Any:
    """Returns settings that make what is left: one for all layers, or, where the class reads such, some for each.

    Raises:
        RestoreError: there are none.
    """
    try:
        return settings_of(home)
    except RestoreError as error:
        if not has_layers(getattr(home, SETTINGS, None)):
            raise
        try:
            return settings_by_layer(home)
        except RestoreError as other:
            raise RestoreError(f"{error}; nor can settings of single layers: {other}") from other


def _with_code(home: Any, directory: Path) -> None:
    """Writes a checkpoint with a file of code.

    Raises:
        ExportError: it cannot be.
    """
    _saved(home, getattr(home, SETTINGS), directory)
    write_code(home, directory)
    try:
        _read(type(home), directory)
    except ExportError:
        pass  # who does not trust the code is refused
    else:
        _same(home, type(home), directory)
    _same(home, class_in(directory, home), directory)


@contextmanager
def quietly() -> Iterator[None]:
    """Has transformers show nothing of what is written and read on trial."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _saved(home: Any, settings: Any, directory: Path) -> None:
    """Writes a model with some settings; it stays as it is."""
    view: Any = with_settings(home, copy.deepcopy(settings))
    try:
        view.save_pretrained(directory)
    except Exception as error:  # whatever transformers refuses, such as a model that was read from a quantised file
        raise ExportError(f"{type(home).__name__}.save_pretrained: {brief(error)}") from error


def _read(kind: Any, directory: Path) -> Any:
    """Returns what a class reads from a directory.

    Raises:
        ExportError: it does not, or not strictly.
    """
    try:
        again, said = kind.from_pretrained(directory, output_loading_info=True)
    except Exception as error:  # whatever a class raises
        raise ExportError(f"{kind.__name__}.from_pretrained: {brief(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if said.get(what):
            raise ExportError(
                f"{kind.__name__}.from_pretrained: {what.replace('_', ' ')}: {sorted(map(str, said[what]))[:3]}"
            )
    return again


def _same(home: Any, kind: Any, directory: Path) -> None:
    """Makes sure that what a class reads from a directory is the model.

    Raises:
        ExportError: it is another one.
    """
    device = next(home.parameters()).device
    again = _read(kind, directory).to(device)
    calls = list(calls_like(home, device))
    if not calls:
        raise ExportError("the call that the model was compiled with is not known, so nothing could be compared")
    for call in calls:
        if (told := difference(again, home, call)) is not None:
            others = [f"{place} is {there}, here {here}" for place, here, there in _other_numbers(home, again)]
            raise ExportError(
                f"what {kind.__name__} reads is another model: {told.replace('the graph', 'this')}"
                + (f"; there {few(others, 3)}" if others else "")
            )
    _same_numbers(home, again, calls[0])


def _other_numbers(home: Any, again: Any) -> list[tuple[Place, Any, Any]]:
    """Returns where modules, but not their settings, hold another number: place, here, there."""
    want, got = numbers_in(home), numbers_in(again)
    return [
        (Place(*key, 0), want[key], value)
        for key, value in got.items()
        if key[1][0] != SETTINGS and key in want and value != want[key]
    ]


def _same_numbers(home: Any, again: Any, call: Call) -> None:
    """Makes sure that modules compute with the numbers of the model, such as how many heads there are, or a scale.

    An eps may be another within what the outputs show. A number that nothing computes with may be another.

    Raises:
        ExportError: one is another that outputs depend on, be it by little; names it.
    """
    others = [
        (place, here, there)
        for place, here, there in _other_numbers(home, again)
        if not math.isclose(here, there, rel_tol=1e-6, abs_tol=_EPS)
    ]
    if not others:
        return
    view = copied(home).eval()
    changed(view, {place: there for place, _, there in others}, (int, float))
    if not _same_bits(view, home, call):
        raise ExportError(
            f"no setting says {few([f'{place} ({here}, there {there})' for place, here, there in others], 3)}"
        )


def _same_bits(view: Any, home: Any, call: Call) -> bool:
    found = []
    for model in (view, home):
        with random_states_kept(), lent(model, call):
            try:
                found.append(tensors_of(model(*call[0], **call[1])))
            except Exception:  # of any class, at numbers that do not fit
                return False
    return len(found[0]) == len(found[1]) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*found, strict=True)
    )


def calls_like(home: Any, device: torch.device) -> Iterator[Call]:
    """Yields calls like the one that the model was compiled with, of drawn numbers, at two batch sizes, as far as it takes them."""
    plan = report(home).plan
    if plan is None or not plan.example.structure:
        return
    generator = torch.Generator().manual_seed(0)
    tables = {module.num_embeddings for module in home.modules() if isinstance(module, nn.Embedding)}
    for grow in (0, 1):
        zeros = plan.example.call(home, "cpu", grow)
        drawn = (_drawn(zeros, below, generator, device) for below in (*sorted(tables, reverse=True), 2))
        yield from itertools.islice((call for call in drawn if takes(home, call)), 1)


def _drawn(call: Call, below: int, generator: torch.Generator, device: torch.device) -> Call:
    """Returns a call of drawn numbers; of integers those of places in a table."""

    def drawn(like: Tensor) -> Tensor:
        if like.is_floating_point():
            return torch.randn(like.shape, generator=generator).to(like.dtype)
        if like.dtype == torch.bool:
            return torch.ones_like(like)
        return torch.randint(0, below, like.shape, generator=generator).to(like.dtype)

    found: Call = pytree.tree_map_only(Tensor, lambda like: drawn(like).to(device), call)
    return found
