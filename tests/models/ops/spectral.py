"""Fourier transforms, and what is complex, in tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.models.fn import Fn
from tests.models.ops.case import Case

A = torch.ops.aten
WAVE, IMAGE = (3, 3, 8), (3, 3, 6, 4)
PASSED = ["6 channel: a.weight[0] a.bias[0] b.weight[1]"]
WINDOW = torch.hann_window(4, dtype=torch.float64)


def _wave(function: Callable[[Tensor], Tensor], inner: int = 6) -> Fn:
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(inner, 2, 1))


def _image(function: Callable[[Tensor], Tensor]) -> Fn:
    return Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))


def _filtered(m: Fn, x: Tensor) -> Tensor:
    """A global filter: a complex weight for each channel and frequency."""
    spectrum = torch.fft.rfft(m.a(x), dim=-1) * m.filter
    return m.b(torch.fft.irfft(spectrum, n=8, dim=-1))  # type: ignore[no-any-return]


def _mixed(m: Fn, x: Tensor) -> Tensor:
    """A spectral convolution: a complex matrix over the channels for each frequency."""
    spectrum = torch.fft.rfft(m.a(x), dim=-1)
    return m.b(torch.fft.irfft(torch.einsum("bif,iof->bof", spectrum, m.w), n=8, dim=-1))  # type: ignore[no-any-return]


def _stored(m: Fn, x: Tensor) -> Tensor:
    """The complex weight is stored as two real ones."""
    spectrum = torch.fft.fft(m.a(x)) * torch.view_as_complex(m.w)
    return m.b(torch.view_as_real(spectrum.conj().resolve_conj()).sum(-1))  # type: ignore[no-any-return]


def _speech(m: Fn, x: Tensor) -> Tensor:
    """Each channel of a wave goes to time and frequency and back."""
    y = m.a(x)
    s = torch.stft(y.flatten(0, 1), 4, 2, window=WINDOW, return_complex=True)
    return m.b(torch.istft(s * s.abs(), 4, 2, window=WINDOW).unflatten(0, y.shape[:2]))  # type: ignore[no-any-return]


def _masked(m: Fn, x: Tensor) -> Tensor:
    """A network over the frequencies of an input masks them."""
    s = torch.stft(x.sum(1), 4, 1, window=WINDOW, return_complex=True)
    return torch.istft(s * m.b(m.a(s.abs()).relu()).sigmoid(), 4, 1, window=WINDOW)


FLAT = {
    "fft": lambda x: torch.fft.fft(x).abs(),
    "ifft": lambda x: torch.fft.ifft(x).abs(),
    "rfft": lambda x: torch.fft.rfft(x, dim=2).abs(),
    "rfft of a length": lambda x: torch.fft.rfft(x, n=12).abs(),
    "irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x).tanh(), n=8),
    "hfft": lambda x: torch.fft.hfft(x),
    "ihfft": lambda x: torch.fft.ihfft(x).angle(),
    "halves": lambda x: (
        A._fft_c2r(A._fft_r2c(x, [2], 0, True).tanh(), [2], 2, 8) + A._fft_c2c(x + 0j, [2], 0, True).real
    ),
    "shifted": lambda x: torch.fft.ifftshift(torch.fft.fftshift(x, dim=2).cumsum(2), dim=2),
    "frequencies": lambda x: x * torch.fft.fftfreq(8, dtype=x.dtype) + torch.fft.rfftfreq(14, dtype=x.dtype),
    "parts": lambda x: torch.polar(x.abs(), x).imag + torch.complex(x, x.sin()).mul(1j).real,
}

SPACE = {
    "fft2": lambda x: torch.fft.fft2(x).abs(),
    "ifft2": lambda x: torch.fft.ifft2(x).abs(),
    "rfft2": lambda x: torch.fft.rfft2(x).abs(),
    "irfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(6, 4)),
    "fftn": lambda x: torch.fft.fftn(x, s=(6, 4)).abs(),
    "ifftn": lambda x: torch.fft.ifftn(x, dim=(2,)).abs(),
    "rfftn": lambda x: torch.fft.rfftn(x, dim=(-2, -1)).abs(),
    "irfftn": lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3)), dim=(2, 3)),
    "hfft2": lambda x: torch.fft.hfft2(torch.fft.ihfft2(x)),
    "hfftn": lambda x: torch.fft.hfftn(torch.fft.ihfftn(x, dim=(2, 3)), dim=(2, 3)),
}

CASES = [
    *(Case(name, lambda f=function: _wave(f), [WAVE], PASSED) for name, function in FLAT.items()),  # type: ignore[misc]
    *(Case(name, lambda f=function: _image(f), [IMAGE], PASSED) for name, function in SPACE.items()),  # type: ignore[misc]
    Case("fft over the channels", lambda: _wave(lambda x: torch.fft.fft(x, dim=1).real), [WAVE], []),
    Case("fft over all", lambda: _wave(lambda x: torch.fft.fftn(x).real), [WAVE], []),
    Case("shift of the channels", lambda: _wave(lambda x: torch.fft.fftshift(x)), [WAVE], []),
    Case(
        "a filter of frequencies",
        lambda: Fn(
            _filtered,
            a=nn.Conv1d(3, 6, 1),
            filter=nn.Parameter(torch.randn(6, 5, dtype=torch.complex128)),
            b=nn.Conv1d(6, 2, 1),
        ),
        [WAVE],
        ["6 channel: filter[0] a.weight[0] a.bias[0] b.weight[1]"],
    ),
    Case(
        "a matrix for each frequency",
        lambda: Fn(
            _mixed,
            a=nn.Conv1d(3, 6, 1),
            w=nn.Parameter(torch.randn(6, 4, 5, dtype=torch.complex128)),
            b=nn.Conv1d(4, 2, 1),
        ),
        [WAVE],
        ["6 channel: w[0] a.weight[0] a.bias[0]", "4 channel: w[1] b.weight[1]"],
    ),
    Case(
        "a complex weight in two parts",
        lambda: Fn(_stored, a=nn.Conv1d(3, 6, 1), w=nn.Parameter(torch.randn(6, 8, 2)), b=nn.Conv1d(6, 2, 1)),
        [WAVE],
        ["6 channel: w[0] a.weight[0] a.bias[0] b.weight[1]"],
    ),
    Case(
        "a mask over time and frequency",
        lambda: Fn(_masked, a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 3, 1)),
        [WAVE],
        PASSED,
    ),
    Case(
        "every channel over time and frequency",
        lambda: Fn(_speech, a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 2, 1)),
        [WAVE],
        PASSED,
    ),
]
