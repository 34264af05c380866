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
# # 01 · SAE basics
#
# Many neurons of a language model answer to several unrelated things. One explanation is
# **superposition**: the model has more features to keep track of than it has dimensions, so it
# stores them as directions that overlap. Then no axis means anything by itself, and to read the
# model we need to find the directions. A **sparse autoencoder** (SAE) is a way to look for them.
#
# In this notebook you will
#
# - watch superposition appear in a model so small that one can draw it, and write the SAE that
#   undoes it;
# - see what the classic L1 penalty does to the latents, and how TopK, JumpReLU and gated SAEs avoid
#   that;
# - take apart the residual stream of a real model, and measure what an SAE keeps and what it loses;
# - train an SAE of your own on real activations, and look at what its latents respond to;
# - see what SAEs miss.
#
# **You need** PyTorch, and to know what the residual stream of a transformer is.
# **It runs** {times}. The first run fetches 93 MB of weights.
#
# There are six **exercises**. Each is a function with its docstring and no body: write it, run the
# cell, run the `check` below it. Until then the course's own version runs in its place, so that you
# can read on and come back.

# %% tags=["setup"]
# setup

# %%
import functools
import os
import time
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_utils import Lab, load_lab
from course_utils.circuits.explain import Context, logit_lens, top_contexts
from course_utils.circuits.reconstruction import loss_recovered, residual_stream, text_loss
from course_utils.circuits.statistics import ratio_interval
from course_utils.display import figures
from course_utils.display.html import coloured_contexts
from course_utils.display.profile import is_quick
from course_utils.labs.catalog import spec_of
from course_utils.prompts.text import load_text
from course_utils.teaching.nb01 import check, exercise

started = time.perf_counter()

# %% [markdown]
# The settings of this notebook. A *lab* is a model with its SAEs; `smollm2` is
# SmolLM2-135M-Instruct. `PROFILE="quick"` runs the same steps with less text and shorter training
# (CI does that).

# %% tags=["parameters"]
LAB = "smollm2"
LAYER = None  # whose residual stream; None: the middle one of those that the lab has an SAE for
PROFILE = os.environ.get("COURSE_PROFILE", "full")
SEED = 0

