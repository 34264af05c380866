"""Faithfulness on numbers small enough to check by hand, and the frontier's files."""

import itertools
import math

import pytest
import torch

from course_utils.circuits.attribution import largest_change
from course_utils.circuits.evaluate import (
    MIB_FRACTIONS,
    Evaluator,
    References,
    areas,
    completeness,
    drops,
    expected_jaccard,
    faithfulness,
    iou_per_layer,
    jaccard,
    needed,
    nesting,
    nodes_per_layer,
    references,
    sizes_at,
)
from course_utils.circuits.frontier import Frontier, score_frontier
from course_utils.circuits.masks import SAEMasks, only, random_subsets, without
from course_utils.circuits.splice import SplicedModel
from course_utils.circuits.statistics import bootstrap, proportion
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


class Fixed:
    """A spliced model whose circuit has known logit differences."""

    def __init__(self, values):
        self.values = torch.tensor(values)

    def logit_diff(self, task, *, masks=None, means=None, start=None):
        return self.values


def test_the_three_faithfulnesses_by_hand():
    against = References(
        model=torch.tensor([4.0, 6.0]),
        spliced=torch.tensor([3.0, 5.0]),
        empty=torch.tensor([1.0, 1.0]),
    )
    found = faithfulness(Fixed([2.0, 4.0]), None, None, None, against=against)
    assert found.vs_model.value == pytest.approx((3 - 1) / (5 - 1))
    assert found.vs_spliced.value == pytest.approx((3 - 1) / (4 - 1))
    assert found.raw.value == pytest.approx(3 / 4)
    assert found.gap.value == pytest.approx((1 + 1) / (2 + 4))
    assert (found.f_model, found.f_spliced, found.f_circuit, found.f_empty, found.n) == (
        5,
        4,
        3,
        1,
        2,
    )


def test_the_interval_holds_the_value_and_shrinks_with_more_prompts():
    torch.manual_seed(0)
    widths = []
    for n in (20, 2000):
        noise = torch.randn(n)
        against = References(
            model=torch.full((n,), 4.0), spliced=torch.full((n,), 3.0), empty=torch.zeros(n)
        )
        found = faithfulness(
            Fixed((2 + noise).tolist()), None, None, None, against=against
        ).vs_model
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert (
        widths[1] == pytest.approx(2 * 1.96 / 4 / 2000**0.5, rel=0.15) and widths[0] > 5 * widths[1]
    )


def test_resampling_keeps_prompts_together():
    """Where every prompt's circuit is half its model, so is every resample: no width at all."""
    model = torch.tensor([1.0, 5.0, 9.0])
    found = faithfulness(
        Fixed((model / 2).tolist()),
        None,
        None,
        None,
        against=References(model, model, torch.zeros(3)),
    )
    assert found.vs_model.low == pytest.approx(0.5) and found.vs_model.high == pytest.approx(0.5)


def test_a_circuit_that_is_right_on_average_only_has_a_gap():
    against = References(
        model=torch.tensor([4.0, 4.0]), spliced=torch.tensor([4.0, 4.0]), empty=torch.zeros(2)
    )
    found = faithfulness(Fixed([1.0, 7.0]), None, None, None, against=against)
    assert found.vs_spliced.value == pytest.approx(1) and found.gap.value == pytest.approx(3 / 4)


def test_the_whole_circuit_is_the_spliced_model_and_none_is_nothing(lab, task):
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    whole = faithfulness(spliced, task, SAEMasks.full(means.latents, 1.0), means)
    none = faithfulness(spliced, task, SAEMasks.full(means.latents, 0.0), means)
    assert whole.vs_spliced.value == pytest.approx(
        1, abs=1e-3
    ) and whole.raw.value == pytest.approx(1, abs=1e-3)
    assert none.vs_spliced.value == pytest.approx(
        0, abs=1e-3
    ) and none.vs_model.value == pytest.approx(0, abs=1e-3)
    against = references(spliced, task, means)
    torch.testing.assert_close(against.model, spliced.model_logit_diff(task))


def test_nodes_are_counted_per_layer():
    assert nodes_per_layer(SAEMasks([A, B], [torch.eye(3), torch.zeros(3, 3)])) == {A: 3, B: 0}


