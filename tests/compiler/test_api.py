"""compile() from end to end: what it returns, what it leaves alone, and what it says to bad input."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.data.batches import Batches
from fxprune.data.checks import device_of
from tests.models.fn import Fn
from tests.support.compiling import around, compile_small, mlp
from tests.support.marks import but_slow
from tests.support.weights import randomise


class Residual(nn.Module):
    """A stem, two residual blocks, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 12, 3, padding=1, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                nn.Conv2d(12, 8, 1, bias=False),
                nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def calibration() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 3, 8, 8, generator=generator) for _ in range(3)]


@pytest.fixture
def model(calibration: list[Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Residual().eval(), 0, (calibration[0],))


def digest(model: nn.Module) -> str:
    sums = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sums.update(name.encode() + tensor.numpy().tobytes())
    flags = [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]
    return sums.hexdigest() + repr(flags)


@pytest.mark.parametrize(
    "recover", but_slow([None, "mean_shift", "covariance", "sequential", "reconstruct"], quick=(None, "covariance"))
)
@pytest.mark.parametrize("method", but_slow(["variance", "l1", "l2", "magnitude", "random"], quick=("variance",)))
def test_result_is_verified_within_budget_and_leaves_the_model_alone(model, calibration, method, recover):
    model.train()
    before = digest(model)
    pruned = fxprune.compile(model, calibration, 0.5, method=method, recover=recover, progress=False)
    report = fxprune.report(pruned)
    assert digest(model) == before
    assert report.verified is True
    assert report.max_error < 1e-4
    assert report.params[1] == sum(p.numel() for p in pruned.parameters()) <= 0.5 * report.params[0]
    assert list(pruned.state_dict()) == list(model.state_dict())


@pytest.mark.slow
def test_recovery_brings_the_outputs_nearer(model, calibration):
    def error(recover: str | None, layers: str) -> float:
        ratios = {layers: 0.5, "default": 0.0}
        pruned = fxprune.compile(model, calibration, method="l1", ratios=ratios, recover=recover, progress=False)
        with torch.no_grad():
            return float(sum((pruned(x) - model.eval()(x)).square().sum() for x in calibration))

    none, shift, covariance = (error(recover, "blocks.0.0") for recover in (None, "mean_shift", "covariance"))
    assert covariance < shift < none
    assert error("sequential", "blocks.*.0") < error("covariance", "blocks.*.0")


def test_shifts_without_a_home_are_reported(calibration):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    data = [torch.randn(16, 4)]
    pruned = fxprune.compile(net, data, 0.6, recover="mean_shift", progress=False)
    assert any("2.weight" in line for line in fxprune.report(pruned).skipped)


def test_float64_check(model, calibration):
    pruned = fxprune.compile(model, calibration, 0.5, verify_dtype=torch.float64, progress=False)
    report = fxprune.report(pruned)
    assert report.verified is True
    assert report.max_error < 1e-9
    assert report.dtype == "float64"


@pytest.mark.slow
def test_other_batch_sizes_copies_pickles_and_export(model, calibration):
    pruned = fxprune.compile(model, calibration, 0.5, progress=False)
    x = torch.randn(3, 3, 8, 8)
    want = pruned(x)
    buffer = io.BytesIO()
    torch.save(pruned, buffer)
    buffer.seek(0)
    twins = [
        copy.deepcopy(pruned),
        pickle.loads(pickle.dumps(pruned)),
        torch.load(buffer, weights_only=False),
        torch.compile(pruned, fullgraph=True, backend="eager"),
        torch.export.export(pruned, (x,)).module(),
    ]
    for twin in twins:
        torch.testing.assert_close(twin(x), want)
    assert fxprune.report(copy.deepcopy(pruned)).verified is True
    assert pruned(x[:1]).shape == (1, 5)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.slow
def test_an_exported_program_is_compiled_like_its_model(model, calibration, steps):
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(model, (calibration[0],), dynamic_shapes=({0: batch},))
    pruned = fxprune.compile(program, calibration, 0.5, steps=steps)
    expected = fxprune.compile(model, calibration, 0.5, steps=steps)
    x = torch.cat([calibration[0], calibration[0]])
    assert fxprune.report(pruned).verified
    torch.testing.assert_close(pruned(x), expected(x))
    plan = fxprune.report(expected).plan
    torch.testing.assert_close(fxprune.apply(program, plan)(x), fxprune.apply(model, plan)(x))


def test_an_exported_program_says_which_batches_it_takes(model, calibration):
    program = torch.export.export(model, (calibration[0],))
    with pytest.raises(fxprune.CalibrationError, match=r"Guard failed.*size\(\)\[0\] == "):
        fxprune.compile(program, [calibration[0][:1]], 0.5)


@pytest.mark.slow
def test_save_and_load(model, calibration, tmp_path):
    pruned = fxprune.compile(model, calibration, 0.5, progress=False)
    fxprune.save(pruned, tmp_path / "out")
    again = fxprune.load(tmp_path / "out", model)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(again(x), pruned(x))


def test_macs_and_params_together(model, calibration):
    pruned = fxprune.compile(model, calibration, fxprune.Budget(params=0.7, macs=0.5), progress=False)
    report = fxprune.report(pruned)
    assert report.params[1] <= 0.7 * report.params[0]
    assert report.macs[1] <= 0.5 * report.macs[0]


def test_a_branch_may_vanish(model, calibration):
    ratios = {"blocks.1.0": 1.0, "default": 0.0}
    pruned = fxprune.compile(model, calibration, ratios=ratios, min_keep=0, recover=None, progress=False)
    report = fxprune.report(pruned)
    assert report.verified is True
    names = [name for name, _ in pruned.named_parameters()]
    assert not any(name.startswith("blocks.1.") and not name.endswith("4.bias") for name in names)
    assert report.params[1] == sum(p.numel() for p in pruned.parameters())
    kept = fxprune.compile(model, calibration, ratios=ratios, recover=None, progress=False)
    assert "blocks.1.0.weight" in dict(kept.named_parameters())


def test_dict_batches_and_labels(calibration):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(
            self, values: Tensor, scale: Tensor | None = None, labels: Tensor | None = None
        ) -> dict[str, Tensor]:
            hidden = self.up(values).relu()
            return {"logits": self.down(hidden if scale is None else hidden * scale)}

    data = [{"values": torch.randn(5, 4), "scale": torch.rand(5, 1), "labels": torch.zeros(5)} for _ in range(2)]
    pruned = fxprune.compile(Named().eval(), data, 0.6, progress=False)
    assert set(pruned(data[0]["values"], scale=data[0]["scale"])) == {"logits"}
    with pytest.raises(TypeError, match="scale"):
        pruned(data[0]["values"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"budget": 0.0}, fxprune.BudgetError, "(0, 1]"),
        ({"budget": 1.5}, fxprune.BudgetError, "(0, 1]"),
        ({"budget": "half"}, fxprune.BudgetError, "share"),
        ({"budget": None}, fxprune.BudgetError, "neither"),
        ({"budget": 0.01}, fxprune.BudgetError, "the smallest is"),
        ({"budget": 0.5, "ratios": 0.5}, fxprune.BudgetError, "either"),
        ({"budget": None, "ratios": {"blocks.*": 1.5}}, fxprune.BudgetError, "[0, 1]"),
        ({"method": "magic"}, fxprune.ScorerError, "variance"),
        ({"recover": "magic"}, ValueError, "covariance"),
        ({"round_to": 0}, ValueError, "round_to"),
        ({"min_keep": -1}, ValueError, "min_keep"),
        ({"ignore": ["*"]}, fxprune.NothingToPruneError, "ignore"),
        ({"ignore": "*"}, fxprune.NothingToPruneError, "ignore"),
        ({"ignore": [3]}, ValueError, "patterns"),
        ({"units": ("chanel",)}, ValueError, "head_dim"),
        ({"units": ()}, ValueError, "head_dim"),
        ({"ridge": 0.0}, ValueError, "ridge"),
        ({"ridge": "much"}, ValueError, "ridge"),
        ({"memory_limit": -5}, ValueError, "bytes"),
        ({"budget": None, "ratios": "half"}, fxprune.BudgetError, "[0, 1]"),
        ({"budget": None, "ratios": True}, fxprune.BudgetError, "[0, 1]"),
        ({"verify_dtype": torch.int32}, TypeError, "floating-point"),
        ({"seed": None}, TypeError, "seed"),
        ({"forward_args": 3}, TypeError, "forward_args"),
        ({"units": ("head",)}, fxprune.NothingToPruneError, "head"),
    ],
)
def test_bad_arguments(model, calibration, change, error, words):
    before = digest(model)
    with pytest.raises(error) as caught:
        fxprune.compile(model, calibration, **{"budget": 0.5, "progress": False, **change})
    assert words in str(caught.value)
    assert digest(model) == before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "empty"),
        ((x for x in [torch.randn(4, 3, 8, 8)]), "generator"),
        ([torch.full((4, 3, 8, 8), float("nan"))], "NaN"),
        ([torch.randn(4, 3, 8, 8), torch.full((4, 3, 8, 8), float("inf"))], "Inf"),
        ([torch.randn(4, 3, 8, 8, dtype=torch.float64)], "float64"),
        ([torch.randint(0, 9, (4, 3, 8, 8))], "int64"),
        ([torch.randn(4, 5, 8, 8)], "5"),
        ([{"image": torch.randn(4, 3, 8, 8)}], "image"),
        ([torch.randn(4, 3, 8, 8), torch.randn(4, 3)], "batch 1"),
    ],
)
def test_bad_calibration_data(model, data, words):
    before = digest(model)
    with pytest.raises(fxprune.CalibrationError) as caught:
        fxprune.compile(model, data, 0.5, progress=False)
    assert words in str(caught.value)
    assert digest(model) == before


