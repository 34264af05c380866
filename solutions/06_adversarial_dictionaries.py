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
# - which latents tell a missing key from one that is there, and where in the prompt they fire;
# - whether the model *uses* them, and which control shows it;
# - which families of dictionaries fool the model, and why each needs a twin;
# - where a prediction from honest prompts holds, and where it fails;
# - what it costs to mend the model by holding latents.
#
# **You need** notebooks 03 to 05, or to know what they explain: SAEs spliced into the residual
# stream, learned masks, faithfulness. **You write** six functions. Until you do, the course's
# versions run in their place.
#
# **It takes** you about 75 minutes: 40 for the exercises, 35 to read. The notebook runs {times}.
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
# 7. Playground
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
from course_utils.circuits.attribution import random_scores
from course_utils.circuits.frontier import MASKS_DIR, summary_sentence
from course_utils.circuits.masks import load_circuits
from course_utils.circuits.published import published_circuits
from course_utils.circuits.statistics import auc, mean_interval, proportion, ratio_interval
from course_utils.display import figures
from course_utils.display.html import answer_html
from course_utils.display.profile import is_quick
from course_utils.display.widgets import play
from course_utils.labs.requirements import matrix_rate

# %%
from course_utils.prompts import sessions
from course_utils.prompts.text import load_text
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
# sections 1 to 3: prompts for means, and to report on
N_TRAIN, N_TEST = (3, 2) if QUICK else (dictionaries.N_LEARN, 32)
SIZES = dictionaries.CIRCUITS  # nodes of a circuit, by task; the larger are the post's
# True: learn circuits and rank nodes again, which takes hours, in place of reading them
LEARN_CIRCUITS = False
# sections 4 to 6. Honest prompts of each kind with training keys: to choose latents, and to try
N_KNOWN, N_TRIED = 48, 6
# with test keys: honest prompts of each kind, prompts of each family, of each family's control
N_HONEST, N_ATTACKS, N_TWINS = 48, 64, 12
N_DRAWS = 4  # of strangers, the control for holding latents
# of the search, and attacks of a family to mend
GROUPS, CANDIDATES, N_MEND = 20, 6, 6

# %% [markdown]
# The model has 1.5 billion parameters, which is a lot for a CPU. The next cell estimates the time
# on this machine. The circuits of section 3 therefore come with the course. The quick profile
# (`PROFILE = "quick"` above) also reads what the full run recorded: the scores of these circuits
# from `data/masks`, and the answers and latents of sections 4 to 6 from `data/answers`. Your
# functions still compute the results. The quick profile asks the model a few prompts only, too few
# for the tables of sections 1 and 2.

# %%
needs = estimate(LAB, prompts=dictionaries.LEARNING["batch_size"], tokens=38)
# prompts of about 40 tokens that the model reads in this notebook, counted from the sizes above
N_READ = 100 if QUICK else 2700
seconds = 40 * 2 * needs.parameters / 1e9 / (0.6 * matrix_rate(needs.dtype))  # for each of them
print(needs)
print(
    f"This machine: {needs.dtype}, about {N_READ * seconds / 60:.0f} minutes for {N_READ:,} prompts"
)

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
# ⏱ 5 min · difficulty ●○○ · several tokens mean the same thing
#
# For this model "Traceback" is two tokens, "Trace" and "back". Sometimes it starts with "KeyError"
# or "IndexError" at once. All three mean that the key is missing. Add up their probabilities.
#
# <details><summary>Hint 1</summary> First the probabilities, over the whole vocabulary. Then
# pick.</details>
# <details><summary>Hint 2</summary> A softmax over a few logits always adds up to 1.</details>

# %% tags=["exercise"]
# exercise: p_missing

# %%
check(p_missing)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *1 for every prompt:* the softmax was taken over the three tokens only.
# - *Above 1, or below 0:* these are logits, not probabilities.
# </details>

# %%
missing_ids = [
    lab.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in sessions.SAYS_MISSING
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
                "p(missing)": mean_interval(p_missing(logits, missing_ids)),
                "n": len(task),
            }
        )
pd.DataFrame(rows)

# %%
said = {repr(token): n for token, n in first_tokens.most_common() if not token.isdigit()}
digits = sum(n for token, n in first_tokens.items() if token.isdigit())
print(f"Of {first_tokens.total()} first tokens, {digits} are digits; the others: {said}")

