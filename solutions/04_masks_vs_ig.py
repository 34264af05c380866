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
# *The athletes near the car* **are** — not *is*. A language model gets this right. Some of its
# features must carry "the subject is plural" past the distracting *car* to the end. You look for
# them in two ways, and see which finds the smaller circuit:
#
# - **attribution** scores every latent by its gradient (attribution patching, integrated gradients)
#   and keeps the best;
# - **a learned mask** lets gradient descent decide which latents to keep, all at once.
#
# This is the central experiment of [*Scaling Sparse Feature Circuit Finding to Gemma 9B*][post]
# (Caples et al. 2025; "the post" below), on SmolLM2-135M, which fits on a laptop. Results are on
# held-out prompts.
#
# **At the end you can say**
#
# - what AtP and IG estimate, and how a gradient can miss a node that matters;
# - how a mask is learned by gradient descent, and how the price of a node sets the circuit's size;
# - which method finds the more faithful circuit of a given size, and by which measure;
# - how much the variant of a score and the loss of a mask change that answer;
# - what happens to a circuit for indirect objects when the names are new.
#
# **You need** PyTorch and transformers, and to know what a sparse autoencoder is: an encoder that
# writes an activation as a sum of a few *latents*, and a decoder that puts it together again. **You
# write** six functions. Until you do, the course's versions run in their place.
#
# **It takes** you about 1 hour 50 minutes: 65 minutes for the exercises, 45 to read. The notebook
# runs {times}. The first run fetches 93 MB of weights.
#
# **Contents**
#
# 1. The behaviour
# 2. SAEs in the residual stream
# 3. What "without a latent" means
# 4. One node at a time (exercises 4.1 and 4.2)
# 5. A learned mask (exercises 4.3 to 4.5)
# 6. The frontier (exercise 4.6)
# 7. The circuit
# 8. A harder task: indirect objects
# 9. Beside the published circuits
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b

# %% tags=["setup"]
# setup

# %%
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

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
from course_utils.circuits.attribution import (
    effect_of_baseline,
    largest_change,
    random_nodes,
    random_scores,
    shrinking_sizes,
    variants,
)

# %%
from course_utils.circuits.evaluate import MEASURES, jaccard
from course_utils.circuits.frontier import MASKS_DIR, summary_sentence
from course_utils.circuits.masks import load_circuits, save_circuits
from course_utils.circuits.published import beside_published, published_circuits
from course_utils.circuits.sparsification import PUBLISHED
from course_utils.display import figures
from course_utils.display.html import coloured_prompt
from course_utils.display.profile import is_quick
from course_utils.display.widgets import explore_frontier
from course_utils.labs.catalog import spec_of
from course_utils.teaching.nb04 import check, exercise

# %% [markdown]
# `PROFILE="quick"` runs the same steps with fewer prompts and circuits. You learn one mask here.
# Those of other sizes and seeds come from `data/masks`. `LEARN_CIRCUITS=True` learns them again,
# which takes most of an hour.

# %% tags=["parameters"]
LAB = "smollm2"
LAYERS = None  # where SAEs are spliced; None: where the lab has its placement
PROFILE = os.environ.get("COURSE_PROFILE", "full")
LEARN_CIRCUITS = False
SEED = 0

# %%
LAYERS = list(LAYERS or spec_of(LAB).placement)
QUICK = is_quick(PROFILE)
N_TRAIN, N_DEV, N_TEST = (32, 16, 32) if QUICK else (256, 100, 200)  # learn on, choose on, report
N_SCORED = 16 if QUICK else 64  # prompts that single nodes and variants are scored on
SIZES = [17] if QUICK else [12, 17, 25, 40]  # wanted numbers of nodes
SEEDS = [0, 1] if QUICK else [0, 1, 2, 3, 4]
LEARN_CIRCUITS = LEARN_CIRCUITS or LAB != "smollm2"  # of other labs there are none to read
IG_STEPS = 2 if QUICK else 10
# how long a mask is learned
LEARNING = {"steps": 20, "lr": 0.45} if QUICK else {"steps": 60}

# %% [markdown]
# ## 1. The behaviour
#
# A *lab* is a model with the SAEs to study it. A *task* is a set of prompt pairs. The **clean**
# prompt and the **patch** prompt differ in one thing, here the number of the subject. `LAB` above
# can be another lab, but not `qwen-coder`: its SAEs know little besides Python sessions. Your lab
# needs:

# %%
print(estimate(LAB, layers=LAYERS))

# %%
lab = load_lab(LAB, layers=LAYERS)
train = load_task("sva_nounpp", lab.tokenizer, "train", n=N_TRAIN)
dev = load_task("sva_nounpp", lab.tokenizer, "dev", n=N_DEV)
test = load_task("sva_nounpp", lab.tokenizer, "test", n=N_TEST)
lab

# %% [markdown]
# There are three splits, and they share no noun. Masks and scores are made from **train**. Variants
# and settings are chosen on **dev**. Results are reported on **test**, where nothing is chosen.

