# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Masks versus integrated gradients
#
# *The athletes near the car* **are** — not *is*. A language model gets this right, and somewhere in
# it a handful of features must carry "the subject is plural" from the second word past the
# distracting *car* to the end. **Which ones?** In this notebook you will find them in two ways, and
# see which way finds the smaller circuit:
#
# - **attribution**: score every latent by its gradient (attribution patching, integrated
#   gradients), keep the best;
# - **a learned mask**: let gradient descent decide which latents to keep, all at once.
#
# This is the central experiment of *Scaling Sparse Feature Circuit Finding to Gemma 9B* (Caples,
# Nainani, McDougall, rrenaud, 2025), on a model that fits on a laptop. Everything below is computed
# in front of you: a real model (SmolLM2-135M), real SAEs, prompts that neither the mask nor the
# scores have seen, and controls.
#
# **You need** PyTorch and transformers, and to know what a sparse autoencoder is: an encoder that
# writes an activation as a sum of a few *latents*, and a decoder that puts it together again.
# **You write** six functions: AtP, IG, the sparsification loss, its schedule, the loop that learns
# a mask, and one that iterates attribution. Until you do, the course's versions run in their place,
# so that you can also read on and come back. **It runs** {times}. The first run fetches 93 MB of
# weights.

# %% tags=["setup"]
# setup

# %%
import json
import os
import time
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

started = time.perf_counter()

# %%
from course_utils import (
    Evaluation,
    Frontier,
    SAEMasks,
    SplicedModel,
    activation_patching,
    atp,
    estimate,
    integrated_gradients,
    learn_masks,
    load_lab,
    load_task,
)
from course_utils.circuits.attribution import largest_change, random_nodes, random_scores
from course_utils.circuits.evaluate import MEASURES, nodes_per_layer
from course_utils.circuits.experiments import beside_published, published_circuits
from course_utils.circuits.frontier import score_frontier
from course_utils.display import figures
from course_utils.display.html import coloured_prompt
from course_utils.display.widgets import explore_frontier
from course_utils.labs.catalog import spec_of
from course_utils.teaching.nb04 import check, exercise

# %% [markdown]
# The settings of this notebook. `PROFILE="quick"` runs the same steps with fewer prompts and
# circuits (CI does that).

# %% tags=["parameters"]
LAB = "smollm2"
LAYERS = None  # where SAEs are spliced; None: where the lab has its placement
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
LAYERS = list(LAYERS or spec_of(LAB).placement)
QUICK = PROFILE == "quick"
N_TRAIN, N_TEST = (32, 32) if QUICK else (256, 100)  # prompts to learn on and to judge on
N_SCORED = 16 if QUICK else 48  # prompts that attribution scores are averaged over
SPARSITIES = [0.03, 0.3] if QUICK else [0.003, 0.03, 0.1, 0.3]
IG_STEPS = 2 if QUICK else 10
LEARNING = {"steps": 20, "lr": 0.6} if QUICK else {"steps": 60}  # how long a mask is learned

# %% [markdown]
# ## 1. The behaviour
#
# A *lab* is a model with the SAEs to study it. A *task* is a set of prompt pairs: a **clean**
# prompt, and a **patch** prompt that differs in the one thing under study, here the number of the
# subject. Every lab of the course does for this notebook, but for `qwen-coder`, whose SAEs know
# little besides Python sessions: change `LAB` above, to `"gpt2-small"` for instance. What yours
# needs:

# %%
print(estimate(LAB, layers=LAYERS))

# %%
lab = load_lab(LAB, layers=LAYERS)
train = load_task("sva_nounpp", lab.tokenizer, "train", n=N_TRAIN)
test = load_task("sva_nounpp", lab.tokenizer, "test", n=N_TEST)
lab

# %%
pd.DataFrame([vars(pair) for pair in test.pairs[:5]])

# %% [markdown]
# How well does the model see the difference? One number per prompt, the **logit difference**: the
# logit of the right verb minus that of the verb in the other number. Above 0, the model prefers the
# right one.

