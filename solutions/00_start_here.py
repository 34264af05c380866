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
# # 00 · Start here
#
# *The athletes near the car* **are**. A few dozen numbers inside a language model make it say
# *are*. They are a **circuit** of sparse-autoencoder latents, and you will see it in a minute. In
# this course you will find that circuit yourself, test it, and use one like it to predict what
# fools a model of code.
#
# **At the end you can say**
#
# - whether your machine can run the course, and what each lab needs;
# - what a circuit of SAE latents is, and what its faithfulness measures;
# - that a few dozen nodes carry the number of a subject in SmolLM2-135M, and that as many random
#   nodes do not;
# - how exercises, checks, profiles and labs work in this course.
#
# **Time**: 15 minutes to read; there is nothing to write. **It runs** {times}. You need no GPU, no
# account and no token. The first run fetches 93 MB of weights.
#
# **Contents**
#
# 1. Your machine
# 2. A circuit in one minute
# 3. How the course works
# 4. What we saw

# %% tags=["setup"]
# setup

# %%
import json
import os
import platform
import time

import pandas as pd
import torch

from course_utils import Evaluation, Frontier, SAEMasks, SplicedModel, estimate, load_lab, load_task
from course_utils.circuits.attribution import random_scores
from course_utils.circuits.graph import contrasts_of, measured_graph
from course_utils.display.circuit_view import show_circuit
from course_utils.display.profile import is_quick
from course_utils.display.widgets import explore_frontier
from course_utils.labs.catalog import LABS, spec_of
from course_utils.labs.memory import free_memory
from course_utils.labs.requirements import fast_dtype, matrix_rate, usual_device
from course_utils.prompts.text import load_text

started = time.perf_counter()

# %% tags=["parameters"]
LAB = "smollm2"
PROFILE = os.environ.get("COURSE_PROFILE", "full")

# %% [markdown]
# ## 1. Your machine

# %%
QUICK = is_quick(PROFILE)
device = usual_device()
cpu = f"CPU, {torch.get_num_threads()} threads"
free_gb = free_memory().bytes / 1e9
rate = matrix_rate(torch.float32, device)
pd.Series(
    {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "runs on": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "free memory": f"{free_gb:.0f} GB",
        "matrix products, float32": f"{rate:,.0f} GFLOP/s",
        "fast number format": str(fast_dtype(device)).removeprefix("torch."),
    }
).to_frame("this machine")

# %% [markdown]
# This notebook's lab needs the following. `load_lab` checks it before it fetches anything.

# %%
needs = estimate(LAB)
print(needs)
seconds = needs.seconds_per_step(device)
print(f"A step of learning a mask takes up to {seconds:.1f} s here (16 prompts of 24 tokens).")
print("The sentences of this course have a quarter of that, or a half. A mask takes 60 steps.")
enough = "enough" if free_gb > needs.memory else "too little"
print(f"Memory: {needs.memory:.1f} GB needed, {free_gb:.0f} GB free: {enough}.")

# %% [markdown]
# ## 2. A circuit in one minute
#
# The *residual stream* is the vector that each layer of the model reads and adds to, one for each
# token. A *sparse autoencoder* (SAE) rewrites it as a sum of a few active features out of
# thousands; each of these is a *latent*. A *lab* is a model with SAEs after some of its layers.
# *Spliced in* means: there the model goes on with the SAE's rewriting in place of the original.
#
# A *task* is a set of sentences. Each has a twin whose subject has the other number. Below, clean
# is the sentence, patch its twin, and *case* the number of the subject and of the second noun. We
# measure the **logit difference**: the logit of the right verb minus that of the wrong one.

# %%
lab = load_lab(LAB)
test = load_task("sva_nounpp", lab.tokenizer, "dev", n=48 if QUICK else 100)
pd.DataFrame([vars(pair) for pair in test.pairs[:4]])

# %% [markdown]
# The circuit comes from a file. Notebook 04 learned it on other sentences, with other nouns. It is
# a list of *nodes*; a node is a latent at one position. Every other latent is held at its mean over
# many sentences, singular and plural, so it says nothing about the number in this one.

