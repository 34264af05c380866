"""The figures show the numbers that they are given."""

import itertools
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from test_frontier import add

from course_utils.circuits.evaluate import MEASURES, Faithfulness
from course_utils.circuits.frontier import Frontier, Point
from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.circuits.statistics import Interval
from course_utils.display import figures, style
from course_utils.display.figures import ValueAxis, estimates_figure
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def texts(labels):
    return [label.get_text() for label in labels]


def series_of(axes, values="y"):
    """By label: the values and intervals that are drawn, in order, and in which colour."""
    column = "xy".index(values)
    drawn = {}
    for container in axes.containers:
        markers, _, bars = container
        segments = (
            [segment for segment in bars[0].get_segments() if segment.ndim == 2] if bars else []
        )
        ends = [segment[:, column].tolist() for segment in segments]
        numbers = markers.get_xydata()[:, column].tolist()
        drawn[container.get_label()] = (numbers, ends, markers.get_color())
    return drawn


# -- into the notebook -------------------------------------------------------------------------


def any_figure():
    return figures.history_figure([{"step": 0, "faithfulness_loss": 1, "n_on": 1}], "t")


def test_pictures_have_150_dots_per_inch():
    figure = any_figure()
    width = figure.get_figwidth()
    png = figures.picture(figure, alt="").data
    pixels = int.from_bytes(png[16:20], "big")  # of the header, by the standard
    assert 0.8 < pixels / (150 * width) < 1.2


def test_show_gives_the_picture_alternative_text_and_closes_the_figure(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    figures.show(any_figure(), alt="a falling line")
    _, metadata = shown[0]._repr_mimebundle_()  # what a notebook's page is made of
    assert metadata == {"image/png": {"alt": "a falling line"}}
    assert shown[0].data.startswith(b"\x89PNG")
    assert not plt.get_fignums()


# -- estimates with intervals ------------------------------------------------------------------

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))
INTERVALS = (
    st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted).map(lambda x: Interval(x[1], x[0], x[2]))
)
ESTIMATES = INTERVALS | NUMBERS
NAMES = st.text("abcdefg ", min_size=1).filter(str.strip)
NAMED = st.dictionaries(NAMES, ESTIMATES, min_size=1, max_size=12)
few = settings(  # a figure takes a tenth of a second: few of them, and failures are not shrunk
    max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)


@few
@given(NAMED, st.booleans(), st.booleans())
def test_estimates_by_name_are_all_drawn_in_order(estimates, bars, horizontal):
    figure = estimates_figure(estimates, "γ", "finding", bars=bars, horizontal=horizontal)
    [axes] = figure.axes
    names, value_axis = axes.get_xticklabels(), axes.yaxis
    if horizontal:
        names, value_axis = axes.get_yticklabels(), axes.xaxis
    assert texts(names) == list(estimates)
    assert value_axis.get_label_text() == "γ" and figure.get_suptitle() == "finding"
    values = [style.value_of(estimate) for estimate in estimates.values()]
    if bars:
        size = "get_width" if horizontal else "get_height"
        drawn = [getattr(patch, size)() for patch in axes.patches]
        assert texts(axes.texts) == [f"{value:.3g}".replace("-", "−") for value in values]
    else:
        [(drawn, _, _)] = series_of(axes, "x" if horizontal else "y").values()
    assert drawn == pytest.approx(values)
    figure.draw_without_rendering()
    plt.close(figure)


@few
@given(st.dictionaries(NAMES, NAMED, min_size=1, max_size=9), st.booleans(), st.booleans())
def test_groups_share_the_places_of_their_names_and_differ_in_looks(groups, bars, horizontal):
    figure = estimates_figure(groups, "γ", "t", bars=bars, horizontal=horizontal)
    [axes] = figure.axes
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    assert texts(axes.get_yticklabels() if horizontal else axes.get_xticklabels()) == names
    if len(groups) > 1:
        assert texts(figure.legends[0].texts) == list(groups)
    if bars:
        centre = "get_y" if horizontal else "get_x"
        breadth = "get_height" if horizontal else "get_width"
        places = [getattr(bar, centre)() + getattr(bar, breadth)() / 2 for bar in axes.patches]
        looks = {to_hex(bar.get_facecolor()) for bar in axes.patches}
    else:
        lines = [container[0] for container in axes.containers]
        column = 1 if horizontal else 0
        places = [x for line in lines for x in line.get_xydata()[:, column].tolist()]
        looks = {(line.get_color(), line.get_marker()) for line in lines}
    wanted = [names.index(name) for group in groups.values() for name in group]
    assert [round(place) for place in places] == wanted
    assert len({round(place, 6) for place in places}) == len(places)  # nothing covers another
    assert len(looks) == (min(len(groups), 7) if bars else len(groups))
    plt.close(figure)


@few
@given(st.dictionaries(NAMES, st.lists(ESTIMATES, max_size=8), min_size=1, max_size=9))
def test_groups_without_names_stand_one_after_the_other_each_from_large_to_small(groups):
    if not any(groups.values()):
        return
    figure = estimates_figure(groups, "γ", "t", place_label="node")
    [axes] = figure.axes
    drawn = [container[0].get_xydata().tolist() for container in axes.containers]
    for points, group in zip(drawn, groups.values(), strict=True):
        values = sorted((style.value_of(estimate) for estimate in group), reverse=True)
        assert [y for _, y in points] == values
    places = [x for points in drawn for x, _ in points]
    assert places == sorted(set(places))
    assert axes.get_xlabel() == "node" and not texts(axes.get_xticklabels())
    plt.close(figure)


EFFECTS = {
    "zero": {"10": Interval(1.0, 0.5, 2.0), "100": Interval(3.0, 2.5, 3.5)},
    "mean": {"100": Interval(0.2, 0.1, 0.3)},
}


@pytest.mark.parametrize("named", [True, False])
def test_groups_that_are_methods_look_as_they_do_in_every_figure(named):
    """Others in the same figure get another look, and groups without a method are counted off."""
    own = {"a": 1, "b": 2} if named else [1, 2]

    def looks(labels):
        [axes] = estimates_figure(dict.fromkeys(labels, own), "y", "t").axes
        drawn = [container[0] for container in axes.containers]
        return [(line.get_color(), line.get_marker()) for line in drawn]

    mask, ig = (style.METHOD_LOOKS[name].point for name in ("learned mask", "IG best"))
    padding, found_ig, found_mask = looks(["padding", "IG best", "learned mask"])
    assert (found_mask, found_ig) == (mask, ig) and padding not in (mask, ig)
    assert looks(["x", "y"]) == [style.look(0).point, style.look(1).point]


