"""Learned masks: the recipe written out, λ, the order of prompts, interrupts, bad input."""

import dataclasses
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_lab
from hypothesis import given
from hypothesis import strategies as st

import course_utils.circuits.optimize as optimize
from course_utils.circuits.evaluate import Evaluation
from course_utils.circuits.masks import SAEMasks
from course_utils.circuits.optimize import (
    ContinuousSparsification,
    MaskLearner,
    MaskSettings,
    batch_rows,
    binary_masks,
    learn_masks,
    soft_mask,
    temperature,
)
from course_utils.circuits.splice import SplicedModel, logit_diff
from course_utils.labs.lab import hook_point

A, B = hook_point(1), hook_point(3)
QUICK = {"steps": 12, "batch_size": 4, "progress": False}


@pytest.fixture(scope="module")
def padded(task):
    """The task with every other prompt two tokens shorter."""
    lengths = torch.tensor([6, 4] * 6)
    beyond = torch.arange(6) >= lengths[:, None]
    clean, patch = task.clean.masked_fill(beyond, 0), task.patch.masked_fill(beyond, 0)
    return replace(task, lengths=lengths, clean=clean, patch=patch)


def assert_same_run(one, other):
    """The same history, masks and θ, to the last bit."""
    assert one.history == other.history
    for name, theta in one.theta.items():
        assert torch.equal(theta, other.theta[name])
        assert torch.equal(one.masks[name], other.masks[name])


# ---------------------------------------------------------------------------------------------
# The schedule
# ---------------------------------------------------------------------------------------------


def test_the_temperature_starts_at_one_and_ends_at_its_maximum():
    settings = MaskSettings(steps=50, tau_max=200.0)
    taus = [temperature(step, settings) for step in range(50)]
    assert taus[0] == 1 and taus[-1] == pytest.approx(200) and max(taus) <= 200 * (1 + 1e-9)
    ratios = [b / a for a, b in zip(taus, taus[1:])]
    assert max(ratios) == pytest.approx(min(ratios))
    assert temperature(500, settings) == pytest.approx(200)


@given(
    steps=st.integers(2, 300),
    tau_max=st.floats(1, 1e4),
    step=st.integers(0, 400),
    more=st.integers(1, 9),
)
def test_the_temperature_never_falls_and_stays_between_one_and_its_maximum(
    steps, tau_max, step, more
):
    settings = MaskSettings(steps=steps, tau_max=tau_max)
    tau, later = temperature(step, settings), temperature(step + more, settings)
    assert 1 <= tau <= later * (1 + 1e-12) and later <= tau_max * (1 + 1e-12)


def test_a_single_step_is_taken_at_temperature_one():
    assert temperature(0, MaskSettings(steps=1)) == 1


def test_a_soft_mask_hardens_into_a_step():
    theta = torch.tensor([-0.5, 0.0, 0.5])
    torch.testing.assert_close(soft_mask(theta, 1.0), torch.sigmoid(theta))
    torch.testing.assert_close(soft_mask(theta, 200.0), torch.tensor([0.0, 0.5, 1.0]))


# ---------------------------------------------------------------------------------------------
# The order of the prompts
# ---------------------------------------------------------------------------------------------


def rows_of_epoch(n: int, epoch: int, settings: MaskSettings) -> list[int]:
    per_epoch = n // settings.batch_size
    steps = range(per_epoch * epoch, per_epoch * (epoch + 1))
    return [row for step in steps for row in batch_rows(n, step, settings).tolist()]


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    epoch=st.integers(0, 50),
    seed=st.integers(0, 999),
)
def test_batches_of_an_epoch_are_full_and_have_no_prompt_twice(n, batch_size, epoch, seed):
    batch_size = min(n, batch_size)
    settings = MaskSettings(batch_size=batch_size, seed=seed)
    rows = rows_of_epoch(n, epoch, settings)
    assert len(rows) == n // batch_size * batch_size
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(n))
    if n % batch_size == 0:
        assert sorted(rows) == list(range(n))


