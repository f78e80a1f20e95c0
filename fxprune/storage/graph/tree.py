"""The modules and tensors of a pruned model as JSON data, and back, in their order, with what is shared shared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from unicodedata import normalize

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.rewriting.owners import join
from fxprune.rewriting.pruned import RESERVED
from fxprune.storage.graph.layers import describe_layer, make_layer
from fxprune.storage.graph.silent import Lost
from fxprune.storage.graph.values import DEPTH, Unstorable, dtype, name_of

#: A parameter, a buffer that is saved with the state, or one that is not.
Role = Literal["parameter", "buffer", "constant"]

#: Gives the values of a tensor by name and role.
Values = Callable[[str, Role], Tensor]

#: More names than any model has: what is shared may occur under many, and names would multiply without end.
_MOST_NAMES = 1_000_000

_ATOM = re.compile(r"[^\"\\.]+")


def describe_modules(root: nn.Module) -> list[list[Any]]:
    """Returns a row for each module, parents first: path, class, options; or path, ``same``, the first path.

    Raises:
        Unstorable: a module that a file may not name.
    """
    rows: list[list[Any]] = []
    first: dict[int, str] = {}

    def visit(module: nn.Module, path: str) -> None:
        if id(module) in first:
            rows.append([path, "same", first[id(module)]])
            return
        first[id(module)] = path
        rows.append([path, *(("Module", {}) if not path else describe_layer(module, path))])
        for name, child in module._modules.items():
            if child is not None:
                visit(child, join(path, name))

    visit(root, "")
    return rows


def describe_tensors(root: nn.Module) -> list[list[Any]]:
    """Returns a row for each parameter and buffer: name and facts, or the name that it is tied to.

    Raises:
        Unstorable: a tensor that is no plain block of numbers.
    """
    first: dict[int, str] = {}
    rows: list[list[Any]] = []
    for name, role, tensor in tensors_of(root):
        known = first.setdefault(id(tensor), name)
        rows.append([name, {"role": role, **(_facts(name, tensor) if known == name else {"same": known})}])
    return rows


def tensors_of(root: nn.Module) -> Iterator[tuple[str, Role, Tensor]]:
    """Yields every parameter and buffer, ``[...]``, of every module once, with its name and role."""
    for path, module in root.named_modules():
        for name, value in {**module._parameters, **module._buffers}.items():
            kept: Role = "constant" if name in module._non_persistent_buffers_set else "buffer"
            if value is not None:
                yield join(path, name), "parameter" if name in module._parameters else kept, value


def strides_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Returns the steps in memory of a dense tensor ``[...]`` where they are not the usual ones (``channels_last``), else None."""
    usual = torch.empty(tensor.shape, device="meta").stride()
    strides = tuple(tensor.stride())
    return strides if strides != usual and _are_dense(tensor.shape, strides) else None


def build_tree(modules: Any, tensors: Any, values: Values, where: str) -> nn.Module:
    """Returns the tree of modules that was described, with its tensors.

    Args:
        modules: the rows of ``describe_modules``.
        tensors: the rows of ``describe_tensors``.
        values: gives the tensors.
        where: their file, for messages.

    Raises:
        PlanError: the rows are damaged, or do not fit the tensors.
    """
    found = _Modules()
    if not untrusted.sequence_of(modules, f"{where}: modules", found.add):
        raise PlanError(f"{where}: modules: expected the root, got none")
    _Tensors(found.by_path, values).fill(untrusted.sequence(tensors, f"{where}: tensors"), where)
    return found.by_path[""]


def lost_of(root: nn.Module) -> list[str]:
    """Returns the modules whose behaviour in training is not stored, each with its class."""
    return [f"{path} ({module.what})" for path, module in root.named_modules() if isinstance(module, Lost)]


def _facts(name: str, tensor: Tensor) -> dict[str, Any]:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise Unstorable(f"{name!r} is no dense tensor")
    if not _has_file_form(tensor.dtype):
        raise Unstorable(f"{name!r} is of {tensor.dtype}, which a safetensors file cannot hold")
    facts = {"dtype": name_of(tensor.dtype), "shape": list(tensor.shape), "trains": tensor.requires_grad}
    strides = strides_of(tensor)
    return facts if strides is None else {**facts, "strides": list(strides)}


@cache
def _has_file_form(kind: torch.dtype) -> bool:
    try:
        return bool(write_tensors({"": torch.empty(0, dtype=kind)}))
    except Exception:  # whatever the library raises at a dtype that it does not know
        return False


def _are_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Returns whether the values fill their memory, each place once."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return expected > 0


@dataclass(slots=True)
class _Modules:
    """The modules read so far; ``around`` holds the path from the root to the last one, which alone can take children."""

    by_path: dict[str, nn.Module] = field(default_factory=dict)
    around: list[str] = field(default_factory=list)
    names: Counter[int] = field(default_factory=Counter)

    def add(self, row: Any, where: str) -> None:
        """Adds a module under its parent."""
        path, cls, options = untrusted.exactly(3, row, where, "path, class and options")
        path, cls = untrusted.string(path, where), untrusted.string(cls, where)
        parent, _, name = path.rpartition(".")
        self._check_place(path, parent, cls, where)
        self.around = self.around[: self.around.index(parent) + 1] if path else []
        if len(self.around) > DEPTH:
            raise PlanError(f"{where}: nested too deeply")
        module = self._same(options, where) if cls == "same" else make_layer(cls, options, where)
        if path:
            _check_atom(name, where, at_root=not parent)
            with untrusted.reading(where):
                self.by_path[parent].add_module(name, module)
        self.by_path[path] = module
        more = self.names.setdefault(id(module), 1)
        self.names.update({id(self.by_path[one]): more for one in self.around})
        if self.names[id(self.by_path[""])] > _MOST_NAMES:  # shared names count wherever they are
            raise PlanError(f"{where}: more than {_MOST_NAMES} names of modules")
        if cls != "same":
            self.around.append(path)

    def _check_place(self, path: str, parent: str, cls: str, where: str) -> None:
        if not self.by_path and (path or cls != "Module"):
            raise PlanError(f"{where}: expected the root first, got {path!r:.80}")
        if self.by_path and (path in self.by_path or not path):
            raise PlanError(f"{where}: {path!r:.80} is there twice")
        if path and parent not in self.around:
            raise PlanError(f"{where}: {path!r:.80} does not follow its parent")

    def _same(self, first: Any, where: str) -> nn.Module:
        path = untrusted.string(first, where)
        if path not in self.by_path or path in self.around:
            raise PlanError(f"{where}: there is no module {path!r:.80} before it")
        return self.by_path[path]


