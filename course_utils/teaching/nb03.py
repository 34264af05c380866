"""The exercises of notebook 03, the SAEMasks hook: their solutions and what checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from course_utils.circuits.masks import MaskError, SAEMasks
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check

EARLY, LATE = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tiny_sae(d_in: int = 6, d_sae: int = 8, *, b_enc: float = 0.0) -> SAE:
    """An SAE small enough to check by hand; with a large ``b_enc`` nearly every latent fires."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True))
    sae.load_state_dict(
        dict(
            W_enc=_random(d_in, d_sae, seed=1) / d_in**0.5,
            b_enc=torch.full((d_sae,), b_enc),
            W_dec=_random(d_sae, d_in, seed=2) / d_sae**0.5,
            b_dec=0.3 * _random(d_in, seed=3),
            threshold=torch.full((d_sae,), 0.1),
        )
    )
    return sae.requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------
# One latent at one position
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
    sae, latent, position = _tiny_sae(b_enc=2.0), 3, 2
    x = _random(3, 5, 6, seed=4)
    x[:, 0] *= 10
    whole = sae.encode(x)

    def spliced(f: Tensor) -> Tensor:
        return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)

    def off(*index) -> Tensor:
        f = whole.clone()
        f[index] = 0
        return f

    here = (slice(None), position, latent)
    only_here = x.clone()
    only_here[:, position] = sae.decode(off(*here))[:, position]
    subtracted = x.clone()
    subtracted[:, position] -= whole[:, position, latent, None] * sae.W_dec[latent]
    kept_alone = torch.zeros_like(whole)
    kept_alone[here] = whole[here]
    before = x.clone()
    found = attempt(x, None, sae=sae, latent=latent, position=position)
    if not torch.equal(x, before):
        raise Wrong("you changed x in place. Others may still read it: build a new tensor.")
    if isinstance(found, Tensor) and found.shape == whole.shape:
        raise Wrong(
            "you returned latents. The next layer reads a residual stream: decode them first."
        )
    compare(
        found,
        spliced(off(*here)),
        {
            "BOS went through the SAE too: column 0 is to stay as it is.": sae.decode(off(*here)),
            "you switched the latent off at every position, not at one.": spliced(
                off(slice(None), slice(None), latent)
            ),
            "you switched every latent off at that position, not one.": spliced(
                off(slice(None), position)
            ),
            "position and latent are swapped: latents are [batch, position, latent].": spliced(
                off(slice(None), latent, position)
            ),
            "only the first prompt lost its latent: the batch dimension comes first.": spliced(
                off(0, position, latent)
            ),
            "you kept this latent and switched off all others.": spliced(kept_alone),
            "the batch dimension is missing: latents are [batch, position, latent].": spliced(
                off(position, latent)
            ),
            "the position after the wanted one lost it: in x[:, 1:], position p is column p − 1.": spliced(
                off(slice(None), position + 1, latent)
            ),
            "nothing is switched off: this is the plain splice.": spliced(whole),
            "only this position went through the SAE: all but BOS are to be rebuilt from latents.": only_here,
            "you took the latent's part out of x itself, so that the SAE's error stays: splice, as in version 1.": subtracted,
            "this is x itself.": x,
        },
        what="what the hook returns",
    )


# ---------------------------------------------------------------------------------------------
# A mask, and what stands in for what it takes out
# ---------------------------------------------------------------------------------------------


@book.solution
def masked(
    f: Float[Tensor, "batch seq d_sae"],
    mask: Float[Tensor, "seq d_sae"] | Float[Tensor, " d_sae"],
    ablation: Float[Tensor, "seq d_sae"] | Float[Tensor, " d_sae"],
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
    f, ablation = _random(2, 3, 4, seed=5).abs(), 1 + _random(3, 4, seed=7) ** 2
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(6))
    mask[0], mask[1] = 0, 1

    def right(mask: Tensor) -> Tensor:
        return f * mask + ablation * (1 - mask)

    before, any_on, half_on, all_on = (
        f.clone(),
        right((mask > 0).float()),
        right((mask > 0.5).float()),
        right((mask == 1).float()),
    )
    found = attempt(f, mask, ablation)
    if not torch.equal(f, before):
        raise Wrong("you changed the latents in place: build a new tensor.")
    compare(
        found,
        right(mask),
        {
            "what is taken out becomes 0: the ablation is missing.": f * mask,
            "kept and ablated are swapped: 1 keeps the latent.": right(1 - mask),
            "the ablation is added where the latent is kept, too.": f * mask + ablation,
            "right for 0 and 1, but a mask between them is to mix the two: it will be learned, so it needs a gradient.": any_on,
            "right for 0 and 1, but a mask between them is to mix the two: a threshold has no gradient.": half_on,
            "right for 0 and 1, but a mask between them is to mix the two: this takes out all that is not wholly kept.": all_on,
            "f − ablation is there, and the ablation that it starts from is not.": (f - ablation)
            * mask,
        },
        what="the masked latents",
    )
    shared = mask[2]
    compare(
        attempt(f, shared, ablation),
        right(shared),
        what="with one mask for all positions, [d_sae], the result",
    )


