"""An explanation: what a model would offer, without pruning it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.models.small import Aside


def test_explain_finds_the_parts_of_a_model_that_cannot_be_captured_whole() -> None:
    class Rim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.part(x)
            return out if float(out.detach().sum().item()) > 0 else -out

    from fxprune.compiler.explanation import explain

    found = explain(Rim().eval(), [torch.randn(3, 4)])
    assert found.islands == ("part",) and [g.units for g in found.groups] == [8]
    assert "islands: part" in str(found)


def test_an_explanation_as_data_has_the_details() -> None:
    found = fxprune.explain(Aside(), [torch.randn(8, 3, 6, 6)], layers="conv")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["details"] == found.details == str(found) and "conv.weight" in found.details
    assert [group["name"] for group in data["groups"]] == ["conv"]


def test_what_patterns_take_is_said_beside_the_details() -> None:
    found = str(fxprune.explain(Aside(), [torch.randn(8, 3, 6, 6)], layers="conv", ignore="conv", ratios={"*": 0.5}))
    assert found.startswith("conv.weight axis 0") and "what each pattern takes" in found
    assert "conv.weight axis 2 (3)\n  no units: all of it stays" in found


def test_the_model_itself_has_a_name_among_layers() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(8, 4))
            self.b = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(nn.functional.linear(x, self.a).relu())
            return out

    data = [torch.randn(3, 4)]
    assert "the model itself  b" in str(fxprune.explain(Bare(), data))
    assert "made by the model itself; read by b" in str(fxprune.explain(Bare(), data, layers="b"))
    pruned = fxprune.compile(Bare().eval(), data, 0.7, progress=False)
    assert "the model itself, b" in str(fxprune.report(pruned))


def test_it_is_shown_in_a_few_lines() -> None:
    found = fxprune.explain(Aside(), [torch.randn(8, 3, 6, 6)])
    assert repr(found).startswith("fxprune.Explanation: 1 groups") and "conv: " in repr(found)
    assert len(repr(found).splitlines()) <= 25 and "<td>conv</td>" in found._repr_html_()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "resnet18"}, TypeError, "model: expected a torch.nn.Module"),
        ({"ignore": None}, TypeError, "ignore: expected a str or several"),
        ({"ignore": [3]}, ValueError, "ignore takes patterns of layer names, got 3"),
        ({"units": None}, TypeError, "units: expected a str or several"),
        ({"units": "blocks"}, ValueError, "units must be among .*blocks"),
        ({"layers": 3}, TypeError, "layers: expected a str or several"),
        ({"layers": [3]}, ValueError, "layers takes names or patterns of layers, got 3"),
        ({"layers": "nothing"}, fxprune.FxpruneError, "nothing: expected a layer or tensor"),
        ({"ratios": {0: 0.5}}, fxprune.BudgetError, "expected patterns of layer names as keys, got 0"),
        ({"ratios": 1.5}, fxprune.BudgetError, r"a ratio is the share removed and lies in \[0, 1\]"),
        ({"forward_args": 3}, TypeError, "forward_args: expected a function"),
    ],
)
def test_bad_arguments_are_told(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": Aside(), "calib_data": [torch.randn(8, 3, 6, 6)], **changes}
    with pytest.raises(error, match=message):
        fxprune.explain(**arguments)


def test_one_ratio_for_all_and_one_kind_of_units() -> None:
    found = fxprune.explain(Aside(), [torch.randn(8, 3, 6, 6)], ratios=0.5, units="block")
    assert found.patterns == (("ratios", "default", tuple(group.name for group in found.groups)),)


class _Gated(nn.Module):
    """Two halves of one layer, and one whose size a number of the forward says."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out, self.last = nn.Linear(5, 16), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.both(x).chunk(2, -1)
        y: torch.Tensor = self.out(a.sigmoid() * b)
        return self.last(y.relu() * (2.0 if y.shape[-1] == 6 else 3.0))


def test_it_says_what_the_class_ties_and_holds() -> None:
    data = [torch.randn(4, 5)]
    plain, found = fxprune.explain(_Gated(), data), fxprune.explain(_Gated(), data, form="module")
    assert (plain.tied, plain.held) == ((), ()) and found.groups == plain.groups
    assert dict(found.held) == {"out": 6}
    assert "in the original's class: what stays" in str(found)
    assert found.to_dict()["held"] == [{"group": "out", "units": 6}]
    assert not fxprune.explain(_Gated(), data, form="module", layers="both").held
    with pytest.raises(ValueError, match="form must be among"):
        fxprune.explain(_Gated(), data, form="modul")


def test_a_coupling_is_explained_for_its_class_as_well() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right = nn.Linear(5, 16), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.both(x).relu().chunk(2, -1)
            return self.left(a) + self.right(b)

    coupling = fxprune.couple(fxprune.capture(Halves().eval(), (torch.randn(4, 5),)))
    found = fxprune.explain(coupling, form="module")
    assert [units for _, units in found.tied] == [2] and not found.held
    assert "what goes at once" in str(found)