# %% [markdown]
# On dictionaries the model is right in more than four of five prompts. (Section 5 measures this
# again, as "honest".) Compare its accuracy on lists: a circuit can only explain what the model
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
evaluation = {name: Evaluation(spliced, tasks[name], means[name]) for name in trains}
with_mean = SplicedModel(lab, LAYERS, error="mean")
rows = []
for name, train in trains.items():
    mean_errors = with_mean.patch_means(train.patch[:16])
    put_back = with_mean.logit_diff(tasks[name], means=mean_errors).cpu()
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
# As in notebook 04 we compare learned masks (several seeds; the larger sizes are the post's), the
# best variant of attribution, and random nodes among those that fire. All are judged on test. On
# this model learning and scoring take hours. So the circuits, and attribution's ranking of nodes,
# come from `data/masks`, where `python -m tools.learn_circuits` put them. Masks learn on 64
# training prompts. Attribution scores nodes on 32 of these, since integrated gradients cost more.
# Sizes, settings and the best of attribution's twelve variants were chosen on dev. Set
# `LEARN_CIRCUITS = True` to do all this here.


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

# %%
pd.DataFrame(
    [
        {"task": name, "wanted": size, "seed": seed, "nodes": one.get_num_latents()}
        for name, found in masks.items()
        for (size, seed), one in found.items()
    ]
).pivot(index=["task", "wanted"], columns="seed", values="nodes")

# %% [markdown]
# The gap on dev of each variant of attribution; only the best one is judged on test:

# %%
for name, found in rankings.items():
    print(f"{name}: {found.n_prompts} prompts scored the nodes; gaps on {found.n_dev} dev prompts")
best = {name: found.variant for name, found in rankings.items()}
pd.DataFrame({name: found.gaps for name, found in rankings.items()}).round(2).rename_axis("gap")


# %%
def judged(name):
    """A task's circuits, judged on its test prompts."""
    chance = random_scores(spliced, trains[name][:16], seed=SEED)
    frontier = Frontier.of(spliced, tasks[name])
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
    here = evaluation["dict_key"].faithfulness(circuit)
    print(
        f"{circuit.get_num_latents()} nodes on {here.n} prompts, judged here: F {here.vs_spliced}"
    )

# %%
for name, frontier in frontiers.items():
    title = f"{name}: learned masks (all seeds), attribution's best variant, random nodes"
    figures.show(
        figures.measures_figure(frontier, ("vs_spliced", "gap"), title=title),
        alt=f"Faithfulness and gap on held-out prompts against the number of nodes. {title}.",
    )
    print(summary_sentence(frontier, "learned mask", [best[name]]))

# %%
pd.concat(
    [pd.DataFrame(f.rows()).assign(task=name) for name, f in frontiers.items()], ignore_index=True
).drop(columns="sparsity")

# %% [markdown]
# A faithfulness of 0 is the answer with every latent ablated, and 1 is the answer of the spliced
# model. A gap of 0 means no difference on any prompt. For `dict_key`, the largest learned masks
# keep more of the answer than random nodes. Attribution, too, keeps more than half of it at that
# size.
#
# The post reports F(C)/F(S), without subtracting F(∅). The next table uses the same unit. (Model,
# SAEs and prompts differ, so the same number of nodes is not the same share of all nodes.)

# %%
rows = [
    {
        "task": name,
        "nodes": point.n_nodes,
        "found by": point.method,
        "F(C)/F(S)": str(point.faithfulness.raw),
    }
    for name, frontier in frontiers.items()
    for point in frontier.points
    if point.method != "random"
]
for published in published_circuits("gemma-2-9b"):
    if published.task in trains:
        rows.append(
            {
                "task": published.task,
                "nodes": published.nodes,
                "found by": "the post, Gemma 2 9B",
                "F(C)/F(S)": published.faithfulness,
            }
        )
pd.DataFrame(rows).sort_values(["task", "nodes"], ignore_index=True)

# %% [markdown]
# The post found IG far behind its masks, on other models and with wider SAEs. Here the sentences
# under the figures say which method is ahead, at which size and by which measure. The comparison
# has two limits: our prompts have one layout, which leaves fewer wrong nodes to choose, and our
# SAEs are narrow.

# %% [markdown]
# ## 4. The causal story
#
# Where are the nodes of the largest circuit for `dict_key`? The prompt has 39 tokens with BOS, and
# each place gets a name:

