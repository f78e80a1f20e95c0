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
