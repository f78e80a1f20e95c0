"""Hooks on gradients are told, wherever they are: the result has none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.support.capturing import assert_untouched, snapshot


def turned(*args: Any) -> Any:
    return None


def model(middle: Callable[[Any, Tensor], Any] = lambda m, h: None) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        middle(m, h)
        return m.o(torch.relu(m.b(h)))

    torch.manual_seed(0)
    return Fn(forward, a=nn.Linear(6, 12), b=nn.Linear(12, 10), o=nn.Linear(10, 3)).eval()


def hooked(put: Callable[[Any], Any]) -> nn.Module:
    made = model()
    put(made)
    return made


ON_THE_MODEL: dict[str, tuple[Callable[[Any], Any], str]] = {
    "module": (lambda m: m.b.register_full_backward_hook(turned), "no backward hooks, .* on 'b'"),
    "module, before": (lambda m: m.b.register_full_backward_pre_hook(turned), "no backward hooks, .* on 'b'"),
    "module, the old way": (lambda m: m.b.register_backward_hook(turned), "no backward hooks, .* on 'b'"),
    "the model": (lambda m: m.register_full_backward_hook(turned), "no backward hooks, .* on 'Fn'"),
    "parameter": (lambda m: m.b.weight.register_hook(turned), "gradients of parameters, .* on 'b.weight'"),
    "parameter, after": (lambda m: m.b.bias.register_post_accumulate_grad_hook(turned), "parameters, .* on 'b.bias'"),
}


@pytest.mark.parametrize("kind", ON_THE_MODEL)
def test_hooks_of_modules_and_parameters_are_named(kind: str) -> None:
    put, said = ON_THE_MODEL[kind]
    with pytest.warns(fxprune.GradientWarning, match=said) as seen:
        pruned = fxprune.compile(hooked(put), [torch.randn(5, 6)], 0.6, recover=None, progress=False)
    assert sum(warning.category is fxprune.GradientWarning for warning in seen) == 1
    assert len(fxprune.report(pruned).notes) == 1


IN_FORWARD: dict[str, Callable[[Any, Tensor], Any]] = {
    "where it has a gradient": lambda m, h: h.requires_grad and h.register_hook(torch.neg),
    "where gradients are recorded": lambda m, h: torch.is_grad_enabled() and h.register_hook(torch.neg),
    "in training": lambda m, h: m.training and h.register_hook(torch.neg),
    "on the node": lambda m, h: h.grad_fn and h.grad_fn.register_hook(turned),
    "on many": lambda m, h: h.requires_grad and torch.autograd.graph.register_multi_grad_hook([h], turned),
}


@pytest.mark.parametrize("kind", IN_FORWARD)
def test_hooks_that_a_forward_puts_on_tensors_are_told(kind: str) -> None:
    given = model(IN_FORWARD[kind])
    before = snapshot(given)
    with pytest.warns(fxprune.GradientWarning, match="gradients of tensors, which the forward pass of 'Fn'"):
        fxprune.compile(given, [torch.randn(5, 6)], 0.6, recover=None, progress=False)
    assert_untouched(given, before)


def test_hooks_that_a_forward_hook_puts_on_tensors_are_told() -> None:
    given = model()
    given.b.register_forward_hook(lambda layer, args, out: out.requires_grad and out.register_hook(torch.neg) and None)
    assert "gradients of tensors" in capture(given, (torch.randn(5, 6),)).notes[-1]


HARMLESS: dict[str, Callable[[Any], nn.Module]] = {
    "none": lambda: model(),
    "kept gradient": lambda: model(lambda m, h: h.requires_grad and h.retain_grad()),
    "looked at": lambda: model(lambda m, h: h.is_leaf and h.requires_grad),
    "forward hooks": lambda: hooked(
        lambda m: (m.b.register_forward_hook(turned), m.b.register_forward_pre_hook(turned))
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_nothing_is_said_of_what_leaves_gradients_alone(kind: str) -> None:
    assert capture(HARMLESS[kind](), (torch.randn(5, 6),)).notes == ()