# %%
entry, item = ["a key", "':", "␣", "a value", ",", "'"], ["a value", ",", "␣"]
PLACES = {
    "dict_key": [
        "BOS", ">>>", "variable", "=", "{'", *(entry * 5)[:-2], "}",
        ">>>", "variable", "['", "the queried key", "']",
    ],
    "list_index": [
        "BOS", ">>>", "variable", "=", "[", *(item * 5)[:-2], "] (list)",
        ">>>", "variable", "[", "the index", "]",
    ],
}  # fmt: skip
assert all(len(PLACES[name]) == task.seq_len for name, task in tasks.items() if name in PLACES)


# %%
def where_nodes_are(name):
    """How many nodes a task's largest circuit has after each layer, at each place."""
    nodes = masks[name][largest[name], SEED].nodes()
    table = pd.DataFrame(
        [{"after layer": int(h.split(".")[1]), "at": PLACES[name][p]} for h, p, _ in nodes]
    )
    in_order = [place for place in dict.fromkeys(PLACES[name]) if place in set(table["at"])]
    return pd.crosstab(table["after layer"], table["at"], margins=True)[[*in_order, "All"]]


where_nodes_are("dict_key")

# %% [markdown]
# The circuit for `list_index`:

# %%
where_nodes_are("list_index")

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
p_by_hand = p_missing(by_hand.logits.detach().float().cpu(), missing_ids)
torch.testing.assert_close(
    p_by_hand, dictionaries.answers_with(keep, [session], clamp).p_missing, atol=0.02, rtol=0.02
)
print(
    f"p(missing) with {len(values)} latents held {name_of(site)}: {p_by_hand.item():.3f}, as "
    "the library has it"
)

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
# needs. Do the two agree?

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


# %%
nodes = {(h, PLACES["dict_key"][p], i) for h, p, i in circuit.nodes()}
print(f"seen: {name_of(SEEN)}; verdict: {name_of(VERDICT)}")

# %%
telling_rows = [
    {
        "site": label,
        "latent": i,
        "fires for": "a repeat" if i in TELLING[site][0] else "none",
        "key present": known_present[site][:, i].mean().item(),
        "key missing": known_missing[site][:, i].mean().item(),
        "in the circuit": (hook_point[site[0]], where[site[1]], i) in nodes,
    }
    for label, site in LABELLED.items()
    for i in sum(TELLING[site], [])
]
n_at = Counter((h, place) for h, place, _ in nodes)
n_seen, n_verdict = (n_at[hook_point[layer], where[place]] for layer, place in (SEEN, VERDICT))
n_shared = sum(row["in the circuit"] for row in telling_rows)
print(
    f"{n_shared} of these {len(telling_rows)} latents are in the circuit, which has {n_seen} nodes "
    f"at the site of seen and {n_verdict} at that of verdict"
)
pd.DataFrame(telling_rows).round(1)

# %% [markdown]
# They agree: more than four in five of these latents are nodes of the circuit.
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
    f"{label}, key {kind}": signal(site, some.latents)
    for label, site in LABELLED.items()
    for kind, some in (("missing", missing), ("present", present))
}

# %%
is_present = torch.arange(2 * N_HONEST) >= N_HONEST
both_kinds = {
    label: torch.cat([says[f"{label}, key missing"], says[f"{label}, key present"]])
    for label in LABELLED
}
aucs = {label: auc(values, is_present) for label, values in both_kinds.items()}
title = (
    f"Test keys, {N_HONEST} prompts of each kind: AUC {aucs['seen']:.3f} for seen, "
    f"{aucs['verdict']:.3f} for verdict"
)
figures.show(
    figures.histograms_figure(says, "signal", "prompts", title),
    alt=f"Four histograms of what the latents say of honest prompts. {title}.",
)

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
def with_strangers(label, kind):
    """Which answers are errors with strangers held: every draw of them in its own prompts."""
    draws = [turned[label, kind, draw].says_missing[draw::N_DRAWS] for draw in range(N_DRAWS)]
    return torch.cat(draws)


