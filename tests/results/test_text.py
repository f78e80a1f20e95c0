"""The report as it is printed."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.results.record import GroupRow, Report
from fxprune.results.tables import ROWS
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

groups: 2, of which 1 lose units
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


def test_long_tables_lose_their_middle() -> None:
    rows = tuple(GroupRow(f"g{i}", "channel", ("a",), 4, 2) for i in range(100))
    lines = [line.split()[0] for line in str(make_report(groups=rows, frozen=(), seconds={})).splitlines() if line]
    names = [line for line in lines if line.startswith(("g", "...")) and not line.startswith("group")]
    half = ROWS // 2
    assert names == [f"g{i}" for i in range(half)] + ["..."] + [f"g{i}" for i in range(100 - half, 100)]
    assert f"... {100 - ROWS} more ..." in str(make_report(groups=rows))


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
