"""Interpreter sessions as prompts: how they are written, what Python says to them, and what is
taken from a reader's text.
"""

import ast
import random
import re

import pytest
from conftest import session_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from course_utils.prompts.sessions import (
    DICTIONARIES,
    KEYS,
    LISTS,
    MAX_ENTRIES,
    MAX_PROMPT_TOKENS,
    MISSING,
    N_ENTRIES,
    QUOTES,
    Session,
    SessionError,
    list_session,
    missing_key,
    quoted,
    read_session,
    with_key,
)

SPLITS = ("train", "dev", "test")
BOB = (("'Bob'", "1"), ("'Max'", "4"))


def keys_of(session: Session) -> list[str]:
    return [ast.literal_eval(key) for key, _ in session.entries]


def read(dictionary: str, query: str = "Ann", **options) -> Session:
    return read_session(dictionary, query, session_tokenizer(), **options)


# ---------------------------------------------------------------------------------------------
# Sessions
# ---------------------------------------------------------------------------------------------


def test_a_prompt_is_what_one_sees_in_the_interpreter():
    assert Session(BOB, "'Ann'").prompt == ">>> age = {'Bob': 1, 'Max': 4}\n>>> age['Ann']\n"


def test_lines_before_and_between_and_a_comment_stand_where_they_are_typed():
    session = Session(
        BOB,
        "'Ann'",
        "seat",
        before=("x = 3", "y = 4"),
        between=("del seat['Bob']",),
        comment="without Ann",
    )
    assert session.prompt == (
        ">>> x = 3\n"
        ">>> y = 4\n"
        ">>> seat = {'Bob': 1, 'Max': 4}  # without Ann\n"
        ">>> del seat['Bob']\n"
        ">>> seat['Ann']\n"
    )


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (Session(BOB, "'Ann'"), "Trace"),
        (Session(BOB, "'bob'"), "Trace"),
        (Session(BOB, "'Max'"), "4"),
        (Session((("'Bob'", "'Kim'"),), "'Bob'"), "'Kim'"),
        (Session((("'B' 'ob'", "7"),), "'Bob'"), "7"),
        (Session((("'\\x42ob'", "7"),), "'Bob'"), "7"),
        (Session((*BOB, ("'Bob'", "9")), "'Bob'"), "9"),
        (Session(BOB, "'Bob'", between=("del age['Bob']",)), "Trace"),
        (Session(BOB, "'Ann'", between=("age.update(Ann=3)",)), "3"),
        (Session(BOB, "b'Bob'"), "Trace"),
        (Session(BOB, "'Ann'", before=("rank = {'Ann': 5}",)), "Trace"),
        (Session(BOB, "'Ann'", before=("age = {'Ann': 5}",)), "Trace"),
        (Session(BOB, "'Ann'", comment="'Ann': 2"), "Trace"),
        (Session(BOB, "'Max'", "seat"), "4"),
    ],
)
def test_the_outcome_is_what_python_says(session, expected):
    assert session.outcome() == expected
    assert MISSING == "Trace"


def test_only_a_missing_key_counts_as_missing():
    with pytest.raises(NameError):
        Session(BOB, "Ann").outcome()


def test_an_entry_is_changed_in_a_copy():
    session = Session(BOB, "'Ann'", comment="no")
    assert (
        session.with_entry(1, "'Ann'").prompt
        == ">>> age = {'Bob': 1, 'Ann': 4}  # no\n>>> age['Ann']\n"
    )
    assert session.with_entry(0, "'Ann'", "8").entries == (("'Ann'", "8"), ("'Max'", "4"))
    assert session.entries == BOB


# ---------------------------------------------------------------------------------------------
# Those that are made
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [KEYS, DICTIONARIES, LISTS], ids=["keys", "dictionaries", "lists"]
)
def test_no_word_is_in_two_splits_nor_twice_in_one(names):
    assert tuple(names) == SPLITS
    words = [word.lower() for split in SPLITS for word in names[split]]
    assert len(words) == len(set(words)) >= 36
    assert min(map(len, names.values())) >= 11


