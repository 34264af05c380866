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
# # 03 · The SAEMasks hook
#
# A sparse autoencoder writes each token's residual stream as a sum of a few *latents*. To find out
# what one of them does, we switch it off and look at the model's answer. **How is one latent
# switched off, at one position?** And what replaces it? You begin with a hook of three lines and
# improve it step by step, up to `SAEMasks`, the class on which all circuits of this course run.
#
# **At the end you can say**
#
# - how a hook changes one (position, latent) pair, a *node*, and how to prove that it does;
# - what ablation puts in a latent's place, zero or a mean, and what each costs;
# - how the mask of a circuit is read, counted, saved and loaded;
# - how to knock a circuit out without hitting anything else;
# - how two mistakes in published code show in the numbers. The code is that of *Scaling Sparse
#   Feature Circuit Finding to Gemma 9B*, the post whose method this course teaches.
#
# **You need** PyTorch, hooks by name, and notebook 01's idea of an SAE (`encode`, `decode`).
# Notebook 02 explains why we splice SAEs into the residual stream.
#
# **Time**: about 110 minutes: 60 for the seven exercises and 50 to read. **It runs** {times}. The
# first run fetches 93 MB of weights.
#
# **Contents**
#
# 1. One latent
# 2. Version 1: off, everywhere
# 3. Version 2: off, at one position
# 4. Version 3: a mask
# 5. The class: SAEMasks
# 6. At one position, or at all?
# 7. Zero or mean?
# 8. The mean, batch by batch
# 9. What we saw

# %% tags=["setup"]
# setup

# %%
import functools
import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from transformer_lens.hook_points import HookPoint

started = time.perf_counter()

# %%
from course_utils import Evaluation, SAEMasks, SplicedModel, learn_masks, load_lab, load_task
from course_utils.circuits.attribution import largest_change, random_scores
from course_utils.circuits.masks import MaskError
from course_utils.circuits.splice import logit_diff
from course_utils.circuits.statistics import mean_interval
from course_utils.display import figures
from course_utils.display.profile import is_quick
from course_utils.labs.catalog import spec_of
from course_utils.labs.lab import hook_point
from course_utils.teaching.nb03 import check, exercise

# %% [markdown]
# `PROFILE="quick"` runs the same steps with fewer prompts and repeats.

# %% tags=["parameters"]
LAB = "smollm2"
LAYERS = None  # where SAEs are spliced; None: where the lab has its placement
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
LAYERS = list(LAYERS or spec_of(LAB).placement)
QUICK = is_quick(PROFILE)
# prompts for means and for choosing; prompts to judge on
N_TRAIN, N_TEST = (64, 32) if QUICK else (256, 100)
N_HAND = 16 if QUICK else 40  # prompts for hooks by hand, which run the whole model each time
N_DRAWS = 2 if QUICK else 4  # random controls, and shuffled orders of prompts
STEPS = 20 if QUICK else 60  # of learning a mask

# %% [markdown]
# ## 1. One latent
#
# The task is notebook 04's: *The athletes near the car* → **are**, not *is*. The *patch* prompt has
# the subject in the other number. Means and choices come from the training prompts; effects are
# measured on held-out ones.

# %%
lab = load_lab(LAB, layers=LAYERS)
train = load_task("sva_nounpp", lab.tokenizer, "train", n=N_TRAIN).to(lab.device)
test = load_task("sva_nounpp", lab.tokenizer, "dev", n=N_TEST).to(lab.device)
few = test[:N_HAND]
pd.DataFrame([vars(pair) for pair in test.pairs[:3]])

# %% [markdown]
# We begin with one SAE in the middle of the model. What a hook function returns replaces the
# residual stream `x`; if it returns nothing, `x` stays. This one only looks:

# %%
LAYER = LAYERS[len(LAYERS) // 2]
NAME, sae = hook_point(LAYER), lab.saes[LAYER]
seen = []


def look(x, hook):
    seen.append(x)


lab.model.run_with_hooks(few.clean, fwd_hooks=[(NAME, look)])
print(
    f"{NAME}: the hook ran {len(seen)} time, and saw {list(seen[0].shape)}, [batch, seq, d_model]"
)

# %% [markdown]
# A warning. The labs run on TransformerLens's `TransformerBridge`. It skips a hook whose name does
# not exist, without an error. (The older `HookedTransformer` raises a `KeyError`.) If an effect is
# exactly 0, check the name first.

# %%
lab.model.run_with_hooks(few.clean, fwd_hooks=[(NAME.replace("post", "pots"), look)])
print(f"with a misspelt name, no error, and still {len(seen)} call")

# %% [markdown]
# Which latent? We encode the residual stream of clean and patch prompts, and take the latent that
# changes most at the position where the two differ, the subject.


# %%
def residual_stream(tokens):
    """What the hook point sees; the rest of the model is not run."""
    caught = []
    lab.model.run_with_hooks(
        tokens, fwd_hooks=[(NAME, lambda x, hook: caught.append(x))], stop_at_layer=LAYER + 1
    )
    return caught[0]


f_clean, f_patch = (sae.encode(residual_stream(tokens)) for tokens in (train.clean, train.patch))
SUBJECT = int((train.clean != train.patch).any(0).nonzero()[0])
LATENT = int((f_clean - f_patch).abs().mean(0)[SUBJECT].argmax())
print(
    f"after layer {LAYER}, latent {LATENT} changes most at position {SUBJECT}, "
    f"{train.position_labels[SUBJECT]}"
)
print("(In brackets: a word that differs between prompts; the first prompt's is shown.)")

# %%
LABELS = [f"{position} {label}" for position, label in enumerate(test.position_labels)]
cases = [pair.case for pair in train.pairs]
pd.DataFrame(f_clean[:, 1:, LATENT].cpu().numpy(), columns=LABELS[1:]).groupby(cases).mean().round(
    2
)

# %% [markdown]
# The table shows the latent's mean activation by case: the number of the subject, then that of the
# second noun. That noun is called the *distractor*: it can mislead the verb. On SmolLM2 this is a
# latent for plural nouns, distractors as much as subjects.
#
# ## 2. Version 1: off, everywhere
#
# First the *splice*: the stream is encoded and decoded, and the rebuilt stream goes on. BOS is left
# alone: no SAE was trained on it, and after this layer its norm is about a hundred times that of
# the other tokens. The splice alone changes the model, since the SAE does not rebuild everything.
# So we measure a latent's effect against the splice, never against the model.


# %%
def splice(x, hook, *, sae):
    """The residual stream as the SAE rebuilds it; BOS (column 0) as it is."""
    x_hat = sae.decode(sae.encode(x))
    return torch.cat([x[:, :1], x_hat[:, 1:]], dim=1)


def logit_diff_with(hooks, task=few):
    """The logit difference of every clean prompt, with hooks: above 0 where the model prefers the
    right verb.
    """
    logits = lab.model.run_with_hooks(task.clean, fwd_hooks=hooks)
    return logit_diff(logits[:, -1], task)


model_ld = logit_diff_with([])
whole = logit_diff_with([(NAME, functools.partial(splice, sae=sae))])
print(
    f"logit difference: the model {mean_interval(model_ld)}, with the splice "
    f"{mean_interval(whole)} ({len(few)} prompts)"
)

# %% [markdown]
# `SplicedModel` does the same with other code (it starts late, and computes only two logits). The
# two must agree:

# %%
one_sae = SplicedModel(lab, [LAYER])
torch.testing.assert_close(whole, one_sae.logit_diff(few), atol=2e-3, rtol=1e-3)
print(f"largest difference: {(whole - one_sae.logit_diff(few)).abs().max():.1e}")


# %% [markdown]
# Now we switch a latent off, with one new line:


# %%
def switch_off_v1(x, hook, *, sae, latent):
    f = sae.encode(x)
    f[..., latent] = 0  # NEW
    return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)


