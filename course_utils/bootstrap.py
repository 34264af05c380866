"""95 % bootstrap intervals over prompts: draw as many prompts again, with replacement, and see how far the mean moves.

What is compared on the same prompts is drawn together: the interval of a ratio of two means uses the same draws for both.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.evaluate import Interval

N_BOOTSTRAP = 1000
LEVELS = (0.025, 0.975)


def resampled_means(
    values: Float[Tensor, "n *rest"], *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> Float[Tensor, "n_bootstrap *rest"]:
    """The mean over prompts (axis 0) in each of ``n_bootstrap`` draws. The same n and seed give the same draws."""
    n = len(values)
    rows = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(n_bootstrap, n, dtype=torch.double).scatter_add_(1, rows, torch.ones(n_bootstrap, n, dtype=torch.double))
    return (counts @ values.detach().double().cpu().reshape(n, -1) / n).reshape(n_bootstrap, *values.shape[1:])


def mean_interval(values: Float[Tensor, " n"], *, seed: int = 0) -> Interval:
    """The mean over prompts with its 95 % interval."""
    return _interval(values.double().mean(), resampled_means(values, seed=seed))


def ratio_interval(above: Float[Tensor, " n"], below: Float[Tensor, " n"], *, seed: int = 0) -> Interval:
    """mean(above) / mean(below) with its 95 % interval. Both hold a value for each of the same prompts.

    Raises:
        ValueError: another number of prompts above than below.
    """
    if above.shape != below.shape:
        raise ValueError(f"a ratio over the same prompts is wanted: {list(above.shape)} above, {list(below.shape)} below.")
    means = resampled_means(torch.stack([above, below], dim=1), seed=seed)
    return _interval(above.double().mean() / below.double().mean(), means[:, 0] / means[:, 1])


def band(values: Float[Tensor, "n m"], *, seed: int = 0) -> list[Interval]:
    """The interval of each column's mean."""
    return [mean_interval(column, seed=seed) for column in values.T]


def _interval(value: Tensor, draws: Float[Tensor, " n_bootstrap"]) -> Interval:
    low, high = draws.quantile(torch.tensor(LEVELS, dtype=torch.double)).tolist()
    return Interval(float(value), low, high)
