"""How a mask of zeros and ones is learned by gradient descent: two relaxations, and a wanted size.

A step function has no gradient, so a mask is softened while it is learned. There is one number θ
per node, and in the end the nodes with θ > 0 are kept. The loss asks for the spliced model's answer
with as few nodes as possible:

    loss = |LD_spliced − LD_masked|  +  λ · (expected number of nodes) / (number of SAEs)

λ, ``sparsity`` in the code, is the price of a node.

- *Continuous sparsification* (Savarese et al. 2020; the post): m = σ(τ·θ). The temperature τ starts
  at 1, where every node has a gradient, and grows geometrically to τ_max, where m is nearly 0 or 1.
- *Hard concrete* (Louizos et al. 2018; Edge Pruning, Bhaskar et al. 2024): m is random, and exactly
  0 or 1 much of the time; P(m > 0) = σ(θ − β·ln(−γ/ζ)). No temperature rises.

A soft mask must be able to change its mind. Where τ·θ is 60, σ has no slope left, and no λ moves
that node again. So τ·θ is held within ±9 (``max_logit``), where m is .0001 or .9999.

Where a size is wanted instead of a price (``n_nodes=20``), λ is a controlled variable. It rises
while more nodes stay than wanted, and falls fast when fewer do. Nodes that are on their way out do
not count as staying: θ takes a while to follow λ. Nodes leave one by one. None is cut at the end: a
circuit loses its function when the last few nodes are cut off, as a size that is reached by cutting
shows (F .04 where learning gives .91).

This module knows nothing of models: whoever calls it computes the logit differences.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.settings import require

Candidates = Literal["all", "firing"]
Method = Literal["continuous_sparsification", "hard_concrete"]
Compare = Literal["each_prompt", "batch_mean"]

Record = dict[str, int | float]
"""What one step was like: ``step`` (from 0), ``loss``, ``faithfulness_loss`` (its first term),
``n_on`` (nodes with θ > 0 after the step), ``n_staying`` (those of them that are not about to
leave), ``tau`` and ``sparsity`` (τ and λ in the step).
"""

STRETCH = (-0.1, 1.1)
"""γ and ζ of hard concrete: the interval that is clamped to 0…1."""
BETA = 2 / 3
"""The temperature of hard concrete, which stays."""


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is learned.

    Attributes:
        sparsity: λ, the price of a node: 0 or more. Larger means fewer nodes. Not used where
            ``n_nodes`` is given.
        n_nodes: the wanted number of nodes; then λ is found on the way. What is learned may differ
            by a few nodes: no node is cut or added to hit the number.
        method: ``"continuous_sparsification"`` or ``"hard_concrete"``.
        compare: the logit differences of ``"each_prompt"``, mean |LD_spliced − LD_masked|; or of
            the ``"batch_mean"``, |mean (LD_spliced − LD_masked)|, as the published code does.
            There, a prompt that is too sure and one that is too unsure cancel.
        steps: optimisation steps.
        batch_size: prompt pairs per step.
        lr: Adam's learning rate for θ.
        beta2: how long Adam remembers the size of gradients: 0 = one step. The usual .999
            remembers the first steps, where gradients are large, through the whole run, and then
            no node can change its mind.
        theta_init: θ at the start, for every node.
        tau_max: the temperature at the end; it starts at 1.
        settle: when τ reaches ``tau_max``, as a share of the steps; 1 = at the last.
        max_logit: τ·θ is held between minus and plus this; None: it is not, which serves circuits
            of thousands of nodes better: of many that each do little, some leave by chance. Of
            continuous sparsification only.
        per_position: a mask ``[seq, d_sae]``, or one ``[d_sae]`` for all positions.
        candidates: ``"firing"``: nodes can be kept that fire when nothing is masked, on some
            training prompt, clean or patch. That is an approximation; `LearnedMask.candidate_error`
            says what it cost. ``"all"``: every node is a candidate.
        seed: of the order of the prompts, and of what hard concrete draws.

    Raises:
        ValueError: a setting out of range.
    """

    sparsity: float = 0.03
    n_nodes: int | None = None
    method: Method = "continuous_sparsification"
    compare: Compare = "each_prompt"
    steps: int = 60
    batch_size: int = 16
    lr: float = 0.15
    beta2: float = 0.95
    theta_init: float = 1.0
    tau_max: float = 20.0
    settle: float = 0.75
    max_logit: float | None = 9.0
    per_position: bool = True
    candidates: Candidates = "firing"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "sparsity", self.sparsity >= 0, "0 or more")
        require(self, "n_nodes", self.n_nodes is None or self.n_nodes > 0, "above 0 (or None)")
        require(self, "steps", self.steps > 0, "above 0")
        require(self, "batch_size", self.batch_size > 0, "above 0")
        require(self, "lr", self.lr > 0, "above 0")
        require(self, "beta2", 0 <= self.beta2 < 1, "0 or more and below 1")
        require(self, "tau_max", self.tau_max >= 1, "1 or more")
        require(self, "settle", 0 < self.settle <= 1, "above 0 and at most 1")
        require(
            self, "max_logit", self.max_logit is None or self.max_logit > 0, "above 0 (or None)"
        )
        for name, kind in (("candidates", Candidates), ("method", Method), ("compare", Compare)):
            known = get_args(kind)
            require(self, name, getattr(self, name) in known, " or ".join(map(repr, known)))

    def check_prompts(self, n_prompts: int) -> None:
        """Raise ValueError if there are fewer prompts than one batch."""
        if n_prompts < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size}, but there are only {n_prompts} prompt pairs."
            )


