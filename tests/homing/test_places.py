"""Integers where they stand in a model: tagged for a while, changed in a copy."""

from __future__ import annotations

from fxprune.homing.places import changed, tagged
from fxprune.homing.terms import Place, Tagged
from tests.models.homes import Attending, Shared


def test_integers_are_tagged_and_put_back() -> None:
    model = Attending()
    layer = model.layers[1]
    with tagged(model):
        assert isinstance(layer.heads, Tagged) and layer.heads == 4
        assert layer.heads.term == Place("layers.1", ("heads",), 4)
        assert model.norms[0].normalized_shape[0].term == Place("norms.0", ("normalized_shape", 0), 24)
        assert type(model.training) is bool
    assert type(layer.heads) is int and type(model.norms[0].normalized_shape[0]) is int


def test_who_reads_a_shared_object_is_known() -> None:
    model = Shared()
    with tagged(model):
        found = [gate.settings.hidden.term for gate in model.gates]
        assert [place.module for place in found] == ["gates.0", "gates.1"]
    assert model.gates[0].settings is model.gates[1].settings is model.settings


def test_an_object_stays_shared_where_all_agree_and_is_copied_where_not() -> None:
    model = Shared()
    first, second = (Place(f"gates.{i}", ("settings", "hidden"), 48) for i in range(2))
    before = model.settings
    changed(model, {first: 40, second: 40})
    assert model.gates[0].settings is model.gates[1].settings is model.settings and model.settings.hidden == 40
    assert before.hidden == 48, "the object may be that of the original"
    changed(model, {Place("gates.0", ("settings", "hidden"), 40): 30, Place("gates.1", ("settings", "hidden"), 40): 20})
    assert [gate.settings.hidden for gate in model.gates] == [30, 20] and model.settings.hidden == 40


def test_a_place_in_a_tuple() -> None:
    model = Attending()
    changed(model, {Place("norms.0", ("normalized_shape", 0), 24): 20})
    assert model.norms[0].normalized_shape == (20,) and model.norms[1].normalized_shape == (24,)
