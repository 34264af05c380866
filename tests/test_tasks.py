"""Tasks: what load_task keeps, drops and refuses, and what a task is good for."""

import copy
import functools
import json
import re
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import session_tokenizer, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

import course_utils.prompts.tasks as tasks_module
from course_utils.labs.catalog import spec_of
from course_utils.labs.weights import converted
from course_utils.prompts.grammar import VOCABULARIES, generate_pairs, plural
from course_utils.prompts.tasks import (
    MERGED,
    MIN_PAIRS,
    NO_SPACE,
    SPACE_BEHIND_PROMPT,
    SPLITS,
    TASKS_DIR,
    TENSORS,
    TWO_SPACES,
    PromptPair,
    Task,
    TaskError,
    available_tasks,
    kept_by_tokenizer,
    load_task,
    read_pairs,
    write_pairs,
)


def record(i: int = 0, **changes) -> dict[str, str]:
    """The i-th of many lines that fit the tiny tokenizer: 5 tokens, " is" and " are"."""
    one, other = VOCABULARIES["train"].people[i], VOCABULARIES["train"].people[i + 40]
    line = dict(
        clean_prefix=f"The {one} near the {other}",
        patch_prefix=f"The {plural(one)} near the {other}",
        clean_answer=" is",
        patch_answer=" are",
        case="singular_singular",
    )
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


def test_a_file_without_cases_loads_and_keeps_its_texts(path):
    lines = [record(i) for i in range(4)]
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


LONGER = " by the artist"


@given(st.lists(st.integers(0, 3), min_size=MIN_PAIRS, max_size=8), st.booleans())
def test_a_padded_task_has_every_prompt_and_says_how_long_each_is(more, prepend_bos):
    """The i-th prompt is ``more[i]`` times three tokens longer than the shortest."""
    tokenizer = tiny_tokenizer()
    lines = [record(i, **longer(i, n)) for i, n in enumerate(more)]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "mine.jsonl", *lines)
        task = load_task(path, tokenizer, pad=True, prepend_bos=prepend_bos)
    assert task.n_dropped == {} and task.lengths.tolist() == [5 + prepend_bos + 3 * n for n in more]
    assert task.seq_len == max(task.lengths) == len(task.position_labels)
    for i, length in enumerate(task.lengths.tolist()):
        for tokens, text in ((task.clean, "clean_prefix"), (task.patch, "patch_prefix")):
            said = "".join(tokenizer.convert_ids_to_tokens(tokens[i, :length]))
            assert said == ("<bos>" if prepend_bos else "") + lines[i][text]
            assert tokens[i, length:].eq(0).all()


def longer(i: int, n: int) -> dict[str, str]:
    """What `record` is to say for a longer pair."""
    return {key: record(i)[key] + n * LONGER for key in ("clean_prefix", "patch_prefix")}


def test_the_labels_of_a_padded_task_do_not_count_the_padding(path):
    lines = [record(i, **longer(0, i == 2)) for i in range(MIN_PAIRS)]
    task = load_task(write(path, *lines), tiny_tokenizer(), pad=True)
    assert task.position_labels[-3:] == ("by", "the", "artist")


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
    pairs = read_pairs(TASKS_DIR / f"sva_nounpp_{split}.jsonl")
    usable = [pair for pair in pairs if pair.clean_answer not in (" has", " have")]
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
# Where prompt and answer meet
# ---------------------------------------------------------------------------------------------


def trained(pre_tokenizer, decoder, alphabet: list[str]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer to which the words of `record` are tokens, and the plural "s" is none."""
    texts = [record(i)[key] + answer for i in range(12) for key in PREFIXES for answer in ANSWERS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        show_progress=False,
        special_tokens=["<bos>", "<|im_start|>"],
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator([*10 * texts, "is", "are"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>")


PREFIXES = ("clean_prefix", "patch_prefix")
ANSWERS = (" is", " are", "\nTrace", " Trace")


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: a word's token has its leading space."""
    return trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
        pre_tokenizers.ByteLevel.alphabet(),
    )


