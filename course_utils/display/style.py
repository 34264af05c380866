"""How the course's figures look. Colours, markers, error bars, axes, legends and titles are each
made in one place, so that a method looks the same in every notebook.

A series has a `Look`: a colour, a marker and dashes. `look(i)` is that of the i-th series of any
figure; `looks_of` gives each *method* its own look, the same in all figures.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
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

    @property
    def point(self) -> tuple[str, str]:
        """Its colour and marker, which tell points apart."""
        return self.colour, self.marker


def look(i: int) -> Look:
    """The look of the i-th series of a figure. The first 49 differ in colour or marker."""
    turn, place = divmod(i, len(COLOURS))
    shifted = (place + turn) % len(COLOURS)
    return Look(COLOURS[place], MARKERS[shifted], DASHES[shifted])


METHOD_LOOKS: Mapping[str, Look] = {
    "learned mask": Look(ORANGE, "o"),
    "learned masks": Look(ORANGE, "o"),
    "hard concrete": Look(ORANGE, "s", "--"),
    "AtP": Look(BLUE, "s"),
    "AtP to means": Look(BLUE, "D", "--"),
    "IG": Look(SKY, "D"),
    "IG to means": Look(GREEN, "^"),
    "IG best": Look(SKY, "^", "--"),
    "largest change": Look(YELLOW, "v"),
    "random": Look(PINK, "P"),
    "QK fix": Look(BLUE, "^", (0, (8, 3))),
    "GradDrop": Look(BLUE, "P", ":"),
    "AtP*": Look(BLUE, "X", "-."),
    "RelP": Look(GREEN, "v", "-."),
    "patching": Look(BLACK, "s", ":"),
    "patched in truth": Look(BLACK, "D", "-."),
    "AtP's straight line": Look(BLUE, "o", (0, (5, 1))),
    "gradient · stream": Look(BLUE, "v", (0, (1, 3))),
    "iterated AtP": Look(BLACK, "X"),
    "iterated IG": Look(BLACK, "o", "--"),
}
"""The look of each method through the whole course. Two methods of one kind share a colour; the
marker and the dashes tell them apart.
"""


SERIES_LOOKS: Mapping[str, Look] = {
    "ReLU + L1": Look(ORANGE, "o"),
    "TopK": Look(BLUE, "s", "--"),
    "BatchTopK": Look(SKY, "D", "-."),
    "JumpReLU": Look(GREEN, "^", (0, (5, 1))),
    "the SAE's error": Look(ORANGE, "o"),
    "another token's error": Look(BLUE, "s", "--"),
    "random direction": Look(PINK, "P", ":"),
    "agreement": Look(YELLOW, "v"),
    "indirect object": Look(BLACK, "X", "--"),
}
"""The look of kinds of SAEs, of disturbances and of tasks: what notebooks compare that is no method
of finding a circuit.
"""


def looks_of_series(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each series of a figure. Methods of the course have their own, and so do the
    series of `SERIES_LOOKS`; of any others, the i-th has the i-th look.
    """
    labels = list(dict.fromkeys(labels))
    if all(label in SERIES_LOOKS for label in labels):
        return {label: SERIES_LOOKS[label] for label in labels}
    if any(kind_of(label) in METHOD_LOOKS for label in labels):
        return looks_of(labels)
    return {label: look(i) for i, label in enumerate(labels)}


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method of a figure, no two alike (up to 49 methods).

    Methods in `METHOD_LOOKS` have the look that stands there, and a variant of one has the look of
    its kind (`kind_of`). Other methods get looks that no method of the course has, in order, those
    first whose colour is new to the figure; the same methods in the same order always look the
    same. So does a method whose look another one of the figure has.
    """
    methods = list(dict.fromkeys(methods))
    looks: dict[str, Look] = {}
    for name_of in (str, kind_of):  # methods by their own name come before variants
        for method in methods:
            own = METHOD_LOOKS.get(name_of(method))
            if own is not None and method not in looks and own not in looks.values():
                looks[method] = own
    for method in methods:
        if method not in looks:
            looks[method] = _look_beside(list(looks.values()))
    return {method: looks[method] for method in methods}


def kind_of(method: str) -> str:
    """The method in `METHOD_LOOKS` that a variant is of; its own name where it is of none.

    "IG to patch, |mean|" is IG, "AtP to means, |mean|" is AtP to means, "random nodes" are random.
    Integrated gradients to the means, by the mean of |score|, are "IG best": the variant that
    notebook 04 chooses.
    """
    base, _, how = method.partition(", ")
    if base == "IG to means" and how == "mean of |·|":
        return "IG best"
    if base.startswith("random "):
        return "random"
    return base.removesuffix(" to patch")


def _look_beside(taken: Sequence[Look]) -> Look:
    """A look that is not taken: of no method of the course if there is one, and of a new colour."""
    points, colours = {one.point for one in taken}, {one.colour for one in taken}
    reserved = {one.point for one in METHOD_LOOKS.values()}
    every = [look(i) for i in range(len(COLOURS) * len(MARKERS))]
    free = [one for one in every if one.point not in points] or every
    return min(free, key=lambda one: (one.point in reserved, one.colour in colours))  # the first


# ---------------------------------------------------------------------------------------------
# Panels, titles, legends
# ---------------------------------------------------------------------------------------------


def panels(
    n: int,
    width: Number,
    height: Number,
    *,
    columns: int | None = None,
    boxed: bool = False,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``n`` panels, side by side or in rows.

    Args:
        width, height: of the whole figure, in inches.
        columns: how many panels a row has; by default all. Places that are left stay empty.
        boxed: a line on all four sides of a panel; by default at the left and the bottom.
        options: of `matplotlib.pyplot.subplots`, such as ``sharey=True``.

    Returns:
        The figure, and its panels row by row.
    """
    columns = columns or n
    figure, grid = plt.subplots(
        math.ceil(n / columns),
        columns,
        figsize=(width, height),
        layout="constrained",
        squeeze=False,
        **options,
    )
    axes_in_order = list(grid.flat)[:n]
    for empty in list(grid.flat)[n:]:
        empty.remove()
    for axes in axes_in_order:
        axes.spines[["top", "right"]].set_visible(boxed)
    return figure, axes_in_order