def test_no_variable_is_a_key_nor_a_variable_of_another_split():
    keys = {key.lower() for split in SPLITS for key in KEYS[split]}
    variables = {split: {*DICTIONARIES[split], *LISTS[split]} for split in SPLITS}
    for split in SPLITS:
        assert not variables[split] & keys
        others = {name for other in SPLITS if other != split for name in variables[other]}
        assert not variables[split] & others


def test_every_name_can_be_written_as_a_keyword_argument_and_a_variable():
    for names in (KEYS, DICTIONARIES, LISTS):
        for split in SPLITS:
            for word in names[split]:
                assert eval(f"dict({word}=1)") == {word: 1}


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_key_is_not_among_five_keys_of_which_none_begins_another(split):
    sessions = [
        missing_key(KEYS[split], DICTIONARIES[split], random.Random(seed)) for seed in range(300)
    ]
    for session in sessions:
        names = [*keys_of(session), ast.literal_eval(session.query)]
        assert len(session.entries) == N_ENTRIES == 5 and set(names) <= set(KEYS[split])
        assert len(set(names)) == 6
        assert not [
            (a, b)
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j and a.startswith(b)
        ]
        values = [value for _, value in session.entries]
        assert len(set(values)) == 5 and all(re.fullmatch(r"\d", value) for value in values)
        assert session.variable in DICTIONARIES[split] and not (
            session.before or session.between or session.comment
        )
        assert session.outcome() == MISSING
    assert {session.variable for session in sessions} == set(DICTIONARIES[split])
    asked = {session.query for session in sessions}
    assert asked <= set(map(quoted, KEYS[split])) and len(asked) > 0.9 * len(KEYS[split])


def test_names_that_begin_others_are_never_asked_for_together():
    """Of Jim, Jimmy and five others, six are wanted: one of the two stays away."""
    keys = ("Jim", "Jimmy", "Ann", "Bob", "Max", "Kim", "Tom")
    seen = set()
    for seed in range(60):
        session = missing_key(keys, ("age",), random.Random(seed))
        names = {*keys_of(session), ast.literal_eval(session.query)}
        assert not {"Jim", "Jimmy"} <= names
        seen |= names
    assert seen == set(keys)


def test_a_seeded_generator_makes_the_same_session_whatever_else_is_random():
    random.seed(1)
    make = lambda seed: missing_key(KEYS["train"], DICTIONARIES["train"], random.Random(seed))  # noqa: E731
    make_list = lambda seed: list_session(LISTS["train"], random.Random(seed))  # noqa: E731
    one, one_list = make(7), make_list(7)
    random.seed(2)
    assert make(7) == one != make(8) and make_list(7) == one_list != make_list(8)


def test_with_key_puts_the_queried_key_in_place_of_one_other_and_keeps_its_value():
    places = set()
    for seed in range(60):
        rng = random.Random(seed)
        missing = missing_key(KEYS["dev"], DICTIONARIES["dev"], rng)
        there, index = with_key(missing, rng)
        assert [i for i in range(5) if there.entries[i] != missing.entries[i]] == [index]
        assert there.entries[index] == (missing.query, missing.entries[index][1])
        assert there.outcome() == missing.entries[index][1] and there.query == missing.query
        places.add(index)
    assert places == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("split", SPLITS)
def test_the_answers_of_a_list_session_are_what_python_says(split):
    asked = set()
    for seed in range(200):
        beyond, within, answer = list_session(LISTS[split], random.Random(seed))
        for prompt, expected in ((beyond, MISSING), (within, answer)):
            head, query = re.fullmatch(r">>> (\w+ = \[.*\])\n>>> (\w+\[\d\])\n", prompt).groups()
            names: dict = {}
            exec(head, names)
            try:
                assert repr(eval(query, names)) == expected
            except IndexError:
                assert expected == MISSING
            asked.add(int(query[-2]))
        [items] = [value for name, value in names.items() if name != "__builtins__"]
        assert len(items) == 5 == len(set(items)) and beyond.split("[")[:2] == within.split("[")[:2]
        assert within.split()[1] in LISTS[split]
    assert asked == set(range(10))


