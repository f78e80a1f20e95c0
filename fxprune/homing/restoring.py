"""The way home: a copy of the original's class with what is left of its tensors and sizes, and the proof."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from fxprune._base.copies import copied
from fxprune._base.errors import RestoreError, brief
from fxprune._base.modes import lent, random_states_kept
from fxprune._base.names import layer_of
from fxprune.algebra.axes import Axis, is_labelled
from fxprune.algebra.channels import Mask
from fxprune.budget.ties import Ties
from fxprune.capturing.captured import Captured, example_call, in_training
from fxprune.coupling.blocks import has_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call, tensors_of
from fxprune.homing.constructing import SETTINGS, constructed, settings_of
from fxprune.homing.counting import Dimensions
from fxprune.homing.joined import Joined, joined
from fxprune.homing.layers import told as layers_told
from fxprune.homing.lists import replaced
from fxprune.homing.matching import Values, values_of, varied
from fxprune.homing.places import changed, numbers_in
from fxprune.homing.proof import Called, check_apart, difference, takes, tolerance_of
from fxprune.homing.reading import Reading, Readings, read_sizes
from fxprune.homing.solving import Equation, Solved, equations, solve
from fxprune.homing.statistics import made_up, statistics_of, uncounted
from fxprune.homing.tensors import can_shrink, with_tensors
from fxprune.homing.terms import Key, Place, Term, evaluate
from fxprune.homing.tying import ties_of
from fxprune.homing.uniform import in_settings
from fxprune.homing.whole import Layer, block_channels, gone, layers_of, taken_out, within
from fxprune.results.tables import few
from fxprune.rewriting.slicing import keep_indices


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """What is known of a model before anything of it goes, so that its class can come back.

    Attributes:
        readings: what its forward says of its sizes.
        joined: its graph in training beside that in evaluation; None where that cannot be captured.
        notes: what the user should know.
        also: other ways to the same outputs, ``way(model, *args, **kwargs)``, that are to work as well.
        layers: that can go whole.
        guarded: flags channels that stay because training may read them, ``[channels]``; None for none.
    """

    readings: Readings
    joined: Joined | None = None
    notes: tuple[str, ...] = ()
    also: tuple[Called, ...] = ()
    layers: tuple[Layer, ...] = ()
    guarded: Mask | None = None

    def ties(self, coupling: Coupling, free: Mask) -> Ties:
        """Returns what must go in step or stay, of the channels that may go, ``[channels]``."""
        held = np.zeros(len(free), bool) if self.joined is None else self.joined.held()
        held = held if self.guarded is None else held | self.guarded
        blocks = block_channels(coupling)
        free = free & ~blocks
        found = ties_of(coupling, self.readings, free & ~held)
        apart = blocks.copy()
        for layer in self.layers:
            apart[layer.blocks] = False
        pairs = [pair for layer in self.layers for pair in itertools.pairwise(layer.blocks)]
        together = tuple((np.array(pair), np.array([1, -1])) for pair in pairs)
        return replace(found, held=found.held | (held & free) | apart, equal=(*found.equal, *together))


def way_home(coupling: Coupling, also: Sequence[Called] = (), *, uniform: bool = False) -> Way:
    """Returns what is known of a coupled model before anything of it goes.

    Args:
        coupling: of the captured graph.
        also: other ways that the model is called in.
        uniform: its class is to make all that is left of its settings again.

    Raises:
        RestoreError: under ``uniform``, its class makes it of no settings.
    """
    captured, readings, also = coupling.captured, sizes_read(coupling, also), tuple(also)
    layers = layers_of(coupling) if has_blocks(coupling) else ()
    if uniform:
        readings = in_settings(readings, constructed(captured.model), coupling)
    try:
        training = in_training(captured)
    except Exception as error:  # it wants targets, or decides by values: the result is tried in training, then
        guarded, by = _may_be_read(coupling)
        stays = f" What {few(by)} may be used with there stays: all layers with as many outputs." if by else ""
        text = (
            f"the model in training mode cannot be captured: {brief(error)}.{stays} What it reads there by places of its own, or sizes, "
            "may be another: a call that trains as well (forward_args=, with targets) would tell"
        )
        return Way(readings, None, (text,), also, layers, guarded if by else None)
    read = {str(node.target) for node in training.module.graph.find_nodes(op="get_attr")}
    unread = sorted(captured.unused - read - {source for names in captured.folded.values() for source in names})
    notes = [f"no captured call reads {few(unread)}: what is not read stays as it is"] if unread else []
    return Way(readings, joined(coupling, training), tuple(notes), also, layers)


def _may_be_read(coupling: Coupling) -> tuple[Mask, list[str]]:
    """Returns the channels of layers with as many outputs as a tensor that the graph does not have is long, ``[channels]``, and those tensors."""
    captured, flags, by = coupling.captured, np.zeros(len(coupling.channels), bool), list[str]()
    read = {str(node.target) for node in captured.module.graph.find_nodes(op="get_attr")}
    tensors = dict(captured.model.named_parameters()), dict(captured.model.named_buffers())
    shapes = {
        name: x.shape for each in tensors for name, x in each.items() if name in captured.unused or name not in read
    }
    for name, size in ((name, size) for name, shape in shapes.items() for size in shape):
        for axis in coupling.axes:
            channels = coupling.channels.resolve(axis.labels)
            if axis.makes and len(channels) == size and channels.any():
                flags[channels] = True
                by += [name] if name not in by else []
    flags[0] = False
    return flags, by


def sizes_read(coupling: Coupling, also: Sequence[Called] = ()) -> Readings:
    """Returns what the original's forward says of its sizes, on the example, in whatever ways it is called."""
    captured, dimensions = coupling.captured, Dimensions(coupling)
    cut, sizes = dimensions.cut(), list[Reading]()
    values = values_of(captured, _varied(captured.model), cut.keys())
    whole, shared = list(uncounted(coupling)), list[tuple[Axis, ...]]()
    for way in (nn.Module.__call__, *also):
        named, alike = _read(captured, values, dimensions, way)
        sizes, shared = sizes + named, shared + alike
    whole += _fixed(coupling)
    for name, dims in cut.items():
        for dim, axes in dims.items():
            if dim in values.even.get(name, ()):
                shared.append(tuple(axes))
            else:
                whole += axes
    return Readings(tuple(sizes), tuple(whole), tuple(shared))


