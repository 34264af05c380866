"""Things to click on. Each has a plain fallback, so that a notebook read without a kernel loses
nothing.

What a control changes is an output of its own, which is replaced when the control is used. Where
widgets do not run, the first one stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ipywidgets
from IPython.display import HTML, DisplayHandle, Image, display

from course_utils.circuits.explain import LatentCard
from course_utils.circuits.frontier import Frontier
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.statistics import Interval
from course_utils.display.figures import frontier_at_size_figure, picture
from course_utils.display.html import card_html, heading_html, refusal_html
from course_utils.prompts.tasks import Task

Choice = TypeVar("Choice")


def _replaceable(shown: object) -> DisplayHandle:
    """Display something; the handle's ``update`` puts another thing in its place."""
    handle = display(shown, display_id=True)
    assert handle is not None  # None only without a display_id
    return handle


@contextmanager
def _busy(state: ipywidgets.Label, doing: str) -> Iterator[None]:
    """Say beside the controls what is going on, until it is done or has failed."""
    state.value = doing
    try:
        yield
    finally:
        state.value = ""


def browse_pictures(
    choices: Mapping[str, Choice], draw: Callable[[Choice], Image], label: str
) -> None:
    """A slider over ``choices``, and the picture of the chosen one below it.

    Args:
        choices: what to choose from, by its label on the slider; the first is shown at the start.
        draw: the picture of a choice.
        label: what the slider chooses.

    Raises:
        ValueError: no choices.
    """
    if not choices:
        raise ValueError("choices: nothing to choose from.")
    slider = ipywidgets.SelectionSlider(
        options=list(choices),
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "30em"},
    )
    display(slider)
    first = next(iter(choices.values()))
    shown = _replaceable(draw(first))

    def redraw(change: Mapping[str, Any]) -> None:
        shown.update(draw(choices[change["new"]]))

    slider.observe(redraw, names="value")


def explore_frontier(frontier: Frontier, circuits: Sequence[SAEMasks], task: Task) -> None:
    """Slide the size of the circuit: where it stands on the frontier, and which of its latents
    remain.

    Args:
        circuits: the learned masks, of any sizes; the smallest is shown first. The last of those
            with one size stands for them. Those without nodes have no place on the slider; it says
            how many they are.

    Raises:
        ValueError: no circuit has a node.
        MaskError: a circuit has a position that the task does not have.
    """
    by_size = {masks.get_num_latents(): masks for masks in circuits}
    sizes = sorted(by_size.keys() - {0})
    if not sizes:
        raise ValueError("circuits: none of them has a node.")
    n_empty = sum(masks.get_num_latents() == 0 for masks in circuits)
    label = "size of the circuit"
    if n_empty:
        label += f" ({n_empty} without nodes left out)"

    def draw(masks: SAEMasks) -> Image:
        alt = _said_of(frontier, masks.get_num_latents())
        return picture(frontier_at_size_figure(frontier, masks, task), alt=alt)

    browse_pictures({f"{n:,} nodes": by_size[n] for n in sizes}, draw, label)


def _said_of(frontier: Frontier, n_nodes: int) -> str:
    """In words: every method's faithfulness at this size; of several seeds, mean and range."""
    sizes = {point.size for point in frontier.points if point.n_nodes == n_nodes}
    found: dict[str, list[Interval]] = {}
    for point in frontier.points:
        if point.size in sizes:
            found.setdefault(point.method, []).append(point.faithfulness.vs_spliced)
    said = ", ".join(f"{method} {_said_of_seeds(found[method])}" for method in found)
    return f"{n_nodes} nodes. Faithfulness: {said}. The latents, by layer and position."


def _said_of_seeds(intervals: Sequence[Interval]) -> str:
    """One seed's interval over prompts; of several, the mean and the range."""
    if len(intervals) == 1:
        return str(intervals[0])
    values = [interval.value for interval in intervals]
    mean = sum(values) / len(values)
    return f"{mean:.2f} ({len(values)} seeds: {min(values):.2f} to {max(values):.2f})"


def browse_latents(cards: Sequence[LatentCard], *, n_static: int = 3) -> None:
    """A menu of latents; the chosen one's card (`card_html`) below it.

    Args:
        cards: what to choose from.
        n_static: in a notebook built for the web (with ``COURSE_BUILD`` set), which no kernel will
            answer, this many cards are put one below the other, and no menu.

    Raises:
        ValueError: no cards.
    """
    if not cards:
        raise ValueError("cards: nothing to choose from.")
    if os.environ.get("COURSE_BUILD"):
        display(HTML("".join(card_html(card) for card in cards[:n_static])))
        return
    menu = ipywidgets.Dropdown(
        options=[(card.name, i) for i, card in enumerate(cards)],
        value=0,
        description="latent",
        layout={"width": "36em"},
    )
    display(menu)
    shown = _replaceable(HTML(card_html(cards[0])))

    def change_card(change: Mapping[str, Any]) -> None:
        shown.update(HTML(card_html(cards[change["new"]])))

    menu.observe(change_card, names="value")