def test_a_frontier_survives_the_disk(lab, task, tmp_path):
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    frontier = Frontier.of(spliced, task)
    scores = largest_change(spliced, task)
    score_frontier(frontier, "largest change", scores, [20, 5], spliced, task, means)
    masks = SAEMasks.from_scores(scores, 7)
    frontier.add("mask", masks, faithfulness(spliced, task, masks, means), sparsity=0.1, seed=3)
    path = frontier.save(tmp_path / "f.json")
    assert Frontier.load(path) == frontier
    assert [point.n_nodes for point in frontier.of_method("largest change")] == [5, 20]
    assert frontier.methods == ["largest change", "mask"] and len(frontier.rows()) == 3
    assert frontier.rows()[2]["sparsity"] == 0.1 and frontier.rows()[2]["nodes"] == 7


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"points": [{"method": "x"}]}'])
def test_a_file_that_is_no_frontier_is_named(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="wrong.json holds no frontier"):
        Frontier.load(path)


# ---------------------------------------------------------------------------------------------
# Completeness, minimality, stability, areas
# ---------------------------------------------------------------------------------------------


def masks_with(*nodes):
    """Masks of two hook points with 3 positions and 4 latents, and these nodes on."""
    return only(SAEMasks([A, B], [torch.zeros(3, 4), torch.zeros(3, 4)]), nodes)


FIRST, TWIN, LAST, OTHER = (A, 1, 0), (A, 1, 1), (B, 2, 3), (B, 1, 2)


def a_model_with_a_spare(masks):
    """Four prompts. The answer needs LAST, and one of FIRST and TWIN: either will do."""
    on = {node: masks[node[0]][node[1], node[2]] for node in (FIRST, TWIN, LAST)}
    return torch.maximum(on[FIRST], on[TWIN]) * on[LAST] * torch.tensor([1.0, 2.0, 3.0, 2.0])


def test_without_takes_out_nodes_at_their_position_only_and_leaves_the_mask_as_it_was():
    masks = masks_with(FIRST, LAST, (A, 2, 0))
    less = without(masks, [FIRST])
    assert set(less.nodes()) == {LAST, (A, 2, 0)} and masks.get_num_latents() == 3
    assert set(without(masks, [(A, None, 0)]).nodes()) == {LAST}
    assert without(SAEMasks([A], [torch.ones(4)]), [(A, None, 2)]).masks[0].tolist() == [1, 1, 0, 1]


def test_only_is_what_nodes_lists():
    masks = masks_with(FIRST, LAST)
    assert only(masks, masks.nodes()).to_json() == masks.to_json()


def test_random_subsets_are_seeded_subsets_of_many_sizes():
    nodes = [(A, 0, i) for i in range(20)]
    subsets = random_subsets(nodes, 200, seed=1)
    assert subsets == random_subsets(nodes, 200, seed=1) != random_subsets(nodes, 200, seed=2)
    sizes = [len(subset) for subset in subsets]
    assert (
        min(sizes) == 1 and max(sizes) >= 18 and 0.3 < sum(size <= 4 for size in sizes) / 200 < 0.7
    )
    assert all(set(subset) <= set(nodes) and len(set(subset)) == len(subset) for subset in subsets)


def test_a_spare_outside_the_circuit_shows_as_incompleteness_by_hand():
    everything = SAEMasks([A, B], [torch.ones(3, 4), torch.ones(3, 4)])
    faithful = masks_with(FIRST, LAST)
    found = completeness(
        a_model_with_a_spare, faithful, everything, [[], [FIRST], [LAST], [FIRST, LAST]]
    )
    assert found.tolist() == [[2, 2], [0, 2], [0, 0], [0, 0]]  # without FIRST, the whole has TWIN
    complete = completeness(
        a_model_with_a_spare,
        masks_with(FIRST, TWIN, LAST),
        everything,
        [[], [FIRST], [FIRST, TWIN], [LAST]],
    )
    assert complete.tolist() == [[2, 2], [2, 2], [0, 0], [0, 0]]


def test_drops_and_needed_by_hand():
    circuit = masks_with(FIRST, LAST, OTHER)
    dropped = drops(a_model_with_a_spare, circuit, circuit.nodes())
    by_node = dict(zip(circuit.nodes(), dropped.tolist()))
    assert by_node == {FIRST: [1, 2, 3, 2], LAST: [1, 2, 3, 2], OTHER: [0, 0, 0, 0]}
    assert dict(zip(circuit.nodes(), needed(dropped, 0.1).tolist())) == {
        FIRST: True,
        LAST: True,
        OTHER: False,
    }
    assert not needed(dropped, 2.5).any()
    twins = masks_with(
        FIRST, TWIN, LAST
    )  # each of the two looks dispensable while the other is there
    assert drops(a_model_with_a_spare, twins, [FIRST, TWIN]).abs().max() == 0


