"""A learned mask: which nodes does the behaviour need?

A mask of zeros and ones cannot be learned by gradient descent. *Continuous sparsification*
(Savarese et al. 2020) learns one number θ per node instead, and softens the step function to m =
σ(τ·θ). The temperature τ starts at 1, where every node has a gradient, and grows geometrically to
τ_max, where m is all but 0 or 1. The loss asks for the spliced model's answer with as few nodes as
possible:

    loss = |LD_spliced − LD_masked|  +  λ · Σm / (number of SAEs)

and at the end the nodes with θ > 0 are kept. The sum is over the nodes that can matter: before the
first mask acts, latents are what they are, and one that fires on no training prompt is left out. λ,
``sparsity`` in the code, says how much a node costs. Where a size is wanted instead
(``n_nodes=20``), λ itself is adjusted as the mask is learned, like a Lagrange multiplier.

`ContinuousSparsification` is the method, whatever computes the two logit differences. `MaskLearner`
computes them with a `SplicedModel`, step by step, and `learn_masks` takes all the steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.saes import encode
from course_utils.circuits.settings import require, with_changes
from course_utils.circuits.splice import PatchMeans, Prefix, SplicedModel
from course_utils.prompts.tasks import Task

Candidates = Literal["all", "firing"]

Record = dict[str, int | float]
"""What one step was like: ``step`` (from 0), ``loss``, ``faithfulness_loss`` (its first term),
``n_on`` (nodes with θ > 0 after the step), ``tau`` and ``sparsity`` (τ and λ in the step).
"""


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is learned.

    Attributes:
        sparsity: λ, what a node costs in the loss: 0 or more. Larger means fewer nodes.
        n_nodes: the wanted number of nodes; then λ is found on the way, from ``sparsity`` on.
        steps: optimisation steps; τ reaches ``tau_max`` at the last.
        batch_size: prompt pairs per step.
        lr: Adam's learning rate for θ.
        theta_init: θ at the start, for every node.
        tau_max: the temperature at the end; it starts at 1.
        per_position: a mask ``[seq, d_sae]``, or one ``[d_sae]`` for all positions.
        candidates: ``"all"`` latents can fire while the mask is learned. ``"firing"``: only those
            that fire when nothing is masked, on some training prompt, clean or patch; an
            approximation that makes the width of the SAEs nearly free.
            `LearnedMask.candidate_error` says what it cost.
        seed: of the order of the prompts.

    Raises:
        ValueError: a setting out of range.
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
        require(self, "sparsity", self.sparsity >= 0, "0 or more")
        require(self, "n_nodes", self.n_nodes is None or self.n_nodes > 0, "above 0 (or None)")
        require(self, "steps", self.steps > 0, "above 0")
        require(self, "batch_size", self.batch_size > 0, "above 0")
        require(self, "lr", self.lr > 0, "above 0")
        require(self, "tau_max", self.tau_max >= 1, "1 or more")
        known = self.candidates in get_args(Candidates)
        require(self, "candidates", known, "'all' or 'firing'")

    def check_prompts(self, n_prompts: int) -> None:
        """Raise ValueError if there are fewer prompts than one batch."""
        if n_prompts < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size}, but there are only {n_prompts} prompt pairs."
            )


@dataclass
class LearnedMask:
    """What `learn_masks` comes to, finished or not.

    Attributes:
        masks: zeros and ones: the nodes with θ > 0 (the best ``n_nodes`` of them, where a size was
            wanted).
        theta: the learned numbers, by hook point, ``[seq, d_sae]`` or ``[d_sae]``; −∞ for latents
            that were left out.
        history: a record per step: loss, faithfulness loss, nodes on (θ > 0), temperature, λ.
        settings: those that it was learned with.
        interrupted: whether steps are left. ``learn_masks(…, resume=this)`` goes on.
        optimizer_state: Adam's, to go on from.
        candidate_error: with ``candidates="firing"``, the mean over training prompts of |LD of the
            circuit with all latents that were left out − LD of the circuit|; None if all were
            candidates.
    """

    masks: SAEMasks
    theta: dict[str, Float[Tensor, "*seq d_sae"]]
    history: list[Record]
    settings: MaskSettings
    interrupted: bool
    optimizer_state: dict[str, Any] = field(repr=False)
    candidate_error: float | None = None

    @property
    def n_nodes(self) -> int:
        """Nodes in the circuit."""
        return self.masks.get_num_latents()


def learn_masks(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    settings: MaskSettings | None = None,
    resume: LearnedMask | None = None,
    progress: bool = True,
    **changes: Any,
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
        TypeError: a setting that there is not.
    """
    if resume is not None:
        settings = resume.settings
    settings = with_changes(settings or MaskSettings(), changes)
    learner = MaskLearner(spliced, task, means, settings, resume=resume)
    bar = tqdm(
        total=settings.steps,
        initial=len(learner.history),
        desc="learning a mask",
        disable=not progress,
    )
    try:
        while not learner.done:
            record = learner.step()
            loss, tau = f"{record['loss']:.3f}", f"{record['tau']:.1f}"
            bar.set_postfix(loss=loss, nodes=record["n_on"], tau=tau)
            bar.update()
    except KeyboardInterrupt:
        print(
            f"Interrupted after {len(learner.history)} of {settings.steps} steps; this is the mask "
            "so far. Go on with resume=…."
        )
    finally:
        bar.close()
    return learner.finish()


