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
    looks = looks_of(["AtP to means", "AtP"])
    assert looks["AtP to means"] == METHOD_LOOKS["AtP to means"] == METHOD_LOOKS["AtP"]
    assert looks["AtP"] != looks["AtP to means"]


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
    for method, own in METHOD_LOOKS.items():
        if " to " not in method and method != "learned masks":
            axes.plot([0, 1], [0, 1], color=own.colour, label=method)
    style.legend_below(figure, axes)
    figure.draw_without_rendering()
    heights = {round(text.get_window_extent().y0) for text in figure.legends[0].texts}
    assert len(figure.legends[0].texts) == 6 and max(heights) - min(heights) < 5


def test_series_without_labels_have_no_legend():
    figure, [axes] = style.panels(1, 3, 3)
    axes.plot([0, 1], [0, 1])
    style.legend_below(figure, axes)
    assert not figure.legends


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


def test_level_lines_go_across_or_up():
    _, [axes] = style.panels(1, 3, 3)
    style.level_line(axes, 0.3)
    style.level_line(axes, 0.7, horizontal=False)
    across, up = axes.lines
    assert across.get_ydata() == [0.3, 0.3] and up.get_xdata() == [0.7, 0.7]


def test_looks_cycle_through_all_colours_before_one_comes_again():
    for first, second in itertools.pairwise(range(0, 21, 7)):
        assert {look(i).colour for i in range(first, second)} == set(style.COLOURS)
