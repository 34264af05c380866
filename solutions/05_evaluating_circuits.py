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
# # 05 · Evaluating circuits
#
# Notebook 04 found a circuit: a handful of latents with which a language model says *The athletes
# near the car* **are**. Is it *the* circuit? It may be too small (something else does the same
# work), too large (some nodes do nothing), or one of many. Here you put it on trial, beside the
# best circuit of the same size that attribution finds:
#
# | question | name | asked by |
# |---|---|---|
# | does it do what the model does? | faithfulness | Wang et al. 2022 (as a difference), Marks et al. 2024 (as a ratio) |
# | does nothing else do it? | completeness | Wang et al. 2022 |
# | is every part needed? | minimality | Wang et al. 2022 |
# | what would have been surprising? | hypothesis tests | Shi et al. 2024 |
# | would another run find it? | stability | few papers |
# | does it work on other prompts, and under another ablation? | – | Miller et al. 2024 (ablations) |
# | is the *method* good at every size? | CPR, CMD | Mueller et al. 2025 (the MIB benchmark) |
# | do we know how it works? | a causal story, and an intervention | you |
#
# **At the end you can say**
#
# - what a number called "faithfulness" is a ratio of, and what its interval is over;
# - whether a faithful circuit is also complete, minimal and stable, and with which control;
# - which null hypothesis a test has, and for which side a small p speaks;
# - how the verdict changes with the ablation, the prompts and the measure;
# - whether an intervention on a few latents turns the model's verb around.
#
# **You need** notebook 04, or to know SAEs spliced into the residual stream, mean ablation and
# learned masks. **You write** eight functions. Until you do, the course's versions run in their
# place.
#
# **It takes** you about 2 hours 35 minutes: 95 minutes for the exercises, 60 to read. The notebook
# runs {times}. The first run fetches 93 MB of weights.
#
# **Contents**
#
# 1. The circuit on trial
# 2. Faithfulness, and its denominators (exercises 5.1 and 5.2)
# 3. Completeness (exercises 5.3 and 5.4)
# 4. Minimality (exercise 5.5)
# 5. Hypothesis tests
# 6. Stability (exercise 5.6)
# 7. Other prompts, other ablations
# 8. One number for a method: CPR and CMD (exercise 5.7)
# 9. A causal story (exercise 5.8)
# 10. The report

# %% tags=["setup"]
# setup

# %%
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

started = time.perf_counter()

# %%
from course_utils import (
    Evaluation,
    Frontier,
    Node,
    SAEMasks,
    SplicedModel,
    atp,
    integrated_gradients,
    learn_masks,
    load_lab,
    load_task,
)
from course_utils.circuits import evaluate as metrics
from course_utils.circuits import explain
from course_utils.circuits.attribution import random_nodes, random_scores
from course_utils.circuits.controls import (
    best_separators,
    matched_nodes,
    moved,
    same_places,
    separations,
    split_by,
    subsets_of_all_sizes,
)

# %%
from course_utils.circuits.evaluate import (
    MEASURES,
    Evaluate,
    Faithfulness,
    Reference,
    needed,
    paired_difference,
)
from course_utils.circuits.frontier import summary_sentence
from course_utils.circuits.graph import (
    answer_effects,
    few_words,
    latent_graph,
    values_on_prompts,
)

# %%
from course_utils.circuits.hypotheses import (
    LEVEL,
    equivalence,
    independence,
    inflated_drops,
    minimality,
    rank_p_value,
    references_needed,
    worst_subset,
)
from course_utils.circuits.interventions import edge_effects, intervene, resampled_logit_diff
from course_utils.circuits.masks import only
from course_utils.circuits.statistics import (
    auc,
    bootstrap,
    distance_from,
    mean_interval,
    proportion,
    ratio_interval,
)

# %%
from course_utils.display import figures
from course_utils.display.circuit_view import show_circuit
from course_utils.display.profile import is_quick
from course_utils.display.widgets import browse_latents
from course_utils.labs.catalog import spec_of
from course_utils.prompts.text import load_text
from course_utils.teaching.nb05 import check, exercise

# %% tags=["parameters"]
LAB = "smollm2"
# "quick" runs the same steps with fewer prompts and circuits
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
QUICK = is_quick(PROFILE)
LAYERS = list(spec_of(LAB).placement)
# prompts to learn on, to choose on, and to report on
N_TRAIN, N_DEV, N_TEST = (32, 16, 24) if QUICK else (256, 50, 100)
SIZE = 17  # nodes of the circuit on trial
SIZES = [SIZE, 40] if QUICK else [12, SIZE, 25, 40]
SEEDS = [SEED + i for i in range(2 if QUICK else 5)]
LEARNING = dict(steps=12, lr=0.7, batch_size=8) if QUICK else {}

# %% [markdown]
# ## 1. The circuit on trial
#
# The behaviour, the spliced model and the mean ablation are those of notebook 04. The splits share
# no noun. Circuits are learned on `train`, other choices are made on `train` or `dev`, and every
# reported number is measured on `test`.

# %%
lab = load_lab(LAB, layers=LAYERS)
train = load_task("sva_nounpp", lab.tokenizer, "train", n=N_TRAIN)
dev = load_task("sva_nounpp", lab.tokenizer, "dev", n=N_DEV)
test = load_task("sva_nounpp", lab.tokenizer, "test", n=N_TEST)
spliced = SplicedModel(lab, LAYERS, error="drop")
means = spliced.patch_means(train.patch)
pd.DataFrame([vars(pair) for pair in test.pairs[:4]])


# %% [markdown]
# We will often ask: what are the held-out logit differences if only some nodes are kept?
# `evaluation(masks)` answers with one number per prompt. (`evaluation.remember(masks)` caches these
# masks' first layers, to save time.)

# %%
evaluation = Evaluation(spliced, test, means)
everything = SAEMasks.full(means.latents, 1.0)
nothing = SAEMasks.full(means.latents, 0.0)
evaluation.remember(everything)
f_spliced, f_empty = evaluation(everything), evaluation(nothing)
print(
    f"F(S) = {f_spliced.mean():.2f}, F(∅) = {f_empty.mean():.2f} over n = {len(test)} held-out "
    "prompts"
)

# %% [markdown]
# For stability we need several runs: of one size with several seeds (orders of the prompts), and of
# other sizes. A run is asked for a size, and finds the price λ of a node on the way. This is the
# longest cell.

# %%
to_learn = [(SIZE, seed) for seed in SEEDS]
to_learn += [(size, seed) for size in SIZES if size != SIZE for seed in SEEDS[: 1 if QUICK else 2]]
runs = {
    (size, seed): learn_masks(spliced, train, means=means, n_nodes=size, seed=seed, **LEARNING)
    for size, seed in to_learn
}
rows = {
    key: {"nodes": run.n_nodes, "λ at the end": f"{run.history[-1]['sparsity']:.3f}"}
    for key, run in runs.items()
}
pd.DataFrame(rows).rename_axis(columns=["wanted", "seed"])

# %% [markdown]
# On trial is the circuit of the first seed that was asked for 17 nodes. Its rival, "IG best", is
# **attribution's best circuit of the same size**: integrated gradients towards the means, ranked by
# the mean of |score| over prompts. Notebook 04 chose this variant on `dev`.

# %%
scored = train[: 16 if QUICK else 64]
ig_scores = integrated_gradients(
    spliced,
    scored,
    steps=4 if QUICK else 6,
    means=means,
    baseline="mean",
    aggregate="mean_abs",
    progress=True,
)
circuit = runs[SIZE, SEED].masks
rival = SAEMasks.from_scores(ig_scores, circuit.get_num_latents())
on_trial = {"learned mask": circuit, "IG best": rival}
nodes, ig_nodes = circuit.nodes(), rival.nodes()
for masks in on_trial.values():
    evaluation.remember(masks)
print(f"{len(set(nodes) & set(ig_nodes))} of the {len(nodes)} nodes are in both circuits.")

# %% [markdown]
# The easy control is a set of *strangers*: random nodes that fire in such sentences (most never do)
# and are in neither circuit. Section 9 has harder controls.

# %%
chance = random_scores(spliced, train, seed=SEED)
n_firing = sum(int((score > 0).sum()) for score in chance.values())
n_all = sum(score[spliced.first :].numel() for score in chance.values())


def strangers(n, seed):
    """n nodes drawn at random among those that fire and are in neither circuit."""
    ours = {*nodes, *ig_nodes}
    drawn = random_nodes(chance, n + len(ours), seed=seed)
    return [node for node in drawn if node not in ours][:n]


# %% [markdown]
# We fill in the report of section 10 as we go: the value for the mask, the value for IG's circuit,
# and what the interval is *over*. An interval over prompts says how far a number would move with
# other prompts. One over subsets, seeds or nodes answers another question. Where everything was
# tested, the entry is a count.

# %%
report = {
    "nodes": [
        f"{len(nodes)} of {n_all:,} ({n_firing:,} ever fire)",
        str(len(ig_nodes)),
        "– (count)",
    ]
}
print(f"The circuit on trial has {report['nodes'][0]}.")

# %%
# The prisoners opposite the professor
places = [
    "BOS",
    "The",
    "subject",
    "preposition",
    "the",
    "distractor (last)",
]
assert len(places) == test.seq_len
names_of = [f"layer {h.split('.')[1]} {places[p]} {i}" for h, p, i in nodes]
used = sorted({position for _, position, _ in nodes})
title = f"The {len(nodes)} nodes sit at the " + " and the ".join(places[p] for p in used)
figures.show(
    figures.circuit_figure(circuit, test, title),
    alt="How many nodes the circuit has at each layer and position.",
)

# %% [markdown]
# ## 2. Faithfulness, and its denominators
#
# How much of the behaviour does the circuit keep? A ratio needs two ends, nothing and everything,
# and papers choose them differently.
#
# ### Exercise 5.1 · Three faithfulnesses
# ⏱ 10 min · difficulty ●○○ · to read any number called "faithfulness" with its definition
#
# Write the three ratios that are in use, from the logit differences of the same prompts in the
# model M, the spliced model S, the circuit C, and with everything ablated, ∅.
#
# <details><summary>Hint 1</summary> F(·) is a mean over prompts. Four means first, then three
# fractions.</details>
# <details><summary>Hint 2</summary> In the first two, measure both the circuit and the whole from
# F(∅).</details>

# %% tags=["exercise"]
# exercise: three_faithfulnesses

# %%
check(three_faithfulnesses)

# %% [markdown]
# **What you should see:** the second and the third nearly agree, because F(∅) is near 0. The first
# differs from the second only by F(M) against F(S). (A splice can make a model *surer*; then
# F(S) > F(M).)
#
# <details><summary>My values look wrong</summary>
#
# - *A value of 3 or −5:* you averaged ratios. One prompt whose model answer is near 0 dominates
#   such a mean.
# - *First and second are swapped:* M is the model itself, S the model with SAEs spliced in.
# </details>

