"""The smallest networks that once went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.algebra.axes import Factor, split
from fxprune.algebra.channels import Channels
from fxprune.budget.cost import Cost
from fxprune.budget.solver import solve
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import slice_graph
from fxprune.scoring import score
from tests.models.blocks_tokens import Attention, Encoder, Position, Reduced
from tests.models.networks import Network
from tests.support.fuzzing import Case, Pruning, compiled, run
from tests.support.pruning import Fn, certify, prepared, removal
from tests.support.weights import randomise
from tests.twin.test_interpreter import Other, layers


@pytest.mark.parametrize("outputs", ["tensor", "dict"])
def test_an_axis_whose_positions_are_returned_is_no_statistic(outputs: str) -> None:
    # argmax freezes its axis; verification asked for a masked twin of it all the same
    network = Network("ids", 8, (Reduced("argmax"),), "mean", outputs=outputs)
    outcome = run(Case(network, Pruning(ratio=0.3, seed=2)))
    assert outcome.status == "verified", outcome.detail


class Peak(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 6), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        peak, where = torch.relu(self.linear(x)).max(-1, keepdim=True)
        return self.head(peak) + where


def test_max_with_indices_verifies_beside_a_pruned_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.peak = nn.Linear(4, 4), Peak()

        def forward(self, x: Tensor) -> Tensor:
            return self.peak(self.first(x))

    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.float64)
    coupling, solution, pruned = compiled(Net().double().eval(), (x,), Pruning(ratio=0.5))
    assert len(solution.units) == 2
    assert verify(coupling, solution.removed, pruned, ((x,), {})).verified


def test_an_output_that_varies_by_rounding_only_is_no_proof_of_a_bug() -> None:
    # layer norms over two channels give almost the same for every sample: 1e-16 apart looked like an error of 1e-5
    network = Network("tokens", 4, (Encoder(2, 4), Encoder(2, 4)), "first")
    outcome = run(Case(network, Pruning(ratio=0.5, ignore=True, seed=440)))
    assert outcome.status in ("verified", "degenerate"), outcome.detail


# -- what the certificate once took for proof, or for a fault -----------------------------------------------------


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)])
def test_nan_in_the_pruned_output_is_a_fault(rows: slice) -> None:
    case = layers(lambda m, y: m.b(y.relu()))

    def spoil(out: Tensor) -> Tensor:
        out = out.clone()
        out[rows] = float("nan")
        return out

    assert case.certificate(Other(case.module, spoil)).verified is False


def test_constant_integers_alone_are_no_proof() -> None:
    assert layers(lambda m, y: (m.b(y) > 1e9).long()).certificate().verified is None


def test_integers_as_floats_are_another_output() -> None:
    case = layers(lambda m, y: (m.b(y), m.b(y).argmax(1)))
    assert case.certificate(Other(case.module, lambda out: (out[0], out[1].float()))).verified is False


def test_complex_outputs_are_compared_by_their_parts() -> None:
    case = layers(lambda m, y: torch.fft.rfft(m.b(y.relu())))
    assert case.certificate().verified is True
    assert case.certificate(Other(case.module, lambda out: out * (1 + 1e-3j))).verified is False


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_statistic_with_a_dtype_is_lifted(reduce: str) -> None:
    model = Fn(
        lambda m, x: m.b((y := m.a(x)) * getattr(y, reduce)(-1, keepdim=True, dtype=torch.float32)),
        a=nn.Linear(5, 8), b=nn.Linear(8, 2),
    )  # fmt: skip
    x = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),)
    coupling = couple(capture(randomise(model.eval(), 0), x))
    removed = removal(coupling, 0, 0.4)
    module = emit(coupling.captured, slice_graph(Selection(coupling, removed)))
    assert verify(coupling, removed, module, (x, {}), dtype=torch.float64).verified is True


# -- a write to a view that has no inverse once missed its base after pruning ---------------------------------------

WRITES = {
    "stepped": lambda y: y[:, ::2].fill_(0.5),
    "stepped relu": lambda y: y[:, 1::2].relu_(),
    "transposed": lambda y: y.t()[::2].mul_(2.0),
    "reshaped": lambda y: y.view(-1, 2, 3)[:, :, ::2].mul_(2.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_stepped_write_holds_all_of_its_base(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        WRITES[how](y)
        return m.b(m.c(y).relu())

    x = torch.randn(6, 5, dtype=torch.float64)
    parts = {"a": nn.Linear(5, 6), "c": nn.Linear(6, 8), "b": nn.Linear(8, 2)}
    coupling = prepared(Fn(forward, **parts), (x,))[1]
    assert [group.producers for group in coupling.groups] == [("c",)]
    assert "an in-place write" in coupling.explain("a")
    assert certify(coupling, (x,), removal(coupling, 0, 0.5)).verified is True


# -- coupling -------------------------------------------------------------------------------------------------------


def test_a_sum_with_an_input_is_held_whole() -> None:
    # expanded constants beside a model input: the sum's features are the input's, and not free to go
    model = Fn(lambda m, x, s: m.l(s.unsqueeze(1).expand(-1, 2, 3).reshape(-1, 6) + x), l=nn.Linear(6, 3))
    both = (torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))
    assert prepared(model, both)[1].groups == ()


@pytest.mark.parametrize("gram", [False, True])
def test_units_of_a_gram_matrix_form_one_group(gram: bool) -> None:
    # every unit lies on every other's coordinates: each had a group of its own, which min_keep held
    def outer(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = y.transpose(1, 2) @ y if gram else y[:, 0].unsqueeze(2) * y[:, 0].unsqueeze(1)
        return m.b(z.flatten(1))

    x = torch.randn(3, 7, 5, dtype=torch.float64)
    coupling = prepared(Fn(outer, a=nn.Linear(5, 4), b=nn.Linear(16, 2)), (x,))[1]
    scores = {group.name: torch.rand(len(group.units)) for group in coupling.groups}
    solution = solve(coupling, scores, ratios=0.5)
    assert len(coupling.groups) == 1 and len(solution.units) == 2
    assert certify(coupling, (x,), solution.removed).verified is True


def test_what_freezes_with_a_cell_knows_why() -> None:
    channels = Channels()
    labels = channels.fresh(6).reshape(-1, 1)
    channels.freeze(labels[4:5], "the result")
    outer, _ = split(channels, Factor(6, labels), 2, "reshape")
    assert outer.labels is not None
    assert channels.reason(outer.labels[1]) == channels.reason(np.array([5])) == "the result"


def test_a_channel_on_every_coordinate_of_a_layer_stays() -> None:
    # a grouped convolution after one with other groups: some channels cover a whole weight, and were units all the same
    model = nn.Sequential(nn.Conv1d(3, 12, 1), nn.Conv1d(12, 12, 1, groups=2), nn.Conv1d(12, 12, 1, groups=3))
    model.append(nn.Conv1d(12, 2, 1))
    coupling = prepared(model, (torch.randn(2, 3, 4, dtype=torch.float64),))[1]
    assert coupling.groups
    sizes = [len(axis.labels) for axis in coupling.axes]
    assert all(count < sizes[index] for group in coupling.groups for index, count in group.axes)
    assert any("would go with it" in text for text in coupling.channels._reasons)


def test_a_size_that_turns_out_static_ties_nothing() -> None:
    # a position table fixes the length: sizes asked of a joint qkv view kept that view, and its ties, alive
    attention = Attention(heads=3, kv_heads=4, how="sdpa", qkv="select", causal=True, rotary=True)
    network = Network("ids", 6, (attention, Position(how="buffer")), "max")
    outcome = run(Case(network, Pruning(ratio=0.3, seed=1)))
    assert outcome.status == "verified" and not outcome.missing


# -- what a review found --------------------------------------------------------------------------------------------


def _mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def _around(function: Any) -> nn.Module:
    torch.manual_seed(0)
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()


def _compile(model: nn.Module, data: Any = None, budget: Any = 0.5, **options: Any) -> Any:
    data = [torch.randn(64, 8, generator=torch.Generator().manual_seed(0))] if data is None else data
    return fxprune.compile(model, data, budget, progress=False, **options)


@pytest.mark.parametrize("recover", ["covariance", "sequential"])
def test_sums_of_squares_of_half_precision_stay_finite(recover: str) -> None:
    data = [(torch.randn(8192, 8, generator=torch.Generator().manual_seed(0)) * 8).half()]
    assert fxprune.report(_compile(_mlp().half(), data, recover=recover)).verified is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_can_be_proof(dtype: torch.dtype) -> None:
    report = fxprune.report(_compile(_mlp(), verify_dtype=dtype))
    assert report.verified is True


def test_a_model_that_moved_is_saved_loaded_and_applied_as_it_is(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return _around(lambda h: h * torch.arange(h.shape[1], dtype=h.dtype, device=h.device).cos())

    x = torch.randn(3, 8, dtype=torch.bfloat16)
    pruned = _compile(build()).to(torch.bfloat16)
    fxprune.save(pruned, tmp_path / "out")
    assert torch.equal(fxprune.load(tmp_path / "out", build())(x), pruned(x))
    plan = fxprune.report(pruned).plan
    assert fxprune.apply(build().to(torch.bfloat16), plan)(x).dtype == torch.bfloat16


def test_outputs_that_pruning_makes_infinite_are_refused() -> None:
    with pytest.raises(fxprune.VerificationError, match="not finite, unlike the original's"):
        _compile(_around(lambda h: h / (h - h.mean(-1, keepdim=True))), budget=0.05, recover=None)


def test_what_the_model_notes_about_its_calls_is_taken_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls, self.log = _mlp(), 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.log.append(1)
            self.last = x
            return self.inner(x)

    model = Counting()
    _compile(model)
    assert (model.calls, model.log, hasattr(model, "last")) == (0, [], False)


@pytest.mark.parametrize(
    "noise", [lambda h: h + 0.1 * torch.randn_like(h), lambda h: nn.functional.dropout(h, 0.5, training=True)]
)
def test_random_numbers_in_evaluation_are_no_fault(noise: Any) -> None:
    assert fxprune.report(_compile(_around(noise))).verified is None


def test_what_is_rescued_comes_in_multiples() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h, g = m.a(x).relu().chunk(2, -1)
        return m.b(h) + m.c(g)

    torch.manual_seed(0)
    model = Fn(forward, a=nn.Linear(8, 64), b=nn.Linear(32, 4), c=nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model.a.weight[:32] *= 0.01
    for target in ({"ratios": 0.6, "budget": None}, {"budget": 0.4}):
        pruned = _compile(model, round_to=8, method="l1", **target)
        assert pruned.a.weight.shape[0] % 8 == 0


def test_filters_of_a_depthwise_convolution_count_for_its_channels() -> None:
    parts = {"a": nn.Conv2d(3, 16, 1), "d": nn.Conv2d(16, 16, 3, groups=16), "b": nn.Conv2d(16, 2, 1)}
    coupling = prepared(Fn(lambda m, x: m.b(m.d(m.a(x))), **parts), (torch.randn(4, 3, 6, 6, dtype=torch.float64),))[1]
    with torch.no_grad():
        parts["d"].weight[::2] = 0
        parts["d"].bias[::2] = 0
    (found,) = score(coupling, [(torch.randn(4, 3, 6, 6, dtype=torch.float64),)], "variance").values()
    assert found[::2].max() < found[1::2].min()


def test_the_smallest_share_that_is_named_can_be_asked_for() -> None:
    with pytest.raises(fxprune.BudgetError) as caught:
        _compile(_mlp(), budget=fxprune.Budget(macs=1))
    share = float(str(caught.value).split("the smallest is ")[1].split("(")[1].split(")")[0])
    assert fxprune.report(_compile(_mlp(), budget=fxprune.Budget(macs=share))).macs[1] > 0
    assert fxprune.Budget(params=0.29).limits(Cost(100, 0, 0)) == {0: 29}


def test_a_plan_applies_to_a_wrapped_model() -> None:
    plan = fxprune.report(_compile(_mlp())).plan
    assert fxprune.apply(nn.DataParallel(_mlp()), plan)(torch.randn(2, 8)).shape == (2, 4)
    with pytest.raises(fxprune.PlanError, match=r"expected a fxprune\.Plan, got str"):
        fxprune.apply(_mlp(), "plan")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([torch.ones(4, 8), torch.ones(4, 4)], "batch 1: .*takes 8 in dimension 1, got shape .4, 4."),
        ((torch.ones(4, 8), torch.ones(4, 8)), "a tuple of two tensors"),
    ],
)
def test_batches_that_do_not_fit_are_named(data: Any, words: str) -> None:
    with pytest.raises(fxprune.CalibrationError, match=words):
        _compile(_mlp(), data)


def test_a_model_without_values_and_one_with_shapes_that_data_decide() -> None:
    with pytest.raises(fxprune.CalibrationError, match="meta device"):
        _compile(_mlp().to("meta"))
    pad = lambda h: nn.functional.pad(h[:, torch.arange(32) % 2 == 0], (0, 16))  # noqa: E731
    with pytest.raises(fxprune.CaptureError, match="cannot be told without data"):
        _compile(_around(pad))


def test_scores_of_the_wrong_form_are_a_scorer_error() -> None:
    class Short:
        name, needs, per_cost, defaults = "short", (), False, {}

        def score(self, context: Any) -> Any:
            return {group.name: torch.ones(3) for group in context.coupling.groups}

    with pytest.raises(fxprune.ScorerError, match="has 32 units, got scores of shape"):
        _compile(_mlp(), method=Short())


def test_a_part_of_an_axis_that_holds_the_batch_as_well() -> None:
    """ALiBi folds the heads into a batch that is known only at run time: a part of the heads lies in every sample."""

    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        slopes = torch.full((4,), 0.5, dtype=x.dtype) ** torch.arange(1, 5)
        bias = (slopes[None, :, None] * mask.cumsum(-1)[:, None, :]).reshape(b * 4, 1, n)
        q, k, v = (f(x).view(b, n, 4, 3).transpose(1, 2).reshape(b * 4, n, 3) for f in (m.q, m.k, m.v))
        y = bias.baddbmm(q, k.transpose(1, 2)).softmax(-1) @ v
        return m.o(y.view(b, 4, n, 3).transpose(1, 2).reshape(b, n, 12))

    parts = {name: nn.Linear(6, 12) for name in "qkv"}
    args = (torch.randn(3, 5, 6, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64))
    coupling = prepared(Fn(forward, **parts, o=nn.Linear(12, 2)), args)[1]
    heads = next(group for group in coupling.groups if group.kind == "head")
    for gone in ([0], [1, 3], [2, 3]):
        assert certify(coupling, args, coupling.removed_mask(heads.units[gone])).verified


def test_a_mask_of_minus_infinities_is_an_input_like_any_other() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = randomise(
        Fn(lambda m, x, mask: m.layer(x, mask), layer=layer), 0, (torch.randn(2, 5, 8), torch.zeros(5, 5))
    )
    batch = (torch.randn(2, 5, 8), nn.Transformer.generate_square_subsequent_mask(5))
    pruned = fxprune.compile(model.eval(), [batch], 0.6, forward_args=tuple, progress=False)
    assert fxprune.report(pruned).verified
    batch[0][0, 0, 0] = -float("inf")  # and no other tensor may hold any
    with pytest.raises(fxprune.CalibrationError, match=r"args\[0\] holds -Inf"):
        fxprune.compile(model, [batch], 0.6, forward_args=tuple, progress=False)
