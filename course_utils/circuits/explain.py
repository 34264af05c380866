"""What does a latent mean? Where it fires, what it writes, and what happens when it is forced.

None of the three is proof by itself: a latent's strongest contexts may be unlike its usual ones,
what it writes directly is not all that it does through later layers, and forcing a value may leave
what the model ever sees. Together they make a story that can be wrong, and be tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.circuits.saes import encode
from course_utils.labs.lab import Lab
from course_utils.labs.layers import LayerStack
from course_utils.prompts.tokens import one_token

Node = tuple[str, int, int]
"""(hook point, position, latent), as `SAEMasks.nodes` lists them."""


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
        """The whole word in which it fires most: its token, with the pieces before and after that
        belong to it.
        """
        first = last = self.peak
        while (
            first > 0 and self.tokens[first][:1].isalpha() and self.tokens[first - 1][-1:].isalpha()
        ):
            first -= 1
        while (
            last + 1 < len(self.tokens)
            and self.tokens[last][-1:].isalpha()
            and self.tokens[last + 1][:1].isalpha()
        ):
            last += 1
        return "".join(self.tokens[first : last + 1]).strip()


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


@torch.no_grad()
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
    """The texts in which latents fire most, one context a text.

    Args:
        layer: whose SAE.
        tokens: texts of one length, BOS first.
        k: contexts a latent; fewer where it fires in fewer texts.
        before, after: how many tokens around the peak.

    Returns:
        Contexts by latent, the strongest first.
    """
    found = contexts_by_layer(
        lab, {layer: latents}, tokens, k=k, before=before, after=after, batch_size=batch_size
    )
    return {latent: found[layer, latent] for latent in latents}


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
    """`top_contexts` for latents of several layers, by (layer, latent): each text goes through the
    model once.

    Args:
        skip: do not look for peaks at so many tokens after BOS, where activations are unlike those
            further on.
    """
    stack = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    latents = {layer: list(latents[layer]) for layer in sorted(latents)}
    pieces: dict[int, list[Tensor]] = {layer: [] for layer in latents}
    for batch in tokens.split(batch_size):
        x, layer = stack.embed(batch), -1
        for here, wanted in latents.items():
            x, layer = stack.run(x, range(layer + 1, here + 1)), here
            pieces[here].append(encode(lab.saes[here], x)[..., wanted].cpu())
    found: dict[tuple[int, int], list[Context]] = {}
    for layer, wanted in latents.items():
        f = torch.cat(pieces[layer])  # [n, seq - 1, len(wanted)]: BOS is left out
        for column, latent in enumerate(wanted):
            found[layer, latent] = _strongest(lab, f[..., column], tokens, k, before, after, skip)
    return found


def _strongest(
    lab: Lab,
    f: Float[Tensor, "n seq_without_bos"],
    tokens: Tensor,
    k: int,
    before: int,
    after: int,
    skip: int,
) -> list[Context]:
    strongest, where = f[:, skip:].max(dim=1)
    contexts = []
    for row in strongest.argsort(descending=True)[:k].tolist():
        if strongest[row] <= 0:
            break
        peak = where[row].item() + skip
        first = max(0, peak - before)
        window = slice(first, peak + after + 1)
        text = [lab.tokenizer.decode([token]) for token in tokens[row, 1:][window].tolist()]
        contexts.append(Context(text, f[row, window].tolist(), peak - first))
    return contexts


@torch.no_grad()
def logit_lens(
    lab: Lab, layer: int, latents: Sequence[int], *, k: int = 8, stack: LayerStack | None = None
) -> dict[int, dict[str, list[str]]]:
    """Which tokens a latent would make likelier, and which less so, if its decoder row went
    straight to the final norm and the unembedding.

    Args:
        stack: the model's layers, if they are at hand (`SplicedModel.stack`).

    Returns:
        By latent: ``{"promotes": [...], "suppresses": [...]}``, ``k`` tokens each, the strongest
        first.
    """
    latents = list(latents)
    logits = _lens(lab, layer, latents, stack)
    text = lambda ids: [lab.tokenizer.decode([i]) for i in ids.tolist()]  # noqa: E731
    return {
        latent: {
            "promotes": text(logits[i].topk(k).indices),
            "suppresses": text((-logits[i]).topk(k).indices),
        }
        for i, latent in enumerate(latents)
    }


def _lens(
    lab: Lab, layer: int, latents: list[int], stack: LayerStack | None
) -> Float[Tensor, "latents vocab"]:
    stack = stack or LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    rows = lab.saes[layer].W_dec[latents].to(lab.dtype)
    at_zero = stack.norm(torch.zeros_like(rows[:1]))
    return stack.logits(stack.norm(rows) - at_zero).float()


@torch.no_grad()
def lens_difference(
    lab: Lab,
    layer: int,
    latents: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    *,
    stack: LayerStack | None = None,
) -> Float[Tensor, " latents"]:
    """By the `logit_lens`: how much more a latent promotes the first token of each pair than the
    second, averaged over the pairs.

    Args:
        pairs: e.g. ``[(" are", " is"), (" were", " was")]``; each is one token.

    Raises:
        ValueError: a text of more than one token.
    """
    more = [one_token(lab.tokenizer, text) for text, _ in pairs]
    less = [one_token(lab.tokenizer, text) for _, text in pairs]
    logits = _lens(lab, layer, list(latents), stack)
    return (logits[:, more] - logits[:, less]).mean(1).cpu()
