"""The figures show the numbers that they are given."""

import itertools
import re

import pytest
import torch

from course_utils.circuits.evaluate import Faithfulness
from course_utils.circuits.explain import Context, LatentCard
from course_utils.circuits.frontier import Frontier, Point
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.statistics import Interval
from course_utils.display import figures, widgets
from course_utils.labs.lab import hook_point
from course_utils.prompts.sessions import SessionError

A, B = hook_point(1), hook_point(3)


def point(method, n_nodes, value):
    interval = Interval(value, value - 0.1, value + 0.2)
    return Point(
        method,
        n_nodes,
        Faithfulness(interval, interval, interval, interval, 1, 1, 1, 0, 10),
        {A: n_nodes},
    )


def test_the_frontier_figure_has_a_line_a_method_with_its_intervals():
    frontier = Frontier(
        "sva",
        "tiny",
        [1, 3],
        "drop",
        [point("mask", 10, 0.9), point("mask", 2, 0.5), point("IG", 5, 0.4)],
    )
    figure = figures.frontier_figure(frontier, "finding")
    axes = figure.axes[0]
    lines = {container.get_label(): container for container in axes.containers}
    assert (
        set(lines) == {"mask", "IG"}
        and axes.get_xscale() == "log"
        and figure.get_suptitle() == "finding"
    )
    assert lines["mask"][0].get_xydata().tolist() == [[2, 0.5], [10, 0.9]]
    ends = [segment[:, 1].tolist() for segment in lines["mask"][2][0].get_segments()]
    assert ends == [pytest.approx([0.4, 0.7]), pytest.approx([0.8, 1.1])]


def test_the_circuit_figure_counts_nodes_by_layer_and_position(task):
    first, second = torch.zeros(6, 24), torch.zeros(6, 24)
    first[2, :3] = 1
    second[5, 7] = 1
    axes = figures.circuit_figure(SAEMasks([A, B], [first, second]), task, "where").axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[(2, 1)] == "3" and cells[(5, 0)] == "1" and cells[(0, 0)] == "·"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(task.position_labels)


def test_the_history_and_scatter_figures_plot_their_data():
    history = [dict(step=i, faithfulness_loss=1.0 / (i + 1), n_on=100 - i) for i in range(5)]
    left, right = figures.history_figure(history, "t").axes
    assert (
        left.lines[0].get_ydata().tolist() == [1 / (i + 1) for i in range(5)]
        and right.lines[0].get_ydata()[0] == 100
    )
    x = torch.tensor([1.0, 2.0])
    panels = figures.scatter_figure(x, {"AtP": 2 * x, "IG": x}, "x", "y", "t").axes
    assert [panel.get_title() for panel in panels] == ["AtP", "IG"]
    assert panels[0].collections[0].get_offsets().tolist() == [[1, 2], [2, 4]]


def test_a_scatter_figure_names_the_points_that_lie_off_the_line_and_no_others():
    x = torch.tensor([0.0, 0.5, 1.0])
    left, right = figures.scatter_figure(
        x, {"off": torch.tensor([0.9, 0.6, 0.2]), "on": x}, "x", "y", "t", names=["a", "b", "c"]
    ).axes
    assert [(text.get_text(), text.xy) for text in left.texts] == [
        ("a", (0.0, pytest.approx(0.9))),
        ("c", (1.0, pytest.approx(0.2))),
    ]
    assert not right.texts


def test_names_of_points_that_lie_together_do_not_cover_each_other():
    x, y = torch.tensor([0.0, 0.0, 0.1, 1.0]), torch.tensor([0.9, 0.9, 0.88, 0.1])
    [axes] = figures.scatter_figure(
        x, {"y": y}, "x", "y", "t", names=["first", "second", "third", "far"]
    ).axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert [text.xyann[1] < 0 for text in axes.texts][:2] == [False, True]


def test_show_gives_the_picture_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    figures.show(
        figures.history_figure([dict(step=0, faithfulness_loss=1, n_on=1)], "t"),
        alt="a falling line",
    )
    assert shown[0].alt == "a falling line" and shown[0].data.startswith(b"\x89PNG")


