"""Self-repair: what the rest of the model does about something that is taken away.

Take away what one attention head, or one latent, writes, and watch the logit of the right next
token. By its *direct effect* the logit should fall so far; it falls by the *total effect*, which is
often less. What is between the two is self-repair (Rushing and Nanda 2024, arXiv 2402.15390), and
it has two parts that add up:

    direct − total = (direct − frozen) + (frozen − total)

where *frozen* is the fall with the final norm's scale held at what it was. The first part is what
later layers write differently. The second is the norm: a component that is taken away was part of
what the norm divides by, so that all that is left counts for more.

Logits are centred: minus their mean over the vocabulary, since a constant in all of them changes
nothing. All effects are falls: positive where the component raised the right token's logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.circuits.backward import norm_factor
from course_utils.circuits.heads import HeadRun, Heads
from course_utils.circuits.statistics import Interval, bootstrap


@dataclass(frozen=True)
class Repair:
    """Falls of the right next token's centred logit, token by token, ``[n, seq − 1]``: there is one
    for every token but BOS that has a next one.

    Attributes:
        direct: by the component's own path to the logits, norm's scale frozen.
        frozen: by all paths, norm's scale frozen.
        total: by all paths: what happens.
        later_heads: ``[n, seq − 1, layers, heads]``: how far each head's own direct contribution
            fell; negative where a head made up for the loss.
        later_mlps: ``[n, seq − 1, layers]``: the same of the MLPs.
    """

    direct: Float[Tensor, "n seq"]
    frozen: Float[Tensor, "n seq"]
    total: Float[Tensor, "n seq"]
    later_heads: Float[Tensor, "n seq layers heads"]
    later_mlps: Float[Tensor, "n seq layers"]

    @property
    def repaired(self) -> Float[Tensor, "n seq"]:
        """direct − total: what the logit did not fall."""
        return self.direct - self.total

    @property
    def by_norm(self) -> Float[Tensor, "n seq"]:
        """The part of it that is the final norm's scale."""
        return self.frozen - self.total

    @property
    def by_later_layers(self) -> Float[Tensor, "n seq"]:
        """The part of it that later layers write."""
        return self.direct - self.frozen

    def largest(self, share: float = 0.02) -> Bool[Tensor, "n seq"]:
        """The tokens with the largest direct effects, a ``share`` of all."""
        cut = torch.quantile(self.direct.flatten(), 1 - share)
        return self.direct >= cut


class RepairBench:
    """Pieces of text with the model's own run on them, to take things away from.

    Args:
        heads: the model.
        tokens: ``[n, seq]``, with BOS; every piece of one length.
    """

    def __init__(self, heads: Heads, tokens: Int[Tensor, "n seq"]):
        self.heads, self.tokens = heads, tokens.to(heads.stack.device)
        with torch.no_grad():
            self.run = heads.run(self.tokens)
            self.final = self.run.resid[heads.n_layers]
            self.factor = norm_factor(heads.stack.final_norm, self.final)
            right = self._unembedding_of_next()
            self.direction = self.factor[:, :-1] * right
            """``[n, seq − 1, d_model]``: what the residual stream is multiplied with to give the
            right next token's centred logit, norm's scale frozen."""
            self.right = right

    def _unembedding_of_next(self) -> Float[Tensor, "n seq d_model"]:
        weight = self.heads.stack.head.weight.float()
        next_tokens = self.tokens[:, self.heads.first + 1 :]
        return weight[next_tokens] - weight.mean(0)

    @torch.no_grad()
    def direct_effects_of_heads(self, layer: int) -> Float[Tensor, "heads n seq"]:
        """Direct effect of mean-ablating each head of a layer (`Repair.direct`, without the rest):
        cheap, so that one can see which heads are worth a look.
        """
        out = self.run.attention[layer].out
        removed = out - out.mean((0, 2), keepdim=True)
        written = torch.einsum("bhsd,hdm->hbsm", removed, self.heads.W_O(layer))
        return (written[:, :, :-1] * self.direction).sum(-1)

    @torch.no_grad()
    def ablate_head(self, layer: int, head: int) -> Repair:
        """A head's output is its mean over the text, at every position."""
        out = self.run.attention[layer].out
        removed = out[:, head] - out[:, head].mean((0, 1))
        written = removed @ self.heads.W_O(layer)[head]

        def mean_ablated(part: Tensor) -> Tensor:
            part = part.clone()
            part[:, head] = part[:, head].mean((0, 1))
            return part

        x = self.run.resid[layer]
        changes = {(layer, "out"): mean_ablated}
        return self._compare(x, layer, written, changes)

    @torch.no_grad()
    def ablate_written(self, layer: int, written: Float[Tensor, "n seq d_model"]) -> Repair:
        """Something that was written into the residual stream is taken out again after a layer.

        Args:
            layer: after which; the last layer has nothing behind it that could repair.
            written: without BOS; such as a latent's activation × its decoder row.

        Raises:
            ValueError: after the last layer.
        """
        if layer >= self.heads.n_layers - 1:
            raise ValueError(f"after layer {layer} there is no layer left that could repair.")
        x = self.run.resid[layer + 1] - written
        return self._compare(x, layer + 1, written, {})

    def _compare(
        self,
        x: Tensor,
        layer: int,
        written: Tensor,
        changes: dict[tuple[int, str], Callable[[Tensor], Tensor]],
    ) -> Repair:
        run = self.heads.run(x, layer=layer, changes=changes)
        final = run.resid[self.heads.n_layers]
        moved = self.final - final
        new_factor = norm_factor(self.heads.stack.final_norm, final)
        before = (self.final * self.factor)[:, :-1]
        after = (final * new_factor)[:, :-1]
        heads, mlps = self._later(run, layer, changes)
        return Repair(
            direct=(written[:, :-1] * self.direction).sum(-1),
            frozen=(moved[:, :-1] * self.direction).sum(-1),
            total=((before - after) * self.right).sum(-1),
            later_heads=heads,
            later_mlps=mlps,
        )

    def _later(
        self, run: HeadRun, layer: int, changes: dict
    ) -> tuple[Float[Tensor, "n seq layers heads"], Float[Tensor, "n seq layers"]]:
        """How far the direct contribution of each later head and MLP fell."""
        n, seq = self.direction.shape[:2]
        heads = torch.zeros(n, seq, self.heads.n_layers, self.heads.n_heads)
        mlps = torch.zeros(n, seq, self.heads.n_layers)
        for number in range(layer, self.heads.n_layers):
            out = self.run.attention[number].out - run.attention[number].out
            written = torch.einsum("bhsd,hdm->bshm", out, self.heads.W_O(number))[:, :-1]
            by_head = (written * self.direction[:, :, None]).sum(-1)
            wrote, writes = (r.resid[number + 1] - r.resid[number] for r in (self.run, run))
            whole = ((wrote - writes)[:, :-1] * self.direction).sum(-1)
            mlps[:, :, number] = whole - by_head.sum(-1)
            if not (number == layer and changes):  # the ablated head itself is not its own repair
                heads[:, :, number] = by_head
        return heads, mlps


def share_of(part: Float[Tensor, " n"], whole: Float[Tensor, " n"]) -> Interval:
    """A part's share of a whole, both summed over tokens, with its 95 % interval over tokens."""
    return bootstrap(lambda p, w: p / w, [part.flatten(), whole.flatten()])
