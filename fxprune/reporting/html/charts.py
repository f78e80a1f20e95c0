"""The charts: matplotlib figures in roles instead of colours, each for a wide screen and for a phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, groupby
from math import log10
from typing import Any, Concatenate, ParamSpec

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fxprune.reporting.html.svg import ROLES, embedded
from fxprune.results.scores import ScoreSummary

P = ParamSpec("P")

#: Pixels across, on a wide screen and on a phone.
WIDE, NARROW = 760, 324

_ROW = 22  # pixels a row
_HALF = 0.36  # of a row is half a bar
_LETTER = 6.9  # pixels; some letters are wider, most are not


def chart(
    name: str, title: str, text: str, draw: Callable[Concatenate[int, P], Figure], *args: P.args, **kwargs: P.kwargs
) -> dict[str, Markup]:
    """Returns a chart as markup, ``wide`` and ``narrow``.

    Args:
        name: what its ids begin with.
        title: its accessible name.
        text: what it shows, in words.
        draw: one of the functions below, which takes the pixels across.
        args: what it takes beside.
        kwargs: likewise.
    """
    sizes = {"wide": WIDE, "narrow": NARROW}
    return {
        kind: embedded(partial(draw, width, *args, **kwargs), f"{name}-{kind}", title, text)
        for kind, width in sizes.items()
    }


def bars(width: int, rows: Sequence[tuple[str, float, float]], unit: str) -> Figure:
    """Draws rows of (name, before, after) as bars."""
    names, before, after = zip(*rows, strict=True)
    figure, axes = _named_rows(width, names)
    _rows(axes, before, "before", outlined=True)
    _rows(axes, after, "after")
    axes.set(xlim=(0, max(*before, *after, 1) * 1.02), xlabel=unit)
    axes.grid(axis="x")
    _ticks(axes.xaxis, width)
    return figure


def stages(width: int, seconds: Mapping[str, float]) -> Figure:
    """Draws the stages' seconds."""
    values = list(seconds.values())
    figure, axes = _named_rows(width, list(seconds))
    _rows(axes, values, "after")
    axes.set(xlim=(0, (max(values) or 1) * (1.12 if width == WIDE else 1.3)), xlabel="seconds")
    axes.grid(axis="x")
    for row, value in enumerate(values):
        shown = f"{value:.2f}"
        axes.annotate(shown, (value, row), (6, 0), textcoords="offset points", va="center", color=ROLES["muted"])
    return figure


def histogram(width: int, scores: ScoreSummary) -> Figure:
    """Draws how many units have which score, kept and removed, with the cut."""
    figure, axes = _figure(width, 260, top=24)
    edges = _places(scores, *scores.edges)
    _steps(axes, scores.total, edges, "after")
    _steps(axes, scores.removed, edges, "removed")
    axes.set(ylim=(0, max(scores.total) * 1.04), ylabel="units")
    axes.grid(axis="y")
    _ticks(axes.yaxis, width)
    _score_axis(axes, scores, width)
    return figure


def strips(width: int, scores: ScoreSummary) -> Figure:
    """Draws how the scores of every group are distributed, side by side over one axis."""
    groups, edges = scores.groups, _places(scores, *scores.edges)
    figure, axes = _named_rows(width, [group.name for group in groups], top=24)
    axes.hlines([row + _HALF for row in range(len(groups))], edges[0], edges[-1], ROLES["line"], linewidth=0.8)
    for role, counts in (("after", [g.total for g in groups]), ("removed", [g.removed for g in groups])):
        shapes = [
            shape
            for row, (group, mine) in enumerate(zip(groups, counts, strict=True))
            for shape in _skylines(edges, mine, row + _HALF, 2 * _HALF / max(*group.total, 1))
        ]
        axes.add_collection(PolyCollection(shapes, facecolor=ROLES[role], linewidth=0))
    for row, group in enumerate(groups):
        for place in _places(scores, group.cut):
            axes.plot([place, place], [row - 0.45, row + 0.45], color=ROLES["cut"], linewidth=1.6)
    _score_axis(axes, scores, width)
    return figure


def scatter(
    width: int,
    series: Mapping[str, Sequence[tuple[float, float]]],
    front: Sequence[tuple[float, float]],
    dense: tuple[float, float] | None,
    labels: tuple[str, str],
) -> Figure:
    """Draws (cost, quality) by method, the Pareto front and the dense model."""
    figure, axes = _figure(width, 340, left=66, top=40 if width == WIDE else 64)
    axes.grid()
    if front:
        axes.plot(*zip(*front, strict=True), color=ROLES["removed"], linewidth=2, zorder=2, label="Pareto front")
    dots: dict[str, Any] = {"linestyle": "none", "zorder": 3}
    looks = zip(series.items(), cycle("os^DvPX*"), cycle(("after", "removed", "third", "fourth")), strict=False)
    for (name, points), marker, role in looks:
        edge, label = ROLES["paper"], _elided(name, width)
        axes.plot(*zip(*points, strict=True), marker, **dots, color=ROLES[role], markeredgecolor=edge, label=label)
    if dense is not None:
        ring: dict[str, Any] = {"markerfacecolor": ROLES["paper"], "markeredgecolor": ROLES["ink"]}
        axes.plot(*dense, "o", **dots, **ring, markeredgewidth=1.5, label="dense")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    _ticks(axes.xaxis, width, whole=False)
    axes.margins(0.08)
    figure.legend(
        loc="upper left", ncols=4 if width == WIDE else 2, labelcolor=ROLES["ink"], handletextpad=0.4, columnspacing=1.2
    )
    return figure


