"""Learned masks: schedule, loss, sizes, interrupts, bad input."""

import pytest
import torch
from conftest import make_lab

import course_utils.circuits.optimize as optimize
from course_utils.circuits.evaluate import faithfulness
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.optimize import MaskSettings, learn_masks, soft_mask, temperature
from course_utils.circuits.splice import SplicedModel

QUICK = dict(steps=12, batch_size=4, progress=False)


@pytest.fixture(scope="module")
def spliced(lab):
    return SplicedModel(lab)


def test_the_temperature_starts_at_one_and_ends_at_its_maximum():
    settings = MaskSettings(steps=50, tau_max=200)
    taus = [temperature(step, settings) for step in range(50)]
    assert taus[0] == 1 and taus[-1] == pytest.approx(200) and max(taus) <= 200 * (1 + 1e-9)
    ratios = [b / a for a, b in zip(taus, taus[1:])]
    assert max(ratios) == pytest.approx(min(ratios))
    assert temperature(500, settings) == pytest.approx(200)


def test_a_soft_mask_hardens_into_a_step():
    theta = torch.tensor([-0.5, 0.0, 0.5])
    torch.testing.assert_close(soft_mask(theta, 1.0), torch.sigmoid(theta))
    torch.testing.assert_close(soft_mask(theta, 200.0), torch.tensor([0.0, 0.5, 1.0]))


def test_the_first_loss_is_the_one_of_the_formula(spliced, task):
    settings = MaskSettings(sparsity=0.02, steps=1, batch_size=len(task))
    found = learn_masks(spliced, task, settings=settings, progress=False).history[0]
    means = spliced.patch_means(task.patch)
    m = torch.sigmoid(torch.tensor(1.0)).item()
    masks = SAEMasks.full(means.latents, m)
    gap = (
        (spliced.logit_diff(task) - spliced.logit_diff(task, masks=masks, means=means))
        .abs()
        .mean()
        .item()
    )
    n_soft = sum(mask.sum().item() for mask in masks.masks)
    assert found["faithfulness_loss"] == pytest.approx(gap, rel=1e-4)
    assert found["loss"] == pytest.approx(gap + 0.02 * n_soft / 2, rel=1e-4)


def test_a_higher_price_keeps_fewer_nodes(spliced, task):
    sizes = [
        learn_masks(spliced, task, sparsity=price, **{**QUICK, "steps": 40}).n_nodes
        for price in (0.0, 0.003, 0.3)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_free_mask_of_nothing_but_faithfulness_stays_faithful(spliced, task):
    means = spliced.patch_means(task.patch)
    result = learn_masks(spliced, task, means=means, sparsity=0.001, **{**QUICK, "steps": 60})
    assert result.n_nodes < 240
    found = faithfulness(spliced, task, result.masks, means)
    empty = spliced.logit_diff(task, masks=SAEMasks.full(means.latents, 0.0), means=means)
    circuit = spliced.logit_diff(task, masks=result.masks, means=means)
    whole = spliced.logit_diff(task)
    assert (circuit - whole).abs().mean() < 0.5 * (empty - whole).abs().mean()
    assert found.n == len(task)


@pytest.mark.parametrize("n_nodes", [3, 10, 40])
def test_a_wanted_size_is_met_exactly(spliced, task, n_nodes):
    assert learn_masks(spliced, task, n_nodes=n_nodes, **QUICK).n_nodes == n_nodes


def test_masks_are_binary_and_bos_is_never_a_node(spliced, task):
    for extra in ({"sparsity": 0.0}, {"n_nodes": 50}):
        for mask in learn_masks(spliced, task, **extra, **QUICK).masks.masks:
            assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask[0].sum() == 0


def test_a_mask_for_all_positions_has_one_number_a_latent(spliced, task):
    result = learn_masks(spliced, task, per_position=False, sparsity=0.01, **QUICK)
    assert all(mask.shape == (24,) for mask in result.masks.masks)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another_order(spliced, task):
    one, two, other = (
        learn_masks(spliced, task, sparsity=0.01, seed=seed, **QUICK) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one.theta[name], two.theta[name]) for name in one.theta)
    assert any(not torch.equal(one.theta[name], other.theta[name]) for name in one.theta)


