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
# # 02 · Interval placement
#
# To find a circuit of SAE latents, we put SAEs *into* the model. It then reads reconstructions
# instead of its own residual stream. **How many SAEs can a model take, and where should they go?**
# All later notebooks build on the answer.
#
# **At the end you can say**
#
# - how to splice one or several SAEs into a model with hooks, and how to know that each hook ran;
# - what happens to an SAE's error under three policies;
# - what one to ten SAEs cost, in cross-entropy on text and in logit difference on two tasks;
# - how errors grow from layer to layer, and whether they do more harm than noise of the same norm;
# - why *few* SAEs with their errors dropped are the bottlenecks in which a circuit can be read;
# - how much memory SAEs need, from a laptop to Llama 70B with 240 SAEs.
#
# **You need** PyTorch, and to know what an SAE is (notebook 01). **You write** six functions.
# Until you do, the course's versions run in their place, so you can also read on and come back.
#
# **Time**: about 100 minutes: 55 for the six exercises and 45 to read. **It runs** {times}. The
# first run fetches 93 MB of weights.
#
# **Contents**
#
# 1. The splice, by hand
# 2. Three error policies
# 3. What it costs: cross-entropy
# 4. How many?
# 5. Where?
# 6. How the error grows
# 7. Why few SAEs are interpretable bottlenecks
# 8. What it takes: memory
# 9. The splice explorer
# 10. What we saw

# %% tags=["setup"]
# setup

# %%
import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_utils import SAEMasks, SplicedModel, estimate, load_lab, load_task
from course_utils.circuits.reconstruction import error_growth
from course_utils.circuits.statistics import mean_interval, mean_intervals, ratio_interval
from course_utils.display.figures import ValueAxis, estimates_figure, lines_figure, picture, show
from course_utils.display.profile import is_quick
from course_utils.display.sentences import counted, listed
from course_utils.display.widgets import explore_splices
from course_utils.labs.catalog import LABS, spec_of
from course_utils.labs.lab import hook_point
from course_utils.teaching.nb02 import check, exercise

# %%
torch.set_grad_enabled(False)  # nothing is trained here
started = time.perf_counter()

# %% [markdown]
# `PROFILE="quick"` runs the same steps with fewer prompts and texts.

# %% tags=["parameters"]
LAB = "smollm2"
# layers from one SAE to the next; another lab wants others, that lead to layers with an SAE
GAPS = [
    30,
    15,
    9,
    6,
    3,
]
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
COURSE = list(spec_of(LAB).placement)  # where this course has its SAEs
QUICK = is_quick(PROFILE)
GAPS = GAPS[::2] if QUICK else GAPS
N_TEXT = 6 if QUICK else 56  # texts that the cross-entropy is measured on
N_TEST = 10 if QUICK else 100  # prompts of each task, held out
N_TRAIN = 10 if QUICK else 64  # prompts that means are taken over

# %% [markdown]
# ## 1. The splice, by hand
#
# The lab has ten SAEs on the residual stream, after layers 2, 5, 8, … We use some of them at a
# time.

# %%
lab = load_lab(LAB)
lab

# %% [markdown]
# We measure on plain **text**: short pieces cut to BOS and 31 tokens. They were written for this
# notebook, so no SAE was trained on them. The first 24 are for means, the others for measuring.

# %%
lines = (root / "data" / "text" / "short_texts.txt").read_text(encoding="utf-8").splitlines()
rows = [
    [lab.tokenizer.bos_token_id, *lab.tokenizer(line, add_special_tokens=False)["input_ids"]]
    for line in lines
]
rows = torch.tensor([row[:32] for row in rows if len(row) >= 32])
text_fit, text = rows[:24], rows[24 : 24 + N_TEXT]
print(
    f"{len(text)} texts of {text.shape[1]} tokens. The first: {lab.tokenizer.decode(text[0, 1:])} …"
)

# %% [markdown]
# We also measure on two **tasks**, with held-out prompts. In `sva_nounpp` (agreement), the verb has
# to agree with its subject across another noun. In `ioi` (indirect object), the answer is the name
# that occurs once. Each *clean* prompt has a *patch* prompt: the subject in the other number, or
# other names. The measure is the *logit difference* (LD): the logit of the right answer minus that
# of the wrong one. Brackets are 95 % intervals over prompts (section 3).

# %%
tasks = ("sva_nounpp", "ioi")
train = {name: load_task(name, lab.tokenizer, "train", n=N_TRAIN, verbose=False) for name in tasks}
test = {name: load_task(name, lab.tokenizer, "dev", n=N_TEST, verbose=False) for name in tasks}
model_ld = {name: SplicedModel(lab).model_logit_diff(task).cpu() for name, task in test.items()}
for name, task in test.items():
    right, pair = (model_ld[name] > 0).float().mean(), task.pairs[0]
    print(
        f"{name}: {pair.clean_prefix!r} → {pair.clean_answer!r}; LD "
        f"{mean_interval(model_ld[name])}, right on {right:.0%}"
    )
CALLED = {"sva_nounpp": "agreement", "ioi": "indirect object"}  # in figures and sentences

# %% [markdown]
# A **hook** is a function that TransformerLens calls with an activation while the model runs. What
# it returns replaces the activation; if it returns nothing, the activation stays. This hook only
# prints the norm of the residual stream:


# %%
def look(x, hook):
    norm = x.norm(dim=-1)
    print(
        f"{hook.name}: {list(x.shape)}, norm at BOS {norm[:, 0].mean():,.0f}, elsewhere "
        f"{norm[:, 1:].median():.0f} (median)"
    )


hooks = [(hook_point(layer), look) for layer in (2, 11, 20)]
logits = lab.model.run_with_hooks(text[:4], fwd_hooks=hooks)

