"""What the SAEs' reconstruction costs on running text, and how its error grows on the way.

The loss tells what a model loses where an SAE's output takes the place of its residual stream:
`residual_stream`, then `text_loss` with and without the SAE, then `loss_recovered`.

An SAE puts x + e in the place of x. Is it the size of e that hurts the model, or its direction? To
find out, `error_growth` gives other streams disturbances that are exactly as long at each token, in
other directions:

    sae     x + e                   the SAE's own error
    other   x + ‖e‖ · e' / ‖e'‖     e' the error at another token: a typical direction, with
                                    nothing to do with this x
    random  x + ‖e‖ · u             u of norm 1, any direction alike

Where there are several SAEs, each stream goes on through the model with all that has been done to
it, and the norms ‖e‖ come from the first. Gurnee ("SAE reconstruction errors are (empirically)
pathological", 2024) made the comparison with ``random`` for single SAEs of GPT-2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from tqdm.auto import tqdm

from course_utils.circuits.saes import decode, encode
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval, ratio_interval
from course_utils.labs.lab import Lab, hook_point

KINDS = ("sae", "other", "random")

ReplaceStream = Callable[[Float[Tensor, "tokens d_model"]], Float[Tensor, "tokens d_model"]]
"""What takes the place of the residual stream at some tokens."""


# ---------------------------------------------------------------------------------------------
# The loss on text
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def residual_stream(
    lab: Lab,
    layer: int,
    tokens: Int[Tensor, "n seq"],
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Float[Tensor, "n seq_without_bos d_model"]:
    """``blocks.{layer}.hook_resid_post`` on pieces of text.

    BOS is left out: its activation is like no other token's.
    """
    batches = tqdm(tokens.split(batch_size), desc=f"layer {layer}", disable=not progress)
    return torch.cat([x for batch in batches for _, x in lab.stack.walk(batch, [layer])])


@torch.no_grad()
def text_loss(
    lab: Lab,
    layer: int,
    tokens: Int[Tensor, "n seq"],
    x: Float[Tensor, "n seq_without_bos d_model"],
    replace: ReplaceStream | None = None,
    *,
    batch_size: int = 64,
) -> Float[Tensor, " n"]:
    """The model's cross-entropy on each piece, with its residual stream after ``layer`` replaced.

    In nats per token: the mean over the tokens from the second after BOS on. What is predicted from
    BOS alone does not depend on ``replace``.

    Args:
        x: `residual_stream` of the same tokens at the same layer, which need not be run again.
        replace: what to put in its place, for many tokens at once; by default nothing is replaced.
    """
    stack, losses = lab.stack, []
    for resid, batch in zip(x.split(batch_size), tokens.split(batch_size), strict=True):
        if replace is not None:
            resid = replace(resid.flatten(0, 1)).to(resid).unflatten(0, resid.shape[:2])
        resid = stack.run(resid, range(layer + 1, stack.n_layers))
        logits = stack.logits(stack.norm(resid)[:, :-1]).float()
        following = batch[:, stack.first + 1 :].to(logits.device)
        per_token = cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
        losses.append(per_token.view_as(following).mean(1))
    return torch.cat(losses).cpu()


def loss_recovered(
    model: Float[Tensor, " n"],
    spliced: Float[Tensor, " n"],
    ablated: Float[Tensor, " n"],
    *,
    seed: int = 0,
) -> Interval:
    """(ablated − spliced) / (ablated − model), of mean losses.

    1 = as good as the model, 0 = no better than ablating. The 95 % interval is over pieces of text
    (percentile bootstrap).

    Args:
        model, spliced, ablated: `text_loss` of each piece, as it is, with the SAE, and with the
            residual stream replaced by something that knows nothing.
        seed: of the resamples.
    """
    return ratio_interval(ablated - spliced, ablated - model, seed=seed)


# ---------------------------------------------------------------------------------------------
# The growth of errors
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """What a disturbance does, text by text.

    Attributes:
        relative: ``[n, n_layers]``, ‖x' − x‖ / ‖x‖ after each layer (after its disturbance, where
            it has one), mean over positions without BOS. 0 = the model's own stream.
        added: ``[n, n_spliced]``, ‖e‖ / ‖x‖ at each SAE: what it adds by itself, x being the
            model's own stream.
        kl: ``[n]``, KL(model ‖ disturbed model) of the next token, in nats, mean over positions
            without BOS.
    """

    relative: Float[Tensor, "n n_layers"]
    added: Float[Tensor, "n n_spliced"]
    kl: Float[Tensor, " n"]


@torch.no_grad()
def error_growth(
    spliced: SplicedModel, tokens: Int[Tensor, "n seq"], *, seed: int = 0, batch_size: int = 16
) -> dict[str, Growth]:
    """Run the model with each of the three disturbances at its SAEs, beside the model itself.

    Errors are dropped.

    Args:
        spliced: which SAEs; its error policy does not matter.
        tokens: texts of one length, BOS first if the spliced model has one.
        seed: of the random directions, and of the choice of other tokens.

    Returns:
        A `Growth` for ``"sae"``, ``"other"`` and ``"random"``.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces = [_grow(spliced, batch, generator) for batch in tokens.split(batch_size)]
    return {kind: _joined([piece[kind] for piece in pieces]) for kind in KINDS}