everywhere = whole - logit_diff_with(
    [(NAME, functools.partial(switch_off_v1, sae=sae, latent=LATENT))]
)


def of_cases(values):
    """The mean over the prompts of each case, with its interval."""
    cases = [pair.case for pair in few.pairs]
    return {
        case: mean_interval(values[[found == case for found in cases]])
        for case in sorted(set(cases))
    }


pd.Series(of_cases(everywhere)).to_frame("logit difference lost")

# %% [markdown]
# The table shows the logit difference lost. (Below 0, the model prefers the right verb more than
# before.)
#
# **Where it falls short.** The latent fires at several positions, and version 1 switches it off at
# all of them. If both nouns are plural, which one mattered? If only the distractor is plural, did
# we help the model by hiding it?
#
# ## 3. Version 2: off, at one position
#
# ### Exercise 3.1 · One latent, one position
# ⏱ 10 min · difficulty ●○○ · the smallest intervention there is: a *node*
#
# Write the hook that sets one latent to 0 at one position, in every prompt of the batch. All other
# latents and positions pass through the SAE as in `splice`; BOS stays as it is.
#
# <details><summary>Hint 1</summary>
#
# It is version 1 with one more index. Latents have the shape `[batch, seq, d_sae]`.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Change the latents after `sae.encode` and before `sae.decode`, and put column 0 of `x` back with
# `torch.cat`.
# </details>

# %%
# exercise: switch_off

# %%
check(switch_off)

# %% [markdown]
# **What you should see**: ✅. The next cells use your hook at every position.
#
# <details><summary>My values look wrong</summary>
#
# - *BOS went through the SAE too*: SAEs are not trained on BOS. Its reconstruction is poor, and
#   every later token attends to it.
# - *Only this position went through the SAE*: then the comparison with the splice mixes two
#   changes.
# - *The SAE's error stays*: `x − f·W_dec` is a good intervention too (notebook 02 calls this
#   keeping the error), but it is not the splice.
# - *You changed x in place*: `x[:, 1:] = …` overwrites a tensor that others may still read, such as
#   the cache.
# </details>

# %% [markdown]
# Where does the latent matter? We switch it off at each position in turn. The control is a random
# latent that fires there: one draw per position, so it gives only a rough idea.

# %%
generator = torch.Generator().manual_seed(SEED)
lost, control = {}, {}
for position, label in enumerate(LABELS[1:], start=1):
    firing = (f_clean[:, position] > 0).float().mean(0).gt(0.1).nonzero()[:, 0]
    random_latent = int(firing[torch.randint(len(firing), (1,), generator=generator)])
    for found, latent in ((lost, LATENT), (control, random_latent)):
        hook = functools.partial(switch_off, sae=sae, latent=latent, position=position)
        found[label] = whole - logit_diff_with([(NAME, hook)])
lost["everywhere"] = everywhere

# %%
effects = {f"latent {LATENT}": lost, "random latent that fires there": control}
effects = {
    of: {label: mean_interval(value) for label, value in values.items()}
    for of, values in effects.items()
}
at_subject = lost[LABELS[SUBJECT]]
top = max(LABELS[1:], key=lambda label: lost[label].mean())
where = "the subject" if top == LABELS[SUBJECT] else top
title = f"Latent {LATENT} matters most at {where}"
axis = "logit difference lost (logits)"
figure = figures.estimates_figure(effects, axis, title, over=f"{len(few)} prompts")
figures.show(
    figure,
    alt=(
        "Logit difference lost when a latent is switched off at each position, with "
        f"95 % intervals. {title}."
    ),
)

# %% [markdown]
# By case, this answers what version 1 left open:

# %%
pd.DataFrame(
    {label: of_cases(lost[label]) for label in (LABELS[SUBJECT], LABELS[-1], "everywhere")}
)

# %% [markdown]
# **Where it falls short.** A circuit has dozens of nodes. Can we add one hook per node? We switch
# off two latents at the subject, first with two hooks, then with one:

# %%
second = int((f_clean - f_patch).abs().mean(0)[SUBJECT].topk(2).indices[1])
two_hooks = [
    (NAME, functools.partial(switch_off, sae=sae, latent=latent, position=SUBJECT))
    for latent in (LATENT, second)
]