def test_points_of_groups_stand_beside_each_other_with_their_intervals():
    [axes] = estimates_figure(EFFECTS, "y", "finding").axes
    assert series_of(axes) == {
        "zero": ([1, 3], [[0.5, 2], [2.5, 3.5]], style.ORANGE),
        "mean": ([0.2], [pytest.approx([0.1, 0.3])], style.BLUE),
    }
    zero, mean = (container[0].get_xdata().tolist() for container in axes.containers)
    assert zero == pytest.approx([-0.08, 0.92]) and mean == pytest.approx([1.08])
    assert texts(axes.get_xticklabels()) == ["10", "100"]


def test_a_logarithmic_axis_has_no_line_at_zero():
    [linear] = estimates_figure(EFFECTS, "y", "t").axes
    [log] = estimates_figure(EFFECTS, ValueAxis("y", log=True), "t").axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    levels = [
        [line.get_ydata()[0] for line in axes.lines if len(set(line.get_xdata())) == 2]
        for axes in (linear, log)
    ]
    assert [0 in of for of in levels] == [True, False]


@pytest.mark.parametrize("horizontal", [False, True])
def test_bars_have_the_intervals_of_those_that_have_one_and_a_line_at_the_reference(horizontal):
    estimates = {"a": 0.5, "b": Interval(0.8, 0.7, 0.95)}
    axis = ValueAxis("γ", reference=1.0)
    [axes] = estimates_figure(estimates, axis, "t", bars=True, horizontal=horizontal).axes
    values = 0 if horizontal else 1
    segments = [s for collection in axes.collections for s in collection.get_segments()]
    ends = [
        segment[:, values].tolist() for segment in segments if not math.isnan(segment[0, values])
    ]
    assert ends == [pytest.approx([0.7, 0.95])]
    reference = axes.lines[-1]
    assert (reference.get_xdata() if horizontal else reference.get_ydata()) == [1.0, 1.0]
    assert reference.get_linestyle() == ":"


def test_shares_are_written_in_per_cent_on_an_axis_from_none_to_all():
    estimates = {"circuit": Interval(0.9, 0.8, 0.95), "random": Interval(0.1, 0.0, 0.2)}
    axis = ValueAxis("flipped", percent=True)
    figure = estimates_figure(estimates, axis, "t", bars=True, horizontal=True)
    [axes] = figure.axes
    figure.draw_without_rendering()
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.1]
    assert texts(axes.texts) == ["90%", "10%"]
    assert {"0%", "100%"} <= set(texts(axes.get_xticklabels()))
    low, high = axes.get_xlim()
    assert low <= 0 and high >= 1
    few_flips = {"a": Interval(0.02, 0.0, 0.04)}
    [axes] = estimates_figure(few_flips, axis, "t", bars=True, horizontal=True).axes
    assert axes.get_xlim()[1] >= 1


def test_numbers_stand_beyond_their_bars_and_intervals_on_the_side_of_the_value():
    estimates = {"sva": Interval(0.9, 0.8, 1.3), "ioi": Interval(-0.2, -0.3, 0.1)}
    figure = estimates_figure(estimates, "share", "t", bars=True, horizontal=True)
    [axes] = figure.axes
    figure.draw_without_rendering()
    right, left = axes.texts
    assert (right.xy, left.xy) == ((1.3, 0), (-0.3, 1))
    to_data = axes.transData.inverted()
    assert to_data.transform(right.get_window_extent())[0][0] > 1.3
    assert to_data.transform(left.get_window_extent())[1][0] < -0.3
    for text in axes.texts:
        assert figure.bbox.containsx(text.get_window_extent().x0)
        assert figure.bbox.containsx(text.get_window_extent().x1)


def test_horizontal_names_go_from_the_top_down():
    [axes] = estimates_figure({"a": 1, "b": 2, "c": 3}, "γ", "t", bars=True, horizontal=True).axes
    bottom, top = axes.get_ylim()
    assert bottom > top and [bar.get_y() for bar in axes.patches] == sorted(
        bar.get_y() for bar in axes.patches
    )


def colours_of_bars(axes):
    """The colour of each bar, from left to right."""
    bars = sorted(axes.patches, key=lambda bar: bar.get_x())
    return [to_hex(bar.get_facecolor()).upper() for bar in bars]


def test_highlighted_bars_are_orange_and_the_others_sky_blue():
    estimates = {"a": 1, "b": 2, "c": 3, "d": 4}
    [axes] = estimates_figure(estimates, "γ", "t", bars=True, highlight=["b", "d"]).axes
    assert colours_of_bars(axes) == [style.SKY, style.ORANGE] * 2
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert heights == {0: 1, 1: 2, 2: 3, 3: 4}
    [axes] = estimates_figure(estimates, "γ", "t", bars=True, highlight=()).axes
    assert colours_of_bars(axes) == [style.SKY] * 4
    [axes] = estimates_figure(estimates, "γ", "t", bars=True).axes
    assert colours_of_bars(axes) == list(style.COLOURS[:4])


def test_points_can_be_highlighted_too():
    [axes] = estimates_figure({"a": 1, "b": 2, "c": 3}, "γ", "t", highlight=["b"]).axes
    drawn = {c[0].get_color(): c[0].get_xydata().tolist() for c in axes.containers}
    assert drawn == {style.SKY: [[0, 1], [2, 3]], style.ORANGE: [[1, 2]]}


def test_an_interval_that_misses_its_value_by_rounding_is_drawn():
    """`proportion` of none among many: the lower end is a hair above 0."""
    estimates = {
        "none": Interval(0.0, 1e-18, 0.04),
        "all": Interval(1.0, 0.96, math.nextafter(1, 0)),
    }
    [axes] = estimates_figure(estimates, "share", "t", bars=True).axes
    assert texts(axes.texts) == ["0", "1"]


@pytest.mark.parametrize(
    "groups, options, message",
    [
        ({}, {}, "no estimate to draw"),
        ({"zero": {}, "mean": {}}, {}, "no estimate to draw"),
        ({"zero": []}, {}, "no estimate to draw"),
        ({"a": 1.0, "zero": {"b": 1.0}}, {}, "groups of one kind"),
        ({"zero": [1.0], "mean": {"b": 1.0}}, {}, "groups of one kind"),
        ({"a": 1.0}, {"bars": True, "axis": ValueAxis("y", log=True)}, "draw points"),
        ({"a": 1.0}, {"highlight": ["b"]}, "no estimate is called 'b'"),
        ({"zero": {"a": 1.0}}, {"highlight": ["a"]}, "for estimates by name"),
    ],
)
def test_what_cannot_be_drawn_is_refused(groups, options, message):
    with pytest.raises(ValueError, match=message):
        estimates_figure(groups, **{"axis": "y", "title": "t", **options})


