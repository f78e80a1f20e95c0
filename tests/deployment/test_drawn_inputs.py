"""What a file is compared on where nobody gave values: integers stay within the tables that they are looked up in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.data.calls import tensors_of
from fxprune.deployment.comparison import trials
from fxprune.runtimes.program import trace


class Texts(nn.Module):
    """Words and kinds of words are looked up; a mask is not."""

    def __init__(self, words: int, kinds: int) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(words, 8), nn.Embedding(kinds, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, words: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        return self.out((self.words(words) + self.kinds(kinds)) * mask.unsqueeze(2))


def test_integers_stay_within_their_tables() -> None:
    ids = [torch.zeros(4, 64, dtype=torch.long) for _ in range(3)]
    program = trace(Texts(50, 3), (tuple(ids), {}))
    for call in trials(program, filled=False, single=True):
        words, kinds, mask = tensors_of(call)
        assert words.min() >= 0 and 25 <= words.max() < 50
        assert kinds.max() == 2 and mask.max() == 1
