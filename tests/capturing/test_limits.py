"""A call of a size that the graph does not stand for is refused in words; a size that it stands for gives the original's numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capturing.captured import capture
from fxprune.capturing.limits import Limits, met, text_of, value_of
from tests.support.capturing import assert_equal, run
from tests.support.emitting import emit_of


class Of(nn.Module):
    """A model of one input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def agrees_or_refuses(model: nn.Module, captured: Any, shape: Sequence[int]) -> bool:
    """Returns whether the size is taken; what is taken is right."""
    x = torch.randn(*shape, dtype=torch.float64)
    try:
        got = run(captured, x)
    except fxprune.ShapeError:
        return False
    assert_equal(model(x), got)
    return True


def looped(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        total = total * 0.5 + x[:, t]
    return total


def at_least_four(x: Tensor) -> Tensor:
    return x.cumsum(1) if x.shape[1] >= 4 else x


def only_more_than_one(x: Tensor) -> Tensor:
    return x - x.mean(0) if x.shape[0] > 1 else x


def causal(x: Tensor) -> Tensor:
    """Of a single position it need not be, and is said not to be."""
    h = x.unflatten(-1, (2, 3)).transpose(1, 2)
    return (
        nn.functional.scaled_dot_product_attention(h, h, h, is_causal=bool(x.shape[1] > 1)).transpose(1, 2).flatten(2)
    )


def through_strides(x: Tensor) -> Tensor:
    length, width = x.shape[1], x.shape[2]
    for stride in (2, 3, 2, 3, 2, 3):
        length, width = (length + 7) // stride + 1, (width + 7) // stride + 1
    return x * int(length * width * 0.5)


TABLE = torch.randn(16, 6, dtype=torch.float64)

#: what a model does with its input [2, 8, 6] -> sizes that must be taken, and sizes that need not
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "causal attention": (causal, [(1, 8, 6), (2, 1, 6), (1, 1, 6), (3, 5, 6)], []),
    "mean by hand": (lambda x: x.sum(1) / x.shape[1], [(1, 8, 6), (5, 8, 6)], [(2, 4, 6), (2, 1, 6)]),
    "positions": (lambda x: x + TABLE[: x.shape[1]], [(1, 8, 6)], [(2, 1, 6), (2, 16, 6), (2, 17, 6)]),
    "loop": (looped, [(3, 8, 6)], [(2, 7, 6), (2, 9, 6)]),
    "a condition on the length": (at_least_four, [(1, 8, 6)], [(2, 3, 6), (2, 5, 6)]),
    "a condition on the batch": (only_more_than_one, [(3, 8, 6)], [(1, 8, 6)]),
    "halves": (lambda x: x[: x.size(0) // 2] + x[x.size(0) // 2 :], [(4, 8, 6)], [(3, 8, 6), (1, 8, 6)]),
    "squeeze": (lambda x: (x.mean(1, keepdim=True) * 2).squeeze().sum(-1), [(3, 8, 6)], [(1, 8, 6)]),
    "groups of four": (
        lambda x: x.view(x.shape[0], x.shape[1] // 4, 4, 6).sum(2),
        [(3, 8, 6)],
        [(2, 6, 6), (2, 12, 6)],
    ),
    "a triangle": (
        lambda x: torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril() @ x,
        [(1, 8, 6)],
        [(2, 5, 6), (2, 1, 6)],
    ),
    "numbered": (lambda x: x * torch.arange(x.shape[1], dtype=x.dtype)[:, None], [(1, 8, 6)], [(2, 5, 6)]),
    "a root": (lambda x: x * int(x.shape[1] ** 0.5), [(1, 8, 6), (2, 5, 6)], [(2, 16, 6), (2, 9, 6)]),
    "a power": (lambda x: x * int(x.shape[1] ** (1 / 3)), [(1, 8, 6), (2, 9, 6)], [(2, 5, 6), (2, 27, 6)]),
    "rounded": (lambda x: x * len([0] * round(x.shape[1] * 0.3)), [(1, 8, 6), (2, 7, 6)], [(2, 5, 6), (2, 16, 6)]),
    "a root of all": (lambda x: x * int(x.numel() ** 0.5), [(4, 4, 6)], [(1, 16, 6), (2, 5, 6)]),
    "whole roots": (lambda x: x * 2 if (x.shape[1] ** 0.5).is_integer() else x, [(2, 7, 6)], [(2, 9, 6)]),
    "a long condition": (through_strides, [(1, 8, 6), (2, 9, 6)], [(2, 200, 6), (2, 60, 6)]),
    "capped": (lambda x: x[:, :10].sum(1) / x[:, :10].shape[1], [(1, 8, 6)], [(2, 12, 6)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_size_gives_the_originals_numbers_or_is_refused(form: str) -> None:
    forward, taken, doubtful = FORMS[form]
    model = Of(forward)
    captured = capture(model, (torch.randn(2, 8, 6, dtype=torch.float64),))
    assert [shape for shape in [(2, 8, 6), *taken] if not agrees_or_refuses(model, captured, shape)] == []
    for shape in doubtful:
        agrees_or_refuses(model, captured, shape)


@pytest.mark.parametrize(
    ("form", "shape", "message"),
    [
        ("loop", (2, 7, 6), r"expected 8 in dimension 1, got 7 \(shape \[2, 7, 6\]\).*compile again with it"),
        ("a condition on the batch", (1, 8, 6), r"shape\[0\] >= 2, got .*shape\[0\] = 1: .*compile again"),
        ("loop", (2, 8), r"expected 3 dimensions, got 2 \(shape \[2, 8\]\)"),
    ],
)
def test_a_refusal_says_what_was_expected(form: str, shape: tuple[int, ...], message: str) -> None:
    captured = capture(Of(FORMS[form][0]), (torch.randn(2, 8, 6),))
    with pytest.raises(fxprune.ShapeError, match=message):
        run(captured, torch.randn(*shape))


def test_arguments_are_called_as_the_user_calls_them() -> None:
    class Both(nn.Module):
        def forward(self, batch: dict[str, Tensor], **more: Tensor) -> Tensor:
            return batch["x"] * looped(more["mask"])

    call = {"x": torch.randn(2, 3), "unused": torch.randn(2, 3)}
    captured = capture(Both(), (call,), {"mask": torch.randn(2, 4, 3)})
    assert captured.call.limits.names == ("batch['x']", "batch['unused']", "mask")
    with pytest.raises(fxprune.ShapeError, match=r"mask: expected 4 in dimension 1, got 5"):
        run(captured, call, mask=torch.randn(2, 5, 3))


def test_a_size_that_is_shown_is_shown_as_a_number_and_stays_free() -> None:
    said: list[str] = []

    def telling(x: Tensor) -> Tensor:
        said.append(f"{x.shape[0]} of {tuple(x.shape)}")
        return x * 2

    captured = capture(Of(telling), (torch.randn(2, 8, 6),))
    assert "2 of (2, 8, 6)" in said and not any("s" in text for text in said)
    assert run(captured, torch.randn(3, 5, 6)).shape == (3, 5, 6)


def test_inputs_that_must_be_alike_are_held_to_it() -> None:
    captured = capture(nn.Bilinear(3, 3, 2), (torch.randn(2, 3), torch.randn(2, 3)))
    with pytest.raises(fxprune.ShapeError, match=r"in dimension 0, got 5"):
        run(captured, torch.randn(4, 3), torch.randn(5, 3))


def test_refusals_survive_copies_and_pickles() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(looped(self.first(x).relu()))

    pruned = fxprune.compile(Net().eval(), [torch.randn(2, 8, 6)], 0.6, method="l1", recover=None, progress=False)
    for module in (pruned, copy.deepcopy(pruned), copy.copy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert module(torch.randn(5, 8, 6)).shape == (5, 3)
        with pytest.raises(fxprune.ShapeError, match=r"^x: expected 8 in dimension 1, got 6"):
            module(torch.randn(5, 6, 6))


class Remembers(nn.Module):
    """Keeps what it made for the last shape, as the head of a detector does."""

    def __init__(self, *, differs: bool = False) -> None:
        super().__init__()
        self.layer, self.differs = nn.Conv2d(3, 4, 1), differs
        self.shape, self.anchors = None, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        f = self.layer(x)
        if self.shape != f.shape:
            self.shape, self.anchors = f.shape, torch.arange(f.shape[2] * f.shape[3], dtype=f.dtype)
            if self.differs:
                self.anchors = self.anchors + 1
        return f.flatten(2) + self.anchors


def test_a_model_that_remembers_its_last_call_takes_every_batch() -> None:
    model, x = Remembers().double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    shape, anchors = model.shape, model.anchors
    captured = capture(model, (x,))
    assert model.shape is shape and model.anchors is anchors
    for size in ((2, 3, 4, 4), (1, 3, 4, 4), (5, 3, 4, 4), (2, 3, 6, 5)):
        x = torch.randn(*size, dtype=torch.float64)
        with torch.no_grad():
            assert_equal(Remembers.forward(copy.deepcopy(model), x), run(captured, x))


def test_what_a_model_remembers_is_kept_where_it_counts() -> None:
    model, x = Remembers(differs=True).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        model(x)
        model.anchors = model.anchors * 2
        captured = capture(model, (x,))
        assert_equal(copy.deepcopy(model)(x), run(captured, x))
        with pytest.raises(fxprune.ShapeError, match=r"expected 2 in dimension 0, got 3"):
            run(captured, torch.randn(3, 3, 4, 4, dtype=torch.float64))


def test_no_size_is_free_at_the_price_of_a_unit() -> None:
    def pooled(x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, x.shape[-1]).flatten(1)[:, :12]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(pooled(self.a(x).relu()))

    pruned = fxprune.compile(Net().eval(), [torch.randn(2, 3, 8, 8)], 0.7, method="l1", recover=None, progress=False)
    assert pruned.a.out_channels < 12
    with pytest.raises(fxprune.ShapeError, match="expected 8 in dimension 2, got 12"):
        pruned(torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize("drops", [lambda h: h.squeeze(), lambda h: h.squeeze(0), lambda h: h.clone().squeeze_((0, 2))])
def test_a_batch_of_one_that_would_be_dropped_is_refused(drops: Callable[[Tensor], Tensor]) -> None:
    """The written graph names what it drops: the captured one must not drop more, or both look alike at one."""

    captured = capture(Of(lambda x: drops(x[:, :, :1] * 2)), (torch.randn(4, 8, 6),))
    assert len(run(captured, torch.randn(2, 8, 6))) == 2
    with pytest.raises(fxprune.ShapeError, match=r"shape\[0\] >= 2, got x.shape\[0\] = 1"):
        run(captured, torch.randn(1, 8, 6))


def test_terms_come_to_what_python_makes_of_them_and_to_nothing_quickly() -> None:
    assert value_of(("round", ("mul", "n", 0.3)), {"n": 8}) == round(8 * 0.3)
    assert value_of(("round", ("truediv", "n", 3), 1), {"n": 8}) == round(8 / 3, 1)
    assert value_of(("pow", "n", 3), {"n": 8}) == 512 and type(value_of(("pow", "n", 3), {"n": 8})) is int
    assert value_of(("log2", "n"), {"n": 8}) == 3.0 and value_of(("lshift", "n", 2), {"n": 8}) == 32
    endless = [("pow", ("pow", "n", 10**6), 10**6), ("lshift", 1, 10**12), ("round", "n", -(10**9)), ("exp", 10**6)]
    for term in (*endless, ("log", ("add", "n", -8)), ("bitand", "n", 0.5)):
        assert not met(("gt", term, 0), {"n": 8}), term


class OfKind(nn.Module):
    """Takes one way with whole numbers, another with others; a mask of either kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(self.layer.weight.dtype) / 255
        y = self.layer(x)
        return y.masked_fill(~mask, -1.0) if mask.dtype is torch.bool else y + mask


IMAGE, MASK = torch.randint(0, 255, (2, 4), dtype=torch.uint8), torch.ones(2, 3).bool()


@pytest.mark.parametrize(
    ("given", "other", "message"),
    [
        ((IMAGE, MASK), (IMAGE / 255, MASK), r"x: expected integers .*, got torch.float32.*compile again"),
        ((IMAGE, MASK), (IMAGE > 3, MASK), r"x: expected integers .*, got torch.bool"),
        ((IMAGE, MASK), (IMAGE, MASK.float()), r"mask: expected booleans, got torch.float32"),
        ((IMAGE, MASK), (IMAGE, MASK.long()), r"mask: expected booleans, got torch.int64"),
        ((IMAGE / 255, MASK), (IMAGE, MASK), r"x: expected floating-point numbers .*, got torch.uint8"),
        ((IMAGE / 255, MASK.float()), (IMAGE / 255, MASK), r"mask: expected floating-point .*, got torch.bool"),
        ((IMAGE / 255, MASK.float()), (IMAGE * 1j, MASK.float()), r"x: expected floating.*, got torch.complex64"),
    ],
)
@pytest.mark.parametrize("wrapped", ["eager", "compiled"])
def test_another_kind_of_numbers_is_refused(given: Any, other: Any, message: str, wrapped: str) -> None:
    model = OfKind().eval()
    pruned = emit_of(model, *given)
    torch.compiler.reset()
    called = pruned if wrapped == "eager" else torch.compile(pruned, backend="eager")
    assert_equal(model(*given), called(*given), 1e-5)
    for held in (called, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        with pytest.raises(fxprune.CallError, match=message):
            held(*other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_precision_is_taken(dtype: torch.dtype) -> None:
    model = OfKind().eval()
    x = torch.randn(2, 4)
    pruned = emit_of(model, x, MASK).to(dtype)
    assert_equal(model.to(dtype)(x.to(dtype), MASK), pruned(x.to(dtype), MASK), 1e-2)
    assert torch.jit.trace(pruned, (x.to(dtype), MASK))(x.to(dtype), MASK).dtype is dtype


def test_other_integers_are_taken() -> None:
    model = OfKind().eval()
    pruned = emit_of(model, IMAGE, MASK)
    for dtype in (torch.int32, torch.int64, torch.uint8):
        assert_equal(model(IMAGE.to(dtype), MASK), pruned(IMAGE.to(dtype), MASK), 1e-5)
    compiled = torch.compile(pruned, backend="eager", fullgraph=True)
    assert_equal(compiled(IMAGE.int(), MASK), model(IMAGE, MASK), 1e-5)


def test_what_an_earlier_version_pickled_takes_every_kind() -> None:
    limits = capture(OfKind().eval(), (IMAGE, MASK)).call.limits
    assert limits is not None and limits.kinds == ("integer", "bool")
    old = object.__new__(Limits)
    old.__setstate__([limits.names, limits.shapes, limits.least, limits.conditions])
    old.check((IMAGE / 255, MASK))
    assert old.kinds == ()


def test_terms_read_as_python() -> None:
    assert text_of(("round", ("pow", "a", 0.5), 1)) == "round(a**0.5, 1)"
    assert text_of(("eq", ("mod", ("add", "x.shape[2]", 1), 4), 0)) == "((x.shape[2] + 1) % 4) == 0"
    assert text_of(("max", "a", ("mul", 2, "b"))) == "max(a, 2*b)"
