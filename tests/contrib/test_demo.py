"""The demo: real digits, a network of its own, and the whole way in short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.contrib import demo


@pytest.mark.slow
def test_the_digits_are_real_and_split_by_seed() -> None:
    digits, again, other = (demo.load_digits(seed) for seed in (0, 0, 1))
    assert [len(part[1]) for part in (digits.train, digits.test)] == [1347, 450]
    assert digits.train[0].shape[1:] == (1, 8, 8) and digits.train[0].abs().max() == 1
    assert torch.equal(digits.test[0], again.test[0]) and not torch.equal(digits.test[1], other.test[1])
    assert torch.cat([digits.train[1], digits.test[1]]).unique().tolist() == list(range(10))


def test_the_demo_s_network_is_the_same_for_the_same_seed() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (demo.make_model(seed=7, width=4).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_the_demo_with_a_short_training(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = demo.run(seed=1, epochs=4, out=tmp_path / "digits", say=lines.append)
    before, after = outcome.report.params
    assert outcome.report.verified is True and after <= before / 4
    assert outcome.reloaded and sorted(outcome.latency_ms) == [1, 64]
    dense, _, tuned = outcome.accuracy
    assert dense > 95 and tuned > 93
    printed = "\n".join(lines)
    assert str(outcome.report) in printed and "pruned, fine-tuned" in printed and "outputs equal" in printed
    again = fxprune.load(tmp_path / "digits", demo.make_model())
    assert demo.accuracy(again, demo.load_digits(1).test) == tuned
