"""The exercises of notebook 03, the SAEMasks hook: their solutions and what checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
from course_utils.teaching.workbook import Workbook, Wrong, compare

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
    given, whole = x.clone(), sae.encode(x)

    def spliced(f: Tensor) -> Tensor:
        return keep_bos(x, sae.decode(f))

    def without(*index: int | slice) -> Tensor:
        f = whole.clone()
        f[index] = 0
        return f

    every = slice(None)
    right = without(every, position, latent)
    rebuilt_here_alone = x.clone()
    rebuilt_here_alone[:, position] = sae.decode(right)[:, position]
    taken_out_of_x = x.clone()
    taken_out_of_x[:, position] -= whole[:, position, latent, None] * sae.W_dec[latent]
    answer = attempt(given, HookPoint(), sae=sae, latent=latent, position=position)
    if not torch.equal(given, x):
        raise Wrong("you changed x in place. Others may still read it: build a new tensor.")
    if isinstance(answer, Tensor) and answer.shape == whole.shape:
        raise Wrong(
            "you returned latents. The next layer reads a residual stream: decode them first."
        )
    wrong = {
        "BOS went through the SAE too: column 0 is to stay as it is.": sae.decode(right),
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
        "nothing is switched off: this is the plain splice.": spliced(whole),
        "only this position went through the SAE: all but BOS are to be "
        "rebuilt from latents.": rebuilt_here_alone,
        "you took the latent's part out of x itself, so that the SAE's error stays: splice, as in "
        "version 1.": taken_out_of_x,
        "this is x itself.": x,
    }
    compare(answer, spliced(right), wrong, what="what the hook returns")


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


@book.checker(masked)
def _(attempt: Callable) -> None:
    f, ablation = normal(2, 3, 4, seed=5).abs(), 1 + normal(3, 4, seed=7) ** 2
    mask = uniform(3, 4, seed=6)
    mask[0], mask[1] = 0, 1

    def right(mask: Tensor) -> Tensor:
        return f * mask + ablation * (1 - mask)

    given = f.clone()
    answer = attempt(given, mask, ablation)
    if not torch.equal(given, f):
        raise Wrong("you changed the latents in place: build a new tensor.")
    change = f - ablation
    between = "right for 0 and 1, but a mask between them is to mix the two: "
    wrong = {
        "what is taken out becomes 0: the ablation is missing.": f * mask,
        "kept and ablated are swapped: 1 keeps the latent.": right(1 - mask),
        "the ablation is added where the latent is kept, too.": f * mask + ablation,
        f"{between}it will be learned, so it needs a gradient.": right((mask > 0).float()),
        f"{between}a threshold has no gradient.": right((mask > 0.5).float()),
        f"{between}this takes out all that is not wholly kept.": right((mask == 1).float()),
        "f − ablation is there, and the ablation that it starts from is not.": change * mask,
    }
    compare(answer, right(mask), wrong, what="the masked latents")
    shared = mask[2]
    compare(
        attempt(f.clone(), shared, ablation),
        right(shared),
        what="with one mask for all positions, [d_sae], the result",
    )


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
    of_mean_x = sae.encode(x.mean(0))
    where_it_fires = f.sum(0) / (f > 0).sum(0).clamp(min=1)
    over_positions = "you averaged over positions too: a verb's mean is not a noun's."
    not_linear = "Encoding is not linear: encode, then average."
    wrong = {
        "BOS has means too: row 0 is to be 0.": f.mean(0),
        over_positions: f[:, 1:].mean((0, 1)),
        f"{over_positions} (And BOS took part.)": f.mean((0, 1)),
        "you averaged over positions, and not over prompts.": f.mean(1),
        f"you encoded the mean residual stream. {not_linear}": bos_row_off(of_mean_x),
        f"you encoded the mean residual stream, BOS too. {not_linear}": of_mean_x,
        "this is the sum over prompts.": bos_row_off(f.sum(0)),
        "BOS' row is missing: it is to be there, and 0.": f[:, 1:].mean(0),
        "you averaged only over prompts on which the latent fires: a silent "
        "prompt counts, with 0.": bos_row_off(where_it_fires),
    }
    compare(attempt(x.clone(), sae), bos_row_off(f.mean(0)), wrong, what="the mean")


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


@book.checker(forward)
def _(attempt: Callable) -> None:
    first = torch.tensor([[0.0, 0, 0], [1, 0, 1], [0, 1, 0]])
    second = torch.tensor([[0.0, 0, 0], [0, 1, 1], [1, 0, 0]])
    masks = SAEMasks([EARLY, LATE], [first, second])
    x, mean = normal(2, 3, 3, seed=9), 1 + normal(3, 3, seed=10) ** 2

    def right(mask: Tensor) -> Tensor:
        return x * mask + mean * (1 - mask)

    both = right(first * second)
    wrong = {
        "you took the first mask, whatever the hook point.": right(first),
        "mean_ablation is not used: what is masked out becomes 0.": x * second,
        "kept and ablated are swapped: 1 keeps the latent.": right(1 - second),
        "the masks of all hook points act at once: one hook point has one mask.": both,
    }
    compare(attempt(masks, x, LATE, mean), right(second), wrong, what="the masked latents")
    try:
        answer = attempt(masks, x, LATE)
    except (TypeError, AttributeError) as error:
        raise Wrong(
            f"without mean_ablation, 0 is to stand in, and not to raise {type(error).__name__}."
        ) from None
    wrong = {"without mean_ablation, nothing is taken out.": x}
    compare(answer, x * second, wrong, what="without mean_ablation, the result")

    shared = second[1]
    try:
        answer = attempt(SAEMasks([LATE], [shared]), x, LATE, mean)
    except MaskError:
        raise Wrong(
            "a shared mask, [d_sae], fits latents of any length, and was refused: leave the sizes "
            "to self.check."
        ) from None
    compare(answer, right(shared), what="with a shared mask, [d_sae], the result")
    _require_refusal(attempt, masks, x[:, -1:], mean[-1:])


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
        f"{list(grown.shape)}: broadcasting made up positions. Check that the mask fits before you "
        "use it."
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
    own = torch.tensor([[1, 1, 0, 0], [0, 1, 0.5, 0.5], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    shared = torch.tensor([1.0, 0, 0.5, 0])
    seq = len(own)
    n_own, n_shared = int((own[1:] > 0).sum()), int((shared > 0).sum())
    latents = (own[1:] > 0).any(0)
    wrong = {
        "BOS is counted too: nothing is spliced at position 0.": (own > 0).sum(),
        "you summed the mask: a node with 0.5 is a node.": own[1:].sum(),
        "you counted latents, not nodes: one latent at two positions is two nodes.": latents.sum(),
    }
    answer = attempt(SAEMasks([EARLY], [own]), seq)
    compare(answer, n_own, wrong, what="the count of a mask [seq, d_sae]")

    wrong = {
        "a shared mask's latents are counted once: they are kept at every position.": n_shared,
        "a shared mask keeps no node at BOS: nothing is spliced there.": n_shared * seq,
        "row 0 of a shared mask is a latent, not BOS.": (seq - 1) * int((shared[1:] > 0).sum()),
    }
    answer = attempt(SAEMasks([EARLY], [shared]), seq)
    compare(answer, (seq - 1) * n_shared, wrong, what="the count of a mask [d_sae]")

    wrong = {
        "only the first hook point is counted.": n_own,
        "only the last hook point is counted.": (seq - 1) * n_shared,
    }
    answer = attempt(SAEMasks([EARLY, LATE], [own, shared]), seq)
    compare(answer, n_own + (seq - 1) * n_shared, wrong, what="the count over two hook points")


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
    if not (torch.equal(circuit[EARLY], early) and torch.equal(circuit[LATE], late)):
        raise Wrong("you changed the circuit itself: build new masks.")
    if answer.hook_points != circuit.hook_points:
        raise Wrong(f"the hook points are to be {circuit.hook_points}, not {answer.hook_points}.")
    for name, mask in circuit.items():
        no_latents = (1 - mask.amax(0, keepdim=True)).expand(4, 5)
        no_positions = (1 - mask.amax(1, keepdim=True)).expand(4, 5)
        wrong = {
            "row 0 is on: BOS is never spliced, and its row stays 0.": 1 - mask,
            "this is the circuit itself: it is to be everything else.": mask,
            "you knocked its latents out at every position. A node is a latent "
            "at one position.": bos_row_off(no_latents),
            "you knocked its latents out at every position, and row 0, BOS, is on.": no_latents,
            "you knocked out every latent at the circuit's positions.": bos_row_off(no_positions),
            "nothing is knocked out.": bos_row_off(torch.ones(4, 5)),
        }
        compare(answer[name], bos_row_off(1 - mask), wrong, what=f"the mask at {name}")


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
    per_batch = rows.sum(0) / len(pieces)
    wrong = {
        "the count counts batches, but what is added are prompts: late "
        "prompts weigh too much.": counting_batches,
        "you averaged the batches' means: prompts of the small last batch weigh more than the "
        "others.": mean_of_means,
        "each batch is averaged with all that came before: late batches weigh too much.": halfway,
        "this is the sum of all prompts.": rows.sum(0),
        "the last batch alone is left: divide by the number of prompts seen so far, not by the "
        "size of the batch.": means[-1],
        "this is the sum over prompts, divided by the number of batches.": per_batch,
        "you averaged over everything, not over prompts alone.": rows.mean(),
        "the batches can be gone through once only: count the prompts as you go.": 0.0,
    }
    answer = attempt(_used_up(pieces))
    if isinstance(answer, Tensor) and answer.isnan().any():
        raise Wrong(
            "you kept batches for later. Here they are overwritten once the next one comes, as in "
            "a loader: use each when it comes."
        )
    compare(answer, rows.mean(0), wrong, what="the mean")


def _used_up(pieces: Iterable[Tensor]) -> Iterable[Tensor]:
    """The pieces one at a time, each spoilt once the next is asked for."""
    for piece in pieces:
        given = piece.clone()
        yield given
        given.fill_(torch.nan)
