"""Faithfulness, on numbers small enough to check by hand and against the spliced model itself.

And what else is asked of a circuit: minimality, stability, areas.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from conftest import make_lab
from hypothesis import given
from hypothesis import strategies as st
from test_plain_recipe import variant

from course_utils.circuits.evaluate import (
    LOWER_IS_BETTER,
    MEASURES,
    MIB_FRACTIONS,
    Evaluation,
    Faithfulness,
    Reference,
    area_intervals,
    areas,
    iou_per_layer,
    jaccard,
    needed,
    nesting,
    nodes_per_layer,
    paired_difference,
    seed_mean,
    sizes_at,
)
from course_utils.circuits.masks import SAEMasks, only, without
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import bootstrap
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


# ---------------------------------------------------------------------------------------------
# Faithfulness, from logit differences
# ---------------------------------------------------------------------------------------------


def faithfulness_of(circuit, model, spliced_model, empty, **settings):
    rows = (torch.as_tensor(row) for row in (circuit, model, spliced_model, empty))
    circuit, model, spliced_model, empty = rows
    return Faithfulness.of(
        circuit, model=model, spliced_model=spliced_model, empty=empty, **settings
    )


def random_rows(n, seed=0):
    """Logit differences of a circuit, the model, the spliced model and nothing, well apart."""
    noise = torch.randn(4, n, generator=torch.Generator().manual_seed(seed))
    return noise + torch.tensor([[3.0], [9.0], [6.0], [0.5]])


def test_the_three_faithfulnesses_the_distance_and_the_gap_by_hand():
    result = faithfulness_of([2.0, 4.0], [4.0, 6.0], [3.0, 5.0], [1.0, 1.0])
    assert result.vs_model.value == pytest.approx((3 - 1) / (5 - 1))
    assert result.vs_spliced.value == pytest.approx((3 - 1) / (4 - 1))
    assert result.raw.value == pytest.approx(3 / 4)
    assert result.distance.value == pytest.approx(1 - (3 - 1) / (4 - 1))
    assert result.gap.value == pytest.approx((1 + 1) / (2 + 4))
    assert (result.f_model, result.f_spliced, result.f_circuit, result.f_empty) == (5, 4, 3, 1)
    assert result.n == 2


def test_a_circuit_that_is_right_on_average_only_has_a_gap():
    result = faithfulness_of([1.0, 7.0], [4.0, 4.0], [4.0, 4.0], [0.0, 0.0])
    assert result.vs_spliced.value == pytest.approx(1)
    assert result.distance.value == pytest.approx(0)
    assert result.gap.value == pytest.approx(3 / 4)


def test_a_circuit_that_overshoots_is_as_far_off_as_one_that_falls_short():
    for circuit in ([2.0, 4.0], [4.0, 6.0]):  # S is 3 and 5, nothing is 1
        result = faithfulness_of(circuit, [4.0, 6.0], [3.0, 5.0], [1.0, 1.0])
        assert result.distance.value == pytest.approx(1 / 3)


def test_the_interval_of_the_distance_holds_0_where_that_of_faithfulness_holds_1():
    _, model, spliced_model, empty = random_rows(40)
    noise = random_rows(40, seed=1)[0] - 3
    result = faithfulness_of(spliced_model + noise, model, spliced_model, empty)
    below, above = 1 - result.vs_spliced.low, result.vs_spliced.high - 1
    assert below > 0 and above > 0
    assert result.distance.low == 0
    assert result.distance.high == pytest.approx(max(below, above))
    assert result.distance.value == pytest.approx(abs(1 - result.vs_spliced.value))


def test_each_interval_is_the_bootstrap_of_its_own_ratio():
    circuit, model, spliced_model, empty = random_rows(40)
    result = faithfulness_of(circuit, model, spliced_model, empty, n_bootstrap=300, seed=5)
    off, off_empty = (circuit - spliced_model).abs(), (empty - spliced_model).abs()
    expected = {
        "vs_model": bootstrap(
            lambda c, m, e: (c - e) / (m - e), [circuit, model, empty], n_bootstrap=300, seed=5
        ),
        "vs_spliced": bootstrap(
            lambda c, s, e: (c - e) / (s - e),
            [circuit, spliced_model, empty],
            n_bootstrap=300,
            seed=5,
        ),
        "raw": bootstrap(lambda c, s: c / s, [circuit, spliced_model], n_bootstrap=300, seed=5),
        "distance": bootstrap(
            lambda c, s, e: (1 - (c - e) / (s - e)).abs(),
            [circuit, spliced_model, empty],
            n_bootstrap=300,
            seed=5,
        ),
        "gap": bootstrap(lambda a, b: a / b, [off, off_empty], n_bootstrap=300, seed=5),
    }
    assert list(expected) == list(MEASURES)
    for name, interval in expected.items():
        assert vars(getattr(result, name)) == pytest.approx(vars(interval), rel=1e-3), name


def test_resampling_keeps_prompts_together():
    """Where every prompt's circuit is half its model, so is every resample: no width at all."""
    model = torch.tensor([1.0, 5.0, 9.0])
    result = faithfulness_of(model / 2, model, model, torch.zeros(3))
    for name in MEASURES:
        interval = getattr(result, name)
        assert (interval.low, interval.high) == pytest.approx((0.5, 0.5))


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_faithfulness_knows_no_unit_and_no_zero_point(seed, factor, shift):
    """Except for ``raw``: F(∅) is its zero point."""
    rows = random_rows(8, seed).double()
    one = faithfulness_of(*rows, n_bootstrap=5)
    other = faithfulness_of(*(factor * rows + shift), n_bootstrap=5)
    for name in ("vs_model", "vs_spliced", "distance", "gap"):
        assert vars(getattr(one, name)) == pytest.approx(vars(getattr(other, name)))


