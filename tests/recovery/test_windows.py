"""Squares of a convolution's windows without unfolding them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxprune
from fxprune.capturing.captured import capture
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.recovery.consumers import find_consumers
from fxprune.recovery.windows import Windows


def unfolded(x, kernel, padding, groups):
    """Returns the windows as ``[groups, windows, columns]``."""
    x = functional.pad(x, [p for size in reversed(padding) for p in (size, size)])
    for dim, size in enumerate(kernel):
        x = x.unfold(2 + dim, size, 1)
    n = len(kernel)
    x = x.movedim(1, n + 1).flatten(0, n)  # [windows, c, *kernel]
    return x.reshape(len(x), groups, -1).transpose(0, 1)


@pytest.mark.parametrize(
    ("kernel", "padding", "groups", "shape"),
    [
        ((3, 3), (1, 1), 1, (4, 6, 9, 7)),
        ((3, 3), (0, 0), 2, (4, 6, 9, 7)),
        ((3, 3), (2, 2), 3, (2, 6, 4, 4)),
        ((1, 5), (0, 2), 1, (3, 4, 6, 8)),
        ((3, 2), (1, 0), 1, (3, 4, 5, 4)),
        ((5, 5), (2, 2), 1, (2, 3, 3, 3)),  # windows larger than what they move over
        ((3, 3), (1, 1), 1, (2, 6, 1, 1)),
        ((3, 3), (1, 1), 1, (1, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("level", [0.0, 5.0])
def test_squares_are_those_of_unfolded_windows(kernel, padding, groups, shape, level):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + level
    count, mean, squares = Windows(kernel, padding, groups).squares(x)
    columns = unfolded(x, kernel, padding, groups)
    centred = columns - columns.mean(dim=1, keepdim=True)
    assert count == columns.shape[1]
    torch.testing.assert_close(mean, columns.mean(dim=1))
    torch.testing.assert_close(squares, centred.mT @ centred)


def test_one_dimension():
    x = torch.randn(3, 4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, mean, squares = Windows((1, 3), (0, 1), 2).squares(x)
    columns = unfolded(x, (3,), (1,), 2)
    centred = columns - columns.mean(dim=1, keepdim=True)
    torch.testing.assert_close(mean, columns.mean(dim=1))
    torch.testing.assert_close(squares, centred.mT @ centred)


@pytest.mark.parametrize(
    ("kernel", "padding", "groups"), [((3, 3), (1, 1), 1), ((3, 2), (0, 1), 2), ((1, 3), (0, 0), 1)]
)
def test_products_with_targets(kernel, padding, groups):
    make = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(4, 6, 7, 5, dtype=torch.float64, generator=make)
    columns = unfolded(x, kernel, padding, groups)
    high, wide = (n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], padding, kernel, strict=True))
    t = 2 + torch.randn(4, 8, high, wide, dtype=torch.float64, generator=make)
    mean, found = Windows(kernel, padding, groups).crossed(x, t)
    rows = t.movedim(1, -1).reshape(-1, groups, 8 // groups).transpose(0, 1)
    centred = (part - part.mean(dim=1, keepdim=True) for part in (rows, columns))
    torch.testing.assert_close(mean, rows.mean(dim=1))
    torch.testing.assert_close(found, next(centred).mT @ next(centred))


def test_a_level_far_above_the_spread_costs_no_digits():
    x = 1e3 + torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    _, _, squares = Windows((3, 3), (0, 0), 1).squares(x)
    columns = unfolded(x.double(), (3, 3), (0, 0), 1)
    centred = columns - columns.mean(dim=1, keepdim=True)
    wanted = centred.mT @ centred
    assert (squares - wanted).abs().max() < 1e-3 * wanted.abs().max()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(8, 6, 3, padding="same", groups=2),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.Conv2d(8, 6, 3, padding=2, dilation=2),
        nn.Conv1d(8, 6, 5),
    ],
    ids=str,
)
@pytest.mark.parametrize(("recover", "batches"), [("covariance", 1), ("covariance", 5), ("sequential", 5)])
def test_recovery_is_the_same_as_with_windows_unfolded(layer, recover, batches, monkeypatch):
    """A few batches of which images, or whole batches, are held out; convolutions that move by more than one are unfolded."""
    dims, kind = layer.weight.dim() - 2, type(layer)
    torch.manual_seed(0)
    net = nn.Sequential(kind(3, 8, 3, padding=1), nn.ReLU(), layer).double()
    data = [torch.randn(8, 3, *(9,) * dims, dtype=torch.float64) for _ in range(batches)]
    every = {"progress": False, "recover": recover, "ratios": {"0": 0.5}, "round_to": 1, "holdout": 0.0}
    found = []
    for pays in (True, False):
        # all or nothing: that the choice is by cost is not what is asked here
        monkeypatch.setattr(Windows, "pay", lambda self, shape, samples, pays=pays: pays)
        found.append(fxprune.compile(net, data, **every))
    for one, other in zip(*(each.parameters() for each in found), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=1e-2)  # each has a ridge, judged by other samples
    spread = found[1](data[0]).std()
    assert (found[0](data[0]) - found[1](data[0])).abs().max() < 0.05 * spread


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 3, stride=2),
        nn.Conv2d(8, 6, 3, dilation=2),
        nn.Conv2d(8, 6, (2, 4), padding="same"),  # more zeros behind than before
        nn.Conv3d(8, 6, 2),
        nn.Linear(8, 6),
    ],
    ids=str,
)
def test_what_has_no_such_windows_says_so(layer):
    shape = (2, 8, *(5,) * (layer.weight.dim() - 2))
    coupling = couple(capture(layer.eval(), (torch.randn(shape),)))
    (consumer,), _ = find_consumers(Selection.nothing(coupling), every=True)
    assert consumer.windows is None


def test_of_few_images_places_are_held_out(monkeypatch):
    """No image can be: the ridge is judged by a part of their windows, which are unfolded."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
    monkeypatch.setattr(Windows, "pay", lambda *_: True)
    monkeypatch.setattr(Windows, "squares", lambda *_: pytest.fail("an image was squared as a whole"))
    data = [torch.randn(2, 3, 13, 13)]
    assert fxprune.compile(net, data, ratios={"0": 0.5}, progress=False, round_to=1, holdout=0.0).certificate.verified


def test_what_pays_is_told_by_cost():
    assert Windows((3, 3), (1, 1), 1).pay((8, 64, 56, 56), 8 * 56 * 56)
    assert not Windows((3, 3), (1, 1), 1).pay((8, 512, 7, 7), 8 * 7 * 7)  # more columns than numbers
    assert not Windows((3, 3), (1, 1), 1).pay((128, 16, 32, 32), 1000)  # a small part is drawn
    assert not Windows((1, 1), (0, 0), 1).pay((8, 64, 56, 56), 8 * 56 * 56)
    assert not Windows((7, 7), (0, 0), 1).pay((8, 64, 5, 5), 1000)