# %%
pd.DataFrame([vars(pair) for pair in test.pairs[:5]])

# %% [markdown]
# How well does the model know the answer? The **logit difference** is the logit of the right verb
# minus that of the verb in the other number. Above 0, the model prefers the right verb.

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
# The case names the number of the subject, then that of the distractor. The hard prompts are those
# where the two disagree.
#
# ## 2. SAEs in the residual stream
#
# We splice SAEs into the residual stream at a few layers. There it is encoded into latents and
# decoded again, and the next layer reads the reconstruction. All that the model knows of the
# sentence must pass these bottlenecks as latents:
#
# $$x \;\to\; f = \mathrm{encode}(x) \;\to\; \hat x = \mathrm{decode}(f) \;\to\; \text{next layer}$$
#
# BOS, the first token, is never spliced. A reconstruction has an error. `error="drop"` leaves it
# out, as the post does. `"mean"` adds the average error back. `"keep"` adds the prompt's own error
# back, which restores the model itself.

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
# The table shows the share of the model's logit difference that is left. From here on, errors are
# dropped: a circuit works with latents alone.
#
# ## 3. What "without a latent" means
#
# To ablate a latent, we replace its value. Zero may be a value that it never has here. So we use
# its **mean over the patch prompts**, position by position, which is neither singular nor plural.

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
# A circuit's **faithfulness** is the share of F(S) − F(∅) that it keeps:
#
# $$\frac{F(C) - F(\varnothing)}{F(S) - F(\varnothing)}$$
#
# A node is a (position, latent) pair. Most never fire in such sentences:

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
# The direct test of a node is *activation patching*: put its patch value into the clean run, and
# see how far the logit difference falls. That takes one forward pass per node.
#
# **Attribution patching** (AtP) estimates all nodes at once, from one backward pass: as if the
# logit difference were linear in the latents. **Integrated gradients** (IG) walk from clean to
# patch, and average the gradient on the way.
#
# ### Exercise 4.1 · attribution patching
#
# ⏱ 10 min · difficulty ●●○ · one backward pass that scores every node of an SAE
#
# `logit_diff_of(f)` runs the model with the latents `f` and gives the logit difference of each
# prompt. Estimate for every (position, latent) how far it would fall, on average, if the node took
# its patch value. Three decisions are yours:
#
# - at which latents to take a gradient, and of which single number;
# - which change to multiply it with, and with which sign;
# - when to average over prompts.
#
# A node may help on some prompts and harm on others. Here its scores cancel.
#
# <details><summary>Hint 1</summary>
#
# A straight line: how far the output moves = slope × how far the input moves.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `torch.autograd.grad` wants one number, and latents that ask for a gradient
# (`clean.detach().requires_grad_()`). No prompt sees another: in a *sum* over prompts, each keeps a
# gradient of its own.
#
# </details>
# <details><summary>Hint 3</summary>
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
# - All signs are reversed: you subtracted clean from patch.
# - Everything is far too small: you took the gradient of the mean over prompts, and averaged again.
# - One number per latent: you averaged over positions too. A node is a (position, latent) pair.
# - No score is below 0: you took |score| prompt by prompt. That is another variant; in this one,
#   signs cancel over prompts.
#
# </details>
#
# Now use it on the SAE in the middle:

