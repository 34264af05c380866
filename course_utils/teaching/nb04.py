"""The exercises of notebook 04, masks versus integrated gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from course_utils.teaching.fixtures import normal, uniform
from course_utils.teaching.workbook import Unnamed, Workbook, Wrong, compare

book = Workbook()
exercise, check = book.exercise, book.check


# ---------------------------------------------------------------------------------------------
# 4.1 Attribution patching
# ---------------------------------------------------------------------------------------------


@book.solution
def attribution_scores(
    logit_diff_of: Callable[[Float[Tensor, "batch seq d_sae"]], Float[Tensor, " batch"]],
    clean: Float[Tensor, "batch seq d_sae"],
    patch: Float[Tensor, "batch seq d_sae"],
) -> Float[Tensor, "seq d_sae"]:
    """AtP: how far the logit difference would fall if a node took its patch value.

    An estimate for every (position, latent) from one backward pass, as if the logit difference were
    linear in the latents around the clean run. The mean over prompts; above 0 where the node's
    clean value raises the logit difference.

    Args:
        logit_diff_of: the logit difference of each prompt, with given latents put into the clean
            run. No prompt sees another.
        clean, patch: the latents on both prompts of each pair.
    """
    f = clean.detach().requires_grad_()
    gradient = torch.autograd.grad(logit_diff_of(f).sum(), f)[0]
    return (gradient * (clean - patch)).mean(0)


@book.checker(attribution_scores)
def _(attempt: Callable) -> None:
    clean, patch, slope, curve = normal(4, 5, 4, 6, seed=0) + torch.tensor(
        [1.0, 0.3, 0.4, -0.7]
    ).view(4, 1, 1, 1)

    def logit_diff_of(f: Tensor) -> Tensor:
        _require_latents(f, clean, "logit_diff_of")
        return (slope * f + curve * f**2 / 2).sum((1, 2))

    change = clean - patch
    gradient, at_patch = slope + curve * clean, slope + curve * patch
    each = gradient * change
    right = each.mean(0)
    positions = (
        "you averaged over positions too. A node is a (position, latent) pair, so [seq, d_sae] is "
        "wanted."
    )
    prompts = "you averaged over {}, and not over prompts: dimension 0 is the prompts'."
    wrong = {
        "the sign is turned round: a node whose clean value helps should score above 0. Which of "
        "the two values is taken away?": -right,
        "you took the gradient of the mean logit difference. In it each prompt's gradient is "
        "divided by the number of prompts: start from the sum.": right / 5,
        "you took the gradient at the patch latents: it is the clean run that is changed.": (
            at_patch * change
        ).mean(0),
        "clean and patch are swapped: the gradient is taken at the clean latents, and the clean "
        "value is what is taken away.": -(at_patch * change).mean(0),
        "you took the gradient at latents of 0: it is the clean run that is changed.": (
            slope * change
        ).mean(0),
        "that is what each node does, exactly: activation patching, with one run for each. AtP "
        "takes one gradient for all of them.": (each - curve * change**2 / 2).mean(0),
        positions: right.mean(0),
        f"{positions} (Latents are averaged, too.)": right.mean(),
        prompts.format("positions"): each.mean(1),
        prompts.format("latents"): each.mean(2),
        "every prompt has its score still: average over prompts.": each,
        "this is the first prompt's score alone: average over prompts.": each[0],
        "you summed over prompts. Then the scores grow with the number of "
        "prompts: average.": each.sum(0),
        "you divided by one less than the number of prompts.": each.sum(0) / 4,
        "this is the median over prompts: their mean is wanted.": each.median(0).values,
        "you took the size of each prompt's score before averaging. That is another method (mean "
        "|score|): signs are to cancel here.": each.abs().mean(0),
        "that is the gradient alone. It says how steep, not how far: what does "
        "the node change by?": gradient.mean(0),
        "that is the change alone. It says how far, not how steep: where is the "
        "gradient?": change.mean(0),
        "you multiplied by the clean value. What is taken away is the change "
        "from clean to patch.": (gradient * clean).mean(0),
        "you multiplied by the patch value. What is taken away is the change "
        "from clean to patch.": (gradient * patch).mean(0),
        "a bracket is missing: the gradient multiplies clean − patch, and not clean alone.": (
            gradient * clean - patch
        ).mean(0),
        "clean and patch are added: what a node changes by is their difference.": (
            gradient * (clean + patch)
        ).mean(0),
        "you took the size of the change: its sign counts.": (gradient * change.abs()).mean(0),
        "you took the size of the gradient: its sign counts.": (gradient.abs() * change).mean(0),
        "you divided by the change. How far the output moves is slope × how far the input moves: "
        "multiply.": (gradient / change).mean(0),
        "gradient and change are added: multiply them.": (gradient + change).mean(0),
        "you averaged gradient and change over the prompts before you multiplied them; each "
        "prompt's own product is wanted.": gradient.mean(0) * change.mean(0),
    }
    answer = attempt(logit_diff_of, clean, patch)
    compare(answer, right, wrong, what="the score")


def _require_latents(f: Any, clean: Tensor, what: str) -> None:
    """Raise `Wrong` unless a function of latents is given latents like the clean ones."""
    if not isinstance(f, Tensor) or f.shape != clean.shape:
        found = list(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise Wrong(
            f"{what} takes latents like clean, {list(clean.shape)}: all prompts at once, and not "
            f"{found}."
        )


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
    clean, patch, weight = normal(3, 2, 3, 4, seed=0) + torch.tensor([1, -0.5, 2]).view(3, 1, 1, 1)
    steps, change = 5, clean - patch

    def slope(f: Tensor) -> Tensor:
        return weight * f**2  # of a curve, so that every point counts

    def walk(steps: int) -> Tensor:
        gradients = [slope(clean - j / steps * change) for j in range(steps)]
        return torch.stack(gradients).mean(0)

    answer, points = _walked(attempt, slope, clean, patch, steps)
    _require_points(points, clean, patch, steps)
    mean_gradient = walk(steps)
    right, last = mean_gradient * change, slope(clean - (steps - 1) / steps * change)
    wrong = {
        "you added up the gradients and did not divide by the number of points.": right * steps,
        "you divided by the number of points twice.": right / steps,
        "you divided by one point too few: there are as many points as steps.": right
        * steps
        / (steps - 1),
        "you divided by one point too many: there are as many points as steps.": right
        * steps
        / (steps + 1),
        "you multiplied by the number of points: divide by it.": right * steps**2,
        "the sign is turned round: multiply by what the node loses on the way "
        "from clean to patch.": -right,
        "that is the mean gradient alone. It is still to be "
        "multiplied by the change.": mean_gradient,
        "that is the sum of the gradients alone. It is still to be divided, and multiplied by the "
        "change.": mean_gradient * steps,
        "you multiplied by the clean value: the change, clean − patch, is wanted.": mean_gradient
        * clean,
        "you multiplied by the patch value: the change, clean − patch, is wanted.": mean_gradient
        * patch,
        "a bracket is missing: the mean gradient multiplies clean − patch, and not clean "
        "alone.": mean_gradient * clean - patch,
        "clean and patch are added: what a node changes by is their difference.": mean_gradient
        * (clean + patch),
        "you divided by the change: multiply by it.": mean_gradient / change,
        "only the last point's gradient is left: add them up.": last * change,
        "only the last point's gradient is left, and it is divided by the number of points.": last
        * change
        / steps,
        "nothing but the change is there: where are the gradients?": change,
        "nothing but the change is there, divided by the number of points: where are the "
        "gradients?": change / steps,
        "the sum begins at 1: begin at 0.": right + change / steps,
        "the sum begins at the clean latents: begin at 0.": right + clean / steps * change,
        "you averaged over prompts: one score for each prompt and node is wanted.": right.mean(0),
        "you added up over prompts: one score for each prompt and node is wanted.": right.sum(0),
    }
    compare(answer, right, wrong, what="the score")
    for steps, what in ((1, "with one step (which is AtP), the score"), (3, "with 3 steps, it")):
        answer, points = _walked(attempt, slope, clean, patch, steps)
        _require_points(points, clean, patch, steps)
        compare(answer, walk(steps) * change, what=what)


def _walked(
    attempt: Callable, slope: Callable, clean: Tensor, patch: Tensor, steps: int
) -> tuple[Any, list[Tensor]]:
    """What an attempt returns, and the points whose gradients it asked for."""
    points = []

    def gradient_at(f: Tensor) -> Tensor:
        if not isinstance(f, Tensor) or f.shape != clean.shape:
            found = list(f.shape) if isinstance(f, Tensor) else type(f).__name__
            raise Wrong(
                f"gradient_at takes latents like clean, {list(clean.shape)}: one point at a time, "
                f"and not {found}."
            )
        points.append(f.detach().clone())
        return slope(f)

    return attempt(gradient_at, clean, patch, steps), points


def _require_points(points: list[Tensor], clean: Tensor, patch: Tensor, steps: int) -> None:
    """Raise `Wrong` unless gradients were asked for at shares of j/steps of the way."""
    way = patch - clean
    shares = torch.tensor([float(((p - clean) * way).sum() / (way * way).sum()) for p in points])
    off = [float((p - clean - s * way).abs().max()) for p, s in zip(points, shares)]
    right = torch.arange(steps) / steps
    if points and max(off) > 1e-3:
        if all(torch.allclose(point, points[0]) for point in points):
            raise Wrong("you took every gradient at one point, and it is not on the way: move it.")
        raise Wrong(
            "your points are not on the straight line from clean to patch: a point is clean, and a "
            "share of patch − clean in addition."
        )
    known = {
        "you took the gradient at the clean point every time. That is AtP: move the "
        "point.": torch.zeros(steps),
        "you took the gradient at the patch every time: move the point.": torch.ones(steps),
        "your points take in the patch itself and leave out the clean point; it is to be the other "
        "way round.": right + 1 / steps,
        "your walk ends on the patch itself (a share of j/(steps − 1)); a share of j/steps is "
        "wanted.": torch.linspace(0, 1, steps),
        "your points are in the middle of each step. That is a good rule, but not this one: a "
        "share of j/steps is wanted, so that one step is AtP.": right + 0.5 / steps,
        "you walk away from the patch: a point is clean, and a share of patch − clean in "
        "addition.": -right,
        "you walk from the patch beyond it: start at clean.": 1 + right,
        "the shares are not divided by the number of points: j/steps is wanted.": right * steps,
        "the shares are multiplied by the number of points: divide them.": right * steps**2,
    }
    if len(points) == steps and torch.allclose(shares.sort().values, right, atol=1e-4):
        return
    for says, wrong in known.items():
        if len(points) == steps and torch.allclose(
            shares.sort().values, wrong.sort().values, atol=1e-4
        ):
            raise Wrong(says)
    found, wanted = (", ".join(f"{s:.2g}" for s in of) or "none" for of in (shares, right))
    raise Wrong(
        f"with steps={steps}, your points are at these shares of the way: {found}. Wanted are "
        f"{wanted}."
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


@book.checker(sparsification_loss, gradient=("ld_masked", "masks"))
def _(attempt: Callable) -> None:
    spliced, masked = normal(2, 6, seed=0) + torch.tensor([[2.0], [1.2]])
    spliced[3] = -0.4  # sizes of logit differences are not the logit differences
    masks = {f"hook {i}": uniform(4, 5 + i, seed=i) for i in range(3)}
    masks["hook 1"][0] = 0
    sparsity, off = 0.1, spliced - masked
    sums = torch.stack([mask.sum() for mask in masks.values()])
    n_nodes, every = sums.sum(), torch.cat([mask.flatten() for mask in masks.values()])
    mean_masks = torch.stack([mask.mean() for mask in masks.values()]).sum()
    size, cost = off.abs().mean(), sparsity * n_nodes / 3
    wrong = {
        "this is the post's published loss: it compares the batch's means, so a prompt that is too "
        "sure and one that is too unsure cancel. Here the circuit is to give the same answer on "
        "every prompt: take the size prompt by prompt, and average then.": off.mean().abs() + cost,
        "your first term can be below 0: the size of the difference is wanted, "
        "not the difference.": off.mean() + cost,
        "you squared the difference. A few prompts that are far off would then rule; its size is "
        "wanted.": off.pow(2).mean() + cost,
        "you took the root of the mean square. A few prompts that are far off would then rule: "
        "the mean size is wanted.": off.pow(2).mean().sqrt() + cost,
        "you took the norm of the differences: it grows with the batch. The mean size is "
        "wanted.": off.norm() + cost,
        "you took the largest difference: the mean over prompts is wanted.": off.abs().max() + cost,
        "you took the median difference: the mean over prompts is wanted.": off.abs().median()
        + cost,
        "you summed over prompts: λ would mean something else for "
        "every batch size.": off.abs().sum() + cost,
        "there is a loss for each prompt still: average the first term.": off.abs() + cost,
        "the two logit differences are added: how far is one from the other?": (spliced + masked)
        .abs()
        .mean()
        + cost,
        "you compared the sizes of the logit differences: the sign counts, it says which answer "
        "wins.": (spliced.abs() - masked.abs()).abs().mean() + cost,
        "ld_masked is not in the first term.": spliced.abs().mean() + cost,
        "ld_spliced is not in the first term.": masked.abs().mean() + cost,
        "you did not divide by the number of SAEs.": size + sparsity * n_nodes,
        "you multiplied by the number of SAEs: divide by it.": size + 3 * sparsity * n_nodes,
        "λ is divided by the number of nodes: multiply them.": size + sparsity / n_nodes / 3,
        "a bracket too many: the number of SAEs divides the second term alone.": (
            size + sparsity * n_nodes
        )
        / 3,
        "a bracket too many: λ multiplies the second term alone.": sparsity * (size + n_nodes / 3),
        "you took the mean of the masks. With a hundred thousand nodes that makes a node all but "
        "free: the sum is wanted.": size + sparsity * n_nodes / len(every),
        "you took the mean of the masks, divided by the number of SAEs: the sum is wanted.": size
        + sparsity * n_nodes / len(every) / 3,
        "you took the mean of each mask. A node is to cost the same in every SAE: the sum is "
        "wanted.": size + sparsity * mean_masks / 3,
        "you counted what is above 0. A count has no gradient: sum the mask.": size
        + sparsity * (every > 0).sum() / 3,
        "you counted what is above 0.5. A count has no gradient: sum the mask.": size
        + sparsity * (every > 0.5).sum() / 3,
        "you squared the masks: half a node is to cost half of one.": size
        + sparsity * every.square().sum() / 3,
        "what the nodes cost is missing.": size,
        "what the nodes cost is taken off: it is to be added.": size - cost,
        "the first term is missing: how far is ld_masked from ld_spliced?": cost,
        "λ is missing: λ times the number of nodes is wanted.": size + n_nodes / 3,
        "the nodes are missing: λ times their number is wanted.": size + sparsity / 3,
        "λ is added to the number of nodes: multiply.": size + sparsity + n_nodes / 3,
        "the first SAE's nodes are free: every SAE's count.": size + sparsity * sums[1:].sum() / 3,
        "the last SAE's nodes are free: every SAE's count.": size + sparsity * sums[:-1].sum() / 3,
        "only the first SAE's nodes cost something.": size + sparsity * sums[0] / 3,
        "only the last SAE's nodes cost something.": size + sparsity * sums[-1] / 3,
    }
    _require_no_sign(attempt, spliced, masked, masks, sparsity, cost)
    answer = attempt(spliced, masked, masks, sparsity)
    compare(answer, size + cost, wrong, what="the loss")


def _require_no_sign(
    attempt: Callable,
    spliced: Tensor,
    masked: Tensor,
    masks: dict[str, Tensor],
    sparsity: float,
    cost: Tensor,
) -> None:
    """Raise `Wrong` if the first term is LD_masked − LD_spliced.

    Where that is above 0 on the average it equals the published form; the other way round, not.
    """
    off = spliced - masked
    wrong = {
        "your first term is below 0 where ld_masked is below ld_spliced: the size of the "
        "difference is wanted, not the difference.": off.mean() + cost
    }
    try:
        compare(attempt(masked, spliced, masks, sparsity), off.abs().mean() + cost, wrong)
    except Unnamed:
        pass  # the other way round, more mistakes have a name


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
    step = torch.arange(steps).double()
    done = step / (steps - 1)  # 0 at the first step, 1 at the last
    right = top**done
    wrong = {
        "it grows by the same amount each step. Then nearly all steps are spent at high "
        "temperatures: the same factor is wanted.": 1 + (top - 1) * done,
        "it grows by the same amount each step, and starts at 0: the same factor is wanted, from "
        "1 on.": top * done,
        "it does not reach tau_max at the last step: steps are counted from 0, so the last is "
        "steps − 1.": top ** (step / steps),
        "step / steps − 1 is (step / steps) − 1: put brackets around steps − 1.": top
        ** (step / steps - 1),
        "it starts above 1: step 0 is to be at 1, where every node has a gradient.": top
        ** ((step + 1) / steps),
        "it is still below tau_max at the last step: between the first and the last of `steps` "
        "there are steps − 1, not steps + 1.": top ** (step / (steps + 1)),
        "it reaches tau_max a step too early: between the first and the last of `steps` there are "
        "steps − 1.": top ** (step / (steps - 2)),
        "it overshoots: at the last step τ is to be tau_max, not tau_max times tau_max.": top
        ** (2 * done),
        "it falls. Start soft (1) and end hard (tau_max).": top ** (1 - done),
        "it falls below 1. Start soft (1) and end hard (tau_max).": top**-done,
        "the power's base and exponent are swapped.": done**top,
        "tau_max is multiplied by its exponent: it is to be raised to it.": top
        * step
        * (steps - 1),
        "that is the share of the way alone: tau_max is to be raised to it.": done,
        "that is tau_max to the power of the step: divide by steps − 1.": top**step,
        "that is tau_max at every step: nearly every node would be "
        "stuck from the start.": torch.full((steps,), top).double(),
        "that is 1 at every step: the mask never hardens.": torch.ones(steps).double(),
    }
    answer = _row(attempt, steps, top)
    if not answer.isfinite().all():
        raise Wrong("some temperatures are not finite: the exponent goes from 0 to 1.")
    ratios = {says: value / right for says, value in wrong.items()}
    if not torch.allclose(answer, right, rtol=1e-4):  # a small error counts at small τ, too
        for says, ratio in ratios.items():
            if torch.allclose(answer / right, ratio, rtol=1e-4):
                raise Wrong(says)
        _say_where(answer, steps, top)
    for steps, top in ((4, 30.0), (2, 5.0)):
        other = top ** (torch.arange(steps) / (steps - 1)).double()
        what = f"with steps={steps} and tau_max={top:g}, the row of temperatures"
        compare(_row(attempt, steps, top), other, what=what)


def _row(attempt: Callable, steps: int, top: float) -> Tensor:
    """The temperatures of all steps, in double precision."""
    row = []
    for step in range(steps):
        tau = attempt(step, steps, top)
        if tau is None:
            raise Wrong("it is None. Is the return missing?")
        one = isinstance(tau, int | float) or (isinstance(tau, Tensor) and tau.numel() == 1)
        if isinstance(tau, bool) or not one:
            raise Wrong(f"it is to return a number, not {type(tau).__name__}.")
        row.append(float(tau))
    return torch.tensor(row, dtype=torch.double)


def _say_where(answer: Tensor, steps: int, top: float) -> None:
    """Raise `Wrong` with what is not as it should be: the start, the end, or the way between."""
    start, end = answer[0].item(), answer[-1].item()
    if abs(start - 1) > 1e-4:
        raise Wrong(f"with tau_max={top:g}, it is {start:.4g} at step 0, and 1 is wanted.")
    if abs(end / top - 1) > 1e-4:
        raise Wrong(
            f"with tau_max={top:g}, it is {end:.4g} at the last of {steps} steps, and {top:g} is "
            "wanted."
        )
    factors = answer[1:] / answer[:-1]
    raise Wrong(
        f"it starts at 1 and ends at tau_max, but the factor from step to step goes from "
        f"{factors.min():.3g} to {factors.max():.3g}: the same one is wanted."
    )


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
    steps, settings = 8, {"tau_max": 5.0, "lr": 0.25}
    found, right = _watch(attempt, steps, **settings), _watch(learn_by_hand, steps, **settings)
    if found.asked != list(range(steps)):
        if len(found.asked) != steps:
            raise Wrong(
                f"the loss was asked for {len(found.asked)} times in {steps} steps: once a step is "
                "wanted."
            )
        raise Wrong(
            f"the loss is to be told the step, 0 to {steps - 1}: it was told {found.asked}."
        )
    _require_steps(found, steps, settings["lr"])
    if not torch.allclose(found.masks, right.masks, atol=1e-4):
        for says in LOOP_BUGS:
            if torch.allclose(found.masks, _masks_with_bug(says, steps, **settings), atol=1e-4):
                raise Wrong(says)
    for step, (seen, wanted) in enumerate(zip(found.masks, right.masks)):
        if not torch.allclose(seen, wanted, atol=1e-4):
            first = "at step 0 the masks are not σ(θ), with θ as it came in and τ = 1."
            later = (
                f"the masks that the loss saw are right up to step {step - 1}, and not at {step}."
            )
            raise Wrong(later if step else first)
    _compare_returned(found.returned, right)
    found, right = _watch(attempt, 3), _watch(learn_by_hand, 3)
    compare(found.masks, right.masks, what="the row of masks, by default,")


LOOP_BUGS: dict[str, dict[str, Any]] = {
    "gradients of earlier steps pile up: set them to zero before each backward pass.": {
        "clear": False
    },
    "you go up, and not down: the loss is to get smaller.": {"sign": -1.0},
    "the temperature stays 1: the mask never hardens, and what you learn is not what you keep.": {
        "tau": lambda step, steps, top: 1.0
    },
    "the temperature is tau_max from the start: nearly every node is stuck.": {
        "tau": lambda step, steps, top: top
    },
    "the temperature is one step ahead: τ of this step is wanted.": {
        "tau": lambda step, steps, top: temperature(step + 1, steps, top)
    },
    "the temperature is one step behind: τ of this step is wanted.": {
        "tau": lambda step, steps, top: temperature(step - 1, steps, top)
    },
    "the temperature grows by the same amount each step: use your `temperature`.": {
        "tau": lambda step, steps, top: 1 + (top - 1) * step / (steps - 1)
    },
    "you divided by τ. It is to multiply θ: the higher τ, the nearer to 0 and 1.": {
        "tau": lambda step, steps, top: 1 / temperature(step, steps, top)
    },
    "τ is added to θ: it is to multiply it.": {
        "soft": lambda tau, value: torch.sigmoid(tau + value)
    },
    "the sign in the sigmoid is turned round: m = σ(τ·θ).": {
        "soft": lambda tau, value: torch.sigmoid(-tau * value)
    },
    "the sigmoid is outside: m = σ(τ·θ), not τ·σ(θ).": {
        "soft": lambda tau, value: tau * torch.sigmoid(value)
    },
    "the sigmoid is missing: m = σ(τ·θ).": {"soft": lambda tau, value: tau * value},
    "the masks are tanh(τ·θ), between −1 and 1: m = σ(τ·θ).": {
        "soft": lambda tau, value: torch.tanh(tau * value)
    },
    "the masks are θ itself: m = σ(τ·θ).": {"soft": lambda tau, value: 1 * value},
    "the masks are the softmax of τ·θ, which makes nodes compete: m = σ(τ·θ).": {
        "soft": lambda tau, value: torch.softmax(tau * value, -1)
    },
}
"""What `_learn_badly` is told for each mistake."""


@dataclass
class Seen:
    """What a loop did.

    Attributes:
        asked: the steps that the loss was told.
        masks: the masks that it saw, all hook points in one row, ``[steps, nodes]``.
        backward: how often a gradient came back to the masks.
        optimizers: at each step of an optimizer, in turn: the optimizer, and whether a θ had a
            gradient.
        theta: θ after the last step, by hook point.
        returned: what the loop returned.
    """

    asked: list[Any]
    masks: Tensor
    backward: int
    optimizers: list[tuple[torch.optim.Optimizer, bool]]
    theta: dict[str, Tensor]
    returned: Any


NEED = {
    "early": torch.tensor([[0.0, 3.0, 0.2, 1.0]]),
    "late": torch.tensor([[0.6, 2.0, 0.1], [0.3, 0.9, 0.0]]),
}
"""What each node of a toy is worth."""
START = {
    "early": torch.tensor([[1.0, 1.0, 0.8, 1.0]]),
    "late": torch.tensor([[1.2, -1.1, 2.35], [1.9, 0.5, 0.0]]),
}
"""Where θ starts. In the end it is negative, between 0 and ½, between ½ and 1, or above; the node
that is worth 0.3 crosses 0 in the last step, and the last one has no gradient and stays at 0.
"""


def _watch(learn: Callable, steps: int, **settings: float) -> Seen:
    """A loop on a toy loss, and what it did."""
    theta = {name: value.clone().requires_grad_() for name, value in START.items()}
    asked, masks_seen, arrived, optimizers = [], [], [], []

    def loss_of(masks: dict[str, Tensor], step: int) -> Tensor:
        _require_soft_masks(masks, theta)
        asked.append(step)
        masks_seen.append(torch.cat([mask.detach().clone().flatten() for mask in masks.values()]))
        masks["early"].register_hook(lambda gradient: arrived.append(step))
        worth = sum(((1 - masks[name]) * NEED[name]).sum() for name in NEED)
        price = 0.5 * (sum(mask.sum() for mask in masks.values()) - masks["late"][1, 2])
        return (1 + 0.1 * (step % 3)) * (worth + price)

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moved = [value for group in optimizer.param_groups for value in group["params"]]
        has_gradient = any(value.grad is not None and value.grad.any() for value in moved)
        optimizers.append((optimizer, has_gradient))

    handle = register_optimizer_step_pre_hook(note)
    try:
        returned = learn(loss_of, theta, steps=steps, **settings)
    finally:
        handle.remove()
    masks = torch.stack(masks_seen) if masks_seen else torch.zeros(0)
    after = {name: value.detach().clone() for name, value in theta.items()}
    return Seen(asked, masks, len(arrived), optimizers, after, returned)


@functools.cache
def _masks_with_bug(says: str, steps: int, **settings: float) -> Tensor:
    """The masks that the loss sees in a loop with one of the `LOOP_BUGS`."""
    return _watch(_learn_badly(**LOOP_BUGS[says]), steps, **settings).masks


def _require_soft_masks(masks: Any, theta: dict[str, Tensor]) -> None:
    """Raise `Wrong` unless the loss is shown masks that θ can be learned through."""
    if not isinstance(masks, dict) or set(masks) != set(theta):
        raise Wrong("the loss takes a dictionary of masks, one for each hook point of theta.")
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.shape != theta[name].shape:
            raise Wrong("the loss takes masks of the shapes of theta: one number for each node.")
        if not mask.requires_grad:
            raise Wrong(
                "the masks that the loss sees have no gradient, so θ cannot be learned: do without "
                "detach, .data, no_grad and comparisons before the loss."
            )


def _require_steps(found: Seen, steps: int, wanted_lr: float) -> None:
    """Raise `Wrong` unless each step goes back through the loss, and then takes Adam's step."""
    if not found.backward:
        raise Wrong("no gradient comes back to the masks. Is there a loss.backward()?")
    if not found.optimizers:
        if (found.masks[1:] == found.masks[:-1]).all() or _theta_stays(found):
            raise Wrong("θ never moves. Is there an optimizer.step() after the backward pass?")
        raise Wrong("θ moves without an optimizer.step(): let torch.optim.Adam move it.")
    has_gradient = [one for _, one in found.optimizers]
    if not any(has_gradient):
        raise Wrong(
            "θ never moves: the optimizer finds no gradient. zero_grad between backward and step "
            "takes it away: clear before you go backward."
        )
    if not has_gradient[0]:
        raise Wrong("the optimizer's first step comes before any gradient: go backward first.")
    optimizers = {id(optimizer): optimizer for optimizer, _ in found.optimizers}
    if len(optimizers) == steps:
        raise Wrong(
            "there is a new optimizer at each step, which remembers nothing of the steps before: "
            "make one before the loop."
        )
    if len(found.optimizers) != steps * len(optimizers):
        n = len(found.optimizers)
        raise Wrong(f"the optimizer took {n} steps where the loss was asked for {steps} times.")
    for optimizer in optimizers.values():
        kind, lr = type(optimizer), optimizer.param_groups[0]["lr"]
        if kind is not torch.optim.Adam:
            raise Wrong(f"the optimizer is {kind.__name__}: torch.optim.Adam is wanted.")
        if lr != wanted_lr:
            raise Wrong(f"Adam's rate is {lr:g} where lr={wanted_lr:g}: hand lr on to it.")


