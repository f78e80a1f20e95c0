"""A copy of the original's class computes with nothing of the original, holds what its parameters held, and says what it cannot do."""

from __future__ import annotations

import collections
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxprune
from fxprune.homing.proof import difference
from tests.support.zeroed import with_zeros

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class Closure(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.first = lambda x: self.a(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.first(x)).relu())


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.tap: Any = None
        self.a.register_forward_hook(lambda module, args, out: setattr(self, "tap", out))

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.c(self.b(self.tap.relu()))


class Serving(Plain):
    def train(self, mode: bool = True) -> Serving:
        if mode:
            raise ValueError("this model is for inference only")
        return super().train(mode)


class Centred(Plain):
    """Takes a mean over channels in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.training:
            h = h - h.mean(-1, keepdim=True)
        return self.c(self.b(h).relu())


def compiled(model: nn.Module, x: Any = X, budget: float = 0.6, **options: Any) -> Any:
    chosen: dict[str, Any] = {"recover": None, "method": "l2", "dynamic_shapes": {}, "progress": False, **options}
    return fxprune.compile(model, x, budget, form="module", **chosen)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (Closure(), {"ignore": ["a"]}, "still computes with the original's a.bias, a.weight: a function that it holds"),
        (Hooked(), {}, "a copy of the model, run to see where its sizes come from, raises AttributeError"),
        (Serving().eval(), {}, "own train\\(\\) and eval\\(\\), called on what is left.*for inference only"),
    ],
)
def test_what_a_copy_cannot_do_is_refused_in_words(model: nn.Module, options: dict[str, Any], said: str) -> None:
    with pytest.raises(fxprune.RestoreError, match=said):
        compiled(model, **options)
    fxprune.compile(model, X, 0.6, recover=None, progress=False, **options)


def test_a_graph_of_another_dtype_or_without_values_is_refused() -> None:
    graph = fxprune.compile(Plain(), X, 0.6, recover=None, progress=False)
    with pytest.raises(fxprune.RestoreError, match=r"the graph is of torch.float32, the model of torch.float64"):
        fxprune.restore(graph, Plain().double())
    with pytest.raises(fxprune.RestoreError, match="meta device"):
        fxprune.restore(graph, Plain().to("meta"))
    with pytest.raises(fxprune.PlanError, match=r"fxprune.apply\(model, pruned.plan\) is the graph"):
        fxprune.restore(compiled(Plain()), Plain())


def test_a_mean_that_training_alone_takes_runs_over_all() -> None:
    home = compiled(Centred(), budget=0.7)
    assert home.a.out_features == 32 and home.b.out_features < 32
    with pytest.raises(
        fxprune.BudgetError, match=r"32 units stay because the original's class cannot say.*form='graph'"
    ):
        compiled(Centred(), budget=0.05)


def test_parameters_keep_their_hooks_and_attributes() -> None:
    model = Plain()
    model.b.weight.register_hook(lambda grad: grad * 0)
    model.b.bias.no_decay = True
    home = compiled(model)
    home.train()(X).sum().backward()
    assert not home.b.weight.grad.any() and home.a.weight.grad.any()
    assert home.b.bias.no_decay


@pytest.mark.parametrize("conv", [False, True])
def test_spectral_norm_steps_as_that_of_the_original_with_zeros(conv: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6, 5, 5, dtype=torch.float64) if conv else X.double()
    model: nn.Module = Plain()
    if conv:
        layers = nn.Conv2d(6, 32, 3), nn.ReLU(), nn.Conv2d(32, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        model = nn.Sequential(*layers)
    middle = model.get_submodule("2" if conv else "b")
    parametrizations.spectral_norm(middle)
    model = model.double()
    home = compiled(model, x)
    zeros = with_zeros(copy.deepcopy(model), home.plan.keep)
    assert home.get_submodule("2" if conv else "b").weight.shape[1] < 32
    torch.testing.assert_close(home(x), fxprune.apply(model, home.plan)(x))  # by the norm that the whole has
    for _ in range(2):
        for net in (home.train(), zeros.train()):
            net(x).square().sum().backward()
        for (name, one), (_, other) in zip(home.named_parameters(), zeros.named_parameters(), strict=True):
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(one.grad.norm(), _of_kept(other, home.plan.keep.get(name, {})).norm())


def _of_kept(parameter: Tensor, keep: Any) -> Tensor:
    grad = parameter.grad
    assert grad is not None
    for dim, index in keep.items():
        grad = grad.index_select(dim, torch.tensor(index))
    return grad


def test_what_computes_weights_of_one_size_alone_stays_whole() -> None:
    model: nn.Module = Plain()
    parametrizations.orthogonal(model.get_submodule("b"))
    model = nn.Sequential(model, nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    home = compiled(model, budget=0.95)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert home[0].b.weight.shape == (32, 32) and home[1].out_features < 24


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.linear(x, weight / weight.norm(dim=1, keepdim=True), self.bias)


def test_a_weight_that_a_forward_computes_is_made_of_what_it_was_made_of() -> None:
    model = nn.Sequential(Standardised(6, 6), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    home = compiled(model)
    assert home[1].out_features < 32
    torch.testing.assert_close(home[0].weight, model[0].weight, rtol=0, atol=0)


def test_weight_norm_is_not_said_to_be_plain() -> None:
    model = Plain()
    parametrizations.weight_norm(model.b)
    home = compiled(model)
    assert nn.utils.parametrize.is_parametrized(home.b) and home.b.weight.numel() < 32 * 32
    assert not any("plain tensors" in note for note in fxprune.report(home).notes)


def test_numbers_that_are_right_are_not_told() -> None:
    home = compiled(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)))
    assert not any("no call has read" in note for note in fxprune.report(home).notes)


def test_attention_says_its_sizes_and_takes_padding() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stack, self.head = nn.Linear(12, 32), stack, nn.Linear(32, 3)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.head(self.stack(self.stem(x), src_key_padding_mask=mask))

    x = torch.randn(4, 5, 12)
    home = compiled(Net().eval(), x)
    attention = home.stack.layers[0].self_attn
    assert attention.num_heads == 3 and attention.kdim == attention.vdim == attention.embed_dim == 24
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[:, 4] = True
    with torch.no_grad():
        torch.testing.assert_close(home(x, mask)[:, :4], home(x[:, :4]))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.s, self.b, self.o = (
            nn.Conv2d(3, 32, 1),
            nn.ChannelShuffle(4),
            nn.Conv2d(32, 24, 1),
            nn.Conv2d(24, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(self.s(self.a(x))))


def test_a_shuffle_of_channels_keeps_its_parts() -> None:
    home = compiled(Shuffled(), torch.randn(2, 3, 8, 8), 0.7)
    assert home.a.out_channels % 4 == 0 and home.b.out_channels < 24


class Chaos(nn.Module):
    """Goes over its values again and again, and rounds on the way in one order or another."""

    def __init__(self, times: float = 1.0, *, expanded: bool = False) -> None:
        super().__init__()
        self.times, self.expanded = times, expanded

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid() * self.times
        for _ in range(16):
            y = 3.99 * (y - y * y) if self.expanded else 3.99 * y * (1 - y)
        return y


def test_outputs_in_which_rounding_grows_are_compared_within_it() -> None:
    call = (torch.randn(20, 6, generator=torch.Generator().manual_seed(0)),), {}
    a, b = Chaos()(*call[0]), Chaos(expanded=True)(*call[0])
    assert (a - b).abs().max() > 1e-4 * a.abs().max()
    assert difference(Chaos(expanded=True), Chaos(), call) is not None
    assert difference(Chaos(expanded=True), Chaos(), call, allowed=1e-4) is None
    told = difference(Chaos(1.01), Chaos(), call, allowed=1e-4)
    assert told is not None and "its outputs differ" in told


Sizes = collections.namedtuple("Sizes", "width heads")


class Named(nn.Module):
    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.sizes, self.a, self.o = sizes, nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        width, heads = self.sizes[0], self.sizes[1]
        return self.o(self.a(x).relu().view(-1, heads, width // heads).flip(1).reshape(-1, width))


@pytest.mark.parametrize("sizes", [Sizes(32, 4), {0: 32, 1: 4}, torch.Size([32, 4]), [32, 4]])
def test_sizes_are_found_in_what_holds_them(sizes: Any) -> None:
    model = Named(sizes)
    home = compiled(model)
    assert type(home.sizes) is type(sizes) and home.sizes[0] == home.a.out_features < 32 and model.sizes is sizes


def test_a_class_that_computes_in_float32_is_compared_as_such() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

        def forward(self, x: Tensor) -> Tensor:
            y = x.float()
            return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    model = nn.Sequential(nn.Linear(6, 32), Norm(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    home = compiled(model, X.double())
    assert home[0].out_features < 32
