"""The fast way to a circuit: what a logit difference is made of, read off one backward pass.

After a layer the residual stream is a sum, x = Σ aᵢ dᵢ + b + ε: latents times decoder rows, the
decoder's bias, and what the SAE leaves out. A gradient is linear, so it can be shared out:

    ∇LD · x = Σ aᵢ (dᵢ · ∇LD)  +  b · ∇LD  +  ε · ∇LD

and each latent at each position has a number (`trace_latents`; Anthropic's circuits updates of
March 2024). Here the gradient is the *model's own*: SAEs are read, and not spliced. With RelP's
rules for the way back (`backward.relevance`) the numbers of one layer add up to the logit
difference, but for what comes from BOS.

Attention takes things from one position to another. A head's output is Σ pattern · values, so that
its share of the logit difference is shared out over the positions it reads from (`trace_heads`),
and through its values (OV) over the latents there (`through_head`): from the answer back to the
subject. The pattern is taken as given: why the head looks there is another question.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.circuits.atp_star import Rule
from course_utils.circuits.backward import frozen_patterns, norms_frozen, relevance
from course_utils.circuits.heads import Heads, per_head, require_one_length
from course_utils.circuits.saes import decode, encode
from course_utils.circuits.splice import batches
from course_utils.labs.lab import Lab, hook_point
from course_utils.prompts.tasks import Task


@dataclass(frozen=True)
class Trace:
    """Shares of the logit difference, in its units, for each prompt; 0 at BOS.

    Attributes:
        latents: ``[n, seq, d_sae]`` by hook point: aᵢ (dᵢ · ∇LD).
        bias: ``[n, seq]`` by hook point: b · ∇LD.
        error: ``[n, seq]`` by hook point: ε · ∇LD, what no latent accounts for.
        logit_diff: ``[n]``, the model's.
    """

    latents: dict[str, Float[Tensor, "n seq d_sae"]]
    bias: dict[str, Float[Tensor, "n seq"]]
    error: dict[str, Float[Tensor, "n seq"]]
    logit_diff: Float[Tensor, " n"]

    def sums(self) -> dict[str, Float[Tensor, "n 3"]]:
        """By hook point, what latents, bias and error come to in each prompt."""
        return {
            name: torch.stack(
                [latents.sum((1, 2)), self.bias[name].sum(1), self.error[name].sum(1)], dim=1
            )
            for name, latents in self.latents.items()
        }


def trace_latents(
    lab: Lab,
    task: Task,
    layers: Sequence[int] | None = None,
    *,
    rule: Rule = "gradient",
    batch_size: int = 16,
) -> Trace:
    """Attribute the model's logit difference to all latents of the SAEs, at every position.

    Args:
        layers: of which SAEs; all of the lab's by default.
        rule: the gradient, or RelP's rules.

    Raises:
        ValueError: padded prompts; an unknown rule.
        LabError: a model that RelP does not know.
    """
    require_one_length(task)
    if rule not in ("gradient", "relp"):
        raise ValueError(f"rule must be 'gradient' or 'relp', not {rule!r}.")
    layers = lab.sae_layers if layers is None else sorted(set(layers))
    pieces = [_trace_batch(lab, batch, layers, rule) for batch in batches(task, batch_size)]

    def joined(part: str) -> dict[str, Tensor]:
        names = [hook_point(layer) for layer in layers]
        return {name: torch.cat([getattr(p, part)[name] for p in pieces]) for name in names}

    logit_diff = torch.cat([piece.logit_diff for piece in pieces])
    return Trace(joined("latents"), joined("bias"), joined("error"), logit_diff)


def _trace_batch(lab: Lab, task: Task, layers: Sequence[int], rule: Rule) -> Trace:
    stack = lab.stack
    with ExitStack() as rules, torch.enable_grad():
        if rule == "relp":
            rules.enter_context(relevance(stack))
        x = stack.embed(task.clean).detach().requires_grad_()
        streams = dict(stack.walk_on(x, -1, [*layers, stack.n_layers - 1]))
        normed = stack.norm(stack.last(streams[stack.n_layers - 1]))
        logit_diff = _logit_diff(lab, normed, task)
        gradients = torch.autograd.grad(logit_diff.sum(), [streams[layer] for layer in layers])
    trace = Trace({}, {}, {}, logit_diff.detach().float().cpu())
    with torch.no_grad():
        for layer, gradient in zip(layers, gradients, strict=True):
            name, sae, stream = hook_point(layer), lab.saes[layer], streams[layer].detach()
            f = encode(sae, stream)
            x_hat, empty = decode(sae, f), decode(sae, torch.zeros_like(f[:1, :1]))
            trace.latents[name] = _padded(stack.first, (f * (gradient @ sae.W_dec.T)).float())
            trace.bias[name] = _padded(stack.first, (gradient * empty).sum(-1).float())
            trace.error[name] = _padded(stack.first, (gradient * (stream - x_hat)).sum(-1).float())
    return trace


def _logit_diff(lab: Lab, normed: Tensor, task: Task) -> Float[Tensor, " n"]:
    clean, patch = task.clean_answers.to(normed.device), task.patch_answers.to(normed.device)
    return lab.stack.logits_of(normed, clean) - lab.stack.logits_of(normed, patch)


def _padded(first: int, values: Tensor) -> Tensor:
    """Positions as the tokens have them: zeros in front where BOS is."""
    front = torch.zeros(len(values), first, *values.shape[2:], device=values.device)
    return torch.cat([front, values], dim=1).cpu()


def trace_heads(
    heads: Heads, task: Task, *, position: int = -1, rule: Rule = "gradient", batch_size: int = 16
) -> Float[Tensor, "n layers heads seq"]:
    """Each head's share of the logit difference, by the position that it reads from.

    Entry (l, h, s) is pattern[p, s] · (value_s · ∇LD at the head's output at p): what the head
    brings from s to ``position`` p, times what that does. Summed over s it is output · ∇LD.

    Args:
        position: where the heads write; −1 for the last.

    Raises:
        ValueError: padded prompts; BOS, where no head's output is looked at.
    """
    require_one_length(task)
    row = _row(heads, task, position)
    found = []
    for batch in batches(task, batch_size):
        run, gradients = _head_gradients(heads, batch, rule)
        layers = []
        for layer in range(heads.n_layers):
            seen = run.attention[layer]
            moved = per_head(seen.value, heads.n_heads) * gradients[layer][:, :, row, None]
            layers.append((seen.pattern[:, :, row] * moved.sum(-1)).detach().float())
        found.append(torch.stack(layers, dim=1).cpu())
    return torch.cat(found)


def through_head(
    heads: Heads,
    task: Task,
    layer: int,
    head: int,
    *,
    sae_layer: int | None = None,
    position: int = -1,
    rule: Rule = "gradient",
) -> Float[Tensor, "n seq d_sae"]:
    """What a head brings to ``position``, shared out over the latents at the positions it reads.

    The head's share (`trace_heads`) is carried back through its values to the residual stream after
    ``sae_layer``, with patterns and norms as constants: aᵢ (dᵢ · ∇ of that share).

    Args:
        sae_layer: whose latents; by default, those of the last SAE before the head's layer. One
            right before it is reached exactly, through W_V and W_O alone; others through the layers
            between, by their gradient.

    Raises:
        ValueError: padded prompts; no SAE before the head.
    """
    require_one_length(task)
    row = _row(heads, task, position)
    before = [number for number in heads.lab.sae_layers if number < layer]
    if not before or (sae_layer is not None and sae_layer not in before):
        raise ValueError(f"no such SAE before layer {layer}; there are SAEs after {before}.")
    source = before[-1] if sae_layer is None else sae_layer
    sae = heads.lab.saes[source]
    _, gradients = _head_gradients(heads, task, rule)
    gradient_at_out = gradients[layer][:, head, row].detach()
    with norms_frozen(heads.stack):
        start = heads.run(task.clean).resid[source + 1]
        changes = frozen_patterns(heads.n_layers)
        x = start.detach().requires_grad_()
        run = heads.run(x, layer=source + 1, changes=changes, track=True)
        share = (run.attention[layer].out[:, head, row] * gradient_at_out).sum()
        [gradient] = torch.autograd.grad(share, x)
    with torch.no_grad():
        f = encode(sae, start)
        return _padded(heads.first, (f * (gradient @ sae.W_dec.T)).float())


def _head_gradients(heads: Heads, task: Task, rule: Rule):
    """A run on the clean prompts, and ∇LD at all heads' outputs, by layer."""
    changes = frozen_patterns(heads.n_layers) if rule == "relp" else None
    with ExitStack() as rules:
        if rule == "relp":
            rules.enter_context(relevance(heads.stack, patterns=False))
        run = heads.run(task.clean, changes=changes, track=True)
        outs = [run.attention[layer].out for layer in range(heads.n_layers)]
        return run, torch.autograd.grad(run.logit_diff(task).sum(), outs)


def _row(heads: Heads, task: Task, position: int) -> int:
    position = position % task.seq_len
    if position < heads.first:
        raise ValueError("position 0 is BOS; heads are looked at from position 1 on.")
    return position - heads.first
