"""The tables are complete: what is registered is tested, and what needs a slice or twin rule has one."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capturing.captured import Captured, capture
from fxprune.ops import registry
from fxprune.ops.registry import bind, register, register_pointwise, registered, rule_of
from tests.rules import (
    test_attention,
    test_contract,
    test_conv,
    test_create,
    test_elementwise,
    test_join,
    test_norm,
    test_positions,
    test_recurrent,
    test_reduce,
    test_reshape,
    test_spatial,
)
from tests.rules.common import Fn, coupled

A = torch.ops.aten
FAMILIES = (test_attention, test_contract, test_conv, test_create, test_join, test_norm, test_positions, test_reshape)
#: Ops with a rule that no test's graph holds, and why.
UNSEEN = {
    "erased by capture": {
        "alias",
        "clone",
        "expand_as",
        "detach",
        "lift_fresh_copy",
        "type_as",
        "_to_copy",
        "contiguous",
        "_unsafe_view",
        "view",
    },
    "made by capture for modules that only train": {"mark"},
    "not for float64, so with a test of its own": {"_grouped_mm", "grouped_mm_fallback"},
}


@functools.cache
def _seen() -> set[Any]:
    """Returns every op in the graphs of all tests of this folder."""
    graphs: list[fx.Graph] = []
    cases = [case for family in FAMILIES for case in family.CASES]
    cases += [case for family in (test_elementwise, test_reduce) for case in family.CASES]
    graphs += [coupled(case).captured.module.graph for case in cases]
    graphs += [captured.module.graph for captured in (*_tables(), *test_recurrent.every())]
    return {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}


def _tables() -> list[Captured]:
    torch.manual_seed(0)
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    models: list[tuple[nn.Module, Tensor]] = []
    for functions, operands in ((test_elementwise.UNARY, 1), (test_elementwise.BINARY, 2)):
        models.append((test_elementwise.Many(list(functions.values()), operands), x))
    for d, functions in test_spatial.FUNCTIONS.items():
        models.append((test_spatial.Many(functions, d), torch.randn(test_spatial.SHAPES[d], dtype=torch.float64)))
    models += [
        (test_reduce.Many(list(functions.values()), False, False), x)
        for functions in (test_reduce.PARTS, test_reduce.SCANS)
    ]
    random = (torch.rand_like, torch.randn_like, lambda y: torch.bernoulli(y, 0.5), lambda y: y * torch.rand(6),
              lambda y: y * torch.randn(6), lambda y: y * torch.randint(3, (6,)), lambda y: y * torch.randint(1, 3, (6,)))  # fmt: skip
    models.append((test_elementwise.Many(list(random), 1), x))
    return [capture(model.double().eval(), (x,)) for model, x in models]


def test_every_registered_op_is_in_some_test() -> None:
    known = set.union(*UNSEEN.values())
    missing = {
        str(op) for op in registered()
        if op not in _seen() and op != "pointwise" and op._schema.name.split("::")[1] not in known
    }  # fmt: skip
    assert not missing


def test_an_excuse_is_not_given_for_what_is_seen() -> None:
    names = {op._schema.name.split("::")[1] for op in _seen() if hasattr(op, "_schema")}
    assert not set.union(*UNSEEN.values()) & names


def _source(rule: Any) -> str:
    return inspect.getsource(rule) + "".join(
        inspect.getsource(cell.cell_contents)
        for cell in rule.__closure__ or ()
        if inspect.isfunction(cell.cell_contents)
    )


@pytest.mark.parametrize("op", [op for op in registered() if op != "pointwise"], ids=str)
def test_tables_agree(op: Any) -> None:
    rule = registered()[op]
    source = _source(rule.couple)
    if "t.note(" in source or "new_axis(" in source:
        assert rule.slice is not None, "it keeps axes or makes some, and its arguments follow them"
    if "t.statistic(" in source or (
        "_reduce(" in source and "indexing" not in rule.couple.__name__ and "arg" not in rule.couple.__name__
    ):
        assert rule.twin is not None, "it may be recorded as a statistic"


LITERALS = {
    "size",
    "sizes",
    "shape",
    "split_sizes",
    "repeats",
    "dims",
    "normalized_shape",
    "groups",
    "num_groups",
    "pad",
}


@pytest.mark.parametrize("op", [op for op in registered() if op != "pointwise"], ids=str)
def test_ops_with_size_literals_have_a_slice_rule(op: Any) -> None:
    literal = {a.name for a in op._schema.arguments if "int" in str(a.type).lower() and a.name in LITERALS}
    if literal and op not in NO_SLICE:
        assert registered()[op].slice is not None, literal


#: Their literals name dimensions or sizes of free or fixed axes.
NO_SLICE = {
    *(op for op, rule in registered().items() if rule.couple.__module__.endswith(".create")),
    A.permute.default, A.roll.default, A.flip.default, A.unfold.default,
}  # fmt: skip


def test_registering_twice_raises() -> None:
    def couple(*_: Any) -> None:
        return None

    with pytest.raises(KeyError, match=r"aten\.linear\.default has a rule already"):
        register(["linear.default"], couple)
    with pytest.raises(KeyError, match="pointwise ops have a rule already"):
        register_pointwise(couple)
    before = registered()
    register(["no_such_op.default", "nowhere::op.default", "linear.no_such_overload"], couple)
    assert registered() == before


def test_rules_of_ops_without_an_entry() -> None:
    assert rule_of(A.tanh.default) is registered()["pointwise"]
    assert rule_of(A.tanh_.default) is None
    assert rule_of(A.triu.default) is None
    assert rule_of(len) is None


def test_arguments_are_bound_by_schema_name() -> None:
    captured = capture(Fn(lambda m, x: A.softmax.int(x, dim=1)), (torch.randn(3, 4),))
    node = next(n for n in captured.module.graph.nodes if n.target is A.softmax.int)
    bound = bind(node)
    assert (bound.self, bound.dim, bound.dtype) == (node.args[0], 1, None)
    assert registry.bind(node) == bound
