"""A score for every (position, latent): how much does this node matter to the logit difference?

The ground truth is *activation patching*: put the node's value on the patch prompt into the clean
run and see how far the logit difference falls. That is one forward pass per node, and there are a
hundred thousand nodes. The rest are estimates from gradients, a few passes for all nodes together:

- *AtP*, attribution patching: gradient at the clean latents × (clean − patch). A straight line
  through the clean point (Nanda 2023).
- *IG*, integrated gradients: the mean gradient over points on the way from clean to patch × (clean
  − patch), one SAE at a time (Sundararajan et al. 2017; for SAE latents, Marks et al. 2024).
- and two baselines that use no gradient: the largest change of activation, and chance.

A score has variants, which rank nodes differently: what "without the node" is, and what becomes of
the signs. `variants` gives them all from the same passes; which is best is to be chosen on prompts
that are not reported on.

All attribute the logit difference of the *spliced* model, the one that circuits are cut from, and
give signed scores: positive means that the node's clean value raises the logit difference.
`AttributionSettings.baseline` says what "without the node" is: its value on the pair's patch
prompt, or its mean over patch prompts, which is what an ablation with `SAEMasks` puts in its place.

Positions count the columns of the tokens, BOS included. BOS is never spliced: its scores are 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.backward import DroppedLayer, layers_dropped
from course_utils.circuits.masks import Node, SAEMasks, Scores, ablate
from course_utils.circuits.saes import decode
from course_utils.circuits.settings import require, with_changes
from course_utils.circuits.splice import PatchMeans, Run, SplicedModel, batches
from course_utils.prompts.tasks import Task

Baseline = Literal["patch", "mean"]
Aggregate = Literal["mean", "mean_abs"]

WITHOUT_STEPS = ("baseline", "aggregate", "batch_size", "progress")
"""The settings of `atp` and `activation_patching`, which take no steps."""


@dataclass(frozen=True)
class AttributionSettings:
    """How nodes are scored.

    Attributes:
        baseline: what a node has where it is "not there": ``"patch"``, its value on the pair's
            patch prompt, or ``"mean"``, its mean over patch prompts, as when a mask ablates it.
        aggregate: over prompts: ``"mean"`` of the signed scores (rank by |mean|), or
            ``"mean_abs"``, the mean of |score|.
        steps: points on the way from clean to baseline, for `integrated_gradients` only.
        batch_size: prompts in one forward pass (for `integrated_gradients`, prompts × points); None
            for as many as fit.
        progress: show a bar.

    Raises:
        ValueError: a setting out of range.
    """

    baseline: Baseline = "patch"
    aggregate: Aggregate = "mean"
    steps: int = 10
    batch_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        require(self, "baseline", self.baseline in get_args(Baseline), "'patch' or 'mean'")
        require(self, "aggregate", self.aggregate in get_args(Aggregate), "'mean' or 'mean_abs'")
        require(self, "steps", self.steps >= 1, "1 or more")
        some = self.batch_size is None or self.batch_size >= 1
        require(self, "batch_size", some, "1 or more (or None)")

    def check_means(self, means: PatchMeans | None, masks: SAEMasks | None = None) -> None:
        """Raise ValueError if the baseline needs means and there are none, or if nodes are to be
        scored in a circuit and the baseline is not what ablates the others.
        """
        if masks is not None and self.baseline != "mean":
            raise ValueError("masks ablate nodes by means: score in them with baseline='mean'.")
        if self.baseline == "mean" and means is None:
            raise ValueError("baseline='mean' needs means=spliced.patch_means(task.patch).")


# ---------------------------------------------------------------------------------------------
# From gradients
# ---------------------------------------------------------------------------------------------


def atp(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    masks: SAEMasks | None = None,
    grad_drop: bool = False,
    settings: AttributionSettings | None = None,
    **changes: Any,
) -> Scores:
    """Attribution patching: Δ = ∂LD/∂f at the clean latents · (f − f_baseline), all SAEs in one
    pass.

    Args:
        means: needed for ``baseline="mean"`` and for the error policy ``"mean"``.
        masks: score the nodes of this circuit with all others ablated, as when attribution is
            iterated; all others score 0. Ablation is by means, so this wants ``baseline="mean"``.
        grad_drop: average sizes over one backward pass per layer, in which that layer passes no
            gradient back (Kramár et al. 2024, AtP*; see `backward.layers_dropped`). Scores are
            sizes then, in each prompt.
        settings: all settings at once; or name some: ``atp(spliced, task, means=means,
            baseline="mean")``. With this baseline, the score is the gradient of the mask at 1.

    Returns:
        Scores ``[seq, d_sae]`` by hook point, in units of the logit difference.

    Raises:
        ValueError: a setting out of range; ``baseline="mean"`` without ``means``; ``masks`` with
            another baseline.
        TypeError: a setting that there is not.
    """
    settings = with_changes(settings or AttributionSettings(), changes, known=WITHOUT_STEPS)
    return _atp(spliced, task, means, settings, masks, grad_drop).means(settings.aggregate)


def _atp(
    spliced: SplicedModel,
    task: Task,
    means: PatchMeans | None,
    settings: AttributionSettings,
    masks: SAEMasks | None = None,
    grad_drop: bool = False,
) -> _MeanOverPrompts[str]:
    settings.check_means(means, masks)
    size = settings.batch_size or spliced.batch_size(task.seq_len, gradient=True)
    total: _MeanOverPrompts[str] = _MeanOverPrompts(len(task))
    compared = _compare(
        spliced, task, means, settings.baseline, size, masks=masks, track_latents=True
    )
    dropping = layers_dropped(spliced.stack) if grad_drop else nullcontext(DroppedLayer())
    with _bar("AtP", len(task), settings) as bar, dropping as dropped:
        for pairs in compared:
            for name, scores in _scores_of(pairs, dropped, grad_drop).items():
                total.add(name, scores)
            bar.update(len(pairs.task))
    return total


def _scores_of(
    pairs: _Compared, dropped: DroppedLayer, grad_drop: bool
) -> dict[str, Float[Tensor, "batch seq d_sae"]]:
    """Gradient · change; with ``grad_drop``, the mean size over passes that drop one layer each."""
    latents, ld = list(pairs.clean.latents.values()), pairs.clean.logit_diff(pairs.task).sum()
    passes = list(range(pairs.spliced.stack.n_layers)) if grad_drop else [None]
    found: dict[str, Tensor] = {}
    for dropped.layer in passes:
        last = dropped.layer == passes[-1]
        gradients = torch.autograd.grad(ld, latents, retain_graph=not last)
        for name, gradient in zip(pairs.clean.latents, gradients, strict=True):
            score = (gradient * pairs.change(name)).detach()
            score = score.abs() / len(passes) if grad_drop else score
            found[name] = found[name] + score if name in found else score
    return found


def integrated_gradients(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    masks: SAEMasks | None = None,
    settings: AttributionSettings | None = None,
    **changes: Any,
) -> Scores:
    """Integrated gradients, one SAE at a time: the mean gradient at ``steps`` points × (clean −
    baseline).

    The points are f + (j/steps)·(f_baseline − f) for j = 0 … steps − 1, so that one step is AtP.
    For each SAE the scores sum to F(clean) − F(baseline) as the steps grow, where F runs the
    spliced model on the clean prompt with that SAE's latents put in.

    Args and returns as for `atp`; ``baseline="mean"`` is the ablation-matched kind, since means are
    what a mask puts in.

    Raises:
        ValueError: a setting out of range; ``baseline="mean"`` without ``means``; ``masks`` with
            another baseline.
        TypeError: a setting that there is not.
    """
    settings = with_changes(settings or AttributionSettings(), changes)
    return _integrated_gradients(spliced, task, means, settings, masks).means(settings.aggregate)


def _integrated_gradients(
    spliced: SplicedModel,
    task: Task,
    means: PatchMeans | None,
    settings: AttributionSettings,
    masks: SAEMasks | None = None,
) -> _MeanOverPrompts[str]:
    settings.check_means(means, masks)
    at_once = settings.batch_size or spliced.batch_size(task.seq_len, gradient=True)
    size = max(1, at_once // settings.steps)
    total: _MeanOverPrompts[str] = _MeanOverPrompts(len(task))
    with _bar("IG", len(task) * len(spliced.saes), settings) as bar:
        for pairs in _compare(spliced, task, means, settings.baseline, size, masks=masks):
            for name in pairs.clean.latents:
                gradient = _mean_gradient(pairs, name, settings.steps, at_once)
                total.add(name, gradient * pairs.change(name))
                bar.update(len(pairs.task))
    return total


VARIANTS = ("|mean|", "positive mean", "mean of |·|")
"""What becomes of the signs of a node's scores over prompts: the size of their mean; their mean, so
that nodes which lower the logit difference come last; the mean of their sizes.
"""


def variants(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans,
    settings: AttributionSettings | None = None,
    **changes: Any,
) -> dict[str, Scores]:
    """AtP and IG in all variants, each to be ranked with the largest score first
    (``SAEMasks.from_scores(…, rank="signed")``).

    Args:
        means: of the patch prompts, one of the two baselines.
        settings: how many steps and prompts at once; ``baseline`` and ``aggregate`` are all tried.

    Returns:
        Scores by name, such as ``"IG to means, mean of |·|"``: AtP and IG, to the patch and to the
        means, in each of `VARIANTS`.

    Raises:
        ValueError: a setting out of range.
        TypeError: a setting that there is not.
    """
    settings = with_changes(settings or AttributionSettings(), changes)
    found = {}
    for method, run in (("AtP", _atp), ("IG", _integrated_gradients)):
        for baseline, end in (("patch", "patch"), ("mean", "means")):
            total = run(spliced, task, means, with_changes(settings, {"baseline": baseline}))
            mean, mean_abs = total.means("mean"), total.means("mean_abs")
            size = {name: score.abs() for name, score in mean.items()}
            for variant, scores in zip(VARIANTS, (size, mean, mean_abs), strict=True):
                found[f"{method} to {end}, {variant}"] = scores
    return found


@torch.no_grad()
def effect_of_baseline(
    spliced: SplicedModel, task: Task, *, means: PatchMeans | None = None, baseline: Baseline
) -> dict[str, float]:
    """F(clean) − F(baseline) of each SAE: how far the mean logit difference falls when all latents
    of one SAE have their baseline values. As steps grow, the scores of `integrated_gradients` add
    up to it (the completeness axiom, Sundararajan et al. 2017).
    """
    total: _MeanOverPrompts[str] = _MeanOverPrompts(len(task))
    for pairs in _compare(spliced, task, means, baseline, spliced.batch_size(task.seq_len)):
        clean = pairs.clean.logit_diff(pairs.task)
        for name, f in pairs.clean.latents.items():
            total.add(name, clean - pairs.logit_diff_with(name, f - pairs.change(name)))
    return {name: fall.item() for name, fall in total.means("mean").items()}


def _mean_gradient(
    pairs: _Compared, name: str, steps: int, at_once: int
) -> Float[Tensor, "batch seq d_sae"]:
    """∂LD/∂latents of one SAE, averaged over points on the way from clean to baseline.

    A decoder is affine: a point between two latents decodes to the point between what they decode
    to. So the points are taken after the decoder, and the mean gradient goes back through it once.
    Each forward pass starts at this SAE, with as many points at once as fit.
    """
    sae, f = pairs.spliced.saes[name], pairs.clean.latents[name]
    with torch.no_grad():
        clean, baseline = decode(sae, f), decode(sae, f - pairs.change(name))
    mean_gradient = torch.zeros_like(clean, dtype=torch.float32)
    fractions = torch.arange(steps, device=f.device) / steps
    for some in fractions.split(max(1, at_once // len(f))):
        points = torch.lerp(clean, baseline, some[:, None, None, None].to(clean)).flatten(0, 1)
        gradient = pairs.gradient_at(name, points.requires_grad_())
        mean_gradient += gradient.unflatten(0, (len(some), -1)).sum(0) / steps
    f = f.detach().requires_grad_()
    return torch.autograd.grad(decode(sae, f), f, grad_outputs=mean_gradient.to(clean))[0]


def shrinking_sizes(n_start: int, sizes: Iterable[int], rounds: int) -> list[int]:
    """The sizes of a circuit that attribution is iterated on: from ``n_start`` down to the smallest
    of ``sizes`` by the same factor in each of ``rounds`` rounds, and through every one of
    ``sizes``.

    Raises:
        ValueError: no sizes, one below 1 or above ``n_start``; no rounds.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or wanted[-1] > n_start or rounds < 1:
        raise ValueError(
            f"wanted sizes from 1 to n_start={n_start} and one round or more, not {wanted} in "
            f"{rounds} rounds."
        )
    factor = wanted[0] / n_start
    even = {round(n_start * factor ** (i / rounds)) for i in range(1, rounds + 1)}
    return sorted(even | set(wanted), reverse=True)