# %% [markdown]
# (`hook_out` is TransformerLens's own name for the place that we call `hook_resid_post`.)
#
# The norm at **BOS** is many times that of a typical token. BOS attends only to itself, so its
# stream is the same in every text. No SAE of ours was trained on it, and we never change it. After
# layers 2 to 8 some tokens *the* have nearly its norm. In these texts, no other token has it from
# layer 11 on. (Notebook 01's texts had a few at layer 17, and left them out. Here only BOS is.)
#
# ### Exercise 2.1 · The splice
#
# ⏱ 10 min · difficulty ●○○ · the operation that everything else in this course is made of
#
# Write what the hook returns: the residual stream after it has gone through an SAE, with BOS
# unchanged.
#
# <details><summary>Hint 1</summary>
#
# The axes are batch, position, d_model. BOS is position 0 of *every* prompt: `x[:, 0]`.
# </details>
# <details><summary>Hint 2</summary>
#
# Encode and decode `x[:, 1:]` only.
# </details>
# <details><summary>Hint 3</summary>
#
# `torch.cat` along the axis of positions puts BOS back in front. Writing into `x` would change the
# model's own tensor.
# </details>

# %%
# exercise: splice

# %%
check(splice)

# %% [markdown]
# **What you should see:** ✅. The rest of this notebook uses your function.
#
# <details><summary>My values look wrong</summary>
#
# - *Only position 0 of each prompt is wrong:* BOS went through the SAE.
# - *The first prompt is unchanged:* `x[0]` is a prompt; `x[:, 0]` is BOS.
# - *The shape is [batch, seq − 1, d_model]:* BOS was cut off and not put back.
# - *The last axis is 4096:* those are latents. Decode them.
# </details>
#
# Now the model with your splice in it, after one layer or several. Two mistakes cost everybody who
# writes hooks an afternoon. A function made in a loop sees the loop's *last* value when it runs.
# And a hook with a wrong name never runs: TransformerLens's `TransformerBridge`, on which the labs
# run, skips unknown names without an error.
#
# ### Exercise 2.2 · Hooks on several layers
#
# ⏱ 15 min · difficulty ●●● · all experiments of this notebook run through this function
#
# Write `run_with`. Each layer has a change of its own: here a splice with its SAE. Decide how you
# notice that a hook did not run. **Predict first**: which layers would be wrong if all hooks used
# the last change?
#
# <details><summary>Hint 1</summary>
#
# `model.run_with_hooks(tokens, fwd_hooks=[(name, function), …])` returns the logits. One pair per
# layer; the name is `hook_point(layer)`.
# </details>
# <details><summary>Hint 2</summary>
#
# A function that makes the hook for one layer, `def hook_after(layer): …`, keeps that layer. So
# does a default argument, `def hook(x, hook, layer=layer)`.
# </details>
# <details><summary>Hint 3</summary>
#
# Let each hook append its layer to a list. After the run, compare the list with `changes`.
# </details>

# %%
# exercise: run_with

# %%
check(run_with)

# %% [markdown]
# **What you should see:** ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *Every layer got the last change:* the hooks were made in one loop and share its variable.
# - *Nothing changed:* the hook returned nothing, or its name is none of the model's.
# - *A layer that does not exist goes unnoticed:* count the hooks that ran.
# </details>
#
# `SplicedModel`, which the other notebooks use, has different code: it never runs BOS, or the
# layers before the first SAE, twice. Its results must be the same:

# %%
prompts = test["ioi"].clean[:8]
for layers in ([11], lab.sae_layers):
    splices = {layer: functools.partial(splice, sae=lab.saes[layer]) for layer in layers}
    by_hand = run_with(lab.model, splices, prompts)[:, -1]
    theirs = SplicedModel(lab, layers, error="drop").run(prompts).logits
    torch.testing.assert_close(by_hand, theirs, atol=1e-2, rtol=1e-3)
    print(
        f"{counted(len(layers), 'SAE')}: logits up to {theirs.abs().max():.0f}, largest difference "
        f"{(by_hand - theirs).abs().max():.1e}"
    )

# %% [markdown]
# The three likeliest next tokens with no, one and ten SAEs:


# %%
def likeliest(logits):
    """The three likeliest next tokens and their probabilities, as text."""
    top = logits.softmax(-1).topk(3)
    return ", ".join(
        f"{lab.tokenizer.decode([i])!r} {p:.2f}"
        for p, i in zip(top.values.tolist(), top.indices.tolist())
    )


for layers in ([], [11], lab.sae_layers):
    splices = {layer: functools.partial(splice, sae=lab.saes[layer]) for layer in layers}
    logits = run_with(lab.model, splices, prompts[:1])[0, -1]
    print(f"{counted(len(layers), 'SAE')}: … gave a toy to {likeliest(logits)}")

# %% [markdown]
# ## 2. Three error policies
#
# An SAE does not rebuild x exactly. What is missing, $e = x - \mathrm{SAE}(x)$, is its **error**.
# There are three policies:
#
# | policy | what the next layer reads | in words |
# |---|---|---|
# | drop | $\mathrm{SAE}(x)$ | what the latents do not contain is lost |
# | mean | $\mathrm{SAE}(x) + \bar e$ | the average error is put back |
# | keep | $\mathrm{SAE}(x) + e_\text{clean}$ | the *unspliced* model's error on this prompt is put back |
#
# ### Exercise 2.3 · Putting an error back
#
# ⏱ 5 min · difficulty ●○○ · the same line serves "mean" and "keep"
#
# Write the splice with a given error. For "keep" it comes from the clean run, *before* anything is
# changed. Once you ablate a latent upstream, the incoming x has changed, and its error would carry
# that change past the latents.
#
# <details><summary>Hint 1</summary>
#
# `splice(x, sae)` is SAE(x) with BOS as it was. What is still to be added?
# </details>
# <details><summary>Hint 2</summary>
#
# `error` is already 0 at BOS. Broadcasting takes care of `[seq, d_model]`.
# </details>

# %%
# exercise: splice_with_error

# %%
check(splice_with_error)

# %% [markdown]
# **What you should see:** ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *x comes out unchanged:* you computed the error from the incoming x. Then SAE(x) + (x − SAE(x))
#   = x for any SAE, and every change upstream bypasses the latents.
# - *The result is further from x than SAE(x) is:* the sign is wrong. The error is x − SAE(x), and
#   it is added.
# </details>
#
# With every error kept and no latent masked, the result must be the model itself:


# %%
def streams(tokens, layers):
    """The unspliced model's residual stream after some layers."""
    _, cache = lab.model.run_with_cache(
        tokens, names_filter=[hook_point(layer) for layer in layers]
    )
    return {layer: cache[hook_point(layer)] for layer in layers}


