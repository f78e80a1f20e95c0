"""Patterns: a layer goes by many names, a pattern reaches a group through all its makers or through none."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import IgnoredPatternWarning
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.patterns import check_patterns, makers_of, names_of_layers, reaching
from fxprune.coupling.coupling import Coupling
from tests.support.pruning import random_scores


class Decoder(nn.Module):
    """Tied embeddings, and a residual stream that an MLP adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        out: Tensor = self.head(h + self.mlp(h))
        return out


@pytest.fixture(scope="module")
def decoder() -> Coupling:
    return fxprune.couple(fxprune.capture(Decoder().eval(), (torch.randint(0, 11, (2, 5)),)))


@pytest.fixture(scope="module")
def mobile() -> Coupling:
    model = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25).eval()
    return fxprune.couple(fxprune.capture(model, (torch.randn(2, 3, 32, 32),)))


def shares(coupling: Coupling, ratios: dict[str, float]) -> dict[str, float]:
    """Returns which share of each group goes."""
    gone = fxprune.solve(coupling, random_scores(coupling), ratios=ratios).units
    return {g.name: len(set(g.units.tolist()) & set(gone.tolist())) / len(g.units) for g in coupling.groups}


def test_a_pattern_reaches_a_group_through_all_its_makers(decoder: Coupling) -> None:
    found = shares(decoder, {"mlp*": 0.5})
    assert found.pop("mlp.0") == 0.5 and set(found.values()) == {0.0}
    assert set(shares(decoder, {"*": 0.5}).values()) == {0.5}


@pytest.mark.parametrize("pattern", ["features.*.conv.0.0", "features.2", "features.2.*", "features"])
@pytest.mark.slow
def test_what_channels_only_pass_makes_no_group(mobile: Coupling, pattern: str) -> None:
    group = next(g for g in mobile.groups if g.name == "features.2.conv.0.0")
    assert makers_of(mobile, group) == {"features.2.conv.0.0"}  # not its norm, nor the depthwise convolution
    assert reaching(mobile, group, [pattern], names_of_layers(mobile)) == pattern


def test_the_first_pattern_counts_and_a_group_s_own_name_before_all(mobile: Coupling) -> None:
    found = shares(mobile, {"features.2": 0.25, "features": 0.5, "features.3.conv.0.0": 0.75})
    assert found["features.2.conv.0.0"] == pytest.approx(0.25, abs=0.03)
    assert found["features.3.conv.0.0"] == pytest.approx(0.75, abs=0.03)
    assert found["features.4.conv.0.0"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("pattern", ["embed", "head", "head.weight", "embed.weight", "hea?"])
def test_tied_embeddings_are_held_by_any_of_their_names(decoder: Coupling, pattern: str) -> None:
    names = {group.name for group in free_groups(decoder, Constraints(ignore=(pattern,)))}
    assert names == {"mlp.0"}


def test_a_container_holds_all_in_it(mobile: Coupling) -> None:
    held = free_groups(mobile, Constraints(ignore=("features.3", "features.4")))
    assert not {g.name for g in held} & {"features.3.conv.0.0", "features.4.conv.0.0"}
    assert {"features.2.conv.0.0", "features.5.conv.0.0"} <= {g.name for g in held}
    assert free_groups(mobile, Constraints(ignore=("features",))) == []


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ({"mpl": 0.5}, "'mpl' matches no group; did you mean mlp"),
        ({"embed": 0.5}, "'embed' reaches no group: 'mlp.2' is made by mlp.2 as well"),
        ({"*": 0.5, "mlp": 0.2}, "'mlp' reaches no group that is left: .* the first counts"),
    ],
)
def test_a_pattern_that_does_nothing_says_why(decoder: Coupling, ratios: dict[str, float], said: str) -> None:
    with pytest.warns(IgnoredPatternWarning, match=said):
        shares(decoder, ratios)


def test_an_ignore_pattern_that_matches_nothing_names_what_is_near(decoder: Coupling) -> None:
    with pytest.warns(IgnoredPatternWarning, match="ignore pattern 'embd' matches no layer; did you mean embed"):
        check_patterns(decoder, ["embd"], [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_patterns(decoder, ["head.weight"], ["mlp"])


def test_explain_shows_what_each_pattern_takes(decoder: Coupling) -> None:
    found = fxprune.explain(decoder, ignore="head", ratios={"mlp": 0.5, "embed": 0.1})
    stream = next(g.name for g in decoder.groups if g.name != "mlp.0")
    assert found.patterns == (("ignore", "head", (stream,)), ("ratios", "mlp", ("mlp.0",)), ("ratios", "embed", ()))
    left = fxprune.explain(decoder, ratios={"embed": 0.1, "default": 0.5}).patterns
    assert left == (("ratios", "embed", ()), ("ratios", "default", ("mlp.2", "mlp.0")))
    assert "what each pattern takes" in str(found)
    assert found.to_dict()["patterns"][1] == {"option": "ratios", "pattern": "mlp", "groups": ["mlp.0"]}


@pytest.mark.parametrize("layers", ["mlp", "mlp.0", "head", "embed.weight", "*.weight"])
def test_explain_takes_the_same_names(decoder: Coupling, layers: str) -> None:
    found = fxprune.explain(decoder, layers=layers, ignore="head")
    assert found.groups and found.details and "what each pattern takes" in str(found)


def test_a_name_with_brackets_is_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ModuleDict({"x[0]": nn.Linear(8, 8)})["x[0]"], nn.Linear(8, 2))
    model.add_module("y[1]", nn.Linear(2, 2))
    model.append(nn.Linear(2, 2))
    coupling = fxprune.couple(fxprune.capture(model.eval(), (torch.randn(3, 4),)))
    assert "y[1]" in {g.name for g in coupling.groups}
    assert "y[1]" not in {g.name for g in free_groups(coupling, Constraints(ignore=("y[1]",)))}


def test_a_norm_makes_no_group(mobile: Coupling) -> None:
    with pytest.warns(
        IgnoredPatternWarning, match=r"'features.0.1' reaches no group: what it matches makes no channels"
    ):
        check_patterns(mobile, [], ["features.0.1"])


def test_the_warning_points_at_the_line_that_called_fxprune(decoder: Coupling) -> None:
    ratios = {"nothing": 0.5, "*": 0.5}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fxprune.solve(decoder, random_scores(decoder), ratios=ratios)
        fxprune.compile(Decoder().eval(), [torch.randint(0, 11, (2, 5))], ratios=ratios, progress=False)
    told = [warning.filename for warning in found if warning.category is IgnoredPatternWarning]
    assert told == [__file__, __file__]
