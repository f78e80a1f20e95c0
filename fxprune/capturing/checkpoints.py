"""torch's activation checkpoints: what they hold is called like anything else, and whoever watches knows when."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.utils import checkpoint
from torch.utils.checkpoint import CheckpointFunction

#: What runs before and after what a checkpoint holds, by the name that it has in this version of torch.
_GENERATOR = next(
    (
        name
        for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
        if hasattr(checkpoint, name)
    ),
    "",
)


@contextmanager
def plain_checkpoints(within: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
    """Have checkpoints call what they hold, whose gradients are autograd's, each time inside of ``within``."""
    forward, generator = vars(CheckpointFunction)["forward"], getattr(checkpoint, _GENERATOR, None)

    def called(ctx: Any, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        with within():
            return function(*args)

    def around(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        assert generator is not None
        with within():
            yield from generator(*args, **kwargs)

    CheckpointFunction.forward = staticmethod(called)  # type: ignore[method-assign]
    if generator is not None:
        setattr(checkpoint, _GENERATOR, around)
    try:
        yield
    finally:
        CheckpointFunction.forward = forward  # type: ignore[method-assign]
        if generator is not None:
            setattr(checkpoint, _GENERATOR, generator)