def test_a_caption_says_over_what_intervals_are_where_that_is_known():
    estimates = {"a": Interval(0.5, 0.0, 1.0)}
    said = estimates_figure(estimates, "y", "t", over="nodes")
    assert said._supxlabel.get_text() == "intervals: 95 % over nodes"
    assert estimates_figure(estimates, "y", "t")._supxlabel is None
    lines = {"y": {"a": [Interval(0.5, 0.0, 1.0)]}}
    said = figures.lines_figure(lines, [1], "x", "t", over="seeds")
    assert said._supxlabel.get_text() == "intervals: 95 % over seeds"
    assert figures.lines_figure(lines, [1], "x", "t")._supxlabel is None


# -- frontiers ---------------------------------------------------------------------------------


def point(method, n_nodes, value):
    interval = Interval(value, value - 0.1, value + 0.2)
    faithfulness = Faithfulness(interval, interval, interval, interval, 1.0, 1.0, 1.0, 0.0, 10)
    return Point(method, n_nodes, faithfulness, {A: n_nodes})


def frontier_of(*points):
    return Frontier("sva", "tiny", [1, 3], "drop", list(points))


FRONTIER = frontier_of(
    point("learned mask", 10, 0.9), point("learned mask", 2, 0.5), point("IG", 5, 0.4)
)


def test_the_frontier_figure_has_a_line_a_method_with_its_intervals():
    figure = figures.frontier_figure(FRONTIER, "finding")
    faithfulness, gap = figure.axes
    assert faithfulness.get_xscale() == "log" and figure.get_suptitle() == "finding"
    assert faithfulness.get_ylabel().startswith("faithfulness") and "gap" in gap.get_ylabel()
    for axes in figure.axes:
        sizes = {c.get_label(): c[0].get_xdata().tolist() for c in axes.containers}
        assert sizes == {"learned mask": [2, 10], "IG": [5]}
        drawn = series_of(axes)
        assert drawn["learned mask"][:2] == (
            [0.5, 0.9],
            [pytest.approx([0.4, 0.7]), pytest.approx([0.8, 1.1])],
        )
    assert texts(figure.legends[0].texts) == ["learned mask", "IG"]


@pytest.mark.parametrize("draw", ["frontier", "at a size"])
def test_a_method_looks_the_same_in_every_frontier(draw, task):
    methods = ["made up", "random", "IG", "learned mask"]
    for order in (methods, methods[1:], methods[::-1]):
        frontier = frontier_of(*(point(method, 5, 0.4) for method in order))
        if draw == "frontier":
            figure = figures.frontier_figure(frontier, "t")
        else:
            figure = figures.frontier_at_size_figure(frontier, masks_of(task, {A: [(1, 3)]}), task)
        lines = {c.get_label(): c[0] for c in figure.axes[0].containers}
        assert list(lines) == order
        for method in order:
            look = style.METHOD_LOOKS.get(method)
            if look:
                line = lines[method]
                assert (line.get_color(), line.get_marker()) == (look.colour, look.marker)
        assert len({line.get_color() for line in lines.values()}) == len(order)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12))
def test_any_number_of_methods_is_drawn(n):
    frontier = frontier_of(*(point(f"method {i}", i + 1, i / 10) for i in range(n)))
    figure = figures.frontier_figure(frontier, "t", ["vs_spliced"])
    [axes] = figure.axes
    assert [container[0].get_xdata().tolist() for container in axes.containers] == [
        [i + 1] for i in range(n)
    ]
    assert texts(figure.legends[0].texts) == [f"method {i}" for i in range(n)]
    plt.close(figure)


def test_circuits_without_nodes_are_named_below_an_axis_that_has_no_place_for_them():
    frontier = frontier_of(
        point("learned mask", 0, 0.25), point("learned mask", 2, 0.5), point("IG", 0, 0.0)
    )
    figure = figures.frontier_figure(frontier, "t")
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert series_of(axes)["learned mask"][0] == [0.5] and series_of(axes)["IG"][0] == []
        note = axes.get_xlabel().split("\n")[1]
        assert note == "with 0 nodes, left of this axis: learned mask 0.25, IG 0.00"
    assert texts(figure.legends[0].texts) == ["learned mask", "IG"]
    assert "0 nodes" not in figures.frontier_figure(FRONTIER, "t").axes[0].get_xlabel()


def test_the_note_on_circuits_without_nodes_and_the_legend_do_not_cover_each_other(task):
    frontier = frontier_of(point("learned mask", 0, 0.25), point("learned mask", 2, 0.5))
    masks = masks_of(task, {A: [(1, 3)]})
    for figure in (
        figures.frontier_figure(frontier, "t"),
        figures.frontier_at_size_figure(frontier, masks, task),
    ):
        figure.draw_without_rendering()
        note, [legend] = figure.axes[0].xaxis.label, figure.legends
        assert "with 0 nodes" in note.get_text()
        assert not note.get_window_extent().overlaps(legend.get_window_extent())


def test_a_frontier_of_nothing_but_circuits_without_nodes_is_drawn(task):
    empty = masks_of(task, {A: []})
    for frontier, n_named in ((frontier_of(point("IG", 0, 0.1)), 1), (frontier_of(), 0)):
        for figure in (
            figures.frontier_figure(frontier, "t"),
            figures.frontier_at_size_figure(frontier, empty, task),
        ):
            figure.draw_without_rendering()
            axes = figure.axes[0]
            assert axes.get_xlabel().count("with 0 nodes") == n_named
            drawn = [len(bars.lines[0].get_xdata()) for bars in axes.containers]
            assert not any(drawn)  # no point stands at 0 on a log axis


def test_a_frontier_says_how_many_prompts_there_are_and_what_bars_are_over(task):
    masks = masks_of(task, {A: [(1, 3)]})
    for figure in (
        figures.frontier_figure(FRONTIER, "t"),
        figures.frontier_at_size_figure(FRONTIER, masks, task),
        figures.measures_figure(FRONTIER),
    ):
        caption = figure.legends[0].get_title().get_text()
        assert caption == "n = 10 prompts; bars: 95 % intervals over prompts"


