"""95 % bootstrap intervals over prompts: draw as many prompts again, with replacement, and see how
far a statistic of their means moves.

What is compared on the same prompts is drawn together: the interval of a ratio of two means uses
the same draws for both.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals). Shares of cases have a Wilson
    interval instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

N_BOOTSTRAP = 1000
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def resampled_means(
    values: Float[Tensor, "n *rest"], *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> Float[Tensor, "n_bootstrap *rest"]:
    """The mean over prompts (axis 0) in each of ``n_bootstrap`` draws. The same n and seed give the
    same draws.
    """
    n = len(values)
    rows = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(n_bootstrap, n, dtype=torch.double).scatter_add_(
        1, rows, torch.ones(n_bootstrap, n, dtype=torch.double)
    )
    return (counts @ values.detach().double().cpu().reshape(n, -1) / n).reshape(
        n_bootstrap, *values.shape[1:]
    )


def bootstrap(
    statistic: Callable[..., Tensor],
    rows: Sequence[Float[Tensor, " n"]],
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Interval:
    """A statistic of means over prompts, with its interval.

    Args:
        statistic: gets the mean of each row, in order, as tensors of any one shape: ``lambda c, s:
            c / s``.
        rows: numbers of the same prompts, in the same order.
    """
    table = torch.stack([torch.as_tensor(row).double().cpu() for row in rows], dim=1)  # [n, rows]
    draws = statistic(*resampled_means(table, n_bootstrap=n_bootstrap, seed=seed).T)
    low, high = draws.quantile(torch.tensor(LEVELS, dtype=torch.double)).tolist()
    return Interval(float(statistic(*table.mean(0))), low, high)


def mean_interval(values: Float[Tensor, " n"], *, seed: int = 0) -> Interval:
    """The mean over prompts with its interval."""
    return bootstrap(lambda mean: mean, [values], seed=seed)


def ratio_interval(
    above: Float[Tensor, " n"], below: Float[Tensor, " n"], *, seed: int = 0
) -> Interval:
    """mean(above) / mean(below) with its interval. Both hold a value for each of the same prompts.

    Raises:
        ValueError: another number of prompts above than below.
    """
    if above.shape != below.shape:
        raise ValueError(
            f"a ratio over the same prompts is wanted: {list(above.shape)} above, {list(below.shape)} below."
        )
    return bootstrap(lambda a, b: a / b, [above, below], seed=seed)


def mean_intervals(values: Float[Tensor, "n m"], *, seed: int = 0) -> list[Interval]:
    """The interval of each column's mean."""
    return [mean_interval(column, seed=seed) for column in values.T]


def proportion(yes: Bool[Tensor, " n"] | Float[Tensor, " n"] | Sequence[bool]) -> Interval:
    """The share of True with its 95 % Wilson interval, which does not collapse where all or none
    are.

    A case may also be True by part: 0.2 is one draw in five. The interval is then a little wider
    than it need be.

    Source: Wilson 1927.

    Raises:
        ValueError: of nothing there is no share.
    """
    n, k, z = len(yes), sum(float(x) for x in yes), 1.959964
    if n == 0:
        raise ValueError("a share of no cases at all.")
    centre, half = (
        (k + z * z / 2) / (n + z * z),
        z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z),
    )
    return Interval(k / n, max(0.0, centre - half), min(1.0, centre + half))


def auc(values: Float[Tensor, " n"], yes: Bool[Tensor, " n"]) -> float:
    """The chance that a value from the ``yes`` cases is above one from the others, ties counting
    half (the area under the ROC curve).

    1 = every ``yes`` is above every other, 0.5 = no difference, 0 = every ``yes`` is below. NaN
    where one side is empty.
    """
    a, b = values[yes][:, None], values[~yes][None]
    return ((a > b).double() + 0.5 * (a == b).double()).mean().item()
