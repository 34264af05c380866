"""Hypothesis tests: p-values that keep their promise, and a search that finds the worst subset."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.hypotheses import (
    LEVEL,
    KnockOut,
    equivalence,
    gaussian_kernel,
    hsic,
    independence,
    inflated_drops,
    knocked_out,
    minimality,
    rank_p_value,
    references_needed,
    worst_subset,
)
from course_utils.circuits.masks import SAEMasks, only, without

ALPHAS = (0.05, 0.1, 0.3, 0.5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def share_below(p_values, alpha):
    return sum(p <= alpha for p in p_values) / len(p_values)


def noise(alpha, n):
    """How far a share of ``n`` draws may lie from α: 3.5 standard errors."""
    return 3.5 * math.sqrt(alpha * (1 - alpha) / n)


# ---------------------------------------------------------------------------------------------
# Equivalence
# ---------------------------------------------------------------------------------------------


def signs(n_above, n_below, n_ties=0):
    """A circuit and a model of which the first is above so often."""
    above = torch.tensor([1.0] * n_above + [-1.0] * n_below + [0.0] * n_ties)
    return above + 2, torch.full((len(above),), 2.0)


def binomial_sum(n, k, share):
    """The chance of a share at least as far from 1/2 as k/n, term by term, in whole numbers."""
    return sum(
        math.comb(n, j) * share**j * (1 - share) ** (n - j)
        for j in range(n + 1)
        if abs(2 * j - n) >= abs(2 * k - n)
    )


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_equivalence_is_the_sum_over_shares_as_far_from_one_half(case):
    n, k = case
    for epsilon in (Fraction(0), Fraction(1, 10), Fraction(1, 4)):
        found = equivalence(*signs(k, n - k), epsilon=float(epsilon))
        wanted = float(binomial_sum(n, k, Fraction(1, 2) + epsilon))
        assert found.p_value == pytest.approx(wanted, abs=1e-12)
        assert found.statistic == pytest.approx(abs(k / n - 0.5))


def test_without_a_margin_equivalence_is_the_sign_test():
    for k in range(13):
        found = equivalence(*signs(k, 12 - k), epsilon=0.0)
        assert found.p_value == pytest.approx(binomtest(k, 12).pvalue)


def test_prompts_on_which_both_are_equal_do_not_count():
    with_ties = equivalence(*signs(9, 3, n_ties=5))
    assert (with_ties.n, with_ties.n_ties) == (12, 5)
    assert with_ties.p_value == equivalence(*signs(9, 3)).p_value
    assert with_ties.share.value == 0.75 and equivalence(*signs(9, 3)).n_ties == 0


def test_equivalence_asks_how_often_the_circuit_is_above_and_not_by_how_much():
    circuit, model = signs(5, 5)
    model[0] -= 100
    assert equivalence(circuit, model).p_value == 1
    assert equivalence(model - 0.001, model).p_value < 0.01


def equivalence_p_values(share, epsilon, n=60, n_draws=1000):
    above = torch.rand(n_draws, n, generator=generator(1)) < share
    return [equivalence(row.float() + 0.5, torch.ones(n), epsilon=epsilon).p_value for row in above]


def test_equivalence_is_rejected_no_more_often_than_it_says_at_the_edge_of_its_null():
    for epsilon in (0.0, 0.1):
        p_values = equivalence_p_values(0.5 + epsilon, epsilon)
        for alpha in ALPHAS:
            rate = share_below(p_values, alpha)
            assert rate <= alpha + noise(alpha, 1000)
            assert rate >= alpha / 2 - 0.01  # discrete: the next smaller p-value is some way off


def test_equivalence_is_seldom_rejected_inside_its_null_and_mostly_far_outside():
    assert share_below(equivalence_p_values(0.5, 0.1, n_draws=400), 0.05) < 0.01
    for share in (0.1, 0.9):
        assert share_below(equivalence_p_values(share, 0.1, n_draws=100), 0.05) > 0.95


def test_equivalence_says_what_it_found():
    assert str(equivalence(*signs(2, 18))) == (
        "The circuit is above the model on 0.10 [0.03, 0.30] of n = 20 prompts, where equivalence "
        "allows 0.5 ± 0.1: it is not equivalent (p = 0.004)."
    )
    assert "it may or may not be equivalent (p = 1.000)" in str(equivalence(*signs(10, 10)))
    assert "(p < 0.001)" in str(equivalence(*signs(0, 50)))


@pytest.mark.usefixtures("wrong_types")
def test_equivalence_refuses_what_it_cannot_test():
    with pytest.raises(ValueError, match="equal on every prompt"):
        equivalence(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="there are 3 of one, 4 of the other"):
        equivalence(torch.ones(3), torch.zeros(4))
    for epsilon in (-0.1, 0.5):
        with pytest.raises(ValueError, match="epsilon must be 0 or more and below 0.5"):
            equivalence(*signs(3, 4), epsilon=epsilon)


# ---------------------------------------------------------------------------------------------
# Independence
# ---------------------------------------------------------------------------------------------


def kernel_by_hand(x):
    apart = sorted(abs(a - b) for a in x for b in x if a != b)
    sigma = apart[(len(apart) - 1) // 2]
    return [[math.exp(-((a - b) ** 2) / (2 * sigma**2)) for b in x] for a in x]


def hsic_by_hand(x, y):
    """Mean of k·l, plus the product of means, minus twice the mean of products of row means."""
    n, k, l = len(x), kernel_by_hand(x), kernel_by_hand(y)  # noqa: E741
    mean = lambda m: sum(map(sum, m)) / n**2  # noqa: E731
    both = sum(k[i][j] * l[i][j] for i in range(n) for j in range(n)) / n**2
    rows = sum(sum(k[i]) * sum(l[i]) for i in range(n)) / n**3
    return both + mean(k) * mean(l) - 2 * rows


def test_hsic_is_its_sum_over_pairs_of_prompts():
    for seed in range(3):
        x, y = numbers(9, seed=seed), numbers(9, seed=seed + 10)
        assert hsic(x, y) == pytest.approx(hsic_by_hand(x.tolist(), y.tolist()), rel=1e-6)
        assert independence(x, y, n_permutations=1).statistic == pytest.approx(hsic(x, y))


def test_hsic_does_not_depend_on_units_or_on_which_comes_first():
    x, y = numbers(12), numbers(12, seed=1)
    assert hsic(x, y) == pytest.approx(hsic(y, x))
    assert hsic(100 * x - 5, y / 7) == pytest.approx(hsic(x, y), rel=1e-4)


def test_a_kernel_is_1_at_home_and_falls_with_distance():
    kernel = gaussian_kernel(torch.tensor([0.0, 0.0, 1.0, 3.0]))
    assert torch.equal(kernel, kernel.T) and kernel[0, 1] == 1 == kernel[2, 2]
    # Distances between prompts that differ are 1, 1, 2, 3, 3; the median is 2.
    assert kernel[0, 2].item() == pytest.approx(math.exp(-1 / 8))
    assert kernel[0, 3].item() == pytest.approx(math.exp(-9 / 8))


def independence_p_values(make, n=20, n_draws=400, **options):
    pairs = (make(seed, n) for seed in range(n_draws))
    return [
        independence(x, y, n_permutations=99, seed=seed, **options).p_value
        for seed, (x, y) in enumerate(pairs)
    ]


def test_the_p_value_of_independence_is_uniform_where_both_are_independent():
    p_values = independence_p_values(lambda s, n: (numbers(n, seed=s), numbers(n, seed=s + 10_000)))
    for alpha in ALPHAS:
        assert abs(share_below(p_values, alpha) - alpha) <= noise(alpha, 400)


def test_independence_is_rejected_for_a_dependence_that_no_line_sees():
    def bent(seed, n):
        x = numbers(n, seed=seed)
        return x, x**2 + 0.1 * numbers(n, seed=seed + 10_000)

    assert share_below(independence_p_values(bent, n=30, n_draws=30), 0.05) > 0.9


def by_answer(seed, n):
    """Independent within each of two answers; the second is larger in both."""
    shift = 4.0 * (torch.arange(n) % 2)
    return numbers(n, seed=seed) + shift, numbers(n, seed=seed + 10_000) + shift


def test_groups_take_out_what_both_owe_to_the_answer():
    answers = [i % 2 for i in range(20)]
    assert share_below(independence_p_values(by_answer, n_draws=50), 0.05) > 0.9
    p_values = independence_p_values(by_answer, groups=answers)
    for alpha in ALPHAS:
        assert abs(share_below(p_values, alpha) - alpha) <= noise(alpha, 400)


def test_groups_do_not_hide_a_dependence_within_them():
    def dependent(seed, n):
        x, _ = by_answer(seed, n)
        return x, x + 0.1 * numbers(n, seed=seed + 10_000)

    answers = [i % 2 for i in range(20)]
    p_values = independence_p_values(dependent, n_draws=20, groups=answers)
    assert share_below(p_values, 0.05) == 1


def test_all_permutations_of_few_prompts_give_the_exact_p_value():
    x, y = numbers(5), numbers(5) + 0.5 * numbers(5, seed=1)
    orders = list(itertools.permutations(range(5)))
    as_large = sum(hsic(x, y[list(order)]) >= hsic(x, y) - 1e-9 for order in orders)
    found = independence(x, y, n_permutations=4000)
    assert found.p_value == pytest.approx(as_large / len(orders), abs=0.03)
    by_chance = sum(hsic(x, y[list(order)]) for order in orders) / len(orders)
    assert found.by_chance == pytest.approx(by_chance, rel=0.05)


def test_what_is_the_same_on_every_prompt_is_independent_of_all():
    found = independence(torch.full((9,), 0.3), numbers(9), n_permutations=50)
    assert found.p_value == 1 and found.statistic == pytest.approx(0, abs=1e-12)


def test_the_seed_of_independence_draws_other_permutations():
    x, y = numbers(15), numbers(15, seed=3)
    p_values = [independence(x, y, n_permutations=200, seed=seed).p_value for seed in (0, 0, 1)]
    assert p_values[0] == p_values[1] != p_values[2]
    default = independence(x, y)
    assert default == independence(x, y, n_permutations=1000, seed=0)


def test_independence_says_what_it_found():
    x = torch.arange(20.0)
    found = independence(x, 2 * x, n_permutations=99)
    assert found.p_value == 0.01 and found.n == 20
    assert str(found) == (
        f"HSIC is {found.statistic:.4f} over n = 20 prompts, and {found.by_chance:.4f} by chance: "
        "what is left without the circuit is not independent of the model (p = 0.010)."
    )
    assert "may or may not be independent" in str(independence(x, torch.ones(20)))


@pytest.mark.usefixtures("wrong_types")
def test_independence_refuses_what_it_cannot_test():
    x = numbers(4)
    with pytest.raises(ValueError, match="there are 4 of one, 3 of the other"):
        independence(x, x[:3])
    with pytest.raises(ValueError, match="two prompts or more are wanted, and there are 1"):
        independence(x[:1], x[:1])
    with pytest.raises(ValueError, match="n_permutations must be 1 or more, not 0"):
        independence(x, x, n_permutations=0)
    with pytest.raises(ValueError, match="3 groups, 4 prompts"):
        independence(x, x, groups=["a", "b", "a"])
    with pytest.raises(ValueError, match="every group has one prompt"):
        independence(x, x, groups=[1, 2, 3, 4])


# ---------------------------------------------------------------------------------------------
# Minimality
# ---------------------------------------------------------------------------------------------


def test_minimality_counts_the_random_nodes_that_change_less():
    drops = torch.tensor([[3.0, -3.0], [0.5, 0.5], [0.0, 0.0]])
    reference = torch.tensor([[1.0, -1.0], [0.5, 0.5], [2.0, 0.0], [4.0, 4.0]])
    found = minimality(drops, reference, quantile=0.5)
    assert found.changes.tolist() == [3, 0.5, 0]
    assert found.statistic.tolist() == [0.75, 0, 0]  # not: as much as
    less = [binomtest(k, 4, 0.5, alternative="less").pvalue for k in (3, 0, 0)]
    greater = [binomtest(k, 4, 0.5, alternative="greater").pvalue for k in (3, 0, 0)]
    assert found.p_value.tolist() == pytest.approx([min(1, 3 * p) for p in less])
    assert found.p_needed.tolist() == pytest.approx([min(1, 3 * p) for p in greater])


def test_minimality_tells_carriers_from_padding():
    reference = 0.1 * numbers(100, 30)
    drops = torch.cat([1 + 0.1 * numbers(4, 30, seed=1), 0.1 * numbers(3, 30, seed=2)])
    found = minimality(drops, reference)
    assert found.needed.tolist() == [True] * 4 + [False] * 3
    assert found.unneeded[4:].sum() >= 2 and not found.unneeded[:4].any()
    assert found.n == 100 and found.quantile == 0.9


def minimality_p_values(level, n_nodes=1, n_draws=2000):
    """Of a node that changes more than a share ``level`` of random nodes, in truth."""
    found = [
        minimality(
            torch.full((n_nodes, 1), level), torch.rand(100, 1, generator=generator(seed)).abs()
        )
        for seed in range(n_draws)
    ]
    return [f.p_value[0].item() for f in found], [f.p_needed[0].item() for f in found]


def test_the_p_values_of_minimality_keep_their_promise_at_the_edge_of_their_nulls():
    for p_values in minimality_p_values(0.9):
        for alpha in ALPHAS:
            rate = share_below(p_values, alpha)
            assert rate <= alpha + noise(alpha, 2000)
            assert rate >= alpha / 2 - 0.01  # discrete: the next smaller p-value is some way off


def test_minimality_decides_for_nodes_far_from_the_quantile():
    unneeded, _ = minimality_p_values(0.5, n_draws=50)
    _, needed = minimality_p_values(0.999, n_draws=50)
    assert share_below(unneeded, 0.05) == 1 and share_below(needed, 0.05) > 0.9


def test_p_values_of_minimality_are_times_the_number_of_nodes():
    _, [one] = minimality_p_values(0.97, n_nodes=1, n_draws=1)
    _, [of_seven] = minimality_p_values(0.97, n_nodes=7, n_draws=1)
    assert of_seven == pytest.approx(min(1, 7 * one)) and one < 0.1


@given(st.integers(1, 400), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_with_fewer_references_than_needed_no_node_can_be_called_needed(n_nodes, quantile):
    n = references_needed(n_nodes, quantile=quantile)
    assert quantile**n * n_nodes < LEVEL <= quantile ** (n - 1) * n_nodes * (1 + 1e-9)


def test_references_needed_are_those_that_minimality_needs():
    n = references_needed(20)
    drops = torch.ones(20, 3)
    assert minimality(drops, torch.zeros(n, 3)).needed.all()
    assert not minimality(drops, torch.zeros(n - 1, 3)).needed.any()


def test_inflated_drops_are_what_a_node_changes_when_it_joins_alone(spliced, task, means):
    evaluation = Evaluation(spliced, task, means)
    everything = SAEMasks.full(means.latents, 1.0)
    circuit = only(everything, everything.nodes()[::5])
    extra = [node for node in everything.nodes() if node not in circuit.nodes()][::40]
    found = inflated_drops(evaluation, circuit, extra)
    for row, node in zip(found, extra, strict=True):
        inflated = only(everything, [*circuit.nodes(), node])
        wanted = evaluation(inflated) - evaluation(without(inflated, [node]))
        torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)
    assert found.abs().max() > 1e-3


def test_inflated_drops_need_nodes_that_are_not_in_the_circuit(spliced, task, means):
    circuit = only(SAEMasks.full(means.latents, 1.0), [(spliced.hook_points[0], 2, 7)])
    evaluation = Evaluation(spliced, task, means)
    with pytest.raises(ValueError, match=r"2, 7\) is in the circuit: give nodes that are not"):
        inflated_drops(evaluation, circuit, circuit.nodes())
    with pytest.raises(ValueError, match="no extra nodes"):
        inflated_drops(evaluation, circuit, [])


def test_minimality_says_what_it_found():
    drops = torch.tensor([[1.0], [0.93], [0.0]])
    found = minimality(drops, torch.linspace(0.001, 0.999, 100)[:, None])
    assert str(found) == (
        "Against 90% of n = 100 random nodes, 1 of 3 nodes change more, 1 do not, and 1 are "
        "undecided: the circuit is not minimal."
    )
    assert "may or may not be minimal" in str(minimality(drops[:2], torch.zeros(100, 1)))


@pytest.mark.usefixtures("wrong_types")
def test_minimality_refuses_what_it_cannot_test():
    drops = torch.ones(2, 3)
    for references in (torch.ones(4, 2), torch.ones(0, 3)):
        with pytest.raises(ValueError, match="over the same prompts"):
            minimality(drops, references)
    with pytest.raises(ValueError, match="one row or more"):
        minimality(drops[:0], drops)
    for quantile in (0.0, 1.0):
        with pytest.raises(ValueError, match="quantile must lie between 0 and 1"):
            minimality(drops, drops, quantile=quantile)


# ---------------------------------------------------------------------------------------------
# Rank among random circuits
# ---------------------------------------------------------------------------------------------


def test_a_rank_counts_the_value_itself_among_the_references():
    references = [0.1, 0.2, 0.3, 0.4]
    assert rank_p_value(0.5, references) == pytest.approx(1 / 5)
    assert rank_p_value(0.3, references) == pytest.approx(3 / 5)  # ties count
    assert rank_p_value(0.1 + 0.2, references) == pytest.approx(3 / 5)  # and so does rounding
    assert rank_p_value(0.25, torch.tensor(references)) == pytest.approx(3 / 5)
    assert rank_p_value(0.0, references) == 1
    assert rank_p_value(2.0, [1.0] * 19) == 0.05


def test_ranks_are_uniform_where_the_value_is_drawn_like_the_references():
    draws = torch.rand(4000, 20, generator=generator())
    p_values = [rank_p_value(row[0].item(), row[1:]) for row in draws]
    for k in range(1, 21):
        share = sum(abs(p - k / 20) < 1e-9 for p in p_values) / 4000
        assert abs(share - 1 / 20) <= noise(1 / 20, 4000)


@pytest.mark.usefixtures("wrong_types")
def test_a_rank_among_nothing_and_of_no_number_is_refused():
    with pytest.raises(ValueError, match="no references"):
        rank_p_value(1.0, [])
    for value, references in ((math.nan, [1.0]), (1.0, [0.0, math.nan])):
        with pytest.raises(ValueError, match="NaN"):
            rank_p_value(value, references)


# ---------------------------------------------------------------------------------------------
# The worst subset
# ---------------------------------------------------------------------------------------------

PLACE = "blocks.0.hook_resid_post"
WEIGHTS = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.0])
BACKUP = {0: 5}
"""Latents 0 to 4 are the circuit; latent 5 does 0's work where 0 is gone, and half of 2's."""


def toy(masks):
    """Logit differences of a model with a backup: two prompts, whose mean is F."""
    on = masks[PLACE][1]
    backup = on[5] * ((1 - on[0]) * WEIGHTS[0] + 0.5 * (1 - on[2]) * WEIGHTS[2])
    value = (WEIGHTS * on).sum() + backup
    return torch.stack([value - 1, value + 1])


@pytest.fixture
def toy_masks():
    everything = SAEMasks.full({PLACE: torch.zeros(2, 6)}, 1.0)
    return only(everything, [(PLACE, 1, i) for i in range(5)]), everything


def test_a_knock_out_takes_the_nodes_out_of_both(toy_masks):
    circuit, everything = toy_masks
    found = knocked_out(toy, circuit, everything, [(PLACE, 1, 0), (PLACE, 1, 1)])
    assert (found.circuit, found.whole, found.incompleteness) == (3.5, 7.5, 4.0)
    assert circuit.get_num_latents() == 5 and everything.get_num_latents() == 6


def test_the_worst_subset_is_that_of_trying_all(toy_masks):
    circuit, everything = toy_masks
    nodes = circuit.nodes()
    path = worst_subset(toy, circuit, everything, nodes, max_size=5, seed=0)
    every = [
        knocked_out(toy, circuit, everything, some)
        for size in range(6)
        for some in itertools.combinations(nodes, size)
    ]
    assert path[-1].incompleteness == max(k.incompleteness for k in every) == 5
    assert [k.removed for k in path] == [[], nodes[:1], [nodes[0], nodes[2]]]
    assert [tuple(k[1:]) for k in path] == [(10.5, 10.5), (6.5, 10.5), (4.5, 9.5)]


def test_incompleteness_rises_along_the_way_and_the_size_is_bounded(toy_masks):
    circuit, everything = toy_masks
    path = worst_subset(toy, circuit, everything, circuit.nodes(), max_size=1, seed=0)
    assert len(path) == 2 and path[0].removed == []
    for seed in range(5):
        path = worst_subset(
            toy, circuit, everything, circuit.nodes(), max_size=4, n_candidates=1, seed=seed
        )
        values = [k.incompleteness for k in path]
        assert values == sorted(set(values))
        assert all(len(k.removed) == i for i, k in enumerate(path))


def test_a_step_tries_no_more_candidates_than_it_may(toy_masks):
    circuit, everything = toy_masks
    n_asked = 0

    def counting(masks):
        nonlocal n_asked
        n_asked += 1
        return toy(masks)

    for n_candidates, n_restarts, n_wanted in ((2, 1, 2), (2, 3, 6), (10, 1, 5)):
        n_asked = 0
        settings: dict[str, Any] = dict(
            max_size=1, n_candidates=n_candidates, n_restarts=n_restarts
        )
        worst_subset(counting, circuit, everything, circuit.nodes(), seed=0, **settings)
        assert n_asked == 2 * (1 + n_wanted)


def test_a_search_that_can_go_no_further_stops(toy_masks):
    circuit, everything = toy_masks
    n_asked = 0

    def counting(masks):
        nonlocal n_asked
        n_asked += 1
        return toy(masks)

    worst_subset(counting, circuit, everything, circuit.nodes(), max_size=100, seed=0)
    assert n_asked == 2 * (1 + 5 + 4 + 3)


def test_the_best_of_several_searches_is_returned(toy_masks):
    circuit, everything = toy_masks
    few: dict[str, Any] = dict(max_size=2, n_candidates=1)
    ends = [
        worst_subset(toy, circuit, everything, circuit.nodes(), seed=seed, **few)[-1].incompleteness
        for seed in range(10)
    ]
    assert min(ends) < 5
    many = worst_subset(toy, circuit, everything, circuit.nodes(), n_restarts=60, seed=0, **few)
    assert many[-1].incompleteness == 5


def test_the_seed_draws_the_candidates(toy_masks):
    circuit, everything = toy_masks
    few: dict[str, Any] = dict(max_size=3, n_candidates=1)
    paths = [
        worst_subset(toy, circuit, everything, circuit.nodes(), seed=seed, **few)
        for seed in (*range(8), *range(8))
    ]
    assert paths[:8] == paths[8:]
    assert len({tuple(path[-1].removed) for path in paths}) > 1


def test_worst_subset_on_a_model_gives_the_logit_differences_of_its_masks(spliced, task, means):
    evaluation = Evaluation(spliced, task, means)
    everything = SAEMasks.full(means.latents, 1.0)
    firing = [
        (name, position, latent)
        for name, f in spliced.run(task.clean).latents.items()
        for position, latent in (f != 0).any(0).nonzero().tolist()
    ]
    circuit = only(everything, firing[::4][:8])
    path = worst_subset(evaluation, circuit, everything, circuit.nodes(), max_size=3, seed=0)
    assert len(path) > 1
    for removed, f_circuit, f_whole in path:
        for f, masks in ((f_circuit, circuit), (f_whole, everything)):
            direct = spliced.logit_diff(task, masks=without(masks, removed), means=means)
            assert f == pytest.approx(direct.mean().item(), abs=1e-4)
    single = [knocked_out(evaluation, circuit, everything, [node]) for node in circuit.nodes()]
    assert path[1].incompleteness == pytest.approx(max(k.incompleteness for k in single), abs=1e-4)


def test_a_knock_out_has_the_three_that_it_is_said_to_have():
    removed, f_circuit, f_whole = KnockOut([(PLACE, 1, 0)], 1.0, 3.5)
    assert (removed, f_circuit, f_whole) == ([(PLACE, 1, 0)], 1.0, 3.5)


def test_worst_subset_refuses_what_it_cannot_search(toy_masks):
    circuit, everything = toy_masks
    with pytest.raises(ValueError, match="no nodes to take out"):
        worst_subset(toy, circuit, everything, [], max_size=3, seed=0)
    for name in ("max_size", "n_candidates", "n_restarts"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, not 0"):
            numbers_given: dict[str, Any] = {"max_size": 3, name: 0}
            worst_subset(toy, circuit, everything, circuit.nodes(), seed=0, **numbers_given)