@book.solution
def mean_latents(x: Float[Tensor, "n seq d_model"], sae: SAE) -> Float[Tensor, "seq d_sae"]:
    """Every latent's mean over prompts, position by position. BOS' row, 0, is 0: no latent is taken
    there.

    Args:
        x: the residual stream of ``n`` patch prompts of one length, BOS first.
        sae: encodes it.
    """
    means = sae.encode(x).mean(dim=0)
    means[0] = 0
    return means


@book.checker(mean_latents)
def _(attempt: Callable) -> None:
    sae, x = _tiny_sae(), 2 * _random(5, 4, 6, seed=8)
    x[:, 0] *= 10
    f = sae.encode(x)

    def bos_off(means: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(means[:1]), means[1:]])

    where_it_fires = bos_off(f.sum(0) / (f > 0).sum(0).clamp(min=1))
    compare(
        attempt(x, sae),
        bos_off(f.mean(0)),
        {
            "BOS has means too: row 0 is to be 0.": f.mean(0),
            "you averaged over positions too: a verb's mean is not a noun's.": f[:, 1:].mean(
                (0, 1)
            ),
            "you averaged over positions too: a verb's mean is not a noun's. (And BOS took part.)": f.mean(
                (0, 1)
            ),
            "you averaged over positions, and not over prompts.": f.mean(1),
            "you encoded the mean residual stream. Encoding is not linear: encode, then average.": bos_off(
                sae.encode(x.mean(0))
            ),
            "you encoded the mean residual stream, BOS too. Encoding is not linear: encode, then average.": sae.encode(
                x.mean(0)
            ),
            "this is the sum over prompts.": bos_off(f.sum(0)),
            "BOS' row is missing: it is to be there, and 0.": f[:, 1:].mean(0),
            "you averaged only over prompts on which the latent fires: a silent prompt counts, with 0.": where_it_fires,
        },
        what="the mean",
    )


# ---------------------------------------------------------------------------------------------
# The class
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
    first, second = torch.tensor(
        [[[0.0, 0, 0], [1, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 1, 1], [1, 0, 0]]]
    )
    masks, x, mean = (
        SAEMasks([EARLY, LATE], [first, second]),
        _random(2, 3, 3, seed=9),
        1 + _random(3, 3, seed=10) ** 2,
    )
    both = first * second
    wrong = {
        "you took the first mask, whatever the hook point.": x * first + mean * (1 - first),
        "mean_ablation is not used: what is masked out becomes 0.": x * second,
        "kept and ablated are swapped: 1 keeps the latent.": x * (1 - second) + mean * second,
        "the masks of all hook points act at once: one hook point has one mask.": x * both
        + mean * (1 - both),
    }
    compare(
        attempt(masks, x, LATE, mean),
        x * second + mean * (1 - second),
        wrong,
        what="the masked latents",
    )
    try:
        found = attempt(masks, x, LATE)
    except (TypeError, AttributeError) as error:
        raise Wrong(
            f"without mean_ablation, 0 is to stand in, and not to raise {type(error).__name__}."
        ) from None
    compare(
        found,
        x * second,
        {"without mean_ablation, nothing is taken out.": x},
        what="without mean_ablation, the result",
    )
    one = SAEMasks([LATE], [second[1]])
    try:
        found = attempt(one, x, LATE, mean)
    except MaskError:
        raise Wrong(
            "a shared mask, [d_sae], fits latents of any length, and was refused: leave the sizes to self.check."
        ) from None
    compare(
        found,
        x * second[1] + mean * (1 - second[1]),
        what="with a shared mask, [d_sae], the result",
    )
    try:
        grown = attempt(masks, x[:, -1:], LATE, mean[-1:])
    except MaskError:
        return
    except (AssertionError, RuntimeError, ValueError) as error:
        raise Wrong(
            f"a mask that does not fit is to be refused with MaskError, not {type(error).__name__}."
        ) from None
    raise Wrong(
        f"latents {list(x[:, -1:].shape)} met a mask {list(second.shape)}, and came out as {list(grown.shape)}: "
        "broadcasting made up positions. Check that the mask fits before you use it."
    )


# ---------------------------------------------------------------------------------------------
# Counting, and the circuit's complement
# ---------------------------------------------------------------------------------------------


