"""Fake quantisation: elementwise, with a scale for all or one for each channel."""

from __future__ import annotations

import pytest

from tests.models.ops.case import Case
from tests.models.ops.rounding import CASES
from tests.support.marks import but_slow
from tests.support.pruning import check_case


@pytest.mark.parametrize("case", but_slow(CASES, CASES[::3]), ids=lambda c: c.name)
def test_rule(case: Case) -> None:
    check_case(case)