@functools.cache
def metaspace() -> PreTrainedTokenizerFast:
    """As SentencePiece's: "▁" for a space, and one before any text that has none."""
    words = pre_tokenizers.Metaspace(prepend_scheme="always")
    lines = pre_tokenizers.Split("\n", "isolated")
    return trained(pre_tokenizers.Sequence([words, lines]), decoders.Metaspace(), ["▁", "\n"])


@functools.cache
def llama_2() -> PreTrainedTokenizerFast:
    """As Llama 2's: one "▁" more before any text, also where it has a space."""
    tokenizer = copy.deepcopy(metaspace())
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"▁(?!▁)\w+"), "isolated"
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


KINDS = [tiny_tokenizer, byte_level, metaspace, llama_2]


def plain_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answers_token_is_what_it_adds_to_its_prompt(good, kind):
    tokenizer = kind()
    task = load_task(good, tokenizer, prepend_bos=False)
    assert len(task) == 6 and task.n_dropped == {}
    for i, pair in enumerate(task.pairs):
        for prompt, row in ((pair.clean_prefix, task.clean), (pair.patch_prefix, task.patch)):
            for answer, ids in (
                (pair.clean_answer, task.clean_answers),
                (pair.patch_answer, task.patch_answers),
            ):
                assert plain_ids(tokenizer, prompt + answer) == [*row[i].tolist(), ids[i]]


def test_an_answer_that_has_other_tokens_by_itself_is_no_hindrance(good):
    """With Llama 2's tokenizer, every pair used to be dropped."""
    tokenizer = llama_2()
    assert tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, " is")) == ["▁", "▁is"]
    task = load_task(good, tokenizer)
    assert tokenizer.convert_ids_to_tokens(task.clean_answers) == ["▁is"] * 6


def test_an_answer_without_a_space_has_no_space_in_its_token_where_none_is_meant(path):
    lines = [
        record(i, **{key: record(i)[key] + "\n" for key in PREFIXES}, clean_answer="Trace")
        for i in range(4)
    ]
    tokenizer = metaspace()
    task = load_task(write(path, *lines), tokenizer)
    assert tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, "Trace")) == ["▁Trace"]
    assert tokenizer.convert_ids_to_tokens(task.clean_answers) == ["Trace"] * 4


SPACED = {key: record(0)[key] + " " for key in PREFIXES}
BARE = {"clean_answer": "is", "patch_answer": "are"}
WRONG_SEAMS = [
    ({**SPACED, **BARE}, SPACE_BEHIND_PROMPT, "' + 'is'"),
    (SPACED, TWO_SPACES, " ' + ' is'"),
]


