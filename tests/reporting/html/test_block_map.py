"""The map of what went where: lanes by kind and pattern, blocks front to back, colours by the share that is left."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fxprune.reporting.html.block_map import LEVELS, Lane, lanes
from fxprune.reporting.html.rows import group_views
from fxprune.results.record import GroupRow
from tests.support.reports import large_report


def lanes_of(*rows: GroupRow) -> list[Lane]:
    return lanes(group_views(rows, None))


def channels(names: Sequence[str]) -> list[Lane]:
    return lanes_of(*(GroupRow(name, "channel", (name,), 8, 4) for name in names))


def test_every_group_is_a_block_in_the_lane_of_its_kind_front_to_back() -> None:
    groups = large_report(48).groups
    found = lanes_of(*groups)
    assert [(lane.kind, lane.name) for lane in found] == [
        ("Channels", "model.layers.*.mlp.gate_proj:channel"),
        ("Key and value heads", "model.layers.*.self_attn.k_proj:kv_group"),
    ]
    for lane, first in zip(found, (0, 1), strict=True):
        assert [block.target for block in lane.blocks] == [f"g{i}" for i in range(first, 48, 2)]
    assert found[1].text == "24 groups, 32 → 24 .. 32 units, 88.7 % kept in all"
    assert found[1].blocks[3].label == "model.layers.3.self_attn.k_proj:kv_group: 32 → 29 (91 %)"


def test_few_groups_are_one_lane_without_a_name() -> None:
    (lane,) = channels([f"layer{i}.conv" for i in range(12)])
    assert lane.name == "" and len(lane.blocks) == 12


def test_names_without_a_pattern_stand_together() -> None:
    words = [chr(97 + i) * 3 for i in range(20)]
    (lane,) = channels(words)
    assert lane.name == "" and len(lane.blocks) == 20
    found = channels([*words[:3], *(f"blocks.{i}.conv" for i in range(10)), words[4]])
    assert [(lane.name, len(lane.blocks)) for lane in found] == [("blocks.*.conv", 10), ("others", 4)]


@pytest.mark.parametrize(
    ("before", "after", "kept", "level"),
    [
        (8, 8, 100, 0),
        (0, 0, 100, 0),
        (1000, 999, 99, 1),
        (10, 8, 80, 1),
        (10, 7, 70, 2),
        (10, 5, 50, 3),
        (10, 2, 20, 4),
        (1000, 1, 1, 5),
        (10, 0, 0, 5),
    ],
)
def test_a_block_says_all_only_of_all_and_none_only_of_none(before: int, after: int, kept: int, level: int) -> None:
    ((block,),) = (lane.blocks for lane in lanes_of(GroupRow("a", "head", ("a",), before, after)))
    assert (block.kept, block.level) == (kept, level) and level < len(LEVELS)