@pytest.mark.parametrize("draw", ["frontier", "at a size", "measures"])
def test_seeds_are_points_with_a_line_through_their_mean_and_no_bars(draw, task):
    seeds = [(4, 0.5), (5, 0.7), (4, 0.6)]
    frontier = frontier_of(
        *(replace(point("mask", n, value), seed=i, wanted=4) for i, (n, value) in enumerate(seeds)),
        replace(point("mask", 9, 0.9), seed=0, wanted=9),
        point("IG", 4, 0.3),
        point("IG", 9, 0.8),
    )
    if draw == "frontier":
        figure = figures.frontier_figure(frontier, "t", ["vs_spliced"])
    elif draw == "measures":
        figure = figures.measures_figure(frontier, ["vs_spliced"])
    else:
        figure = figures.frontier_at_size_figure(frontier, masks_of(task, {A: [(1, 3)]}), task)
    axes = figure.axes[0]
    look = style.looks_of(["mask", "IG"])["mask"]
    means, points, _ = [line for line in axes.lines if line.get_color() == look.colour][:3]
    assert means.get_xydata().ravel().tolist() == pytest.approx([13 / 3, 0.6, 9, 0.9])
    drawn = sorted(map(tuple, points.get_xydata().tolist()))
    assert drawn == [(4, 0.5), (4, 0.6), (5, 0.7), (9, 0.9)]
    assert {container.get_label() for container in axes.containers} == {"IG"}
    assert texts(figure.legends[0].texts) == ["mask", "IG"]
    caption = figure.legends[0].get_title().get_text()
    assert caption.replace("\n", " ").endswith(
        "; small points: 3 seeds, with a line through their mean"
    )


def test_a_seed_without_nodes_has_no_place_and_is_named(task):
    frontier = frontier_of(
        *(replace(point("mask", n, n / 10), wanted=4) for n in (0, 4, 5)),
        replace(point("mask", 0, 0.25), wanted=2),
    )
    axes = figures.frontier_figure(frontier, "t", ["vs_spliced"]).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[4.5, 0.45]]
    note = axes.get_xlabel().split("\n")[1]
    assert note == "with 0 nodes, left of this axis: mask 0.25, mask 0.00"


def test_the_ticks_of_a_frontier_are_the_sizes_of_its_circuits():
    for axes in figures.frontier_figure(FRONTIER, "t").axes:
        assert texts(axes.get_xticklabels()) == ["2", "5", "10"]


# -- both measures, all seeds, paired ----------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    """A mask with 3 seeds and two rivals with one, with the logit differences of every prompt."""
    made = frontier_of()
    for seed, shift in enumerate((-0.05, 0.0, 0.05)):
        for size, share in ((4, 0.7), (6, 0.9), (9, 1.0)):
            add(made, "learned mask", size, share + shift, seed=seed)
    for size, share in ((4, 1.01), (6, 1.3), (9, 1.02), (20, 1.0)):
        add(made, "IG", size, share, noise=1.0, seed=7)
    for size in (4, 6):
        add(made, "random", size, 0.0)
    return made


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_measures_figure_has_a_panel_a_measure_with_the_value_to_reach(judged, n):
    measures = [*MEASURES[2:], *MEASURES[:2]][:n]  # raw, distance, gap, vs_model, vs_spliced
    figure = figures.measures_figure(judged, measures, "the finding")
    figure.draw_without_rendering()
    assert len(figure.axes) == n and figure.get_suptitle() == "the finding"
    for axes, measure in zip(figure.axes, measures, strict=True):
        level = axes.lines[-1]
        assert set(level.get_ydata()) == {0 if measure in ("distance", "gap") else 1}
        assert level.get_linestyle() == ":" and axes.get_xscale() == "log"
        drawn = series_of(axes)
        points = judged.of_method("IG")
        intervals = [getattr(point.faithfulness, measure) for point in points]
        assert drawn["IG"][0] == [interval.value for interval in intervals]
        assert drawn["IG"][1] == [
            pytest.approx([interval.low, interval.high]) for interval in intervals
        ]
        assert axes.get_ylabel() == figures.PANEL_LABELS[measure]
        assert axes.get_title() == figures.PANEL_TITLES[measure]
    assert texts(figure.legends[0].texts) == ["learned mask", "IG", "random"]


def test_by_default_the_measures_are_two_faithfulnesses_the_distance_and_the_gap(judged):
    figure = figures.measures_figure(judged)
    labels = [figures.PANEL_LABELS[name] for name in ("vs_spliced", "vs_model", "distance", "gap")]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert shown == ["", "", figures.NODES_KEPT, figures.NODES_KEPT]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_texts_of_the_measures_figure_do_not_cover_each_other(judged, n):
    figure = figures.measures_figure(judged, MEASURES[:n], "a title of several words " * 4)
    figure.draw_without_rendering()
    assert not overlaps(figure)