def both_at_once(x, hook):
    f = sae.encode(x)
    f[:, SUBJECT, [LATENT, second]] = 0
    return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)


chained, at_once = logit_diff_with(two_hooks), logit_diff_with([(NAME, both_at_once)])
print(
    f"lost with two hooks {mean_interval(whole - chained)}, in one go "
    f"{mean_interval(whole - at_once)}"
)
print(f"apart, on the average prompt: {mean_interval((chained - at_once).abs())}")

# %% [markdown]
# The means are close, but on single prompts the two disagree, and no error is raised. The second
# hook reads what the first has rebuilt, so the reconstruction error comes in twice. A set of nodes
# has to be switched off *between one encode and one decode*.
#
# ## 4. Version 3: a mask
#
# So the hook takes a tensor with one number per node, `[seq, d_sae]`: 1 keeps, 0 switches off. Any
# set of nodes is then one multiplication. With a single 0 it must equal version 2:


# %%
def splice_v3(x, hook, *, sae, mask):
    f = sae.encode(x) * mask  # NEW
    return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)


mask = torch.ones(test.seq_len, sae.cfg.d_sae, device=lab.device)
mask[SUBJECT, LATENT] = 0
v3 = logit_diff_with([(NAME, functools.partial(splice_v3, sae=sae, mask=mask))])
v2 = logit_diff_with(
    [(NAME, functools.partial(switch_off, sae=sae, latent=LATENT, position=SUBJECT))]
)
torch.testing.assert_close(v3, v2)

# %% [markdown]
# **Where it falls short.** What is off becomes 0. But some latents fire in nearly every one of
# these sentences. They carry what all these sentences share: a noun phrase comes first, and a verb
# is due. Zero removes that too:

# %%
share_on = (f_clean[:, 1:] > 0).float().mean(0)
rows = {}
for i, on in enumerate(share_on, start=1):
    mean_f = f_clean[:, i].mean(0)
    rows[LABELS[i]] = {
        "fire in some sentence": int((on > 0).sum()),
        "fire in more than 95 %": int((on > 0.95).sum()),
    }
    rows[LABELS[i]]["their share of all activation"] = (
        f"{(mean_f[on > 0.95].sum() / mean_f.sum()).item():.2f}"
    )
pd.DataFrame(rows)

# %% [markdown]
# We want to remove what makes a sentence singular or plural, and keep what all sentences share. So
# the latent is replaced by its **mean over the patch prompts**, position by position.
#
# ### Exercise 3.2 · Masked latents
# ⏱ 10 min · difficulty ●○○ · the one formula of this notebook, and you find it
#
# You get latents, a mask and an *ablation* (a mean, or 0). Find the formula that does all of this:
#
# - where the mask is 1, the latent stays as it is;
# - where it is 0, the ablation takes its place;
# - in between, the latent moves in a straight line, so that gradient descent can learn the mask
#   (notebook 04);
# - a latent that is silent in this sentence is no exception.
#
# **Decide first**: a latent is silent here, and its mean is 5. What does the next layer read of it
# if the mask is 0? And if you multiply by the mask, as in version 3?
#
# <details><summary>Hint 1</summary>
#
# Fill in a table on paper: f = 8 and f = 0, an ablation of 5, a mask of 1, 0 and ½.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Broadcasting does the rest: `[batch, seq, d_sae]` against `[seq, d_sae]`. No loop, no `if`, no
# `torch.where`.
# </details>

# %%
# exercise: masked

# %%
check(masked)

# %% [markdown]
# **What you should see**: ✅. A mask of ones gives the latents back, a mask of zeros the ablation.
# The silent latent (*Decide first*) is read as 5. With version 3 it would be read as 0. The formula
# has several forms; this one is used from here on:
#
# $$\text{masked} = \text{ablation} + (f - \text{ablation})\cdot m$$
#
# So an ablation can also *switch on* a latent, up to its mean. (We count how many after the next
# exercise.)
#
# <details><summary>My values look wrong</summary>
#
# - *What is taken out becomes 0*: `f * mask` is version 3. The ablation has to come in where the
#   mask is 0.
# - *The ablation is added where the latent is kept, too*: `f * mask + ablation` adds the mean where
#   m = 1.
# - *A threshold has no gradient*: `torch.where(mask > 0.5, …)` is right for a finished mask, but it
#   cannot be learned.
# </details>
#
# ### Exercise 3.3 · Mean latents
# ⏱ 10 min · difficulty ●●○ · what replaces a latent that is off
#
# From the residual stream of the patch prompts, compute every latent's mean over prompts,
# separately for each position.
#
# <details><summary>Hint 1</summary>
#
# Which of the three dimensions `[n, seq, d_sae]` has to disappear?
# </details>
#
# <details><summary>Hint 2</summary>
#
# Encode first, average then. (Is `encode` linear?)
# </details>
#
# <details><summary>Hint 3</summary>
#
# Nothing is spliced at BOS, so its row is 0.
# </details>

# %%
# exercise: mean_latents

# %%
check(mean_latents)

# %% [markdown]
# **What you should see**: ✅, and in the next cell the same numbers as from
# `SplicedModel.patch_means`.
#
# <details><summary>My values look wrong</summary>
#
# - *You averaged over positions too*: then noun and preposition get the same vector, which fits
#   neither.
# - *You encoded the mean residual stream*: ReLU and threshold make `encode(mean(x))` differ from
#   `mean(encode(x))`.
# - *BOS has means too*: harmless while the hook leaves BOS alone, but wrong as soon as somebody
#   sums over positions.
# - *A silent prompt counts, with 0*: the mean over prompts where the latent fires is much larger
#   than the latent usually is.
# </details>

