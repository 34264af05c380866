"""Things to click on. Each has a plain fallback, so that a notebook read without a kernel loses
nothing.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import ipywidgets
from IPython.display import HTML, Image, display

from course_utils.circuits.explain import Context, LatentCard
from course_utils.circuits.frontier import Frontier
from course_utils.circuits.masks import SAEMasks
from course_utils.display.figures import frontier_at_size_figure, picture
from course_utils.prompts.tasks import Task

Choice = TypeVar("Choice")


def browse_pictures(
    choices: Mapping[str, Choice], draw: Callable[[Choice], Image], label: str
) -> None:
    """A slider over ``choices``, and the picture of the chosen one below it.

    The picture is an output of its own, which the slider replaces: where widgets do not run, the
    first one stays.

    Args:
        choices: what to choose from, by its label on the slider; the first is shown at the start.
        draw: the picture of a choice.
        label: what the slider chooses.
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
    shown = display(draw(choices[slider.value]), display_id=True)
    slider.observe(lambda change: shown.update(draw(choices[change["new"]])), names="value")


def explore_frontier(frontier: Frontier, circuits: Sequence[SAEMasks], task: Task) -> None:
    """Slide the size of the circuit: where it stands on the frontier, and which of its latents
    remain.

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
        found = {
            point.method: point.faithfulness.vs_spliced
            for point in frontier.points
            if point.n_nodes == n
        }
        says = ", ".join(f"{method} {interval}" for method, interval in found.items())
        return picture(
            frontier_at_size_figure(frontier, masks, task),
            alt=f"{n} nodes. Faithfulness: {says}. The latents, by layer and position.",
        )

    browse_pictures(choices, draw, "size of the circuit")


def browse_latents(cards: Sequence[LatentCard], *, n_static: int = 3) -> None:
    """A menu of latents; the chosen one's card (`card_html`) below it.

    The card is an output of its own, which the menu replaces: where widgets do not run, the first
    one stays.

    Args:
        cards: what to choose from.
        n_static: in a notebook built for the web (with ``COURSE_BUILD`` set), which no kernel will
            answer, this many cards are put one below the other, and no menu.
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
    shown = display(HTML(card_html(cards[0])), display_id=True)
    menu.observe(lambda change: shown.update(HTML(card_html(cards[change["new"]]))), names="value")


def card_html(card: LatentCard) -> str:
    """A latent's card: one line on it, what it promotes and suppresses, where it fires, its
    strongest contexts.

    Orange marks how strongly it fires; the peak is bold too, for pages that drop colours. Readable
    on light and dark pages.
    """
    quoted = {
        key: ", ".join(html.escape(repr(token)) for token in tokens)
        for key, tokens in vars(card).items()
        if key in ("promotes", "suppresses")
    }
    contexts = (
        "".join(f"<li>{_context_html(context)}</li>" for context in card.contexts)
        or "<li><i>it fires in none of the texts</i></li>"
    )
    return (
        f"<h4>{html.escape(card.name)}</h4><p>{html.escape(card.says)}</p>"
        f"<p><b>promotes</b> {quoted['promotes']}<br><b>suppresses</b> {quoted['suppresses']}</p>"
        f"{_fires_html(card.fires)}<ol>{contexts}</ol>"
    )


def _context_html(context: Context) -> str:
    strongest = max(context.values, default=0) or 1
    pieces = []
    for i, (token, value) in enumerate(zip(context.tokens, context.values)):
        text = html.escape(token).replace("\n", "⏎")
        text = f"<b>{text}</b>" if i == context.peak else text
        pieces.append(
            f'<span style="background: rgba(213, 94, 0, {0.55 * max(value, 0) / strongest:.2f})">{text}</span>'
            if value > 0
            else text
        )
    return f"…{''.join(pieces)}… <small>({context.values[context.peak]:.1f})</small>"


def _fires_html(fires: Mapping[str, Mapping[str, float]]) -> str:
    if not fires:
        return ""
    positions = list(next(iter(fires.values())))
    strongest = max((value for row in fires.values() for value in row.values()), default=0) or 1
    head = "".join(f"<th>{html.escape(position)}</th>" for position in positions)
    rows = ""
    for group, row in fires.items():
        cells = "".join(
            f'<td style="background: rgba(213, 94, 0, {0.55 * max(row[p], 0) / strongest:.2f})">{row[p]:.2f}</td>'
            for p in positions
        )
        rows += f"<tr><th>{html.escape(group)}</th>{cells}</tr>"
    return f"<table><tr><th>mean where</th>{head}</tr>{rows}</table>"


