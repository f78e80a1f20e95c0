"""What a Python file is made of, counted: lines, lines of code, functions and their parameters."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SKIP = "fmt: skip"
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method.

    Attributes:
        name: with its file's.
        code: its lines of code from the ``def`` on.
        parameters: without the ``self`` or ``cls`` of a method.
    """

    name: str
    code: int
    parameters: int


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes:
        name: as it was given.
        lines: all of them.
        code: those that are neither blank nor comment nor docstring.
        statements: which no formatter changes; a definition is one, and so are those within it.
        functions: wherever they stand; a function within another counts for both.
        skips: how many comments keep the formatter off.
    """

    name: str
    lines: int
    code: int
    statements: int
    functions: tuple[Function, ...]
    skips: int


def count(name: str, text: str) -> File:
    """Returns what a file of Python is made of."""
    tokens, nodes = list(tokenize.generate_tokens(io.StringIO(text).readline)), list(ast.walk(ast.parse(text)))
    docstrings = list(_docstrings(nodes))
    code = _lines_of_tokens(tokens) - {line for node in docstrings for line in _lines_of(node)}
    statements = sum(isinstance(node, ast.stmt) for node in nodes) - len(docstrings)
    functions = tuple(_function(name, node, code) for node in nodes if isinstance(node, Definition))
    skips = sum(token.type == tokenize.COMMENT and SKIP in token.string for token in tokens)
    return File(name, len(text.splitlines()), len(code), statements, functions, skips)


def _lines_of_tokens(tokens: Iterable[tokenize.TokenInfo]) -> set[int]:
    """Returns the lines that something stands on; each line of a text in triple quotes is one."""
    spans = (range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in LAYOUT)
    return {line for span in spans for line in span}


def _lines_of(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _docstrings(nodes: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    for node in nodes:
        if (
            isinstance(node, ast.Module | ast.ClassDef | Definition)
            and ast.get_docstring(node, clean=False) is not None
        ):
            yield node.body[0]


def _function(name: str, node: Definition, code: set[int]) -> Function:
    given = node.args
    named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if a]
    parameters = len(named) - (named[:1] in (["self"], ["cls"]))
    return Function(f"{name}:{node.name}", len(code & {*_lines_of(node)}), parameters)