PUBLISHED = MaskSettings(
    compare="batch_mean",
    lr=0.3,
    beta2=0.999,
    tau_max=200.0,
    settle=1.0,
    max_logit=None,
    candidates="all",
)
"""The post's learner, as far as it differs from ours."""


# ---------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------


def temperature(step: int, settings: MaskSettings) -> float:
    """τ: 1 at step 0, ``tau_max`` after the share ``settle`` of the steps, geometric between."""
    last = settings.settle * (settings.steps - 1)
    return settings.tau_max ** (min(1.0, step / last) if last > 0 else 0.0)


def soft_mask(theta: Float[Tensor, "*nodes"], tau: float) -> Float[Tensor, "*nodes"]:
    """m = σ(τ·θ): 0.5 at θ = 0; near 0 or 1 when τ is large."""
    return torch.sigmoid(tau * theta)


def hard_concrete(
    theta: Float[Tensor, "*nodes"], noise: Float[Tensor, "*nodes"]
) -> Float[Tensor, "*nodes"]:
    """m: a binary concrete variable, stretched to γ…ζ and clamped to 0…1.

    Args:
        theta: log α in the paper.
        noise: uniform in 0…1.

    Source: Louizos et al. 2018, equations 10 and 11.
    """
    low, high = STRETCH
    s = torch.sigmoid((noise.logit() + theta) / BETA)
    return (s * (high - low) + low).clamp(0, 1)


def probability_on(theta: Float[Tensor, "*nodes"]) -> Float[Tensor, "*nodes"]:
    """P(m > 0) of hard concrete. Source: Louizos et al. 2018, equation 12."""
    low, high = STRETCH
    return torch.sigmoid(theta - BETA * math.log(-low / high))


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