def test_a_figure_for_the_readme_is_kept_in_full_builds_only(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "FIGURES_DIR", tmp_path / "figures")
    monkeypatch.setattr(figures, "display", lambda what: None)
    monkeypatch.setenv("COURSE_PROFILE", "full")
    monkeypatch.delenv("COURSE_BUILD", raising=False)
    draw = lambda: figures.show(
        figures.history_figure([{"step": 1, "faithfulness_loss": 1, "n_on": 1}], "f"),
        alt="a",
        keep="history",
    )
    draw()
    monkeypatch.setenv("COURSE_BUILD", "1")
    monkeypatch.setenv("COURSE_PROFILE", "quick")
    draw()
    assert not (tmp_path / "figures").exists()
    monkeypatch.setenv("COURSE_PROFILE", "full")
    draw()
    assert (tmp_path / "figures" / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_coloured_prompt_in_a_built_notebook_carries_no_bundle(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    monkeypatch.setenv("COURSE_BUILD", "1")
    figures.coloured_prompt(["<bos>", "The", "athletes"], [0, 1, 2])
    assert "athletes" in shown[0].data and len(shown[0].data) < 2000


def test_the_completeness_figure_shows_every_subset_and_the_line_of_equality():
    points = torch.tensor([[1.0, 2.0], [0.5, 0.4]])
    axes = figures.completeness_figure(points, {"K = ∅": (2.0, 2.1)}, "finding").axes[0]
    assert axes.collections[0].get_offsets().flatten().tolist() == pytest.approx(
        [1.0, 2.0, 0.5, 0.4]
    )
    assert axes.collections[1].get_offsets().tolist() == [[2.0, 2.1]]
    assert axes.get_xlim() == axes.get_ylim() and axes.get_title() == "finding"


def test_the_intervals_figure_sorts_each_group():
    groups = {"circuit": [Interval(1, 0, 2), Interval(3, 2, 4)], "padding": [Interval(0, -1, 1)]}
    axes = figures.intervals_figure(groups, "node", "drop", "finding").axes[0]
    assert [container[0].get_ydata().tolist() for container in axes.containers] == [[3, 1], [0]]


def test_the_flips_figure_has_a_bar_a_share():
    axes = figures.flips_figure(
        {"circuit": Interval(0.9, 0.8, 0.95), "random": Interval(0.1, 0, 0.2)}, "flipped", "finding"
    ).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.1]
    assert [text.get_text() for text in axes.texts] == ["90%", "10%"]


def test_the_matrix_figure_writes_its_numbers():
    axes = figures.matrix_figure(
        torch.tensor([[1.0, 0.25], [0.25, 1.0]]), ["a", "b"], "finding", "Jaccard"
    ).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.25", "0.25", "1.00"]


def test_the_areas_figure_draws_each_method_on_both_scales():
    figure = figures.areas_figure(
        [0.01, 0.1, 1], {"mask": [0.5, 0.9, 1.0], "random": [0.0, 0.0, 1.0]}, "finding"
    )
    linear, log = figure.axes
    assert (linear.get_xscale(), log.get_xscale()) == ("linear", "log")
    assert all(axes.lines[0].get_ydata().tolist() == [0.5, 0.9, 1.0] for axes in (linear, log))


def test_the_circuit_graph_has_a_dot_a_node_and_an_arrow_a_strong_edge():
    nodes = [(A, 1, 3), (A, 1, 4), (B, 2, 0)]
    edges = torch.zeros(3, 3)
    edges[0, 2], edges[1, 2] = 0.6, 0.01
    figure = figures.circuit_graph_figure(
        nodes,
        ["plural", "singular", "plural"],
        ["x", "y", "z"],
        ["<bos>", "noun", "the"],
        "finding",
        edges=edges,
    )
    axes = figure.axes[0]
    assert sorted(len(dots.get_offsets()) for dots in axes.collections) == [1, 2]
    assert [t.get_text() for t in axes.texts if t.get_text()] == ["x", "y", "z"] and sum(
        t.get_text() == "" for t in axes.texts
    ) == 1
    assert [label.get_text() for label in axes.get_xticklabels()] == ["noun", "the"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "after layer 1",
        "after layer 3",
    ]


CARD = LatentCard(
    "layer 5 · latent 7",
    "plural <nouns>",
    [Context(["The", " <b>", " are"], [0.0, 1.0, 2.0], 2)],
    [" are"],
    [" is"],
    {"plural": {"noun": 2.0}},
)


def test_a_latents_card_shows_what_is_known_and_escapes_it():
    page = widgets.card_html(CARD)
    assert (
        "plural &lt;nouns&gt;" in page
        and "&lt;b&gt;" in page
        and "<b> are</b>" in page
        and "2.00" in page
    )
    assert "0.55" in page and "fires in none of the texts" in widgets.card_html(
        LatentCard("x", "", [], [], [])
    )


def test_the_latent_browser_leaves_a_card_replaces_it_and_puts_several_into_a_built_page(
    monkeypatch,
):
    shown = Shown()
    monkeypatch.setattr(widgets, "display", shown)
    monkeypatch.delenv("COURSE_BUILD", raising=False)
    other = LatentCard("layer 9 · latent 1", "verbs", [], [" was"], [" were"])
    widgets.browse_latents([CARD, other])
    [menu] = shown.displayed
    assert [page.data for page in shown.pictures] == [widgets.card_html(CARD)]
    menu.value = 1
    assert shown.pictures[-1].data == widgets.card_html(other)
    monkeypatch.setenv("COURSE_BUILD", "1")
    widgets.browse_latents([CARD, other], n_static=2)
    assert shown.displayed[-1].data == widgets.card_html(CARD) + widgets.card_html(other)
    with pytest.raises(ValueError, match="nothing to choose"):
        widgets.browse_latents([])


def test_the_directions_figure_joins_the_features_that_are_stored_and_rings_what_was_found():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.01, 0.0]])
    dense, sparse = figures.directions_figure(
        {"dense": rows[:2], "sparse": rows}, "t", found={"sparse": rows[:1]}
    ).axes
    assert [axes.get_title() for axes in (dense, sparse)] == ["dense", "sparse"]
    corners = {tuple(corner) for corner in sparse.patches[0].get_xy().tolist()}
    assert corners == {(1, 0), (0, 1), (-1, 0)}
    assert sparse.collections[0].get_offsets().tolist() == [[1, 0]] and not dense.collections
    assert len(sparse.texts) == 4


