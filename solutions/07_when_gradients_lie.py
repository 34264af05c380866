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
# # 07 · When gradients lie
#
# Notebook 04 scored latents with gradients, since exact patching costs one forward pass per node.
# Some of those scores were far off. **When does a gradient lie, what repairs it, and what is it
# good for all the same?** You measure the truth for a few hundred attention heads and latents,
# catch gradients at two kinds of lie, and write the repairs of AtP\*. Then you ask what the rest of
# the model does when a head is taken away. At the end you trace a fact, from the answer back to the
# subject, with one backward pass.
#
# **At the end you can say**
#
# - what saturation and cancellation do to attribution patching, and which of the two occurs here;
# - how the QK fix, GradDrop, RelP and integrated gradients differ, and what each costs;
# - how large an effect nobody has patched may still be;
# - how much of a loss a language model repairs, and which part of that is only its final norm;
# - how to read off which latents and heads a fact needs, and how to test what you read.
#
# **You need** notebooks 03 and 04: nodes, patching, AtP, integrated gradients.
#
# **Time**: about 120 minutes: 60 for the six exercises and 60 to read. **It runs** {times}. The
# first run fetches 93 MB of weights.
#
# **Contents**
#
# 1. The truth, once
# 2. Two ways to lie
# 3. The repairs
# 4. Self-repair
# 5. The fast way
# 6. Which should I use?

# %% tags=["setup"]
# setup

# %%
import os
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

started = time.perf_counter()

# %%
from course_utils import Evaluation, SAEMasks, SplicedModel, learn_masks, load_lab, load_task
from course_utils.circuits.atp_star import (
    drop_scores,
    effect_bound,
    head_atp,
    head_ig,
    of_nodes,
    patched_subsets,
)
from course_utils.circuits.attribution import (
    activation_patching,
    atp,
    integrated_gradients,
    largest_change,
    random_scores,
)
from course_utils.circuits.backward import relevance
from course_utils.circuits.heads import Heads, blend, effect_with_layer_held, head_effects
from course_utils.circuits.interventions import Held, holding
from course_utils.circuits.repair import RepairBench, share_of
from course_utils.circuits.saes import encode
from course_utils.circuits.statistics import Interval, mean_interval
from course_utils.circuits.tracing import through_head, trace_heads, trace_latents

# %%
from course_utils.display import figures
from course_utils.display.profile import is_quick
from course_utils.display.sentences import listed
from course_utils.labs.catalog import spec_of
from course_utils.labs.lab import hook_point
from course_utils.prompts.text import load_text
from course_utils.teaching.nb07 import check, exercise

# %% [markdown]
# `PROFILE="quick"` runs the same steps with fewer prompts and nodes.

# %% tags=["parameters"]
LAB = "smollm2"
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
QUICK = is_quick(PROFILE)
N_PROMPTS = 2 if QUICK else 8  # prompt pairs that are patched
N_LATENTS = 40 if QUICK else 300  # latents that are patched, drawn at random
N_BEST = 8 if QUICK else 40  # and the best by each method, so that what matters is among them
N_SUBSETS = 40 if QUICK else 400  # random subsets, for the bound
IG_STEPS = 2 if QUICK else 4
N_TEXT = 16 if QUICK else 64  # pieces of text for section 4
N_HEADS = 6 if QUICK else 24  # heads that are ablated there
STEPS = 12 if QUICK else 60  # of learning a mask
TOP = 5 if QUICK else 20  # how many of the largest true effects a method is to find
lab = load_lab(LAB)
heads = Heads(lab)

# %% [markdown]
# ## 1. The truth, once
#
# Two tasks: agreement and indirect objects. Sections 1 to 3 use dev prompts; only the examples that
# we look at are chosen on them. Section 4 uses running text. Section 5 learns on train and reports
# on test.
#
# **Words for the parts of a head.** At each position a head has a *query*, a *key* and a *value*.
# Softmax(query · keys / √d_head) is its *pattern*: where it looks. The mean of the values with
# these weights, times the matrix W_O, is its *output*: what it writes into the residual stream. So
# queries and keys (QK) decide from where, and values and W_O (OV) decide what. SmolLM2 shares keys:
# three heads read the same ones, so a key is one node for three heads. Before each layer and at the
# end an *RMSNorm* divides the stream by its size (root mean square); W_U makes logits of the
# result.
#
# We patch every head's output at two positions, the subject and the last; every query at the last
# position; and every key at the subject.

# %%
TASKS = {
    "agreement": load_task("sva_nounpp", lab.tokenizer, "dev", n=N_PROMPTS),
    "indirect object": load_task("ioi", lab.tokenizer, "dev", n=N_PROMPTS),
}


def subject_of(task):
    """The last position at which clean and patch prompts differ."""
    return int((task.clean != task.patch).any(0).nonzero()[-1])


def nodes_of(task):
    """Outputs at two positions, queries at the last, keys at the subject."""
    subject, last = subject_of(task), task.seq_len - 1
    outputs = heads.nodes("out", [subject, last])
    nodes = outputs + heads.nodes("query", [last]) + heads.nodes("key", [subject])
    return [node for node in nodes if node.layer % 3 == 2] if QUICK else nodes


NODES = {name: nodes_of(task) for name, task in TASKS.items()}
for name, task in TASKS.items():
    print(f"{name}: {len(NODES[name])} nodes; the subject is at position {subject_of(task)}")
pd.DataFrame({name: vars(task.pairs[0]) for name, task in TASKS.items()}).T

# %% [markdown]
# (The patch prompt of the second task has other names, so that nothing determines its answer; "the
# subject" is then the last name.)
#
# Each node costs one forward pass per prompt, from its layer on. That is the truth that the rest of
# this notebook is judged by. An effect is how far the logit difference falls. As in the AtP\* paper
# we take its size in each prompt and average the sizes: what raises the logit difference in one
# prompt and lowers it in another matters, too.

# %%
truth, truth_seconds = {}, {}
for name, task in TASKS.items():
    begin = time.perf_counter()
    truth[name] = head_effects(heads, task, NODES[name], progress=True)
    truth_seconds[name] = time.perf_counter() - begin
pd.DataFrame(
    {
        name: {
            "nodes": len(effects),
            "largest effect": effects.abs().mean(1).max().item(),
            "median effect": effects.abs().mean(1).median().item(),
            "seconds": truth_seconds[name],
        }
        for name, effects in truth.items()
    }
).round(3)