@pytest.mark.parametrize(("changes", "reason", "example"), WRONG_SEAMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_space_on_the_wrong_side_is_dropped_counted_and_told(
    path, capsys, kind, changes, reason, example
):
    lines = [record(0, **changes), *(record(i) for i in range(1, 6)), record(0, **changes)]
    task = load_task(write(path, *lines), kind())
    assert [asdict(pair) for pair in task.pairs] == [record(i) for i in range(1, 6)]
    assert task.n_dropped == {reason: 2}
    assert capsys.readouterr().out == f"mine: kept 5 of 7 prompt pairs (dropped: 2 {reason})\n"


@pytest.mark.parametrize(("changes", "reason", "example"), WRONG_SEAMS)
@pytest.mark.parametrize("n_good", [0, MIN_PAIRS])
def test_most_pairs_with_a_space_on_the_wrong_side_are_an_error_with_an_example(
    path, n_good, changes, reason, example
):
    lines = [record(0, **changes)] * 5 + [record(i) for i in range(n_good)]
    with pytest.raises(TaskError) as caught:
        load_task(write(path, *lines), byte_level())
    message = str(caught.value)
    assert message.startswith(f"{path}: only {n_good} of {5 + n_good} prompt pairs fit this")
    assert f"Dropped: 5 {reason}. For example: '{record(0)['clean_prefix']}" in message
    assert example in message


def test_spaces_on_the_wrong_side_of_half_the_pairs_are_no_error(path):
    lines = [record(0, **SPACED, **BARE)] * 4 + [record(i) for i in range(4)]
    assert load_task(write(path, *lines), byte_level(), verbose=False).n_dropped == {
        SPACE_BEHIND_PROMPT: 4
    }


def test_indentation_before_an_answer_is_no_space_too_many(path):
    lines = [record(i, **{key: record(i)[key] + "\n  " for key in PREFIXES}) for i in range(4)]
    tokenizer = tiny_tokenizer()
    task = load_task(write(path, *lines), tokenizer)
    assert task.n_dropped == {}
    assert tokenizer.convert_ids_to_tokens(task.clean_answers) == [" is"] * 4


def test_only_one_answer_or_one_prompt_that_does_not_fit_is_enough(path):
    wrong = [
        dict(clean_prefix=SPACED["clean_prefix"], patch_prefix=record(0)["patch_prefix"]),
        dict(clean_prefix=record(0)["clean_prefix"], patch_prefix=SPACED["patch_prefix"]),
    ]
    lines = [record(0, **changes) for changes in wrong] + [record(i) for i in range(4)]
    task = load_task(write(path, *lines), tiny_tokenizer(), verbose=False)
    assert task.n_dropped == {TWO_SPACES: 2}


def test_an_answer_that_merges_with_the_last_word_is_told_to_start_with_a_space(path):
    """ "athlete" + "s" is one token, and so no answer of "s"."""
    one, other = VOCABULARIES["train"].people[0], VOCABULARIES["train"].people[1]
    merging = dict(clean_prefix=f"The {one}", patch_prefix=f"The {other}", clean_answer="s")
    lines = [record(0, **merging)] * 2 + [record(i) for i in range(4)]
    task = load_task(write(path, *lines), byte_level(), verbose=False)
    assert task.n_dropped == {NO_SPACE: 2}


def test_an_answer_that_merges_with_a_mark_is_dropped_by_name(path):
    marks = dict(clean_prefix=">>> age['Bob']", patch_prefix=">>> age['Ann']", clean_answer="\n")
    with pytest.raises(TaskError, match=re.escape(f'Dropped: 4 {MERGED}. For example: ">>> age[')):
        load_task(write(path, *[record(0, **marks)] * 4), session_tokenizer())


def test_answers_that_carry_on_the_last_word_are_kept_and_told(path, capsys):
    """ "guard" + "is" are two tokens, as "super" + "man" may be meant to be."""
    tokenizer = byte_level()
    task = load_task(write(path, *(record(i, **BARE) for i in range(4))), tokenizer)
    assert tokenizer.convert_ids_to_tokens(task.clean_answers) == ["is"] * 4
    out = capsys.readouterr().out
    assert out.startswith("mine: in 4 pairs an answer carries on the last word of a prompt ('The ")
    assert "' + 'is'); an answer that is a word of its own starts with a space" in out


def test_an_answer_whose_token_depends_on_the_prompt_is_dropped(path):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("(?<=near) is"), " was")
    odd = dict(clean_prefix="The artist near", patch_prefix="The artist by")
    lines = [record(0, **odd)] + [record(i) for i in range(4)]
    task = load_task(write(path, *lines), tokenizer, verbose=False)
    assert task.n_dropped == {"answer whose token depends on the prompt": 1}


def test_an_answer_that_adds_nothing_is_dropped(path):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip(left=False, right=True)
    lines = [record(0, clean_answer=" ")] + [record(i) for i in range(4)]
    task = load_task(write(path, *lines), tokenizer, verbose=False)
    assert task.n_dropped == {"answer that adds no token": 1}