# ---------------------------------------------------------------------------------------------
# The method
# ---------------------------------------------------------------------------------------------


def temperature(step: int, settings: MaskSettings) -> float:
    """τ: 1 at step 0, ``tau_max`` at the last step, geometric between, and no further."""
    return settings.tau_max ** (min(step, settings.steps - 1) / max(1, settings.steps - 1))


def soft_mask(theta: Float[Tensor, "*nodes"], tau: float) -> Float[Tensor, "*nodes"]:
    """m = σ(τ·θ): 0.5 at θ = 0; near 0 or 1 when τ is large."""
    return torch.sigmoid(tau * theta)


def batch_rows(n_prompts: int, step: int, settings: MaskSettings) -> Int[Tensor, " batch"]:
    """The prompts of a step: all in a new random order each epoch, and no prompt twice in one.

    The order depends on the seed and the step only, so that it is the same after a resume. The last
    prompts of an epoch's order that do not fill a batch are left out.
    """
    steps_per_epoch = n_prompts // settings.batch_size
    epoch, batch = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(1000 * settings.seed + epoch)
    order = torch.randperm(n_prompts, generator=generator)
    first = batch * settings.batch_size
    return order[first : first + settings.batch_size]


class ContinuousSparsification:
    """θ, its optimiser, and what makes masks of it: the method but for the logit differences.

        while not learning.done:
            rows, masks = learning.rows(), learning.soft_masks()
            gaps = …  # LD_spliced − LD_masked of these prompts with these masks
            learning.update(gaps, masks)

    Args:
        theta: where to start from, by hook point: ``[seq, d_sae]``, or ``[d_sae]`` for all
            positions.
        n_prompts: how many training prompts there are.
        settings: `MaskSettings`.
        first: the first position where a node can be: 1 where there is a BOS, else 0.
        resume: an interrupted result, whose history and optimiser state to go on with.

    Attributes:
        theta: the numbers so far.
        history: a record per step.
        sparsity: λ for the next step.

    Raises:
        ValueError: fewer prompts than one batch; ``n_nodes`` larger than the number of nodes.
    """

    def __init__(
        self,
        theta: Mapping[str, Float[Tensor, "..."]],
        n_prompts: int,
        settings: MaskSettings,
        *,
        first: int,
        resume: LearnedMask | None = None,
    ):
        settings.check_prompts(n_prompts)
        self.theta = {
            name: value.detach().clone().requires_grad_() for name, value in theta.items()
        }
        self.n_prompts, self.settings = n_prompts, settings
        self.live = {name: _live(value, first) for name, value in theta.items()}
        self.n_total = sum(int(live.sum()) for live in self.live.values())
        if settings.n_nodes is not None and settings.n_nodes > self.n_total:
            raise ValueError(
                f"n_nodes must be at most {self.n_total} (all nodes that can matter), not "
                f"{settings.n_nodes}."
            )
        self.optimizer = torch.optim.Adam(self.theta.values(), lr=settings.lr)
        self.history: list[Record] = []
        self.sparsity = settings.sparsity
        if resume is not None:
            self.optimizer.load_state_dict(copy.deepcopy(resume.optimizer_state))
            self.history = list(resume.history)
        if self.history and settings.n_nodes is not None:
            self.sparsity = self.history[-1]["sparsity"]

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return len(self.history) >= self.settings.steps

    @property
    def tau(self) -> float:
        """The temperature of the next step."""
        return temperature(len(self.history), self.settings)

    def rows(self) -> Int[Tensor, " batch"]:
        """Which prompts the next step is to use."""
        return batch_rows(self.n_prompts, len(self.history), self.settings)

    def soft_masks(self) -> SAEMasks:
        """m = σ(τ·θ), and 0 in BOS' row; gradients flow to θ."""
        masks = [soft_mask(theta, self.tau) * self.live[name] for name, theta in self.theta.items()]
        return SAEMasks(list(self.theta), masks)

    def update(self, gaps: Float[Tensor, " batch"], masks: SAEMasks) -> Record:
        """One step of Adam on mean |gaps| + λ · Σm / (number of SAEs).

        Args:
            gaps: LD_spliced − LD_masked of each prompt, with a graph back to ``masks``.
            masks: the soft masks that the gaps were computed with.

        Returns:
            The step's record.
        """
        step, tau, sparsity = len(self.history), self.tau, self.sparsity
        faithfulness_loss = gaps.abs().mean()
        n_soft = sum((mask.sum() for mask in masks.masks), torch.zeros((), device=gaps.device))
        loss = faithfulness_loss + sparsity * n_soft / len(self.theta)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        record: Record = {
            "step": step,
            "loss": loss.item(),
            "faithfulness_loss": faithfulness_loss.item(),
            "n_on": self._n_on(),
            "tau": tau,
            "sparsity": sparsity,
        }
        self.history.append(record)
        if self.settings.n_nodes is not None:
            self.sparsity = self._adjusted_sparsity(n_soft.item(), self.settings.n_nodes)
        return record

    def _n_on(self) -> int:
        return sum(int(((theta > 0) & self.live[name]).sum()) for name, theta in self.theta.items())

    def _adjusted_sparsity(self, n_soft: float, n_nodes: int) -> float:
        """λ for the next step: up where there are more nodes than there should be by now.

        The wanted number falls geometrically from all nodes to ``n_nodes`` over the first two
        thirds.
        """
        progress = min(1.0, len(self.history) / max(1, self.settings.steps * 2 / 3))
        wanted = self.n_total ** (1 - progress) * n_nodes**progress
        too_many = math.log(max(n_soft, 1e-3) / wanted)
        return self.sparsity * math.exp(0.2 * max(-2.0, min(2.0, too_many)))


