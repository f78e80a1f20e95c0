"""Models that cannot be captured whole: their parts are pruned, put back, and verified inside the whole."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.compiler.islands import find_islands
from fxprune.data.calls import calls_of
from tests.models.parts import Detector
from tests.support.weights import fingerprint, randomise


def _images(size: int = 32, count: int = 2, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def detector() -> nn.Module:
    return randomise(Detector(), 0, (_images(),)).eval()


def _pruned(model: nn.Module, **options: Any) -> nn.Module:
    data = [(_images(seed=seed),) for seed in range(3)]
    options = {"forward_args": tuple, "progress": False, **options}
    return fxprune.compile(model, data, 0.5, **options)


def test_looking_for_parts_changes_nothing(detector: nn.Module) -> None:
    detector.body.append(nn.Dropout())
    before, state = fingerprint(detector.train()), torch.get_rng_state()
    assert find_islands(detector, ((_images(),), {})) == ("body", "deeper.0", "head")
    assert fingerprint(detector) == before and torch.equal(torch.get_rng_state(), state)


def test_what_a_model_writes_into_its_buffers_is_gone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.part(x * self.calls)

    model, x = Counting(), torch.ones(2, 3)
    ((args, _),) = calls_of(model, ["part"], ((x,), {}))["part"]
    assert torch.equal(args[0], x) and model.calls == 0


def test_a_model_that_cannot_be_copied_says_so(detector: nn.Module) -> None:
    detector.lock = threading.Lock()
    with pytest.raises(fxprune.CaptureError, match=r"it cannot be copied .*lock"):
        find_islands(detector, ((_images(),), {}))


def test_the_largest_parts_that_can_be_captured_are_found(detector: nn.Module) -> None:
    assert find_islands(detector, ((_images(),), {})) == ("body", "deeper.0", "head")
    assert not any(m._forward_pre_hooks for m in detector.modules())


@pytest.mark.parametrize("recover", [None, "covariance"])
@pytest.mark.slow
def test_parts_share_one_budget_and_the_whole_is_verified(detector: nn.Module, recover: str | None) -> None:
    before = fingerprint(detector)
    pruned = _pruned(detector, recover=recover)
    report = fxprune.report(pruned)
    assert fingerprint(detector) == before and isinstance(pruned, Detector)
    assert report.verified and report.islands == ("body", "deeper.0", "head")
    assert "islands: body, deeper.0, head" in str(report)
    count = sum(p.numel() for p in detector.parameters())
    assert report.params[0] == count and report.params[1] <= count // 2
    assert sum(p.numel() for p in pruned.parameters()) == report.params[1]
    for size, images in ((32, 2), (48, 1), (40, 3)):  # parts take feature maps of any extent
        assert len(pruned(_images(size, images))) == images


class _Answer:
    """An output that is no container of torch's, such as a cache of keys and values."""

    def __init__(self, values: Tensor, name: str) -> None:
        self.values, self.name, self.parts, self.itself = values, name, [{"sum": values.sum().item()}], self
        self.array, self.function = values.detach().numpy(), lambda: values


class _Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> _Answer:
        return _Answer(self.body(x), "answer")


def test_objects_in_the_output_are_compared_by_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = randomise(_Answering()).eval(), torch.randn(6, 5)
    pruned = fxprune.compile(model, [x], 0.7, progress=False)
    assert pruned.report.verified and pruned.report.islands == ("body",)
    from fxprune.compiler import reassembly

    whole = reassembly.at_full_size
    monkeypatch.setattr(reassembly, "at_full_size", lambda *a: {k: v - 0.05 for k, v in whole(*a).items()})
    with pytest.raises(fxprune.VerificationError):
        fxprune.compile(model, [x], 0.7, progress=False)


@pytest.mark.slow
def test_a_wrong_part_is_found_out_inside_the_whole(detector: nn.Module, monkeypatch: Any) -> None:
    from fxprune.compiler import reassembly

    whole = reassembly.at_full_size
    monkeypatch.setattr(reassembly, "at_full_size", lambda *a: {k: v - 0.05 for k, v in whole(*a).items()})
    with pytest.raises(fxprune.VerificationError):
        _pruned(detector)


