"""Everything that is shown as HTML is escaped, and coloured by its own numbers."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits.explain import Context, LatentCard
from course_utils.display import html
from course_utils.display.html import Html, element, together

CARD = LatentCard(
    "layer 5 · latent 7",
    "plural <nouns>",
    [Context(["The", " <b>", " are"], [0.0, 1.0, 2.0], 2)],
    [" are"],
    [" is"],
    {"plural": {"noun": 2.0, "verb": -1.0}},
)
TEXTS = st.text(alphabet=st.sampled_from("ab <>&\"'/=;\n"), max_size=20)


class Reader(HTMLParser):
    """The elements of a page, and the text in them, as a browser reads them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.names, self.attributes, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


@given(TEXTS, TEXTS)
def test_any_text_and_any_attribute_comes_back_as_it_was(text, title):
    page = Reader(element("p", text, title=title))
    assert page.names == ["p"] and page.text == text and page.attributes == [{"title": title}]


@given(TEXTS)
def test_elements_in_elements_are_not_escaped_again(text):
    page = Reader(together(element("p", element("b", text), text), Html("<br>")))
    assert page.names == ["p", "b", "br"] and page.text == 2 * text


@given(TEXTS, TEXTS, st.lists(st.tuples(TEXTS, st.floats(-1, 5)), min_size=1, max_size=5))
def test_no_text_of_a_card_becomes_markup(name, says, tokens):
    texts, values = [token for token, _ in tokens], [value for _, value in tokens]
    fires = {name: dict(tokens)}
    card = LatentCard(name, says, [Context(texts, values, 0)], texts, texts[::-1], fires)
    known = {"h4", "p", "b", "br", "table", "tr", "th", "td", "ol", "li", "span", "small"}
    assert set(Reader(html.card_html(card)).names) <= known


@given(TEXTS, st.lists(st.tuples(TEXTS, st.floats(-1, 5)), max_size=5))
def test_no_text_of_an_answer_becomes_markup(says, tokens):
    texts, values = [token for token, _ in tokens], [value for _, value in tokens]
    page = Reader(html.answer_html(texts, values, [(text, 0.5) for text in texts], says))
    assert set(page.names) <= {"p", "span", "br", "table", "tr", "td", "code", "div"}
    shown = "".join(texts).replace("\n", "⏎").replace(" ", "\xa0")
    assert page.text.startswith(says + shown)


def test_a_latents_card_shows_what_is_known():
    page = html.card_html(CARD)
    assert "plural &lt;nouns&gt;" in page and "&lt;b&gt;" in page
    assert "<b> are</b>" in page and "<small>(2.0)</small>" in page
    assert "<b>promotes</b> &#x27; are&#x27;" in page and "&#x27; is&#x27;" in page
    assert "fires in none" not in page
    assert "fires in none of the texts" in html.card_html(LatentCard("x", "", [], [], []))


def test_a_card_is_the_more_orange_the_more_the_latent_fires():
    page = html.card_html(CARD)
    shade = r"rgba\(213, 94, 0, ([\d.]+)\)\">(?:<b>)?([^<]*)"
    shades = {text: float(opacity) for opacity, text in re.findall(shade, page)}
    assert shades == {" &lt;b&gt;": 0.28, " are": 0.55, "2.00": 0.55, "-1.00": 0.0}


def shades_of(page):
    """How opaque the orange of each token is, by the token."""
    return {
        token: float(shade)
        for shade, token in re.findall(r'rgba\(213, 94, 0, ([\d.]+)\)">(.*?)</span>', page)
    }


def test_an_answers_tokens_are_coloured_by_their_own_strongest_or_by_a_value_that_prompts_share():
    tokens, values = ["'", "Ann", "']\n"], [0.0, 4.0, -1.0]
    page = html.answer_html(tokens, values, [("Trace", 0.75)], "Python: <KeyError>")
    assert shades_of(page) == {"&#x27;": 0, "Ann": 0.6, "&#x27;]⏎": 0}
    assert "&lt;KeyError&gt;" in page and "0.75" in page and 'title="4.00"' in page
    assert shades_of(html.answer_html(tokens, values, [], "", darkest=16.0))["Ann"] == 0.15
    assert shades_of(html.answer_html(tokens, values, [], "", darkest=2.0))["Ann"] == 0.6
    assert set(shades_of(html.answer_html(tokens, [0.0, 0.0, 0.0], [], "")).values()) == {0}


def test_a_latent_that_is_below_zero_everywhere_is_left_plain():
    """It had the darkest orange: a negative value over a negative strongest one is positive."""
    assert shades_of(html.answer_html(["a", "b"], [-1.0, -2.0], [], "")) == {"a": 0, "b": 0}


def test_a_likely_tokens_bar_is_as_long_as_it_is_likely():
    page = html.answer_html([], [], [("a", 0.5), ("b", 0.25)], "")
    assert re.findall(r"width: ([\d.]+)em", page) == ["6.00", "3.00"]


@pytest.fixture
def shown(monkeypatch):
    """What is displayed."""
    pages = []
    monkeypatch.setattr(html, "display", lambda page: pages.append(page.data))
    return pages


def test_a_coloured_prompt_shows_every_token_with_its_value(shown):
    html.coloured_prompt(["<bos>", "The", "athletes"], [0, 1, 2.5])
    page = Reader(shown[0])
    assert page.text == " <bos> The athletes"
    assert [one["title"] for one in page.attributes if "title" in one] == ["0.00", "1.00", "2.50"]
    assert list(shades_of(shown[0]).values()) == [0.0, 0.24, 0.6]


def test_coloured_contexts_have_a_line_each_with_the_peak_in_bold(shown):
    contexts = [
        Context(["The", " athletes"], [0.0, 2.0], 1),
        Context([" are", "\n"], [1.0, 0.5], 0),
    ]
    html.coloured_contexts(contexts)
    [page] = shown
    assert Reader(page).names.count("li") == 2 and Reader(page).text == "The athletes are⏎"
    assert "<b> athletes</b>" in page and "<b> are</b>" in page and page.count("<b>") == 2


def test_coloured_tokens_work_on_a_page_without_a_network(shown):
    html.coloured_prompt(["The"], [1.0])
    html.coloured_contexts([Context(["The", " <script>"], [0.0, 2.0], 1)])
    for page in shown:
        assert set(Reader(page).names) <= {"ol", "li", "span", "b"} and len(page) < 2000
        assert "http" not in page and not {"src", "href"} & {
            key for attributes in Reader(page).attributes for key in attributes
        }


@given(st.lists(st.tuples(TEXTS, st.floats(-1, 5)), max_size=5))
def test_no_text_of_coloured_tokens_becomes_markup(tokens):
    texts, values = [token for token, _ in tokens], [value for _, value in tokens]
    page = Reader(html.tokens_html(texts, values, 0))
    assert set(page.names) <= {"span", "b"} and page.text == "".join(texts).replace("\n", "⏎")