def all_texts(figure):
    """What is written outside the panels' data: titles, axis labels, tick labels, legend."""
    found = [figure._suptitle, figure.legends[0].get_title(), *figure.legends[0].texts]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [
                tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
    return [text for text in found if text.get_text() and text.get_visible()]


def overlaps(figure):
    """Pairs of texts that cover each other, and texts that leave the figure to the sides."""
    boxes = {text: text.get_window_extent() for text in all_texts(figure)}
    wrong = [
        (one.get_text(), other.get_text())
        for one, other in itertools.combinations(boxes, 2)
        if boxes[one].overlaps(boxes[other])
    ]
    outside = [t.get_text() for t, box in boxes.items() if box.x0 < 0 or box.x1 > figure.bbox.x1]
    return wrong + outside


@pytest.mark.parametrize("n_rivals", [1, 2, 9])
def test_texts_of_the_paired_figure_do_not_cover_each_other(n_rivals):
    made = frontier_of()
    for size in (3, 4, 8, 12, 20):
        add(made, "learned mask", size, 0.9)
        for i in range(n_rivals):
            add(made, f"method number {i}", size, i / 10, noise=0.5)
    figure = figures.paired_figure(made, "learned mask", title="a title of several words " * 4)
    figure.draw_without_rendering()
    assert not overlaps(figure)
    assert figure.get_figwidth() <= 13


def test_the_paired_figure_shows_what_each_rival_has_more_than_the_method(judged):
    figure = figures.paired_figure(judged, "learned mask", title="the finding")
    assert figure.get_suptitle() == "the finding"
    gap, distance = figure.axes
    assert "gap" in gap.get_title() and "|1 − F|" in distance.get_title()
    for axes, measure in ((gap, "gap"), (distance, "distance")):
        assert texts(axes.get_xticklabels()) == ["4", "6", "9"]
        assert axes.get_ylabel() == "rival − learned mask\n(above 0: learned mask is better)"
        looks = style.looks_of(["IG", "random"])
        for rival, shift in (("IG", -0.1), ("random", 0.1)):
            drawn = {}
            for container in axes.containers:
                markers, _, bars = container
                if markers.get_color() == looks[rival].colour:
                    hollow = markers.get_markerfacecolor() == "white"
                    ends = [one[:, 1].tolist() for one in bars[0].get_segments()] if bars else []
                    for (x, y), segment in zip(markers.get_xydata().tolist(), ends):
                        drawn[round(x - shift, 6)] = (y, *segment, hollow)
            sizes = judged.shared_sizes(["learned mask", rival])
            assert sorted(drawn) == [[4, 6, 9].index(size) for size in sizes]
            for size in sizes:
                found = judged.compare(rival, "learned mask", size, measure)
                *numbers, hollow = drawn[[4, 6, 9].index(size)]
                assert numbers == pytest.approx([found.value, found.low, found.high], abs=1e-6)
                assert hollow == (found.low <= 0 <= found.high)
    assert texts(figure.legends[0].texts) == ["IG", "random"]
    caption = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert caption == (
        "n = 60 prompts; bars: 95 % intervals of the paired difference, over prompts; hollow: the "
        "interval holds 0; small points: the 3 seeds of learned mask, one by one"
    )


def test_small_points_of_the_paired_figure_are_the_single_seeds(judged):
    axes = figures.paired_figure(judged, "learned mask", ["IG"], ["gap"]).axes[0]
    at_size = [
        points.get_offsets().tolist()
        for points in axes.collections
        if len(points.get_offsets()) == 3
    ]
    assert len(at_size) == 3
    [rival] = judged.by_size("IG")[6]
    singles = [
        rival.faithfulness.gap.value - seed.faithfulness.gap.value
        for seed in judged.by_size("learned mask")[6]
    ]
    assert [y for _, y in at_size[1]] == pytest.approx(singles)
    one_seed = figures.paired_figure(judged, "IG", ["random"], ["gap"])
    assert "seeds" not in one_seed.legends[0].get_title().get_text()
    assert not [points for points in one_seed.axes[0].collections if len(points.get_offsets()) > 1]


def test_a_paired_figure_of_nothing_in_common_is_refused(judged):
    with pytest.raises(ValueError, match="shares no size with"):
        figures.paired_figure(judged, "random", [])
    with pytest.raises(ValueError, match="no method is called"):
        figures.paired_figure(judged, "AtP")


# -- circuits ----------------------------------------------------------------------------------


def masks_of(task, on, shared=(), seq=None):
    """Masks with these (position, latent) on; at the hook points in ``shared``, these latents."""
    masks = []
    for name, nodes in on.items():
        mask = torch.zeros(24) if name in shared else torch.zeros(seq or task.seq_len, 24)
        for node in nodes:
            mask[node] = 1
        masks.append(mask)
    return SAEMasks(list(on), masks)


def written(axes):
    """The texts in a panel by (column label, row label)."""
    columns, rows = texts(axes.get_xticklabels()), texts(axes.get_yticklabels())
    return {
        (
            columns[round(text.get_position()[0])],
            rows[round(text.get_position()[1])],
        ): text.get_text()
        for text in axes.texts
    }


def test_the_circuit_figure_counts_nodes_by_layer_and_position(task):
    masks = masks_of(task, {A: [(2, 0), (2, 1), (2, 2)], B: [(5, 7)]})
    figure = figures.circuit_figure(masks, task, "where")
    [axes] = figure.axes
    labels = list(task.position_labels)
    assert texts(axes.get_xticklabels()) == labels and texts(axes.get_yticklabels()) == ["1", "3"]
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the first layer is at the bottom
    cells = written(axes)
    assert {cell: n for cell, n in cells.items() if n != "·"} == {
        (labels[2], "1"): "3",
        (labels[5], "3"): "1",
    }
    assert len(cells) == 2 * len(labels) and figure.get_suptitle() == "where"
    shades = axes.images[0].get_array()
    assert shades[0, 2] > shades[1, 5] > shades[0, 0] == 0


def test_the_circuit_figure_counts_latents_without_positions_in_a_column_of_their_own(task):
    masks = masks_of(task, {A: [3, 4], B: []}, shared=[A, B])
    [axes] = figures.circuit_figure(masks, task, "t").axes
    assert written(axes) == {("all positions", "1"): "2", ("all positions", "3"): "·"}
    mixed = masks_of(task, {A: [3, 4], B: [(5, 7)]}, shared=[A])
    [axes] = figures.circuit_figure(mixed, task, "t").axes
    assert texts(axes.get_xticklabels()) == ["all positions", *task.position_labels]
    assert {cell: n for cell, n in written(axes).items() if n != "·"} == {
        ("all positions", "1"): "2",
        (task.position_labels[5], "3"): "1",
    }


@pytest.mark.parametrize("extra", [-1, 1])
def test_the_circuit_figure_refuses_masks_of_another_length_than_the_tasks(task, extra):
    masks = masks_of(task, {A: [(1, 3)]}, seq=task.seq_len + extra)
    message = f"{task.seq_len + extra} positions, and there are labels for {task.seq_len}"
    with pytest.raises(MaskError, match=message):
        figures.circuit_figure(masks, task, "t")


def test_a_circuit_without_nodes_has_no_cell_with_a_number(task):
    [axes] = figures.circuit_figure(masks_of(task, {A: []}), task, "t").axes
    assert set(texts(axes.texts)) == {"·"}
    assert {text.get_color() for text in axes.texts} == {"grey"}  # on white


def test_the_figure_at_a_size_marks_the_size_and_names_the_latents(task):
    masks = masks_of(task, {A: [(2, 3), (2, 5), (2, 7), (2, 9)], B: [(5, 7)]})
    left, right = figures.frontier_at_size_figure(FRONTIER, masks, task).axes
    assert 5 in [line.get_xdata()[0] for line in left.lines if line.get_linewidth() == 6]
    labels = task.position_labels
    assert written(right) == {
        (labels[2], "1"): "3, 5, 7\n9",
        (labels[5], "1"): "·",
        (labels[2], "3"): "·",
        (labels[5], "3"): "7",
    }
    counted = figures.frontier_at_size_figure(FRONTIER, masks, task, most_named=4).axes[1]
    assert written(counted)[labels[2], "1"] == "4 latents"
    assert written(counted)[labels[5], "1"] == "·"


def test_the_figure_at_a_size_draws_latents_without_positions(task):
    masks = masks_of(task, {A: [3, 5], B: [(5, 7)]}, shared=[A])
    right = figures.frontier_at_size_figure(FRONTIER, masks, task).axes[1]
    place = task.position_labels[5]
    assert texts(right.get_xticklabels()) == ["all positions", place]
    assert written(right) == {
        ("all positions", "1"): "3, 5",
        (place, "1"): "·",
        ("all positions", "3"): "·",
        (place, "3"): "7",
    }


def test_the_figure_at_a_size_says_so_when_no_latent_is_kept(task):
    figure = figures.frontier_at_size_figure(FRONTIER, masks_of(task, {A: []}), task)
    figure.draw_without_rendering()
    left, right = figure.axes
    assert not [line for line in left.lines if line.get_linewidth() == 6]
    assert right.get_xlabel() == "none: every latent is ablated" and not right.texts


def test_the_figure_at_a_size_refuses_nodes_beyond_the_tasks_positions(task):
    masks = masks_of(task, {A: [(task.seq_len, 3)]}, seq=task.seq_len + 1)
    with pytest.raises(MaskError, match=f"a node at position {task.seq_len}, and labels for"):
        figures.frontier_at_size_figure(FRONTIER, masks, task)


def test_the_node_map_shows_the_latents_that_are_on_somewhere():
    mask = torch.zeros(3, 10)
    mask[1, 7] = mask[2, 7] = mask[2, 4] = 1
    [axes] = figures.node_map_figure(mask, ["<bos>", "a", "b"], "t").axes
    assert axes.images[0].get_array().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert texts(axes.get_xticklabels()) == ["4", "7"]
    assert texts(axes.get_yticklabels()) == ["<bos>", "a", "b"]


def test_the_node_map_of_a_mask_without_positions_is_one_row():
    mask = torch.zeros(10)
    mask[[4, 7]] = 1
    [axes] = figures.node_map_figure(mask, ["<bos>", "a", "b"], "t").axes
    assert axes.images[0].get_array().tolist() == [[1, 1]]
    assert texts(axes.get_yticklabels()) == ["all positions"]
    assert texts(axes.get_xticklabels()) == ["4", "7"]


def test_the_node_map_says_so_when_no_latent_is_kept():
    figure = figures.node_map_figure(torch.zeros(3, 10), ["<bos>", "a", "b"], "t")
    figure.draw_without_rendering()
    assert figure.axes[0].get_xlabel() == "no latent is kept" and not figure.axes[0].images


def test_the_node_map_refuses_labels_of_another_length():
    with pytest.raises(MaskError, match="the mask has 3 positions, and there are labels for 2"):
        figures.node_map_figure(torch.ones(3, 10), ["<bos>", "a"], "t")


# -- lines -------------------------------------------------------------------------------------

LINES = {
    "drop": [Interval(0.5, 0.4, 0.7), Interval(0.2, 0.1, 0.3)],
    "mean": [Interval(1.0, 1.0, 1.0), Interval(0.0, 0.0, 0.0)],
}


def test_the_lines_figure_shows_each_line_with_its_intervals():
    figure = figures.lines_figure(
        {"loss": LINES, "kept": LINES}, [1, 5], "SAEs", "finding", levels={"kept": 1.0}
    )
    left, right = figure.axes
    assert [left.get_ylabel(), right.get_ylabel()] == ["loss", "kept"]
    assert figure.get_suptitle() == "finding" and left.get_xlabel() == "SAEs"
    assert left.containers[0][0].get_xydata().tolist() == [[1, 0.5], [5, 0.2]]
    assert series_of(left)["drop"][1] == [pytest.approx([0.4, 0.7]), pytest.approx([0.1, 0.3])]
    assert len(right.lines) == len(left.lines) + 1
    assert texts(figure.legends[0].texts) == ["drop", "mean"]


def test_the_lines_figure_shades_intervals_as_bands_and_marks_places():
    figure = figures.lines_figure({"loss": LINES}, [1, 5], "layer", "t", bands=True, marks=[1, 5])
    [axes] = figure.axes
    assert [line.get_xdata()[0] for line in axes.lines[:2]] == [1, 5]
    assert [list(line.get_ydata()) for line in axes.lines[2:]] == [[0.5, 0.2], [1, 0]]
    first = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert first == {(1, 0.4), (5, 0.1), (5, 0.3), (1, 0.7)}


def test_panels_of_different_lines_have_legends_of_their_own():
    quantities = {"loss": LINES, "kept": {"other": LINES["drop"], "mean": LINES["mean"]}}
    figure = figures.lines_figure(quantities, [1, 5], "x", "t")
    assert not figure.legends
    legends = [texts(axes.get_legend().texts) for axes in figure.axes]
    assert legends == [["drop", "mean"], ["other", "mean"]]


@few
@given(st.integers(1, 12), st.integers(1, 5))
def test_any_number_of_lines_and_points_is_drawn_in_order(n_lines, n_points):
    intervals = [Interval(float(i), i - 1.0, i + 1.0) for i in range(n_points)]
    lines = {f"line {i}": intervals for i in range(n_lines)}
    figure = figures.lines_figure({"y": lines}, list(range(n_points)), "x", "t")
    assert list(series_of(figure.axes[0])) == list(lines)
    curves = {f"line {i}": list(range(n_points)) for i in range(n_lines)}
    for drawn in (
        figures.curves_figure({"y": curves}, "x", "t"),
        figures.areas_figure([i + 1 for i in range(n_points)], curves, "t"),
    ):
        labels = [line.get_label() for line in drawn.axes[0].lines]
        assert [label for label in labels if label.startswith("line")] == list(curves)
        plt.close(drawn)
    plt.close(figure)


def test_the_curves_figure_has_a_panel_a_quantity_and_a_line_a_run():
    quantities = {"loss": {"L1": [3.0, 2.0], "TopK": [2.0, 1.0]}, "L0": {"L1": [9, 8], "TopK": [4]}}
    figure = figures.curves_figure(quantities, "step", "t", log=["loss"])
    loss, l0 = figure.axes
    assert (loss.get_yscale(), l0.get_yscale(), l0.get_ylabel()) == ("log", "linear", "L0")
    assert [line.get_xydata().tolist() for line in loss.lines] == [
        [[1, 3], [2, 2]],
        [[1, 2], [2, 1]],
    ]
    assert texts(figure.legends[0].texts) == ["L1", "TopK"]


def test_the_areas_figure_draws_each_method_on_both_scales_in_its_own_colour():
    curves = {"random": [0.0, 0.0, 1.0], "learned masks": [0.5, 0.9, 1.0]}
    linear, log = figures.areas_figure([0.01, 0.1, 1], curves, "finding").axes
    assert (linear.get_xscale(), log.get_xscale()) == ("linear", "log")
    for axes in (linear, log):
        assert [list(line.get_ydata()) for line in axes.lines[:2]] == list(curves.values())
        colours = [line.get_color() for line in axes.lines[:2]]
        assert colours == [style.METHOD_LOOKS[method].colour for method in curves]
    marked = figures.areas_figure([0.01, 0.1, 1], curves, "t", mark=0.02, caption="n = 3")
    assert [len(axes.lines) for axes in marked.axes] == [4, 5]  # the mark is on the log scale
    assert marked.legends[0].get_title().get_text() == "n = 3"
    assert marked.axes[1].xaxis.get_major_formatter()(0.02) == "2 %"


def test_the_history_figure_plots_loss_and_nodes():
    history = [dict(step=i, faithfulness_loss=1.0 / (i + 1), n_on=3 - i) for i in range(4)]
    left, right = figures.history_figure(history, "t").axes
    assert list(left.lines[0].get_ydata()) == [1 / (i + 1) for i in range(4)]
    assert list(right.lines[0].get_ydata()) == [3, 2, 1, 0.5] and right.get_yscale() == "log"
    smooth = left.lines[1].get_ydata()
    assert smooth[0] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)  # the step and two after it


