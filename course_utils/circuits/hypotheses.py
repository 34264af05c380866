"""Is it a circuit? Hypothesis tests, and the search for the subset that says no.

A faithfulness of 0.9 does not say what would have been surprising. A hypothesis test does: it names
a null hypothesis, and its p-value is the chance of a result at least as extreme if that is true.

Three tests of Shi et al. 2024 ask three things of a circuit C of a model S:

    equivalence    is C as likely to be above S as below it, prompt by prompt?
    independence   is what is left without C independent of what S does?
    minimality     does every node of C change more than a random node does?

A small p-value of any of them speaks *against* the circuit. A large one proves nothing: with few
prompts every circuit passes. Two more questions, sufficiency and necessity, compare the circuit
with random ones: `rank_p_value`. Here a small p-value speaks *for* the circuit.

The paper's circuits are sets of edges. Ours are sets of nodes (SAE latents at positions), what is
left out has its mean over patch prompts, and S can be the spliced model or the model itself.

p-values hold for prompts that are drawn independently. Prompts that share their words are not
quite: then p-values are too small. None holds on prompts that the circuit was chosen on.

Last, completeness by search: which part K of the circuit, taken out of the circuit and out of the
model, makes the two differ most (`worst_subset`, Wang et al. 2022)?

Source: Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs", NeurIPS, and its code,
https://github.com/blei-lab/circuitry. Where ours differs, the docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binom
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.circuits.evaluate import Evaluate
from course_utils.circuits.masks import Node, SAEMasks, only, without
from course_utils.circuits.statistics import Interval, proportion

LEVEL = 0.05
"""A null hypothesis is rejected where p is below this."""

QUANTILE = 0.9
"""A node is to change more than this share of random nodes (the paper's q*)."""


# ---------------------------------------------------------------------------------------------
# Equivalence: is the circuit as likely to be above the model as below it?
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equivalence:
    """What `equivalence` found.

    Attributes:
        statistic: |share − 1/2|: 0 = above the model as often as below it, 0.5 = always above, or
            always below.
        p_value: small = not equivalent.
        share: of the prompts, how many have the circuit above the model, with a 95 % interval.
        epsilon: how far from 1/2 the share may be under the null hypothesis.
        n: how many prompts count: those where the two differ.
        n_ties: how many prompts do not count, since the two are equal.
    """

    statistic: float
    p_value: float
    share: Interval
    epsilon: float
    n: int
    n_ties: int

    def __str__(self) -> str:
        verdict = "is not equivalent" if self.p_value < LEVEL else "may or may not be equivalent"
        return (
            f"The circuit is above the model on {self.share} of n = {self.n} prompts, where "
            f"equivalence allows 0.5 ± {self.epsilon:g}: it {verdict} ({_p(self.p_value)})."
        )


def equivalence(
    circuit: Float[Tensor, " n"], model: Float[Tensor, " n"], *, epsilon: float = 0.1
) -> Equivalence:
    """Shi et al.'s equivalence test: does the circuit beat the model on about half of the prompts?

    With Δ = LD_C − LD_S of a prompt, the null hypothesis is

        H0: |P(Δ > 0) − 1/2| < ε

    To reject it is to show that the circuit is *not* equivalent: it is above the model too often,
    or too rarely. Not to reject it is no proof of equivalence. What comes nearest to a proof is an
    interval of the share that lies within 1/2 ± ε.

    It is a two-sided sign test. Its p-value is the chance of a share at least as far from 1/2, at
    the edge of the null hypothesis, P(Δ > 0) = 1/2 + ε, where it is largest; with ε = 0 it is the
    usual sign test. It sees signs only: half as sure on half of the prompts and twice as sure on
    the others passes, and 0.001 below on every prompt fails. Read it beside the gap (`evaluate`).

    (Shi et al. assume Δ ≠ 0. Here, prompts with Δ = 0 are left out, as in every sign test. Their
    published code puts the mean of Δ in the place of the share; here it is the share.)

    Args:
        circuit, model: LD_C and LD_S of the same prompts, in the same order.
        epsilon: ε, in 0 … 0.5. The paper has 0.1.

    Raises:
        ValueError: other prompts in one than in the other; no prompt on which they differ; an ε out
            of range.

    Source: Shi et al. 2024.
    """
    _same_prompts(circuit, model)
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon must be 0 or more and below 0.5, not {epsilon}.")
    above = (circuit > model)[circuit != model]
    n, n_above = len(above), int(above.sum())
    if n == 0:
        raise ValueError(
            "the circuit and the model are equal on every prompt, which leaves nothing to test: "
            "give the logit differences of two sets of masks that differ."
        )
    off = abs(2 * n_above - n)  # 2n times the statistic: a whole number, so that no end is missed
    lower, upper = (n - off) // 2, (n + off) // 2
    edge = 0.5 + epsilon
    p_value = 1.0
    if off > 0:
        p_value = float(binom.cdf(lower, n, edge) + binom.sf(upper - 1, n, edge))
    return Equivalence(
        statistic=off / (2 * n),
        p_value=min(1.0, p_value),
        share=proportion(above),
        epsilon=epsilon,
        n=n,
        n_ties=len(circuit) - n,
    )


# ---------------------------------------------------------------------------------------------
# Independence: does what is left without the circuit still know what the model does?
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Independence:
    """What `independence` found.

    Attributes:
        statistic: HSIC: 0 = independent (with infinitely many prompts), at most 1.
        p_value: small = not independent.
        by_chance: the mean HSIC over permutations: what independence gives with so many prompts.
        n: how many prompts.
        n_permutations: how many permutations; p is at least 1 / (n_permutations + 1).
    """

    statistic: float
    p_value: float
    by_chance: float
    n: int
    n_permutations: int

    def __str__(self) -> str:
        verdict = "is not independent" if self.p_value < LEVEL else "may or may not be independent"
        return (
            f"HSIC is {self.statistic:.4f} over n = {self.n} prompts, and {self.by_chance:.4f} by "
            f"chance: what is left without the circuit {verdict} of the model "
            f"({_p(self.p_value)})."
        )


def independence(
    complement: Float[Tensor, " n"],
    model: Float[Tensor, " n"],
    *,
    groups: Sequence[Hashable] | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
) -> Independence:
    """Shi et al.'s independence test: is what is left without the circuit independent of the model?

        H0: LD_{S∖C} and LD_S are independent over prompts

    If the circuit does all the work, then the rest cannot tell on which prompts the model is sure.
    To reject the null hypothesis is to show that something outside the circuit knows. Not to reject
    it is no proof.

    HSIC (`hsic`) also sees dependence that is no straight line. Its p-value comes from
    permutations of the prompts: (1 + how many permutations have an HSIC as large) / (1 + how many
    there are).

    Mind the answers: with everything ablated, the logits are the same on every prompt, but the
    logit *difference* still is that of the prompt's own answers. If the model is surer of one
    answer than of another, then the two depend on each other by way of the answer, whatever the
    circuit. ``groups`` takes care of that: prompts are exchanged within their group only, and the
    null hypothesis becomes independence within each group.

    (Shi et al.'s code has one bandwidth for both, from distances between one and the other, and p
    without the two ones.)

    Args:
        complement: LD_{S∖C}: the logit differences with the circuit, and only it, ablated.
        model: LD_S of the same prompts, in the same order.
        groups: a group for each prompt, e.g. its pair of answers; all are one group by default.
        n_permutations: how many; more make p finer.
        seed: of the permutations.

    Raises:
        ValueError: other prompts in one than in the other, or other groups; fewer than two prompts;
            no permutation; groups of one prompt each.

    Source: Shi et al. 2024; Gretton et al. 2007, "A Kernel Statistical Test of Independence"; for
    the two ones Phipson and Smyth 2010.
    """
    _same_prompts(complement, model)
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be 1 or more, not {n_permutations}.")
    rows = _rows_of(groups, len(model))
    left, right = _centred(gaussian_kernel(complement)), gaussian_kernel(model)
    generator = torch.Generator().manual_seed(seed)
    permuted = torch.empty(n_permutations, dtype=torch.double)
    for i in range(n_permutations):
        order = _permutation(rows, generator)
        permuted[i] = (left * right[order][:, order]).mean()
    observed = float((left * right).mean())
    return Independence(
        statistic=observed,
        p_value=rank_p_value(observed, permuted),
        by_chance=float(permuted.mean()),
        n=len(model),
        n_permutations=n_permutations,
    )


def hsic(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """The Hilbert-Schmidt independence criterion, tr(KHLH) / n², with Gaussian kernels.

    K and L say how near each other prompts are in x and in y, and H = 1 − 1/n takes off the means.
    It is large where prompts that are near in x are also near in y. 0 = independent, as n grows;
    with few prompts it is above 0 by chance. It is at most 1, and no unit matters.

    Source: Gretton et al. 2007, "A Kernel Statistical Test of Independence" (the biased estimate,
    HSIC_b).
    """
    return float((_centred(gaussian_kernel(x)) * gaussian_kernel(y)).mean())


def gaussian_kernel(x: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """exp(−(x_i − x_j)² / 2σ²): 1 = the same value, 0 = far apart.

    σ is the median distance between two prompts that differ.
    """
    values = x.detach().cpu().double()
    apart = (values[:, None] - values[None]).abs()
    some = apart[apart > 0]
    sigma = some.median() if len(some) else torch.tensor(1.0)
    return (-((apart / sigma) ** 2) / 2).exp()


def _centred(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """HKH: rows and columns have the mean 0."""
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def _rows_of(groups: Sequence[Hashable] | None, n: int) -> list[Int[Tensor, " size"]]:
    """Which prompts each group has; one group for all by default."""
    if n < 2:
        raise ValueError(f"two prompts or more are wanted, and there are {n}.")
    if groups is None:
        return [torch.arange(n)]
    if len(groups) != n:
        raise ValueError(f"give one group per prompt: {len(groups)} groups, {n} prompts.")
    rows = {
        group: torch.tensor([i for i, other in enumerate(groups) if other == group])
        for group in dict.fromkeys(groups)
    }
    if max(map(len, rows.values())) < 2:
        raise ValueError("every group has one prompt, so that no two can be exchanged.")
    return list(rows.values())


def _permutation(rows: list[Int[Tensor, " size"]], generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random order in which prompts stay in their groups."""
    order = torch.empty(sum(map(len, rows)), dtype=torch.long)
    for group in rows:
        order[group] = group[torch.randperm(len(group), generator=generator)]
    return order


# ---------------------------------------------------------------------------------------------
# Minimality: does every node change more than a random one?
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Minimality:
    """What `minimality` found, node by node.

    Attributes:
        statistic: what share of the random nodes each node changes more than.
        p_value: small = unneeded: the node does *not* change more than the share q of random nodes.
        p_needed: small = needed: the node *does* change more than the share q of random nodes.
        changes: the mean |change| of the logit difference without the node.
        quantile: q.
        n: how many random nodes they are compared with.

    Both p-values are times the number of nodes (Bonferroni), and at most 1.
    """

    statistic: Float[Tensor, " n_nodes"]
    p_value: Float[Tensor, " n_nodes"]
    p_needed: Float[Tensor, " n_nodes"]
    changes: Float[Tensor, " n_nodes"]
    quantile: float
    n: int

    @property
    def unneeded(self) -> Bool[Tensor, " n_nodes"]:
        """Nodes that the test rejects. One is enough: then the circuit is not minimal."""
        return self.p_value < LEVEL

    @property
    def needed(self) -> Bool[Tensor, " n_nodes"]:
        """Nodes that are shown to change more than the share q of random nodes."""
        return self.p_needed < LEVEL

    def __str__(self) -> str:
        n_nodes, n_unneeded = len(self.statistic), int(self.unneeded.sum())
        n_needed = int(self.needed.sum())
        n_open = n_nodes - n_needed - n_unneeded
        verdict = "is not minimal" if n_unneeded else "may or may not be minimal"
        return (
            f"Against {self.quantile:.0%} of n = {self.n} random nodes, {n_needed} of {n_nodes} "
            f"nodes change more, {n_unneeded} do not, and {n_open} are undecided: the circuit "
            f"{verdict}."
        )


def minimality(
    drops: Float[Tensor, "n_nodes n"],
    reference_drops: Float[Tensor, "n_reference n"],
    *,
    quantile: float = QUANTILE,
) -> Minimality:
    """Shi et al.'s minimality test: which nodes change no more than random nodes do?

    A node's change is the mean over prompts of |LD_C − LD_{C∖v}|. For comparison the circuit is
    *inflated*: a random node that is not in it is put in and taken out again. For each node v of
    the circuit, with a random node r in the inflated circuit,

        H0: P(change of v > change of r) ≥ q

    To reject it is to show that v does not stand out: it is unneeded, and the circuit not minimal.
    The p-value is that of a binomial test on how many of the random nodes v changes more than. The
    same count also tests the opposite, P(…) ≤ q: to reject *that* is to show that the node stands
    out. Most nodes should be one or the other; those that are neither need more random nodes.

    As many nodes as there are, so many tests: each p-value is multiplied by that (Bonferroni). No
    node can be called needed unless there are random nodes enough: `references_needed`.

    Nodes are tested one at a time. Two nodes that do the same work both look unneeded. A node whose
    removal *raises* the answer counts as one that changes it.

    Args:
        drops: LD_C − LD_{C∖v} for each node v (a row) and prompt, as from ``drop_each``.
        reference_drops: the same for random nodes, each in an inflated circuit, on the same
            prompts. In the paper each random node is added alone. All of them added at once need
            fewer passes, but then it is another circuit that they leave.
        quantile: q, between 0 and 1. The paper has 0.9.

    Raises:
        ValueError: no nodes, no random nodes, other prompts in one than in the other, a quantile
            out of range.

    Source: Shi et al. 2024 (the second p-value is ours).
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, not be {quantile}.")
    if drops.shape[1] != reference_drops.shape[1] or 0 in (*drops.shape, *reference_drops.shape):
        raise ValueError(
            "wanted one row or more for the circuit's nodes and for random ones, over the same "
            f"prompts: drops {list(drops.shape)}, reference_drops {list(reference_drops.shape)}."
        )
    changes, reference = (rows.cpu().double().abs().mean(1) for rows in (drops, reference_drops))
    n_nodes, n = len(changes), len(reference)
    count = (changes[:, None] > reference).sum(1)
    k = count.numpy()
    p_values = [binom.cdf(k, n, quantile), binom.sf(k - 1, n, quantile)]  # P(≤ k), P(≥ k)
    p_value, p_needed = (torch.as_tensor(p).mul(n_nodes).clamp(max=1) for p in p_values)
    return Minimality(
        statistic=count.double() / n,
        p_value=p_value,
        p_needed=p_needed,
        changes=changes,
        quantile=quantile,
        n=n,
    )


def inflated_drops(
    evaluate: Evaluate, circuit: SAEMasks, extra: Sequence[Node]
) -> Float[Tensor, "n_extra n"]:
    """What each extra node changes in the circuit: LD_{C∪r} − LD_C, a row for each node r.

    Each joins the circuit alone, and leaves it again. For random nodes these are the
    ``reference_drops`` of `minimality`.

    Args:
        evaluate: the logit difference of every prompt, e.g. an `Evaluation`. One that remembers the
            circuit needs less time.
        circuit: C; it stays as it is.
        extra: nodes that are not in it.

    Raises:
        ValueError: no nodes; a node of the circuit.
    """
    if not extra:
        raise ValueError("no extra nodes: give one or more, e.g. from random_nodes.")
    nodes = circuit.nodes()
    inside = [node for node in extra if node in set(nodes)]
    if inside:
        raise ValueError(f"{inside[0]} is in the circuit: give nodes that are not.")
    before = evaluate(circuit)
    return torch.stack([evaluate(only(circuit, [*nodes, node])) - before for node in extra])


def references_needed(n_nodes: int, *, quantile: float = QUANTILE) -> int:
    """How many random nodes `minimality` needs at least, to be able to call a node needed.

    That is, so that q^n, the chance to beat n random nodes out of n, times the number of nodes is
    below `LEVEL`.
    """
    return math.floor(math.log(LEVEL / n_nodes) / math.log(quantile)) + 1


# ---------------------------------------------------------------------------------------------
# Sufficiency and necessity: is it better than random circuits?
# ---------------------------------------------------------------------------------------------


def rank_p_value(value: float, references: Sequence[float] | Float[Tensor, " n"]) -> float:
    """How often chance is as large: (1 + how many references are ≥ the value) / (1 + n).

    If the value is drawn like the references, then p is at most α in a share α of all cases, or
    less. It is at least 1 / (1 + n): with 19 references, 0.05.

    Two tests of Shi et al. are of this kind; for both, small speaks for the circuit:

        sufficiency         value: the circuit's faithfulness (or minus its gap)
                            references: those of random circuits with as many nodes
        partial necessity   value: how far F falls if the circuit is ablated, F(S) − F(S∖C)
                            references: the same for random sets of as many nodes

    (Shi et al. test whether the circuit beats a share q* of random circuits, with a binomial test.)

    Args:
        value: larger is better. Where smaller is better, give minus the value and minus the
            references.
        references: values under the null hypothesis.

    Raises:
        ValueError: no references; a value or a reference that is NaN.

    Source: Phipson and Smyth 2010, "Permutation P-values Should Never Be Zero".
    """
    chance = torch.as_tensor(references, dtype=torch.double)
    if len(chance) == 0:
        raise ValueError("no references: give one or more (19 for p = 0.05, 99 for p = 0.01).")
    if math.isnan(value) or bool(chance.isnan().any()):
        raise ValueError("a value or a reference is NaN, which has no rank.")
    rounding = 1e-12 * max(1.0, abs(value))  # what differs by less counts as equal
    as_large = int((chance >= value - rounding).sum())
    return (1 + as_large) / (1 + len(chance))


# ---------------------------------------------------------------------------------------------
# Completeness: the worst subset
# ---------------------------------------------------------------------------------------------


class KnockOut(NamedTuple):
    """Some nodes out of the circuit and out of the model.

    Attributes:
        removed: K.
        circuit: F(C∖K), a mean logit difference.
        whole: F(S∖K).
    """

    removed: list[Node]
    circuit: float
    whole: float

    @property
    def incompleteness(self) -> float:
        """|F(C∖K) − F(S∖K)|: 0 = the circuit explains what happens without K."""
        return abs(self.circuit - self.whole)


def knocked_out(
    evaluate: Evaluate, circuit: SAEMasks, everything: SAEMasks, removed: Sequence[Node]
) -> KnockOut:
    """F(C∖K) and F(S∖K) for one K.

    Args:
        evaluate: the logit difference of every prompt, e.g. an `Evaluation`.
        circuit, everything: the masks of C and of S (1 everywhere).
        removed: K.
    """
    left = (float(evaluate(without(masks, removed)).mean()) for masks in (circuit, everything))
    return KnockOut(list(removed), *left)


def worst_subset(
    evaluate: Evaluate,
    circuit: SAEMasks,
    everything: SAEMasks,
    nodes: Sequence[Node],
    *,
    max_size: int,
    n_candidates: int = 10,
    n_restarts: int = 1,
    seed: int,
    progress: bool = False,
) -> list[KnockOut]:
    """A greedy search for the K ⊂ C with the largest incompleteness |F(C∖K) − F(S∖K)|.

    Random K are easy to pass. So K grows from ∅: each step draws up to ``n_candidates`` of the
    nodes that are not in it, and adds the one that raises the incompleteness most. Where none
    raises it, the step adds nothing.

    A maximum that is found and reported on the same prompts is too large: it also fits their noise.
    Search on dev prompts, and report F(C∖K) and F(S∖K) of what was found on test prompts
    (`knocked_out`). A greedy search may miss a worse K, so that it gives a lower bound.

    It takes two passes over the prompts for each candidate: 2 · max_size · n_candidates ·
    n_restarts in all. An `Evaluation` that remembers both masks needs less.

    Args:
        evaluate: the logit difference of every prompt, e.g. an `Evaluation` on dev prompts.
        circuit, everything: the masks of C and of S (1 everywhere).
        nodes: those of C, or the part of them that K may have.
        max_size: steps, and so the most nodes that K can have. Wang et al. have 10.
        n_candidates: nodes tried a step. Wang et al. have 10.
        n_restarts: searches with other draws, the best of which is returned. Wang et al. have 5.
        seed: of the draws.
        progress: show a bar.

    Returns:
        The way to the worst K: K = ∅ first, one node more each time, and more incompleteness.

    Raises:
        ValueError: no nodes; a number below 1.

    Source: Wang et al. 2022, "Interpretability in the Wild", section 4 and appendix, and its code
    (``greed_search_max_brok_cob_diff``).
    """
    for name, number in (
        ("max_size", max_size),
        ("n_candidates", n_candidates),
        ("n_restarts", n_restarts),
    ):
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, not {number}.")
    if not nodes:
        raise ValueError("no nodes to take out: give the circuit's, e.g. circuit.nodes().")
    generator = torch.Generator().manual_seed(seed)
    start = knocked_out(evaluate, circuit, everything, [])
    paths = []
    with tqdm(total=n_restarts * max_size, desc="worst K", disable=not progress) as bar:
        for _ in range(n_restarts):
            path = [start]
            for _ in range(max_size):
                rest = [node for node in nodes if node not in path[-1].removed]
                some = torch.randperm(len(rest), generator=generator)[:n_candidates]
                tried = [
                    knocked_out(evaluate, circuit, everything, [*path[-1].removed, rest[i]])
                    for i in some.tolist()
                ]
                worst = max(tried, key=lambda k: k.incompleteness, default=path[-1])
                if worst.incompleteness > path[-1].incompleteness:
                    path.append(worst)
                elif len(tried) == len(rest):
                    break  # no node is left that raises it
                bar.update()
            paths.append(path)
    return max(paths, key=lambda path: path[-1].incompleteness)


# ---------------------------------------------------------------------------------------------
# What they share
# ---------------------------------------------------------------------------------------------


def _same_prompts(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"wanted numbers of the same prompts: there are {len(one)} of one, {len(other)} of the "
            "other."
        )


def _p(p_value: float) -> str:
    """For a sentence."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
