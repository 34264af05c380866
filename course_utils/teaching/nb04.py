"""The exercises of notebook 04, masks versus integrated gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.teaching.fixtures import normal, uniform
from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 4.1 Attribution patching
# ---------------------------------------------------------------------------------------------


@book.solution
def attribution_scores(
    gradient: Float[Tensor, "batch seq d_sae"],
    clean: Float[Tensor, "batch seq d_sae"],
    patch: Float[Tensor, "batch seq d_sae"],
) -> Float[Tensor, "seq d_sae"]:
    """AtP: how far the logit difference falls, by a straight line, if a node takes its patch value.

    The mean over prompts. A positive score means that the node's clean value raises the logit
    difference.

    Args:
        gradient: ∂(logit difference)/∂(latent) at the clean latents.
        clean, patch: the latents on both prompts of each pair.
    """
    return (gradient * (clean - patch)).mean(0)


@book.checker(attribution_scores)
def _(attempt: Callable) -> None:
    gradient, clean, patch = normal(3, 5, 4, 6, seed=0)
    change = clean - patch
    each = gradient * change
    right = each.mean(0)
    wrong = {
        "the sign is turned round: a node whose clean value helps should score above 0. Which of "
        "the two values is taken away?": -right,
        "you averaged over positions too. A node is a (position, latent) pair, so [seq, d_sae] is "
        "wanted.": right.mean(0),
        "you summed over prompts. Then the scores grow with the number of "
        "prompts: average.": each.sum(0),
        "you took the size of each prompt's score before averaging. That is another method (mean "
        "|score|): signs are to cancel here.": each.abs().mean(0),
        "that is the gradient alone. It says how steep, not how far: what does "
        "the node change by?": gradient.mean(0),
        "you multiplied by the clean value. What is taken away is the change "
        "from clean to patch.": (gradient * clean).mean(0),
        "you averaged gradient and change over the prompts before you multiplied them; each "
        "prompt's own product is wanted.": gradient.mean(0) * change.mean(0),
    }
    compare(attempt(gradient, clean, patch), right, wrong, what="the score")


# ---------------------------------------------------------------------------------------------
# 4.2 Integrated gradients
# ---------------------------------------------------------------------------------------------


@book.solution
def integrated_gradient(
    gradient_at: Callable[[Float[Tensor, "batch seq d_sae"]], Float[Tensor, "batch seq d_sae"]],
    clean: Float[Tensor, "batch seq d_sae"],
    patch: Float[Tensor, "batch seq d_sae"],
    steps: int,
) -> Float[Tensor, "batch seq d_sae"]:
    """IG: the mean gradient on the way from clean to patch, times (clean − patch).

    One score for each prompt and node. The gradient is taken at ``steps`` points. Point j is a
    share j/steps of the way, for j = 0 … steps − 1: the first is the clean point itself, so that
    one step is AtP.

    Args:
        gradient_at: the gradient of the logit difference at given latents.
        clean, patch: the latents on both prompts of each pair.
        steps: how many points.
    """
    total = torch.zeros_like(clean)
    for j in range(steps):
        point = clean + j / steps * (patch - clean)
        total = total + gradient_at(point)
    return total / steps * (clean - patch)


@book.checker(integrated_gradient)
def _(attempt: Callable) -> None:
    clean, patch, weight = normal(3, 2, 3, 4, seed=0)
    steps, change = 5, clean - patch

    def gradient_at(f: Tensor) -> Tensor:
        return weight * f**2  # of a curve, so that every point counts

    def walk(shares: list[float]) -> Tensor:
        gradients = [gradient_at(clean - share * change) for share in shares]
        return torch.stack(gradients).mean(0) * change

    right = walk([j / steps for j in range(steps)])
    mean_gradient = right / change
    shifted = walk([(j + 1) / steps for j in range(steps)])
    to_the_patch = walk([j / (steps - 1) for j in range(steps)])
    wrong = {
        "you added up the gradients and did not divide by the number of points.": right * steps,
        "the sign is turned round: multiply by what the node loses on the way "
        "from clean to patch.": -right,
        "you took the gradient at the clean point every time. That is AtP: move the point.": walk(
            [0.0]
        ),
        "your points take in the patch itself and leave out the clean point; it is to be the other "
        "way round.": shifted,
        "your walk ends on the patch itself (a share of j/(steps − 1)); a share of j/steps is "
        "wanted.": to_the_patch,
        "that is the mean gradient alone. It is still to be "
        "multiplied by the change.": mean_gradient,
    }
    compare(attempt(gradient_at, clean, patch, steps), right, wrong, what="the score")
    compare(
        attempt(gradient_at, clean, patch, 1),
        gradient_at(clean) * change,
        what="with one step (which is AtP), the score",
    )


# ---------------------------------------------------------------------------------------------
# 4.3 The loss
# ---------------------------------------------------------------------------------------------


@book.solution
def sparsification_loss(
    ld_spliced: Float[Tensor, " batch"],
    ld_masked: Float[Tensor, " batch"],
    masks: dict[str, Float[Tensor, "seq d_sae"]],
    sparsity: float,
) -> Float[Tensor, ""]:
    """How far the masked model's answers are from the spliced model's, and what the nodes cost.

    mean over prompts of |LD_spliced − LD_masked|  +  λ · Σm / (number of SAEs)

    Args:
        ld_spliced, ld_masked: the logit difference of each prompt.
        masks: by hook point; Σm runs over all nodes of all SAEs.
        sparsity: λ, what one node in each SAE costs.
    """
    faithfulness = (ld_spliced - ld_masked).abs().mean()
    nodes = sum(mask.sum() for mask in masks.values())
    return faithfulness + sparsity * nodes / len(masks)


@book.checker(sparsification_loss)
def _(attempt: Callable) -> None:
    spliced, masked = normal(2, 6, seed=0)
    masks = {f"hook {i}": uniform(4, 5 + i, seed=i) for i in range(3)}
    sparsity, off = 0.1, spliced - masked
    n_nodes = torch.stack([mask.sum() for mask in masks.values()]).sum()
    n_numbers = sum(mask.numel() for mask in masks.values())
    mean_masks = torch.stack([mask.mean() for mask in masks.values()]).sum()
    faithfulness, cost = off.abs().mean(), sparsity * n_nodes / 3
    wrong = {
        "differences of opposite sign cancel in your first term: take the size prompt by prompt, "
        "and average then.": off.mean().abs() + cost,
        "your first term can be below 0: the size of the difference is wanted, "
        "not the difference.": off.mean() + cost,
        "you squared the difference. A few prompts that are far off would then rule; its size is "
        "wanted.": off.pow(2).mean() + cost,
        "you summed over prompts: λ would mean something else for "
        "every batch size.": off.abs().sum() + cost,
        "you did not divide by the number of SAEs.": faithfulness + sparsity * n_nodes,
        "you took the mean of the masks. With a hundred thousand nodes that makes a node all but "
        "free: the sum is wanted.": faithfulness + sparsity * n_nodes / n_numbers,
        "you took the mean of each mask. A node is to cost the same in every SAE: the sum is "
        "wanted.": faithfulness + sparsity * mean_masks / 3,
        "what the nodes cost is missing.": faithfulness,
        "λ is missing: λ times the number of nodes is wanted.": faithfulness + n_nodes / 3,
    }
    answer = attempt(spliced, masked, masks, sparsity)
    compare(answer, faithfulness + cost, wrong, what="the loss")


# ---------------------------------------------------------------------------------------------
# 4.4 The schedule
# ---------------------------------------------------------------------------------------------


@book.solution
def temperature(step: int, steps: int, tau_max: float) -> float:
    """τ at a step: the same *factor* from each step to the next.

    It is 1 at step 0, and ``tau_max`` at the last step (steps − 1) and no further.
    """
    return tau_max ** (step / (steps - 1))


@book.checker(temperature)
def _(attempt: Callable) -> None:
    steps, top = 11, 200.0
    step = torch.arange(steps)
    done = step / (steps - 1)  # 0 at the first step, 1 at the last
    falls, overshoots = top ** (1 - done), top ** (2 * done)
    early_end, late_start = top ** (step / steps), top ** ((step + 1) / steps)
    wrong = {
        "it grows by the same amount each step. Then nearly all steps are spent at high "
        "temperatures: the same factor is wanted.": 1 + (top - 1) * done,
        "it does not reach tau_max at the last step: steps are counted from 0, so the last is "
        "steps − 1.": early_end,
        "it starts above 1: step 0 is to be at 1, where every node has a gradient.": late_start,
        "it overshoots: at the last step τ is to be tau_max, not "
        "tau_max times tau_max.": overshoots,
        "it falls. Start soft (1) and end hard (tau_max).": falls,
        "that is tau_max at every step: nearly every node would be "
        "stuck from the start.": torch.full((steps,), top),
    }
    answer = torch.tensor([float(attempt(step, steps, top)) for step in range(steps)])
    compare(answer, top**done, wrong, what="the row of temperatures")


# ---------------------------------------------------------------------------------------------
# 4.5 The loop
# ---------------------------------------------------------------------------------------------


@book.solution
def learn_by_hand(
    loss_of: Callable[[dict[str, Tensor], int], Tensor],
    theta: dict[str, Float[Tensor, "seq d_sae"]],
    *,
    steps: int,
    tau_max: float = 200.0,
    lr: float = 0.3,
) -> dict[str, Float[Tensor, "seq d_sae"]]:
    """Continuous sparsification: learn θ by Adam, with masks m = σ(τ·θ) that harden as τ rises.

    Returns masks of 0 and 1: θ > 0. Use your `temperature`.

    Args:
        loss_of: the loss of given soft masks at a step.
        theta: where to start, by hook point; leaf tensors that take gradients.
        steps, tau_max: as for `temperature`.
        lr: Adam's learning rate.
    """
    optimizer = torch.optim.Adam(theta.values(), lr=lr)
    for step in range(steps):
        tau = temperature(step, steps, tau_max)
        masks = {name: torch.sigmoid(tau * value) for name, value in theta.items()}
        loss = loss_of(masks, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: (value > 0).float() for name, value in theta.items()}


@book.checker(learn_by_hand)
def _(attempt: Callable) -> None:
    steps = 8
    seen, returned = _watch(attempt, steps)
    right, binary = _watch(learn_by_hand, steps)
    if len(seen) != steps:
        raise Wrong(
            f"the loss was asked for {len(seen)} times in {steps} steps: once a step is wanted."
        )
    wrong = {
        "θ never moves. Is there an optimizer.step() after the backward pass?": _watch(
            _learn_badly(step_it=False), steps
        )[0],
        "gradients of earlier steps pile up: set them to zero before each backward pass.": _watch(
            _learn_badly(clear=False), steps
        )[0],
        "the temperature stays 1: the mask never hardens, and what you learn is "
        "not what you keep.": _watch(_learn_badly(harden=False), steps)[0],
        "you divided by τ. It is to multiply θ: the higher τ, the nearer to 0 and 1.": _watch(
            _learn_badly(times_tau=False), steps
        )[0],
    }
    compare(seen, right, wrong, what="the row of masks that the loss saw")
    if not (isinstance(returned, dict) and "hook" in returned):
        raise Wrong("a mask for each hook point is to be returned, as a dictionary like theta.")
    last = right[-1]
    wrong = {
        "you returned the soft masks of the last step. What is kept is θ > 0, as 0 and 1.": last,
        "you turned it round: nodes with θ above 0 stay.": 1 - binary["hook"],
    }
    compare(returned["hook"], binary["hook"], wrong, what="the mask")


def _watch(learn: Callable, steps: int) -> tuple[Tensor, Any]:
    """The masks that a loop shows to the loss, step by step, and what the loop returns."""
    need = torch.tensor([[0.0, 3.0, 0.2, 1.0]])
    theta, seen = {"hook": torch.ones(1, 4, requires_grad=True)}, []

    def loss_of(masks: dict[str, Tensor], step: int) -> Tensor:
        mask = masks["hook"]
        seen.append(mask.detach().clone())
        return ((1 - mask) * need).sum() + 0.5 * mask.sum()

    returned = learn(loss_of, theta, steps=steps, tau_max=5.0, lr=0.3)
    return torch.stack(seen) if seen else torch.zeros(0), returned


def _learn_badly(
    *, clear: bool = True, step_it: bool = True, harden: bool = True, times_tau: bool = True
) -> Callable:
    """`learn_by_hand` with a bug."""

    def learn(
        loss_of: Callable, theta: dict[str, Tensor], *, steps: int, tau_max: float, lr: float
    ) -> dict[str, Tensor]:
        optimizer = torch.optim.Adam(theta.values(), lr=lr)
        for step in range(steps):
            tau = temperature(step, steps, tau_max) if harden else 1.0
            factor = tau if times_tau else 1 / tau
            masks = {name: torch.sigmoid(factor * value) for name, value in theta.items()}
            if clear:
                optimizer.zero_grad()
            loss_of(masks, step).backward()
            if step_it:
                optimizer.step()
        return {name: (value > 0).float() for name, value in theta.items()}

    return learn


# ---------------------------------------------------------------------------------------------
# 4.6 Attribution, again and again
# ---------------------------------------------------------------------------------------------


@book.solution
def prune(
    scores: dict[str, Float[Tensor, "seq d_sae"]],
    masks: dict[str, Float[Tensor, "seq d_sae"]],
    n: int,
) -> dict[str, Float[Tensor, "seq d_sae"]]:
    """Keep the ``n`` nodes with the largest |score| among those that ``masks`` still has.

    All hook points compete together. Returns masks of 0 and 1.
    """
    size = torch.cat([(score.abs() * masks[name]).flatten() for name, score in scores.items()])
    keep = torch.zeros_like(size)
    keep[size.topk(n).indices] = 1
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for part, (name, score) in zip(parts, scores.items())}


@book.checker(prune)
def _(attempt: Callable) -> None:
    scores = {
        "a": torch.tensor([[9.0, -8.0, 1.0], [0.5, 6.0, 0.1]]),
        "b": torch.tensor([[-7.0, 2.0, 3.0]]),
    }
    masks = {"a": torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), "b": torch.ones(1, 3)}
    answer = attempt(scores, masks, 3)
    if not isinstance(answer, dict) or set(answer) != set(scores):
        raise Wrong("a mask for each hook point is to be returned, as a dictionary like masks.")

    def nodes(*indices: int) -> Tensor:
        kept = torch.zeros(9)  # six of "a", three of "b"
        kept[list(indices)] = 1
        return kept

    wrong = {
        "a node came back that the masks no longer had: only what is still there can stay.": nodes(
            0, 1, 6
        ),
        "you ranked by the signed score. A node that lowers the logit difference is part of the "
        "story too: rank by |score|.": nodes(4, 8, 7),
        "you kept n nodes of each SAE; n over all of them together is wanted.": nodes(
            1, 4, 2, 6, 7, 8
        ),
        "you kept the worst nodes.": nodes(5, 3, 2),
    }
    kept = torch.cat([torch.as_tensor(answer[name]).float().flatten() for name in scores])
    compare(kept, nodes(1, 4, 6), wrong, what="the mask")
