"""REAP: the norm of what an expert adds to the tokens that are sent to it, against the models' own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.coupling.unit_scores import STAYS

EXPERTS = 6


def of_transformers(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = {
        "Mixtral": {"num_local_experts": EXPERTS},
        "Qwen2Moe": {"num_experts": EXPERTS, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
        "Qwen3Moe": {"num_experts": EXPERTS, "moe_intermediate_size": 12, "norm_topk_prob": True},
    }
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32, num_key_value_heads=1, num_experts_per_tok=2, use_cache=False, **sizes, **own[kind]
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def by_hand(mlp: Any, x: Tensor, normed: bool) -> Tensor:
    """Returns the scores of a mixture of two experts a token, from its weights and what it reads, ``[tokens, channels]``."""
    chance, chosen = (x @ mlp.gate.weight.T).softmax(-1).topk(2)
    chance = chance / chance.sum(-1, keepdim=True) if normed else chance
    found = []
    for expert in range(EXPERTS):
        gate, up = (x @ mlp.experts.gate_up_proj[expert].T).chunk(2, -1)
        out = (functional.silu(gate) * up) @ mlp.experts.down_proj[expert].T
        sent = chosen == expert
        adds = (chance * sent).sum(-1) * out.norm(dim=-1)
        found.append(adds.sum() / sent.any(-1).sum().clamp(min=1))
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_scores_are_the_paper_s(kind: str) -> None:
    model = of_transformers(kind)
    ids = [torch.randint(32, (2, 7)) for _ in range(3)]
    coupling = fxprune.couple(fxprune.capture(model, (), {"input_ids": ids[0]}, dynamic_shapes={}))
    found = fxprune.score(coupling, [(each,) for each in ids], "reap")
    experts = [found[group.name] for group in coupling.groups if group.kind == "expert"]
    read: list[list[Tensor]] = [[], []]
    for layer, kept in zip(model.model.layers, read, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0].detach().flatten(0, 1)))
    with torch.no_grad():
        for each in ids:
            model(input_ids=each)
        for layer, kept, scores in zip(model.model.layers, read, experts, strict=True):
            assert torch.allclose(scores.float(), by_hand(layer.mlp, torch.cat(kept), kind != "Qwen2Moe"), rtol=1e-3)
    others = [found[group.name] for group in coupling.groups if group.kind != "expert"]
    assert others and all((scores == STAYS).all() for scores in others)


class Mixture(nn.Module):
    """All experts for every token, weighed by a softmax, with biases, beside a layer that all tokens share."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.shared, self.head = nn.Linear(5, 4), nn.Linear(5, 7), nn.Linear(7, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 7, 6))
        self.bias = nn.Parameter(torch.randn(4, 7))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,ehi->beh", x, self.up).relu()
        each = torch.einsum("beh,eoh->beo", hidden, self.down) + self.bias
        mixed = torch.einsum("beo,be->bo", each, self.router(x).softmax(-1))
        out: Tensor = self.head((self.shared(x) + mixed).relu())
        return out


def mixture() -> tuple[Mixture, Tensor]:
    torch.manual_seed(0)
    return Mixture().eval(), torch.randn(9, 5)


def test_a_mixture_of_all_experts_written_out() -> None:
    model, x = mixture()
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    found = fxprune.score(coupling, [(x,)], "reap")
    (scores,) = (found[group.name] for group in coupling.groups if group.kind == "expert")
    with torch.no_grad():
        each = torch.stack(
            [(x @ u.T).relu() @ d.T + b for u, d, b in zip(model.up, model.down, model.bias, strict=True)], 1
        )
        wanted = (model.router(x).softmax(-1) * each.norm(dim=-1)).mean(0)
    assert torch.allclose(scores.float(), wanted, rtol=1e-4)


