"""Intervals, proportions, and how well a number tells two kinds of case apart.

A *bootstrap interval* comes from drawing as many cases again, with replacement, and seeing how far
a statistic of their means moves. What is compared on the same cases is drawn together: the interval
of a ratio of two means uses the same draws for both.

An interval is *over* what is drawn again. In this course that is prompts, unless it is said: it
then answers how far the number would move with other prompts of this kind. Over nodes, seeds or
subsets it answers another question. Say over what an interval is wherever you show it.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals). Proportions have a Wilson
interval instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

N_BOOTSTRAP = 1000
LEVELS = (0.025, 0.975)
"""The ends of every interval, as quantiles: 95 % of the draws lie between them."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval. Who makes it says over what: prompts, where nothing is
    said; or nodes, seeds, subsets.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def distance_from(interval: Interval, target: float | int) -> Interval:
    """How far an estimate is from a target, |x − target|, with the distances in its interval.

    It begins at 0 where the interval holds the target. It is over what the interval is over.
    """
    ends = abs(interval.low - target), abs(interval.high - target)
    held = interval.low <= target <= interval.high
    return Interval(abs(interval.value - target), 0.0 if held else min(ends), max(ends))


# ---------------------------------------------------------------------------------------------
# Means over prompts (or nodes, seeds, subsets), and what is made of them
# ---------------------------------------------------------------------------------------------


def resampled_means(
    values: Float[Tensor, "n *rest"], *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> Float[Tensor, "n_bootstrap *rest"]:
    """The mean over prompts (axis 0) in each of ``n_bootstrap`` draws of them, in float64 on the
    CPU.

    The same n and seed give the same draws.
    """
    n = len(values)
    rows = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed))
    ones = torch.ones(n_bootstrap, n, dtype=torch.double)
    counts = torch.zeros(n_bootstrap, n, dtype=torch.double).scatter_add_(1, rows, ones)
    columns = values.detach().cpu().double().reshape(n, -1)
    return (counts @ columns / n).reshape(n_bootstrap, *values.shape[1:])


def bootstrap(
    statistic: Callable[..., Tensor],
    rows: Sequence[Float[Tensor, " n"]],
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval:
    """A statistic of means over prompts, with its 95 % interval over prompts. (Or over nodes,
    seeds, subsets: over what the rows have a number for.)

    (`scipy.stats.bootstrap` would give each statistic draws of its own. Here the same n and seed
    give every statistic the same draws, whichever rows it is made of.)

    Args:
        statistic: gets the mean of each row, in order, as tensors of any one shape: ``lambda c, s:
            c / s``.
        rows: numbers of the same prompts (or nodes, …), in the same order.
        n_bootstrap: how often to draw.
        seed: of the draws.
    """
    table = torch.stack([row.cpu().double() for row in rows], dim=1)  # [n, rows]
    draws = statistic(*resampled_means(table, n_bootstrap=n_bootstrap, seed=seed).T)
    low, high = draws.quantile(torch.tensor(LEVELS, dtype=torch.double)).tolist()
    return Interval(float(statistic(*table.mean(0))), low, high)


def mean_interval(values: Float[Tensor, " n"], *, seed: int = 0) -> Interval:
    """The mean over prompts (or nodes, …: over what there is a value for), with its interval over
    the same.
    """
    return bootstrap(lambda mean: mean, [values], seed=seed)


def mean_intervals(values: Float[Tensor, "n m"], *, seed: int = 0) -> list[Interval]:
    """The interval of each column's mean, over the rows: prompts (or nodes, …)."""
    return [mean_interval(column, seed=seed) for column in values.T]


def ratio_interval(
    above: Float[Tensor, " n_above"], below: Float[Tensor, " n_below"], *, seed: int = 0
) -> Interval:
    """mean(above) / mean(below) with its interval over prompts. Both hold a value for each of the
    same prompts.

    Raises:
        ValueError: another number of prompts above than below.
    """
    if above.shape != below.shape:
        raise ValueError(
            "a ratio needs the same prompts above and below its line: there are "
            f"{list(above.shape)} above, {list(below.shape)} below."
        )
    return bootstrap(lambda a, b: a / b, [above, below], seed=seed)


# ---------------------------------------------------------------------------------------------
# Cases that are true or false
# ---------------------------------------------------------------------------------------------


def proportion(yes: Bool[Tensor, " n"] | Float[Tensor, " n"] | Sequence[bool | float]) -> Interval:
    """How many of the cases are True, with a 95 % Wilson interval over cases (prompts, nodes, …).

    It does not collapse where all or none are. A case may also be True by part: 0.2 is one draw in
    five. The interval is then a little wider than it need be.

    Source: Wilson 1927.

    Raises:
        ValueError: there are no cases.
    """
    n, n_true = len(yes), sum(float(x) for x in yes)
    if n == 0:
        raise ValueError("a proportion of no cases at all: give one case or more.")
    ends: Any = proportion_confint(n_true, n, alpha=2 * LEVELS[0], method="wilson")
    low, high = ends  # numbers, since n_true is one
    return Interval(n_true / n, max(0.0, float(low)), min(1.0, float(high)))


def auc(values: Float[Tensor, " n"], yes: Bool[Tensor, " n"]) -> float:
    """The chance that a value from the ``yes`` cases is above one from the others.

    Ties count half. It is the area under the ROC curve, and Mann and Whitney's U as a share of all
    pairs. 1 = every ``yes`` is above every other, 0.5 = no difference, 0 = every ``yes`` is below.
    NaN where one side is empty.
    """
    n_yes = int(yes.sum())
    n_other = len(yes) - n_yes
    if n_yes == 0 or n_other == 0:
        return math.nan
    ranks = rankdata(values.detach().cpu().double().numpy())  # ties get their mean rank
    lowest = n_yes * (n_yes + 1) / 2  # the sum of ranks if every yes is below every other
    return float((ranks[yes.cpu().numpy()].sum() - lowest) / (n_yes * n_other))