def keep_changes(tokens, layers):
    """The changes that splice SAEs after these layers, with each prompt's own error kept."""
    errors = {layer: x - splice(x, lab.saes[layer]) for layer, x in streams(tokens, layers).items()}
    return {
        layer: functools.partial(splice_with_error, sae=lab.saes[layer], error=errors[layer])
        for layer in layers
    }


# %%
kept_logits = run_with(lab.model, keep_changes(prompts, lab.sae_layers), prompts)
model_logits = run_with(lab.model, {}, prompts)
torch.testing.assert_close(kept_logits, model_logits, atol=1e-2, rtol=1e-3)
print(
    "ten SAEs, errors kept: logits differ from the model's own by at most "
    f"{(kept_logits - model_logits).abs().max():.1e}"
)

# %% [markdown]
# ### Exercise 2.4 · The mean error
#
# ⏱ 10 min · difficulty ●●○ · what "mean" puts back; notebook 03 takes the mean latents in the same
# way
#
# Write the average of the SAE's error over prompts, separately for each position.
#
# <details><summary>Hint 1</summary>
#
# Compute each prompt's error first: subtract `splice(x, sae)` from `x`. At BOS that gives 0.
# </details>
# <details><summary>Hint 2</summary>
#
# Which axis counts prompts? Do not average over positions.
# </details>

# %%
# exercise: mean_error

# %%
check(mean_error)

# %% [markdown]
# **What you should see:** ✅, and below the same numbers as from `SplicedModel.patch_means`.
#
# <details><summary>My values look wrong</summary>
#
# - *The shape is [d_model]:* you averaged over positions too. "The" at position 1 and the last noun
#   have little in common.
# - *Only BOS is right:* you took the error of the mean stream. An SAE is not linear, and the model
#   never has the mean of many streams.
# </details>

# %%
patch = train["sva_nounpp"].patch
theirs = SplicedModel(lab, [11], error="mean").patch_means(patch).errors[hook_point(11)]
ours = mean_error(streams(patch, [11])[11], lab.saes[11])
torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)
print(
    f"mean errors over {len(patch)} prompts: largest difference {(ours - theirs).abs().max():.1e}"
)

# %% [markdown]
# How much of the error do the texts share? The table shows the share of its squared norm that lies
# in its mean (per position). If errors of different texts were independent, they would average out
# to 1/n:

# %%
text_mean, share = {}, {}
for layer, x in streams(text_fit, lab.sae_layers).items():
    text_mean[layer] = mean_error(x, lab.saes[layer])
    error = (x - splice(x, lab.saes[layer]))[:, 1:]
    share[layer] = (text_mean[layer][1:].pow(2).sum() / error.pow(2).sum((1, 2)).mean()).item()
print(f"by chance {1 / len(text_fit):.2f}")
pd.Series(share, name="share of the error that is common to the texts").round(2).to_frame().T

# %% [markdown]
# ## 3. What it costs: cross-entropy
#
# A language model is judged by its predictions. How much worse do they get?
#
# ### Exercise 2.5 · Cross-entropy
#
# ⏱ 10 min · difficulty ●●○ · the loss that models are trained on, and that SAEs are judged by
#
# Write the cross-entropy of each text from the logits at all of its positions.
#
# <details><summary>Hint 1</summary>
#
# The logits at position i are for the token at position i + 1: `logits[:, :-1]` belong to
# `tokens[:, 1:]`.
# </details>
# <details><summary>Hint 2</summary>
#
# `log_softmax` over the vocabulary, then `gather` the log-probability of each token that really
# came.
# </details>
# <details><summary>Hint 3</summary>
#
# `gather` wants an index with as many axes as the log-probabilities: `tokens[:, 1:, None]`.
# </details>

# %%
# exercise: cross_entropy

# %%
check(cross_entropy)

# %% [markdown]
# **What you should see:** ✅, and below a cross-entropy between 3 and 5 nats for the model. A blind
# guess has log(49152) ≈ 10.8.
#
# <details><summary>My values look wrong</summary>
#
# - *Above 10:* the logits are shifted the wrong way, or not at all. The model is then scored on
#   repeating its input.
# - *1.44 times too large:* these are bits, not nats.
# - *One number:* the mean over texts comes later, with its interval.
# </details>


# %%
def text_ce(changes, tokens=text):
    """The cross-entropy of each text, with these changes to the model."""
    return torch.cat(
        [cross_entropy(run_with(lab.model, changes, batch), batch) for batch in tokens.split(8)]
    ).cpu()


model_ce = text_ce({})
print(f"the model itself: {mean_interval(model_ce)} nats per token ({len(text)} texts)")

# %% [markdown]
# Brackets are 95 % bootstrap intervals: we draw as many texts again, with replacement, a thousand
# times, and see how far the mean moves. The loss includes the prediction from BOS alone, which no
# splice changes. Without it (as in notebook 01) every cost would be 31/30 as large.
#
# ## 4. How many?
#
# ### Exercise 2.6 · Where to put them
#
# ⏱ 5 min · difficulty ●○○ · "interval placement" gave this notebook its name
#
# Put an SAE every `gap` layers. Count from the end, so that the last one comes after the last
# layer. Then nothing reaches the logits except through latents. (The post whose method this course
# teaches, *Scaling Sparse Feature Circuit Finding to Gemma 9B*, took layers 7, 14, 21 and 40 of 0
# to 41.)
#
# <details><summary>Hint 1</summary>
#
# The last layer is `n_layers − 1`. Walk back in steps of `gap` until there are no layers.
# </details>
# <details><summary>Hint 2</summary>
#
# `range` takes a negative step; mind where it stops. Then reverse the list.
# </details>

# %%
# exercise: place

# %%
check(place)

# %% [markdown]
# **What you should see:** ✅, and below the placements, from one SAE to ten.
#
# <details><summary>My values look wrong</summary>
#
# - *Layer 30:* layers are numbered from 0.
# - *The first SAE is missing, or one is after layer −1:* `range` excludes its stop. Stop at −1 to
#   reach 0.
# </details>

