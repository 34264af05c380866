"""How the error of a splice grows on its way through the model, and whether noise of the same size
would do as much harm.

An SAE puts x + e in the place of x. Is it the size of e that hurts the model, or its direction? To
find out, other streams are given disturbances that are exactly as long at each token, in other
directions:

    sae     x + e                           the SAE's own error
    other   x + ‖e‖ · e' / ‖e'‖             e' the error at another token: a typical direction, with
    nothing to do with this x
    random  x + ‖e‖ · u                     u of length 1, any direction alike

Where there are several SAEs, each stream goes on through the model with all that has been done to
it, and the lengths ‖e‖ come from the first. Gurnee ("SAE reconstruction errors are (empirically)
pathological", 2024) made the comparison with ``random`` for single SAEs of GPT-2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.saes import decode, encode
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import Interval, ratio_interval
from course_utils.labs.lab import Lab, hook_point
from course_utils.labs.layers import LayerStack

KINDS = ("sae", "other", "random")


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
    join = lambda kind, name: torch.cat([getattr(piece[kind], name) for piece in pieces])  # noqa: E731
    return {
        kind: Growth(join(kind, "relative"), join(kind, "added"), join(kind, "kl"))
        for kind in KINDS
    }


def _grow(spliced: SplicedModel, tokens: Tensor, generator: torch.Generator) -> dict[str, Growth]:
    stack, first = spliced.stack, spliced.layers[0]
    clean = stack.run(stack.embed(tokens), range(first + 1))
    streams = dict.fromkeys(KINDS, clean)
    relative = {kind: [torch.zeros(len(tokens), device=clean.device)] * first for kind in KINDS}
    added: list[Tensor] = []
    for layer in range(first, stack.n_layers):
        if layer > first:
            clean = stack.run(clean, range(layer, layer + 1))
            streams = {kind: stack.run(x, range(layer, layer + 1)) for kind, x in streams.items()}
        if layer in spliced.layers:
            changes = disturbances(streams["sae"], spliced.saes[hook_point(layer)], generator)
            streams = {kind: x + changes[kind] for kind, x in streams.items()}
            added.append((changes["sae"].norm(dim=-1) / clean.norm(dim=-1)).mean(1))
        for kind, x in streams.items():
            relative[kind].append(((x - clean).norm(dim=-1) / clean.norm(dim=-1)).mean(1))
    log_p = _log_p(spliced, clean)
    kl = {
        kind: (log_p.exp() * (log_p - _log_p(spliced, x))).sum(-1).mean(1)
        for kind, x in streams.items()
    }
    return {
        kind: Growth(
            torch.stack(relative[kind], 1).cpu(), torch.stack(added, 1).cpu(), kl[kind].cpu()
        )
        for kind in KINDS
    }


def disturbances(
    x: Float[Tensor, "batch seq d_model"], sae: SAE, generator: torch.Generator
) -> dict[str, Float[Tensor, "batch seq d_model"]]:
    """What each kind adds to the stream at an SAE: three vectors of the same length at each token.

    Args:
        x: what the SAE reads, without BOS.
        generator: draws the directions, and by how many tokens the errors are shifted to get
            another token's.
    """
    own = decode(sae, encode(sae, x)) - x
    size = own.norm(dim=-1, keepdim=True)
    flat = own.flatten(0, 1)
    shift = int(torch.randint(1, len(flat), (), generator=generator)) if len(flat) > 1 else 0
    other = flat.roll(shift, dims=0).unflatten(0, own.shape[:2])
    random = torch.randn(own.shape, generator=generator).to(own)
    return {"sae": own, "other": size * _unit(other), "random": size * _unit(random)}


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _log_p(
    spliced: SplicedModel, x: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, "batch seq vocab"]:
    return spliced.stack.logits(spliced.stack.norm(x)).float().log_softmax(-1)


@torch.no_grad()
def residual_stream(
    lab: Lab,
    layer: int,
    tokens: Int[Tensor, "n seq"],
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Float[Tensor, "n seq_without_bos d_model"]:
    """``blocks.{layer}.hook_resid_post`` on pieces of text, without BOS, whose activation is like
    no other token's.
    """
    stack = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    batches = tqdm(tokens.split(batch_size), desc=f"layer {layer}", disable=not progress)
    return torch.cat([stack.run(stack.embed(batch), range(layer + 1)) for batch in batches])


@torch.no_grad()
def text_loss(
    lab: Lab,
    layer: int,
    tokens: Int[Tensor, "n seq"],
    x: Float[Tensor, "n seq_without_bos d_model"],
    replace: Callable[[Float[Tensor, "batch d_model"]], Float[Tensor, "batch d_model"]]
    | None = None,
    *,
    batch_size: int = 64,
) -> Float[Tensor, " n"]:
    """The model's cross-entropy on each piece, in nats a token, with its residual stream after
    ``layer`` replaced.

    Mean over the tokens from the second after BOS on: what is predicted from BOS alone does not
    depend on ``replace``.

    Args:
        x: `residual_stream` of the same tokens at the same layer, which need not be run again.
        replace: what to put in its place, for a batch of tokens ``[batch, d_model]``; by default
            nothing is replaced.
    """
    stack = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    seq, losses = x.shape[1], []
    for resid, batch in zip(x.split(batch_size), tokens.split(batch_size)):
        if replace is not None:
            resid = replace(resid.flatten(0, 1)).to(resid).unflatten(0, resid.shape[:2])
        normed = stack.norm(stack.run(resid, range(layer + 1, stack.n_layers)))
        logits, following = stack.logits(normed[:, :-1]).float(), batch[:, 2:].to(normed.device)
        losses.append(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), following.flatten(), reduction="none"
            )
            .view_as(following)
            .mean(1)
        )
    return torch.cat(losses).cpu()


def loss_recovered(
    model: Float[Tensor, " n"],
    spliced: Float[Tensor, " n"],
    ablated: Float[Tensor, " n"],
    *,
    seed: int = 0,
) -> Interval:
    """(ablated − spliced) / (ablated − model), of mean losses: 1 = as good as the model, 0 = no
    better than ablating.

    The 95 % interval is over pieces of text (percentile bootstrap).
    """
    return ratio_interval(ablated - spliced, ablated - model, seed=seed)
