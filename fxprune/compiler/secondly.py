"""A second call for the certificate: another batch, and another size of whatever else is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.utils import _pytree as pytree

from fxprune.capturing.captured import Captured
from fxprune.capturing.limits import near, value_of
from fxprune.data.calls import Call, bound_call
from fxprune.runtimes.sizes import repeated


def other_call(
    captured: Captured, device: str, *, batch_alone: bool = False, candidates: Callable[[int], Iterable[int]] = near
) -> tuple[Call, str]:
    """Returns a call at other sizes than the example's, its numbers repeated or left out, and what is other about it.

    Args:
        captured: the captured model.
        device: where the tensors are to lie.
        batch_alone: leave the other sizes as they are.
        candidates: what a size may be instead.

    Returns:
        (args, kwargs), and the sizes that differ, such as ``x.shape[0] = 3``; empty if no size is free.
    """
    limits, call = captured.call.limits, captured.call
    assert limits is not None, "a captured model knows its sizes"
    own = limits.sizes(captured.example)
    batch = _batch_of(captured)
    sizes = dict(own) if batch_alone else limits.others(own, batch, candidates)
    if batch is not None:
        most = 2 * own[batch]  # a batch costs time
        first = _few(own[batch]) if candidates is near else sorted(candidates(own[batch]))
        others = (size for size in (*first, *near(own[batch])) if 1 < size <= most)
        allowed = (size for size in others if limits.allows({**sizes, batch: size}))
        sizes[batch] = next(allowed, own[batch])
    tensors = []
    for tensor, shape in zip(captured.example, limits.shapes, strict=True):
        for dim, term in enumerate(shape):
            tensor = repeated(tensor, dim, int(value_of(term, sizes)))
        tensors.append(tensor.to(device))
    given = iter(tensors)
    leaves = [
        value if name is None else next(given) for name, value in zip(call.placeholders, call.literals, strict=True)
    ]
    text = ", ".join(f"{name} = {size}" for name, size in sizes.items() if size != own[name])
    bound = pytree.tree_unflatten(leaves, call.in_spec)
    spare = call.assumed or ()  # what capture gave of itself another module may know nothing of
    return bound_call(call.signature, {name: value for name, value in bound.items() if name not in spare}), text


def _few(batch: int) -> Iterable[int]:
    """Returns other batch sizes that cost little time."""
    return (size for size in (3, 4, 2) if size < batch)


def _batch_of(captured: Captured) -> str | None:
    """Returns the name of the batch among the free sizes."""
    limits, (prime, _) = captured.call.limits, captured.batch
    if limits is None or prime == 1:
        return None
    infos = [captured.info[node] for node in captured.module.graph.find_nodes(op="placeholder")]
    pairs = ((shape[0], info.shape[0]) for shape, info in zip(limits.shapes, infos, strict=True) if shape)
    return next((term for term, size in pairs if size == prime and isinstance(term, str)), None)