@pytest.mark.parametrize("kind", [byte_level, metaspace, llama_2])
@pytest.mark.parametrize("key", ["clean_prefix", "patch_prefix", "clean_answer", "patch_answer"])
@pytest.mark.parametrize("token", ["<bos>", "<|im_start|>"])
def test_a_special_token_inside_a_text_is_refused_by_line_key_and_token(path, kind, key, token):
    lines = [record(i) for i in range(6)]
    lines[3][key] = token + lines[3][key]
    message = f"{path}, line 4: {key} holds '{token}', special in this tokenizer."
    with pytest.raises(TaskError, match=f"^{re.escape(message)}"):
        load_task(write(path, *lines), kind())


def test_a_special_token_is_refused_in_a_list_by_its_entry(tmp_path):
    lines = [record(i) for i in range(6)]
    lines[5]["clean_prefix"] += " <bos>"
    (tmp_path / "list.json").write_text(json.dumps(lines))
    with pytest.raises(TaskError, match="list.json, entry 6: clean_prefix holds '<bos>'"):
        load_task(tmp_path / "list.json", byte_level())


def test_what_is_special_in_another_tokenizer_is_text_in_this_one(path):
    lines = [record(i) for i in range(4)] + [record(5, clean_prefix="The <|im_start|> near")]
    assert len(load_task(write(path, *lines), tiny_tokenizer(), verbose=False)) == 4


def test_letters_that_happen_to_be_a_special_token_are_text_where_the_tokenizer_says_so(good):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([AddedToken("art", single_word=True)], special_tokens=True)
    assert "artist" in read_pairs(good)[0].clean_prefix
    assert len(load_task(good, tokenizer)) == 6


@pytest.mark.weights
def test_the_default_labs_tokenizer_drops_only_by_length_and_refuses_what_it_must(path):
    tokenizer = AutoTokenizer.from_pretrained(converted(spec_of("smollm2").model))
    rows = kept_by_tokenizer(available_tasks(), {"smollm2": tokenizer}, "test")
    by_length = re.compile(r"\d+ (not \d+ tokens long|clean and patch of different lengths)")
    reasons = [row["dropped"].removeprefix("smollm2: ").split("; ") for row in rows]
    assert all(by_length.fullmatch(reason) for reason in filter(None, sum(reasons, [])))
    kept = {row["task"]: row["smollm2"] / row["pairs"] for row in rows}
    assert kept["ioi"] == kept["sva_nounpp"] == 1 > kept["dict_key"] > 0
    with pytest.raises(TaskError, match=SPACE_BEHIND_PROMPT):
        load_task(write(path, *[record(0, **SPACED, **BARE)] * 4), tokenizer)
    tokenizer.bos_token = "<|endoftext|>"  # as in the lab
    for token in ("<|im_start|>", "<|endoftext|>"):
        lines = [record(i, clean_prefix=f"{token}The artist") for i in range(4)]
        with pytest.raises(TaskError, match=re.escape(f"clean_prefix holds '{token}'")):
            load_task(write(path, *lines), tokenizer)


# ---------------------------------------------------------------------------------------------
# How much each tokenizer keeps
# ---------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_task_and_what_each_tokenizer_keeps(path):
    wrong = [record(0, clean_answer=" is not"), record(1, **SPACED, **BARE)]
    write(path, *wrong, *(record(i) for i in range(5)))
    tokenizers = {"words": tiny_tokenizer(), "bytes": byte_level()}
    rows = kept_by_tokenizer(["sva_simple", path], tokenizers, "test")
    why = f"1 answer of more than one token; 1 {SPACE_BEHIND_PROMPT}"
    assert rows[1] == {
        "task": "mine",
        "pairs": 7,
        "words": 5,
        "bytes": 5,
        "dropped": f"words: {why} | bytes: {why}",
    }
    task = load_task("sva_simple", tiny_tokenizer(), "test", verbose=False)
    assert rows[0]["task"] == "sva_simple" and rows[0]["words"] == len(task)
    assert rows[0]["pairs"] == len(read_pairs(TASKS_DIR / "sva_simple_test.jsonl"))