# %%
f_circuit, f_rival = evaluation(circuit), evaluation(rival)
three = three_faithfulnesses(evaluation.model, f_spliced, f_circuit, f_empty)
names = ["(F(C) − F(∅)) / (F(M) − F(∅))", "(F(C) − F(∅)) / (F(S) − F(∅))", "F(C) / F(S)"]
found = evaluation.faithfulness(circuit)
intervals = [str(getattr(found, name)) for name in MEASURES[:3]]
pd.DataFrame({"yours": three.tolist(), "with 95 % interval": intervals}, index=names).round(3)

# %% [markdown]
# ### One circuit, two numbers
#
# A splice can cost the model some of its logit difference. Dividing by F(M) charges the circuit for
# that; dividing by F(S) does not. The example is agreement across a relative clause (*The athlete
# that the managers like* **is**). The post that this course follows (Caples et al. 2025) reports
# the third ratio, F(C)/F(S). The cell after next turns it into F(C)/F(M), which is also in use. For
# example, .94 of F(S) and .85 of F(M) can be one circuit: the splice then keeps .90 of F(M).

# %%
rc_train, rc_test = (
    load_task("sva_rc", lab.tokenizer, split, n=n)
    for split, n in (("train", N_TRAIN), ("test", N_TEST))
)
rc_means = spliced.patch_means(rc_train.patch)
rc = learn_masks(spliced, rc_train, means=rc_means, n_nodes=SIZE, seed=SEED, **LEARNING)
rc_found = Evaluation(spliced, rc_test, rc_means).faithfulness(rc.masks)
of_rc = {
    "M": rc_found.f_model,
    "S": rc_found.f_spliced,
    "C": rc_found.f_circuit,
    "∅": rc_found.f_empty,
}
print(
    ", ".join(f"F({name}) = {value:.2f}" for name, value in of_rc.items()), f"({rc.n_nodes} nodes)"
)
pd.Series([str(getattr(rc_found, name)) for name in MEASURES[:3]], index=names).to_frame(
    f"sva_rc, n = {rc_found.n}"
)

# %%
splice_keeps = rc_found.f_spliced / rc_found.f_model
one, other = rc_found.raw.value, rc_found.raw.value * splice_keeps
print(f"The splice keeps {splice_keeps:.2f} of the model's logit difference.")
print(
    f"So F(C)/F(S) = {one:.2f} and F(C)/F(M) = {other:.2f} are one circuit; .94 of F(S) is "
    f"{0.94 * splice_keeps:.2f} of F(M)."
)
print(f"Where .94 and .85 are one circuit, the splice keeps {0.85 / 0.94:.2f}.")

# %% [markdown]
# The other end of the ratio is what counts as *nothing*: see section 7.
#
# ### The rival, and chance
#
# Which of two circuits is better? A ratio does not say, because above 1 more is worse. Two measures
# do, and for both 0 is best: the **distance** |1 − F| of the means, and the **gap** per prompt of
# notebook 04, on which the mask is trained.
#
# How sure is a difference between two circuits? The **bootstrap** asks how far it would move with
# other prompts of this kind. It draws as many prompts as there are, with replacement, and computes
# the difference again. It repeats this many times. The middle 95 % of these values are the
# interval.
#
# ### Exercise 5.2 · The bootstrap
# ⏱ 15 min · difficulty ●●○ · every interval of this course is made this way; write it once
#
# You get how far each prompt is off, |LD − LD_S|, in circuit a, in circuit b, and with everything
# ablated. Return the difference of their gaps and both ends of its 95 % interval. Three decisions
# are yours:
#
# - what is drawn: prompts, once for both circuits, or numbers of each circuit by itself;
# - what is computed again in each draw: the upper part of the fraction alone, or all of it;
# - at which quantiles the interval ends.
#
# **Predict**: both circuits find the same prompts hard. Is the interval of their difference
# narrower or wider than if each had been judged on prompts of its own?
#
# <details><summary>Hint 1</summary> <code>torch.randint(n, (n_draws, n), generator=…)</code> gives
# the numbers of the prompts, a row for each draw.</details>
# <details><summary>Hint 2</summary> <code>off[rows]</code> is <code>[n_draws, n]</code>. Average it
# over the prompts of each draw.</details>
# <details><summary>Hint 3</summary> A fraction has a value in each draw. <code>quantile</code>
# finds the ends; the first of the three numbers needs no draw.</details>

# %% tags=["exercise"]
# exercise: paired_gap

# %%
check(paired_gap)

# %% [markdown]
# **What you should see:** ✅, and below the library's interval, up to the luck of the draw.
#
# <details><summary>My values look wrong</summary>
#
# - *The interval is far too wide:* each circuit got prompts of its own, or you took the spread of
#   single prompts.
# - *Both ends are the difference itself:* you drew without replacement (then every draw is the same
#   prompts in another order), or averaged over the draws.
# - *The ends are a little off:* the denominator has to be drawn again with the same prompts.
# </details>

# %%
ig_found = evaluation.faithfulness(rival)
off_circuit, off_rival, off_empty = ((ld - f_spliced).abs() for ld in (f_circuit, f_rival, f_empty))
by_hand = paired_gap(off_circuit, off_rival, off_empty, n_draws=1000, seed=0)
paired = evaluation.paired_difference(circuit, rival, "gap")
library, width = torch.tensor([paired.value, paired.low, paired.high]), paired.high - paired.low
torch.testing.assert_close(by_hand, library, atol=0.1 * width, rtol=0, check_dtype=False)
apart = math.hypot(*(one.gap.high - one.gap.low for one in (found, ig_found)))
print(f"The mask's gap minus that of IG best: {paired}. The interval is {width:.2f} wide.")
print(f"If each circuit had prompts of its own, it would be about {apart:.2f} wide.")

# %% [markdown]
# What is hard about a prompt for both circuits cancels in a paired difference. So we take it for
# all measures:

# %%
columns = {
    "learned mask": {name: getattr(found, name) for name in MEASURES},
    "IG best": {name: getattr(ig_found, name) for name in MEASURES},
    "mask − IG, paired": {
        name: evaluation.paired_difference(circuit, rival, name) for name in MEASURES
    },
}
of_both = pd.DataFrame(columns)
of_both.map(str)

# %%
for measure, says in (
    ("vs_spliced", "faithfulness (of F(S))"),
    ("distance", "distance |1 − F|"),
    ("gap", "gap per prompt"),
):
    report[says] = [*map(str, of_both.loc[measure, ["learned mask", "IG best"]]), "prompts"]


def better(difference):
    """Which circuit a paired difference (mask − IG) of a measure with 0 as its best favours."""
    if difference.low <= 0 <= difference.high:
        return "neither"
    return "the mask" if difference.high < 0 else "IG's circuit"


favours = {name: better(of_both.loc[name, "mask − IG, paired"]) for name in ("distance", "gap")}
print(f"The distance favours {favours['distance']}; the gap favours {favours['gap']}.")

# %% [markdown]
# Chance: random circuits of the same size.

# %%
random_circuits = [only(nothing, strangers(len(nodes), seed)) for seed in range(3 if QUICK else 39)]
ld_random = torch.stack([evaluation(masks) for masks in random_circuits])
off_empty = (f_empty - f_spliced).abs()
random_share = (ld_random.mean(1) - f_empty.mean()) / (f_spliced.mean() - f_empty.mean())
random_gap = (ld_random - f_spliced).abs().mean(1) / off_empty.mean()
report["best of the random circuits"] = [
    f"faithfulness {random_share.max():.2f}, gap {random_gap.min():.2f}",
    "the same",
    f"– (best of {len(random_circuits)} draws)",
]
says = f"{random_share.min():.2f} to {random_share.max():.2f}"
print(f"{len(random_circuits)} random circuits of {len(nodes)} nodes: faithfulness {says}.")
print(f"The circuit on trial: {found.vs_spliced}, gap {found.gap}.")

# %% [markdown]
# **Verdict 1.** Name the denominator. Give the interval and what it is over. Show the rival of the
# same size and the random circuit.
#
# ## 3. Completeness
#
# Suppose that two latents carry the number, and either would do. A mask that pays for nodes keeps
# one of them: faithful, and half of the story. To see this, knock a set K of the circuit's nodes
# out of the circuit, and out of the whole model:
#
# $$F(C \setminus K) \quad\text{against}\quad F(S \setminus K)$$
#
# If C is all there is, both fall alike, and the points lie on the line y = x. If the whole stays
# up, it has a spare for K outside C. (The whole is S, the spliced model.)
#
# To knock nodes out, we copy the masks and put a 0 at each node, at its own position. (In the
# library this is `masks.without`.)


# %%
def knock_out(masks, nodes):
    """The same masks with these nodes off; ``masks`` itself stays as it was."""
    copies = {hook_point: mask.clone() for hook_point, mask in masks.items()}
    for hook_point, position, latent in nodes:
        copies[hook_point][position, latent] = 0
    return SAEMasks(list(copies), list(copies.values()))


# %% [markdown]
# ### Exercise 5.3 · What is left without it
# ⏱ 10 min · difficulty ●●○ · a knock-out is a fraction, too: of what?
#
# Which share of the answer is left once the circuit is gone? You get the masks of the circuit, of
# everything and of nothing. Decide
#
# - out of which masks the circuit's nodes are taken;
# - what 0 and 1 are to mean, and so what stands below the fraction line.
#
# **Predict** the share for our circuit, and for as many strangers.
#
# <details><summary>Hint 1</summary> Faithfulness keeps the circuit and ablates all else. Here the
# circuit is ablated, and all else is kept.</details>
# <details><summary>Hint 2</summary> The scale is that of faithfulness: F(∅) is 0 on it, and F(S) is
# 1.</details>
# <details><summary>Hint 3</summary> <code>circuit.nodes()</code> lists what
# <code>knock_out</code> takes out.</details>

# %% tags=["exercise"]
# exercise: left_without

# %%
check(left_without)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *Exactly 0 for the strangers too:* you took the circuit's nodes out of the circuit itself. Then
#   nothing is there.
# - *The circuit's faithfulness:* you kept the circuit and ablated all else.
# - *Above 1 where little should be left:* you divided by what the circuit does.
# </details>

# %%
as_many = only(nothing, strangers(len(nodes), SEED))
left_of = {
    name: left_without(evaluation, masks, everything, nothing).item()
    for name, masks in {**on_trial, "strangers": as_many}.items()
}
for name, share in left_of.items():
    print(f"{name}: {share:.2f} of the answer is left without its {len(nodes)} nodes")
# %% [markdown]
# ### Exercise 5.4 · Random subsets
# ⏱ 10 min · difficulty ●●○ · the completeness test of Wang et al. and of the post
#
# For each subset K, knock K out of the circuit and out of the whole, and take the mean logit
# difference of both.
#
# <details><summary>Hint 1</summary> <code>evaluate(masks)</code> gives one number per prompt. F is
# their mean.</details>
# <details><summary>Hint 2</summary> Both knock-outs start from the untouched masks, for every
# K.</details>
# <details><summary>Hint 3</summary> <code>torch.stack</code> makes a row from two numbers, and a
# table from rows.</details>

# %% tags=["exercise"]
# exercise: completeness_points

# %%
check(completeness_points)


# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *All points of the figure below have the same height:* K is still in the whole model.
# - *Points walk down to the left, one after the other:* your knock-outs pile up.
# - *Points below the line at 0:* your second column is K alone, not the whole without K.
# </details>
#
# If each node were in K with probability 1/2, K would nearly always have about half of the nodes.
# So we draw the *size* first, and then the nodes. `subsets_of_all_sizes` repeats these two lines:
#
# ```python
# size = int(torch.randint(1, len(nodes), ()))  # 1 to all but one, each as likely as the others
# subset = [nodes[i] for i in torch.randperm(len(nodes))[:size]]
# ```
#
# IG's circuit gets the same test.


# %%
def left(gone):
    """The share of F(S) − F(∅) that the whole keeps without these nodes, with its interval."""
    rows = [evaluation(knock_out(everything, gone)), f_spliced, f_empty]
    return bootstrap(lambda rest, whole, empty: (rest - empty) / (whole - empty), rows)


def excess_of(points):
    """How far the whole without K lies above the circuit without K, in shares of F(S) − F(∅)."""
    return (points[:, 1] - points[:, 0]) / scale


spare, ig_spare = left(nodes), left(ig_nodes)
scale = f_spliced.mean() - f_empty.mean()
subsets, ig_subsets = (
    subsets_of_all_sizes(some, 5 if QUICK else 30, seed=SEED) for some in (nodes, ig_nodes)
)
points = completeness_points(evaluation, circuit, everything, [[], *subsets, nodes])
ig_points = completeness_points(evaluation, rival, everything, ig_subsets)
excess, ig_excess = excess_of(points[1:-1]), excess_of(ig_points)

# %%
quarters = torch.linspace(0, len(nodes) - 1, 5).round().int().tolist()
sizes_of_k = [len(subset) for subset in subsets]
by_size = pd.DataFrame({"nodes in K": pd.cut(sizes_of_k, quarters), "off": excess.abs()})
by_size.groupby("nodes in K", observed=False)["off"].agg(
    subsets="count", **{"mean |F(S∖K) − F(C∖K)|": "mean", "largest": "max"}
).round(2)

# %% [markdown]
# Random subsets are easy to pass. The hard test is the **worst K**, which a greedy search finds
# (Wang et al. 2022): it starts from ∅ and adds, again and again, the node that makes circuit and
# whole differ most. The largest difference on the prompts of the search also fits their noise. So
# we search on `dev`, and report the same K on `test`.

# %%
dev_evaluation = Evaluation(spliced, dev, means)
for masks in (everything, *on_trial.values()):
    dev_evaluation.remember(masks)
greedy = dict(max_size=2 if QUICK else 6, n_candidates=3 if QUICK else 6, seed=SEED)
worst = {
    name: worst_subset(dev_evaluation, masks, everything, masks.nodes(), **greedy)[-1]
    for name, masks in on_trial.items()
}


# %%
def off_without(masks, gone):
    """How far the whole without K lies above the circuit without K, over test prompts."""
    rows = [evaluation(knock_out(everything, gone)), evaluation(knock_out(masks, gone))]
    rows += [f_spliced, f_empty]
    return bootstrap(lambda whole, part, s, e: (whole - part) / (s - e), rows)


dev_scale = (dev_evaluation.spliced_model.mean() - dev_evaluation.empty.mean()).item()
worst_off = {name: off_without(masks, worst[name].removed) for name, masks in on_trial.items()}
rows = {
    name: {
        "nodes in K": len(found_k.removed),
        "off on dev": found_k.incompleteness / dev_scale,
        "off on test": str(distance_from(worst_off[name], 0)),
        "mean of random K, test": off.abs().mean().item(),
        "largest of random K": off.abs().max().item(),
    }
    for (name, found_k), off in zip(worst.items(), (excess, ig_excess))
}
pd.DataFrame(rows).T

# %%
# With nothing knocked out: 1 − faithfulness.
at_start = excess_of(points[:1]).item()
spares = int((excess > max(at_start, 0) + 0.05).sum())  # above the start and the line
above, below = int((excess > 0.05).sum()), int((excess < -0.05).sum())
[worst_point] = completeness_points(
    evaluation, circuit, everything, [worst["learned mask"].removed]
)
marks = {
    "K = ∅ (all in place)": points[0].tolist(),
    f"K = C (all {len(nodes)} out)": points[-1].tolist(),
    f"worst K of dev ({len(worst['learned mask'].removed)} out)": worst_point.tolist(),
}
title = f"Without K, the whole stays above the circuit for {above} of {len(subsets)} subsets"
alt = (
    f"Scatter of F(C without K) against F(S without K) for random subsets K. {title}, "
    f"and is below it for {below}."
)
caption = f"{len(subsets)} random subsets of {len(nodes)} nodes; means over {len(test)} prompts"
figures.show(figures.completeness_figure(points[1:-1], marks, title, caption=caption), alt=alt)

# %% [markdown]
# **What you should see:** the point K = ∅ near y = x (that is faithfulness), K = C near 0, and the
# subsets between them. Wang et al. call the distance from the line the *incompleteness*. With
# nothing knocked out, the whole is already 1 − faithfulness above the circuit. So only a point
# *farther* above the line than K = ∅ shows a spare.

# %%
incompleteness, ig_incompleteness = mean_interval(excess.abs()), mean_interval(ig_excess.abs())
report["left without C, F(S∖C)"] = [
    f"{spare} of F(S) − F(∅)",
    f"{ig_spare}",
    "prompts",
]
report["incompleteness |F(S∖K) − F(C∖K)|"] = [
    f"{incompleteness} of F(S) − F(∅)",
    str(ig_incompleteness),
    f"subsets K ({len(subsets)})",
]
report["… at the worst K (found on dev)"] = [
    *(str(distance_from(off, 0)) for off in worst_off.values()),
    "prompts",
]
print(f"Of F(S) − F(∅): {spare} is left without C. Incompleteness {incompleteness}.")
print(f"By more than 0.05, {above} of {len(subsets)} subsets lie above the line and {below} below.")
print(
    f"With nothing out, the whole lies {at_start:.2f} above it. Clearly above that, {spares} of "
    f"{len(subsets)}: there the whole has a spare."
)

# %% [markdown]
# SAEs in the residual stream are *bottlenecks in series*: everything that reaches the verb has
# passed each of them. Removing all of C cuts them all at once, so it is an easy test. Removing its
# nodes at one layer cuts one bottleneck: where much is left, that layer has carriers of the number
# outside the circuit. The control removes strangers, up to many more.

# %%
by_layer_nodes = {h: [node for node in nodes if node[0] == h] for h in spliced.hook_points}
taken = {"the circuit": nodes, "IG's circuit": ig_nodes} | {
    f"its nodes after layer {h.split('.')[1]}": some for h, some in by_layer_nodes.items() if some
}
taken |= {f"{n:,} strangers": strangers(n, SEED) for n in (len(nodes), 300, 3000)}
lefts = {name: left(some) for name, some in taken.items()}
pd.DataFrame(
    {name: {"nodes": len(taken[name]), "left of F(S) − F(∅)": str(x)} for name, x in lefts.items()}
).T

# %%
leaky = [
    name.removeprefix("its nodes ")
    for name, x in lefts.items()
    if name.startswith("its") and x.low > 0.1
]
print(f"Without the whole circuit {spare} of the answer is left, without IG's {ig_spare}.")
print(
    "Layers whose part of the circuit is not all (more than a tenth is left without it): "
    f"{', '.join(leaky) or 'none'}."
)

# %% [markdown]
# **Verdict 2.** Faithful is not complete. Only a knock-out can tell, and knocking out everything
# tells least. A mask can take the strongest carrier at a layer and leave its spares outside.
# (Circuits of heads have spares too: when GPT-2's name movers are removed, backup heads do their
# work.)
#
# ## 4. Minimality
#
# Is every node needed? Remove each one alone, and see how far the answer falls. We first pad the
# circuit with strangers, and a good test must call them unneeded.
#
# ### Exercise 5.5 · One node at a time
# ⏱ 10 min · difficulty ●●○ · which nodes does the circuit need?
#
# For each node, return how far every prompt's logit difference falls when this node alone leaves:
# `[nodes, prompts]`.
#
# <details><summary>Hint 1</summary> The whole circuit's logit differences are needed once, not once
# per node.</details>
# <details><summary>Hint 2</summary> <code>knock_out(circuit, [node])</code>: a list with one node
# in it.</details>
# <details><summary>Hint 3</summary> Keep the prompts: a row per node, a column per
# prompt.</details>

# %% tags=["exercise"]
# exercise: drop_each

# %%
check(drop_each)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *In the figure below, the circuit's large dots are below 0:* check the sign; a node's
#   contribution is what is lost without it.
# - *The padding is high, at about 0.9:* you did not put the nodes back before the padding left.
# - *Nearly all dots near 0.9, in both groups:* you kept one node and dropped the rest.
# </details>

# %%
padding = strangers(6 if QUICK else len(nodes), SEED + 1)
padded = only(nothing, [*nodes, *padding])
evaluation.remember(padded)
dropped = drop_each(evaluation, padded, [*nodes, *padding])
margin = 0.01 * dev_scale
is_needed = needed(dropped, margin)
n_needed, passengers = int(is_needed[: len(nodes)].sum()), proportion(is_needed[len(nodes) :])
ig_dropped = drop_each(evaluation, rival, ig_nodes)
n_ig_needed = int(needed(ig_dropped, margin).sum())

# %%
drops_of, ig_drops_of = (
    [bootstrap(lambda drop: drop / scale, [row]) for row in table]
    for table in (dropped, ig_dropped)
)
n_padding_needed = int(is_needed[len(nodes) :].sum())
title = (
    f"{n_needed} of the {len(nodes)} nodes are needed, {n_ig_needed} of IG's {len(ig_nodes)}, "
    f"{n_padding_needed} of {len(padding)} in the padding"
)
groups = {
    "learned mask": drops_of[: len(nodes)],
    "IG best": ig_drops_of,
    "random padding": drops_of[len(nodes) :],
}
axis = figures.ValueAxis("drop, as a share of F(S) − F(∅)", reference=0.01)
figures.show(
    figures.estimates_figure(
        groups, axis, title, place_label="node, from large to small", over=f"{len(test)} prompts"
    ),
    alt=(
        "The drop in the logit difference when one node leaves, for the nodes of both "
        f"circuits and for padding. {title}."
    ),
)

# %% [markdown]
# A node is *needed* if its removal lowers the answer on `test` by more than a margin, with 97.5 %
# confidence. The margin is 1 % of F(S) − F(∅) on `dev` (about the dotted line). Every node of a
# circuit is tested, so the number of needed nodes is a count. The padding is a sample of all
# strangers.
#
# **What you should see:** a few large drops, many small ones, and padding at 0.

# %%
total = dropped[: len(nodes)].mean(1).sum() / f_circuit.mean()
print(
    f"The single drops add up to {total:.1f} times F(C): nodes in series each count the whole "
    "of what passes through them."
)

