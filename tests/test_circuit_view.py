"""The circuit to look into: self-contained, readable without scripts, and the same as in print."""

import itertools
import os
import re
import shutil
import xml.etree.ElementTree as ET
from html import unescape
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits.explain import Context, LatentCard
from course_utils.circuits.graph import CircuitGraph, GraphEdge, GraphNode
from course_utils.display import circuit_view
from course_utils.display.circuit_view import circuit_html, circuit_picture, show_circuit
from course_utils.display.graph_layout import lay_out

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
SVG = "{http://www.w3.org/2000/svg}"
PAIRED = {"div", "p", "script", "style", "details", "summary", "table", "svg", "g", "b", "ul"}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def node(name, row, column, kind, **more):
    card = LatentCard(
        f"latent {name}",
        "says",
        [Context([" the", " roads", " are"], [0.0, 2.0, 0.5], 1)],
        [" are", "</script>"],
        [" is"],
    )
    prompts = {"this prompt": Context(["The", " cars"], [0.0, 1.5], 1)}
    return GraphNode(name, row, column, kind, card=card, prompts=prompts, **more)


def small_graph():
    """Four latents and an answer, an edge of either sign, and one that is weak."""
    nodes = (
        node("11", 0, 1, "plural subject", words="roads, hands", effect=0.8),
        node("12", 0, 2, "neither clearly", words="<b>", effect=-0.1),
        node("21", 1, 1, "plural subject", words="gardens", effect=0.5),
        node("22", 1, 2, "plural <object>", words="kids & co", effect=0.3),
        GraphNode("is − are", 2, 2, "answer"),
    )
    edges = (
        GraphEdge(0, 2, 0.7),
        GraphEdge(0, 3, -0.4),
        GraphEdge(1, 3, 0.12),
        GraphEdge(3, 4, 0.9),
    )
    rows = ("after layer 5", "after layer 11", "answer")
    return CircuitGraph(rows, ("BOS", "subject\n“cars”", "verb"), nodes, edges, "share", "share")