# ---------------------------------------------------------------------------------------------
# Exactly, node by node
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def activation_patching(
    spliced: SplicedModel,
    task: Task,
    nodes: Iterable[Node],
    *,
    means: PatchMeans | None = None,
    settings: AttributionSettings | None = None,
    **changes: Any,
) -> Scores:
    """The exact effect of single nodes: how far LD falls when one alone has its baseline value.

    Args:
        nodes: (hook point, position, latent), each with a position. One that is named twice counts
            once.
        means, settings: as for `atp`.

    Returns:
        Scores ``[seq, d_sae]`` by hook point; NaN for the nodes that were not asked for.

    Raises:
        ValueError: a node that is not there (a hook point without an SAE, BOS, a position beyond
            the prompts, a latent that the SAE does not have), or one without a position; a setting
            out of range; ``baseline="mean"`` without ``means``.
        TypeError: a setting that there is not.
    """
    settings = with_changes(settings or AttributionSettings(), changes, known=WITHOUT_STEPS)
    settings.check_means(means)
    nodes = list(dict.fromkeys(nodes))
    for node in nodes:
        _check_node(node, spliced, task)
    size = settings.batch_size or spliced.batch_size(task.seq_len)
    total: _MeanOverPrompts[Node] = _MeanOverPrompts(len(task))
    with _bar("activation patching", len(nodes) * len(task), settings) as bar:
        for pairs in _compare(spliced, task, means, settings.baseline, size):
            clean = pairs.clean.logit_diff(pairs.task)
            for node in nodes:
                total.add(node, clean - pairs.logit_diff_without(node))
                bar.update(len(pairs.task))
    scores = {
        name: torch.full((task.seq_len, sae.cfg.d_sae), torch.nan, device=sae.W_dec.device)
        for name, sae in spliced.saes.items()
    }
    for (name, position, latent), effect in total.means(settings.aggregate).items():
        scores[name][position, latent] = effect
    return scores