def test_every_prompt_is_seen_once_an_epoch():
    settings = MaskSettings(batch_size=4, steps=6)
    for epoch in (0, 1):
        rows = torch.cat(
            [optimize.batch_rows(12, step, settings) for step in range(3 * epoch, 3 * epoch + 3)]
        )
        assert sorted(rows.tolist()) == list(range(12))


def test_an_interrupt_returns_the_mask_so_far_and_a_resume_ends_where_the_whole_run_ends(
    spliced, task, monkeypatch, capsys
):
    whole = learn_masks(spliced, task, sparsity=0.01, **QUICK)
    calls = []

    def interrupt_at_the_sixth(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return temperature(*args)

    monkeypatch.setattr(optimize, "temperature", interrupt_at_the_sixth)
    part = learn_masks(spliced, task, sparsity=0.01, **QUICK)
    monkeypatch.undo()
    assert (
        part.interrupted
        and len(part.history) == 5
        and "Interrupted after 5 of 12" in capsys.readouterr().out
    )
    rest = learn_masks(spliced, task, resume=part, progress=False)
    assert not rest.interrupted and len(rest.history) == 12
    for name in whole.theta:
        torch.testing.assert_close(rest.theta[name], whole.theta[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": -0.1},
        {"n_nodes": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0},
        {"tau_max": 0.5},
        {"candidates": "some"},
        {"n_nodes": 10**6},
        {"batch_size": 99},
    ],
)
def test_a_setting_out_of_range_is_named(spliced, task, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        learn_masks(spliced, task, progress=False, **{"batch_size": 4, **wrong})


def test_only_firing_latents_give_nearly_the_same_mask_and_say_the_error(spliced, task):
    exact = learn_masks(spliced, task, sparsity=0.01, **QUICK)
    firing = learn_masks(spliced, task, sparsity=0.01, candidates="firing", **QUICK)
    assert exact.candidate_error is None
    means = spliced.patch_means(task.patch)
    spread = spliced.logit_diff(task, masks=firing.masks, means=means).std()
    assert 0 <= firing.candidate_error < 0.2 * spread
    same = torch.cat([(a == b).flatten() for a, b in zip(exact.masks.masks, firing.masks.masks)])
    assert same.float().mean() > 0.9
    for name, theta in firing.theta.items():
        fires = (spliced.run(task.clean).latents[name] != 0).flatten(0, 1).any(0) | (
            means.latents[name] != 0
        ).any(0)
        assert torch.equal(theta[1].isfinite(), fires) and firing.masks[name][:, ~fires].sum() == 0


def test_latents_that_never_fire_at_the_first_sae_are_left_out(task):
    """Though nothing is charged for them: no mask comes before that SAE, so they can do nothing."""
    lab = make_lab()
    for sae in lab.saes.values():
        sae.threshold[:6] = 100
    result = learn_masks(SplicedModel(lab), task, sparsity=0.0, **QUICK)
    first, second = (mask[1:, :6].mean() for mask in result.masks.masks)
    assert first == 0 and second == 1 and result.masks.masks[0][:, 6:].sum() > 0


def test_a_padded_task_learns_one_mask_for_all_positions(spliced, task):
    from dataclasses import replace

    lengths = torch.tensor([6, 4] * 6)
    padded = replace(
        task, lengths=lengths, clean=task.clean.masked_fill(torch.arange(6) >= lengths[:, None], 0)
    )
    result = learn_masks(spliced, padded, per_position=False, sparsity=0.001, **QUICK)
    assert (
        result.n_nodes > 0
        and result.history[-1]["faithfulness_loss"] < result.history[0]["faithfulness_loss"] + 1
    )
