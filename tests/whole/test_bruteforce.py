"""Coupling against brute force on a sample of networks, and brute force against couplings that are wrong on purpose."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models import blocks_image as image
from tests.models import blocks_tokens as tokens
from tests.models.fn import Fn
from tests.models.networks import Network
from tests.support.bruteforce.claims import (
    Claims,
    Coordinate,
    Disagreement,
    claims,
    claims_of,
    compare,
    legal,
    network_of,
)
from tests.support.bruteforce.cuts import Demands
from tests.support.bruteforce.ops import UnknownOpError
from tests.support.bruteforce.run import BrokenError, carry_out, carry_out_all
from tests.support.marks import but_slow
from tests.support.pruning import coupling_of, prepared

Made = tuple[nn.Module, tuple[Tensor, ...]]


def _drawn(kind: str, *blocks: image.Spec, head: str = "map", width: int = 4) -> Made:
    network = Network(kind, width, blocks, head)
    return network.build(), network.example(2)


#: Every family of rules.
AGREE: dict[str, Callable[[], Made]] = {
    "residual, gate, groups": lambda: _drawn(
        "image", image.Residual((image.Conv(4, groups=2), image.SqueezeExcite(2))), image.Depthwise(2), head="flatten"
    ),
    "grouped queries, gated MLP": lambda: _drawn(
        "ids", tokens.TokenResidual((tokens.Attention(4, 2, 2),)), tokens.Mlp(3, "swiglu"), head="tied"
    ),
    "dense, pooled branches": lambda: _drawn("image", image.Dense((3, 2)), image.Branches((3, 2), pooled=True)),
    "groups, shuffle": lambda: _drawn("image", image.Conv(8, groups=2, norm="group"), image.Shuffle(2), width=8),
    "transposed, pixels": lambda: _drawn("image", image.Conv(4, groups=2, transposed=True), image.Pixel(width=2)),
    "split, gate, glu": lambda: _drawn("image", image.Split("split", "swap"), image.SqueezeExcite(3), image.Gate(3)),
    "gram": lambda: _drawn("image", image.Odd("gram"), width=3),
    "rotary, heads in the batch": lambda: _drawn(
        "tokens",
        tokens.Attention(2, 2, 4, rotary=True),
        tokens.Attention(2, 2, 2, how="bmm", qkv="unbind"),
        head="mean",
    ),
    "nn.MultiheadAttention": lambda: _drawn("tokens", tokens.Mha(2), head="mean"),
    "windows, mixer": lambda: _drawn(
        "tokens", tokens.Windows(2), tokens.TokenResidual((tokens.MixTokens(4),)), head="mean"
    ),
    "weights of weights": lambda: _drawn(
        "tokens", tokens.Derived("stacked", 3), tokens.Derived("outer", 2), tokens.Derived("grouped"), head="mean"
    ),
    "tied, a table": lambda: _drawn("ids", tokens.Position("table"), tokens.TokenTwice("transposed", 3), head="tied"),
}

#: The smallest of them.
QUICK = ("transposed, pixels", "split, gate, glu", "gram", "tied, a table")

#: Where trying finds more than `couple` offers: a linear layer and an op that keeps its axis, and the reason given.
FROZEN = {"flip": "flipped", "roll": "rolled"}


def _judged(made: Made) -> tuple[Disagreement, Claims]:
    torch.manual_seed(0)
    captured, coupling = prepared(*made)
    said = claims_of(coupling)
    return compare(network_of(captured), said), said


@pytest.mark.parametrize("name", but_slow(AGREE, QUICK))
def test_coupling_says_what_trying_finds(name: str) -> None:
    torch.manual_seed(0)
    captured, coupling = prepared(*AGREE[name]())
    network, said = network_of(captured), claims_of(coupling)
    found = compare(network, said)
    assert found.agree, found
    assert carry_out_all(network, said) >= found.units > 0


@pytest.mark.parametrize("how", but_slow(FROZEN, quick=("roll",)))
@pytest.mark.slow
def test_axes_that_could_be_cut_and_stay(how: str) -> None:
    torch.manual_seed(0)
    captured, coupling = prepared(*_drawn("tokens", tokens.Reduced(how), head="mean"))
    found = compare(network_of(captured), claims_of(coupling))
    assert found.right
    assert not found.coarse
    assert not found.lost
    layer = "chain.blocks.0.linear"
    axes = ((f"{layer}.weight", 0), (f"{layer}.bias", 0), ("head.weight", 1))
    assert set(found.frozen) == {(*axis, i) for axis in axes for i in range(6)}
    assert FROZEN[how] in coupling.explain(layer)


def test_one_axis_in_two_factorings_is_coarse() -> None:
    """(2 x 6) and (3 x 4): even and odd channels are left, where whole groups and places together would do as well."""
    torch.manual_seed(0)
    found, _ = _judged(_drawn("image", image.Conv(12, groups=2), image.Conv(6, groups=3), head="pool", width=6))
    assert found.right
    assert found.coarse
    assert not found.frozen


# -- couplings that are wrong on purpose ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobile() -> tuple[object, Claims]:
    coupling = coupling_of("mobile")
    return network_of(coupling.captured), claims_of(coupling)


def _changed(said: Claims, change: Callable[[Coordinate, frozenset[int]], frozenset[int]]) -> Claims:
    return claims({c: change(c, channels) for c, channels in said.options.items()})


def _channel(said: Claims, tensor: str, position: int) -> int:
    (channel,) = said.options[tensor, 0, position]
    return channel


def test_unrelated_channels_joined_are_coarse(mobile) -> None:
    network, said = mobile
    a, b = _channel(said, "expand.weight", 0), _channel(said, "expand.weight", 1)
    joined = _changed(said, lambda c, channels: channels - {b} | {a} if b in channels else channels)
    found = compare(network, joined)
    assert found.right
    assert set(found.coarse) == {
        pair
        for pair in itertools.permutations(joined.footprints[a], 2)
        if (pair[0] in said.footprints[a]) != (pair[1] in said.footprints[a])
    }


def test_a_frozen_channel_is_found(mobile) -> None:
    network, said = mobile
    gone = _channel(said, "expand.weight", 3)
    found = compare(network, _changed(said, lambda c, channels: channels - {gone}))
    assert found.right
    assert set(found.frozen) == said.footprints[gone]


def test_a_coupled_pair_separated_is_missing(mobile) -> None:
    network, said = mobile
    a, new = _channel(said, "expand.weight", 0), 10**6
    apart = ("project.weight", 1, 0)
    found = compare(network, _changed(said, lambda c, channels: frozenset({new}) if c == apart else channels))
    rest = said.footprints[a] - {apart}
    assert set(found.missing) == {(apart, c) for c in rest} | {(c, apart) for c in rest}
    assert set(found.illegal) == {a, new}
    assert not found.right


def test_a_result_that_goes_is_wrong(mobile) -> None:
    network, said = mobile
    result = ("head.weight", 0, 1)
    found = compare(network, _changed(said, lambda c, channels: frozenset({10**6}) if c == result else channels))
    assert found.wrong == (result,)
    assert found.illegal == (10**6,)


@pytest.mark.slow
def test_an_option_left_out_is_lost() -> None:
    """Heads may go, places in all heads may not: a row of the queries has lost one of its two options."""
    torch.manual_seed(0)
    captured, coupling = prepared(*_drawn("tokens", tokens.Attention(2, 2, 3), head="mean"))
    network, said = network_of(captured), claims_of(coupling)
    row = ("chain.blocks.0.q.weight", 0, 0)
    assert len(said.options[row]) == 2
    place = min(said.options[row], key=lambda u: len(said.footprints[u]))
    found = compare(network, _changed(said, lambda c, channels: channels - {place}))
    assert found.right
    assert {c for c, _ in found.coarse} >= {c for c in said.footprints[place] if c[0] == row[0]}


# -- cuts -------------------------------------------------------------------------------------------------------------


def test_a_cut_leaves_something_of_every_line() -> None:
    demands = Demands()
    a, b = demands.new(2), demands.new(2)
    demands.either(a[:1], b)
    demands.equal(a[1:], b[1:])
    assert demands.cut(a[:1], []) == {a[0], b[0]}
    assert demands.cut(a[:1], b[:1]) is None  # b[1] would take a[1], and nothing is left of a
    assert not demands.largest(b[:1])[a[0]]
    assert demands.cut(a[1:], []) is None


def test_a_size_of_one_and_all_that_needs_it_stay() -> None:
    demands = Demands()
    (one,), (head, other) = demands.new(1), demands.new(2)
    demands.goes_only_with(head, [one])
    assert demands.stays(head)
    assert not demands.stays(other)


def test_a_reshape_takes_rows_or_columns() -> None:
    made = Fn(lambda m, x: m.b(m.a(x).unflatten(1, (2, 3)).sin().flatten(1)), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    captured, _ = prepared(made, (torch.randn(2, 5, dtype=torch.float64),))
    network = network_of(captured)

    def allowed(*gone: int) -> bool:
        return legal(network, [(*at, i) for at in (("a.weight", 0), ("a.bias", 0), ("b.weight", 1)) for i in gone])

    legal_ones = {gone for n in range(1, 6) for gone in itertools.combinations(range(6), n) if allowed(*gone)}
    rows, columns = [{0, 1, 2}, {3, 4, 5}], [{0, 3}, {1, 4}, {2, 5}]
    parts = [set[int]().union(*some) for n in (1, 2) for some in itertools.combinations(columns, n)]
    assert legal_ones == {tuple(sorted(p)) for p in [*rows, *parts, *(r | p for r in rows for p in parts)]}


def test_half_a_cut_does_not_run() -> None:
    made = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    captured, _ = prepared(made, (torch.randn(2, 5, dtype=torch.float64),))
    network = network_of(captured)
    at = network.coordinates()
    cut = network.demands.cut([at["0.weight", 0, 1]], [])
    assert cut == {at["0.weight", 0, 1], at["0.bias", 0, 1], at["2.weight", 1, 1]}
    assert carry_out(network, cut) == 3
    for variable in cut:
        with pytest.raises(BrokenError, match=r"linear|relu"):
            carry_out(network, cut - {variable})


def test_an_op_in_no_table_is_refused() -> None:
    made = Fn(lambda m, x: m.b(torch.linalg.matrix_exp(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    captured, _ = prepared(made, (torch.randn(2, 4, 4, dtype=torch.float64),))
    with pytest.raises(UnknownOpError, match="matrix_exp"):
        network_of(captured)
