"""Where everything stands in the picture of a circuit: dots, labels, edges, legend.

Pure geometry, in CSS pixels (96 per inch) from the top left corner. The page and the print are
drawn from the same layout, so they show the same picture.

Layers are rows, from the bottom up, and positions are columns. The nodes of one row and column
stand side by side, in several lines where there are many, each with its label to its right. An edge
leaves a dot upwards and arrives from below, and turns in the empty space between two rows. Lines of
dots are shifted against each other, so that these edges pass beside the dots and labels of their
own rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from course_utils.circuits.graph import CircuitGraph
from course_utils.display.style import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, YELLOW, Number

NAME_SIZE, WORDS_SIZE, HEAD_SIZE = 12.0, 11.0, 13.0
"""Of letters, in pixels: of a node's name, of the words below it, of rows and columns. 11 pixels
are 8.25 points."""
WIDEST = 980.0
"""How wide a picture may become before its nodes are put into more lines."""
MOST_LABELLED = 80
"""With more nodes than this, nodes have no labels: their cards say what they are."""
WORDS_WIDTH = 124.0
"""Words that are wider than this are cut short."""

SMALL, LARGE = 5.0, 9.0
"""Radii of dots: without an effect, and with the largest effect of the picture."""
PLAIN_RADIUS = 6.5
"""Where no node has an effect."""
SHIFT = 17.0
"""Between the dots of neighbouring lines, to the side: wider than a dot and an edge."""
LINE, ROW_GAP, PADDING, MARGIN = 38.0, 52.0, 9.0, 12.0
SLOT_GAP, COLUMN_GAP = 20.0, 18.0
THIN, THICK = 1.0, 6.0
"""Widths of edges: of weight 0, and of the largest weight of the picture."""

KIND_COLOURS = (ORANGE, BLUE, GREEN, YELLOW, PINK, SKY, BLACK)
"""Of kinds of nodes: sky blue, the neighbour of blue, comes late."""
POSITIVE, NEGATIVE = "#6B7A8F", "#B5367A"
"""Of edges: slate for positive weights, magenta (dashed, too) for negative ones."""

Point = tuple[Number, Number]


def _turned(corners: int, start: Number) -> tuple[Point, ...]:
    """A regular polygon with its first corner at ``start`` degrees."""
    angles = [math.radians(start + 360 * i / corners) for i in range(corners)]
    return tuple((math.cos(angle), math.sin(angle)) for angle in angles)


_PLUS = (
    (-0.4, -1), (0.4, -1), (0.4, -0.4), (1, -0.4), (1, 0.4), (0.4, 0.4),
    (0.4, 1), (-0.4, 1), (-0.4, 0.4), (-1, 0.4), (-1, -0.4), (-0.4, -0.4),
)  # fmt: skip
SHAPES: tuple[tuple[Point, ...], ...] = (
    (),  # a circle
    tuple((0.9 * x, 0.9 * y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))),
    tuple((1.2 * x, 1.2 * y) for x, y in _turned(4, 0)),
    tuple((1.2 * x, 1.2 * y) for x, y in _turned(3, -90)),
    tuple((1.2 * x, 1.2 * y) for x, y in _turned(3, 90)),
    _PLUS,
    tuple(((x - y) * 0.75, (x + y) * 0.75) for x, y in _PLUS),
)
"""Of kinds: corners of a shape of radius 1 around (0, 0), y downwards; no corners for a circle."""


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: Number, *, bold: bool = False) -> float:
    """How wide a text is, in the unit of ``size``, in matplotlib's own font.

    That font is wider than most that a browser would take.
    """
    if not text.strip():
        return 0.0
    font = FontProperties(weight="bold" if bold else "normal")
    x = TextPath((0, 0), text, size=size, prop=font).vertices[:, 0]
    return float(x.max() - min(0.0, x.min()))


def wrapped(text: str, size: Number, width: Number) -> list[str]:
    """A text in lines that are no wider than ``width``, unless a single word is."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True)
