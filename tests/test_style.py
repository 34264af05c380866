"""A series looks the same everywhere, and its bars are as long as its intervals."""

import itertools
import math

import matplotlib.pyplot as plt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from course_utils.circuits.statistics import Interval
from course_utils.display import style
from course_utils.display.style import METHOD_LOOKS, Look, look, looks_of

FINITE = st.floats(-1e6, 1e6)
METHODS = st.lists(st.sampled_from(list(METHOD_LOOKS)) | st.text(min_size=1), max_size=49)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def test_the_first_49_series_differ_in_colour_or_marker():
    pairs = [(look(i).colour, look(i).marker) for i in range(49)]
    assert len(set(pairs)) == 49


@given(METHODS)
def test_methods_of_a_figure_keep_their_order_and_no_two_look_alike(methods):
    looks = looks_of(methods)
    assert list(looks) == list(dict.fromkeys(methods))
    pairs = {(one.colour, one.marker) for one in looks.values()}
    assert len(pairs) == len(looks)


@given(METHODS)
def test_a_method_of_the_course_looks_the_same_whoever_stands_beside_it(others):
    alone = METHOD_LOOKS["IG to means"]
    assert looks_of(["IG to means"]) == {"IG to means": alone}
    assert looks_of([*others, "IG to means"])["IG to means"] == alone


def test_two_methods_that_share_a_look_get_two_in_one_figure():
    looks = looks_of(["learned masks", "learned mask"])
    assert looks["learned masks"] == METHOD_LOOKS["learned masks"] == METHOD_LOOKS["learned mask"]
    assert looks["learned mask"].point != looks["learned masks"].point


def test_every_method_of_the_course_has_a_look_of_its_own():
    methods = {
        "learned mask",
        "hard concrete",
        "AtP",
        "IG",
        "AtP to means",
        "IG to means",
        "IG best",
        "iterated AtP",
        "iterated IG",
        "largest change",
        "random",
        "QK fix",
        "GradDrop",
        "AtP*",
        "RelP",
        "patching",
        "patched in truth",
        "AtP's straight line",
        "gradient · stream",
    }
    assert set(METHOD_LOOKS) == methods | {"learned masks"}
    assert looks_of(methods) == {method: METHOD_LOOKS[method] for method in methods}
    for one, other in itertools.combinations(methods, 2):
        assert METHOD_LOOKS[one].point != METHOD_LOOKS[other].point
        if METHOD_LOOKS[one].colour == METHOD_LOOKS[other].colour:
            assert METHOD_LOOKS[one].dashes != METHOD_LOOKS[other].dashes


def test_a_variant_of_a_method_looks_as_its_kind_unless_that_one_is_there():
    variants = {
        "IG to patch, |mean|": "IG",
        "AtP to means, |mean|": "AtP to means",
        "AtP to patch, mean of |·|, all prompts": "AtP",
        "IG to means, mean of |·|": "IG best",
        "random nodes": "random",
    }
    assert looks_of(variants) == {name: METHOD_LOOKS[kind] for name, kind in variants.items()}
    both = looks_of(["IG to patch, |mean|", "IG"])
    assert both["IG"] == METHOD_LOOKS["IG"] != both["IG to patch, |mean|"]


def test_a_method_that_the_course_does_not_know_borrows_no_look_of_one_that_it_knows():
    known = {one.point for one in METHOD_LOOKS.values()}
    looks = looks_of(["first", "second", "learned mask", "third"])
    assert looks == looks_of(["first", "second", "learned mask", "third"])
    for name in ("first", "second", "third"):
        assert looks[name].point not in known
    assert len({one.colour for one in looks.values()}) == 4


@given(st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1))
def test_bar_lengths_reach_from_the_value_to_the_ends_and_are_never_negative(triples):
    below, above = style.bar_lengths([Interval(*triple) for triple in triples])
    for (value, low, high), down, up in zip(triples, below, above):
        assert down >= 0 and up >= 0
        if low <= value <= high:  # up to the rounding of numbers of this size
            assert value - down == pytest.approx(low, abs=1e-6)
            assert value + up == pytest.approx(high, abs=1e-6)


