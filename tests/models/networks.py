"""Whole networks, drawn by Hypothesis: plain data with a repr that builds the network again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.models import blocks_image as image
from tests.models import blocks_rare as rare
from tests.models import blocks_tokens as tokens
from tests.models.blocks_image import Block, Chain, Spec

SIZE = 6  # height and width of images
LENGTH = 6  # tokens
VOCABULARY = 11
KINDS = ("image", "tokens", "ids")
RARE = ("rare image", "rare tokens")


@dataclass(frozen=True)
class Network:
    """A stem, blocks and a head.

    Attributes:
        kind: image, tokens (features of each token) or ids (embedded).
        width: channels after the stem.
        blocks: what comes after it.
        head: pool, flatten, map, max (images); mean, first, flatten, all, max, tied (tokens).
        inputs: one, add, cat (a second input beside the first), film (a vector that scales channels).
        outputs: tensor, tuple (the second of the features), dict (two heads).
    """

    kind: str
    width: int
    blocks: tuple[Spec, ...]
    head: str = "pool"
    inputs: str = "one"
    outputs: str = "tensor"

    def build(self) -> nn.Module:
        """Returns the network, in float64 and evaluation mode."""
        return Net(self).double().eval()

    def example(self, batch: int, seed: int = 0, more: int = 0) -> tuple[Tensor, ...]:
        """Returns random inputs, ``more`` longer or wider than those that the network is made for."""
        generator = torch.Generator().manual_seed(seed)

        def one() -> Tensor:
            if self.kind == "ids":
                return torch.randint(VOCABULARY, (batch, LENGTH + more), generator=generator)
            shape = (batch, 3, SIZE, SIZE + more) if self.kind == "image" else (batch, LENGTH + more, 5)
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        if self.inputs == "one":
            return (one(),)
        if self.inputs == "film":
            return one(), torch.randn(batch, 4, generator=generator, dtype=torch.float64)
        return one(), one()

    def zeros(self) -> bool:
        """Returns whether a unit that is gone is to the network as if all its weights were zero, in gradients as well."""
        within = [block for spec in self.blocks for block in spec.within()]
        mixed = any(isinstance(block, tokens.MixTokens) and block.how == "linear" for block in within)
        filled = mixed and (
            len(within) > 1 or self.head == "max"
        )  # a bias fills tokens that go, or a zero is the largest
        steps = any(isinstance(block, rare.Gradient) and block.how == "sign" for block in within)
        ties = steps and self.head == "max"  # whose gradient rounding gives to one, or shares
        held = any(isinstance(b, tokens.Position) and b.how == "buffer" for b in within)  # which no plan names
        seen = held and any(isinstance(b, tokens.TokenNorm) and b.kind == "manual" for b in within)
        return all(block.zeros() for block in within) and not filled and not ties and not seen

    def tolerance(self) -> float:
        """Returns how much rounding there may be: parts may work in less than float64."""
        return max(block.rounding for spec in self.blocks for block in spec.within())

    def kinds(self) -> Iterator[str]:
        """Yields the kinds of all blocks, head, inputs and outputs."""
        for block in self.blocks:
            yield from block.kinds()
        yield f"head: {self.head}"
        if self.inputs != "one":
            yield f"inputs: {self.inputs}"
        if self.outputs != "tensor":
            yield f"outputs: {self.outputs}"


class Net(nn.Module):
    """The network that a `Network` describes."""

    def __init__(self, spec: Network) -> None:
        super().__init__()
        self.spec = spec
        self.stem, self.stem2 = self._stem(spec), self._stem(spec) if spec.inputs in ("add", "cat") else None
        width = spec.width * (2 if spec.inputs == "cat" else 1)
        self.image = spec.kind == "image"
        if spec.inputs == "film":
            self.film = nn.Linear(4, width)
        shape = (2, width, SIZE, SIZE) if self.image else (2, LENGTH, width)
        self.chain = Chain(spec.blocks, shape)
        self.axis = 1 if self.image else -1
        channels = self.chain.shape[self.axis]
        if spec.head == "flatten":
            self.head = nn.Linear(
                self.chain.shape[1] * self.chain.shape[2] * (self.chain.shape[3] if self.image else 1), 3
            )
        elif spec.head == "map":
            self.head = nn.Conv2d(channels, 3, 1)
        elif spec.head == "tied":
            self.before = nn.Linear(channels, spec.width)
        else:
            self.head = nn.Linear(channels, 3)
        if spec.outputs == "dict":
            self.other = nn.Linear(channels, 2)

    def _stem(self, spec: Network) -> nn.Module:
        if spec.kind == "image":
            return nn.Conv2d(3, spec.width, 3, padding=1)
        return nn.Embedding(VOCABULARY, spec.width) if spec.kind == "ids" else nn.Linear(5, spec.width)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.spec.inputs == "film":
            scale = self.film(y)
            x = x * (scale[:, :, None, None] if self.image else scale[:, None])
        elif y is not None:
            other = self.stem2(y)
            x = x + other if self.spec.inputs == "add" else torch.cat([x, other], self.axis)
        x = self.chain(x)
        out = self._out(x)
        if self.spec.outputs == "tuple":
            return out, x
        if self.spec.outputs == "dict":
            return {"out": out, "other": self.other(x.amax((2, 3)) if self.image else x.mean(1))}
        return out

    def _out(self, x: Tensor) -> Tensor:
        head = self.spec.head
        if head == "flatten":
            return self.head(x.flatten(1))
        if head == "tied":
            return nn.functional.linear(self.before(x), self.stem.weight)
        if head == "first":
            return self.head(x[:, 0])
        if head in ("pool", "mean"):
            return self.head(x.mean((2, 3)) if self.image else x.mean(1))
        if head == "max":
            return self.head(x.amax((2, 3)) if self.image else x.amax(1))
        return self.head(x)


def expected_units(model: nn.Module) -> dict[str, int]:
    """Returns the layers inside blocks with the number of units that must be found on their output axis."""
    return {
        f"{name}.{layer}": count
        for name, module in model.named_modules()
        if isinstance(module, Block)
        for layer, count in module.spec.expected(module).items()
    }


# -- strategies -----------------------------------------------------------------------------------------------------

pick = st.sampled_from
flag = st.booleans()
widths = pick((4, 6, 8, 12, 5, 16))
groups = pick((1, 2, 4, 3))
acts = pick(("relu", "gelu", "silu", "tanh", "none"))
norms = pick(image.NORMS)
token_norms = pick(tokens.TOKEN_NORMS)
some_widths = st.lists(pick((3, 4, 6)), min_size=1, max_size=3).map(tuple)

attentions = st.builds(
    tokens.Attention,
    heads=pick((2, 4, 3, 1)),
    kv_heads=pick((2, 1, 4)),
    size=pick((4, 2, 3)),
    how=pick(("sdpa", "matmul", "einsum", "bmm")),
    qkv=pick(("separate", "chunk", "unbind", "select", "split")),
    repeat=pick(("interleave", "expand", "native")),
    causal=flag,
    rotary=flag,
    normed=flag,
)
token_leaves = st.one_of(
    attentions,
    st.builds(
        tokens.Mlp, hidden=widths, gate=pick(("none", "glu", "chunk", "swiglu")), act=acts, out=pick((0, 0, 6, 8))
    ),
    st.builds(tokens.Mha, heads=pick((2, 4)), weights=flag),
    st.builds(tokens.Encoder, heads=pick((2, 4)), hidden=pick((4, 6)), norm_first=flag),
    st.builds(tokens.TokenNorm, kind=token_norms),
    st.builds(tokens.MixTokens, hidden=pick((4, 5)), how=pick(("linear", "depthwise", "conv"))),
    st.builds(tokens.Position, how=pick(("parameter", "table", "buffer"))),
    st.builds(tokens.Windows, heads=pick((2, 1, 3)), shift=flag),
    st.builds(tokens.TokenTwice, how=pick(("shared", "tied", "transposed")), hidden=pick((4, 6))),
    st.builds(tokens.Experts, count=pick((2, 3)), out=pick((4, 6)), how=pick(("einsum", "stack"))),
    st.builds(tokens.TokenSplit, how=pick(("chunk", "slice", "repeat", "pool"))),
    st.builds(tokens.Learned, how=pick(("queries", "bias", "token"))),
    st.builds(tokens.LinearAttention, heads=pick((2, 3, 1)), causal=flag),
    st.builds(
        tokens.Derived,
        out=pick((4, 6)),
        how=pick(("lowrank", "lora", "masked", "addmm", "grouped", "outer", "weightnorm", "stacked")),
    ),
    st.builds(
        tokens.Reduced,
        how=pick(
            (
                "l2",
                "softmax",
                "standard",
                "amax",
                "logsumexp",
                "cumsum",
                "sort",
                "argmax",
                "where",
                "flip",
                "roll",
                "picked",
            )
        ),
    ),
)
token_blocks = st.one_of(
    token_leaves,
    attentions,
    st.builds(
        tokens.TokenResidual,
        body=st.lists(token_leaves, min_size=1, max_size=2).map(tuple),
        norm=token_norms,
        scaled=flag,
    ),
)
image_leaves = st.one_of(
    st.builds(
        image.Conv, out=widths, kernel=pick((3, 1)), groups=groups, norm=norms, act=acts, bias=flag, transposed=flag
    ),
    st.builds(image.Depthwise, multiplier=pick((1, 2)), transposed=flag, norm=norms),
    st.builds(image.Standardised, out=widths, groups=groups),
    st.builds(image.Blur),
    st.builds(image.Branches, widths=some_widths, join=pick(("cat", "sum", "stack", "mul")), pooled=flag),
    st.builds(
        image.Split,
        how=pick(("chunk", "split", "slice", "step", "unbind", "tensor_split")),
        join=pick(("cat", "swap", "add", "mul")),
        work=flag,
    ),
    st.builds(image.Shuffle, groups=pick((2, 4, 3)), how=pick(("view", "native"))),
    st.builds(image.SqueezeExcite, hidden=pick((3, 4)), linear=flag, gate=pick(("sigmoid", "tanh"))),
    st.builds(image.Pixel, up_first=flag, manual=flag, width=pick((2, 3))),
    st.builds(image.Norm, kind=norms),
    st.builds(image.Pool, how=pick(("max", "avg", "adaptive", "nearest", "bilinear"))),
    st.builds(image.Twice, how=pick(("shared", "tied", "norm")), act=acts),
    st.builds(image.InPlace, how=pick(("relu", "add", "mul", "clamp", "view", "module"))),
    st.builds(image.Buffered, how=pick(("persistent", "transient", "parameter")), op=pick(("mul", "add"))),
    st.builds(image.Gate, out=widths, how=pick(("glu", "chunk"))),
    st.builds(image.Einsum, out=widths),
    st.builds(image.Resize, how=pick(("stride", "max", "up", "half", "subsample"))),
    st.builds(
        image.Odd,
        how=pick(("unfold", "conv3d", "maxout", "fold", "drop", "permuted", "prelu", "gram", "group_mean", "padded")),
    ),
)
image_blocks = st.one_of(
    image_leaves,
    st.builds(image.Dense, growths=some_widths, act=acts),
    st.builds(
        image.Residual,
        body=st.lists(image_leaves, min_size=1, max_size=2).map(tuple),
        skip=pick(("identity", "project", "pad", "half")),
        out=widths,
        inplace=flag,
        act=acts,
        norm=norms,
    ),
    st.builds(image.AsTokens, body=st.lists(token_blocks, min_size=1, max_size=2).map(tuple)),
)
made = st.builds(
    rare.Made,
    how=pick(("weight", "rows", "old", "spectral", "orthogonal", "masked", "structured", "positive", "symmetric")),
    conv=flag,
)
averages = st.builds(rare.Average, how=pick(("gate", "sum", "centre", "power", "l2", "variance")))
rare_tokens = st.one_of(
    st.builds(rare.Recurrent, how=pick(("LSTM", "GRU", "RNN")), layers=pick((1, 1, 2)), both=flag, last=flag),
    st.builds(rare.Cell, how=pick(("lstm", "gru", "plain")), joined=flag),
    st.builds(
        rare.Nodes,
        how=pick(("index_add", "scatter_add", "scatter_mean", "gather", "index_put", "index_copy", "masked", "dense")),
    ),
    st.builds(rare.Fourier, how=pick(("real", "complex", "fnet", "modes", "short"))),
    st.builds(rare.Complex, how=pick(("abs", "parts"))),
    st.builds(rare.Layout, text=pick(rare.LAYOUTS)),
    st.builds(rare.Pair, same=flag),
    st.builds(
        rare.Gradient,
        how=pick(("detach", "gate", "no_grad", "frozen", "checkpoint", "sign", "reversed", "scaled", "quantised")),
        act=acts,
    ),
    st.builds(rare.Region, how=pick(("bfloat16", "disabled", "enable_grad"))),
    made,
    averages,
    st.builds(rare.Training, how=pick(("scale", "more", "kept"))),
    st.builds(rare.Vanishing, how=pick(("two", "one", "norm", "scaled"))),
    st.builds(rare.Written, how=pick(("out", "tril", "triu", "slice", "mask", "cumsum"))),
)
rare_images = st.one_of(
    st.builds(rare.Deform, masked=flag), st.builds(rare.Spectrum, how=pick(("real", "modes", "power"))), made, averages
)
stems = pick((6, 8, 12, 4))
inputs = pick(("one", "one", "one", "add", "cat", "film"))
outputs = pick(("tensor", "tensor", "tensor", "tuple", "dict"))


def networks(most: int = 4, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Network]:
    """Returns a strategy for networks of one to ``most`` blocks, of these kinds."""

    def of(kind: str, chain: st.SearchStrategy[tuple[Spec, ...]], heads: tuple[str, ...]) -> st.SearchStrategy[Network]:
        return st.builds(Network, st.just(kind), stems, chain, pick(heads), inputs, outputs)

    def chain(blocks: st.SearchStrategy[Spec]) -> st.SearchStrategy[tuple[Spec, ...]]:
        return st.lists(blocks, min_size=1, max_size=most).map(tuple)

    def among(odd: st.SearchStrategy[Spec], blocks: st.SearchStrategy[Spec]) -> st.SearchStrategy[tuple[Spec, ...]]:
        rest = st.lists(st.one_of(odd, blocks), max_size=most - 1)
        return st.builds(lambda one, others, at: (*others[:at], one, *others[at:]), odd, rest, pick((0, 1)))

    image_heads, token_heads = ("pool", "flatten", "map", "max"), ("mean", "first", "flatten", "all", "max")
    found = {
        "image": lambda: of("image", chain(image_blocks), image_heads),
        "tokens": lambda: of("tokens", chain(token_blocks), token_heads),
        "ids": lambda: of("ids", chain(token_blocks), (*token_heads, "tied")),
        "rare image": lambda: of("image", among(rare_images, image_blocks), image_heads),
        "rare tokens": lambda: of("tokens", among(rare_tokens, token_blocks), token_heads),
    }
    return st.one_of(*(found[kind]() for kind in kinds))
