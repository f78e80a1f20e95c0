"""A model run on fake tensors, in training and in evaluation mode: what it does in one that it does not in the other."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune._base.modes import guarded, requiring_the_same, untouched
from fxprune.capturing.blame import Watch, first_line, watching
from fxprune.capturing.checkpoints import plain_checkpoints
from fxprune.capturing.exported import without_fast_path
from fxprune.capturing.fakes import Fakes, Outcomes, unlogged
from fxprune.capturing.hooks import HookWatch
from fxprune.capturing.hooks import listed as _listed
from fxprune.capturing.marks import MARK
from fxprune.capturing.prepared import Example

ATTENTION = "attention"
WEIGHTS = "attention weights"
DROPOUT = "dropout"

#: Kind of a dropout -> module -> its probabilities, call by call.
Calls = Mapping[str, Mapping[str, Sequence[float]]]

_NORMS = (_BatchNorm, _InstanceNorm)
#: Norms, and which of their arguments, where, says that they are over the batch.
_FLAGS = {F.batch_norm: ("training", 5), torch.batch_norm: ("training", 5), F.instance_norm: ("use_input_stats", 5)}
#: What is told of by itself, whatever numbers and flags it is given.
_TOLD = (*_FLAGS, F.scaled_dot_product_attention, F.multi_head_attention_forward)
_DROPOUTS = (F.dropout, torch.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


@dataclass(slots=True)
class Observation:
    """What a model did in one run.

    Attributes:
        outputs: The structure of what it returned, and of each leaf its rank and dtype.
        calls: How often each module called each function that makes a floating tensor or writes to a buffer, with which
            numbers and flags.
        norms: Whether each batch and instance norm was over the batch, module by module and call by call.
        assigned: Names of the buffers that became another tensor.
        used: Names of the parameters that were given to a function.
        dropouts: The dropouts.
        twice: Modules that change a buffer within an activation checkpoint.
        hooking: Modules that put hooks on gradients.
        switched: Names of the parameters whose ``requires_grad`` it changed.
    """

    outputs: tuple[Any, tuple[Any, ...]] = (None, ())
    calls: Counter[tuple[str, str, tuple[Any, ...]]] = field(default_factory=Counter)
    norms: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    assigned: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    dropouts: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    twice: set[str] = field(default_factory=set)
    hooking: set[str] = field(default_factory=set)
    switched: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Training:
    """How training mode differs from evaluation mode.

    Attributes:
        dropouts: What is dropped in training.
        norms: Modules whose batch or instance norms are over the batch in training, and over the past in evaluation.
        resting: Modules that the model leaves in evaluation mode as it trains, by name.
        notes: What happens in one of the modes alone.
        failure: Why the modes could not be compared; empty if they were.
        hooking: Modules that put hooks on gradients in either mode, by name.
    """

    dropouts: Calls = field(default_factory=dict)
    norms: frozenset[str] = frozenset()
    resting: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    failure: str = ""
    hooking: frozenset[str] = frozenset()


def compare_modes(model: nn.Module, example: Example, silent: Set[str]) -> Training:
    """Run the model in both modes and say how they differ; the model is left as it was.

    Args:
        model: The model.
        example: The example call.
        silent: Modules that do something in training alone, and are kept as they are.
    """
    resting: frozenset[str] = frozenset()
    fakes = Fakes()
    try:
        resting, frozen = _after_train(model)
        trained = _observe(model, example, fakes, training=True, resting=resting)
    except Exception as error:  # whatever the model raises, its graph of evaluation mode stands
        return Training(resting=resting, failure=_not_compared("training", error))
    resting |= {path for path, batch in trained.norms.items() if not any(batch)}
    notes = [f"train() of the model freezes {_listed(frozen)}: that of the result does not"] if frozen else []
    try:
        evaluated = _observe(model, example, fakes, training=False, resting=frozenset())
    except Exception as error:  # export succeeded on another kind of tensors without values
        found = _not_compared("evaluation", error)
        return Training(
            trained.dropouts, resting=resting, notes=tuple(notes), failure=found, hooking=frozenset(trained.hooking)
        )
    alone = _working_alone(trained, evaluated, silent)
    notes += _differences(model, trained, evaluated, silent, alone)
    norms = frozenset(path for path, batch in trained.norms.items() if batch != evaluated.norms.get(path, batch))
    hooking = frozenset(trained.hooking | evaluated.hooking)
    return Training(_without(trained.dropouts, alone), norms, resting, tuple(notes), hooking=hooking)


def _not_compared(mode: str, error: Exception) -> str:
    return (
        f"the model does not run in {mode} mode on tensors without values, so that what only training does could not be "
        f"found out: {first_line(error)}"
    )


def _without(dropouts: Calls, modules: Set[str]) -> Calls:
    return {
        kind: {path: calls for path, calls in seen.items() if not _lies_in(path, modules)}
        for kind, seen in dropouts.items()
    }


def _differences(
    model: nn.Module, trained: Observation, evaluated: Observation, silent: Set[str], alone: Set[str]
) -> Iterator[str]:
    own = {path for path, module in model.named_modules() if _is_own(module)}
    if trained.outputs[0] != evaluated.outputs[0]:
        yield (
            f"the model returns {_shown(trained.outputs)} in training mode and {_shown(evaluated.outputs)} in evaluation "
            "mode: the result returns the latter in both"
        )
    elif trained.outputs != evaluated.outputs:
        yield "the model returns tensors of other ranks or dtypes in training mode: the result returns those of evaluation mode"
    if alone:
        yield f"{_listed(alone)} of the model work in training mode alone: the result does not have them"
    if trained.twice:
        yield (
            f"{_listed(trained.twice)} change buffers within an activation checkpoint, which the model computes twice in a "
            "training step: the result does so once"
        )
    if switched := trained.switched | evaluated.switched:
        yield f"the forward pass changes requires_grad of {_listed(switched)}: that of the result does not"
    if only := {name for name in trained.used - evaluated.used if not _lies_in(name, alone)}:
        yield f"only training uses {_listed(only)}: the result does not"
    if assigned := trained.assigned - evaluated.assigned:
        yield f"only training assigns {_listed(assigned)}: the result does not"
    for first, second, mode in ((trained, evaluated, "training"), (evaluated, trained, "evaluation")):
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for (path, name, numbers), count in (first.calls - second.calls).items():
            if path in own and not _lies_in(path, silent | alone):
                differ = any(key[:2] == (path, name) for key in second.calls - first.calls)
                found[path][f"{name}({', '.join(map(str, numbers))})" if differ else name] += count
        for path, counts in found.items():
            names = [f"{shown} ({count} times)" if count > 1 else shown for shown, count in counts.items()]
            does = "does not" if mode == "training" else "does so in both"
            where = f"module {path!r}" if path else "the model"
            yield f"{where} calls {', '.join(sorted(names)[:6])} in {mode} mode alone: the result {does}"


def _is_own(module: nn.Module) -> bool:
    """Return whether a module does what torch's layers do not by themselves: a class of the user's, a hook, a parametrization."""
    kind = type(module).__module__
    hooked = module._forward_pre_hooks or module._forward_hooks
    return bool(hooked) or not kind.startswith("torch.nn.") or kind.startswith("torch.nn.utils.")


def _working_alone(trained: Observation, evaluated: Observation, silent: Set[str]) -> set[str]:
    """Return the outermost modules that make calls in training mode alone, by name."""
    seen = {""}
    for path, *_ in evaluated.calls:
        parts = path.split(".")
        seen |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    found = set()
    for path, *_ in trained.calls:
        if path not in seen and not _lies_in(path, silent):
            parts = path.split(".")
            heads = (".".join(parts[: i + 1]) for i in range(len(parts)))
            found.add(next(head for head in heads if head not in seen))
    return found


def _lies_in(path: str, modules: Set[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _shown(outputs: tuple[Any, tuple[Any, ...]]) -> str:
    spec, leaves = outputs
    kind = spec.context if isinstance(spec.context, type) else spec.type  # of a named tuple
    return "a tensor" if spec.is_leaf() else f"a {getattr(kind, '__name__', kind)} of {len(leaves)}"


def _after_train(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules that the model's own ``train()`` leaves in evaluation mode, and the parameters that it freezes."""
    if all(type(module).train is nn.Module.train and "train" not in vars(module) for module in model.modules()):
        return frozenset(), frozenset()
    before = {name: (p, p.requires_grad, p.data) for name, p in model.named_parameters()}
    with untouched(model, training=False), guarded([*model.parameters(), *model.buffers()]):
        try:
            model.train()
            resting = frozenset(path for path, module in model.named_modules() if not module.training)
            frozen = frozenset(name for name, (p, trains, _) in before.items() if trains and not p.requires_grad)
        finally:
            for parameter, trains, data in before.values():
                parameter.data = data
                parameter.requires_grad_(trains)
    return resting, frozen


