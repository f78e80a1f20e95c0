"""Targets of stored nodes: operators by name, and none that reaches further."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fxprune._base.errors import PlanError
from fxprune.storage.graph import targets


@pytest.mark.parametrize(
    "name",
    [
        "aten::linear.default",
        "aten::add.Tensor",
        "aten::sym_size.int",
        "fxprune::mark.default",
        "operator.mul",
        "operator.getitem",
        "builtins.getattr",
        "fxprune.extreme",
        "torch.sym_max",
        "math.ceil",
        "aten::conv2d.padding",
        "aten::einsum.default",
    ],
)
def test_targets_come_back(name: str) -> None:
    assert targets.name_of(targets.find(name, "here")) == name


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
        "operator.attrgetter",
        "operator.methodcaller",
        "aten::from_file.default",
        "aten::save.default",
        "aten::_print.default",
        "aten::warn.default",
        "aten::linear",
        "linear",
        "aten::__class__.default",
        "aten::linear.__class__",
        "aten::nothing.default",
        "aten::linear.nothing",
        "subprocess::run.x",
        "prims::add.default",
        "aten::linear.default\n",
        "aten.linear.default",
        "torch.load",
        "",
        "transformers::nothing.default",
        "inductor::x.default",
        "aten::_linalg_check_errors.default",
        "aten::linear.default; import os",
    ],
)
def test_targets_that_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"^here"):
        targets.find(name, "here")


def test_getattr_asks_for_device_and_dtype_alone() -> None:
    node = fx.Graph().placeholder("x")
    targets.check_call(getattr, (node, "dtype"), {}, "here")
    for args in ((node, "__class__"), (node, "data"), (1, "dtype"), (node,), (node, "dtype", 1)):
        with pytest.raises(PlanError):
            targets.check_call(getattr, args, {}, "here")


def test_an_extreme_is_that_of_a_tensor() -> None:
    x = fx.Graph().placeholder("x")
    extreme = targets.find("fxprune.extreme", "here")
    for number in (torch.finfo(torch.float32).min, torch.finfo(torch.float16).max):
        targets.check_call(extreme, (x, number), {}, "here")
    for args in [(x,), (x, 1.0), (x, float("inf")), (x, x), (1.0, torch.finfo(torch.float32).min)]:
        with pytest.raises(PlanError, match="a tensor and the least or largest number of a dtype"):
            targets.check_call(extreme, args, {}, "here")