# ---------------------------------------------------------------------------------------------
# What a reader types
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{'Bob': 1, 'Ann': 2}", "{'Bob': 1, 'Ann': 2}"),
        ("{\"Bob\": 1, 'Ann': 2}", "{\"Bob\": 1, 'Ann': 2}"),
        ("  {'Bob':1,'Ann' : 2 , }  \n", "{'Bob': 1, 'Ann': 2}"),
        ("{'Bob': 1,\n 'Mary Ann': 2,\n}", "{'Bob': 1, 'Mary Ann': 2}"),
        ("{\r\n  'Bob':\r\n 1}\r\n", "{'Bob': 1}"),
        ("{'Bob': 'Ann', \"Kim\": \"it's\"}", "{'Bob': 'Ann', \"Kim\": \"it's\"}"),
        ("{\"O'Neil\": 1, 'O\\'Hara': 2}", "{\"O'Neil\": 1, 'O\\'Hara': 2}"),
        (
            "{'Zoë': 1, 'Łukasz': 2, '小明': 3, '🐍': 4}",
            "{'Zoë': 1, 'Łukasz': 2, '小明': 3, '🐍': 4}",
        ),
        ("age = {'Bob': -1}", "{'Bob': -1}"),
        (">>> age = {'Bob': 1}", "{'Bob': 1}"),
        ("{'B' + 'ob': 1}", "{'B' + 'ob': 1}"),
        (
            "{'Bob': True, 'Kim': 2.5, 'Max': 0x10, 'Tim': 1_000}",
            "{'Bob': True, 'Kim': 2.5, 'Max': 0x10, 'Tim': 1_000}",
        ),
        ("{'A' 'nn': 1, '\\x41nn': 2, r'Ann': 3}", "{'A' 'nn': 1, '\\x41nn': 2, r'Ann': 3}"),
        ("{('Bob'): (1)}", "{'Bob': 1}"),
        ("{'Bob': 1}  # Ann", "{'Bob': 1}"),
        ("{'A'\n'nn': 1}", "{'Ann': 1}"),
        ("{'Ann': 1, 'Ann': 2}", "{'Ann': 1, 'Ann': 2}"),
        ("{'': 1, ' Ann ': 2}", "{'': 1, ' Ann ': 2}"),
    ],
)
def test_a_dictionary_is_taken_as_it_was_typed_on_one_line(text, written):
    session = read(text)
    assert session.dictionary == written
    assert session.prompt == f">>> age = {written}\n>>> age['Ann']\n"
    assert eval(session.dictionary) == eval(
        text.strip().removeprefix(">>> ").removeprefix("age = ")
    )


def test_the_query_is_taken_without_the_quotes_that_it_may_be_typed_with():
    assert {read("{'Bob': 1}", query).query for query in ("Ann", "'Ann'", '"Ann"', "“Ann”")} == {
        "'Ann'"
    }
    assert (
        read("{'Bob': 1}", "O'Neil").query == '"O\'Neil"'
        and read("{'Bob': 1}", "'").query == '"\'"'
    )


def test_a_quote_at_one_end_only_is_a_part_of_the_key():
    for query in ("'tis", "boys'", '"x'):
        assert ast.literal_eval(read("{'Bob': 1}", query).query) == query


def test_a_query_that_is_no_text_is_refused():
    with pytest.raises(SessionError, match="is not text: surrogates not allowed"):
        read("{'Bob': 1}", "A\ud800nn")


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("Ann", "'Ann'"),
        ("Mary Ann", "'Mary Ann'"),
        ("Ann ", "'Ann '"),
        ("O'Neil", '"O\'Neil"'),
        ("Zoë", "'Zoë'"),
        ("a\nb", "'a\\nb'"),
        ("\\", "'\\\\'"),
    ],
)
def test_the_query_is_text_that_python_reads_back_as_it_was_typed(query, written):
    session = read("{'Bob': 1}", query)
    assert session.query == written and ast.literal_eval(session.query) == query
    assert session.prompt == f">>> age = {{'Bob': 1}}\n>>> age[{written}]\n"


