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
# Many neurons of a language model respond to several unrelated things. One explanation is
# **superposition**: the model has more features than dimensions, and stores them as directions that
# overlap. A **sparse autoencoder** (SAE) looks for these directions.
#
# **At the end you can say**
#
# - when a model stores more features than it has dimensions, and how their directions lie;
# - how an SAE is built and trained: an encoder, a decoder, a loss, and a rule that makes it sparse;
# - why an L1 penalty shrinks latents, and how TopK, JumpReLU and gated SAEs avoid most of that;
# - how good an SAE is: L0, dead latents, explained variance and loss recovered, on held-out text;
# - how to test whether an SAE's error is noise, and whether another start finds the same latents.
#
# **You need** PyTorch, and to know what the residual stream of a transformer is.
#
# **Time**: about 90 minutes: 50 for the six exercises and 40 to read. **It runs** {times}. The
# first run fetches 93 MB of weights.
#
# **Exercises.** Each is a function with a docstring and no body. Write it, run the cell and the
# `check` below it. Until then the course's version runs in its place.
#
# **Contents**
#
# 1. More features than dimensions
# 2. A sparse autoencoder undoes it
# 3. Shrinkage, and how to avoid it
# 4. The residual stream of a real model
# 5. Train your own
# 6. What do latents respond to?
# 7. What SAEs miss
# 8. What we saw

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
# A *lab* is a model with its SAEs; `smollm2` is SmolLM2-135M-Instruct. `PROFILE="quick"` runs the
# same steps with less text and shorter training.

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
# Here is a world with five **features**. Each is there with probability `p`, with a size between 0
# and 1; otherwise it is 0.

# %%
N_FEATURES = 5
importance = 0.9 ** torch.arange(N_FEATURES)


def sparse_batch(n: int, n_features: int, p: float) -> Float[Tensor, "n n_features"]:
    """Features that are each there with probability p, then with a size between 0 and 1."""
    return torch.rand(n, n_features) * (torch.rand(n, n_features) < p)


torch.manual_seed(SEED)
sparse_batch(4, N_FEATURES, p=0.3)

# %% [markdown]
# The **toy model** has two dimensions for them. It maps an example x to $h = W x$, and reads the
# features as $x' = \mathrm{ReLU}(W^\top h + b)$. Column i of W is the direction of feature i. Each
# feature has an importance, its weight in the loss.
#
# ### Exercise 1.1 · The loss of the toy model
# ⏱ 10 min · difficulty ●○○ · what the toy model is trained on: that features come back, the
# important ones first
#
# Write `toy_loss`. Each row of `x` is an example, so h has one row per example, too.
#
# <details><summary>Hint 1</summary>
#
# For one example h is `W @ x`; for a batch of rows it is `x @ W.T`.
# </details>
#
# <details><summary>Hint 2</summary>
#
# The way back, $W^\top h$, is `h @ W` for a batch of rows. Then come the bias and the ReLU.
# </details>
#
# <details><summary>Hint 3</summary>
#
# Multiply the squared error `[batch, n_features]` by the importance, sum over features, average
# over the batch.
# </details>

# %% tags=["exercise"]
# exercise: toy_loss

# %%
check(toy_loss)

# %% [markdown]
# **What you should see**: ✅. With W = 0 and b = 0 the model returns 0, and the loss is the squares
# of x times the importance, summed and averaged in the same way.
#
# <details><summary>My values look wrong</summary>
#
# - *Five times too small*: you averaged over features; their errors add up.
# - *Far too large, and growing with the batch*: you summed over the batch.
# - *A shape error in the product*: `W` is `[2, 5]`, and a batch is `[batch, 5]`.
# </details>
#
# Now train it in four worlds, from features that are always there to rare ones. The best of several
# starts is kept. (`vmap` runs all starts at once.)


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
# From the most to the least important, the features are orange-red, dark blue, light blue, green
# and yellow. Those with an arrow longer than 0.5 count as stored; dotted lines join their tips.
#
# Where features are always there, the two most important get a dimension each, and the others are
# lost. Where features are rare, the model stores more of them than it has dimensions:
# **superposition**. Their directions overlap, but two features are seldom there at once, and the
# ReLU with its bias removes small interference.
#
# Not all starts end alike; some store too few features or too many.

# %%
for p, n in n_stored.items():
    print(
        f"p = {p:g}: features stored by each of {TOY_STARTS} starts: "
        f"{sorted(n.tolist(), reverse=True)}"
    )

# %% [markdown]
# These are the cosines of the directions where features are rarest, and the biases. In a regular
# pentagon, cosines are cos 72° = 0.31 for neighbours and cos 144° = −0.81 otherwise. The ReLU cuts
# off the negative ones; the negative bias removes the small positive ones.