def explore_splices(
    layers: Sequence[int],
    draw: Callable[[tuple[int, ...], str], Image],
    *,
    start: Sequence[int],
    policies: Sequence[str] = ("drop", "mean", "keep"),
) -> None:
    """Boxes to tick the SAEs that are spliced, a menu for the error policy, and a picture of what
    that costs.

    Args:
        layers: the layers that have an SAE.
        draw: the picture for the ticked layers and the chosen policy.
        start: the layers that are ticked at first; with ``policies[0]``, they make the first
            picture.
        policies: what may become of the errors.

    Raises:
        ValueError: a layer in ``start`` that has no SAE.
    """
    unknown = sorted(set(start) - set(layers))
    if unknown:
        raise ValueError(
            f"start: no box for layer {unknown[0]}; there are boxes for {list(layers)}."
        )
    boxes = {layer: _layer_box(layer, ticked=layer in start) for layer in layers}
    menu = ipywidgets.ToggleButtons(options=list(policies), description="error")
    state = ipywidgets.Label("")
    row = ipywidgets.HBox(
        list(boxes.values()), layout={"flex_flow": "row wrap", "grid_gap": "0 12px"}
    )
    display(ipywidgets.VBox([row, ipywidgets.HBox([menu, state])]))
    shown = _replaceable(draw(tuple(sorted(start)), policies[0]))

    def redraw(_: object) -> None:
        ticked = tuple(sorted(layer for layer, box in boxes.items() if box.value))
        with _busy(state, "computing …"):
            shown.update(draw(ticked, str(menu.value)))

    for control in (*boxes.values(), menu):
        control.observe(redraw, names="value")


def _layer_box(layer: int, *, ticked: bool) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(
        ticked, description=f"after {layer}", indent=False, layout={"width": "auto"}
    )


def play(
    respond: Callable[[str, str], str],
    dictionary: str,
    query: str,
    examples: Mapping[str, tuple[str, str]],
    *,
    refused: type[Exception] = ValueError,
) -> None:
    """Two lines to type in, a dictionary and the key that is asked for, a menu of examples, and
    what ``respond`` makes of them.

    In a notebook built for the web (with ``COURSE_BUILD`` set), the first response stands there
    with one for each example below it, and nothing to type in.

    Args:
        respond: HTML from (dictionary, query).
        dictionary, query: what stands there at first.
        examples: by name, other dictionaries and queries to try.
        refused: what ``respond`` raises where it does not like what was typed; the message is shown
            in its place.
    """

    def answer(dictionary: str, query: str) -> HTML:
        try:
            return HTML(respond(dictionary, query))
        except refused as error:
            return HTML(refusal_html(error))

    if os.environ.get("COURSE_BUILD"):
        display(HTML(""), answer(dictionary, query))
        for name, example in examples.items():
            display(HTML(heading_html(name)), answer(*example))
        return
    lines = _Playground(dictionary, query, examples)
    display(lines.controls)
    shown = _replaceable(answer(dictionary, query))

    def ask(_: object) -> None:
        with _busy(lines.state, "asking …"):
            shown.update(answer(lines.dictionary.value, lines.query.value))

    def take_example(change: Mapping[str, Any]) -> None:
        if change["new"] is not None:
            lines.dictionary.value, lines.query.value = change["new"]
            ask(change)

    lines.button.on_click(ask)
    lines.menu.observe(take_example, names="value")


class _Playground:
    """The controls of `play`: a menu of examples, two lines to type in, a button."""

    def __init__(self, dictionary: str, query: str, examples: Mapping[str, tuple[str, str]]):
        self.menu = ipywidgets.Dropdown(
            options=[("", None), *examples.items()], description="try", layout={"width": "30em"}
        )
        self.dictionary = ipywidgets.Text(
            dictionary,
            description="dictionary",
            layout={"width": "52em"},
            continuous_update=False,
        )
        self.query = ipywidgets.Text(
            query, description="key", layout={"width": "20em"}, continuous_update=False
        )
        self.button = ipywidgets.Button(description="Ask the model", button_style="primary")
        self.state = ipywidgets.Label("")
        row = ipywidgets.HBox([self.query, self.button, self.state])
        self.controls = ipywidgets.VBox([self.menu, self.dictionary, row])