# %%
spliced = SplicedModel(lab, LAYERS, error="drop")
model_ld = spliced.model_logit_diff(test).cpu()
by_case = pd.DataFrame(
    {
        "case": [pair.case for pair in test.pairs],
        "logit difference": model_ld,
        "right": model_ld > 0,
    }
)
by_case.groupby("case").agg(
    prompts=("right", "size"), accuracy=("right", "mean"), mean_LD=("logit difference", "mean")
).round(2)

# %% [markdown]
# The case names the number of the subject, then of the distractor. Where the two disagree, the
# model has to work.
#
# ## 2. SAEs in the residual stream
#
# We look at the model only through SAEs at a few layers. At each of them the residual stream is
# encoded into latents and decoded again, and the next layer reads the reconstruction. Whatever the
# rest of the model does with the sentence has then passed through the latents, at every one of
# these bottlenecks:
#
# $$x \;\to\; f = \mathrm{encode}(x) \;\to\; \hat x = \mathrm{decode}(f) \;\to\; \text{next layer}$$
#
# BOS, the first token, is left alone. What does the splice cost? An SAE's reconstruction misses
# something, and the misses add up. `error="drop"` loses them, as the post does; `"mean"` puts the
# average miss back; `"keep"` the prompt's own, which is the model itself again.

# %%
rows = []
for layers in [LAYERS[:1], LAYERS[2:3], LAYERS[-1:], LAYERS]:
    for error in ("drop", "mean", "keep"):
        model_with_saes = SplicedModel(lab, layers, error=error)
        means_here = model_with_saes.patch_means(train.patch) if error == "mean" else None
        ld = model_with_saes.logit_diff(test, means=means_here).mean().item()
        rows.append(
            {
                "SAEs after layers": str(layers),
                "error": error,
                "LD": ld,
                "kept": ld / model_ld.mean().item(),
            }
        )
pd.DataFrame(rows).pivot(index="SAEs after layers", columns="error", values="kept").round(2)

# %% [markdown]
# The table shows which part of the model's logit difference is left. From here on the errors are
# dropped: what the circuit does, it does with latents.
#
# ## 3. What "without a latent" means
#
# To ablate a latent we put something in its place. Zero would be a value that it may never have in
# such sentences; so we use its **mean over the patch prompts**, position by position. The mean
# sentence is neither singular nor plural.

# %%
means = spliced.patch_means(train.patch)
nothing = SAEMasks.full(means.latents, 0.0)
everything = SAEMasks.full(means.latents, 1.0)
evaluation = Evaluation(spliced, test, means)
pd.Series(
    {
        "F(M)  the model": evaluation.model.mean().item(),
        "F(S)  SAEs spliced, all latents": evaluation.logit_diff(everything).mean().item(),
        "F(∅)  every latent ablated": evaluation.empty.mean().item(),
    }
).round(3).to_frame("mean logit difference")

# %% [markdown]
# Between F(∅) and F(S) lies what the latents do. A circuit's **faithfulness** says how far it gets
# from one to the other:
#
# $$\frac{F(C) - F(\varnothing)}{F(S) - F(\varnothing)}$$
#
# How many nodes are there to choose from? A node is a (position, latent) pair. Most never fire in
# such sentences:

# %%
latents = spliced.run(test.clean).latents
pd.DataFrame(
    {
        "nodes": {name: f[0, 1:].numel() for name, f in latents.items()},
        "ever on": {name: int((f > 0).any(0).sum()) for name, f in latents.items()},
        "on per prompt": {
            name: (f > 0).sum((1, 2)).float().mean().item() for name, f in latents.items()
        },
    }
).round(1)

# %% [markdown]
# ## 4. One node at a time
#
# The honest way to ask whether a node matters is to try: put its value on the patch prompt into the
# clean run and see how far the logit difference falls. That is *activation patching*. It needs a
# forward pass per node.
#
# **Attribution patching** (AtP) estimates all of them at once with a straight line: the gradient at
# the clean point times the change. **Integrated gradients** (IG) walk from clean to patch in steps
# and average the gradient on the way.

