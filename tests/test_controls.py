"""Controls: nodes in the same places, nodes that know as much, and circuits on other prompts."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.circuits.controls import (
    best_separators,
    matched_nodes,
    moved,
    same_places,
    separations,
    split_by,
    subsets_of_all_sizes,
)
from course_utils.circuits.masks import SAEMasks, only
from course_utils.circuits.statistics import auc

ONE, TWO = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"


def nodes_at(place, latents):
    return [(*place, latent) for latent in latents]


# ---------------------------------------------------------------------------------------------
# Subsets
# ---------------------------------------------------------------------------------------------


def test_subsets_have_every_size_but_none_and_all_equally_often():
    nodes = nodes_at((ONE, 1), range(6))
    sizes = Counter(map(len, subsets_of_all_sizes(nodes, 5000, seed=0)))
    assert sorted(sizes) == [1, 2, 3, 4, 5]
    for count in sizes.values():
        assert abs(count - 1000) <= 3.5 * math.sqrt(5000 * 0.2 * 0.8)


def test_every_node_is_in_as_many_subsets_as_every_other():
    nodes = nodes_at((ONE, 1), range(6))
    subsets = subsets_of_all_sizes(nodes, 5000, seed=1)
    for node in nodes:
        count = sum(node in subset for subset in subsets)
        assert abs(count - 2500) <= 3.5 * math.sqrt(5000 * 0.25)


def test_a_subset_has_no_node_twice_and_keeps_the_order():
    nodes = nodes_at((ONE, 1), [5, 3, 9, 1])
    for subset in subsets_of_all_sizes(nodes, 50, seed=2):
        assert subset == [node for node in nodes if node in set(subset)]
        assert len(set(subset)) == len(subset)


def test_the_seed_draws_the_subsets():
    nodes = nodes_at((ONE, 1), range(9))
    one, again, other = (subsets_of_all_sizes(nodes, 8, seed=seed) for seed in (0, 0, 1))
    assert one == again != other and len(one) == 8


def test_a_single_node_has_no_part():
    with pytest.raises(ValueError, match="two nodes or more; there are 1"):
        subsets_of_all_sizes([(ONE, 1, 1)], 3, seed=0)


# ---------------------------------------------------------------------------------------------
# Halves of the prompts
# ---------------------------------------------------------------------------------------------


def test_halves_share_no_group_and_every_prompt_is_in_one(task):
    groups = [i // 3 for i in range(12)]  # four groups of three prompts
    one, other = split_by(task, groups, seed=0)
    rows = [[task.pairs.index(pair) for pair in half.pairs] for half in (one, other)]
    assert sorted(rows[0] + rows[1]) == list(range(12)) and len(one) == len(other) == 6
    assert not {groups[row] for row in rows[0]} & {groups[row] for row in rows[1]}
    for half, own in zip((one, other), rows):
        assert own == sorted(own) and torch.equal(half.clean, task.clean[own])


def test_halves_differ_by_no_more_prompts_than_the_largest_group_has(task):
    groups = [0] * 5 + [1, 1, 2, 3, 4, 5, 6]
    for seed in range(20):
        one, other = split_by(task, groups, seed=seed)
        assert abs(len(one) - len(other)) <= 5


def test_the_seed_draws_the_halves(task):
    one, again, another = (split_by(task, range(12), seed=seed)[0] for seed in (0, 0, 1))
    assert one == again != another


def test_prompts_that_cannot_be_parted_are_refused(task):
    with pytest.raises(ValueError, match="11 groups, 12 prompts"):
        split_by(task, range(11), seed=0)
    with pytest.raises(ValueError, match="all prompts are in one group"):
        split_by(task, ["noun"] * 12, seed=0)


# ---------------------------------------------------------------------------------------------
# Same places
# ---------------------------------------------------------------------------------------------

CIRCUIT = [(ONE, 2, 7), (TWO, 5, 0), (ONE, 2, 3), (TWO, 1, 4)]
POOL = [(name, position, i) for name in (ONE, TWO) for position in range(6) for i in range(10)]


def test_strangers_stand_at_the_places_of_the_nodes_in_their_order():
    for seed in range(20):
        drawn = same_places(CIRCUIT, POOL, seed=seed)
        assert [node[:2] for node in drawn] == [node[:2] for node in CIRCUIT]
        assert not set(drawn) & set(CIRCUIT) and len(set(drawn)) == 4
        assert set(drawn) <= set(POOL)


def test_every_stranger_of_a_place_is_drawn_equally_often():
    counts = Counter(same_places(CIRCUIT[:1], POOL, seed=seed)[0] for seed in range(1800))
    assert len(counts) == 9  # all but the node itself
    for count in counts.values():
        assert abs(count - 200) <= 3.5 * math.sqrt(1800 / 9 * 8 / 9)


def test_the_seed_draws_the_strangers():
    assert same_places(CIRCUIT, POOL, seed=0) == same_places(CIRCUIT, POOL, seed=0)
    assert same_places(CIRCUIT, POOL, seed=0) != same_places(CIRCUIT, POOL, seed=1)


def test_all_strangers_of_a_place_can_be_drawn():
    pool = [*CIRCUIT, (ONE, 2, 1), (ONE, 2, 2), (ONE, 2, 2), (TWO, 5, 6), (TWO, 1, 5)]
    drawn = same_places(CIRCUIT, pool, seed=0)
    assert {drawn[0], drawn[2]} == {(ONE, 2, 1), (ONE, 2, 2)}


def test_a_pool_without_strangers_at_a_place_is_refused_by_name():
    pool = [node for node in POOL if node[:2] != (TWO, 1)]
    with pytest.raises(ValueError, match=rf"{TWO}, position 1: 1 other nodes .* the pool has 0"):
        same_places(CIRCUIT, pool, seed=0)
    pool = [node for node in POOL if node[:2] != (ONE, 2)] + [(ONE, 2, 9), (ONE, 2, 9), *CIRCUIT]
    with pytest.raises(ValueError, match=rf"{ONE}, position 2: 2 other nodes .* the pool has 1"):
        same_places(CIRCUIT, pool, seed=0)


def test_a_latent_at_every_position_has_a_stranger_at_every_position():
    pool = [(ONE, None, 1), (ONE, None, 2), (ONE, 3, 4)]
    assert same_places([(ONE, None, 1)], pool, seed=0) == [(ONE, None, 2)]
    with pytest.raises(ValueError, match="every position"):
        same_places([(ONE, None, 1)], [(ONE, 3, 4)], seed=0)


# ---------------------------------------------------------------------------------------------
# Separations
# ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_separations_are_the_auc_of_every_node(seed, n_yes):
    generator = torch.Generator().manual_seed(seed)
    latents = {
        name: torch.randint(0, 4, (8, 3, 5), generator=generator).float() for name in (ONE, TWO)
    }  # few values, so that many are equal
    yes = torch.randperm(8, generator=generator) < n_yes
    found = separations(latents, yes)
    for name, f in latents.items():
        for position in range(3):
            for latent in range(5):
                wanted = auc(f[:, position, latent], yes)
                assert found[name][position, latent].item() == pytest.approx(wanted, abs=1e-6)


def test_a_separation_has_its_sign():
    f = torch.tensor([[0.0, 3.0, 1.0], [0.0, 2.0, 1.0], [5.0, 1.0, 1.0], [6.0, 0.0, 1.0]])
    found = separations({ONE: f[:, None]}, torch.tensor([False, False, True, True]))
    assert found[ONE].tolist() == [[1, 0, 0.5]]


def test_half_precision_latents_are_separated_too():
    f = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16)[:, None, None]
    found = separations({ONE: f}, torch.tensor([True, False, True, True]))
    assert found[ONE].item() == pytest.approx(2 / 3) and found[ONE].dtype == torch.float32


def test_separations_of_a_model_are_one_half_where_nothing_fires(spliced, task):
    latents = spliced.run(task.clean).latents
    yes = torch.tensor([pair.case == "plural" for pair in task.pairs])
    found = separations(latents, yes)
    for name, f in latents.items():
        assert found[name].shape == f.shape[1:]
        silent = (f == 0).all(0)
        assert silent[0].all() and (found[name][silent] == 0.5).all()
        assert found[name][2, 3].item() == pytest.approx(auc(f[:, 2, 3], yes), abs=1e-6)


@pytest.mark.usefixtures("wrong_types")
def test_separations_need_two_groups_of_the_same_prompts():
    f = torch.rand(4, 2, 3)
    for yes in (torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="both groups need at least one prompt"):
            separations({ONE: f}, yes)
    with pytest.raises(ValueError, match=rf"{ONE}: latents of 4 prompts, and 3 in yes"):
        separations({ONE: f}, torch.tensor([True, False, True]))


# ---------------------------------------------------------------------------------------------
# Matched nodes
# ---------------------------------------------------------------------------------------------


def aucs(*rows):
    """Separations at one hook point, a row a position."""
    return {ONE: torch.tensor(rows)}


def test_a_match_stands_in_the_same_place_and_separates_as_well():
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.rand(6, 40, generator=generator) for name in (ONE, TWO)}
    for seed in range(10):
        matched = matched_nodes(CIRCUIT, found, seed=seed)
        for node, other, as_good in zip(CIRCUIT, matched.nodes, matched.as_good, strict=True):
            assert other[:2] == node[:2] and other not in CIRCUIT
            own, theirs = ((found[h][p, i] - 0.5).abs() for h, p, i in (node, other))
            assert as_good == bool(theirs >= own)
        assert len(set(matched.nodes)) == 4


def test_a_latent_for_the_other_group_separates_as_well():
    matched = matched_nodes([(ONE, 0, 0)], aucs([0.8, 0.6, 0.1, 0.5]), seed=0)
    assert matched.nodes == [(ONE, 0, 2)] and matched.as_good == [True]
    assert matched.own == pytest.approx([0.8]) and matched.theirs == pytest.approx([0.9])
    mirrored = matched_nodes([(ONE, 0, 0)], aucs([0.29, 0.71, 0.5]), seed=0)
    assert mirrored.as_good == [True]  # though 0.5 − 0.29 and 0.71 − 0.5 differ by rounding


def test_where_no_node_is_good_enough_the_best_is_taken_and_counted():
    matched = matched_nodes([(ONE, 0, 0)], aucs([0.9, 0.6, 0.7, 0.5]), seed=0)
    assert matched.nodes == [(ONE, 0, 2)] and matched.n_worse == 1
    within = matched_nodes([(ONE, 0, 0)], aucs([0.9, 0.6, 0.7, 0.5]), tolerance=0.2, seed=0)
    assert within.nodes == [(ONE, 0, 2)] and within.n_worse == 0


def test_as_many_nodes_as_possible_have_a_match_that_is_good_enough():
    found = aucs([0.6, 0.9, 0.8, 0.95, 0.65, 0.85, 0.5, 0.5])
    circuit = nodes_at((ONE, 0), [0, 1, 2])
    for seed in range(20):  # whoever would draw first, 0.95 is for 0.9 and 0.85 for 0.8
        matched = matched_nodes(circuit, found, seed=seed)
        assert matched.nodes == nodes_at((ONE, 0), [4, 3, 5]) and matched.n_worse == 0


def test_who_finds_no_match_takes_it_from_nobody():
    found = aucs([0.9, 0.8, 0.85, 0.5, 0.5])
    matched = matched_nodes(nodes_at((ONE, 0), [0, 1]), found, seed=0)
    assert matched.nodes[1] == (ONE, 0, 2) and matched.as_good == [False, True]
    assert matched.nodes[0] in nodes_at((ONE, 0), [3, 4]) and matched.n_worse == 1


def test_matches_are_drawn_at_random_from_all_that_are_good_enough():
    found = aucs([0.7, 0.8, 0.9, 0.71, 0.6])
    nodes = [matched_nodes([(ONE, 0, 0)], found, seed=seed).nodes[0][2] for seed in range(600)]
    counts = Counter(nodes)
    assert sorted(counts) == [1, 2, 3]
    assert all(abs(count - 200) <= 3.5 * math.sqrt(600 * 2 / 9) for count in counts.values())
    assert nodes[5] == matched_nodes([(ONE, 0, 0)], found, seed=5).nodes[0][2]


def test_forbidden_nodes_are_not_drawn():
    found = aucs([0.7, 0.8, 0.9, 0.6])
    for seed in range(10):
        matched = matched_nodes([(ONE, 0, 0)], found, forbidden=[(ONE, 0, 2)], seed=seed)
        assert matched.nodes == [(ONE, 0, 1)]
    everywhere = [(ONE, None, 2), (ONE, 0, 1), (TWO, 0, 1)]
    matched = matched_nodes([(ONE, 0, 0)], found, forbidden=everywhere, seed=0)
    assert matched.nodes == [(ONE, 0, 3)] and matched.n_worse == 1


def test_separations_stay_as_they_are():
    found = aucs([0.7, 0.8, 0.9])
    matched_nodes([(ONE, 0, 0)], found, seed=0)
    assert torch.equal(found[ONE], torch.tensor([[0.7, 0.8, 0.9]]))


def test_a_match_says_how_good_it_is():
    matched = matched_nodes(nodes_at((ONE, 0), [0, 1]), aucs([0.9, 0.8, 0.85, 0.55]), seed=0)
    assert str(matched) == (
        "1 of 2 nodes have a match that separates the groups as well; the mean separation is 0.70, "
        "and 0.85 for the circuit."
    )


def test_nodes_that_can_have_no_match_are_refused():
    found = aucs([0.7, 0.8], [0.5, 0.6])
    with pytest.raises(ValueError, match=f"{ONE}, position 0: no other node is left there"):
        matched_nodes(nodes_at((ONE, 0), [0, 1]), found, seed=0)
    with pytest.raises(ValueError, match="a match needs a node with a position"):
        matched_nodes([(ONE, None, 1)], found, seed=0)
    with pytest.raises(ValueError, match=f"no separations for {TWO}; there are some for {ONE}"):
        matched_nodes([(TWO, 0, 1)], found, seed=0)
    for node in ((ONE, 2, 0), (ONE, 0, 2)):
        with pytest.raises(ValueError, match=r"outside the separations \[2, 2\]"):
            matched_nodes([node], found, seed=0)
    with pytest.raises(ValueError, match="tolerance must be 0 or more, not -0.1"):
        matched_nodes([(ONE, 0, 0)], found, tolerance=-0.1, seed=0)


# ---------------------------------------------------------------------------------------------
# The best separators
# ---------------------------------------------------------------------------------------------


def test_best_separators_are_farthest_from_one_half_whatever_the_layer():
    separated = {
        ONE: torch.tensor([[0.5, 0.9, 0.5], [0.02, 0.6, 0.5]]),
        TWO: torch.tensor([[0.5, 0.5, 1.0], [0.3, 0.5, 0.5]]),
    }
    nodes = [(TWO, 0, 2), (ONE, 1, 0), (ONE, 0, 1), (TWO, 1, 0), (ONE, 1, 1)]
    assert best_separators(separated, 5) == nodes
    assert best_separators(separated, 3, forbidden=nodes[:2]) == nodes[2:]
    assert separated[TWO][0, 2] == 1  # it changes a copy


def test_no_more_separators_are_given_than_there_are():
    separated = {ONE: torch.tensor([[0.5, 0.9], [0.1, 0.5]])}
    assert len(best_separators(separated, 4)) == 4
    with pytest.raises(ValueError, match="n=4 nodes were wanted, and fewer are left"):
        best_separators(separated, 4, forbidden=[(ONE, 0, 0)])


# ---------------------------------------------------------------------------------------------
# Other prompts
# ---------------------------------------------------------------------------------------------


def per_position(*nodes):
    """Masks of six positions at two hook points with these nodes on."""
    like = {name: torch.zeros(6, 10) for name in (ONE, TWO)}
    return only(SAEMasks.full(like, 0.0), nodes)


def test_nodes_move_to_their_new_positions():
    masks = per_position((ONE, 2, 7), (ONE, 5, 1), (TWO, 4, 3))
    made = moved(masks, {2: 1, 5: 3, 4: 2}, seq_len=4)
    assert made.masks.nodes() == [(ONE, 1, 7), (ONE, 3, 1), (TWO, 2, 3)]
    assert made.masks[ONE].shape == (4, 10) and (made.n_dropped, made.n_merged) == (0, 0)
    assert masks.nodes() == [(ONE, 2, 7), (ONE, 5, 1), (TWO, 4, 3)]


def test_positions_that_go_to_one_are_united():
    masks = per_position((ONE, 2, 7), (ONE, 5, 7), (ONE, 5, 1), (TWO, 2, 3))
    made = moved(masks, {2: 2, 5: 2}, seq_len=3)
    assert made.masks.nodes() == [(ONE, 2, 1), (ONE, 2, 7), (TWO, 2, 3)]
    assert made.n_merged == 1 and made.n_dropped == 0


def test_positions_without_a_place_are_dropped_and_counted():
    masks = per_position((ONE, 2, 7), (ONE, 3, 7), (TWO, 4, 3), (TWO, 5, 3))
    made = moved(masks, {2: 2, 5: 2}, seq_len=3)
    assert made.masks.nodes() == [(ONE, 2, 7), (TWO, 2, 3)] and made.n_dropped == 2
    nothing = moved(masks, {}, seq_len=3)
    assert nothing.masks.nodes() == [] and nothing.n_dropped == 4


def test_all_nodes_are_moved_merged_or_dropped():
    generator = torch.Generator().manual_seed(0)
    like = {name: (torch.rand(6, 10, generator=generator) < 0.5).float() for name in (ONE, TWO)}
    masks = SAEMasks(list(like), list(like.values()))
    made = moved(masks, {1: 1, 2: 2, 3: 2, 5: 2}, seq_len=3)
    left = masks.get_num_latents() - made.n_dropped - made.n_merged
    assert made.masks.get_num_latents() == left > 0 < made.n_merged


def test_masks_between_0_and_1_keep_the_larger_value():
    mask = torch.zeros(4, 2)
    mask[1], mask[3] = torch.tensor([0.3, 0.0]), torch.tensor([0.2, 0.9])
    made = moved(SAEMasks([ONE], [mask]), {1: 1, 3: 1}, seq_len=2)
    assert torch.equal(made.masks[ONE][1], torch.tensor([0.3, 0.9])) and made.n_merged == 1


def test_masks_of_every_position_stay_as_they_are():
    mask = torch.tensor([1.0, 0.0, 1.0])
    made = moved(SAEMasks([ONE], [mask]), {9: 1}, seq_len=3)
    assert torch.equal(made.masks[ONE], mask) and made.n_dropped == 0
    made.masks[ONE][0] = 0
    assert mask[0] == 1


def test_a_moved_circuit_does_on_shorter_prompts_what_it_did_there(spliced, task, means):
    """A causal model: what happens at position 2 does not depend on what comes after it."""
    everything = SAEMasks.full(means.latents, 1.0)
    nodes = everything.nodes()[::3]
    long = only(everything, nodes)
    made = moved(long, {1: 1, 2: 2}, seq_len=3)
    assert made.n_dropped == sum((position or 0) > 2 for _, position, _ in nodes)
    short_means = spliced.patch_means(task.patch[:, :3])
    short = spliced.run(task.clean[:, :3], masks=made.masks, means=short_means)
    whole = spliced.run(task.clean, masks=long, means=means)
    for name, f in short.latents.items():
        torch.testing.assert_close(f, whole.latents[name][:, :3], atol=1e-4, rtol=1e-4)
    unmasked = spliced.run(task.clean[:, :3])
    last = spliced.hook_points[-1]
    assert not torch.allclose(unmasked.latents[last], short.latents[last], atol=1e-3)


def test_positions_outside_either_prompt_are_refused():
    masks = per_position((ONE, 2, 7))
    for new in (-1, 0, 3):
        with pytest.raises(
            ValueError, match=f"the new position {new}: prompts of 3 .* 1 to 2, since"
        ):
            moved(masks, {2: new}, seq_len=3)
    for old in (-1, 6):
        with pytest.raises(ValueError, match=rf"{ONE}: .* the positions 0 to 5, not \[{old}\]"):
            moved(masks, {old: 2}, seq_len=3)


def test_without_bos_the_first_position_is_like_every_other():
    made = moved(per_position((ONE, 2, 7)), {2: 0}, seq_len=3, has_bos=False)
    assert made.masks.nodes() == [(ONE, 0, 7)]
    with pytest.raises(ValueError, match=r"the positions 0 to 2\.$"):
        moved(per_position((ONE, 2, 7)), {2: 3}, seq_len=3, has_bos=False)
