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
# - why an L1 penalty shrinks latents, and how TopK, BatchTopK and JumpReLU avoid most of that;
# - how a threshold is trained although a step has no gradient, and how dead latents get one;
# - how good an SAE is: L0, dead latents, explained variance and loss recovered, on held-out text;
# - how to test whether an SAE's error is noise, and whether another start finds the same latents.
#
# **You need** PyTorch, and to know what the residual stream of a transformer is.
#
# **Time**: about 130 minutes: 95 for the ten exercises and 35 to read. Sections 1 to 3 make
# one session, sections 4 to 7 another. **It runs** {times}. The first run fetches 93 MB of weights.
#
# **Exercises.** Each is a function with a docstring and no body. Write it, run the cell and the
# `check` below it. Until then the course's version runs in its place.
#
# **Contents**
#
# 1. More features than dimensions
# 2. A sparse autoencoder undoes it
# 3. Shrinkage and dead latents, and how to avoid them
# 4. The residual stream of a real model
# 5. Train your own
# 6. What do latents respond to?
# 7. What SAEs miss
# 8. What we saw

# %% tags=["setup"]
# setup

# %%
import functools
import math
import os
import time
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_utils import Lab, load_lab
from course_utils.circuits.explain import Context, logit_lens
from course_utils.circuits.reconstruction import loss_recovered, residual_stream, text_loss
from course_utils.circuits.statistics import ratio_interval
from course_utils.display import figures
from course_utils.display.html import coloured_contexts
from course_utils.display.profile import is_quick
from course_utils.display.sentences import counted, listed
from course_utils.labs.catalog import spec_of
from course_utils.prompts.text import load_text
from course_utils.teaching.nb01 import check, exercise

# %%
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
# ⏱ 10 min · difficulty ●○○ · what the toy model is trained on
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
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *Five times too small*: you averaged over features; their errors add up.
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
rarest = densities[-1]
title = (
    f"The rarer the features, the more are stored in two dimensions: {stored[1.0]} at p = 1, "
    f"{stored[rarest]} at p = {rarest:g}"
)
panels = {f"p = {p:g}: {stored[p]} of 5 stored": rows for p, rows in features.items()}
figures.show(
    figures.directions_figure(panels, title),
    alt=f"Four panels with the directions of five features in the plane, as arrows. {title}.",
)

# %% [markdown]
# Feature 1 is the most important, feature 5 the least. Those with an arrow longer than 0.5 count as
# stored; dotted lines join their tips.
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
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *The check speaks of another activation function*: you wrote `torch.relu`; call `activation`.
# - *The reconstruction is off by the same vector everywhere*: `b_dec` was not added back.
# </details>
#
# An SAE should rebuild x with few latents. Their number, **L0**, has no useful gradient, so the
# classic loss penalises their sum, L1. Each latent is first multiplied by the norm of its decoder
# row. Without that, the penalty would fall when f shrinks and $W_\text{dec}$ grows, although $\hat
# x$ stays the same.
#
# ### Exercise 1.3 · The loss with an L1 penalty
# ⏱ 10 min · difficulty ●●○ · the trade between faithful and sparse
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
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *Right for rows of norm 1 only*: the norm of the decoder rows is missing.
# - *Latents never become sparse in training*: you squared f; squares push large values down, not
#   small ones to 0.
# </details>
#
# Now the SAE itself: four parameters. Decoder rows start as random directions of norm 1, and the
# encoder as their transpose.