def test_the_table_says_zero_where_load_task_would_refuse(path):
    write(path, *(record(i, clean_prefix=f"<bos>{record(i)['clean_prefix']}") for i in range(5)))
    tokenizers = {"words": tiny_tokenizer()}
    mine, ioi = kept_by_tokenizer([path, "ioi"], tokenizers, "test")
    assert mine["words"] == 0 and "clean_prefix holds '<bos>'" in mine["dropped"]
    assert ioi["words"] == 0 and ioi["dropped"].startswith("words: 300 both answers are the same")


def test_the_table_of_pairs_that_all_fit_names_no_reason(good):
    rows = kept_by_tokenizer([good], {"words": tiny_tokenizer()})
    assert rows == [{"task": "mine", "pairs": 6, "words": 6, "dropped": ""}]


def test_the_table_refuses_a_task_that_is_not_there():
    with pytest.raises(TaskError, match="unknown task 'sva'"):
        kept_by_tokenizer(["sva"], {"words": tiny_tokenizer()})


# ---------------------------------------------------------------------------------------------
# Files of one's own
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home_folder(home, good, kind):
    task = load_task(kind("~/mine.jsonl"), tiny_tokenizer())
    assert task == load_task(good, tiny_tokenizer())


@pytest.mark.parametrize("name", ["folder/mine.txt", "mine.json", "./mine.data", "mine.jsonl"])
def test_text_with_a_separator_or_an_ending_is_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=f"no such task file: {Path(name)}"):
        load_task(name, tiny_tokenizer())
    Path(name).parent.mkdir(exist_ok=True)
    write(Path(name), *(record(i) for i in range(4)))
    task = load_task(name, tiny_tokenizer())
    assert (task.name, task.split, len(task)) == ("mine", "", 4)


def test_one_json_list_is_as_good_as_json_lines(tmp_path, good):
    lines = [record(i) for i in range(6)]
    for name, indent in (("flat", None), ("indented", 2)):
        (tmp_path / f"{name}.json").write_text(json.dumps(lines, indent=indent))
        assert read_pairs(tmp_path / f"{name}.json") == read_pairs(good)


@pytest.mark.parametrize("shape", ["lines", "list"])
def test_a_byte_order_mark_and_windows_line_ends_are_forgiven(path, good, shape):
    lines = [record(i) for i in range(6)]
    text = "\n".join(map(json.dumps, lines)) if shape == "lines" else json.dumps(lines, indent=1)
    expected = read_pairs(good)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    assert read_pairs(path) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("The athlete", "a JSON object is wanted, not str"),
        ({"case": "singular"}, "no clean_prefix"),
        (record(clean_answer=5), "clean_answer must be text"),
    ],
)
def test_a_wrong_entry_of_a_list_is_named_by_its_number(path, entry, message):
    path.write_text(json.dumps([record(0), record(1), entry, record(2)]))
    with pytest.raises(TaskError, match=rf"^{re.escape(str(path))}, entry 3: {message}"):
        load_task(path, tiny_tokenizer())


def test_a_broken_list_is_named_with_its_line(path):
    path.write_text("[\n" + json.dumps(record(0)) + "\n" + json.dumps(record(1)) + "\n]")
    with pytest.raises(TaskError, match=r"line 3: not JSON \(.*one list of objects"):
        read_pairs(path)


def test_a_list_that_is_not_utf8_is_named_with_its_line(path):
    path.write_bytes(b'[\n{"x":\n"\xe9"}]')
    with pytest.raises(TaskError, match="line 3: not UTF-8"):
        read_pairs(path)