# %% [markdown]
# ### Exercise 7.1 · How much of the truth is found
# ⏱ 5 min · difficulty ●○○ · a rank correlation over hundreds of nodes that do nothing says little;
# this says whether one would have found what matters
#
# Write `share_found`: of the n nodes with the largest true effects, the share that a method puts
# among its own first n. Decide what "largest" means where effects have signs. (Here all are sizes.
# Your function should not rely on it.)
#
# <details><summary>Hint 1</summary>
#
# `x.topk(n).indices` are the places of the n largest entries.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two sets, and the size of what they share. An effect of −3 is larger than one of 1.
# </details>

# %% tags=["exercise"]
# exercise: share_found

# %%
check(share_found)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# If the share is often 0, you may have compared places one by one: the order among the n does not
# matter. If it is above 1, it is a count.
# </details>
#
# **Predict**: AtP needs one backward pass for all nodes, patching a forward pass for each. Which
# share of the largest outputs will it find? And of the largest queries?

# %%
TITLES = {"out": "outputs", "query": "queries", "key": "keys"}


def judged(estimate, name):
    """How well estimates of all nodes of a task rank those of each kind, if they rank them."""
    rows = {}
    true = truth[name].abs().mean(1)
    for kind, title in TITLES.items():
        of_kind = torch.tensor([node.kind == kind for node in NODES[name]])
        t, e = true[of_kind], estimate[of_kind]
        top = t.topk(min(50, len(t) // 2)).indices
        rows[title] = (
            {
                "rank correlation": spearmanr(t, e).statistic,
                "of the top 50": spearmanr(t[top], e[top]).statistic,
                f"found of {TOP}": share_found(t, e, TOP),
            }
            if e.any()
            else {}
        )  # RelP has no scores of queries and keys
    return rows


# %%
def atp_of(name, **how):
    """Scores of a task's nodes: mean sizes over prompts; and the seconds that they took."""
    begin = time.perf_counter()
    scores = of_nodes(head_atp(heads, TASKS[name], **how), NODES[name])
    return scores, time.perf_counter() - begin


estimates, seconds = {}, {}
for name in TASKS:
    estimates[name, "AtP"], seconds[name, "AtP"] = atp_of(name)
pd.concat({name: pd.DataFrame(judged(estimates[name, "AtP"], name)).T for name in TASKS}).round(2)

# %% [markdown]
# Now latents, in the model with five SAEs spliced in, as in notebook 04. There are thousands of
# nodes that change between clean and patch prompt. We patch a random sample of them; and, so that
# what matters is among them, the best by every method that is judged below.

# %%
spliced = SplicedModel(lab, spec_of(LAB).placement)
agreement = TASKS["agreement"]


def timed(function, *args, **kwargs):
    begin = time.perf_counter()
    return function(*args, **kwargs), time.perf_counter() - begin


sizes = dict(aggregate="mean_abs")
latent_scores = {
    "AtP": timed(atp, spliced, agreement, **sizes),
    "GradDrop": timed(atp, spliced, agreement, grad_drop=True, **sizes),
    "IG": timed(integrated_gradients, spliced, agreement, steps=IG_STEPS, **sizes),
}
with relevance(lab.stack):
    latent_scores["RelP"] = timed(atp, spliced, agreement, **sizes)
change = largest_change(spliced, agreement)

# %%
changed = [(name, *place) for name, v in change.items() for place in v.nonzero().tolist()]
generator = torch.Generator().manual_seed(SEED)
drawn = torch.randperm(len(changed), generator=generator)[:N_LATENTS].tolist()
LATENTS = {changed[i] for i in drawn}
for scores, _ in latent_scores.values():
    best = SAEMasks.from_scores(scores, N_BEST)
    LATENTS |= set(best.nodes())
LATENTS = sorted(LATENTS)
patched, latent_seconds = timed(
    activation_patching, spliced, agreement, LATENTS, progress=True, **sizes
)
latent_truth = torch.tensor([patched[h][p, i] for h, p, i in LATENTS])
print(f"{len(changed)} nodes change; {len(LATENTS)} were patched in {latent_seconds:.0f} s")


# %%
def of_latents(scores):
    """The scores of the patched latents."""
    return torch.tensor([scores[h][p, i] for h, p, i in LATENTS])


worst = (latent_truth - of_latents(latent_scores["AtP"][0])).argsort(descending=True)[:8]
pd.DataFrame(
    {
        "hook point": [LATENTS[i][0] for i in worst],
        "position": [agreement.position_labels[LATENTS[i][1]] for i in worst],
        "latent": [LATENTS[i][2] for i in worst],
        "true effect": latent_truth[worst],
        "AtP": of_latents(latent_scores["AtP"][0])[worst],
    }
).round(2)

# %% [markdown]
# The largest effects of all are among those that AtP misses. They are latents for the number of the
# subject. Patch one of them, and the model prefers the other verb. AtP's estimate is close to 0.
#
# ## 2. Two ways to lie
#
# **Saturation.** A function with a flat end has no slope there, however far it is from the other
# end. The smallest example is a softmax with one winner:

# %%
logits = torch.tensor([8.0, 0.0], requires_grad=True)
values = torch.tensor([1.0, 0.0])
output = (logits.softmax(0) * values).sum()
patched_logits = torch.tensor([0.0, 8.0])
[slope] = torch.autograd.grad(output, logits)
fall = output - (patched_logits.softmax(0) * values).sum()
said = (slope * (logits - patched_logits)).sum()
print(f"true effect {fall:.3f}, AtP {said:.3f}")

# %% [markdown]
# **Cancellation.** A node may act directly, and by way of a later layer against itself. If the two
# slopes cancel at the clean point, the gradient is 0, though the two effects differ in size:

# %%
x = torch.tensor(0.0, requires_grad=True)
direct, indirect = x, -torch.sin(x)
[slope] = torch.autograd.grad(direct + indirect, x)
patched_x = torch.tensor(-2.0)
toy_truth = (direct + indirect) - (patched_x - torch.sin(patched_x))
change_of_x = x - patched_x
print(f"true effect {toy_truth:.3f}, AtP {slope * change_of_x:.3f}")
by_way = -torch.sin(x) + torch.sin(patched_x)
print(f"in truth, direct {change_of_x:.3f}, by way of the other {by_way:.3f}")
print(f"for AtP, {change_of_x:.3f} and {-change_of_x:.3f}: they cancel")

# %% [markdown]
# Which of the two is it with the latents above? We take the one that AtP misses most, and move it
# from its clean to its patch value step by step. The straight line is what the gradient promises.

# %%
CAUGHT = LATENTS[worst[0]]
ALPHAS = torch.linspace(0, 1, 11)


def exact(values):
    """Numbers without an interval, for a figure of intervals."""
    return [Interval(v, v, v) for v in values.tolist()]


def blended(spliced, task, node):
    """The logit difference of each prompt as a node moves from clean (0) to patch (1)."""
    where, position, latent = node
    clean, patch = spliced.run(task.clean), spliced.run(task.patch)
    start, end = (run.latents[where][:, position, latent] for run in (clean, patch))
    found = []
    for alpha in ALPHAS:
        held = Held(where, position, latent, torch.lerp(start, end, alpha))
        run = spliced.run(clean.prefixes[where], latents=holding(spliced, [held]))
        found.append(run.logit_diff(task))
    return torch.stack(found)


# %%
with torch.no_grad():
    moved = blended(spliced, agreement, CAUGHT)
where, position, latent = CAUGHT
own_layer = next(layer for layer in spliced.layers if hook_point(layer) == where)
said = atp(spliced, agreement)[where][position, latent].item()
figures.show(
    figures.lines_figure(
        {
            "logit difference": {
                "patched in truth": [mean_interval(row) for row in moved],
                "AtP's straight line": exact(moved[0].mean() - ALPHAS * said),
            }
        },
        ALPHAS.tolist(),
        "share of the way from clean to patch value",
        "AtP's straight line misses the fall, which comes later on the way",
        over=f"{len(agreement)} prompts; latent {latent} after layer {own_layer}",
    ),
    alt="The logit difference as one latent goes from its clean to its patch value.",
)

# %% [markdown]
# That is saturation, though there is no softmax in it: near the clean value the line is flat. Where
# does it come from? SAEs have thresholds, and there are SAEs behind this latent. As long as those
# latents stay on (or off), nothing moves. So we take SAEs out, one by one. In the last row nothing
# is spliced: the latent's direction is patched in the model itself, with the SAE's error kept.


# %%
def true_and_said(layers, error="drop"):
    """The true effect of the latent and AtP's estimate, with SAEs at these layers."""
    model = SplicedModel(lab, layers, error=error)
    true, said = (
        scores[where][position, latent].item()
        for scores in (
            activation_patching(model, agreement, [CAUGHT], **sizes),
            atp(model, agreement, **sizes),
        )
    )
    return {"true effect": true, "AtP": said, "AtP / true": said / true}


later = [layer for layer in spliced.layers if layer > own_layer]
thresholds = pd.DataFrame(
    {
        f"{n} SAEs behind it": true_and_said([own_layer, *later[len(later) - n :]])
        for n in range(len(later), -1, -1)
    }
    | {"the model itself": true_and_said([own_layer], error="keep")}
).T
thresholds.round(2)

# %%
spliced_share, model_share = thresholds["AtP / true"].iloc[[0, -1]]
print(
    f"In the model itself AtP sees {model_share:.0%} of the effect, with all SAEs "
    f"{spliced_share:.0%}. The true effect hardly changes."
)

# %% [markdown]
# So there are two parts. The model itself saturates: from one number to the other is a long way,
# and not a straight one. And every SAE behind the latent adds thresholds, which flatten what is
# left of the slope. This is why notebook 04 uses integrated gradients, and why a mask is learned
# with gradients at many points.
#
# The softmax of attention bends, too. For each kind of node, this is the one that AtP
# underestimates most:


# %%
def gap_of(name, method):
    """How far each node's estimate is below its true effect."""
    return truth[name].abs().mean(1) - estimates[name, method]


def most_missed(name, kinds, method="AtP"):
    """The node of these kinds that is underestimated most."""
    gaps = gap_of(name, method)
    of_kinds = torch.tensor([node.kind in kinds for node in NODES[name]])
    return int(gaps.masked_fill(~of_kinds, -1).argmax())


rows = []
for name in TASKS:
    for kind, title in TITLES.items():
        i = most_missed(name, [kind])
        node = NODES[name][i]
        true, said = truth[name][i].abs().mean().item(), estimates[name, "AtP"][i].item()
        rows.append([name, title, node.layer, node.head, node.position, true, said])
columns = ["task", "kind", "layer", "head (or set of keys)", "position", "true effect", "AtP"]
pd.DataFrame(rows, columns=columns).round(2)

# %% [markdown]
# We look at one query or key, on the one prompt where AtP underestimates it most. Where the head
# looks, and the logit difference, as the patch is blended in:

# %%
SEEN = max(TASKS, key=lambda name: gap_of(name, "AtP")[most_missed(name, ["query", "key"])])
index = most_missed(SEEN, ["query", "key"])
NODE = NODES[SEEN][index]
scores = head_atp(heads, TASKS[SEEN])[NODE.kind][:, NODE.layer, NODE.head, NODE.position]
prompt = int((truth[SEEN][index].abs() - scores.abs()).argmax())
one = TASKS[SEEN][[prompt]]
patterns, lds = (values[:, 0] for values in blend(heads, one, NODE, ALPHAS))
_, close = blend(heads, one, NODE, torch.tensor([0.0, 0.01]))
slope = (close[1, 0] - close[0, 0]) / 0.01
moves = (patterns[0] - patterns[-1]).abs()  # [heads, positions]
looker, looked_at = divmod(int(moves.argmax()), moves.shape[1])
seen_share = (slope / (lds[-1] - lds[0])).item()

# %%
figures.show(
    figures.lines_figure(
        {
            f"attention to {one.position_labels[looked_at]}": {
                f"head {looker} of layer {NODE.layer}": exact(patterns[:, looker, looked_at])
            },
            "logit difference": {
                "patched in truth": exact(lds),
                "AtP's straight line": exact(lds[0] + slope * ALPHAS),
            },
        },
        ALPHAS.tolist(),
        f"share of the {NODE.kind}'s way to its patch value",
        f"On this prompt, AtP sees {seen_share:.0%} of the fall: the way is a curve",
    ),
    alt="Attention and logit difference as one key or query goes from clean to patch.",
)

# %% [markdown]
# **Cancellation** is looked for with one backward pass per layer, in which that layer's own
# gradient is dropped and its skip connection stays. (This is GradDrop; you write its core below.)
# For a head's output, how far does the score rise when one later layer is dropped? We take the node
# where it rises most, and check it by cutting that path in truth: the layer then writes what it
# wrote on the clean prompt.

# %%
outputs = [node for node in NODES["agreement"] if node.kind == "out"]
passes = drop_scores(heads, agreement, outputs).mean(-1)  # [layers, nodes], means over prompts
usual = head_atp(heads, agreement)["out"]
usual = torch.stack([usual[:, n.layer, n.head, n.position].mean() for n in outputs])
rise = passes.abs() - usual.abs()
hider, hidden = divmod(int(rise.argmax()), len(outputs))
HIDDEN = outputs[hidden]

# %%
i = NODES["agreement"].index(HIDDEN)
held_effect = effect_with_layer_held(heads, agreement, HIDDEN, hider).mean().item()
cut = pd.DataFrame(
    {
        "true effect": [truth["agreement"][i].mean().item(), held_effect],
        "from gradients": [usual[hidden].item(), passes[hider, hidden].item()],
    },
    index=["all paths", f"layer {hider} held (dropped)"],
)
cut.loc["grows by"] = cut.iloc[1] / cut.iloc[0] - 1
cut.round(2)

# %% [markdown]
# (The table is of mean signed effects.) That layer works against the head: with the layer held, the
# effect is larger. Compare the columns: the gradient sees this, too, in whole or in part. Whether
# cancellation *hides* a node is the question of section 3: does GradDrop find what AtP misses?
#
# ## 3. The repairs
#
# ### Exercise 7.2 · The QK fix
# ⏱ 10 min · difficulty ●●○ · a softmax costs next to nothing: why approximate it?
#
# A query acts through its pattern alone. Write `qk_fixed`: the first-order effect of patching a
# query, with the softmax computed and not approximated. Decide where the straight line begins.
#
# <details><summary>Hint 1</summary>
#
# Everything up to the pattern can be computed: the pattern with the clean query, and the pattern
# with the patched one.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `keys @ query` needs a batch: `torch.einsum("bsd,bd->bs", keys, query)`; then the scale 1/√d_head,
# and the softmax over keys.
# </details>
#
# <details><summary>Hint 3</summary>
#
# What comes after the pattern is a straight line: Σ gradient · (clean pattern − patched pattern).
# </details>

# %% tags=["exercise"]
# exercise: qk_fixed

# %%
check(qk_fixed)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# If they equal AtP's, you took the difference of the logits, not of the patterns. The softmax of a
# difference is not the difference of two softmaxes.
# </details>
#
# Your function on a head of the model, against the library, which does this for all queries and
# keys together:

# %%
QUERY = max(
    (node for node in NODES["indirect object"] if node.kind == "query"),
    key=lambda node: truth["indirect object"][NODES["indirect object"].index(node)].abs().mean(),
)
ioi = TASKS["indirect object"]
fixed = head_atp(heads, ioi, qk_fix=True)
clean, other = heads.run(ioi.clean, track=True), heads.run(ioi.patch)
seen, row = clean.attention[QUERY.layer], heads.row(QUERY)
[d_pattern] = torch.autograd.grad(clean.logit_diff(ioi).sum(), seen.pattern)
by_hand = qk_fixed(
    seen.query[:, QUERY.head, row].detach(),
    other.attention[QUERY.layer].query[:, QUERY.head, row],
    seen.key[:, QUERY.head // heads.group].detach(),
    d_pattern[:, QUERY.head, row],
)
library = fixed["query"][:, QUERY.layer, QUERY.head, QUERY.position]
torch.testing.assert_close(by_hand, library, atol=1e-4, rtol=1e-3)
print(f"layer {QUERY.layer}, head {QUERY.head}: both say {library.mean():.3f} on average")

# %% [markdown]
# ### Exercise 7.3 · GradDrop
# ⏱ 15 min · difficulty ●●● · the only repair for effects that cancel
#
# Write `grad_dropped` for a small residual network, h ← h + block(h): one forward pass as always,
# and a backward pass for each block in which that block's gradient is dropped. Decide what to
# detach.
#
# <details><summary>Hint 1</summary>
#
# `tensor.detach()` has the same value and no way back.
# </details>
#
# <details><summary>Hint 2</summary>
#
# In the pass that drops block k, write h + block(h).detach() for block k, and h + block(h) for the
# others. Then the gradient of `readout(h)` at the start.
# </details>
#
# <details><summary>Hint 3</summary>
#
# `start = x.detach().clone().requires_grad_()`, once per pass; the score is Σ gradient · change.
# </details>

# %% tags=["exercise"]
# exercise: grad_dropped

# %%
check(grad_dropped)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# If all passes are equal, nothing was cut. If a pass is 0, the skip connection went, too. AtP\*
# averages the sizes of the passes; that comes after this function.
# </details>
#
# On the second toy above, with the direct path as the skip connection and −sin as the block:

# %%
toy_x, toy_change = torch.zeros(1), torch.tensor([2.0])
toy_blocks = [lambda h: -torch.sin(h), lambda h: torch.zeros_like(h)]
toy_passes = grad_dropped(toy_x, toy_blocks, torch.sum, toy_change)
print(f"with the block of sin dropped {toy_passes[0].item():.2f}, in truth {toy_truth:.2f}")
print(f"with the other dropped, which does nothing: {toy_passes[1].item():.2f}, as AtP")
print("GradDrop makes a hidden node visible. It does not measure it.")

# %% [markdown]
# Both repairs together are **AtP\***. Two rivals: **RelP** replaces the rules of the backward pass
# (norms and attention patterns are constants, a gate hands half of the gradient to each factor) at
# the cost of AtP; it has nothing to say of queries and keys. **Integrated gradients** (IG) takes
# the gradient at several points on the way, one layer at a time.

# %%
METHODS = {
    "QK fix": dict(qk_fix=True),
    "GradDrop": dict(grad_drop=True),
    "AtP*": dict(qk_fix=True, grad_drop=True),
    "RelP": dict(rule="relp"),
}
for name in TASKS:
    for method, how in METHODS.items():
        estimates[name, method], seconds[name, method] = atp_of(name, **how)

# %%
for name, task in TASKS.items():
    begin = time.perf_counter()
    scores = {
        kind: head_ig(heads, task, kind, steps=IG_STEPS, layers={n.layer for n in NODES[name]})
        for kind in TITLES
    }
    estimates[name, "IG"] = of_nodes(scores, NODES[name])
    seconds[name, "IG"] = time.perf_counter() - begin

# %%
ALL = ["AtP", *METHODS, "IG"]
found = {}
for name in TASKS:
    for method in ALL:
        for kind, row in judged(estimates[name, method], name).items():
            found.setdefault((name, kind), {})[method] = row.get(f"found of {TOP}")
quality = pd.DataFrame(found).astype(float).loc[ALL]
quality.round(2)

# %% [markdown]
# The table shows the share of the largest true effects that each method finds, by task and kind of
# node. (RelP has no scores of queries and keys.) And for latents:

# %%
latent_quality = pd.DataFrame(
    {
        method: {
            "rank correlation": spearmanr(latent_truth, of_latents(scores)).statistic,
            f"found of {TOP}": share_found(latent_truth, of_latents(scores), TOP),
            "seconds": took,
        }
        for method, (scores, took) in latent_scores.items()
    }
).T
latent_quality.round(2)

# %%
costs = {
    method: (
        sum(seconds[name, method] for name in TASKS),
        float(quality.loc[method].mean()),
    )
    for method in ALL
}
costs["patching"] = (sum(truth_seconds.values()), 1.0)
best_share = max(costs[method][1] for method in ALL)
ties = [method for method in ALL if costs[method][1] > best_share - 0.01]  # one node or so
best = min(ties, key=lambda method: costs[method][0])
title = f"{best} finds the most nodes of heads"
if len(ties) > 1:
    title = f"{listed(ties)} find the most nodes of heads; {best} is the cheapest of them"
figures.show(
    figures.tradeoff_figure(
        costs,
        "seconds for both tasks",
        f"share of the true top {TOP} found",
        title,
        caption="Mean over two tasks and the kinds of nodes that a method scores "
        f"(n = {N_PROMPTS}).",
    ),
    alt="Methods by cost and by the share of the true top that they find.",
)

# %%
gained = (quality.loc["QK fix"] - quality.loc["AtP"]).mean()
dropped_gain = (quality.loc["GradDrop"] - quality.loc["AtP"]).mean()
times_dearer = costs["GradDrop"][0] / costs["AtP"][0]
found_of = latent_quality[f"found of {TOP}"]
print(
    f"QK fix against AtP: {gained:+.0%} found. GradDrop: {dropped_gain:+.0%}, at "
    f"{times_dearer:.0f} times the cost."
)
outputs_found = quality.xs("outputs", axis=1, level=1).mean(1)
print(
    f"Of outputs alone, RelP finds {outputs_found['RelP']:.0%} and AtP {outputs_found['AtP']:.0%}."
)
print(f"Of latents, AtP finds {found_of['AtP']:.0%} and IG {found_of['IG']:.0%}.")

# %% [markdown]
# **How much may have been missed?** Suppose you patch only the nodes that AtP\* ranks first. What
# of the others? AtP\*'s diagnostic patches random halves of them, and asks with a t-test how large
# the effect of any single one can be. It needs no gradient, so no gradient can fool it.

# %%
name = "agreement"
order = estimates[name, "AtP*"].argsort(descending=True)
rest = [NODES[name][i] for i in order[TOP:].tolist()]
lds, halves = patched_subsets(heads, agreement, rest, subsets=N_SUBSETS, seed=SEED, progress=True)
bound = effect_bound(lds, halves)
largest_left = truth[name].mean(1).abs()[order[TOP:]].max().item()
print(f"{len(rest)} nodes were left out; the largest of their true effects is {largest_left:.3f}")
print(f"the bound from {N_SUBSETS} subsets: {bound.largest:.3f} (95 %, all nodes together)")

# %% [markdown]
# No node that we left out has an effect above the bound. If it is too large for you, patch more
# nodes, or draw more subsets: it shrinks with the square root of their number. Two limits: it is of
# the *signed* mean over prompts, and a node that helps one prompt and harms another can be larger
# than that; and it is an effect in the company of a random half of the others.
#
# ## 4. Self-repair
#
# An ablation measures what the rest of the model cannot do without a part. It may well do something
# about it: *self-repair*. Take away one head, everywhere in a text, and follow the logit of the
# right next token. Its *direct effect* is what the head wrote, read by the unembedding; the *total
# effect* is what happens.
#
# ### Exercise 7.4 · The direct effect
# ⏱ 10 min · difficulty ●●○ · what a component tells the logits itself, and not by way of others
#
# Write `direct_effect`: the component is taken out at the very end. The final norm divides by the
# stream's rms, and the component is part of that stream. Decide which rms to use.
#
# <details><summary>Hint 1</summary>
#
# Everything but the written vector stays, the norm's scale too. So the fall of the logit is linear
# in what was written.
# </details>
#
# <details><summary>Hint 2</summary>
#
# The scale is the rms of `final`, one number per token: `final.pow(2).mean(-1,
# keepdim=True).sqrt()`.
# </details>
#
# <details><summary>Hint 3</summary>
#
# A constant in all logits changes no probability. Centre: read along `W_U[tokens] − W_U.mean(0)`.
# </details>

# %% tags=["exercise"]
# exercise: direct_effect

# %%
check(direct_effect)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# If they are a little off and never by the same factor, the scale was computed anew, without the
# component: that is a repair, and the next exercise counts it.
# </details>
#
# Heads are chosen on the training text, by their direct effects on the 2 % of tokens where those
# are largest. They are ablated on held-out text.

# %%
bench = RepairBench(heads, load_text(lab.tokenizer, "train", n=N_TEXT))
loudness = torch.stack(
    [
        effects.flatten(1).topk(max(1, int(0.02 * effects[0].numel())), dim=1).values.mean(1)
        for effects in map(bench.direct_effects_of_heads, range(heads.n_layers))
    ]
)
LOUD = [divmod(int(i), heads.n_heads) for i in loudness.flatten().topk(N_HEADS).indices]
text = RepairBench(heads, load_text(lab.tokenizer, "held_out", n=N_TEXT))
layer, head = LOUD[0]
repair = text.ablate_head(layer, head)
out = text.run.attention[layer].out[:, head]
written = ((out - out.mean((0, 1))) @ heads.W_O(layer)[head])[:, :-1].flatten(0, 1)
by_hand = direct_effect(
    written,
    text.run.resid[heads.n_layers][:, :-1].flatten(0, 1),
    lab.stack.final_norm.weight,
    lab.stack.head.weight,
    text.tokens[:, heads.first + 1 :].flatten(),
)
torch.testing.assert_close(by_hand, repair.direct.flatten(), atol=1e-3, rtol=1e-3)
print(f"head {head} of layer {layer}: the direct effect is up to {by_hand.max():.1f} logits")

# %% [markdown]
# ### Exercise 7.5 · What the norm repairs
# ⏱ 10 min · difficulty ●●○ · the published claim: about 30 % of self-repair is the final norm's
# scale
#
# Without the head, the residual stream is shorter, and the norm divides by less: all that is left
# counts for more. Write `repaired`, which splits what the logit did *not* fall into the part of
# later layers and the part of the norm. Decide which scale belongs to which part.
#
# <details><summary>Hint 1</summary>
#
# Freeze the norm first: by how much does the logit fall if `before` and `after` are both divided by
# the scale of `before`?
# </details>
#
# <details><summary>Hint 2</summary>
#
# direct − frozen is what later layers did; frozen − total is what the change of scale did.
# </details>

# %% tags=["exercise"]
# exercise: repaired

# %%
check(repaired)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# The two parts must add up to direct − total. If the first alone does, the norm's part is in it.
# </details>
#
# **Predict**: of what a head does directly, how much does the model repair on the tokens where it
# matters most? And will heads or MLPs do it?

# %%
loud_repairs = {where: text.ablate_head(*where) for where in LOUD}


def on_loud_tokens(part):
    """One quantity of all repairs, on the 2 % of tokens with the largest direct effects."""
    return torch.cat([getattr(r, part)[r.largest()] for r in loud_repairs.values()])


# %%
direct, total = on_loud_tokens("direct"), on_loud_tokens("total")
by_norm, by_layers = on_loud_tokens("by_norm"), on_loud_tokens("by_later_layers")
later_heads = torch.cat([-r.later_heads.sum((-1, -2))[r.largest()] for r in loud_repairs.values()])
share_repaired = share_of(direct - total, direct)
share_norm = share_of(by_norm, direct - total)
share_heads = share_of(later_heads, direct - total)
share_mlps = share_of(by_layers - later_heads, direct - total)

# %%
repairers = {
    "later MLPs": share_mlps.value,
    "the norm": share_norm.value,
    "later heads": share_heads.value,
}
main_repairer = max(repairers, key=repairers.get)
figures.show(
    figures.estimates_figure(
        {
            "of the direct effect: repaired": share_repaired,
            "of the repair: later MLPs": share_mlps,
            "of the repair: the final norm": share_norm,
            "of the repair: later heads": share_heads,
        },
        figures.ValueAxis("share", percent=True),
        f"Of what is repaired, {main_repairer} do most",
        bars=True,
        horizontal=True,
        over=f"{len(direct)} tokens of {len(LOUD)} heads",
    ),
    alt="Shares of self-repair.",
)

# %% [markdown]
# Rushing and Nanda found about 30 % for the final norm, in models with LayerNorm. Other heads are
# no backup here: what later layers repair is the work of their MLPs. (How they do it was not
# tested. The MLPs' share is what is left over.)
#
# The same for latents with the largest direct effects. They are taken out of the residual stream of
# the model, without any splice, and as a whole, where heads were set to their mean:

# %%
DEEP = range(2 * heads.n_layers // 3, heads.n_layers - 1)
BEHIND = [layer for layer in lab.sae_layers if layer in DEEP]
N_LOUD_LATENTS = max(2, N_HEADS // len(BEHIND))


def latent_writes(bench, layer, latent):
    """What a latent writes into the residual stream after a layer."""
    f = encode(lab.saes[layer], bench.run.resid[layer + 1])
    return f[..., latent, None] * lab.saes[layer].W_dec[latent]


def loud_latents(layer):
    """The latents whose direct effects are largest on the training text."""
    with torch.no_grad():
        f = encode(lab.saes[layer], bench.run.resid[layer + 1])[:, :-1].flatten(0, 1)
        effects = f * (bench.direction.flatten(0, 1) @ lab.saes[layer].W_dec.T)
        k = max(1, int(0.02 * len(effects)))
        return effects.topk(k, dim=0).values.mean(0).topk(N_LOUD_LATENTS).indices.tolist()


# %%
latent_repairs = [
    text.ablate_written(layer, latent_writes(text, layer, latent))
    for layer in BEHIND
    for latent in loud_latents(layer)
]
loud = [r.largest() for r in latent_repairs]
latent_direct = torch.cat([r.direct[m] for r, m in zip(latent_repairs, loud)])
latent_repaired = torch.cat([r.repaired[m] for r, m in zip(latent_repairs, loud)])
latent_norm = torch.cat([r.by_norm[m] for r, m in zip(latent_repairs, loud)])
latent_share = share_of(latent_repaired, latent_direct)
pd.DataFrame(
    {
        "heads": {"repaired": share_repaired, "of which the norm": share_norm},
        "latents": {
            "repaired": latent_share,
            "of which the norm": share_of(latent_norm, latent_repaired),
        },
    }
).map(str)

# %% [markdown]
# For notebook 05 this means: an ablation understates what a node does directly. "Nothing happened
# when I took it out" is no proof that it did nothing.
#
# ## 5. The fast way
#
# Gradients are wrong about some patches, and still the fastest first guess. We use one to trace a
# fact. The patch prompt asks the same of another country:

# %%
facts = load_task("capitals", lab.tokenizer, "train", n=10 if QUICK else 30)
held_out = load_task("capitals", lab.tokenizer, "test", n=12)
print(facts.pairs[0].clean_prefix, "→", facts.pairs[0].clean_answer)
print(
    f"logit difference {trace_latents(lab, facts, [lab.sae_layers[0]]).logit_diff.mean():.1f} "
    f"({len(facts)} prompts)"
)

# %% [markdown]
# The residual stream after a layer is a sum, Σ aᵢdᵢ + b + ε: latents, the decoder's bias, and the
# SAE's error. A gradient is linear, so gradient · stream is a sum, too, with a share for each
# latent: aᵢ (dᵢ · ∇LD). One backward pass gives the shares of all latents at all positions after
# all layers. The model is as it is; SAEs are read, not spliced.
#
# If these are shares *of the logit difference*, they should add up to it, after every layer:

# %%
traces = {rule: trace_latents(lab, facts, rule=rule) for rule in ("gradient", "relp")}
TRACE_NAMES = {"gradient": "gradient · stream", "relp": "RelP"}
sums = {
    TRACE_NAMES[rule]: [mean_interval(parts.sum(1)) for parts in trace.sums().values()]
    for rule, trace in traces.items()
}
whole_ld = traces["relp"].logit_diff.mean().item()
least = min(interval.value for interval in sums["RelP"]) / whole_ld
most = max(interval.value for interval in sums["gradient · stream"]) / whole_ld
figures.show(
    figures.lines_figure(
        {"sum of all shares": sums},
        lab.sae_layers,
        "after layer",
        f"With RelP, shares add up to {least:.0%} or more of the logit difference; else to "
        f"{most:.0%} at most",
        levels={"sum of all shares": whole_ld},
        over="prompts; dotted: the logit difference",
    ),
    alt="Sums of shares after each layer, with two rules for the backward pass.",
)

# %% [markdown]
# The gradient of a normed, gated network says how the logit difference *moves*, and not what it is
# made of. (The rest, up to the dotted line, comes from BOS, where shares are not counted.) How much
# has no name, because it is in the error?

# %%
parts = traces["relp"].sums()
error_share = {
    layer: share_of(parts[hook_point(layer)][:, 2], parts[hook_point(layer)].sum(1))
    for layer in lab.sae_layers
}
early, late = (error_share[layer].value for layer in (lab.sae_layers[0], lab.sae_layers[-1]))
figures.show(
    figures.lines_figure(
        {"the error's share of the sum": {"RelP": list(error_share.values())}},
        lab.sae_layers,
        "after layer",
        f"The SAE's error holds {early:.0%} of the fact after the first SAE, {late:.0%} after the "
        "last",
        over="prompts",
    ),
    alt="The share of the error node after each layer.",
)

# %% [markdown]
# **Which head brings the fact to the last position?** A head's output is Σ pattern · values, so its
# share is a sum over the positions that it reads. The largest entries:

# %%
brought = trace_heads(heads, facts, rule="relp").mean(0)  # [layers, heads, positions]
top = brought.flatten().topk(6)
places = [torch.unravel_index(i, brought.shape) for i in top.indices]
pd.DataFrame(
    {
        "layer": [int(layer) for layer, _, _ in places],
        "head": [int(head) for _, head, _ in places],
        "reads from": [facts.position_labels[int(p)] for _, _, p in places],
        "share": top.values,
    }
).round(2)

# %% [markdown]
# ### Exercise 7.6 · Through a head
# ⏱ 15 min · difficulty ●●● · from the answer back to the subject: which latents does a head carry?
#
# The head with the largest entry reads the subject. Carry the gradient back through its values (OV)
# to the latents at every position: write `through_values`. The pattern and the norm's scale are
# constants. Decide in which order the way back goes.
#
# <details><summary>Hint 1</summary>
#
# Forward: latents → stream → norm (× factor) → W_V → pattern → W_O → stream. Backward is the same
# list from its end.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `gradient @ W_O.T @ W_V.T` is one vector, at the head's input. Each position then has its own
# pattern and its own factor.
# </details>
#
# <details><summary>Hint 3</summary>
#
# At position s, latent i: f[s, i] · (W_dec[i] · (pattern[s] · factor[s] · vector)).
# </details>

# %% tags=["exercise"]
# exercise: through_values

# %%
check(through_values)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# Sum all entries: that must be what the head brings of these latents, Σ pattern · value @ W_O ·
# gradient. The checker says what it should be.
# </details>
#
# The library does the same for heads that are further away from an SAE, through the layers between.
# The head's latents, at the subject:

# %%
MOVER = tuple(int(i) for i in places[0])
layer, head, source = MOVER
carried = through_head(heads, facts, layer, head, rule="relp")
SOURCE_LAYER = max(number for number in lab.sae_layers if number < layer)
of_subject = carried[:, source]
named = of_subject.topk(3, dim=1)
pd.DataFrame(
    {
        "subject": [pair.case for pair in facts.pairs[:6]],
        f"latents after layer {SOURCE_LAYER}": [str(i.tolist()) for i in named.indices[:6]],
        "shares": [str([round(v, 2) for v in row.tolist()]) for row in named.values[:6]],
    }
)

# %% [markdown]
# Each subject has latents of its own, and none carries much. Is it the same head for other facts?
# One backward pass each:

# %%
movers = {}
for kind in ("capitals", "continents", "opposites"):
    some = load_task(kind, lab.tokenizer, "train", n=10 if QUICK else 30)
    from_subject = trace_heads(heads, some, rule="relp").mean(0)[..., subject_of(some)]
    most = divmod(int(from_subject.argmax()), heads.n_heads)
    movers[kind] = {
        "brings most from the subject": f"head {most[1]} of layer {most[0]}",
        "its share": from_subject[most].item(),
        "logit difference": trace_latents(lab, some, lab.sae_layers[:1]).logit_diff.mean().item(),
    }
pd.DataFrame(movers).T

# %% [markdown]
# **Now the test**, on facts that had no part in choosing the head. For each of them, one backward
# pass ranks the latents at the subject by what the head carries. We set the first k to 0 after one
# layer, and keep the SAE's error. A control: as many random active latents. A rival: the latents
# that are most active, which need no gradient. A prompt *fails* if the right capital is no longer
# the model's first guess.

# %%
reader = SplicedModel(lab, [SOURCE_LAYER], error="keep")
prefix = reader.prefix(held_out.clean)
name = hook_point(SOURCE_LAYER)
with torch.no_grad():
    f = reader.run(prefix).latents[name][:, source]
carried_test = through_head(heads, held_out, layer, head, rule="relp")[:, source]
generator = torch.Generator().manual_seed(SEED)
RANKINGS = {
    "carried by the head": carried_test,
    "most active": f,
    "random active": torch.rand(f.shape, generator=generator) * (f > 0),
}


# %%
@torch.no_grad()
def without(ranking, k):
    """A run without the first k latents of each prompt, at the subject."""
    out = torch.ones_like(f).scatter(1, ranking.topk(k, dim=1).indices, 0.0)

    def change(latents):
        latents = latents.clone()
        latents[:, source] *= out
        return latents

    return reader.run(prefix, latents={name: change}, keep_latents=False)


def first_guess_is_right(run):
    return run.logits.argmax(-1) == held_out.clean_answers


# %%
whole = reader.run(prefix, keep_latents=False)
known = first_guess_is_right(whole)
KS = (1, 2, 4, 8, 16)
ld = whole.logit_diff(held_out)
falls = {
    title: [mean_interval(ld - without(ranking, k).logit_diff(held_out)) for k in KS]
    for title, ranking in RANKINGS.items()
}
carried_falls, rival_falls = falls["carried by the head"], falls["most active"]
control_falls = falls["random active"]
beats_random = [k for k, a, b in zip(KS, carried_falls, control_falls) if a.low > b.high]
beats_rival = [k for k, a, b in zip(KS, carried_falls, rival_falls) if a.value > b.value]
figures.show(
    figures.lines_figure(
        {"fall of the logit difference": falls},
        list(KS),
        f"latents taken out at the subject, after layer {SOURCE_LAYER}",
        f"Carried latents do more than random ones at {len(beats_random)} of {len(KS)} numbers, "
        f"and more than the most active at {len(beats_rival)}",
        over=f"{len(held_out)} held-out prompts",
    ),
    alt="How far the logit difference falls as latents are taken out.",
)

# %% [markdown]
# A share is also a prediction: take latents out, and the logit difference should fall by the sum of
# their shares. Is it so, prompt by prompt?

# %%
fails, predicted, measured = {title: [] for title in RANKINGS}, [], []
for k in KS:
    runs = {title: without(ranking, k) for title, ranking in RANKINGS.items()}
    for title, run in runs.items():
        fails[title].append(int((known & ~first_guess_is_right(run)).sum()))
    predicted.append(carried_test.topk(k, dim=1).values.sum(1))
    measured.append(ld - runs["carried by the head"].logit_diff(held_out))
within = [spearmanr(p, m).statistic for p, m in zip(predicted, measured)]
pd.DataFrame(
    {
        "predicted fall": [p.mean().item() for p in predicted],
        "measured fall": [m.mean().item() for m in measured],
        "rank correlation over prompts": within,
        **{f"fail: {title}": counts for title, counts in fails.items()},
    },
    index=pd.Index(KS, name="latents"),
).round(2)

# %%
ratios = [m.mean() / p.mean() for p, m in zip(predicted, measured)]
print(f"{int(known.sum())} of {len(held_out)} capitals are the model's first guess to begin with")
print(
    f"The fall is {min(ratios):.1f} to {max(ratios):.1f} times what the shares say: they count "
    "one head, and the latents also act through others."
)

# %% [markdown]
# **Is it a circuit?** Which latents are *necessary* for a fact, and which are *sufficient*, are two
# questions. For the second, shares get rivals: a mask that is learned on training prompts, and
# attribution that asks what an ablation does (IG to means, notebook 04). All have the size of the
# learned mask, and are judged on held-out capitals in the spliced model. (Shares and IG are means
# over one prompt per training subject, the mask learns on all pairs of the same subjects.)

# %%
capitals = load_task("capitals", lab.tokenizer, "train", n=32 if QUICK else 300)
capital_means = spliced.patch_means(capitals.patch)
mask = learn_masks(
    spliced, capitals, means=capital_means, sparsity=0.001, steps=STEPS, seed=SEED, progress=False
)
size = mask.n_nodes
shares = trace_latents(lab, facts, spliced.layers, rule="relp").latents
mean_shares = {name: each.mean(0) for name, each in shares.items()}
to_means = integrated_gradients(
    spliced, facts, means=capital_means, baseline="mean", steps=IG_STEPS, **sizes
)
CIRCUITS = {
    "learned mask": mask.masks,
    "RelP shares": SAEMasks.from_scores(mean_shares, size, rank="signed"),
    "IG to means": SAEMasks.from_scores(to_means, size),
    "largest change": SAEMasks.from_scores(largest_change(spliced, facts), size),
    "random": SAEMasks.from_scores(random_scores(spliced, facts, seed=SEED), size),
}

# %%
unseen = load_task("capitals", lab.tokenizer, "test", n=24 if QUICK else None)
judge = Evaluation(spliced, unseen, capital_means)
judged_circuits = {title: judge.faithfulness(masks) for title, masks in CIRCUITS.items()}
print(
    f"logit difference: the model {judge.model.mean():.1f}, spliced "
    f"{judge.spliced_model.mean():.1f}"
)
print(f"circuits of {size} nodes, on {len(judge.task)} held-out prompts:")
pd.DataFrame(
    {
        title: {"F(C)/F(S)": str(scores.vs_spliced), "gap": str(scores.gap)}
        for title, scores in judged_circuits.items()
    }
).T

# %% [markdown]
# Two limits show here. The splice loses most of the fact. At any one layer the error holds a
# quarter or so; five splices in a row lose more, since each SAE reads what the one before it has
# left. And shares, which named what single facts hang on, are a poor recipe for what is enough for
# all of them: an ablation asks another question.
#
# ## 6. Which should I use?


# %%
LIES = {
    "AtP": "where a function is flat, or where paths cancel",
    "QK fix": "as AtP, except at the head's own softmax",
    "GradDrop": "as AtP, except where paths cancel",
    "AtP*": "as AtP, except for these two",
    "RelP": "about ablation; no scores of queries and keys",
    "IG": "where nodes of one layer share one effect",
    "patching": "where another node takes over",
}
# %%
n_layers = heads.n_layers
n_passes = {
    "AtP": "3",
    "QK fix": "3",
    "GradDrop": f"2 + {n_layers}",
    "AtP*": f"2 + {n_layers}",
    "RelP": "3",
    "IG": f"{len(TITLES)} × {n_layers} × {IG_STEPS} × 2",
    "patching": str(len(NODES["agreement"])),
}
summary = pd.DataFrame(
    {
        "passes, forward and back": n_passes,
        "seconds": {method: costs[method][0] for method in costs},
        f"heads: found of {TOP}": {method: costs[method][1] for method in costs},
        f"latents: found of {TOP}": latent_quality[f"found of {TOP}"],
        "lies": LIES,
    }
)
summary.loc[list(costs)].round(2)

# %%
lines = (
    f"Heads of the model: AtP finds {costs['AtP'][1]:.0%} of the true top {TOP}, {best} finds "
    f"{costs[best][1]:.0%} (two tasks, {N_PROMPTS} prompt pairs each).",
    f"Latents of the spliced model: AtP finds {found_of['AtP']:.0%}, IG {found_of['IG']:.0%}.",
    f"One latent has an effect of {latent_truth[worst[0]]:.1f}. AtP sees {spliced_share:.0%} of it "
    f"with all SAEs behind it, and {model_share:.0%} in the model itself.",
    f"Self-repair: {share_repaired} of a head's direct effect, where that is largest; the final "
    f"norm is {share_norm} of it, later MLPs {share_mlps}, later heads {share_heads}.",
    f"A fact: one head ({MOVER[1]} of layer {MOVER[0]}) carries {top.values[0]:.1f} of a logit "
    f"difference of {whole_ld:.1f}. Without {KS[2]} of its latents it falls by "
    f"{measured[2].mean():.1f}.",
)
for line in lines:
    print("-", line)
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away**
#
# - Patch what you report; use gradients to decide what to patch. For heads: AtP with the QK fix.
#   For latents of a spliced model: IG.
# - A gradient lies where a function is flat at the clean point. Few nodes are like that, and they
#   can be the most important ones.
# - A repair helps against its own kind of lie only. Find out which kind you have.
# - "How would it move?" and "what is it made of?" are two questions, with two rules for the way
#   back.
# - An ablation measures what is left after the model has repaired itself.
#
# **What it does not show**
#
# - Other models: in a model with other norms or SAEs, the shares are others.
# - It does not show that a repaired head is unimportant, or that later layers learned to repair.
# - Why a head looks where it looks: patterns were taken as given in section 5.
#
# **Key terms**: ablation, activation patching, AtP, AtP star, cancellation, circuit, direct effect,
# gap, GradDrop, integrated gradients, latent, logit difference, node, OV, patch prompt, QK fix,
# RelP, residual stream, saturation, self-repair, splice, spliced model.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - The repairs: [Kramár et al. 2024, AtP\*](https://arxiv.org/abs/2403.00745)
# - The cheap rival: [Jafari et al. 2025, RelP](https://arxiv.org/abs/2508.21258)
# - Self-repair: [Rushing and Nanda 2024, Explorations of Self-Repair in Language
#   Models](https://arxiv.org/abs/2402.15390)
# - Attribution patching: [Syed et al. 2023, Attribution Patching Outperforms Automated Circuit
#   Discovery](https://arxiv.org/abs/2310.10348)
# - Integrated gradients on latents: [Marks et al. 2024, Sparse Feature
#   Circuits](https://arxiv.org/abs/2403.19647)
# - The fast way: [Anthropic's circuits updates, March
#   2024](https://transformer-circuits.pub/2024/march-update/index.html)
#
# **Next**: [README](../README.md) lists all notebooks.