# ---------------------------------------------------------------------------------------------
# Two methods, the same prompts
# ---------------------------------------------------------------------------------------------


def reference_of(n, seed=0):
    return Reference(*random_rows(n, seed)[1:])


def circuits_of(n_seeds, n, centre, seed=0):
    """Logit differences of circuits that differ a little, a row each."""
    noise = torch.randn(n_seeds, n, generator=torch.Generator().manual_seed(100 + seed))
    return noise + centre + torch.arange(n_seeds)[:, None] / 10


def values_by_hand(circuit, reference):
    """The measures of one circuit, as the module's docstring has them."""
    c, m, s, e = (
        row.mean().item()
        for row in (circuit, reference.model, reference.spliced_model, reference.empty)
    )
    off = (circuit - reference.spliced_model).abs().mean().item()
    off_empty = (reference.empty - reference.spliced_model).abs().mean().item()
    return {
        "vs_model": (c - e) / (m - e),
        "vs_spliced": (c - e) / (s - e),
        "raw": c / s,
        "distance": abs(1 - (c - e) / (s - e)),
        "gap": off / off_empty,
    }


def difference_by_hand(a, b, measure, reference):
    of_a, of_b = (
        sum(values_by_hand(row, reference)[measure] for row in rows) / len(rows) for rows in (a, b)
    )
    return of_a - of_b


