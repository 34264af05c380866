"""Running text as tokens: pieces of passages, each with BOS in front.

The text is in ``data/text/``: short passages that the course's default model wrote itself (see
data/README.md). ``train`` is for training, ``held_out`` for judging; they share no subject.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from course_utils import DATA
from course_utils.prompts.tokens import token_rows

TEXT_DIR = DATA / "text"


def load_text(
    tokenizer: Any,
    split: str = "train",
    *,
    n: int | None = None,
    seq_len: int = 32,
    folder: Path = TEXT_DIR,
) -> Int[Tensor, "n seq_len"]:
    """Pieces of running text, each with BOS and the ``seq_len - 1`` tokens that follow each other
    in one passage. What is left at a passage's end is dropped.

    Args:
        split: the file's name: ``"train"`` or ``"held_out"``.
        n: how many pieces, from the beginning of the file; all by default.

    Raises:
        ValueError: no such split; fewer than ``n`` pieces; a tokenizer without BOS.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        raise ValueError("the tokenizer has no BOS token, which every piece is to start with.")
    path = folder / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in folder.glob("*.txt")))
        raise ValueError(f"no text {split!r}; there is {there or 'none'}.")
    passages = token_rows(tokenizer, path.read_text(encoding="utf-8").splitlines())
    width = seq_len - 1
    pieces = []
    for passage in passages:
        for start in range(0, len(passage) - width + 1, width):
            pieces.append([bos, *passage[start : start + width]])
    if n is not None and n > len(pieces):
        raise ValueError(f"{split} has {len(pieces)} pieces of {seq_len} tokens, fewer than {n}.")
    return torch.tensor(pieces[:n], dtype=torch.long).reshape(-1, seq_len)
