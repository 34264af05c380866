"""The picture of a circuit: one to look into, and its twin for print.

`show_circuit` puts both into a notebook. Hovering over a node, or reaching it with Tab, opens a
card: contexts, logit lens, its values on a prompt. A click or Enter pins the node and lights up its
inputs and outputs with their weights. A slider hides weak edges. Escape lets go. All of it is SVG,
HTML and 150 lines of script within the output, with no request to anywhere: it works offline, in
JupyterLab, in Colab, and on a static page.

Where a page runs no scripts (GitHub, a notebook that is not trusted, paper), the twin stands there:
`circuit_picture`, from the same layout. A table below either says the same in words.

Why no library draws it: plotly and bokeh put 1 to 5 MB of script into each output, and their dots
cannot be reached by keyboard; pyvis and Cytoscape draw on a canvas, which a screen reader does not
see, and fetch their script from the web or carry 400 kB of it. What they would save, the layout, is
given here by layers and positions.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Line
from PIL import Image

from course_utils.circuits.graph import CircuitGraph, GraphEdge, GraphNode
from course_utils.display.graph_layout import (
    MARGIN,
    Curve,
    Dot,
    Label,
    Layout,
    Sample,
    lay_out,
    wrapped,
)
from course_utils.display.html import (
    Html,
    context_html,
    contexts_html,
    element,
    lens_html,
    together,
)
from course_utils.display.style import Number

HERE = Path(__file__).parent
PIXELS = 96
"""In an inch, by CSS."""
DPI = 150
N_STEPS = 100
"""Of the slider."""
WEIGHT = "cv-weight cv-halo"
"""The classes of what a pinned node's edges weigh."""
TITLE_SIZE, NOTE_SIZE = 17, 12
"""In the twin: of letters, in pixels."""


def show_circuit(graph: CircuitGraph, title: str, alt: str) -> None:
    """Display a circuit, to look into where scripts run and as a picture elsewhere.

    Args:
        graph: what is drawn.
        title: the finding, in one line.
        alt: the picture in words.
    """
    display(HTML(circuit_html(graph, title, alt)))


# ---------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------


def circuit_html(graph: CircuitGraph, title: str, alt: str) -> Html:
    """A circuit as HTML with its own style and script, to put into any page.

    What a page without scripts is to show stands in it as it is. The rest waits in a ``script``
    element of no type that runs, which such a page drops with all that is in it.
    """
    layout = lay_out(graph)
    live = together(_bar_html(graph), _stage_html(graph, layout, alt))
    code = _part("circuit_view.js")
    name = hashlib.sha256(f"{live}{title}{code}".encode()).hexdigest()[:12]
    still = base64.b64encode(_small_png(circuit_picture(graph))).decode()
    start = f"document.querySelectorAll(\"[data-circuit-view='{name}']:not([data-ready])\")"
    script = f"(() => {{\n{code}\n{start}.forEach(circuitView);\n}})();"
    content = [
        element("style", Html(_part("circuit_view.css"))),
        element("p", title, **_classed("cv-title")),
        element("img", alt=alt, src=f"data:image/png;base64,{still}", **_classed("cv-still")),
        element("p", _note(graph), **_classed("cv-note")),
        _table_html(graph),
        element("script", live, type="text/html", **_classed("cv-source")),
        element("script", Html(script)),
    ]
    named = {"class": "circuit-view", "data-circuit-view": name, "aria-label": title}
    return element("div", *content, role="group", **named)


@functools.cache
def _part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _note(graph: CircuitGraph) -> str:
    """What lines and dots mean, in words."""
    said = []
    if graph.edges:
        said.append(f"Edges lead upwards; weight: {graph.weight_means}.")
    if any(edge.weight < 0 for edge in graph.edges):
        said.append("Dashed: negative.")
    if any(node.effect for node in graph.nodes):
        said.append(f"Larger dots: larger effect ({graph.effect_means}).")
    return " ".join(said)