def resampled(reference, rows):
    return Reference(*(row[rows] for row in vars(reference).values()))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_paired_difference_is_that_of_means_over_seeds_in_draws_that_both_share(measure):
    n = 30
    a, b, reference = circuits_of(3, n, 5.0), circuits_of(2, n, 4.0, seed=1), reference_of(n)
    found = paired_difference(a, b, measure, reference, n_bootstrap=200, seed=6)
    assert found.value == pytest.approx(difference_by_hand(a, b, measure, reference), rel=1e-4)
    rows = torch.randint(n, (200, n), generator=torch.Generator().manual_seed(6))
    draws = torch.tensor(
        [
            difference_by_hand(a[:, row], b[:, row], measure, resampled(reference, row))
            for row in rows
        ]
    )
    assert found.low == pytest.approx(draws.quantile(0.025).item(), rel=1e-3)
    assert found.high == pytest.approx(draws.quantile(0.975).item(), rel=1e-3)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_circuit_differs_from_itself_by_nothing_and_sides_can_be_swapped(measure):
    a, b, reference = circuits_of(2, 30, 5.0), circuits_of(1, 30, 3.0, seed=1), reference_of(30)
    same = paired_difference(a, a, measure, reference)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-12)
    one, other = (paired_difference(*pair, measure, reference) for pair in ((a, b), (b, a)))
    assert (other.value, other.low, other.high) == pytest.approx(
        (-one.value, -one.high, -one.low), abs=1e-9
    )


def test_the_better_circuit_has_less_gap_and_less_distance():
    reference = reference_of(30)
    near, far = reference.spliced_model[None] + 0.1, reference.spliced_model[None] - 2
    for measure in LOWER_IS_BETTER:
        assert paired_difference(near, far, measure, reference).high < 0
        assert paired_difference(far, near, measure, reference).low > 0


def test_what_is_hard_about_a_prompt_for_both_cancels():
    """Two circuits that are off on the same prompts: each is uncertain, their difference is not."""
    reference = reference_of(60)
    hard = 3 * torch.rand(60, generator=torch.Generator().manual_seed(1))
    a, b = reference.spliced_model - hard, reference.spliced_model - hard - 0.1
    paired = paired_difference(a[None], b[None], "gap", reference)
    alone = faithfulness_of(a, *vars(reference).values()).gap
    assert paired.high < 0
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_mean_over_one_seed_is_its_faithfulness_and_over_several_their_mean(measure):
    reference = reference_of(40)
    circuits = circuits_of(3, 40, 4.0)
    alone = [
        getattr(faithfulness_of(row, *vars(reference).values(), n_bootstrap=100, seed=2), measure)
        for row in circuits
    ]
    first = seed_mean(circuits[:1], measure, reference, n_bootstrap=100, seed=2)
    assert vars(first) == pytest.approx(vars(alone[0]))
    every = seed_mean(circuits, measure, reference, n_bootstrap=100, seed=2)
    assert every.value == pytest.approx(sum(interval.value for interval in alone) / 3)
    assert every.low < every.value < every.high


def test_another_seed_draws_other_prompts_for_differences():
    a, b, reference = circuits_of(1, 30, 5.0), circuits_of(1, 30, 3.0, seed=1), reference_of(30)
    by_default = paired_difference(a, b, "gap", reference)
    assert by_default == paired_difference(a, b, "gap", reference, n_bootstrap=1000, seed=0)
    assert by_default != paired_difference(a, b, "gap", reference, seed=1)
    assert seed_mean(a, "gap", reference) == seed_mean(a, "gap", reference, n_bootstrap=1000)
    assert seed_mean(a, "gap", reference) != seed_mean(a, "gap", reference, seed=1)


def test_comparisons_refuse_unknown_measures_missing_circuits_and_other_prompts(wrong_types):
    a, reference = circuits_of(2, 30, 5.0), reference_of(30)
    with pytest.raises(ValueError, match="no measure is called 'cmd'; there are vs_model, "):
        paired_difference(a, a, "cmd", reference)
    with pytest.raises(ValueError, match="no measure is called 'cmd'"):
        seed_mean(a, "cmd", reference)
    for wrong in (a[:0], a[:, :20], a[0]):
        with pytest.raises(ValueError, match="logit differences of 30 prompts; got"):
            paired_difference(a, wrong, "gap", reference)
        with pytest.raises(ValueError, match="logit differences of 30 prompts; got"):
            seed_mean(wrong, "gap", reference)


