"""How good is a circuit? Its faithfulness on held-out prompts, with intervals.

Four logit differences, each a mean over prompts: F(M) the model, F(S) the model with SAEs spliced
in, F(C) the circuit, F(∅) every latent ablated. *Faithfulness* is how far from nothing to
everything the circuit gets, and papers differ in what they call nothing and everything. Three
versions are reported, by name:

    vs_model    (F(C) − F(∅)) / (F(M) − F(∅))    Marks et al. 2024
    vs_spliced  (F(C) − F(∅)) / (F(S) − F(∅))    charges the circuit nothing for what the SAEs lose
    raw         F(C) / F(S)                      the post: F(∅) is taken to be 0

(Wang et al. 2022 use the difference F(M) − F(C).) None of them says by itself which of two circuits
is better, since above 1 more is worse. Two measures do; 0 is best for both:

    distance    |1 − vs_spliced|                        MIB's circuit–model distance, at one size
    gap         mean |LD_C − LD_S| / mean |LD_∅ − LD_S|

The distance compares means over prompts, so that a circuit which is too sure of one prompt and too
unsure of the next can score 0. The gap cannot be fooled so: 0 = the same on every prompt, 1 = as
far off as nothing. But it is what a learned mask minimises, which favours masks. Report both.

`Evaluation` computes all of these, for as many circuits as you like. Each interval is over prompts.
To compare two methods, take the interval of their *paired difference*: both are judged on the same
draws of prompts, so that what is hard about a prompt for both cancels.

A faithful set of nodes is not yet *the* circuit. Further down are other questions that one asks of
it, each with its source: minimality (is everything in it needed?), stability (would another run
have found it?), and the area measures of the MIB benchmark (is the method good at every size?).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import PatchMeans, Prefix, SplicedModel
from course_utils.circuits.statistics import (
    LEVELS,
    N_BOOTSTRAP,
    Interval,
    bootstrap,
    distance_from,
    resampled_means,
)
from course_utils.prompts.tasks import Task

MEASURES = ("vs_model", "vs_spliced", "raw", "distance", "gap")
"""The names of the intervals that `Faithfulness` has."""

LOWER_IS_BETTER = ("distance", "gap")
"""The measures that say which of two circuits is better. The others are best at 1."""

Evaluate = Callable[[SAEMasks], Float[Tensor, " n"]]
"""The logit difference of every prompt with these masks; an `Evaluation` is such a function."""


# ---------------------------------------------------------------------------------------------
# Faithfulness
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faithfulness:
    """The three faithfulnesses of one circuit, its distance and its gap, each with a 95 % interval
    over prompts, and the means that they are made of.

    Attributes:
        vs_model, vs_spliced, raw: 0 = no better than ablating every latent (for ``raw``: than a
            logit difference of 0); 1 = as good as the model (or the spliced model); above 1, the
            circuit is surer than the model.
        distance: |1 − vs_spliced|, how far the circuit is from the spliced model on average: 0 is
            best.
        gap: how far the circuit is from the spliced model, prompt by prompt: 0 is best.
        f_model, f_spliced, f_circuit, f_empty: F(M), F(S), F(C) and F(∅), mean logit differences.
        n: how many prompts.
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

    @classmethod
    def of(
        cls,
        circuit: Float[Tensor, " n"],
        *,
        model: Float[Tensor, " n"],
        spliced_model: Float[Tensor, " n"],
        empty: Float[Tensor, " n"],
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = 0,
    ) -> Faithfulness:
        """From the logit differences of the same prompts, in the same order.

        Args:
            circuit, model, spliced_model, empty: LD_C, LD_M, LD_S and LD_∅ of every prompt.
            n_bootstrap: draws for the 95 % percentile intervals over prompts.
            seed: of the draws; what has as many prompts and the same seed is drawn alike.
        """
        table = torch.stack(_rows(Reference(model, spliced_model, empty), [circuit]))  # [6, n]
        means = table.mean(-1)
        drawn = _measures(*resampled_means(table.T, n_bootstrap=n_bootstrap, seed=seed).T)
        levels = torch.tensor(LEVELS, dtype=torch.double)
        intervals = {
            name: Interval(value.item(), *drawn[name][0].quantile(levels).tolist())
            for name, value in _measures(*means).items()
            if name != "distance"  # made of vs_spliced
        }
        f_model, f_spliced, f_empty, _, f_circuit, _ = means.tolist()
        return cls(
            **intervals,
            f_model=f_model,
            f_spliced=f_spliced,
            f_circuit=f_circuit,
            f_empty=f_empty,
            n=len(circuit),
        )

    @property
    def distance(self) -> Interval:
        """|1 − vs_spliced|: 0 = as good as the spliced model on average, 1 = as bad as nothing.

        Its interval is what |1 − x| makes of the interval of ``vs_spliced``: it begins at 0 where
        that interval holds 1. (The draws of |1 − x| are never below 0. Their quantiles would leave
        out a distance of 0, however good the circuit.)

        Source: the integrand of MIB's CMD (Mueller et al. 2025), against F(S).
        """
        return distance_from(self.vs_spliced, 1.0)


