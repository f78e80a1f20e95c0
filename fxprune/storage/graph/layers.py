"""The classes of modules that a stored graph may hold, each with the options that make it anew."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.ops.layers import CustomFunction, FeatureDropout, Recurrent, ScaledDotProductAttention
from fxprune.rewriting.places import Place
from fxprune.storage.graph.silent import Lost, StochasticDepth, recognise
from fxprune.storage.graph.values import Unstorable, plain, to_json

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_NORM = "num_features eps momentum affine track_running_stats"

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

#: Classes -> their options: attributes of the same name, but for ``bias``, which says whether there is one.
_ALIKE: dict[tuple[type[nn.Module], ...], str] = {
    (nn.Module, nn.Identity): "",
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _CONV,
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d): f"{_CONV} output_padding",
    (nn.Linear,): "in_features out_features bias",
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d): _NORM,
    (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d): _NORM,
    (nn.LayerNorm,): "normalized_shape eps elementwise_affine bias",
    (nn.RMSNorm,): "normalized_shape eps elementwise_affine",
    (nn.GroupNorm,): "num_groups num_channels eps affine",
    (nn.PReLU,): "num_parameters",
    (nn.Embedding,): "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
    _DROPOUTS: "p inplace",
    (nn.RReLU,): "lower upper inplace",
    (FeatureDropout,): "p",
    (ScaledDotProductAttention,): "dropout_p",
    (Recurrent,): "op names options",
    (StochasticDepth,): "p batch scale",
    (Lost,): "what",
}
_OPTIONS = {cls: options.split() for classes, options in _ALIKE.items() for cls in classes}
_CLASSES = {cls.__name__: cls for cls in _OPTIONS}
_WITH_TENSORS = {
    cls for cls, names in _OPTIONS.items() if names and names[0].startswith(("in_", "num_", "normalized_"))
}
_RECURRENT = ("has_biases", "num_layers", "dropout", "bidirectional", "batch_first")
_RECURRENT_OPS = ("gru", "lstm", "rnn_relu", "rnn_tanh")


def describe_layer(module: nn.Module, path: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of a module's class and its options, as JSON data.

    Raises:
        Unstorable: a module of another class, which does something in evaluation mode.
    """
    if isinstance(module, Place):  # a graph makes places of plain modules itself
        return "Module", {}
    own = type(module) in _OPTIONS or isinstance(module, CustomFunction)
    known = module if own else recognise(module)
    if isinstance(known, CustomFunction) or known is None:
        cls = module.function if isinstance(module, CustomFunction) else type(module)
        raise Unstorable(f"{path!r} is a {cls.__module__}.{cls.__qualname__}, which a file may not name")
    values = {name: getattr(known, name) for name in _OPTIONS[type(known)]}
    if "bias" in values:
        values["bias"] = values["bias"] is not None
    return type(known).__name__, {name: to_json(value) for name, value in values.items()}


def make_layer(name: str, options: Any, where: str) -> nn.Module:
    """Returns a module of a known class, its tensors on the meta device.

    Raises:
        PlanError: an unknown class, or options that it does not take.
    """
    if name not in _CLASSES:
        raise PlanError(f"{where}: expected a layer such as 'Conv2d', got {name!r:.80}")
    cls = _CLASSES[name]
    found = untrusted.record(options, where, _OPTIONS[cls])
    values = {key: plain(value, f"{where}: {key}") for key, value in found.items()}
    if cls is Recurrent:
        return _recurrent(values, where)
    with untrusted.reading(where):
        return cls(**values, device="meta") if cls in _WITH_TENSORS else cls(**values)


def _recurrent(values: dict[str, Any], where: str) -> Recurrent:
    op, names, options = values["op"], values["names"], values["options"]
    if op not in _RECURRENT_OPS:
        raise untrusted.refusal(op, where, f"one of {', '.join(_RECURRENT_OPS)}")
    if not isinstance(names, tuple):
        raise untrusted.refusal(names, where, "a tuple of names")
    names = tuple(untrusted.string(name, where) for name in names)
    return Recurrent(op, names, **untrusted.record(options, where, _RECURRENT))
