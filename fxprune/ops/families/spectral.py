"""Fourier transforms over time and space: what is transformed stays, channels beside it pass. Complex numbers and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.capturing.normalize.layout import dims_of
from fxprune.ops.constants import elementwise, kept
from fxprune.ops.families.create import create
from fxprune.ops.families.elementwise import pointwise
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer


def _transformed(a: SimpleNamespace, rank: int) -> Sequence[int]:
    """Returns the dimensions that are transformed: those named, or the last as many as sizes are given, or all."""
    sizes = getattr(a, "s", None)
    if a.dim is None and sizes is not None:
        return range(rank - len(sizes), rank)
    return dims_of(None if a.dim == [] else a.dim, rank)


def _transform(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, n] over n.  After: [b, c, f], all of n needed for each f."""
    x = t.axes(a.self, node)
    return t.fix(node, x, _transformed(a, len(x)), "the transformed axis")


def _spectrogram(t: Tracer, node: fx.Node, a: SimpleNamespace, positions: int) -> Axes:
    """Before: x[b, n], or x[b, f, m].  After: [b, f, m], or [b, n]; ``positions`` is how many dimensions go in."""
    x = t.axes(a.self, node)
    real = positions == 2 and len(x) > 2 and not t.captured.info[a.self].dtype.is_complex  # [b, f, m, 2]
    lead = len(x) - positions - real
    t.freeze(node, ax.joined(x[lead:]), "the transformed axis")
    if a.window is not None:
        t.freeze(node, ax.joined(t.axes(a.window, node)), "the window")
    return (*x[:lead], *map(ax.fixed, t.shape(node)[lead:]))


def _as_real(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: complex x[b, c].  After: [b, c, 2], both parts needed."""
    return (*t.axes(a.self, node), ax.fixed(2))


def _as_complex(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c, 2].  After: complex [b, c]."""
    *lead, parts = t.axes(a.self, node)
    t.freeze(node, parts, "the real and the imaginary part")
    return tuple(lead)


_TRANSFORM = Rule(_transform)

register_rule(
    [f"fft_{name}{n}.default" for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for n in ("", "2", "n")],
    _TRANSFORM,
)
register_rule("fft_fftshift.default fft_ifftshift.default", _TRANSFORM)
register_rule("_fft_r2c.default _fft_c2c.default _fft_c2r.default", _TRANSFORM)
register_rule("stft.default stft.center", Rule(partial(_spectrogram, positions=1)))
register_rule("istft.default", Rule(partial(_spectrogram, positions=2)))
register_rule("fft_fftfreq.default fft_rfftfreq.default", Rule(create))
register_rule(
    "hann_window.default hann_window.periodic hamming_window.default hamming_window.periodic "
    "blackman_window.default blackman_window.periodic bartlett_window.default bartlett_window.periodic "
    "kaiser_window.default kaiser_window.periodic",
    Rule(create),
)
register_rule("view_as_real.default", Rule(_as_real))
register_rule("view_as_complex.default", Rule(_as_complex))
_PARTS = Rule(pointwise, kind="elementwise", constant=elementwise)
register_rule("complex.default polar.default", _PARTS)
register_rule("real.default imag.default conj.default _conj.default", replace(_PARTS, view=True))
register_rule(
    "resolve_conj.default resolve_neg.default", Rule(pointwise, kind="elementwise", moves=kept, conducts=True)
)
register_rule("_neg_view.default", _PARTS)
