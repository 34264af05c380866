"""Interventions: latents held at given values, latents that come from another prompt, and how much
of a change a node passes on.

Positions count the columns of the tokens, BOS included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.circuits.masks import Node, SAEMasks, ablate
from course_utils.circuits.splice import (
    ChangeLatents,
    PatchMeans,
    Prefix,
    Run,
    SplicedModel,
    batches,
)
from course_utils.prompts.tasks import Task


class Held(NamedTuple):
    """A latent held at a value.

    Attributes:
        hook_point, latent: which latent.
        position: where: a column of the tokens; one column per prompt, ``[batch]``; or None for
            every position.
        value: at what: for all prompts, or one value per prompt, ``[batch]``.
    """

    hook_point: str
    position: int | Int[Tensor, " batch"] | None
    latent: int
    value: float | Float[Tensor, " batch"]


def holding(spliced: SplicedModel, held: Iterable[Held]) -> dict[str, ChangeLatents]:
    """What to give `SplicedModel.run` as ``latents`` so that some are held.

    Raises:
        ValueError: nothing is spliced at a hook point; a position that is BOS', which is never
            spliced; a latent that the SAE does not have.
    """
    at_hook_point: dict[str, list[Held]] = defaultdict(list)
    for item in held:
        _check(spliced, item)
        at_hook_point[item.hook_point].append(item)
    return {name: _Holding(items, spliced.first) for name, items in at_hook_point.items()}


class _Holding:
    """Sets latents to their values, in a copy."""

    def __init__(self, held: Sequence[Held], first: int):
        self.held, self.first = held, first

    def __call__(self, f: Float[Tensor, "batch seq d_sae"]) -> Float[Tensor, "batch seq d_sae"]:
        f = f.clone()
        rows = torch.arange(len(f), device=f.device)
        for _, position, latent, value in self.held:
            value = torch.as_tensor(value).to(f)
            if position is None:
                f[:, self.first :, latent] = value[:, None] if value.ndim else value
            elif isinstance(position, Tensor):
                f[rows, position.to(f.device), latent] = value
            elif position < f.shape[1]:
                f[:, position, latent] = value
            else:
                raise ValueError(f"position {position}: the prompts have {f.shape[1]} tokens.")
        return f


def _check(spliced: SplicedModel, held: Held) -> None:
    if held.hook_point not in spliced.saes:
        raise ValueError(
            f"nothing is spliced at {held.hook_point}; there is {', '.join(spliced.hook_points)}."
        )
    d_sae = spliced.saes[held.hook_point].cfg.d_sae
    if not 0 <= held.latent < d_sae:
        raise ValueError(f"{held.hook_point} has latents 0 to {d_sae - 1}, and no {held.latent}.")
    if held.position is not None and (torch.as_tensor(held.position) < spliced.first).any():
        raise ValueError(
            f"position {held.position}: positions count from {spliced.first} here"
            + (", since column 0 is BOS, which is never spliced." if spliced.first else ".")
        )


@torch.no_grad()
def intervene(
    spliced: SplicedModel,
    prompts: Int[Tensor, "batch seq"] | Prefix,
    values: Mapping[Node, float | Float[Tensor, " batch"]],
) -> Run:
    """A forward pass with some nodes held at given values; what comes after them follows.

    Args:
        prompts: tokens, or a prefix of them.
        values: what each node is to be, for all prompts or one by one.

    Raises:
        ValueError: see `holding`.
    """
    held = (Held(*node, value) for node, value in values.items())
    return spliced.run(prompts, latents=holding(spliced, held))


@torch.no_grad()
def resampled_logit_diff(
    spliced: SplicedModel,
    task: Task,
    masks: SAEMasks,
    donors: Int[Tensor, "n seq"],
    *,
    means: PatchMeans | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, " n"]:
    """Logit differences where a prompt's ablated latents have the values of another prompt.

    *Resampled ablation*: what the masks leave out has, at each position, what it has there in one
    prompt of the ``donors``, in the spliced model with nothing masked. A mean over prompts is a set
    of values that no prompt has; these are values of a prompt. They may say something, such as the
    other number.

    Args:
        spliced: the model with its SAEs.
        task: the prompts; their clean prompts are run.
        masks: the circuit.
        donors: tokens of one prompt for each prompt of the task, such as random patch prompts. Draw
            them once, and give all circuits the same.
        means: only for the error policy ``"mean"``, which needs their errors.
        batch_size: prompts at once; None for as many as fit.

    Raises:
        ValueError: padded prompts; donors of another number or length.

    Source: Chan et al. 2022, "Causal scrubbing". Miller et al. 2024 compare it with zero and mean.
    """
    if task.lengths is not None:
        raise ValueError("resampled ablation needs prompts of one length, and these are padded.")
    if donors.shape != task.clean.shape:
        raise ValueError(
            f"one donor for each prompt is wanted, {list(task.clean.shape)} tokens in all; got "
            f"{list(donors.shape)}."
        )
    size = batch_size or spliced.batch_size(task.seq_len)
    values = []
    for batch, given in zip(batches(task, size), donors.split(size), strict=True):
        others = spliced.run(given, means=means).latents
        mixed = {name: _Mixed(masks[name], other) for name, other in others.items()}
        run = spliced.run(batch.clean, means=means, latents=mixed, keep_latents=False)
        values.append(run.logit_diff(batch))
    return torch.cat(values)


@dataclass(frozen=True)
class _Mixed:
    """Keeps the latents that a mask keeps, and takes the others from another prompt."""

    mask: Tensor
    others: Float[Tensor, "batch seq d_sae"]

    def __call__(self, f: Float[Tensor, "batch seq d_sae"]) -> Float[Tensor, "batch seq d_sae"]:
        return ablate(f, self.mask, self.others)


@torch.no_grad()
def edge_effects(
    spliced: SplicedModel,
    clean: Int[Tensor, "batch seq"],
    patch: Int[Tensor, "batch seq"],
    nodes: Sequence[tuple[str, int, int]],
) -> Float[Tensor, "nodes nodes"]:
    """Total effects between nodes: how much of its change each passes on to each other.

    Entry (v, w): give node v alone its patch value, let what comes after it follow, and see how far
    w moves towards its own patch value: Σ Δw·δw / Σ δw² over prompts, where δw is w's whole change
    from clean to patch prompt and Δw what it moves. 0 = not at all, 1 = all the way. The diagonal
    is 0, and so is every w that is the same in both prompts. Effects are total: they include what
    goes by way of other nodes.
    """
    clean_run, patch_run = spliced.run(clean), spliced.run(patch)
    clean_values = _values_at(nodes, clean_run.latents)
    patch_values = _values_at(nodes, patch_run.latents)
    whole_change = patch_values - clean_values
    effects = torch.zeros(len(nodes), len(nodes), dtype=torch.double)
    for i, node in enumerate(nodes):
        prefix = clean_run.prefixes[node[0]]  # nothing moves before the node's own SAE
        run = intervene(spliced, prefix, {node: patch_values[:, i]})
        change = _values_at(nodes, {**clean_run.latents, **run.latents}) - clean_values
        along = (change * whole_change).sum(0)
        effects[i] = along / whole_change.pow(2).sum(0).clamp(min=1e-12)
    return effects.fill_diagonal_(0).float()


def _values_at(
    nodes: Sequence[tuple[str, int, int]], latents: Mapping[str, Float[Tensor, "batch seq d_sae"]]
) -> Float[Tensor, "batch nodes"]:
    columns = [latents[name][:, position, latent] for name, position, latent in nodes]
    return torch.stack(columns, dim=1).cpu().double()