# %% [markdown]
# A drop may be 0 or negative: without such a node the answer is as sure as before, or surer. Why
# would a mask pay for it? Because it was trained to give the *model's* answer on each prompt, and
# the model is sometimes unsure. So we also ask whether the gap grows without the node. This needs
# no new forward pass.

# %%
target = f_spliced
off_target = lambda ld: (ld - target).abs()  # noqa: E731
f_padded = evaluation(padded)
grows = [off_target(f_padded - drop) - off_target(f_padded) for drop in dropped]
gap_growth = [bootstrap(lambda more, base: more / base, [more, off_empty]) for more in grows]
for_gap = torch.tensor([growth.low > 0.01 for growth in gap_growth])  # the same margin, 1 %
n_either = int((is_needed | for_gap)[: len(nodes)].sum())
padding_for_gap = proportion(for_gap[len(nodes) :])
print(
    f"Needed for the answer or the gap: {n_either} of the circuit's {len(nodes)} nodes, and "
    f"{padding_for_gap} of random padding."
)

# %%
report["needed nodes (margin 1 %)"] = [
    f"{n_needed} of {len(nodes)}; {n_either} for the answer or the gap",
    f"{n_ig_needed} of {len(ig_nodes)}",
    "– (all nodes were tested)",
]
report["… of random padding"] = [str(passengers), "", "padding nodes"]
columns = {"node": names_of, "drop": groups["learned mask"], "gap grows by": gap_growth}
columns["gap grows by"] = gap_growth[: len(nodes)]
pd.DataFrame(
    {**columns, "needed": is_needed[: len(nodes)], "needed for the gap": for_gap[: len(nodes)]}
)

# %% [markdown]
# Can the others be removed, all at once? The choice must not be made on the prompts that judge. So
# we repeat the test on `dev`, remove what it calls unneeded, and judge on `test`.

# %%
on_dev = drop_each(dev_evaluation, circuit, nodes)
unneeded = [node for node, yes in zip(nodes, needed(on_dev, margin)) if not yes]
pruned = evaluation.faithfulness(knock_out(circuit, unneeded))
report["without the unneeded"] = [
    f"{len(nodes) - len(unneeded)} nodes, faithfulness {pruned.vs_spliced}, gap {pruned.gap}",
    "",
    "prompts",
]
print(f"{len(unneeded)} of {len(nodes)} nodes are unneeded on dev. On test, n = {pruned.n}:")
both = {"all nodes": found, "without these": pruned}
pd.DataFrame({name: {"faithfulness": f.vs_spliced, "gap": f.gap} for name, f in both.items()}).T

# %% [markdown]
# Nodes that look dispensable one by one need not be dispensable together: some replace one another,
# and some only matter where the model is unsure. Compare faithfulness and gap.
#
# **Verdict 3.** We tested each node *alone*. Wang et al. ask for less: a node belongs if it matters
# after *some* other set K is removed too, so that a node with a backup still counts. Say which K,
# and *for what* a node is needed. Pad the circuit before you trust the test.
#
# ## 5. Hypothesis tests
#
# Would a faithfulness of 0.9 be surprising? A hypothesis test names a null hypothesis, and p is the
# chance of a result at least as extreme if it is true. Shi et al. 2024 propose three tests for
# circuits.
#
# - **Equivalence.** Null: on 40 % to 60 % of all such prompts, the circuit's logit difference is
#   above that of S. Rejecting it (small p) shows that the circuit is too sure, or too unsure, too
#   often.
# - **Independence.** Null: among prompts with the same two answers, what is left without the
#   circuit, S∖C, varies independently of S. Rejecting it shows that something outside the circuit
#   knows what S knows. (HSIC measures dependence: 0 = independent.)
# - **Minimality.** Null, for each node: removing it changes the answer more than removing 90 % of
#   random nodes that were put in. Rejecting it shows that the node does not stand out.
#
# In all three, a small p speaks *against* the circuit, and a large p proves nothing: with few
# prompts every circuit passes.

# %%
answers = [(pair.clean_answer, pair.patch_answer) for pair in test.pairs]
equivalences, independences = {}, {}
for name, masks in on_trial.items():
    equivalences[name] = equivalence(evaluation(masks), f_spliced)
    without_it = evaluation(knock_out(everything, masks.nodes()))
    independences[name] = independence(without_it, f_spliced, groups=answers, seed=SEED)
    print(f"{name}. {equivalences[name]}\n{independences[name]}\n")

# %% [markdown]
# For minimality, each random node is put into the circuit alone, and taken out again. Here a change
# in either direction counts; in section 4 only a fall of more than 1 %. The more nodes are tested,
# the more random nodes it takes to call one of them needed. (The quick profile has too few.)

# %%
enough = references_needed(len(nodes))
n_references = 8 if QUICK else enough
references = strangers(n_references, SEED + 2)
print(
    f"With {enough} random nodes, a node is called needed if it beats all; with fewer, none can "
    f"be. Here there are {n_references}."
)
minimalities = {}
for name, drops in (
    ("learned mask", drop_each(evaluation, circuit, nodes)),
    ("IG best", ig_dropped),
):
    changes = inflated_drops(evaluation, on_trial[name], references)
    minimalities[name] = minimality(drops, changes)
    print(f"{name}. {minimalities[name]}")

# %% [markdown]
# A fourth test compares the circuit with the random circuits of section 2. Null: its gap comes from
# the same distribution as theirs. Here a small p speaks *for* the circuit. The test is easy to
# pass, and p cannot be below 1 / (1 + the number of random circuits).

# %%
gap_of = {"learned mask": found.gap.value, "IG best": ig_found.gap.value}
p_values = {
    name: {
        "equivalence": equivalences[name].p_value,
        "independence": independences[name].p_value,
        "minimality, smallest of all nodes": minimalities[name].p_value.min().item(),
        "rank among random circuits": rank_p_value(-gap_of[name], -random_gap),
    }
    for name in on_trial
}
p_table = pd.DataFrame(p_values)
against = {
    name: [test_name for test_name in p_table.index[:3] if p_table.loc[test_name, name] < LEVEL]
    for name in on_trial
}
p_table.round(3)

# %%
for name, rejected in against.items():
    print(f"Against {name}, below {LEVEL}: {', '.join(rejected) or 'no test'}.")
    print(f"  It is above S on {equivalences[name].share} of the prompts.")
for test_name, row in p_table.iterrows():
    report[f"p, {test_name}"] = [*(f"{p:.3f}" for p in row), "– (a p-value)"]
report["share of prompts above S"] = [*(str(e.share) for e in equivalences.values()), "prompts"]

# %% [markdown]
# **Verdict 4.** State the null hypothesis in words, and what a small p speaks for. "Not rejected"
# is no finding. The nearest to showing equivalence is an interval of the share that lies within 0.4
# to 0.6.
#
# ## 6. Stability
#
# Does another size, order or half of the prompts give the same circuit? We compare sets of nodes by
# their Jaccard index, |A∩B| / |A∪B| (or IoU). What would chance give?
#
# ### Exercise 5.6 · Chance
# ⏱ 15 min · difficulty ●●○ · is 0.3 a lot? Compare with chance
#
# Two circuits of `n_a` and `n_b` nodes are drawn at random from `n` nodes. What is their Jaccard
# index on average, exactly? Which overlaps can occur, how likely is each, and which index goes with
# it? (Dividing the expected overlap by the expected union is close for large circuits and wrong for
# small ones.)
#
# **Predict** the value for two circuits of 17 nodes. And **decide** what chance may draw from: all
# nodes, those that ever fire in such sentences, or those that fire at the layers and positions
# where our circuit has nodes. Which is hardest to beat?
#
# <details><summary>Hint 1</summary> The mean over all possible overlaps k of P(k) times the Jaccard
# at k.</details>
# <details><summary>Hint 2</summary> The first circuit marks n_a of n nodes. How many of n_b nodes,
# drawn without replacement, are marked? The distribution is the hypergeometric one: in
# <code>scipy.stats</code>, or from three <code>math.comb</code>.</details>
# <details><summary>Hint 3</summary> With overlap k, the union has n_a + n_b − k nodes.</details>
# <details><summary>Hint 4</summary> P(k) = C(n_a, k) · C(n − n_a, n_b − k) / C(n, n_b). Divide
# whole numbers only at the end of each term, and nothing overflows.</details>

# %% tags=["exercise"]
# exercise: chance_jaccard

# %%
check(chance_jaccard)

# %% [markdown]
# **What you should see:** values far below 0.01 for circuits of our size, in each of the three
# pools below.
#
# <details><summary>My values look wrong</summary>
#
# - *Slightly too large or small:* you divided the expected overlap by the expected union.
# - *Above 1:* you forgot to divide by the union at all.
# </details>

# %%
its_places = {(hook_point, position) for hook_point, position, _ in nodes}
n_there = sum(int((chance[h][p] > 0).sum()) for h, p in its_places)
drawn_from = {
    "all nodes": n_all,
    "nodes that fire": n_firing,
    "nodes that fire at the circuit's layers and positions": n_there,
}
chance_of = {
    name: chance_jaccard(len(nodes), len(nodes), size) for name, size in drawn_from.items()
}
pd.DataFrame({"to draw from": drawn_from, "chance": chance_of}).round(5)

# %% [markdown]
# The smaller the pool, the harder the control. From here on we draw from the nodes that fire: those
# that never do are no rivals, and where a circuit sits is part of what two runs may agree on.
#
# Seeds change only the order of the prompts. So we learn two more masks on disjoint halves. All
# prompts with one subject noun, singular or plural, go to the same half: otherwise both would have
# the same nouns.

# %%
nouns = [
    frozenset(prompt.split()[1] for prompt in (pair.clean_prefix, pair.patch_prefix))
    for pair in train.pairs
]
halves = split_by(train, nouns, seed=SEED)
for name, part in zip(("half 1", "half 2"), halves):
    runs[SIZE, name] = learn_masks(spliced, part, means=means, n_nodes=SIZE, seed=SEED, **LEARNING)
print(f"The halves have {len(halves[0])} and {len(halves[1])} prompts, and no subject in common.")

# %%
sets = {key: run.masks.nodes() for key, run in runs.items() if run.n_nodes}
sets["IG best", 0] = ig_nodes
is_seed = lambda key: key[0] in SIZES and not isinstance(key[1], str)  # noqa: E731
is_half = lambda key: isinstance(key[1], str)  # noqa: E731
is_ig = lambda key: key[0] == "IG best"  # noqa: E731

# %%
pairs = list(itertools.combinations(sets, 2))


def mean_jaccard(which):
    """Of the pairs of runs that a rule picks: how many, their mean Jaccard, and what chance would
    give.
    """
    chosen = [(sets[a], sets[b]) for a, b in pairs if which(a, b)]
    if not chosen:
        return {"pairs": 0}
    by_chance = [chance_jaccard(len(a), len(b), n_firing) for a, b in chosen]
    anywhere = [
        metrics.jaccard({(h, i) for h, _, i in a}, {(h, i) for h, _, i in b}) for a, b in chosen
    ]
    same = [metrics.jaccard(a, b) for a, b in chosen]
    values = pd.DataFrame({"Jaccard": same, "latents, any position": anywhere, "chance": by_chance})
    ends = {"lowest": values["Jaccard"].min(), "highest": values["Jaccard"].max()}
    return {"pairs": len(chosen), **values.mean(), **ends}