@pytest.mark.slow
def test_a_difference_is_looked_at_once_more_in_float64(detector: nn.Module, monkeypatch: Any) -> None:
    """Rounding may tip a box over a threshold; the first look is made to fail, the second compares the same way."""
    from fxprune.compiler import reassembly

    compare, looks = reassembly.compare, []

    def look(expected: Any, got: Any) -> Any:
        looks.append(compare(expected, got))
        return looks[-1] if len(looks) > 1 else replace(looks[0], verified=False)

    monkeypatch.setattr(reassembly, "compare", look)
    assert fxprune.report(_pruned(detector)).verified
    first, second = looks
    assert second.verified and second.dtype == first.dtype and second.max_error <= first.max_error


@pytest.mark.slow
def test_plan_and_artifact_know_the_parts(detector: nn.Module, tmp_path: Path) -> None:
    pruned = _pruned(detector)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    fxprune.save(pruned, tmp_path / "out")
    again = fxprune.load(tmp_path / "out", Detector())
    expected, got = (model.eval()(_images(seed=9)) for model in (pruned, again))
    assert fxprune.report(again).islands == plan.islands
    assert all(torch.equal(a[key], b[key]) for a, b in zip(expected, got, strict=True) for key in a)
    sliced = fxprune.apply(detector, plan)
    assert {k: v.shape for k, v in sliced.state_dict().items()} == {k: v.shape for k, v in pruned.state_dict().items()}


@pytest.mark.slow
def test_a_part_whose_inside_the_rest_reads_is_cut_smaller() -> None:
    class Reader(Detector):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            assert self.head[1].kernel_size == (1, 1)
            return super().forward(images)

    model = randomise(Reader(), 0, (_images(),)).eval()
    assert find_islands(model, ((_images(),), {})) == ("body", "deeper.0", "head.0")
    assert fxprune.report(_pruned(model)).verified


@pytest.mark.slow
def test_flags_stay_and_the_result_trains_on(detector: nn.Module) -> None:
    detector.head.train()
    pruned = _pruned(detector)
    assert [m.training for m in (detector, detector.body, detector.head)] == [False, False, True]
    again = copy.deepcopy(pruned).train()
    loss = torch.stack([found["scores"].sum() for found in again(_images())]).sum()
    loss.backward()
    assert all(p.grad is not None for name, p in again.named_parameters() if name.startswith("head"))
    assert fxprune.report(again).islands == ("body", "deeper.0", "head")


def test_strict_does_not_fall_back(detector: nn.Module) -> None:
    with pytest.raises(fxprune.CaptureError):
        _pruned(detector, strict=True)


def test_without_values_there_are_no_parts() -> None:
    with torch.device("meta"):
        model = Detector().eval()
    with pytest.raises(fxprune.CaptureError):
        _pruned(model, method="random", recover=None, verify=False)


def test_a_model_without_such_parts_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w if float(x.sum()) > 0 else x

    with pytest.raises(fxprune.CaptureError, match="could not capture"):
        fxprune.compile(Bare(), [torch.randn(4, 4)], 0.5, progress=False)
    assert capsys.readouterr().err == ""


def test_a_tie_within_a_part_stays_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(
                nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3)
            )
            self.part[4].weight = self.part[2].weight

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.part(x)
            return [y[y[:, 0] > float(y[:, 0].median().detach())]]

    model = randomise(Tied(), 0, (torch.randn(32, 6),)).eval()
    pruned = fxprune.compile(model, [torch.randn(32, 6)], 0.6, progress=False)
    assert fxprune.report(pruned).verified
    weights = [
        name for name, p in pruned.named_parameters(remove_duplicate=False) if p.dim() == 2 and p.shape[0] == p.shape[1]
    ]
    assert len(weights) == 2 and len({id(pruned.get_parameter(name)) for name in weights}) == 1


def test_attributes_of_a_model_s_own_stay_its_own() -> None:
    class Planned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
            self.plan, self.certificate = [2.0], None

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.part(x)
            return out * self.plan[0] if float(out.detach().sum().item()) < 1e9 else out

    torch.manual_seed(0)
    model, x = Planned().eval(), torch.randn(6, 8)
    pruned = fxprune.compile(model, [x], 0.7, progress=False)
    assert pruned.plan == [2.0] and pruned(x).shape == (6, 12)
    assert fxprune.report(pruned).plan is not None and pruned.report is fxprune.report(pruned)
    again = copy.deepcopy(pruned)
    assert again.plan == [2.0] and fxprune.report(again) == fxprune.report(pruned)
