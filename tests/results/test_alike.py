"""Names that differ in numbers alone."""

from __future__ import annotations

from fxprune.results.alike import folded


def test_few_names_stay_as_they_are() -> None:
    assert folded(["a.0", "a.1"], 2) == [("a.0", [0]), ("a.1", [1])]
    assert folded([], 0) == []


def test_numbers_that_vary_become_stars() -> None:
    names = ["h.0.mlp.fc2", "head", "h.1.mlp.fc2", "h.0.mlp.fc1", "h.11.mlp.fc2", "h.1.mlp.fc1"]
    assert folded(names, 4) == [("h.*.mlp.fc2", [0, 2, 4]), ("head", [1]), ("h.*.mlp.fc1", [3, 5])]
    assert folded(["layers.7.a:head", "layers.7.b.3", "layers.7.b.4"], 2) == [
        ("layers.7.a:head", [0]),
        ("layers.7.b.*", [1, 2]),
    ]


def test_numbers_within_words_are_taken_together_where_that_is_needed() -> None:
    names = [f"layer{stage}.{block}.conv2" for stage in (1, 2) for block in range(3)]
    assert [name for name, _ in folded(names, 2)] == ["layer1.*.conv2", "layer2.*.conv2"]
    assert folded(names, 1) == [("layer*.*.conv2", [0, 1, 2, 3, 4, 5])]
