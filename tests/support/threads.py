"""One thread where tensors are tiny: waiting threads cost more than they compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxprune.runtimes.setting import threads_set


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Gives every test of the folder one thread, and the others back what they had."""
    with threads_set(1):
        yield
