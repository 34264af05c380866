"""Tasks: what the generators write, what the shipped files hold, and what load_task keeps, drops
and refuses.
"""

import copy
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import session_tokenizer, tiny_tokenizer

import course_utils.prompts.tasks as tasks_module
from course_utils.prompts import sessions
from course_utils.prompts.grammar import (
    AUXILIARIES,
    CODE_TASKS,
    GENERATORS,
    PREPOSITIONS,
    TRANSITIVES,
    VOCABULARIES,
    dict_key,
    dict_value,
    generate_pairs,
    inflect,
    plural,
    third_person,
)
from course_utils.prompts.tasks import (
    MIN_PAIRS,
    SIZES,
    SPLITS,
    TASKS_DIR,
    PromptPair,
    TaskError,
    available_tasks,
    load_task,
    main,
    read_pairs,
    write_pairs,
)

KEYS = {"clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case"}
SVA = ("sva_simple", "sva_nounpp", "sva_rc", "sva_within_rc")
ENGLISH = (*SVA, "ioi")
CODE = ("dict_key", "dict_value", "list_index")
TASKS = ENGLISH + CODE
IOI_PROMPT = re.compile(r"When (\w+) and (\w+) went to the (\w+), (\w+) gave a (\w+) to")
VERBS = {*TRANSITIVES, *map(third_person, TRANSITIVES)}
FUNCTION_WORDS = {"the", "that", "when", "and", "went", "to", "gave", "a", *PREPOSITIONS, *VERBS}


def shipped(name: str, split: str) -> list[PromptPair]:
    return read_pairs(TASKS_DIR / f"{name}_{split}.jsonl")


def number_of(noun: str, split: str) -> str:
    """Whether a noun of this split's vocabulary is in the singular or in the plural."""
    nouns = VOCABULARIES[split].people + VOCABULARIES[split].things
    assert (noun in nouns) != (noun in map(plural, nouns)), noun
    return "singular" if noun in nouns else "plural"


def record(i: int = 0, **changes) -> dict[str, str]:
    """The i-th of many lines that fit the tiny tokenizer: 5 tokens, " is" and " are"."""
    one, other = VOCABULARIES["train"].people[i], VOCABULARIES["train"].people[i + 40]
    line = dict(
        clean_prefix=f"The {one} near the {other}", patch_prefix=f"The {plural(one)} near the {other}",
        clean_answer=" is", patch_answer=" are", case="singular_singular",
    )  # fmt: skip
    return {**line, **changes}


def write(path: Path, *lines: dict[str, str] | str) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "mine.jsonl"


@pytest.fixture
def good(path) -> Path:
    """A file of six pairs, all of which fit."""
    return write(path, *(record(i) for i in range(6)))


# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("athlete", "athletes"), ("child", "children"), ("thief", "thieves"), ("wife", "wives"), ("hero", "heroes"),
        ("shelf", "shelves"), ("fisherman", "fishermen"), ("lady", "ladies"), ("boy", "boys"), ("valley", "valleys"),
        ("coach", "coaches"), ("box", "boxes"), ("bus", "buses"), ("witness", "witnesses"), ("photo", "photos"),
    ],
)  # fmt: skip
def test_the_plural_of_a_noun(noun, expected):
    assert plural(noun) == inflect(noun, "plural") == expected
    assert inflect(noun, "singular") == noun


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("like", "likes"),
        ("see", "sees"),
        ("praise", "praises"),
        ("watch", "watches"),
        ("push", "pushes"),
        ("miss", "misses"),
    ],
)
def test_the_third_person_of_a_verb(verb, expected):
    assert third_person(verb) == expected


def test_train_and_test_vocabularies_share_no_word_in_any_role_or_number():
    forms = {}
    for split in SPLITS:
        words = VOCABULARIES[split]
        nouns = words.people + words.things + words.places + words.objects
        forms[split] = {word.lower() for word in (*nouns, *map(plural, nouns), *words.names)}
        assert len(forms[split]) > 300
    assert forms["train"].isdisjoint(forms["test"])


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
    assert set(GENERATORS) == set(TASKS) == set(available_tasks())
    assert CODE_TASKS == CODE


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
        for key in [("train", 0), ("train", 1), ("test", 0)]
    }
    assert pairs["train", 0] != pairs["train", 1]
    assert set(pairs["train", 0]).isdisjoint(pairs["test", 0])


