"""What does a latent mean? Where it fires, and what it writes.

Neither is proof by itself: a latent's strongest contexts may be unlike its usual ones, and what it
writes directly is not all that it does through later layers. Together with what happens when the
latent is held at another value (`interventions`), they make a story that can be wrong, and be
tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.circuits.saes import encode
from course_utils.labs.lab import Lab
from course_utils.prompts.tokens import one_token


@dataclass(frozen=True)
class Context:
    """A stretch of text in which a latent fires.

    Attributes:
        tokens: its tokens as text.
        values: the latent at each of them (0 = silent).
        peak: which of them it fires most at.
    """

    tokens: list[str]
    values: list[float]
    peak: int

    @property
    def word(self) -> str:
        """The whole word in which it fires most: the token, and the pieces around it."""
        first = last = self.peak
        while first > 0 and self._is_one_word(first - 1):
            first -= 1
        while last + 1 < len(self.tokens) and self._is_one_word(last):
            last += 1
        return "".join(self.tokens[first : last + 1]).strip()

    def _is_one_word(self, i: int) -> bool:
        """Whether a token and the next one meet in the middle of a word."""
        return self.tokens[i][-1:].isalpha() and self.tokens[i + 1][:1].isalpha()


@dataclass(frozen=True)
class LatentCard:
    """What is known of a latent, for a reader to look at.

    Attributes:
        name: e.g. ``"layer 11 · [guard] · latent 1234"``.
        says: one line on it.
        contexts: where in text it fires most.
        promotes, suppresses: tokens, by the logit lens.
        fires: its mean by position label, for each group of prompts: ``{"singular subject": {"The":
            0.0, …}, …}``.
    """

    name: str
    says: str
    contexts: Sequence[Context]
    promotes: Sequence[str]
    suppresses: Sequence[str]
    fires: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------
# Where it fires
# ---------------------------------------------------------------------------------------------


def top_contexts(
    lab: Lab,
    layer: int,
    latents: Sequence[int],
    tokens: Int[Tensor, "n seq"],
    *,
    k: int = 5,
    before: int = 12,
    after: int = 3,
    batch_size: int = 32,
) -> dict[int, list[Context]]:
    """The texts in which latents fire most, one context per text.

    Args:
        layer: whose SAE.
        tokens: texts of one length, BOS first.
        k: contexts per latent; fewer where it fires in fewer texts.
        before, after: how many tokens around the peak.

    Returns:
        Contexts by latent, the strongest first.
    """
    contexts = contexts_by_layer(
        lab, {layer: latents}, tokens, k=k, before=before, after=after, batch_size=batch_size
    )
    return {latent: contexts[layer, latent] for latent in latents}


@torch.no_grad()
def contexts_by_layer(
    lab: Lab,
    latents: Mapping[int, Sequence[int]],
    tokens: Int[Tensor, "n seq"],
    *,
    k: int = 5,
    before: int = 12,
    after: int = 3,
    skip: int = 0,
    batch_size: int = 32,
) -> dict[tuple[int, int], list[Context]]:
    """`top_contexts` for latents of several layers, by (layer, latent).

    Each text goes through the model once.

    Args:
        skip: do not look for peaks at so many tokens after BOS, where activations are unlike those
            further on.

    Raises:
        ValueError: the texts are no longer than what is skipped.
    """
    stack = lab.stack
    texts = tokens[:, stack.first :]  # what the latents are of: BOS is left out
    if skip >= texts.shape[1]:
        raise ValueError(f"texts of {texts.shape[1]} tokens, and {skip} of them are to be skipped.")
    pieces: dict[int, list[Tensor]] = {layer: [] for layer in latents}
    for batch in tokens.split(batch_size):
        for layer, x in stack.walk(batch, latents):
            f = encode(lab.saes[layer], x)
            pieces[layer].append(f[..., list(latents[layer])].cpu())
    contexts: dict[tuple[int, int], list[Context]] = {}
    for layer in sorted(latents):
        f = torch.cat(pieces[layer])  # [n, seq without BOS, latents of this layer]
        for latent, values in zip(latents[layer], f.unbind(-1), strict=True):
            contexts[layer, latent] = [
                _context(lab, values[row], texts[row], peak, before, after)
                for row, peak in _peaks(values, k, skip)
            ]
    return contexts


def _peaks(f: Float[Tensor, "n seq"], k: int, skip: int) -> list[tuple[int, int]]:
    """The ``k`` texts in which a latent is largest, and where: (text, position) pairs.

    Texts in which it does not fire are left out.
    """
    strongest, where = f[:, skip:].max(dim=1)
    rows = strongest.argsort(descending=True)[:k].tolist()
    return [(row, int(where[row]) + skip) for row in rows if strongest[row] > 0]


def _context(
    lab: Lab,
    f: Float[Tensor, " seq"],
    tokens: Int[Tensor, " seq"],
    peak: int,
    before: int,
    after: int,
) -> Context:
    """What stands around a peak."""
    first = max(0, peak - before)
    window = slice(first, peak + after + 1)
    return Context(_as_text(lab, tokens[window]), f[window].tolist(), peak - first)


def _as_text(lab: Lab, tokens: Int[Tensor, " n"]) -> list[str]:
    return [lab.tokenizer.decode([token]) for token in tokens.tolist()]


# ---------------------------------------------------------------------------------------------
# What it writes
# ---------------------------------------------------------------------------------------------


def logit_lens(
    lab: Lab, layer: int, latents: Sequence[int], *, k: int = 8
) -> dict[int, dict[str, list[str]]]:
    """Which tokens a latent makes likelier, and which less so, on the direct path to the output.

    That is: if its decoder row went straight to the final norm and the unembedding.

    Returns:
        By latent: ``{"promotes": [...], "suppresses": [...]}``, ``k`` tokens each, the strongest
        first.
    """
    return {
        latent: {
            "promotes": _as_text(lab, logits.topk(k).indices),
            "suppresses": _as_text(lab, (-logits).topk(k).indices),
        }
        for latent, logits in zip(latents, _lens(lab, layer, latents), strict=True)
    }


def lens_difference(
    lab: Lab, layer: int, latents: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> Float[Tensor, " latents"]:
    """How much more a latent promotes the first token of each pair than the second.

    By the `logit_lens`: a difference of logits, averaged over the pairs.

    Args:
        pairs: e.g. ``[(" are", " is"), (" were", " was")]``; each is one token.

    Raises:
        ValueError: a text of more than one token.
    """
    more = [one_token(lab.tokenizer, text) for text, _ in pairs]
    less = [one_token(lab.tokenizer, text) for _, text in pairs]
    logits = _lens(lab, layer, latents)
    return (logits[:, more] - logits[:, less]).mean(1).cpu()


@torch.no_grad()
def _lens(lab: Lab, layer: int, latents: Sequence[int]) -> Float[Tensor, "latents vocab"]:
    """The logits that decoder rows make by themselves, in float32.

    A norm with a bias makes logits out of nothing at all, which are taken off.
    """
    rows = lab.saes[layer].W_dec[list(latents)].to(lab.dtype)
    of_nothing = lab.stack.norm(torch.zeros_like(rows[:1]))
    return lab.stack.logits(lab.stack.norm(rows) - of_nothing).float()
