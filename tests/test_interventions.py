"""Interventions: what is held is held, where it is said to be, and what follows follows."""

from dataclasses import replace

import pytest
import torch

from course_utils.circuits.interventions import (
    Held,
    edge_effects,
    holding,
    intervene,
    resampled_logit_diff,
)
from course_utils.circuits.masks import SAEMasks, only
from course_utils.circuits.splice import PatchMeans, SplicedModel


def test_holding_values_that_are_there_changes_nothing(lab, task):
    spliced = SplicedModel(lab)
    run = spliced.run(task.clean)
    values = {(name, 3, 5): f[:, 3, 5] for name, f in run.latents.items()}
    torch.testing.assert_close(
        intervene(spliced, task.clean, values).logit_diff(task), run.logit_diff(task)
    )


def test_what_is_held_upstream_is_seen_downstream(lab, task):
    spliced = SplicedModel(lab)
    first, last = spliced.hook_points
    run = intervene(spliced, task.clean, {(first, 2, 7): 3.0, (last, 4, 1): 2.0})
    plain = spliced.run(task.clean)
    assert (run.latents[first][:, 2, 7] == 3).all() and (run.latents[last][:, 4, 1] == 2).all()
    f = plain.latents[first].clone()
    f[:, 2, 7] = 3.0
    expected = spliced.run(task.clean, latents={first: f}).latents[last].clone()
    expected[:, 4, 1] = 2.0
    torch.testing.assert_close(run.latents[last], expected)


def test_holding_a_node_that_is_not_spliced_is_refused(lab, task):
    with pytest.raises(
        ValueError, match="nothing is spliced at blocks.2.hook_resid_post; there is blocks.1"
    ):
        intervene(SplicedModel(lab), task.clean, {("blocks.2.hook_resid_post", 1, 1): 0.0})


def test_edge_effects_agree_with_interventions_by_hand(lab, task):
    spliced = SplicedModel(lab)
    first, last = spliced.hook_points
    before, after = (spliced.run(tokens).latents for tokens in (task.clean, task.patch))
    moves = (
        ((after[first] - before[first])[:, 2].abs().sum(0)).argmax().item()
    )  # position 2: the subject
    reads = ((after[last] - before[last])[:, 5].abs().sum(0)).argmax().item()
    nodes = [(first, 2, moves), (last, 5, reads)]
    found = edge_effects(spliced, task.clean, task.patch, nodes)
    moved = (
        intervene(spliced, task.clean, {nodes[0]: after[first][:, 2, moves]}).latents[last][
            :, 5, reads
        ]
        - before[last][:, 5, reads]
    )
    whole = (after[last] - before[last])[:, 5, reads]
    torch.testing.assert_close(
        found[0, 1], (moved * whole).sum() / whole.pow(2).sum(), rtol=1e-3, atol=1e-4
    )
    assert found[1, 0] == 0 and found.diagonal().abs().sum() == 0  # nothing flows back


