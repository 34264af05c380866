"""Things to click on. Each has a plain fallback, so that a notebook read without a kernel loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import ipywidgets
from IPython.display import Image, display

from course_utils.evaluate import Frontier
from course_utils.masks import SAEMasks
from course_utils.plots import frontier_at_size_figure, picture
from course_utils.tasks import Task

Choice = TypeVar("Choice")


def browse_pictures(choices: Mapping[str, Choice], draw: Callable[[Choice], Image], label: str) -> None:
    """A slider over ``choices``, and the picture of the chosen one below it.

    The picture is an output of its own, which the slider replaces: where widgets do not run, the first one stays.

    Args:
        choices: what to choose from, by its label on the slider; the first is shown at the start.
        draw: the picture of a choice.
        label: what the slider chooses.
    """
    if not choices:
        raise ValueError("choices: nothing to choose from.")
    slider = ipywidgets.SelectionSlider(
        options=list(choices), description=label, continuous_update=False, style={"description_width": "initial"}, layout={"width": "30em"}
    )
    display(slider)
    shown = display(draw(choices[slider.value]), display_id=True)
    slider.observe(lambda change: shown.update(draw(choices[change["new"]])), names="value")


def explore_frontier(frontier: Frontier, circuits: Sequence[SAEMasks], task: Task) -> None:
    """Slide the size of the circuit: where it stands on the frontier, and which of its latents remain.

    Args:
        circuits: the learned masks, of any sizes; the smallest is shown first.
    """
    by_size = {masks.get_num_latents(): masks for masks in circuits if masks.get_num_latents()}
    sizes = sorted(by_size)
    if not sizes:
        raise ValueError("circuits: none of them has a node.")
    choices = {f"{n:,} nodes": by_size[n] for n in sizes}

    def draw(masks: SAEMasks) -> Image:
        n = masks.get_num_latents()
        found = {point.method: point.faithfulness.vs_spliced for point in frontier.points if point.n_nodes == n}
        says = ", ".join(f"{method} {interval}" for method, interval in found.items())
        return picture(frontier_at_size_figure(frontier, masks, task), alt=f"{n} nodes. Faithfulness: {says}. The latents, by layer and position.")

    browse_pictures(choices, draw, "size of the circuit")


def explore_splices(
    layers: Sequence[int],
    draw: Callable[[tuple[int, ...], str], Image],
    *,
    start: Sequence[int],
    policies: Sequence[str] = ("drop", "mean", "keep"),
) -> None:
    """Boxes to tick the SAEs that are spliced, a menu for the error policy, and a picture of what that costs.

    The picture is an output of its own, which the boxes replace: where widgets do not run, the first one stays.

    Args:
        layers: the layers that have an SAE.
        draw: the picture for the ticked layers and the chosen policy.
        start: the layers that are ticked at first; with ``policies[0]``, they make the first picture.
    """
    unknown = set(start) - set(layers)
    if unknown:
        raise ValueError(f"start: no box for layer {sorted(unknown)[0]}; there are boxes for {list(layers)}.")
    box_of = lambda layer: ipywidgets.Checkbox(layer in start, description=f"after {layer}", indent=False, layout={"width": "auto"})  # noqa: E731
    boxes = {layer: box_of(layer) for layer in layers}
    menu = ipywidgets.ToggleButtons(options=list(policies), description="error")
    state = ipywidgets.Label("")
    row = ipywidgets.HBox(list(boxes.values()), layout={"flex_flow": "row wrap", "grid_gap": "0 12px"})
    display(ipywidgets.VBox([row, ipywidgets.HBox([menu, state])]))
    shown = display(draw(tuple(sorted(start)), menu.value), display_id=True)

    def redraw(change: object) -> None:
        state.value = "computing …"
        try:
            shown.update(draw(tuple(sorted(layer for layer, box in boxes.items() if box.value)), menu.value))
        finally:
            state.value = ""

    for control in (*boxes.values(), menu):
        control.observe(redraw, names="value")