# %%
placements = [place(lab.n_layers, gap) for gap in GAPS]
pd.DataFrame(
    {"gap": GAPS, "SAEs": [len(layers) for layers in placements], "after layers": placements}
)


# %%
def spliced_at(layers, error="drop"):
    """The changes that splice SAEs after these layers, for `run_with` on texts."""
    errors = text_mean if error == "mean" else dict.fromkeys(layers, torch.zeros(1))
    return {
        layer: functools.partial(splice_with_error, sae=lab.saes[layer], error=errors[layer])
        for layer in layers
    }


def task_ld(name, layers, error="drop", n=None):
    """The logit difference of each test prompt with SAEs after these layers."""
    spliced = SplicedModel(lab, layers, error)
    means = spliced.patch_means(train[name].patch) if error == "mean" else None
    return spliced.logit_diff(test[name][:n], means=means).cpu()


# %% [markdown]
# Now each placement, under "drop" and under "mean". (Section 2 showed that "keep" gives the model
# itself.) The means come from texts and prompts that are not used for measuring. This cell and
# those of the next two sections are the slowest.

# %%
added, left = {}, {name: {} for name in tasks}
for error in ("drop", "mean"):
    for layers in tqdm(placements, desc=error):
        added[error, len(layers)] = text_ce(spliced_at(layers, error)) - model_ce
        for name in tasks:
            left[name][error, len(layers)] = task_ld(name, layers, error)

# %%
numbers = [len(layers) for layers in placements]
CE = "nats per token added on text"
KEPT = {name: f"share of LD kept, {called}" for name, called in CALLED.items()}
panels = {
    CE: {
        f"errors: {error}": [mean_interval(added[error, k]) for k in numbers]
        for error in ("drop", "mean")
    }
}
for name in tasks:
    panels[KEPT[name]] = {
        f"errors: {error}": [ratio_interval(left[name][error, k], model_ld[name]) for k in numbers]
        for error in ("drop", "mean")
    }

# %%
kept = {name: ratio_interval(left[name]["drop", numbers[-1]], model_ld[name]) for name in tasks}
title = (
    f"{numbers[-1]} SAEs keep {kept['sva_nounpp'].value:.0%} of the logit difference on agreement, "
    f"{kept['ioi'].value:.0%} on indirect object"
)
OVER = f"{len(text)} texts, {N_TEST} prompts per task"
figure = lines_figure(
    panels,
    numbers,
    "number of SAEs",
    title,
    levels={label: float(label != CE) for label in panels},
    one_scale=list(KEPT.values()),
    over=OVER,
)
show(
    figure,
    alt=(
        "Line plots against the number of SAEs: cross-entropy added, logit difference "
        f"kept on two tasks. {title}."
    ),
)

# %%
table = {
    (label, line): map(str, intervals)
    for label, lines in panels.items()
    for line, intervals in lines.items()
}
pd.DataFrame(table, index=pd.Index(numbers, name="SAEs")).T

# %% [markdown]
# The dotted line is the model itself. Does the mean error help? The table shows its effect on each
# measure. An interval without 0 is unlikely to be chance; but of twenty, about one lacks 0 by
# chance.

# %%
helps = {}
for k in numbers:
    helps[k] = {CE: mean_interval(added["mean", k] - added["drop", k])}
    for name in tasks:
        helps[k][KEPT[name]] = ratio_interval(
            left[name]["mean", k] - left[name]["drop", k], model_ld[name]
        )
pd.DataFrame(
    {k: {label: str(interval) for label, interval in row.items()} for k, row in helps.items()}
).T.rename_axis("mean − drop")

# %% [markdown]
# A share above 1 means that the spliced model has a *larger* logit difference than the model. The
# next cell lists the clear differences (intervals without 0), and the last SAE's part of the cost.

# %%
for label in next(iter(helps.values())):
    higher = listed(k for k in numbers if helps[k][label].low > 0)
    lower = listed(k for k in numbers if helps[k][label].high < 0)
    print(f"{label}. Numbers of SAEs at which the mean raises it: {higher}; lowers it: {lower}")
tail = ratio_interval(added["drop", numbers[0]], added["drop", numbers[-1]])
print(
    f"The SAE after layer {placements[0][0]} alone costs {tail} of what {numbers[-1]} SAEs cost "
    "on text, errors dropped."
)

# %% [markdown]
# Two findings:
#
# - *How many* SAEs a model can take depends on the task. At ten SAEs, agreement keeps nearly all of
#   its logit difference, and IOI loses most of it.
# - The mean error is not free. With many SAEs it raises the loss on text and lowers IOI's logit
#   difference. On agreement it raises the logit difference, with many SAEs above the model's own.
#
# On text there is little to gain: errors of different texts have little in common (section 2). Two
# reasons could explain the harm. The mean is that of the *unspliced* model's errors, but from the
# second SAE on the stream differs. And our SAEs were finetuned with errors dropped, so their
# reconstructions may already make up for them. With one SAE, only the second reason can apply. Here
# the row for one SAE shows no clear harm and later rows do, which points to the first.
#
# ## 5. Where?
#
# One SAE at a time, after each layer that has one. Beside the cost stands the SAE's *relative
# error*, ‖e‖ / ‖x‖, as a mean over tokens.

# %%
alone, relative = {}, {}
for layer in tqdm(lab.sae_layers):
    alone[layer] = text_ce(spliced_at([layer])) - model_ce
    for name in tasks:
        left[name]["alone", layer] = task_ld(name, [layer])
for layer, x in streams(text, lab.sae_layers).items():
    relative[layer] = (
        ((x - splice(x, lab.saes[layer])).norm(dim=-1) / x.norm(dim=-1))[:, 1:].mean(1).cpu()
    )

# %%
panels = {
    "relative error of the SAE, ‖e‖ / ‖x‖": {
        "text": [mean_interval(relative[layer]) for layer in lab.sae_layers]
    },
    CE: {"text": [mean_interval(alone[layer]) for layer in lab.sae_layers]},
    "share of LD kept": {
        CALLED[name]: [
            ratio_interval(left[name]["alone", layer], model_ld[name]) for layer in lab.sae_layers
        ]
        for name in tasks
    },
}

