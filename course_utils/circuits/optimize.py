"""A learned mask: which nodes does the behaviour need?

A mask of zeros and ones cannot be learned by gradient descent. *Continuous sparsification*
(Savarese et al. 2020) learns one number θ per node instead, and softens the step function to m =
σ(τ·θ). The temperature τ starts at 1, where every node has a gradient, and grows geometrically to
τ_max, where m is all but 0 or 1. The loss asks for the spliced model's answer with as few nodes as
possible:

    loss = |LD_spliced − LD_masked|  +  λ · Σm / (number of SAEs)

and at the end the nodes with θ > 0 are kept. The sum is over the nodes that can matter: before the
first mask acts, latents are what they are, and one that fires on no training prompt is left out. λ
sets the price of a node; where a size is wanted instead (``n_nodes=20``), λ itself is adjusted as
the mask is learned, like a Lagrange multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.saes import encode
from course_utils.circuits.splice import PatchMeans, SplicedModel, Prefix, batches
from course_utils.prompts.tasks import Task

Candidates = Literal["all", "firing"]


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is learned.

    Attributes:
        sparsity: λ, the price of a node. Larger means fewer nodes.
        n_nodes: the wanted number of nodes; then λ is found on the way, from ``sparsity`` on.
        steps: optimisation steps; τ reaches ``tau_max`` at the last.
        batch_size: prompt pairs a step.
        lr: Adam's learning rate for θ.
        theta_init: θ at the start, for every node.
        tau_max: the temperature at the end; it starts at 1.
        per_position: a mask ``[seq, d_sae]``, or one ``[d_sae]`` for all positions.
        candidates: ``"all"`` latents can fire while the mask is learned. ``"firing"``: only those
            that fire when nothing is masked, on some training prompt, clean or patch; an
            approximation that makes the width of the SAEs nearly free.
            `LearnedMask.candidate_error` says what it cost.
        seed: of the order of the prompts.
    """

    sparsity: float = 0.03
    n_nodes: int | None = None
    steps: int = 60
    batch_size: int = 16
    lr: float = 0.3
    theta_init: float = 1.0
    tau_max: float = 200.0
    per_position: bool = True
    candidates: Candidates = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, want in (
            ("sparsity", self.sparsity >= 0, "0 or more"),
            ("n_nodes", self.n_nodes is None or self.n_nodes > 0, "above 0 (or None)"),
            ("steps", self.steps > 0, "above 0"),
            ("batch_size", self.batch_size > 0, "above 0"),
            ("lr", self.lr > 0, "above 0"),
            ("tau_max", self.tau_max >= 1, "1 or more"),
            ("candidates", self.candidates in get_args(Candidates), "'all' or 'firing'"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {want}, not {getattr(self, name)!r}.")


@dataclass
class LearnedMask:
    """What `learn_masks` found, finished or not.

    Attributes:
        masks: zeros and ones: the nodes with θ > 0 (the best ``n_nodes`` of them, where a size was
            wanted).
        theta: the learned numbers, by hook point; −∞ for latents that were left out.
        history: a record per step: loss, faithfulness loss, nodes on (θ > 0), temperature, λ.
        interrupted: whether Ctrl-C ended it early. ``learn_masks(…, resume=this)`` goes on.
        candidate_error: with ``candidates="firing"``, the mean over training prompts of |LD with
            all latents − LD with the candidates|, for this mask; None if all were candidates.
    """

    masks: SAEMasks
    theta: dict[str, Float[Tensor, "seq d_sae"]]
    history: list[dict[str, float]]
    settings: MaskSettings
    interrupted: bool
    optimizer_state: dict = field(repr=False)
    candidate_error: float | None = None

    @property
    def n_nodes(self) -> int:
        """Nodes in the circuit."""
        return self.masks.get_num_latents()


def temperature(step: int, settings: MaskSettings) -> float:
    """τ: 1 at step 0, ``tau_max`` at the last step, geometric between, and no further."""
    return settings.tau_max ** (min(step, settings.steps - 1) / max(1, settings.steps - 1))


def soft_mask(theta: Tensor, tau: float) -> Tensor:
    """m = σ(τ·θ): 0.5 at θ = 0; near 0 or 1 when τ is large."""
    return torch.sigmoid(tau * theta)


def learn_masks(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    settings: MaskSettings | None = None,
    resume: LearnedMask | None = None,
    progress: bool = True,
    **changes,
) -> LearnedMask:
    """Learn which nodes to keep, by continuous sparsification.

    Args:
        task: the training prompts.
        means: what an ablated latent is replaced by; computed from ``task.patch`` if not given.
        settings: all settings at once; or name some: ``learn_masks(spliced, task, sparsity=0.1,
            seed=1)``.
        resume: a result that was interrupted: go on from there with its settings.
        progress: show a bar with loss, nodes on and temperature.

    Returns:
        The mask. Ctrl-C does not raise: it returns the mask so far, with ``interrupted=True``.

    Raises:
        ValueError: a setting out of range; ``n_nodes`` larger than the number of nodes; fewer
            prompts than one batch.
    """
    if resume is not None:
        settings = resume.settings
    settings = replace(settings or MaskSettings(), **changes)
    if len(task) < settings.batch_size:
        raise ValueError(
            f"batch_size={settings.batch_size}, but {task!r} has only {len(task)} prompt pairs."
        )
    means = means or spliced.patch_means(task.patch, lengths=task.lengths)
    start = spliced.prefix(task.clean, lengths=task.lengths)
    target = spliced.logit_diff(task, means=means, start=start)
    keep = _candidates(spliced, task, start, means, settings)
    whole, whole_means = spliced, means
    spliced, means = spliced.narrow(keep), means.narrow(keep)
    clean = _first_latents(spliced, start)

    theta = _starting_theta(means, keep, settings, resume)
    live = _live_rows(theta, spliced)
    n_total = int(sum(at.sum() for at in live.values()))
    if settings.n_nodes is not None and settings.n_nodes > n_total:
        raise ValueError(
            f"n_nodes must be at most {n_total} (all nodes that can matter), not {settings.n_nodes}."
        )
    optimizer = torch.optim.Adam(theta.values(), lr=settings.lr)
    history = list(resume.history) if resume else []
    if resume is not None:
        optimizer.load_state_dict(resume.optimizer_state)
    price = history[-1]["sparsity"] if history else settings.sparsity

    interrupted = False
    bar = tqdm(
        total=settings.steps, initial=len(history), desc="learning a mask", disable=not progress
    )
    try:
        for step in range(len(history), settings.steps):
            tau = temperature(step, settings)
            rows = batch_rows(len(task), step, settings)
            batch = task[rows]
            soft = {name: soft_mask(value, tau) * live[name] for name, value in theta.items()}
            masks = SAEMasks(list(soft), list(soft.values()))
            at = rows.to(target.device)
            first = {name: f[at] for name, f in clean.items()}
            run = spliced.run(
                start[at], masks=masks, means=means, latents=first, keep_latents=False
            )
            faithfulness_loss = (target[at] - run.logit_diff(batch)).abs().mean()
            n_soft = sum(mask.sum() for mask in soft.values())
            loss = faithfulness_loss + price * n_soft / len(soft)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            n_on = sum(int(((value > 0) * live[name]).sum()) for name, value in theta.items())
            history.append(
                dict(
                    step=step,
                    loss=loss.item(),
                    faithfulness_loss=faithfulness_loss.item(),
                    n_on=n_on,
                    tau=tau,
                    sparsity=price,
                )
            )
            if settings.n_nodes is not None:
                price = _adjusted_price(price, n_soft.item(), n_total, step, settings)
            bar.set_postfix(loss=f"{loss.item():.3f}", nodes=n_on, tau=f"{tau:.1f}")
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
        print(
            f"Interrupted after {len(history)} of {settings.steps} steps; this is the mask so far. Go on with resume=…."
        )
    finally:
        bar.close()
    final = {
        name: _widened(value.detach(), keep.get(name), whole.saes[name].cfg.d_sae)
        for name, value in theta.items()
    }
    masks, error = _binary(final, _live_rows(final, whole), settings), None
    if settings.candidates == "firing":
        narrow = SAEMasks(
            masks.hook_points, [mask[..., keep[name]] for name, mask in masks.items()]
        )
        with_all = whole.logit_diff(task, masks=masks, means=whole_means, start=start)
        error = (
            (with_all - spliced.logit_diff(task, masks=narrow, means=means, start=start))
            .abs()
            .mean()
            .item()
        )
    return LearnedMask(
        masks=masks,
        theta=final,
        history=history,
        settings=settings,
        interrupted=interrupted,
        optimizer_state=optimizer.state_dict(),
        candidate_error=error,
    )


@torch.no_grad()
def _candidates(
    spliced: SplicedModel, task: Task, start: Prefix, means: PatchMeans, settings: MaskSettings
) -> dict[str, Int[Tensor, " kept"]]:
    """The latents that may fire, by hook point; hook points that are not there keep all.

    A latent is left out if it is 0 on every clean prompt and in the mean over patch prompts. At the
    first SAE that is exact, since no mask comes before it; at the others it is right as long as
    nothing is masked.
    """
    fires = {name: (f != 0).any(0) for name, f in means.latents.items()}
    size = spliced.batch_size(task.seq_len)
    for i, batch in enumerate(batches(task, size)):
        here = start[i * size : (i + 1) * size]
        if settings.candidates == "firing":
            latents = spliced.run(here, means=means).latents
        else:
            latents = _first_latents(spliced, here)
        for name, f in latents.items():
            fires[name] |= (f != 0).flatten(0, 1).any(0)
    return {name: fires[name].nonzero()[:, 0] for name in latents}


@torch.no_grad()
def _first_latents(spliced: SplicedModel, start: Prefix) -> dict[str, Float[Tensor, "n seq d_sae"]]:
    """What the first SAE finds: the same at every step."""
    name = spliced.hook_points[0]
    f = encode(spliced.saes[name], start.resid)
    return {name: torch.nn.functional.pad(f, (0, 0, spliced.first, 0))}


def _starting_theta(
    means: PatchMeans,
    keep: Mapping[str, Tensor],
    settings: MaskSettings,
    resume: LearnedMask | None,
) -> dict[str, Float[Tensor, "seq kept"]]:
    """θ₀ for every candidate, or what an earlier run had come to."""
    if resume is None:
        rows = {name: f if settings.per_position else f[0] for name, f in means.latents.items()}
        theta = {
            name: torch.full_like(f, settings.theta_init, dtype=torch.float32)
            for name, f in rows.items()
        }
    else:
        theta = {
            name: value[..., keep[name]].clone() if name in keep else value.clone()
            for name, value in resume.theta.items()
        }
    return {name: value.requires_grad_() for name, value in theta.items()}


def _widened(theta: Tensor, keep: Tensor | None, d_sae: int) -> Tensor:
    """θ of all latents: −∞ for those that were left out."""
    if keep is None:
        return theta
    wide = theta.new_full((*theta.shape[:-1], d_sae), -torch.inf)
    wide[..., keep] = theta
    return wide


def _live_rows(theta: Mapping[str, Tensor], spliced: SplicedModel) -> dict[str, Tensor]:
    """1 where a node can be, 0 in BOS' row."""
    live = {name: torch.ones_like(value) for name, value in theta.items()}
    for value in live.values():
        if value.ndim == 2:
            value[: spliced.first] = 0
    return live


def batch_rows(n: int, step: int, settings: MaskSettings) -> Tensor:
    """The prompts of a step: every prompt once, in a new random order each epoch. The same after a
    resume.
    """
    per_epoch = n // settings.batch_size
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * settings.seed + epoch))
    return order[place * settings.batch_size : (place + 1) * settings.batch_size]


def _adjusted_price(
    price: float, n_soft: float, n_total: int, step: int, settings: MaskSettings
) -> float:
    """λ for the next step: up where there are more nodes than there should be by now, down where
    fewer.

    The wanted number falls geometrically from all nodes to ``n_nodes`` over the first two thirds.
    """
    progress = min(1.0, (step + 1) / max(1, settings.steps * 2 / 3))
    wanted = n_total ** (1 - progress) * settings.n_nodes**progress
    return price * math.exp(0.2 * max(-2.0, min(2.0, math.log(max(n_soft, 1e-3) / wanted))))


def _binary(
    theta: Mapping[str, Tensor], live: Mapping[str, Tensor], settings: MaskSettings
) -> SAEMasks:
    if settings.n_nodes is None:
        return SAEMasks(
            list(theta), [((value > 0) * live[name]).float() for name, value in theta.items()]
        )
    scores = {name: value.masked_fill(live[name] == 0, -torch.inf) for name, value in theta.items()}
    return SAEMasks.from_scores(scores, settings.n_nodes, rank="signed")
