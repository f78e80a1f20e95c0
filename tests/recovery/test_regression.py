"""Fewer samples than columns: the regression by the samples is that by the columns' squares, and no square is formed."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.recovery.consumers import find_consumers
from fxprune.recovery.measuring import bytes_of, measure
from fxprune.recovery.moments import Moments
from fxprune.recovery.regression import Dual, gain_of, ridge_solve
from fxprune.recovery.ridges import RIDGES, best_ridge


def drawn(samples: int, columns: int, outputs: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, t = (torch.randn(samples, 2, n, generator=draw, dtype=torch.float64) + 3 for n in (columns, outputs))
    return x, t


def both(x: Tensor, t: Tensor) -> tuple[Moments, Moments]:
    """Returns moments of squares, and of the samples as they are."""
    squares, kept = Moments(), Moments(x.shape[-1])
    for part in (slice(0, 4), slice(4, None)):
        squares.add(x[part], t[part])
        kept.add(x[part], t[part])
    assert squares.rows is None and kept.rows is not None
    return squares, kept


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_few_samples_give_what_their_squares_give(raw: bool, ridge: float) -> None:
    squares, kept = both(*drawn(9, 20, 3))
    stays = torch.arange(20) % 3 > 0
    for each in (squares, kept) if raw else ():
        each.raw()
    for g in range(2):
        assert torch.allclose(gain_of(squares, g, stays, ridge), gain_of(kept, g, stays, ridge), rtol=1e-7, atol=1e-10)
    assert kept.rows is not None
    assert torch.allclose(kept.xx, squares.xx) and torch.allclose(kept.tx, squares.tx)  # formed when asked for
    assert kept.rows is None


def test_samples_are_squared_once_there_are_more_than_columns() -> None:
    x, t = drawn(30, 20, 3)
    kept, other, squares = Moments(20), Moments(20), Moments()
    kept.add(x[:10], t[:10])
    other.add(x[10:18], t[10:18])
    kept.merge(other)
    assert kept.rows is not None and kept.count == 18
    kept.add(x[18:], t[18:])
    squares.add(x, t)
    assert kept.rows is None and kept.count == 30
    assert torch.allclose(kept.xx, squares.xx) and torch.allclose(kept.tx, squares.tx)
    assert torch.allclose(kept.mean_x, squares.mean_x) and torch.allclose(kept.mean_t, squares.mean_t)


def test_what_removed_columns_gave_is_the_same_target() -> None:
    x, t = drawn(9, 20, 3)
    weight, kept = torch.randn(2, 4, 20, dtype=torch.float64), (torch.arange(40) % 3 > 0).reshape(2, 20)
    squares, samples = both(x, t[..., :0])
    for each in (squares, samples):
        each.aim(weight, kept, covariance=True)
    for g in range(2):
        gains = [gain_of(each, g, kept[g], 1e-2) for each in (squares, samples)]
        assert torch.allclose(*gains, rtol=1e-7, atol=1e-10)
    assert torch.allclose(squares.mean_t, samples.mean_t)


def test_the_ridge_is_chosen_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5)).eval()
    coupling = fxprune.couple(fxprune.capture(model, (torch.randn(2, 20),)))
    (consumer,), _ = find_consumers(fxprune.Selection(coupling, coupling.removed_mask([0, 3])))
    x = torch.randn(16, 1, 20).double()
    t = x[..., :5] + torch.randn(16, 1, 5)
    squares, kept = both(x[:12], t[:12])
    squares.held, kept.held = Moments(), Moments(20)
    for each in (squares.held, kept.held):
        each.add(x[12:], t[12:])
    chosen = [best_ridge(consumer, [(slice(None), each)], 0.1, RIDGES) for each in (squares, kept)]
    assert chosen[0] == chosen[1] is not None and kept.rows is not None
    errors = []
    for each in map(deepcopy, (squares, kept)):
        each.whole()
        errors.append(gain_of(each, 0, torch.from_numpy(consumer.kept[0]), 0.1))
    assert torch.allclose(*errors, rtol=1e-7, atol=1e-10)


def test_nothing_varies_and_nothing_is_finite() -> None:
    still = Dual(torch.zeros(3, 8).double(), torch.ones(3, 2).double())
    assert not still.gain(1e-2).any() and still.gain(1e-2).shape == (2, 8)
    with pytest.raises(fxprune.CalibrationError, match="not finite"):
        Dual(torch.full((3, 8), float("inf")).double(), torch.ones(3, 2).double()).gain(1e-2)
    assert ridge_solve(torch.eye(2), torch.zeros(0, 2), 1e-2).shape == (0, 2)


def wide(limit: int, counted: bool) -> int:
    """Returns in how many blocks a layer of 4,096 columns is measured on eight samples."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 4096), nn.ReLU(), nn.Linear(4096, 3)).eval(), torch.randn(8, 4)
    coupling = fxprune.couple(fxprune.capture(model, (data,)))
    (consumer,), _ = find_consumers(fxprune.Selection(coupling, coupling.removed_mask(range(2000))))
    counts = {consumer: 8} if counted else None
    dense = fxprune.Selection.nothing(coupling)
    (blocks,) = measure(dense, [consumer], [(data,)], covariance=True, memory_limit=limit, samples=counts)
    assert bytes_of(consumer, True, limit, 8 if counted else None) <= limit * len(blocks)
    return len(blocks)