# ---------------------------------------------------------------------------------------------
# An evaluation
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["drop", "mean", "keep"])
def spliced(request, lab):
    return SplicedModel(lab, error=request.param)


@pytest.fixture(scope="module")
def means(spliced, task):
    return spliced.patch_means(task.patch)


@pytest.fixture
def evaluation(spliced, task, means):
    return Evaluation(spliced, task, means)


def everything_and_nothing(means):
    return SAEMasks.full(means.latents, 1.0), SAEMasks.full(means.latents, 0.0)


def some_masks(means, n=40):
    scores = {name: torch.rand_like(f) for name, f in means.latents.items()}
    return SAEMasks.from_scores(scores, n)


def test_it_gives_the_logit_differences_of_the_spliced_model(evaluation, spliced, task, means):
    masks, nothing = some_masks(means), everything_and_nothing(means)[1]
    same = dict(rtol=0, atol=0)
    torch.testing.assert_close(evaluation.model, spliced.model_logit_diff(task), **same)
    torch.testing.assert_close(
        evaluation.spliced_model, spliced.logit_diff(task, means=means), **same
    )
    torch.testing.assert_close(
        evaluation.empty, spliced.logit_diff(task, masks=nothing, means=means), **same
    )
    expected = spliced.logit_diff(task, masks=masks, means=means)
    torch.testing.assert_close(evaluation.logit_diff(masks), expected, **same)
    torch.testing.assert_close(evaluation(masks), expected, **same)


def test_faithfulness_is_made_of_these(evaluation, means):
    masks = some_masks(means)
    settings = dict(n_bootstrap=20, seed=3)
    assert evaluation.faithfulness(masks, **settings) == faithfulness_of(
        evaluation(masks),
        evaluation.model,
        evaluation.spliced_model,
        evaluation.empty,
        **settings,
    )
    assert evaluation.faithfulness(masks, seed=3) != evaluation.faithfulness(masks, seed=4)
    by_default = evaluation.faithfulness(masks, n_bootstrap=1000, seed=0)
    assert evaluation.faithfulness(masks) == by_default


def test_two_circuits_or_lists_of_seeds_are_compared_by_their_logit_differences(evaluation, means):
    one, other, third = some_masks(means, 40), some_masks(means, 20), some_masks(means, 30)
    reference = evaluation.reference
    assert torch.equal(reference.model, evaluation.model)
    assert torch.equal(reference.spliced_model, evaluation.spliced_model)
    assert torch.equal(reference.empty, evaluation.empty)
    rows = {masks: evaluation(masks)[None] for masks in (one, other, third)}
    settings = dict(n_bootstrap=50, seed=3)
    pair = evaluation.paired_difference(one, other, "gap", **settings)
    assert pair == paired_difference(rows[one], rows[other], "gap", reference, **settings)
    assert pair == evaluation.paired_difference([one], [other], "gap", **settings)
    of_two = evaluation.paired_difference([one, third], other, "vs_model", **settings)
    both = torch.cat([rows[one], rows[third]])
    assert of_two == paired_difference(both, rows[other], "vs_model", reference, **settings)
    by_default = evaluation.paired_difference(one, other, "gap")
    assert by_default == paired_difference(rows[one], rows[other], "gap", reference)
    with pytest.raises(ValueError, match="needs a circuit or more on either side"):
        evaluation.paired_difference([], one, "gap")


def test_the_whole_circuit_is_the_spliced_model_and_none_is_nothing(evaluation, means):
    whole, none = (evaluation.faithfulness(masks) for masks in everything_and_nothing(means))
    assert whole.vs_spliced.value == pytest.approx(1, abs=1e-3)
    assert whole.raw.value == pytest.approx(1, abs=1e-3)
    assert whole.gap.value == pytest.approx(0, abs=1e-3)
    assert none.vs_spliced.value == pytest.approx(0, abs=1e-6)
    assert none.vs_model.value == pytest.approx(0, abs=1e-6)
    assert none.gap.value == pytest.approx(1, abs=1e-6)


