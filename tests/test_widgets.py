"""What one clicks on changes what is shown; without a kernel, something is shown all the same."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from IPython.display import DisplayHandle
from ipywidgets.embed import dependency_state, embed_snippet

from course_utils.circuits.evaluate import Faithfulness
from course_utils.circuits.explain import Context, LatentCard
from course_utils.circuits.frontier import Frontier, Point
from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.circuits.statistics import Interval
from course_utils.display import widgets
from course_utils.display.figures import picture
from course_utils.display.html import card_html
from course_utils.labs.lab import hook_point
from course_utils.prompts.sessions import SessionError

A, B = hook_point(1), hook_point(3)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


class Shown(DisplayHandle):
    """Stands in for `display`: what was displayed, and what took its place later."""

    def __init__(self):
        super().__init__()
        self.displayed, self.pictures = [], []

    def __call__(self, *what, display_id=False):
        (self.pictures if display_id else self.displayed).extend(what)
        return self if display_id else None

    def update(self, obj, **kwargs):
        self.pictures.append(obj)


@pytest.fixture
def shown(monkeypatch):
    """What is shown in a running notebook."""
    shown = Shown()
    monkeypatch.setattr(widgets, "display", shown)
    monkeypatch.delenv("COURSE_BUILD", raising=False)
    return shown


@pytest.fixture
def drawn(monkeypatch):
    """Figures and their alternative texts, in the order in which they became pictures."""
    drawn = []

    def remembered(figure, alt):
        drawn.append((figure, alt))
        return picture(figure, alt)

    monkeypatch.setattr(widgets, "picture", remembered)
    return drawn


def point(method, n_nodes, value):
    interval = Interval(value, value - 0.1, value + 0.2)
    faithfulness = Faithfulness(interval, interval, interval, interval, 1.0, 1.0, 1.0, 0.0, 10)
    return Point(method, n_nodes, faithfulness, {A: n_nodes})


# -- the slider ------------------------------------------------------------------------------


def test_browsing_nothing_is_refused():
    with pytest.raises(ValueError, match="choices: nothing to choose from"):
        widgets.browse_pictures({}, print, "circuit")


def test_the_slider_leaves_the_first_picture_and_replaces_it_when_it_is_moved(shown):
    widgets.browse_pictures({"a": 1, "b": 2}, lambda choice: 10 * choice, "size")
    [slider] = shown.displayed
    assert slider.options == ("a", "b") and slider.description == "size"
    assert shown.pictures == [10]
    slider.value = "b"
    assert shown.pictures == [10, 20]


def test_the_frontier_explorer_goes_from_the_smallest_circuit_up_and_names_its_latents(
    shown, drawn, task
):
    frontier = Frontier("sva", "tiny", [1], "drop", [point("mask", 4, 0.9), point("mask", 1, 0.5)])
    circuits = [SAEMasks([A], [torch.zeros(task.seq_len, 24)]) for _ in range(2)]
    circuits[0][A][2, [3, 5, 7, 9]] = 1
    circuits[1][A][2, 3] = 1
    widgets.explore_frontier(frontier, circuits, task)
    [slider] = shown.displayed
    assert slider.description == "size of the circuit"
    slider.value = "4 nodes"
    assert [alt.split(",")[0] for _, alt in drawn] == [
        "1 nodes. Faithfulness: mask 0.50 [0.40",
        "4 nodes. Faithfulness: mask 0.90 [0.80",
    ]
    assert "3, 5, 7\n9" in [text.get_text() for text in drawn[1][0].axes[1].texts]


def test_the_frontier_explorer_says_the_mean_and_the_range_of_several_seeds(shown, drawn, task):
    seeds = [replace(point("mask", n, value), wanted=4) for n, value in ((4, 0.5), (5, 0.8))]
    frontier = Frontier(
        "sva", "tiny", [1], "drop", [*seeds, point("IG", 4, 0.25), point("IG", 9, 1.0)]
    )
    circuits = [SAEMasks([A], [torch.zeros(task.seq_len, 24)]) for _ in range(2)]
    circuits[0][A][2, :4] = 1
    circuits[1][A][2, :5] = 1
    widgets.explore_frontier(frontier, circuits, task)
    [slider] = shown.displayed
    slider.value = "5 nodes"
    said = "Faithfulness: mask 0.65 (2 seeds: 0.50 to 0.80), IG 0.25 [0.15, 0.45]. The latents,"
    assert [alt.partition(" nodes. ")[0] for _, alt in drawn] == ["4", "5"]
    assert all(said in alt for _, alt in drawn)


def test_the_frontier_explorer_draws_circuits_without_positions(shown, drawn, task):
    frontier = Frontier("sva", "tiny", [1], "drop", [point("mask", 2, 0.9)])
    mask = torch.zeros(24)
    mask[[4, 7]] = 1
    widgets.explore_frontier(frontier, [SAEMasks([A], [mask])], task)
    [(figure, alt)] = drawn
    assert alt.startswith("2 nodes. Faithfulness: mask 0.90")
    latents = figure.axes[1]
    assert [label.get_text() for label in latents.get_xticklabels()] == ["all positions"]
    assert [text.get_text() for text in latents.texts] == ["4, 7"]


def test_the_frontier_explorer_says_that_it_leaves_out_circuits_without_nodes(shown, drawn, task):
    frontier = Frontier("sva", "tiny", [1], "drop", [point("mask", 0, 0.0), point("mask", 1, 0.5)])
    circuits = [SAEMasks([A], [torch.zeros(task.seq_len, 24)]) for _ in range(3)]
    circuits[1][A][2, 3] = 1
    widgets.explore_frontier(frontier, circuits, task)
    [slider] = shown.displayed
    assert slider.options == ("1 nodes",)
    assert slider.description == "size of the circuit (2 without nodes left out)"


def test_a_frontier_without_circuits_is_refused(task):
    frontier = Frontier("sva", "tiny", [1], "drop")
    with pytest.raises(ValueError, match="none of them has a node"):
        widgets.explore_frontier(frontier, [SAEMasks([A], [torch.zeros(3, 4)])], task)


def test_a_circuit_of_longer_prompts_is_refused(shown, task):
    mask = torch.zeros(task.seq_len + 2, 24)
    mask[-1, 0] = 1
    frontier = Frontier("sva", "tiny", [1], "drop", [point("mask", 1, 0.5)])
    with pytest.raises(MaskError, match=f"a node at position {task.seq_len + 1}"):
        widgets.explore_frontier(frontier, [SAEMasks([A], [mask])], task)


# -- the menu of latents -----------------------------------------------------------------------

CARD = LatentCard(
    "layer 5 · latent 7",
    "plural nouns",
    [Context(["The", " athletes"], [0.0, 2.0], 1)],
    [" are"],
    [" is"],
)
OTHER = LatentCard("layer 9 · latent 1", "verbs", [], [" was"], [" were"])


def test_the_latent_browser_leaves_a_card_and_replaces_it(shown):
    widgets.browse_latents([CARD, OTHER])
    [menu] = shown.displayed
    assert [page.data for page in shown.pictures] == [card_html(CARD)]
    menu.value = 1
    assert shown.pictures[-1].data == card_html(OTHER)


def test_the_latent_browser_puts_several_cards_into_a_built_page(shown, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", "1")
    widgets.browse_latents([CARD, OTHER, CARD], n_static=2)
    assert [page.data for page in shown.displayed] == [card_html(CARD) + card_html(OTHER)]
    assert not shown.pictures


def test_a_browser_without_latents_is_refused():
    with pytest.raises(ValueError, match="nothing to choose"):
        widgets.browse_latents([])


# -- the boxes ---------------------------------------------------------------------------------


def test_the_splice_explorer_leaves_a_picture_and_replaces_it_when_a_box_is_ticked(shown):
    widgets.explore_splices([2, 5, 8], lambda layers, error: (layers, error), start=[5])
    row, controls = shown.displayed[0].children
    assert shown.pictures == [((5,), "drop")]
    assert [box.value for box in row.children] == [False, True, False]
    assert [box.description for box in row.children] == ["after 2", "after 5", "after 8"]
    row.children[0].value = True
    controls.children[0].value = "keep"
    row.children[1].value = False
    assert shown.pictures[1:] == [((2, 5), "drop"), ((2, 5), "keep"), ((2,), "keep")]


def test_the_splice_explorer_says_that_it_computes_and_stops_saying_so_when_it_fails(shown):
    said = []

    def draw(layers, error):
        if shown.pictures:
            said.append(state.value)
            raise RuntimeError("out of memory")
        return "first"

    widgets.explore_splices([2, 5], draw, start=[])
    row, controls = shown.displayed[0].children
    state = controls.children[1]
    with pytest.raises(RuntimeError):
        row.children[0].value = True
    assert said == ["computing …"] and state.value == ""


def test_a_splice_explorer_that_starts_at_a_layer_without_an_sae_is_refused():
    with pytest.raises(ValueError, match="no box for layer 3"):
        widgets.explore_splices([2, 5], print, start=[3])


# -- the playground ----------------------------------------------------------------------------

EXAMPLES = {"lower case": ("{'ann': 2}", "Ann")}


@pytest.fixture
def respond():
    """Answers dictionaries only, and remembers what it was asked."""

    def respond(dictionary, query):
        respond.asked.append((dictionary, query))
        if not dictionary.startswith("{"):
            raise SessionError("<that> is not a dictionary")
        return f"{query} in {dictionary}"

    respond.asked = []
    return respond


def test_the_playground_asks_what_was_typed_and_shows_why_it_refuses(shown, respond):
    widgets.play(respond, "{'Bob': 1}", "Ann", EXAMPLES, refused=SessionError)
    menu, typed, row = shown.displayed[0].children
    key, button, state = row.children
    assert [page.data for page in shown.pictures] == ["Ann in {'Bob': 1}"]
    menu.value = EXAMPLES["lower case"]
    assert (typed.value, key.value) == ("{'ann': 2}", "Ann")
    assert shown.pictures[-1].data == "Ann in {'ann': 2}"
    typed.value, key.value = "Bob, 1", "Bob"
    assert respond.asked[-1] != ("Bob, 1", "Bob")  # typing asks nothing
    button.click()
    assert respond.asked[-1] == ("Bob, 1", "Bob")
    assert shown.pictures[-1].data == "<p>⚠️ &lt;that&gt; is not a dictionary</p>"
    assert state.value == ""


def test_choosing_no_example_asks_nothing(shown, respond):
    widgets.play(respond, "{'Bob': 1}", "Ann", EXAMPLES, refused=SessionError)
    menu = shown.displayed[0].children[0]
    menu.value = EXAMPLES["lower case"]
    asked = list(respond.asked)
    menu.value = None
    assert respond.asked == asked and len(shown.pictures) == 2


def test_the_playground_puts_its_examples_into_a_built_page(shown, respond, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", "1")
    widgets.play(respond, "{'Bob': 1}", "Ann", EXAMPLES, refused=SessionError)
    assert [page.data for page in shown.displayed] == [
        "",
        "Ann in {'Bob': 1}",
        "<h4>lower case</h4>",
        "Ann in {'ann': 2}",
    ]
    assert not shown.pictures


# -- on a page without a kernel ------------------------------------------------------------------


def test_every_kind_of_control_can_be_saved_with_a_page(shown, respond):
    """In the words of the ipywidgets that is installed: 8 here, 7.7 in Colab."""
    widgets.browse_pictures({"a": 1, "b": 2}, str, "size of it")
    widgets.browse_latents([CARD, OTHER])
    widgets.explore_splices([2, 5], lambda layers, error: (layers, error), start=[5])
    widgets.play(respond, "{'Bob': 1}", "Ann", EXAMPLES)
    state = dependency_state(shown.displayed)
    models = [model["state"] for model in state.values()]
    descriptions = {model.get("description") for model in models}
    assert len(shown.displayed) == 4
    assert {
        "size of it",
        "latent",
        "after 2",
        "error",
        "try",
        "key",
        "Ask the model",
    } <= descriptions
    page = embed_snippet(shown.displayed, state=state)
    assert all(f'"{name}"' in page for name in ("after 5", "Ask the model", "lower case"))