# %%
path = root / "data" / "masks" / "sva_nounpp" / f"circuits_{LAB}.json"
if not path.exists():
    raise RuntimeError(
        f"The repository has no circuit for {LAB!r} yet: notebook 04 finds one. Here, set LAB = "
        "'smollm2'."
    )
circuits = {
    name: SAEMasks.from_json(record) for name, record in json.loads(path.read_text()).items()
}
circuit = min(
    (m for m in circuits.values() if m.get_num_latents() >= 30), key=SAEMasks.get_num_latents
)
n_nodes, n_all = circuit.get_num_latents(), sum(m.numel() for m in circuit.masks)
print(f"The circuit has {n_nodes} of {n_all:,} nodes.")

# %%
spliced = SplicedModel(lab, spec_of(LAB).placement)
train = load_task("sva_nounpp", lab.tokenizer, "train", n=256)
means = spliced.patch_means(train.patch)
evaluation = Evaluation(spliced, test, means)
found = evaluation.faithfulness(circuit)

# %% [markdown]
# Does the model still know the number of the subject when only these nodes carry it? (By chance, it
# would prefer the right verb in half of the sentences.)

# %%
right = {
    "the model": evaluation.model,
    "with SAEs spliced in": evaluation.spliced_model,
    f"with the circuit's {n_nodes} nodes alone": evaluation.logit_diff(circuit),
    "with every latent at its mean": evaluation.empty,
}
shares = {name: (ld > 0).float().mean().item() for name, ld in right.items()}
averages = {name: ld.mean().item() for name, ld in right.items()}
table = pd.DataFrame({"right verb preferred": shares, "mean logit difference": averages})
table["right verb preferred"] = table["right verb preferred"].map("{:.0%}".format)
table.round(2).rename_axis(columns=f"n = {len(test)} sentences")

# %% [markdown]
# **Faithfulness** is 1 if the circuit's mean logit difference is that of the spliced model, and 0
# if it is that with every latent at its mean. A control: circuits with as many nodes, drawn at
# random from those that fire in these sentences.

# %%
chance = []
for seed in range(5):
    scores = random_scores(spliced, train[:64], seed=seed)
    random_circuit = SAEMasks.from_scores(scores, n_nodes)
    chance.append(evaluation.faithfulness(random_circuit).vs_spliced.value)
furthest = max(chance, key=abs)
print(f"The faithfulness of the circuit is {found.vs_spliced} (95 % interval, n = {found.n}).")
print(f"Of five random circuits of its size, the one furthest from 0 is {abs(furthest):.2f} away.")

# %% [markdown]
# ### The circuit
#
# *Before you look:* the number stands in the second word, and the verb is chosen after the last
# one. At which words of the sentence do you expect nodes?
#
# In the picture, layers are rows and words are columns. An **edge** says what one node passes on to
# another: we give the first node the value that it has on the twin sentence, and measure how far
# the second node moves towards *its* value there (1 = all the way). Under each number stand words
# on which the latent fires most; after →, words whose logits it raises. (Pieces of words look odd.)
# Hover over a node to see what it is. Click it to see its inputs and outputs.

# %%
shown = test[: 16 if QUICK else 32]
texts = load_text(lab.tokenizer, "train", n=60 if QUICK else 250)
places = ["BOS", "The", "subject", "preposition", "the", "second noun"]
words = [label.strip("[]") for label in test.position_labels]
graph = measured_graph(
    spliced,
    shown,
    circuit.nodes(),
    texts,
    contrasts_of(shown, ["subject", "second noun"]),
    columns=[f"{place}\n“{word}”" for place, word in zip(places, words, strict=True)],
    answer="right − wrong verb",
)

# %%
title = f"{n_nodes} nodes carry the number: their faithfulness is {found.vs_spliced.value:.2f}"
alt = (
    f"A circuit by layer and word. {title}. Its {len(graph.edges)} edges lead from the subject up "
    "to the last layer, where the verb is chosen."
)
show_circuit(graph, title, alt)
used = [words[column] for column in sorted({position for _, position, _ in circuit.nodes()})]
names_used = ", ".join(used)
print(f"The circuit has nodes at {len(used)} of the {len(words)} tokens: {names_used}.")