def test_what_all_circuits_share_is_computed_once(evaluation, spliced, means, monkeypatch):
    asked = []
    for name in ("prefix", "model_logit_diff"):
        compute = getattr(spliced, name)
        counted = lambda *args, name=name, compute=compute, **more: (  # noqa: E731
            asked.append(name),
            compute(*args, **more),
        )[1]
        monkeypatch.setattr(spliced, name, counted)
    for seed in range(3):
        evaluation.faithfulness(some_masks(means, 5 + seed), n_bootstrap=2)
    evaluation.remember(some_masks(means))
    evaluation.with_means(means).faithfulness(some_masks(means), n_bootstrap=2)
    assert sorted(asked) == ["model_logit_diff", "prefix"]


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
def test_many_batches_give_what_one_gives(spliced, task, monkeypatch, padded):
    task = variant(task, bos=True, padded=padded)
    means = spliced.patch_means(task.patch, lengths=task.lengths)
    masks = some_masks(means)
    at_once = Evaluation(spliced, task, means)
    expected = [at_once.model, at_once.spliced_model, at_once.empty, at_once(masks)]
    monkeypatch.setattr(spliced, "batch_size", lambda *_, **__: 5)
    in_batches = Evaluation(spliced, task, means)
    in_batches.remember(everything_and_nothing(means)[0])
    values = [in_batches.model, in_batches.spliced_model, in_batches.empty, in_batches(masks)]
    for value, right in zip(values, expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)
    in_batches.remember(masks)
    torch.testing.assert_close(in_batches(masks), expected[-1], rtol=1e-4, atol=1e-5)


def test_other_means_are_judged_as_from_the_start(evaluation, spliced, task, means):
    zeros = {name: torch.zeros_like(f) for name, f in means.latents.items()}
    with_zeros = replace(means, latents=zeros)
    with_other_errors = replace(means, errors={n: e + 0.5 for n, e in means.errors.items()})
    evaluation.remember(some_masks(means))
    for other in (with_zeros, with_other_errors):
        judged, fresh = evaluation.with_means(other), Evaluation(spliced, task, other)
        assert torch.equal(judged.model, fresh.model)
        assert torch.equal(judged.spliced_model, fresh.spliced_model)
        assert torch.equal(judged.empty, fresh.empty)
        masks = some_masks(means)
        assert judged.faithfulness(masks) == fresh.faithfulness(masks)
    assert not torch.equal(evaluation.with_means(with_zeros).empty, evaluation.empty)
    assert evaluation.means is means


def test_f_of_s_is_taken_over_where_the_means_have_no_part_in_it(evaluation, spliced, means):
    others = replace(means, errors={name: error + 0.5 for name, error in means.errors.items()})
    taken_over = evaluation.with_means(others).spliced_model is evaluation.spliced_model
    assert taken_over == (spliced.error != "mean")
    same_errors = replace(means, latents=dict(means.latents))
    assert evaluation.with_means(same_errors).spliced_model is evaluation.spliced_model


# ---------------------------------------------------------------------------------------------
# Remembered masks
# ---------------------------------------------------------------------------------------------


def test_going_on_from_where_masks_part_gives_the_same_numbers(evaluation, spliced, task, means):
    everything, nothing = everything_and_nothing(means)
    first, last = spliced.hook_points
    evaluation.remember(everything)
    evaluation.remember(nothing)
    for masks in (
        everything,
        nothing,
        without(everything, [(last, 5, 3)]),
        only(nothing, [(first, 2, 1)]),
        only(nothing, [(last, 5, 0)]),
        some_masks(means),
    ):
        expected = spliced.logit_diff(task, masks=masks, means=means)
        torch.testing.assert_close(evaluation(masks), expected, rtol=1e-4, atol=1e-5)


