"""Things to click on. Each has a plain fallback, so that a notebook read without a kernel loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import ipywidgets
from IPython.display import display

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
