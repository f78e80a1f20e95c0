"""Options: everything that a compilation may be told besides its model, data and budget, checked before any work begins.

Nothing here imports torch: the command line reads its options and their texts from this file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from fxprune._base.defaults import MEMORY_LIMIT, RIDGE
from fxprune._base.given import check_takes, is_share, is_whole, seed_of

if TYPE_CHECKING:
    import torch

    from fxprune.budget.constraints import Constraints
    from fxprune.recovery.protocol import Recovery
    from fxprune.scoring.loss import Loss
    from fxprune.scoring.scorer import Scorer

#: Stands for "whatever the method prefers".
AUTO: Literal["auto"] = "auto"

#: Stands for "what is found by measuring".
MEASURE: Literal["measure"] = "measure"

#: The form of a result in which the original's class comes back.
MODULE: Literal["module"] = "module"

UnitKind = Literal["channel", "expert", "head", "head_dim", "kv_group", "block"]

MethodName = Literal[
    "variance",
    "vbp",
    "joint",
    "obs",
    "spvr",
    "kl",
    "ippro",
    "ippro-literal",
    "taylor",
    "hrank",
    "chip",
    "magnitude",
    "l1",
    "l2",
    "fpgm",
    "bn_scale",
    "nisp",
    "reap",
    "random",
]

Form = Literal["graph", "module"]

Allocation = Literal["curves", "uniform", "search"]

Basis = Literal["pca"]

RecoveryOption = Literal["auto", "covariance", "sequential", "reconstruct", "mean_shift", "reinit"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a model is compiled; every field is a keyword argument of `fxprune.compile`.

    Attributes:
        method: the criterion: a `Scorer`, or a registered name: ``"variance"``, ``"vbp"``, ``"joint"``, ``"obs"``, ``"spvr"``,
            ``"ippro"``, ``"ippro-literal"``, ``"magnitude"``, ``"l1"``, ``"l2"``, ``"taylor"``, ``"fpgm"``, ``"bn_scale"``,
            ``"kl"``, ``"hrank"``, ``"chip"``, ``"nisp"``, ``"reap"``, ``"random"``.
        ratios: instead of a budget, the share of units to remove from every group; or shares by ``fnmatch`` pattern of layers,
            modules that hold them or tensors. A pattern reaches a group if it matches all the layers that make it, or a
            factor of their elementwise product, as the gate of a gated MLP; one with a kind, such as ``"*:expert"``, matches
            names of groups. A group's own name comes first, then the first pattern that reaches it, then ``"default"`` (0 if absent).
        allocation: how a budget is shared out among groups: ``"curves"``, by the criterion's scores as they are; ``"uniform"``, the
            same share of the units of each; or ``"search"``, by what each group alone, pruned and recovered, does to the outputs,
            or as one of the others if that leaves them closer (its time is some passes over one batch for each group).
        basis: ``"pca"`` gives streams of channels first in the basis of their principal components, wherever the model stays the
            same in it: the residual stream of a transformer that normalises what its layers read, linear bottlenecks. What goes of
            a stream is then what matters least in it (see `fxprune.rotate`).
        units: the kinds of unit that may go: ``"channel"``, ``"head"``, ``"kv_group"`` (a key and value head with all the
            query heads that share it; ``"head"`` is then one query head of every group), ``"head_dim"``,
            ``"expert"`` (of a mixture; it is gone from the router as well, which weighs and chooses among those that
            stay, as many as it chooses at least), and ``"block"`` for whole residual branches (``min_keep`` is about the
            others).
        ignore: ``fnmatch`` patterns of layers, or of modules that hold them, whose channels all stay.
        round_to: kept channels come in multiples of this. ``"auto"`` takes, under a budget, what the device's instructions or tensor
            cores work on at once, less in a group of few channels, so that no layer becomes slower than it was; ``"measure"`` measures
            which multiple the hardware likes; 1 leaves the criterion most to choose.
        min_keep: channels that every group keeps at least; with 0 whole residual branches may go; ``"auto"`` for the
            method's own choice, mostly 1.
        recover: ``"covariance"``, ``"sequential"``, ``"reconstruct"``, ``"mean_shift"`` (see `fxprune.recover`), a registered
            name or a `Recovery` of one's own, None for none, or ``"auto"`` for the method's own choice; or ``"reinit"``: all
            weights are drawn anew by their modules' own rule, to be trained from scratch. Then, with ``min_keep=0``, layers
            on the only path may go as well, the next layer reading what they read.
        ridge: damping of ``"covariance"`` and ``"sequential"``, as a share of the mean variance of a layer's inputs; with
            ``"auto"`` each layer that has few samples takes what is best on a quarter of them that the others do not see.
        holdout: the share of the batches, the last ones, that recovery does not see, and on which the result is compared with the dense
            model; one at least, unless there is but one. With 0 recovery has them all, and the comparison is on some that it has seen.
        allow_bias: layers that read what may go, and have no bias, get one, which a recovery may shift: a LLaMA has none, and ``"mean_shift"``
            nothing to change. The class of ``form="module"`` keeps its name, but a stock checkpoint has no room for them.
        loss: ``loss(outputs, targets)``, a mean over the batch, for methods that need gradients; cross-entropy by default, of the
            next token where the targets are tokens and the model's own loss, or the data, say so.
        form: what comes back: ``"graph"``, a `torch.fx.GraphModule` with layers of any width; or ``"module"``, a copy of the
            model, of its own class, with other tensors and sizes, proven equal to the graph. What the class can only say
            together (the halves of a ``chunk``) then goes together, and what it cannot say otherwise stays.
        also: for ``form="module"``: other ways to the same outputs, ``way(model, *args, **kwargs)``, whose sizes are to follow as
            well: such as one that switches to another attention, or to the methods that an exporter takes. Each gets a copy of
            the model.
        uniform: for ``form="module"`` and a class that makes its layers of a ``config``, as those of transformers do: one width for
            all layers that are made of one setting, so that the class makes all that is left again of other settings, and
            `fxprune.to_pretrained` writes a checkpoint that needs nothing of fxprune.
        forward_args: makes ``(args, kwargs)`` of a batch that has another form.
        dynamic_shapes: as `torch.export.export` takes it; the batch is dynamic by default.
        steps: compile in so many steps, each scored and recovered anew on what the one before left; needs a budget.
        strict: raise at an op without a rule instead of freezing what it touches.
        verify: compare the result with its masked twin on the first batch.
        verify_dtype: the precision of that comparison; by default the model's own, and float64 where that leaves doubt.
        memory_limit: bytes that scoring and recovery may use for statistics and values that are alive.
        cache_dir: a folder where long scoring keeps what it has, so that an interrupted run goes on where it was, and where
            measured latencies of layers are kept.
        seed: for methods that draw.
        progress: show a progress bar on a terminal; the log ``"fxprune"`` has a line with the time of each stage.
        alone: in a process group (``torchrun``) all processes compile together, each with a share of the batches, and all must call this with the
            same arguments and data; True where one process does so by itself.
        weights: where the weights of a model on the meta device are: a safetensors file, or a pattern such as
            ``"in/*.safetensors"``. Then the model is never in memory as a whole: layer by layer is read, scored, recovered and written
            to ``out``. For criteria that read weights or activations, and recoveries by covariance.
        out: the directory that the result of ``weights`` is written to, as by `fxprune.save`; new, empty, or an earlier one. What an
            interrupted call has done is kept beside it, and the next one goes on from there.
    """

    method: MethodName | str | Scorer = "variance"
    ratios: float | Mapping[str, float] | None = None
    allocation: Allocation = "curves"
    basis: Basis | None = None
    units: UnitKind | Sequence[UnitKind] = ("channel", "expert", "head", "head_dim", "kv_group")
    ignore: str | Sequence[str] = ()
    round_to: int | Literal["auto", "measure"] = AUTO
    min_keep: int | Literal["auto"] = AUTO
    recover: RecoveryOption | str | Recovery | None = AUTO
    ridge: float | Literal["auto"] = AUTO
    holdout: float = 0.1
    allow_bias: bool = False
    loss: Loss | None = None
    form: Form = "graph"
    also: Sequence[Callable[..., Any]] = ()
    uniform: bool = False
    forward_args: Callable[[Any], Any] | None = None
    dynamic_shapes: Any = None
    steps: int = 1
    strict: bool = False
    verify: bool = True
    verify_dtype: torch.dtype | None = None
    memory_limit: int = MEMORY_LIMIT
    cache_dir: str | PathLike[str] | None = None
    seed: int = 0
    progress: bool = True
    alone: bool = False
    weights: str | PathLike[str] | None = None
    out: str | PathLike[str] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Returns the options among a call's arguments."""
        return cls(**{entry.name: given[entry.name] for entry in fields(cls) if entry.name in given})

    def resolve(self, scorer: Scorer) -> Options:
        """Returns the options with the method's own choices where they are ``"auto"``, all checked.

        Raises:
            ValueError, TypeError: an option is malformed; says which, what was expected and what came.
        """
        found = replace(
            self,
            method=scorer,
            min_keep=self._least(scorer) if self.min_keep == AUTO else self.min_keep,
            recover=scorer.defaults.get("recover", "covariance") if _is_auto(self.recover) else self.recover,
            seed=seed_of(self.seed),
        )
        found.constraints()
        _check_types(found)
        _check_allocation(found)
        _check_basis(found)
        check_form(found)
        return found

    @property
    def damping(self) -> float:
        """The ridge, or where to look for one from."""
        return RIDGE if isinstance(self.ridge, str) else self.ridge

    def _least(self, scorer: Scorer) -> Any:
        return 1 if self.form == MODULE else scorer.defaults.get("min_keep", 1)

    def constraints(self) -> Constraints:
        """Returns what must stay; a single kind or pattern need not stand in a tuple. Multiples that are to be found are 1 for now.

        Raises:
            ValueError: an unknown kind, or a number that is too small.
            TypeError: what is no collection.
        """
        from fxprune.budget.constraints import Constraints

        kinds, patterns = several("units", self.units), several("ignore", self.ignore)
        known = UnitKind.__args__  # type: ignore[attr-defined]
        if unknown := [kind for kind in kinds if kind not in known] or not kinds:
            raise ValueError(f"units must be among {', '.join(known)}, got {unknown if kinds else self.units!r}")
        if strange := [pattern for pattern in patterns if not isinstance(pattern, str)]:
            raise ValueError(f"ignore takes patterns of layer names, got {strange[0]!r}")
        found = isinstance(self.round_to, str) and self.round_to in (AUTO, MEASURE)
        multiple: Any = 1 if found else self.round_to
        least = self.min_keep
        if type(multiple) is str:
            raise ValueError(f"round_to must be 'auto', 'measure' or an int of at least 1, got {multiple!r:.80}")
        _whole("round_to", multiple, 1)
        _whole("min_keep", least, 0)
        return Constraints(kinds, patterns, multiple, cast("int", least))


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