# %%
stability = pd.DataFrame(
    {
        f"{SIZE} nodes, other order of prompts": mean_jaccard(
            lambda a, b: a[0] == b[0] == SIZE and is_seed(a) and is_seed(b)
        ),
        f"{SIZE} nodes, disjoint nouns": mean_jaccard(lambda a, b: is_half(a) and is_half(b)),
        "other size, same seed": mean_jaccard(
            lambda a, b: a[0] != b[0] and a[1] == b[1] and not is_ig(b)
        ),
        f"{SIZE} nodes, mask and IG best": mean_jaccard(
            lambda a, b: is_ig(b) and a[0] == SIZE and is_seed(a)
        ),
    }
).T
stability.round(4)

# %%
of_one_size = {key: some for key, some in sets.items() if key[0] in (SIZE, "IG best")}
labels = [
    f"{which if is_half((size, which)) else f'seed {which}'} ({len(some)})"
    if size == SIZE
    else f"IG best ({len(some)})"
    for (size, which), some in of_one_size.items()
]
matrix = torch.tensor(
    [[metrics.jaccard(a, b) for b in of_one_size.values()] for a in of_one_size.values()]
)

# %%
over_seeds = stability.loc[f"{SIZE} nodes, other order of prompts"]
of_seeds, by_chance = over_seeds["Jaccard"], over_seeds["chance"]
of_halves = stability.loc[f"{SIZE} nodes, disjoint nouns"].get("Jaccard", math.nan)
title = f"Two seeds share {of_seeds:.0%} of their nodes on average; chance is {by_chance:.2%}"
report["stability over seeds (Jaccard)"] = [
    f"{of_seeds:.2f} ({over_seeds['lowest']:.2f} to {over_seeds['highest']:.2f}); chance "
    f"{by_chance:.4f}",
    "– (IG has no seed)",
    f"pairs of seeds ({over_seeds['pairs']:.0f}): range",
]
report["stability over disjoint nouns"] = [f"{of_halves:.2f}", "", "– (one pair of halves)"]
alt = f"A matrix of the Jaccard index between circuits of one size. {title}."
figures.show(figures.matrix_figure(matrix, labels, title, "Jaccard"), alt=alt)

# %% [markdown]
# Are small circuits parts of large ones (*nested*)? Here the Jaccard index is low by size alone: 12
# nodes inside 25 give 12/25 = 0.48. So we take the share of the small circuit's nodes that are in
# the large one. The second table compares seeds layer by layer.

# %%
nested = {}
for small, large in itertools.combinations(SIZES, 2):
    shares = [
        metrics.nesting(runs[a].masks.nodes(), runs[b].masks.nodes())
        for a, b in itertools.product(to_learn, to_learn)
        if (a[0], b[0]) == (small, large)
    ]
    nested[f"{small} in {large}"] = {
        "pairs of runs": len(shares),
        "mean share": sum(shares) / len(shares),
        "lowest": min(shares),
        "highest": max(shares),
    }
nested = pd.DataFrame(nested).T
report["nesting over sizes"] = [
    f"{nested['mean share'].mean():.2f} ({nested['lowest'].min():.2f} to "
    f"{nested['highest'].max():.2f}) of the smaller circuit",
    "1 (by construction)",
    f"pairs of runs ({nested['pairs of runs'].sum():.0f}): range",
]
nested.round(2)

# %%
layerwise = {
    f"seeds {SEED} and {seed}": metrics.iou_per_layer(circuit, runs[SIZE, seed].masks)
    for seed in SEEDS[1:]
}
pd.DataFrame(layerwise).round(2)

# %% [markdown]
# Different nodes may do the same work. Here is the faithfulness of each circuit, of the *core* that
# all seeds share, and of all nodes that occur in any seed:

# %%
of_each_seed = [set(runs[SIZE, seed].masks.nodes()) for seed in SEEDS]
candidates = {f"seed {seed}": list(one) for seed, one in zip(SEEDS, of_each_seed)}
candidates |= {
    "core: in every seed": list(set.intersection(*of_each_seed)),
    "in any seed": list(set.union(*of_each_seed)),
}
judged = {name: evaluation.faithfulness(only(nothing, some)) for name, some in candidates.items()}
n_core, core = len(candidates["core: in every seed"]), judged["core: in every seed"]
report["core of all seeds"] = [
    f"{n_core} nodes, faithfulness {core.vs_spliced}, gap {core.gap}",
    "",
    "prompts",
]
rows = {
    name: {"nodes": len(candidates[name]), "faithfulness": f.vs_spliced, "gap": f.gap}
    for name, f in judged.items()
}
pd.DataFrame(rows).T

# %%
times_found = Counter(node for one in of_each_seed for node in one)
in_seeds = pd.Series(times_found.values(), name="nodes").value_counts().sort_index(ascending=False)
in_seeds.rename_axis(f"in how many of the {len(SEEDS)} seeds").to_frame()

# %% [markdown]
# **Verdict 5.** A Jaccard below 1 has two readings. If the core holds nearly all of the smallest
# circuit and is nearly as faithful, the circuit is that core with optional nodes. If the core is
# small or fails, the circuit is *one of several*. Report the core and how often each node was
# found, not the list of one run.
#
# ## 7. Other prompts, other ablations
#
# ### Case by case
#
# An average near 1 can hide a circuit that ignores the distractor. *The prisoners opposite the
# professor*: S is less sure where the two nouns disagree. Is the circuit less sure, too?

# %%
cases = [pair.case.replace("_", " / ") for pair in test.pairs]
answer_of = {"F(S)": f_spliced, "learned mask": f_circuit, "IG best": f_rival}
rows_of = {case: torch.tensor([other == case for other in cases]) for case in sorted(set(cases))}
by_case = {
    name: {case: mean_interval(ld[rows]) for case, rows in rows_of.items()}
    for name, ld in answer_of.items()
}
agree = torch.tensor([len(set(case.split(" / "))) == 1 for case in cases]).float()


def pull_kept(ld):
    """How much of the distractor's pull in S a circuit keeps: 1 = as much, 0 = it ignores it.

    The pull is F where the nouns agree minus F where they differ.
    """

    def share(c_agree, c_differ, s_agree, s_differ, n):
        pull = lambda a, b: a / n - b / (1 - n)  # noqa: E731
        return pull(c_agree, c_differ) / pull(s_agree, s_differ)

    groups = [some * where for some in (ld, f_spliced) for where in (agree, 1 - agree)]
    return bootstrap(share, [*groups, agree])


# %%
kept_pull, ig_kept_pull = pull_kept(f_circuit), pull_kept(f_rival)
title = (
    f"The circuit keeps {kept_pull.value:.0%} of the distractor's pull, IG's keeps "
    f"{ig_kept_pull.value:.0%}"
)
axis = figures.ValueAxis("mean logit difference (logits)")
figures.show(
    figures.estimates_figure(
        by_case,
        axis,
        title,
        place_label="number of the subject / of the distractor",
        over=f"{len(test)} prompts in all",
    ),
    alt=f"The logit difference of S and of both circuits, by the number of both nouns. {title}.",
)
report["the distractor's pull that it keeps"] = [str(kept_pull), str(ig_kept_pull), "prompts"]
print(f"Faithfulness {found.vs_spliced.value:.2f}, and the pull that is kept: {kept_pull}.")
print(f"IG's circuit: {ig_found.vs_spliced.value:.2f}, and {ig_kept_pull}.")

# %%
right = {f"right, {name}": torch.as_tensor(ld > 0).float() for name, ld in answer_of.items()}
right_by_case = pd.DataFrame({"subject / distractor": cases, "prompts": 1, **right})
right_by_case.groupby("subject / distractor").agg(
    {"prompts": "sum"} | dict.fromkeys(right, "mean")
).round(2)

# %% [markdown]
# The circuit may be right where S is wrong: then it is not what the model does there.
#
# A circuit that ignored the distractor would keep 0 of its pull, and its faithfulness could still
# be 1.
#
# ### Other words, another sentence
#
# Is this a circuit of *agreement*, or of our prompts? `sva_reworded` has other determiners and
# prepositions in the same places (*Their victims under her resident*). `sva_simple` has no
# distractor (*The victims*): there the circuit is **moved**, and its nodes of the subject and of
# the last position both go to the noun. Each task is judged against its own F(S) and F(∅), with its
# own means.


# %%
def elsewhere(task, position_map):
    """Both circuits on the test prompts of another task, and their paired differences."""
    learn = load_task(task, lab.tokenizer, "train", n=N_TRAIN)
    report_on = load_task(task, lab.tokenizer, "test", n=N_TEST)
    judge = Evaluation(spliced, report_on, spliced.patch_means(learn.patch))
    both = [moved(masks, position_map, report_on.seq_len).masks for masks in on_trial.values()]
    of_mask, of_ig = map(judge.faithfulness, both)
    return {
        "nodes, mask": both[0].get_num_latents(),
        "nodes, IG": both[1].get_num_latents(),
        "F(S)": f"{of_mask.f_spliced:.2f}",
        "F(∅)": f"{of_mask.f_empty:.2f}",
        "faithfulness, mask": of_mask.vs_spliced,
        "faithfulness, IG": of_ig.vs_spliced,
        "gap, mask": of_mask.gap,
        "gap, IG": of_ig.gap,
        "distance, mask − IG": judge.paired_difference(*both, "distance"),
        "gap, mask − IG": judge.paired_difference(*both, "gap"),
    }


# %%
places_here = range(spliced.first, test.seq_len)
maps = {
    "sva_reworded": {place: place for place in places_here},
    "sva_simple": {1: 1, 2: 2, test.seq_len - 1: 2},
}
there = {task: elsewhere(task, position_map) for task, position_map in maps.items()}
pd.DataFrame(there).map(str)

# %%
for task, numbers in there.items():
    report[f"faithfulness on {task}"] = [
        str(numbers["faithfulness, mask"]),
        str(numbers["faithfulness, IG"]),
        "prompts",
    ]
    by_distance, by_gap = (better(numbers[f"{m}, mask − IG"]) for m in ("distance", "gap"))
    print(f"{task}: the distance favours {by_distance}; the gap favours {by_gap}.")

# %% [markdown]
# ### Other ablations
#
# What counts as *nothing* is a choice too. Miller et al. 2024 show for circuits of heads that the
# same circuit passes or fails by what replaces the parts that are left out. We try four:
#
# - **zero**;
# - the **mean** over training patch prompts, position by position, as everywhere above;
# - the mean over training patch prompts **of the same case**. Such a mean says the *wrong* number
#   of the subject, so F(∅) is far below 0: another scale;
# - **another prompt** (resampled ablation): for each test prompt, the values of one random training
#   patch prompt, the same for all circuits.

# %%
draws_of_prompts = torch.Generator().manual_seed(SEED)
donors = train.patch[torch.randperm(len(train), generator=draws_of_prompts)[: len(test)]]
train_cases = [pair.case.replace("_", " / ") for pair in train.pairs]
case_means = {
    case: spliced.patch_means(train.patch[[i for i, c in enumerate(train_cases) if c == case]])
    for case in rows_of
}


