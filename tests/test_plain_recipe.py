"""The library against the textbook: the same numbers on every architecture, error policy, with and
without BOS, padded and not.
"""

import functools
from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, make_lab
from torch.utils.flop_counter import FlopCounterMode

from course_utils.circuits.attribution import integrated_gradients
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.optimize import learn_masks
from course_utils.circuits.sparsification import MaskSettings
from course_utils.circuits.splice import SplicedModel
from tools.plain_recipe import PlainSplice, sae_weights_with_gradients

SETTINGS = MaskSettings(sparsity=0.01, steps=4, batch_size=4, lr=0.6, candidates="all")
ERRORS = ("drop", "mean", "keep")
PROMPTS = [(bos, padded) for bos in (True, False) for padded in (False, True)]


def cases():
    """(architecture, error policy, BOS, padded): llama in all of them; the other architectures with
    each policy once, in turn with one of the four kinds of prompts.
    """
    for a, architecture in enumerate(ARCHITECTURES):
        for e, error in enumerate(ERRORS):
            for p, (bos, padded) in enumerate(PROMPTS):
                if a == 0 or p == (a + e) % len(PROMPTS):
                    says = f"{'' if bos else 'no '}BOS, {'' if padded else 'un'}padded"
                    name = f"{architecture}, {error}, {says}"
                    yield pytest.param(architecture, error, bos, padded, id=name)


@functools.cache
def lab_of(architecture):
    return make_lab(architecture)


def variant(task, bos, padded):
    """The task without BOS, or with prompts of two lengths, the shorter ones padded."""
    if not bos:
        task = replace(task, clean=task.clean[:, 1:], patch=task.patch[:, 1:], has_bos=False)
    if padded:
        lengths = torch.full((len(task),), task.seq_len)
        lengths[::3] -= 2
        beyond = torch.arange(task.seq_len) >= lengths[:, None]
        task = replace(
            task,
            lengths=lengths,
            clean=task.clean.masked_fill(beyond, 0),
            patch=task.patch.masked_fill(beyond, 0),
        )
    return task


@pytest.mark.parametrize(("architecture", "error", "bos", "padded"), cases())
def test_means_masks_ig_and_faithfulness_equal_the_textbook(architecture, error, bos, padded, task):
    lab, task = lab_of(architecture), variant(task[:6], bos, padded)
    fast, plain = (
        SplicedModel(lab, error=error, has_bos=bos),
        PlainSplice(lab, lab.sae_layers, error, has_bos=bos, batch_size=4),
    )

    means, expected_means = (
        fast.patch_means(task.patch, lengths=task.lengths),
        plain.patch_means(task),
    )
    for name, mean in expected_means.latents.items():
        torch.testing.assert_close(means.latents[name], mean, atol=1e-4, rtol=1e-4)
    assert means.errors.keys() == expected_means.errors.keys()
    for name, mean in expected_means.errors.items():
        torch.testing.assert_close(means.errors[name], mean, atol=1e-4, rtol=1e-4)

    with torch.no_grad():
        torch.testing.assert_close(
            fast.model_logit_diff(task), plain.model_logit_diff(task), atol=1e-4, rtol=1e-4
        )
        whole = plain.logit_diff(task.clean, task, means=means)
        torch.testing.assert_close(fast.logit_diff(task, means=means), whole, atol=1e-4, rtol=1e-4)

    learned = learn_masks(fast, task, means=means, settings=SETTINGS, progress=False)
    masks, losses = plain.learn_masks(task, means, SETTINGS)
    torch.testing.assert_close(
        torch.tensor([record["faithfulness_loss"] for record in learned.history]),
        torch.tensor(losses),
        atol=1e-4,
        rtol=1e-3,
    )
    assert masks.get_num_latents() > 0
    for name, mask in masks.items():
        agree = (learned.masks[name] == mask).float().mean()
        assert agree >= 0.99

    expected = plain.integrated_gradients(task, steps=2, means=means)
    for name, scores in integrated_gradients(fast, task, steps=2, means=means).items():
        torch.testing.assert_close(
            scores, expected[name], atol=1e-4 * expected[name].abs().max().item(), rtol=1e-4
        )

    evaluation = Evaluation(fast, task, means)
    found = evaluation.faithfulness(masks, n_bootstrap=2).vs_spliced.value
    assert found == pytest.approx(plain.faithfulness(task, masks, means), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"per_position": False}, {"n_nodes": 20}], ids=str)