class Chosen(nn.Module):
    """Two of five experts a token, after an activation of their own, written as one wishes, with a tail of one's own."""

    def __init__(self, tail: Callable[..., Any], last: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tail, self.last = tail, last
        self.router, self.head, self.conv = nn.Linear(6, 5), nn.Linear(6, 3), nn.Conv2d(6, 3, 1)
        self.raw, self.first, self.second = (nn.Parameter(torch.randn(5, *size)) for size in ((6,), (6, 6), (6, 6)))

    def gates(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        chance, chosen = (self.router(x) if logits is None else logits).softmax(-1).topk(2, -1)
        return chance.new_zeros(*x.shape[:-1], 5).scatter(-1, chosen, chance)

    def each(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.last((x[..., None, None, :] @ (self.first if weight is None else weight))[..., 0, :])

    def mix(self, x: Tensor, weight: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        return (self.gates(x, logits)[..., None] * self.each(x, weight)).sum(-2)

    def forward(self, x: Tensor) -> Any:
        return self.tail(self, x)


def formula(model: Chosen, x: Tensor, logits: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        gates = model.gates(x, logits).flatten(0, -2)
        norms = model.last(torch.einsum("td,edh->teh", x.flatten(0, -2), model.first)).norm(dim=-1)
        return (gates * norms).sum(0) / (gates > 0).sum(0).clamp(min=1)


def scored(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    coupling = fxprune.couple(fxprune.capture(model.eval(), (x,)))
    found = fxprune.score(coupling, [(x,)], "reap")
    return {group.name: found[group.name] for group in coupling.groups if group.kind == "expert"}


@pytest.mark.parametrize("last", [torch.relu, torch.sigmoid, lambda x: (x - 2).relu()])
@pytest.mark.parametrize(
    ("tail", "shape"),
    [
        (lambda m, x: m.head(m.mix(x)), (9, 6)),
        (lambda m, x: m.head(x + 0.1 * m.mix(x).relu()), (9, 6)),
        (lambda m, x: m.conv(m.mix(x).permute(0, 3, 1, 2)), (2, 4, 3, 6)),
        (lambda m, x: m.head(m.mix(x).mean(1)), (2, 7, 6)),
        (lambda m, x: m.mix(x).flatten(1), (2, 7, 6)),
    ],
    ids=["as it is", "activation and scale", "image", "pooled", "flat"],
)
def test_what_lies_behind_a_mixture_and_in_its_experts_does_not_matter(tail: Any, shape: Any, last: Any) -> None:
    model, x = Chosen(tail, last), torch.randn(*shape)
    assert torch.allclose(scored(model, x)["router:expert"].float(), formula(model, x), rtol=1e-4)


def test_two_mixtures_may_meet() -> None:
    x = torch.randn(9, 6)
    model = Chosen(lambda m, x: m.head(m.mix(x) * m.mix(x, m.second, x @ m.raw.T)))
    found = scored(model, x)
    assert len(found) == 2 and torch.allclose(found["router:expert"].float(), formula(model, x), rtol=1e-4)


def test_a_router_may_be_a_tensor_of_its_own() -> None:
    x = torch.randn(9, 6)
    model = Chosen(lambda m, x: m.head(m.mix(x, None, x @ m.raw.T)))
    (found,) = scored(model, x).values()
    assert torch.allclose(found.float(), formula(model, x, x @ model.raw.T), rtol=1e-4)


@pytest.mark.parametrize(
    "tail", [lambda m, x: (m.mix(x), m.mix(x.flip(0))), lambda m, x: m.head(x + m.mix(x + m.mix(x)))]
)
def test_a_mixture_that_is_called_twice_is_refused(tail: Any) -> None:
    with pytest.raises(fxprune.ScorerError, match="expected one place where what its experts give"):
        scored(Chosen(tail), torch.randn(9, 6))


def test_the_experts_that_add_least_go() -> None:
    model, x = mixture()
    with torch.no_grad():
        for tensor in (model.up, model.down, model.bias):
            tensor[[0, 2]] *= 0.1
    pruned = fxprune.compile(model, [x], ratios=0.5, method="reap", recover=None, progress=False)
    assert fxprune.report(pruned).verified
    state = pruned.state_dict()
    assert torch.equal(state["down"], model.down[[1, 3]]) and torch.equal(state["bias"], model.bias[[1, 3]])
    assert torch.equal(state["router.weight"], model.router.weight[[1, 3]])


def test_a_model_without_experts_is_told() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(fxprune.ScorerError, match="expects experts that may go"):
        fxprune.compile(model, [torch.randn(4, 5)], 0.5, method="reap", progress=False)


def test_flat_inputs_are_tuples() -> None:
    model, x = mixture()
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    with pytest.raises(fxprune.CalibrationError, match="tuple of the graph's flat inputs, got dict"):
        fxprune.score(coupling, [{"x": x}], "reap")  # type: ignore[list-item]


def test_a_ratio_of_what_the_criterion_lets_stay_is_told() -> None:
    model, x = mixture()
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    channels = next(group.name for group in coupling.groups if group.kind == "channel")
    ratios = {channels: 0.5, "*:expert": 0.5}
    with pytest.warns(fxprune.FxpruneWarning, match=r"takes nothing of .* \(channels\): the criterion lets them stay"):
        pruned = fxprune.compile(model, [x], ratios=ratios, method="reap", recover=None, progress=False)
    assert pruned.state_dict()["router.weight"].shape == (2, 5)


@pytest.mark.parametrize(
    ("tail", "shape"),
    [
        (lambda m, x: m.head(torch.einsum("beo,be->bo", m.each(x), m.gates(x))), (9, 6)),
        (lambda m, x: m.head(torch.einsum("eob,be->ob", m.each(x).permute(1, 2, 0), m.gates(x)).T), (9, 6)),
        (lambda m, x: m.head((m.each(x).transpose(1, 2) * m.gates(x)[:, None]).sum(-1)), (9, 6)),
        (lambda m, x: m.head((m.each(x).transpose(1, 2) @ m.gates(x)[..., None])[..., 0]), (9, 6)),
        (lambda m, x: m.head((m.gates(x)[:, None] @ m.each(x))[:, 0]), (9, 6)),
    ],
)
def test_channels_may_lie_anywhere(tail: Any, shape: Any) -> None:
    model, x = Chosen(tail), torch.randn(*shape)
    assert torch.allclose(scored(model, x)["router:expert"].float(), formula(model, x), rtol=1e-4)


def test_what_an_expert_adds_does_not_drown_in_what_the_others_do() -> None:
    x = torch.randn(64, 6)
    model = Chosen(lambda m, x: m.head(torch.einsum("beo,be->bo", m.each(x), m.gates(x))))
    with torch.no_grad():
        model.first[1] *= 1e-3
    model, x = model.bfloat16(), x.bfloat16()
    assert torch.allclose(scored(model, x)["router:expert"].float(), formula(model, x).float(), rtol=0.02)