# %%
my_means = mean_latents(residual_stream(train.patch), sae)
torch.testing.assert_close(
    my_means, one_sae.patch_means(train.patch).latents[NAME], atol=1e-3, rtol=1e-3
)
print(
    f"latent {LATENT} at the subject: mean {my_means[SUBJECT, LATENT]:.2f} over {len(train)} "
    "patch prompts"
)
on_here = (f_clean[:, SUBJECT] > 0).float().sum(-1).mean()
switched_on = ((f_clean[:, SUBJECT] == 0) & (my_means[SUBJECT] > 0)).float().sum(-1).mean()
print(
    f"At the subject {on_here:.0f} latents fire in a sentence. With all at their mean, "
    f"{switched_on:.0f} silent ones are above 0."
)


# %% [markdown]
# The next version uses the means. As a first test, remove *everything* at this SAE. Then the model
# cannot know the subject's number. Does it still know that a verb is due?


# %%
def splice_v4(x, hook, *, sae, mask, means):
    f = masked(sae.encode(x), mask, means)  # NEW
    return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)


verbs = torch.cat([train.clean_answers, train.patch_answers]).unique()


def p_verb(logits):
    """How much probability the next token's distribution gives to the task's verbs, of either
    number.
    """
    return logits.float().softmax(-1)[:, verbs].sum(-1)


# %%
none, every = torch.zeros_like(mask), torch.ones_like(mask)
hooks = {
    "every latent kept": functools.partial(splice_v4, sae=sae, mask=every, means=my_means),
    "all at 0": functools.partial(splice_v4, sae=sae, mask=none, means=none),
    "all at their mean": functools.partial(splice_v4, sae=sae, mask=none, means=my_means),
}
rows = {}
for label, hook in hooks.items():
    logits = lab.model.run_with_hooks(few.clean, fwd_hooks=[(NAME, hook)])[:, -1]
    rows[label] = {
        "P(verb)": mean_interval(p_verb(logits)),
        "logit difference": mean_interval(logit_diff(logits, few)),
    }
pd.DataFrame(rows).T

# %% [markdown]
# With means it still expects a verb, about as much as with every latent. With zeros it does not. In
# both cases the interval of the logit difference includes 0: one fixed answer is right for about
# half of the prompts.
#
# **Where it falls short.** This was one SAE. A circuit has several, each with a mask, means and a
# hook point. They have to be kept together, checked, counted, saved and loaded. That needs a class.
#
# ## 5. The class: SAEMasks
#
# `SAEMasks(hook_points, masks)` holds one mask per hook point. A hook calls its `forward` with the
# latents and the name of the hook point.
#
# ### Exercise 3.4 · `SAEMasks.forward`
# ⏱ 10 min · difficulty ●●○ · the heart of the class
#
# Write it as a function whose first argument is `self`; below, it becomes a method of your class.
# Your `masked` does the arithmetic. Without `mean_ablation`, 0 is the ablation.
#
# <details><summary>Hint 1</summary>
#
# `self[sae_hook_point]` is that hook point's mask.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `self.check(sae_hook_point, seq=…, d_sae=…)` raises `MaskError` if the mask has another size than
# the latents. Call it first. What would PyTorch do with latents `[batch, 1, d_sae]` and a mask
# `[6, d_sae]`?
# </details>

# %%
# exercise: forward

# %%
check(forward)


# %%
class MyMasks(SAEMasks):
    """The course's class, with your forward."""

    forward = forward


# %% [markdown]
# **What you should see**: ✅, and below a circuit that runs on your class.
#
# <details><summary>My values look wrong</summary>
#
# - *You took the first mask*: `self.masks[0]` works only if there is one SAE.
# - *Broadcasting made up positions*: one position met a mask for six, and six came out. PyTorch
#   allows that; here it is always a mistake.
# - *Without mean_ablation, 0 is the ablation*: the default is `None`, so callers who forget it get
#   zero ablation.
# </details>
#
# We take a circuit from `data/masks`: of those that notebook 04 learned, the largest below a
# hundred nodes. (A lab without circuits keeps the nodes that change most between clean and patch.)

# %%
spliced = SplicedModel(lab, LAYERS)
means = spliced.patch_means(train.patch)
path = root / "data" / "masks" / train.name / f"circuits_{lab.name}.json"
if path.is_file():
    circuits = [MyMasks.from_json(record) for record in json.loads(path.read_text()).values()]
else:
    circuits = [MyMasks.from_scores(largest_change(spliced, train), n) for n in (15, 40)]
for masks in circuits:
    masks.to(lab.device)
circuit = max(
    (found for found in circuits if found.get_num_latents() < 100), key=SAEMasks.get_num_latents
)

# %% [markdown]
# One hook per SAE, all with the same function. The library, which never calls `run_with_hooks`,
# must agree:


# %%
def masked_splice(x, hook, *, name, masks, means):
    sae = spliced.saes[name]
    f = masks(sae.encode(x), name, means.latents[name])
    return torch.cat([x[:, :1], sae.decode(f)[:, 1:]], dim=1)


hooks = [
    (name, functools.partial(masked_splice, name=name, masks=circuit, means=means))
    for name in spliced.hook_points
]
begin = time.perf_counter()
by_hand = logit_diff_with(hooks)
middle = time.perf_counter()
library = spliced.run(few.clean, masks=circuit, means=means).logit_diff(few)
torch.testing.assert_close(by_hand, library, atol=5e-3, rtol=1e-3)
times = (middle - begin) / (time.perf_counter() - middle)
print(
    f"equal within {(by_hand - library).abs().max():.1e}; by hand it took {times:.1f} times as long"
)

# %% [markdown]
# From here on we use the library. F is the mean logit difference: F(S) with every latent kept, F(C)
# with only the circuit's, F(∅) with none. *Faithfulness* is (F(C) − F(∅)) / (F(S) − F(∅)): 0 with
# no latent, 1 with all. The *gap* measures, prompt by prompt, how far the circuit is from the
# spliced model: 0 is best. (Notebook 05 discusses these measures.)

# %%
evaluation = Evaluation(spliced, test, means)
kept = evaluation.faithfulness(circuit)
print(
    f"{circuit.get_num_latents()} nodes: faithfulness {kept.vs_spliced}, gap {kept.gap}, on "
    f"{kept.n} held-out prompts"
)

