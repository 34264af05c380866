"""The course's figures. Each function returns a matplotlib figure; `show` puts it in the notebook
with alternative text.

How a figure looks is said in `course_utils.display.style`; here is what it shows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)
from matplotlib.transforms import Bbox
from torch import Tensor

from course_utils import DATA
from course_utils.circuits.evaluate import LOWER_IS_BETTER
from course_utils.circuits.frontier import Frontier, Point
from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.circuits.statistics import Interval
from course_utils.display import style
from course_utils.display.style import Estimate, Look, Number
from course_utils.prompts.tasks import Task

MEASURE_LABELS = {
    "vs_model": "faithfulness  (F(C) − F(∅)) / (F(M) − F(∅))",
    "vs_spliced": "faithfulness  (F(C) − F(∅)) / (F(S) − F(∅))",
    "raw": "faithfulness  F(C) / F(S)",
    "distance": "distance  |1 − F|, F against F(S) (0 is best)",
    "gap": "gap per prompt (0 is best)",
}
"""What stands on the axis of each measure of a `Faithfulness`."""

PANEL_TITLES = {
    "vs_model": "faithfulness against the model",
    "vs_spliced": "faithfulness against the spliced model",
    "raw": "faithfulness without F(∅)",
    "distance": "distance |1 − F| from the spliced model (0 is best)",
    "gap": "gap, prompt by prompt (0 is best)",
}
PANEL_LABELS = {
    "vs_model": "(F(C) − F(∅)) / (F(M) − F(∅))",
    "vs_spliced": "(F(C) − F(∅)) / (F(S) − F(∅))",
    "raw": "F(C) / F(S)",
    "distance": "|1 − F|, F against F(S)",
    "gap": "|LD$_C$ − LD$_S$| / |LD$_∅$ − LD$_S$|",
}
"""Above and beside the small panels of `measures_figure` and `paired_figure`."""

NODES_KEPT = "nodes (position, latent) kept"
"""What stands below sizes of circuits."""

DPI = 150
"""Of the PNGs, in dots per inch."""

FIGURES_DIR = DATA / "figures"

ALL_POSITIONS = "all positions"
"""The label of nodes without a position: their mask is the same at every position."""


# ---------------------------------------------------------------------------------------------
# Into the notebook
# ---------------------------------------------------------------------------------------------


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a PNG with alternative text for those who do not see it."""
    display(picture(figure, alt))


def picture(figure: Figure, alt: str) -> Image:
    """The figure as a PNG with alternative text, to display or to put in another's place.

    The text is metadata, since ``Image(alt=…)`` is unknown to the IPython 7 of Colab.
    """
    return Image(_png(figure), metadata={"alt": alt})


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return png.getvalue()


# ---------------------------------------------------------------------------------------------
# Estimates with intervals, in groups
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValueAxis:
    """The axis on which estimates are read off.

    Attributes:
        label: what the values are, with their unit.
        reference: a value with a dotted line, such as the one to reach.
        log: a logarithmic scale.
        percent: values are shares, written as per cent; the axis shows at least 0 % to 100 %.
    """

    label: str
    reference: Number | None = None
    log: bool = False
    percent: bool = False


Groups = Mapping[str, Estimate | Mapping[str, Estimate] | Sequence[Estimate]]
"""What `estimates_figure` draws: estimates by name, or groups of estimates."""


def estimates_figure(
    groups: Groups,
    axis: ValueAxis | str,
    title: str,
    *,
    bars: bool = False,
    horizontal: bool = False,
    highlight: Collection[str] | None = None,
    place_label: str = "",
    over: str = "",
) -> Figure:
    """Estimates with their 95 % intervals, as points or as bars.

    Args:
        groups: one of three.
            Estimates by name: they stand in the order given.
            Groups of estimates by name: a colour for each group, its own where it is a method of
            the course. The same name has the same place in all groups, and the groups stand there
            side by side.
            Groups of estimates without names (sequences): a colour for each group. One group stands
            after the other, each from large to small.
        axis: the axis of the values; a text is short for ``ValueAxis(text)``.
        bars: bars from 0, each with its number at its end; by default points.
        horizontal: values along x, names along y with the first on top. For long names.
        highlight: of estimates by name, those to draw in orange, and the others in sky blue. If it
            is empty, all are sky blue. By default each bar has a colour of its own, and all points
            have the same.
        place_label: what the names are.
        over: what the intervals are over ("prompts", "nodes", "seeds"); a caption says it.

    Raises:
        ValueError: nothing to draw; estimates and groups in one figure; bars on a logarithmic axis,
            which has no 0; ``highlight`` with groups, or with a name that no estimate has.
    """
    axis = ValueAxis(axis) if isinstance(axis, str) else axis
    if bars and axis.log:
        raise ValueError("bars start at 0, which a logarithmic axis does not have: draw points.")
    drawing = _arranged(groups, bars, highlight)
    if not drawing.n_estimates:
        raise ValueError("groups: there is no estimate to draw.")
    figure, [axes] = style.panels(1, *drawing.size(bars, horizontal))
    if bars:
        _draw_bars(axes, drawing, horizontal, "{:.0%}" if axis.percent else "{:.3g}")
    else:
        _draw_points(axes, drawing, horizontal)
    _set_value_axis(axes, axis, horizontal)
    _set_place_axis(axes, drawing, place_label, horizontal)
    if len(groups) > 1:
        style.legend_below(figure, axes)
    _say_over(figure, over)
    return style.headed(figure, title)


def _say_over(figure: Figure, over: str) -> None:
    """A caption that says over what the intervals are, if it is known."""
    if over:
        style.captioned(figure, f"intervals: 95 % over {over}")


@dataclass(frozen=True)
class _Series:
    """Estimates that look alike, and the place of each along the other axis."""

    label: str
    look: Look
    places: list[float]
    estimates: list[Estimate]


@dataclass(frozen=True)
class _Drawing:
    """All series of an `estimates_figure`.

    Attributes:
        names: of the places 0, 1, 2, …; empty where places have no names.
        n_abreast: how many estimates can stand at one place.
    """

    series: list[_Series]
    names: list[str]
    n_abreast: int = 1

    @property
    def n_estimates(self) -> int:
        return sum(len(one.estimates) for one in self.series)

    @property
    def breadth(self) -> float:
        """Of a bar, in places."""
        return 0.65 if self.n_abreast == 1 else 0.8 / self.n_abreast

    def size(self, bars: bool, horizontal: bool) -> tuple[float, float]:
        """Width and height of the figure, in inches."""
        if not self.names:
            return (3.6, 7.5) if horizontal else (7.5, 3.6)
        if horizontal:
            return 7.5, 0.9 + len(self.names) * (0.2 + 0.22 * self.n_abreast)
        if bars:
            return 1.5 + len(self.names) * (0.8 + 0.5 * self.n_abreast), 3.4
        return max(5.0, 1.5 + len(self.names) * (0.45 + 0.45 * self.n_abreast)), 3.6


