"""Settings of a measurement are given back."""

from __future__ import annotations

import pytest
import torch

from fxprune.runtimes.setting import threads_set


def test_one_thread_is_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads_set(1):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
