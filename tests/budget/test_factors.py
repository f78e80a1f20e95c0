"""Factors: of a product one layer is enough to name it, if nothing is left of the channels without that one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.budget.patterns import names_of_layers, reaching
from fxprune.coupling.coupling import Coupling


class Gated(nn.Module):
    """Two layers whose outputs meet in a way of one's own, and a layer that reads the result."""

    def __init__(self, meet: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.meet = meet
        self.gate, self.up, self.down = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 4)
        self.norm, self.other = nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.scale = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.meet(self, x)


def reached(meet: Callable[[nn.Module, Tensor], Tensor]) -> list[str]:
    """Returns which of the two layers, alone, names the group that both make."""
    torch.manual_seed(0)
    coupling = fxprune.couple(fxprune.capture(Gated(meet).eval(), (torch.randn(5, 6),)))
    return [name for name in ("gate", "up") if takes(coupling, name)]


def takes(coupling: Coupling, pattern: str) -> bool:
    names = names_of_layers(coupling)
    group = next(g for g in coupling.groups if {"gate", "up"} <= set(g.producers))
    return reaching(coupling, group, [f"{pattern}*"], names) is not None  # a group goes by its own name in any case


MEETINGS: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "silu": (lambda m, x: m.down(functional.silu(m.gate(x)) * m.up(x)), ["gate", "up"]),
    "a gate that is half open at zero": (lambda m, x: m.down(torch.sigmoid(m.gate(x)) * m.up(x)), ["up"]),
    "behind a norm and a scale": (lambda m, x: m.down(m.norm(m.gate(x)) * m.scale * m.up(x)), ["gate", "up"]),
    "a sum": (lambda m, x: m.down(m.gate(x) + m.up(x)), []),
    "a term and a product": (lambda m, x: m.down(m.gate(x) * m.up(x) + m.up(x)), ["up"]),
    "a quotient": (lambda m, x: m.down(m.gate(x) / (1 + m.up(x).square())), ["gate"]),
    "one is read elsewhere": (lambda m, x: m.down(m.gate(x) * m.up(x)) + m.other(m.up(x)), ["up"]),
    "one is returned as well": (lambda m, x: torch.cat([m.down(m.gate(x) * m.up(x)), m.up(x)[:, :1]], 1), ["up"]),
    "shapes change": (lambda m, x: m.down((m.gate(x)[:, :, None] * m.up(x)[:, :, None]).flatten(1)), ["gate", "up"]),
    "a power": (lambda m, x: m.down(m.gate(x) ** 2 * m.up(x)), ["gate", "up"]),
    "the smaller of two": (lambda m, x: m.down(torch.minimum(m.gate(x), m.up(x))), []),
    "bounded by the other": (lambda m, x: m.down(torch.clamp(m.up(x), max=m.gate(x))), []),
    "an angle": (lambda m, x: m.down(torch.atan2(m.gate(x), m.up(x))), []),
    "a comparison": (lambda m, x: m.down((m.gate(x) > m.up(x)).float()), []),
    "one is normalised over its channels": (lambda m, x: m.down(m.gate(x) * functional.layer_norm(m.up(x), (12,))), []),
    "one is added up over its channels": (lambda m, x: m.down(m.gate(x) * m.up(x).cumsum(1)), []),
    "one is multiplied with itself": (lambda m, x: m.down(m.gate(x) * (m.up(x) @ m.up(x).T @ m.up(x))), []),
    "moved up from zero": (lambda m, x: m.down((m.gate(x) + 1) * m.up(x)), ["up"]),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_a_factor_names_a_product(name: str) -> None:
    meet, expected = MEETINGS[name]
    assert reached(meet) == expected


class Excited(nn.Module):
    """Squeeze and excitation, with a depthwise convolution between."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.gate, self.down = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.up(x)).relu()
        out: Tensor = self.down(x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid())
        return out


def test_what_excitation_scales_is_not_named_by_it() -> None:
    coupling = fxprune.couple(fxprune.capture(Excited().eval(), (torch.randn(2, 3, 6, 6),)))
    assert takes(coupling, "up") and not takes(coupling, "gate")


def test_half_of_an_mlp_goes_by_the_name_of_its_gate() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, use_cache=False, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    data = [{"input_ids": torch.randint(0, 32, (2, 6))}]
    ratios = {"*gate_proj": 0.5, "default": 0.0}
    pruned = fxprune.compile(model, data, ratios=ratios, method="l2", recover=None, progress=False)
    changed = {k: tuple(v.shape) for k, v in pruned.state_dict().items() if v.shape != model.state_dict()[k].shape}
    assert {shape for name, shape in changed.items() if "mlp" in name} == {(12, 16), (16, 12)}
    assert len(changed) == 6


def test_a_pattern_with_a_kind_takes_its_turn() -> None:
    """Names of groups are matched where the pattern stands, not before the others."""
    coupling = fxprune.couple(
        fxprune.capture(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (torch.randn(2, 3, 8),))
    )
    names, heads = names_of_layers(coupling), next(g for g in coupling.groups if g.kind == "head")
    assert reaching(coupling, heads, ["self_attn*", "*:head"], names) == "self_attn*"
    assert reaching(coupling, heads, ["linear1", "*:head", "self_attn*"], names) == "*:head"
    assert reaching(coupling, heads, ["*:expert"], names) is None