def test_bad_weights(model, calibration):
    for value, found in (("nan", "NaN"), ("inf", "Inf"), ("-inf", "-Inf")):
        for name in ("stem.weight", "blocks.0.1.running_var"):
            broken = copy.deepcopy(model)
            broken.state_dict()[name][0] = float(value)
            before = digest(broken)
            with pytest.raises(fxprune.CalibrationError, match=rf"{name} holds {found}"):
                fxprune.compile(broken, calibration, 0.5, progress=False)
            assert digest(broken) == before


def test_data_on_another_device_is_moved_and_a_model_on_two_is_refused(model, calibration):
    model.head.to("meta")
    with pytest.raises(fxprune.CalibrationError, match=r"one device .*, got stem\.weight on cpu, head"):
        fxprune.compile(model, calibration, 0.5, progress=False)
    model.to("meta")
    batches = Batches(calibration, device=device_of(model))
    assert all(batch.args[0].is_meta for batch in batches)


def test_ignore_that_matches_nothing_warns(model, calibration):
    before = digest(model)
    with pytest.warns(fxprune.IgnoredPatternWarning, match="no_such_layer"):
        fxprune.compile(model, calibration, 0.8, ignore=["no_such_layer"], progress=False)
    assert digest(model) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.IgnoredPatternWarning)
        fxprune.compile(model, calibration, 0.8, ignore=["stem", "blocks.0.*"], progress=False)


