"""The charts: matplotlib figures in roles instead of colours, each for a wide screen and for a phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import log10
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fxprune.reporting.html.svg import ROLES, embedded
from fxprune.results.scores import ScoreSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Pixels across, on a wide screen and on a phone.
WIDE, NARROW = 760, 324

#: Up to so many rows a bar chart names them; more are drawn as a skyline, front to back.
NAMED = 60

_ROW = 22  # pixels a row
_HALF = 0.36  # of a row is half a bar
_LETTER = 6.9  # pixels; some letters are wider, most are not


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure of the page.

    Attributes:
        name: what its ids begin with.
        wide: markup for a wide screen.
        narrow: markup for a phone.
    """

    name: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True, slots=True)
class Bars:
    """Rows of a bar chart: a name, and what there was before and is after."""

    names: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


def widths(name: str, bars: Bars, unit: str, title: str, description: str) -> Chart:
    """Returns a chart of groups' units, before and after."""
    draw = _bars if len(bars.names) <= NAMED else _skyline
    return _chart(name, partial(draw, bars, unit=unit.lower()), title, description)


def costs(name: str, bars: Bars, unit: str, title: str, description: str) -> Chart:
    """Returns a chart of what the costliest layers cost, before and after."""
    return _chart(name, partial(_bars, bars, unit=unit), title, description)


def seconds(names: Sequence[str], values: Sequence[float], title: str, description: str) -> Chart:
    """Returns the chart of the stages' seconds."""
    return _chart("seconds", partial(_stages, tuple(names), tuple(values)), title, description)


def distribution(scores: ScoreSummary, title: str, description: str) -> Chart:
    """Returns the histogram of all scores, kept and removed, with the cut."""
    return _chart("distribution", partial(_histogram, scores), title, description)


def strips(scores: ScoreSummary, title: str, description: str) -> Chart:
    """Returns the distribution of scores in every group, side by side over one axis."""
    return _chart("strips", partial(_strips, scores), title, description)


def tradeoff(
    name: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    front: Sequence[tuple[float, float]],
    dense: tuple[float, float] | None,
    labels: tuple[str, str],
    title: str,
    description: str,
) -> Chart:
    """Returns a scatter of quality against cost, with the Pareto front and the dense model."""
    return _chart(name, partial(_scatter, tuple(series), tuple(front), dense, labels), title, description)


def _chart(name: str, draw: Any, title: str, description: str) -> Chart:
    wide, narrow = (
        embedded(partial(draw, width=width), f"{name}-{kind}", title, description)
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )
    return Chart(name, wide, narrow)


def _figure(
    width: int, height: float, *, left: float = 58, right: float = 8, top: float = 10, bottom: float = 46
) -> tuple[Figure, Axes]:
    """Returns a figure and its axes; margins are in pixels: measuring labels takes long."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(ROLES["line"])
    axes.tick_params(colors=ROLES["line"], labelcolor=ROLES["muted"], length=0, labelsize=12, pad=6)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(ROLES["muted"])
    axes.yaxis.label.set_color(ROLES["muted"])
    return figure, axes


def _named_rows(names: Sequence[str], width: int, *, top: float = 4) -> tuple[Figure, Axes]:
    """Returns a figure with a row for each name, front one on top, the name to the left of it."""
    shown = [_elided(name, width) for name in _without_prefix(names)]
    left = 14 + _LETTER * max(map(len, shown))
    figure, axes = _figure(width, _ROW * max(len(names), 2) + top + 46, left=left, right=14, top=top, bottom=46)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.4, -0.6)
    place = axes.get_yaxis_transform()
    for row, name in enumerate(shown):
        axes.text(
            -8 / (width - left - 14), row, name, transform=place, ha="right", va="center", size=12, color=ROLES["ink"]
        )
    return figure, axes


def _rows(axes: Axes, values: Sequence[float], role: str, *, outlined: bool = False) -> None:
    """Draws a bar a row, all of them as one shape."""
    edges = [row + side for row in range(len(values)) for side in (-_HALF, _HALF)]
    heights = [height for value in values for height in (value, 0.0)][:-1]
    axes.stairs(heights, edges, orientation="horizontal", fill=True, color=ROLES[role], linewidth=0)
    if outlined:
        axes.stairs(heights, edges, orientation="horizontal", color=ROLES["edge"], linewidth=1)


def _amounts(axis: Any, width: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6 if width == WIDE else 3, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """Returns a number as axes show it: ``1.2M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _elided(name: str, width: int) -> str:
    """Returns a name that fits beside the bars; its end tells more than its middle."""
    most = 34 if width == WIDE else 15
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def _without_prefix(names: Sequence[str]) -> list[str]:
    """Returns the names without the longest path that at least half of them begin with."""
    paths = Counter(name[: i + 1] for name in names for i, letter in enumerate(name) if letter == ".")
    often = [path for path, count in paths.items() if 2 * count >= len(names) > 2]
    common = max(often, key=len, default="")
    if not common:
        return list(names)
    return [f"…{name[len(common) :]}" if name.startswith(common) else name for name in names]


