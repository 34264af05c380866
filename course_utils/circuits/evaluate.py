"""How good is a circuit? Its faithfulness on held-out prompts, with intervals.

Four logit differences, each a mean over prompts: F(M) the model, F(S) the model with SAEs spliced
in, F(C) the circuit, F(∅) every latent ablated. *Faithfulness* is how far from nothing to
everything the circuit gets, and papers differ in what they call nothing and everything. Three
versions are reported, by name:

    vs_model    (F(C) − F(∅)) / (F(M) − F(∅))    Marks et al. 2024
    vs_spliced  (F(C) − F(∅)) / (F(S) − F(∅))    charges the circuit nothing for what the SAEs lose
    raw         F(C) / F(S)                      the post: F(∅) is taken to be 0

(Wang et al. 2022 use the difference F(M) − F(C).) All three compare means over prompts, so that a
circuit which is too sure of one prompt and too unsure of the next can score 1. The *gap* cannot be
fooled so: it is what a learned mask minimises, per prompt,

    gap         mean |LD_C − LD_S| / mean |LD_∅ − LD_S|

0 = the same on every prompt, 1 = as far off as nothing.

`Evaluation` computes all of these, for as many circuits as you like. A faithful set of nodes is not
yet *the* circuit. Further down are other questions that one asks of it, each with its source:
minimality (is everything in it needed?), stability (would another run have found it?), and the area
measures of the MIB benchmark (is the method good at every size?).
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
from course_utils.circuits.statistics import LEVELS, N_BOOTSTRAP, Interval, resampled_means
from course_utils.prompts.tasks import Task

MEASURES = ("vs_model", "vs_spliced", "raw", "gap")
"""The names of the intervals that `Faithfulness` has."""

Evaluate = Callable[[SAEMasks], Float[Tensor, " n"]]
"""The logit difference of every prompt with these masks; an `Evaluation` is such a function."""


# ---------------------------------------------------------------------------------------------
# Faithfulness
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faithfulness:
    """The three faithfulnesses of one circuit and its gap, and the means that they are made of.

    Attributes:
        vs_model, vs_spliced, raw: 0 = no better than ablating every latent (for ``raw``: than a
            logit difference of 0); 1 = as good as the model (or the spliced model); above 1, the
            circuit is surer than the model.
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
        rows = [row.double().cpu() for row in (model, spliced_model, circuit, empty)]
        off, off_empty = (rows[2] - rows[1]).abs(), (rows[3] - rows[1]).abs()
        table = torch.stack([*rows, off, off_empty])  # [6, n]
        means = table.mean(-1)
        draws = _ratios(resampled_means(table.T, n_bootstrap=n_bootstrap, seed=seed).T)
        low, high = draws.quantile(torch.tensor(LEVELS, dtype=torch.double), dim=-1)
        ends = zip(_ratios(means).tolist(), low.tolist(), high.tolist(), strict=True)
        vs_model, vs_spliced, raw, gap = (Interval(*three) for three in ends)
        f_model, f_spliced, f_circuit, f_empty, *_ = means.tolist()
        return cls(
            vs_model=vs_model,
            vs_spliced=vs_spliced,
            raw=raw,
            gap=gap,
            f_model=f_model,
            f_spliced=f_spliced,
            f_circuit=f_circuit,
            f_empty=f_empty,
            n=len(circuit),
        )


def _ratios(means: Float[Tensor, "6 *samples"]) -> Float[Tensor, "4 *samples"]:
    """The four `MEASURES`, from means: LD_M, LD_S, LD_C, LD_∅, |LD_C − LD_S|, |LD_∅ − LD_S|."""
    model, spliced_model, circuit, empty, off, off_empty = means
    return torch.stack(
        [
            (circuit - empty) / (model - empty),
            (circuit - empty) / (spliced_model - empty),
            circuit / spliced_model,
            off / off_empty,
        ]
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

    That is, the lower end of its 95 % bootstrap interval is above it, so with 97.5 % confidence.

    Args:
        lost: how far each prompt's logit difference falls when the node leaves, a row a node.
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


def sizes_at(fractions: Iterable[float], n: int) -> dict[float, int]:
    """How many of ``n`` nodes each fraction is (rounded down, as in MIB).

    Fractions below one node are left out.
    """
    return {fraction: int(fraction * n) for fraction in fractions if int(fraction * n) > 0}
