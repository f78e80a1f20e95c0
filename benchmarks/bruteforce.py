"""Coupling against brute force on small networks: what must go together, found by trying (tests/support/bruteforce/).

Needs no data. ``python benchmarks/bruteforce.py [--quick] [--only NAMES] [--verbose]``
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common.cli import begin, guarded, name_of, parser
from common.results import record
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fxprune.coupling.coupling import Coupling
from tests.models import blocks_image as image
from tests.models import blocks_tokens as tokens
from tests.models import small
from tests.models.fn import Fn
from tests.models.networks import Network
from tests.support.bruteforce.claims import Coordinate, Disagreement, claims_of, compare, network_of
from tests.support.bruteforce.run import carry_out_all
from tests.support.pruning import prepared

Made = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]


def images(*blocks: image.Spec, width: int = 4, head: str = "pool", **options: str) -> Made:
    """Returns a network of image blocks between a convolution and a classifier."""
    return _made(Network("image", width, blocks, head, **options))


def sequence(*blocks: image.Spec, width: int = 4, head: str = "mean", kind: str = "tokens", **options: str) -> Made:
    """Returns a network of token blocks between a linear layer, or an embedding, and a classifier."""
    return _made(Network(kind, width, blocks, head, **options))


def _made(network: Network) -> Made:
    return network.build, lambda: network.example(2)


def function(forward: Callable[..., Any], *shapes: tuple[int, ...], **parts: Any) -> Made:
    """Returns a network of a function and its layers (``(in, out)`` is a linear layer) on inputs of these shapes."""

    def build() -> nn.Module:
        layers = {name: nn.Linear(*part) if isinstance(part, tuple) else part() for name, part in parts.items()}
        return Fn(forward, **layers)

    return build, lambda: tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


ROW, TOKENS, IMAGE = (2, 5), (2, 4, 5), (2, 3, 4, 4)


def _talking(m: Any, x: Tensor) -> Tensor:
    """Attention whose scores are mixed across the heads, before and after the softmax."""
    q, k, v = m.qkv(x).view(2, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
    scores = m.before((q @ k.transpose(2, 3)).permute(0, 2, 3, 1)).softmax(2)
    y = m.after(scores).permute(0, 3, 1, 2) @ v
    return m.o(y.transpose(1, 2).flatten(2))


def _cbam(m: Any, x: Tensor) -> Tensor:
    """A gate for channels from two poolings through one perceptron, then one for places."""
    x = m.stem(x)

    def dense(y: Tensor) -> Tensor:
        return m.up(m.down(y).relu())

    x = x * (dense(x.mean((2, 3))) + dense(x.amax((2, 3)))).sigmoid()[:, :, None, None]
    places = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return m.head((x * m.place(places).sigmoid()).mean((2, 3)))


def _unet(m: Any, x: Tensor) -> Tensor:
    a = m.one(x).relu()
    b = m.two(F.max_pool2d(a, 2)).relu()
    return m.out(m.mix(torch.cat([a, m.up(b)], 1)).relu())


def _merged(m: Any, x: Tensor) -> Tensor:
    """Swin's patch merging: four neighbours side by side, a norm, a linear layer."""
    x = m.stem(x).permute(0, 2, 3, 1)
    x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    return m.head(m.reduce(m.norm(x)).mean((1, 2)))


def _to_depth(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x).view(2, 4, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 16, 2, 2)
    return m.head(m.body(x).mean((2, 3)))