def test_the_dictionary_has_the_name_that_is_asked_for():
    assert read("{'Bob': 1}", variable="seat").prompt == ">>> seat = {'Bob': 1}\n>>> seat['Ann']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'Bob': 1", "not Python: '{' was never closed"),
        ("{'Bob' 1}", "not Python: .*comma"),
        ("{“Bob”: 1}", "not Python: invalid character '“'"),
        ("{'Bob': 1,\u00a0'Ann': 2}", r"not Python: .*U\+00A0"),
        ("age == {'Bob': 1}", "not a dictionary"),
        ("{'Bob': 1}\n{'Ann': 1}", "not Python"),
        ("", "not Python"),
        ("   \n", "not Python"),
        ("{'Bob': 1}\0", "not Python: .*null"),
        ("{'Bob': " + 300 * "[" + 300 * "]" + "}", "not Python: too many nested"),
        ("{'Bob': " + 5000 * "1" + "}", "5,009 characters; 2,000 at most. Take"),
        ("{'Bob': " + 1900 * "-" + "1}", "not Python|neither"),
        ("{'B\ud800b': 1}", "not Python: .*surrogates"),
        ("Ann", "not a dictionary, but a name"),
        ("['Bob', 1]", "not a dictionary, but a list"),
        ("{'Bob', 'Ann'}", "not a dictionary, but a set"),
        ("{'Bob': 1}, {'Ann': 1}", "not a dictionary, but a tuple"),
        ("dict(Bob=1)", "not a dictionary, but a call"),
        ("{name: 1 for name in 'ab'}", "not a dictionary, but a dictcomp"),
        ("{'Bob': 1}['Bob']", "not a dictionary, but a subscript"),
        ("{}", "the dictionary is empty"),
        ("{1: 2}", "the key 1 is no string"),
        ("{'Bob': 1, True: 2}", "the key True is no string"),
        ("{None: 2}", "the key None is no string"),
        ("{Bob: 1}", "the key Bob is no string"),
        ("{b'Bob': 1}", "the key b'Bob' is no string"),
        ("{f'Bob': 1}", "the key f'Bob' is no string"),
        ("{'B' + 1: 1}", r"the key 'B' \+ 1 is no string"),
        ("{('Bob', 'Ann'): 1}", "is no string"),
        ("{**{'Bob': 1}}", r"the key \*\* is no string"),
        ("{'Kim': 2, **{'Bob': 1}}", r"the key \*\* is no string"),
        ("{'Bob': {'Ann': 1}}", "the value {'Ann': 1} is neither a number nor a string"),
        ("{'Bob': [1]}", r"the value \[1\] is neither"),
        ("{'Bob': None}", "the value None is neither"),
        ("{'Bob': --1}", "the value --1 is neither"),
        ("{'Bob': 1j}", "the value 1j is neither"),
        ("{'Bob': ...}", r"the value \.\.\. is neither"),
        ("{'Bob': b'x'}", "the value b'x' is neither"),
        ("{'Bob': x}", "the value x is neither"),
        ("{'Zoë': x}", "the value x is neither"),
        ("{'Bob': 2 ** 99}", r"the value 2 \*\* 99 is neither"),
    ],
)
def test_what_is_no_dictionary_of_this_kind_is_refused_with_an_example(text, message):
    with pytest.raises(SessionError, match=message) as caught:
        read(text)
    assert "{'Bob': 1, 'Mary Ann': 2}" in str(caught.value)


def test_as_many_entries_as_are_allowed_are_taken_and_one_more_is_not():
    written = lambda n: "{" + ", ".join(f"'{i}': {i % 10}" for i in range(n)) + "}"  # noqa: E731
    assert len(read(written(MAX_ENTRIES)).entries) == MAX_ENTRIES == 20
    with pytest.raises(SessionError, match="21 entries are too many: 20 at most"):
        read(written(21))
    with pytest.raises(SessionError, match="588,890 characters; 2,000 at most"):
        read(written(50_000))


def test_a_prompt_is_refused_from_one_token_beyond_the_limit_on():
    tokenizer = session_tokenizer()

    def prompt_of(n: int) -> str:
        return read("{'" + n * "z" + "': 1}").prompt

    length = len(tokenizer(prompt_of(1), add_special_tokens=False)["input_ids"])
    longest = MAX_PROMPT_TOKENS - length + 1
    assert (
        len(tokenizer(prompt_of(longest), add_special_tokens=False)["input_ids"])
        == MAX_PROMPT_TOKENS
        == 128
    )
    with pytest.raises(SessionError, match="the prompt has 129 tokens; 128 at most"):
        prompt_of(longest + 1)
    with pytest.raises(SessionError, match="the prompt has .* tokens"):
        read("{'Bob': 1}", 500 * "z")


