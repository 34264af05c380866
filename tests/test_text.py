"""Running text: its pieces, and the text that is shipped."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from course_utils.prompts.text import TEXT_DIR, load_text
from course_utils.prompts.tokens import token_ids


def test_pieces_follow_each_other_within_a_passage_and_start_with_bos(lab, tmp_path):
    words = " near by the is are was were".split(" ")[1:]
    passage = "The " + " ".join(words)
    (tmp_path / "train.txt").write_text(f"{passage}\n{passage}\n")
    tokens = load_text(lab.tokenizer, seq_len=4, folder=tmp_path)
    ids = token_ids(lab.tokenizer, passage)
    assert tokens[:, 0].eq(lab.tokenizer.bos_token_id).all() and len(ids) == 8
    assert tokens[:, 1:].tolist() == [ids[:3], ids[3:6]] * 2
    assert len(load_text(lab.tokenizer, n=3, seq_len=4, folder=tmp_path)) == 3


def test_what_is_not_there_is_refused(lab, tmp_path):
    (tmp_path / "train.txt").write_text("The near by the\n")
    with pytest.raises(ValueError, match="no text 'test'; there is train"):
        load_text(lab.tokenizer, "test", folder=tmp_path)
    with pytest.raises(ValueError, match="train has 1 pieces of 4 tokens, fewer than 2"):
        load_text(lab.tokenizer, "train", n=2, seq_len=4, folder=tmp_path)


def test_a_tokenizer_without_bos_is_refused(tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no BOS token"):
        load_text(tokenizer, folder=tmp_path)


@given(n_words=st.lists(st.integers(0, 12), max_size=4), seq_len=st.integers(2, 6))
def test_the_pieces_are_the_passages_without_what_is_left_at_their_ends(n_words, seq_len):
    words = [" near", " by", " the", " is", " are", " was", " were"]
    passages = ["The" + "".join(words[i % 7] for i in range(n)) for n in n_words]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.txt").write_text("".join(f"{passage}\n" for passage in passages))
        tokens = load_text(tiny_tokenizer(), seq_len=seq_len, folder=Path(folder))
    width = seq_len - 1
    kept = [ids[: len(ids) // width * width] for ids in map(ids_of, passages)]
    assert tokens.shape[1] == seq_len and tokens.dtype == torch.long
    assert tokens[:, 1:].flatten().tolist() == [token for ids in kept for token in ids]
    assert tokens[:, 0].eq(tiny_tokenizer().bos_token_id).all()


def ids_of(passage: str) -> list[int]:
    return token_ids(tiny_tokenizer(), passage)


def test_the_shipped_text_is_plain_small_and_split_without_overlap():
    files = {
        name: (TEXT_DIR / f"{name}.txt").read_text(encoding="utf-8")
        for name in ("train", "held_out")
    }
    assert sum(map(len, files.values())) < 300_000
    assert all(text.isascii() for text in files.values())
    train, held_out = (set(files[name].splitlines()) for name in ("train", "held_out"))
    assert not train & held_out and len(train) > 300 and len(held_out) > 50