def test_a_value_without_an_interval_has_no_bar():
    below, above = style.bar_lengths([0.5, Interval(1.0, 0.5, 2.5), 3])
    assert [math.isnan(length) for length in below + above] == [True, False, True] * 2
    assert (below[1], above[1]) == (0.5, 1.5)


@pytest.mark.parametrize("horizontal", [False, True])
def test_error_bars_stand_at_their_places_and_end_where_the_intervals_do(horizontal):
    _, [axes] = style.panels(1, 3, 3)
    estimates = [Interval(1.0, 0.5, 3.0), Interval(-2.0, -2.5, -1.0)]
    style.error_bars(axes, [10, 20], estimates, Look("#123456", "s"), horizontal=horizontal)
    [drawn] = axes.containers
    markers, _, [bars] = drawn
    values, places = (0, 1) if horizontal else (1, 0)
    assert markers.get_xydata()[:, values].tolist() == [1, -2]
    assert markers.get_xydata()[:, places].tolist() == [10, 20]
    ends = [segment[:, values].tolist() for segment in bars.get_segments()]
    assert ends == [[0.5, 3], [-2.5, -1]]
    assert (markers.get_color(), markers.get_marker()) == ("#123456", "s")
    assert markers.get_linestyle() == "None"


def test_joined_estimates_are_joined_by_a_line():
    _, [axes] = style.panels(1, 3, 3)
    style.error_bars(
        axes, [1, 2], [Interval(1.0, 0.0, 2.0), Interval(2.0, 1.0, 3.0)], look(0), joined=True
    )
    assert axes.containers[0][0].get_linestyle() == "-"


def test_values_without_intervals_are_drawn_without_bars():
    _, [axes] = style.panels(1, 3, 3)
    style.error_bars(axes, [1, 2], [0.5, 2], look(0))
    markers, _, bars = axes.containers[0]
    assert markers.get_ydata().tolist() == [0.5, 2] and not bars


def test_a_band_goes_along_the_ends_of_the_intervals():
    _, [axes] = style.panels(1, 3, 3)
    style.band(axes, [1, 2], [Interval(0.0, -1.0, 1.0), Interval(2.0, 1.0, 4.0)], look(1))
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(1, -1), (2, 1), (2, 4), (1, 1)}


def test_open_panels_have_lines_at_the_left_and_below_boxed_ones_all_round():
    for boxed in (False, True):
        _, [axes] = style.panels(1, 3, 3, boxed=boxed)
        shown = {side: spine.get_visible() for side, spine in axes.spines.items()}
        assert shown == {"left": True, "bottom": True, "top": boxed, "right": boxed}


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(1, 12), st.integers(3, 12))
def test_a_legend_names_every_series_and_is_no_wider_than_the_figure(n, width):
    figure, [axes] = style.panels(1, width, 6)
    labels = [f"method number {i}" for i in range(n)]
    for label in labels:
        axes.plot([0, 1], [0, 1], label=label)
    style.legend_below(figure, axes)
    figure.draw_without_rendering()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.texts] == labels
    assert legend.get_window_extent().width <= figure.bbox.width
    plt.close(figure)


def test_a_legend_that_fits_into_one_row_has_one():
    figure, [axes] = style.panels(1, 11, 3)
    for method in ("learned mask", "AtP", "IG", "largest change", "random", "iterated AtP"):
        axes.plot([0, 1], [0, 1], color=METHOD_LOOKS[method].colour, label=method)
    style.legend_below(figure, axes)
    figure.draw_without_rendering()
    heights = {round(text.get_window_extent().y0) for text in figure.legends[0].texts}
    assert len(figure.legends[0].texts) == 6 and max(heights) - min(heights) < 5


