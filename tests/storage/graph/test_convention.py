"""The stored call: signature and trees, without the classes that they had."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import json
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from fxprune._base.errors import CallError, PlanError
from fxprune.capturing.call import CallSpec
from fxprune.storage.graph import convention


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Boxes:
    boxes: Any
    scores: Any = None


pytree.register_dataclass(Boxes)


TREES = [
    1,
    (1, 2),
    [1, [2, (3,)]],
    {"a": 1, 2: [3]},
    {},
    (),
    collections.OrderedDict(b=1, a=2),
    collections.deque([1, 2]),
    collections.deque([1], maxlen=3),
    Pair(1, {"x": 2}),
    Boxes(1, 2),
    Boxes(1),
    {"deep": [Pair(Boxes(1), (2,))]},
]


@pytest.mark.parametrize("value", TREES, ids=repr)
def test_trees_come_back(value: Any) -> None:
    spec = pytree.tree_structure(value)
    data = json.loads(json.dumps(convention._write_tree(spec)))
    again = convention._read_tree(data, "here")
    leaves = pytree.tree_leaves(value)
    assert again == spec and pytree.tree_unflatten(leaves, again) == value


def test_what_is_not_there_comes_as_plain_containers() -> None:
    value = {"a": Pair(1, 2), "b": Boxes(3), "c": collections.defaultdict(list, x=4)}
    data = convention._write_tree(pytree.tree_structure(value))
    text = json.dumps(data).replace(__name__, "antigravity")
    spec = convention._read_tree(json.loads(text), "here")
    assert pytree.tree_unflatten([1, 2, 3, 4], spec) == {"a": (1, 2), "b": {"boxes": 3}, "c": {"x": 4}}
    assert "antigravity" not in sys.modules


def test_a_class_that_is_no_container_is_not_made() -> None:
    for name in ("os.system", "subprocess.Popen", "collections.Counter", "torch.nn.modules.linear.Linear"):
        data = {"kind": "registered", "class": name, "context": ["a"], "names": ["a"], "children": [None]}
        assert convention._read_tree(data, "here").type is dict
        data = {"kind": "namedtuple", "class": name, "names": ["a"], "children": [None]}
        assert convention._read_tree(data, "here").type is tuple
    data = {
        "kind": "registered",
        "class": f"{__name__}.Boxes",
        "context": [["x"], []],
        "names": ["x"],
        "children": [None],
    }
    with pytest.raises(PlanError, match="no such fields"):
        convention._read_tree(data, "here")


def test_calls_come_back() -> None:
    def forward(a: Any, /, b: Any, c: Any = 1.5, *rest: Any, d: Any, e: Any = (1, [2]), **more: Any) -> None: ...

    arguments = {"a": 1, "b": {"x": 2, "y": 3}, "rest": (4,), "d": None, "more": {"z": 5}}
    leaves, in_spec = pytree.tree_flatten(arguments)
    names = tuple(f"n{value}" if value else None for value in leaves)
    out_spec = pytree.tree_structure([1, 2])
    call = CallSpec(inspect.signature(forward), in_spec, out_spec, names, (None,) * len(names), None, ("d",))
    again = convention.read_call(json.loads(json.dumps(convention.describe_call(call))), "here")
    assert again.in_spec == in_spec and again.out_spec == out_spec and again.placeholders == names
    bare = [p.replace(annotation=p.empty) for p in call.signature.parameters.values()]
    assert list(again.signature.parameters.values()) == bare
    assert again.assumed == ("d",)


def test_a_call_of_an_earlier_version_may_leave_out_what_it_could() -> None:
    def forward(x: Any, scale: Any = 1.0) -> None: ...

    in_spec = pytree.tree_structure({"x": 0, "scale": 2.0})
    call = CallSpec(inspect.signature(forward), in_spec, pytree.tree_structure(0), ("x", None), (None, 2.0), None, ())
    x = torch.ones(1)
    data = json.loads(json.dumps(convention.describe_call(call)))
    with pytest.raises(CallError, match=r"captured with 2\.0"):
        convention.read_call(data, "here").flatten((x,), {})
    del data["assumed"]
    for old in (convention.read_call(data, "here"), dataclasses.replace(call, assumed=None)):
        assert old.flatten((x,), {}) == (x,)
        with pytest.raises(CallError, match=r"captured with 2\.0"):
            old.flatten((x, 3.0), {})
