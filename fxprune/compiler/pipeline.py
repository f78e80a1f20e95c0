"""The way through the stages: straight, in steps, or in parts of a model that cannot be captured whole."""

from __future__ import annotations

from fxprune.compiler.judging import Judge
from fxprune.compiler.parts import in_parts
from fxprune.compiler.stages import capture, from_scored, score, through, to_coupled
from fxprune.compiler.state import State
from fxprune.compiler.steps import in_steps


def run(state: State) -> State:
    """Returns the state at the end of a compilation."""
    return Judge(state)(from_captured(through(state, capture)))


def from_captured(state: State) -> State:
    """Returns the state at the end, from what could be captured on."""
    return on_parts(state) if state.captured is None else on_graph(state)


def on_graph(state: State) -> State:
    """Compiles a captured model, in as many steps as it is to take."""
    state = to_coupled(state)
    return in_steps(state, straight) if state.options.steps > 1 else from_scored(through(state, score))


def on_parts(state: State) -> State:
    """Compiles the parts of a model together, and puts them back."""
    return in_parts(state, lambda parts: on_graph(through(parts, capture)))


def straight(state: State) -> State:
    """Compiles a model in one step."""
    return from_scored(through(to_coupled(through(state, capture)), score))
