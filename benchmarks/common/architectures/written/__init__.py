"""Classic architectures and tricks as their users write them, small."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import Architecture, Call
from . import attention, blocks, builtin, dense, detection, sequence, shared, tokens, vision

_FILES = (vision, blocks, dense, detection, sequence, attention, builtin, tokens, shared)


def entries() -> list[Architecture]:
    """Returns all of them; building one twice gives the same weights and the same inputs."""
    return [
        Architecture("written", f"written:{name}", _seeded(make))
        for file in _FILES
        for name, make in file.MODELS.items()
    ]


def _seeded(make: Callable[[], Call]) -> Callable[[], Call]:
    def build() -> Call:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            call = make()
        call.model.eval()
        return call

    return build
