"""Bench: models side by side, over batch sizes and backends, latency and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError, FxpruneError, brief
from fxprune._base.modes import untouched
from fxprune.data.batch import read_batch
from fxprune.data.calls import Call, tensors_of
from fxprune.data.checks import device_of
from fxprune.latency.measure import interleaved, parameter_bytes, peak_bytes
from fxprune.results.attached import report_if_any
from fxprune.results.tables import table
from fxprune.runtimes.registry import BackendName, Run, names
from fxprune.runtimes.running import moved, ready
from fxprune.runtimes.setting import Setting, circumstances, threads_set
from fxprune.runtimes.sizes import repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One model under one setting.

    Attributes:
        model: its name.
        backend: how it was run.
        batch_size: samples a call.
        ms: the median of the samples; milliseconds a call.
        error: the standard error of that median, as a share of it.
        ratio: to the first model's latency, the median over the rounds in which all took their turn; None where that one
            did not run.
        parameter_bytes: of parameters and buffers, each once.
        peak_bytes: memory that one call needs at its highest beside the model and its inputs; None where the backend
            does not tell.
    """

    model: str
    backend: str
    batch_size: int
    ms: float
    error: float
    ratio: float | None
    parameter_bytes: int
    peak_bytes: int | None

    @property
    def speedup(self) -> float | None:
        """The first model's time by this one's; None where that one did not run."""
        return None if self.ratio is None else 1 / self.ratio

    def cells(self) -> tuple[str, ...]:
        """Returns it as a row of a table: backend, batch, model, ms, its error, speed-up, weights, peak."""
        speedup = "-" if self.speedup is None else f"{self.speedup:.2f} x"
        peak = "-" if self.peak_bytes is None else _size(self.peak_bytes)
        times = f"{self.ms:.3f}", f"{100 * self.error:.1f} %", speedup
        return (self.backend, str(self.batch_size), self.model, *times, _size(self.parameter_bytes), peak)