def _fixed(coupling: Coupling) -> Iterator[Axis]:
    """Yields the axes of weights that the model computes, and could not compute with fewer coordinates."""
    captured = coupling.captured
    for node, axes in coupling.values.items():
        name = str(node.target)
        if node.op == "get_attr" and name in captured.folded:
            owner, attribute = captured.model.get_submodule(layer_of(name)), name.rpartition(".")[2]
            yield from (
                axis for dim, axis in enumerate(axes) if is_labelled(axis) and not can_shrink(owner, attribute, dim)
            )


def _read(captured: Captured, values: Values, dimensions: Dimensions, way: Called) -> Any:
    """Returns what `read_sizes` does.

    Raises:
        RestoreError: a copy of the model does not run so.
    """
    try:
        model = _varied(captured.model)
        return read_sizes(model, example_call(captured), values, dimensions, way, captured.unused)
    except Exception as error:  # of any class
        raise RestoreError(
            f"a copy of the model, run to see where its sizes come from, raises {brief(error)}: hooks and functions that it holds must "
            "work on a copy (copy.deepcopy(model)) as well"
        ) from error


def _varied(model: nn.Module) -> nn.Module:
    model = copied(model)
    varied(model)
    return model


def restored(
    selection: Selection,
    pruned: nn.Module,
    way: Way,
    calls: Sequence[Call],
    numbers: Mapping[Key, float] = MappingProxyType({}),
) -> nn.Module:
    """Returns a copy of the original of its own class, pruned as the graph is and proven equal to it, in evaluation mode.

    Args:
        selection: what went.
        pruned: the emitted graph, its values whatever has become of them since.
        way: what is known of the original.
        calls: on which both are compared, ``(args, kwargs)`` each; but for the first, where original and graph take them.
        numbers: what numbers of the modules were once before; an integer only where that was less than it is now.

    Raises:
        RestoreError: the class cannot say it, or computes something else.
    """
    captured, slicer = selection.coupling.captured, selection.slicer
    cut = Dimensions(selection.coupling).of_buffers(slicer)
    if way.joined is not None:
        cut = way.joined.kept(selection) | cut
    home = with_tensors(captured.model, pruned, captured, cut, keep_indices(selection))
    allowed = tolerance_of(captured)
    without = gone(way.layers, selection.removed)
    sizes = [reading for reading in way.readings.sizes if not within(reading.line.module, without)]
    solved = solve(list(equations(sizes, slicer)), slicer)
    changed(home, {**solved.values, **_made(way.readings.made, solved.values)})
    layers_told(home)
    made_up(home, statistics_of(selection))
    taken_out(home, pruned, without)
    _forget(home)
    if way.readings.made:
        replaced(home, getattr(home, SETTINGS), settings_of(home))
    if numbers:
        changed(home, _known(home, numbers), (int, float))
    further = [call for call in calls[1:] if takes(captured.model, call) and takes(pruned, call)]
    for call in (*calls[:1], *further):
        if (told := difference(home, pruned, call, allowed=allowed)) is not None:
            raise RestoreError(_explained(told, solved))
    check_apart(home, captured.model, calls[0])
    for other in way.also:
        if (told := difference(copied(home), pruned, calls[0], other, allowed)) is not None:
            raise RestoreError(_explained(f"called by {getattr(other, '__name__', other)}, {told}", solved))
    if (told := untrained(captured.model, home, calls[0])) is not None:
        raise RestoreError(_explained(told, solved))
    return home.eval()