def _observe(model: nn.Module, example: Example, fakes: Fakes, *, training: bool, resting: Set[str]) -> Observation:
    """Run the model on fake tensors, which have gradients as in training: a forward pass may look for them."""
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(unlogged())
        stack.enter_context(untouched(model, training=training))
        stack.enter_context(without_fast_path())
        for path in resting:
            vars(model.get_submodule(path))["training"] = False
        watch = stack.enter_context(watching(model))
        stack.enter_context(fakes.mode)
        names, buffers = _put_fakes(model, fakes)
        switched = stack.enter_context(requiring_the_same(model))
        given = example.bound.args, example.bound.kwargs
        args, kwargs = pytree.tree_map_only(Tensor, lambda value: fakes.mode.from_tensor(value.detach()), given)
        norms = {path for path, module in model.named_modules() if isinstance(module, _NORMS)}
        recorder = _Recorder(watch, names, buffers, norms)
        hooks = HookWatch(watch)
        with Outcomes(), plain_checkpoints(recorder.within_checkpoint), recorder, hooks:
            leaves, spec = pytree.tree_flatten(model(*args, **kwargs))
        recorder.found.assigned |= set(_assigned(model, buffers))
    recorder.found.hooking, recorder.found.switched = hooks.modules, switched
    recorder.found.outputs = spec, tuple((x.ndim, x.dtype) if isinstance(x, Tensor) else None for x in leaves)
    return recorder.found


