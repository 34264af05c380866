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
# # 06 · Adversarial dictionaries
#
# ```
# >>> age = {'Bob': 1, 'Mary Ann': 2, 'Max': 4, 'Kim': 7, 'Luke': 5}
# >>> age['Ann']
# ```
#
# Python answers with a `KeyError`. To predict this, a model of code must look for the key in the
# dictionary and **find nothing**. This notebook shows which latents take part, and how a key such
# as `'Mary Ann'` misleads the model. From the latents you *predict* which dictionaries fool it.
# Then you measure how often they do.
#
# [*Scaling Sparse Feature Circuit Finding to Gemma 9B*][post] (Caples, Nainani, McDougall, rrenaud,
# 2025; "the post") found that Gemma 2 9B detects a missing key by the absence of a *duplicate*. We
# test this on a smaller model, Qwen2.5-Coder-1.5B-Instruct, with its published 4-bit weights.
#
# **At the end you can say**
#
# - which latents tell a missing key from one that is there, what feeds them, and where they fire;
# - whether the model *uses* them, and which control shows it;
# - which families of dictionaries fool the model, and why each needs a twin;
# - where a prediction from honest prompts holds, where it fails, and what a fit on attacks adds;
# - what it costs to mend the model by holding latents.
#
# **You need** notebooks 03 to 05, or to know what they explain: SAEs spliced into the residual
# stream, learned masks, faithfulness. **You write** eight functions. Until you do, the course's
# versions run in their place.
#
# **It takes** you about 95 minutes: 60 for the exercises, 35 to read. The notebook runs {times}.
# The first run also fetches 1.1 GB of weights and converts them, which takes a few minutes.
#
# **Contents**
#
# 1. The behaviour
# 2. SAEs that know one thing
# 3. The circuits
# 4. The causal story
# 5. From the story to an attack
# 6. Mending
# 7. A better *seen*
# 8. Playground
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b

# %% tags=["setup"]
# setup

# %%
import functools
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom
from torch import Tensor

started = time.perf_counter()

# %%
from course_utils import (
    DATA,
    Evaluation,
    Frontier,
    SAEMasks,
    SplicedModel,
    estimate,
    learn_masks,
    load_lab,
    load_task,
)

# %%
from course_utils.circuits import explain
from course_utils.circuits.attribution import random_scores
from course_utils.circuits.frontier import MASKS_DIR
from course_utils.circuits.graph import (
    answer_effects,
    few_words,
    latent_graph,
    values_on_prompts,
)
from course_utils.circuits.interventions import edge_effects
from course_utils.circuits.masks import load_circuits
from course_utils.circuits.published import published_circuits
from course_utils.circuits.saes import decode
from course_utils.circuits.statistics import auc, mean_interval, proportion, ratio_interval
from course_utils.display import figures
from course_utils.display.circuit_view import show_circuit
from course_utils.display.html import answer_html
from course_utils.display.profile import is_quick
from course_utils.display.widgets import browse_latents, play
from course_utils.labs.requirements import matrix_rate

# %%
from course_utils.prompts import sessions
from course_utils.prompts.sessions import DICTIONARIES, KEYS, MISSING, Session, quoted
from course_utils.prompts.text import load_text
from course_utils.prompts.tokens import token_ids, token_rows
from course_utils.studies import dictionaries
from course_utils.studies.dictionaries import FAMILIES, HONEST, LAST, QUERIED, Clamp
from course_utils.studies.kept import KeptAnswers
from course_utils.studies.ranking import Ranking, best_ranking
from course_utils.teaching.nb06 import check, exercise

# %% tags=["parameters"]
LAB = "qwen-coder"
# "quick" asks the model little, and reads what the full run was told
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
QUICK = is_quick(PROFILE)
# sections 1 to 3: prompts for means, and to report on, for each task
N_TRAIN, N_TEST = (3, 2) if QUICK else (dictionaries.N_LEARN, 32)
N_JUDGED = 2 if QUICK else 96  # to judge circuits on
SIZES = dictionaries.CIRCUITS  # nodes of a circuit, by task; the larger are the post's
# True: learn circuits and rank nodes again, which takes hours, in place of reading them
LEARN_CIRCUITS = False
# section 4: nodes of each layer to look at, prompt pairs for what feeds what, texts to look into
N_MAIN, N_PAIRS, N_TEXTS = 4, (2 if QUICK else 16), (4 if QUICK else 24)
# sections 4 to 7. Honest prompts of each kind with training keys: to choose latents, and to try
N_KNOWN, N_TRIED = 48, 6
# with test keys: honest prompts of each kind, prompts of each family, of each family's twin
N_HONEST, N_ATTACKS, N_TWINS = 48, 64, 24
N_YOURS = 4 if QUICK else 24  # of the family that you write
N_DRAWS = 4  # of strangers, the control for holding latents
# of the search, and attacks of a family to mend
GROUPS, CANDIDATES, N_MEND = 20, 6, 6

# %% [markdown]
# The model has 1.5 billion parameters, which is a lot for a CPU. The next cell estimates the time
# on this machine. The circuits of section 3 therefore come with the course. The quick profile
# (`PROFILE = "quick"` above) also reads what the full run recorded: the scores of these circuits
# from `data/masks`, and the answers and latents of sections 4 to 7 from `data/answers`. Your
# functions still compute the results. The quick profile asks the model a few prompts only, too few
# for the tables of sections 1 and 2.

# %%
needs = estimate(LAB, prompts=dictionaries.LEARNING["batch_size"], tokens=38)
# prompts of about 40 tokens that the model reads in this notebook, counted from the sizes above
N_READ = 110 if QUICK else 3300
seconds = 40 * 2 * needs.parameters / 1e9 / (0.6 * matrix_rate(needs.dtype))  # for each of them
minutes = N_READ * seconds / 60
print(needs)
print(f"This machine: {needs.dtype}, about {minutes:.0f} minutes for {N_READ:,} prompts")

# %%
lab = load_lab(LAB)
LAYERS = sorted(lab.saes)
spliced = SplicedModel(lab, LAYERS, error="drop")
lab

# %% [markdown]
# ## 1. The behaviour
#
# There are three tasks, all sessions with Python's interactive interpreter. In `dict_key` the key
# is missing. Its patch prompt differs in one token: the key that makes it present. `dict_value` is
# its mirror image. In `list_index` the index lies beyond the list's end.

# %%
tasks = {
    name: load_task(name, lab.tokenizer, "test", n=N_TEST)
    for name in ("dict_key", "dict_value", "list_index")
}
for task in tasks.values():
    pair = task.pairs[0]
    print(
        f"{task.name}\n{pair.clean_prefix}→ {pair.clean_answer!r}, and with the patch prompt "
        f"{pair.patch_answer!r}\n"
    )

# %% [markdown]
# ### Exercise 6.1 · How likely is an error message?
# ⏱ 5 min · difficulty ●○○ · every result below rests on this number
#
# An error message begins with "Traceback", or at once with "KeyError" or "IndexError". For this
# model each of these is two tokens, and it writes one at a time. From the logits of the next token
# alone, how likely is it that a message begins? Decide which tokens count, and which do not.
#
# <details><summary>Hint 1</summary> "Traceback" is "Trace", then "back". Which of the two can come
# next?</details>
# <details><summary>Hint 2</summary> "KeyError" and "KeyboardInterrupt" begin with the same token.
# It is one event, and counts once.</details>
# <details><summary>Hint 3</summary> Take the probabilities over the whole vocabulary first. Then
# pick. A softmax over a few logits always adds up to 1.</details>

# %% tags=["exercise"]
# exercise: p_missing

# %%
check(p_missing)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *1 for every prompt:* the softmax was taken over the chosen tokens only.
# - *Above 1, or below 0:* these are logits, not probabilities.
# - *Too large on some prompts:* "back" and "Error" do not begin a message.
# </details>

# %%
error_messages = [
    token_ids(lab.tokenizer, text) for text in ("Traceback", "KeyError", "IndexError")
]

# %%
rows, first_tokens = [], Counter()
for name, task in tasks.items():
    both = spliced.model_logits(torch.cat([task.clean, task.patch])).float().cpu().chunk(2)
    for kind, logits, right in zip(
        ("clean", "patch"), both, (task.clean_answers, task.patch_answers)
    ):
        top = [lab.tokenizer.decode([token]) for token in logits.argmax(-1).tolist()]
        first_tokens.update(top)
        is_missing = lab.tokenizer.decode([right[0]]) in sessions.SAYS_MISSING
        hits = (
            [token in sessions.SAYS_MISSING for token in top]
            if is_missing
            else (logits.argmax(-1) == right).tolist()
        )
        rows.append(
            {
                "task": name,
                "prompt": kind,
                "right answer": "missing" if is_missing else "the value",
                "accuracy": proportion(hits),
                "p(missing)": mean_interval(p_missing(logits, error_messages)),
                "n": len(task),
            }
        )
pd.DataFrame(rows)

