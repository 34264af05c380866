"""Running text: its tokens, the residual stream on it, and what the model loses when that is replaced.

The text is in ``data/text/``: short passages that the course's default model wrote itself (see data/README.md). ``train`` is for
training, ``held_out`` for judging; they share no subject.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.bootstrap import Interval, ratio_interval
from course_utils.labs import Lab
from course_utils.layers import LayerStack

TEXT_DIR = Path(__file__).resolve().parent.parent / "data" / "text"


def load_text(
    tokenizer: Any, split: str = "train", *, n: int | None = None, seq_len: int = 32, folder: Path = TEXT_DIR
) -> Int[Tensor, "n seq_len"]:
    """Pieces of running text, each with BOS and the ``seq_len - 1`` tokens that follow each other in one passage.

    Args:
        split: the file's name: ``"train"`` or ``"held_out"``.
        n: how many pieces, from the beginning of the file; all by default.

    Raises:
        ValueError: no such split; fewer than ``n`` pieces; a tokenizer without BOS.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no BOS token, which every piece is to start with.")
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"no text {split!r}; there is {', '.join(sorted(other.stem for other in folder.glob('*.txt'))) or 'none'}."
        )
    width, pieces = seq_len - 1, []
    for passage in tokenizer(path.read_text(encoding="utf-8").splitlines(), add_special_tokens=False)["input_ids"]:
        pieces += [[tokenizer.bos_token_id, *passage[i : i + width]] for i in range(0, len(passage) - width + 1, width)]
    if n is not None and n > len(pieces):
        raise ValueError(f"{split} has {len(pieces)} pieces of {seq_len} tokens, fewer than {n}.")
    return torch.tensor(pieces[:n])


@torch.no_grad()
def residual_stream(
    lab: Lab, layer: int, tokens: Int[Tensor, "n seq"], *, batch_size: int = 64, progress: bool = False
) -> Float[Tensor, "n seq_without_bos d_model"]:
    """``blocks.{layer}.hook_resid_post`` on pieces of text, without BOS, whose activation is like no other token's."""
    stack = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    batches = tqdm(tokens.split(batch_size), desc=f"layer {layer}", disable=not progress)
    return torch.cat([stack.run(stack.embed(batch), range(layer + 1)) for batch in batches])


@torch.no_grad()
def text_loss(
    lab: Lab,
    layer: int,
    tokens: Int[Tensor, "n seq"],
    x: Float[Tensor, "n seq_without_bos d_model"],
    replace: Callable[[Float[Tensor, "batch d_model"]], Float[Tensor, "batch d_model"]] | None = None,
    *,
    batch_size: int = 64,
) -> Float[Tensor, " n"]:
    """The model's cross-entropy on each piece, in nats a token, with its residual stream after ``layer`` replaced.

    Mean over the tokens from the second after BOS on: what is predicted from BOS alone does not depend on ``replace``.

    Args:
        x: `residual_stream` of the same tokens at the same layer, which need not be run again.
        replace: what to put in its place, for a batch of tokens ``[batch, d_model]``; by default nothing is replaced.
    """
    stack = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    seq, losses = x.shape[1], []
    for resid, batch in zip(x.split(batch_size), tokens.split(batch_size)):
        if replace is not None:
            resid = replace(resid.flatten(0, 1)).to(resid).unflatten(0, resid.shape[:2])
        normed = stack.norm(stack.run(resid, range(layer + 1, stack.n_layers)), seq)
        logits, following = stack.logits(normed[:, :-1]).float(), batch[:, 2:].to(normed.device)
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
            .view_as(following)
            .mean(1)
        )
    return torch.cat(losses).cpu()


def loss_recovered(
    model: Float[Tensor, " n"], spliced: Float[Tensor, " n"], ablated: Float[Tensor, " n"], *, seed: int = 0
) -> Interval:
    """(ablated − spliced) / (ablated − model), of mean losses: 1 = as good as the model, 0 = no better than ablating.

    The 95 % interval is over pieces of text (percentile bootstrap).
    """
    return ratio_interval(ablated - spliced, ablated - model, seed=seed)