def with_case_means(masks):
    """Logit differences with the means of each prompt's own case."""
    ld = torch.empty(len(test))
    for case, rows in rows_of.items():
        ld[rows] = spliced.logit_diff(test[rows], masks=masks, means=case_means[case]).cpu()
    return ld


ablations = {
    "zero": lambda masks: spliced.logit_diff(test, masks=masks).cpu(),
    "mean": evaluation,
    "mean of the same case": with_case_means,
    "another prompt": lambda masks: resampled_logit_diff(spliced, test, masks, donors).cpu(),
}

# %%
rows, gap_differences = {}, {}
for name, ld_of in ablations.items():
    reference = Reference(evaluation.model, f_spliced, ld_of(nothing))
    answers_of = [ld_of(masks) for masks in on_trial.values()]
    so, ig_so = (Faithfulness.of(ld, **vars(reference)) for ld in answers_of)
    gap_differences[name] = paired_difference(*(ld[None] for ld in answers_of), "gap", reference)
    rows[name] = {
        "F(∅)": f"{so.f_empty:.2f}",
        "F(C), mask": f"{so.f_circuit:.2f}",
        "F(C), IG": f"{ig_so.f_circuit:.2f}",
        "faithfulness, mask": so.vs_spliced,
        "faithfulness, IG": ig_so.vs_spliced,
        "gap, mask": so.gap,
        "gap, IG": ig_so.gap,
        "gap, mask − IG": gap_differences[name],
    }
by_ablation = pd.DataFrame(rows)
by_ablation.map(str)

# %%
for name in ablations:
    values = by_ablation[name]
    report[f"faithfulness, ablation by {name}"] = [
        str(values["faithfulness, mask"]),
        str(values["faithfulness, IG"]),
        "prompts and donors" if name == "another prompt" else "prompts",
    ]
    print(f"By {name}: the gap favours {better(gap_differences[name])}.")
shares = [by_ablation[name]["faithfulness, mask"].value for name in ablations]
print(f"One circuit, four ablations: its faithfulness is {min(shares):.2f} to {max(shares):.2f}.")

# %% [markdown]
# The mask was learned with mean ablation, and this variant of IG points to the means. Neither was
# made for the other ablations. With zero, a bottleneck also loses what is the same in all
# sentences. With another prompt, the latents that are left out speak for the wrong number about
# half of the time.
#
# **Verdict 6.** Name the prompts and the ablation. A circuit is a circuit *of a behaviour under an
# ablation*, and an average over cases hides which part of the behaviour.
#
# ## 8. One number for a method: CPR and CMD
#
# A *method* gives circuits of every size. The MIB benchmark (Mueller et al. 2025) integrates
# faithfulness over sizes, as shares k of all nodes:
#
# $$\mathrm{CPR} = \int_0^1 f(C_k)\,dk \qquad\qquad \mathrm{CMD} = \int_0^1 |1 - f(C_k)|\,dk$$
#
# with $f(C_k) = (F(C_k) - F(\varnothing)) / (F - F(\varnothing))$, measured at k = 0.1 %, 0.2 %,
# 0.5 %, … 50 %, 100 % and joined by straight lines. The circuit performance ratio (CPR) rewards
# everything that raises the answer. The circuit–model distance (CMD) counts deviations in both
# directions: f = 1.3 is as bad as 0.7.
#
# ### Exercise 5.7 · Two areas
# ⏱ 10 min · difficulty ●○○ · to compare methods without choosing a size
#
# Return CPR and CMD by the trapezoid rule.
#
# <details><summary>Hint 1</summary> A trapezoid: width times the mean of its two heights.</details>
# <details><summary>Hint 2</summary> For CMD the heights are |1 − f| at both ends: take the absolute
# value first, the area after.</details>

# %% tags=["exercise"]
# exercise: cpr_cmd

# %%
check(cpr_cmd)

# %% [markdown]
# AtP and IG rank nodes, and a ranking gives circuits of all ten sizes. A mask is learned for *one*
# size, so it has no such curve. We also cut circuits from the θ of one mask, as if θ were a
# ranking. That is unfair to the mask: its training never asks for an order. "All nodes" are those
# that fire, and F is F(S).

# %%
theta = {
    name: value.masked_fill(chance[name] == 0, -math.inf)
    for name, value in runs[SIZE, SEED].theta.items()
}
rankings = {
    "AtP to means": (atp(spliced, train, means=means, baseline="mean", progress=True), "abs"),
    "IG best": (ig_scores, "abs"),
    "θ of one mask": (theta, "signed"),
    "random": (chance, "signed"),
}
# all ten sizes, or four of them
fractions = metrics.sizes_at(metrics.MIB_FRACTIONS[:: 3 if QUICK else 1], n_firing)

# %%
tables = {}
for name, (score, rank) in rankings.items():
    cuts = [SAEMasks.from_scores(score, n, rank=rank) for n in list(fractions.values())[:-1]]
    tables[name] = [*map(evaluation, cuts), f_spliced]  # the last: all nodes
curves = {
    name: [((row.mean() - f_empty.mean()) / scale).item() for row in table]
    for name, table in tables.items()
}
reference = Reference(evaluation.model, f_spliced, f_empty)
n_draws = dict(n_bootstrap=200) if QUICK else {}
rows = {}
for name, table in tables.items():
    circuits = [row[None] for row in table]
    yours = cpr_cmd(list(fractions), curves[name])
    interval_of = dict(
        zip(("CPR", "CMD"), metrics.area_intervals(list(fractions), circuits, reference, **n_draws))
    )
    rows[name] = {"CPR (yours)": yours[0].item(), "CMD (yours)": yours[1].item(), **interval_of}
of_rankings = pd.DataFrame(rows).T
of_rankings.round(2)

# %%
smallest = min(rows, key=lambda name: rows[name]["CMD"].value)
largest = max(rows, key=lambda name: rows[name]["CPR"].value)
title = f"Over all sizes, CMD favours {smallest}, and CPR favours {largest}"
alt = (
    "Faithfulness against the share of nodes kept, on a linear and a log scale, a "
    f"line for each ranking. {title}."
)
of_ours = len(nodes) / n_firing
caption = f"means over {len(test)} prompts; grey: the size of the circuit on trial"
figure = figures.areas_figure(list(fractions), curves, title, mark=of_ours, caption=caption)
figures.show(figure, alt=alt)

# %% [markdown]
# **What you should see:** your areas equal the course's. CPR and CMD integrate the left panel. Most
# of its width belongs to circuits of 10 % to 100 % of the nodes. The circuits that people draw have
# less than 1 %, and hardly count.
#
# <details><summary>My values look wrong</summary>
#
# - *CMD near 0 for a method that overshoots:* the distances kept their signs and cancelled.
# - *A CPR of about 0.1 for random and 0.7 for AtP:* you averaged over the sizes. They are not
#   evenly spaced.
# - *A CPR above 1:* no mistake, if circuits overshoot. CPR rewards that; CMD does not.
# </details>

# %%
next_size = min(k for k, size in fractions.items() if size >= len(nodes))
print(f"The circuit on trial has {of_ours:.2%} of the nodes that fire.")
print(
    f"All circuits of up to {next_size:.1%} of the nodes lie in the first {next_size:.1%} of the "
    "width, and so hardly change an area."
)

# %% [markdown]
# ### The sizes that people draw
#
# At the sizes that masks were learned for, all methods have circuits. We compare them there. A
# rival gets as many nodes as the largest mask of a size. A mask has several seeds, each a small
# point.

# %%
frontier = Frontier.of(spliced, test)
for size, seed in to_learn:
    frontier.judge("learned mask", runs[size, seed].masks, evaluation, seed=seed, wanted=size)
largest_of = {size: max(runs[key].n_nodes for key in to_learn if key[0] == size) for size in SIZES}
rivals = ["IG best", "AtP to means", "random"]
for name in rivals:
    score, rank = rankings[name]
    for size, n in largest_of.items():
        cut = SAEMasks.from_scores(score, n, rank=rank)
        frontier.judge(name, cut, evaluation, wanted=size)

# %%
said = summary_sentence(frontier, "learned mask", rivals)
print(said)
wins = {name: frontier.wins("learned mask", name, ["IG best"])["IG best"] for name in favours}
title = "Learned masks beat IG best at " + ", ".join(
    f"{len(sizes['better'])} of {len(SIZES)} sizes by the {name}" for name, sizes in wins.items()
)
figures.show(
    figures.measures_figure(frontier, title=title),
    alt=f"Four measures against the number of nodes, a line for each method. {said}",
)

# %% [markdown]
# The differences, on the same prompts:

# %%
n_clear = sum(len(sizes["better"]) for sizes in wins.values())
n_lost = sum(len(sizes["worse"]) for sizes in wins.values())
n_compared = 2 * len(SIZES)
title = f"Of {n_compared} comparisons, learned masks clearly win {n_clear}, and IG best {n_lost}"
figures.show(
    figures.paired_figure(frontier, "learned mask", ["IG best"], title=title),
    alt=f"By how much IG best is worse than the learned mask, by size. {title}. {said}",
)

# %% [markdown]
# And the areas over these sizes. We integrate over ln k, where each doubling of the size counts the
# same. (A perfect method has a CPR of 1 and a CMD of 0.) |1 − f| is computed for each seed, then
# averaged.


# %%
def cmd_difference(one, other):
    """CMD over ln k of one method minus that of another, over the same sizes and prompts."""
    at_sizes = [frontier.logit_diffs(name, size) for name in (one, other) for size in SIZES]
    counts = [len(rows) for rows in at_sizes]

    def statistic(whole, empty, *circuits):
        f = (torch.stack(circuits) - empty) / (whole - empty)
        distances = [(1 - rows).abs().mean(0) for rows in f.split(counts)]
        halves_of = distances[: len(SIZES)], distances[len(SIZES) :]
        ours, theirs = (metrics.areas(shares_of_all, half, log=True)[0] for half in halves_of)
        return ours - theirs

    return bootstrap(statistic, [f_spliced, f_empty, *torch.cat(at_sizes)], **n_draws)


# %%
shares_of_all = [size / n_firing for size in SIZES]
areas_of = {
    name: frontier.areas(name, n_firing, sizes=SIZES, log=True, **n_draws)
    for name in ("learned mask", *rivals)
}
cmd_differences = {name: cmd_difference("learned mask", name) for name in rivals}
pd.DataFrame(
    {
        name: {"CPR": area.cpr, "CMD": area.cmd, "CMD, mask − this": cmd_differences.get(name, "")}
        for name, area in areas_of.items()
    }
).T.map(str)

# %%
cmd_of = {name: area.cmd.value for name, area in areas_of.items()}
report[f"CMD of the method, {SIZES[0]} to {SIZES[-1]} nodes"] = [
    str(areas_of["learned mask"].cmd),
    str(areas_of["IG best"].cmd),
    "prompts (seeds averaged)",
]
for name, difference in cmd_differences.items():
    winner = {"the mask": "the learned masks", "IG's circuit": name}.get(
        better(difference), "neither"
    )
    print(f"Of learned masks and {name}, CMD favours {winner} ({difference}).")

