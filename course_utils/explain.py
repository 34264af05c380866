"""What does a latent mean? Where it fires, what it writes, and what happens when it is forced.

None of the three is proof by itself: a latent's strongest contexts may be unlike its usual ones, what it writes directly is not all
that it does through later layers, and forcing a value may leave what the model ever sees. Together they make a story that
can be wrong, and be tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.labs import Lab
from course_utils.layers import LayerStack
from course_utils.splice import Run, SplicedModel, Start, encode
from course_utils.tasks import Task

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
    stack, sae = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id), lab.saes[layer]
    latents = list(latents)
    pieces = [encode(sae, stack.run(stack.embed(batch), range(layer + 1)))[..., latents].cpu() for batch in tokens.split(batch_size)]
    f = torch.cat(pieces)  # [n, seq - 1, len(latents)]: BOS is left out
    found: dict[int, list[Context]] = {}
    for column, latent in enumerate(latents):
        strongest, where = f[..., column].max(dim=1)
        found[latent] = []
        for row in strongest.argsort(descending=True)[:k].tolist():
            if strongest[row] <= 0:
                break
            peak = where[row].item()
            first = max(0, peak - before)
            window = slice(first, peak + after + 1)
            text = [lab.tokenizer.decode([token]) for token in tokens[row, 1:][window].tolist()]
            found[latent].append(Context(text, f[row, window, column].tolist(), peak - first))
    return found


@torch.no_grad()
def logit_lens(lab: Lab, layer: int, latents: Sequence[int], *, k: int = 8) -> dict[int, dict[str, list[str]]]:
    """Which tokens a latent would make likelier, and which less so, if its decoder row went straight to the final norm and the unembedding.

    Returns:
        By latent: ``{"promotes": [...], "suppresses": [...]}``, ``k`` tokens each, the strongest first.
    """
    stack, latents = LayerStack(lab.hf_model, lab.tokenizer.bos_token_id), list(latents)
    rows = lab.saes[layer].W_dec[latents].to(lab.dtype)
    at_zero = stack.norm(torch.zeros_like(rows[:1]), 1)
    logits = stack.logits(stack.norm(rows, 1) - at_zero).float()
    text = lambda ids: [lab.tokenizer.decode([i]) for i in ids.tolist()]  # noqa: E731
    return {
        latent: {"promotes": text(logits[i].topk(k).indices), "suppresses": text((-logits[i]).topk(k).indices)}
        for i, latent in enumerate(latents)
    }


@torch.no_grad()
def force(
    spliced: SplicedModel,
    tokens: Int[Tensor, "batch seq"] | Start,
    values: Mapping[Node, float | Float[Tensor, " batch"]],
) -> Run:
    """A forward pass with some latents held at given values; what comes after them follows.

    Args:
        values: what each node is to be, for all prompts or one by one.

    Raises:
        ValueError: a node at a hook point that is not spliced.
    """
    unknown = {name for name, *_ in values} - set(spliced.hook_points)
    if unknown:
        raise ValueError(f"nothing is spliced at {', '.join(sorted(unknown))}; there is {', '.join(spliced.hook_points)}.")
    start = tokens if isinstance(tokens, Start) else spliced.start(tokens)
    forced: dict[str, Tensor] = {}
    for name in spliced.hook_points:
        here = {node: value for node, value in values.items() if node[0] == name}
        if here:
            f = spliced.run(start, latents=forced).latents[name].clone()  # with what was forced upstream
            for (_, position, latent), value in here.items():
                f[:, position, latent] = value
            forced[name] = f
    return spliced.run(start, latents=forced)


def forced_logit_diff(spliced: SplicedModel, task: Task, values: Mapping[Node, float | Tensor]) -> Float[Tensor, " n"]:
    """The logit difference of each prompt pair's clean prompt with some latents forced."""
    return force(spliced, task.clean, values).logit_diff(task)