# %% [markdown]
# ### What is in a mask
#
# How many nodes are there at each SAE and position?

# %%
circuit.print_mask_statistics()

# %%
by_position = sum((mask > 0).sum(1) for mask in circuit.masks)
busiest = sorted(by_position.argsort(descending=True)[:2].tolist())
there = " and ".join(LABELS[position] for position in busiest)
title = f"{int(by_position[busiest].sum())} of {circuit.get_num_latents()} nodes sit at {there}"
figures.show(
    figures.circuit_figure(circuit, test, title),
    alt=f"A grid of node counts by layer and position. {title}.",
)

# %% [markdown]
# The mask of the SAE with the most nodes before the last SAE: a column for each latent, a row for
# each position that has a node.

# %%
name = max(circuit.hook_points[:-1], key=lambda name: (circuit[name] > 0).sum())
often = ((circuit[name] > 0).sum(0) > 1).sum().item()
on_somewhere = (circuit[name] > 0).any(0).sum().item()
layer = name.split(".")[1]
title = f"After layer {layer}, {often} of {on_somewhere} latents are kept at two positions or more"
with_nodes = (circuit[name] > 0).any(1).nonzero()[:, 0].tolist()
figures.show(
    figures.node_map_figure(circuit[name][with_nodes], [LABELS[p] for p in with_nodes], title),
    alt=f"A map of kept nodes, positions by latents. {title}.",
)

# %% [markdown]
# ### Saving and loading
#
# Masks are saved as safetensors, a format that holds only numbers. (The published code used
# `torch.save`, a pickle: loading one can run any code.) A finished circuit is mostly zeros, so as
# text it is smaller still:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = circuit.save(folder)
    again, size = MyMasks.load(folder), file.stat().st_size
text = json.dumps(circuit.to_json())
assert all(torch.equal(mask.cpu(), again[name]) for name, mask in circuit.items())
print(f"safetensors {size:,} bytes, JSON {len(text):,} bytes")

# %% [markdown]
# A mask `[seq, d_sae]` fits only prompts of its own length. With others it raises an error:

# %%
try:
    circuit(torch.zeros(1, test.seq_len + 3, sae.cfg.d_sae), NAME)
except MaskError as error:
    print(error)

# %% [markdown]
# ## 6. At one position, or at all?
#
# A mask can also be shared: `[d_sae]`, the same at every position. It has fewer numbers and fits
# prompts of any length. But it keeps more:
#
# ### Exercise 3.5 · Counting nodes
# ⏱ 5 min · difficulty ●○○ · so that circuits are compared at equal size
#
# Count the nodes that masks keep in a prompt of `seq` tokens. There is none at BOS.
#
# <details><summary>Hint 1</summary>
#
# A shared mask keeps each of its latents at `seq − 1` positions.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `mask.ndim` tells the two kinds apart. Count what is above 0: the values of a soft mask do not add
# up to nodes.
# </details>

# %%
# exercise: count_nodes

# %%
check(count_nodes)

# %% [markdown]
# **What you should see**: ✅, and then two very different counts for the same latents.
#
# <details><summary>My values look wrong</summary>
#
# - *A shared mask's latents are counted once*: `get_num_latents` does that, and it makes shared
#   masks look small.
# - *BOS is counted too*: `seq − 1` positions are spliced, not `seq`.
# - *You counted latents, not nodes*: a latent at two positions is two nodes.
# </details>

# %%
shared = MyMasks(circuit.hook_points, [mask.amax(0) for mask in circuit.masks])
for label, masks in {"per position": circuit, "shared": shared}.items():
    print(
        f"{label}: get_num_latents() says {masks.get_num_latents()}; nodes in a prompt: "
        f"{count_nodes(masks, test.seq_len)}"
    )

# %% [markdown]
# Is the shared mask more faithful? It keeps more, so the control is the circuit with random firing
# nodes added, up to the same count.

# %%
# 0 for what never fires
chance = [random_scores(spliced, train[:64], seed=seed) for seed in range(N_DRAWS)]
# the circuit comes first
with_circuit = {
    name: torch.where(circuit[name] > 0, 2.0, score) for name, score in chance[0].items()
}
padded = SAEMasks.from_scores(with_circuit, count_nodes(shared, test.seq_len))
rows = {}
for label, masks in (
    ("the circuit", circuit),
    ("its latents at all positions", shared),
    ("the circuit and random nodes", padded),
):
    found = evaluation.faithfulness(masks)
    rows[label] = {
        "nodes": count_nodes(masks, test.seq_len),
        "faithfulness": found.vs_spliced,
        "gap": found.gap,
    }
pd.DataFrame(rows).T

# %% [markdown]
# Compare the gaps. The shared mask keeps several times as many nodes, and that changes its gap
# little. Its faithfulness rises a little, and random nodes do not bring that about. So its extra
# nodes raise the answer, but on single prompts it is no closer to the spliced model's.
#
# ### Knock-outs
#
# What does the model do *without* the circuit? For that we invert the mask.
#
# ### Exercise 3.6 · Knock a circuit out
# ⏱ 5 min · difficulty ●○○ · the complement, and a mistake that is easy to make
#
# Return masks that keep everything but the circuit's nodes. BOS' row stays 0.
#
# <details><summary>Hint 1</summary>
#
# 1 becomes 0 and 0 becomes 1, node by node.
# </details>
#
# <details><summary>Hint 2</summary>
#
# The circuit itself must not change: `1 - mask` is a new tensor. What happens to its row 0?
# </details>

# %%
# exercise: knock_out

# %%
check(knock_out)

# %% [markdown]
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *You knocked its latents out at every position*: this section shows what that does to a result.
# - *Row 0 is on*: nothing is spliced at BOS, so nothing changes, but every count is off by `d_sae`.
# - *This is the circuit itself*: that gives `F(C)`; here you need the complement.
# </details>
#
# The published code switched a circuit's latents off at every position. For a circuit with one mask
# per position, that removes nodes that are not in it. We try it on the whole circuit and on a part:
# its nodes *at the distractor, up to the middle of the model*. How much does reading the distractor
# contribute? The control is as many random firing nodes, alone or at all positions.