@pytest.mark.parametrize("name", TASKS)
def test_no_pair_is_generated_twice(name):
    assert len(set(generate_pairs(name, "test", 200))) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sva", "train", 5), "no generator for 'sva'.*sva_simple.*ioi"),
        (("ioi", "dev", 5), "'train' or 'test', not 'dev'"),
        (("sva_simple", "test", 500), "only 492 different prompt pairs; 500 were wanted"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, message):
    with pytest.raises(TaskError, match=message):
        generate_pairs(*arguments)


# ---------------------------------------------------------------------------------------------
# The shipped files
# ---------------------------------------------------------------------------------------------


def test_main_writes_exactly_the_shipped_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module, "TASKS_DIR", tmp_path / "new")
    main()
    new = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    old = {path.name: path.read_bytes() for path in TASKS_DIR.glob("*.jsonl")}
    assert (
        sorted(new)
        == sorted(old)
        == sorted(f"{name}_{split}.jsonl" for name in TASKS for split in SPLITS)
    )
    assert [name for name in old if new[name] != old[name]] == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_shipped_pairs_are_those_of_seed_0(name, split):
    pairs = shipped(name, split)
    assert len(pairs) == (582 if (name, split) == ("sva_simple", "train") else SIZES[split])
    assert pairs == generate_pairs(name, split, len(pairs), seed=0)


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


def test_shipped_train_and_test_files_share_no_noun_and_no_name():
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
    assert {"athlete", "athletes", "mary", "bakery", "toy"} <= content["test"] and len(
        content["test"]
    ) > 300
    assert {"artist", "artists", "emily", "library", "hat"} <= content["train"] and len(
        content["train"]
    ) > 300
    assert content["train"].isdisjoint(content["test"])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SVA)
def test_sva_prompts_differ_only_in_the_number_of_the_word_that_the_verb_agrees_with(name, split):
    agrees = 4 if name == "sva_within_rc" else 1
    length = {"sva_simple": 2, "sva_nounpp": 5, "sva_rc": 6, "sva_within_rc": 5}[name]
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
def test_sessions_of_train_and_test_share_no_key_and_no_variable(name):
    words = {}
    for split in SPLITS:
        text = " ".join(pair.clean_prefix + pair.patch_prefix for pair in shipped(name, split))
        words[split] = set(re.findall(r"[A-Za-z]+", text))
    assert words["train"].isdisjoint(words["test"])
    assert len(words["train"]) >= (len(sessions.LISTS["train"]) if name == "list_index" else 90)


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


# ---------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------


def test_a_file_of_ones_own_becomes_tokens_that_fit_one_another(good, capsys):
    tokenizer = tiny_tokenizer()
    task = load_task(good, tokenizer)
    assert (task.name, task.split, len(task), task.seq_len, task.has_bos, task.n_dropped) == (
        "mine",
        "",
        6,
        6,
        True,
        {},
    )
    for i, pair in enumerate(task.pairs):
        assert asdict(pair) == record(i)
        assert (
            "".join(tokenizer.convert_ids_to_tokens(task.clean[i])) == f"<bos>{pair.clean_prefix}"
        )
        assert (
            "".join(tokenizer.convert_ids_to_tokens(task.patch[i])) == f"<bos>{pair.patch_prefix}"
        )
        assert tokenizer.convert_ids_to_tokens([task.clean_answers[i], task.patch_answers[i]]) == [
            " is",
            " are",
        ]
    assert (
        task.clean.dtype
        == task.patch.dtype
        == task.clean_answers.dtype
        == task.patch_answers.dtype
        == torch.long
    )
    assert capsys.readouterr().out == ""


def test_a_file_may_be_named_by_text(good):
    assert load_task(str(good), tiny_tokenizer()).pairs == load_task(good, tiny_tokenizer()).pairs


def test_a_file_without_cases_loads_and_keeps_its_other_keys(path):
    lines = [record(i, note="mine") for i in range(4)]
    for line in lines:
        del line["case"]
    task = load_task(write(path, *lines), tiny_tokenizer())
    assert [pair.case for pair in task.pairs] == [""] * 4
    assert [pair.clean_prefix for pair in task.pairs] == [line["clean_prefix"] for line in lines]


