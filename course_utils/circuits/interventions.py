"""Interventions: latents held at given values, and how much of a change one node passes on to
another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.circuits.masks import Node
from course_utils.circuits.splice import Run, SplicedModel, Prefix
from course_utils.prompts.tasks import Task


@torch.no_grad()
def intervene(
    spliced: SplicedModel,
    tokens: Int[Tensor, "batch seq"] | Prefix,
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
        raise ValueError(
            f"nothing is spliced at {', '.join(sorted(unknown))}; there is {', '.join(spliced.hook_points)}."
        )

    def at(name: str) -> Callable[[Tensor], Tensor]:
        def change(f: Float[Tensor, "batch seq_without_bos d_sae"]) -> Tensor:
            f = f.clone()
            for (hook_point, position, latent), value in values.items():
                if hook_point == name:
                    f[:, position - spliced.first, latent] = torch.as_tensor(value).to(f)
            return f

        return change

    return spliced.run(tokens, latents={name: at(name) for name in {name for name, *_ in values}})


def forced_logit_diff(
    spliced: SplicedModel, task: Task, values: Mapping[Node, float | Tensor]
) -> Float[Tensor, " n"]:
    """The logit difference of each prompt pair's clean prompt with some latents forced."""
    return intervene(spliced, task.clean, values).logit_diff(task)


@torch.no_grad()
def edge_effects(
    spliced: SplicedModel,
    clean: Int[Tensor, "batch seq"],
    patch: Int[Tensor, "batch seq"],
    nodes: Sequence[Node],
) -> Float[Tensor, "nodes nodes"]:
    """How much of a node's change from clean to patch prompt another node passes on to it: the
    edges of a circuit.

    Entry (v, w): give node v alone its patch value, let what comes after it follow, and see how far
        w moves towards its own
    patch value: Σ Δw·δw / Σ δw² over prompts, where δw is w's whole change and Δw what it moves (0
    = not at all, 1 = all the way). The diagonal is left 0, and so is every w that is the same in
    both prompts. Effects are total: by way of other nodes, too.
    """
    before, after = (spliced.run(tokens) for tokens in (clean, patch))

    def at(latents: Mapping[str, Tensor]) -> Float[Tensor, "batch nodes"]:
        return torch.stack(
            [latents[name][:, position, latent] for name, position, latent in nodes], dim=1
        ).double()

    whole = at(after.latents) - at(before.latents)
    found = torch.zeros(len(nodes), len(nodes), dtype=torch.double)
    for i, (name, position, latent) in enumerate(
        nodes
    ):  # nothing moves before the node's own SAE: go on from there
        run = intervene(
            spliced,
            before.prefixes[name],
            {(name, position, latent): after.latents[name][:, position, latent]},
        )
        moved = at({**before.latents, **run.latents}) - at(before.latents)
        found[i] = ((moved * whole).sum(0) / whole.pow(2).sum(0).clamp(min=1e-12)).cpu()
    return found.fill_diagonal_(0).float()
