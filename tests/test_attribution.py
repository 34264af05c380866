"""Attribution against identities: masks' gradients, sums, finite differences, exact patching."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_lab, tiny_sae
from hypothesis import given
from hypothesis import strategies as st

import course_utils.circuits.attribution as attribution
from course_utils.circuits.attribution import (
    AttributionSettings,
    activation_patching,
    atp,
    integrated_gradients,
    largest_change,
    random_nodes,
    random_scores,
)
from course_utils.circuits.backward import layers_dropped
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.splice import SplicedModel, logit_diff
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)


@pytest.fixture(scope="module")
def padded(task):
    """The task with every third prompt two tokens shorter."""
    lengths = torch.tensor([4, 6, 6] * 4)
    beyond = torch.arange(6) >= lengths[:, None]
    clean, patch = task.clean.masked_fill(beyond, 0), task.patch.masked_fill(beyond, 0)
    return replace(task, lengths=lengths, clean=clean, patch=patch)


def baseline_of(kind, spliced, task, means, name):
    """What stands in for the latents of one SAE, ``[n, seq, d_sae]``."""
    if kind == "mean":
        return means.latents[name].expand(len(task), -1, -1)
    return spliced.run(task.patch).latents[name]


def logit_diff_with(spliced, task, name, f):
    """LD on the clean prompts with latents put in at one SAE: a whole pass from the tokens."""
    return logit_diff(spliced.run(task.clean, latents={name: f}).logits, task)


def gradient_with(spliced, task, name, f):
    """∂LD/∂f of every prompt, with the latents ``f`` put in at one SAE."""
    f = f.clone().requires_grad_()
    logit_diff_with(spliced, task, name, f).sum().backward()
    return f.grad


def over_prompts(scores, aggregate):
    return (scores.abs() if aggregate == "mean_abs" else scores).mean(0)


# ---------------------------------------------------------------------------------------------
# AtP and integrated gradients
# ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("aggregate", ["mean", "mean_abs"])
@pytest.mark.parametrize("baseline", ["patch", "mean"])
@pytest.mark.parametrize("batch_size", [5, 12])
def test_atp_is_the_gradient_at_the_clean_latents_times_clean_minus_baseline(
    spliced, task, means, baseline, aggregate, batch_size
):
    """In batches of unequal size, each prompt counts the same."""
    scores = atp(
        spliced, task, means=means, baseline=baseline, aggregate=aggregate, batch_size=batch_size
    )
    for name in (A, B):
        f = spliced.run(task.clean).latents[name].detach()
        change = f - baseline_of(baseline, spliced, task, means, name).detach()
        expected = over_prompts(gradient_with(spliced, task, name, f) * change, aggregate)
        torch.testing.assert_close(scores[name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("aggregate", ["mean", "mean_abs"])
@pytest.mark.parametrize("baseline", ["patch", "mean"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [None, 7, 1])
def test_ig_is_the_mean_gradient_over_the_points_written_out(
    spliced, task, means, baseline, aggregate, steps, batch_size
):
    """From the clean latents (j = 0) to one step before the baseline, whatever fits in a batch."""
    scores = integrated_gradients(
        spliced,
        task,
        means=means,
        steps=steps,
        baseline=baseline,
        aggregate=aggregate,
        batch_size=batch_size,
    )
    for name in (A, B):
        f = spliced.run(task.clean).latents[name].detach()
        end = baseline_of(baseline, spliced, task, means, name).detach()
        total = torch.zeros_like(f)
        for j in range(steps):
            total += gradient_with(spliced, task, name, f + (end - f) * j / steps)
        expected = over_prompts(total / steps * (f - end), aggregate)
        torch.testing.assert_close(scores[name], expected, atol=1e-4, rtol=1e-3)


def test_ig_with_one_step_is_atp(any_lab, task):
    """Each SAE by itself: the gradient at a node counts its way through the SAEs above it."""
    spliced = SplicedModel(any_lab)
    one, straight = integrated_gradients(spliced, task, steps=1), atp(spliced, task)
    for name in spliced.hook_points:
        torch.testing.assert_close(one[name], straight[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("baseline", ["patch", "mean"])
def test_ig_sums_to_the_difference_that_it_explains(any_lab, task, baseline):
    """At the last SAE the way from clean to baseline is smooth: the sum converges."""
    spliced = SplicedModel(any_lab)
    means = spliced.patch_means(task.patch)
    with torch.no_grad():
        f = spliced.run(task.clean).latents[B]
        end = baseline_of(baseline, spliced, task, means, B)
        difference = logit_diff_with(spliced, task, B, f) - logit_diff_with(spliced, task, B, end)
    difference = difference.mean()
    gaps = []
    for steps in (2, 64):
        scores = integrated_gradients(spliced, task, steps=steps, means=means, baseline=baseline)
        gaps.append(abs(scores[B].sum() - difference).item())
    assert gaps[1] < 0.02 * abs(difference) + 0.01 and gaps[1] < gaps[0]


@pytest.mark.parametrize("error", ["drop", "mean", "keep"])
@pytest.mark.parametrize("score", [atp, integrated_gradients])
def test_scores_of_padded_prompts_are_the_mean_of_each_prompt_alone(lab, padded, score, error):
    """A short prompt alone is not padded; its scores have no rows beyond its end."""
    spliced = SplicedModel(lab, error=error)
    means = spliced.patch_means(padded.patch, lengths=padded.lengths)
    together = score(spliced, padded, means=means, batch_size=10)
    expected = {name: torch.zeros_like(scores) for name, scores in together.items()}
    for i, length in enumerate(padded.lengths.tolist()):
        one = padded[i]
        one = replace(one, clean=one.clean[:, :length], patch=one.patch[:, :length], lengths=None)
        latents, errors = (
            {name: value[:length] for name, value in values.items()}
            for values in (means.latents, means.errors)
        )
        short = replace(means, latents=latents, errors=errors)
        for name, alone in score(spliced, one, means=short).items():
            expected[name][:length] += alone / len(padded)
    for name in (A, B):
        torch.testing.assert_close(together[name], expected[name], atol=1e-5, rtol=1e-3)


# ---------------------------------------------------------------------------------------------
# Activation patching
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["mean", "mean_abs"])
@pytest.mark.parametrize("baseline", ["patch", "mean"])
@pytest.mark.parametrize("batch_size", [5, None])
def test_activation_patching_equals_running_with_that_node_replaced(
    spliced, task, means, baseline, aggregate, batch_size
):
    nodes = [(A, 2, 5), (B, 5, 0), (A, 4, 7), (A, 5, 5)]
    scores = activation_patching(
        spliced,
        task,
        nodes,
        means=means,
        baseline=baseline,
        aggregate=aggregate,
        batch_size=batch_size,
    )
    for name, position, latent in nodes:
        f = spliced.run(task.clean).latents[name]
        end = baseline_of(baseline, spliced, task, means, name)
        replaced = f.clone()
        replaced[:, position, latent] = end[:, position, latent]
        with torch.no_grad():
            falls = logit_diff_with(spliced, task, name, f)
            falls = falls - logit_diff_with(spliced, task, name, replaced)
        expected = over_prompts(falls, aggregate)
        torch.testing.assert_close(scores[name][position, latent], expected, atol=1e-5, rtol=1e-4)
    asked = {name: int((~score.isnan()).sum()) for name, score in scores.items()}
    assert asked == {A: 3, B: 1}
    assert all(score.shape == (6, 24) for score in scores.values())


@pytest.mark.parametrize("error", ["mean", "keep"])
def test_activation_patching_adds_the_errors_of_the_policy(lab, task, error):
    spliced = SplicedModel(lab, error=error)
    means = spliced.patch_means(task.patch)
    scores = activation_patching(spliced, task, [(A, 2, 5)], means=means)
    f = spliced.run(task.clean, means=means).latents[A]
    replaced = f.clone()
    replaced[:, 2, 5] = spliced.run(task.patch, means=means).latents[A][:, 2, 5]
    with torch.no_grad():
        clean, patched = (
            logit_diff(spliced.run(task.clean, means=means, latents={A: g}).logits, task)
            for g in (f, replaced)
        )
    torch.testing.assert_close(scores[A][2, 5], (clean - patched).mean(), atol=1e-5, rtol=1e-4)


def test_a_node_that_is_named_twice_has_the_score_of_one_that_is_named_once(spliced, task):
    node, other = (A, 2, 5), (B, 5, 0)
    once = activation_patching(spliced, task, [node, other])
    twice = activation_patching(spliced, task, [node, other, node])
    assert once[A][2, 5] == twice[A][2, 5] and once[B][5, 0] == twice[B][5, 0]
    assert once[A][2, 5] != 0


def test_no_nodes_have_no_scores(spliced, task):
    scores = activation_patching(spliced, task, iter(()))
    assert scores.keys() == {A, B} and all(score.isnan().all() for score in scores.values())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ((hook_point(2), 1, 0), "blocks.2.hook_resid_post is not spliced.*blocks.1.*blocks.3"),
        ((A, 0, 3), "position 0; these prompts have positions 1 to 5 .*BOS"),
        ((A, None, 3), "has no position.*name each of 1 to 5"),
        ((A, -1, 3), "position -1"),
        ((A, 6, 3), "position 6"),
        ((A, 2, 24), "latent 24; the SAE has 0 to 23"),
        ((A, 2, -1), "latent -1"),
    ],
)
def test_a_node_that_is_not_there_is_refused(spliced, task, node, message):
    with pytest.raises(ValueError, match=message):
        activation_patching(spliced, task, [(B, 5, 0), node])


def test_the_first_and_last_nodes_are_there(lab, spliced, task):
    activation_patching(spliced, task[:4], [(A, 1, 0), (B, 5, 23)])
    without_bos = replace(task, clean=task.clean[:, 1:], patch=task.patch[:, 1:], has_bos=False)
    scores = activation_patching(SplicedModel(lab, has_bos=False), without_bos, [(A, 0, 0)])
    assert not scores[A][0, 0].isnan()
    with pytest.raises(ValueError, match="positions 0 to 4[.]"):
        activation_patching(SplicedModel(lab, has_bos=False), without_bos, [(A, 5, 0)])


class LinearToy:
    """A spliced model whose logit difference is a known linear function of its latents: all
    estimates must be exact.
    """

    hook_points = (A,)
    first = 0

    def __init__(self):
        torch.manual_seed(0)
        self.saes = {A: tiny_sae(d_in=5, d_sae=7)}
        self.embed, self.weight = torch.randn(400, 7), torch.randn(6, 5)

    def batch_size(self, seq, gradient=False):
        return 5

    def prefix(self, tokens, *, lengths=None):
        return tokens

    def run(
        self,
        tokens,
        *,
        masks=None,
        means=None,
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
            latents={A: f}, prefixes={A: tokens}, logit_diff=lambda task: difference
        )


@pytest.mark.usefixtures("wrong_types")
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


# ---------------------------------------------------------------------------------------------
# Over prompts
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [atp, integrated_gradients])
def test_the_two_orders_of_averaging_differ_as_they_should(spliced, task, score):
    signed, absolute = score(spliced, task), score(spliced, task, aggregate="mean_abs")
    singles = torch.stack([score(spliced, task[[i]])[A] for i in range(len(task))])
    torch.testing.assert_close(signed[A], singles.mean(0), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(absolute[A], singles.abs().mean(0), atol=1e-5, rtol=1e-3)
    assert (absolute[A] >= signed[A].abs() - 1e-6).all()
    assert (absolute[A] > signed[A].abs() + 1e-6).any()


def sizes_of_passes(monkeypatch, work):
    """How many prompts went through the spliced model in each pass, and what `work` returned."""
    sizes, run = [], SplicedModel.run

    def noting_run(self, prefix, **options):
        sizes.append(len(prefix))
        return run(self, prefix, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SplicedModel, "run", noting_run)
        patch.setattr(
            SplicedModel, "batch_size", lambda self, seq, *, gradient=False: 5 if gradient else 7
        )
        work()
    return sizes


@pytest.mark.parametrize(
    ("method", "by_default"),
    [(atp, 5), (activation_patching, 7), (largest_change, 7), (random_scores, 7)],
)
def test_no_pass_has_more_prompts_than_fit_or_are_asked_for(
    spliced, task, monkeypatch, method, by_default
):
    seed = {"seed": 0} if method is random_scores else {}
    fit = sizes_of_passes(monkeypatch, lambda: scored_by(method, spliced, task, **seed))
    assert max(fit) == by_default and set(fit) == {by_default, 12 % by_default}
    asked = {"batch_size": 4, **seed}
    assert set(sizes_of_passes(monkeypatch, lambda: scored_by(method, spliced, task, **asked))) == {
        4
    }


@pytest.mark.parametrize(
    ("batch_size", "steps", "prompts", "points"),
    [(6, 3, 2, 3), (12, 3, 4, 3), (5, 10, 1, 5), (1, 4, 1, 1), (24, 2, 12, 2)],
)
def test_ig_fills_a_pass_with_prompts_times_points(
    spliced, task, monkeypatch, batch_size, steps, prompts, points
):
    sizes = sizes_of_passes(
        monkeypatch,
        lambda: integrated_gradients(spliced, task, steps=steps, batch_size=batch_size),
    )
    n_batches, passes = 12 // prompts, steps // points  # per SAE, of which there are two
    expected = n_batches * (2 * [prompts] + 2 * passes * [prompts * points])
    assert sorted(sizes) == sorted(expected)
    assert max(sizes) <= batch_size


def test_ig_takes_as_many_prompts_times_points_as_fit_with_gradients(spliced, task, monkeypatch):
    sizes = sizes_of_passes(monkeypatch, lambda: integrated_gradients(spliced, task, steps=2))
    assert max(sizes) == 4 and 12 // 2 * (2 + 2) == len(sizes)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_mean_in_batches_of_any_size_is_the_mean(sizes, seed):
    values = torch.randn(sum(sizes), 3, 2, generator=torch.Generator().manual_seed(seed))
    total = attribution._MeanOverPrompts(sum(sizes))
    for batch in values.split(sizes):
        total.add("values", batch)
    for aggregate in ("mean", "mean_abs"):
        expected = over_prompts(values, aggregate)
        torch.testing.assert_close(total.means(aggregate)["values"], expected)


def test_half_precision_is_summed_up_in_single_precision():
    total = attribution._MeanOverPrompts(4096)
    total.add("values", torch.full((4096, 1), 1.0, dtype=torch.bfloat16))
    assert total.means("mean")["values"].dtype == torch.float32 and (
        total.means("mean")["values"] == 1
    )


# ---------------------------------------------------------------------------------------------
# Baselines without gradients
# ---------------------------------------------------------------------------------------------


def test_largest_change_is_the_mean_absolute_change(spliced, task):
    change = spliced.run(task.clean).latents[B] - spliced.run(task.patch).latents[B]
    for batch_size in (None, 5):
        scores = largest_change(spliced, task, batch_size=batch_size)
        torch.testing.assert_close(scores[B], change.abs().mean(0))


def firing(spliced, tokens, name):
    return (spliced.run(tokens).latents[name] != 0).any(0)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_random_scores_are_for_all_nodes_that_fire_on_clean_or_patch_prompts(
    spliced, task, batch_size
):
    only_clean = only_patch = 0
    scores = random_scores(spliced, task, seed=0, batch_size=batch_size)
    for name in (A, B):
        clean, patch = firing(spliced, task.clean, name), firing(spliced, task.patch, name)
        assert torch.equal(scores[name] > 0, clean | patch) and not (clean | patch).all()
        assert scores[name].min() == 0 and scores[name].max() <= 1
        only_clean += int((clean & ~patch).sum())
        only_patch += int((patch & ~clean).sum())
    assert only_clean > 0 and only_patch > 0  # else the test could not tell


def test_random_scores_follow_the_seed_and_are_spread_evenly(spliced, task):
    scores, again, other = (random_scores(spliced, task, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(scores[A], again[A]) and not torch.equal(scores[A], other[A])
    values = torch.cat([score[score > 0] for score in scores.values()])
    assert len(values.unique()) == len(values) and abs(values.mean() - 0.5) < 0.1


@pytest.mark.usefixtures("wrong_types")
def test_chance_gives_no_node_that_fires_a_score_of_0(task):
    """`torch.rand` draws from [0, 1): the scores are 1 minus that, so that a node can be ranked."""

    class AlwaysFires:
        hook_points = (A,)

        def batch_size(self, seq):
            return 4

        def prefix(self, tokens, *, lengths=None):
            return tokens

        def run(self, tokens, **options):
            return SimpleNamespace(latents={A: torch.ones(len(tokens), 2, 1 << 22)})

    scores = random_scores(AlwaysFires(), task[:1], seed=1)[A]
    assert (torch.rand(2, 1 << 22, generator=torch.Generator().manual_seed(1)) == 0).any()
    assert (scores > 0).all() and scores.max() == 1


def test_random_nodes_have_a_score_and_follow_the_seed(spliced, task):
    scores = largest_change(spliced, task)
    nodes = random_nodes(scores, 40, seed=0)
    assert len(set(nodes)) == 40 and {name for name, _, _ in nodes} == {A, B}
    assert all(scores[name][position, latent] != 0 for name, position, latent in nodes)
    assert nodes == random_nodes(scores, 40, seed=0) != random_nodes(scores, 40, seed=1)


def test_negative_scores_are_scores_too_and_all_can_be_drawn():
    scores = {A: torch.tensor([[0.0, 0.0], [-1.0, 2.0]]), B: torch.tensor([[0.0, 0.0], [0.0, 3.0]])}
    everyone = {(A, 1, 0), (A, 1, 1), (B, 1, 1)}
    assert set(random_nodes(scores, 3, seed=0)) == everyone
    drawn = {node for seed in range(20) for node in random_nodes(scores, 1, seed=seed)}
    assert drawn == everyone
    with pytest.raises(ValueError, match="n=4 nodes were wanted, and only 3 have a score"):
        random_nodes(scores, 4, seed=0)


@pytest.mark.parametrize("error", ["drop", "mean", "keep"])
def test_bos_has_no_score(lab, task, error):
    spliced = SplicedModel(lab, error=error)
    means = spliced.patch_means(task.patch)
    for scores in (
        atp(spliced, task, means=means),
        integrated_gradients(spliced, task, means=means, steps=2),
        largest_change(spliced, task, means=means),
        random_scores(spliced, task, means=means, seed=0),
    ):
        assert all(score[0].abs().max() == 0 for score in scores.values())
        assert all(score[1:].abs().max() > 0 for score in scores.values())


@pytest.mark.parametrize("score", [largest_change, random_scores])
def test_the_baselines_without_gradients_pass_over_padding(spliced, padded, score):
    """A node at the last position never fires in a short prompt, whatever its padding is."""
    seed = {"seed": 0} if score is random_scores else {}
    other = replace(
        padded,
        clean=padded.clean.masked_fill(padded.clean == 0, 7),
        patch=padded.patch.masked_fill(padded.patch == 0, 9),
    )
    one, two = (score(spliced, some, **seed) for some in (padded, other))
    assert all(torch.equal(one[name], two[name]) for name in (A, B))
    short = padded[padded.lengths == 4]
    for name, scores in score(spliced, short, **seed).items():
        assert scores[4:].abs().max() == 0 and scores[1:4].abs().max() > 0, name


# ---------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baseline": "zero"}, "baseline must be 'patch' or 'mean', not 'zero'"),
        ({"aggregate": "sum"}, "aggregate must be 'mean' or 'mean_abs', not 'sum'"),
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"baseline": "mean"}, "baseline='mean' needs means="),
    ],
)
def test_bad_settings_are_named(spliced, task, wrong, message):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(spliced, task, **wrong)


def test_the_defaults_are_those_that_the_course_s_numbers_were_made_with():
    assert AttributionSettings() == AttributionSettings(
        baseline="patch", aggregate="mean", steps=10, batch_size=None, progress=False
    )


def scored_by(method, spliced, task, **options):
    """The scores of a method; activation patching is given one node."""
    extra = ([(A, 2, 5)],) if method is activation_patching else ()
    return method(spliced, task, *extra, **options)


METHODS = (atp, integrated_gradients, activation_patching)


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_setting_is_named_with_those_that_there_are(spliced, task, method):
    steps = "steps, " if method is integrated_gradients else ""
    known = f"There is baseline, aggregate, {steps}batch_size, progress."
    with pytest.raises(TypeError, match=f"unknown setting: base_line. {re.escape(known)}"):
        scored_by(method, spliced, task, base_line="patch")


@pytest.mark.parametrize("method", [atp, activation_patching])
def test_only_integrated_gradients_takes_steps(spliced, task, method):
    with pytest.raises(TypeError, match="unknown setting: steps"):
        scored_by(method, spliced, task, steps=5)


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize("method", METHODS)
def test_means_are_asked_for_before_anything_is_run(task, method):
    with pytest.raises(ValueError, match="needs means="):
        scored_by(method, SimpleNamespace(), task, baseline="mean")


@pytest.mark.parametrize("method", METHODS)
def test_settings_named_one_by_one_equal_settings_given_at_once(spliced, task, means, method):
    settings = AttributionSettings(baseline="mean", aggregate="mean_abs", batch_size=5)
    named = scored_by(
        method,
        spliced,
        task,
        means=means,
        baseline="mean",
        aggregate="mean_abs",
        batch_size=5,
    )
    at_once = scored_by(method, spliced, task, means=means, settings=settings)
    both = replace(settings, aggregate="mean")
    both = scored_by(method, spliced, task, means=means, settings=both, aggregate="mean_abs")
    for name in (A, B):
        assert torch.equal(named[name].nan_to_num(), at_once[name].nan_to_num())
        assert torch.equal(both[name].nan_to_num(), at_once[name].nan_to_num())


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    ("method", "total"), [(atp, 12), (integrated_gradients, 24), (activation_patching, 12)]
)
@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_prompts_if_it_is_wanted(spliced, task, monkeypatch, method, total, progress):
    """IG counts each prompt at each SAE, activation patching at each node."""
    counted, options = [], {}

    class Bar:
        def __init__(self, **kwargs):
            options.update(kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            options["closed"] = True

        def update(self, n):
            counted.append(n)

    monkeypatch.setattr(attribution, "tqdm", Bar)
    scored_by(method, spliced, task, batch_size=5, progress=progress)
    assert sum(counted) == options["total"] == total and len(counted) > 1
    assert options["disable"] is not progress and options["closed"]


def test_scoring_leaves_the_saes_as_they_were(task):
    lab = make_lab()
    atp(SplicedModel(lab), task)
    integrated_gradients(SplicedModel(lab), task, steps=2)
    fresh = make_lab()
    for sae, other in zip(lab.saes.values(), fresh.saes.values(), strict=True):
        for one, two in zip(sae.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two) and one.grad is None


# ---------------------------------------------------------------------------------------------
# Variants, and scores inside a circuit
# ---------------------------------------------------------------------------------------------


def test_variants_are_the_scores_of_each_setting_ranked_in_each_way(spliced, task, means):
    found = attribution.variants(spliced, task, means=means, steps=3)
    assert len(found) == 2 * 2 * 3
    for method, end in itertools.product((atp, integrated_gradients), ("patch", "mean")):
        name = f"{'AtP' if method is atp else 'IG'} to {'patch' if end == 'patch' else 'means'}"
        steps = {} if method is atp else {"steps": 3}
        settings = {"means": means, "baseline": end, **steps}
        signed = method(spliced, task, **settings)
        absolute = method(spliced, task, aggregate="mean_abs", **settings)
        for place in spliced.hook_points:
            expected = (signed[place].abs(), signed[place], absolute[place])
            for variant, scores in zip(attribution.VARIANTS, expected, strict=True):
                torch.testing.assert_close(found[f"{name}, {variant}"][place], scores)


@pytest.mark.parametrize("baseline", ["patch", "mean"])
def test_integrated_gradients_add_up_to_the_effect_of_the_baseline(spliced, task, means, baseline):
    settings = {"means": means, "baseline": baseline}
    effect = attribution.effect_of_baseline(spliced, task, **settings)
    scores = integrated_gradients(spliced, task, steps=300, **settings)
    assert max(abs(fall) for fall in effect.values()) > 0.01
    for place, fall in effect.items():
        jumps = 0.15  # of JumpReLU latents further on, which no gradient sees
        assert scores[place].sum().item() == pytest.approx(fall, rel=jumps, abs=0.003)


def some_circuit(spliced, means, *, seed=0):
    """Half of all nodes, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    masks = [
        (torch.rand(mean.shape, generator=generator) < 0.5).float()
        for mean in means.latents.values()
    ]
    for mask in masks:
        mask[0] = 0
    return SAEMasks(spliced.hook_points, masks)