def several(name: str, value: Any) -> tuple[Any, ...]:
    """Returns an option that may be one text or a collection as a tuple.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterator) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected a str or several in a tuple, got {value!r:.80}")
    return tuple(value)


def _whole(name: str, value: Any, least: int) -> None:
    if not is_whole(value, least):
        raise ValueError(f"{name} must be an int of at least {least}, below 2**63, got {value!r:.80}")


def check_form(options: Options) -> None:
    """Makes sure that the form, and what is asked of it, are known and go together.

    Raises:
        TypeError, ValueError: they are not, or do not.
    """
    if options.form not in (forms := Form.__args__):  # type: ignore[attr-defined]
        raise ValueError(f"form must be among {', '.join(forms)}, got {options.form!r:.80}")
    if strange := [way for way in several("also", options.also) if not callable(way)]:
        raise TypeError(f"also: expected functions of (model, *args, **kwargs), got {strange[0]!r:.80}")
    if options.also and options.form != MODULE:
        raise ValueError("also is about the ways that the original's class is called in: give form='module' with it")
    for name in ("uniform", "allow_bias", "alone"):
        if not isinstance(getattr(options, name), bool):
            raise TypeError(f"{name}: expected True or False, got {getattr(options, name)!r:.80}")
    if options.uniform and options.form != MODULE:
        raise ValueError("uniform is about what the original's class makes of its settings: give form='module' with it")
    if options.form == MODULE and options.min_keep == 0:
        raise ValueError(
            "min_keep=0 lets whole branches go, which the original's class still calls: expected form='graph'"
        )


def _check_allocation(options: Options) -> None:
    if options.allocation not in (known := Allocation.__args__):  # type: ignore[attr-defined]
        raise ValueError(f"allocation must be among {', '.join(known)}, got {options.allocation!r:.80}")
    if options.allocation != "curves" and options.ratios is not None:
        raise ValueError(
            f"allocation={options.allocation!r} shares out a budget, and ratios are shares already: give one of them"
        )


def _check_basis(options: Options) -> None:
    if options.basis is not None and options.basis not in (known := Basis.__args__):  # type: ignore[attr-defined]
        raise ValueError(f"basis must be None or among {', '.join(known)}, got {options.basis!r:.80}")


def _check_folder(value: Any) -> None:
    path = fspath(value) if isinstance(value, PathLike) else value
    if not isinstance(path, str) or not path:
        raise TypeError(f"cache_dir: expected the path of a folder, or None, got {value!r:.80}")


def _check_types(options: Options) -> None:
    import torch

    from fxprune.recovery.protocol import check_recovery

    check_recovery(RIDGE if _is_auto(options.ridge) else options.ridge, options.memory_limit)
    _whole("steps", options.steps, 1)
    if not is_share(options.holdout):
        raise ValueError(f"holdout must be a share of the batches, from 0 to below 1, got {options.holdout!r:.80}")
    if options.forward_args is not None:
        check_takes(TypeError, "forward_args", options.forward_args, "batch")
    if options.loss is not None:
        check_takes(TypeError, "loss", options.loss, "outputs", "targets")
    if options.cache_dir is not None:
        _check_folder(options.cache_dir)
    dtype = options.verify_dtype
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"verify_dtype: expected a floating-point torch.dtype, got {dtype!r}")


def described(kind: type = Options) -> dict[str, str]:
    """Returns the text about each option, as `Options` or another class has it among its attributes, in one line."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", text, re.M | re.S)
    return {name: " ".join(body.split()) for name, body in entries}


def spelled_out(function: F, kind: type = Options) -> F:
    """Completes the docstring of a function that takes the options as arguments: what `Options` or another class says of each.

    The line ``(options)`` among the function's ``Args`` is where they go; those that it does not take are left out.
    """
    if function.__doc__:
        taken = inspect.signature(function).parameters
        text = "\n".join(f"        {name}: {body}" for name, body in described(kind).items() if name in taken)
        function.__doc__ = function.__doc__.replace("        (options)", text)
    return function
