"""The grammar: what the generators write, and that the shipped files are what they write."""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from itertools import combinations

import pytest
from conftest import session_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from course_utils.labs.loading import load_model
from course_utils.prompts import sessions
from course_utils.prompts.facts import FACTS
from course_utils.prompts.grammar import (
    AUXILIARIES,
    CODE_TASKS,
    GENERATORS,
    PREPOSITIONS,
    REWORDED_DISTRACTORS,
    REWORDED_PREPOSITIONS,
    REWORDED_SUBJECTS,
    SEED_NAMES,
    TRANSFER_TASKS,
    TRANSITIVES,
    VOCABULARIES,
    dict_key,
    dict_value,
    generate_pairs,
    generator_of,
    inflect,
    plural,
    third_person,
)
from course_utils.prompts.tasks import (
    SPLITS,
    TASKS_DIR,
    PromptPair,
    TaskError,
    available_tasks,
    load_task,
    read_pairs,
)
from course_utils.prompts.tokens import token_ids
from tools.write_tasks import SIZES, write_tasks

KEYS = {"clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case"}
SVA = ("sva_simple", "sva_nounpp", "sva_reworded", "sva_rc", "sva_within_rc")
ENGLISH = (*SVA, "ioi")
CODE = ("dict_key", "dict_value", "list_index")
TASKS = ENGLISH + CODE
IOI_PROMPT = re.compile(r"When (\w+) and (\w+) went to the (\w+), (\w+) gave a (\w+) to")
VERBS = {*TRANSITIVES, *map(third_person, TRANSITIVES)}
DETERMINERS = {word.lower() for word in ("the", *REWORDED_SUBJECTS, *REWORDED_DISTRACTORS)}
FUNCTION_WORDS = {
    *("that", "when", "and", "went", "to", "gave", "a"),
    *DETERMINERS,
    *PREPOSITIONS,
    *REWORDED_PREPOSITIONS,
    *VERBS,
}
PAIRS_OF_SPLITS = list(combinations(SPLITS, 2))


def shipped(name: str, split: str) -> list[PromptPair]:
    return read_pairs(TASKS_DIR / f"{name}_{split}.jsonl")


def number_of(noun: str, split: str) -> str:
    """Whether a noun of this split's vocabulary is in the singular or in the plural."""
    nouns = VOCABULARIES[split].people + VOCABULARIES[split].things
    assert (noun in nouns) != (noun in map(plural, nouns)), noun
    return "singular" if noun in nouns else "plural"


# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------


PLURALS = """
    athlete athletes, child children, thief thieves, wife wives, hero heroes, shelf shelves,
    fisherman fishermen, lady ladies, boy boys, valley valleys, coach coaches, box boxes, bus buses,
    witness witnesses, photo photos
"""


@pytest.mark.parametrize(("noun", "expected"), [pair.split() for pair in PLURALS.split(",")])
def test_the_plural_of_a_noun(noun, expected):
    assert plural(noun) == inflect(noun, "plural") == expected
    assert inflect(noun, "singular") == noun


VERB_FORMS = "like likes, see sees, praise praises, watch watches, push pushes, miss misses"


@pytest.mark.parametrize(("verb", "expected"), [pair.split() for pair in VERB_FORMS.split(",")])
def test_the_third_person_of_a_verb(verb, expected):
    assert third_person(verb) == expected


def nouns_of(split: str) -> set[str]:
    """Every noun of a split, in both numbers."""
    words = VOCABULARIES[split]
    nouns = words.people + words.things + words.places + words.objects
    return {*nouns, *map(plural, nouns)}


def forms_of(split: str) -> set[str]:
    """Every noun of a split, in both numbers, and every name in small letters."""
    return nouns_of(split) | {name.lower() for name in VOCABULARIES[split].names}


def test_there_are_three_splits_and_a_vocabulary_for_each():
    assert SPLITS == ("train", "dev", "test")
    assert tuple(VOCABULARIES) == tuple(SEED_NAMES) == tuple(SIZES) == SPLITS


