"""Norms on fake tensors: the sizes, dtypes and errors of those that torch works out."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fxprune.capturing.captured import capture
from fxprune.capturing.fakes import Fakes, Outcomes, unlogged
from tests.models.fn import Fn

aten = torch.ops.aten


def _pooling() -> nn.Module:
    stem = nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, ceil_mode=True)
    body = nn.Conv2d(4, 6, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True)
    return nn.Sequential(*stem, *body)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (3, 6, 4, 4), (1, 6, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_norm_has_the_same_results(training: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    given = *(torch.ones(6, dtype=dtype) for _ in range(4)), training, 0.1, 1e-5
    assert _quick(aten.native_batch_norm.default, x, *given) == _slow(aten.native_batch_norm.default, x, *given)


@pytest.mark.parametrize("normalized", [[5], [4, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_norm_has_the_same_results(normalized: list[int], dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, dtype=dtype)
    given = normalized, torch.ones(normalized, dtype=dtype), None, 1e-5
    assert _quick(aten.native_layer_norm.default, x, *given) == _slow(aten.native_layer_norm.default, x, *given)


@pytest.mark.parametrize(("norm", "shape"), [(nn.LayerNorm(5), (2, 4)), (nn.BatchNorm2d(5), (2, 4, 3, 3))])
def test_a_norm_of_other_sizes_is_refused(norm: nn.Module, shape: tuple[int, ...]) -> None:
    fakes = Fakes()
    with fakes.mode, Outcomes(), pytest.raises(RuntimeError):
        torch.func.functional_call(norm, {n: fakes(p) for n, p in norm.named_parameters()}, torch.empty(shape))


@pytest.mark.parametrize(("dtype", "number"), [(torch.float16, 1.0), (torch.int64, 1), (torch.bool, False)])
def test_a_number_is_read_of_a_fake(dtype: torch.dtype, number: object) -> None:
    fakes = Fakes()
    with fakes.mode, Outcomes():
        assert fakes(torch.zeros((), dtype=dtype)).item() == number


def test_a_tensor_has_one_fake() -> None:
    fakes, x = Fakes(), torch.randn(2)
    assert fakes(x) is fakes(x)
    assert fakes(3) == 3


def _quick(func, *args):
    with Outcomes():
        return _slow(func, *args)


def _slow(func, *args):
    fakes = Fakes()
    with fakes.mode:
        results = func(*map(fakes, args))
    return [(tuple(y.shape), y.dtype, y.is_contiguous()) for y in results]


def test_nothing_is_logged_of_sizes_that_a_model_does_not_take(capfd: pytest.CaptureFixture[str]) -> None:
    """At batch 1, which is tried, there is nothing to reduce."""
    model = Fn(lambda m, x: m.a(x)[1:].amax(0), a=nn.Linear(3, 4)).eval()
    capture(model, (torch.randn(4, 3),))
    captured = capfd.readouterr()
    assert captured.err == "" == captured.out


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Conv2d(3, 4, (3, 1)), (2, 3, 8, 1)),  # a size of one, which export fixes
        (_pooling(), (2, 3, 32, 32)),  # windows that jut out lead to conditions that are not simplified
    ],
)
def test_nothing_is_logged_of_sizes_that_export_tries(
    model: nn.Module, shape: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    capture(model.eval(), (torch.randn(shape),))
    captured = capfd.readouterr()
    assert captured.err == "" == captured.out


def test_what_others_log_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    logger, users = (logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "users"))
    for one in (logger, users):
        caplog.set_level(logging.WARNING, logger=one.name)  # whatever others have set
        one.addHandler(caplog.handler)
    with unlogged():
        logger.warning("Failed to reduce inequalities")
        logger.warning("something else")
        users.warning("Failed to reduce inequalities")
    logger.warning("Failed to reduce inequalities, outside")
    for one in (logger, users):
        one.removeHandler(caplog.handler)
    told = dict.fromkeys(record.getMessage() for record in caplog.records)
    assert [*told] == ["something else", "Failed to reduce inequalities", "Failed to reduce inequalities, outside"]
