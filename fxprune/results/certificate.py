"""The certificate: what the comparison of an emitted module with its masked twin found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a comparison with the masked twin found.

    Attributes:
        verified: True if every output agrees, False if one does not, None if an output is degenerate (constant over
            the batch, or not finite), so that agreement would say nothing.
        max_error: the largest ``max |a - b| / max |a - mean of a over the batch|`` of all outputs.
        tolerance: what it had to stay below.
        dtype: the precision of the comparison.
        note: why it is not verified.
    """

    verified: bool | None
    max_error: float
    tolerance: float
    dtype: str
    note: str = ""