# %%
forced = {}
for label in LABELLED:
    up, down = turned[label, "a repeat"], turned[label, "none"]
    forced[f"{label} held as for a repeat: values"] = proportion(~up.says_missing)
    stands_there = [
        token in dict(session.entries).values() for token, session in zip(up.top, unseen["missing"])
    ]
    print(
        f"{label} held as for a repeat: {sum(stands_there)} of {N_HONEST} answers are a value "
        "that stands in the dictionary"
    )
    forced[f"{label} held as for none: errors"] = proportion(down.says_missing)
    for kind in unseen:
        errors = with_strangers(label, kind)
        other = ~errors if kind == "missing" else errors
        forced[f"strangers of {label}, key {kind}"] = proportion(other)
forced["nothing held, key missing"] = proportion(~missing.says_missing)
forced["nothing held, key present"] = proportion(present.says_missing)

# %%
orange = [name for name in forced if "held as" in name]
title = "Answers turned by holding: seen {:.0%} and {:.0%}, verdict {:.0%} and {:.0%}".format(
    *(forced[name].value for name in orange)
)
x_label = f"answers that are not of Python's kind (n = {N_HONEST} each)"
axis = figures.ValueAxis(x_label, percent=True)
figure = figures.estimates_figure(forced, axis, title, bars=True, horizontal=True, highlight=orange)
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
# attacks. In each, Python's answer is certain, but the dictionary looks like the opposite.
#
# Eleven families **lure**. The key is missing, but its name is in the prompt: in another spelling,
# inside a longer name, with a space, as a value, in a comment, in another dictionary, in one from
# which it was deleted, or as text where bytes are asked for.
#
# Four families **hide**. The key is there, but its name is not written in one piece: two literals
# side by side are one string to Python, `'\x41'` is an A, a sum of strings is a string, and
# `update(Ann=3)` adds the key `'Ann'`.

# %%
luring = [family for family in FAMILIES if family.lures]
hiding = [family for family in FAMILIES if not family.lures]
asked = {
    family: dictionaries.attacks(family, N_ATTACKS, split="test", seed=SEED) for family in FAMILIES
}
says_python = {sessions.MISSING: "KeyError"}
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
# **Stop and predict.** Write down for each family: will it fool the model often, sometimes, or
# never?
#
# ### Exercise 6.4 · A prediction from latents alone
# ⏱ 5 min · difficulty ●●○ · a threshold that has not seen an attack
#
# On which share of a family's prompts do the latents say that the key is there? Set the threshold
# with honest prompts alone.
#
# <details><summary>Hint 1</summary> Honest prompts give two means. The threshold lies halfway
# between them.</details>
# <details><summary>Hint 2</summary> The share is that of the attack's prompts on the "present"
# side.</details>

# %% tags=["exercise"]
# exercise: predicted_share

# %%
check(predicted_share)

# %% [markdown]
# <details><summary>My values look wrong</summary>
#
# - *About a half for every family:* the threshold moves with the family. Set it once, on honest
#   prompts.
# - *Every share is reversed:* below the threshold means "missing".
# </details>
#
# A comment might confuse the model whatever it says. So each family has a **twin**: the same
# change, made with a name that nobody asks for (`'kim'` in place of `'ann'`). One pass reads the
# latents and the answers of all. We look at the latents first.

# %%
twin_of = {family: dictionaries.twin(family) for family in FAMILIES}
asked |= {
    other: dictionaries.attacks(other, N_TWINS, split="test", seed=SEED)
    for other in twin_of.values()
}
got = recorded(
    "attacks",
    asked,
    lambda: dictionaries.answers_each(spliced, asked, read=[SEEN, VERDICT], progress="attacks"),
)


# %%
def predicted(site, family):
    """The share of a family's prompts on which a site's latents say "there"."""
    return predicted_share(
        *(balance(site, latents) for latents in (known_missing, known_present, got[family].latents))
    )


# %%
rows = [
    {
        "family": family.name,
        "looks": "present" if family.lures else "absent",
        "seen says there": predicted(SEEN, family),
        "verdict says there": predicted(VERDICT, family),
        "signal of seen": signal(SEEN, got[family].latents).mean().item(),
        "signal of verdict": signal(VERDICT, got[family].latents).mean().item(),
    }
    for family in FAMILIES
]
pd.DataFrame(rows).round(2)

# %% [markdown]
# The column "seen says there" is the prediction of the story. *Verdict* is read at the last token,
# close to the answer, so it has the easier task.
#
# Now the answers. "Fooled": no error message where Python has one, or one where Python has none.
# "Twin" and "honest": the same rate for twins and for honest prompts. "Says a digit" separates
# values from other text.