# %%
scored = train[:N_SCORED]
middle = spliced.hook_points[len(LAYERS) // 2]
clean_latents, patch_latents = (
    spliced.run(tokens).latents[middle].detach() for tokens in (scored.clean, scored.patch)
)


def logit_diff_of(f):
    """The logit difference of each prompt, with the latents ``f`` put in at the middle SAE."""
    run = spliced.run(scored.clean, latents={middle: f}, keep_latents=False)
    return run.logit_diff(scored)


by_hand = attribution_scores(logit_diff_of, clean_latents, patch_latents)

# %% [markdown]
# ### Exercise 4.2 · integrated gradients
#
# ⏱ 10 min · difficulty ●●○ · a gradient at one point can be blind; walk instead
#
# Write IG: average `gradient_at` over `steps` points from clean to patch, and multiply by the
# change.
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
# - Ten times too large: average the gradients; do not add them.
# - The same as AtP: the point does not move.
# - Slightly wrong everywhere: your walk starts one step late, or ends on the patch itself.
#
# </details>
#
# Your function needs the gradient at *given* latents: put them in, and run on from there.


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
# The library does both for all SAEs, and faster. It must agree with you:

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
# IG comes with a check. In theory, the scores of one SAE's nodes add up to F(clean) − F(patch).
# F(patch) is the mean logit difference when this SAE alone gets its latents from the patch prompts.
# It is the same number at every SAE: with errors dropped, the layers above read nothing but these
# latents. AtP has no such property. **Predict**: at which of the SAEs do the sums come closest to
# the fall, and at which are they farthest off?

# %%
falls = effect_of_baseline(spliced, scored, baseline="patch")
pd.DataFrame(
    {
        "F(clean) − F(patch)": falls,
        "sum of IG": {name: score.sum().item() for name, score in scores["IG"].items()},
        "sum of AtP": {name: score.sum().item() for name, score in scores["AtP"].items()},
    }
).round(2)

# %% [markdown]
# After the last SAE, the sum of IG is right. The path from an early SAE leads through later ones,
# whose latents jump on and off at their thresholds (JumpReLU). A gradient sees no jump, so these
# sums are off.
#
# Are the scores of single nodes right? We patch some nodes and compare. On its own favourites a
# method looks better than it is. So we take the favourites of AtP, those of IG, the nodes whose
# activation changes most, and random ones.

# %%
n_sample = 4 if QUICK else 12
favourites = [*scores.values(), largest_change(spliced, train)]
sample = list(random_nodes(scores["AtP"], n_sample, seed=SEED))
for score in favourites:
    sample += SAEMasks.from_scores(score, n_sample).nodes()
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
large = truth > truth.max() / 2
missed = {name: int((y[large] < truth[large] / 4).sum()) for name, y in estimates.items()}

# %%
n_large = int(large.sum())
title = f"AtP misses {missed['AtP']} of the {n_large} largest effects, IG misses {missed['IG']}"
caption = (
    f"{len(sample)} nodes; missed: an estimate below a quarter of the effect; "
    "large: more than half of the largest"
)
x_label, y_label = "effect by activation patching (logits)", "estimated effect (logits)"
figures.show(
    figures.scatter_figure(truth, estimates, x_label, y_label, title, caption=caption),
    alt=(
        f"Two scatter plots of estimated against true effects of {len(sample)} single "
        f"nodes. {title}."
    ),
)
pd.Series(spearman, name=f"rank correlation, {len(sample)} nodes").round(2).to_frame()

# %% [markdown]
# A rank correlation hides such misses: most nodes have almost no effect, and those are easy to
# rank.
#
# Good scores for single nodes do not make a good *set*. Two nodes that do the same work both look
# dispensable. A node that only helps another looks useless by itself. A learned mask, in contrast,
# is judged as a set.
#
# ## 5. A learned mask
#
# A mask m has one number per node: 1 keeps it, 0 puts the mean in its place, $\text{mean} + (f -
# \text{mean})\cdot m$. We want few ones and the same answer. Gradient descent cannot learn zeros
# and ones, so *continuous sparsification* softens them:
#
# $$m = \sigma(\tau\,\theta), \qquad
# \text{loss} = |LD_\text{spliced} - LD_\text{masked}|
# + \lambda \sum m \,/\, (\text{number of SAEs})$$
#
# θ is learned. The temperature τ starts at 1, where every node gets a gradient, and rises until m
# is almost binary. At the end, nodes with θ > 0 stay. λ is the price of a node.
#
# The post's code compares the means of a *batch*; our loss compares *prompt by prompt*. Section 6
# measures what this changes.
#
# ### Exercise 4.3 · the loss
#
# ⏱ 10 min · difficulty ●●○ · what the mask is learned for
#
# Write the loss above.
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
# - The loss is tiny and nothing is ever pruned: you took the mean of the masks in place of their
#   sum.
# - The loss falls below 0: the first term lacks its |·|.
# - The mask keeps circuits that are wrong on every prompt, half of them upwards and half downwards:
#   the |·| is outside the mean. That is the loss of the post's code; this exercise asks for the
#   loss prompt by prompt.
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
# Write τ at a step: 1 at the first, `tau_max` at the last, the same factor between.
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
# - It goes beyond `tau_max`: the published code did that too. Once the mask is a frozen 0/1 step,
#   it learns nothing more.
#
# </details>
#
# ### Exercise 4.5 · the loop
#
# ⏱ 15 min · difficulty ●●● · the whole method in eight lines
#
# Write the training loop, and return masks of 0 and 1.
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
# Run your loop on real prompts, for twenty steps:


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
# `learn_masks` does the same, by default in 60 steps. Three changes make it depend less on the
# seed:
#
# - **A lower rate.** Adam moves every θ by about its learning rate, whatever the size of the
#   gradient. So in your loop all nodes fall towards 0 together, and one step decides. The library's
#   rate is half of yours. Adam also forgets the size of the first gradients (β₂ = .95), so that a
#   node can still turn round.
# - **A lower temperature.** τ ends at 20, not 200, and gets there before the last step. τ·θ is held
#   within ±9: further out σ has no slope, and a node could neither leave nor return. So nodes leave
#   one by one, while others can still adapt.
# - **Fewer candidates**: only nodes that fire in such sentences.
#
# You can also ask for a **size**: `n_nodes=17`. λ then rises while more nodes stay than intended,
# and falls while fewer do. No node is cut at the end: removing nodes that the others rely on
# destroys a circuit.
#
# (If you interrupt the cell, you get the mask so far.)

# %%
learned = learn_masks(spliced, train, means=means, n_nodes=17, seed=SEED, **LEARNING)
learned.masks.print_mask_statistics()

# %%
n_first = learned.history[0]["n_on"]
title = (
    f"Of {n_first:,} nodes that fire, {learned.n_nodes} are left after {len(learned.history)} steps"
)
figures.show(
    figures.history_figure(learned.history, title),
    alt=f"Over the steps: how far the answers are off, and the number of nodes on. {title}.",
)

# %% [markdown]
# Does this circuit work for new nouns? Papers use three ratios:
#
# - against the model (`vs_model`): (F(C) − F(∅)) / (F(M) − F(∅));
# - against the spliced model (`vs_spliced`): (F(C) − F(∅)) / (F(S) − F(∅));
# - the plain ratio of the post (`raw`): F(C) / F(S).
#
# All compare *means*: a circuit that is too sure of one prompt and too unsure of the next can have
# a ratio of 1. So there are two more measures, with 0 as their best value:
#
# - the **distance** |1 − F|, with the second of these ratios as F;
# - the **gap**: how far the circuit is from the spliced model, prompt by prompt (0 = the same on
#   every prompt, 1 = as far off as with every latent ablated).
#
# The gap is the first term of the mask's loss, scaled. So it is no neutral judge. Brackets are 95 %
# intervals over prompts.

# %%
found = evaluation.faithfulness(learned.masks)
pd.Series({name: str(getattr(found, name)) for name in MEASURES}).to_frame(
    f"{learned.n_nodes} nodes, {found.n} prompts"
)

# %% [markdown]
# ## 6. The frontier
#
# With enough nodes, any method becomes faithful. So we compare methods by their **frontier**, the
# faithfulness at each number of nodes. And another order of the training prompts may give another
# mask. So there are several seeds of each size.


# %%
def circuits_of(name, learn, keys, task="sva_nounpp"):
    """Circuits by (wanted size, seed): those in data/masks, or learned again and kept there."""
    path = MASKS_DIR / task / f"{name}_{lab.name}.json"
    if not LEARN_CIRCUITS:
        found = load_circuits(path)
        return {key: found[key] for key in keys}
    found = {key: learn(*key).masks for key in keys}
    if not QUICK:
        save_circuits(found, path)
    return found


def ours(size, seed, **settings):
    """Our learner on the training sentences."""
    settings = {"n_nodes": size, **LEARNING, **settings}
    return learn_masks(spliced, train, means=means, seed=seed, **settings)


# %%
masks = circuits_of("circuits", ours, list(itertools.product(SIZES, SEEDS)))
same = jaccard(set(learned.masks.nodes()), set(masks[17, SEED].nodes()))
print(f"Yours and the one of seed {SEED} that was learned before: Jaccard index {same:.2f}")
pd.DataFrame(
    [[masks[size, seed].get_num_latents() for seed in SEEDS] for size in SIZES],
    index=pd.Index(SIZES, name="wanted"),
    columns=[f"seed {seed}" for seed in SEEDS],
)

# %% [markdown]
# ### Attribution at its best
#
# Attribution has variants. To be fair, we compare with the best:
#
# - **AtP or IG**.
# - **The baseline**: the patch value, as above, or the **mean** over patch prompts, with which
#   circuits are judged.
# - **The signs.** |mean| ranks by the size of the mean score. *Positive mean* puts nodes that lower
#   the logit difference last. *Mean of |·|* also counts a node that helps on some prompts and harms
#   on others.
#
# Of these twelve variants we choose on dev, by the mean of each measure over the sizes above.

# %%
on_dev = Evaluation(spliced, dev, means)
of_size = {size: max(masks[size, seed].get_num_latents() for seed in SEEDS) for size in SIZES}
candidates = variants(spliced, scored, means=means, steps=IG_STEPS, progress=True)
rows = {}
for name, score in candidates.items():
    cuts = [SAEMasks.from_scores(score, n, rank="signed") for n in of_size.values()]
    judged = [on_dev.faithfulness(circuit, n_bootstrap=1) for circuit in cuts]
    rows[name] = {
        measure: sum(getattr(one, measure).value for one in judged) / len(judged)
        for measure in ("gap", "distance")
    }
chosen = pd.DataFrame(rows).T.sort_values("gap")
chosen.round(2)

# %%
best = {measure: chosen[measure].idxmin() for measure in chosen}
print(f"On dev, the best variant by the gap is {best['gap']};")
print(f"by |1 − F| it is {best['distance']}.")

# %% [markdown]
# The chosen variants are scored again on all training prompts. Beside them stand AtP and IG of
# section 4, and two baselines: the nodes whose activation changes most from clean to patch, and
# random nodes that fire. A rival gets as many nodes as the largest mask of a size.


# %%
def scores_of(variant):
    """The scores of a variant such as "IG to means, |mean|" on all training prompts."""
    method, _, how = variant.partition(", ")
    score = integrated_gradients if method.startswith("IG") else atp
    settings = {"steps": IG_STEPS} if score is integrated_gradients else {}
    found = score(
        spliced,
        train,
        means=means,
        baseline="mean" if method.endswith("means") else "patch",
        aggregate="mean_abs" if how == "mean of |·|" else "mean",
        progress=True,
        **settings,
    )
    return {name: value.abs() for name, value in found.items()} if how == "|mean|" else found


# %%
rivals = {name: scores_of(name) for name in dict.fromkeys(best.values())}
rivals["AtP"] = {name: score.abs() for name, score in scores["AtP"].items()}
rivals["IG"] = {name: score.abs() for name, score in scores["IG"].items()}
rivals["largest change"] = largest_change(spliced, train)
rivals["random"] = random_scores(spliced, train, seed=SEED)

# %%
frontier = Frontier.of(spliced, test)
for (size, seed), circuit in masks.items():
    frontier.judge("learned mask", circuit, evaluation, seed=seed, wanted=size)
for name, score in rivals.items():
    for size, n in of_size.items():
        circuit = SAEMasks.from_scores(score, n, rank="signed")
        frontier.judge(name, circuit, evaluation, wanted=size)

# %%
strong, middle_size = list(dict.fromkeys(best.values())), SIZES[len(SIZES) // 2]
gap_of = {name: frontier.mean(name, middle_size, "gap").value for name in frontier.methods}
closest = min(gap_of, key=lambda name: gap_of[name])
title = f"Closest to the model prompt by prompt, with {middle_size} nodes: {closest}"
said = "Small panels, one per measure, against the number of nodes, a line per method."
figures.show(figures.measures_figure(frontier, title=title), alt=said)
pd.DataFrame(frontier.rows()).drop(columns="sparsity")

# %% [markdown]
# Which differences are real? We take them prompt by prompt, with an interval: noise that two
# circuits share cancels.

# %%
better = {
    measure: frontier.wins("learned mask", measure, strong) for measure in ("gap", "distance")
}
n_better = {
    measure: sum(len(sizes["better"]) for sizes in by_rival.values())
    for measure, by_rival in better.items()
}
n_compared = len(SIZES) * len(strong)
title = (
    f"Of {n_compared} comparisons the mask wins {n_better['gap']} by the gap, "
    f"{n_better['distance']} by |1 − F|"
)
said = "By how much each rival is worse than the mask, at each size, with 95 % intervals."
figures.show(
    figures.paired_figure(frontier, "learned mask", strong, title=title), alt=f"{said} {title}."
)
verdict = summary_sentence(frontier, "learned mask", strong)
print(verdict)

# %% [markdown]
# The answer depends on the measure. |1 − F| asks only for the right *average*: overshooting on some
# prompts can make up for falling short on others. The areas over sizes, CPR and CMD, are of this
# kind too (see notebook 05):

# %%
fires = rivals["random"]
n_firing = sum(int((score > 0).sum()) for score in fires.values())
if len(SIZES) > 1:
    areas = {name: frontier.areas(name, n_firing, log=True) for name in ["learned mask", *strong]}
    rows = {name: {"CPR": str(area.cpr), "CMD": str(area.cmd)} for name, area in areas.items()}
    table = pd.DataFrame(rows).T
else:
    table = "The quick profile has one size, and no areas."
table

# %% [markdown]
# An average near 1 can hide a circuit that ignores the distractor. The spliced model is less sure
# where subject and distractor disagree. Does each circuit follow it?

# %%
by_case = {"F(S)": evaluation.spliced_model}
by_case["learned mask"] = frontier.logit_diffs("learned mask", middle_size).mean(0)
by_case |= {name: frontier.logit_diffs(name, middle_size)[0] for name in strong}
cases = pd.DataFrame({"case": [pair.case for pair in test.pairs], **by_case})
cases.groupby("case").mean().round(2)

# %%
spread = {
    name: cases.groupby("case")[name].mean().max() - cases.groupby("case")[name].mean().min()
    for name in by_case
}
print(f"Between the surest and the least sure case, at {middle_size} nodes, in logits:")
for name, value in spread.items():
    print(f"  {name}: {value:.1f}")

# %% [markdown]
# Look for a spread near 0. Such a circuit is as sure in one case as in the other, so it ignores the
# distractor. Its average can be right all the same.
#
# ### Two losses, three learners
#
# Is it the learner, or its loss? We compare on dev:
#
# - our learner, asked for 25 nodes;
# - the same with the post's loss, which compares the means of a batch;
# - the post's learner with our loss;
# - the post's learner as published;
# - **hard concrete** masks (Louizos et al. 2018), which are random while they are learned and
#   exactly 0 or 1 much of the time.
#
# All take the same number of steps, with three seeds. The post's learner takes a price, λ = 0.1,
# and no size. So read the gap beside the number of nodes.

# %%
post = replace(PUBLISHED, sparsity=0.1)
each_prompt = replace(post, compare="each_prompt")
no_size = {"n_nodes": None}
learners = {
    "ours": ("circuits", {}),
    "ours, loss of the batch's mean": ("batch_mean", {"compare": "batch_mean"}),
    "the post's, loss of each prompt": ("post_each_prompt", {"settings": each_prompt, **no_size}),
    "the post's": ("post", {"settings": post, **no_size}),
    "hard concrete": ("hard_concrete", {"method": "hard_concrete"}),
}

# %%
rows, keys = [], [(25, seed) for seed in SEEDS[:3]]
for name, (file_name, settings) in learners.items():
    if file_name == "circuits" and not QUICK:
        found = masks  # these are learned already
    else:
        found = circuits_of(file_name, partial(ours, **settings), keys)
    for key in keys:
        judged = on_dev.faithfulness(found[key], n_bootstrap=1)
        values = {measure: getattr(judged, measure).value for measure in ("vs_spliced", "gap")}
        rows.append({"learner": name, "nodes": found[key].get_num_latents(), **values})
by_learner = pd.DataFrame(rows).groupby("learner", sort=False)
by_learner.agg(["min", "max"]).round(2)

# %% [markdown]
# Compare rows with one learner and two losses, and rows with one loss and two learners. In the full
# run, the learner matters more than the loss: with other learners than ours, the gap of some seeds
# is larger. (The post's learner also keeps fewer nodes. The quick profile has too few prompts and
# seeds to tell.)
#
# Do two seeds choose the same nodes? The Jaccard index of two circuits is the number of nodes in
# both, divided by the number of nodes in at least one.

# %%
rows, overlap_of = {}, {}
for size in SIZES:
    sets = [set(masks[size, seed].nodes()) for seed in SEEDS]
    pairs = [jaccard(a, b) for a, b in itertools.combinations(sets, 2)]
    overlap_of[size] = sum(pairs) / len(pairs)
    rows[size] = {
        "mean Jaccard": overlap_of[size],
        "lowest": min(pairs),
        "in every seed": len(set.intersection(*sets)),
        "in any seed": len(set.union(*sets)),
    }
pd.DataFrame(rows).T.rename_axis("wanted").round(2)

# %% [markdown]
# ### Exercise 4.6 · attribution, again and again
#
# ⏱ 15 min · difficulty ●●○ · is it the scores that fail, or scoring only once?
#
# A score says what a node does *while all others are there*. So: drop a few nodes, score the rest
# again in what is left, and so on. You write the dropping; the library scores the nodes of a
# circuit with all others ablated (`masks=`).
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
# We start from all nodes that ever fire, and shrink by the same factor each round, down to the
# sizes of the masks. Scoring once and scoring again use the same baseline, the means, and the same
# prompts.

# %%
few = scored[: 16 if QUICK else 48]
inside = {
    "AtP to means": lambda circuit: atp(spliced, few, means=means, masks=circuit, baseline="mean"),
    "IG to means": lambda circuit: integrated_gradients(
        spliced, few, means=means, masks=circuit, baseline="mean", steps=2 if QUICK else 4
    ),
}
start = {name: (score > 0).float() for name, score in fires.items()}
schedule = shrinking_sizes(n_firing, of_size.values(), rounds=3 if QUICK else 12)

# %%
again_name = {"AtP to means": "iterated AtP", "IG to means": "iterated IG"}
iterated = Frontier.of(spliced, test)
for name, score in inside.items():
    kept = start
    first = score(SAEMasks(list(kept), list(kept.values())))
    for n in schedule:
        circuit = SAEMasks(list(kept), list(kept.values()))
        kept = prune(score(circuit), kept, n)
        if n in of_size.values():
            again = SAEMasks(list(kept), list(kept.values()))
            once = SAEMasks.from_scores(first, n)
            iterated.judge(name, once, evaluation, wanted=n)
            iterated.judge(again_name[name], again, evaluation, wanted=n)

# %%
better_again = {
    name: len(iterated.wins(again, "gap", [name])[name]["better"])
    for name, again in again_name.items()
}
helped = [name for name, n in better_again.items() if n == len(of_size)]
title = f"By the gap, scoring again helps {' and '.join(helped) or 'neither'} at every size"
figures.show(
    figures.measures_figure(iterated, ("vs_spliced", "gap"), title=title),
    alt=f"Faithfulness and gap against nodes. {title}.",
)
for name, again in again_name.items():
    print(summary_sentence(iterated, again, [name]).split(" (Beats")[0])

# %% [markdown]
# Iterated scores still ask how far a node moves the logit difference, even where the circuit is
# already above the target. The mask's loss asks another question: is the answer still the same on
# each prompt?
#
# ## 7. The circuit
#
# Rows are the SAEs, columns the positions. The number of the subject has to move from its own
# position to the last one, where the verb is chosen.

# %%
small, large = masks[SIZES[0], SEEDS[0]], masks[SIZES[-1], SEEDS[0]]
used = sorted({position for _, position, _ in small.nodes()})
places = " and ".join(test.position_labels[position] for position in used)
title = f"The smallest circuit has {small.get_num_latents()} nodes, all of them at {places}"
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
# The same prompt, coloured by the number of nodes at each token, for the largest circuit:

# %%
coloured_prompt(test.position_labels, sum((mask > 0).sum(1) for mask in large.masks).tolist())

# %% [markdown]
# The slider chooses a size. (Outside a running notebook you see the smallest circuit.)

# %%
explore_frontier(frontier, [masks[size, SEEDS[0]] for size in SIZES], test)

# %% [markdown]
# The full run saves the frontier with its circuits as JSON. `Frontier.load` reads it back.

# %%
if not QUICK:
    path = frontier.save()
    assert Frontier.load(path) == frontier
    print(f"saved in {path.parent.relative_to(root)}")

# %% [markdown]
# ## 8. A harder task: indirect objects
#
# *When Mary and John went to the store, John gave a drink to* → *Mary*. The model has to notice
# which name is repeated, and move the other one to the end. The patch prompt names three other
# people, so nothing determines the answer.
#
# A latent that stands for *Mary* is of no use for *Laura*. So we report on two sets of new prompts:
# one whose names occur in training, and one with new names. The variant of attribution is again
# chosen on other prompts.
#
# Circuits for IOI have thousands of nodes, and each does little. So we set λ instead of a size, and
# do not hold τ·θ. With the limit of ±9, nodes with such small effects would come and go by chance.
#
# (The quick profile scores on 16 prompts, too few for IOI: run it in full for the comparison.)

# %%
ioi_all = load_task("ioi", lab.tokenizer, "train")
n_ioi, n_report = (16, 12) if QUICK else (256, 100)
ioi_train, ioi_dev = ioi_all[:n_ioi], ioi_all[-2 * n_report : -n_report]
ioi_report = {
    "names seen in training": ioi_all[-n_report:],
    "new names": load_task("ioi", lab.tokenizer, "test", n=n_report),
}
ioi_means = spliced.patch_means(ioi_train.patch)
ioi_judges = {name: Evaluation(spliced, prompts, ioi_means) for name, prompts in ioi_report.items()}
pd.DataFrame(
    {
        name: {
            "F(M)": judge.model.mean().item(),
            "F(S)": judge.spliced_model.mean().item(),
            "F(∅)": judge.empty.mean().item(),
        }
        for name, judge in ioi_judges.items()
    }
).round(3)

# %% [markdown]
# Compare F(S) with F(M). With new names, the SAEs themselves lose part of the answer, before any
# node is left out.

# %%
ioi_prices = {2800: 0.003} if QUICK else {2800: 0.003, 5500: 0.001}  # λ by the size that it gives


def ours_on_ioi(size, seed):
    """Our learner on IOI."""
    settings = {"sparsity": ioi_prices[size], "max_logit": None, **LEARNING}
    return learn_masks(spliced, ioi_train, means=ioi_means, seed=seed, **settings)


# %%
ioi_keys = [(size, seed) for size in ioi_prices for seed in SEEDS[: 1 if QUICK else 2]]
ioi_masks = circuits_of("circuits", ours_on_ioi, ioi_keys, task="ioi")
ioi_size = {
    size: max(one.get_num_latents() for (wanted, _), one in ioi_masks.items() if wanted == size)
    for size in ioi_prices
}
ioi_size

# %%
ioi_variants = variants(
    spliced, ioi_train[: 8 if QUICK else 32], means=ioi_means, steps=1 if QUICK else 5
)
ioi_on_dev = Evaluation(spliced, ioi_dev, ioi_means)
rows = {}
for name, score in ioi_variants.items():
    cut = SAEMasks.from_scores(score, max(ioi_size.values()), rank="signed")
    judged = ioi_on_dev.faithfulness(cut, n_bootstrap=1)
    rows[name] = {measure: getattr(judged, measure).value for measure in ("gap", "distance")}
ioi_chosen = pd.DataFrame(rows).T.sort_values("gap")
ioi_best = ioi_chosen["gap"].idxmin()
ioi_chosen.round(2)

# %% [markdown]
# Two scores are compared with the masks: the best of these by the gap, from the few prompts above,
# and one variant of AtP from all training prompts. (IG needs a backward pass per step, too many for
# all of them.)

# %%
ioi_rivals = {ioi_best: ioi_variants[ioi_best]}
mean_abs = atp(spliced, ioi_train, means=ioi_means, aggregate="mean_abs")
ioi_rivals["AtP to patch, mean of |·|, all prompts"] = mean_abs
ioi_rivals["random"] = random_scores(spliced, ioi_train, seed=SEED)
ioi = {name: Frontier.of(spliced, prompts) for name, prompts in ioi_report.items()}
for name, judge in ioi_judges.items():
    for (size, seed), circuit in ioi_masks.items():
        ioi[name].judge("learned mask", circuit, judge, seed=seed, wanted=ioi_size[size])
    for rival, score in ioi_rivals.items():
        for n in ioi_size.values():
            circuit = SAEMasks.from_scores(score, n, rank="signed")
            ioi[name].judge(rival, circuit, judge, wanted=n)

# %%
on_seen = ioi["names seen in training"]
ioi_wins = on_seen.wins("learned mask", "gap")
beaten = [name for name, sizes in ioi_wins.items() if len(sizes["better"]) == len(ioi_size)]
title = (
    f"On IOI the learned mask beats {len(beaten)} of {len(ioi_wins)} rivals at every size, "
    "by the gap (names seen in training)"
)
figures.show(
    figures.measures_figure(on_seen, ("vs_spliced", "gap"), title=title),
    alt=f"{title}: faithfulness and gap against the number of nodes.",
)
if not QUICK:
    on_seen.save()
for name, one in ioi.items():
    print(f"{name}: {summary_sentence(one, 'learned mask')}")
pd.concat([pd.DataFrame(one.rows()).assign(prompts=name) for name, one in ioi.items()])

# %% [markdown]
# ## 9. Beside the published circuits
#
# The post reports these circuits for Gemma 2 9B, with SAEs after layers 7, 14, 21 and 40. If `LAB`
# is `"gemma-2-9b"` (and a GPU holds it), the next cell learns circuits of the same sizes and puts
# them beside these. `F(C)/F(S)` is the post's measure, without F(∅).

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
def faithfulness_of(one, name="learned mask"):
    """The mean faithfulness of a method's largest circuits on a frontier."""
    return one.mean(name, max(one.by_size(name)), "vs_spliced").value


first_sae = spliced.hook_points[0]
atp_share = round(100 * scores["AtP"][first_sae].sum().item() / falls[first_sae])
ranked = chosen["gap"]
same_nodes = pd.Series(overlap_of).mean()
seen, new = (faithfulness_of(one) for one in ioi.values())

# %%
recap = [
    f"Of {n_compared} comparisons with the best attribution, the learned mask wins "
    f"{n_better['gap']} by the gap and {n_better['distance']} by |1 − F| ({len(test)} prompts).",
    f"A gradient at one point can miss an early node: at the first SAE, AtP's scores add up to "
    f"{atp_share} % of the fall.",
    f"The variant of a score matters: on dev the best of {len(ranked)} has a gap of "
    f"{ranked.min():.2f}, the worst one of {ranked.max():.2f}.",
    f"Two seeds of the learned mask share nodes with a Jaccard index of {same_nodes:.2f} "
    "(the mean over sizes).",
    f"A circuit is partly about its words: the largest for IOI keeps {seen:.2f} of F(S) with names "
    f"seen in training, and {new:.2f} with new names.",
]
for sentence in recap:
    print("-", sentence)
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away.** Attribution scores nodes one by one; a mask is judged as a set while it is
# learned. Which method wins depends on the measure and on the size: say both. Beside the method,
# two choices matter: the variant of a score, and the words that a circuit was found on.
#
# **What it does not show.** All of it is relative to F(S): no circuit contains what the SAEs do not
# represent. It is one model and two tasks. And a faithful circuit need not be complete: something
# else in the model may do the same work.
#
# **Key terms**: activation patching, attribution patching, integrated gradients, mask, continuous
# sparsification, temperature τ, sparsity λ, hard concrete, mean ablation, node, faithfulness,
# distance, gap, frontier, paired difference, Jaccard index, rank correlation, split, seed, IOI.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - [Caples et al. 2025, Scaling Sparse Feature Circuit Finding to Gemma 9B][post]: the post
# - [Marks et al. 2024, Sparse Feature Circuits](https://arxiv.org/abs/2403.19647)
# - [Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks (integrated
#   gradients)](https://arxiv.org/abs/1703.01365)
# - [Syed et al. 2023, Attribution Patching Outperforms Automated Circuit
#   Discovery](https://arxiv.org/abs/2310.10348)
# - [Savarese et al. 2020, Winning the Lottery with Continuous
#   Sparsification](https://arxiv.org/abs/1912.04427)
# - [Louizos et al. 2018, Learning Sparse Neural Networks through L0 Regularization (hard
#   concrete)](https://arxiv.org/abs/1712.01312)
# - [Bhaskar et al. 2024, Finding Transformer Circuits with Edge
#   Pruning](https://arxiv.org/abs/2406.16778)
# - the documentation of [SAELens](https://decoderesearch.github.io/SAELens/) and
#   [transformers](https://huggingface.co/docs/transformers)
#
# **Next**: [notebook 05](05_evaluating_circuits.ipynb) puts such a circuit on trial: is it
# complete, minimal and stable?
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