@pytest.mark.parametrize(("one", "other"), PAIRS_OF_SPLITS)
def test_two_vocabularies_share_no_word_in_any_role_or_number(one, other):
    assert min(len(forms_of(one)), len(forms_of(other))) > 300
    assert forms_of(one).isdisjoint(forms_of(other))


def test_no_noun_and_no_name_is_a_word_that_all_splits_share():
    for split in SPLITS:
        assert forms_of(split).isdisjoint(FUNCTION_WORDS)


def test_no_name_of_the_test_split_is_a_noun_of_any_split_nor_a_name_or_key_of_the_others():
    nouns = {word for split in SPLITS for word in nouns_of(split)}
    others = {
        name.lower()
        for split in ("train", "dev")
        for name in (*VOCABULARIES[split].names, *sessions.KEYS[split])
    }
    names = {name.lower() for name in (*VOCABULARIES["test"].names, *sessions.KEYS["test"])}
    assert {"athlete", "museum", "wallet", "children"} <= nouns and {"emily", "ann"} <= others
    assert not names & (nouns | others)


@pytest.fixture(scope="module")
def smollm2_tokenizer():
    _, tokenizer = load_model("smollm2")
    return tokenizer


@pytest.mark.weights
def test_nouns_in_both_numbers_and_names_are_single_tokens_of_smollm2(smollm2_tokenizer):
    for split in SPLITS:
        words = VOCABULARIES[split]
        nouns = words.people + words.things
        spellings = [f" {word}" for word in (*nouns, *map(plural, nouns), *words.names)]
        several = [word for word in spellings if len(token_ids(smollm2_tokenizer, word)) != 1]
        assert several == [] and len(spellings) > 300


@pytest.mark.weights
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ENGLISH)
def test_every_english_pair_fits_smollm2(name, split, smollm2_tokenizer):
    assert load_task(name, smollm2_tokenizer, split).n_dropped == {}


@pytest.mark.parametrize("split", SPLITS)
def test_no_role_of_a_vocabulary_has_a_word_twice(split):
    roles = asdict(VOCABULARIES[split])
    assert roles.pop("split") == split
    for role, words in roles.items():
        assert [word for word, count in Counter(words).items() if count > 1] == [], role


# ---------------------------------------------------------------------------------------------
# Generators
# ---------------------------------------------------------------------------------------------


def test_the_generators_are_those_of_the_shipped_tasks():
    assert set(GENERATORS) == set(TASKS) == set(available_tasks()) - set(FACTS)
    assert CODE_TASKS == CODE and TRANSFER_TASKS == ("sva_reworded",)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_same_pairs_again_whatever_else_is_random(name):
    random.seed(1)
    first = generate_pairs(name, "train", 40, seed=3)
    random.seed(2)
    assert generate_pairs(name, "train", 40, seed=3) == first
    assert generate_pairs(name, "train", 20, seed=3) == first[:20]


@pytest.mark.parametrize("name", TASKS)
def test_different_seeds_and_splits_give_different_pairs(name):
    pairs = {
        key: generate_pairs(name, key[0], 40, seed=key[1])
        for key in [("train", 1), *((split, 0) for split in SPLITS)]
    }
    assert pairs["train", 0] != pairs["train", 1]
    for one, other in PAIRS_OF_SPLITS:
        assert set(pairs[one, 0]).isdisjoint(pairs[other, 0])


