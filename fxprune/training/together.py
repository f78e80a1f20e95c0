"""A step that several processes make together: the gradient of one process that has all of their batches at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._base.errors import TrainingError
from fxprune._base.ranks import add_up, check_same, of_first, summed, world
from fxprune.data.digest import digest_of, told
from fxprune.training.feed import Feed
from fxprune.training.tune import TrainingOptions

#: Options that may differ between processes, or are looked at otherwise.
_BESIDE = {"teacher", "recipe", "validation", "metrics", "checkpoint_dir", "progress", "seed", "mixed_precision"}


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """The loss of a batch.

    Attributes:
        value: a mean, ``[]``, with its graph.
        weight: over how much it is the mean.
        samples: of the batch.
    """

    value: Tensor
    weight: float
    samples: int


def backward(loss: Loss | None, parameters: Sequence[nn.Parameter]) -> tuple[float, int]:
    """Gives parameters the gradient of the mean over all processes' batches, the same in each of them.

    Args:
        loss: of this process's batch; None if it has none.
        parameters: that are trained, without gradients; those that no process reaches stay so.

    Returns:
        The mean loss, each process's by its weight, and the samples, of all processes.
    """
    if world() == 1:
        assert loss is not None
        loss.value.backward()
        return float(loss.value.detach()), loss.samples
    told = torch.zeros(3 + len(parameters), dtype=torch.float64)
    if loss is not None and loss.weight:  # a mean over nothing is not a number
        weighed = loss.value * loss.weight
        weighed.backward()
        told[0], told[1] = float(weighed.detach()), loss.weight
    told[2] = 0 if loss is None else loss.samples
    told[3:] = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    (every,) = summed(told)  # before the gradients: a process that has failed is missed here
    total, weight, samples = every[:3].tolist()
    reached = [parameter for parameter, count in zip(parameters, every[3:].tolist(), strict=True) if count]
    for parameter in reached:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
    gradients = [parameter.grad for parameter in reached if parameter.grad is not None]
    add_up(gradients)
    for gradient in gradients:
        gradient.div_(weight)
    return total / weight if weight else float("nan"), int(samples)


@torch.no_grad()
def mean_buffers(model: nn.Module) -> None:
    """Gives every process the same buffers: the mean of numbers, such as batch norm's statistics, and else those of the first."""
    if world() == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.numel()]
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    for buffer, total in zip(floating, summed(*floating), strict=True):
        buffer.copy_(total / world())
    others = [buffer for buffer in buffers if not buffer.is_floating_point()]
    for buffer, values in zip(others, of_first(lambda: [other.cpu() for other in others]), strict=True):
        buffer.copy_(values)


def whole_rounds(model: nn.Module) -> bool:
    """Returns whether every process must have a batch in each step: batch norm that is synchronised waits for all of them."""
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def check_trainable(model: nn.Module) -> None:
    """Makes sure that each process has all of the model.

    Raises:
        TrainingError: parameters are sharded.
    """
    sharded = next((name for name, p in model.named_parameters() if hasattr(p, "full_tensor")), None)
    if sharded is not None or any(hasattr(module, "_fsdp_wrapped_module") for module in model.modules()):
        raise TrainingError(
            f"pruned: expected whole parameters in each process, got sharded ones{f' ({sharded})' if sharded else ''}: train it before it is "
            "sharded, or in a loop of your own"
        )


def check_alike(
    model: nn.Module, teacher: nn.Module | None, feed: Feed, options: TrainingOptions, identity: Mapping[str, Any]
) -> None:
    """Makes sure that all processes train the same model on the same data in the same way.

    Raises:
        FxpruneError: they do not; says what differs.
    """
    if world() == 1:
        return
    with feed.drawing(options.seed, 1):
        first = feed.batches.first()
    named = dict(model.named_parameters())
    check_same(
        {
            **{f"the run's {name}": value for name, value in identity.items()},
            **{f"the option {name}": value for name, value in told(options).items() if name not in _BESIDE},
            "the number of batches": feed.length,
            "the model": list(named),
            "the model's weights": digest_of(named.values()),
            "the model's buffers (statistics are each process's own in DDP: hand round those of one)": digest_of(
                model.buffers()
            ),
            "the teacher's weights": None
            if teacher is None
            else digest_of((*teacher.parameters(), *teacher.buffers())),
            "the training data (each process is given all of it, not a share; seed what draws from a generator of its own)": digest_of(
                (first.args, first.kwargs, first.targets)
            ),
        }
    )