# %%
costliest = max(lab.sae_layers, key=lambda layer: alone[layer].mean())
cheapest = min(lab.sae_layers, key=lambda layer: alone[layer].mean())
ranked = pd.DataFrame(
    {
        "error": {layer: relative[layer].mean().item() for layer in lab.sae_layers},
        "cost": {layer: alone[layer].mean().item() for layer in lab.sae_layers},
    }
)
rank = ranked["error"].corr(ranked["cost"], method="spearman")
title = f"One SAE costs most on text after layer {costliest}, and least after layer {cheapest}"
x_label, levels = "the SAE is after layer", {"share of LD kept": 1.0}
show(
    lines_figure(panels, lab.sae_layers, x_label, title, levels=levels, over=OVER),
    alt=(
        "Three line plots over layers: relative error, cross-entropy added, logit "
        f"difference kept. {title}."
    ),
)

# %% [markdown]
# Which single SAEs clearly lower a task's logit difference?

# %%
for name in tasks:
    intervals = {
        layer: ratio_interval(left[name]["alone", layer], model_ld[name])
        for layer in lab.sae_layers
    }
    costly = [f"{layer} ({i})" for layer, i in intervals.items() if i.high < 1]
    print(f"{CALLED[name]}: layers after which the share kept is clearly below 1: {listed(costly)}")
print(
    f"rank correlation of error and cost on text, over {counted(len(relative), 'SAE')}: {rank:.2f}"
)

# %% [markdown]
# SAEs after late layers cost more. Either the answer is almost ready there and few layers remain to
# repair it, or the late SAEs are worse: their relative errors are larger. This experiment cannot
# tell the two apart.
#
# Next, several SAEs. If their costs were independent, they would add up. The last column is the
# difference from that sum. Below 0, the SAEs do less harm together.

# %%
sae_layers = lab.sae_layers
pairs = [sae_layers[:2], sae_layers[4:6], sae_layers[-2:], [sae_layers[0], sae_layers[-1]]]
together = {tuple(layers): text_ce(spliced_at(layers)) - model_ce for layers in tqdm(pairs)}
together |= {tuple(layers): added["drop", len(layers)] for layers in placements if len(layers) > 1}
compared = {
    str(list(layers)): {
        "together": str(mean_interval(cost)),
        "sum of each alone": str(mean_interval(sum(alone[layer] for layer in layers))),
        "together − sum": str(mean_interval(cost - sum(alone[layer] for layer in layers))),
    }
    for layers, cost in together.items()
}
pd.DataFrame(compared).T

# %% [markdown]
# The same for all placements: text in nats, the tasks as a share of the model's logit difference.
# Each value is the loss together minus the sum of the losses alone. Above 0 the errors *compound*.

# %%
excess = {}
for layers in placements[1:]:
    k = len(layers)
    excess[k] = {
        "text, nats per token": mean_interval(
            added["drop", k] - sum(alone[layer] for layer in layers)
        )
    }
    for name in tasks:
        lost = (
            model_ld[name]
            - left[name]["drop", k]
            - sum(model_ld[name] - left[name]["alone", layer] for layer in layers)
        )
        excess[k][f"{CALLED[name]}, share of LD"] = ratio_interval(lost, model_ld[name])
pd.DataFrame(
    {k: {label: str(interval) for label, interval in row.items()} for k, row in excess.items()}
).T.rename_axis("SAEs")

# %%
for label in excess[numbers[-1]]:
    more = listed(k for k in excess if excess[k][label].low > 0)
    less = listed(k for k in excess if excess[k][label].high < 0)
    print(f"{label}. Numbers of SAEs with clearly more than the sum: {more}; less: {less}")

# %% [markdown]
# In the full run, errors compound on IOI: many SAEs lose more together than the sum. On text, they
# cost less. Where a line names no number of SAEs, these prompts do not settle the
# question.
#
# ## 6. How the error grows
#
# We follow the residual stream x' through the spliced model, and compare it after every layer with
# the unspliced x: $\|x' - x\| / \|x\|$. Is it the *size* of the error that does harm, or its
# *direction*? Two controls add, at each SAE and token, a vector with the norm of the SAE's error:
#
# - in a **random** direction;
# - in the direction of the SAE's error at **another** token: typical of errors, but unrelated to
#   this token.
#
# First by hand, on a few texts: the SAEs' errors, and random directions.


# %%
def error_by_layer(changes, tokens):
    """‖x' − x‖ / ‖x‖ after each layer: the mean over texts, and over positions without BOS."""
    clean, off = streams(tokens, range(lab.n_layers)), {}

    def looked_at(x, layer):
        x = changes[layer](x) if layer in changes else x
        share = (x - clean[layer]).norm(dim=-1) / clean[layer].norm(dim=-1)
        off[layer] = share[:, 1:].mean().item()
        return x

    every = {n: functools.partial(looked_at, layer=n) for n in range(lab.n_layers)}
    run_with(lab.model, every, tokens)
    return torch.tensor([off[layer] for layer in range(lab.n_layers)])


def noise_like_error(x, sae):
    """x, moved as far as the splice would move it, in a random direction."""
    distance = (splice(x, sae) - x).norm(dim=-1, keepdim=True)  # 0 at BOS
    return x + distance * nn.functional.normalize(torch.randn_like(x), dim=-1)


# %%
torch.manual_seed(SEED)
noises = {k: functools.partial(noise_like_error, sae=lab.saes[k]) for k in placements[-1]}
own_error, of_noise = (error_by_layer(c, text[:4]) for c in (spliced_at(placements[-1]), noises))
library = error_growth(SplicedModel(lab, placements[-1]), text[:4], seed=SEED)
torch.testing.assert_close(own_error, library["sae"].relative.mean(0), atol=1e-3, rtol=1e-2)
print(
    f"the SAEs' errors: off by {own_error[-1]:.2f} of the stream's norm; noise: {of_noise[-1]:.2f}"
)

# %% [markdown]
# This noise moves the stream much further, but the comparison is unfair: an SAE rebuilds a noisy
# stream badly, so each later step takes the norm of a *larger* error. The library's
# `error_growth` takes the norms from the run with the SAEs, so that all three disturbances have one
# norm everywhere.