@dataclass(frozen=True)
class SizeControl:
    """Finds λ for a wanted number of nodes while the mask is learned: a PI controller.

    The error is e = ln(staying / aim), held within ±1. *Staying* is the number of nodes that are on
    and not about to leave (``n_staying`` of a `Record`). At every step

        Δ ln λ = GAIN · Δe + rate · e

    Before nodes begin to leave, λ stays where it started. The aim comes down to the wanted number
    from above, since nodes leave and hardly ever return. The constants were chosen on dev prompts.

    Attributes:
        n_nodes: how many are wanted.
        n_candidates: how many there are.
        steps: of the whole run.
    """

    n_nodes: int
    n_candidates: int
    steps: int

    GAIN = 4.0
    """By how much ln λ follows a change of e at once."""
    RISE = 12.0
    """The rate of a rise: with e = 1, ln λ grows by this much over a run."""
    FALL = 18.0
    CLOSE = 0.05
    """So much too many is close enough: λ does not rise."""
    AHEAD = 0.1
    """A node is about to leave if it would be off after this share of the run."""
    ABOVE = 0.6
    """By which share the first aim is above the wanted number."""
    UNTIL = 0.5
    """When the aim is the wanted number, as a share of the run."""
    PRICE = 0.12
    """At the start, the wanted nodes together cost this share of all that there is to lose."""

    def start(self, to_lose: float, n_saes: int) -> float:
        """λ at the first step.

        Args:
            to_lose: mean |LD_spliced − LD_∅|, the faithfulness loss of the empty circuit.
            n_saes: how many SAEs there are.
        """
        return self.PRICE * to_lose * n_saes / self.n_nodes

    def aim(self, step: int) -> float:
        """How many nodes are aimed at after so many steps; it comes down geometrically."""
        left = max(0.0, 1 - step / (self.UNTIL * self.steps))
        return self.n_nodes * (1 + self.ABOVE) ** left

    def error(self, n_staying: int | float, step: int) -> float:
        """e after so many steps: 0 = as aimed or hardly more, above 0 = too many, up to ±1."""
        e = math.log(max(n_staying, 0.5) / self.aim(step))
        return 0.0 if 0 < e < self.CLOSE else max(-1.0, min(1.0, e))

    def next(self, sparsity: float, history: Sequence[Record]) -> float:
        """λ for the next step.

        Args:
            sparsity: λ of the last step.
            history: the records so far; read are ``n_on`` and ``n_staying`` of the last two.
        """
        errors = [
            self.error(record["n_staying"], step)
            for step, record in list(enumerate(history, start=1))[-2:]
            if record["n_on"] < 0.9 * self.n_candidates
        ]
        if not errors or history[-1]["n_on"] >= 0.9 * self.n_candidates:
            return sparsity
        e, change = errors[-1], errors[-1] - errors[0]
        rate = (self.RISE if e > 0 else self.FALL) / self.steps
        return sparsity * math.exp(self.GAIN * change + rate * e)


# ---------------------------------------------------------------------------------------------
# The methods
# ---------------------------------------------------------------------------------------------