def test_masks_go_on_from_the_last_sae_up_to_which_they_equal_a_remembered_one(task):
    spliced = SplicedModel(make_lab(layers=(1, 2, 3)))
    means = spliced.patch_means(task.patch)
    everything, nothing = everything_and_nothing(means)
    first, middle, last = spliced.hook_points
    evaluation = Evaluation(spliced, task, means)
    asked = []
    run = spliced.run
    spliced.run = lambda prompts, **more: asked.append(prompts.layer) or run(prompts, **more)

    def starts_at(masks):
        asked.clear()
        evaluation(masks)
        return asked

    in_the_middle = without(everything, [(middle, 2, 3)])
    assert starts_at(in_the_middle) == [spliced.layers[0]]  # nothing is remembered yet
    evaluation.remember(nothing)
    assert starts_at(in_the_middle) == [spliced.layers[0]]
    evaluation.remember(everything)
    assert starts_at(without(everything, [(first, 2, 3)])) == [spliced.layers[0]]
    assert starts_at(in_the_middle) == [spliced.layers[1]]
    assert starts_at(without(everything, [(last, 5, 3)])) == [spliced.layers[2]]
    assert starts_at(everything) == [spliced.layers[2]]
    assert starts_at(without(everything, [(last, 5, 3), (middle, 2, 3)])) == [spliced.layers[1]]
    assert starts_at(only(nothing, [(last, 5, 3)])) == [spliced.layers[2]]


def test_a_remembered_mask_that_is_changed_later_is_remembered_as_it_was(evaluation, means):
    masks, nothing = everything_and_nothing(means)
    expected_now, expected_later = evaluation(masks).clone(), evaluation(nothing).clone()
    evaluation.remember(masks)
    for _, mask in masks.items():
        mask[:] = 0
    torch.testing.assert_close(evaluation(masks), expected_later, rtol=1e-4, atol=1e-5)
    everything = everything_and_nothing(means)[0]
    torch.testing.assert_close(evaluation(everything), expected_now, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------
# Sets of nodes
# ---------------------------------------------------------------------------------------------

FIRST, TWIN, LAST, OTHER = (A, 1, 0), (A, 1, 1), (B, 2, 3), (B, 1, 2)


def masks_with(*nodes):
    """Masks of two hook points with 3 positions and 4 latents, and these nodes on."""
    return only(SAEMasks([A, B], [torch.zeros(3, 4), torch.zeros(3, 4)]), nodes)


def test_nodes_are_counted_per_layer():
    soft = SAEMasks([A, B], [torch.eye(3) / 2, torch.zeros(3, 3)])
    assert nodes_per_layer(soft) == {A: 3, B: 0}


def test_a_node_is_needed_if_what_is_lost_is_surely_above_the_margin():
    lost = torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -3.0, -2.0]])
    assert needed(lost, 0.1).tolist() == [True, False, False]
    assert needed(lost, -0.1).tolist() == [True, True, False]
    assert not needed(lost, 2.5).any()
    unsure = torch.tensor([[9.0, -3.0, -3.0, 0.0]])  # 0.75 on average, but for one prompt only
    assert not needed(unsure, 0.1).any()


def test_the_margin_is_compared_with_the_lower_end_of_the_interval():
    lost = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    lows = [bootstrap(lambda mean: mean, [row], n_bootstrap=300, seed=2).low for row in lost]
    margin = sorted(lows)[3] + 1e-9
    expected = [low > margin for low in lows]
    assert needed(lost, margin, n_bootstrap=300, seed=2).tolist() == expected
    assert sum(expected) == 2


def test_a_loss_of_just_the_margin_is_not_above_it():
    assert needed(torch.ones(1, 4), 1.0).tolist() == [False]


def test_without_a_seed_it_is_0_and_there_are_1000_draws():
    lost = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    low = bootstrap(lambda mean: mean, [lost[0]], n_bootstrap=1000, seed=0).low
    assert needed(lost, low - 1e-9).all() and not needed(lost, low + 1e-9).any()
    rows = random_rows(20)
    assert faithfulness_of(*rows) == faithfulness_of(*rows, n_bootstrap=1000, seed=0)


