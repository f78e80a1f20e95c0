"""A model in its own class is saved, and comes back in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxprune
from tests.models.homes import Auxiliary


def test_what_is_loaded_is_of_the_class_that_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Auxiliary().eval(), torch.randn(8, 3, 9, 9)
    home = fxprune.compile(model, data, 0.6, method="l2", form="module", progress=False)
    with torch.no_grad():  # what only training reads is in the files as well
        home.beside[0].weight.add_(1.0)
    fxprune.save(home, tmp_path / "out")
    assert not (tmp_path / "out" / "graph.json").exists()
    with pytest.raises(fxprune.PlanError, match="own class"):
        fxprune.load(tmp_path / "out")
    again = fxprune.load(tmp_path / "out", Auxiliary())
    assert isinstance(again, Auxiliary) and fxprune.report(again) == fxprune.report(home)
    assert torch.equal(again(data), home(data))
    assert all(torch.equal(a, b) for a, b in zip(again.train()(data), home.train()(data), strict=True))


def test_a_form_that_is_none_is_refused() -> None:
    found = fxprune.report(
        fxprune.compile(Auxiliary().eval(), torch.randn(8, 3, 9, 9), 0.6, method="l2", progress=False)
    )
    with pytest.raises(fxprune.PlanError, match="form: expected one of graph, module"):
        fxprune.Report.from_dict(found.to_dict() | {"form": "class"})