def explore_splices(
    layers: Sequence[int],
    draw: Callable[[tuple[int, ...], str], Image],
    *,
    start: Sequence[int],
    policies: Sequence[str] = ("drop", "mean", "keep"),
) -> None:
    """Boxes to tick the SAEs that are spliced, a menu for the error policy, and a picture of what
    that costs.

    The picture is an output of its own, which the boxes replace: where widgets do not run, the
    first one stays.

    Args:
        layers: the layers that have an SAE.
        draw: the picture for the ticked layers and the chosen policy.
        start: the layers that are ticked at first; with ``policies[0]``, they make the first
            picture.
    """
    unknown = set(start) - set(layers)
    if unknown:
        raise ValueError(
            f"start: no box for layer {sorted(unknown)[0]}; there are boxes for {list(layers)}."
        )
    box_of = lambda layer: ipywidgets.Checkbox(
        layer in start, description=f"after {layer}", indent=False, layout={"width": "auto"}
    )
    boxes = {layer: box_of(layer) for layer in layers}
    menu = ipywidgets.ToggleButtons(options=list(policies), description="error")
    state = ipywidgets.Label("")
    row = ipywidgets.HBox(
        list(boxes.values()), layout={"flex_flow": "row wrap", "grid_gap": "0 12px"}
    )
    display(ipywidgets.VBox([row, ipywidgets.HBox([menu, state])]))
    shown = display(draw(tuple(sorted(start)), menu.value), display_id=True)

    def redraw(change: object) -> None:
        state.value = "computing …"
        try:
            shown.update(
                draw(tuple(sorted(layer for layer, box in boxes.items() if box.value)), menu.value)
            )
        finally:
            state.value = ""

    for control in (*boxes.values(), menu):
        control.observe(redraw, names="value")


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

    The response is an output of its own: where widgets do not run, the first one stays, with one
    for each example below it.

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
            return HTML(f"<p>⚠️ {html.escape(str(error))}</p>")

    if os.environ.get("COURSE_BUILD"):
        for name, typed in {"": (dictionary, query), **examples}.items():
            display(HTML(f"<h4>{html.escape(name)}</h4>" if name else ""), answer(*typed))
        return
    wide = {"width": "52em"}
    typed = ipywidgets.Text(
        dictionary, description="dictionary", layout=wide, continuous_update=False
    )
    asked = ipywidgets.Text(
        query, description="key", layout={"width": "20em"}, continuous_update=False
    )
    menu = ipywidgets.Dropdown(
        options=[("", None), *examples.items()], description="try", layout={"width": "30em"}
    )
    button = ipywidgets.Button(description="Ask the model", button_style="primary")
    state = ipywidgets.Label("")
    display(ipywidgets.VBox([menu, typed, ipywidgets.HBox([asked, button, state])]))
    shown = display(answer(dictionary, query), display_id=True)

    def ask(_: object = None) -> None:
        state.value = "asking …"
        try:
            shown.update(answer(typed.value, asked.value))
        finally:
            state.value = ""

    def take(change: Mapping) -> None:
        if change["new"] is not None:
            typed.value, asked.value = change["new"]
            ask()

    button.on_click(ask)
    menu.observe(take, names="value")


def answer_html(
    tokens: Sequence[str],
    values: Sequence[float],
    likely: Sequence[tuple[str, float]],
    says: str,
    *,
    darkest: float | None = None,
) -> str:
    """A prompt with its tokens coloured by ``values``, the likeliest next tokens as bars, and a
    line on top.

    Args:
        tokens, values: of the prompt; 0 is left plain.
        likely: (token, probability) pairs.
        darkest: the value from which on a token has the darkest orange; by default the prompt's
            strongest. Name it where prompts are to be compared.
    """
    darkest = darkest or max(values, default=0) or 1
    coloured = "".join(
        f'<span title="{value:.2f}" style="background: rgba(213, 94, 0, {0.6 * min(max(value / darkest, 0), 1):.2f})">{_visible(token)}</span>'
        + ("<br>" if "\n" in token else "")
        for token, value in zip(tokens, values)
    )
    rows = "".join(
        f'<tr><td><code>{_visible(token)}</code></td><td><div style="width: {12 * p:.2f}em; height: 0.9em; background: rgb(0, 114, 178)"></div></td>'
        f"<td>{p:.2f}</td></tr>"
        for token, p in likely
    )
    return f'<p>{html.escape(says)}</p><p style="font-family: monospace">{coloured}</p><table>{rows}</table>'


def _visible(token: str) -> str:
    return html.escape(token).replace("\n", "⏎").replace(" ", "&nbsp;")