def starting_theta(
    mean_latents: Mapping[str, Float[Tensor, "seq _d_sae"]], settings: MaskSettings
) -> dict[str, Float[Tensor, "*seq _d_sae"]]:
    """θ₀ for every node: ``[seq, d_sae]`` like the means, or ``[d_sae]`` for all positions."""
    theta = {}
    for name, mean in mean_latents.items():
        shape = mean.shape if settings.per_position else mean.shape[1:]
        theta[name] = mean.new_full(shape, settings.theta_init, dtype=torch.float32)
    return theta


def binary_masks(
    theta: Mapping[str, Float[Tensor, "..."]], settings: MaskSettings, *, first: int
) -> SAEMasks:
    """Zeros and ones: the nodes with θ > 0; where a size is wanted, the nodes with the largest θ.

    Args:
        theta: by hook point, ``[seq, d_sae]`` or ``[d_sae]``.
        settings: whose ``n_nodes`` says whether a size is wanted.
        first: the first position where a node can be.
    """
    live = {name: _live(value, first) for name, value in theta.items()}
    if settings.n_nodes is None:
        masks = [((value > 0) & live[name]).float() for name, value in theta.items()]
        return SAEMasks(list(theta), masks)
    scores = {name: value.masked_fill(~live[name], -torch.inf) for name, value in theta.items()}
    return SAEMasks.from_scores(scores, settings.n_nodes, rank="signed")


def _live(theta: Float[Tensor, "*seq d_sae"], first: int) -> Bool[Tensor, "*seq d_sae"]:
    """Where a node can be: not in BOS' row."""
    live = torch.ones_like(theta, dtype=torch.bool)
    if live.ndim == 2:
        live[:first] = False
    return live


# ---------------------------------------------------------------------------------------------
# The method with a spliced model
# ---------------------------------------------------------------------------------------------