def test_ignored_layers_stay(model, calibration):
    pruned = fxprune.compile(model, calibration, 0.7, ignore=["blocks.0.0"], progress=False)
    assert pruned.get_parameter("blocks.0.0.weight").shape[0] == 12


def test_model_that_cannot_be_captured(calibration):
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if y.sum() > 0 else -y

    branching = Branching().train()
    before = digest(branching)
    with pytest.raises(fxprune.CaptureError, match=r"test_api\.py"):
        fxprune.compile(branching, calibration, 0.5, progress=False)
    assert digest(branching) == before


def test_model_with_nothing_to_prune(calibration):
    single = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    before = digest(single)
    with pytest.raises(fxprune.NothingToPruneError):
        fxprune.compile(single, calibration, 0.5, progress=False)
    assert digest(single) == before


def test_plan_for_another_model(model, calibration):
    plan = fxprune.report(fxprune.compile(model, calibration, 0.5, progress=False)).plan
    other = Residual()
    other.head = nn.Linear(9, 7)
    before = digest(other)
    with pytest.raises(fxprune.PlanError, match="head"):
        fxprune.apply(other, plan)
    assert digest(other) == before
    other.head = nn.Linear(8, 7)  # more classes: what the plan leaves whole
    assert fxprune.apply(other, plan)(calibration[0][:2]).shape == (2, 7)


def test_scorer_of_ones_own(model, calibration):
    class Last:
        name, needs, per_cost, defaults = "last", (), False, {"recover": None}

        def score(self, context: fxprune.Context) -> dict[str, Tensor]:
            return {group.name: torch.arange(len(group.units)) for group in context.coupling.groups}

    pruned = fxprune.compile(model, calibration, method=Last(), ratios={"blocks.0.0": 0.5}, progress=False)
    torch.testing.assert_close(pruned.get_parameter("blocks.0.0.weight"), model.blocks[0][0].weight[6:])
    assert fxprune.report(pruned).method == "last"


def test_scores_stand_on_the_nodes(model, calibration):
    captured = fxprune.capture(model, (calibration[0],))
    coupling = fxprune.couple(captured)
    fxprune.score(coupling, [captured.example], "l1")
    node = next(n for n in captured.module.graph.nodes if n.target == "blocks.0.0.weight")
    assert node.meta["fxprune"][0].shape == (12,)
    assert torch.isfinite(node.meta["fxprune"][0]).all()


def test_what_the_model_notes_about_its_calls_is_taken_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls, self.log = mlp(), 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.log.append(1)
            self.last = x
            return self.inner(x)

    model = Counting()
    compile_small(model)
    assert (model.calls, model.log, hasattr(model, "last")) == (0, [], False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([torch.ones(4, 8), torch.ones(4, 4)], r"batch 1 does not fit .*expected 8 in dimension 1, got 4"),
        ((torch.ones(4, 8), torch.ones(4, 8)), "a tuple of two tensors"),
    ],
)
def test_batches_that_do_not_fit_are_named(data: Any, words: str) -> None:
    with pytest.raises(fxprune.CalibrationError, match=words):
        compile_small(mlp(), data)


def test_a_model_without_values_and_one_with_shapes_that_data_decide() -> None:
    with pytest.raises(fxprune.CalibrationError, match="meta device"):
        compile_small(mlp().to("meta"))
    pad = lambda h: nn.functional.pad(h[:, torch.arange(32) % 2 == 0], (0, 16))  # noqa: E731
    with pytest.raises(fxprune.NothingToPruneError, match="an indexed axis"):
        compile_small(around(pad))


@pytest.mark.slow
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