def _check_node(node: Node, spliced: SplicedModel, task: Task) -> None:
    name, position, latent = node
    if name not in spliced.saes:
        raise ValueError(
            f"nodes: {name} is not spliced; this model has SAEs at "
            f"{', '.join(spliced.hook_points)}."
        )
    if position is None:
        raise ValueError(
            f"nodes: {node} has no position, and activation patching scores one position at a "
            f"time: name each of {spliced.first} to {task.seq_len - 1}."
        )
    if not spliced.first <= position < task.seq_len:
        bos = " (column 0 is BOS, which is never spliced)" if spliced.first else ""
        raise ValueError(
            f"nodes: {node} has position {position}; these prompts have positions {spliced.first} "
            f"to {task.seq_len - 1}{bos}."
        )
    d_sae = spliced.saes[name].cfg.d_sae
    if not 0 <= latent < d_sae:
        raise ValueError(f"nodes: {node} has latent {latent}; the SAE has 0 to {d_sae - 1}.")


# ---------------------------------------------------------------------------------------------
# Baselines without gradients
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def largest_change(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    batch_size: int | None = None,
) -> Scores:
    """A baseline without gradients: the mean over pairs of |clean − patch activation|.

    Args:
        means: needed for the error policy ``"mean"``.
        batch_size: prompt pairs at once; None for as many as fit.

    Returns:
        Scores ``[seq, d_sae]`` by hook point, in units of the latents: 0 or more.
    """
    size = batch_size or spliced.batch_size(task.seq_len)
    total: _MeanOverPrompts[str] = _MeanOverPrompts(len(task))
    for pairs in _compare(spliced, task, means, "patch", size):
        for name in pairs.clean.latents:
            total.add(name, pairs.change(name))
    return total.means("mean_abs")