def _theta_stays(found: Seen) -> bool:
    return all(torch.equal(found.theta[name], START[name]) for name in START)


def _compare_returned(returned: Any, right: Seen) -> None:
    """Raise `Wrong` unless a loop returned the masks of θ > 0, as 0 and 1."""
    _require_masks(returned, right.theta)
    last = right.masks[-1].split([value.numel() for value in right.theta.values()])
    before = dict(zip(right.theta, last))
    for name, theta in right.theta.items():
        soft = before[name].view_as(theta)
        wrong = {
            "you returned the soft masks of the last step. What is kept is θ > 0, as 0 and "
            "1.": soft,
            "you returned masks of 0 and 1 from before the last optimizer step: θ moves once more "
            "after the loss.": (soft > 0.5).float(),
            "you returned θ. What is kept is θ > 0, as 0 and 1.": theta,
            "you returned the θ that you started from.": START[name],
            "you turned it round: nodes with θ above 0 stay.": (theta < 0).float(),
            "you turned it round: nodes with θ above 0 stay, and 0 is not above.": (
                theta <= 0
            ).float(),
            "a node whose θ is exactly 0 stayed: above 0 is kept.": (theta >= 0).float(),
            "you cut θ at ½. It is the mask that is cut at ½, and θ at 0.": (theta > 0.5).float(),
            "you cut θ at 1: a node stays if θ is above 0.": (theta > 1).float(),
            "you cut θ at −1: a node stays if θ is above 0.": (theta > -1).float(),
            "every node stays: above 0 is kept.": torch.ones_like(theta),
            "no node stays: above 0 is kept.": torch.zeros_like(theta),
        }
        compare(returned[name], (theta > 0).float(), wrong, what=f"the mask of {name!r}")