# %%
growth = {
    len(layers): error_growth(SplicedModel(lab, layers), text, seed=SEED)
    for layers in placements[-2:]
}
kinds = {
    "sae": "the SAE's error",
    "other": "another token's error",
    "random": "random direction",
}

# %%
most = growth[numbers[-1]]
panels = {
    f"‖x' − x‖ / ‖x‖ with {k} SAEs": {
        label: mean_intervals(found[kind].relative) for kind, label in kinds.items()
    }
    for k, found in growth.items()
}
end = {kind: mean_interval(most[kind].relative[:, -1]) for kind in kinds}
apart = end["sae"].value / end["random"].value
how_far = (
    "about as far as" if 0.8 < apart < 1.25 else "further than" if apart > 1 else "less far than"
)
title = f"{numbers[-1]} SAEs move the stream {how_far} noise of their errors' norm"

# %%
figure = lines_figure(
    panels,
    range(lab.n_layers),
    "after layer",
    title,
    bands=True,
    marks=placements[-1],
    one_scale=list(panels),
    over=f"{len(text)} texts",
)
show(
    figure,
    alt=(
        "The relative error of the residual stream, layer by layer, for SAE errors "
        f"and two kinds of noise of their norm. {title}."
    ),
)

# %% [markdown]
# Grey lines mark the layers that have an SAE; on the left, only some of them are spliced in.
#
# Does the error grow like a sum of independent errors? Then the squares would add up, if the layers
# neither damped nor amplified them. "Adds here" is what each SAE adds, relative to the norm of the
# clean stream.

# %%
own, after = most["sae"].added, most["sae"].relative[:, placements[-1]]
expected = own.pow(2).cumsum(1).sqrt()
steps = pd.DataFrame(
    {
        "adds to the clean stream": [
            str(mean_interval(relative[layer])) for layer in placements[-1]
        ],
        "adds here": [str(i) for i in mean_intervals(own)],
        "the stream is off by": [str(i) for i in mean_intervals(after)],
        "if squares added up": [str(i) for i in mean_intervals(expected)],
        "off by / if squares added up": [
            str(ratio_interval(after[:, i], expected[:, i])) for i in range(after.shape[1])
        ],
    },
    index=pd.Index(placements[-1], name="SAE after layer"),
)
steps

# %%
last = placements[-1][-1]
print(
    f"After the last SAE the stream is off by {ratio_interval(after[:, -1], expected[:, -1])} "
    "of what adding squares says."
)
print(
    f"That SAE adds {ratio_interval(own[:, -1], relative[last])} times the error that it would "
    "add to the clean stream."
)
previous = torch.cat([torch.zeros(len(after), 1), after[:, :-1]], dim=1)
squares = (previous.pow(2) + own.pow(2)).sqrt()  # what was there before, and what this SAE adds
steps_of = {
    layer: ratio_interval(after[:, i], squares[:, i]) for i, layer in enumerate(placements[-1])
}
damped = listed([layer for layer, i in steps_of.items() if i.high < 1])
grew = listed([layer for layer, i in steps_of.items() if i.low > 1])
print(
    f"Step by step, the error is clearly less than squares say after layers {damped}, and clearly "
    f"more after {grew}."
)

# %% [markdown]
# A step below the sum of squares means that the layers damp the earlier error, or that the new
# error cancels part of it. A step above means that the layers amplify it. If an SAE adds less here
# than to the clean stream, the incoming stream is easier to rebuild, or has a smaller norm.
#
# How do the predictions change? We measure the KL divergence from the model's next-token
# distribution, for single SAEs and for many. A ratio above 1 means that the SAE's error does more
# harm than noise of its norm.

# %%
probed = lab.sae_layers[1::4] if QUICK else lab.sae_layers[::2] + lab.sae_layers[-1:]
single = {
    layer: error_growth(SplicedModel(lab, [layer]), text, seed=SEED) for layer in tqdm(probed)
}

# %%
KL, RATIO = "KL from the model (nats per token)", "KL, SAE's error / control"
panels = {
    KL: {
        label: [mean_interval(single[layer][kind].kl) for layer in probed]
        for kind, label in kinds.items()
    }
}
panels[RATIO] = {
    kinds[control]: [
        ratio_interval(single[layer]["sae"].kl, single[layer][control].kl) for layer in probed
    ]
    for control in ("other", "random")
}

# %%
ratios = panels[RATIO][kinds["random"]]
worse = [layer for layer, i in zip(probed, ratios) if i.low > 1]
after_layers = (
    f"after layer {listed(worse)}" if len(worse) == 1 else f"after layers {listed(worse)}"
)
title = "An SAE's error does clearly more harm than noise of its norm "
title += after_layers if worse else "after no layer"
x_label, over = "the SAE is after layer", f"{len(text)} texts"
show(
    lines_figure(panels, probed, x_label, title, levels={RATIO: 1.0}, over=over),
    alt=(
        "KL divergence over layers for the SAE's error and two controls, and the "
        f"ratio of the first to each control. {title}."
    ),
)

# %%
pd.DataFrame(
    {
        f"{k} SAEs": {
            **{f"KL, {label}": str(mean_interval(found[kind].kl)) for kind, label in kinds.items()},
            "SAE / random": str(ratio_interval(found["sae"].kl, found["random"].kl)),
            "SAE / another token's": str(ratio_interval(found["sae"].kl, found["other"].kl)),
        }
        for k, found in growth.items()
    }
)

# %% [markdown]
# For single SAEs of GPT-2, Gurnee (2024) found 2 to 4.5 times the KL divergence of random noise, at
# every layer. Here the ratios are smaller, and after the last layer the SAE's error does less harm
# than noise in the full run. The comparison is loose: model and texts differ, and our SAEs were
# finetuned on this divergence. With many SAEs, their errors do more harm than either kind of noise
# (table).
#
# ## 7. Why few SAEs are interpretable bottlenecks
#
# Keeping the error costs nothing. Why drop it? A circuit has to show that *these latents do it*.
# That can be checked only if the information has no other way.
#
# A test: we hold **every** latent at its mean, the same for every prompt. Then no latent tells the
# clean prompt from the patch prompt. How much of the model's distinction is left?