def test_a_legend_has_the_order_that_is_asked_for():
    figure, [axes] = style.panels(1, 6, 3)
    style.error_bars(axes, [1], [Interval(0.5, 0.0, 1.0)], look(0), label="bars")
    for label in ("b", "a"):
        axes.plot([0, 1], [0, 1], label=label)
    order = ["a", "bars", "not drawn", "b"]
    style.legend_below(figure, axes, order=order)
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "bars", "b"]
    by_kind = [type(handle).__name__ for handle in figure.legends[0].legend_handles]
    assert by_kind[0] == by_kind[2] != by_kind[1]


def test_series_without_labels_have_no_legend():
    figure, [axes] = style.panels(1, 3, 3)
    axes.plot([0, 1], [0, 1])
    style.legend_below(figure, axes)
    assert not figure.legends


@pytest.mark.parametrize("with_legend", [False, True])
def test_a_caption_stands_below_the_panels_and_covers_neither_label_nor_legend(with_legend):
    figure, [axes] = style.panels(1, 5, 3)
    axes.plot([0, 1], [0, 1], label="a" if with_legend else None)
    style.labelled(axes, "x", "y")
    style.legend_below(figure, axes)
    caption = "many words on how many prompts there are and on what all intervals are over, " * 2
    style.captioned(figure, caption.strip())
    figure.draw_without_rendering()
    written = figure.legends[0].get_title() if with_legend else figure._supxlabel
    assert written.get_text().replace("\n", " ") == caption.strip()
    box = written.get_window_extent()
    assert box.width <= figure.bbox.width
    assert not box.overlaps(axes.xaxis.label.get_window_extent()) and box.y0 >= 0
    for text in figure.legends[0].texts if with_legend else []:
        assert not box.overlaps(text.get_window_extent())


def test_an_empty_caption_is_none():
    figure, [axes] = style.panels(1, 5, 3)
    style.captioned(figure, "")
    assert figure._supxlabel is None


def test_panels_stand_in_rows_and_places_that_are_left_are_empty():
    figure, axes_of = style.panels(5, 9, 5, columns=3)
    assert figure.axes == axes_of and len(axes_of) == 5
    places = [axes.get_subplotspec() for axes in axes_of]
    assert [(one.rowspan.start, one.colspan.start) for one in places] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
    ]
    assert len(style.panels(3, 9, 3)[0].axes) == 3


def test_a_long_title_is_broken_where_the_figure_ends_and_keeps_its_own_lines():
    figure, _ = style.panels(1, 4, 3)
    title = "a finding that takes many words to say in full and then some\nand a second line"
    style.headed(figure, title)
    figure.draw_without_rendering()
    lines = figure.get_suptitle().split("\n")
    assert " ".join(lines) == title.replace("\n", " ")
    assert lines[-1] == "and a second line" and len(lines) == 3
    assert abs(len(lines[0]) - len(lines[1])) < 10
    assert figure._suptitle.get_window_extent().width <= figure.bbox.width


def test_counts_on_a_log_axis_are_written_in_full():
    figure, [axes] = style.panels(1, 6, 3)
    axes.plot([10, 2000], [0, 1])
    style.log_counts(axes)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    ticks = dict(zip(axes.get_xticks(), labels))
    assert {ticks[x] for x in ticks if low <= x <= high} >= {"10", "100", "1,000", "2,000"}
    assert axes.get_xscale() == "log"


def test_counts_have_ticks_and_those_that_stand_apart_have_labels():
    figure, [axes] = style.panels(1, 6, 3)
    axes.plot([12, 1116], [0, 1])
    style.log_counts(axes)
    style.count_ticks(axes, {1116, 12, 13, 40, 41, 400})
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["12", "40", "400", "1,116"]
    assert axes.get_xticks().tolist() == [12, 40, 400, 1116]
    assert axes.get_xticks(minor=True).tolist() == [13, 41]
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_one_count_has_a_tick_and_no_counts_leave_the_axis_as_it_is():
    _, [axes] = style.panels(1, 6, 3)
    axes.plot([5], [0])
    style.log_counts(axes)
    before = axes.get_xticks().tolist()
    style.count_ticks(axes, [])
    assert axes.get_xticks().tolist() == before
    style.count_ticks(axes, [5])
    assert axes.get_xticks().tolist() == [5]


