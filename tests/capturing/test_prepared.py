"""The example call: cloned, at least two samples, and dynamic where it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fxprune
from fxprune._base.errors import CaptureError, ShapeError
from fxprune.capturing.captured import Captured, capture
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, check, raw, run


def shapes(captured: Captured) -> list[tuple[int, ...]]:
    return [captured.info[n].shape for n in captured.module.graph.nodes if n.op == "placeholder"]


def test_one_tensor_given_twice_stays_two_inputs():
    model = Fn(lambda self, q, k: self.a(q) * self.b(k), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    merged = [node for node in raw(model, x, x).nodes if node.name.startswith("args")]
    assert not all(node.users for node in merged), "torch.export merges the inputs: that is the trap"
    check(model, x, x, others=((torch.randn(2, 4).double(), torch.randn(2, 4).double()),))


def test_batch_of_one_is_repeated():
    model = nn.Linear(4, 3)
    x = torch.randn(1, 4)
    captured = capture(model, (x,))
    assert captured.batch == (10007, 2)
    assert torch.equal(captured.example[0], x.expand(2, 4))
    for batch in (1, 5):
        assert run(captured, torch.randn(batch, 4)).shape == (batch, 3)


def test_example_tensors_are_clones():
    x = torch.randn(3, 4)
    captured = capture(nn.Linear(4, 3), (x,))
    assert captured.example[0] is not x
    assert torch.equal(captured.example[0], x)


def test_all_inputs_share_one_batch():
    model = Fn(lambda self, x, y, w: self.lin(x) * y[:, None] + w, lin=nn.Linear(4, 4))
    captured = capture(model, (torch.randn(3, 4), torch.randn(3), torch.randn(4)))
    assert shapes(captured) == [(10007, 4), (10007,), (4,)]
    x, y, w = torch.randn(6, 4), torch.randn(6), torch.randn(4)
    with torch.no_grad():
        assert_equal(model(x, y, w), run(captured, x, y, w))


def test_scalar_and_unbatched_inputs():
    model = Fn(lambda self, x, s: self.lin(x) * s, lin=nn.Linear(4, 4))
    assert shapes(capture(model, (torch.randn(3, 4), torch.tensor(2.0)))) == [(10007, 4), ()]


def test_length_of_token_ids_is_dynamic():
    model = Fn(lambda self, ids, mask: self.emb(ids) * mask[..., None], emb=nn.Embedding(9, 5))
    captured = capture(model, (torch.randint(9, (2, 7)), torch.ones(2, 7)))
    assert shapes(captured) == [(10007, 1009), (10007, 1009)]


def test_sizes_of_images_are_free():
    captured = capture(nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 8, 8),))
    assert shapes(captured) == [(10007, 3, 1009, 1013)]
    assert run(captured, torch.randn(1, 3, 20, 9)).shape == (1, 4, 18, 7)


def test_a_size_is_fixed_where_the_model_takes_no_other():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    captured = capture(model, (torch.randn(2, 3, 8, 8),))
    assert shapes(captured)[0][0] == 10007
    with pytest.raises(ShapeError):
        run(captured, torch.randn(2, 3, 9, 8))


def test_dynamic_shapes_of_the_caller_win():
    model, x = nn.Linear(4, 3), torch.randn(3, 5, 4)
    batch, rows = torch.export.Dim("batch"), torch.export.Dim("rows")
    captured = capture(model, (x,), dynamic_shapes=({0: batch, 1: rows},))
    assert shapes(captured) == [(10007, 1009, 4)]
    assert capture(model, (x,), dynamic_shapes=({},)).batch == (1, 1)


def test_sizes_stay_within_their_bounds():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.table = nn.Embedding(9, 4), nn.Embedding(32, 4)
            self.register_buffer("ids", torch.arange(32)[None])

        def forward(self, tokens: Tensor) -> Tensor:
            return self.emb(tokens) + self.table(self.ids[:, : tokens.shape[1]])

    captured = capture(Positions(), (torch.randint(9, (2, 7)),))
    assert shapes(captured) == [(10007, 31)]


def test_examples_of_another_structure_are_refused():
    with pytest.raises(CaptureError, match="differ in structure"):
        capture(Fn(lambda self, *x: x[0]), (torch.randn(2, 4),), batches=[((torch.randn(2, 4), 1), {})])
    with pytest.raises(CaptureError, match="differ in rank"):
        capture(nn.Linear(4, 3), (torch.randn(2, 4),), batches=[((torch.randn(2, 2, 4),), {})])


def test_arguments_that_do_not_fit():
    with pytest.raises(CaptureError, match="missing a required argument: 'input'"):
        capture(nn.Linear(4, 3))


class Cached(nn.Module):
    """Returns its cache, which is no pytree, unless told not to."""

    class Config:
        use_cache = True

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor, use_cache: bool | None = None) -> Any:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return (self.lin(x), object()) if use_cache else (self.lin(x),)


def test_models_are_captured_without_their_cache():
    model, x = Cached(), torch.randn(3, 4)
    captured = capture(model, (x,))
    assert len(run(captured, x)) == 1
    assert len(run(captured, x, use_cache=False)) == 1
    assert model.config.use_cache is True
    with pytest.raises(CaptureError):
        capture(model, (x,), {"use_cache": True})
    with pytest.raises(TypeError, match=r"captured with .* got True"):
        captured.call.flatten((x,), {"use_cache": True})


def test_no_cache_is_what_every_call_means():
    model, x = Cached(), torch.randn(3, 4)
    captured = capture(model, (x,), {"use_cache": False})
    assert captured.call.assumed == ("use_cache",)
    assert_equal(run(captured, x), model(x, use_cache=False))

    class Collecting(Cached):
        def forward(self, x: Tensor, **more: Any) -> Any:
            return super().forward(x, **more)

    for kwargs in ({}, {"use_cache": False}):
        captured = capture(Collecting(), (x,), kwargs)
        assert len(run(captured, x)) == len(run(captured, x, use_cache=False)) == 1


def test_dynamic_shapes_need_not_name_what_capture_adds():
    auto = torch.export.Dim.AUTO
    captured = capture(Cached(), (torch.randn(3, 5, 4),), dynamic_shapes={"x": {0: auto, 1: auto}})
    assert shapes(captured) == [(10007, 1009, 4)]
    with pytest.raises(CaptureError, match="y"):
        capture(Cached(), (torch.randn(3, 5, 4),), dynamic_shapes={"x": {0: auto}, "y": None})


@pytest.mark.slow
def test_transformers_model_with_a_cache():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    captured = capture(model, (torch.randint(16, (1, 5)),))
    ids = torch.randint(16, (3, 8))
    with torch.no_grad():
        expected = model(ids, use_cache=False)
    got = run(captured, ids)
    assert type(got) is type(expected)
    assert_equal(expected, got)


class Tagger(nn.Module):
    """Pads no sequence: the recurrent layer runs over packed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
        self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.make(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def test_a_packed_sequence_as_an_argument_is_refused_in_words():
    packed = pack_padded_sequence(torch.randn(3, 7, 6), torch.tensor([7, 5, 3]), batch_first=True)
    with pytest.raises(CaptureError, match=r"a PackedSequence among the arguments .* Let the module take the tensors"):
        capture(nn.GRU(6, 8), (packed,))


def test_what_comes_before_a_packed_sequence_is_pruned():
    calls = [(torch.randn(3, 7, 6), torch.tensor([7, 5, 3])) for _ in range(2)]
    model = Tagger().eval()
    found = fxprune.compile(
        model, calls, 0.8, method="l2", recover=None, progress=False, forward_args=lambda b: (b, {})
    )
    report = fxprune.report(found)
    assert report.verified and report.islands == ("make",)
    kept = dict(found.named_parameters())["make.0.weight"]
    with torch.no_grad():
        gone = [i for i in range(16) if not (kept[:, None] == model.make[0].weight[i]).all(-1).any()]
        model.make[2].weight[:, gone] = 0
        torch.testing.assert_close(found(*calls[0]), model(*calls[0]))


def test_what_is_not_named_is_fixed_in_containers_as_well():
    class Nested(nn.Module):
        def forward(self, xs, *more, **named):
            return xs["a"] + xs["b"] + sum(more) + named["last"]

    x = torch.randn(2, 3)
    args = {"a": x, "b": x}, x, x
    assert shapes(capture(Nested(), args, {"last": x}, dynamic_shapes={})) == [(2, 3)] * 5
    free = dict.fromkeys((0, 1), torch.export.Dim.AUTO)
    named = shapes(capture(Nested(), args, {"last": x}, dynamic_shapes={"xs": {"a": free, "b": free}}))
    assert named == [(2, 3)] * 5  # the others, to which they are added, are fixed
