"""How close the result is: measured on what recovery has not seen, in every way through the compiler, and never at its cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.recovery.protocol import Recovered, Recovery, RecoveryContext
from fxprune.results.fidelity import Fidelity
from fxprune.results.record import Report
from fxprune.rewriting.pruned import PrunedModule
from tests.models import stored
from tests.models.parts import Detector, Uncapturable
from tests.support.weights import fingerprint, randomise

WAYS: dict[str, dict[str, Any]] = {
    "covariance": {},
    "sequential": {"recover": "sequential"},
    "reconstruct": {"recover": "reconstruct"},
    "mean shift": {"recover": "mean_shift"},
    "obs": {"method": "obs"},
    "joint": {"method": "joint"},
    "search": {"allocation": "search"},
    "module": {"form": "module"},
    "steps": {"steps": 2},
    "ratios": {"budget": None, "ratios": 0.5},
    "biases": {"allow_bias": True},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6)).eval()


def batches(count: int = 4, size: int = 50) -> list[Tensor]:
    return list(torch.randn(count, size, 8, generator=torch.Generator().manual_seed(1)))


def compiled(data: Any = None, model: nn.Module | None = None, **options: Any) -> Any:
    options = {"budget": 0.4, "dynamic_shapes": {}, "progress": False, **options}
    return fxprune.compile(network() if model is None else model, batches() if data is None else data, **options)


def close(pruned: nn.Module) -> Fidelity:
    found = fxprune.report(pruned).fidelity
    assert found is not None
    return found


def by_hand(dense: nn.Module, pruned: nn.Module, data: list[Tensor]) -> tuple[float, float, float, float]:
    """Returns agreement, explained variance, relative error and divergence, of all samples at once."""
    with torch.no_grad():
        a, b = (model(torch.cat(data)).double() for model in (dense, pruned))
    explained = 1 - (a - b).square().sum() / (a - a.mean(0)).square().sum()
    error = (a - b).norm() / a.norm()
    divergence = nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")
    agreement = (a.argmax(-1) == b.argmax(-1)).double().mean()
    return float(agreement), float(explained), float(error), float(divergence)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_measured_on_the_batch_that_recovery_has_not_seen(way: str) -> None:
    model, data = network(), batches()
    before, state = fingerprint(model), torch.get_rng_state()
    pruned = compiled(data, model, **WAYS[way])
    found = close(pruned)
    assert (found.data, found.samples, found.batches, found.why) == ("held out", 50, 1, "")
    assert found.held_out and found.deviation is not None and 0 < found.deviation < 0.1 and found.perplexity is None
    figures = found.agreement, found.explained, found.error, found.divergence
    assert figures == pytest.approx(by_hand(network(), pruned, data[-1:]), rel=1e-5)
    assert fingerprint(model) == before and torch.equal(torch.get_rng_state(), state)
    assert (
        all(torch.equal(a, b) for a, b in zip(data, batches(), strict=True))
        and "judge" in fxprune.report(pruned).seconds
    )


@pytest.mark.parametrize("recover", ["covariance", "sequential", "reconstruct", "mean_shift"])
def test_what_is_held_out_changes_nothing_of_the_result(recover: str) -> None:
    data, other = batches(), batches()
    other[-1] = other[-1] * 5 + 3
    options = {"recover": recover, "method": "l2"}
    one, same = (compiled(each, **options).state_dict() for each in (data, other))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    one, another = (compiled(each, **options, holdout=0).state_dict() for each in (data, other))
    assert not all(torch.equal(value, another[name]) for name, value in one.items())


def test_without_a_held_out_batch_it_says_so() -> None:
    one = close(compiled(batches(1)))
    assert one.data == "alone" and not one.held_out and one.samples == 50
    assert "on the calibration batch itself; give several for a figure on data that recovery has not seen" in str(one)
    seen = close(compiled(holdout=0))
    assert seen.data == "seen" and not seen.held_out and "holdout=0.1" in str(seen)
    unfitted = close(compiled(recover=None))
    assert unfitted.data == "unfitted" and unfitted.held_out and unfitted.batches == 1


def test_data_in_another_order_each_time_may_have_been_seen() -> None:
    data = TensorDataset(torch.cat(batches()))
    assert close(compiled(DataLoader(data, 20, shuffle=True))).data == "shuffled"
    assert close(compiled(DataLoader(data, 20))).data == "held out"


def test_data_of_which_only_the_first_batch_stays_may_have_been_seen() -> None:
    class LongestFirst:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Tensor]:
            first, *rest = batches()
            return iter([first, *(rest[i] for i in torch.randperm(3).tolist())])

    torch.manual_seed(3)
    assert close(compiled(LongestFirst(), recover="sequential")).data == "shuffled"


def test_a_dense_model_that_draws_does_not_compare() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(nn.functional.dropout(x, 0.5, training=True))

    found = close(compiled(model=Drawing(), verify=False))
    assert "draws random numbers" in found.why and found.level == "unknown"


def test_data_that_do_not_tell_how_many_they_are() -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Tensor]:
            return iter(batches())

    assert close(compiled(Unsized())) == close(compiled())


def test_a_recovery_of_ones_own_gets_the_others() -> None:
    class Counting(Recovery):
        name = "counting"

        def recover(self, context: RecoveryContext) -> Recovered:
            seen.append(sum(len(flat[0]) for flat in context.inputs))
            return Recovered()

    seen: list[int] = []
    assert close(compiled(recover=Counting())).data == "held out" and seen == [150]
    compiled(recover=Counting(), holdout=0.5)
    assert seen == [150, 100]


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ({"recover": None}, ["recover='sequential'", "fine-tune", "a larger budget"], ["more calibration data"]),
        ({}, ["more calibration data", "recover='sequential'"], ["method="]),
        ({"recover": "sequential"}, ["recover='reconstruct'"], ["recover='sequential'"]),
        ({"recover": "reconstruct"}, ["more calibration data", "fine-tune"], ["recover="]),
        ({"method": "random"}, ["method='variance'"], []),
        ({"budget": None, "ratios": 0.7}, ["smaller ratios"], ["a larger budget"]),
    ],
)
def test_what_is_advised_has_not_been_used(options: dict[str, Any], there: list[str], absent: list[str]) -> None:
    advice = close(compiled(**{"budget": 0.2, **options})).advice
    assert set(there) <= set(advice) and not any(word in text for text in advice for word in absent)


def test_weights_that_are_drawn_anew_are_not_measured() -> None:
    found = close(compiled(recover="reinit"))
    assert found.level == "unknown" and str(found).startswith("not measured: recover='reinit' draws all weights anew")


def test_a_model_without_values_is_not_measured() -> None:
    with torch.device("meta"):
        empty = network()
    pruned = compiled([torch.randn(4, 8, device="meta")], empty, method="random", recover=None, verify=False)
    assert str(close(pruned)) == "not measured: the model is on the meta device and has no values"


def test_a_call_that_fails_does_not_lose_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: nn.Module, *_: Any) -> None:
        raise RuntimeError("out of luck")

    pruned = compiled(verify=False)
    monkeypatch.setattr(PrunedModule, "__call__", fails)
    failed = compiled(verify=False)
    assert str(close(failed)) == "not measured: RuntimeError: out of luck"
    assert failed.plan == pruned.plan and "fidelity: not measured: Runtime" in str(failed.report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precision(dtype: torch.dtype) -> None:
    pruned = compiled([x.to(dtype) for x in batches()], network().to(dtype), budget=1.0, ratios=None)
    found = close(pruned)
    assert found.level == "good" and found.explained is not None and found.explained > 0.99


@pytest.mark.parametrize("form", ["graph", "module"])
def test_a_model_in_parts_is_judged_as_a_whole(form: Any) -> None:
    torch.manual_seed(0)
    model, data = Uncapturable().eval(), list(torch.randn(3, 16, 3, 8, 8, dtype=torch.float64))
    pruned = fxprune.compile(model, data, 0.6, form=form, progress=False)
    found = close(pruned)
    with torch.no_grad():
        a, b = model(data[-1]), pruned(data[-1])
    assert fxprune.report(pruned).islands == ("body",) and found.data == "held out"
    assert found.error == pytest.approx(float((a - b).norm() / a.norm())) and found.error > 0


def test_boxes_that_are_found_do_not_compare() -> None:
    def images(seed: int) -> list[Tensor]:
        return list(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))

    detector = randomise(Detector(), 0, (images(0),)).eval()
    data = [(images(seed),) for seed in range(3)]
    pruned = fxprune.compile(detector, data, 0.5, forward_args=tuple, method="l2", recover=None, progress=False)
    assert close(pruned).why.startswith("not comparable: an output is [") and close(pruned).level == "unknown"


def test_it_is_kept_with_the_artifact_and_trained_weights_have_none(tmp_path: Path) -> None:
    pruned = compiled()
    fxprune.save(pruned, tmp_path / "half")
    again = fxprune.load(tmp_path / "half")
    assert close(again) == close(pruned) and fxprune.report(fxprune.load(tmp_path / "half", network())).fidelity
    plan = fxprune.report(pruned).plan
    assert plan is not None and fxprune.report(fxprune.apply(network(), plan)).fidelity is None
    assert Report.from_dict(fxprune.report(pruned).to_dict()).fidelity == close(pruned)


def gpt(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=32, **changes)
    return transformers.GPT2LMHeadModel(config).eval()


def texts(count: int = 3) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    found = [torch.randint(0, 40, (4, 12), generator=draw) for _ in range(count)]
    masks = [torch.ones_like(ids) for ids in found]
    masks[-1][0, 8:] = 0
    return [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(found, masks, strict=True)]


def test_a_language_model_has_a_perplexity() -> None:
    model, data = gpt(), texts()
    pruned = fxprune.compile(model, data, 0.8, progress=False)
    found = close(pruned)
    assert found.perplexity is not None and found.samples == 4 and found.agreement is not None
    labels = data[-1]["input_ids"].masked_fill(data[-1]["attention_mask"] == 0, -100)[:, 1:]
    with torch.no_grad():
        scores = [net(**data[-1])["logits"][:, :-1] for net in (model, pruned)]
    wanted = [float(nn.functional.cross_entropy(s.flatten(0, 1).double(), labels.flatten()).exp()) for s in scores]
    assert found.perplexity == pytest.approx(wanted, rel=1e-5) and "perplexity" in str(found)


def test_a_language_model_of_its_own_class_has_a_perplexity() -> None:
    model = stored.llama().eval()
    pruned = fxprune.compile(model, texts(), 0.7, form="module", progress=False)
    found = close(pruned)
    assert found.perplexity is not None and found.agreement is not None and not found.why


class Plain(nn.Module):
    """Scores of next tokens without a name and without a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt()

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids).logits


def test_tokens_as_targets_tell_a_language_model_without_a_loss() -> None:
    ids = [each["input_ids"] for each in texts()]
    told = close(fxprune.compile(Plain().eval(), [(x, x) for x in ids], 0.8, method="l2", recover=None, progress=False))
    assert told.perplexity is not None and told.agreement is not None
    untold = close(fxprune.compile(Plain().eval(), ids, 0.8, method="l2", recover=None, progress=False))
    assert untold.perplexity is None and untold.agreement is None and untold.explained is not None


def test_values_as_targets_are_no_classes() -> None:
    data = [(x, torch.randn(50, 6)) for x in batches()]
    found = close(compiled(data))
    assert found.agreement is None and found.divergence is None and "of the variance" in str(found)


@pytest.mark.parametrize("value", [1, -0.1, 1.5, True, "0.1", None, float("nan")])
def test_what_is_no_share_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="holdout must be a share of the batches, from 0 to below 1, got"):
        compiled(holdout=value)
