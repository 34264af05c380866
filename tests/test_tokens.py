"""Tokens: text to ids in one way, without BOS; rows of any lengths as one tensor."""

import copy

import pytest
import torch
from conftest import session_tokenizer, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from course_utils.prompts.tokens import (
    PADDING,
    continuation,
    one_token,
    pad_right,
    special_tokens,
    token_ids,
    token_rows,
)

TEXTS = st.lists(
    st.lists(st.sampled_from([" near", " by", " the", " is", " are", " xyz"])).map("".join)
)
ROWS = st.lists(st.lists(st.integers(1, 50_000), max_size=12), max_size=8)


def test_the_tokens_of_a_text_are_its_words_and_have_no_bos():
    tokenizer = tiny_tokenizer()
    assert tokenizer("The near")["input_ids"][0] == tokenizer.bos_token_id  # it would add one
    assert tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "The near")) == ["The", " near"]
    assert token_ids(tokenizer, "") == []


def test_the_tokens_of_a_text_say_the_text():
    text = ">>> age = {'Ann': 1}\n>>> age['Bob']\n"
    assert session_tokenizer().decode(token_ids(session_tokenizer(), text)) == text


@given(TEXTS)
def test_rows_are_the_tokens_of_each_text(texts):
    rows = token_rows(tiny_tokenizer(), texts)
    assert rows == [token_ids(tiny_tokenizer(), text) for text in texts]


def test_rows_of_any_sequence_of_texts_even_of_none():
    assert token_rows(tiny_tokenizer(), ()) == []
    assert token_rows(tiny_tokenizer(), (" is",)) == [token_ids(tiny_tokenizer(), " is")]


WORDS = st.lists(st.sampled_from([" near", " by", " is", " xyz", "The", " "])).map("".join)


@given(WORDS, WORDS)
def test_a_continuation_is_the_tokens_that_a_text_adds_to_a_prompt(prompt, text):
    tokenizer = tiny_tokenizer()
    before = token_ids(tokenizer, prompt)
    added = continuation(tokenizer, prompt, text)
    assert added == continuation(tokenizer, prompt, text, before)
    both = token_ids(tokenizer, prompt + text)
    assert (added is None) == (both[: len(before)] != before)
    assert added is None or before + added == both


def test_a_text_that_changes_the_prompts_tokens_has_no_continuation():
    tokenizer = tiny_tokenizer()
    assert continuation(tokenizer, "The ", "is") is None
    assert continuation(tokenizer, "The", " is") == token_ids(tokenizer, " is")
    assert continuation(tokenizer, "The", "") == []


def test_special_tokens_are_those_with_a_role_and_those_that_were_added_as_special():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    named = {tokenizer.convert_tokens_to_ids(token): token for token in ("<bos>", "<unk>")}
    assert special_tokens(tokenizer) == named
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.add_tokens(["an ordinary one"])
    added = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert special_tokens(tokenizer) == named | {added: "<|im_start|>"}


def test_one_token_is_the_id_of_a_text_that_is_one():
    assert tiny_tokenizer().convert_ids_to_tokens(one_token(tiny_tokenizer(), " are")) == " are"


@pytest.mark.parametrize(("text", "n"), [(" is are", 2), ("", 0)])
def test_a_text_of_several_tokens_or_none_is_refused_by_name(text, n):
    with pytest.raises(ValueError, match=f"^'{text}' is {n} tokens of this tokenizer, and one is"):
        one_token(tiny_tokenizer(), text)


@given(ROWS)
def test_padded_rows_are_the_rows_with_padding_behind_them(rows):
    tokens, lengths = pad_right(rows)
    assert lengths.tolist() == [len(row) for row in rows]
    assert tokens.shape == (len(rows), max(map(len, rows), default=0))
    assert tokens.dtype == lengths.dtype == torch.long
    for row, padded in zip(rows, tokens.tolist()):
        assert padded == row + [PADDING] * (tokens.shape[1] - len(row))


@given(ROWS)
def test_padding_again_changes_nothing(rows):
    tokens, _ = pad_right(rows)
    assert torch.equal(pad_right(tokens.tolist())[0], tokens)