# %%
def at_all_positions(masks):
    """What a knock-out hits that ignores positions: the masks' latents, everywhere but at BOS."""
    wide = [mask.amax(0).expand_as(mask).clone() for mask in masks.masks]
    for mask in wide:
        mask[0] = 0
    return SAEMasks(masks.hook_points, wide)


def lost_without(removed):
    """How much of the spliced model's logit difference goes when these nodes are put to their
    means, prompt by prompt.
    """
    return evaluation.spliced_model - evaluation.logit_diff(knock_out(removed))


# %%
def at_the_distractor(masks):
    """The nodes at the last position, in the SAEs up to the middle one."""
    part = [torch.zeros_like(mask) for mask in masks.masks]
    for mask, whole_mask in list(zip(part, masks.masks))[: LAYERS.index(LAYER) + 1]:
        mask[-1] = whole_mask[-1]
    return SAEMasks(masks.hook_points, part)


# %%
removed = {"the circuit": circuit, "its nodes at the distractor": at_the_distractor(circuit)}
effects = {
    "these nodes": {},
    "their latents at all positions": {},
    "random nodes": {},
    "random latents at all positions": {},
}
for label, part in removed.items():
    label += (
        f"\n({count_nodes(part, test.seq_len)} nodes, or "
        f"{count_nodes(at_all_positions(part), test.seq_len)} at all positions)"
    )
    random_parts = [SAEMasks.from_scores(scores, part.get_num_latents()) for scores in chance]
    gone = [lost_without(part), lost_without(at_all_positions(part))]
    for pick in (lambda masks: masks, at_all_positions):
        gone.append(torch.stack([lost_without(pick(masks)) for masks in random_parts]).mean(0))
    for of, value in zip(effects, gone):
        effects[of][label] = mean_interval(value)

# %%
own, wide = (list(effects[of].values())[1].value for of in list(effects)[:2])
blamed = wide / evaluation.spliced_model.mean().item()
title = f"Ignoring positions charges the distractor's nodes with {blamed:.0%} of the answer"
axis = "logit difference lost (logits)"
figure = figures.estimates_figure(effects, axis, title, over=f"{len(test)} prompts")
figures.show(figure, alt=f"Logit difference lost by knock-outs, with 95 % intervals. {title}.")
pd.DataFrame(effects).rename(index=lambda label: label.replace("\n", " "))

# %% [markdown]
# For the whole circuit (left), ignoring positions changes little. Without the circuit's own nodes,
# nearly all of the logit difference is gone, so there is nothing left to lose. For the distractor's
# nodes (right), ignoring positions changes the answer. At their own position they
# contribute little. But most of their latents are also in the circuit at the subject. A knock-out
# that ignores positions removes those nodes too, and counts their effect as the distractor's.
#
# ## 7. Zero or mean?
#
# Every ablation has a *baseline*: the values that replace the latents. We ask three questions, on
# held-out prompts.
#
# **Does it disturb what it should not touch?** We ablate random nodes, drawn from all that fire. A
# fair baseline changes little. We measure the KL divergence: how far the next-token distribution is
# from the spliced model's (in nats; 0 = the same).

# %%
zeros = replace(means, latents={name: torch.zeros_like(f) for name, f in means.latents.items()})
spliced_log_p = spliced.run(evaluation.prefix, means=means).logits.log_softmax(-1)


def kl(masks, baseline):
    """KL divergence of the next-token distribution, from the spliced model's to the masked model's,
    prompt by prompt.
    """
    log_p = spliced.run(
        evaluation.prefix, masks=masks, means=baseline, keep_latents=False
    ).logits.log_softmax(-1)
    return (spliced_log_p.exp() * (spliced_log_p - log_p)).sum(-1)


# %%
effects = {"zero": {}, "mean over patch prompts": {}}
for n in (10, 100, 1000):
    removed = [knock_out(SAEMasks.from_scores(scores, n)) for scores in chance]
    for label, baseline in zip(effects, (zeros, means)):
        effects[label][f"{n:,}"] = mean_interval(
            torch.stack([kl(masks, baseline) for masks in removed]).mean(0)
        )

# %%
zero, mean = (effects[label]["100"] for label in effects)
times_as_far = zero.value / mean.value
title = f"100 random nodes at 0 disturb the prediction {times_as_far:.1f} times as much as at means"
axis = figures.ValueAxis("KL from the spliced model (nats)", log=True)
figure = figures.estimates_figure(
    effects, axis, title, place_label="random nodes ablated", over=f"{len(test)} prompts"
)
figures.show(
    figure,
    alt=(
        "KL divergence against the number of random nodes ablated, for two baselines, "
        f"on a log scale. {title}."
    ),
)

# %% [markdown]
# **What is left with every latent ablated?** The model should know only that a verb is due.

# %%
empty = SAEMasks.full(means.latents, 0.0)
rows = {}
for label, masks, baseline in (
    ("every latent kept", None, means),
    ("all at 0", empty, zeros),
    ("all at their mean", empty, means),
):
    run = spliced.run(evaluation.prefix, masks=masks, means=baseline)
    top = lab.tokenizer.decode([run.logits.mean(0).argmax().item()])
    rows[label] = {
        "P(verb)": mean_interval(p_verb(run.logits)),
        "logit difference": mean_interval(run.logit_diff(test)),
        "likeliest token": repr(top),
    }
pd.DataFrame(rows).T

# %% [markdown]
# At their means, the model expects a verb less than before. The logit difference is near 0: on
# average it prefers neither the right number nor the wrong one. At 0 it expects no verb.
#
# **Does the verdict on a circuit depend on the baseline?** The shipped circuits were learned with
# means. Judged with zeros, they also have to provide what all sentences share, and they fail:

# %%
with_zeros = evaluation.with_means(zeros)
rows = {}
for masks in sorted(circuits, key=SAEMasks.get_num_latents):
    row = rows[f"{masks.get_num_latents()} nodes"] = {}
    for label, judge in (("means", evaluation), ("zeros", with_zeros)):
        found = judge.faithfulness(masks)
        row |= {f"faithfulness, {label}": found.vs_spliced, f"gap, {label}": found.gap}