# %%
def distinction(task, measure):
    """LD on the clean prompts minus LD on the patch prompts: what a model tells apart."""
    return (measure(task) - measure(replace(task, clean=task.patch))).cpu()


def leak(name, layers, error, n=6 if QUICK else 40):
    """The share of the model's distinction that is left when every latent is at its mean."""
    spliced = SplicedModel(lab, layers, error)
    means = spliced.patch_means(train[name].patch[:n])
    nothing = SAEMasks.full(means.latents, 0.0)
    ablated = distinction(
        test[name][:n], functools.partial(spliced.logit_diff, masks=nothing, means=means)
    )
    return ratio_interval(ablated, distinction(test[name][:n], spliced.model_logit_diff))


# %%
leaks = {
    (CALLED[name], listed(layers)): {e: leak(name, layers, e) for e in ("drop", "mean", "keep")}
    for name in tasks
    for layers in ([11], placements[0], COURSE)
}
pd.DataFrame(
    {
        key: {error: str(i).replace("-0.00", "0.00") for error, i in row.items()}
        for key, row in leaks.items()
    }
).T

# %%
for (name, layers), row in leaks.items():
    assert abs(row["drop"].value) < 1e-3 and abs(row["mean"].value) < 1e-3, (
        "something got around the SAEs"
    )
    print(
        f"{name}, SAEs after {layers}: with errors kept, {row['keep']} of the distinction is left"
    )

# %% [markdown]
# With errors dropped or averaged, nothing gets through, by construction. A circuit has to explain
# the whole distinction.
#
# With errors kept, it depends on the task. On IOI, about a third of the distinction gets past the
# SAE after the last layer, in errors that nobody can read. On agreement, little or nothing does:
# the intervals lie near 0 or include it. (The rows for the last SAE and for all five are equal by
# construction: with the last SAE's latents at their means, only *its* error differs between
# prompts.)
#
# So much for dropping errors. Why *few* SAEs? Because of the number of steps. An SAE on the stream
# reads only what the previous SAE wrote, so k SAEs have k − 1 steps between them. SAEs on the
# outputs of attention and MLP are not bottlenecks: the stream goes around them, and every later SAE
# can read every earlier one. The table counts such pairs for SAEs on stream, attention and MLP of
# every layer. It is an upper bound: with errors dropped, the SAEs on the stream would cut many of
# them off.


# %%
def steps_between(n_layers, n_saes):
    """Pairs of SAEs where one can read the other: with few in the stream, and with three (stream,
    attention, MLP) at every layer.
    """
    every = 3 * n_layers
    return {
        "few SAEs": n_saes,
        "steps between them": n_saes - 1,
        "SAEs everywhere": every,
        "pairs to look at": math.comb(every, 2),
    }


pd.DataFrame(
    {
        "SmolLM2-135M": steps_between(30, 5),
        "Gemma 2 9B": steps_between(42, 4),
        "Llama 70B": steps_between(80, 5),
    }
).T

# %% [markdown]
# How many nodes (latents at a position) lie in a step? As many as are on in a prompt:

# %%
spliced = SplicedModel(lab, COURSE)
on = {
    f"layer {name.split('.')[1]}": (f > 0).sum((1, 2)).float().mean()
    for name, f in spliced.run(test["sva_nounpp"].clean).latents.items()
}
print(
    f"latents that are on in a prompt of {test['sva_nounpp'].seq_len} tokens, mean over "
    f"{len(test['sva_nounpp'])} prompts:"
)
print(listed([f"{n:.0f} after {name}" for name, n in on.items()]))

# %% [markdown]
# Few SAEs have a price: we do not see the `gap` layers between two of them. We learn *what* is
# passed on, but not *how* it was computed.
#
# ## 8. What it takes: memory
#
# An SAE is two matrices of d_model × width (the number of latents, `d_sae`), so $2 \cdot
# d_\text{model} \cdot \text{width} \cdot 2$ bytes in 16 bits. The table loads nothing: `estimate`
# knows the shapes of the labs.


# %%
def sae_gb(n_saes, d_model, width):
    """Gigabytes of SAEs in 16-bit numbers: two matrices each."""
    return n_saes * 2 * d_model * width * 2 / 1e9


def cost_row(parameters, n_layers, d_model, width, few):
    """Memory of the model, of a few SAEs, and of SAEs at three hook points a layer; the work of
    encoding against the model's.
    """
    every, model = 3 * n_layers, parameters * 2 / 1e9
    work = d_model * width / parameters  # of an SAE's encoder, against the model's
    few_gb, every_gb = (sae_gb(n, d_model, width) for n in (few, every))
    return {
        "model GB": model,
        "few SAEs": few,
        "few GB": few_gb,
        "everywhere": every,
        "everywhere GB": every_gb,
        "GPUs of 80 GB": math.ceil((model + every_gb) / 80),
        "encoding few / model": few * work,
        "encoding all / model": every * work,
    }


# %%
costs = {}
for name in LABS:
    needs, config = estimate(name, dtype=torch.bfloat16), spec_of(name).config().get_text_config()
    few = len(spec_of(name).placement)
    width = round(needs.saes * 1e9 / (few * 2 * config.hidden_size * 2))
    costs[name] = cost_row(
        needs.parameters, config.num_hidden_layers, config.hidden_size, width, few
    )
    assert abs(costs[name]["few GB"] - needs.saes) < 1e-6

# %% [markdown]
# Llama 70B is not a lab of the course, so we compute its size here: 80 layers, d_model 8192,
# grouped-query attention with keys and values of width 1024, an MLP of three matrices to and from
# 28,672, and 128,256 tokens, embedded and unembedded. Its SAEs get 8 · d_model = 65,536 latents
# (ours have 7.1 · d_model). "Few" is one SAE every 16 layers.

# %%
d, layers_70b, kv, mlp, vocab = 8192, 80, 1024, 28_672, 128_256
attention = 2 * d * d + 2 * d * kv
llama = layers_70b * (attention + 3 * d * mlp) + 2 * vocab * d
print(
    f"parameters: 80 · ({attention / 1e6:.0f} M + {3 * d * mlp / 1e6:.0f} M) + "
    f"{2 * vocab * d / 1e6:.0f} M = {llama / 1e6:,.0f} M"
)
costs["Llama 70B"] = cost_row(llama, layers_70b, d, 8 * d, few=len(place(layers_70b, 16)))
print(f"one SAE: 2 · {d} · {8 * d} · 2 bytes = {sae_gb(1, d, 8 * d):.2f} GB")
pd.DataFrame.from_dict(costs, orient="index").round(2)

