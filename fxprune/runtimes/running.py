"""A model made ready to be timed."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._base.errors import ExportError, FxpruneError, raised_as
from fxprune.data.calls import Call, tensors_of
from fxprune.data.checks import device_of
from fxprune.runtimes.program import Program, trace
from fxprune.runtimes.registry import FileRuntime, Run
from fxprune.runtimes.setting import Setting
from fxprune.runtimes.sizes import resized, sizes_of


def ready(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Run:
    """Returns what runs a model once by the setting's backend; it is ready to be timed.

    Args:
        model: on the setting's device, in eval mode.
        args: positional arguments, on the device, of the batch size.
        kwargs: keyword arguments.
        setting: of which backend, device and threads count.

    Raises:
        FxpruneError: the backend is not installed, does not run on the device, or does not take the model.
    """
    runtime, kind = setting.runtime, torch.device(setting.device).type
    if runtime.devices and kind not in runtime.devices:
        raise FxpruneError(f"{runtime.name} runs on {' and '.join(runtime.devices)}, got {setting.device!r}")
    with raised_as(FxpruneError, f"{runtime.name} does not take {type(model).__name__}"):
        return runtime.runner(model, args, kwargs, setting)


def moved(model: nn.Module, device: str) -> nn.Module:
    """Returns the model, or a copy of it on another device."""
    wanted, here = torch.device(device), device_of(model)
    same = wanted.type == here.type and (wanted.index is None or wanted.index == here.index)
    return model if same or wanted.type == here.type == "cpu" else copy.deepcopy(model).to(wanted)


def at_these_sizes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
    """Returns a model as a program for the sizes of one call, and no others."""
    return trace(model, (args, dict(kwargs)), dynamic_batch=False, dynamic_shapes={})


def of_one_sample(program: Program) -> Program:
    """Returns a program for one sample, and no other sizes than those of its call."""
    symbolic = program.symbolic()
    sizes = sizes_of(symbolic, tensors_of(program.call))
    one = {symbol: 1 for symbol, name in program.names.items() if name == "batch"}
    return at_these_sizes(program.module, *resized(program.call, symbolic, sizes | one))


def arrays_of(program: Program, call: Call, read: Container[str], runtime: str) -> dict[str, Any]:
    """Returns those of a call's arrays, ``[...]`` each, that are read, by the names of the program's inputs.

    Raises:
        ExportError: as `numpy_of`.
    """
    pairs = zip(program.inputs, tensors_of(call), strict=True)
    return {value.name: numpy_of(x, runtime) for value, x in pairs if value.name in read}


def numpy_of(tensor: Tensor, runtime: str) -> Any:
    """Returns a tensor, ``[...]``, as an array of numpy's, for a runtime that takes those.

    Raises:
        ExportError: numpy has no such dtype.
    """
    if tensor.dtype is torch.bfloat16:
        raise ExportError(
            f"{runtime} takes numpy's arrays, which have no bfloat16: use a copy of the model as .float(), or .half()"
        )
    return tensor.detach().cpu().contiguous().numpy()


@contextlib.contextmanager
def silent(*loggers: str) -> Iterator[None]:
    """Keeps what a converter prints, and what it logs below an error by these names, off the screen."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def from_file(runtime: FileRuntime, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """Returns what runs a model once, as the file that a runtime writes of it.

    Args:
        runtime: what writes the file and loads it; the file is for the sizes of these arguments.
        model: as `Runtime.runner` gets it.
        args: likewise.
        kwargs: likewise.
    """
    program = at_these_sizes(model, args, kwargs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{runtime.suffix}"
        runtime.write(program, path)
        loaded = runtime.load(path, program)
    return partial(loaded, *program.call[0], **program.call[1])
