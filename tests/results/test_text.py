"""The report as it is printed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fxprune.results.group_rows import FEW
from fxprune.results.record import FrozenRow, GroupRow, Report
from tests.support.reports import make_report


def test_the_printed_form() -> None:
    assert (
        str(make_report())
        == """\
fxprune: variance
                    before      after    kept    smaller
---------------  ---------  ---------  ------  ---------
parameters       1,234,567    600,000  48.6 %     2.06 x
MACs per sample  2,000,000  1,000,000  50.0 %     2.00 x
bytes            4,938,268  2,400,000  48.6 %     2.06 x

groups: 2, of which 1 lose units; the largest share lost comes first
group           kind     layers           before    after     kept
--------------  -------  -------------  --------  -------  -------
conv1           channel  conv1, bn1 +1        64       48   75.0 %
attention:head  head     attention            12       12  100.0 %

frozen, and why
reason        coordinates    axes  such as
----------  -------------  ------  -----------------------
the result             20       2  fc.weight[0], fc.bias[0]
an input                3       1  conv1.weight[1]

collapsed: layer4.1
dropped: 5,000 parameters of the original that its forward never reaches
skipped: conv1.weight: no bias takes its shift
note: a note
seconds: capture 1.50, couple 0.25; 1.75 in all

verified: the rewriting is exact: equal to the masked twin, relative error 3.2e-06 (tolerance 1e-04, float32)""".replace(
            "-----------------------\n", "------------------------\n"
        )
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"verified": None}, "not verified: the comparison could not tell; see the notes"),
        ({"verified": None, "max_error": None, "dtype": ""}, "not verified: not compared"),
        ({"verified": False}, "WRONG: differs from the masked twin, relative error 3.2e-06"),
        (
            {"max_error": None, "tolerance": None},
            "verified: the rewriting is exact: equal to the masked twin, relative error unknown",
        ),
    ],
)
def test_the_certificate_line(changes: dict[str, Any], line: str) -> None:
    assert str(make_report(**changes)).splitlines()[-1].startswith(line)


def language_model(layers: int, *, whole: int = 0) -> tuple[GroupRow, ...]:
    """Returns the groups of a decoder, two a layer, of which so many layers in front lose nothing."""
    return tuple(
        row
        for i in range(layers)
        for row in (
            GroupRow(f"model.layers.{i}.mlp.gate_proj", "channel", ("a",), 64, 64 if i < whole else 32 - i),
            GroupRow(f"model.layers.{i}.self_attn:kv_group", "kv_group", ("b",), 4, 4 if i < whole else 3),
        )
    )


def table_of(text: str) -> list[list[str]]:
    """Returns the cells of the table of groups."""
    lines = text.split("groups: ")[1].split("\n\n")[0].splitlines()[3:]
    return [re.split("  +", line.strip()) for line in lines]


def test_layers_that_repeat_are_one_row_and_the_largest_share_lost_comes_first() -> None:
    found = str(make_report(groups=language_model(12, whole=2)))
    assert "groups: 24, of which 20 lose units; the largest share lost comes first" in found
    rows = table_of(str(make_report(groups=language_model(24, whole=2))))
    assert rows[:2] == [
        ["model.layers.*.mlp.gate_proj", "channel", "22", "64", "9 .. 30", "14.1 .. 46.9 %"],
        ["model.layers.*.self_attn:kv_group", "kv_group", "22", "4", "3", "75.0 %"],
    ]
    whole = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("mlp.gate_proj", "self_attn:kv_group")]
    assert rows[2:] == [[f"4 groups keep all: {', '.join(whole)}"]]


def test_of_few_groups_nothing_is_folded() -> None:
    groups = language_model(8, whole=1)
    assert len(groups) == FEW
    rows = table_of(str(make_report(groups=groups)))
    assert [row[0] for row in rows][:3] == [f"model.layers.{i}.mlp.gate_proj" for i in (7, 6, 5)]
    assert len(rows) == FEW and [row[-1] for row in rows][-2:] == ["100.0 %", "100.0 %"]


def test_what_loses_nothing_is_one_line() -> None:
    groups = tuple(GroupRow(f"g{i}.conv", "channel", ("a",), 4, 4) for i in range(40))
    found = str(make_report(groups=groups))
    assert "groups: 40, of which 0 lose units\n40 groups keep all: g*.conv (40)\n" in found


@pytest.mark.parametrize("count", [24, 100, 400])
@pytest.mark.parametrize("name", ["layers.{0}.mlp", "g{0}", "{1}{1}.{0}", "stage{2}.block{3}.conv", "{4}"])
def test_a_report_of_many_groups_fits_on_a_screen(count: int, name: str) -> None:
    words = [chr(97 + i % 26) * (i // 26 + 1) for i in range(count)]
    names = [name.format(i, "ab"[i % 2], i // 9, i % 9, words[i]) for i in range(count)]
    groups = tuple(GroupRow(n, "channel", (n,), 64, 1 + i % 64) for i, n in enumerate(names))
    frozen = tuple(FrozenRow(n, 0, 4, f"{n} is read by {words[i]}") for i, n in enumerate(names))
    lines = (f"{n}: no bias takes its shift" for n in names)
    notes = tuple(f"layers.{i}.x holds {i} rows" for i in range(count))
    found = make_report(groups=groups, frozen=frozen, skipped=tuple(lines), notes=notes)
    assert len(str(found).splitlines()) <= 62
    assert len(found.to_dict()["groups"]) == len(found.to_dict()["skipped"]) == count
    shares = [
        float(row[-1].removesuffix(" %").split(" .. ")[0]) for row in table_of(str(found)) if row[-1].endswith("%")
    ]
    assert shares == sorted(shares)


def test_lines_that_differ_in_numbers_alone_are_one() -> None:
    skipped = [f"h.{i}.mlp.fc: no bias takes its shift" for i in range(12)]
    found = str(make_report(skipped=(*skipped, "head: too few samples"), notes=("one", "two")))
    assert (
        "skipped: h.*.mlp.fc: no bias takes its shift (12 of these)\nskipped: head: too few samples\nnote: one\n"
        in found
    )
    few = str(make_report(skipped=tuple(skipped[:3])))
    assert all(f"skipped: {line}\n" in few for line in skipped[:3])


def test_an_empty_report_prints() -> None:
    text = str(Report(params=(0, 0), macs=(0, 0), bytes=(0, 0), method="random"))
    assert "groups" not in text and "frozen" not in text and text.count("-\n") >= 1


def test_the_recovery_stands_beside_the_method() -> None:
    found = make_report(recover="sequential")
    assert str(found).startswith("fxprune: variance, recovered by sequential\n")
    assert (
        "variance, recovered by sequential" in repr(found)
        and "variance, recovered by sequential" in found._repr_html_()
    )