def _bar_html(graph: CircuitGraph) -> Html:
    """The slider, and how to use the picture."""
    sizes = [abs(edge.weight) for edge in graph.edges]
    least, largest = min(sizes, default=0.0), max(sizes, default=0.0)
    low, high = f"{max(0.0, least - 0.005):.2f}", f"{largest + 0.005:.2f}"
    step = f"{max(0.01, round((largest - least) / N_STEPS, 2)):.2f}"
    slider = element("input", type="range", min=low, max=high, step=step, value=low)
    hint = "Hover or Tab: what a node is. Click or Enter: its inputs and outputs. Esc: let go."
    pieces = [
        element("label", "hide weak edges ", slider),
        element("output", f"{len(graph.edges)} edges"),
        element("span", hint, **_classed("cv-note")),
    ]
    return element("div", *(pieces if graph.edges else pieces[-1:]), **_classed("cv-bar"))


def _stage_html(graph: CircuitGraph, layout: Layout, alt: str) -> Html:
    """The picture, with a card for each node over it."""
    cards = [
        element("div", _card_html(graph, i), hidden="", role="status", **_classed("cv-card"))
        for i in range(len(graph.nodes))
    ]
    scroll = element("div", _svg(graph, layout, alt), **_classed("cv-scroll"))
    return element("div", scroll, *cards, **_classed("cv-stage"))


# -- SVG ---------------------------------------------------------------------------------------


def _svg(graph: CircuitGraph, layout: Layout, alt: str) -> Html:
    bands = [
        element("rect", **_numbers(x=b.x, y=b.y, width=b.width, height=b.height), rx="4")
        for b in layout.bands
    ]
    leaders = [
        element("line", **_numbers(x1=start, y1=y, x2=end, y2=y), **_classed("cv-leader"))
        for start, end, y in layout.leaders
    ]
    curves = [_curve_svg(graph, edge, curve) for edge, curve in zip(graph.edges, layout.curves)]
    own: dict[int | None, list[Label]] = {}
    for label in layout.labels:
        own.setdefault(label.node, []).append(label)
    nodes = [_node_svg(graph, i, dot, own.get(i, [])) for i, dot in enumerate(layout.dots)]
    weights = [
        element("text", **_numbers(x=dot.x, y=dot.y - dot.radius - 7), **_classed(WEIGHT))
        for dot in layout.dots
    ]
    others = [_label_svg(label) for label in own.get(None, [])]
    legend = [*map(_dot_svg, layout.keys), *map(_sample_svg, layout.samples)]
    size = f"width: 100%; max-width: {layout.width:.0f}px; min-width: {layout.width * 0.7:.0f}px"
    return element(
        "svg",
        element("g", *bands, **_classed("cv-band")),
        *leaders,
        *curves,
        *others,
        *legend,
        *nodes,
        *weights,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {layout.width:.0f} {layout.height:.0f}",
        style=size,
        role="group",
        **{"aria-label": alt},
    )


def _numbers(**values: Number) -> dict[str, str]:
    """Attributes, to a tenth of a pixel."""
    return {name: f"{value:.1f}" for name, value in values.items()}


def _classed(names: str) -> dict[str, str]:
    return {"class": names}


def _label_svg(label: Label) -> Html:
    attributes = _numbers(x=label.x, y=label.y) | {"font-size": f"{label.size:g}"}
    if label.bold:
        attributes["font-weight"] = "bold"
    if label.centred:
        attributes["text-anchor"] = "middle"
    return element("text", label.text, **attributes, **_classed("cv-halo"))


def _dot_svg(dot: Dot) -> Html:
    look = {"fill": dot.look.colour, "class": "cv-dot"}
    if not dot.corners:
        return element("circle", **_numbers(cx=dot.x, cy=dot.y, r=dot.radius), **look)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in dot.corners)
    return element("polygon", points=points, **look)


def _node_svg(graph: CircuitGraph, i: int, dot: Dot, labels: Sequence[Label]) -> Html:
    """A dot and its labels: one thing to hover over, to reach with Tab, and to click."""
    boxes = [dot.box, *(label.box for label in labels)]
    x, y = min(box.x for box in boxes) - 2, min(box.y for box in boxes) - 2
    right = max(box.x + box.width for box in boxes) + 2
    bottom = max(box.y + box.height for box in boxes) + 2
    place = _numbers(x=x, y=y, width=right - x, height=bottom - y)
    hit = element("rect", **place, rx="4", **_classed("cv-hit"))
    return element(
        "g",
        hit,
        _dot_svg(dot),
        *map(_label_svg, labels),
        tabindex="0",
        role="button",
        **_classed("cv-node"),
        **{"data-node": str(i), "aria-pressed": "false", "aria-label": _spoken(graph, i)},
    )


