"""Scorers: by name or of one's own, and where scores are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune._base.errors import ScorerError
from fxprune.scoring import register_scorer, score, scorer, scorer_of
from fxprune.scoring.magnitude import Magnitude
from fxprune.scoring.scorer import Context, wants_targets
from tests.models import small
from tests.support.compiling import compile_small, mlp
from tests.support.pruning import coupling_of


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "_SCORERS", scorer.registered())


@pytest.mark.parametrize("name", small.NETWORKS)
@pytest.mark.parametrize("method", ["l1", "l2", "magnitude", "variance", "random"])
def test_every_unit_of_every_group_gets_a_finite_score(name: str, method: str) -> None:
    coupling = coupling_of(name)
    found = score(coupling, [small.example(name)], method, seed=1)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())


def test_random_scores_follow_the_seed() -> None:
    coupling = coupling_of("residual")
    one, same, other = (score(coupling, [], "random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_scores_are_written_on_the_nodes_with_nan_where_frozen() -> None:
    coupling = coupling_of("residual")
    found = score(coupling, [], "l1")
    nodes = {str(n.target): n.meta.get("fxprune", {}) for n in coupling.values if n.op == "get_attr"}
    assert torch.isnan(nodes["stem.0.weight"][1]).all()  # the image's channels
    (group,) = [g for g in coupling.groups if g.name == "one.0"]
    assert torch.equal(nodes["one.0.weight"][0].sort().values, found["one.0"].sort().values)
    assert len(group.units) == 8


def test_an_object_of_ones_own_and_one_by_name() -> None:
    class Last:
        """Keeps the first units."""

        name, needs, per_cost, defaults = "last", (), False, {}

        def score(self, context: Context) -> dict[str, Tensor]:
            return {g.name: -torch.arange(len(g.units)).double() for g in context.coupling.groups}

    coupling = coupling_of("residual")
    assert score(coupling, [], Last())["one.0"].tolist() == [-float(i) for i in range(8)]
    register_scorer("test: last", Last)
    assert isinstance(scorer_of("test: last"), Last)
    with pytest.raises(ScorerError, match="registered already"):
        register_scorer("test: last", Last)


class Own(fxprune.Scorer):
    """One of one's own, whose parts are set when it is made."""

    def __init__(self, **parts: Any) -> None:
        self.name, self.needs, self.per_cost = "own", (), False
        vars(self).update(parts)

    def score(self, context: Context) -> dict[str, Tensor]:
        return {g.name: torch.arange(len(g.units)).double() for g in context.coupling.groups}


def test_parts_may_be_set_when_it_is_made() -> None:
    found = fxprune.report(compile_small(mlp(), method=Own(name="its own", defaults={"recover": None})))
    assert found.method == "its own" and Own().defaults == {}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("magic", "unknown method 'magic'; known methods: .*variance"),
        (Magnitude, r"method: expected a name or a scorer, got the class Magnitude: give Magnitude\(\)"),
        (None, "expected a name or a scorer with name, needs, per_cost, defaults, score; None lacks name, needs"),
        (object(), "lacks name, needs"),
        (3, "3 lacks name, needs"),
        *((Own(name=name), "name: expected a str, got") for name in (None, 5, ("a",), b"x")),
        *((Own(name=name), "name: expected text, got") for name in ("", "\ud800")),
        *((Own(defaults=value), "defaults: expected a mapping, got") for value in (5, [], None)),
        *((Own(needs=value), "needs: expected a collection, got") for value in (5, None)),
        (Own(score=5), r"method 'own': score: expected a function of \(context\), got 5"),
        (Own(score=lambda: {}), r"score: expected a function of \(context\), got one of \(\)"),
    ],
)
def test_what_is_no_scorer(bad: Any, message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        scorer_of(bad)


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        *((name, Own, "a scorer is registered under a name, got") for name in (None, 5, "", "auto", "\ud800")),
        *(("mine", bad, r"'mine': what makes it, .*: expected a function of \(\), got") for bad in (Own(), None, "l1")),
        ("mine", lambda size: Own(), "missing a required argument: 'size'"),
    ],
)
def test_what_cannot_make_a_scorer_is_not_registered(name: Any, factory: Any, message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        register_scorer(name, factory)


def test_what_a_factory_makes_is_checked() -> None:
    register_scorer("five", lambda: 5)  # type: ignore[arg-type, return-value]
    with pytest.raises(
        ScorerError, match=r"method 'five': what is registered gives none: expected one with .* 5 lacks"
    ):
        scorer_of("five")


def test_scores_of_the_wrong_form_are_a_scorer_error() -> None:
    class Short:
        name, needs, per_cost, defaults = "short", (), False, {}

        def score(self, context: Any) -> Any:
            return {group.name: torch.ones(3) for group in context.coupling.groups}

    with pytest.raises(fxprune.ScorerError, match="has 32 units, got scores of shape"):
        compile_small(mlp(), method=Short())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("needs", ("foo",), r"method 'odd': needs: expected some of weights, .*masked outputs, got 'foo'"),
        ("needs", "weights", r"method 'odd': needs: expected some of"),
        ("defaults", {"recovery": None}, r"method 'odd': defaults: expected some of recover, min_keep, got 'recovery'"),
    ],
)
def test_a_scorer_that_needs_or_prefers_what_there_is_not(part: str, value: Any, message: str) -> None:
    given = {"name": "odd", "needs": (), "per_cost": True, "defaults": {}, "score": lambda self, context: {}}
    odd = type("Odd", (), given | {part: value})
    with pytest.raises(ScorerError, match=message):
        scorer_of(odd())


def test_what_is_wanted_of_targets() -> None:
    found = {name: wants_targets(scorer_of(name)) for name in ("l2", "variance", "joint", "obs", "taylor", "ippro")}
    assert found == {
        "l2": "",
        "variance": "",
        "joint": "welcome",
        "obs": "welcome",
        "taylor": "needed",
        "ippro": "needed",
    }


def test_inputs_that_are_no_tuples_are_told() -> None:
    coupling = coupling_of("residual")
    (x,) = small.example("residual")
    with pytest.raises(
        fxprune.CalibrationError, match=r"a tuple of the graph's flat inputs, got a tensor .*: write \[\(x,\)\]"
    ):
        score(coupling, [x], "variance")