# %%
W, b = toys[densities[-1]]
unit = nn.functional.normalize(W.T, dim=1)
pd.DataFrame((unit @ unit.T).round(decimals=2)).assign(bias=b.round(decimals=2))

# %% [markdown]
# ## 2. A sparse autoencoder undoes it
#
# Suppose we see only the two numbers h of each example. Can we get the five features back? We know
# that **few are there at once**. So we write every h as a sum of a few directions out of a larger
# set:
#
# $$f = \mathrm{ReLU}\big((x - b_\text{dec})\,W_\text{enc} + b_\text{enc}\big), \qquad
# \hat x = f\,W_\text{dec} + b_\text{dec}$$
#
# f are the **latents**; row i of $W_\text{dec}$ is the direction that latent i writes. There are
# more latents than dimensions, and most should be 0. (x is now what an SAE reads: first h of the
# toy, later the residual stream.)
#
# ### Exercise 1.2 · Encode and decode
# ⏱ 10 min · difficulty ●○○ · the two lines of every SAE that you train here
#
# Write `sae_forward`. The activation function is an argument, as we will change it.
#
# <details><summary>Hint 1</summary>
#
# A row of `x` is an example and `W_enc` is `[d_in, d_sae]`, so the encoder is `… @ W_enc`.
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
# **What you should see**: ✅. No latent is negative. If all latents are 0, the reconstruction is
# `b_dec`.
#
# <details><summary>My values look wrong</summary>
#
# - *Negative latents*: the activation function is missing.
# - *The check speaks of another activation function*: you wrote `torch.relu`; call `activation`.
# - *The reconstruction is off by the same vector everywhere*: `b_dec` was not added back.
# </details>
#
# An SAE should rebuild x with few latents. **L0**, the number of latents that are on, has no useful
# gradient, so the classic loss penalises their sum, L1. That has a loophole: with f ten times
# smaller and $W_\text{dec}$ ten times larger, $\hat x$ stays the same and the penalty falls to a
# tenth. To close it, multiply each latent by the norm of its decoder row (the loss below), or keep
# the rows at norm 1 (our training does this, too).
#
# ### Exercise 1.3 · The loss with an L1 penalty
# ⏱ 10 min · difficulty ●●○ · the trade between faithful and sparse; papers differ in sums, means
# and decoder norms
#
# Write `l1_loss`. Note what is summed and what is averaged: for this reason, published values of λ
# (`l1`) differ by a factor of `d_in`.
#
# $$\frac{1}{\text{batch}} \sum_\text{examples} \Big[ \sum_{j}^{d_\text{in}} (x_j - \hat x_j)^2
# \;+\; \lambda \sum_{i}^{d_\text{sae}} f_i\, \lVert W_{\text{dec},i} \rVert \Big]$$
#
# <details><summary>Hint 1</summary>
#
# `torch.nn.functional.mse_loss` averages over everything. Square, and sum over the last dimension.
# </details>
#
# <details><summary>Hint 2</summary>
#
# The norms `W_dec.norm(dim=1)` are `[d_sae]`: they multiply `f` column by column.
# </details>

# %% tags=["exercise"]
# exercise: l1_loss

# %%
check(l1_loss)

# %% [markdown]
# **What you should see**: ✅. With `l1=0` it is the squared norm of the error.
#
# <details><summary>My values look wrong</summary>
#
# - *Too small by the number of dimensions*: `mse_loss`, or a mean over the last dimension.
# - *Right for rows of norm 1 only*: the norm of the decoder rows is missing.
# - *Latents never become sparse in training*: you squared f; squares push large values down, not
#   small ones to 0.
# </details>
#
# Now the SAE itself: four parameters. Decoder rows start as random directions of norm 1, and the
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
# Training uses Adam. The learning rate rises over 50 steps and falls to zero over the last fifth.
# After each step, decoder rows are put back to norm 1.


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
# The SAE sees only h, where features are rarest. It has five latents, as we know that there are
# five features. The start with the lowest loss is kept. (λ is large, as we want directions; section
# 3 shows what it does to sizes.)


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
# Where a ring is on an arrow, the SAE has found the direction of a feature. It never saw a feature;
# sparsity was enough. Does every start find all five? (For a real model only the loss is known, not
# these cosines.)

# %%
for loss, sae in toy_runs:
    cosines_of_start = (unit @ sae.W_dec.detach().T).amax(dim=1)
    n_found = (cosines_of_start > 0.98).sum()
    print(
        f"loss {loss:.4f}: {n_found} of 5 directions found, the worst cosine is "
        f"{cosines_of_start.min():.2f}"
    )