def test_each_epoch_has_an_order_of_its_own_and_so_has_each_seed():
    orders = {
        (seed, epoch): tuple(rows_of_epoch(24, epoch, MaskSettings(batch_size=4, seed=seed)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 9


def test_the_order_is_the_one_that_earlier_results_were_made_with():
    """The published numbers depend on it."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2001)).tolist()
    assert rows_of_epoch(12, 1, MaskSettings(batch_size=4, seed=2)) == order


def test_prompts_left_over_in_one_epoch_have_their_turn_in_another():
    settings = MaskSettings(batch_size=5)
    seen = {row for epoch in range(20) for row in rows_of_epoch(12, epoch, settings)}
    assert seen == set(range(12))


# ---------------------------------------------------------------------------------------------
# The recipe, written out
# ---------------------------------------------------------------------------------------------


def learn_by_hand(spliced, task, means, settings: MaskSettings):
    """θ, masks and history of the recipe, with whole passes from the tokens in every step."""

    def logit_diffs(some, masks=None):
        prefix = spliced.prefix(some.clean, lengths=some.lengths)
        return logit_diff(spliced.run(prefix, masks=masks, means=means).logits, some)

    theta = {}
    for name, mean in means.latents.items():
        shape = mean.shape if settings.per_position else mean.shape[1:]
        theta[name] = torch.full(shape, settings.theta_init, requires_grad=True)
    n_total = sum((len(t) - 1) * t.shape[1] if t.ndim == 2 else len(t) for t in theta.values())
    adam = torch.optim.Adam(list(theta.values()), lr=settings.lr)
    n, per_epoch, sparsity, history = len(task), len(task) // settings.batch_size, 0.0, []
    for step in range(settings.steps):
        sparsity = sparsity or settings.sparsity
        generator = torch.Generator().manual_seed(1000 * settings.seed + step // per_epoch)
        begin = step % per_epoch * settings.batch_size
        rows = torch.randperm(n, generator=generator)[begin : begin + settings.batch_size]
        tau = math.exp(math.log(settings.tau_max) * step / (settings.steps - 1))
        masks = [(1 + torch.tanh(tau * t / 2)) / 2 for t in theta.values()]  # = σ(τ·θ)
        if settings.per_position:
            masks = [torch.cat([torch.zeros(1, mask.shape[1]), mask[1:]]) for mask in masks]
        with torch.no_grad():
            target = logit_diffs(task[rows])
        gaps = target - logit_diffs(task[rows], SAEMasks(list(theta), masks))
        faithfulness_loss = sum(abs(gap) for gap in gaps) / len(rows)
        n_soft = sum(m for mask in masks for m in mask.flatten())
        loss = faithfulness_loss + sparsity * n_soft / len(masks)
        for t in theta.values():
            t.grad = None
        loss.backward()
        adam.step()
        on = {name: t > 0 for name, t in theta.items()}
        if settings.per_position:
            for mask in on.values():
                mask[0] = False
        n_on = sum(int(mask.sum()) for mask in on.values())
        history.append((loss.item(), faithfulness_loss.item(), n_on, tau, sparsity))
        if settings.n_nodes is not None:
            part = min(1, 1.5 * (step + 1) / settings.steps)
            wanted = n_total * (settings.n_nodes / n_total) ** part
            sparsity *= min(max(n_soft.item() / wanted, math.exp(-2)), math.exp(2)) ** 0.2
    return theta, on, history


def assert_as_by_hand(spliced, task, settings: MaskSettings):
    means = spliced.patch_means(task.patch, lengths=task.lengths)
    learned = learn_masks(spliced, task, means=means, settings=settings, progress=False)
    theta, on, history = learn_by_hand(spliced, task, means, settings)
    keys = ("loss", "faithfulness_loss", "n_on", "tau", "sparsity")
    expected = [dict(zip(("step", *keys), (step, *row))) for step, row in enumerate(history)]
    for record, wanted in zip(learned.history, expected, strict=True):
        assert record == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    for name, value in learned.theta.items():
        first = int(settings.per_position)  # θ of BOS' row means nothing
        torch.testing.assert_close(
            value[first:], theta[name].detach()[first:], atol=2e-3, rtol=1e-3
        )
        if settings.n_nodes is None:
            assert torch.equal(learned.masks[name], on[name].float())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparsity": 0.0},
        {"sparsity": 0.1, "seed": 7},
        {"sparsity": 0.5, "per_position": False},
        {"batch_size": 5, "theta_init": 0.3, "lr": 0.1},
        {"tau_max": 20.0, "batch_size": 12},
        {"n_nodes": 9, "sparsity": 0.02},
        {"n_nodes": 235, "sparsity": 0.3},
    ],
    ids=str,
)
def test_learning_a_mask_equals_the_recipe_written_out(spliced, task, changes):
    settings = MaskSettings(**{"sparsity": 0.02, "steps": 8, "batch_size": 4, **changes})
    assert_as_by_hand(spliced, task, settings)


@pytest.mark.parametrize("per_position", [True, False])
def test_the_same_with_padded_prompts(spliced, padded, per_position):
    settings = MaskSettings(steps=6, batch_size=4, per_position=per_position)
    assert_as_by_hand(spliced, padded, settings)


def test_the_first_loss_is_the_one_of_the_formula(spliced, task, means):
    settings = MaskSettings(sparsity=0.02, steps=1, batch_size=len(task))
    record = learn_masks(spliced, task, settings=settings, progress=False).history[0]
    m = torch.sigmoid(torch.tensor(1.0)).item()
    masks = SAEMasks.full(means.latents, m)
    gaps = spliced.logit_diff(task) - spliced.logit_diff(task, masks=masks, means=means)
    gap = gaps.abs().mean().item()
    n_soft = sum(mask.sum().item() for mask in masks.masks)
    assert record["faithfulness_loss"] == pytest.approx(gap, rel=1e-4)
    assert record["loss"] == pytest.approx(gap + 0.02 * n_soft / 2, rel=1e-4)


def test_means_are_those_of_the_patch_prompts_by_default(spliced, padded):
    means = spliced.patch_means(padded.patch, lengths=padded.lengths)
    one = learn_masks(spliced, padded, **QUICK)
    assert_same_run(one, learn_masks(spliced, padded, means=means, **QUICK))


def test_a_free_mask_of_nothing_but_faithfulness_stays_faithful(spliced, task, means):
    result = learn_masks(spliced, task, means=means, sparsity=0.001, **{**QUICK, "steps": 60})
    assert result.n_nodes < 240
    found = Evaluation(spliced, task, means).faithfulness(result.masks)
    assert found.gap.value < 0.5 and found.n == len(task)


# ---------------------------------------------------------------------------------------------
# λ, and a wanted size
# ---------------------------------------------------------------------------------------------


def test_a_larger_lambda_keeps_fewer_nodes(spliced, task):
    sizes = [
        learn_masks(spliced, task, sparsity=sparsity, **{**QUICK, "steps": 40}).n_nodes
        for sparsity in (0.0, 0.003, 0.3)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("n_nodes", [3, 10, 40])
def test_the_mask_of_a_wanted_size_has_the_nodes_with_the_largest_theta(spliced, task, n_nodes):
    learned = learn_masks(spliced, task, n_nodes=n_nodes, **QUICK)
    values = torch.cat([theta[1:].flatten() for theta in learned.theta.values()])
    smallest = values.sort(descending=True).values[n_nodes - 1]
    for name, mask in learned.masks.items():
        assert torch.equal(mask[1:], (learned.theta[name][1:] >= smallest).float())
    assert learned.n_nodes == n_nodes


def toy_learning(n_nodes: int | None, sparsity: float, steps: int = 30, theta: float = 0.5):
    """40 nodes of one SAE in 5 positions, 4 prompts."""
    settings = MaskSettings(
        sparsity=sparsity, n_nodes=n_nodes, steps=steps, batch_size=2, theta_init=theta
    )
    return ContinuousSparsification({A: torch.full((5, 8), theta)}, 4, settings, first=0)


@given(
    n_nodes=st.integers(1, 40),
    sparsity=st.floats(1e-4, 10),
    theta=st.floats(-4, 4),
    steps=st.integers(1, 40),
)
def test_lambda_rises_where_there_are_too_many_nodes_and_falls_where_too_few(
    n_nodes, sparsity, theta, steps
):
    learning = toy_learning(n_nodes, sparsity, steps, theta)
    masks = learning.soft_masks()
    n_soft = masks[A].sum().item()
    part = min(1, 1 / max(1, steps * 2 / 3))  # of the way from 40 nodes to those wanted
    log_wanted = (1 - part) * math.log(40) + part * math.log(n_nodes)
    learning.update((masks[A].sum() - n_soft)[None], masks)
    rise = math.log(learning.sparsity / sparsity)
    assert rise == pytest.approx(0.2 * min(2, max(-2, math.log(n_soft) - log_wanted)), abs=1e-5)


def test_without_a_wanted_size_lambda_stays():
    learning = toy_learning(None, 0.3)
    for _ in range(3):
        masks = learning.soft_masks()
        learning.update(masks[A].sum()[None], masks)
    assert {record["sparsity"] for record in learning.history} == {0.3} and learning.sparsity == 0.3


def test_the_larger_the_wanted_size_the_more_nodes_stay_on_while_learning(spliced, task):
    """Before the best nodes are taken: what adjusting λ alone comes to."""
    n_on = [
        learn_masks(spliced, task, sparsity=0.3, n_nodes=n, **{**QUICK, "steps": 40}).history[-1][
            "n_on"
        ]
        for n in (5, 20, 60)
    ]
    fixed = learn_masks(spliced, task, sparsity=0.3, **{**QUICK, "steps": 40})
    assert fixed.history[-1]["n_on"] < n_on[0] < n_on[1] < n_on[2]


# ---------------------------------------------------------------------------------------------
# The masks
# ---------------------------------------------------------------------------------------------


def test_masks_are_binary_and_bos_is_never_a_node(spliced, task):
    for extra in ({"sparsity": 0.0}, {"n_nodes": 50}):
        for mask in learn_masks(spliced, task, **extra, **QUICK).masks.masks:
            assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask[0].sum() == 0


def test_a_model_without_bos_has_nodes_at_the_first_position(lab, task):
    without_bos = replace(task, clean=task.clean[:, 1:], patch=task.patch[:, 1:], has_bos=False)
    spliced = SplicedModel(lab, has_bos=False)
    learned = learn_masks(spliced, without_bos, sparsity=0.0, **QUICK)
    assert sum(mask[0].sum() for mask in learned.masks.masks) > 0


def test_nodes_are_kept_where_theta_is_above_zero_and_not_at_zero():
    theta = {A: torch.tensor([[1.0, 1.0, 1.0], [-0.1, 0.0, 0.1]]), B: torch.tensor([0.2, 0.0, -3])}
    masks = binary_masks(theta, MaskSettings(), first=1)
    assert masks[A].tolist() == [[0, 0, 0], [0, 0, 1]] and masks[B].tolist() == [1, 0, 0]
    masks = binary_masks(theta, MaskSettings(n_nodes=2), first=1)
    assert masks[A].tolist() == [[0, 0, 0], [0, 0, 1]] and masks[B].tolist() == [1, 0, 0]
    assert binary_masks(theta, MaskSettings(), first=0)[A].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_mask_for_all_positions_has_one_number_a_latent(spliced, task):
    result = learn_masks(spliced, task, per_position=False, sparsity=0.01, **QUICK)
    assert all(mask.shape == (24,) for mask in result.masks.masks)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another_order(spliced, task):
    one, two, other = (
        learn_masks(spliced, task, sparsity=0.01, seed=seed, **QUICK) for seed in (0, 0, 1)
    )
    assert_same_run(one, two)
    assert any(not torch.equal(one.theta[name], other.theta[name]) for name in one.theta)


# ---------------------------------------------------------------------------------------------
# Step by step, interrupted and resumed
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"candidates": "firing"}, {"n_nodes": 20}], ids=str)
def test_learning_step_by_step_equals_learning_at_once(spliced, task, means, changes):
    settings = MaskSettings(steps=9, batch_size=4, sparsity=0.01, **changes)
    learner = MaskLearner(spliced, task, means, settings)
    records = []
    while not learner.done:
        records.append(learner.step())
    at_once = learn_masks(spliced, task, means=means, settings=settings, progress=False)
    assert_same_run(learner.finish(), at_once)
    assert records == at_once.history and not at_once.interrupted
    assert learner.finish().candidate_error == at_once.candidate_error


def test_a_finished_result_does_not_change_when_more_steps_are_taken(spliced, task, means):
    settings = MaskSettings(steps=6, batch_size=4, sparsity=0.01)
    learner = MaskLearner(spliced, task, means, settings)
    for _ in range(3):
        learner.step()
    early = learner.finish()
    assert early.interrupted and len(early.history) == 3
    theta = {name: value.clone() for name, value in early.theta.items()}
    moments = [state["exp_avg"].clone() for state in early.optimizer_state["state"].values()]
    for _ in range(3):
        learner.step()
    assert len(early.history) == 3 and not learner.finish().interrupted
    assert all(torch.equal(early.theta[name], value) for name, value in theta.items())
    states = early.optimizer_state["state"].values()
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(states, moments, strict=True))


def interrupted_at(step: int, monkeypatch, learn):
    """What ``learn()`` returns when Ctrl-C comes in this step (from 0)."""
    whole_step = MaskLearner.step

    def interrupting_step(learner):
        if len(learner.history) == step:
            raise KeyboardInterrupt
        return whole_step(learner)

    with monkeypatch.context() as patch:
        patch.setattr(MaskLearner, "step", interrupting_step)
        return learn()


@pytest.mark.parametrize(
    "changes", [{}, {"per_position": False}, {"candidates": "firing"}, {"seed": 3}], ids=str
)
def test_an_interrupt_returns_the_mask_so_far_and_a_resume_ends_where_the_whole_run_ends(
    spliced, task, monkeypatch, capsys, changes
):
    def learn():
        return learn_masks(spliced, task, sparsity=0.01, **changes, **QUICK)

    whole = learn()
    part = interrupted_at(5, monkeypatch, learn)
    assert part.interrupted and part.history == whole.history[:5]
    assert "Interrupted after 5 of 12" in capsys.readouterr().out
    for _ in range(2):  # going on must leave the interrupted result as it is
        rest = learn_masks(spliced, task, resume=part, progress=False)
        assert not rest.interrupted
        assert_same_run(rest, whole)


def test_a_resume_may_change_a_setting(spliced, task, monkeypatch):
    part = interrupted_at(5, monkeypatch, lambda: learn_masks(spliced, task, **QUICK))
    more = learn_masks(spliced, task, resume=part, steps=7, progress=False)
    assert len(more.history) == 7 and more.settings == replace(part.settings, steps=7)
    costly = learn_masks(spliced, task, resume=part, sparsity=3.0, progress=False)
    assert [record["sparsity"] for record in costly.history] == [0.03] * 5 + [3.0] * 7
    assert costly.n_nodes < learn_masks(spliced, task, resume=part, progress=False).n_nodes


def test_an_error_in_a_step_is_raised_and_not_taken_for_an_interrupt(spliced, task, monkeypatch):
    def broken(learner):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MaskLearner, "step", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        learn_masks(spliced, task, **QUICK)


def test_the_bar_counts_the_steps_and_is_closed(spliced, task, monkeypatch):
    bars = []

    def bar(**options):
        bars.append(SimpleNamespace(n=options["initial"], shown={}, closed=False, **options))
        made = bars[-1]
        made.update = lambda: setattr(made, "n", made.n + 1)
        made.set_postfix = lambda **values: made.shown.update(values)
        made.close = lambda: setattr(made, "closed", True)
        return made

    monkeypatch.setattr(optimize, "tqdm", bar)
    learned = learn_masks(spliced, task, **{**QUICK, "progress": True})
    assert bars[0].n == bars[0].total == 12 and bars[0].closed and not bars[0].disable
    last = learned.history[-1]
    assert bars[0].shown == {"loss": f"{last['loss']:.3f}", "nodes": last["n_on"], "tau": "200.0"}
    part = interrupted_at(5, monkeypatch, lambda: learn_masks(spliced, task, **QUICK))
    learn_masks(spliced, task, resume=part, progress=False)
    assert [bar.n for bar in bars[1:]] == [5, 12] and bars[2].initial == 5
    assert all(bar.closed and bar.disable for bar in bars[1:])


# ---------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": -0.1},
        {"n_nodes": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"tau_max": 0.5},
        {"candidates": "some"},
        {"n_nodes": 10**6},
        {"batch_size": 99},
        {"batch_size": 13},
        {"n_nodes": 241},
    ],
)
def test_a_setting_out_of_range_is_named(spliced, task, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        learn_masks(spliced, task, progress=False, **{"batch_size": 4, **wrong})


def test_the_defaults_are_those_that_the_course_s_numbers_were_made_with():
    assert MaskSettings() == MaskSettings(
        sparsity=0.03,
        n_nodes=None,
        steps=60,
        batch_size=16,
        lr=0.3,
        theta_init=1.0,
        tau_max=200.0,
        per_position=True,
        candidates="all",
        seed=0,
    )


def test_the_ends_of_the_ranges_are_allowed(spliced, task):
    ends = {"sparsity": 0.0, "n_nodes": 1, "steps": 1, "batch_size": 1, "tau_max": 1.0}
    assert dataclasses.asdict(MaskSettings(**ends)).items() >= ends.items()
    every = learn_masks(spliced, task, n_nodes=240, steps=1, batch_size=12, progress=False)
    assert every.n_nodes == 240 and len(every.history) == 1


@pytest.mark.usefixtures("wrong_types")
def test_too_few_prompts_are_refused_before_anything_is_run(task):
    with pytest.raises(ValueError, match="batch_size=13, but there are only 12"):
        MaskLearner(SimpleNamespace(), task, None, MaskSettings(batch_size=13))
    with pytest.raises(ValueError, match="batch_size=13, but there are only 12"):
        ContinuousSparsification({A: torch.ones(3, 4)}, 12, MaskSettings(batch_size=13), first=1)


def test_an_unknown_setting_is_named_with_those_that_there_are(spliced, task):
    known = ", ".join(field.name for field in dataclasses.fields(MaskSettings))
    with pytest.raises(TypeError, match=f"unknown setting: price. There is {known}"):
        learn_masks(spliced, task, price=0.1)


def test_settings_named_one_by_one_equal_settings_given_at_once(spliced, task):
    settings = MaskSettings(sparsity=0.02, steps=5, batch_size=4, seed=2)
    named = learn_masks(spliced, task, sparsity=0.02, steps=5, batch_size=4, seed=2, progress=False)
    at_once = learn_masks(spliced, task, settings=settings, progress=False)
    both = learn_masks(spliced, task, settings=replace(settings, seed=9), seed=2, progress=False)
    assert named.settings == settings and both.settings == settings
    assert_same_run(named, at_once)
    assert_same_run(both, at_once)


# ---------------------------------------------------------------------------------------------
# Which latents are candidates
# ---------------------------------------------------------------------------------------------


def test_only_firing_latents_give_nearly_the_same_mask_and_say_the_error(spliced, task, means):
    exact = learn_masks(spliced, task, sparsity=0.01, **QUICK)
    firing = learn_masks(spliced, task, sparsity=0.01, candidates="firing", **QUICK)
    assert exact.candidate_error is None and firing.candidate_error is not None
    spread = spliced.logit_diff(task, masks=firing.masks, means=means).std()
    assert 0 <= firing.candidate_error < 0.2 * spread
    same = torch.cat([(a == b).flatten() for a, b in zip(exact.masks.masks, firing.masks.masks)])
    assert same.float().mean() > 0.9


def lab_where_latents_are_silent():
    """Six latents of each SAE never fire; six more of the second do once something is masked."""
    lab = make_lab()
    for sae in lab.saes.values():
        sae.threshold[:6] = 100
    return lab


def test_candidates_are_the_latents_that_fire_unmasked_on_clean_or_patch_prompts(task):
    """On four prompts, some fire on clean prompts only and some on patch prompts only."""
    spliced = SplicedModel(lab_where_latents_are_silent())
    few = task[:4]
    firing = learn_masks(spliced, few, candidates="firing", **QUICK)
    for name, theta in firing.theta.items():
        on_clean, on_patch = (
            (spliced.run(tokens).latents[name] != 0).flatten(0, 1).any(0)
            for tokens in (few.clean, few.patch)
        )
        assert torch.equal(theta[1].isfinite(), on_clean | on_patch) and not on_clean[:6].any()
        assert firing.masks[name][:, ~(on_clean | on_patch)].sum() == 0


def test_the_candidate_error_is_what_the_left_out_latents_do_when_they_join(task):
    spliced, few = SplicedModel(make_lab()), task[:4]
    means = spliced.patch_means(few.patch)
    learned = learn_masks(spliced, few, means=means, candidates="firing", **QUICK)

    def logit_diff_where(keep_left_out):
        def mixed(name):
            theta, mean = learned.theta[name], means.latents[name]
            on = (theta > 0) | (theta.isinf() & keep_left_out)
            return lambda f: torch.where(on, f, mean)

        return spliced.run(few.clean, latents={A: mixed(A), B: mixed(B)}).logit_diff(few)

    with torch.no_grad():
        changes = logit_diff_where(torch.tensor(True)) - logit_diff_where(torch.tensor(False))
    assert changes.abs().mean() > 0.01
    assert learned.candidate_error == pytest.approx(changes.abs().mean().item(), rel=1e-3)


def test_latents_that_never_fire_at_the_first_sae_are_left_out(task):
    """Though they cost nothing here: no mask comes before that SAE, so they can do nothing."""
    result = learn_masks(SplicedModel(lab_where_latents_are_silent()), task, sparsity=0.0, **QUICK)
    first, second = (mask[1:, :6].mean() for mask in result.masks.masks)
    assert first == 0 and second == 1 and result.masks.masks[0][:, 6:].sum() > 0


def test_a_node_that_can_only_be_ablated_is_a_candidate_too(task):
    """Silent on all clean prompts, but not in the patch means: switching it off does something."""
    lab, few = make_lab(), task[:4]
    for sae in lab.saes.values():
        sae.threshold.data += 1.5
    spliced = SplicedModel(lab)
    clean, patch = spliced.run(few.clean).latents[A], spliced.run(few.patch).latents[A]
    only_patch = (patch != 0).flatten(0, 1).any(0) & ~(clean != 0).flatten(0, 1).any(0)
    assert only_patch.any()
    result = learn_masks(spliced, few, **QUICK)
    assert result.theta[A][:, only_patch].isfinite().all()
