"""What training mode does and evaluation mode does not is told; nothing is told of models that the result follows."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.capturing.captured import capture
from tests.models.libraries import swin, transformer, vit
from tests.models.small import NETWORKS
from tests.support.capturing import assert_untouched, snapshot
from tests.support.marks import but_slow
from tests.support.zeroed import step


class Branch(nn.Module):
    """Works in another way while it trains."""

    def __init__(self, branch: Any) -> None:
        super().__init__()
        self.branch = branch
        self.a, self.o, self.aux = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(12, 3)
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor) -> Any:
        return self.branch(self, F.relu(self.a(x)))


def head(m: Any, h: Tensor) -> Any:
    return (m.o(h), m.aux(h)) if m.training else m.o(h)


def noise(m: Any, h: Tensor) -> Any:
    return m.o(h + torch.randn_like(h) if m.training else h)


def average(m: Any, h: Tensor) -> Any:
    if m.training:
        m.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    return m.o(h - m.mean)


def scaled(m: Any, h: Tensor) -> Any:
    return m.o(h * m.scale if m.training else h)


def several(m: Any, h: Tensor) -> Any:
    return m.o(h) if m.training else m.o(h.mul(0.5).mul(2.0).mul(3.0))


def probabilities(m: Any, h: Tensor) -> Any:
    return m.o(h) if m.training else m.o(h).softmax(-1)


def named(m: Any, h: Tensor) -> Any:
    return {"logits": m.o(h)} if m.training else m.o(h)


def temperature(m: Any, h: Tensor) -> Any:
    return m.o(h) / (4.0 if m.training else 1.0)


def best(m: Any, h: Tensor) -> Any:
    return m.o(h.topk(12 if m.training else 6)[0].mean(-1, keepdim=True) + h)


def schedule(m: Any, h: Tensor) -> Any:
    if m.training:
        m.step += 1
    return m.o(h) * torch.exp(-m.step / 10)


def replaced(m: Any, h: Tensor) -> Any:
    mean = h.detach().mean(0)
    if m.training:
        m.mean = mean
    return m.o(h - m.mean) + 0 * mean.sum()


class Tenth(torch.autograd.Function):
    """Gives what it gets, which autograd makes a view of, and a tenth of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 0.1


def gradient_scaled(m: Any, h: Tensor) -> Tensor:
    return m.o(Tenth.apply(h) if m.training else h)


SAID = {
    temperature: r"div\(4.0\) in training mode alone",
    best: r"topk\(12\) in training mode alone",
    schedule: "add_ in training mode alone",
    several: r"calls mul \(3 times\) in evaluation mode alone",
    replaced: "only training assigns 'mean'",
    gradient_scaled: "view_as in training mode alone",
    head: "'aux' of the model work in training mode alone",
    noise: "randn_like in training mode alone",
    average: "add_, detach, mean, mul_ in training mode alone",
    scaled: "only training uses 'scale'",
    probabilities: "softmax in evaluation mode alone",
    named: "returns a dict of 1 in training mode and a tensor in evaluation mode",
}


@pytest.mark.parametrize("branch", SAID, ids=lambda branch: branch.__name__)
def test_what_only_one_mode_does_is_warned_of(branch: Any) -> None:
    model = Branch(branch)
    before = snapshot(model)
    with pytest.warns(fxprune.TrainingWarning, match=SAID[branch]):
        pruned = fxprune.compile(model, [torch.randn(5, 6)], 0.6, recover=None, progress=False)
    assert any(re.search(SAID[branch], note) for note in fxprune.report(pruned).notes)
    assert_untouched(model, before)


