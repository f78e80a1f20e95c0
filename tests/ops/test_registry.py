"""The tables are complete: what is registered is tested, and what needs a slice or twin rule has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.capturing.captured import Captured, capture
from fxprune.coupling.interpreter import couple as couple_graph
from fxprune.coupling.selection import Selection
from fxprune.ops import registry
from fxprune.ops.registry import bind, for_several_versions, register_rule, registered, rule_of
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit
from fxprune.rewriting.slicing import slice_graph
from tests.models.fn import Fn
from tests.models.ops import (
    attention,
    contract,
    conv,
    create,
    elementwise,
    indexed,
    join,
    norm,
    positions,
    recurrent,
    reduce,
    reshape,
    rounding,
    spatial,
    spectral,
)
from tests.support.pruning import coupled

A = torch.ops.aten
FAMILIES = (
    *(attention, contract, conv, create, elementwise, indexed, join),
    *(norm, positions, reduce, reshape, rounding, spectral),
)
#: Ops with a rule that no test's graph holds, and why.
UNSEEN = {
    "erased by capture": {
        "alias",
        "clone",
        "lift_fresh_copy",
        "type_as",
        "_to_copy",
        "contiguous",
        "_unsafe_view",
        "view",
    },
    "made by capture, with tests of their own": {"mark", "function"},
    "another name of what torch's functions call": {
        "embedding_bag.default",
        "std.default",
        "std_mean.default",
        "stft.center",
        "var.default",
        "var_mean.default",
    },
    "taken apart by export, whole in a program of somebody else's": {
        "_fake_quantize_learnable_per_channel_affine",
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        "_neg_view",
        "_unsafe_index_put",
        "adjoint",
        "conj",
        "mH",
        "matrix_H",
        "resolve_neg",
        "vdot",
    },
    "not for float64, so with a test of its own": {"_grouped_mm", "grouped_mm_fallback"},
}


WINDOWS = (torch.bartlett_window, torch.blackman_window, torch.hamming_window, torch.hann_window, torch.kaiser_window)


def _names(op: Any) -> set[str]:
    """Returns the name of an op without and with its overload."""
    name = op._schema.name.split("::")[1]
    return {name, f"{name}.{op._schema.overload_name or 'default'}"}


#: Cases whose graphs hold ops that others have at free sizes alone, which take five times as long to capture.
WITH_SIZES = ("chunk of the batch", "embedding_bag", "expand", "split of the batch")


def _seen() -> set[Any]:
    """Returns every op in the graphs of all cases."""
    cases = [case for family in FAMILIES for case in family.CASES]
    free = [coupled(case).captured for case in cases if case.name in WITH_SIZES]
    fixed = [capture(case.build().double().eval(), case.args(), dynamic_shapes={}) for case in cases]
    graphs = [captured.module.graph for captured in (*free, *fixed, *_tables(), *_recurrent())]
    return {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}


def _tables() -> list[Captured]:
    torch.manual_seed(0)
    x = torch.randn(4, 7, 5, dtype=torch.float64)
    models: list[tuple[nn.Module, Tensor]] = []
    for functions, operands in ((elementwise.UNARY, 1), (elementwise.BINARY, 2)):
        models.append((elementwise.Many(list(functions.values()), operands), x))
    for d, functions in spatial.FUNCTIONS.items():
        models.append((spatial.Many(functions, d), torch.randn(spatial.SHAPES[d], dtype=torch.float64)))
    models += [(reduce.Many(list(functions.values()), False, False), x) for functions in (reduce.PARTS, reduce.SCANS)]
    random = (
        torch.rand_like,
        torch.randn_like,
        lambda y: torch.bernoulli(y, 0.5),
        lambda y: y * torch.rand(6),
        lambda y: y * torch.randn(6),
        lambda y: y * torch.randint(3, (6,)),
        lambda y: y * torch.randint(1, 3, (6,)),
        *(lambda y, w=window: y * w(6) for window in WINDOWS),
        *(lambda y, w=window: y * w(6, periodic=False) for window in WINDOWS),
    )
    models.append((elementwise.Many(list(random), 1), x))
    return [capture(model.double().eval(), (x,), dynamic_shapes={}) for model, x in models]


def _recurrent() -> list[Captured]:
    return [capture(model.double().eval(), recurrent.sequence(), dynamic_shapes={}) for model in recurrent.every()]


@pytest.mark.slow
def test_every_registered_op_is_in_some_test_or_has_an_excuse() -> None:
    seen, known = _seen(), set.union(*UNSEEN.values())
    missing = {str(op) for op in registered() if op not in seen and op != "pointwise" and not _names(op) & known}
    assert not missing
    assert not known & set.union(*(_names(op) for op in seen if hasattr(op, "_schema")))


#: Arguments that hold sizes, counts or places: where they speak of an axis that may shrink, the rule declares them.
SIZES = {"size", "sizes", "shape", "split_sizes", "repeats", "dims", "normalized_shape", "groups", "num_groups", "pad"}

#: Their literals name dimensions, or sizes of free or fixed axes.
NO_SLICE = {
    *(op for op, rule in registered().items() if rule.couple.__module__.endswith(".create")),
    A.permute.default,
    A.roll.default,
    A.flip.default,
    A.rot90.default,
    A.unfold.default,
}


@pytest.mark.parametrize("op", [op for op in registered() if op != "pointwise"], ids=str)
def test_what_holds_sizes_is_declared(op: Any) -> None:
    literal = {a.name for a in op._schema.arguments if "int" in str(a.type).lower() and a.name in SIZES}
    if op not in NO_SLICE:
        assert literal <= set(registered()[op].literals), literal


def couple(t: Any, node: fx.Node, a: Any) -> None:
    """Freezes what the op touches."""


def other(c: Any, node: fx.Node, a: Any) -> Any:
    """Stands for a rule of any kind."""


@pytest.mark.parametrize(
    ("ops", "rule", "message"),
    [
        ("linear.default", Rule(couple), r"linear\.default: it has a rule already"),
        ("pointwise", Rule(couple), "pointwise: it has a rule already"),
        ("renorm.default", couple, r"renorm\.default: expected a fxprune\.Rule, got function: write Rule"),
        (
            "renorm.default",
            Rule(lambda t, node: ()),
            r"renorm\.default: couple: expected .*\(context, node, arguments\), got \(t, node\)",
        ),
        ("renorm.default", Rule(None), r"renorm\.default: couple: expected a function of .*, got None"),  # type: ignore[arg-type]
        ("renorm.default", Rule(couple, twin=len), r"renorm\.default: twin: expected a function of .*, got \(obj, /\)"),  # type: ignore[arg-type]
        ("renorm.default", Rule(couple, statistic=True), r"renorm\.default: statistic=True needs twin="),
        ("renorm.default", Rule(couple, literals=("maxnorm",)), r"renorm\.default: literals= needs slice="),
        ("renorm.default", Rule(couple, slice=other), r"renorm\.default: slice= needs literals="),
        (
            "renorm.default",
            Rule(couple, moves=other, constant=other),
            r"renorm\.default: expected moves= or constant=, got both",
        ),
        (
            "renorm.default",
            Rule(couple, literals=("k",), slice=other),
            r"renorm\.default: literals: .* self, p, dim, maxnorm, got 'k'",
        ),
        (
            "renorm.default",
            Rule(couple, positions=("at",)),
            r"renorm\.default: positions: .* self, p, dim, maxnorm, got 'at'",
        ),
        ("abs_.default", Rule(couple, in_place=True), r"abs_\.default: in_place=True, but there is no aten::abs__"),
    ],
)
def test_a_declaration_that_lacks_something_is_refused(ops: str, rule: Any, message: str) -> None:
    before = registered()
    with pytest.raises(fxprune.RuleError, match=message):
        register_rule(ops, rule)
    assert registered() == before


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers rules that are gone afterwards."""
    registered()  # they are there before they are copied
    for table in ("_RULES", "_LATER"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    return register_rule


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ("softma.default", r"softma.default: torch .* has no such aten op; did you mean softmax"),
        ("linear.no_such_overload", r"has no such aten op; there is linear as .*default"),
        ("blend.default", "has no such aten op"),
        ("renorm.default nonsense.default", "nonsense.default: torch .* has no such aten op"),
        ("", "expected names such as"),
        ("::", "expected names such as"),
        ("t::", "expected names such as"),
        ("a::b::c", "expected names such as"),
        (".", "expected names such as"),
        ([5], "expected names .* got int"),
        ([], "expected names .* got list"),
        (torch.ops.aten.renorm, "expected names .* got OpOverloadPacket"),
        ("pointwise", "it has a rule already"),
    ],
)
def test_a_name_that_no_op_has_is_refused_and_nothing_is_registered(declared: Any, ops: Any, said: str) -> None:
    before = registered()
    with pytest.raises(fxprune.RuleError, match=said):
        declared(ops, Rule(couple))
    assert registered() == before