@torch.no_grad()
def random_scores(
    spliced: SplicedModel,
    task: Task,
    *,
    seed: int,
    means: PatchMeans | None = None,
    batch_size: int | None = None,
) -> Scores:
    """Chance: a random score in (0, 1] for every node that fires on some clean or patch prompt.

    The rest have 0. Drawing from all nodes would be too weak a control: nearly all of them never
    fire on the task.

    Args:
        seed: of the scores.
        means: needed for the error policy ``"mean"``.
        batch_size: prompt pairs at once; None for as many as fit.

    Returns:
        Scores ``[seq, d_sae]`` by hook point.
    """
    size = batch_size or spliced.batch_size(task.seq_len)
    fires: dict[str, Tensor] = {}
    for pairs in _compare(spliced, task, means, "patch", size):
        for latents in (pairs.clean.latents, pairs.baseline):
            for name, f in latents.items():
                here = (f != 0).any(0)
                fires[name] = fires[name] | here if name in fires else here
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, on in fires.items():
        above_zero = 1 - torch.rand(on.shape, generator=generator)  # rand is in [0, 1)
        scores[name] = above_zero.to(on.device) * on
    return scores


def random_nodes(scores: Scores, n: int, *, seed: int) -> list[Node]:
    """``n`` different nodes with a score other than 0, drawn at random: a sample to check scores
    on.

    Raises:
        ValueError: fewer than ``n`` nodes have a score.
    """
    nodes: list[Node] = []
    for name, score in scores.items():
        nodes += [(name, position, latent) for position, latent in score.nonzero().tolist()]
    if n > len(nodes):
        raise ValueError(
            f"n={n} nodes were wanted, and only {len(nodes)} have a score other than 0."
        )
    order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed))[:n]
    return [nodes[i] for i in order.tolist()]


