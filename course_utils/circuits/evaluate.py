"""How good is a circuit? Faithfulness on held-out prompts, with intervals, and the frontier.

Four logit differences, each a mean over prompts: F(M) the model, F(S) the model with SAEs spliced,
F(C) the circuit, F(∅) every latent ablated. *Faithfulness* is how far from nothing to everything
the circuit gets, and papers differ in what they call nothing and everything. All three are
reported, by name:

    vs_model    (F(C) − F(∅)) / (F(M) − F(∅))    Marks et al. 2024 (Wang et al. 2022 use the
    difference, F(M) − F(C))
    vs_spliced  (F(C) − F(∅)) / (F(S) − F(∅))    charges the circuit nothing for what the SAEs lose
    raw         F(C) / F(S)                      the post: F(∅) is taken to be 0

All three compare means over prompts, so that a circuit which is too sure of one prompt and too
unsure of the next can score 1. The *gap* cannot be fooled so: it is what a learned mask minimises,
per prompt,

    gap         mean |LD_C − LD_S| / mean |LD_∅ − LD_S|    0 = the same on every prompt, 1 = as far
    off as nothing

A faithful set of nodes is not yet *the* circuit. Further down are the other questions that one asks
of it, each with its
source: completeness (is anything else doing the work?), minimality (is everything in it needed?),
    stability (would another
run have found it?), and the area measures of the MIB benchmark (is the method good at every size?).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.circuits.masks import SAEMasks, without
from course_utils.circuits.splice import PatchMeans, SplicedModel, Prefix
from course_utils.circuits.statistics import LEVELS, N_BOOTSTRAP, Interval, resampled_means
from course_utils.prompts.tasks import Task

NORMALISATIONS = ("vs_model", "vs_spliced", "raw")
MEASURES = (*NORMALISATIONS, "gap")


Evaluate = Callable[[SAEMasks], Float[Tensor, " n"]]
"""The logit difference of every held-out prompt with these masks, e.g. `SplicedModel.logit_diff`
with the rest filled in.
"""


@dataclass(frozen=True)
class Faithfulness:
    """The three faithfulnesses of one circuit, and the mean logit differences they are made of.

    0 = no better than ablating every latent; 1 = as good as the model (or the spliced model); above
    1, the circuit is surer than the model. ``gap`` compares prompt by prompt: 0 is best. ``n``
    prompts.
    """

    vs_model: Interval
    vs_spliced: Interval
    raw: Interval
    gap: Interval
    f_model: float
    f_spliced: float
    f_circuit: float
    f_empty: float
    n: int


@dataclass(frozen=True)
class References:
    """F(M), F(S) and F(∅) for every prompt, ``[n]``: the same for every circuit, so computed once.

    ``start`` is what comes before the first SAE, which circuits share too.
    """

    model: Float[Tensor, " n"]
    spliced: Float[Tensor, " n"]
    empty: Float[Tensor, " n"]
    start: Prefix | None = field(default=None, repr=False)


def references(spliced: SplicedModel, task: Task, means: PatchMeans) -> References:
    """What every circuit of this spliced model is compared with on these prompts."""
    empty = SAEMasks.full(means.latents, 0.0)
    start = spliced.prefix(task.clean, lengths=task.lengths)
    return References(
        model=spliced.model_logit_diff(task),
        spliced=spliced.logit_diff(task, means=means, start=start),
        empty=spliced.logit_diff(task, masks=empty, means=means, start=start),
        start=start,
    )


def faithfulness(
    spliced: SplicedModel,
    task: Task,
    masks: SAEMasks,
    means: PatchMeans,
    *,
    against: References | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Faithfulness:
    """Faithfulness of the circuit ``masks`` on the prompts of ``task``; hold them out from
    training.

    Args:
        means: the patch means that the circuit was found with (of the training prompts).
        against: `references`, if they are at hand.
        n_bootstrap: resamples of the prompts for the 95 % percentile intervals.
    """
    against = against or references(spliced, task, means)
    circuit = spliced.logit_diff(task, masks=masks, means=means, start=against.start)
    rows = [against.model, against.spliced, circuit, against.empty]
    table = torch.stack([row.double().cpu() for row in rows])  # [4, n]
    table = torch.cat(
        [table, (table[2:] - table[1]).abs()]
    )  # two rows more: |LD_C − LD_S| and |LD_∅ − LD_S|
    resampled = _ratios(
        resampled_means(table.T, n_bootstrap=n_bootstrap, seed=seed).T
    )  # [4, n_bootstrap]
    low, high = resampled.quantile(torch.tensor(LEVELS, dtype=torch.double), dim=-1)
    value = _ratios(table.mean(-1))
    intervals = [Interval(*(float(x[i]) for x in (value, low, high))) for i in range(len(MEASURES))]
    f_model, f_spliced, f_circuit, f_empty, *_ = table.mean(-1).tolist()
    return Faithfulness(
        *intervals,
        f_model=f_model,
        f_spliced=f_spliced,
        f_circuit=f_circuit,
        f_empty=f_empty,
        n=len(circuit),
    )


def _ratios(means: Float[Tensor, "6 *samples"]) -> Float[Tensor, "4 *samples"]:
    model, spliced, circuit, empty, off, off_empty = means
    return torch.stack(
        [
            (circuit - empty) / (model - empty),
            (circuit - empty) / (spliced - empty),
            circuit / spliced,
            off / off_empty,
        ]
    )


def nodes_per_layer(masks: SAEMasks) -> dict[str, int]:
    """How many nodes each hook point has in the circuit."""
    return {hook_point: int((mask > 0).sum()) for hook_point, mask in masks.items()}


# ---------------------------------------------------------------------------------------------
# The frontier
# ---------------------------------------------------------------------------------------------


# ---------------------------------------------------------------------------------------------
# Many circuits, the same prompts
# ---------------------------------------------------------------------------------------------


class Evaluator:
    """The logit difference of every prompt of a task with given masks: ``evaluate(masks)`` gives
    ``[n]``.

    Masks that are `remember`-ed keep their forward pass. Others that equal one of them at the first
    few SAEs go on from where they part, which is most of the way for a circuit without one late
    node. The numbers are the same.

    Args:
        means: what takes the place of what is not kept.
        start: what comes before the first SAE, if it is at hand.
    """

    def __init__(
        self, spliced: SplicedModel, task: Task, means: PatchMeans, start: Prefix | None = None
    ):
        self.spliced, self.task, self.means = spliced, task, means
        self.start = start if start is not None else spliced.prefix(task.clean, lengths=task.lengths)
        self.known: list[tuple[SAEMasks, dict[str, Prefix]]] = []

    def __call__(self, masks: SAEMasks) -> Float[Tensor, " n"]:
        start = min(
            (self._start_of(masks, *known) for known in self.known),
            key=lambda start: -start.layer,
            default=self.start,
        )
        return self.spliced.logit_diff(self.task, masks=masks, means=self.means, start=start).cpu()

    @torch.no_grad()
    def remember(self, masks: SAEMasks) -> None:
        """Keep the forward pass with these masks, to go on from."""
        self.known.append(
            (masks, self.spliced.run(self.start, masks=masks, means=self.means).prefixes)
        )

    def _start_of(self, masks: SAEMasks, known: SAEMasks, starts: Mapping[str, Prefix]) -> Prefix:
        """Before the first SAE where the masks differ."""
        parts = [
            name for name in self.spliced.hook_points if not torch.equal(masks[name], known[name])
        ]
        return starts[parts[0] if parts else self.spliced.hook_points[-1]]


# ---------------------------------------------------------------------------------------------
# Completeness: is anything else doing the work?
# ---------------------------------------------------------------------------------------------


def completeness(
    evaluate: Evaluate, circuit: SAEMasks, everything: SAEMasks, subsets: Iterable[Iterable[Node]]
) -> Float[Tensor, "n_subsets 2"]:
    """F(C∖K) and F(S∖K) for each K: knock the same nodes out of the circuit and out of the whole.

    A complete circuit reacts to a knock-out as the whole does: its points lie on y = x. Where the
    whole stays above the circuit, something outside the circuit does the work that K did.

    Args:
        evaluate: logit differences of held-out prompts with given masks.
        circuit: C.
        everything: masks that are 1 everywhere: M (with SAEs spliced in, S).
        subsets: the sets K of nodes of the circuit.

    Returns:
        A row a subset: mean logit difference of C∖K, then of M∖K.

    Source: Wang et al. 2022, section 4 (there with |F(C∖K) − F(M∖K)|, the incompleteness score).
    """
    rows = []
    for subset in subsets:
        subset = list(subset)
        rows.append(
            torch.stack(
                [
                    evaluate(without(masks, subset)).float().mean().cpu()
                    for masks in (circuit, everything)
                ]
            )
        )
    return torch.stack(rows)


# ---------------------------------------------------------------------------------------------
# Minimality: is everything in it needed?
# ---------------------------------------------------------------------------------------------


def drops(
    evaluate: Evaluate, circuit: SAEMasks, nodes: Iterable[Node]
) -> Float[Tensor, "n_nodes n"]:
    """How far each prompt's logit difference falls when one node leaves the circuit: LD_C −
    LD_{C∖v} (above 0: it helped).

    Source: the minimality of Wang et al. 2022, section 4, with K empty: one node at a time. Two
        nodes that do the same work
    both look dispensable to it.
    """
    whole = evaluate(circuit)
    return torch.stack(
        [(whole - evaluate(without(circuit, [node]))).float().cpu() for node in nodes]
    )


def needed(
    dropped: Float[Tensor, "n_nodes n"],
    margin: float,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Bool[Tensor, " n_nodes"]:
    """Which nodes' mean drop is above the margin with 97.5 % confidence (the lower end of the 95 %
    bootstrap interval).
    """
    return (
        resampled_means(dropped.T, n_bootstrap=n_bootstrap, seed=seed).quantile(LEVELS[0], dim=0)
        > margin
    )


# ---------------------------------------------------------------------------------------------
# Stability: would another run have found it?
# ---------------------------------------------------------------------------------------------


def jaccard(a: Iterable, b: Iterable) -> float:
    """Nodes that both have, over nodes that at least one has: 1 = the same, 0 = none in common, NaN
    if both are empty.
    """
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a | b else math.nan


def nesting(small: Iterable, large: Iterable) -> float:
    """The share of the small circuit's nodes that the large one has too: 1 = nested; NaN if the
    small one is empty.
    """
    small = set(small)
    return len(small & set(large)) / len(small) if small else math.nan


def iou_per_layer(a: SAEMasks, b: SAEMasks) -> dict[str, float]:
    """`jaccard` hook point by hook point; NaN where neither circuit has a node."""
    return {
        hook_point: jaccard(
            *({node for node in masks.nodes() if node[0] == hook_point} for masks in (a, b))
        )
        for hook_point in a.hook_points
    }


def expected_jaccard(n_a: int, n_b: int, n: int) -> float:
    """The mean Jaccard of two circuits of ``n_a`` and ``n_b`` nodes drawn at random from ``n``.

    The overlap k is hypergeometric, P(k) = C(n_a, k)·C(n − n_a, n_b − k) / C(n, n_b), and has the
    Jaccard k / (n_a + n_b − k).

    Raises:
        ValueError: a circuit larger than ``n``, or both empty.
    """
    if not (0 <= n_a <= n and 0 <= n_b <= n and n_a + n_b > 0):
        raise ValueError(f"circuits of {n_a} and {n_b} nodes cannot be drawn from {n}.")
    total = math.comb(n, n_b)
    overlaps = range(max(0, n_a + n_b - n), min(n_a, n_b) + 1)
    return sum(
        math.comb(n_a, k) * math.comb(n - n_a, n_b - k) / total * k / (n_a + n_b - k)
        for k in overlaps
    )


# ---------------------------------------------------------------------------------------------
# The areas of the MIB benchmark: is the method good at every size?
# ---------------------------------------------------------------------------------------------

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The circuit sizes of the MIB benchmark, as shares of all edges or nodes."""