def _bars(bars: Bars, *, unit: str, width: int) -> Figure:
    figure, axes = _named_rows(bars.names, width)
    _rows(axes, bars.before, "before", outlined=True)
    _rows(axes, bars.after, "after")
    axes.set_xlim(0, max(*bars.before, *bars.after, 1) * 1.02)
    axes.grid(axis="x", color=ROLES["line"], linewidth=0.6)
    axes.set_xlabel(unit)
    _amounts(axes.xaxis, width)
    return figure


def _skyline(bars: Bars, *, unit: str, width: int) -> Figure:
    figure, axes = _figure(width, 260)
    edges = list(range(len(bars.names) + 1))
    axes.stairs(bars.before, edges, fill=True, color=ROLES["before"], linewidth=0)
    axes.stairs(bars.before, edges, color=ROLES["edge"], linewidth=1)
    axes.stairs(bars.after, edges, fill=True, color=ROLES["after"], linewidth=0)
    axes.set_xlim(0, len(bars.names))
    axes.set_ylim(0, None)
    axes.grid(axis="y", color=ROLES["line"], linewidth=0.6)
    axes.set_xlabel(f"groups, front to back ({unit} upwards)")
    _amounts(axes.xaxis, width)
    _amounts(axes.yaxis, width)
    return figure


def _stages(names: tuple[str, ...], values: tuple[float, ...], *, width: int) -> Figure:
    figure, axes = _named_rows(names, width)
    _rows(axes, values, "after")
    axes.set_xlim(0, (max(values) or 1) * (1.12 if width == WIDE else 1.3))
    axes.grid(axis="x", color=ROLES["line"], linewidth=0.6)
    for row, value in enumerate(values):
        axes.annotate(
            f"{value:.2f}",
            (value, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=ROLES["muted"],
            size=12,
        )
    axes.set_xlabel("seconds")
    return figure


def _places(scores: ScoreSummary) -> list[float]:
    """Returns where the borders of the bins are drawn; a logarithmic axis is drawn in powers of ten."""
    return [log10(edge) for edge in scores.edges] if scores.log else list(scores.edges)


def _score_axis(axes: Axes, scores: ScoreSummary, width: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    nbins = 7 if width == WIDE else 4
    axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, integer=scores.log))
    if scores.log:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.0e}"))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    places = _places(scores)
    axes.set_xlim(places[0], places[-1])
    axes.set_xlabel(scores.unit)
    if scores.cut is not None and (scores.cut > 0 or not scores.log):
        place = min(max(log10(scores.cut) if scores.log else scores.cut, places[0]), places[-1])
        axes.axvline(place, color=ROLES["cut"], linewidth=1.6, dashes=(4, 3))
        left = place > (places[0] + places[-1]) / 2
        axes.annotate(
            "cut",
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-6 if left else 6, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom",
            color=ROLES["ink"],
            size=12,
        )