# %%
big = costs["Llama 70B"]
print(
    f"Llama 70B with {big['everywhere']:.0f} SAEs: {big['everywhere GB']:.0f} GB of SAEs beside "
    f"{big['model GB']:.0f} GB of model."
)
print(
    f"With {big['few SAEs']:.0f}: {big['few GB']:.0f} GB, "
    f"{big['few GB'] / big['everywhere GB']:.1%} of it."
)

# %% [markdown]
# The last two columns compare the work of encoding a token with the model's own forward pass.
# Weights are not all of the memory: learning masks keeps the activations of every latent for the
# backward pass, which `estimate` includes for the labs (its row "a mask step").
#
# ## 9. The splice explorer
#
# Choose SAEs and an error policy, and see what is left. (Outside a running notebook you see the
# course's placement, with errors dropped.) It uses few texts and prompts, so the intervals are
# wide.

# %%
few_texts, few_prompts = text[:8], 8 if QUICK else 24
few_ce = text_ce({}, few_texts)


@functools.cache
def draw(layers, error):
    """A picture of what SAEs after these layers cost."""
    changes = keep_changes(few_texts, layers) if error == "keep" else spliced_at(layers, error)
    cost = mean_interval(text_ce(changes, few_texts) - few_ce)
    lds = {
        name: task_ld(name, layers, error, few_prompts) if layers else model_ld[name][:few_prompts]
        for name in tasks
    }
    shares = {
        f"LD, {CALLED[name]}": ratio_interval(ld, model_ld[name][:few_prompts])
        for name, ld in lds.items()
    }
    title = (
        f"{counted(len(layers), 'SAE')}, errors: {error}. Text costs {cost.value:+.2f} nats per "
        f"token [{cost.low:+.2f}, {cost.high:+.2f}]"
    )
    kept = ", ".join(f"{label} {share}" for label, share in shares.items())
    axis = ValueAxis("share kept (1 = the model itself)", reference=1.0)
    figure = estimates_figure(shares, axis, title, bars=True, horizontal=True, highlight=())
    return picture(figure, alt=f"Logit difference kept: {kept}. {title}.")


# %%
explore_splices(lab.sae_layers, draw, start=spec_of(LAB).placement)

# %% [markdown]
# Try this: which pair of SAEs costs IOI most? Is it also the pair that costs agreement most? Take
# out the SAE after the last layer: what does it cost, and what can you no longer see?
#
# ## 10. What we saw

# %%
few, many = numbers[-2], numbers[-1]
kept_of = {
    (name, k): ratio_interval(left[name]["drop", k], model_ld[name])
    for name in tasks
    for k in (few, many)
}
costs_text = {k: mean_interval(added["drop", k]) for k in (few, many)}
against = ratio_interval(most["sae"].kl, most["random"].kl)
through = {called: leaks[called, listed(COURSE)]["keep"] for called in CALLED.values()}

# %%
print(
    f"1. {few} SAEs cost {costs_text[few]} nats per token on text, {many} cost {costs_text[many]}."
)
print(
    f"2. With {few} SAEs, {kept_of['sva_nounpp', few]} of the logit difference is kept on "
    f"agreement, and {kept_of['ioi', few]} on indirect object."
)
print(
    f"3. With {many}, it is {kept_of['sva_nounpp', many]} and {kept_of['ioi', many]}: how many "
    "SAEs a model can take depends on the task."
)
print(
    f"4. After {many} SAEs the stream is off by {mean_interval(after[:, -1])} of its norm. That "
    f"does {against} times the harm (KL) of random directions of that norm."
)
print(
    f"5. With errors kept and every latent at its mean, {through['agreement']} of the distinction "
    f"is left on agreement, and {through['indirect object']} on indirect object."
)
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away**
#
# - Splice few SAEs, the last one after the last layer, and drop their errors. Then nothing gets
#   past them. Section 4 prints what the last SAE costs.
# - Check that enough is left on *your* task: ten SAEs leave agreement almost intact and destroy
#   most of IOI.
# - The errors of many SAEs do more harm than random noise of the same norm.
# - With errors kept, information can get past the latents: on IOI it did, on agreement hardly.
#
# The later notebooks use the course's placement, after layers 5, 11, 17, 23 and 29.
#
# **What it does not show**
#
# - Other models and SAEs. Wider or denser SAEs usually have smaller errors, and another trade-off.
# - Harder texts. Ours are short and were written by a language model.
# - SAEs trained again with another seed. The intervals are over texts and prompts only.
#
# **Key terms**: agreement, BOS, bootstrap interval, bottleneck, cross-entropy, d_model, error
# policy, held-out, hook, interval placement, IOI, KL divergence, latent, logit difference, node,
# patch prompt, position, reconstruction, relative error, residual stream, splice,
# task.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - The method and its placement: [Caples, Nainani, McDougall, rrenaud 2025, Scaling Sparse Feature
#   Circuit Finding to Gemma 9B][post]
# - SAEs at every layer: [Lieberum et al. 2024, Gemma Scope](https://arxiv.org/abs/2408.05147)
# - JumpReLU SAEs: [Rajamanoharan et al. 2024, Jumping Ahead](https://arxiv.org/abs/2407.14435)
# - [Gurnee 2024, SAE reconstruction errors are (empirically) pathological][gurnee]
# - Tokens with a huge norm: [Sun et al. 2024, Massive Activations in Large Language
#   Models](https://arxiv.org/abs/2402.17762)
# - The libraries: [TransformerLens](https://transformerlensorg.github.io/TransformerLens/) for
#   hooks, [SAELens](https://decoderesearch.github.io/SAELens/) for SAEs
#
# **Next**: [03 · The SAEMasks hook](03_saemasks_hook.ipynb): how is one latent switched off, at one
# position?
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
#
# [gurnee]: https://www.lesswrong.com/posts/rZPiuFxESMxCDHe4B
