"""What runs a model: eager PyTorch, torch.compile, or an ONNX Runtime session."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import FxpruneError, brief
from fxprune._base.extras import need
from fxprune.budget.setting import Setting
from fxprune.data.checks import device_of

#: One forward pass on inputs that do not change.
Runner: TypeAlias = Callable[[], Any]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_LARGE = 1 << 30  # bytes of weights from which on an ONNX model is written to files


def runner(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Runner:
    """Returns what runs a model once by the setting's backend; it is ready to be timed.

    Args:
        model: on the setting's device, in eval mode.
        args: positional arguments, on the device, of the batch size.
        kwargs: keyword arguments.
        setting: of which backend, device and threads count.

    Raises:
        FxpruneError: the backend is not installed, or does not take the model.
    """
    if setting.backend == "eager":
        return lambda: model(*args, **kwargs)
    make = _compiled if setting.backend == "compiled" else _session
    return make(model, args, kwargs, setting)


def moved(model: nn.Module, device: str) -> nn.Module:
    """Returns the model, or a copy of it on another device."""
    wanted, here = torch.device(device), device_of(model)
    same = wanted.type == here.type and (wanted.index is None or wanted.index == here.index)
    return model if same or wanted.type == here.type == "cpu" else copy.deepcopy(model).to(wanted)


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Runner:
    import torch._dynamo as dynamo

    faster = torch.compile(model, dynamic=False)
    # beyond its limits torch.compile falls back to eager without a word
    limits: dict[str, Any] = {"recompile_limit": 4096, "accumulated_recompile_limit": 65536}
    try:
        with dynamo.config.patch(limits), torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            faster(*args, **kwargs)
    except Exception as error:  # compilers fail in their own ways
        raise FxpruneError(
            f"backend 'compiled': torch.compile does not take {type(model).__name__}: {brief(error)}"
        ) from error
    return lambda: faster(*args, **kwargs)


def _session(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], setting: Setting) -> Runner:
    onnxruntime = need("onnxruntime", "export", "backend 'onnxruntime'")
    need("onnxscript", "export", "backend 'onnxruntime'")
    device = torch.device(setting.device).type
    provider = _PROVIDERS.get(device)
    if provider not in onnxruntime.get_available_providers():
        raise FxpruneError(
            f"backend 'onnxruntime': this onnxruntime has no provider for {setting.device!r}, only "
            f"{', '.join(onnxruntime.get_available_providers())}"
        )
    index = torch.device(setting.device).index or 0
    chosen = provider if device == "cpu" else (provider, {"device_id": index})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        source = _exported(model, args, kwargs, Path(folder))
        session = onnxruntime.InferenceSession(source, options, providers=[chosen])
    leaves = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    names = [entry.name for entry in session.get_inputs()]
    if len(leaves) != len(names):
        raise FxpruneError(
            f"backend 'onnxruntime': {type(model).__name__} takes {len(leaves)} tensors, its ONNX form {len(names)}"
        )
    if strange := [leaf.dtype for leaf in leaves if leaf.dtype is torch.bfloat16]:
        raise FxpruneError(
            f"backend 'onnxruntime': it takes numpy's arrays, which have no {strange[0]}: use .float() or .half()"
        )
    feeds = {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, leaves, strict=True)}
    if device == "cpu":
        return lambda: session.run(None, feeds)
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", index))
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cuda", index)
    return lambda: session.run_with_iobinding(binding)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> str | bytes:
    """Returns the model in ONNX form, as bytes, or as a path in the folder if it is large."""
    quiet = logging.getLogger("torch.onnx")
    level, output = quiet.level, io.StringIO()
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, args, kwargs=dict(kwargs), dynamo=True, verbose=False)
        assert program is not None
        size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        if size < _LARGE:
            return bytes(program.model_proto.SerializeToString())
        path = folder / "model.onnx"
        program.save(str(path), external_data=True)
        return str(path)
    except Exception as error:  # exporters fail in their own ways
        raise FxpruneError(
            f"backend 'onnxruntime': torch.onnx does not take {type(model).__name__}: {brief(error)}"
        ) from error
    finally:
        quiet.setLevel(level)