def _joined(pieces: Sequence[Growth]) -> Growth:
    return Growth(
        relative=torch.cat([piece.relative for piece in pieces]),
        added=torch.cat([piece.added for piece in pieces]),
        kl=torch.cat([piece.kl for piece in pieces]),
    )


def _grow(
    spliced: SplicedModel, tokens: Int[Tensor, "batch seq"], generator: torch.Generator
) -> dict[str, Growth]:
    """`error_growth` of one batch."""
    stack, first = spliced.stack, spliced.layers[0]
    start = stack.run(stack.embed(tokens), range(first + 1))
    clean, streams = start, dict.fromkeys(KINDS, start)
    relative: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    added: list[Tensor] = []
    for layer, clean in stack.walk_on(start, first, range(first, stack.n_layers)):
        if layer > first:
            streams = {kind: stack.run(x, range(layer, layer + 1)) for kind, x in streams.items()}
        if layer in spliced.layers:
            changes = disturbances(streams["sae"], spliced.saes[hook_point(layer)], generator)
            streams = {kind: x + changes[kind] for kind, x in streams.items()}
            added.append(_relative_norm(changes["sae"], clean))
        for kind, x in streams.items():
            relative[kind].append(_relative_norm(x - clean, clean))
    log_p = _log_p(spliced, clean)
    return {
        kind: Growth(
            relative=pad(torch.stack(relative[kind], 1), (first, 0)).cpu(),
            added=torch.stack(added, 1).cpu(),
            kl=_divergence(log_p, _log_p(spliced, x)).cpu(),
        )
        for kind, x in streams.items()
    }


def disturbances(
    x: Float[Tensor, "batch seq d_model"], sae: SAE, generator: torch.Generator
) -> dict[str, Float[Tensor, "batch seq d_model"]]:
    """What each kind adds to the stream at an SAE: three vectors of the same norm at each token.

    Args:
        x: what the SAE reads, without BOS.
        generator: draws the directions, and by how many tokens the errors are shifted to get
            another token's.
    """
    own = decode(sae, encode(sae, x)) - x
    size = own.norm(dim=-1, keepdim=True)
    of_tokens = own.flatten(0, 1)
    n_tokens = len(of_tokens)
    shift = int(torch.randint(1, n_tokens, (), generator=generator)) if n_tokens > 1 else 0
    other = of_tokens.roll(shift, dims=0).unflatten(0, own.shape[:2])
    random = torch.randn(own.shape, generator=generator).to(own)
    return {"sae": own, "other": size * _unit(other), "random": size * _unit(random)}


def _unit(x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _relative_norm(
    change: Float[Tensor, "batch seq d_model"], x: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, " batch"]:
    """‖change‖ / ‖x‖, mean over positions."""
    return (change.norm(dim=-1) / x.norm(dim=-1)).mean(1)


def _log_p(
    spliced: SplicedModel, x: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, "batch seq vocab"]:
    """The log-probabilities of the next token, from the residual stream after the last layer."""
    return spliced.stack.logits(spliced.stack.norm(x)).float().log_softmax(-1)


def _divergence(
    log_p: Float[Tensor, "batch seq vocab"], log_q: Float[Tensor, "batch seq vocab"]
) -> Float[Tensor, " batch"]:
    """KL(p ‖ q) in nats, mean over positions."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)