@dataclass(slots=True)
class _Tensors:
    """Puts tensors into the modules; what the layers' options promise must be there, in its shape."""

    modules: dict[str, nn.Module]
    values: Values
    read: dict[str, Tensor] = field(default_factory=dict)

    def fill(self, rows: list[Any], where: str) -> None:
        """Replaces the tensors on the meta device by those of the rows, in their order."""
        promised = {id(module): {**module._parameters, **module._buffers} for module in self.modules.values()}
        for module in self.modules.values():
            for held in (module._parameters, module._buffers):
                for name in [name for name, value in held.items() if value is not None]:
                    del held[name]
        for index, row in enumerate(rows):
            self._add(row, promised, f"{where}: tensors[{index}]")
        for path, module in self.modules.items():
            here = {**module._parameters, **module._buffers}
            lacking = [n for n, v in promised[id(module)].items() if v is not None and here.get(n) is None]
            if lacking:
                raise PlanError(f"{where}: tensors: {join(path, lacking[0])!r:.80} is missing")

    def _add(self, row: Any, promised: dict[int, dict[str, Any]], where: str) -> None:
        name, facts = untrusted.exactly(2, row, where, "a name and facts")
        where = f"{where} {untrusted.string(name, where)!r:.80}"
        tensor, role = self._tensor(name, facts, where)
        path, _, leaf = name.rpartition(".")
        _check_atom(leaf, where, at_root=not path)
        module = self.modules.get(path)
        if module is None:
            raise PlanError(f"{where}: there is no module {path!r:.80}")
        expected = promised[id(module)].get(leaf)
        takes = "none" if expected is None else list(expected.shape)
        if leaf in promised[id(module)] and takes != list(tensor.shape):
            raise PlanError(f"{where}: the layer takes {takes}, got {list(tensor.shape)}")
        if module._parameters.get(leaf) is not None or module._buffers.get(leaf) is not None:
            raise PlanError(f"{where}: it is there twice")
        with untrusted.reading(where):
            if role == "parameter":
                module.register_parameter(leaf, tensor)  # type: ignore[arg-type]
            else:
                module._non_persistent_buffers_set.discard(leaf)
                module.register_buffer(leaf, tensor, persistent=role == "buffer")
        self.read[name] = tensor

    def _tensor(self, name: str, facts: Any, where: str) -> tuple[Tensor, Role]:
        found = untrusted.mapping(facts, where)
        role: Any = untrusted.string(found.get("role"), f"{where}: role")
        if role not in ("parameter", "buffer", "constant"):
            raise untrusted.refusal(role, f"{where}: role", "parameter, buffer or constant")
        if "same" in found:
            first = untrusted.string(untrusted.record(found, where, ("role", "same"))["same"], where)
            if first not in self.read:
                raise PlanError(f"{where}: there is no tensor {first!r:.80} before it")
            if role == "parameter" and not isinstance(self.read[first], nn.Parameter):
                raise PlanError(f"{where}: {first!r:.80} is no parameter")
            return self.read[first], role
        found = untrusted.record(found, where, ("role", "dtype", "shape", "trains"), ("strides",))
        shape = untrusted.integers(found["shape"], f"{where}: shape")
        trains = untrusted.boolean(found["trains"], f"{where}: trains")
        kind = dtype(found["dtype"], f"{where}: dtype")
        value = self.values(name, role)
        if value.dtype != kind or tuple(value.shape) != shape:
            raise PlanError(f"{where}: expected {kind} {list(shape)}, the file holds {value.dtype} {list(value.shape)}")
        if "strides" in found:
            value = _laid_out(value, found["strides"], f"{where}: strides")
        with untrusted.reading(where):
            return (nn.Parameter(value, trains) if role == "parameter" else value.requires_grad_(trains)), role


def _laid_out(value: Tensor, strides: Any, where: str) -> Tensor:
    """Returns the tensor with other steps in memory."""
    steps = untrusted.integers(strides, where)
    if len(steps) != value.dim() or not _are_dense(value.shape, steps):
        raise untrusted.refusal(strides, where, f"steps that fill the memory of {list(value.shape)}")
    with untrusted.reading(where):
        return torch.empty_strided(value.shape, steps, dtype=value.dtype, device=value.device).copy_(value)


def _check_atom(name: str, where: str, at_root: bool) -> None:
    """A name must be one in generated code, where it may stand between quotes."""
    plain = _ATOM.fullmatch(name) and name.isprintable() and normalize("NFKC", name) == name
    if not plain or (at_root and name in RESERVED):
        raise untrusted.refusal(name, where, "a name of letters, digits and plain signs")
