"""Calibration data: every form of a batch, and a clear error for everything that is none."""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fxprune._base.errors import CalibrationError
from fxprune.data.batches import Batches, need_targets

X, Y = torch.randn(8, 3), torch.arange(8)


def first(calib: Any, **options: Any) -> Any:
    return Batches(calib, device="cpu", **options).first()


# -- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [X, [X], (X,)])
def test_inputs_alone_become_one_argument(batch: Any) -> None:
    found = first([batch])
    assert len(found.args) == 1 and torch.equal(found.args[0], X)
    assert found.kwargs == {} and found.targets is None and found.size == 8


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_is_inputs_and_targets(kind: type) -> None:
    found = first([kind([X, Y])])
    assert torch.equal(found.args[0], X) and torch.equal(found.targets, Y)


def test_the_inputs_of_a_pair_may_be_a_tuple_or_a_dict() -> None:
    found = first([((X, X + 1), Y)])
    assert len(found.args) == 2 and torch.equal(found.targets, Y)
    found = first([({"x": X, "labels": Y + 1}, Y)])
    assert list(found.kwargs) == ["x"] and torch.equal(found.targets, Y)


@pytest.mark.parametrize("key", ["labels", "label"])
def test_a_mapping_becomes_keywords_and_its_labels_targets(key: str) -> None:
    found = first([UserDict({"ids": Y, key: X, "flag": None})])
    assert list(found.kwargs) == ["ids", "flag"] and torch.equal(found.targets, X) and found.args == ()


def test_a_single_tensor_or_mapping_is_one_batch() -> None:
    assert [batch.size for batch in Batches(X, device="cpu")] == [8]
    assert [batch.size for batch in Batches({"x": X}, device="cpu")] == [8]


def test_a_loader_is_read_again_and_again() -> None:
    batches = Batches(DataLoader(TensorDataset(X, Y), batch_size=3), device="cpu")
    assert [[batch.size for batch in batches] for _ in range(2)] == [[3, 3, 2]] * 2


@pytest.mark.parametrize(
    ("make", "args", "kwargs", "targets"),
    [
        (tuple, 3, [], False),
        (lambda batch: batch[0], 1, [], False),
        (lambda batch: {"x": batch[0]}, 0, ["x"], False),
        (lambda batch: ((batch[0],), {"y": batch[1]}), 1, ["y"], False),
        (lambda batch: ([batch[0]], {"y": batch[1]}, batch[2]), 1, ["y"], True),
    ],
)
def test_forward_args_makes_the_call(make: Any, args: int, kwargs: list[str], targets: bool) -> None:
    found = first([(X, X, Y)], forward_args=make)
    assert len(found.args) == args and list(found.kwargs) == kwargs and (found.targets is not None) == targets


def test_forward_args_keeps_the_labels_of_a_dict() -> None:
    found = first([{"ids": X, "labels": Y}], forward_args=lambda batch: (batch["ids"],))
    assert torch.equal(found.targets, Y) and len(found.args) == 1


def test_tensors_go_to_the_device_and_lose_their_history() -> None:
    found = Batches([(X.clone().requires_grad_(), {"a": Y})], device="meta").first()
    assert found.args[0].is_meta and found.targets["a"].is_meta and not found.args[0].requires_grad


def test_keywords_come_in_the_order_of_the_first_batch() -> None:
    batches = Batches([{"a": X, "b": Y}, {"b": Y, "a": X}], device="cpu")
    assert [list(batch.kwargs) for batch in batches] == [["a", "b"]] * 2


def test_one_batch_of_every_shape_and_no_more_are_read() -> None:
    read: list[int] = []

    class Source:
        def __iter__(self) -> Iterator[Tensor]:
            for index, (samples, length) in enumerate([(2, 5), (3, 5), (2, 7), (2, 5), (2, 9)]):
                read.append(index)
                yield torch.ones(samples, length)

    batches = Batches(Source(), device="cpu")
    assert [batch.args[0].shape for batch in batches.shapes(among=4)] == [(2, 5), (2, 7)]
    assert read == [0, 1, 2, 3]


def test_leaves_and_text_of_a_batch() -> None:
    batch = first([((X, [Y]), Y)])
    assert [name for name, _ in batch.leaves()] == ["args[0]", "args[1][0]"]
    assert str(batch) == "args[0] float32 [8, 3], args[1][0] int64 [8]"
    assert str(first([{"ids": Y}])) == "kwargs['ids'] int64 [8]"


# -- what is refused ------------------------------------------------------------------------------------------------


