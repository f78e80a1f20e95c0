"""The certificate: what the comparison of an emitted module with its masked twin found."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune._base.moved import filled_in


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a comparison with the masked twin found.

    Attributes:
        verified: True if every output agrees and one of them at least proves it, False if one does not agree, None if all are
            degenerate (constant over the batch, not finite, empty), so that agreement would say nothing, or if a difference
            may be rounding.
        max_error: the largest ``max |a - b| / max |a - mean of a over the batch|`` of all outputs; of each channel by itself,
            where that is more than rounding.
        tolerance: what it had to stay below.
        dtype: the precision of the comparison.
        note: why it is not verified.
        compared: the outputs that were compared, with what is doubtful about each.
    """

    verified: bool | None
    max_error: float
    tolerance: float
    dtype: str
    note: str = ""
    compared: tuple[str, ...] = ()

    __setstate__ = filled_in