# ### Exercise 4.1 · attribution patching
#
# ⏱ 5 min · difficulty ●○○ · one line that scores every node of an SAE at once
#
# You get the gradient of each prompt's logit difference with respect to the SAE's latents, and the
# latents on the clean and on the patch prompts. Say for every (position, latent) how far the logit
# difference would fall if the gradient told the whole truth.
#
# <details><summary>Hint 1</summary>
#
# A straight line: how far the output moves = slope × how far the input moves.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Which way does the input move when the clean value is taken away? A node whose clean value helps
# should score above 0.
#
# </details>

# %% tags=["exercise"]
# exercise: attribution_scores

# %%
check(attribution_scores)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - All signs are turned round: you took clean from patch.
# - One number per latent: you averaged over positions too. A node is a (position, latent) pair.
# - No score is below 0: you took |score| prompt by prompt. That is a method too, with another name;
#   here signs cancel over prompts.
#
# </details>
#
# Now use it on the SAE in the middle. `track_latents=True` makes every SAE's latents leaves that
# have gradients:

# %%
scored = train[:N_SCORED]
middle = spliced.hook_points[len(LAYERS) // 2]
run = spliced.run(scored.clean, track_latents=True)
gradient = torch.autograd.grad(run.logit_diff(scored).sum(), run.latents[middle])[0]
clean_latents, patch_latents = (
    run.latents[middle].detach(),
    spliced.run(scored.patch).latents[middle],
)
by_hand = attribution_scores(gradient, clean_latents, patch_latents)

# %% [markdown]
# ### Exercise 4.2 · integrated gradients
#
# ⏱ 10 min · difficulty ●●○ · a gradient at one point can be blind; walk instead
#
# <details><summary>Hint 1</summary>
#
# The points lie on the straight line from clean to patch, evenly spaced. Each costs one call of
# `gradient_at`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Average the gradients first; multiply by the change once, at the end.
#
# </details>

# %% tags=["exercise"]
# exercise: integrated_gradient

# %%
check(integrated_gradient)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - Ten times too large: the gradients are to be averaged, not added.
# - The same as AtP: the point does not move.
# - Nearly right, a little off everywhere: your walk starts one step late, or ends on the patch
#   itself.
#
# </details>
#
# What it needs is the gradient at *given* latents: put them in, run on from there, and go back.


# %%
def gradient_at(f):
    """∂(logit difference)/∂latents of the middle SAE, with the latents ``f`` put in on the first
    eight prompts.
    """
    f = f.detach().requires_grad_()
    patched = spliced.run(scored[:8].clean, latents={middle: f}, keep_latents=False)
    return torch.autograd.grad(patched.logit_diff(scored[:8]).sum(), f)[0]


ig_by_hand = integrated_gradient(gradient_at, clean_latents[:8], patch_latents[:8], IG_STEPS).mean(
    0
)

# %% [markdown]
# The library does both for all SAEs, faster. It had better agree with you:

# %%
torch.testing.assert_close(by_hand, atp(spliced, scored)[middle], atol=1e-4, rtol=1e-3)
torch.testing.assert_close(
    ig_by_hand,
    integrated_gradients(spliced, scored[:8], steps=IG_STEPS)[middle],
    atol=1e-4,
    rtol=1e-3,
)
print(f"AtP and IG by hand agree with the library on all {by_hand.numel():,} nodes of {middle}")

# %%
scores = {
    "AtP": atp(spliced, scored, progress=True),
    "IG": integrated_gradients(spliced, scored, steps=IG_STEPS, progress=True),
}

# %% [markdown]
# Are they right? We patch a sample for real: the nodes that AtP thinks highest of, and some at
# random.

# %%
n_sample = 8 if QUICK else 24
sample = SAEMasks.from_scores(scores["AtP"], n_sample).nodes() + list(
    random_nodes(scores["AtP"], n_sample, seed=SEED)
)
sample = list(dict.fromkeys(sample))
patched = activation_patching(spliced, train[: 16 if QUICK else 24], sample, progress=True)


# %%
def at(scores, nodes):
    """The scores of some nodes, as one vector."""
    return torch.stack([scores[name][position, latent] for name, position, latent in nodes]).cpu()


truth = at(patched, sample)
estimates = {name: at(score, sample) for name, score in scores.items()}
spearman = {
    name: pd.Series(y).corr(pd.Series(truth), method="spearman") for name, y in estimates.items()
}
title = f"Rank correlation with activation patching ({len(sample)} nodes): " + ", ".join(
    f"{k} {v:.2f}" for k, v in spearman.items()
)
figures.show(
    figures.scatter_figure(truth, estimates, "activation patching", "estimate", title),
    alt=(
        f"Two scatter plots of estimated against true effects of {len(sample)} single "
        f"nodes. {title}."
    ),
)

# %% [markdown]
# Good scores for single nodes are not yet a good *set* of nodes: two that do the same work both
# look dispensable, and one that only helps another looks useless by itself. That is where a mask
# has the advantage.
#
# ## 5. A learned mask
#
# A mask m has one number per node: 1 keeps it, 0 puts the mean in its place, $\text{mean} + (f -
# \text{mean})\cdot m$. We want few ones and an unchanged answer. Zeros and ones cannot be learned
# by gradient descent, so *continuous sparsification* softens them:
#
# $$m = \sigma(\tau\,\theta), \qquad
# \text{loss} = |LD_\text{spliced} - LD_\text{masked}|
# + \lambda \sum m \,/\, (\text{number of SAEs})$$
#
# θ is learned. The temperature τ rises from 1, where every node still gets a gradient, to 200,
# where m is all but binary. At the end, nodes with θ > 0 stay. λ says what a node costs.
#
# ### Exercise 4.3 · the loss
#
# ⏱ 10 min · difficulty ●●○ · what the mask is learned for
#
# <details><summary>Hint 1</summary>
#
# Two terms: how far off the answers are, *on each prompt*, and how many nodes there are.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A prompt that is too sure and one that is too unsure must not cancel. And a node costs the same
# wherever it is.
#
# </details>

# %% tags=["exercise"]
# exercise: sparsification_loss

# %%
check(sparsification_loss)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - The loss is tiny and nothing is ever pruned: you took the mean of the masks where their sum is
#   wanted.
# - The loss falls below 0: the first term lacks its |·|.
# - The mask keeps circuits that are wrong on every prompt, half of them upwards and half downwards:
#   |·| stands outside the mean.
#
# </details>
#
# The loss for one batch, with all nodes half on:

# %%
theta = {name: torch.ones_like(f, requires_grad=True) for name, f in means.latents.items()}
tau, sparsity = 1.0, 0.01
batch = train[:16]

soft = SAEMasks(list(theta), [torch.sigmoid(tau * value) for value in theta.values()])
ld_masked = spliced.run(batch.clean, masks=soft, means=means).logit_diff(batch)
loss = sparsification_loss(spliced.logit_diff(batch), ld_masked, dict(soft.items()), sparsity)
loss.backward()
print(
    f"the loss is {loss:.1f}: nearly all of it is the price of "
    f"{sum(m.numel() for m in soft.masks):,} nodes that are partly on"
)
print(f"every node has a gradient: {all((value.grad[1:] != 0).all() for value in theta.values())}")

# %% [markdown]
# ### Exercise 4.4 · the schedule
#
# ⏱ 5 min · difficulty ●○○ · soft at first, hard at last
#
# <details><summary>Hint 1</summary>
#
# "The same factor from each step to the next" is a power. Of what, and which?
#
# </details>
# <details><summary>Hint 2</summary>
#
# How many *steps between* the first and the last are there, if there are `steps` in all?
#
# </details>

# %% tags=["exercise"]
# exercise: temperature

# %%
check(temperature)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - It ends a little below `tau_max`: the last step is number `steps − 1`.
# - It goes beyond `tau_max`: the published code did that too. A mask that is learned further with a
#   frozen 0/1 step learns nothing.
#
# </details>
#
# ### Exercise 4.5 · the loop
#
# ⏱ 15 min · difficulty ●●● · the whole method in eight lines
#
# <details><summary>Hint 1</summary>
#
# It is an ordinary training loop. What is trained is θ; what the loss sees is σ(τ·θ), with a new τ
# at each step.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `torch.optim.Adam` takes a list of tensors. Gradients of the last step must be gone before the
# next backward pass.
#
# </details>
# <details><summary>Hint 3</summary>
#
# What you return is not the soft mask: it is 1 where θ ended above 0, and 0 elsewhere.
#
# </details>

# %% tags=["exercise"]
# exercise: learn_by_hand

# %%
check(learn_by_hand)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - The number of nodes does not change: no `optimizer.step()`, or the temperature was 200 from the
#   start and no node had a gradient.
# - All nodes go: λ is too high for so few steps, or old gradients pile up.
# - The circuit is far worse than the last loss promised: the mask was still soft at the end.
#
# </details>
#
# Twenty steps with your loop, on real prompts:


# %%
ld_spliced = spliced.logit_diff(train)


def loss_of(masks, step):
    """The sparsification loss of a batch of 16 training prompts, a new one each step."""
    rows = [(16 * step + i) % len(train) for i in range(16)]
    batch = train[rows]
    run = spliced.run(
        batch.clean,
        masks=SAEMasks(list(masks), list(masks.values())),
        means=means,
        keep_latents=False,
    )
    return sparsification_loss(ld_spliced[rows], run.logit_diff(batch), masks, 0.03)


theta = {name: torch.ones_like(f) for name, f in means.latents.items()}
for value in theta.values():
    value[0] = -1  # BOS is never spliced: no node there
    value.requires_grad_()

# %%
mine = learn_by_hand(loss_of, theta, steps=4 if QUICK else 20)
mine = SAEMasks(list(mine), list(mine.values()))
print(f"{mine.get_num_latents():,} of {sum(m.numel() for m in mine.masks):,} nodes are left")

# %% [markdown]
# `learn_masks` does the same, for 60 steps in full. Watch the bar. (Interrupt it, and you get the
# mask so far.) Each step begins at the first SAE: what comes before it is the same at every step,
# and is run once per prompt.

# %%
learned = learn_masks(spliced, train, means=means, sparsity=0.03, seed=SEED, **LEARNING)
learned.masks.print_mask_statistics()

# %%
title = (
    f"{learned.n_nodes} of {sum(m.numel() for m in learned.masks.masks):,} nodes are "
    f"left after {len(learned.history)} steps"
)
figures.show(
    figures.history_figure(learned.history, title),
    alt=f"Two line plots over steps: the faithfulness loss, and the number of nodes on. {title}.",
)

# %% [markdown]
# Does this circuit do the job on sentences with nouns that it has never seen? Three ways to say it,
# since papers
# differ: against the model, against the spliced model, and the plain ratio of the post. All compare
# *means* over prompts: a circuit that is too sure of one prompt and too unsure of the next can
# score 1. So there is a fourth, the **gap**: how far the circuit's logit difference is from the
# spliced model's *on each prompt* (0 = the same on every prompt, 1 = as far off as with every
# latent ablated). It is what the mask was trained to make small. Brackets: 95 % intervals over
# prompts.

# %%
found = evaluation.faithfulness(learned.masks)
pd.Series({name: str(getattr(found, name)) for name in MEASURES}).to_frame(
    f"{learned.n_nodes} nodes, {found.n} prompts"
)

# %% [markdown]
# ## 6. The frontier
#
# One circuit proves little: with more nodes everything becomes faithful. What counts is the
# **frontier**, faithfulness for each number of nodes. Against the mask stand the attribution
# methods, and two baselines that any method must beat: the nodes whose activation changes most
# between clean and patch, and nodes drawn at random among those that fire. "IG to means" is the
# integrated gradient towards the mean, which is the ablation that judges it. All choose their nodes
# on training prompts; all are judged on the same held-out prompts. Mind one inequality: to save
# time, AtP and IG average over `N_SCORED` of the `N_TRAIN` prompts that the mask learns on, so some
# of the mask's lead may be due to more data.

# %%
scores["IG to means"] = integrated_gradients(
    spliced, scored, steps=IG_STEPS, means=means, baseline="mean", progress=True
)
scores["largest change"] = largest_change(spliced, train)
scores["random"] = random_scores(spliced, train, seed=SEED)

# %%
frontier = Frontier.of(spliced, test)
circuits = {}
for sparsity in SPARSITIES:
    result = (
        learned
        if sparsity == 0.03
        else learn_masks(spliced, train, means=means, sparsity=sparsity, seed=SEED, **LEARNING)
    )
    circuits[f"{result.n_nodes} nodes"] = result.masks
    frontier.add(
        "learned mask",
        result.masks,
        evaluation.faithfulness(result.masks),
        sparsity=sparsity,
        seed=SEED,
    )

# %% [markdown]
# Every other method cuts circuits of exactly the sizes that the mask found, and one of twice the
# largest.


# %%
def sizes_of(frontier):
    """The mask's circuit sizes, and twice the largest."""
    sizes = sorted({point.n_nodes for point in frontier.of_method("learned mask")} - {0})
    return [*sizes, 2 * sizes[-1]]


for method, score in scores.items():
    score_frontier(frontier, method, score, sizes_of(frontier), evaluation, seed=SEED)


# %%
def headline(frontier, n_nodes):
    """A title that says what the figure shows: every method's faithfulness with this many nodes."""
    points = [point for point in frontier.points if point.n_nodes == n_nodes]
    said = []
    for point in points:
        vs_spliced, gap = point.faithfulness.vs_spliced.value, point.faithfulness.gap.value
        said.append(f"{point.method} {vs_spliced:.2f}/{gap:.2f}")
    return f"{frontier.task} with {n_nodes} nodes, faithfulness/gap:\n" + ", ".join(said)


title = headline(frontier, learned.n_nodes)
said = f"Faithfulness on held-out prompts against the number of nodes, a line per method. {title}."
figures.show(figures.frontier_figure(frontier, title), alt=said, save_as="frontier")
pd.DataFrame(frontier.rows())

# %% [markdown]
# ### Exercise 4.6 · attribution, again and again
#
# ⏱ 15 min · difficulty ●●○ · is it the scores that fail, or scoring only once?
#
# A score says what a node does *while all others are there*. So: drop a few nodes, score the rest
# again in what is left, and so on. You write the dropping; the scoring is one backward pass through
# the mask.
#
# <details><summary>Hint 1</summary>
#
# `masks` says which nodes are still there. Those that are gone must not come back, whatever their
# score.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The best n over *all* hook points: put all scores into one long vector, and cut it up again at the
# end.
#
# </details>

# %% tags=["exercise"]
# exercise: prune

# %%
check(prune)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - Each SAE keeps n nodes: rank them together.
# - The circuit grows again between rounds: nodes came back.
# - Nodes that lower the logit difference are always dropped: rank by |score|.
#
# </details>
#
# The score of a node in the circuit so far is the gradient of its mask: how far the logit
# difference falls, by a straight line, when the mean takes its place.


# %%
def scores_in(masks, task):
    """AtP to the means, in the circuit ``masks``: the gradient of the mean logit difference with
    respect to each mask.
    """
    masks = {name: mask.clone().requires_grad_() for name, mask in masks.items()}
    for rows in range(0, len(task), 16):
        batch = task[rows : rows + 16]
        run = spliced.run(
            batch.clean,
            masks=SAEMasks(list(masks), list(masks.values())),
            means=means,
            keep_latents=False,
        )
        (run.logit_diff(batch).sum() / len(task)).backward()
    return {name: mask.grad for name, mask in masks.items()}


# %% [markdown]
# Eight rounds, from all nodes that ever fire down to the size of the learned mask, by the same
# factor each time:

# %%
fires = random_scores(spliced, train, seed=SEED)
rounds, kept = (2 if QUICK else 8), {name: (score > 0).float() for name, score in fires.items()}
n_start = sum(int(mask.sum()) for mask in kept.values())
for i in range(1, rounds + 1):
    n = round(n_start * (learned.n_nodes / n_start) ** (i / rounds))
    kept = prune(scores_in(kept, scored), kept, n)
iterated = SAEMasks(list(kept), list(kept.values()))

# %%
frontier.add("iterated AtP", iterated, evaluation.faithfulness(iterated), seed=SEED)
at_size = [row for row in frontier.rows() if row["nodes"] == learned.n_nodes]
pd.DataFrame(at_size)

# %% [markdown]
# Compare its row with that of the learned mask (which saw all training prompts, and steps in place
# of rounds) and with AtP's, which scored the same prompts once. If iterating comes out worse than
# scoring once, as it did when this was written: why? A guess to
# test: a score says what a node does for the logit difference, whichever way the circuit is already
# off. The mask's loss asks something else, whether the answer is still the same. (Change
# `scores_in` so that it asks that, and see.)
#
# ## 7. The circuit
#
# Where do the nodes sit? Rows are the SAEs, columns the positions. Before the verb can be chosen,
# the number of the subject has to travel from its own position to the last one.

# %%
small = min((m for m in circuits.values() if m.get_num_latents() > 0), key=SAEMasks.get_num_latents)
title = (
    f"The smallest learned circuit: {small.get_num_latents()} nodes, "
    f"{sum(n > 0 for n in nodes_per_layer(small).values())} layers"
)
figures.show(
    figures.circuit_figure(small, test, title),
    alt=f"A grid of node counts by layer and position. {title}.",
)
pd.DataFrame(
    [
        {"hook point": h, "position": test.position_labels[p], "latent": i}
        for h, p, i in small.nodes()[:20]
    ]
)

# %% [markdown]
# The same prompt, coloured by the number of nodes at each token, in the largest circuit:

# %%
large = max(circuits.values(), key=SAEMasks.get_num_latents)
coloured_prompt(test.position_labels, sum((mask > 0).sum(1) for mask in large.masks).tolist())

# %% [markdown]
# Slide the size, and see how faithful circuits of that size are, and which latents remain. (In a
# running notebook; elsewhere you see the smallest circuit.)

# %%
explore_frontier(frontier, list(circuits.values()), test)

# %% [markdown]
# The full run keeps its results: the frontier as JSON, the circuits as lists of nodes.
# (`Frontier.load` reads them back.)

# %%
if not QUICK:
    path = frontier.save()
    (path.parent / f"circuits_{lab.name}.json").write_text(
        json.dumps({name: masks.to_json() for name, masks in circuits.items()})
    )
    assert Frontier.load(path) == frontier
    print(f"saved in {path.parent.relative_to(root)}")

# %% [markdown]
# ## 8. A harder task: indirect objects
#
# *When Mary and John went to the store, John gave a drink to* → *Mary*. The model has to notice
# which name is repeated and move the other one to the end. In the patch prompt three other people
# take part, so nothing determines the answer.
#
# There is a catch. Latents that stand for *Mary* are of no use for *Laura*, so a circuit found on
# some names may not know others. We judge on two sets: new prompts whose names occur in training,
# and new prompts with new names.
#
# The fair rival of the mask here is AtP, which sees the same training prompts. IG is dear on longer
# prompts: it gets fewer of them and fewer points, so a low IG may be a starved IG. (In the quick
# profile all see 16 prompts: too few for IOI, and what is learned from them does not carry over.
# Run it in full for the result.)

# %%
ioi_all = load_task("ioi", lab.tokenizer, "train")
ioi_train, ioi_test = ioi_all[: 16 if QUICK else 256], ioi_all[-12 if QUICK else -84 :]
ioi_new_names = load_task("ioi", lab.tokenizer, "test", n=len(ioi_test))
ioi_means = spliced.patch_means(ioi_train.patch)
ioi_evaluation = Evaluation(spliced, ioi_test, ioi_means)
pd.Series(
    {
        "F(M)": ioi_evaluation.model.mean().item(),
        "F(S)": ioi_evaluation.spliced_model.mean().item(),
        "F(∅)": ioi_evaluation.empty.mean().item(),
    }
).round(3)

# %%
ioi = Frontier.of(spliced, ioi_test)
ioi_circuits = []
for sparsity in [0.003] if QUICK else [0.001, 0.003]:
    ioi_circuits.append(
        learn_masks(
            spliced, ioi_train, means=ioi_means, sparsity=sparsity, seed=SEED, **LEARNING
        ).masks
    )
    found = ioi_evaluation.faithfulness(ioi_circuits[-1])
    ioi.add("learned mask", ioi_circuits[-1], found, sparsity=sparsity, seed=SEED)

# %%
ioi_scored, ioi_steps = (ioi_train[:8], 1) if QUICK else (ioi_train[:24], 5)
ioi_scores = {
    "AtP": atp(spliced, ioi_train),
    "IG": integrated_gradients(spliced, ioi_scored, steps=ioi_steps, progress=True),
    "IG to means": integrated_gradients(
        spliced, ioi_scored, steps=ioi_steps, means=ioi_means, baseline="mean", progress=True
    ),
    "largest change": largest_change(spliced, ioi_train),
    "random": random_scores(spliced, ioi_train, seed=SEED),
}
for method, score in ioi_scores.items():
    score_frontier(ioi, method, score, sizes_of(ioi), ioi_evaluation, seed=SEED)

# %%
title = headline(ioi, ioi.of_method("learned mask")[-1].n_nodes)
figures.show(
    figures.frontier_figure(ioi, title),
    alt=f"Faithfulness on held-out IOI prompts against the number of nodes. {title}.",
)
if not QUICK:
    ioi.save()
pd.DataFrame(ioi.rows())

# %% [markdown]
# The same circuits on names that they have never seen:

# %%
with_new_names = Evaluation(spliced, ioi_new_names, ioi_means)
pd.DataFrame(
    {
        f"{masks.get_num_latents()} nodes": {
            "names seen in training": str(ioi_evaluation.faithfulness(masks).vs_spliced),
            "new names": str(with_new_names.faithfulness(masks).vs_spliced),
        }
        for masks in ioi_circuits
    }
)

# %% [markdown]
# ## 9. Beside the published circuits
#
# The post reports these circuits for Gemma 2 9B, with SAEs after layers 7, 14, 21 and 40. With `LAB
# = "gemma-2-9b"` (and a GPU that holds it) the next cell learns circuits of the same sizes, and
# puts its numbers beside them. `F(C)/F(S)` is the post's measure, without F(∅).

# %%
if LAB == "gemma-2-9b":
    table = pd.DataFrame(beside_published(spliced, published_circuits(LAB)))
else:
    print(
        f"Skipped: these are circuits of gemma-2-9b, and LAB is {LAB!r}. The published column "
        "alone:"
    )
    table = pd.DataFrame([vars(circuit) for circuit in published_circuits("gemma-2-9b")])
table

# %% [markdown]
# ## What we saw

# %%
for result in (frontier, ioi):
    mask = {
        point.n_nodes: point.faithfulness.gap
        for point in result.of_method("learned mask")
        if point.n_nodes
    }
    for method in result.methods[1:]:
        other = {point.n_nodes: point.faithfulness.gap for point in result.of_method(method)}
        both = [n for n in mask if n in other]
        better = [n for n in both if mask[n].high < other[n].low]
        worse = [n for n in both if mask[n].low > other[n].high]
        print(
            f"{result.task}: the mask's gap is clearly smaller than that of {method} at "
            f"{better} nodes, clearly larger at {worse}, of {both}"
        )
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# ("Clearly": the 95 % intervals do not overlap. The gap is the mask's own training loss, on new
# prompts, and was added to this comparison after a first run in which IG passed the mask on average
# faithfulness: read both columns.)
#
# **What to take away.** Attribution scores nodes one by one; a mask is judged as a set while it is
# learned. Section 4 shows where the scores go wrong: a gradient at one point can miss an early node
# almost completely. The frontier shows how much that costs, and to whom: compare the mask with AtP,
# with IG towards the patch prompt, and with IG towards the mean, which knows the ablation that will
# judge it. On agreement, a strong attribution method can match the mask's *average* faithfulness,
# overshooting 1 on the way; the gap, prompt by prompt, is the stricter judge, and its table says
# who wins where. On IOI the answer is a name, the circuits are large, and part of them is about
# names: new names lose some of it.
#
# **What it does not show.** All of it is relative to F(S), the model with SAEs spliced in: what the
# SAEs do not represent is in no circuit. One seed per mask says nothing about stability. And a
# faithful circuit need not be complete: notebook 05 asks what else in the model could do the work.
