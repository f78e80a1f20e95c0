"""Batches that march together: what a pass alone gives, and no node twice."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fxprune._base.pages import paged
from fxprune.coupling.selection import Selection
from fxprune.twin.interpreter import Run
from fxprune.twin.march import marching, ways
from tests.support.pruning import prepared


class Tied(nn.Module):
    """A weight that is read at both ends, a value that stays alive all the way, a size, and an input that comes late."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.first(x).relu()
        z = self.second(y).relu().reshape(x.shape[0], -1)
        found: Tensor = nn.functional.linear(z, self.first.weight) * mask + y + x
        return found


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_stops_on_the_way_change_nothing(limit: int) -> None:
    x, mask = torch.randn(4, 6), torch.ones(4, 6)
    _, coupling = prepared(Tied(), (x, mask))
    batches = [(torch.randn(n, 6).double(), torch.rand(n, 6).double()) for n in (2, 5, 3)]
    seen = Counter[str]()

    class Counted(Run):
        def step(self, node, values, feed):  # type: ignore[no-untyped-def]
            seen[node.name] += node.op != "get_attr"
            return super().step(node, values, feed)

    run = Counted(Selection.nothing(coupling))
    expected = [{node: values[node] for node, values in run.steps(batch)} for batch in batches]
    seen.clear()
    calls = [node for node in run.order if node.op == "call_function"]
    found: list[dict[object, object]] = [{} for _ in batches]
    with torch.no_grad(), marching(run, iter(batches), limit) as march:
        for _, stop in pairwise(calls):
            assert march.reaches(stop)
            for number, steps in march.to(stop, last=stop is calls[-1]):
                found[number].update((node, values[node]) for node, values in steps)
            assert not march.reaches(stop)
    assert max(seen.values()) == len(batches) and all(name in seen for name in (node.name for node in calls))
    for one, own in zip(expected, found, strict=True):
        assert {node: value for node, value in own.items() if isinstance(value, Tensor)}.keys() == {
            node for node, value in one.items() if isinstance(value, Tensor)
        }
        assert all(torch.equal(value, one[node]) for node, value in own.items() if isinstance(value, Tensor))


def test_a_way_is_gone_to_its_end_whatever_is_read_of_it() -> None:
    x = torch.randn(4, 6)
    _, coupling = prepared(Tied(), (x, x))
    run = Run(Selection.nothing(coupling))
    calls = [node for node in run.order if node.op == "call_function"]
    half, end = calls[len(calls) // 2], calls[-1]
    with torch.no_grad(), marching(run, [(x.double(), x.double())] * 2, 1 << 20) as march:
        for _, steps in march.to(half):
            next(steps)
        ends = [values[end] for _, steps in march.to(end, last=True) for node, values in steps if node is end]
    with torch.no_grad():
        assert len(ends) == 2 and all(torch.equal(value, run([x.double(), x.double()])[0]) for value in ends)


def test_no_more_is_gone_at_a_time_than_can_be_in_memory() -> None:
    x = torch.randn(4, 6).double()
    _, coupling = prepared(Tied(), (x, x))
    run = Run(Selection.nothing(coupling))
    weight = 6 * 6 * 8
    with torch.no_grad():
        expected = run([x, x])[0]
        for limit, parts in ((None, 1), (10 * weight, 1), (2 * weight, 2), (1, 7)):
            with nullcontext() if limit is None else paged(limit):
                order, ends = [], []
                for number, steps in ways(run, [(x, x)] * 3, 1 << 20):
                    order.append(number)
                    ends += [values[node] for node, values in steps if node.op == "output"]
            assert order == [0, 1, 2] * parts, limit
            assert len(ends) == 3 and all(torch.equal(end[0], expected) for end in ends)