@dataclass(frozen=True, slots=True)
class Bench:
    """What `bench` measured; ``print(bench)`` is a table.

    Attributes:
        rows: by backend, batch size and model.
        device: where.
        threads: that an operator might use on the CPU.
        failed: why a backend did not run a model, a line each.
    """

    rows: tuple[BenchRow, ...]
    device: str
    threads: int
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns the table."""
        heads = ("backend", "batch", "model", "ms", "+-", "speed-up", "weights", "peak")
        cells = [row.cells() for row in self.rows]
        title = circumstances(self.device, self.threads)
        return "\n".join([table(title, cells, heads, words=("backend", "model")), *self.failed])

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        rows = [{**asdict(row), "speedup": row.speedup} for row in self.rows]
        return {"device": self.device, "threads": self.threads, "rows": rows, "failed": list(self.failed)}


def bench(
    models: Mapping[str, nn.Module] | Sequence[nn.Module],
    example: Any = None,
    *,
    batch_sizes: Sequence[int] = (1,),
    backends: BackendName | str | Sequence[BackendName | str] = ("eager",),
    threads: int | None = None,
    device: str | torch.device | None = None,
    repeats: int = 11,
    seconds: float = 2.0,
) -> Bench:
    """Measures models in turns: median latency, the speed-up over the first model, weights and peak memory.

    Args:
        models: by name, or a sequence: ``(dense, pruned)`` of two. They stay as they are, and run in eval mode.
        example: one batch as calibration data have it; its first dimension is the batch. None where a model is fxprune's
            own, whose plan knows the shapes.
        batch_sizes: the example's samples are repeated to these.
        backends: runtimes, or one, by name: ``"eager"``, ``"compiled"``, ``"onnxruntime"``, ``"torch.export"``,
            ``"aotinductor"``, ``"openvino"``, ``"executorch"``, ``"ncnn"``, ``"litert"``, or one of your own (`register_runtime`).
        threads: that an operator may use on the CPU; by default as many as torch uses now.
        device: where; by default where the first model is.
        repeats: samples of each model, at least.
        seconds: for each model and setting, about, once there are ``repeats`` samples.

    Raises:
        FxpruneError: no model, a malformed argument, or no backend ran.
        CalibrationError: the example is no batch.
    """
    named = _named(models)
    backends = (backends,) if isinstance(backends, str) else backends
    where = str(device or device_of(next(iter(named.values()))))
    settings = [Setting.of(where, size, backend, threads) for backend in backends for size in batch_sizes]
    if not settings:
        raise FxpruneError(f"bench: expected a batch size and one of {', '.join(names())}, got none")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise FxpruneError(f"bench: repeats: expected an int of at least 1, got {repeats!r}")
    call = _example(example, named)
    failed: list[str] = []
    here = {name: moved(model, where) for name, model in named.items()}
    with ExitStack() as stack:
        for model in here.values():
            stack.enter_context(untouched(model, training=False))
        found = [_measured(here, _resized(call, each), each, repeats, seconds, failed) for each in settings]
    if not any(found):
        raise FxpruneError("bench: nothing ran: " + "; ".join(failed))
    return Bench(tuple(chain(*found)), where, settings[0].threads, tuple(dict.fromkeys(failed)))


def _named(models: Any) -> dict[str, nn.Module]:
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    else:
        listed = [models] if isinstance(models, nn.Module) else list(models)
        two = ("dense", "pruned") if len(listed) == 2 else ()
        named = dict(zip(two or [f"model {i}" for i in range(len(listed))], listed, strict=True))
    strange = [type(model).__name__ for model in named.values() if not isinstance(model, nn.Module)]
    if not named or strange:
        got = strange[0] if strange else "none"
        raise FxpruneError(f"bench: expected models by name, or (dense, pruned), got {got}")
    return named


def _example(example: Any, named: Mapping[str, nn.Module]) -> Call:
    if example is not None:
        args, kwargs, _ = read_batch(example, 0)
        return args, kwargs
    for model in named.values():
        if (found := report_if_any(model)) is not None and found.plan is not None:
            return found.plan.example.call(model, device_of(model))
    raise CalibrationError("bench: example: expected a batch, got None, and no model is fxprune's own")


def _resized(call: Call, setting: Setting) -> Call:
    """Returns the call at the setting's batch size and device: every tensor as long as the first is a batch."""
    size = next((len(leaf) for leaf in tensors_of(call) if leaf.ndim), None)
    if size is None:
        raise CalibrationError("bench: example: expected a batch with a tensor, got none")

    def fit(leaf: Tensor) -> Tensor:
        if leaf.ndim and len(leaf) == size:
            leaf = repeated(leaf, 0, setting.batch_size)
        return leaf.to(setting.device)

    resized: Call = pytree.tree_map_only(Tensor, fit, call)
    return resized


def _measured(
    models: Mapping[str, nn.Module], call: Call, setting: Setting, repeats: int, seconds: float, failed: list[str]
) -> list[BenchRow]:
    with threads_set(setting.threads):
        runs = _ready(models, call, setting, failed)
        timings = interleaved(list(runs.values()), repeats=repeats, seconds=seconds, device=setting.device)
        peaks = [peak_bytes(run, setting) for run in runs.values()]
    first = timings[0] if next(iter(models)) in runs else None
    return [
        BenchRow(
            model=name,
            backend=setting.backend,
            batch_size=setting.batch_size,
            ms=timing.ms,
            error=timing.error,
            ratio=None if first is None else timing.beside(first),
            parameter_bytes=parameter_bytes(models[name]),
            peak_bytes=peak,
        )
        for name, timing, peak in zip(runs, timings, peaks, strict=True)
    ]


def _ready(models: Mapping[str, nn.Module], call: Call, setting: Setting, failed: list[str]) -> dict[str, Run]:
    """Returns what runs each model, once it has run; says of the others why they do not."""
    runs: dict[str, Run] = {}
    for name, model in models.items():
        try:
            run = ready(model, *call, setting)
            with torch.inference_mode():
                run()
            runs[name] = run
        except Exception as error:  # ours, or the model's own, such as a batch that is fixed
            why = " ".join(str(error).split()) if isinstance(error, FxpruneError) else brief(error)
            failed.append(f"{name}: {setting}: {why}")
    return runs


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
