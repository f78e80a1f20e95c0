"""Reports with something in every line, made up."""

from __future__ import annotations

from typing import Any

from fxprune.latency import Latency
from fxprune.results.record import FrozenRow, GroupRow, LayerRow, Report
from fxprune.results.scores import GroupScores, ScoreSummary


def make_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "params": (1_234_567, 600_000),
        "macs": (2_000_000, 1_000_000),
        "bytes": (4_938_268, 2_400_000),
        "method": "variance",
        "groups": (
            GroupRow("conv1", "channel", ("conv1", "bn1", "layer1.0.conv2"), 64, 48),
            GroupRow("attention:head", "head", ("attention",), 12, 12),
        ),
        "units_removed": 16,
        "verified": True,
        "max_error": 3.25e-6,
        "tolerance": 1e-4,
        "dtype": "float32",
        "frozen": (
            FrozenRow("fc.weight", 0, 10, "the result"),
            FrozenRow("fc.bias", 0, 10, "the result"),
            FrozenRow("conv1.weight", 1, 3, "an input"),
        ),
        "collapsed": ("layer4.1",),
        "dropped": 5000,
        "skipped": ("conv1.weight: no bias takes its shift",),
        "seconds": {"capture": 1.5, "couple": 0.25},
        "notes": ("a note",),
    }
    return Report(**{**values, **changes})


def a_summary(**changes: Any) -> ScoreSummary:
    values: dict[str, Any] = {
        "unit": "score per parameter",
        "edges": (1e-6, 1e-5, 1e-4),
        "log": True,
        "cut": 1.5e-5,
        "astray": (1, 0),
        "groups": (GroupScores("conv1", (1, 47), (16, 0)), GroupScores("attention:head", (0, 12), (0, 0))),
    }
    return ScoreSummary(**{**values, **changes})


HOSTILE = '<script>alert("x")</script>'


def full_report(**changes: Any) -> Report:
    """Returns a report with something in every section."""
    values: dict[str, Any] = {
        "groups": (
            GroupRow("conv1", "channel", ("conv1", "bn1", "layer1.0.conv2"), 64, 48, 2),
            GroupRow("layer1.0.conv2", "channel", ("layer1.0.conv2", "fc"), 32, 32, 1),
            GroupRow("attention:head", "head", ("attention", "out"), 12, 7, 1),
        ),
        "layers": (
            LayerRow("conv1", (640_123, 300_321), (1_500_077, 700_033)),
            LayerRow("fc", (594_444, 299_679), (499_923, 299_967)),
        ),
        "scores": a_summary(),
        "latency": Latency(
            dense_ms=12.5,
            measured_ms=6.21,
            predicted_ms=6.07,
            limit_ms=6.25,
            backend="eager",
            batch_size=8,
            device="cpu",
            threads=2,
        ),
    }
    return make_report(**{**values, **changes})


def large_report(groups: int) -> Report:
    """Returns the report of a decoder of so many groups, two a layer, with scores in full bins."""
    parts = [(f"model.layers.{i}.mlp", f"model.layers.{i}.self_attn") for i in range(groups // 2)]
    rows = [row for i, (mlp, attention) in enumerate(parts) for row in _decoder_layer(i, mlp, attention)]
    layers = [
        LayerRow(f"{part}.{name}", (45_088_768, 22_544_384), (45_088_768, 22_544_384))
        for mlp, attention in parts
        for part, names in ((mlp, ("gate_proj", "up_proj", "down_proj")), (attention, ("q_proj", "k_proj", "o_proj")))
        for name in names
    ]
    edges = tuple(float(f"{1e-9 * 1.5**i:.6g}") for i in range(33))
    removed = tuple(max(0, 9 - j) for j in range(32))
    scores = tuple(
        GroupScores(row.name, tuple((7 * i + 3 * j) % 23 for j in range(32)), removed) for i, row in enumerate(rows)
    )
    return full_report(groups=tuple(rows), layers=tuple(layers), scores=a_summary(edges=edges, groups=scores))


def _decoder_layer(index: int, mlp: str, attention: str) -> tuple[GroupRow, GroupRow]:
    hidden = tuple(f"{mlp}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
    heads = tuple(f"{attention}.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    return (
        GroupRow(f"{mlp}.gate_proj:channel", "channel", hidden, 11_008, 11_008 - 370 * (index % 30), 2),
        GroupRow(f"{attention}.k_proj:kv_group", "kv_group", heads, 32, 32 - index % 9, 3),
    )
