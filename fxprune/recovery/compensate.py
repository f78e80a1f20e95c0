"""Mean shift and covariance compensation from statistics of the dense model.

With C the centred covariance of a consumer's input, mu its mean, P its removed and S its kept columns
(DVBP+OB2C, arXiv 2608.17657): ``B = C_PS (C_SS + lambda I)^-1``, ``W_S += W_P B``, ``b += W_P (mu_P - B mu_S)``.
VBP's mean shift (arXiv 2507.12988) is the case B = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from fxprune.coupling.coupling import Coupling
from fxprune.recovery.consumers import Consumer, apply_update, tensor_of
from fxprune.recovery.moments import Moments, ridge_solve
from fxprune.twin.interpreter import Run


def compensate(
    coupling: Coupling, consumers: Sequence[Consumer], inputs: Iterable[Sequence[Tensor]], *,
    covariance: bool, ridge: float, memory_limit: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Returns full-size replacements of the consumers' weights, biases and running means.

    Args:
        coupling: of the captured graph.
        consumers: the layers that lose columns.
        inputs: flat graph inputs, batch by batch; gone through once for each part of the consumers whose statistics
            fit into ``memory_limit`` bytes together.
        covariance: False for the mean shift alone.
        ridge: lambda as a share of the mean diagonal.
        memory_limit: bytes; a single consumer beyond it is compensated in blocks of columns.
    """
    changed: dict[str, Tensor] = {}
    for part in parts_that_fit(consumers, covariance, memory_limit):
        moments = measure(coupling, part, inputs, covariance, memory_limit)
        for consumer, blocks in zip(part, moments, strict=True):
            _update(coupling, changed, consumer, blocks, covariance, ridge)
    return changed


def _blocks(consumer: Consumer, covariance: bool, memory_limit: int) -> list[slice]:
    """Cuts the columns into blocks whose covariance fits."""
    groups, columns = consumer.kept.shape
    most = int((memory_limit / 16 / groups) ** 0.5) if covariance else columns
    count = max(1, -(-columns // max(most, 1)))
    width = -(-columns // count)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def _bytes(consumer: Consumer, covariance: bool, memory_limit: int) -> int:
    if not covariance:
        return 8 * consumer.kept.size
    blocks = _blocks(consumer, covariance, memory_limit)
    return sum(16 * consumer.groups * (b.stop - b.start) ** 2 for b in blocks)


def parts_that_fit(consumers: Sequence[Consumer], covariance: bool, memory_limit: int) -> Iterable[list[Consumer]]:
    """Yields the consumers in parts whose statistics fit into ``memory_limit`` bytes together."""
    part: list[Consumer] = []
    used = 0
    for consumer in consumers:
        size = _bytes(consumer, covariance, memory_limit)
        if part and used + size > memory_limit:
            yield part
            part, used = [], 0
        part.append(consumer)
        used += size
    if part:
        yield part


def measure(
    coupling: Coupling, part: Sequence[Consumer], inputs: Iterable[Sequence[Tensor]], covariance: bool,
    memory_limit: int,
) -> list[list[tuple[slice, Moments]]]:  # fmt: skip
    """Returns the moments of what each consumer reads in the dense model, by blocks of columns that fit, in one pass."""
    blocks = [[(b, Moments()) for b in _blocks(consumer, covariance, memory_limit)] for consumer in part]
    at: dict[fx.Node, list[int]] = {}
    for i, consumer in enumerate(part):
        at.setdefault(consumer.node, []).append(i)
    run = Run(coupling)
    for number, batch in enumerate(inputs):
        waiting = len(part)
        for node, values in run.steps(batch):
            for i in at.get(node, ()):
                rows = part[i].choose(values[node].shape, memory_limit, number)
                columns = part[i].columns(values[part[i].source], rows)
                for block, moments in blocks[i]:
                    moments.add(columns[..., block]) if covariance else _add_mean(moments, columns[..., block])
                waiting -= 1
            if not waiting:
                break
    return blocks


def _add_mean(moments: Moments, x: Tensor) -> None:
    mean = x.mean(dim=0, dtype=torch.float64)
    total = moments.count + len(x)
    moments.mean_x = mean if not moments.count else moments.mean_x + (mean - moments.mean_x) * (len(x) / total)
    moments.count = total


def _update(
    coupling: Coupling, changed: dict[str, Tensor], consumer: Consumer, blocks: Sequence[tuple[slice, Moments]],
    covariance: bool, ridge: float,
) -> None:  # fmt: skip
    weight = consumer.matrix(tensor_of(coupling, changed, consumer.weight)).double()
    update = torch.zeros_like(weight)
    shift = torch.zeros(weight.shape[:2], dtype=torch.float64, device=weight.device)
    kept_all = torch.from_numpy(consumer.kept).to(weight.device)
    for block, moments in blocks:
        if covariance and consumer.home is None:
            moments.raw()
        for g in range(consumer.groups):
            kept = kept_all[g, block]
            removed_weight = weight[g, :, block][:, ~kept]
            mean = moments.mean_x[g]
            shift[g] += removed_weight @ mean[~kept]
            if covariance:
                gram = moments.xx[g]
                gain = ridge_solve(gram[kept][:, kept], removed_weight @ gram[~kept][:, kept], ridge)
                update[g, :, block][:, kept] = gain
                shift[g] -= gain @ mean[kept]
    apply_update(coupling, changed, consumer, update, shift)