class Sparsification:
    """θ, its optimiser, and what makes masks of it: a method but for the logit differences.

        while not learning.done:
            rows, masks = learning.rows(), learning.soft_masks()
            gaps = …  # LD_spliced − LD_masked of these prompts with these masks
            learning.update(gaps, masks)

    `ContinuousSparsification` and `HardConcrete` are the two methods; `sparsification` makes the
    one that the settings name.

    Args:
        theta: where to start from, by hook point: ``[seq, d_sae]``, or ``[d_sae]`` for all
            positions.
        candidates: which of these are nodes, by hook point, in θ's shape. The rest is ablated.
        n_prompts: how many training prompts there are.
        settings: `MaskSettings`.
        to_lose: mean |LD_spliced − LD_∅|, in logits; only a wanted size needs it.
        history: the records of steps that were taken before.
        optimizer_state: Adam's state after them.

    Attributes:
        theta: the numbers so far.
        history: a record per step.

    Raises:
        ValueError: fewer prompts than one batch; ``n_nodes`` larger than the number of candidates.
    """

    def __init__(
        self,
        theta: Mapping[str, Float[Tensor, "..."]],
        candidates: Mapping[str, Bool[Tensor, "..."]],
        n_prompts: int,
        settings: MaskSettings,
        *,
        to_lose: float = 1.0,
        history: Sequence[Record] = (),
        optimizer_state: Mapping[str, Any] | None = None,
    ):
        settings.check_prompts(n_prompts)
        self.theta = {
            name: value.detach().clone().requires_grad_() for name, value in theta.items()
        }
        self.candidates = dict(candidates)
        self.n_prompts, self.settings, self.to_lose = n_prompts, settings, to_lose
        self.n_candidates = sum(int(some.sum()) for some in self.candidates.values())
        self.control = None
        if settings.n_nodes is not None:
            if settings.n_nodes > self.n_candidates:
                raise ValueError(
                    f"n_nodes must be at most {self.n_candidates} (all nodes that can matter), not "
                    f"{settings.n_nodes}."
                )
            self.control = SizeControl(settings.n_nodes, self.n_candidates, settings.steps)
        self.optimizer = torch.optim.Adam(
            self.theta.values(), lr=settings.lr, betas=(0.9, settings.beta2)
        )
        self.history: list[Record] = list(history)
        if optimizer_state:
            self.optimizer.load_state_dict(copy.deepcopy(dict(optimizer_state)))
            for group in self.optimizer.param_groups:  # a resume may change the rate
                group["lr"], group["betas"] = settings.lr, (0.9, settings.beta2)

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return len(self.history) >= self.settings.steps

    @property
    def tau(self) -> float:
        """The temperature of the next step."""
        return temperature(len(self.history), self.settings)

    @property
    def sparsity(self) -> float:
        """λ for the next step."""
        if self.control is None:
            return self.settings.sparsity
        if not self.history:
            return self.control.start(self.to_lose, len(self.theta))
        return self.control.next(self.history[-1]["sparsity"], self.history)

    def rows(self) -> Int[Tensor, " batch"]:
        """Which prompts the next step is to use."""
        return batch_rows(self.n_prompts, len(self.history), self.settings)

    def soft_masks(self) -> SAEMasks:
        """The masks of the next step, 0 where there is no candidate; gradients flow to θ."""
        masks = [self._soft(name) * self.candidates[name] for name in self.theta]
        return SAEMasks(list(self.theta), masks)

    def _soft(self, name: str) -> Float[Tensor, "..."]:
        raise NotImplementedError

    def _n_expected(self, masks: SAEMasks) -> Float[Tensor, ""]:
        """How many nodes are on, softly, with a graph to θ."""
        raise NotImplementedError

    def update(self, gaps: Float[Tensor, " batch"], masks: SAEMasks) -> Record:
        """One step of Adam on the loss.

        Args:
            gaps: LD_spliced − LD_masked of each prompt, with a graph back to ``masks``.
            masks: the soft masks that the gaps were computed with.

        Returns:
            The step's record.
        """
        step, tau, sparsity = len(self.history), self.tau, self.sparsity
        each_prompt = self.settings.compare == "each_prompt"
        faithfulness_loss = gaps.abs().mean() if each_prompt else gaps.mean().abs()
        n_expected = self._n_expected(masks).to(gaps.device)
        loss = faithfulness_loss + sparsity * n_expected / len(self.theta)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._hold(temperature(step + 1, self.settings))
        record: Record = {
            "step": step,
            "loss": loss.item(),
            "faithfulness_loss": faithfulness_loss.item(),
            "n_on": self._n_on(),
            "n_staying": self._n_staying(),
            "tau": tau,
            "sparsity": sparsity,
        }
        self.history.append(record)
        return record

    def _n_on(self) -> int:
        on = binary_masks(self.theta, self.candidates)
        return on.get_num_latents()

    def _n_staying(self) -> int:
        """Nodes that are on, and would be for a while if θ went on as Adam moves it now."""
        ahead = SizeControl.AHEAD * self.settings.steps * self.settings.lr
        staying = {}
        for name, theta in self.theta.items():
            adam = self.optimizer.state[theta]
            step = int(adam["step"])
            size = (adam["exp_avg_sq"] / (1 - self.settings.beta2**step)).sqrt()
            direction = adam["exp_avg"] / (1 - 0.9**step) / (size + 1e-8)
            staying[name] = torch.minimum(theta.detach(), theta.detach() - ahead * direction)
        return binary_masks(staying, self.candidates).get_num_latents()

    def _hold(self, tau: float) -> None:
        """Keep θ where the next step's masks, of temperature τ, still have a slope."""