def test_labels_name_the_token_of_a_column_and_bracket_an_example(good):
    first = VOCABULARIES["train"].people[0], VOCABULARIES["train"].people[40]
    labels = ("The", f"[{first[0]}]", "near", "the", f"[{first[1]}]")
    assert load_task(good, tiny_tokenizer()).position_labels == ("<bos>", *labels)
    assert load_task(good, tiny_tokenizer(), prepend_bos=False).position_labels == labels


def test_the_label_of_bos_is_the_same_whatever_the_tokenizer_calls_it(good):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = " by"
    task = load_task(good, tokenizer)
    assert task.clean[0, 0] == tokenizer(" by", add_special_tokens=False)["input_ids"][0]
    assert task.position_labels[:2] == ("<bos>", "The")


def test_bos_is_the_first_column_once_and_only_where_it_is_wanted(good):
    tokenizer = tiny_tokenizer()
    with_bos, without = load_task(good, tokenizer), load_task(good, tokenizer, prepend_bos=False)
    assert tokenizer("The")["input_ids"][0] == tokenizer.bos_token_id
    for tokens in (with_bos.clean, with_bos.patch):
        assert (tokens == tokenizer.bos_token_id).sum(0).tolist() == [6, 0, 0, 0, 0, 0]
    assert not without.has_bos and without.seq_len == 5
    assert torch.equal(without.clean, with_bos.clean[:, 1:]) and torch.equal(
        without.patch, with_bos.patch[:, 1:]
    )


def test_a_tokenizer_without_bos_makes_a_task_without_bos(good):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = None
    task = load_task(good, tokenizer)
    assert not task.has_bos and task.seq_len == 5 and task.position_labels[0] == "The"


UNFIT = [
    (dict(clean_answer=" is not"), "answer of more than one token"),
    (dict(patch_answer=" are not"), "answer of more than one token"),
    (dict(patch_answer=" is"), "both answers are the same token"),
    (dict(patch_prefix="The artists near the very guard"), "clean and patch of different lengths"),
    (dict(clean_prefix="The artist", patch_prefix="The artists"), "not 5 tokens long"),
]


@pytest.mark.parametrize(("changes", "reason"), UNFIT)
def test_a_pair_that_does_not_fit_is_dropped_counted_and_told(path, capsys, changes, reason):
    lines = [
        record(0, **changes),
        *(record(i) for i in range(1, 5)),
        record(5, **changes),
        record(6),
    ]
    task = load_task(write(path, *lines), tiny_tokenizer())
    assert [asdict(pair) for pair in task.pairs] == [record(i) for i in (1, 2, 3, 4, 6)]
    assert (
        len(task.clean)
        == len(task.patch)
        == len(task.clean_answers)
        == len(task.patch_answers)
        == 5
    )
    assert task.n_dropped == {reason: 2}
    assert capsys.readouterr().out == f"mine: kept 5 of 7 prompt pairs (dropped: 2 {reason})\n"


def test_every_reason_is_counted_by_itself_and_a_pair_only_once(path, capsys):
    both = dict(clean_answer=" is not", patch_prefix="The")
    lines = [
        record(0, **both),
        *(record(1, **changes) for changes, _ in UNFIT),
        *(record(i) for i in range(2, 6)),
    ]
    task = load_task(write(path, *lines), tiny_tokenizer(), verbose=False)
    assert task.n_dropped == Counter(reason for _, reason in UNFIT) + Counter(
        ["answer of more than one token"]
    )
    assert len(task) == 4
    assert capsys.readouterr().out == ""


def test_the_commonest_length_is_kept_be_it_the_shorter_or_the_longer(path):
    short = dict(clean_prefix="The artist", patch_prefix="The artists")
    few, many = [record(0, **short)] * 4, [record(0, **short)] * 8
    long = [record(i) for i in range(6)]
    assert load_task(write(path, *few, *long), tiny_tokenizer()).seq_len == 6
    assert load_task(write(path, *many, *long), tiny_tokenizer()).seq_len == 3


