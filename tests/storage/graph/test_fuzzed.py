"""Files damaged at random: each loads, or is refused cleanly."""

from __future__ import annotations

import collections
import copy
import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fxprune
from fxprune._base.errors import PlanError
from tests.models.stored import images, small
from tests.support.artifacts import EVIL, JSON_FILES, TENSOR_FILES, reseal, same, watched

STRANGE = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 2**31, 2**62, 2**63 - 1, 2**63, 10**400, -(2**63), 0.5, 1e308, -0.0, "", "x",
    "os.system", "builtins.eval", "antigravity.x", "this", "same", "Lost", "Module", "Recurrent", "Conv2d", "parameter", "buffer",
    "constant", "input", "node", "tuple", EVIL, "\x00", "é", "self", "output", "float32", "aten::from_file.default",
    "aten::add.Tensor", "operator.getitem", "builtins.getattr", "registered", "namedtuple", "posixpath.join", [], {}, [[]], [1], [""],
    {"node": "x"}, {"tuple": []}, {"float": "nan"}, {"same": "up.weight"}, {"input": "x"}, [2**40, 2**40], {"kind": "tuple", "children": []},
]  # fmt: skip


def mutate(data: Any, generator: random.Random) -> Any:
    """Returns JSON data in which one thing, somewhere, is another, is gone, or is there twice."""
    places: list[tuple[Any, Any]] = []
    stack = [data]
    while stack:
        here = stack.pop()
        for key, value in here.items() if isinstance(here, dict) else enumerate(here):
            places.append((here, key))
            if isinstance(value, (dict, list)):
                stack.append(value)
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
        deep: Any = 1
        for _ in range(generator.choice([5, 60, 150])):
            deep = generator.choice(
                [lambda d: [d], lambda d: {"tuple": [d]}, lambda d: {"children": [d], "kind": "list"}]
            )(deep)
        holder[key] = deep
    else:
        holder[key] = copy.deepcopy(generator.choice(STRANGE))
    return data


def damage(directory: Path, generator: random.Random) -> str:
    """Damages one file, seals the directory again (mostly), and returns what was done."""
    name = generator.choice([*JSON_FILES, "graph.json", "graph.json", *TENSOR_FILES])
    path = directory / name
    content = bytearray(path.read_bytes())
    how = generator.choice(["flip", "cut", "edit", "edit", "edit", "edit"])
    if how == "cut":
        path.write_bytes(content[: generator.randrange(len(content) + 1)])
    elif how == "edit" and name in JSON_FILES:
        data = json.loads(content)
        for _ in range(generator.choice([1, 1, 1, 2, 4])):
            data = mutate(data, generator)
        path.write_text(json.dumps(data))
    elif how == "edit":
        length = int.from_bytes(content[:8], "little")
        header = mutate(json.loads(content[8 : 8 + length]), generator)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    else:
        for _ in range(generator.choice([1, 1, 3, 30])):
            content[generator.randrange(min(len(content), generator.choice([60, 10**9])))] ^= 1 << generator.randrange(
                8
            )
        path.write_bytes(content)
    if name != "manifest.json":
        reseal(directory)
    return f"{name} {how}"


def fuzz(intact: Path, scratch: Path, seeds: range, model: nn.Module | None = None) -> collections.Counter[str]:
    """Loads damaged copies; returns how many loaded and how many were refused. Whatever else happens is raised."""
    found: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        directory = scratch / str(seed)
        shutil.copytree(intact, directory)
        done = damage(directory, random.Random(seed))
        with watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fxprune.load(directory, model)
                found["loaded"] += 1
            except PlanError as error:
                assert str(error)
                found["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, {done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(directory)
    return found


@pytest.mark.slow
def test_fuzzed_files_are_refused_cleanly(intact: Path, tmp_path: Path) -> None:
    found = fuzz(intact, tmp_path, range(250))
    assert found["refused"] > 125


@pytest.mark.slow
def test_fuzzed_files_are_refused_cleanly_with_the_model(intact: Path, tmp_path: Path) -> None:
    found = fuzz(intact, tmp_path, range(1000, 1020), small())
    assert found["refused"] > 5


def test_the_fuzzer_reaches_deep(intact: Path, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    shutil.copytree(intact, directory)
    reseal(directory)
    assert same(fxprune.load(directory)(**images(2, 6)), fxprune.load(intact)(**images(2, 6)))