def _require_masks(answer: Any, like: dict[str, Tensor]) -> None:
    """Raise `Wrong` unless an answer is a dictionary of tensors of these shapes."""
    if answer is None:
        raise Wrong("it is None. Is the return missing?")
    if not isinstance(answer, dict) or set(answer) != set(like):
        raise Wrong(
            f"a mask for each hook point is to be returned, as a dictionary with the keys "
            f"{list(like)}."
        )
    for name, value in like.items():
        if isinstance(answer[name], Tensor) and answer[name].shape != value.shape:
            raise Wrong(
                f"the mask of {name!r} has the shape {list(answer[name].shape)}, and "
                f"{list(value.shape)} is wanted."
            )


def _learn_badly(
    *,
    clear: bool = True,
    sign: float = 1.0,
    tau: Callable[[int, int, float], float] = temperature,
    soft: Callable[[float, Tensor], Tensor] = lambda tau, value: torch.sigmoid(tau * value),
) -> Callable:
    """`learn_by_hand` with a bug."""

    def learn(
        loss_of: Callable, theta: dict[str, Tensor], *, steps: int, tau_max: float, lr: float
    ) -> None:
        optimizer = torch.optim.Adam(theta.values(), lr=lr)
        for step in range(steps):
            now = tau(step, steps, tau_max)
            masks = {name: soft(now, value) for name, value in theta.items()}
            if clear:
                optimizer.zero_grad()
            (sign * loss_of(masks, step)).backward()
            optimizer.step()

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
        "a": torch.tensor([[9.0, -8.0, 1.0], [0.5, 6.0, -0.1]]),
        "b": torch.tensor([[-7.0, 2.0, 3.0]]),
    }
    masks = {"a": torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), "b": torch.ones(1, 3)}
    n = 3
    answer = attempt(scores, masks, n)
    _require_masks(answer, scores)
    size = torch.cat([(score.abs() * masks[name]).flatten() for name, score in scores.items()])
    still = torch.cat([mask.flatten() for mask in masks.values()])

    def nodes(*indices: int) -> Tensor:
        kept = torch.zeros(9)  # six of "a", three of "b"
        kept[list(indices)] = 1
        return kept

    right = nodes(1, 4, 6)
    wrong = {
        "a node came back that the masks no longer had: only what is still there can stay.": nodes(
            0, 1, 6
        ),
        "you ranked by the signed score. A node that lowers the logit difference is part of the "
        "story too: rank by |score|.": nodes(4, 8, 7),
        "you ranked by the signed score, and a node came back that the masks no longer had.": nodes(
            0, 4, 8
        ),
        "you kept the lowest signed scores: rank by |score|.": nodes(1, 6, 5),
        "you kept n nodes of each SAE; n over all of them together is wanted.": nodes(
            1, 4, 2, 6, 7, 8
        ),
        "you kept the worst nodes.": nodes(5, 3, 2),
        "you kept the worst nodes, and one came back that the masks no longer had.": nodes(0, 5, 3),
        "you kept all but the n best.": 1 - right,
        "you dropped the n best of those that were left, and kept the rest.": still - right,
        "rows and columns changed places: cut the long vector up as it was put together.": nodes(
            2, 3, 6
        ),
        "you kept n + 1 nodes.": nodes(1, 4, 6, 8),
        "you kept n − 1 nodes.": nodes(1, 6),
        "you kept the n nodes that come first, not the best.": nodes(0, 1, 2),
        "you dropped n nodes: n are to stay.": nodes(1, 4, 6, 7, 8),
        "you returned the masks as they were.": still,
        "every node stays.": torch.ones(9),
        "no node stays.": torch.zeros(9),
        "you returned scores. What stays is 1, and the rest 0.": torch.cat(
            [score.flatten() for score in scores.values()]
        ),
        "you returned the scores' sizes. What stays is 1, and the rest 0.": size,
        "what stays has its score still: it is to be 1.": size * right,
        "what stays is 2: it is to be 1.": 2 * right,
    }
    kept = torch.cat([torch.as_tensor(answer[name]).float().flatten() for name in scores])
    compare(kept, right, wrong, what="the mask")
    answer = attempt(scores, {name: torch.ones_like(score) for name, score in scores.items()}, 5)
    _require_masks(answer, scores)
    kept = torch.cat([torch.as_tensor(answer[name]).float().flatten() for name in scores])
    compare(kept, nodes(0, 1, 4, 6, 8), what="with every node still there and n=5, the mask")
