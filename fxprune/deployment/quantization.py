"""Integers of eight bits: torchao's post-training quantization of exported programs (PT2E)."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import ExportError, raised_as
from fxprune._base.extras import need
from fxprune._base.graphs import quantizes
from fxprune.capturing.source import unwrapped
from fxprune.data.batches import Batches
from fxprune.data.calls import Call, tensors_of
from fxprune.data.checks import check_weights, device_of, probe
from fxprune.deployment.request import Request, requested
from fxprune.results.attached import attach, report_if_any
from fxprune.runtimes.program import trace

#: The layers of torch by their names in lower case.
_LAYERS = {name.lower(): layer for name, layer in vars(nn).items() if inspect.isclass(layer)}


def quantize(
    pruned: nn.Module,
    calib_data: Any,
    *,
    quantizer: Any = None,
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
) -> nn.Module:
    """Returns a copy of a model that computes in int8 what can be.

    It is a graph with quantize and dequantize operators. Weights are rounded to int8 by output channel,
    activations to uint8 over the range that calibration shows. `export` writes it to any of its formats
    (``QuantizeLinear`` and ``DequantizeLinear`` in ONNX); with ``torch._inductor.config.freezing`` on,
    `torch.compile` makes int8 kernels of it on x86. Its outputs are an approximation:
    measure the accuracy. It is for evaluation, not for training. Its report is the pruned model's.

    Args:
        pruned: what `fxprune.compile` or `fxprune.load` returned, fine-tuned before, or any module that
            `torch.export` can capture; it stays as it is. On the CPU.
        calib_data: batches as `fxprune.compile` takes them; a few hundred samples are enough.
        quantizer: a quantizer of torchao's; by default its ``X86InductorQuantizer`` with its default
            configuration.
        forward_args: makes ``(args, kwargs)`` of a batch that has another form.
        dynamic_batch: see `export`.
        dynamic_shapes: see `export`.

    Raises:
        CalibrationError: the data are unusable.
        CaptureError: `torch.export` cannot capture the model.
        ExportError: torchao cannot quantize it, or nothing of it.
        MissingExtraError: torchao is not installed.
    """
    if not isinstance(pruned, nn.Module):
        raise ExportError(f"quantize: expected a torch.nn.Module, got {type(pruned).__name__}")
    flow = need("torchao.quantization.pt2e.quantize_pt2e", "quantize", "int8")
    model = unwrapped(pruned)
    check_weights(model)
    batches = Batches(calib_data, device=device_of(model), forward_args=forward_args)
    first = batches.first()
    probe(model, first)
    request = requested(model, (first.args, first.kwargs), None)
    program = trace(
        request.module,
        request.call,
        varying_of(request, batches),
        dynamic_batch=dynamic_batch,
        dynamic_shapes=dynamic_shapes,
    )
    with raised_as(ExportError, "torchao cannot quantize the model"):
        graph = _without(program.exported.module(), _assumed(program.call, (first.args, first.kwargs)))
        observed = flow.prepare_pt2e(_with_sources(graph), quantizer or _x86())
        with torch.no_grad():
            for batch in batches:
                observed(*batch.args, **batch.kwargs)
        quantized: fx.GraphModule = flow.convert_pt2e(observed)
    if not quantizes(quantized.graph):
        raise ExportError("torchao found nothing to quantize in the model: no convolution, no linear layer")
    result = fx.GraphModule(quantized, quantized.graph, "QuantizedModule").eval()  # an exported one refuses eval()
    return result if (found := report_if_any(model)) is None else attach(result, found)


def varying_of(request: Request, batches: Batches) -> tuple[tuple[int, ...], ...]:
    """Returns the dimensions that vary: in compilation, or among the first batches."""
    own = tensors_of(request.call)
    dims = [set(known) for known in request.varying or [()] * len(own)]
    for batch in batches.shapes(among=16):
        for found, x, y in zip(dims, own, tensors_of((batch.args, batch.kwargs)), strict=True):
            found |= {d for d, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if a != b and d > 0}
    return tuple(tuple(sorted(found)) for found in dims)


def _assumed(call: Call, given: Call) -> dict[str, Any]:
    """Returns the keyword arguments that capture gave of itself beside those that are given, as ``use_cache``, and their values."""
    return {name: value for name, value in call[1].items() if name not in given[1] and not tensors_of(value)}


def _without(module: Any, literals: Mapping[str, Any]) -> Any:
    """Returns an exported graph that holds some keyword arguments itself, and no longer takes them."""
    pytree_info = module.graph._codegen.pytree_info
    args, kwargs = pytree.tree_unflatten(range(pytree_info.in_spec.num_leaves), pytree_info.in_spec)
    held = [node for node in module.graph.find_nodes(op="placeholder") if node.name in literals]
    for user in {user: None for node in held for user in node.users}:
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda node: literals[node.name] if node in held else node
        )
    for node in held:
        module.graph.erase_node(node)
    stay = {name: leaf for name, leaf in kwargs.items() if name not in literals}
    module.graph._codegen.pytree_info = pytree_info._replace(
        orig_args=[name for name in pytree_info.orig_args if name not in literals],
        in_spec=pytree.tree_structure((args, stay)),
    )
    module.recompile()
    return module


def _with_sources(graph: Any) -> Any:
    """Returns a graph whose nodes say what they stand for: torchao asks, older torch does not tell."""
    for node in graph.graph.nodes:
        if node.meta.get("source_fn_stack") is None and (source := _source(node.target)) is not None:
            node.meta["source_fn_stack"] = [(node.name, source)]
    return graph


def _source(target: Any) -> Any:
    """Returns what torchao's quantizers call an operator: the layer of its name, or Python's own operator; else None."""
    if not isinstance(target, torch._ops.OpOverload) or target._overloadname not in ("default", "Tensor"):
        return None
    name = target._schema.name.partition("::")[2].rstrip("_").replace("_", "")
    return _LAYERS.get(name) or getattr(operator, name, None)


def _x86() -> Any:
    found = need("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", "quantize", "int8")
    return found.X86InductorQuantizer().set_global(found.get_default_x86_inductor_quantization_config())
