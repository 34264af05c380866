"""The exercises of notebook 07, when gradients lie: their solutions and what checks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.teaching.fixtures import normal, require_two, uniform
from course_utils.teaching.workbook import Unnamed, Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 7.1 How much of the truth is found
# ---------------------------------------------------------------------------------------------


@book.solution
def share_found(truth: Float[Tensor, " nodes"], estimate: Float[Tensor, " nodes"], n: int) -> float:
    """The share of the ``n`` nodes with the largest true effects that are among the ``n`` with the
    largest estimates.

    Args:
        truth: effects of either sign.
        estimate: of the same nodes, in the same order.
    """
    wanted = set(truth.abs().topk(n).indices.tolist())
    found = set(estimate.abs().topk(n).indices.tolist())
    return len(wanted & found) / n


@book.checker(share_found)
def _(attempt: Callable) -> None:
    truth, n = normal(24, seed=0), 8
    estimate = 0.6 * truth + normal(24, seed=1000)
    wrong = {
        "signs count for nothing here: a node that lowers the logit difference "
        "by 4 matters, too. Rank by size.": _found(truth, estimate, n),
        "the truth is ranked with its signs: rank by size.": _found(truth, estimate.abs(), n),
        "the estimates are ranked with their signs: rank by size.": _found(
            truth.abs(), estimate, n
        ),
        "this is a count. A share is divided by n.": _found(truth.abs(), estimate.abs(), n) * n,
        "you divided by the number of all nodes: divide by n.": _found(
            truth.abs(), estimate.abs(), n
        )
        * n
        / len(truth),
        "places are compared one by one; the order among the n does not matter.": (
            (truth.abs().topk(n).indices == estimate.abs().topk(n).indices).float().mean()
        ),
    }
    compare(attempt(truth, estimate, n), _found(truth.abs(), estimate.abs(), n), wrong, what="it")
    truth, estimate = normal(40, seed=1), normal(40, seed=2) + 0.5 * normal(40, seed=1)
    for n in (5, 12):
        right = _found(truth.abs(), estimate.abs(), n)
        compare(attempt(truth, estimate, n), right, what=f"the share of {n} of 40 nodes")


def _found(truth: Tensor, estimate: Tensor, n: int) -> float:
    wanted, found = (set(x.topk(n).indices.tolist()) for x in (truth, estimate))
    return len(wanted & found) / n


# ---------------------------------------------------------------------------------------------
# 7.2 The QK fix
# ---------------------------------------------------------------------------------------------


@book.solution
def qk_fixed(
    query: Float[Tensor, "batch d_head"],
    patch_query: Float[Tensor, "batch d_head"],
    keys: Float[Tensor, "batch seq d_head"],
    gradient: Float[Tensor, "batch seq"],
) -> Float[Tensor, " batch"]:
    """How far the logit difference falls when a head's query is patched, to first order in the
    attention pattern.

    Args:
        query, patch_query: of one head at one position, on the clean and on the patch prompt.
        keys: what the query sees, on the clean prompt.
        gradient: ∂LD/∂pattern, taken at the clean pattern.
    """
    scale = keys.shape[-1] ** -0.5
    clean = ((keys @ query[:, :, None])[..., 0] * scale).softmax(-1)
    patched = ((keys @ patch_query[:, :, None])[..., 0] * scale).softmax(-1)
    return (gradient * (clean - patched)).sum(-1)


@book.checker(qk_fixed)
def _(attempt: Callable) -> None:
    query, patched = 2 * normal(3, 4, seed=1), 2 * normal(3, 4, seed=2)
    keys, gradient = normal(3, 5, 4, seed=3), normal(3, 5, seed=4)

    def pattern(q: Tensor, scale: float = 0.5, k: Tensor = keys, axis: int = -1) -> Tensor:
        return (torch.einsum("bsd,bd->bs", k, q) * scale).softmax(axis)

    def score(change: Tensor) -> Tensor:
        return (gradient * change).sum(-1)

    clean = pattern(query)
    logits = torch.einsum("bsd,bd->bs", keys, query - patched) * 0.5
    slope = clean * (logits - (clean * logits).sum(-1, keepdim=True))
    right = score(clean - pattern(patched))
    wrong = {
        "this is AtP: the softmax, too, is taken as a straight line. Compute the patched "
        "pattern, and take the difference of two patterns.": score(slope),
        "the sign: a fall is clean − patched.": -right,
        "the scale 1/√d_head is missing.": score(pattern(query, 1.0) - pattern(patched, 1.0)),
        "the scale is 1/d_head; 1/√d_head is wanted.": score(
            pattern(query, 0.25) - pattern(patched, 0.25)
        ),
        "the logits are multiplied by √d_head: divide.": score(
            pattern(query, 2.0) - pattern(patched, 2.0)
        ),
        "the softmax runs over the batch: it is over the keys, the last axis.": score(
            pattern(query, axis=0) - pattern(patched, axis=0)
        ),
        "the softmax is missing: these are logits.": score(logits),
        "this is the softmax of the difference, and the difference of two softmaxes is "
        "wanted.": score(pattern(query - patched)),
        "the clean pattern alone: take the patched one away.": score(clean),
        "the patched pattern alone: it is to be taken from the clean one.": score(pattern(patched)),
        "the change of the pattern alone: multiply with ∂LD/∂pattern, and sum over the keys.": (
            clean - pattern(patched)
        ).sum(-1),
        "a mean over the keys: the effects of all keys add up.": right / 5,
        "the sum runs over prompts, too: one number per prompt is wanted.": right.sum(),
        "summed over prompts, and not over keys.": (gradient * (clean - pattern(patched))).sum(0),
    }
    compare(attempt(query, patched, keys, gradient), right, wrong, what="the fall")
    query, patched, keys, gradient = (
        normal(2, 9, seed=5),
        normal(2, 9, seed=6),
        normal(2, 3, 9, seed=7),
        normal(2, 3, seed=8),
    )
    third = 1 / 3  # 1/√9
    right = score_of(gradient, pattern(query, third, keys) - pattern(patched, third, keys))
    compare(attempt(query, patched, keys, gradient), right, what="the fall with another d_head")


def score_of(gradient: Tensor, change: Tensor) -> Tensor:
    """Σ gradient · change over the last axis."""
    return (gradient * change).sum(-1)


# ---------------------------------------------------------------------------------------------
# 7.3 GradDrop
# ---------------------------------------------------------------------------------------------


@book.solution
def grad_dropped(
    x: Float[Tensor, " d_model"],
    blocks: Sequence[Callable[[Tensor], Tensor]],
    readout: Callable[[Tensor], Tensor],
    change: Float[Tensor, " d_model"],
) -> Float[Tensor, " passes"]:
    """The estimated effect of ``change`` in each of ``len(blocks)`` backward passes, of which each
    drops one block's gradient.

    The forward pass is always the same: h ← h + block(h) for each block, then ``readout(h)``, one
    number.

    Args:
        x: the residual stream that the first block reads; ``x.requires_grad`` can be False.
        change: clean − patch at ``x``; a score is gradient · change.
    """
    scores = []
    for dropped in range(len(blocks)):
        start = x.detach().clone().requires_grad_()
        h = start
        for number, block in enumerate(blocks):
            update = block(h)
            h = h + (update.detach() if number == dropped else update)
        [gradient] = torch.autograd.grad(readout(h), start)
        scores.append((gradient * change).sum())
    return torch.stack(scores)


@book.checker(grad_dropped)
def _(attempt: Callable) -> None:
    x, change = normal(4, seed=1), normal(4, seed=15)
    weights = [0.5 * normal(4, 4, seed=seed) for seed in (3, 4, 5)]
    out = normal(4, seed=6)
    blocks = [lambda h, W=W: torch.tanh(W @ h) for W in weights]

    def readout(h: Tensor) -> Tensor:
        return (out * torch.sin(h)).sum()

    def passes(way: Callable[[Tensor, Tensor, bool], Tensor]) -> Tensor:
        scores = []
        for dropped in range(3):
            start = x.clone().requires_grad_()
            h = start
            for number, block in enumerate(blocks):
                h = way(h, block(h), number == dropped)
            out = readout(h)
            gradient = torch.autograd.grad(out, start)[0] if out.requires_grad else 0 * change
            scores.append((gradient * change).sum())
        return torch.stack(scores)

    right = passes(lambda h, update, off: h + (update.detach() if off else update))
    usual = passes(lambda h, update, off: h + update)
    wrong = {
        "the block's gradient is not dropped: this is AtP, three times.": usual,
        "the block itself is left out. The forward pass stays as it is; only the way back "
        "changes.": passes(lambda h, update, off: h if off else h + update),
        "the skip connection is dropped, and the block is to be.": passes(
            lambda h, update, off: h.detach() + update if off else h + update
        ),
        "nothing comes back: the skip connection is dropped with the block, or h + … is "
        "missing.": passes(lambda h, update, off: (h + update).detach() if off else h + update),
        "every block but one is dropped, and one is to be.": passes(
            lambda h, update, off: h + (update if off else update.detach())
        ),
        "the sizes: keep each pass's sign; sizes are averaged later.": right.abs(),
        "the signs are the wrong way round.": -right,
        "the gradients of a pass are summed, and not multiplied with the change.": _without_change(
            x, blocks, readout
        ),
    }
    answer = attempt(x, blocks, readout, change)
    if isinstance(answer, list | tuple):
        raise Wrong("a list of scores: stack them into one tensor, torch.stack(scores).")
    if isinstance(answer, Tensor) and answer.ndim == 0:
        raise Wrong("one number: the scores of all passes are wanted, one per block.")
    compare(answer, right, wrong, what="the scores")


def _without_change(x: Tensor, blocks: Sequence[Callable], readout: Callable) -> Tensor:
    scores = []
    for dropped in range(len(blocks)):
        start = x.clone().requires_grad_()
        h = start
        for number, block in enumerate(blocks):
            update = block(h)
            h = h + (update.detach() if number == dropped else update)
        scores.append(torch.autograd.grad(readout(h), start)[0].sum())
    return torch.stack(scores)


# ---------------------------------------------------------------------------------------------
# 7.4 The direct effect
# ---------------------------------------------------------------------------------------------


@book.solution
def direct_effect(
    written: Float[Tensor, "n d_model"],
    final: Float[Tensor, "n d_model"],
    weight: Float[Tensor, " d_model"],
    W_U: Float[Tensor, "vocab d_model"],
    tokens: Tensor,
) -> Float[Tensor, " n"]:
    """How far the right token's logit falls when what a component wrote is taken out at the very
    end, and nothing else changes: neither later layers nor the norm's scale.

    Logits are centred: minus their mean over the vocabulary.

    Args:
        written: what the component wrote into the residual stream.
        final: the residual stream that the final norm reads, with it in place. The norm is an
            RMSNorm, final / rms · weight, where rms = √mean(final²) (no epsilon).
        weight: the norm's.
        W_U: the unembedding, one row per token.
        tokens: ``[n]``, the right next tokens.
    """
    rms = final.pow(2).mean(-1, keepdim=True).sqrt()
    direction = W_U[tokens] - W_U.mean(0)
    return (written / rms * weight * direction).sum(-1)


@book.checker(direct_effect)
def _(attempt: Callable) -> None:
    written, final = normal(5, 6, seed=1), 3 * normal(5, 6, seed=2) + 1
    weight, W_U = 0.5 + uniform(6, seed=3), normal(9, 6, seed=4) + 0.5
    tokens = torch.tensor([3, 0, 8, 3, 5])
    own, mean = W_U[tokens], W_U.mean(0)

    def rms(x: Tensor) -> Tensor:
        return x.pow(2).mean(-1, keepdim=True).sqrt()

    def fall(direction: Tensor = own - mean, scale: Tensor | None = None, w: Tensor = weight):
        scale = rms(final) if scale is None else scale
        return (written / scale * w * direction).sum(-1)

    left = final - written
    thawed = ((final / rms(final) - left / rms(left)) * weight * (own - mean)).sum(-1)
    right = fall()
    wrong = {
        "the norm's scale is computed anew without the component. Here it is to stay: that "
        "effect gets a name of its own in 7.5.": thawed,
        "the norm's scale is that of what is written; the final stream's is wanted.": fall(
            scale=rms(written)
        ),
        "the norm's scale is that of the stream without the component: it is to stay what it "
        "was.": fall(scale=rms(left)),
        "the norm is missing: the residual stream goes through it before it is read.": (
            written * (own - mean)
        ).sum(-1),
        "the norm's weight is missing.": fall(w=torch.ones(6)),
        "the norm's scale is missing: divide by the rms of the final stream.": fall(
            scale=torch.ones(5, 1)
        ),
        "the logits are not centred: take the mean row of W_U away.": fall(own),
        "only the mean row of W_U is read.": fall(mean),
        "the mean row of W_U is added, and to be taken away.": fall(own + mean),
        "this is the squared rms: the root is missing.": fall(scale=rms(final) ** 2),
        "this is the norm of the final stream, √Σ; the rms is √mean.": fall(
            scale=final.norm(dim=-1, keepdim=True)
        ),
        "this is the spread around the mean; an RMSNorm subtracts no mean.": fall(
            scale=final.std(-1, correction=0, keepdim=True)
        ),
        "one rms for all tokens: each has its own.": fall(scale=final.pow(2).mean().sqrt()),
        "this is the whole centred logit: it is what the component wrote that is read.": (
            final / rms(final) * weight * (own - mean)
        ).sum(-1),
        "this is the logit that is left. The fall is what the component brought.": (
            left / rms(final) * weight * (own - mean)
        ).sum(-1),
        "the sign: what the component brought is what the logit falls by.": -right,
        "a mean over d_model: the products of a token add up.": right / 6,
    }
    compare(attempt(written, final, weight, W_U, tokens), right, wrong, what="the fall")


# ---------------------------------------------------------------------------------------------
# 7.5 What the norm repairs
# ---------------------------------------------------------------------------------------------


@book.solution
def repaired(
    direct: Float[Tensor, " n"],
    before: Float[Tensor, "n d_model"],
    after: Float[Tensor, "n d_model"],
    direction: Float[Tensor, "n d_model"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """How much of a direct effect is repaired, and by what: later layers, and the final norm.

    Args:
        direct: how far the logit would fall by the direct effect alone.
        before, after: the residual stream that the final norm reads, without and with the
            ablation.
        direction: what the *normed* stream is multiplied with to give the logit: the norm's weight
            × the token's row of W_U, centred.

    Returns:
        What later layers make up for, with the norm's scale held at what it was before; and what
        the change of scale makes up for. The two add up to direct − total.
    """

    def rms(x: Tensor) -> Tensor:
        return x.pow(2).mean(-1, keepdim=True).sqrt()

    frozen = ((before - after) / rms(before) * direction).sum(-1)
    total = ((before / rms(before) - after / rms(after)) * direction).sum(-1)
    return direct - frozen, frozen - total


@book.checker(repaired)
def _(attempt: Callable) -> None:
    before = 2 * normal(6, 5, seed=1) + 1
    after, direction = before - normal(6, 5, seed=2), normal(6, 5, seed=3)
    direct = normal(6, seed=4) + 2

    def rms(x: Tensor) -> Tensor:
        return x.pow(2).mean(-1, keepdim=True).sqrt()

    def read(x: Tensor, scale: Tensor | int) -> Tensor:
        return (x / scale * direction).sum(-1)

    total = read(before, rms(before)) - read(after, rms(after))
    frozen = read(before - after, rms(before))
    late = read(before - after, rms(after))
    by_layers, by_norm = direct - frozen, frozen - total
    answer = attempt(direct, before, after, direction)
    require_two(answer, "two tensors are wanted: what later layers repair, and what the norm does.")
    pairs = {
        "later layers and norm are swapped: layers come first.": (by_norm, by_layers),
        "the scale is held at what it is after the ablation, and before is wanted.": (
            direct - late,
            late - total,
        ),
        "the norm is left out of the falls: divide by the scale.": (
            direct - ((before - after) * direction).sum(-1),
            ((before - after) * direction).sum(-1) - total,
        ),
        "these are the falls, frozen and total, and not what is repaired.": (frozen, total),
        "the first is all that is repaired, direct − total: leave the norm's part out.": (
            direct - total,
            by_norm,
        ),
        "the signs: repaired is what the logit did not fall.": (-by_layers, -by_norm),
        "the norm's part has the wrong sign: frozen − total.": (by_layers, -by_norm),
        "the layers' part has the wrong sign: direct − frozen.": (-by_layers, by_norm),
        "the second is the total fall: take it from the frozen one.": (by_layers, total),
        "the second is all that is repaired: leave the layers' part out.": (
            by_layers,
            direct - total,
        ),
        "the first is the frozen fall: take it from the direct effect.": (frozen, by_norm),
    }
    first, second = answer
    for says, (a, b) in pairs.items():
        if _are(first, a) and _are(second, b):
            raise Wrong(says)
    gone = before - after
    frozen_wrong = {
        **_scales(lambda scale: (gone / scale(before) * direction).sum(-1)),
        "in the frozen fall, direction is missing: the logit is read along it.": (
            gone / rms(before)
        ).sum(-1),
        "in the frozen fall, direction divides, and is to multiply.": (
            gone / rms(before) / direction
        ).sum(-1),
        "the frozen fall is summed over all tokens: keep one number per token.": frozen.sum(),
        "in the frozen fall, a mean runs over d_model: its products add up.": frozen / 5,
        "in the frozen fall, the scale multiplies, and is to divide.": (
            gone * rms(before) * direction
        ).sum(-1),
        "the frozen fall is after − before: a fall is before − after.": -frozen,
        "in the frozen fall, before and after are added.": read(before + after, rms(before)),
        "in the frozen fall, after is missing.": read(before, rms(before)),
        "in the frozen fall, before is missing.": read(after, rms(before)),
    }
    total_wrong = {
        **_scales(lambda scale: read(before, scale(before)) - read(after, scale(after))),
        "in the total fall, direction is missing: the logit is read along it.": (
            before / rms(before) - after / rms(after)
        ).sum(-1),
        "in the total fall, direction divides, and is to multiply.": (
            (before / rms(before) - after / rms(after)) / direction
        ).sum(-1),
        "the total fall is summed over all tokens: keep one number per token.": total.sum(),
        "in the total fall, a mean runs over d_model: its products add up.": total / 5,
        "the total fall is after − before: a fall is before − after.": -total,
        "in the total fall, the two normed streams are added.": read(before, rms(before))
        + read(after, rms(after)),
        "in the total fall, after is missing.": read(before, rms(before)),
        "in the total fall, before is missing.": read(after, rms(after)),
        "in the total fall, before is not normed.": read(before, 1) - read(after, rms(after)),
        "in the total fall, after is not normed.": read(before, rms(before)) - read(after, 1),
    }
    first_wrong = {says: direct - value for says, value in frozen_wrong.items()}
    first_wrong["the first is the direct effect alone: take the frozen fall away."] = direct
    second_wrong = {says: value - total for says, value in frozen_wrong.items()}
    second_wrong |= {says: frozen - value for says, value in total_wrong.items()}
    compare(first, by_layers, first_wrong, what="what later layers repair")
    compare(second, by_norm, second_wrong, what="what the norm repairs")


def _scales(fall: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> dict[str, Tensor]:
    """A fall with each of the usual mistakes in the scale of an RMSNorm."""
    return {
        "the rms lacks its root.": fall(lambda x: x.pow(2).mean(-1, keepdim=True)),
        "the scale is √Σ; the rms is √mean.": fall(lambda x: x.norm(dim=-1, keepdim=True)),
        "the rms is over tokens, and each token has its own.": fall(
            lambda x: x.pow(2).mean(0, keepdim=True).sqrt()
        ),
        "the scale is |x|, elementwise: a mean over d_model is missing.": fall(lambda x: x.abs()),
        "the stream is divided by itself, and not by its rms.": fall(lambda x: x),
    }


def _are(answer: object, value: Tensor) -> bool:
    return (
        isinstance(answer, Tensor)
        and answer.shape == value.shape
        and bool(torch.allclose(answer.double(), value.double(), rtol=1e-4, atol=1e-5))
    )


# ---------------------------------------------------------------------------------------------
# 7.6 Through a head
# ---------------------------------------------------------------------------------------------


@book.solution
def through_values(
    f: Float[Tensor, "seq d_sae"],
    W_dec: Float[Tensor, "d_sae d_model"],
    pattern: Float[Tensor, " seq"],
    factor: Float[Tensor, "seq d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    gradient: Float[Tensor, " d_model"],
) -> Float[Tensor, "seq d_sae"]:
    """What each latent at each position brings to the logit difference through one head, at the
    position where the head writes.

    Args:
        f, W_dec: latents of the residual stream that the head's layer reads, and decoder rows.
        pattern: how much the head attends to each position.
        factor: what the layer's norm multiplies the stream with at each position: weight / rms.
        W_V, W_O: the head's.
        gradient: ∂LD/∂(residual stream) where the head writes.
    """
    back = gradient @ W_O.T @ W_V.T  # [d_model], at the head's input
    through_norm = pattern[:, None] * factor * back
    return f * (through_norm @ W_dec.T)


@book.checker(through_values)
def _(attempt: Callable) -> None:
    f, W_dec = normal(4, 6, seed=1).relu(), normal(6, 5, seed=2)
    pattern, factor = normal(4, seed=3).softmax(0), 0.5 + uniform(4, 5, seed=4)
    W_V, W_O, gradient = normal(5, 3, seed=5), normal(3, 5, seed=6), normal(5, seed=7)
    back = W_V @ (W_O @ gradient)
    right = f * ((pattern[:, None] * factor * back) @ W_dec.T)
    wrong = {
        "the attention pattern is missing: a position that nobody looks at brings nothing.": f
        * ((factor * back) @ W_dec.T),
        "the norm is missing: the head reads the normed stream.": f
        * ((pattern[:, None] * back.expand(4, 5)) @ W_dec.T),
        "the latents' activations are missing: a latent that is silent brings nothing.": (
            pattern[:, None] * factor * back
        )
        @ W_dec.T,
        "the head is left out: go back through W_O and W_V.": f
        * ((pattern[:, None] * factor * gradient) @ W_dec.T),
        "W_O and W_V are swapped: on the way back, W_O comes first.": f
        * ((pattern[:, None] * factor * (W_O.T @ (W_V.T @ gradient))) @ W_dec.T),
        "summed over positions: keep one number per position and latent.": right.sum(0),
        "summed over latents: keep one number per position and latent.": right.sum(1),
        "[d_sae, seq]: positions come first.": right.T,
        "the sign is the wrong way round.": -right,
    }
    answer = attempt(f, W_dec, pattern, factor, W_V, W_O, gradient)
    try:
        compare(answer, right, wrong, what="what each latent brings")
    except Unnamed as unnamed:
        if isinstance(answer, Tensor) and answer.shape == right.shape:
            values = (f @ W_dec * factor) @ W_V
            whole = (pattern * (values @ W_O @ gradient)).sum()
            if abs(answer.sum() - whole) > 1e-3 * whole.abs():
                raise Unnamed(
                    f"{unnamed} All entries together are to be what the head brings of these "
                    f"latents, Σ pattern · value @ W_O · gradient = {whole:.3f}, and are "
                    f"{answer.sum():.3f}."
                ) from None
        raise