@dataclass(frozen=True)
class Reference:
    """What circuits are compared with: logit differences of the same prompts, in the same order.

    Attributes:
        model: LD_M, of the model.
        spliced_model: LD_S, with SAEs spliced in and no latent ablated.
        empty: LD_∅, with every latent ablated.
    """

    model: Float[Tensor, " n"]
    spliced_model: Float[Tensor, " n"]
    empty: Float[Tensor, " n"]


def _rows(
    reference: Reference, circuits: Iterable[Float[Tensor, " n"]]
) -> list[Float[Tensor, " n"]]:
    """What `_measures` wants the means of: LD_M, LD_S, LD_∅ and |LD_∅ − LD_S|, then LD_C of each
    circuit, then |LD_C − LD_S| of each. In float64 on the CPU.
    """
    fixed = (reference.model, reference.spliced_model, reference.empty)
    model, spliced_model, empty = (row.cpu().double() for row in fixed)
    diffs = [circuit.cpu().double() for circuit in circuits]
    off = [(row - spliced_model).abs() for row in diffs]
    return [model, spliced_model, empty, (empty - spliced_model).abs(), *diffs, *off]


def _measures(*means: Float[Tensor, "*samples"]) -> dict[str, Float[Tensor, "circuits *samples"]]:
    """All `MEASURES` of each circuit, from the means of the `_rows`."""
    model, spliced_model, empty, off_empty, *rest = means
    circuits, off = torch.stack(rest).chunk(2)
    vs_spliced = (circuits - empty) / (spliced_model - empty)
    return {
        "vs_model": (circuits - empty) / (model - empty),
        "vs_spliced": vs_spliced,
        "raw": circuits / spliced_model,
        "distance": (1 - vs_spliced).abs(),
        "gap": off / off_empty,
    }


# ---------------------------------------------------------------------------------------------
# Two methods, the same prompts
# ---------------------------------------------------------------------------------------------