# %% [markdown]
# CPR and CMD compare means over prompts, as f does, and do not see the gap. The figures above show
# both. The curve of θ is no verdict on learned masks. Where a curve overshoots, its CPR rises and
# its CMD gets worse.
#
# **Verdict 7.** An area hides which sizes it comes from. Compare methods over the same sizes, and
# show the curve, on a log scale too.
#
# ## 9. A causal story
#
# What do the kept latents *do*? We look at what each responds to (in our sentences, and in plain
# text), where it is, and what its decoder row would write if it went straight to the output (the
# *logit lens*). None of this is proof.
#
# First, our sentences. A node's **separation** is the chance that its value is higher for a plural
# noun than for a singular one. 1 means always, 0 never, and 0.5 that it does not respond to number.
# In the table, a node "responds to" the subject, or else to the distractor, if it tells that noun's
# number (separation of at least .8, or at most .2).


# %%
def is_plural(task):
    """Which prompts have a plural subject."""
    return torch.tensor([pair.case.startswith("plural") for pair in task.pairs])


test_run = spliced.run(test.clean)
plural_subject = is_plural(test)
plural_other = torch.tensor([pair.case.endswith("plural") for pair in test.pairs])


def kind_of(subject, other):
    """What a node responds to, by its separations: a word for people."""
    for value, noun in ((subject, "subject"), (other, "distractor")):
        if value >= 0.8 or value <= 0.2:
            return f"{'plural' if value >= 0.8 else 'singular'} {noun}"
    return "neither clearly"


# %%
verbs = [(" are", " is"), (" were", " was"), (" have", " has")]
by_layer = {
    layer: sorted({i for h, _, i in nodes if h.split(".")[1] == str(layer)}) for layer in LAYERS
}
by_layer = {layer: some for layer, some in by_layer.items() if some}
lens, writes_plural = {}, {}
for layer, some in by_layer.items():
    found_here = explain.logit_lens(lab, layer, some)
    lens |= {(layer, i): found_here[i] for i in some}
    plural = explain.lens_difference(lab, layer, some, verbs)
    writes_plural |= {(layer, i): x for i, x in zip(some, plural.tolist())}

# %%
rows = []
for h, p, i in nodes:
    layer, f = int(h.split(".")[1]), test_run.latents[h][:, p, i].cpu()
    subject, other = auc(f, plural_subject), auc(f, plural_other)
    rows.append(
        {
            "layer": layer,
            "position": places[p],
            "latent": i,
            "responds to": kind_of(subject, other),
            "subject": subject,
            "distractor": other,
            "writes plural": writes_plural[layer, i],
            "promotes": " ".join(lens[layer, i]["promotes"][:5]),
        }
    )
story = pd.DataFrame(rows)
story.round(2)

# %% [markdown]
# "Writes plural" is the logit lens of three verb pairs: how much more the decoder row promotes
# *are, were, have* than *is, was, has*. The lens sees only the direct path to the output. After the
# last layer there is no other path. Latents of earlier layers also write for later layers to read.
#
# Is the story consistent? A latent that fires for plural subjects should write plural verbs, and
# one for singular subjects singular verbs. In the last layer this prediction can fail:

# %%
last = story[(story.layer == LAYERS[-1]) & story["responds to"].str.endswith("subject")]
n_agree = int((last["responds to"].str.startswith("plural") == (last["writes plural"] > 0)).sum())
report["what it responds to"] = [
    ", ".join(f"{n} {kind}" for kind, n in story["responds to"].value_counts().items()),
    "",
    "– (counts)",
]
print(f"After layer {LAYERS[-1]}, {len(last)} latents respond to the subject's number.")
print(f"Of these, {n_agree} write the verb in that number.")
story.groupby(["layer", "responds to"]).size().unstack(fill_value=0)

# %% [markdown]
# Next, plain text: short passages that the course's default model wrote itself (see
# `data/README.md`). In which contexts does each latent fire most? Choose one from the menu (in a
# running notebook). If its contexts have nothing to do with number, the name that we gave it holds
# for our sentences only.

