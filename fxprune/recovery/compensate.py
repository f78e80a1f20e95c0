"""Mean shift and covariance compensation from statistics of the dense model.

With C the centred covariance of a consumer's input, mu its mean, P its removed and S its kept columns
(DVBP+OB2C, arXiv 2608.17657): ``B = C_PS (C_SS + lambda I)^-1``, ``W_S += W_P B``, ``b += W_P (mu_P - B mu_S)``.
VBP's mean shift (arXiv 2507.12988) is the case B = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxprune.recovery.consumers import Consumer, Replacements
from fxprune.recovery.gains import fit_gains
from fxprune.recovery.measuring import Blocks, bytes_of
from fxprune.recovery.protocol import Recovered, RecoveryContext
from fxprune.recovery.regression import gain_of
from fxprune.recovery.ridges import MORE, best_ridge


def compensate(context: RecoveryContext, *, covariance: bool) -> Recovered:
    """Returns full-size replacements, ``[...]`` each, of the consumers' weights, biases and running means, and of gains.

    The inputs are gone through once for the gains of norms, and once for each part of the consumers whose statistics fit
    into memory together; a single consumer beyond the limit is compensated in blocks of columns.

    Args:
        context: the layers that lose columns, and their inputs.
        covariance: False for the mean shift alone.
    """
    changed = Replacements(context.selection.coupling, context.start, context.shelf("once"))
    fit_gains(context, changed)
    make_up(context, changed, covariance=covariance)
    return Recovered(changed.tensors, tuple(changed.told))


def make_up(
    context: RecoveryContext, changed: Replacements, *, covariance: bool, consumers: Sequence[Consumer] | None = None
) -> None:
    """Adds to layers what their removed columns gave in the dense model.

    Args:
        context: the layers that lose columns, and their inputs.
        changed: holds the layers' tensors.
        covariance: False for the mean shift alone.
        consumers: some of these layers; by default all.
    """
    tuned = covariance and context.tuned
    every = (*context.consumers, *context.gates) if consumers is None else consumers
    consumers = [consumer for consumer in every if not changed.made(consumer)]
    for consumer, blocks in context.moments(covariance=covariance, consumers=consumers, hold_out=tuned, rows=True):
        note = _cut(consumer, len(blocks), context.memory_limit) if len(blocks) > 1 else ""
        weight = consumer.matrix(changed.value(consumer.weight)).double()
        kept = torch.from_numpy(consumer.kept).to(weight.device)
        for block, moments in blocks:
            for part in (moments, moments.held):
                if part is not None and part.count:
                    part.aim(weight[..., block], kept[:, block], covariance)
        ridge = context.ridge if covariance else None
        if any(moments.held is not None and moments.held.count for _, moments in blocks):
            ridge = best_ridge(consumer, blocks, context.ridge, MORE)
        for _, moments in blocks:
            moments.whole()
        fit(changed, consumer, blocks, ridge, note)


def _cut(consumer: Consumer, blocks: int, limit: int) -> str:
    columns = consumer.kept.shape[1]
    needed = bytes_of(consumer, True, 1 << 62)
    return (
        f"{consumer.weight}: {columns} columns in {blocks} blocks, for which memory_limit={limit} leaves room: none makes up for another's; "
        f"{needed} would do for them as one"
    )


def fit(changed: Replacements, consumer: Consumer, blocks: Blocks, ridge: float | None, note: str = "") -> None:
    """Adds to a layer what gives the moments' targets from its kept columns, by least squares.

    Args:
        changed: holds the layer's tensors.
        consumer: the layer.
        blocks: moments of its columns with the targets.
        ridge: damping, as a share of the mean variance; None for a shift by the targets' means alone.
        note: what is to be known of it.
    """
    kept = torch.from_numpy(consumer.kept).to(blocks[0][1].mean_x.device)
    shape = (consumer.groups, consumer.rows.shape[1], consumer.kept.shape[1])
    update = torch.zeros(shape, dtype=torch.float64, device=kept.device)
    shift = update.new_zeros(shape[:2])
    for block, moments in blocks:
        if ridge is not None and consumer.home is None:
            moments.raw()
        for g, stays in enumerate(kept[:, block]):
            shift[g] += moments.mean_t[g]
            if ridge is not None:
                gain = gain_of(moments, g, stays, ridge)
                update[g, :, block][:, stays] = gain
                shift[g] -= gain @ moments.mean_x[g][stays]
    changed.add(consumer, update, shift, note)
