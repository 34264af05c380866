"""Things to click on. Each has a plain fallback, so that a notebook read without a kernel loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import ipywidgets
from IPython.display import Image, display

Choice = TypeVar("Choice")


def browse(choices: Mapping[str, Choice], draw: Callable[[Choice], None], label: str) -> None:
    """A slider over ``choices``; ``draw`` shows the chosen one below it.

    Args:
        choices: what to choose from, by its label on the slider.
        draw: displays a choice (in the cell's output).
        label: what the slider chooses.
    """
    if not choices:
        raise ValueError("choices: nothing to choose from.")
    slider = ipywidgets.SelectionSlider(options=list(choices), description=label, continuous_update=False, style={"description_width": "initial"})
    output = ipywidgets.interactive_output(lambda key: draw(choices[key]), {"key": slider})
    display(ipywidgets.VBox([slider, output]))


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
