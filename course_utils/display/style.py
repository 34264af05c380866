"""How the course's figures look. Colours, markers, error bars, axes, legends and titles are each
made in one place, so that a method looks the same in every notebook.

A series has a `Look`: a colour, a marker and dashes. `look(i)` is that of the i-th series of any
figure; `looks_of` gives each *method* its own look, the same in all figures.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from course_utils.circuits.statistics import Interval

COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#000000")
"""Okabe and Ito's palette: colour-blind readers can tell these apart too."""
ORANGE, BLUE, SKY, GREEN, YELLOW, PINK, BLACK = COLOURS
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

Number = float | int

Dashes = str | tuple[Number, Sequence[Number]]
DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)), (0, (8, 3)))

Estimate = Interval | Number
"""A value, with its 95 % interval where it has one."""


# ---------------------------------------------------------------------------------------------
# One look a series
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What tells a series from the others.

    Attributes:
        colour: as ``#RRGGBB``.
        marker: matplotlib's name of it; ``"none"`` for no marker.
        dashes: matplotlib's line style.
    """

    colour: str
    marker: str = "none"
    dashes: Dashes = "-"


def look(i: int) -> Look:
    """The look of the i-th series of a figure. The first 49 differ in colour or marker."""
    turn, place = divmod(i, len(COLOURS))
    shifted = (place + turn) % len(COLOURS)
    return Look(COLOURS[place], MARKERS[shifted], DASHES[shifted])


METHOD_LOOKS: Mapping[str, Look] = {
    "learned mask": look(0),
    "learned masks": look(0),
    "AtP": look(1),
    "AtP to means": look(1),
    "IG": look(2),
    "IG to means": look(3),
    "largest change": look(4),
    "random": look(5),
    "iterated AtP": look(6),
}
"""The look of each method through the whole course."""


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method of a figure, no two alike (up to 49 methods).

    Methods in `METHOD_LOOKS` have the look that stands there. Other methods get the looks that are
    left, in order; so does a method whose look another one of the figure has.
    """
    methods = list(dict.fromkeys(methods))
    looks: dict[str, Look] = {}
    for method in methods:
        own = METHOD_LOOKS.get(method)
        if own is not None and own not in looks.values():
            looks[method] = own
    left = _looks_but(list(looks.values()))
    return {method: looks[method] if method in looks else next(left) for method in methods}


def _looks_but(taken: Sequence[Look]) -> Iterator[Look]:
    for i in count():
        if look(i) not in taken:
            yield look(i)


# ---------------------------------------------------------------------------------------------
# Panels, titles, legends
# ---------------------------------------------------------------------------------------------