class Box:
    """A rectangle with its upper left corner at (x, y)."""

    x: Number
    y: Number
    width: Number
    height: Number

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common, other than on their edges."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


@dataclass(frozen=True)
class Label:
    """A line of text.

    Attributes:
        text: what it says.
        x, y: the middle of its height, and its left end or (``centred``) its middle.
        size: of the letters, in pixels.
        bold, centred: how it is set.
        node: whose label it is, if a node's.
    """

    text: str
    x: Number
    y: Number
    size: Number
    bold: bool = False
    centred: bool = False
    node: int | None = None

    @property
    def box(self) -> Box:
        """What it covers, in the font of `text_width`."""
        width = text_width(self.text, self.size, bold=self.bold)
        left = self.x - width / 2 if self.centred else self.x
        return Box(left, self.y - 0.58 * self.size, width, 1.16 * self.size)


@dataclass(frozen=True)
class Look:
    """How the nodes of a kind are drawn: a colour, and an index into `SHAPES`."""

    colour: str
    shape: int


@dataclass(frozen=True)
class Dot:
    """A node's place: its centre, its radius and its look."""

    x: Number
    y: Number
    radius: Number
    look: Look

    @property
    def corners(self) -> list[Point]:
        """Of its polygon; empty for a circle."""
        return [
            (self.x + self.radius * x, self.y + self.radius * y) for x, y in SHAPES[self.look.shape]
        ]

    @property
    def box(self) -> Box:
        r = 1.2 * self.radius
        return Box(self.x - r, self.y - r, 2 * r, 2 * r)


@dataclass(frozen=True)
class Curve:
    """An edge's line: straight from ``start`` to ``leave``, a cubic Bézier curve through the
    ``controls`` to ``arrive``, and straight to ``end``.
    """

    start: Point
    leave: Point
    controls: tuple[Point, Point]
    arrive: Point
    end: Point
    width: Number
    negative: bool

    @property
    def colour(self) -> str:
        return NEGATIVE if self.negative else POSITIVE


@dataclass(frozen=True)
class Sample:
    """A line of the legend: an edge from (x, y) to the right."""

    x: Number
    y: Number
    length: Number
    width: Number
    negative: bool

    @property
    def colour(self) -> str:
        return NEGATIVE if self.negative else POSITIVE


@dataclass(frozen=True)
class Layout:
    """The whole picture.

    Attributes:
        width, height: in pixels.
        dots: one for each node, in the graph's order.
        curves: one for each edge, in the graph's order.
        labels: every text: of nodes, rows, columns and the legend.
        bands: the background of each row, from the bottom up.
        keys, samples: the legend's dots and lines.
        leaders: thin lines from dots to labels that stand apart from them: (x, x, y).
    """

    width: Number
    height: Number
    dots: tuple[Dot, ...]
    curves: tuple[Curve, ...]
    labels: tuple[Label, ...]
    bands: tuple[Box, ...]
    keys: tuple[Dot, ...] = ()
    samples: tuple[Sample, ...] = ()
    leaders: tuple[tuple[Number, Number, Number], ...] = ()