def _spoken(graph: CircuitGraph, i: int) -> str:
    """A node in words."""
    node = graph.nodes[i]
    said = [node.full_name, _place(graph, node), node.kind]
    if node.words:
        said.append(node.words)
    if node.effect is not None:
        said.append(f"effect {_signed(node.effect)}")
    n_in, n_out = len(graph.inputs(i)), len(graph.outputs(i))
    return ", ".join(said) + f". Inputs: {n_in}, outputs: {n_out}."


def _place(graph: CircuitGraph, node: GraphNode) -> str:
    return "at " + " ".join(graph.columns[node.column].split())


def _signed(value: Number) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _curve_svg(graph: CircuitGraph, edge: GraphEdge, curve: Curve) -> Html:
    numbers = [curve.start, curve.leave, *curve.controls, curve.arrive, curve.end]
    start, leave, one, two, arrive, end = (f"{x:.1f} {y:.1f}" for x, y in numbers)
    said = _signed(edge.weight)
    ends = [graph.nodes[i].full_name for i in (edge.source, edge.target)]
    return element(
        "path",
        element("title", f"{ends[0]} → {ends[1]}: {said}"),
        d=f"M {start} L {leave} C {one} {two} {arrive} L {end}",
        **_line_svg(curve),
        **_classed("cv-edge"),
        **{
            "data-source": str(edge.source),
            "data-target": str(edge.target),
            "data-weight": f"{edge.weight:.4f}",
            "data-says": said,
        },
    )


def _sample_svg(sample: Sample) -> Html:
    ends = _numbers(x1=sample.x, y1=sample.y, x2=sample.x + sample.length, y2=sample.y)
    return element("line", **ends, **_line_svg(sample))


def _line_svg(line: Curve | Sample) -> dict[str, str]:
    look = {"stroke": line.colour, "stroke-width": f"{line.width:.1f}"}
    return look | ({"stroke-dasharray": "5 3"} if line.negative else {})


# -- cards, and the table ----------------------------------------------------------------------


def _card_html(graph: CircuitGraph, i: int) -> Html:
    """All that is known of a node: what it is, whom it is joined to, values, contexts, the lens."""
    node = graph.nodes[i]
    pieces = [element("h4", node.full_name), element("p", f"{_place(graph, node)} · {node.kind}")]
    if node.effect is not None:
        said = f" {_signed(node.effect)} ({graph.effect_means})"
        pieces.append(element("p", element("b", "effect"), said))
    for name, edges, other in (
        ("inputs", graph.inputs(i), lambda edge: edge.source),
        ("outputs", graph.outputs(i), lambda edge: edge.target),
    ):
        items = [_joined_html(graph, edge, other(edge)) for edge in edges]
        if items:
            pieces += [element("b", name), element("ul", *items)]
    for name, context in node.prompts.items():
        pieces.append(element("p", element("b", name), " ", context_html(context)))
    if node.card is not None:
        pieces += [lens_html(node.card), element("b", "fires most in"), contexts_html(node.card)]
    return together(*pieces)


def _joined_html(graph: CircuitGraph, edge: GraphEdge, other: int) -> Html:
    """An input or output in a list; its name is a button that leads to it."""
    node = graph.nodes[other]
    name = f"{node.full_name}, {_place(graph, node)}"
    button = element("button", name, type="button", **{"data-node": str(other)})
    weight = {"data-weight": f"{edge.weight:.4f}"}
    return element("li", element("b", _signed(edge.weight)), " ", button, **weight)


