"""GLOSSARY.md: each term in three languages, in order, linked, and in use in the course.

A notebook may list key terms: a paragraph that begins with "**Key terms**" and separates them by
commas, semicolons or middle dots, or that is followed by a list. Each has to be in the glossary.
"""

import ast
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path.name[:2]: path for path in sorted((ROOT / "solutions").glob("0*.py"))}
PACKAGE = sorted((ROOT / "course_utils").rglob("*.py"))
LINK = re.compile(r"\[Notebook\s+(\d\d)\]\(([^)]+)\)")
HAN, CYRILLIC, LATIN = (
    re.compile("[\u4e00-\u9fff]"),
    re.compile("[а-яё]", re.I),
    re.compile("[a-z]"),
)


@dataclass(frozen=True)
class Entry:
    """A term of the glossary.

    Attributes:
        letter: the section that it stands in.
        term, forms: its heading, without and within the parentheses.
        english, chinese, russian: its three items. The Chinese and the Russian one begin with the
            term in bold.
    """

    letter: str
    term: str
    forms: tuple[str, ...]
    english: str
    chinese: str
    russian: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.term, *self.forms)


def entries_of(text: str) -> list[Entry]:
    """The entries of a glossary's markdown.

    Raises:
        ValueError: an entry has not three items.
    """
    entries = []
    for letter, section in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, flags=re.MULTILINE):
        for block in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
            heading, _, body = block.partition("\n")
            items = [" ".join(item.split()) for item in re.split(r"^- ", body, flags=re.M)[1:]]
            if len(items) != 3:
                raise ValueError(f"{heading}: three items are wanted, not {len(items)}.")
            inside = re.fullmatch(r"(.+?) \((.+)\)", heading)
            term, forms = inside.groups() if inside else (heading, "")
            names = tuple(re.split(r"[,;] ", forms)) if forms else ()
            entries.append(Entry(letter, term, names, *items))
    return entries


TEXT = (ROOT / "GLOSSARY.md").read_text()
ENTRIES = entries_of(TEXT)
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.term)


def plain(text: str) -> str:
    """Lower case, without emphasis, comment signs and hyphens, with single spaces."""
    text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    return " ".join(re.sub(r"[*`]", "", text).replace("-", " ").casefold().split())


def pattern(term: str) -> str:
    """A regular expression for a term and its plural, in plain text."""
    word = plain(term)
    if word.endswith("y"):
        return rf"{re.escape(word[:-1])}(?:y|ies)"
    return rf"{re.escape(word)}(?:s|es)?"


def occurs(term: str, text: str) -> bool:
    """Whether a term, or its plural, stands in a plain text as words of its own."""
    return re.search(rf"(?<!\w){pattern(term)}(?!\w)", text) is not None


def docstrings(path: Path) -> str:
    """All docstrings of a module, also those under constants."""
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return "\n".join(strings)


NOTEBOOKS = {number: plain(path.read_text()) for number, path in SOURCES.items()}
COURSE = " ".join(
    [
        *NOTEBOOKS.values(),
        plain((ROOT / "README.md").read_text()),
        *(plain(docstrings(path)) for path in PACKAGE),
    ]
)


def key_terms(text: str) -> list[str]:
    """What the "**Key terms**" lists of a notebook's source name."""
    text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    lists = re.findall(
        r"\*\*Key terms\W*\*\*:?((?:.*\n?)(?:(?!\s*$|[%*#]).*\n)*(?:\s*^[-*] .*\n(?:  .*\n)*)*)",
        text,
        flags=re.MULTILINE,
    )
    terms = []
    for found in lists:
        found = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", found)  # a link's text
        found = re.sub(r"^[-*] ", ", ", found, flags=re.MULTILINE)
        parts = re.split(r"[,;·](?![^()]*\))", " ".join(found.split()))
        terms += [part.strip(" .*`_:") for part in parts]
    return [term for term in terms if term]


def is_known(term: str) -> bool:
    """Whether the glossary has a term or its plural, under its name, a form or its heading."""
    headings = [f"{entry.term} ({', '.join(entry.forms)})" for entry in ENTRIES if entry.forms]
    names = itertools.chain(headings, *(entry.names for entry in ENTRIES))
    return any(re.fullmatch(pattern(name), plain(term)) for name in names)