def looks_of_kinds(kinds: Sequence[str]) -> dict[str, Look]:
    """A colour and a shape for each kind, in the given order."""
    n_colours, n_shapes = len(KIND_COLOURS), len(SHAPES)
    return {
        kind: Look(KIND_COLOURS[i % n_colours], (i + i // n_colours) % n_shapes)
        for i, kind in enumerate(kinds)
    }


# ---------------------------------------------------------------------------------------------
# Laying it out
# ---------------------------------------------------------------------------------------------


def lay_out(graph: CircuitGraph) -> Layout:
    """Give everything its place."""
    return _LayingOut(graph).layout()


@dataclass
class _Cell:
    """The nodes of one row and column.

    Attributes:
        nodes: in the order in which they stand, column by column of dots.
        lines: how many lines of dots they take.
    """

    nodes: list[int] = field(default_factory=list)
    lines: int = 1

    def slots(self) -> list[list[int]]:
        """The nodes that stand above each other."""
        return [self.nodes[i : i + self.lines] for i in range(0, len(self.nodes), self.lines)]


class _LayingOut:
    def __init__(self, graph: CircuitGraph):
        self.graph = graph
        self.labelled = len(graph.nodes) <= MOST_LABELLED
        self.columns = sorted({node.column for node in graph.nodes})
        self.looks = looks_of_kinds(graph.kinds)
        self.radii = _radii(graph)
        self.names = [_shortened(node.name, NAME_SIZE, bold=True) for node in graph.nodes]
        self.words = [_shortened(node.words, WORDS_SIZE) for node in graph.nodes]
        self.cells: dict[tuple[int, int], _Cell] = {}
        for i, node in enumerate(graph.nodes):
            self.cells.setdefault(
                (node.row, self.columns.index(node.column)), _Cell()
            ).nodes.append(i)
        heads = [text_width(row, HEAD_SIZE) for row in graph.rows]
        self.left = MARGIN + max(heads) + 2 * COLUMN_GAP
        self._choose_lines()
        self._order()

    # -- across ------------------------------------------------------------------------------

    def _choose_lines(self) -> None:
        """As many nodes abreast as fit into `WIDEST`."""
        abreast = max(len(cell.nodes) for cell in self.cells.values())
        while True:
            for cell in self.cells.values():
                cell.lines = math.ceil(len(cell.nodes) / abreast)
            if abreast == 1 or self.left + sum(self._column_widths()) <= WIDEST:
                return
            abreast -= 1

    def _column_widths(self) -> list[Number]:
        widths = []
        for column, place in enumerate(self.columns):
            heading = max(
                text_width(line, HEAD_SIZE) for line in self.graph.columns[place].split("\n")
            )
            cells = [cell for (_, at), cell in self.cells.items() if at == column]
            widths.append(max(heading, *map(self._cell_width, cells)) + 2 * COLUMN_GAP)
        return widths

    def _cell_width(self, cell: _Cell) -> float:
        slots = [self._slot_width(cell, slot) for slot in cell.slots()]
        return sum(slots) + SLOT_GAP * (len(slots) - 1)

    def _slot_width(self, cell: _Cell, slot: Sequence[int]) -> float:
        text = max(
            max(
                text_width(self.names[i], NAME_SIZE, bold=True),
                text_width(self.words[i], WORDS_SIZE),
            )
            for i in slot
        )
        return self._label_offset(cell) + (text if self.labelled else 0.0) + LARGE

    def _label_offset(self, cell: _Cell) -> float:
        """From the dot of a slot's first line to all labels of the slot."""
        return SHIFT * (cell.lines - 1) + LARGE + 5

    def _x(self) -> dict[int, Number]:
        """Where each node stands, across."""
        x: dict[int, Number] = {}
        left = self.left
        for column, width in enumerate(self._column_widths()):
            for (_, at), cell in self.cells.items():
                if at != column:
                    continue
                here = left + (width - self._cell_width(cell)) / 2 + LARGE
                for slot in cell.slots():
                    for line, node in enumerate(slot):
                        x[node] = here + SHIFT * line
                    here += self._slot_width(cell, slot) + SLOT_GAP
            left += width
        return x

    def _order(self, sweeps: int = 4) -> None:
        """Put nodes near what they are joined to (the barycentre heuristic)."""
        joined: dict[int, list[tuple[int, Number]]] = {i: [] for i in range(len(self.graph.nodes))}
        for edge in self.graph.edges:
            joined[edge.source].append((edge.target, abs(edge.weight)))
            joined[edge.target].append((edge.source, abs(edge.weight)))
        for _ in range(sweeps):
            x = self._x()
            wanted = {node: _barycentre(x, node, joined[node]) for node in x}
            for cell in self.cells.values():
                cell.nodes.sort(key=wanted.__getitem__)

    # -- from the top down ---------------------------------------------------------------------

    def layout(self) -> Layout:
        x = self._x()
        right = self.left + sum(self._column_widths())
        lines = [
            max(cell.lines for (row, _), cell in self.cells.items() if row == r)
            if any(row == r for row, _ in self.cells)
            else 1
            for r in range(len(self.graph.rows))
        ]
        heights = [LINE * n + 2 * PADDING for n in lines]
        tops, top = [0.0] * len(heights), MARGIN
        for row in reversed(range(len(heights))):
            tops[row] = top
            top += heights[row] + ROW_GAP
        bottom = top - ROW_GAP
        bands = [Box(MARGIN, tops[r], right - MARGIN, heights[r]) for r in range(len(heights))]
        y: dict[int, Number] = {}
        for (row, _), cell in self.cells.items():
            first = tops[row] + (heights[row] - LINE * cell.lines) / 2 + LINE / 2
            for slot in cell.slots():
                for line, node in enumerate(slot):
                    y[node] = first + LINE * line
        dots = [
            Dot(x[i], y[i], self.radii[i], self.looks[node.kind])
            for i, node in enumerate(self.graph.nodes)
        ]
        labels = [*self._node_labels(x, y), *self._row_labels(bands)]
        heads, bottom = self._column_labels(bottom)
        keys, samples, said, bottom = self._legend(bottom, right)
        return Layout(
            width=right + MARGIN,
            height=bottom + MARGIN,
            dots=tuple(dots),
            curves=tuple(self._curves(dots, bands)),
            labels=(*labels, *heads, *said),
            bands=tuple(bands),
            keys=tuple(keys),
            samples=tuple(samples),
            leaders=tuple(_leaders(dots, labels)),
        )

    def _node_labels(self, x: dict[int, Number], y: dict[int, Number]) -> list[Label]:
        if not self.labelled:
            return []
        labels = []
        for cell in self.cells.values():
            for slot in cell.slots():
                left = x[slot[0]] + self._label_offset(cell)
                for node in slot:
                    name, words = self.names[node], self.words[node]
                    up = NAME_SIZE * 0.6 if words else 0.0
                    labels.append(Label(name, left, y[node] - up, NAME_SIZE, bold=True, node=node))
                    if words:
                        down = WORDS_SIZE * 0.7
                        labels.append(Label(words, left, y[node] + down, WORDS_SIZE, node=node))
        return labels

    def _row_labels(self, bands: Sequence[Box]) -> list[Label]:
        return [
            Label(row, MARGIN + COLUMN_GAP / 2, band.y + band.height / 2, HEAD_SIZE)
            for row, band in zip(self.graph.rows, bands)
        ]

    def _column_labels(self, bottom: Number) -> tuple[list[Label], Number]:
        """The columns' headings below the rows, and where they end."""
        labels, left, deepest = [], self.left, 1
        for place, width in zip(self.columns, self._column_widths()):
            lines = self.graph.columns[place].split("\n")
            deepest = max(deepest, len(lines))
            for line, text in enumerate(lines):
                y = bottom + 18 + 1.3 * HEAD_SIZE * line
                labels.append(Label(text, left + width / 2, y, HEAD_SIZE, centred=True))
            left += width
        return labels, bottom + 18 + 1.3 * HEAD_SIZE * deepest

    def _curves(self, dots: Sequence[Dot], bands: Sequence[Box]) -> list[Curve]:
        largest = max((abs(edge.weight) for edge in self.graph.edges), default=1) or 1
        return [
            _curve(
                dots[edge.source],
                dots[edge.target],
                bands[self.graph.nodes[edge.source].row],
                bands[self.graph.nodes[edge.target].row],
                THIN + (THICK - THIN) * abs(edge.weight) / largest,
                edge.weight < 0,
            )
            for edge in self.graph.edges
        ]

    # -- the legend ----------------------------------------------------------------------------

    def _legend(
        self, top: Number, right: Number
    ) -> tuple[list[Dot], list[Sample], list[Label], Number]:
        """Kinds, then edges; in as many lines as they need."""
        keys: list[Dot] = []
        samples: list[Sample] = []
        labels: list[Label] = []
        x, y = MARGIN + LARGE, top + 8
        entries: list[tuple[str, Look | Sample]] = list(self.looks.items())
        largest = max((abs(edge.weight) for edge in self.graph.edges), default=0)
        if largest:
            entries.append((f"weight +{largest:.2f}", Sample(0, 0, 34, THICK, False)))
            half = THIN + (THICK - THIN) / 2
            entries.append((f"+{largest / 2:.2f}", Sample(0, 0, 34, half, False)))
        if any(edge.weight < 0 for edge in self.graph.edges):
            negative = THIN + (THICK - THIN) / 2
            entries.append((f"−{largest / 2:.2f}", Sample(0, 0, 34, negative, True)))
        for text, drawn in entries:
            before = 14.0 if isinstance(drawn, Look) else drawn.length + 8
            width = before + text_width(text, NAME_SIZE)
            if x + width > right and x > MARGIN + LARGE:
                x, y = MARGIN + LARGE, y + 22
            if isinstance(drawn, Look):
                keys.append(Dot(x, y, PLAIN_RADIUS, drawn))
            else:
                samples.append(Sample(x - 4, y, drawn.length, drawn.width, drawn.negative))
            labels.append(Label(text, x + before, y, NAME_SIZE))
            x += width + 26
        return keys, samples, labels, y + 10


def _leaders(dots: Sequence[Dot], labels: Sequence[Label]) -> list[tuple[Number, Number, Number]]:
    """From each dot to its label, where another line's dots stand between the two."""
    left = {label.node: label.x for label in labels if label.node is not None}
    ends = [(dot.x + dot.radius + 3, left[i] - 4, dot.y) for i, dot in enumerate(dots) if i in left]
    return [(start, end, y) for start, end, y in ends if end - start > SHIFT / 2]


def _radii(graph: CircuitGraph) -> list[Number]:
    """By the size of the effect: areas grow with it."""
    effects = [abs(node.effect) for node in graph.nodes if node.effect is not None]
    largest = max(effects, default=0)
    if not largest:
        return [PLAIN_RADIUS] * len(graph.nodes)
    return [
        PLAIN_RADIUS
        if node.effect is None
        else SMALL + (LARGE - SMALL) * math.sqrt(abs(node.effect) / largest)
        for node in graph.nodes
    ]


def _barycentre(x: dict[int, Number], node: int, joined: Sequence[tuple[int, Number]]) -> float:
    """The weighted mean place of a node's neighbours; its own where it has none."""
    total = sum(weight for _, weight in joined)
    if not total:
        return x[node]
    return sum(x[other] * weight for other, weight in joined) / total


def _shortened(text: str, size: Number, *, bold: bool = False) -> str:
    """A text that is no wider than `WORDS_WIDTH`."""
    if text_width(text, size, bold=bold) <= WORDS_WIDTH:
        return text
    while text and text_width(text + "…", size, bold=bold) > WORDS_WIDTH:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def _curve(
    source: Dot, target: Dot, below: Box, above: Box, width: Number, negative: bool
) -> Curve:
    """From the top of one dot to the bottom of another, turning between their rows.

    Edges that do not lead upwards bend over both dots.
    """
    start, end = (source.x, source.y - source.radius), (target.x, target.y + target.radius)
    if above.y + above.height <= below.y:
        leave, arrive = (source.x, below.y), (target.x, above.y + above.height)
        turn = (leave[1] + arrive[1]) / 2
        return Curve(
            start, leave, ((source.x, turn), (target.x, turn)), arrive, end, width, negative
        )
    end = (target.x, target.y - target.radius)
    over = min(start[1], end[1]) - LINE
    return Curve(start, start, ((source.x, over), (target.x, over)), end, end, width, negative)