class Checkpointed(nn.Module):
    def __init__(self, norm: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.o, self.reentrant = (
            nn.Sequential(nn.Linear(6, 12), norm, nn.ReLU()),
            nn.Linear(12, 3),
            reentrant,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.o(checkpoint(self.inner, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_buffer_that_changes_within_a_checkpoint_is_told(reentrant: bool) -> None:
    model = Checkpointed(nn.BatchNorm1d(12), reentrant)
    with pytest.warns(fxprune.TrainingWarning, match="'inner.1' change buffers within an activation checkpoint"):
        pruned = fxprune.compile(model, [torch.randn(5, 6)], 0.6, recover=None, progress=False)
    x = torch.randn(5, 6, requires_grad=True)
    for trained in (model.train(), pruned.train()):
        trained(x).sum().backward()
    assert (int(model.inner[1].num_batches_tracked), int(pruned.inner.get_submodule("1").num_batches_tracked)) == (2, 1)


def test_nothing_is_told_of_a_checkpoint_without_buffers() -> None:
    model = Checkpointed(nn.LayerNorm(12), reentrant=False)
    pruned = fxprune.compile(model, [torch.randn(5, 6)], 0.6, recover=None, progress=False)
    assert not fxprune.report(pruned).notes


class Strided(nn.Module):
    """A detector's head in small: numbers of a buffer fill a map, and training returns the raw one."""

    stride: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.register_buffer("stride", torch.tensor([2.0, 4.0]))

    def forward(self, x: Tensor) -> Any:
        raw = self.c(x)
        strides = torch.full((raw.shape[2] * raw.shape[3],), self.stride[0].item(), dtype=x.dtype)  # as a fill value
        return [raw] if self.training else (raw.flatten(2) * strides, [raw])


def test_numbers_that_are_read_of_a_buffer_hide_no_difference_and_load_by_themselves(tmp_path: Any) -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.warns(fxprune.TrainingWarning, match="returns a list of 1 in training mode and a tuple of 2"):
        pruned = fxprune.compile(Strided().eval(), [x], 0.7, recover=None, progress=False)
    fxprune.save(pruned, tmp_path / "out")
    assert torch.equal(fxprune.load(tmp_path / "out")(x)[0], pruned(x)[0])


class Frozen(nn.Module):
    """Keeps its norm in evaluation mode, and a dropout by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)
        self.inner = Dropping()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        self.inner.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.inner(F.relu(self.norm(self.a(x)))))


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training) * 2


def test_what_train_leaves_in_evaluation_mode_stays_there(tmp_path: Any) -> None:
    model = Frozen()
    before = snapshot(model)
    pruned = fxprune.compile(model, [torch.randn(8, 6)], 0.6, recover=None, progress=False)
    assert_untouched(model, before)
    assert fxprune.report(pruned).notes == ()
    fxprune.save(pruned, tmp_path / "saved")
    for each in (pruned, fxprune.load(tmp_path / "saved")):
        each.train()
        assert each.training
        assert each.get_submodule("a").training
        assert not each.get_submodule("norm").training
        assert torch.equal(each(x := torch.randn(4, 6)), each.eval()(x))


class Function(nn.BatchNorm1d):
    """Calls the function by itself: ``how`` gives the arguments behind the input."""

    def __init__(self, how: Any) -> None:
        super().__init__(12)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, *self.how(self))


class Apart(nn.Module):
    """A batch norm of the user's, which is no class of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.randn(12))
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("var", torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training)


class Asleep(nn.Sequential):
    """Puts its norm to rest in each call."""

    def forward(self, x: Tensor) -> Tensor:
        self[0].eval()
        return super().forward(x)


NORMS: dict[str, Any] = {
    "never over the batch": lambda: Function(lambda m: (m.running_mean, m.running_var, m.weight, m.bias, False)),
    "always over the batch": lambda: Function(lambda m: (None, None, m.weight, m.bias, True, 0.0)),
    "of another momentum": lambda: Function(
        lambda m: (m.running_mean, m.running_var, m.weight, m.bias, m.training, 0.5)
    ),
    "put to rest": lambda: Asleep(nn.BatchNorm1d(12)),
    "of a cumulative average": lambda: nn.BatchNorm1d(12, momentum=None),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_train_as_they_are_called(norm: str) -> None:
    """Outputs, gradients and buffers of a step of training, and the outputs after it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), NORMS[norm](), nn.ReLU(), nn.Linear(12, 3)).double().eval()
    x = torch.randn(8, 6, dtype=torch.float64)
    pruned = fxprune.compile(model, [x], ratios=0.0, recover=None, progress=False)
    assert fxprune.report(pruned).notes == ()
    found = [step(each, (x,)) for each in (model, pruned)]
    torch.testing.assert_close(found[1].outputs, found[0].outputs)
    torch.testing.assert_close(found[1].gradients, {name: found[0].gradients[name] for name in found[1].gradients})
    counted = [
        name for name in found[1].buffers if not name.endswith("num_batches_tracked")
    ]  # a call of a function does not
    torch.testing.assert_close(*({name: each.buffers[name] for name in counted} for each in found))
    torch.testing.assert_close(pruned(x), model.eval()(x))


SCALED = Function(lambda m: (m.running_mean, m.running_var, m.weight.abs() + 1, m.bias, m.training))


@pytest.mark.parametrize("norm", [Apart(), SCALED], ids=["a class of the user's", "a computed gain"])
def test_norms_that_no_layer_of_torch_does_are_told(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 12), copy.deepcopy(norm), nn.ReLU(), nn.Linear(12, 3)).eval()
    with pytest.warns(fxprune.TrainingWarning, match="norms of '1' are over the batch in training mode"):
        fxprune.compile(model, [torch.randn(8, 6)], 0.6, recover=None, progress=False)


class Freezing(nn.Sequential):
    def train(self, mode: bool = True) -> Freezing:
        super().train(mode)
        self[0].requires_grad_(not mode)
        return self


def test_a_train_that_freezes_parameters_is_told_and_leaves_them() -> None:
    model = Freezing(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    captured = capture(model, (torch.randn(4, 6),))
    assert "train() of the model freezes '0.bias', '0.weight'" in captured.notes[0]
    assert all(parameter.requires_grad for parameter in model.parameters())


def _drawn(module: nn.Module, args: Any) -> None:
    if module.training:
        module.weight.data.mul_(torch.rand(()))


HIDDEN: dict[str, Any] = {
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "a hook of the user's": lambda layer: layer.register_forward_pre_hook(_drawn) and layer,
}


@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_hooks_and_parametrizations_do_in_training_alone_is_warned_of(hidden: str) -> None:
    model = nn.Sequential(HIDDEN[hidden](nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3)).eval()
    with pytest.warns(fxprune.TrainingWarning, match="in training mode alone"):
        fxprune.compile(model, [torch.randn(5, 6)], 0.6, recover=None, progress=False)


@pytest.mark.parametrize("hidden", [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.orthogonal])
def test_parametrizations_that_do_the_same_in_both_modes_are_no_matter(hidden: Any) -> None:
    model = nn.Sequential(hidden(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3)).eval()
    assert capture(model, (torch.randn(5, 6),)).warned == ()


def images(size: int = 32) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


def ids() -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (2, 8)),)


def torchvisions(name: str) -> Any:
    return lambda: getattr(torchvision.models, name)(weights=None)


PLAIN: dict[str, Any] = {
    **{name: (lambda build=build: build().double(), example) for name, (build, example) in NETWORKS.items()},
    "resnet": (torchvisions("resnet18"), images),
    "mobilenet": (torchvisions("mobilenet_v3_small"), images),
    "densenet": (torchvisions("densenet121"), images),
    "efficientnet": (torchvisions("efficientnet_b0"), images),
    "vit": (lambda: vit(dropout=0.1, attention_dropout=0.1), lambda: images(16)),
    "swin": (lambda: swin(stochastic_depth_prob=0.2), images),
    "bert": (lambda: transformer("BertModel"), ids),
    "llama": (lambda: transformer("LlamaForCausalLM"), ids),
    "gpt2": (lambda: transformer("GPT2LMHeadModel"), ids),
    "layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True),
        lambda: (torch.randn(2, 5, 8),),
    ),
}


@pytest.mark.parametrize("name", but_slow(PLAIN, quick=("mobile", "vit", "bert", "layer")))
def test_nothing_is_said_of_plain_models(name: str) -> None:
    build, example = PLAIN[name]
    assert capture(build(), example()).notes == ()


@pytest.mark.slow
def test_auxiliary_heads_are_told_once() -> None:
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    notes = capture(model, images(64), dynamic_shapes={}).notes
    assert [note for note in notes if "aux" in note] == [
        "'aux1', 'aux2' of the model work in training mode alone: the result does not have them"
    ]
    assert "a GoogLeNetOutputs of 3 in training mode" in notes[0]


def test_a_forward_that_freezes_parameters_is_told_and_leaves_them() -> None:
    model = Branch(lambda m, h: m.aux.requires_grad_(False)(h) + m.o(h)).eval()
    with pytest.warns(fxprune.TrainingWarning, match=r"changes requires_grad of 'aux.bias', 'aux.weight'"):
        fxprune.compile(model, [torch.randn(5, 6)], 0.6, recover=None, progress=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