class Images(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return iter([X])


@pytest.mark.parametrize(
    ("calib", "message"),
    [
        ([], "empty"),
        (None, "expected a DataLoader, a list or a tensor, got NoneType"),
        ("images", "got str"),
        (7, "got int"),
        ((batch for batch in [X]), "got generator, which runs dry"),
        (iter([X]), "got list_iterator, which runs dry"),
        (TensorDataset(X), "dataset TensorDataset, which yields single samples"),
        (Images(), "dataset Images"),
        ([(X, X, Y)], "got a tuple of 3: if these are the inputs, pass forward_args=tuple"),
        ([[X, X, X]], "if they are one, such as a list of images, forward_args=lambda b: ((b,), {})"),
        ([()], "got a tuple of 0"),
        ([object()], "got object: pass forward_args"),
        ([{0: X}], "expected argument names as keys, got 0"),
        ([{"x": X.numpy()}], "expected a tensor among its inputs, got ndarray"),
        ([{"x": X, "y": X.numpy()}], "kwargs['y']: expected a tensor"),
        ([{}], "expected a tensor among its inputs, got nothing"),
        ([X.to_sparse()], "args[0]: expected a dense tensor, got a sparse one"),
        ([X.to("meta")], "a tensor lies on the meta device"),
        ([torch.ones(0, 3)], "no samples: its first tensor is float32 [0, 3]"),
        ([X, X.double()], "batch 1: args[0]: expected what batch 0 has, float32 [8, 3]; got float64 [8, 3]"),
        ([X, X[None]], "batch 1: args[0]: expected what batch 0 has"),
        ([X, (X, Y)], ""),
        ([X, {"x": X}], "batch 1: it is built unlike batch 0: expected args[0]; got kwargs['x']"),
        ([{"x": [X, X]}, {"x": [X]}], "got kwargs['x'][0]. A list of as many in every batch: drop_last=True"),
        ([{"x": X, "n": 1}, {"x": X, "n": 2}], "batch 1: kwargs['n']: expected what batch 0 has, 1; got 2"),
        ([X, X * float("nan")], "batch 1: args[0] holds NaN; expected finite numbers"),
        ([{"x": X, "mask": X / 0}], "kwargs['mask'] holds"),
    ],
)
def test_unusable_data(calib: Any, message: str) -> None:
    if message:
        with pytest.raises(CalibrationError, match=re.escape(message)):
            list(Batches(calib, device="cpu"))
    else:
        assert len(list(Batches(calib, device="cpu"))) == 2  # targets may be missing here and there


def test_a_source_that_runs_dry_is_found_at_the_second_pass() -> None:
    class Once:
        def __init__(self) -> None:
            self.stream = iter([X, X])

        def __iter__(self) -> Iterator[Tensor]:
            return self.stream

    batches = Batches(Once(), device="cpu")
    assert len(list(batches)) == 2
    with pytest.raises(CalibrationError, match="ran dry"):
        list(batches)


def test_forward_args_that_raises() -> None:
    with pytest.raises(CalibrationError, match="batch 1: forward_args fails on it: KeyError: 'pixels'"):
        list(Batches([{"pixels": X}, {"ids": X}], device="cpu", forward_args=lambda batch: (batch["pixels"],)))


def test_forward_args_that_returns_no_call() -> None:
    with pytest.raises(CalibrationError, match="forward_args: expected a tuple, a dict or"):
        first([X], forward_args=lambda batch: 7)


def test_a_loader_s_own_error_passes_through() -> None:
    class Broken:
        def __iter__(self) -> Iterator[Tensor]:
            raise FileNotFoundError("no such image")

    with pytest.raises(FileNotFoundError):
        first(Broken())


def test_targets_on_demand() -> None:
    assert torch.equal(need_targets(first([(X, Y)]), 0, "taylor"), Y)
    with pytest.raises(CalibrationError, match="batch 4: method 'taylor' needs targets"):
        need_targets(first([X]), 4, "taylor")


def test_rounds_give_each_of_several_its_batch() -> None:
    batches = Batches([torch.full((1, 2), float(n)) for n in range(5)], device="cpu")

    def shares(*, whole: bool) -> list[list[float | None]]:
        every = (batches.rounds(place, 2, whole=whole) for place in range(2))
        return [[None if batch is None else float(batch.args[0][0, 0]) for batch in share] for share in every]

    assert shares(whole=False) == [[0.0, 2.0, 4.0], [1.0, 3.0, None]]
    assert shares(whole=True) == [[0.0, 2.0], [1.0, 3.0]]
    assert [None if batch is None else batch.size for batch in batches.rounds(5, 6)] == [None]
