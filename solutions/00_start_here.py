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
# *The athletes near the car* **are**. In a minute you will see a few dozen numbers inside a
# language model that make it say so: a **circuit** of sparse-autoencoder latents. By the end of
# this course you will have found it yourself, tested it, and used one like it.
#
# This notebook checks your machine, runs one circuit from a file, and says how the course works.
# You write nothing yet. **It runs** {times}; no GPU, no account, no token. The first run fetches 93
# MB of weights.

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
from course_utils.display.figures import circuit_figure, show
from course_utils.display.profile import is_quick
from course_utils.display.widgets import explore_frontier
from course_utils.labs.catalog import LABS, spec_of
from course_utils.labs.memory import free_memory
from course_utils.labs.requirements import fast_dtype, matrix_rate, usual_device

started = time.perf_counter()

# %% tags=["parameters"]
LAB = "smollm2"
PROFILE = os.environ.get("COURSE_PROFILE", "full")

# %% [markdown]
# ## 1. Your machine

# %%
QUICK = is_quick(PROFILE)
device = usual_device()
pd.Series(
    {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "runs on": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "free memory": f"{free_memory().bytes / 1e9:.0f} GB",
        "matrix products, float32": f"{matrix_rate(torch.float32, device):,.0f} GFLOP/s",
        "fast number format": str(fast_dtype(device)).removeprefix("torch."),
    }
).to_frame("this machine")

# %% [markdown]
# What the lab of this notebook needs. `load_lab` checks the same before it fetches anything, and
# says what is missing.

# %%
needs = estimate(LAB)
print(needs)
print(
    f"  A step of learning a mask will take about {needs.seconds_per_step(device):.2f} s here; "
    "a mask takes 60."
)

# %% [markdown]
# ## 2. A circuit in one minute
#
# The *lab* is a model with sparse autoencoders (SAEs) on its residual stream. The *task* is a set
# of sentences, each with a twin that has the subject in the other number. The number that we look
# at is the **logit difference**: the logit of the right verb minus that of the wrong one.

# %%
lab = load_lab(LAB)
test = load_task("sva_nounpp", lab.tokenizer, "dev", n=48 if QUICK else 100)
pd.DataFrame([vars(pair) for pair in test.pairs[:4]])

# %% [markdown]
# The circuit comes from a file: notebook 04 learned it on other sentences, with other nouns. It is
# a list of *nodes*, each a latent at a position. Every other latent is held at its mean, which
# knows nothing of this sentence's number.

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
title = f"{circuit.get_num_latents()} nodes of {sum(m.numel() for m in circuit.masks):,}"
show(
    circuit_figure(circuit, test, title),
    alt=f"A grid: how many nodes of the circuit are at each layer and position. {title}.",
)

# %%
spliced = SplicedModel(lab, spec_of(LAB).placement)
train = load_task("sva_nounpp", lab.tokenizer, "train", n=256)
means = spliced.patch_means(train.patch)
evaluation = Evaluation(spliced, test, means)
found = evaluation.faithfulness(circuit)

# %% [markdown]
# Does the model still know the number of the subject when only these nodes tell it?

# %%
right = {
    "the model": evaluation.model,
    "with SAEs spliced in": evaluation.spliced_model,
    f"with the circuit's {circuit.get_num_latents()} nodes alone": evaluation.logit_diff(circuit),
    "with every latent at its mean": evaluation.empty,
}
rows = {
    name: {
        "right verb preferred": f"{(ld > 0).float().mean():.0%}",
        "mean logit difference": round(ld.mean().item(), 2),
    }
    for name, ld in right.items()
}
pd.DataFrame(rows).T

# %% [markdown]
# A control, since nearly anything looks like a result: as many nodes drawn at random from those
# that fire in these sentences.

# %%
chance = []
for seed in range(5):
    random_circuit = SAEMasks.from_scores(
        random_scores(spliced, train[:64], seed=seed), circuit.get_num_latents()
    )
    chance.append(evaluation.faithfulness(random_circuit).vs_spliced.value)

# %%
print(
    f"faithfulness of the circuit: {found.vs_spliced} (1 = as good as the spliced model, 0 = as "
    f"every latent at its mean; {found.n} sentences)"
)
print(f"of five random circuits of its size: {', '.join(f'{value:.2f}' for value in chance)}")

# %% [markdown]
# How many nodes does it take? Slide, and see which latents remain. The left side is the
# **frontier**: every point is a circuit, found by a method of notebook 04, with its 95 % interval
# over held-out sentences.

# %%
frontier = Frontier.load(path.with_name(f"frontier_{LAB}.json"))
explore_frontier(frontier, list(circuits.values()), test)

# %% [markdown]
# ## 3. How the course works
#
# | notebook | question | you write |
# |---|---|---|
# | 00 start here | does my machine work? | nothing |
# | [01 SAE basics](01_sae_basics.ipynb) | why do models need sparse autoencoders, and how is one trained? | an SAE, its loss, its metrics; train one |
# | [02 interval placement](02_interval_placement.ipynb) | how many SAEs, and where? | the splice, error policies, cross-entropy |
# | [03 the SAEMasks hook](03_saemasks_hook.ipynb) | how is one latent switched off, at one position? | the hook, mean latents, the mask |
# | [04 masks versus IG](04_masks_vs_ig.ipynb) | which latents matter? | AtP, IG, the loop that learns a mask |
# | [05 evaluating circuits](05_evaluating_circuits.ipynb) | is it a circuit? | completeness, minimality, stability, an intervention |
# | [06 adversarial dictionaries](06_adversarial_dictionaries.ipynb) | how does a model of code know that a key is missing, and what fools it? | AUC, a clamp, predictions from latents, what they are worth |
#
# **Exercises.** In the readers' notebooks (`notebooks/`) some functions are yours to write. Until
# you do, the course's own version runs in their place and says so, so that every notebook runs from
# top to bottom at any time. `check(my_function)` answers ✅ (right), ⏳ (not written yet) or ❌, and
# then with the likely bug. Hints unfold in steps. `solutions/` has the same notebooks written and
# run.
#
# **Short on time?** Set `PROFILE = "quick"` in a notebook's parameters: fewer prompts and circuits,
# the same code.
#
# **Another model?** Set `LAB`. These are the labs, and what each needs here:

# %%
rows = {}
for name in LABS:
    needs = estimate(name)
    rows[name] = {
        "parameters": f"{needs.parameters / 1e6:,.0f} M",
        "to fetch": f"{needs.download:.1f} GB",
        "memory": f"{needs.memory:.1f} GB",
    }
    rows[name]["a GPU"] = needs.gpu
pd.DataFrame(rows).T

# %%
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")