def test_jaccard_nesting_and_iou_per_layer_by_hand():
    a, b = masks_with(FIRST, TWIN, LAST), masks_with(FIRST, LAST, OTHER)
    assert jaccard(a.nodes(), b.nodes()) == pytest.approx(2 / 4)
    assert nesting([1, 2, 3, 4], [1, 2, 3, 9, 8]) == pytest.approx(3 / 4)
    assert iou_per_layer(a, b) == {A: pytest.approx(1 / 2), B: pytest.approx(1 / 2)}
    assert iou_per_layer(a, masks_with(FIRST, TWIN)) == {A: 1, B: 0}
    assert math.isnan(jaccard([], [])) and math.isnan(nesting([], [1]))
    assert math.isnan(iou_per_layer(masks_with(), masks_with())[A])


small_sets = st.sets(st.integers(0, 9), min_size=1)


@given(small_sets, small_sets)
def test_jaccard_and_nesting_are_what_sets_say(a, b):
    assert jaccard(a, b) == jaccard(b, a) == pytest.approx(1 - len(a ^ b) / len(a | b))
    assert jaccard(a, a) == nesting(a, a | b) == 1
    assert (nesting(a, b) == 1) == a.issubset(b)
    assert nesting(a, b) * len(a) == pytest.approx(nesting(b, a) * len(b))
    assert jaccard(a, b) <= min(nesting(a, b), nesting(b, a))


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_a_node_named_twice_counts_once(a, b):
    once, twice = jaccard(set(a), set(b)), jaccard(a + a, b)
    assert once == twice or math.isnan(once) and math.isnan(twice)
    once, twice = nesting(set(a), set(b)), nesting(a + a, b + b)
    assert once == twice or math.isnan(once) and math.isnan(twice)


# ---------------------------------------------------------------------------------------------
# Areas
# ---------------------------------------------------------------------------------------------


def test_the_areas_by_hand():
    """f rises from 0 to 1 over the first half and to 2 over the second.

    The area under it is 1/4 + 3/4, from 1 it is 1/4 + 1/4.
    """
    cpr, cmd = areas([0.0, 0.5, 1.0], [0.0, 1.0, 2.0])
    assert (cpr.item(), cmd.item()) == pytest.approx((1.0, 0.5))
    perfect = areas(MIB_FRACTIONS, [1.0] * 10)
    assert perfect[0].item() == pytest.approx(0.999) and perfect[1].item() == 0
    assert areas([0.01, 0.1, 1.0], [0.0, 1.0, 1.0], log=True)[0].item() == pytest.approx(0.75)
    spread = areas([0.0, 1.0], [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])])
    assert spread[0].tolist() == [0.5, 1.0] and spread[1].tolist() == [0.5, 0.0]


curves = st.dictionaries(st.floats(1e-3, 1), st.floats(-3, 3), min_size=2, max_size=8).map(
    lambda curve: sorted(curve.items())
)


@given(curves, st.booleans())
def test_areas_are_sums_of_trapezoids(curve, log):
    fractions, values = zip(*curve, strict=True)
    place = math.log if log else float
    width = place(fractions[-1]) - place(fractions[0]) if log else 1
    cpr = cmd = 0.0
    for (k, f), (next_k, next_f) in itertools.pairwise(curve):
        strip = (place(next_k) - place(k)) / width
        cpr += strip * (f + next_f) / 2
        cmd += strip * (abs(1 - f) + abs(1 - next_f)) / 2
    ours = areas(fractions, values, log=log)
    assert (ours[0].item(), ours[1].item()) == pytest.approx((cpr, cmd), abs=1e-9)
    whole = 1 if log else fractions[-1] - fractions[0]
    assert cmd >= abs(whole - cpr) - 1e-9  # what is too much makes up for nothing


