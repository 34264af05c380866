"""Attention heads scored from gradients: AtP, and what AtP* and RelP mend.

`heads.head_effects` patches one node at a time. Attribution patching (AtP) scores all at once, as
gradient × (clean − patch). It is wrong where the way from clean to patch is not straight:

- *Saturation.* A query acts through a softmax. Where one key has all the attention, small changes
  of the query change nothing, and the gradient is 0; the patch may well change everything. The *QK
  fix* computes the patched pattern, and takes the gradient after the softmax.
- *Cancellation.* A direct effect and one by way of later layers may cancel in the gradient, though
  not in truth. *GradDrop* averages the sizes of scores over backward passes that drop one layer
  each.

Both together are AtP* (Kramár et al. 2024, arXiv 2403.00745). *RelP* is the cheap rival (arXiv
2508.21258) and integrated gradients the costly one. `effect_bound` is AtP*'s diagnostic: how large
the effect of a node that nobody patched may be.

Scores are per prompt, ``[n, layers, heads, seq]`` by kind of node, and positive where the clean
value raises the logit difference; with GradDrop they are sizes. What comes of their signs over
prompts is up to the reader of the scores: `of_nodes` gives both means.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.backward import frozen_patterns, layers_dropped, relevance
from course_utils.circuits.heads import (
    Attention,
    HeadNode,
    HeadRun,
    Heads,
    Kind,
    attention_logits,
    require_one_length,
)
from course_utils.circuits.splice import batches
from course_utils.prompts.tasks import Task

HeadScores = dict[Kind, Float[Tensor, "n layers heads seq"]]
"""By kind; keys and values have ``n_kv_heads`` in the place of heads. BOS scores 0."""
Rule = Literal["gradient", "relp"]


def head_atp(
    heads: Heads,
    task: Task,
    *,
    qk_fix: bool = False,
    grad_drop: bool = False,
    rule: Rule = "gradient",
    batch_size: int = 16,
    progress: bool = False,
) -> HeadScores:
    """Scores of all outputs, queries, keys and values, from one forward pass and one backward pass
    (with ``grad_drop``, one per layer).

    Args:
        qk_fix: take queries and keys through their softmax exactly: Σ ∂LD/∂pattern · (pattern −
            pattern with the patched query or key) (AtP*, section 3.1.1). Outputs and values are
            linear here and need no fix.
        grad_drop: mean of the sizes over passes that drop one layer each: Σ|·|/(layers − 1), since
            a node gets nothing where its own layer is dropped (AtP*, section 3.1.2).
        rule: ``"relp"`` for RelP's backward rules. Its patterns are constants, so that queries and
            keys score 0 there.

    Raises:
        ValueError: padded prompts; an unknown rule.
        LabError: a model that RelP does not know.
    """
    require_one_length(task)
    if rule not in ("gradient", "relp"):
        raise ValueError(f"rule must be 'gradient' or 'relp', not {rule!r}.")
    found: dict[Kind, list[Tensor]] = {"out": [], "query": [], "key": [], "value": []}
    with tqdm(total=len(task), desc="AtP of heads", unit="prompt", disable=not progress) as bar:
        for batch in batches(task, batch_size):
            patch = heads.run(batch.patch)
            for kind, scores in _batch_scores(heads, batch, patch, qk_fix, grad_drop, rule).items():
                found[kind].append(scores.cpu())
            bar.update(len(batch))
    return {kind: torch.cat(scores) for kind, scores in found.items()}


def _batch_scores(
    heads: Heads, task: Task, patch: HeadRun, qk_fix: bool, grad_drop: bool, rule: Rule
) -> HeadScores:
    stack, n_layers = heads.stack, heads.n_layers
    rules = relevance(stack, patterns=False) if rule == "relp" else nullcontext()
    changes = frozen_patterns(n_layers) if rule == "relp" else None
    with rules, layers_dropped(stack) as dropped:
        clean = heads.run(task.clean, changes=changes, track=True)
        ld = clean.logit_diff(task).sum()
        kept = [clean.attention[layer] for layer in range(n_layers)]
        wanted = [
            part
            for seen in kept
            for part in (seen.query, seen.key, seen.value, seen.out, seen.pattern)
        ]
        changed = (
            None
            if not qk_fix
            else [_pattern_changes(seen, patch.attention[layer]) for layer, seen in enumerate(kept)]
        )
        total: HeadScores = {}
        for dropped.layer in range(n_layers) if grad_drop else (None,):
            scores = _scores(heads, kept, patch, _gradients(ld, wanted), changed)
            for kind, each in scores.items():
                share = each.abs() / (n_layers - 1) if grad_drop else each
                total[kind] = total[kind] + share if kind in total else share
    return total


def drop_scores(
    heads: Heads, task: Task, nodes: Sequence[HeadNode]
) -> Float[Tensor, "layers nodes n"]:
    """AtP's signed scores of outputs in each backward pass of GradDrop, where one layer is dropped:
    which layer's response hides what a node does.

    Raises:
        ValueError: padded prompts; a node that is no output, or is not there.
    """
    require_one_length(task)
    rows = [heads.row(node) for node in nodes]
    if any(node.kind != "out" for node in nodes):
        raise ValueError("which layer hides a node is asked of outputs: kind='out'.")
    patch = heads.run(task.patch)
    with layers_dropped(heads.stack) as dropped:
        clean = heads.run(task.clean, track=True)
        outs = [clean.attention[layer].out for layer in range(heads.n_layers)]
        changes = [out - patch.attention[layer].out for layer, out in enumerate(outs)]
        ld, found = clean.logit_diff(task).sum(), []
        for dropped.layer in range(heads.n_layers):
            gradients = _gradients(ld, outs)
            scores = [_dot(g, change) for g, change in zip(gradients, changes, strict=True)]
            picked = [
                scores[node.layer][:, node.head, row] for node, row in zip(nodes, rows, strict=True)
            ]
            found.append(torch.stack(picked).detach().cpu())
    return torch.stack(found)


def _gradients(ld: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """∂LD/∂ each tensor; 0 where nothing flows back (to a pattern that is a constant)."""
    reached = [part for part in wanted if part.requires_grad]
    found = iter(torch.autograd.grad(ld, reached, retain_graph=True, allow_unused=True))
    gradients = [next(found) if part.requires_grad else None for part in wanted]
    return [
        torch.zeros_like(part) if gradient is None else gradient
        for gradient, part in zip(gradients, wanted, strict=True)
    ]


def _scores(
    heads: Heads,
    kept: Sequence[Attention],
    patch: HeadRun,
    gradients: Sequence[Tensor],
    changed: Sequence[tuple[Tensor, Tensor]] | None,
) -> HeadScores:
    """∂LD/∂node · (clean − patch) for each kind, layer by layer."""
    found: dict[Kind, list[Tensor]] = {"out": [], "query": [], "key": [], "value": []}
    for layer, seen in enumerate(kept):
        other = patch.attention[layer]
        d_query, d_key, d_value, d_out, d_pattern = gradients[5 * layer : 5 * layer + 5]
        found["out"].append(_with_bos(heads, _dot(d_out, seen.out - other.out)))
        found["value"].append(_dot(d_value, seen.value - other.value))
        if changed is None:
            found["query"].append(_with_bos(heads, _dot(d_query, seen.query - other.query)))
            found["key"].append(_dot(d_key, seen.key - other.key))
        else:
            by_query, by_key = changed[layer]
            found["query"].append(_with_bos(heads, _dot(d_pattern, by_query)))
            per_head = (d_pattern[:, :, None] * by_key).sum((-1, -2))  # [batch, heads, position]
            grouped = per_head.unflatten(1, (heads.n_kv_heads, heads.group)).sum(2)
            found["key"].append(grouped)
    return {kind: torch.stack(scores, dim=1).detach() for kind, scores in found.items()}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b.detach().float()).sum(-1)


def _with_bos(heads: Heads, scores: Float[Tensor, "batch heads seq"]) -> Tensor:
    """Positions as the tokens have them: 0 in front where BOS is."""
    return torch.nn.functional.pad(scores, (heads.first, 0))


@torch.no_grad()
def _pattern_changes(
    clean: Attention, patch: Attention
) -> tuple[Float[Tensor, "batch heads seq seq_k"], Float[Tensor, "batch heads seq_k seq seq_k"]]:
    """Clean pattern − pattern with a patched query, or with one patched key.

    The second has a dimension for the position whose key is patched, before the pattern's own two.
    """
    seen = clean.logits.isfinite()
    with_query = _logits(clean, patch.query, clean.key, seen).softmax(-1)
    with_keys = _logits(clean, clean.query, patch.key, seen)  # column p: the logit of patched key p
    n = with_keys.shape[-1]
    one_key = torch.eye(n, dtype=torch.bool, device=seen.device)[:, None, :]  # [p, 1, column]
    logits = torch.where(one_key, with_keys[:, :, None], clean.logits[:, :, None])
    pattern = clean.pattern.float()
    return pattern - with_query, pattern[:, :, None] - logits.softmax(-1)


def _logits(clean: Attention, query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
    """Logits of other queries or keys, scaled as the clean ones are."""
    return attention_logits(query, key, seen, clean.scaling, clean.softcap)


def head_ig(
    heads: Heads,
    task: Task,
    kind: Kind,
    *,
    steps: int = 5,
    layers: Collection[int] | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Float[Tensor, "n layers heads seq"]:
    """Integrated gradients of one kind of node, one layer at a time: all nodes of a layer go from
    clean to patch together, in ``steps`` points, at the middle of each step.

    Args:
        layers: of which layers; all by default. Scores of the others are NaN.

    Raises:
        ValueError: padded prompts; no step; a layer that is not there, or none.
    """
    require_one_length(task)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}.")
    wanted = set(range(heads.n_layers) if layers is None else layers)
    if not wanted or not wanted <= set(range(heads.n_layers)):
        raise ValueError(f"layers: one or more of 0 to {heads.n_layers - 1}, not {sorted(wanted)}.")
    found = []
    total = len(task) * len(wanted)
    with tqdm(total=total, desc=f"IG of {kind}", unit="prompt", disable=not progress) as bar:
        for batch in batches(task, batch_size):
            clean, patch = heads.run(batch.clean), heads.run(batch.patch)
            scores = {}
            for layer in sorted(wanted):
                scores[layer] = _layer_ig(heads, batch, clean, patch, (layer, kind), steps).cpu()
                bar.update(len(batch))
            unasked = torch.full_like(scores[min(wanted)], float("nan"))
            every = [scores.get(layer, unasked) for layer in range(heads.n_layers)]
            found.append(torch.stack(every, dim=1))
    return torch.cat(found)


def _layer_ig(
    heads: Heads,
    task: Task,
    clean: HeadRun,
    patch: HeadRun,
    where: tuple[int, Kind],
    steps: int,
) -> Float[Tensor, "batch heads seq"]:
    layer, kind = where
    start, end = (run.attention[layer].part(kind) for run in (clean, patch))
    fractions = (torch.arange(steps, device=start.device) + 0.5) / steps
    points = torch.lerp(start, end, fractions[:, None, None, None, None].to(start)).flatten(0, 1)
    points.requires_grad_()
    run = heads.run(
        clean.resid[layer].repeat(steps, 1, 1),
        layer=layer,
        changes={where: lambda part: points},
        track=True,
        keep=False,
    )
    repeated = task[torch.arange(len(task)).repeat(steps)]
    [gradient] = torch.autograd.grad(run.logit_diff(repeated).sum(), points)
    scores = _dot(gradient.unflatten(0, (steps, -1)).mean(0), start - end)
    return scores if kind in ("key", "value") else _with_bos(heads, scores)


def of_nodes(
    scores: HeadScores, nodes: Sequence[HeadNode], *, sizes: bool = True
) -> Float[Tensor, " nodes"]:
    """The mean over prompts of each node's score: of its size (AtP*'s), or with its sign."""
    values = torch.stack([scores[n.kind][:, n.layer, n.head, n.position] for n in nodes])
    return (values.abs() if sizes else values).mean(1)


# ---------------------------------------------------------------------------------------------
# How much may have been missed
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EffectBound:
    """What random subsets say of single nodes.

    Attributes:
        effects: ``[nodes]``, mean LD without the subsets that hold a node − with those that do.
        upper: ``[nodes]``, the upper end of an interval around its size.
        confidence: of all of them together.
        n_subsets: how many were patched.
    """

    effects: Float[Tensor, " nodes"]
    upper: Float[Tensor, " nodes"]
    confidence: float
    n_subsets: int

    @property
    def largest(self) -> float:
        """No node's effect is larger than this, with that confidence."""
        return self.upper.max().item()