def _made(integers: Mapping[Key, Term], values: Mapping[Place, int]) -> dict[Place, int]:
    """Returns what modules keep of settings that have other values now."""
    found = {
        Place(module, steps, -1): evaluate(
            term, lambda leaf: values.get(leaf, leaf.value) if isinstance(leaf, Place) else leaf.value
        )
        for (module, steps), term in integers.items()
    }
    return {place: value for place, value in found.items() if value is not None}


def untrained(model: nn.Module, home: nn.Module, call: Call, *, same_shapes: bool = True) -> str | None:
    """Returns in what a restored model fails in training mode where the original does not, None if it does not fail.

    Args:
        model: the original.
        home: what is left of it.
        call: of both.
        same_shapes: whether its outputs have the original's shapes; those of a model that decides by values need not.
    """
    try:
        want = _in_training(model, call)
    except Exception:  # of any model, which may want targets
        return None
    try:
        got = _in_training(home, call)
    except Exception as error:
        return f"in training mode it raises {brief(error)}"
    if same_shapes and [x.shape for x in got] != [x.shape for x in want]:
        return (
            f"in training mode it gives {[tuple(x.shape) for x in got]}, the original {[tuple(x.shape) for x in want]}"
        )
    return None


def _in_training(model: nn.Module, call: Call) -> list[Tensor]:
    with random_states_kept(), lent(model, call, training=True):
        return tensors_of(model(*call[0], **call[1]))


def _forget(home: nn.Module) -> None:
    """Has a class that keeps what it computed of its tensors in evaluation mode forget it, as it does when it trains.

    Raises:
        RestoreError: its ``train()`` raises.
    """
    try:
        home.train().eval()
    except Exception as error:  # of any class
        raise RestoreError(
            f"the model's own train() and eval(), called on what is left, raise {brief(error)}"
        ) from error


def _known(home: nn.Module, numbers: Mapping[Key, float]) -> dict[Place, float]:
    own = numbers_in(home)
    return {
        Place(*key, 0): value
        for key, value in numbers.items()
        if type(value) is type(own.get(key)) and (type(value) is float or 0 < value < own[key])
    }


def _explained(told: str, solved: Solved) -> str:
    lines = [f"the original's class cannot hold what is left: {told}"]
    for wrong, right in solved.conflicts[:3]:
        rival = "" if right is None else f" where {_wants(right)}"
        lines.append(f"{_wants(wrong)}{rival}")
    return ". ".join(lines)


def _wants(equation: Equation) -> str:
    reading = equation.reading
    if reading.named == "divides":
        return f"{reading.line} divides a size without a rest"
    if reading.named == "equal":
        return f"{reading.line} compares a size, or computes with it, that is another then"
    return f"{reading.line}: {reading.call} needs {equation.wanted}"
