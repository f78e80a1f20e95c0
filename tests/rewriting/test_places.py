"""What stands for blocks in a graph says that nothing calls it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.rewriting.pruned import PrunedModule
from tests.support.emitting import emit_of

HOOKS = {
    "register_forward_hook": lambda *a: None,
    "register_forward_pre_hook": lambda *a: None,
    "register_full_backward_hook": lambda *a: None,
    "register_full_backward_pre_hook": lambda *a: None,
    "register_backward_hook": lambda *a: None,
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu())


def graph() -> PrunedModule:
    return emit_of(nn.Sequential(Block(), Block()), torch.randn(2, 6))


@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, copy.copy])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_on_a_block_is_told_that_nothing_calls_it(hook: str, way: object) -> None:
    block = way(graph()).get_submodule("0")  # type: ignore[operator]
    with pytest.warns(fxprune.FxpruneWarning, match=r"does not call this module \(it holds a, b\).*form='module'"):
        handle = getattr(block, hook)(HOOKS[hook])
    handle.remove()


def test_a_hook_on_a_layer_or_the_whole_is_called_without_a_word() -> None:
    pruned, seen = graph(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned.get_submodule("0.a").register_forward_hook(lambda *a: seen.append("layer"))
        pruned.register_forward_hook(lambda *a: seen.append("whole"))
    pruned(torch.randn(2, 6))
    assert seen == ["layer", "whole"]


def test_a_block_cannot_be_called_and_says_what_can() -> None:
    with pytest.raises(fxprune.CallError, match=r"call of the whole model.*restore"):
        graph().get_submodule("1")(torch.randn(2, 6))


def test_a_file_gives_places_as_well(tmp_path) -> None:
    pruned = fxprune.compile(nn.Sequential(Block(), Block()), torch.randn(4, 6), 0.8, progress=False)
    fxprune.save(pruned, tmp_path / "small")
    with pytest.warns(fxprune.FxpruneWarning, match="does not call"):
        fxprune.load(tmp_path / "small").get_submodule("0").register_forward_hook(print)