def _figure(
    width: int, height: float, *, left: float = 58, right: float = 8, top: float = 10, bottom: float = 46
) -> tuple[Figure, Axes]:
    """Returns a figure and its axes; margins are in pixels: measuring labels takes long."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    box = left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes(box)


def _named_rows(width: int, names: Sequence[str], *, top: float = 4) -> tuple[Figure, Axes]:
    """Returns a figure with a row for each name, front one on top, the name to the left of it."""
    shown = [_elided(name, width) for name in _without_prefix(names)]
    left = 14 + _LETTER * max(map(len, shown))
    figure, axes = _figure(width, _ROW * max(len(names), 2) + top + 46, left=left, right=14, top=top)
    axes.set(yticks=[], ylim=(len(names) - 0.4, -0.6))
    place = -8 / (width - left - 14)
    for row, name in enumerate(shown):
        axes.text(place, row, name, transform=axes.get_yaxis_transform(), ha="right", va="center")
    return figure, axes


def _rows(axes: Axes, values: Sequence[float], role: str, *, outlined: bool = False) -> None:
    """Draws a bar a row, all of them as one shape."""
    edges = [row + side for row in range(len(values)) for side in (-_HALF, _HALF)]
    heights = [height for value in values for height in (value, 0.0)][:-1]
    _steps(axes, heights, edges, role, outlined=outlined, orientation="horizontal")


def _steps(
    axes: Axes, heights: Sequence[float], edges: Sequence[float], role: str, *, outlined: bool = False, **how: Any
) -> None:
    axes.stairs(heights, edges, fill=True, color=ROLES[role], linewidth=0, **how)
    if outlined:
        axes.stairs(heights, edges, color=ROLES["edge"], linewidth=1, **how)


def short(value: float) -> str:
    """Returns a number as axes show it: ``1.2M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _ticks(
    axis: Any, width: int, wide: int = 6, narrow: int = 3, *, whole: bool = True, form: Callable[[float], str] = short
) -> None:
    """Marks an axis at so many values at most, on a wide screen and on a phone."""
    axis.set_major_locator(MaxNLocator(nbins=wide if width == WIDE else narrow, integer=whole))
    axis.set_major_formatter(lambda value, _: form(value))


def _elided(name: str, width: int) -> str:
    """Returns a name that fits beside the bars; its end tells more than its middle."""
    most = 34 if width == WIDE else 15
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def _without_prefix(names: Sequence[str]) -> list[str]:
    """Returns the names without the longest path that at least half of them begin with."""
    paths = Counter(name[: i + 1] for name in names for i, letter in enumerate(name) if letter == ".")
    often = [path for path, count in paths.items() if 2 * count >= len(names) > 2]
    common = max(often, key=len, default="")
    return [f"…{name[len(common) :]}" if common and name.startswith(common) else name for name in names]


def _places(scores: ScoreSummary, *values: float | None) -> list[float]:
    """Returns where values stand, those that do: a logarithmic axis is drawn in powers of ten."""
    there = [value for value in values if value is not None and (value > 0 or not scores.log)]
    return [log10(value) for value in there] if scores.log else there


def _score_axis(axes: Axes, scores: ScoreSummary, width: int) -> None:
    form = (lambda value: f"{10**value:.0e}") if scores.log else "{:.3g}".format
    _ticks(axes.xaxis, width, 7, 4, whole=scores.log, form=form)
    first, *_, last = _places(scores, *scores.edges)
    axes.set(xlim=(first, last), xlabel=scores.unit)
    for cut in _places(scores, scores.cut):
        place = min(max(cut, first), last)
        axes.axvline(place, color=ROLES["cut"], linewidth=1.6, dashes=(4, 3))
        side, shift = ("right", -6) if place > (first + last) / 2 else ("left", 6)
        axes.annotate(
            "cut",
            (place, 1),
            (shift, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            va="bottom",
        )


def _skylines(
    edges: Sequence[float], counts: Sequence[int], floor: float, scale: float
) -> Iterator[list[tuple[float, float]]]:
    """Yields the outline of every run of filled bins, upwards from a floor; the axis points down."""
    bins = zip(edges, edges[1:], counts, strict=False)
    for filled, run in groupby(bins, key=lambda one: one[2] > 0):
        if filled:
            tops = [(place, floor - count * scale) for low, high, count in run for place in (low, high)]
            yield [(tops[0][0], floor), *tops, (tops[-1][0], floor)]