def test_as_few_pairs_as_a_task_needs_are_enough(path):
    assert (
        len(load_task(write(path, *(record(i) for i in range(MIN_PAIRS))), tiny_tokenizer()))
        == MIN_PAIRS
    )


def test_too_few_pairs_that_fit_are_an_error_that_says_what_was_dropped(path):
    fit = [record(i) for i in range(MIN_PAIRS - 1)]
    lines = [
        *fit,
        record(5, clean_answer=" is not"),
        record(6, patch_answer=" is"),
        record(7, patch_answer=" is"),
    ]
    with pytest.raises(TaskError) as caught:
        load_task(write(path, *lines), tiny_tokenizer())
    message = str(caught.value)
    assert (
        f"{path}: only 3 of 6 prompt pairs fit this tokenizer" in message
        and f"{MIN_PAIRS} or more" in message
    )
    assert "Dropped: 1 answer of more than one token; 2 both answers are the same token." in message


def test_an_empty_file_is_too_few_pairs(path):
    with pytest.raises(TaskError, match="only 0 of 0 prompt pairs.*Dropped: none"):
        load_task(write(path), tiny_tokenizer())


def test_n_keeps_the_first_pairs_that_fit(path):
    lines = [record(0, patch_answer=" is"), *(record(i) for i in range(1, 8))]
    write(path, *lines)
    task = load_task(path, tiny_tokenizer(), n=3, verbose=False)
    assert [asdict(pair) for pair in task.pairs] == [record(i) for i in (1, 2, 3)]
    assert (
        len(task.clean)
        == len(task.patch)
        == len(task.clean_answers)
        == len(task.patch_answers)
        == 3
    )
    assert len(load_task(path, tiny_tokenizer(), n=99, verbose=False)) == 7


@pytest.mark.parametrize("split", SPLITS)
def test_a_shipped_task_is_loaded_by_name_and_split(split):
    task = load_task("sva_nounpp", tiny_tokenizer(), split, verbose=False)
    usable = [
        pair for pair in shipped("sva_nounpp", split) if pair.clean_answer not in (" has", " have")
    ]
    assert (task.name, task.split) == ("sva_nounpp", split)
    assert list(task.pairs) == usable
    assert repr(task) == f"Task('sva_nounpp', {split}: {len(usable)} pairs of 6 tokens)"


def test_train_is_the_split_that_is_loaded_unless_told():
    assert load_task("sva_simple", tiny_tokenizer(), verbose=False).split == "train"


def test_a_task_of_which_nothing_fits_the_tokenizer_is_an_error():
    with pytest.raises(
        TaskError, match="only 0 of 300 prompt pairs.*300 both answers are the same token"
    ):
        load_task("ioi", tiny_tokenizer(), "test")


# ---------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"clean_prefix": "The"', "not JSON"),
        ("The athlete", "not JSON"),
        ('["The athlete", " is"]', "a JSON object is wanted, not list"),
        ('"text"', "a JSON object is wanted, not str"),
        (
            {key: value for key, value in record().items() if key != "patch_answer"},
            "no patch_answer.*clean_prefix, patch_prefix",
        ),
        ({"case": "singular"}, "no clean_prefix, patch_prefix, clean_answer, patch_answer"),
        (record(clean_answer=5), "clean_answer must be text"),
        (record(patch_prefix=None), "patch_prefix must be text"),
        (record(case=["singular"]), "case must be text"),
        (
            record(clean_prefix="", patch_answer=""),
            "clean_prefix, patch_answer must be text and not empty",
        ),
    ],
)
def test_a_malformed_line_is_an_error_that_names_file_and_line(path, line, message):
    write(path, record(0), "", record(1), line, record(2), record(3), record(4))
    with pytest.raises(TaskError, match=rf"^{re.escape(str(path))}, line 4: .*{message}"):
        load_task(path, tiny_tokenizer())


def test_blank_lines_are_no_pairs(path):
    write(path, "", record(0), "  ", record(1), "")
    assert [asdict(pair) for pair in read_pairs(path)] == [record(0), record(1)]


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(
        TaskError,
        match="unknown task 'sva'.*dict_key, dict_value, ioi, list_index, sva_nounpp, sva_rc, sva_simple, sva_within_rc.*jsonl",
    ):
        load_task("sva", tiny_tokenizer())