def paired_difference(
    a: Float[Tensor, "seeds_a n"],
    b: Float[Tensor, "seeds_b n"],
    measure: str,
    reference: Reference,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval:
    """A measure of a's circuits minus that of b's, with its 95 % interval over prompts.

    Each side is the mean of the measure over its circuits. Both sides use the same draws of
    prompts. For ``distance`` and ``gap``, below 0 = a is better.

    The interval is over prompts only, for the circuits that are there. It does not say how far
    another seed would have come: show the seeds beside it, or their range.

    Args:
        a, b: logit differences on the same prompts, a row for each circuit, such as one for each
            seed of a method.
        measure: one of `MEASURES`.
        reference: what the circuits are compared with, on the same prompts.
        n_bootstrap: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: an unknown measure, a side without circuits, other numbers of prompts.
    """
    _check(measure, reference, a, b)

    def difference(*means: Tensor) -> Tensor:
        values = _measures(*means)[measure]
        return values[: len(a)].mean(0) - values[len(a) :].mean(0)

    rows = _rows(reference, [*a, *b])
    return bootstrap(difference, rows, n_bootstrap=n_bootstrap, seed=seed)


def seed_mean(
    circuits: Float[Tensor, "seeds n"],
    measure: str,
    reference: Reference,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval:
    """The mean of a measure over circuits, with its 95 % interval over prompts.

    The interval is over prompts only, as in `paired_difference`, whose arguments these are too.

    Raises:
        ValueError: an unknown measure, no circuits, other numbers of prompts.
    """
    _check(measure, reference, circuits)
    return bootstrap(
        lambda *means: _measures(*means)[measure].mean(0),
        _rows(reference, circuits),
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def _check(measure: str, reference: Reference, *sides: Tensor) -> None:
    if measure not in MEASURES:
        raise ValueError(f"no measure is called {measure!r}; there are {', '.join(MEASURES)}.")
    wanted = len(reference.spliced_model)
    for rows in sides:
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != wanted:
            raise ValueError(
                f"wanted one circuit or more, each with the logit differences of {wanted} "
                f"prompts; got {list(rows.shape)}."
            )


def nodes_per_layer(masks: SAEMasks) -> dict[str, int]:
    """How many nodes each hook point has in the circuit."""
    return {hook_point: int((mask > 0).sum()) for hook_point, mask in masks.items()}


# ---------------------------------------------------------------------------------------------
# Many circuits, the same prompts
# ---------------------------------------------------------------------------------------------


class Evaluation:
    """Judges circuits of a spliced model on one set of prompts.

        evaluation = Evaluation(spliced, test, means)
        evaluation.faithfulness(circuit).vs_spliced      # an Interval
        evaluation.logit_diff(circuit)                   # [n]; evaluation(circuit) is the same

    What all circuits share is computed once, when it is first asked for: the forward pass up to the
    first SAE, and what they are compared with, F(M), F(S) and F(∅). Logit differences are those of
    the clean prompts, one for each prompt pair, on the CPU.

    Args:
        spliced: the model with its SAEs.
        task: the prompts that judge. Hold them out from those that circuits were chosen on.
        means: what takes the place of what a circuit leaves out: the patch means of the prompts
            that it was chosen on.
    """

    def __init__(self, spliced: SplicedModel, task: Task, means: PatchMeans):
        self.spliced, self.task, self.means = spliced, task, means
        self._remembered: list[_RememberedPass] = []

    def with_means(self, means: PatchMeans) -> Evaluation:
        """The same prompts with something else in the place of what a circuit leaves out.

        F(M) is taken over, and F(S) where the means have no part in it: they do where the error
        policy is ``"mean"`` and the errors are others. Masks that were remembered are not.
        """
        other = Evaluation(self.spliced, self.task, means)
        other.prefix, other.model = self.prefix, self.model
        if self.spliced.error != "mean" or means.errors is self.means.errors:
            other.spliced_model = self.spliced_model
        return other

    # -- what circuits are compared with -------------------------------------------------------

    @cached_property
    def prefix(self) -> Prefix:
        """The clean prompts' forward pass up to the first SAE, which no mask can change."""
        return self.spliced.prefix(self.task.clean, lengths=self.task.lengths)

    @cached_property
    def model(self) -> Float[Tensor, " n"]:
        """Logit differences of the model itself; their mean is F(M)."""
        return self.spliced.model_logit_diff(self.task).cpu()

    @cached_property
    def spliced_model(self) -> Float[Tensor, " n"]:
        """Logit differences of the model with SAEs spliced in, no latent ablated: F(S)."""
        return self._logit_diff_from(self.prefix, None)

    @cached_property
    def empty(self) -> Float[Tensor, " n"]:
        """Logit differences with every latent ablated: F(∅)."""
        return self._logit_diff_from(self.prefix, SAEMasks.full(self.means.latents, 0.0))

    @property
    def reference(self) -> Reference:
        """All three of them."""
        return Reference(self.model, self.spliced_model, self.empty)

    # -- circuits ------------------------------------------------------------------------------

    def logit_diff(self, masks: SAEMasks) -> Float[Tensor, " n"]:
        """The logit difference of every prompt with these masks."""
        return self._logit_diff_from(self._last_shared_prefix(masks), masks)

    def __call__(self, masks: SAEMasks) -> Float[Tensor, " n"]:
        """`logit_diff`."""
        return self.logit_diff(masks)

    def faithfulness(
        self, masks: SAEMasks, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
    ) -> Faithfulness:
        """Faithfulness of the circuit ``masks``, with 95 % intervals over prompts.

        Args:
            masks: the circuit.
            n_bootstrap: draws for the intervals.
            seed: of the draws.
        """
        return Faithfulness.of(
            self.logit_diff(masks),
            model=self.model,
            spliced_model=self.spliced_model,
            empty=self.empty,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )

    def paired_difference(
        self,
        a: SAEMasks | Sequence[SAEMasks],
        b: SAEMasks | Sequence[SAEMasks],
        measure: str,
        *,
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = 0,
    ) -> Interval:
        """A measure of a's circuits minus that of b's, with its 95 % interval over prompts.

        A forward pass for each circuit. Where logit differences are at hand, use the function
        `paired_difference`, which says more.

        Args:
            a, b: a circuit, or circuits of several seeds, whose measures are averaged.
            measure: one of `MEASURES`. For ``distance`` and ``gap``, below 0 = a is better.
            n_bootstrap: draws for the interval.
            seed: of the draws.

        Raises:
            ValueError: an unknown measure, a side without circuits.
        """
        sides = [[side] if isinstance(side, SAEMasks) else list(side) for side in (a, b)]
        if not all(sides):
            raise ValueError("a comparison needs a circuit or more on either side; one has none.")
        rows_a, rows_b = (torch.stack([self(masks) for masks in side]) for side in sides)
        return paired_difference(
            rows_a, rows_b, measure, self.reference, n_bootstrap=n_bootstrap, seed=seed
        )

    @torch.no_grad()
    def remember(self, masks: SAEMasks) -> None:
        """Keep the forward pass with these masks, so that masks like them take less time.

        Masks that equal a remembered one at the first few SAEs go on from where the two part, which
        is most of the way for a circuit without one late node. The numbers are the same, up to
        rounding.
        """
        size = self.spliced.batch_size(self.task.seq_len)
        passes = []
        for first in range(0, len(self.task), size):
            prompts = self.prefix[first : first + size]
            passes.append(self.spliced.run(prompts, masks=masks, means=self.means).prefixes)
        prefixes = {
            name: Prefix(
                passes[0][name].layer,
                torch.cat([prefixes[name].resid for prefixes in passes]),
                self.prefix.errors,
                self.prefix.lengths,
            )
            for name in self.spliced.hook_points
        }
        copies = [mask.detach().clone() for _, mask in masks.items()]  # later changes do not count
        self._remembered.append(_RememberedPass(SAEMasks(masks.hook_points, copies), prefixes))

    def _last_shared_prefix(self, masks: SAEMasks) -> Prefix:
        """The forward pass as far as these masks share it with masks that are remembered."""
        shared = [remembered.shared_with(masks) for remembered in self._remembered]
        return max([self.prefix, *shared], key=lambda prefix: prefix.layer)

    def _logit_diff_from(self, prefix: Prefix, masks: SAEMasks | None) -> Float[Tensor, " n"]:
        values = self.spliced.logit_diff_from(prefix, self.task, masks=masks, means=self.means)
        return values.cpu()


@dataclass(frozen=True)
class _RememberedPass:
    """Masks, and the forward pass with them stopped before each SAE, by hook point in order."""

    masks: SAEMasks
    prefixes: dict[str, Prefix]

    def shared_with(self, masks: SAEMasks) -> Prefix:
        """The forward pass before the first SAE where the masks differ, or before the last SAE."""
        names = list(self.prefixes)
        differ = [name for name in names if not torch.equal(masks[name], self.masks[name])]
        return self.prefixes[differ[0] if differ else names[-1]]


# ---------------------------------------------------------------------------------------------
# Minimality: is everything in it needed?
# ---------------------------------------------------------------------------------------------


def needed(
    lost: Float[Tensor, "n_nodes n"],
    margin: float,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Bool[Tensor, " n_nodes"]:
    """Which nodes a circuit needs: the mean loss without them is above a margin, beyond chance.

    That is, the lower end of its 95 % bootstrap interval over prompts is above it, so with 97.5 %
    confidence.

    Args:
        lost: how far each prompt's logit difference falls when the node leaves, one row per node.
        margin: in logits; more than this must be lost.

    Source: the minimality of Wang et al. 2022, section 4, with K empty: one node at a time. Two
    nodes that do the same work both look dispensable to it.
    """
    draws = resampled_means(lost.T, n_bootstrap=n_bootstrap, seed=seed)
    return draws.quantile(LEVELS[0], dim=0) > margin


# ---------------------------------------------------------------------------------------------
# Stability: would another run have found it?
# ---------------------------------------------------------------------------------------------


def jaccard(a: Iterable, b: Iterable) -> float:
    """Nodes that both have, over nodes that at least one has.

    1 = the same nodes, 0 = none in common, NaN if both are empty.
    """
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a | b else math.nan


def nesting(small: Iterable, large: Iterable) -> float:
    """The fraction of the small circuit's nodes that the large one has too.

    1 = nested, NaN if the small one is empty.
    """
    small = set(small)
    return len(small & set(large)) / len(small) if small else math.nan


def iou_per_layer(a: SAEMasks, b: SAEMasks) -> dict[str, float]:
    """`jaccard` hook point by hook point; NaN where neither circuit has a node."""
    nodes_a, nodes_b = a.nodes(), b.nodes()
    return {
        hook_point: jaccard(
            [node for node in nodes_a if node[0] == hook_point],
            [node for node in nodes_b if node[0] == hook_point],
        )
        for hook_point in a.hook_points
    }


# ---------------------------------------------------------------------------------------------
# The areas of the MIB benchmark: is the method good at every size?
# ---------------------------------------------------------------------------------------------

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The circuit sizes of the MIB benchmark, as fractions of all edges or nodes."""


def areas(
    fractions: Sequence[float],
    values: Sequence[float | Float[Tensor, "*samples"]],
    *,
    log: bool = False,
) -> tuple[Float[Tensor, "*samples"], Float[Tensor, "*samples"]]:
    """CPR and CMD: a method's faithfulness summed up over circuit sizes.

    With f(C_k) the faithfulness of the circuit of a fraction k of all nodes,

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
        ValueError: fractions that do not rise, lie outside 0…1 (or are 0, with ``log``), are fewer
            than two, or not as many as the values.
    """
    x = torch.tensor(list(fractions), dtype=torch.double)
    rising = len(x) >= 2 and bool((x.diff() > 0).all())
    inside = rising and x[0] >= 0 and x[-1] <= 1 and not (log and x[0] == 0)
    if not inside or len(x) != len(values):
        raise ValueError(
            "wanted two or more rising fractions in 0…1 (above 0 for log), one for each value; "
            f"got {list(fractions)} for {len(values)} values."
        )
    f = torch.stack([torch.as_tensor(value, dtype=torch.double) for value in values])  # [sizes, …]
    x = (x.log() - x[0].log()) / (x[-1].log() - x[0].log()) if log else x
    return torch.trapezoid(f, x, dim=0), torch.trapezoid((1 - f).abs(), x, dim=0)


def area_intervals(
    fractions: Sequence[float],
    circuits: Sequence[Float[Tensor, "_seeds n"]],
    reference: Reference,
    *,
    log: bool = False,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """CPR and CMD of a method, as in `areas`, with 95 % intervals over prompts.

    f is ``vs_spliced``. At each size, f and |1 − f| are averaged over the circuits that are there,
    so that a seed which overshoots makes up for nothing in CMD.

    Args:
        fractions: rising, in 0…1.
        circuits: at each fraction, logit differences with a row for each circuit (each seed).
        reference: what the circuits are compared with, on the same prompts.
        log: over ln k, as in `areas`.
        n_bootstrap, seed: of the draws.

    Raises:
        ValueError: fractions that `areas` refuses; a size without circuits; other numbers of
            prompts.
    """
    if len(circuits) != len(fractions):
        raise ValueError(f"there are {len(fractions)} fractions, and {len(circuits)} sizes.")
    _check("vs_spliced", reference, *circuits)
    counts = [len(rows) for rows in circuits]
    rows = _rows(reference, [row for rows in circuits for row in rows])

    def under(measure: str) -> Interval:
        """The area under the measure's mean over seeds."""

        def statistic(*means: Tensor) -> Tensor:
            values = _measures(*means)[measure].split(counts)
            return areas(fractions, [value.mean(0) for value in values], log=log)[0]

        return bootstrap(statistic, rows, n_bootstrap=n_bootstrap, seed=seed)

    return under("vs_spliced"), under("distance")


def sizes_at(fractions: Iterable[float], n: int) -> dict[float, int]:
    """How many of ``n`` nodes each fraction is (rounded down, as in MIB).

    Fractions below one node are left out.
    """
    return {fraction: int(fraction * n) for fraction in fractions if int(fraction * n) > 0}