# %% [markdown]
# A latent halfway between two neighbours of the pentagon has a cosine of cos 36° = 0.81 with both.
# A start near 0.81 is stuck: two features share a latent. One just below 0.98 has almost arrived.
#
# ## 3. Shrinkage, and how to avoid it
#
# Now a larger world: 80 features, each a random direction in 48 dimensions, there with probability
# 0.02 and then with a size between 0.5 and 1.5. We know every feature, so we can count what an SAE
# with 96 latents finds.

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
# A feature's latent is the one whose decoder row is closest to its direction. How large is it where
# the feature is there?


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
# That is **shrinkage**. For one feature of size a by itself, the loss of its latent f is
# $(a - f)^2 + \lambda f$. It is smallest at $f = a - \lambda/2$: L1 penalises the size of latents,
# although we only want few of them. Here more than λ/2 is lost, as features overlap and spare
# latents take a share of some. A larger λ gives sparser latents and more shrinkage.
#
# The cure is to decide separately **which** latents are on and **how large** they are. In **TopK**,
# the k largest are on, at their own size, and there is no penalty.
#
# ### Exercise 1.4 · TopK
# ⏱ 10 min · difficulty ●●○ · an activation function that sets the sparsity by itself
#
# Write `topk`: it takes pre-activations, and keeps k per row.
#
# <details><summary>Hint 1</summary>
#
# `pre.topk(k, dim=-1)` returns two things: the values and their places.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Start from `torch.zeros_like(pre)` and `scatter` the values into their places.
# </details>
#
# <details><summary>Hint 3</summary>
#
# The largest k may include negative ones. Latents are never negative: ReLU.
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
# - *Rows with more than k*: you ranked over the whole batch. That is another method, and comes
#   next.
# </details>
#
# **BatchTopK** keeps the k · batch largest of the whole batch: k on average, and more for an input
# that needs more. For single inputs, fix its threshold θ: latents below θ are 0, the others keep
# their size. That is **JumpReLU**. The SAEs of this course are trained as BatchTopK and stored as
# JumpReLU. (Gemma Scope trains JumpReLU directly, with a surrogate gradient for θ; we do not.)


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
# decides whether a latent is on. The same output, rescaled and shifted, gives its size. A second
# reconstruction, from the gate's values through a frozen decoder, teaches the gate which latents
# are useful. Shrinkage then stays in the gate.


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
# Points on the floor are features that were there while their latent was silent. TopK misses many:
# it allows two latents per example, even where five features are there. BatchTopK shares one budget
# among the examples.
#
# To compare SAEs we need two numbers together, as each is easy to reach alone: how much is rebuilt,
# and with how many latents.
#
# ### Exercise 1.5 · Explained variance
# ⏱ 5 min · difficulty ●●○ · how much of the activations the SAE rebuilds, compared with their mean
#
# Write `explained_variance`. Measure against the mean: an SAE that knows only the mean has
# explained nothing, and the residual stream is far from centred on zero.
#
# <details><summary>Hint 1</summary>
#
# The mean is over tokens, one number per dimension: `x.mean(dim=0)`.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Add up the squared errors of all tokens and dimensions, and the squared distances from the mean.
# Divide once.
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
# - *Close to 1 for everything*: your baseline is zero and not the mean.
# - *The check says that you averaged*: you took one ratio per dimension or per token. A large one
#   then counts no more than a small one.
# </details>
#
# ### Exercise 1.6 · L0 and dead latents
# ⏱ 5 min · difficulty ●○○ · how sparse the code is, and how much of the dictionary is never used
#
# Write `l0_and_dead`, from the latents of many tokens. A latent that is on for none of them is
# **dead**: no gradient reaches a latent that never fires, so nothing trains it any more.
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
# A feature is *found* if a decoder row has a cosine above 0.9 with it; there are 80. Read each row
# together with its L0.
#
# - **Size.** The three SAEs without a penalty on size lose far less of it than ReLU + L1. What TopK
#   and BatchTopK still lose has other causes, such as features whose latent was not found or is
#   shared.
# - **Features.** Less shrinkage is not better in everything. In the full run, TopK and BatchTopK
#   have a lower L0 than ReLU + L1, find fewer features and explain less variance.
# - **Dead latents.** With 96 latents for 80 features, some are spare. But TopK and BatchTopK have
#   dead latents while features are missing: without a gradient, a dead latent cannot take one up.
#   We do not repair this. Large SAEs, and those of this course, are trained with a remedy, such as
#   an auxiliary loss that lets dead latents rebuild what the live ones miss (Gao et al. 2024).
#
# ## 4. The residual stream of a real model
#
# The features of a language model are unknown. This repository has a JumpReLU SAE for the residual
# stream in the middle of the model. The text is passages that the model itself invented, in pieces
# of 31 tokens after BOS, the token that starts every text.
#
# **From here on, SAEs are judged on held-out passages**, about other subjects than the training
# passages. Only the dead latents of your own SAEs are counted on the training text, which is
# longer.

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
# Many models have such **massive activations**. Attention rests on these tokens as it does on BOS,
# and they say little about the text (Sun et al. 2024). They would make up most of the variance. So,
# like BOS, they are left out of training and measuring, and are never replaced.
#
# The shipped SAE is an object of the library SAELens. It computes what your `sae_forward` does with
# its activation function:

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
# Explained variance treats all directions alike; the model does not. A better test: put $\hat x$ in
# the place of x. How much worse does the model then predict the next token?
#
# **Loss recovered** puts that on a scale: 1 is the loss of the model itself, 0 the loss with the
# layer destroyed. Papers usually destroy it with zeros; the mean over tokens is stricter.
#
# Each piece's first prediction is not counted: it is made from BOS alone, where nothing is
# replaced. (The cross-entropy of notebook 02 counts it.)


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
# The activations to train on are scaled to a typical norm of $\sqrt{d}$. One learning rate and
# penalty can then serve every layer.

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
# First, ReLU with an L1 penalty:

# %%
L1, LR = 2.0, 2e-3
torch.manual_seed(SEED)
own = {"ReLU + L1": new_sae()}
training_started = time.perf_counter()
history = {"ReLU + L1": train(own["ReLU + L1"], next_batch, STEPS, l1=L1, lr=LR, name="ReLU + L1")}
print(f"{STEPS} steps in {time.perf_counter() - training_started:.0f} seconds")

# %% [markdown]
# How sparse has it become? The TopK SAEs get as many latents per token.

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
# BatchTopK needs a whole batch. After training, we turn it into a JumpReLU SAE: one threshold, with
# which K latents per training token are on, on average.

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
# True sizes are not known here, but shrinkage makes reconstructions too small. γ is the size of
# $\hat x$ divided by the size that would fit x best: below 1, $\hat x$ is too small. We measure
# both from the mean of x; Rajamanoharan et al. (2024a), who introduced γ, measure from zero.


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
# TopK and JumpReLU were given the L0 of ReLU + L1 on the training text; on held-out text it shifts
# a little. ReLU + L1 explains less variance than JumpReLU after this short training, and its γ is
# well below 1: L1 shrinks here, too.
#
# The shipped SAE of section 4 cannot be compared with these. It has more latents, and more of them
# on. It saw over a hundred times as many different tokens, of other text. It was also finetuned so
# that the model with SAEs predicts what the model predicts.

# %%
title = "Size of reconstructions, against the size that would fit best: "
title += ", ".join(f"{name} {value - 1:+.0%}" for name, value in table["γ"].items())
axis = figures.ValueAxis("γ (1 = right size)", reference=1.0)
figures.show(
    figures.estimates_figure(table["γ"].to_dict(), axis, title, bars=True),
    alt=f"A bar for each of three SAEs. {title}.",
)

# %% [markdown]
# TopK gives every token the same number of latents. In the other two the number differs, and widely
# (dotted: the mean):

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
# How often is each latent on? Dead latents would be at −5, far to the left. On the right are
# **dense** latents, on so often that they hardly stand for one thing. (An encoder that starts as
# the decoder's transpose helps to keep latents alive, but section 3 had dead ones all the same.
# Wide SAEs can lose most of their latents: Gao et al. 2024.)

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
# In SAELens' format, your SAE works with everything in this course. To use it on unscaled
# activations, divide the biases and the threshold by the scale. Your SAE and the model are then a
# *lab*.


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
# So as not to pick the prettiest, we draw four latents at random, from the rarer half of those that
# are on for at least five held-out tokens. (Pieces with a massive activation are left out.)

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
# The same for the shipped SAE, which saw millions of tokens:

# %%
shipped_contexts = top_contexts(lab, LAYER, some_latents(lab), plain_tokens, before=6, after=2)
context_table(lab, shipped_contexts)

# %% [markdown]
# The first latent of each table in colour, strongest text first. Each text has its own colour
# scale: point at a token to see the latent's value.

# %%
coloured_contexts(next(iter(own_contexts.values())))

# %%
coloured_contexts(next(iter(shipped_contexts.values())))