def _arranged(groups: Groups, bars: bool, highlight: Collection[str] | None) -> _Drawing:
    named = {label: group for label, group in groups.items() if isinstance(group, Mapping)}
    nameless = {label: group for label, group in groups.items() if isinstance(group, Sequence)}
    lone = {
        name: estimate
        for name, estimate in groups.items()
        if not isinstance(estimate, Mapping | Sequence)
    }
    if len(groups) not in (len(named), len(nameless), len(lone)):
        raise ValueError("groups: give estimates, or groups of one kind; not both.")
    if lone:
        return _one_after_another(lone, bars, highlight)
    if highlight is not None:
        raise ValueError("highlight: groups have their own colours; it is for estimates by name.")
    return _side_by_side(named, bars) if named else _ranked(nameless)


def _one_after_another(
    estimates: Mapping[str, Estimate], bars: bool, highlight: Collection[str] | None
) -> _Drawing:
    """A series for each bar that has its own colour; otherwise one for each colour."""
    names = list(estimates)
    unknown = [name for name in highlight or () if name not in estimates]
    if unknown:
        raise ValueError(f"highlight: no estimate is called {unknown[0]!r}; there are {names}.")
    looks = {name: style.look(i if bars else 0) for i, name in enumerate(names)}
    if highlight is not None:
        orange, sky = style.look(0), style.look(2)
        looks = {name: orange if name in highlight else sky for name in names}
    series = []
    for look in dict.fromkeys(looks.values()):
        alike = [name for name in names if looks[name] == look]
        places = [float(names.index(name)) for name in alike]
        series.append(_Series("", look, places, [estimates[name] for name in alike]))
    return _Drawing(series, names)


def _side_by_side(groups: Mapping[str, Mapping[str, Estimate]], bars: bool) -> _Drawing:
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    step = 0.8 / len(groups) if bars else min(0.8 / len(groups), 0.16)
    series = []
    looks = _looks_of_groups(groups)
    for i, (label, group) in enumerate(groups.items()):
        shift = step * (i - (len(groups) - 1) / 2)
        places = [names.index(name) + shift for name in group]
        series.append(_Series(label, looks[label], places, list(group.values())))
    return _Drawing(series, names, n_abreast=len(groups))


def _ranked(groups: Mapping[str, Sequence[Estimate]]) -> _Drawing:
    series, start = [], 0
    looks = _looks_of_groups(groups)
    for label, group in groups.items():
        ranked = sorted(group, key=style.value_of, reverse=True)
        places = [float(start + rank) for rank in range(len(ranked))]
        series.append(_Series(label, looks[label], places, ranked))
        start += len(ranked) + 2
    return _Drawing(series, [])


def _looks_of_groups(labels: Iterable[str]) -> dict[str, Look]:
    """The i-th group has the i-th look, if it has none of its own (`looks_of_series`)."""
    return style.looks_of_series(labels)


def _draw_points(axes: Axes, drawing: _Drawing, horizontal: bool) -> None:
    for one in drawing.series:
        style.error_bars(
            axes, one.places, one.estimates, one.look, label=one.label, horizontal=horizontal
        )


def _draw_bars(axes: Axes, drawing: _Drawing, horizontal: bool, number: str) -> None:
    """Bars with their intervals, and beyond both the value as ``number`` formats it."""
    for one in drawing.series:
        values = [style.value_of(estimate) for estimate in one.estimates]
        colour, breadth = one.look.colour, drawing.breadth
        if horizontal:
            axes.barh(one.places, values, height=breadth, color=colour, label=one.label)
        else:
            axes.bar(one.places, values, width=breadth, color=colour, label=one.label)
        style.error_bars(axes, one.places, one.estimates, Look(style.BLACK), horizontal=horizontal)
        for place, estimate in zip(one.places, one.estimates):
            _write_number(axes, place, estimate, horizontal, number)
    if horizontal:
        axes.margins(x=0.15)
    else:
        axes.margins(y=0.15)


def _write_number(
    axes: Axes, place: Number, estimate: Estimate, horizontal: bool, number: str
) -> None:
    """The value, a little beyond the end of its bar and of its interval."""
    value = style.value_of(estimate)
    low, high = style.ends_of(estimate)
    up = value >= 0
    end, away = (max(value, high), 1) if up else (min(value, low), -1)
    text = number.format(value).replace("-", "−")
    if horizontal:
        at, offset, aligned = (end, place), (4 * away, 0), ("left" if up else "right", "center")
    else:
        at, offset, aligned = (place, end), (0, 3 * away), ("center", "bottom" if up else "top")
    axes.annotate(text, at, offset, textcoords="offset points", ha=aligned[0], va=aligned[1])


def _set_value_axis(axes: Axes, axis: ValueAxis, horizontal: bool) -> None:
    letter = "x" if horizontal else "y"
    axes.set(**{f"{letter}label": axis.label})
    if axis.log:
        axes.set(**{f"{letter}scale": "log"})
        side = axes.xaxis if horizontal else axes.yaxis
        side.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        style.level_line(axes, 0, horizontal=not horizontal, dashes="-")
    if axis.reference is not None:
        style.level_line(axes, axis.reference, horizontal=not horizontal)
    if axis.percent:
        low, high = axes.get_xlim() if horizontal else axes.get_ylim()
        axes.set(**{f"{letter}lim": (min(low, 0), max(high, 1.1))})
        (axes.xaxis if horizontal else axes.yaxis).set_major_formatter(PercentFormatter(1, 0))


def _set_place_axis(axes: Axes, drawing: _Drawing, label: str, horizontal: bool) -> None:
    """The names at their places; from the top down where bars are horizontal."""
    n = len(drawing.names)
    if horizontal:
        axes.set_yticks(range(n), drawing.names)
        axes.set_ylabel(label)
        if n:
            axes.set_ylim(n - 0.5, -0.5)
        else:
            axes.invert_yaxis()
    else:
        axes.set_xticks(range(n), drawing.names)
        axes.set_xlabel(label)
        if n:
            axes.set_xlim(-0.5, n - 0.5)


# ---------------------------------------------------------------------------------------------
# Frontiers and circuits
# ---------------------------------------------------------------------------------------------