def test_other_keys_are_ignored_and_named_once(path, capsys):
    lines = [record(i, template="{} near {}", id=f"{i}") for i in range(3)]
    lines += [record(i, clean_subject="artist", id=f"{i}") for i in range(3, 6)]
    task = load_task(write(path, *lines), tiny_tokenizer())
    assert [asdict(pair) for pair in task.pairs] == [record(i) for i in range(6)]
    assert capsys.readouterr().out == "mine: ignored the keys template, id, clean_subject\n"
    load_task(path, tiny_tokenizer(), verbose=False)
    assert capsys.readouterr().out == ""


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
    known = ", ".join(available_tasks())
    assert "ioi, list_index, opposites, sva_nounpp" in known
    with pytest.raises(TaskError, match=f"unknown task 'sva'.*{known}.*jsonl"):
        load_task("sva", tiny_tokenizer())


def test_an_unknown_split_is_refused():
    with pytest.raises(TaskError, match="'train', 'dev' or 'test', not 'validation'"):
        load_task("sva_simple", tiny_tokenizer(), "validation")


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


@pytest.mark.parametrize("pad", [False, True])
def test_all_tensors_of_a_task_move_to_another_device(good, pad):
    task = load_task(good, tiny_tokenizer(), pad=pad)
    moved = task.to("meta")
    assert (moved.lengths is None) == (task.lengths is None) == (not pad)
    for name in TENSORS[: 5 if pad else 4]:
        assert getattr(moved, name).device.type == "meta"
        assert getattr(task, name).device.type == "cpu"
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
    with pytest.raises(TaskError, match="ioi_test.jsonl is missing.*python -m tools.write_tasks"):
        load_task("ioi", tiny_tokenizer(), "test")


def test_no_tasks_at_all_say_how_to_write_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module, "TASKS_DIR", tmp_path)
    with pytest.raises(TaskError, match="no task files in .*python -m tools.write_tasks"):
        load_task("ioi", tiny_tokenizer())


# ---------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------


def test_a_task_is_equal_to_itself_and_to_one_that_is_loaded_again(good):
    task, again = (load_task(good, tiny_tokenizer()) for _ in range(2))
    assert task == task and task == again and not task != again
    assert hash(task) == hash(again) and len({task, again}) == 1
    assert {task: "kept"}[again] == "kept"


def test_padded_tasks_are_compared_too(good):
    task, again = (load_task(good, tiny_tokenizer(), pad=True) for _ in range(2))
    assert task == again and hash(task) == hash(again)
    assert task != load_task(good, tiny_tokenizer())  # which has no lengths


def test_tasks_that_differ_in_anything_are_not_equal(good):
    task = load_task(good, tiny_tokenizer(), pad=True)
    changes = [
        dict(name="another"),
        dict(split="test"),
        dict(has_bos=False),
        dict(pairs=task.pairs[::-1]),
        *(dict([(name, getattr(task, name) + 1)]) for name in TENSORS),
    ]
    others = [replace(task, **change) for change in changes]
    others += [task[:5], task[[1, 0, 2, 3, 4, 5]], task.to("meta")]
    assert [other for other in others if other == task or task == other] == []
    assert task != "another" and task is not None and task != None  # noqa: E711


def test_labels_and_what_was_dropped_make_no_other_task(good):
    task = load_task(good, tiny_tokenizer())
    assert replace(task, n_dropped={"one": 1}, position_labels=()) == task


@given(rows=st.lists(st.integers(-6, 5), max_size=8), more=st.lists(st.integers(0, 9), max_size=4))
def test_rows_of_rows_are_rows(rows, more):
    task = six_pairs()
    more = [i for i in more if i < len(rows)]
    assert task[rows][more] == task[[rows[i] for i in more]]
    assert task[rows].pairs == tuple(task.pairs[i] for i in rows)
    assert torch.equal(task[rows].clean, task.clean[rows])


@functools.cache
def six_pairs() -> Task:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "mine.jsonl", *(record(i) for i in range(6)))
        return load_task(path, tiny_tokenizer())