# %% [markdown]
# How many nodes are needed? In Jupyter, move the slider to see which latents remain; on a page, the
# picture shows one setting. The left panel is the
# **frontier**: the faithfulness that each method of notebook 04 reaches at each number of nodes, on
# held-out sentences. Above 1 is too much, and not better: the circuit's mean logit difference is
# larger than the spliced model's.

# %%
frontier = Frontier.load(path.with_name(f"frontier_{LAB}.json"))
explore_frontier(frontier, list(circuits.values()), test)

# %% [markdown]
# ## 3. How the course works
#
# | notebook | question | you write |
# |---|---|---|
# | 00 start here | does my machine work, and what is a circuit? | nothing |
# | [01 SAE basics](01_sae_basics.ipynb) | why do models need sparse autoencoders, and how is one trained? | an SAE, its loss, its metrics; train one |
# | [02 interval placement](02_interval_placement.ipynb) | how many SAEs, and where? | the splice, error policies, cross-entropy |
# | [03 the SAEMasks hook](03_saemasks_hook.ipynb) | how is one latent switched off, at one position? | the hook, mean latents, the mask |
# | [04 masks versus IG](04_masks_vs_ig.ipynb) | which latents matter? | AtP, IG, the loop that learns a mask |
# | [05 evaluating circuits](05_evaluating_circuits.ipynb) | is it a circuit? | completeness, minimality, stability, an intervention |
# | [06 adversarial dictionaries](06_adversarial_dictionaries.ipynb) | how does a model of code know that a key is missing, and what fools it? | AUC, a clamp, predictions from latents, and how good they are |
# | [07 when gradients lie](07_when_gradients_lie.ipynb) | why does AtP miss what matters, and what are gradients good for? | the QK fix, GradDrop, a head's direct effect and its repair, tracing a fact through a head |
#
# **Exercises.** In `notebooks/`, some functions are yours to write. Until you do, the course's
# version runs in their place and says so, so that every notebook runs at any time.
# `check(my_function)` answers ✅ (right), ⏳ (not written yet) or ❌ with the likely bug. Hints unfold
# in steps. `solutions/` has the same notebooks, written and run.
#
# **Short on time?** Set `PROFILE = "quick"` in the notebook's parameters: the same code, with fewer
# prompts and circuits.
#
# **Another model?** Set `LAB`. These are the labs, and what each needs on this machine:

# %%
rows = {}
for name, spec in LABS.items():
    needs = estimate(name)
    millions = needs.parameters / 1e6
    rows[name] = {
        "parameters": f"{millions:,.0f} M",
        "SAEs after layers": ", ".join(map(str, spec.placement)),
        "to fetch": f"{needs.download:.1f} GB",
        "memory": f"{needs.memory:.1f} GB",
        "runs on": "a GPU" if needs.gpu else "CPU or GPU",
    }
pd.DataFrame(rows).T

# %%
minutes = (time.perf_counter() - started) / 60
print(f"This notebook took {minutes:.1f} minutes.")

# %% [markdown]
# ## 4. What we saw
#
# A few dozen nodes of the spliced model carry the number of the subject. With every other latent at
# its mean, they keep most of the logit difference. Random circuits of the same size keep almost
# nothing. With every latent at its mean, the model no longer knows the number. Section 2 prints the
# values.
#
# High faithfulness is not enough. Notebook 04 shows how such a circuit is found. Notebook 05 tests
# whether it is also complete, minimal and stable.
#
# **Key terms**: circuit, control, edge, faithfulness, frontier, lab, latent, logit difference,
# node, residual stream, sparse autoencoder, spliced model, task.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - [Caples, Nainani, McDougall, rrenaud 2025, Scaling Sparse Feature Circuit Finding to Gemma
#   9B][post]: the post whose method this course teaches
# - [Marks et al. 2024, Sparse Feature Circuits](https://arxiv.org/abs/2403.19647)
# - The libraries: [TransformerLens](https://transformerlensorg.github.io/TransformerLens/) for
#   models with hooks, [SAELens](https://decoderesearch.github.io/SAELens/) for SAEs
#
# **Next**: [01 · SAE basics](01_sae_basics.ipynb)
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