def _interleaved(m: Any, x: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs, written with a stack."""
    q, k, v = (f(x).view(2, 4, 2, 4).transpose(1, 2) for f in (m.q, m.k, m.v))
    angle = torch.arange(4.0, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)

    def turn(y: Tensor) -> Tensor:
        a, b = y.unflatten(-1, (2, 2)).unbind(-1)
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

    y = F.scaled_dot_product_attention(turn(q), turn(k), v)
    return m.o(y.transpose(1, 2).flatten(2))


def _cell(m: Any, x: Tensor) -> Tensor:
    """A GRU's step in a loop, written out."""
    state = x.new_zeros(2, 4)
    for step in x.unbind(1):
        r, z, n = m.inner(step).chunk(3, -1)
        hr, hz, hn = m.outer(state).chunk(3, -1)
        z, n = (z + hz).sigmoid(), (n + (r + hr).sigmoid() * hn).tanh()
        state = (1 - z) * n + z * state
    return m.head(state)


def _cross(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Queries of one input, keys and values of another, four heads on two groups."""
    q = m.q(x).view(2, 4, 4, 2).transpose(1, 2)
    k, v = (f(y).view(2, 4, 2, 2).transpose(1, 2).repeat_interleave(2, 1) for f in (m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _conv(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **options)


NETWORKS: dict[str, Made] = {
    # convolutions
    "perceptron": function(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), ROW, a=(5, 6), b=(6, 4), c=(4, 2)),
    "plain CNN, batch norm": images(image.Conv(6), image.Conv(4, kernel=1)),
    "flatten into a linear layer": images(image.Conv(4), image.Resize("max"), head="flatten"),
    "residual, gate, groups": (small.NETWORKS["residual"][0], small.image),
    "residual blocks": images(image.Residual((image.Conv(4),)), image.Residual((image.Conv(6),), "project", out=6)),
    "bottleneck": images(image.Residual((image.Conv(2, kernel=1), image.Conv(2)), norm="batch")),
    "padded shortcut": images(image.Residual((image.Conv(4),), "pad", out=7)),
    "half a shortcut": images(image.Residual((image.Conv(4),), "half")),
    "inverted residual, shuffle, shared layer": (small.NETWORKS["mobile"][0], small.image),
    "depthwise, multiplier 2": images(image.Depthwise(2), image.Conv(4, kernel=1)),
    "grouped": images(image.Conv(6, groups=2), image.Conv(4, groups=2), width=6),
    "groups of other groups": images(image.Conv(12, groups=2), image.Conv(6, groups=3), width=6),
    "transposed, grouped": images(image.Conv(6, groups=2, transposed=True), image.Resize("up")),
    "dense block": images(image.Dense((3, 2))),
    "branches": images(image.Branches((3, 2, 4), pooled=True), image.Conv(3)),
    "multiplied branches": images(image.Branches((4, 4), "mul"), image.Branches((4, 4), "stack")),
    "channel shuffle": images(image.Conv(6, groups=2), image.Shuffle(2), image.Conv(6, groups=2)),
    "native shuffle": images(image.Conv(6, groups=3), image.Shuffle(3, "native"), image.Conv(4)),
    "pixel shuffle": images(image.Pixel(width=2)),
    "pixel unshuffle first": images(image.Pixel(up_first=False, manual=True, width=2)),
    "squeeze and excitation": images(image.SqueezeExcite(3), image.Conv(4)),
    "gate of channels and places": function(
        _cbam,
        IMAGE,
        stem=_conv(3, 4, 3, padding=1),
        down=(4, 3),
        up=(3, 4),
        place=_conv(2, 1, 3, padding=1),
        head=(4, 2),
    ),
    "U-Net": function(
        _unet,
        IMAGE,
        one=_conv(3, 4, 3, padding=1),
        two=_conv(4, 6, 3, padding=1),
        up=lambda: nn.ConvTranspose2d(6, 3, 2, 2),
        mix=_conv(7, 4, 3, padding=1),
        out=_conv(4, 2, 1),
    ),
    "group norm": images(image.Conv(6, norm="group"), image.Conv(4, norm="one")),
    "instance and layer norm": images(image.Conv(4, norm="tracked"), image.Conv(4, norm="layer")),
    "standardised weights": images(image.Standardised(4, 2), image.Standardised(4)),
    "split, swapped": images(image.Split("split", "swap"), image.Conv(4), width=6),
    "every other channel": images(image.Split("step", "mul"), image.Conv(4), width=6),
    "maxout": images(image.Odd("maxout"), image.Conv(4), width=6),
    "gram matrix": images(image.Odd("gram"), width=3),
    "unfolded": images(image.Odd("unfold")),
    "gated convolution": images(image.Gate(3), image.Gate(3, "chunk")),
    "einsum": images(image.Einsum(4), image.Conv(4)),
    "tied convolutions": images(image.Twice("tied"), image.Buffered("parameter")),
    "two inputs, added": images(image.Conv(4), inputs="add"),
    "two inputs, side by side": images(image.Conv(4), inputs="cat"),
    "a vector scales channels": images(image.Conv(4), inputs="film"),
    "two outputs": images(image.Conv(4), image.Conv(3), outputs="dict"),
    "fused features as an output": images(image.Conv(4), image.Conv(3), outputs="tuple"),
    "space to depth": function(_to_depth, IMAGE, stem=_conv(3, 4, 1), body=_conv(16, 4, 1), head=(4, 2)),
    "patch merging": function(
        _merged, IMAGE, stem=_conv(3, 3, 1), norm=lambda: nn.LayerNorm(12), reduce=(12, 4), head=(4, 2)
    ),
    # tokens
    "grouped queries, gated MLP, tied embedding": (small.NETWORKS["transformer"][0], small.ids),
    "attention": sequence(tokens.Attention(2, 2, 3)),
    "attention written out": sequence(tokens.Attention(2, 2, 2, how="matmul", causal=True, normed=True)),
    "fused qkv, split into three": sequence(tokens.Attention(2, 2, 3, qkv="chunk")),
    "fused qkv, each head its own": sequence(tokens.Attention(2, 2, 2, qkv="select", how="einsum")),
    "heads in the batch": sequence(tokens.Attention(2, 2, 2, qkv="unbind", how="bmm")),
    "grouped queries, native": sequence(tokens.Attention(4, 2, 2, repeat="native")),
    "grouped queries, expanded": sequence(tokens.Attention(4, 2, 2, repeat="expand", qkv="split")),
    "one key for all heads": sequence(tokens.Attention(3, 1, 2, how="matmul")),
    "rotary": sequence(tokens.Attention(2, 2, 4, rotary=True)),
    "rotary of neighbours": function(_interleaved, TOKENS, q=(5, 8), k=(5, 8), v=(5, 8), o=(8, 3)),
    "talking heads": function(_talking, TOKENS, qkv=(5, 18), before=(2, 2), after=(2, 2), o=(6, 3)),
    "cross attention": function(_cross, TOKENS, TOKENS, q=(5, 8), k=(5, 4), v=(5, 4), o=(8, 3)),
    "nn.MultiheadAttention": sequence(tokens.Mha(2)),
    "encoder layer": sequence(tokens.Encoder(2, 4, norm_first=True)),
    "gated MLPs": sequence(tokens.Mlp(4, "swiglu"), tokens.Mlp(3, "glu"), tokens.Mlp(3, "chunk")),
    "windows": sequence(tokens.Windows(2, shift=True)),
    "mixer": sequence(tokens.TokenResidual((tokens.MixTokens(4),)), tokens.TokenResidual((tokens.Mlp(5),))),
    "weights of weights": sequence(
        tokens.Derived("lowrank", 4), tokens.Derived("stacked", 3), tokens.Derived("weightnorm", 4)
    ),
    "outer product": sequence(tokens.Derived("outer", 2)),
    "grouped einsum": sequence(tokens.Derived("grouped")),
    "tied and transposed": sequence(tokens.TokenTwice("transposed", 3), tokens.TokenTwice("tied", 3)),
    "experts": sequence(tokens.Experts(2, 3), tokens.Experts(2, 3, "stack")),
    "learned queries, bias, token": sequence(tokens.Learned("bias"), tokens.Learned("token")),
    "linear attention": sequence(tokens.LinearAttention(2, causal=True)),
    "statistics over channels": sequence(tokens.Reduced("l2"), tokens.Reduced("standard"), tokens.Mlp(3)),
    "softmax over channels": sequence(tokens.Reduced("softmax"), tokens.Mlp(3)),
    "channels in reverse": sequence(tokens.Reduced("flip"), tokens.Mlp(3), tokens.Reduced("roll")),
    "sum so far": sequence(tokens.Reduced("cumsum"), tokens.Mlp(3)),
    "repeated channels": sequence(tokens.TokenSplit("repeat"), tokens.TokenSplit("slice")),
    "embeddings": sequence(tokens.Position("table"), tokens.Mlp(4), kind="ids", head="tied"),
    "positions": sequence(tokens.Position(), tokens.Position("buffer"), tokens.TokenNorm("manual")),
    "LSTM, two layers": function(
        lambda m, x: m.head(m.rnn(x)[0][:, -1]), TOKENS, rnn=lambda: nn.LSTM(5, 3, 2, batch_first=True), head=(3, 2)
    ),
    "GRU, both directions": function(
        lambda m, x: m.head(m.rnn(m.stem(x))[0].mean(0)),
        TOKENS,
        stem=(5, 4),
        head=(6, 2),
        rnn=lambda: nn.GRU(4, 3, bidirectional=True),
    ),
    "a written-out GRU": function(_cell, TOKENS, inner=(5, 12), outer=(4, 12), head=(4, 2)),
    "a square view": function(lambda m, x: m.b(m.a(x).unflatten(1, (3, 3)).sin().flatten(1)), ROW, a=(5, 9), b=(9, 2)),
    "a layer on its own result": function(
        lambda m, x: m.c(m.b(m.b(m.a(x)).relu()).relu()), ROW, a=(5, 4), b=(4, 4), c=(4, 2)
    ),
    "a weight read both ways": function(lambda m, x: m.b(m.a(x).relu() @ m.a.weight), ROW, a=(5, 6), b=(5, 2)),
}


#: Why trying finds more than `couple` offers.
WHY = {
    "padded shortcut": "a padding of one has a size of one, which stays",
    "groups of other groups": "one axis in two factorings, (2 x 6) and (3 x 4)",
    "channel shuffle": "one axis in two factorings, (3 x 2) and (2 x 3)",
    "channels in reverse": "flip and roll keep their axis",
}


def judge(name: str, seed: int = 0) -> tuple[Coupling, Disagreement, int, float]:
    """Returns a network's coupling, where it and trying differ, the cuts that were run, and the seconds it took."""
    build, example = NETWORKS[name]
    torch.manual_seed(seed)
    captured, coupling = prepared(build(), example(), seed)
    began = time.perf_counter()
    network, said = network_of(captured), claims_of(coupling)
    found = compare(network, said)
    cuts = carry_out_all(network, said)
    return coupling, found, cuts, time.perf_counter() - began


def row(name: str, found: Disagreement, cuts: int, seconds: float) -> dict[str, Any]:
    """Returns one line of the table."""
    return {
        "network": name,
        "coordinates": found.coordinates,
        "pairs": found.pairs,
        "units": found.units,
        "cuts run": cuts,
        "wrong": len(found.wrong),
        "missing": len(found.missing),
        "illegal units": len(found.illegal),
        "too coarse": len(found.coarse),
        "frozen though legal": len(found.frozen),
        "options lost": len(found.lost),
        "why": "" if found.agree else WHY.get(name, "?"),
        "s": round(seconds, 2),
    }


def details(coupling: Coupling, found: Disagreement) -> list[str]:
    """Returns what differs, axis by axis."""

    def axis(coordinate: Coordinate) -> str:
        return f"{coordinate[0]}[{coordinate[1]}]"

    reasons = {f"{held.tensor}[{held.dim}]": held.reason for held in coupling.frozen()}
    lines = [f"wrong: {name} {count}" for name, count in Counter(map(axis, found.wrong)).items()]
    for kind in ("missing", "coarse"):
        pairs = Counter((axis(c), axis(d)) for c, d in getattr(found, kind))
        lines += [f"{kind}: {c} takes {d}, {count}" for (c, d), count in pairs.items()]
    said = claims_of(coupling).footprints
    lines += [f"illegal: {sorted(said[channel])}" for channel in found.illegal]
    for name, count in Counter(map(axis, found.frozen)).items():
        lines.append(f"frozen: {name} {count}, {reasons.get(name)}")
    return lines + [f"lost: {name} {count}" for name, count in Counter(map(axis, found.lost)).items()]


NOTES = (
    "Coordinates: of every dimension of more than one of every parameter and persistent buffer. Trying knows no channels: it "
    "asks of each op which coordinates of operands and result must go together (what is only moved about is run on the "
    "numbers of its elements) and looks for cuts that meet all demands and leave something of every value.",
    "Wrong: a unit takes a coordinate that no legal cut takes. Missing: pairs (c, d) where no legal cut takes c and leaves d, "
    "and a unit does. Illegal units: those whose own coordinates are no legal cut.",
    "Too coarse: pairs (c, d) where every unit that takes c takes d, and a legal cut does not. Frozen though legal: "
    "coordinates that no unit takes and a legal cut does. Options lost: coordinates of several units that a legal cut takes "
    "without any of these units whole.",
    "Cuts run: every unit's cut and a small cut of every coordinate, carried out op by op; each op on what is left of its "
    "operands gave what the whole op gave with zeros for what is missing (of statistics the shapes were compared).",
    "One axis in two factorings: what a reshape, a grouped product or a shuffle reads as (3 x 4) and another as (2 x 6) can "
    "lose boxes of both; `couple` unites labels in order, which leaves some of these cuts or none.",
)


def main() -> None:
    """Prints and records the table; ends with 1 if anything was wrong or missing."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--only", nargs="+", help="networks")
    made.add_argument("--verbose", action="store_true", help="every difference, axis by axis")
    options = begin(made)
    names = options.only or list(NETWORKS)[:: 40 if options.quick else 1]
    rows = []
    for name in tqdm(names, disable=None):
        coupling, found, cuts, seconds = judge(name, options.seed)
        rows.append(row(name, found, cuts, seconds))
        if options.verbose:
            print(name, *details(coupling, found), sep="\n  ", flush=True)
    total = {key: sum(r[key] for r in rows) for key in rows[0] if key not in ("network", "why")}
    rows.append({"network": f"all {len(rows)}", **total})
    title = "Coupling against brute force: which coordinates must go together"
    print(record(name_of("bruteforce", options), rows, title=title, seed=options.seed, notes=NOTES))
    raise SystemExit(1 if any(total[key] for key in ("wrong", "missing", "illegal units")) else 0)


if __name__ == "__main__":
    guarded(main)
