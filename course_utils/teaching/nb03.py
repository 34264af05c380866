"""The exercises of notebook 03, the SAEMasks hook: their solutions and what checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.teaching.fixtures import (
    EARLY,
    LATE,
    bos_row_off,
    keep_bos,
    normal,
    require_masks,
    residual_stream,
    tiny_sae,
    uniform,
)
from course_utils.teaching.watched import other_kind
from course_utils.teaching.workbook import Unnamed, Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 3.1 One latent, one position
# ---------------------------------------------------------------------------------------------


@book.solution
def switch_off(
    x: Float[Tensor, "batch seq d_model"], hook: HookPoint, *, sae: SAE, latent: int, position: int
) -> Float[Tensor, "batch seq d_model"]:
    """The residual stream as the SAE rebuilds it, with one latent set to 0 at one position.

    Args:
        x: the residual stream at the hook point; column 0 is BOS, which stays as it is.
        hook: TransformerLens' hook point; every hook function gets it, this one does not need it.
        sae: reads and rebuilds the residual stream (``sae.encode``, ``sae.decode``).
        latent, position: what to switch off, in every prompt of the batch.

    Returns:
        What the next layer reads: a new tensor (``x`` itself is left alone).
    """
    f = sae.encode(x)
    f[:, position, latent] = 0
    return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)


@book.checker(switch_off)
def _(attempt: Callable) -> None:
    sae, latent, position = tiny_sae(b_enc=2.0), 3, 2
    x = residual_stream()
    whole = sae.encode(x)
    node = (slice(None), position, latent)

    def spliced(f: Tensor) -> Tensor:
        return keep_bos(x, sae.decode(f))

    def without(*index: int | slice) -> Tensor:
        return _put(whole, 0, *index)

    every = slice(None)
    right = without(*node)
    x_hat, right_x = spliced(whole), spliced(right)
    written = torch.zeros_like(x)  # what the latent's decoder row adds, and its encoder column
    written[:, position] = whole[:, position, latent, None] * sae.W_dec[latent]
    read = torch.zeros_like(x)
    read[:, position] = whole[:, position, latent, None] * sae.W_enc[:, latent]
    decoded = sae.decode(right)
    answer = attempt(x, HookPoint(), sae=sae, latent=latent, position=position)
    if isinstance(answer, Tensor) and answer.shape == whole.shape:
        raise Wrong(
            "you returned latents. The next layer reads a residual stream: decode them first."
        )
    column = "the encoder's column is taken out, and what a latent writes is the decoder's row."
    wrong = {
        "BOS went through the SAE too: column 0 is to stay as it is.": decoded,
        "BOS is 0: column 0 of x is to stay as it is.": torch.cat(
            [torch.zeros_like(x[:, :1]), decoded[:, 1:]], 1
        ),
        "BOS is there twice: x's own is put before all that is decoded. Cut "
        "column 0 off that.": torch.cat([x[:, :1], decoded], 1),
        "BOS is missing: x's column 0 is to stand before what is decoded.": decoded[:, 1:],
        "you switched the latent off at every position, not at one.": spliced(
            without(every, every, latent)
        ),
        "you switched every latent off at that position, not one.": spliced(
            without(every, position)
        ),
        "position and latent are swapped: latents are [batch, position, latent].": spliced(
            without(every, latent, position)
        ),
        "only the first prompt lost its latent: the batch dimension comes first.": spliced(
            without(0, position, latent)
        ),
        "you kept this latent and switched off all others.": spliced(whole - right),
        "the batch dimension is missing: latents are [batch, position, latent].": spliced(
            without(position, latent)
        ),
        "the position after the wanted one lost it: in x[:, 1:], position p "
        "is column p − 1.": spliced(without(every, position + 1, latent)),
        "the position before the wanted one lost it: x begins with BOS, so position p "
        "is column p.": spliced(without(every, position - 1, latent)),
        "the next latent is off: latents are counted from 0.": spliced(
            without(every, position, latent + 1)
        ),
        "the latent before it is off: latents are counted from 0.": spliced(
            without(every, position, latent - 1)
        ),
        "the latent is set to 1: off is 0.": spliced(_put(whole, 1, *node)),
        "nothing is switched off: this is the plain splice.": x_hat,
        "only this position went through the SAE: all but BOS are to be "
        "rebuilt from latents.": torch.cat(
            [x[:, :position], decoded[:, position : position + 1], x[:, position + 1 :]], 1
        ),
        "you took the latent's part out of x itself, so that the SAE's error stays: splice, as in "
        "version 1.": x - written,
        f"{column} (Out of x itself, too, so that the SAE's error stays.)": x - read,
        f"{column}": x_hat - read,
        "you set a dimension of x to 0. A latent is a direction, and no one "
        "dimension: encode first.": _put(x, 0, *node),
        "you set a dimension of x to 0, and encoded then. It is a latent that is to be 0: encode "
        "first.": keep_bos(x, sae.decode(sae.encode(_put(x, 0, *node)))),
        "you set a dimension of the rebuilt stream to 0. It is a latent that is "
        "to be 0: before you decode.": _put(x_hat, 0, *node),
        "b_dec is missing: let sae.decode put the latents together.": keep_bos(
            x, right @ sae.W_dec
        ),
        "this is x itself.": x,
    }
    compare(answer, right_x, wrong, what="what the hook returns")
    position, latent = 4, 6
    answer = attempt(x, HookPoint(), sae=sae, latent=latent, position=position)
    right_x = spliced(without(every, position, latent))
    compare(answer, right_x, what="what the hook returns for another node")


def _put(x: Tensor, value: int, *index: int | slice) -> Tensor:
    """A copy with ``value`` at an index."""
    copy = x.clone()
    copy[index] = value
    return copy


# ---------------------------------------------------------------------------------------------
# 3.2 Masked latents
# ---------------------------------------------------------------------------------------------


@book.solution
def masked(
    f: Float[Tensor, "batch seq d_sae"],
    mask: Float[Tensor, "seq d_sae"] | Float[Tensor, " d_sae"],
    ablation: Float[Tensor, "*batch seq d_sae"] | Float[Tensor, " d_sae"],
) -> Float[Tensor, "batch seq d_sae"]:
    """Latents, with ``ablation`` in the place of those that the mask takes out.

    Args:
        f: latents.
        mask: 1 keeps a latent, 0 puts ``ablation`` in its place; 0.25 means a quarter of the way
            from ``ablation`` to ``f``.
        ablation: what stands in for a latent that is taken out: 0, or its mean.
    """
    return ablation + (f - ablation) * mask


SOFT = "right for 0 and 1, but a mask between them is to mix the two: "


@book.checker(masked, gradient=("f", "mask", "ablation"))
def _(attempt: Callable) -> None:
    f, ablation = normal(2, 3, 4, seed=5).abs(), 1 + normal(3, 4, seed=7) ** 2
    mask = uniform(3, 4, seed=6)
    mask[0], mask[1] = 0, 1
    mask[2, 0], mask[2, 1] = 0.2, 0.7

    def right(mask: Tensor, ablation: Tensor = ablation, f: Tensor = f) -> Tensor:
        return f * mask + ablation * (1 - mask)

    change = f - ablation
    wrong = {
        "what is taken out becomes 0: the ablation is missing.": f * mask,
        "kept and ablated are swapped: 1 keeps the latent.": right(1 - mask),
        "the ablation is added where the latent is kept, too.": f * mask + ablation,
        f"{SOFT}it will be learned, so it needs a gradient.": right((mask > 0).float()),
        f"{SOFT}a threshold has no gradient.": right((mask > 0.5).float()),
        f"{SOFT}this takes out all that is not wholly kept.": right((mask == 1).float()),
        f"{SOFT}in a straight line, and not by its square.": right(mask**2),
        "f − ablation is there, and the ablation that it starts from is not.": change * mask,
        "f is there twice: the mix starts from the ablation, and not from f.": f + change * mask,
        "the change is to be taken from ablation to f, and it goes the other way.": ablation
        - change * mask,
        "the change from ablation to f is f − ablation, and not their sum.": ablation
        + (f + ablation) * mask,
        "the mask is added. It is to multiply the change.": ablation + change + mask,
        "the mask is taken off. It is to multiply the change.": ablation + change - mask,
        "you divided by the mask. It is to multiply the change.": ablation + change / mask,
        "f and the mask are swapped: write (f − ablation) · mask.": ablation
        + (mask - ablation) * f,
        "the mask and the ablation are swapped: the mix starts from the ablation.": mask
        + (f - mask) * ablation,
        "the mask is not used: this is f.": f,
        "the mask is not used: this is the ablation.": ablation.expand_as(f),
        "the ablation is multiplied by the mask, and f is not: where are the brackets?": ablation
        + f
        - ablation * mask,
    }
    compare(attempt(f, mask, ablation), right(mask), wrong, what=MASKED)
    for ending, other_mask, other_ablation in (
        ("one mask for all positions, [d_sae],", mask[2], ablation),
        ("one ablation for all positions, [d_sae],", mask, ablation[1]),
        ("an ablation of each prompt's own, [batch, seq, d_sae],", mask, change.abs()),
    ):
        answer = attempt(f, other_mask, other_ablation)
        compare(answer, right(other_mask, other_ablation), what=f"with {ending} the result")


MASKED = "what the function returns"


# ---------------------------------------------------------------------------------------------
# 3.3 Mean latents
# ---------------------------------------------------------------------------------------------


@book.solution
def mean_latents(x: Float[Tensor, "n seq d_model"], sae: SAE) -> Float[Tensor, "seq d_sae"]:
    """Every latent's mean over prompts, position by position.

    BOS' row, 0, is 0: no latent is taken there.

    Args:
        x: the residual stream of ``n`` patch prompts of one length, BOS first.
        sae: encodes it.
    """
    means = sae.encode(x).mean(dim=0)
    means[0] = 0
    return means


@book.checker(mean_latents)
def _(attempt: Callable) -> None:
    sae, x = tiny_sae(), 2 * residual_stream(5, 4, seed=8)
    f = sae.encode(x)
    mean, of_mean_x = f.mean(0), sae.encode(x.mean(0))
    where_it_fires = f.sum(0) / (f > 0).sum(0).clamp(min=1)
    over_positions = "you averaged over positions too: a verb's mean is not a noun's."
    not_linear = "Encoding is not linear: encode, then average."
    wrong = {
        "BOS has means too: row 0 is to be 0.": mean,
        "BOS' row is 1: it is to be 0.": torch.cat([torch.ones_like(mean[:1]), mean[1:]]),
        "another row than BOS' is 0: BOS is at position 0.": _put(mean, 0, 1),
        "a latent is 0 at every position. A row, a position, is to be 0: BOS'.": _put(
            mean, 0, slice(None), 0
        ),
        over_positions: f[:, 1:].mean((0, 1)),
        f"{over_positions} (And BOS took part.)": f.mean((0, 1)),
        "you averaged over positions, and not over prompts.": f.mean(1),
        "you averaged over positions, and not over prompts: dimension 0 is the prompts'.": _put(
            f.mean(1), 0, 0
        ),
        f"you encoded the mean residual stream. {not_linear}": bos_row_off(of_mean_x),
        f"you encoded the mean residual stream, BOS too. {not_linear}": of_mean_x,
        "this is the sum over prompts.": bos_row_off(f.sum(0)),
        "you divided by one less than the number of prompts.": bos_row_off(f.sum(0) / 4),
        "BOS' row is missing: it is to be there, and 0.": mean[1:],
        "you averaged only over prompts on which the latent fires: a silent "
        "prompt counts, with 0.": bos_row_off(where_it_fires),
        "this is the share of prompts on which a latent fires, and not how "
        "much it does.": bos_row_off((f > 0).float().mean(0)),
        "this is the median over prompts.": bos_row_off(f.median(0).values),
        "this is the largest value over prompts.": bos_row_off(f.amax(0)),
        "this is the spread over prompts, and not the mean.": bos_row_off(f.std(0)),
        "this is the first prompt alone.": bos_row_off(f[0]),
        "the mean runs over the residual stream: encode it first.": bos_row_off(x.mean(0)),
        "this is the mean residual stream that is rebuilt: latents are wanted, so do "
        "not decode.": bos_row_off(sae.decode(f).mean(0)),
        "every prompt is there still: average over them.": f,
    }
    compare(attempt(x, sae), bos_row_off(mean), wrong, what="the mean")


# ---------------------------------------------------------------------------------------------
# 3.4 `SAEMasks.forward`
# ---------------------------------------------------------------------------------------------


@book.solution
def forward(
    self: SAEMasks,
    x: Float[Tensor, "*batch seq d_sae"],
    sae_hook_point: str,
    mean_ablation: Float[Tensor, "seq d_sae"] | Float[Tensor, " d_sae"] | None = None,
) -> Float[Tensor, "*batch seq d_sae"]:
    """Latents of one hook point, masked by that hook point's own mask.

    Args:
        self: the masks; ``self[name]`` is the mask of a hook point.
        x: latents at ``sae_hook_point``.
        sae_hook_point: which SAE they are of.
        mean_ablation: what stands in for what is masked out; 0 by default.

    Raises:
        MaskError: no mask for that hook point, or one of another size than the latents
            (``self.check`` raises it).
    """
    self.check(sae_hook_point, seq=x.shape[-2], d_sae=x.shape[-1])
    return masked(
        x, self[sae_hook_point], torch.zeros_like(x) if mean_ablation is None else mean_ablation
    )


@book.checker(forward, gradient=("self", "x", "mean_ablation"))
def _(attempt: Callable) -> None:
    first = torch.tensor([[0.0, 0, 0, 0], [1, 0.3, 1, 0], [0, 1, 0, 0.6]])
    second = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0.2, 1], [1, 0.7, 0, 0]])
    masks = SAEMasks([EARLY, LATE], [first, second])
    x, mean = normal(2, 3, 4, seed=9), 1 + normal(3, 4, seed=10) ** 2

    def right(mask: Tensor, mean: Tensor = mean, x: Tensor = x) -> Tensor:
        return x * mask + mean * (1 - mask)

    wrong = {
        "you took the first mask, whatever the hook point.": right(first),
        "mean_ablation is not used: what is masked out becomes 0.": x * second,
        "kept and ablated are swapped: 1 keeps the latent.": right(1 - second),
        "the masks of all hook points act at once: one hook point has one mask.": right(
            first * second
        ),
        f"{SOFT}masks are soft while they are learned.": right((second > 0).float()),
        f"{SOFT}a threshold has no gradient.": right((second > 0.5).float()),
        f"{SOFT}this takes out all that is not wholly kept.": right((second == 1).float()),
        "nothing is masked: this is x.": x,
        "everything is masked: this is mean_ablation.": mean.expand_as(x),
        "x and the mask are swapped: the mask says how much of x stays.": second * x
        + mean * (1 - x),
        "the mask and mean_ablation are swapped.": x * mean + second * (1 - mean),
    }
    compare(_fitting(attempt, masks, x, LATE, mean), right(second), wrong, what="what it returns")
    try:
        answer = _fitting(attempt, masks, x, LATE)
    except (TypeError, AttributeError) as error:
        raise Wrong(
            f"without mean_ablation, 0 is to stand in, and not to raise {type(error).__name__}."
        ) from None
    wrong = {
        "without mean_ablation, nothing is taken out.": x,
        "without mean_ablation, 1 stands in for what is taken out: it is to be 0.": right(
            second, torch.ones_like(x)
        ),
        "without mean_ablation, kept and ablated are swapped.": x * (1 - second),
    }
    compare(answer, x * second, wrong, what="without mean_ablation, the result")

    shared = SAEMasks([LATE], [second[1]])
    try:
        answer = attempt(shared, x, LATE, mean)
    except MaskError:
        raise Wrong(
            "a shared mask, [d_sae], fits latents of any length, and was refused: leave the sizes "
            "to self.check."
        ) from None
    compare(answer, right(second[1]), what="with a shared mask, [d_sae], the result")
    answer = _fitting(attempt, masks, x, LATE, mean[1])
    compare(
        answer, right(second, mean[1]), what="with means for all positions, [d_sae], the result"
    )
    _require_refusal(attempt, masks, x[:, -1:], mean[-1:])
    _require_refusal(attempt, masks, x[..., -1:], mean[:, -1:])


def _fitting(forward: Callable, masks: SAEMasks, x: Tensor, *rest: str | Tensor) -> Tensor:
    """What an attempt makes of masks and latents that fit each other."""
    try:
        return forward(masks, x, *rest)
    except MaskError:
        raise Wrong(
            f"latents {list(x.shape)} fit a mask {list(masks[LATE].shape)}, and were refused: seq "
            "is the dimension before the last of x, d_sae the last."
        ) from None


def _require_refusal(forward: Callable, masks: SAEMasks, x: Tensor, mean: Tensor) -> None:
    """Raise `Wrong` unless latents that the mask does not fit are refused with `MaskError`."""
    try:
        grown = forward(masks, x, LATE, mean)
    except MaskError:
        return
    except (AssertionError, RuntimeError, ValueError) as error:
        raise Wrong(
            f"a mask that does not fit is to be refused with MaskError, not {type(error).__name__}."
        ) from None
    raise Wrong(
        f"latents {list(x.shape)} met a mask {list(masks[LATE].shape)}, and came out as "
        f"{list(grown.shape)}: broadcasting made up positions or latents. Check that the mask fits "
        "before you use it."
    )


# ---------------------------------------------------------------------------------------------
# 3.5 Counting nodes
# ---------------------------------------------------------------------------------------------


@book.solution
def count_nodes(masks: SAEMasks, seq: int) -> int:
    """How many nodes, (position, latent) pairs, the masks keep in a prompt of ``seq`` tokens.

    BOS, position 0, has none.

    Args:
        masks: a mask ``[seq, d_sae]`` has a number for every node; ``[d_sae]`` keeps its latents at
            every position. What is above 0 is kept.
        seq: tokens in a prompt, BOS included.
    """
    total = 0
    for mask in masks.masks:
        positions = 1 if mask.ndim == 2 else seq - 1
        kept = mask[1:] if mask.ndim == 2 else mask
        total += positions * int((kept > 0).sum())
    return total


@book.checker(count_nodes)
def _(attempt: Callable) -> None:
    own = torch.tensor(
        [
            [0.9, 1, 0, 0.3, 0.4, 1],
            [0, 1, 0.6, 0.6, 0.6, 0.9],
            [0, 0.2, 0, 0.3, 0, 0],
            [0.3, 0, 0, 0, 0.6, 0],
            [0, 0, 0.2, 0.4, 0.2, 0],
            [0, 0.9, 0.6, 0.3, 0, 0.9],
            [0, 0, 1, 0.9, 1, 0],
        ]
    )
    shared = torch.tensor([1, 0.4, 1, 0.3, 1, 0.6, 0.6, 0])
    seq, positions, kept, rest = len(own), len(own) - 1, own > 0, own[1:]
    n_own, n_shared = int(kept[1:].sum()), int((shared > 0).sum())
    soft = "a node with 0.5 is a node: count what is above 0."
    wrong = {
        "BOS is counted too: nothing is spliced at position 0.": kept.sum(),
        f"you summed the mask: {soft}": rest.sum(),
        f"you summed the mask, and cut the sum to a whole number: {soft}": int(rest.sum()),
        f"you summed the mask, BOS too: {soft}": own.sum(),
        f"you summed the mask, BOS too, and cut the sum to a whole number: {soft}": int(own.sum()),
        f"you made whole numbers of the mask's values before you counted: {soft}": rest.int().sum(),
        f"you counted what is above 0.5: {soft}": (rest > 0.5).sum(),
        "you counted latents, not nodes: one latent at two positions is two nodes.": kept[1:]
        .any(0)
        .sum(),
        "you counted all nodes, kept or not.": rest.numel(),
        "you counted all nodes, kept or not, and BOS'.": own.numel(),
        "you counted what is off: above 0 is kept.": (rest <= 0).sum(),
        "there is none: above 0 is kept.": 0,
        "a mask [seq, d_sae] has its positions already: its nodes are not to be multiplied by "
        "them.": positions * n_own,
        "every node is counted twice.": 2 * n_own,
        "you left out the first latent, a column: BOS is a row.": kept[:, 1:].sum(),
        "you left out rows 0 and 1: BOS is row 0 alone.": kept[2:].sum(),
    }
    answer = attempt(SAEMasks([EARLY], [own]), seq)
    compare(answer, n_own, wrong, what="the count of a mask [seq, d_sae]")

    wrong = {
        "a shared mask's latents are counted once: they are kept at every position.": n_shared,
        "a shared mask keeps no node at BOS: nothing is spliced there.": n_shared * seq,
        "a shared mask keeps its latents at seq − 1 positions: one is missing here.": n_shared
        * (seq - 2),
        "row 0 of a shared mask is a latent, not BOS.": positions * int((shared[1:] > 0).sum()),
        f"you summed a shared mask: {soft}": positions * shared.sum(),
        f"you cut the sum of a shared mask to a whole number: {soft}": positions
        * int(shared.sum()),
        f"you made whole numbers of a shared mask's values before you counted: {soft}": positions
        * shared.int().sum(),
        f"you counted what is above 0.5 in a shared mask: {soft}": positions * (shared > 0.5).sum(),
        "you counted all latents of a shared mask, kept or not.": positions * len(shared),
        "you counted what is off in a shared mask.": positions * (len(shared) - n_shared),
    }
    answer = attempt(SAEMasks([EARLY], [shared]), seq)
    compare(answer, positions * n_shared, wrong, what="the count of a mask [d_sae]")

    wrong = {
        "only the first hook point is counted.": n_own,
        "only the last hook point is counted.": positions * n_shared,
        "the last hook point is taken off the first.": n_own - positions * n_shared,
        "the counts of hook points are multiplied: add them.": n_own * positions * n_shared,
    }
    both = SAEMasks([EARLY, LATE], [own, shared])
    total = n_own + positions * n_shared
    compare(attempt(both, seq), total, wrong, what="the count over two hook points")


# ---------------------------------------------------------------------------------------------
# 3.6 Knock a circuit out
# ---------------------------------------------------------------------------------------------


@book.solution
def knock_out(circuit: SAEMasks) -> SAEMasks:
    """Masks that keep every node but those of ``circuit``; row 0, BOS, stays 0.

    Args:
        circuit: zeros and ones, ``[seq, d_sae]`` at every hook point; it stays as it is.
    """
    masks = [1 - mask for mask in circuit.masks]
    for mask in masks:
        mask[0] = 0
    return SAEMasks(circuit.hook_points, masks)


@book.checker(knock_out)
def _(attempt: Callable) -> None:
    early, late = torch.zeros(4, 5), torch.zeros(4, 5)
    early[1, 2] = early[3, 2] = late[2, 0] = late[3, 4] = 1
    circuit = SAEMasks([EARLY, LATE], [early.clone(), late.clone()])
    answer = attempt(circuit)
    require_masks(answer)
    if answer.hook_points != circuit.hook_points:
        raise Wrong(f"the hook points are to be {circuit.hook_points}, not {answer.hook_points}.")
    for (name, mask), other in zip(circuit.items(), reversed(circuit.masks)):
        rest = 1 - mask
        no_latents = (1 - mask.amax(0, keepdim=True)).expand(4, 5)
        no_positions = (1 - mask.amax(1, keepdim=True)).expand(4, 5)
        either = torch.maximum(mask, other)
        wrong = {
            "row 0 is on: BOS is never spliced, and its row stays 0.": rest,
            "row 1 is off, and row 0, BOS, is on: rows are counted from 0.": _put(rest, 0, 1),
            "a latent, column 0, is off at every position. BOS is row 0.": _put(
                rest, 0, slice(None), 0
            ),
            "this is the circuit itself: it is to be everything else.": mask,
            "the values are 0 and −1: 1 − mask is wanted, not mask − 1.": bos_row_off(-rest),
            "the values are 1 and 2: 1 − mask is wanted, not 1 + mask.": bos_row_off(1 + mask),
            "the circuit's nodes are −1: 0 takes a node out.": bos_row_off(1 - 2 * mask),
            "the circuit is there with its sign turned round: 1 − mask is wanted.": -mask,
            "you knocked its latents out at every position. A node is a latent "
            "at one position.": bos_row_off(no_latents),
            "you knocked its latents out at every position, and row 0, BOS, is on.": no_latents,
            "you knocked out every latent at the circuit's positions.": bos_row_off(no_positions),
            "nothing is knocked out.": bos_row_off(torch.ones(4, 5)),
            "nothing is knocked out, and row 0, BOS, is on.": torch.ones(4, 5),
            "this is another hook point's: the masks changed places.": bos_row_off(1 - other),
            "the nodes of all hook points are knocked out at each: a hook point has its "
            "own.": bos_row_off(1 - either),
        }
        compare(answer[name], bos_row_off(rest), wrong, what=f"the mask at {name}")


# ---------------------------------------------------------------------------------------------
# 3.7 The running mean
# ---------------------------------------------------------------------------------------------


@book.solution
def running_mean(batches: Iterable[Float[Tensor, "batch *rest"]]) -> Float[Tensor, "*rest"]:
    """The mean over the prompts of all batches, which come one at a time and are not kept.

    Args:
        batches: one row a prompt; the last batch may be smaller than the others.
    """
    mean, seen = torch.tensor(0.0), 0
    for batch in batches:
        seen += len(batch)
        mean = mean + (batch - mean).sum(dim=0) / seen
    return mean


@book.checker(running_mean)
def _(attempt: Callable) -> None:
    rows = normal(10, 2, 3, seed=11) + torch.arange(10.0)[:, None, None]
    pieces = rows.split(4)  # 4, 4 and 2
    means = [piece.mean(0) for piece in pieces]
    mean_of_means, halfway = torch.stack(means).mean(0), means[0]
    for mean in means[1:]:
        halfway = (halfway + mean) / 2
    counting_batches = torch.zeros(2, 3)
    for i, piece in enumerate(pieces, start=1):
        for row in piece:
            counting_batches = counting_batches + (row - counting_batches) / i

    def walk(step: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        mean, seen = torch.zeros(2, 3), 0
        for piece in pieces:
            seen += len(piece)
            mean = step(mean, piece, seen)
        return mean

    def off(mean: Tensor, piece: Tensor) -> Tensor:
        return (piece - mean).sum(0)

    wrong = {
        "your count is of batches, but prompts are added: late prompts weigh "
        "too much.": counting_batches,
        "you averaged the batches' means: prompts of the small last batch weigh more than the "
        "others.": mean_of_means,
        "each batch is averaged with all that came before: late batches weigh too much.": halfway,
        "this is the sum of all prompts.": rows.sum(0),
        "the last batch alone is left: divide by the number of prompts seen so far, not by the "
        "size of the batch.": means[-1],
        "the first batch alone is there.": means[0],
        "the last batch is left out.": rows[:8].mean(0),
        "the first batch is left out.": rows[4:].mean(0),
        "this is the sum over prompts, divided by the number of batches.": rows.sum(0) / 3,
        "you averaged over everything, not over prompts alone.": rows.mean(),
        "the batches can be gone through once only: count the prompts as you go.": 0.0,
        "the count is late: add a batch's prompts to it before you divide.": walk(
            lambda m, b, n: m + off(m, b) / max(1, n - len(b))
        ),
        "the count starts at 1: nothing has been seen before the first batch.": walk(
            lambda m, b, n: m + off(m, b) / (n + 1)
        ),
        "the step goes the wrong way: what is new is to pull the mean towards it.": walk(
            lambda m, b, n: m - off(m, b) / n
        ),
        "what is new is multiplied by the count: divide by it.": walk(
            lambda m, b, n: m + off(m, b) * n
        ),
        "the mean so far is taken off once per batch: it is to be taken off every prompt.": walk(
            lambda m, b, n: m + (b.sum(0) - m) / n
        ),
        "the mean so far is not taken off: new prompts come in addition, and nothing makes room "
        "for them.": walk(lambda m, b, n: m + b.sum(0) / n),
        "the mean so far is added to each prompt: it is to be taken off.": walk(
            lambda m, b, n: m + (b + m).sum(0) / n
        ),
        "the mean of a batch is divided by the count once more: add up its prompts.": walk(
            lambda m, b, n: m + off(m, b) / len(b) / n
        ),
        "the mean so far is lost: what is new is to be added to it.": walk(
            lambda m, b, n: off(m, b) / n
        ),
        "nothing is divided: divide by the count.": walk(lambda m, b, n: m + off(m, b)),
    }
    right = rows.mean(0)
    answer = attempt(_one_by_one(pieces, spoil=False))
    if isinstance(answer, Tensor) and not answer.isfinite().all():
        raise Wrong(
            "you divided by 0. The count is late: the first batch is to be in it before "
            "you divide by it."
        )
    _compare_mean(answer, right, wrong)
    answer = attempt(_one_by_one(pieces, spoil=True))
    if isinstance(answer, Tensor) and answer.isnan().any():
        raise Wrong(
            "you kept batches for later. Here they are overwritten once the next one comes, as in "
            "a loader: use each when it comes."
        )
    _compare_mean(answer, right, wrong)


def _compare_mean(answer: Any, right: Tensor, wrong: dict[str, Any]) -> None:
    """`compare`, and look at the kind of the result: batches that are used up hide it."""
    try:
        compare(answer, right, wrong, what="the mean")
    except Unnamed as unnamed:
        raise Wrong(other_kind(answer, right, "the mean") or str(unnamed)) from None
    if says := other_kind(answer, right, "the mean"):
        raise Wrong(f"the values are right, but {says}")


def _one_by_one(pieces: Iterable[Tensor], *, spoil: bool) -> Iterable[Tensor]:
    """Copies of the pieces one at a time; if asked, each is spoilt once the next is asked for."""
    for piece in pieces:
        given = piece.clone()
        yield given
        if not torch.equal(given, piece):
            raise Wrong(
                "you changed a batch in place. Others may still read it: build new tensors."
            )
        if spoil:
            given.fill_(torch.nan)
