"""Tensors that lie in files: mapped, read as they are needed, and let go of again when many of them have been.

A mapped tensor is like any other. What is read of it stays in memory until the system needs the room, which counts as memory of the
process meanwhile; `paged` keeps that below a bound, for as long as it is in force.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


class Pages:
    """What has been read of mapped tensors since it was last let go of.

    Args:
        limit: bytes of them that may be in memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._read = limit, 0
        self._mapped: dict[int, Tensor] = {}
        self._touched: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Takes note of a mapped tensor, ``[...]``, which nothing is to be written to."""
        if tensor.numel():
            self._mapped[tensor.data_ptr()] = tensor

    def holds(self, tensor: Tensor) -> bool:
        """Returns whether a tensor, ``[...]``, is a mapped one."""
        return not tensor.is_meta and tensor.data_ptr() in self._mapped

    def touch(self, tensor: Tensor) -> None:
        """Takes note that a tensor, ``[...]``, is about to be read."""
        place = tensor.data_ptr()
        if place not in self._mapped or place in self._touched:
            return
        if self._read + tensor.nbytes > self.limit:
            self.release()
        self._touched.add(place)
        self._read += tensor.nbytes

    def release(self) -> None:
        """Has the system take back the memory of all that is mapped; it is read again from the files where it is needed."""
        for place, tensor in self._mapped.items():  # whoever read it
            _let_go(place, tensor.nbytes)
        self._touched, self._read = set(), 0


def _let_go(place: int, size: int) -> None:
    """Tells the system that the pages from an address on are not needed now; some systems cannot be told."""
    if sys.platform == "win32":
        return
    start = place - place % mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(place + size - start), ctypes.c_int(mmap.MADV_DONTNEED))


_PAGES: ContextVar[Pages | None] = ContextVar("pages", default=None)


def room() -> int | None:
    """Returns how many bytes of mapped tensors can be in memory; None where all are."""
    pages = _PAGES.get()
    return None if pages is None else pages.limit


def touched(value: Any) -> None:
    """Says that a value is about to be read, if it is a tensor; nothing happens where nothing is mapped."""
    pages = _PAGES.get()
    if pages is not None and type(value) in (Tensor, nn.Parameter) and not value.is_meta:  # a fake one lies nowhere
        pages.touch(value)


def mapped(tensor: Tensor) -> Tensor:
    """Takes note of a tensor, ``[...]``, that lies in a file, and returns it."""
    pages = _PAGES.get()
    if pages is not None:
        pages.add(tensor)
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Returns whether a tensor, ``[...]``, lies in a file while memory is bounded: copies share it, and nothing is written to it."""
    pages = _PAGES.get()
    return pages is not None and type(tensor) in (Tensor, nn.Parameter) and pages.holds(tensor)


@torch.no_grad()
def written(tensor: Tensor, values: Tensor) -> Tensor:
    """Gives a tensor other values, ``[...]`` both, in place; one that is mapped gets memory of its own for them. Returns it."""
    if not is_mapped(tensor):
        return tensor.copy_(values)
    tensor.data = values.detach().to(tensor, copy=True)
    return tensor


@contextmanager
def paged(limit: int) -> Iterator[Pages]:
    """Bounds what is in memory of tensors that are mapped meanwhile, as layers and graphs read them, to so many bytes."""
    pages = Pages(limit)
    token = _PAGES.set(pages)
    hook = register_module_forward_pre_hook(_touch_own)
    try:
        yield pages
    finally:
        hook.remove()
        pages.release()
        _PAGES.reset(token)


def _touch_own(module: nn.Module, _: Any) -> None:
    for held in (module._parameters, module._buffers):
        for tensor in held.values():
            touched(tensor)