def test_the_curves_figure_has_a_panel_a_quantity_and_a_line_a_run():
    figure = figures.curves_figure(
        {"loss": {"L1": [3.0, 2.0], "TopK": [2.0, 1.0]}, "L0": {"L1": [9, 8], "TopK": [4, 4]}},
        "step",
        "t",
        log=["loss"],
    )
    loss, l0 = figure.axes
    assert (loss.get_yscale(), l0.get_yscale(), l0.get_ylabel()) == ("log", "linear", "L0")
    assert [line.get_xydata().tolist() for line in loss.lines] == [
        [[1, 3], [2, 2]],
        [[1, 2], [2, 1]],
    ]
    assert [text.get_text() for text in figure.legends[0].texts] == ["L1", "TopK"]


def test_the_bars_figure_shows_values_and_intervals():
    axes = figures.bars_figure(
        {"a": 0.5, "b": Interval(0.8, 0.7, 0.95)}, "share", "t", reference=1.0
    ).axes[0]
    assert [patch.get_height() for patch in axes.patches] == [0.5, 0.8]
    assert [text.get_text() for text in axes.texts] == ["0.5", "0.8"] and axes.lines[
        -1
    ].get_ydata()[0] == 1.0
    ends = [segment[:, 1].tolist() for c in axes.collections for segment in c.get_segments()]
    assert ends == [pytest.approx([0.7, 0.95])]


def test_the_histograms_share_a_scale_and_count_everything():
    left, right = figures.histograms_figure(
        {"a": torch.arange(10.0), "b": torch.full((4,), 3.0)}, "x", "n", "t", bins=10
    ).axes
    assert (
        sum(p.get_height() for p in left.patches),
        sum(p.get_height() for p in right.patches),
    ) == (10, 4)
    assert left.get_xlim() == right.get_xlim() and left.lines[0].get_xdata()[0] == 4.5


