"""The stages one by one, for those who go through them by hand: each takes a coupling and what goes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune._base.defaults import MEMORY_LIMIT, RIDGE
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune.algebra.channels import Mask
from fxprune.capturing.inputs import inputs_of
from fxprune.compiler.options import Options
from fxprune.compiler.stages import capture, prepare
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.recovery.protocol import Recovered, Recovery, RecoveryContext, RecoveryName, check_recovery, recovered
from fxprune.results.certificate import Certificate
from fxprune.rewriting.slicing import slice_graph
from fxprune.twin.certificate import certify


def recover(
    coupling: Coupling,
    removed: Mask,
    inputs: Iterable[Sequence[Tensor]],
    method: RecoveryName | str | Recovery | None,
    *,
    ridge: float = RIDGE,
    memory_limit: int = MEMORY_LIMIT,
) -> Recovered:
    """Compensates every linear layer, convolution and recurrent gate that reads a removed channel.

    Args:
        coupling: of the captured graph.
        removed: a flag for each channel id, ``[channels]``.
        inputs: the graph's flat inputs, batch by batch.
        method: ``"mean_shift"`` (VBP), ``"covariance"`` (statistics of the dense model), ``"sequential"`` (regression on
            what the pruned model feeds, with residual drift), ``"reconstruct"`` (that, and then every block learns to give
            the dense model's values, by gradient and without labels), a registered name, or a `Recovery`; None, and
            ``"reinit"``, which `fxprune.compile` does once the layers have their sizes, change nothing here.
        ridge: damping, as a share of the mean diagonal of the layer's covariance.
        memory_limit: bytes for statistics and values that are alive.

    Raises:
        RecoveryError: no such recovery.
        ValueError: a ridge or limit that is not positive.
    """
    check_recovery(ridge, memory_limit)
    selection = Selection(coupling, _flags(coupling, removed))
    return recovered(method, RecoveryContext(selection, inputs_of(inputs), ridge, memory_limit))


@random_states_kept()
@plain_modes()
def rotate(
    model: nn.Module,
    calib_data: Any,
    *,
    ignore: str | Sequence[str] = (),
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
) -> nn.Module:
    """Returns an equal model of the same class, its streams of channels given in the basis of their principal components.

    A stream's basis may change where all that is done with it commutes with a rotation: layers that make and read it, additions, norms
    whose gains go into the layers beside them; that is found by trying every op. Layer norms allow those rotations that keep the mean of
    the channels. What is left of a stream without its last channels is then as much as so many channels can hold of what its readers see
    (SliceGPT, arXiv 2401.15024, with one basis for a whole stream). A tied tensor that is read in two bases is tied no longer.

    Args:
        model: stays as it is.
        calib_data: batches, as `fxprune.compile` takes them, of ordinary sizes: over a single place many ops do nothing.
        ignore: ``fnmatch`` patterns of layers whose channels stay as they are.
        forward_args: makes ``(args, kwargs)`` of a batch that has another form.
        dynamic_shapes: as `torch.export.export` takes it.

    Raises:
        RotationError: no stream's basis may change, or only parts of the model can be captured; says why.
        CaptureError: the model cannot be captured.
        TypeError: it is no module.
        CalibrationError: the data or the weights are unusable.
    """
    options = Options(
        basis="pca",
        form="module",
        ignore=ignore,
        forward_args=forward_args,
        dynamic_shapes=dynamic_shapes,
        recover=None,
        verify=False,
        progress=False,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"rotate: expected a torch.nn.Module, got {type(model).__name__}: a program's tensors are fixed"
        )
    return capture(prepare(model, calib_data, 1.0, options)).module


def rewrite(coupling: Coupling, removed: Mask, tensors: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """Returns the captured graph without the flagged channels; the captured one stays as it is.

    Args:
        coupling: labels for every value of the graph.
        removed: a flag for each channel id, ``[channels]``.
        tensors: full-size replacements of parameters and buffers, by name (what recovery gives).
    """
    return slice_graph(Selection(coupling, _flags(coupling, removed), tensors or {}))


def verify(
    coupling: Coupling,
    removed: Mask,
    pruned: nn.Module,
    batch: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> Certificate:
    """Compares the emitted module with the masked twin on one batch.

    Args:
        coupling: of the original graph.
        removed: a flag for each channel id, ``[channels]``.
        pruned: the emitted module.
        batch: (args, kwargs) as the model takes them.
        tensors: full-size replacements of parameters, where recovery changed them.
        dtype: compare in this precision instead of the model's own.
        tolerance: instead of 1e-9 in float64, 1e-4 in float32.
    """
    selection = Selection(coupling, _flags(coupling, removed), tensors or {})
    return certify(selection, pruned, batch, dtype=dtype, tolerance=tolerance)


def _flags(coupling: Coupling, removed: Mask) -> Mask:
    """Returns the flags if they are some.

    Raises:
        ValueError: they are not; says what was expected.
    """
    wanted = f"a flag for each channel id, bool[{len(coupling.channels)}], as coupling.removed_mask(units) gives"
    if not isinstance(removed, np.ndarray) or removed.dtype != bool or removed.shape != (len(coupling.channels),):
        got = f"{removed.dtype}{list(removed.shape)}" if isinstance(removed, np.ndarray) else type(removed).__name__
        raise ValueError(f"removed: expected {wanted}, got {got}")
    if removed[0]:
        raise ValueError(f"removed: expected {wanted}; channel 0 stands for what can never go, and is flagged")
    return removed
