"""A score for every (position, latent): how much does this node matter to the logit difference?

The ground truth is *activation patching*: put the node's value on the patch prompt into the clean
run and see how far the logit difference falls. That is one forward pass per node, and there are a
hundred thousand nodes. The rest are estimates from gradients, a few passes for all nodes together:

- *AtP*, attribution patching: gradient at the clean latents × (clean − patch). A straight line
  through the clean point (Nanda 2023).
- *IG*, integrated gradients: the mean gradient over points on the way from clean to patch × (clean
  − patch), one SAE at a time (Sundararajan et al. 2017; for SAE latents, Marks et al. 2024).
- and two baselines that use no gradient: the largest change of activation, and chance.

All attribute the logit difference of the *spliced* model, the one that circuits are cut from, and
give signed scores: positive means that the node's clean value raises the logit difference.
`baseline` says what "without the node" is: its value on the pair's patch prompt, or its mean over
patch prompts, which is what an ablation with `SAEMasks` puts in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.masks import Scores
from course_utils.circuits.saes import decode
from course_utils.circuits.splice import PatchMeans, SplicedModel, Prefix, batches
from course_utils.prompts.tasks import Task

Baseline = Literal["patch", "mean"]
Aggregate = Literal["mean", "mean_abs"]
"""Over prompts: ``"mean"`` of the signed scores (rank by |mean|), or ``"mean_abs"``, the mean of
|score|.
"""

Latents = dict[str, Float[Tensor, "batch seq d_sae"]]


def atp(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    baseline: Baseline = "patch",
    aggregate: Aggregate = "mean",
    batch_size: int | None = None,
    progress: bool = False,
) -> Scores:
    """Attribution patching: Δ = ∂LD/∂f at the clean latents · (f − f_baseline), all SAEs in one
    pass.

    Args:
        means: needed for ``baseline="mean"`` and for the error policy ``"mean"``.
        baseline: ``"patch"`` or ``"mean"``; with ``"mean"``, the score is the gradient of the mask
            at 1.
        aggregate: over prompts, ``"mean"`` or ``"mean_abs"``.

    Returns:
        Scores ``[seq, d_sae]`` by hook point, in units of the logit difference.
    """
    _check(means, baseline, aggregate)
    total = _Mean(aggregate, len(task))
    size = batch_size or spliced.batch_size(task.seq_len, gradient=True)
    for batch in tqdm(list(batches(task, size)), desc="AtP", disable=not progress):
        run = spliced.run(batch.clean, means=means, lengths=batch.lengths, track_latents=True)
        gradients = torch.autograd.grad(run.logit_diff(batch).sum(), list(run.latents.values()))
        reference = _baseline_latents(spliced, batch, means, baseline)
        for (name, f), gradient in zip(run.latents.items(), gradients):
            total.add(name, gradient * (f - reference[name]))
    return total.scores()


def integrated_gradients(
    spliced: SplicedModel,
    task: Task,
    *,
    steps: int = 10,
    means: PatchMeans | None = None,
    baseline: Baseline = "patch",
    aggregate: Aggregate = "mean",
    batch_size: int | None = None,
    progress: bool = False,
) -> Scores:
    """Integrated gradients, one SAE at a time: the mean gradient at ``steps`` points × (clean −
    baseline).

    The points are f + (j/steps)·(f_baseline − f) for j = 0 … steps − 1, so that one step is AtP.
    For each SAE the scores sum to F(clean) − F(baseline) as the steps grow, where F runs the
    spliced model on the clean prompt with that SAE's latents put in.

    Args and returns as for `atp`; ``baseline="mean"`` is the ablation-matched kind, since means are
    what a mask puts in.

    Raises:
        ValueError: ``steps`` below 1, or ``baseline="mean"`` without ``means``.
    """
    _check(means, baseline, aggregate)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}.")
    total = _Mean(aggregate, len(task))
    at_once = batch_size or spliced.batch_size(task.seq_len, gradient=True)  # prompts × points
    bar = tqdm(total=len(task) * len(spliced.saes), desc="IG", unit="prompt", disable=not progress)
    for batch in batches(task, max(1, at_once // steps)):
        with torch.no_grad():
            clean = spliced.run(batch.clean, means=means, lengths=batch.lengths)
            reference = _baseline_latents(spliced, batch, means, baseline)
        for name, start in clean.prefixes.items():
            change = clean.latents[name] - reference[name]
            total.add(
                name,
                change
                * _mean_gradient(
                    spliced, name, start, batch, clean.latents[name], change, means, steps, at_once
                ),
            )
            bar.update(len(batch))
    bar.close()
    return total.scores()


def _mean_gradient(
    spliced: SplicedModel,
    name: str,
    start: Prefix,
    batch: Task,
    f: Float[Tensor, "batch seq d_sae"],
    change: Float[Tensor, "batch seq d_sae"],
    means: PatchMeans | None,
    steps: int,
    at_once: int,
) -> Float[Tensor, "batch seq d_sae"]:
    """∂LD/∂latents, averaged over the points f − (j/steps)·change.

    A decoder is affine: a point between two latents decodes to the point between what they decode
    to. So the points are taken after the decoder, and the mean gradient goes back through it once.
    Each forward pass starts at this SAE, with as many points at once as fit.
    """
    sae, first = spliced.saes[name], spliced.first
    with torch.no_grad():
        clean, baseline = decode(sae, f[:, first:]), decode(sae, (f - change)[:, first:])
    gradient = torch.zeros_like(clean, dtype=torch.float32)
    for shares in (torch.arange(steps, device=f.device) / steps).split(
        max(1, at_once // len(batch))
    ):
        points = (
            torch.lerp(clean, baseline, shares[:, None, None, None].to(clean))
            .flatten(0, 1)
            .requires_grad_()
        )
        rows = torch.arange(len(batch)).repeat(len(shares))
        run = spliced.run(
            start[rows.to(f.device)], means=means, outputs={name: points}, keep_latents=False
        )
        found = torch.autograd.grad(run.logit_diff(batch[rows]).sum(), points)[0]
        gradient += found.unflatten(0, (len(shares), -1)).sum(0) / steps
    f = f.detach().requires_grad_()
    return torch.autograd.grad(decode(sae, f[:, first:]), f, grad_outputs=gradient.to(clean))[0]


@torch.no_grad()
def activation_patching(
    spliced: SplicedModel,
    task: Task,
    nodes: Iterable[tuple[str, int, int]],
    *,
    means: PatchMeans | None = None,
    baseline: Baseline = "patch",
    aggregate: Aggregate = "mean",
    batch_size: int | None = None,
    progress: bool = False,
) -> Scores:
    """The ground truth for chosen nodes: LD(clean) − LD(clean, with this one node at its baseline
    value).

    Args:
        nodes: (hook point, position, latent) triples, e.g. some of `SAEMasks.nodes`.

    Returns:
        Scores ``[seq, d_sae]`` by hook point; NaN for the nodes that were not asked for.

    Raises:
        ValueError: a node at a hook point that is not spliced.
    """
    _check(means, baseline, aggregate)
    nodes = list(nodes)
    unknown = {hook for hook, _, _ in nodes} - set(spliced.hook_points)
    if unknown:
        raise ValueError(
            f"nodes: {sorted(unknown)} not spliced; this model has SAEs at {spliced.hook_points}."
        )
    values = {node: torch.zeros(()) for node in nodes}
    scores: dict[str, Tensor] = {}
    bar = tqdm(
        total=len(nodes) * len(task),
        desc="activation patching",
        unit="prompt",
        disable=not progress,
    )
    for batch in batches(task, batch_size or spliced.batch_size(task.seq_len)):
        run = spliced.run(batch.clean, means=means, lengths=batch.lengths)
        clean = run.logit_diff(batch)
        reference = _baseline_latents(spliced, batch, means, baseline)
        for name, f in run.latents.items():
            scores.setdefault(name, torch.full(f.shape[1:], torch.nan, device=f.device))
        for node in nodes:
            name, position, latent = node
            f = run.latents[name].clone()
            f[:, position, latent] = reference[name].expand_as(f)[:, position, latent]
            patched = spliced.run(
                run.prefixes[name], means=means, latents={name: f}, keep_latents=False
            )
            change = clean - patched.logit_diff(batch)
            values[node] = (
                values[node] + (change.abs() if aggregate == "mean_abs" else change).sum().cpu()
            )
            bar.update(len(batch))
    bar.close()
    for (name, position, latent), value in values.items():
        scores[name][position, latent] = value / len(task)
    return scores


@torch.no_grad()
def largest_change(
    spliced: SplicedModel,
    task: Task,
    *,
    means: PatchMeans | None = None,
    batch_size: int | None = None,
) -> Scores:
    """A baseline without gradients: the mean over pairs of |clean activation − patch
    activation|.
    """
    total = _Mean("mean_abs", len(task))
    for batch in batches(task, batch_size or spliced.batch_size(task.seq_len)):
        clean, patch = (
            spliced.run(tokens, means=means, lengths=batch.lengths).latents
            for tokens in (batch.clean, batch.patch)
        )
        for name in clean:
            total.add(name, clean[name] - patch[name])
    return total.scores()


@torch.no_grad()
def random_scores(
    spliced: SplicedModel,
    task: Task,
    *,
    seed: int,
    means: PatchMeans | None = None,
    batch_size: int | None = None,
) -> Scores:
    """Chance: a random score in (0, 1] for every node that fires on some clean or patch prompt, 0
    for the rest.

    Drawing from all nodes would be too weak a control: nearly all of them never fire on the task.
    """
    fires: dict[str, Tensor] = {}
    for batch in batches(task, batch_size or spliced.batch_size(task.seq_len)):
        for tokens in (batch.clean, batch.patch):
            for name, f in spliced.run(tokens, means=means, lengths=batch.lengths).latents.items():
                fires[name] = fires.get(name, False) | (f != 0).any(0)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (1 - torch.rand(on.shape, generator=generator)).to(on.device) * on
        for name, on in fires.items()
    }


def random_nodes(scores: Scores, n: int, *, seed: int) -> Sequence[tuple[str, int, int]]:
    """``n`` different nodes with a score other than 0, drawn at random: a sample to check scores
    on.
    """
    nodes = [(name, *index) for name, score in scores.items() for index in score.nonzero().tolist()]
    if n > len(nodes):
        raise ValueError(
            f"n={n} nodes were wanted, and only {len(nodes)} have a score other than 0."
        )
    order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed))[:n]
    return [nodes[i] for i in order.tolist()]


def _check(means: PatchMeans | None, baseline: str, aggregate: str) -> None:
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be 'patch' or 'mean', not {baseline!r}.")
    if aggregate not in get_args(Aggregate):
        raise ValueError(f"aggregate must be 'mean' or 'mean_abs', not {aggregate!r}.")
    if baseline == "mean" and means is None:
        raise ValueError("baseline='mean' needs means=spliced.patch_means(task.patch).")


def _baseline_latents(
    spliced: SplicedModel, batch: Task, means: PatchMeans | None, baseline: Baseline
) -> Latents:
    if baseline == "mean":
        return means.latents
    with torch.no_grad():
        return spliced.run(batch.patch, means=means, lengths=batch.lengths).latents


class _Mean:
    """A mean over prompts, hook point by hook point, batch by batch."""

    def __init__(self, aggregate: Aggregate, n: int):
        self.aggregate, self.n, self.sums = aggregate, n, {}

    def add(self, name: str, values: Float[Tensor, "batch seq d_sae"]) -> None:
        values = values.detach().abs() if self.aggregate == "mean_abs" else values.detach()
        self.sums[name] = self.sums.get(name, 0) + values.float().sum(0)

    def scores(self) -> dict[str, Float[Tensor, "seq d_sae"]]:
        return {name: total / self.n for name, total in self.sums.items()}
