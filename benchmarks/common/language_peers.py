"""Published ways to make a language model smaller without training, written from their papers, on a LLaMA of transformers.

FLAP (arXiv 2312.11983), LLM-Pruner's Taylor criterion (arXiv 2305.11627), SliceGPT (arXiv 2401.15024), ShortGPT (arXiv 2403.03853),
and Torch-Pruning as its example for language models uses it. Each takes a model, texts ``[sequences, length]`` and the share of
the decoder layers' parameters that goes, and returns a copy of which at most the rest is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: LLM-Pruner spares the first four and the last of LLaMA-7B's 32 layers; these are as many of 30.
_SPARED = (4, 1)


def decoder_size(model: Any) -> int:
    """Returns the number of parameters of the decoder layers."""
    return sum(p.numel() for p in model.model.layers.parameters())


def flap(model: Any, texts: Tensor, share: float) -> Any:
    """FLAP on the MLPs: the variance of what a unit adds, standardised within its layer, one ranking; the means go into a bias."""
    model = copy.deepcopy(model)
    means, scores = [], []
    for layer, inputs in _read(model, texts, [layer.mlp.down_proj for layer in model.model.layers]):
        means.append(inputs.mean)
        fluctuation = inputs.variance * layer.weight.detach().double().square().sum(0)
        scores.append((fluctuation - fluctuation.mean()) / fluctuation.std())
    biases = sum(layer.mlp.down_proj.out_features for layer in model.model.layers) / decoder_size(model)
    for layer, mean, kept in zip(model.model.layers, means, _lowest_gone(model, scores, share + biases), strict=True):
        down = layer.mlp.down_proj
        lost = down.weight.detach().double() @ torch.where(kept, 0.0, mean)
        _cut(layer.mlp, kept)
        layer.mlp.down_proj.bias = nn.Parameter(lost.to(down.weight.dtype))
    return model


def taylor(model: Any, texts: Tensor, share: float) -> Any:
    """LLM-Pruner on the MLPs: first-order importance of a unit's weights, the same share of each layer, those at the ends spared."""
    model = copy.deepcopy(model)
    for ids in texts.split(2):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    layers = model.model.layers
    first, last = (min(count, len(layers) // 4) for count in _SPARED)
    scores = []
    for place, layer in enumerate(layers):
        mlp = layer.mlp
        rows = [(w.weight * w.weight.grad).abs().sum(dim) for w, dim in _units(mlp)]
        order = torch.stack(rows).sum(0).double().argsort().argsort() / len(rows[0])
        scores.append(order if first <= place < len(layers) - last else order + 1)
    model.zero_grad(set_to_none=True)
    for layer, kept in zip(layers, _lowest_gone(model, scores, share), strict=True):
        _cut(layer.mlp, kept)
    return model


def shortgpt(model: Any, texts: Tensor, share: float) -> Any:
    """ShortGPT: the layers that turn the stream least go; the influence of a block is one minus the cosine of its ends."""
    model = copy.deepcopy(model)
    layers = list(model.model.layers)
    influence = torch.zeros(len(layers), dtype=torch.float64)

    def note(place: int) -> Callable[..., None]:
        def hook(_: Any, inputs: Any, output: Tensor) -> None:
            influence[place] += (1 - functional.cosine_similarity(inputs[0], output, dim=-1)).double().sum()

        return hook

    handles = [layer.register_forward_hook(note(place)) for place, layer in enumerate(layers)]
    _run(model, texts)
    for handle in handles:
        handle.remove()
    sizes = torch.tensor([sum(p.numel() for p in layer.parameters()) for layer in layers]).double()
    order = influence.argsort()
    gone = int((sizes[order].cumsum(0) < share * sizes.sum() * (1 - 1e-9)).sum()) + 1
    keep = sorted(order[gone:].tolist())
    model.model.layers = nn.ModuleList(layers[place] for place in keep)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(keep)
    return model


class _Norm(nn.Module):
    """RMSNorm without a gain, of a stream cut short: the mean is over as many coordinates as there were."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / self.size + self.eps)


class _Sliced(nn.Module):
    """A decoder layer each half of which has a basis of its own; the skip connections change it."""

    def __init__(self, layer: nn.Module, size: int, bases: Sequence[Tensor]) -> None:
        super().__init__()
        self.norm = _Norm(size, layer.input_layernorm.variance_epsilon)
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.attention_type = getattr(layer, "attention_type", "full_attention")
        before, between, after = bases
        like = layer.mlp.down_proj.weight
        for into in _linears(layer.self_attn, "q_proj", "k_proj", "v_proj"):
            into.weight = nn.Parameter((into.weight.double() @ before).to(like.dtype))
        for into in _linears(layer.mlp, "gate_proj", "up_proj"):
            into.weight = nn.Parameter((into.weight.double() @ between).to(like.dtype))
        for out, basis in ((layer.self_attn.o_proj, between), (layer.mlp.down_proj, after)):
            out.weight = nn.Parameter((basis.T @ out.weight.double()).to(like.dtype))
        self.skips = nn.ParameterList(
            nn.Parameter((one.T @ other).to(like.dtype)) for one, other in ((before, between), (between, after))
        )

    def forward(self, hidden_states: Tensor, **given: Any) -> Tensor:
        read, _ = self.self_attn(hidden_states=self.norm(hidden_states), **given)
        between = hidden_states @ self.skips[0] + read
        out: Tensor = between @ self.skips[1] + self.mlp(self.norm(between))
        return out


@torch.no_grad()
def slicegpt(model: Any, texts: Tensor, share: float = 0.0, width: int | None = None) -> Any:
    """SliceGPT: the stream in the principal components before each half of a layer, found layer after layer in the model as it is cut.

    A width of the stream may be given instead of the share.
    """
    model = copy.deepcopy(model)
    size, layers = model.config.hidden_size, model.model.layers
    whole, shortcuts = decoder_size(model), 2 * len(layers)
    free = whole - sum(p.numel() for layer in layers for p in (layer.input_layernorm, layer.post_attention_layernorm) for p in p.parameters())  # fmt: skip
    width = width or max(w for w in range(1, size + 1) if free * w / size + shortcuts * w**2 <= (1 - share) * whole)
    for layer in layers:
        _fold(layer.input_layernorm, _linears(layer.self_attn, "q_proj", "k_proj", "v_proj"))
        _fold(layer.post_attention_layernorm, _linears(layer.mlp, "gate_proj", "up_proj"))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # no longer tied
    _fold(model.model.norm, [model.lm_head])
    stream = [model.model.embed_tokens(ids) for ids in texts.split(2)]
    basis = _components(stream, width)
    model.model.embed_tokens.weight = nn.Parameter((model.model.embed_tokens.weight.double() @ basis).to(stream[0]))
    stream = [(x.double() @ basis).to(x) for x in stream]
    for place, layer in enumerate(layers):
        # in the dense halves, fed with what the cut ones are, lifted back
        lifted = [(x.double() @ basis.T).to(x) for x in stream]
        middle = [x + layer.self_attn(layer.input_layernorm(x), **_positions(model, x))[0] for x in lifted]
        between = _components(middle, width)
        middle = [(x.double() @ between @ between.T).to(x) for x in middle]
        after = _components([x + layer.mlp(layer.post_attention_layernorm(x)) for x in middle], width)
        layers[place] = _Sliced(layer, size, (basis, between, after))
        stream = [_through(model, layers[place], x) for x in stream]
        basis = after
    model.model.norm = _Norm(size, model.config.rms_norm_eps)
    model.lm_head.weight = nn.Parameter((model.lm_head.weight.double() @ basis).to(stream[0]))
    return model


def torch_pruning(model: Any, texts: Tensor, share: float) -> Any:
    """Torch-Pruning's example: magnitudes of groups, the stream and the MLPs by one ratio, which is searched for.

    As it stands the example fails where several queries share a key (1.6.1: "shape '[6, -1]' is invalid"), so that heads stay.
    """
    import torch_pruning as tp

    whole, low, high, best = decoder_size(model), 0.0, 1.0, None
    for _ in range(10):
        ratio = (low + high) / 2
        made = copy.deepcopy(model)
        made.config.use_cache = False
        made.lm_head.weight = nn.Parameter(made.lm_head.weight.detach().clone())
        stay = [part for layer in made.model.layers for part in _linears(layer.self_attn, "q_proj", "k_proj", "v_proj")]
        pruner = tp.pruner.BasePruner(
            made,
            texts[:1, :16],
            importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            pruning_ratio=ratio,
            ignored_layers=[made.lm_head, *stay],
        )
        pruner.step()
        made.config.hidden_size = made.lm_head.in_features
        if decoder_size(made) <= (1 - share) * whole:
            high, best = ratio, made
        else:
            low = ratio
    if best is None:
        raise RuntimeError("no ratio reaches the share")
    return best


PEERS: dict[str, Callable[[Any, Tensor, float], Any]] = {
    "FLAP": flap,
    "LLM-Pruner, Taylor": taylor,
    "SliceGPT": slicegpt,
    "ShortGPT": shortgpt,
    "Torch-Pruning": torch_pruning,
}


class _Inputs:
    """The mean and the variance of what a layer reads, ``[columns]``, float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def __call__(self, _: Any, inputs: Any) -> None:
        x = inputs[0].detach().flatten(0, -2).double()
        self.count += len(x)
        self.total, self.squares = self.total + x.sum(0), self.squares + x.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.total / self.count)

    @property
    def variance(self) -> Tensor:
        return torch.as_tensor(self.squares / self.count) - self.mean.square()


def _read(model: Any, texts: Tensor, layers: Sequence[nn.Linear]) -> Iterator[tuple[nn.Linear, _Inputs]]:
    """Yields layers with what they read of the texts."""
    inputs = [_Inputs() for _ in layers]
    handles = [layer.register_forward_pre_hook(own) for layer, own in zip(layers, inputs, strict=True)]
    _run(model, texts)
    for handle in handles:
        handle.remove()
    return zip(layers, inputs, strict=True)


@torch.no_grad()
def _run(model: Any, texts: Tensor) -> None:
    for ids in texts.split(2):
        model.model(input_ids=ids, use_cache=False)


def _lowest_gone(model: Any, scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Returns which MLP units stay, ``[units]`` a layer, once the lowest of all make up a share of the decoder's parameters."""
    each = 3 * model.config.hidden_size
    gone = -int(-share * decoder_size(model) // each)
    limit = torch.cat(list(scores)).sort().values[gone - 1]
    return [score > limit for score in scores]


def _units(mlp: Any) -> list[tuple[nn.Linear, int]]:
    """Returns the layers that a unit lies on, each with the dimension to sum over."""
    return [(mlp.gate_proj, 1), (mlp.up_proj, 1), (mlp.down_proj, 0)]


def _cut(mlp: Any, kept: Tensor) -> None:
    for name, rows in (("gate_proj", True), ("up_proj", True), ("down_proj", False)):
        weight = getattr(mlp, name).weight.detach()
        weight = weight[kept] if rows else weight[:, kept]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.clone())
        setattr(mlp, name, layer)


def _linears(module: Any, *names: str) -> list[nn.Linear]:
    return [getattr(module, name) for name in names]


def _fold(norm: Any, readers: Sequence[nn.Linear]) -> None:
    for reader in readers:
        reader.weight = nn.Parameter((reader.weight.double() * norm.weight.double()).to(reader.weight.dtype))
    norm.weight = nn.Parameter(torch.ones_like(norm.weight))


def _components(values: Sequence[Tensor], width: int) -> Tensor:
    """Returns the directions that carry most of some values, ``[size, width]``, float64."""
    flat = [x.flatten(0, -2).double() for x in values]
    return torch.linalg.eigh(sum(x.T @ x for x in flat)).eigenvectors.flip(1)[:, :width]


def _positions(model: Any, x: Tensor) -> dict[str, Any]:
    """Returns what a decoder layer takes beside the stream."""
    ids = torch.arange(x.shape[1])[None]
    return {"position_embeddings": model.model.rotary_emb(x, ids), "position_ids": ids, "attention_mask": None}


def _through(model: Any, layer: nn.Module, x: Tensor) -> Tensor:
    """Returns the stream behind a layer."""
    out: Tensor = layer(x, **_positions(model, x))
    return out