pd.DataFrame(rows).T

# %% [markdown]
# This is not fair to zero. So we learn two masks, one per baseline, with the same prompts, the same
# seed and the same price of a node (λ; notebook 04). It takes a minute or two.

# %%
on_often = {
    name: (f > 0).float().mean(0) > 0.95 for name, f in spliced.run(train.clean).latents.items()
}
rows, n_learned, n_often = {}, {}, {}
for label, judge in (("mean", evaluation), ("zero", with_zeros)):
    learned = learn_masks(spliced, train, means=judge.means, sparsity=0.03, steps=STEPS, seed=SEED)
    found = judge.faithfulness(learned.masks)
    n_learned[label] = learned.n_nodes
    n_often[label] = sum(int(on_often[h][p, i]) for h, p, i in learned.masks.nodes())
    rows[label] = {
        "nodes": learned.n_nodes,
        "fire in nearly all": n_often[label],
        "faithfulness": found.vs_spliced,
        "gap": found.gap,
        "F(∅)": round(found.f_empty, 2),
    }
more, of_these = (n["zero"] - n["mean"] for n in (n_learned, n_often))
print(
    f"For zero {more} more nodes are kept, and {of_these} more that fire in nearly all sentences."
)
pd.DataFrame(rows).T

# %% [markdown]
# With the same price, the mask for zero keeps many more nodes. Many of the extra ones fire in
# nearly all sentences (in more than 95 % of the training prompts). They supply what a mean supplies
# for free. The line above the table counts them.
#
# Its gap may be smaller all the same. But the two gaps have different denominators, because F(∅)
# differs, and the sizes differ: do not read them as a ranking.
#
# ### Where the mean is not fairer
#
# First, the latent may never have its mean as a value. If it is off in the singular and high in the
# plural, its mean lies in between:

# %%
values = f_patch[:, SUBJECT, LATENT]
mean_value = my_means[SUBJECT, LATENT]
near = ((values - mean_value).abs() < 0.25 * mean_value).float().mean()
off = (values == 0).float().mean()
print(
    f"latent {LATENT} at the subject: mean {mean_value:.2f}; 0 in {off:.0%} of prompts, within "
    f"a quarter of the mean in {near:.0%}"
)

# %% [markdown]
# Second, a mean depends on its prompts. A mean over plural prompts alone would say "plural" even
# with every latent "ablated": an answer that is right for half of the prompts. Our own mean leans a
# little to plural, as its prompts do (the share above the table):

# %%
# the clean prompt is singular
patch_is_plural = torch.tensor([pair.case.startswith("singular") for pair in train.pairs])
towards_plural = torch.tensor(
    [-1.0 if pair.case.startswith("singular") else 1.0 for pair in test.pairs]
)


def plural_bias(baseline):
    """With every latent ablated: logit of the plural verb − logit of the singular one."""
    return towards_plural * evaluation.with_means(baseline).empty


biased = {
    "all patch prompts": means,
    "plural ones only": spliced.patch_means(train.patch[patch_is_plural]),
    "singular ones only": spliced.patch_means(train.patch[~patch_is_plural]),
}
biases = {label: mean_interval(plural_bias(baseline)) for label, baseline in biased.items()}
print(f"{patch_is_plural.float().mean():.0%} of the {len(train)} patch prompts are plural")
pd.Series(biases).to_frame("plural − singular, every latent ablated")

# %% [markdown]
# ## 8. The mean, batch by batch
#
# The latents of a thousand long prompts in a 9B model take gigabytes, so the mean is updated as
# prompts come in. Here the published code has a mistake, in a line that looks right.
#
# ### Exercise 3.7 · The running mean
# ⏱ 10 min · difficulty ●●○ · a mean that never holds more than a batch
#
# Batches come one at a time; the last may be smaller. Return the mean over all prompts.
#
# <details><summary>Hint 1</summary>
#
# Keep two things: the mean so far, and its number of prompts.
# </details>
#
# <details><summary>Hint 2</summary>
#
# A new prompt moves the mean by (prompt − mean) / (prompts seen, this one included). For a batch,
# add up (prompt − old mean), and divide by the prompts seen.
# </details>

# %%
# exercise: running_mean

# %%
check(running_mean)

# %% [markdown]
# **What you should see**: ✅, and the error of your mean going to 0 in the figure below.
#
# <details><summary>My values look wrong</summary>
#
# - *You averaged the batches' means*: right only if all batches have one size; the last one rarely
#   has.
# - *Your count is of batches, but prompts are added*: late prompts weigh too much. This is the
#   published mistake. Read on.
# - *The last batch alone is left*: `(batch − mean).sum(0) / len(batch)` forgets everything before.
# </details>
#
# The published code updates the mean at each prompt, but divides by the number of *batches* begun
# so far:


# %%
def published_mean(prompts, batch_size):
    mean = torch.zeros_like(prompts[0])
    for i, batch in enumerate(prompts.split(batch_size)):
        for prompt in batch:
            # i counts batches, and prompts are what is added
            mean = mean + (prompt - mean) / (i + 1)
    return mean


# %% [markdown]
# In the first batch it divides by 1: each prompt replaces the one before. In the second it divides
# by 2: each new prompt gets half of the weight. How much weight has each prompt in the end? A mean
# is linear, so we apply it to the identity matrix:

# %%
BATCH = 16
n = len(train)
weights = {
    "right": running_mean(torch.eye(n).split(BATCH)),
    "published": published_mean(torch.eye(n), BATCH),
}
effective = {label: (1 / (weight**2).sum()).item() for label, weight in weights.items()}
for label, weight in weights.items():
    last = weight[-BATCH:].sum()
    print(
        f"{label}: weights sum to {weight.sum():.3f}, {last:.0%} of it in the last batch; "
        f"effective number of prompts {effective[label]:.0f}"
    )