def test_atp_in_a_circuit_is_the_gradient_of_its_masks(spliced, task, means):
    masks = some_circuit(spliced, means)
    scores = atp(spliced, task, means=means, masks=masks, baseline="mean")
    soft = [mask.clone().requires_grad_() for mask in masks.masks]
    run = spliced.run(task.clean, masks=SAEMasks(spliced.hook_points, soft), means=means)
    gradients = torch.autograd.grad(run.logit_diff(task).mean(), soft)
    for mask, gradient, place in zip(masks.masks, gradients, spliced.hook_points, strict=True):
        torch.testing.assert_close(scores[place], gradient * mask, atol=1e-5, rtol=1e-4)
        assert scores[place].abs().sum() > 0


def test_integrated_gradients_in_a_circuit_add_up_to_what_one_sae_s_nodes_do_there(
    spliced, task, means
):
    masks = some_circuit(spliced, means, seed=1)
    scores = integrated_gradients(
        spliced, task, means=means, masks=masks, baseline="mean", steps=300
    )
    whole = spliced.logit_diff(task, masks=masks, means=means).mean()
    for place, mask in masks.items():
        assert (scores[place][mask == 0] == 0).all()
        rest = [torch.zeros_like(m) if name == place else m for name, m in masks.items()]
        without = spliced.logit_diff(
            task, masks=SAEMasks(masks.hook_points, rest), means=means
        ).mean()
        fall = (whole - without).item()
        assert scores[place].sum().item() == pytest.approx(fall, rel=0.03, abs=0.003)