# %%
fooled = {family: proportion(got[family].fooled(family.lures)) for family in FAMILIES}
of_twins = {family: proportion(got[twin_of[family]].fooled(family.lures)) for family in FAMILIES}
control = {True: proportion(~missing.says_missing), False: proportion(present.says_missing)}


def most_said(family, n):
    """A family's commonest first tokens, with their shares."""
    return ", ".join(
        f"{token!r} {count / len(got[family].top):.0%}"
        for token, count in Counter(got[family].top).most_common(n)
    )


# %%
rows = [
    {
        "family": family.name,
        "fooled": str(fooled[family]),
        "twin": str(of_twins[family]),
        "honest": str(control[family.lures]),
        "says a digit": got[family].says_value.float().mean().item(),
        "most said": most_said(family, 3),
        "by the twin": most_said(twin_of[family], 1),
    }
    for family in FAMILIES
]
print(
    f"n = {N_ATTACKS} for each family, {N_TWINS} for each twin, {N_HONEST} honest prompts of "
    "each kind"
)
pd.DataFrame(rows).round(2)

# %% [markdown]
# In the quick profile these answers come from the full run. To compare, the next cell asks the
# model one prompt of each family:

# %%
if QUICK:
    sample = {family: asked[family][:1] for family in FAMILIES}
    asked_now = dictionaries.answers_each(spliced, sample)
    n_same = sum(asked_now[f].says_missing == got[f].says_missing[:1] for f in FAMILIES).item()
    print(f"The same kind of answer, error or not: {n_same} of {len(FAMILIES)} prompts")

# %%
label_of = {family: f"{family.name}{'' if family.lures else ' (hides)'}" for family in FAMILIES}
over = [
    label_of[family]
    for family in FAMILIES
    if fooled[family].low > max(control[family.lures].high, of_twins[family].high)
]
title = (
    f"{len(over)} of {len(FAMILIES)} families (orange) fool more often "
    "than honest prompts and than their twins"
)
bars = dict(
    sorted(
        ((label_of[family], fooled[family]) for family in FAMILIES),
        key=lambda item: -item[1].value,
    )
)
bars |= {"honest, key missing": control[True], "honest, key present": control[False]}
x_label = f"prompts on which the model is fooled (n = {N_ATTACKS} each)"
axis = figures.ValueAxis(x_label, percent=True)
figure = figures.estimates_figure(bars, axis, title, bars=True, horizontal=True, highlight=over)
figures.show(figure, alt=f"Bars with intervals. {title}.")


# %%
def named(families):
    """Their names, without the examples, or "none"."""
    return ", ".join(family.name.partition(":")[0] for family in families) or "none"


often = [family for family in luring if fooled[family].value > 0.75]
seldom = [family for family in luring if fooled[family].value < 0.25]
twins_of_often = max((of_twins[family].value for family in often), default=0.0)
odd_twins = [family for family in FAMILIES if of_twins[family].value > 0.5]
hidden = "; ".join(f"{named([family])} {fooled[family].value:.0%}" for family in hiding)
print(
    f"Fool in more than three of four prompts: {len(often)} of {len(luring)} lures ({named(often)})"
    f"; their twins in {twins_of_often:.0%} at most.\n"
    f"In fewer than one of four: {named(seldom)}.\nThose that hide: {hidden}.\n"
    f"Twins that fool in more than one of two: {named(odd_twins)}."
)

# %% [markdown]
# Most lures fool the model in more than three of four prompts. Their twins fool it in fewer than
# two of five, so it is the name that misleads. It works in lower case, as the second word of a key,
# and in another dictionary. A name in a comment, a deleted key and bytes fool in fewer than one of
# four. Families that hide fool less often than the strong lures.
#
# One twin is a surprise. If *another* key is deleted, the model is fooled in more than half of the
# prompts. Our story does not predict this.
#
# ### Where the story holds, and where it fails
#
# Across families: do the latents say "there" as often as the model does? *Within* a family: do they
# say it on the same prompts as the model? (AUC again, for families with answers of both kinds.)