# %%
said = {repr(token): n for token, n in first_tokens.most_common() if not token.isdigit()}
digits = sum(n for token, n in first_tokens.items() if token.isdigit())
n_tokens = first_tokens.total()
print(f"Of {n_tokens} first tokens, {digits} are digits; the others: {said}")

# %% [markdown]
# On dictionaries the model is right in more than four of five prompts. (Section 5 measures this
# again, as "honest".) On lists it is nearly as good. A circuit can only explain what the model
# does.
#
# ## 2. SAEs that know one thing
#
# The SAEs of this lab are narrow: 2048 latents each, for a residual stream of width 1536. They were
# trained mostly on interpreter sessions, with some Python source and English mixed in
# ([how](../data/saes/qwen-coder/README.md)). How well do they reconstruct each kind of text?

# %%
code = json.loads((root / "data" / "text" / "python.json").read_text())[: 2 if QUICK else 16]
code = [
    [lab.tokenizer.bos_token_id, *ids[:31]]
    for ids in lab.tokenizer(code, add_special_tokens=False)["input_ids"]
    if len(ids) > 31
]
code = torch.tensor(code)
texts = {
    "dictionaries": torch.cat([tasks["dict_key"].clean, tasks["dict_key"].patch])[:32],
    "Python source": code,
    "English": load_text(lab.tokenizer, "held_out", n=len(code)),
}


