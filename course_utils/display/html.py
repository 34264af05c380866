"""The course's HTML: prompts with coloured tokens, a latent's card, a model's answer.

All of it is built by `element`, which escapes whatever is not `Html` already: text from a model or
from a reader cannot become markup. Readable on light and dark pages.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from IPython.display import HTML, display

from course_utils.circuits.explain import Context, LatentCard
from course_utils.display.style import BLUE, ORANGE, Number


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def element(name: str, *children: str, **attributes: str) -> Html:
    """An HTML element.

    Args:
        name: e.g. ``"p"``.
        children: what it holds; text is escaped, `Html` is not.
        attributes: such as ``style="…"``; escaped.
    """
    written = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{together(*children)}</{name}>")


def together(*children: str) -> Html:
    """Pieces one after the other; text is escaped, `Html` is not."""
    return Html(
        "".join(child if isinstance(child, Html) else _escaped(child) for child in children)
    )


def _escaped(text: str) -> Html:
    return Html(html.escape(text))


BREAK = Html("<br>")
_VOID = ("img", "input")
"""Elements without a closing tag."""


def _rgb(colour: str) -> str:
    """``"#D55E00"`` as ``"213, 94, 0"``."""
    return ", ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


def _orange(value: Number, darkest: Number, most: float) -> str:
    """A style: orange behind a text, ``most`` opaque from the value ``darkest`` on, and not at all
    at 0 and below.
    """
    opacity = most * min(value, darkest) / darkest if value > 0 else 0.0
    return f"background: rgba({_rgb(ORANGE)}, {opacity:.2f})"


# ---------------------------------------------------------------------------------------------
# Tokens with values
# ---------------------------------------------------------------------------------------------


def coloured_prompt(labels: Sequence[str], values: Sequence[Number]) -> None:
    """Display a prompt with its tokens coloured by a value each.

    It is plain HTML, which shows on any page and without a network. (circuitsvis would put 1.3 MB
    of script into each output, or load it from the web when the page is opened.)
    """
    display(HTML(tokens_html([f" {label}" for label in labels], values)))


def coloured_contexts(contexts: Sequence[Context]) -> None:
    """Display texts in which a latent fires, a line each, their tokens coloured by its value; the
    peak is bold. Plain HTML, as in `coloured_prompt`.
    """
    lines = [tokens_html(context.tokens, context.values, context.peak) for context in contexts]
    display(HTML(element("ol", *(element("li", line) for line in lines))))


def tokens_html(tokens: Sequence[str], values: Sequence[Number], peak: int | None = None) -> Html:
    """Tokens one after the other, the more orange the larger their value; pointing at one shows it.

    Args:
        values: of the tokens; 0 and below are left plain.
        peak: which token is bold.
    """
    strongest = max(values, default=0) or 1
    pieces = []
    for i, (token, value) in enumerate(zip(tokens, values)):
        text = _escaped(token.replace("\n", "⏎"))
        if i == peak:
            text = element("b", text)
        colour = _orange(value, strongest, 0.6)
        pieces.append(element("span", text, title=f"{value:.2f}", style=colour))
    return element("span", *pieces, style="white-space: pre-wrap; font-family: monospace")


# ---------------------------------------------------------------------------------------------
# A latent's card
# ---------------------------------------------------------------------------------------------


def card_html(card: LatentCard) -> Html:
    """A latent's card: one line on it, what it promotes and suppresses, where it fires, its
    strongest contexts.

    Orange marks how strongly it fires; the peak is bold too, for pages that drop colours.
    """
    return together(
        element("h4", card.name),
        element("p", card.says),
        lens_html(card),
        _fires_html(card.fires),
        contexts_html(card),
    )


def lens_html(card: LatentCard) -> Html:
    """What a latent promotes and suppresses, by the logit lens."""
    return element(
        "p",
        element("b", "promotes"),
        f" {_quoted(card.promotes)}",
        BREAK,
        element("b", "suppresses"),
        f" {_quoted(card.suppresses)}",
    )


def contexts_html(card: LatentCard) -> Html:
    """A list of a latent's strongest contexts."""
    contexts = [element("li", context_html(context)) for context in card.contexts]
    if not contexts:
        contexts = [element("li", element("i", "it fires in none of the texts"))]
    return element("ol", *contexts)


def _quoted(tokens: Sequence[str]) -> str:
    return ", ".join(repr(token) for token in tokens)


def context_html(context: Context) -> Html:
    """A stretch of text, its tokens orange where the latent fires, and the value at the peak."""
    strongest = max(context.values, default=0) or 1
    pieces = []
    for i, (token, value) in enumerate(zip(context.tokens, context.values)):
        text = _escaped(token.replace("\n", "⏎"))
        if i == context.peak:
            text = element("b", text)
        if value > 0:
            text = element("span", text, style=_orange(value, strongest, 0.55))
        pieces.append(text)
    peak = element("small", f"({context.values[context.peak]:.1f})")
    return together("…", *pieces, "… ", peak)


def _fires_html(fires: Mapping[str, Mapping[str, float]]) -> Html:
    """The latent's mean as a table: groups of prompts by positions."""
    if not fires:
        return Html("")
    positions = list(next(iter(fires.values())))
    strongest = max((value for row in fires.values() for value in row.values()), default=0) or 1
    heads = [element("th", position) for position in ("mean where", *positions)]
    rows = [element("tr", *heads)]
    for group, row in fires.items():
        cells = [
            element("td", f"{row[position]:.2f}", style=_orange(row[position], strongest, 0.55))
            for position in positions
        ]
        rows.append(element("tr", element("th", group), *cells))
    return element("table", *rows)


# ---------------------------------------------------------------------------------------------
# A model's answer
# ---------------------------------------------------------------------------------------------


def answer_html(
    tokens: Sequence[str],
    values: Sequence[Number],
    likely: Sequence[tuple[str, Number]],
    says: str,
    *,
    darkest: Number | None = None,
) -> Html:
    """A prompt with its tokens coloured by ``values``, the likeliest next tokens as bars, and a
    line on top.

    Args:
        tokens, values: of the prompt; 0 is left plain.
        likely: (token, probability) pairs.
        says: the line on top.
        darkest: the value from which on a token has the darkest orange; by default the prompt's
            strongest. Name it where prompts are to be compared.
    """
    darkest = darkest or max(values, default=0) or 1
    coloured = []
    for token, value in zip(tokens, values):
        colour = _orange(value, darkest, 0.6)
        coloured.append(element("span", _visible(token), title=f"{value:.2f}", style=colour))
        if "\n" in token:
            coloured.append(BREAK)
    return together(
        element("p", says),
        element("p", *coloured, style="font-family: monospace"),
        element("table", *(_bar_html(token, probability) for token, probability in likely)),
    )


def _bar_html(token: str, probability: Number) -> Html:
    """A row of a table: a token, its probability as a bar and as a number."""
    size = f"width: {12 * probability:.2f}em; height: 0.9em"
    bar = element("div", style=f"{size}; background: rgb({_rgb(BLUE)})")
    return element(
        "tr",
        element("td", element("code", _visible(token))),
        element("td", bar),
        element("td", f"{probability:.2f}"),
    )


def _visible(token: str) -> Html:
    """A token whose spaces and line breaks can be seen."""
    return Html(_escaped(token.replace("\n", "⏎")).replace(" ", "&nbsp;"))


def heading_html(text: str) -> Html:
    """A small heading."""
    return element("h4", text)


def refusal_html(reason: object) -> Html:
    """Why something that was asked for cannot be had."""
    return element("p", f"⚠️ {reason}")