def test_jaccard_nesting_and_iou_per_layer_by_hand():
    a, b = masks_with(FIRST, TWIN, LAST), masks_with(FIRST, LAST, OTHER)
    assert jaccard(a.nodes(), b.nodes()) == pytest.approx(2 / 4)
    assert (
        nesting([1, 2, 3, 4], [1, 2, 3, 9, 8]) == pytest.approx(3 / 4)
        and nesting([1], [1, 2, 3]) == 1
    )
    assert iou_per_layer(a, b) == {A: pytest.approx(1 / 2), B: pytest.approx(1 / 2)}
    assert (
        math.isnan(jaccard([], []))
        and math.isnan(nesting([], [1]))
        and math.isnan(iou_per_layer(masks_with(), masks_with())[A])
    )


def test_the_expected_jaccard_is_the_mean_over_all_pairs_of_circuits():
    """Independent: every pair of circuits of 2 and 3 nodes out of 5, counted."""
    pairs = [
        (set(a), set(b))
        for a in itertools.combinations(range(5), 2)
        for b in itertools.combinations(range(5), 3)
    ]
    counted = sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)
    assert expected_jaccard(2, 3, 5) == pytest.approx(counted)
    assert (
        expected_jaccard(1, 1, 4) == pytest.approx(1 / 4)
        and expected_jaccard(4, 4, 4) == 1
        and expected_jaccard(0, 3, 9) == 0
    )
    with pytest.raises(ValueError, match="cannot be drawn from 4"):
        expected_jaccard(5, 2, 4)


def test_the_areas_by_hand():
    """f rises from 0 to 1 over the first half and to 2 over the second: the area under it is 1/4 +
    3/4, from 1 it is 1/4 + 1/4.
    """
    cpr, cmd = areas([0, 0.5, 1], [0.0, 1.0, 2.0])
    assert (cpr.item(), cmd.item()) == pytest.approx((1.0, 0.5))
    perfect = areas(MIB_FRACTIONS, [1.0] * 10)
    assert perfect[0].item() == pytest.approx(0.999) and perfect[1].item() == 0
    assert areas([0.01, 0.1, 1], [0.0, 1.0, 1.0], log=True)[0].item() == pytest.approx(0.75)
    spread = areas([0, 1], [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])])
    assert spread[0].tolist() == [0.5, 1.0] and spread[1].tolist() == [0.5, 0.0]


@pytest.mark.parametrize("fractions", [[0.5], [0.5, 0.1], [0.1, 0.1], [0.5, 1.5], [-0.1, 1]])
def test_areas_refuse_sizes_that_do_not_rise(fractions):
    with pytest.raises(ValueError, match="rising fractions"):
        areas(fractions, [1.0] * len(fractions))


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


def test_the_bootstrap_agrees_with_faithfulness_and_with_theory():
    torch.manual_seed(0)
    circuit, spliced = torch.randn(50) + 2, torch.randn(50) + 3
    found = faithfulness(
        Fixed(circuit.tolist()),
        None,
        None,
        None,
        against=References(spliced, spliced, torch.zeros(50)),
    )
    assert bootstrap(lambda c, s: c / s, [circuit, spliced]) == found.raw
    x = torch.randn(400)
    interval = bootstrap(lambda mean: mean, [x])
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * x.std().item() / 20, rel=0.15)


def test_the_share_has_wilsons_interval():
    found = proportion([True] * 8 + [False] * 2)
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.8, 0.4902, 0.9433), abs=1e-4
    )  # Wilson 1927, by hand
    assert proportion([0.5] * 4 + [0.0] * 6) == proportion([True] * 2 + [False] * 8)
    assert (
        proportion([True] * 10).low == pytest.approx(0.7225, abs=1e-4)
        and proportion([True] * 10).high == 1
    )
    with pytest.raises(ValueError, match="no cases"):
        proportion([])


def test_going_on_from_where_masks_part_gives_the_same_numbers(lab, task):
    spliced = SplicedModel(lab)
    means = spliced.patch_means(task.patch)
    evaluate = Evaluator(spliced, task, means)
    everything, nothing = SAEMasks.full(means.latents, 1.0), SAEMasks.full(means.latents, 0.0)
    evaluate.remember(everything)
    evaluate.remember(nothing)
    first, last = spliced.hook_points
    for masks in (
        everything,
        nothing,
        without(everything, [(last, 5, 3)]),
        only(nothing, [(first, 2, 1)]),
        only(nothing, [(last, 5, 0)]),
    ):
        torch.testing.assert_close(
            evaluate(masks), spliced.logit_diff(task, masks=masks, means=means).cpu()
        )
    late = evaluate._start_of(without(everything, [(last, 5, 3)]), *evaluate.known[0])
    assert (
        late.layer == spliced.layers[-1]
        and evaluate._start_of(nothing, *evaluate.known[0]).layer == spliced.layers[0]
    )