def captioned(figure: Figure, caption: str, *, size: Number = 8.5) -> None:
    """A small grey line below the panels: how many cases there are, and over what intervals are.

    It stands above the legend below the figure, if there is one: draw that first. An empty caption
    is none.

    Args:
        size: of the letters, in points.
    """
    if not caption:
        return
    lines = "\n".join(_broken(caption, 0.95 * _points_across(figure), size))
    if figure.legends:
        figure.legends[-1].set_title(lines, FontProperties(size=size))
        written = figure.legends[-1].get_title()
        written.set_multialignment("center")
    else:
        written = figure.supxlabel(lines, fontsize=size)
    written.set_color("dimgrey")


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
    width = _width(line, size)
    if width > 2 * room:  # lines of so many characters are too wide whatever the letters
        characters = max(2, int(2 * room / width * characters))
        pieces = textwrap.wrap(line, characters)
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
    """How many points wide a text is, to about one point."""
    if not text.strip():
        return 0.0
    x = TextPath((0, 0), text, size=size).vertices[:, 0]  # exact extents take 10 times as long
    return float(x.max() - x.min())


def legend_below(
    figure: Figure, axes: Axes, *, order: Sequence[str] | None = None, size: Number = 10
) -> None:
    """A legend of the labelled series of ``axes`` below the figure, in as many columns as fit.

    Nothing is drawn where no series has a label.

    Args:
        order: all labels, in the order in which they stand; by default that of matplotlib, which
            has lines first.
        size: of the letters, in points.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    if order is not None:
        places = [list(order).index(label) for label in labels]
        handles = [handle for _, handle in sorted(zip(places, handles), key=lambda pair: pair[0])]
        labels = [order[place] for place in sorted(places)]
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


def count_ticks(axes: Axes, counts: Iterable[Number], *, apart: Number = 0.07) -> None:
    """Ticks of a logarithmic x axis at these counts, in place of round numbers.

    All have a tick. Those get a label that are far enough from the labelled one before. A
    single count stands in the middle of an axis from its half to its double.

    Args:
        apart: the least distance of two labels, as a share of the axis.
    """
    counts = sorted(set(counts))
    if not counts:
        return
    if counts[0] == counts[-1]:
        axes.set_xlim(counts[0] / 2, 2 * counts[0])
    least = apart * (math.log(counts[-1]) - math.log(counts[0]))
    labelled_counts = counts[:1]
    for count in counts[1:]:
        if math.log(count) - math.log(labelled_counts[-1]) >= least:
            labelled_counts.append(count)
    axes.set_xticks(labelled_counts, [f"{count:,}" for count in labelled_counts])
    axes.set_xticks([count for count in counts if count not in labelled_counts], minor=True)


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
    dashes: Dashes = "-",
    hollow: bool = False,
    horizontal: bool = False,
) -> None:
    """Estimates as markers with bars for their 95 % intervals. Say in the caption over what these
    are.

    Args:
        places: where each stands on the other axis.
        label: in the legend.
        joined: a line from estimate to estimate.
        dashes: of that line.
        hollow: markers are white inside.
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
        markerfacecolor="white" if hollow else look.colour,
        linestyle=dashes if joined else "none",
        linewidth=1.5,
        capsize=2.5,
    )


def seed_points(
    axes: Axes,
    groups: Sequence[Sequence[tuple[Number, Number]]],
    look: Look,
    *,
    label: str | None = None,
) -> None:
    """Every seed as a small point, and a line through the means of the seeds.

    Args:
        groups: along the line, the (x, y) of each seed.
        label: in the legend.
    """
    x, y = zip(*(pair for group in groups for pair in group))
    means = [[sum(values) / len(group) for values in zip(*group)] for group in groups]
    axes.plot(*zip(*means), color=look.colour, linestyle=look.dashes, linewidth=1.5)
    axes.plot(
        x,
        y,
        color=look.colour,
        marker=look.marker,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.4,
        alpha=0.75,
        linestyle="none",
    )
    axes.plot(  # the line and the points in one, for the legend
        [], [], label=label, color=look.colour, marker=look.marker, markersize=5, ls=look.dashes
    )


def band(axes: Axes, x: Sequence[Number], estimates: Sequence[Estimate], look: Look) -> None:
    """The 95 % intervals of estimates as a shaded band along x."""
    ends = [ends_of(estimate) for estimate in estimates]
    low, high = [end[0] for end in ends], [end[1] for end in ends]
    axes.fill_between(x, low, high, color=look.colour, alpha=0.25, linewidth=0)
