"""A model that cannot be captured: which module, which line, what to try."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fxprune._base.errors import CaptureError
from fxprune.capturing.captured import capture


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to blame
            return x
        return -x


class Recovering(nn.Module):
    """Survives a submodule that fails, then fails itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branching()

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x)
        except Exception as error:
            raise ValueError("own fault") from error


def failure(model: nn.Module, x: Tensor) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, (x,))
    return str(caught.value)


def test_module_and_line_are_named():
    text = failure(nn.Sequential(nn.Linear(4, 4), nn.Sequential(Branching())), torch.randn(2, 4))
    assert "in module '1.0' (Branching)" in text
    assert re.search(r'test_blame\.py", line \d+: if x\.sum\(\) > 0:', text)
    assert "What to try" in text
    assert "submodules" in text


def test_module_of_torch_itself_is_named():
    text = failure(nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 5)), torch.randn(2, 4))
    assert "in module '1' (Linear)" in text


def test_cause_is_kept():
    with pytest.raises(CaptureError) as caught:
        capture(nn.Sequential(Branching()), (torch.randn(2, 4),))
    assert caught.value.__cause__ is not None


def test_a_failure_that_was_passed_on():
    assert "own fault" in failure(Recovering(), torch.randn(2, 4))


def test_hooks_are_gone_after_a_failure():
    failure(Branching(), torch.randn(2, 4))
    assert not nn_module._global_forward_hooks
    assert not nn_module._global_forward_pre_hooks


def test_program_without_example():
    program = torch.export.export(nn.Linear(4, 4), (torch.randn(2, 4),))
    program.example_inputs = None
    with pytest.raises(CaptureError, match="no example inputs"):
        capture(program)


@dataclass
class _Answer:
    logits: Tensor


class _Answering(nn.Module):
    def forward(self, x: Tensor) -> _Answer:
        return _Answer(x + 1)


def test_a_class_that_torch_does_not_know_is_to_be_made_known() -> None:
    text = failure(_Answering(), torch.randn(2, 4))
    assert "What to try: return tensors in tuples, lists and dicts" in text and "register_dataclass" in text


def test_dynamic_shapes_of_another_form_are_shown_the_form() -> None:
    with pytest.raises(CaptureError, match=r"What to try: give dynamic_shapes= as torch.export.export takes it"):
        capture(nn.Linear(4, 4), (torch.randn(2, 4),), dynamic_shapes="batch")
