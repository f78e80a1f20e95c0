"""Rotation: an equal model in another basis, for whatever commutes with one; principal components go last."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.rotation.bases import drawn, principal
from tests.models.fn import Fn

Call = tuple[tuple[Any, ...], dict[str, Any]]


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Returns the model in double precision with gains, biases and statistics that do something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=draw)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=draw)
            elif name.endswith("running_mean"):
                buffer += 0.2 * torch.randn(buffer.shape, generator=draw)
    return model.double().eval()


def images(count: int = 3, size: int = 32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, size, size, generator=draw, dtype=torch.float64) for _ in range(count)]


def tokens(count: int = 3) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(60, (4, 12), generator=draw)} for _ in range(count)]


def vectors(count: int = 3, width: int = 6) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(16, width, generator=draw, dtype=torch.float64) for _ in range(count)]


def of_transformers(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('Model').removesuffix('LMHead')}Config")
        return getattr(transformers, kind)(config(**settings))  # type: ignore[no-any-return]

    return make


_LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5)


def bottlenecks() -> nn.Module:
    from torchvision.models import MobileNetV2

    return MobileNetV2(num_classes=5, inverted_residual_setting=[[1, 16, 1, 1], [2, 24, 2, 2]])


#: What rotates, its data, and how many streams it has; benchmarks/rotation.py has more.
ROTATE: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]], int]] = {
    "llama": (of_transformers("LlamaForCausalLM", tie_word_embeddings=True, **_LLAMA), tokens, 1),
    "vit": (vit, images, 1),
    "bottlenecks": (bottlenecks, images, 2),
}


@pytest.mark.parametrize("name", ROTATE)
def test_the_model_stays_the_same(name: str) -> None:
    make, data, streams = ROTATE[name]
    torch.manual_seed(0)
    model, batches = shaken(make()), data()
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.TrainingWarning)
        found = fxprune.rotate(model, batches, dynamic_shapes={})
    assert type(found) is type(model) and found is not model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    draw = torch.Generator().manual_seed(5)
    for batch in batches:
        call = {key: torch.randint(60, (2, 9), generator=draw) for key in batch} if isinstance(batch, dict) else None
        other = torch.randn(2, *batch.shape[1:], generator=draw, dtype=torch.float64) if call is None else None
        with torch.no_grad():
            a, b = (m(other) if call is None else m(**call).logits for m in (model, found))
        assert (a - b).abs().max() <= (1e-5 if name == "llama" else 1e-10) * a.abs().max()  # its norms round to float32
    changed = [name for name, value in found.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert len(changed) >= 2 * streams


@pytest.mark.parametrize(("name", "form"), [("llama", "module"), ("vit", "graph"), ("bottlenecks", "graph")])
def test_compile_takes_the_basis(name: str, form: Any) -> None:
    make, data, _ = ROTATE[name]
    torch.manual_seed(0)
    model = shaken(make())
    pruned = fxprune.compile(model, data(), 0.8, basis="pca", form=form, dynamic_shapes={}, progress=False)
    report = fxprune.report(pruned)
    assert report.verified and report.plan is not None and report.plan.basis == "pca"
    assert report.params[0] == sum(p.numel() for p in model.parameters()) >= report.params[1] / 0.8
    assert any("principal components" in note for note in report.notes)
    with pytest.raises(fxprune.PlanError, match="another basis"):
        fxprune.apply(model, report.plan)


def low_rank(norm: Callable[[Tensor], Tensor]) -> tuple[nn.Module, list[Tensor]]:
    """Returns a network whose stream of 12 channels lives in four directions that are no channel's own, and data."""
    torch.manual_seed(0)
    wide = nn.Linear(6, 12, bias=False)
    directions = torch.linalg.qr(torch.randn(12, 12)).Q[:, :3]
    with torch.no_grad():
        wide.weight.copy_(directions @ torch.randn(3, 6))
    net = Fn(
        lambda m, x: m.out(norm(m.a(x) + m.b(m.a(x)))),
        a=wide,
        b=nn.Sequential(nn.Linear(12, 7, bias=False), nn.ReLU(), nn.Linear(7, 12, bias=False)),
        out=nn.Linear(12, 5),
    )
    with torch.no_grad():
        net.b[2].weight.copy_(directions @ torch.randn(3, 7))
    return net.double().eval(), vectors()