def test_settings_of_learning_mean_the_same_in_both(lab, task, changes):
    """The size is wanted of all latents here; in this lab, all of them fire."""
    settings = replace(SETTINGS, steps=12, **changes)
    fast, plain = SplicedModel(lab), PlainSplice(lab, lab.sae_layers)
    means = fast.patch_means(task.patch)
    learned = learn_masks(fast, task, means=means, settings=settings, progress=False)
    masks, losses = plain.learn_masks(task, means, settings)
    faithfulness_losses = [record["faithfulness_loss"] for record in learned.history]
    assert losses == pytest.approx(faithfulness_losses, abs=1e-4, rel=1e-3)
    for name, mask in masks.items():
        assert (learned.masks[name] == mask).float().mean() >= 0.99


def test_running_the_unmasked_pass_once_per_prompt_changes_no_number(lab, task):
    plain = PlainSplice(lab, lab.sae_layers)
    means = plain.patch_means(task)
    masks, losses = plain.learn_masks(task, means, SETTINGS)
    masks_once, losses_once = plain.learn_masks(task, means, SETTINGS, whole_once=True)
    assert losses_once == pytest.approx(losses, abs=1e-5)
    for mask, once in zip(masks.masks, masks_once.masks, strict=True):
        assert (mask == once).float().mean() >= 0.99


def test_mean_errors_are_asked_for(lab, task):
    with pytest.raises(ValueError, match="error='mean' needs means"):
        PlainSplice(lab, lab.sae_layers, error="mean").logit_diff(task.clean, task)


def test_as_published_the_saes_alone_collect_gradients_and_no_number_changes(lab, task):
    plain = PlainSplice(lab, lab.sae_layers)
    means = plain.patch_means(task)
    frozen, losses = plain.learn_masks(task, means, SETTINGS)
    scores = plain.integrated_gradients(task, steps=2)
    weights = [sae.W_dec for sae in lab.saes.values()]
    with sae_weights_with_gradients(lab):
        loose, loose_losses = plain.learn_masks(task, means, SETTINGS)
        assert all(weight.grad is not None for weight in weights)
        loose_scores = plain.integrated_gradients(task, steps=2)
        assert all(weight.grad is None for weight in weights)  # dropped after every point
        assert not any(p.requires_grad for p in lab.hf_model.parameters())
    assert losses == loose_losses
    assert all(torch.equal(a, b) for a, b in zip(frozen.masks, loose.masks))
    assert all(torch.equal(scores[name], loose_scores[name]) for name in scores)
    assert not any(weight.requires_grad for weight in weights)


def test_as_published_the_unmasked_pass_is_gone_back_through(lab, task):
    """Twice the matrix products, and more, of the same step with frozen SAEs."""
    plain = PlainSplice(lab, lab.sae_layers)
    means = plain.patch_means(task)

    def flops():
        with FlopCounterMode(display=False) as counter:
            plain.learn_masks(task, means, replace(SETTINGS, steps=1))
        return counter.get_total_flops()

    frozen = flops()
    with sae_weights_with_gradients(lab):
        assert flops() > 1.3 * frozen


@pytest.mark.parametrize("size", [3, 12])
def test_means_go_prompt_by_prompt_and_all_else_in_batches(lab, task, size, monkeypatch):
    plain = PlainSplice(lab, lab.sae_layers, batch_size=size)
    seen = []
    run = plain._run

    def counted(tokens, at_sae):
        seen.append(len(tokens))
        return run(tokens, at_sae)

    monkeypatch.setattr(plain, "_run", counted)
    means = plain.patch_means(task)
    assert seen == [1] * len(task)
    seen.clear()
    plain.integrated_gradients(task, steps=2)
    plain.faithfulness(task, SAEMasks.full(means.latents, 1.0), means)
    assert set(seen) == {size}