# %%
says_there = torch.tensor(
    [1 - got[family].says_missing.float().mean().item() for family in FAMILIES]
)
guesses = {
    label: torch.tensor([predicted(site, family) for family in FAMILIES])
    for label, site in LABELLED.items()
}
ranks = {
    label: pd.Series(guess).corr(pd.Series(says_there), method="spearman")
    for label, guess in guesses.items()
}
title = f"Each point a family; rank correlation over {len(FAMILIES)}: " + ", ".join(
    f"{label} {rank:.2f}" for label, rank in ranks.items()
)
names = [family.name.partition(":")[0] for family in FAMILIES]
figure = figures.scatter_figure(
    says_there, guesses, "the model says there", "the latents say there", title, names=names
)
figures.show(
    figure, alt=f"Two scatter plots; families that lie far from the diagonal are named. {title}."
)


# %%
def auc_among(families):
    """How well the signals tell the prompts on which the model says "there" from the others, for
    both sites.
    """
    there = ~torch.cat([got[family].says_missing for family in families])
    signals = {
        label: torch.cat([signal(site, got[family].latents) for family in families])
        for label, site in LABELLED.items()
    }
    return {label: auc(values, there) for label, values in signals.items()} | {
        "says there": int(there.sum()),
        "of": len(there),
    }


of_both_kinds = [
    family for family, there in zip(FAMILIES, says_there.tolist()) if 0.05 < there < 0.95
]
rows = {"all families together": auc_among(FAMILIES)} | {
    family.name: auc_among([family]) for family in of_both_kinds
}
pd.DataFrame(rows).T.round(2).rename_axis("AUC, prompt by prompt")

# %%
for label, site in LABELLED.items():
    pairs = [
        (family.name, predicted(site, family), there)
        for family, there in zip(FAMILIES, says_there.tolist())
    ]
    off = [
        f"{name} ({guess:.2f}, measured {there:.2f})"
        for name, guess, there in pairs
        if abs(guess - there) > 0.3
    ]
    print(
        f"{label} is off by more than 0.3 for {len(off)} of {len(FAMILIES)} "
        f"families: {'; '.join(off)}"
    )

# %% [markdown]
# Over all families, *verdict* ranks the prompts well (AUC above 0.85) and *seen* poorly (below
# 0.75). The sentences above name the families on which each is far off.
#
# *Seen* asks whether the name was there before. A deleted key and bytes repeat the name, but seldom
# fool the model. A key in pieces does the reverse: it is there, but does not repeat the name in one
# piece. So the model must weigh more than the repeat. Honest prompts alone cannot show this: in
# them, the name was there before exactly if the key is in the dictionary.
#
# ### A search that never looks at the answer
#
# If latents know what fools the model, we can find attacks without its answers: draw candidates,
# and take the one with the highest signal. (One pass reads everything, but only the latents
# choose.) Predict: will *seen* or *verdict* find more attacks?
#
# ### Exercise 6.5 · What is the search worth?
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
    session = sessions.missing_key(sessions.KEYS["test"], sessions.DICTIONARIES["test"], rng)
    groups.append([dictionaries.tamper(session, luring, rng) for _ in range(CANDIDATES)])
candidates = {"candidates": sum(groups, [])}
[result] = recorded(
    "candidates",
    candidates,
    lambda: dictionaries.answers_each(
        spliced, candidates, read=[SEEN, VERDICT], progress="candidates"
    ),
).values()
seen_says = signal(SEEN, result.latents)
choice = seen_says.view(GROUPS, CANDIDATES).argmax(1)
print("The first three choices of seen:")
print(*(groups[i][k].prompt for i, k in enumerate(choice[:3].tolist())), sep="\n")

# %%
fools = result.fooled(True).view(GROUPS, CANDIDATES)
search = {"by chance": {"fooled": str(mean_interval(fools.float().mean(1))), "lift": 1.0}}
for label, strength in (("seen", seen_says), ("verdict", signal(VERDICT, result.latents))):
    strength = strength.view(GROUPS, CANDIDATES)
    by_latents, by_chance = lift(strength, fools).tolist()
    picks = fools[torch.arange(GROUPS), strength.argmax(1)]
    search[f"by the {label} latents"] = {
        "fooled": str(proportion(picks)),
        "lift": round(by_latents / max(by_chance, 1e-9), 2),
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
# ### Exercise 6.6 · Undone, and broken
# ⏱ 5 min · difficulty ●○○ · a cure needs two numbers
#
# Of the attacks that fooled, which share no longer does? Of the right answers to honest prompts,
# which share is now wrong?
#
# <details><summary>Hint 1</summary> Only an attack that worked can be undone. Only a right answer
# can be broken.</details>

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
            says if outcome == sessions.MISSING else token == outcome
            for token, says, outcome in zip(found.top, says_missing, outcomes)
        ]
    )