class ContinuousSparsification(Sparsification):
    """m = σ(τ·θ), with a τ that rises. Source: Savarese et al. 2020."""

    def _soft(self, name: str) -> Float[Tensor, "..."]:
        return soft_mask(self.theta[name], self.tau)

    @torch.no_grad()
    def _hold(self, tau: float) -> None:
        if self.settings.max_logit is not None:
            for theta in self.theta.values():
                theta.clamp_(-self.settings.max_logit / tau, self.settings.max_logit / tau)

    def _n_expected(self, masks: SAEMasks) -> Float[Tensor, ""]:
        """Σ m."""
        return torch.stack([mask.sum() for mask in masks.masks]).sum()


class HardConcrete(Sparsification):
    """Random masks that are exactly 0 or 1 much of the time. Source: Louizos et al. 2018."""

    def _soft(self, name: str) -> Float[Tensor, "..."]:
        theta = self.theta[name]
        place = list(self.theta).index(name)
        seed = (self.settings.seed * 100_003 + len(self.history)) * 101 + place
        noise = torch.rand(theta.shape, generator=torch.Generator().manual_seed(seed))
        return hard_concrete(theta, noise.clamp(1e-6, 1 - 1e-6).to(theta))

    def _n_expected(self, masks: SAEMasks) -> Float[Tensor, ""]:
        """Σ P(m > 0), over the candidates."""
        parts = [
            (probability_on(theta) * self.candidates[name]).sum()
            for name, theta in self.theta.items()
        ]
        return torch.stack(parts).sum()


METHODS: dict[str, type[Sparsification]] = {
    "continuous_sparsification": ContinuousSparsification,
    "hard_concrete": HardConcrete,
}


def sparsification(
    theta: Mapping[str, Float[Tensor, "..."]],
    candidates: Mapping[str, Bool[Tensor, "..."]],
    n_prompts: int,
    settings: MaskSettings,
    **more: Any,
) -> Sparsification:
    """The method that the settings name; arguments as for `Sparsification`."""
    return METHODS[settings.method](theta, candidates, n_prompts, settings, **more)


# ---------------------------------------------------------------------------------------------
# Before and after
# ---------------------------------------------------------------------------------------------


def starting_theta(
    mean_latents: Mapping[str, Float[Tensor, "seq _d_sae"]], settings: MaskSettings
) -> dict[str, Float[Tensor, "*seq _d_sae"]]:
    """θ₀ for every node: ``[seq, d_sae]`` like the means, or ``[d_sae]`` for all positions."""
    theta = {}
    for name, mean in mean_latents.items():
        shape = mean.shape if settings.per_position else mean.shape[1:]
        theta[name] = mean.new_full(shape, settings.theta_init, dtype=torch.float32)
    return theta


def all_nodes(
    theta: Mapping[str, Float[Tensor, "*seq _d_sae"]], *, first: int
) -> dict[str, Bool[Tensor, "*seq _d_sae"]]:
    """Every place of θ is a node, but for BOS' row.

    Args:
        theta: by hook point, ``[seq, d_sae]`` or ``[d_sae]``.
        first: the first position where a node can be: 1 where there is a BOS, else 0.
    """
    nodes = {}
    for name, value in theta.items():
        nodes[name] = torch.ones_like(value, dtype=torch.bool)
        if value.ndim == 2:
            nodes[name][:first] = False
    return nodes


def binary_masks(
    theta: Mapping[str, Float[Tensor, "..."]], candidates: Mapping[str, Bool[Tensor, "..."]]
) -> SAEMasks:
    """Zeros and ones: the candidates with θ > 0."""
    masks = [((value > 0) & candidates[name]).float() for name, value in theta.items()]
    return SAEMasks(list(theta), masks)
