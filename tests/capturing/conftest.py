"""The tensors of this room are tiny: it takes one thread."""

from tests.support.threads import one_thread

__all__ = ["one_thread"]
