"""What does a latent mean? Where it fires, what it writes, and what happens when it is forced.

None of the three is proof by itself: a latent's strongest contexts may be unlike its usual ones, what it writes directly is not all
that it does through later layers, and forcing a value may leave what the model ever sees. Together they make a story that
can be wrong, and be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
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

    @property
    def word(self) -> str:
        """The whole word in which it fires most: its token, with the pieces before and after that belong to it."""
        first = last = self.peak
        while first > 0 and self.tokens[first][:1].isalpha() and self.tokens[first - 1][-1:].isalpha():
            first -= 1
        while last + 1 < len(self.tokens) and self.tokens[last][-1:].isalpha() and self.tokens[last + 1][:1].isalpha():
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
        fires: its mean by position label, for each group of prompts: ``{"singular subject": {"The": 0.0, …}, …}``.
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
    found = contexts_by_layer(lab, {layer: latents}, tokens, k=k, before=before, after=after, batch_size=batch_size)
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
    """`top_contexts` for latents of several layers, by (layer, latent): each text goes through the model once.

    Args:
        skip: do not look for peaks at so many tokens after BOS, where activations are unlike those further on.
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
    lab: Lab, f: Float[Tensor, "n seq_without_bos"], tokens: Tensor, k: int, before: int, after: int, skip: int
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
    """Which tokens a latent would make likelier, and which less so, if its decoder row went straight to the final norm and the unembedding.

    Args:
        stack: the model's layers, if they are at hand (`SplicedModel.stack`).

    Returns:
        By latent: ``{"promotes": [...], "suppresses": [...]}``, ``k`` tokens each, the strongest first.
    """
    latents = list(latents)
    logits = _lens(lab, layer, latents, stack)
    text = lambda ids: [lab.tokenizer.decode([i]) for i in ids.tolist()]  # noqa: E731
    return {
        latent: {"promotes": text(logits[i].topk(k).indices), "suppresses": text((-logits[i]).topk(k).indices)}
        for i, latent in enumerate(latents)
    }


def _lens(lab: Lab, layer: int, latents: list[int], stack: LayerStack | None) -> Float[Tensor, "latents vocab"]:
    stack = stack or LayerStack(lab.hf_model, lab.tokenizer.bos_token_id)
    rows = lab.saes[layer].W_dec[latents].to(lab.dtype)
    at_zero = stack.norm(torch.zeros_like(rows[:1]), 1)
    return stack.logits(stack.norm(rows, 1) - at_zero).float()


@torch.no_grad()
def lens_difference(
    lab: Lab, layer: int, latents: Sequence[int], pairs: Sequence[tuple[str, str]], *, stack: LayerStack | None = None
) -> Float[Tensor, " latents"]:
    """By the `logit_lens`: how much more a latent promotes the first token of each pair than the second, averaged over the pairs.

    Args:
        pairs: e.g. ``[(" are", " is"), (" were", " was")]``; each is one token.

    Raises:
        ValueError: a text of more than one token.
    """
    logits, ids = _lens(lab, layer, list(latents), stack), []
    for text in (text for pair in pairs for text in pair):
        encoded = lab.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise ValueError(f"{text!r} is {len(encoded)} tokens of {lab.name!r}; one is wanted (mind the leading space).")
        ids += encoded
    return (logits[:, ids[::2]] - logits[:, ids[1::2]]).mean(1).cpu()


def separation(values: Float[Tensor, " n"], yes: Bool[Tensor, " n"]) -> float:
    """The chance that a value from the ``yes`` cases is above one from the others, ties counting half (the area under the ROC curve).

    1 = every ``yes`` is above every other, 0.5 = no difference, 0 = every ``yes`` is below. NaN where one side is empty.
    """
    a, b = values[yes][:, None], values[~yes][None]
    return ((a > b).double() + 0.5 * (a == b).double()).mean().item()


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

    def at(name: str) -> Callable[[Tensor], Tensor]:
        def change(f: Float[Tensor, "batch seq_without_bos d_sae"]) -> Tensor:
            f = f.clone()
            for (hook_point, position, latent), value in values.items():
                if hook_point == name:
                    f[:, position - spliced.first, latent] = torch.as_tensor(value).to(f)
            return f

        return change

    return spliced.run(tokens, latents={name: at(name) for name in {name for name, *_ in values}})


def forced_logit_diff(spliced: SplicedModel, task: Task, values: Mapping[Node, float | Tensor]) -> Float[Tensor, " n"]:
    """The logit difference of each prompt pair's clean prompt with some latents forced."""
    return force(spliced, task.clean, values).logit_diff(task)


@torch.no_grad()
def passed_on(
    spliced: SplicedModel, clean: Int[Tensor, "batch seq"], patch: Int[Tensor, "batch seq"], nodes: Sequence[Node]
) -> Float[Tensor, "nodes nodes"]:
    """How much of a node's change from clean to patch prompt another node passes on to it: the edges of a circuit.

    Entry (v, w): give node v alone its patch value, let what comes after it follow, and see how far w moves towards its own
    patch value: Σ Δw·δw / Σ δw² over prompts, where δw is w's whole change and Δw what it moves (0 = not at all, 1 = all the
    way). The diagonal is left 0, and so is every w that is the same in both prompts. Effects are total: by way of other
    nodes, too.
    """
    before, after = (spliced.run(tokens) for tokens in (clean, patch))

    def at(latents: Mapping[str, Tensor]) -> Float[Tensor, "batch nodes"]:
        return torch.stack([latents[name][:, position, latent] for name, position, latent in nodes], dim=1).double()

    whole = at(after.latents) - at(before.latents)
    found = torch.zeros(len(nodes), len(nodes), dtype=torch.double)
    for i, (name, position, latent) in enumerate(nodes):  # nothing moves before the node's own SAE: go on from there
        run = force(spliced, before.starts[name], {(name, position, latent): after.latents[name][:, position, latent]})
        moved = at({**before.latents, **run.latents}) - at(before.latents)
        found[i] = ((moved * whole).sum(0) / whole.pow(2).sum(0).clamp(min=1e-12)).cpu()
    return found.fill_diagonal_(0).float()
