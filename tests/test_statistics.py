"""Intervals, proportions and AUC, against known cases and plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits.statistics import (
    Interval,
    auc,
    bootstrap,
    distance_from,
    mean_interval,
    mean_intervals,
    proportion,
    ratio_interval,
    resampled_means,
)


def numbers(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_an_interval_is_written_with_its_ends():
    assert str(Interval(0.876, 0.5, 1.234)) == "0.88 [0.50, 1.23]"


def test_the_distance_from_a_target_by_hand():
    assert distance_from(Interval(0.5, 0.25, 0.75), 1) == Interval(0.5, 0.25, 0.75)
    assert distance_from(Interval(1.5, 1.25, 2.0), 1) == Interval(0.5, 0.25, 1.0)
    assert distance_from(Interval(1.25, 0.5, 1.75), 1) == Interval(0.25, 0.0, 0.75)
    assert distance_from(Interval(0.75, 0.0, 1.5), 1) == Interval(0.25, 0.0, 1.0)
    assert distance_from(Interval(0.5, 0.25, 1.0), 1) == Interval(0.5, 0.0, 0.75)


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=3).map(sorted), st.floats(-9, 9))
def test_the_interval_of_a_distance_holds_the_distances_of_all_in_the_interval(ends, target):
    low, value, high = ends
    distance = distance_from(Interval(value, low, high), target)
    inside = torch.linspace(low, high, 1001, dtype=torch.double)
    more = torch.tensor([value, min(max(target, low), high)], dtype=torch.double)
    inside = torch.cat([inside, more])
    distances = (inside - target).abs()
    assert distance.low == pytest.approx(distances.min().item(), abs=1e-9)
    assert distance.high == pytest.approx(distances.max().item(), abs=1e-9)
    assert distance.low <= distance.value <= distance.high


# ---------------------------------------------------------------------------------------------
# The bootstrap
# ---------------------------------------------------------------------------------------------


def test_a_constant_has_no_interval():
    interval = mean_interval(torch.full((7,), 3.0))
    assert (interval.value, interval.low, interval.high) == pytest.approx((3, 3, 3))


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = numbers(400)
    interval, half = mean_interval(values), 1.96 * values.std().item() / 20
    assert interval.value == pytest.approx(values.mean().item(), abs=1e-6)
    assert interval.high - interval.value == pytest.approx(half, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half, rel=0.1)


def test_the_interval_shrinks_with_the_root_of_the_number_of_prompts():
    few, many = mean_interval(numbers(100)), mean_interval(numbers(10_000))
    assert few.high - few.low == pytest.approx(10 * (many.high - many.low), rel=0.2)


def test_draws_are_means_of_the_rows_drawn():
    values = torch.arange(12.0).reshape(4, 3)
    rows = torch.randint(4, (5, 4), generator=torch.Generator().manual_seed(3))
    draws = resampled_means(values, n_bootstrap=5, seed=3)
    torch.testing.assert_close(draws, values[rows].double().mean(1))


def test_draws_keep_all_axes_but_the_first():
    values = torch.rand(6, 2, 3)
    draws = resampled_means(values, n_bootstrap=9)
    assert draws.shape == (9, 2, 3)
    torch.testing.assert_close(draws[:, 1, 2], resampled_means(values[:, 1, 2], n_bootstrap=9))


def test_another_seed_draws_other_prompts():
    values = numbers(50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
    assert ratio_interval(values, values + 9, seed=1) != ratio_interval(values, values + 9, seed=2)
    table = torch.stack([values, values + 1], dim=1)
    assert mean_intervals(table, seed=1) != mean_intervals(table, seed=2)


def test_without_a_seed_it_is_0_and_there_are_1000_draws():
    values = numbers(50)
    interval = mean_interval(values, seed=0)
    draws = resampled_means(values, n_bootstrap=1000, seed=0)
    assert torch.equal(resampled_means(values), draws)
    assert mean_interval(values) == bootstrap(lambda mean: mean, [values]) == interval
    assert mean_intervals(values[:, None]) == [interval]
    assert interval.low == draws.quantile(0.025).item()
    assert ratio_interval(values, values + 9) == ratio_interval(values, values + 9, seed=0)


def test_ends_are_quantiles_of_the_draws():
    values = numbers(30)
    draws = resampled_means(values, n_bootstrap=200, seed=4)
    interval = bootstrap(lambda mean: mean, [values], n_bootstrap=200, seed=4)
    assert interval.low == pytest.approx(draws.quantile(0.025).item())
    assert interval.high == pytest.approx(draws.quantile(0.975).item())


def test_a_ratio_uses_the_same_draws_above_and_below():
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)) + 0.1
    interval = ratio_interval(2 * values, values)
    assert (interval.value, interval.low, interval.high) == pytest.approx((2, 2, 2))


def test_a_statistic_gets_the_means_in_the_order_of_the_rows():
    one, other = numbers(20) + 3, numbers(20, seed=1) + 5
    interval = bootstrap(lambda a, b: a - 2 * b, [one, other])
    assert interval.value == pytest.approx((one.mean() - 2 * other.mean()).item(), abs=1e-5)
    assert interval.low < interval.value < interval.high


def test_each_column_has_the_interval_that_it_has_alone():
    values = torch.rand(9, 3)
    assert mean_intervals(values) == [mean_interval(values[:, i]) for i in range(3)]


def test_other_numbers_of_prompts_are_refused():
    with pytest.raises(ValueError, match=r"same prompts.*\[3\] above, \[4\] below"):
        ratio_interval(torch.ones(3), torch.ones(4))


# ---------------------------------------------------------------------------------------------
# Proportions
# ---------------------------------------------------------------------------------------------


def wilson(n_true, n):
    """Where |p̂ − p| = z √(p (1 − p) / n), which is a quadratic equation for p."""
    z, p = 1.959963984540054, n_true / n
    a, b, c = 1 + z**2 / n, -(2 * p + z**2 / n), p**2
    root = math.sqrt(max(0.0, b**2 - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=60))
def test_the_ends_of_a_proportion_solve_wilsons_equation(yes):
    interval = proportion(torch.tensor(yes))
    low, high = wilson(sum(yes), len(yes))
    assert interval.value == pytest.approx(sum(yes) / len(yes))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-7)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1 or interval.value in (0, 1)


def test_a_known_proportion():
    interval = proportion([True] * 8 + [False] * 2)
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (0.8, 0.4902, 0.9433), abs=1e-4
    )


def test_parts_of_a_case_count_as_parts():
    assert proportion([0.5] * 4 + [0.0] * 6) == proportion([True] * 2 + [False] * 8)


def test_the_interval_does_not_collapse_where_all_or_none_are_true():
    none, every = proportion([False] * 10), proportion(torch.ones(10, dtype=torch.bool))
    assert (none.low, none.high) == pytest.approx((0, 0.2775), abs=1e-4) and none.low >= 0
    assert (every.low, every.high) == pytest.approx((0.7225, 1), abs=1e-4) and every.high <= 1
    assert "-" not in str(none)


def test_a_proportion_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no cases"):
        proportion([])


# ---------------------------------------------------------------------------------------------
# AUC
# ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_the_pairs_that_are_in_order(cases):
    values = torch.tensor([float(value) for value, _ in cases])
    yes = torch.tensor([is_yes for _, is_yes in cases])
    above = [value for value, is_yes in cases if is_yes]
    below = [value for value, is_yes in cases if not is_yes]
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    if pairs:
        assert auc(values, yes) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
        assert auc(values, ~yes) == pytest.approx(1 - auc(values, yes))
    else:
        assert math.isnan(auc(values, yes))


def test_auc_at_its_ends_and_in_the_middle():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16)
    assert auc(values, torch.tensor([False, False, True, True])) == 1
    assert auc(values, torch.tensor([True, True, False, False])) == 0
    assert auc(torch.zeros(4), torch.tensor([True, False, True, False])) == 0.5