def test_all_nodes_of_a_layer_together_carry_the_whole_change(lab, task):
    """Everything that the last SAE sees has passed the first: patch all of the first, and the last
    has its patch value.
    """
    spliced = SplicedModel(lab)
    first, last = spliced.hook_points
    after = spliced.run(task.patch).latents
    _, seq, d_sae = after[first].shape
    values = {(first, p, i): after[first][:, p, i] for p in range(1, seq) for i in range(d_sae)}
    torch.testing.assert_close(
        intervene(spliced, task.clean, values).latents[last], after[last], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("has_bos", [True, False])
def test_a_position_is_a_column_of_the_tokens(lab, task, has_bos):
    """With and without BOS; every other position stays as it is."""
    spliced = SplicedModel(lab, has_bos=has_bos)
    name = spliced.hook_points[0]
    plain = spliced.run(task.clean).latents[name]
    for position in range(spliced.first, task.seq_len):
        held = intervene(spliced, task.clean, {(name, position, 7): 9.0}).latents[name]
        changed = (held != plain).nonzero()
        assert set(changed[:, 1].tolist()) == {position} and set(changed[:, 2].tolist()) == {7}
        assert len(changed) == len(task) and (held[:, position, 7] == 9.0).all()


def test_bos_is_never_spliced_so_nothing_can_be_held_there(lab, task):
    """Position 0 once meant the last position."""
    spliced = SplicedModel(lab)
    for position in (0, -1):
        with pytest.raises(ValueError, match=f"position {position}.*BOS"):
            intervene(spliced, task.clean, {(spliced.hook_points[0], position, 7): 9.0})
    without_bos = SplicedModel(lab, has_bos=False)
    node = (spliced.hook_points[0], 0, 7)
    assert (intervene(without_bos, task.clean, {node: 9.0}).latents[node[0]][:, 0, 7] == 9).all()


def test_a_position_or_latent_that_is_not_there_is_refused(lab, task):
    spliced = SplicedModel(lab)
    name = spliced.hook_points[0]
    with pytest.raises(ValueError, match="position 6: the prompts have 6 tokens"):
        intervene(spliced, task.clean, {(name, 6, 7): 9.0})
    for latent in (24, -1):
        with pytest.raises(ValueError, match=f"latents 0 to 23, and no {latent}"):
            intervene(spliced, task.clean, {(name, 2, latent): 9.0})


def test_without_a_position_a_latent_is_held_at_all_of_them(lab, task):
    spliced = SplicedModel(lab)
    name, values = spliced.hook_points[0], torch.arange(12.0)
    held = intervene(spliced, task.clean, {(name, None, 7): values}).latents[name]
    assert (held[:, 1:, 7] == values[:, None]).all() and (held[:, 0] == 0).all()


def test_each_prompt_may_have_a_position_and_a_value_of_its_own(lab, task):
    spliced = SplicedModel(lab)
    name, positions = spliced.hook_points[0], torch.tensor([1, 5, 3])
    values = torch.tensor([1.0, 2.0, 3.0])
    latents = holding(spliced, [Held(name, positions, 7, values)])
    held = spliced.run(task.clean[:3], latents=latents).latents[name]
    expected = spliced.run(task.clean[:3]).latents[name].clone()
    for row in range(3):
        expected[row, positions[row], 7] = values[row]
    torch.testing.assert_close(held, expected)


def test_holding_changes_a_copy(lab):
    spliced = SplicedModel(lab)
    f = torch.zeros(2, 6, 24)
    change = holding(spliced, [Held(spliced.hook_points[0], 2, 7, 9.0)])
    assert change[spliced.hook_points[0]](f)[0, 2, 7] == 9 and f.abs().sum() == 0


def test_edge_effects_are_shares_of_a_nodes_own_change(lab, task):
    """A node that is moved by all of them together gets effects that are not above 1 in a chain."""
    spliced = SplicedModel(lab)
    first, last = spliced.hook_points
    nodes = [(first, 2, 7), (last, 5, 1), (last, 5, 2)]
    effects = edge_effects(spliced, task.clean, task.patch, nodes)
    assert effects.shape == (3, 3) and (effects.diagonal() == 0).all()
    assert (effects[1:] == 0).all()  # nothing goes back, or sideways within a layer
    same = edge_effects(spliced, task.clean, task.clean, nodes)
    assert (same == 0).all()


# ---------------------------------------------------------------------------------------------
# Resampled ablation
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def some_masks(means):
    """A third of all nodes."""
    everything = SAEMasks.full(means.latents, 1.0)
    return only(everything, everything.nodes()[::3])


def test_resampled_ablation_is_the_mean_ablation_of_one_donor_each(spliced, task, some_masks):
    """One prompt at a time, the donor's values are the mean over a single prompt."""
    donors = task.patch.roll(5, 0)
    found = resampled_logit_diff(spliced, task, some_masks, donors)
    for row in range(len(task)):
        of_donor = spliced.patch_means(donors[row : row + 1])
        wanted = spliced.logit_diff(task[[row]], masks=some_masks, means=of_donor)
        torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-4, rtol=1e-4)


def test_with_every_node_kept_the_donors_say_nothing(spliced, task, means):
    everything = SAEMasks.full(means.latents, 1.0)
    found = resampled_logit_diff(spliced, task, everything, task.patch)
    torch.testing.assert_close(found, spliced.logit_diff(task), atol=1e-4, rtol=1e-4)


def test_with_no_node_kept_the_donors_say_everything(lab, task):
    """All that passes the last SAE is the donor's: its logits, with the prompt's own answers."""
    spliced = SplicedModel(lab)
    nothing = SAEMasks.full(spliced.patch_means(task.patch).latents, 0.0)
    found = resampled_logit_diff(spliced, task, nothing, task.patch)
    wanted = spliced.run(task.patch).logit_diff(task)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, spliced.logit_diff(task), atol=1e-3)


@pytest.mark.parametrize("error", ["mean", "keep"])
def test_batches_and_error_policies_change_nothing_that_they_should_not(lab, task, error):
    spliced = SplicedModel(lab, error=error)
    means = spliced.patch_means(task.patch)
    masks = only(everything := SAEMasks.full(means.latents, 1.0), everything.nodes()[::4])
    at_once = resampled_logit_diff(spliced, task, masks, task.patch, means=means)
    in_pieces = resampled_logit_diff(spliced, task, masks, task.patch, means=means, batch_size=5)
    torch.testing.assert_close(at_once, in_pieces, atol=1e-4, rtol=1e-4)
    other_latents = PatchMeans({k: f + 1 for k, f in means.latents.items()}, means.errors, means.n)
    again = resampled_logit_diff(spliced, task, masks, task.patch, means=other_latents)
    torch.testing.assert_close(at_once, again)


def test_donors_that_do_not_fit_are_refused(spliced, task, some_masks):
    for donors, shape in ((task.patch[:5], "5, 6"), (task.patch[:, :4], "12, 4")):
        with pytest.raises(ValueError, match=rf"\[12, 6\] tokens in all; got \[{shape}\]"):
            resampled_logit_diff(spliced, task, some_masks, donors)
    padded = replace(task, lengths=torch.full((12,), 6))
    with pytest.raises(ValueError, match="prompts of one length, and these are padded"):
        resampled_logit_diff(spliced, padded, some_masks, task.patch)
