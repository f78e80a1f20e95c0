"""What is written on a command line becomes a value."""

from __future__ import annotations

from fxprune.cli.values import amount, literal


def test_values() -> None:
    assert [amount(text) for text in ("0.5", "50%", "1200000", "1.2M", "2G", ".25")] == [
        0.5,
        0.5,
        1_200_000,
        1_200_000,
        2_000_000_000,
        0.25,
    ]
    assert [type(amount(text)) for text in ("1.0", "1", "100%")] == [float, int, float]
    assert [literal(text) for text in ("3", "true", "none", "[1, 2]", "relu", "1e-3")] == [
        3,
        True,
        None,
        [1, 2],
        "relu",
        1e-3,
    ]