# %% [markdown]
# Which respond to one token, wherever it is? Which to what the text says? Which can you not name?
# Be careful with names. The strongest contexts are the easiest to name; where a latent fires
# weakly, it may mean something else. Promoted tokens are the **logit lens** of the decoder row:
# what it does to the logits as if no layer came after. Notebook 05 tests such stories by
# intervening.
#
# ## 7. What SAEs miss
#
# **Is the error noise?** If the error x − x̂ were noise, it would disturb the model as noise does.
# To test this, replace x̂, token by token, by a point at the same distance from x in a random
# direction.


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
# A ratio above 1 means that the model uses the error's directions more than random ones. In the
# full run, the whole interval is above 1. Gurnee (2024) found the same in GPT-2, with SAEs that
# were not finetuned on the model's predictions, so the sizes cannot be compared. Notebook 02
# follows the errors through the layers.
#
# **Does another start find the same latents?** It would if latents were the model's own features.
# Train the same SAE from another start, and count the decoder rows that have a twin there. The
# control is the other SAE's rows with shuffled coordinates.

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
# The closest rows are closer than chance, but few are the same. The last line is a warning: a
# cosine above 0 means that a row still remembers its start after this short training, which keeps
# the two dictionaries apart. But SAEs that are trained for far longer differ, too (Paulo and
# Belrose 2025).
#
# ## 8. What we saw

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
# **What to take away**
#
# - A model can store more features than it has dimensions, if they are rare. In a world made of
#   sparse directions, sparsity is enough to find them again.
# - The rule that makes an SAE sparse leaves marks: an L1 penalty shrinks latents, a fixed k gives
#   every token the same number.
# - Report L0 together with a measure of quality, on held-out text, and name the baseline.
# - An SAE's error can matter to the model, and another start gives another dictionary.
#
# **What it does not show**
#
# - That a language model is such a world. An SAE writes any activation as a sum of sparse
#   directions, whether or not the model does.
# - How good SAEs can be: this was one layer, one small SAE and a short training, on text by a small
#   model. Wider SAEs also split latents into several (Bricken et al. 2023).
#
# The rest of the course asks a question that can be decided: do *these* latents carry *this*
# behaviour?
#
# **Key terms**: activation, auxiliary loss, BatchTopK, BOS, cross-entropy, dead latent, decoder,
# dense latent, dictionary, encoder, explained variance, feature, gated SAE, held-out, JumpReLU, L0,
# L1 penalty, latent, logit lens, loss recovered, massive activation, neuron, pre-activation,
# reconstruction, ReLU + L1, residual stream, shrinkage, sparse autoencoder, superposition,
# surrogate gradient, TopK.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - Superposition: [Elhage et al. 2022, Toy Models of
#   Superposition](https://arxiv.org/abs/2209.10652)
# - SAEs on language models: [Bricken et al. 2023, Towards
#   Monosemanticity](https://transformer-circuits.pub/2023/monosemantic-features/index.html)
# - Gated SAEs and γ: [Rajamanoharan et al. 2024a, Improving Dictionary Learning with Gated Sparse
#   Autoencoders](https://arxiv.org/abs/2404.16014)
# - JumpReLU: [Rajamanoharan et al. 2024b, Jumping Ahead](https://arxiv.org/abs/2407.14435)
# - TopK and the auxiliary loss: [Gao et al. 2024, Scaling and Evaluating Sparse
#   Autoencoders](https://arxiv.org/abs/2406.04093)
# - [Bussmann et al. 2024, BatchTopK Sparse Autoencoders](https://arxiv.org/abs/2412.06410)
# - [Sun et al. 2024, Massive Activations in Large Language
#   Models](https://arxiv.org/abs/2402.17762)
# - [Gurnee 2024, SAE reconstruction errors are (empirically) pathological][gurnee]
# - [Paulo and Belrose 2025, Sparse Autoencoders Trained on the Same Data Learn Different
#   Features](https://arxiv.org/abs/2501.16615)
# - The method of this course: [Caples, Nainani, McDougall, rrenaud 2025, Scaling Sparse Feature
#   Circuit Finding to Gemma 9B][post]
# - The library: [SAELens](https://decoderesearch.github.io/SAELens/), which trains and loads SAEs
#
# **Next**: [02 · Interval placement](02_interval_placement.ipynb): how many SAEs, and where?
#
# [post]:
# https://www.lesswrong.com/posts/PkeB4TLxgaNnSmddg/scaling-sparse-feature-circuit-finding-to-gemma-9b
#
# [gurnee]: https://www.lesswrong.com/posts/rZPiuFxESMxCDHe4B