def test_our_own_rules_are_for_several_versions(declared: Any) -> None:
    before = registered()
    with for_several_versions():
        declared("no_such_op.default", Rule(couple))
    assert registered() == before
    with pytest.raises(fxprune.RuleError, match="has no such aten op"):
        declared("no_such_op.default", Rule(couple))


@pytest.mark.parametrize(
    "name", ["aten::renorm.default", "aten.renorm.default", "torch.ops.aten.renorm.default", "renorm"]
)
def test_an_op_goes_by_every_name_that_people_write(declared: Any, name: str) -> None:
    rule = Rule(couple)
    declared(name, rule)
    assert rule_of(torch.ops.aten.renorm.default) is rule
    with pytest.raises(fxprune.RuleError, match="it has a rule already"):
        declared(torch.ops.aten.renorm.default, rule)


def test_an_op_that_is_not_there_yet_is_declared_once_as_well(declared: Any) -> None:
    rule = Rule(couple)
    declared("later_library::op", rule)
    for name in ("later_library::op.default", "later_library.op.default"):
        with pytest.raises(fxprune.RuleError, match="it has a rule already"):
            declared(name, Rule(couple))
    with torch.library._scoped_library("later_library", "DEF") as library:
        library.define("op(Tensor self) -> Tensor")
        with pytest.raises(fxprune.RuleError, match="it has a rule already"):
            declared("later_library::op", Rule(couple))
        assert rule_of(torch.ops.later_library.op.default) is rule


