"""What the code promises its readers: few parameters, shapes in the docstrings, the formatter's word, a short `compile`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxprune

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fxprune"
ARRAY = re.compile(r"\b(Tensor|Ids|Mask|Floats|NDArray|ndarray)\b")
SHAPE = re.compile(r"``[\w.]*\[.*?\]", re.DOTALL)
#: The public calls that spell out a dataclass of options for the user's editor.
SPELLED_OUT = {"compile", "explain", "sweep", "finetune", "retrain"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, public: bool = True) -> Iterator[tuple[Function, bool]]:
    """Yields each function that stands in a module or class, and whether it and its class are public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node, public and not node.name.startswith("_")
        if isinstance(node, ast.ClassDef):
            yield from functions(node, public and not node.name.startswith("_"))
        elif not isinstance(node, ast.expr):
            yield from ((inner, False) for inner, _ in functions(node))


def parameters(node: Function) -> list[ast.arg]:
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [arg for arg in named if arg.arg not in ("self", "cls")]


def lacks_shape(node: Function) -> bool:
    """Returns whether a function takes or returns arrays, and does not say of what shape."""
    annotations = [arg.annotation for arg in parameters(node)] + [node.returns]
    arrays = any(found is not None and ARRAY.search(ast.unparse(found)) for found in annotations)
    return arrays and SHAPE.search(ast.get_docstring(node) or "") is None


@pytest.fixture(scope="module")
def found() -> list[tuple[str, Function, bool]]:
    """Every function of the package, under its file's name."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    return [
        (f"{path.relative_to(PACKAGE).as_posix()}:{node.name}", node, public)
        for path, tree in trees.items()
        for node, public in functions(tree)
    ]


def test_at_most_eight_parameters(found: list[tuple[str, Function, bool]]) -> None:
    many = {name for name, node, _ in found if len(parameters(node)) > 8}
    assert len(found) > 1500 and {name.rpartition(":")[2] for name in many} <= SPELLED_OUT, many


def test_shapes_of_arrays_are_told(found: list[tuple[str, Function, bool]]) -> None:
    assert [name for name, node, public in found if public and lacks_shape(node)] == []


def test_faults_would_be_noticed() -> None:
    text = (
        "class A:\n  def f(self, x: Tensor | None): 'Of ``[n]``.'\n  def g(self) -> Ids: 'Ids.'\n  def _h(x: Mask): ''"
    )
    assert [(node.name, public, lacks_shape(node)) for node, public in functions(ast.parse(text))] == [
        ("f", True, False),
        ("g", True, True),
        ("_h", False, True),
    ]
    (one,) = ast.parse("def f(a, b, /, c, *, d): pass").body
    assert isinstance(one, ast.FunctionDef) and len(parameters(one)) == 4


def test_compile_is_short() -> None:
    tree = ast.parse(inspect.getsource(fxprune.compile))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    _, *body = function.body  # the docstring
    signature = function.body[0].lineno - function.lineno
    assert signature + sum((node.end_lineno or 0) - node.lineno + 1 for node in body) <= 40


def test_the_formatter_has_the_word() -> None:
    comment = re.compile("# fmt: " + "skip$", re.MULTILINE)
    files = [path for folder in ("fxprune", "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    assert sum(len(comment.findall(path.read_text("utf-8"))) for path in files) <= 15
