"""Attribution against identities: masks' gradients, sums, finite differences, exact patching."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_sae

from course_utils.circuits.attribution import (
    activation_patching,
    atp,
    integrated_gradients,
    largest_change,
    random_nodes,
    random_scores,
)
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel, logit_diff
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


@pytest.mark.parametrize("error", ["drop", "mean", "keep"])
def test_atp_from_means_equals_the_gradient_of_the_mask_at_one(any_lab, task, error):
    spliced = SplicedModel(any_lab, error=error)
    means = spliced.patch_means(task.patch)
    masks = SAEMasks.full(means.latents, 1.0)
    for mask in masks.masks:
        mask.requires_grad_()
    logit_diff(spliced.run(task.clean, masks=masks, means=means).logits, task).mean().backward()
    scores = atp(spliced, task, means=means, baseline="mean", batch_size=5)
    for name, mask in masks.items():
        torch.testing.assert_close(scores[name], mask.grad, atol=1e-5, rtol=1e-4)


def test_ig_with_one_step_is_atp(any_lab, task):
    """Each SAE by itself: the gradient at a node counts its way through the SAEs above it."""
    spliced = SplicedModel(any_lab)
    one, straight = integrated_gradients(spliced, task, steps=1), atp(spliced, task)
    for name in spliced.hook_points:
        torch.testing.assert_close(one[name], straight[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("baseline", ["patch", "mean"])
def test_ig_sums_to_the_difference_that_it_explains(any_lab, task, baseline):
    """At the last SAE the way from clean to baseline is smooth: the sum converges as the steps
    grow.
    """
    spliced = SplicedModel(any_lab)
    means = spliced.patch_means(task.patch)
    with torch.no_grad():
        whole = spliced.run(task.clean).latents
        end = (
            means.latents[B].expand_as(whole[B])
            if baseline == "mean"
            else spliced.run(task.patch).latents[B]
        )
        difference = (
            logit_diff(spliced.run(task.clean).logits, task)
            - logit_diff(spliced.run(task.clean, latents={B: end}).logits, task)
        ).mean()
    gaps = [
        abs(
            integrated_gradients(spliced, task, steps=steps, means=means, baseline=baseline)[
                B
            ].sum()
            - difference
        ).item()
        for steps in (2, 64)
    ]
    assert gaps[1] < 0.02 * abs(difference) + 0.01 and gaps[1] < gaps[0]


def test_activation_patching_equals_running_with_that_node_replaced(lab, task):
    spliced = SplicedModel(lab)
    with torch.no_grad():
        clean, patch = spliced.run(task.clean), spliced.run(task.patch)
        f = clean.latents[A].clone()
        f[:, 2, 5] = patch.latents[A][:, 2, 5]
        expected = (
            logit_diff(clean.logits, task)
            - logit_diff(spliced.run(task.clean, latents={A: f}).logits, task)
        ).mean()
    scores = activation_patching(spliced, task, [(A, 2, 5), (B, 5, 0)], batch_size=5)
    torch.testing.assert_close(scores[A][2, 5], expected, atol=1e-6, rtol=1e-4)
    assert scores[A].isnan().sum() == scores[A].numel() - 1 and not scores[B][5, 0].isnan()


class LinearToy:
    """A spliced model whose logit difference is a known linear function of its latents: all
    estimates must be exact.
    """

    hook_points = [A]
    first = 0

    def __init__(self):
        torch.manual_seed(0)
        self.saes = {A: tiny_sae(d_in=5, d_sae=7)}
        self.embed, self.weight = torch.randn(400, 7), torch.randn(6, 5)

    def batch_size(self, seq, gradient=False):
        return 5

    def run(
        self,
        tokens,
        *,
        means=None,
        lengths=None,
        latents=None,
        outputs=None,
        track_latents=False,
        keep_latents=True,
    ):
        f = self.embed[tokens] if latents is None else latents[A]
        if track_latents:
            f.requires_grad_()
        x_hat = self.saes[A].decode(f) if outputs is None else outputs[A]
        difference = (x_hat * self.weight).sum((1, 2))
        return SimpleNamespace(
            latents={A: f}, starts={A: tokens}, logit_diff=lambda task: difference
        )


def test_on_a_linear_toy_atp_ig_and_patching_are_exact_and_agree(task):
    toy = LinearToy()
    expected = (
        (toy.weight @ toy.saes[A].W_dec.T * (toy.embed[task.clean] - toy.embed[task.patch]))
        .mean(0)
        .detach()
    )
    nodes = [(A, position, latent) for position in range(6) for latent in range(7)]
    for scores in (
        atp(toy, task),
        integrated_gradients(toy, task, steps=7),
        activation_patching(toy, task, nodes, batch_size=5),
    ):
        torch.testing.assert_close(scores[A], expected, atol=1e-5, rtol=1e-4)


def test_the_two_orders_of_averaging_differ_as_they_should(lab, task):
    spliced = SplicedModel(lab)
    signed, absolute = atp(spliced, task), atp(spliced, task, aggregate="mean_abs")
    singles = torch.stack([atp(spliced, task[[i]])[A] for i in range(len(task))])
    torch.testing.assert_close(signed[A], singles.mean(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(absolute[A], singles.abs().mean(0), atol=1e-6, rtol=1e-4)
    assert (absolute[A] >= signed[A].abs() - 1e-6).all() and (
        absolute[A] > signed[A].abs() + 1e-6
    ).any()


def test_largest_change_is_the_mean_absolute_change(lab, task):
    spliced = SplicedModel(lab)
    change = spliced.run(task.clean).latents[B] - spliced.run(task.patch).latents[B]
    torch.testing.assert_close(largest_change(spliced, task, batch_size=5)[B], change.abs().mean(0))


def test_random_scores_pick_only_nodes_that_fire_and_follow_the_seed(lab, task):
    spliced = SplicedModel(lab)
    scores, again, other = (random_scores(spliced, task, seed=seed) for seed in (0, 0, 1))
    fires = (spliced.run(task.clean).latents[A] != 0).any(0) | (
        spliced.run(task.patch).latents[A] != 0
    ).any(0)
    assert torch.equal(scores[A] > 0, fires) and not fires.all()
    assert torch.equal(scores[A], again[A]) and not torch.equal(scores[A], other[A])


def test_random_nodes_have_a_score(lab, task):
    scores = largest_change(SplicedModel(lab), task)
    nodes = random_nodes(scores, 10, seed=0)
    assert len(set(nodes)) == 10 and all(
        scores[name][position, latent] != 0 for name, position, latent in nodes
    )
    with pytest.raises(ValueError, match="only .* have a score"):
        random_nodes(scores, 10**6, seed=0)


def test_bos_has_no_score(lab, task):
    spliced = SplicedModel(lab)
    for scores in (
        atp(spliced, task),
        integrated_gradients(spliced, task, steps=2),
        largest_change(spliced, task),
    ):
        assert all(score[0].abs().max() == 0 for score in scores.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baseline": "zero"}, "baseline"),
        ({"aggregate": "sum"}, "aggregate"),
        ({"steps": 0}, "steps"),
        ({"baseline": "mean"}, "means="),
    ],
)
def test_bad_arguments_are_named(lab, task, wrong, message):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(SplicedModel(lab), task, **wrong)


def test_a_node_that_is_not_spliced_is_refused(lab, task):
    with pytest.raises(ValueError, match="blocks.2"):
        activation_patching(SplicedModel(lab), task, [(hook_point(2), 1, 0)])
