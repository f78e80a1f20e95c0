"""Find out which module and which line of the user's code a failed capture is to be blamed on."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from fxprune._base.errors import CaptureError
from fxprune.capturing.marks import mark_silent, tensor_versions

_OURS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
_PLUMBING = ("contextlib.py", "functools.py", "<string>", "<frozen ")


_IN_GENERAL = (
    "remove control flow that depends on tensor values (`if x.sum() > 0`, `x.item()`); "
    "pass dynamic_shapes= if a size must stay fixed; pass example inputs like those of real use; "
    "or compile only the submodules that can be captured (a backbone, a head) and leave the rest as it is."
)
#: Words of torch's -> what helps.
_ADVICE = {
    "not a known type": "return tensors in tuples, lists and dicts; or make the class known before compiling, a dataclass by "
    "torch.export.register_dataclass(cls), another by torch.utils._pytree.register_pytree_node.",
    "dynamic_shapes": "give dynamic_shapes= as torch.export.export takes it, a dict from the names of forward's parameters to "
    "{dimension: torch.export.Dim.AUTO}, or leave it out.",
}


class Watch:
    """Follows which of a model's modules is running.

    Attributes:
        running: The modules that are in their forward now, outermost first, with their dotted names.
    """

    __slots__ = ("_marks", "_paths", "_versions", "running")

    def __init__(self, model: nn.Module, marks: bool = True) -> None:
        self._marks = marks
        self._paths = {_key(module): path for path, module in model.named_modules()}
        self.running: list[str] = []
        self._versions: list[tuple[int, ...]] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook: remember the module, and the versions of what it is given."""
        if _key(module) in self._paths:
            self.running.append(self._paths[_key(module)])
            self._versions.append(tensor_versions(args))

    def leave(self, module: nn.Module, args: Any, out: Any) -> Any:
        """Forward hook: forget the module; what an idle module let through gets a mark if there are to be any."""
        path = self._paths.get(_key(module))
        if path is None or path not in self.running:
            return None
        while self.running[-1] != path:  # a module below failed and its caller went on
            self.running.pop()
            self._versions.pop()
        self.running.pop()
        versions = self._versions.pop()
        marked = mark_silent(module, path, versions, args, out) if self._marks else out
        return None if marked is out else marked


def _key(module: nn.Module) -> int:
    """Return what tells modules apart: export calls a shared module through proxies that share its attributes."""
    return id(vars(module))


@contextmanager
def watching(model: nn.Module, *, marks: bool = True) -> Iterator[Watch]:
    """Watch the model's modules by global hooks, and mark the idle ones or not: nothing is put on the model itself."""
    watch = Watch(model, marks)
    handles = (
        nn_module.register_module_forward_pre_hook(watch.enter),
        nn_module.register_module_forward_hook(watch.leave),
    )
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def capture_error(model: nn.Module, watch: Watch, error: BaseException) -> CaptureError:
    """Return the error to raise: the module, the line, what went wrong, and what to try."""
    path = watch.running[-1] if watch.running else ""
    module = model.get_submodule(path)
    where = f"in module {path!r} ({type(module).__name__})" if path else f"in {type(model).__name__}"
    frame = _users_frame(error)
    line = f'\n  at File "{frame.filename}", line {frame.lineno}: {frame.line}' if frame else ""
    return CaptureError(
        f"torch.export could not capture the model: it failed {where}{line}\n"
        f"  {first_line(error)}\n"
        f"What to try: {next((advice for words, advice in _ADVICE.items() if words in str(error)), _IN_GENERAL)}"
    )


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def _users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the last frame in the model's own code, in the error itself or in what caused it."""
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        frame = _last_users_frame(chain.__traceback__)
        if frame is not None:
            return frame
        chain = chain.__cause__ or chain.__context__
    return None


def _last_users_frame(trace: TracebackType | None) -> traceback.FrameSummary | None:
    frames = [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith(_OURS)
        and not frame.filename.endswith(_PLUMBING[:2])
        and not frame.filename.startswith(_PLUMBING[2:])
    ]
    return frames[-1] if frames else None