def test_an_unknown_split_is_refused():
    with pytest.raises(TaskError, match="'train' or 'test', not 'dev'"):
        load_task("sva_simple", tiny_tokenizer(), "dev")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_that_is_not_there_is_named(path, kind):
    with pytest.raises(TaskError, match=f"no such task file: {re.escape(str(path))}"):
        load_task(kind(path), tiny_tokenizer())


def test_pairs_survive_being_written_and_read(tmp_path):
    pairs = [PromptPair("The café’s “owner”", "The cafés\u2028near", " is", " are", "")]
    write_pairs(pairs, tmp_path / "new" / "folder" / "pairs.jsonl")
    assert read_pairs(tmp_path / "new" / "folder" / "pairs.jsonl") == pairs


# ---------------------------------------------------------------------------------------------
# Slicing
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(2), [0, 1]),
        (slice(1, None, 2), [1, 3, 5]),
        (slice(-2, None), [4, 5]),
        ([3, 5], [3, 5]),
        ([4, 0, 4, -1], [4, 0, 4, 5]),
        (range(2, 4), [2, 3]),
        (torch.tensor([5, 1]), [5, 1]),
        ([], []),
        (slice(9, None), []),
    ],
)
def test_rows_of_a_task_are_a_task_of_those_rows(path, rows, expected):
    names = ((" is", " are"), (" was", " were"), (" are", " is"))
    lines = [
        record(i, clean_answer=names[i % 3][0], patch_answer=names[i % 3][1]) for i in range(6)
    ]
    task = load_task(write(path, *lines), tiny_tokenizer())
    part = task[rows]
    assert len(part) == len(expected) and part.seq_len == task.seq_len
    assert part.pairs == tuple(task.pairs[i] for i in expected)
    for name in ("clean", "patch", "clean_answers", "patch_answers"):
        assert getattr(part, name).tolist() == [getattr(task, name)[i].tolist() for i in expected]
    same = ("name", "split", "has_bos", "position_labels", "n_dropped")
    assert [getattr(part, name) for name in same] == [getattr(task, name) for name in same]
    assert len(task) == 6


def test_a_row_that_is_not_there_is_an_error(good):
    with pytest.raises(IndexError):
        load_task(good, tiny_tokenizer())[[0, 6]]


def test_all_tensors_of_a_task_move_to_another_device(good):
    task = load_task(good, tiny_tokenizer())
    moved = task.to("meta")
    for name in ("clean", "patch", "clean_answers", "patch_answers"):
        assert (
            getattr(moved, name).device.type == "meta" and getattr(task, name).device.type == "cpu"
        )
    assert moved.pairs == task.pairs


def test_a_task_can_be_chosen_from_by_number_list_slice_and_booleans(task):
    singular = torch.tensor([pair.case == "singular" for pair in task.pairs])
    assert task[singular].pairs == tuple(pair for pair in task.pairs if pair.case == "singular")
    assert task[3].pairs == (task.pairs[3],) and task[[3, 5]].pairs == (
        task.pairs[3],
        task.pairs[5],
    )
    assert torch.equal(task[singular].clean, task.clean[singular])


def test_numbers_of_pairs_below_one_are_refused():
    for ask in (
        lambda n: load_task("ioi", tiny_tokenizer(), n=n),
        lambda n: generate_pairs("ioi", "train", n),
    ):
        with pytest.raises(TaskError, match="n must be 1 or more, not 0"):
            ask(0)


def test_a_file_that_is_not_utf8_is_named_with_its_line_and_a_byte_order_mark_is_forgiven(tmp_path):
    line = (TASKS_DIR / "ioi_test.jsonl").read_bytes().splitlines()[0]
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + line)
    assert len(read_pairs(tmp_path / "bom.jsonl")) == 1
    (tmp_path / "latin.jsonl").write_bytes(line + b'\n{"x": "\xe9"}')
    with pytest.raises(TaskError, match="latin.jsonl, line 2: not UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")


def test_a_missing_half_of_a_task_says_how_to_write_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module, "TASKS_DIR", tmp_path)
    (tmp_path / "ioi_train.jsonl").write_text("")
    with pytest.raises(TaskError, match="python -m tools.write_tasks"):
        load_task("ioi", tiny_tokenizer(), "test")