def test_the_running_mean_figure_plots_weights_in_per_cent_and_errors():
    weights = {"right": torch.full((4,), 0.25)}
    left, right = figures.running_mean_figure(weights, {"right": [0.5, 0.0]}, "t").axes
    assert list(left.lines[0].get_ydata()) == [25] * 4
    assert list(right.lines[0].get_ydata()) == [0.5, 0.0]


# -- points, matrices, histograms, directions --------------------------------------------------


def test_the_scatter_figure_has_a_panel_for_each_estimate():
    x = torch.tensor([1.0, 2.0])
    panels = figures.scatter_figure(x, {"AtP": 2 * x, "IG": x}, "x", "y", "t").axes
    assert [panel.get_title() for panel in panels] == ["AtP", "IG"]
    assert panels[0].collections[0].get_offsets().tolist() == [[1, 2], [2, 4]]


def test_a_scatter_figure_draws_methods_in_their_own_colours_and_others_in_turn():
    x = torch.tensor([1.0, 2.0])
    for labels, wanted in (
        (["AtP", "IG"], [style.METHOD_LOOKS[name].colour for name in ("AtP", "IG")]),
        (["a", "b"], [style.look(i).colour for i in (1, 2)]),
    ):
        panels = figures.scatter_figure(x, dict.fromkeys(labels, x), "x", "y", "t").axes
        found = [to_hex(axes.collections[0].get_facecolor()[0]).upper() for axes in panels]
        assert found == wanted