def test_an_op_without_a_rule_is_told_of_one_that_waits_under_a_name_near_it(declared: Any) -> None:
    declared("some_library::blnd", Rule(couple))
    with torch.library._scoped_library("some_library", "DEF") as library:
        library.define("blend(Tensor self) -> Tensor")
        library.impl("blend", torch.relu, "CompositeExplicitAutograd")
        blend = torch.ops.some_library.blend.default
        model = Fn(lambda m, x: m.b(blend(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)).eval()
        captured = capture(model, (torch.randn(3, 4),))
        assert "one waits for some_library.blnd.default" in couple_graph(captured).explain("a")
        with pytest.raises(fxprune.UnsupportedOpError, match=r"one waits for some_library.blnd.default"):
            couple_graph(captured, strict=True)


class Renormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.renorm(self.up(x), 2, 0, 1.0))


def test_what_a_rule_does_undeclared_is_refused(declared: Any) -> None:
    """A statistic, a note that nobody reads, axes of another size, an argument that is not declared: all name the op."""

    def statistic(t: Any, node: fx.Node, a: Any) -> Any:
        t.statistic(node)
        return t.axes(a.self, node)

    def note(t: Any, node: fx.Node, a: Any) -> Any:
        t.note(node, kept=t.axes(a.self, node)[0])
        return t.axes(a.self, node)

    def short(t: Any, node: fx.Node, a: Any) -> Any:
        return t.axes(a.self, node)[:1]

    captured = capture(Renormed().eval(), (torch.randn(3, 4),))
    for rule, message in (
        (statistic, r"aten\.renorm\.default: it takes a statistic, but does not declare"),
        (note, r"aten\.renorm\.default: it notes kept, but declares no slice="),
        (short, r"aten\.renorm\.default: couple: expected axes of sizes .*, got"),
    ):
        registry._RULES.pop(A.renorm.default, None)
        declared("renorm.default", Rule(rule))
        with pytest.raises(fxprune.RuleError, match=message):
            couple_graph(captured)


