"""Bootstrap intervals against known cases."""

import pytest
import torch

from course_utils.circuits.statistics import (
    mean_interval,
    mean_intervals,
    ratio_interval,
    resampled_means,
)


def test_a_constant_has_no_interval():
    found = mean_interval(torch.full((7,), 3.0))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    found, half = mean_interval(values), 1.96 * values.std().item() / 20
    assert found.value == pytest.approx(values.mean().item(), abs=1e-6)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_a_ratio_uses_the_same_draws_above_and_below():
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)) + 0.1
    found = ratio_interval(2 * values, values)
    assert (found.low, found.high) == pytest.approx((2, 2))


def test_draws_are_means_of_the_rows_drawn():
    values = torch.arange(12.0).reshape(4, 3)
    rows = torch.randint(4, (5, 4), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        resampled_means(values, n_bootstrap=5, seed=3), values[rows].double().mean(1)
    )


def test_a_band_is_an_interval_a_column():
    values = torch.rand(9, 3)
    assert mean_intervals(values)[1] == mean_interval(values[:, 1])


def test_other_numbers_of_prompts_are_refused():
    with pytest.raises(ValueError, match="the same prompts"):
        ratio_interval(torch.ones(3), torch.ones(4))