def test_a_scatter_figure_names_the_points_that_lie_off_the_line_and_no_others():
    x = torch.tensor([0.0, 0.5, 1.0])
    ys = {"off": torch.tensor([0.9, 0.6, 0.2]), "on": x}
    left, right = figures.scatter_figure(x, ys, "x", "y", "t", names=["a", "b", "c"]).axes
    assert [(text.get_text(), text.xy) for text in left.texts] == [
        ("a", (0.0, pytest.approx(0.9))),
        ("c", (1.0, pytest.approx(0.2))),
    ]
    assert not right.texts


def test_names_of_points_that_lie_together_do_not_cover_each_other():
    x, y = torch.tensor([0.0, 0.0, 0.1, 1.0]), torch.tensor([0.9, 0.9, 0.88, 0.1])
    names = ["first", "second", "third", "far"]
    [axes] = figures.scatter_figure(x, {"y": y}, "x", "y", "t", names=names).axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert [text.xyann[1] < 0 for text in axes.texts][:2] == [False, True]


def test_the_completeness_figure_shows_every_subset_and_the_line_of_equality():
    points = torch.tensor([[1.0, 2.0], [0.5, 0.4]])
    figure = figures.completeness_figure(points, {"K = ∅": (2.0, 2.1)}, "finding")
    [axes] = figure.axes
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 2.0], pytest.approx([0.5, 0.4])]
    assert axes.collections[1].get_offsets().tolist() == [[2.0, 2.1]]
    assert axes.get_xlim() == axes.get_ylim() and figure.get_suptitle() == "finding"
    assert (axes.lines[0].get_xy1(), axes.lines[0].get_slope()) == ((0, 0), 1)


def test_every_named_subset_of_the_completeness_figure_is_drawn():
    marks = {f"K{i}": (float(i), float(i)) for i in range(9)}
    [axes] = figures.completeness_figure(torch.rand(4, 2), marks, "t").axes
    assert [dots.get_label() for dots in axes.collections[1:]] == list(marks)


def test_the_matrix_figure_writes_its_numbers():
    matrix = torch.tensor([[1.0, 0.25], [0.5, 1.0]])
    axes = figures.matrix_figure(matrix, ["a", "b"], "finding", "Jaccard").axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1.00", (1, 0): "0.25", (0, 1): "0.50", (1, 1): "1.00"}


def test_the_histograms_share_a_scale_and_count_everything():
    values = {"a": torch.arange(10.0), "b": torch.full((4,), 3)}
    left, right = figures.histograms_figure(values, "x", "n", "t", bins=10).axes
    counts = [sum(bar.get_height() for bar in axes.patches) for axes in (left, right)]
    assert counts == [10, 4] and left.get_xlim() == right.get_xlim()
    assert [axes.lines[0].get_xdata()[0] for axes in (left, right)] == [4.5, 3]


def test_the_kinds_figure_puts_the_kinds_of_a_panel_over_one_another_on_one_scale():
    panels = {
        "seen": {"missing": torch.arange(4.0), "present": torch.arange(6.0) + 5},
        "verdict": {"missing": torch.zeros(3), "present": torch.ones(2)},
    }
    figure = figures.kinds_figure(panels, "signal", "finding", bins=11)
    left, right = figure.axes
    assert [axes.get_title() for axes in (left, right)] == list(panels)
    assert sum(bar.get_height() for bar in left.patches) == 4 + 6
    assert sum(bar.get_height() for bar in right.patches) == 3 + 2
    assert left.get_xlim() == right.get_xlim() and figure.get_suptitle() == "finding"
    assert texts(figure.legends[0].get_texts()) == ["missing (n = 4)", "present (n = 6)"]
    assert len({bar.get_facecolor() for bar in left.patches}) == 2


