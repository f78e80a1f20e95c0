"""What an op is stands in its declaration: nowhere else is one asked for by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fxprune

PACKAGE = Path(fxprune.__file__).parent
HOMES = {"ops", "capturing"}


def names_of_ops(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields every use of ``torch.ops.aten`` but in the first argument of ``call_function``, where a node is made."""
    made = {
        inner
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "call_function" and call.args
        for inner in ast.walk(call.args[0])
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "aten" and node not in made:
            yield node
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(("aten.", "aten::"))
        ):
            yield node


def test_no_op_is_asked_for_by_name() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in HOMES
        for node in names_of_ops(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_a_list_would_be_noticed() -> None:
    bad = "X = {torch.ops.aten.relu.default}\nif node.target is torch.ops.aten.add.Tensor: y = 'aten.mul.Tensor'"
    assert len(list(names_of_ops(ast.parse(bad)))) == 3
    assert not list(names_of_ops(ast.parse("graph.call_function(torch.ops.aten.reshape.default, (x, [1]))")))