def test_every_seed_is_a_point_and_the_line_goes_through_their_means():
    _, [axes] = style.panels(1, 3, 3)
    groups = [[(1, 0.5), (2, 1.5)], [(4, 3.0)]]
    style.seed_points(axes, groups, Look("#123456", "s", "--"), label="mask")
    line, points, legend = axes.lines
    assert line.get_xydata().tolist() == [[1.5, 1.0], [4.0, 3.0]]
    assert (line.get_linestyle(), line.get_marker()) == ("--", "None")
    assert points.get_xydata().tolist() == [[1, 0.5], [2, 1.5], [4, 3.0]]
    assert (points.get_linestyle(), points.get_marker()) == ("None", "s")
    assert {one.get_color() for one in axes.lines} == {"#123456"}
    assert axes.get_legend_handles_labels() == ([legend], ["mask"])
    assert (legend.get_linestyle(), legend.get_marker(), len(legend.get_xdata())) == ("--", "s", 0)


def test_hollow_markers_are_white_inside_and_lines_have_their_dashes():
    _, [axes] = style.panels(1, 3, 3)
    for hollow in (False, True):
        style.error_bars(axes, [1], [Interval(1.0, 0.0, 2.0)], look(0), hollow=hollow)
    insides = [container[0].get_markerfacecolor() for container in axes.containers]
    assert insides == [look(0).colour, "white"]
    assert axes.containers[1][0].get_color() == look(0).colour
    style.error_bars(axes, [1, 2], [0.5, 1], look(0), joined=True, dashes="--")
    assert axes.containers[2][0].get_linestyle() == "--"


def test_level_lines_go_across_or_up():
    _, [axes] = style.panels(1, 3, 3)
    style.level_line(axes, 0.3)
    style.level_line(axes, 0.7, horizontal=False)
    across, up = axes.lines
    assert across.get_ydata() == [0.3, 0.3] and up.get_xdata() == [0.7, 0.7]


def test_looks_cycle_through_all_colours_before_one_comes_again():
    for first, second in itertools.pairwise(range(0, 21, 7)):
        assert {look(i).colour for i in range(first, second)} == set(style.COLOURS)


def test_series_that_have_a_look_keep_it_and_others_have_the_one_of_their_place():
    saes = ["JumpReLU", "TopK"]
    assert style.looks_of_series(saes) == {name: style.SERIES_LOOKS[name] for name in saes}
    assert style.looks_of_series(["a", "b"]) == {"a": look(0), "b": look(1)}
    assert style.looks_of_series(["IG", "a"]) == looks_of(["IG", "a"])


def test_a_disturbance_in_a_random_direction_is_no_circuit_of_random_nodes():
    kinds = ["the SAE's error", "another token's error", "random direction"]
    found = style.looks_of_series(kinds)
    assert found == {kind: style.SERIES_LOOKS[kind] for kind in kinds}
    assert style.looks_of_series(kinds[1:]) == {kind: found[kind] for kind in kinds[1:]}


@pytest.mark.parametrize(
    "labels",
    [
        ["ReLU + L1", "TopK", "BatchTopK", "JumpReLU"],
        ["the SAE's error", "another token's error", "random direction"],
        ["agreement", "indirect object"],
    ],
)
def test_series_that_are_compared_differ_in_colour_marker_and_dashes(labels):
    looks = [style.SERIES_LOOKS[label] for label in labels]
    for part in ("colour", "marker", "dashes"):
        assert len({getattr(one, part) for one in looks}) == len(labels)
