"""From text to tokens: the one place where the course calls a tokenizer.

Nothing here adds BOS or any other special token. Whoever wants BOS puts its id in front of a row,
so that it is there once, and only where somebody put it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

PADDING = 0
"""The token that fills short rows. Attention is causal: what stands behind a prompt changes nothing
in it, so any token does."""


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without BOS or any other special token."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def token_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """`token_ids` of each text, in one call: with thousands of texts, much faster."""
    if not texts:  # tokenizers refuse an empty list
        return []
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def continuation(
    tokenizer: Any, prompt: str, text: str, prompt_ids: Sequence[int] | None = None
) -> list[int] | None:
    """The tokens that a text adds to a prompt: those of prompt + text after the prompt's own.

    That is what a model predicts after the prompt, and not always the tokens of the text alone.
    After "The car", " is" adds ``["▁is"]`` in Llama 2, where " is" alone is ``["▁", "▁is"]``.

    Args:
        prompt_ids: `token_ids` of the prompt, where they are at hand.

    Returns:
        None where the prompt's own tokens change with the text behind it. "The car " ends in a
        token for the space, and "The car is" has none.
    """
    before = token_ids(tokenizer, prompt) if prompt_ids is None else list(prompt_ids)
    both = token_ids(tokenizer, prompt + text)
    return both[len(before) :] if both[: len(before)] == before else None


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that a tokenizer reads as commands and not as text, such as ``<|im_start|>``, by
    id: BOS, EOS and their like, and those that were added as special.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {i: str(token) for i, token in added.items() if token.special}
    named = tokenizer.all_special_tokens
    return special | dict(zip(tokenizer.convert_tokens_to_ids(named), named))


def one_token(tokenizer: Any, text: str) -> int:
    """The token of a text that is a single one, such as ``" are"``.

    Raises:
        ValueError: the text is several tokens, or none.
    """
    ids = token_ids(tokenizer, text)
    if len(ids) != 1:
        raise ValueError(
            f"{text!r} is {len(ids)} tokens of this tokenizer, and one is wanted: mind the leading "
            "space, or take another text."
        )
    return ids[0]


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "n seq"], Int[Tensor, " n"]]:
    """Rows of tokens as one tensor, short ones filled with `PADDING` at their end; and the length
    of each row before that.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = max(map(len, rows), default=0)
    tokens = torch.full((len(rows), longest), PADDING, dtype=torch.long)
    for tokens_of_row, row in zip(tokens, rows):
        tokens_of_row[: len(row)] = torch.tensor(row, dtype=torch.long)
    return tokens, lengths