def test_every_split_has_random_numbers_of_its_own():
    """Another order of the same cases, and not only other words in the same places."""
    drawn = {split: generator_of("ioi", split, 0).random() for split in SPLITS}
    assert len(set(drawn.values())) == 3
    assert drawn["dev"] == random.Random("ioi/test/0").random()
    with pytest.raises(TaskError, match="'train', 'dev' or 'test', not 'held_out'"):
        generator_of("ioi", "held_out", 0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_no_pair_is_generated_twice(name, split):
    assert len(set(generate_pairs(name, split, 200))) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sva", "train", 5), "no generator for 'sva'.*sva_simple.*ioi"),
        (("ioi", "valid", 5), "'train', 'dev' or 'test', not 'valid'"),
        (("sva_simple", "dev", 500), "only 492 different prompt pairs; 500 were wanted"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, message):
    with pytest.raises(TaskError, match=message):
        generate_pairs(*arguments)


def words_of(split: str) -> set[str]:
    """Every word that an English prompt of this split may have, in small letters."""
    words = VOCABULARIES[split]
    nouns = words.people + words.things
    own = [*nouns, *map(plural, nouns), *words.names, *words.places, *words.objects]
    return FUNCTION_WORDS | {word.lower() for word in own}


@given(name=st.sampled_from(ENGLISH), split=st.sampled_from(SPLITS), seed=st.integers())
def test_any_seed_gives_english_pairs_of_the_splits_own_words(name, split, seed):
    pair = GENERATORS[name](VOCABULARIES[split], random.Random(seed))
    prompts = (pair.clean_prefix, pair.patch_prefix)
    clean, patch = (text.lower().replace(",", "").split() for text in prompts)
    assert {*clean, *patch} <= words_of(split)
    assert pair.clean_answer != pair.patch_answer and len(clean) == len(patch)
    n_changed = sum(one != other for one, other in zip(clean, patch))
    assert n_changed == (3 if name == "ioi" else 1)


@given(name=st.sampled_from(CODE), split=st.sampled_from(SPLITS), seed=st.integers())
def test_any_seed_gives_sessions_whose_answers_are_what_python_says(name, split, seed):
    pair = GENERATORS[name](VOCABULARIES[split], random.Random(seed))
    assert pair.clean_answer == python_says(pair.clean_prefix)
    assert pair.patch_answer == python_says(pair.patch_prefix)


@given(
    name=st.sampled_from(TASKS),
    split=st.sampled_from(SPLITS),
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
)
def test_fewer_pairs_are_the_first_of_more(name, split, seed, n):
    pairs = generate_pairs(name, split, n, seed)
    assert len(pairs) == n == len(set(pairs))
    assert generate_pairs(name, split, n + 20, seed)[:n] == pairs


# ---------------------------------------------------------------------------------------------
# The shipped files
# ---------------------------------------------------------------------------------------------


def test_the_generator_writes_exactly_the_shipped_files(tmp_path):
    write_tasks(tmp_path / "new")
    new = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    old = {path.name: path.read_bytes() for path in TASKS_DIR.glob("*.jsonl")}
    names = sorted(f"{name}_{split}.jsonl" for name in (*TASKS, *FACTS) for split in SPLITS)
    assert sorted(new) == sorted(old) == names
    assert [name for name in old if new[name] != old[name]] == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_shipped_pairs_are_those_of_seed_0(name, split):
    pairs = shipped(name, split)
    assert len(pairs) == (582 if (name, split) == ("sva_simple", "train") else SIZES[split])
    assert pairs == generate_pairs(name, split, len(pairs), seed=0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_no_row_is_in_a_file_twice(name, split):
    rows = (TASKS_DIR / f"{name}_{split}.jsonl").read_bytes().splitlines()
    assert len(set(rows)) == len(rows) >= 300


FIRST_TEST_FILES = {
    "ioi": "8d2a16846e976acdee4f7bbd91f4bae81dbabdae8579697127076712773c5555",
    "sva_nounpp": "a096c3c5ff67690690d60409563c1c5272b5ff7b7373650085edf55b94b30c06",
    "dict_key": "911f0f9d827bf296aaf0baf05be000ca00f7e5d5b9c084851d5004926f94eb5b",
}
"""SHA-256 of the test files that the course had when there was no dev split."""


@pytest.mark.parametrize("name", FIRST_TEST_FILES)
def test_dev_is_what_was_test_before_there_were_three_splits(name):
    path = TASKS_DIR / f"{name}_dev.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FIRST_TEST_FILES[name]


def shipped_records(name: str, split: str) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for line in (TASKS_DIR / f"{name}_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_every_shipped_line_has_the_five_keys_and_text_in_each(name, split):
    for pair in shipped_records(name, split):
        assert set(pair) == KEYS and all(
            isinstance(value, str) and value for value in pair.values()
        )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ENGLISH)
def test_english_prompts_have_single_spaces_and_their_answers_one_in_front(name, split):
    for pair in shipped_records(name, split):
        for key in KEYS:
            assert pair[key] == (" " if "answer" in key else "") + " ".join(pair[key].split())


def test_the_shipped_files_of_two_splits_share_no_noun_and_no_name():
    content = {}
    for split in SPLITS:
        pairs = [pair for name in ENGLISH for pair in shipped(name, split)]
        names = [
            answer
            for pair in shipped("ioi", split)
            for answer in (pair.clean_answer, pair.patch_answer)
        ]
        text = " ".join(
            [text for pair in pairs for text in (pair.clean_prefix, pair.patch_prefix)] + names
        )
        content[split] = {word.lower() for word in re.findall(r"\w+", text)} - FUNCTION_WORDS
    some = {
        "train": {"artist", "artists", "emily", "library", "hat"},
        "dev": {"athlete", "athletes", "mary", "bakery", "toy"},
        "test": {"pirate", "pirates", "naomi", "cinema", "doll"},
    }
    for split in SPLITS:
        assert some[split] <= content[split] and len(content[split]) > 300
    for one, other in PAIRS_OF_SPLITS:
        assert content[one].isdisjoint(content[other])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SVA)
def test_sva_prompts_differ_only_in_the_number_of_the_word_that_the_verb_agrees_with(name, split):
    agrees = 4 if name == "sva_within_rc" else 1
    length = {"sva_simple": 2, "sva_rc": 6}.get(name, 5)
    for pair in shipped(name, split):
        clean, patch = pair.clean_prefix.split(), pair.patch_prefix.split()
        assert len(clean) == len(patch) == length
        assert [i for i in range(length) if clean[i] != patch[i]] == [agrees]
        one, many = clean[agrees], patch[agrees]
        if number_of(one, split) == "plural":
            one, many = many, one
        assert one in VOCABULARIES[split].people and many == plural(one)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SVA)
