"""Saved artifacts changed at random, with what a file means in mind: other operators, arguments, sizes, names, shapes."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.support.artifacts import EVIL, JSON_FILES, TENSOR_FILES, reseal

STRANGE = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 2**31, 10**12, 2**62, 2**63 - 1, 2**63, 10**400, -(2**63), 0.5, 1e308, -0.0, "", "x",
    "os.system", "builtins.eval", "antigravity.x", "this", "same", "Lost", "Module", "Recurrent", "Conv2d", "parameter", "buffer",
    "constant", "input", "node", "tuple", EVIL, "\x00", "é", "self", "output", "float32", "aten::from_file.default",
    "aten::add.Tensor", "operator.getitem", "builtins.getattr", "registered", "namedtuple", "posixpath.join", [], {}, [[]], [1], [""],
    {"node": "x"}, {"tuple": []}, {"float": "nan"}, {"same": "up.weight"}, {"input": "x"}, [2**40, 2**40], {"kind": "tuple", "children": []},
]  # fmt: skip

SIZES = [-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 4, 5, 8, 64, 1000, 10**5, 2**31, 10**12, 2**62, 2**63 - 1]
FLOATS = [-1e30, -1.0, 0.0, 1e-30, 0.5, 1e30, {"float": "inf"}, {"float": "nan"}]
FUNCTIONS = [
    "operator.mul",
    "operator.pow",
    "operator.lshift",
    "operator.floordiv",
    "operator.getitem",
    "math.floor",
    "builtins.max",
]


def damage(directory: Path, generator: random.Random) -> str:
    """Changes one file, or two, seals the directory again, and returns what was done."""
    names = [
        generator.choice(["graph.json"] * 6 + [*JSON_FILES, *TENSOR_FILES])
        for _ in range(generator.choice([1, 1, 1, 2]))
    ]
    return ", ".join(f"{name} {_damage_file(directory / name, generator)}" for name in names)


def mutate(data: Any, generator: random.Random) -> Any:
    """Returns JSON data in which one thing, somewhere, is another, is gone, or is there twice."""
    places = list(_places(data))
    if not places:
        return data
    holder, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(generator.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 2:
        other, place = generator.choice(places)
        value = copy.deepcopy(holder[key])
        if place in other if isinstance(other, dict) else place < len(other):
            other[place] = value
    elif kind == 3 and isinstance(holder, dict):
        holder[str(generator.choice(STRANGE))] = holder.pop(key)
    elif kind == 4:
        holder[key] = _nested(generator)
    else:
        holder[key] = copy.deepcopy(generator.choice(STRANGE))
    return data


def mutate_graph(graph: Any, generator: random.Random) -> Any:
    """Returns the data of a graph in which a node, a tensor, a layer or the call is another one of its kind."""
    try:
        change = generator.choice(
            [_rename, _resize, _resize, _rewire, _insert, _insert, _insert, _order, _facts, _options]
        )
        change(graph, generator)
    except (LookupError, TypeError, AttributeError, ValueError):  # an earlier change took what it is about
        mutate(graph, generator)
    return graph


def _damage_file(path: Path, generator: random.Random) -> str:
    content = bytearray(path.read_bytes())
    how = generator.choice(
        ["flip", "cut", "edit", "edit", "edit", "edit", "mean", "mean", "mean", "mean", "mean", "mean"]
    )
    if how == "cut":
        path.write_bytes(content[: generator.randrange(len(content) + 1)])
    elif how == "flip":
        _flip(content, generator)
        path.write_bytes(content)
    elif path.name in JSON_FILES:
        try:
            data = json.loads(content)
        except ValueError:  # cut or flipped before
            return "nothing"
        one = (
            {"graph.json": mutate_graph, "plan.json": _mutate_example}.get(path.name, mutate)
            if how == "mean"
            else mutate
        )
        for _ in range(generator.choice([1, 1, 1, 2, 4])):
            data = one(data, generator)
        path.write_text(json.dumps(data))
    else:
        _edit_tensors(path, content, generator)
    if path.name != "manifest.json":
        _seal(path.parent)
    return how


def _seal(directory: Path) -> None:
    try:
        reseal(directory)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # the manifest itself was changed before
        return


def _flip(content: bytearray, generator: random.Random) -> None:
    for _ in range(generator.choice([1, 1, 3, 30])):
        if content:
            place = generator.randrange(min(len(content), generator.choice([60, 10**9])))
            content[place] ^= 1 << generator.randrange(8)


def _edit_tensors(path: Path, content: bytearray, generator: random.Random) -> None:
    """Changes the header, or the values: not a number, or as large as can be."""
    length = int.from_bytes(content[:8], "little")
    if generator.random() < 0.3:
        for place in range(8 + length, len(content)):
            content[place] = generator.choice([0, 255, 127, generator.randrange(256)])
        path.write_bytes(content)
        return
    try:
        header = mutate(json.loads(content[8 : 8 + length]), generator)
    except ValueError:
        return
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _mutate_example(plan: Any, generator: random.Random) -> Any:
    try:
        leaf = generator.choice([leaf for leaf in plan["example"]["leaves"] if isinstance(leaf, dict)])
        leaf["shape"][generator.randrange(len(leaf["shape"]))] = generator.choice(SIZES)
    except (LookupError, TypeError, AttributeError, ValueError):
        mutate(plan, generator)
    return plan


# -- graphs ---------------------------------------------------------------------------------------------------------


def _rename(graph: Any, generator: random.Random) -> None:
    row = generator.choice([row for row in graph["nodes"] if row[0] == "call_function"])
    row[2] = generator.choice([*FUNCTIONS, *_operators()])


def _resize(graph: Any, generator: random.Random) -> None:
    """Puts another number in the place of one among the arguments of the nodes."""
    places = [
        (holder, key)
        for row in graph["nodes"]
        for holder, key in _places(row[3:])
        if type(holder[key]) in (int, float, bool)
    ]
    holder, key = generator.choice(places)
    holder[key] = generator.choice(FLOATS if isinstance(holder[key], float) else SIZES)


def _rewire(graph: Any, generator: random.Random) -> None:
    rows = graph["nodes"]
    places = [(holder, key) for row in rows for holder, key in _places(row[3:]) if key == "node"]
    holder, key = generator.choice(places)
    holder[key] = generator.choice(rows)[1]


def _insert(graph: Any, generator: random.Random) -> None:
    """Calls an operator, any that torch has or one that a file may name, on values there are, and may have a later node use it."""
    rows = graph["nodes"]
    at = generator.randrange(1, len(rows))
    for number in range(generator.choice([1, 1, 2])):
        name = f"more{generator.randrange(10**6)}_{number}"
        rows.insert(at, ["call_function", name, *_call([row[1] for row in rows[:at]], generator)])
        at += 1
        if generator.random() < 0.6:  # it runs, and nothing depends on it
            continue
        users = [(h, k) for row in rows[at:] for h, k in _places(row[3:]) if k == "node"]
        holder, key = generator.choice(users)
        holder[key] = name


def _call(names: list[str], generator: random.Random) -> list[Any]:
    if generator.random() < 0.15:
        return [
            generator.choice(FUNCTIONS),
            [{"node": generator.choice(names)}, generator.choice([{"node": names[-1]}, *SIZES])],
            {},
        ]
    name = generator.choice(_operators())
    declared = _schema(name).arguments
    given = [
        (a, _value(str(a.type), names, generator))
        for a in declared
        if not a.has_default_value() or generator.random() < 0.3
    ]
    args = [value for a, value in given if not a.kwarg_only and not a.has_default_value()]
    return [name, args, {a.name: value for a, value in given if a.kwarg_only or a.has_default_value()}]


def _value(kind: str, names: list[str], generator: random.Random) -> Any:
    """Returns an argument of a type, as the schema writes it."""
    if kind.startswith("Optional["):
        return None if generator.random() < 0.3 else _value(kind[9:-1], names, generator)
    if kind.startswith("List["):
        return [_value(kind[5:-1], names, generator) for _ in range(generator.choice([0, 1, 1, 2, 2, 3, 4]))]
    makers: dict[str, Callable[[], Any]] = {
        "Tensor": lambda: {"node": generator.choice(names)},
        "int": lambda: generator.choice([*SIZES, {"node": generator.choice(names)}]),
        "bool": lambda: generator.choice([True, False]),
        "str": lambda: generator.choice(["", "mean", "sum", "reflect", "trunc", "a,b->ab", "ij,jk", "x" * 1000]),
        "Device": lambda: {"device": generator.choice(["cpu", "meta", "cuda:0"])},
        "dtype": lambda: {"dtype": generator.choice(["float32", "int64", "bool", "quint8", "complex64", "float16"])},
        "Layout": lambda: {"layout": generator.choice(["strided", "sparse_coo", "_mkldnn"])},
    }
    return makers.get(kind, lambda: generator.choice([*FLOATS, *SIZES]))()


def _order(graph: Any, generator: random.Random) -> None:
    rows = graph["nodes"]
    first, second = generator.randrange(len(rows)), generator.randrange(len(rows))
    kind = generator.randrange(3)
    if kind == 0:
        rows[first], rows[second] = rows[second], rows[first]
    elif kind == 1:
        rows.insert(second, copy.deepcopy(rows[first]))
    else:
        del rows[first]


def _facts(graph: Any, generator: random.Random) -> None:
    """Has a tensor be of another shape, type or layout in memory, or be another one."""
    _, facts = generator.choice(graph["tensors"])
    kind = generator.choice(["shape", "strides", "dtype", "same", "role"])
    if kind in ("shape", "strides"):
        sizes = list(facts.get(kind, facts["shape"]))
        sizes[generator.randrange(len(sizes))] = generator.choice(SIZES)
        facts[kind] = sizes
    elif kind == "same":
        role = facts["role"]
        facts.clear()
        facts.update(role=role, same=generator.choice(graph["tensors"])[0])
    else:
        facts[kind] = generator.choice(["float64", "int8", "bool", "complex64", "constant", "buffer", "parameter"])


def _options(graph: Any, generator: random.Random) -> None:
    """Gives a layer another option, or another class."""
    row = generator.choice([row for row in graph["modules"] if row[2]])
    places = list(_places(row[2])) if isinstance(row[2], dict) else []
    if not places or generator.random() < 0.2:
        row[1] = generator.choice(graph["modules"])[1]
        return
    holder, key = generator.choice(places)
    holder[key] = generator.choice([*SIZES, *FLOATS, True, "circular", "reflect", {"tuple": [3, 3]}])


# -- small parts ----------------------------------------------------------------------------------------------------


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every place in JSON data, as what holds it and its key there."""
    stack = [data]
    while stack:
        here = stack.pop()
        for key, value in here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ():
            yield here, key
            if isinstance(value, (dict, list)):
                stack.append(value)


def _nested(generator: random.Random) -> Any:
    deep: Any = 1
    wraps = [lambda d: [d], lambda d: {"tuple": [d]}, lambda d: {"children": [d], "kind": "list"}]
    for _ in range(generator.choice([5, 60, 150])):
        deep = generator.choice(wraps)(deep)
    return deep


@functools.cache
def _schemas() -> dict[str, Any]:
    found = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")]
    return {f"{schema.name}.{schema.overload_name or 'default'}": schema for schema in found}


def _schema(name: str) -> Any:
    return _schemas()[name]


@functools.cache
def _operators() -> list[str]:
    """Returns the names of all operators of torch, and those that a file may name ten times."""
    from fxprune.ops.checked import is_admitted

    def overload(name: str) -> Any:
        packet, _, kind = name.removeprefix("aten::").partition(".")
        return getattr(getattr(torch.ops.aten, packet, None), kind, None)

    admitted = [name for name in sorted(_schemas()) if (op := overload(name)) is not None and is_admitted(op)]
    return [*sorted(_schemas()), *admitted * 10]