def test_terms_are_in_alphabetical_order_each_under_its_letter_and_none_comes_twice():
    terms = [entry.term.casefold() for entry in ENTRIES]
    assert len(terms) > 100 and terms == sorted(set(terms))
    assert all(entry.term[0].upper() == entry.letter for entry in ENTRIES)
    assert len(ENTRIES) == TEXT.count("\n### ")  # nothing was left out in reading


def test_no_name_stands_for_two_terms():
    names = [plain(name) for entry in ENTRIES for name in entry.names]
    assert sorted(names) == sorted(set(names))


def test_every_section_can_be_jumped_to():
    letters = list(dict.fromkeys(entry.letter for entry in ENTRIES))
    assert re.findall(r"\[(.)\]\(#(.)\)", TEXT) == [(x, x.lower()) for x in letters]


@each_entry
def test_an_entry_has_one_sentence_in_each_of_three_languages(entry):
    english = LINK.sub("", entry.english).strip()
    assert english.endswith((".", ".*", ".**")) and LATIN.search(english)
    assert not HAN.search(english) and not CYRILLIC.search(english)
    chinese = re.fullmatch(r"\*\*(.+?)\*\*：(.+)。", entry.chinese)
    assert chinese and HAN.search(chinese[1] + chinese[2]) and HAN.search(chinese[2])
    assert not CYRILLIC.search(entry.chinese)
    russian = re.fullmatch(r"\*\*(.+?)\.\*\* (.+)\.", entry.russian)
    assert russian and CYRILLIC.search(russian[2]) and not HAN.search(entry.russian)
    for sentence in (english[:-1], chinese[2], russian[2]):
        assert not re.search(r"[.!?] [A-ZА-Я]|。", sentence), "one sentence, not two"


def test_no_russian_word_has_a_latin_letter_in_it():
    words = re.findall(r"\w+", TEXT)
    assert not [word for word in words if CYRILLIC.search(word) and re.search("[a-zA-Z]", word)]


@each_entry
def test_an_entry_links_to_a_notebook_that_shows_the_term(entry):
    [(number, link)] = LINK.findall(entry.english)
    assert link == f"notebooks/{SOURCES[number].stem}.ipynb" and (ROOT / link).is_file()
    assert any(occurs(name, NOTEBOOKS[number]) for name in entry.names)


@each_entry
def test_a_term_occurs_in_the_course(entry):
    assert any(occurs(name, COURSE) for name in entry.names)


@pytest.mark.parametrize("number", list(SOURCES))
def test_every_key_term_of_a_notebook_is_in_the_glossary(number):
    unknown = [term for term in key_terms(SOURCES[number].read_text()) if not is_known(term)]
    assert not unknown, f"add to GLOSSARY.md, or leave out of notebook {number}: {unknown}"


@pytest.mark.parametrize(
    "text",
    [
        "# **Key terms**: latent, nodes; *error policy (drop, mean, keep)* · SAE.\n#\n# A, b.",
        "# **Key terms:** latent, nodes, error policy (drop, mean,\n# keep), SAE\n\n# %%\na, b",
        "# **Key terms**\n#\n# - [latent](../GLOSSARY.md#latent)\n# - nodes\n"
        "# - error policy (drop,\n#   mean, keep)\n# - **SAE**\n#\n# Text, more.",
    ],
)
def test_key_terms_are_found_in_a_sentence_and_in_a_list(text):
    found = key_terms(text)
    assert found == ["latent", "nodes", "error policy (drop, mean, keep)", "SAE"]
    assert all(map(is_known, found))


def test_a_key_term_that_the_glossary_lacks_is_noticed():
    assert not is_known("latents of joy") and not is_known("lat") and not is_known("policy")
    assert not occurs("node", "an anode") and occurs("dictionary", "two dictionaries")


@pytest.mark.parametrize("items", ["- One.\n- 二。", "- One.\n- 二。\n- Три.\n- Four."])
def test_an_entry_with_a_missing_language_is_refused(items):
    with pytest.raises(ValueError, match="node: three items are wanted"):
        entries_of(f"## N\n\n### node\n\n{items}\n")