def test_what_a_rule_fails_with_names_the_op_and_what_it_was_given(declared: Any) -> None:
    captured = capture(Renormed().eval(), (torch.randn(3, 4),))
    declared(A.renorm.default, Rule(lambda t, node, a: t.axes(a.input, node)))
    words = r"aten\.renorm\.default: couple, given a\.self, a\.p, a\.dim, a\.maxnorm: AttributeError: .*'input'"
    with pytest.raises(fxprune.RuleError, match=words):
        couple_graph(captured)
    registry._RULES[A.renorm.default] = Rule(lambda t, node, a: t.axes(a.self, node)[1:])
    with pytest.raises(
        fxprune.RuleError, match=r"expected axes of sizes \[\(3, 6\)\], got \[\(6,\)\]"
    ):  # as in the example
        couple_graph(captured)
    given = {"literals": ("maxnorm",), "slice": lambda s, node, a: None}
    registry._RULES[A.renorm.default] = Rule(lambda t, node, a: t.axes(a.self, node), **given)
    coupling = couple_graph(captured)
    with pytest.raises(
        fxprune.RuleError, match=r"aten\.renorm\.default: slice: expected a fxprune\.ops\.slicer\.Edit, got NoneType"
    ):
        slice_graph(Selection(coupling, coupling.removed_mask([0])))


def test_a_twin_that_fails_names_the_op(declared: Any) -> None:
    def couple(t: Any, node: fx.Node, a: Any) -> Any:
        t.statistic(node)
        return t.axes(a.self, node)

    declared("renorm.default", Rule(couple, statistic=True, twin=lambda w, node, a: a.other))
    with pytest.raises(
        fxprune.RuleError,
        match=r"aten\.renorm\.default: twin, given a\.self, a\.p, a\.dim, a\.maxnorm: AttributeError: .*'other'",
    ):
        fxprune.compile(Renormed().eval(), [torch.randn(3, 4)], 0.8, recover=None, progress=False)


def test_a_rule_that_does_not_apply_is_told_from_none(declared: Any) -> None:
    declared("renorm.default", Rule(couple))
    captured = capture(Renormed().eval(), (torch.randn(3, 4),))
    assert "a call to which the rule does not apply, of aten.renorm.default" in couple_graph(captured).explain("up")
    with pytest.raises(fxprune.UnsupportedOpError, match="has no coupling rule for this call"):
        couple_graph(captured, strict=True)


def test_an_overload_is_as_good_as_its_name(declared: Any) -> None:
    declared(A.renorm.default, Rule(couple))
    declared(iter([A.cummax.default, "trace.default"]), Rule(couple))
    assert {A.renorm.default, A.cummax.default, A.trace.default} <= registered().keys()
    with pytest.raises(fxprune.RuleError, match=r"names such as .*, or overloads such as .*, got OpOverloadPacket"):
        declared(A.det, Rule(couple))


def test_an_argument_that_is_edited_undeclared_is_refused(declared: Any) -> None:
    def rule(t: Any, node: fx.Node, a: Any) -> Any:
        return t.axes(a.self, node)

    declared("renorm.default", Rule(rule, literals=("maxnorm",), slice=lambda s, node, a: Edit({"self": a.self})))
    coupling = couple_graph(capture(Renormed().eval(), (torch.randn(3, 4),)))
    assert coupling.groups
    with pytest.raises(fxprune.RuleError, match=r"aten\.renorm\.default: slice: expected edits of maxnorm, got self"):
        slice_graph(Selection(coupling, coupling.removed_mask([0])))


def test_a_number_in_the_place_of_a_run_time_size_is_refused(declared: Any) -> None:
    class Narrowed(Renormed):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.narrow_copy(self.up(x), 0, 0, x.shape[0]))

    def rule(t: Any, node: fx.Node, a: Any) -> Any:
        return t.axes(a.self, node)

    declared("narrow_copy.default", Rule(rule, literals=("length",), slice=lambda s, node, a: Edit({"length": 1009})))
    coupling = couple_graph(capture(Narrowed().eval(), (torch.randn(3, 4),)))
    with pytest.raises(fxprune.RuleError, match=r"slice: length holds a size known only at run time, .* got 1009"):
        slice_graph(Selection(coupling, coupling.removed_mask([0])))


def test_rules_of_ops_without_an_entry() -> None:
    assert rule_of(A.tanh.default) is registered()["pointwise"]
    assert rule_of(A.tanh_.default) is None
    assert rule_of(A.renorm.default) is None
    assert rule_of(len) is None


def test_arguments_are_bound_by_schema_name() -> None:
    captured = capture(Fn(lambda m, x: A.softmax.int(x, dim=1)), (torch.randn(3, 4),))
    node = next(n for n in captured.module.graph.nodes if n.target is A.softmax.int)
    bound = bind(node)
    assert (bound.self, bound.dim, bound.dtype) == (node.args[0], 1, None)
    assert registry.bind(node) == bound