@pytest.mark.parametrize("query", ["", " ", "\n\t"])
def test_an_empty_query_is_refused(query):
    with pytest.raises(SessionError, match="no key is asked for"):
        read("{'Bob': 1}", query)


def test_a_query_of_several_tokens_is_refused_where_one_is_wanted_and_its_pieces_are_shown():
    assert read("{'Bob': 1}", "Annxy").query == "'Annxy'"
    pieces = r"\(Ann \+ x \+ y\), as is wanted here, such as Ann, "
    with pytest.raises(SessionError, match=f"'Annxy' is not one token in the prompt {pieces}"):
        read("{'Bob': 1}", "Annxy", one_token=True)
    with pytest.raises(SessionError, match="the key 'Ann ' is not one token in the prompt"):
        read("{'Bob': 1}", "Ann ", one_token=True)
    assert read("{'Bob': 1}", "Ann", one_token=True).query == "'Ann'"


@pytest.mark.parametrize(
    "text",
    [
        "{{touch}: 1}",
        "{'Bob': {touch}}",
        "{touch}",
        "{**{touch}}",
        "{f'''{{touch}}''': 1}",
        "{'Bob': f'''{{touch}}'''}",
        "{(lambda: {touch})(): 1}",
        "{'Bob': [{touch} for _ in 'a']}",
        "{'Bob': (x := {touch})}",
    ],
)
def test_nothing_is_ever_executed(text, tmp_path):
    path = tmp_path / "executed"
    text = text.replace("{touch}", f"__import__('pathlib').Path({str(path)!r}).touch()")
    ast.parse(text, mode="eval")  # it would be Python
    with pytest.raises(SessionError):
        read(text)
    assert not path.exists()


def test_neither_the_query_nor_a_key_can_leave_its_quotes(tmp_path):
    path = tmp_path / "executed"
    query = f"'] or __import__('pathlib').Path('{path}').touch() or ['"
    session = read("{'Bob\\']': 1}", query[: MAX_PROMPT_TOKENS // 2])
    assert session.outcome() == MISSING
    assert len(session.prompt.splitlines()) == 2 and not path.exists()


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False) | TEXT


@given(
    entries=st.dictionaries(TEXT, VALUES, min_size=1, max_size=4),
    query=TEXT.filter(lambda text: text.strip() and text[0] not in QUOTES),
)
def test_any_dictionary_and_any_key_are_read_as_python_reads_them(entries, query):
    try:
        session = read(repr(entries), query)
    except SessionError as error:
        assert "tokens" in str(error)  # the only thing that may be wrong with it: too long
        return
    assert ast.literal_eval(session.dictionary) == entries
    assert ast.literal_eval(session.query) == query
    assert session.outcome() == (repr(entries[query]) if query in entries else MISSING)
    assert len(session.prompt.splitlines()) == 2 == session.prompt.count("\n")


@given(text=st.text(max_size=40))
def test_whatever_is_typed_is_a_session_or_a_plain_refusal(text):
    try:
        session = read(text, text)
    except SessionError as error:
        assert "\n" not in str(error) or "\n" in text
    else:
        assert ast.literal_eval(session.query)


@pytest.mark.parametrize("text", ["{'Bob': 'x'\n 'y'}", "{'Bob': '''x\ny'''}"])
def test_a_value_over_two_lines_becomes_one_line(text):
    assert len(read(text).prompt.splitlines()) == 2


@pytest.mark.parametrize("text", ["{'''Mary\nAnn''': 1}", "{'Mary' # a comment\n ' Ann': 1}"])
def test_a_key_over_two_lines_stays_the_key_that_it_is(text):
    assert ast.literal_eval(read(text).dictionary) == ast.literal_eval(text)


@pytest.mark.parametrize("text", [20_000 * "-" + "1", "{'Bob': " + 20_000 * "-" + "1}"])
def test_an_expression_too_deep_for_the_parser_is_refused(text):
    with pytest.raises(SessionError):
        read(text)
