"""The exercises of notebook 04, masks versus integrated gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.teaching.workbook import Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 4.1 attribution patching
# ---------------------------------------------------------------------------------------------


@book.solution
def attribution_scores(
    gradient: Float[Tensor, "batch seq d_sae"],
    clean: Float[Tensor, "batch seq d_sae"],
    patch: Float[Tensor, "batch seq d_sae"],
) -> Float[Tensor, "seq d_sae"]:
    """AtP: how far the logit difference falls, by a straight line, when a node takes its patch
    value. The mean over prompts.

    gradient: ∂(logit difference)/∂(latent) at the clean latents. clean, patch: the latents on both
        prompts of each pair.
    A positive score means that the node's clean value raises the logit difference.
    """
    return (gradient * (clean - patch)).mean(0)


@book.checker(attribution_scores)
def _(attempt: Callable) -> None:
    torch.manual_seed(0)
    gradient, clean, patch = torch.randn(3, 5, 4, 6)
    right = (gradient * (clean - patch)).mean(0)
    compare(
        attempt(gradient, clean, patch),
        right,
        {
            "the sign is turned round: a node whose clean value helps should score above 0. Which of the two values is taken away?": -right,
            "you averaged over positions too. A node is a (position, latent) pair, so [seq, d_sae] is wanted.": right.mean(
                0
            ),
            "you summed over prompts. Then the scores grow with the number of prompts: average.": right
            * 5,
            "you took the size of each prompt's score before averaging. That is another method (mean |score|): signs are to cancel here.": (
                gradient * (clean - patch)
            )
            .abs()
            .mean(0),
            "that is the gradient alone. It says how steep, not how far: what does the node change by?": gradient.mean(
                0
            ),
            "you multiplied by the clean value. What is taken away is the change from clean to patch.": (
                gradient * clean
            ).mean(0),
            "you averaged gradient and change over the prompts before you multiplied them; each prompt's own product is wanted.": gradient.mean(
                0
            )
            * (clean - patch).mean(0),
        },
        what="the score",
    )


# ---------------------------------------------------------------------------------------------
# 4.2 integrated gradients
# ---------------------------------------------------------------------------------------------


@book.solution
def integrated_gradient(
    gradient_at: Callable[[Float[Tensor, "batch seq d_sae"]], Float[Tensor, "batch seq d_sae"]],
    clean: Float[Tensor, "batch seq d_sae"],
    patch: Float[Tensor, "batch seq d_sae"],
    steps: int,
) -> Float[Tensor, "batch seq d_sae"]:
    """IG: the mean gradient at ``steps`` points on the way from clean to patch, times (clean −
    patch). One score a prompt and node.

    gradient_at: the gradient of the logit difference at given latents. Point j is a share j/steps
        of the way, for j = 0 … steps − 1:
    the first is the clean point itself, so that one step is AtP.
    """
    total = torch.zeros_like(clean)
    for j in range(steps):
        point = clean + j / steps * (patch - clean)
        total = total + gradient_at(point)
    return total / steps * (clean - patch)


@book.checker(integrated_gradient)
def _(attempt: Callable) -> None:
    torch.manual_seed(0)
    clean, patch, weight = torch.randn(3, 2, 3, 4)
    steps = 5

    def gradient_at(f: Tensor) -> Tensor:
        return weight * f**2  # of a curve, so that every point counts

    def walk(shares: list[float]) -> Tensor:
        return sum(gradient_at(clean + share * (patch - clean)) for share in shares) * (
            clean - patch
        )

    ours = [j / steps for j in range(steps)]
    right = walk(ours) / steps
    compare(
        attempt(gradient_at, clean, patch, steps),
        right,
        {
            "you added up the gradients and did not divide by the number of points.": right * steps,
            "the sign is turned round: multiply by what the node loses on the way from clean to patch.": -right,
            "you took the gradient at the clean point every time. That is AtP: move the point.": walk(
                [0.0] * steps
            )
            / steps,
            "your points take in the patch itself and leave out the clean point; it is to be the other way round.": walk(
                [(j + 1) / steps for j in range(steps)]
            )
            / steps,
            "your walk ends on the patch itself (a share of j/(steps − 1)); a share of j/steps is wanted.": walk(
                [j / (steps - 1) for j in range(steps)]
            )
            / steps,
            "that is the mean gradient alone. It is still to be multiplied by the change.": right
            / (clean - patch),
        },
        what="the score",
    )
    compare(
        attempt(gradient_at, clean, patch, 1),
        gradient_at(clean) * (clean - patch),
        what="with one step (which is AtP), the score",
    )


# ---------------------------------------------------------------------------------------------
# 4.3 the loss
# ---------------------------------------------------------------------------------------------


@book.solution
def sparsification_loss(
    ld_spliced: Float[Tensor, " batch"],
    ld_masked: Float[Tensor, " batch"],
    masks: dict[str, Float[Tensor, "seq d_sae"]],
    price: float,
) -> Float[Tensor, ""]:
    """How far the masked model's answers are from the spliced model's, and what the nodes cost:

    the mean over prompts of |LD_spliced − LD_masked|  +  price · Σm / (number of SAEs), where Σm
    runs over all nodes of all SAEs.
    """
    faithfulness = (ld_spliced - ld_masked).abs().mean()
    nodes = sum(mask.sum() for mask in masks.values())
    return faithfulness + price * nodes / len(masks)


@book.checker(sparsification_loss)
def _(attempt: Callable) -> None:
    torch.manual_seed(0)
    spliced, masked = torch.randn(2, 6)
    masks = {f"hook {i}": torch.rand(4, 5 + i) for i in range(3)}
    price, n, count = (
        0.1,
        sum(m.sum() for m in masks.values()),
        sum(m.numel() for m in masks.values()),
    )
    off = (spliced - masked).abs().mean()
    compare(
        attempt(spliced, masked, masks, price),
        off + price * n / 3,
        {
            "differences of opposite sign cancel in your first term: take the size prompt by prompt, and average then.": (
                spliced - masked
            )
            .mean()
            .abs()
            + price * n / 3,
            "your first term can be below 0: the size of the difference is wanted, not the difference.": (
                spliced - masked
            ).mean()
            + price * n / 3,
            "you squared the difference. A few prompts that are far off would then rule; its size is wanted.": (
                (spliced - masked) ** 2
            ).mean()
            + price * n / 3,
            "you summed over prompts: λ would mean something else for every batch size.": (
                spliced - masked
            )
            .abs()
            .sum()
            + price * n / 3,
            "you did not divide by the number of SAEs.": off + price * n,
            "you took the mean of the masks. With a hundred thousand nodes that makes a node all but free: the sum is wanted.": off
            + price * n / count,
            "you took the mean of each mask. A node is to cost the same in every SAE: the sum is wanted.": off
            + price * sum(m.mean() for m in masks.values()) / 3,
            "the price of the nodes is missing.": off,
            "λ is missing: the price times the number of nodes is wanted.": off + n / 3,
        },
        what="the loss",
    )


# ---------------------------------------------------------------------------------------------
# 4.4 the schedule
# ---------------------------------------------------------------------------------------------


@book.solution
def temperature(step: int, steps: int, tau_max: float) -> float:
    """τ at a step: 1 at step 0, ``tau_max`` at the last step (steps − 1) and no further, and the
    same *factor* from each step to the next.
    """
    return tau_max ** (step / (steps - 1))


@book.checker(temperature)
def _(attempt: Callable) -> None:
    steps, top = 11, 200.0

    def row(at: Callable[[int], float]) -> Tensor:
        return torch.tensor([float(at(step)) for step in range(steps)])

    compare(
        row(lambda step: attempt(step, steps, top)),
        row(lambda step: top ** (step / (steps - 1))),
        {
            "it grows by the same amount each step. Then nearly all steps are spent at high temperatures: the same factor is wanted.": row(
                lambda step: 1 + (top - 1) * step / (steps - 1)
            ),
            "it does not reach tau_max at the last step: steps are counted from 0, so the last is steps − 1.": row(
                lambda step: top ** (step / steps)
            ),
            "it starts above 1: step 0 is to be at 1, where every node has a gradient.": row(
                lambda step: top ** ((step + 1) / steps)
            ),
            "it overshoots: at the last step τ is to be tau_max, not tau_max times tau_max.": row(
                lambda step: top ** (2 * step / (steps - 1))
            ),
            "it falls. Start soft (1) and end hard (tau_max).": row(
                lambda step: top ** (1 - step / (steps - 1))
            ),
            "that is tau_max at every step: nearly every node would be stuck from the start.": row(
                lambda step: top
            ),
        },
        what="the row of temperatures",
    )


# ---------------------------------------------------------------------------------------------
# 4.5 the loop
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
    Returns masks of 0 and 1: θ > 0.

    loss_of: the loss of given soft masks at a step. theta: where to start, by hook point; leaf
        tensors that take gradients.
    Use your `temperature`.
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
    need = torch.tensor([[0.0, 3.0, 0.2, 1.0]])
    steps, top = 8, 5.0

    def seen_by(learn: Callable) -> tuple[Tensor, Tensor | None]:
        """The masks that a loop shows to the loss, step by step, and what it returns."""
        theta, seen = {"hook": torch.ones(1, 4, requires_grad=True)}, []

        def loss_of(masks: dict[str, Tensor], step: int) -> Tensor:
            seen.append(masks["hook"].detach().clone())
            return ((1 - masks["hook"]) * need).sum() + 0.5 * masks["hook"].sum()

        found = learn(loss_of, theta, steps=steps, tau_max=top, lr=0.3)
        return torch.stack(seen) if seen else torch.zeros(0), found["hook"] if isinstance(
            found, dict
        ) and "hook" in found else None

    def bad(*, clear: bool = True, harden: bool = True, times_tau: bool = True) -> Callable:
        def learn(loss_of, theta, *, steps, tau_max, lr):
            optimizer = torch.optim.Adam(theta.values(), lr=lr)
            for step in range(steps):
                tau = temperature(step, steps, tau_max) if harden else 1.0
                masks = {
                    name: torch.sigmoid(tau * value) if times_tau else torch.sigmoid(value / tau)
                    for name, value in theta.items()
                }
                if clear:
                    optimizer.zero_grad()
                loss_of(masks, step).backward()
                optimizer.step()
            return {name: (value > 0).float() for name, value in theta.items()}

        return learn

    seen, returned = seen_by(attempt)
    right, binary = seen_by(learn_by_hand)
    if len(seen) != steps:
        raise Wrong(
            f"the loss was asked for {len(seen)} times in {steps} steps: once a step is wanted."
        )
    compare(
        seen,
        right,
        {
            "θ never moves. Is there an optimizer.step() after the backward pass?": _still(
                steps, top
            ),
            "gradients of earlier steps pile up: set them to zero before each backward pass.": seen_by(
                bad(clear=False)
            )[0],
            "the temperature stays 1: the mask never hardens, and what you learn is not what you keep.": seen_by(
                bad(harden=False)
            )[0],
            "you divided by τ. It is to multiply θ: the higher τ, the nearer to 0 and 1.": seen_by(
                bad(times_tau=False)
            )[0],
        },
        what="the row of masks that the loss saw",
    )
    if returned is None:
        raise Wrong("a mask for each hook point is to be returned, as a dictionary like theta.")
    compare(
        returned,
        binary,
        {
            "you returned the soft masks of the last step. What is kept is θ > 0, as 0 and 1.": right[
                -1
            ],
            "you turned it round: nodes with θ above 0 stay.": 1 - binary,
        },
        what="the mask",
    )


def _still(steps: int, tau_max: float) -> Tensor:
    """The masks of a θ that stays at 1."""
    return torch.stack(
        [
            torch.full(
                (1, 4), torch.sigmoid(torch.tensor(temperature(step, steps, tau_max))).item()
            )
            for step in range(steps)
        ]
    )


# ---------------------------------------------------------------------------------------------
# 4.6 attribution, again and again
# ---------------------------------------------------------------------------------------------


@book.solution
def prune(
    scores: dict[str, Float[Tensor, "seq d_sae"]],
    masks: dict[str, Float[Tensor, "seq d_sae"]],
    n: int,
) -> dict[str, Float[Tensor, "seq d_sae"]]:
    """Keep the ``n`` nodes with the largest |score|, over all hook points together, among those
    that ``masks`` still has. Returns 0 and 1.
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

    def flat(kept: object) -> Tensor:
        if not isinstance(kept, dict) or set(kept) != set(scores):
            raise Wrong("a mask for each hook point is to be returned, as a dictionary like masks.")
        return torch.cat([torch.as_tensor(kept[name]).float().flatten() for name in scores])

    def of(*indices: int) -> Tensor:
        kept = torch.zeros(9)
        kept[list(indices)] = 1
        return kept

    compare(
        flat(attempt(scores, masks, 3)),
        of(1, 4, 6),
        {
            "a node came back that the masks no longer had: only what is still there can stay.": of(
                0, 1, 6
            ),
            "you ranked by the signed score. A node that lowers the logit difference is part of the story too: rank by |score|.": of(
                4, 8, 7
            ),
            "you kept n nodes of each SAE; n over all of them together is wanted.": of(
                1, 4, 2, 6, 7, 8
            ),
            "you kept the worst nodes.": of(5, 3, 2),
        },
        what="the mask",
    )