# %% [markdown]
# The *effective number* of prompts, 1/Σw², is the number of equally weighted prompts that give a
# mean as precise. How far is each mean from the true one, on the real latents of all SAEs?

# %%
latents = spliced.run(train.patch).latents


def relative_error(found, true):
    """‖found − true‖ / ‖true‖ over all nodes of all SAEs."""
    off = torch.stack([(found[name] - true[name]).norm() for name in true])
    return (off.norm() / torch.stack([mean.norm() for mean in true.values()]).norm()).item()


errors = {"right": [], "published": []}
for m in range(BATCH, n + 1, BATCH):
    right, wrong = {}, {}
    for name, f in latents.items():
        right[name], wrong[name] = running_mean(f[:m].split(BATCH)), published_mean(f[:m], BATCH)
    errors["right"].append(relative_error(right, means.latents))
    errors["published"].append(relative_error(wrong, means.latents))

# %%
generator = torch.Generator().manual_seed(SEED)
sample = torch.randperm(n, generator=generator)[: round(effective["published"])]
fewer = relative_error({name: f[sample].mean(0) for name, f in latents.items()}, means.latents)
published = errors["published"][-1]
title = (
    f"The published mean of {n} prompts is {published:.0%} off, about as far as a mean of "
    f"{len(sample)} ({fewer:.0%})"
)
figure = figures.running_mean_figure(weights, errors, title)
figures.show(
    figure, alt=f"Left: the weight of each prompt. Right: the error after each batch. {title}."
)

# %% [markdown]
# With prompts in random order, the published mean is only *noisy*: it has the precision of the
# effective number above. But task files are often sorted. We judge the circuit with the published
# mean over several shuffled orders, and over one with the plural prompts last.


# %%
def published_means(order):
    return replace(
        means,
        latents={name: published_mean(f[order.to(f.device)], BATCH) for name, f in latents.items()},
    )


orders = {
    f"shuffled, {seed}": torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for seed in range(N_DRAWS)
}
orders["plural last"] = patch_is_plural.int().argsort(stable=True)
baselines = {
    "right mean": means,
    **{label: published_means(order) for label, order in orders.items()},
}
rows = {}
for label, baseline in baselines.items():
    found = evaluation.with_means(baseline).faithfulness(circuit)
    rows[label] = {
        "error": f"{relative_error(baseline.latents, means.latents):.0%}",
        "F(∅): plural − singular": mean_interval(plural_bias(baseline)),
    }
    rows[label] |= {"faithfulness": found.vs_spliced, "gap": found.gap}
pd.DataFrame(rows).T

# %% [markdown]
# Each order gives another faithfulness of the *same* circuit. A shuffled order can look better than
# the right mean or worse, by luck: the noise moves the baseline in a random direction. With the
# plural prompts last, the mean is a plural mean: compare its F(∅) with "plural ones only" in
# section 7.
#
# A mean that forgets raises no error. The test that you have passed catches it: compare with
# `torch.mean` on small batches of unequal size.
#
# ## 9. What we saw

# %%
share_there = at_subject.mean() / whole.mean()
recap = [
    f"A node is one latent at one position: latent {LATENT} at the subject alone carries "
    f"{share_there:.0%} of the logit difference ({len(few)} prompts).",
    f"The baseline decides what an ablation destroys: 100 random nodes move the prediction by "
    f"{zero.value:.3f} nats at 0, and by {mean.value:.3f} at their mean ({len(test)} prompts).",
    f"It also decides the circuit: a learned mask keeps {n_learned['mean']} nodes with the rest at "
    f"its mean, and {n_learned['zero']} with the rest at 0 (seed {SEED}, one price).",
    f"A knock-out has to know positions: the distractor's nodes carry {own:.2f} of the logit "
    f"difference, and a knock-out that ignores positions says {wide:.2f}.",
    f"A running mean with a wrong count raises no error: over {n} prompts the published one is as "
    f"good as a mean of {effective['published']:.0f}, and {published:.0%} off.",
]
for sentence in recap:
    print("-", sentence)
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away**
#
# - A node is a latent at one position. Switch nodes off between one encode and one decode.
# - The result depends on the baseline. The mean over patch prompts keeps what all sentences share:
#   random nodes at their mean disturb the prediction less than at 0, and, at the same price, a
#   learned mask keeps fewer nodes.
# - A mean can be a value that the latent never has, and it leans as its prompts do.
# - A knock-out that ignores positions charges one noun with the other noun's nodes.
# - Check every hook against a second way to compute the same result.
#
# **What it does not show**
#
# - Effects in the model itself: all are measured in the spliced model, on one task.
# - Prompts of other lengths. There positions have no fixed meaning, and only a shared mask fits.
# - Other seeds: each mask was learned with one.
#
# **Key terms**: ablation, baseline, BOS, circuit, d_sae, distractor, effective number, F(C), F(S),
# F(∅), faithfulness, gap, hook, hook point, intervention, KL divergence, knock-out, latent, logit
# difference, mask, mean latents, node, patch prompt, position, residual stream, SAEMasks, seed,
# splice, spliced model, zero ablation.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - The method, and the code with the two mistakes: [Caples, Nainani, McDougall, rrenaud 2025,
#   Scaling Sparse Feature Circuit Finding to Gemma 9B][post]
# - Mean ablation and knock-outs: [Wang et al. 2022, Interpretability in the
#   Wild](https://arxiv.org/abs/2211.00593)
# - Circuits of SAE latents: [Marks et al. 2024, Sparse Feature
#   Circuits](https://arxiv.org/abs/2403.19647)
# - Baselines: [Zhang and Nanda 2023, Towards Best Practices of Activation Patching in Language
#   Models](https://arxiv.org/abs/2309.16042)
# - The libraries: [TransformerLens](https://transformerlensorg.github.io/TransformerLens/) for
#   hooks, [safetensors](https://huggingface.co/docs/safetensors) for masks
#
# **Next**: [04 · Masks versus integrated gradients](04_masks_vs_ig.ipynb): it learns the masks that
# you have been using.
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