def areas(
    fractions: Sequence[float], values: Sequence[float | Tensor], *, log: bool = False
) -> tuple[Tensor, Tensor]:
    """CPR and CMD: a method's faithfulness summed up over circuit sizes, f(C_k) at the fraction k
    of all nodes.

        CPR = ∫ f(C_k) dk          circuit performance ratio: higher is better; above 1, circuits
        overshoot the model
        CMD = ∫ |1 − f(C_k)| dk    circuit–model distance: 0 is best

    by the trapezoid rule between the sizes given (MIB: from 0.001 to 1, so that a perfect method
    has a CPR of 0.999).

    Args:
        fractions: rising, in 0…1.
        values: f at each: numbers, or tensors of one shape (such as bootstrap samples).
        log: over ln k in place of k, divided by the range of ln k: small circuits then count as
            much as large ones. Not a number of the benchmark's leaderboard.

    Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark", and its code
        (``area_under``, ``area_from_1``).

    Raises:
        ValueError: fractions that do not rise, lie outside 0…1, or are not as many as the values,
            or fewer than two.
    """
    x = torch.tensor(list(fractions), dtype=torch.double)
    if (
        len(x) < 2
        or len(x) != len(values)
        or (x.diff() <= 0).any()
        or x[0] < 0
        or x[-1] > 1
        or (log and x[0] == 0)
    ):
        raise ValueError(
            f"wanted two or more rising fractions in 0…1, one a value (above 0 for log); found {list(fractions)}."
        )
    f = torch.stack([torch.as_tensor(value, dtype=torch.double) for value in values])  # [sizes, …]
    x = (x.log() - x[0].log()) / (x[-1].log() - x[0].log()) if log else x
    return torch.trapezoid(f, x, dim=0), torch.trapezoid((1 - f).abs(), x, dim=0)


def sizes_at(fractions: Iterable[float], n: int) -> Mapping[float, int]:
    """How many of ``n`` nodes each fraction is (rounded down, as in MIB); fractions below one node
    are left out.
    """
    return {fraction: int(fraction * n) for fraction in fractions if int(fraction * n) > 0}