def test_the_dumbbells_figure_joins_the_estimates_of_a_case_and_keeps_series_apart():
    cases = {
        "a": {"attack": Interval(0.9, 0.8, 1.0), "twin": Interval(0.1, 0.0, 0.2)},
        "b": {"attack": Interval(0.5, 0.4, 0.6)},
    }
    axis = ValueAxis("share", percent=True)
    figure = figures.dumbbells_figure(cases, axis, "finding", over="prompts")
    [axes] = figure.axes
    drawn = series_of(axes, "x")
    assert drawn["attack"][0] == [0.9, 0.5] and drawn["twin"][0] == [0.1]
    assert drawn["attack"][2] != drawn["twin"][2]
    assert texts(axes.get_yticklabels()) == ["a", "b"] and axes.get_ylim() == (1.5, -0.5)
    joins = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [list(map(float, ends)) for ends in joins[:2]] == [[0.1, 0.9], [0.5, 0.5]]
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.dumbbells_figure({}, axis, "t")


def test_histograms_count_what_is_above_the_end_in_the_last_bar_and_say_so():
    values = {"a": torch.cat([torch.arange(10.0), torch.tensor([50.0, 300.0])])}
    figure = figures.histograms_figure(values, "x", "n", "t", bins=5, upto=10, level=7)
    [axes] = figure.axes
    assert axes.patches[-1].get_height() == 2 + 2 and axes.get_xlim()[1] < 11
    assert [line.get_xdata()[0] for line in axes.lines] == [pytest.approx(395 / 12), 7]
    assert figure._supxlabel.get_text() == "the last bar holds all from 8 up"


def test_histograms_of_shares_are_on_a_logarithmic_axis_in_per_cent():
    values = {"a": torch.tensor([0.001, 0.01, 0.01, 0.1])}
    [axes] = figures.histograms_figure(values, "x", "n", "t", bins=2, log_shares=True).axes
    assert axes.get_xscale() == "log" and [bar.get_height() for bar in axes.patches] == [1, 3]
    assert axes.xaxis.get_major_formatter()(0.01) == "1 %"


def test_kinds_of_saes_look_alike_in_all_figures():
    colour = style.SERIES_LOOKS["JumpReLU"].colour
    x = torch.tensor([1.0, 2.0])
    [scatter] = figures.scatter_figure(x, {"JumpReLU": x}, "x", "y", "t").axes
    [histogram] = figures.histograms_figure({"JumpReLU": x}, "x", "y", "t").axes
    [curves] = figures.curves_figure({"loss": {"JumpReLU": [2, 1]}}, "step", "t").axes
    drawn = (
        scatter.collections[0].get_facecolor()[0],
        histogram.patches[0].get_facecolor(),
        curves.lines[0].get_color(),
    )
    assert {to_hex(one).upper() for one in drawn} == {colour}


def test_a_scatter_figure_can_leave_out_the_empty_part_of_its_x_axis():
    x = torch.tensor([1.0, 2.0])
    [axes] = figures.scatter_figure(x, {"y": x}, "x", "y", "t", x_limits=(0.9, 2.1)).axes
    assert axes.get_xlim() == (0.9, 2.1)


def test_curves_begin_at_zero_unless_their_axis_is_logarithmic():
    curves = {"share": {"a": [5.0, 4.0]}, "loss": {"a": [5.0, 4.0]}}
    share, loss = figures.curves_figure(curves, "step", "t", log=["loss"]).axes
    assert share.get_ylim()[0] == 0 < loss.get_ylim()[0]


def test_panels_of_lines_on_one_scale_have_the_same_ends():
    small, large = [Interval(1.0, 0.9, 1.1)], [Interval(5.0, 4.0, 6.0)]
    quantities = {"a": {"x": small}, "b": {"x": large}, "c": {"x": small}}
    a, b, c = figures.lines_figure(quantities, [1], "x", "t", one_scale=["a", "b"]).axes
    assert a.get_ylim() == b.get_ylim() != c.get_ylim() and list(a.get_xticks()) == [1]


def test_one_legend_serves_panels_that_lack_some_of_the_first_ones_lines():
    kinds, one = ["the SAE's error", "random direction"], [Interval(1.0, 0.9, 1.1)]
    quantities = {"kl": dict.fromkeys(kinds, one), "ratio": {kinds[1]: one}}
    figure = figures.lines_figure(quantities, [1], "x", "t")
    assert texts(figure.legends[0].get_texts()) == kinds
    assert not any(axes.get_legend() for axes in figure.axes)


def test_more_panels_than_colours_are_all_drawn():
    values = {str(i): torch.arange(5.0) for i in range(8)}
    histograms = figures.histograms_figure(values, "x", "n", "t").axes
    assert [sum(bar.get_height() for bar in axes.patches) for axes in histograms] == [5] * 8
    scatters = figures.scatter_figure(torch.arange(5.0), values, "x", "y", "t").axes
    assert [len(axes.collections[0].get_offsets()) for axes in scatters] == [5] * 8


def test_the_directions_figure_joins_the_features_that_are_stored_and_rings_what_was_learned():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.01, 0.0]])
    features = {"dense": rows[:2], "sparse": rows}
    dense, sparse = figures.directions_figure(features, "t", learned={"sparse": rows[:1]}).axes
    assert [axes.get_title() for axes in (dense, sparse)] == ["dense", "sparse"]
    corners = {tuple(corner) for corner in sparse.patches[0].get_xy().tolist()}
    assert corners == {(1, 0), (0, 1), (-1, 0)}
    assert sparse.collections[0].get_offsets().tolist() == [[1, 0]] and not dense.collections
    assert [number for number in texts(sparse.texts) if number] == ["1", "2", "3"]
    assert len(sparse.texts) == 4 + 3  # the short one has an arrow, too


def test_a_tradeoff_names_each_method_beside_its_point():
    points = {"AtP": (1.0, 0.8), "GradDrop": (10.0, 0.8), "AtP*": (10.0, 0.9), "patching": (90, 1)}
    figure = figures.tradeoff_figure(points, "seconds", "share found", "AtP* finds most")
    [axes] = figure.axes
    assert {text.get_text(): text.xy for text in axes.texts} == points
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 1 < 90 < axes.get_xlim()[1]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
