"""Gradients of the original, of its graph, of the masked twin and of the pruned model, which must be the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.names import fetch
from fxprune.algebra.channels import Mask
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emitted
from fxprune.rewriting.slicing import keep_indices
from fxprune.twin.interpreter import Run
from tests.support.pruning import removal

Gradients = Mapping[str, Tensor | None]


def check_gradients(coupling: Coupling, args: tuple[Tensor, ...], share: float = 0.5) -> None:
    """Asserts that what a random removal leaves has the gradients that it has in the original without what went."""
    captured = coupling.captured
    own = of_model(captured.model, args)
    assert_same(own, of_graph(Selection.nothing(coupling), args, own))
    if not coupling.groups:
        return
    removed = removal(coupling, 0, share, min_keep=2 if coupling.statistics else 1)
    pruned = of_model(emitted(Selection(coupling, removed)), args)
    twin = of_graph(Selection(coupling, removed), args, pruned)
    assert_same(_kept(coupling, removed, twin), pruned)


def of_model(model: nn.Module, args: tuple[Tensor, ...]) -> Gradients:
    """Returns the gradients of a module's parameters, as it is, by name."""
    tensors = dict(model.named_parameters())
    return dict(zip(tensors, _gradients(model(*args), list(tensors.values())), strict=True))


def of_graph(selection: Selection, args: tuple[Tensor, ...], wanted: Gradients) -> Gradients:
    """Returns the gradients of a captured graph, without what goes, by the parameters that are wanted."""
    captured = selection.coupling.captured
    tensors = {}
    for name in wanted:
        if name not in captured.unused and captured.ties.get(name, name) == name:
            tensor = fetch(captured.module, name)
            tensors[name] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    out = Run(selection.with_tensors(tensors))(captured.call.flatten(args, {}))
    return dict.fromkeys(wanted) | dict(zip(tensors, _gradients(out, list(tensors.values())), strict=True))


def assert_same(expected: Gradients, got: Gradients, tolerance: float = 1e-8) -> None:
    """Asserts that gradients, ``[...]`` each, agree; no gradient is zero."""
    largest = max((float(gradient.abs().max()) for gradient in expected.values() if gradient is not None), default=0.0)
    for name, gradient in got.items():
        left, right = expected[name], gradient
        if left is None or right is None:
            present = left if right is None else right
            assert present is None or float(present.abs().max()) <= tolerance * largest, f"{name}: on one side alone"
            continue
        assert left.shape == right.shape, name
        assert torch.allclose(left, right, rtol=tolerance, atol=tolerance * largest), name


def _gradients(outputs: Any, tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    total: Any = 0
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            weight = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            total = total + ((leaf if not leaf.is_complex() else torch.view_as_real(leaf).sum(-1)) * weight).sum()
    if not isinstance(total, Tensor):
        return [None] * len(tensors)
    before = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    total.backward()
    found = [tensor.grad for tensor in tensors]
    for tensor, gradient in zip(tensors, before, strict=True):
        tensor.grad = gradient
    return found


def _kept(coupling: Coupling, removed: Mask, gradients: Gradients) -> Gradients:
    """Returns of each gradient at full size what stays."""
    found = dict(gradients)
    for name, axes in keep_indices(Selection(coupling, removed)).items():
        for dim, index in axes.items():
            gradient = found.get(name)
            if gradient is not None:
                found[name] = gradient.index_select(dim, torch.from_numpy(index))
    return found