def test_coloured_contexts_in_a_built_notebook_carry_no_bundle(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    monkeypatch.setenv("COURSE_BUILD", "1")
    figures.coloured_contexts(
        [Context(["The", " athletes"], [0.0, 2.0], 1), Context([" are"], [1.0], 0)]
    )
    assert len(shown) == 2 and "athletes" in shown[0].data and len(shown[0].data) < 2000


def test_the_effects_figure_has_a_point_with_its_interval_for_every_effect():
    effects = {
        "zero": {"10": Interval(1.0, 0.5, 2.0), "100": Interval(3.0, 2.5, 3.5)},
        "mean": {"100": Interval(0.2, 0.1, 0.3)},
    }
    axes = figures.effects_figure(effects, "y", "finding").axes[0]
    drawn = {container.get_label(): container for container in axes.containers}
    assert drawn["zero"][0].get_ydata().tolist() == [1, 3] and drawn["mean"][
        0
    ].get_ydata().tolist() == [0.2]
    assert drawn["mean"][0].get_xdata()[0] > 0.9 > drawn["zero"][0].get_xdata()[0]
    assert [segment[:, 1].tolist() for segment in drawn["zero"][2][0].get_segments()] == [
        pytest.approx([0.5, 2]),
        pytest.approx([2.5, 3.5]),
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100"]


def test_the_node_map_shows_the_latents_that_are_on_somewhere():
    mask = torch.zeros(3, 10)
    mask[1, 7] = mask[2, 7] = mask[2, 4] = 1
    axes = figures.node_map_figure(mask, ["<bos>", "a", "b"], "t").axes[0]
    assert axes.images[0].get_array().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "7"]


def test_the_running_mean_figure_plots_weights_in_per_cent_and_errors():
    left, right = figures.running_mean_figure(
        {"right": torch.full((4,), 0.25)}, {"right": [0.5, 0.0]}, "t"
    ).axes
    assert left.lines[0].get_ydata().tolist() == [25] * 4 and right.lines[
        0
    ].get_ydata().tolist() == [0.5, 0.0]


def test_the_lines_figure_shows_each_line_with_its_intervals_as_bars_or_bands():
    lines = {
        "drop": [Interval(0.5, 0.4, 0.7), Interval(0.2, 0.1, 0.3)],
        "mean": [Interval(1, 1, 1), Interval(0, 0, 0)],
    }
    bars = figures.lines_figure(
        {"loss": lines, "kept": lines}, [1, 5], "SAEs", "finding", levels={"kept": 1.0}
    )
    left, right = bars.axes
    assert [left.get_ylabel(), right.get_ylabel()] == [
        "loss",
        "kept",
    ] and bars.get_suptitle() == "finding"
    assert left.containers[0][0].get_xydata().tolist() == [[1, 0.5], [5, 0.2]]
    assert left.containers[0][2][0].get_segments()[0][:, 1].tolist() == pytest.approx([0.4, 0.7])
    assert len(right.lines) == len(left.lines) + 1 and [
        text.get_text() for text in bars.legends[0].texts
    ] == ["drop", "mean"]
    bands = figures.lines_figure(
        {"loss": lines}, [1, 5], "layer", "t", bands=True, marks=[1, 5]
    ).axes[0]
    assert len(bands.lines) == 4 and len(bands.collections) == 2


def test_the_shares_figure_has_a_bar_a_share():
    axes = figures.shares_figure(
        {"sva": Interval(0.9, 0.8, 1.3), "ioi": Interval(-0.2, -0.3, 0.1)}, "t"
    ).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, -0.2] and [
        label.get_text() for label in axes.get_yticklabels()
    ] == ["sva", "ioi"]
    assert axes.get_xlim()[0] < -0.3 and axes.get_xlim()[1] > 1.3


class Shown:
    """What is displayed, and what takes its place later."""

    def __init__(self):
        self.displayed, self.pictures = [], []

    def __call__(self, what, display_id=False):
        (self.pictures if display_id else self.displayed).append(what)
        return self if display_id else None

    def update(self, picture):
        self.pictures.append(picture)