def test_a_wide_layer_of_few_samples_is_not_cut_into_blocks() -> None:
    assert wide(1 << 20, counted=False) > 1
    assert wide(1 << 20, counted=True) == 1


def test_who_asks_for_squares_gets_blocks_that_fit() -> None:
    """A recovery of one's own reads ``xx``: of a wide layer it is never formed whole beyond the limit."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 3)).eval(), torch.randn(8, 4)
    coupling = fxprune.couple(fxprune.capture(model, (data,)))
    selection = fxprune.Selection(coupling, coupling.removed_mask(range(200)))
    context = fxprune.RecoveryContext(selection, [(data,)], memory_limit=1 << 20)
    ((_, blocks),) = context.moments()
    assert len(blocks) > 1 and all(block.rows is None and 16 * block.xx.numel() <= 1 << 20 for _, block in blocks)
    ((_, whole),) = context.moments(rows=True)
    assert len(whole) == 1 and whole[0][1].rows is not None


@pytest.mark.parametrize("hold_out", [False, True])
def test_later_batches_may_be_larger_than_the_first(hold_out: bool) -> None:
    """Samples are counted by the first batch: where there are more, squares of blocks that fit are formed after all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 3)).eval()
    data = [(torch.randn(n, 4),) for n in (2, 300, 300, 300)]
    coupling = fxprune.couple(fxprune.capture(model, data[0]))
    selection = fxprune.Selection(coupling, coupling.removed_mask(range(200)))
    context = fxprune.RecoveryContext(selection, data, memory_limit=1 << 21)
    ((_, blocks),) = context.moments(rows=True, hold_out=hold_out)
    for _, block in blocks:
        block.whole()
    assert len(blocks) > 1 and all(block.rows is None and block.count > 512 for _, block in blocks)
    assert all(16 * block.xx.numel() <= 1 << 21 for _, block in blocks)


def test_squares_may_be_changed_by_who_asks_for_them() -> None:
    _, kept = both(*drawn(9, 20, 3))
    before = kept.xx.clone()
    kept.xx += torch.eye(20)
    kept.tx = torch.zeros_like(kept.tx)
    assert torch.equal(kept.xx, before + torch.eye(20)) and not kept.tx.any()


def test_a_ridge_too_small_to_count_is_none() -> None:
    x, t = drawn(9, 20, 3)
    one = Dual(x[:, 0] - x[:, 0].mean(0), t[:, 0] - t[:, 0].mean(0))
    assert torch.allclose(one.gain(1e-300), (torch.linalg.pinv(one.x) @ one.t).T, atol=1e-8)


def test_what_is_merged_stays_as_it_is() -> None:
    x, t = drawn(30, 20, 3)
    first, other, whole = Moments(), Moments(), Moments()
    other.add(x[:15], t[:15])
    before = other.xx.clone(), other.tx.clone(), other.mean_x.clone()
    first.merge(other)
    first.add(x[15:], t[15:])
    whole.add(x, t)
    assert torch.allclose(first.xx, whole.xx) and torch.allclose(first.tx, whole.tx)
    assert all(torch.equal(a, b) for a, b in zip(before, (other.xx, other.tx, other.mean_x), strict=True))