def frontier_figure(
    frontier: Frontier, title: str, measures: Sequence[str] = ("vs_spliced", "gap")
) -> Figure:
    """Nodes (log scale) against each measure, a line for each method, with 95 % intervals over
    prompts. A method with several seeds has a small point for each, and a line through their mean.

    A logarithmic axis has no place for circuits without nodes: a line below it says which there
    are, and their values.

    Args:
        measures: fields of `Faithfulness`, a panel each.
    """
    figure, axes_of = style.panels(len(measures), 5.5 * len(measures), 4.6)
    for axes, measure in zip(axes_of, measures):
        _draw_methods(axes, frontier, measure)
        for level in (0, 1):
            style.level_line(axes, level)
        x_label = NODES_KEPT + _said_of_empty(frontier, measure)
        style.labelled(axes, x_label, MEASURE_LABELS[measure])
    style.legend_below(figure, axes_of[0], order=frontier.methods)
    style.captioned(figure, _said_of_points(frontier))
    return style.headed(figure, title)


def _draw_methods(axes: Axes, frontier: Frontier, measure: str) -> None:
    """A line for each method: one measure against the number of nodes, on a log scale."""
    for method, look in style.looks_of(frontier.methods).items():
        groups = _groups_with_nodes(frontier, method)
        if any(len(points) > 1 for points in groups):
            pairs = [
                [(point.n_nodes, _estimate(point, measure).value) for point in points]
                for points in groups
            ]
            style.seed_points(axes, pairs, look, label=method)
        else:
            sizes = [point.n_nodes for [point] in groups]
            intervals = [_estimate(point, measure) for [point] in groups]
            style.error_bars(
                axes, sizes, intervals, look, label=method, joined=True, dashes=look.dashes
            )
    style.log_counts(axes)
    style.count_ticks(axes, {point.size for point in frontier.points} - {0})


def _estimate(point: Point, measure: str) -> Interval:
    return getattr(point.faithfulness, measure)


def _groups_with_nodes(frontier: Frontier, method: str) -> list[list[Point]]:
    """A method's points by size, from few nodes to many, without those that have no node."""
    groups = [
        [point for point in points if point.n_nodes] for points in frontier.by_size(method).values()
    ]
    return [points for points in groups if points]


def _said_of_empty(frontier: Frontier, measure: str) -> str:
    """A line on the circuits without nodes; nothing where there are none."""
    empty = [
        f"{point.method} {_estimate(point, measure).value:.2f}"
        for method in frontier.methods
        for point in frontier.of_method(method)
        if point.n_nodes == 0
    ]
    if not empty:
        return ""
    return "\nwith 0 nodes, left of this axis: " + ", ".join(dict.fromkeys(empty))


def _said_of_points(frontier: Frontier) -> str:
    """A caption: how many prompts, what the bars are over, what the small points are."""
    counts = sorted({point.faithfulness.n for point in frontier.points})
    if not counts:
        return ""
    said = [f"n = {' or '.join(map(str, counts))} prompts", "bars: 95 % intervals over prompts"]
    several = {
        method: max(map(len, frontier.by_size(method).values())) for method in frontier.methods
    }
    seeds = dict.fromkeys(f"{n}" for n in several.values() if n > 1)
    if seeds:
        said.append(f"small points: {' or '.join(seeds)} seeds, with a line through their mean")
    return "; ".join(said)


def measures_figure(
    frontier: Frontier,
    measures: Sequence[str] = ("vs_spliced", "vs_model", "distance", "gap"),
    title: str = "",
) -> Figure:
    """Nodes (log scale) against several measures, a small panel each, a line for each method.

    Every seed is a small point, and the line goes through their mean. A method with one seed has
    bars: 95 % intervals over prompts. A dotted line marks the value to reach: 1 for a faithfulness,
    0 for a distance or a gap. Circuits without nodes have no place on a logarithmic axis.

    Args:
        measures: of `evaluate.MEASURES`.
        title: the finding.
    """
    columns = 2 if len(measures) == 4 else min(3, len(measures))
    n_rows = math.ceil(len(measures) / columns)
    width = {1: 6.4, 2: 10.4}.get(columns, 12.8)
    figure, axes_of = style.panels(
        len(measures), width, 1.2 + 2.9 * n_rows, columns=columns, sharex=True
    )
    for i, (axes, measure) in enumerate(zip(axes_of, measures)):
        _draw_methods(axes, frontier, measure)
        style.level_line(axes, 0 if measure in LOWER_IS_BETTER else 1)
        lowest = i + columns >= len(measures)  # of its column
        style.labelled(axes, NODES_KEPT if lowest else "", PANEL_LABELS[measure])
        axes.tick_params(labelbottom=lowest)
        axes.set_title(PANEL_TITLES[measure], fontsize=10)
    style.legend_below(figure, axes_of[0], order=frontier.methods)
    style.captioned(figure, _said_of_points(frontier))
    return style.headed(figure, title)


def paired_figure(
    frontier: Frontier,
    method: str,
    rivals: Sequence[str] | None = None,
    measures: Sequence[str] = ("gap", "distance"),
    title: str = "",
) -> Figure:
    """By how much each rival is worse than a method, size by size, on the same prompts.

    A marker is a rival's measure minus the method's, the mean over the seeds of each, with the 95 %
    interval of the paired difference over prompts. Above 0, the method is better. A marker is
    filled where the interval is clear of 0, and hollow where it holds 0. Small points beside it are
    the single seeds of the method.

    Args:
        method: who is compared.
        rivals: by default all other methods.
        measures: ``"gap"`` and ``"distance"``, a panel each.
        title: the finding.

    Raises:
        ValueError: an unknown method, no size that the method shares with a rival, a point that
            `Frontier.judge` did not add.
    """
    rivals = frontier.rivals_of(method, rivals)
    sizes = sorted({n for rival in rivals for n in frontier.shared_sizes([method, rival])})
    if not sizes:
        raise ValueError(f"{method!r} shares no size with {rivals}: there is nothing to compare.")
    width = min(11.0, max(5.0, 1.0 + len(sizes) * (0.35 + 0.16 * len(rivals))))  # of a panel
    columns = len(measures) if width * len(measures) <= 13 else 1
    n_rows = math.ceil(len(measures) / columns)
    figure, axes_of = style.panels(
        len(measures), width * columns, 1.2 + 2.9 * n_rows, columns=columns
    )
    for axes, measure in zip(axes_of, measures):
        for i in range(1, len(sizes), 2):
            axes.axvspan(i - 0.5, i + 0.5, color="black", alpha=0.045, linewidth=0)
        style.level_line(axes, 0, dashes="-")
        for rival, look, shift in _abreast(rivals):
            places = {size: i + shift for i, size in enumerate(sizes)}
            _draw_differences(axes, frontier, (rival, method), measure, places, look)
            _draw_single_seeds(axes, frontier, (rival, method), measure, places, look)
        axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
        axes.set_xlim(-0.5, len(sizes) - 0.5)
        axes.set_title(PANEL_TITLES[measure].partition(" (")[0], fontsize=10)
        axes.set_ylabel(f"rival − {method}\n(above 0: {method} is better)")
    for axes in axes_of[-columns:]:
        axes.set_xlabel(NODES_KEPT)
    style.legend_below(figure, axes_of[0], order=rivals)
    style.captioned(figure, _said_of_differences(frontier, method))
    return style.headed(figure, title)


