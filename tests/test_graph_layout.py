"""The picture of a circuit has a place for everything, and no two things have the same."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.circuits.graph import CircuitGraph, GraphEdge, GraphNode
from course_utils.display import graph_layout
from course_utils.display.graph_layout import MOST_LABELLED, WIDEST, lay_out, looks_of_kinds

ROWS = tuple(f"after layer {layer}" for layer in (5, 11, 17))
COLUMNS = ("BOS", "subject\n“athletes”", "near", "second noun\n“car”")


PLACES = st.tuples(st.integers(0, len(ROWS) - 1), st.integers(0, len(COLUMNS) - 1))
WORDS = st.sampled_from(["", "roads, hands", "→ specialise, serve", "W" * 40])
NODES = st.lists(st.tuples(PLACES, WORDS), min_size=1, max_size=24)
PAIRS = st.tuples(st.integers(0, 23), st.integers(0, 23))
EDGES = st.dictionaries(PAIRS, st.sampled_from([0.2, -0.5, 1.0]), max_size=20)


def graph_of(cells, weights):
    """A graph of these nodes, with those edges that lead upwards."""
    nodes = tuple(
        GraphNode(str(1000 + i), row, column, f"kind {i % 4}", text, effect=(i - 2) / 10)
        for i, ((row, column), text) in enumerate(cells)
    )
    edges = tuple(
        GraphEdge(v, w, weight)
        for (v, w), weight in weights.items()
        if max(v, w) < len(nodes) and nodes[v].row < nodes[w].row
    )
    return CircuitGraph(ROWS, COLUMNS, nodes, edges)


few = settings(max_examples=40)


@few
@given(NODES, EDGES)
def test_no_label_touches_another_or_a_dot(cells, weights):
    graph = graph_of(cells, weights)
    layout = lay_out(graph)
    boxes = [label.box for label in layout.labels]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.meets(b)]
    dots = [dot.box for dot in (*layout.dots, *layout.keys)]
    assert not [(a, b) for a in boxes for b in dots if a.meets(b)]
    assert not [(a, b) for a, b in itertools.combinations(dots, 2) if a.meets(b)]


@few
@given(NODES, EDGES)
def test_everything_is_within_the_picture_and_nodes_within_their_rows(cells, weights):
    graph = graph_of(cells, weights)
    layout = lay_out(graph)
    for box in (
        *(label.box for label in layout.labels),
        *(dot.box for dot in layout.dots),
        *layout.bands,
    ):
        assert 0 <= box.x and box.x + box.width <= layout.width
        assert 0 <= box.y and box.y + box.height <= layout.height
    for node, dot in zip(graph.nodes, layout.dots, strict=True):
        band = layout.bands[node.row]
        assert band.y <= dot.box.y and dot.box.y + dot.box.height <= band.y + band.height
    assert [band.y for band in layout.bands] == sorted((b.y for b in layout.bands), reverse=True)


@few
@given(NODES, EDGES)
def test_columns_keep_their_order_and_those_without_nodes_are_left_out(cells, weights):
    graph = graph_of(cells, weights)
    layout = lay_out(graph)
    headings = {label.text: label.x for label in layout.labels if label.centred}
    used = sorted({node.column for node in graph.nodes})
    first_lines = [COLUMNS[column].split("\n")[0] for column in used]
    assert [headings[line] for line in first_lines] == sorted(headings[x] for x in first_lines)
    assert {line for c in used for line in COLUMNS[c].split("\n")} == set(headings)
    by_column = {c: [d.x for n, d in zip(graph.nodes, layout.dots) if n.column == c] for c in used}
    for left, right in itertools.pairwise(used):
        assert max(by_column[left]) < min(by_column[right])


@few
@given(NODES, EDGES)
def test_an_edge_crosses_no_label_in_the_rows_that_it_joins(cells, weights):
    """Where an edge runs straight, beside the dots and labels of its own two rows."""
    graph = graph_of(cells, weights)
    layout = lay_out(graph)
    for edge, curve in zip(graph.edges, layout.curves, strict=True):
        for (x, y1), (_, y2) in ((curve.start, curve.leave), (curve.arrive, curve.end)):
            low, high = min(y1, y2), max(y1, y2)
            for label in layout.labels:
                box = label.box
                beside = x + curve.width / 2 <= box.x or box.x + box.width <= x - curve.width / 2
                if label.node is not None and box.y < high and low < box.y + box.height:
                    assert beside, (edge, label)


def test_an_edge_begins_at_the_top_of_one_dot_and_ends_at_the_foot_of_the_other():
    nodes = (GraphNode("1", 0, 1, "k"), GraphNode("2", 1, 3, "k"))
    layout = lay_out(CircuitGraph(ROWS, COLUMNS, nodes, (GraphEdge(0, 1, -0.5),)))
    [curve], (source, target) = layout.curves, layout.dots
    assert curve.start == (source.x, source.y - source.radius)
    assert curve.end == (target.x, target.y + target.radius)
    assert curve.negative and curve.colour == graph_layout.NEGATIVE


def test_edges_are_the_wider_the_stronger_and_dots_the_larger():
    nodes = tuple(GraphNode(str(i), i, 1, "k", effect=e) for i, e in enumerate((0.9, -0.4, 0.1)))
    edges = (GraphEdge(0, 1, 0.9), GraphEdge(1, 2, -0.3))
    layout = lay_out(CircuitGraph(ROWS, COLUMNS, nodes, edges))
    assert layout.curves[0].width == graph_layout.THICK > layout.curves[1].width
    radii = [dot.radius for dot in layout.dots]
    assert radii == sorted(radii, reverse=True) and radii[0] == graph_layout.LARGE


def test_many_nodes_at_one_place_stand_in_lines_and_the_picture_stays_narrow():
    places = [(i % 2, 3 if i % 3 == 0 else 1) for i in range(60)]
    nodes = tuple(GraphNode("1000", *place, "k", "words") for place in places)
    layout = lay_out(CircuitGraph(ROWS, COLUMNS, nodes))
    assert layout.width <= WIDEST + 20
    crowd = MOST_LABELLED + 1
    many = tuple(GraphNode(str(i), 0, 1, "k", "words") for i in range(crowd))
    bare = lay_out(CircuitGraph(ROWS, COLUMNS, many))
    assert not [label for label in bare.labels if label.node is not None]
    assert len({(dot.x, dot.y) for dot in bare.dots}) == crowd


def test_nodes_stand_near_what_they_are_joined_to():
    nodes = (
        GraphNode("left", 0, 1, "k"),
        GraphNode("right", 0, 3, "k"),
        GraphNode("of right", 1, 1, "k"),
        GraphNode("of left", 1, 1, "k"),
    )
    edges = (GraphEdge(0, 3, 0.5), GraphEdge(1, 2, 0.5))
    layout = lay_out(CircuitGraph(ROWS, COLUMNS, nodes, edges))
    assert layout.dots[3].x < layout.dots[2].x


def test_a_label_that_stands_apart_from_its_dot_has_a_line_to_it():
    nodes = tuple(GraphNode(str(1000 + i), 0, 1, "k", "words, words") for i in range(30))
    layout = lay_out(CircuitGraph(ROWS, COLUMNS, nodes))
    apart = [label for label in layout.labels if label.bold and label.node is not None]
    gaps = {label.node: label.x - layout.dots[label.node].x for label in apart}
    assert max(gaps.values()) > 2 * min(gaps.values()) > 0
    far = [i for i, gap in gaps.items() if gap > min(gaps.values()) + 1]
    assert {y for _, _, y in layout.leaders} == {layout.dots[i].y for i in far}
    assert len(layout.leaders) == len(far)


def test_kinds_look_different():
    looks = looks_of_kinds([f"kind {i}" for i in range(20)])
    assert len({(look.colour, look.shape) for look in looks.values()}) == 20


def test_letters_have_8_points_or_more():
    sizes = (graph_layout.NAME_SIZE, graph_layout.WORDS_SIZE, graph_layout.HEAD_SIZE)
    assert min(sizes) * 72 / 96 >= 8


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_text_has_no_width(text):
    assert graph_layout.text_width(text, 12) == 0