def _put_fakes(model: nn.Module, fakes: Fakes) -> tuple[dict[int, str], set[int]]:
    """Put fake tensors in the place of the model's own; return the names of the parameters by identity, and the buffers'."""
    names: dict[int, str] = {}
    buffers: set[int] = set()
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake = fakes(tensor)
                    if held is module._parameters:
                        names.setdefault(id(fake), f"{path}.{name}" if path else name)
                    else:
                        buffers.add(id(fake))
    return names, buffers


def _assigned(model: nn.Module, buffers: Set[int]) -> Iterator[str]:
    """Yield the buffers that are not what was put there; a norm's own count is its own matter."""
    for path, module in model.named_modules():
        for name, tensor in module._buffers.items():
            if tensor is not None and id(tensor) not in buffers and not isinstance(module, _NORMS):
                yield f"{path}.{name}" if path else name


class _Recorder(TorchFunctionMode):
    """Notes every function that makes a floating tensor, and what it drops or normalises over, with the module that runs."""

    def __init__(self, watch: Watch, names: Mapping[int, str], buffers: Set[int], norms: Set[str]) -> None:
        super().__init__()
        self._watch = watch
        self._norms = norms
        self._names = names
        self._buffers = buffers
        self._checkpoints = 0
        self.found = Observation()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call, then make it."""
        kwargs = kwargs or {}
        if func is torch.Tensor.__bool__ and isinstance(args[0], FakeTensor):
            return False  # the one decision that models leave to chance is whether to skip a layer
        if getattr(func, "__name__", "") == "__get__":  # an attribute
            self._use(args[:1])
            return func(*args, **kwargs)
        path = self._watch.running[-1] if self._watch.running else ""
        self._use(pytree.tree_leaves((args, kwargs)))
        if func is F.scaled_dot_product_attention:
            self._note(ATTENTION, path, kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        elif func is F.multi_head_attention_forward:
            given = _given(func, args, kwargs)
            kind = WEIGHTS if given["need_weights"] else ATTENTION
            self._note(kind, path, given["dropout_p"] if given["training"] else 0.0)
        elif func in (F.dropout, torch.dropout):
            given = _given(F.dropout, args, {"training" if k == "train" else k: v for k, v in kwargs.items()})
            self._note(DROPOUT, path, given["p"] if given["training"] else 0.0)
        elif func in _FLAGS:
            self.found.norms[path].append(_over_batch(func, args, kwargs))
        name = getattr(func, "__name__", str(func))
        writes = name.endswith("_") and bool(args) and id(args[0]) in self._buffers
        if self._checkpoints and writes:
            self.found.twice.add(path)
        counts = writes and path not in self._norms
        result = func(*args, **kwargs)
        if func is MARK:  # it is what watches the modules that makes this call
            return result
        if func not in _DROPOUTS and (counts or _is_real(result)):
            numbers = () if func in _TOLD else tuple(_numbers(args, kwargs))
            self.found.calls[path, name, numbers] += 1
        return result

    @contextmanager
    def within_checkpoint(self) -> Iterator[None]:
        """Take note that an activation checkpoint runs."""
        self._checkpoints += 1
        try:
            yield
        finally:
            self._checkpoints -= 1

    def _use(self, values: Sequence[Any]) -> None:
        self.found.used.update(self._names[id(value)] for value in values if id(value) in self._names)

    def _note(self, kind: str, path: str, probability: float) -> None:
        self.found.dropouts[kind][path].append(float(probability))


def _over_batch(func: Any, args: Any, kwargs: Any) -> bool:
    name, position = _FLAGS[func]
    default = func is F.instance_norm
    return bool(args[position] if len(args) > position else kwargs.get(name, default))


def _numbers(args: Any, kwargs: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, (bool, int, float, complex, str)):
            yield leaf


def _is_real(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_real, value))
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _given(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults filled in."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
