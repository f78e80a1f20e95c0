"""What eval mode hides: dropout that the model asks for only while it trains."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune._base.modes import untouched
from fxprune.capturing.blame import Watch, first_line, watching
from fxprune.capturing.normalize.edit import aten, is_op
from fxprune.capturing.prepared import Example
from fxprune.capturing.source import Source

_ATTENTION = "attention"
_WEIGHTS = "attention weights"
_DROPOUT = "dropout"
_NODES = {
    _ATTENTION: (aten.scaled_dot_product_attention,),
    _WEIGHTS: (aten.softmax, aten._softmax),
    _DROPOUT: (aten.dropout,),
}


def restore_training(graph: fx.Graph, source: Source) -> list[str]:
    """Write the dropout probabilities of training into an eval-mode graph.

    The model is run once more, in training mode on fake tensors, and its calls are matched with the graph's
    nodes by module and order. Attention nodes get ``meta["dropout_p"]``, dropout nodes their probability, and
    attention weights that are only dropped in training get a dropout node.

    Returns:
        Notes on what could not be matched.
    """
    if source.exported or not _hides_dropout(graph, source.model):
        return []
    try:
        calls = _train(source.model, source.example)
    except Exception as error:  # whatever the model raises, its eval-mode graph stands
        return [f"the model does not run in training mode, dropout in attention may be lost: {first_line(error)}"]
    notes: list[str] = []
    for kind, seen in calls.items():
        nodes = _by_module(graph, _NODES[kind])
        for path, probabilities in seen.items():
            here = nodes.get(path, [])
            if len(here) == len(probabilities):
                for node, probability in zip(here, probabilities, strict=True):
                    _write(graph, node, kind, probability)
            elif any(probabilities):
                notes.append(
                    f"{path!r} calls {kind} {len(probabilities)} times in training and {len(here)} times in eval: "
                    "its dropout in training is not kept"
                )
    return notes


def _hides_dropout(graph: fx.Graph, model: nn.Module) -> bool:
    """Say whether a dropout probability may be invisible in the graph."""
    for node in graph.nodes:
        if is_op(node, *_NODES[_ATTENTION]):
            return True
        if is_op(node, *_NODES[_WEIGHTS], *_NODES[_DROPOUT]) and (is_op(node, aten.softmax) or not node.args[1]):
            module = _module(model, node.meta.get("module", ""))
            if module is not None and not isinstance(module, nn.modules.dropout._DropoutNd) and _asks(module):
                return True
    return False


def _asks(module: nn.Module) -> bool:
    """Say whether a module has a hyper-parameter that looks like a dropout probability above zero."""
    places = [vars(module), getattr(getattr(module, "config", None), "__dict__", {})]
    return any(
        "drop" in name and isinstance(value, float) and value > 0 for place in places for name, value in place.items()
    )


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _by_module(graph: fx.Graph, targets: Iterable[Any]) -> dict[str, list[fx.Node]]:
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if is_op(node, *targets):
            found[node.meta.get("module", "")].append(node)
    return found


def _write(graph: fx.Graph, node: fx.Node, kind: str, probability: float) -> None:
    if kind == _ATTENTION:
        node.meta["dropout_p"] = probability
    elif kind == _DROPOUT:
        node.args = (node.args[0], probability, *node.args[2:])
    elif probability:
        with graph.inserting_after(node):
            new = graph.call_function(aten.dropout.default, (node, probability, False))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, lambda user: user is not new)


def _train(model: nn.Module, example: Example) -> dict[str, dict[str, list[float]]]:
    """Run the model in training mode on fake tensors; return its dropout probabilities by kind and module."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with untouched(model, training=True), watching(model) as watch, mode:
        recorder = _Recorder(watch)
        fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        args, kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, (example.bound.args, example.bound.kwargs))
        with torch.no_grad(), recorder:
            torch.func.functional_call(model, fakes, args, kwargs)
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Notes every dropout probability together with the module that runs."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self.calls: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call if it drops anything, then make it."""
        kwargs = kwargs or {}
        if func is torch.Tensor.__bool__ and isinstance(args[0], FakeTensor):
            return False  # the one decision that models leave to chance is whether to skip a layer
        if func is F.scaled_dot_product_attention:
            self._note(_ATTENTION, kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        elif func is F.multi_head_attention_forward:
            given = _given(func, args, kwargs)
            kind = _WEIGHTS if given["need_weights"] else _ATTENTION
            self._note(kind, given["dropout_p"] if given["training"] else 0.0)
        elif func in (F.dropout, torch.dropout):
            given = _given(F.dropout, args, {"training" if k == "train" else k: v for k, v in kwargs.items()})
            self._note(_DROPOUT, given["p"] if given["training"] else 0.0)
        return func(*args, **kwargs)

    def _note(self, kind: str, probability: float) -> None:
        running = self._watch.running
        self.calls[kind][running[-1] if running else ""].append(float(probability))


def _given(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults filled in."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