def test_sva_answers_are_the_verb_in_the_number_of_each_prompt(name, split):
    verbs = (
        [(f" {third_person(verb)}", f" {verb}") for verb in TRANSITIVES]
        if name == "sva_within_rc"
        else AUXILIARIES
    )
    agrees = 4 if name == "sva_within_rc" else 1
    seen = set()
    for pair in shipped(name, split):
        number = number_of(pair.clean_prefix.split()[agrees], split)
        answers = (pair.clean_answer, pair.patch_answer)
        seen.add(answers)
        assert (answers if number == "singular" else answers[::-1]) in verbs
    assert len(seen) == 2 * len(verbs)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SVA)
def test_the_case_of_an_sva_pair_is_the_numbers_of_its_clean_nouns_in_order(name, split):
    nouns = (1,) if name == "sva_simple" else (1, 4)
    cases = Counter()
    for pair in shipped(name, split):
        words = pair.clean_prefix.split()
        assert pair.case == "_".join(number_of(words[i], split) for i in nouns)
        cases[pair.case] += 1
    assert len(cases) == 2 ** len(nouns)
    assert min(cases.values()) > 0.7 * sum(cases.values()) / len(cases)


@pytest.mark.parametrize("split", SPLITS)
def test_reworded_prompts_have_their_nouns_where_nounpp_has_them_and_no_other_word_in_common(split):
    small = {"sva_nounpp": set(), "sva_reworded": set()}
    for name, words in small.items():
        for pair in shipped(name, split):
            head, subject, preposition, determiner, distractor = pair.clean_prefix.split()
            words |= {head, preposition, determiner}
            assert {number_of(noun, split) for noun in (subject, distractor)} <= {
                "singular",
                "plural",
            }
    assert small["sva_nounpp"] == {"The", "the", *PREPOSITIONS}
    assert small["sva_reworded"] == {
        *REWORDED_SUBJECTS,
        *REWORDED_PREPOSITIONS,
        *REWORDED_DISTRACTORS,
    }
    assert small["sva_nounpp"].isdisjoint(small["sva_reworded"])