# %%
class SAE(nn.Module):
    """x ≈ f @ W_dec + b_dec, where few of f's entries are above 0 and the rows of W_dec have norm
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
        return l1_loss(x, x_hat, f, self.W_dec, l1), x_hat


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
) -> pd.DataFrame:
    """Train an SAE on batches; returns its loss and its squared error, step by step."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    history = []
    for step_number in tqdm(range(steps), desc=name):
        warm, cool = (step_number + 1) / 50, (steps - step_number) / (steps / 5)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, warm, cool)
        x = next_batch()
        loss, x_hat = sae.loss(x, l1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
            error = (x - x_hat).pow(2).sum(dim=1).mean()
        history.append({"loss": loss.item(), "squared error": error.item()})
    return pd.DataFrame(history)


# %% [markdown]
# The SAE sees only h, from the world with the rarest features (p = 0.03). It has one latent per
# feature. The start with the lowest loss is kept.


# %%
def toy_sae(seed: int) -> tuple[float, SAE]:
    """An SAE on the hidden dimensions of the toy model, and its loss at the end of training."""
    torch.manual_seed(seed)
    sae = SAE(2, N_FEATURES, seed=seed)

    def next_h():
        return sparse_batch(1024, N_FEATURES, densities[-1]) @ W.T

    history = train(sae, next_h, 800, l1=0.3, lr=1e-2, name=f"toy SAE, start {seed}")
    return history["loss"].tail(100).mean(), sae


toy_runs = sorted(
    (toy_sae(seed) for seed in range(SEED, SEED + TOY_STARTS)), key=lambda found: found[0]
)
pentagon = toy_runs[0][1]

# %%
cosines = unit @ pentagon.W_dec.detach().T  # [feature, latent]
worst = cosines.amax(dim=1).min()
n_found_first = int((cosines.amax(dim=1) > 0.98).sum())
title = f"The SAE finds {n_found_first} of 5 directions; the worst cosine is {worst:.3f}"
figures.show(
    figures.directions_figure(
        {"features (arrows), latents (rings)": unit},
        title,
        learned={"features (arrows), latents (rings)": pentagon.W_dec},
    ),
    alt=f"Five arrows of norm 1 and five rings in the plane. {title}.",
)

# %% [markdown]
# Where a ring is on an arrow, the SAE has found a feature's direction. It never saw a feature;
# sparsity was enough. Does every start find all five?

# %%
for loss, sae in toy_runs:
    cosines_of_start = (unit @ sae.W_dec.detach().T).amax(dim=1)
    n_found = (cosines_of_start > 0.98).sum()
    print(
        f"loss {loss:.4f}: {n_found} of 5 directions found, the worst cosine is "
        f"{cosines_of_start.min():.2f}"
    )

# %% [markdown]
# The loss tells good starts from stuck ones, in which two features share a latent. (Halfway between
# two neighbours, both cosines are cos 36° = 0.81.)
#
# ## 3. Shrinkage and dead latents, and how to avoid them
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
print(f"true L0: {(held_out > 0).sum(1).float().mean():.2f} features per example")

# %%
TOY_L1 = 0.4
relu_sae = SAE(48, 96)
_ = train(relu_sae, next_examples, TOY_STEPS, l1=TOY_L1, lr=TOY_LR, name="ReLU + L1")


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
title = f"L1 makes latents too small, by {shrinkage:.2f} on average"
sample = torch.arange(0, len(true_size), len(true_size) // 800)
SIZES = {"x_label": "true size of the feature", "y_label": "its latent", "x_limits": (0.45, 1.55)}
n_shown = f"{len(sample)} of {len(true_size):,} held-out features; dotted: latent = feature"
figures.show(
    figures.scatter_figure(
        true_size[sample], {"ReLU + L1": found_size[sample]}, title=title, caption=n_shown, **SIZES
    ),
    alt=f"A cloud of points below the line on which latents would equal features. {title}.",
)
print(f"λ/2 = {TOY_L1 / 2:.2f}; measured: {shrinkage:.2f} where the latent is on")

# %% [markdown]
# That is **shrinkage**. For one feature of size a by itself, the loss of its latent f is
# $(a - f)^2 + \lambda f$. It is smallest at $f = a - \lambda/2$: L1 penalises the size of latents,
# although we only want few of them. Here more than λ/2 is lost: features overlap, and spare latents
# take a share of some.
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
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *Negative latents*: no ReLU on the kept values.
# - *Rows with more than k*: you ranked over the whole batch. That is another method, and comes
#   next.
# </details>
#
# **BatchTopK** keeps the k · batch largest of the whole batch, so that an input that needs more
# latents gets more. After training, one threshold for all latents replaces the batch. All SAEs that
# ship with this course were trained so.


# %%
def batch_topk(pre: Tensor, k: int) -> Tensor:
    """The k · batch largest pre-activations of the batch stay, at their own size."""
    threshold = pre.detach().flatten().topk(k * len(pre)).values[-1]
    return pre * (pre >= threshold.clamp(min=1e-6))


def jumprelu(pre: Tensor, threshold: Tensor) -> Tensor:
    """Pre-activations above a threshold stay, at their own size."""
    return pre * (pre > threshold)


# %% [markdown]
# **JumpReLU** gives each latent a threshold θ of its own: below it the latent is 0, above it the
# latent keeps its size. The thresholds are *trained*, with a penalty on L0 itself. Both need the
# gradient of a step, which is 0. (SAELens stores our BatchTopK SAEs in the same form, with the
# threshold set afterwards.)
#
# The way out is a **surrogate gradient**: a **straight-through estimator** keeps the step's value
# and replaces its gradient. If θ rises a little, only latents just above it turn off. So each
# pre-activation near θ gives θ the gradient −1/ε, as if the step were a ramp of width ε (`width`).
#
# ### Exercise 1.5 · A step with a gradient
# ⏱ 15 min · difficulty ●●● · the trick behind every threshold, mask and quantiser that is trained
#
# Write `step`. Its value is exactly 1 or 0. Decide how the threshold gets a gradient, and how the
# pre-activations get none.
#
# <details><summary>Hint 1</summary>
#
# A comparison cuts off gradients. That is right for the value, and for pre. What is missing is a
# second term for the threshold.
# </details>
#
# <details><summary>Hint 2</summary>
#
# `threshold.detach() - threshold` is 0, and its gradient for the threshold is −1.
# </details>
#
# <details><summary>Hint 3</summary>
#
# Multiply that by 1/width where a pre-activation is near the threshold, and by 0 elsewhere. Both
# are numbers without a gradient. Add the product to the step.
# </details>

# %% tags=["exercise"]
# exercise: step

# %%
check(step)

# %% [markdown]
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *The step is not 0 or 1*: your second term is not 0. Subtract a tensor from itself, one of the
#   two detached.
# - *No gradient reaches the threshold*: both terms are detached, or there is only the comparison.
# - *A gradient reaches pre*: you multiplied by pre, or used `pre - threshold` as it is. (Latents
#   are `pre * step(…)`; pre gets its gradient from that product.)
# </details>
#
# With `step`, JumpReLU and its L0 penalty are one line each. The penalty $\lambda\,(\mathrm{L0}/k -
# 1)^2$ (λ is `price`) asks for k latents per input on average, as TopK and BatchTopK have.


# %%
class JumpReLU(SAE):
    """Each latent has a threshold that is trained, and a penalty pulls L0 to k. (Rajamanoharan et
    al. 2024b.)
    """

    def __init__(self, d_in: int, d_sae: int, k: float, start: float, width: float, price: float):
        super().__init__(d_in, d_sae)
        self.t = nn.Parameter(torch.full((d_sae,), math.log(start) / 5))
        self.k, self.width, self.price = k, width, price
        self.activation = lambda pre: pre * self.on(pre)

    def threshold(self):
        return (5 * self.t).exp()  # above 0; the 5 lets thresholds move faster than weights

    def on(self, pre):
        return step(pre, self.threshold(), self.width)

    def loss(self, x, l1):
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        on = self.on(pre)
        x_hat = (pre * on) @ self.W_dec + self.b_dec
        l0_penalty = (on.sum(dim=1).mean() / self.k - 1).square()
        return (x - x_hat).pow(2).sum(dim=1).mean() + self.price * l0_penalty, x_hat


# %% [markdown]
#
# **Predict first**: which of the four will lose most of a feature's size, and which will miss most
# features that are there?

# %%
toy_saes = {
    "ReLU + L1": relu_sae,
    "TopK": SAE(48, 96, lambda pre: topk(pre, 2)),
    "BatchTopK": SAE(48, 96, lambda pre: batch_topk(pre, 2)),
    "JumpReLU": JumpReLU(48, 96, k=2, start=0.2, width=0.2, price=1.0),
}
for name, sae in list(toy_saes.items())[1:]:
    train(sae, next_examples, TOY_STEPS, lr=TOY_LR, name=name)

# %%
sizes = {name: matched(sae) for name, sae in toy_saes.items()}
gaps = {name: size_lost(true, found) for name, (_, true, found) in sizes.items()}
missed = {name: (found == 0).float().mean().item() for name, (_, _, found) in sizes.items()}
others = max(gap for name, gap in gaps.items() if name != "ReLU + L1")
title = (
    f"L1 takes {gaps['ReLU + L1']:.2f} off a latent's size, the other rules at most {others:.2f}"
)
scatters = {name: found[sample] for name, (_, _, found) in sizes.items()}
figures.show(
    figures.scatter_figure(true_size[sample], scatters, title=title, caption=n_shown, **SIZES),
    alt=(
        "Four scatter plots of latents against the features they stand for, with the "
        f"line of equality. {title}."
    ),
)
silent = listed([f"{share:.0%} of them for {name}" for name, share in missed.items()])
print(f"features that were there while their latent was silent: {silent}")

# %% [markdown]
# Points at 0 are features that were missed. TopK misses many: it allows two latents per example,
# even where five features are there. The others have no such limit.
#
# To compare SAEs we need two numbers together, as each is easy to reach alone: how much is rebuilt,
# and with how many latents.
#
# ### Exercise 1.6 · Explained variance
# ⏱ 5 min · difficulty ●●○ · how much of the activations the SAE rebuilds, compared with their mean
#
# Write `explained_variance`. Measure against the mean: an SAE that knows only the mean has
# explained nothing.
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
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *The check says that you averaged*: you took one ratio per dimension or per token. A large one
#   then counts no more than a small one.
# </details>
#
# ### Exercise 1.7 · L0 and dead latents
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
# - *Nearly all latents dead*: you counted those that are off for some token.
# </details>


# %%
def toy_row(sae: SAE) -> dict[str, object]:
    """What is measured of an SAE on held-out examples of the larger toy world."""
    x = held_out @ directions
    with torch.no_grad():
        f, x_hat = sae(x)
    cosine, true, found = matched(sae)
    l0, dead = l0_and_dead(f)
    return {
        "features found": int((cosine > 0.9).sum()),
        "size lost": size_lost(true, found),
        "explained variance": explained_variance(x, x_hat).item(),
        "L0": l0,
        "dead of 96": dead,
    }


toy_table = pd.DataFrame({name: toy_row(sae) for name, sae in toy_saes.items()}).T
toy_table.round(3).rename_axis("SAE")

# %% [markdown]
# A feature is *found* if a decoder row has a cosine above 0.9 with it; there are 80. Read each row
# together with its L0.
#
# - **Size.** The three SAEs without a penalty on size lose far less of it than ReLU + L1.
# - **Features.** TopK and BatchTopK find fewer features than ReLU + L1. In the full run, JumpReLU
#   finds nearly all.
# - **Dead latents.** With 96 latents for 80 features, 16 are spare. In the full run, TopK and
#   BatchTopK have more dead ones, while features are missing: without a gradient, a dead latent
#   cannot take one up.
#
# Wide SAEs can lose most of their latents that way. *Resampling* points a dead latent at a badly
# rebuilt example (Bricken et al. 2023). An **auxiliary loss** gives dead latents a gradient: they
# are to rebuild what the live ones leave out (Gao et al. 2024).
#
# ### Exercise 1.8 · Dead latents get a gradient
# ⏱ 15 min · difficulty ●●● · how SAEs with millions of latents are trained
#
# Write `aux_loss`. Decide who may rebuild, what is to be rebuilt, and which way gradients may go.
#
# <details><summary>Hint 1</summary>
#
# Use `topk`, on dead latents alone. Which pre-activation keeps a live latent out?
# </details>
#
# <details><summary>Hint 2</summary>
#
# Pre-activations of 0 write nothing: `pre * dead`. No `b_dec` is added: it has cancelled in x − x̂.
# </details>
#
# <details><summary>Hint 3</summary>
#
# The live latents should not learn from this loss. They determine x̂, which is in the error:
# `.detach()`.
# </details>

# %% tags=["exercise"]
# exercise: aux_loss

# %%
check(aux_loss)

# %% [markdown]
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *Live latents took part*: the mask `dead` is missing, or came after `topk`. Then live latents
#   take the places.
# - *A gradient goes back to x̂*: the live latents would learn to leave work to the dead ones.
# </details>
#
# Now train TopK and BatchTopK for as long again, once as before and once with 1/32 of this loss
# added. A latent counts as dead here if it was off for 20 batches. **Predict first**: how many of
# the dead latents come back, and what will they stand for?


# %%
class Revived(SAE):
    """An SAE that goes on from another one, with an auxiliary loss for its dead latents."""

    def __init__(self, sae: SAE, weight: float):
        super().__init__(len(sae.b_dec), len(sae.b_enc), sae.activation)
        self.load_state_dict(sae.state_dict())
        self.weight, self.silent = weight, torch.zeros(len(sae.b_enc))  # batches since it was on

    def loss(self, x, l1):
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        f = self.activation(pre)
        x_hat = f @ self.W_dec + self.b_dec
        self.silent = torch.where((f > 0).any(dim=0), 0, self.silent + 1)
        extra = aux_loss(x, x_hat, pre, self.silent >= 20, self.W_dec, k=24)  # 24: all the dead
        return (x - x_hat).pow(2).sum(dim=1).mean() + self.weight * extra, x_hat


# %%
revived, rows = {}, {}
for name in ("TopK", "BatchTopK"):
    rows[name, "before"] = toy_row(toy_saes[name])
    for weight, how in ((0.0, "trained longer"), (1 / 32, "trained longer, auxiliary loss")):
        revived[name, how] = sae = Revived(toy_saes[name], weight)
        train(sae, next_examples, TOY_STEPS, lr=TOY_LR, name=f"{name}, {how}")
        rows[name, how] = toy_row(sae)
revival = pd.DataFrame(rows).T.rename_axis(["SAE", ""])
revival.round(3)


# %%
@torch.no_grad()
def what_they_do(name: str) -> tuple[int, int, int]:
    """Latents of a toy SAE that were dead; that are on again; that stand for a feature now."""
    x, after = held_out @ directions, revived[name, "trained longer, auxiliary loss"]
    was_dead = ~(toy_saes[name](x)[0] > 0).any(dim=0)
    is_back = was_dead & (after(x)[0] > 0).any(dim=0)
    stands = (directions @ after.W_dec.T > 0.9).any(dim=0)
    return int(was_dead.sum()), int(is_back.sum()), int((is_back & stands).sum())


for name in ("TopK", "BatchTopK"):
    n_dead, n_back, n_useful = what_they_do(name)
    print(
        f"{name}: of {n_dead} dead latents {n_back} are on again, and {n_useful} of these stand "
        "for a feature"
    )

# %% [markdown]
# More training alone finds no more features. With the auxiliary loss, those latents come back that
# are needed: each stands for a feature, and all 80 are found. The 16 latents that are dead at the
# end are the spare ones. The SAEs of this course are trained with such a loss.
#
# ## 4. The residual stream of a real model
#
# The features of a language model are unknown. We take a shipped SAE for the residual stream in the
# middle of the model, and passages that the model itself invented: pieces of 31 tokens after BOS,
# the token that starts every text.
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
print(f"norm: {typical:.0f} (median), at most {longest:.0f}")
print(
    f"left out: {odd.sum()} tokens, {odd[:, 0].sum()} of them first in their piece, norms up "
    f"to {sink:,.0f}"
)
print(f"the variance without them is {variance_left:.1%} of the variance with them")

# %% [markdown]
# Many models have such **massive activations**. Heads attend to them, as to BOS, when they need
# nothing else (Sun et al. 2024). They would make up most of the variance. So,
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
    {"cross-entropy, nats per token": {name: loss.mean().item() for name, loss in losses.items()}}
).round(2)

# %% [markdown]
# **Loss recovered** puts that on a scale: 1 is the loss of the model itself, 0 the loss with the
# layer destroyed. Papers usually destroy it with zeros; the mean over tokens is stricter.
#
# ### Exercise 1.9 · Loss recovered
# ⏱ 5 min · difficulty ●○○ · the number that papers give for an SAE
#
# Write `share_recovered`, from the losses of many pieces of text. **Predict first**, from the
# table above: what is it against the mean, and what against zeros?
#
# <details><summary>Hint 1</summary>
#
# Two differences: what ablating costs beyond the SAE, and what it costs beyond the model.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Average each loss over the pieces before you divide: on a single piece, the denominator can be
# small.
# </details>

# %% tags=["exercise"]
# exercise: share_recovered

# %%
check(share_recovered)

# %% [markdown]
# **What you should see**: ✅, and two values close to 1 below. The course's `loss_recovered` is the
# same number with a 95 % interval: the pieces of text are drawn again, with replacement, a thousand
# times.
#
# <details><summary>My values look wrong</summary>
#
# - *Close to 0*: that is the share lost. 1 is to be the model.
# </details>

# %%
recovered = {
    name: loss_recovered(losses["model"], losses["SAE"], losses[name]) for name in ("zero", "mean")
}
for name, value in recovered.items():
    by_hand = share_recovered(losses["model"], losses["SAE"], losses[name])
    assert abs(by_hand - value.value) < 1e-4
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
variance = x_train.var(dim=0).sum().item()
print(f"{len(x_train):,} activations to train on, median norm {x_train.norm(dim=1).median():.1f}")


# %%
def next_batch() -> Tensor:
    """512 activations at random."""
    return x_train[torch.randint(len(x_train), (512,))]


def centred(sae: SAE) -> SAE:
    """An untrained SAE with the mean activation as its origin."""
    sae.b_dec.data = x_train.mean(dim=0)
    return sae.to(x_train.device)


def new_sae(activation: Callable = torch.relu, seed: int = SEED) -> SAE:
    """An untrained SAE of this notebook's size."""
    return centred(SAE(x_train.shape[1], D_SAE, activation, seed=seed))


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
# How sparse has it become? The others get as many latents per token.

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
options = {"k": K, "start": 1.5, "width": 0.5, "price": 100.0}
own["JumpReLU"] = centred(JumpReLU(x_train.shape[1], D_SAE, **options))
for name in ("TopK", "BatchTopK", "JumpReLU"):
    history[name] = train(own[name], next_batch, STEPS, lr=LR, name=name)

# %%
not_rebuilt = {
    name: (run["squared error"].rolling(10, min_periods=1).mean() / variance).tolist()
    for name, run in history.items()
}
worst_name = max(not_rebuilt, key=lambda name: not_rebuilt[name][-1])
title = f"After {STEPS} steps, {worst_name} leaves the largest share of the variance unexplained"
share = "share of variance unexplained"
figures.show(
    figures.curves_figure(
        {share: not_rebuilt},
        "training step",
        title,
        caption="512 tokens per step; mean of 10 steps",
    ),
    alt=f"Four falling curves, one for each SAE. {title}.",
)

# %% [markdown]
# BatchTopK now gets its one threshold, such that K latents per training token are on. JumpReLU has
# trained its own.

# %%
with torch.no_grad():
    sae, x = own["BatchTopK"], x_train[::8]
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    threshold = pre.flatten().topk(K * len(x)).values[-1]
    trained = own["JumpReLU"].threshold()
own["BatchTopK"].activation = functools.partial(jumprelu, threshold=threshold)
low, middle, high = trained.quantile(torch.tensor([0.05, 0.5, 0.95]).to(trained)).tolist()
print(f"BatchTopK: one threshold, {threshold:.2f}")
print(f"JumpReLU: thresholds around {middle:.2f}, nine in ten between {low:.2f} and {high:.2f}")

# %% [markdown]
# True sizes are not known here, but shrinkage makes reconstructions too small. γ (Rajamanoharan et
# al. 2024a) is the size of $\hat x$ divided by the size that would fit x best, both seen from the
# mean of x. Below 1, $\hat x$ is too small.


# %%
def gamma(x: Tensor, x_hat: Tensor) -> float:
    """How large x̂ is, seen from the mean of x, relative to the x̂ of its direction that fits best;
    1 = no shrinkage.
    """
    x, x_hat = x - x.mean(dim=0), x_hat - x.mean(dim=0)
    return (x_hat.pow(2).sum() / (x_hat * x).sum()).item()


# %%
with torch.no_grad():
    # by latent: the share of training tokens for which it is on
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
# ReLU + L1 explains least after this short training, and its γ is well below 1: L1 shrinks here,
# too. (The L0s were matched on the training text; on held-out text they shift a little.)
#
# The shipped SAE cannot be compared with these: it has more latents, saw over a hundred times as
# many tokens, and was finetuned so that the model with SAEs predicts what the model predicts.
#
# In all but TopK, the number of latents differs widely between tokens (dotted: the mean):

# %%
with torch.no_grad():
    per_token = {name: (sae(scale * x_test)[0] > 0).sum(dim=1).float() for name, sae in own.items()}
differing = {name: n for name, n in per_token.items() if name != "TopK"}
few, many = differing["BatchTopK"].quantile(torch.tensor([0.05, 0.95]).to(scale)).tolist()
title = f"BatchTopK spends {few:.0f} to {many:.0f} latents on nine tokens in ten"
figures.show(
    figures.histograms_figure(
        differing,
        "latents on for a token",
        f"of {len(x_test):,} held-out tokens",
        title,
        upto=float(torch.cat(list(differing.values())).quantile(0.995)),
    ),
    alt=f"Histograms of the number of latents that are on for a token, for three SAEs. {title}.",
)

# %% [markdown]
# How often is each latent on? At the far right are **dense** latents, on so often that they hardly
# stand for one thing.

# %%
n_dense = sum(int((share > 0.1).sum()) for share in often.values())
n_dead = sum(int((share == 0).sum()) for share in often.values())
title = (
    f"Of {4 * D_SAE:,} latents in four SAEs, {n_dense} are dense (on for over 10 % of tokens) and "
    f"{n_dead} are dead"
)
figures.show(
    figures.histograms_figure(
        {name: share.clamp(min=1e-4) for name, share in often.items()},
        "share of training tokens",
        f"of {D_SAE:,} latents",
        title,
        log_shares=True,
    ),
    alt=f"Histograms of how often latents are on, for four SAEs. {title}.",
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


my_saes = {LAYER: in_saelens(own["BatchTopK"], threshold)}
own_lab = Lab.from_parts(model=lab.hf_model, tokenizer=lab.tokenizer, saes=my_saes, name="my SAE")
own_lab

# %% [markdown]
#
# ### Exercise 1.10 · Where a latent is strongest
# ⏱ 10 min · difficulty ●●○ · how latents get their names, here and on every dashboard
#
# Write `strongest`, from one latent's values on many texts. One repetitive text can hold all the
# highest values. Decide how to show different texts.
#
# <details><summary>Hint 1</summary>
#
# `f.max(dim=1)` returns two things: each text's highest value, and where it is.
# </details>
#
# <details><summary>Hint 2</summary>
#
# Rank texts by their highest value with `argsort`, and take the first k.
# </details>
#
# <details><summary>Hint 3</summary>
#
# Drop texts whose highest value is 0. Then stack texts and positions as two columns.
# </details>

# %% tags=["exercise"]
# exercise: strongest

# %%
check(strongest)

# %% [markdown]
# **What you should see**: ✅.
#
# <details><summary>My values look wrong</summary>
#
# - *Positions of other texts*: `where` has one entry for each text. Index it by the texts that you
#   kept.
# </details>
#
# So as not to pick the prettiest, we draw four latents at random, from the rarer half of those that
# are on for at least five held-out tokens. (Pieces with a massive activation are left out.)
# "Promotes" is the **logit lens** of the decoder row: the tokens whose logits it would raise most
# if no layer came after.

# %%
plain = ~odd.any(dim=1)
plain_tokens, plain_resid = test_tokens[plain][:, 1:], resid[plain]


def some_latents(lab: Lab, n: int = 4) -> list[int]:
    """Latents at random, from the rarer half of those that fire now and then on held-out text."""
    count = (lab.saes[LAYER].encode(x_test) > 0).sum(dim=0)
    rarer = ((count >= 5) & (count <= count[count >= 5].median())).nonzero()[:, 0]
    order = torch.randperm(len(rarer), generator=torch.Generator().manual_seed(SEED))
    return rarer[order[:n]].tolist()


@torch.no_grad()
def contexts_of(lab: Lab, latent: int, k: int = 4) -> list[Context]:
    """What stands around the places at which a latent is strongest."""
    f, found = lab.saes[LAYER].encode(plain_resid)[..., latent], []
    for text, position in strongest(f, k).tolist():
        first = max(0, position - 6)
        around = slice(first, position + 3)
        tokens = [lab.tokenizer.decode([token]) for token in plain_tokens[text, around].tolist()]
        found.append(Context(tokens, f[text, around].tolist(), position - first))
    return found


# %%
def context_table(lab: Lab, contexts: dict[int, list[Context]]) -> pd.DataFrame:
    """By latent: the tokens that it promotes, and the texts in which it is strongest, the token at
    its peak in «».
    """
    rows, lens = {}, logit_lens(lab, LAYER, list(contexts), k=5)
    for latent, found in contexts.items():
        marked = [
            [f"«{token}»" if i == c.peak else token for i, token in enumerate(c.tokens)]
            for c in found
        ]
        texts = {f"context {i + 1}": "".join(tokens) for i, tokens in enumerate(marked)}
        promoted = ", ".join(map(repr, lens[latent]["promotes"]))
        rows[latent] = {"promotes": promoted, **texts}
    return pd.DataFrame(rows).T.fillna("").rename_axis("latent")


# %%
pd.set_option("display.max_colwidth", 90)
own_contexts = {latent: contexts_of(own_lab, latent) for latent in some_latents(own_lab)}
context_table(own_lab, own_contexts)

# %% [markdown]
# The same for the shipped SAE, which saw millions of tokens:

# %%
shipped_contexts = {latent: contexts_of(lab, latent) for latent in some_latents(lab)}
context_table(lab, shipped_contexts)

# %% [markdown]
# Below is the first latent of each table, in colour. Point at a token to see its value.

# %%
coloured_contexts(next(iter(own_contexts.values())))

# %%
coloured_contexts(next(iter(shipped_contexts.values())))

# %% [markdown]
# Which respond to one token, wherever it is? Which to what the text says? Which can you not name?
# Be careful with names: where a latent fires weakly, it may mean something else. Notebook 05 tests
# such names by intervening.
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
    f"loss added: {added['SAE'].mean():.3f} nats per token by the SAE, "
    f"{added['noise'].mean():.3f} by noise of the same norm"
)
print(f"ratio: {ratio}; n = {len(test_tokens)} pieces of text, 95 % interval over pieces")

# %% [markdown]
# A ratio above 1 means that the model uses the error's directions more than random ones. In the
# full run, the whole interval is above 1. Gurnee (2024) found the same in GPT-2. Notebook 02
# follows the errors through the layers.
#
# **Does another start find the same latents?** It would if latents were the model's own features.
# Train the same SAE from another start, and count the decoder rows that have a *twin* there: a row
# with a cosine above 0.7. The control is the other SAE's rows with shuffled coordinates. **Predict
# first**: how many in a
# hundred have a twin?

# %%
twin = new_sae(lambda pre: batch_topk(pre, K), seed=SEED + 1)
torch.manual_seed(SEED + 1)
_ = train(twin, next_batch, STEPS, lr=LR, name="another start")

# %%
with torch.no_grad():
    alive = often["BatchTopK"] > 0
    rows = own["BatchTopK"].W_dec[alive]
    best = {
        "another start": (rows @ twin.W_dec.T).amax(dim=1),
        "shuffled rows": (rows @ twin.W_dec[:, torch.randperm(rows.shape[1])].T).amax(dim=1),
    }
same, same_by_chance = ((cosine > 0.7).float().mean().item() for cosine in best.values())
title = (
    f"{same:.0%} of latents have a twin in the SAE from another start, {same_by_chance:.0%} by "
    "chance"
)
figures.show(
    figures.histograms_figure(
        best,
        "cosine with the closest row of the other SAE",
        f"of {len(rows):,} live latents",
        title,
        level=0.7,
    ),
    alt=f"Two histograms of cosines between decoder rows; a twin is above 0.7. {title}.",
)
still = nn.functional.cosine_similarity(own["BatchTopK"].W_dec, new_sae().W_dec).median().item()
print(f"a decoder row's cosine with the random direction it started from: {still:.2f} (median)")

# %% [markdown]
# The closest rows are closer than chance, but few are twins (grey line: 0.7; dotted: the mean). The
# printed cosine is a warning: after this short training a row still remembers its start, which
# keeps the two dictionaries apart. But SAEs that are trained for far longer differ, too (Paulo and
# Belrose 2025).
#
# ## 8. What we saw

# %%
n_dead, n_back, n_useful = what_they_do("TopK")
best_name = table["explained variance"].idxmax()
ev, shrunk = table["explained variance"], 1 - table["γ"]["ReLU + L1"]

# %%
print(
    f"1. Two dimensions store {stored[1.0]} features that are always there, and "
    f"{stored[rarest]} rare ones. An SAE of the toy finds {n_found_first} of their directions."
)
print(
    f"2. L1 takes {gaps['ReLU + L1']:.2f} off a toy feature's size, the other rules at most "
    f"{others:.2f}. On real activations, L1 makes reconstructions {shrunk:.0%} too small."
)
found_before, found_after = (
    revival.loc[("TopK", how), "features found"]
    for how in ("before", "trained longer, auxiliary loss")
)
print(
    f"3. With an auxiliary loss, the toy's TopK SAE finds {found_after:.0f} of 80 features; "
    f"before, {found_before:.0f}."
)

# %%
print(
    f"4. With about {K} latents per token, {best_name} explains most variance ({ev.max():.2f}), "
    f"{ev.idxmin()} least ({ev.min():.2f})."
)
print(
    f"5. The shipped SAE recovers {recovered['mean']} of the loss against the mean. Its error "
    f"costs {ratio} times what noise of its norm costs."
)
print(
    f"6. From another start, {same:.0%} of the latents have a twin; by chance {same_by_chance:.0%}."
)
print(f"This notebook took {(time.perf_counter() - started) / 60:.1f} minutes.")

# %% [markdown]
# **What to take away**
#
# - A model can store more features than it has dimensions, if they are rare. In a world made of
#   sparse directions, sparsity is enough to find them again.
# - The rule that makes an SAE sparse leaves marks: an L1 penalty shrinks latents, a fixed k gives
#   every token the same number.
# - Where there is no gradient, another can stand in: for a threshold, or for a dead latent.
# - Report L0 together with a measure of quality, on held-out text, and name the baseline.
# - An SAE's error can matter to the model, and another start gives another dictionary.
#
# **What it does not show**
#
# - That a language model is such a world. An SAE writes any activation as a sum of sparse
#   directions, whether or not the model does.
# - How good SAEs can be: ours were small, at one layer, and trained briefly on text by a small
#   model.
#
# The rest of the course asks a question that can be decided: do *these* latents carry *this*
# behaviour?
#
# **Key terms**: activation, auxiliary loss, BatchTopK, BOS, cross-entropy, dead latent, decoder,
# dense latent, dictionary, encoder, explained variance, feature, held-out, JumpReLU, L0,
# L1 penalty, latent, logit lens, loss recovered, massive activation, neuron, pre-activation,
# reconstruction, ReLU + L1, residual stream, shrinkage, sparse autoencoder, straight-through
# estimator, superposition, surrogate gradient, TopK.
#
# The [glossary](../GLOSSARY.md) explains each in one sentence.
#
# **To read on**
#
# - Superposition: [Elhage et al. 2022, Toy Models of
#   Superposition](https://arxiv.org/abs/2209.10652)
# - SAEs on language models, and resampling: [Bricken et al. 2023, Towards
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