def _histogram(scores: ScoreSummary, *, width: int) -> Figure:
    figure, axes = _figure(width, 260, top=24)
    edges, removed = _places(scores), scores.removed
    total = [a + b for a, b in zip(scores.kept, removed, strict=True)]
    axes.stairs(total, edges, fill=True, color=ROLES["after"], linewidth=0)
    axes.stairs(removed, edges, fill=True, color=ROLES["removed"], linewidth=0)
    axes.set_ylim(0, max(total) * 1.04)
    axes.grid(axis="y", color=ROLES["line"], linewidth=0.6)
    axes.set_ylabel("units")
    _amounts(axes.yaxis, width)
    _score_axis(axes, scores, width)
    return figure


def _strips(scores: ScoreSummary, *, width: int) -> Figure:
    from matplotlib.collections import PolyCollection

    groups, edges = scores.groups, _places(scores)
    named = len(groups) <= NAMED
    if named:
        figure, axes = _named_rows([group.name for group in groups], width, top=24)
        axes.hlines([row + _HALF for row in range(len(groups))], edges[0], edges[-1], ROLES["line"], linewidth=0.8)
    else:
        figure, axes = _figure(width, min(6 * len(groups), 1600) + 70, left=30, top=24)
        axes.set_yticks([])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_ylabel("groups, front to back")
    totals = [[a + b for a, b in zip(g.kept, g.removed, strict=True)] for g in groups]
    for role, counts in (("after", totals), ("removed", [group.removed for group in groups])):
        shapes = [
            shape
            for row, (mine, total) in enumerate(zip(counts, totals, strict=True))
            for shape in _skylines(edges, mine, row + _HALF, 2 * _HALF / max(*total, 1))
        ]
        axes.add_collection(PolyCollection(shapes, facecolor=ROLES[role], linewidth=0))
    for row, group in enumerate(groups):
        if group.cut is not None and (group.cut > 0 or not scores.log):
            place = log10(group.cut) if scores.log else group.cut
            axes.plot([place, place], [row - 0.45, row + 0.45], color=ROLES["cut"], linewidth=1.6)
    _score_axis(axes, scores, width)
    return figure


def _skylines(
    edges: Sequence[float], counts: Sequence[int], floor: float, scale: float
) -> Iterator[list[tuple[float, float]]]:
    """Yields the outline of every run of filled bins, upwards from a floor; the axis points down."""
    run: list[tuple[float, float]] = []
    for low, high, count in zip(edges, edges[1:], (*counts, 0), strict=False):
        if not count:
            if run:
                yield [(run[0][0], floor), *run, (run[-1][0], floor)]
            run = []
        else:
            run += [(low, floor - count * scale), (high, floor - count * scale)]
    if run:
        yield [(run[0][0], floor), *run, (run[-1][0], floor)]


_SERIES = ("after", "removed", "third", "fourth")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _scatter(
    series: tuple[tuple[str, Sequence[float], Sequence[float]], ...],
    front: tuple[tuple[float, float], ...],
    dense: tuple[float, float] | None,
    labels: tuple[str, str],
    *,
    width: int,
) -> Figure:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = _figure(width, 340, left=66, top=40 if width == WIDE else 64)
    axes.grid(color=ROLES["line"], linewidth=0.6)
    if front:
        axes.plot(*zip(*front, strict=True), color=ROLES["removed"], linewidth=2, zorder=2, label="Pareto front")
    for index, (name, costs, quality) in enumerate(series):
        axes.plot(
            costs,
            quality,
            linestyle="none",
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=8,
            color=ROLES[_SERIES[index % len(_SERIES)]],
            markeredgecolor=ROLES["paper"],
            zorder=3,
            label=_elided(name, width),
        )
    if dense is not None:
        axes.plot(
            *dense,
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor=ROLES["paper"],
            markeredgecolor=ROLES["ink"],
            markeredgewidth=1.5,
            zorder=3,
            label="dense",
        )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if width == WIDE else 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.margins(0.08)
    figure.legend(
        loc="upper left",
        ncols=4 if width == WIDE else 2,
        frameon=False,
        labelcolor=ROLES["ink"],
        fontsize=12,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    return figure