def _abreast(rivals: Sequence[str]) -> list[tuple[str, Look, float]]:
    """Each rival, how it looks, and how far beside the middle of a size it stands."""
    step = min(0.8 / len(rivals), 0.2)
    return [
        (rival, look, step * (i - (len(rivals) - 1) / 2))
        for i, (rival, look) in enumerate(style.looks_of(rivals).items())
    ]


def _draw_differences(
    axes: Axes,
    frontier: Frontier,
    pair: tuple[str, str],
    measure: str,
    places: Mapping[int, float],
    look: Look,
) -> None:
    """A rival's measure minus the method's, at the place of each size that both have."""
    rival, method = pair
    differences = frontier.differences(rival, measure, [method])[method]
    clear = [size for size, found in differences.items() if found.low > 0 or found.high < 0]
    unclear = [size for size in differences if size not in clear]
    for some, hollow in ((clear, False), (unclear, True)):
        style.error_bars(
            axes,
            [places[size] for size in some],
            [differences[size] for size in some],
            look,
            label=None if hollow else rival,
            hollow=hollow,
        )


def _draw_single_seeds(
    axes: Axes,
    frontier: Frontier,
    pair: tuple[str, str],
    measure: str,
    places: Mapping[int, float],
    look: Look,
) -> None:
    """Where the method has several seeds, the difference that each would have made."""
    rival, method = pair
    for size in frontier.shared_sizes(pair):
        of_rival, of_method = (
            [_estimate(point, measure).value for point in frontier.by_size(name)[size]]
            for name in pair
        )
        if len(of_method) > 1:
            single = [sum(of_rival) / len(of_rival) - value for value in of_method]
            beside = [places[size] + 0.05] * len(single)
            axes.scatter(beside, single, s=7, color=look.colour, alpha=0.6, linewidths=0)


def _said_of_differences(frontier: Frontier, method: str) -> str:
    """A caption: how many prompts, what bars and small points are."""
    n_seeds = max(map(len, frontier.by_size(method).values()))
    said = [
        f"n = {frontier.points[0].faithfulness.n} prompts",
        "bars: 95 % intervals of the paired difference, over prompts",
        "hollow: the interval holds 0",
    ]
    if n_seeds > 1:
        said.append(f"small points: the {n_seeds} seeds of {method}, one by one")
    return "; ".join(said)


def frontier_at_size_figure(
    frontier: Frontier, masks: SAEMasks, task: Task, *, most_named: int = 60
) -> Figure:
    """Left, every method's faithfulness against F(S), with a line at this circuit's size. Right,
    the circuit's latents.

    Args:
        masks: the circuit; its latents are named by number, by layer (row) and position (column).
            Latents of a mask that is the same at every position stand in a column of their own.
        most_named: circuits with more nodes than that are counted, not named.

    Raises:
        MaskError: the circuit has a position that the task does not have.
    """
    n = masks.get_num_latents()
    figure, (left, right) = style.panels(2, 12, 4.6, gridspec_kw={"width_ratios": (5, 4)})
    if n:
        left.axvline(n, color="grey", linewidth=6, alpha=0.3)
    _draw_methods(left, frontier, "vs_spliced")
    for level in (0, 1):
        style.level_line(left, level)
    x_label = "nodes kept" + _said_of_empty(frontier, "vs_spliced")
    style.labelled(left, x_label, MEASURE_LABELS["vs_spliced"])
    _write_latents(right, masks, task.position_labels, named=n <= most_named)
    right.set_title("the latents that it keeps", fontsize=11)
    style.legend_below(figure, left, order=frontier.methods)
    style.captioned(figure, _said_of_points(frontier))
    return style.headed(figure, f"The learned circuit of {n:,} nodes")


def _write_latents(
    axes: Axes, masks: SAEMasks, position_labels: Sequence[str], named: bool
) -> None:
    """A circuit's latents by layer (row) and position (column), by number or only counted."""
    latents_at: dict[tuple[str, int | None], list[int]] = {}
    for hook_point, position, latent in masks.nodes():
        latents_at.setdefault((hook_point, position), []).append(latent)
    positions = _in_order(position for _, position in latents_at)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for row in range(len(masks.hook_points)):
        axes.axhspan(row - 0.45, row + 0.45, color="black", alpha=0.045, linewidth=0)
    for column, position in enumerate(positions):
        for row, hook_point in enumerate(masks.hook_points):
            latents = latents_at.get((hook_point, position), [])
            per_line = 3 if len(latents) <= 9 else 5
            text = _in_lines(latents, per_line) if named else f"{len(latents)} latents"
            size = 10 if len(latents) <= 9 else 8
            said = text if latents else "·"
            axes.text(column, row, said, ha="center", va="center", fontsize=size)
    axes.set_xlim(-0.5, max(len(positions), 1) - 0.5)
    axes.set_ylim(-0.5, len(masks.hook_points) - 0.5)
    axes.set_xticks(range(len(positions)), _labels_of(positions, position_labels))
    _label_layers(axes, masks.hook_points)
    if not positions:
        axes.set_xlabel("none: every latent is ablated")


def _in_lines(latents: Sequence[int], per_line: int = 3) -> str:
    return "\n".join(
        ", ".join(map(str, latents[i : i + per_line])) for i in range(0, len(latents), per_line)
    )