def panels(
    n: int, width: Number, height: Number, *, boxed: bool = False, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``n`` panels side by side.

    Args:
        width, height: of the whole figure, in inches.
        boxed: a line on all four sides of a panel; by default at the left and the bottom.
        options: of `matplotlib.pyplot.subplots`, such as ``sharey=True``.
    """
    figure, grid = plt.subplots(
        1, n, figsize=(width, height), layout="constrained", squeeze=False, **options
    )
    axes_in_order = list(grid[0])
    for axes in axes_in_order:
        axes.spines[["top", "right"]].set_visible(boxed)
    return figure, axes_in_order


def headed(figure: Figure, title: str, *, size: Number = 12) -> Figure:
    """The figure with its title above it. Lines that are wider than the figure are broken into
    lines of about one length.

    Args:
        size: of the letters, in points.
    """
    lines = []
    for line in title.splitlines():
        lines += _broken(line, _points_across(figure), size)
    figure.suptitle("\n".join(lines), fontsize=size)
    return figure


def _broken(line: str, room: float, size: Number) -> list[str]:
    """A line in as few pieces as fit into ``room`` points, of about one length."""
    characters = max(len(line), 2)
    pieces = [line]
    while characters > 2 and max(_width(piece, size) for piece in pieces) > room:
        characters -= 1
        pieces = textwrap.wrap(line, characters)
    while characters > 2 and len(textwrap.wrap(line, characters - 1)) == len(pieces):
        characters -= 1
        pieces = textwrap.wrap(line, characters)
    return pieces


def _points_across(figure: Figure) -> float:
    """The width of a figure in points, of which an inch has 72."""
    return 72.0 * figure.get_figwidth()


def _width(text: str, size: Number) -> float:
    """How many points wide a text is."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) if text.strip() else 0.0


def legend_below(figure: Figure, axes: Axes, *, size: Number = 10) -> None:
    """A legend of the labelled series of ``axes`` below the figure, in as many columns as fit.

    Nothing is drawn where no series has a label.

    Args:
        size: of the letters, in points.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    room = _points_across(figure)
    widths = [_width(label, size) + 4.8 * size for label in labels]  # 4.8: the marker and the gaps
    columns = len(labels)
    while columns > 1 and _legend_width(widths, columns) > room:
        columns -= 1
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=size
    )


def _legend_width(widths: Sequence[float], columns: int) -> float:
    """Of entries that matplotlib puts into so many columns, each as wide as its widest entry."""
    return sum(float(part.max()) for part in np.array_split(np.array(widths), columns))


# ---------------------------------------------------------------------------------------------
# Axes and what is drawn on them
# ---------------------------------------------------------------------------------------------


def labelled(axes: Axes, x_label: str, y_label: str = "") -> None:
    """Label both axes. An empty label leaves its axis without one."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def log_counts(axes: Axes) -> None:
    """A logarithmic x axis of counts, with ticks at 1, 2, 5, 10, … in full: ``1,000``, not 10³."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def level_line(axes: Axes, level: Number, *, horizontal: bool = True, dashes: Dashes = ":") -> None:
    """A thin grey line across the panel at a value, such as the one to reach."""
    line = axes.axhline if horizontal else axes.axvline
    line(level, color="grey", linewidth=0.8, linestyle=dashes)


def equality_line(axes: Axes) -> None:
    """A dotted grey line where x and y are equal."""
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle=":")


def value_of(estimate: Estimate) -> float:
    """The estimate without its interval."""
    return estimate.value if isinstance(estimate, Interval) else float(estimate)


def ends_of(estimate: Estimate) -> tuple[float, float]:
    """Where the interval of an estimate begins and ends; its value twice where it has none."""
    if isinstance(estimate, Interval):
        return estimate.low, estimate.high
    return float(estimate), float(estimate)


def bar_lengths(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """How far intervals reach below and above their values.

    Never negative, which matplotlib refuses: where a value lies outside its interval (by rounding,
    or because a bootstrap is skewed), the bar reaches from the value to the far end. NaN (no bar)
    for estimates without an interval.
    """
    below, above = [], []
    for estimate in estimates:
        low, high = ends_of(estimate)
        value = value_of(estimate)
        has_bar = isinstance(estimate, Interval)
        below.append(max(0.0, value - low) if has_bar else math.nan)
        above.append(max(0.0, high - value) if has_bar else math.nan)
    return below, above


def error_bars(
    axes: Axes,
    places: Sequence[Number],
    estimates: Sequence[Estimate],
    look: Look,
    *,
    label: str | None = None,
    joined: bool = False,
    horizontal: bool = False,
) -> None:
    """Estimates as markers with bars for their 95 % intervals.

    Args:
        places: where each stands on the other axis.
        label: in the legend.
        joined: a line from estimate to estimate.
        horizontal: values along x, places along y.
    """
    values = [value_of(estimate) for estimate in estimates]
    lengths = bar_lengths(estimates)
    if not any(isinstance(estimate, Interval) for estimate in estimates):
        lengths = None
    x, y = (values, places) if horizontal else (places, values)
    axes.errorbar(
        x,
        y,
        xerr=lengths if horizontal else None,
        yerr=None if horizontal else lengths,
        label=label,
        color=look.colour,
        marker=look.marker,
        markersize=5,
        linestyle="-" if joined else "none",
        linewidth=1.5,
        capsize=2.5,
    )


def band(axes: Axes, x: Sequence[Number], estimates: Sequence[Estimate], look: Look) -> None:
    """The 95 % intervals of estimates as a shaded band along x."""
    ends = [ends_of(estimate) for estimate in estimates]
    low, high = [end[0] for end in ends], [end[1] for end in ends]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.25, linewidth=0)