@book.solution
def count_nodes(masks: SAEMasks, seq: int) -> int:
    """How many nodes, (position, latent) pairs, the masks keep in a prompt of ``seq`` tokens. BOS,
    position 0, has none.

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
    wrong = {
        "BOS is counted too: nothing is spliced at position 0.": (own > 0).sum(),
        "you summed the mask: a node with 0.5 is a node.": own[1:].sum(),
        "you counted latents, not nodes: one latent at two positions is two nodes.": (own[1:] > 0)
        .any(0)
        .sum(),
    }
    compare(
        attempt(SAEMasks([EARLY], [own]), seq),
        torch.tensor(n_own),
        wrong,
        what="the count of a mask [seq, d_sae]",
    )
    wrong = {
        "a shared mask's latents are counted once: they are kept at every position.": n_shared,
        "a shared mask keeps no node at BOS: nothing is spliced there.": n_shared * seq,
        "row 0 of a shared mask is a latent, not BOS.": (seq - 1) * int((shared[1:] > 0).sum()),
    }
    found = attempt(SAEMasks([EARLY], [shared]), seq)
    compare(found, torch.tensor((seq - 1) * n_shared), wrong, what="the count of a mask [d_sae]")
    both = SAEMasks([EARLY, LATE], [own, shared])
    wrong = {
        "only the first hook point is counted.": n_own,
        "only the last hook point is counted.": (seq - 1) * n_shared,
    }
    compare(
        attempt(both, seq),
        torch.tensor(n_own + (seq - 1) * n_shared),
        wrong,
        what="the count over two hook points",
    )


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
    found = attempt(circuit)
    if not isinstance(found, SAEMasks):
        raise Wrong(f"it is to return SAEMasks, not {type(found).__name__}.")
    if not (torch.equal(circuit[EARLY], early) and torch.equal(circuit[LATE], late)):
        raise Wrong("you changed the circuit itself: build new masks.")
    if found.hook_points != circuit.hook_points:
        raise Wrong(f"the hook points are to be {circuit.hook_points}, not {found.hook_points}.")
    for name, mask in circuit.items():
        others = 1 - mask
        others[0] = 0
        everywhere, whole_rows = (
            (1 - mask.amax(dim, keepdim=True)).expand(4, 5).clone() for dim in (0, 1)
        )
        wrong = {
            "row 0 is on: BOS is never spliced, and its row stays 0.": 1 - mask,
            "this is the circuit itself: it is to be everything else.": mask,
            "you knocked its latents out at every position. A node is a latent at one position.": _bos_off(
                everywhere.clone()
            ),
            "you knocked its latents out at every position, and row 0, BOS, is on.": everywhere,
            "you knocked out every latent at the circuit's positions.": _bos_off(whole_rows),
            "nothing is knocked out.": _bos_off(torch.ones(4, 5)),
        }
        compare(found[name], others, wrong, what=f"the mask at {name}")


def _bos_off(mask: Tensor) -> Tensor:
    mask[0] = 0
    return mask


# ---------------------------------------------------------------------------------------------
# The mean, batch by batch
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
    rows = _random(10, 2, 3, seed=11) + torch.arange(10.0)[:, None, None]
    pieces = rows.split(4)  # 4, 4 and 2
    by_batch, halved = torch.zeros(2, 3), pieces[0].mean(0)
    for i, piece in enumerate(pieces):
        halved = halved if i == 0 else (halved + piece.mean(0)) / 2
        for row in piece:
            by_batch = by_batch + (row - by_batch) / (i + 1)
    of_means = torch.stack([piece.mean(0) for piece in pieces]).mean(0)
    wrong = {
        "the count counts batches, but what is added are prompts: late prompts weigh too much.": by_batch,
        "you averaged the batches' means: prompts of the small last batch weigh more than the others.": of_means,
        "each batch is averaged with all that came before: late batches weigh too much.": halved,
        "this is the sum of all prompts.": rows.sum(0),
        "the last batch alone is left: divide by the number of prompts seen so far, not by the size of the batch.": pieces[
            -1
        ].mean(0),
        "this is the sum over prompts, divided by the number of batches.": rows.sum(0)
        / len(pieces),
        "you averaged over everything, not over prompts alone.": rows.mean(),
        "the batches can be gone through once only: count the prompts as you go.": torch.tensor(
            0.0
        ),
    }
    found = attempt(_used_up(pieces))
    if isinstance(found, Tensor) and found.isnan().any():
        raise Wrong(
            "you kept batches for later. Here they are overwritten once the next one comes, as in a loader: use each when it comes."
        )
    compare(found, rows.mean(0), wrong, what="the mean")


def _used_up(pieces: Iterable[Tensor]) -> Iterable[Tensor]:
    """The pieces one at a time, each spoilt once the next is asked for."""
    for piece in pieces:
        given = piece.clone()
        yield given
        given.fill_(torch.nan)