def effect_bound(
    logit_diffs: Float[Tensor, " subsets"],
    patched: Bool[Tensor, "subsets nodes"],
    *,
    confidence: float = 0.95,
) -> EffectBound:
    """AtP*'s diagnostic: an upper bound on the effect of any node, from patching random subsets.

    Where a node matters, subsets that hold it have another logit difference than those that do not.
    Welch's t-test says how large the difference of their means may be. It is a mean over company:
    the node's effect where a random half of the others is patched, too, and it is read as the
    node's own effect where effects add up.

    Args:
        logit_diffs: with each subset patched, a mean over prompts.
        patched: which nodes it holds, each with chance 1/2.
        confidence: that all bounds hold together (Bonferroni over the nodes).

    Raises:
        ValueError: a node that is in fewer than two subsets, or missing in fewer than two.

    Source: Kramár et al. 2024, section 3.3 (arXiv 2403.00745).
    """
    inside = patched.double()
    n_in, n_out = inside.sum(0), (1 - inside).sum(0)
    if (n_in < 2).any() or (n_out < 2).any():
        raise ValueError(
            "each node is to be in two subsets or more, and missing in two: draw more."
        )
    values = logit_diffs.double()[:, None]
    mean_in, mean_out = (inside * values).sum(0) / n_in, ((1 - inside) * values).sum(0) / n_out
    var_in = (inside * (values - mean_in) ** 2).sum(0) / (n_in - 1) / n_in
    var_out = ((1 - inside) * (values - mean_out) ** 2).sum(0) / (n_out - 1) / n_out
    error = (var_in + var_out).sqrt()
    freedom = (var_in + var_out) ** 2 / (var_in**2 / (n_in - 1) + var_out**2 / (n_out - 1))
    tail = (1 - confidence) / inside.shape[1]
    wide = torch.from_numpy(stats.t.ppf(1 - tail / 2, freedom.nan_to_num(1.0).numpy()))
    effects = mean_out - mean_in
    upper = effects.abs() + wide * error
    return EffectBound(effects.float(), upper.float(), confidence, len(logit_diffs))