@pytest.mark.parametrize(
    "norm", [lambda x: x, lambda x: F.rms_norm(x, (x.shape[-1],), eps=1e-6)], ids=["linear", "rms"]
)
def test_what_a_stream_does_not_use_goes_for_nothing(norm: Callable[[Tensor], Tensor]) -> None:
    model, batches = low_rank(norm)
    options: dict[str, Any] = {"recover": None, "progress": False, "ignore": ("b.0",)}
    wanted = {"ratios": {"a": 9 / 12, "default": 0.0}}
    turned, plain = (fxprune.compile(model, batches, basis=basis, **wanted, **options) for basis in ("pca", None))
    expected = model(batches[0])
    scale = expected.abs().max()
    assert fxprune.report(turned).params[1] == fxprune.report(plain).params[1] < fxprune.report(plain).params[0]
    assert (turned(batches[0]) - expected).abs().max() < 1e-6 * scale
    assert (plain(batches[0]) - expected).abs().max() > 1e-2 * scale


def test_principal_components_leave_the_least_variance() -> None:
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(9, 9, generator=draw, dtype=torch.float64)
    moments = mixed @ mixed.mT
    basis = principal(moments, keeps_mean=False)
    left = (basis.mT @ moments @ basis).diagonal()
    assert torch.allclose(left, torch.linalg.svdvals(mixed).square(), rtol=1e-9)
    assert torch.allclose(basis.mT @ basis, torch.eye(9, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_a_basis_that_keeps_the_mean_commutes_with_a_layer_norm(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(size, size, generator=draw, dtype=torch.float64)
    x = torch.randn(5, size, generator=draw, dtype=torch.float64)
    for basis in (principal(mixed @ mixed.mT, keeps_mean=True), drawn(size, True, 0, torch.device("cpu"))):
        assert torch.allclose(basis.mT @ basis, torch.eye(size, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(basis.sum(dim=1), torch.ones(size, dtype=torch.float64))
        assert torch.allclose(F.layer_norm(x @ basis, (size,)), F.layer_norm(x, (size,)) @ basis, atol=1e-9)


#: What stands in the way of a stream of 12 channels, and what the error says.
REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "relu": (lambda m, x: m.out(m.a(x).relu()), "relu"),
    "relu after the sum": (lambda m, x: m.out((m.a(x) + m.b(m.a(x))).relu()), "relu"),
    "gate": (lambda m, x: m.out(m.a(x) * m.a(x).sigmoid()), "sigmoid"),
    "largest": (lambda m, x: m.out(m.a(x)) + m.a(x).amax(-1, keepdim=True), "amax"),
    "places": (lambda m, x: m.out(m.a(x)) + m.a(x)[:, 2:3], "among others|slice"),
    "gain beside its skip": (lambda m, x: m.out(F.layer_norm((n := m.norm(m.a(x))) + m.b(n), (12,))), "gain"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_commute_is_named(name: str) -> None:
    forward, what = REFUSED[name]
    model = Fn(
        forward, a=nn.Linear(6, 12), b=nn.Sequential(nn.Linear(12, 12)), norm=nn.LayerNorm(12), out=nn.Linear(12, 5)
    )
    with pytest.raises(fxprune.RotationError, match=what):
        fxprune.rotate(shaken(model), vectors())


#: What does commute, written in other ways.
ALLOWED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "norm written out": lambda m, x: m.out((h := m.a(x)) * (h.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * m.g),
    "gain of one and more": lambda m, x: m.out(F.rms_norm(m.a(x), (12,)) * (1 + m.g)),
    "layer norm written out": lambda m, x: m.out(
        ((h := m.a(x)) - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1)
    ),
    "layer scale": lambda m, x: m.out(F.layer_norm(m.a(x) + m.b(m.a(x)) * m.g, (12,))),
    "square": lambda m, x: m.out(m.a(x) + m.b(m.a(x))),
    "length": lambda m, x: m.out(m.a(x)) + m.a(x).norm(dim=-1, keepdim=True),
    "cosine": lambda m, x: m.out(F.normalize(m.a(x), dim=-1)),
    "gram": lambda m, x: m.a(x) @ m.a(x).mT @ m.out(m.a(x)),
    "positions": lambda m, x: m.out(m.a(x) + m.p[: x.shape[0]]),
    "norm with bias": lambda m, x: m.out(m.norm(m.a(x))),
    "gain before the sum": lambda m, x: m.out((n := m.norm(m.a(x))) + m.b(n)),
    "one norm twice": lambda m, x: m.out(m.norm(m.a(x) + m.b(m.norm(m.a(x))))),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_commutes_is_found_however_it_is_written(name: str) -> None:
    torch.manual_seed(0)
    model = Fn(
        ALLOWED[name],
        a=nn.Linear(6, 12),
        b=nn.Sequential(nn.Linear(12, 12)),
        norm=nn.LayerNorm(12),
        out=nn.Linear(12, 5),
        g=nn.Parameter(torch.rand(12) + 0.5),
        p=nn.Parameter(torch.randn(64, 12)),
    )
    model = shaken(model)
    found = fxprune.rotate(model, vectors(), dynamic_shapes={})
    x = torch.randn(16, 6, dtype=torch.float64)
    a, b = model(x), found(x)
    assert (a - b).abs().max() <= 1e-10 * a.abs().max()
    assert not torch.equal(found.a.weight, model.a.weight)


def test_gains_of_zero_are_taken_over_or_refused() -> None:
    def net() -> Any:
        torch.manual_seed(0)
        return shaken(
            Fn(lambda m, x: m.out(m.norm(m.a(x))), a=nn.Linear(6, 12), norm=nn.LayerNorm(12), out=nn.Linear(12, 5))
        )

    silent, loud = net(), net()
    with torch.no_grad():
        for model in (silent, loud):
            model.norm.weight[3] = 0.0
        silent.norm.bias[3] = 0.0
    x = vectors()[0]
    assert torch.allclose(fxprune.rotate(silent, vectors())(x), silent(x), atol=1e-9)
    with pytest.raises(fxprune.RotationError, match="gain of zero"):
        fxprune.rotate(loud, vectors())


def test_a_tied_head_is_untied_and_says_so_in_its_settings(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model = shaken(ROTATE["llama"][0]()).float()
    found: Any = fxprune.rotate(model, tokens(), dynamic_shapes={})
    assert found.lm_head.weight is not found.model.embed_tokens.weight and model.config.tie_word_embeddings
    found.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens()[0]["input_ids"]
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-4)


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="basis must be None or among pca"):
        fxprune.compile(nn.Linear(3, 3), vectors(width=3), 0.5, basis="ica", progress=False)  # type: ignore[arg-type]


def test_a_program_has_no_tensors_to_turn() -> None:
    model = low_rank(lambda x: x)[0].float()
    program = torch.export.export(model, (vectors()[0].float(),))
    with warnings.catch_warnings(), pytest.raises(TypeError, match="exported program"):
        warnings.simplefilter("ignore")
        fxprune.compile(program, [x.float() for x in vectors()], 0.5, basis="pca", progress=False)


#: What does nothing to values as small as those of the data.
SILENT: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh": lambda h: F.hardtanh(h, -50.0, 50.0),
    "clamp": lambda h: h.clamp(max=100.0),
    "relu of what is positive": lambda h: (h + 100.0).relu() - 100.0,
    "where": lambda h: torch.where(h.abs() > 50.0, h * 0.5, h),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_does_nothing_to_the_data_is_seen_through(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(Fn(lambda m, x: m.out(1.0 * SILENT[name](m.a(x))), a=nn.Linear(6, 12), out=nn.Linear(12, 5)))
    with pytest.raises(fxprune.RotationError):
        fxprune.rotate(model, vectors())


def test_experts_read_a_stream_too() -> None:
    model = of_transformers("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **_LLAMA)
    plain = shaken(model()).float()
    found = fxprune.rotate(plain, tokens(), dynamic_shapes={})
    with torch.no_grad():
        a, b = (m(**tokens()[1]).logits for m in (plain, found))
    assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    assert not torch.equal(found.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def linear(forward: Callable[[Any, Tensor], Tensor], **more: Any) -> Any:
    torch.manual_seed(0)
    return shaken(Fn(forward, a=nn.Linear(6, 12), out=nn.Linear(12, 5), **more))


#: Models whose streams stay, on data that would hide why.
HIDDEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], Tensor]] = {
    "zeros": (lambda m, x: m.out(m.a(x).relu()), torch.zeros(4, 6)),
    "equal places": (lambda m, x: m.out(m.a(x).amax(1)), torch.ones(4, 3, 6)),
    "masked": (
        lambda m, x: m.out(F.leaky_relu(m.norm(m.a(x)).masked_fill((x.sum(-1) > 0)[..., None], -1e30), 0.1)),
        torch.randn(8, 6),
    ),
    "two channels": (lambda m, x: m.out(m.norm2(m.b(x)).cumsum(-1).repeat(1, 6)), torch.randn(8, 6)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_first_batch_does_not_hide_what_an_op_does(name: str) -> None:
    forward, first = HIDDEN[name]
    model = linear(forward, norm=nn.LayerNorm(12), b=nn.Linear(6, 2), norm2=nn.LayerNorm(2))
    with pytest.raises(fxprune.RotationError):
        fxprune.rotate(model, [first.double()])


#: Models of which a stream may or may not turn; either way nothing breaks, and the model is the same.
ODD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "conditions": lambda m, x: m.out(torch.where(m.a(x) > 0, m.a(x), 0.1 * m.a(x))) + m.b(m.c(x)),
    "a gain for each place": lambda m, x: m.out(m.a(x) * m.p[: x.shape[0]]) + m.b(m.c(x)),
    "a gain of a power": lambda m, x: m.out(m.a(x) * m.g.exp()) + m.b(m.c(x)),
    "a gain twice over": lambda m, x: m.out(m.a(x) * (2 * m.g)) + m.b(m.c(x)),
    "a gain for each place and channel": lambda m, x: m.out(m.a(x) * m.q[: x.shape[0]]) + m.b(m.c(x)),
    "complex": lambda m, x: m.out((m.a(x) * (1 + 1j)).real) + m.b(m.c(x)),
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_stream_stops_no_other(name: str) -> None:
    model = linear(
        ODD[name],
        b=nn.Linear(8, 5),
        c=nn.Linear(6, 8),
        g=nn.Parameter(torch.rand(12)),
        p=nn.Parameter(torch.rand(16, 1)),
        q=nn.Parameter(torch.rand(16, 12)),
    )
    x, found = torch.randn(16, 6, dtype=torch.float64), fxprune.rotate(model, vectors())
    assert torch.allclose(found(x), model(x), atol=1e-9)
    assert not torch.equal(found.c.weight, model.c.weight)


def test_large_values_are_no_obstacle() -> None:
    model = linear(lambda m, x: m.out(m.a(x))).half()
    found = fxprune.rotate(model, [30 * x.half() for x in vectors()])
    assert torch.allclose(found(vectors()[0].half()).float(), model(vectors()[0].half()).float(), atol=0.05)


def test_buffers_that_are_not_saved_stay() -> None:
    model = linear(lambda m, x: m.out(m.a(x) * m.scale))
    model.register_buffer("scale", torch.tensor(4.0), persistent=False)
    assert fxprune.rotate(model, vectors()).scale == 4.0


def test_layers_that_were_not_seen_are_named() -> None:
    model = linear(lambda m, x: (m.out(m.a(x)), m.b(m.a(x))) if m.further else m.out(m.a(x)), b=nn.Linear(12, 2))
    model.further = False
    with pytest.warns(fxprune.TrainingWarning, match="b.weight takes no part in the forward pass"):
        fxprune.rotate(model, vectors())


def test_batch_norms_that_turn_are_told() -> None:
    model = shaken(bottlenecks())
    with pytest.warns(fxprune.TrainingWarning, match="in training it would normalise directions"):
        fxprune.rotate(model, images(1))


def test_a_sweep_counts_what_the_model_had() -> None:
    model = shaken(ROTATE["llama"][0]()).float()
    found = fxprune.sweep(model, tokens(1), [0.8], "l2", basis="pca", recover=None, progress=False)
    assert found.before.params == sum(p.numel() for p in model.parameters())


class Tied(nn.Module):
    """One tensor under three names, of which two are read, before a gain and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.emb, self.norm = nn.Embedding(11, 12), nn.Embedding(11, 12), nn.RMSNorm(12)
        self.head = nn.Linear(12, 11, bias=False)
        self.emb.weight = self.head.weight = self.shared.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.emb(ids)))  # type: ignore[no-any-return]


def test_a_name_that_nobody_calls_does_not_hold_a_tie_together() -> None:
    torch.manual_seed(0)
    model, ids = shaken(Tied()), torch.randint(11, (4, 6))
    found: Any = fxprune.rotate(model, [ids])
    assert torch.allclose(found(ids), model(ids), atol=1e-9)
    assert found.emb.weight is not found.head.weight


@pytest.mark.parametrize(
    "budget", [fxprune.Budget(params=0.8, latency_ms=1e6), fxprune.Budget(params=0.8, of="*")], ids=["latency", "of"]
)
def test_shares_are_of_the_model_as_it_came(budget: Any) -> None:
    torch.manual_seed(0)
    model, ids = shaken(Tied()).float(), torch.randint(11, (4, 6))
    found = fxprune.compile(model, [ids], budget, basis="pca", allow_bias=True, recover=None, progress=False)
    report, whole = fxprune.report(found), sum(p.numel() for p in model.parameters())
    assert report.plan is not None and report.plan.basis == "pca"
    assert report.params[0] == whole and report.params[1] <= 0.8 * whole
    assert all(f"of {whole:,} parameters" in note for note in report.notes if note.startswith("the budget counts"))


def test_rotate_leaves_no_trace() -> None:
    model = shaken(bottlenecks()).float()
    data = torch.utils.data.DataLoader([x.float() for x in images(1)[0]], batch_size=2, shuffle=True)
    state = torch.get_rng_state()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.TrainingWarning)
        fxprune.rotate(model, data)
    assert torch.equal(torch.get_rng_state(), state)


def test_models_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = Tied()
    with pytest.raises(fxprune.RotationError, match="meta device"):
        fxprune.compile(
            model, [torch.zeros(4, 6, dtype=torch.long)], 0.8, method="random", recover=None, verify=False, basis="pca"
        )


def test_allow_bias_keeps_the_basis_where_every_layer_has_a_bias() -> None:
    model = linear(lambda m, x: m.out(m.a(x)))
    found = fxprune.compile(model, vectors(), 0.8, basis="pca", allow_bias=True, progress=False)
    plan = fxprune.report(found).plan
    assert plan is not None and plan.basis == "pca"