def circuit_figure(masks: SAEMasks, task: Task, title: str) -> Figure:
    """Where the nodes are: how many at each layer (row) and position (column). Places without a
    node stay white.

    Nodes of a mask that is the same at every position are counted in a column of their own.

    Raises:
        MaskError: a mask per position has another number of positions than the task's prompts.
    """
    positions: list[int | None] = []
    if any(mask.ndim == 1 for _, mask in masks.items()):
        positions.append(None)
    if any(mask.ndim == 2 for _, mask in masks.items()):
        positions += range(len(task.position_labels))
    counts = torch.tensor([_counts(mask, positions) for _, mask in masks.items()])
    shade = counts.float().log1p()
    top = max(shade.max().item(), 1.0)
    width, height = 1.0 + 0.75 * len(positions), 1.2 + 0.45 * len(counts)
    figure, [axes] = style.panels(1, max(width, 3.2), height, boxed=True)
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1.1 * top, aspect="auto", origin="lower")
    for row, numbers in enumerate(counts.tolist()):
        for column, n in enumerate(numbers):
            colour = "white" if shade[row, column] > 0.6 * top else "black" if n else "grey"
            axes.text(column, row, str(n or "·"), ha="center", va="center", color=colour)
    labels = _labels_of(positions, task.position_labels)
    axes.set_xticks(range(len(positions)), labels, rotation=30, ha="right")
    _grid_between(axes, len(counts), len(positions))
    _label_layers(axes, masks.hook_points)
    return style.headed(figure, title)


def _counts(mask: Shaped[Tensor, "*seq d_sae"], positions: Sequence[int | None]) -> list[int]:
    """How many latents of a mask are on at each of these positions; None counts those of a mask
    that is the same at every position.
    """
    on = (mask > 0).sum(-1)
    if on.ndim == 0:
        return [int(on) if position is None else 0 for position in positions]
    _check_positions(len(on), len(positions) - positions.count(None))
    return [0 if position is None else int(on[position]) for position in positions]


def _check_positions(n: int, n_labels: int) -> None:
    if n != n_labels:
        raise MaskError(
            f"the mask has {n} positions, and there are labels for {n_labels}: "
            "draw it with a task whose prompts have its length."
        )


def _in_order(positions: Iterable[int | None]) -> list[int | None]:
    """Each position once, from left to right; None (all positions) comes first."""
    return sorted(set(positions), key=lambda position: -1 if position is None else position)


def _labels_of(positions: Iterable[int | None], position_labels: Sequence[str]) -> list[str]:
    labels = []
    for position in positions:
        if position is not None and position >= len(position_labels):
            raise MaskError(
                f"there is a node at position {position}, and labels for {len(position_labels)} "
                "positions: draw it with a task whose prompts have the circuit's length."
            )
        labels.append(ALL_POSITIONS if position is None else position_labels[position])
    return labels


def _label_layers(axes: Axes, hook_points: Sequence[str]) -> None:
    """A row for each hook point, from the bottom up."""
    axes.set_yticks(range(len(hook_points)), [str(_layer_of(name)) for name in hook_points])
    axes.set_ylabel("SAE after layer")


def _layer_of(hook_point: str) -> int:
    return int(hook_point.split(".")[1])


def node_map_figure(
    mask: Float[Tensor, "seq d_sae"] | Float[Tensor, " d_sae"],
    labels: Sequence[str],
    title: str,
) -> Figure:
    """One SAE's mask: positions (rows) by the latents that are on somewhere (columns). Dark = kept.

    A mask that is the same at every position is one row, "all positions".

    Args:
        labels: of the positions.

    Raises:
        MaskError: another number of positions than of labels.
    """
    rows = mask if mask.ndim == 2 else mask[None]
    if mask.ndim == 2:
        _check_positions(len(mask), len(labels))
    else:
        labels = [ALL_POSITIONS]
    latents = (rows > 0).any(0).nonzero()[:, 0].tolist()
    on = (rows[:, latents] > 0).float().cpu()
    width, height = max(4.5, 1.5 + 0.4 * len(latents)), 1.2 + 0.35 * len(labels)
    figure, [axes] = style.panels(1, width, height, boxed=True)
    axes.set_xlabel("latent" if latents else "no latent is kept")
    axes.set_yticks(range(len(labels)), labels)
    if latents:
        axes.imshow(on, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    else:
        axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xticks(range(len(latents)), [str(latent) for latent in latents], rotation=90)
    _grid_between(axes, len(labels), len(latents))
    return style.headed(figure, title)


def _grid_between(axes: Axes, n_rows: int, n_columns: int) -> None:
    """Thin lines between the cells of a map."""
    axes.set_xticks([i - 0.5 for i in range(1, n_columns)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, n_rows)], minor=True)
    axes.grid(which="minor", color="grey", linewidth=0.4)
    axes.tick_params(which="minor", length=0)


# ---------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------


def lines_figure(
    quantities: Mapping[str, Mapping[str, Sequence[Interval]]],
    x: Sequence[Number],
    x_label: str,
    title: str,
    *,
    bands: bool = False,
    marks: Sequence[Number] = (),
    levels: Mapping[str, Number] | None = None,
    over: str = "",
    one_scale: Collection[str] = (),
) -> Figure:
    """Estimates with their 95 % intervals along x, a panel for each quantity and a line for each
    method.

    Args:
        quantities: by the label of the y axis, by the label of the line: an interval for each x.
        bands: shade the intervals; by default they are bars.
        marks: x positions with a grey line, such as the layers that have an SAE.
        levels: by the label of the y axis, a value with a dotted line, such as that of the model
            itself.
        over: what the intervals are over ("prompts", "nodes", "seeds"); a caption says it.
        one_scale: labels of y axes that are to have the same ends, so that panels can be compared.
    """
    levels = levels or {}
    figure, axes_of = style.panels(len(quantities), 4.6 * len(quantities), 3.9)
    for axes, (y_label, lines) in zip(axes_of, quantities.items()):
        for mark in marks:
            axes.axvline(mark, color="grey", linewidth=0.6, alpha=0.4)
        if y_label in levels:
            style.level_line(axes, levels[y_label])
        for label, look in style.looks_of_series(lines).items():
            intervals = lines[label]
            if bands:
                values = [interval.value for interval in intervals]
                axes.plot(
                    x, values, label=label, color=look.colour, linewidth=1.5, linestyle=look.dashes
                )
                style.band(axes, x, intervals, look)
            else:
                style.error_bars(
                    axes, x, intervals, look, label=label, joined=True, dashes=look.dashes
                )
        style.labelled(axes, x_label, y_label)
        if len(x) <= 12:
            axes.set_xticks(x)
    _share_ends([axes for axes, label in zip(axes_of, quantities) if label in one_scale])
    _lines_legend(figure, axes_of)
    _say_over(figure, over)
    return style.headed(figure, title)