class MaskLearner:
    """Learns masks for a spliced model, step by step.

        learner = MaskLearner(spliced, task, means, MaskSettings(steps=20))
        while not learner.done:
            record = learner.step()
        learned = learner.finish()

    What is the same at every step is computed once, here: the passes up to the first SAE, its
    latents, and the answers of the spliced model with nothing masked.

    Args:
        spliced: the model and its SAEs.
        task: the training prompts.
        means: what an ablated latent is replaced by; computed from ``task.patch`` if not given.
        settings: `MaskSettings`, the defaults if not given.
        resume: an interrupted result to go on from.

    Raises:
        ValueError: fewer prompts than one batch; ``n_nodes`` larger than the number of nodes.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        task: Task,
        means: PatchMeans | None = None,
        settings: MaskSettings | None = None,
        *,
        resume: LearnedMask | None = None,
    ):
        self.settings = settings or MaskSettings()
        self.settings.check_prompts(len(task))
        self.spliced, self.task = spliced, task
        if means is None:
            means = spliced.patch_means(task.patch, lengths=task.lengths)
        self.means = means
        self.prefix = spliced.prefix(task.clean, lengths=task.lengths)
        self.target = spliced.logit_diff_from(self.prefix, task, means=self.means)

        self.kept = self._candidates()
        self.narrow = spliced.narrow(self.kept)
        self.narrow_means = self.means.narrow(self.kept)
        self.first_latents = _first_latents(self.narrow, self.prefix)
        self.learning = ContinuousSparsification(
            self._starting_theta(resume),
            len(task),
            self.settings,
            first=spliced.first,
            resume=resume,
        )

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.learning.done

    @property
    def history(self) -> list[Record]:
        """A record per step so far."""
        return self.learning.history

    def step(self) -> Record:
        """Take one optimisation step; returns its record."""
        rows, masks = self.learning.rows(), self.learning.soft_masks()
        here = rows.to(self.target.device)
        run = self.narrow.run(
            self.prefix[here],
            masks=masks,
            means=self.narrow_means,
            latents={name: f[here] for name, f in self.first_latents.items()},
            keep_latents=False,
        )
        gaps = self.target[here] - run.logit_diff(self.task[rows])
        return self.learning.update(gaps, masks)

    def finish(self) -> LearnedMask:
        """The mask so far. More steps may follow: the result does not change with them."""
        theta = {name: self._widened(name, value) for name, value in self.learning.theta.items()}
        masks = binary_masks(theta, self.settings, first=self.spliced.first)
        firing_only = self.settings.candidates == "firing"
        return LearnedMask(
            masks=masks,
            theta=theta,
            history=list(self.history),
            settings=self.settings,
            interrupted=not self.done,
            optimizer_state=copy.deepcopy(self.learning.optimizer.state_dict()),
            candidate_error=self._candidate_error(masks, theta) if firing_only else None,
        )

    # -- which latents can matter ---------------------------------------------------------------

    @torch.no_grad()
    def _candidates(self) -> dict[str, Int[Tensor, " _kept"]]:
        """The latents that may fire, by hook point; hook points that are not there keep all.

        A latent is left out if it is 0 on every clean prompt and in the mean over patch prompts. At
        the first SAE that is exact, since no mask comes before it; at the others it is right as
        long as nothing is masked.
        """
        everywhere = self.settings.candidates == "firing"
        names = self.spliced.hook_points if everywhere else self.spliced.hook_points[:1]
        fires = {name: (self.means.latents[name] != 0).any(0) for name in names}
        size = self.spliced.batch_size(self.task.seq_len)
        for first in range(0, len(self.task), size):
            batch = self.prefix[first : first + size]
            if everywhere:
                latents = self.spliced.run(batch, means=self.means).latents
            else:
                latents = _first_latents(self.spliced, batch)
            for name, f in latents.items():
                fires[name] |= (f != 0).flatten(0, 1).any(0)
        return {name: fired.nonzero()[:, 0] for name, fired in fires.items()}

    def _starting_theta(self, resume: LearnedMask | None) -> dict[str, Float[Tensor, "..."]]:
        """θ₀ for every candidate, or what an earlier run had come to."""
        if resume is None:
            return starting_theta(self.narrow_means.latents, self.settings)
        return {
            name: theta[..., self.kept[name]] if name in self.kept else theta
            for name, theta in resume.theta.items()
        }

    def _widened(self, name: str, theta: Float[Tensor, "*seq kept"]) -> Float[Tensor, "*seq d_sae"]:
        """A copy of θ for all latents: −∞ for those that were left out."""
        theta = theta.detach().clone()
        if name not in self.kept:
            return theta
        wide = theta.new_full((*theta.shape[:-1], self.spliced.saes[name].cfg.d_sae), -torch.inf)
        wide[..., self.kept[name]] = theta
        return wide

    def _candidate_error(self, masks: SAEMasks, theta: Mapping[str, Tensor]) -> float:
        """How far latents that were left out move LD, when they join the circuit ``masks``."""
        joined = [mask.masked_fill(theta[name].isneginf(), 1) for name, mask in masks.items()]
        circuit, with_left_out = (
            self.spliced.logit_diff_from(self.prefix, self.task, masks=both, means=self.means)
            for both in (masks, SAEMasks(masks.hook_points, joined))
        )
        return (with_left_out - circuit).abs().mean().item()


@torch.no_grad()
def _first_latents(
    spliced: SplicedModel, prefix: Prefix
) -> dict[str, Float[Tensor, "batch seq d_sae"]]:
    """What the first SAE finds, the same at every step; a row of 0 in front where BOS is."""
    name = spliced.hook_points[0]
    f = encode(spliced.saes[name], prefix.resid)
    return {name: torch.nn.functional.pad(f, (0, 0, spliced.first, 0))}