# %%
texts = load_text(lab.tokenizer, "train")
texts = texts[:: len(texts) // (24 if QUICK else 250)]
print(f"{len(texts)} pieces of {texts.shape[1]} tokens")
contexts = explain.contexts_by_layer(lab, by_layer, texts, k=5, skip=3)


# %%
def card(h, p, i, row):
    """All that is known of a node, for the browser."""
    tokens, f = lens[row.layer, i], test_run.latents[h][:, spliced.first :, i].cpu()
    groups = {"singular subject": ~plural_subject, "plural subject": plural_subject}
    fires = {
        name: dict(zip(places[spliced.first :], f[yes].mean(0).tolist()))
        for name, yes in groups.items()
    }
    by = f"{row.subject:.2f} by subject, {row.distractor:.2f} by distractor"
    says = f"In our sentences: {row['responds to']} (separation {by})."
    name = f"layer {row.layer} · {row.position} · latent {i}"
    return explain.LatentCard(
        name, says, contexts[row.layer, i], tokens["promotes"], tokens["suppresses"], fires
    )


cards = [card(h, p, i, row) for (h, p, i), (_, row) in zip(nodes, story.iterrows())]
browse_latents([*cards[:1], *cards[-2:], *cards[1:-2]])

# %% [markdown]
# How does the number get from the subject to the verb? We give one node alone its value on the
# patch sentence, let everything after it follow, and see how far each other node moves towards its
# own patch value (0 = not at all, 1 = all the way).
#
# Edges connect neighbouring SAEs only, so that no edge is a detour through another SAE. They start
# at a size of 0.1; a thicker edge has a larger weight. A weight is a share of the *receiver's own*
# change. A latent that follows the distractor may change little when the subject does, so a thick
# edge into it need not carry the subject's number. Below each latent's number are two words at
# which it fires most in the text, or, after the last layer, two tokens that it promotes. The node
# on top is the logit difference. Hover over a latent to see its card. Click it to see its inputs
# and outputs.

# %%
some = test[: 8 if QUICK else 32]
all_edges = edge_effects(spliced, some.clean, some.patch, nodes)
depth = torch.tensor([LAYERS.index(int(h.split(".")[1])) for h, _, _ in nodes])
edges = all_edges * (depth[None] == depth[:, None] + 1)
n_strong = int((edges.abs() >= 0.1).sum())
n_crossing = sum(nodes[v][1] != nodes[w][1] for v, w in (edges.abs() >= 0.1).nonzero().tolist())

# %% [markdown]
# One edge by hand, from the node whose edge is strongest:

# %%
v, w = max(itertools.permutations(range(len(nodes)), 2), key=lambda pair: edges[pair].item())
(h_v, p_v, i_v), (h_w, p_w, i_w) = nodes[v], nodes[w]
on_clean, on_patch = (spliced.run(tokens).latents for tokens in (some.clean, some.patch))
after_patch = intervene(spliced, some.clean, {nodes[v]: on_patch[h_v][:, p_v, i_v]}).latents
change = (after_patch[h_w] - on_clean[h_w])[:, p_w, i_w]
whole_change = (on_patch[h_w] - on_clean[h_w])[:, p_w, i_w]
edge = ((change * whole_change).sum() / whole_change.square().sum()).cpu()
torch.testing.assert_close(edge, all_edges[v, w], atol=1e-3, rtol=1e-3)
print(f"{names_of[v]} passes on to {names_of[w]}: {edge:.2f} of that node's change")


# %%
def words_of(row):
    """Two words on a latent."""
    found, tokens = contexts[row.layer, row.latent], lens[row.layer, row.latent]
    return few_words(found, tokens["promotes"], last=row.layer == LAYERS[-1])


graph = latent_graph(
    nodes,
    list(story["responds to"]),
    [words_of(row) for row in story.itertuples()],
    [f"{place}\n“{word.strip('[]')}”" for place, word in zip(places, test.position_labels)],
    all_edges,
    cards=cards,
    prompts=values_on_prompts(spliced, test, nodes),
    effects=answer_effects(spliced, some, nodes),
    answer="right − wrong verb",
)
title = f"{n_crossing} of {n_strong} edges carry the number from one word to another"
alt = (
    f"{title}. The {len(nodes)} latents by layer and position, coloured by what they respond to, "
    "with edges between neighbouring SAEs."
)
show_circuit(graph, title, alt)

# %%
strong = [(v, w) for v, w in (edges.abs() >= 0.1).nonzero().tolist()]
crossing = [(v, w) for v, w in strong if nodes[v][1] != nodes[w][1]]
staying = [edge for edge in strong if edge not in crossing]
print(
    f"{len(crossing)} of the {len(strong)} edges lead from one position to another (attention "
    "at work)."
)
print("The strongest of them, and of the others:")
ranked = [
    edge
    for group in (crossing, staying)
    for edge in sorted(group, key=lambda e: -edges[e].abs())[:4]
]
rows = [
    {"passed on": edges[v, w].item(), "from": names_of[v], "to": names_of[w]} for v, w in ranked
]
pd.DataFrame(rows).round(2)

# %% [markdown]
# ### The intervention
#
# If these latents carry the number, then giving them the value of the *other* number must flip the
# verb, in sentences with new nouns. For *The prisoners opposite the professor*, each latent gets
# its *average* over training sentences with a singular subject, and not its value in the patch
# sentence. All other latents remain free to disagree. `intervene` holds latents at given values; it
# is the hook of notebook 03 with a value in the place of 0:
#
# ```python
# def hold(f):  # what the SAE finds at this hook point, [batch, seq, d_sae]
#     f = f.clone()
#     f[:, position, latent] = value
#     return f
#
#
# spliced.run(tokens, latents={hook_point: hold})
# ```
#
# ### Exercise 5.8 · The other number
# ⏱ 15 min · difficulty ●●○ · an intervention is a prediction that can fail
#
# Return a dictionary: for each node, one value per sentence, the node's mean over training
# sentences of the *other* number.
#
# <details><summary>Hint 1</summary> Boolean tensors pick sentences:
# <code>f[train_is_plural]</code>.</details>
# <details><summary>Hint 2</summary> Two means per node; then each sentence takes the one that is
# not its own.</details>
# <details><summary>Hint 3</summary> <code>torch.where(condition, a, b)</code> also takes single
# numbers for a and b.</details>

# %% tags=["exercise"]
# exercise: other_number

# %%
check(other_number)

# %%
train_latents = {name: f.cpu() for name, f in spliced.run(train.clean, means=means).latents.items()}
train_plural = is_plural(train)


def right_prompts(judge):
    """The prompts that the model and the spliced model both get right."""
    return judge.task[(judge.spliced_model > 0) & (judge.model > 0)]


def flipped(model, chosen, prompts):
    """Which prompts prefer the other verb once these nodes have the other number's values."""
    values = other_number(train_latents, train_plural, is_plural(prompts), chosen)
    return intervene(model, prompts.clean, values).logit_diff(prompts).cpu() < 0


flippable, dev_flippable = right_prompts(evaluation), right_prompts(dev_evaluation)
print(f"{len(flippable)} test prompts are right, and {len(dev_flippable)} of dev.")

# %% [markdown]
# Controls, from easy to hard:
#
# - as many *strangers*;
# - as many strangers at the *same layers and positions*;
# - nodes in the same places that **know the number**: on training prompts they separate singular
#   from plural subjects as well as the circuit's own nodes do, or as well as any node that is left
#   there;
# - the nodes that know it **best, in any place**.
#
# A stranger's mean hardly differs between the numbers. That of the last two kinds does: they *know*
# the number. But the verb need not *use* what a node knows. No control takes a node of a learned
# circuit, or of IG's.
#
# There is also a ceiling: the patch sentence itself, whose subject really has the other number.

# %%
N_DRAWS = 1 if QUICK else 5
by_number = separations(train_latents, train_plural)
silent = [
    (name, *place) for name, score in chance.items() for place in (score == 0).nonzero().tolist()
]
in_circuits = {node for some in sets.values() for node in some}
pool = [node for node in random_nodes(chance, n_firing, seed=SEED) if node not in in_circuits]
matches = [
    matched_nodes(nodes, by_number, forbidden=[*silent, *in_circuits], seed=seed)
    for seed in range(N_DRAWS)
]
know_best = best_separators(by_number, len(nodes), forbidden=in_circuits)

# %%
draws = {
    "strangers": [strangers(len(nodes), seed) for seed in range(N_DRAWS)],
    "strangers, same places": [same_places(nodes, pool, seed=seed) for seed in range(N_DRAWS)],
    "same places, know the number": [match.nodes for match in matches],
    "know the number best, any place": [know_best],
}
print(matches[0])
know = [abs(by_number[name][p, i].item() - 0.5) + 0.5 for name, p, i in know_best]
print(f"The {len(know)} that know it best anywhere: mean separation {sum(know) / len(know):.2f}.")

# %% [markdown]
# First faithfulness: what do these nodes do alone, as a circuit?

# %%
alone = {"learned mask": found, "IG best": ig_found} | {
    name: evaluation.faithfulness(only(nothing, sets_of_nodes[0]))
    for name, sets_of_nodes in draws.items()
}
pd.DataFrame(
    {name: {"faithfulness": f.vs_spliced, "gap": f.gap} for name, f in alone.items()}
).T.map(str)

# %% [markdown]
# Then the intervention: how many verbs flip if these nodes have the other number's values?

# %%
flips = flipped(spliced, nodes, flippable)
controls = {
    name: torch.stack([flipped(spliced, some, flippable) for some in sets_of_nodes]).float().mean(0)
    for name, sets_of_nodes in draws.items()
}
whole_model = SplicedModel(lab, LAYERS, error="keep")
ceiling = spliced.run(flippable.patch).logit_diff(flippable).cpu() < 0
flip_shares = {
    "circuit latents": proportion(flips),
    "… in the model itself (errors kept)": proportion(flipped(whole_model, nodes, flippable)),
    "IG's circuit": proportion(flipped(spliced, ig_nodes, flippable)),
    **{name: proportion(values) for name, values in controls.items()},
    "ceiling: the patch sentence": proportion(ceiling),
}

# %%
by_circuit, by_strangers = flip_shares["circuit latents"], flip_shares["strangers, same places"]
knowing = [name for name in flip_shares if "know the number" in name]
by_knowing = max((flip_shares[name] for name in knowing), key=lambda share: share.value)
title = (
    f"{by_circuit.value:.0%} of {len(flips)} verbs flip; at most {by_knowing.value:.0%} with other "
    "nodes that know the number"
)
axis = figures.ValueAxis("share of test sentences whose verb flips", percent=True)
orange, over = list(flip_shares)[:2], f"{len(flips)} prompts"
figure = figures.estimates_figure(
    flip_shares, axis, title, bars=True, horizontal=True, highlight=orange, over=over
)
figures.show(figure, alt=f"Bars: the share of flipped verbs by intervention. {title}.")

# %% [markdown]
# **What you should see:** the circuit's bar far above the strangers'. (It may pass the "ceiling":
# an average over training sentences also removes the pull of the distractor, which the patch
# sentence still has.) "In the model itself" is the harder test: it adds back the SAEs' errors,
# which still contain the old number.
#
# <details><summary>My values look wrong</summary>
#
# - *Nothing flips:* each sentence got the values of its own number.
# - *About half:* you put in the mean of both numbers; that leaves the verb open.
# - *All sentences prefer "are":* one value for all sentences, in place of one for each.
# </details>

# %%
report["verbs flipped"] = [str(by_circuit), str(flip_shares["IG's circuit"]), "prompts"]
report["… in the model itself"] = [
    str(flip_shares["… in the model itself (errors kept)"]),
    "",
    "prompts",
]
report["… by others that know the number"] = [str(by_knowing), "", "prompts"]
strongest = sorted(nodes, key=lambda node: -on_dev[nodes.index(node)].mean())[:3]
on_dev_flips = [flipped(spliced, [node], dev_flippable).float().mean() for node in strongest]
lever = strongest[torch.stack(on_dev_flips).argmax()]
lever_name = names_of[nodes.index(lever)]

# %%
parts = {"the whole circuit": nodes} | {
    f"only those after layer {h.split('.')[1]}": some for h, some in by_layer_nodes.items()
}
parts |= {f"only {names_of[nodes.index(node)]}": [node] for node in strongest}
rows = {
    name: {"nodes": len(part), "flipped": proportion(flipped(spliced, part, flippable))}
    for name, part in parts.items()
    if part
}
by_lever = rows[f"only {lever_name}"]["flipped"]
report["… by one latent alone (chosen on dev)"] = [f"{by_lever} ({lever_name})", "", "prompts"]
print(f"The one that flips most verbs on dev, {lever_name}, flips {by_lever} on test.")
pd.DataFrame(rows).T

# %% [markdown]
# The table forces only a part of the circuit: one layer, or one of the three latents with the
# largest drops on `dev` in section 4. Where the nodes of one layer flip the verb, the number can be
# read *and written* there. Where one latent flips nearly as many verbs as all of them, the flip is
# evidence for that latent and not for the others. A latent that can flip the verb need not be
# necessary: sections 3 and 4 tested that.
#
# Some sentences, before and after, in the model itself (errors kept). The logit difference is that
# of the right verb minus the other:

# %%
few = flippable[:6]
values = other_number(train_latents, train_plural, is_plural(few), nodes)
before = whole_model.run(few.clean).logit_diff(few)
after = intervene(whole_model, few.clean, values).logit_diff(few)
pairs_of = [(pair.clean_answer, pair.patch_answer) for pair in few.pairs]
chosen = {
    name: [a if x > 0 else b for x, (a, b) in zip(ld, pairs_of)]
    for name, ld in (("before", before), ("after", after))
}
sentences = {"sentence": [pair.clean_prefix for pair in few.pairs]}
pd.DataFrame(
    {**sentences, **chosen, "LD before": before.tolist(), "LD after": after.tolist()}
).round(2)

# %% [markdown]
# **Verdict 8.** This is strong evidence that the number is *in* these latents: a prediction on new
# sentences, with controls. It does not show that all of them are needed. Where other nodes know the
# number and flip few verbs, knowing is not enough: the circuit's nodes are also read by the rest of
# the model.
#
# ## 10. The report
#
# A circuit should be published with these numbers, beside its rival of the same size. All are
# measured on `test`. Brackets are 95 % intervals, and the last column says over what.

# %%
pd.set_option("display.max_colwidth", None)
columns = ["learned mask", "IG best", "interval over"]
table = pd.DataFrame.from_dict(report, orient="index", columns=columns)
table.rename_axis(columns=f"{len(nodes)} nodes, seed {SEED}, n = {len(test)}")

# %%
by_seed = [judged[f"seed {seed}"].vs_spliced.value for seed in SEEDS]
rejected = ", ".join(against["learned mask"]) or "none"
recap = [
    f"Faithful: {len(nodes)} nodes keep {found.vs_spliced.value:.2f} of F(S) (IG best "
    f"{ig_found.vs_spliced.value:.2f}) and {kept_pull.value:.0%} of the distractor's pull; the gap "
    f"favours {favours['gap']}.",
    f"Complete: without it {spare.value:.2f} of the answer is left, but for {spares} of "
    f"{len(subsets)} parts of it, the whole has a spare.",
    f"Minimal: {n_needed} of its nodes are needed one by one, and {n_padding_needed} of "
    f"{len(padding)} that were put in at random; tests that speak against it: {rejected}.",
    f"Stable: two seeds have a Jaccard index of {of_seeds:.2f} (chance {by_chance:.4f}), and each "
    f"keeps {min(by_seed):.2f} to {max(by_seed):.2f} of F(S).",
    f"Causal: {by_circuit.value:.0%} of the verbs flip, and at most {by_knowing.value:.0%} with "
    f"other nodes that know the number. By what is put in for the rest, faithfulness is "
    f"{min(shares):.2f} to {max(shares):.2f}.",
]
for sentence in recap:
    print("-", sentence)
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away.** A faithfulness of .9 is only the beginning of a report. A learned mask
# finds a small *sufficient* set. Whether it is also complete, minimal and stable has to be tested,
# each with its own control: the whole model with the same knock-out, padding, chance overlap,
# latents that know as much. Name the rival, the ablation and the prompts. The intervention needs no
# denominator, and its controls show that knowing the number is not enough to flip the verb.
#
# **What it does not show.** It is one task and one model: change them before you generalise. Our
# names for latents come from our own sentences, from a few hundred texts that the model wrote
# itself, and from the logit lens, which sees only direct effects.
#
# **Key terms**: faithfulness, distance, gap, bootstrap interval, paired difference, completeness,
# incompleteness, knock-out, worst K, minimality, needed node, padding, strangers, control,
# hypothesis test, null hypothesis, p-value, stability, Jaccard index, nesting, core, resampled
# ablation, zero ablation, CPR, CMD, separation, logit lens, edge, intervention.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - [Wang et al. 2022, Interpretability in the Wild](https://arxiv.org/abs/2211.00593)
# - [Marks et al. 2024, Sparse Feature Circuits](https://arxiv.org/abs/2403.19647)
# - [Miller et al. 2024, Transformer Circuit Faithfulness Metrics Are Not
#   Robust](https://arxiv.org/abs/2407.08734)
# - [Shi et al. 2024, Hypothesis Testing the Circuit Hypothesis in
#   LLMs](https://arxiv.org/abs/2410.13032)
# - [Mueller et al. 2025, MIB: A Mechanistic Interpretability
#   Benchmark](https://arxiv.org/abs/2504.13151)
# - [Caples et al. 2025, Scaling Sparse Feature Circuit Finding to Gemma 9B][post]: the post
# - the documentation of [SAELens](https://decoderesearch.github.io/SAELens/) and
#   [transformers](https://huggingface.co/docs/transformers)
#
# **Next**: [notebook 06](06_adversarial_dictionaries.ipynb) finds circuits in a model of code, and
# uses them to predict which dictionaries fool it.
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