def _share_ends(axes_of: Sequence[Axes]) -> None:
    """Let these panels' y axes begin and end alike."""
    ends = [axes.get_ylim() for axes in axes_of]
    for axes in axes_of:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def _lines_legend(figure: Figure, axes_of: Sequence[Axes]) -> None:
    """One legend below the figure if all panels have the same lines, otherwise one in each panel.
    A single line needs none.
    """
    labels_of = [axes.get_legend_handles_labels()[1] for axes in axes_of]
    look_alike = set(labels_of[0]) <= set(style.SERIES_LOOKS)
    in_first = all(set(labels) <= set(labels_of[0]) for labels in labels_of)
    if (look_alike and in_first) or all(labels == labels_of[0] for labels in labels_of):
        if len(labels_of[0]) > 1:
            style.legend_below(figure, axes_of[0])
        return
    for axes, labels in zip(axes_of, labels_of):
        if len(labels) > 1:
            axes.legend(frameon=False)


def curves_figure(
    quantities: Mapping[str, Mapping[str, Sequence[Number]]],
    x_label: str,
    title: str,
    *,
    log: Sequence[str] = (),
    caption: str = "",
) -> Figure:
    """Curves over steps: a panel for each quantity, in it a line for each run.

    Args:
        quantities: by the label of the y axis, by the name of the run: a value for each step.
        log: quantities with a logarithmic axis.
        caption: below the panels, such as what a step is.
    """
    figure, axes_of = style.panels(len(quantities), max(6.2, 4.5 * len(quantities)), 3.6)
    for axes, (quantity, curves) in zip(axes_of, quantities.items()):
        for label, look in style.looks_of_series(curves).items():
            values = curves[label]
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, label=label, color=look.colour, linestyle=look.dashes)
        if quantity in log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        style.labelled(axes, x_label, quantity)
    style.legend_below(figure, axes_of[0])
    style.captioned(figure, caption)
    return style.headed(figure, title)


def areas_figure(
    fractions: Sequence[Number],
    curves: Mapping[str, Sequence[Number]],
    title: str,
    *,
    mark: Number | None = None,
    caption: str = "",
) -> Figure:
    """Faithfulness against circuit size as a share of all nodes, a line for each method: as the
    areas see it, and on a log scale.

    Args:
        fractions: of the nodes kept, the same for all methods.
        curves: by method, the faithfulness at each fraction.
        mark: a share with a grey line on the log scale, such as that of a circuit.
        caption: below the panels, such as how many prompts there are.
    """
    figure, axes_of = style.panels(2, 10, 4.2, sharey=True)
    scales = {"linear": "as the areas see it", "log": "the same on a log scale"}
    for axes, (scale, says) in zip(axes_of, scales.items()):
        for method, look in style.looks_of(curves).items():
            axes.plot(
                fractions,
                curves[method],
                label=method,
                color=look.colour,
                marker=look.marker,
                markersize=4,
                linewidth=1.5,
                linestyle=look.dashes,
            )
        for level in (0, 1):
            style.level_line(axes, level)
        axes.set_xscale(scale)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.10g} %")
        axes.set_xlabel("share of the nodes that is kept")
        axes.set_title(says, fontsize=10)
    if mark is not None:
        axes_of[1].axvline(mark, color="grey", linewidth=6, alpha=0.3)
    axes_of[0].set_ylabel("faithfulness f")
    style.legend_below(figure, axes_of[0])
    style.captioned(figure, caption)
    return style.headed(figure, title)


def history_figure(history: Sequence[Mapping[str, Number]], title: str) -> Figure:
    """How a mask was learned, step by step: how far its answers are off, and nodes on (log scale).

    Left, a step's loss is thin, and the mean of up to five steps around it is bold: each step has
    other prompts. No node at all is drawn as half a node, which a logarithmic axis has a place for.
    """
    figure, (left, right) = style.panels(2, 9, 3.4)
    steps = [record["step"] for record in history]
    losses = [record["faithfulness_loss"] for record in history]
    around = [losses[max(0, i - 2) : i + 3] for i in range(len(losses))]
    left.plot(steps, losses, color=style.BLUE, linewidth=0.8, alpha=0.5, label="each step")
    means = [sum(some) / len(some) for some in around]
    left.plot(steps, means, color=style.BLUE, linewidth=2, label="mean of five steps")
    left.set_ylim(0, 1.1 * max(losses))
    left.legend(frameon=False, loc="lower right", fontsize=9)
    right.plot(steps, [max(record["n_on"], 0.5) for record in history], color=style.ORANGE)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.labelled(left, "step", "mean |LD$_{masked}$ − LD$_S$| (logits)")
    style.labelled(right, "step", "nodes with θ > 0")
    return style.headed(figure, title)


def running_mean_figure(
    weights: Mapping[str, Float[Tensor, " n"]],
    errors: Mapping[str, Sequence[Number]],
    title: str,
) -> Figure:
    """Ways to keep a running mean: how much each prompt weighs in it at the end, and how far off it
    is after each batch.

    Args:
        weights: of every prompt, in the order in which they came; they sum to 1.
        errors: after each batch; relative to the size of the true mean.
    """
    figure, (left, right) = style.panels(2, 10, 3.6)
    for i, weight in enumerate(weights.values()):
        per_cent = (100 * weight).tolist()
        prompts = range(1, len(per_cent) + 1)
        left.plot(prompts, per_cent, color=style.look(i).colour, linewidth=1.5)
    for i, (label, error) in enumerate(errors.items()):
        look, batches = style.look(i), range(1, len(error) + 1)
        right.plot(batches, error, color=look.colour, marker=look.marker, markersize=4, label=label)
    style.labelled(left, "prompt, in order", "weight in the mean (%)")
    style.labelled(right, "batches seen", "‖error‖ / ‖true mean‖")
    right.set_ylim(bottom=0)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend_below(figure, right)
    return style.headed(figure, title)


# ---------------------------------------------------------------------------------------------
# Points, matrices, histograms, directions
# ---------------------------------------------------------------------------------------------