def test_the_splice_explorer_leaves_a_picture_and_replaces_it_when_a_box_is_ticked(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(widgets, "display", shown)
    widgets.explore_splices([2, 5, 8], lambda layers, error: (layers, error), start=[5])
    row, controls = shown.displayed[0].children
    assert shown.pictures == [((5,), "drop")] and [box.value for box in row.children] == [
        False,
        True,
        False,
    ]
    row.children[0].value = True
    controls.children[0].value = "keep"
    row.children[1].value = False
    assert shown.pictures[1:] == [((2, 5), "drop"), ((2, 5), "keep"), ((2,), "keep")]


def test_a_splice_explorer_that_starts_at_a_layer_without_an_sae_is_refused():
    with pytest.raises(ValueError, match="no box for layer 3"):
        widgets.explore_splices([2, 5], print, start=[3])


def test_browsing_nothing_is_refused():
    with pytest.raises(ValueError, match="choices: nothing to choose from"):
        widgets.browse_pictures({}, print, "circuit")


def test_the_slider_leaves_the_first_picture_and_replaces_it_when_it_is_moved(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(widgets, "display", shown)
    widgets.browse_pictures({"a": 1, "b": 2}, lambda choice: 10 * choice, "size")
    [slider] = shown.displayed
    assert slider.options == ("a", "b") and shown.pictures == [10]
    slider.value = "b"
    assert shown.pictures == [10, 20]


def test_the_frontier_explorer_goes_from_the_smallest_circuit_up_and_names_its_latents(
    monkeypatch, task
):
    frontier = Frontier("sva", "tiny", [1], "drop", [point("mask", 4, 0.9), point("mask", 1, 0.5)])
    circuits = [SAEMasks([A], [torch.zeros(task.seq_len, 24)]) for _ in range(2)]
    circuits[0].masks[0][2, [3, 5, 7, 9]] = 1
    circuits[1].masks[0][2, 3] = 1
    shown, drawn = Shown(), []
    monkeypatch.setattr(widgets, "display", shown)
    monkeypatch.setattr(widgets, "picture", lambda figure, alt: drawn.append((figure, alt)))
    widgets.explore_frontier(frontier, circuits, task)
    [slider] = shown.displayed
    slider.value = "4 nodes"
    assert [alt.split(",")[0] for _, alt in drawn] == [
        "1 nodes. Faithfulness: mask 0.50 [0.40",
        "4 nodes. Faithfulness: mask 0.90 [0.80",
    ]
    assert "3, 5, 7\n9" in [text.get_text() for text in drawn[1][0].axes[1].texts]


def test_a_frontier_without_circuits_is_refused(task):
    with pytest.raises(ValueError, match="none of them has a node"):
        widgets.explore_frontier(
            Frontier("sva", "tiny", [1], "drop"), [SAEMasks([A], [torch.zeros(3, 4)])], task
        )


def shades(page):
    """How opaque the orange of each token is, by the token."""
    return {
        token: float(shade)
        for shade, token in re.findall(r'rgba\(213, 94, 0, ([\d.]+)\)">(.*?)</span>', page)
    }


def test_an_answers_tokens_are_coloured_by_their_own_strongest_or_by_a_value_that_prompts_share():
    tokens, values = ["'", "Ann", "']\n"], [0.0, 4.0, -1.0]
    page = widgets.answer_html(tokens, values, [("Trace", 0.75)], "Python: <KeyError>")
    assert shades(page) == {"&#x27;": 0, "Ann": 0.6, "&#x27;]⏎": 0}
    assert "&lt;KeyError&gt;" in page and "0.75" in page and 'title="4.00"' in page
    assert shades(widgets.answer_html(tokens, values, [], "", darkest=16.0))["Ann"] == 0.15
    assert shades(widgets.answer_html(tokens, values, [], "", darkest=2.0))["Ann"] == 0.6
    assert set(shades(widgets.answer_html(tokens, [0.0, 0.0, 0.0], [], "")).values()) == {0}


def test_the_playground_asks_what_was_typed_shows_why_it_refuses_and_puts_its_examples_into_a_built_page(
    monkeypatch,
):
    shown, asked = Shown(), []

    def respond(dictionary, query):
        asked.append((dictionary, query))
        if not dictionary.startswith("{"):
            raise SessionError("<that> is not a dictionary")
        return f"{query} in {dictionary}"

    monkeypatch.setattr(widgets, "display", shown)
    monkeypatch.delenv("COURSE_BUILD", raising=False)
    widgets.play(
        respond, "{'Bob': 1}", "Ann", {"lower case": ("{'ann': 2}", "Ann")}, refused=SessionError
    )
    menu, typed, row = shown.displayed[0].children
    key, button, state = row.children
    assert [page.data for page in shown.pictures] == ["Ann in {'Bob': 1}"]
    menu.value = ("{'ann': 2}", "Ann")
    assert (typed.value, key.value, shown.pictures[-1].data) == (
        "{'ann': 2}",
        "Ann",
        "Ann in {'ann': 2}",
    )
    typed.value, key.value = "Bob, 1", "Bob"
    assert asked[-1] != ("Bob, 1", "Bob")  # typing asks nothing
    button.click()
    assert (
        asked[-1] == ("Bob, 1", "Bob")
        and "&lt;that&gt; is not a dictionary" in shown.pictures[-1].data
        and state.value == ""
    )

    monkeypatch.setenv("COURSE_BUILD", "1")
    shown.displayed.clear()
    monkeypatch.setattr(widgets, "display", lambda *pages: shown.displayed.extend(pages))
    widgets.play(
        respond, "{'Bob': 1}", "Ann", {"lower case": ("{'ann': 2}", "Ann")}, refused=SessionError
    )
    assert [page.data for page in shown.displayed] == [
        "",
        "Ann in {'Bob': 1}",
        "<h4>lower case</h4>",
        "Ann in {'ann': 2}",
    ]