@pytest.mark.parametrize(
    ("fractions", "log"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.1], False),
        ([0.1, 0.1], False),
        ([0.5, 1.5], False),
        ([-0.1, 1.0], False),
        ([0.0, 1.0], True),
    ],
)
def test_areas_refuse_sizes_that_do_not_rise(fractions, log):
    with pytest.raises(ValueError, match="rising fractions"):
        areas(fractions, [1.0] * len(fractions), log=log)


def test_areas_refuse_other_numbers_of_values_than_sizes():
    with pytest.raises(ValueError, match="for 3 values"):
        areas([0.1, 1.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("log", [False, True])
def test_areas_of_seeds_are_those_of_each_draw(log):
    """A method with 2, 1 and 3 seeds at its sizes, against plain loops over the draws."""
    n, fractions, reference = 25, [0.01, 0.1, 0.4], reference_of(25)
    circuits = [circuits_of(k, n, 3.0 + i, seed=i) for i, k in enumerate((2, 1, 3))]

    def by_hand(row):
        drawn = resampled(reference, row)
        values = [
            [values_by_hand(circuit[row], drawn) for circuit in at_size] for at_size in circuits
        ]
        curve = {
            name: [sum(value[name] for value in at_size) / len(at_size) for at_size in values]
            for name in ("vs_spliced", "distance")
        }
        return [areas(fractions, curve[name], log=log)[0].item() for name in curve]

    found = area_intervals(fractions, circuits, reference, log=log, n_bootstrap=100, seed=4)
    rows = torch.randint(n, (100, n), generator=torch.Generator().manual_seed(4))
    draws = torch.tensor([by_hand(row) for row in rows])
    for i, interval in enumerate(found):
        assert interval.value == pytest.approx(by_hand(torch.arange(n))[i], rel=1e-4)
        assert interval.low == pytest.approx(draws[:, i].quantile(0.025).item(), rel=1e-3)
        assert interval.high == pytest.approx(draws[:, i].quantile(0.975).item(), rel=1e-3)


def test_a_seed_that_overshoots_makes_up_for_nothing_in_cmd():
    reference = reference_of(30)
    whole, nothing = reference.spliced_model, reference.empty
    apart = torch.stack([nothing, 2 * whole - nothing])  # f = 0 and f = 2
    cpr, cmd = area_intervals([0.0, 1.0], [apart, apart], reference)
    assert (cpr.value, cmd.value) == pytest.approx((1, 1))
    perfect = area_intervals([0.2, 0.7], [whole[None], whole[None]], reference)
    assert perfect[0].value == pytest.approx(0.5) and perfect[1].value == pytest.approx(0)


def test_areas_of_circuits_refuse_what_areas_refuse_and_sizes_without_circuits(wrong_types):
    reference, circuit = reference_of(30), circuits_of(1, 30, 3.0)
    with pytest.raises(ValueError, match="rising fractions"):
        area_intervals([0.5, 0.1], [circuit, circuit], reference)
    with pytest.raises(ValueError, match="2 fractions, and 1 sizes"):
        area_intervals([0.1, 0.5], [circuit], reference)
    with pytest.raises(ValueError, match="one circuit or more"):
        area_intervals([0.1, 0.5], [circuit, circuit[:0]], reference)


def test_sizes_are_rounded_down_and_none_is_empty():
    assert sizes_at(MIB_FRACTIONS, 900) == {
        0.002: 1,
        0.005: 4,
        0.01: 9,
        0.02: 18,
        0.05: 45,
        0.1: 90,
        0.2: 180,
        0.5: 450,
        1.0: 900,
    }


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 5000))
def test_sizes_are_as_near_below_their_fraction_as_whole_nodes_can_be(fractions, n):
    sizes = sizes_at(fractions, n)
    for fraction in fractions:
        size = sizes.get(fraction, 0)
        assert size <= fraction * n < size + 1
    assert all(size > 0 for size in sizes.values())