class Reader(HTMLParser):
    """The elements of a page, in order, and whether each that is opened is closed."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.wrong, self.text = [], [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in PAIRED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in PAIRED and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def source_of(page):
    """What waits in the page for its script."""
    [found] = re.findall(r'<script type="text/html" class="cv-source">(.*?)</script>', page, re.S)
    return found


def svg_of(page):
    [svg] = re.findall(r"<svg.*?</svg>", source_of(page), re.S)
    return ET.fromstring(svg)


# -- the page ----------------------------------------------------------------------------------


def test_the_page_asks_nothing_of_the_network():
    page = circuit_html(small_graph(), "finding", "in words")
    known = page.replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(|//\w+\.\w", known)
    for tag, attributes in Reader(page + source_of(page)).elements:
        for name in ("src", "href", "xlink:href", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)


def test_the_page_is_well_formed_and_the_picture_is_valid_xml():
    page = circuit_html(small_graph(), "finding", "in words")
    for part in (page, source_of(page)):
        reader = Reader(part)
        assert not reader.wrong and not reader.open
    assert svg_of(page).tag == f"{SVG}svg"


def test_there_is_one_element_a_node_and_one_an_edge_with_its_weight():
    graph = small_graph()
    svg = svg_of(circuit_html(graph, "finding", "in words"))
    nodes = [g for g in svg.iter(f"{SVG}g") if g.get("class") == "cv-node"]
    assert [g.get("data-node") for g in nodes] == ["0", "1", "2", "3", "4"]
    drawn = [path.attrib for path in svg.iter(f"{SVG}path")]
    assert [(int(e["data-source"]), int(e["data-target"])) for e in drawn] == [
        (edge.source, edge.target) for edge in graph.edges
    ]
    assert [float(e["data-weight"]) for e in drawn] == [edge.weight for edge in graph.edges]
    assert ["stroke-dasharray" in e for e in drawn] == [edge.weight < 0 for edge in graph.edges]


def test_each_node_can_be_reached_by_keyboard_and_is_spoken_of_in_words():
    svg = svg_of(circuit_html(small_graph(), "finding", "in words"))
    nodes = [g for g in svg.iter(f"{SVG}g") if g.get("class") == "cv-node"]
    assert {(g.get("tabindex"), g.get("role")) for g in nodes} == {("0", "button")}
    assert nodes[0].get("aria-label") == (
        "11, at subject “cars”, plural subject, roads, hands, effect +0.80. Inputs: 0, outputs: 2."
    )
    assert svg.get("aria-label") == "in words"


def test_without_scripts_there_are_the_picture_its_words_and_a_table():
    page = circuit_html(small_graph(), "finding", "in words")
    reader = Reader(page)
    [image] = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert image["alt"] == "in words" and image["src"].startswith("data:image/png;base64,")
    rows = [tag for tag, _ in reader.elements if tag == "tr"]
    assert len(rows) == 1 + len(small_graph().nodes)
    assert "finding" in reader.text and "21 at subject “cars” (+0.70)" in reader.text
    assert "22 at verb (−0.40)" in reader.text
    assert "roads, hands" not in reader.text  # what waits for the script is not in the page itself


def test_a_card_says_what_a_node_is_joined_to_and_where_it_fires():
    source = unescape(re.sub(r"<[^>]+>", "", source_of(circuit_html(small_graph(), "t", "a"))))
    for said in ("this prompt", "fires most in", "promotes", "inputs+0.90 22, at verb", "−0.40"):
        assert said in source


@given(st.text(alphabet=st.sampled_from("ab <>&\"'/"), max_size=12))
def test_no_text_becomes_markup(text):
    graph = CircuitGraph(("r",), (text,), (node("1", 0, 0, text + "k", words=text),))
    page = circuit_view._stage_html(graph, lay_out(graph), text)
    known = {"div", "svg", "g", "rect", "text", "circle", "polygon", "path", "title", "line"}
    known |= {"h4", "p", "b", "br", "ul", "ol", "li", "button", "small", "span"}
    assert {tag for tag, _ in Reader(page).elements} <= known


def test_the_page_is_small_and_the_same_each_time():
    pages = [circuit_html(small_graph(), "finding", "in words") for _ in range(2)]
    assert pages[0] == pages[1] and len(pages[0]) < 120_000


def test_it_is_displayed_as_html(monkeypatch):
    shown = []
    monkeypatch.setattr(circuit_view, "display", shown.append)
    show_circuit(small_graph(), "finding", "in words")
    assert shown[0].data == circuit_html(small_graph(), "finding", "in words")


# -- the twin ----------------------------------------------------------------------------------


def test_labels_of_the_twin_do_not_overlap_as_they_are_drawn():
    figure = circuit_picture(small_graph(), "finding")
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in figure.axes[0].texts}
    assert len(boxes) > 10
    for (one, a), (two, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one.get_text(), two.get_text())
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes.items():
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text


def test_the_twin_has_the_pages_labels_in_the_same_places():
    layout = lay_out(small_graph())
    figure = circuit_picture(small_graph(), "finding")
    drawn = [(text.get_text(), *text.get_position()) for text in figure.axes[0].texts]
    own = [(label.text, label.x, label.y) for label in layout.labels]
    assert drawn[-len(own) :] == own
    heading, *note = [text for text, _, _ in drawn[: -len(own)]]
    assert heading == "finding" and " ".join(note).startswith("Edges lead upwards")
    assert min(text.get_fontsize() for text in figure.axes[0].texts) >= 8


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("no Chromium on this machine (on Debian: apt-get install chromium)")
    path = tmp_path_factory.mktemp("view") / "circuit.html"
    # in no html element of its own: what a notebook puts into its page
    path.write_text(f"<!doctype html><meta charset=utf-8>{circuit_html(small_graph(), 't', 'a')}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(path.as_uri())
        page.locator(".cv-live svg").wait_for(timeout=10_000)
        yield page
        browser.close()


def shown_cards(page):
    return page.locator(".cv-card:visible")


@pytest.mark.browser
def test_hovering_shows_a_card_and_a_click_lights_up_inputs_and_outputs(page):
    assert shown_cards(page).count() == 0
    page.locator(".cv-node").nth(3).hover()
    assert "22" in shown_cards(page).inner_text() and "fires most in" in page.inner_text(
        ".cv-card:visible"
    )
    page.locator(".cv-node").nth(3).locator(".cv-dot").click()
    assert page.locator(".cv-edge.cv-on").count() == 3
    assert page.locator(".cv-node.cv-on").count() == 4
    assert page.locator(".cv-weight.cv-on").all_text_contents() == ["−0.40", "+0.12", "+0.90"]
    box, stage = shown_cards(page).bounding_box(), page.locator(".cv-stage").bounding_box()
    assert stage["x"] <= box["x"] and box["x"] + box["width"] <= stage["x"] + stage["width"]
    assert stage["y"] <= box["y"] and box["y"] + box["height"] <= stage["y"] + stage["height"]
    page.keyboard.press("Escape")
    assert page.locator(".cv-on").count() == 0


@pytest.mark.browser
def test_the_slider_hides_weak_edges_and_says_how_many_are_left(page):
    slider = page.locator(".cv-bar input")
    assert page.locator(".cv-bar output").inner_text() == "4 of 4 edges"
    slider.evaluate("s => { s.value = 0.5; s.dispatchEvent(new Event('input')); }")
    assert page.locator(".cv-bar output").inner_text() == "2 of 4 edges"
    assert page.locator(".cv-edge:not(.cv-weak)").count() == 2
    slider.evaluate("s => { s.value = s.min; s.dispatchEvent(new Event('input')); }")


@pytest.mark.browser
def test_tab_and_enter_do_what_the_mouse_does_and_lists_lead_on(page):
    page.locator(".cv-node").first.focus()
    assert "11" in shown_cards(page).locator("h4").inner_text()
    page.keyboard.press("Tab")
    assert "12" in shown_cards(page).locator("h4").inner_text()
    page.keyboard.press("Enter")
    assert page.locator(".cv-node").nth(1).get_attribute("aria-pressed") == "true"
    shown_cards(page).locator("button").click()
    assert page.locator(".cv-node").nth(3).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")


@pytest.mark.browser
def test_a_dark_page_gets_dark_cards_and_paper_gets_the_twin(page):
    view = page.locator(".circuit-view")
    assert view.get_attribute("data-theme") == "light"
    page.evaluate("document.body.style.cssText = 'background: #111; color: #eee'")
    page.locator(".cv-node").first.hover()
    assert view.get_attribute("data-theme") == "dark"
    page.evaluate("document.body.style.cssText = ''")
    assert not page.locator(".cv-still").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".cv-still").is_visible() and not page.locator(".cv-live").is_visible()
    page.emulate_media(media="screen")


@pytest.mark.browser
def test_the_browser_asked_for_nothing_else_and_no_script_failed(page):
    asked = [url for url in page.asked if not url.startswith("data:")]
    assert len(asked) == 1 and asked[0].startswith("file:") and not page.errors