# ---------------------------------------------------------------------------------------------
# What they share
# ---------------------------------------------------------------------------------------------


@dataclass
class _Compared:
    """A batch of prompt pairs: the clean run, and what its latents are compared with.

    Attributes:
        task: the pairs of this batch.
        clean: the spliced model on the clean prompts.
        baseline: by hook point, ``[batch, seq, d_sae]``, or ``[seq, d_sae]`` for means.
        masks: the circuit in which nodes are scored; None for the whole spliced model.
    """

    spliced: SplicedModel
    task: Task
    means: PatchMeans | None
    clean: Run
    baseline: Mapping[str, Float[Tensor, "*batch seq d_sae"]]
    masks: SAEMasks | None = None

    def change(self, name: str) -> Float[Tensor, "batch seq d_sae"]:
        """Clean latents − baseline."""
        return self.clean.latents[name] - self.baseline[name]

    def gradient_at(
        self, name: str, points: Float[Tensor, "points_x_batch seq d_model"]
    ) -> Float[Tensor, "points_x_batch seq d_model"]:
        """∂LD/∂(what an SAE decodes) at several points for each prompt of the batch."""
        rows = torch.arange(len(self.task)).repeat(len(points) // len(self.task))
        run = self.spliced.run(
            self.clean.prefixes[name][rows.to(points.device)],
            masks=self.masks,
            means=self.means,
            outputs={name: points},
            keep_latents=False,
        )
        return torch.autograd.grad(run.logit_diff(self.task[rows]).sum(), points)[0]

    def logit_diff_without(self, node: Node) -> Float[Tensor, " batch"]:
        """LD on the clean prompts when one node has its baseline value."""
        name, position, latent = node
        f = self.clean.latents[name].clone()
        f[:, position, latent] = self.baseline[name][..., position, latent]
        return self.logit_diff_with(name, f)

    def logit_diff_with(
        self, name: str, f: Float[Tensor, "batch seq d_sae"]
    ) -> Float[Tensor, " batch"]:
        """LD on the clean prompts when one SAE has these latents."""
        prefix = self.clean.prefixes[name]  # nothing moves before the node's own SAE
        run = self.spliced.run(prefix, means=self.means, latents={name: f}, keep_latents=False)
        return run.logit_diff(self.task)


def _compare(
    spliced: SplicedModel,
    task: Task,
    means: PatchMeans | None,
    baseline: Baseline,
    size: int,
    *,
    masks: SAEMasks | None = None,
    track_latents: bool = False,
) -> Iterator[_Compared]:
    """The task in batches of ``size`` pairs, with the clean run and the baseline of each.

    ``track_latents`` builds a graph from the clean latents on, so that they have gradients. With
    ``masks``, the clean run is that of a circuit, and its latents are those that the mask lets
    through; tracked ones are from before the mask, whose gradients stop where it is 0.
    """
    for batch in batches(task, size):
        with torch.set_grad_enabled(track_latents):
            prefix = spliced.prefix(batch.clean, lengths=batch.lengths)
            clean = spliced.run(prefix, masks=masks, means=means, track_latents=track_latents)
        if masks is not None and means is not None and not track_latents:
            for name, f in clean.latents.items():
                clean.latents[name] = ablate(f, masks[name], means.latents[name])
        if baseline == "mean":
            assert means is not None, "check_means comes first"
            latents = means.latents
        else:
            latents = _patch_latents(spliced, batch, means)
        yield _Compared(spliced, batch, means, clean, latents, masks)


@torch.no_grad()
def _patch_latents(
    spliced: SplicedModel, task: Task, means: PatchMeans | None
) -> dict[str, Float[Tensor, "batch seq d_sae"]]:
    prefix = spliced.prefix(task.patch, lengths=task.lengths)
    return spliced.run(prefix, means=means).latents


Key = TypeVar("Key", bound=Hashable)


class _MeanOverPrompts(Generic[Key]):
    """Means over prompts, summed up batch by batch: by hook point, or by node."""

    def __init__(self, n_prompts: int):
        self.n_prompts = n_prompts
        self.sums: dict[Key, Tensor] = {}
        self.sums_abs: dict[Key, Tensor] = {}

    def add(self, key: Key, values: Float[Tensor, "batch *rest"]) -> None:
        """Values of some prompts; each prompt is to be added once."""
        values = values.detach().float()
        for sums, each in ((self.sums, values), (self.sums_abs, values.abs())):
            total = each.sum(0)
            sums[key] = sums[key] + total if key in sums else total

    def means(self, aggregate: Aggregate) -> dict[Key, Float[Tensor, "..."]]:
        """The mean of each key over all prompts, of the values or of their sizes."""
        sums = self.sums if aggregate == "mean" else self.sums_abs
        return {key: total / self.n_prompts for key, total in sums.items()}


def _bar(title: str, total: int, settings: AttributionSettings) -> tqdm:
    return tqdm(total=total, desc=title, unit="prompt", disable=not settings.progress)