# %%
if LAYER is None:
    LAYER = spec_of(LAB).placement[len(spec_of(LAB).placement) // 2]
QUICK = is_quick(PROFILE)
TOY_LR = 5e-3
# training steps of the toys, and how often each is started
TOY_STEPS, TOY_STARTS = (600, 6) if QUICK else (1500, 8)
# pieces of 31 tokens to train on and to judge on; None: all there are
N_TRAIN, N_TEST = (100, 16) if QUICK else (None, 100)
D_SAE, STEPS = (256, 150) if QUICK else (1024, 500)  # latents and training steps of your own SAE

# %% [markdown]
# ## 1. More features than dimensions
#
# Here is a world with five **features**. Each is usually absent (0), and sometimes there, with a
# size between 0 and 1. `p` is how
# often: at `p = 0.03` an example has none or one of them as a rule.

# %%
N_FEATURES = 5
importance = 0.9 ** torch.arange(N_FEATURES)


def sparse_batch(n: int, n_features: int, p: float) -> Float[Tensor, "n n_features"]:
    """Features that are each there with probability p, then with a size between 0 and 1."""
    return torch.rand(n, n_features) * (torch.rand(n, n_features) < p)


torch.manual_seed(SEED)
sparse_batch(4, N_FEATURES, p=0.3)

# %% [markdown]
# The **toy model** has two dimensions to store them in. It squeezes an example x into $h = W x$,
# and reads the features out again as $x' = \mathrm{ReLU}(W^\top h + b)$. Column i of W is the
# direction that feature i is written in. Some features matter more than others: that is their
# importance.
#
# ### Exercise 1.1 · The loss of the toy model
# ⏱ 10 min · difficulty ●○○ · what the toy model is trained on: that features come back, the
# important ones first
#
# Write `toy_loss`. The batch is in the rows of `x`, so that h for the whole batch is a matrix with
# a row for each example.
#
# <details><summary>Hint 1</summary>
#
# `W` has a column a feature. For one example h is `W @ x`; for a batch of rows, the same product is
# `x @ W.T`.
# </details>
#
# <details><summary>Hint 2</summary>
#
# The way back, $W^\top h$, is `h @ W` for a batch of rows. The bias and the ReLU come after it.
# </details>
#
# <details><summary>Hint 3</summary>
#
# The squared error is `[batch, n_features]`. Multiply it by the importance, sum over the features,
# average over the batch.
# </details>

# %% tags=["exercise"]
# exercise: toy_loss

# %%
check(toy_loss)

# %% [markdown]
# **What you should see**: ✅. With W = 0 and b = 0 the model returns nothing, and the loss is the
# importance-weighted squares of x, summed over features and averaged over the batch.
#
# <details><summary>My values look wrong</summary>
#
# - *Five times too small*: you averaged over features; their errors add up.
# - *Far too large, and growing with the batch*: you summed over the batch.
# - *A shape error in the product*: `W` is `[2, 5]`, and a batch is `[batch, 5]`.
# </details>
#
# Now train it for four worlds, from one where every feature is always there to one where they are
# rare. Training can get stuck, so each world gets several starts, and the best is kept. (`vmap`
# runs your function for all starts at once.)


# %%
def train_toys(p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Toy models for features of density p, from several starts: their losses, and W and b of
    each.
    """
    torch.manual_seed(SEED)
    W = (0.5 * torch.randn(TOY_STARTS, 2, N_FEATURES)).requires_grad_()
    b = torch.zeros(TOY_STARTS, N_FEATURES, requires_grad=True)
    losses = torch.vmap(lambda W, b, x: toy_loss(W, b, x, importance), in_dims=(0, 0, None))
    optimizer = torch.optim.Adam([W, b])
    for step in range(TOY_STEPS):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, 2 - 2 * step / TOY_STEPS)
        loss = losses(W, b, sparse_batch(1024, N_FEATURES, p)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    W, b = W.detach(), b.detach()
    return losses(W, b, sparse_batch(50_000, N_FEATURES, p)), W, b


# %%
densities = [1.0, 0.3, 0.1, 0.03]
toys, n_stored = {}, {}
for p in tqdm(densities, desc="toy models"):
    losses, W, b = train_toys(p)
    n_stored[p] = (W.norm(dim=1) > 0.5).sum(dim=1)  # for each start
    toys[p] = (W[losses.argmin()], b[losses.argmin()])

# %%
features = {p: W.T for p, (W, _) in toys.items()}  # a row for each feature
stored = {p: int((rows.norm(dim=1) > 0.5).sum()) for p, rows in features.items()}
title = "Features stored in two dimensions: " + ", ".join(
    f"{n} of 5 at p = {p:g}" for p, n in stored.items()
)
figures.show(
    figures.directions_figure({f"p = {p:g}": rows for p, rows in features.items()}, title),
    alt=f"Four panels with the directions of five features in the plane, as arrows. {title}.",
)

# %% [markdown]
# Orange-red, dark blue, light blue, green and yellow are the features from the most to the least
# important. A feature counts as stored if its arrow is longer than 0.5; dotted lines join the tips
# of those. Where features are always there, two dimensions hold the two most important, at right
# angles, and the others are given up. Where they are rarer, the model stores more features than it
# has dimensions, first in pairs back to back and then as a pentagon: they get in each other's way,
# but seldom at the same moment, and the ReLU with its bias removes small interference. That is
# **superposition**. Not in every world do all starts end alike; a start may store too few features
# or too many, and the one with the lowest loss is shown above:

# %%
for p, n in n_stored.items():
    print(
        f"p = {p:g}: features stored by each of {TOY_STARTS} starts: "
        f"{sorted(n.tolist(), reverse=True)}"
    )

# %% [markdown]
# How much do the directions overlap? Their cosines in the world with the rarest features, and the
# biases. In a regular pentagon neighbours have a cosine of cos 72° = 0.31, the others one of cos
# 144° = −0.81. The negative ones cost nothing, as the ReLU cuts them off; the small positive ones
# are what the negative bias is for.

# %%
W, b = toys[densities[-1]]
unit = nn.functional.normalize(W.T, dim=1)
pd.DataFrame((unit @ unit.T).round(decimals=2)).assign(bias=b.round(decimals=2))

# %% [markdown]
# ## 2. A sparse autoencoder undoes it
#
# Somebody hands us only the two numbers h of each example. Can we get the five features back? We
# know one thing about
# them: **few are there at once**. So we look for a way to write every h as a sum of a few
# directions out of a larger set:
#
# $$f = \mathrm{ReLU}\big((x - b_\text{dec})\,W_\text{enc} + b_\text{enc}\big), \qquad
# \hat x = f\,W_\text{dec} + b_\text{dec}$$
#
# f are the **latents**, the rows of $W_\text{dec}$ the directions that they write. There are more
# latents than dimensions, and most are to be 0. (From here on x is what an SAE reads: first the h
# of the toy, later the residual stream.)
#
# ### Exercise 1.2 · Encode and decode
# ⏱ 10 min · difficulty ●○○ · the two lines that are a sparse autoencoder; every SAE that you train
# here runs through them
#
# Write `sae_forward`. It takes the activation function as an argument, since we are going to change
# it.
#
# <details><summary>Hint 1</summary>
#
# A row of `x` is an example, so the encoder is `… @ W_enc`, and `W_enc` is `[d_in, d_sae]`.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `b_dec` appears twice: with a minus before the encoder, with a plus after the decoder.
# </details>

# %% tags=["exercise"]
# exercise: sae_forward

# %%
check(sae_forward)

# %% [markdown]
# **What you should see**: ✅. No latent is negative, and if all are silent the reconstruction is
# `b_dec`.
#
# <details><summary>My values look wrong</summary>
#
# - *Negative latents*: the activation function is missing.
# - *The check speaks of another activation function*: you wrote `torch.relu`; call `activation`.
# - *The reconstruction is off by the same vector everywhere*: `b_dec` was not put back.
# </details>
#
# What should an SAE be trained on? To rebuild x, with few latents. The number of latents that are
# on, **L0**, has no gradient, so the classic choice is their sum, L1. But there is a loophole: make
# f ten times smaller and $W_\text{dec}$ ten times larger, and the penalty is gone while $\hat x$
# stays. There are two ways to close it: count each latent times the length of its decoder row (the
# loss below), or keep the rows at length 1 (the training below does that too; then both say the
# same).
#
# ### Exercise 1.3 · The loss with an L1 penalty
# ⏱ 10 min · difficulty ●●○ · the trade between faithful and sparse; sum or mean, decoder length or
# none: papers differ
#
# Write `l1_loss`. Watch over what you sum and over what you average: that is where published values
# of λ (here `l1`) differ by a factor of `d_in`.
#
# $$\frac{1}{\text{batch}} \sum_\text{examples} \Big[ \sum_{j}^{d_\text{in}} (x_j - \hat x_j)^2
# \;+\; \lambda \sum_{i}^{d_\text{sae}} f_i\, \lVert W_{\text{dec},i} \rVert \Big]$$
#
# <details><summary>Hint 1</summary>
#
# `torch.nn.functional.mse_loss` averages over everything. Write the square yourself, and sum over
# the last dimension.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Row i of `W_dec` belongs to latent i: its length is `W_dec.norm(dim=1)`, `[d_sae]`, which
# multiplies `f` column by column.
# </details>

# %% tags=["exercise"]
# exercise: l1_loss

# %%
check(l1_loss)

# %% [markdown]
# **What you should see**: ✅. With `l1=0` it is the squared length of the error.
#
# <details><summary>My values look wrong</summary>
#
# - *Too small by the number of dimensions*: `mse_loss`, or a mean over the last dimension.
# - *Right for rows of length 1 only*: the length of the decoder rows is missing.
# - *Latents never become sparse in training*: you squared f; squares push large values down, not
#   small ones to 0.
# </details>
#
# Now the SAE itself: four parameters. Decoder rows start as random directions of length 1, and the
# encoder as their transpose.


# %%
class SAE(nn.Module):
    """x ≈ f @ W_dec + b_dec, where few of f's entries are above 0 and the rows of W_dec have length
    1.
    """

    def __init__(self, d_in: int, d_sae: int, activation: Callable = torch.relu, seed: int = SEED):
        super().__init__()
        rows = nn.functional.normalize(
            torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed)), dim=1
        )
        self.W_dec, self.W_enc = nn.Parameter(rows), nn.Parameter(rows.T.clone())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_in))
        self.activation = activation

    def forward(self, x):
        return sae_forward(x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.activation)

    def loss(self, x, l1):
        f, x_hat = self(x)
        return l1_loss(x, x_hat, f, self.W_dec, l1)


# %% [markdown]
# And its training: Adam, with the rate rising over the first 50 steps and falling to zero over the
# last fifth, and the decoder rows put back to length 1 after
# each step.


# %%
def train(
    sae: SAE,
    next_batch: Callable[[], Tensor],
    steps: int,
    l1: float = 0.0,
    lr: float = 1e-3,
    name: str = "training",
) -> list[float]:
    """Train an SAE on batches; returns the loss at each step. It can be interrupted."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    losses = []
    for step in (bar := tqdm(range(steps), desc=name)):
        optimizer.param_groups[0]["lr"] = lr * min(
            1.0, (step + 1) / 50, (steps - step) / (steps / 5)
        )
        loss = sae.loss(next_batch(), l1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3g}")
    return losses


# %% [markdown]
# It sees h alone, from the world with the rarest features. Five latents, since we know that there
# are five; the start with the lowest loss is kept. (λ is large here: we want directions, and
# section 3 shows what it does to sizes.)


# %%
def toy_sae(seed: int) -> tuple[float, SAE]:
    """An SAE on the hidden dimensions of the toy model, and its loss at the end of training."""
    torch.manual_seed(seed)
    sae = SAE(2, N_FEATURES, seed=seed)

    def next_h():
        return sparse_batch(1024, N_FEATURES, densities[-1]) @ W.T

    losses = train(sae, next_h, 800, l1=0.3, lr=1e-2, name=f"toy SAE, start {seed}")
    return sum(losses[-100:]) / 100, sae


toy_runs = sorted(
    (toy_sae(seed) for seed in range(SEED, SEED + TOY_STARTS)), key=lambda found: found[0]
)
pentagon = toy_runs[0][1]

# %%
cosines = unit @ pentagon.W_dec.detach().T  # [feature, latent]
worst = cosines.amax(dim=1).min()
title = (
    f"The SAE's five directions (rings) on the true ones (arrows): the worst cosine is {worst:.3f}"
)
figures.show(
    figures.directions_figure(
        {"feature directions": unit}, title, learned={"feature directions": pentagon.W_dec}
    ),
    alt=f"Five arrows of length 1 and five rings in the plane. {title}.",
)

# %% [markdown]
# Where a ring sits on an arrow, the SAE has found a feature's direction from two numbers an
# example, without ever having seen a
# feature: that they are sparse was enough. Does every start find them? With real features nobody
# could tell by looking at the cosines; the loss must do.

# %%
for loss, sae in toy_runs:
    cosines_of_start = (unit @ sae.W_dec.detach().T).amax(dim=1)
    n_found = (cosines_of_start > 0.98).sum()
    print(
        f"loss {loss:.4f}: {n_found} of 5 directions found, the worst cosine is "
        f"{cosines_of_start.min():.2f}"
    )

# %% [markdown]
# A latent halfway between two neighbours of the pentagon has a cosine of cos 36° = 0.81 with
# either. A start with a cosine near that is stuck: features share a latent. One just below 0.98 has
# merely not quite arrived.
#
# ## 3. Shrinkage, and how to avoid it
#
# Now a larger world, where things can be counted: 80 features, each in a random direction of a
# space of 48 dimensions, there with probability 0.02 and then with a size between 0.5 and 1.5. We
# know every feature, so we can say exactly what an SAE finds. It gets 96 latents, more than needed.

# %%
torch.manual_seed(SEED + 1000)  # not the seed that SAEs start from
directions = nn.functional.normalize(torch.randn(80, 48), dim=1)


def true_features(n: int) -> Float[Tensor, "n 80"]:
    """Features that are there with probability 0.02, then with a size between 0.5 and 1.5."""
    return (0.5 + torch.rand(n, 80)) * (torch.rand(n, 80) < 0.02)


def next_examples() -> Float[Tensor, "512 48"]:
    """What an SAE sees of 512 examples: the sum of the directions of their features."""
    return true_features(512) @ directions


held_out = true_features(20_000)
print(f"true L0: {(held_out > 0).sum(1).float().mean():.2f} features an example")

# %%
TOY_L1 = 0.4
relu_sae = SAE(48, 96)
relu_losses = train(relu_sae, next_examples, TOY_STEPS, l1=TOY_L1, lr=TOY_LR, name="ReLU + L1")


# %% [markdown]
# Each feature belongs to the latent whose decoder row points its way. Where a feature is there, how
# large is its latent?


# %%
def matched(sae: SAE) -> tuple[Tensor, Tensor, Tensor]:
    """For each feature: the cosine with its latent; then true sizes and latents wherever a feature
    is there, as two vectors.
    """
    with torch.no_grad():
        f, _ = sae(held_out @ directions)
    cosine, latent = (directions @ sae.W_dec.detach().T).max(dim=1)
    there = held_out > 0
    return cosine, held_out[there], f[:, latent][there]


def size_lost(true: Tensor, found: Tensor) -> float:
    """How much smaller latents are than their features, on average, where both are on."""
    return (true - found)[found > 0].mean().item()


# %%
_, true_size, found_size = matched(relu_sae)
shrinkage = size_lost(true_size, found_size)
title = f"L1 makes latents too small: by {shrinkage:.2f} on average"
sample = torch.arange(0, len(true_size), len(true_size) // 800)
figures.show(
    figures.scatter_figure(
        true_size[sample],
        {"ReLU + L1": found_size[sample]},
        "true size of the feature",
        "its latent",
        title,
    ),
    alt=f"A cloud of points below the line on which latents would equal features. {title}.",
)
print(
    f"λ/2 = {TOY_L1 / 2:.2f}; measured: {shrinkage:.2f} where the latent is on, n = "
    f"{len(true_size):,} held-out features"
)

# %% [markdown]
# That is **shrinkage**. For one feature of size a by itself, the loss of its latent f is $(a - f)^2
# + \lambda f$, and it is smallest at $f = a - \lambda/2$: the penalty is paid for size, though we
# only wanted to pay for number. Here features also overlap, and spare latents take a share of some,
# which costs more on top. A larger λ finds sparser latents and shrinks them more.
#
# The cure: decide **which** latents are on and **how large** they are separately. **TopK** does it
# by rule: the k largest are on, at their own size, and there is no penalty at all.
#
# ### Exercise 1.4 · TopK
# ⏱ 10 min · difficulty ●●○ · an activation function that sets the sparsity by itself
#
# Write `topk`: it takes pre-activations, and keeps k a row.
#
# <details><summary>Hint 1</summary>
#
# `pre.topk(k, dim=-1)` gives two things: the values and where they are.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Start from `torch.zeros_like(pre)` and `scatter` the values into their places.
# </details>
#
# <details><summary>Hint 3</summary>
#
# The largest k may include negative ones, where little is on. Latents are never negative: ReLU.
# </details>

# %% tags=["exercise"]
# exercise: topk

# %%
check(topk)

# %% [markdown]
# **What you should see**: ✅. The gradient reaches only the latents that were kept.
#
# <details><summary>My values look wrong</summary>
#
# - *Negative latents*: no ReLU on the kept values.
# - *Shape `[batch, k]`*: you returned the values without their places.
# - *Rows with more than k*: you ranked over the whole batch. That is a method of its own, and comes
#   next.
# </details>
#
# **BatchTopK** keeps the k · batch largest of the whole batch: k on average, more where an input
# needs more. To use it on one input alone, fix the threshold that it works with: latents below θ
# are 0, the others keep their size. That is **JumpReLU**, and the form in which the SAEs of this
# course are stored. (JumpReLU can also be trained directly, with a surrogate gradient for θ, as
# Gemma Scope was.)


# %%
def batch_topk(pre: Tensor, k: int) -> Tensor:
    """The k · batch largest pre-activations of the batch stay, at their own size."""
    threshold = pre.detach().flatten().topk(k * len(pre)).values[-1]
    return pre * (pre >= threshold.clamp(min=1e-6))


def jumprelu(pre: Tensor, threshold: Tensor) -> Tensor:
    """Pre-activations above a threshold stay, at their own size."""
    return pre * (pre > threshold)


# %% [markdown]
# A **gated** SAE keeps an L1 penalty, but only on the decision. One encoder output, the gate π,
# says whether a latent is on; the same output, rescaled and shifted, says how large it is. So that
# the gate learns what is worth having, a copy of the reconstruction is made from its values,
# through a frozen decoder. Shrinkage then stays in the gate.


# %%
class GatedSAE(SAE):
    """Whether a latent is on, and how large it is, by different paths. (Rajamanoharan et al.
    2024a.)
    """

    def __init__(self, d_in: int, d_sae: int, seed: int = SEED):
        super().__init__(d_in, d_sae, seed=seed)
        self.r_mag, self.b_mag = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_sae))
        self.activation = lambda gate: (
            (gate > 0) * torch.relu((gate - self.b_enc) * self.r_mag.exp() + self.b_mag)
        )

    def loss(self, x, l1):
        _, x_hat = self(x)
        gate = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        by_gate = gate @ self.W_dec.detach() + self.b_dec.detach()
        return (
            l1_loss(x, by_gate, gate, self.W_dec.detach(), l1)
            + (x - x_hat).pow(2).sum(dim=1).mean()
        )


# %%
toy_saes = {
    "ReLU + L1": relu_sae,
    "TopK": SAE(48, 96, lambda pre: topk(pre, 2)),
    "BatchTopK": SAE(48, 96, lambda pre: batch_topk(pre, 2)),
    "Gated": GatedSAE(48, 96),
}
for name, sae in list(toy_saes.items())[1:]:
    # twice as much, found by trying, makes it about as sparse
    l1 = 2 * TOY_L1 if name == "Gated" else 0.0
    train(sae, next_examples, TOY_STEPS, l1=l1, lr=TOY_LR, name=name)

# %%
sizes = {name: matched(sae) for name, sae in toy_saes.items()}
gaps = {name: size_lost(true, found) for name, (_, true, found) in sizes.items()}
missed = {name: (found == 0).float().mean().item() for name, (_, _, found) in sizes.items()}
title = "True size minus latent, where it is on: " + ", ".join(
    f"{name} {gap:+.2f}" for name, gap in gaps.items()
)
scatters = {name: found[sample] for name, (_, _, found) in sizes.items()}
figures.show(
    figures.scatter_figure(
        true_size[sample], scatters, "true size of the feature", "its latent", title
    ),
    alt=(
        "Four scatter plots of latents against the features they stand for, with the "
        f"line of equality. {title}."
    ),
)
print(
    "there while their latent was silent: "
    + ", ".join(f"{name} {share:.0%}" for name, share in missed.items())
)

# %% [markdown]
# Points on the floor are features that were there while their latent was silent. TopK has at most
# two latents for an example, even where it has five features: that is why it misses so many.
# BatchTopK gives each example what it needs, out of a common budget.
#
# To compare SAEs we need numbers. Two of them are always reported together, since each alone is
# easy: how much is rebuilt, and with how many latents.
#
# ### Exercise 1.5 · Explained variance
# ⏱ 5 min · difficulty ●●○ · how much of the activations the SAE rebuilds; the baseline makes the
# number
#
# Write `explained_variance`. The residual stream of a language model is far from centred on zero,
# and an SAE that knows nothing but its mean has explained nothing: measure against the mean.
#
# <details><summary>Hint 1</summary>
#
# The mean is over tokens, one number for each dimension: `x.mean(dim=0)`.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Add up the squared errors of all tokens and dimensions; add up the squared distances from the mean
# likewise; divide once.
# </details>

# %% tags=["exercise"]
# exercise: explained_variance

# %%
check(explained_variance)

# %% [markdown]
# **What you should see**: ✅; 1 for a perfect reconstruction, 0 for the mean. It can be negative.
#
# <details><summary>My values look wrong</summary>
#
# - *Close to 1 for everything*: your baseline is zero, and most of an activation is its mean.
# - *The check says that you averaged*: you took a ratio for each dimension or each token; a long
#   token or a large dimension is then worth no more than a small
#   one.
# </details>
#
# ### Exercise 1.6 · L0 and dead latents
# ⏱ 5 min · difficulty ●○○ · how sparse the code is, and how much of the dictionary is never used
#
# Write `l0_and_dead`, from the latents of many tokens. A latent that is on for none of them is
# called **dead**: nothing trains it any more, since no gradient reaches a latent that never fires.
#
# <details><summary>Hint 1</summary>
#
# `on = f > 0` is `[tokens, d_sae]`. L0 sums over one of its dimensions, death looks along the
# other.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `on.any(dim=0)` says of each latent whether it is on for any token.
# </details>

# %% tags=["exercise"]
# exercise: l0_and_dead

# %%
check(l0_and_dead)

# %% [markdown]
# **What you should see**: ✅, and below that the toy SAEs' numbers.
#
# <details><summary>My values look wrong</summary>
#
# - *L0 between 0 and 1*: you averaged over latents too.
# - *Nearly all latents dead*: you counted those that are off for some token. Nearly every latent
#   is.
# </details>


# %%
def toy_row(name: str, sae: SAE) -> dict[str, object]:
    """What is measured of an SAE on held-out examples of the larger toy world."""
    x = held_out @ directions
    with torch.no_grad():
        f, x_hat = sae(x)
    cosine, true, found = sizes[name]
    l0, dead = l0_and_dead(f)
    row = {
        "features found": int((cosine > 0.9).sum()),
        "size lost": size_lost(true, found),
        "explained variance": explained_variance(x, x_hat).item(),
    }
    return {"SAE": name, **row, "L0": l0, "dead of 96": dead}


toy_table = pd.DataFrame([toy_row(name, sae) for name, sae in toy_saes.items()]).set_index("SAE")
toy_table.round(3)

# %% [markdown]
# ("Found": a decoder row within a cosine of 0.9 of the feature, of which there are 80.) Read each
# row together with its L0, which is not the same for all. The SAEs without a penalty on size lose
# far less of it, but that does not make them better in
# everything: see who finds more features, and who rebuilds more. What size they still lose cannot
# come from a penalty, for TopK and BatchTopK have none; a feature whose latent was never found, or
# is shared with another, also counts here. 96 latents for 80 features leave some
# without work. But where features were not found while latents are dead, the two belong together: a
# latent that lost the race early gets no gradient, and cannot take up the feature that nobody has.
# Large SAEs are trained with a remedy, such as an auxiliary loss that lets dead latents rebuild
# what the live ones miss (Gao et al. 2024); the SAEs of this course were.
#
# ## 4. The residual stream of a real model
#
# Nobody knows the features of a language model. We take one apart with an SAE that is in this
# repository: JumpReLU, on the residual stream in the middle of the model. The text is passages that
# the model wrote itself (invented, every word of it), in pieces of 31 tokens behind BOS, the token
# that starts every text. **From here on, SAEs are judged on held-out passages**, about subjects
# that no training passage has. (Dead latents of your own SAEs are counted on the training text,
# where there is more of it. The shipped SAE's silent latents below are counted on a few thousand
# tokens: on more text many of them fire.)

# %%
lab = load_lab(LAB, layers=[LAYER])
train_tokens = load_text(lab.tokenizer, "train", n=N_TRAIN)
test_tokens = load_text(lab.tokenizer, "held_out", n=N_TEST)
print(lab.tokenizer.decode(test_tokens[0, 1:]))

# %%
# [text, position, d_model]; BOS is left out
resid = residual_stream(lab, LAYER, test_tokens, progress=True)
typical = resid.norm(dim=2).median()


def usual(x: Float[Tensor, "*any d_model"]) -> Tensor:
    """Whether an activation is not one of the few that are far longer than all others."""
    return x.norm(dim=-1) < 6 * typical


# %%
x_test, odd = resid[usual(resid)], ~usual(resid)
longest, sink = x_test.norm(dim=1).max(), resid.norm(dim=2).max()
variance_left = x_test.var(dim=0).sum() / resid.flatten(0, 1).var(dim=0).sum()
print(f"after layer {LAYER}: {len(x_test):,} held-out tokens, d_model {x_test.shape[1]}")
print(f"length: {typical:.0f} (median), at most {longest:.0f}")
print(
    f"left out: {odd.sum()} tokens, {odd[:, 0].sum()} of them first in their piece, lengths up "
    f"to {sink:,.0f}"
)
print(f"the variance without them is {variance_left:.1%} of the variance with them")

# %% [markdown]
# Such massive activations are known from many models: attention rests on these tokens as it does on
# BOS, and they say little about the text (Sun et al. 2024). Left in, they would decide what counts
# as variance. In this notebook they are left as they are, like BOS: in training, in measuring, and
# where the residual stream is replaced.
#
# The shipped SAE is an object of the library SAELens. It and your `sae_forward` are the same
# function, given the right activation:

# %%
shipped = lab.saes[LAYER]
f = shipped.encode(x_test)
x_hat = shipped.decode(f)
with_threshold = functools.partial(jumprelu, threshold=shipped.threshold)
mine = sae_forward(
    x_test, shipped.W_enc, shipped.b_enc, shipped.W_dec, shipped.b_dec, with_threshold
)
for name, a, b in (("latents", mine[0], f), ("reconstructions", mine[1], x_hat)):
    print(f"{name} agree: {torch.allclose(a, b, atol=1e-2)}")

# %%
l0, dead = l0_and_dead(f)
shipped_ev = explained_variance(x_test, x_hat).item()
print(
    f"{f.shape[1]:,} latents, of which {l0:.0f} are on for a token (L0), and {dead:,} for none "
    f"of these {len(f):,} tokens"
)
print(f"explained variance: {shipped_ev:.3f}")

# %% [markdown]
# Explained variance treats all directions alike, and the model does not. The test that counts: put
# $\hat x$ in the place of x and let the model go on. How much worse does it predict the next token?
# **Loss recovered** puts that on a scale, where 1 is the model itself and 0 the loss with the layer
# destroyed. What "destroyed" means makes the number: zero is what papers report, the mean over
# tokens the stricter choice.


# %%
def loss_with(replace: Callable[[Tensor], Tensor]) -> Float[Tensor, " n"]:
    """The model's loss on each piece when its residual stream is replaced, long tokens excepted."""
    return text_loss(
        lab, LAYER, test_tokens, resid, lambda x: torch.where(usual(x)[:, None], replace(x), x)
    )


mean = x_test.mean(dim=0)
losses = {
    "model": loss_with(lambda x: x),
    "SAE": loss_with(lambda x: shipped.decode(shipped.encode(x))),
    "mean": loss_with(lambda x: mean.expand_as(x)),
    "zero": loss_with(torch.zeros_like),
}
pd.DataFrame(
    {"cross-entropy, nats a token": {name: loss.mean().item() for name, loss in losses.items()}}
).round(2)

# %%
recovered = {
    name: loss_recovered(losses["model"], losses["SAE"], losses[name]) for name in ("zero", "mean")
}
for name, value in recovered.items():
    print(f"loss recovered: {value} against {name}; n = {len(test_tokens)} pieces of text")

# %% [markdown]
# ## 5. Train your own
#
# First the activations to train on. They are scaled so that the typical one has length $\sqrt{d}$:
# then the same learning rate and penalty do for every layer.

# %%
train_resid = residual_stream(lab, LAYER, train_tokens, progress=True)
scale = train_resid.shape[2] ** 0.5 / typical
x_train = scale * train_resid[usual(train_resid)]
print(f"{len(x_train):,} activations to train on, median length {x_train.norm(dim=1).median():.1f}")


# %%
def next_batch() -> Tensor:
    """512 activations at random."""
    return x_train[torch.randint(len(x_train), (512,))]


def new_sae(activation: Callable = torch.relu, seed: int = SEED) -> SAE:
    """An untrained SAE whose origin is the mean activation."""
    sae = SAE(x_train.shape[1], D_SAE, activation, seed=seed).to(x_train.device)
    sae.b_dec.data = x_train.mean(dim=0)
    return sae


# %% [markdown]
# The classic first: ReLU with an L1 penalty. Watch the bar.

# %%
L1, LR = 2.0, 2e-3
torch.manual_seed(SEED)
own = {"ReLU + L1": new_sae()}
training_started = time.perf_counter()
history = {"ReLU + L1": train(own["ReLU + L1"], next_batch, STEPS, l1=L1, lr=LR, name="ReLU + L1")}
print(f"{STEPS} steps in {time.perf_counter() - training_started:.0f} seconds")

# %% [markdown]
# How sparse has it become? The TopK SAEs get as many latents as it uses, so that the comparison is
# fair.

# %%
with torch.no_grad():
    f, _ = own["ReLU + L1"].forward(x_train)
    l0, dead = l0_and_dead(f)
K = max(1, round(l0))
print(f"ReLU + L1 has {l0:.1f} latents on for a token, so k = {K}")
print(f"{dead} of {D_SAE} are on for none of {len(x_train):,} training tokens")

# %%
own["TopK"] = new_sae(lambda pre: topk(pre, K))
own["BatchTopK"] = new_sae(lambda pre: batch_topk(pre, K))
for name in ("TopK", "BatchTopK"):
    history[name] = train(own[name], next_batch, STEPS, lr=LR, name=name)

# %%
smooth = {
    name: pd.Series(values).rolling(10, min_periods=1).mean().tolist()
    for name, values in history.items()
}
title = f"Training loss of three SAEs over {STEPS} steps (L1's includes its penalty)"
figures.show(
    figures.curves_figure(
        {"loss (summed over d_model)": smooth}, "step", title, log=["loss (summed over d_model)"]
    ),
    alt=f"Three falling curves. {title}.",
)

# %% [markdown]
# BatchTopK looks at a whole batch. For use on single tokens it becomes a JumpReLU SAE: one
# threshold, set on the training activations so that K latents are on for a token on average.

# %%
with torch.no_grad():
    sae, x = own["BatchTopK"], x_train[::8]
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    threshold = pre.flatten().topk(K * len(x)).values[-1]
own["JumpReLU"] = own.pop("BatchTopK")
own["JumpReLU"].activation = lambda pre: jumprelu(pre, threshold)
print(
    f"threshold {threshold:.2f}, where the typical activation has length "
    f"{x_train.norm(dim=1).median():.0f}"
)

# %% [markdown]
# Shrinkage has no true sizes to compare with here, but it leaves a trace: reconstructions that are
# too short. γ is the size of $\hat x$ over the size that would fit x best: below 1, it is too short
# as a whole (Rajamanoharan et al. 2024a). On held-out text it can also come out above 1, where an
# SAE has fitted its training text too closely.


# %%
def gamma(x: Tensor, x_hat: Tensor) -> float:
    """How large x̂ is, seen from the mean of x, relative to the x̂ of its direction that fits best;
    1 = no shrinkage.
    """
    x, x_hat = x - x.mean(dim=0), x_hat - x.mean(dim=0)
    return (x_hat.pow(2).sum() / (x_hat * x).sum()).item()


# %%
with torch.no_grad():
    # share of training tokens, a latent
    often = {name: (sae(x_train)[0] > 0).float().mean(dim=0) for name, sae in own.items()}


@torch.no_grad()
def measured(name: str, sae: SAE) -> dict[str, object]:
    """The numbers that describe an SAE: on held-out tokens, but for the dead latents."""
    x = scale * x_test
    f, x_hat = sae(x)
    loss = loss_with(lambda x: sae(scale * x)[1] / scale)
    return {
        "SAE": name,
        "L0": l0_and_dead(f)[0],
        "explained variance": explained_variance(x, x_hat).item(),
        "γ": gamma(x, x_hat),
        f"dead of {D_SAE}": int((often[name] == 0).sum()),
        "loss": loss.mean().item(),
        **{
            f"recovered, against {base}": loss_recovered(losses["model"], loss, losses[base])
            for base in ("zero", "mean")
        },
    }


# %%
table = pd.DataFrame([measured(name, sae) for name, sae in own.items()]).set_index("SAE")
table.round(2)

# %% [markdown]
# TopK and JumpReLU were given the L0 that L1 came to on training text, so that the rows differ in
# *how* sparsity is reached, and in what that costs after so short a training: in explained
# variance, in the model's loss, and in size. (L0 shifts a little from training text to held-out
# text.) The shipped SAE of section 4 is no fair rival: it has more latents, more of them on, saw
# over a hundred times as many different tokens (of other text), and was finetuned at the end so
# that the model with SAEs in it predicts what the model predicts.

# %%
title = "Size of reconstructions, against the size that would fit best: "
title += ", ".join(f"{name} {value - 1:+.0%}" for name, value in table["γ"].items())
axis = figures.ValueAxis("γ (1 = right size)", reference=1.0)
figures.show(
    figures.estimates_figure(table["γ"].to_dict(), axis, title, bars=True),
    alt=f"A bar for each of three SAEs. {title}.",
)

# %% [markdown]
# TopK gives every token the same number of latents. Do tokens need the same number? JumpReLU lets
# them differ (and so does ReLU; TopK's histogram would be a single bar). The dotted line is the
# mean:

# %%
with torch.no_grad():
    per_token = {name: (sae(scale * x_test)[0] > 0).sum(dim=1).float() for name, sae in own.items()}
ends = {name: f"{n.quantile(0.05):.0f} to {n.quantile(0.95):.0f}" for name, n in per_token.items()}
title = "Latents on for a token (middle 90 %): " + ", ".join(
    f"{name} {text}" for name, text in ends.items()
)
differing = {name: n for name, n in per_token.items() if name != "TopK"}
figures.show(
    figures.histograms_figure(differing, "latents on (L0 of one token)", "held-out tokens", title),
    alt=(
        "Histograms of the number of latents that are on for a token, for ReLU + L1 "
        f"and JumpReLU. {title}."
    ),
)

# %% [markdown]
# How often is each latent on? A dead latent would stand at −5, far to the left; on the right are
# **dense** ones, which are on so often that they hardly stand for one thing. The dotted line is the
# mean. (An encoder that starts as the transpose of the decoder helps to keep latents alive, but is
# no guarantee, as the larger toy showed; wide SAEs can lose most of theirs without a remedy: Gao et
# al. 2024.)

# %%
title = "Never on, or for more than a tenth of the training tokens: " + ", ".join(
    f"{name} {int((share == 0).sum())} and {int((share > 0.1).sum())}"
    for name, share in often.items()
)
log_often = {name: share.clamp(min=1e-5).log10() for name, share in often.items()}
figures.show(
    figures.histograms_figure(log_often, "log10 of the share of tokens", "latents", title),
    alt=(
        f"Histograms of how often latents are on, for three SAEs, of {D_SAE} latents each. {title}."
    ),
)

# %% [markdown]
# ## 6. What do latents respond to?
#
# Your SAE goes into SAELens' format, so that everything in this course works with it as with any
# other. It was trained on scaled activations; to read them as they are, divide the biases and the
# threshold by the scale. Then your SAE and the model are a *lab*.


# %%
def in_saelens(sae: SAE, threshold: Tensor) -> JumpReLUSAE:
    """The SAE in SAELens' format, for activations as they are."""
    made = JumpReLUSAE(
        JumpReLUSAEConfig(d_in=len(sae.b_dec), d_sae=len(sae.b_enc), apply_b_dec_to_input=True)
    )
    biases = dict(
        b_enc=sae.b_enc / scale,
        b_dec=sae.b_dec / scale,
        threshold=(threshold / scale).expand_as(sae.b_enc),
    )
    parts = dict(W_enc=sae.W_enc, W_dec=sae.W_dec, **biases)
    made.load_state_dict({name: value.detach().clone() for name, value in parts.items()})
    return made.to(lab.device)


my_saes = {LAYER: in_saelens(own["JumpReLU"], threshold)}
own_lab = Lab.from_parts(model=lab.hf_model, tokenizer=lab.tokenizer, saes=my_saes, name="my SAE")
own_lab

# %% [markdown]
# Which latents shall we look at? Not the prettiest: four drawn at random from the rarer half of
# those that are on for at least five held-out tokens. (Pieces with a token that is left out are
# left out here, too.)

# %%
plain_tokens = test_tokens[~odd.any(dim=1)]


def some_latents(lab: Lab, n: int = 4) -> list[int]:
    """Latents at random, from the rarer half of those that fire now and then on held-out text."""
    count = (lab.saes[LAYER].encode(x_test) > 0).sum(dim=0)
    rarer = ((count >= 5) & (count <= count[count >= 5].median())).nonzero()[:, 0]
    return rarer[
        torch.randperm(len(rarer), generator=torch.Generator().manual_seed(SEED))[:n]
    ].tolist()


def context_table(lab: Lab, contexts: dict[int, list[Context]]) -> pd.DataFrame:
    """A latent a row: the tokens that it promotes, and the texts in which it fires most, its
    strongest token in «».
    """
    rows, lens = {}, logit_lens(lab, LAYER, list(contexts), k=5)
    for latent, found in contexts.items():
        marked = [
            [f"«{token}»" if i == c.peak else token for i, token in enumerate(c.tokens)]
            for c in found[:4]
        ]
        texts = {f"context {i + 1}": "".join(tokens) for i, tokens in enumerate(marked)}
        rows[latent] = {"promotes": lens[latent]["promotes"], **texts}
    return pd.DataFrame(rows).T.rename_axis("latent")


# %%
pd.set_option("display.max_colwidth", 90)
own_contexts = top_contexts(own_lab, LAYER, some_latents(own_lab), plain_tokens, before=6, after=2)
context_table(own_lab, own_contexts)

# %% [markdown]
# The same for the shipped SAE, which has more latents and saw millions of tokens:

# %%
shipped_contexts = top_contexts(lab, LAYER, some_latents(lab), plain_tokens, before=6, after=2)
context_table(lab, shipped_contexts)

# %% [markdown]
# The first of each table in colour, from its strongest text down. Each text has its own scale of
# colour, so point at the tokens to see the latent's value: the last text's may be far weaker than
# the first's.

# %%
coloured_contexts(next(iter(own_contexts.values())))

# %%
coloured_contexts(next(iter(shipped_contexts.values())))

# %% [markdown]
# Which of them are about one token, wherever it stands, and which about what the text says? Which
# would you not dare to name? Read all of them with suspicion. The strongest contexts are the
# easiest to name; those in which a latent fires weakly may be about something else. The promoted
# tokens are those of its decoder row alone, as if no layer came after. Notebook 05 tests such
# stories by intervening.
#
# ## 7. What SAEs miss
#
# **Is what they leave out noise?** The error x − x̂ is a small part of x. If it were noise, it
# would disturb the model as noise does. So: put in the place of x̂ another point at the same
# distance from x, token by token, in a random direction.


# %%
def with_noise(x: Tensor) -> Tensor:
    """x, moved as far as the SAE moves it, in a random direction."""
    error = x - shipped.decode(shipped.encode(x))
    return x + error.norm(dim=1, keepdim=True) * nn.functional.normalize(torch.randn_like(x), dim=1)


torch.manual_seed(SEED)
losses["noise"] = loss_with(with_noise)
added = {name: losses[name] - losses["model"] for name in ("SAE", "noise")}
ratio = ratio_interval(added["SAE"], added["noise"])
print(
    f"loss added: {added['SAE'].mean():.3f} nats a token by the SAE, "
    f"{added['noise'].mean():.3f} by noise of the same size"
)
print(f"ratio: {ratio}; n = {len(test_tokens)} pieces of text, 95 % interval over pieces")

# %% [markdown]
# Above 1, the error lies in directions that the model uses more than it uses random ones. (Gurnee
# 2024 found this in GPT-2; notebook 02 follows the errors of this course's SAEs through the layers.
# The SAE measured here was also finetuned on the model's predictions, which Gurnee's were not; the
# two sizes cannot be compared.)
#
# **The dictionary is not the only one.** Train the same SAE from another start. If latents were the
# model's own features, both would find the same. How many decoder rows have a twin in the other
# SAE? As a control, rows against the same rows with their coordinates shuffled.

# %%
twin = new_sae(lambda pre: batch_topk(pre, K), seed=SEED + 1)
torch.manual_seed(SEED + 1)
twin_losses = train(twin, next_batch, STEPS, lr=LR, name="another start")

# %%
with torch.no_grad():
    alive = often["JumpReLU"] > 0
    rows = own["JumpReLU"].W_dec[alive]
    best = {
        "another start": (rows @ twin.W_dec.T).amax(dim=1),
        "shuffled rows": (rows @ twin.W_dec[:, torch.randperm(rows.shape[1])].T).amax(dim=1),
    }
same, same_by_chance = ((cosine > 0.7).float().mean().item() for cosine in best.values())
title = (
    f"Latents with a twin (cosine above 0.7): {same:.0%} from another start, "
    f"{same_by_chance:.0%} by chance"
)
figures.show(
    figures.histograms_figure(
        best, "cosine with the closest row of the other SAE", f"of {len(rows)} live latents", title
    ),
    alt=f"Two histograms of cosines between decoder rows. {title}.",
)
still = nn.functional.cosine_similarity(own["JumpReLU"].W_dec, new_sae().W_dec).median().item()
print(
    f"a decoder row's cosine with the random direction that it started from: {still:.2f} (median)"
)

# %% [markdown]
# The closest rows are closer than chance, and few are the same. The last line is a warning about
# our own experiment: as far as that cosine is above 0, a row still remembers its start after so
# short a training, and this keeps the two dictionaries apart. SAEs that are trained for far longer
# differ too (Paulo and Belrose 2025).
#
# ## What we saw

# %%
print(
    f"Superposition: {stored[1.0]} features in 2 dimensions at p = 1, {stored[densities[-1]]} "
    f"at p = {densities[-1]:g}."
)
print(f"The SAE of the toy: all directions found with cosines of {worst:.3f} or more.")
toy_gaps = ", ".join(f"{name} {gap:.2f}" for name, gap in gaps.items())
print(
    f"Shrinkage in the larger toy: latents too small by {toy_gaps}, of a mean size of "
    f"{true_size.mean():.2f}."
)
for name, row in table.iterrows():
    print(
        f"{name}: L0 {row['L0']:.0f}, explained variance {row['explained variance']:.2f}, γ "
        f"{row['γ']:.2f} (held-out tokens)."
    )
print(
    f"The shipped SAE: explained variance {shipped_ev:.2f}, loss recovered {recovered['mean']} "
    "against the mean."
)
print(f"Its error costs {ratio} times what noise of its length costs.")
print(f"From another start, {same:.0%} of the latents have a twin; by chance {same_by_chance:.0%}.")
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away.** Where features are rare, directions can hold more of them than there are
# dimensions, and sparsity is enough to find the directions again, in a world made of sparse
# directions. How sparsity is enforced leaves marks: an L1 penalty shrinks latents, a fixed k spends
# the same on every token. Report L0 and a quality together, on held-out text, and say against what.
#
# **What it does not show.** That a language model is such a world. An SAE writes any activation as
# a sum of sparse directions, whether or not the model does. What it leaves out can matter, wide
# SAEs split a latent of narrow ones into several (Bricken et al. 2023), and another start gives
# another dictionary. One small SAE on one layer, trained on text that a small model made up, says
# nothing about how good SAEs can be. The rest of the course therefore asks a question that can be
# decided: do *these* latents carry *this* behaviour? First, where to put the SAEs: notebook 02.
#
# **To read on**: Elhage et al. 2022, *Toy Models of Superposition*; Bricken et al. 2023, *Towards
# Monosemanticity*; Gao et al. 2024, *Scaling and Evaluating Sparse Autoencoders* (TopK, auxiliary
# loss); Rajamanoharan et al. 2024, *Improving Dictionary Learning with Gated SAEs* (a) and *Jumping
# Ahead* (JumpReLU); Bussmann et al. 2024, *BatchTopK Sparse Autoencoders*; Gurnee 2024, *SAE
# reconstruction errors are (empirically) pathological*; Sun et al. 2024, *Massive Activations in
# Large Language Models*; Paulo and Belrose 2025, *Sparse Autoencoders Trained on the Same Data
# Learn Different Features*.