def scatter_figure(
    x: Float[Tensor, " n"],
    ys: Mapping[str, Float[Tensor, " n"]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    names: Sequence[str] = (),
    off: Number = 0.3,
    caption: str = "",
    x_limits: tuple[Number, Number] | None = None,
) -> Figure:
    """Estimates against the truth, a panel each; the grey line is where they would agree.

    Methods of the course and kinds of SAEs have their own colour and marker.

    Args:
        ys: the estimates, by the title of the panel.
        names: a name for each point, written beside those that lie more than ``off`` from the line.
        caption: below the panels, such as how many points there are.
        x_limits: the ends of the x axis; by default it holds all points and 0.
    """
    figure, axes_of = style.panels(len(ys), max(4.6, 3.6 * len(ys)), 3.6, sharey=True)
    looks = style.looks_of_series(ys)
    known = {*style.METHOD_LOOKS, *style.SERIES_LOOKS}
    has_own = any(style.kind_of(label) in known for label in ys)
    for i, (axes, (label, y)) in enumerate(zip(axes_of, ys.items())):
        style.equality_line(axes)
        look = looks[label] if has_own else Look(style.look(i + 1).colour, "o")
        axes.scatter(x, y, s=18, color=look.colour, marker=look.marker, alpha=0.7)
        axes.set_title(label)
        axes.set_xlabel(x_label)
        if x_limits is not None:
            axes.set_xlim(*x_limits)
    axes_of[0].set_ylabel(y_label)
    style.captioned(figure, caption)
    style.headed(figure, title)
    figure.draw_without_rendering()  # panels get their place on the page; names are fitted into it
    for axes, y in zip(axes_of, ys.values()):
        points = list(zip(names, x.tolist(), y.tolist()))
        far = [(name, a, b) for name, a, b in points if abs(a - b) > off]
        _name_points(axes, far, [(a, b) for _, a, b in points])
    return figure


def tradeoff_figure(
    points: Mapping[str, tuple[Number, Number]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    caption: str = "",
) -> Figure:
    """What each method costs (along x, logarithmic) against how good it is (along y, a share). Each
    method's name stands beside its point.

    Args:
        points: by the method's name, its cost (above 0) and its share. Each has the course's look
            of that method.
        caption: below the panel, such as what the share is of.
    """
    figure, [axes] = style.panels(1, 6.4, 3.8)
    axes.set_xscale("log")
    low, high = (pick(x for x, _ in points.values()) for pick in (min, max))
    axes.set_xlim(low / 1.8, high * 1.8)  # room for the names
    axes.set_ylim(0, 1.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    drawn: list[tuple[Number, Number]] = []
    looks = style.looks_of(points)
    for method in sorted(points, key=lambda name: -points[name][1]):  # a name is above, or below
        (x, y), look = points[method], looks[method]
        axes.scatter(x, y, color=look.colour, marker=look.marker, s=46, zorder=3)
        near = sum(abs(math.log(x / a)) < 1.2 and abs(y - b) < 0.12 for a, b in drawn)
        up = near % 2 == 0
        axes.annotate(
            method,
            (x, y),
            xytext=(0, 6 if up else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            fontsize=9,
        )
        drawn.append((x, y))
    style.labelled(axes, x_label, y_label)
    style.captioned(figure, caption)
    return style.headed(figure, title)


def _name_points(
    axes: Axes,
    points: Sequence[tuple[str, Number, Number]],
    others: Sequence[tuple[Number, Number]] = (),
) -> None:
    """Write each point's name beside it, or below another name or point that stands there.

    Args:
        others: all points of the panel. Those that touch the named point itself are not in its way.
    """
    centres = axes.transData.transform(list(others)) if others else []
    boxes = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in centres]
    names: list[Annotation] = []
    for name, x, y in points:
        text = axes.annotate(
            name, (x, y), (6, 0), textcoords="offset points", fontsize=8, va="center"
        )
        own = axes.transData.transform((x, y))
        taken = [other.get_window_extent() for other in names]
        taken += [box for box, at in zip(boxes, centres) if abs(at - own).max() > 9]
        down = 0
        while any(text.get_window_extent().overlaps(box) for box in taken):
            down -= 2
            text.xyann = (6, down)
        names.append(text)


def completeness_figure(
    points: Float[Tensor, "n_subsets 2"],
    marks: Mapping[str, tuple[Number, Number]],
    title: str,
    *,
    caption: str = "",
) -> Figure:
    """F(C∖K) against F(S∖K), a point for each subset K; a complete circuit's lie on the dotted
    line.

    Args:
        points: F(C∖K) and F(S∖K) of random subsets.
        marks: the same for subsets that have a name.
        caption: below the panel, such as how many subsets and prompts there are.
    """
    figure, [axes] = style.panels(1, 5.6, 5.4)
    style.equality_line(axes)
    x, y = points.T.cpu()
    axes.scatter(x, y, s=18, color=style.BLUE, alpha=0.7, label="random subsets K")
    axes.text(
        0.5,
        0.97,
        "higher above the line than K = ∅:\nthe whole has a spare for K",
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=9,
        color="dimgrey",
    )
    colours = (style.ORANGE, style.GREEN, style.YELLOW, style.PINK, style.SKY, style.BLACK)
    for i, (name, (mark_x, mark_y)) in enumerate(marks.items()):
        axes.scatter(
            [mark_x],
            [mark_y],
            s=60,
            color=colours[i % len(colours)],
            marker=style.look(i + 1).marker,
            label=name,
            zorder=3,
        )
    ends = (*axes.get_xlim(), *axes.get_ylim())
    axes.set_xlim(min(ends), max(ends))
    axes.set_ylim(min(ends), max(ends))
    axes.set_aspect("equal")
    x_label, y_label = "the circuit without K, F(C∖K)", "the whole without K, F(S∖K)"
    style.labelled(axes, f"{x_label} (logits)", f"{y_label} (logits)")
    axes.legend(frameon=False, loc="lower right")
    style.captioned(figure, caption)
    return style.headed(figure, title)


def matrix_figure(
    matrix: Float[Tensor, "m m"], labels: Sequence[str], title: str, colour_label: str
) -> Figure:
    """A table of numbers in 0…1 as colours, with the numbers in it.

    Args:
        colour_label: what the numbers are.
    """
    m = len(labels)
    figure, [axes] = style.panels(1, 1.8 + 0.62 * m, 1.3 + 0.5 * m, boxed=True)
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
    for row, numbers in enumerate(matrix.tolist()):
        for column, value in enumerate(numbers):
            colour = "white" if value < 0.6 else "black"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour
            )
    axes.set_xticks(range(m), labels, rotation=45, ha="right")
    axes.set_yticks(range(m), labels)
    figure.colorbar(image, ax=axes, label=colour_label, shrink=0.8)
    return style.headed(figure, title)


def histograms_figure(
    values: Mapping[str, Shaped[Tensor, " _"]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    bins: int = 30,
    upto: Number | None = None,
    log_shares: bool = False,
    level: Number | None = None,
) -> Figure:
    """A histogram for each panel, side by side on one scale; a dotted line at each mean.

    Args:
        upto: where the axis ends; what is above is counted in the last bar, and a caption says so.
        log_shares: the values are shares above 0, on a logarithmic axis in per cent.
        level: a value with a grey line, such as a threshold.
    """
    n = len(values)
    figure, axes_of = style.panels(n, min(3.9 * n, 13.0), 3.2, sharex=True, sharey=True)
    ends = dict(max=math.inf if upto is None else upto)
    numbers_of = {label: x.detach().float().cpu().clamp(**ends) for label, x in values.items()}
    edges = _edges(torch.cat(list(numbers_of.values())), bins, log_shares)
    looks = style.looks_of_series(values)
    for axes, (label, numbers) in zip(axes_of, numbers_of.items()):
        axes.hist(numbers.tolist(), bins=edges, color=looks[label].colour)
        mean = values[label].detach().float().mean().item()
        axes.axvline(mean, color="black", linewidth=1, linestyle=":")
        if level is not None:
            style.level_line(axes, level, horizontal=False, dashes="-")
        axes.set_title(label, fontsize=10)
        axes.set_xlabel(x_label)
        if log_shares:
            axes.set_xscale("log")
            wide = edges[-1] > 30 * edges[0]
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if wide else (1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.10g} %")
            axes.xaxis.set_minor_formatter(NullFormatter())
    axes_of[0].set_ylabel(y_label)
    if upto is not None:
        axes_of[0].set_xlim(right=upto)
        style.captioned(figure, f"the last bar holds all from {edges[-2]:.0f} up")
    return style.headed(figure, title)


def _edges(numbers: Shaped[Tensor, " _"], bins: int, log: bool) -> list[float]:
    """The edges of bars of one width, on a linear or a logarithmic axis."""
    low, high = numbers.min().item(), numbers.max().item()
    if low == high:
        low, high = 0.9 * low, 1.1 * high
    if log:
        return torch.logspace(math.log10(low), math.log10(high), bins + 1).tolist()
    return torch.linspace(low, high, bins + 1).tolist()


def kinds_figure(
    panels: Mapping[str, Mapping[str, Shaped[Tensor, " _"]]],
    axis: str,
    title: str,
    *,
    bins: int = 30,
) -> Figure:
    """How well a number tells kinds of prompts apart: a panel for each number, in it a histogram
    for each kind, all on one scale.

    Args:
        panels: by the title of the panel, by kind, a value per prompt.
        axis: what the values are.
    """
    figure, axes_of = style.panels(len(panels), 4.6 * len(panels), 3.6, sharex=True, sharey=True)
    every = torch.cat(
        [values.float().cpu() for kinds in panels.values() for values in kinds.values()]
    )
    ends = (every.min().item(), every.max().item())
    for axes, (name, kinds) in zip(axes_of, panels.items()):
        for i, (kind, values) in enumerate(kinds.items()):
            label = f"{kind} (n = {len(values)})"
            colour = style.look(i).colour
            axes.hist(values.tolist(), bins=bins, range=ends, color=colour, alpha=0.8, label=label)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(axis)
    axes_of[0].set_ylabel("prompts")
    style.legend_below(figure, axes_of[0])
    return style.headed(figure, title)


def dumbbells_figure(
    cases: Mapping[str, Mapping[str, Estimate]],
    axis: ValueAxis | str,
    title: str,
    *,
    over: str = "",
) -> Figure:
    """Cases along y, the first on top. The estimates of one case stand on one line, and a grey bar
    joins them.

    Args:
        cases: by the name of the case, by the label of the series, an estimate. Series have a
            colour and a marker each; a case may lack some.
        axis: of the values.
        over: what the intervals are over; a caption says it.

    Raises:
        ValueError: no case.
    """
    if not cases:
        raise ValueError("cases: there is nothing to draw.")
    labels = list(dict.fromkeys(label for case in cases.values() for label in case))
    figure, [axes] = style.panels(1, 7.5, 1.6 + 0.3 * len(cases))
    for place, case in enumerate(cases.values()):
        values = [style.value_of(estimate) for estimate in case.values()]
        ends = (min(values), max(values))
        axes.plot(ends, (place, place), color="gainsboro", linewidth=5, zorder=0)
    for i, label in enumerate(labels):
        shift = 0.2 * (i - (len(labels) - 1) / 2)
        own = [(place, case[label]) for place, case in enumerate(cases.values()) if label in case]
        places, estimates = [place + shift for place, _ in own], [one for _, one in own]
        style.error_bars(axes, places, estimates, style.look(i), label=label, horizontal=True)
    _set_value_axis(axes, ValueAxis(axis) if isinstance(axis, str) else axis, horizontal=True)
    axes.set_yticks(range(len(cases)), list(cases))
    axes.set_ylim(len(cases) - 0.5, -0.5)
    style.legend_below(figure, axes)
    _say_over(figure, over)
    return style.headed(figure, title)


def directions_figure(
    features: Mapping[str, Float[Tensor, "_ 2"]],
    title: str,
    *,
    learned: Mapping[str, Float[Tensor, "_ 2"]] | None = None,
) -> Figure:
    """Directions in the plane, a panel each: features as numbered arrows whose tips are joined in a
    polygon; learned directions as rings.

    Features shorter than 0.5, which the model hardly stores, have no number and are not joined.

    Args:
        features: by the title of the panel.
        learned: directions to compare with them, by the title of the panel.
    """
    learned = learned or {}
    figure, axes_of = style.panels(
        len(features), max(4.2, 2.7 * len(features)), 3.6, sharex=True, sharey=True
    )
    for axes, (label, rows) in zip(axes_of, features.items()):
        _draw_directions(axes, rows.detach().cpu())
        if label in learned:
            x, y = learned[label].detach().cpu().T.tolist()
            axes.scatter(
                x, y, s=90, facecolors="none", edgecolors="black", linewidths=1.4, zorder=3
            )
        axes.set_title(label, fontsize=10)
        axes.set_aspect("equal")
        axes.set_xlim(-1.6, 1.6)
        axes.set_ylim(-1.6, 1.6)
        axes.set_xlabel("hidden dimension 1")
    axes_of[0].set_ylabel("hidden dimension 2")
    return style.headed(figure, title)


def _draw_directions(axes: Axes, rows: Float[Tensor, "n 2"]) -> None:
    """An arrow for each direction; the long ones have a number, and a polygon joins their tips."""
    stored = rows[rows.norm(dim=1) > 0.5]
    around = stored[torch.atan2(stored[:, 1], stored[:, 0]).argsort()]
    x, y = around.T.tolist()
    axes.fill(x, y, facecolor="none", edgecolor="grey", linewidth=1, linestyle=":")
    for i, row in enumerate(rows.tolist()):
        colour = style.look(i).colour
        arrow = dict(arrowstyle="->", color=colour, linewidth=2, shrinkA=0, shrinkB=0)
        axes.annotate("", row, (0, 0), arrowprops=arrow)
        norm = math.hypot(*row)
        if norm > 0.5:
            x, y = (value * (norm + 0.2) / norm for value in row)
            axes.text(x, y, str(i + 1), ha="center", va="center", color=colour, fontsize=11)