@pytest.mark.parametrize("split", SPLITS)
def test_the_determiners_of_reworded_prompts_do_not_tell_the_number(split):
    """Each stands before singular and plural subjects, and before both kinds of distractor."""
    seen = set()
    for pair in shipped("sva_reworded", split):
        head, subject, _, determiner, distractor = pair.clean_prefix.split()
        seen |= {
            ("subject", head, number_of(subject, split)),
            ("distractor", determiner, number_of(distractor, split)),
        }
    numbers = ("singular", "plural")
    assert seen == {
        *(("subject", word, number) for word in REWORDED_SUBJECTS for number in numbers),
        *(("distractor", word, number) for word in REWORDED_DISTRACTORS for number in numbers),
    }


@pytest.mark.parametrize("split", SPLITS)
def test_the_verb_in_a_relative_clause_agrees_with_its_own_noun(split):
    for pair in shipped("sva_rc", split):
        words = pair.clean_prefix.split()
        assert words[2:4] == ["that", "the"]
        assert words[5] in (
            map(third_person, TRANSITIVES)
            if number_of(words[4], split) == "singular"
            else TRANSITIVES
        )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["sva_rc", "sva_within_rc"])
def test_the_two_nouns_around_a_relative_clause_are_different_people(name, split):
    for pair in shipped(name, split):
        words = pair.clean_prefix.split()
        one, other = words[1], words[4]
        assert one != other and plural(one) != other and one != plural(other)


@pytest.mark.parametrize("split", SPLITS)
def test_ioi_answers_are_the_name_said_once_and_the_name_said_twice(split):
    for pair in shipped("ioi", split):
        a, b, _, giver, _ = IOI_PROMPT.fullmatch(pair.clean_prefix).groups()
        said = Counter((a, b, giver))
        assert sorted(said.values()) == [1, 2] and a != b
        assert said[pair.clean_answer.removeprefix(" ")] == 1
        assert said[pair.patch_answer.removeprefix(" ")] == 2


@pytest.mark.parametrize("split", SPLITS)
def test_ioi_cases_say_the_order_of_the_names(split):
    cases = Counter()
    for pair in shipped("ioi", split):
        a, b, *_ = IOI_PROMPT.fullmatch(pair.clean_prefix).groups()
        order = (
            (pair.clean_answer, pair.patch_answer)
            if pair.case == "ABBA"
            else (pair.patch_answer, pair.clean_answer)
        )
        assert order == (f" {a}", f" {b}")
        cases[pair.case] += 1
    assert set(cases) == {"ABBA", "BABA"} and min(cases.values()) > 0.4 * sum(cases.values())


@pytest.mark.parametrize("split", SPLITS)
def test_ioi_patch_prompts_name_three_other_people_in_the_same_story(split):
    words = VOCABULARIES[split]
    for pair in shipped("ioi", split):
        a, b, place, giver, item = IOI_PROMPT.fullmatch(pair.clean_prefix).groups()
        *others, other_place, other_giver, other_item = IOI_PROMPT.fullmatch(
            pair.patch_prefix
        ).groups()
        others.append(other_giver)
        assert (
            (place, item) == (other_place, other_item)
            and place in words.places
            and item in words.objects
        )
        assert len(set(others)) == 3 and not set(others) & {a, b, giver}
        assert {a, b, *others} <= set(words.names)


# ---------------------------------------------------------------------------------------------
# Sessions with Python
# ---------------------------------------------------------------------------------------------