@torch.no_grad()
def patched_subsets(
    heads: Heads,
    task: Task,
    nodes: Sequence[HeadNode],
    *,
    subsets: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Float[Tensor, " subsets"], Bool[Tensor, "subsets nodes"]]:
    """The logit difference with random halves of the nodes patched, for `effect_bound`.

    Returns:
        the mean logit difference over prompts for each subset, and which nodes it holds.

    Raises:
        ValueError: padded prompts; a node that is not there.
    """
    require_one_length(task)
    rows = [heads.row(node) for node in nodes]
    generator = torch.Generator().manual_seed(seed)
    patched = torch.rand(subsets, len(nodes), generator=generator) < 0.5
    clean, patch = heads.run(task.clean), heads.run(task.patch)
    first = min(node.layer for node in nodes)
    values = torch.zeros(subsets)
    for number in tqdm(range(subsets), desc="subsets", disable=not progress):
        chosen = patched[number].nonzero()[:, 0].tolist()
        changes = dict(_subset_changes([(nodes[i], rows[i]) for i in chosen], patch))
        run = heads.run(clean.resid[first], layer=first, changes=changes, keep=False)
        values[number] = run.logit_diff(task).mean().item()
    return values, patched


def _subset_changes(nodes: Sequence[tuple[HeadNode, int]], patch: HeadRun) -> Iterator:
    """Changes that patch all of the nodes at once."""
    places: dict[tuple[int, Kind], list[tuple[int, int]]] = {}
    for node, row in nodes:
        places.setdefault((node.layer, node.kind), []).append((node.head, row))
    for (layer, kind), at in places.items():
        which_heads, which_rows = (torch.tensor(each) for each in zip(*at, strict=True))
        values = patch.attention[layer].part(kind)[:, which_heads, which_rows]

        def change(part: Tensor, h=which_heads, r=which_rows, values=values) -> Tensor:
            part = part.clone()
            part[:, h, r] = values
            return part

        yield (layer, kind), change