# %%
def unexplained(x, x_hat):
    """The share of the variance over tokens that a reconstruction misses."""
    return ((x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


# %%
rows = {}
with torch.no_grad():
    for kind, tokens in texts.items():
        for layer, stream in spliced.stack.walk(tokens, LAYERS):  # the model itself
            x, sae = stream.flatten(0, 1), lab.saes[layer]
            x_hat = sae.decode(sae.encode(x)).float()
            row = rows.setdefault(f"{kind} ({len(x):,} tokens)", {})
            row[f"after layer {layer}"] = unexplained(x.float(), x_hat)
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The table gives the share of the variance that the reconstruction misses. No SAE saw these
# dictionaries' keys in training. The SAEs miss the least on dictionaries, for which they were
# mostly trained.
#
# How much of the behaviour is left with all of them spliced at once? With `drop`, only the
# reconstruction goes on. `mean` adds the average error of each position. `keep` adds each prompt's
# own error, which makes it the model again.

# %%
trains = {name: load_task(name, lab.tokenizer, "train", n=N_TRAIN) for name in SIZES}
means = {name: spliced.patch_means(train.patch) for name, train in trains.items()}
judged_on = {name: load_task(name, lab.tokenizer, "test", n=N_JUDGED) for name in trains}
evaluation = {name: Evaluation(spliced, judged_on[name], means[name]) for name in trains}
with_mean = SplicedModel(lab, LAYERS, error="mean")

# %%
rows = []
for name, train in trains.items():
    mean_errors = with_mean.patch_means(train.patch[:16])
    put_back = with_mean.logit_diff(judged_on[name], means=mean_errors).cpu()
    f_model, f_spliced = evaluation[name].model, evaluation[name].spliced_model
    for error, left in {
        "keep (the model itself)": f_model,
        "mean": put_back,
        "drop": f_spliced,
    }.items():
        kept = ratio_interval(left, f_model)
        rows.append(
            {
                "task": name,
                "error": error,
                "logit difference": mean_interval(left),
                "kept": kept,
                "n": len(left),
            }
        )
pd.DataFrame(rows).round(2)

# %% [markdown]
# In the column "kept", 1 is the model's whole logit difference. (The layers, and the last step of
# the SAEs' training, were chosen on dev. These prompts are from the test split.)
#
# ## 3. The circuits
#
# As in notebook 04 we compare learned masks (three seeds), attribution, and random nodes among
# those that fire. "IG best" is the best of attribution's twelve variants, on both tasks one of
# integrated gradients. Learning and scoring take hours on this model, so circuits and rankings come
# from `data/masks` (`python -m tools.learn_circuits` made them). Masks learn on 64 training
# prompts, attribution scores on 32 of these. Sizes, settings and the best variant were chosen on
# dev; all are judged on test. `LEARN_CIRCUITS = True` does all this here.


# %%
def learn_circuits(name):
    """Circuits of a task by (wanted size, seed), learned now."""
    return {
        (size, seed): learn_masks(
            spliced,
            trains[name],
            means=means[name],
            n_nodes=size,
            seed=seed,
            **dictionaries.LEARNING,
        ).masks
        for size, seed in itertools.product(SIZES[name], range(3))
    }


# %%
def rank_nodes(name):
    """A task's nodes by attribution, in the variant that is the best on dev, scored now."""
    dev = load_task(name, lab.tokenizer, "dev", n=32)
    scored = trains[name][: dictionaries.N_SCORED]
    return best_ranking(
        spliced, scored, dev, means=means[name], sizes=SIZES[name], **dictionaries.SCORING
    )


# %%
masks = {
    name: learn_circuits(name)
    if LEARN_CIRCUITS
    else load_circuits(MASKS_DIR / name / f"circuits_{LAB}.json")
    for name in SIZES
}
rankings = {
    name: rank_nodes(name)
    if LEARN_CIRCUITS
    else Ranking.load(MASKS_DIR / name / f"ranking_{LAB}.json")
    for name in SIZES
}
best = {name: found.variant for name, found in rankings.items()}
for name, found in rankings.items():
    (least, *_, most), n_variants = sorted(found.gaps.values()), len(found.gaps)
    print(
        f"{name}: of {n_variants} variants, {best[name]!r} has the smallest gap on "
        f"{found.n_dev} dev prompts, {least:.2f}; the largest is {most:.2f}"
    )


# %%
def judged(name):
    """A task's circuits, judged on its test prompts."""
    chance = random_scores(spliced, trains[name][:16], seed=SEED)
    frontier = Frontier.of(spliced, judged_on[name])
    for (size, seed), one in masks[name].items():
        frontier.judge("learned mask", one, evaluation[name], seed=seed, wanted=size)
    for size in SIZES[name]:
        n = max(one.get_num_latents() for (wanted, _), one in masks[name].items() if wanted == size)
        by_score = {
            best[name]: rankings[name].circuit(n, means[name].latents),
            "random": SAEMasks.from_scores(chance, n, rank="signed"),
        }
        for method, one in by_score.items():
            frontier.judge(method, one, evaluation[name], wanted=size)
    frontier.save()
    return frontier


# %%
frontiers = {
    name: Frontier.load(MASKS_DIR / name / f"frontier_{LAB}.json") if QUICK else judged(name)
    for name in SIZES
}
largest = {name: sizes[-1] for name, sizes in SIZES.items()}
circuit = masks["dict_key"][largest["dict_key"], SEED]
if QUICK:
    here, n_nodes = evaluation["dict_key"].faithfulness(circuit), circuit.get_num_latents()
    print(f"{n_nodes} nodes on {here.n} prompts, judged here: F {here.vs_spliced}")

# %%
rows, gap_of = [], {"learned mask": {}, "IG best": {}, "random": {}}
for name, size in [(one, n) for one in SIZES for n in SIZES[one]]:
    frontier = frontiers[name]
    for label, method in zip(gap_of, ("learned mask", best[name], "random")):
        gap_of[label][f"{name}, {size} nodes"] = frontier.mean(method, size, "gap")
    points, of_ig = (
        frontier.by_size("learned mask")[size],
        gap_of["IG best"][f"{name}, {size} nodes"],
    )
    behind = [point.faithfulness.gap.value - of_ig.value for point in points]
    rows.append(
        {
            "task": name,
            "wanted": size,
            "nodes, by seed": ", ".join(str(point.n_nodes) for point in points),
            "F of the masks": str(frontier.mean("learned mask", size, "vs_spliced")),
            "F of IG best": str(frontier.mean(best[name], size, "vs_spliced")),
            "F of random": str(frontier.mean("random", size, "vs_spliced")),
            "gap: mask − IG best": frontier.compare("learned mask", best[name], size, "gap"),
            "by seed": ", ".join(f"{value:+.2f}" for value in behind),
        }
    )
n_judged = frontiers["dict_key"].points[0].faithfulness.n
print(f"n = {n_judged} test prompts per task; intervals: 95 % over prompts, seeds averaged")
pd.DataFrame(rows)

# %%
apart = [row["gap: mask − IG best"] for row in rows]
n_behind, n_ahead = (sum(one.low > 0 for one in apart), sum(one.high < 0 for one in apart))
n_compared = len(apart)
title = (
    f"Of {n_compared} comparisons, attribution at its best is ahead of the mask in {n_behind}, "
    f"and behind in {n_ahead}"
)
axis = figures.ValueAxis("gap per prompt: 0 = as the spliced model, 1 = as with no latent")
figure = figures.estimates_figure(gap_of, axis, title, horizontal=True, over=f"{n_judged} prompts")
figures.show(figure, alt=f"Gaps with intervals, by task and wanted number of nodes. {title}.")

# %% [markdown]
# A faithfulness F of 0 is the answer with every latent ablated; 1 is the answer of the spliced
# model. A gap of 0 means no difference on any prompt. Learned masks and attribution are both far
# from random nodes.
#
# The post found IG far behind its masks, on another model and with wider SAEs. Here attribution at
# its best is ahead on dictionaries at 60 nodes, where only one of three seeds comes close to it. At
# 183 nodes the difference is small, and the sign depends on seed and prompts. Two things limit the
# comparison: our prompts have one layout, which leaves fewer wrong nodes to choose, and our SAEs
# are narrow. The next table has the post's unit, F(C)/F(S). (The same number of nodes is not the
# same share of all nodes.)

# %%
rows = [
    {
        "task": name,
        "found by": label,
        "nodes": point.n_nodes,
        "F(C)/F(S)": str(point.faithfulness.raw),
    }
    for name, frontier in frontiers.items()
    for label, method in (("learned mask", "learned mask"), ("IG best", best[name]))
    for point in frontier.of_method(method)[-1:]
]
rows += [
    {
        "task": published.task,
        "found by": "the post, Gemma 2 9B",
        "nodes": published.nodes,
        "F(C)/F(S)": published.faithfulness,
    }
    for published in published_circuits("gemma-2-9b")
    if published.task in trains
]
pd.DataFrame(rows).sort_values(["task", "nodes"], ignore_index=True)

# %% [markdown]
# The list's circuit was learned for this comparison with the post. From here on we leave it out.
#
# ## 4. The causal story
#
# Where are the nodes of the largest circuit for `dict_key`? The prompt has 39 tokens with BOS, and
# each place gets a name:

# %%
entry = ["a key", "':", "␣", "a value", ",", "'"]
PLACES = [
    "BOS", ">>>", "variable", "=", "{'", *(entry * 5)[:-2], "}",
    ">>>", "variable", "['", "the queried key", "']",
]  # fmt: skip
assert len(PLACES) == tasks["dict_key"].seq_len

# %%
table = pd.DataFrame(
    [{"after layer": int(h.split(".")[1]), "at": PLACES[p]} for h, p, _ in circuit.nodes()]
)
in_order = [place for place in dict.fromkeys(PLACES) if place in set(table["at"])]
pd.crosstab(table["after layer"], table["at"], margins=True)[[*in_order, "All"]]

# %% [markdown]
# Compare two places, layer by layer. At **the queried key** the model can look back for the same
# name: is this a repeat? At **`']`**, the last token, it must know what to answer. So we ask, at
# each SAE and at both places: which latents fire mostly when the key is in the dictionary, and
# which mostly when it is missing?
#
# ### Exercise 6.2 · How well does a latent tell two kinds of prompts apart?
# ⏱ 10 min · difficulty ●●○ · a number that needs no threshold
#
# Draw a prompt with the key present and one with the key missing. How often is the latent stronger
# on the first? This is the area under the ROC curve (AUC): 1 = always, 0.5 = a coin, 0 = never.
# Write it for all latents at once. Ties count half.
#
# <details><summary>Hint 1</summary> One row of `present` against all of `missing` is a table of
# `[m, d_sae]` comparisons. Average it over m, then over the rows of `present`.</details>
# <details><summary>Hint 2</summary> A latent that never fires ties with itself everywhere. It
# should get 0.5.</details>

# %% tags=["exercise"]
# exercise: separations

# %%
check(separations)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *0 for latents that never fire:* ties must count half.
# - *One number:* average over pairs of prompts only, not over latents.
# </details>
#
# In an honest prompt nothing tries to mislead. Honest prompts with *training* keys choose the
# latents. At each site (an SAE and a place) we take up to five that rise most when the key is there
# ("a repeat", AUC above 0.8), and up to five that rise most when it is missing ("none", AUC below
# 0.2).

# %%
sites = [(layer, place) for layer in LAYERS for place in (QUERIED, LAST)]
where = {QUERIED: "the queried key", LAST: "']"}
hook_point = dict(zip(LAYERS, spliced.hook_points))
keep = SplicedModel(lab, LAYERS, error="keep")  # the model itself, with its latents at hand
# reads the answers in the quick profile; in the full one asks for them, and writes them
recorded = KeptAnswers(DATA / "answers" / f"{LAB}.safetensors", read=QUICK)

# %%
honest = {
    family: dictionaries.attacks(family, N_KNOWN, split="train", seed=SEED) for family in HONEST
}
known = recorded(
    "training keys",
    honest,
    lambda: dictionaries.answers_each(spliced, honest, read=sites, progress="training keys"),
)
known_missing, known_present = (found.latents for found in known.values())


# %%
def name_of(site):
    """A site in words."""
    return f"after layer {site[0]}, at {where[site[1]]}"


def telling(site, n=5):
    """Up to ``n`` latents of a site that fire for a repeat, and up to ``n`` that fire for none."""
    rise = known_present[site].mean(0) - known_missing[site].mean(0)
    order = rise.argsort(descending=True).tolist()
    return [i for i in order if auc_of[site][i] > 0.8][:n], [
        i for i in reversed(order) if auc_of[site][i] < 0.2
    ][:n]


# %%
auc_of = {site: separations(known_present[site], known_missing[site]) for site in sites}
TELLING = {site: telling(site) for site in sites}


# %%
rows = [
    (
        name_of(site),
        (a > 0.8).sum().item(),
        a.max().item(),
        (a < 0.2).sum().item(),
        1 - a.min().item(),
    )
    for site, a in auc_of.items()
]
pd.DataFrame(
    rows,
    columns=["site", "fire for a repeat", "best AUC", "fire for none", "best AUC, turned round"],
).round(3)

# %% [markdown]
# Does the model *use* these latents? To find out, we hold them at their mean over the other kind of
# prompt, at this one place. Everything else stays as it is (`error="keep"`).
#
# ### Exercise 6.3 · Hold latents at one place
# ⏱ 10 min · difficulty ●●○ · prompts of different lengths end at different places
#
# Put given values into some latents, at one place of each prompt.
#
# <details><summary>Hint 1</summary> The place is counted from each prompt's own end, so each row
# has its own index.</details>
# <details><summary>Hint 2</summary> `f[rows, positions, latent]` with two index tensors of the same
# length picks one entry per row.</details>

# %% tags=["exercise"]
# exercise: hold

# %%
check(hold)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *Nothing changes for short prompts:* you counted from the padded end.
# - *Off by one:* place −1 is the last token, whose index is length − 1.
# </details>
#
# The library's `Clamp` does the same at a hook point. The two must agree:


# %%
def held(site, like):
    """The telling latents of a site, held at their means over honest prompts of one kind."""
    layer, place = site
    return Clamp(
        {(hook_point[layer], i): like[site][:, i].mean().item() for i in sum(TELLING[site], [])},
        place,
    )


# %%
site = LAYERS[1], QUERIED
clamp = held(site, known_present)
values = {i: value for (_, i), value in clamp.values.items()}
[session] = dictionaries.attacks(HONEST[0], 1, split="train", seed=SEED + 1)
ids = lab.tokenizer(session.prompt, add_special_tokens=False)["input_ids"]
tokens = torch.tensor([[lab.tokenizer.bos_token_id, *ids]])
lengths = torch.tensor([tokens.shape[1]])
by_hand = keep.run(
    tokens, latents={hook_point[site[0]]: lambda f: hold(f, lengths, values, site[1])}
)
p_by_hand = p_missing(by_hand.logits.detach().float().cpu(), error_messages)
torch.testing.assert_close(
    p_by_hand, dictionaries.answers_with(keep, [session], clamp).p_missing, atol=0.02, rtol=0.02
)
n_held, p_held = len(values), p_by_hand.item()
print(f"p(missing) with {n_held} latents held {name_of(site)}: {p_held:.3f}, as the library has it")

# %% [markdown]
# Now all sites, still with training keys: which of them turn an error message into a value, or the
# reverse? Holding a latent changes nothing before its place. So `dictionaries.start` reads each
# prompt once, up to the queried key, and each clamp costs a pass over the last two tokens.

# %%
tried = {
    kind: dictionaries.attacks(family, N_TRIED, split="train", seed=SEED + 1)
    for kind, family in zip(("missing", "present"), HONEST)
}
other_kind = {"missing": known_present, "present": known_missing}


def hold_at_sites():
    """What the model says with each site's latents held as for the other kind of prompt."""
    starts = {kind: dictionaries.start(keep, some) for kind, some in tried.items()}
    return {
        (site, kind): starts[kind].answers(held(site, other_kind[kind]) if site else Clamp({}))
        for site, kind in itertools.product([None, *sites], tried)
    }


# %%
site_answers = recorded(
    "tried", {(site, k): tried[k] for site in [None, *sites] for k in tried}, hold_at_sites
)
to_value = {site: 1 - site_answers[site, "missing"].p_missing for site in [None, *sites]}
to_error = {site: site_answers[site, "present"].p_missing for site in [None, *sites]}
rows = [
    (
        name_of(site) if site else "(nothing held)",
        len(sum(TELLING[site], [])) if site else 0,
        to_value[site].mean().item(),
        to_error[site].mean().item(),
    )
    for site in [None, *sites]
]
pd.DataFrame(
    rows, columns=["site", "latents held", "p(no error), key missing", "p(error), key present"]
).round(2)

# %% [markdown]
# We name two sites. **Seen** (was this name there before?) is the *last* SAE at which holding the
# queried key still raises the mean p(no error) above one half. **Verdict** (is the key there?) is
# the *first* SAE at which holding the last token does so. Only attention moves information between
# positions. So if *seen* changes the answer, a later attention head reads it at the queried key.
#
# We chose these latents by what they tell. The mask of section 3 chose nodes by what the answer
# needs. Do the two agree, and more than by chance? For the chance value we draw as many latents at
# random among those that fire at the site (hypergeometric distribution).

# %%
deciding = [site for site in sites if to_value[site].mean() > 0.5]
SEEN = max(
    (site for site in deciding if site[1] == QUERIED),
    default=(LAYERS[1], QUERIED),
)
VERDICT = min(
    (site for site in deciding if site[1] == LAST),
    default=(LAYERS[2], LAST),
)
LABELLED = {"seen": SEEN, "verdict": VERDICT}
print(f"seen: {name_of(SEEN)}; verdict: {name_of(VERDICT)}")


# %%
def agreement(site):
    """How many telling latents of a site are in the circuit, and what chance would give."""
    position = tasks["dict_key"].seq_len + site[1]
    in_mask = {i for h, p, i in circuit.nodes() if (h, p) == (hook_point[site[0]], position)}
    fires = (known_present[site] + known_missing[site]).sum(0) > 0
    told = sum(TELLING[site], [])
    in_both, of_mask = in_mask & set(told), sum(fires[i].item() for i in in_mask)
    chance = hypergeom(int(fires.sum()), int(of_mask), len(told))
    return {
        "latents that fire": int(fires.sum()),
        "nodes of the circuit": len(in_mask),
        "telling latents": len(told),
        "in both": len(in_both),
        "by chance": chance.mean(),
        "chance of as many": chance.sf(len(in_both) - 1),
    }


# %%
agreeing = pd.DataFrame({label: agreement(site) for label, site in LABELLED.items()}).T
n_telling, n_shared = (int(agreeing[column].sum()) for column in ("telling latents", "in both"))
by_chance = agreeing["by chance"].sum()
print(
    f"{n_shared} of the {n_telling} telling latents are in the circuit; by chance {by_chance:.1f} "
    "would be"
)
agreeing.map("{:.3g}".format)

# %% [markdown]
# They agree, far more than by chance.
#
# ### What the circuit's main latents do
#
# The circuit has too many nodes to look at one by one. We take the *main* ones, which both methods
# want: after each layer the first four in attribution's ranking that the mask kept, too, at the
# last two tokens. What is each one's mean with the key and without it? If it alone is held as for a
# repeat, what becomes of the error message?

# %%
seq_len, kept_nodes = tasks["dict_key"].seq_len, set(circuit.nodes())
main = []
for layer in LAYERS:
    ranked = [node for node in rankings["dict_key"].nodes if node[0] == hook_point[layer]]
    both = [node for node in ranked if node in kept_nodes and node[1] >= seq_len + QUERIED]
    main += both[:N_MAIN]
site_of = [(int(h.split(".")[1]), p - seq_len) for h, p, _ in main]


def kind_of(site, latent):
    """What a latent at a site responds to, by its AUC."""
    a = auc_of[site][latent].item()
    return "a repeat" if a > 0.8 else "none" if a < 0.2 else "neither clearly"


# %%
begun = dictionaries.start(keep, tried["missing"])
untouched = begun.answers(Clamp({})).p_missing.mean().item()
rows = []
for (h, _, i), site in zip(main, site_of):
    absent, there = (known[site][:, i].mean().item() for known in (known_missing, known_present))
    after = begun.answers(Clamp({(h, i): there}, site[1])).p_missing.mean().item()
    rows.append(
        {
            "after layer": site[0],
            "at": where[site[1]],
            "latent": i,
            "fires for": kind_of(site, i),
            "key missing": absent,
            "key present": there,
            "held alone: change in p(error)": after - untouched,
        }
    )
story = pd.DataFrame(rows)

# %%
alone = story["held alone: change in p(error)"]
top = story.loc[alone.idxmin()]
weight, layer, latent = alone.min(), top["after layer"], top["latent"]
print(
    f"{N_TRIED} prompts with the key missing: p(error) {untouched:.2f}. Alone, latent {latent} "
    f"after layer {layer} changes it most, by {weight:.2f}. (Means over {N_KNOWN} of each kind.)"
)
story.round(2)

# %% [markdown]
# A card for each: where it fires most (in sessions, Python source and English), where it fires in a
# session, and which tokens its decoder row promotes on the direct path to the output (the logit
# lens). Choose one from the menu (in a running notebook).

# %%
pieces = token_rows(lab.tokenizer, json.loads((DATA / "text" / "python.json").read_text()))
bos = lab.tokenizer.bos_token_id
source = [[bos, *ids[: seq_len - 1]] for ids in pieces if len(ids) >= seq_len][:N_TEXTS]
pairs = trains["dict_key"][:N_PAIRS]
texts = torch.cat(
    [
        trains["dict_key"].clean[:N_TEXTS],
        trains["dict_key"].patch[:N_TEXTS],
        torch.tensor(source),
        load_text(lab.tokenizer, "held_out", n=N_TEXTS, seq_len=seq_len),
    ]
)
by_layer = {
    layer: sorted({i for (_, _, i), site in zip(main, site_of) if site[0] == layer})
    for layer in LAYERS
}
contexts = explain.contexts_by_layer(lab, by_layer, texts, k=4, skip=3, batch_size=8)
lens = {layer: explain.logit_lens(lab, layer, some, k=6) for layer, some in by_layer.items()}
print(f"{len(texts)} texts of {texts.shape[1]} tokens")


# %%
session_runs = {
    "key missing": keep.run(pairs.clean).latents,
    "key present": keep.run(pairs.patch).latents,
}
columns = {
    place: [p for p, own in enumerate(PLACES) if own == place]
    for place in ("a key", "a value", "variable", "the queried key", "']")
}


def card_of(node, row):
    """All that is known of a node, for the browser."""
    h, _, i = node
    fires = {
        kind: {place: f[h][:, some, i].float().mean().item() for place, some in columns.items()}
        for kind, f in session_runs.items()
    }
    says = f"{row['at']}: {row['key missing']:.1f} if the key is missing, "
    says += f"{row['key present']:.1f} if it is there (fires for {row['fires for']})."
    name = f"layer {row['after layer']} · {row['at']} · latent {i}"
    tokens = lens[row["after layer"]][i]
    found = contexts[row["after layer"], i]
    return explain.LatentCard(name, says, found, tokens["promotes"], tokens["suppresses"], fires)


# %%
cards = [card_of(node, row) for node, (_, row) in zip(main, story.iterrows())]
first = [i for i, site in enumerate(site_of) if site[0] not in [s[0] for s in site_of[:i]]]
others = [i for i in range(len(cards)) if i not in first]
browse_latents([cards[i] for i in first + others], n_static=len(first))

# %% [markdown]
# Who feeds whom? As in notebook 05, we give one node alone its value in the prompt with the key,
# and see how far each later node moves towards its own value there (0 = not at all, 1 = all the
# way). Edges join neighbouring SAEs only, and start at 0.1. Hover over a latent for its card.

# %%
effects = edge_effects(keep, pairs.clean, pairs.patch, main)
depth = torch.tensor([LAYERS.index(layer) for layer, _ in site_of])
edges = effects * (depth[None] == depth[:, None] + 1)
strong = (edges.abs() >= 0.1).nonzero().tolist()
crossing = [(v, w) for v, w in strong if site_of[v][1] == QUERIED and site_of[w][1] == LAST]
between = Counter(f"{site_of[v][0]} and {site_of[w][0]}" for v, w in crossing)
[(busiest, n_busiest)] = between.most_common(1) or [("none", 0)]
n_strong, n_crossing = len(strong), len(crossing)
print(
    f"{n_busiest} of the {n_crossing} edges from the queried key to the end lie between the SAEs "
    f"after layers {busiest} (n = {N_PAIRS} prompts)"
)

# %%
# the strongest edge that leaves the first SAE, and where its receiver's edges lead
v, w = divmod(int((edges * (depth[:, None] == 0)).abs().argmax()), len(main))
first_latent, second_latent = main[v][2], main[w][2]
n_fed = sum(sender == w for sender, _ in crossing)
n_end = sum(site == VERDICT for site in site_of)
title = (
    f"Latent {first_latent} feeds {second_latent} at the queried key, and that one feeds {n_fed} "
    f"of {n_end} latents at the end"
)
alt = f"{title}. The main latents by layer and place, with {n_strong} edges."


def words_of(node, site):
    """Two words on a latent: where it fires most, or what the last layer promotes."""
    promotes, last = lens[site[0]][node[2]]["promotes"], site[0] == LAYERS[-1]
    return few_words(contexts[site[0], node[2]], promotes, last=last)


# %%
graph = latent_graph(
    main,
    list(story["fires for"]),
    [words_of(node, site) for node, site in zip(main, site_of)],
    PLACES,
    effects,
    cards=cards,
    prompts=values_on_prompts(keep, pairs, main),
    effects=answer_effects(keep, pairs, main),
    answer="error − value",
)
show_circuit(graph, title, alt)

# %%
sent = edges.abs().max(1)
for layer in LAYERS[:-1]:
    v = max((i for i, site in enumerate(site_of) if site[0] == layer), key=sent.values.__getitem__)
    w, share = sent.indices[v].item(), sent.values[v].item()
    (_, _, sender), (_, _, receiver) = main[v], main[w]
    places = f"{where[site_of[v][1]]}, and {where[site_of[w][1]]}"
    print(
        f"After layer {layer} the strongest edge leads from latent {sender} to {receiver} "
        f"({places}): {share:.2f}"
    )

# %% [markdown]
# The story, layer by layer. After the first SAE one latent at the queried key fires for a repeat,
# and for little else. It feeds the latents of *seen* after the second. Attention at the last token
# reads these, and after the third SAE the latents there tell whether an error or a value is due:
# *verdict*. The latents after the last SAE write the answer: where no key was found, they promote
# the beginning of an error message.
#
# ### Do these latents decide?
#
# The **signal** is one number per prompt and site. Its mean is 0 in honest training prompts without
# the key, and 1 in those with it. From here on we report results, so all keys are of the *test*
# split. Latents and sites were chosen on training keys, and the families of section 5 were written
# while looking at dev keys.


# %%
def balance(site, latents):
    """The sum of a site's latents that fire for a repeat, less the sum of those that fire for none:
    ``[n]``.
    """
    there, absent = TELLING[site]
    return latents[site][:, there].sum(1) - latents[site][:, absent].sum(1)


def signal(site, latents):
    """The balance, so scaled that honest training prompts have a mean of 0 if the key is missing
    and 1 if it is there.
    """
    low, high = (balance(site, known).mean() for known in (known_missing, known_present))
    return (balance(site, latents) - low) / (high - low)


# %%
unseen = {
    kind: dictionaries.attacks(family, N_HONEST, split="test", seed=SEED)
    for kind, family in zip(("missing", "present"), HONEST)
}


@functools.cache
def start_of(kind):
    """Honest prompts with test keys, read up to the queried key."""
    return dictionaries.start(keep, unseen[kind], progress=f"test keys, {kind}")


# %%
missing, present = recorded(
    "unseen keys",
    unseen,
    lambda: {kind: start_of(kind).answers(read=[SEEN, VERDICT]) for kind in unseen},
).values()
says = {
    f"{label}, {name_of(site)}": {
        f"key {kind}": signal(site, some.latents)
        for kind, some in (("missing", missing), ("present", present))
    }
    for label, site in LABELLED.items()
}

# %%
is_present = torch.arange(2 * N_HONEST) >= N_HONEST
aucs = {
    label: auc(torch.cat([*kinds.values()]), is_present)
    for label, kinds in zip(LABELLED, says.values())
}
separate = "separate" if min(aucs.values()) > 0.99 else "mostly separate"
title = f"Both signals {separate} missing from present keys on which they were not chosen"
figures.show(
    figures.kinds_figure(says, "signal (0 = as for a missing key, 1 = as for one there)", title),
    alt=f"Histograms of the signals of honest prompts, a panel per site. {title}.",
)
for label, value in aucs.items():
    print(f"AUC of {label}: {value:.3f}")

# %% [markdown]
# Next, we hold the latents on prompts with these keys. The control is *strangers*: as many other
# latents that fire at the same site, moved by the same amounts (though not below 0). There are
# several draws of strangers, each with its own prompts.


# %%
def strangers(site, like, seed):
    """As many other latents that fire at a site, each moved as a telling latent is when it is held
    as in ``like``.
    """
    before = (known_missing if like is known_present else known_present)[site].mean(0)
    moves = (like[site].mean(0) - before)[sum(TELLING[site], [])].tolist()
    others = [
        i for i in before.argsort(descending=True).tolist() if i not in sum(TELLING[site], [])
    ]
    drawn = random.Random(seed).sample(others[: 4 * len(moves)], len(moves))
    return Clamp(
        {
            (hook_point[site[0]], i): max(0.0, before[i].item() + move)
            for i, move in zip(drawn, moves)
        },
        site[1],
    )


# %%
# kind of prompt and clamp, by what is done
clamps = {}
for label, site in LABELLED.items():
    clamps[label, "a repeat"] = "missing", held(site, known_present)
    clamps[label, "none"] = "present", held(site, known_missing)
    for draw in range(N_DRAWS):
        clamps[label, "missing", draw] = "missing", strangers(site, known_present, draw)
        clamps[label, "present", draw] = "present", strangers(site, known_missing, draw)
turned = recorded(
    "held",
    {what: unseen[kind] for what, (kind, _) in clamps.items()},
    lambda: {what: start_of(kind).answers(clamp) for what, (kind, clamp) in clamps.items()},
)


# %%
def turned_by_strangers(label, kind):
    """Which answers strangers turn: every draw of them holds in its own prompts."""
    lures = kind == "missing"
    draws = [turned[label, kind, draw].fooled(lures)[draw::N_DRAWS] for draw in range(N_DRAWS)]
    return torch.cat(draws)


# %%
forced = {}
for label in LABELLED:
    up, down = turned[label, "a repeat"], turned[label, "none"]
    forced[f"{label} held as for a repeat: values"] = proportion(up.fooled(True))
    forced[f"{label} held as for none: errors"] = proportion(down.fooled(False))
    for kind in unseen:
        forced[f"strangers of {label}, key {kind}"] = proportion(turned_by_strangers(label, kind))
    stands_there = [
        token in dict(session.entries).values() for token, session in zip(up.top, unseen["missing"])
    ]
    n_there = sum(stands_there)
    print(
        f"{label} held as for a repeat: {n_there} of {N_HONEST} answers are a value that stands in "
        "the dictionary"
    )
forced["nothing held, key missing"] = proportion(missing.fooled(True))
forced["nothing held, key present"] = proportion(present.fooled(False))

# %%
orange = [name for name in forced if "held as" in name]
turns = {name: forced[name].value > 0.5 for name in orange}
ways = {
    label: sum(turned_most for name, turned_most in turns.items() if name.startswith(label))
    for label in LABELLED
}
said = {0: "in neither direction", 1: "in one direction", 2: "in both directions"}
title = f"Held, verdict turns most answers {said[ways['verdict']]}, and seen {said[ways['seen']]}"
x_label = f"answers turned into the other kind, value or error (n = {N_HONEST} each)"
axis = figures.ValueAxis(x_label, percent=True)
figure = figures.estimates_figure(
    forced, axis, title, bars=True, horizontal=True, highlight=orange, over="prompts"
)
figures.show(figure, alt=f"Bars with intervals. {title}.")

# %% [markdown]
# *Verdict* works in both directions: holding these few latents turns most answers. *Seen* works in
# one. Raised, it turns most errors into values. Lowered, it turns few answers: most keys that are
# there are still found. So these latents are sufficient for a value, but not necessary. Other
# latents, or what our SAEs miss (their errors are kept here), must carry the same information. We
# find half of the post's story: signs of a duplicate make the model say "there". An attack needs
# only this half.
#
# ## 5. From the story to an attack
#
# Suppose that this is the whole story: the model says "there" if its *seen* latents fire. Then
# anything that makes them fire without the key should fool it. Here are fifteen **families** of
# attacks. Python's answer is certain in each, but the dictionary looks like the opposite. Eleven
# **lure**: the key is missing, but its name is in the prompt. Four **hide**: the key is there, but
# its name is not written in one piece. (To Python `'A' 'nn'` is one string, `'\x41'` is an A, and
# `update(Ann=3)` adds the key `'Ann'`.)

# %%
luring = [family for family in FAMILIES if family.lures]
hiding = [family for family in FAMILIES if not family.lures]
asked = {
    family: dictionaries.attacks(family, N_ATTACKS, split="test", seed=SEED) for family in FAMILIES
}
says_python = {MISSING: "KeyError"}
rows = [
    {
        "family": family.name,
        "an example": session.prompt,
        "Python": says_python.get(session.outcome(), session.outcome()),
    }
    for family, (session, *_) in asked.items()
]
pd.DataFrame(rows).style.set_properties(**{"white-space": "pre-wrap", "text-align": "left"}).hide()

# %% [markdown]
# A comment might confuse the model whatever it says. So each attack has a **twin**: the same change
# to the same session, but with a name that nobody asks for (`'kim'` in place of `'ann'`). If the
# twin fools as often, it is not the name that misleads.
#
# ### Exercise 6.4 · An attack and its twin
# ⏱ 10 min · difficulty ●●○ · a control that differs from the attack in one thing
#
# Write a sixteenth family, "written twice": `'AnnAnn'` where `'Ann'` is asked for. Write its twin,
# too. Decide what the two share, and in what they differ. **Predict**: does this family fool the
# model, and does its twin?
#
# <details><summary>Hint 1</summary> A session knows its query, `"'Ann'"`, and `with_entry` gives a
# copy with another key. The value stays.</details>
# <details><summary>Hint 2</summary> Both ask for Ann. Only the attack has anything to do with her.
# </details>

# %% tags=["exercise"]
# exercise: attack_and_twin

# %%
check(attack_and_twin)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *Python finds the key:* its name stands in the dictionary once, in quotes.
# - *The twin asks for another name:* then two things differ, and the query alone may explain the
#   answer.
# - *NameError:* a key without quotes is a variable.
# </details>

# %%
rng, yours = random.Random(SEED), {"attacks": [], "twins": []}
for _ in range(N_YOURS):
    session = sessions.missing_key(KEYS["test"], DICTIONARIES["test"], rng)
    used = {session.query, *(key for key, _ in session.entries)}
    decoy = rng.choice([name for name in KEYS["test"] if quoted(name) not in used])
    index = rng.randrange(len(session.entries))
    for kind, one in zip(yours, attack_and_twin(session, index, decoy)):
        yours[kind].append(one)
print(yours["attacks"][0].prompt, yours["twins"][0].prompt, sep="\n")
to_yours = dictionaries.answers_each(spliced, yours)
fooled_by_yours = {kind: proportion(found.fooled(True)) for kind, found in to_yours.items()}
for kind, share in fooled_by_yours.items():
    print(f"written twice, {kind}: fooled {share} (n = {N_YOURS})")

# %% [markdown]
# **Predict** for each of the fifteen families: will it fool the model often, sometimes, or never?
#
# ### Exercise 6.5 · A prediction from latents alone
# ⏱ 5 min · difficulty ●●○ · a threshold that has not seen an attack
#
# On which share of a family's prompts do the latents predict that the model is fooled? You have
# honest prompts of both kinds and the family's own. Decide which of them set the threshold, and on
# which side of it a family that lures fools, and one that hides.
#
# <details><summary>Hint 1</summary> The threshold is set on honest prompts alone. A family with
# many strong attacks must not move it.</details>
# <details><summary>Hint 2</summary> Take the mean of each kind first, then the middle. One mean
# over all honest prompts would depend on how many there are of each kind.</details>
# <details><summary>Hint 3</summary> A lure fools if the latents say "there". What fools if the key
# is there, and hidden?</details>

# %% tags=["exercise"]
# exercise: predicted_fooled

# %%
check(predicted_fooled)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *About a half for every family:* the threshold moves with the family. Set it once, on honest
#   prompts.
# - *Right for lures, reversed for the others:* a hidden key fools if the latents say "missing".
# </details>
#
# Now we ask: one pass reads the latents and the answers of all families and twins. "Fooled" means a
# value where Python has an error, or an error where Python has a value. "Neither" is an answer of
# another kind, nearly always a new prompt, `>>>`. It fools nobody, so it is counted apart.

# %%
twins_of = {
    family: dictionaries.twins(family, N_TWINS, split="test", seed=SEED) for family in FAMILIES
}
asked |= {("twin", family): some for family, some in twins_of.items()}
got = recorded(
    "attacks",
    asked,
    lambda: dictionaries.answers_each(spliced, asked, read=[SEEN, VERDICT], progress="attacks"),
)
honest_latents = {
    site: torch.cat([balance(site, known_missing), balance(site, known_present)])
    for site in LABELLED.values()
}
honest_present = torch.arange(2 * N_KNOWN) >= N_KNOWN


# %%
def predicted(site, family):
    """The share of a family's prompts on which a site predicts that the model is fooled."""
    of_family = balance(site, got[family].latents)
    return float(predicted_fooled(honest_latents[site], honest_present, of_family, family.lures))


fooled = {family: proportion(got[family].fooled(family.lures)) for family in FAMILIES}
of_twins = {family: proportion(got["twin", family].fooled(family.lures)) for family in FAMILIES}
control = {True: proportion(missing.fooled(True)), False: proportion(present.fooled(False))}
neither = {key: got[key].says_neither.float().mean().item() for key in asked}

# %%
rows = [
    {
        "family": family.name,
        "predicted by seen": predicted(SEEN, family),
        "by verdict": predicted(VERDICT, family),
        "fooled": str(fooled[family]),
        "neither": neither[family],
        "twin fooled": str(of_twins[family]),
        "twin neither": neither["twin", family],
    }
    for family in FAMILIES
]
print(
    f"n = {N_ATTACKS} attacks and {N_TWINS} twins per family; honest prompts fooled: "
    f"{control[True]} (key missing), {control[False]} (key present), n = {N_HONEST} each"
)
pd.DataFrame(rows).round(2)

# %%
# the quick profile reads what the full run was told; to compare, it asks a prompt of each family
if QUICK:
    sample = {family: asked[family][:1] for family in FAMILIES}
    asked_now = dictionaries.answers_each(spliced, sample)
    n_same = sum(asked_now[f].says_missing == got[f].says_missing[:1] for f in FAMILIES).item()
    print(f"The same kind of answer, error or not: {n_same} of {len(FAMILIES)} prompts")

# %%
over = [
    family
    for family in FAMILIES
    if fooled[family].low > max(control[family.lures].high, of_twins[family].high)
]
n_over, n_families = len(over), len(FAMILIES)
title = (
    f"{n_over} of {n_families} families fool more often than their twins and than honest prompts"
)
cases = {
    f"{family.name}{'' if family.lures else ' (hides)'}": {
        "attacks": fooled[family],
        "their twins": of_twins[family],
    }
    for family in sorted(FAMILIES, key=lambda family: -fooled[family].value)
}
x_label = f"prompts on which the model is fooled (n = {N_ATTACKS} attacks, {N_TWINS} twins)"
axis = figures.ValueAxis(x_label, percent=True)
figure = figures.dumbbells_figure(cases, axis, title, over="prompts")
figures.show(figure, alt=f"A row per family: attacks and twins, with intervals. {title}.")


# %%
def named(families):
    """Their names, without the examples, or "none"."""
    return ", ".join(family.name.partition(":")[0] for family in families) or "none"


often = [family for family in luring if fooled[family].value > 0.75]
seldom = [family for family in luring if fooled[family].value < 0.25]
twins_of_often = max((of_twins[family].value for family in often), default=0.0)
unanswered = [family for family in FAMILIES if neither["twin", family] > 0.5]
n_often, n_luring = len(often), len(luring)
names_of = {"often": named(often), "seldom": named(seldom), "unanswered": named(unanswered)}
print(
    f"Fool in more than three of four prompts: {n_often} of {n_luring} lures "
    f"({names_of['often']}); their twins in {twins_of_often:.0%} at most.\n"
    f"In fewer than one of four: {names_of['seldom']}.\n"
    f"Twins to which the model mostly gives no answer at all: {names_of['unanswered']}."
)

# %% [markdown]
# Most lures fool the model, and their twins seldom do: it is the name that misleads. It works in
# another spelling, as a word of a longer key, and in another dictionary. A name in a comment, a
# deleted key and bytes seldom fool. Families that hide fool less often than the strong lures.
#
# One twin is a surprise. If *another* key is deleted, the model mostly writes a new prompt, `>>>`,
# where Python prints an error. Counted as "no error message", this twin would seem to fool. It
# gives no value, so it does not.
#
# ### Where the story holds, and where it fails
#
# Across families: are predictions right? *Within* a family: do the latents say "there" on the same
# prompts as the model? (AUC again, among prompts that got a value or an error.) *Verdict* needs
# rivals: would anything at its place do? The **difference of means** takes all latents of the SAE
# there, along the line from honest training prompts without the key to those with it. The **logit
# lens** sends the SAE's reconstruction straight to the output, and compares digits with error
# messages.

# %%
measured = torch.tensor([fooled[family].value for family in FAMILIES])
guesses = {
    label: torch.tensor([predicted(site, family) for family in FAMILIES])
    for label, site in LABELLED.items()
}
ranks = {
    label: pd.Series(guess).corr(pd.Series(measured), method="spearman")
    for label, guess in guesses.items()
}
better_site, worse_site = sorted(ranks, key=lambda label: -ranks[label])
title = f"Predictions by {better_site} come closer to what fools than those by {worse_site}"
figure = figures.scatter_figure(
    measured,
    guesses,
    f"fooled (share of {N_ATTACKS} prompts)",
    "predicted to be fooled",
    title,
    names=[family.name.partition(":")[0] for family in FAMILIES],
)
figures.show(figure, alt=f"Two scatter plots, a point per family. {title}.")
for label, rank in ranks.items():
    print(f"rank correlation over {len(FAMILIES)} families, {label}: {rank:.2f}")

# %%
digits = [token_ids(lab.tokenizer, str(digit))[0] for digit in range(10)]
openings = [message[0] for message in error_messages]
apart_by_means = (known_present[VERDICT] - known_missing[VERDICT]).mean(0)


@torch.no_grad()
def by_lens(latents):
    """How much likelier a digit is than an error message, by the logit lens at *verdict*."""
    scores = []
    for some in latents[VERDICT].split(64):
        x = decode(lab.saes[VERDICT[0]], some.to(lab.device)).to(lab.dtype)
        logits = lab.stack.logits(lab.stack.norm(x)).float()
        scores.append(logits[:, digits].logsumexp(1) - logits[:, openings].logsumexp(1))
    return torch.cat(scores).cpu()


SIGNALS = {
    "seen": lambda latents: signal(SEEN, latents),
    "verdict": lambda latents: signal(VERDICT, latents),
    "difference of means": lambda latents: latents[VERDICT] @ apart_by_means,
    "logit lens": by_lens,
}

# %%
scores = {
    label: {family: score(got[family].latents) for family in FAMILIES}
    for label, score in SIGNALS.items()
}


def auc_among(families):
    """How well each signal tells the prompts that get a value from those that get an error."""
    valued = torch.cat([got[family].says_value for family in families])
    either = ~torch.cat([got[family].says_neither for family in families])
    row = {
        label: auc(torch.cat([of[family] for family in families])[either], valued[either])
        for label, of in scores.items()
    }
    return row | {"values": int(valued.sum()), "of": int(either.sum())}


said = {family: got[family].says_value[~got[family].says_neither].float() for family in FAMILIES}
of_both_kinds = [family for family in FAMILIES if 0.05 < said[family].mean() < 0.95]
by_family = {family.name: auc_among([family]) for family in of_both_kinds}
of_all = auc_among(FAMILIES)
table = pd.DataFrame({"all families together": of_all} | by_family).T
table.round(2).rename_axis("AUC, prompt by prompt")

# %% [markdown]
# Over all families, *verdict* ranks the prompts well (AUC above 0.85) and *seen* poorly (below
# 0.75). The difference of means does as well as *verdict*: the place matters, and not which of its
# latents we chose. The logit lens does worse, so the answer is known there before it is written as
# tokens.
#
# *Seen* asks whether the name was there before. A deleted key and bytes repeat the name, but seldom
# fool. A key in pieces does the reverse: it is there, but does not repeat the name in one piece. So
# the model must weigh more than the repeat. Honest prompts alone cannot show this: in them, the
# name was there before exactly if the key is in the dictionary.
#
# ### A search that never looks at the answer
#
# If latents know what fools the model, we can find attacks without its answers: draw candidates,
# and take the one with the highest signal. **Predict**: will *seen* or *verdict* find more attacks?
#
# ### Exercise 6.6 · What is the search worth?
# ⏱ 5 min · difficulty ●●○ · compare with a random choice among the same candidates
#
# In each group take the candidate with the highest signal. How often does it fool, and how often
# does any candidate? (Lift: the ratio of the two.)
#
# <details><summary>Hint 1</summary> Take the `argmax` over the candidates of a group. Then look up
# whether that one fools.</details>
# <details><summary>Hint 2</summary> A random choice fools as often as the candidates do on
# average.</details>

# %% tags=["exercise"]
# exercise: lift

# %%
check(lift)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *Nearly 1 whatever the signal:* the choice used the answers.
# - *The same number twice:* the second is over all candidates.
# </details>

# %%
rng = random.Random(SEED)
groups = []
for _ in range(GROUPS):
    # one query, and several ways to tamper with its dictionary
    session = sessions.missing_key(KEYS["test"], DICTIONARIES["test"], rng)
    groups.append([dictionaries.tamper(session, luring, rng) for _ in range(CANDIDATES)])
candidates = {"candidates": sum(groups, [])}
[result] = recorded(
    "candidates",
    candidates,
    lambda: dictionaries.answers_each(
        spliced, candidates, read=[SEEN, VERDICT], progress="candidates"
    ),
).values()

# %%
fools = result.fooled(True).view(GROUPS, CANDIDATES)
search = {"by chance": {"fooled": str(mean_interval(fools.float().mean(1))), "lift": 1.0}}
for label, site in LABELLED.items():
    strength = signal(site, result.latents).view(GROUPS, CANDIDATES)
    by_latents, at_random = lift(strength, fools).tolist()
    picks = fools[torch.arange(GROUPS), strength.argmax(1)]
    search[f"by the {label} latents"] = {
        "fooled": str(proportion(picks)),
        "lift": round(by_latents / max(at_random, 1e-9), 2),
    }
print(f"{GROUPS} groups of {CANDIDATES} candidates")
pd.DataFrame(search).T

# %% [markdown]
# *Verdict* finds more attacks than a random choice, and more than *seen*, which detects a repeat
# whether it fools or not. (The candidates come from several families, so a good choice may be only
# a good family.)
#
# ## 6. Mending
#
# Hold the latents at their values for a missing key, on every prompt. Then lures should lose their
# effect. But a key that is there makes these latents fire, too. A model that always says "missing"
# undoes every lure, and answers no question. Does holding do better?
#
# ### Exercise 6.7 · Undone, and broken
# ⏱ 5 min · difficulty ●●○ · a cure needs two numbers, and each has its own denominator
#
# How much of the harm does a cure undo, and how much of what worked does it break? Each number is 0
# for a model that is left alone. For a model that always says "missing", the first is 1. Decide
# what each is a share of.
#
# <details><summary>Hint 1</summary> Only an attack that worked can be undone. Only a right answer
# can be broken.</details>
# <details><summary>Hint 2</summary> Follow each prompt from before to after. The totals also hold
# attacks that fool newly.</details>

# %% tags=["exercise"]
# exercise: mended

# %%
check(mended)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *Too small:* the shares are of the attacks that fooled before, and of the prompts that were
#   right before.
# </details>
#
# We compare two cures, one per site, and a control that holds strangers. The attacks are the first
# of every family that lures, whether they fooled or not.

# %%
n = N_MEND
lures = {family: asked[family][:n] for family in luring}
to_mend = lures | unseen
cures = {f"{label} held down": held(site, known_missing) for label, site in LABELLED.items()}
cures["strangers of seen"] = strangers(SEEN, known_missing, SEED)


def mend_all():
    """What the model says with each cure, to the lures and to honest prompts."""
    begun = dictionaries.start(keep, sum(lures.values(), []), progress="lures")
    found = {}
    for name, cure in cures.items():
        after = dictionaries.in_lists(begun.answers(cure), lures)
        after |= {kind: start_of(kind).answers(cure) for kind in unseen}
        found |= {(name, key): after[key] for key in to_mend}
    return found


# %%
after = recorded(
    "mended", {(name, key): to_mend[key] for name in cures for key in to_mend}, mend_all
)
cured = {name: {key: after[name, key] for key in to_mend} for name in cures}


# %%
def is_right(found, asked_of):
    """Whether each answer is Python's: an error message for a missing key, the very value for one
    that is there.
    """
    says_missing = [token in sessions.SAYS_MISSING for token in found.top]
    outcomes = [session.outcome() for session in asked_of]
    return torch.tensor(
        [
            says if outcome == MISSING else token == outcome
            for token, says, outcome in zip(found.top, says_missing, outcomes)
        ]
    )


# %%
fooled_before = torch.cat([got[family][:N_MEND].fooled(True) for family in luring])
right = {
    "missing": is_right(missing, to_mend["missing"]),
    "present": is_right(present, to_mend["present"]),
}
always = {"attacks undone": 1.0, "broken, key missing": 0.0, "broken, key present": 1.0}
mending = {"(a model that always says missing)": always}
for name, after in cured.items():
    fooled_after, mending[name] = torch.cat([after[family].fooled(True) for family in luring]), {}
    for kind, was_right in right.items():
        undone, broken = mended(
            fooled_before, fooled_after, was_right, is_right(after[kind], to_mend[kind])
        ).tolist()
        mending[name] |= {"attacks undone": undone, f"broken, key {kind}": broken}
n_fooled, n_right = int(fooled_before.sum()), int(right["present"].sum())
print(f"{n_fooled} attacks that fooled; {n_right} right answers to a key that is there")
pd.DataFrame(mending).T.round(2)

# %% [markdown]
# Holding *seen* down is a partial cure. It undoes some attacks but not all. It breaks few right
# answers to a key that is there, since most of these keys are found without it. Strangers undo few
# attacks. Holding *verdict* down is no cure. Like a model that always says "missing", it undoes
# most attacks and breaks most of these right answers.
#
# ## 7. A better *seen*
#
# We chose the latents of *seen* on honest prompts, where a repeat and "in this dictionary" are the
# same. The families pull them apart. Does the queried key know more than the repeat? Fit a
# direction at this site to what the model says to the families, and score it on a family that the
# fit has not met. **Predict**: will it rank all prompts better than *seen*? As well as *verdict*?
#
# ### Exercise 6.8 · Leave one family out
# ⏱ 10 min · difficulty ●●● · a fit that has met a family knows how its prompts look
#
# Fit a difference of means, and score every prompt by a fit without its own family. Decide what is
# held out, and from where scores are counted: they come from several fits, and one ranking is made
# of all.
#
# <details><summary>Hint 1</summary> One fit per family: two means over all prompts of the others,
# by what the model says.</details>
# <details><summary>Hint 2</summary> The direction is the difference of the two means. Score = how
# far a prompt lies along it from the point halfway.</details>
# <details><summary>Hint 3</summary> `~own & there` picks rows of other families on which the model
# says "there".</details>

# %% tags=["exercise"]
# exercise: held_out_scores

# %%
check(held_out_scores)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *Too good:* the family that is scored is in the fit. Leaving out the one prompt is not enough.
# - *Good within each family, poor over all:* count scores from the point halfway.
# </details>

# %%
either = ~torch.cat([got[family].says_neither for family in FAMILIES])
valued = torch.cat([got[family].says_value for family in FAMILIES])[either]
family_of = torch.arange(len(FAMILIES)).repeat_interleave(N_ATTACKS)[either]
half_of = torch.arange(len(either))[either] % 2  # every second prompt of each family
anew = {}
for label, site in LABELLED.items():
    f = torch.cat([got[family].latents[site] for family in FAMILIES])[either]
    chosen = torch.cat([scores[label][family] for family in FAMILIES])[either]
    anew[label] = {
        "chosen on honest prompts": auc(chosen, valued),
        "fit on half of each family": auc(held_out_scores(f, valued, half_of), valued),
        "fit on the other families": auc(held_out_scores(f, valued, family_of), valued),
    }
n_scored, n_valued = len(valued), int(valued.sum())
print(f"AUC over {n_scored} prompts, of which {n_valued} got a value and the others an error")
pd.DataFrame(anew).T.round(2).rename_axis("at the place of")

# %% [markdown]
# The middle column is the usual way to hold out: half of the prompts of each family. By it, the fit
# at the queried key seems to know more than the repeat. The right column says what it had learned:
# how the prompts of each family look. On a family that it has not met, it is no better than a coin.
# At the place of *verdict* the same fit loses nothing, so the method is not to blame. As far as a
# difference of means can tell, these latents at the queried key know the repeat and not whether it
# counts. (Names recur between families; only the kind of prompt is new.)
#
# ## 8. Playground
#
# Type a dictionary and a key, and ask. Orange at a token means that the two *seen* latents that
# rise most take it for a repeat. (The darkest orange is their mean in an honest prompt with the
# key.) Below the prompt are the model's likeliest first tokens. Try a lure in another place of the
# dictionary, two lures, or a lure beside the true key. Only literals are accepted, so nothing that
# you type can do harm.


# %%
def likeliest(logits):
    """The five likeliest first tokens, each with its probability."""
    values, ids = logits.float().softmax(-1).topk(5)
    return [(lab.tokenizer.decode([i]), value) for i, value in zip(ids.tolist(), values.tolist())]


# %%
@torch.no_grad()
def respond(dictionary, query):
    """What the playground shows for what was typed."""
    session = sessions.read_session(dictionary, query, lab.tokenizer, one_token=True)
    ids = lab.tokenizer(session.prompt, add_special_tokens=False)["input_ids"]
    run = keep.run(torch.tensor([[lab.tokenizer.bos_token_id, *ids]]))
    rising = TELLING[SEEN][0][:2]
    fires = run.latents[hook_point[SEEN[0]]][0, 1:, rising].sum(1)
    likely = likeliest(run.logits[0])
    at = {
        site: {site: run.latents[hook_point[site[0]]][:, site[1]].float().cpu()}
        for site in (SEEN, VERDICT)
    }
    signals = ", ".join(
        f"{label} {signal(site, at[site]).item():.2f}" for label, site in LABELLED.items()
    )
    outcome = session.outcome()
    text = (
        f"Python: {says_python.get(outcome, outcome)}. The model: {likely[0][0]!r}. "
        f"Signals (0 missing, 1 there): {signals}."
    )
    darkest = known_present[SEEN][:, rising].sum(1).mean().item()
    return answer_html(
        [lab.tokenizer.decode([i]) for i in ids], fires.tolist(), likely, text, darkest=darkest
    )


# %%
def as_typed(family):
    """An example of a family, if it can be typed into two lines."""
    session = dictionaries.attacks(family, 1, split="test", seed=SEED + 1)[0]
    plain = not (session.before or session.between or session.comment) and session.query.startswith(
        "'"
    )
    return (session.dictionary, session.query[1:-1]) if plain else None


# %%
to_try = {
    family.name: as_typed(family)
    for family in HONEST + (() if QUICK else FAMILIES)
    if as_typed(family)
}
play(
    respond,
    "{'Bob': 1, 'Mary Ann': 2, 'Max': 4, 'Kim': 7, 'Luke': 5}",
    "Ann",
    to_try,
    refused=sessions.SessionError,
)

# %% [markdown]
# ## What we saw

# %%
up, down = (
    {label: forced[f"{label} held as for {how}"].value for label in LABELLED}
    for how in ("a repeat: values", "none: errors")
)
unmet = {label: row["fit on the other families"] for label, row in anew.items()}
undone, broken = (
    {label: mending[f"{label} held down"][column] for label in LABELLED}
    for column in ("attacks undone", "broken, key present")
)
recap = [
    "On keys on which they were not chosen, the signals tell missing from present keys with an AUC "
    f"of {aucs['seen']:.2f} (seen) and {aucs['verdict']:.2f} (verdict).",
    f"{n_shared} of their {n_telling} latents are in the learned circuit; chance gives "
    f"{by_chance:.1f}.",
    f"Held as for a repeat, seen turns {up['seen']:.0%} of the errors into values; held as for "
    f"none, {down['seen']:.0%} of the values into errors. Verdict turns {up['verdict']:.0%} and "
    f"{down['verdict']:.0%}.",
    f"{n_often} of {n_luring} lures fool the model in more than three of four prompts, and "
    f"their twins in {twins_of_often:.0%} at most.",
    f"Prompt by prompt, verdict ranks what the families get with an AUC of "
    f"{of_all['verdict']:.2f}, and seen with {of_all['seen']:.2f}.",
]

# %%
recap += [
    "A fit to other families, scored on one that it has not met, has an AUC of "
    f"{unmet['seen']:.2f} at the place of seen, and {unmet['verdict']:.2f} at that of verdict.",
    f"Holding seen down undoes {undone['seen']:.0%} of the attacks and breaks {broken['seen']:.0%} "
    f"of the right answers to a key that is there; verdict, {undone['verdict']:.0%} and "
    f"{broken['verdict']:.0%}.",
]
for number, sentence in enumerate(recap, start=1):
    print(f"{number}. {sentence}")
minutes = (time.perf_counter() - started) / 60
print(f"This notebook took {minutes:.1f} minutes.")

# %% [markdown]
# **What was predicted.** The model finds a key by finding its name a second time. So anything that
# repeats the name should fool it.
#
# **Where it held.** Held as for a repeat, a few latents on the queried key turn most errors into
# values, and strangers turn few answers. Most lures fool the model in most cases, far more often
# than their twins.
#
# **Where it failed.** These latents are not necessary. With them held down, the model still finds
# most keys that are there, and some attacks still work. Nor is a repeat always enough: a deleted
# key and bytes repeat the name, and seldom fool. So *seen* alone is a poor guide to attacks, and
# *verdict* a good one. After `del` of another key the model mostly gives no answer; we do not know
# why. Attribution, at its best, keeps up with the mask here; the post found it far behind.
#
# **What was chosen on what.** Masks and scores: training prompts. Sizes, settings and attribution's
# variant: dev. Latents and sites: training keys. Families: written while looking at dev keys. The
# fit of section 7: test keys of other families. All else that is reported is of test keys.
#
# **What was not tested.** Another model, or this one with its full weights; larger dictionaries,
# keys of several tokens, other formats, another draw of the prompts; whether the SAEs' errors carry
# what *seen* lacks.
#
# **Key terms**: adversarial dictionary, attack family, attention, attribution, AUC, clamp, control,
# hide, honest prompt, lift, logit difference, logit lens, lure, mask, node, probability, seen,
# session, signal, site, strangers, twin, verdict
#
# The [glossary](../GLOSSARY.md) has a sentence on each.
#
# **To read on**
#
# - [Caples et al. 2025, Scaling Sparse Feature Circuit Finding to Gemma 9B][post]
# - [Marks et al. 2024, Sparse Feature Circuits](https://arxiv.org/abs/2403.19647)
# - [Heimersheim and Nanda 2024, How to use and interpret activation
#   patching](https://arxiv.org/abs/2404.15255)
# - [Hui et al. 2024, Qwen2.5-Coder Technical Report](https://arxiv.org/abs/2409.12186)
# - [SAELens](https://github.com/jbloomAus/SAELens), the library in whose format our SAEs are stored
#
# **Next**: [07 · When gradients lie](07_when_gradients_lie.ipynb): why attribution misses what
# matters, and what gradients are good for all the same.
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