# %%
before = {family: got[family][:N_MEND].fooled(True) for family in luring}
right = {
    "missing": is_right(missing, to_mend["missing"]),
    "present": is_right(present, to_mend["present"]),
}
fooled_before = torch.cat([*before.values()])

# %%
always = {"attacks undone": 1.0, "broken, key missing": 0.0, "broken, key present": 1.0}
mending, by_family = {"(a model that always says missing)": always}, {}
for name, after in cured.items():
    fooled_after, mending[name] = torch.cat([after[family].fooled(True) for family in luring]), {}
    for kind, was_right in right.items():
        undone, broken = mended(
            fooled_before, fooled_after, was_right, is_right(after[kind], to_mend[kind])
        ).tolist()
        mending[name] |= {"attacks undone": undone, f"broken, key {kind}": broken}
    by_family[name] = {
        f.name: mended(before[f], after[f].fooled(True), was_right, was_right)[0].item()
        for f in luring
        if before[f].any()
    }
    of_those = proportion(~is_right(after["present"], to_mend["present"])[right["present"]])
    undone = proportion(~fooled_after[fooled_before])
    print(
        f"{name}: undone {undone} of {int(fooled_before.sum())} attacks that fooled; broken "
        f"{of_those} of {int(right['present'].sum())} right answers to a key that is there"
    )
pd.DataFrame(mending).T.round(2)

# %%
pd.DataFrame(by_family).round(2).rename_axis(f"share undone, of up to {N_MEND}")

# %% [markdown]
# Holding *seen* down is a partial cure. It undoes some attacks but not all. It breaks few right
# answers to a key that is there, since most of these keys are found without it. Strangers undo few
# attacks. Holding *verdict* down is no cure. Like a model that always says "missing", it undoes
# most attacks and breaks most of these right answers.
#
# ## 7. Playground
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
print(
    f"AUC on test keys: seen {aucs['seen']:.3f}, verdict {aucs['verdict']:.3f} (n = {N_HONEST} "
    "of each kind)"
)
for name in forced:
    print(f"{name}: {forced[name]}")
for family in FAMILIES:
    print(
        f"fooled by {family.name}: {fooled[family]}; twin {of_twins[family]}; predicted from "
        f"seen {predicted(SEEN, family):.2f} (says there)"
    )
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What was predicted.** The model finds a key by finding its name a second time. So anything that
# repeats the name should fool it.
#
# **Where it held.** A few latents on the queried key detect a repeat, also with keys on which they
# were not chosen. Held as for a repeat, they turn most errors into values; strangers turn few
# answers. Most lures fool the model in most cases, far more often than their twins.
#
# **Where it failed.** These latents are not necessary. With them held down, the model still finds
# most keys that are there, and some attacks still work. Nor is a repeat always enough: a deleted
# key and bytes repeat the name, and seldom fool. So *seen* alone is a poor guide to attacks, and
# *verdict* a good one. Deleting another key was meant as a control, but it fools in more than half
# of the prompts. We do not know why. Attribution, at its best, keeps more than half of the answer
# here; the post found it far behind the mask.
#
# **What was chosen on what.** Masks and scores: training prompts. Sizes, settings and attribution's
# variant: dev. Latents and sites: training keys. Families: written while looking at dev keys. The
# results of sections 1 to 3 are of test (but for the gaps that chose attribution's variant), and so
# is everything from the histograms of section 4 on.
#
# **What was not tested.** Another model, or this one with its full weights; larger dictionaries,
# keys of several tokens, other formats, another draw of the prompts; whether the SAEs' errors carry
# what *seen* lacks.
#
# **Key terms**: adversarial dictionary, attack family, attention, attribution, AUC, clamp, control,
# hide, honest prompt, lift, logit difference, lure, mask, node, probability, seen, session, signal,
# site, strangers, twin, verdict
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
# **What next?** This is the last notebook. The [README](../README.md) shows how to use the library
# with other labs and with your own tasks. The first notebook is [00](00_start_here.ipynb).
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