@pytest.mark.parametrize("method", [atp, integrated_gradients])
def test_scores_in_the_whole_circuit_are_the_scores(spliced, task, means, method):
    settings = {"means": means, "baseline": "mean"}
    everything = SAEMasks.full(means.latents, 1.0)
    inside = method(spliced, task, masks=everything, **settings)
    for place, scores in method(spliced, task, **settings).items():
        torch.testing.assert_close(inside[place], scores, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", [atp, integrated_gradients])
def test_a_circuit_s_nodes_are_scored_against_the_means_that_ablate_the_others(
    spliced, task, means, method
):
    with pytest.raises(ValueError, match="baseline='mean'"):
        method(spliced, task, means=means, masks=SAEMasks.full(means.latents, 1.0))


@given(
    n_start=st.integers(50, 10**5),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    rounds=st.integers(1, 20),
)
def test_shrinking_sizes_fall_through_every_wanted_size(n_start, sizes, rounds):
    found = attribution.shrinking_sizes(n_start, sizes, rounds)
    assert found == sorted(set(found), reverse=True)
    assert set(sizes) <= set(found) and found[-1] == min(sizes) and found[0] <= n_start
    assert len(found) <= rounds + len(set(sizes))


def test_sizes_shrink_by_the_same_factor():
    assert attribution.shrinking_sizes(1000, [1], 3) == [100, 10, 1]
    assert attribution.shrinking_sizes(1000, [1, 30], 3) == [100, 30, 10, 1]
    for wrong in ((10, [11], 2), (10, [], 2), (10, [0], 2), (10, [5], 0)):
        with pytest.raises(ValueError, match=r"sizes from 1 to n_start=10"):
            attribution.shrinking_sizes(*wrong)


def test_grad_drop_is_the_mean_size_over_backward_passes_that_drop_one_layer(spliced, task):
    found = atp(spliced, task, grad_drop=True)
    expected = {name: torch.zeros_like(score) for name, score in found.items()}
    with torch.no_grad():
        patch = spliced.run(task.patch).latents
    for layer in range(4):
        with layers_dropped(spliced.stack) as dropped:
            dropped.layer = layer
            run = spliced.run(spliced.prefix(task.clean), track_latents=True)
            latents = list(run.latents.values())
            gradients = torch.autograd.grad(run.logit_diff(task).sum(), latents)
        for name, gradient in zip(run.latents, gradients, strict=True):
            expected[name] += (gradient * (run.latents[name] - patch[name])).abs().mean(0) / 4
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name].detach(), atol=1e-5, rtol=1e-3)
    assert sum(score.sum() for score in found.values()) > 0.1