def python_says(prompt: str) -> str:
    """What Python answers to a session's last line: "Trace" where it raises a KeyError or an
    IndexError.
    """
    assert prompt.endswith("\n")
    *lines, query = [line.removeprefix(">>> ") for line in prompt.splitlines()]
    assert prompt == "".join(f">>> {line}\n" for line in [*lines, query])
    names: dict = {}
    for line in lines:
        exec(line, names)
    try:
        return repr(eval(query, names))
    except LookupError:
        return "Trace"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CODE)
def test_the_answers_to_sessions_are_what_python_says(name, split):
    for pair in shipped(name, split):
        assert pair.clean_answer == python_says(pair.clean_prefix)
        assert pair.patch_answer == python_says(pair.patch_prefix)
        value = pair.clean_answer if name == "dict_value" else pair.patch_answer
        assert {pair.clean_answer, pair.patch_answer} == {"Trace", value} and re.fullmatch(
            r"\d", value
        )


@pytest.mark.parametrize("name", CODE)
def test_the_sessions_of_two_splits_share_no_key_and_no_variable(name):
    words = {}
    for split in SPLITS:
        text = " ".join(pair.clean_prefix + pair.patch_prefix for pair in shipped(name, split))
        words[split] = set(re.findall(r"[A-Za-z]+", text))
        variables = sessions.LISTS[split] if name == "list_index" else sessions.DICTIONARIES[split]
        keys = () if name == "list_index" else sessions.KEYS[split]
        assert words[split] == {*variables, *keys}
    for one, other in PAIRS_OF_SPLITS:
        assert words[one].isdisjoint(words[other])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["dict_key", "dict_value"])
def test_the_prompts_of_a_dictionary_pair_differ_in_the_one_key_that_the_case_names(name, split):
    cases = Counter()
    for pair in shipped(name, split):
        clean, patch = (
            re.findall(r"'(\w+)'", text) for text in (pair.clean_prefix, pair.patch_prefix)
        )
        entry = int(pair.case.removeprefix("entry_")) - 1
        assert [i for i in range(6) if clean[i] != patch[i]] == [entry] and clean[5] == patch[5]
        there = clean if name == "dict_value" else patch
        assert there[entry] == there[5]
        assert (
            pair.clean_prefix.replace(f"'{clean[entry]}':", f"'{patch[entry]}':")
            == pair.patch_prefix
        )
        cases[entry] += 1
    assert sorted(cases) == [0, 1, 2, 3, 4] and min(cases.values()) > 0.6 * sum(cases.values()) / 5


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompts_of_a_list_pair_differ_in_the_index_only_and_the_case_says_which_is_within(
    split,
):
    inside, outside = Counter(), Counter()
    for pair in shipped("list_index", split):
        texts = (pair.clean_prefix, pair.patch_prefix)
        (head, beyond), (same, within) = (
            re.fullmatch(r"(.*\n.*)\[(\d)\]\n", text).groups() for text in texts
        )
        assert head == same and int(within) < 5 <= int(beyond) and pair.case == f"item_{within}"
        inside[within] += 1
        outside[beyond] += 1
    assert "".join(sorted(inside)) == "01234" and "".join(sorted(outside)) == "56789"


@pytest.mark.parametrize("split", SPLITS)
def test_dict_value_is_dict_key_with_clean_and_patch_the_other_way_round(split):
    for seed in range(20):
        key, value = (
            make(VOCABULARIES[split], random.Random(seed)) for make in (dict_key, dict_value)
        )
        assert (value.clean_prefix, value.patch_prefix) == (key.patch_prefix, key.clean_prefix)
        assert (value.clean_answer, value.patch_answer, value.case) == (
            key.patch_answer,
            key.clean_answer,
            key.case,
        )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CODE)
def test_sessions_have_one_length_where_names_are_tokens(name, split):
    task = load_task(name, session_tokenizer(), split)
    assert task.n_dropped == {} and len(task) == SIZES[split]
    assert session_tokenizer().decode(task.clean[7, 1:]) == task.pairs[7].clean_prefix
    if name != "list_index":
        assert (
            session_tokenizer().decode(task.clean[7, -2])
            == re.findall(r"'(\w+)'", task.pairs[7].clean_prefix)[-1]
        )