def _table_html(graph: CircuitGraph) -> Html:
    """The graph in words: each node, what it is, its effect, and what it passes on to whom."""
    heads = [element("th", name) for name in ("node", "at", "responds to or is", "effect", "to")]
    rows = []
    for i, node in enumerate(graph.nodes):
        passed = [
            f"{graph.nodes[edge.target].full_name} {_place(graph, graph.nodes[edge.target])} "
            f"({_signed(edge.weight)})"
            for edge in graph.outputs(i)
        ]
        cells = [
            node.full_name,
            _place(graph, node).removeprefix("at "),
            node.kind,
            "" if node.effect is None else _signed(node.effect),
            "; ".join(passed),
        ]
        rows.append(element("tr", *(element("td", cell) for cell in cells)))
    table = element("table", element("tr", *heads), *rows)
    summary = element("summary", "The same as a table")
    return element("details", summary, table, **_classed("cv-table"))


# ---------------------------------------------------------------------------------------------
# The twin for print
# ---------------------------------------------------------------------------------------------


def circuit_picture(graph: CircuitGraph, title: str = "") -> Figure:
    """The circuit as a matplotlib figure, from the same layout as the page.

    Args:
        title: the finding. With it, a note below the picture says what lines and dots mean. By
            default neither is drawn: the page writes both.
    """
    layout = lay_out(graph)
    room = layout.width - 4 * MARGIN
    heading = wrapped(title, TITLE_SIZE, room)
    note = wrapped(_note(graph), NOTE_SIZE, room) if title else []
    above = 1.4 * TITLE_SIZE * len(heading)
    height = above + layout.height + 1.4 * NOTE_SIZE * len(note)
    figure = plt.figure(figsize=(layout.width / PIXELS, height / PIXELS))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, layout.width)
    axes.set_ylim(height - above, -above)
    axes.set_axis_off()
    for i, line in enumerate(heading):
        y = -above + 1.4 * TITLE_SIZE * (i + 0.7)
        _draw_label(axes, Label(line, layout.width / 2, y, TITLE_SIZE, centred=True))
    for i, line in enumerate(note):
        y = layout.height + 1.4 * NOTE_SIZE * (i + 0.2)
        _draw_label(axes, Label(line, MARGIN, y, NOTE_SIZE))
    for band in layout.bands:
        axes.add_patch(
            Rectangle((band.x, band.y), band.width, band.height, color="black", alpha=0.045, lw=0)
        )
    for start, end, y in layout.leaders:
        axes.plot([start, end], [y, y], color="black", alpha=0.3, linewidth=0.5, zorder=1)
    for curve in layout.curves:
        _draw_curve(axes, curve)
    for sample in layout.samples:
        x = [sample.x, sample.x + sample.length]
        axes.plot(x, [sample.y, sample.y], **_line_style(sample), solid_capstyle="butt")
    for dot in (*layout.dots, *layout.keys):
        _draw_dot(axes, dot)
    for label in layout.labels:
        _draw_label(axes, label)
    return figure


def _line_style(line: Curve | Sample) -> dict:
    dashes = (0, (3, 1.5)) if line.negative else "-"
    return {"color": line.colour, "linewidth": _points(line.width), "linestyle": dashes}


def _points(pixels: Number) -> float:
    return pixels * 72 / PIXELS


def _draw_curve(axes: Axes, curve: Curve) -> None:
    corners = [curve.start, curve.leave, *curve.controls, curve.arrive, curve.end]
    codes = [Line.MOVETO, Line.LINETO, Line.CURVE4, Line.CURVE4, Line.CURVE4, Line.LINETO]
    axes.add_patch(
        PathPatch(Line(corners, codes), fill=False, alpha=0.75, zorder=2, **_line_style(curve))
    )


def _draw_dot(axes: Axes, dot: Dot) -> None:
    look = {"facecolor": dot.look.colour, "edgecolor": "white", "linewidth": 0.7, "zorder": 3}
    if dot.corners:
        axes.add_patch(Polygon(dot.corners, closed=True, **look))
    else:
        axes.add_patch(Circle((dot.x, dot.y), dot.radius, **look))


def _draw_label(axes: Axes, label: Label) -> None:
    axes.text(
        label.x,
        label.y,
        label.text,
        fontsize=_points(label.size),
        fontweight="bold" if label.bold else "normal",
        ha="center" if label.centred else "left",
        va="center_baseline",
        zorder=4,
        parse_math=False,
    )


def _small_png(figure: Figure) -> bytes:
    """The figure as a PNG of 64 colours, a third of the size. Closes it."""
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=DPI)
    plt.close(figure)
    Image.open(whole).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()
